#!/bin/sh
# Builds the OpenMM plugin and installs it into .venv; quick if no source has changed.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
stamp=$root/.venv/.plugin
sources=$(cd "$root" && find openmm-plugin src cuda include cmake Cargo.toml Cargo.lock build.rs scripts/requirements.txt -type f \
    ! -path '*/__pycache__/*' | sort | xargs cat | cksum)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sources" ]; then
    exit 0
fi
# an interrupted install must not leave a stamp that claims it is complete
rm -f "$stamp"
"$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --force-reinstall --no-deps "$root/openmm-plugin"
echo "$sources" > "$stamp"
