"""Regenerates the Systems from topology.pdb: alanine dipeptide, amber99sbildn with OBC (GBSAOBCForce) and in vacuum.

    .venv/bin/python models/ala2/make_systems.py           # checks that the stored Systems give the force field's energies
    .venv/bin/python models/ala2/make_systems.py --write   # writes them anew
"""

import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

HERE = Path(__file__).resolve().parent
OBC = ["amber99sbildn.xml", "amber99_obc.xml"]
SYSTEMS = {
    "system.xml": (OBC, None),
    "system-hbonds.xml": (OBC, app.HBonds),
    "system-vacuum.xml": (OBC[:1], None),
}


def build(pdb, files, constraints):
    """The System of the force field, without cutoff."""
    force_field = app.ForceField(*files)
    return force_field.createSystem(pdb.topology, nonbondedMethod=app.NoCutoff, constraints=constraints)


def energies(system, frames):
    """Potential energies, kJ/mol, of frames[n][atoms][3] in nm on the Reference platform."""
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    result = []
    for frame in frames:
        context.setPositions(frame)
        state = context.getState(energy=True)
        result.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
    return np.array(result)


def main():
    pdb = app.PDBFile(str(HERE / "topology.pdb"))
    x0 = np.array(pdb.positions.value_in_unit(unit.nanometer))
    frames = [x0 + np.random.default_rng(seed).normal(0, 0.005, x0.shape) for seed in range(10)]
    for name, description in SYSTEMS.items():
        built = build(pdb, *description)
        if "--write" in sys.argv:
            (HERE / name).write_text(openmm.XmlSerializer.serialize(built))
        stored = openmm.XmlSerializer.deserialize((HERE / name).read_text())
        error = np.abs(energies(stored, frames) - energies(built, frames)).max()
        same = stored.getNumConstraints() == built.getNumConstraints()
        print(f"{name}: {stored.getNumConstraints()} constraints, largest energy difference {error:.1e} kJ/mol")
        if error > 1e-9 or not same:
            sys.exit(f"{name} is not the System of the force field; run with --write")


if __name__ == "__main__":
    main()
