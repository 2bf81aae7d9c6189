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


def cluster():
    system, springs = openmm.System(), openmm.HarmonicBondForce()
    for i in range(N):
        system.addParticle(12.0)
        for j in range(i):
            springs.addBond(i, j, 0.0, toy.KT / SD**2 / N)
    system.addForce(springs)
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
    """The flow is too wide along the first axis of space, which the springs do not know of."""
    model = write_tarflow(tmp_path / "aslant.safetensors", N, SD, stretch=np.array([2.0, 1.0, 1.0]))

    def run(rotations, rounds):
        system = cluster()
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
    assert_mean(energies, 1.5 * (N - 1) * toy.KT, "potential energy")


def test_averages_are_kept_by_xml_and_refused_where_they_are_wrong(tmp_path, gaussian_model):
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

    refuses("averages over orientations go with", annealing_stages=2)
    refuses("averages over orientations go with", latent_walk=[0.1])
    refuses("orientation", gaussian_model, toy.well_system())
    periodic = cluster()
    periodic.getForce(0).setUsesPeriodicBoundaryConditions(True)
    refuses("box|periodic", system=periodic)
    with pytest.raises(openmm.OpenMMException, match="1 orientation or more"):
        modejump.MonteCarloModeJump(model, rotations=-1)
