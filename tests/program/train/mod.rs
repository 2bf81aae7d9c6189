//! `train`, with settings too small to be of use.

mod energies;
mod files;
mod frames;
#[cfg(feature = "openmm")]
mod jumps;
#[cfg(feature = "openmm")]
mod maps;
mod patience;
mod peptides;
#[cfg(unix)]
mod resumption;
mod start;

use crate::command::{folder, modejump, tensor, tensors, write, TOPOLOGY};
use modejump::coordinates::Topology;
use modejump::io::model_file::Tensor;
use modejump::rng::{Stream, StreamId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const SETTINGS: &str = r#"{
    "design": {"hidden": [12], "torsion_hidden": [8], "spline_rounds": 1, "affine_rounds": 1, "torsion_rounds": 1},
    "train": {"phases": [{"steps": 2500, "batch": 32}], "evaluate": 100, "patience": 0}
}"#;

/// A folder with frames and with settings for `--config`.
struct Setting {
    folder: PathBuf,
    frames: [PathBuf; 2],
}

impl Setting {
    fn new(name: &str) -> Setting {
        let folder = folder(&format!("train-{name}"));
        let setting = Setting { frames: write_frames(&folder), folder };
        setting.configure(SETTINGS);
        setting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes the settings.
    fn configure(&self, text: &str) {
        std::fs::write(self.path("train.json"), text).unwrap();
    }

    /// A training with these settings and frames.
    fn train(&self, output: &str) -> Command {
        let mut command = modejump(&["train", "--topology", TOPOLOGY, "--frames"]);
        command.args(&self.frames).arg("--config").arg(self.path("train.json")).arg("-o").arg(self.path(output));
        command.arg("--log").arg(self.path(output).with_extension("log"));
        command
    }

    fn tensors(&self, name: &str) -> BTreeMap<String, Tensor> {
        tensors(self.path(name))
    }
}

/// Two files of frames around the one in the topology.
fn write_frames(folder: &Path) -> [PathBuf; 2] {
    let (_, x0) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    let mut stream = Stream::new(1, StreamId::Test, 0, 0);
    ["a", "b"].map(|name| {
        let x: Vec<f64> =
            (0..1000).flat_map(|_| x0.iter().map(|x| x + 0.004 * stream.normal()).collect::<Vec<_>>()).collect();
        let path = folder.join(name).with_extension("safetensors");
        write(&path, [("x", tensor(&[1000, x0.len() / 3, 3], x))]);
        path
    })
}
