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
    "VelocityVerlet": lambda dt: toy.leapfrog(dt),
}
#: What the integrator stores is v - OFFSET * dt F/m of the on-step velocity v.
OFFSET = {"LangevinMiddle": 0.5, "Verlet": 0.5, "NoseHoover": 0.5, "VelocityVerlet": 0.0}


def forces(context):
    return context.getState(forces=True).getForces(asNumpy=True)._value.copy()


@pytest.mark.parametrize("kind", INTEGRATORS)
def test_new_velocities_are_those_that_the_integrator_keeps(gaussian_model, kind):
    """Stored velocities have the variance kT/m, and those on the step are not correlated with the force."""
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=4, temperature=300)
    system.addForce(jump)
    timestep = 0.1  # so long (0.9 / frequency of the well) that a wrong offset changes much
    context = toy.make_context(system, INTEGRATORS[kind](timestep), x=[[0.0, 0.0, 0.0]])
    stored, v, f = [], [], []
    for _ in range(toy.rounds(8000)):
        assert jump.attempt(context)
        f.append(forces(context)[0])
        stored.append(toy.velocities(context)[0])
        v.append(stored[-1] + OFFSET[kind] * timestep * f[-1] / toy.MASS)
    stored, v, f = np.ravel(stored), np.ravel(v), np.ravel(f)
    n = len(v)
    # h^4 w^4 / 64, see MonteCarloModeJumpImpl::shiftVelocities
    remainder = (2 * OFFSET[kind] * timestep) ** 4 * (toy.KT / toy.SIGMA**2 / toy.MASS) ** 2 / 64
    assert abs(np.mean(stored**2) * toy.MASS / toy.KT - 1 - remainder) < 5 * math.sqrt(2 / n)
    assert abs(np.corrcoef(v, f)[0, 1]) < 5 / math.sqrt(n)
    assert abs(np.corrcoef(v[:-3], v[3:])[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", ["LangevinMiddle", "NoseHoover", "Compound"])
def test_jumps_do_not_heat_a_stiff_mode(gaussian_model, kind):
    """At 0.6 / frequency, a timestep of C-H bonds at 1 fs, hardly any friction, and jumps at every other step."""
    system = toy.well_system()
    system.addForce(modejump.MonteCarloModeJump(gaussian_model, 2, seed=4))
    timestep = 0.6 / math.sqrt(toy.KT / toy.SIGMA**2 / toy.MASS)
    if kind == "LangevinMiddle":
        integrator = toy.langevin(timestep, friction=0.01)
    else:
        integrator = openmm.NoseHooverIntegrator(300, 0.01, timestep)
    if kind == "Compound":
        compound = openmm.CompoundIntegrator()
        compound.addIntegrator(integrator)
        integrator = compound
    context = toy.make_context(system, integrator, x=[[0.0, 0.0, 0.0]])
    temperatures, squares = [], []
    for _ in range(40000):
        integrator.step(3)
        state = context.getState(energy=True, positions=True)
        temperatures.append(state.getKineticEnergy()._value * 2 / 3 / toy.KT * 300)
        squares.append((state.getPositions(asNumpy=True)._value ** 2).mean())
    error = toy.batch_error(temperatures)
    assert error < 3 and abs(np.mean(temperatures) - 300) < 5 * error, f"{np.mean(temperatures)} +- {error}"
    assert abs(np.mean(squares) / toy.SIGMA**2 - 1) < 5 * toy.batch_error(squares) / toy.SIGMA**2


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
            assert np.abs(on_step() - before).max() < toy.within(1e-12, 1e-6)
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
    context = toy.make_context(system, toy.langevin(), x=start(), v=np.zeros((4, 3)))
    masses = np.array(PEROXIDE.masses)
    kinetic = []
    rounds = toy.rounds(2000)
    for _ in range(rounds):
        if jump.attempt(context):
            v = toy.velocities(context)
            assert np.abs(masses @ v).max() < toy.within(1e-10, 1e-4)
            v = v + 0.0005 * forces(context) / masses[:, None]  # on the step, of 1 fs
            kinetic.append(0.5 * (masses @ v**2).sum() / toy.KT)
    assert len(kinetic) > rounds / 20
    assert abs(np.mean(kinetic) - 4.5) < 5 * math.sqrt(4.5 / len(kinetic))


@pytest.mark.parametrize("kind", INTEGRATORS)
def test_a_part_that_moves_keeps_its_momentum_where_that_of_the_whole_is_removed(peroxide_model, kind):
    """Velocities are drawn given the momentum of all and the velocities of those that stay."""
    system = peroxide_system()
    system.addParticle(20.0)
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 4, 0.3, 50.0)
    system.addForce(spring)
    system.addForce(openmm.CMMotionRemover())
    jump = modejump.MonteCarloModeJump(peroxide_model, 0, particles=range(4), seed=8, temperature=300)
    system.addForce(jump)
    x = np.concatenate([start(), [[0.0, 0.3, 0.3]]])
    context = toy.make_context(system, INTEGRATORS[kind](0.0005), x=x)
    masses = np.array([*PEROXIDE.masses, 20.0])

    def on_step():
        return toy.velocities(context) + OFFSET[kind] * 0.0005 * forces(context) / masses[:, None]

    momentum, stays, kinetic = masses @ toy.velocities(context), on_step()[4], []
    assert np.abs(momentum).max() > 1
    rounds = toy.rounds(2000)
    for _ in range(rounds):
        if jump.attempt(context):
            assert np.abs(masses @ toy.velocities(context) - momentum).max() < toy.within(1e-10, 1e-4)
            v = on_step()
            assert np.abs(v[4] - stays).max() < toy.within(1e-12, 1e-6)
            v = v[:4] - masses[:4] @ v[:4] / masses[:4].sum()
            kinetic.append(0.5 * (masses[:4] @ v**2).sum() / toy.KT)
    assert len(kinetic) > rounds / 20
    assert abs(np.mean(kinetic) - 4.5) < 5 * math.sqrt(4.5 / len(kinetic))


@pytest.mark.parametrize("every", [1, 100])
def test_a_part_that_moves_is_not_cooled_where_momentum_is_removed(gaussian_model, every):
    """Half of all the mass jumps so often that the thermostat has no time to make up for it."""
    system = toy.well_system()
    system.removeForce(0)
    system.addParticle(toy.MASS)
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 1, 0.0, toy.KT / toy.SIGMA**2)
    system.addForce(spring)
    system.addForce(openmm.CMMotionRemover(every))
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(0.002), x=[[0, 0, 0], [0, 0.02, 0]])
    relative = []
    rounds = toy.rounds(20000)
    for _ in range(rounds):
        context.getIntegrator().step(3)
        x, v = toy.positions(context), toy.velocities(context)
        relative.append(toy.MASS / 4 * ((v[0] - v[1]) ** 2).sum() / (1.5 * toy.KT))
        context.setPositions(x - x[1])  # the model is that of the distance then
        assert jump.attempt(context)
    error = toy.batch_error(relative)
    assert abs(np.mean(relative) - 1) < 5 * error and error < 0.04 * math.sqrt(20000 / rounds), f"{np.mean(relative)} +- {error}"
