"""Alanine dipeptide at 300 K with every move that MonteCarloModeJump can make with one generator, and with jumps between basins.

    python examples/openmm_moves.py [steps]

Prints for each move the fraction of attempts accepted, the time per attempt, how often phi crossed into or out of its rare basin, and
the mean potential energy, which must agree between the moves.
"""

import argparse
import pathlib
import sys
import time

import numpy as np
import openmm
from openmm import app, unit

from modejump import MonteCarloModeJump

ALA2 = pathlib.Path(__file__).resolve().parent.parent / "models/ala2"
sys.path.insert(0, str(ALA2))
from reference import PHI, torsion, transitions  # noqa: E402

RECORD = 20  # steps between recorded frames
BLOCKS = 10
GENERATOR, MODES = ALA2 / "model.safetensors", ALA2 / "modes.safetensors"
MOVES = {
    "independence": (GENERATOR, {}),
    "i-SIR of 4": (GENERATOR, {"proposals": 4}),
    "annealed": (GENERATOR, {"annealing_stages": 10, "annealing_step": 2 * unit.picometer**2}),
    "latent walk": (GENERATOR, {"latent_walk": [0.03, 0.1]}),
    "trajectories": (GENERATOR, {"latent_walk": [0.1], "leapfrog": 4}),
    "mode jumps": (MODES, {}),
}


def simulation_of(jump):
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    if jump is not None:
        system.addForce(jump)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    integrator.setRandomNumberSeed(1)
    simulation = app.Simulation(pdb.topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy()
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(1000)
    return simulation


def run(jump, steps):
    """Returns the Context, the wall time in seconds, and phi and the potential energy (kJ/mol) every RECORD steps."""
    simulation = simulation_of(jump)
    x, energy, start = [], [], time.perf_counter()
    for _ in range(steps // RECORD):
        simulation.step(RECORD)
        state = simulation.context.getState(positions=True, energy=True)
        x.append(state.getPositions(asNumpy=True)._value)
        energy.append(state.getPotentialEnergy()._value)
    seconds = time.perf_counter() - start
    return simulation.context, seconds, torsion(np.array(x), PHI), np.array(energy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=100_000, help="steps with each move (default: 100,000)")
    steps = parser.parse_args().steps
    print(f"{'':14}{'accepted':>9}{'ms':>7}{'crossings':>11}{'U / kJ/mol':>18}")
    _, plain, _, _ = run(None, steps)
    for name, (model, options) in MOVES.items():
        jump = MonteCarloModeJump(str(model), frequency=10, seed=1, **options)
        context, seconds, phi, energy = run(jump, steps)
        s = jump.statistics(context)
        ms = 1000 * (seconds - plain) / s.attempts
        error = np.std([block.mean() for block in np.array_split(energy, BLOCKS)], ddof=1) / BLOCKS**0.5
        print(f"{name:14}{s.acceptance:9.1%}{ms:7.2f}{transitions(phi):11}{energy.mean():10.2f} ± {error:.2f}", flush=True)


if __name__ == "__main__":
    main()
