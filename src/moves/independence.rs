//! Independence Metropolis–Hastings: proposals do not depend on the current configuration.

use super::{accept, Generator, Move, Outcome, Proposal, State, Statistics};
use crate::density::{Density, Exactness};
use crate::error::Result;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::trust::Trust;
use std::sync::Arc;

/// Independence sampler: x′ ~ q, log α = log w(x′) − log w(x) with log w = −u − log q (Tierney 1994).
///
/// With K proposals an attempt makes K Metropolis tests in sequence, each against the state the last one left. It must
/// not stop at the first acceptance: the waiting time depends on the state, which would bias the chain. The outcome
/// shows the last accepted test, or else the one closest to acceptance.
pub struct Independence {
    generator: Generator,
    statistics: Statistics,
}

impl Independence {
    /// Metropolis tests of this generator's proposals, in sequence.
    pub fn new(generator: Generator) -> Independence {
        Independence { generator, statistics: Statistics::default() }
    }

    /// The same move with densities averaged over `rotations` = K orientations ([`crate::orientation`]): exact whatever
    /// the target, with less variable weights where the target is nearly isotropic, at the cost of K likelihoods for
    /// the current configuration and K − 1 for each proposal. Proposals, and so the configurations the target
    /// evaluates, are randomly oriented.
    ///
    /// Errors: a density that does not describe a molecule's orientation, a number of rotations that is zero or too
    /// large.
    pub fn over_rotations(mut generator: Generator, rotations: usize) -> Result<Independence> {
        generator.average_rotations(rotations)?;
        Ok(Independence::new(generator))
    }

    /// The same move with log q_s of a surrogate in place of log q: **biased**, only for those who ask for it by name.
    ///
    /// Proposals come from q and are weighted by w_s = e^{−u}/q_s, so for x ≠ x′ the flux μ(x) q(x′) min(1,
    /// w_s(x′)/w_s(x)) is symmetric for μ = q w_s: the move leaves e^{−u} q/q_s invariant, which is e^{−u} only where
    /// q_s equals q up to a constant. log q is never computed; [`super::DelayedAcceptance`] is the exact move with the
    /// same two densities. [`Statistics::likelihood`] is marked as a surrogate's, whatever the density calls itself.
    ///
    /// Errors: a surrogate of another dimension.
    pub fn by_surrogate(mut generator: Generator, surrogate: Arc<dyn Density>) -> Result<Independence> {
        generator.set_screen(surrogate, Trust::FULL)?;
        Ok(Independence { generator, statistics: Statistics::of(Exactness::Surrogate) })
    }
}

/// Makes one Metropolis test per proposal, each against the state the last one left. Returns the outcome to show and
/// the index of the proposal that is the final state, if any; `reduced_potential` is that of the initial state.
pub(super) fn chain(generator: &Generator, reduced_potential: f64, uniforms: &mut Stream) -> (Outcome, Option<usize>) {
    let (u_start, start) = (generator.u_current(), generator.current());
    let (mut u_current, mut reverse) = (u_start, start);
    // log-probability that no test accepts, starting from the initial state
    let mut log_stays = 0.0;
    let mut shown: Option<Outcome> = None;
    let mut taken = None;
    for k in 0..generator.n_proposals() {
        let (x, forward, u_proposed) = generator.proposal(k);
        let proposal = Proposal { x, forward, reverse };
        let test = accept(&proposal, u_current, u_proposed, uniforms.uniform());
        let outcome = Outcome::of_test(test, (u_current, reverse), (u_proposed, forward), reduced_potential);
        let (_, from_start) = accept(&Proposal { x, forward, reverse: start }, u_start, u_proposed, 1.0);
        log_stays += (-from_start.min(0.0).exp()).ln_1p();
        if outcome.accepted() {
            (u_current, reverse, taken) = (u_proposed, forward, Some(k));
        }
        let show =
            shown.is_none_or(|s| outcome.accepted() || (!s.accepted() && outcome.log_acceptance > s.log_acceptance));
        if show {
            shown = Some(outcome);
        }
    }
    let shown = shown.expect("an attempt has at least one proposal");
    (Outcome { probability: -log_stays.exp_m1(), ..shown }, taken)
}

/// Ends an attempt: runs the tests, updates the state, records statistics.
pub(super) fn decide(generator: &Generator, state: &mut State, statistics: &mut Statistics) -> Outcome {
    let mut uniforms = Stream::new(generator.options().seed, StreamId::Accept, state.step, state.replica);
    let (mut outcome, taken) = chain(generator, state.reduced_potential, &mut uniforms);
    if let Some(k) = taken {
        generator.take(k, state);
        outcome.reduced_potential = state.reduced_potential;
    }
    statistics.record(&outcome);
    outcome
}

impl Move for Independence {
    fn dimension(&self) -> usize {
        self.generator.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        self.generator.prepare(target, state, &mut self.statistics)?;
        Ok(decide(&self.generator, state, &mut self.statistics))
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}
