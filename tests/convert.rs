//! `modejump convert` and `modejump inspect` as a user runs them.

use modejump::density::Evaluation;
use modejump::io::model_file::{read_tensors, Tensor};
use modejump::models::{load_with, Precision};
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
