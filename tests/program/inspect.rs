//! `inspect` of models and of other files.

use crate::command::{modejump, Run, MODEL, TOPOLOGY};

#[test]
fn inspect_lists_the_atoms() {
    let text = modejump(&["inspect", MODEL]).succeeds();
    let has = |line: &str| text.lines().any(|found| found.split_whitespace().eq(line.split_whitespace()));
    assert!(has("atoms 22") && has("1 ACE1 CH3 C") && has("11 ALA2 CB C"), "{text}");
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
    use std::process::Stdio;
    let mut process = modejump(&["inspect", MODEL]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}
