//! Model file with BoltzNCE's tensor names (see `layout.rs`); conversion of BoltzNCE's checkpoints.

use super::layout::Places;
use super::{Config, GvpField};
use crate::error::{Error, Result};
use crate::io::model_file::{serialize, ModelFile};
use crate::io::write_atomically;
use crate::models::card::ModelCard;
use crate::models::continuous::ContinuousFlow;
use crate::nn::Real;
use std::collections::BTreeMap;
use std::path::Path;

impl<R: Real> GvpField<R> {
    /// The field in a model file. Errors name a tensor that is missing, superfluous, of another shape or not finite.
    pub fn from_file(file: &ModelFile, config: &Config) -> Result<GvpField<R>> {
        config.network.check()?;
        let parameters = Places::new(&config.network).layout.read(&file.tensors)?;
        GvpField::new(config.network.clone(), parameters)
    }

    /// Bytes of the model file; parameters are stored in their own type. Errors: those of serialisation.
    pub fn to_bytes(&self, card: &ModelCard) -> Result<Vec<u8>> {
        serialize(card, &self.places.layout.write(&self.parameters))
    }

    /// Writes the model file; an existing file is replaced only by a complete one. Errors: those of writing.
    pub fn save(&self, card: &ModelCard, path: impl AsRef<Path>) -> Result<()> {
        write_atomically(path.as_ref(), &self.to_bytes(card)?)
    }
}

impl<R: Real> ContinuousFlow<GvpField<R>> {
    /// The flow in a model file. Errors: those of [`GvpField::from_file`] and [`ContinuousFlow::new`].
    pub fn from_file(file: &ModelFile) -> Result<ContinuousFlow<GvpField<R>>> {
        let config = file.config()?;
        let field = GvpField::from_file(file, config)?;
        ContinuousFlow::new(field, config.flow.clone(), file.card.clone(), file.hash.clone())
    }
}

/// Conversion of BoltzNCE's checkpoints.
pub mod boltznce {
    use super::super::GvpConfig;
    use super::*;
    use crate::io::model_file::Tensor;
    use serde_json::Value;

    /// Tensors of a checkpoint by name.
    pub type Tensors = BTreeMap<String, Tensor>;

    /// Settings that the tensors do not determine, with their description.
    const NEEDED: [(&str, &str); 3] = [
        ("rbf_dmax", "centre of the last radial function, in units of the network (20 in BoltzNCE)"),
        ("message_norm", "divisor of the sum of messages (10 in BoltzNCE)"),
        ("coords_range", "largest step of an atom in a layer (10 in BoltzNCE)"),
    ];
    /// Options of BoltzNCE for which a single value is implemented.
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

    /// Missing entries of the configuration that a conversion needs, one per line.
    pub fn missing(config: &Value) -> Vec<String> {
        let absent = NEEDED.iter().filter(|(key, _)| config[key].as_f64().is_none());
        absent.map(|(key, what)| format!("{key}: {what}")).collect()
    }

    /// Configuration of a checkpoint's network: sizes from the shapes of its tensors, the rest from `config` under
    /// BoltzNCE's names, `features` per atom from the caller. Errors: an option that is not implemented or missing,
    /// another architecture.
    pub fn network(tensors: &Tensors, config: &Value, features: Vec<Vec<usize>>) -> Result<GvpConfig> {
        for (option, value) in FIXED {
            let found = config.get(option).map_or(value.to_string(), Value::to_string);
            if found != value {
                return Err(Error::invalid(format!("{option} = {found} is not supported, only {value}")));
            }
        }
        if let Some(what) = missing(config).first() {
            return Err(Error::invalid(format!("the configuration is missing {what}")));
        }
        let number = |key: &str| config[key].as_f64().unwrap_or(f64::NAN);
        let size = |name: &str, axis: usize| {
            let shape = tensors.get(name).map(|t| &t.shape[..]);
            let other =
                || format!("not a vector field of BoltzNCE: tensor {name} is missing, found {}", some_names(tensors));
            shape.and_then(|s| s.get(axis)).copied().ok_or_else(|| Error::invalid(other()))
        };
        let n_scalars = size("initial_embedding.0.weight", 0)?;
        let n_vectors = size("convs.0.node_update.0.Wh", 0)?;
        let n_in = size("convs.0.edge_message.0.to_feats_out.0.weight", 1)?;
        let rbf_count = n_in.checked_sub(n_scalars + n_vectors + 1).filter(|&n| n > 0).ok_or_else(|| {
            let plain = "expected the source's scalars, radial functions and norms";
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

    /// The field of a checkpoint. BoltzNCE's empty dropout tensors are ignored. Errors: any other tensor that the
    /// network does not have, and those of [`GvpField::from_file`].
    pub fn field(tensors: &Tensors, config: GvpConfig) -> Result<GvpField<f64>> {
        config.check()?;
        let dropout = |name: &str| name.ends_with(".dropout.vector_dropout.dummy_param");
        let used = tensors.iter().filter(|(name, tensor)| !(dropout(name) && tensor.data.is_empty()));
        let used = used.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
        GvpField::new(config.clone(), Places::new(&config).layout.read(&used)?)
    }
}
