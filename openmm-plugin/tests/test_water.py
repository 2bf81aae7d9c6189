"""A solute among rigid water with PME, as it mostly is: what an attempt computes there, on every platform."""

import numpy as np
import openmm
import pytest
import toy
from openmm import app, unit
from peroxide import PEROXIDE, build, start, write_peroxide_model

import modejump

BOX, CUTOFF, GRID = 1.5, 0.7, 18
#: Distance of the water from the molecule, nm: far enough that some jumps are accepted.
CAVITY = 0.36
CHARGE = 0.1


def water_system():
    """System, positions (nm) and indices of a molecule of hydrogen peroxide, the last in the System, with charges, in a cavity of water."""
    field = app.ForceField("tip3p.xml")
    modeller = app.Modeller(app.Topology(), [])
    modeller.addSolvent(field, model="tip3p", boxSize=openmm.Vec3(BOX, BOX, BOX))
    molecule = start() + BOX / 2
    water = np.array(modeller.positions.value_in_unit(unit.nanometer))
    near = np.linalg.norm(water[:, None] - molecule, axis=2).min(axis=1) < CAVITY
    modeller.delete([residue for residue in modeller.topology.residues() if any(near[atom.index] for atom in residue.atoms())])
    system = field.createSystem(modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=CUTOFF, removeCMMotion=False)
    nonbonded = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    # platforms choose grids of their own
    nonbonded.setPMEParameters(4.0, GRID, GRID, GRID)
    particles = []
    for mass, charge in zip(PEROXIDE.masses, (CHARGE, -CHARGE, -CHARGE, CHARGE)):
        particles.append(system.addParticle(mass))
        nonbonded.addParticle(charge, 0.3 if charge < 0 else 0.1, 0.3)
    for i, a in enumerate(particles):
        for b in particles[:i]:
            nonbonded.addException(a, b, 0, 1, 0)
    build(particles[0], 4, system)
    return system, np.concatenate([modeller.positions.value_in_unit(unit.nanometer), molecule]), particles


def water_context(model, name):
    system, x, particles = water_system()
    jump = modejump.MonteCarloModeJump(model, 0, particles=particles, seed=3)
    system.addForce(jump)
    return jump, toy.make_context(system, toy.langevin(0.0005), name, x), particles


@pytest.mark.parametrize("name", toy.PLATFORMS)
def test_acceptance_follows_from_energies_and_densities(tmp_path, name):
    """ln of the ratio of acceptance, of jumps that were accepted, from energies by the Reference platform and log q by the model."""
    path = write_peroxide_model(tmp_path / "peroxide.safetensors")
    jump, context, particles = water_context(path, name)
    _, reference, _ = water_context(path, "Reference")
    model = modejump.Model(path)

    def log_weight(x):
        reference.setPositions(x)
        return -toy.potential(reference) / toy.KT - model.log_density(x[None, particles])[0]

    integrator, accepted = context.getIntegrator(), 0
    for _ in range(40):
        integrator.step(5)
        x, v = toy.positions(context), toy.velocities(context)
        if not jump.attempt(context):
            assert np.array_equal(x, toy.positions(context)) and np.array_equal(v, toy.velocities(context))
            continue
        accepted += 1
        y = toy.positions(context)
        others = np.delete(np.arange(len(x)), particles)
        assert np.abs(y[others] - x[others]).max() < 1e-6
        difference = jump.statistics(context).last_log_acceptance - (log_weight(y) - log_weight(x))
        assert abs(difference) < (1e-6 if name == "Reference" or name.endswith(":double") else 0.01)
    assert 2 < accepted < 40
