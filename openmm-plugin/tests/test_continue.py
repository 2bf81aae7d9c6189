"""Checkpoints, Contexts and replicas: randomness is a function of (seed, step, replica)."""

import gc
import io
from types import SimpleNamespace

import numpy as np
import openmm
import pytest
import toy
from openmm import app
from peroxide import peroxide_system, start

import modejump


def simulation(model, frequency=10, name=None, seed=6):
    system = peroxide_system()
    jump = modejump.MonteCarloModeJump(model, frequency, seed=seed)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(0.0005), name, start())
    return jump, context


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize("at", [0, 200, 205])
def test_a_checkpoint_continues_bit_for_bit(peroxide_model, name, at):
    """T3, T4: also at a step of an attempt, and in another Context with another history."""
    if name == "CPU" and toy.VERSION < (8, 3):
        pytest.skip("checkpoints of OpenMM 8.2 on the CPU platform lack its random numbers, with or without moves")
    jump, context = simulation(peroxide_model, name=name)
    context.getIntegrator().step(at)
    checkpoint = context.createCheckpoint()
    context.getIntegrator().step(300)
    x, v = toy.positions(context), toy.velocities(context)
    assert jump.statistics(context).accepted > 3

    context.loadCheckpoint(checkpoint)
    context.getIntegrator().step(300)
    assert np.array_equal(x, toy.positions(context)) and np.array_equal(v, toy.velocities(context))

    other_jump, other = simulation(peroxide_model, name=name)
    other.getIntegrator().step(777)
    other_jump.attempt(other)
    other.loadCheckpoint(checkpoint)
    other.getIntegrator().step(300)
    assert np.array_equal(x, toy.positions(other)) and np.array_equal(v, toy.velocities(other))


@pytest.mark.parametrize("proposals", [1, 3])
def test_proposals_drawn_ahead_are_the_same(peroxide_model, proposals):
    """Bit for bit, over several batches of proposals and after a jump back in time."""

    def run(draw_ahead):
        system = peroxide_system()
        jump = modejump.MonteCarloModeJump(peroxide_model, 2, proposals=proposals, seed=6, draw_ahead=draw_ahead)
        system.addForce(jump)
        context = toy.make_context(system, toy.langevin(0.0005), "Reference", start())
        checkpoint = context.createCheckpoint()
        context.getIntegrator().step(50)
        context.loadCheckpoint(checkpoint)
        context.getIntegrator().step(300)
        assert jump.draw_ahead == draw_ahead and jump.statistics(context).accepted > 3
        return toy.positions(context), toy.velocities(context)

    assert np.array_equal(run(False), run(True))


def test_a_state_continues_the_moves(peroxide_model):
    """A State holds no thermostat noise; with a Verlet integrator nothing else is missing."""

    def run(context, steps):
        context.getIntegrator().step(steps)
        return toy.positions(context)

    def fresh():
        system = peroxide_system()
        jump = modejump.MonteCarloModeJump(peroxide_model, 10, seed=6, temperature=300)
        system.addForce(jump)
        return toy.make_context(system, openmm.VerletIntegrator(0.0005), x=start())

    context = fresh()
    run(context, 105)
    state = context.getState(positions=True, velocities=True, parameters=True)
    end = run(context, 200)
    other = fresh()
    other.setState(state)
    # The first force evaluation after setState is on the same positions, so nothing is rounded differently.
    assert np.array_equal(end, run(other, 200))


def test_frequency_counts_the_steps_of_the_context(peroxide_model):
    """T4, T11: no attempt at step 0, with frequency 0, or while minimising, and setStepCount moves the grid."""
    jump, context = simulation(peroxide_model, frequency=10)
    step = context.getIntegrator().step
    step(10)
    assert jump.statistics(context).attempts == 0
    step(1)
    assert jump.statistics(context).attempts == 1
    context.setStepCount(1000)
    step(1)
    assert jump.statistics(context).attempts == 2
    jump.frequency = 0
    jump.update_parameters_in_context(context)
    step(50)
    assert jump.statistics(context).attempts == 0
    jump.frequency = 1
    jump.update_parameters_in_context(context)
    openmm.LocalEnergyMinimizer.minimize(context)
    assert jump.statistics(context).attempts == 0


def test_explicit_attempts_differ_from_each_other_and_repeat(peroxide_model):
    def run(steps):
        jump, context = simulation(peroxide_model, frequency=0)
        for _ in range(20):
            jump.attempt(context)
            context.getIntegrator().step(steps)
        return jump.log_weights(context), toy.positions(context)

    for steps in (0, 3):
        (weights, x), (again, x_again) = run(steps), run(steps)
        assert len(np.unique(weights)) == 20
        assert np.array_equal(weights, again) and np.array_equal(x, x_again)


def test_explicit_attempts_at_one_step_never_repeat(peroxide_model):
    """Random numbers came again after 2048 attempts at one step."""
    jump, context = simulation(peroxide_model, frequency=0)
    for _ in range(2100):
        jump.attempt(context)
    proposed = np.round(jump.log_weights(context), 6)
    assert len(proposed) == 2100 and len(np.unique(proposed)) > 2090


def test_two_contexts_are_independent(peroxide_model):
    """Interleaved or alone, each makes the same attempts; statistics are each one's own."""
    alone_jump, alone = simulation(peroxide_model, frequency=0)
    outcomes = [alone_jump.attempt(alone) for _ in range(30)]
    first_jump, first = simulation(peroxide_model, frequency=0)
    second_jump, second = simulation(peroxide_model, frequency=0, seed=99)
    interleaved = []
    for _ in range(30):
        interleaved.append(first_jump.attempt(first))
        second_jump.attempt(second)
        second_jump.attempt(second)
    assert outcomes == interleaved
    assert np.array_equal(toy.positions(alone), toy.positions(first))
    assert not np.array_equal(toy.positions(second), toy.positions(first))
    assert (first_jump.statistics(first).attempts, second_jump.statistics(second).attempts) == (30, 60)
    assert not np.array_equal(second_jump.log_weights(second)[:30], first_jump.log_weights(first))


def test_seed_zero_gives_each_context_numbers_of_its_own(peroxide_model):
    weights = []
    for _ in range(2):
        jump, context = simulation(peroxide_model, frequency=0, seed=0)
        jump.attempt(context)
        weights.append(jump.log_weights(context)[0])
    assert weights[0] != weights[1]


def test_two_moves_in_one_system_use_other_numbers(gaussian_model):
    system = toy.well_system()
    jumps = [modejump.MonteCarloModeJump(gaussian_model, 0, seed=2) for _ in range(2)]
    for jump in jumps:
        system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.0, 0.0, 0.0]])
    ends = []
    for jump in jumps:
        jump.attempt(context)
        ends.append(toy.positions(context))
    assert not np.array_equal(*ends)


def test_reinitialize_starts_statistics_anew_and_keeps_the_model(peroxide_model, tmp_path):
    """T12: the model is read once for each process, so it may even be gone by then."""
    path = tmp_path / "gone.safetensors"
    path.write_bytes(open(peroxide_model, "rb").read())
    jump, context = simulation(str(path))
    context.getIntegrator().step(101)
    assert jump.statistics(context).attempts == 10
    path.unlink()
    x = toy.positions(context)
    context.reinitialize(True)
    assert jump.statistics(context).attempts == 0 and np.array_equal(x, toy.positions(context))
    context.getIntegrator().step(20)
    assert jump.statistics(context).attempts > 0


def test_the_replica_chooses_the_numbers(peroxide_model):
    """T3: replicas that share a Context have equal steps, and must not be proposed the same."""

    def weights(replica, frequency):
        jump, context = simulation(peroxide_model, frequency)
        context.setParameter(modejump.MonteCarloModeJump.REPLICA, replica)
        if frequency == 0:
            jump.attempt(context)
        context.getIntegrator().step(11)
        return jump.log_weights(context)[0]

    for frequency in (0, 10):
        assert weights(1, frequency) == weights(1, frequency)
        assert len({weights(replica, frequency) for replica in (0, 1, 2, 4095)}) == 4


def different(jump, context):
    """How many different proposals there were; the molecule may be proposed elsewhere, so energies differ by their rounding."""
    return 1 + np.count_nonzero(np.diff(np.sort(jump.log_weights(context))) > toy.within(1e-6, 2e-4))


@pytest.mark.parametrize("way", ["state", "step count"])
def test_runs_from_one_state_jump_with_numbers_of_their_own(peroxide_model, capfd, way):
    """T3: their jumps were one and the same. With a seed they are, as a checkpoint has to continue, but not silently."""

    def run(seed, replica=lambda shot: 0):
        jump, context = simulation(peroxide_model, seed=seed)
        state = context.getState(positions=True, velocities=True)
        for shot in range(30):
            if way == "state":
                context.setState(state)
            else:
                context.setStepCount(0)
            context.setParameter(jump.REPLICA, replica(shot))
            context.getIntegrator().step(11)
        return different(jump, context)

    assert run(0) == 30 and run(6, replica=lambda shot: shot) == 30
    assert capfd.readouterr().err == ""
    assert run(6) == 1
    told = capfd.readouterr().err
    assert told.count("repeat the random numbers") == 1 and "step 10 comes after one at step 10" in told and "ModeJumpReplica" in told


@pytest.mark.parametrize("seed, proposals, warnings", [(0, 6, 0), (6, 3, 1)])
def test_explicit_attempts_of_runs_from_one_state(peroxide_model, capfd, seed, proposals, warnings):
    jump, context = simulation(peroxide_model, frequency=0, seed=seed)
    state = context.getState(positions=True, velocities=True)
    for _ in range(2):
        context.setState(state)
        for steps in (0, 0, 3):
            context.getIntegrator().step(steps)
            jump.attempt(context)
    assert different(jump, context) == proposals
    assert capfd.readouterr().err.count("repeat the random numbers") == warnings


@toy.since("ReplicaExchangeSampler")
@pytest.mark.parametrize("seed, proposals, warnings", [(0, 60, 0), (12, 30, 1)])
def test_replicas_without_streams_of_their_own(peroxide_model, capfd, seed, proposals, warnings):
    """T3"""
    jump, context = simulation(peroxide_model, frequency=5, seed=seed)
    sim = SimpleNamespace(context=context, integrator=context.getIntegrator())
    app.ReplicaExchangeSampler([{"temperature": 300.0}] * 2, sim, 5).simulate(31)
    assert jump.statistics(context).attempts == 60 and different(jump, context) == proposals
    assert capfd.readouterr().err.count("assign_replica_streams") == warnings


@toy.since("ReplicaExchangeSampler")
def test_replica_exchange_samples_both_temperatures(gaussian_model):
    """T2, T3: temperatures reach the move through the integrator, replicas have their own numbers."""
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 5, seed=12)
    system.addForce(jump)
    topology = app.Topology()
    topology.addAtom("C", app.Element.getBySymbol("C"), topology.addResidue("TOY", topology.addChain()))
    sim = app.Simulation(topology, system, toy.langevin(0.005, friction=1.0), *toy.platform())
    sim.context.setPositions([[0.0, 0.0, 0.0]])
    sim.context.setVelocitiesToTemperature(300.0, 1)
    sampler = app.ReplicaExchangeSampler([{"temperature": 300.0}, {"temperature": 450.0}], sim, 11)
    modejump.assign_replica_streams(sampler)
    squares = {0: [], 1: []}
    equal = 0

    def record(sampler):
        found = []
        for replica, state in enumerate(sampler.replicaConformation):
            x = state.getPositions(asNumpy=True)._value[0]
            found.append(x)
            squares[sampler.replicaStateIndex[replica]].append((x**2).mean())
        nonlocal equal
        equal += np.array_equal(*found)

    sampler.reporters.append(record)
    sampler.simulate(3000)
    assert jump.statistics(sim.context).acceptance > 0.5 and equal == 0
    for index, temperature in enumerate((300.0, 450.0)):
        mean, error = np.mean(squares[index]), toy.batch_error(squares[index])
        exact = toy.SIGMA**2 * temperature / 300.0
        assert abs(mean - exact) < 5 * error, f"{temperature} K: {mean} +- {error}, exact {exact}"


def test_reporter_writes_counts_and_transitions(peroxide_model):
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    for name, element in (("H1", "H"), ("O1", "O"), ("O2", "O"), ("H2", "H")):
        topology.addAtom(name, app.Element.getBySymbol(element), residue)
    system = peroxide_system()
    jump = modejump.MonteCarloModeJump(peroxide_model, 5, seed=3)
    system.addForce(jump)
    sim = app.Simulation(topology, system, toy.langevin(0.0005), *toy.platform())
    sim.context.setPositions(start())
    sim.context.setVelocitiesToTemperature(300.0, 1)
    out = io.StringIO()
    reporter = modejump.ModeJumpReporter(out, 5, torsions={"phi": ((0, 1, 2, 3), 0.0, np.pi)})
    sim.reporters.append(reporter)
    sim.step(500)
    lines = out.getvalue().splitlines()
    header = lines[0].lstrip("#").replace('"', "").split(",")
    last = dict(zip(header, lines[-1].split(",")))
    statistics = jump.statistics(sim.context)
    assert len(lines) == 101 and int(last["Step"]) == 500
    assert int(last["Attempts"]) == statistics.attempts == 99
    assert int(last["Accepted"]) == statistics.accepted > 0
    assert float(last["Mean Log Weight"]) == pytest.approx(statistics.mean_log_weight, rel=1e-5)
    assert int(last["Transitions phi"]) == reporter.transitions["phi"] > 3


def test_a_reporter_of_the_second_of_two_moves_writes_to_a_path(gaussian_model, tmp_path):
    topology = app.Topology()
    topology.addAtom("C", app.element.carbon, topology.addResidue("TOY", topology.addChain()))
    system = toy.well_system()
    jumps = [modejump.MonteCarloModeJump(gaussian_model, frequency, seed=3) for frequency in (5, 2)]
    for jump in jumps:
        system.addForce(jump)
    sim = app.Simulation(topology, system, toy.langevin(), *toy.platform())
    sim.context.setPositions([[0.0, 0.0, 0.0]])
    files = [tmp_path / "first.csv", tmp_path / "second.csv"]
    sim.reporters.append(modejump.ModeJumpReporter(files[0], 21))
    sim.reporters.append(modejump.ModeJumpReporter(files[1], 21, force=system.getForce(system.getNumForces() - 1)))
    sim.step(21)
    attempts = [file.read_text().splitlines()[1].split(",")[1] for file in files]
    assert attempts == ["4", "10"]
    with pytest.raises(TypeError, match="not a MonteCarloModeJump"):
        modejump.ModeJumpReporter(files[0], 1, force=system.getForce(0))


@pytest.mark.parametrize(
    ("interval", "torsion", "message"),
    [
        (0, None, "at least 1 step"),
        (5, (4, 6, 8, 14), "expected \\(atoms, low, high\\)"),
        (5, ((4, 6, 8), 0.0, 1.0), "expected four"),
        (5, ((4, 6, 8, 8), 0.0, 1.0), "expected four"),
        (5, ((4, 6, 8, 14), 0.0, 130.0), "use radians"),
        (5, ((4, 6, 8, 14), float("nan"), 1.0), "use radians"),
    ],
)
def test_a_reporter_refuses_what_it_cannot_report_and_leaves_the_file(tmp_path, interval, torsion, message):
    file = tmp_path / "kept.csv"
    file.write_text("of an earlier run")
    with pytest.raises(ValueError, match=message):
        modejump.ModeJumpReporter(file, interval, torsions=torsion and {"phi": torsion})
    assert file.read_text() == "of an earlier run"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_reporter_whose_file_cannot_be_opened_says_that_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        modejump.ModeJumpReporter(tmp_path / "nowhere" / "file.csv", 5)
    gc.collect()
