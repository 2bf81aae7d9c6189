"""What an attempt of MonteCarloModeJump costs on one of OpenMM's platforms, and what of that are energies.

    .venv/bin/python benches/openmm_attempt.py --platform CUDA --precision mixed
    MODEJUMP_DEVICE=cuda .venv/bin/python benches/openmm_attempt.py --platform CUDA      # the generator on a card, too

Alanine dipeptide in implicit solvent, and in boxes of water as large as `--padding` (nm) says. Microseconds, medians of blocks:

    step      of dynamics
    attempt   what a step takes longer with an attempt at its start; proposals are drawn 64 at a time, with --draw-ahead by another thread
    energy    OpenMM's potential energy alone, where positions stay; an attempt needs two, and lists of neighbours for both
    besides   attempt - 2 energy; of an accepted one the force for new velocities, too
    log q     log-density of the present configuration, of which an attempt needs one; it is part of `besides`
    accepted  of all attempts; in a box of water hardly any
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
    """System, positions (nm) and model."""
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    return system, pdb.positions.value_in_unit(unit.nanometer), ALA2 / "model.safetensors"


def solvated(padding):
    """The same in TIP3P water."""
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
    """Microseconds of call(), the median of blocks that take so many seconds together; the first one warms up."""
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
    """Microseconds of a step of 0.5 fs, and the acceptance."""
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
    """Microseconds of a potential energy. Of a Brownian integrator OpenMM asks no kinetic energy."""
    context = context_of(system, openmm.BrownianIntegrator(TEMPERATURE, 1.0, 0.001), options, x)
    return median_time(lambda: context.getState(energy=True), options.seconds)


def density_time(path, x, options):
    model = modejump.Model(path)
    x = np.asarray(x)[None, :22]
    return median_time(lambda: model.log_density(x), options.seconds)


def relaxed(system, x, options):
    """After a few steps of dynamics, so that attempts start where dynamics goes."""
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 1.0, 0.001)
    context = context_of(system, integrator, options, x)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    integrator.step(200)
    return context.getState(positions=True).getPositions(asNumpy=True)._value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="Reference")
    parser.add_argument("--precision", help="single, mixed or double, where the platform has a choice")
    parser.add_argument("--draw-ahead", action="store_true")
    parser.add_argument("--padding", type=float, nargs="*", default=[0.75, 2.0], help="of boxes of water, nm; none for implicit solvent only")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of hardly any acceptance in water
    drawn = "drawn ahead" if options.draw_ahead else "drawn in between"
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
