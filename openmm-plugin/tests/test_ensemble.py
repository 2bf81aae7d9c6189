"""Populations, potential energy and temperature against values known by integration. Fixed seeds; the bounds are 5 standard
errors (level 1e-6 for normal errors)."""



import numpy as np
import openmm
import pytest
import toy
from peroxide import OH, PEROXIDE, exact_energy, exact_positive, peroxide_system, start, torsion_of

import modejump


def assert_mean(values, exact, what):
    error = toy.batch_error(values)
    mean = np.mean(values)
    assert error > 0 and abs(mean - exact) < 5 * error, f"{what}: {mean:.4f} +- {error:.4f}, exact {exact:.4f}"


def test_generator_that_is_the_target_is_always_accepted(gaussian_model):
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.01, 0.02, 0.03]])
    for _ in range(200):
        assert jump.attempt(context)
        assert abs(jump.statistics(context).last_log_acceptance) < 1e-5
    assert jump.statistics(context).effective_sample_size > 1 - 1e-9


@pytest.mark.parametrize("proposals", [1, 4])
@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_populations_of_two_wells(tmp_path, name, proposals):
    wide = (0.3, 0.06, 0.06)
    model = toy.write_gaussian_model(tmp_path / "wide.safetensors", wide)
    system = toy.two_well_system()
    jump = modejump.MonteCarloModeJump(model, 5, proposals=proposals, seed=7)
    system.addForce(jump)
    integrator = toy.langevin(0.002)
    context = toy.make_context(system, integrator, name, [[toy.SEPARATION, 0, 0]])
    left = []
    rounds = 20000 if name == "Reference" else toy.rounds(6000 if name == "CPU" else 16000, name) // proposals
    for _ in range(rounds):
        integrator.step(5)
        left.append(toy.positions(context)[0, 0] < 0)
    statistics = jump.statistics(context)
    crossings = np.count_nonzero(np.diff(left))
    assert statistics.acceptance > 0.05 and crossings > min(100, rounds / 40)
    assert_mean(left, toy.LEFT, "population of the left well")


def run_molecule(system, freedom, rounds, make_integrator=toy.langevin):
    """Ten steps a round from the start: the Context, potential energies in kJ/mol, temperatures in K, and whether the torsion is positive."""
    # Little friction, so that heat that a jump takes or brings is not replaced at once.
    integrator = make_integrator(0.0005, friction=1.0)
    context = toy.make_context(system, integrator, x=start())
    integrator.step(500)
    energies, temperatures, positive = [], [], []
    for _ in range(rounds):
        integrator.step(10)
        state = context.getState(energy=True, positions=True)
        energies.append(state.getPotentialEnergy()._value)
        temperatures.append(2 * state.getKineticEnergy()._value / freedom / toy.KT * 300)
        positive.append(torsion_of(state.getPositions(asNumpy=True)._value) > 0)
    return context, energies, temperatures, positive


ENSEMBLES = {"flexible": ((), "peroxide_model", 3, 12), "rigid": (OH, "rigid_model", 1, 10)}


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_energy_temperature_and_torsion_of_a_molecule(request, kind):
    """T1, together with test_accepted.py: jumps neither cool nor heat, and the torsion has its exact populations."""
    constrained, model, flexible_bonds, freedom = ENSEMBLES[kind]
    system = peroxide_system(constrained)
    jump = modejump.MonteCarloModeJump(request.getfixturevalue(model), 5, seed=3)
    system.addForce(jump)
    context, energies, temperatures, positive = run_molecule(system, freedom, 40000)
    statistics = jump.statistics(context)
    assert statistics.acceptance > 0.1 and np.count_nonzero(np.diff(positive)) > 500
    assert_mean(positive, exact_positive(), "P(phi > 0)")
    assert_mean(energies, exact_energy(flexible_bonds), "potential energy")
    assert_mean(temperatures, 300.0, "temperature")


def test_bonds_that_a_custom_integrator_constrains_turn_with_a_jump(rigid_model):
    """Had it kept the directions of bonds before a jump, the molecule would be torn apart."""
    system = peroxide_system(OH)
    jump = modejump.MonteCarloModeJump(rigid_model, 5, seed=3)
    system.addForce(jump)
    context, energies, temperatures, positive = run_molecule(system, 10, 12000, toy.splitting)
    assert jump.statistics(context).acceptance > 0.1
    assert_mean(positive, exact_positive(), "P(phi > 0)")
    assert_mean(energies, exact_energy(1), "potential energy")
    assert_mean(temperatures, 300.0, "temperature")


def test_particles_that_stay_keep_their_ensemble(rigid_model):
    """A subset in another order than the System's, tied to a heavy partner, with a virtual site on it."""
    system = openmm.System()
    order = [4, 2, 0, 3]
    masses = dict(zip(order, PEROXIDE.masses))
    for i in range(5):
        system.addParticle(masses.get(i, 20.0))
    system.addParticle(0.0)
    system.setVirtualSite(5, openmm.TwoParticleAverageSite(2, 0, 0.5, 0.5))
    tie = openmm.HarmonicBondForce()
    tie.addBond(1, 0, 0.3, 500.0)
    system.addForce(tie)
    wells = openmm.CustomExternalForce("50*(x^2+y^2+z^2)")
    wells.addParticle(1)
    system.addForce(wells)
    molecule = peroxide_system()
    for force in molecule.getForces():
        copy = openmm.XmlSerializer.clone(force)
        relabel(copy, order)
        system.addForce(copy)
    for a, b in OH:
        system.addConstraint(order[a], order[b], PEROXIDE.oh)
    jump = modejump.MonteCarloModeJump(rigid_model, 10, particles=order, seed=5)
    system.addForce(jump)
    integrator = toy.langevin(0.0005, friction=10.0)
    x = np.zeros((6, 3))
    x[order] = start()
    x[1] = x[0] + [0, 0.3, 0]
    context = openmm.Context(system, integrator, *toy.platform())
    context.setPositions(x)
    context.computeVirtualSites()
    context.setVelocitiesToTemperature(300.0, 1)
    temperatures, positive = [], []
    for _ in range(15000):
        integrator.step(10)
        state = context.getState(energy=True, positions=True)
        x = state.getPositions(asNumpy=True)._value
        temperatures.append(2 * state.getKineticEnergy()._value / 13 / toy.KT * 300)
        positive.append(torsion_of(x[order]) > 0)
    assert np.abs(x[5] - 0.5 * (x[2] + x[0])).max() < 1e-12
    assert jump.statistics(context).acceptance > 0.05
    assert_mean(temperatures, 300.0, "temperature")
    assert_mean(positive, exact_positive(), "P(phi > 0)")


def relabel(force, order):
    """Moves a bonded force from atoms 0-3 to the particles in `order`."""
    if isinstance(force, openmm.HarmonicBondForce):
        for i in range(force.getNumBonds()):
            a, b, *rest = force.getBondParameters(i)
            force.setBondParameters(i, order[a], order[b], *rest)
    elif isinstance(force, openmm.HarmonicAngleForce):
        for i in range(force.getNumAngles()):
            a, b, c, *rest = force.getAngleParameters(i)
            force.setAngleParameters(i, order[a], order[b], order[c], *rest)
    else:
        for i in range(force.getNumTorsions()):
            a, b, c, d, *rest = force.getTorsionParameters(i)
            force.setTorsionParameters(i, *(order[k] for k in (a, b, c, d)), *rest)


def test_a_molecule_across_the_periodic_boundary_moves_as_one(peroxide_model):
    """T8: atoms in different images of the box; the same jumps are accepted as in the middle of it."""

    def run(shift, wrap):
        system = peroxide_system()
        system.setDefaultPeriodicBoxVectors([2, 0, 0], [0, 2, 0], [0.3, 0.2, 2])
        for force in system.getForces():
            force.setUsesPeriodicBoundaryConditions(True)
        jump = modejump.MonteCarloModeJump(peroxide_model, 0, seed=5)
        system.addForce(jump)
        x = start() + shift
        if wrap:
            x[3] -= [2, 0, 0]
            x[0] += [0.3, 0.2, 2]
        context = toy.make_context(system, toy.langevin(), x=x)
        accepted = [jump.attempt(context) for _ in range(60)]
        return accepted, toy.positions(context), jump.log_weights(context)

    accepted, x, weights = run(1.0, wrap=False)
    accepted_wrapped, x_wrapped, weights_wrapped = run(1.0, wrap=True)
    assert accepted == accepted_wrapped and sum(accepted) > 3
    assert np.abs(weights - weights_wrapped).max() < toy.within(1e-6, 1e-3)
    # Up to lattice vectors of the whole molecule.
    assert np.abs((x - x[1]) - (x_wrapped - x_wrapped[1])).max() < toy.within(1e-9, 1e-5)


THERMOSTATS = {
    "LangevinMiddle": lambda: openmm.LangevinMiddleIntegrator(300, 1, 0.001),
    "Langevin": lambda: openmm.LangevinIntegrator(300, 1, 0.001),
    "VariableLangevin": lambda: openmm.VariableLangevinIntegrator(300, 1, 0.001),
    "Brownian": lambda: openmm.BrownianIntegrator(300, 10, 0.0001),
    "NoseHoover": lambda: openmm.NoseHooverIntegrator(300, 1, 0.001),
    "DPD": lambda: openmm.DPDIntegrator(300, 1, 1, 0.001),
    "Custom kT": lambda: toy.leapfrog(0.001, "kT", toy.KT),
    "Custom temperature": lambda: toy.leapfrog(0.001, "temperature", 300),
    "Compound": lambda: compound(),
    "Verlet": lambda: openmm.VerletIntegrator(0.001),
    "VariableVerlet": lambda: openmm.VariableVerletIntegrator(0.001),
}


def compound():
    integrator = openmm.CompoundIntegrator()
    integrator.addIntegrator(openmm.LangevinMiddleIntegrator(300, 1, 0.001))
    integrator.addIntegrator(openmm.VerletIntegrator(0.001))
    return integrator


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=toy.since("DPDIntegrator")) if kind == "DPD" else kind for kind in THERMOSTATS])
def test_temperature_comes_from_the_integrator(gaussian_model, kind):
    """At 300 K the generator is the target: log alpha = 0 shows that the temperature was found. Velocities are redrawn."""
    system = toy.well_system()
    if "Verlet" in kind:
        system.addForce(openmm.AndersenThermostat(300.0, 1.0))
    is_variable = kind.startswith("Variable")
    jump = modejump.MonteCarloModeJump(gaussian_model, 0 if is_variable else 2, seed=2)
    system.addForce(jump)
    integrator = THERMOSTATS[kind]()
    context = toy.make_context(system, integrator, x=[[0.01, 0.02, 0.03]])
    if is_variable:
        for k in range(50):
            integrator.stepTo(0.01 * (k + 1))
            jump.attempt(context)
    else:
        integrator.step(101)
    statistics = jump.statistics(context)
    assert statistics.attempts == 50 and statistics.accepted == 50
    assert abs(statistics.last_log_acceptance) < 1e-5


def resized():
    integrator = toy.leapfrog(0.001, "kT", toy.KT)
    integrator.addComputeGlobal("dt", "0.001")
    return integrator


@pytest.mark.parametrize("kind", ["VariableLangevin", "VariableVerlet", "Compound", "Custom"])
def test_steps_of_different_lengths_are_refused(gaussian_model, kind):
    """Attempts by numbers of steps would come more often where steps are short; those at equal times do not."""
    inner = resized() if kind == "Custom" else THERMOSTATS["VariableLangevin" if kind == "Compound" else kind]()
    integrator = inner
    if kind == "Compound":
        integrator = compound()
        integrator.addIntegrator(inner)
    system = toy.well_system()
    system.addForce(openmm.AndersenThermostat(300.0, 1.0))
    system.addForce(modejump.MonteCarloModeJump(gaussian_model, 10, seed=2))
    with pytest.raises(openmm.OpenMMException, match="call attempt\\(\\) at equal times"):
        toy.make_context(system, integrator, x=[[0.01, 0.02, 0.03]])


def test_a_refused_frequency_is_not_in_force(gaussian_model):
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=2)
    system.addForce(jump)
    integrator = THERMOSTATS["VariableLangevin"]()
    context = toy.make_context(system, integrator, x=[[0.01, 0.02, 0.03]])
    jump.frequency = 10
    with pytest.raises(openmm.OpenMMException, match="call attempt\\(\\) at equal times"):
        jump.update_parameters_in_context(context)
    integrator.step(50)
    assert jump.statistics(context).attempts == 0


def test_attempts_at_equal_times_leave_variable_steps_their_ensemble(tmp_path):
    """Two wells of equal weight, one stiff, where steps are short: attempts by steps would leave 0.26 in it."""
    stiff, soft, away = 0.02, 0.1, 0.5
    wells = (
        f"-{toy.KT}*log(0.5*exp(-((x+{away})^2+y^2+z^2)/{2 * stiff**2})/{stiff**3}"
        f"+0.5*exp(-((x-{away})^2+y^2+z^2)/{2 * soft**2})/{soft**3}+1e-30)"
    )
    system = openmm.System()
    system.addParticle(12.011)
    system.addForce(toy.external(wells))
    model = toy.write_gaussian_model(tmp_path / "wide.safetensors", (0.45, 0.07, 0.07))
    jump = modejump.MonteCarloModeJump(model, 0, seed=11, proposals=32)
    system.addForce(jump)
    integrator = openmm.VariableLangevinIntegrator(300, 5.0, 1e-3)
    integrator.setRandomNumberSeed(3)
    context = toy.make_context(system, integrator, x=[[away, 0.0, 0.0]])
    found = []
    for k in range(4000):
        integrator.stepTo(0.1 * (k + 1))
        jump.attempt(context)
        found.append(toy.positions(context)[0, 0] < 0)
    error = toy.batch_error(found)
    assert jump.statistics(context).accepted > 200 and error < 0.05
    assert abs(np.mean(found) - 0.5) < 4 * error


def test_a_temperature_that_the_steps_compute_is_not_that_of_the_step_before(gaussian_model):
    """As replica exchange and simulated tempering set `temperature`: kT follows in the next step, and jumps do not wait for it."""
    integrator = toy.leapfrog(0.001, "kT", toy.KT)
    integrator.addGlobalVariable("temperature", 300.0)
    integrator.addComputeGlobal("kT", f"{toy.KT / 300}*temperature")
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 2, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, integrator, x=[[0.01, 0.02, 0.03]])
    integrator.step(101)
    assert abs(jump.statistics(context).last_log_acceptance) < 1e-5
    # at another temperature the generator is not the target
    integrator.setGlobalVariableByName("temperature", 600.0)
    jump.reset_statistics(context)
    log_acceptances = []
    for _ in range(20):
        integrator.setGlobalVariableByName("kT", toy.KT)  # as it is after a change of the state
        jump.attempt(context)
        log_acceptances.append(abs(jump.statistics(context).last_log_acceptance))
    assert max(log_acceptances) > 0.05


@toy.since("PythonForce")
def test_a_proposal_without_an_energy_is_rejected(gaussian_model, capfd):
    """What OpenMM cannot compute there ends no run; at the present configuration it does."""
    system = toy.well_system()

    def compute(state):
        x = state.getPositions(asNumpy=True)._value
        if abs(x[0, 0]) > 0.05:
            raise ValueError("no energy of this geometry")
        return 0.0, np.zeros_like(x)

    system.addForce(openmm.PythonForce(compute))
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.0, 0.0, 0.0]])
    found = [jump.attempt(context) for _ in range(60)]
    statistics = jump.statistics(context)
    told = capfd.readouterr().err
    assert statistics.non_finite > 5 and 5 < sum(found) == statistics.accepted
    assert told.count("could not compute the energy of a proposal") == 1 and "no energy of this geometry" in told
    assert abs(toy.positions(context)[0, 0]) <= 0.05
    with pytest.raises(Exception, match="no energy of this geometry"):
        context.setPositions([[0.2, 0.0, 0.0]])
        jump.attempt(context)


@toy.since("PythonForce")
def test_ctrl_c_while_python_computes_a_proposal_ends_the_run(gaussian_model):
    system = toy.well_system()

    def compute(state):
        x = state.getPositions(asNumpy=True)._value
        if abs(x[0, 0]) > 0.05:
            raise KeyboardInterrupt
        return 0.0, np.zeros_like(x)

    system.addForce(openmm.PythonForce(compute))
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.0, 0.0, 0.0]])
    with pytest.raises((openmm.OpenMMException, KeyboardInterrupt)):
        for _ in range(60):
            jump.attempt(context)
    assert jump.statistics(context).non_finite == 0


def test_a_centre_of_mass_that_stays_in_a_field_is_told(gaussian_model, capfd):
    for remover, field, massless in (True, True, False), (True, False, False), (False, True, False), (True, False, True), (False, False, True):
        system = toy.well_system() if field else openmm.System()
        if not field:
            system.addParticle(12.011)
        if massless:
            system.addParticle(0)
        if remover:
            system.addForce(openmm.CMMotionRemover())
        system.addForce(modejump.MonteCarloModeJump(gaussian_model, 10, particles=[0], seed=2))
        toy.make_context(system, toy.langevin(), x=[[0.01, 0.02, 0.03]] + massless * [[0.0, 0.0, 0.0]])
        assert ("removeCMMotion=False" in capfd.readouterr().err) == (remover and (field or massless))


def in_a_variable():
    force = openmm.CustomCVForce("2*height")
    force.addCollectiveVariable("height", toy.external("z"))
    return force


def of_one_particle(energy):
    force = openmm.CustomCompoundBondForce(1, energy)
    force.addBond([0])
    return force


def of_a_centroid():
    force = openmm.CustomCentroidBondForce(1, "x1^2")
    force.addGroup([0])
    force.addBond([0])
    return force


@pytest.mark.parametrize(
    "force, holds",
    [(in_a_variable, True), (lambda: of_one_particle("2*(z1-1)^2"), True), (lambda: of_one_particle("exp(-max(1, 2))"), False), (of_a_centroid, True)],
)
def test_a_field_within_another_force_is_seen(gaussian_model, capfd, force, holds):
    system = openmm.System()
    system.addParticle(12.011)
    system.addForce(force())
    system.addForce(openmm.CMMotionRemover())
    system.addForce(modejump.MonteCarloModeJump(gaussian_model, 10, particles=[0], seed=2))
    toy.make_context(system, toy.langevin(), x=[[0.01, 0.02, 0.03]])
    assert ("removeCMMotion=False" in capfd.readouterr().err) == holds


def test_only_integration_force_groups_count(gaussian_model):
    """T6: a force that the integrator does not follow must not decide."""
    system = toy.well_system()
    tilt = toy.external("1000*x")
    tilt.setForceGroup(1)
    system.addForce(tilt)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=2)
    system.addForce(jump)
    integrator = toy.langevin()
    integrator.setIntegrationForceGroups({0})
    context = toy.make_context(system, integrator, x=[[0.0, 0.0, 0.0]])
    assert all(jump.attempt(context) for _ in range(50))


def test_counters_tell_why_proposals_failed(tmp_path):
    """T6: energies that are not finite, and states outside the generator's support, are rejections with their names."""
    model = toy.write_box_model(tmp_path / "box.safetensors", -0.1, 0.1)
    system = toy.well_system()
    system.addForce(toy.external("log(x)"))  # NaN for x < 0
    jump = modejump.MonteCarloModeJump(model, 0, seed=2)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(), x=[[0.05, 0.0, 0.0]])
    for _ in range(60):
        jump.attempt(context)
    inside = jump.statistics(context)
    assert inside.non_finite > 10 and inside.accepted > 5
    assert np.count_nonzero(np.isneginf(jump.log_weights(context))) == inside.non_finite
    jump.reset_statistics(context)
    context.setPositions([[0.5, 0.0, 0.0]])
    assert not any(jump.attempt(context) for _ in range(10))
    assert jump.statistics(context).out_of_support == 10
    assert toy.positions(context)[0, 0] == 0.5


def test_a_barostat_shares_the_system(peroxide_model):
    """T10: both moves act in the same steps, and neither biases the molecule."""
    system = peroxide_system()
    system.setDefaultPeriodicBoxVectors([2, 0, 0], [0, 2, 0], [0, 0, 2])
    for force in system.getForces():
        force.setUsesPeriodicBoundaryConditions(True)
    for _ in range(30):
        system.addParticle(40.0)
    gas = openmm.NonbondedForce()
    gas.setNonbondedMethod(openmm.NonbondedForce.CutoffPeriodic)
    gas.setCutoffDistance(0.6)
    for i in range(34):
        gas.addParticle(0.0, 0.3, 0.5 if i > 3 else 0.0)
    system.addForce(gas)
    barostat = openmm.MonteCarloBarostat(100.0, 300.0, 5)
    barostat.setRandomNumberSeed(4)
    system.addForce(barostat)
    jump = modejump.MonteCarloModeJump(peroxide_model, 5, particles=range(4), seed=5)
    system.addForce(jump)
    grid = [[i, j, k] for i in range(4) for j in range(4) for k in range(2)][:30]
    x = np.vstack([start() + 1.0, np.array(grid) * [0.45, 0.45, 0.9] + 0.2])
    integrator = toy.langevin(0.0005, friction=10.0)
    context = toy.make_context(system, integrator, x=x)
    positive, volumes = [], []
    for _ in range(5000):
        integrator.step(5)
        state = context.getState(positions=True)
        positive.append(torsion_of(state.getPositions(asNumpy=True)._value[:4]) > 0)
        volumes.append(state.getPeriodicBoxVolume()._value)
    assert jump.statistics(context).acceptance > 0.05 and np.ptp(volumes) > 0.1
    assert_mean(positive, exact_positive(), "P(phi > 0)")
