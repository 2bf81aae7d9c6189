//! Vector fields and energies of molecules on a GPU: batches, launches and the partitioning of divergences
//! (`cuda/networks.cuh`); the ODE of a flow in `ode.rs`, blocks of message-passing networks in `tangents.rs`. Each
//! model supplies its kernels and weights: `gvp_flow/cuda.rs`, `egnn_flow/cuda.rs`, `graphormer_ebm/cuda.rs`,
//! `gvp_ebm/cuda.rs`, `mlp_ebm/cuda.rs`, `invariant_ebm/cuda.rs`.

mod energy;
mod ode;
mod packing;
pub mod tangents;

pub use energy::{EnergyKernel, EnergyOnDevice};
pub use packing::{bytes, padded, LinearRecord, NormRecord, Packing};

use super::field::{PathSolver, VectorField};
use crate::device::{memory_of_states, Buffer, Compiled, Driver, KernelId, Program, Workspace, Workspaces};
use crate::error::{Error, Result};
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads of a block, which has a multiprocessor to itself: one round of a product of 64 outputs in PAIR_LANES lanes;
/// f64 networks need twice the registers.
pub fn threads<R>() -> usize {
    match size_of::<R>() {
        8 => 192,
        _ => 384,
    }
}

/// Whether a block's state of `memory` numbers is too large for shared memory: the constant SCRATCH of its kernel.
pub fn needs_scratch<R>(memory: usize, shared: usize) -> bool {
    memory * size_of::<R>() > shared
}

/// Properties of the GPU that the kernels depend on.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Bytes of shared memory that a block can have.
    pub shared: usize,
    /// Whether products use tensor cores; only f32 networks do.
    pub tensor: bool,
}

impl Machine {
    /// A typical GPU, for compiling where there is none.
    pub const ELSEWHERE: Machine = Machine { shared: 227 << 10, tensor: false };
    /// [`Machine::ELSEWHERE`] with tensor cores.
    pub const WITH_TENSOR_CORES: Machine = Machine { tensor: true, ..Machine::ELSEWHERE };
    /// The shared memory of workstation cards (sm_86, 89 and 120).
    pub const SMALLER: Machine = Machine { shared: 99 << 10, ..Machine::ELSEWHERE };

    /// The properties of a driver's GPU, for networks of type `R`.
    pub fn of<R>(driver: &Arc<dyn Driver>) -> Machine {
        Machine { shared: driver.shared_memory(), tensor: size_of::<R>() == 4 && driver.tensor_cores() }
    }
}

/// Blocks that a launch has work for, so that memory on the card does not grow with the batch and no launch takes
/// seconds.
const LAUNCH: usize = 1024;
/// How many configurations in turn a team may take before single blocks are faster: a team of 32 takes about a seventh
/// of a block's time.
const ROUNDS_OF_TEAMS: usize = 4;

/// `Batch` of the kernels; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Batch {
    t: u64,
    x: u64,
    dx: u64,
    f: u64,
    df: u64,
    parts: u64,
    scratch: u64,
    arrivals: u64,
    n: i32,
    padding: i32,
}

/// Compile-time options of a kernel besides model and machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Directions of derivatives computed at once; 0 for values only.
    pub directions: usize,
    /// Blocks that evaluate a configuration together.
    pub team: usize,
}

impl Variant {
    /// One block per configuration.
    pub fn of_blocks(directions: usize) -> Variant {
        Variant { directions, team: 1 }
    }
}

/// Sizes of a block's memory, in numbers.
#[derive(Clone, Copy)]
pub struct Numbers {
    /// In shared memory, if that is large enough.
    pub state: usize,
    /// Always in global memory.
    pub tape: usize,
}

impl Numbers {
    /// A block with a state but no tape.
    pub fn of_state(state: usize) -> Numbers {
        Numbers { state, tape: 0 }
    }
}

/// A model's kernels and the data they read.
pub struct FieldKernel {
    /// Name of the kernel that evaluates batches of values.
    pub name: &'static str,
    /// Coordinates per configuration.
    pub dimension: usize,
    /// Configurations that a block takes at once.
    pub rows: usize,
    /// Threads per block.
    pub threads: usize,
    /// Directions in one share of a divergence or, for energies, of a score. A score found by reverse mode is a single
    /// share, whose one direction only distinguishes its program from that of values.
    pub directions: usize,
    /// Shares into which a configuration's score is split.
    pub shares: usize,
    /// Blocks of a team when configurations are few; 1 where each configuration always has a block of its own.
    pub team: usize,
    /// Program of a variant, and the memory of its blocks.
    pub program: Box<dyn Fn(Variant) -> Program + Send + Sync>,
    pub memory: Box<dyn Fn(Variant) -> Numbers + Send + Sync>,
    /// Argument bytes that follow the batch or the ODE.
    pub arguments: Vec<u8>,
    /// Buffers that the arguments point to.
    pub buffers: Vec<Box<dyn Any + Send + Sync>>,
}

impl FieldKernel {
    /// A kernel without arguments so far, with one block per configuration.
    pub fn new(
        (name, dimension, threads): (&'static str, usize, usize),
        program: impl Fn(Variant) -> Program + Send + Sync + 'static,
        memory: impl Fn(Variant) -> Numbers + Send + Sync + 'static,
    ) -> FieldKernel {
        let (program, memory) = (Box::new(program), Box::new(memory));
        let (arguments, buffers) = (Vec::new(), Vec::new());
        FieldKernel {
            name,
            dimension,
            rows: 1,
            threads,
            directions: 1,
            shares: 1,
            team: 1,
            program,
            memory,
            arguments,
            buffers,
        }
    }

    /// Copies values to the card and keeps them there as long as the kernel lives; returns their address. Errors: the
    /// driver's.
    pub fn keep<T: Pod + Send + Sync>(&mut self, driver: &Arc<dyn Driver>, values: &[T]) -> Result<u64> {
        let buffer = Buffer::of(driver, values)?;
        let address = buffer.address();
        self.buffers.push(Box::new(buffer));
        Ok(address)
    }
}

/// A field whose values and derivatives are computed on a GPU.
pub struct FieldOnDevice<R: Real> {
    driver: Arc<dyn Driver>,
    kernel: FieldKernel,
    /// Compiled kernels by name and variant.
    kernels: Compiled<(&'static str, Variant), BlockShape>,
    work: Workspaces<Work<R>>,
    /// The first failure that was not reported yet.
    failure: Mutex<Option<String>>,
}

/// Launch shape of a kernel's blocks: bytes of shared memory, numbers of scratch memory, and how many are resident.
#[derive(Clone, Copy)]
struct BlockShape {
    kernel: KernelId,
    shared: usize,
    scratch: usize,
    resident: usize,
}

/// Device and host memory for a batch.
struct Work<R> {
    t: Buffer<f64>,
    x: Buffer<f64>,
    dx: Buffer<f64>,
    f: Buffer<f64>,
    df: Buffer<f64>,
    parts: Buffer<f64>,
    scratch: Buffer<R>,
    arrivals: Buffer<u32>,
    /// Zeros for the initial arrivals.
    none_yet: Vec<u32>,
    host: Vec<f64>,
    paths: ode::Work,
}

impl<R: Real> Work<R> {
    fn new(driver: &Arc<dyn Driver>) -> Work<R> {
        Work {
            t: Buffer::empty(driver),
            x: Buffer::empty(driver),
            dx: Buffer::empty(driver),
            f: Buffer::empty(driver),
            df: Buffer::empty(driver),
            parts: Buffer::empty(driver),
            scratch: Buffer::empty(driver),
            arrivals: Buffer::empty(driver),
            none_yet: Vec::new(),
            host: Vec::new(),
            paths: ode::Work::new(driver),
        }
    }
}

impl<R: Real> FieldOnDevice<R> {
    /// Compiles the kernel for values; those for derivatives follow on first use. Errors: the compiler's.
    pub fn new(driver: &Arc<dyn Driver>, kernel: FieldKernel) -> Result<FieldOnDevice<R>> {
        // now rather than in the middle of a simulation, in case there is no compiler
        driver.kernel(&(kernel.program)(Variant::of_blocks(0)), kernel.name)?;
        Ok(FieldOnDevice {
            driver: driver.clone(),
            kernel,
            kernels: Compiled::default(),
            work: Workspaces::on(driver, Work::new),
            failure: Mutex::default(),
        })
    }

    fn first_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of shares into which an exact divergence is split.
    fn shares(&self) -> usize {
        (self.kernel.dimension - 3).div_ceil(self.kernel.directions)
    }

    /// Compiled kernel `name` of a variant, with its launch shape.
    fn block(&self, name: &'static str, variant: Variant) -> Result<BlockShape> {
        self.kernels.get((name, variant), || {
            let kernel = self.driver.kernel(&(self.kernel.program)(variant), name)?;
            let Numbers { state, tape } = (self.kernel.memory)(variant);
            let (shared, scratch) = match needs_scratch::<R>(state, self.driver.shared_memory()) {
                false => (state * size_of::<R>(), tape),
                true => (0, tape + state),
            };
            let resident = self.driver.resident(kernel, self.kernel.threads as u32, shared)?;
            let resident = resident.min(memory_of_states(&*self.driver) / (scratch * size_of::<R>()).max(1)).max(1);
            Ok(BlockShape { kernel, shared, scratch, resident })
        })
    }

    /// The variant for this number of rows; few rows are evaluated by a team each.
    fn variant(&self, directions: usize, rows: usize) -> Result<Variant> {
        let team = self.kernel.team;
        let few = team > 1 && rows <= ROUNDS_OF_TEAMS * (self.driver.multiprocessors() / team);
        let together = few && self.block(self.kernel.name, Variant { directions, team })?.resident >= team;
        Ok(Variant { directions, team: if together { team } else { 1 } })
    }

    /// Runs the kernel with this many directions on rows whose t, x and dx are on the card, each split into `parts`.
    fn launch(
        &self,
        work: &mut Workspace<Work<R>>,
        directions: usize,
        rows: usize,
        parts: usize,
        batch: Batch,
    ) -> Result<()> {
        let variant = self.variant(directions, rows)?;
        let block = self.block(self.kernel.name, variant)?;
        let most = if block.scratch == 0 && variant.team == 1 { usize::MAX } else { block.resident / variant.team };
        let teams = most.min(rows.div_ceil(self.kernel.rows) * parts);
        if variant.team > 1 {
            let Work { arrivals, none_yet, .. } = &mut **work;
            none_yet.resize(teams.max(none_yet.len()), 0);
            arrivals.write(none_yet)?;
        }
        // last, as it takes as much as there is
        let teams = work.scratch.reserve_parts(teams, variant.team * block.scratch)?;
        let grid = teams * variant.team;
        let batch = Batch {
            t: work.t.address(),
            x: work.x.address(),
            f: work.f.address(),
            scratch: if block.scratch == 0 { 0 } else { work.scratch.address() },
            arrivals: work.arrivals.address(),
            n: rows as i32,
            ..batch
        };
        let argument = [bytemuck::bytes_of(&batch), &self.kernel.arguments].concat();
        let (grid, threads) = (grid as u32, self.kernel.threads as u32);
        // SAFETY: the kernel takes a batch and its model's arguments; buffers have room for `rows` rows, scratch for
        // `grid` blocks.
        unsafe {
            match variant.team {
                1 => work.driver.launch(block.kernel, grid, threads, block.shared, &argument),
                _ => work.driver.launch_together(block.kernel, grid, threads, block.shared, &argument),
            }
        }
    }

    fn begin(&self, t: &[f64], x: &[f64]) -> Result<Workspace<'_, Work<R>>> {
        let mut work = self.work.take()?;
        work.t.write(t)?;
        work.x.write(x)?;
        work.f.reserve(x.len())?;
        Ok(work)
    }

    fn values(&self, t: &[f64], x: &[f64], f: &mut [f64]) -> Result<()> {
        let mut work = self.begin(t, x)?;
        self.launch(&mut work, 0, t.len(), 1, Batch::default())?;
        work.f.read(f)
    }

    fn derivatives(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) -> Result<()> {
        let mut work = self.begin(t, x)?;
        work.dx.write(dx)?;
        work.df.reserve(df.len())?;
        let batch = Batch { dx: work.dx.address(), df: work.df.address(), ..Batch::default() };
        self.launch(&mut work, 1, t.len(), 1, batch)?;
        work.driver.download(&mut [work.f.copy_to(f), work.df.copy_to(df)])
    }

    fn divergences(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) -> Result<()> {
        let parts = self.shares();
        let mut work = self.begin(t, x)?;
        work.parts.reserve(t.len() * parts)?;
        let batch = Batch { parts: work.parts.address(), ..Batch::default() };
        self.launch(&mut work, self.kernel.directions, t.len(), parts, batch)?;
        let mut host = std::mem::take(&mut work.host);
        host.resize(t.len() * parts, 0.0);
        let read = work.driver.download(&mut [work.f.copy_to(f), work.parts.copy_to(&mut host)]);
        divergence.iter_mut().zip(host.chunks_exact(parts)).for_each(|(to, parts)| *to = parts.iter().sum());
        work.host = host;
        read
    }

    /// Keeps the first failure for [`VectorField::failure`] and fills f with NaN, so that stale numbers are not taken
    /// for results.
    fn note(&self, result: Result<()>, f: &mut [f64]) {
        if let Err(error) = result {
            f.fill(f64::NAN);
            self.first_failure().get_or_insert(error.to_string());
        }
    }
}

impl<R: Real> VectorField for FieldOnDevice<R> {
    fn dimension(&self) -> usize {
        self.kernel.dimension
    }

    fn is_equivariant(&self) -> bool {
        true
    }

    fn rows_at_once(&self) -> usize {
        self.driver.rows_of_launch(LAUNCH * self.kernel.rows)
    }

    fn solver(&self) -> Option<&dyn PathSolver> {
        Some(self)
    }

    fn device(&self) -> String {
        self.driver.describe()
    }

    fn failure(&self) -> Result<()> {
        self.first_failure().take().map_or(Ok(()), |message| Err(Error::Engine(message)))
    }

    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        let launch = self.rows_at_once();
        let d = self.dimension() * launch;
        for ((t, x), f) in t.chunks(launch).zip(x.chunks(d)).zip(f.chunks_mut(d)) {
            let result = self.values(t, x, f);
            self.note(result, f);
        }
    }

    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        let launch = self.rows_at_once();
        let d = self.dimension() * launch;
        let rows = t.chunks(launch).zip(x.chunks(d));
        for ((t, x), (f, divergence)) in rows.zip(f.chunks_mut(d).zip(divergence.chunks_mut(launch))) {
            let result = self.divergences(t, x, f, divergence);
            self.note(result, f);
        }
    }

    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        let launch = self.rows_at_once();
        let d = self.dimension() * launch;
        let rows = t.chunks(launch).zip(x.chunks(d).zip(dx.chunks(d)));
        for ((t, (x, dx)), (f, df)) in rows.zip(f.chunks_mut(d).zip(df.chunks_mut(d))) {
            let result = self.derivatives(t, x, dx, f, df);
            self.note(result, f);
        }
    }
}
