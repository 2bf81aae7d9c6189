"""Alanine dipeptide in vacuum for LAMMPS: data and input files made from the OpenMM System of models/ala2, and a run with jumps.

    make lammps-plugin
    .venv/bin/python examples/lammps-ala2/make.py --output target/lammps-ala2          # data.ala2, in.ala2, and the energy that LAMMPS must reproduce
    .venv/bin/python examples/lammps-ala2/make.py --output target/lammps-ala2 --run    # and runs them

The force field is that of the System (amber99sbildn): harmonic bonds and angles, periodic torsions, Lennard-Jones and Coulomb
interactions without a cut-off, and 1-4 pairs scaled as in Amber.
"""

import argparse
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import openmm
from openmm import app, unit

ROOT = Path(__file__).resolve().parents[2]
ALA2 = ROOT / "models" / "ala2"
KCAL = 4.184
#: Scale factors of the Coulomb and the Lennard-Jones interaction between atoms three bonds apart.
SCALED_14 = (1 / 1.2, 0.5)


def force(system, kind):
    return next(force for force in system.getForces() if isinstance(force, kind))


def numbers(quantities):
    """Converts quantities to plain numbers in OpenMM's units: nm, kJ/mol, rad, e."""
    return [q.value_in_unit_system(unit.md_unit_system) if unit.is_quantity(q) else q for q in quantities]


def kinds(rows):
    """Returns the distinct rows, sorted, and for each row its index among them, counted from 1."""
    different = sorted(set(rows))
    return different, [different.index(row) + 1 for row in rows]


def terms(system):
    """Returns for each section of a data file the atoms of every term, the distinct coefficients of its style (angstrom, kcal/mol,
    degrees), and the index of each term's coefficients."""
    bonds, angles, torsions = (force(system, kind) for kind in (openmm.HarmonicBondForce, openmm.HarmonicAngleForce, openmm.PeriodicTorsionForce))
    found = {"Bond": ([], []), "Angle": ([], []), "Dihedral": ([], [])}
    for i in range(bonds.getNumBonds()):
        a, b, length, k = numbers(bonds.getBondParameters(i))
        found["Bond"][0].append((a, b))
        found["Bond"][1].append((k / 2 / KCAL / 100, 10 * length))
    for i in range(angles.getNumAngles()):
        *atoms, angle, k = numbers(angles.getAngleParameters(i))
        found["Angle"][0].append(tuple(atoms))
        found["Angle"][1].append((k / 2 / KCAL, math.degrees(angle)))
    for i in range(torsions.getNumTorsions()):
        *atoms, n, phase, k = numbers(torsions.getTorsionParameters(i))
        found["Dihedral"][0].append(tuple(atoms))
        found["Dihedral"][1].append((k / KCAL, n, round(math.degrees(phase)), 0.0))
    return {name: (atoms, *kinds(coefficients)) for name, (atoms, coefficients) in found.items()}


def data_file(system, positions):
    nonbonded = force(system, openmm.NonbondedForce)
    charges, wells, masses = [], [], []
    for i in range(system.getNumParticles()):
        charge, sigma, epsilon = numbers(nonbonded.getParticleParameters(i))
        charges.append(charge)
        wells.append((epsilon / KCAL, 10 * sigma))
        masses.append(system.getParticleMass(i).value_in_unit(unit.dalton))
    types, type_of = kinds(list(zip(masses, *zip(*wells))))
    sections = terms(system)
    n = len(masses)
    lines = ["alanine dipeptide, amber99sbildn, vacuum", "", f"{n} atoms", f"{len(types)} atom types"]
    for name, (atoms, different, _) in sections.items():
        lines += [f"{len(atoms)} {name.lower()}s", f"{len(different)} {name.lower()} types"]
    lines += [""] + [f"-50.0 50.0 {axis}lo {axis}hi" for axis in "xyz"]
    lines += ["", "Masses", ""] + [f"{i} {mass}" for i, (mass, _, _) in enumerate(types, 1)]
    lines += ["", "Pair Coeffs # lj/cut/coul/cut", ""] + [f"{i} {epsilon} {sigma}" for i, (_, epsilon, sigma) in enumerate(types, 1)]
    for name, (_, different, _) in sections.items():
        lines += ["", f"{name} Coeffs", ""] + [f"{i} " + " ".join(map(str, row)) for i, row in enumerate(different, 1)]
    lines += ["", "Atoms # full", ""]
    for i, x in enumerate(positions):
        lines.append(f"{i + 1} 1 {type_of[i]} {charges[i]} " + " ".join(f"{10 * v:.8f}" for v in x))
    for name, (atoms, _, kind) in sections.items():
        rows = (f"{i} {k} " + " ".join(str(atom + 1) for atom in of) for i, (k, of) in enumerate(zip(kind, atoms), 1))
        lines += ["", f"{name}s", "", *rows]
    return "\n".join(lines) + "\n"


def input_file(plugin, steps, seed):
    coulomb, lennard_jones = SCALED_14
    return f"""# Alanine dipeptide in vacuum at 300 K: Langevin dynamics, with an attempt to jump every ten steps.
plugin load {plugin}
units real
atom_style full
boundary s s s
bond_style harmonic
angle_style harmonic
dihedral_style charmm
pair_style lj/cut/coul/cut 50.0
pair_modify mix arithmetic
special_bonds lj 0 0 {lennard_jones} coul 0 0 {coulomb}
read_data data.ala2
neighbor 2.0 bin
timestep 0.5
velocity all create 300.0 {seed} dist gaussian
fix dynamics all nve
fix bath all langevin 300.0 300.0 200.0 {seed + 1}
fix jump all modejump 10 model {ALA2 / "model-vacuum.safetensors"} temp 300 seed {seed}
thermo 1000
thermo_style custom step temp pe f_jump[1] f_jump[7] f_jump[8]
run {steps}
"""


def energy(system, positions):
    """Potential energy by OpenMM, in kcal/mol."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    return context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilocalorie_per_mole)


def run(folder):
    """Runs LAMMPS and returns its log."""
    lmp = next(Path(sys.prefix).glob("lib/python3*/site-packages/lammps/lmp"))
    environment = dict(os.environ, LD_LIBRARY_PATH=str(Path(sys.prefix) / "lib"), OMP_NUM_THREADS="1")
    subprocess.run([str(lmp), "-in", "in.ala2", "-log", "log.lammps", "-screen", "none", "-nocite"], cwd=folder, env=environment, check=True)
    return (folder / "log.lammps").read_text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("target/lammps-ala2"))
    parser.add_argument("--plugin", type=Path, default=ROOT / "target" / "lammps-plugin" / "modejumpplugin.so")
    parser.add_argument("--steps", type=int, default=50000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--run", action="store_true", help="run the LAMMPS of this Python environment")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    system = openmm.XmlSerializer.deserialize((ALA2 / "system-vacuum.xml").read_text())
    positions = app.PDBFile(str(ALA2 / "topology.pdb")).positions.value_in_unit(unit.nanometer)
    (arguments.output / "data.ala2").write_text(data_file(system, positions))
    (arguments.output / "in.ala2").write_text(input_file(arguments.plugin.resolve(), arguments.steps, arguments.seed))
    print(f"energy of the starting configuration by OpenMM: {energy(system, positions):.4f} kcal/mol")
    if arguments.run:
        log = run(arguments.output)
        rows = re.search(r"^ +Step .*?\n(.*?)^Loop time", log, re.M | re.S).group(1).splitlines()
        first, last = rows[0].split(), rows[-1].split()
        print(f"energy of the starting configuration by LAMMPS: {float(first[2]):.4f} kcal/mol")
        print(f"{float(last[3]):.0f} jumps, {100 * float(last[4]):.1f} % accepted, ESS of the proposals {100 * float(last[5]):.1f} %")


if __name__ == "__main__":
    main()
