"""The state right after one accepted move: velocities, virtual sites, constraints."""

import math

import numpy as np
import openmm
import pytest
import toy
from peroxide import OH, PEROXIDE, peroxide_system, start

import modejump

INTEGRATORS = {
    "LangevinMiddle": lambda dt: openmm.LangevinMiddleIntegrator(300, 1, dt),
    "Verlet": lambda dt: openmm.VerletIntegrator(dt),
    "NoseHoover": lambda dt: openmm.NoseHooverIntegrator(300, 1, dt),
}
#: What the integrator stores is v - OFFSET * dt F/m of the on-step velocity v.
OFFSET = {"LangevinMiddle": 0.5, "Verlet": 0.5, "NoseHoover": 0.0}


def forces(context):
    return context.getState(forces=True).getForces(asNumpy=True)._value.copy()


@pytest.mark.parametrize("kind", INTEGRATORS)
def test_velocities_are_maxwell_boltzmann_on_the_step(gaussian_model, kind):
    """Adding the offset gives velocities of the right variance that are not correlated with the force."""
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=4, temperature=300)
    system.addForce(jump)
    timestep = 0.1  # so long that a missing or doubled offset changes the variance by more than the test's error
    context = toy.make_context(system, INTEGRATORS[kind](timestep), x=[[0.0, 0.0, 0.0]])
    v, f = [], []
    for _ in range(2000):
        assert jump.attempt(context)
        f.append(forces(context)[0])
        v.append(toy.velocities(context)[0] + OFFSET[kind] * timestep * f[-1] / toy.MASS)
    v, f = np.ravel(v), np.ravel(f)
    n = len(v)
    assert abs(np.mean(v**2) * toy.MASS / toy.KT - 1) < 5 * math.sqrt(2 / n)
    assert abs(np.corrcoef(v, f)[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(v[:-3], v[3:])[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", INTEGRATORS)
def test_particles_that_stay_keep_their_on_step_velocity(gaussian_model, kind):
    """Their force changes with the jump, and with it what a leap-frog integrator has to store."""
    system = toy.well_system()
    system.addParticle(20.0)
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 1, 0.1, 50.0)
    system.addForce(spring)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4, temperature=300)
    system.addForce(jump)
    context = toy.make_context(system, INTEGRATORS[kind](0.01), x=[[0.0, 0.0, 0.0], [0.12, 0.0, 0.0]])

    def on_step():
        return toy.velocities(context)[1] + OFFSET[kind] * 0.01 * forces(context)[1] / 20.0

    moved = 0
    for _ in range(20):
        before, x, v = on_step(), toy.positions(context), toy.velocities(context)
        if jump.attempt(context):
            moved += 1
            assert not np.array_equal(x[0], toy.positions(context)[0])
            assert np.array_equal(x[1], toy.positions(context)[1])
            assert np.abs(on_step() - before).max() < 1e-12
            assert (OFFSET[kind] == 0) == np.array_equal(v[1], toy.velocities(context)[1])
    assert moved > 5


def test_virtual_sites_follow_in_the_test_and_after_it(gaussian_model):
    """All the energy sits on a site halfway to a heavy partner, so that log alpha = 0 only if the site has moved along."""
    system = openmm.System()
    for mass in (toy.MASS, 50.0, 0.0):
        system.addParticle(mass)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    well = openmm.CustomExternalForce("2*k*(x^2+y^2+z^2)")
    well.addGlobalParameter("k", toy.KT / toy.SIGMA**2)
    well.addParticle(2)
    system.addForce(well)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.01, 0, 0], [0, 0, 0], [0.005, 0, 0]])
    for _ in range(20):
        assert jump.attempt(context)
        assert abs(jump.statistics(context).last_log_acceptance) < 1e-5
        x = toy.positions(context)
        assert np.abs(x[2] - 0.5 * x[0]).max() < 1e-15 and np.any(x[0] != 0)


def test_velocities_obey_the_constraints_in_their_new_directions(rigid_model):
    system = peroxide_system(OH)
    jump = modejump.MonteCarloModeJump(rigid_model, 0, seed=8)
    system.addForce(jump)
    integrator = toy.langevin()
    integrator.setConstraintTolerance(1e-8)
    context = toy.make_context(system, integrator, x=start())
    accepted = 0
    for _ in range(40):
        accepted += jump.attempt(context)
        x, v = toy.positions(context), toy.velocities(context)
        for a, b in OH:
            along = np.dot(x[a] - x[b], v[a] - v[b]) / PEROXIDE.oh
            assert abs(along) < 1e-5
            assert abs(np.linalg.norm(x[a] - x[b]) / PEROXIDE.oh - 1) < 1e-6
    assert accepted > 5


def test_no_momentum_where_it_is_removed(peroxide_model):
    """With a CMMotionRemover the redrawn velocities have no momentum either, and three degrees of freedom less."""
    system = peroxide_system()
    system.addForce(openmm.CMMotionRemover())
    jump = modejump.MonteCarloModeJump(peroxide_model, 0, seed=8)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    masses = np.array(PEROXIDE.masses)
    kinetic = []
    while len(kinetic) < 300:
        if jump.attempt(context):
            v = toy.velocities(context)
            assert np.abs(masses @ v).max() < 1e-10
            v = v + 0.0005 * forces(context) / masses[:, None]  # on the step, of 1 fs
            kinetic.append(0.5 * (masses @ v**2).sum() / toy.KT)
    assert abs(np.mean(kinetic) - 4.5) < 5 * math.sqrt(4.5 / len(kinetic))
