"""Learned replica exchange of alanine dipeptide in vacuum between 1000 K and 300 K, from training to a figure, compared
with a classical temperature ladder of as many steps (Invernizzi, Krämer, Clementi and Noé, J. Phys. Chem. Lett. 13,
11643 (2022)).

    make build plugin
    python examples/learned_exchange.py --output target/exchange

The frames at 1000 K and the models of the map are kept in the output folder and reused. Writes summary.json and
exchange.png.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import openmm
from openmm import app, unit

import modejump

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALA2 = ROOT / "models/ala2"
sys.path.insert(0, str(ALA2))
from reference import PHI, delta_f, in_left_basin, torsion, transitions  # noqa: E402

COLD, HOT = 300.0, 1000.0


def tool(*arguments):
    """Runs modejump and returns its standard output."""
    command = [str(ROOT / "target/release/modejump"), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def map_between(options):
    """Bijection from the configurations at 300 K to those at 1000 K: the inverse of the trained map."""
    molecule = ["--topology", ALA2 / "topology.pdb", "--system", ALA2 / "system-vacuum.xml"]
    names = ("frames", "at-1000K", "at-300K")
    frames, design, far = (options.output / f"{name}.safetensors" for name in names)
    if not frames.exists():
        dynamics = ["--temperature", HOT, "-n", options.frames * 100, "--record", 100]
        tool("md", *molecule, *dynamics, "-o", frames)
    if not design.exists():
        untrained = ["--temperature", HOT, "--config", ALA2 / "exchange-design.json"]
        tool("train", *molecule, "--frames", frames, *untrained, "-o", design)
    if not far.exists():
        training = ["--temperature", COLD, "--map-from", design, "--config", ALA2 / "exchange-train.json"]
        tool("train", *molecule, "--frames", frames, *training, "-o", far)
    return modejump.Bijection(modejump.Model(far), modejump.Model(design))


def simulation(seed):
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system-vacuum.xml").read_text())
    integrator = openmm.LangevinMiddleIntegrator(COLD, 1.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    result = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    result.context.setPositions(pdb.positions)
    result.minimizeEnergy()
    result.context.setVelocitiesToTemperature(COLD, seed)
    return result


def run(sampler, iterations):
    """Returns phi and the potential energy (kJ/mol) of the coldest state at every iteration, and the wall time in s."""
    frames, energies = [], []

    def record(sampler):
        replica = sampler.replicaStateIndex.index(0)
        x = sampler.replicaConformation[replica].getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        frames.append(x)
        energies.append(sampler.replicaStateEnergy[replica][0].value_in_unit(unit.kilojoule_per_mole))

    for replica in range(len(sampler.states)):
        sampler.simulateReplica(replica, 5000)
    sampler.reporters.append(record)
    start = time.perf_counter()
    sampler.simulate(iterations)
    return torsion(np.array(frames), PHI), np.array(energies), time.perf_counter() - start


def learned(options):
    states = [{"temperature": COLD}, {"temperature": HOT}]
    sim = simulation(options.seed)
    maps = [map_between(options)]
    sampler = modejump.LearnedReplicaExchangeSampler(states, sim, options.steps, maps, seed=options.seed)
    phi, energies, wall = run(sampler, options.iterations)
    statistics = sampler.statistics(0)
    return phi, {**numbers(phi, energies, wall), "acceptance": statistics.acceptance}


def ladder(options):
    """Runs the classical temperature ladder for the same total number of steps."""
    temperatures = np.geomspace(COLD, HOT, options.ladder)
    sim = simulation(options.seed + 1)
    sampler = app.ReplicaExchangeSampler([{"temperature": t} for t in temperatures], sim, options.steps)
    phi, energies, wall = run(sampler, 2 * options.iterations // options.ladder)
    return phi, numbers(phi, energies, wall)


def numbers(phi, energies, wall):
    value, error = delta_f(in_left_basin(phi), np.ones(len(phi)))
    blocks = [block.mean() for block in np.array_split(energies, 20)]
    return {
        "delta_f_kT": value,
        "delta_f_stderr": error,
        "u_mean": float(energies.mean()),
        "u_stderr": float(np.std(blocks, ddof=1) / np.sqrt(20)),
        "transitions": transitions(phi),
        "samples": len(phi),
        "wall_s": wall,
    }


def draw(path, series, reference):
    """Plots the distribution of phi, and the free energy of phi > 0 as it converges."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    edges = np.linspace(-np.pi, np.pi, 61)
    for name, phi in series.items():
        density = np.histogram(phi, edges, density=True)[0]
        left.plot((edges[1:] + edges[:-1]) / 2, np.where(density > 0, density, np.nan), label=name)
        inside = np.cumsum(in_left_basin(phi)) / np.arange(1, len(phi) + 1)
        with np.errstate(divide="ignore"):
            right.plot(np.linspace(0, 1, len(phi)), -np.log(inside / (1 - inside)), label=name)
    left.set(xlabel="φ / rad", ylabel="density", yscale="log")
    right.axhline(reference[0], color="black", lw=0.8, label="weights of a generator")
    right.axhspan(reference[0] - reference[1], reference[0] + reference[1], color="black", alpha=0.15)
    right.set(xlabel="share of the steps", ylabel="ΔF(0 < φ < 2.2) / kT", ylim=(reference[0] - 1.5, reference[0] + 2))
    left.legend()
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "target/exchange")
    parser.add_argument("--frames", type=int, default=50_000, help="frames at 1000 K to train on")
    parser.add_argument("--iterations", type=int, default=20_000, help="exchange attempts")
    parser.add_argument("--steps", type=int, default=100, help="steps of 1 fs between exchange attempts")
    parser.add_argument("--ladder", type=int, default=6, help="number of temperatures in the classical ladder")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    generator = [ALA2 / "model-vacuum.safetensors", "--system", ALA2 / "system-vacuum.xml"]
    found = json.loads(tool("reweight", *generator, "-n", 40_000, "--json"))
    learned_phi, learned_numbers = learned(options)
    ladder_phi, ladder_numbers = ladder(options)
    summary = {"learned": learned_numbers, "ladder": ladder_numbers, "reference": found}
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    reference = (found["delta_f_kT"], found["delta_f_stderr"])
    draw(options.output / "exchange.png", {"learned exchange": learned_phi, "ladder": ladder_phi}, reference)


if __name__ == "__main__":
    main()
