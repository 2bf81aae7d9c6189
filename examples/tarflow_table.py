"""What a TarFlow of alanine dipeptide comes to: by its samples as they are, by their weights, and by annealed Langevin steps.

    make train-peptides            (its last step; or: .venv/bin/python examples/tarflow_table.py --output target/peptides)

Energies and torsions are compared with a run of molecular dynamics with jumps of the coupling flow that the repository ships, which
crosses between the basins often enough. Prints a table in Markdown and writes it with summary.json.
"""

import argparse
import json
import subprocess
from pathlib import Path

ALA2 = Path("models/ala2")
MOLECULE = ["--topology", str(ALA2 / "topology.pdb"), "--system", str(ALA2 / "system.xml")]


def modejump(binary, *arguments):
    """The summary that a subcommand prints as JSON."""
    command = [binary, *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def reference(binary, output):
    """10,000 frames of the ensemble, with another seed than the frames of the training."""
    path = output / "ala2-test.safetensors"
    if not path.exists():
        jumps = ["--model", ALA2 / "model.safetensors", "-n", 300000, "--record", 30, "--seed", 21]
        modejump(binary, "md", *MOLECULE, *jumps, "-o", path)
    return path


def distances(binary, a, b, *options):
    summary = modejump(binary, "compare", a, b, *MOLECULE, "--temperature", 300, "--lag", 0, *options)
    return summary["between"], summary["b"], summary["halves_of_a"]


def rows(binary, model, test, n, particles, output):
    """Of one model: name of the estimate, ESS, acceptance of a fresh proposal, energy W2, torsion W2."""
    samples, annealed = (output / f"{model.stem}.{what}.safetensors" for what in ("samples", "particles"))
    modejump(binary, "sample", model, "-n", n, "-o", samples)
    weights = modejump(binary, "reweight", model, "--system", ALA2 / "system.xml", "-n", n)
    plain, _, halves = distances(binary, test, samples)
    weighted, about, _ = distances(binary, test, samples, "--reweight")
    path = modejump(binary, "smc", model, "--system", ALA2 / "system.xml", "-n", particles, "-o", annealed)
    carried, _, _ = distances(binary, test, annealed)
    return [
        {"what": f"{n} samples as they are", **plain},
        {"what": f"{n} samples, SNIS", "ess": about["ess"], "acceptance": weights["acceptance"], **weighted},
        {
            "what": f"{particles} particles, SMC of {path['stages']} temperatures",
            **{key: path[key] for key in ("ess", "resamplings", "log_z")},
            **carried,
        },
    ], halves


def line(*cells):
    def text(cell):
        return "–" if cell is None else cell if isinstance(cell, str) else f"{cell:.3g}"

    return "| " + " | ".join(map(text, cells)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="*", default=[Path("target/peptides/tarflow.safetensors")])
    parser.add_argument("--binary", default="target/release/modejump")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("target/peptides"))
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    test = reference(arguments.binary, output)
    table = [line("model", "", "ESS", "accepted", "E-W2, kT", "T-W2, rad"), "|---" * 6 + "|"]
    summary = {}
    for model in arguments.models:
        found, halves = rows(arguments.binary, model, test, arguments.samples, arguments.particles, output)
        summary[model.stem] = found
        for row in found:
            cells = (row.get(key) for key in ("ess", "acceptance", "energy_w2", "torsion_w2"))
            table.append(line(model.stem, row["what"], *cells))
    table.append(line("", "two halves of the reference", None, None, halves["energy_w2"], halves["torsion_w2"]))
    text = "\n".join(table)
    (output / "table.md").write_text(text + "\n")
    (output / "summary.json").write_text(json.dumps(summary | {"halves": halves}, indent=1))
    print(text)


if __name__ == "__main__":
    main()
