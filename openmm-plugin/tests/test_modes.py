"""Jumps between the basins of alanine dipeptide: a generator for each, in one model file, as the model of the Force."""

from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

from modejump import MonteCarloModeJump
from modejump.reporter import torsion

ALA2 = Path(__file__).resolve().parents[2] / "models" / "ala2"
PHI = [4, 6, 8, 14]


def test_jumps_between_basins_reach_both_and_are_counted():
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    jump = MonteCarloModeJump(str(ALA2 / "modes.safetensors"), frequency=20, seed=4)
    system.addForce(jump)
    integrator = openmm.LangevinMiddleIntegrator(300, 1, 0.001)
    integrator.setRandomNumberSeed(2)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(pdb.positions)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(300, 2)
    positive = []
    for _ in range(300):
        integrator.step(60)
        x = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        positive.append(0 < torsion(x, PHI) < 2.2)
    statistics = jump.statistics(context)
    # from step 20 on, each at the start of its step
    assert statistics.attempts == 899 and statistics.likelihood == "exact"
    assert np.sum(np.diff(positive)) > 4 and 0 < np.mean(positive) < 0.2
    # to and fro equally often, each from its own basin: of a basin of two per cent, a few per cent of the attempts
    assert 0.01 < statistics.acceptance < 0.2
