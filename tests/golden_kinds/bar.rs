//! Kind `flows/bar`: free-energy differences of four work sets by BAR and by perturbation from each end (float64).

use modejump::free_energy::{bar, perturbation_forward, perturbation_reverse};
use safetensors::SafeTensors;
use std::path::Path;

const TOLERANCE: f64 = 1e-11;

/// Returns (quantity, largest error, tolerance) for the file `path_without_extension`.safetensors.
pub fn check(path_without_extension: &Path) -> Vec<(String, f64, f64)> {
    let path = path_without_extension.with_extension("safetensors");
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let read = |name: String| -> Vec<f64> {
        let tensor = file.tensor(&name).unwrap_or_else(|e| panic!("{}: {name}: {e}", path.display()));
        assert_eq!(tensor.dtype(), safetensors::Dtype::F64, "{}: {name}", path.display());
        tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let sets = file.names().iter().filter(|name| name.starts_with("wf")).count();
    assert!(sets > 0, "{}: no tensor wf0", path.display());
    let mut errors = [0f64; 3];
    for i in 0..sets {
        let (forward, reverse) = (read(format!("wf{i}")), read(format!("wr{i}")));
        let computed = [bar(&forward, &reverse), perturbation_forward(&forward), perturbation_reverse(&reverse)];
        for ((error, estimate), name) in errors.iter_mut().zip(computed).zip(["bar", "fep_f", "fep_r"]) {
            let difference = (estimate.unwrap().value - read(format!("{name}{i}"))[0]).abs();
            *error = if difference.is_nan() { f64::INFINITY } else { error.max(difference) };
        }
    }
    let names = ["BAR", "forward perturbation", "reverse perturbation"];
    names.iter().zip(errors).map(|(name, error)| (name.to_string(), error, TOLERANCE)).collect()
}
