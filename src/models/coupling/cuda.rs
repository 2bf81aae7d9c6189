//! Coupling flows on a GPU: launches of `cuda/coupling.cu`, and of `cuda/coupling_back.cuh` for gradients.

mod tables;

use super::CouplingFlow;
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::device::{argument, Buffer, Compiled, Driver, KernelId, Program, Reading, Workspace, Workspaces};
use crate::error::{Error, Result};
use crate::models::{Flow, Model, ModelCard, Steering, LOG_2_PI};
use crate::nn::Real;
use crate::rng::Stream;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;
use tables::{InternalRecord, LayerRecord, Tables};

const SOURCE: &str = include_str!("../../../cuda/coupling.cu");
const GENERATE: &str = "coupling_generate";
const ENCODE: &str = "coupling_encode";
const BACK: &str = "coupling_back";
/// Rows and threads of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tile {
    rows: usize,
    threads: usize,
}

/// Larger tiles reuse weights better; smaller ones finish a small batch sooner.
const TILES: [Tile; 3] = [Tile { rows: 16, threads: 128 }, Tile { rows: 8, threads: 128 }, ALONE];
/// For batches in which every row has a multiprocessor to itself.
const ALONE: Tile = Tile { rows: 1, threads: 256 };
/// Rows per launch, so that memory on the card does not grow with the batch.
const LAUNCH: usize = 1 << 17;

/// `Arguments` of the kernels; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    tables: u64,
    numbers: u64,
    weights: u64,
    layers: u64,
    streams: u64,
    z: u64,
    x: u64,
    log_det: u64,
    evaluations: u64,
    gradient: u64,
    kept: u64,
    internal: InternalRecord,
    /// √τ, τ and ln 2πτ of the normal prior.
    width: f64,
    variance: f64,
    log_volume: f64,
    n: i32,
    dimension: i32,
    dimension_x: i32,
    n_layers: i32,
    draws: i32,
    hidden: i32,
    outputs: i32,
    n_kept: i32,
    n_values: i32,
    of_latent: i32,
}

/// `Evaluation` of the kernels.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct EvaluationRecord {
    log_density: f64,
    status: i32,
    padding: i32,
}

impl EvaluationRecord {
    fn evaluation(self) -> Evaluation {
        Evaluation::outside(match self.status {
            0 => return Evaluation::inside(self.log_density),
            1 => Status::OutOfSupport,
            2 => Status::Singular,
            4 => Status::WrongChirality,
            5 => Status::BrokenConstraint,
            _ => Status::NonFinite,
        })
    }
}

impl Arguments {
    fn at_variance(self, variance: f64) -> Arguments {
        Arguments { width: variance.sqrt(), variance, log_volume: LOG_2_PI + variance.ln(), ..self }
    }
}

/// A coupling flow whose samples, densities and their gradients are computed on a GPU. Training stays on the CPU.
pub struct CouplingOnDevice<R: Real> {
    host: CouplingFlow<R>,
    driver: Arc<dyn Driver>,
    model: Arc<ModelBuffers<R>>,
    arguments: Arguments,
    /// Variants by tile, larger ones first.
    variants: Arc<[Variant]>,
    work: Arc<Workspaces<Work>>,
}

struct ModelBuffers<R> {
    tables: Buffer<i32>,
    numbers: Buffer<f64>,
    weights: Buffer<R>,
    layers: Buffer<LayerRecord>,
    /// Compiled kernels by tile and name.
    kernels: Compiled<(Tile, &'static str), KernelId>,
}

/// A tile for which the card has enough shared memory.
struct Variant {
    tile: Tile,
    shared: usize,
}

/// Device memory for a batch.
struct Work {
    streams: Buffer<[u32; 6]>,
    z: Buffer<f64>,
    x: Buffer<f64>,
    log_det: Buffer<f64>,
    evaluations: Buffer<EvaluationRecord>,
    gradient: Buffer<f64>,
    kept: Buffer<f64>,
    host: Vec<EvaluationRecord>,
}

impl<R: Real> CouplingFlow<R> {
    /// Copies the flow to a GPU and compiles its kernels. Errors: too little shared memory; the driver's.
    pub fn on_device(self, driver: &Arc<dyn Driver>) -> Result<CouplingOnDevice<R>> {
        let tables = Tables::of(&self);
        let (dimension, dimension_x) = (self.dimension_u(), self.coordinates.dimension_x());
        let arguments = Arguments {
            internal: tables.internal,
            dimension: dimension as i32,
            dimension_x: dimension_x as i32,
            n_layers: tables.layers.len() as i32,
            draws: tables.draws,
            hidden: tables.hidden as i32,
            outputs: tables.outputs as i32,
            n_kept: tables.kept() as i32,
            n_values: tables.values as i32,
            ..Arguments::default()
        }
        .at_variance(self.variance);
        let variants = TILES.map(|tile| Variant { tile, shared: shared_memory::<R>(&arguments, tile.rows) });
        let variants: Vec<Variant> = variants.into_iter().filter(|v| v.shared <= driver.shared_memory()).collect();
        let Some(smallest) = variants.last() else {
            return Err(Error::Unsupported(format!(
                "{}: this flow requires {} KiB of shared memory per block, but only {} KiB are available; use device \
                 cpu",
                driver.describe(),
                shared_memory::<R>(&arguments, ALONE.rows).div_ceil(1024),
                driver.shared_memory() / 1024
            )));
        };
        // now rather than in the middle of a simulation, in case there is no compiler
        driver.kernel(&program::<R>(smallest.tile, GENERATE), GENERATE)?;
        let model = Arc::new(ModelBuffers {
            tables: Buffer::of(driver, &tables.tables)?,
            numbers: Buffer::of(driver, &tables.numbers)?,
            weights: Buffer::of(driver, &tables.weights)?,
            layers: Buffer::of(driver, &tables.layers)?,
            kernels: Compiled::default(),
        });
        let work = Arc::new(Workspaces::on(driver, Work::new));
        let (driver, variants) = (driver.clone(), variants.into());
        Ok(CouplingOnDevice { host: self, driver, model, arguments, variants, work })
    }
}

/// All variants of the kernels.
pub fn programs() -> Vec<Program> {
    let of = |(tile, kernel)| [program::<f32>(tile, kernel), program::<f64>(tile, kernel)];
    [GENERATE, BACK].into_iter().flat_map(|kernel| TILES.map(|tile| (tile, kernel))).flat_map(of).collect()
}

/// Source of the kernel for networks of type `R`. That of gradients takes as long to compile as the others together,
/// and is not always needed.
fn program<R: Real>(Tile { rows, threads }: Tile, kernel: &str) -> Program {
    let (real, back) = (crate::device::program::real::<R>(), u8::from(kernel == BACK));
    let name = if kernel == BACK { BACK } else { "coupling" };
    Program::new(name, SOURCE, &[("REAL", &real), ("BACK", &back), ("TILE", &rows), ("THREADS", &threads)])
}

/// Bytes of shared memory, as counted by `layout` of the kernel.
fn shared_memory<R>(a: &Arguments, rows: usize) -> usize {
    let terms = a.dimension.max(2 * a.internal.n_rows + 3);
    let doubles = (a.dimension + a.dimension_x + terms + 2) as usize;
    let reals = (2 * a.hidden + a.outputs) as usize;
    rows * (doubles * size_of::<f64>() + reals * size_of::<R>() + 2 * size_of::<i32>())
}

impl Work {
    fn new(driver: &Arc<dyn Driver>) -> Work {
        Work {
            streams: Buffer::empty(driver),
            z: Buffer::empty(driver),
            x: Buffer::empty(driver),
            log_det: Buffer::empty(driver),
            evaluations: Buffer::empty(driver),
            gradient: Buffer::empty(driver),
            kept: Buffer::empty(driver),
            host: Vec::new(),
        }
    }

    fn reserve(&mut self, rows: usize, dimension: usize, dimension_x: usize) -> Result<()> {
        self.z.reserve(rows * dimension)?;
        self.x.reserve(rows * dimension_x)?;
        self.log_det.reserve(rows)?;
        self.evaluations.reserve(rows)
    }
}

/// Source of the latent points.
enum Latent<'a> {
    Streams(Vec<[u32; 6]>),
    Given(&'a [f64]),
}

impl<R: Real> CouplingOnDevice<R> {
    /// Variant for a batch: one row per block for few rows; otherwise the largest tile that still gives every
    /// multiprocessor a block, or the smallest one with several rows.
    fn variant(&self, rows: usize) -> &Variant {
        let alone = self.variants.last().expect("one at least fits");
        match rows <= self.driver.multiprocessors() {
            true => alone,
            false => self.tiled(rows).unwrap_or(alone),
        }
    }

    /// The tiled variant; None if a block has room for a single row only.
    fn tiled(&self, rows: usize) -> Option<&Variant> {
        let (_, tiles) = self.variants.split_last()?;
        let fills = |v: &&Variant| rows.div_ceil(v.tile.rows) >= self.driver.multiprocessors();
        tiles.iter().find(fills).or(tiles.last())
    }

    fn kernel(&self, variant: &Variant, name: &'static str) -> Result<KernelId> {
        let compile = || self.driver.kernel(&program::<R>(variant.tile, name), name);
        self.model.kernels.get((variant.tile, name), compile)
    }

    fn rows_of_launch(&self) -> usize {
        self.driver.rows_of_launch(LAUNCH)
    }

    /// Launches a block per tile.
    fn launch(&self, work: &Workspace<Work>, rows: usize, name: &'static str, arguments: Arguments) -> Result<()> {
        let variant = self.variant(rows);
        let kernel = self.kernel(variant, name)?;
        self.launch_blocks(work, (variant, kernel), rows, rows.div_ceil(variant.tile.rows), arguments)
    }

    fn launch_blocks(
        &self,
        work: &Workspace<Work>,
        (variant, kernel): (&Variant, KernelId),
        rows: usize,
        blocks: usize,
        arguments: Arguments,
    ) -> Result<()> {
        let arguments = Arguments {
            tables: self.model.tables.address(),
            numbers: self.model.numbers.address(),
            weights: self.model.weights.address(),
            layers: self.model.layers.address(),
            x: work.x.address(),
            log_det: work.log_det.address(),
            evaluations: work.evaluations.address(),
            n: rows as i32,
            ..arguments
        };
        let (threads, shared) = (variant.tile.threads as u32, variant.shared);
        // SAFETY: the kernels take `Arguments`; `reserve` made room for `rows` rows, and the model's tables are those
        // from `of`.
        unsafe { work.driver.launch(kernel, blocks as u32, threads, shared, argument(&arguments)) }
    }

    fn generate_rows(&self, latent: Latent, x: &mut [f64], log_det: &mut [f64], to: &mut [Evaluation]) -> Result<()> {
        let mut work = self.work.take()?;
        work.reserve(to.len(), self.host.dimension_u(), self.host.dimension())?;
        let mut arguments = self.arguments;
        match &latent {
            Latent::Streams(streams) => {
                work.streams.write(streams)?;
                arguments.streams = work.streams.address();
            }
            Latent::Given(z) => {
                work.z.write(z)?;
                arguments.z = work.z.address();
            }
        }
        self.launch(&work, to.len(), GENERATE, arguments)?;
        let others = [work.x.copy_to(x), work.log_det.copy_to(log_det)];
        self.read(&mut work, others, to)?;
        for (x, evaluation) in x.chunks_exact(self.host.dimension()).zip(to) {
            if evaluation.is_inside() && !x.iter().all(|v| v.is_finite()) {
                *evaluation = Evaluation::outside(Status::NonFinite);
            }
        }
        Ok(())
    }

    fn encode_rows(&self, x: &[f64], latent: Option<(&mut [f64], &mut [f64])>, to: &mut [Evaluation]) -> Result<()> {
        let mut work = self.work.take()?;
        work.reserve(to.len(), self.host.dimension_u(), self.host.dimension())?;
        work.x.write(x)?;
        let address = if latent.is_some() { work.z.address() } else { 0 };
        self.launch(&work, to.len(), ENCODE, Arguments { z: address, ..self.arguments })?;
        let (z, log_det) = latent.unwrap_or_default();
        let others = [work.z.copy_to(z), work.log_det.copy_to(log_det)];
        self.read(&mut work, others, to)
    }

    fn gradient_rows(&self, x: &[f64], to: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let mut work = self.work.take()?;
        work.reserve(to.len(), self.host.dimension_u(), self.host.dimension())?;
        work.x.write(x)?;
        self.launch_back(&mut work, to.len(), self.variant(to.len()), self.arguments, gradient.len())?;
        let others = [work.gradient.copy_to(gradient), work.log_det.copy_to(&mut [])];
        self.read(&mut work, others, to)
    }

    /// Blocks of a single row have no kernel for this.
    fn pull_back_rows(&self, z: &[f64], gx: &[f64], g_log_det: &[f64], gz: &mut [f64]) -> Result<()> {
        let Some(variant) = self.tiled(g_log_det.len()) else { return self.host.pull_back(z, gx, g_log_det, gz) };
        let mut work = self.work.take()?;
        work.reserve(g_log_det.len(), self.host.dimension_u(), self.host.dimension())?;
        work.z.write(z)?;
        work.x.write(gx)?;
        work.log_det.write(g_log_det)?;
        let arguments = Arguments { z: work.z.address(), of_latent: 1, ..self.arguments };
        self.launch_back(&mut work, g_log_det.len(), variant, arguments, gz.len())?;
        work.gradient.read(gz)
    }

    /// Launches only as many blocks as are resident, which loop over the rows, so that the memory kept for the backward
    /// pass does not grow with the batch.
    fn launch_back(
        &self,
        work: &mut Workspace<Work>,
        rows: usize,
        variant: &Variant,
        arguments: Arguments,
        numbers: usize,
    ) -> Result<()> {
        let kernel = self.kernel(variant, BACK)?;
        let resident = self.driver.resident(kernel, variant.tile.threads as u32, variant.shared)?;
        let blocks = rows.div_ceil(variant.tile.rows).min(resident.max(1));
        work.gradient.reserve(numbers)?;
        work.kept.reserve(blocks * variant.tile.rows * self.arguments.n_kept as usize)?;
        let (gradients, kept) = (work.gradient.address(), work.kept.address());
        let arguments = Arguments { gradient: gradients, kept, ..arguments };
        self.launch_blocks(work, (variant, kernel), rows, blocks, arguments)
    }

    /// Reads the evaluations and two other results.
    fn read(&self, work: &mut Workspace<Work>, [a, b]: [Reading; 2], to: &mut [Evaluation]) -> Result<()> {
        let mut host = std::mem::take(&mut work.host);
        host.resize(to.len(), EvaluationRecord::default());
        let read = work.driver.download(&mut [a, b, work.evaluations.copy_to(&mut host)]);
        to.iter_mut().zip(&host).for_each(|(to, record)| *to = record.evaluation());
        work.host = host;
        read
    }
}

impl<R: Real> Density for CouplingOnDevice<R> {
    fn dimension(&self) -> usize {
        self.host.dimension()
    }

    fn exactness(&self) -> Exactness {
        self.host.exactness()
    }

    fn scope(&self) -> Scope {
        self.host.scope()
    }

    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        self.rows(x, log_density)?;
        let launch = self.rows_of_launch();
        let chunks = x.chunks_mut(launch * self.dimension()).zip(log_density.chunks_mut(launch));
        for (chunk, (x, log_density)) in chunks.enumerate() {
            let start = |row| streams(chunk * launch + row).start();
            let starts = (0..log_density.len()).map(start).collect::<Option<Vec<_>>>();
            let starts = starts.ok_or_else(|| Error::invalid("the random stream for samples has already been used"))?;
            self.generate_rows(Latent::Streams(starts), x, &mut [], log_density)?;
        }
        Ok(())
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        self.rows(x, log_density)?;
        let launch = self.rows_of_launch();
        for (x, log_density) in x.chunks(launch * self.dimension()).zip(log_density.chunks_mut(launch)) {
            self.encode_rows(x, None, log_density)?;
        }
        Ok(())
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.rows(x, log_density)?;
        self.rows(gradient, log_density)?;
        let launch = self.rows_of_launch();
        let rows = launch * self.dimension();
        for ((x, gradient), to) in x.chunks(rows).zip(gradient.chunks_mut(rows)).zip(log_density.chunks_mut(launch)) {
            self.gradient_rows(x, to, gradient)?;
        }
        Ok(())
    }
}

impl<R: Real> Flow for CouplingOnDevice<R> {
    fn latent_dimension(&self) -> usize {
        self.host.latent_dimension()
    }

    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.host.check_latent(z, n)?;
        let (d, dx) = (self.latent_dimension(), self.dimension());
        let launch = self.rows_of_launch();
        let rows = z.chunks(launch * d).zip(x.chunks_mut(launch * dx));
        for ((z, x), (log_det, to)) in rows.zip(log_det.chunks_mut(launch).zip(log_density.chunks_mut(launch))) {
            self.generate_rows(Latent::Given(z), x, log_det, to)?;
        }
        Ok(())
    }

    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.host.check_latent(z, n)?;
        let (d, dx) = (self.latent_dimension(), self.dimension());
        let launch = self.rows_of_launch();
        let rows = x.chunks(launch * dx).zip(z.chunks_mut(launch * d));
        for ((x, z), (log_det, to)) in rows.zip(log_det.chunks_mut(launch).zip(log_density.chunks_mut(launch))) {
            self.encode_rows(x, Some((z, log_det)), to)?;
        }
        Ok(())
    }

    fn is_uniform(&self, i: usize) -> bool {
        self.host.is_uniform(i)
    }

    fn pull_back(&self, z: &[f64], gx: &[f64], g_log_det: &[f64], gz: &mut [f64]) -> Result<()> {
        self.host.check_pull_back(z, gx, g_log_det, gz)?;
        let launch = self.rows_of_launch();
        let (d, dx) = (launch * self.latent_dimension(), launch * self.dimension());
        let cotangents = gx.chunks(dx).zip(g_log_det.chunks(launch));
        for ((z, gz), (gx, g_log_det)) in z.chunks(d).zip(gz.chunks_mut(d)).zip(cotangents) {
            self.pull_back_rows(z, gx, g_log_det, gz)?;
        }
        Ok(())
    }
}

impl<R: Real> Model for CouplingOnDevice<R> {
    fn card(&self) -> &ModelCard {
        self.host.card()
    }

    fn hash(&self) -> &str {
        self.host.hash()
    }

    fn device(&self) -> String {
        self.driver.describe()
    }

    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }

    fn steering(&self) -> Option<Steering> {
        self.host.steering()
    }

    fn at_temperature(&self, kelvin: f64) -> Result<Arc<dyn Model>> {
        let variance = self.host.variance_at(kelvin)?;
        Ok(Arc::new(CouplingOnDevice {
            host: self.host.at_variance(variance),
            driver: self.driver.clone(),
            model: self.model.clone(),
            arguments: self.arguments.at_variance(variance),
            variants: self.variants.clone(),
            work: self.work.clone(),
        }))
    }
}
