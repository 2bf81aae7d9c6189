//! `evaluate`: vector fields and energies in the network's units.

use crate::command::{folder, largest_difference, modejump, tensor, tensors, write, Run, MODEL};
use crate::convert::boltznce::graphormer;
use crate::convert::convert;
use modejump::io::model_file::Tensor;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What it writes for a file in the network's units.
pub fn evaluate(folder: &Path, model: &str, input: &str, precision: &str) -> BTreeMap<String, Tensor> {
    let output = folder.join("values.safetensors");
    let summary = modejump(&["evaluate", model, input, "--precision", precision, "-o"]).arg(&output).json();
    let values = tensors(output);
    assert_eq!(summary["tensors"], json!(values.keys().collect::<Vec<_>>()));
    values
}

#[test]
fn an_end_point_is_written_as_it_is_and_as_the_velocity_that_follows() {
    let folder = folder("evaluate-endpoint");
    let name = "trained_vector_5_layer_ot_endpoint_tmax100_ema.safetensors";
    let checkpoint = format!("tests/golden/boltznce/weights/{name}");
    let model = convert(&folder, "boltznce-gvp", &checkpoint, r#"{"dataset": "ad2"}"#, &[]);
    let input = format!("tests/golden/boltznce/field_{name}");
    let golden = tensors(&input);
    let found = evaluate(&folder, &model, &input, "f64");
    assert!(largest_difference(&found["velocity"].data, &golden["v_f64"].data) < 1e-10);
    let scale = golden["div_f64"].data.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    assert!(largest_difference(&found["divergence"].data, &golden["div_f64"].data) < 1e-11 * scale);
    // dx/dt = (x − f)/t of the linear path, and its divergence (3N − tr ∂f/∂x)/t
    let t = &golden["t"].data;
    let each = golden["x"].data.iter().zip(&golden["v_f64"].data).enumerate();
    let drift: Vec<f64> = each.map(|(i, (x, f))| (x - f) / t[i / 66]).collect();
    let of_drift: Vec<f64> = golden["div_f64"].data.iter().zip(t).map(|(d, t)| (66.0 - d) / t).collect();
    let relative =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f64::max);
    assert!(relative(&found["drift"].data, &drift) < 1e-9);
    assert!(relative(&found["drift_divergence"].data, &of_drift) < 1e-9);
}

#[test]
fn unusable_input_of_evaluate_is_named() {
    let folder = folder("evaluate-refused");
    let model = graphormer(&folder);
    let output = folder.join("out.safetensors");
    let input = folder.join("in.safetensors");
    let complain = |model: &str, arrays: &[(&str, &[usize], &[f64])]| {
        write(&input, arrays.iter().map(|(name, shape, data)| (*name, tensor(shape, *data))));
        let message = modejump(&["evaluate", model]).arg(&input).arg("-o").arg(&output).fails();
        assert!(!output.exists());
        message
    };
    let x = [0.5; 54];
    assert!(complain(&model, &[("x", &[2, 9, 3], &x)]).contains("tensor `t` is missing"));
    assert!(complain(&model, &[("t", &[1], &[0.0])]).contains("tensor `x` is missing"));
    let atoms = complain(&model, &[("x", &[3, 6, 3], &x), ("t", &[3], &[0.0; 3])]);
    assert!(atoms.contains("`x` has shape [3, 6, 3], expected [n, 9, 3]"), "{atoms}");
    let times = complain(&model, &[("x", &[2, 9, 3], &x), ("t", &[3], &[0.0; 3])]);
    assert!(times.contains("`t` has 3 values for 2 configurations"), "{times}");
    let mut broken = x;
    broken[40] = f64::NAN;
    let nan = complain(&model, &[("x", &[2, 9, 3], &broken), ("t", &[2], &[0.0; 2])]);
    assert!(nan.contains("`x` contains NaN at position 40"), "{nan}");
    let neither = complain(MODEL, &[("x", &[1, 22, 3], &[0.1; 66]), ("t", &[1], &[0.0])]);
    assert!(neither.contains("neither a vector field nor an energy"), "{neither}");
}
