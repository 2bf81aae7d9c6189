//! `modes` and `train --modes`: what is refused, and that the file can be used.

use crate::command::{folder, modejump, Run, TOPOLOGY};
use std::path::{Path, PathBuf};

/// Two modes of the double well, both with its generator; `change` edits the description.
fn description(folder: &Path, change: impl Fn(String) -> String) -> PathBuf {
    let generator = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/generator.safetensors");
    let mode = |name: &str, range: &str| {
        let within = format!(r#"[{{ "along": {{ "component": 0 }}, "range": {range} }}]"#);
        format!(r#"{{ "name": "{name}", "within": {within}, "generator": "{}" }}"#, generator.display())
    };
    let text = format!(r#"{{ "modes": [{}, {}] }}"#, mode("left", "[-3.0, 0.0]"), mode("right", "[0.0, 3.0]"));
    let path = folder.join("description.json");
    std::fs::write(&path, change(text)).unwrap();
    path
}

#[test]
fn a_description_becomes_one_model_file() {
    let folder = folder("modes-made");
    let path = description(&folder, |text| text);
    let output = folder.join("jump.safetensors");
    let modes = |output: &Path| {
        let mut command = modejump(&["modes"]);
        command.arg(&path).arg("-o").arg(output);
        command
    };
    assert_eq!(modes(&output).succeeds(), "left <-> right\n");
    let message = modes(&path).fails();
    assert!(message.contains("would overwrite"), "{message}");
    let model = modejump::models::load(&output).unwrap();
    let modes = model.modes().unwrap();
    assert_eq!((modes.modes().names(), modes.generators().len()), (&["left".to_string(), "right".into()][..], 2));
    // the mixture of a generator with itself is that generator
    let samples = folder.join("samples.npy");
    modejump(&["sample", "-n", "10", "-o"]).arg(&samples).arg(&output).succeeds();
    let inspected = modejump(&["inspect"]).arg(&output).succeeds();
    assert!(inspected.contains("modes"), "{inspected}");
}

#[test]
fn descriptions_that_cannot_be_used_are_refused_and_nothing_is_written() {
    let folder = folder("modes-refused");
    let output = folder.join("jump.safetensors");
    let refusal = |change: &dyn Fn(String) -> String| {
        let path = description(&folder, change);
        let message = modejump(&["modes", path.to_str().unwrap(), "-o", output.to_str().unwrap()]).fails();
        assert!(!output.exists(), "{message}");
        message
    };
    assert!(refusal(&|text| text.replace("\"right\"", "\"left\"")).contains("unique names"));
    assert!(refusal(&|text| text.replace("\"component\": 0", "\"component\": 2")).contains("component 2 of 2"));
    assert!(
        refusal(&|text| text.replace("generator.safetensors", "nothing.safetensors")).contains("nothing.safetensors")
    );
    assert!(refusal(&|text| text.replace("\"generator\"", "\"model\"")).contains("description.json"));
    let with = |text: String, more: &str| format!("{}, {more} }}", &text[..text.len() - 2]);
    assert!(refusal(&|text| with(text, r#""noise": -1.0"#)).contains("noise of -1"));
    assert!(refusal(&|text| with(text, r#""edges": [{ "between": ["left", "up"] }]"#)).contains("`up`"));
}

#[test]
fn modes_are_trained_of_coupling_flows_only() {
    let message = modejump(&[
        "train",
        "--modes",
        "models/ala2/modes.json",
        "--model",
        "tarflow",
        "--topology",
        TOPOLOGY,
        "--frames",
        TOPOLOGY,
        "-o",
        "never.safetensors",
    ])
    .fails();
    assert!(message.contains("coupling flows"), "{message}");
}
