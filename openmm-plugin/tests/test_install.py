"""The package in a clean environment: pip installs it, OpenMM loads the plugin by itself, and pip takes it away again."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = """
import openmm
failures = [text for text in openmm.Platform.getPluginLoadFailures() if 'ModeJump' in text]
assert not failures, failures
xml = '<Force type="MonteCarloModeJump" version="1" model="m" hash="" frequency="5"/>'
force = openmm.XmlSerializer.deserialize(xml)
print(force.getName())
import modejump
print(modejump.MonteCarloModeJump.cast(force).frequency, modejump.__file__)
"""


def run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("MODEJUMP_OPENMM_PLUGIN", "PYTHONPATH")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def openmm_version():
    """Of the wheel, which OpenMM itself does not know to the last part (8.4.0.post1)."""
    return importlib.metadata.version("openmm")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built with the tools of the running environment."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    run(sys.executable, "-m", "pip", "wheel", *options, str(PROJECT))
    (wheel,) = folder.glob("modejump-*.whl")
    assert "-py3-none-" in wheel.name
    return wheel


def test_the_openmm_of_the_environment_is_found(tmp_path):
    """As in an environment of conda, which has the libraries in its lib, and while pip builds with another OpenMM."""
    venv, other = tmp_path / "venv", tmp_path / "build"
    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    (packages,) = venv.glob("lib/python3*/site-packages")
    for place, libraries in ((packages, venv / "lib"), (other, other / "OpenMM.libs" / "lib")):
        (place / "openmm").mkdir(parents=True)
        (place / "openmm" / "version.py").write_text(f"openmm_library_path = {str(libraries)!r}\n")
    find = f"import runpy, sys; sys.path.insert(0, {str(other)!r}); runpy.run_path({str(PROJECT / 'find_openmm.py')!r})"
    assert run(str(venv / "bin" / "python"), "-c", find) == f"{venv}\n"
    (packages / "openmm" / "version.py").unlink()
    assert run(str(venv / "bin" / "python"), "-c", find) == f"{other / 'OpenMM.libs'}\n"


def test_install_load_uninstall(wheel, tmp_path):
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv))
    python = str(venv / "bin" / "python")
    run(python, "-m", "pip", "install", "--quiet", f"openmm=={openmm_version()}", str(wheel))
    name, line = run(python, "-c", SCRIPT, cwd=tmp_path).splitlines()
    assert name == "MonteCarloModeJump" and line.startswith("5 ") and str(venv) in line
    (plugin,) = venv.glob("lib/python3*/site-packages/OpenMM.libs/lib/plugins/libOpenMMModeJump.so")
    symbols = run("nm", "-D", "--defined-only", str(plugin)).split("\n")
    exported = {line.split()[-1] for line in symbols if " T " in line}
    foreign = {s for s in exported if "ModeJump" not in s and not s.startswith(("modejump_openmm_", "register"))}
    assert not foreign, f"symbols of the core leak: {sorted(foreign)[:5]}"
    run(python, "-m", "pip", "uninstall", "--quiet", "--yes", "modejump")
    assert not plugin.exists()
    run(python, "-c", "import openmm; openmm.LangevinMiddleIntegrator(300, 1, 0.001)", cwd=tmp_path)
