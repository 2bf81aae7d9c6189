//! Frames from nothing: short runs at a high temperature, each followed by cooling and a run at the temperature of
//! interest.
//!
//! The frames cover the basins that the hot run reaches, with basin weights that are not those of the cold ensemble;
//! energy training and self-refinement put the weights right.

use super::hot::HotReplicas;
use crate::engines::openmm::{OpenMmTarget, Simulation, SimulationOptions, System};
use crate::error::Result;
use crate::rng::{Stream, StreamId};

pub use super::hot::ExploreOptions;

/// Frames `[frames][particles][3]` (nm) of a System, started from `x0[particles][3]`. Calls `progress` with the number
/// done.
///
/// Without constraints all walkers advance in one batch over `threads`; with constraints OpenMM's own integrator runs
/// them one after the other, since its Reference platform cannot run two simulations at once.
///
/// Errors: those of [`ExploreOptions::check`], and of OpenMM.
pub fn explore(
    system: &System,
    x0: &[f64],
    options: &ExploreOptions,
    threads: usize,
    progress: &dyn Fn(usize),
) -> Result<Vec<f64>> {
    options.check()?;
    let start = minimised(system, x0, options)?;
    let mut frames = match system.constraints()?.is_empty() {
        true => in_one_batch(system, &start, options, threads, progress)?,
        false => one_after_the_other(system, &start, options, progress)?,
    };
    frames.truncate(options.frames * x0.len());
    Ok(frames)
}

/// `x0[particles][3]` (nm) after a minimisation, with constraints kept.
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

fn in_one_batch(
    system: &System,
    x0: &[f64],
    options: &ExploreOptions,
    threads: usize,
    progress: &dyn Fn(usize),
) -> Result<Vec<f64>> {
    let mut hot_target = OpenMmTarget::new(system, options.hot_temperature, threads)?;
    let mut target = OpenMmTarget::new(system, options.kelvin(), threads)?;
    let mut replicas = HotReplicas::new(&mut hot_target, &system.masses(), x0, options)?;
    let mut frames = Vec::with_capacity(options.frames * x0.len());
    while frames.len() < options.frames * x0.len() {
        frames.extend(replicas.segment(&mut hot_target, &mut target)?);
        progress(frames.len() / x0.len());
    }
    Ok(frames)
}

fn one_after_the_other(
    system: &System,
    x0: &[f64],
    options: &ExploreOptions,
    progress: &dyn Fn(usize),
) -> Result<Vec<f64>> {
    let mut hot = Simulation::new(system, &dynamics(system, options, options.hot_temperature))?;
    let mut cold = Simulation::new(system, &dynamics(system, options, options.kelvin()))?;
    hot.set_positions(x0)?;
    hot.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, 0, 0))?;
    let mut frames = Vec::with_capacity(options.frames * x0.len());
    let mut x = x0.to_vec();
    let mut segment = 0;
    while frames.len() < options.frames * x0.len() {
        segment += 1;
        hot.step(options.hot_steps)?;
        hot.positions(&mut x)?;
        cold.set_positions(&x)?;
        cold.redraw_velocities(&mut Stream::new(options.seed, StreamId::Velocity, segment, 0))?;
        cold.step(options.cooling_steps)?;
        for _ in 0..options.frames_per_segment {
            cold.step(options.stride)?;
            cold.positions(&mut x)?;
            frames.extend_from_slice(&x);
        }
        progress(frames.len() / x0.len());
    }
    Ok(frames)
}
