"""A rejected attempt leaves no trace: bit-exact state, and the trajectory of a run without moves."""

import numpy as np
import openmm
import pytest
import toy
from peroxide import OH, peroxide_system, start, write_peroxide_model

import modejump


@pytest.fixture(scope="module")
def hopeless_model(tmp_path_factory):
    """Proposes bonds 40 pm too long: usable configurations, never accepted."""
    path = tmp_path_factory.mktemp("models") / "hopeless.safetensors"
    return write_peroxide_model(path, stretch=0.04)


def rejecting(system, model, frequency):
    jump = modejump.MonteCarloModeJump(model, frequency, seed=11)
    system.addForce(jump)
    return jump


def with_nonbonded(system):
    """Charges, so that the CPU platform has work of its own."""
    force = openmm.NonbondedForce()
    for charge in (0.4, -0.4, -0.4, 0.4):
        force.addParticle(charge, 0.2, 0.1)
    force.createExceptionsFromBonds([(0, 1), (1, 2), (2, 3)], 0.8, 0.5)
    system.addForce(force)
    return system


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rejections_restore_every_bit(hopeless_model, name, offset):
    system = with_nonbonded(peroxide_system())
    jump = rejecting(system, hopeless_model, frequency=0)
    context = toy.make_context(system, toy.langevin(), name, start() + offset)
    context.getIntegrator().step(20)
    x, v, energy = toy.positions(context), toy.velocities(context), toy.potential(context)
    for _ in range(100):
        assert not jump.attempt(context)
    statistics = jump.statistics(context)
    assert statistics.attempts == 100 and statistics.rejected > 90, "too few proposals reached the Metropolis test"
    assert np.array_equal(x, toy.positions(context))
    assert np.array_equal(v, toy.velocities(context))
    assert energy == toy.potential(context)


def middle():
    return toy.langevin(0.0005)


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize(
    "make_integrator, constrained",
    [(middle, ()), (middle, OH), (toy.leapfrog, ())],
    ids=["LangevinMiddle", "LangevinMiddle-constraints", "Custom"],
)
def test_rejected_moves_leave_the_trajectory_identical(hopeless_model, tmp_path, name, make_integrator, constrained):
    if name == "Reference" and toy.VERSION < (8, 3):
        pytest.skip("a new Context of OpenMM 8.2 does not seed all random numbers of the Reference platform")
    model = hopeless_model
    if constrained:
        bonds = [[a, b, 0.097] for a, b in constrained]
        model = write_peroxide_model(tmp_path / "m.safetensors", bonds, stretch=0.04)

    def run(frequency):
        system = with_nonbonded(peroxide_system(constrained))
        jump = rejecting(system, model, frequency)
        # A new Context seeds the Reference platform's random numbers anew, so the runs go one after the other.
        context = toy.make_context(system, make_integrator(), name, start(), v=np.zeros((4, 3)))
        context.getIntegrator().step(200)
        return toy.positions(context), toy.velocities(context), jump.statistics(context)

    x, v, nothing = run(frequency=0)
    x_moves, v_moves, statistics = run(frequency=5)
    assert nothing.attempts == 0
    # Attempts at steps 5, 10, ..., 195; the one at 200 belongs to the next step.
    assert statistics.attempts == 39 and statistics.accepted == 0 and statistics.rejected > 30
    assert np.array_equal(x, x_moves) and np.array_equal(v, v_moves)
