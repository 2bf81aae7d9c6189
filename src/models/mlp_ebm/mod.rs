//! A time-conditional energy-based model of few abstract coordinates: the network of BoltzNCE's toy systems (Aggarwal
//! et al., NeurIPS 2025). E(t, x) is a log-density up to a constant.
//!
//! ```text
//! h = W₀ [x ; t] + b₀
//! every layer:  h += swish_β(W h + b),   swish_β(a) = a σ(βa) with one learned β per layer
//! E = w·h + c
//! ```

pub(super) mod cuda;
#[cfg(test)]
mod tests;
pub mod trunk;

pub use cuda::programs;

use super::energy::{EnergyConfig, EnergyModel};
use super::layout::{check_sizes, Layout, Start, LARGEST_SIZE, MOST_LAYERS};
use super::network::{Evaluator, Network};
use crate::error::Result;
use crate::io::model_file::ModelFile;
use crate::nn::{Real, Scalar, Tape, Var};
use crate::rng::Stream;
use serde::{Deserialize, Serialize};
use trunk::Trunk;

/// Bound of the first layer's initial weights. Within PyTorch's (1/√3 in the plane) an energy starts out as nearly a
/// low-degree polynomial and stays on plateaus (eight wells on a circle look like a ring) for thousands of steps.
const WIDEST_INPUT: f64 = 4.0;

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: MlpConfig,
    pub energy: EnergyConfig,
}

/// Sizes of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Number of coordinates.
    pub dimension: usize,
    pub width: usize,
    /// Residual layers.
    pub layers: usize,
}

/// The model with a network of type `R`.
pub type MlpEbm<R> = EnergyModel<Evaluator<MlpNetwork, R>>;

/// The network.
#[derive(Clone, Debug)]
pub struct MlpNetwork {
    config: MlpConfig,
    layout: Layout,
    trunk: Trunk,
}

impl MlpNetwork {
    /// Lays out the parameters. Errors: a size that is zero or too large.
    pub fn new(config: MlpConfig) -> Result<MlpNetwork> {
        let MlpConfig { dimension, width, layers } = config;
        check_sizes(&[
            ("dimension", dimension, LARGEST_SIZE),
            ("width", width, LARGEST_SIZE),
            ("layers", layers, MOST_LAYERS),
        ])?;
        let mut layout = Layout::default();
        let trunk = Trunk::new(&mut layout, dimension + 1, width, layers);
        Ok(MlpNetwork { config, layout, trunk })
    }

    /// Sizes of the network.
    pub fn config(&self) -> MlpConfig {
        self.config
    }

    /// Random weights for coordinates of order one; slopes are one.
    pub fn initialise<R: Real>(&self, stream: &mut Stream) -> Vec<R> {
        self.layout.initialise(stream, |name, shape| match name {
            _ if shape.is_empty() => Some(Start::At(1.0)),
            "input.weight" | "input.bias" => Some(Start::Within(WIDEST_INPUT)),
            _ => None,
        })
    }
}

impl<R: Real> MlpEbm<R> {
    /// Reads the model from a file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<MlpEbm<R>> {
        let Config { network, energy } = file.config()?;
        EnergyModel::of_network(MlpNetwork::new(*network)?, *energy, file)
    }
}

impl Network for MlpNetwork {
    fn dimension(&self) -> usize {
        self.config.dimension
    }

    fn outputs(&self) -> usize {
        1
    }

    fn chunk(&self) -> usize {
        128
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let input = tape.input(t.len(), self.config.dimension);
        tape.value_mut(input).copy_from_slice(x);
        let time = tape.input(t.len(), 1);
        tape.value_mut(time).iter_mut().zip(t).for_each(|(slot, &t)| *slot = R::from_f64(t));

        (input, self.trunk.record(p, tape, &[input, time]))
    }
}
