//! Reduced potential βU of an OpenMM System for batches of configurations.

use cxx::UniquePtr;
use rayon::prelude::*;

use super::{bridge, System};
use crate::coordinates::constraints::Constraints;
use crate::coordinates::whole::BoxVectors;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::target::{require_temperature, Target};
use crate::units::thermal_energy;

/// Largest coordinate (nm) passed to OpenMM, whose neighbour lists may throw on runaways; beyond, energies count as
/// non-finite.
const LARGEST_COORDINATE: f64 = 1e6;

/// u(x) = U(x)/kT with one Context per thread; each row is computed alone, so results do not depend on the number of
/// threads. One exception: with a cut-off on the CPU platform the order of sums, and so the rounding, depends on the
/// rows that a Context had before.
pub struct OpenMmTarget {
    evaluators: Vec<UniquePtr<bridge::Evaluator>>,
    n_particles: usize,
    beta: f64,
    /// Bonds of fixed length.
    constraints: Option<Constraints>,
}

impl OpenMmTarget {
    /// A target on the System's platform, with `temperature` in K and `threads` ≥ 1 Contexts.
    ///
    /// Errors: a temperature that is not positive, a System that OpenMM refuses.
    pub fn new(system: &System, temperature: f64, threads: usize) -> Result<OpenMmTarget> {
        OpenMmTarget::on_platform(system, temperature, threads, system.platform())
    }

    /// [`OpenMmTarget::new`] on another platform. A platform with threads of its own (`CPU`) gets one per Context.
    pub fn on_platform(system: &System, temperature: f64, threads: usize, platform: &str) -> Result<OpenMmTarget> {
        require_temperature(temperature)?;
        super::load_plugins()?;
        let new_evaluator = |_| Ok(bridge::new_evaluator(&system.inner, platform)?);
        Ok(OpenMmTarget {
            evaluators: (0..threads.max(1)).map(new_evaluator).collect::<Result<_>>()?,
            n_particles: system.n_particles(),
            beta: 1.0 / thermal_energy(temperature),
            constraints: None,
        })
    }

    /// The ensemble of the System's constrained dynamics, with density e^{−u} √det Z, whose second factor is
    /// [`OpenMmTarget::log_metric`]. Errors: a bond that is constrained but varied by the model, or kept by the model
    /// but not constrained, by name.
    pub fn with_constraints(self, system: &System, model: &dyn Model) -> Result<OpenMmTarget> {
        self.with_kept_bonds(system, model.card().kept_bonds(), &|atom| model.card().label(atom))
    }

    /// [`OpenMmTarget::with_constraints`] for samples of an unknown model in which these bonds (i, j, length in nm)
    /// have a fixed length; `label` names atoms.
    pub fn with_kept_bonds(
        self,
        system: &System,
        kept: &[(usize, usize, f64)],
        label: &dyn Fn(usize) -> String,
    ) -> Result<OpenMmTarget> {
        let all: Vec<usize> = (0..self.n_particles).collect();
        Ok(OpenMmTarget { constraints: system.constraints_among(&all, kept, label)?, ..self })
    }

    /// ½ ln det Z of a configuration (nm): weights and populations are proportional to e^{−u + ½ ln det Z}. 0 without
    /// constraints.
    pub fn log_metric(&mut self, x: &[f64]) -> f64 {
        self.constraints.as_mut().map_or(0.0, |constraints| constraints.log_metric(x))
    }

    /// Sets the box vectors (nm) for all later energies; initially the System's default.
    pub fn set_box_vectors(&mut self, box_vectors: &BoxVectors) -> Result<()> {
        let set = |evaluator: &mut UniquePtr<bridge::Evaluator>| {
            Ok(evaluator.pin_mut().set_box_vectors(box_vectors.as_flattened())?)
        };
        self.evaluators.iter_mut().try_for_each(set)
    }

    /// Potential energies in kJ/mol of `x[n][particles][3]` (nm) and, unless `forces` is empty, forces in kJ/(mol nm).
    ///
    /// Rows with non-finite coordinates or energies get +∞ and forces of NaN. Errors: wrong lengths, a failing
    /// platform.
    pub fn energies_and_forces(&mut self, x: &[f64], energies: &mut [f64], forces: &mut [f64]) -> Result<()> {
        let (n, dimension) = (energies.len(), self.dimension());
        if x.len() != n * dimension || !(forces.is_empty() || forces.len() == x.len()) {
            return Err(Error::invalid(format!(
                "{n} energies require {} coordinates ({} particles), found {}; the number of forces must be the same \
                 or zero, found {}",
                n * dimension,
                self.n_particles,
                x.len(),
                forces.len()
            )));
        }
        if n == 0 {
            return Ok(());
        }
        let rows = n.div_ceil(self.evaluators.len());
        let mut force_chunks: Vec<&mut [f64]> = forces.chunks_mut(rows * dimension).collect();
        force_chunks.resize_with(n.div_ceil(rows), Default::default);
        let jobs = self.evaluators.iter_mut().zip(x.chunks(rows * dimension)).zip(energies.chunks_mut(rows));
        let mut jobs: Vec<_> = jobs.zip(force_chunks).collect();
        if let [(((evaluator, x), energies), forces)] = jobs.as_mut_slice() {
            return evaluate_chunk(evaluator, x, energies, forces, dimension);
        }
        jobs.into_par_iter().try_for_each(|(((evaluator, x), energies), forces)| {
            evaluate_chunk(evaluator, x, energies, forces, dimension)
        })
    }
}

fn evaluate_chunk(
    evaluator: &mut UniquePtr<bridge::Evaluator>,
    x: &[f64],
    energies: &mut [f64],
    forces: &mut [f64],
    dimension: usize,
) -> Result<()> {
    for (row, energy) in energies.iter_mut().enumerate() {
        let range = row * dimension..(row + 1) * dimension;
        let force = if forces.is_empty() { &mut [] } else { &mut forces[range.clone()] };
        let row = &x[range];
        if row.iter().all(|value| value.abs() < LARGEST_COORDINATE) {
            evaluator.pin_mut().evaluate(row, std::slice::from_mut(energy), force)?;
        } else {
            *energy = f64::INFINITY;
        }
        if !energy.is_finite() {
            *energy = f64::INFINITY;
            force.fill(f64::NAN);
        }
    }
    Ok(())
}

impl Target for OpenMmTarget {
    fn dimension(&self) -> usize {
        3 * self.n_particles
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.energies_and_forces(x, u, &mut [])?;
        u.iter_mut().for_each(|u| *u *= self.beta);
        Ok(())
    }

    /// A row with u = +∞ has a gradient of NaN.
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        if gradient.len() != x.len() {
            return Err(Error::invalid(format!(
                "{} coordinates do not match {} gradient components",
                x.len(),
                gradient.len()
            )));
        }
        if self.constraints.is_some() {
            return Err(Error::Unsupported(
                "moves along gradients do not preserve constrained bonds: use a System without constraints".into(),
            ));
        }
        self.energies_and_forces(x, u, gradient)?;
        u.iter_mut().for_each(|u| *u *= self.beta);
        gradient.iter_mut().for_each(|force| *force *= -self.beta);
        Ok(())
    }
}
