"""Builds Ala-Ala-Ala with charged ends, and its System: amber99sbildn with OBC (GBSAOBCForce), as for alanine dipeptide.

    .venv/bin/python models/ala3/make_system.py           # checks that the stored System gives the force field's energies
    .venv/bin/python models/ala3/make_system.py --write   # builds the molecule anew, and its System
"""

import sys
from pathlib import Path

import numpy as np
import openmm
from openmm import app, unit

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "ala2"))
from make_systems import OBC, build, energies  # noqa: E402

RESIDUES = 3
PHI, PSI, OMEGA = -75.0, 145.0, 180.0  # polyproline II
# Atom; the three that place it, of the residue before with a minus; bond in nm, angle and torsion in degree.
PLACES = [
    ("N", "-N", "-CA", "-C", 0.1335, 116.6, PSI),
    ("CA", "-CA", "-C", "N", 0.1449, 121.9, OMEGA),
    ("C", "-C", "N", "CA", 0.1522, 111.0, PHI),
    ("CB", "N", "C", "CA", 0.1526, 110.1, 122.7),  # of L-alanine
    ("O", "N", "CA", "C", 0.1229, 120.4, PSI - 180.0),
    ("OXT", "N", "CA", "C", 0.1229, 117.0, PSI),
]


def place(a, b, c, bond, angle, torsion):
    """Where an atom is that has this bond to c, angle at c with b, and torsion about b and c with a."""
    angle, torsion = np.radians(angle), np.radians(torsion)
    axis = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, axis)
    normal /= np.linalg.norm(normal)
    side = np.cross(normal, axis)
    return c + bond * (-np.cos(angle) * axis + np.sin(angle) * (np.cos(torsion) * side + np.sin(torsion) * normal))


def heavy_atoms():
    """Topology and positions (nm) of the heavy atoms, chain built onto three points in place of a residue before."""
    topology, positions = app.Topology(), []
    chain = topology.addChain()
    before = {"-N": np.array([0.0, 0.14, 0.0]), "-CA": np.zeros(3), "-C": np.array([0.15, 0.0, 0.0])}
    for number in range(RESIDUES):
        residue, x = topology.addResidue("ALA", chain), dict(before)
        for name, *references, bond, angle, torsion in PLACES:
            if name == "OXT" and number + 1 < RESIDUES:
                continue
            x[name] = place(*(x[r] for r in references), bond, angle, torsion)
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue)
            positions.append(x[name])
        before = {"-" + name: x[name] for name in ("N", "CA", "C")}
    topology.createStandardBonds()
    return topology, positions * unit.nanometer


def minimised(modeller, system):
    """Positions at a minimum of the energy."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(modeller.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    return context.getState(positions=True).getPositions()


def write():
    modeller = app.Modeller(*heavy_atoms())
    modeller.addHydrogens(app.ForceField(*OBC), platform=openmm.Platform.getPlatformByName("Reference"))
    positions = minimised(modeller, build(modeller, OBC, None))
    with open(HERE / "topology.pdb", "w") as file:
        app.PDBFile.writeFile(modeller.topology, positions, file)
    system = build(app.PDBFile(str(HERE / "topology.pdb")), OBC, None)
    (HERE / "system.xml").write_text(openmm.XmlSerializer.serialize(system))


def main():
    if "--write" in sys.argv:
        write()
    pdb = app.PDBFile(str(HERE / "topology.pdb"))
    x0 = np.array(pdb.positions.value_in_unit(unit.nanometer))
    frames = [x0 + np.random.default_rng(seed).normal(0, 0.005, x0.shape) for seed in range(10)]
    stored = openmm.XmlSerializer.deserialize((HERE / "system.xml").read_text())
    error = np.abs(energies(stored, frames) - energies(build(pdb, OBC, None), frames)).max()
    print(f"system.xml: {stored.getNumParticles()} atoms, largest energy difference {error:.1e} kJ/mol")
    if error > 1e-9:
        sys.exit("system.xml is not the System of the force field; run with --write")


if __name__ == "__main__":
    main()
