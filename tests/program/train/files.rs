//! What a training reads and what it writes are files apart.

use super::{Setting, SETTINGS};
use crate::command::{files, modejump, Run, TOPOLOGY};
use modejump::io::trajectory::{self, Frames};

#[test]
fn a_model_is_not_written_where_its_figure_goes() {
    let setting = Setting::new("figure");
    std::fs::write(setting.path("model.svg"), "a figure").unwrap();
    let message = setting.train("model.svg").fails();
    assert!(message.contains("another extension for the model, such as safetensors"), "{message}");
    assert_eq!(std::fs::read(setting.path("model.svg")).unwrap(), b"a figure");
}

#[test]
fn a_file_without_frames_is_named() {
    let path = files("train-no-frames");
    trajectory::write(path("none.safetensors").as_ref(), &Frames::new(66, vec![]), None, &[]).unwrap();
    let message = modejump(&[
        "train",
        "--topology",
        TOPOLOGY,
        "--frames",
        &path("none.safetensors"),
        "-o",
        &path("model.safetensors"),
    ])
    .fails();
    assert!(message.contains("none.safetensors: has no frames"), "{message}");
}

/// Whatever they are for; what would have been written over stays as it is.
#[test]
fn the_files_of_a_training_are_apart() {
    let setting = Setting::new("apart");
    let modes = r#"{ "modes": [{ "name": "a", "within": [] }, { "name": "b", "within": [] }] }"#;
    std::fs::write(setting.path("modes.json"), modes).unwrap();
    let config = SETTINGS.replacen('{', "{\"jump\": {},", 1);
    std::fs::write(setting.path("jump.json"), config).unwrap();
    let topology = setting.path("topology.pdb");
    std::fs::copy(TOPOLOGY, &topology).unwrap();
    let refusal = |output: &str, options: &[(&str, &str)]| {
        let mut command = modejump(&["train", "--topology"]);
        command.arg(&topology).arg("-o").arg(setting.path(output));
        options.iter().for_each(|(name, file)| _ = command.arg(name).arg(setting.path(file)));
        let text = command.fails();
        assert!(text.contains("would overwrite"), "{options:?}: {text}");
        text
    };
    let (frames, config) = (("--frames", "a.safetensors"), ("--config", "train.json"));
    let before = std::fs::read(&setting.frames[0]).unwrap();
    refusal("model.safetensors", &[frames, ("--log", "a.safetensors")]);
    refusal("model.safetensors", &[frames, config, ("--log", "train.json")]);
    refusal("model.safetensors", &[frames, config, ("--checkpoint", "train.json")]);
    refusal("model.safetensors", &[frames, ("--log", "model.safetensors")]);
    refusal("model.safetensors", &[frames, ("--log", "model.svg")]);
    refusal("model.safetensors", &[frames, ("--checkpoint", "state"), ("--log", "state")]);
    refusal("model.safetensors", &[("--keep-frames", "topology.pdb")]);
    refusal("state.frames.safetensors", &[("--checkpoint", "state.ckpt")]);
    let modes = ("--modes", "modes.json");
    std::fs::rename(&setting.frames[0], setting.path("q.a.safetensors")).unwrap();
    assert!(refusal("q.safetensors", &[("--frames", "q.a.safetensors"), modes]).contains("q.a.safetensors"));
    std::fs::rename(&setting.frames[1], setting.path("q.b.jump.safetensors")).unwrap();
    let frames = ("--frames", "q.b.jump.safetensors");
    assert!(refusal("q.safetensors", &[frames, modes, ("--config", "jump.json")]).contains("q.b.jump.safetensors"));
    refusal("modes.json", &[frames, modes]);
    assert_eq!(std::fs::read(setting.path("q.a.safetensors")).unwrap(), before);
}

/// Before anything is read or made: the frames would be written under the name of another format.
#[test]
fn frames_are_kept_as_safetensors() {
    let path = files("train-kept");
    let (kept, output) = (path("kept.npy"), path("model.safetensors"));
    let text = modejump(&["train", "--topology", TOPOLOGY, "--keep-frames", &kept, "-o", &output]).fails();
    assert!(text.contains("kept.npy: kept frames are written as safetensors"), "{text}");
}
