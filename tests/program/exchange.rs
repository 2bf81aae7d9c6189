//! `exchange`: temperatures exchange their configurations.

use crate::command::{files, modejump, number, Run, MODEL, SYSTEM, TOPOLOGY};
use serde_json::Value;

/// One model at both ends is ordinary replica exchange.
#[test]
fn temperatures_exchange_through_models() {
    let file = files("exchange-temperatures");
    let molecule = ["exchange", "--topology", TOPOLOGY, "--system", SYSTEM];
    let run = |more: &[&str]| modejump(&[&molecule, more].concat());
    let twice = ["--models", MODEL, MODEL];
    let asked = [&twice[..], &["--temperatures", "300,340", "-n", "150", "--interval", "20", "--json"]].concat();
    let text = run(&[&asked[..], &["-o", &file("a.npy"), &file("b.npy")]].concat()).succeeds();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["exchanges"][0]["attempts"], 150);
    let acceptance = number(&summary, "exchanges/0/acceptance");
    assert!(0.1 < acceptance && acceptance < 0.95, "{summary}");
    let t = [0, 1].map(|k| number(&summary, &format!("ensembles/{k}/t_mean")));
    assert!((t[0] - 300.0).abs() < 40.0 && (t[1] - 340.0).abs() < 40.0 && t[0] < t[1], "{summary}");
    assert_eq!(run(&[&asked[..], &["-o", &file("c.npy")]].concat()).succeeds(), text, "the same seed");
    let [a, b, c] = ["a.npy", "b.npy", "c.npy"].map(|name| std::fs::read(file(name)).unwrap());
    assert!(a == c && a != b && a.len() > 150 * 66 * 4);
    // the same, and what comes first is left out
    let late =
        ["--temperatures", "300,340", "-n", "90", "--equilibrate", "60", "--interval", "20", "-o", &file("late.npy")];
    run(&[&twice[..], &late].concat()).succeeds();
    let last = 90 * 66 * 4;
    assert!(std::fs::read(file("late.npy")).unwrap().ends_with(&a[a.len() - last..]));
    // in two parts
    let (checkpoint, both) = (file("run.ckpt"), [file("first.npy"), file("second.npy")]);
    let part = |n: &str| {
        let more = ["-n", n, "--interval", "20", "--json", "--checkpoint", &checkpoint, "-o", &both[0], &both[1]];
        run(&[&twice[..], &["--temperatures", "300,340"], &more].concat())
    };
    part("60").succeeds();
    assert_eq!(part("150").succeeds(), text);
    assert!([a, b] == both.each_ref().map(|path| std::fs::read(path).unwrap()));
    assert!(part("149").fails().contains("has already done 150 exchanges, but --exchanges is 149"));
    let other = [&asked[..], &["--seed", "2", "--checkpoint", &checkpoint]].concat();
    let message = run(&other).fails();
    assert!(
        message.contains("run.ckpt") && message.contains("another run (this run has --seed 2 instead of 1)"),
        "{message}"
    );
    for (more, text) in [
        (&["--models", MODEL][..], "2 values required"),
        (&[&twice[..], &["--temperatures", "300"]].concat()[..], "2 models, 1 temperatures"),
        (&[&twice[..], &["-n", "0"]].concat()[..], "--exchanges 0: must be at least 1"),
        (&[&twice[..], &["--interval", "0"]].concat()[..], "--interval 0: must be at least 1"),
        (&["--models", MODEL, "models/ala2/modes.safetensors"][..], "modes"),
        (&[&twice[..], &["-o", "a.npy", "b.npy", "c.npy"]].concat()[..], "3 trajectories for 2 temperatures"),
        (&[&twice[..], &["-o", "a.npy", "./a.npy"]].concat()[..], "would overwrite"),
        (
            &[&twice[..], &["-n", "1000000000", "-o", "a.npy", "nowhere/b.npy"]].concat()[..],
            "folder nowhere does not exist",
        ),
    ] {
        let error = run(more).fails();
        assert!(error.contains(text), "{error}");
    }
}
