"""Maps between ensembles and exchanges through them: without an engine, and as OpenMM's replica exchange."""

import math

import numpy as np
import openmm
import pytest
import toy
from openmm import app, unit
from peroxide import OH, PEROXIDE, exact_energy, exact_positive, peroxide_system, start, torsion_of
from peroxide import write_peroxide_model

import modejump

HOT = 600.0


@pytest.fixture(scope="module")
def wells(tmp_path_factory):
    """Models of the harmonic well at 300 K and at 450 K: the map between them is exact."""
    folder = tmp_path_factory.mktemp("wells")
    cold = toy.write_gaussian_model(folder / "cold.safetensors")
    hot = toy.write_gaussian_model(folder / "hot.safetensors", (toy.SIGMA * math.sqrt(1.5),) * 3)
    return modejump.Model(cold), modejump.Model(hot)


@pytest.fixture(scope="module")
def peroxides(tmp_path_factory):
    """Of hydrogen peroxide at 300 K and at HOT, flexible and with rigid O-H bonds."""
    folder = tmp_path_factory.mktemp("peroxides")
    bonds = [[a, b, PEROXIDE.oh] for a, b in OH]
    widen = math.sqrt(HOT / 300)

    def pair(kind, constraints):
        paths = [folder / f"{kind}-{name}.safetensors" for name in ("cold", "hot")]
        widths = (1.0, widen)
        models = [write_peroxide_model(p, constraints, widen=w) for p, w in zip(paths, widths)]
        return [modejump.Model(model) for model in models]

    return {"flexible": pair("flexible", ()), "rigid": pair("rigid", bonds)}


def topology(names, symbols):
    result = app.Topology()
    residue = result.addResidue("HOH", result.addChain())
    for name, symbol in zip(names, symbols):
        result.addAtom(name, app.Element.getBySymbol(symbol), residue)
    return result


def well_simulation(system=None):
    integrator = toy.langevin(0.005, friction=1.0)
    sim = app.Simulation(topology("C", "C"), system or toy.well_system(), integrator, *toy.platform())
    sim.context.setPositions([[0.01, 0.0, 0.0]])
    sim.context.setVelocitiesToTemperature(300.0, 1)
    return sim


def peroxide_simulation(constrained=(), jump=None):
    atoms = topology(("H1", "O1", "O2", "H2"), "HOOH")
    system = peroxide_system(constrained)
    if jump is not None:
        system.addForce(jump)
    sim = app.Simulation(atoms, system, toy.langevin(0.0005, friction=2.0), *toy.platform())
    sim.context.setPositions(start())
    sim.context.setVelocitiesToTemperature(300.0, 1)
    return sim


def assert_mean(values, exact, what):
    mean, error = np.mean(values), toy.batch_error(values)
    assert error > 0 and abs(mean - exact) < 5 * error, f"{what}: {mean:.5f} +- {error:.5f}, exact {exact:.5f}"


def harmonic(sigma):
    return lambda x: 0.5 * (x**2).sum(axis=(1, 2)) / sigma**2


def test_a_bijection_maps_there_and_back(peroxides):
    cold, hot = peroxides["flexible"]
    bijection = modejump.Bijection(cold, hot)
    x = np.array([start(0.3), start(2.0)]) + 0.5
    x[:, 0, 0] += 0.002
    y, log_det = bijection.map(x)
    back, log_back = bijection.inverse(y)
    assert y.shape == x.shape and np.abs(back - x).max() < 1e-9 and np.allclose(log_det, -log_back)
    # what bonds and angles deviate by grows, the torsion and the first atom stay
    stretch = np.linalg.norm(y[0, 0] - y[0, 1]) - PEROXIDE.oh
    assert stretch == pytest.approx(math.sqrt(2) * (np.linalg.norm(x[0, 0] - x[0, 1]) - PEROXIDE.oh), rel=1e-6)
    assert torsion_of(y[1]) == pytest.approx(torsion_of(x[1])) and np.allclose(y[:, 0], x[:, 0])
    same, log_det = bijection.map(np.full((4, 3), np.nan))
    assert np.isnan(same).all() and log_det == -math.inf
    with pytest.raises(ValueError, match=r"\(4, 3\)"):
        bijection.map(np.zeros((3, 3)))


def test_models_of_other_spaces_make_no_map(wells, peroxides):
    with pytest.raises(modejump.Error, match="same latent space"):
        modejump.Bijection(wells[0], peroxides["flexible"][0])


def test_an_exact_map_is_always_exchanged(wells):
    exchange = modejump.Exchange(modejump.Bijection(*wells), seed=3)
    potentials = [harmonic(toy.SIGMA), harmonic(toy.SIGMA * math.sqrt(1.5))]
    a, b = np.array([[0.01, 0.02, -0.03]]), np.array([[0.05, 0.0, 0.04]])
    outcome = exchange.attempt(a, b, potentials, step=0)
    assert outcome.accepted and abs(outcome.log_acceptance) < 1e-9
    assert np.allclose(outcome.b, a * math.sqrt(1.5)) and np.allclose(outcome.a, b / math.sqrt(1.5))
    assert outcome.reduced_potential_b == pytest.approx(potentials[1](outcome.b[None])[0])
    statistics = exchange.statistics()
    assert statistics.attempts == statistics.accepted == statistics.proposals == 1
    exchange.reset_statistics()
    assert exchange.statistics().attempts == 0


@toy.since("ReplicaExchangeSampler")
def test_exchanges_without_a_seed_decide_by_numbers_of_their_own(wells):
    """As those of the pairs of a ladder have to, which are tried at one step."""
    identity = modejump.Bijection(wells[0], wells[0])
    a, b = np.zeros((1, 3)), np.full((1, 3), 0.04)
    potentials = [harmonic(toy.SIGMA), harmonic(toy.SIGMA * math.sqrt(2))]

    def decisions(exchange, **options):
        return [exchange.attempt(a, b, potentials, step=step, **options).accepted for step in range(60)]

    first, second = modejump.Exchange(identity), modejump.Exchange(identity)
    assert first.seed != second.seed and decisions(first) != decisions(second)
    assert decisions(first) == decisions(modejump.Exchange(identity, seed=first.seed)) != decisions(first, replicas=(1, 2))
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    samplers = [modejump.LearnedReplicaExchangeSampler(states, well_simulation(), 10, [identity]) for _ in range(2)]
    assert samplers[0].seed != samplers[1].seed


def test_potentials_that_fail_leave_both_replicas_alone(wells):
    exchange = modejump.Exchange(modejump.Bijection(*wells))
    a, b = np.array([[0.01, 0.02, -0.03]]), np.array([[0.05, 0.0, 0.04]])
    fine, nan = harmonic(0.05), lambda x: np.full(len(x), np.nan)

    def broken(x):
        raise ArithmeticError("the engine is on strike")

    with pytest.raises(ArithmeticError, match="strike"):
        exchange.attempt(a, b, [fine, broken], step=0, reduced_potentials=(0.0, 0.0))
    outcome = exchange.attempt(a, b, [fine, nan], step=0, reduced_potentials=(0.0, 0.0))
    assert outcome.fate == "non_finite" and np.array_equal(outcome.a, a) and np.array_equal(outcome.b, b)
    with pytest.raises(modejump.Error, match="two different replicas"):
        exchange.attempt(a, b, [fine, fine], step=0, replicas=(1, 1))


@toy.since("ReplicaExchangeSampler")
@pytest.mark.parametrize("kind", ["temperature", "width"])
def test_exact_maps_between_temperatures_and_between_hamiltonians(wells, kind):
    """Every exchange is accepted, and both states keep their widths."""
    if kind == "temperature":
        system, states = None, [{"temperature": 300.0}, {"temperature": 450.0}]
    else:
        system = openmm.System()
        system.addParticle(toy.MASS)
        system.addForce(toy.external("k/2*(x^2+y^2+z^2)", k=toy.KT / toy.SIGMA**2))
        states = [{"k": toy.KT / toy.SIGMA**2}, {"k": toy.KT / toy.SIGMA**2 / 1.5}]
    maps = [modejump.Bijection(*wells)]
    sampler = modejump.LearnedReplicaExchangeSampler(states, well_simulation(system), 20, maps, seed=8)
    squares = [[], []]

    def record(sampler):
        for replica, conformation in enumerate(sampler.replicaConformation):
            x = conformation.getPositions(asNumpy=True)._value
            squares[sampler.replicaStateIndex[replica]].append((x**2).mean())

    sampler.reporters.append(record)
    sampler.simulate(800)
    statistics = sampler.statistics(0)
    assert statistics.attempts == statistics.accepted == 800 and statistics.effective_sample_size > 0.999
    for values, factor in zip(squares, (1.0, 1.5)):
        assert_mean(values, factor * toy.SIGMA**2, "mean square")


@toy.since("ReplicaExchangeSampler")
@pytest.mark.parametrize("kind, constrained, bonds, freedom", [("flexible", (), 3, 12), ("rigid", OH, 1, 10)])
def test_energy_temperature_and_torsion_of_both_temperatures(request, peroxides, kind, constrained, bonds, freedom):
    """Exchanges neither cool nor heat, with and without constraints; torsions, which jumps in either replica turn, have
    their exact populations."""
    model = request.getfixturevalue("peroxide_model" if kind == "flexible" else "rigid_model")
    jump = modejump.MonteCarloModeJump(model, 10, seed=6)
    sim = peroxide_simulation(constrained, jump)
    states = [{"temperature": 300.0}, {"temperature": HOT}]
    maps = [modejump.Bijection(*peroxides[kind])]
    sampler = modejump.LearnedReplicaExchangeSampler(states, sim, 30, maps, seed=4)
    modejump.assign_replica_streams(sampler)
    found = [([], [], []), ([], [], [])]

    def record(sampler):
        for replica, conformation in enumerate(sampler.replicaConformation):
            energies, temperatures, positive = found[sampler.replicaStateIndex[replica]]
            energies.append(sampler.replicaStateEnergy[replica][0].value_in_unit(unit.kilojoule_per_mole))
            v = conformation.getVelocities(asNumpy=True)._value
            kinetic = 0.5 * (np.array(PEROXIDE.masses)[:, None] * v**2).sum()
            temperatures.append(2 * kinetic / (freedom * toy.KT / 300.0))
            positive.append(torsion_of(conformation.getPositions(asNumpy=True)._value) > 0)

    sampler.reporters.append(record)
    sampler.simulate(1500)
    assert sampler.statistics(0).acceptance > 0.3 and jump.statistics(sim.context).acceptance > 0.1
    for (energies, temperatures, positive), temperature in zip(found, (300.0, HOT)):
        assert_mean(energies, exact_energy(bonds, temperature), f"energy at {temperature} K")
        assert_mean(temperatures, temperature, "temperature")
        assert_mean(positive, exact_positive(temperature), f"population at {temperature} K")


@toy.since("ReplicaExchangeSampler")
def test_particles_that_the_map_leaves_alone_go_with_their_replica(wells):
    """The first particle has no map: it makes exchanges rarer, and both particles keep their widths at both temperatures."""
    system = openmm.System()
    force = openmm.CustomExternalForce("k/2*(x^2+y^2+z^2)")
    force.addGlobalParameter("k", toy.KT / toy.SIGMA**2)
    for particle in range(2):
        system.addParticle(toy.MASS)
        force.addParticle(particle)
    system.addForce(force)
    integrator = toy.langevin(0.005, friction=1.0)
    sim = app.Simulation(topology(("C1", "C2"), "CC"), system, integrator, *toy.platform())
    sim.context.setPositions([[0.01, 0.0, 0.0], [0.0, 0.01, 0.0]])
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    maps = [modejump.Bijection(*wells)]
    sampler = modejump.LearnedReplicaExchangeSampler(states, sim, 20, maps, seed=8, particles=[1])
    squares = [[], []]

    def record(sampler):
        for replica, conformation in enumerate(sampler.replicaConformation):
            x = conformation.getPositions(asNumpy=True)._value
            squares[sampler.replicaStateIndex[replica]].append((x**2).mean(axis=1))

    sampler.reporters.append(record)
    sampler.simulate(1500)
    assert 0.5 < sampler.statistics(0).acceptance < 0.95
    for values, factor in zip(squares, (1.0, 1.5)):
        for particle in range(2):
            assert_mean(np.array(values)[:, particle], factor * toy.SIGMA**2, f"mean square of particle {particle}")


def nowhere_far_from_the_wells(state):
    x = state.getPositions(asNumpy=True)._value
    if abs(x[0, 0]) > 6 * toy.SIGMA:
        raise ValueError("no energy of this geometry")
    return 0.0, np.zeros_like(x)


@toy.since("ReplicaExchangeSampler")
def test_a_configuration_without_an_energy_is_not_exchanged(wells, tmp_path):
    system = toy.well_system()
    system.addForce(openmm.PythonForce(nowhere_far_from_the_wells))
    wide = modejump.Model(toy.write_gaussian_model(tmp_path / "wide.safetensors", (10 * toy.SIGMA,) * 3))
    states = [{"temperature": 300.0}, {"temperature": 330.0}]
    sampler = modejump.LearnedReplicaExchangeSampler(states, well_simulation(system), 10, [modejump.Bijection(wells[0], wide)], seed=3)
    with pytest.warns(UserWarning, match="rejected: .*no energy of this geometry"):
        sampler.simulate(40)
    assert sampler.statistics(0).non_finite > 0


@toy.since("ReplicaExchangeSampler")
def test_exchanges_are_a_function_of_seed_and_iteration(wells, tmp_path):
    """Of three states, with OpenMM's own reporter."""
    states = [{"temperature": t} for t in (300.0, 450.0, 310.0)]
    maps = [modejump.Bijection(*wells), modejump.Bijection(*reversed(wells))]

    def run(seed, folder):
        sampler = modejump.LearnedReplicaExchangeSampler(states, well_simulation(), 10, maps, seed=seed)
        sampler.reporters.append(app.ReplicaExchangeReporter(str(tmp_path / folder), 1, sampler))
        sampler.simulate(30)
        assert sorted(sampler.replicaStateIndex) == [0, 1, 2]
        assert [sampler.statistics(k).attempts for k in (0, 1)] == [30, 30]
        return [c.getPositions(asNumpy=True)._value for c in sampler.replicaConformation]

    first = run(1, "first")
    assert np.array_equal(first, run(1, "again")) and not np.array_equal(first, run(2, "other"))
    assert (tmp_path / "first" / "log.csv").exists()


@toy.since("ReplicaExchangeSampler")
def test_what_cannot_be_exchanged_is_refused(wells, peroxides):
    sampler = modejump.LearnedReplicaExchangeSampler
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    between_wells = [modejump.Bijection(*wells)]
    with pytest.raises(ValueError, match="2 states have 1 pairs"):
        sampler(states, well_simulation(), 10, between_wells * 2)
    with pytest.raises(ValueError, match="1 atoms, but the number of particles is 4"):
        sampler(states, peroxide_simulation(), 10, between_wells)
    with pytest.raises(ValueError, match="particle 0 is H, but atom 0 of the models .* is C"):
        sampler(states, peroxide_simulation(), 10, between_wells, particles=[0])
    with pytest.raises(ValueError, match="is not within the molecule"):
        sampler(states, peroxide_simulation(OH), 10, between_wells, particles=[0])
    with pytest.raises(modejump.Error, match="constrained"):
        sampler(states, peroxide_simulation(OH), 10, [modejump.Bijection(*peroxides["flexible"])])
    pressure = toy.well_system()
    periodic = openmm.NonbondedForce()
    periodic.addParticle(0.0, 1.0, 0.0)
    periodic.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    periodic.setCutoffDistance(0.8)
    pressure.addForce(periodic)
    pressure.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    with pytest.raises(ValueError, match="MonteCarloBarostat.*constant volume"):
        sampler(states, well_simulation(pressure), 10, between_wells)
    held = toy.well_system()
    held.setParticleMass(0, 0)
    with pytest.raises(ValueError, match="particle 0 has no mass"):
        sampler(states, well_simulation(held), 10, between_wells)
    watching = toy.well_system()
    tilt = toy.external("x")
    tilt.setForceGroup(5)
    watching.addForce(tilt)
    simulation = well_simulation(watching)
    simulation.integrator.setIntegrationForceGroups({0})
    with pytest.raises(ValueError, match="force group 5 .* counts 1 times in the energy of state 0.* but 0 times"):
        sampler(states, simulation, 10, between_wells)
    sampler([{**state, "groups": {0}} for state in states], simulation, 10, between_wells)
    differing = [{**states[0], "groups": {0}}, {**states[1], "groups": {0: 1.0, 5: 0.5}}]
    with pytest.raises(ValueError, match="force group 5 .* counts 0.5 times in the energy of state 1.*a parameter of the Context"):
        sampler(differing, simulation, 10, between_wells)


def simulation_of(integrator):
    simulation = app.Simulation(topology("C", "C"), toy.well_system(), integrator, *toy.platform())
    simulation.context.setPositions([[0.01, 0.0, 0.0]])
    return simulation


@toy.since("ReplicaExchangeSampler")
def test_states_whose_dynamics_is_at_another_temperature_are_refused(wells):
    """OpenMM's own sampler leaves integrators that it cannot set at their temperature, without a word."""
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    maps = [modejump.Bijection(*wells)]
    for integrator, message in (
        (openmm.MTSLangevinIntegrator(300, 1, 0.001, [(0, 1)]), "state 1 is at 450 K, but with MTSLangevinIntegrator its dynamics is at 300 K"),
        (openmm.VerletIntegrator(0.001), "state 0 is at 300 K.* no temperature"),
    ):
        with pytest.raises(ValueError, match=message):
            modejump.LearnedReplicaExchangeSampler(states, simulation_of(integrator), 10, maps)
    simulation = simulation_of(toy.langevin(temperature=310.0))
    modejump.LearnedReplicaExchangeSampler(states, simulation, 10, maps)
    assert toy.positions(simulation.context)[0][0] == pytest.approx(0.01)


@toy.since("ReplicaExchangeSampler")
def test_integrators_of_another_potential_exchange_nothing(wells):
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    integrator = openmm.CustomIntegrator(0.001)
    integrator.addGlobalVariable("temperature", 300.0)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    with pytest.raises(openmm.OpenMMException, match="scale forces by 0.5"):
        modejump.LearnedReplicaExchangeSampler(states, simulation_of(integrator), 10, [modejump.Bijection(*wells)])


@toy.since("ReplicaExchangeSampler")
@pytest.mark.parametrize("kind", ["variable", "computed", "compound"])
def test_steps_of_different_lengths_are_refused(wells, kind):
    states = [{"temperature": 300.0}, {"temperature": 450.0}]
    integrator = openmm.VariableLangevinIntegrator(300.0, 1.0, 0.001)
    if kind == "computed":
        integrator = toy.leapfrog(0.001, "temperature", 300.0)
        integrator.addComputeGlobal("dt", "0.001")
    if kind == "compound":
        inner, integrator = integrator, openmm.CompoundIntegrator()
        integrator.addIntegrator(toy.langevin())
        integrator.addIntegrator(inner)
    with pytest.raises(ValueError, match=f"{type(integrator).__name__} changes its time step"):
        modejump.LearnedReplicaExchangeSampler(states, simulation_of(integrator), 10, [modejump.Bijection(*wells)])
