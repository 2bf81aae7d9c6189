//! Which move is made of a model: the only place where the choice is carried out.

use super::{screen_of, steered, Annealed, DelayedAcceptance, Driven, Generator, Independence, Isir, LatentWalk};
use super::{LatentWalkOptions, ModeJump, Move, Options, Path};
use crate::coordinates::constraints::Constraints;
use crate::error::Result;
use crate::models::Model;
use crate::modes::Modes;
use std::sync::Arc;

/// What is made of a model's proposals, or of its latent space.
#[derive(Clone)]
pub enum Method {
    /// One Metropolis test for each proposal, one after the other ([`Independence`]), in `rotations` its density
    /// averaged over so many orientations; between the modes of a model of kind `modes`, unless there are rotations,
    /// [`ModeJump`].
    Independence { rotations: Option<usize> },
    /// A choice among all proposals and the current state: [`Isir`], with `rotations` as above.
    Isir { rotations: Option<usize> },
    /// Delayed acceptance, for which this model screens: [`DelayedAcceptance`].
    Screened(Arc<dyn Model>),
    /// Tests by the density of this model alone, which is biased: [`Independence::by_surrogate`].
    Surrogate(Arc<dyn Model>),
    /// Each proposal takes a path to the target before its test: [`Annealed`].
    Annealed(Path),
    /// A part of a system is pulled to its proposal in so many steps, between which the rest gives way: [`Driven`].
    Driven(usize),
    /// Steps in the latent space: [`LatentWalk`]. Its seed is that of the move's options.
    LatentWalk(LatentWalkOptions),
    /// Jumps between the modes of a model of kind `modes`; these say in which mode a configuration is, if not the model
    /// is to: [`ModeJump`].
    ModeJump(Option<Modes>),
}

impl Method {
    /// The move; one of a steerable model follows [`Move::set_temperature`]. That the model keeps the bonds of
    /// `constraints` and no others is for the caller to ask ([`Constraints::check_kept`]).
    ///
    /// Errors: a model or options that the move does not go with.
    pub fn make(
        &self,
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Box<dyn Move>> {
        let method = self.clone();
        steered(model, options.seed, move |model| method.make_once(model, options, constraints.clone()))
    }

    /// Of a model at one temperature.
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
