"""Steerable models: one file for every temperature, in Python's moves and in replica exchange."""

from pathlib import Path

import numpy as np
import pytest
import toy
from model_file import scale_layer, write_model
from openmm import app

import modejump

DOUBLE_WELL = Path(__file__).resolve().parents[2] / "models" / "double-well"


def double_well(x):
    return 10 * (x[:, 0] ** 2 - 1) ** 2 + 0.5 * x[:, 0] + 5 * (x[:, 1] - 0.5 * x[:, 0]) ** 2


def mean_by_quadrature(tau):
    x = np.linspace(-4, 4, 20001)
    u = (10 * (x**2 - 1) ** 2 + 0.5 * x) / tau
    return np.sum(u * np.exp(-u)) / np.sum(np.exp(-u)) + 0.5


def test_a_model_at_another_temperature():
    model = modejump.Model(DOUBLE_WELL / "steerable.safetensors")
    assert (model.dimension, model.auxiliary, model.latent_temperature) == (4, 2, 1.0)
    assert model.shape == (4,) and model.move_shape == (2,)
    cold = model.at_temperature(300.0)
    assert cold.latent_temperature == 0.5 and cold.metadata == model.metadata
    x, log_q = cold.sample(200, seed=3)
    difference = log_q - 2 * model.log_density(x)
    assert np.ptp(difference) < 1e-3
    plain = modejump.Model(DOUBLE_WELL / "generator.safetensors")
    assert (plain.auxiliary, plain.latent_temperature) == (0, 0.0)
    with pytest.raises(modejump.Error, match="cannot be used at another temperature"):
        plain.at_temperature(300.0)


def test_a_move_follows_the_temperature():
    move = modejump.Move(modejump.Model(DOUBLE_WELL / "steerable.safetensors"), seed=5, stride=1)
    with pytest.raises(modejump.Error, match="positive"):
        move.set_temperature(0.0)
    for kelvin in (300.0, 900.0):
        move.set_temperature(kelvin)
        move.reset_statistics()
        tau, x, u, found = kelvin / 300.0, np.array([1.0, 0.5]), None, []
        for step in range(4000):
            outcome = move.attempt(x, lambda x: double_well(x) / tau, step=step, reduced_potential=u)
            x, u = outcome.x, outcome.reduced_potential
            found.append(u)
        blocks = np.reshape(found, (40, 100)).mean(axis=1)
        error = blocks.std(ddof=1) / np.sqrt(40)
        assert x.shape == (2,) and abs(np.mean(found) - mean_by_quadrature(tau)) < 4.5 * error < 0.2
        assert move.statistics().acceptance > 0.6


@toy.since("ReplicaExchangeSampler")
def test_replicas_at_two_temperatures_share_one_model(tmp_path):
    """A Gaussian model of the harmonic well, with auxiliary coordinates: right at every temperature, so every jump is accepted."""
    layers = [scale_layer([0, 1, 2], (0.0,) * 3, (toy.SIGMA,) * 3)]
    coordinates = {"kind": "cartesian", "dimension": 6}
    model = write_model(tmp_path / "steerable.safetensors", coordinates, layers, [], steering={"auxiliary": 3})
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(model, 5, seed=12)
    system.addForce(jump)
    topology = app.Topology()
    topology.addAtom("C", app.Element.getBySymbol("C"), topology.addResidue("TOY", topology.addChain()))
    sim = app.Simulation(topology, system, toy.langevin(0.005, friction=1.0), *toy.platform())
    sim.context.setPositions([[0.0, 0.0, 0.0]])
    sim.context.setVelocitiesToTemperature(300.0, 1)
    temperatures = (300.0, 450.0)
    sampler = app.ReplicaExchangeSampler([{"temperature": t} for t in temperatures], sim, 11)
    modejump.assign_replica_streams(sampler)
    squares = {0: [], 1: []}

    def record(sampler):
        for replica, state in enumerate(sampler.replicaConformation):
            x = state.getPositions(asNumpy=True)._value[0]
            squares[sampler.replicaStateIndex[replica]].append((x**2).mean())

    sampler.reporters.append(record)
    sampler.simulate(2000)
    assert jump.statistics(sim.context).acceptance == 1.0
    for index, temperature in enumerate(temperatures):
        mean, error = np.mean(squares[index]), toy.batch_error(squares[index])
        exact = toy.SIGMA**2 * temperature / 300.0
        assert abs(mean - exact) < 5 * error, f"{temperature} K: {mean} +- {error}, exact {exact}"
