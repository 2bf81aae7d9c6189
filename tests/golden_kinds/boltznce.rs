//! Vector fields of BoltzNCE: values and exact divergences of trained checkpoints.

use super::{error, Found};
use modejump::io::model_file::{read_tensors, Tensor};
use modejump::models::gvp_flow::{boltznce, GvpField};
use modejump::models::VectorField;
use modejump::nn::Real;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const F64_VALUE: f64 = 1e-10;
/// Relative to the largest divergence.
const F64_DIVERGENCE: f64 = 1e-11;
const F32_VALUE: f64 = 3e-5;
const F32_DIVERGENCE: f64 = 1e-5;

/// The checkpoint beside a golden file KIND_NAME: `weights/NAME.safetensors`, with its architecture in the metadata.
fn checkpoint(stem: &Path, kind: &str) -> (PathBuf, BTreeMap<String, Tensor>, Value) {
    let name = stem.file_name().unwrap().to_str().unwrap().strip_prefix(kind).unwrap();
    let path = stem.with_file_name("weights").join(format!("{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (tensors, metadata) = read_tensors(&path.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
    let arch = serde_json::from_str(&metadata["arch"]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (path, tensors, arch)
}

/// Per row of a multi-hot matrix: which columns are set.
fn features(h: &Tensor) -> Vec<Vec<usize>> {
    let set = |row: &[f64]| row.iter().enumerate().filter(|(_, &v)| v != 0.0).map(|(i, _)| i).collect();
    h.data.chunks_exact(h.shape[1]).map(set).collect()
}

struct Computed {
    value: Vec<f64>,
    divergence: Vec<f64>,
    tangent: Vec<f64>,
    from_jvp: f64,
}

/// Value and divergence in one batch, and the sum of jvp along the unit vectors for the first configuration.
fn compute<R: Real>(field: &GvpField<R>, t: &[f64], x: &[f64]) -> Computed {
    let d = field.dimension();
    let (mut alone, mut value, mut divergence) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; t.len()]);
    field.evaluate(t, x, &mut alone);
    field.evaluate_divergence(t, x, &mut value, &mut divergence);
    assert_eq!(alone, value, "the value depends on whether the divergence is asked for");
    let n = d * d;
    let repeated: Vec<f64> = (0..d).flat_map(|_| x[..d].to_vec()).collect();
    let units: Vec<f64> = (0..n).map(|i| if i / d == i % d { 1.0 } else { 0.0 }).collect();
    let (mut f, mut df) = (vec![0.0; n], vec![0.0; n]);
    field.evaluate_jvp(&vec![t[0]; d], &repeated, &units, &mut f, &mut df);
    assert_eq!(&f[..d], &value[..d], "the value depends on whether the jvp is asked for");
    let from_jvp = (0..d).map(|i| df[i * d + i]).sum();
    Computed { value, divergence, tangent: df, from_jvp }
}

/// `field_*`: eight configurations; the endpoint checkpoints' values are the network's output, not the velocity.
pub fn field(stem: &Path) -> Found {
    let bytes = std::fs::read(stem.with_extension("safetensors")).unwrap_or_else(|e| panic!("{}: {e}", stem.display()));
    let (golden, _) = read_tensors(&stem.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
    let (path, tensors, arch) = checkpoint(stem, "field_");
    let config = boltznce::network(&tensors, &arch, features(&golden["h"]))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let double = boltznce::field(&tensors, config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (t, x) = (&golden["t"].data, &golden["x"].data);
    let (exact, single) = (compute(&double, t, x), compute(&double.cast::<f32>().unwrap(), t, x));
    let largest = golden["div_f64"].data.iter().fold(1.0, |m: f64, d| m.max(d.abs()));
    let divergence_error = |found: &[f64]| error(found, &golden["div_f64"].data) / largest;
    let trace_error = |c: &Computed| (c.from_jvp - c.divergence[0]).abs() / largest;
    vec![
        ("v".into(), error(&exact.value, &golden["v_f64"].data), F64_VALUE),
        ("divergence".into(), divergence_error(&exact.divergence), F64_DIVERGENCE),
        ("divergence by jvp".into(), trace_error(&exact), F64_DIVERGENCE),
        ("v in f32".into(), error(&single.value, &golden["v_f64"].data), F32_VALUE),
        ("divergence in f32".into(), divergence_error(&single.divergence), F32_DIVERGENCE),
        ("divergence by jvp in f32".into(), trace_error(&single), F32_DIVERGENCE),
        ("jvp in f32".into(), error(&single.tangent, &exact.tangent), F32_DIVERGENCE * largest),
    ]
}
