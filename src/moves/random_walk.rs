//! Random-walk Metropolis: the local move for systems without dynamics of their own.

use super::{accept, Fate, Move, Outcome, Proposal, State, Statistics};
use crate::density::Evaluation;
use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::target::Target;

/// Random-walk Metropolis: x′ = x + width · ξ, ξ standard normal in every coordinate. Since log q(x′|x) = log q(x|x′),
/// log α = −(u(x′) − u(x)).
///
/// Random numbers come from the stream `Dynamics`, so step and seed may be shared with a generator move.
pub struct RandomWalk {
    width: f64,
    seed: u64,
    proposed: Vec<f64>,
    statistics: Statistics,
}

impl RandomWalk {
    /// A move with steps of standard deviation `width`, in the unit of x.
    ///
    /// Errors: a width that is not positive.
    pub fn new(dimension: usize, width: f64, seed: u64) -> Result<RandomWalk> {
        if !(width > 0.0 && width.is_finite()) {
            return Err(Error::invalid(format!("the width of a random walk must be positive and finite, not {width}")));
        }
        Ok(RandomWalk { width, seed, proposed: vec![0.0; dimension], statistics: Statistics::default() })
    }
}

impl Move for RandomWalk {
    fn dimension(&self) -> usize {
        self.proposed.len()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        state.check(self.proposed.len(), target)?;
        let mut stream = Stream::new(self.seed, StreamId::Dynamics, state.step, state.replica);
        let uniform = stream.uniform();
        for (proposed, x) in self.proposed.iter_mut().zip(state.x.iter()) {
            *proposed = x + self.width * stream.normal();
        }
        let mut u = [f64::NAN];
        target.reduced_potential(&self.proposed, &mut u)?;
        // The Gaussian step density is symmetric and its constant cancels.
        let symmetric = Evaluation::inside(0.0);
        let proposal = Proposal { x: &self.proposed, forward: symmetric, reverse: symmetric };
        let u_current = state.reduced_potential;
        let test = accept(&proposal, u_current, u[0], uniform);
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(proposal.x);
            state.reduced_potential = u[0];
        }
        let outcome = Outcome::of_test(test, (u_current, symmetric), (u[0], symmetric), state.reduced_potential);
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
