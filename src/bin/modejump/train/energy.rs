//! Energy-based models, by score matching and contrastive estimation on a generator's samples.

use super::{read_model, Train};
use modejump::coordinates::chirality::classes;
use modejump::coordinates::Topology;
use modejump::density::Exactness;
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::energy::EnergyConfig;
use modejump::models::graphormer_ebm::{Config, Graphormer, GraphormerConfig, Version};
use modejump::models::invariant_ebm::whitening::Whitening;
use modejump::models::invariant_ebm::{self, volumes, InvariantConfig, InvariantNetwork};
use modejump::models::network::Network;
use modejump::rng::{Stream, StreamId};
use modejump::train::network_trainer::in_units;
use modejump::train::{Contrast, ContrastiveOptions, NetworkOptions};
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};

/// A new Graphormer and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphormerDesign {
    n_layers: usize,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kernels: usize,
    /// Distance up to which the Gaussians lie at the beginning.
    reach: f64,
    contrast: ContrastiveOptions,
    train: NetworkOptions,
}

impl Default for GraphormerDesign {
    fn default() -> GraphormerDesign {
        GraphormerDesign {
            n_layers: 3,
            width: 64,
            feed_forward: 128,
            heads: 8,
            kernels: 32,
            reach: 8.0,
            contrast: ContrastiveOptions::default(),
            train: NetworkOptions::default(),
        }
    }
}

/// A new energy in distances and volumes, and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InvariantDesign {
    /// Combinations of distances and volumes that the network sees, fewer for a molecule that has fewer.
    inputs: usize,
    width: usize,
    /// Residual layers.
    layers: usize,
    contrast: ContrastiveOptions,
    train: NetworkOptions,
}

impl Default for InvariantDesign {
    fn default() -> InvariantDesign {
        let contrast = ContrastiveOptions { time_power: 3.0, antithetic: true, ..ContrastiveOptions::default() };
        let train = NetworkOptions { batch: 256, ..NetworkOptions::default() };
        InvariantDesign { inputs: 128, width: 256, layers: 3, contrast, train }
    }
}

impl Train {
    pub(super) fn invariant_ebm(&self, design: &InvariantDesign, topology: Topology, frames: Vec<f64>) -> Result<()> {
        design.contrast.check()?;
        let (card, config, parameters) = match &self.start {
            Some(path) => {
                let file = read_model(path)?;
                let ModelConfig::InvariantEbm(config) = file.card.model.clone() else {
                    return Err(Error::file(path, "not a model of the kind invariant_ebm"));
                };
                let parameters = InvariantNetwork::new(config.network.clone())?.layout().read(&file.tensors)?;
                (file.card, config, parameters)
            }
            None => {
                let volumes = volumes(&topology);
                let numbers = topology.n_atoms() * (topology.n_atoms() - 1) / 2 + volumes.len();
                let network = InvariantConfig {
                    atoms: topology.n_atoms(),
                    inputs: design.inputs.min(numbers),
                    volumes,
                    interpolant: design.contrast.interpolant,
                    width: design.width,
                    layers: design.layers,
                };
                let config =
                    invariant_ebm::Config { network, energy: EnergyConfig { units_per_nm: 10.0, data_time: 0.0 } };
                let network = InvariantNetwork::new(config.network.clone())?;
                let whitening = Whitening::of(&network, &in_units(&frames, network.dimension(), 10.0))?;
                let mut stream = Stream::new(design.train.seed, StreamId::Initialise, 0, 0);
                let parameters = network.initialise(&whitening, &mut stream);
                let model = ModelConfig::InvariantEbm(config.clone());
                (ModelCard::of_energy(model, network.dimension()), config, parameters)
            }
        };
        let network = InvariantNetwork::new(config.network)?;
        let objective = Contrast { options: design.contrast, mean_free: true };
        let frames = (frames, config.energy.units_per_nm);
        self.regress(card, topology, (&network, parameters), objective, frames, &design.train)
    }

    pub(super) fn graphormer_ebm(&self, design: &GraphormerDesign, topology: Topology, frames: Vec<f64>) -> Result<()> {
        design.contrast.check()?;
        let (card, config, parameters) = match &self.start {
            Some(path) => {
                let file = read_model(path)?;
                let ModelConfig::GraphormerEbm(config) = file.card.model.clone() else {
                    return Err(Error::file(path, "not a model of the kind graphormer_ebm"));
                };
                let parameters = Graphormer::new(config.network.clone())?.layout().read(&file.tensors)?;
                (file.card, config, parameters)
            }
            None => {
                let types = classes(&topology);
                let network = GraphormerConfig {
                    version: Version::Clean,
                    n_types: types.iter().max().map_or(0, |t| t + 1),
                    types,
                    n_layers: design.n_layers,
                    blocks: 1,
                    width: design.width,
                    feed_forward: design.feed_forward,
                    heads: design.heads,
                    kernels: design.kernels,
                };
                let parameters = Graphormer::new(network.clone())?.initial(design.reach, design.train.seed);
                let config = Config { network, energy: EnergyConfig { units_per_nm: 10.0, data_time: 0.0 } };
                let model = ModelConfig::GraphormerEbm(config.clone());
                let card = ModelCard::of_cartesian(model, topology.n_atoms());
                (ModelCard { exactness: Exactness::Surrogate, ..card }, config, parameters)
            }
        };
        let network = Graphormer::new(config.network)?;
        let objective = Contrast { options: design.contrast, mean_free: true };
        let frames = (frames, config.energy.units_per_nm);
        self.regress(card, topology, (&network, parameters), objective, frames, &design.train)
    }
}
