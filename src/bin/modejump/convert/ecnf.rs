//! `--kind ecnf`.

use super::options::{check_and_note, check_topology, features, lacks, positive};
use super::Convert;
use modejump::coordinates::chirality::stereocentres;
use modejump::models::card::ModelCard;
use modejump::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::egnn_flow::{format, Config, Egnn};
use modejump::models::network::Network;
use modejump::ode::Method;
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that identifies an ECNF.
const MARK: &str = "egnn.embedding.weight";
const WHAT: &str = "ECNF of transferable-samplers";

impl Convert {
    pub(super) fn ecnf(&self) -> Result<()> {
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        let options = self.options(metadata.get("arch"))?;
        self.require(missing(&options))?;
        let topology = self.topology()?;

        let as_ecnf = |e: Error| Error::file(&self.checkpoint, format!("could not be read as an {WHAT}: {e}"));
        let features = features_of(&options).map_err(as_ecnf)?;
        // a range per layer needs the number of layers, which the tensors give
        let (mut network, tensors) = format::of_ecnf(tensors, features, 1.0).map_err(as_ecnf)?;
        network.coordinate_range = coordinate_range(&options, network.n_layers)?;
        check_and_note(
            &options,
            &[
                ("num_atoms", json!(network.features.len())),
                ("channels", json!(network.n_hidden)),
                ("num_layers", json!(network.n_layers)),
                ("num_types", json!(network.n_features)),
                ("attention", json!(true)),
                ("tanh", json!(true)),
                ("agg", json!("sum")),
                ("norm_diff", json!(true)),
                ("recurrent", json!(true)),
            ],
            &self.config_file()?,
            READ,
        )
        .map_err(as_ecnf)?;
        note_assumed(&options);
        let egnn = Egnn::new(network.clone()).map_err(as_ecnf)?;
        let parameters: Vec<f64> = egnn.layout().read(&tensors).map_err(as_ecnf)?;

        let mut flow = flow(scale(&options)?);
        if let Some((topology, x)) = &topology {
            check_topology(topology, &network.features, None)?;
            flow.stereocentres = stereocentres(topology, x);
        }
        let n_atoms = network.features.len();
        let mut card = ModelCard::of_cartesian(Config { network, flow }, 3 * n_atoms);
        card.topology = topology.map(|(topology, _)| topology);
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        self.save(&card, egnn.layout(), &parameters)?;
        self.note_hands();
        Ok(())
    }
}

/// Keys that --config may have, beside those with only one supported value and those that the tensors give as well.
const READ: &[&str] = &["features", "h_initial_types", "coords_range", "coords_range_layer", "std", "units_per_nm"];

/// Missing options that an ECNF needs, one line each.
fn missing(options: &Value) -> Vec<String> {
    let has = |key: &str| options.get(key).is_some();
    lacks(&[
        (
            has("features") || has("h_initial_types"),
            "features: for each atom, the list of its set features, without the time; or h_initial_types: for each atom, its class",
        ),
        (
            has("coords_range") || has("coords_range_layer"),
            "coords_range: range of an atom over all layers (15 in transferable-samplers); or coords_range_layer: range in one layer",
        ),
        (
            has("std") || has("units_per_nm"),
            "std: standard deviation of the training data in nm, by which it was divided; or units_per_nm = 1/std",
        ),
    ])
}

/// Options that no tensor shows, with the values of all published models.
const PUBLISHED: [(&str, &str); 3] = [("agg", "sum"), ("tanh", "true"), ("recurrent", "true")];

fn note_assumed(options: &Value) {
    let assumed: Vec<String> = PUBLISHED
        .iter()
        .filter(|(key, _)| options.get(key).is_none())
        .map(|(key, value)| format!("{key} = {value}"))
        .collect();
    if !assumed.is_empty() {
        eprintln!(
            "note: assuming {}, as in the published models: no other values are supported, and a network with others has a different density",
            assumed.join(", ")
        );
    }
}

/// Features of the atoms. Errors: `features` and `h_initial_types` differ.
fn features_of(options: &Value) -> Result<Vec<Vec<usize>>> {
    let types = features(options, "h_initial_types")?;
    if types.iter().flatten().any(|class| class.len() != 1) {
        return Err(Error::invalid("h_initial_types: expected one class per atom; lists belong in `features`"));
    }
    match (features(options, "features")?, types) {
        (Some(features), Some(types)) if features != types => {
            Err(Error::invalid("features and h_initial_types differ; use only one of them"))
        }
        (features, types) => Ok(features.or(types).unwrap_or_default()),
    }
}

/// Coordinate range over all layers. Errors: `coords_range` and `coords_range_layer` differ.
fn coordinate_range(options: &Value, n_layers: usize) -> Result<f64> {
    let layer = || Ok(positive(options, "coords_range_layer")? * n_layers as f64);
    match (options.get("coords_range"), options.get("coords_range_layer")) {
        (None, _) => layer(),
        (_, None) => positive(options, "coords_range"),
        _ => agree(("coords_range", positive(options, "coords_range")?), ("coords_range_layer × layers", layer()?)),
    }
}

/// Units of the network per nm. The data is divided by a standard deviation in nm.
fn scale(options: &Value) -> Result<f64> {
    let of_std = || Ok(1.0 / positive(options, "std")?);
    match (options.get("units_per_nm"), options.get("std")) {
        (None, _) => of_std(),
        (_, None) => positive(options, "units_per_nm"),
        _ => agree(("units_per_nm", positive(options, "units_per_nm")?), ("1/std", of_std()?)),
    }
}

/// The first of two numbers that must be equal.
fn agree((first, a): (&str, f64), (second, b): (&str, f64)) -> Result<f64> {
    match (a - b).abs() <= 1e-6 * b {
        true => Ok(a),
        false => Err(Error::invalid(format!("{first} is {a}, but {second} is {b}: remove the wrong one"))),
    }
}

/// Flow with x_t = (1 − t) x_prior + t x_data (Tong et al., TMLR 2024); the prior is the normal density of centred
/// configurations.
fn flow(units_per_nm: f64) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times: [0.0, 1.0],
        units_per_nm,
        stereocentres: Vec::new(),
        prior: Prior::default(),
        divergence: Divergence::default(),
        solver: Method::default(),
    }
}
