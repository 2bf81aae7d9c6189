//! What the report and the figures say of weights that are few, collapsed or changed.

use super::reweight;
use crate::command::{document, files, modejump, number, Run, MODEL, SYSTEM};
use serde_json::Value;

/// At 1 K one sample has all the weight.
#[test]
fn collapsed_weights_are_told_with_a_warning_and_without_errors() {
    let arguments = ["-n", "1000", "--temperature", "1"];
    let text = reweight(&arguments).succeeds();
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    assert!(line("Pareto k").ends_with("infinite  (weights are unreliable above 0.7)"), "{text}");
    assert!(line("<u>").ends_with(" ± ? kT") && line("log Z").ends_with(" ± ?"), "{text}");
    assert!(line("±?").contains("fewer than 5 effective samples"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
    let summary = reweight(&arguments).json();
    assert!(
        summary["pareto_k"] == "inf" && summary["u_stderr"].is_null() && number(&summary, "ess") < 0.005,
        "{summary}"
    );
    let text = reweight(&[&arguments[..], &["--surrogate", MODEL]].concat()).succeeds();
    assert!(text.contains("infinite") && text.contains("(weights are unreliable above 0.7)"), "{text}");
    assert!(text.contains("± ?") && !text.contains("NaN"), "{text}");
}

/// A torsion without an energy on one side.
#[test]
fn samples_without_weight_are_in_the_report_and_in_the_figure() {
    let path = files("reweight-rejected");
    let system = std::fs::read_to_string(SYSTEM).unwrap();
    let wall =
        "<Force type=\"CustomTorsionForce\" version=\"3\" name=\"wall\" energy=\"log(step(theta))\" forceGroup=\"0\" \
        usesPeriodic=\"0\"><PerTorsionParameters/><GlobalParameters/><EnergyParameterDerivatives/><Torsions>\
        <Torsion p1=\"6\" p2=\"8\" p3=\"14\" p4=\"16\"/></Torsions></Force></Forces>";
    std::fs::write(path("system.xml"), system.replace("</Forces>", wall)).unwrap();
    let (system, output) = (path("system.xml"), path("weights.json"));
    let text =
        modejump(&["reweight", MODEL, "--system", &system, "-n", "500", "--weights", "truncated", "-o", &output])
            .succeeds();
    let document = document(&output);
    let (summary, series) = (&document["summary"], &document["series"][0]);
    let rejected = number(summary, "rejected");
    assert!(rejected > 50.0 && rejected < 450.0, "{summary}");
    assert!(text.contains(&format!("rejected          {rejected} samples have no weight")), "{text}");
    assert_eq!((&series["n"], &series["weights"]), (&Value::from(500), &Value::from("truncated")));
    assert_eq!(series["raw_log_weight"].as_array().unwrap().len() as f64, 500.0 - rejected);
    modejump(&["plot", &output, "-o", &path("")]).succeeds();
    let figure = std::fs::read_to_string(path("log_weights.svg")).unwrap();
    let expected = format!(
        "ESS {:.1} %, k = {:.2}, {rejected} rejected",
        100.0 * number(summary, "ess"),
        number(summary, "pareto_k")
    );
    assert!(figure.contains(&expected) && figure.contains("weights used: truncated"), "{expected}");
    assert!(std::fs::read_to_string(path("energy.svg")).unwrap().contains("reweighted (truncated weights)"));
}

#[test]
fn every_report_says_by_which_weights_its_averages_are_made() {
    let found = |more: &[&str]| reweight(&[&["-n", "400"], more].concat()).json();
    let raw = found(&[]);
    assert_eq!(raw["weights"], "raw");
    assert!(raw.get("changed_weights").is_none());
    for key in ["acceptance_stderr", "u_stderr", "log_z_stderr", "delta_f_stderr"] {
        assert!(number(&raw, key) > 0.0, "{raw}");
    }
    for (option, name) in
        [("truncated", "truncated"), ("smoothed", "smoothed"), ("quantile-clipped", "quantile_clipped")]
    {
        let more = ["--weights", option, "--clipped-share", "0.02"];
        let changed = found(&more);
        assert_eq!(changed["weights"], name);
        for key in ["ess", "pareto_k", "acceptance"] {
            assert_eq!(number(&raw, key), number(&changed, key), "{key} is that of the raw weights");
        }
        let text = reweight(&[&["-n", "400"], &more[..]].concat()).succeeds();
        assert!(text.contains(name) && text.contains("(raw weights)"), "{text}");
        if name == "quantile_clipped" {
            assert_eq!(changed["changed_weights"], 8);
            assert!(number(&changed, "u_mean") != number(&raw, "u_mean") && text.contains("DELETED, biased"), "{text}");
        }
    }
    assert!(reweight(&["-n", "400", "--weights", "quantile-clipped", "--clipped-share", "1"])
        .fails()
        .contains("share"));
}

#[test]
fn a_handful_of_samples_has_no_errors() {
    for more in [
        &["-n", "1"][..],
        &["-n", "3", "--surrogate", MODEL],
        &["-n", "9", "--surrogate", MODEL, "--exact-subset", "2"],
    ] {
        let text = reweight(more).succeeds();
        assert!(
            text.contains("± ?") && text.contains("fewer than 5 effective samples") && !text.contains("NaN"),
            "{text}"
        );
    }
}
