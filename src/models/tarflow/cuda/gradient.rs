//! ∇ₓ log q of TarFlows on a GPU (`cuda/tarflow_gradient.cu`).

use super::{OnCard, Sizes, THREADS};
use crate::device::{argument, memory_of_states, Buffer, Compiled, Driver, KernelId, Program, Workspaces};
use crate::error::{Error, Result};
use crate::nn::Real;
use bytemuck::{Pod, Zeroable};
use std::sync::Arc;

const SOURCE: &str = include_str!("../../../../cuda/tarflow_gradient.cu");
const NAME: &str = "tarflow_gradient";
/// Cost relative to a log q: every product is repeated in the backward pass.
const PASSES: f64 = 2.0;
/// Lanes per thread.
const GROUP: usize = 4;
/// Largest numbers of columns of threads, and of groups of lanes, in a tile of a product.
const MOST_COLUMNS: usize = 64;
const MOST_ACROSS: usize = 8;
/// Outputs per thread, HIGH of the kernel: for teams of blocks, and for a full card.
const TEAMS: usize = 1;
const FULL: usize = 4;

/// `Arguments` of the kernel; addresses are on the card.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Arguments {
    weights: u64,
    stages: u64,
    layers: u64,
    orders: u64,
    x: u64,
    gradient: u64,
    log_det: u64,
    path: u64,
    scratch: u64,
    arrivals: u64,
    n: i32,
    tokens: i32,
    n_stages: i32,
    blocks: i32,
    lanes: i32,
    across: i32,
}

impl Sizes {
    fn gradient_program<R: Real>(&self, high: usize) -> Program {
        self.program_of::<R>(NAME, SOURCE, &[("HIGH", high)])
    }

    /// Bytes of shared memory of a block.
    fn gradient_shared<R>(high: usize) -> usize {
        let depth = 64 / size_of::<R>();
        2 * depth * (high * MOST_COLUMNS + 4 + GROUP * MOST_ACROSS) * size_of::<R>()
    }

    /// Tokens that others need, rounded up to whole groups.
    fn lanes(&self) -> usize {
        (self.config.tokens - 1).max(1).next_multiple_of(GROUP)
    }

    /// Groups of lanes in a tile: as few tiles as possible, of equal size.
    fn across(&self) -> usize {
        let groups = self.lanes() / GROUP;
        groups.div_ceil(groups.div_ceil(MOST_ACROSS))
    }

    /// Numbers in a team's state, as divided by `State` of the kernel.
    fn gradient_state(&self) -> usize {
        let (c, hidden, lanes) = (self.config.channels, self.hidden(), self.lanes());
        let [qk_norms, adaptive, transition] = [self.qk_norms, self.adaptive, self.transition].map(usize::from);
        let pairs = self.config.heads * lanes;
        let of_layer = (5 + adaptive + 2 * qk_norms + transition) * c + (1 + 2 * transition) * hidden + pairs;
        let of_stage = self.config.layers * of_layer + 2 * self.config.token_size;
        let of_all = 4 * c + (3 * c).max((1 + transition) * hidden) + 2 * self.config.token_size + pairs;
        (self.config.blocks * of_stage + of_all) * lanes
    }

    /// Number of blocks of a team beyond which some would be idle in the largest product.
    fn most_gradient_blocks(&self, high: usize) -> usize {
        let outputs = (3 * self.config.channels).max(self.hidden() * if self.transition { 2 } else { 1 });
        let columns = (THREADS / self.across() / 2 * 2).min(MOST_COLUMNS);
        outputs.div_ceil(high * columns) * self.lanes().div_ceil(GROUP * self.across())
    }
}

/// Programs for networks of these sizes.
pub(super) fn programs(single: &Sizes, prose: &Sizes) -> Vec<Program> {
    vec![
        prose.gradient_program::<f32>(FULL),
        single.gradient_program::<f32>(TEAMS),
        prose.gradient_program::<f64>(FULL),
    ]
}

/// Device memory for a batch.
struct Work<R> {
    x: Buffer<f64>,
    gradient: Buffer<f64>,
    log_det: Buffer<f64>,
    path: Buffer<f64>,
    scratch: Buffer<R>,
    arrivals: Buffer<u32>,
}

impl<R: Real> Work<R> {
    fn new(driver: &Arc<dyn Driver>) -> Work<R> {
        Work {
            x: Buffer::empty(driver),
            gradient: Buffer::empty(driver),
            log_det: Buffer::empty(driver),
            path: Buffer::empty(driver),
            scratch: Buffer::empty(driver),
            arrivals: Buffer::empty(driver),
        }
    }
}

#[derive(Clone, Copy)]
struct Variant {
    high: usize,
    kernel: KernelId,
    /// Number of blocks that the card runs at once.
    resident: usize,
}

/// Resources for gradients on a card besides the network: kernels, compiled on first use, and memory.
pub(super) struct Gradients<R: Real> {
    variants: Compiled<usize, Variant>,
    work: Workspaces<Work<R>>,
}

impl<R: Real> Gradients<R> {
    /// Resources on this card; nothing is compiled or allocated yet.
    pub fn on(driver: &Arc<dyn Driver>) -> Gradients<R> {
        Gradients { variants: Compiled::default(), work: Workspaces::on(driver, Work::new) }
    }
}

impl<R: Real> OnCard<R> {
    /// Compiles the kernel. Errors: the compiler's; a block that does not fit into the card's shared memory.
    fn gradient_variant(&self, high: usize) -> Result<Variant> {
        let shared = Sizes::gradient_shared::<R>(high);
        if shared > self.driver.shared_memory() {
            let message = format!(
                "gradients of this TarFlow require {} KiB of shared memory per block, more than the GPU has; use \
                 device cpu",
                shared.div_ceil(1024)
            );
            return Err(Error::Unsupported(message));
        }
        self.gradients.variants.get(high, || {
            let kernel = self.driver.kernel(&self.sizes.gradient_program::<R>(high), NAME)?;
            let resident = self.driver.resident(kernel, THREADS as u32, shared)?;
            Ok(Variant { high, kernel, resident })
        })
    }

    /// Kernel for n samples, and the number of teams.
    fn plan_gradient(&self, n: usize) -> Result<(Variant, usize)> {
        let teams = self.gradient_variant(TEAMS)?;
        let variant = if n > teams.resident { self.gradient_variant(FULL)? } else { teams };
        let fitting = memory_of_states(&*self.driver) / (self.sizes.gradient_state() * size_of::<R>());
        Ok((variant, n.min(variant.resident).min(fitting).max(1)))
    }

    /// Replaces x, `[n][T D]` in the network's units, by z; writes ∇ₓ log q, and ln|∂z/∂x|.
    pub(super) fn gradient(&self, x: &mut [f64], gradient: &mut [f64], log_det: &mut [f64]) -> Result<()> {
        let rows = self.rows_of_launch(PASSES);
        let d = (x.len() / log_det.len().max(1) * rows).max(1);
        let mut chunks = x.chunks_mut(d).zip(gradient.chunks_mut(d)).zip(log_det.chunks_mut(rows));
        chunks.try_for_each(|((x, gradient), log_det)| self.launch_gradient(x, gradient, log_det))
    }

    fn launch_gradient(&self, x: &mut [f64], gradient: &mut [f64], log_det: &mut [f64]) -> Result<()> {
        let n = log_det.len();
        let (variant, teams) = self.plan_gradient(n)?;
        let none_yet = vec![0; teams];
        let mut work = self.gradients.work.take()?;
        work.x.write(x)?;
        work.gradient.reserve(x.len())?;
        work.log_det.reserve(n)?;
        work.path.reserve(teams * self.sizes.config.blocks * (x.len() / n))?;
        work.arrivals.write(&none_yet)?;
        // last, as it takes as much as there is
        let teams = work.scratch.reserve_parts(teams, self.sizes.gradient_state())?;
        let blocks = (variant.resident / teams).clamp(1, self.sizes.most_gradient_blocks(variant.high));
        let arguments = Arguments {
            weights: self.weights.address(),
            stages: self.stages.address(),
            layers: self.layers.address(),
            orders: self.orders.address(),
            x: work.x.address(),
            gradient: work.gradient.address(),
            log_det: work.log_det.address(),
            path: work.path.address(),
            scratch: work.scratch.address(),
            arrivals: work.arrivals.address(),
            n: n as i32,
            tokens: self.sizes.config.tokens as i32,
            n_stages: self.sizes.config.blocks as i32,
            blocks: blocks as i32,
            lanes: self.sizes.lanes() as i32,
            across: self.sizes.across() as i32,
        };
        let (grid, threads, shared) =
            ((teams * blocks) as u32, THREADS as u32, Sizes::gradient_shared::<R>(variant.high));
        let argument = argument(&arguments);
        // SAFETY: the kernel takes `Arguments`; x, gradient and log_det have room for n rows, the rest for so many
        // teams.
        unsafe {
            match blocks {
                1 => work.driver.launch(variant.kernel, grid, threads, shared, argument)?,
                _ => work.driver.launch_together(variant.kernel, grid, threads, shared, argument)?,
            }
        }
        let of_gradient = work.gradient.copy_to(gradient);
        work.driver.download(&mut [work.x.copy_to(x), of_gradient, work.log_det.copy_to(log_det)])
    }
}
