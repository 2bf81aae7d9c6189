"""A TarFlow as the generator: four atoms, each tied to all others by springs of length zero, whose shape is normal about the centroid."""

import numpy as np
import openmm
import pytest
import toy
from model_file import write_tarflow
from test_ensemble import assert_mean

import modejump

N = 4
#: Standard deviation of a coordinate about the centroid, but for the freedom that the centroid takes away, nm.
SD = 0.05


def cluster(shift=0.0):
    """With `shift` (nm) a field along the third axis draws the first two atoms apart, either by so much."""
    system, springs = openmm.System(), openmm.HarmonicBondForce()
    for i in range(N):
        system.addParticle(12.0)
        for j in range(i):
            springs.addBond(i, j, 0.0, toy.KT / SD**2 / N)
    system.addForce(springs)
    field = openmm.CustomExternalForce("pull*z")
    field.addPerParticleParameter("pull")
    for particle, sign in ((0, -1.0), (1, 1.0)):
        field.addParticle(particle, [sign * shift * toy.KT / SD**2])
    if shift:
        system.addForce(field)
    return system


def start():
    return SD * np.random.default_rng(1).normal(size=(N, 3)) + [0.3, -0.2, 0.1]


def test_a_perfect_tarflow_is_always_accepted(tmp_path):
    """Whatever centroid the configuration has: the flow's is noise, and the molecule stays where it is."""
    system = cluster()
    jump = modejump.MonteCarloModeJump(write_tarflow(tmp_path / "tarflow.safetensors", N, SD), 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    centroid = toy.positions(context).mean(axis=0)
    assert all(jump.attempt(context) for _ in range(200))
    assert np.abs(toy.positions(context).mean(axis=0) - centroid).max() < 1e-6


def test_the_ensemble_is_that_of_the_springs_whatever_the_tarflow(tmp_path):
    system = cluster()
    jump = modejump.MonteCarloModeJump(write_tarflow(tmp_path / "wide.safetensors", N, SD, stretch=1.2), 5, seed=4, draw_ahead=True)
    system.addForce(jump)
    integrator = toy.langevin()
    context = toy.make_context(system, integrator, x=start())
    energies = []
    for _ in range(6000):
        integrator.step(5)
        energies.append(toy.potential(context))
    assert 0.3 < jump.statistics(context).acceptance < 0.95
    assert_mean(energies, 1.5 * (N - 1) * toy.KT, "potential energy")


def test_averages_over_orientations_are_exact_and_accept_more(tmp_path):
    """The flow is too wide along the first axis of space, which the springs do not know of; that there is a field along the third does
    not matter."""
    model = write_tarflow(tmp_path / "aslant.safetensors", N, SD, stretch=np.array([2.0, 1.0, 1.0]))

    shift = 0.6 * SD

    def run(rotations, rounds):
        system = cluster(shift)
        jump = modejump.MonteCarloModeJump(model, 5, seed=4, rotations=rotations)
        system.addForce(jump)
        context = toy.make_context(system, toy.langevin(), x=start())
        energies = []
        for _ in range(rounds):
            context.getIntegrator().step(5)
            energies.append(toy.potential(context))
        return jump.statistics(context).acceptance, energies

    plain, _ = run(0, 1500)
    averaged, energies = run(8, 4000)
    assert averaged > plain + 0.03, (plain, averaged)
    assert_mean(energies, (1.5 * (N - 1) - (shift / SD) ** 2) * toy.KT, "potential energy")


def test_averages_are_kept_by_xml_and_refused_where_there_are_none(tmp_path, gaussian_model):
    model = write_tarflow(tmp_path / "tarflow.safetensors", N, SD)
    jump = modejump.MonteCarloModeJump(model, rotations=8)
    copy = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(jump)))
    assert copy.rotations == 8

    def refuses(message, model=model, system=None, **options):
        with pytest.raises(openmm.OpenMMException, match=message):
            system = system or cluster()
            system.addForce(modejump.MonteCarloModeJump(model, 0, rotations=8, **options))
            context = toy.make_context(system, toy.langevin(), x=start()[: system.getNumParticles()])
            modejump.MonteCarloModeJump.cast(system.getForce(system.getNumForces() - 1)).attempt(context)

    refuses("averages over orientations require", annealing_stages=2)
    refuses("averages over orientations require", latent_walk=[0.1])
    refuses("orientation", gaussian_model, toy.well_system())
    with pytest.raises(openmm.OpenMMException, match="number of orientations must not be negative"):
        modejump.MonteCarloModeJump(model, rotations=-1)


#: Other ways of loading a TarFlow.
LOADING = [
    {"precision": "f64"},
    {"precision": "bf16"},
    {"decoding": "jacobi", "decoding_passes": 3},
    {"decoding": "gauss_seidel", "segment": 2, "decoding_tolerance": 1e-3},
]


def springs(x):
    """Reduced potential of configurations x [n, 3 N]."""
    x = x.reshape(-1, N, 3)
    return ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)) / (2 * SD**2)


def first_attempt(model, **loading):
    """log alpha of the first attempt in a Context."""
    system = cluster()
    jump = modejump.MonteCarloModeJump(model, 0, seed=2, **loading)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    jump.attempt(context)
    return jump.statistics(context).last_log_acceptance


def test_precision_and_decoding_are_those_of_the_model(tmp_path):
    """A Move of the model that is loaded likewise says the same of the same attempt."""
    path = write_tarflow(tmp_path / "tarflow.safetensors", N, SD, spread=0.2)
    found = []
    for loading in [{}, *LOADING]:
        move = modejump.Move(modejump.Model(path, **loading), seed=2, batch=64)
        outcome = move.attempt(start().reshape(-1), springs, step=1 << 40)
        found.append(first_attempt(path, **loading))
        # devices keep the parameters of bonds in single precision in any case
        near = 1e-9 if toy.PLATFORMS[0] in ("Reference", "CPU") else 1e-4
        assert abs(found[-1] - outcome.log_acceptance) < near, loading
    single, double, rounded, jacobi, segments = found
    assert 0 < abs(double - single) < 1e-4 < abs(rounded - single), found
    assert max(abs(jacobi - single), abs(segments - single)) < 1e-4, found


@pytest.mark.parametrize("loading", LOADING)
def test_the_ensemble_does_not_depend_on_precision_and_decoding(tmp_path, loading):
    system = cluster()
    model = write_tarflow(tmp_path / "tarflow.safetensors", N, SD, stretch=1.2, spread=0.2)
    jump = modejump.MonteCarloModeJump(model, 5, seed=4, **loading)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=start())
    energies = []
    for _ in range(3000):
        context.getIntegrator().step(5)
        energies.append(toy.potential(context))
    assert 0.05 < jump.statistics(context).acceptance < 0.95
    assert_mean(energies, 1.5 * (N - 1) * toy.KT, "potential energy")


@pytest.mark.parametrize("embed", [False, True])
def test_precision_and_decoding_are_kept_by_xml(tmp_path, embed):
    model = write_tarflow(tmp_path / "tarflow.safetensors", N, SD)
    settings = {"precision": "bf16", "decoding": "gauss_seidel", "segment": 3, "decoding_tolerance": 1e-3, "decoding_passes": 7}
    xml = openmm.XmlSerializer.serialize(modejump.MonteCarloModeJump(model, embed=embed, **settings))
    copy = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    assert {name: getattr(copy, name) for name in settings} == settings
    assert 'version="6"' in xml and openmm.XmlSerializer.serialize(copy) == xml
    plain = openmm.XmlSerializer.serialize(modejump.MonteCarloModeJump(model))
    assert 'version="1"' in plain and "precision=" not in plain and "decoding=" not in plain


def test_precision_and_decoding_are_refused_by_name(tmp_path, gaussian_model):
    model = write_tarflow(tmp_path / "tarflow.safetensors", N, SD)

    def refuses(message, model=model, **loading):
        with pytest.raises(openmm.OpenMMException, match=message):
            modejump.MonteCarloModeJump(model, **loading)

    refuses('unknown precision "half"; it must be f32, f64 or bf16', precision="half")
    refuses('unknown decoding "gauss-seidel"; it must be sequential, jacobi or gauss_seidel', decoding="gauss-seidel")
    refuses("segment must have at least 1 token", decoding="gauss_seidel", segment=0)
    refuses("decoding tolerance must be a positive number", decoding="jacobi", decoding_tolerance=0.0)
    refuses("use 0.001 or less", decoding="jacobi", decoding_tolerance=1.0)
    refuses("at least 1 pass", decoding="jacobi", decoding_passes=0)
    refuses("bf16.*coupling", gaussian_model, precision="bf16")
    refuses("for TarFlows.*coupling", gaussian_model, decoding="jacobi")


def test_two_precisions_of_one_file_are_two_models(tmp_path):
    """Models are shared by their content, and by how they are loaded."""
    model = write_tarflow(tmp_path / "tarflow.safetensors", N, SD, spread=0.2)
    rounded = modejump.MonteCarloModeJump(model, precision="bf16")  # holds its model
    assert first_attempt(model) != first_attempt(model, precision="bf16")
    assert rounded.precision == "bf16" and modejump.MonteCarloModeJump(model).precision == "f32"
