//! One file per kind of golden data. A check returns (quantity, largest error, tolerance) per compared array.

pub mod bar;
pub mod flows;

use modejump::io::model_file::{read_tensors, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

pub type Found = Vec<(String, f64, f64)>;

/// A golden file: arrays and the JSON beside them.
pub struct Golden {
    pub tensors: BTreeMap<String, Tensor>,
    pub config: Value,
}

impl Golden {
    /// Panics with the reason: a file of a known kind that cannot be read is a failure.
    pub fn open(stem: &Path) -> Golden {
        let (data, json) = (stem.with_extension("safetensors"), stem.with_extension("json"));
        let bytes = std::fs::read(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
        let (tensors, _) = read_tensors(&data.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
        let text = std::fs::read_to_string(&json).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        let config = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", json.display()));
        Golden { tensors, config }
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
