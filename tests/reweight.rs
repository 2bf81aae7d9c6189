//! `modejump reweight` as a user runs it.
#![cfg(feature = "openmm")]

use modejump::density::{Density, Evaluation, Exactness};
use modejump::models::energy::{EnergyConfig, EnergyModel};
use modejump::models::graphormer_ebm::{Config, Graphormer, GraphormerConfig, Version};
use modejump::models::network::{Evaluator, Network};
use modejump::models::{load, ModelCard, ModelConfig};
use modejump::rng::{Stream, StreamId};
use modejump::trust::Trust;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "support/steerable.rs"]
mod steerable;
#[path = "support/tarflow.rs"]
mod tarflow;

const MODEL: &str = "models/ala2/model.safetensors";

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("modejump-reweight-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn reweight(more: &[&str]) -> Result<String, String> {
    let arguments = [&["reweight", MODEL, "--system", "models/ala2/system.xml", "--seed", "3"], more].concat();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let run = Command::new(env!("CARGO_BIN_EXE_modejump")).current_dir(root).args(arguments).output().unwrap();
    match run.status.success() {
        true => Ok(String::from_utf8(run.stdout).unwrap()),
        false => Err(String::from_utf8(run.stderr).unwrap()),
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[test]
fn a_state_may_begin_below_zero() {
    let summary: Value = serde_json::from_str(&reweight(&["-n", "200", "--state", "-2,0", "--json"]).unwrap()).unwrap();
    assert!(number(&summary, "ess") > 0.0, "{summary}");
}

#[test]
fn energies_are_those_of_the_platform() {
    let log_z = |platform: &str| {
        let found = reweight(&["-n", "200", "--platform", platform, "--json"])?;
        Ok::<f64, String>(number(&serde_json::from_str(&found).unwrap(), "log_z"))
    };
    let [double, single] = ["Reference", "CPU"].map(|platform| log_z(platform).unwrap());
    assert!(double != single && (double - single).abs() < 1e-3, "{double} {single}");
    let message = log_z("Abacus").unwrap_err();
    assert!(message.contains("Abacus"), "{message}");
}

/// A small energy of random weights for the 22 atoms, which has nothing to do with the generator.
fn energy(path: &Path, n_atoms: usize) {
    let network = GraphormerConfig {
        version: Version::Clean,
        types: (0..n_atoms).map(|i| i % 3).collect(),
        n_types: 3,
        n_layers: 1,
        blocks: 1,
        width: 8,
        feed_forward: 8,
        heads: 2,
        kernels: 5,
    };
    let config = EnergyConfig { units_per_nm: 10.0, data_time: 0.0, trust: Default::default() };
    let graphormer = Graphormer::new(network.clone()).unwrap();
    let parameters: Vec<f32> = graphormer.layout().initialise(&mut Stream::new(3, StreamId::Test, 0, 0), |_, _| None);
    let model = ModelConfig::GraphormerEbm(Config { network, energy: config });
    let card = ModelCard { exactness: Exactness::Surrogate, ..ModelCard::of_cartesian(model, n_atoms) };
    let ebm = EnergyModel::new(Evaluator::new(graphormer, parameters), config, card, String::new());
    std::fs::write(path, ebm.to_bytes().unwrap()).unwrap();
}

fn log_density(model: &dyn Density, x: &[f64]) -> Vec<f64> {
    let mut log_q = vec![Evaluation::inside(0.0); x.len() / model.dimension()];
    model.log_density(x, &mut log_q).unwrap();
    log_q.iter().map(|e| e.log_density).collect()
}

#[test]
fn the_generators_own_density_as_a_surrogate_has_no_bias() {
    let found: Value =
        serde_json::from_str(&reweight(&["-n", "300", "--surrogate", MODEL, "--json"]).unwrap()).unwrap();
    let (generator, surrogate, bias) = (&found["generator"], &found["surrogate"], &found["bias"]);
    assert_eq!(generator["likelihood"], "exact");
    assert_eq!(surrogate["likelihood"], "surrogate");
    for key in ["n", "ess", "pareto_k", "acceptance", "delta_f_kT", "delta_f_stderr"] {
        assert_eq!(number(generator, key), number(surrogate, key), "{key}");
    }
    for key in ["mean_log_c", "variance_log_c", "kl", "delta_f_shift_kT", "delta_f_shift_stderr"] {
        assert!(number(bias, key).abs() < 1e-9, "{key} {bias}");
    }
    assert!(generator.get("log_z").is_some() && surrogate.get("log_z").is_none(), "a surrogate knows no Z");
}

#[test]
fn the_bias_of_an_energy_is_that_of_its_log_density_on_the_subset() {
    let folder = folder("energy");
    let (path, output) = (folder.join("energy.safetensors"), folder.join("weights.json"));
    energy(&path, 22);
    let (path, output) = (path.to_str().unwrap(), output.to_str().unwrap());
    let arguments = ["-n", "200", "--surrogate", path, "--exact-subset", "80"];
    let found = reweight(&[&arguments[..], &["--json", "-o", output]].concat()).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!((number(&found["generator"], "n"), number(&found["surrogate"], "n")), (80.0, 200.0));
    assert_eq!(found["bias"]["likelihood"], "exact");

    // ln c of the same samples
    let (model, ebm) = (load(MODEL).unwrap(), load(path).unwrap());
    let (mut x, mut log_q) = (vec![0.0; 80 * 66], vec![Evaluation::inside(0.0); 80]);
    model.sample(&|row| Stream::new(3, StreamId::Sample, row as u64, 0), &mut x, &mut log_q).unwrap();
    let log_q = log_density(model.as_ref(), &x);
    let log_c: Vec<f64> = log_density(ebm.as_ref(), &x).iter().zip(&log_q).map(|(a, b)| a - b).collect();
    let mean = log_c.iter().sum::<f64>() / 80.0;
    let variance = log_c.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 79.0;
    assert!((number(&found["bias"], "mean_log_c") - mean).abs() < 1e-4 * mean.abs());
    assert!((number(&found["bias"], "variance_log_c") - variance).abs() < 1e-3 * variance);
    // the series: weights by the surrogate are those of the generator over c
    let document: Value = serde_json::from_str(&std::fs::read_to_string(output).unwrap()).unwrap();
    let weights =
        |k: usize| -> Vec<f64> { serde_json::from_value(document["series"][k]["log_weight"].clone()).unwrap() };
    let (by_generator, by_energy) = (weights(0), weights(1));
    assert_eq!((by_generator.len(), by_energy.len()), (80, 200));
    for i in 0..80 {
        assert!((by_energy[i] - (by_generator[i] - log_c[i])).abs() < 1e-2, "{i}");
    }

    let text = reweight(&arguments).unwrap();
    let columns = text.lines().next().unwrap();
    assert!(columns.contains("exact") && columns.ends_with("surrogate"), "{text}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_calibrated_energy_is_the_same_but_for_its_trust() {
    let folder = folder("calibrated");
    let (from, to) = (folder.join("energy.safetensors"), folder.join("calibrated.safetensors"));
    energy(&from, 22);
    let arguments = ["-n", "120", "--surrogate", from.to_str().unwrap(), "--exact-subset", "100", "--json"];
    let found = reweight(&[&arguments[..], &["--calibrate", to.to_str().unwrap()]].concat()).unwrap();
    let found: Value = serde_json::from_str(&found).unwrap();
    let screening = &found["screening"];
    // beside an energy of random weights the engine's energies are best not believed either: the generator's weights
    // hardly vary
    assert!(number(&screening["trust"], "energy").abs() < 0.1, "{screening}");
    assert!(number(screening, "left") < number(screening, "left_without"), "{screening}");
    let [before, after] = [&from, &to].map(|path| load(path).unwrap());
    assert_eq!(before.trust(), Trust::FULL);
    let trust: Trust = serde_json::from_value(screening["trust"].clone()).unwrap();
    assert_eq!(after.trust(), trust);
    let (mut x, mut log_q) = (vec![0.0; 66], [Evaluation::inside(0.0)]);
    load(MODEL).unwrap().sample(&|_| Stream::new(3, StreamId::Sample, 0, 0), &mut x, &mut log_q).unwrap();
    assert_eq!(log_density(before.as_ref(), &x), log_density(after.as_ref(), &x), "what it says stays the same");

    let flow = ["-n", "50", "--surrogate", MODEL, "--calibrate", to.to_str().unwrap()];
    let refused = reweight(&flow).unwrap_err();
    assert!(refused.contains("energy-based models"), "{refused}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_no_surrogate_is_refused() {
    let folder = folder("refused");
    let path = folder.join("energy.safetensors");
    energy(&path, 21);
    let path = path.to_str().unwrap();
    let message = reweight(&["-n", "10", "--surrogate", path]).unwrap_err();
    assert!(message.contains("63 coordinates, the generator has 66"), "{message}");
    let message = reweight(&["-n", "10", "--surrogate", MODEL, "--exact-subset", "11"]).unwrap_err();
    assert!(message.contains("--exact-subset 11 of 10 samples: give 2 to 10"), "{message}");
    assert!(reweight(&["-n", "10", "--exact-subset", "5"]).unwrap_err().contains("--surrogate"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn weights_of_a_tarflow_over_rotations_and_as_published() {
    let folder = folder("tarflow");
    let path = folder.join("tarflow.safetensors");
    tarflow::write(&path);
    let of = |more: &[&str]| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.current_dir(root).args([
            "reweight",
            path.to_str().unwrap(),
            "--system",
            "models/ala2/system.xml",
            "-n",
            "20",
        ]);
        let run = command.args(["--json"]).args(more).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice::<Value>(&run.stdout).unwrap()
    };
    let (plain, one, three) = (of(&[]), of(&["--rotations", "1"]), of(&["--rotations", "3"]));
    assert_eq!((&plain["log_z"], &plain["likelihood"]), (&one["log_z"], &one["likelihood"]));
    assert_eq!((&three["rotations"], &three["likelihood"]), (&Value::from(3), &Value::from("exact")));
    assert!(number(&three, "log_z") != number(&plain, "log_z"));
    let published = of(&["--centroid", "chi3"]);
    assert!(published["likelihood"] == "surrogate" && published.get("log_z").is_none(), "{published}");
    let refused = reweight(&["-n", "10", "--rotations", "2"]).unwrap_err();
    assert!(refused.contains("orientation of a molecule"), "{refused}");
    // the same atoms in a box
    let (periodic, system) =
        (folder.join("periodic.xml"), std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap());
    std::fs::write(&periodic, system.replace("method=\"0\"", "method=\"2\"")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.arg("reweight").arg(&path).arg("--system").arg(&periodic).args(["-n", "1000000", "--rotations", "2"]);
    let run = command.output().unwrap();
    let refused = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && refused.contains("periodic.xml: the System is periodic"), "{refused}");
    let refused = reweight(&["-n", "10", "--centroid", "chi3"]).unwrap_err();
    assert!(refused.contains("for TarFlows"), "{refused}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// Three coordinates in a harmonic well: ⟨u⟩ = 3/2, whatever the auxiliary ones are, and ln Z is known.
#[test]
fn auxiliary_coordinates_are_no_part_of_the_energy() {
    let folder = folder("steerable");
    let [model, system, output] = ["steered.safetensors", "system.xml", "w.json"].map(|name| folder.join(name));
    steerable::write(&model);
    steerable::harmonic(&system);
    let of = |more: &[&str]| -> Value {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.arg("reweight").arg(&model).arg("--system").arg(&system).args(["-n", "4000", "--json"]).args(more);
        let run = command.arg("-o").arg(&output).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        serde_json::from_slice(&run.stdout).unwrap()
    };
    let plain = of(&[]);
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&output).unwrap()).unwrap();
    assert_eq!(document["series"][0]["name"], "steered");
    let both = of(&["--surrogate", model.to_str().unwrap()]);
    for summary in [&plain, &both["generator"], &both["surrogate"]] {
        let off = (number(summary, "u_mean") - 1.5) / number(summary, "u_stderr");
        assert!(off.abs() < 5.0 && number(summary, "u_stderr") < 0.1, "{summary}");
    }
    let log_z = 1.5 * (std::f64::consts::PI / 50.0).ln();
    for summary in [&plain, &both["generator"]] {
        let off = (number(summary, "log_z") - log_z) / number(summary, "log_z_stderr");
        assert!(off.abs() < 5.0, "{summary}: {log_z}");
    }
    assert!(number(&both["bias"], "mean_log_c").abs() < 1e-6, "{both}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// What was learned is told though it cannot be written.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_does_not_cost_the_summary() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["reweight", MODEL, "--system", "models/ala2/system.xml"]);
    let run = command.args(["-n", "20", "-o", "/dev/full"]).output().unwrap();
    assert!(!run.status.success() && String::from_utf8_lossy(&run.stdout).contains("acceptance"), "{run:?}");
}

/// At 1 K one sample has all the weight.
#[test]
fn collapsed_weights_are_told_with_a_warning_and_without_errors() {
    let arguments = ["-n", "1000", "--temperature", "1"];
    let text = reweight(&arguments).unwrap();
    let line =
        |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    assert!(line("Pareto k").ends_with("infinite  (weights are unreliable above 0.7)"), "{text}");
    assert!(line("<u>").ends_with(" ± ? kT") && line("log Z").ends_with(" ± ?"), "{text}");
    assert!(line("±?").contains("fewer than 5 effective samples"), "{text}");
    assert!(!text.contains("NaN"), "{text}");
    let summary: Value = serde_json::from_str(&reweight(&[&arguments[..], &["--json"]].concat()).unwrap()).unwrap();
    assert!(
        summary["pareto_k"] == "inf" && summary["u_stderr"].is_null() && number(&summary, "ess") < 0.005,
        "{summary}"
    );
    let text = reweight(&[&arguments[..], &["--surrogate", MODEL]].concat()).unwrap();
    assert!(text.contains("infinite") && text.contains("(weights are unreliable above 0.7)"), "{text}");
    assert!(text.contains("± ?") && !text.contains("NaN"), "{text}");
}

/// A torsion without an energy on one side.
#[test]
fn samples_without_weight_are_in_the_report_and_in_the_figure() {
    let folder = folder("rejected");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let system = std::fs::read_to_string("models/ala2/system.xml").unwrap();
    let wall =
        "<Force type=\"CustomTorsionForce\" version=\"3\" name=\"wall\" energy=\"log(step(theta))\" forceGroup=\"0\" \
        usesPeriodic=\"0\"><PerTorsionParameters/><GlobalParameters/><EnergyParameterDerivatives/><Torsions>\
        <Torsion p1=\"6\" p2=\"8\" p3=\"14\" p4=\"16\"/></Torsions></Force></Forces>";
    std::fs::write(path("system.xml"), system.replace("</Forces>", wall)).unwrap();
    let (system, output) = (path("system.xml"), path("weights.json"));
    let run = |arguments: &[&str]| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let run = Command::new(env!("CARGO_BIN_EXE_modejump")).current_dir(root).args(arguments).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    let text = run(&["reweight", MODEL, "--system", &system, "-n", "500", "--weights", "truncated", "-o", &output]);
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&output).unwrap()).unwrap();
    let (summary, series) = (&document["summary"], &document["series"][0]);
    let rejected = number(summary, "rejected");
    assert!(rejected > 50.0 && rejected < 450.0, "{summary}");
    assert!(text.contains(&format!("rejected          {rejected} samples have no weight")), "{text}");
    assert_eq!((&series["n"], &series["weights"]), (&Value::from(500), &Value::from("truncated")));
    assert_eq!(series["raw_log_weight"].as_array().unwrap().len() as f64, 500.0 - rejected);
    run(&["plot", &output, "-o", &path("")]);
    let figure = std::fs::read_to_string(path("log_weights.svg")).unwrap();
    let expected = format!(
        "ESS {:.1} %, k = {:.2}, {rejected} rejected",
        100.0 * number(summary, "ess"),
        number(summary, "pareto_k")
    );
    assert!(figure.contains(&expected) && figure.contains("used truncated"), "{expected}");
    assert!(std::fs::read_to_string(path("energy.svg")).unwrap().contains("reweighted (truncated weights)"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn every_report_says_by_which_weights_its_averages_are_made() {
    let found = |more: &[&str]| -> Value {
        serde_json::from_str(&reweight(&[&["-n", "400", "--json"], more].concat()).unwrap()).unwrap()
    };
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
        let text = reweight(&[&["-n", "400"], &more[..]].concat()).unwrap();
        assert!(text.contains(name) && text.contains("of the raw weights"), "{text}");
        if name == "quantile_clipped" {
            assert_eq!(changed["changed_weights"], 8);
            assert!(number(&changed, "u_mean") != number(&raw, "u_mean") && text.contains("DELETED, biased"), "{text}");
        }
    }
    assert!(reweight(&["-n", "400", "--weights", "quantile-clipped", "--clipped-share", "1"])
        .unwrap_err()
        .contains("share"));
}

/// A bond that one side keeps and the other varies is named; where both keep it, ln Z has the metric term.
#[test]
fn bonds_are_constrained_on_both_sides_or_on_none() {
    let run = |model: &str, system: &str| {
        let [model, system] = [format!("models/ala2/{model}.safetensors"), format!("models/ala2/{system}.xml")];
        let arguments = ["reweight", &model, "--system", &system, "-n", "20", "--json"];
        let command = Command::new(env!("CARGO_BIN_EXE_modejump"))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .output();
        let done = command.unwrap();
        match done.status.success() {
            true => Ok(String::from_utf8(done.stdout).unwrap()),
            false => Err(String::from_utf8(done.stderr).unwrap()),
        }
    };
    assert!(run("model-hbonds", "system").unwrap_err().contains("does not constrain it"));
    assert!(run("model", "system-hbonds").unwrap_err().contains("but the model varies it"));
    assert!(run("model-hbonds", "system-hbonds").unwrap().contains("log_z"));
}

/// Before the first of a number of samples that no test waits for.
#[test]
fn what_cannot_be_meant_or_written_is_refused_at_once() {
    let folder = folder("outputs");
    let energy = folder.join("energy.safetensors");
    std::fs::copy(MODEL, &energy).unwrap();
    let energy = energy.to_str().unwrap();
    for (more, text) in [
        (&["--state", "0,120"][..], "--state 0,120: give both in radian"),
        (&["--state", "-180,0"], "radian"),
        (&["--state", "0,nan"], "radian"),
        (&["--state", "0"], "two numbers"),
        (&["-o", "nowhere/x.json"], "there is no folder nowhere"),
        (&["-o", MODEL], "would be written over"),
        (&["--surrogate", energy, "--calibrate", energy], "would be written over"),
        (&["--surrogate", energy, "--calibrate", "x", "-o", "./x"], "would be written over"),
    ] {
        let message = reweight(&[&["-n", "1000000000"], more].concat()).unwrap_err();
        assert!(message.contains(text), "{more:?}: {message}");
    }
    for more in [&[][..], &["--surrogate", MODEL]] {
        let message = reweight(&[&["-n", "0"], more].concat()).unwrap_err();
        assert!(message.contains("-n 0: "), "{message}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Of raw weights, where those of averages are truncated.
#[test]
fn an_error_that_is_missing_in_the_bias_alone_is_explained() {
    let text =
        reweight(&["-n", "100", "--surrogate", "models/ala2/invariant-ebm.safetensors", "--weights", "truncated"])
            .unwrap();
    let unknown: Vec<&str> = text.lines().filter(|line| line.contains("± ?")).collect();
    assert!(matches!(unknown[..], [line] if line.contains("KL(π | π/c)")), "{text}");
    assert!(text.contains("fewer than 5 effective samples"), "{text}");
}

#[test]
fn a_handful_of_samples_has_no_errors() {
    for more in [
        &["-n", "1"][..],
        &["-n", "3", "--surrogate", MODEL],
        &["-n", "9", "--surrogate", MODEL, "--exact-subset", "2"],
    ] {
        let text = reweight(more).unwrap();
        assert!(
            text.contains("± ?") && text.contains("fewer than 5 effective samples") && !text.contains("NaN"),
            "{text}"
        );
    }
}

/// ln W + u + ln q of each sample is the metric term of its constrained bonds.
#[test]
fn weights_have_the_metric_term_of_constrained_bonds() {
    use modejump::coordinates::constraints::Constraints;
    use modejump::engines::openmm::System;
    use modejump::io::model_file::read_tensors;
    let folder = folder("metric");
    let [weights, samples] = ["w.json", "x.safetensors"].map(|name| folder.join(name).to_str().unwrap().to_string());
    let (model, system) = ("models/ala2/model-hbonds.safetensors", "models/ala2/system-hbonds.xml");
    for arguments in [
        &["reweight", model, "--system", system, "-o", &weights, "--precision", "f64"][..],
        &["sample", model, "-o", &samples, "--precision", "f64"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        let run = command.args(arguments).args(["-n", "20", "--seed", "3"]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    }
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&weights).unwrap()).unwrap();
    let series = |key: &str| -> Vec<f64> {
        let numbers = document["series"][0][key].as_array().unwrap();
        numbers.iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let (samples, _) = read_tensors("samples", &std::fs::read(&samples).unwrap()).unwrap();
    let system = System::from_xml_file(system).unwrap();
    let (pairs, lengths): (Vec<_>, Vec<_>) =
        system.constraints().unwrap().into_iter().map(|(a, b, length)| ([a, b], length)).unzip();
    let mut constraints = Constraints::new(&pairs, &lengths, &system.masses()).unwrap();
    let (log_w, u) = (series("raw_log_weight"), series("reduced_potential"));
    let mut terms = Vec::new();
    for (row, x) in samples["x"].data.chunks_exact(66).enumerate() {
        let term = log_w[row] + u[row] + samples["log_density"].data[row];
        assert!(
            (term - constraints.log_metric(x)).abs() < 1e-6,
            "row {row}: {term}, not {}",
            constraints.log_metric(x)
        );
        terms.push(term);
    }
    assert!(terms.iter().any(|term| (term - terms[0]).abs() > 1e-4), "{terms:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A field along z that does not know where the molecule is, and a wall that does: weights of a density of shapes, or
/// of one averaged over orientations, would be those of one place.
#[test]
fn energies_that_depend_on_the_place_are_refused() {
    let folder = folder("place");
    let flow = folder.join("tarflow.safetensors");
    tarflow::write(&flow);
    let flow = flow.to_str().unwrap();
    let molecule = std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap();
    // what a flow of random weights makes has energies that hide all others
    let particles = r#"<Particle mass="12"/>"#.repeat(22);
    let bare = format!(
        r#"<System openmmVersion="8.1" type="System" version="1"><PeriodicBoxVectors><A x="2" y="0" z="0"/><B x="0" y="2" z="0"/>
        <C x="0" y="0" z="2"/></PeriodicBoxVectors><Particles>{particles}</Particles><Constraints/><Forces></Forces></System>"#
    );
    let with = |text: &str, name: &str, energy: &str| {
        let force = format!(
            r#"<Force type="CustomExternalForce" version="1" name="outside" energy="{energy}" forceGroup="0"><PerParticleParameters>
            <Parameter name="q"/></PerParticleParameters><GlobalParameters/><Particles><Particle index="0" param1="1"/><Particle
            index="18" param1="-1"/></Particles></Force></Forces>"#
        );
        let path = folder.join(name);
        std::fs::write(&path, text.replace("</Forces>", &force)).unwrap();
        path.to_str().unwrap().to_string()
    };
    let in_field = with(&molecule, "molecule.xml", "30*q*z");
    let (field, wall) = (with(&bare, "field.xml", "30*q*z"), with(&bare, "wall.xml", "30*q^2*z"));
    let run = |arguments: &[&str]| {
        let run = Command::new(env!("CARGO_BIN_EXE_modejump")).args(arguments).output().unwrap();
        match run.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8(run.stderr).unwrap()),
        }
    };
    let vacuum = "models/ala2/model-vacuum.safetensors";
    for arguments in [
        &["reweight", vacuum, "--system", &in_field, "-n", "1000000000"][..],
        &["reweight", flow, "--system", &wall, "-n", "1000000000"],
        &["reweight", flow, "--system", &field, "-n", "1000000000", "--rotations", "2"],
        &["smc", vacuum, "--system", &in_field, "-n", "1000000000"],
    ] {
        let message = run(arguments).unwrap_err();
        assert!(message.contains("energies depend on where the molecule is"), "{arguments:?}: {message}");
    }
    // a TarFlow's density knows of orientations
    run(&["reweight", flow, "--system", &field, "-n", "10"]).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}

/// A steerable surrogate goes to the temperature as its generator does: against itself it has no bias there.
#[test]
fn a_steerable_surrogate_is_one_of_the_temperature() {
    let folder = folder("steered-surrogate");
    let [model, system] = ["steered.safetensors", "system.xml"].map(|name| folder.join(name));
    steerable::write(&model);
    steerable::harmonic(&system);
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.arg("reweight").arg(&model).arg("--system").arg(&system).arg("--surrogate").arg(&model);
    let run = command.args(["-n", "200", "--json", "--temperature", "500"]).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(number(&summary["bias"], "mean_log_c").abs() < 1e-6, "{summary}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_state_without_a_backbone_is_refused() {
    let folder = folder("no-backbone");
    let [model, system] = ["steered.safetensors", "system.xml"].map(|name| folder.join(name));
    steerable::write(&model);
    steerable::harmonic(&system);
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.arg("reweight").arg(&model).arg("--system").arg(&system).args(["-n", "20"]).args(more);
        let run = command.output().unwrap();
        (run.status.success(), String::from_utf8(run.stderr).unwrap())
    };
    assert!(run(&[]).0);
    let (success, message) = run(&["--state", "0,2"]);
    assert!(!success && message.contains("--state is of a backbone's φ"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}
