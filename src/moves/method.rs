//! Choice of the move for a model: the only place where a [`Method`] becomes a move.

use super::{screen_of, steered, Annealed, DelayedAcceptance, Driven, Generator, Independence, Isir, LatentWalk};
use super::{LatentWalkOptions, ModeJump, Move, Options, Path};
use crate::coordinates::constraints::Constraints;
use crate::error::Result;
use crate::models::Model;
use crate::modes::Modes;
use std::sync::Arc;

/// How a model's proposals, or its latent space, are used.
#[derive(Clone)]
pub enum Method {
    /// One Metropolis test per proposal, in sequence ([`Independence`]). With `rotations`, the density is averaged over
    /// that many orientations; without, a model of kind `modes` gets a [`ModeJump`].
    Independence { rotations: Option<usize> },
    /// Selection among all proposals and the current state: [`Isir`], with `rotations` as above.
    Isir { rotations: Option<usize> },
    /// Delayed acceptance with this model as the screen: [`DelayedAcceptance`].
    Screened(Arc<dyn Model>),
    /// Tests by the density of this model alone, which is biased: [`Independence::by_surrogate`].
    Surrogate(Arc<dyn Model>),
    /// Each proposal is annealed towards the target before its test: [`Annealed`].
    Annealed(Path),
    /// Part of a system is pulled to its proposal in this many steps, between which the rest relaxes: [`Driven`].
    Driven(usize),
    /// Steps in the latent space: [`LatentWalk`], with the seed of the move's options.
    LatentWalk(LatentWalkOptions),
    /// Jumps between the modes of a model of kind `modes`: [`ModeJump`]. The given modes, if any, replace the model's
    /// own assignment of configurations to modes.
    ModeJump(Option<Modes>),
}

impl Method {
    /// Makes the move; with a steerable model it follows [`Move::set_temperature`]. The caller must check that the
    /// model keeps exactly the bonds of `constraints` ([`Constraints::check_kept`]).
    ///
    /// Errors: a model or options that do not go with this move.
    pub fn make(
        &self,
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Box<dyn Move>> {
        let method = self.clone();
        steered(model, options.seed, move |model| method.make_once(model, options, constraints.clone()))
    }

    /// Makes the move for a model at one temperature.
    fn make_once(
        &self,
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Box<dyn Move>> {
        let generator = || Generator::constrained(model, options, constraints.clone());
        Ok(match self {
            Method::Independence { rotations: Some(n) } => Box::new(Independence::over_rotations(generator()?, *n)?),
            Method::Independence { .. } if model.modes().is_some() => {
                return Method::ModeJump(None).make_once(model, options, constraints)
            }
            Method::Independence { .. } => Box::new(Independence::new(generator()?)),
            Method::Isir { rotations: Some(n) } => Box::new(Isir::over_rotations(generator()?, *n)?),
            Method::Isir { .. } => Box::new(Isir::new(generator()?)),
            Method::Screened(screen) => Box::new(DelayedAcceptance::new(generator()?, screen_of(model, screen)?)?),
            Method::Surrogate(surrogate) => {
                Box::new(Independence::by_surrogate(generator()?, screen_of(model, surrogate)?)?)
            }
            Method::Annealed(path) => Box::new(Annealed::new(generator()?, path.clone())?),
            Method::Driven(steps) => Box::new(Driven::new(generator()?, *steps)?),
            Method::LatentWalk(given) => {
                let mut walk = LatentWalk::new(model, LatentWalkOptions { seed: options.seed, ..given.clone() })?;
                constraints.into_iter().for_each(|c| walk.set_constraints(c));
                Box::new(walk)
            }
            Method::ModeJump(modes) => {
                let mut jump = ModeJump::of_model(model, modes.clone(), options)?;
                constraints.into_iter().for_each(|c| jump.set_constraints(c));
                Box::new(jump)
            }
        })
    }
}
