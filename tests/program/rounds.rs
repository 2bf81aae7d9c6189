//! `adapt` and `explore` with settings too small to be of use: cut and gone on with, they make the same files.

use crate::command::{folder, interrupted, interrupted_in_time, log, modejump, tensors, wait_until, Run, TOPOLOGY};
use modejump::coordinates::Topology;
use modejump::io::model_file::Tensor;
use modejump::io::trajectory::{self, Frames};
use modejump::models;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SETTINGS: &str = r#"{
    "rounds": {
        "walkers": 4, "rounds": 1, "steps": 200, "production_steps": 100, "stride": 10, "frequency": 20,
        "region": {"along": {"torsion": [4, 6, 8, 14]}, "range": [0.0, 2.2]}
    },
    "explore": {"frames": 320, "hot_steps": 50, "cooling_steps": 20, "frames_per_segment": 20, "stride": 2},
    "design": {"hidden": [12], "torsion_hidden": [8], "spline_rounds": 1, "affine_rounds": 1, "torsion_rounds": 1},
    "train": {
        "evaluate": 200, "evaluation_samples": 32,
        "phases": [{"steps": 400, "batch": 32}, {"steps": 20, "batch": 32, "reverse_kl": 1e-3, "energy_batch": 16}]
    }
}"#;

struct Setting {
    folder: PathBuf,
}

impl Setting {
    fn new(name: &str) -> Setting {
        let folder = folder(&format!("rounds-{name}"));
        std::fs::write(folder.join("settings.json"), SETTINGS).unwrap();
        Setting { folder }
    }

    fn path(&self, output: &str, name: &str) -> PathBuf {
        self.folder.join(output).join(name)
    }

    fn command(&self, command: &str, system: &str, output: &str) -> Command {
        let system = format!("models/ala2/{system}");
        let mut run = modejump(&[command, "--topology", TOPOLOGY, "--system", &system]);
        run.arg("--config").arg(self.path("", "settings.json")).arg("-o").arg(self.folder.join(output));
        run
    }

    fn run(&self, command: &str, output: &str) -> Value {
        self.command(command, "system-vacuum.xml", output).json()
    }

    fn tensors(&self, output: &str, name: &str) -> BTreeMap<String, Tensor> {
        tensors(self.path(output, name))
    }
}

#[cfg(unix)]
#[test]
fn rounds_that_were_killed_go_on_to_the_same_files() {
    let setting = Setting::new("killed");
    let summary = setting.run("adapt", "whole");
    assert_eq!(summary["production"]["stage"], "production");
    assert_eq!((&summary["production"]["epoch"], &summary["production"]["attempts"]), (&1.into(), &20.into()));

    // two stages are over: the third, a training, is cut
    let lines = || std::fs::read_to_string(setting.path("cut", "log.jsonl")).map_or(0, |log| log.lines().count());
    interrupted_in_time("interrupted; run the same command again", || {
        let _ = std::fs::remove_dir_all(setting.path("cut", ""));
        let mut adapt = setting.command("adapt", "system-vacuum.xml", "cut");
        interrupted(&mut adapt, "TERM", || wait_until(|| lines() >= 2))
    });
    let again = setting.run("adapt", "cut");
    assert_eq!(again["production"], summary["production"]);
    for name in ["training.safetensors", "production.safetensors", "model.safetensors"] {
        assert!(setting.tensors("whole", name) == setting.tensors("cut", name), "{name} differs");
    }
    let log = |output: &str| std::fs::read_to_string(setting.path(output, "log.jsonl")).unwrap();
    assert_eq!(log("whole"), log("cut"));
    what_the_files_say(&setting);
    production_goes_on(&setting);
    refusals(&setting);
}

/// A finished run gets more production: the files of a run that had as many steps from the beginning.
fn production_goes_on(setting: &Setting) {
    let configure = |steps: u64| {
        let settings = SETTINGS.replace("\"production_steps\": 100", &format!("\"production_steps\": {steps}"));
        std::fs::write(setting.path("", "settings.json"), settings).unwrap();
    };
    configure(200);
    let summary = setting.run("adapt", "longer");
    let [short, long] = ["whole", "longer"].map(|output| setting.tensors(output, "production.safetensors"));
    assert_eq!(long["x"].shape, [80, 22, 3]);
    assert!(long["x"].data.starts_with(&short["x"].data));
    assert_eq!(setting.run("adapt", "whole")["production"], summary["production"]);
    assert_eq!(summary["production"]["attempts"], 40);
    for name in ["training.safetensors", "production.safetensors", "model.safetensors"] {
        assert!(setting.tensors("whole", name) == setting.tensors("longer", name), "{name} differs");
    }
    let log = |output: &str| std::fs::read_to_string(setting.path(output, "log.jsonl")).unwrap();
    assert_eq!(log("whole"), log("longer"));
    // walks end with a frame, every ten steps
    configure(195);
    assert_eq!(setting.run("adapt", "whole")["production"], summary["production"]);
    configure(100);
    let message = setting.command("adapt", "system-vacuum.xml", "whole").fails();
    assert!(message.contains("production has already made 200 steps, but `production_steps` = 100"), "{message}");
    // nothing is written over where the state is gone
    configure(200);
    std::fs::remove_file(setting.path("longer", "state.ckpt")).unwrap();
    let message = setting.command("adapt", "system-vacuum.xml", "longer").fails();
    assert!(message.contains("but no state.ckpt"), "{message}");
}

/// Frames know their epoch and whether they may be averaged, the model its epoch.
fn what_the_files_say(setting: &Setting) {
    let of_training = setting.tensors("whole", "training.safetensors");
    let of_production = setting.tensors("whole", "production.safetensors");
    assert_eq!(of_production["x"].shape, [40, 22, 3]);
    let all = |tensor: &Tensor, value: f64| tensor.data.iter().all(|v| *v == value);
    assert!(all(&of_production["epoch"], 1.0) && all(&of_production["production"], 1.0));
    assert!(all(&of_training["production"], 0.0));
    assert_eq!(of_production["walker"].data[..5], [0.0, 1.0, 2.0, 3.0, 0.0]);
    let (cold, hot) = (160, 320);
    assert_eq!(of_training["hot"].data, [vec![0.0; cold], vec![1.0; hot]].concat());
    assert_eq!(of_training["epoch"].data[..cold], [vec![0.0; 80], vec![1.0; 80]].concat());
    let model = models::load(setting.path("whole", "model.safetensors")).unwrap();
    assert_eq!(model.card().provenance["epoch"], "1");
    assert!(model.card().provenance["command"].starts_with("modejump adapt --topology"));
}

fn refusals(setting: &Setting) {
    let message = setting.command("adapt", "system-hbonds.xml", "other").fails();
    assert!(message.contains("is constrained") && message.contains("constraints=None"), "{message}");
    let message = setting.command("explore", "system-vacuum.xml", "whole").fails();
    assert!(message.contains("belongs to another run (this run has `explore.frames` 0 instead of 320, "), "{message}");
    assert!(message.contains("`rounds.latent_walk."), "{message}");
    let mut command = setting.command("explore", "system-vacuum.xml", "other");
    let message = command.args(["--structures", "models/double-well/generator.safetensors"]).fails();
    assert!(message.contains("double-well"), "{message}");
    std::fs::write(setting.path("", "settings.json"), SETTINGS.replace("\"walkers\": 4", "\"walkers\": 0")).unwrap();
    assert!(setting.command("adapt", "system-vacuum.xml", "other").fails().contains("rounds.walkers = 0"));
    // before the first walk
    let settings = SETTINGS.replace("\"reverse_kl\"", "\"latent_temperatures\": [0.5], \"reverse_kl\"");
    std::fs::write(setting.path("", "settings.json"), settings).unwrap();
    let message = setting.command("adapt", "system-vacuum.xml", "steered").fails();
    assert!(message.contains("set `steerable`") && !setting.path("steered", "").exists(), "{message}");
    std::fs::write(setting.path("", "settings.json"), SETTINGS.replace("\"hidden\": [12]", "\"hidden\": [0]")).unwrap();
    setting.command("adapt", "system-vacuum.xml", "designed").fails();
    assert!(!setting.path("designed", "").exists());
}

#[test]
fn a_few_structures_are_explored() {
    let setting = Setting::new("explored");
    let settings = SETTINGS.replace("\"walkers\": 4", "\"walkers\": 16");
    std::fs::write(setting.path("", "settings.json"), settings).unwrap();
    let summary = setting.run("explore", "explored");
    assert_eq!(summary["production"]["epoch"], 1);
    let log = log(setting.path("explored", "log.jsonl"));
    let stages: Vec<&Value> = log.iter().map(|line| &line["stage"]).collect();
    assert_eq!(stages, ["walk", "train", "walk", "production"]);
    assert_eq!(setting.tensors("explored", "production.safetensors")["x"].shape, [160, 22, 3]);
    what_has_no_jump_is_plain_dynamics(&setting, &summary);
    the_log_of_rounds_is_drawn(&setting);
}

fn what_has_no_jump_is_plain_dynamics(setting: &Setting, summary: &Value) {
    assert_eq!(summary["production"]["acceptance"], 0.0, "{summary}");
    let [_, told] = setting.command("explore", "system-vacuum.xml", "explored").texts();
    assert!(told.contains("no jump was accepted in production (0.00 % of "), "{told}");
    assert!(told.contains("plain dynamics") && !told.contains("averages are exact"), "{told}");
}

fn the_log_of_rounds_is_drawn(setting: &Setting) {
    let [log, folder] =
        [setting.path("explored", "log.jsonl"), setting.path("", "")].map(|path| path.display().to_string());
    assert!(modejump(&["plot", &log, "-o", &folder]).fails().contains("log of rounds: pass it to --log"));
    modejump(&["plot", "--log", &log, "-o", &folder]).succeeds();
    let [ours, again] = ["explored", ""].map(|name| std::fs::read_to_string(setting.path(name, "rounds.svg")).unwrap());
    assert!(ours == again && ours.contains("accepted jumps") && ours.contains("frames in the region"), "{ours}");
}

/// A generator would treat the two numberings of a CH₃ group as different states.
#[test]
fn structures_of_another_numbering_or_hand_are_refused() {
    let setting = Setting::new("numbering");
    let x = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap().1;
    let mut exchanged = x.clone();
    (0..3).for_each(|k| exchanged.swap(3 * 11 + k, 3 * 12 + k)); // HB1 and HB2
    let mirror: Vec<f64> = x.iter().map(|v| -v).collect();
    let both = setting.path("", "both.npy");
    for (other, reason) in [
        (exchanged, "structure 2: ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13) are numbered the other way round"),
        (mirror, "structure 2: ALA2:CA (atom 9) has the opposite handedness"),
    ] {
        trajectory::write(&both, &Frames::new(66, [&x[..], &other].concat()), None, &[]).unwrap();
        let message = setting.command("explore", "system-vacuum.xml", "never").arg("--structures").arg(&both).fails();
        assert!(message.contains(reason), "{message}");
    }
}

/// Frames of an earlier run may start another, in another folder.
#[test]
fn structures_that_would_be_written_over_are_refused() {
    let setting = Setting::new("apart");
    let mut command = setting.command("explore", "system-vacuum.xml", "here");
    command.arg("--structures").arg(setting.path("here", "production.safetensors"));
    assert!(command.fails().contains("would overwrite"));
    std::fs::write(setting.path("", "settings.json"), "steps: 3").unwrap();
    let message = setting.command("adapt", "system-vacuum.xml", "here").fails();
    assert!(message.contains("settings.json: expected JSON"), "{message}");
}
