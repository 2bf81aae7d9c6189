#!/bin/sh
# Runs a command with an MPI library and libclang, which are needed to build the feature `mpi`: MPICH and libclang from PyPI, installed
# in target/mpi. If they are unavailable, prints SKIPPED and runs nothing.
# usage: scripts/mpi.sh COMMAND...
set -eu
cd "$(dirname "$0")/.."
folder=$PWD/target/mpi
if ! [ -f "$folder/.ready" ]; then
    rm -rf "$folder"
    if ! { "${PYTHON:-python3}" -m venv "$folder" &&
        "$folder/bin/python" -m pip install --quiet --disable-pip-version-check mpich==5.0.2 libclang==18.1.1; }; then
        echo "scripts/mpi.sh: SKIPPED $*: could not install an MPI library and libclang from PyPI" >&2
        exit 0
    fi
    touch "$folder/.ready"
fi
# libclang from PyPI lacks a compiler's headers
export MPICC="$folder/bin/mpicc" PATH="$folder/bin:$PATH" LD_LIBRARY_PATH="$folder/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LIBCLANG_PATH="$(echo "$folder"/lib/python3*/site-packages/clang/native)"
export BINDGEN_EXTRA_CLANG_ARGS="-I$(${CC:-cc} -print-file-name=include)"
exec "$@"
