//! `--kind boltznce-graphormer`.

use super::boltznce::{AD2, AD2_ELEMENTS, NOTICE};
use super::options::{check_and_note, check_topology, features, lacks, units_per_nm, UNITS};
use super::Convert;
use modejump::models::card::ModelCard;
use modejump::models::energy::EnergyConfig;
use modejump::models::graphormer_ebm::{format, Config, Graphormer};
use modejump::models::network::Network;
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that identifies a Graphormer.
const MARK: &str = "graphormer.atom_encoder.weight";
const WHAT: &str = "Graphormer of BoltzNCE";
/// Time of the data: the energy at t = 0 is its log-density.
const DATA_TIME: f64 = 0.0;

impl Convert {
    pub(super) fn graphormer(&self) -> Result<()> {
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        let options = self.options(metadata.get("arch"))?;
        self.require(missing(&options))?;
        let topology = self.topology()?;

        let as_graphormer = |e: Error| Error::file(&self.checkpoint, format!("could not be read as a {WHAT}: {e}"));
        let (network, tensors) =
            format::of_boltznce(tensors, types(&options)?, blocks(&options)?).map_err(as_graphormer)?;
        check_and_note(
            &options,
            &[
                ("num_features", json!(network.n_types)),
                ("num_layers", json!(network.n_layers)),
                ("embed_dim", json!(network.width)),
                ("ffn_embed_dim", json!(network.feed_forward)),
                ("attention_heads", json!(network.heads)),
                ("num_kernel", json!(network.kernels)),
            ],
            &self.config_file()?,
            READ,
        )
        .map_err(as_graphormer)?;
        if let Some((topology, _)) = &topology {
            let classes: Vec<Vec<usize>> = network.types.iter().map(|&class| vec![class]).collect();
            check_topology(topology, &classes, (options["dataset"] == "ad2").then_some(AD2_ELEMENTS))?;
        }
        let graphormer = Graphormer::new(network.clone()).map_err(as_graphormer)?;
        let parameters: Vec<f64> = graphormer.layout().read(&tensors).map_err(as_graphormer)?;

        let energy =
            EnergyConfig { units_per_nm: units_per_nm(&options)?, data_time: DATA_TIME, trust: Default::default() };
        let n_atoms = network.types.len();
        let mut card = ModelCard::of_cartesian(Config { network, energy }, 3 * n_atoms);
        card.topology = topology.map(|(topology, _)| topology);
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        card.provenance.insert("notice".into(), NOTICE.into());
        self.save(&card, graphormer.layout(), &parameters)
    }
}

/// Keys that --config may have, beside those that the tensors give as well.
const READ: &[&str] = &["types", "dataset", "blocks", "units_per_nm", "coord_scale_per_nm", "units"];

/// Missing options that an energy needs, one line each.
fn missing(options: &Value) -> Vec<String> {
    lacks(&[
        (
            options.get("types").is_some() || options["dataset"] == "ad2",
            "types: for each atom, its class from 0; or dataset: \"ad2\" (alanine dipeptide, ACE CH3 first)",
        ),
        (options["blocks"].is_number(), "blocks: number of passes through all layers (1 in BoltzNCE)"),
        (options["units_per_nm"].is_number(), UNITS),
    ])
}

fn types(options: &Value) -> Result<Vec<usize>> {
    let Some(types) = features(options, "types")? else { return Ok(AD2.to_vec()) };
    let class = |features: &Vec<usize>| match features[..] {
        [class] => Ok(class),
        _ => Err(Error::invalid("types: expected one class per atom")),
    };
    types.iter().map(class).collect()
}

fn blocks(options: &Value) -> Result<usize> {
    let blocks = options["blocks"].as_u64().filter(|&b| b > 0).and_then(|b| usize::try_from(b).ok());
    blocks.ok_or_else(|| Error::invalid(format!("blocks: expected a positive integer, found {}", options["blocks"])))
}
