//! TarFlow, by maximum likelihood.

use super::Train;
use modejump::coordinates::chirality::stereocentres;
use modejump::coordinates::vector::centre;
use modejump::coordinates::Topology;
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, TarFlowConfig, TarNetwork};
use modejump::train::{Likelihood, NetworkOptions, Schedule};
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A new TarFlow and its training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TarflowDesign {
    /// Coordinates of a token: 3 for atoms, 1 for single numbers.
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
        // for small networks; those of Tan et al. 2025 are trained with rate 1e-4, β₂ = 0.95 and another schedule
        let train = NetworkOptions {
            rate: 5e-4,
            schedule: Schedule::Cosine,
            batch: 256,
            clip: 1.0,
            weight_decay: 4e-4,
            average: 0.999,
            ..NetworkOptions::default()
        };
        TarflowDesign { token_size: 3, channels: 64, blocks: 6, layers: 2, head_size: 32, expansion: 4, train }
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
        let (card, config, parameters) = match &self.start {
            Some(path) => {
                let file = self.start_model(path, &topology)?;
                let ModelConfig::Tarflow(config) = file.card.model.clone() else {
                    return Err(self.other_kind(path, &file.card.model));
                };
                let parameters = TarNetwork::new(config.network.clone())?.layout().read(&file.tensors)?;
                (file.card, config, parameters)
            }
            None => {
                let TarflowDesign { token_size, channels, blocks, layers, head_size, expansion, .. } = *design;
                if token_size == 0 || !dimension.is_multiple_of(token_size) {
                    let message = format!("tokens of {token_size} do not share {dimension} coordinates evenly");
                    return Err(Error::invalid(message));
                }
                if head_size == 0 || !channels.is_multiple_of(head_size) {
                    return Err(Error::invalid(format!(
                        "heads of {head_size} do not share {channels} channels evenly"
                    )));
                }
                let tokens = dimension / token_size;
                let heads = channels / head_size;
                let network = TarFlowConfig { tokens, token_size, channels, blocks, layers, heads, expansion };
                let parameters = TarNetwork::new(network.clone())?.initial(design.train.seed);
                let mut config = format::config(network, 1.0 / standard_deviation(&[(&frames, dimension)]));
                config.stereocentres = stereocentres(&topology, x0);
                let card = ModelCard::of_cartesian(ModelConfig::Tarflow(config.clone()), topology.n_atoms());
                (card, config, parameters)
            }
        };
        let network = TarNetwork::new(config.network)?;
        let objective = Likelihood { centroid: config.centroid };
        let frames = (frames, config.units_per_nm);
        self.regress(card, topology, (&network, parameters), objective, frames, &design.train)
    }
}

/// Of all coordinates of centred frames (frames, coordinates of each), nm.
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
