//! Model file, with the tensor names of TarFlow checkpoints of transferable-samplers.

use super::transferable::{EmbeddingConfig, PeptideConfig};
use super::{no_topology, Config, TarFlow, TarFlowConfig, TarNetwork};
use crate::coordinates::AtomOrder;
use crate::error::{Error, Result};
use crate::io::model_file::{self, ModelFile, Tensor};
use crate::models::card::{ModelCard, ModelConfig};
use crate::models::network::Trainable;
use crate::nn::Real;
use std::collections::BTreeMap;

impl<R: Real> TarFlow<R> {
    /// Reads the flow from a model file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<TarFlow<R>> {
        let (card, hash) = (file.card.clone(), file.hash.clone());
        match &file.card.model {
            ModelConfig::Tarflow(config) => {
                let parameters = TarNetwork::new(config.network.clone())?.layout().read(&file.tensors)?;
                TarFlow::new(parameters, config.clone(), card, hash)
            }
            ModelConfig::TransferableTarflow(config) => {
                let topology = card.topology.as_ref().ok_or_else(no_topology)?;
                let network = TarNetwork::of_peptide(&config.network, topology)?;
                let parameters = network.layout().read(&file.tensors)?;
                TarFlow::of_peptide(parameters, config, card, hash)
            }
            _ => Err(file.error("not a TarFlow")),
        }
    }
}

/// Bytes of a model file. Errors: those of serialisation.
pub fn to_bytes<R: Real>(card: &ModelCard, network: &TarNetwork, parameters: &[R]) -> Result<Vec<u8>> {
    model_file::serialize(card, &network.layout().write(parameters))
}

type Tensors = BTreeMap<String, Tensor>;

/// Shape of the matrix with this name. Errors: there is none, so the checkpoint is not of this kind.
fn matrix(tensors: &Tensors, name: &str, what: &str) -> Result<[usize; 2]> {
    let found = tensors.get(name).and_then(|t| <[usize; 2]>::try_from(t.shape.as_slice()).ok());
    found.ok_or_else(|| Error::invalid(format!("not a {what} checkpoint: matrix {name} is missing")))
}

/// Number of consecutive tensors with the names made from 0, 1, ….
fn count(tensors: &Tensors, name: impl Fn(usize) -> String) -> usize {
    (0..).take_while(|&k| tensors.contains_key(&name(k))).count()
}

/// Number of heads, and expansion of the perceptrons.
fn heads_and_expansion(channels: usize, head_size: usize, hidden: usize) -> Result<(usize, usize)> {
    if channels == 0 || !channels.is_multiple_of(head_size.max(1)) || !hidden.is_multiple_of(channels) {
        return Err(Error::invalid(format!(
            "the head size {head_size} (`head_dim`) does not divide the {channels} channels, or the channels do not \
             divide the {hidden} hidden columns"
        )));
    }
    Ok((channels / head_size.max(1), hidden / channels))
}

/// Whether a tensor is not a parameter of the network: the reference stores its masks with the parameters.
pub fn is_buffer(name: &str) -> bool {
    name.ends_with(".attn_mask")
}

/// Errors: a mask of a checkpoint lets a token see later ones, which no invertible flow could.
fn require_causal(tensors: &Tensors) -> Result<()> {
    let is_causal = |mask: &Tensor| match mask.shape[..] {
        [rows, columns] => (0..rows * columns).all(|k| (mask.data[k] != 0.0) == (k % columns <= k / columns)),
        _ => false,
    };
    match tensors.iter().find(|(name, mask)| is_buffer(name) && !is_causal(mask)) {
        Some((name, _)) => Err(Error::invalid(format!(
            "tensor {name} is not a lower triangle of ones: only causal attention is supported"
        ))),
        None => Ok(()),
    }
}

/// Configuration of a single-system TarFlow checkpoint, from the shapes of its tensors, and the tensors that belong to
/// it: masks are left out, and the second layer of the perceptrons is renamed to one of its two names.
///
/// Errors: a checkpoint of another architecture.
pub fn of_checkpoint(tensors: Tensors, head_size: usize) -> Result<(TarFlowConfig, Tensors)> {
    const WHAT: &str = "single-system TarFlow";
    require_causal(&tensors)?;
    let used: Tensors = tensors
        .into_iter()
        .filter(|(name, _)| !is_buffer(name))
        .map(|(name, tensor)| (name.replace(".mlp.main.2.", ".mlp.main.3."), tensor))
        .collect();
    let [tokens, channels] = matrix(&used, "blocks.0.pos_embed", WHAT)?;
    let [_, token_size] = matrix(&used, "blocks.0.proj_in.weight", WHAT)?;
    let [hidden, _] = matrix(&used, "blocks.0.attn_blocks.0.mlp.main.0.weight", WHAT)?;
    let (heads, expansion) = heads_and_expansion(channels, head_size, hidden)?;
    let blocks = count(&used, |b| format!("blocks.{b}.pos_embed"));
    let layers = count(&used, |l| format!("blocks.0.attn_blocks.{l}.attention.qkv.weight"));
    let config = TarFlowConfig { tokens, token_size, channels, blocks, layers, heads, expansion };
    Ok((config, used))
}

/// Properties of a transferable checkpoint that its tensors do not determine.
#[derive(Clone, Debug)]
pub struct Unsaid {
    pub head_size: usize,
    /// Token orders; if None, those of all published models of this kind.
    pub orders: Option<Vec<AtomOrder>>,
    /// D of the sines of residues.
    pub base: f64,
}

/// (backbone first, variant, flip) of Prose's blocks.
const PROSE_ORDERS: [(bool, bool, bool); 8] = [
    (true, false, false),
    (false, false, true),
    (true, false, true),
    (false, false, false),
    (true, true, false),
    (false, true, true),
    (true, true, true),
    (false, true, false),
];

/// Token orders of the published models: Prose, with adaptive layer norms, or the transferable TarFlow.
pub fn published_orders(adaptive: bool) -> Vec<AtomOrder> {
    let order = |&(backbone_first, variant, flip): &_| AtomOrder { from_c: false, backbone_first, variant, flip };
    match adaptive {
        true => PROSE_ORDERS.iter().map(order).collect(),
        false => [(false, false, false), (false, false, true)].iter().map(order).collect(),
    }
}

/// Configuration of a transferable TarFlow or Prose checkpoint, from the shapes of its tensors, and the tensors that
/// belong to it.
///
/// Errors: a checkpoint of another architecture.
pub fn of_transferable_checkpoint(tensors: Tensors, unsaid: &Unsaid) -> Result<(PeptideConfig, Tensors)> {
    const WHAT: &str = "transferable TarFlow";
    require_causal(&tensors)?;
    let mask = tensors.get("blocks.0.attn_mask").and_then(|mask| mask.shape.first().copied());
    let used: Tensors = tensors.into_iter().filter(|(name, _)| !is_buffer(name)).collect();
    if used.contains_key("blocks.0.pos_embed") {
        let reason = "tensor blocks.0.pos_embed: learned positions (pos_embed_type = learned) are not supported, only \
                      sinusoidal ones";
        return Err(Error::invalid(reason));
    }
    let has = |name: &str| used.contains_key(name);
    let [channels, _] = matrix(&used, "blocks.0.proj_in.weight", WHAT)?;
    let [atom_types, part] = matrix(&used, "cond_embed.atom_embed.weight", WHAT)?;
    let [residue_types, _] = matrix(&used, "cond_embed.residue_embed.weight", WHAT)?;
    let [width, hidden_of_embedding] = matrix(&used, "cond_embed.mlp.2.weight", WHAT)?;
    let layer = |l: usize| format!("blocks.0.attn_blocks.{l}");
    let adaptive = has(&format!("{}.mha.adaln.to_beta.weight", layer(0)));
    let inner = if adaptive { ".mha.mha" } else { "" };
    let [hidden, _] = matrix(&used, &format!("{}{inner}.mlp.main.0.weight", layer(0)), WHAT)?;
    let (heads, expansion) = heads_and_expansion(channels, unsaid.head_size, hidden)?;
    let orders = unsaid.orders.clone().unwrap_or_else(|| published_orders(adaptive));
    let config = PeptideConfig {
        channels,
        blocks: count(&used, |b| format!("blocks.{b}.pos_embed_scale")),
        layers: count(&used, |l| format!("{}{inner}.attention.qkv.weight", layer(l))),
        heads,
        expansion,
        orders,
        most_atoms: mask,
        embedding: EmbeddingConfig {
            atom_types,
            residue_types,
            part,
            hidden: hidden_of_embedding,
            width,
            base: unsaid.base,
        },
        lookahead: has("blocks.0.proj_cond.2.weight"),
        qk_norms: has(&format!("{}{inner}.attention.q_layer_norm.weight", layer(0))),
        adaptive,
        transition: has(&format!("{}.transition.adaln.to_beta.weight", layer(0))),
    };
    Ok((config, used))
}

/// A configuration for data in these units, with the paper's centroid noise.
pub fn config(network: TarFlowConfig, units_per_nm: f64) -> Config {
    let atoms = (network.tokens * network.token_size / 3) as f64;
    Config { network, units_per_nm, centroid: Some(1.0 / atoms.sqrt()), stereocentres: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_other_attention_are_refused() {
        let mask = |data: Vec<f64>| Tensors::from([("blocks.0.attn_mask".into(), Tensor { shape: vec![2, 2], data })]);
        assert!(require_causal(&mask(vec![1.0, 0.0, 1.0, 1.0])).is_ok());
        let message = require_causal(&mask(vec![1.0; 4])).unwrap_err().to_string();
        assert!(message.contains("blocks.0.attn_mask") && message.contains("causal"), "{message}");
    }
}
