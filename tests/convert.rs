//! `modejump convert` and `modejump inspect` as a user runs them.

use modejump::density::Evaluation;
use modejump::io::model_file::{self, read_tensors, write_tensors, Data, Tensor};
use modejump::models::continuous::{Interpolant, Parametrisation};
use modejump::models::gvp_flow::GvpField;
use modejump::models::{load_with, ModelConfig, Precision, VectorField};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STEM: &str = "tests/golden/flows/icbg_ala2_flex_idinit";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn modejump(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_modejump")).current_dir(root()).args(arguments).output().unwrap()
}

fn complaint(arguments: &[&str]) -> String {
    let output = modejump(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("modejump-convert-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn golden() -> BTreeMap<String, Tensor> {
    let path = root().join(STEM).with_extension("safetensors");
    read_tensors("golden", &std::fs::read(path).unwrap()).unwrap().0
}

/// Largest difference of log q from the golden values, for a checkpoint with these converter arguments.
fn converted_error(checkpoint: &str, output: &Path) -> f64 {
    let config = format!("{STEM}.json");
    let output = output.to_str().unwrap();
    let run = modejump(&[
        "convert",
        checkpoint,
        "--kind",
        "bgflow",
        "-o",
        output,
        "--config",
        &config,
        "--topology",
        "models/ala2/topology.pdb",
        "--temperature",
        "300",
    ]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let model = load_with(output, Precision::F64).unwrap();
    assert_eq!(model.card().temperature, Some(300.0));
    let golden = golden();
    let (x, expected) = (&golden["x_eval"].data, &golden["neglogq_eval"].data);
    let mut log_q = vec![Evaluation::inside(0.0); expected.len()];
    model.log_density(x, &mut log_q).unwrap();
    log_q.iter().zip(expected).map(|(e, minus)| (e.log_density + minus).abs()).fold(0.0, f64::max)
}

#[test]
fn safetensors_and_pytorch_checkpoints_give_the_reference_density() {
    let folder = folder("density");
    for checkpoint in [format!("{STEM}.safetensors"), "tests/pytorch/icbg.ckpt".to_string()] {
        let error = converted_error(&checkpoint, &folder.join("model.safetensors"));
        assert!(error < 1e-10, "{checkpoint}: {error}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_missing_is_listed_with_its_flag() {
    let folder = folder("missing");
    let output = folder.join("model.safetensors");
    let output = output.to_str().unwrap();
    let checkpoint = "tests/pytorch/icbg.ckpt";
    let message = complaint(&["convert", checkpoint, "--kind", "bgflow", "-o", output]);
    for needed in ["--config", "z_matrix", "enable_identity_init", "n_bins", "activation", "preserve_volume"] {
        assert!(message.contains(needed), "{message}");
    }
    let partial = folder.join("partial.json");
    std::fs::write(&partial, r#"{"z_matrix": [[0, -1, -1, -1]], "n_bins": 8, "activation": "silu"}"#).unwrap();
    let partial = partial.to_str().unwrap();
    let message = complaint(&["convert", checkpoint, "--kind", "bgflow", "-o", output, "--config", partial]);
    assert!(message.contains("enable_identity_init") && !message.contains("n_bins"), "{message}");

    let message = complaint(&["convert", checkpoint, "--kind", "tensorflow", "-o", output]);
    assert!(message.contains("known kinds: bgflow, boltznce-gvp"), "{message}");
    let config = format!("{STEM}.json");
    let message =
        complaint(&["convert", "tests/pytorch/hostile.pt", "--kind", "bgflow", "-o", output, "--config", &config]);
    assert!(message.contains("hostile.pt") && message.contains("`weight`"), "{message}");
    let wrong = ["convert", checkpoint, "--kind", "bgflow", "-o", output, "--config", &config, "--prefix", "ema."];
    assert!(complaint(&wrong).contains("`state_dict.flow.`"));
    assert!(!Path::new(output).exists(), "a failed conversion left a file");
    std::fs::remove_dir_all(folder).unwrap();
}

const FIELD: &str = "tests/golden/boltznce/weights/trained_vector_5_layer_ot_ema.safetensors";

/// Arguments for a vector field of BoltzNCE with a configuration of this text, written into the folder.
fn boltznce(folder: &Path, checkpoint: &str, config: &str) -> (Vec<String>, PathBuf) {
    let (json, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    std::fs::write(&json, config).unwrap();
    let arguments = ["convert", checkpoint, "--kind", "boltznce-gvp", "-o", output.to_str().unwrap(), "--config"];
    let arguments = arguments.iter().map(|a| a.to_string()).chain([json.to_str().unwrap().to_string()]).collect();
    (arguments, output)
}

#[test]
fn a_converted_vector_field_gives_the_reference_values() {
    let folder = folder("boltznce");
    let (mut arguments, output) = boltznce(&folder, FIELD, r#"{"dataset": "ad2", "tmin": 0.001, "rbf_dmax": 20}"#);
    let topology = "models/ala2/topology.pdb";
    let swapped = folder.join("swapped.pdb");
    let text = std::fs::read_to_string(root().join(topology)).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(1, 2); // the first two atoms
    std::fs::write(&swapped, lines.join("\n")).unwrap();
    let with_topology = |path: &str| arguments.iter().cloned().chain(["--topology".into(), path.into()]).collect();
    let wrong: Vec<String> = with_topology(swapped.to_str().unwrap());
    let message = complaint(&wrong.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(message.contains("(atom 1) is H, in BoltzNCE's order of ad2 it is C"), "{message}");
    arguments = with_topology(topology);
    let run = modejump(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));

    let file = model_file::read("converted", &std::fs::read(&output).unwrap()).unwrap();
    let ModelConfig::GvpFlow(config) = &file.card.model else { panic!("{:?}", file.card.model) };
    let flow = &config.flow;
    assert_eq!((flow.parametrisation, flow.interpolant), (Parametrisation::Velocity, Interpolant::Linear));
    assert_eq!((flow.times, flow.units_per_nm), ([1.0, 0.001], 10.0));
    assert_eq!(flow.stereocentres.len(), 1);
    assert_eq!(flow.stereocentres[0].centre, 8);
    assert!(file.card.provenance["notice"].contains("MIT License. Copyright (c) 2025 RishalAggarwal"));
    assert!(!file.tensors.keys().any(|name| name.contains("dropout")));

    let golden = root().join("tests/golden/boltznce/field_trained_vector_5_layer_ot_ema.safetensors");
    let golden = read_tensors("golden", &std::fs::read(golden).unwrap()).unwrap().0;
    let field = GvpField::<f64>::from_file(&file, config).unwrap();
    let mut f = vec![0.0; golden["x"].data.len()];
    field.evaluate(&golden["t"].data, &golden["x"].data, &mut f);
    let error = f.iter().zip(&golden["v_f64"].data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(error < 1e-10, "{error}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_a_vector_field_lacks_is_listed() {
    let folder = folder("boltznce-missing");
    let complain = |checkpoint: &str, config: &str| {
        let (arguments, output) = boltznce(&folder, checkpoint, config);
        let message = complaint(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(!output.exists(), "a failed conversion left a file");
        message
    };
    // the metadata of this checkpoint says all but the atoms' features
    let message = complain(FIELD, "{}");
    assert!(message.contains("features") && !message.contains("endpoint"), "{message}");
    let message = complain(FIELD, r#"{"dataset": "ad2", "endpoint": true}"#);
    assert!(message.contains("endpoint: the checkpoint says false, --config says true"), "{message}");
    let message = complain(FIELD, r#"{"features": [0, 1, 30]}"#);
    assert!(message.contains("atom 3: feature 30 of 21"), "{message}");
    // without metadata all is asked for
    let (tensors, _) = read_tensors("field", &std::fs::read(root().join(FIELD)).unwrap()).unwrap();
    let bare = |tensors: &BTreeMap<String, Tensor>| {
        let data = |t: &Tensor| (t.shape.clone(), Data::F64(t.data.clone()));
        let tensors = tensors.iter().map(|(name, t)| (name.clone(), data(t))).collect();
        let path = folder.join("bare.safetensors");
        std::fs::write(&path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let message = complain(&bare(&tensors), "{}");
    for needed in ["rbf_dmax", "message_norm", "coords_range", "features", "endpoint", "interpolant", "units_per_nm"] {
        assert!(message.contains(needed), "{message}");
    }
    let all = r#"{"dataset": "ad2", "rbf_dmax": 20, "message_norm": 10, "coords_range": 10, "endpoint": false,
        "interpolant": "linear", "units_per_nm": 10}"#;
    let mut damaged = tensors.clone();
    damaged.remove("convs.3.node_update.0.Wu");
    assert!(complain(&bare(&damaged), all).contains("no tensor convs.3.node_update.0.Wu"));
    let mut more = tensors.clone();
    more.insert("convs.3.edge_message.1.Wh".into(), tensors["convs.3.edge_message.0.Wh"].clone());
    assert!(complain(&bare(&more), all).contains("convs.3.edge_message.1.Wh is not part of the network"));
    let message = complain("tests/pytorch/icbg.ckpt", all);
    assert!(message.contains("icbg.ckpt") && message.contains("not a vector field of BoltzNCE"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn inspect_tells_what_a_file_is() {
    let folder = folder("inspect");
    let output = folder.join("model.safetensors");
    converted_error("tests/pytorch/icbg.ckpt", &output);
    let run = modejump(&["inspect", "--json", output.to_str().unwrap()]);
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["dimension"], 66);
    assert_eq!(report["latent_dimension"], 60);
    assert_eq!(report["exactness"], "exact");
    assert_eq!(report["temperature_K"], 300.0);
    assert_eq!(report["atoms"].as_array().unwrap().len(), 22);
    assert_eq!(report["provenance"]["converted_from"], "bgflow");
    assert_eq!(report["layers"].as_array().unwrap().len(), 9);
    let sum: u64 = report["tensors"].as_object().unwrap().values().map(size).sum();
    assert_eq!(report["parameters"].as_u64(), Some(sum));
    let human = String::from_utf8(modejump(&["inspect", output.to_str().unwrap()]).stdout).unwrap();
    assert!(human.contains("latent_dimension") && human.contains("spline coupling"), "{human}");
    // other files: their tensors
    let run = modejump(&["inspect", "--json", "tests/pytorch/types.pt"]);
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["tensors"]["state_dict.net.0.weight"], serde_json::json!([3, 4]));
    assert!(complaint(&["inspect", "tests/pytorch/make.py"]).contains("make.py"));
    std::fs::remove_dir_all(folder).unwrap();
}

fn size(shape: &serde_json::Value) -> u64 {
    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product()
}
