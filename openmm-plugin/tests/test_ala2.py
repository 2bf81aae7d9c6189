"""The real molecule: a crude generator (Gaussian bonds and angles, any torsions) on the Systems that the repository ships."""

from pathlib import Path

import numpy as np
import openmm
import pytest
import toy
from model_file import scale_layer, write_model
from openmm import app, unit
from peroxide import torsion_of

import modejump

ALA2 = Path(__file__).resolve().parents[2] / "models" / "ala2"
FRAME = [4, 6, 8]  # C, N, CA


def neighbours(bonds):
    result = {}
    for a, b in bonds:
        result.setdefault(a, []).append(b)
        result.setdefault(b, []).append(a)
    return result


def z_matrix(bonds, frame):
    """Rows (i, j, k, l): i is bonded to j, and j, k, l are placed before it; breadth first from the frame."""
    near, placed, rows = neighbours(bonds), list(frame), []
    while True:
        found = next(((i, j) for j in placed for i in near[j] if i not in placed), None)
        if found is None:
            return rows
        i, j = found
        k = next(k for k in near[j] if k in placed)
        # A fourth atom that is bonded to k or j, else any.
        candidates = [m for m in near[k] + near[j] + placed if m in placed and m not in (j, k)]
        rows.append([i, j, k, candidates[0]])
        placed.append(i)


def angle(x, i, j, k):
    a, b = x[i] - x[j], x[k] - x[j]
    return np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))


def test_hydrogens_that_are_numbered_the_other_way_round_are_told(capfd):
    """The shipped System, with the places of two hydrogens of a methyl group exchanged, as another program may number them."""
    for exchanged in ([11, 12], [12, 11]):
        pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
        system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
        system.addForce(modejump.MonteCarloModeJump(ALA2 / "model.safetensors", frequency=1, seed=1))
        platform = openmm.Platform.getPlatformByName("Reference")
        context = openmm.Context(system, openmm.LangevinMiddleIntegrator(300, 1, 0.0005), platform)
        x = pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        x[[11, 12]] = x[exchanged]
        context.setPositions(x)
        openmm.LocalEnergyMinimizer.minimize(context)
        context.setVelocitiesToTemperature(300, 1)
        context.getIntegrator().step(150)
        said = capfd.readouterr().err
        assert ("numbered differently from the model's frames" in said) == (exchanged == [12, 11]), said
    assert said.count("ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13)") == 1, said


def write_ala2_model(path, x, topology, constraints):
    atoms = list(topology.atoms())
    bonds = sorted(sorted((a.index, b.index)) for a, b in topology.bonds())
    rows = z_matrix(bonds, FRAME)
    constrained = {frozenset(c[:2]) for c in constraints}
    stretches = [(FRAME[1], FRAME[0]), (FRAME[2], FRAME[1])] + [(row[0], row[1]) for row in rows]
    stretches = [s for s in stretches if frozenset(s) not in constrained]
    bends = [FRAME] + [row[:3] for row in rows]
    lengths = [np.linalg.norm(x[a] - x[b]) for a, b in stretches]
    angles = [angle(x, *bend) / np.pi for bend in bends]
    n, m = len(lengths), len(angles)
    layers = [
        scale_layer(list(range(n)), lengths, [0.003] * n),
        scale_layer(list(range(n, n + m)), angles, [0.01] * m),
    ]
    coordinates = {"kind": "internal", "frame": FRAME, "rows": rows, "normalize_angles": True}
    coordinates["constraints"] = [list(c) for c in constraints]
    description = {
        "names": [a.name for a in atoms],
        "elements": [a.element.symbol for a in atoms],
        "residues": [f"{a.residue.name}{a.residue.id}" for a in atoms],
        "bonds": bonds,
    }
    uniform = list(range(n + m, n + m + len(rows)))
    return write_model(path, coordinates, layers, uniform, topology=description)


@pytest.mark.parametrize("name", toy.PLATFORMS)
@pytest.mark.parametrize("file", ["system.xml", "system-hbonds.xml"])
def test_rejections_on_alanine_dipeptide_leave_no_trace(tmp_path, name, file):
    """Implicit solvent, with and without constraints; the model's atoms and bonds are checked against the System's."""
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / file).read_text())
    constraints = [system.getConstraintParameters(i) for i in range(system.getNumConstraints())]
    constraints = [(a, b, d.value_in_unit(unit.nanometer)) for a, b, d in constraints]
    x = np.array(pdb.positions.value_in_unit(unit.nanometer))
    jump = modejump.MonteCarloModeJump(write_ala2_model(tmp_path / "m.st", x, pdb.topology, constraints), 0, seed=1)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(0.001), name, x)
    openmm.LocalEnergyMinimizer.minimize(context)
    context.getIntegrator().step(20)
    x, v, energy = toy.positions(context), toy.velocities(context), toy.potential(context)
    for _ in range(60):
        assert not jump.attempt(context)
    statistics = jump.statistics(context)
    assert statistics.rejected + statistics.non_finite == statistics.attempts == 60, statistics
    assert np.array_equal(x, toy.positions(context)) and np.array_equal(v, toy.velocities(context))
    assert energy == toy.potential(context)


def test_exchanged_atoms_of_alanine_dipeptide_are_named(tmp_path):
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    x = np.array(pdb.positions.value_in_unit(unit.nanometer))
    model = write_ala2_model(tmp_path / "m.st", x, pdb.topology, [])
    # OpenMM's other common order of the first residue: HH31 CH3 HH32 HH33.
    order = [1, 0, *range(2, 22)]
    system.addForce(modejump.MonteCarloModeJump(model, 0, particles=order))
    with pytest.raises(openmm.OpenMMException, match=r"a mass of 1\.00.* where the topology has ACE1:CH3 \(atom 1\)"):
        openmm.Context(system, toy.langevin(), *toy.platform())


def shipped(frequency):
    """The trained generator in the System it was trained for."""
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    system = openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text())
    jump = modejump.MonteCarloModeJump(ALA2 / "model.safetensors", frequency, seed=21)
    system.addForce(jump)
    context = toy.make_context(system, toy.langevin(0.001), x=pdb.positions.value_in_unit(unit.nanometer))
    openmm.LocalEnergyMinimizer.minimize(context)
    return jump, context


def test_the_trained_generator_continues_bit_for_bit():
    """Networks round differently in batches of another size, so blocks of proposals are always drawn whole."""
    jump, context = shipped(5)
    context.getIntegrator().step(1003)
    checkpoint = context.createCheckpoint()
    context.getIntegrator().step(500)
    x, v = toy.positions(context), toy.velocities(context)
    other_jump, other = shipped(5)
    other.loadCheckpoint(checkpoint)
    other.getIntegrator().step(500)
    assert np.array_equal(x, toy.positions(other)) and np.array_equal(v, toy.velocities(other))
    assert other_jump.statistics(other).accepted > 10


def test_the_trained_generator_keeps_the_temperature_and_crosses_the_barrier():
    jump, context = shipped(10)
    integrator = context.getIntegrator()
    integrator.step(2000)
    temperatures, phi = [], []
    for _ in range(1500):
        integrator.step(10)
        state = context.getState(energy=True, positions=True)
        temperatures.append(2 * state.getKineticEnergy()._value / 63 / toy.KT * 300)
        phi.append(torsion_of(state.getPositions(asNumpy=True)._value[[4, 6, 8, 14]]))
    error = toy.batch_error(temperatures)
    assert error < 3 and abs(np.mean(temperatures) - 300) < 5 * error, f"{np.mean(temperatures)} +- {error} K"
    inside = (np.array(phi) > 0) & (np.array(phi) < 2.2)
    # Plain dynamics crosses about once in two nanoseconds; this run has 0.015.
    assert jump.statistics(context).acceptance > 0.25 and np.count_nonzero(np.diff(inside)) > 5
