//! Annealed independence proposals: paths from the generator to the target.

use super::independence::decide;
use super::{Generator, Move, Outcome, State, Statistics};
use crate::annealing::{check_stages, step_all, Bridge, Kernel, Points, Stage};
use crate::density::Exactness;
use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::target::Target;

/// Stream counters between two paths of one attempt: 2²¹ random numbers for each.
const COUNTERS_PER_PATH: u32 = 1 << 20;
/// Maximum number of proposals per attempt, so that the counters of their paths and of the current state's do not
/// overlap.
const MOST_PROPOSALS: usize = (1 << 12) - 1;

/// Annealing path from the generator to the target: `moves` moves by a kernel at each stage.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Path {
    /// A kernel with a Metropolis test, [`Kernel::Adjusted`] or [`Kernel::Hamiltonian`].
    pub kernel: Kernel,
    /// Stages with t rising from above 0 to 1, each with its step size: [`crate::annealing::even`], or
    /// [`crate::annealing::plan`] from a pilot run, which must be complete before the first attempt.
    pub stages: Vec<Stage>,
    pub moves: usize,
}

impl Path {
    /// Errors: stages that do not rise to t = 1, step sizes that are not positive, no moves, a kernel without a
    /// Metropolis test, more random numbers than a path has.
    fn check(&self, dimension: usize) -> Result<()> {
        if self.stages.is_empty() {
            return Err(Error::invalid("an annealed path has 0 stages: must be one or more"));
        }
        check_stages(&self.stages, self.kernel)?;
        if let Kernel::Unadjusted { .. } = self.kernel {
            return Err(Error::invalid(
                "an annealed path requires a kernel with a Metropolis test: adjusted or hamiltonian",
            ));
        }
        let numbers = self.stages.len().saturating_mul(self.moves).saturating_mul(dimension + 2);
        if self.moves == 0 || numbers > 2 * COUNTERS_PER_PATH as usize {
            return Err(Error::invalid(format!(
                "{} stages of {} moves in {dimension} coordinates are out of range: use at least 1 move and at most {} \
                 random numbers",
                self.stages.len(),
                self.moves,
                2 * COUNTERS_PER_PATH
            )));
        }
        Ok(())
    }

    /// Anneals samples y of the density to the target, in place: at every stage ln W += ln γ_k(y) − ln γ_{k−1}(y), then
    /// y moves by K_k. Returns ln W of every row.
    fn forward(&self, bridge: &mut Bridge, y: &mut Points, streams: &mut [Stream]) -> Result<Vec<f64>> {
        let mut log_w = vec![0.0; y.n()];
        let mut before = 0.0;
        for &stage in &self.stages {
            climb(y, stage.t - before, &mut log_w);
            self.moved(bridge, y, stage, streams)?;
            before = stage.t;
        }
        Ok(log_w)
    }

    /// Anneals configurations x of the target back to the density, in place: at every stage, from the last to the
    /// first, x moves by K_k, then ln W += ln γ_k(x) − ln γ_{k−1}(x). Returns ln W of every row.
    fn backward(&self, bridge: &mut Bridge, x: &mut Points, streams: &mut [Stream]) -> Result<Vec<f64>> {
        let mut log_w = vec![0.0; x.n()];
        for (k, &stage) in self.stages.iter().enumerate().rev() {
            self.moved(bridge, x, stage, streams)?;
            let before = if k == 0 { 0.0 } else { self.stages[k - 1].t };
            climb(x, stage.t - before, &mut log_w);
        }
        Ok(log_w)
    }

    fn moved(&self, bridge: &mut Bridge, points: &mut Points, stage: Stage, streams: &mut [Stream]) -> Result<()> {
        for _ in 0..self.moves {
            step_all(bridge, points, self.kernel, stage, streams)?;
        }
        Ok(())
    }
}

/// Adds ln γ_{t+dt} − ln γ_t to ln W; −∞ where the density is zero at either end.
fn climb(points: &Points, dt: f64, log_w: &mut [f64]) {
    let energies = points.target.iter().zip(&points.source);
    for (w, (u, source)) in log_w.iter_mut().zip(energies) {
        *w = match *w - dt * (u - source) {
            sum if sum.is_finite() => sum,
            _ => f64::NEG_INFINITY,
        };
    }
}

/// Independence move whose proposals are carried from the generator to the target by annealed importance sampling
/// before they are tested (Neal, Statistics and Computing 11, 125 (2001); as a move: Andrieu, Doucet and Holenstein, J.
/// R. Stat. Soc. B 72, 269 (2010)). This raises the acceptance of a generator that is slightly off everywhere, at the
/// cost of 2 K gradients of density and target in each attempt, K for the proposal and K for the current configuration.
///
/// With γ₀ = q, γ_K = e^{−u}, ln γ_k = (1 − t_k) ln q − t_k u, and kernels K_k reversible for γ_k: a proposal is the
/// end y_K of a path y₀ ~ q, y_k ~ K_k(y_{k−1}, ·), with weight ln W = Σ ln γ_k(y_{k−1}) − ln γ_{k−1}(y_{k−1}). The
/// current x is also the end of a path, drawn backwards from it starting with K_K, with the weight given by the same
/// sum. log α = ln W_y − ln W_x.
///
/// Why it is exact: forward paths have the law Q(y₀ … y_K) = q(y₀) Π K_k(y_{k−1}, y_k). By reversibility γ_k(y_{k−1})
/// K_k(y_{k−1}, y_k) = γ_k(y_k) K_k(y_k, y_{k−1}), so that W Q = e^{−u(y_K)} Π K_k(y_k, y_{k−1}) = Π(y₀ … y_K), whose
/// marginal at the end is the target and whose conditional of the rest given the end is the law of the backward path.
/// Drawing a fresh backward path leaves Π invariant, and so does an independence move of whole paths from Q, whose
/// weight Π/Q is W.
///
/// A generator that leaves position and orientation, or the centroid, alone is annealed in the coordinates that it
/// describes, with the rest fixed ([`crate::annealing::Space`]). Weights in the statistics are W. The log-densities of
/// an outcome are −u − ln W, the effective log-density of proposing the path's end.
pub struct Annealed {
    generator: Generator,
    path: Path,
    statistics: Statistics,
}

impl Annealed {
    /// Errors: an invalid [`Path`], more than 4095 proposals, a density without a gradient, a generator with constrained or fixed bonds, which paths
    /// would change.
    pub fn new(generator: Generator, path: Path) -> Result<Annealed> {
        path.check(generator.dimension())?;
        generator.require_gradient()?;
        if generator.keeps_bonds() {
            return Err(Annealed::keeps_no_bond());
        }
        if generator.n_proposals() > MOST_PROPOSALS {
            return Err(Error::invalid(format!("at most {MOST_PROPOSALS} proposals can be annealed in one attempt")));
        }
        Ok(Annealed { generator, path, statistics: Statistics::of(Exactness::Exact) })
    }

    /// Error that refuses constraints.
    pub(crate) fn keeps_no_bond() -> Error {
        Error::Unsupported(
            "annealed paths move every atom and do not preserve constrained bonds: use a system without constraints \
             and a model without constant bonds, or jump without a path"
                .into(),
        )
    }

    /// Anneals the proposals to the target and the current configuration back; their path weights replace those from
    /// densities.
    fn anneal(&mut self, target: &mut dyn Target, state: &State) -> Result<()> {
        let Annealed { generator, path, .. } = self;
        let (usable, d) = (generator.usable(), generator.dimension());
        if usable.is_empty() {
            return Ok(());
        }
        let density = generator.density().clone();
        let starts: Vec<f64> = usable.iter().flat_map(|&k| generator.as_drawn(k)).collect();
        let seed = generator.options().seed;
        let stream = |path: usize| {
            let counter = path as u32 * COUNTERS_PER_PATH;
            Stream::new(seed, StreamId::Anneal, state.step, state.replica).at(counter)
        };
        let space = generator.space();
        let current = generator.current_as_drawn().to_vec();
        let mut placed = Placed { generator, target };
        let mut bridge = Bridge { space, ..Bridge::new(density.as_ref(), &mut placed) };
        let mut x = bridge.evaluate(current)?;
        if x.target[0].is_finite() && x.target_gradient.iter().any(|g| !g.is_finite()) {
            return Err(Error::invalid(
                "the gradient of the reduced potential is not finite at the current configuration, although the potential is: no \
                 step of a path would be accepted",
            ));
        }
        let of_current = path.backward(&mut bridge, &mut x, &mut [stream(0)])?;
        let mut y = bridge.evaluate(starts)?;
        let mut streams: Vec<Stream> = usable.iter().map(|&k| stream(k + 1)).collect();
        let of_proposals = path.forward(&mut bridge, &mut y, &mut streams)?;
        for (row, &k) in usable.iter().enumerate() {
            generator.set_end(k, &y.x[row * d..(row + 1) * d]);
        }
        generator.evaluate(target)?;
        for (&k, log_w) in usable.iter().zip(of_proposals) {
            generator.set_log_weight(k, log_w);
        }
        generator.set_log_weight_current(of_current[0]);
        Ok(())
    }
}

/// The target as a function of what the density describes, evaluated at the position of the current configuration.
struct Placed<'a> {
    generator: &'a Generator,
    target: &'a mut dyn Target,
}

impl Target for Placed<'_> {
    fn dimension(&self) -> usize {
        self.target.dimension()
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.target.reduced_potential(&self.generator.placed(x), u)
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.target.reduced_potential_gradient(&self.generator.placed(x), u, gradient)?;
        self.generator.pull_back(gradient);
        Ok(())
    }
}

impl Move for Annealed {
    fn dimension(&self) -> usize {
        self.generator.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        self.generator.begin(target, state)?;
        // from a current state outside the support no path can be drawn, and the attempt is rejected
        if self.generator.current().is_inside() {
            self.anneal(target, state)?;
            self.generator.record_weights(&mut self.statistics);
        }
        Ok(decide(&self.generator, state, &mut self.statistics))
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}
