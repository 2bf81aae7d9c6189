//! CUDA's compilers.

use std::path::{Path, PathBuf};

/// Where `scripts/nvcc.sh` puts nvcc and NVRTC, or what `MODEJUMP_CUDA` says.
pub fn folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda/nvidia/cu13");
    std::env::var_os("MODEJUMP_CUDA").map_or(own, PathBuf::from)
}
