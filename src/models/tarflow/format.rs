//! Tensors of the model file: named as in TarFlow checkpoints of transferable-samplers.

use super::{Config, TarFlow, TarFlowConfig, TarNetwork};
use crate::error::{Error, Result};
use crate::io::model_file::{self, ModelFile, Tensor};
use crate::models::card::{ModelCard, ModelConfig};
use crate::models::network::Trainable;
use crate::nn::Real;
use std::collections::BTreeMap;

impl<R: Real> TarFlow<R> {
    /// Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<TarFlow<R>> {
        let ModelConfig::Tarflow(config) = &file.card.model else {
            return Err(file.error("not a TarFlow"));
        };
        let network = TarNetwork::new(config.network.clone())?;
        let parameters = network.layout().read(&file.tensors)?;
        TarFlow::new(parameters, config.clone(), file.card.clone(), file.hash.clone())
    }
}

/// The bytes of a model file.
pub fn to_bytes<R: Real>(card: &ModelCard, network: &TarNetwork, parameters: &[R]) -> Result<Vec<u8>> {
    model_file::serialize(card, &network.layout().write(parameters))
}

/// Configuration of a single-system TarFlow checkpoint by the shapes of its tensors, and the tensors that belong to it: masks are
/// left out, and the second layer of the perceptrons gets one of its two names.
///
/// Errors: a checkpoint of another architecture.
pub fn of_checkpoint(
    tensors: BTreeMap<String, Tensor>,
    head_size: usize,
) -> Result<(TarFlowConfig, BTreeMap<String, Tensor>)> {
    let used: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter(|(name, _)| !name.ends_with(".attn_mask"))
        .map(|(name, tensor)| (name.replace(".mlp.main.2.", ".mlp.main.3."), tensor))
        .collect();
    let shape = |name: &str| {
        let found = used.get(name).and_then(|t| <[usize; 2]>::try_from(t.shape.as_slice()).ok());
        found.ok_or_else(|| Error::invalid(format!("no matrix {name}: not a single-system TarFlow checkpoint")))
    };
    let [tokens, channels] = shape("blocks.0.pos_embed")?;
    let [_, token_size] = shape("blocks.0.proj_in.weight")?;
    let [hidden, _] = shape("blocks.0.attn_blocks.0.mlp.main.0.weight")?;
    if channels == 0 || !channels.is_multiple_of(head_size.max(1)) || !hidden.is_multiple_of(channels) {
        return Err(Error::invalid(format!("{channels} channels, heads of {head_size}, {hidden} hidden columns")));
    }
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&k| used.contains_key(&name(k))).count();
    let blocks = count(&|b| format!("blocks.{b}.pos_embed"));
    let layers = count(&|l| format!("blocks.0.attn_blocks.{l}.attention.qkv.weight"));
    let heads = channels / head_size.max(1);
    let config = TarFlowConfig { tokens, token_size, channels, blocks, layers, heads, expansion: hidden / channels };
    Ok((config, used))
}

/// A configuration for data in these units, with the paper's noise of the centroid.
pub fn config(network: TarFlowConfig, units_per_nm: f64) -> Config {
    let atoms = (network.tokens * network.token_size / 3) as f64;
    Config { network, units_per_nm, centroid: Some(1.0 / atoms.sqrt()) }
}
