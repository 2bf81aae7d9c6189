//! Vector fields, trained by flow matching.

use super::beginning::initial_stream;
use super::Train;
use modejump::coordinates::chirality::{classes, stereocentres};
use modejump::coordinates::Topology;
use modejump::models::card::ModelCard;
use modejump::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::egnn_flow::{self, Egnn, EgnnConfig};
use modejump::models::gvp_flow::record::GvpNetwork;
use modejump::models::gvp_flow::{self, GvpConfig, GvpField};
use modejump::models::network::Network;
use modejump::ode::Method;
use modejump::train::{FlowMatching, NetworkOptions};
use modejump::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Network time at which the integration ends: the field is stiff at the data itself.
const LAST_TIME: f64 = 1e-3;

/// A new GVP field and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GvpDesign {
    n_layers: usize,
    n_scalars: usize,
    n_vectors: usize,
    rbf_max: f64,
    rbf_count: usize,
    pub(super) train: NetworkOptions,
}

impl Default for GvpDesign {
    fn default() -> GvpDesign {
        let train = NetworkOptions::default();
        GvpDesign { n_layers: 5, n_scalars: 64, n_vectors: 16, rbf_max: 20.0, rbf_count: 16, train }
    }
}

/// A new EGNN field and its training. Lengths in Å.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgnnDesign {
    n_layers: usize,
    n_hidden: usize,
    coordinate_range: f64,
    pub(super) train: NetworkOptions,
}

impl Default for EgnnDesign {
    fn default() -> EgnnDesign {
        EgnnDesign { n_layers: 5, n_hidden: 64, coordinate_range: 15.0, train: NetworkOptions::default() }
    }
}

/// Velocities of straight paths between configurations in Å and a prior at `times[0]`.
fn straight(times: [f64; 2], topology: &Topology, x0: &[f64]) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times,
        units_per_nm: 10.0,
        stereocentres: stereocentres(topology, x0),
        prior: Prior::MeanFree,
        divergence: Divergence::Exact,
        solver: Method::default(),
    }
}

/// One feature per class of atoms.
fn features(topology: &Topology) -> (Vec<Vec<usize>>, usize) {
    let classes = classes(topology);
    let n = classes.iter().max().map_or(0, |c| c + 1);
    (classes.into_iter().map(|c| vec![c]).collect(), n)
}

/// Geometric vector perceptrons for this molecule, of these sizes: scalars and vectors per atom, reach (Å) and number
/// of the radial functions.
pub(super) fn gvp_network(
    topology: &Topology,
    n_layers: usize,
    (n_scalars, n_vectors): (usize, usize),
    (rbf_max, rbf_count): (f64, usize),
) -> GvpConfig {
    let (features, n_features) = features(topology);
    GvpConfig {
        features,
        n_features,
        n_layers,
        n_scalars,
        n_vectors,
        rbf_max,
        rbf_count,
        message_norm: 10.0,
        coordinate_range: 10.0,
    }
}

impl Train {
    pub(super) fn gvp_flow(
        &self,
        design: &GvpDesign,
        topology: Topology,
        x0: &[f64],
        frames: Vec<f64>,
    ) -> Result<Value> {
        let begin = self.begin(&topology, || {
            let GvpDesign { n_layers, n_scalars, n_vectors, rbf_max, rbf_count, .. } = *design;
            let network = gvp_network(&topology, n_layers, (n_scalars, n_vectors), (rbf_max, rbf_count));
            Ok(gvp_flow::Config { network, flow: straight([1.0, LAST_TIME], &topology, x0) })
        })?;
        let network = GvpNetwork::new(begin.config.network.clone())?;
        let parameters = begin.parameters(&network, |network| {
            Ok(GvpField::random(network.config().clone(), design.train.seed)?.parameters().to_vec())
        })?;
        self.match_flow(begin.card, begin.config.flow, topology, (&network, parameters), frames, &design.train)
    }

    pub(super) fn egnn_flow(
        &self,
        design: &EgnnDesign,
        topology: Topology,
        x0: &[f64],
        frames: Vec<f64>,
    ) -> Result<Value> {
        let begin = self.begin(&topology, || {
            let (features, n_features) = features(&topology);
            let network = EgnnConfig {
                features,
                n_features,
                n_layers: design.n_layers,
                n_hidden: design.n_hidden,
                coordinate_range: design.coordinate_range,
            };
            Ok(egnn_flow::Config { network, flow: straight([0.0, 1.0], &topology, x0) })
        })?;
        let network = Egnn::new(begin.config.network.clone())?;
        let parameters = begin.parameters(&network, |network| {
            Ok(network.layout().initialise(&mut initial_stream(&design.train), |_, _| None))
        })?;
        self.match_flow(begin.card, begin.config.flow, topology, (&network, parameters), frames, &design.train)
    }

    fn match_flow<N: Network>(
        &self,
        card: ModelCard,
        flow: ContinuousConfig,
        topology: Topology,
        network: (&N, Vec<f32>),
        frames: Vec<f64>,
        options: &NetworkOptions,
    ) -> Result<Value> {
        let (pairing, largest_weight, units_per_nm) = (options.pairing, options.largest_weight, flow.units_per_nm);
        let objective = FlowMatching { config: flow, pairing, largest_weight };
        self.regress(card, topology, network, objective, (frames, units_per_nm), options)
    }
}
