"""Alanine dipeptide in vacuum: GROMACS's own topology, runs of mdrun with and without moves, and what they wrote."""

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gromacs_source

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models" / "ala2"
GENERATOR = MODELS / "model-vacuum.safetensors"
KT = 8.314462618e-3 * 300

# a periodic box in which the molecule sees no image and nothing is cut off: vacuum, for the Verlet scheme needs periodicity
MDP = {
    "integrator": "sd",
    "dt": 0.001,
    "nsteps": 2000,
    "tc-grps": "System",
    "tau-t": 1.0,
    "ref-t": 300,
    "ld-seed": 17,
    "gen-vel": "yes",
    "gen-temp": 300,
    "gen-seed": 5,
    "comm-mode": "none",
    "pbc": "xyz",
    "cutoff-scheme": "Verlet",
    "verlet-buffer-tolerance": -1,
    "nstlist": 10,
    "rlist": 2.5,
    "rcoulomb": 2.5,
    "rvdw": 2.5,
    "coulombtype": "Cut-off",
    "coulomb-modifier": "None",
    "vdw-modifier": "None",
    "epsilon-rf": 1,
    "nstcalcenergy": 10,
    "nstenergy": 10,
    "nstlog": 0,
    "nstxout": 100,
}
MD = {"integrator": "md", "tcoupl": "v-rescale", "comm-mode": "linear"}
PHI = ("ACE", "C"), ("ALA", "N"), ("ALA", "CA"), ("ALA", "C")


def library_path():
    """libmodejump: that of MODEJUMP_LIB, or the one that is installed for this Python."""
    if "MODEJUMP_LIB" in os.environ:
        return Path(os.environ["MODEJUMP_LIB"])
    installed = list(Path(sys.prefix).glob("lib/python3*/site-packages/modejump/libmodejump.so"))
    assert installed, "libmodejump is not installed: make plugin installs it, or MODEJUMP_LIB names it"
    return installed[0]


def shell(command, folder, text="", **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=dict(os.environ, **environment),
        input=text,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr


def read_trr(path):
    """step, x, v, f of every frame that has coordinates; arrays that were not written are empty."""
    data, at = path.read_bytes(), 0
    found = {"step": [], "x": [], "v": [], "f": []}
    while at < len(data):
        sizes = struct.unpack_from(">13i", data, at + 24)
        at += 24 + 52 + 8
        for name, size in zip(["", "", "box", "vir", "pres", "", "", "x", "v", "f"], sizes):
            if name in ("x", "v", "f") and sizes[7]:
                found[name].append(np.frombuffer(data, ">f4", size // 4, at).reshape(-1, 3).astype(float))
            at += size
        if sizes[7]:
            found["step"].append(sizes[11])
    return {name: np.array(rows) for name, rows in found.items()}


def write_trr(path, frames, box):
    """Coordinates only."""
    with path.open("wb") as file:
        for step, x in enumerate(frames):
            sizes = [0, 0, 36, 0, 0, 0, 0, x.nbytes // 2, 0, 0, len(x), step, 0]
            file.write(struct.pack(">3i12s13i2f", 1993, 13, 12, b"GMX_trn_file", *sizes, float(step), 0.0))
            file.write(struct.pack(">9f", box, 0, 0, 0, box, 0, 0, 0, box))
            file.write(x.astype(">f4").tobytes())


def error_of(values, blocks=20):
    """Standard error of a mean, from block averages."""
    means = np.array([block.mean(axis=0) for block in np.array_split(values, blocks)])
    return means.std(axis=0, ddof=1) / np.sqrt(blocks)


class System:
    """A topology and a start in a folder; runs are made in folders below."""

    def __init__(self, folder, preload):
        self.folder = folder
        self.preload = preload
        command = ["gmx", "-quiet", "pdb2gmx", "-f", MODELS / "topology.pdb", "-ff", "amber99sb-ildn", "-water", "none"]
        self.gmx([*command, "-o", "pdb.gro", "-p", "topol.top"])
        self.gmx(["gmx", "-quiet", "editconf", "-f", "pdb.gro", "-o", "conf.gro", "-box", "6", "-c"])
        self.runs = 0

    def gmx(self, command, text=""):
        status, output = shell(command, self.folder, text)
        assert status == 0, output[-3000:]
        return output

    def atoms(self):
        """(residue, name) of every atom."""
        lines = (self.folder / "conf.gro").read_text().splitlines()[2:-1]
        return [(line[5:10].strip(), line[10:15].strip()) for line in lines]

    def masses(self):
        return np.array([{"H": 1.008, "C": 12.01, "N": 14.01, "O": 16.0}[name[0]] for _, name in self.atoms()])

    def phi(self, x, molecule=0):
        """Torsions of [frame][atom][3], radian. Differences are taken to the nearest image."""
        at = [self.atoms().index(label) + 22 * molecule for label in PHI]
        a, b, c = (x[:, q] - x[:, p] for p, q in zip(at, at[1:]))
        a, b, c = (d - 6 * np.round(d / 6) for d in (a, b, c))
        m, n = np.cross(a, b), np.cross(b, c)
        return np.arctan2((np.cross(m, n) * b).sum(axis=1) / np.linalg.norm(b, axis=1), (m * n).sum(axis=1))

    def tpr(self, mdp, topology="topol.top", conf="conf.gro", extra=()):
        self.runs += 1
        name = f"run{self.runs}"
        (self.folder / f"{name}.mdp").write_text("".join(f"{key} = {value}\n" for key, value in {**MDP, **mdp}.items()))
        command = ["gmx", "-quiet", "grompp", "-f", f"{name}.mdp", "-c", conf, "-r", conf, "-p", topology, "-o", f"{name}.tpr"]
        self.gmx([*command, "-po", f"{name}.out.mdp", "-maxwarn", "5", *extra])
        return self.folder / f"{name}.tpr"

    def run(self, mdp=None, jumps=None, **how):
        """A run that has to end well."""
        run = Run(self, self.tpr(mdp or {}, *how.pop("topology", ()), extra=how.pop("grompp", ())))
        status, text = run.mdrun(jumps, **how)
        assert status == 0, text[-3000:]
        return run

    def refused(self, mdp=None, jumps=None, topology=(), grompp=(), **how):
        """What a run says that has to be refused."""
        status, text = Run(self, self.tpr(mdp or {}, *topology, extra=grompp)).mdrun(jumps or {}, **how)
        assert status != 0 and "modejump:" in text, text[-3000:]
        # fatal errors are wrapped
        return " ".join(text[text.index("modejump:") :].split())


class Run:
    """One tpr file in a folder of its own."""

    def __init__(self, system, tpr):
        self.system = system
        self.tpr = tpr
        self.folder = tpr.with_suffix("")
        self.folder.mkdir()

    def mdrun(self, jumps=None, ranks=1, threads=1, options=(), preload=True, environment=None):
        """Jumps are options of the moves, None for plain dynamics."""
        variables = {"MODEJUMP_LIB": str(library_path()), **(environment or {})}
        if preload:
            variables["LD_PRELOAD"] = str(self.system.preload)
        if jumps is not None:
            lines = {"model": GENERATOR, "steps": 10, "seed": 7, "log": "jumps.csv", **jumps}
            text = "".join(f"{key} = {value} ; comment\n" for key, value in lines.items() if value is not None)
            (self.folder / "jumps.mdp").write_text("; what the moves are\n\n" + text)
            variables["MODEJUMP_OPTIONS"] = "jumps.mdp"
        command = ["gmx", "-quiet", "mdrun", "-s", self.tpr, "-deffnm", "md", "-reprod", "-pin", "off", "-nb", "cpu"]
        command += ["-ntmpi", ranks, "-ntomp", threads, "-rdd", "1.2", *options]
        status, self.text = shell(command, self.folder, **variables)
        return status, self.text

    def bytes(self, suffix):
        return (self.folder / f"md.{suffix}").read_bytes()

    def frames(self):
        return read_trr(self.folder / "md.trr")

    def energies(self, skip=50):
        """Potential energy (kJ/mol) and temperature."""
        text = "Potential\nTemperature\n\n"
        command = ["gmx", "-quiet", "energy", "-f", "md.edr", "-o", "energy.xvg", "-xvg", "none"]
        status, output = shell(command, self.folder, text)
        assert status == 0, output[-2000:]
        return np.loadtxt(self.folder / "energy.xvg")[skip:, 1:].T

    def jumps(self):
        """The log of attempts: steps, numbers [attempt][potential, potential_proposed, log_acceptance], fates."""
        rows = [line.split(",") for line in (self.folder / "jumps.csv").read_text().splitlines()]
        assert rows[0] == ["step", "potential", "potential_proposed", "log_acceptance", "fate"]
        steps, numbers, fates = [], [], []
        for row in rows[1:]:
            steps.append(int(row[0]))
            numbers.append([float(value) for value in row[1:4]])
            fates.append(row[4])
        return np.array(steps), np.array(numbers), np.array(fates)


class Generator:
    """Samples of a model, through the C interface."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(library_path()))
        self.handle = ctypes.c_void_p()
        self.check(self.library.modejump_model_load(str(path).encode(), ctypes.byref(self.handle)))

    def check(self, status):
        if status != 0:
            message = ctypes.c_char_p()
            self.library.modejump_last_error(ctypes.byref(message))
            raise RuntimeError(message.value.decode())

    def order(self, atoms):
        """Where the model's atoms are in a list of (residue, name)."""
        n, order = len(atoms), (ctypes.c_uint64 * len(atoms))()
        residues, names = ((ctypes.c_char_p * n)(*(label[k].encode() for label in atoms)) for k in (0, 1))
        self.check(self.library.modejump_model_match_atoms(self.handle, ctypes.c_uint64(n), residues, names, order))
        return np.array(order, dtype=int)

    def sample(self, n, atoms, seed=1):
        """Configurations [n][atom][3] in the caller's order of atoms, and their log q."""
        x, log_q = np.empty((n, atoms, 3)), np.empty(n)
        pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, log_q)]
        self.check(self.library.modejump_model_sample(self.handle, *map(ctypes.c_uint64, (seed, 0, n)), *pointers))
        return x, log_q


@pytest.fixture(scope="session")
def preload():
    """The patched do_md() for the installed GROMACS."""
    try:
        return gromacs_source.preload(faults=True)
    except gromacs_source.Missing as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="session")
def ala2(preload, tmp_path_factory):
    return System(tmp_path_factory.mktemp("ala2"), preload)
