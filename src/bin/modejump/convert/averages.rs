//! Moving averages of a network's weights in checkpoints of transferable-samplers: `shadow_params.<i>`, where i is the
//! index of the parameter in the order in which its modules were created. The file does not state this order; it is
//! known for these networks.

use super::Tensors;
use modejump::io::model_file::Tensor;
use modejump::{Error, Result};
use std::collections::BTreeSet;

pub const SHADOW: &str = "shadow_params.";

/// Components of the tensors' names, in order of creation: of two siblings, the one listed first was created first; a
/// module's own parameters come before its submodules.
const MADE: &[&str] = &[
    "pos_embed",
    "pos_embed_scale",
    "cond_embed",
    "blocks",
    "atom_embed",
    "residue_embed",
    "proj_in",
    "proj_cond",
    "attn_blocks",
    "proj_out",
    "adaln",
    "attention",
    "mha",
    "mlp",
    "transition",
    "scale_output",
    "norm_cond",
    "to_gamma",
    "to_beta",
    "norm",
    "qkv",
    "proj",
    "q_layer_norm",
    "k_layer_norm",
    "main",
    "swish_linear",
    "linear_out",
    "to_adaln_zero_gamma",
    "egnn",
    "embedding",
    "embedding_out",
    "gcl",
    "edge_mlp",
    "node_mlp",
    "coord_mlp",
    "att_mlp",
    "weight",
    "bias",
];

/// Sort key of a parameter in creation order; numbers sort by value. None if a component of its name is not known.
fn made(name: &str) -> Option<Vec<usize>> {
    let words = name.split('.').flat_map(|part| match part.strip_prefix("gcl_") {
        Some(number) => vec!["gcl", number],
        None => vec![part],
    });
    words.map(|word| word.parse().ok().or_else(|| MADE.iter().position(|&known| known == word))).collect()
}

/// Removes the averages of the network with this prefix from a checkpoint's tensors and returns them by index. They are
/// those stored under the longest matching part of the prefix or, if the network is the `only` one, the only set of
/// averages that there is (saved beside it).
pub fn take(tensors: &mut Tensors, prefix: &str, only: bool) -> Vec<(usize, Tensor)> {
    let before = |name: &String| name.split_once(SHADOW).map(|(before, _)| before.to_string());
    let places: BTreeSet<String> = tensors.keys().filter_map(before).collect();
    let own = places.iter().filter(|place| prefix.starts_with(place.as_str())).max_by_key(|place| place.len());
    let Some(place) = own.or(places.first().filter(|_| only && places.len() == 1)) else { return Vec::new() };
    let number = |name: &str| name.strip_prefix(place)?.strip_prefix(SHADOW)?.parse::<usize>().ok();
    let names: Vec<String> = tensors.keys().filter(|name| number(name).is_some()).cloned().collect();
    let taken = names.into_iter().filter_map(|name| Some((number(&name)?, tensors.remove(&name)?)));
    let mut averages: Vec<(usize, Tensor)> = taken.collect();
    averages.sort_by_key(|(number, _)| *number);
    averages
}

/// Name of a tensor that is, by its name, a moving average in another layout (of NeMo, of latent diffusion, of PyTorch's
/// averaged models); none if the network with this prefix is itself one of averages.
pub fn in_another_layout<'a>(tensors: &'a Tensors, prefix: &str) -> Option<&'a String> {
    let is_average = |part: &str| {
        let begins = ["ema", "swa_", "averag", "shadow"].iter().any(|word| part.starts_with(word));
        begins || part.ends_with("_ema") || part == "swa"
    };
    let averaged = |name: &str| name.to_lowercase().split('.').any(is_average);
    tensors.keys().find(|name| averaged(name)).filter(|_| !averaged(prefix))
}

/// Names the averages by the network's tensors; none if the creation order of those is not known.
///
/// Errors: the number of averages differs from that of parameters, or an average has another shape than its parameter.
pub fn named(own: &Tensors, averages: Vec<(usize, Tensor)>) -> Result<Option<Tensors>> {
    let parameters = own.keys().filter(|name| !modejump::models::tarflow::format::is_buffer(name));
    let Some(mut names) = parameters.map(|name| Some((made(name)?, name))).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    names.sort();
    if averages.len() != names.len() || averages.iter().enumerate().any(|(i, (number, _))| i != *number) {
        let (found, needed) = (averages.len(), names.len());
        let message =
            format!("{found} moving averages `{SHADOW}<i>` for {needed} parameters; use --raw-weights to ignore them");
        return Err(Error::invalid(message));
    }
    let named = names.into_iter().zip(averages).map(|((_, name), (number, average))| {
        let shape = &own[name].shape;
        match average.shape == *shape {
            true => Ok((name.clone(), average)),
            false => {
                let found = &average.shape;
                let message = format!(
                    "{SHADOW}{number} has shape {found:?}, but {name} has {shape:?}; use --raw-weights to ignore moving averages"
                );
                Err(Error::invalid(message))
            }
        }
    });
    named.collect::<Result<Tensors>>().map(Some)
}
