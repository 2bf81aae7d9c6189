"""Alanine dipeptide in vacuum with plain `gmx mdrun` and with `modejump gromacs`, each for the same wall time.

    python examples/gromacs-ala2/run.py --seconds 60 --output target/gromacs-demo      # or simply: make gromacs-demo

Each command is printed as it is run, and can be run by hand. Writes summary.json, and series.json for `modejump plot`.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "models/ala2"))
from reference import KT, delta_f, in_left_basin, transitions, weighted_mean  # noqa: E402

MODEL = ROOT / "models/ala2/model-vacuum.safetensors"


def run(*command, cwd, stdin=""):
    """Runs a GROMACS or modejump command and returns its output, which is shown only if the command fails."""
    command = [str(word) for word in command]
    print("$", shlex.join(command), flush=True)
    done = subprocess.run(command, cwd=cwd, input=stdin, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{command[0]} failed")
    return done.stdout


def prepare(folder, options=(), mdp=HERE / "md.mdp"):
    """Makes topol.tpr with the usual tools. `options` are further .mdp settings, which override those of the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = dict(line.split(";")[0].split("=") for line in mdp.read_text().splitlines() if "=" in line.split(";")[0])
    lines = {name.strip(): value.strip() for name, value in lines.items()} | dict(options)
    (folder / "md.mdp").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
    pdb2gmx = ["pdb2gmx", "-f", ROOT / "models/ala2/topology.pdb", "-ff", "amber99sb-ildn", "-water", "none"]
    run("gmx", *pdb2gmx, "-o", "start.gro", "-p", "topol.top", cwd=folder)
    run("gmx", "editconf", "-f", "start.gro", "-o", "conf.gro", "-box", 6, 6, 6, "-c", cwd=folder)
    grompp(folder)


def grompp(folder):
    run("gmx", "grompp", "-f", "md.mdp", "-c", "conf.gro", "-p", "topol.top", "-o", "topol.tpr", "-maxwarn", 1, cwd=folder)


def columns(path):
    """Reads the numbers of an .xvg file."""
    lines = (line for line in path.read_text().splitlines() if not line.startswith(("#", "@")))
    return np.array([[float(word) for word in line.split() if word[0] in "-.0123456789"] for line in lines])


def observe(folder, energies, trajectory):
    """Returns the time series of a run: u in kJ/mol, t in K, phi and psi in radians."""
    run("gmx", "energy", "-f", energies, "-o", "energy.xvg", cwd=folder, stdin="Potential\nTemperature\n\n")
    run("gmx", "rama", "-s", "topol.tpr", "-f", trajectory, "-o", "rama.xvg", cwd=folder)
    energy, rama = columns(folder / "energy.xvg"), np.radians(columns(folder / "rama.xvg"))
    return {"u": energy[:, 1], "t": energy[:, 2], "phi": rama[:, 0], "psi": rama[:, 1]}


def plain(folder, seconds):
    run("gmx", "mdrun", "-nt", 1, "-maxh", seconds / 3600, "-nsteps", -1, "-deffnm", "plain", "-s", "topol.tpr", cwd=folder)
    series = observe(folder, "plain.edr", "plain.xtc")
    frames = len(series["phi"])  # time may run out between two frames; mdrun then writes the energies of its last step all the same
    return {name: values[:frames] for name, values in series.items()}


def jumping(folder, seconds, modejump, steps):
    shutil.rmtree(folder / "jumps", ignore_errors=True)
    command = [modejump, "gromacs", MODEL, "-s", "topol.tpr", "-d", "jumps", "--mdrun", "gmx mdrun -nt 1"]
    command += ["--steps", steps, "-n", 1_000_000_000, "--maxh", seconds / 3600, "--json"]
    summary = json.loads(run(*command, cwd=folder).splitlines()[-1])
    return observe(folder, "jumps/ener.edr", "jumps/traj.xtc") | {"summary": summary}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="wall time of each of the two runs")
    parser.add_argument("--steps", type=int, default=1000, help="steps between jumps")
    parser.add_argument("--modejump", type=pathlib.Path, default=ROOT / "target/release/modejump", help="path of the modejump program")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "target/gromacs-demo")
    options = parser.parse_args()
    folder = options.output.resolve()
    prepare(folder)
    md = plain(folder, options.seconds)
    jump = jumping(folder, options.seconds, options.modejump.resolve(), options.steps)

    value, error = delta_f(in_left_basin(jump["phi"]), np.ones(len(jump["phi"])))
    summary = {"delta_f_kT": value, "delta_f_stderr": error} | jump["summary"]
    print(f"\n{'':28}{'plain mdrun':>16}{'mdrun + jumps':>16}")
    row = lambda name, a, b: print(f"{name:28}{a:>16}{b:>16}")  # noqa: E731
    row("frames", len(md["phi"]), len(jump["phi"]))
    row("phi transitions", transitions(md["phi"]), transitions(jump["phi"]))
    for name, unit in (("u", "kJ/mol"), ("t", "K")):
        means = {key: weighted_mean(series[name], np.ones(len(series[name]))) for key, series in (("md", md), ("jump", jump))}
        row(f"<{name.upper()}> / {unit}", *(f"{mean:.2f}({error:.2f})" for mean, error in means.values()))
        for key, (mean, error) in means.items():
            summary |= {f"{name}_{key}_mean": mean, f"{name}_{key}_stderr": error}
    summary |= {"transitions_md": transitions(md["phi"]), "transitions_jump": transitions(jump["phi"])}
    print(f"\ndF(phi > 0)                 {value:.3f} +- {error:.3f} kT")
    print(f"cycles that jumped          {100 * summary['acceptance']:.1f} % of {summary['cycles']}")
    print(f"per cycle                   {summary['dynamics_s_per_cycle']:.3f} s for dynamics, {summary['jump_s_per_cycle']:.3f} s for the jump")
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    entry = lambda name, s: {  # noqa: E731
        "name": name, "phi": s["phi"].tolist(), "psi": s["psi"].tolist(), "reduced_potential": (s["u"] / (KT * 300)).tolist()
    }
    (folder / "series.json").write_text(json.dumps({"series": [entry("plain mdrun", md), entry("mdrun + jumps", jump)]}))


if __name__ == "__main__":
    main()
