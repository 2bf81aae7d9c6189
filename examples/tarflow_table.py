"""Evaluates TarFlows of two peptides from their raw samples, with importance weights, and by annealed trajectories.

    make train-peptides     (its last step; for one molecule alone: .venv/bin/python examples/tarflow_table.py --ala2 --ala3 MODEL ...)

Energies and torsions are compared with a molecular-dynamics run with jumps of a coupling flow, which crosses between the basins often
enough. Prints a table in Markdown that includes published values for the same molecules, and writes it to table.md, and summary.json.
"""

import argparse
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

PEPTIDES = Path("target/peptides")


@dataclass(frozen=True)
class Molecule:
    name: str
    folder: Path
    #: Coupling flow whose jumps generate the reference.
    jumps: Path
    #: Values quoted in the FALCON paper: name, ESS, energy W2 in kT, torsion W2 in rad.
    published: tuple

    @property
    def files(self):
        return ["--topology", self.folder / "topology.pdb", "--system", self.folder / "system.xml"]


ALA2 = Molecule(
    "Ace-A-Nme",
    Path("models/ala2"),
    Path("models/ala2/model.safetensors"),
    (("SBG, importance weights, published", 0.030, 0.873, 0.439), ("ECNF++, published", 0.275, 0.914, 0.189)),
)
#: The published values are for another force field (amber14, OBC1 with a cutoff) at 310 K; torsion W2 is not quoted.
ALA3 = Molecule(
    "AAA",
    Path("models/ala3"),
    PEPTIDES / "ala3-model.safetensors",
    (("SBG, importance weights, published", 0.052, 0.758, None), ("ECNF++, published", 0.003, 2.206, None)),
)


@dataclass(frozen=True)
class Tool:
    """The command-line tool and the folder of its output files."""

    binary: str
    output: Path

    def __call__(self, *arguments):
        """Runs a subcommand and returns the summary that it prints as JSON."""
        command = [self.binary, *map(str, arguments), "--json"]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def reference(tool, molecule):
    """Returns the file of 10,000 reference frames, generated with a different seed from the training frames."""
    path = tool.output / f"{molecule.folder.name}-test.safetensors"
    if not path.exists():
        tool("md", *molecule.files, "--model", molecule.jumps, "-n", 300000, "--record", 30, "--seed", 21, "-o", path)
    return path


def distances(tool, molecule, a, b, *options):
    summary = tool("compare", a, b, *molecule.files, "--temperature", 300, "--lag", 0, *options)
    return summary["between"], summary["b"], summary["halves_of_a"]


def rows(tool, molecule, model, test, n, particles):
    """Returns for one model the rows of name of the estimate, ESS, acceptance of a fresh proposal, energy W2 and torsion W2, and the
    distances between the halves of the reference."""
    system = molecule.folder / "system.xml"
    samples, annealed = (tool.output / f"{model.stem}.{what}.safetensors" for what in ("samples", "particles"))
    tool("sample", model, "-n", n, "-o", samples)
    weights = tool("reweight", model, "--system", system, "-n", n)
    plain, _, halves = distances(tool, molecule, test, samples)
    weighted, about, _ = distances(tool, molecule, test, samples, "--reweight")
    path = tool("smc", model, "--system", system, "-n", particles, "--moves", "hamiltonian", "--share", 0.97, "-o", annealed)
    carried, _, _ = distances(tool, molecule, test, annealed)
    return [
        {"what": f"{n} samples, unweighted", **plain},
        {"what": f"{n} samples, SNIS", "ess": about["ess"], "acceptance": weights["acceptance"], **weighted},
        {
            "what": f"{particles} particles ({path['effective_families']:.0f} independent), SMC of {path['stages']} temperatures",
            **{key: path[key] for key in ("ess", "resamplings", "log_z", "effective_families")},
            **carried,
        },
    ], halves


def line(*cells):
    def text(cell):
        return "–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3g}"

    return "| " + " | ".join(map(text, cells)) + " |"


def measure(tool, molecule, models, n, particles):
    """Returns the table lines for one molecule, and all the results."""
    test = reference(tool, molecule)
    lines, found = [], {}
    for model in models:
        found[model.stem], halves = rows(tool, molecule, model, test, n, particles)
        for row in found[model.stem]:
            cells = (row.get(key) for key in ("ess", "acceptance", "energy_w2", "torsion_w2"))
            lines.append(line(molecule.name, f"{model.stem}: {row['what']}", *cells))
    lines.append(line(molecule.name, "two halves of the reference", None, None, halves["energy_w2"], halves["torsion_w2"]))
    for name, ess, *distance in molecule.published:
        lines.append(line(molecule.name, name, ess, None, *distance))
    return lines, found | {"halves": halves}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ala2", type=Path, nargs="*", default=[PEPTIDES / "tarflow.safetensors"], metavar="MODEL")
    parser.add_argument("--ala3", type=Path, nargs="*", default=[PEPTIDES / "tarflow-ala3.safetensors"], metavar="MODEL")
    parser.add_argument("--binary", default="target/release/modejump")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--output", type=Path, default=PEPTIDES)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    tool = Tool(arguments.binary, arguments.output)
    table = [line("", "", "ESS", "accepted", "E-W2, kT", "T-W2, rad"), "|---" * 6 + "|"]
    summary = {}
    for molecule, models in ((ALA2, arguments.ala2), (ALA3, arguments.ala3)):
        if models:
            lines, summary[molecule.name] = measure(tool, molecule, models, arguments.samples, arguments.particles)
            table += lines
    text = "\n".join(table)
    (arguments.output / "table.md").write_text(text + "\n")
    (arguments.output / "summary.json").write_text(json.dumps(summary, indent=1))
    print(text)


if __name__ == "__main__":
    main()
