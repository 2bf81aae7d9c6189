//! Frames from nothing: short runs at a high temperature, each followed by cooling and a run at the temperature of interest.
//!
//! The frames cover the basins that the hot run reaches, with basin weights that are not those of the cold ensemble; energy
//! training and self-refinement put the weights right.

use crate::engines::openmm::{Simulation, SimulationOptions, System};
use crate::error::Result;
use crate::rng::{Stream, StreamId};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lengths in steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExploreOptions {
    /// Frames wanted in all.
    pub frames: usize,
    /// K.
    pub temperature: f64,
    /// K.
    pub hot_temperature: f64,
    /// ps.
    pub timestep: f64,
    /// 1/ps.
    pub friction: f64,
    pub hot_steps: usize,
    pub cooling_steps: usize,
    /// Frames recorded after each cooling, and the steps between them.
    pub frames_per_segment: usize,
    pub stride: usize,
    pub seed: u64,
}

impl Default for ExploreOptions {
    fn default() -> ExploreOptions {
        ExploreOptions {
            frames: 200_000,
            temperature: 300.0,
            hot_temperature: 700.0,
            timestep: 0.001,
            friction: 5.0,
            hot_steps: 800,
            cooling_steps: 1200,
            frames_per_segment: 80,
            stride: 40,
            seed: 1,
        }
    }
}

/// Independent walkers; a fixed number, so that the frames do not depend on the threads.
const WALKERS: usize = 8;

/// Frames `[frames][particles][3]` (nm) of a System, started from `x0[particles][3]`. Calls `progress` with the number done.
pub fn explore(
    system: &System,
    x0: &[f64],
    options: &ExploreOptions,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Vec<f64>> {
    let segments = options.frames.div_ceil(options.frames_per_segment.max(1));
    let done = AtomicUsize::new(0);
    let walkers: Vec<Vec<f64>> = (0..WALKERS)
        .into_par_iter()
        .map(|walker| {
            let share = (walker..segments).step_by(WALKERS).count();
            walk(system, x0, options, walker as u64, share, &|| {
                progress(done.fetch_add(options.frames_per_segment, Ordering::Relaxed) + options.frames_per_segment)
            })
        })
        .collect::<Result<_>>()?;
    let mut frames = walkers.concat();
    frames.truncate(options.frames * x0.len());
    Ok(frames)
}

fn walk(
    system: &System,
    x0: &[f64],
    options: &ExploreOptions,
    walker: u64,
    segments: usize,
    progress: &dyn Fn(),
) -> Result<Vec<f64>> {
    let simulation = |temperature: f64, salt: u64| {
        let settings = SimulationOptions {
            temperature,
            friction: options.friction,
            timestep: options.timestep,
            seed: options.seed.wrapping_mul(1000).wrapping_add(2 * walker + salt + 1),
            ..SimulationOptions::default()
        };
        Simulation::new(system, &settings)
    };
    let mut hot = simulation(options.hot_temperature, 0)?;
    let mut cold = simulation(options.temperature, 1)?;
    hot.set_positions(x0)?;
    hot.minimise(10.0, 200)?;
    hot.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, 0, walker as u32))?;
    let mut frames = Vec::with_capacity(segments * options.frames_per_segment * x0.len());
    let mut x = x0.to_vec();
    for segment in 0..segments as u64 {
        hot.step(options.hot_steps)?;
        hot.positions(&mut x)?;
        cold.set_positions(&x)?;
        cold.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, segment + 1, walker as u32))?;
        cold.step(options.cooling_steps)?;
        for _ in 0..options.frames_per_segment {
            cold.step(options.stride)?;
            cold.positions(&mut x)?;
            frames.extend_from_slice(&x);
        }
        progress();
    }
    Ok(frames)
}
