//! A map between the ensembles of two models.

use super::Setting;
use crate::command::{log, modejump, number, Run, TOPOLOGY};
use modejump::io::model_file::read_tensors;

const VACUUM: &str = "models/ala2/system-vacuum.xml";

/// A design is written without training; the far end of a map begins as that, and learns by the energies of the System.
#[test]
fn the_far_end_of_a_map_is_trained_on_the_frames_of_the_near_end() {
    let setting = Setting::new("map");
    let design =
        r#""hidden": [12], "torsion_hidden": [8], "spline_rounds": 1, "affine_rounds": 1, "torsion_rounds": 1"#;
    let phase = r#"{"steps": 30, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 32}"#;
    std::fs::write(setting.path("design.json"), format!(r#"{{"design": {{{design}}}, "train": {{"phases": []}}}}"#))
        .unwrap();
    std::fs::write(setting.path("map.json"), format!(r#"{{"train": {{"phases": [{phase}], "evaluate": 15}}}}"#))
        .unwrap();
    let train = |arguments: &[&str], config: &str, output: &str| {
        let mut command = modejump(&["train", "--topology", TOPOLOGY, "--frames"]);
        command.args(&setting.frames).args(arguments).arg("--config").arg(setting.path(config));
        command.arg("--log").arg(setting.path("map.log")).arg("-o").arg(setting.path(output));
        command
    };
    train(&["--temperature", "1000"], "design.json", "near.safetensors").succeeds();
    let near = setting.path("near.safetensors");
    let near = near.to_str().unwrap();
    train(&["--map-from", near, "--system", VACUUM], "map.json", "far.safetensors").succeeds();
    let log = log(setting.path("map.log"));
    for name in ["ess", "acceptance", "reverse_kl"] {
        number(log.last().unwrap(), name);
    }
    let [near_model, far] =
        ["near.safetensors", "far.safetensors"].map(|f| modejump::models::load(setting.path(f)).unwrap());
    assert_eq!(far.card().temperature, Some(300.0));
    assert_eq!(far.card().provenance["map_from"], near_model.hash());
    modejump::bijection::Bijection::new(near_model, far).unwrap();
    let (near_tensors, far_tensors) = (setting.tensors("near.safetensors"), setting.tensors("far.safetensors"));
    assert!(near_tensors.iter().any(|(name, tensor)| tensor.data != far_tensors[name].data));
    for (arguments, config, message) in [
        (vec!["--map-from", near], "map.json", "use --system"),
        (vec!["--map-from", near, "--system", VACUUM], "train.json", "reverse KL"),
        (vec!["--map-from", near, "--system", VACUUM, "--model", "gvp_flow"], "map.json", "remove --model"),
    ] {
        let text = train(&arguments, config, "never.safetensors").fails();
        assert!(text.contains(message), "{text}");
    }
    frames_of_the_near_end_are_generated_at_its_temperature(&setting, near);
}

fn frames_of_the_near_end_are_generated_at_its_temperature(setting: &Setting, near: &str) {
    let kept = setting.path("kept.safetensors");
    let train = |temperature: &str| {
        let explore = r#""frames": 160, "hot_steps": 10, "cooling_steps": 5, "frames_per_segment": 10, "stride": 1"#;
        let phase = r#"{"steps": 2, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 8}"#;
        let options = format!(r#"{{"phases": [{phase}], "evaluation_samples": 8, "held_out": 0.2}}"#);
        let config = format!(r#"{{"explore": {{{explore}{temperature}}}, "train": {options}}}"#);
        std::fs::write(setting.path("explore.json"), config).unwrap();
        let mut command = modejump(&["train", "--topology", TOPOLOGY, "--map-from", near, "--system", VACUUM]);
        command.arg("--config").arg(setting.path("explore.json")).arg("--keep-frames").arg(&kept);
        command.arg("-o").arg(setting.path("explored.safetensors"));
        command
    };
    train("").succeeds();
    let (_, metadata) = read_tensors("kept", &std::fs::read(&kept).unwrap()).unwrap();
    assert!(metadata["origin"].contains(r#""temperature":1000.0"#), "{metadata:?}");
    let text = train(r#", "temperature": 300.0"#).fails();
    assert!(text.contains("that of --map-from is 1000 K"), "{text}");
}
