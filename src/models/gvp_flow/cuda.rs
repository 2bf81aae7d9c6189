//! The vector field on a GPU: weights as `cuda/gvp_flow.cu` reads them, and its launches.

use super::layout::{GvpPlaces, NormPlaces};
use super::{Config, GvpConfig, GvpField};
use crate::device::{argument, Buffer, Driver, KernelId, Program};
use crate::error::{Error, Result};
use crate::io::model_file::ModelFile;
use crate::models::continuous::ContinuousFlow;
use crate::models::field::VectorField;
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SOURCE: &str = include_str!("../../../cuda/gvp_flow.cu");
const KERNEL: &str = "gvp_field";
const THREADS: usize = 128;
/// Rows of one launch, so that memory on the card does not grow with the batch.
const LAUNCH: usize = 4096;
/// Blocks a multiprocessor where their state is not in shared memory.
const BLOCKS: usize = 4;

/// `Gvp` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct GvpRecord {
    n_hidden: i32,
    n_out: i32,
    scalars: i32,
    bias: i32,
    inputs: i32,
    hidden: i32,
    outputs: i32,
    gates: i32,
    gate_bias: i32,
    direction_hidden: i32,
    direction_outputs: i32,
    beta: i32,
}

/// `Norm` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct NormRecord {
    weight: i32,
    bias: i32,
}

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    message: GvpRecord,
    update: GvpRecord,
    position: GvpRecord,
    message_norm: NormRecord,
    update_norm: NormRecord,
}

/// `Arguments` of the kernel; addresses on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    weights: u64,
    layers: u64,
    output: u64,
    embedding: u64,
    time: u64,
    t: u64,
    x: u64,
    dx: u64,
    f: u64,
    df: u64,
    parts: u64,
    scratch: u64,
    rbf_max: f64,
    message_norm: f64,
    coordinate_range: f64,
    n: i32,
    padding: i32,
}

/// Weights on their way to the card: matrices as `[in][out]` with an even number of outputs, every tensor at an even place.
struct Packing<'a, R> {
    parameters: &'a [R],
    weights: Vec<R>,
}

impl<R: Real> Packing<'_, R> {
    fn at(&self, place: usize) -> f64 {
        self.parameters[place].to_f64()
    }

    fn matrix(&mut self, n_in: usize, n_out: usize, value: impl Fn(&Self, usize, usize) -> f64) -> i32 {
        let start = self.weights.len();
        for i in 0..n_in {
            for o in 0..n_out.next_multiple_of(2) {
                let value = if o < n_out { value(self, i, o) } else { 0.0 };
                self.weights.push(R::from_f64(value));
            }
        }
        start as i32
    }

    fn vector(&mut self, place: &std::ops::Range<usize>) -> i32 {
        self.matrix(1, place.len(), |p, _, o| p.at(place.start + o))
    }

    /// `n_radial`: radial functions, the last of the scalars; with any, the first vector is an edge's direction.
    fn gvp(&mut self, places: &GvpPlaces, n_radial: usize) -> GvpRecord {
        let sizes = places.sizes;
        let (hidden, n_in, n_out) = (sizes.hidden(), sizes.scalars_in + sizes.hidden(), sizes.vectors_out);
        let (n_scalars, first) = (sizes.scalars_in - n_radial, usize::from(n_radial > 0));
        let n_vectors = sizes.vectors_in - first;
        let wh = |p: &Self, v: usize, q: usize| p.at(places.wh.start + v * hidden + q);
        let wu = |p: &Self, q: usize, u: usize| p.at(places.wu.start + q * n_out + u);
        let through = |p: &Self, v: usize, u: usize| (0..hidden).map(|q| wh(p, v, q) * wu(p, q, u)).sum::<f64>();
        let weight = |p: &Self, i: usize, o: usize| p.at(places.weight.start + o * n_in + i);
        let gate = |p: &Self, f: usize, u: usize| p.at(places.gate_weight.start + u * sizes.scalars_out + f);
        GvpRecord {
            n_hidden: hidden as i32,
            n_out: n_out as i32,
            scalars: self.matrix(n_scalars, sizes.scalars_out, weight),
            bias: self.vector(&places.bias),
            // radial functions and norms lie behind the scalars
            inputs: self.matrix(n_radial + hidden, sizes.scalars_out, |p, i, o| weight(p, n_scalars + i, o)),
            hidden: self.matrix(n_vectors, hidden, |p, v, q| wh(p, v + first, q)),
            outputs: self.matrix(n_vectors, n_out, |p, v, u| through(p, v + first, u)),
            gates: self.matrix(sizes.scalars_out, n_out, gate),
            gate_bias: self.vector(&places.gate_bias),
            direction_hidden: self.matrix(first, hidden, |p, _, q| wh(p, 0, q)),
            direction_outputs: self.matrix(first, n_out, |p, _, u| through(p, 0, u)),
            beta: self.matrix(1, 1, |p, _, _| places.beta.map_or(1.0, |place| p.at(place))),
        }
    }

    fn norm(&mut self, places: &NormPlaces) -> NormRecord {
        NormRecord { weight: self.vector(&places.weight), bias: self.vector(&places.bias) }
    }
}

/// The field with values and derivatives from a GPU.
pub struct GvpOnDevice<R: Real> {
    config: GvpConfig,
    driver: Arc<dyn Driver>,
    weights: Buffer<R>,
    layers: Buffer<LayerRecord>,
    output: Buffer<GvpRecord>,
    embedding: Buffer<R>,
    time: Buffer<R>,
    values: Variant,
    along: Variant,
    divergences: Variant,
    work: Mutex<Work<R>>,
}

/// The kernel for jets of so many components.
struct Variant {
    components: usize,
    /// Numbers of a block's state, and whether they fit into shared memory.
    memory: usize,
    shared: bool,
}

/// Memory for a batch, kept between calls, and what went wrong first.
struct Work<R> {
    t: Buffer<f64>,
    x: Buffer<f64>,
    dx: Buffer<f64>,
    f: Buffer<f64>,
    df: Buffer<f64>,
    parts: Buffer<f64>,
    scratch: Buffer<R>,
    /// By components; compiled when first needed.
    kernels: HashMap<usize, KernelId>,
    host: Vec<f64>,
    failure: Option<String>,
}

/// The kernels for a network of BoltzNCE's sizes, in every variant.
pub fn programs() -> Vec<Program> {
    let config = GvpConfig {
        features: vec![vec![]; 22],
        n_features: 21,
        n_layers: 5,
        n_scalars: 64,
        n_vectors: 16,
        rbf_max: 20.0,
        rbf_count: 16,
        message_norm: 10.0,
        coordinate_range: 10.0,
    };
    [1, 2, 4].into_iter().flat_map(|c| [program::<f32>(&config, c), program::<f64>(&config, c)]).collect()
}

fn padded(config: &GvpConfig) -> usize {
    config.features.len().next_multiple_of(8)
}

fn program<R: Real>(config: &GvpConfig, components: usize) -> Program {
    let real = if size_of::<R>() == 8 { "double" } else { "float" };
    Program::new(
        "gvp_flow",
        SOURCE,
        &[
            ("REAL", &real),
            ("THREADS", &THREADS),
            ("COMPONENTS", &components),
            ("ATOMS", &config.features.len()),
            ("PADDED", &padded(config)),
            ("SCALARS", &config.n_scalars),
            ("VECTORS", &config.n_vectors),
            ("RADIAL", &config.rbf_count),
            ("LAYERS", &config.n_layers),
        ],
    )
}

/// Numbers of a block's state, as `MEMORY` of the kernel counts them.
fn memory(config: &GvpConfig, components: usize) -> usize {
    let even = |n: usize| n.next_multiple_of(2);
    let (scalars, vectors, hidden) = (even(config.n_scalars), config.n_vectors, even(config.n_vectors + 1));
    let lanes = padded(config) * components;
    lanes * (3 * scalars + 3 * vectors + 3 * hidden + 3 * even(vectors) + 7 + config.rbf_count + hidden + even(vectors))
}

impl Variant {
    fn new<R: Real>(driver: &Arc<dyn Driver>, config: &GvpConfig, components: usize) -> Variant {
        let memory = memory(config, components);
        Variant { components, memory, shared: memory * size_of::<R>() <= driver.shared_memory() }
    }

    /// Blocks that share a divergence.
    fn parts(&self, n_atoms: usize) -> usize {
        3 * (n_atoms - 1) / (self.components - 1)
    }
}

impl<R: Real> GvpField<R> {
    /// Copies the field to a machine and compiles its kernels.
    pub fn on_device(&self, driver: &Arc<dyn Driver>) -> Result<GvpOnDevice<R>> {
        let (config, places) = (self.config.clone(), &self.places);
        let mut packing = Packing { parameters: &self.parameters, weights: Vec::new() };
        let layers: Vec<LayerRecord> = places
            .trunk
            .layers
            .iter()
            .map(|layer| LayerRecord {
                message: packing.gvp(&layer.message, config.rbf_count),
                update: packing.gvp(&layer.update, 0),
                position: packing.gvp(&layer.position, 0),
                message_norm: packing.norm(&layer.message_norm),
                update_norm: packing.norm(&layer.update_norm),
            })
            .collect();
        let output = packing.gvp(&places.output, 0);
        let n_in = config.n_features + 1;
        let weight = |i: usize, o: usize| packing.at(places.trunk.embedding_weight.start + o * n_in + i);
        let bias = |o: usize| packing.at(places.trunk.embedding_bias.start + o);
        let embed = |features: &Vec<usize>, o: usize| bias(o) + features.iter().map(|&i| weight(i, o)).sum::<f64>();
        let atoms = config.features.iter().flat_map(|f| (0..config.n_scalars).map(move |o| (f, o)));
        let embedding: Vec<R> = atoms.map(|(f, o)| R::from_f64(embed(f, o))).collect();
        let time: Vec<R> = (0..config.n_scalars).map(|o| R::from_f64(weight(config.n_features, o))).collect();
        // now rather than in the middle of a simulation, should there be no compiler
        driver.kernel(&program::<R>(&config, 1), KERNEL)?;
        // three directions at once where their state fits into shared memory
        let fits = memory(&config, 4) * size_of::<R>() <= driver.shared_memory();
        Ok(GvpOnDevice {
            driver: driver.clone(),
            weights: Buffer::of(driver, &packing.weights)?,
            layers: Buffer::of(driver, &layers)?,
            output: Buffer::of(driver, &[output])?,
            embedding: Buffer::of(driver, &embedding)?,
            time: Buffer::of(driver, &time)?,
            values: Variant::new::<R>(driver, &config, 1),
            along: Variant::new::<R>(driver, &config, 2),
            divergences: Variant::new::<R>(driver, &config, if fits { 4 } else { 2 }),
            work: Mutex::new(Work::new(driver)?),
            config,
        })
    }
}

impl<R: Real> ContinuousFlow<GvpOnDevice<R>> {
    /// From a model file, to a machine.
    pub fn from_file_on(file: &ModelFile, config: &Config, driver: &Arc<dyn Driver>) -> Result<Self> {
        let field = GvpField::<R>::from_file(file, config)?.on_device(driver)?;
        ContinuousFlow::new(field, config.flow.clone(), file.card.clone(), file.hash.clone())
    }
}

impl<R: Real> Work<R> {
    fn new(driver: &Arc<dyn Driver>) -> Result<Work<R>> {
        Ok(Work {
            t: Buffer::new(driver, 0)?,
            x: Buffer::new(driver, 0)?,
            dx: Buffer::new(driver, 0)?,
            f: Buffer::new(driver, 0)?,
            df: Buffer::new(driver, 0)?,
            parts: Buffer::new(driver, 0)?,
            scratch: Buffer::new(driver, 0)?,
            kernels: HashMap::new(),
            host: Vec::new(),
            failure: None,
        })
    }
}

impl<R: Real> GvpOnDevice<R> {
    fn work(&self) -> MutexGuard<'_, Work<R>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a kernel on rows whose t, x and dx are on the card, `parts` blocks for each; f is read back.
    fn launch(
        &self,
        work: &mut Work<R>,
        variant: &Variant,
        rows: usize,
        parts: usize,
        arguments: Arguments,
    ) -> Result<()> {
        let kernel = match work.kernels.get(&variant.components) {
            Some(kernel) => *kernel,
            None => self.driver.kernel(&program::<R>(&self.config, variant.components), KERNEL)?,
        };
        work.kernels.insert(variant.components, kernel);
        let blocks = rows * parts;
        let grid = if variant.shared { blocks } else { blocks.min(BLOCKS * self.driver.multiprocessors()) };
        if !variant.shared {
            work.scratch.reserve(grid * variant.memory)?;
        }
        let arguments = Arguments {
            weights: self.weights.address(),
            layers: self.layers.address(),
            output: self.output.address(),
            embedding: self.embedding.address(),
            time: self.time.address(),
            t: work.t.address(),
            x: work.x.address(),
            f: work.f.address(),
            scratch: if variant.shared { 0 } else { work.scratch.address() },
            rbf_max: self.config.rbf_max,
            message_norm: self.config.message_norm,
            coordinate_range: self.config.coordinate_range,
            n: rows as i32,
            ..arguments
        };
        let shared = if variant.shared { variant.memory * size_of::<R>() } else { 0 };
        // SAFETY: the kernel takes `Arguments`; every buffer has room for `rows` rows, scratch for `grid` blocks.
        unsafe { self.driver.launch(kernel, grid as u32, THREADS as u32, shared, argument(&arguments)) }
    }

    fn values(&self, t: &[f64], x: &[f64], f: &mut [f64]) -> Result<()> {
        let mut work = self.begin(t, x)?;
        self.launch(&mut work, &self.values, t.len(), 1, Arguments::default())?;
        work.f.read(f)
    }

    fn derivatives(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) -> Result<()> {
        let mut work = self.begin(t, x)?;
        work.dx.write(dx)?;
        work.df.reserve(df.len())?;
        let arguments = Arguments { dx: work.dx.address(), df: work.df.address(), ..Arguments::default() };
        self.launch(&mut work, &self.along, t.len(), 1, arguments)?;
        work.f.read(f)?;
        work.df.read(df)
    }

    fn divergences(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) -> Result<()> {
        let parts = self.divergences.parts(self.config.features.len());
        let mut work = self.begin(t, x)?;
        work.parts.reserve(t.len() * parts)?;
        let arguments = Arguments { parts: work.parts.address(), ..Arguments::default() };
        self.launch(&mut work, &self.divergences, t.len(), parts, arguments)?;
        work.f.read(f)?;
        let Work { host, parts: on_card, .. } = &mut *work;
        host.resize(t.len() * parts, 0.0);
        on_card.read(host)?;
        divergence.iter_mut().zip(host.chunks_exact(parts)).for_each(|(to, parts)| *to = parts.iter().sum());
        Ok(())
    }

    fn begin(&self, t: &[f64], x: &[f64]) -> Result<MutexGuard<'_, Work<R>>> {
        let mut work = self.work();
        work.t.write(t)?;
        work.x.write(x)?;
        work.f.reserve(x.len())?;
        Ok(work)
    }

    /// Keeps the first failure for [`VectorField::failure`], and makes sure that nobody takes old numbers for results.
    fn note(&self, result: Result<()>, f: &mut [f64]) {
        if let Err(error) = result {
            f.fill(f64::NAN);
            self.work().failure.get_or_insert(error.to_string());
        }
    }
}

impl<R: Real> VectorField for GvpOnDevice<R> {
    fn dimension(&self) -> usize {
        3 * self.config.features.len()
    }

    fn is_equivariant(&self) -> bool {
        true
    }

    fn rows_at_once(&self) -> usize {
        LAUNCH
    }

    fn device(&self) -> String {
        self.driver.describe()
    }

    fn failure(&self) -> Result<()> {
        self.work().failure.clone().map_or(Ok(()), |message| Err(Error::Engine(message)))
    }

    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        let d = self.dimension() * LAUNCH;
        for ((t, x), f) in t.chunks(LAUNCH).zip(x.chunks(d)).zip(f.chunks_mut(d)) {
            let result = self.values(t, x, f);
            self.note(result, f);
        }
    }

    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        let d = self.dimension() * LAUNCH;
        let rows = t.chunks(LAUNCH).zip(x.chunks(d));
        for ((t, x), (f, divergence)) in rows.zip(f.chunks_mut(d).zip(divergence.chunks_mut(LAUNCH))) {
            let result = self.divergences(t, x, f, divergence);
            self.note(result, f);
        }
    }

    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        let d = self.dimension() * LAUNCH;
        let rows = t.chunks(LAUNCH).zip(x.chunks(d).zip(dx.chunks(d)));
        for ((t, (x, dx)), (f, df)) in rows.zip(f.chunks_mut(d).zip(df.chunks_mut(d))) {
            let result = self.derivatives(t, x, dx, f, df);
            self.note(result, f);
        }
    }
}
