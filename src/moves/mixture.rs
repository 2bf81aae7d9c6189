//! Mixture of moves: each attempt makes one of them, chosen independently of the state.

use super::{Move, Outcome, State, Statistics};
use crate::density::Exactness;
use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::target::Target;

/// Mixture Σ pᵢ Kᵢ of kernels. If each leaves the target invariant, so does the mixture, since the choice does not
/// depend on the state. Local dynamics can be one of the moves ([`super::RandomWalk`]) or run between attempts.
///
/// The statistics cover all attempts and are as exact as the least exact move; each move keeps its own as well, see
/// [`Mixture::moves`].
pub struct Mixture {
    moves: Vec<Box<dyn Move>>,
    cumulative: Vec<f64>,
    seed: u64,
    /// Depth of the mixtures nested in this one.
    within: u32,
    statistics: Statistics,
}

impl Mixture {
    /// A mixture of moves with relative weights.
    ///
    /// Errors: no move, moves of different dimension, weights that are negative or all zero.
    pub fn new(moves: Vec<(f64, Box<dyn Move>)>, seed: u64) -> Result<Mixture> {
        let total: f64 = moves.iter().map(|(p, _)| p).sum();
        if moves.iter().any(|(p, _)| p.is_nan() || *p < 0.0) || !(total > 0.0 && total.is_finite()) {
            return Err(Error::invalid(
                "a mixture requires moves with non-negative weights, at least one of them positive",
            ));
        }
        let dimension = moves[0].1.dimension();
        if let Some((_, other)) = moves.iter().find(|(_, m)| m.dimension() != dimension) {
            return Err(Error::invalid(format!(
                "all moves of a mixture must have the same number of coordinates, found {dimension} and {}",
                other.dimension()
            )));
        }
        let mut sum = 0.0;
        let (cumulative, moves): (Vec<f64>, Vec<Box<dyn Move>>) = moves
            .into_iter()
            .map(|(p, m)| {
                sum += p / total;
                (sum, m)
            })
            .unzip();
        let worst = moves.iter().map(|m| m.statistics().likelihood()).max().unwrap_or(Exactness::Exact);
        let within = moves.iter().map(|m| m.nested_mixtures()).max().unwrap_or(0);
        Ok(Mixture { moves, cumulative, seed, within, statistics: Statistics::of(worst) })
    }

    /// The component moves, in the order given.
    pub fn moves(&self) -> &[Box<dyn Move>] {
        &self.moves
    }

    /// Index of the move made at this step.
    pub fn choice(&self, step: u64, replica: u32) -> usize {
        // offset by depth, so that a nested mixture with the same seed draws another number
        let uniform = Stream::new(self.seed, StreamId::Mixture, step, replica).at(self.within).uniform();
        let last = self.moves.len() - 1;
        self.cumulative.iter().position(|c| uniform < *c).unwrap_or(last)
    }
}

impl Move for Mixture {
    fn dimension(&self) -> usize {
        self.moves[0].dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let choice = self.choice(state.step, state.replica);
        let outcome = self.moves[choice].attempt(target, state)?;
        self.statistics.record(&outcome);
        Ok(outcome)
    }

    fn nested_mixtures(&self) -> u32 {
        self.within + 1
    }

    fn set_temperature(&mut self, kelvin: f64) -> Result<()> {
        self.moves.iter_mut().try_for_each(|m| m.set_temperature(kelvin))
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}
