//! `--kind tarflow`.

use super::options::{check_options, lacks, positive};
use super::{transferable, Convert};
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, TarNetwork};
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that shows a TarFlow.
const MARK: &str = "blocks.0.pos_embed";
const WHAT: &str = "single-system TarFlow of transferable-samplers";
/// Columns of an attention head in all published models.
pub const HEAD_SIZE: u64 = 64;

impl Convert {
    pub(super) fn tarflow(&self) -> Result<()> {
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        if tensors.contains_key(transferable::MARK) {
            let reason = "a transferable TarFlow or Prose; give --kind transferable-tarflow or prose, and --topology";
            return Err(Error::file(&self.checkpoint, reason));
        }
        let options = self.options(metadata.get("arch"))?;
        let std_given = options.get("std").is_some();
        self.require(lacks(&[(
            std_given,
            "std: standard deviation of the training data in nm after removal of the centroid, by which it was divided",
        )]))?;
        let as_tarflow = |e: Error| Error::file(&self.checkpoint, format!("as a {WHAT}: {e}"));
        let head_size = options.get("head_dim").and_then(Value::as_u64).unwrap_or(HEAD_SIZE);
        let (network, tensors) = format::of_checkpoint(tensors, head_size as usize).map_err(as_tarflow)?;
        check_options(
            &options,
            &[
                ("in_channels", json!(network.token_size)),
                ("img_size", json!(network.tokens * network.token_size)),
                ("channels", json!(network.channels)),
                ("num_blocks", json!(network.blocks)),
                ("layers_per_block", json!(network.layers)),
                ("expansion", json!(network.expansion)),
                ("patch_size", json!(1)),
                ("nvp", json!(true)),
            ],
        )
        .map_err(as_tarflow)?;
        let built = TarNetwork::new(network.clone()).map_err(as_tarflow)?;
        let parameters: Vec<f64> = built.layout().read(&tensors).map_err(as_tarflow)?;
        let (coordinates, topology) = (built.dimension(), self.topology()?.map(|(topology, _)| topology));
        if let Some(topology) = topology.as_ref().filter(|t| 3 * t.n_atoms() != coordinates) {
            let (atoms, of_model) = (topology.n_atoms(), coordinates / 3);
            return Err(Error::invalid(format!("the topology has {atoms} atoms, the model {of_model}")));
        }
        let mut config = format::config(network, 1.0 / positive(&options, "std")?);
        if options.get("com_augmentation") == Some(&json!(false)) {
            config.centroid = None;
        }
        let mut card = ModelCard::of_cartesian(ModelConfig::Tarflow(config), coordinates / 3);
        card.topology = topology;
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        self.save(&card, built.layout(), &parameters)
    }
}
