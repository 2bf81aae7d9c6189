"""Models and moves without an engine: modejump.Model and modejump.Move."""

import contextlib
import copy
import gc
import os
import pickle
import signal
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import toy
from model_file import write_tarflow
from openmm import unit

import modejump

MODELS = Path(__file__).resolve().parents[2] / "models"
DOUBLE_WELL = MODELS / "double-well" / "generator.safetensors"
MODES = MODELS / "double-well" / "modes.safetensors"
STEERABLE = MODELS / "double-well" / "steerable.safetensors"
ALA2 = MODELS / "ala2" / "model.safetensors"


def double_well(x):
    """The potential that the shipped generator was made for."""
    return 10 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 5 * (x[:, 1] - 0.5 * x[:, 0]) ** 2


def double_well_gradient(x):
    slope = 10 * (x[:, 1] - 0.5 * x[:, 0])
    return double_well(x), np.stack([40 * x[:, 0] * (x[:, 0] ** 2 - 1) + 0.5 - 0.5 * slope, slope], axis=1)


def left_population():
    x = np.linspace(-2.5, 2.5, 20001)
    weight = np.exp(-10 * (x**2 - 1) ** 2 - 0.5 * x)
    return weight[x < 0].sum() / weight.sum()


@pytest.fixture(scope="module")
def generator():
    return modejump.Model(DOUBLE_WELL)


@pytest.fixture(scope="module")
def ala2():
    return modejump.Model(ALA2)


def test_a_model_says_what_it_is(generator, ala2):
    assert (generator.dimension, generator.shape) == (2, (2,))
    assert (ala2.dimension, ala2.shape) == (66, (22, 3))
    assert ala2.metadata["model"]["kind"] == "coupling" and ala2.metadata["temperature"] == 300.0
    assert len(ala2.hash) == 32 and ala2.hash != generator.hash


def test_devices_are_found_by_name(monkeypatch):
    monkeypatch.setenv("MODEJUMP_DEVICE", "cpu")  # puts back what set_device changes
    modejump.set_device("cpu")
    assert modejump.device() == "cpu"
    assert modejump.Model(DOUBLE_WELL).device == "cpu"
    with pytest.raises(modejump.Error, match="toaster.*known devices: cpu, auto, cuda, cuda:N"):
        modejump.set_device("toaster")
    # no such card; but the library has kernels
    with pytest.raises(modejump.Error) as missing:
        modejump.set_device("cuda:99")
    assert "does not include the feature" not in str(missing.value)


def test_samples_come_with_their_density(ala2):
    x, log_q = ala2.sample(70, seed=3)
    assert x.shape == (70, 22, 3) and log_q.shape == (70,)
    assert np.abs(ala2.log_density(x) - log_q).max() < 1e-3  # single precision inside
    assert ala2.log_density(x[0]).shape == () and ala2.log_density(x.reshape(7, 10, 22, 3)).shape == (7, 10)
    again, _ = ala2.sample(20, seed=3, first=50)
    assert np.abs(again - x[50:]).max() < 1e-5
    assert np.isneginf(ala2.log_density(-x[0])), "D-alanine"
    assert np.isneginf(ala2.log_density(np.full((22, 3), np.nan)))


def test_hydrogens_that_are_numbered_the_other_way_round_are_named(ala2):
    x, _ = ala2.sample(1, seed=3)
    ala2.check_labels(x[0])
    exchanged = x[0].copy()
    exchanged[[11, 12]] = exchanged[[12, 11]]
    with pytest.raises(modejump.Error, match=r"ALA2:HB1 \(atom 12\) and ALA2:HB2 \(atom 13\)"):
        ala2.check_labels(exchanged)
    with pytest.raises(modejump.Error, match="found 3 coordinates"):
        ala2.check_labels(x[0, 0])


def test_a_start_in_another_unit_or_cut_by_a_box_is_named(ala2):
    x = ala2.sample(1, seed=3)[0][0]
    with pytest.raises(modejump.Error, match="pass positions in nm"):
        ala2.check_labels(10 * x)
    box = 3 * np.eye(3)
    cut = (x - x[8]) % 3
    with pytest.raises(modejump.Error, match="make the molecule whole, or pass the box"):
        ala2.check_labels(cut)
    ala2.check_labels(cut, box)
    ala2.check_labels(10 * cut * unit.angstrom, 10 * box * unit.angstrom)


def test_many_rows_are_those_of_several_calls(generator):
    n = 2 * modejump.model.ROWS + 10
    x, log_q = generator.sample(n, seed=4, first=7)
    y, log_p = generator.sample(30, seed=4, first=7 + n - 30)
    assert (x[-30:] == y).all() and (log_q[-30:] == log_p).all()
    assert (generator.log_density(x)[-30:] == generator.log_density(y)).all()
    assert all((a[-30:] == b).all() for a, b in zip(generator.log_density_gradient(x), generator.log_density_gradient(y)))
    assert generator.sample(0)[0].shape == (0, 2) and generator.log_density(np.empty((0, 2))).shape == (0,)


@contextlib.contextmanager
def ctrl_c_after(seconds):
    """Presses Ctrl-C, and again every five seconds until it ends the block: Python drops what is raised while it deletes an object."""
    over = threading.Event()

    def press():
        wait = seconds
        while not over.wait(wait):
            os.kill(os.getpid(), signal.SIGINT)
            wait = 5.0

    def interrupt(*_):
        if not over.is_set():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield
    finally:
        over.set()
        presser.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_between_the_rows_of_a_long_call(generator):
    with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.3):
        for _ in range(1000):
            generator.sample(20 * modejump.model.ROWS)


def test_images_of_many_configurations_are_those_of_several_calls(generator):
    same = modejump.Bijection(generator, generator)
    x, _ = generator.sample(modejump.model.ROWS + 10, seed=4)
    for of in (same.map, same.inverse):
        whole, part = of(x), of(x[-20:])
        assert all((a[-20:] == b).all() for a, b in zip(whole, part)) and np.abs(whole[0] - x).max() < 1e-5
    assert same.map(np.empty((0, 2)))[0].shape == (0, 2)


def test_the_gradient_is_that_of_the_density(generator):
    x, _ = generator.sample(50, seed=2)
    z, log_det, of_encoding = generator.encode(x)
    again, log_det_again, _ = generator.generate(z)
    assert z.shape == (len(x), generator.latent_dimension) and np.allclose(of_encoding, generator.log_density(x))
    assert np.allclose(again, x, atol=1e-3) and np.allclose(log_det, log_det_again, atol=1e-3)
    with pytest.raises(ValueError, match="latent points of shape"):
        generator.generate(z[0])
    log_q, gradient = generator.log_density_gradient(x)
    assert gradient.shape == x.shape and np.allclose(log_q, generator.log_density(x), atol=1e-4)
    h = 1e-3
    for axis in range(2):
        step = h * np.eye(2)[axis]
        slope = (generator.log_density(x + step) - generator.log_density(x - step)) / (2 * h)
        # at the knots of a spline the gradient jumps, so differences across them are something in between
        assert np.isclose(gradient[:, axis], slope, atol=0.2, rtol=0.05).mean() > 0.8


@pytest.mark.parametrize("method, proposals", [("independence", 1), ("independence", 3), ("isir", 4)])
def test_populations_of_two_wells(generator, method, proposals):
    move = modejump.Move(generator, method, proposals=proposals, seed=5, stride=1)
    x, u, left = np.array([1.0, 0.5]), None, []
    for step in range(4000):
        outcome = move.attempt(x, double_well, step=step, reduced_potential=u)
        assert outcome.reduced_potential == pytest.approx(double_well(outcome.x[None])[0], abs=1e-9)
        x, u = outcome.x, outcome.reduced_potential
        left.append(x[0] < 0)
    blocks = np.reshape(left, (40, 100)).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(40)
    assert abs(np.mean(left) - left_population()) < 4 * error < 0.1
    statistics = move.statistics()
    assert statistics.attempts == 4000 and statistics.likelihood == "exact"
    assert statistics.acceptance > 0.3 and len(move.log_weights()) == statistics.proposals == 4000 * proposals
    move.reset_statistics()
    assert move.statistics().attempts == 0 and np.isnan(move.statistics().acceptance)


def test_a_walk_in_latent_space_weighs_two_wells(generator):
    move = modejump.Move(generator, "latent_walk", widths=[0.05, 0.5], seed=5)
    x, u, left = np.array([1.0, 0.5]), None, []
    for step in range(8000):
        outcome = move.attempt(x, double_well, step=step, reduced_potential=u)
        x, u = outcome.x, outcome.reduced_potential
        left.append(x[0] < 0)
    blocks = np.reshape(left, (40, 200)).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(40)
    assert abs(np.mean(left) - left_population()) < 4 * error < 0.15
    assert move.statistics().acceptance > 0.3 and len(move.log_weights()) == 0


@pytest.mark.parametrize(
    "method, settings",
    [
        ("annealed", {"stages": 4, "kernel_step": 0.01}),
        ("annealed", {"stages": 3, "moves": 2, "kernel_step": 0.005, "leapfrog": 2}),
        ("latent_walk", {"widths": [0.2], "leapfrog": 5}),
    ],
)
def test_moves_with_gradients_weigh_two_wells(generator, method, settings):
    move = modejump.Move(generator, method, seed=9, **settings)
    walk = modejump.Move(generator, "latent_walk", widths=[0.05, 0.5], seed=6)
    x, u, left = np.array([1.0, 0.5]), None, []
    for step in range(2000):
        for kernel in (move, walk):
            outcome = kernel.attempt(x, double_well, step=step, reduced_potential=u, gradient=double_well_gradient)
            x, u = outcome.x, outcome.reduced_potential
        left.append(x[0] < 0)
    error = np.std([block.mean() for block in np.array_split(left, 20)], ddof=1) / 20**0.5
    assert abs(np.mean(left) - left_population()) < 4 * error < 0.15
    assert move.statistics().acceptance > 0.2
    with pytest.raises(ValueError, match="requires `gradient`"):
        move.attempt(x, double_well, step=0)
    with pytest.raises(ZeroDivisionError):
        move.attempt(x, double_well, step=0, gradient=lambda x: 1 / 0)
    with pytest.raises(ValueError, match=r"shapes \(1,\) and \(1,\)"):
        move.attempt(x, double_well, step=0, gradient=lambda x: (double_well(x), double_well(x)))
    if method == "annealed":
        with pytest.raises(modejump.Error, match="gradient of the reduced potential is not finite"):
            move.attempt(x, double_well, step=0, gradient=lambda x: (double_well(x), np.full_like(x, np.nan)))


def test_a_driven_move_takes_its_bath_along(generator):
    """A bath that is normal about 2 x_0, 8 widths apart in the two wells: it changes no population of x, and follows it."""
    steps, width = 8, 0.5
    move = modejump.Move(generator, "driven", steps=steps, seed=3)
    rng = np.random.default_rng(4)
    bath = np.zeros(1)

    def potential(x):
        return double_well(x) + 0.5 * ((bath[0] - 2 * x[:, 0]) / width) ** 2

    def relax(x, stage):
        assert 0 <= stage < steps - 1 and x.shape == (2,)
        bath[0] = 2 * x[0] + width * rng.normal()
        return potential(x[None])[0]

    x, left = np.array([1.0, 0.5]), []
    bath[0] = 2.0
    for step in range(6000):
        kept = bath[0]
        outcome = move.attempt(x, potential, step=step, relax=relax)
        if outcome.accepted:
            x = outcome.x
        else:
            bath[0] = kept
        left.append(x[0] < 0)
    statistics = move.statistics()
    assert abs(np.mean(left) - left_population()) < 5 * np.std([c.mean() for c in np.array_split(left, 20)], ddof=1) / 20**0.5
    assert abs(statistics.expected_acceptance - statistics.acceptance) < 0.03 and statistics.acceptance > 0.1
    with pytest.raises(ValueError, match="requires `relax`"):
        move.attempt(x, potential, step=0)
    with pytest.raises(ZeroDivisionError):
        move.attempt(x, potential, step=0, relax=lambda x, stage: 1 / 0)
    with pytest.raises(modejump.Error, match="0 steps"):
        modejump.Move(generator, "driven", steps=0)
    with pytest.raises(ValueError, match="steps requires"):
        modejump.Move(generator, steps=3)


@pytest.mark.parametrize("mode", [None, lambda x: int(x[0] > 0)])
def test_jumps_between_modes_weigh_two_wells(mode):
    move = modejump.Move(modejump.Model(MODES), mode=mode, seed=5)
    walk = modejump.Move(modejump.Model(DOUBLE_WELL), "latent_walk", widths=[0.3], seed=6)
    x, u, left = np.array([1.0, 0.5]), None, []
    for step in range(4000):
        for kernel in (move, walk):
            outcome = kernel.attempt(x, double_well, step=step, reduced_potential=u)
            x, u = outcome.x, outcome.reduced_potential
        left.append(x[0] < 0)
    blocks = np.reshape(left, (40, 100)).mean(axis=1)
    error = blocks.std(ddof=1) / np.sqrt(40)
    assert abs(np.mean(left) - left_population()) < 4 * error < 0.1
    assert move.statistics().acceptance > 0.4 and move.statistics().wrong_mode < 40


def test_a_function_of_the_mode_gets_the_shape_of_the_model(ala2):
    shapes = set()

    def mode(x):
        shapes.add(x.shape)
        return 0

    move = modejump.Move(modejump.Model(MODELS / "ala2" / "modes.safetensors"), mode=mode, seed=1)
    move.attempt(ala2.sample(1, seed=1)[0][0], lambda x: np.zeros(len(x)), step=0)
    assert shapes == {(22, 3)}


def test_what_a_function_of_the_mode_raises_is_raised_and_nothing_moves():
    move = modejump.Move(modejump.Model(MODES), mode=lambda x: 1 / 0)
    x = np.array([1.0, 0.5])
    with pytest.raises(ZeroDivisionError):
        move.attempt(x, double_well, step=0)
    nowhere = modejump.Move(modejump.Model(MODES), mode=lambda x: -1)
    outcome = nowhere.attempt(x, double_well, step=0)
    assert (outcome.fate, outcome.accepted) == ("wrong_mode", False) and (outcome.x == x).all()


def test_what_a_function_of_the_mode_raises_is_raised_in_its_own_thread(monkeypatch):
    """Also if another thread's attempt runs before this one's looks for what was raised."""
    this = threading.current_thread()

    def mode(x):
        if threading.current_thread() is this:
            raise ValueError("of this thread")
        return int(x[0] > 0)

    move, x, fates = modejump.Move(modejump.Model(MODES), mode=mode, seed=5), np.array([1.0, 0.5]), []
    attempt = modejump.move._attempt

    def and_then_another(*arguments):
        attempt(*arguments)
        if threading.current_thread() is this:
            with ThreadPoolExecutor(1) as other:
                fates.append(other.submit(move.attempt, x, double_well, step=1).result().fate)

    monkeypatch.setattr(modejump.move, "_attempt", and_then_another)
    with pytest.raises(ValueError, match="of this thread"):
        move.attempt(x, double_well, step=0)
    assert fates[0] in ("accepted", "rejected")


def test_an_attempt_is_a_function_of_seed_step_and_replica(generator):
    def outcome(seed=1, step=7, replica=0):
        return modejump.Move(generator, seed=seed).attempt([1.0, 0.5], double_well, step=step, replica=replica)

    first = outcome()
    assert outcome().log_density_proposed == first.log_density_proposed
    for other in (outcome(seed=2), outcome(step=8), outcome(replica=1)):
        assert other.log_density_proposed != first.log_density_proposed


def test_the_configuration_is_left_alone(generator):
    x = np.array([1.0, 0.5])
    move = modejump.Move(generator, seed=5)
    outcomes = [move.attempt(x, double_well, step=step) for step in range(30)]
    assert (x == [1.0, 0.5]).all()
    for outcome in outcomes:
        assert outcome.accepted == (outcome.fate == "accepted") == (not np.array_equal(outcome.x, x))
    assert {True, False} == {outcome.accepted for outcome in outcomes}


def test_ctrl_c_during_an_attempt_is_raised(monkeypatch):
    """While the library works Python notes it, and handles it when a potential is called: before its first line."""
    model = modejump.Model(ALA2)
    move, x, dropped = modejump.Move(model, proposals=500, seed=1), model.sample(1)[0][0], []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(unraisable.err_msg or ""))
    for k in range(12):
        with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.02 + 0.003 * k):
            for step in range(10_000):
                move.attempt(x, lambda x: np.zeros(len(x)), step=step)
    assert not [message for message in dropped if "ctypes callback" in message]


def test_an_exception_whose_text_is_no_text_is_raised_again(generator):
    def fails(_):
        raise ValueError("cannot read /data/\udce9.dat")

    move = modejump.Move(generator, proposals=4, seed=1)
    for step in range(20):
        with pytest.raises(ValueError, match="cannot read"):
            move.attempt(np.array([1.0, 0.5]), fails, step=step, reduced_potential=1.0)


@pytest.mark.parametrize(
    "within",
    [
        lambda move, x: move.attempt([1.0, 0.5], double_well, step=1),
        lambda move, x: move.set_temperature(300),
        lambda move, x: move.statistics(),
    ],
)
def test_a_move_is_not_used_within_its_own_attempt(generator, within):
    move = modejump.Move(generator, seed=5)

    def calls_back(x):
        within(move, x)
        return double_well(x)

    with pytest.raises(modejump.Error, match="in use by the attempt that called back"):
        move.attempt([1.0, 0.5], calls_back, step=0, reduced_potential=0.25)
    assert move.attempt([1.0, 0.5], double_well, step=0).fate in ("accepted", "rejected")


def test_threads_wait_for_each_other(generator):
    """As a progress bar that asks for statistics while the dynamics runs."""
    move, over = modejump.Move(generator, seed=5), threading.Event()
    counts = []

    def watch():
        while not over.is_set():
            counts.append(move.statistics().attempts)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(2000):
        move.attempt([1.0, 0.5], double_well, step=step)
    over.set()
    watcher.join()
    assert counts == sorted(counts) and move.statistics().attempts == 2000


def test_what_was_raised_is_forgotten(generator):
    """With the locals of its frames; ctypes hides a part of the circle from the garbage collector."""
    class Large:
        pass

    def fails(x):
        large = Large()
        alive.append(weakref.ref(large))
        raise ValueError("no power")

    alive, move = [], modejump.Move(generator, seed=5)
    for step in range(5):
        with pytest.raises(ValueError, match="no power"):
            move.attempt([1.0, 0.5], fails, step=step, reduced_potential=0.25)
    gc.collect()
    assert [reference() for reference in alive] == [None] * 5


def test_what_the_potential_raises_is_raised_again(generator):
    class Interrupted(Exception):
        pass

    def fails(x):
        raise Interrupted("no power")

    move = modejump.Move(generator, seed=5)
    with pytest.raises(Interrupted, match="no power"):
        move.attempt([1.0, 0.5], fails, step=0, reduced_potential=0.25)
    for known in (0.25, None):
        with pytest.raises(ValueError, match=r"has shape \(\), not \(1,\)"):
            move.attempt([1.0, 0.5], lambda x: 1.0, step=0, reduced_potential=known)
    # the move goes on as if nothing had happened
    assert move.attempt([1.0, 0.5], double_well, step=1).fate in ("accepted", "rejected")
    assert move.attempt([1.0, 0.5], lambda x: np.full(len(x), np.nan), step=2, reduced_potential=0.25).fate == "non_finite"


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


def test_screens(generator):
    plain = modejump.Move(generator, seed=5)
    exact = modejump.Move(generator, seed=5, screen=generator)
    surrogate = modejump.Move(generator, seed=5, screen=generator, acceptance="surrogate")
    for step in range(60):
        first, *others = (move.attempt([1.0, 0.5], double_well, step=step) for move in (plain, exact, surrogate))
        for other in others:
            assert other.accepted == first.accepted and np.allclose(other.x, first.x, atol=1e-6)
    statistics = exact.statistics()
    assert 0 < statistics.screened < 60 and statistics.exact_evaluations == 2 * statistics.screened
    assert statistics.likelihood == "exact" and surrogate.statistics().likelihood == "surrogate"


def test_a_part_of_a_system_has_no_weights(generator):
    """Its potential is that of another environment in every attempt."""
    move = modejump.Move(generator, seed=3, partial=True)
    x = np.array([1.0, 0.5])
    for step in range(20):
        x = move.attempt(x, double_well, step=step).x
    statistics = move.statistics()
    assert statistics.attempts == 20 and np.isfinite(statistics.expected_acceptance)
    assert statistics.proposals == 0 and np.isnan(statistics.effective_sample_size) and np.isnan(statistics.mean_log_weight)


def test_moves_without_a_seed_have_one_of_their_own(generator):
    """Two that act at the same step must not decide by the same number."""
    x, moves = [1.0, 0.5], [modejump.Move(generator) for _ in range(2)]
    first, second = ([move.attempt(x, double_well, step=step).x for step in range(8)] for move in moves)
    assert not np.array_equal(first, second)


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


@pytest.fixture(scope="module")
def tarflow(tmp_path_factory):
    """Of five atoms, with weights that depend on the orientation and are no numbers of bfloat16."""
    return write_tarflow(tmp_path_factory.mktemp("tarflow") / "tarflow.safetensors", 5, 0.05, spread=0.2)


def test_a_tarflow_warns_of_centroids_that_are_not_its_noise(tarflow):
    """Its log q depends on the centroid: that of frames of a simulation, which are anywhere, means nothing in a weight."""
    model = modejump.Model(tarflow)
    assert model.centroid_noise == pytest.approx(0.05 / np.sqrt(5)) and modejump.Model(ALA2).centroid_noise == 0
    x, log_q = model.sample(4, seed=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(model.log_density(x) - log_q).max() < 1e-3
        modejump.Model(ALA2).log_density(modejump.Model(ALA2).sample(1)[0] + 1.0)
    for evaluate in (model.log_density, model.log_density_gradient, model.encode):
        with pytest.warns(UserWarning, match="centroids of x are up to 1.0. nm from the origin"):
            evaluate(x + 1.0)


def test_configurations_of_atoms_without_names(tarflow):
    model = modejump.Model(tarflow)
    x, log_q = model.sample(4, seed=3)
    assert model.shape == (15,) and np.abs(model.log_density(x.reshape(4, 5, 3)) - log_q).max() < 1e-3
    with pytest.raises(ValueError, match="expected configurations of shape"):
        model.log_density(x.reshape(4, 3, 5))
    for call, argument in ((model.log_density, x), (model.generate, x.reshape(4, 15))):
        with pytest.raises(TypeError, match="complex"):
            call(argument + 0j)


def test_one_configuration_of_three_coordinates_keeps_its_axis(tmp_path):
    model = modejump.Model(toy.write_box_model(tmp_path / "box.safetensors", -1.0, 1.0))
    for n in (1, 2, 3):
        x, log_q = model.sample(n, seed=3)
        found, gradient = model.log_density_gradient(x)
        assert found.shape == model.log_density(x).shape == (n,) and gradient.shape == x.shape == (n, 3)
        assert np.allclose(found, log_q)


def test_a_tarflow_in_other_precisions(tarflow):
    x, log_q = modejump.Model(tarflow).sample(20, seed=3)
    double, rounded = (modejump.Model(tarflow, precision=p).log_density(x) for p in ("f64", "bf16"))
    assert 0 < np.abs(log_q - double).max() < 1e-3 < np.abs(rounded - double).max() < 1
    x, log_q = modejump.Model(tarflow, precision="bf16").sample(20, seed=3)
    assert np.abs(modejump.Model(tarflow, precision="bf16").log_density(x) - log_q).max() < 1e-3


def test_samples_of_a_tarflow_by_iteration_are_those_in_turn_within_the_tolerance(tarflow):
    in_turn = modejump.Model(tarflow, precision="f64")
    x, _ = in_turn.sample(20, seed=3)
    for settings in ({"decoding": "jacobi"}, {"decoding": "gauss_seidel", "segment": 3}):
        y, log_q = modejump.Model(tarflow, precision="f64", decoding_tolerance=1e-3, **settings).sample(20, seed=3)
        assert np.abs(x - y).max() < 1e-3 and np.abs(log_q - in_turn.log_density(y)).max() < 1e-9
    y, _ = modejump.Model(tarflow, precision="f64", decoding="jacobi", decoding_passes=1).sample(20, seed=3)
    assert (y == x).all(), "one pass is not enough"


@pytest.mark.parametrize("method", ["independence", "isir"])
def test_weights_averaged_over_rotations_vary_less(tarflow, method):
    model, x = modejump.Model(tarflow), modejump.Model(tarflow).sample(1)[0][0]

    def springs(x):
        atoms = x.reshape(-1, 5, 3)
        return 0.5 * ((atoms - atoms.mean(axis=1, keepdims=True)) ** 2).sum(axis=(1, 2)) / 0.05**2

    spread = {}
    for rotations in (0, 16):
        move = modejump.Move(model, method, seed=4, stride=1, rotations=rotations)
        for step in range(200):
            x = move.attempt(x, springs, step=step).x
        spread[rotations] = move.log_weights().std()
        assert move.statistics().acceptance > 0.2
    assert spread[16] < 0.9 * spread[0]


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
        (lambda m: modejump.Model(__file__), modejump.Error, "test_core.py"),
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


def test_an_energy_has_no_samples():
    energy = modejump.Model(MODELS / "ala2" / "invariant-ebm.safetensors")
    with pytest.raises(modejump.Error, match="cannot draw samples"):
        energy.sample(1)
    x, _ = modejump.Model(ALA2).sample(3)
    assert np.isfinite(energy.log_density(x)).all()
