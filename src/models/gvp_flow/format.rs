//! Reading and writing, with BoltzNCE's tensor names (see [`super::layout`]); conversion of BoltzNCE's checkpoints.

use super::{Config, GvpField};
use crate::error::{Error, Result};
use crate::io::model_file::{serialize, Data, ModelFile};
use crate::io::write_atomically;
use crate::models::card::{ModelCard, ModelConfig};
use crate::models::continuous::ContinuousFlow;
use crate::nn::Real;
use std::collections::BTreeMap;
use std::path::Path;

impl<R: Real> GvpField<R> {
    /// The field of a model file. Errors name the tensor that is missing, superfluous, of another shape or not finite.
    pub fn from_file(file: &ModelFile, config: &Config) -> Result<GvpField<R>> {
        config.network.check()?;
        let layout = super::Layout::new(&config.network);
        file.only(&layout.entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>())?;
        let mut parameters = Vec::with_capacity(layout.n_parameters);
        for entry in &layout.entries {
            parameters.extend(file.tensor(&entry.name, &entry.shape)?.iter().map(|&v| R::from_f64(v)));
        }
        GvpField::new(config.network.clone(), parameters)
    }

    /// The bytes of the model file; parameters are stored as the type they have here.
    pub fn to_bytes(&self, card: &ModelCard) -> Result<Vec<u8>> {
        let store = |values: &[R]| match R::NAME {
            "f32" => Data::F32(values.iter().map(|v| v.to_f64() as f32).collect()),
            _ => Data::F64(values.iter().map(|v| v.to_f64()).collect()),
        };
        let tensor =
            |e: &super::layout::Entry| (e.name.clone(), (e.shape.clone(), store(&self.parameters[e.place.clone()])));
        serialize(card, &self.layout.entries.iter().map(tensor).collect::<BTreeMap<_, _>>())
    }

    /// Writes the model file; the file that was there is replaced only by a complete one.
    pub fn save(&self, card: &ModelCard, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.to_bytes(card)?)
    }
}

impl<R: Real> ContinuousFlow<GvpField<R>> {
    /// From a model file.
    pub fn from_file(file: &ModelFile) -> Result<ContinuousFlow<GvpField<R>>> {
        let ModelConfig::GvpFlow(config) = &file.card.model else {
            return Err(file.error("not a model of the kind gvp_flow"));
        };
        let field = GvpField::from_file(file, config)?;
        ContinuousFlow::new(field, config.flow.clone(), file.card.clone(), file.hash.clone())
    }
}

/// Checkpoints of BoltzNCE.
pub mod boltznce {
    use super::super::layout::Layout;
    use super::super::GvpConfig;
    use super::*;
    use crate::io::model_file::Tensor;
    use serde_json::Value;

    /// Tensors of a checkpoint by name.
    pub type Tensors = BTreeMap<String, Tensor>;

    /// What the tensors do not say, and what stands for it in the configuration.
    const NEEDED: [(&str, &str); 3] = [
        ("rbf_dmax", "centre of the last radial function, in units of the network (20 in BoltzNCE)"),
        ("message_norm", "divisor of the sum of messages (10 in BoltzNCE)"),
        ("coords_range", "largest step of an atom in a layer (10 in BoltzNCE)"),
    ];
    /// Options of BoltzNCE of which one value is implemented.
    const FIXED: [(&str, &str); 8] = [
        ("n_message_gvps", "1"),
        ("n_update_gvps", "1"),
        ("n_coord_gvps", "1"),
        ("use_dst_feats", "false"),
        ("vector_gating", "true"),
        ("n_cp_feats", "0"),
        ("self_conditioning", "false"),
        ("scalar_activation", "\"swish_beta\""),
    ];

    /// Entries of the configuration that a conversion needs and that are not there, a line each.
    pub fn missing(config: &Value) -> Vec<String> {
        let absent = NEEDED.iter().filter(|(key, _)| config[key].as_f64().is_none());
        absent.map(|(key, what)| format!("{key}: {what}")).collect()
    }

    /// The network of a checkpoint: sizes from the shapes of its tensors, the rest from `config` with BoltzNCE's names,
    /// `features` per atom from the caller.
    pub fn network(tensors: &Tensors, config: &Value, features: Vec<Vec<usize>>) -> Result<GvpConfig> {
        for (option, value) in FIXED {
            if let Some(found) = config.get(option).filter(|found| found.to_string() != value) {
                return Err(Error::invalid(format!("{option} = {found}; only {value} is implemented")));
            }
        }
        if let Some(what) = missing(config).first() {
            return Err(Error::invalid(format!("the configuration lacks {what}")));
        }
        let number = |key: &str| config[key].as_f64().unwrap_or(f64::NAN);
        let size = |name: &str, axis: usize| {
            let shape = tensors.get(name).map(|t| &t.shape[..]);
            let other =
                || format!("not a vector field of BoltzNCE: no tensor {name}; it holds {}", some_names(tensors));
            shape.and_then(|s| s.get(axis)).copied().ok_or_else(|| Error::invalid(other()))
        };
        let n_scalars = size("initial_embedding.0.weight", 0)?;
        let n_vectors = size("convs.0.node_update.0.Wh", 0)?;
        let n_in = size("convs.0.edge_message.0.to_feats_out.0.weight", 1)?;
        let rbf_count = n_in.checked_sub(n_scalars + n_vectors + 1).filter(|&n| n > 0).ok_or_else(|| {
            let plain = "messages take other inputs than the source's scalars, radial functions and norms";
            Error::invalid(format!("convs.0.edge_message.0 has {n_in} inputs: {plain}"))
        })?;
        let in_layer = |l: usize| tensors.keys().any(|name| name.starts_with(&format!("convs.{l}.")));
        Ok(GvpConfig {
            features,
            n_features: size("initial_embedding.0.weight", 1)?.saturating_sub(1),
            n_layers: (0..).take_while(|&l| in_layer(l)).count(),
            n_scalars,
            n_vectors,
            rbf_max: number("rbf_dmax"),
            rbf_count,
            message_norm: number("message_norm"),
            coordinate_range: number("coords_range"),
        })
    }

    fn some_names(tensors: &Tensors) -> String {
        let names: Vec<String> = tensors.keys().take(5).map(|name| format!("`{name}`")).collect();
        format!("{} …", names.join(", "))
    }

    /// The field of a checkpoint. BoltzNCE's empty tensors of dropout are dropped; any other tensor that the network does not
    /// have is an error.
    pub fn field(tensors: &Tensors, config: GvpConfig) -> Result<GvpField<f64>> {
        config.check()?;
        let layout = Layout::new(&config);
        let mut parameters = Vec::with_capacity(layout.n_parameters);
        for entry in &layout.entries {
            let absent = || Error::invalid(format!("the checkpoint has no tensor {}", entry.name));
            let tensor = tensors.get(&entry.name).ok_or_else(absent)?;
            if tensor.shape != entry.shape {
                let (found, needed) = (&tensor.shape, &entry.shape);
                return Err(Error::invalid(format!("tensor {} has shape {found:?}, not {needed:?}", entry.name)));
            }
            if let Some(value) = tensor.data.iter().find(|v| !v.is_finite()) {
                return Err(Error::invalid(format!("tensor {} holds {value}", entry.name)));
            }
            parameters.extend(&tensor.data);
        }
        let dropout =
            |name: &str| name.ends_with(".dropout.vector_dropout.dummy_param") && tensors[name].data.is_empty();
        let known = |name: &str| layout.entries.iter().any(|e| e.name == name) || dropout(name);
        match tensors.keys().find(|name| !known(name)) {
            Some(name) => Err(Error::invalid(format!("tensor {name} is not part of the network"))),
            None => GvpField::new(config, parameters),
        }
    }
}
