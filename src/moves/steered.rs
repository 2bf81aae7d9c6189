//! Any move of a steerable model, at the temperature of the moment, with auxiliary coordinates that are drawn afresh.

use super::{Move, Outcome, State, Statistics};
use crate::error::Result;
use crate::models::steering::{dimension_without_auxiliary, follow, JointTarget, Steering};
use crate::models::Model;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Makes a move of a model.
type Make = Box<dyn Fn(&Arc<dyn Model>) -> Result<Box<dyn Move>> + Send>;

/// A move of a temperature-steerable flow (Dibak et al., Phys. Rev. Research 4, L042005 (2022); [`crate::models::steering`]).
///
/// An attempt draws auxiliary coordinates v from N(0, τ) beside the current x, and makes the move `make` on (x, v), whose target is
/// e^{−u(x)} N(v; 0, τ). Both steps leave this target invariant: drawing v is a Gibbs step, since there v is independent of x. So the move
/// leaves e^{−u(x)} invariant. No other v will do: at a fixed one, or at that of the last proposal, the density of the current state is not
/// that of the proposals, and the chain is biased; a test shows it.
///
/// At another temperature the move is made anew, of the model at that temperature; the counters go on. What it proposes is a function of
/// (seed, step, replica, temperature), so replicas that take turns do not see each other.
pub struct Steered {
    /// At any temperature.
    model: Arc<dyn Model>,
    make: Make,
    kernel: Box<dyn Move>,
    steering: Steering,
    seed: u64,
    /// (x, v)
    joint: Vec<f64>,
}

/// The move that `make` makes of a model; of a steerable one wrapped so that it has its auxiliary coordinates and follows
/// [`Move::set_temperature`]. `seed` is that of the move.
///
/// Errors: those of `make`.
pub fn steered(
    model: &Arc<dyn Model>,
    seed: u64,
    make: impl Fn(&Arc<dyn Model>) -> Result<Box<dyn Move>> + Send + 'static,
) -> Result<Box<dyn Move>> {
    let kernel = make(model)?;
    let Some(steering) = model.steering() else { return Ok(kernel) };
    let (model, joint) = (model.clone(), vec![0.0; model.dimension()]);
    Ok(Box::new(Steered { model, make: Box::new(make), kernel, steering, seed, joint }))
}

impl Move for Steered {
    fn dimension(&self) -> usize {
        dimension_without_auxiliary(self.model.as_ref())
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        if self.steering.auxiliary == 0 {
            return self.kernel.attempt(target, state);
        }
        state.check(self.dimension(), target)?;
        let (steering, State { step, replica, box_vectors, reduced_potential, .. }) = (self.steering, &*state);
        let (x, v) = self.joint.split_at_mut(state.x.len());
        x.copy_from_slice(state.x);
        steering.draw(&mut Stream::new(self.seed, StreamId::Auxiliary, *step, *replica), v);
        let mut joint = State {
            reduced_potential: reduced_potential + steering.reduced_potential(v),
            box_vectors: *box_vectors,
            step: *step,
            replica: *replica,
            x: &mut self.joint,
        };
        let mut outcome = self.kernel.attempt(&mut JointTarget::new(target, steering), &mut joint)?;
        if outcome.accepted() {
            let (x, v) = joint.x.split_at(state.x.len());
            state.x.copy_from_slice(x);
            state.reduced_potential = joint.reduced_potential - steering.reduced_potential(v);
        }
        outcome.reduced_potential = state.reduced_potential;
        Ok(outcome)
    }

    fn set_temperature(&mut self, kelvin: f64) -> Result<()> {
        let model = follow(&self.model, kelvin)?;
        let steering = model.steering().unwrap_or(self.steering);
        if steering == self.steering {
            return Ok(());
        }
        let mut kernel = (self.make)(&model)?;
        std::mem::swap(kernel.statistics_mut(), self.kernel.statistics_mut());
        (self.model, self.kernel, self.steering) = (model, kernel, steering);
        Ok(())
    }

    fn statistics(&self) -> &Statistics {
        self.kernel.statistics()
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        self.kernel.statistics_mut()
    }
}
