"""Jumps of a solute in a bath: with the bath frozen, and on driven paths."""

import warnings

import bath
import numpy as np
import openmm
import pytest
import toy

import modejump

#: Plain dynamics of the chain without a barrier, 3 million steps of 4 fs: the probability of trans, which is 1/2 without a bath, the mean
#: potential energy in kJ/mol, and their standard errors by blocks.
FREE = ((0.4376, 0.0053), (72.34, 0.08))
#: The same run weighed by exp(-V/kT) of the barrier.
HINDERED = ((0.395, 0.008), (73.62, 0.10))


@pytest.fixture(scope="module")
def chain_model(tmp_path_factory):
    return bath.write_chain_model(tmp_path_factory.mktemp("models") / "chain.safetensors")


def driven(model, steps, frequency=0, seed=4, **options):
    options = {"relaxation_steps": 10, "relaxation_timestep": 0.008, **options}
    return modejump.MonteCarloModeJump(model, frequency, particles=bath.SOLUTE, seed=seed, driven_steps=steps, **options)


def context_of(jump, name="CPU", seed=5, barrier=bath.CHAIN.barrier, equilibration=3000):
    system = bath.bath_system(barrier)
    system.addForce(jump)
    integrator = toy.langevin(0.004, seed, friction=2.0)
    integrator.setConstraintTolerance(1e-6)
    context = toy.make_context(system, integrator, name, bath.start())
    context.getIntegrator().step(equilibration)
    return context


def lengths(x):
    return [np.linalg.norm(x[a] - x[b]) for a, b in [*bath.CHAIN_CONSTRAINTS, *bath.dimers()]]


#: The smallest distance between chain and bath, nm, of which there is an energy; outside of the function, which OpenMM pickles by its name.
NEAREST = {"distance": 0.0}


def nothing_where_atoms_are_apart(state):
    x = state.getPositions(asNumpy=True)._value
    between = x[:4, None] - x[None, 4:]
    between -= bath.BOX * np.round(between / bath.BOX)
    if np.linalg.norm(between, axis=2).min() < NEAREST["distance"]:
        raise ValueError("no energy of this geometry")
    return 0.0, np.zeros_like(x)


@toy.since("PythonForce")
def test_a_configuration_without_an_energy_ends_the_path_and_not_the_run(chain_model, capfd, monkeypatch):
    """As where the self-consistent field of some potential does not converge."""
    system = bath.bath_system()
    system.addForce(openmm.PythonForce(nothing_where_atoms_are_apart))
    jump = driven(chain_model, 2, 4)
    system.addForce(jump)
    integrator = toy.langevin(0.004, 5, friction=2.0)
    integrator.setConstraintTolerance(1e-6)
    context = toy.make_context(system, integrator, "Reference", bath.start())
    integrator.step(200)
    monkeypatch.setitem(NEAREST, "distance", 0.2)
    jump.reset_statistics(context)
    integrator.step(400)
    statistics, told = jump.statistics(context), capfd.readouterr().err
    assert statistics.attempts >= 99 and statistics.non_finite > 5
    assert told.count("no energy of this geometry") == 1
    monkeypatch.setitem(NEAREST, "distance", 0.0)
    jump.update_parameters_in_context(context)  # copies the PythonForce again
    integrator.step(40)
    assert jump.statistics(context).attempts >= 9


@pytest.mark.parametrize(
    ("steps", "frequency", "rounds", "barrier", "reference"),
    [(0, 4, 1200, bath.CHAIN.barrier, HINDERED), (10, 40, 400, 0.0, FREE)],
)
def test_the_bath_has_its_say(chain_model, steps, frequency, rounds, barrier, reference):
    """The frozen jump and the driven one find the population of plain dynamics, and its energy, to which velocities after a jump and
    constraints belong."""
    jump = driven(chain_model, steps, frequency)
    context = context_of(jump, barrier=barrier)
    jump.reset_statistics(context)
    trans, energy = [], []
    for _ in range(rounds):
        context.getIntegrator().step(20)
        state = context.getState(positions=True, energy=True)
        x = state.getPositions(asNumpy=True)._value
        trans.append(abs(bath.torsion_of(x)) > np.pi / 2)
        energy.append(state.getPotentialEnergy()._value)
    statistics = jump.statistics(context)
    assert statistics.likelihood == "exact" and statistics.attempts == 20 * rounds // frequency
    assert np.allclose(lengths(x), lengths(bath.start()), rtol=1e-5)
    assert abs(statistics.expected_acceptance - statistics.acceptance) < 0.01 + 2 / statistics.attempts**0.5
    print(np.mean(trans), toy.batch_error(trans), np.mean(energy), toy.batch_error(energy), statistics.acceptance)
    for found, (exact, error) in zip((trans, energy), reference):
        assert abs(np.mean(found) - exact) < 4.5 * np.hypot(toy.batch_error(found), error)


def test_a_bath_that_gives_way_lets_more_through(chain_model):
    frozen, path = driven(chain_model, 0), driven(chain_model, 20)
    expected = []
    for jump in (frozen, path):
        context = context_of(jump)
        for _ in range(240):
            context.getIntegrator().step(20)
            jump.attempt(context)
        expected.append(jump.statistics(context).expected_acceptance)
    statistics = jump.statistics(context)
    assert statistics.relaxations == 240 * 19 and statistics.relaxations_accepted > 0.6 * statistics.relaxations
    assert expected[1] > 1.3 * expected[0], expected


@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_rejections_restore_every_bit(tmp_path, chain_model, name):
    jump = driven(chain_model, 3)
    context = context_of(jump, name, equilibration=300)
    rejected = 0
    for _ in range(30):
        x, v, energy = toy.positions(context), toy.velocities(context), toy.potential(context)
        if not jump.attempt(context):
            rejected += 1
            assert np.array_equal(x, toy.positions(context)) and np.array_equal(v, toy.velocities(context))
            assert energy == toy.potential(context)
    assert rejected > 10


def test_a_checkpoint_continues_bit_for_bit(chain_model):
    jump = driven(chain_model, 4, frequency=5)
    context = context_of(jump, "Reference", equilibration=300)
    checkpoint = context.createCheckpoint()
    jump.reset_statistics(context)
    context.getIntegrator().step(100)
    x, v = toy.positions(context), toy.velocities(context)
    assert jump.statistics(context).accepted > 0
    other_jump = driven(chain_model, 4, frequency=5)
    other = context_of(other_jump, "Reference", seed=6, equilibration=50)
    other_jump.attempt(other)
    other.loadCheckpoint(checkpoint)
    other.getIntegrator().step(100)
    assert np.array_equal(x, toy.positions(other)) and np.array_equal(v, toy.velocities(other))


def test_low_acceptance_warns_and_says_what_to_do(tmp_path, capfd):
    model = bath.write_chain_model(tmp_path / "far.safetensors", stretch=0.1)
    jump = driven(model, 0)
    context = context_of(jump)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(99):
            jump.attempt(context)
        assert jump.statistics(context).expected_acceptance < 1e-3
    assert capfd.readouterr().err == ""
    for _ in range(3):
        jump.attempt(context)
    assert capfd.readouterr().err.count("of 100 attempts were accepted") == 1
    with pytest.warns(UserWarning, match="moves 4 of 52 particles.*driven_steps"):
        jump.statistics(context)


@pytest.mark.parametrize("name", ["Reference", "CPU"])
def test_sites_of_the_bath_go_with_their_particles(gaussian_model, name):
    """A force that acts on a virtual site, in steps of 0.4 of its frequency: trajectories whose forces were of the site as it was before a step
    would gain energy, and most would be rejected."""
    system = toy.well_system()
    mass, omega, timestep = 10.0, 20.0, 0.02
    for m in (mass, mass, 0.0):
        system.addParticle(m)
    system.addConstraint(1, 2, 0.1)
    system.setVirtualSite(3, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))
    spring = openmm.CustomExternalForce("stiffness/2*(x^2+y^2+z^2)")
    spring.addGlobalParameter("stiffness", 2 * mass * omega**2)
    spring.addGlobalParameter("x1", 1.0)  # as many a restraint has it
    spring.addParticle(3)
    system.addForce(spring)
    jump = modejump.MonteCarloModeJump(
        gaussian_model, 0, particles=[0], seed=4, driven_steps=11, relaxation_steps=10, relaxation_timestep=timestep
    )
    system.addForce(jump)
    x = [[0.01, 0.0, 0.0], [0.05, 0.0, 0.0], [-0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]
    context = toy.make_context(system, toy.langevin(), name, x)
    for _ in range(40):
        jump.attempt(context)
    statistics = jump.statistics(context)
    assert statistics.relaxations == 400 and statistics.relaxations_accepted > 0.95 * statistics.relaxations


def test_driven_paths_are_kept_by_xml(chain_model):
    jump = driven(chain_model, 7, relaxation_steps=3, relaxation_timestep=0.002 * openmm.unit.picosecond)
    copy = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(jump)))
    assert (copy.driven_steps, copy.relaxation_steps, copy.relaxation_timestep) == (7, 3, 0.002)


@pytest.mark.parametrize("name, change, passes", [("Reference", 0.04, False), ("CPU", 0.04, True), ("CPU", 0.5, False)])
def test_a_change_behind_the_paths_back_is_no_rounding(chain_model, name, change, passes):
    """Of a large energy, which single precision knows to 5e-7 of it only."""
    system, constant = bath.bath_system(), openmm.CustomExternalForce("e0")
    constant.addPerParticleParameter("e0")
    constant.addParticle(0, [-1e5])
    system.addForce(constant)
    jump = driven(chain_model, 3)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(0.004), name, bath.start())
    jump.attempt(context)
    constant.setParticleParameters(0, 0, [-1e5 + change])
    constant.updateParametersInContext(context)
    if passes:
        jump.attempt(context)
    else:
        with pytest.raises(openmm.OpenMMException, match="a Force may have been changed"):
            jump.attempt(context)


def test_a_path_that_is_made_again_leaves_the_noise_of_the_dynamics_alone(chain_model):
    def run():
        jump = driven(chain_model, 3, frequency=5)
        context = context_of(jump, "Reference", equilibration=20)
        jump.update_parameters_in_context(context)
        context.getIntegrator().step(20)
        return toy.positions(context)

    assert np.array_equal(run(), run())


def test_paths_follow_box_and_parameters_and_refuse_what_they_cannot(peroxide_model, chain_model):
    jump = driven(chain_model, 3)
    context = context_of(jump)
    context.setPeriodicBoxVectors(*(1.05 * bath.BOX * np.eye(3)))
    context.setParameter("epsilon", 2 * bath.EPSILON)
    jump.attempt(context)
    # a Force that was changed behind the path's back
    force = next(f for f in context.getSystem().getForces() if isinstance(f, openmm.HarmonicBondForce))
    force.setBondParameters(0, 1, 2, 0.9 * bath.CHAIN.bond, bath.CHAIN.k_bond)
    force.updateParametersInContext(context)
    with pytest.raises(openmm.OpenMMException, match="reinitialize"):
        jump.attempt(context)
    context.reinitialize(preserveState=True)
    jump.attempt(context)

    from peroxide import peroxide_system

    system = peroxide_system()
    system.addForce(modejump.MonteCarloModeJump(peroxide_model, driven_steps=5))
    with pytest.raises(openmm.OpenMMException, match="none is left to relax"):
        toy.make_context(system, toy.langevin())
    with pytest.raises(openmm.OpenMMException, match="one proposal"):
        context_of(driven(chain_model, 5, proposals=2))
    with pytest.raises(openmm.OpenMMException, match="driven steps must not be negative"):
        driven(chain_model, -1)
    with pytest.raises(openmm.OpenMMException, match="positive size"):
        driven(chain_model, 5, relaxation_timestep=0.0)
    with pytest.raises(openmm.OpenMMException, match="1 to 1048576 steps"):
        driven(chain_model, 5, relaxation_steps=2**20 + 1)


def test_a_change_that_shows_at_the_end_of_a_path_alone_is_found(gaussian_model):
    """A wall that is moved while the particle is not there."""
    system, wall = openmm.System(), openmm.CustomExternalForce("1000*step(x-edge)")
    for _ in range(2):
        system.addParticle(12.0)
    wall.addPerParticleParameter("edge")
    wall.addParticle(0, [100.0])
    system.addForce(wall)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4, driven_steps=3)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), "Reference", [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    while toy.positions(context)[0, 0] >= 0:
        jump.attempt(context)
    wall.setParticleParameters(0, 0, [0.0])
    wall.updateParametersInContext(context)
    with pytest.raises(openmm.OpenMMException, match="a Force may have been changed"):
        for _ in range(100):
            before = context.getState(positions=True).getPositions(asNumpy=True)._value
            jump.attempt(context)
    assert before[0, 0] < 0 and np.array_equal(toy.positions(context), before)
    context.reinitialize(preserveState=True)
    for _ in range(100):
        jump.attempt(context)
        assert toy.positions(context)[0, 0] < 0


def test_virtual_sites_that_are_not_up_to_date_are_placed_before_an_attempt(gaussian_model):
    system, spring = openmm.System(), openmm.CustomExternalForce("5000*x^2")
    for mass in (12.0, 12.0, 12.0, 0.0):
        system.addParticle(mass)
    system.setVirtualSite(3, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    spring.addParticle(3)
    system.addForce(spring)
    frozen = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4)
    on_path = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], seed=4, driven_steps=2)
    for jump in (frozen, on_path):
        copy = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
        copy.addForce(jump)
        odds = []
        for site in (0.0, 0.2):  # as given, which is not where it belongs
            context = toy.make_context(copy, toy.langevin(), "Reference", [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [site, 0.0, 0.0]])
            jump.attempt(context)
            odds.append(jump.statistics(context).last_log_acceptance)
        assert odds[0] == odds[1] and np.isfinite(odds[0])


def test_relaxations_that_are_rejected_are_told(chain_model):
    jump = driven(chain_model, 30, relaxation_timestep=2.0)
    context = context_of(jump, equilibration=10)
    for _ in range(4):
        jump.attempt(context)
    with pytest.warns(UserWarning, match="smaller relaxation_timestep .now 2 ps."):
        assert jump.statistics(context).relaxations_accepted == 0
