"""Jumps in a simulation driven by ASE: any ASE calculator supplies the energies, and modejump the proposals.

    .venv/bin/python examples/ase_jumps.py [steps]

Runs alanine dipeptide at 300 K with ASE's Langevin dynamics; the calculator passes on the energies of the OpenMM System that the
generator was trained for. Prints how often phi changed basin, which happens about once in 15 ns of plain dynamics.
"""

import argparse
from pathlib import Path

import numpy as np
import openmm
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from openmm import app

import modejump

ALA2 = Path(__file__).resolve().parents[1] / "models/ala2"
PHI = (4, 6, 8, 14)
TEMPERATURE, JUMP_EVERY = 300.0, 20
KJ_PER_MOL = units.kJ / units.mol


class SystemCalculator(Calculator):
    """Energies and forces of an OpenMM System; replace it with your own calculator."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, system):
        super().__init__()
        platform = openmm.Platform.getPlatformByName("Reference")
        self.context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.context.setPositions(0.1 * self.atoms.positions)
        state = self.context.getState(energy=True, forces=True)
        forces = state.getForces(asNumpy=True)._value
        self.results = {"energy": state.getPotentialEnergy()._value * KJ_PER_MOL, "forces": 0.1 * forces * KJ_PER_MOL}


def reduced_potential(atoms):
    """Returns a function x [n, atoms, 3] in nm -> U/kT [n] that uses the calculator attached to the atoms."""
    probe = atoms.copy()
    probe.calc = atoms.calc

    def u(x):
        values = np.empty(len(x))
        for i, positions in enumerate(x):
            probe.positions = 10 * positions
            values[i] = probe.get_potential_energy() / (units.kB * TEMPERATURE)
        return values

    return u


def draw_momenta(atoms, rng):
    """Draws momenta from the Maxwell-Boltzmann distribution."""
    atoms.set_momenta(np.sqrt(atoms.get_masses() * units.kB * TEMPERATURE)[:, None] * rng.normal(size=(len(atoms), 3)))


def main(steps):
    pdb = app.PDBFile(str(ALA2 / "topology.pdb"))
    symbols = [atom.element.symbol for atom in pdb.topology.atoms()]
    atoms = Atoms(symbols, positions=10 * np.array(pdb.positions._value))
    atoms.calc = SystemCalculator(openmm.XmlSerializer.deserialize((ALA2 / "system.xml").read_text()))
    rng = np.random.default_rng(1)
    draw_momenta(atoms, rng)
    friction = 0.01 / units.fs
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=TEMPERATURE, friction=friction, fixcm=False, rng=rng)
    move = modejump.Move(modejump.Model(ALA2 / "model.safetensors"), seed=1, stride=JUMP_EVERY)
    u, basins = reduced_potential(atoms), []
    for step in range(0, steps, JUMP_EVERY):
        outcome = move.attempt(0.1 * atoms.positions, u, step=step)
        if outcome.accepted:
            atoms.positions = 10 * outcome.x
            draw_momenta(atoms, rng)
        dynamics.run(JUMP_EVERY)
        basins.append(0 < atoms.get_dihedral(*PHI) < 126)
    changes = np.count_nonzero(np.diff(basins))
    print(f"{steps} steps, {move.statistics().acceptance:.1%} of the jumps accepted, {changes} changes of phi's basin")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int, nargs="?", default=20_000, help="steps of dynamics (default: 20,000)")
    main(parser.parse_args().steps)
