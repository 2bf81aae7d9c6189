//! A single file with several generators: tensors under `modes.i.`, cards in the configuration.

use super::{config_of, Config, ModeGenerators};
use crate::density::Exactness;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::model_file::{serialize, Data, ModelFile};
use crate::models::card::{ModelCard, ModelConfig, FORMAT};
use crate::models::{build_as, Model};
use crate::nn::Real;
use std::collections::BTreeMap;
use std::sync::Arc;

fn prefix(mode: usize) -> String {
    format!("modes.{mode}.")
}

impl ModeGenerators {
    /// Reads all generators from a model file. Errors name the mode.
    pub fn from_file<R: Real>(file: &ModelFile, device: &Device) -> Result<ModeGenerators> {
        let config = config_of(&file.card)?;
        let known = |name: &String| (0..config.modes.len()).any(|i| name.starts_with(&prefix(i)));
        if let Some(name) = file.tensors.keys().find(|name| !known(name)) {
            return Err(file.error(format!("tensor {name} does not belong to a mode")));
        }
        let generator = |(i, mode): (usize, &super::ModeConfig)| -> Result<Arc<dyn Model>> {
            if let ModelConfig::Modes(_) = mode.card.model {
                return Err(file.error(format!(
                    "the generator of mode `{}` is itself a model of modes, which is not supported",
                    mode.region.name
                )));
            }
            let start = prefix(i);
            let own =
                |(name, tensor): (&String, &_)| Some((name.strip_prefix(&start)?.to_string(), Clone::clone(tensor)));
            let part = ModelFile {
                name: format!("{} (mode `{}`)", file.name, mode.region.name),
                hash: file.hash.clone(),
                card: mode.card.clone(),
                tensors: file.tensors.iter().filter_map(own).collect(),
            };
            part.card.check().map_err(|reason| part.error(reason))?;
            build_as::<R>(&part, device)
        };
        let generators = config.modes.iter().enumerate().map(generator).collect::<Result<Vec<_>>>()?;
        ModeGenerators::new(file.card.clone(), file.hash.clone(), generators)
    }
}

/// Bytes of a model file of modes, from the files of their generators, in the order of the configuration, whose cards
/// are those of the files. Errors: no generators, generators that do not fit together.
pub fn bundle(config: Config, files: &[ModelFile]) -> Result<Vec<u8>> {
    let Some(first) = files.first() else {
        return Err(Error::invalid("a model of modes requires at least one generator"));
    };
    let card = ModelCard {
        format: FORMAT,
        coordinates: first.card.coordinates.clone(),
        exactness: Exactness::Exact,
        temperature: first.card.temperature,
        steering: None,
        target: first.card.target.clone(),
        topology: first.card.topology.clone(),
        provenance: BTreeMap::new(),
        model: ModelConfig::Modes(config),
    };
    let mut tensors = BTreeMap::new();
    for (i, file) in files.iter().enumerate() {
        for (name, tensor) in &file.tensors {
            tensors.insert(format!("{}{name}", prefix(i)), (tensor.shape.clone(), stored(&tensor.data)));
        }
    }
    serialize(&card, &tensors)
}

/// Stores as f32 if that is exact.
fn stored(data: &[f64]) -> Data {
    let single: Vec<f32> = data.iter().map(|&v| v as f32).collect();
    match single.iter().zip(data).all(|(&single, &v)| f64::from(single) == v) {
        true => Data::F32(single),
        false => Data::F64(data.to_vec()),
    }
}
