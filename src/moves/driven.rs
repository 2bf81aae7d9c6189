//! Driven jumps: part of the system is pulled to the generator's proposal while the rest relaxes.

use super::independence::decide;
use super::{Generator, Move, Outcome, State, Statistics};
use crate::density::Status;
use crate::error::{Error, Result};
use crate::target::Target;

/// Upper limit for `steps`; anything longer is taken for a mistake.
const MOST_STEPS: usize = 1 << 16;

/// Independence move of a solute s in an environment e (a solvent) that relaxes: s′ ~ q is drawn as usual, and s is
/// pulled to it in K perturbations s₀ = s, s₁, …, s_K = s′, between which e relaxes with s_k held fixed
/// ([`Target::relax`]). Nonequilibrium candidate Monte Carlo (Nilmeier, Crooks, Minh and Chodera, PNAS 108, E1009
/// (2011)) along a path chosen by a generator, as in Athènes (Phys. Rev. E 66, 046705 (2002)) and Chen and Roux (J.
/// Chem. Theory Comput. 11, 3919 (2015)). With a frozen solvent, K = 1, all but the smallest jumps clash.
///
/// log α = ln q(s)/q(s′) − W with the work W = Σ_k u(s_{k+1}, e_k) − u(s_k, e_k), k = 0 … K − 1, where e_k is the
/// environment after k relaxations.
///
/// Why it is exact: given (s, e), a path to s′ has probability q(s′) Π_{k=1}^{K−1} R_k(e_{k−1}, e_k), where R_k is
/// reversible for e^{−u(s_k, ·)}. The path back from (s′, e_{K−1}) visits the same s_k in reverse order
/// ([`crate::coordinates::Between`]), also with a perturbation first and last. It has probability q(s) Π R_k(e_k,
/// e_{k−1}), and R_k(e_k, e_{k−1})/R_k(e_{k−1}, e_k) = e^{−u(s_k, e_{k−1}) + u(s_k, e_k)}. Times e^{−u} at either end,
/// the ratio is the α above. Where the work is infinite, so is that of the reverse path.
///
/// q is the density of the shape, measured as in an independence move: the frame stays in place and the same Jacobians
/// cancel. So does the metric (Fixman) term of constraints, except at the two ends.
///
/// In an outcome's weights, u(s, e) + W takes the place of the proposal's potential. No weights are recorded, since
/// u(s, e) belongs to a different environment in every attempt.
pub struct Driven {
    generator: Generator,
    steps: usize,
    statistics: Statistics,
}

impl Driven {
    /// A driven move with `steps` = K ≥ 1 perturbations.
    ///
    /// Errors: K out of range, a generator with several proposals per attempt.
    pub fn new(generator: Generator, steps: usize) -> Result<Driven> {
        if !(1..=MOST_STEPS).contains(&steps) {
            return Err(Error::invalid(format!(
                "a driven move of {steps} steps is out of range: use 1 to {MOST_STEPS}"
            )));
        }
        if generator.n_proposals() != 1 {
            return Err(Error::invalid(format!(
                "{} proposals: a driven move requires one proposal",
                generator.n_proposals()
            )));
        }
        Ok(Driven { generator, steps, statistics: Statistics::default() })
    }

    /// Intermediate points s₁ … s_{K−1}, or why there are none.
    fn way(&self) -> std::result::Result<Vec<Vec<f64>>, Status> {
        let way = self.generator.way_to(0)?;
        let point = |k: usize| match way.at(k as f64 / self.steps as f64) {
            Ok(s) if s.iter().any(|v| !v.is_finite()) => Err(Status::NonFinite),
            point => point,
        };
        (1..self.steps).map(point).collect()
    }

    /// Pulls the solute to its proposal. Returns u(s′, ·) in the final environment.
    fn pull(&mut self, target: &mut dyn Target, state: &State) -> Result<f64> {
        let mut way = Vec::new();
        if !self.generator.usable().is_empty() {
            match self.way() {
                Ok(points) => way = points,
                Err(status) => self.generator.refuse(0, status),
            }
        }
        let u = state.reduced_potential;
        let mut pulled = Pulled { target, way, u_start: u, u_end: f64::NAN };
        self.generator.evaluate(&mut pulled)?;
        Ok(pulled.u_end)
    }
}

/// Target whose potential difference between the ends is the work W instead of u(s′) − u(s).
struct Pulled<'a> {
    target: &'a mut dyn Target,
    way: Vec<Vec<f64>>,
    u_start: f64,
    u_end: f64,
}

impl Pulled<'_> {
    fn u(&mut self, s: &[f64]) -> Result<f64> {
        let mut u = [f64::NAN];
        self.target.reduced_potential(s, &mut u)?;
        Ok(u[0])
    }
}

impl Target for Pulled<'_> {
    fn dimension(&self) -> usize {
        self.target.dimension()
    }

    /// u(s, e) + W for the end point.
    fn reduced_potential(&mut self, end: &[f64], u: &mut [f64]) -> Result<()> {
        let (mut here, mut work) = (self.u_start, 0.0);
        for (k, s) in std::mem::take(&mut self.way).iter().enumerate() {
            work += self.u(s)? - here;
            if !work.is_finite() {
                u[0] = f64::INFINITY;
                return Ok(());
            }
            here = self.target.relax(s, k as u32)?;
        }
        self.u_end = self.u(end)?;
        u[0] = self.u_start + work + (self.u_end - here);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported("the work of a driven move has no gradient".into()))
    }
}

impl Move for Driven {
    fn dimension(&self) -> usize {
        self.generator.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        self.generator.begin(target, state)?;
        let mut u_end = f64::NAN;
        // from a current state outside the support no reverse path exists, and the attempt is rejected
        if self.generator.current().is_inside() {
            u_end = self.pull(target, state)?;
        }
        let mut outcome = decide(&self.generator, state, &mut self.statistics);
        if outcome.accepted() {
            (state.reduced_potential, outcome.reduced_potential) = (u_end, u_end);
        }
        Ok(outcome)
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}
