//! Kernels compiled for a card in another machine: a driver that compiles what it is asked for but runs nothing.

use super::{compile, Driver, KernelId, Program, Reading};
use crate::density::{Evaluation, Status};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::rng::{Stream, StreamId};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Largest shared memory per block in bytes, by architecture (CUDA C++ Programming Guide, table of compute
/// capabilities).
const SHARED_MEMORY: [(&str, usize); 11] = [
    ("sm_75", 64 << 10),
    ("sm_80", 163 << 10),
    ("sm_86", 99 << 10),
    ("sm_87", 163 << 10),
    ("sm_89", 99 << 10),
    ("sm_90", 227 << 10),
    ("sm_100", 227 << 10),
    ("sm_103", 227 << 10),
    ("sm_110", 227 << 10),
    ("sm_120", 99 << 10),
    ("sm_121", 99 << 10),
];

/// Number of multiprocessors: few enough that small batches fill them, and as many as the largest team has blocks.
pub const MULTIPROCESSORS: usize = 32;
/// Batch sizes that use every variant of a model's kernels: one, fewer than fill the machine, as many, and many more.
pub const BATCHES: [usize; 4] = [1, 64, 128, 1000];

/// Compiles a program for an architecture, and returns the file.
type Keep = fn(&Program, &str) -> Result<PathBuf>;

/// A device of one architecture. Its kernels return zeros.
pub struct AheadOfTime {
    architecture: String,
    shared_memory: usize,
    multiprocessors: usize,
    keep: Keep,
    files: Mutex<BTreeSet<PathBuf>>,
}

impl AheadOfTime {
    /// For an architecture such as `sm_90`. Errors: an unsupported architecture; no NVRTC.
    pub fn new(architecture: &str) -> Result<AheadOfTime> {
        let machine = AheadOfTime::with(architecture, MULTIPROCESSORS, compile::keep_cubin)?;
        compile::guard_library()?;
        Ok(machine)
    }

    /// With this number of multiprocessors, and another compiler. Errors: an unsupported architecture.
    pub fn with(architecture: &str, multiprocessors: usize, keep: Keep) -> Result<AheadOfTime> {
        let Some((_, shared_memory)) = SHARED_MEMORY.iter().find(|(name, _)| *name == architecture) else {
            let names = SHARED_MEMORY.map(|(name, _)| name).join(", ");
            return Err(Error::invalid(format!("unknown architecture {architecture:?}; known architectures: {names}")));
        };
        let (architecture, files) = (architecture.to_string(), Mutex::default());
        Ok(AheadOfTime { architecture, shared_memory: *shared_memory, multiprocessors, keep, files })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Files of the kernels that were requested.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().iter().cloned().collect()
    }
}

impl Driver for AheadOfTime {
    fn describe(&self) -> String {
        format!("{} (elsewhere)", self.architecture)
    }

    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    /// That of a workstation card.
    fn memory(&self) -> usize {
        16 << 30
    }

    fn tensor_cores(&self) -> bool {
        super::tensor_cores(&self.architecture)
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn kernel(&self, program: &Program, _: &str) -> Result<KernelId> {
        let file = (self.keep)(program, &self.architecture)?;
        self.lock().insert(file);
        Ok(KernelId(0))
    }

    fn allocate(&self, _: usize) -> Result<u64> {
        Ok(0)
    }

    fn free(&self, _: u64) {}

    fn upload(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&self, readings: &mut [Reading]) -> Result<()> {
        readings.iter_mut().for_each(|(_, bytes)| bytes.fill(0));
        Ok(())
    }

    unsafe fn launch(&self, _: KernelId, _: u32, _: u32, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn resident(&self, _: KernelId, _: u32, _: usize) -> Result<usize> {
        Ok(self.multiprocessors)
    }

    unsafe fn launch_together(&self, _: KernelId, _: u32, _: u32, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Calls everything in a model that has kernels, with this number of rows; the results are ignored. Errors: the
/// model's.
pub fn exercise(model: &dyn Model, rows: usize) -> Result<()> {
    let streams = |row: usize| Stream::new(1, StreamId::Sample, 0, row as u32);
    let d = model.dimension();
    let (mut x, mut log_q, mut status) =
        (vec![0.0; rows * d], vec![Evaluation::inside(0.0); rows], vec![Status::Inside; rows]);
    if let Some(energy) = model.energy() {
        let (t, mut u, mut score) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows * d]);
        energy.energy(&t, &x, &mut u);
        energy.energy_score(&t, &x, &mut u, &mut score);
        return energy.failure();
    }
    if let Some(field) = model.field() {
        let (t, mut f, mut of_divergence) = (vec![0.0; rows], vec![0.0; rows * d], vec![0.0; rows]);
        field.evaluate(&t, &x, &mut f);
        field.evaluate_divergence(&t, &x, &mut f, &mut of_divergence);
        field.evaluate_jvp(&t, &x, &vec![0.0; rows * d], &mut f, &mut vec![0.0; rows * d]);
        field.failure()?;
    }
    model.sample(&streams, &mut x, &mut log_q)?;
    model.sample_only(&streams, &mut x, &mut status)?;
    // gradients of a coupling flow, and of a TarFlow
    if model.field().is_none() {
        model.log_density_gradient(&x, &mut log_q, &mut vec![0.0; rows * d])?;
    }
    model.log_density(&x, &mut log_q)
}
