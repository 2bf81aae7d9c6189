//! Model file, with the tensor names of ECNF checkpoints of transferable-samplers.

use super::{Config, Egnn, EgnnConfig, EgnnFlow};
use crate::error::{Error, Result};
use crate::io::model_file::{self, ModelFile, Tensor};
use crate::models::card::ModelCard;
use crate::models::continuous::ContinuousFlow;
use crate::models::network::{Evaluator, Network};
use crate::nn::Real;
use std::collections::BTreeMap;

impl<R: Real> EgnnFlow<R> {
    /// Reads the flow from a model file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<EgnnFlow<R>> {
        let Config { network, flow } = file.config()?;
        let network = Egnn::new(network.clone())?;
        let parameters = network.layout().read(&file.tensors)?;
        ContinuousFlow::new(Evaluator::new(network, parameters), flow.clone(), file.card.clone(), file.hash.clone())
    }
}

/// Bytes of a model file. Errors: those of serialisation.
pub fn to_bytes<R: Real>(card: &ModelCard, network: &Egnn, parameters: &[R]) -> Result<Vec<u8>> {
    model_file::serialize(card, &network.layout().write(parameters))
}

/// Configuration of an ECNF checkpoint, from the shapes of its tensors, and the tensors that the velocity uses (it does
/// not use the reference's last embedding).
///
/// Errors: a checkpoint of another architecture.
pub fn of_ecnf(
    tensors: BTreeMap<String, Tensor>,
    features: Vec<Vec<usize>>,
    coordinate_range: f64,
) -> Result<(EgnnConfig, BTreeMap<String, Tensor>)> {
    const EMBEDDING: &str = "egnn.embedding.weight";
    let Some([n_hidden, width]) = tensors.get(EMBEDDING).and_then(|t| <[usize; 2]>::try_from(t.shape.as_slice()).ok())
    else {
        return Err(Error::invalid(format!("not an ECNF checkpoint: matrix {EMBEDDING} is missing")));
    };
    let is_layer = |l: usize| tensors.contains_key(&format!("egnn.gcl_{l}.edge_mlp.0.weight"));
    let n_layers = (0..).take_while(|&l| is_layer(l)).count();
    let config = EgnnConfig { features, n_features: width.saturating_sub(1), n_layers, n_hidden, coordinate_range };
    let used = tensors.into_iter().filter(|(name, _)| !name.starts_with("egnn.embedding_out.")).collect();
    Ok((config, used))
}
