//! `md`: moves by a model, and what does not fit.

mod boxes;
mod interruptions;
mod topologies;

use crate::command::{files, modejump, number, Run, MODEL, SYSTEM, TOPOLOGY};
use serde_json::Value;
use std::process::Command;

/// Alanine dipeptide: 2000 steps and, with a model, an attempt in 20 unless asked for otherwise.
fn md(more: &[&str]) -> Command {
    let mut command = modejump(&["md", "--topology", TOPOLOGY, "--system", SYSTEM]);
    if !more.contains(&"-n") {
        command.args(["-n", "2000"]);
    }
    if more.contains(&"--model") && !more.contains(&"--frequency") {
        command.args(["--frequency", "20"]);
    }
    command.args(more);
    command
}

fn summary(more: &[&str]) -> Value {
    md(more).json()
}

/// Without what two runs differ in that are otherwise the same.
fn untimed(mut summary: Value) -> Value {
    summary.as_object_mut().unwrap().retain(|key, _| key != "wall_s" && key != "ns_per_day");
    summary
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
    assert!(number(&summary, "correction_variance") < 1e-6);
    let text = md(&["--model", MODEL, "--screen", MODEL]).succeeds();
    assert!(text.contains("passed the screen") && text.contains("Var(ln c) 0.000"), "{text}");
    // the word for what is biased, which this run is not
    assert!(
        text.contains("  (of the screen's weights)") && text.contains(" %, Pareto k") && !text.contains("surrogate"),
        "{text}"
    );
}

#[test]
fn a_centre_of_mass_that_only_jumps_move_in_a_field_is_told() {
    let path = files("centre_in_a_field")("system.xml");
    let field = "<Force type=\"CMMotionRemover\" version=\"1\" frequency=\"1\"/><Force type=\"CustomExternalForce\" version=\"1\" \
                 name=\"field\" energy=\"x\" forceGroup=\"0\"><PerParticleParameters/><GlobalParameters/><Particles><Particle index=\"0\"/>\
                 </Particles></Force></Forces>";
    std::fs::write(&path, std::fs::read_to_string(SYSTEM).unwrap().replace("</Forces>", field)).unwrap();
    let told = |more: &[&str]| {
        let mut run = modejump(&["md", "--topology", TOPOLOGY, "--system", &path, "-n", "20"]);
        run.args(more);
        String::from_utf8(run.output().unwrap().stderr)
            .unwrap()
            .contains("averages depend on how often jumps are attempted")
    };
    assert!(told(&["--model", MODEL, "--frequency", "20"]));
    assert!(!told(&[]), "no jumps");
}

#[test]
fn acceptance_by_a_surrogate_is_marked_everywhere() {
    let asked = ["--model", MODEL, "--screen", MODEL, "--acceptance", "surrogate"];
    let summary = summary(&asked);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"surrogate".into(), &"surrogate".into()));
    assert!(summary.get("screened").is_none() && number(&summary, "acceptance") > 0.5);
    let [text, log] = md(&asked).texts();
    assert!(log.contains("surrogate"), "{log}");
    // all but the line that tells the speed
    assert!(text.lines().skip(1).all(|line| line.contains("surrogate")), "{text}");
}

#[test]
fn without_a_screen_nothing_of_it_is_told() {
    let summary = summary(&["--model", MODEL]);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"exact".into(), &"exact".into()));
    assert!(summary.get("screened").is_none() && summary.get("correction_variance").is_none());
    assert!(!md(&["--model", MODEL]).succeeds().contains("surrogate"));
}

/// Paths to the System's energies raise the effective share of the generator's weights.
#[test]
fn proposals_may_be_annealed() {
    let plain = summary(&["--model", MODEL]);
    let annealed = summary(&["--model", MODEL, "--anneal", "20"]);
    assert_eq!((annealed["likelihood"].as_str(), count(&annealed, "attempts")), (Some("exact"), 100));
    let ess = |summary: &Value| number(summary, "ess");
    assert!(ess(&annealed) > ess(&plain), "{plain} {annealed}");
}

/// With Langevin steps or trajectories, as the Force has them.
#[test]
fn annealed_proposals_may_be_trajectories() {
    let of = |more: &[&str]| summary(&[&["--model", MODEL, "--anneal", "3"], more].concat())["u_mean"].clone();
    assert_eq!(of(&[]), of(&["--leapfrog", "0"]));
    assert_ne!(of(&[]), of(&["--leapfrog", "4"]));
}

#[test]
fn options_without_effect_are_refused() {
    for (more, of) in [
        (&["--anneal", "5", "--relaxation-steps", "3"][..], "--relaxation-steps requires --driven"),
        (&["--latent-walk", "0.1", "--anneal-step", "1"], "--anneal-step requires --anneal"),
        (&["--screen", MODEL, "--leapfrog", "3"], "--leapfrog requires --latent-walk or --anneal"),
        (&["--relaxation-timestep", "0.1"], "--relaxation-timestep requires --driven"),
    ] {
        let message = md(&[&["--model", MODEL], more].concat()).fails();
        assert!(message.contains(of), "{message}");
    }
    // before the first step
    let message = md(&["--model", "models/ala2/gvp-flow.safetensors", "--anneal", "3"]).fails();
    assert!(message.contains("has no gradient of its log-density") && !message.contains("in steps"), "{message}");
}

/// Steps of the shipped generator's latent point, at random and by trajectories; they have no weights, so no ESS is
/// told.
#[test]
fn the_latent_space_may_be_walked_in() {
    for more in [&["--latent-walk", "0.02,0.1"][..], &["--latent-walk", "0.05", "--leapfrog", "4"]] {
        let summary = summary(&[&["--model", MODEL], more].concat());
        assert_eq!((summary["likelihood"].as_str(), count(&summary, "attempts")), (Some("exact"), 100));
        let acceptance = number(&summary, "acceptance");
        assert!(0.3 < acceptance && acceptance < 1.0 && summary.get("ess").is_none(), "{summary}");
    }
}

/// By Metropolis tests, i-SIR and a screen: the whole trajectory and the counters are the same to the last bit.
#[test]
fn proposals_drawn_ahead_change_nothing() {
    let file = files("md-ahead")("run.safetensors");
    for more in [&[][..], &["--proposals", "3"], &["--screen", MODEL]] {
        let run = |ahead: &[&str]| {
            let summary = untimed(summary(&[&["--model", MODEL, "-o", &file], more, ahead].concat()));
            (summary, std::fs::read(&file).unwrap())
        };
        let plain = run(&[]);
        assert!(number(&plain.0, "acceptance") > 0.3, "{}", plain.0);
        assert!(plain == run(&["--draw-ahead"]), "{more:?}: {}", plain.0);
    }
}

#[test]
fn several_proposals_are_chosen_from_unless_tests_are_asked_for() {
    let run = |more: &[&str]| untimed(summary(&[&["--model", MODEL, "--proposals", "3"], more].concat()));
    let [chosen, tested] = ["isir", "independence"].map(|method| run(&["--method", method]));
    assert!(run(&[]) == chosen && chosen != tested, "{chosen} {tested}");
    assert_eq!([&chosen, &tested].map(|summary| count(summary, "attempts")), [100; 2]);
    let refused = md(&["--model", MODEL, "--screen", MODEL, "--method", "isir"]).fails();
    assert!(refused.contains("--screen") && refused.contains("--method"), "{refused}");
}

/// Trained at 600 K, it follows the run to 400 K: no warning, and jumps are accepted.
#[test]
fn a_steerable_model_is_taken_to_the_temperature_of_the_run() {
    let steerable = ["--model", "models/ala2/steerable.safetensors", "--temperature", "400", "--json"];
    let [text, warnings] = md(&steerable).texts();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(number(&summary, "acceptance") > 0.25 && summary["likelihood"] == "exact", "{summary}");
    assert!(!warnings.contains("trained for"), "{warnings}");
    let [_, warnings] = md(&["--model", MODEL, "--temperature", "400"]).texts();
    assert!(warnings.contains("trained for 300"), "{warnings}");
}

#[test]
fn what_does_not_fit_is_refused() {
    for arguments in [&["--model", MODEL, "--acceptance", "surrogate"][..], &["--acceptance", "surrogate"]] {
        assert!(md(arguments).fails().contains("--screen"));
    }
    assert!(md(&["--screen", MODEL]).fails().contains("--model"));
    assert!(md(&["--record", "0"]).fails().contains("--record"));
    assert!(md(&["--frequency", "20"]).fails().contains("--model"));
    assert!(md(&["--decoding", "jacobi"]).fails().contains("--model"));
    assert!(md(&["--model", MODEL, "--decoding", "jacobi"]).fails().contains("TarFlow"));
    let message = md(&["--model", MODEL, "-n", "100", "--frequency", "101"]).fails();
    assert!(message.contains("no jump would be attempted in 100 steps"), "{message}");
    for given in [TOPOLOGY, SYSTEM, MODEL, "models/ala2/../ala2/topology.pdb"] {
        let message = md(&["-n", "1000000000", "--model", MODEL, "-o", given]).fails();
        assert!(message.contains("would overwrite"), "{message}");
    }
    let message = md(&["--model", "models/ala2/model-hbonds.safetensors"]).fails();
    assert!(message.contains("keeps the bond") && message.contains("constrain the bond"), "{message}");
    assert!(md(&["--model", MODEL, "--anneal", "0"]).fails().contains("--anneal"));
    assert!(md(&["--model", MODEL, "--latent-walk", "0"]).fails().contains("one or more positive, finite widths"));
    assert!(md(&["--model", MODEL, "--latent-walk", "0.1", "--draw-ahead"]).fails().contains("--latent-walk"));
    let message = md(&["--model", "models/ala2/gvp-flow.safetensors", "--latent-walk", "0.1"]).fails();
    assert!(message.contains("such as a coupling flow"), "{message}");
    let other = "models/double-well/generator.safetensors";
    let message = md(&["--model", MODEL, "--screen", other]).fails();
    assert!(message.contains("2 coordinates, but the generator has 66"), "{message}");
}

/// A System that was written after `addForce(MonteCarloModeJump(…))`.
#[test]
fn a_move_in_the_system_does_not_act() {
    let file = files("md-with-move")("system.xml");
    let system = std::fs::read_to_string(SYSTEM).unwrap();
    let force = format!(r#"<Force frequency="10" model="{MODEL}" type="MonteCarloModeJump" version="1"/></Forces>"#);
    std::fs::write(&file, system.replace("</Forces>", &force)).unwrap();
    let run = ["md", "-n", "2000", "--topology", TOPOLOGY, "--system", &file, "--json"];
    let [with, told] = modejump(&run).texts();
    assert!(told.contains("contains a MonteCarloModeJump, which is ignored"), "{told}");
    let with: Value = serde_json::from_str(&with).unwrap();
    assert_eq!(with["u_mean"], summary(&[])["u_mean"]);
}

#[test]
fn steps_of_equilibration_are_not_recorded() {
    let plain = summary(&["-n", "200", "--record", "10"]);
    let later = summary(&["-n", "200", "--record", "10", "--equilibrate", "3000"]);
    assert_eq!([&plain, &later].map(|s| count(s, "steps")), [200, 200]);
    let kelvin = |summary: &Value| number(summary, "t_mean");
    // it begins at a minimum, where half of the heat goes into the potential
    assert!(kelvin(&plain) < 230.0 && kelvin(&later) > 230.0, "{plain} {later}");
}

#[test]
fn a_few_frames_have_no_means() {
    let [text, log] = md(&["-n", "300", "--json"]).texts();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(summary.get("u_mean").is_none() && count(&summary, "steps") == 300, "{summary}");
    assert!(log.contains("too few frames") && log.contains("(3)") && log.contains("--record"), "{log}");
    assert!(!md(&["-n", "300"]).succeeds().contains("<U>"));
    assert!(md(&["-n", "400"]).succeeds().contains("<U>"));
}
