//! One file per kind of golden data. A check returns (quantity, largest error, tolerance) per compared array.

pub mod annealing;
pub mod bar;
pub mod boltznce;
pub mod energies;
pub mod fields;
pub mod flows;
pub mod tarflow;
pub mod transferable;

use modejump::io::model_file::{read_tensors, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

pub type Found = Vec<(String, f64, f64)>;

/// A golden file: arrays and the JSON file beside it.
pub struct Golden {
    pub tensors: BTreeMap<String, Tensor>,
    pub config: Value,
}

impl Golden {
    /// Opens a file, or panics with the reason: a file of a known kind that cannot be read is a failure.
    pub fn open(stem: &Path) -> Golden {
        Golden::open_with(stem, &stem.with_extension("json"))
    }

    /// Opens a file with the JSON of another one.
    pub fn open_with(stem: &Path, json: &Path) -> Golden {
        let text = std::fs::read_to_string(json).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        let config = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        Golden { config, ..Golden::open_alone(stem) }
    }

    /// Opens a file without JSON; `config` is the file's metadata.
    pub fn open_alone(stem: &Path) -> Golden {
        let data = stem.with_extension("safetensors");
        let bytes = std::fs::read(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
        let (tensors, metadata) = read_tensors(&data.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
        Golden { tensors, config: serde_json::to_value(metadata).unwrap() }
    }

    pub fn get(&self, name: &str) -> &[f64] {
        &self.tensor(name).data
    }

    pub fn tensor(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}

/// Largest absolute difference; infinite when lengths differ or a NaN appears.
pub fn error(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, e| if e.is_nan() { f64::INFINITY } else { m.max(e) })
}

/// Largest difference relative to the size of each expected value.
pub fn relative_error(a: &[f64], expected: &[f64]) -> f64 {
    if a.len() != expected.len() {
        return f64::INFINITY;
    }
    let each = a.iter().zip(expected).map(|(a, b)| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE));
    each.fold(0.0, |m, e| if e.is_nan() { f64::INFINITY } else { m.max(e) })
}
