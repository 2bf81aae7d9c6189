//! The layers of a coupling flow: their configuration and common interface.
//!
//! A layer maps coordinates u → u′ in the generating direction and back. Both directions add the same number to
//! `log_det`, ln|∂u′/∂u| of the generating direction, so log q(x) = log prior(z) − log_det in either direction.

use super::affine::AffineCoupling;
use super::conditioner::{ConditionerTape, Features};
use super::elementwise::{Elementwise, Whiten};
use super::spline::Bin;
use super::spline_coupling::SplineCoupling;
use crate::density::Status;
use crate::error::{Error, Result};
use crate::nn::{Activation, Mlp, Parameters, Real};
use serde::{Deserialize, Deserializer, Serialize};

/// Direction in which a layer is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Latent z → x.
    Generate,
    /// x → latent z.
    Encode,
}

/// A chunk of configurations passing through the layers.
pub struct Rows<'a> {
    pub dimension: usize,
    /// `[rows][dimension]`
    pub u: &'a mut [f64],
    pub log_det: &'a mut [f64],
    pub status: &'a mut [Status],
}

impl Rows<'_> {
    /// Rejects a row, keeping the first reason.
    pub fn reject(&mut self, row: usize, status: Status) {
        if self.status[row] == Status::Inside {
            self.status[row] = status;
        }
    }
}

/// Largest width of a hidden layer, and largest number of bins or harmonics, in a model file.
const LARGEST_HIDDEN: usize = 1 << 16;
const LARGEST_BINS: usize = 1 << 12;

/// Boundary conditions of a spline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ends {
    /// Free slopes at both ends; outside the interval the density is zero.
    Free,
    /// The ends are one point on a circle: equal slopes.
    Circular,
    /// Slope one at both ends and the identity beyond them.
    Linear,
}

/// One layer as the model file describes it. Coordinates are numbered in the flow's vector u.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerConfig {
    /// Rational-quadratic spline coupling.
    Spline {
        transformed: Vec<usize>,
        features: Features,
        ends: Ends,
        bins: usize,
        /// [left, right] of the spline, on both axes.
        interval: [f64; 2],
        hidden: Vec<usize>,
        activation: Activation,
        /// nflows' `enable_identity_init`: with zero network output the layer is the identity. The flag changes the
        /// density.
        identity_init: bool,
    },
    /// Affine coupling u′ = eˢ u + t with s = tanh(network) · e^{log α}.
    Affine {
        transformed: Vec<usize>,
        features: Features,
        hidden: Vec<usize>,
        activation: Activation,
        /// With two networks: the scale's activation; otherwise one network with outputs [t | s].
        #[serde(default)]
        scale_activation: Option<Activation>,
        /// Subtracts the mean of s, so that the log-determinant is zero.
        preserve_volume: bool,
    },
    /// Learned circular shift u′ = (u + φ) mod 1.
    Shift { transformed: Vec<usize> },
    /// Fixed circular shift: u′ = (u + shift) mod 1; u outside [0, 1) is outside the support.
    Wrap { transformed: Vec<usize>, shift: Vec<f64> },
    /// Uniform number → truncated normal. JSON has no infinity, so an absent bound is null there.
    TruncatedNormal {
        transformed: Vec<usize>,
        mean: Vec<f64>,
        sd: Vec<f64>,
        #[serde(deserialize_with = "lower_end")]
        lower: f64,
        #[serde(deserialize_with = "upper_end")]
        upper: f64,
    },
    /// Uniform number on [0, 1] → uniform on [low, high].
    Uniform { transformed: Vec<usize>, low: Vec<f64>, high: Vec<f64> },
    /// u′ = mean + L u with a lower-triangular L `[n][n]`, stored row by row.
    Whiten { transformed: Vec<usize>, mean: Vec<f64>, matrix: Vec<f64> },
}

fn lower_end<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NEG_INFINITY))
}

fn upper_end<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

impl LayerConfig {
    /// Coordinates that the layer transforms.
    pub fn transformed(&self) -> &[usize] {
        match self {
            LayerConfig::Spline { transformed, .. }
            | LayerConfig::Affine { transformed, .. }
            | LayerConfig::Shift { transformed }
            | LayerConfig::Wrap { transformed, .. }
            | LayerConfig::TruncatedNormal { transformed, .. }
            | LayerConfig::Uniform { transformed, .. }
            | LayerConfig::Whiten { transformed, .. } => transformed,
        }
    }

    /// Coordinates that the layer's networks read.
    pub fn conditions(&self) -> impl Iterator<Item = usize> + '_ {
        self.features().into_iter().flat_map(Features::coordinates)
    }

    fn features(&self) -> Option<&Features> {
        match self {
            LayerConfig::Spline { features, .. } | LayerConfig::Affine { features, .. } => Some(features),
            _ => None,
        }
    }

    /// Checks the sizes. Errors: sizes so large that a damaged file would ask for more memory than there is.
    fn validate_sizes(&self) -> Result<()> {
        let (hidden, bins) = match self {
            LayerConfig::Spline { hidden, bins, .. } => (&hidden[..], *bins),
            LayerConfig::Affine { hidden, .. } => (&hidden[..], 0),
            _ => return Ok(()),
        };
        let harmonics = self.features().map_or(0, |features| features.harmonics);
        if hidden.iter().any(|&n| n > LARGEST_HIDDEN) || bins > LARGEST_BINS || harmonics > LARGEST_BINS {
            return Err(Error::invalid(format!(
                "{bins} bins, {harmonics} harmonics, hidden layers {hidden:?}: must be at most {LARGEST_BINS}, \
                 {LARGEST_BINS} and {LARGEST_HIDDEN}"
            )));
        }
        Ok(())
    }

    /// Checks sizes and indices. Errors: an index out of range, or a coordinate transformed twice or used as its own
    /// condition.
    pub fn validate(&self, dimension: usize) -> Result<()> {
        self.validate_sizes()?;
        let mut used = vec![false; dimension];
        if self.transformed().is_empty() {
            return Err(Error::invalid("a layer transforms no coordinates"));
        }
        for &i in self.transformed() {
            if i >= dimension {
                return Err(Error::invalid(format!(
                    "coordinate {i} is out of range for a flow of {dimension} coordinates"
                )));
            }
            if std::mem::replace(&mut used[i], true) {
                return Err(Error::invalid(format!("coordinate {i} is transformed twice in one layer")));
            }
        }
        for i in self.conditions() {
            if i >= dimension {
                return Err(Error::invalid(format!(
                    "conditioning coordinate {i} is out of range for a flow of {dimension} coordinates"
                )));
            }
            if used[i] {
                return Err(Error::invalid(format!("coordinate {i} conditions its own transformation")));
            }
        }
        Ok(())
    }
}

/// A bijective layer with its log-determinant.
#[derive(Clone, Debug)]
pub enum Layer {
    Spline(SplineCoupling),
    Affine(AffineCoupling),
    Elementwise(Elementwise),
    Whiten(Whiten),
}

/// Workspace of one layer for one chunk: intermediates of the forward pass for the backward pass.
#[derive(Clone, Debug, Default)]
pub struct LayerTape<R> {
    pub conditioner: ConditionerTape<R>,
    pub second: ConditionerTape<R>,
    /// Softmax of widths and heights, `[rows][2 · coordinates · bins]`.
    pub softmax: Vec<R>,
    pub slopes: Vec<R>,
    /// (bin, its index, argument, ln slope) of every transformed coordinate.
    pub bins: Vec<(Bin, usize, f64, f64)>,
    /// Saved values of a layer, `[rows][coordinates]`.
    pub kept: Vec<f64>,
    pub scale: Vec<f64>,
    /// e^s or e^−s of affine layers.
    pub factor: Vec<f64>,
}

impl Layer {
    /// Builds a layer with its parameters at `*end`, which is advanced. Errors: those of [`LayerConfig::validate`],
    /// sizes that do not match.
    pub fn new(config: &LayerConfig, dimension: usize, end: &mut usize) -> Result<Layer> {
        config.validate(dimension)?;
        Ok(match config {
            LayerConfig::Spline { .. } => Layer::Spline(SplineCoupling::new(config, end)?),
            LayerConfig::Affine { .. } => Layer::Affine(AffineCoupling::new(config, end)?),
            LayerConfig::Whiten { transformed, mean, matrix } => {
                Layer::Whiten(Whiten::new(transformed.clone(), mean.clone(), matrix.clone())?)
            }
            _ => Layer::Elementwise(Elementwise::new(config, end)?),
        })
    }

    /// Transforms `rows.u` in place and adds ln|∂u′/∂u| of the generating direction to `log_det`; rejects rows outside
    /// the support.
    pub fn apply<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        rows: &mut Rows,
        tape: &mut LayerTape<R>,
    ) {
        match self {
            Layer::Spline(layer) => layer.apply(direction, parameters, rows, tape),
            Layer::Affine(layer) => layer.apply(direction, parameters, rows, tape),
            Layer::Elementwise(layer) => layer.apply(direction, parameters, rows, tape),
            Layer::Whiten(layer) => layer.apply(direction, rows),
        }
    }

    /// Turns the cotangent of the output, `gu[rows][dimension]`, into that of the input, given the cotangent of
    /// `log_det` per row; adds those of the parameters to `gradient` if given. `tape` is that of [`Layer::apply`] in
    /// the same direction.
    pub fn vjp<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        tape: &mut LayerTape<R>,
        gu: &mut [f64],
        g_log_det: &[f64],
        gradient: Option<&mut [R]>,
    ) {
        match self {
            Layer::Spline(layer) => layer.vjp(direction, parameters, tape, gu, g_log_det, gradient),
            Layer::Affine(layer) => layer.vjp(direction, parameters, tape, gu, g_log_det, gradient),
            Layer::Elementwise(layer) => layer.vjp(direction, tape, gu, g_log_det, gradient),
            Layer::Whiten(layer) => layer.vjp(direction, gu, g_log_det.len()),
        }
    }
}

impl Layer {
    /// The layer's networks, in the order of their parameters.
    pub fn networks(&self) -> Vec<&Mlp> {
        match self {
            Layer::Spline(layer) => vec![&layer.conditioner.mlp],
            Layer::Affine(layer) => {
                [Some(&layer.shift), layer.scale.as_ref()].into_iter().flatten().map(|c| &c.mlp).collect()
            }
            _ => Vec::new(),
        }
    }
}
