#!/bin/sh
# Creates .venv with everything that the build, the demo and the tests need; quick if nothing is left to do.
# usage: scripts/venv.sh [DIRECTORY]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$root/.venv}
python=${PYTHON:-python3}
requirements=$root/scripts/requirements.txt

if [ -f "$venv/.requirements" ] && cmp -s "$requirements" "$venv/.requirements"; then
    exit 0
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "scripts/venv.sh: Python >= 3.10 is required; set PYTHON to one" >&2
    exit 1
}
# Without python3-venv, Debian's Python makes an environment without pip; a second run, with python3-venv installed, completes it.
if ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    "$python" -m venv "$venv" && "$venv/bin/python" -m pip --version > /dev/null || {
        echo "scripts/venv.sh: $python -m venv could not create an environment with pip: run apt install python3-venv, or set PYTHON to another Python;" \
            "if $venv is damaged, remove it" >&2
        exit 1
    }
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"
cp "$requirements" "$venv/.requirements"
