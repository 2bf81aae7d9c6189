#!/bin/sh
# Runs a command with a graphics card in software (tests/software_card) and OpenMM's CUDA platform, so that what runs on GPUs can be tested
# without one. If the CUDA platform or NVIDIA's compiler cannot be installed, prints a message and runs nothing.
# usage: scripts/software_card.sh COMMAND...
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
folder=$root/target/software-card
sh "$root/scripts/nvcc.sh"
cuda=${MODEJUMP_CUDA:-$root/target/cuda/nvidia/cu13}
libraries=$("$python" -c 'from openmm import version; print(version.openmm_library_path)')
version=$("$python" -c 'import openmm; print(openmm.__version__)')
if [ ! -f "$folder/openmm-$version" ]; then
    rm -rf "$folder"
    "$python" -m pip install -q --no-deps --target "$folder/openmm" "openmm-cuda-13==$version" && touch "$folder/openmm-$version" || true
fi
if [ ! -f "$folder/openmm-$version" ] || [ ! -f "$cuda/lib/libnvrtc.so.13" ]; then
    echo "scripts/software_card.sh: could not install OpenMM's CUDA platform or NVRTC; nothing was run" >&2
    exit 0
fi
(cd "$root" && cargo build --quiet --release --features openmm --example software_card)
card=${CARGO_TARGET_DIR:-$root/target}/release/examples/libsoftware_card.so
mkdir -p "$folder/lib" "$folder/plugins"
for name in libcuda.so libcuda.so.1 libnvrtc.so libnvrtc.so.13 libcufft.so.12; do
    ln -sf "$card" "$folder/lib/$name"
done
ln -sf "$libraries"/plugins/*.so "$folder/openmm/OpenMM.libs/lib/plugins"/*.so "$folder/plugins/"
export SOFTWARE_CARD_NVRTC="$cuda/lib/libnvrtc.so.13" LD_LIBRARY_PATH="$folder/lib:$cuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export OPENMM_PLUGIN_DIR="$folder/plugins" MODEJUMP_CACHE="$folder/cache"
exec "$@"
