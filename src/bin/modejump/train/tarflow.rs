//! TarFlow, trained by maximum likelihood.

use super::Train;
use modejump::coordinates::chirality::stereocentres;
use modejump::coordinates::vector::centre;
use modejump::coordinates::Topology;
use modejump::models::tarflow::{format, Config, TarFlowConfig, TarNetwork};
use modejump::train::{Likelihood, NetworkOptions, Schedule};
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A new TarFlow and its training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TarflowDesign {
    /// Coordinates per token: 3 for atoms, 1 for single numbers.
    token_size: usize,
    channels: usize,
    blocks: usize,
    layers: usize,
    head_size: usize,
    expansion: usize,
    pub(super) train: NetworkOptions,
}

impl Default for TarflowDesign {
    fn default() -> TarflowDesign {
        let train = default_training();
        TarflowDesign { token_size: 3, channels: 64, blocks: 6, layers: 2, head_size: 32, expansion: 4, train }
    }
}

impl TarflowDesign {
    /// Errors: the number of coordinates is no multiple of the token size, or the number of channels no multiple of the
    /// head size; a single token.
    fn network(&self, dimension: usize) -> Result<TarFlowConfig> {
        let TarflowDesign { token_size, channels, blocks, layers, head_size, expansion, .. } = *self;
        if token_size == 0 || !dimension.is_multiple_of(token_size) {
            return Err(Error::invalid(format!(
                "`token_size` {token_size} does not divide the number of coordinates, {dimension}"
            )));
        }
        if token_size == dimension {
            return Err(Error::invalid(format!(
                "`token_size` {token_size} makes one token of all coordinates: the flow would be the identity, since a \
                 token depends on those before it; use 3, an atom per token"
            )));
        }
        let (tokens, heads) = (dimension / token_size, heads(channels, head_size)?);
        Ok(TarFlowConfig { tokens, token_size, channels, blocks, layers, heads, expansion })
    }
}

/// Number of heads. Errors: the number of channels is no multiple of the head size.
pub(super) fn heads(channels: usize, head_size: usize) -> Result<usize> {
    match head_size > 0 && channels.is_multiple_of(head_size) {
        true => Ok(channels / head_size),
        false => {
            Err(Error::invalid(format!("`head_size` {head_size} does not divide the number of channels, {channels}")))
        }
    }
}

/// Default options, for small networks; those of Tan et al. 2025 are trained with rate 1e-4, β₂ = 0.95 and a cycle that
/// starts at one five-hundredth of it and rises over 5 % of the steps.
pub(super) fn default_training() -> NetworkOptions {
    NetworkOptions {
        rate: 5e-4,
        schedule: Schedule::Cosine,
        batch: 256,
        clip: 1.0,
        weight_decay: 4e-4,
        average: 0.999,
        ..NetworkOptions::default()
    }
}

impl Train {
    pub(super) fn tarflow(
        &self,
        design: &TarflowDesign,
        topology: Topology,
        x0: &[f64],
        frames: Vec<f64>,
    ) -> Result<Value> {
        let dimension = 3 * topology.n_atoms();
        let begin = self.begin(&topology, || {
            let scale = 1.0 / standard_deviation(&[(&frames, dimension)]);
            let config = format::config(design.network(dimension)?, scale);
            Ok(Config { stereocentres: stereocentres(&topology, x0), ..config })
        })?;
        let network = TarNetwork::new(begin.config.network.clone())?;
        let parameters = begin.parameters(&network, |network| Ok(network.initial(design.train.seed)))?;
        let objective = Likelihood { centroid: begin.config.centroid };
        let frames = (frames, begin.config.units_per_nm);
        self.regress(begin.card, topology, (&network, parameters), objective, frames, &design.train)
    }
}

/// Standard deviation (nm) of all coordinates of centred frames, given as (frames, coordinates per frame).
pub fn standard_deviation(parts: &[(&[f64], usize)]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for (frames, dimension) in parts {
        for frame in frames.chunks_exact(*dimension) {
            let mut x = frame.to_vec();
            centre(&mut x);
            sum += x.iter().map(|v| v * v).sum::<f64>();
        }
        count += frames.len();
    }
    (sum / count as f64).sqrt()
}
