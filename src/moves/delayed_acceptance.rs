//! Delayed acceptance: a cheap density screens the proposals, the exact one decides about those that pass.

use super::independence::chain;
use super::{accept, Generator, Move, Outcome, Proposal, State, Statistics};
use crate::density::Density;
use crate::error::{Error, Result};
use crate::models::{steering, Model};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Delayed acceptance for a generator whose exact log q is expensive (the divergence of a continuous flow): a density
/// q_s that is cheap (an energy-based model) and may be wrong screens the proposals (Christen and Fox 2005; with
/// several steps in stage 1, the surrogate transition of Liu 2001).
///
/// Stage 1: K Metropolis tests, one per proposal, with log w_s = −u − log q_s in place of log w. Since proposals come
/// from q, this chain is reversible for e^{−u} q/q_s. Stage 2: if the chain has moved from x to x′, log α = ln c(x′) −
/// ln c(x) with c = q_s/q, the ratio of e^{−u} to the density stage 1 leaves invariant. So e^{−u} is left invariant
/// whatever q_s is, and log q is computed only if the state has moved, for the current state and for one proposal.
///
/// A screen may be trusted only in part: with its [`crate::trust::Trust`] (α, β), log q_s above becomes (α − 1) u + β
/// log q_s, so that log w_s = −α u − β log q_s.
///
/// Stage 2 rarely accepts where ln c varies by more than one or two, see [`Statistics::correction_variance`].
///
/// Weights in the statistics are −u − log q_s. The outcome shows the stage that decided: log-densities and weights of
/// the screen if stage 1 has not moved, of the generator if stage 2 was reached.
pub struct DelayedAcceptance {
    generator: Generator,
    statistics: Statistics,
}

impl DelayedAcceptance {
    /// Each proposal of an attempt (`n_proposals` of the generator's options) is a step of stage 1. The screen may have
    /// any exactness.
    ///
    /// Errors: a screen of another dimension.
    pub fn new(mut generator: Generator, screen: Arc<dyn Density>) -> Result<DelayedAcceptance> {
        let trust = screen.trust();
        generator.set_screen(screen, trust)?;
        Ok(DelayedAcceptance { generator, statistics: Statistics::default() })
    }

    /// Exact test between the current state and proposal k; the outcome shows the generator's numbers.
    fn correct(&mut self, k: usize, reduced_potential: f64, uniform: f64) -> Result<Outcome> {
        let generator = &self.generator;
        let [reverse, forward] = generator.exact(k)?;
        let (x, screened, u_proposed) = generator.proposal(k);
        // ln c(x′) − ln c(x) is the log α of an independence move whose target is q_s.
        let (u_current, screened_current) = (generator.u_current(), generator.current().log_density);
        let proposal = Proposal { x, forward, reverse };
        let test = accept(&proposal, -screened_current, -screened.log_density, uniform);
        self.statistics.record_correction(2, test.1);
        Ok(Outcome::of_test(test, (u_current, reverse), (u_proposed, forward), reduced_potential))
    }
}

/// The second model as a screen for the first: at the first one's temperature, if both follow one.
///
/// Errors: models of different atoms, or of atoms in a different order; a temperature that the screen refuses.
pub fn screen_of(model: &Arc<dyn Model>, screen: &Arc<dyn Model>) -> Result<Arc<dyn Model>> {
    if let (Some(a), Some(b)) = (&model.card().topology, &screen.card().topology) {
        if !a.has_atoms_of(b) {
            return Err(Error::invalid(
                "the screening model must have the same atoms as the generator, in the same order",
            ));
        }
    }
    match steering::temperature(model.as_ref()) {
        Some(kelvin) => steering::follow(screen, kelvin),
        None => Ok(screen.clone()),
    }
}

impl Move for DelayedAcceptance {
    fn dimension(&self) -> usize {
        self.generator.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        self.generator.prepare(target, state, &mut self.statistics)?;
        let seed = self.generator.options().seed;
        let mut uniforms = Stream::new(seed, StreamId::Accept, state.step, state.replica);
        let (mut outcome, moved) = chain(&self.generator, state.reduced_potential, &mut uniforms);
        outcome.probability = 0.0; // unless stage 2 is reached
        if let Some(k) = moved {
            outcome = self.correct(k, state.reduced_potential, uniforms.uniform())?;
            if outcome.accepted() {
                self.generator.take(k, state);
                outcome.reduced_potential = state.reduced_potential;
            }
        }
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
