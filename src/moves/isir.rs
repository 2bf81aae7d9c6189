//! Iterated sampling importance resampling, i-SIR(K).

use super::{Fate, Generator, Move, Outcome, State, Statistics};
use crate::error::Result;
use crate::rng::{Stream, StreamId};
use crate::target::Target;

/// Selects the next state among the current one and K fresh proposals, with probability proportional to w = e^{−u}/q
/// (Tjelmeland 2004; Andrieu, Lee and Vihola 2018, algorithm 1). Uniformly ergodic when w is bounded.
///
/// Why it is exact: label x and the K proposals in random order. Their joint density π(x) Π q(y) equals the product of q
/// over all of them times w(x), so given the set each member is the state with probability proportional to its weight, and a fresh
/// draw from that conditional leaves the joint density invariant.
///
/// The outcome shows the selected proposal, or the one of largest weight if the current state is kept; `log_acceptance`
/// is the log-odds of leaving, ln Σ w(y) − ln w(x). A current state outside the generator's support has infinite weight
/// and stays.
pub struct Isir {
    generator: Generator,
    statistics: Statistics,
}

impl Isir {
    /// i-SIR with this generator and its number of proposals.
    pub fn new(generator: Generator) -> Isir {
        Isir { generator, statistics: Statistics::default() }
    }

    /// The same move with densities averaged over orientations, as in [`super::Independence::over_rotations`].
    ///
    /// Errors: as there.
    pub fn over_rotations(mut generator: Generator, rotations: usize) -> Result<Isir> {
        generator.average_rotations(rotations)?;
        Ok(Isir::new(generator))
    }

    /// Index of the selected proposal, if any, from one uniform number; the current state's share comes first in (0,
    /// 1).
    fn choose(&self, uniform: f64) -> Option<usize> {
        let generator = &self.generator;
        let n = generator.n_proposals();
        let current = generator.log_weight_current();
        let largest = (0..n).map(|k| generator.log_weight(k)).fold(current, f64::max);
        let weight = |log_weight: f64| (log_weight - largest).exp();
        let total = weight(current) + (0..n).map(|k| weight(generator.log_weight(k))).sum::<f64>();
        let mut left = uniform * total - weight(current);
        if left < 0.0 {
            return None;
        }
        for k in 0..n {
            left -= weight(generator.log_weight(k));
            if left < 0.0 {
                return Some(k);
            }
        }
        // Rounding left a sliver at the end, which goes to the last proposal of positive weight.
        (0..n).rev().find(|&k| weight(generator.log_weight(k)) > 0.0)
    }

    fn log_sum_of_proposals(&self) -> f64 {
        let generator = &self.generator;
        let weights = || (0..generator.n_proposals()).map(|k| generator.log_weight(k));
        let largest = weights().fold(f64::NEG_INFINITY, f64::max);
        if largest == f64::NEG_INFINITY {
            return largest;
        }
        largest + weights().map(|w| (w - largest).exp()).sum::<f64>().ln()
    }
}

impl Move for Isir {
    fn dimension(&self) -> usize {
        self.generator.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        self.generator.prepare(target, state, &mut self.statistics)?;
        let generator = &self.generator;
        let current = generator.current();
        let uniform = Stream::new(generator.options().seed, StreamId::Select, state.step, state.replica).uniform();
        let chosen = if current.is_inside() { self.choose(uniform) } else { None };
        let heaviest = (0..generator.n_proposals())
            .max_by(|&i, &j| generator.log_weight(i).total_cmp(&generator.log_weight(j)))
            .expect("an attempt has at least one proposal");
        let shown = chosen.unwrap_or(heaviest);
        if let Some(k) = chosen {
            generator.take(k, state);
        }
        let fate = match chosen {
            Some(_) => Fate::Accepted,
            None if !current.is_inside() => Fate::of(current.status),
            None => generator.fate(heaviest),
        };
        let log_acceptance = if current.is_inside() {
            self.log_sum_of_proposals() - generator.log_weight_current()
        } else {
            f64::NEG_INFINITY
        };
        let outcome = Outcome {
            fate,
            log_acceptance,
            log_weight_current: generator.log_weight_current(),
            log_weight_proposed: generator.log_weight(shown),
            log_density_current: current.log_density,
            log_density_proposed: generator.proposal(shown).1.log_density,
            reduced_potential: state.reduced_potential,
            probability: 1.0 / (1.0 + (-log_acceptance).exp()),
        };
        self.statistics.record(&outcome);
        Ok(outcome)
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}
