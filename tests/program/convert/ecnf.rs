//! ECNFs of transferable-samplers.

use super::boltznce::FIELD;
use super::{convert, refusal};
use crate::command::{document, folder, largest_difference, tensor, tensors, write, TOPOLOGY};
use crate::evaluate::evaluate;
use modejump::density::Exactness;
use modejump::models::continuous::{Interpolant, Parametrisation};
use modejump::models::{load_with, Precision};
use serde_json::{json, Value};
use std::path::Path;

pub const ECNF: &str = "tests/golden/sbg/ecnf_Ace-A-Nme/state_f32.safetensors";
const ECNF_VALUES: &str = "tests/golden/sbg/ecnf_Ace-A-Nme/io_f64.safetensors";

/// The configuration beside the golden file, with what it leaves open.
pub fn ecnf_config(more: Value) -> String {
    let mut config = document(Path::new(ECNF).with_file_name("config.json"));
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

#[test]
fn a_converted_ecnf_gives_the_reference_values() {
    let folder = folder("convert-ecnf");
    let config = ecnf_config(json!({ "std": 0.16 }));
    let topology = ["--topology", TOPOLOGY, "--temperature", "300"];
    let model = convert(&folder, "ecnf", ECNF, &config, &topology);
    let card = load_with(&model, Precision::F64).unwrap().card().clone();
    assert_eq!((card.exactness, card.temperature), (Exactness::Exact, Some(300.0)));
    assert_eq!(card.provenance["converted_from"], "ecnf");
    let flow = card.model.flow().unwrap();
    assert_eq!((flow.parametrisation, flow.interpolant), (Parametrisation::Velocity, Interpolant::Linear));
    assert_eq!((flow.times, flow.units_per_nm, flow.stereocentres.len()), ([0.0, 1.0], 6.25, 1));

    let golden = tensors(ECNF_VALUES);
    let found = evaluate(&folder, &model, ECNF_VALUES, "f64");
    assert_eq!(found["velocity"].shape, [8, 22, 3]);
    assert!(largest_difference(&found["velocity"].data, &golden["v"].data) < 1e-10);
    // the reference's right-hand side of the ODE: velocity and minus the divergence, two rows at t = 0.3
    let input = folder.join("input.safetensors");
    write(&input, [("x", tensor(&[2, 22, 3], &golden["x"].data[..132])), ("t", tensor(&[2], [0.3; 2]))]);
    let expected: Vec<f64> = golden["wrapped_t0.3"].data.chunks_exact(67).map(|row| -row[66]).collect();
    for (precision, tolerance) in [("f64", 1e-10), ("f32", 1e-4)] {
        let found = evaluate(&folder, &model, input.to_str().unwrap(), precision);
        let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        assert!(largest_difference(&found["divergence"].data, &expected) < tolerance * scale, "{precision}");
        assert!(!found.contains_key("drift"));
    }
}

#[test]
fn what_an_ecnf_lacks_or_contradicts_is_said() {
    let folder = folder("convert-ecnf-missing");
    let complain = |config: &str| refusal(&folder, "ecnf", ECNF, config, &[]);
    let message = complain("{}");
    for needed in ["features", "h_initial_types", "coords_range", "std"] {
        assert!(message.contains(needed), "{message}");
    }
    let with = |more| complain(&ecnf_config(more));
    let message = with(json!({}));
    assert!(message.contains("std: standard deviation") && !message.contains("coords_range"), "{message}");
    let message = with(json!({ "std": 0.16, "coords_range_layer": 2.0 }));
    assert!(message.contains("coords_range is 15, but coords_range_layer × layers is 10"), "{message}");
    let message = with(json!({ "std": 0.16, "units_per_nm": 10 }));
    assert!(message.contains("units_per_nm is 10, but 1/std is 6.25"), "{message}");
    assert!(with(json!({ "std": 0.16, "tanh": false })).contains("tanh = false"));
    assert!(with(json!({ "std": 0.16, "num_layers": 9 })).contains("num_layers = 9"));
    assert!(with(json!({ "std": -1.0 })).contains("std: expected a positive number"));
    assert!(with(json!({ "std": 1.0, "h_initial_types": vec![21; 22] })).contains("atom 1"));
    let both = with(json!({ "std": 1.0, "features": vec![[0]; 22] }));
    assert!(both.contains("features and h_initial_types differ"), "{both}");
    let config = ecnf_config(json!({ "std": 0.16 }));
    let message = refusal(&folder, "ecnf", FIELD, &config, &[]);
    assert!(message.contains("no ECNF of transferable-samplers found"), "{message}");
}
