//! Replicas at a high temperature, cooled from time to time: frames of basins that dynamics at the temperature of
//! interest does not find.

use crate::engines::langevin::{Langevin, LangevinOptions};
use crate::error::{Error, Result};
use crate::target::Target;
use serde::{Deserialize, Serialize};

/// Options of hot exploration; lengths in steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExploreOptions {
    /// Total number of frames wanted.
    pub frames: usize,
    /// Temperature of interest, K; if not given, see [`ExploreOptions::kelvin`].
    pub temperature: Option<f64>,
    /// Temperature of the hot replicas, K.
    pub hot_temperature: f64,
    /// Time step, ps.
    pub timestep: f64,
    /// Friction of the Langevin thermostat, 1/ps.
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
            temperature: None,
            hot_temperature: 800.0,
            timestep: 0.001,
            friction: 5.0,
            hot_steps: 4000,
            cooling_steps: 1000,
            frames_per_segment: 80,
            stride: 40,
            seed: 1,
        }
    }
}

impl ExploreOptions {
    /// Total number of dynamics steps needed for the frames, over all walkers.
    pub fn steps(&self) -> usize {
        let per_segment = self.frames_per_segment.max(1);
        self.frames.div_ceil(per_segment) * (self.hot_steps + self.cooling_steps + per_segment * self.stride)
    }

    /// The temperature of interest, 300 K if none is given.
    pub fn kelvin(&self) -> f64 {
        self.temperature.unwrap_or(300.0)
    }

    /// Checks the options. Errors: a `frames_per_segment` or `stride` of zero, which records no frames or the same one
    /// repeatedly.
    pub fn check(&self) -> Result<()> {
        let numbers = [("frames_per_segment", self.frames_per_segment), ("stride", self.stride)];
        match numbers.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::invalid(format!("explore.{name} = 0: must be at least 1"))),
            None => Ok(()),
        }
    }
}

/// Independent hot replicas; a fixed number, so that the frames do not depend on the threads.
const REPLICAS: usize = 16;

/// The replicas, and the number of coolings so far. Each cooling starts a new walker and leaves the replica unchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HotReplicas {
    options: ExploreOptions,
    masses: Vec<f64>,
    hot: Langevin,
    segment: u64,
}

impl HotReplicas {
    /// Starts the replicas at `x[n][atoms][3]` (nm), cycling through the configurations. `hot_target` gives the
    /// energies at the high temperature. Errors: those of [`ExploreOptions::check`] and [`Langevin::new`].
    pub fn new(
        hot_target: &mut dyn Target,
        masses: &[f64],
        x: &[f64],
        options: &ExploreOptions,
    ) -> Result<HotReplicas> {
        options.check()?;
        let settings = settings(options, options.hot_temperature, 0);
        let starts: Vec<f64> = x.iter().copied().cycle().take(REPLICAS * 3 * masses.len()).collect();
        let hot = Langevin::new(hot_target, masses, &starts, settings)?;
        Ok(HotReplicas { options: options.clone(), masses: masses.to_vec(), hot, segment: 0 })
    }

    /// Runs the hot replicas, cools copies of them, and records frames `[n][atoms][3]` at the temperature of interest,
    /// that of `target`. Errors: the targets'.
    pub fn segment(&mut self, hot_target: &mut dyn Target, target: &mut dyn Target) -> Result<Vec<f64>> {
        let options = &self.options;
        self.segment += 1;
        self.hot.step(hot_target, options.hot_steps)?;
        let settings = settings(options, options.kelvin(), self.segment);
        let mut cold = Langevin::new(target, &self.masses, self.hot.positions(), settings)?;
        cold.step(target, options.cooling_steps)?;
        let mut frames = Vec::new();
        for _ in 0..options.frames_per_segment {
            cold.step(target, options.stride)?;
            frames.extend_from_slice(cold.positions());
        }
        Ok(frames)
    }
}

fn settings(options: &ExploreOptions, temperature: f64, segment: u64) -> LangevinOptions {
    LangevinOptions {
        temperature,
        friction: options.friction,
        timestep: options.timestep,
        seed: options.seed.wrapping_mul(1_000_003).wrapping_add(segment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// u = ½ s x², counting its evaluations.
    struct Harmonic {
        scale: f64,
        asked: usize,
    }

    impl Target for Harmonic {
        fn dimension(&self) -> usize {
            3
        }

        fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
            unreachable!("dynamics asks for gradients")
        }

        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            self.asked += 1;
            u.iter_mut()
                .zip(x.chunks_exact(3))
                .for_each(|(u, x)| *u = 0.5 * self.scale * x.iter().map(|x| x * x).sum::<f64>());
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g = self.scale * x);
            Ok(())
        }
    }

    /// Each cooling starts from the hot replicas, with the energies at the low temperature and its own random numbers.
    #[test]
    fn segments_are_heated_by_one_target_and_cooled_by_the_other() {
        let (mut hot, mut cold) = (Harmonic { scale: 30.0, asked: 0 }, Harmonic { scale: 80.0, asked: 0 });
        let options = ExploreOptions {
            hot_steps: 0,
            cooling_steps: 7,
            frames_per_segment: 2,
            stride: 3,
            ..ExploreOptions::default()
        };
        let mut replicas = HotReplicas::new(&mut hot, &[10.0], &[0.1, 0.0, -0.1], &options).unwrap();
        let [first, second] = [0; 2].map(|_| replicas.segment(&mut hot, &mut cold).unwrap());
        assert_eq!(first.len(), 2 * REPLICAS * 3);
        assert!(
            first.iter().zip(&second).all(|(a, b)| a != b),
            "the hot replicas stand still, what is cooled does not"
        );
        assert_eq!((hot.asked, cold.asked), (1, 2 * (1 + 7 + 2 * 3)));
        replicas.options.hot_steps = 5;
        replicas.segment(&mut hot, &mut cold).unwrap();
        assert_eq!(hot.asked, 1 + 5);
    }
}
