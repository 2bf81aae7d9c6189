//! Model file, with the tensor names of BoltzNCE's checkpoints, without those that its network never uses.

use super::{Config, Graphormer, GraphormerConfig, GraphormerEbm, Version};
use crate::error::{Error, Result};
use crate::io::model_file::{ModelFile, Tensor};
use crate::models::energy::EnergyModel;
use crate::nn::Real;
use std::collections::BTreeMap;

impl<R: Real> GraphormerEbm<R> {
    /// Reads the model from a file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<GraphormerEbm<R>> {
        let Config { network, energy } = file.config()?;
        EnergyModel::of_network(Graphormer::new(network.clone())?, *energy, file)
    }
}

/// Whether a tensor belongs to parts of BoltzNCE's module that its forward pass does not use.
fn is_unused(name: &str) -> bool {
    name.contains(".bias_updates.") || (name.contains(".layers.") && name.contains(".bias_proj."))
}

/// Configuration of a BoltzNCE checkpoint, from the shapes of its tensors, and the tensors that its network uses.
/// `types` are the atoms' classes from 0; `heads` and `blocks` cannot be inferred from all tensors' shapes.
///
/// Errors: a checkpoint of another architecture.
pub fn of_boltznce(
    tensors: BTreeMap<String, Tensor>,
    types: Vec<usize>,
    blocks: usize,
) -> Result<(GraphormerConfig, BTreeMap<String, Tensor>)> {
    let shape = |name: &str| -> Result<[usize; 2]> {
        let tensor = tensors.get(name).ok_or_else(|| {
            Error::invalid(format!(
                "not a Graphormer EBM of BoltzNCE (potential_type: graphormer): tensor {name} is missing"
            ))
        })?;
        match tensor.shape[..] {
            [rows, columns] => Ok([rows, columns]),
            _ => Err(Error::invalid(format!("tensor {name} has shape {:?}, expected a matrix", tensor.shape))),
        }
    };
    let [rows, width] = shape("graphormer.atom_encoder.weight")?;
    let [feed_forward, _] = shape("graphormer.layers.0.fc1.weight")?;
    let [heads, kernels] = shape("graphormer.bias_proj.layer2.weight")?;
    let is_layer = |l: usize| tensors.contains_key(&format!("graphormer.layers.{l}.fc1.weight"));
    let n_layers = (0..).take_while(|&l| is_layer(l)).count();
    let config = GraphormerConfig {
        version: Version::Boltznce,
        types,
        n_types: rows.saturating_sub(1),
        n_layers,
        blocks,
        width,
        feed_forward,
        heads,
        kernels,
    };
    let used = tensors.into_iter().filter(|(name, _)| !is_unused(name)).collect();
    Ok((config, used))
}
