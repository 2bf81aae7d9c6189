//! Bijections between modes.

use super::{Setting, SETTINGS};
use crate::command::{interrupted, log, number, tensors, wait_until, Run, SYSTEM};
use modejump::coordinates::Along;
use serde_json::Value;

/// Two modes of frames: a generator for each, then the second learns to jump by the energies at both ends.
#[test]
fn bijections_between_modes_are_trained_by_the_energies_at_both_ends() {
    let setting = Setting::new("jump");
    let torsion = Along::Torsion([4, 6, 8, 14]);
    let frames: Vec<f64> = setting.frames.iter().flat_map(|f| tensors(f)["x"].data.clone()).collect();
    let mut phi: Vec<f64> = frames.chunks_exact(66).map(|x| torsion.value(x)).collect();
    phi.sort_by(f64::total_cmp);
    let (low, middle, high) = (phi[0] - 0.1, phi[phi.len() / 2], phi[phi.len() - 1] + 0.1);
    let mode = |name: &str, from: f64, to: f64| {
        format!(
            r#"{{ "name": "{name}", "within": [{{ "along": {{ "torsion": [4, 6, 8, 14] }}, "range": [{from}, {to}] }}] }}"#
        )
    };
    let modes = format!(r#"{{ "modes": [{}, {}]"#, mode("low", low, middle), mode("high", middle, high));
    let describe = |more: &str| std::fs::write(setting.path("modes.json"), format!("{modes}{more} }}")).unwrap();
    describe("");
    let config = |jump: &str| {
        let design = &SETTINGS[SETTINGS.find(r#""design""#).unwrap()..SETTINGS.find(r#""train""#).unwrap()];
        let phase = r#"{ "steps": 20, "batch": 32 }"#;
        let text = format!(r#"{{ {design} "train": {{ "phases": [{phase}], "evaluate": 10 }}, "jump": {jump} }}"#);
        setting.configure(&text);
    };
    let train = |output: &str, more: &[&str]| {
        let mut command = setting.train(output);
        command.arg("--modes").arg(setting.path("modes.json")).args(more);
        command
    };
    let energies = ["--system", SYSTEM];
    let phase = r#"{ "steps": 20, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 32 }"#;
    config(&format!(r#"{{ "phases": [{phase}], "evaluate": 10 }}"#));
    train("both.safetensors", &energies).succeeds();
    let model = modejump::models::load(setting.path("both.safetensors")).unwrap();
    assert_eq!(model.modes().unwrap().generators().len(), 2);
    let log = log(setting.path("both.high.jump.log"));
    let acceptance = number(log.last().unwrap(), "acceptance");
    assert!(acceptance > 0.0 && acceptance < 1.0, "{log:?}");
    let (before, after) = (setting.tensors("both.high.safetensors"), setting.tensors("both.high.jump.safetensors"));
    let bundled = setting.tensors("both.safetensors");
    let moved = before.iter().filter(|(name, tensor)| tensor.data != after[*name].data).count();
    assert!(moved > 0 && after.iter().all(|(name, tensor)| tensor.data == bundled[&format!("modes.1.{name}")].data));

    // a way to nowhere is told before generators are trained for it
    describe(r#", "edges": [{ "between": ["low", "nowhere"] }]"#);
    let text = train("nowhere.safetensors", &energies).fails();
    assert!(text.contains("nowhere") && !setting.path("nowhere.low.safetensors").exists(), "{text}");
    describe("");

    // interrupted, or just too late for that, and gone on with
    let cut = || {
        let mut command = train("cut.safetensors", &energies);
        command.arg("--json").arg("--checkpoint").arg(setting.path("state.ckpt"));
        command
    };
    interrupted(&mut cut(), "TERM", || wait_until(|| setting.path("cut.low.log").exists()));
    assert!(setting.path("state.low.ckpt").exists());
    let [printed, text] = cut().texts();
    assert!(text.contains("resuming from step"), "{text}");
    assert!(setting.tensors("cut.safetensors") == bundled, "the models differ");
    let summary: Value = serde_json::from_str(&printed).unwrap();
    assert!(
        summary["output"].as_str().unwrap().ends_with("cut.safetensors") && text.contains("low <-> high"),
        "{text}"
    );
    for name in ["low", "high", "high.jump"] {
        assert_eq!(summary["trainings"][name]["last"]["step"].as_u64(), Some(20), "{summary}");
    }

    // settings of the last training are looked at before the first
    let refusal = |jump: &str, more: &[&str], reason: &str| {
        config(jump);
        let text = train("never.safetensors", more).fails();
        assert!(text.contains(reason), "{text}");
    };
    refusal("{}", &[], "use --system");
    refusal(r#"{ "phases": [{ "steps": 20 }] }"#, &energies, "reverse KL");
    refusal(r#"{ "clip": -1.0 }"#, &energies, "clip");
    refusal(r#"{ "held_out": 0.0 }"#, &energies, "too few for `jump`");
    assert!(!setting.path("never.low.safetensors").exists());
}
