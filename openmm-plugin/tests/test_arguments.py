"""Arguments of modejump.Model, Move, Bijection and Exchange: units, kinds, copies, and what is refused."""

import copy
import pickle

import numpy as np
import pytest
from double_well import ALA2, DOUBLE_WELL, MODES, STEERABLE, double_well
from openmm import unit

import modejump

KJ = unit.kilojoule_per_mole


@pytest.mark.parametrize(
    "potential",
    [
        lambda x: double_well(x) * KJ,
        lambda x: [u * KJ for u in double_well(x)],
        lambda x: np.array([u * KJ for u in double_well(x)], dtype=object),
    ],
)
def test_potentials_with_a_unit_are_refused(generator, potential):
    move = modejump.Move(generator, seed=5)
    for known in (0.25, None):
        with pytest.raises(TypeError, match="the potential is in kilojoule/mole.*divide by kT"):
            move.attempt([1.0, 0.5], potential, step=0, reduced_potential=known)
    with pytest.raises(TypeError, match="divide by kT"):
        move.attempt([1.0, 0.5], double_well, step=0, reduced_potential=0.25 * KJ)
    walk = modejump.Move(generator, "latent_walk", widths=[0.2], leapfrog=2)
    with pytest.raises(TypeError, match="divide by kT"):
        walk.attempt([1.0, 0.5], double_well, step=0, gradient=lambda x: (double_well(x), x * KJ / unit.nanometer))
    exchange = modejump.Exchange(modejump.Bijection(generator, generator))
    with pytest.raises(TypeError, match="divide by kT"):
        exchange.attempt([1.0, 0.5], [1.0, 0.5], [potential, double_well], step=0)
    # what is left of a division by kT is a number
    attempts = [modejump.Move(generator, seed=5).attempt([1.0, 0.5], u, step=3) for u in (double_well, lambda x: double_well(x) * KJ / KJ)]
    assert attempts[0].log_acceptance == attempts[1].log_acceptance


def test_lengths_and_temperatures_keep_their_units(generator, ala2):
    x, _ = ala2.sample(2, seed=3)
    angstroms = 10 * x * unit.angstrom
    assert np.abs(ala2.log_density(angstroms) - ala2.log_density(x)).max() < 1e-3
    outcome = modejump.Move(ala2).attempt(angstroms[0], lambda x: np.full(len(x), np.nan), step=0, reduced_potential=0.0)
    assert outcome.fate == "non_finite" and np.abs(outcome.x - x[0]).max() < 1e-12
    with pytest.raises(TypeError, match="configuration is in kelvin.*in nanometer"):
        ala2.log_density(x * unit.kelvin)
    with pytest.raises(modejump.Error, match="bond"):
        modejump.Move(ala2).set_constraints([[0, 1]], [1.09 * unit.angstrom], [12 * unit.dalton] * 22)
    steerable = modejump.Model(STEERABLE)
    assert steerable.at_temperature(300 * unit.kelvin).latent_temperature == steerable.at_temperature(300).latent_temperature
    move = modejump.Move(steerable)
    move.set_temperature(300 * unit.kelvin)
    for set_temperature in (move.set_temperature, steerable.at_temperature):
        with pytest.raises(TypeError, match="temperature is in nanometer"):
            set_temperature(300 * unit.nanometer)


def test_arguments_of_another_kind_are_refused(generator):
    bijection, move = modejump.Bijection(generator, generator), modejump.Move(generator)
    for kind, arguments in (
        (modejump.Move, [bijection]),
        (modejump.Move, [move]),
        (modejump.Move, [str(DOUBLE_WELL)]),
        (modejump.Bijection, [bijection, bijection]),
        (modejump.Bijection, [generator, DOUBLE_WELL]),
    ):
        with pytest.raises(TypeError, match=r"not Model: load it with modejump\.Model\(path\)"):
            kind(*arguments)
    with pytest.raises(TypeError, match="the screen has type Bijection, not Model"):
        modejump.Move(generator, screen=bijection)
    for argument in (generator, move, None):
        with pytest.raises(TypeError, match=r"not Bijection: create it with modejump\.Bijection"):
            modejump.Exchange(argument)


def test_copies_free_nothing_twice(generator):
    model = modejump.Model(DOUBLE_WELL)
    twins = [copy.copy(model), copy.deepcopy({"model": model})["model"], copy.deepcopy(modejump.Bijection(model, model))]
    before, dimension = model.log_density([1.0, 0.5]), model.dimension
    del model
    assert twins[0] is twins[1] and twins[2].from_ is twins[0]
    del twins[1:]
    assert twins[0].log_density([1.0, 0.5]) == before and twins[0].dimension == dimension
    for owner in (modejump.Move(generator), modejump.Exchange(modejump.Bijection(generator, generator))):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="create another with modejump"):
                duplicate(owner)
    with pytest.raises(TypeError, match="load it with"):
        pickle.dumps(generator)


def test_constraints_that_the_model_does_not_keep_are_refused(ala2):
    move = modejump.Move(ala2)
    with pytest.raises(modejump.Error, match="bond"):
        move.set_constraints([[0, 1]], [0.109], np.ones(22))
    with pytest.raises(ValueError, match="masses"):
        move.set_constraints([[0, 1]], [0.109], np.ones(3))
    with pytest.raises(TypeError, match="an atom of a constraint is 0.5"):
        move.set_constraints(np.array([[0.5, 1]]), [0.109], np.ones(22))
    with pytest.raises(ValueError, match="an atom of a constraint is -1"):
        move.set_constraints(np.array([[0, -1]]), [0.109], np.ones(22))


def test_an_exchange_of_models_that_keep_bonds_needs_them_constrained():
    rigid = modejump.Model(ALA2.with_name("model-hbonds.safetensors"))
    exchange = modejump.Exchange(modejump.Bijection(rigid, rigid))
    with pytest.raises(modejump.Error, match="keeps the bond .* but the engine does not constrain it"):
        exchange.set_constraints(np.empty((0, 2)), [], np.ones(22))


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda m: modejump.Model(DOUBLE_WELL, precision="half"), ValueError, "f32, f64, bf16"),
        (lambda m: modejump.Model(DOUBLE_WELL, decoding="gauss-seidel"), ValueError, "sequential, jacobi, gauss_seidel"),
        (lambda m: modejump.Model(DOUBLE_WELL, precision="bf16"), modejump.Error, "bf16.*coupling"),
        (lambda m: modejump.Model(DOUBLE_WELL, decoding="jacobi"), modejump.Error, "for TarFlows.*coupling"),
        (lambda m: modejump.Move(m, rotations=4), modejump.Error, "orientation of a molecule"),
        (lambda m: modejump.Move(m, screen=m, rotations=4), modejump.Error, "rotations is 4"),
        (lambda m: modejump.Move(m, "annealed", rotations=4), ValueError, "independence or isir"),
        (lambda m: modejump.Model("no-such-file.safetensors"), modejump.Error, "no-such-file"),
        (lambda m: modejump.Model(__file__), modejump.Error, "test_arguments.py"),
        (lambda m: m.log_density(np.zeros((5, 3))), ValueError, r"expected configurations of shape \(2,\)"),
        (lambda m: modejump.Move(m, "metropolis"), ValueError, "independence, isir"),
        (lambda m: modejump.Move(m, "latent_walk", widths=[0.1, 0.0]), modejump.Error, "positive, finite width"),
        (lambda m: modejump.Move(m, "latent_walk", proposals=2), ValueError, "one step per attempt"),
        (lambda m: modejump.Move(m, widths=[0.1]), ValueError, "latent_walk"),
        (lambda m: modejump.Move(m, "annealed", stages=0), modejump.Error, "stages"),
        (lambda m: modejump.Move(m, "driven", leapfrog=3), ValueError, "annealed or latent_walk"),
        (lambda m: modejump.Move(m, width=0.1), ValueError, "not a setting"),
        (lambda m: modejump.Move(m, mode=lambda x: 0), modejump.Error, "no modes to jump between"),
        (lambda m: modejump.Move(m, "isir", mode=lambda x: 0), ValueError, "mode requires"),
        (lambda m: modejump.Move(modejump.Model(MODES), proposals=2), modejump.Error, "2 proposals"),
        (lambda m: modejump.Move(m, acceptance="surrogate"), ValueError, "requires a screen"),
        (lambda m: modejump.Move(m, proposals=0), modejump.Error, "0 proposals"),
        (lambda m: modejump.Move(m, "isir", screen=m), ValueError, "screen requires"),
        (lambda m: modejump.Move(m).attempt(np.zeros((2, 2)), double_well, step=0), ValueError, "one configuration"),
        (lambda m: modejump.Move(m).attempt([1.0, 0.5], double_well, step=0, reduced_potential=np.nan), modejump.Error, "NaN"),
        (lambda m: modejump.Move(m).attempt([1.0, 0.5], double_well, step=-1), ValueError, "step is -1; it must be a whole number from 0"),
        (lambda m: modejump.Move(m).attempt([1.0, 0.5], double_well, step=0, replica=2**64), ValueError, "replica is 18446744073709551616"),
        (lambda m: modejump.Move(m).attempt([1.0, 0.5], double_well, step=0.5), TypeError, "step is 0.5; it must be a whole number"),
        (lambda m: modejump.Move(m, seed=-3), ValueError, "seed is -3"),
        (lambda m: modejump.Move(m, proposals=-1), ValueError, "proposals is -1"),
        (lambda m: modejump.Move(m, "driven", steps=-1), ValueError, "steps is -1"),
        (lambda m: modejump.Move(m, "annealed", leapfrog=-2), ValueError, "leapfrog is -2"),
        (lambda m: modejump.Model(DOUBLE_WELL, decoding="gauss_seidel", segment=-4), ValueError, "segment is -4"),
        (lambda m: modejump.Model(DOUBLE_WELL, segment=4), ValueError, "segment requires the decoding gauss_seidel"),
        (lambda m: modejump.Model(DOUBLE_WELL, decoding_passes=4), ValueError, "decoding_passes require the decoding"),
        (lambda m: m.sample(3, seed=-1), ValueError, "seed is -1"),
        (lambda m: modejump.Exchange(modejump.Bijection(m, m), seed=-1), ValueError, "seed is -1"),
    ],
)
def test_bad_input_is_refused(generator, wrong, error, message):
    with pytest.raises(error, match=message):
        wrong(generator)
