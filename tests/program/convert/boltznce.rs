//! Vector fields and energies of BoltzNCE.

use super::{convert, log_density, refusal};
use crate::command::{folder, largest_difference, tensors, write, TOPOLOGY};
use crate::evaluate::evaluate;
use modejump::density::Exactness;
use modejump::io::model_file::{self, Tensor};
use modejump::models::continuous::{Interpolant, Parametrisation};
use modejump::models::gvp_flow::GvpField;
use modejump::models::{load_with, ModelConfig, Precision, VectorField};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

pub const FIELD: &str = "tests/golden/boltznce/weights/trained_vector_5_layer_ot_ema.safetensors";

#[test]
fn a_converted_vector_field_gives_the_reference_values() {
    let folder = folder("convert-boltznce");
    let config = r#"{"dataset": "ad2", "tmin": 0.001, "rbf_dmax": 20}"#;
    let swapped = folder.join("swapped.pdb");
    let text = std::fs::read_to_string(TOPOLOGY).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(1, 2); // the first two atoms
    std::fs::write(&swapped, lines.join("\n")).unwrap();
    let message = refusal(&folder, "boltznce-gvp", FIELD, config, &["--topology", swapped.to_str().unwrap()]);
    assert!(message.contains("(atom 1) is H, but in BoltzNCE's order of ad2 it must be C"), "{message}");
    let output = convert(&folder, "boltznce-gvp", FIELD, config, &["--topology", TOPOLOGY]);

    let file = model_file::read("converted", &std::fs::read(&output).unwrap()).unwrap();
    let ModelConfig::GvpFlow(config) = &file.card.model else { panic!("{:?}", file.card.model) };
    let flow = &config.flow;
    assert_eq!((flow.parametrisation, flow.interpolant), (Parametrisation::Velocity, Interpolant::Linear));
    assert_eq!((flow.times, flow.units_per_nm), ([1.0, 0.001], 10.0));
    assert_eq!(flow.stereocentres.len(), 1);
    assert_eq!(flow.stereocentres[0].centre, 8);
    assert!(file.card.provenance["notice"].contains("MIT License. Copyright (c) 2025 RishalAggarwal"));
    assert!(!file.tensors.keys().any(|name| name.contains("dropout")));

    let golden = tensors("tests/golden/boltznce/field_trained_vector_5_layer_ot_ema.safetensors");
    let field = GvpField::<f64>::from_file(&file, config).unwrap();
    let mut f = vec![0.0; golden["x"].data.len()];
    field.evaluate(&golden["t"].data, &golden["x"].data, &mut f);
    let error = largest_difference(&f, &golden["v_f64"].data);
    assert!(error < 1e-10, "{error}");
}

#[test]
fn what_a_vector_field_lacks_is_listed() {
    let folder = folder("convert-boltznce-missing");
    let complain = |checkpoint: &str, config: &str| refusal(&folder, "boltznce-gvp", checkpoint, config, &[]);
    // the metadata of this checkpoint says all but the atoms' features
    let message = complain(FIELD, "{}");
    assert!(message.contains("features") && !message.contains("endpoint"), "{message}");
    let message = complain(FIELD, r#"{"dataset": "ad2", "endpoint": true}"#);
    assert!(message.contains("endpoint: the checkpoint has false, but --config has true"), "{message}");
    // no file is written that would not load
    let message = complain(&FIELD.replace("_ot_", "_ot_endpoint_tmax100_"), r#"{"dataset": "ad2", "tmin": 0}"#);
    assert!(message.contains("the velocity of an endpoint model is infinite"), "{message}");
    let message = complain(FIELD, r#"{"features": [0, 1, 30]}"#);
    assert!(message.contains("atom 3: feature 30 is out of range for 21 features"), "{message}");
    // without metadata all is asked for
    let whole = tensors(FIELD);
    let bare = |tensors: BTreeMap<String, Tensor>| {
        let path = folder.join("bare.safetensors");
        write(&path, tensors);
        path.to_str().unwrap().to_string()
    };
    let message = complain(&bare(whole.clone()), "{}");
    for needed in ["rbf_dmax", "message_norm", "coords_range", "features", "endpoint", "interpolant", "units_per_nm"] {
        assert!(message.contains(needed), "{message}");
    }
    let all = r#"{"dataset": "ad2", "rbf_dmax": 20, "message_norm": 10, "coords_range": 10, "endpoint": false,
        "interpolant": "linear", "units_per_nm": 10}"#;
    for (key, value) in [("n_layers", 9), ("n_hidden", 99), ("n_vec", 3), ("n_features", 77), ("rbf_dim", 3)] {
        let message = complain(&bare(whole.clone()), &all.replacen('{', &format!("{{\"{key}\": {value}, "), 1));
        assert!(message.contains(&format!("{key} = {value}, but the tensors")), "{message}");
    }
    let message = complain(&bare(whole.clone()), &all.replacen('{', "{\"features\": [0, 1], ", 1));
    assert!(message.contains("`dataset` is \"ad2\", but `features` does not match it"), "{message}");
    let mut damaged = whole.clone();
    damaged.remove("convs.3.node_update.0.Wu");
    assert!(complain(&bare(damaged), all).contains("tensor convs.3.node_update.0.Wu is missing"));
    let mut more = whole.clone();
    more.insert("convs.3.edge_message.1.Wh".into(), whole["convs.3.edge_message.0.Wh"].clone());
    assert!(complain(&bare(more), all).contains("convs.3.edge_message.1.Wh is not part of the model"));
    let message = complain("tests/pytorch/icbg.ckpt", all);
    assert!(message.contains("icbg.ckpt") && message.contains("no vector field of BoltzNCE found"), "{message}");
}

const GRAPHORMER: &str = "tests/golden/boltznce/graphormer_seed7.safetensors";
const GRAPHORMER_VALUES: &str = "tests/golden/boltznce/graphormer_field.safetensors";

fn graphormer_types() -> Vec<usize> {
    tensors(GRAPHORMER_VALUES)["atoms"].data.iter().map(|&a| a as usize - 1).collect()
}

/// All that its checkpoint does not say.
fn graphormer_config() -> Value {
    json!({ "types": graphormer_types(), "blocks": 1, "units_per_nm": 10 })
}

pub fn graphormer(folder: &Path) -> String {
    convert(folder, "boltznce-graphormer", GRAPHORMER, &graphormer_config().to_string(), &[])
}

#[test]
fn a_converted_graphormer_gives_the_reference_values() {
    let folder = folder("convert-graphormer");
    let model = graphormer(&folder);
    let loaded = load_with(&model, Precision::F64).unwrap();
    let card = loaded.card();
    assert_eq!(card.exactness, Exactness::Surrogate);
    assert!(card.provenance["notice"].contains("MIT License. Copyright (c) 2025 RishalAggarwal"));
    let golden = tensors(GRAPHORMER_VALUES);
    for (precision, tolerance) in [("f64", 1e-10), ("f32", 1e-5)] {
        let found = evaluate(&folder, &model, GRAPHORMER_VALUES, precision);
        for (name, expected) in [("energy", "energy_f64"), ("score", "score_f64")] {
            let expected = &golden[expected].data;
            let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            assert!(largest_difference(&found[name].data, expected) < tolerance * scale, "{name} in {precision}");
        }
    }
    // log q of configurations in nm is the energy at t = 0 in the network's units
    let x: Vec<f64> = golden["x"].data.iter().map(|x| x / 10.0).collect();
    let mut energy = [0.0; 6];
    loaded.energy().unwrap().energy(&[0.0; 6], &golden["x"].data, &mut energy);
    assert!(largest_difference(&log_density(loaded.as_ref(), &x), &energy) < 1e-10);
    // a micrometre away they are the same, in single precision too
    let away: Vec<f64> = x.iter().map(|x| x + 1000.0).collect();
    let single = load_with(&model, Precision::F32).unwrap();
    assert!(largest_difference(&log_density(single.as_ref(), &away), &energy) < 1e-5);
}

#[test]
fn what_a_graphormer_lacks_or_contradicts_is_said() {
    let folder = folder("convert-graphormer-missing");
    let complain = |config: Value| refusal(&folder, "boltznce-graphormer", GRAPHORMER, &config.to_string(), &[]);
    let message = complain(json!({}));
    for needed in ["types", "blocks", "units_per_nm"] {
        assert!(message.contains(needed), "{message}");
    }
    let with = |key: &str, value: Value| {
        let mut config = graphormer_config();
        config[key] = value;
        complain(config)
    };
    assert!(with("num_layers", 8.into()).contains("num_layers = 8"));
    assert!(with("blocks", 0.into()).contains("blocks: expected a positive integer"));
    assert!(with("types", json!([0, 5])).contains("atom 2: type 5"));
    assert!(with("units_per_nm", 0.into()).contains("units_per_nm"));
}
