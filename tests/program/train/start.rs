//! A training from another model.

use super::Setting;
use crate::command::{log, modejump, number, Run, TOPOLOGY};

/// What a training takes over from the model of --start: its temperature, if no other is asked for, and its order of
/// atoms. A checkpoint belongs to the model that it started from; settings without effect are refused; a training that
/// diverges writes nothing.
#[test]
fn a_training_starts_from_a_model_of_its_atoms_at_its_temperature() {
    let setting = Setting::new("start");
    let settings = |more: &str| {
        let sizes = r#""channels": 8, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 1"#;
        let config =
            format!(r#"{{"tarflow": {{{sizes}, "train": {{"steps": 60, "batch": 8, "evaluate": 20{more}}}}}}}"#);
        setting.configure(&config);
    };
    let train = |output: &str, more: &[&str]| {
        let mut command = setting.train(output);
        command.args(["--model", "tarflow"]).args(more);
        command
    };
    let temperature = |name: &str| modejump::models::load(setting.path(name)).unwrap().card().temperature;
    let [hot, default] = ["hot.safetensors", "default.safetensors"].map(|name| setting.path(name));
    let [hot, default] = [&hot, &default].map(|path| path.to_str().unwrap());
    settings("");
    train(hot, &["--temperature", "310"]).succeeds();
    train(default, &[]).succeeds();
    assert_eq!((temperature(hot), temperature(default)), (Some(310.0), Some(300.0)));
    let checkpoint = setting.path("state.ckpt");
    train("further.safetensors", &["--start", hot]).arg("--checkpoint").arg(&checkpoint).succeeds();
    assert_eq!(temperature("further.safetensors"), Some(310.0));
    let [_, text] = train("other.safetensors", &["--start", hot, "--temperature", "330"]).texts();
    assert!(text.contains("is for 310 K, but the model trained from it is for 330 K"), "{text}");
    assert_eq!(temperature("other.safetensors"), Some(330.0));

    let same = ["--start", default, "--temperature", "310"];
    let text = train("further.safetensors", &same).arg("--checkpoint").arg(&checkpoint).fails();
    assert!(text.contains("belongs to another run (this run has a different file for --start)"), "{text}");
    let text = train(hot, &["--start", hot]).arg("--checkpoint").arg(setting.path("new.ckpt")).fails();
    assert!(text.contains("would overwrite"), "{text}");
    assert!(train(hot, &["--start", hot]).fails().contains("would overwrite"));
    // the hydrogens of a methyl group in another order
    let pdb = std::fs::read_to_string(TOPOLOGY).unwrap();
    let other = setting.path("other.pdb");
    std::fs::write(&other, pdb.replace("HB1", "HBX").replace("HB2", "HB1").replace("HBX", "HB2")).unwrap();
    let start = train("never.safetensors", &["--start", hot]);
    let arguments = start.get_args().map(|a| if a == TOPOLOGY { other.as_os_str() } else { a });
    let text = modejump(&[]).args(arguments).fails();
    assert!(text.contains(" where the model to start from has"), "{text}");

    let never = || train("never.safetensors", &[]).fails();
    settings(r#", "rate": 1e30"#);
    let text = never();
    assert!(text.contains("training diverged"), "{text}");
    setting.configure(r#"{"tarflow": {"head_size": 0}}"#);
    assert!(never().contains("`head_size` 0 does not divide the number of channels, 64"));
    setting.configure(r#"{"tarflow": {"token_size": 66}}"#);
    assert!(never().contains("`token_size` 66 makes one token of all coordinates"));
    setting.configure(r#"{"gvp_flow": {}, "tarflow": {}}"#);
    let text = never();
    assert!(text.contains("`gvp_flow` has no effect on this training, which reads tarflow, explore"), "{text}");
    setting.configure(r#"{"tarflow": {"train": {"pairing": "independent"}}, "explore": {}}"#);
    assert!(never().contains("`pairing` of `tarflow.train` applies only to flow matching"));
    setting.configure(r#"{"tarflow": {"head_size": 0}, "explore": {}}"#);
    let text = never();
    assert!(text.contains("note: `explore` of") && text.contains("frames are those of --frames"), "{text}");
    setting.configure("{}");
    let double_well = ["--model", "coupling", "--start", "models/double-well/generator.safetensors"];
    let text = setting.train("never.safetensors").args(double_well).fails();
    assert!(text.contains("2 coordinates, but 22 atoms have 66"), "{text}");
    let of_another_kind = |asked: &str| {
        let text = setting.train("never.safetensors").args(["--model", asked, "--start", hot]).fails();
        let expected = format!("hot.safetensors: expected a model of kind {asked}, found tarflow: use --model tarflow");
        assert!(text.contains(&expected), "{text}");
    };
    ["coupling", "egnn_flow", "gvp_ebm"].into_iter().for_each(of_another_kind);
    assert!(!setting.path("never.safetensors").exists());
}

/// ln Z of the log is that of the ensemble, with the metric term of constrained bonds (0.41), as in `reweight`.
#[cfg(feature = "openmm")]
#[test]
fn the_normaliser_of_a_constrained_system_is_that_of_its_ensemble() {
    let setting = Setting::new("metric");
    let [model, system] = ["model", "system"].map(|kind| format!("models/ala2/{kind}-hbonds."));
    let (model, system) = (model + "safetensors", system + "xml");
    let frames = setting.path("frames.safetensors");
    modejump(&["sample", &model, "-n", "200", "-o"]).arg(&frames).succeeds();
    setting.configure(
        r#"{"train": {"phases": [{"steps": 1, "batch": 16, "rate": 1e-9}], "evaluate": 1, "evaluation_samples": 1000}}"#,
    );
    let mut train = modejump(&["train", "--topology", TOPOLOGY, "--start", &model, "--system", &system, "--config"]);
    train.arg(setting.path("train.json")).arg("--frames").arg(&frames);
    train.arg("--log").arg(setting.path("log")).arg("-o").arg(setting.path("model.safetensors")).succeeds();
    let line = log(setting.path("log")).pop().unwrap();
    let [log_z, error] = ["log_z", "log_z_stderr"].map(|key| number(&line, key));
    let expected = modejump(&["reweight", &model, "--system", &system, "-n", "1000"]).json();
    let [expected, of_expected] = ["log_z", "log_z_stderr"].map(|key| number(&expected, key));
    let off = (log_z - expected) / error.hypot(of_expected);
    assert!(off.abs() < 4.0 && error.hypot(of_expected) < 0.08, "{log_z} ± {error}, not {expected} ± {of_expected}");
}
