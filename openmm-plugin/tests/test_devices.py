"""Atoms that a platform keeps in an order and in periodic images of its own: GPUs do; on others these tests are about nothing special."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openmm
import pytest
import toy
from peroxide import PEROXIDE, build, start, write_peroxide_model

import modejump

#: Of argon atoms along an edge of the box, and their distance, nm.
EDGE, DISTANCE = 7, 0.4
BOX = EDGE * DISTANCE
#: Corners of the two molecules, many boxes away and across its faces; in the order of the device the second comes first.
PLACES = ([-2 * BOX + 0.05, 5 * BOX - 0.05, 0.5 * BOX], [3 * BOX - 0.05, 0.1, -7 * BOX])


def box_system():
    """Two molecules of hydrogen peroxide that nothing but their own bonds, angles and torsions acts on, among argon with a cutoff."""
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(BOX * np.eye(3)))
    nonbonded = openmm.NonbondedForce()
    nonbonded.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    nonbonded.setCutoffDistance(0.9)
    for _ in range(2):
        for mass in PEROXIDE.masses:
            system.addParticle(mass)
            nonbonded.addParticle(0, 0.3, 0)
    for _ in range(EDGE**3):
        system.addParticle(39.95)
        nonbonded.addParticle(0, 0.34, 1.0)
    system.addForce(nonbonded)
    bonds, angles, torsion = build(0, 4, system)
    # the same Forces act on both, or OpenMM would not exchange them
    for i in range(bonds.getNumBonds()):
        a, b, *parameters = bonds.getBondParameters(i)
        bonds.addBond(a + 4, b + 4, *parameters)
    for i in range(angles.getNumAngles()):
        a, b, c, *parameters = angles.getAngleParameters(i)
        angles.addAngle(a + 4, b + 4, c + 4, *parameters)
    for i in range(torsion.getNumTorsions()):
        a, b, c, d, *parameters = torsion.getTorsionParameters(i)
        torsion.addTorsion(a + 4, b + 4, c + 4, d + 4, *parameters)
    return system


def box_positions():
    """Argon in a random order, so that a platform that wants neighbours next to each other has something to do."""
    sites = np.stack(np.meshgrid(*3 * [np.arange(EDGE)], indexing="ij"), axis=-1).reshape(-1, 3) * DISTANCE
    argon = np.random.default_rng(5).permutation(sites) + BOX * np.arange(3)
    return np.concatenate([start() + PLACES[0], start() + PLACES[1], argon])


def bonded_energy(context, x):
    """kJ/mol, of all that acts within the molecules, by the Reference platform."""
    system = openmm.XmlSerializer.clone(context.getSystem())
    keep = (openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce)
    for i in reversed(range(system.getNumForces())):
        if not isinstance(system.getForce(i), keep):
            system.removeForce(i)
    reference = openmm.Context(system, openmm.VerletIntegrator(0.001), *toy.platform("Reference"))
    reference.setPositions(x)
    return toy.potential(reference)


#: Positions go through the host of older versions.
THROUGH_HOST = toy.VERSION < (8, 4)


def assert_equal(name, a, b):
    """To the last bit, but where positions of mixed precision go through the host: their sum with a vector of the box is rounded there."""
    rounded = THROUGH_HOST and name.endswith(":mixed")
    assert np.array_equal(a, b) or rounded and np.abs(a - b).max() < 1e-13


def box_context(model, name, particles=(4, 5, 6, 7), integrator=None):
    system = box_system()
    system.addForce(openmm.CMMotionRemover())
    jump = modejump.MonteCarloModeJump(model, 0, particles=particles, seed=9)
    system.addForce(jump)
    context = toy.make_context(system, integrator or toy.langevin(0.001), name, box_positions())
    # OpenMM reorders atoms when positions are set, and every 250 steps
    context.getIntegrator().step(260)
    return jump, context


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize("particles", [(0, 1, 2, 3), (7, 6, 5, 4)])
def test_an_accepted_jump_moves_its_own_atoms_only(peroxide_model, name, particles):
    jump, context = box_context(peroxide_model, name, particles)
    particles = list(particles)
    others = [i for i in range(context.getSystem().getNumParticles()) if i not in particles]
    masses = np.array([context.getSystem().getParticleMass(i)._value for i in range(context.getSystem().getNumParticles())])
    accepted = 0
    for _ in range(60):
        x, v = toy.positions(context), toy.velocities(context)
        if not jump.attempt(context):
            assert_equal(name, x, toy.positions(context))
            assert np.array_equal(v, toy.velocities(context))
            continue
        accepted += 1
        y = toy.positions(context)
        # to the last bit, unless positions go through the host in single precision
        assert np.abs(y[others] - x[others]).max() < 1e-5 and np.all(np.any(y[particles] != x[particles], axis=1)[1:])
        assert np.linalg.norm(y[particles].mean(axis=0) - x[particles].mean(axis=0)) < 0.15
        assert bonded_energy(context, y) < 100
        assert np.abs(masses @ (toy.velocities(context) - v)).max() < 1e-6 * len(masses)
        context.getIntegrator().step(50)
    assert accepted > 1


@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_rejections_among_reordered_atoms_restore_every_bit(tmp_path, name):
    """Attempts with dynamics between them, which goes on as it would have."""
    model = write_peroxide_model(tmp_path / "hopeless.safetensors", stretch=0.04)
    jump, context = box_context(model, name)
    for _ in range(3):
        x, v, energy = toy.positions(context), toy.velocities(context), toy.potential(context)
        for _ in range(20):
            assert not jump.attempt(context)
        assert_equal(name, x, toy.positions(context))
        assert np.array_equal(v, toy.velocities(context))
        # neighbours are listed anew, and sums of single precision depend on their order
        assert abs(toy.potential(context) - energy) < (3e-6 if THROUGH_HOST else 1e-6) * abs(energy) + 1e-9
        context.getIntegrator().step(130)
    assert jump.statistics(context).rejected > 45


def nose_hoover():
    return openmm.NoseHooverIntegrator(300, 1, 0.0005)


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize("make_integrator", [nose_hoover, toy.leapfrog])
def test_integrators_that_keep_forces_are_told_of_an_attempt(peroxide_model, name, make_integrator):
    """After an explicit attempt, accepted or not, a step is that from the same state set by hand."""

    def context_of(frequency=0):
        system = openmm.System()
        for mass in PEROXIDE.masses:
            system.addParticle(mass)
        build(0, 4, system)
        jump = modejump.MonteCarloModeJump(peroxide_model, frequency, seed=9)
        system.addForce(jump)
        context = toy.make_context(system, make_integrator(), name, start(), v=np.zeros((4, 3)))
        context.getIntegrator().step(3)
        return jump, context

    jump, context = context_of()
    _, other = context_of()
    seen = set()
    for _ in range(20):
        seen.add(jump.attempt(context))
        other.setPositions(toy.positions(context))
        other.setVelocities(toy.velocities(context))
        context.getIntegrator().step(1)
        other.getIntegrator().step(1)
        assert np.abs(toy.positions(context) - toy.positions(other)).max() < 1e-6
        assert np.abs(toy.velocities(context) - toy.velocities(other)).max() < 1e-3
    assert seen == {True, False}


def run_with_generator_on(device, code, *arguments):
    """What a process of its own prints."""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "MODEJUMP_DEVICE": device}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout


ON_A_CARD = """
import os, shutil, sys
import numpy as np, openmm, toy, modejump
from openmm import app
from test_ala2 import ALA2

pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
model = shutil.copy(ALA2 / "model.safetensors", sys.argv[1])
# one Context after the other: what a generator has in one must be gone before it is
for draw_ahead in (False, True):
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    jump = modejump.MonteCarloModeJump(model, 2, seed=21, draw_ahead=draw_ahead)
    system.addForce(jump)
    context = toy.make_context(system, toy.leapfrog(), x=pdb.positions.value_in_unit(openmm.unit.nanometer))
    context.getIntegrator().step(200)
    statistics = jump.statistics(context)
    assert statistics.attempts == 99 and statistics.accepted > 10, statistics
    assert np.isfinite(toy.positions(context)).all()
    if draw_ahead:
        os.unlink(model)  # it was read
        context.reinitialize(True)
        context.getIntegrator().step(10)
        assert jump.statistics(context).attempts == 5
    del context
"""


#: Launches, copies to the card, to the host and on the card (in mixed precision, where a position is two numbers), and waits of an attempt beside
#: two energies, by device of the generator: of one that is rejected, and of one that is accepted, with an evaluation of forces (8 launches) for
#: the new velocities.
ASKED = {
    "cpu": {0: [2, 1, 1, 4, 2], 1: [14, 3, 3, 8, 6]},
    "cuda": {0: [4, 3, 4, 4, 4], 1: [16, 5, 6, 8, 8]},
}

WHAT_AN_ATTEMPT_ASKS = """
import ctypes, numpy as np, openmm, toy, modejump
from openmm import app
from test_ala2 import ALA2

driver = ctypes.CDLL("libcuda.so.1")

def counts():
    numbers = (ctypes.c_uint64 * 5)()
    driver.software_card_counts(numbers)
    return np.array(numbers[:])

pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
jump = modejump.MonteCarloModeJump(ALA2 / "model.safetensors", 0, seed=21)
system.addForce(jump)
context = toy.make_context(system, toy.langevin(), x=pdb.positions.value_in_unit(openmm.unit.nanometer))
context.getState(energy=True)
counts()
toy.potential(context)
# a State also has the kinetic energy: a launch, a copy, a wait
energy = counts() - np.array([1, 0, 1, 0, 1])
seen = {}
for _ in range(20):
    context.getIntegrator().step(1)
    counts()
    accepted = jump.attempt(context)
    asked = counts() - 2 * energy
    seen.setdefault(accepted, []).append(asked)
for accepted, asked in sorted(seen.items()):
    print(int(accepted), *np.min(asked, axis=0))
"""


@pytest.mark.skipif("SOFTWARE_CARD_NVRTC" not in os.environ, reason="needs a card that counts: make test-cuda")
@pytest.mark.skipif(THROUGH_HOST, reason="positions go through the host")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_an_attempt_asks_of_the_card_beside_two_energies(device):
    """Launches, copies to the card, from it and on it, and waits, which take some microseconds each (README, positions on the device)."""
    said = run_with_generator_on(device, WHAT_AN_ATTEMPT_ASKS)
    asked = dict((int(line.split()[0]), [int(word) for word in line.split()[1:]]) for line in said.splitlines())
    if "mixed" not in toy.PLATFORMS[0]:
        for counts in asked.values():
            counts[3] *= 2
    assert asked == ASKED[device]


@pytest.mark.skipif(not toy.PLATFORMS[0].startswith("CUDA"), reason="needs a card: MODEJUMP_TEST_PLATFORMS=CUDA:mixed")
def test_a_generator_on_the_card_leaves_the_context_of_openmm_current(tmp_path):
    """A CustomIntegrator asks for the attempt while OpenMM's own context of the driver is current, and goes on in it."""
    run_with_generator_on("cuda", ON_A_CARD, str(tmp_path))
