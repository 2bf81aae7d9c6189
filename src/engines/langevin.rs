//! Langevin dynamics of many independent walkers on any [`Target`], all walkers in one batch.
//!
//! BAOAB splitting (Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34): half kick, half drift,
//! Ornstein–Uhlenbeck, half drift, half kick; one gradient per step, no constraints. With an engine's target it uses as
//! many threads as the target has, and results do not depend on their number.

use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::units::thermal_energy;
use serde::{Deserialize, Serialize};

/// Settings of [`Langevin`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LangevinOptions {
    /// K.
    pub temperature: f64,
    /// 1/ps.
    pub friction: f64,
    /// ps.
    pub timestep: f64,
    pub seed: u64,
}

/// Walkers with positions, velocities and step count: everything needed to continue a run bit for bit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Langevin {
    options: LangevinOptions,
    /// kT/m of each coordinate, (nm/ps)².
    variance: Vec<f64>,
    x: Vec<f64>,
    v: Vec<f64>,
    u: Vec<f64>,
    gradient: Vec<f64>,
    step: u64,
}

impl Langevin {
    /// Walkers at `x[walkers][atoms][3]` in nm, with `masses[atoms]` in dalton, all positive; velocities are drawn at
    /// the temperature.
    ///
    /// Errors: other dimensions, a mass that is not positive, a failing target, an energy that is not finite.
    pub fn new(target: &mut dyn Target, masses: &[f64], x: &[f64], options: LangevinOptions) -> Result<Langevin> {
        let dimension = target.dimension();
        if let Some(atom) = masses.iter().position(|&mass| !(mass.is_finite() && mass > 0.0)) {
            return Err(Error::invalid(format!("atom {atom} has mass {}: must be positive and finite", masses[atom])));
        }
        if dimension != 3 * masses.len() || x.is_empty() || !x.len().is_multiple_of(dimension) {
            return Err(Error::invalid(format!(
                "{} coordinates and {} masses do not match the target, which has {dimension} coordinates per walker",
                x.len(),
                masses.len()
            )));
        }
        let kt = thermal_energy(options.temperature);
        let variance: Vec<f64> = masses.iter().flat_map(|&mass| [kt / mass; 3]).collect();
        let walkers = x.len() / dimension;
        let (mut u, mut gradient) = (vec![0.0; walkers], vec![0.0; x.len()]);
        target.reduced_potential_gradient(x, &mut u, &mut gradient)?;
        let v = vec![0.0; x.len()];
        let mut all = Langevin { options, variance, x: x.to_vec(), v, u, gradient, step: 0 };
        (0..walkers).for_each(|walker| all.draw_velocities(walker));
        all.check()?;
        Ok(all)
    }

    /// Advances all walkers by `n` steps. Errors: a failing target, an energy that is no longer finite.
    pub fn step(&mut self, target: &mut dyn Target, n: usize) -> Result<()> {
        let LangevinOptions { friction, timestep, seed, .. } = self.options;
        let dimension = self.variance.len();
        let keep = (-friction * timestep).exp();
        let noise = (1.0 - keep * keep).sqrt();
        for _ in 0..n {
            self.kick();
            self.step += 1;
            for (walker, (x, v)) in self.x.chunks_mut(dimension).zip(self.v.chunks_mut(dimension)).enumerate() {
                let mut stream = Stream::new(seed, StreamId::Dynamics, self.step, walker as u32);
                for ((x, v), variance) in x.iter_mut().zip(v).zip(&self.variance) {
                    *x += 0.5 * timestep * *v;
                    *v = keep * *v + noise * variance.sqrt() * stream.normal();
                    *x += 0.5 * timestep * *v;
                }
            }
            target.reduced_potential_gradient(&self.x, &mut self.u, &mut self.gradient)?;
            self.kick();
        }
        self.check()
    }

    /// Moves one walker to `x[atoms][3]` (nm), with new velocities.
    ///
    /// Velocities ξ from Maxwell–Boltzmann belong to the middle of a step, where the thermostat acts. At its end, where
    /// they are stored, they are v = ξ + Δt/2 · [F(x) − F(x − Δt/4 · ξ)]/m. In a mode of frequency ω this has the
    /// variance kT/m · (1 − Δt²ω²/4) of BAOAB, up to Δt⁴ω⁴/64; ξ itself would heat the mode.
    ///
    /// Errors: a failing target, an energy at x that is not finite.
    pub fn place(&mut self, target: &mut dyn Target, walker: usize, x: &[f64]) -> Result<()> {
        let (dimension, half) = (self.variance.len(), 0.5 * self.options.timestep);
        let row = walker * dimension..(walker + 1) * dimension;
        self.draw_velocities(walker);
        let v = &mut self.v[row.clone()];
        let before = x.iter().zip(&*v).map(|(x, v)| x - 0.5 * half * v);
        let (mut u, mut gradient) = ([0.0; 2], vec![0.0; 2 * dimension]);
        target.reduced_potential_gradient(
            &x.iter().copied().chain(before).collect::<Vec<_>>(),
            &mut u,
            &mut gradient,
        )?;
        let (here, before) = gradient.split_at(dimension);
        // where the configuration just before has no energy, the forces there are taken to be those here
        if u[1].is_finite() {
            let forces = here.iter().zip(before).zip(&self.variance);
            v.iter_mut().zip(forces).for_each(|(v, ((g, before), variance))| *v -= half * variance * (g - before));
        }
        self.x[row.clone()].copy_from_slice(x);
        self.u[walker] = u[0];
        self.gradient[row].copy_from_slice(here);
        self.check()
    }

    fn draw_velocities(&mut self, walker: usize) {
        let mut stream = Stream::new(self.options.seed, StreamId::Velocity, self.step, walker as u32);
        let v = &mut self.v[walker * self.variance.len()..][..self.variance.len()];
        v.iter_mut().zip(&self.variance).for_each(|(v, variance)| *v = variance.sqrt() * stream.normal());
    }

    /// Half kick: v += Δt/2 · F/m with F/m = −(kT/m) ∇u.
    fn kick(&mut self) {
        let half = 0.5 * self.options.timestep;
        for (v, g) in self.v.chunks_mut(self.variance.len()).zip(self.gradient.chunks(self.variance.len())) {
            v.iter_mut().zip(g).zip(&self.variance).for_each(|((v, g), variance)| *v -= half * variance * g);
        }
    }

    fn check(&self) -> Result<()> {
        match self.u.iter().position(|u| !u.is_finite()) {
            Some(walker) => Err(Error::Engine(format!(
                "walker {walker} has reduced potential {} at step {}: minimise the initial configuration or reduce the \
                 timestep",
                self.u[walker], self.step
            ))),
            None => Ok(()),
        }
    }

    /// Positions `x[walkers][atoms][3]`, nm.
    pub fn positions(&self) -> &[f64] {
        &self.x
    }

    /// Reduced potential u of each walker.
    pub fn reduced_potentials(&self) -> &[f64] {
        &self.u
    }

    /// Instantaneous temperature over all walkers, K.
    pub fn temperature(&self) -> f64 {
        let scaled = self.v.iter().zip(self.variance.iter().cycle()).map(|(v, variance)| v * v / variance);
        self.options.temperature * scaled.sum::<f64>() / self.v.len() as f64
    }

    /// Number of steps made.
    pub fn step_count(&self) -> u64 {
        self.step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// u = ½ k x² (k per coordinate).
    struct Harmonic(Vec<f64>);

    impl Target for Harmonic {
        fn dimension(&self) -> usize {
            self.0.len()
        }

        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            let mut gradient = vec![0.0; x.len()];
            self.reduced_potential_gradient(x, u, &mut gradient)
        }

        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            for (i, (x, g)) in x.iter().zip(gradient).enumerate() {
                if i % self.0.len() == 0 {
                    u[i / self.0.len()] = 0.0;
                }
                let k = self.0[i % self.0.len()];
                u[i / self.0.len()] += 0.5 * k * x * x;
                *g = k * x;
            }
            Ok(())
        }
    }

    const OPTIONS: LangevinOptions = LangevinOptions { temperature: 300.0, friction: 5.0, timestep: 0.004, seed: 4 };

    /// 200 walkers, 200 samples each 0.4 ps apart: the variances of positions and velocities to about 1 %.
    #[test]
    fn harmonic_walkers_have_the_variances_of_the_canonical_ensemble() {
        let k = vec![4e2, 1e3, 3e3, 4e2, 1e3, 2e3];
        let mut target = Harmonic(k.clone());
        let mut walkers = Langevin::new(&mut target, &[12.0, 1.0], &[0.0; 1200], OPTIONS).unwrap();
        walkers.step(&mut target, 500).unwrap();
        let (mut square, mut temperature) = (vec![0.0; 6], 0.0);
        for _ in 0..200 {
            walkers.step(&mut target, 100).unwrap();
            walkers.positions().iter().enumerate().for_each(|(i, x)| square[i % 6] += x * x / 40_000.0);
            temperature += walkers.temperature() / 200.0;
        }
        for (square, k) in square.iter().zip(&k) {
            assert!((square * k - 1.0).abs() < 0.04, "<x²> k = {}", square * k);
        }
        assert!((temperature - 300.0).abs() < 6.0, "{temperature} K");
    }

    /// A mode of ωΔt = 0.7, as that of O–H bonds at 1 fs, in which velocities from Maxwell–Boltzmann would make <x²> a
    /// tenth too large here.
    #[test]
    fn walkers_placed_at_canonical_points_stay_canonical() {
        let (walkers, kt) = (300, thermal_energy(OPTIONS.temperature));
        let k = (0.7 / OPTIONS.timestep).powi(2) / kt;
        let mut target = Harmonic(vec![k; 3]);
        let mut all = Langevin::new(&mut target, &[1.0], &vec![0.0; 3 * walkers], OPTIONS).unwrap();
        let (mut square, rounds) = (0.0, 100);
        for round in 0..rounds {
            for walker in 0..walkers {
                let mut stream = Stream::new(1, StreamId::Sample, round, walker as u32);
                let x: [f64; 3] = std::array::from_fn(|_| stream.normal() / k.sqrt());
                all.place(&mut target, walker, &x).unwrap();
            }
            all.step(&mut target, 2).unwrap();
            square += all.positions().iter().map(|x| k * x * x).sum::<f64>() / (rounds as usize * 3 * walkers) as f64;
        }
        assert!((square - 1.0).abs() < 0.025, "<x²> k = {square}");
    }

    #[test]
    fn a_walker_does_not_depend_on_its_company() {
        let mut target = Harmonic(vec![100.0; 3]);
        let start = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6];
        let mut two = Langevin::new(&mut target, &[3.0], &start, OPTIONS).unwrap();
        let mut one = Langevin::new(&mut target, &[3.0], &start[..3], OPTIONS).unwrap();
        two.step(&mut target, 50).unwrap();
        one.step(&mut target, 20).unwrap();
        one.step(&mut target, 30).unwrap();
        assert_eq!(two.positions()[..3], one.positions()[..]);
        assert_eq!(one.step_count(), 50);
    }

    /// With the force there, and velocities independent of the earlier ones.
    #[test]
    fn a_walker_that_was_placed_goes_on_from_there() {
        let mut target = Harmonic(vec![100.0; 3]);
        let mut walkers = Langevin::new(&mut target, &[3.0], &[0.1; 6], OPTIONS).unwrap();
        walkers.step(&mut target, 20).unwrap();
        let before = walkers.clone();
        walkers.place(&mut target, 1, &[0.2, -0.1, 0.3]).unwrap();
        assert_eq!((&walkers.x[..3], &walkers.v[..3], walkers.u[0]), (&before.x[..3], &before.v[..3], before.u[0]));
        assert_eq!(walkers.gradient, [&before.gradient[..3], &[20.0, -10.0, 30.0]].concat());
        assert!((walkers.u[1] - 7.0).abs() < 1e-12 && walkers.v[3..].iter().zip(&before.v[3..]).all(|(a, b)| a != b));
    }

    #[test]
    fn runaways_and_massless_atoms_are_errors() {
        let mut target = Harmonic(vec![100.0; 3]);
        assert!(Langevin::new(&mut target, &[0.0], &[0.0; 3], OPTIONS).is_err());
        assert!(Langevin::new(&mut target, &[1.0], &[0.0; 4], OPTIONS).is_err());
        let mut walkers = Langevin::new(&mut target, &[1e-9], &[0.1; 3], OPTIONS).unwrap();
        let error = walkers.step(&mut target, 10_000).unwrap_err().to_string();
        assert!(error.contains("walker 0") && error.contains("timestep"), "{error}");
    }
}
