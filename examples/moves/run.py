"""Runs every move on one molecule: how often it crosses between the basins, its cost, and a check of the basin populations.

    make moves            (or: .venv/bin/python examples/moves/run.py --output target/moves)

Alanine dipeptide in implicit solvent runs for the same number of steps without jumps and with each move. Prints a table in Markdown and
writes it to table.md, and summary.json, and series.json for `modejump plot`, which draws the torsions of every run.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
ALA2 = ROOT / "models/ala2"
PHI, PSI = (4, 6, 8, 14), (6, 8, 14, 16)
BASIN = (0.0, 2.2)  # range of φ, rad
BLOCKS = 20
MODEL, MODES = ["--model", str(ALA2 / "model.safetensors")], ["--model", str(ALA2 / "modes.safetensors")]
MOVES = {
    "none": [],
    "independence": MODEL,
    "i-SIR of 4": [*MODEL, "--proposals", "4"],
    "annealed, 10 stages": [*MODEL, "--anneal", "10"],
    "latent walk": [*MODEL, "--latent-walk", "0.1"],
    "mode jump": MODES,
}


def torsion(x, atoms):
    """Returns the torsion angles [n] in radians of x[n, atoms, 3] about the bond between the two middle atoms."""
    i, j, k, l = (x[:, atom] for atom in atoms)
    axis = (k - j) / np.linalg.norm(k - j, axis=1, keepdims=True)
    v, w = ((r - np.sum(r * axis, axis=1, keepdims=True) * axis) for r in (i - j, l - k))
    return np.arctan2(np.sum(np.cross(axis, v) * w, axis=1), np.sum(v * w, axis=1))


def delta_f(inside):
    """Returns −ln P(basin)/P(rest) in kT and its standard error from block means; None if only one side was visited."""
    p = inside.mean()
    if not 0 < p < 1:
        return None, None
    blocks = [block.mean() for block in np.array_split(inside, BLOCKS)]
    error = np.std(blocks, ddof=1) / np.sqrt(BLOCKS)
    return float(-np.log(p / (1 - p))), float(error / (p * (1 - p)))


def run(binary, name, options, steps, record, output):
    frames = output / f"{name.split(',')[0].replace(' ', '-')}.npy"
    system = ["--topology", str(ALA2 / "topology.pdb"), "--system", str(ALA2 / "system.xml")]
    command = [binary, "md", *system, *options, "-n", str(steps), "--record", str(record), "-o", str(frames), "--json"]
    summary = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    x = np.load(frames)
    x = x.reshape(len(x), -1, 3)
    phi, psi = torsion(x, PHI), torsion(x, PSI)
    inside = (phi > BASIN[0]) & (phi < BASIN[1])
    value, error = delta_f(inside)
    crossings = int(np.sum(inside[1:] != inside[:-1]))
    summary |= {"move": name, "crossings": crossings, "delta_f_kT": value, "delta_f_stderr": error}
    return summary, {"name": name, "phi": phi.tolist(), "psi": psi.tolist()}


def row(summary, plain):
    attempts = summary.get("attempts", 0)
    cost = 1e3 * (summary["wall_s"] - plain["wall_s"]) / attempts if attempts else None
    pair = lambda value, error, digits: "–" if value is None else f"{value:.{digits}f} ± {error:.{digits}f}"
    return [
        summary["move"],
        f"{100 * summary['acceptance']:.1f} %" if attempts else "–",
        "–" if cost is None else f"{cost:.2f}",
        str(summary["crossings"]),
        f"{summary['crossings'] / summary['wall_s']:.2f}",
        pair(summary["delta_f_kT"], summary["delta_f_stderr"], 2),
        pair(summary["u_mean"], summary["u_stderr"], 2),
        pair(summary["t_mean"], summary["t_stderr"], 1),
    ]


HEADER = ["move", "accepted", "ms per attempt", "crossings", "crossings per second", "ΔF/kT", "⟨U⟩ kJ/mol", "⟨T⟩ K"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/modejump"))
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--record", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("target/moves"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    runs = [
        run(arguments.binary, name, options, arguments.steps, arguments.record, arguments.output)
        for name, options in MOVES.items()
    ]
    summaries, series = [summary for summary, _ in runs], [series for _, series in runs]
    rows = [HEADER, ["---"] * len(HEADER)] + [row(summary, summaries[0]) for summary in summaries]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    print(table)
    (arguments.output / "table.md").write_text(table + "\n")
    (arguments.output / "summary.json").write_text(json.dumps(summaries, indent=1) + "\n")
    (arguments.output / "series.json").write_text(json.dumps({"series": series}) + "\n")


if __name__ == "__main__":
    main()
