//! Runs that are cut, blow up, cannot be written or go on from a checkpoint.

use super::{count, md, summary, untimed};
use crate::command::{files, folder, interrupted, signal, wait_until, Run, MODEL};
use modejump::io::trajectory;
use serde_json::Value;
use std::cell::Cell;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A run without end, with frames and a checkpoint.
#[cfg(unix)]
fn endless(output: &str, checkpoint: &str) -> Command {
    md(&["-n", "1000000000", "--record", "10", "-o", output, "--checkpoint", checkpoint])
}

/// What a run printed that `end` has signalled after its first frame. Nothing shows a frame for a minute; so a run gets a time, and
/// the next one twice the time if that was too short: it ended before it heard signals or had a frame.
#[cfg(unix)]
fn ended_after_a_frame(run: impl Fn() -> Command, end: impl Fn(&mut Child)) -> Output {
    let mut time = Duration::from_millis(500);
    loop {
        let mut child = run().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(time);
        end(&mut child);
        let output = child.wait_with_output().unwrap();
        let has_frames = !output.stdout.is_empty();
        if has_frames || !matches!(output.status.code(), None | Some(1)) || time > Duration::from_secs(60) {
            return output;
        }
        time *= 2;
    }
}

/// `timeout` signals a process, and then the group that it is in.
#[cfg(unix)]
#[test]
fn signals_that_come_together_are_one_request() {
    let file = files("md-signals");
    let (output, checkpoint) = (file("run.npy"), file("run.ckpt"));
    let mut together = 0;
    while together < 3 {
        for path in [&output, &checkpoint] {
            let _ = std::fs::remove_file(path);
        }
        let lasted = Cell::new(Duration::ZERO);
        let run = ended_after_a_frame(
            || endless(&output, &checkpoint),
            |run| {
                let first = Instant::now();
                signal(run, "TERM");
                signal(run, "TERM");
                lasted.set(first.elapsed());
            },
        );
        if lasted.get() > Duration::from_millis(500) {
            continue; // on a busy machine they may not have come together
        }
        let told = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(1) && told.contains("interrupted after"), "{:?} {told}", run.status);
        assert!(trajectory::read(output.as_ref()).unwrap().n() > 0 && Path::new(&checkpoint).exists());
        together += 1;
    }
}

#[test]
fn a_file_that_is_no_checkpoint_is_left_alone() {
    let file = files("md-no-checkpoint");
    std::fs::write(file("frames.dcd"), [7; 900]).unwrap();
    let message = md(&["-n", "10", "--checkpoint", &file("frames.dcd")]).fails();
    assert!(message.contains("frames.dcd"), "{message}");
    assert!(!Path::new(&file("frames.dcd.lock")).exists() && std::fs::read(file("frames.dcd")).unwrap() == [7; 900]);
}

/// A job that was queued again beside the old one would write over what that writes.
#[cfg(unix)]
#[test]
fn a_checkpoint_belongs_to_one_run_at_a_time() {
    let file = files("md-claimed");
    let checkpoint = file("run.ckpt");
    let run = |n: &str| md(&["-n", n, "--checkpoint", &checkpoint]);
    let mut endless = run("1000000000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until(|| Path::new(&file("run.ckpt.lock")).exists());
    std::thread::sleep(Duration::from_millis(300));
    let message = run("2000").fails();
    assert!(message.contains("run.ckpt") && message.contains("another modejump process"), "{message}");
    endless.kill().unwrap();
    endless.wait().unwrap();
    run("200").succeeds();
}

/// As Ctrl-C ends what a run is piped into, too.
#[cfg(unix)]
#[test]
fn a_run_whose_messages_nobody_reads_keeps_what_it_has() {
    let file = files("md-unread");
    let (output, checkpoint) = (file("run.npy"), file("run.ckpt"));
    let run = ended_after_a_frame(
        || endless(&output, &checkpoint),
        |run| {
            drop(run.stderr.take());
            signal(run, "INT");
        },
    );
    assert_eq!(run.status.code(), Some(1));
    assert!(trajectory::read(output.as_ref()).unwrap().n() > 0 && Path::new(&checkpoint).exists());
}

/// A run without end, told to stop after a frame: its status, and what it printed.
#[cfg(unix)]
fn after_a_while(output: &Path, before_the_end: impl Fn()) -> (Option<i32>, Value, String) {
    let run = || {
        std::fs::create_dir_all(output.parent().unwrap()).unwrap();
        md(&["-n", "1000000000", "--record", "10", "--json", "-o", output.to_str().unwrap()])
    };
    let run = ended_after_a_frame(run, |run| {
        before_the_end();
        signal(run, "INT");
    });
    let log = String::from_utf8(run.stderr).unwrap();
    let summary = serde_json::from_slice(&run.stdout).unwrap_or_else(|e| panic!("{e}: {log}"));
    (run.status.code(), summary, log)
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_keeps_what_it_has() {
    let folder = folder("md-interrupted");
    let output = folder.join("run.npy");
    let (status, summary, log) = after_a_while(&output, || ());
    let steps = count(&summary, "steps");
    assert!(status == Some(1) && (10..1_000_000_000).contains(&steps), "{summary}");
    assert!(log.contains(&format!("interrupted after {steps} of 1000000000 steps")), "{log}");
    assert_eq!(trajectory::read(&output).unwrap().n() as u64, steps / 10);
    // a file that cannot be written any more is another error, after the report
    let (status, summary, log) = after_a_while(&output, || std::fs::remove_dir_all(&folder).unwrap());
    assert!(status == Some(1) && count(&summary, "steps") >= 10 && log.contains("run.npy: "), "{log}");
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_before_its_first_frame_has_failed() {
    let file = files("md-no-frame");
    let mut endless = md(&["--equilibrate", "1000000000", "-o", "never.npy", "--checkpoint", &file("run.ckpt")]);
    // the lock of its checkpoint shows that it listens to signals
    let run = interrupted(&mut endless, "INT", || wait_until(|| Path::new(&file("run.ckpt.lock")).exists()));
    let log = String::from_utf8(run.stderr).unwrap();
    assert!(
        run.status.code() == Some(1) && log.contains("before the first frame: run the same command again"),
        "{log}"
    );
    assert!(run.stdout.is_empty() && !Path::new("never.npy").exists() && Path::new(&file("run.ckpt")).exists());
}

/// Neither the equilibration nor the steps between two frames are lost, or hold up the end.
#[cfg(unix)]
#[test]
fn a_run_goes_on_from_between_two_frames_bit_for_bit() {
    let file = files("md-between-frames");
    let run = |output: &str, more: &[&str]| {
        let steps = ["--equilibrate", "3000", "-n", "6000", "--record", "3000", "--model", MODEL, "--json"];
        md(&[&steps[..], &["-o", output], more].concat())
    };
    let whole = untimed(serde_json::from_str(&run(&file("whole.npy"), &[]).succeeds()).unwrap());
    let (checkpoint, parts) = (file("run.ckpt"), file("parts.npy"));
    let go_on = || run(&parts, &["--checkpoint", &checkpoint]);
    let mut told = String::new();
    for _ in 0..3 {
        let cut = interrupted(&mut go_on(), "TERM", || std::thread::sleep(Duration::from_millis(300)));
        told += &String::from_utf8(cut.stderr).unwrap();
    }
    let both = untimed(serde_json::from_str(&go_on().succeeds()).unwrap());
    assert!(both == whole, "{both} {whole}\n{told}");
    assert_eq!(std::fs::read(parts).unwrap(), std::fs::read(file("whole.npy")).unwrap());
}

/// `nohup` has the program ignore the signal that the end of a session sends.
#[cfg(unix)]
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let file = files("md-nohup");
    let run = md(&["-n", "1000000000", "--checkpoint", &file("run.ckpt")]);
    let mut under_nohup = Command::new("sh");
    under_nohup.current_dir(run.get_current_dir().unwrap()).args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    under_nohup.arg(run.get_program()).args(run.get_args());
    let mut child = under_nohup.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // by then it listens to signals
    wait_until(|| Path::new(&file("run.ckpt.lock")).exists());
    signal(&child, "HUP");
    std::thread::sleep(Duration::from_secs(4));
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ended.is_none(), "{ended:?}");
}

#[test]
fn a_run_that_blows_up_says_where_and_keeps_the_frames_before() {
    let folder = folder("md-blown-up");
    let output = folder.join("run.npy");
    let run = ["--timestep", "0.02", "--record", "1", "-o", output.to_str().unwrap()];
    let message = md(&run).fails();
    assert!(message.contains("at step ") && message.contains("smaller --timestep"), "{message}");
    let frames = trajectory::read(&output).unwrap(); // which refuses what is not finite
    assert!(frames.n() > 0 && message.contains(&format!("at step {} ", frames.n() + 1)), "{message}");
    // a move finds it before the next frame
    let message = md(&["--timestep", "0.02", "--model", MODEL]).fails();
    let there = message.contains("in steps 17 to ") && message.contains(" at step 20: ");
    assert!(there && message.contains("smaller --timestep"), "{message}");
}

#[test]
fn a_run_goes_on_from_its_checkpoint_bit_for_bit() {
    let file = files("md-checkpointed");
    let run = |output: &str, more: &[&str]| {
        let summary = summary(&[&["--model", MODEL, "--record", "20", "-o", output], more].concat());
        (untimed(summary), std::fs::read(output).unwrap())
    };
    let (checkpoint, half) = (file("run.ckpt"), file("half.npy"));
    let checkpointed = ["--checkpoint", &checkpoint];
    let (first, _) = run(&half, &[&checkpointed[..], &["-n", "200"]].concat());
    assert_eq!([count(&first, "steps"), count(&first, "attempts")], [200, 10]);
    let whole = run(&file("whole.npy"), &["-n", "400"]);
    let both = run(&half, &[&checkpointed[..], &["-n", "400"]].concat());
    assert!(whole == both, "{} {}", whole.0, both.0);
    // a frame at the end of a run is no frame of one that goes on
    let (checkpoint, part) = (file("part.ckpt"), file("part.npy"));
    let parts = ["70", "130", "400"].map(|n| run(&part, &["--checkpoint", &checkpoint, "-n", n]));
    assert!(count(&parts[0].0, "steps") == 70 && parts[2] == whole, "{} {}", parts[2].0, whole.0);
    // a finished run is told once more, and is that of its options
    assert!(run(&half, &[&checkpointed[..], &["-n", "400"]].concat()) == whole);
    let refusal = |more: &[&str]| md(&[&["--record", "20"], &checkpointed[..], more].concat()).fails();
    let message = refusal(&["--model", MODEL, "-n", "300"]);
    assert!(message.contains("has already done 400 steps, but --steps is 300"), "{message}");
    let message = refusal(&["--model", MODEL, "-n", "500", "--seed", "2"]);
    assert!(
        message.contains("run.ckpt") && message.contains("another run (this run has --seed 2 instead of 1)"),
        "{message}"
    );
    let message = refusal(&["-n", "500", "--temperature", "310"]);
    assert!(
        message.contains("temperature 310 instead of 300, --frequency 10 instead of 20, no file for --model)"),
        "{message}"
    );
}

/// Before the first of a number of steps that no test waits for.
#[test]
fn a_trajectory_that_cannot_be_written_is_refused_at_once() {
    for (output, text) in [("nowhere/run.dcd", "folder nowhere does not exist"), ("run.mdcrd", "`mdcrd`")] {
        let message = md(&["-n", "1000000000", "-o", output]).fails();
        assert!(message.contains(text), "{message}");
    }
}
