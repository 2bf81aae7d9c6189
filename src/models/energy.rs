//! A density known by an energy-based model alone: no samples, no normalisation, so a [`Exactness::Surrogate`].

use super::field::EnergyFunction;
use super::{Model, ModelCard};
use crate::density::{Density, Evaluation, Exactness};
use crate::error::{Error, Result};
use crate::rng::Stream;
use serde::{Deserialize, Serialize};

/// How the energy of a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyConfig {
    /// Units of the network per nm.
    pub units_per_nm: f64,
    /// Network time of the data.
    pub data_time: f64,
}

impl EnergyConfig {
    /// Errors: units or times that are no numbers of that kind.
    pub fn check(&self) -> Result<()> {
        match self.units_per_nm > 0.0 && self.units_per_nm.is_finite() && self.data_time.is_finite() {
            true => Ok(()),
            false => Err(Error::invalid(format!("{} units per nm, data at t = {}", self.units_per_nm, self.data_time))),
        }
    }
}

/// log q(x) = E(t_data, x) + constant.
pub struct EnergyModel<E> {
    energy: E,
    config: EnergyConfig,
    card: ModelCard,
    hash: String,
}

impl<E: EnergyFunction> EnergyModel<E> {
    pub fn new(energy: E, config: EnergyConfig, card: ModelCard, hash: String) -> EnergyModel<E> {
        EnergyModel { energy, config, card, hash }
    }

    /// The network.
    pub fn network(&self) -> &E {
        &self.energy
    }

    pub fn network_mut(&mut self) -> &mut E {
        &mut self.energy
    }

    fn inputs(&self, x: &[f64], rows: usize) -> (Vec<f64>, Vec<f64>) {
        (vec![self.config.data_time; rows], x.iter().map(|v| v * self.config.units_per_nm).collect())
    }
}

impl<E: EnergyFunction> Density for EnergyModel<E> {
    fn dimension(&self) -> usize {
        self.energy.dimension()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Surrogate
    }

    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        Err(Error::Unsupported(
            "an energy-based model draws no samples: sample from the flow that it was trained with".into(),
        ))
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let rows = self.rows(x, log_density)?;
        let (t, x) = self.inputs(x, rows);
        let mut energy = vec![0.0; rows];
        self.energy.energy(&t, &x, &mut energy);
        log_density.iter_mut().zip(energy).for_each(|(e, value)| *e = Evaluation::inside(value));
        Ok(())
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let rows = self.rows(x, log_density)?;
        let (t, x) = self.inputs(x, rows);
        let mut energy = vec![0.0; rows];
        self.energy.energy_score(&t, &x, &mut energy, gradient);
        for ((e, value), g) in log_density.iter_mut().zip(energy).zip(gradient.chunks_exact_mut(self.dimension())) {
            *e = Evaluation::inside(value);
            let factor = if e.is_inside() { self.config.units_per_nm } else { 0.0 };
            g.iter_mut().for_each(|g| *g = if factor == 0.0 { 0.0 } else { *g * factor });
        }
        Ok(())
    }
}

impl<E: EnergyFunction> Model for EnergyModel<E> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn energy(&self) -> Option<&dyn EnergyFunction> {
        Some(&self.energy)
    }
}
