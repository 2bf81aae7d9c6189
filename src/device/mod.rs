//! Devices that models run on: the CPU, or a GPU through kernels written in CUDA C++ (`cuda/`).
//!
//! A [`Driver`] is the interface between kernels and a device: memory, copies, launches. `nvidia.rs` has the one for
//! NVIDIA's cards; tests use another that runs the same kernels on the CPU.

#[cfg(feature = "cuda")]
pub mod ahead;
#[cfg(feature = "cuda")]
pub mod compile;
mod kept;
#[cfg(feature = "cuda")]
mod nvidia;
pub mod program;

pub use kept::{Buffer, Compiled, Workspace, Workspaces};
pub use program::Program;

use crate::error::{Error, Result};
use bytemuck::NoUninit;
use std::sync::{Arc, PoisonError, RwLock};

/// Interface to a device. Addresses are in the device's memory. Errors are the device's: what failed, with the cause.
pub trait Driver: Send + Sync {
    /// Name and number of the card, for messages.
    fn describe(&self) -> String;

    /// Largest shared memory of a block, in bytes.
    fn shared_memory(&self) -> usize;

    /// Bytes of its memory.
    fn memory(&self) -> usize;

    /// Whether f32 networks shall use tensor cores where they can (`cuda/tensor.cuh`).
    fn tensor_cores(&self) -> bool {
        false
    }

    /// Whether kernels that run for more than a few seconds are killed, as on cards with a display.
    fn has_watchdog(&self) -> bool {
        false
    }

    /// Rows per launch where others take at most `most`: fewer if kernels that run for long are killed.
    fn rows_of_launch(&self, most: usize) -> usize {
        if self.has_watchdog() {
            most.div_ceil(16)
        } else {
            most
        }
    }

    /// Number of multiprocessors, for the choice of tiles.
    fn multiprocessors(&self) -> usize;

    /// The driver in the CUDA context that is current on the calling thread. None if that is on another card and
    /// `only_here` holds, and for devices without contexts.
    ///
    /// # Safety
    /// The context outlives the returned driver.
    unsafe fn in_current_context(&self, only_here: bool) -> Result<Option<Arc<dyn Driver>>> {
        let _ = only_here;
        Ok(None)
    }

    /// The same device with its own queue, whose launches and copies do not wait for those of this one, except those
    /// already begun. None if there is only one queue.
    fn another_queue(&self) -> Result<Option<Arc<dyn Driver>>> {
        Ok(None)
    }

    /// Kernel `name` of a program, compiled if necessary, for [`Driver::launch`].
    fn kernel(&self, program: &Program, name: &str) -> Result<KernelId>;

    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Frees memory from [`Driver::allocate`].
    fn free(&self, address: u64);

    /// Copies to the device; the caller keeps `bytes` unchanged until the next download or [`Driver::finish`].
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for everything that was begun.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    /// Copies from the device after all earlier uploads and launches, and waits once for all of it.
    fn download(&self, readings: &mut [Reading]) -> Result<()>;

    /// Starts `grid` blocks of `block` threads, each with `shared` bytes of shared memory; `argument` is the kernel's
    /// struct.
    ///
    /// # Safety
    /// The kernel takes exactly these bytes, and every address in them points to sufficient memory of this driver that
    /// lives until the next download.
    unsafe fn launch(&self, kernel: KernelId, grid: u32, block: u32, shared: usize, argument: &[u8]) -> Result<()>;

    /// Number of such blocks that the device runs at once.
    fn resident(&self, kernel: KernelId, block: u32, shared: usize) -> Result<usize>;

    /// As [`Driver::launch`], with all blocks resident at once, so that they can wait for each other. Errors: also more
    /// blocks than can be resident.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn launch_together(
        &self,
        kernel: KernelId,
        grid: u32,
        block: u32,
        shared: usize,
        argument: &[u8],
    ) -> Result<()>;
}

/// Bytes that the states of all blocks of a launch may take: of calls at the same time each has its own.
pub fn memory_of_states(driver: &dyn Driver) -> usize {
    driver.memory() / 4
}

/// Bytes to copy from the device: their address there, and where to.
pub type Reading<'a> = (u64, &'a mut [u8]);

/// Whether kernels for this architecture use tensor cores: from sm_80 on, if `MODEJUMP_TENSOR_CORES` is 1.
#[cfg(feature = "cuda")]
fn tensor_cores(architecture: &str) -> bool {
    let asked = std::env::var("MODEJUMP_TENSOR_CORES").is_ok_and(|value| value == "1");
    asked && !architecture.starts_with("sm_7")
}

/// A compiled kernel of one driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelId(pub usize);

#[cfg(not(feature = "cuda"))]
mod nvidia {
    use super::*;

    pub fn open(_: usize) -> Result<Arc<dyn Driver>> {
        Err(Error::Unsupported("this build does not include the feature `cuda`; use device cpu".into()))
    }

    pub fn open_for(process: usize) -> Result<Arc<dyn Driver>> {
        open(process)
    }
}

/// A device for models to run on.
#[derive(Clone)]
pub struct Device {
    driver: Option<Arc<dyn Driver>>,
    /// Whether it was requested by its number.
    by_number: bool,
}

impl Device {
    /// The CPU.
    pub fn cpu() -> Device {
        Device { driver: None, by_number: false }
    }

    /// As [`Device::any_cuda`], or the CPU if there is no GPU.
    pub fn auto() -> Device {
        Device::any_cuda().unwrap_or_else(|_| Device::cpu())
    }

    /// The first GPU; the ranks of an MPI run on one machine are distributed over its GPUs in turn. Errors: no GPU, or
    /// what is missing for one.
    pub fn any_cuda() -> Result<Device> {
        Ok(Device { driver: Some(nvidia::open_for(local_rank())?), by_number: false })
    }

    /// GPU number `ordinal`. Errors name what is missing.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Ok(Device { driver: Some(nvidia::open(ordinal)?), by_number: true })
    }

    /// A device with a custom driver.
    pub fn with_driver(driver: Arc<dyn Driver>) -> Device {
        Device { driver: Some(driver), by_number: false }
    }

    /// For a program with a CUDA context of its own, current on this thread: the GPU in that context instead of the
    /// primary one, so that the kernels of both run side by side. Unchanged if it is no GPU, or was requested by number
    /// and the context is on another card.
    ///
    /// Errors: no context is current.
    ///
    /// # Safety
    /// The context outlives the device, and the models and moves made on it.
    pub unsafe fn in_current_context(&self) -> Result<Device> {
        let driver = match &self.driver {
            // SAFETY: the caller's promise.
            Some(driver) => unsafe { driver.in_current_context(self.by_number) }?,
            None => None,
        };
        Ok(driver.map_or_else(|| self.clone(), |driver| Device { driver: Some(driver), ..*self }))
    }

    /// Parses `cpu`, `auto`, `cuda` or `cuda:N`. Errors: another name; those of the device.
    pub fn parse(name: &str) -> Result<Device> {
        let unknown = || Error::invalid(format!("unknown device {name:?}; known devices: cpu, auto, cuda, cuda:N"));
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::cpu()),
            None if name == "auto" => Ok(Device::auto()),
            None if name == "cuda" => Device::any_cuda(),
            Some(("cuda", ordinal)) => Device::cuda(ordinal.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }

    /// Name for messages.
    pub fn describe(&self) -> String {
        self.driver.as_ref().map_or("cpu".to_string(), |driver| driver.describe())
    }

    /// Driver of the GPU; None for the CPU.
    pub fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.driver.as_ref()
    }
}

/// Environment variables in which `mpirun` or `srun` gives a process its local rank: Open MPI, MPICH and Intel MPI,
/// MVAPICH, PALS, Slurm.
pub const LOCAL_RANKS: [&str; 5] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
];

/// Value of the first of [`LOCAL_RANKS`] that is a number; 0 if there is none.
fn local_rank() -> usize {
    LOCAL_RANKS.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// Last argument of [`set_default`].
static DEFAULT: RwLock<Option<Device>> = RwLock::new(None);

/// Device of models that are loaded without one: set by [`set_default`], else by the environment variable
/// `MODEJUMP_DEVICE`, else the CPU. Errors: those of [`Device::parse`].
pub fn default() -> Result<Device> {
    if let Some(device) = &*DEFAULT.read().unwrap_or_else(PoisonError::into_inner) {
        return Ok(device.clone());
    }
    match std::env::var("MODEJUMP_DEVICE") {
        Ok(name) if !name.is_empty() => {
            Device::parse(&name).map_err(|e| Error::invalid(format!("MODEJUMP_DEVICE: {e}")))
        }
        _ => Ok(Device::cpu()),
    }
}

/// Sets the device of models loaded from now on.
pub fn set_default(device: Device) {
    *DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = Some(device);
}

/// Bytes of a kernel's argument.
pub fn argument<T: NoUninit>(argument: &T) -> &[u8] {
    bytemuck::bytes_of(argument)
}
