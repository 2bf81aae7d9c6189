#!/bin/sh
# Installs NVIDIA's compilers from PyPI into target/cuda. They only serve to compile kernels on machines without a GPU.
# If they are unavailable, prints a message and succeeds.
set -eu
cd "$(dirname "$0")/.."
folder=target/cuda
version=13.0
if [ -f "$folder/.version" ] && [ "$(cat "$folder/.version")" = "$version" ]; then exit 0; fi
rm -rf "$folder"
if ! .venv/bin/python -m pip install -q --no-deps --target "$folder" "nvidia-cuda-nvcc==$version.*" "nvidia-nvvm==$version.*" \
    "nvidia-cuda-crt==$version.*" "nvidia-cuda-runtime==$version.*" "nvidia-cuda-nvrtc==$version.*"; then
    echo "scripts/nvcc.sh: could not install nvcc; tests that compile kernels for GPUs will be skipped" >&2
    rm -rf "$folder"
    exit 0
fi
echo "$version" > "$folder/.version"
