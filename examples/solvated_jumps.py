"""Jumps of a solute in explicit solvent: acceptance and cost with the solvent frozen, and with the solvent relaxing along a driven
path.

    make solvent          (or: .venv/bin/python examples/solvated_jumps.py chain ala2 --output target/solvent)

`chain` is a molecule of four atoms with a cis and a trans well in a dense bath of repulsive atoms and rigid dimers; `ala2` is alanine
dipeptide in TIP3P water, with a generator trained in implicit solvent. Molecular dynamics moves the system between attempts; its time
is not counted. Times are CPU times of one core, whatever the load of the machine. Prints a table in Markdown and writes summary.json.
"""

import argparse
import json
import math
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

import modejump

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "openmm-plugin" / "tests"))  # the tests define the chain and its bath
ALA2 = ROOT / "models/ala2"
PHI = (4, 6, 8, 14)
BASIN = (0.0, 2.2)  # range of φ, rad
TEMPERATURE = 300
#: Limits the total time: the dynamics between attempts is not counted in --seconds.
MOST_ATTEMPTS = 1000


def chain(output):
    """Returns the System, positions, model, moved particles, time step (ps), and a function of x that identifies the basin."""
    import bath

    model = bath.write_chain_model(output / "chain.safetensors")
    return bath.bath_system(), bath.start(), model, bath.SOLUTE, 0.004, lambda x: abs(bath.torsion_of(x)) > math.pi / 2


def ala2(output):
    from modejump.reporter import torsion

    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    field = app.ForceField("amber99sbildn.xml", "tip3p.xml")
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(field, model="tip3p", padding=0.75 * unit.nanometer)
    system = field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8 * unit.nanometer, constraints=app.HBonds, rigidWater=True
    )
    x = modeller.positions.value_in_unit(unit.nanometer)
    model = ALA2 / "model-hbonds.safetensors"
    return system, x, model, range(22), 0.002, lambda x: BASIN[0] < torsion(x, PHI) < BASIN[1]


SYSTEMS = {"chain": (chain, 50), "ala2": (ala2, 50)}


def context_of(system, x, timestep, platform):
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 2.0, timestep)
    integrator.setRandomNumberSeed(1)
    integrator.setConstraintTolerance(1e-6)
    properties = {"Threads": "1"} if platform.getName() == "CPU" else {}
    context = openmm.Context(system, integrator, platform, properties)
    context.setPositions(x)
    context.setVelocitiesToTemperature(TEMPERATURE, 1)
    return context


def measured(system, x, model, particles, timestep, basin, steps, seconds, between, platform):
    """Makes attempts for the given number of seconds, with `between` steps of dynamics before each."""
    system = openmm.XmlSerializer.clone(system)
    jump = modejump.MonteCarloModeJump(
        model, 0, particles=particles, seed=7, driven_steps=steps, relaxation_steps=20, relaxation_timestep=1.5 * timestep
    )
    system.addForce(jump)
    context = context_of(system, x, timestep, platform)
    spent, crossings, log_alpha = 0.0, 0, []
    while spent < seconds and len(log_alpha) < MOST_ATTEMPTS:
        context.getIntegrator().step(between)
        before = context.getState(positions=True).getPositions(asNumpy=True)._value
        start = time.process_time()
        accepted = jump.attempt(context)
        spent += time.process_time() - start
        log_alpha.append(jump.statistics(context).last_log_acceptance)
        if accepted:
            crossings += basin(before) != basin(context.getState(positions=True).getPositions(asNumpy=True)._value)
    s = jump.statistics(context)
    return {
        "steps": steps,
        "attempts": s.attempts,
        "accepted": s.accepted,
        "expected": s.expected_acceptance,
        "expected_error": s.expected_acceptance_error,
        "median_log_alpha": float(np.median(log_alpha)),
        "ms": 1e3 * spent / s.attempts,
        "accepted_per_s": s.expected_acceptance * s.attempts / spent,
        "crossings": crossings,
        "ps": max(steps - 1, 0) * 20 * 1.5 * timestep,
        "relaxations_accepted": s.relaxations_accepted / s.relaxations if s.relaxations else None,
    }


HEADER = ["system", "path", "attempts", "accepted", "median ln α", "expected", "ms per attempt", "accepted per second", "accepted crossings"]


def row(name, result):
    path = "frozen" if result["steps"] == 0 else f"{result['steps']} steps, {result['ps']:.2g} ps"
    expected = f"{result['expected']:.1e} ± {result['expected_error']:.1e}"
    numbers = [f"{result['ms']:.1f}", f"{result['accepted_per_s']:.2g}", str(result["crossings"])]
    attempts = [str(result["attempts"]), str(result["accepted"]), f"{result['median_log_alpha']:.3g}"]
    return [name, path, *attempts, expected, *numbers]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", nargs="+", choices=SYSTEMS)
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 10, 50, 200], help="numbers of steps of the driven path; 0: frozen solvent")
    parser.add_argument("--seconds", type=float, default=100, help="CPU time of the attempts for each number of steps, in seconds of one core")
    parser.add_argument("--platform", default="CPU")
    parser.add_argument("--output", type=Path, default=Path("target/solvent"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    platform = openmm.Platform.getPlatformByName(options.platform)
    warnings.simplefilter("ignore")  # low acceptance is expected and is what is measured here
    results = []
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for name in options.systems:
        build, between = SYSTEMS[name]
        system, x, *rest = build(options.output)
        context = context_of(system, x, 0.5 * rest[2], platform)
        if name == "ala2":
            openmm.LocalEnergyMinimizer.minimize(context, maxIterations=500)
            context.setVelocitiesToTemperature(TEMPERATURE, 2)
        context.getIntegrator().step(5000)
        x = context.getState(positions=True).getPositions(asNumpy=True)
        for steps in options.steps:
            result = measured(system, np.asarray(x._value), *rest, steps, options.seconds, between, platform)
            results.append({"system": name, "particles": system.getNumParticles(), **result})
            print("| " + " | ".join(row(name, result)) + " |", flush=True)
    (options.output / "summary.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
