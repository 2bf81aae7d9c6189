//! TarFlows on a GPU: weights and tables in the layout of `cuda/tarflow.cu`, and the choice of teams.

mod gradient;

use super::network::{Given, Layer, Modulation, TarNetwork};
use super::{Autoregressive, Decoded, Decoding, Options, TarFlow, TarFlowConfig};
use crate::density::{Density, Evaluation, Exactness, Scope};
use crate::device::{argument, memory_of_states, Buffer, Compiled, Driver, KernelId, Program, Workspaces};
use crate::error::{Error, Result};
use crate::models::field_on_device::{NormRecord, Packing};
use crate::models::{Flow, Model, ModelCard};
use crate::nn::tape::{LayerNorm, Weight};
use crate::nn::Real;
use crate::rng::Stream;
use bytemuck::{Pod, Zeroable};
use gradient::Gradients;
use std::sync::Arc;

const SOURCE: &str = include_str!("../../../cuda/tarflow.cu");
const KERNEL: &str = "tarflow";
const THREADS: usize = 256;
/// Largest number of samples per launch, so that memory on the card does not grow with the batch.
const LAUNCH: usize = 1 << 12;
/// Largest number of floating-point operations per launch: some seconds on a large card, or a fraction of a second if
/// the driver kills kernels that take seconds.
const WORK: f64 = 3e13;
const WATCHED_WORK: f64 = 1e12;

/// Compile-time shape of the kernel: rows of a team, and pairs of outputs in a pass of a product.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    lanes: usize,
    pairs: usize,
}

/// For teams of blocks.
const TEAMS: Shape = Shape { lanes: 8, pairs: 8 };
/// For a full card.
const FULL: Shape = Shape { lanes: 16, pairs: 16 };
/// For a team with a single sample.
const ALONE: Shape = Shape { lanes: 1, pairs: 8 };

/// `Linear` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinearRecord {
    weight: i32,
    bias: i32,
}

/// `Modulation` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ModulationRecord {
    gamma: i32,
    beta: i32,
    gate: i32,
}

/// `Layer` of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LayerRecord {
    attention_norm: NormRecord,
    forward_norm: NormRecord,
    query_norm: NormRecord,
    key_norm: NormRecord,
    qkv: LinearRecord,
    out: LinearRecord,
    first: LinearRecord,
    second: LinearRecord,
    into: LinearRecord,
    back: LinearRecord,
    attention: ModulationRecord,
    transition: ModulationRecord,
}

/// `Stage` of the kernel: a block of the flow.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct StageRecord {
    into: LinearRecord,
    out: LinearRecord,
    positions: i32,
    condition: i32,
    order: i32,
    padding: i32,
}

/// `Arguments` of the kernel; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    weights: u64,
    stages: u64,
    layers: u64,
    orders: u64,
    x: u64,
    log_det: u64,
    scratch: u64,
    arrivals: u64,
    n: i32,
    tokens: i32,
    n_stages: i32,
    encode: i32,
    blocks: i32,
    padding: i32,
}

/// Sizes that the kernel is compiled for.
#[derive(Clone, Debug)]
struct Sizes {
    config: TarFlowConfig,
    qk_norms: bool,
    conditions: bool,
    adaptive: bool,
    transition: bool,
}

impl Sizes {
    fn of(network: &TarNetwork) -> Sizes {
        let block = &network.blocks[0];
        let layer = &block.layers[0];
        Sizes {
            config: network.config.clone(),
            qk_norms: layer.qk_norms.is_some(),
            conditions: block.conditions.is_some(),
            adaptive: layer.adaptive.is_some(),
            transition: layer.transition.is_some(),
        }
    }

    fn hidden(&self) -> usize {
        self.config.channels * self.config.expansion
    }

    /// Floating-point operations of the layers' products for one sample.
    fn flops(&self) -> f64 {
        let TarFlowConfig { tokens, channels, blocks, layers, expansion, .. } = self.config;
        let matrices = 4 + (2 + if self.transition { 3 } else { 0 }) * expansion;
        2.0 * [tokens, blocks, layers, matrices, channels, channels].into_iter().map(|v| v as f64).product::<f64>()
    }

    /// Constants common to all kernels of such a network.
    fn constants<R: Real>(&self) -> Vec<(&'static str, String)> {
        let TarFlowConfig { token_size, channels, layers, heads, .. } = self.config;
        let sizes = [
            ("THREADS", THREADS),
            ("SIZE", token_size),
            ("CHANNELS", channels),
            ("HEADS", heads),
            ("HIDDEN", self.hidden()),
            ("LAYERS", layers),
            ("QK_NORMS", self.qk_norms.into()),
            ("CONDITIONS", self.conditions.into()),
            ("ADAPTIVE", self.adaptive.into()),
            ("TRANSITION", self.transition.into()),
        ];
        let real = ("REAL", crate::device::program::real::<R>().to_string());
        std::iter::once(real).chain(sizes.map(|(name, size)| (name, size.to_string()))).collect()
    }

    /// Program of a source, with further constants of its own.
    fn program_of<R: Real>(&self, name: &'static str, source: &str, own: &[(&'static str, usize)]) -> Program {
        let mut program = Program::new(name, source, &[]);
        program.constants = self.constants::<R>();
        program.constants.extend(own.iter().map(|(name, value)| (*name, value.to_string())));
        program
    }

    fn program<R: Real>(&self, Shape { lanes, pairs }: Shape) -> Program {
        self.program_of::<R>("tarflow", SOURCE, &[("LANES", lanes), ("PAIRS", pairs)])
    }

    /// Bytes of shared memory of a block, as divided by `State` of the kernel.
    fn shared<R>(&self, lanes: usize) -> usize {
        let TarFlowConfig { tokens, token_size, channels, heads, .. } = self.config;
        let staged = channels.max(self.hidden()) * lanes;
        let of_attention = THREADS / 32 * (channels / heads + tokens);
        let of_products = THREADS * (2 * lanes.min(8) + 1);
        let asked = (128 / size_of::<R>()).min(channels.max(self.hidden()).div_ceil(32)) * THREADS;
        let ahead = if lanes == 1 { 2 * (channels / heads * tokens + asked) } else { 0 };
        let numbers = ahead + 2 * 16 * lanes + 2 * token_size * lanes + of_products + staged.max(of_attention);
        numbers * size_of::<R>()
    }

    /// Numbers in a team's state, as counted by `size_of` of the kernel.
    fn state(&self, lanes: usize, encode: bool) -> usize {
        let TarFlowConfig { tokens, channels, layers, .. } = self.config;
        let kept = layers * if encode { 1 } else { lanes } * 2 * channels * tokens;
        (6 * channels + self.hidden().next_multiple_of(2)) * lanes + kept.next_multiple_of(8)
    }

    /// Number of blocks of a team beyond which some would be idle in the largest product.
    fn most_blocks(&self, pairs: usize) -> usize {
        let outputs = (3 * self.config.channels).max(self.hidden() * if self.transition { 2 } else { 1 });
        outputs.div_ceil(2 * pairs)
    }
}

/// Kernels of a single system's network and of Prose, in all shapes.
pub fn programs() -> Vec<Program> {
    let config = |tokens, token_size, channels, heads, layers| TarFlowConfig {
        tokens,
        token_size,
        channels,
        blocks: 1,
        layers,
        heads,
        expansion: 4,
    };
    let of = |config, transferable| Sizes {
        config,
        qk_norms: transferable,
        conditions: transferable,
        adaptive: transferable,
        transition: transferable,
    };
    let prose = of(config(62, 3, 384, 6, 8), true);
    let single = of(config(66, 1, 256, 4, 4), false);
    let of_samples = vec![
        prose.program::<f32>(FULL),
        prose.program::<f32>(TEAMS),
        single.program::<f32>(TEAMS),
        prose.program::<f64>(TEAMS),
        single.program::<f64>(FULL),
        prose.program::<f32>(ALONE),
        single.program::<f32>(ALONE),
        prose.program::<f64>(ALONE),
    ];
    [of_samples, gradient::programs(&single, &prose)].concat()
}

impl<R: Real> Packing<'_, R> {
    /// A linear layer with its outputs in this order.
    fn tarflow_linear(&mut self, w: &Weight, output: impl Fn(usize) -> usize) -> LinearRecord {
        let weight = self.matrix(w.n_in, w.n_out, |p, i, o| p.at(w.place(i, output(o))));
        let bias = |p: &Self, o: usize| w.bias_of(p.parameters).get(output(o)).map_or(0.0, |b| b.to_f64());
        LinearRecord { weight, bias: self.matrix(1, w.n_out, |p, _, o| bias(p, o)) }
    }

    /// Appends numbers that are not parameters.
    fn numbers_given(&mut self, values: &[R]) -> i32 {
        self.matrix(1, values.len(), |_, _, i| values[i].to_f64())
    }

    fn modulation(&mut self, given: Option<&Modulation<Vec<R>>>) -> ModulationRecord {
        given.map_or_else(ModulationRecord::default, |given| ModulationRecord {
            gamma: self.numbers_given(&given.gamma),
            beta: self.numbers_given(&given.beta),
            gate: self.numbers_given(&given.gate),
        })
    }

    fn tarflow_layer(&mut self, layer: &Layer, channels: usize) -> LayerRecord {
        let mut norm = |norm: &LayerNorm| self.norm(norm.weight, norm.bias, channels);
        let [query_norm, key_norm] = layer.qk_norms.map_or_else(Default::default, |norms| norms.map(|n| norm(&n)));
        let (attention_norm, forward_norm) = (norm(&layer.attention_norm), norm(&layer.forward_norm));
        let mut linear = |w: &Weight| self.tarflow_linear(w, |o| o);
        let (qkv, out) = (linear(&layer.qkv), linear(&layer.out));
        let [first, second] = [linear(&layer.forward[0]), linear(&layer.forward[1])];
        let back = layer.transition.as_ref().map_or_else(Default::default, |transition| linear(&transition.out));
        // values and their gates interleaved
        let into = layer.transition.as_ref().map_or_else(Default::default, |transition| {
            let half = transition.into.n_out / 2;
            self.tarflow_linear(&transition.into, |o| o / 2 + o % 2 * half)
        });
        LayerRecord {
            attention_norm,
            forward_norm,
            query_norm,
            key_norm,
            qkv,
            out,
            first,
            second,
            into,
            back,
            ..LayerRecord::default()
        }
    }
}

/// Tables that the kernel reads of a network, before they are copied to the card.
struct Tables<R> {
    weights: Vec<R>,
    stages: Vec<StageRecord>,
    layers: Vec<LayerRecord>,
    orders: Vec<i32>,
}

impl<R: Real> Tables<R> {
    fn of<'a>(network: &TarNetwork, parameters: &[R], given: impl Iterator<Item = &'a Given<Vec<R>>>) -> Tables<R> {
        let mut packing = Packing { parameters, weights: Vec::new() };
        let (mut stages, mut layers, mut orders) = (Vec::new(), Vec::new(), Vec::new());
        for (block, given) in network.blocks.iter().zip(given) {
            stages.push(StageRecord {
                into: packing.tarflow_linear(&block.into, |o| o),
                out: packing.tarflow_linear(&block.out, |o| o),
                positions: packing.numbers_given(&given.positions),
                condition: given.condition.as_ref().map_or(0, |condition| packing.numbers_given(condition)),
                order: orders.len() as i32,
                padding: 0,
            });
            orders.extend(block.order.iter().map(|&place| place as i32));
            for (layer, given) in block.layers.iter().zip(&given.layers) {
                layers.push(LayerRecord {
                    attention: packing.modulation(given.attention.as_ref()),
                    transition: packing.modulation(given.transition.as_ref()),
                    ..packing.tarflow_layer(layer, network.config.channels)
                });
            }
        }
        Tables { weights: packing.weights, stages, layers, orders }
    }
}

/// A network on the card.
struct OnCard<R: Real> {
    driver: Arc<dyn Driver>,
    sizes: Sizes,
    teams: Variant,
    weights: Buffer<R>,
    stages: Buffer<StageRecord>,
    layers: Buffer<LayerRecord>,
    orders: Buffer<i32>,
    /// The other shapes; None if the card has too little shared memory for one.
    others: Compiled<Shape, Option<Variant>>,
    work: Workspaces<Work<R>>,
    gradients: Gradients<R>,
}

#[derive(Clone, Copy)]
struct Variant {
    shape: Shape,
    shared: usize,
    kernel: KernelId,
    /// Number of blocks that the card runs at once.
    resident: usize,
}

impl Variant {
    /// Compiles the kernel; None if the card has too little shared memory for a block.
    fn new<R: Real>(driver: &Arc<dyn Driver>, sizes: &Sizes, shape: Shape) -> Result<Option<Variant>> {
        let shared = sizes.shared::<R>(shape.lanes);
        if shared > driver.shared_memory() {
            return Ok(None);
        }
        let kernel = driver.kernel(&sizes.program::<R>(shape), KERNEL)?;
        let resident = driver.resident(kernel, THREADS as u32, shared)?;
        Ok(Some(Variant { shape, shared, kernel, resident }))
    }

    /// Number of teams that n samples keep busy.
    fn tiles(&self, n: usize, encode: bool) -> usize {
        match encode {
            true => n,
            false => n.div_ceil(self.shape.lanes),
        }
    }
}

/// Device memory for a batch.
struct Work<R> {
    x: Buffer<f64>,
    log_det: Buffer<f64>,
    scratch: Buffer<R>,
    arrivals: Buffer<u32>,
}

impl<R: Real> Work<R> {
    fn new(driver: &Arc<dyn Driver>) -> Work<R> {
        Work {
            x: Buffer::empty(driver),
            log_det: Buffer::empty(driver),
            scratch: Buffer::empty(driver),
            arrivals: Buffer::empty(driver),
        }
    }
}

/// Distribution of a launch's work.
struct Plan {
    variant: Variant,
    teams: usize,
    /// Numbers in the state of a team, mostly keys and values.
    state: usize,
}

impl<R: Real> OnCard<R> {
    fn new(flow: &TarFlow<R>, driver: &Arc<dyn Driver>) -> Result<OnCard<R>> {
        let sizes = Sizes::of(&flow.network);
        // now rather than in the middle of a simulation, in case there is no compiler
        let Some(teams) = Variant::new::<R>(driver, &sizes, TEAMS)? else {
            return Err(Error::Unsupported(format!(
                "{}: this TarFlow requires {} KiB of shared memory per block, but only {} KiB are available; use \
                 device cpu",
                driver.describe(),
                sizes.shared::<R>(TEAMS.lanes).div_ceil(1024),
                driver.shared_memory() / 1024
            )));
        };
        let tables = Tables::of(&flow.network, &flow.parameters, flow.runner.given_values());
        if i32::try_from(tables.weights.len()).is_err() {
            let billions = tables.weights.len() as f64 * 1e-9;
            let message = format!(
                "a TarFlow with {billions:.1} billion weights is too large for the GPU kernels; use device cpu"
            );
            return Err(Error::Unsupported(message));
        }
        Ok(OnCard {
            driver: driver.clone(),
            sizes,
            teams,
            weights: Buffer::of(driver, &tables.weights)?,
            stages: Buffer::of(driver, &tables.stages)?,
            layers: Buffer::of(driver, &tables.layers)?,
            orders: Buffer::of(driver, &tables.orders)?,
            others: Compiled::default(),
            work: Workspaces::on(driver, Work::new),
            gradients: Gradients::on(driver),
        })
    }

    /// Variant of another shape, or the one for teams if that does not fit.
    fn other(&self, shape: Shape) -> Result<Variant> {
        let variant = self.others.get(shape, || Variant::new::<R>(&self.driver, &self.sizes, shape))?;
        Ok(variant.unwrap_or(self.teams))
    }

    /// As many teams as there is work or room for; if each has one block, in the shape for a full card.
    fn plan(&self, n: usize, encode: bool) -> Result<Plan> {
        let variant = match (n, encode) {
            (1, false) => self.other(ALONE)?,
            _ if self.teams.tiles(n, encode) > self.teams.resident => self.other(FULL)?,
            _ => self.teams,
        };
        let state = self.sizes.state(variant.shape.lanes, encode);
        let fitting = memory_of_states(&*self.driver) / (state * size_of::<R>());
        let teams = variant.tiles(n, encode).min(variant.resident).min(fitting).max(1);
        Ok(Plan { variant, teams, state })
    }

    /// Samples per launch that makes `passes` passes through the network's products.
    fn rows_of_launch(&self, passes: f64) -> usize {
        let most = if self.driver.has_watchdog() { WATCHED_WORK } else { WORK };
        ((most / (passes * self.sizes.flops())) as usize).clamp(1, LAUNCH)
    }

    /// Maps x, `[n][T D]` in the network's units, to z, or back, in place; with ln|∂z/∂x|, or ln|∂x/∂z|.
    fn run(&self, x: &mut [f64], log_det: &mut [f64], encode: bool) -> Result<()> {
        let n = log_det.len();
        let Plan { variant, teams, state } = self.plan(n, encode)?;
        let none_yet = vec![0; teams];
        let mut work = self.work.take()?;
        work.x.write(x)?;
        work.log_det.reserve(n)?;
        work.arrivals.write(&none_yet)?;
        // last, as it takes as much as there is
        let teams = work.scratch.reserve_parts(teams, state)?;
        let blocks = (variant.resident / teams).clamp(1, self.sizes.most_blocks(variant.shape.pairs));
        let arguments = Arguments {
            weights: self.weights.address(),
            stages: self.stages.address(),
            layers: self.layers.address(),
            orders: self.orders.address(),
            x: work.x.address(),
            log_det: work.log_det.address(),
            scratch: work.scratch.address(),
            arrivals: work.arrivals.address(),
            n: n as i32,
            tokens: self.sizes.config.tokens as i32,
            n_stages: self.sizes.config.blocks as i32,
            encode: i32::from(encode),
            blocks: blocks as i32,
            padding: 0,
        };
        let (kernel, grid, threads) = (variant.kernel, (teams * blocks) as u32, THREADS as u32);
        let argument = argument(&arguments);
        // SAFETY: the kernel takes `Arguments`; x and log_det have room for n rows, the other buffers for this many
        // teams.
        unsafe {
            match blocks {
                1 => work.driver.launch(kernel, grid, threads, variant.shared, argument)?,
                _ => work.driver.launch_together(kernel, grid, threads, variant.shared, argument)?,
            }
        }
        work.driver.download(&mut [work.x.copy_to(x), work.log_det.copy_to(log_det)])
    }
}

/// A TarFlow whose samples, densities and scores are computed on a GPU. Training stays on the CPU.
pub struct TarFlowOnDevice<R: Real> {
    host: TarFlow<R>,
    card: Arc<OnCard<R>>,
}

impl<R: Real> TarFlow<R> {
    /// Copies the flow to a GPU and compiles its kernels. Errors: evaluation options that the GPU does not support; too
    /// little shared memory; the driver's.
    pub fn on_device(self, driver: &Arc<dyn Driver>) -> Result<TarFlowOnDevice<R>> {
        in_turn(&self.options)?;
        let card = Arc::new(OnCard::new(&self, driver)?);
        Ok(TarFlowOnDevice { host: self, card })
    }
}

/// Requires sequential decoding. Errors: decoding by iteration.
fn in_turn(options: &Options) -> Result<()> {
    match options.decoding {
        Decoding::Sequential => Ok(()),
        Decoding::Jacobi(_) => {
            Err(Error::Unsupported("iterative decoding is supported only on the CPU; use device cpu".into()))
        }
    }
}

impl<R: Real> Density for TarFlowOnDevice<R> {
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
        let n = self.rows(x, log_density)?;
        let mut z = vec![0.0; x.len()];
        z.chunks_exact_mut(self.dimension()).enumerate().for_each(|(row, z)| streams(row).fill_normal(z));
        self.generate(&z, x, &mut vec![0.0; n], log_density)
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.encode(x, &mut vec![0.0; x.len()], &mut vec![0.0; n], log_density)
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let (n, units) = (self.rows(x, log_density)?, self.host.scale.units_per_nm);
        self.rows(gradient, log_density)?;
        let (mut z, mut log_det): (Vec<f64>, _) = (x.iter().map(|x| x * units).collect(), vec![0.0; n]);
        self.card.gradient(&mut z, gradient, &mut log_det)?;
        self.host.finish_gradient(x, &z, &log_det, log_density, gradient);
        Ok(())
    }
}

impl<R: Real> Flow for TarFlowOnDevice<R> {
    fn latent_dimension(&self) -> usize {
        self.host.latent_dimension()
    }

    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let rows = self.card.rows_of_launch(1.0);
        x.copy_from_slice(z);
        for (x, log_det) in x.chunks_mut(rows * self.dimension()).zip(log_det.chunks_mut(rows)) {
            self.card.run(x, log_det, false)?;
        }
        self.host.finish_decoding(z, x, log_det, log_density);
        Ok(())
    }

    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let (rows, units) = (self.card.rows_of_launch(1.0), self.host.scale.units_per_nm);
        z.iter_mut().zip(x).for_each(|(z, x)| *z = x * units);
        for (z, log_det) in z.chunks_mut(rows * self.dimension()).zip(log_det.chunks_mut(rows)) {
            self.card.run(z, log_det, true)?;
        }
        self.host.finish_encoding(x, z, log_det, log_density);
        Ok(())
    }
}

impl<R: Real> Autoregressive for TarFlowOnDevice<R> {
    fn with_options(&self, options: Options) -> Result<Arc<dyn Model>> {
        in_turn(&options)?;
        Ok(Arc::new(TarFlowOnDevice { host: self.host.with_options(options)?, card: self.card.clone() }))
    }

    fn decoded(&self) -> Decoded {
        self.host.decoded()
    }
}

impl<R: Real> Model for TarFlowOnDevice<R> {
    fn card(&self) -> &ModelCard {
        self.host.card()
    }

    fn hash(&self) -> &str {
        self.host.hash()
    }

    fn device(&self) -> String {
        self.card.driver.describe()
    }

    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }

    fn autoregressive(&self) -> Option<&dyn Autoregressive> {
        Some(self)
    }
}
