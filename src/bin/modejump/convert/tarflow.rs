//! `--kind tarflow`.

use super::options::{check_and_note, head_size, lacks, noisy_centroid, positive};
use super::{transferable, Convert};
use modejump::coordinates::chirality::stereocentres;
use modejump::models::card::ModelCard;
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, TarFlowConfig, TarNetwork};
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that identifies a TarFlow.
const MARK: &str = "blocks.0.pos_embed";
const WHAT: &str = "single-system TarFlow of transferable-samplers";

/// Options that the tensors do not show, and those that do not affect the density.
const READ: &[&str] = &["std", "head_dim", "com_augmentation", "kind", "num_params"];

/// Options that are fixed by the tensors or the implementation.
fn said(network: &TarFlowConfig) -> Vec<(&'static str, Value)> {
    vec![
        ("in_channels", json!(network.token_size)),
        ("token_dim", json!(network.token_size)),
        ("num_tokens", json!(network.tokens)),
        ("img_size", json!(network.tokens * network.token_size)),
        ("num_atoms", json!(network.tokens * network.token_size / 3)),
        ("channels", json!(network.channels)),
        ("num_blocks", json!(network.blocks)),
        ("layers_per_block", json!(network.layers)),
        ("expansion", json!(network.expansion)),
        ("patch_size", json!(1)),
        ("nvp", json!(true)),
        ("layernorm_eps", json!(1e-5)),
        ("gelu", json!("erf")),
    ]
}

impl Convert {
    pub(super) fn tarflow(&self) -> Result<()> {
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        if tensors.contains_key(transferable::MARK) {
            let reason = "a transferable TarFlow or Prose; use --kind transferable-tarflow or prose, and --topology";
            return Err(Error::file(&self.checkpoint, reason));
        }
        let options = self.options(metadata.get("arch"))?;
        let std_given = options.get("std").is_some();
        self.require(lacks(&[(
            std_given,
            "std: standard deviation of the training data in nm after removal of the centroid, by which it was divided",
        )]))?;
        let as_tarflow = |e: Error| Error::file(&self.checkpoint, format!("could not be read as a {WHAT}: {e}"));
        if options.get("permutation_keys").is_some() {
            let reason = "permutation_keys: the blocks of this kind take the atoms in one order and its reverse; a TarFlow with permutations \
                          requires the residues of its atoms (use --kind transferable-tarflow)";
            return Err(as_tarflow(Error::invalid(reason)));
        }
        if tensors.contains_key("blocks.0.attn_blocks.0.mlp.main.2.weight") {
            eprintln!(
                "note: mlp.main.2: assuming a TarFlow whose blocks take the atoms alternately in one order and its reverse; one of \
                 nn/tarflow/tarflow.py, with permutation_keys, has the same tensors but a different density"
            );
        }
        let noisy_centroid = noisy_centroid(&options)?;
        let (network, tensors) = format::of_checkpoint(tensors, head_size(&options)?).map_err(as_tarflow)?;
        let said = said(&network);
        check_and_note(&options, &said, &options, READ).map_err(as_tarflow)?;
        let built = TarNetwork::new(network.clone()).map_err(as_tarflow)?;
        let parameters: Vec<f64> = built.layout().read(&tensors).map_err(as_tarflow)?;
        let (coordinates, topology) = (built.dimension(), self.topology()?);
        if let Some(topology) =
            topology.as_ref().map(|(topology, _)| topology).filter(|t| 3 * t.n_atoms() != coordinates)
        {
            let (atoms, of_model) = (topology.n_atoms(), coordinates / 3);
            return Err(Error::invalid(format!("the topology has {atoms} atoms, but the model has {of_model}")));
        }
        let mut config = format::config(network, 1.0 / positive(&options, "std")?);
        if !noisy_centroid {
            config.centroid = None;
            eprintln!(
                "note: without com_augmentation the density includes the position: if the molecule moves freely, proposals are rejected \
                 unless it is at the origin"
            );
        }
        config.stereocentres = topology.as_ref().map_or(Vec::new(), |(topology, x)| stereocentres(topology, x));
        let mut card = ModelCard::of_cartesian(config, coordinates);
        card.topology = topology.map(|(topology, _)| topology);
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        self.save(&card, built.layout(), &parameters)?;
        self.note_hands();
        Ok(())
    }
}
