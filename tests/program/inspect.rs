//! `inspect` of models and of other files.

use crate::command::{folder, modejump, tensor, write, Run, MODEL, TOPOLOGY};
use crate::convert::bgflow::converted_error;
use serde_json::{json, Value};

#[test]
fn inspect_tells_what_a_file_is() {
    let folder = folder("inspect-converted");
    let output = folder.join("model.safetensors");
    converted_error("tests/pytorch/icbg.ckpt", &output);
    let report = modejump(&["inspect"]).arg(&output).json();
    assert_eq!(report["dimension"], 66);
    assert_eq!(report["latent_dimension"], 60);
    assert_eq!(report["exactness"], "exact");
    assert_eq!(report["temperature_K"], 300.0);
    assert_eq!(report["atoms"].as_array().unwrap().len(), 22);
    assert_eq!(report["provenance"]["converted_from"], "bgflow");
    assert_eq!(report["layers"].as_array().unwrap().len(), 9);
    let sum: u64 = report["tensors"].as_object().unwrap().values().map(size).sum();
    assert_eq!(report["parameters"].as_u64(), Some(sum));
    let human = modejump(&["inspect"]).arg(&output).succeeds();
    assert!(human.contains("latent_dimension") && human.contains("spline coupling"), "{human}");
    // other files: their tensors
    let report = modejump(&["inspect", "tests/pytorch/types.pt"]).json();
    assert_eq!(report["tensors"]["state_dict.net.0.weight"], json!([3, 4]));
    assert!(modejump(&["inspect", "tests/pytorch/make.py"]).fails().contains("make.py"));
}

fn size(shape: &Value) -> u64 {
    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product()
}

#[test]
fn inspect_lists_the_atoms() {
    let text = modejump(&["inspect", MODEL]).succeeds();
    let has = |line: &str| text.lines().any(|found| found.split_whitespace().eq(line.split_whitespace()));
    assert!(
        has("atoms 22 (numbered from 1; options and settings count from 0)")
            && has("1 ACE1 CH3 C")
            && has("11 ALA2 CB C"),
        "{text}"
    );
}

/// A checkpoint may hold tensors of unsupported types beside the network.
#[test]
fn tensors_that_are_not_read_are_listed() {
    let text = modejump(&["inspect", "tests/pytorch/unread.pt"]).succeeds();
    assert!(text.contains("net.weight") && text.contains("not_read") && text.contains("UInt16Storage"), "{text}");
    let message = modejump(&["convert", "tests/pytorch/unread.pt", "--kind", "tarflow", "-o", "never"]).fails();
    assert!(message.contains("`net.weight`") && !message.contains("UInt16"), "{message}");
}

#[test]
fn names_give_the_terminal_no_commands() {
    let file = folder("inspect-names").join("cleared.safetensors");
    write(&file, [("\u{1b}[2J", tensor(&[1], [0.0]))]);
    let text = modejump(&["inspect"]).arg(&file).succeeds();
    assert!(text.contains("\u{fffd}[2J") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn what_is_no_model_is_told_what_is() {
    let convert = ["convert", TOPOLOGY, "--kind", "tarflow", "-o", "m.safetensors"];
    for command in [&["inspect", TOPOLOGY][..], &convert] {
        let message = modejump(command).fails();
        assert!(
            message.contains("not a readable safetensors file") && message.contains(".pt, .pth, .ckpt"),
            "{message}"
        );
    }
}

/// `inspect … | head` is no failure to be told with a backtrace.
#[test]
#[cfg(unix)]
fn a_reader_that_has_seen_enough_ends_the_program() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = modejump(&["inspect", MODEL]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}
