#!/bin/sh
# Runs a command with an OpenCL driver for the CPU (pocl, from PyPI, in target/opencl), so that the OpenMM plugin's device code can be tested
# without a GPU. If there is no OpenCL device, prints a message and runs nothing.
# usage: scripts/opencl.sh COMMAND...
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$root/target/opencl
driver=$(find "$folder" -name 'libpocl*.so' 2>/dev/null | head -1)
if [ -z "$driver" ]; then
    rm -rf "$folder"
    "$root/.venv/bin/python" -m pip install -q --no-deps --target "$folder" 'pocl-binary-distribution==3.0' || true
    driver=$(find "$folder" -name 'libpocl*.so' 2>/dev/null | head -1)
fi
if [ -n "$driver" ]; then
    mkdir -p "$folder/vendors"
    echo "$driver" > "$folder/vendors/pocl.icd"
    export OCL_ICD_VENDORS="$folder/vendors" POCL_CACHE_DIR="$folder/cache"
fi
if ! "$root/.venv/bin/python" -c 'import openmm; openmm.Platform.getPlatformByName("OpenCL").getDevices()[0]' 2>/dev/null; then
    echo "scripts/opencl.sh: OpenMM found no OpenCL device (it requires a driver and libOpenCL.so.1); nothing was run" >&2
    exit 0
fi
exec "$@"
