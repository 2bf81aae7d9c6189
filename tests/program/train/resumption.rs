//! A training that was cut goes on.

use super::{Setting, SETTINGS};
use crate::command::{interrupted, wait_until, Run};

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
    let cut =
        interrupted(&mut checkpointed("cut.safetensors"), "TERM", || wait_until(|| setting.path("cut.log").exists()));
    let text = String::from_utf8(cut.stderr).unwrap();
    assert!(!cut.status.success() && text.contains("interrupted at step"), "{text}");

    let [_, text] = checkpointed("cut.safetensors").texts();
    assert!(text.contains("going on from step"), "{text}");
    let log = |name: &str| std::fs::read(setting.path(name)).unwrap();
    assert!(setting.tensors("cut.safetensors") == setting.tensors("whole.safetensors"), "the models differ");
    assert!(log("cut.log") == log("whole.log"), "the logs differ");

    // a finished training has nothing left to do
    let [_, text] = checkpointed("again.safetensors").texts();
    assert!(text.contains("going on from step 2500"), "{text}");
    assert!(setting.tensors("again.safetensors") == setting.tensors("whole.safetensors"));
    // and belongs to its settings and frames
    for (from, to, reason) in [
        ("\"batch\": 32", "\"batch\": 48", "other training options"),
        ("\"hidden\"", "\"seed\": 2, \"hidden\"", "belongs to another run"),
        ("[12]", "[13]", "belongs to another run"),
    ] {
        setting.configure(&SETTINGS.replace(from, to));
        let text = checkpointed("other.safetensors").fails();
        assert!(text.contains(reason), "{text}");
    }
    setting.configure(SETTINGS);
    std::fs::copy(&setting.frames[0], &setting.frames[1]).unwrap();
    assert!(checkpointed("other.safetensors").fails().contains("belongs to another run"));
}
