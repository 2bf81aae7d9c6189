//! Moves of a steerable model, at the current temperature, with auxiliary coordinates drawn afresh.

use super::{Move, Outcome, State, Statistics};
use crate::error::Result;
use crate::models::steering::{dimension_without_auxiliary, variance, JointTarget, Steering};
use crate::models::Model;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Makes a move of a model.
type Make = Box<dyn Fn(&Arc<dyn Model>) -> Result<Box<dyn Move>> + Send>;

/// A move of a temperature-steerable flow (Dibak et al., Phys. Rev. Research 4, L042005 (2022);
/// [`crate::models::steering`]).
///
/// An attempt draws auxiliary coordinates v from N(0, τ) for the current x and makes the wrapped move on (x, v), whose
/// target is e^{−u(x)} N(v; 0, τ). Both steps leave this target invariant: drawing v is a Gibbs step, since v is
/// independent of x there. So the move leaves e^{−u(x)} invariant. No other choice of v will do: with a fixed v, or
/// that of the last proposal, the density of the current state would not match that of the proposals, and the chain
/// would be biased; a test shows it.
///
/// Each temperature has its own move, made on first use and kept with the proposals it has drawn ahead; they share the
/// counts, and each has the weights of its proposals. Proposals are a function of (seed, step, replica, temperature), so
/// replicas that take turns do not affect each other.
pub struct Steered {
    make: Make,
    /// Moves by last use, the one at the present temperature at the end.
    kernels: Vec<AtTemperature>,
    seed: u64,
    /// (x, v)
    joint: Vec<f64>,
}

/// Number of temperatures whose moves are kept; with more (annealing without discrete steps) they are made again when
/// needed.
const MOST_TEMPERATURES: usize = 32;

struct AtTemperature {
    model: Arc<dyn Model>,
    steering: Steering,
    kernel: Box<dyn Move>,
}

/// The move that `make` makes of a model. For a steerable model, `seed` being the move's, it is wrapped so that it has
/// auxiliary coordinates and follows [`Move::set_temperature`].
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
    Ok(Box::new(Steered {
        make: Box::new(make),
        kernels: vec![AtTemperature { model, steering, kernel }],
        seed,
        joint,
    }))
}

impl Steered {
    fn present(&self) -> &AtTemperature {
        self.kernels.last().expect("there is always at least one kernel")
    }

    fn present_mut(&mut self) -> &mut AtTemperature {
        self.kernels.last_mut().expect("there is always at least one kernel")
    }
}

impl Move for Steered {
    fn dimension(&self) -> usize {
        dimension_without_auxiliary(self.present().model.as_ref())
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let steering = self.present().steering;
        if steering.auxiliary == 0 {
            return self.present_mut().kernel.attempt(target, state);
        }
        state.check(self.dimension(), target)?;
        let Steered { kernels, joint, seed, .. } = self;
        let kernel = &mut kernels.last_mut().expect("there is always at least one kernel").kernel;
        let State { step, replica, box_vectors, reduced_potential, .. } = &*state;
        let (x, v) = joint.split_at_mut(state.x.len());
        x.copy_from_slice(state.x);
        steering.draw(&mut Stream::new(*seed, StreamId::Auxiliary, *step, *replica), v);
        let mut joint = State {
            reduced_potential: reduced_potential + steering.reduced_potential(v),
            box_vectors: *box_vectors,
            step: *step,
            replica: *replica,
            x: joint,
        };
        let mut outcome = kernel.attempt(&mut JointTarget::new(target, steering), &mut joint)?;
        if outcome.accepted() {
            let (x, v) = joint.x.split_at(state.x.len());
            state.x.copy_from_slice(x);
            state.reduced_potential = joint.reduced_potential - steering.reduced_potential(v);
        }
        outcome.reduced_potential = state.reduced_potential;
        Ok(outcome)
    }

    fn set_temperature(&mut self, kelvin: f64) -> Result<()> {
        let AtTemperature { model, steering, .. } = self.present();
        let variance = variance(kelvin, model.card().temperature)?;
        if steering.variance == variance {
            return Ok(());
        }
        let next = match self.kernels.iter().position(|k| k.steering.variance == variance) {
            Some(place) => self.kernels.remove(place),
            None => {
                let model = model.at_temperature(kelvin)?;
                let (steering, kernel) = (model.steering().unwrap_or(*steering), (self.make)(&model)?);
                AtTemperature { model, steering, kernel }
            }
        };
        self.kernels.push(next);
        let [.., before, present] = self.kernels.as_mut_slice() else { return Ok(()) };
        // counts are of all temperatures; weights of two of them cannot be compared
        present.kernel.statistics_mut().exchange_counts(before.kernel.statistics_mut());
        if self.kernels.len() > MOST_TEMPERATURES {
            self.kernels.remove(0);
        }
        Ok(())
    }

    fn statistics(&self) -> &Statistics {
        self.present().kernel.statistics()
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        self.present_mut().kernel.statistics_mut()
    }

    fn reset_statistics(&mut self) {
        self.kernels.iter_mut().for_each(|k| k.kernel.reset_statistics());
    }
}
