//! `modejump md` with a screen, as a user runs it.
#![cfg(feature = "openmm")]

use serde_json::Value;
use std::path::Path;
use std::process::Command;

const MODEL: &str = "models/ala2/model.safetensors";

/// Standard output and standard error.
fn md(more: &[&str]) -> Result<[String; 2], String> {
    let shipped = ["md", "--topology", "models/ala2/topology.pdb", "--system", "models/ala2/system.xml"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let run = command.current_dir(root).args(shipped).args(["-n", "2000", "--frequency", "20"]).args(more);
    let run = run.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match run.status.success() {
        true => Ok([text(run.stdout), text(run.stderr)]),
        false => Err(text(run.stderr)),
    }
}

fn summary(more: &[&str]) -> Value {
    serde_json::from_str(&md(&[more, &["--json"]].concat()).unwrap()[0]).unwrap()
}

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("no {key} in {summary}"))
}

/// The generator screens itself, so that all that passes is accepted.
#[test]
fn a_screen_is_counted() {
    let summary = summary(&["--model", MODEL, "--screen", MODEL, "--proposals", "3"]);
    assert_eq!(summary["likelihood"], "exact");
    assert_eq!(summary["ess_likelihood"], "surrogate", "the weights are the screen's");
    let [attempts, screened] = ["attempts", "screened"].map(|key| count(&summary, key));
    assert!(attempts == 100 && 60 < screened && screened <= attempts, "{summary}");
    assert_eq!(count(&summary, "exact_evaluations"), 2 * screened);
    assert_eq!(summary["second_stage_acceptance"], 1.0);
    assert_eq!(summary["acceptance"], screened as f64 / attempts as f64);
    assert!(summary["correction_variance"].as_f64().unwrap() < 1e-6);
    let [text, _] = md(&["--model", MODEL, "--screen", MODEL]).unwrap();
    assert!(text.contains("passed the screen") && text.contains("Var(ln c) 0.000"), "{text}");
}

#[test]
fn acceptance_by_a_surrogate_is_marked_everywhere() {
    let asked = ["--model", MODEL, "--screen", MODEL, "--acceptance", "surrogate"];
    let summary = summary(&asked);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"surrogate".into(), &"surrogate".into()));
    assert!(summary.get("screened").is_none() && summary["acceptance"].as_f64().unwrap() > 0.5);
    let [text, log] = md(&asked).unwrap();
    assert!(log.contains("surrogate"), "{log}");
    // all but the line that tells the speed
    assert!(text.lines().skip(1).all(|line| line.contains("surrogate")), "{text}");
}

/// Paths to the System's energies raise the effective share of the generator's weights.
#[test]
fn proposals_may_be_annealed() {
    let plain = summary(&["--model", MODEL]);
    let annealed = summary(&["--model", MODEL, "--anneal", "20"]);
    assert_eq!((annealed["likelihood"].as_str(), count(&annealed, "attempts")), (Some("exact"), 100));
    let ess = |summary: &Value| summary["ess"].as_f64().unwrap();
    assert!(ess(&annealed) > ess(&plain), "{plain} {annealed}");
}

/// Steps of the shipped generator's latent point, at random and by trajectories; they have no weights, so no ESS is
/// told.
#[test]
fn the_latent_space_may_be_walked_in() {
    for more in [&["--latent-walk", "0.02,0.1"][..], &["--latent-walk", "0.05", "--leapfrog", "4"]] {
        let summary = summary(&[&["--model", MODEL], more].concat());
        assert_eq!((summary["likelihood"].as_str(), count(&summary, "attempts")), (Some("exact"), 100));
        let acceptance = summary["acceptance"].as_f64().unwrap();
        assert!(0.3 < acceptance && acceptance < 1.0 && summary.get("ess").is_none(), "{summary}");
    }
}

/// Trained at 600 K, it follows the run to 400 K: no warning, and jumps are accepted.
#[test]
fn a_steerable_model_is_taken_to_the_temperature_of_the_run() {
    let steerable = ["--model", "models/ala2/steerable.safetensors", "--temperature", "400", "--json"];
    let [text, warnings] = md(&steerable).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(summary["acceptance"].as_f64().unwrap() > 0.25 && summary["likelihood"] == "exact", "{summary}");
    assert!(!warnings.contains("trained for"), "{warnings}");
    let [_, warnings] = md(&["--model", MODEL, "--temperature", "400"]).unwrap();
    assert!(warnings.contains("trained for 300"), "{warnings}");
}

#[test]
fn without_a_screen_nothing_of_it_is_told() {
    let summary = summary(&["--model", MODEL]);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"exact".into(), &"exact".into()));
    assert!(summary.get("screened").is_none() && summary.get("correction_variance").is_none());
    assert!(!md(&["--model", MODEL]).unwrap()[0].contains("surrogate"));
}

#[test]
fn what_does_not_fit_is_refused() {
    for arguments in [&["--model", MODEL, "--acceptance", "surrogate"][..], &["--acceptance", "surrogate"]] {
        assert!(md(arguments).unwrap_err().contains("--screen"));
    }
    assert!(md(&["--screen", MODEL]).unwrap_err().contains("--model"));
    let message = md(&["--model", "models/ala2/model-hbonds.safetensors", "--anneal", "5"]).unwrap_err();
    assert!(message.contains("keep no constrained bond"), "{message}");
    assert!(md(&["--model", MODEL, "--anneal", "0"]).unwrap_err().contains("rising t"));
    assert!(md(&["--model", MODEL, "--latent-walk", "0"]).unwrap_err().contains("one positive width"));
    let message = md(&["--model", "models/ala2/gvp-flow.safetensors", "--latent-walk", "0.1"]).unwrap_err();
    assert!(message.contains("such as a coupling flow"), "{message}");
    let other = "models/double-well/generator.safetensors";
    let message = md(&["--model", MODEL, "--screen", other]).unwrap_err();
    assert!(message.contains("2 coordinates, the generator has 66"), "{message}");
}
