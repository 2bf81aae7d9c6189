//! Coupling flow: x = T(z) through layers that each transform some coordinates by a monotone map whose parameters
//! depend on the others. Layers are rational-quadratic splines (Durkan et al., NeurIPS 2019), affine couplings (Dinh et
//! al., ICLR 2017), circular shifts and splines (Rezende et al., ICML 2020), fixed marginals and whitening; on internal
//! coordinates this is the Boltzmann generator of Noé, Olsson, Köhler and Wu, Science 365, eaaw1147 (2019).
//!
//! log q(x) = log p(z) − ln|∂x/∂z|. For each coordinate the prior p is the standard normal or the uniform density on
//! [0, 1]; in a steerable flow ([`super::steering`]) the normal has variance τ.

mod affine;
pub mod bgflow;
mod conditioner;
mod cpu;
mod cuda;
mod elementwise;
mod format;
mod layers;
mod spline;
mod spline_coupling;
mod steering;
#[cfg(test)]
mod tests;

pub use conditioner::Features;
pub use cpu::{Workspace, CHUNK, LANES};
pub use cuda::{programs, CouplingOnDevice};
pub use layers::{Ends, LayerConfig};
pub use spline::Bin;

use crate::coordinates::Coordinates;
use crate::error::{Error, Result};
use crate::io::model_file::ModelFile;
use crate::models::card::{ModelCard, ModelConfig};
use crate::nn::memory::Spares;
use crate::nn::{Parameters, Real};
use crate::rng::{Stream, StreamId};
use layers::Layer;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Largest sizes in a model file, so that a damaged file cannot ask for more memory than there is.
const LARGEST_DIMENSION: usize = 1 << 20;
const LARGEST_PARAMETERS: usize = 1 << 28;

/// Layers of the flow, and the prior.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CouplingConfig {
    /// Coordinates with the uniform prior on [0, 1]; all others have the standard normal.
    pub uniform: Vec<usize>,
    /// Layers in the generating direction.
    pub layers: Vec<LayerConfig>,
}

/// A coupling flow with networks of type `R`.
pub struct CouplingFlow<R: Real> {
    card: ModelCard,
    hash: String,
    coordinates: Arc<Coordinates>,
    layers: Arc<Vec<Layer>>,
    /// For each coordinate, whether its prior is uniform.
    uniform: Vec<bool>,
    parameters: Arc<Parameters<R>>,
    /// Variance τ of the normal prior; 1 except for a steerable flow at another temperature.
    variance: f64,
    /// Workspaces that are not in use, so that a warm call does not allocate.
    workspaces: Arc<Spares<Workspace<R>>>,
    /// Gradient buffers that are not in use.
    gradients: Arc<Spares<Vec<R>>>,
}

impl<R: Real> CouplingFlow<R> {
    /// A flow with zero parameters. Errors name the layer.
    pub fn new(card: ModelCard) -> Result<CouplingFlow<R>> {
        let ModelConfig::Coupling(config) = &card.model else {
            return Err(Error::invalid("the model is not a coupling flow"));
        };
        let coordinates = Coordinates::new(&card.coordinates, |a| card.label(a))?;
        let dimension = coordinates.dimension_u();
        if dimension == 0 || dimension > LARGEST_DIMENSION || coordinates.dimension_x() > LARGEST_DIMENSION {
            return Err(Error::invalid(format!(
                "{dimension} coordinates are out of range: must be 1 to {LARGEST_DIMENSION}"
            )));
        }
        let mut uniform = vec![false; dimension];
        for &i in &config.uniform {
            *uniform.get_mut(i).ok_or_else(|| {
                Error::invalid(format!("prior: coordinate {i} is out of range for a flow of {dimension} coordinates"))
            })? = true;
        }
        let mut end = 0;
        let layer = |(i, config): (usize, &LayerConfig)| {
            Layer::new(config, dimension, &mut end).map_err(|e| Error::invalid(format!("layer {i}: {e}")))
        };
        let layers = config.layers.iter().enumerate().map(layer).collect::<Result<Vec<_>>>()?;
        let mut dimension_x = coordinates.dimension_x();
        if let Some(steering) = card.steering {
            steering::check(steering, config, &coordinates, &uniform)?;
            dimension_x -= steering.auxiliary;
        }
        card.require_dimension(dimension_x)?;
        if end > LARGEST_PARAMETERS {
            return Err(Error::invalid(format!("{end} parameters are too many: must be at most {LARGEST_PARAMETERS}")));
        }
        let linear = layers.iter().flat_map(Layer::networks).flat_map(|mlp| mlp.layers.clone()).collect();
        Ok(CouplingFlow {
            coordinates: Arc::new(coordinates),
            layers: Arc::new(layers),
            uniform,
            parameters: Arc::new(Parameters::new(end, linear)),
            variance: 1.0,
            hash: String::new(),
            workspaces: Arc::default(),
            gradients: Arc::default(),
            card,
        })
    }

    /// He-normal hidden weights (He et al., ICCV 2015) and zero output layers, so that the flow starts as its fixed
    /// layers alone.
    pub fn initialise(&mut self, seed: u64) {
        let parameters = Arc::make_mut(&mut self.parameters).values_mut();
        for (number, mlp) in self.layers.iter().flat_map(Layer::networks).enumerate() {
            let mut stream = Stream::new(seed, StreamId::Initialise, number as u64, 0);
            for linear in &mlp.layers[..mlp.layers.len() - 1] {
                let sd = (2.0 / linear.n_in as f64).sqrt();
                parameters[linear.weight()].iter_mut().for_each(|w| *w = R::from_f64(sd * stream.normal()));
            }
        }
    }

    /// Reads a flow from a model file. Errors name the layer or the tensor.
    pub fn from_file(file: &ModelFile) -> Result<CouplingFlow<R>> {
        let mut flow = CouplingFlow::new(file.card.clone())?;
        flow.read_parameters(file)?;
        flow.hash = file.hash.clone();
        Ok(flow)
    }

    /// Mutable card, to add provenance.
    pub fn card_mut(&mut self) -> &mut ModelCard {
        &mut self.card
    }

    /// Coordinates that the flow acts on.
    pub fn coordinates(&self) -> &Coordinates {
        &self.coordinates
    }

    /// All parameters in one vector, in the order of the layers.
    pub fn parameters(&self) -> &[R] {
        &self.parameters
    }

    /// Mutable parameters, for training or for reading others in.
    pub fn parameters_mut(&mut self) -> &mut [R] {
        Arc::make_mut(&mut self.parameters).values_mut()
    }

    /// Floating-point operations of the networks for one configuration; a multiply-add counts as two.
    pub fn flops(&self) -> f64 {
        let linear = self.layers.iter().flat_map(Layer::networks).flat_map(|mlp| &mlp.layers);
        linear.map(|l| 2 * l.n_in * l.n_out).sum::<usize>() as f64
    }

    /// A copy with networks of another precision. Errors: those of [`CouplingFlow::new`].
    pub fn cast<S: Real>(&self) -> Result<CouplingFlow<S>> {
        let mut other = CouplingFlow::<S>::new(self.card.clone())?;
        other
            .parameters_mut()
            .iter_mut()
            .zip(self.parameters())
            .for_each(|(to, from)| *to = S::from_f64(from.to_f64()));
        other.hash = self.hash.clone();
        other.variance = self.variance;
        Ok(other)
    }
}
