"""The adapter for openmmtools, which is not installed for the other tests: `make test-openmmtools`."""

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openmm import unit
from openmmtools import cache, mcmc, multistate, states

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import test_tarflow  # noqa: E402
import toy  # noqa: E402
from model_file import write_tarflow  # noqa: E402
from peroxide import OH, peroxide_system, start, write_peroxide_model  # noqa: E402

import modejump  # noqa: E402
from modejump.openmmtools import LearnedReplicaExchangeSampler, NeuralJumpMove  # noqa: E402


@pytest.fixture
def reference():
    """A cache of Contexts on the Reference platform."""
    return cache.ContextCache(platform=toy.platform()[0])


def dynamics(n_steps):
    return mcmc.LangevinDynamicsMove(timestep=2 * unit.femtosecond, collision_rate=5 / unit.picosecond, n_steps=n_steps)


def test_jumps_between_dynamics_find_the_populations(tmp_path, reference):
    model = toy.write_gaussian_model(tmp_path / "wide.safetensors", (0.3, 0.06, 0.06))
    jump = NeuralJumpMove(model, seed=7)
    move = mcmc.SequenceMove([dynamics(5), jump])
    state = states.ThermodynamicState(toy.two_well_system(), 300 * unit.kelvin)
    sampler = states.SamplerState(positions=[[toy.SEPARATION, 0, 0]] * unit.nanometer)
    left = []
    for _ in range(3000):
        move.apply(state, sampler, context_cache=reference)
        left.append(sampler.positions[0, 0] < 0 * unit.nanometer)
    statistics = jump.jump_statistics()
    assert statistics.attempts == 3000 and statistics.acceptance > 0.05
    assert jump.statistics == {"n_accepted": statistics.accepted, "n_proposed": 3000}
    assert abs(np.mean(left) - toy.LEFT) < 5 * toy.batch_error(left)


def test_a_move_goes_on_from_its_file_and_a_copy_has_numbers_of_its_own(tmp_path, reference):
    model = write_peroxide_model(tmp_path / "peroxide.safetensors")
    state = states.ThermodynamicState(peroxide_system(), 300 * unit.kelvin)
    jump = NeuralJumpMove(model, seed=7, proposals=2)
    sampler = states.SamplerState(positions=start() * unit.nanometer)
    for _ in range(10):
        jump.apply(state, sampler, context_cache=reference)

    def go_on(move, sampler):
        for _ in range(10):
            move.apply(state, sampler, context_cache=reference)
        return sampler.positions.value_in_unit(unit.nanometer)

    copies = [pickle.loads(pickle.dumps(jump)), copy.deepcopy(jump)]
    ends = [go_on(move, copy.deepcopy(sampler)) for move in [jump, *copies]]
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0], sampler.positions.value_in_unit(unit.nanometer))


@pytest.mark.parametrize("within", [lambda jump: jump, lambda jump: mcmc.SequenceMove([jump]), lambda jump: mcmc.WeightedMove([(jump, 1.0)])])
def test_states_that_no_parameter_tells_apart_have_moves_of_their_own(tmp_path, reference, within):
    """Equal numbers would bring the replicas to one configuration, as often as both accept."""
    model = toy.write_gaussian_model(tmp_path / "well.safetensors", (1.2 * toy.SIGMA,) * 3)
    system = toy.well_system()
    sampler = multistate.MultiStateSampler(mcmc_moves=within(NeuralJumpMove(model, seed=7)), number_of_iterations=30)
    sampler.energy_context_cache = sampler.sampler_context_cache = reference
    there = [states.SamplerState(positions=[[x, 0, 0]] * unit.nanometer) for x in (0.01, -0.02)]
    both = [states.ThermodynamicState(system, 300 * unit.kelvin) for _ in there]
    sampler.create(both, there, storage=multistate.MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=30))
    for _ in range(30):
        sampler.run(1)
        x = [state.positions.value_in_unit(unit.nanometer)[0] for state in sampler.sampler_states]
        assert np.abs(np.subtract(*x)).max() > 1e-9


def test_a_tarflow_is_loaded_as_asked_for(tmp_path, reference):
    """The first attempt of a copy is that of the move: precision and decoding are part of what is stored."""
    n = test_tarflow.N
    topology = {"names": ["C"] * n, "elements": ["C"] * n, "residues": ["TOY1"] * n, "bonds": []}
    model = write_tarflow(tmp_path / "tarflow.safetensors", n, test_tarflow.SD, spread=0.2, topology=topology)
    state = states.ThermodynamicState(test_tarflow.cluster(), 300 * unit.kelvin)

    def weight(jump):
        sampler = states.SamplerState(positions=test_tarflow.start() * unit.nanometer)
        jump.apply(state, sampler, context_cache=reference)
        return jump.jump_statistics().mean_log_weight

    rounded = NeuralJumpMove(model, seed=7, precision="bf16", decoding="gauss_seidel", segment=2)
    again = pickle.loads(pickle.dumps(rounded))
    again.copy = rounded.copy  # one that was not applied has numbers of its own
    found = weight(rounded)
    assert found == weight(again) and found != weight(NeuralJumpMove(model, seed=7))
    with pytest.raises(ValueError, match="f32, f64, bf16"):
        weight(NeuralJumpMove(model, precision="half"))


def test_a_constrained_bond_that_the_model_varies_is_refused(tmp_path, reference):
    jump = NeuralJumpMove(write_peroxide_model(tmp_path / "peroxide.safetensors"))
    state = states.ThermodynamicState(peroxide_system(OH), 300 * unit.kelvin)
    with pytest.raises(modejump.Error, match="constrained"):
        jump.apply(state, states.SamplerState(positions=start() * unit.nanometer), context_cache=reference)


def test_a_move_checks_the_constraints_of_every_system(tmp_path, reference):
    jump = NeuralJumpMove(write_peroxide_model(tmp_path / "peroxide.safetensors"))
    sampler = states.SamplerState(positions=start() * unit.nanometer)
    flexible, rigid = (states.ThermodynamicState(system, 300 * unit.kelvin) for system in (peroxide_system(), peroxide_system(OH)))
    jump.apply(flexible, sampler, context_cache=reference)
    with pytest.raises(modejump.Error, match="constrained"):
        jump.apply(rigid, sampler, context_cache=reference)
    jump.apply(flexible, sampler, context_cache=reference)
    assert jump.jump_statistics().attempts == 2 and copy.deepcopy(jump).jump_statistics().attempts == 2


@pytest.mark.parametrize(("particles", "told"), [([0, 1, 2, 0], "particle 0 is listed twice"), ([0, 1, 2, 4], "particle 4 is out of range"), ([0, 1], "4 atoms")])
def test_particles_that_cannot_be_the_model_s_are_refused(tmp_path, reference, particles, told):
    model = write_peroxide_model(tmp_path / "peroxide.safetensors")
    state, begin = states.ThermodynamicState(peroxide_system(), 300 * unit.kelvin), states.SamplerState(positions=start() * unit.nanometer)
    with pytest.raises(ValueError, match=told):
        NeuralJumpMove(model, particles=particles).apply(state, begin, context_cache=reference)
    sampler = exchanging(tmp_path, reference, [state, states.ThermodynamicState(peroxide_system(), 400 * unit.kelvin)], begin, model)
    sampler.set_maps(sampler._maps, particles=particles)
    with pytest.raises(ValueError, match=told):
        sampler.run()


def exchanging(tmp_path, reference, thermodynamic, begin, model, **options):
    """Learned exchange by the identity."""
    sampler = LearnedReplicaExchangeSampler(mcmc_moves=dynamics(50), number_of_iterations=3, **options)
    sampler.energy_context_cache = sampler.sampler_context_cache = reference
    sampler.create(thermodynamic, [begin] * len(thermodynamic), storage=multistate.MultiStateReporter(str(tmp_path / "run.nc"), checkpoint_interval=3))
    model = modejump.Model(model)
    sampler.set_maps([modejump.Bijection(model, model)] * (len(thermodynamic) - 1), seed=3)
    return sampler


def test_exchanges_check_the_constraints_of_every_state(tmp_path, reference):
    both = [states.ThermodynamicState(peroxide_system(*bond), 300 * unit.kelvin) for bond in ((), (OH,))]
    sampler = exchanging(tmp_path, reference, both, states.SamplerState(positions=start() * unit.nanometer), write_peroxide_model(tmp_path / "m.safetensors"))
    with pytest.raises(ValueError, match="before the first iteration"):
        sampler.exchange_statistics(0)
    with pytest.raises(ValueError, match="state 1 has other constraints"):
        sampler.run()


def test_every_exchange_of_an_equilibration_has_numbers_of_its_own(tmp_path, reference):
    """openmmtools does not count the iterations of an equilibration."""
    model = toy.write_gaussian_model(tmp_path / "gaussian.safetensors")
    ladder = [states.ThermodynamicState(toy.well_system(), t * unit.kelvin) for t in (300, 310, 320, 330)]
    begin = states.SamplerState(positions=[[0.01, 0.0, 0.0]] * unit.nanometer)
    sampler = exchanging(tmp_path, reference, ladder, begin, model, replica_mixing_scheme="swap-neighbors", locality=1)  # whose energies are known only near each state
    steps = []
    attempt = LearnedReplicaExchangeSampler._exchange

    def counted(self, k):
        steps.append((k, self._step()))
        return attempt(self, k)

    sampler._exchange = counted.__get__(sampler)
    sampler.equilibrate(20)
    sampler.run()
    assert len(steps) == len(set(steps)) == 23 * 3 and [step for k, step in steps[-9:] if k == 0] == [1, 2, 3]
    assert sampler.exchange_statistics(0).accepted > 10


def test_a_jump_is_a_sampler_s_move_by_itself(tmp_path, reference):
    """openmmtools shares the statistics of moves, and with them which random numbers were used."""
    model = toy.write_gaussian_model(tmp_path / "gaussian.safetensors")
    sampler = multistate.MultiStateSampler(mcmc_moves=NeuralJumpMove(model, seed=7), number_of_iterations=5)
    sampler.energy_context_cache = sampler.sampler_context_cache = reference
    thermodynamic = [states.ThermodynamicState(toy.well_system(), t * unit.kelvin) for t in (300, 310)]
    begin = states.SamplerState(positions=[[0.01, 0.0, 0.0]] * unit.nanometer)
    sampler.create(thermodynamic, [begin, begin], storage=multistate.MultiStateReporter(str(tmp_path / "jumps.nc")))
    sampler.run()
    counts = [move.statistics for move in sampler.mcmc_moves]
    assert [count["n_proposed"] for count in counts] == [5, 5] and counts[0]["n_accepted"] == 5


def test_exact_maps_are_always_exchanged_and_keep_both_ensembles(tmp_path, reference):
    files = [tmp_path / "cold.safetensors", tmp_path / "hot.safetensors"]
    widths = [toy.SIGMA, toy.SIGMA * math.sqrt(1.5)]
    models = [modejump.Model(toy.write_gaussian_model(f, (w,) * 3)) for f, w in zip(files, widths)]
    bijection = modejump.Bijection(*models)

    def run(folder, iterations):
        sampler = LearnedReplicaExchangeSampler(mcmc_moves=dynamics(50), number_of_iterations=iterations)
        sampler.set_maps([bijection], seed=3)
        sampler.energy_context_cache = sampler.sampler_context_cache = reference
        thermodynamic = [states.ThermodynamicState(toy.well_system(), t * unit.kelvin) for t in (300, 450)]
        begin = states.SamplerState(positions=[[0.01, 0.0, 0.0]] * unit.nanometer)
        storage = multistate.MultiStateReporter(str(tmp_path / folder), checkpoint_interval=iterations)
        sampler.create(thermodynamic, [begin], storage=storage)
        squares = [[], []]
        for _ in range(iterations):
            sampler.run(1)
            for replica, state in enumerate(sampler._replica_thermodynamic_states):
                x = sampler.sampler_states[replica].positions.value_in_unit(unit.nanometer)
                squares[state].append((x**2).mean())
        return sampler, squares

    sampler, squares = run("run.nc", 400)
    statistics = sampler.exchange_statistics(0)
    assert statistics.attempts == statistics.accepted == 400
    sampler.set_maps([bijection])
    drawn = sampler.exchange_seed
    sampler.set_maps([bijection])
    assert sampler.exchange_seed != drawn
    for values, width in zip(squares, widths):
        assert abs(np.mean(values) - width**2) < 5 * toy.batch_error(values, 20)
    wrong = LearnedReplicaExchangeSampler(mcmc_moves=dynamics(5), number_of_iterations=1)
    thermodynamic = [states.ThermodynamicState(toy.well_system(), t * unit.kelvin) for t in (300, 450)]
    begin = states.SamplerState(positions=[[0.01, 0.0, 0.0]] * unit.nanometer)
    wrong.create(thermodynamic, [begin], storage=multistate.MultiStateReporter(str(tmp_path / "wrong.nc")))
    with pytest.raises(ValueError, match="use set_maps"):
        wrong.run(1)


@pytest.mark.parametrize("ranks", [1, 2])
def test_replicas_on_mpi_ranks_keep_both_ensembles(tmp_path, ranks):
    """openmmtools gives each rank its replicas; the exchanges are made on one and told to all."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    launcher = [] if ranks == 1 else [str(mpiexec), "-n", str(ranks)]
    script = Path(__file__).with_name("exchange_on_ranks.py")
    done = subprocess.run([*launcher, sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert found["ranks"] == ranks and found["attempts"] == found["accepted"] == 300
    for values, temperature in zip(found["squares"], (300, 450)):
        expected = toy.SIGMA**2 * temperature / 300
        assert abs(np.mean(values) - expected) < 5 * toy.batch_error(np.array(values), 20)
