//! **Proposal** and **Move**: propose a configuration, accept or reject it, say why.
//!
//! Every move leaves e^{−u(x)} invariant, whatever the quality of its generator; the one exception,
//! [`Independence::by_surrogate`], has to be asked for and marks its statistics. A move keeps no state between attempts
//! that affects the result: an attempt is a function of (seed, step, replica) and the current configuration.

mod annealed;
mod blocks;
mod delayed_acceptance;
mod driven;
mod exchange;
mod generator;
mod independence;
mod isir;
mod latent_walk;
mod method;
mod mixture;
mod mode_jump;
mod random_walk;
mod statistics;
mod steered;
mod wholeness;

pub use annealed::{Annealed, Path};
pub use delayed_acceptance::{screen_of, DelayedAcceptance};
pub use driven::Driven;
pub use exchange::{Exchange, ExchangeOutcome};
pub use generator::{Generator, Options};
pub use independence::Independence;
pub use isir::Isir;
pub use latent_walk::{LatentWalk, LatentWalkOptions};
pub use method::Method;
pub use mixture::Mixture;
pub use mode_jump::{Edge, EdgeCount, Identical, ModeJump};
pub use random_walk::RandomWalk;
pub use statistics::Statistics;
pub use steered::{steered, Steered};
pub use wholeness::{check_box, make_whole};

use crate::coordinates::constraints::Constraints;
use crate::coordinates::whole::BoxVectors;
use crate::density::{Evaluation, Status};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::target::{require_temperature, Target};
use std::sync::Arc;

/// The configuration a move starts from; after an acceptance, the new one.
#[derive(Debug)]
pub struct State<'a> {
    /// Coordinates `[dimension]`, nm for molecules. Untouched, bit for bit, unless the move accepts.
    pub x: &'a mut [f64],
    /// Box vectors as rows, nm, with which molecules are made whole.
    pub box_vectors: Option<BoxVectors>,
    /// u(x), evaluated at this x and not carried over from earlier; after an acceptance, u of the new configuration.
    pub reduced_potential: f64,
    /// Engine step of the attempt.
    pub step: u64,
    /// Replica index, 24 bits.
    pub replica: u32,
}

impl State<'_> {
    /// Errors: a coordinate that is not finite; `whose` is for the message.
    fn require_finite(&self, whose: &str) -> Result<()> {
        match self.x.iter().position(|x| !x.is_finite()) {
            Some(place) => Err(Error::invalid(format!(
                "coordinate {} of {whose} is {} at step {}: the simulation failed before the move",
                place + 1,
                self.x[place],
                self.step
            ))),
            None => Ok(()),
        }
    }

    /// Errors: state or target of a dimension other than the move's; a current configuration or potential that is not
    /// finite.
    fn check(&self, dimension: usize, target: &dyn Target) -> Result<()> {
        if target.dimension() != dimension || self.x.len() != dimension {
            return Err(Error::invalid(format!(
                "the model has {dimension} coordinates, but the target has {} and the state {}",
                target.dimension(),
                self.x.len()
            )));
        }
        self.require_finite("the current configuration")?;
        if !self.reduced_potential.is_finite() {
            return Err(Error::invalid(format!(
                "the reduced potential of the current configuration is {} at step {}: the simulation failed before the \
                 move",
                self.reduced_potential, self.step
            )));
        }
        Ok(())
    }
}

/// x′ with the log-densities of proposing it from x and of proposing x from it (natural logarithms, in x coordinates).
#[derive(Clone, Copy, Debug)]
pub struct Proposal<'a> {
    /// x′ `[dimension]`.
    pub x: &'a [f64],
    /// log q(x′|x), the forward proposal density.
    pub forward: Evaluation,
    /// log q(x|x′), the reverse proposal density.
    pub reverse: Evaluation,
}

/// Outcome of an attempt. The numbers are part of the C ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u32)]
pub enum Fate {
    Accepted = 0,
    /// Rejected by the Metropolis test.
    Rejected = 1,
    OutOfSupport = 2,
    Singular = 3,
    NonFinite = 4,
    Constraint = 5,
    Chirality = 6,
    /// The configuration is in no mode that can be left, or the proposal is not in its intended mode.
    WrongMode = 7,
}

impl Fate {
    /// All variants, in the order of their numbers in the C ABI.
    pub const ALL: [Fate; 8] = [
        Fate::Accepted,
        Fate::Rejected,
        Fate::OutOfSupport,
        Fate::Singular,
        Fate::NonFinite,
        Fate::Constraint,
        Fate::Chirality,
        Fate::WrongMode,
    ];

    /// Name in files.
    pub fn name(self) -> &'static str {
        match self {
            Fate::Accepted => "accepted",
            Fate::Rejected => "rejected",
            Fate::OutOfSupport => "out_of_support",
            Fate::Singular => "singular",
            Fate::NonFinite => "non_finite",
            Fate::Constraint => "constraint",
            Fate::Chirality => "chirality",
            Fate::WrongMode => "wrong_mode",
        }
    }

    /// Fate of a proposal with this status; a usable one is `Rejected` until it is accepted.
    pub fn of(status: Status) -> Fate {
        match status {
            Status::Inside => Fate::Rejected,
            Status::OutOfSupport => Fate::OutOfSupport,
            Status::Singular => Fate::Singular,
            Status::NonFinite => Fate::NonFinite,
            Status::WrongChirality => Fate::Chirality,
            Status::BrokenConstraint => Fate::Constraint,
        }
    }
}

/// Result of one attempt. With several proposals the numbers are those of the deciding proposal, which each move's
/// documentation defines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    pub fate: Fate,
    /// log α, not clipped at 0; −∞ for a proposal that cannot be accepted.
    pub log_acceptance: f64,
    /// Importance log-weight of the current configuration, log w(x) = −u(x) − log q(x); the next field is log w(x′).
    pub log_weight_current: f64,
    pub log_weight_proposed: f64,
    pub log_density_current: f64,
    pub log_density_proposed: f64,
    /// u of the state after the attempt.
    pub reduced_potential: f64,
    /// Probability with which the attempt was to be accepted, given its proposals; its mean over attempts estimates the
    /// acceptance rate. For a single test, min(1, α).
    pub probability: f64,
}

impl Outcome {
    /// Outcome of a single Metropolis test, [`accept`], between the current state and a proposal, each given by u and
    /// the log-density of proposing it; u is `reduced_potential` after the attempt.
    pub fn of_test(
        (fate, log_acceptance): (Fate, f64),
        current: (f64, Evaluation),
        proposed: (f64, Evaluation),
        reduced_potential: f64,
    ) -> Outcome {
        Outcome {
            fate,
            log_acceptance,
            log_weight_current: -current.0 - current.1.log_density,
            log_weight_proposed: crate::weights::log_weight(proposed.0, &proposed.1),
            log_density_current: current.1.log_density,
            log_density_proposed: proposed.1.log_density,
            reduced_potential,
            probability: log_acceptance.min(0.0).exp(),
        }
    }

    /// Whether the configuration has changed.
    pub fn accepted(&self) -> bool {
        self.fate == Fate::Accepted
    }
}

/// A transition that leaves e^{−u} invariant if [`Statistics::likelihood`] is exact.
pub trait Move: Send {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// Makes one attempt. `state` changes if and only if the outcome is `Accepted`.
    ///
    /// Errors: a target of another dimension, a current configuration or reduced potential that is not finite, a failing
    /// target; `state` is then untouched.
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome>;

    /// Depth to which [`Mixture`]s are nested in this move; each level draws its own random number.
    fn nested_mixtures(&self) -> u32 {
        0
    }

    /// Sets the temperature (K) of the ensemble whose reduced potential is u. Moves of a steerable model follow it; all
    /// others belong to one temperature and ignore it.
    ///
    /// Errors: a temperature that is not positive.
    fn set_temperature(&mut self, kelvin: f64) -> Result<()> {
        require_temperature(kelvin)
    }

    fn statistics(&self) -> &Statistics;

    fn statistics_mut(&mut self) -> &mut Statistics;

    /// Clears the statistics, of all temperatures.
    fn reset_statistics(&mut self) {
        self.statistics_mut().reset();
    }
}

/// Default move for a model: [`ModeJump`] for a model of kind `modes`, else [`Independence`]. With a steerable model
/// the move follows [`Move::set_temperature`].
///
/// Errors: options refused by [`Generator::of_model`] or [`ModeJump::of_model`].
pub fn of_model(model: &Arc<dyn Model>, options: Options, constraints: Option<Constraints>) -> Result<Box<dyn Move>> {
    Method::Independence { rotations: None }.make(model, options, constraints)
}

/// Metropolis–Hastings test (Hastings 1970), which decides every move of this module but i-SIR, which selects instead.
/// The inner kernels of annealing and of solvent relaxation (the plugin's Solvent.cpp) have tests of their own.
///
/// log α = −(u(x′) − u(x)) + log q(x|x′) − log q(x′|x): it rises when the potential falls or when x is easy to propose
/// from x′, and falls when x′ is easy to propose from x. Accepts if and only if ln U < log α, with U uniform on (0, 1).
///
/// If the density on either side is zero or undefined, rejects with log α = −∞ and the reason. For the current state
/// that is correct too: with q(x) = 0 no move could ever return to it.
pub fn accept(proposal: &Proposal, u_current: f64, u_proposed: f64, uniform: f64) -> (Fate, f64) {
    for side in [&proposal.reverse, &proposal.forward] {
        if !side.is_inside() {
            return (Fate::of(side.status), f64::NEG_INFINITY);
        }
    }
    if !u_proposed.is_finite() {
        return (Fate::NonFinite, f64::NEG_INFINITY);
    }
    let log_acceptance = -(u_proposed - u_current) + proposal.reverse.log_density - proposal.forward.log_density;
    let fate = if uniform.ln() < log_acceptance { Fate::Accepted } else { Fate::Rejected };
    (fate, log_acceptance)
}

/// The evaluation of a proposal x′ after the checks that need no target: its coordinates are finite, and it keeps the
/// constraints.
fn checked(x: &[f64], evaluation: Evaluation, constraints: Option<&Constraints>) -> Evaluation {
    let status = if !evaluation.is_inside() {
        return evaluation;
    } else if x.iter().any(|v| !v.is_finite()) {
        Status::NonFinite
    } else if constraints.is_some_and(|c| !c.are_kept(x)) {
        Status::BrokenConstraint
    } else {
        return evaluation;
    };
    Evaluation::outside(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposal(forward: f64, reverse: f64) -> Proposal<'static> {
        Proposal { x: &[], forward: Evaluation::inside(forward), reverse: Evaluation::inside(reverse) }
    }

    #[test]
    fn log_acceptance_has_its_signs() {
        let (fate, log_alpha) = accept(&proposal(-2.0, -5.0), 10.0, 4.0, 0.5);
        assert_eq!((fate, log_alpha), (Fate::Accepted, 3.0));
        let (fate, log_alpha) = accept(&proposal(-5.0, -2.0), 4.0, 10.0, 0.5);
        assert_eq!((fate, log_alpha), (Fate::Rejected, -3.0));
        assert_eq!(accept(&proposal(0.0, 0.0), 0.0, 1.0, (-1.01f64).exp()).0, Fate::Accepted);
        assert_eq!(accept(&proposal(0.0, 0.0), 0.0, 1.0, (-0.99f64).exp()).0, Fate::Rejected);
    }

    #[test]
    fn unusable_sides_are_rejected_with_their_reason() {
        let mut lost = proposal(0.0, 0.0);
        lost.reverse = Evaluation::outside(Status::WrongChirality);
        assert_eq!(accept(&lost, 0.0, -1e9, 1e-300), (Fate::Chirality, f64::NEG_INFINITY));
        let mut broken = proposal(0.0, 0.0);
        broken.forward = Evaluation::outside(Status::BrokenConstraint);
        assert_eq!(accept(&broken, 0.0, -1e9, 1e-300).0, Fate::Constraint);
        for u in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(accept(&proposal(0.0, 0.0), 0.0, u, 1e-300).0, Fate::NonFinite);
        }
    }
}
