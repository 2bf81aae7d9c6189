//! A graphics card in software, for tests of programs that use NVIDIA's: as `libcuda.so.1` it is the driver of a card
//! whose kernels are run by the machine for PTX of `tests/cuda_cpu/ptx`; as `libnvrtc.so.13` it is NVIDIA's compiler,
//! which gives PTX where cubins are asked for; as `libcufft.so.12` it transforms by the definition.
//!
//! `scripts/software_card.sh` builds it and OpenMM's CUDA platform around it.

#![allow(clippy::missing_safety_doc, clippy::too_many_arguments)]

mod card;
mod compiler;
mod driver;
#[cfg(test)]
mod tests;
mod transforms;

#[path = "../cuda_cpu/ptx/alu.rs"]
mod alu;
#[path = "../cuda_cpu/ptx/code.rs"]
mod code;
#[path = "../cuda_cpu/ptx/machine.rs"]
mod machine;
#[path = "../cuda_cpu/ptx/parse.rs"]
mod parse;
#[path = "../cuda_cpu/ptx/text.rs"]
mod text;
#[path = "../cuda_cpu/ptx/warp.rs"]
mod warp;
