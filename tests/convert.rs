//! `modejump convert`, `modejump evaluate` and `modejump inspect` as a user runs them.

use modejump::coordinates::Topology;
use modejump::density::{Evaluation, Exactness, Scope, Status};
use modejump::io::model_file::{self, read_tensors, write_tensors, Data, Tensor};
use modejump::models::continuous::{Interpolant, Parametrisation};
use modejump::models::coupling::LayerConfig;
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

/// The golden checkpoint with some of its tensors changed.
fn changed(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let mut tensors = golden();
    change(&mut tensors);
    let tensors = tensors.into_iter().map(|(name, t)| (name, (t.shape, Data::F64(t.data)))).collect();
    std::fs::write(path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn a_marginal_without_upper_end_is_kept() {
    let folder = folder("unbounded");
    let output = folder.join("model.safetensors");
    let checkpoint = changed(&folder.join("checkpoint.safetensors"), |tensors| {
        for block in [8, 9] {
            let name = format!("w._blocks.{block}._flow._delegate.distribution._upper_bound");
            tensors.get_mut(&name).unwrap().data = vec![f64::INFINITY];
        }
    });
    // the golden file's end is as good as none: twenty standard deviations away
    let error = converted_error(&checkpoint, &output);
    assert!(error < 1e-10, "{error}");
    let file = model_file::read("converted", &std::fs::read(&output).unwrap()).unwrap();
    let ModelConfig::Coupling(config) = file.card.model else { panic!("another model") };
    let ends = config.layers.iter().filter_map(|layer| match layer {
        LayerConfig::TruncatedNormal { lower, upper, .. } => Some([*lower, *upper]),
        _ => None,
    });
    assert!(ends.eq([[0.01, f64::INFINITY]; 2]));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn nothing_of_a_bgflow_checkpoint_is_left_out_in_silence() {
    let folder = folder("left-out");
    let (checkpoint, output) = (folder.join("checkpoint.safetensors"), folder.join("model.safetensors"));
    std::fs::write(&output, "what was there").unwrap();
    let config = format!("{STEM}.json");
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), reason: &str| {
        let checkpoint = changed(&checkpoint, change);
        let arguments =
            ["convert", &checkpoint, "--kind", "bgflow", "--config", &config, "-o", output.to_str().unwrap()];
        let message = complaint(&arguments);
        assert!(message.contains(reason), "{message}");
        assert_eq!(std::fs::read(&output).unwrap(), b"what was there");
    };
    let of = |block: usize, name: &str| format!("w._blocks.{block}._flow._delegate.distribution.{name}");
    let tensor = |n: usize| Tensor { shape: vec![n], data: (0..n).map(|i| 0.01 + 1e-3 * i as f64).collect() };
    refused(
        &|tensors| _ = tensors.insert("w._blocks.99.transformer._log_alpha".into(), tensor(1)),
        "tensor _blocks.99.transformer._log_alpha belongs to a block that is not known here",
    );
    refused(&|tensors| _ = tensors.remove(&of(9, "_mu")), "1 blocks with _mu, not 2 truncated-normal marginals");
    refused(&|tensors| _ = tensors.remove(&of(10, "low")), "0 blocks with low, not 1 uniform marginal");
    refused(&|tensors| _ = tensors.insert(of(11, "low"), tensor(19)), "2 blocks with low");
    refused(
        &|tensors| _ = tensors.insert(of(8, "_lower_bound"), tensor(21)),
        "tensor _blocks.8._flow._delegate.distribution._lower_bound: another bound for each coordinate",
    );
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_configuration_of_another_density_than_the_checkpoints_is_refused() {
    let folder = folder("contradicted");
    let (config, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    let given = |stem: &str, key: &str, value: serde_json::Value| {
        let text = std::fs::read_to_string(root().join(format!("tests/golden/flows/{stem}.json"))).unwrap();
        let mut changed: serde_json::Value = serde_json::from_str(&text).unwrap();
        changed[key] = value;
        std::fs::write(&config, changed.to_string()).unwrap();
        let checkpoint = format!("tests/golden/flows/{stem}.safetensors");
        let (config, output) = (config.to_str().unwrap(), output.to_str().unwrap());
        complaint(&["convert", &checkpoint, "--kind", "bgflow", "--config", config, "-o", output])
    };
    use serde_json::json;
    for (stem, key, value, reason) in [
        ("icbg_ala2_flex_idinit", "n_bins", json!(8.5), "n_bins: a positive integer is needed, not 8.5"),
        ("icbg_ala2_flex_idinit", "activation", json!(3), "activation 3: \"relu\""),
        (
            "icbg_ala2_hbonds_idinit",
            "constrained_bond_len",
            json!([0.218]),
            "constrained_bond_len: the checkpoint says",
        ),
        ("realnvp_affine", "activation", json!("silu"), "activation = \"silu\": a RealNVP of bgflow is read with Relu"),
        (
            "realnvp_affine",
            "dim",
            json!(1_000_000_000_000u64),
            "dim = 1000000000000, but the first network goes between",
        ),
    ] {
        let message = given(stem, key, value);
        assert!(message.contains(reason), "{message}");
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
    assert!(message.contains("known kinds: bgflow, boltznce-gvp, boltznce-graphormer, ecnf, tarflow"), "{message}");
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
    assert!(complain(&bare(&damaged), all).contains("tensor convs.3.node_update.0.Wu is missing"));
    let mut more = tensors.clone();
    more.insert("convs.3.edge_message.1.Wh".into(), tensors["convs.3.edge_message.0.Wh"].clone());
    assert!(complain(&bare(&more), all).contains("convs.3.edge_message.1.Wh is not part of the model"));
    let message = complain("tests/pytorch/icbg.ckpt", all);
    assert!(message.contains("icbg.ckpt") && message.contains("this is no vector field of BoltzNCE"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Writes a configuration of this text and converts with it; the model file, or the complaint.
fn convert(folder: &Path, kind: &str, checkpoint: &str, config: &str, more: &[&str]) -> Result<String, String> {
    let (json, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    let _ = std::fs::remove_file(&output);
    std::fs::write(&json, config).unwrap();
    let (json, path) = (json.to_str().unwrap(), output.to_str().unwrap().to_string());
    let run =
        modejump(&[&["convert", checkpoint, "--kind", kind, "-o", &path, "--config", json, "--json"], more].concat());
    match run.status.success() {
        true => {
            let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
            assert!(summary["output"] == path.as_str() && summary["parameters"].as_u64() > Some(0), "{summary}");
            Ok(path)
        }
        false => {
            assert!(!output.exists(), "a failed conversion left a file");
            Err(String::from_utf8(run.stderr).unwrap())
        }
    }
}

fn read(path: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    let path = root().join(path);
    read_tensors("file", &std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap().0
}

fn write(path: &Path, tensors: &[(&str, &[usize], &[f64])]) -> String {
    let tensor = |&(name, shape, data): &(&str, &[usize], &[f64])| {
        (name.to_string(), (shape.to_vec(), Data::F64(data.to_vec())))
    };
    let tensors = tensors.iter().map(tensor).collect();
    std::fs::write(path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    path.to_str().unwrap().to_string()
}

/// What `modejump evaluate` writes for a file in the network's units.
fn evaluate(folder: &Path, model: &str, input: &str, precision: &str) -> BTreeMap<String, Tensor> {
    let output = folder.join("values.safetensors");
    let run = modejump(&["evaluate", model, input, "-o", output.to_str().unwrap(), "--precision", precision, "--json"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let (summary, values): (serde_json::Value, _) = (serde_json::from_slice(&run.stdout).unwrap(), read(output));
    assert_eq!(summary["tensors"], serde_json::json!(values.keys().collect::<Vec<_>>()));
    values
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

const ECNF: &str = "tests/golden/sbg/ecnf_Ace-A-Nme/state_f32.safetensors";
const ECNF_VALUES: &str = "tests/golden/sbg/ecnf_Ace-A-Nme/io_f64.safetensors";

/// The configuration beside the golden file, with what it leaves open.
fn ecnf_config(more: serde_json::Value) -> String {
    let text = std::fs::read_to_string(root().join(ECNF).with_file_name("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

#[test]
fn a_converted_ecnf_gives_the_reference_values() {
    let folder = folder("ecnf");
    let config = ecnf_config(serde_json::json!({ "std": 0.16 }));
    let topology = ["--topology", "models/ala2/topology.pdb", "--temperature", "300"];
    let model = convert(&folder, "ecnf", ECNF, &config, &topology).unwrap();
    let card = load_with(&model, Precision::F64).unwrap().card().clone();
    assert_eq!((card.exactness, card.temperature), (Exactness::Exact, Some(300.0)));
    assert_eq!(card.provenance["converted_from"], "ecnf");
    let flow = card.model.flow().unwrap();
    assert_eq!((flow.parametrisation, flow.interpolant), (Parametrisation::Velocity, Interpolant::Linear));
    assert_eq!((flow.times, flow.units_per_nm, flow.stereocentres.len()), ([0.0, 1.0], 6.25, 1));

    let golden = read(ECNF_VALUES);
    let input = root().join(ECNF_VALUES);
    let found = evaluate(&folder, &model, input.to_str().unwrap(), "f64");
    assert_eq!(found["velocity"].shape, [8, 22, 3]);
    assert!(largest_difference(&found["velocity"].data, &golden["v"].data) < 1e-10);
    // the reference's right-hand side of the ODE: velocity and minus the divergence, two rows at t = 0.3
    let input = write(
        &folder.join("input.safetensors"),
        &[("x", &[2, 22, 3], &golden["x"].data[..132]), ("t", &[2], &[0.3; 2])],
    );
    let expected: Vec<f64> = golden["wrapped_t0.3"].data.chunks_exact(67).map(|row| -row[66]).collect();
    for (precision, tolerance) in [("f64", 1e-10), ("f32", 1e-4)] {
        let found = evaluate(&folder, &model, &input, precision);
        let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        assert!(largest_difference(&found["divergence"].data, &expected) < tolerance * scale, "{precision}");
        assert!(!found.contains_key("drift"));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_an_ecnf_lacks_or_contradicts_is_said() {
    let folder = folder("ecnf-missing");
    let complain = |config: &str| convert(&folder, "ecnf", ECNF, config, &[]).unwrap_err();
    let message = complain("{}");
    for needed in ["features", "h_initial_types", "coords_range", "std"] {
        assert!(message.contains(needed), "{message}");
    }
    let with = |more| complain(&ecnf_config(more));
    let message = with(serde_json::json!({}));
    assert!(message.contains("std: standard deviation") && !message.contains("coords_range"), "{message}");
    let message = with(serde_json::json!({ "std": 0.16, "coords_range_layer": 2.0 }));
    assert!(message.contains("coords_range is 15, but coords_range_layer × layers is 10"), "{message}");
    let message = with(serde_json::json!({ "std": 0.16, "units_per_nm": 10 }));
    assert!(message.contains("units_per_nm is 10, but 1/std is 6.25"), "{message}");
    assert!(with(serde_json::json!({ "std": 0.16, "tanh": false })).contains("tanh = false"));
    assert!(with(serde_json::json!({ "std": 0.16, "num_layers": 9 })).contains("num_layers = 9"));
    assert!(with(serde_json::json!({ "std": -1.0 })).contains("std: a positive number is needed"));
    assert!(with(serde_json::json!({ "std": 1.0, "features": vec![21; 22] })).contains("atom 1"));
    let config = ecnf_config(serde_json::json!({ "std": 0.16 }));
    let message = convert(&folder, "ecnf", FIELD, &config, &[]).unwrap_err();
    assert!(message.contains("this is no ECNF of transferable-samplers"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}

const TARFLOW: &str = "tests/golden/sbg/tarflow_small/state_f32.safetensors";
const TARFLOW_VALUES: &str = "tests/golden/sbg/tarflow_small/io_f64.safetensors";

#[test]
fn a_converted_tarflow_gives_the_reference_values() {
    let folder = folder("tarflow");
    let temperature = ["--temperature", "300"]; // the configurations are random ones, of any hand
    let golden = read(TARFLOW_VALUES);
    let n = golden["log_q"].data.len();
    // in the network's units and without noise of the centroid it is the reference's log q
    let plain = r#"{ "std": 1.0, "com_augmentation": false }"#;
    let model = convert(&folder, "tarflow", TARFLOW, plain, &temperature).unwrap();
    let flow = load_with(&model, Precision::F64).unwrap();
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.log_density(&golden["x"].data, &mut log_q).unwrap();
    let log_q: Vec<f64> = log_q.iter().map(|e| e.log_density).collect();
    assert!(largest_difference(&log_q, &golden["log_q"].data) < 1e-11);
    // in nm and relative to the noise it differs by the change of units and by the density of the centroid
    let model = convert(&folder, "tarflow", TARFLOW, r#"{ "std": 0.16 }"#, &temperature).unwrap();
    let flow = load_with(&model, Precision::F64).unwrap();
    let sigma = 0.16 / 22f64.sqrt();
    assert!(matches!(flow.scope(), Scope::Noisy { sigma: s } if (s - sigma).abs() < 1e-15));
    let x: Vec<f64> = golden["x"].data.iter().map(|x| 0.16 * x).collect();
    let mut found = vec![Evaluation::inside(0.0); n];
    flow.log_density(&x, &mut found).unwrap();
    for (row, (found, plain)) in found.iter().zip(&log_q).enumerate() {
        let c = modejump::coordinates::vector::centroid(&x[66 * row..66 * (row + 1)]);
        let squared = c.iter().map(|c| c * c).sum::<f64>() / (sigma * sigma);
        let normal = -0.5 * squared - 1.5 * (2.0 * std::f64::consts::PI * sigma * sigma).ln();
        let expected = plain - 66.0 * 0.16f64.ln() - normal + 1.5 * 22f64.ln();
        assert!((found.log_density - expected).abs() < 1e-9, "{} {expected}", found.log_density);
    }
    let model = convert(&folder, "tarflow", TARFLOW, plain, &["--topology", "models/ala2/topology.pdb"]).unwrap();
    only_one_hand_has_a_density(&model, "models/ala2/topology.pdb");
    std::fs::remove_dir_all(folder).unwrap();
}

/// The molecule of a topology is inside the support, its mirror image is not.
fn only_one_hand_has_a_density(model: &str, topology: &str) {
    let model = load_with(model, Precision::F32).unwrap();
    let (_, x) = Topology::from_pdb(&root().join(topology)).unwrap();
    let image: Vec<f64> = x.iter().map(|v| -v).collect();
    let mut found = [Evaluation::inside(0.0); 2];
    model.log_density(&[x, image].concat(), &mut found).unwrap();
    assert_eq!(found.map(|e| e.status), [Status::Inside, Status::WrongChirality]);
}

#[test]
fn what_a_tarflow_lacks_or_contradicts_is_said() {
    let folder = folder("tarflow-missing");
    let complain = |config: &str| convert(&folder, "tarflow", TARFLOW, config, &[]).unwrap_err();
    assert!(complain("{}").contains("std: standard deviation"));
    assert!(complain(r#"{ "std": 0.16, "channels": 256 }"#).contains("channels = 256"));
    assert!(complain(r#"{ "std": 0.16, "head_dim": 48 }"#).contains("heads of 48"));
    for size in ["16.0", "\"16\"", "-16", "0"] {
        let message = complain(&format!(r#"{{ "std": 0.16, "head_dim": {size} }}"#));
        assert!(message.contains(&format!("head_dim: a positive integer is needed, not {size}")), "{message}");
    }
    assert!(complain(r#"{ "std": 0.16, "com_augmentation": 0 }"#).contains("com_augmentation: true or false"));
    // a misspelt key is named, and so is what is assumed
    let config = folder.join("misspelt.json");
    std::fs::write(&config, r#"{ "std": 0.16, "head_size": 16 }"#).unwrap();
    let output = folder.join("assumed.safetensors");
    let [config, output] = [&config, &output].map(|path| path.to_str().unwrap());
    let run = modejump(&["convert", TARFLOW, "--kind", "tarflow", "--config", config, "-o", output]);
    let text = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success() && text.contains("heads of 64 columns are assumed"), "{text}");
    assert!(text.contains("not read: head_size") && text.contains("hands of stereocentres are not known"), "{text}");
    assert!(complain(r#"{ "std": 0 }"#).contains("std: a positive number"));
    let message = convert(&folder, "tarflow", FIELD, r#"{ "std": 0.16 }"#, &[]).unwrap_err();
    assert!(message.contains("this is no single-system TarFlow"), "{message}");
    let other = ["--topology", "tests/golden/openmm/peroxide.pdb"];
    assert!(convert(&folder, "tarflow", TARFLOW, r#"{ "std": 0.16 }"#, &other).is_err());
    std::fs::remove_dir_all(folder).unwrap();
}

const PROSE: &str = "tests/golden/sbg/prose_tiny";
const TRANSFERABLE: &str = "tests/golden/sbg/tarflow_transferable_tiny";

/// A PDB file of a peptide of the golden data, its atoms far apart.
fn peptide_pdb(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(root().join(PROSE).join("topologies.json")).unwrap();
    let peptides: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut pdb = String::new();
    for (i, atom) in peptides[name]["atoms"].as_array().unwrap().iter().enumerate() {
        let [residue, atom] = [0, 1].map(|k| atom[k].as_str().unwrap());
        let place = peptides[name]["encodings"]["aa_pos"][i].as_u64().unwrap();
        let x = 5.0 * i as f64;
        pdb += &format!("ATOM  {:>5} {atom:<4} {residue} A{place:>4}    {x:8.3}   0.000   0.000\n", i + 1);
    }
    let path = folder.join(format!("{name}.pdb"));
    std::fs::write(&path, pdb).unwrap();
    path.to_str().unwrap().to_string()
}

/// log q of a row of the golden data's configurations by a model file for its peptide.
fn log_q_of_row(model: &str, golden: &BTreeMap<String, Tensor>, row: usize) -> f64 {
    let model = load_with(model, Precision::F64).unwrap();
    let (d, width) = (model.dimension(), golden["pad_x"].data.len() / golden["pad_x"].shape[0]);
    let mut log_q = [Evaluation::inside(0.0)];
    model.log_density(&golden["pad_x"].data[row * width..][..d], &mut log_q).unwrap();
    log_q[0].log_density
}

/// Head size and orders come from the configuration, the network's units and no noise of the centroid.
fn plain_config(folder: &str) -> String {
    let text = std::fs::read_to_string(root().join(folder).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config["std"] = 1.0.into();
    config["com_augmentation"] = false.into();
    config.to_string()
}

#[test]
fn converted_transferable_models_give_the_reference_values_and_are_bound_to_other_peptides() {
    for (name, kind) in [(PROSE, "prose"), (TRANSFERABLE, "transferable-tarflow")] {
        let folder = folder(kind);
        let golden = read(format!("{name}/io_f64.safetensors"));
        let checkpoint = format!("{name}/state_f32.safetensors");
        let [first, second] = ["AG", "VF"].map(|peptide| peptide_pdb(&folder, peptide));
        let config = plain_config(name);
        let options = ["--topology", &first, "--temperature", "310"];
        let model = convert(&folder, kind, &checkpoint, &config, &options).unwrap();
        assert!((log_q_of_row(&model, &golden, 0) - golden["pad_log_q"].data[0]).abs() < 1e-11);
        let bound = folder.join("bound.safetensors");
        let bound = bound.to_str().unwrap();
        let run = modejump(&["convert", &model, "--kind", kind, "--topology", &second, "-o", bound]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        assert!((log_q_of_row(bound, &golden, 1) - golden["pad_log_q"].data[1]).abs() < 1e-11);
        let card = load_with(bound, Precision::F32).unwrap().card().clone();
        assert_eq!((card.model.kind(), card.temperature), ("transferable_tarflow", Some(310.0)));
        assert!(card.provenance["bound_from"].starts_with("model.safetensors"));
        assert_eq!(card.topology.unwrap().label(18), "PHE2:N (atom 19)");
        let tripeptide = "models/ala3/topology.pdb";
        let run = modejump(&["convert", &model, "--kind", kind, "--topology", tripeptide, "-o", bound]);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        only_one_hand_has_a_density(bound, tripeptide);
        // in nm the centroid is that of the peptide's atoms
        let config =
            config.replace("\"std\":1.0", "\"std\":0.35").replace("\"com_augmentation\":false", "\"pad_to\":41");
        let model = convert(&folder, kind, &checkpoint, &config, &["--topology", &first]).unwrap();
        let sigma = 0.35 / 20f64.sqrt();
        let scope = load_with(&model, Precision::F64).unwrap().scope();
        assert!(matches!(scope, Scope::Noisy { sigma: s } if (s - sigma).abs() < 1e-15));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn what_a_transferable_model_lacks_or_contradicts_is_said() {
    let folder = folder("transferable-missing");
    let (checkpoint, plain) =
        (format!("{PROSE}/state_f32.safetensors"), format!("{TRANSFERABLE}/state_f32.safetensors"));
    let pdb = peptide_pdb(&folder, "AG");
    let topology = ["--topology", pdb.as_str()];
    let complain = |kind: &str, checkpoint: &str, config: &str, more: &[&str]| {
        convert(&folder, kind, checkpoint, config, more).unwrap_err()
    };
    let config = plain_config(PROSE);
    let message = complain("prose", &checkpoint, "{}", &[]);
    assert!(message.contains("std: standard deviation") && message.contains("--topology"), "{message}");
    let message = complain("prose", &checkpoint, &config, &["--topology", "models/ala2/topology.pdb"]);
    assert!(message.contains("models/ala2/topology.pdb") && message.contains("residue ACE1"), "{message}");
    let message = complain("tarflow", &checkpoint, &config, &[]);
    assert!(message.contains("--kind transferable-tarflow"), "{message}");
    let message = complain("prose", &plain, &plain_config(TRANSFERABLE), &topology);
    assert!(message.contains("no adaptive layer norms"), "{message}");
    for (change, to, words) in [
        ("\"channels\":8", "\"channels\":384", "channels = 384"),
        ("\"head_dim\":4", "\"head_dim\":64", "heads of 64"),
        ("\"use_transition\":true", "\"use_transition\":false", "use_transition = false"),
        ("n2c_backbone-first_variant_flip", "n2c_sideways", "permutation_keys: order of atoms `n2c_sideways`"),
        ("\"sinusoid_div_value\":1000", "\"sinusoid_div_value\":0", "sinusoid_div_value: a positive number"),
        ("\"pos_embed_type\":\"sinusoidal\"", "\"pos_embed_type\":\"learned\"", "pos_embed_type = \"learned\""),
        ("\"channels\":8", "\"channels\":8,\"gelu\":\"tanh\"", "gelu = \"tanh\""),
        ("\"channels\":8", "\"channels\":8,\"layernorm_eps\":1e-6", "layernorm_eps = 1e-6"),
    ] {
        assert!(config.contains(change), "{change}: {config}");
        let message = complain("prose", &checkpoint, &config.replace(change, to), &topology);
        assert!(message.contains(words), "{words}: {message}");
    }
    // a tensor too many, a tensor too few
    let changed = folder.join("changed.safetensors");
    let mut tensors = read(&checkpoint);
    let write = |tensors: &BTreeMap<String, Tensor>| {
        let data = |t: &Tensor| (t.shape.clone(), Data::F64(t.data.clone()));
        let tensors = tensors.iter().map(|(name, t)| (name.clone(), data(t))).collect();
        std::fs::write(&changed, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    };
    tensors.insert("blocks.0.pair_proj.0.bias".into(), Tensor { shape: vec![16], data: vec![0.0; 16] });
    write(&tensors);
    let message = complain("prose", changed.to_str().unwrap(), &config, &topology);
    assert!(message.contains("blocks.0.pair_proj.0.bias is not part of the model"), "{message}");
    tensors.remove("blocks.0.pair_proj.0.bias");
    tensors.remove("blocks.7.attn_blocks.0.transition.transition.linear_out.weight");
    write(&tensors);
    let message = complain("prose", changed.to_str().unwrap(), &config, &topology);
    assert!(message.contains("blocks.7.attn_blocks.0.transition.transition.linear_out.weight is missing"), "{message}");
    // model files of this program
    let model = convert(&folder, "prose", &checkpoint, &config, &topology).unwrap();
    let output = folder.join("bound.safetensors");
    let bind = |model: &str, more: &[&str]| {
        complaint(&[&["convert", model, "--kind", "prose", "-o", output.to_str().unwrap()], more].concat())
    };
    assert!(bind(&model, &[]).contains("--topology FILE.pdb is needed"));
    assert!(bind(&model, &["--topology", "models/ala2/topology.pdb"]).contains("residue ACE1"));
    assert!(bind("models/ala2/model.safetensors", &topology).contains("a model of the kind coupling"));
    for option in [&["--config", "config.json"][..], &["--prefix", "net."], &["--raw-weights"]] {
        assert!(bind(&model, &[&topology[..], option].concat()).contains(&format!("leave {} out", option[0])));
    }
    // one that does not load is not bound
    let (mut tensors, metadata) = read_tensors("model", &std::fs::read(&model).unwrap()).unwrap();
    tensors.remove("blocks.7.proj_out.weight").unwrap();
    let tensors = tensors.into_iter().map(|(name, t)| (name, (t.shape, Data::F64(t.data)))).collect();
    std::fs::write(&changed, write_tensors(&tensors, metadata).unwrap()).unwrap();
    let message = bind(changed.to_str().unwrap(), &topology);
    assert!(message.contains("tensor blocks.7.proj_out.weight is missing"), "{message}");
    assert!(!output.exists());
    std::fs::remove_dir_all(folder).unwrap();
}

/// Names of parameters in the order in which the reference's modules were made.
fn made(kind: &str) -> Vec<String> {
    let affine = |names: &[&str], prefix: &str| -> Vec<String> {
        names.iter().flat_map(|n| [format!("{prefix}{n}.weight"), format!("{prefix}{n}.bias")]).collect()
    };
    let layer = |prefix: &str, last: &str, qk: bool| {
        let mut names = affine(&["attention.norm", "attention.qkv", "attention.proj"], prefix);
        if qk {
            names.extend(affine(&["attention.q_layer_norm", "attention.k_layer_norm"], prefix));
        }
        names.extend(affine(&["mlp.norm", "mlp.main.0", last], prefix));
        names
    };
    let mut names = Vec::new();
    match kind {
        "tarflow" => {
            for b in 0..4 {
                names.push(format!("blocks.{b}.pos_embed"));
                names.extend(affine(&["proj_in"], &format!("blocks.{b}.")));
                for l in 0..2 {
                    names.extend(layer(&format!("blocks.{b}.attn_blocks.{l}."), "mlp.main.3", false));
                }
                names.extend(affine(&["proj_out"], &format!("blocks.{b}.")));
            }
        }
        "prose" => {
            names.extend(["atom", "residue"].map(|of| format!("cond_embed.{of}_embed.weight")));
            names.extend(affine(&["mlp.0", "mlp.2"], "cond_embed."));
            for b in 0..8 {
                names.push(format!("blocks.{b}.pos_embed_scale"));
                names.extend(affine(&["proj_in", "proj_cond.0", "proj_cond.2"], &format!("blocks.{b}.")));
                let around = |part: &str, inside: Vec<String>| {
                    let prefix = format!("blocks.{b}.attn_blocks.0.{part}.");
                    let mut names = affine(&["adaln.norm_cond", "adaln.to_gamma.0"], &prefix);
                    names.push(format!("{prefix}adaln.to_beta.weight"));
                    names.extend(inside.into_iter().map(|name| format!("{prefix}{name}")));
                    names.extend(affine(&["scale_output.to_adaln_zero_gamma.0"], &prefix));
                    names
                };
                names.extend(around("mha", layer("mha.", "mlp.main.2", true)));
                let matrices = ["transition.swish_linear.0.weight", "transition.linear_out.weight"];
                names.extend(around("transition", matrices.map(String::from).to_vec()));
                names.extend(affine(&["proj_out"], &format!("blocks.{b}.")));
            }
        }
        _ => {
            names.extend(affine(&["embedding", "embedding_out"], "egnn."));
            for l in 0..5 {
                let prefix = format!("egnn.gcl_{l}.");
                names.extend(affine(&["edge_mlp.0", "edge_mlp.2", "node_mlp.0", "node_mlp.2", "coord_mlp.0"], &prefix));
                names.push(format!("{prefix}coord_mlp.2.weight"));
                names.extend(affine(&["att_mlp.0"], &prefix));
            }
        }
    }
    names
}

/// A training checkpoint: weights, half of what they were, with moving averages, which are what they were.
fn with_averages(folder: &Path, kind: &str, state: &str) -> String {
    let tensors = read(state);
    let mut all = BTreeMap::new();
    let f32s =
        |t: &Tensor, factor: f64| (t.shape.clone(), Data::F32(t.data.iter().map(|v| (factor * v) as f32).collect()));
    for (name, tensor) in &tensors {
        all.insert(format!("net.model.{name}"), f32s(tensor, 0.5));
    }
    for (i, name) in made(kind).iter().enumerate() {
        let tensor = tensors.get(name).unwrap_or_else(|| panic!("no {name}"));
        all.insert(format!("net.shadow_params.{i}"), f32s(tensor, 1.0));
    }
    all.insert("net.num_updates".into(), (vec![1], Data::F32(vec![7.0])));
    let path = folder.join(format!("{kind}-averages.safetensors"));
    std::fs::write(&path, write_tensors(&all, Default::default()).unwrap()).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn moving_averages_are_converted_unless_the_weights_themselves_are_wanted() {
    let folder = folder("averages");
    let ala2 = ["--topology", "models/ala2/topology.pdb"];
    let ecnf = ecnf_config(serde_json::json!({ "std": 0.16 }));
    let pdb = peptide_pdb(&folder, "AG");
    let peptide = ["--topology", pdb.as_str()];
    for (kind, state, config, options) in [
        ("tarflow", TARFLOW.to_string(), r#"{ "std": 0.16 }"#.to_string(), ala2),
        ("prose", format!("{PROSE}/state_f32.safetensors"), plain_config(PROSE), peptide),
        ("ecnf", ECNF.to_string(), ecnf, ala2),
    ] {
        let weights = |model: String| {
            let mut tensors = read(&model);
            let card = load_with(&model, Precision::F32).unwrap().card().clone();
            std::fs::remove_file(&model).unwrap();
            tensors.retain(|name, _| !name.contains("embedding_out"));
            (tensors, card.provenance.get("weights").cloned())
        };
        let checkpoint = with_averages(&folder, kind, &state);
        let (expected, _) = weights(convert(&folder, kind, &state, &config, &options).unwrap());
        let (found, said) = weights(convert(&folder, kind, &checkpoint, &config, &options).unwrap());
        assert!(found == expected, "{kind}");
        assert_eq!(said.as_deref(), Some("moving averages"));
        let raw = [options.as_slice(), &["--raw-weights"]].concat();
        let (found, said) = weights(convert(&folder, kind, &checkpoint, &config, &raw).unwrap());
        let halves = found.iter().all(|(name, t)| t.data.iter().zip(&expected[name].data).all(|(a, b)| 2.0 * a == *b));
        assert!(halves && said.is_none(), "{kind}");
        // one average too few
        let mut tensors = read(&checkpoint);
        tensors.remove(&format!("net.shadow_params.{}", made(kind).len() - 1));
        let tensors = tensors.into_iter().map(|(name, t)| (name, (t.shape, Data::F64(t.data)))).collect();
        std::fs::write(&checkpoint, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
        let message = convert(&folder, kind, &checkpoint, &config, &options).unwrap_err();
        assert!(message.contains("moving averages") && message.contains("--raw-weights"), "{message}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

const GRAPHORMER: &str = "tests/golden/boltznce/graphormer_seed7.safetensors";
const GRAPHORMER_VALUES: &str = "tests/golden/boltznce/graphormer_field.safetensors";

fn graphormer_types() -> Vec<usize> {
    read(GRAPHORMER_VALUES)["atoms"].data.iter().map(|&a| a as usize - 1).collect()
}

#[test]
fn a_converted_graphormer_gives_the_reference_values() {
    let folder = folder("graphormer");
    let config = serde_json::json!({ "types": graphormer_types(), "blocks": 1, "units_per_nm": 10 }).to_string();
    let model = convert(&folder, "boltznce-graphormer", GRAPHORMER, &config, &[]).unwrap();
    let loaded = load_with(&model, Precision::F64).unwrap();
    let card = loaded.card();
    assert_eq!(card.exactness, Exactness::Surrogate);
    assert!(card.provenance["notice"].contains("MIT License. Copyright (c) 2025 RishalAggarwal"));
    let golden = read(GRAPHORMER_VALUES);
    let input = root().join(GRAPHORMER_VALUES);
    for (precision, tolerance) in [("f64", 1e-10), ("f32", 1e-5)] {
        let found = evaluate(&folder, &model, input.to_str().unwrap(), precision);
        for (name, expected) in [("energy", "energy_f64"), ("score", "score_f64")] {
            let expected = &golden[expected].data;
            let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            assert!(largest_difference(&found[name].data, expected) < tolerance * scale, "{name} in {precision}");
        }
    }
    // log q of configurations in nm is the energy at t = 0 in the network's units
    let x: Vec<f64> = golden["x"].data.iter().map(|x| x / 10.0).collect();
    let mut log_q = [Evaluation::inside(0.0); 6];
    loaded.log_density(&x, &mut log_q).unwrap();
    let mut energy = [0.0; 6];
    loaded.energy().unwrap().energy(&[0.0; 6], &golden["x"].data, &mut energy);
    let log_q = log_q.map(|e| e.log_density);
    assert!(largest_difference(&log_q, &energy) < 1e-10);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_a_graphormer_lacks_or_contradicts_is_said() {
    let folder = folder("graphormer-missing");
    let complain =
        |config: serde_json::Value| convert(&folder, "boltznce-graphormer", GRAPHORMER, &config.to_string(), &[]);
    let message = complain(serde_json::json!({})).unwrap_err();
    for needed in ["types", "blocks", "units_per_nm"] {
        assert!(message.contains(needed), "{message}");
    }
    let with = |key: &str, value: serde_json::Value| {
        let mut config = serde_json::json!({ "types": graphormer_types(), "blocks": 1, "units_per_nm": 10 });
        config[key] = value;
        complain(config).unwrap_err()
    };
    assert!(with("num_layers", 8.into()).contains("num_layers = 8"));
    assert!(with("blocks", 0.into()).contains("blocks: a positive whole number"));
    assert!(with("types", serde_json::json!([0, 5])).contains("atom 2: type 5 of 5"));
    assert!(with("units_per_nm", 0.into()).contains("units_per_nm"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_end_point_is_written_as_it_is_and_as_the_velocity_that_follows() {
    let folder = folder("endpoint");
    let name = "trained_vector_5_layer_ot_endpoint_tmax100_ema.safetensors";
    let checkpoint = format!("tests/golden/boltznce/weights/{name}");
    let model = convert(&folder, "boltznce-gvp", &checkpoint, r#"{"dataset": "ad2"}"#, &[]).unwrap();
    let input = root().join(format!("tests/golden/boltznce/field_{name}"));
    let golden = read(&input);
    let found = evaluate(&folder, &model, input.to_str().unwrap(), "f64");
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
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn unusable_input_of_evaluate_is_named() {
    let folder = folder("evaluate");
    let config = serde_json::json!({ "types": graphormer_types(), "blocks": 1, "units_per_nm": 10 }).to_string();
    let model = convert(&folder, "boltznce-graphormer", GRAPHORMER, &config, &[]).unwrap();
    let output = folder.join("out.safetensors");
    let complain = |model: &str, tensors: &[(&str, &[usize], &[f64])]| {
        let input = write(&folder.join("in.safetensors"), tensors);
        let message = complaint(&["evaluate", model, &input, "-o", output.to_str().unwrap()]);
        assert!(!output.exists());
        message
    };
    let x = [0.5; 54];
    assert!(complain(&model, &[("x", &[2, 9, 3], &x)]).contains("no tensor `t`"));
    assert!(complain(&model, &[("t", &[1], &[0.0])]).contains("no tensor `x`"));
    let atoms = complain(&model, &[("x", &[3, 6, 3], &x), ("t", &[3], &[0.0; 3])]);
    assert!(atoms.contains("`x` has shape [3, 6, 3], the model needs [n, 9, 3]"), "{atoms}");
    let times = complain(&model, &[("x", &[2, 9, 3], &x), ("t", &[3], &[0.0; 3])]);
    assert!(times.contains("`t` has 3 times for 2 configurations"), "{times}");
    let mut broken = x;
    broken[40] = f64::NAN;
    let nan = complain(&model, &[("x", &[2, 9, 3], &broken), ("t", &[2], &[0.0; 2])]);
    assert!(nan.contains("`x` holds NaN at position 40"), "{nan}");
    let neither = complain("models/ala2/model.safetensors", &[("x", &[1, 22, 3], &[0.1; 66]), ("t", &[1], &[0.0])]);
    assert!(neither.contains("neither a vector field nor an energy"), "{neither}");
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
