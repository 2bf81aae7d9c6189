//! Where models run: the CPU, or a GPU through kernels written in CUDA C++ (`cuda/`).
//!
//! A [`Driver`] is all that kernels need of a machine: memory, copies, launches. `nvidia.rs` is the one of NVIDIA's
//! cards; tests have another one that runs the same kernels on the CPU.

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

/// What kernels need of a machine. Addresses are those of the machine's memory.
pub trait Driver: Send + Sync {
    /// For messages: the card's name and number.
    fn describe(&self) -> String;

    /// Bytes of shared memory that one block can have.
    fn shared_memory(&self) -> usize;

    /// Whether f32 networks that can shall use tensor cores (`cuda/tensor.cuh`).
    fn tensor_cores(&self) -> bool {
        false
    }

    /// Whether a kernel that runs for more than some seconds is ended, as on cards with a display.
    fn has_watchdog(&self) -> bool {
        false
    }

    /// How many multiprocessors share out the blocks of a launch, for a choice of tiles.
    fn multiprocessors(&self) -> usize;

    /// A card in the CUDA context that is current on the calling thread. None if that is of another card and
    /// `only_here` holds, and for machines without contexts.
    ///
    /// # Safety
    /// The context outlives what comes back.
    unsafe fn in_current_context(&self, only_here: bool) -> Result<Option<Arc<dyn Driver>>> {
        let _ = only_here;
        Ok(None)
    }

    /// The same machine with a queue of its own: launches and copies there do not wait for those here, except for what
    /// was begun before. None where there is one queue only.
    fn another_queue(&self) -> Result<Option<Arc<dyn Driver>>> {
        Ok(None)
    }

    /// The kernel `name` of a program, compiled if it was not before. The result is for [`Driver::launch`].
    fn kernel(&self, program: &Program, name: &str) -> Result<KernelId>;

    fn allocate(&self, bytes: usize) -> Result<u64>;

    /// Gives back what [`Driver::allocate`] gave.
    fn free(&self, address: u64);

    /// The caller keeps `bytes` as they are until the next download, or [`Driver::finish`].
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for all that was begun.
    fn finish(&self) -> Result<()> {
        Ok(())
    }

    /// Waits for all uploads and launches before.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;

    /// Starts `grid` blocks of `block` threads, each with `shared` bytes of shared memory; `argument` is the kernel's
    /// struct.
    ///
    /// # Safety
    /// The kernel takes exactly these bytes, and every address in them is one of enough memory of this driver that
    /// lives until the next download.
    unsafe fn launch(&self, kernel: KernelId, grid: u32, block: u32, shared: usize, argument: &[u8]) -> Result<()>;

    /// How many such blocks the machine runs at once.
    fn resident(&self, kernel: KernelId, block: u32, shared: usize) -> Result<usize>;

    /// As [`Driver::launch`], with all blocks running at once, so that they can wait for each other. Errors: more than
    /// are resident.
    ///
    /// # Safety
    /// As of [`Driver::launch`].
    unsafe fn launch_together(
        &self,
        kernel: KernelId,
        grid: u32,
        block: u32,
        shared: usize,
        argument: &[u8],
    ) -> Result<()>;
}

/// Whether kernels for this architecture use tensor cores: from sm_80 on, where `MODEJUMP_TENSOR_CORES` is 1.
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
        Err(Error::Unsupported("this build is without the feature `cuda`; use the device cpu".into()))
    }

    pub fn open_for(process: usize) -> Result<Arc<dyn Driver>> {
        open(process)
    }
}

/// Where a model shall run.
#[derive(Clone)]
pub struct Device {
    driver: Option<Arc<dyn Driver>>,
    /// Whether it was asked for by its number.
    by_number: bool,
}

impl Device {
    /// No GPU.
    pub fn cpu() -> Device {
        Device { driver: None, by_number: false }
    }

    /// As [`Device::any_cuda`], or the CPU where there is no GPU.
    pub fn auto() -> Device {
        Device::any_cuda().unwrap_or_else(|_| Device::cpu())
    }

    /// The first GPU; of the ranks of an MPI run on one machine each takes the next one, and the first again after the
    /// last.
    pub fn any_cuda() -> Result<Device> {
        Ok(Device { driver: Some(nvidia::open_for(local_rank())?), by_number: false })
    }

    /// GPU number `ordinal`. The error names what is missing.
    pub fn cuda(ordinal: usize) -> Result<Device> {
        Ok(Device { driver: Some(nvidia::open(ordinal)?), by_number: true })
    }

    /// A machine of one's own.
    pub fn with_driver(driver: Arc<dyn Driver>) -> Device {
        Device { driver: Some(driver), by_number: false }
    }

    /// For a program that has a CUDA context of its own, current on this thread: a GPU in that context instead of the
    /// primary one, so that the kernels of both run side by side. The same device where it is no GPU, or by its number
    /// another one than that of the context.
    ///
    /// Errors: no context is current.
    ///
    /// # Safety
    /// The context outlives the device, and the models and moves that are made on it.
    pub unsafe fn in_current_context(&self) -> Result<Device> {
        let driver = match &self.driver {
            // SAFETY: the caller's promise.
            Some(driver) => unsafe { driver.in_current_context(self.by_number) }?,
            None => None,
        };
        Ok(driver.map_or_else(|| self.clone(), |driver| Device { driver: Some(driver), ..*self }))
    }

    /// `cpu`, `auto`, `cuda` or `cuda:N`.
    pub fn parse(name: &str) -> Result<Device> {
        let unknown = || Error::invalid(format!("device {name:?} is unknown; give cpu, auto, cuda or cuda:N"));
        match name.split_once(':') {
            None if name == "cpu" => Ok(Device::cpu()),
            None if name == "auto" => Ok(Device::auto()),
            None if name == "cuda" => Device::any_cuda(),
            Some(("cuda", ordinal)) => Device::cuda(ordinal.parse().map_err(|_| unknown())?),
            _ => Err(unknown()),
        }
    }

    /// For messages.
    pub fn describe(&self) -> String {
        self.driver.as_ref().map_or("cpu".to_string(), |driver| driver.describe())
    }

    /// Of the GPU; none on the CPU.
    pub fn driver(&self) -> Option<&Arc<dyn Driver>> {
        self.driver.as_ref()
    }
}

/// The environment variables in which `mpirun` or `srun` tell a process its number among those of its machine: Open
/// MPI, MPICH and Intel MPI, MVAPICH, PALS, Slurm.
pub const LOCAL_RANKS: [&str; 5] = [
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "MV2_COMM_WORLD_LOCAL_RANK",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
];

/// The first of them that says a number; 0 where none does.
fn local_rank() -> usize {
    LOCAL_RANKS.iter().find_map(|name| std::env::var(name).ok()?.parse().ok()).unwrap_or(0)
}

/// What [`set_default`] was given last.
static DEFAULT: RwLock<Option<Device>> = RwLock::new(None);

/// Where models run that are loaded without a device: as [`set_default`] says, else the environment variable
/// `MODEJUMP_DEVICE`, else the CPU.
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

/// For models that are loaded from now on.
pub fn set_default(device: Device) {
    *DEFAULT.write().unwrap_or_else(PoisonError::into_inner) = Some(device);
}

/// The bytes of a kernel's argument.
pub fn argument<T: NoUninit>(argument: &T) -> &[u8] {
    bytemuck::bytes_of(argument)
}
