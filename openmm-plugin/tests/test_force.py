"""The Force as an object: Python front, XML, and what it refuses."""

import copy
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import openmm
import pytest
import toy
from model_file import scale_layer, write_model
from openmm import app, unit
from peroxide import OH, PEROXIDE, peroxide_system, start, write_peroxide_model

import modejump


def full(model, **options):
    return modejump.MonteCarloModeJump(
        model, 25, particles=[3, 2, 1, 0], proposals=3, seed=77, temperature=310 * unit.kelvin, draw_ahead=True, **options
    )


def assert_same(a, b):
    for name in ("frequency", "particles", "proposals", "seed", "temperature", "default_replica", "draw_ahead", "model_hash"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("embed", [False, True])
def test_xml_round_trip(peroxide_model, embed):
    """T13"""
    jump = full(peroxide_model, embed=embed)
    jump.setName("jumps & <more>")
    jump.setForceGroup(7)
    jump.default_replica = 5
    xml = openmm.XmlSerializer.serialize(jump)
    assert ("data=" in xml) == embed and jump.model_hash in xml and len(jump.model_hash) == 32
    back = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    assert_same(jump, back)
    assert back.getName() == "jumps & <more>" and back.getForceGroup() == 7
    assert openmm.XmlSerializer.serialize(back) == xml


def test_settings_whose_feature_is_off_are_kept(peroxide_model):
    values = {
        "relaxation_steps": 33,
        "relaxation_timestep": 0.002,
        "annealing_moves": 3,
        "annealing_step": 1e-6,
        "leapfrog": 4,
        "segment": 7,
        "decoding_tolerance": 3e-4,
        "decoding_passes": 9,
    }
    jump = modejump.MonteCarloModeJump(peroxide_model)
    plain = openmm.XmlSerializer.serialize(jump)
    for name, value in values.items():
        assert getattr(jump, name) != value
        setattr(jump, name, value)
    xml = openmm.XmlSerializer.serialize(jump)
    for twin in (copy.deepcopy(jump), pickle.loads(pickle.dumps(jump))):
        assert {name: getattr(twin, name) for name in values} == values
        assert openmm.XmlSerializer.serialize(twin) == xml
    for name in values:
        setattr(jump, name, getattr(modejump.MonteCarloModeJump(peroxide_model), name))
    assert openmm.XmlSerializer.serialize(jump) == plain


def test_copies_of_force_and_system(peroxide_model):
    jump = full(peroxide_model)
    twin = copy.deepcopy(jump)
    assert isinstance(twin, modejump.MonteCarloModeJump)
    assert_same(jump, twin)
    system = peroxide_system()
    system.addForce(jump)
    twin_system = copy.deepcopy(system)
    found = [f for f in twin_system.getForces() if modejump.MonteCarloModeJump.isinstance(f)]
    assert len(found) == 1
    assert_same(jump, modejump.MonteCarloModeJump.cast(found[0]))


def test_embedded_model_needs_no_file(peroxide_model, tmp_path):
    path = tmp_path / "there.safetensors"
    path.write_bytes(open(peroxide_model, "rb").read())
    system = peroxide_system()
    system.addForce(modejump.MonteCarloModeJump(path, 0, seed=3, embed=True))
    xml = openmm.XmlSerializer.serialize(system)
    path.unlink()
    # In another process, which cannot have the model in memory.
    code = (
        "import sys, openmm, toy, modejump; from peroxide import start\n"
        "system = openmm.XmlSerializer.deserialize(sys.stdin.read())\n"
        "jump = modejump.MonteCarloModeJump.cast(system.getForce(system.getNumForces() - 1))\n"
        "context = toy.make_context(system, toy.langevin(), x=start())\n"
        "print(sum(jump.attempt(context) for _ in range(40)))"
    )
    here = str(pathlib.Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], input=xml, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 2


def test_a_program_may_have_a_decimal_comma(peroxide_model, tmp_path):
    (tmp_path / "comma").write_text('LC_NUMERIC\ndecimal_point ","\nthousands_sep "."\ngrouping 3;3\nEND LC_NUMERIC\n')
    try:
        subprocess.run(["localedef", "-c", "-i", tmp_path / "comma", tmp_path / "xx_XX"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no localedef to make a locale with")
    code = (
        "import locale, sys; locale.setlocale(locale.LC_NUMERIC, 'xx_XX'); assert locale.localeconv()['decimal_point'] == ','\n"
        "import modejump; print(modejump.MonteCarloModeJump(sys.argv[1]).model_temperature)"
    )
    environment = {**os.environ, "LOCPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, peroxide_model], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "300.0\n"


def test_python_front(peroxide_model):
    jump = modejump.MonteCarloModeJump(peroxide_model)
    assert isinstance(jump, openmm.Force) and jump.frequency == 100 and jump.particles == []
    assert jump.model_file == peroxide_model and jump.model_temperature == 300.0
    assert not jump.usesPeriodicBoundaryConditions()
    system = peroxide_system()
    index = system.addForce(jump)
    plain = system.getForce(index)
    assert modejump.MonteCarloModeJump.isinstance(plain)
    modejump.MonteCarloModeJump.cast(plain).frequency = 3
    assert jump.frequency == 3
    assert not modejump.MonteCarloModeJump.isinstance(system.getForce(0))
    with pytest.raises(TypeError, match="HarmonicBondForce"):
        modejump.MonteCarloModeJump.cast(system.getForce(0))


ALA2 = pathlib.Path(__file__).resolve().parents[2] / "models" / "ala2"


def alanine_dipeptide(model="model.safetensors", **options):
    """The Force, topology and positions, and a System without the Force."""
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    return modejump.MonteCarloModeJump(ALA2 / model, 0, **options), app.PDBFile(str(ALA2 / "topology.pdb")), system


def refuses(message, call, *arguments, **options):
    with pytest.raises(openmm.OpenMMException) as caught:
        call(*arguments, **options)
    for part in [message] if isinstance(message, str) else message:
        assert part in str(caught.value), str(caught.value)


def context_of(jump, system=None, integrator=None, x=None):
    system = system or peroxide_system()
    system.addForce(jump)
    return openmm.Context(system, integrator or toy.langevin(), *toy.platform())


def test_missing_and_malformed_models(tmp_path, peroxide_model):
    refuses(["nowhere.safetensors", "No such file"], modejump.MonteCarloModeJump, tmp_path / "nowhere.safetensors")
    refuses([str(tmp_path), "Is a directory"], modejump.MonteCarloModeJump, tmp_path)
    (tmp_path / "empty.safetensors").touch()
    refuses(["could not be read (the file is empty)"], modejump.MonteCarloModeJump, tmp_path / "empty.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(open(peroxide_model, "rb").read()[:100])
    refuses("broken.safetensors", modejump.MonteCarloModeJump, broken)
    broken.write_bytes(b"")
    refuses("broken.safetensors", modejump.MonteCarloModeJump, broken)


def test_xml_of_another_version_or_model(tmp_path, peroxide_model):
    path = tmp_path / "m.safetensors"
    path.write_bytes(open(peroxide_model, "rb").read())
    xml = openmm.XmlSerializer.serialize(modejump.MonteCarloModeJump(path))
    refuses(["version 9", "versions 1 to 6"], openmm.XmlSerializer.deserialize, xml.replace('version="1"', 'version="9"'))
    write_peroxide_model(path, widen=2.0)
    other = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    refuses(["m.safetensors", "hash"], context_of, other)
    path.unlink()
    missing = modejump.MonteCarloModeJump.cast(openmm.XmlSerializer.deserialize(xml))
    refuses("m.safetensors", context_of, missing)


def test_arguments_out_of_range(peroxide_model):
    refuses("frequency", modejump.MonteCarloModeJump, peroxide_model, -1)
    refuses("proposal", modejump.MonteCarloModeJump, peroxide_model, proposals=0)
    refuses("temperature", modejump.MonteCarloModeJump, peroxide_model, temperature=-3)
    jump = modejump.MonteCarloModeJump(peroxide_model)
    with pytest.raises(openmm.OpenMMException, match="4095"):
        jump.default_replica = 5000
    refuses(["seed is 3000000000;", "2147483647"], modejump.MonteCarloModeJump, peroxide_model, seed=3_000_000_000)
    refuses(["proposals is 2.5;", "whole number"], modejump.MonteCarloModeJump, peroxide_model, proposals=2.5)
    for frequency in (0.5, 10.9):
        refuses(["frequency", "whole number"], modejump.MonteCarloModeJump, peroxide_model, frequency)
    with pytest.raises(TypeError, match="integer"):
        jump.particles = [0.5]
    for index in (2**32, -1):
        with pytest.raises(openmm.OpenMMException, match=f"particles contains {index};"):
            jump.particles = [0, index]
    assert jump.particles == []
    refuses("temperature", modejump.MonteCarloModeJump, peroxide_model, temperature=float("inf"))


def test_units(peroxide_model):
    def make(**options):
        return modejump.MonteCarloModeJump(peroxide_model, **options)

    jump = make(temperature=310 * unit.kelvin, relaxation_timestep=2 * unit.femtosecond, annealing_step=3 * unit.picometer**2)
    assert (jump.temperature, jump.relaxation_timestep, jump.annealing_step) == (310, pytest.approx(0.002), pytest.approx(3e-6))
    for options, message in (
        ({"temperature": 300 * unit.nanometer}, "temperature is in nanometer; use a number or a Quantity in kelvin"),
        ({"relaxation_timestep": 1 * unit.kelvin}, "relaxation_timestep is in kelvin.*picosecond"),
        ({"annealing_step": 1 * unit.nanometer}, "annealing_step is in nanometer.*nanometer"),
        ({"frequency": 1 * unit.picosecond}, "frequency is in picosecond; use a number without a unit"),
        ({"latent_walk": [0.1 * unit.nanometer]}, "latent_walk is in nanometer"),
    ):
        with pytest.raises(TypeError, match=message):
            make(**options)


def test_objects_of_another_kind(peroxide_model):
    """Of the library or of OpenMM: they are no addresses of a Force and of a Context."""
    jump, system = modejump.MonteCarloModeJump(peroxide_model), peroxide_system()
    for call in (jump.attempt, jump.statistics, jump.reset_statistics, jump.log_weights, jump.update_parameters_in_context):
        with pytest.raises(TypeError, match="expected an OpenMM Context, found a System"):
            call(system)
    with pytest.raises(TypeError, match="expected an OpenMM Force, found a System"):
        modejump.MonteCarloModeJump.isinstance(system)


def test_every_property_and_method_has_a_word_of_help():
    for kind in (modejump.MonteCarloModeJump, modejump.Move, modejump.Exchange, modejump.Model, modejump.Bijection):
        for name, value in vars(kind).items():
            if not name.startswith("_") and (callable(value) or isinstance(value, property)):
                assert value.__doc__, f"{kind.__name__}.{name}"


def test_wrong_atoms(peroxide_model):
    make = modejump.MonteCarloModeJump
    system = peroxide_system()
    system.addParticle(20.0)
    refuses(["4 atoms", "5 particles"], context_of, make(peroxide_model), system)
    refuses(["3 particles", "4 atoms"], context_of, make(peroxide_model, particles=[0, 1, 2]))
    refuses(["particle 1 ", "twice"], context_of, make(peroxide_model, particles=[0, 1, 1, 3]))
    refuses("particle 17", context_of, make(peroxide_model, particles=[0, 1, 2, 17]))
    # H and O exchanged: the first difference is named with the particle and the model's atom.
    refuses(["order", "HOH1:H1", "15.999"], context_of, make(peroxide_model, particles=[1, 0, 2, 3]))
    # The right elements, but the hydrogens exchanged: only the bonds tell.
    refuses(["bond", "HOH1:H1", "particle"], context_of, make(peroxide_model, particles=[3, 1, 2, 0]))


def test_an_ion_of_no_bond_is_where_it_is(tmp_path):
    """In the structure it is near enough for one."""
    topology = {"names": ["C", "O", "NA"], "elements": ["C", "O", "NA"], "residues": ["MOL1", "MOL1", "NA2"], "bonds": [[0, 1], [1, 2]]}
    model = write_model(
        tmp_path / "ion.safetensors", {"kind": "cartesian", "dimension": 9}, [scale_layer([*range(9)], [0] * 9, [1] * 9)], [], topology=topology
    )
    system, bonds = openmm.System(), openmm.HarmonicBondForce()
    for mass in (12.011, 15.999, 22.99):
        system.addParticle(mass)
    bonds.addBond(0, 1, 0.14, 2e5)
    system.addForce(bonds)
    context_of(modejump.MonteCarloModeJump(model, 0), system)


def test_hydrogens_may_be_heavy(tmp_path):
    """Up to 4 dalton, which their neighbours have given; no heavy atom is heavier."""

    def with_masses(*masses):
        path = tmp_path / "methanol.safetensors"
        topology = {"names": ["C", "O", "H1"], "elements": ["C", "O", "H"], "residues": ["MOL1"] * 3, "bonds": [[0, 1], [0, 2]]}
        model = write_model(path, {"kind": "cartesian", "dimension": 9}, [scale_layer([*range(9)], [0] * 9, [1] * 9)], [], topology=topology)
        system = openmm.System()
        for mass in masses:
            system.addParticle(mass)
        context_of(modejump.MonteCarloModeJump(model, 0), system)

    with_masses(12.011 - 2.992, 15.999, 4.0)
    refuses(["a mass of 15.999 where the topology has MOL1:C"], with_masses, 15.999, 12.011, 1.008)
    refuses(["a mass of 5 where the topology has MOL1:H1"], with_masses, 12.011, 15.999, 5.0)
    with_masses(12.011 + 3 * 1.008, 15.999, 1.008)  # a united atom


def test_all_hydrogens_of_a_methyl_group_may_be_heavy():
    jump, pdb, system = alanine_dipeptide()
    for a, b in pdb.topology.bonds():
        hydrogen, heavy = (a, b) if a.element.symbol == "H" else (b, a)
        if hydrogen.element.symbol == "H":
            given = 4.0 - system.getParticleMass(hydrogen.index)._value
            system.setParticleMass(hydrogen.index, 4.0)
            system.setParticleMass(heavy.index, system.getParticleMass(heavy.index)._value - given)
    context_of(jump, system)


def test_restraints_are_no_bonds_and_bonds_may_be_elsewhere(peroxide_model, rigid_model):
    make = modejump.MonteCarloModeJump

    def restrained(k, length=0.2):
        system, spring = peroxide_system(), openmm.HarmonicBondForce()
        spring.addBond(0, 3, length, k)
        system.addForce(spring)
        return system

    context_of(make(peroxide_model), restrained(1000))
    context_of(make(peroxide_model), restrained(1e6, length=0.5))
    refuses(["bond", "HOH1:H1", "HOH1:H2", "the model does not have"], context_of, make(peroxide_model), restrained(2e5))
    # a soft spring and another bond amiss: the order differs
    system = restrained(1000)
    system.getForce(0).setBondParameters(0, 0, 3, 0.3, 1000)
    refuses(["bond", "the model does not have"], context_of, make(peroxide_model), system)
    # the bonds of a System whose other terms are in Forces that nobody can look into, or in a CustomBondForce
    for custom in (False, True):
        system = peroxide_system(OH)
        system.removeForce(0)
        if custom:
            force = openmm.CustomBondForce("1e5*(r-0.145)^2")
            force.addBond(1, 2)
            system.addForce(force)
        context_of(make(rigid_model), system)
    system = peroxide_system()
    for i, length in ((0, PEROXIDE.oh), (1, PEROXIDE.oo)):
        system.getForce(0).setBondParameters(i, i, i + 1, length, PEROXIDE.k_bond)
    system.getForce(0).setBondParameters(2, 0, 1, PEROXIDE.oh, 1.0)  # in place of 2-3
    refuses(["HOH1:O2", "HOH1:H2", "the System does not have"], context_of, make(peroxide_model), system)


def test_frozen_particles_and_virtual_sites(peroxide_model):
    system = peroxide_system()
    system.setParticleMass(1, 0)
    refuses(["particle 1", "mass"], context_of, modejump.MonteCarloModeJump(peroxide_model), system)
    system = peroxide_system()
    system.setParticleMass(3, 0)
    system.setVirtualSite(3, openmm.TwoParticleAverageSite(1, 2, 0.5, 0.5))
    refuses(["particle 3", "virtual site"], context_of, modejump.MonteCarloModeJump(peroxide_model), system)


def test_constraints_that_the_model_does_not_keep(peroxide_model, rigid_model):
    """T7"""
    make = modejump.MonteCarloModeJump
    refuses(["H1", "O1"], context_of, make(peroxide_model), peroxide_system([(0, 1)]))
    refuses(["O1", "O2"], context_of, make(rigid_model), peroxide_system([(0, 1), (1, 2), (2, 3)]))
    system = peroxide_system([(2, 3)])
    system.addConstraint(0, 1, PEROXIDE.oh + 0.001)
    refuses(["H1", "O1"], context_of, make(rigid_model), system)
    system = peroxide_system()
    system.addParticle(20.0)
    system.addConstraint(4, 2, 0.2)
    refuses(["particle 2 (HOH1:O2", "particle 4"], context_of, make(peroxide_model, particles=range(4)), system)
    # MD would leave the support of a model with constant bonds
    refuses(["H1", "O1", "constrain the bond"], context_of, make(rigid_model), peroxide_system())


def test_a_state_off_the_constraints_is_rejected_and_counted(rigid_model):
    jump = modejump.MonteCarloModeJump(rigid_model, 0, seed=1)
    context = context_of(jump, peroxide_system(OH))
    x = start()
    x[0] *= 1.05
    context.setPositions(x)
    for _ in range(5):
        assert not jump.attempt(context)
    s = jump.statistics(context)
    assert s.constraint + s.out_of_support == 5


def test_integrators_without_temperature(gaussian_model):
    """T2"""
    jump = modejump.MonteCarloModeJump(gaussian_model, 0)
    context = context_of(jump, toy.well_system(), openmm.VerletIntegrator(0.001))
    context.setPositions([[0.0, 0.0, 0.0]])
    refuses(["VerletIntegrator", "temperature"], jump.attempt, context)
    explicit = modejump.MonteCarloModeJump(gaussian_model, 0, temperature=300)
    context = context_of(explicit, toy.well_system(), openmm.VerletIntegrator(0.001))
    context.setPositions([[0.0, 0.0, 0.0]])
    assert explicit.attempt(context)


def test_chains_of_different_temperatures(gaussian_model, capfd):
    """T2"""

    def chains(*temperatures):
        integrator = openmm.NoseHooverIntegrator(0.001)
        for i, kelvin in enumerate(temperatures):
            integrator.addSubsystemThermostat([i], [], kelvin, 1, kelvin, 1, 3, 3, 7)
        return integrator

    system = toy.well_system()
    system.addParticle(20.0)
    x = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]

    def attempt(integrator, **options):
        jump = modejump.MonteCarloModeJump(gaussian_model, 0, particles=[0], **options)
        context = context_of(jump, copy.deepcopy(system), integrator)
        context.setPositions(x)
        return jump.attempt(context)

    refuses(["300 K", "450 K", "set"], attempt, chains(300, 450))
    assert attempt(chains(300, 450), temperature=300)
    assert "was set" not in capfd.readouterr().err
    assert attempt(chains(300, 300))


def test_unsupported_integrators(gaussian_model):
    """T10 and the integrators that would never, or twice a step, call the move."""

    def custom(updates):
        integrator = openmm.CustomIntegrator(0.001)
        integrator.addGlobalVariable("kT", toy.KT)
        for _ in range(updates):
            integrator.addUpdateContextState()
        integrator.addComputePerDof("x", "x+dt*v")
        return integrator

    make = modejump.MonteCarloModeJump
    refuses("addUpdateContextState() 0 times", context_of, make(gaussian_model), toy.well_system(), custom(0))
    refuses("addUpdateContextState() 2 times", context_of, make(gaussian_model), toy.well_system(), custom(2))
    rpmd = openmm.RPMDIntegrator(4, 300.0, 1.0, 0.001)
    refuses("RPMDIntegrator", context_of, make(gaussian_model), toy.well_system(), rpmd)
    if hasattr(openmm, "QTBIntegrator"):  # from OpenMM 8.4 on
        refuses("QTBIntegrator", context_of, make(gaussian_model), toy.well_system(), openmm.QTBIntegrator(300, 1, 0.001))
    drude = openmm.DrudeLangevinIntegrator(300, 1, 1, 20, 0.001)
    refuses("DrudeLangevinIntegrator", context_of, make(gaussian_model, temperature=300), toy.well_system(), drude)
    compound = openmm.CompoundIntegrator()
    for updates in (1, 0):
        compound.addIntegrator(custom(updates))
    refuses("addUpdateContextState() 0 times", context_of, make(gaussian_model), toy.well_system(), compound)


@pytest.mark.parametrize("method", ["CutoffNonPeriodic", "CutoffPeriodic"])
def test_atoms_that_no_bond_makes_whole_are_refused_in_a_box(tmp_path, method):
    """When the Context is made, and not by the first attempt, hours later."""
    topology = {"names": ["A", "B"], "elements": ["C", "C"], "residues": ["X1", "X2"], "bonds": []}
    layers = [scale_layer(list(range(6)), [0, 0, 0, 0.4, 0, 0], [0.05] * 6)]
    model = write_model(tmp_path / "pair.safetensors", {"kind": "cartesian", "dimension": 6}, layers, [], topology=topology)
    system, nonbonded = openmm.System(), openmm.NonbondedForce()
    for _ in range(2):
        system.addParticle(12.011)
        nonbonded.addParticle(0, 0.3, 0.1)
    nonbonded.setNonbondedMethod(getattr(nonbonded, method))
    nonbonded.setCutoffDistance(0.9)
    system.addForce(nonbonded)
    jump = modejump.MonteCarloModeJump(model, 1000, seed=3)
    if method == "CutoffPeriodic":
        refuses("atom 2 is not bonded to the molecule of atom 1", context_of, jump, system)
    else:
        context_of(jump, system)


def test_a_hard_wall_of_the_integrator_is_refused(gaussian_model):
    integrator = openmm.NoseHooverIntegrator(300, 1, 0.001)
    integrator.setMaximumPairDistance(0.1)
    refuses(["maximum distance"], context_of, modejump.MonteCarloModeJump(gaussian_model, 0, seed=3), toy.well_system(), integrator)


def test_a_period_is_no_temperature(gaussian_model):
    """A global variable T may be anything; kT is asked for first, wherever it stands."""
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    context = context_of(jump, toy.well_system(), toy.leapfrog(name="T"))
    context.setPositions([[0.0, 0.0, 0.0]])
    refuses(["CustomIntegrator", "temperature"], jump.attempt, context)
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    integrator = toy.leapfrog(name="temperature", value=5.0)
    integrator.addGlobalVariable("kT", toy.KT)
    context = context_of(jump, toy.well_system(), integrator)
    context.setPositions([[0.0, 0.0, 0.0]])
    assert all(jump.attempt(context) for _ in range(20))  # the model is exact at 300 K


def test_a_jump_between_modes_has_one_proposal():
    """As Move(modes, proposals=4) says: several would make it another move."""
    jump, _, system = alanine_dipeptide("modes.safetensors", proposals=4)
    refuses("4 proposals: a jump between modes requires one", context_of, jump, system)
    jump, _, system = alanine_dipeptide("modes.safetensors")
    context_of(jump, system)


def test_an_update_starts_all_statistics_anew(gaussian_model):
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3, temperature=400)
    context = context_of(jump, toy.well_system())
    context.setPositions([[0.01, 0.0, 0.0]])
    jump.attempt(context)
    assert jump.statistics(context).last_log_acceptance != 0
    jump.update_parameters_in_context(context)
    statistics = jump.statistics(context)
    assert statistics.attempts == 0 and statistics.last_log_acceptance == 0


def test_an_update_that_is_refused_changes_nothing(gaussian_model):
    jump = modejump.MonteCarloModeJump(gaussian_model, 2, seed=3)
    context = context_of(jump, toy.well_system())
    context.setPositions([[0.0, 0.0, 0.0]])
    context.getIntegrator().step(10)
    jump.driven_steps, jump.frequency = 3, 5
    refuses("none is left to relax", jump.update_parameters_in_context, context)
    context.getIntegrator().step(10)
    assert jump.statistics(context).attempts == 9


def test_another_temperature_warns_once_and_stays_exact(gaussian_model, capfd):
    system = toy.well_system()
    jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(temperature=400.0), x=[[0.0, 0.0, 0.0]])
    squares = []
    for _ in range(toy.rounds(4000)):
        jump.attempt(context)
        squares.append((toy.positions(context) ** 2).mean())
    error = capfd.readouterr().err
    assert error.count("trained for 300") == 1 and "400" in error
    exact, deviation = toy.SIGMA**2 * 400 / 300, toy.batch_error(squares)
    assert abs(np.mean(squares) - exact) < 5 * deviation


def test_a_temperature_that_is_not_the_integrators_is_told_once(gaussian_model, capfd):
    def told(integrator, temperature, *forces):
        system = toy.well_system()
        for force in forces:
            system.addForce(force)
        jump = modejump.MonteCarloModeJump(gaussian_model, 0, seed=3, temperature=temperature)
        context = context_of(jump, system, integrator)
        context.setPositions([[0.0, 0.0, 0.0]])
        for _ in range(3):
            jump.attempt(context)
        return capfd.readouterr().err

    chains = openmm.NoseHooverIntegrator(0.001)
    chains.addSubsystemThermostat([0], [], 450, 1, 450, 1, 3, 3, 7)
    for integrator, *forces in (
        (toy.langevin(temperature=450.0),),
        (toy.leapfrog(value=1.5 * toy.KT),),
        (chains,),
        (openmm.VerletIntegrator(0.001), openmm.AndersenThermostat(450, 1)),
    ):
        warning = told(integrator, 300, *forces)
        assert warning.count("is set to 300 K") == 1 and "is 450 K" in warning and "Do not set the temperature" in warning
    assert told(toy.langevin(), 300.0005) == "" and told(toy.leapfrog(), 300) == "" and told(openmm.VerletIntegrator(0.001), 300) == ""


def test_a_thermostat_beside_the_integrators_has_its_temperature(gaussian_model):
    def attempt(kelvin):
        jump = modejump.MonteCarloModeJump(gaussian_model, 0)
        system = toy.well_system()
        system.addForce(openmm.AndersenThermostat(kelvin, 1))
        # devices have one seed for all
        system.getForce(system.getNumForces() - 1).setRandomNumberSeed(5)
        context = context_of(jump, system)
        context.setPositions([[0.0, 0.0, 0.0]])
        jump.attempt(context)

    attempt(300)
    refuses(["LangevinMiddleIntegrator is at 300 K", "AndersenThermostat at 350 K"], attempt, 350)


def test_a_failed_simulation_is_an_error_not_a_rejection(gaussian_model):
    jump = modejump.MonteCarloModeJump(gaussian_model, 0)
    context = context_of(jump, toy.well_system())
    refuses("positions", jump.attempt, context)
    context.setPositions([[float("nan"), 0, 0]])
    # other platforms than Reference may refuse it themselves
    refuses(["reduced potential", "at step 0:"] if toy.PLATFORMS[0] == "Reference" else "", jump.attempt, context)
    context.setPositions([[0.0, 0.0, 0.0]])
    context.setParameter(modejump.MonteCarloModeJump.REPLICA, 0.5)
    refuses("ModeJumpReplica", jump.attempt, context)
