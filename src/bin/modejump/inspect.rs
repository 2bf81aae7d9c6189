//! `modejump inspect`

use super::convert::{read_any, Checkpoint};
use clap::Args;
use modejump::coordinates::{Coordinates, CoordinatesConfig, Topology};
use modejump::io::model_file::{self, ModelFile, Tensor};
use modejump::models::card::ModelConfig;
use modejump::models::coupling::LayerConfig;
use modejump::models::{self, Model};
use modejump::{Error, Result};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Args)]
pub struct Inspect {
    /// Model file, or any safetensors or PyTorch file
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(self) -> Result<()> {
        let bytes = modejump::io::read(&self.file)?;
        let name = self.file.display().to_string();
        let Checkpoint { tensors, unread, metadata } = read_any(&self.file, &bytes)?;
        let (report, atoms) = if metadata.contains_key(model_file::KEY) {
            drop(tensors); // the model reads its own
            let file = model_file::read(&name, &bytes)?;
            let model = models::load_bytes(&name, &bytes)?;
            (describe(&file, model.as_ref())?, file.card.topology)
        } else {
            let mut report = json!({ "file": name, "hash": model_file::hash(&bytes), "tensors": shapes(&tensors) });
            if !unread.is_empty() {
                report["not_read"] = json!(unread);
            }
            (report, None)
        };
        match self.json {
            true => println!("{report}"),
            false => print!("{}", printable(&text(&report, atoms.as_ref()))),
        }
        Ok(())
    }
}

fn shapes(tensors: &BTreeMap<String, Tensor>) -> Value {
    tensors.iter().map(|(name, tensor)| (name.clone(), json!(tensor.shape))).collect::<serde_json::Map<_, _>>().into()
}

fn describe(file: &ModelFile, model: &dyn Model) -> Result<Value> {
    let card = &file.card;
    let coordinates = Coordinates::new(&card.coordinates, |a| card.label(a))?;
    let kind = match &card.coordinates {
        CoordinatesConfig::Cartesian { .. } => "cartesian",
        CoordinatesConfig::Internal { .. } => "internal",
    };
    let constraints: Vec<Value> = coordinates
        .constraints()
        .iter()
        .map(|&(a, b, length)| json!({ "atoms": [a, b], "names": [card.label(a), card.label(b)], "length_nm": length }))
        .collect();
    let settings = settings(&card.model)?;
    let mut report = json!({
        "file": file.name,
        "hash": model.hash(),
        "format": card.format,
        "model": card.model.kind(),
        "parameters": file.tensors.values().map(|t| t.data.len()).sum::<usize>(),
        "exactness": card.exactness,
        "dimension": model.dimension(),
        "latent_dimension": model.flow().map(|f| f.latent_dimension()),
        "coordinates": kind,
        "constraints": constraints,
        "stereocentres": card.stereocentres().len(),
        "temperature_K": card.temperature,
        "steering": card.steering,
        "target": card.target,
        "atoms": card.topology.as_ref().map(|t| (0..t.n_atoms()).map(|a| t.label(a)).collect::<Vec<_>>()),
        "provenance": card.provenance,
        "tensors": shapes(&file.tensors),
    });
    if let (Value::Object(report), Value::Object(settings)) = (&mut report, settings) {
        report.extend(settings);
    }
    Ok(report)
}

/// Settings of the model's configuration, by part.
fn settings(model: &ModelConfig) -> Result<Value> {
    if let ModelConfig::Coupling(config) = model {
        let describe =
            |layer: &LayerConfig| json!({ "type": layer_name(layer), "transformed": layer.transformed().len() });
        return Ok(json!({ "layers": config.layers.iter().map(describe).collect::<Vec<_>>() }));
    }
    let mut settings = serde_json::to_value(model).map_err(|e| Error::invalid(e.to_string()))?["config"].take();
    for mode in settings.get_mut("modes").and_then(Value::as_array_mut).into_iter().flatten() {
        // `modejump inspect` of the generator's own file shows more of its card
        mode["generator"] = mode["card"]["model"]["kind"].take();
        mode.as_object_mut().map(|mode| mode.remove("card"));
    }
    if let Some(network) = settings.get_mut("network").and_then(Value::as_object_mut) {
        // lists with an entry for every atom, bond or torsion
        for list in ["features", "types", "volumes", "prochiral"] {
            network.remove(list);
        }
    }
    Ok(settings)
}

fn layer_name(layer: &LayerConfig) -> &'static str {
    match layer {
        LayerConfig::Spline { .. } => "spline coupling",
        LayerConfig::Affine { .. } => "affine coupling",
        LayerConfig::Shift { .. } => "circular shift",
        LayerConfig::Wrap { .. } => "wrap",
        LayerConfig::TruncatedNormal { .. } => "truncated-normal marginals",
        LayerConfig::Uniform { .. } => "uniform marginals",
        LayerConfig::Whiten { .. } => "whitening",
    }
}

/// The report as text: one line per entry and per atom.
fn text(report: &Value, atoms: Option<&Topology>) -> String {
    let mut out = String::new();
    for (key, value) in report.as_object().into_iter().flatten() {
        match value {
            // not applicable to a model of this kind
            Value::Null if key != "temperature_K" => (),
            Value::Object(map) if !map.is_empty() => {
                out += &format!("{key}\n");
                map.iter().for_each(|(name, v)| out += &format!("  {name:44} {}\n", plain(v)));
            }
            Value::Array(list) if key == "atoms" => {
                let numbers = "numbered from 1; options and settings count from 0";
                out += &format!("{key:18} {} ({numbers})\n{}", list.len(), atoms.map(table).unwrap_or_default());
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                out += &format!("{key}\n");
                list.iter().for_each(|v| out += &format!("  {}\n", entry(v)));
            }
            _ => out += &format!("{key:18} {}\n", plain(value)),
        }
    }
    out
}

/// Replaces control characters, since names in a file may hold escape sequences for terminals.
fn printable(text: &str) -> String {
    text.replace(|c: char| c.is_control() && c != '\n', "\u{fffd}")
}

/// Number (from one, as in PDB files), residue, name and element of every atom.
fn table(atoms: &Topology) -> String {
    let line = |i: usize| {
        let [residue, name, element] = [&atoms.residues, &atoms.names, &atoms.elements].map(|list| list[i].as_str());
        format!("  {:>5}  {residue:8}  {name:5}  {element}\n", i + 1)
    };
    (0..atoms.n_atoms()).map(line).collect()
}

fn entry(value: &Value) -> String {
    let parts = value.as_object().into_iter().flatten();
    parts.map(|(key, v)| format!("{key} {}", plain(v))).collect::<Vec<_>>().join(", ")
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "unknown".into(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
