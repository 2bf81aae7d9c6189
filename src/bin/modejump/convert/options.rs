//! Shared part of the converters of networks of Cartesian coordinates: the options beside a checkpoint, features,
//! topology.

use super::{averages, fits_f32, Checkpoint, Convert, Tensors};
use modejump::coordinates::Topology;
use modejump::io::model_file;
use modejump::models::card::ModelCard;
use modejump::models::layout::Layout;
use modejump::models::network::narrow;
use modejump::models::{from_bytes, Precision};
use modejump::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;

/// The line about units in a list of missing options.
pub const UNITS: &str = "units_per_nm: units of the network per nm (10 for Å)";

impl Convert {
    /// Tensors of the only network that has the tensor `mark`, without their prefix; and the metadata and the bytes of
    /// the checkpoint. Moving averages replace the weights unless --raw-weights is given.
    pub fn network_tensors(&self, mark: &str, what: &str) -> Result<(Tensors, HashMap<String, String>, Vec<u8>)> {
        let (Checkpoint { mut tensors, mut metadata, unread }, bytes) = self.read()?;
        let prefix = self.prefix(&tensors, &unread, mark, what)?;
        self.refuse_unread(&unread, &prefix)?;
        let averages = averages::take(&mut tensors, &prefix, self.prefix.is_none());
        self.refuse_averages(&tensors)?;
        if averages.is_empty() {
            self.refuse_other_averages(&tensors, &prefix)?;
        }
        let strip = |(name, tensor): (String, _)| Some((name.strip_prefix(&prefix)?.to_string(), tensor));
        let mut own: Tensors = tensors.into_iter().filter_map(strip).collect();
        if !averages.is_empty() && !self.raw_weights {
            match averages::named(&own, averages).map_err(|e| Error::file(&self.checkpoint, e.to_string()))? {
                Some(averages) => {
                    eprintln!("note: converting the moving averages of the weights; use --raw-weights to convert the weights themselves");
                    own.extend(averages);
                    metadata.insert("weights".into(), "moving averages".into());
                }
                None => {
                    let reason = "the moving averages `shadow_params` have no names, and their order is unknown for this network: use \
                                  --raw-weights to convert the weights themselves";
                    return Err(Error::file(&self.checkpoint, reason));
                }
            }
        }
        Ok((own, metadata, bytes))
    }

    /// Errors: beside the network with this prefix there are moving averages in a layout that cannot be read, and
    /// --raw-weights is not given.
    pub fn refuse_other_averages(&self, tensors: &Tensors, prefix: &str) -> Result<()> {
        match averages::in_another_layout(tensors, prefix).filter(|_| !self.raw_weights) {
            Some(name) => Err(Error::file(
                &self.checkpoint,
                format!(
                    "{name} and others look like moving averages of weights: use --prefix to convert them if they are named like the \
                     weights (--prefix ema.), or --raw-weights to convert the weights themselves"
                ),
            )),
            None => Ok(()),
        }
    }

    /// Errors: these tensors include moving averages that cannot be assigned to a network, and --raw-weights is not
    /// given.
    pub fn refuse_averages(&self, tensors: &Tensors) -> Result<()> {
        match tensors.keys().find(|name| name.contains(averages::SHADOW)).filter(|_| !self.raw_weights) {
            Some(name) => Err(Error::file(
                &self.checkpoint,
                format!(
                    "contains moving averages of weights that cannot be used ({name}, …): use --raw-weights to ignore them"
                ),
            )),
            None => Ok(()),
        }
    }

    /// The architecture in the checkpoint's metadata, merged with --config. Errors: they contradict each other.
    pub fn options(&self, arch: Option<&String>) -> Result<Value> {
        let arch: Value = match arch {
            None => Value::Object(Default::default()),
            Some(text) => serde_json::from_str(text)
                .map_err(|e| Error::file(&self.checkpoint, format!("metadata `arch`: {e}")))?,
        };
        let mut options = self.config_file()?;
        let into = options.as_object_mut().ok_or_else(|| Error::invalid("--config: expected a JSON object"))?;
        for (key, value) in arch.as_object().into_iter().flatten() {
            match into.get(key).filter(|given| !same(given, value)) {
                Some(given) => {
                    let reason = format!("{key}: the checkpoint has {value}, but --config has {given}");
                    return Err(Error::file(&self.checkpoint, reason));
                }
                None => into.insert(key.clone(), value.clone()),
            };
        }
        if let Some(scale) = into.get("coord_scale_per_nm").cloned() {
            into.entry("units_per_nm").or_insert(scale);
        }
        Ok(options)
    }

    /// Errors: options are missing; lists them.
    pub fn require(&self, missing: Vec<String>) -> Result<()> {
        match missing.is_empty() {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "{} does not fully define its density; use --config FILE.json with\n  {}",
                self.checkpoint.display(),
                missing.join("\n  ")
            ))),
        }
    }

    /// Records the origin of the model in its card.
    pub fn origin(&self, card: &mut ModelCard, metadata: &HashMap<String, String>) {
        card.provenance.insert("converted_from".into(), self.kind.clone());
        for (key, entry) in [("source", "checkpoint"), ("weights", "weights")] {
            if let Some(value) = metadata.get(key) {
                card.provenance.insert(entry.into(), value.clone());
            }
        }
    }

    pub fn note_hands(&self) {
        if self.topology.is_none() {
            eprintln!(
                "note: the handedness of stereocentres is unknown, so samples have either; use --topology to set it"
            );
        }
    }

    /// Writes the model file, in single precision where that loses nothing. Errors: the model would not load.
    pub fn save(&self, card: &ModelCard, layout: &Layout, parameters: &[f64]) -> Result<()> {
        let (tensors, precision) = match fits_f32(parameters) {
            true => (layout.write(&narrow::<f32>(parameters)), Precision::F32),
            false => (layout.write(parameters), Precision::F64),
        };
        let bytes = model_file::serialize(card, &tensors)?;
        drop(tensors);
        self.write(&bytes, precision)
    }

    /// Writes a model file. Errors: the model would not load; an existing file is then kept.
    pub fn write(&self, bytes: &[u8], precision: Precision) -> Result<()> {
        from_bytes(&self.output.display().to_string(), bytes, precision)?;
        modejump::io::write_atomically(&self.output, bytes)
    }
}

/// Whether two values are equal; 20 and 20.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}

/// Descriptions of the missing options.
pub fn lacks(needed: &[(bool, &str)]) -> Vec<String> {
    needed.iter().filter(|(there, _)| !there).map(|(_, what)| what.to_string()).collect()
}

/// Errors: an option has another value than the implementation or the tensors.
fn check_options(options: &Value, implemented: &[(&str, Value)]) -> Result<()> {
    let differs = |(key, value): &&(&str, Value)| options.get(key).is_some_and(|given| !same(given, value));
    match implemented.iter().find(differs) {
        Some((key, value)) => {
            Err(Error::invalid(format!("{key} = {}, but the tensors or the implementation have {value}", options[key])))
        }
        None => Ok(()),
    }
}

/// Set features of every atom, read from `key`: a list of lists, or a list of classes.
pub fn features(options: &Value, key: &str) -> Result<Option<Vec<Vec<usize>>>> {
    let Some(given) = options.get(key) else { return Ok(None) };
    let lists = serde_json::from_value::<Vec<Vec<usize>>>(given.clone()).or_else(|_| {
        let classes: Vec<usize> = serde_json::from_value(given.clone())?;
        Ok(classes.into_iter().map(|class| vec![class]).collect())
    });
    lists.map(Some).map_err(|e: serde_json::Error| {
        Error::invalid(format!("{key}: {e}; expected an index or a list of indices per atom"))
    })
}

pub fn units_per_nm(options: &Value) -> Result<f64> {
    positive(options, "units_per_nm")
}

pub fn positive(options: &Value, key: &str) -> Result<f64> {
    let number = options[key].as_f64().filter(|u| *u > 0.0 && u.is_finite());
    number.ok_or_else(|| Error::invalid(format!("{key}: expected a positive number, found {}", options[key])))
}

/// Columns of an attention head in all published TarFlows.
const HEAD_SIZE: u64 = 64;

/// Head size, from `head_dim`: tensors have the same shapes for any head size, but another size is another density.
/// Errors: not a positive integer.
pub fn head_size(options: &Value) -> Result<usize> {
    let Some(given) = options.get("head_dim").filter(|given| !given.is_null()) else {
        eprintln!("note: assuming attention heads of {HEAD_SIZE} columns, as in the published models; set `head_dim` in --config if they differ");
        return Ok(HEAD_SIZE as usize);
    };
    let size = given.as_u64().filter(|size| *size > 0);
    size.map(|size| size as usize)
        .ok_or_else(|| Error::invalid(format!("head_dim: expected a positive integer, found {given}")))
}

/// Whether noise was added to the centroid of the training data: yes, unless `com_augmentation` is false. Errors: not a
/// boolean.
pub fn noisy_centroid(options: &Value) -> Result<bool> {
    let Some(given) = options.get("com_augmentation").filter(|given| !given.is_null()) else { return Ok(true) };
    let noisy = given
        .as_bool()
        .ok_or_else(|| Error::invalid(format!("com_augmentation: expected true or false, found {given}")))?;
    if !noisy {
        eprintln!(
            "note: `com_augmentation` is false, so the density includes the position: log Z is undefined unless something holds the molecule in \
             place, and a molecule that has drifted away makes no jumps"
        );
    }
    Ok(noisy)
}

/// Runs [`check_options`] with the `implemented` values, and [`note_unread`] on `given` with these keys and those in
/// `read`.
pub fn check_and_note(options: &Value, implemented: &[(&str, Value)], given: &Value, read: &[&str]) -> Result<()> {
    check_options(options, implemented)?;
    note_unread(given, &[read, &implemented.iter().map(|(key, _)| *key).collect::<Vec<_>>()].concat());
    Ok(())
}

/// Prints a note with the options that are not read here: a configuration of another program may have more, and a
/// misspelt name has no effect.
pub fn note_unread(options: &Value, read: &[&str]) {
    let keys = options.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let unread: Vec<&str> = keys.filter(|key| !read.contains(key)).collect();
    if !unread.is_empty() {
        let known = read.iter().enumerate().filter(|(i, key)| !read[..*i].contains(key));
        let known: Vec<&str> = known.map(|(_, key)| *key).collect();
        eprintln!("note: ignored options: {}; known options: {}", unread.join(", "), known.join(", "));
    }
}

/// Checks that atoms with the same features have the same element, and that all have the given `elements`, if these are
/// known.
pub fn check_topology(topology: &Topology, features: &[Vec<usize>], elements: Option<&str>) -> Result<()> {
    let n = topology.n_atoms();
    if n != features.len() {
        return Err(Error::invalid(format!("the topology has {n} atoms, but the model has {}", features.len())));
    }
    for atom in 0..n {
        let (element, label) = (&topology.elements[atom], topology.label(atom));
        if let Some(expected) = elements.and_then(|e| e.get(atom..=atom)).filter(|e| e != element) {
            return Err(Error::invalid(format!(
                "{label} is {element}, but in BoltzNCE's order of ad2 it must be {expected}"
            )));
        }
        if let Some(same) = (0..atom).find(|&a| features[a] == features[atom] && topology.elements[a] != *element) {
            let first = topology.label(same);
            return Err(Error::invalid(format!("{first} and {label} have the same features but different elements")));
        }
    }
    Ok(())
}
