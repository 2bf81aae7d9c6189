//! `convert`: models give the values of the reference, and nothing of a checkpoint is left out in silence.

mod averages;
pub mod bgflow;
pub mod boltznce;
mod ecnf;
mod tarflow;
mod transferable;

use crate::command::{modejump, Run};
use modejump::coordinates::Topology;
use modejump::density::{Density, Evaluation, Status};
use modejump::models::{load_with, Model, Precision};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A conversion with a configuration of this text, and the file that it is to write.
fn conversion(folder: &Path, kind: &str, checkpoint: &str, config: &str, more: &[&str]) -> (Command, PathBuf) {
    let (json, output) = (folder.join("config.json"), folder.join("model.safetensors"));
    let _ = std::fs::remove_file(&output);
    std::fs::write(&json, config).unwrap();
    let mut command = modejump(&[&["convert", checkpoint, "--kind", kind], more].concat());
    command.arg("-o").arg(&output).arg("--config").arg(json);
    (command, output)
}

/// The model file.
pub fn convert(folder: &Path, kind: &str, checkpoint: &str, config: &str, more: &[&str]) -> String {
    let (mut command, output) = conversion(folder, kind, checkpoint, config, more);
    let (summary, path) = (command.json(), output.to_str().unwrap());
    assert!(summary["output"] == path && summary["parameters"].as_u64() > Some(0), "{summary}");
    path.to_string()
}

fn refusal(folder: &Path, kind: &str, checkpoint: &str, config: &str, more: &[&str]) -> String {
    let (mut command, output) = conversion(folder, kind, checkpoint, config, more);
    let message = command.fails();
    assert!(!output.exists(), "a failed conversion left a file");
    message
}

/// log q of configurations inside the support.
pub fn log_density(model: &dyn Density, x: &[f64]) -> Vec<f64> {
    let mut found = vec![Evaluation::inside(0.0); x.len() / model.dimension()];
    model.log_density(x, &mut found).unwrap();
    found.iter().map(|e| e.log_density).collect()
}

/// The molecule of a topology is inside the support, its mirror image is not.
fn only_one_hand_has_a_density(model: &str, topology: &str) {
    let model = load_with(model, Precision::F32).unwrap();
    let (_, x) = Topology::from_pdb(topology.as_ref()).unwrap();
    one_hand_has_a_density(model.as_ref(), x);
}

/// That of the configuration, not that of its mirror image.
fn one_hand_has_a_density(model: &dyn Model, x: Vec<f64>) {
    let image: Vec<f64> = x.iter().map(|v| -v).collect();
    let mut found = [Evaluation::inside(0.0); 2];
    model.log_density(&[x, image].concat(), &mut found).unwrap();
    assert_eq!(found.map(|e| e.status), [Status::Inside, Status::WrongChirality]);
}
