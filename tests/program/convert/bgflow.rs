//! Coupling flows of bgflow.

use super::{log_density, one_hand_has_a_density};
use crate::command::{document, folder, largest_difference, modejump, tensor, tensors, write, Run, TOPOLOGY};
use modejump::io::model_file::{self, Tensor};
use modejump::models::coupling::LayerConfig;
use modejump::models::{load_with, ModelConfig, Precision};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::Path;

const STEM: &str = "tests/golden/flows/icbg_ala2_flex_idinit";

fn golden() -> BTreeMap<String, Tensor> {
    tensors(format!("{STEM}.safetensors"))
}

/// Largest difference of log q from the golden values, for a checkpoint with these converter arguments.
pub fn converted_error(checkpoint: &str, output: &Path) -> f64 {
    let config = format!("{STEM}.json");
    let arguments = ["convert", checkpoint, "--kind", "bgflow", "--config", &config, "--topology", TOPOLOGY];
    modejump(&arguments).args(["--temperature", "300", "-o"]).arg(output).succeeds();
    let model = load_with(output, Precision::F64).unwrap();
    assert_eq!(model.card().temperature, Some(300.0));
    let golden = golden();
    let log_q: Vec<f64> = golden["neglogq_eval"].data.iter().map(|minus| -minus).collect();
    largest_difference(&log_density(model.as_ref(), &golden["x_eval"].data), &log_q)
}

#[test]
fn safetensors_and_pytorch_checkpoints_give_the_reference_density() {
    let folder = folder("convert-density");
    for checkpoint in [format!("{STEM}.safetensors"), "tests/pytorch/icbg.ckpt".to_string()] {
        let error = converted_error(&checkpoint, &folder.join("model.safetensors"));
        assert!(error < 1e-10, "{checkpoint}: {error}");
    }
}

#[test]
fn a_topology_gives_names_and_hands() {
    let folder = folder("convert-names");
    let output = folder.join("model.safetensors");
    converted_error(&format!("{STEM}.safetensors"), &output);
    let x = golden()["x_eval"].data[..66].to_vec();
    one_hand_has_a_density(load_with(&output, Precision::F64).unwrap().as_ref(), x);
    let mut config = document("tests/golden/flows/realnvp_affine.json");
    (config["activation"], config["scale_activation"]) = ("relu".into(), "tanh".into());
    config["final_swap"] = true.into();
    let file = folder.join("config.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let realnvp = |topology: &str| {
        let (config, output) = (file.to_str().unwrap(), output.to_str().unwrap());
        let of = ["convert", "tests/golden/flows/realnvp_affine.safetensors", "--kind", "bgflow", "--config", config];
        modejump(&[&of[..], &["--topology", topology, "-o", output]].concat())
    };
    let [_, told] = realnvp(TOPOLOGY).texts();
    assert!(told.contains("does not preserve the handedness"), "{told}");
    let model = load_with(&output, Precision::F64).unwrap();
    assert_eq!(model.card().topology.as_ref().unwrap().label(0), "ACE1:CH3 (atom 1)");
    let message = realnvp("models/ala3/topology.pdb").fails();
    assert!(message.contains("the topology has 33 atoms, but the model has 66 coordinates"), "{message}");
}

/// The golden checkpoint with some of its tensors changed.
fn changed(path: &Path, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> String {
    let mut tensors = golden();
    change(&mut tensors);
    write(path, tensors);
    path.to_str().unwrap().to_string()
}

#[test]
fn a_marginal_without_upper_end_is_kept() {
    let folder = folder("convert-unbounded");
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
}

#[test]
fn nothing_of_a_bgflow_checkpoint_is_left_out_in_silence() {
    let folder = folder("convert-left-out");
    let (checkpoint, output) = (folder.join("checkpoint.safetensors"), folder.join("model.safetensors"));
    std::fs::write(&output, "what was there").unwrap();
    let config = format!("{STEM}.json");
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), reason: &str| {
        let checkpoint = changed(&checkpoint, change);
        let arguments =
            ["convert", &checkpoint, "--kind", "bgflow", "--config", &config, "-o", output.to_str().unwrap()];
        let message = modejump(&arguments).fails();
        assert!(message.contains(reason), "{message}");
        assert_eq!(std::fs::read(&output).unwrap(), b"what was there");
    };
    let of = |block: usize, name: &str| format!("w._blocks.{block}._flow._delegate.distribution.{name}");
    let rising = |n: usize| tensor(&[n], (0..n).map(|i| 0.01 + 1e-3 * i as f64).collect::<Vec<_>>());
    refused(
        &|tensors| _ = tensors.insert("w._blocks.99.transformer._log_alpha".into(), rising(1)),
        "tensor _blocks.99.transformer._log_alpha belongs to an unknown block",
    );
    // as bgflow numbers what it has behind a layer without tensors, a constraint of chirality
    refused(
        &|tensors| {
            let one_more = |name: String| match name.split('.').nth(2).and_then(|n| n.parse::<usize>().ok()) {
                Some(n) if n > 7 => name.replacen(&format!(".{n}."), &format!(".{}.", n + 1), 1),
                _ => name,
            };
            *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (one_more(name), tensor)).collect();
        },
        "other layers without tensors, such as a chirality constraint, are not supported",
    );
    // transposed, as by another convention
    refused(
        &|tensors| {
            let of_network = |(name, _): &(&String, &mut Tensor)| name.contains("_layers.4.weight");
            tensors.iter_mut().find(of_network).unwrap().1.shape.reverse();
        },
        "_layers.4.weight has shape [",
    );
    refused(
        &|tensors| _ = tensors.insert("callbacks.EMA.ema_weights.0".into(), rising(3)),
        "callbacks.EMA.ema_weights.0 and others look like moving averages",
    );
    refused(&|tensors| tensors.get_mut(&of(9, "_mu")).unwrap().data[0] = f64::NAN, "_mu contains NaN");
    refused(
        &|tensors| _ = tensors.insert(of(9, "_upper_bound"), tensor(&[1], [3.1])),
        "marginals of angles extend to 3.1: angles in radians",
    );
    refused(&|tensors| _ = tensors.remove(&of(9, "_mu")), "1 blocks with _mu, expected 2 truncated-normal marginals");
    refused(&|tensors| _ = tensors.remove(&of(10, "low")), "0 blocks with low, expected 1 uniform marginal");
    refused(&|tensors| _ = tensors.insert(of(11, "low"), rising(19)), "2 blocks with low");
    refused(
        &|tensors| _ = tensors.insert(of(8, "_lower_bound"), rising(21)),
        "tensor _blocks.8._flow._delegate.distribution._lower_bound: a separate bound for each coordinate",
    );
}

#[test]
fn constant_bonds_have_the_lengths_of_the_checkpoint() {
    let folder = folder("convert-lengths");
    let stem = "tests/golden/flows/icbg_ala2_hbonds_idinit";
    let mut all = tensors(format!("{stem}.safetensors"));
    all.get_mut("w._blocks.11._values_0").unwrap().data[0] += 0.01;
    let (checkpoint, output) = (folder.join("checkpoint.safetensors"), folder.join("model.safetensors"));
    write(&checkpoint, all);
    let mut command = modejump(&["convert", "--kind", "bgflow", "--config", &format!("{stem}.json"), "-o"]);
    let message = command.arg(output).arg(checkpoint).fails();
    assert!(message.contains("in the checkpoint's order of bonds"), "{message}");
}

#[test]
fn a_configuration_of_another_density_than_the_checkpoints_is_refused() {
    let folder = folder("convert-contradicted");
    let (config, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    let given = |stem: &str, key: &str, value: Value| {
        let mut changed = document(format!("tests/golden/flows/{stem}.json"));
        if stem.starts_with("realnvp") {
            (changed["activation"], changed["scale_activation"]) = ("relu".into(), "tanh".into());
            changed["final_swap"] = true.into();
        }
        changed[key] = value;
        std::fs::write(&config, changed.to_string()).unwrap();
        let checkpoint = format!("tests/golden/flows/{stem}.safetensors");
        let (config, output) = (config.to_str().unwrap(), output.to_str().unwrap());
        modejump(&["convert", &checkpoint, "--kind", "bgflow", "--config", config, "-o", output]).fails()
    };
    for (stem, key, value, reason) in [
        ("icbg_ala2_flex_idinit", "n_bins", json!(8.5), "n_bins must be a positive integer, not 8.5"),
        ("icbg_ala2_flex_idinit", "activation", json!(3), "activation 3 is not supported"),
        ("icbg_ala2_hbonds_idinit", "constrained_bond_len", json!([0.218]), "constrained_bond_len: the checkpoint has"),
        (
            "realnvp_affine",
            "activation",
            json!("gelu"),
            "activation \"gelu\" is not supported; known activations: \"relu\", \"silu\", \"tanh\"",
        ),
        ("realnvp_affine", "dim", json!(1_000_000_000_000u64), "dim = 1000000000000, but the first network has"),
    ] {
        let message = given(stem, key, value);
        assert!(message.contains(reason), "{message}");
    }
}

/// bgflow's own networks come with either function in either place, and tensors do not tell.
#[test]
fn a_realnvp_has_the_activations_of_its_configuration() {
    let folder = folder("convert-realnvp");
    let (config, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    let stem = "tests/golden/flows/realnvp_affine";
    let of = |given: &[(&str, Value)]| {
        let mut document = document(format!("{stem}.json"));
        given.iter().for_each(|(key, value)| document[key] = value.clone());
        std::fs::write(&config, document.to_string()).unwrap();
        let (config, output) = (config.to_str().unwrap(), output.to_str().unwrap());
        modejump(&["convert", &format!("{stem}.safetensors"), "--kind", "bgflow", "--config", config, "-o", output])
    };
    let message = of(&[("activation", json!("relu"))]).fails();
    let needed =
        ["config.json does not fully define", "scale_activation: activation function", "final_swap: true or false"];
    assert!(needed.iter().all(|part| message.contains(part)), "{message}");
    let golden = tensors(format!("{stem}.safetensors"));
    let x = &golden["x_eval"].data;
    let error = |shift: &str, scale: &str, final_swap: bool, x: &[f64]| {
        let given =
            [("activation", json!(shift)), ("scale_activation", json!(scale)), ("final_swap", json!(final_swap))];
        of(&given).succeeds();
        let model = load_with(&output, Precision::F64).unwrap();
        largest_difference(&log_density(model.as_ref(), x), &golden["logq_eval"].data)
    };
    assert!(error("relu", "tanh", true, x) < 1e-10);
    for (shift, scale) in [("relu", "relu"), ("tanh", "tanh"), ("silu", "tanh")] {
        assert!(error(shift, scale, true, x) > 1e-3, "{shift} and {scale}");
    }
    // without the last swap the halves come out the other way round
    let exchanged: Vec<f64> = x.chunks_exact(66).flat_map(|x| [&x[33..], &x[..33]].concat()).collect();
    assert!(error("relu", "tanh", false, &exchanged) < 1e-10 && error("relu", "tanh", false, x) > 1e-3);
}

#[test]
fn a_prior_of_another_density_is_refused() {
    let folder = folder("convert-prior");
    let (checkpoint, output) = (folder.join("checkpoint.safetensors"), folder.join("model.safetensors"));
    let config = format!("{STEM}.json");
    let with = |name: &str, values: &[f64]| {
        let own = golden().into_iter().filter_map(|(name, t)| Some((format!("_flow.{}", name.strip_prefix("w.")?), t)));
        let mut all: BTreeMap<String, Tensor> = own.collect();
        all.insert(name.into(), tensor(&[values.len()], values));
        write(&checkpoint, all);
        let (checkpoint, output) = (checkpoint.to_str().unwrap(), output.to_str().unwrap());
        modejump(&["convert", checkpoint, "--kind", "bgflow", "--config", &config, "-o", output])
    };
    for (name, standard, other) in [
        ("_prior._mean", [0.0, 0.0], [0.0, 2.0]),
        ("_prior._log_diag", [0.0, 0.0], [1.5, 0.0]),
        ("_prior._components.0.low", [0.0, 0.0], [-1.0, 0.0]),
        ("_prior._components.0.high", [1.0, 1.0], [1.0, 1.1]),
    ] {
        with(name, &standard).succeeds();
        let message = with(name, &other).fails();
        assert!(message.contains(&format!("{name} contains ")) && message.contains("the prior must be"), "{message}");
    }
    let [_, told] = with("_prior._temperature", &[1.0]).texts();
    assert!(told.contains("_prior._temperature is ignored"), "{told}");
}

#[test]
fn inputs_are_not_written_over() {
    let folder = folder("convert-over");
    let checkpoint = changed(&folder.join("checkpoint.safetensors"), |_| ());
    let before = std::fs::read(&checkpoint).unwrap();
    let config = format!("{STEM}.json");
    let message =
        modejump(&["convert", &checkpoint, "--kind", "bgflow", "--config", &config, "-o", &checkpoint]).fails();
    assert!(message.contains("would overwrite") && std::fs::read(&checkpoint).unwrap() == before, "{message}");
}

#[test]
fn what_is_missing_is_listed_with_its_flag() {
    let folder = folder("convert-missing");
    let output = folder.join("model.safetensors");
    let output = output.to_str().unwrap();
    let checkpoint = "tests/pytorch/icbg.ckpt";
    let message = modejump(&["convert", checkpoint, "--kind", "bgflow", "-o", output]).fails();
    for needed in ["--config", "z_matrix", "enable_identity_init", "n_bins", "activation", "preserve_volume"] {
        assert!(message.contains(needed), "{message}");
    }
    let partial = folder.join("partial.json");
    std::fs::write(&partial, r#"{"z_matrix": [[0, -1, -1, -1]], "n_bins": 8, "activation": "silu"}"#).unwrap();
    let partial = partial.to_str().unwrap();
    let message = modejump(&["convert", checkpoint, "--kind", "bgflow", "-o", output, "--config", partial]).fails();
    assert!(message.contains("enable_identity_init") && !message.contains("n_bins"), "{message}");

    let message = modejump(&["convert", checkpoint, "--kind", "tensorflow", "-o", output]).fails();
    assert!(message.contains("known kinds: bgflow, boltznce-gvp, boltznce-graphormer, ecnf, tarflow"), "{message}");
    let config = format!("{STEM}.json");
    let message =
        modejump(&["convert", "tests/pytorch/hostile.pt", "--kind", "bgflow", "-o", output, "--config", &config])
            .fails();
    assert!(message.contains("hostile.pt") && message.contains("`weight`"), "{message}");
    let wrong = ["convert", checkpoint, "--kind", "bgflow", "-o", output, "--config", &config, "--prefix", "ema."];
    assert!(modejump(&wrong).fails().contains("`state_dict.flow.`"));
    assert!(!Path::new(output).exists(), "a failed conversion left a file");
}
