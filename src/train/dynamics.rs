//! Frames without prior data: short runs at a high temperature, each followed by cooling and a run at the temperature
//! of interest.
//!
//! The frames cover the basins that the hot run reaches, but with basin weights other than those of the cold ensemble;
//! energy training and self-refinement correct the weights.

use super::hot::HotReplicas;
use crate::engines::openmm::{OpenMmTarget, Simulation, SimulationOptions, System};
use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use serde::{Deserialize, Serialize};

pub use super::hot::ExploreOptions;

/// Dynamics that produces frames, one segment after another.
///
/// Without constraints all walkers advance in one batch over `threads`; with constraints OpenMM's own integrator runs
/// one, since its Reference platform cannot run two simulations at once.
pub struct Exploration {
    options: ExploreOptions,
    walkers: Walkers,
}

enum Walkers {
    Batch { targets: Box<[OpenMmTarget; 2]>, replicas: Box<HotReplicas> },
    Single { hot: Simulation, cold: Simulation, x: Vec<f64>, segment: u64 },
}

/// State from which an [`Exploration`] continues bit for bit.
#[derive(Serialize, Deserialize)]
pub enum ExplorationState {
    Batch(Box<HotReplicas>),
    /// OpenMM's checkpoints.
    Single {
        hot: Vec<u8>,
        cold: Vec<u8>,
        segment: u64,
    },
}

impl Exploration {
    /// Starts at `x0[particles][3]` (nm). Errors: those of [`ExploreOptions::check`], and of OpenMM.
    pub fn new(system: &System, x0: &[f64], options: &ExploreOptions, threads: usize) -> Result<Exploration> {
        options.check()?;
        let start = minimised(system, x0, options)?;
        let walkers = match system.constraints()?.is_empty() {
            true => {
                let mut hot_target = OpenMmTarget::new(system, options.hot_temperature, threads)?;
                let target = OpenMmTarget::new(system, options.kelvin(), threads)?;
                let replicas = HotReplicas::new(&mut hot_target, &system.masses(), &start, options)?;
                Walkers::Batch { targets: Box::new([hot_target, target]), replicas: Box::new(replicas) }
            }
            false => {
                let mut hot = Simulation::new(system, &dynamics(system, options, options.hot_temperature))?;
                let cold = Simulation::new(system, &dynamics(system, options, options.kelvin()))?;
                hot.set_positions(&start)?;
                hot.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, 0, 0))?;
                Walkers::Single { hot, cold, x: start, segment: 0 }
            }
        };
        Ok(Exploration { options: options.clone(), walkers })
    }

    /// Frames `[n][particles][3]` (nm) of the next segment. Errors: OpenMM's.
    pub fn segment(&mut self) -> Result<Vec<f64>> {
        let options = &self.options;
        match &mut self.walkers {
            Walkers::Batch { targets, replicas } => {
                let [hot, target] = targets.as_mut();
                replicas.segment(hot, target)
            }
            Walkers::Single { hot, cold, x, segment } => {
                *segment += 1;
                hot.step(options.hot_steps)?;
                hot.positions(x)?;
                cold.set_positions(x)?;
                cold.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, *segment, 0))?;
                cold.step(options.cooling_steps)?;
                let mut frames = Vec::with_capacity(options.frames_per_segment * x.len());
                for _ in 0..options.frames_per_segment {
                    cold.step(options.stride)?;
                    cold.positions(x)?;
                    frames.extend_from_slice(x);
                }
                Ok(frames)
            }
        }
    }

    /// State between two segments. Errors: OpenMM's.
    pub fn state(&mut self) -> Result<ExplorationState> {
        Ok(match &mut self.walkers {
            Walkers::Batch { replicas, .. } => ExplorationState::Batch(replicas.clone()),
            Walkers::Single { hot, cold, segment, .. } => {
                // the random-number state that both share is that of the last one loaded
                ExplorationState::Single { cold: cold.checkpoint()?, hot: hot.checkpoint()?, segment: *segment }
            }
        })
    }

    /// Continues from the state of an exploration with the same System and options. Errors: a state of another System.
    pub fn go_on_from(&mut self, state: ExplorationState) -> Result<()> {
        match (&mut self.walkers, state) {
            (Walkers::Batch { replicas, .. }, ExplorationState::Batch(state)) => {
                *replicas = state;
                Ok(())
            }
            (Walkers::Single { hot, cold, segment, .. }, ExplorationState::Single { hot: h, cold: c, segment: s }) => {
                cold.load_checkpoint(&c)?;
                hot.load_checkpoint(&h)?;
                *segment = s;
                Ok(())
            }
            _ => Err(Error::invalid("the saved state does not match the System: only one of them has constraints")),
        }
    }
}

/// `x0[particles][3]` (nm) after an energy minimisation with constraints kept. Errors: OpenMM's.
pub fn minimised(system: &System, x0: &[f64], options: &ExploreOptions) -> Result<Vec<f64>> {
    let mut simulation = Simulation::new(system, &dynamics(system, options, options.kelvin()))?;
    simulation.set_positions(x0)?;
    simulation.minimise(10.0, 200)?;
    let mut x = x0.to_vec();
    simulation.positions(&mut x)?;
    Ok(x)
}

fn dynamics(system: &System, options: &ExploreOptions, temperature: f64) -> SimulationOptions {
    let ExploreOptions { friction, timestep, seed, .. } = *options;
    let platform = system.platform().to_string();
    SimulationOptions { temperature, friction, timestep, seed, platform, ..SimulationOptions::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::Topology;
    use std::path::Path;

    #[test]
    fn an_exploration_that_goes_on_makes_the_frames_of_one_that_was_not_cut() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2");
        let (_, x0) = Topology::from_pdb(&models.join("topology.pdb")).unwrap();
        let options = ExploreOptions {
            hot_steps: 20,
            cooling_steps: 5,
            frames_per_segment: 3,
            stride: 2,
            ..ExploreOptions::default()
        };
        for name in ["system-vacuum.xml", "system-hbonds.xml"] {
            let system = System::from_xml(&std::fs::read_to_string(models.join(name)).unwrap()).unwrap();
            let new = || Exploration::new(&system, &x0, &options, 1).unwrap();
            let mut whole = new();
            let frames = [0; 4].map(|_| whole.segment().unwrap());
            let mut cut = new();
            cut.segment().unwrap();
            cut.segment().unwrap();
            let state = cut.state().unwrap();
            cut.segment().unwrap(); // lost
            let mut again = new();
            again.go_on_from(state).unwrap();
            assert!(frames[2] != frames[3] && [0; 2].map(|_| again.segment().unwrap()) == frames[2..], "{name}");
        }
    }
}
