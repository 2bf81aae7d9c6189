//! Energy-based models, trained by score matching and contrastive estimation on a generator's samples.

use super::beginning::{initial_stream, Beginning};
use super::field::gvp_network;
use super::Train;
use modejump::coordinates::chirality::{classes, prochiral_centres};
use modejump::coordinates::Topology;
use modejump::models::card::{ModelCard, ModelKind};
use modejump::models::energy::EnergyConfig;
use modejump::models::graphormer_ebm::{self, Graphormer, GraphormerConfig, Version};
use modejump::models::gvp_ebm::{self, GvpEnergy};
use modejump::models::invariant_ebm::whitening::Whitening;
use modejump::models::invariant_ebm::{self, volumes, InvariantConfig, InvariantNetwork};
use modejump::models::layout::check_positive;
use modejump::models::mlp_ebm::{self, MlpConfig, MlpNetwork};
use modejump::models::network::Network;
use modejump::train::network_trainer::in_units;
use modejump::train::{Contrast, ContrastiveOptions, NetworkOptions};
use modejump::trust::Trust;
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Units of new energies: lengths in Å, with the data at time 0.
const ANGSTROM: EnergyConfig = EnergyConfig { units_per_nm: 10.0, data_time: 0.0, trust: Trust::FULL };

/// A new Graphormer and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphormerDesign {
    n_layers: usize,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kernels: usize,
    /// Largest distance of the Gaussians before training.
    reach: f64,
    contrast: ContrastiveOptions,
    pub(super) train: NetworkOptions,
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

/// A new energy on geometric vector perceptrons and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GvpEnergyDesign {
    n_layers: usize,
    n_scalars: usize,
    n_vectors: usize,
    rbf_max: f64,
    rbf_count: usize,
    contrast: ContrastiveOptions,
    pub(super) train: NetworkOptions,
}

impl Default for GvpEnergyDesign {
    fn default() -> GvpEnergyDesign {
        GvpEnergyDesign {
            n_layers: 3,
            n_scalars: 64,
            n_vectors: 16,
            rbf_max: 20.0,
            rbf_count: 16,
            contrast: ContrastiveOptions::default(),
            train: NetworkOptions::default(),
        }
    }
}

/// A new energy in distances and volumes, and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InvariantDesign {
    /// Number of combinations of distances and volumes that the network sees; fewer for a molecule that has fewer. Too
    /// few leave out the stiff bonds, as 128 of the 292 of alanine dipeptide do.
    inputs: usize,
    width: usize,
    /// Residual layers.
    layers: usize,
    contrast: ContrastiveOptions,
    pub(super) train: NetworkOptions,
}

impl Default for InvariantDesign {
    fn default() -> InvariantDesign {
        let contrast =
            ContrastiveOptions { time_power: 3.0, negatives: 2, antithetic: true, ..ContrastiveOptions::default() };
        let train = NetworkOptions { batch: 256, rate: 3e-3, ..NetworkOptions::default() };
        InvariantDesign { inputs: 208, width: 256, layers: 3, contrast, train }
    }
}

/// A new perceptron of all coordinates and its training. It is not invariant under rotations.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpDesign {
    width: usize,
    layers: usize,
    contrast: ContrastiveOptions,
    pub(super) train: NetworkOptions,
}

impl Default for MlpDesign {
    fn default() -> MlpDesign {
        let (contrast, train) = (ContrastiveOptions::default(), NetworkOptions::default());
        MlpDesign { width: 256, layers: 4, contrast, train }
    }
}

/// Resets the trust of the energy of `--start`, which belongs to its network before this training. Errors: its data is
/// at another time than in training.
fn begin_anew(path: &Path, energy: &mut EnergyConfig) -> Result<()> {
    if energy.data_time != ANGSTROM.data_time {
        let reason = format!(
            "has the data at time {}, but training puts them at time {}: train a new model, without --start",
            energy.data_time, ANGSTROM.data_time
        );
        return Err(Error::file(path, reason));
    }
    if energy.trust != Trust::FULL {
        energy.trust = Trust::FULL;
        eprintln!("note: the trust of {} is reset: fit it again with `modejump reweight --calibrate`", path.display());
    }
    Ok(())
}

impl Train {
    pub(super) fn graphormer_ebm(
        &self,
        design: &GraphormerDesign,
        topology: Topology,
        frames: Vec<f64>,
    ) -> Result<Value> {
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
        let new = graphormer_ebm::Config { network, energy: ANGSTROM };
        let begin = self.begin_energy(&topology, new)?;
        let network = Graphormer::new(begin.config.network.clone())?;
        check_positive(&[("reach", design.reach)])?;
        let parameters = begin.parameters(&network, |network| Ok(network.initial(design.reach, design.train.seed)))?;
        let options = (design.contrast, &design.train);
        self.contrast(begin.card, begin.config.energy, topology, (&network, parameters), frames, options)
    }

    pub(super) fn gvp_ebm(&self, design: &GvpEnergyDesign, topology: Topology, frames: Vec<f64>) -> Result<Value> {
        let GvpEnergyDesign { n_layers, n_scalars, n_vectors, rbf_max, rbf_count, .. } = *design;
        let network = gvp_network(&topology, n_layers, (n_scalars, n_vectors), (rbf_max, rbf_count));
        let new = gvp_ebm::Config { network, energy: ANGSTROM };
        let begin = self.begin_energy(&topology, new)?;
        let network = GvpEnergy::new(begin.config.network.clone())?;
        let parameters =
            begin.parameters(&network, |network| Ok(network.initialise(&mut initial_stream(&design.train))))?;
        let options = (design.contrast, &design.train);
        self.contrast(begin.card, begin.config.energy, topology, (&network, parameters), frames, options)
    }

    pub(super) fn invariant_ebm(
        &self,
        design: &InvariantDesign,
        topology: Topology,
        x0: &[f64],
        frames: Vec<f64>,
    ) -> Result<Value> {
        let mut network = InvariantConfig {
            atoms: topology.n_atoms(),
            volumes: volumes(&topology),
            prochiral: prochiral_centres(&topology, x0),
            inputs: design.inputs,
            interpolant: design.contrast.interpolant,
            width: design.width,
            layers: design.layers,
        };
        network.inputs = network.inputs.min(network.n_invariants());
        let new = invariant_ebm::Config { network, energy: ANGSTROM };
        let begin = self.begin_energy(&topology, new)?;
        let (own, given) = (begin.config.network.interpolant, design.contrast.interpolant);
        if let Some(path) = self.start.as_ref().filter(|_| own != given) {
            // its features are scaled by the noise of its own training
            let own = serde_json::json!(own);
            let reason = format!("was trained with the interpolant {own}: set `interpolant` in `contrast` to {own}");
            return Err(Error::file(path, reason));
        }
        let network = InvariantNetwork::new(begin.config.network.clone())?;
        let parameters = begin.parameters(&network, |network| {
            let frames = in_units(&frames, network.dimension(), begin.config.energy.units_per_nm);
            Ok(network.initialise(&Whitening::of(network, &frames)?, &mut initial_stream(&design.train)))
        })?;
        let options = (design.contrast, &design.train);
        self.contrast(begin.card, begin.config.energy, topology, (&network, parameters), frames, options)
    }

    pub(super) fn mlp_ebm(&self, design: &MlpDesign, topology: Topology, frames: Vec<f64>) -> Result<Value> {
        let MlpDesign { width, layers, contrast, ref train } = *design;
        let network = MlpConfig { dimension: 3 * topology.n_atoms(), width, layers };
        let new = mlp_ebm::Config { network, energy: ANGSTROM };
        let begin = self.begin_energy(&topology, new)?;
        let network = MlpNetwork::new(begin.config.network)?;
        let parameters = begin.parameters(&network, |network| Ok(network.initialise(&mut initial_stream(train))))?;
        self.contrast(begin.card, begin.config.energy, topology, (&network, parameters), frames, (contrast, train))
    }

    /// As [`Train::begin`]. Errors: also data at another time than in training.
    fn begin_energy<C: ModelKind>(&self, topology: &Topology, new: C) -> Result<Beginning<C>> {
        let Some(path) = &self.start else { return Ok(Beginning::new(new, topology.n_atoms())) };
        let mut file = self.start_model(path, topology)?;
        if let Some(energy) = file.card.model.energy_mut() {
            begin_anew(path, energy)?;
        }
        self.go_on(file)
    }

    fn contrast<N: Network>(
        &self,
        card: ModelCard,
        energy: EnergyConfig,
        topology: Topology,
        network: (&N, Vec<f32>),
        frames: Vec<f64>,
        (options, train): (ContrastiveOptions, &NetworkOptions),
    ) -> Result<Value> {
        options.check()?;
        let log_density = self.log_densities(frames.len() / network.0.dimension(), train.held_out)?;
        let objective = Contrast { options, mean_free: true, log_density, data_time: energy.data_time };
        self.regress(card, topology, network, objective, (frames, energy.units_per_nm), train)
    }
}
