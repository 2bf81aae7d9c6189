//! One network of several peptides.

use super::write_frames;
use crate::command::{folder, log, modejump, number, tensor, tensors, write, Run, TOPOLOGY};
use modejump::density::Exactness;
use modejump::rng::{Stream, StreamId};
use std::path::{Path, PathBuf};

/// A peptide's topology and frames around random places, as files.
fn write_peptide(folder: &Path, name: &str, residues: &[(&str, &str)], frames: usize) -> [PathBuf; 2] {
    let mut stream = Stream::new(3, StreamId::Test, residues.len() as u64, 0);
    let (mut pdb, mut places) = (String::new(), Vec::new());
    for (residue, names) in residues {
        for atom in names.split_whitespace() {
            // too far apart for bonds
            let number = places.len() / 3 + 1;
            let x = [3.0 * number as f64, 3.0 * stream.normal(), 3.0 * stream.normal()];
            let [a, b, c] = x;
            pdb += &format!("ATOM  {number:>5} {atom:<4} {}    {a:8.3}{b:8.3}{c:8.3}\n", residue);
            places.extend(x.map(|v| 0.1 * v));
        }
    }
    let x: Vec<f64> = (0..frames).flat_map(|_| places.clone()).map(|v| v + 0.02 * stream.normal()).collect();
    let [topology, data] = ["pdb", "safetensors"].map(|end| folder.join(format!("{name}.{end}")));
    std::fs::write(&topology, pdb).unwrap();
    write(&data, [("x", tensor(&[frames, places.len() / 3, 3], x))]);
    [topology, data]
}

/// One network learns two peptides of different lengths; the file is that of the first, and another training can start
/// from it.
#[test]
fn a_transferable_flow_is_trained_on_several_peptides() {
    let folder = folder("train-peptides");
    let glycine = [("GLY A   1", "N H H2 H3 CA HA2 HA3 C O OXT")];
    let two = [("GLY A   1", "N H H2 H3 CA HA2 HA3 C O"), ("GLY A   2", "N H CA HA2 HA3 C O OXT")];
    let [one, frames] = write_peptide(&folder, "one", &glycine, 60);
    let [longer, of_longer] = write_peptide(&folder, "two", &two, 50);
    let sizes = r#""channels": 16, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 2"#;
    let options =
        r#""train": {"steps": 60, "batch": 32, "evaluate": 20, "rate": 0.003, "held_out": 0.1, "average": 0.5}"#;
    let peptides = serde_json::json!([{ "topology": longer, "frames": [of_longer] }]);
    let config = format!(r#"{{"transferable_tarflow": {{{sizes}, "peptides": {peptides}, {options}}}}}"#);
    let settings = folder.join("train.json");
    std::fs::write(&settings, config).unwrap();
    let train = |topology: &Path, frames: &Path, output: &str| {
        let mut command = modejump(&["train", "--model", "transferable_tarflow", "--topology"]);
        command.arg(topology).arg("--frames").arg(frames);
        command.arg("--config").arg(&settings).arg("--log").arg(folder.join("log"));
        command.arg("-o").arg(folder.join(output));
        command
    };
    let [_, text] = train(&one, &frames, "model.safetensors").texts();
    assert!(text.contains("50 of the 60 frames"), "{text}");
    let losses: Vec<f64> = log(folder.join("log")).iter().map(|line| number(line, "held_out_loss")).collect();
    assert!(losses.len() == 3 && losses[2] < losses[0] - 0.05, "{losses:?}");
    let model = modejump::models::load(folder.join("model.safetensors")).unwrap();
    assert_eq!((model.exactness(), model.dimension()), (Exactness::Exact, 30));
    // the longer peptide's turn, from what was learned
    let start = folder.join("model.safetensors");
    train(&longer, &of_longer, "further.safetensors").arg("--start").arg(start).succeeds();
    assert_eq!(modejump::models::load(folder.join("further.safetensors")).unwrap().dimension(), 51);
    // frames are drawn of every peptide, and a checkpoint knows all of them
    let weighted = folder.join("weighted.safetensors");
    let x = tensors(&frames).remove("x").unwrap();
    write(&weighted, [("x", x), ("log_weight", tensor(&[60], [0.0; 60]))]);
    let text = train(&one, &weighted, "never.safetensors").arg("--resample").fails();
    assert!(text.contains("weighted.safetensors: 60 of 60") && text.contains("two.safetensors"), "{text}");
    let mut checked = train(&one, &frames, "checked.safetensors");
    checked.arg("--checkpoint").arg(folder.join("state.ckpt")).succeeds();
    let pdb = std::fs::read_to_string(&longer).unwrap();
    std::fs::write(&longer, pdb.replace("HA2", "HAX").replace("HA3", "HA2").replace("HAX", "HA3")).unwrap();
    let text = checked.fails();
    assert!(text.contains("belongs to another run") && text.contains("or of further peptides)"), "{text}");
    std::fs::write(&longer, pdb).unwrap();
    let [first, _] = write_frames(&folder);
    let text = train(Path::new(TOPOLOGY), &first, "never.safetensors").fails();
    assert!(text.contains("residue ACE1") && text.contains("topology.pdb"), "{text}");
}
