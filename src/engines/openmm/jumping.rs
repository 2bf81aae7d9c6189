//! Molecular dynamics with generator jumps, driven from Rust: a [`Simulation`] whose every `frequency`-th step is followed by
//! an attempt of a move on all particles.

use super::{OpenMmTarget, Simulation, SimulationOptions, System};
use crate::coordinates::constraints::Constraints;
use crate::error::{Error, Result};
use crate::models::steering::dimension_without_auxiliary;
use crate::models::Model;
use crate::moves::{self, Annealed, DelayedAcceptance, Generator, Independence, Isir, LatentWalk, LatentWalkOptions};
use crate::moves::{Move, Options, Outcome, Path, State};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Whose log q decides about the generator's proposals.
#[derive(Clone)]
pub enum Acceptance {
    /// The generator's own. One proposal: Metropolis, or between the modes of a model of modes; more: i-SIR.
    Exact,
    /// The generator's own, about what this model has let through: delayed acceptance, each proposal a step of its first stage.
    Screened(Arc<dyn Model>),
    /// The generator's own at the start of a path to the target that each proposal takes: [`Annealed`].
    Annealed(Path),
    /// No proposals of the generator, but steps in its latent space: [`LatentWalk`]. Its seed is that of the move's
    /// options.
    LatentWalk(LatentWalkOptions),
    /// This model's alone, which is biased: [`Independence::by_surrogate`].
    Surrogate(Arc<dyn Model>),
}

impl Acceptance {
    fn jump(self, model: &Arc<dyn Model>, options: Options, constraints: Option<Constraints>) -> Result<Box<dyn Move>> {
        if matches!(self, Acceptance::Exact) && options.n_proposals == 1 {
            return moves::of_model(model, options, constraints);
        }
        moves::steered(model, options.seed, move |model| self.make(model, options, constraints.clone()))
    }

    fn make(
        &self,
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Box<dyn Move>> {
        if let Acceptance::LatentWalk(given) = self {
            let mut walk = LatentWalk::new(model, LatentWalkOptions { seed: options.seed, ..given.clone() })?;
            constraints.into_iter().for_each(|c| walk.set_constraints(c));
            return Ok(Box::new(walk));
        }
        let generator = Generator::constrained(model, options, constraints)?;
        Ok(match self.clone() {
            Acceptance::Screened(screen) => Box::new(DelayedAcceptance::new(generator, screen)?),
            Acceptance::Annealed(path) => Box::new(Annealed::new(generator, path)?),
            Acceptance::Surrogate(surrogate) => Box::new(Independence::by_surrogate(generator, surrogate)?),
            _ => Box::new(Isir::new(generator)),
        })
    }
}

/// Langevin dynamics and jumps of one molecule.
pub struct JumpingSimulation {
    pub simulation: Simulation,
    target: OpenMmTarget,
    jump: Box<dyn Move>,
    frequency: u64,
    seed: u64,
    x: Vec<f64>,
}

impl JumpingSimulation {
    /// `options.stride` is set to `frequency` (steps between attempts).
    ///
    /// A steerable model is taken to the temperature of the dynamics.
    ///
    /// Errors: a System with another number of particles than the model has atoms, a constraint that the model does not keep
    /// (named), frequency 0, a second model of other dimension.
    pub fn new(
        system: &System,
        dynamics: &SimulationOptions,
        model: &Arc<dyn Model>,
        acceptance: Acceptance,
        frequency: u64,
        options: Options,
    ) -> Result<JumpingSimulation> {
        if frequency == 0 {
            return Err(Error::invalid("frequency 0: leave out the model to run without jumps"));
        }
        let dimension = dimension_without_auxiliary(model.as_ref());
        if 3 * system.n_particles() != dimension {
            return Err(Error::Unsupported(format!(
                "the System has {} particles, the model {} atoms: here the model must describe all of them",
                system.n_particles(),
                dimension / 3
            )));
        }
        let options = Options { stride: frequency, ..options };
        let mut jump = acceptance.jump(model, options, constraints_of(system, model.as_ref())?)?;
        jump.set_temperature(dynamics.temperature)?;
        Ok(JumpingSimulation {
            simulation: Simulation::new(system, dynamics)?,
            target: OpenMmTarget::on_platform(system, dynamics.temperature, 1, &dynamics.platform)?,
            jump,
            frequency,
            seed: options.seed,
            x: vec![0.0; 3 * system.n_particles()],
        })
    }

    /// Advances `n` timesteps with the attempts that fall due.
    pub fn step(&mut self, n: u64) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let now = self.simulation.step_count()?;
            let run = (self.frequency - now % self.frequency).min(left);
            self.simulation.step(run as usize)?;
            left -= run;
            if (now + run).is_multiple_of(self.frequency) {
                self.attempt(now + run)?;
            }
        }
        Ok(())
    }

    fn attempt(&mut self, step: u64) -> Result<Outcome> {
        self.simulation.positions(&mut self.x)?;
        let mut u = [0.0];
        self.target.reduced_potential(&self.x, &mut u)?;
        let mut state = State { x: &mut self.x, box_vectors: None, reduced_potential: u[0], step, replica: 0 };
        let outcome = self.jump.attempt(&mut self.target, &mut state)?;
        if outcome.accepted() {
            self.simulation.set_positions(&self.x)?;
            self.simulation.redraw_velocities(&mut Stream::new(self.seed, StreamId::Velocity, step, 0))?;
        }
        Ok(outcome)
    }

    pub fn jump(&self) -> &dyn Move {
        self.jump.as_ref()
    }

    pub fn jump_mut(&mut self) -> &mut dyn Move {
        self.jump.as_mut()
    }
}

/// What the System constrains, if anything. Errors: a constraint that the model does not keep (named).
fn constraints_of(system: &System, model: &dyn Model) -> Result<Option<Constraints>> {
    let constraints = system.constraints()?;
    if constraints.is_empty() {
        return Ok(None);
    }
    let pairs: Vec<[usize; 2]> = constraints.iter().map(|c| [c.0, c.1]).collect();
    let lengths: Vec<f64> = constraints.iter().map(|c| c.2).collect();
    let constraints = Constraints::new(&pairs, &lengths, &system.masses())?;
    constraints.require_kept(model.card().kept_bonds(), &|a| model.card().label(a))?;
    Ok(Some(constraints))
}
