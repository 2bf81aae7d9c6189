"""Measures the cost of a MonteCarloModeJump attempt on an OpenMM platform, and the share of it that is energies.

    .venv/bin/python benches/openmm_attempt.py --platform CUDA --precision mixed
    MODEJUMP_DEVICE=cuda .venv/bin/python benches/openmm_attempt.py --platform CUDA      # the generator on a GPU, too

Alanine dipeptide in implicit solvent, and in boxes of water with the padding (nm) given by `--padding`. Microseconds, medians of blocks:

    step      a step of dynamics
    attempt   extra time of a step that starts with an attempt; proposals are drawn 64 at a time, by another thread with --draw-ahead
    energy    OpenMM's potential energy alone, at unchanged positions; an attempt needs two, and neighbour lists for both
    besides   attempt - 2 energy; for an accepted attempt it includes the forces for the new velocities
    log q     log-density of the current configuration; an attempt needs one, which is part of `besides`
    accepted  fraction of attempts accepted; almost none in a box of water
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

import modejump

ALA2 = Path(__file__).resolve().parents[1] / "models" / "ala2"
TEMPERATURE = 300
BLOCKS = 9


def implicit():
    """Returns System, positions (nm) and model for implicit solvent."""
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    return system, pdb.positions.value_in_unit(unit.nanometer), ALA2 / "model.safetensors"


def solvated(padding):
    """Returns System, positions (nm) and model for TIP3P water."""
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model="tip3p", padding=padding * unit.nanometer)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8 * unit.nanometer, constraints=app.HBonds, rigidWater=True
    )
    return system, modeller.positions.value_in_unit(unit.nanometer), ALA2 / "model-hbonds.safetensors"


def context_of(system, integrator, options, x):
    properties = {"Precision": options.precision} if options.precision else {}
    if options.platform == "CPU":
        properties["Threads"] = "1"
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName(options.platform), properties)
    context.setPositions(x)
    return context


def median_time(call, seconds):
    """Returns the microseconds of call(): the median over blocks that take `seconds` in all, after two warm-up calls."""
    start = time.perf_counter()
    call()
    call()
    n = max(1, int(seconds / BLOCKS / ((time.perf_counter() - start) / 2)))
    times = []
    for _ in range(BLOCKS):
        start = time.perf_counter()
        for _ in range(n):
            call()
        times.append((time.perf_counter() - start) / n)
    return 1e6 * float(np.median(times))


def step_time(system, x, options, model, frequency):
    """Returns the microseconds of a step of 0.5 fs, and the acceptance."""
    system = openmm.XmlSerializer.clone(system)
    jump = modejump.MonteCarloModeJump(model, frequency, particles=range(22), seed=1, draw_ahead=options.draw_ahead)
    system.addForce(jump)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.0005)
    integrator.setConstraintTolerance(1e-6)
    context = context_of(system, integrator, options, x)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)

    def steps():
        integrator.step(20)
        context.getState()  # waits for the device

    microseconds = median_time(steps, options.seconds) / 20
    statistics = jump.statistics(context)
    return microseconds, statistics.acceptance if frequency else 0.0


def energy_time(system, x, options):
    """Returns the microseconds of a potential energy. With a Brownian integrator OpenMM computes no kinetic energy."""
    context = context_of(system, openmm.BrownianIntegrator(TEMPERATURE, 1.0, 0.001), options, x)
    return median_time(lambda: context.getState(energy=True), options.seconds)


def density_time(path, x, options):
    model = modejump.Model(path)
    x = np.asarray(x)[None, :22]
    return median_time(lambda: model.log_density(x), options.seconds)


def relaxed(system, x, options):
    """Returns positions after a few steps of dynamics, so that attempts start from typical configurations."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.001)
    context = context_of(system, integrator, options, x)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(200)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="Reference")
    parser.add_argument("--precision", help="single, mixed or double, on platforms that offer a choice")
    parser.add_argument("--draw-ahead", action="store_true")
    parser.add_argument("--padding", type=float, nargs="*", default=[0.75, 2.0], help="paddings of the boxes of water, nm; empty for implicit solvent only")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds per measurement")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # hides warnings of low acceptance in water
    drawn = "proposals drawn ahead" if options.draw_ahead else "proposals drawn in between"
    print(f"{options.platform} {options.precision or ''}; generator on {os.environ.get('MODEJUMP_DEVICE', 'cpu')}, {drawn}; microseconds")
    print(" ".join(f"{name:>9}" for name in ("atoms", "step", "attempt", "energy", "besides", "log q", "accepted")))
    for build in [implicit, *(lambda padding=padding: solvated(padding) for padding in options.padding)]:
        system, x, model = build()
        x = relaxed(system, x, options)
        plain, _ = step_time(system, x, options, model, 0)
        jumping, accepted = step_time(system, x, options, model, 1)
        attempt, energy, density = jumping - plain, energy_time(system, x, options), density_time(model, x, options)
        numbers = " ".join(f"{value:9.1f}" for value in (plain, attempt, energy, attempt - 2 * energy, density))
        print(f"{system.getNumParticles():9d} {numbers} {accepted:9.3f}", flush=True)


if __name__ == "__main__":
    main()
