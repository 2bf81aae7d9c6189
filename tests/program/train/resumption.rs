//! A training that was cut goes on.

use super::{Setting, SETTINGS};
use crate::command::{interrupted, interrupted_in_time, wait_until, Run};
#[cfg(feature = "openmm")]
use {
    crate::command::{files, modejump, signal, tensors, TOPOLOGY},
    std::io::{BufRead, BufReader, Read},
    std::path::Path,
    std::process::{Command, Output, Stdio},
};

/// As on a disk that is full: what cannot be written does not cost the training, and is its error at the end.
#[test]
#[cfg(target_os = "linux")]
fn a_training_goes_on_where_nothing_can_be_written() {
    let setting = Setting::new("full");
    let train = setting.train("limited.safetensors");
    let limited = format!("ulimit -f 2; exec {} \"$@\"", env!("CARGO_BIN_EXE_modejump"));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &limited, "sh"]).args(train.get_args());
    let run = command.output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && said.matches("the training continues and will try again").count() > 3, "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("modejump: ") && !last.contains("continues"), "{said}");
}

#[test]
fn a_killed_training_goes_on_to_the_same_model() {
    let setting = Setting::new("killed");
    // a second name of the file shows that the log is replaced as a whole: never a part of it is there
    std::fs::write(setting.path("whole.log"), "old").unwrap();
    std::fs::hard_link(setting.path("whole.log"), setting.path("old.log")).unwrap();
    setting.train("whole.safetensors").succeeds();
    assert_eq!(std::fs::read(setting.path("old.log")).unwrap(), b"old");

    let checkpointed = |output: &str| {
        let mut command = setting.train(output);
        command.arg("--checkpoint").arg(setting.path("state.ckpt"));
        command
    };
    interrupted_in_time("interrupted at step", || {
        for name in ["state.ckpt", "cut.log"] {
            let _ = std::fs::remove_file(setting.path(name));
        }
        interrupted(&mut checkpointed("cut.safetensors"), "TERM", || wait_until(|| setting.path("cut.log").exists()))
    });

    let [_, text] = checkpointed("cut.safetensors").texts();
    assert!(text.contains("resuming from step"), "{text}");
    let log = |name: &str| std::fs::read(setting.path(name)).unwrap();
    assert!(setting.tensors("cut.safetensors") == setting.tensors("whole.safetensors"), "the models differ");
    assert!(log("cut.log") == log("whole.log"), "the logs differ");

    // a finished training has nothing left to do
    let [_, text] = checkpointed("again.safetensors").texts();
    assert!(text.contains("resuming from step 2500"), "{text}");
    assert!(setting.tensors("again.safetensors") == setting.tensors("whole.safetensors"));
    // and belongs to its settings and frames
    for (from, to, reason) in [
        ("\"batch\": 32", "\"batch\": 48", "this run has `phases[0].batch` 48 instead of 32"),
        ("\"hidden\"", "\"seed\": 2, \"hidden\"", "this run has a different set of first parameters (`seed`)"),
        ("[12]", "[13]", "a different design of the model"),
    ] {
        setting.configure(&SETTINGS.replace(from, to));
        let text = checkpointed("other.safetensors").fails();
        assert!(text.contains(reason), "{text}");
    }
    setting.configure(SETTINGS);
    std::fs::copy(&setting.frames[0], &setting.frames[1]).unwrap();
    assert!(checkpointed("other.safetensors").fails().contains("(this run has a different set of frames)"));
}

/// A run that gets a signal after it has said this.
#[cfg(feature = "openmm")]
fn after_line(told: &str, command: &mut Command) -> Output {
    let mut run = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(run.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(told) {
        assert!(stderr.read_line(&mut said).unwrap() > 0, "{said}");
    }
    signal(&run, "TERM");
    stderr.read_to_string(&mut said).unwrap();
    Output { status: run.wait().unwrap(), stdout: Vec::new(), stderr: said.into_bytes() }
}

#[cfg(feature = "openmm")]
#[test]
fn frames_that_were_begun_are_gone_on_with() {
    let file = files("train-frames-cut");
    let settings = r#"{ "explore": { "frames": 3000, "hot_steps": 200, "cooling_steps": 50, "frames_per_segment": 20, "stride": 10 },
        "train": { "phases": [{ "steps": 3, "batch": 16, "likelihood": 1 }] }, "design": { "hidden": [16] } }"#;
    std::fs::write(file("train.json"), settings).unwrap();
    for system in ["models/ala2/system-vacuum.xml", "models/ala2/system-hbonds.xml"] {
        let train_alone = |name: &str| {
            let [settings, output] = [file("train.json"), file(&format!("{name}.safetensors"))];
            modejump(&["train", "--topology", TOPOLOGY, "--system", system, "--config", &settings, "-o", &output])
        };
        let train = |name: &str| {
            let mut command = train_alone(name);
            command.args(["--checkpoint", &file(&format!("{name}.ckpt"))]);
            command
        };
        train("whole").succeeds();
        train_alone("alone").succeeds();
        assert!(tensors(file("alone.safetensors")) == tensors(file("whole.safetensors")), "{system}");
        interrupted_in_time("of 3000 frames; run the same command again", || {
            for name in ["cut.ckpt", "cut.frames.ckpt", "cut.frames.safetensors"] {
                let _ = std::fs::remove_file(file(name));
            }
            after_line("steps of molecular dynamics", &mut train("cut"))
        });
        assert!(Path::new(&file("cut.frames.ckpt")).exists() && !Path::new(&file("cut.frames.safetensors")).exists());
        let [_, text] = train("cut").texts();
        assert!(text.contains("resuming with the frames of"), "{text}");
        assert!(!Path::new(&file("cut.frames.ckpt")).exists());
        let bytes = |name: &str| std::fs::read(file(name)).unwrap();
        assert!(bytes("cut.frames.safetensors") == bytes("whole.frames.safetensors"), "{system}");
        std::fs::write(file("train.json"), settings.replace("\"stride\": 10", "\"stride\": 11")).unwrap();
        let text = train("whole").fails();
        assert!(text.contains("whole.frames.safetensors: has the frames of other settings"), "{text}");
        assert!(text.contains("(this run has `explore.stride` 11 instead of 10)"), "{text}");
        std::fs::write(file("train.json"), settings).unwrap();
        ["whole.ckpt", "cut.ckpt", "whole.frames.safetensors", "cut.frames.safetensors"]
            .iter()
            .for_each(|name| std::fs::remove_file(file(name)).unwrap());
    }
}
