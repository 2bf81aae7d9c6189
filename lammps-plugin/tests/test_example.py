"""Alanine dipeptide, as examples/lammps-ala2 makes it: the energy is OpenMM's, and jumps of the shipped generator are accepted."""

import re
import subprocess
import sys

from conftest import PLUGIN, ROOT


def test_alanine_dipeptide_jumps(tmp_path):
    assert PLUGIN.exists(), f"{PLUGIN} is not built: make test-lammps builds it"
    script = ROOT / "examples" / "lammps-ala2" / "make.py"
    command = [sys.executable, script, "--output", tmp_path, "--plugin", PLUGIN, "--steps", "10000", "--run"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    by_openmm, by_lammps = (float(re.search(f"by {engine}: (.*) kcal", said).group(1)) for engine in ("OpenMM", "LAMMPS"))
    assert abs(by_openmm - by_lammps) < 1e-3, said
    jumps, accepted = (float(number) for number in re.search(r"(\d+) jumps, (.*) % accepted", said).groups())
    assert jumps == 1000 and accepted > 60, said
