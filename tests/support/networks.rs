//! The bytes of a small valid model of every kind with a network, of two or three atoms (or two plain coordinates), or
//! of glycine.

use modejump::coordinates::chirality::Stereocentre;
use modejump::coordinates::{CoordinatesConfig, Topology};
use modejump::io::model_file::serialize;
use modejump::models::card::{ModelCard, ModelConfig, SteeringConfig};
use modejump::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::egnn_flow::{self, Egnn, EgnnConfig};
use modejump::models::energy::EnergyConfig;
use modejump::models::graphormer_ebm::{self, Graphormer, GraphormerConfig, Version};
use modejump::models::gvp_ebm::{self, GvpEnergy};
use modejump::models::gvp_flow::{self, GvpConfig, GvpField};
use modejump::models::invariant_ebm::whitening::Whitening;
use modejump::models::invariant_ebm::{self, InvariantConfig, InvariantNetwork};
use modejump::models::mlp_ebm::{self, MlpConfig, MlpNetwork};
use modejump::models::network::Network;
use modejump::models::tarflow::transferable::{self, EmbeddingConfig, PeptideConfig};
use modejump::models::tarflow::{self, TarFlowConfig, TarNetwork};
use modejump::nn::Activation;
use modejump::ode::Method;
use modejump::rng::{Stream, StreamId};
use modejump::trust::Trust;

/// By kind.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("egnn_flow", egnn_flow()),
        ("graphormer_ebm", graphormer_ebm(4, 2)),
        ("gvp_ebm", gvp_ebm()),
        ("gvp_flow", gvp_flow()),
        ("invariant_ebm", invariant_ebm()),
        ("mlp_ebm", mlp_ebm()),
        ("steerable", steerable()),
        ("tarflow", tarflow()),
        ("transferable_tarflow", transferable_tarflow()),
    ]
}

/// A steerable coupling flow of one coordinate and an auxiliary one.
fn steerable() -> Vec<u8> {
    let shear = |i: usize| LayerConfig::Affine {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - i] },
        hidden: vec![3],
        activation: Activation::Tanh,
        scale_activation: None,
        preserve_volume: true,
    };
    let config = CouplingConfig { uniform: vec![], layers: vec![shear(0), shear(1)] };
    let mut card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 2 });
    (card.steering, card.temperature) = (Some(SteeringConfig { auxiliary: 1 }), Some(300.0));
    let mut flow = CouplingFlow::<f32>::new(card).unwrap();
    flow.initialise(1);
    flow.to_bytes().unwrap()
}

const FEATURES: [usize; 3] = [0, 1, 1];
const ENERGY: EnergyConfig = EnergyConfig { units_per_nm: 10.0, data_time: 0.0, trust: Trust::FULL };

fn stream() -> Stream {
    Stream::new(1, StreamId::Initialise, 0, 0)
}

fn features() -> Vec<Vec<usize>> {
    FEATURES.iter().map(|&k| vec![k]).collect()
}

fn flow(divergence: Divergence, solver: Method) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times: [1.0, 0.0],
        units_per_nm: 10.0,
        stereocentres: vec![],
        prior: Prior::MeanFree,
        divergence,
        solver,
    }
}

fn egnn_flow() -> Vec<u8> {
    let config = EgnnConfig { features: features(), n_features: 2, n_layers: 2, n_hidden: 4, coordinate_range: 3.0 };
    let network = Egnn::new(config.clone()).expect("a valid network");
    let flow = flow(Divergence::Hutchinson { probes: 1 }, Method::Rk4 { steps: 3 });
    let card = ModelCard::of_cartesian(egnn_flow::Config { network: config, flow }, 3 * FEATURES.len());
    let parameters: Vec<f32> = network.layout().initialise(&mut stream(), |_, _| None);
    egnn_flow::format::to_bytes(&card, &network, &parameters).expect("it can be written")
}

fn gvp_config() -> GvpConfig {
    GvpConfig {
        features: features(),
        n_features: 2,
        n_layers: 1,
        n_scalars: 4,
        n_vectors: 2,
        rbf_max: 6.0,
        rbf_count: 3,
        message_norm: 2.0,
        coordinate_range: 3.0,
    }
}

fn gvp_flow() -> Vec<u8> {
    let flow = flow(Divergence::Exact, Method::Euler { steps: 3 });
    let card = ModelCard::of_cartesian(gvp_flow::Config { network: gvp_config(), flow }, 3 * FEATURES.len());
    GvpField::<f32>::random(gvp_config(), 1).and_then(|field| field.to_bytes(&card)).expect("it can be written")
}

fn of_energy<N: Network>(model: ModelConfig, network: &N, parameters: &[f32]) -> Vec<u8> {
    let card = ModelCard::of_cartesian(model, network.dimension());
    serialize(&card, &network.layout().write(parameters)).expect("it can be written")
}

fn gvp_ebm() -> Vec<u8> {
    let network = GvpEnergy::new(gvp_config()).expect("a valid network");
    let model = ModelConfig::GvpEbm(gvp_ebm::Config { network: gvp_config(), energy: ENERGY });
    of_energy(model, &network, &network.initialise::<f32>(&mut stream()))
}

pub fn graphormer_ebm(width: usize, heads: usize) -> Vec<u8> {
    let config = GraphormerConfig {
        version: Version::Boltznce,
        types: FEATURES.to_vec(),
        n_types: 2,
        n_layers: 1,
        blocks: 1,
        width,
        feed_forward: width,
        heads,
        kernels: 3,
    };
    let network = Graphormer::new(config.clone()).expect("a valid network");
    let model = ModelConfig::GraphormerEbm(graphormer_ebm::Config { network: config, energy: ENERGY });
    of_energy(model, &network, &network.initial::<f32>(6.0, 1))
}

fn invariant_ebm() -> Vec<u8> {
    let config = InvariantConfig {
        atoms: 4,
        volumes: vec![[[0, 1], [0, 2], [0, 3]]],
        prochiral: vec![Stereocentre { centre: 0, neighbours: [1, 2, 3], positive: true }],
        inputs: 6,
        interpolant: Interpolant::Trigonometric,
        width: 4,
        layers: 1,
    };
    let network = InvariantNetwork::new(config.clone()).expect("a valid network");
    let mut noise = stream();
    let frames: Vec<f64> = (0..120).map(|_| noise.normal()).collect();
    let whitening = Whitening::of(&network, &frames).expect("frames that vary");
    let model = ModelConfig::InvariantEbm(invariant_ebm::Config { network: config, energy: ENERGY });
    of_energy(model, &network, &network.initialise::<f32>(&whitening, &mut noise))
}

fn mlp_ebm() -> Vec<u8> {
    let config = MlpConfig { dimension: 2, width: 4, layers: 1 };
    let network = MlpNetwork::new(config).expect("a valid network");
    let model = ModelConfig::MlpEbm(mlp_ebm::Config { network: config, energy: ENERGY });
    of_energy(model, &network, &network.initialise::<f32>(&mut stream()))
}

fn tarflow() -> Vec<u8> {
    let network = TarFlowConfig { tokens: 3, token_size: 3, channels: 4, blocks: 2, layers: 1, heads: 2, expansion: 2 };
    let mut config = tarflow::format::config(network.clone(), 6.0);
    // of any hand: there are too few atoms for one
    config.stereocentres = vec![Stereocentre { centre: 0, neighbours: [1; 3], positive: false }];
    let network = TarNetwork::new(network).unwrap();
    let parameters: Vec<f32> = network.initial(1);
    let card = ModelCard::of_cartesian(config, 3 * FEATURES.len());
    tarflow::format::to_bytes(&card, &network, &parameters).unwrap()
}

/// Prose for glycine.
fn transferable_tarflow() -> Vec<u8> {
    let names = ["N", "H", "H2", "H3", "CA", "HA2", "HA3", "C", "O", "OXT"];
    let topology = Topology {
        names: names.map(String::from).to_vec(),
        elements: names.map(|name| name[..1].to_string()).to_vec(),
        residues: vec!["GLY1".into(); names.len()],
        bonds: vec![],
    };
    let embedding = EmbeddingConfig { atom_types: 55, residue_types: 21, part: 4, hidden: 4, width: 4, base: 1000.0 };
    let orders = ["n2c_backbone-first_standard", "n2c_residue-by-residue_variant_flip"];
    let network = PeptideConfig {
        channels: 4,
        blocks: 2,
        layers: 1,
        heads: 2,
        expansion: 2,
        orders: orders.map(|order| order.parse().unwrap()).to_vec(),
        most_atoms: Some(12),
        embedding,
        lookahead: true,
        qk_norms: true,
        adaptive: true,
        transition: true,
    };
    let config = transferable::Config {
        network: network.clone(),
        units_per_nm: 3.0,
        noisy_centroid: true,
        stereocentres: vec![],
    };
    let network = TarNetwork::of_peptide(&network, &topology).unwrap();
    let parameters: Vec<f32> = network.initial(1);
    let card = ModelCard::of_cartesian(config, 3 * topology.n_atoms());
    let card = ModelCard { topology: Some(topology), ..card };
    tarflow::format::to_bytes(&card, &network, &parameters).unwrap()
}
