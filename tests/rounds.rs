//! `modejump adapt` and `modejump explore` as a user runs them, with settings too small to be of use: cut and gone on
//! with, they make the same files.
#![cfg(feature = "openmm")]

use modejump::io::model_file::{read_tensors, Tensor};
use modejump::models;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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
        let folder = std::env::temp_dir().join(format!("modejump-rounds-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("settings.json"), SETTINGS).unwrap();
        Setting { folder }
    }

    fn path(&self, output: &str, name: &str) -> PathBuf {
        self.folder.join(output).join(name)
    }

    fn command(&self, command: &str, system: &str, output: &str) -> Command {
        let ala2 = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name);
        let mut run = Command::new(env!("CARGO_BIN_EXE_modejump"));
        run.arg(command).arg("--topology").arg(ala2("topology.pdb")).arg("--system").arg(ala2(system));
        run.arg("--config").arg(self.path("", "settings.json")).arg("-o").arg(self.folder.join(output)).arg("--json");
        run.stdout(Stdio::piped()).stderr(Stdio::piped());
        run
    }

    fn run(&self, command: &str, output: &str) -> Value {
        let result = self.command(command, "system-vacuum.xml", output).output().unwrap();
        let text = String::from_utf8(result.stderr).unwrap();
        assert!(result.status.success(), "{text}");
        serde_json::from_slice(&result.stdout).unwrap()
    }

    fn refusal(&self, mut command: Command) -> String {
        let result = command.output().unwrap();
        assert!(!result.status.success());
        String::from_utf8(result.stderr).unwrap()
    }

    fn tensors(&self, output: &str, name: &str) -> BTreeMap<String, Tensor> {
        read_tensors(name, &std::fs::read(self.path(output, name)).unwrap()).unwrap().0
    }
}

#[cfg(unix)]
#[test]
fn rounds_that_were_killed_go_on_to_the_same_files() {
    let setting = Setting::new("killed");
    let summary = setting.run("adapt", "whole");
    assert_eq!(summary["production"]["stage"], "production");
    assert_eq!((&summary["production"]["epoch"], &summary["production"]["attempts"]), (&1.into(), &20.into()));

    let child = setting.command("adapt", "system-vacuum.xml", "cut").spawn().unwrap();
    let start = Instant::now();
    // two stages are over: the third, a training, is cut
    let lines = || std::fs::read_to_string(setting.path("cut", "log.jsonl")).map_or(0, |log| log.lines().count());
    while lines() < 2 {
        assert!(start.elapsed() < Duration::from_secs(120), "the rounds write no log");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let text = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(text.contains("interrupted; the same command goes on"), "{text}");
    let again = setting.run("adapt", "cut");
    assert_eq!(again["production"], summary["production"]);
    for name in ["training.safetensors", "production.safetensors", "model.safetensors"] {
        assert!(setting.tensors("whole", name) == setting.tensors("cut", name), "{name} differs");
    }
    let log = |output: &str| std::fs::read_to_string(setting.path(output, "log.jsonl")).unwrap();
    assert_eq!(log("whole"), log("cut"));
    what_the_files_say(&setting);
    refusals(&setting);
    std::fs::remove_dir_all(&setting.folder).unwrap();
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
    let message = setting.refusal(setting.command("adapt", "system-hbonds.xml", "other"));
    assert!(message.contains("is constrained") && message.contains("constraints=None"), "{message}");
    let message = setting.refusal(setting.command("explore", "system-vacuum.xml", "whole"));
    assert!(message.contains("belongs to another run"), "{message}");
    let mut command = setting.command("explore", "system-vacuum.xml", "other");
    command
        .arg("--structures")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/generator.safetensors"));
    assert!(setting.refusal(command).contains("double-well"));
    std::fs::write(setting.path("", "settings.json"), SETTINGS.replace("\"walkers\": 4", "\"walkers\": 0")).unwrap();
    assert!(setting.refusal(setting.command("adapt", "system-vacuum.xml", "other")).contains("rounds.walkers = 0"));
    // before the first walk
    let settings = SETTINGS.replace("\"reverse_kl\"", "\"latent_temperatures\": [0.5], \"reverse_kl\"");
    std::fs::write(setting.path("", "settings.json"), settings).unwrap();
    let message = setting.refusal(setting.command("adapt", "system-vacuum.xml", "steered"));
    assert!(message.contains("set `steerable`") && !setting.path("steered", "").exists(), "{message}");
    std::fs::write(setting.path("", "settings.json"), SETTINGS.replace("\"hidden\": [12]", "\"hidden\": [0]")).unwrap();
    setting.refusal(setting.command("adapt", "system-vacuum.xml", "designed"));
    assert!(!setting.path("designed", "").exists());
}

#[test]
fn a_few_structures_are_explored() {
    let setting = Setting::new("explored");
    let settings = SETTINGS.replace("\"walkers\": 4", "\"walkers\": 16");
    std::fs::write(setting.path("", "settings.json"), settings).unwrap();
    let summary = setting.run("explore", "explored");
    assert_eq!(summary["production"]["epoch"], 1);
    let log = std::fs::read_to_string(setting.path("explored", "log.jsonl")).unwrap();
    let stages: Vec<Value> = log.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["stage"].clone()).collect();
    assert_eq!(stages, ["walk", "train", "walk", "production"]);
    assert_eq!(setting.tensors("explored", "production.safetensors")["x"].shape, [160, 22, 3]);
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// Frames of an earlier run may start another, in another folder.
#[test]
fn structures_that_would_be_written_over_are_refused() {
    let setting = Setting::new("apart");
    let mut command = setting.command("explore", "system-vacuum.xml", "here");
    command.arg("--structures").arg(setting.path("here", "production.safetensors"));
    assert!(setting.refusal(command).contains("would be written over"));
    std::fs::write(setting.path("", "settings.json"), "steps: 3").unwrap();
    let message = setting.refusal(setting.command("adapt", "system-vacuum.xml", "here"));
    assert!(message.contains("settings.json: JSON is expected"), "{message}");
    std::fs::remove_dir_all(&setting.folder).unwrap();
}
