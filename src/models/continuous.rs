//! Continuous normalizing flow: a vector field carried from the prior to the data by an ODE (Chen et al., NeurIPS 2018;
//! flow matching: Lipman et al., ICLR 2023).

use super::field::VectorField;
use super::ModelCard;
use crate::coordinates::Stereocentre;
use serde::{Deserialize, Serialize};

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parametrisation {
    /// The velocity dx/dt.
    Velocity,
    /// The data point at the end of the path.
    Endpoint,
}

/// x_t = α(t) x_data + σ(t) x_prior, with t counted from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolant {
    /// α = 1 − t, σ = t.
    Linear,
    /// α = cos(πt/2), σ = sin(πt/2).
    Trigonometric,
}

/// How a continuous flow runs, as the model file says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuousConfig {
    pub parametrisation: Parametrisation,
    pub interpolant: Interpolant,
    /// Network time of the prior, and of the data; the integration ends exactly there.
    pub times: [f64; 2],
    /// Units of the network per nm.
    pub units_per_nm: f64,
    /// Mirror images are folded to these hands, which gives ln 2; empty: samples of both hands.
    #[serde(default)]
    pub stereocentres: Vec<Stereocentre>,
}

/// A continuous flow over the vector field `F`.
pub struct ContinuousFlow<F> {
    field: F,
    card: ModelCard,
    config: ContinuousConfig,
    hash: String,
}

impl<F: VectorField> ContinuousFlow<F> {
    pub fn new(field: F, config: ContinuousConfig, card: ModelCard, hash: String) -> ContinuousFlow<F> {
        ContinuousFlow { field, card, config, hash }
    }
}
