"""Fixtures: GROMACS as it is installed, the program under test, alanine dipeptide in vacuum."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples/gromacs-ala2"), str(ROOT / "openmm-plugin/tests")]
import run as example  # noqa: E402

MODEJUMP = os.environ.get("MODEJUMP_BIN", str(ROOT / "target/release/modejump"))


def pytest_collection_modifyitems(items):
    if shutil.which("gmx") is None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="no gmx on the PATH; sh scripts/gromacs.sh installs it where apt may"))


class Driver:
    """A folder with topol.tpr, in which `modejump gromacs` runs."""

    def __init__(self, folder):
        self.folder = folder

    def command(self, *options, model="model-vacuum", directory="jumps"):
        where = ["-d", directory] if directory else []
        mdrun = [] if "--mdrun" in options else ["--mdrun", "gmx mdrun -nt 1 -reprod"]
        return [MODEJUMP, "gromacs", str(ROOT / f"models/ala2/{model}.safetensors"), *where, *mdrun, *map(str, options)]

    def run(self, *options, check=True, prefix=(), **keywords):
        command = [*prefix, *self.command(*options, **keywords)]
        done = subprocess.run(command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def refused(self, *options, **keywords):
        """The message with which a run is refused."""
        done = self.run(*options, check=False, **keywords)
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert "panicked" not in done.stderr
        return done.stderr

    def files(self, directory="jumps"):
        """What a run has written, by name; of the checkpoint of GROMACS, which holds the time of day, positions and velocities."""
        folder = self.folder / directory
        content = {name: (folder / name).read_bytes() for name in ("traj.xtc", "ener.edr", "jumps.csv")}
        (state,) = folder.glob("state_*.cpt")
        checkpoint = state.read_bytes()
        start = checkpoint.index(np.array([3 * 22, 1], ">i4").tobytes())
        return content | {state.name: checkpoint[start : start + 2 * (8 + 22 * 12)]}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Makes folders with a topol.tpr, once for each set of .mdp options."""
    known = {}

    def make(**options):
        key = tuple(sorted(options.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("gromacs")
            example.prepare(folder, {name.replace("_", "-"): value for name, value in options.items()})
            known[key] = folder
        return known[key]

    return make


@pytest.fixture
def driver(prepared, tmp_path):
    """A Driver in a fresh folder, for .mdp options."""

    def make(**options):
        for name in ("topol.tpr", "topol.top", "conf.gro", "md.mdp", "posre.itp"):
            shutil.copy(prepared(**options) / name, tmp_path)
        return Driver(tmp_path)

    return make
