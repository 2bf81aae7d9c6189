//! `--kind transferable-tarflow` and `--kind prose`: one checkpoint for all peptides, bound to the topology of one of
//! them.

use super::options::{check_and_note, head_size, lacks, noisy_centroid, note_unread, positive};
use super::Convert;
use modejump::coordinates::chirality::stereocentres;
use modejump::coordinates::AtomOrder;
use modejump::io::model_file;
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::network::Trainable;
use modejump::models::tarflow::format::{of_transferable_checkpoint, Unsaid};
use modejump::models::tarflow::transferable::{Config, RESIDUE_BASE};
use modejump::models::tarflow::{PeptideConfig, TarNetwork};
use modejump::models::Precision;
use modejump::{Error, Result};
use serde_json::{json, Value};

/// The tensor that identifies a transferable TarFlow.
pub const MARK: &str = "cond_embed.atom_embed.weight";
const WHAT: &str = "transferable TarFlow or Prose of transferable-samplers";
/// Options that the tensors do not show, and those that do not affect the density.
const READ: &[&str] = &[
    "std",
    "head_dim",
    "com_augmentation",
    "permutation_keys",
    "cond",
    "kind",
    "num_params",
    "pad_to",
    "max_num_tokens",
];

impl Convert {
    pub(super) fn transferable(&self) -> Result<()> {
        if let Some(bytes) = self.own_model()? {
            return self.bind(&bytes);
        }
        let (tensors, metadata, bytes) = self.network_tensors(MARK, WHAT)?;
        let options = self.options(metadata.get("arch"))?;
        let topology = self.topology()?;
        self.require(lacks(&[(
            options.get("std").is_some(),
            "std: standard deviation in nm by which the training data was divided (0.35 for Prose up to eight residues; or use --std)",
        )]))?;
        let Some((topology, x)) = topology else {
            let reason = "use --topology FILE.pdb to choose the peptide; the model file can be bound to others later";
            return Err(Error::invalid(reason));
        };
        let as_transferable = |e: Error| Error::file(&self.checkpoint, format!("could not be read as a {WHAT}: {e}"));
        let hidden = tensors.get(MARK).and_then(|tensor| tensor.shape.last().copied());
        check_cond(&options, hidden).map_err(as_transferable)?;
        let (network, tensors) = of_transferable_checkpoint(tensors, &unsaid(&options)?).map_err(as_transferable)?;
        let said = said(&network);
        check_and_note(&options, &said, &options, READ).map_err(as_transferable)?;
        if self.kind == "prose" && !network.adaptive {
            let message = "no adaptive layer norms, so this is not Prose; use --kind transferable-tarflow";
            return Err(as_transferable(Error::invalid(message)));
        }
        let built = TarNetwork::of_peptide(&network, &topology).map_err(|e| self.of_topology(e))?;
        let parameters: Vec<f64> = built.layout().read(&tensors).map_err(as_transferable)?;
        drop(tensors);
        let config = Config {
            network,
            units_per_nm: 1.0 / positive(&options, "std")?,
            noisy_centroid: noisy_centroid(&options)?,
            stereocentres: stereocentres(&topology, &x),
        };
        let card = ModelCard::of_cartesian(config, 3 * topology.n_atoms());
        let mut card = ModelCard { topology: Some(topology), ..card };
        self.complete(&mut card, &bytes);
        self.origin(&mut card, &metadata);
        self.save(&card, built.layout(), &parameters)
    }

    /// The bytes of the checkpoint if it is a model file of this program.
    fn own_model(&self) -> Result<Option<Vec<u8>>> {
        let bytes = self.bytes()?;
        let is_own = safetensors_metadata(&bytes).is_some_and(|metadata| metadata.get(model_file::KEY).is_some());
        Ok(is_own.then_some(bytes))
    }

    /// Binds a model file to the peptide of --topology; the weights are kept, to the last bit.
    ///
    /// Errors: also options that apply only to checkpoints of other programs.
    fn bind(&self, bytes: &[u8]) -> Result<()> {
        let given = [
            ("--config", self.config.is_some()),
            ("--std", self.std.is_some()),
            ("--prefix", self.prefix.is_some()),
            ("--raw-weights", self.raw_weights),
        ];
        if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
            let reason = format!("already a modejump model file: remove {option}, or convert the original checkpoint");
            return Err(Error::file(&self.checkpoint, reason));
        }
        let name = self.checkpoint.display().to_string();
        let file = model_file::read(&name, bytes)?;
        let ModelConfig::TransferableTarflow(config) = &file.card.model else {
            let kind = file.card.model.kind();
            let reason = format!("a model of kind {kind} cannot be bound to another molecule");
            return Err(Error::file(&self.checkpoint, reason));
        };
        let Some((topology, x)) = self.topology()? else {
            return Err(Error::invalid("use --topology FILE.pdb to choose the peptide to which the model is bound"));
        };
        TarNetwork::of_peptide(&config.network, &topology).map_err(|e| self.of_topology(e))?;
        let model =
            ModelConfig::TransferableTarflow(Config { stereocentres: stereocentres(&topology, &x), ..config.clone() });
        let mut card = ModelCard { model, ..file.card.of_peptide(topology) };
        card.temperature = self.temperature.or(card.temperature);
        let source = self.checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        card.provenance.insert("bound_from".into(), format!("{source} ({})", file.hash));
        drop(file.tensors);
        let bytes = model_file::with_card(&name, bytes, &card)?;
        self.write(&bytes, Precision::F32)
    }

    /// Adds the file of the topology to an error about what the model cannot express.
    fn of_topology(&self, error: Error) -> Error {
        match &self.topology {
            Some(path) => Error::file(path, error.to_string()),
            None => error,
        }
    }
}

/// Metadata in the header of a safetensors file, read without its tensors.
fn safetensors_metadata(bytes: &[u8]) -> Option<Value> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    serde_json::from_slice::<Value>(header).ok()?.get("__metadata__").cloned()
}

/// Errors: the sizes of the embedding in `cond` differ from those of the tensors.
fn check_cond(options: &Value, hidden: Option<usize>) -> Result<()> {
    let Some(cond) = options.get("cond").filter(|cond| !cond.is_null()) else { return Ok(()) };
    let Some(cond) = cond.as_object() else { return Err(Error::invalid("cond: expected a JSON object")) };
    match cond.get("hidden_dim").filter(|given| given.as_u64() != hidden.map(|hidden| hidden as u64)) {
        Some(given) => Err(Error::invalid(format!(
            "cond.hidden_dim = {given}, but the tensors have {}",
            hidden.unwrap_or_default()
        ))),
        None => Ok(()),
    }
}

/// Settings that the tensors do not show, from the options.
fn unsaid(options: &Value) -> Result<Unsaid> {
    let orders = match options.get("permutation_keys") {
        None => {
            eprintln!(
                "note: assuming the atom orders of the published models; set `permutation_keys` in --config if they differ"
            );
            None
        }
        Some(keys) => Some(
            serde_json::from_value::<Vec<AtomOrder>>(keys.clone())
                .map_err(|e| Error::invalid(format!("permutation_keys: {e}")))?,
        ),
    };
    let cond = options.get("cond").unwrap_or(&Value::Null);
    let base = match cond.get("sinusoid_div_value") {
        Some(_) => positive(cond, "sinusoid_div_value")?,
        None => RESIDUE_BASE,
    };
    note_unread(cond, &["hidden_dim", "output_dim", "sinusoid_div_value"]);
    Ok(Unsaid { head_size: head_size(options)?, orders, base })
}

/// Options that are fixed by the tensors or the implementation.
fn said(network: &PeptideConfig) -> Vec<(&'static str, Value)> {
    vec![
        ("input_dimension", json!(3)),
        ("channels", json!(network.channels)),
        ("num_blocks", json!(network.blocks)),
        ("layers_per_block", json!(network.layers)),
        ("expansion", json!(network.expansion)),
        ("use_adapt_ln", json!(network.adaptive)),
        ("use_transition", json!(network.transition)),
        ("use_qkln", json!(network.qk_norms)),
        ("lookahead_conditioning", json!(network.lookahead)),
        ("pos_embed_type", json!("sinusoidal")),
        ("use_attn_pair_bias", json!(false)),
        ("nvp", json!(true)),
        ("layernorm_eps", json!(1e-5)),
        ("gelu", json!("erf")),
    ]
}
