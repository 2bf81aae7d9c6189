"""modejump.Move without an engine: each method weighs two wells."""

import numpy as np
import pytest
from double_well import DOUBLE_WELL, MODELS, MODES, double_well, double_well_gradient, left_population

import modejump


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
