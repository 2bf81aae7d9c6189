//! A density known only through an energy-based model: neither samples nor normalisation, hence
//! [`Exactness::Surrogate`].

use super::field::EnergyFunction;
use super::field_on_device::{EnergyKernel, EnergyOnDevice};
use super::layout::check_positive;
use super::network::{Evaluator, Network};
use super::{Model, ModelCard, ModelConfig};
use crate::coordinates::vector::centre;
use crate::coordinates::CoordinatesConfig;
use crate::density::{Density, Evaluation, Exactness, Status};
use crate::device::Driver;
use crate::error::{Error, Result};
use crate::io::model_file::{self, ModelFile};
use crate::io::write_atomically;
use crate::nn::Real;
use crate::rng::Stream;
use crate::trust::Trust;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// How to evaluate the energy in a file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyConfig {
    /// Units of the network per nm.
    pub units_per_nm: f64,
    /// Network time of the data.
    pub data_time: f64,
    /// How far delayed acceptance trusts it; `modejump reweight --calibrate` finds the best values.
    #[serde(default)]
    pub trust: Trust,
}

impl EnergyConfig {
    /// Checks the settings. Errors: units that are not positive and finite, a time that is not finite, a trust that is
    /// out of range.
    pub fn check(&self) -> Result<()> {
        check_positive(&[("units_per_nm", self.units_per_nm)])?;
        match self.data_time.is_finite() {
            true => self.trust.check(),
            false => Err(Error::invalid(format!("data_time must be finite, not {}", self.data_time))),
        }
    }
}

/// A surrogate density, log q(x) = E(t_data, x) + constant.
pub struct EnergyModel<E> {
    energy: E,
    config: EnergyConfig,
    card: ModelCard,
    hash: String,
}

impl<E: EnergyFunction> EnergyModel<E> {
    /// The density q ∝ e^{E(t_data, x)} of an energy function, as its file describes it.
    pub fn new(energy: E, config: EnergyConfig, card: ModelCard, hash: String) -> EnergyModel<E> {
        EnergyModel { energy, config, card, hash }
    }

    /// The network with its parameters.
    pub fn network(&self) -> &E {
        &self.energy
    }

    /// Times and configurations as the network saw them in training: molecules centred, in the network's units.
    fn inputs(&self, x: &[f64], rows: usize) -> (Vec<f64>, Vec<f64>) {
        let mut x: Vec<f64> = x.iter().map(|v| v * self.config.units_per_nm).collect();
        self.centre_molecules(&mut x);
        (vec![self.config.data_time; rows], x)
    }

    /// Centres molecules, and also models of distances without atom names, where this changes nothing beyond rounding.
    fn centre_molecules(&self, x: &mut [f64]) {
        let of_distances = matches!(
            self.card.model,
            ModelConfig::GraphormerEbm(_) | ModelConfig::GvpEbm(_) | ModelConfig::InvariantEbm(_)
        );
        if self.card.topology.is_some() || of_distances {
            x.chunks_exact_mut(self.energy.dimension()).for_each(|row| _ = centre(row));
        }
    }
}

impl<N: Network, R: Real> EnergyModel<Evaluator<N, R>> {
    /// Builds the model from a network and the parameters in a file.
    ///
    /// Errors: a configuration out of range; a description that claims more than a surrogate, or other coordinates; a
    /// tensor that is missing, superfluous, of another shape or not finite (named).
    pub fn of_network(network: N, config: EnergyConfig, file: &ModelFile) -> Result<EnergyModel<Evaluator<N, R>>> {
        config.check()?;
        let coordinates = CoordinatesConfig::Cartesian { dimension: network.dimension() };
        if file.card.exactness != Exactness::Surrogate || file.card.coordinates != coordinates {
            return Err(file.error(format!(
                "an energy-based model of {} coordinates must be described as a surrogate, with the same number of \
                 Cartesian coordinates",
                network.dimension()
            )));
        }
        file.card.require_dimension(network.dimension()).map_err(|e| file.error(e.to_string()))?;
        let parameters = network.layout().read(&file.tensors)?;
        Ok(EnergyModel::new(Evaluator::new(network, parameters), config, file.card.clone(), file.hash.clone()))
    }

    /// Bytes of the model file. Errors: those of [`model_file::serialize`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (network, parameters) = (&self.energy.network, self.energy.parameters());
        model_file::serialize(&self.card, &network.layout().write(parameters))
    }

    /// Writes the model file; an existing file is replaced only by a complete one. Errors: those of writing.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.to_bytes()?)
    }
}

impl<N: EnergyKernel, R: Real> EnergyModel<Evaluator<N, R>> {
    /// Moves the network to a GPU. Errors: the driver's.
    pub fn on_device(self, driver: &Arc<dyn Driver>) -> Result<EnergyModel<EnergyOnDevice<R>>> {
        Ok(EnergyModel::new(self.energy.on_device(driver)?, self.config, self.card, self.hash))
    }
}

impl<E: EnergyFunction> Density for EnergyModel<E> {
    fn dimension(&self) -> usize {
        self.energy.dimension()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Surrogate
    }

    fn trust(&self) -> Trust {
        self.config.trust
    }

    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        Err(Error::Unsupported(
            "an energy-based model cannot draw samples: sample from the flow it was trained with".into(),
        ))
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let rows = self.rows(x, log_density)?;
        let (t, x) = self.inputs(x, rows);
        let mut energy = vec![0.0; rows];
        self.energy.energy(&t, &x, &mut energy);
        self.energy.failure()?;
        log_density.iter_mut().zip(energy).for_each(|(e, value)| *e = Evaluation::inside(value));
        Ok(())
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let rows = self.rows(x, log_density)?;
        let (t, x) = self.inputs(x, rows);
        let mut energy = vec![0.0; rows];
        self.energy.energy_score(&t, &x, &mut energy, gradient);
        self.energy.failure()?;
        for ((e, value), g) in log_density.iter_mut().zip(energy).zip(gradient.chunks_exact_mut(self.dimension())) {
            g.iter_mut().for_each(|g| *g *= self.config.units_per_nm);
            *e = match g.iter().all(|g| g.is_finite()) {
                true => Evaluation::inside(value),
                false => Evaluation::outside(Status::NonFinite),
            };
            if !e.is_inside() {
                g.fill(0.0);
            }
        }
        self.centre_molecules(gradient);
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

    fn device(&self) -> String {
        self.energy.device()
    }

    fn energy(&self) -> Option<&dyn EnergyFunction> {
        Some(&self.energy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// −x²/2, with a gradient that is NaN beyond 1.
    struct Broken;

    impl EnergyFunction for Broken {
        fn dimension(&self) -> usize {
            1
        }

        fn energy(&self, _: &[f64], x: &[f64], energy: &mut [f64]) {
            energy.iter_mut().zip(x).for_each(|(e, x)| *e = -0.5 * x * x);
        }

        fn energy_score(&self, t: &[f64], x: &[f64], energy: &mut [f64], score: &mut [f64]) {
            self.energy(t, x, energy);
            score.iter_mut().zip(x).for_each(|(s, x)| *s = if *x > 1.0 { f64::NAN } else { -x });
        }
    }

    #[test]
    fn a_gradient_that_is_not_finite_makes_its_row_unusable() {
        let config = EnergyConfig { units_per_nm: 2.0, data_time: 0.0, trust: Trust::default() };
        let card = super::super::coupling::CouplingConfig { uniform: vec![], layers: vec![] };
        let card = ModelCard::of_coupling(card, CoordinatesConfig::Cartesian { dimension: 1 });
        let model = EnergyModel::new(Broken, config, card, String::new());
        let (mut log_q, mut gradient) = ([Evaluation::inside(0.0); 2], [9.0; 2]);
        model.log_density_gradient(&[0.25, 3.0], &mut log_q, &mut gradient).unwrap();
        assert_eq!(log_q, [Evaluation::inside(-0.125), Evaluation::outside(Status::NonFinite)]);
        assert_eq!(gradient, [-1.0, 0.0]);
    }
}
