"""Annealed proposals and walks in latent space: exact, guided by the System's forces, kept by XML and checkpoints."""

import numpy as np
import openmm
import pytest
import toy
from openmm import unit
from peroxide import exact_energy, exact_positive, peroxide_system, start
from test_ensemble import assert_mean, run_molecule

import modejump

ANNEALED = {"annealing_stages": 8, "annealing_moves": 2, "annealing_step": 5e-4}
PATHS = {"annealed": ANNEALED, "annealed trajectories": {**ANNEALED, "leapfrog": 2}}
WALKS = {"walk": {"latent_walk": (0.3, 1.2)}, "trajectories": {"latent_walk": (0.15,), "leapfrog": 4}}
METHODS = {**PATHS, **WALKS}

#: For bonds, which are stiffer than the wells of the other tests.
ON_A_MOLECULE = {
    "annealed": {"annealing_stages": 6, "annealing_step": 4 * unit.picometer**2},
    "annealed trajectories": {"annealing_stages": 3, "annealing_step": 2e-6, "leapfrog": 3},
    "walk": {"latent_walk": (0.1, 1.0)},
    "trajectories": {"latent_walk": (0.03, 0.1), "leapfrog": 3},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    return toy.write_gaussian_model(tmp_path_factory.mktemp("models") / "wide.safetensors", (0.4, 0.06, 0.06))


@pytest.mark.parametrize("method", ["annealed", "annealed trajectories", "walk"])
@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_populations_of_two_wells(wide, name, method):
    system = toy.two_well_system()
    jump = modejump.MonteCarloModeJump(wide, 1 if method in WALKS else 5, seed=7, **METHODS[method])
    system.addForce(jump)
    integrator = toy.langevin(0.002)
    context = toy.make_context(system, integrator, name, [[toy.SEPARATION, 0, 0]])
    left = []
    for _ in range(16000 if name == "Reference" else 1500 if name == "CPU" else 600):
        integrator.step(5)
        left.append(toy.positions(context)[0, 0] < 0)
    assert np.count_nonzero(np.diff(left)) > 20
    assert_mean(left, toy.LEFT, "population of the left well")


@pytest.mark.parametrize("method", METHODS)
def test_energy_temperature_and_torsion_of_a_molecule(peroxide_model, method):
    system = peroxide_system()
    jump = modejump.MonteCarloModeJump(peroxide_model, 5, seed=3, **ON_A_MOLECULE[method])
    system.addForce(jump)
    context, energies, temperatures, positive = run_molecule(system, 12, 8000)
    assert jump.statistics(context).acceptance > 0.1 and np.count_nonzero(np.diff(positive)) > 50
    assert_mean(positive, exact_positive(), "P(phi > 0)")
    assert_mean(energies, exact_energy(3), "potential energy")
    assert_mean(temperatures, 300.0, "temperature")


def test_paths_make_the_most_of_a_poor_model(wide):
    """They follow the forces of the System: with the wrong sign or unit of these, acceptance would fall instead."""

    def expected(**options):
        system = toy.well_system()
        jump = modejump.MonteCarloModeJump(wide, 0, seed=7, **options)
        system.addForce(jump)
        context = toy.make_context(system, toy.langevin(), x=[[0.0, 0.0, 0.0]])
        for _ in range(400):
            jump.attempt(context)
        return jump.statistics(context).expected_acceptance

    plain = expected()
    assert expected(**ANNEALED) > 1.3 * plain
    assert expected(**ANNEALED, leapfrog=3) > 1.8 * plain


def test_trajectories_follow_the_forces_on_virtual_sites(gaussian_model):
    """The second particle of two is walked, and its energy is that of a site on it. In the latent space of a perfect model the energy is
    |z|^2/2, which leapfrog steps of 0.1 keep to a part in a thousand."""
    system = openmm.System()
    for mass in (20.0, toy.MASS, 0.0):
        system.addParticle(mass)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(1, 0, 1.0, 0.0))
    well = openmm.CustomExternalForce("k/2*(x^2+y^2+z^2)")
    well.addGlobalParameter("k", toy.KT / toy.SIGMA**2)
    well.addParticle(0)
    well.addParticle(2)
    system.addForce(well)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=7, particles=[1], latent_walk=[0.1], leapfrog=10)
    system.addForce(jump)
    x = [[0.02, 0, 0], [0.05, 0.01, -0.02], [0.05, 0.01, -0.02]]
    context = toy.make_context(system, toy.langevin(), x=x)
    x = toy.positions(context)
    for _ in range(100):
        assert jump.attempt(context)
        # of the order of width^2/8 (z'^2 - z^2)
        assert abs(jump.statistics(context).last_log_acceptance) < 0.02
    moved = toy.positions(context)
    assert np.array_equal(moved[0], x[0]) and np.array_equal(moved[2], moved[1])
    assert np.linalg.norm(moved[1] - x[1]) > 0.01


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_rejections_restore_every_bit(wide, name, method):
    system = toy.two_well_system()
    options = {"latent_walk": (6.0,), "leapfrog": METHODS[method].get("leapfrog", 0)} if method in WALKS else PATHS[method]
    jump = modejump.MonteCarloModeJump(wide, 0, seed=7, **options)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), name, [[toy.SEPARATION, 0.0, 0.001]])
    rejected = 0
    for _ in range(60):
        x, v, energy = toy.positions(context), toy.velocities(context), toy.potential(context)
        if not jump.attempt(context):
            rejected += 1
            assert np.array_equal(x, toy.positions(context)) and np.array_equal(v, toy.velocities(context))
            assert energy == toy.potential(context)
    assert rejected > 10


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_continues_bit_for_bit(peroxide_model, method):
    def simulation():
        system = peroxide_system()
        jump = modejump.MonteCarloModeJump(peroxide_model, 5, seed=6, **ON_A_MOLECULE[method])
        system.addForce(jump)
        return jump, toy.make_context(system, toy.langevin(0.0005), x=start())

    jump, context = simulation()
    context.getIntegrator().step(100)
    checkpoint = context.createCheckpoint()
    context.getIntegrator().step(100)
    x, v = toy.positions(context), toy.velocities(context)
    assert jump.statistics(context).accepted > 3
    other_jump, other = simulation()
    other.getIntegrator().step(33)
    other_jump.attempt(other)
    other.loadCheckpoint(checkpoint)
    other.getIntegrator().step(100)
    assert np.array_equal(x, toy.positions(other)) and np.array_equal(v, toy.velocities(other))


def settings(jump):
    numbers = (jump.annealing_stages, jump.annealing_moves, jump.annealing_step)
    return (*numbers, jump.latent_walk, jump.leapfrog)


@pytest.mark.parametrize("method", METHODS)
def test_xml_and_contexts_keep_the_method(wide, method):
    jump = modejump.MonteCarloModeJump(wide, 0, seed=7, **METHODS[method])
    xml = openmm.XmlSerializer.serialize(jump)
    copy = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    assert 'version="5"' in xml and openmm.XmlSerializer.serialize(copy) == xml
    found = settings(copy)
    assert found == settings(jump)
    expected = {"annealing_stages": 0, "annealing_moves": 1, "annealing_step": 2e-6, "latent_walk": (), "leapfrog": 0}
    expected = {**expected, **METHODS[method]}
    assert found == (*list(expected.values())[:3], list(expected["latent_walk"]), expected["leapfrog"])
    # a Context takes it over when it is told to
    system = toy.two_well_system()
    plain = modejump.MonteCarloModeJump(wide, 0, seed=7)
    system.addForce(plain)
    context = toy.make_context(system, toy.langevin(), x=[[toy.SEPARATION, 0, 0]])
    for name, value in METHODS[method].items():
        setattr(plain, name, value)
    assert plain.attempt(context) in (True, False) and len(plain.log_weights(context)) == 1
    plain.update_parameters_in_context(context)
    for _ in range(3):
        plain.attempt(context)
    assert plain.statistics(context).attempts == 3
    assert len(plain.log_weights(context)) == (3 if method in PATHS else 0)


def test_what_does_not_go_together_is_refused(wide, rigid_model):
    def refuses(message, model=wide, system=None, **options):
        with pytest.raises(openmm.OpenMMException, match=message):
            system = system or toy.two_well_system()
            system.addForce(modejump.MonteCarloModeJump(model, 0, **options))
            openmm.Context(system, toy.langevin(), *toy.platform())

    walk = {"latent_walk": [0.1]}
    refuses("annealing stages must not be negative", annealing_stages=-1)
    refuses("positive size", annealing_stages=3, annealing_step=0.0)
    refuses("at least 1 move", annealing_stages=3, annealing_moves=0)
    refuses("widths of a latent walk must be positive", latent_walk=[0.1, -1.0])
    refuses("leapfrog steps must not be negative", leapfrog=-2)
    refuses("leapfrog steps require annealing or a latent walk", leapfrog=2)
    refuses("mutually exclusive", **walk, annealing_stages=3)
    refuses("mutually exclusive", **walk, screen=wide)
    refuses("mutually exclusive", annealing_stages=3, screen=wide)
    refuses("one proposal, not 2", **walk, proposals=2)
    system = peroxide_system([(0, 1), (2, 3)])
    refuses("constrain|fixed", rigid_model, system, annealing_stages=3)
    # a walk keeps constraints that the model keeps
    system = peroxide_system([(0, 1), (2, 3)])
    jump = modejump.MonteCarloModeJump(rigid_model, 0, seed=2, latent_walk=[0.1])
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    assert sum(jump.attempt(context) for _ in range(40)) > 10
