//! Weights by a model's density beside those of the generator, and how far off they are.

use super::reweight;
use crate::command::{document, folder, modejump, number, Run, MODEL};
use crate::steerable;
use modejump::density::{Density, Evaluation};
use modejump::models::energy::{EnergyConfig, EnergyModel};
use modejump::models::graphormer_ebm::{Config, Graphormer, GraphormerConfig, Version};
use modejump::models::network::{Evaluator, Network};
use modejump::models::{load, ModelCard, ModelConfig};
use modejump::rng::{Stream, StreamId};
use modejump::trust::Trust;
use std::path::Path;

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
    let card = ModelCard::of_cartesian(model, 3 * n_atoms);
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
    let found = reweight(&["-n", "300", "--surrogate", MODEL]).json();
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
    let folder = folder("reweight-energy");
    let (path, output) = (folder.join("energy.safetensors"), folder.join("weights.json"));
    energy(&path, 22);
    let (path, output) = (path.to_str().unwrap(), output.to_str().unwrap());
    let arguments = ["-n", "200", "--surrogate", path, "--exact-subset", "80"];
    let found = reweight(&arguments).args(["-o", output]).json();
    assert_eq!((number(&found, "generator/n"), number(&found, "surrogate/n")), (80.0, 200.0));
    assert_eq!(found["bias"]["likelihood"], "exact");

    // ln c of the same samples
    let (model, ebm) = (load(MODEL).unwrap(), load(path).unwrap());
    let (mut x, mut log_q) = (vec![0.0; 80 * 66], vec![Evaluation::inside(0.0); 80]);
    model.sample(&|row| Stream::new(3, StreamId::Sample, row as u64, 0), &mut x, &mut log_q).unwrap();
    let log_q = log_density(model.as_ref(), &x);
    let log_c: Vec<f64> = log_density(ebm.as_ref(), &x).iter().zip(&log_q).map(|(a, b)| a - b).collect();
    let mean = log_c.iter().sum::<f64>() / 80.0;
    let variance = log_c.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / 79.0;
    assert!((number(&found, "bias/mean_log_c") - mean).abs() < 1e-4 * mean.abs());
    assert!((number(&found, "bias/variance_log_c") - variance).abs() < 1e-3 * variance);
    // the series: weights by the surrogate are those of the generator over c
    let document = document(output);
    let weights =
        |k: usize| -> Vec<f64> { serde_json::from_value(document["series"][k]["log_weight"].clone()).unwrap() };
    let (by_generator, by_energy) = (weights(0), weights(1));
    assert_eq!((by_generator.len(), by_energy.len()), (80, 200));
    for i in 0..80 {
        assert!((by_energy[i] - (by_generator[i] - log_c[i])).abs() < 1e-2, "{i}");
    }

    let text = reweight(&arguments).succeeds();
    let columns = text.lines().next().unwrap();
    assert!(columns.contains("exact") && columns.ends_with("surrogate"), "{text}");
}

#[test]
fn a_calibrated_energy_is_the_same_but_for_its_trust() {
    let folder = folder("reweight-calibrated");
    let (from, to) = (folder.join("energy.safetensors"), folder.join("calibrated.safetensors"));
    energy(&from, 22);
    let arguments = ["-n", "120", "--surrogate", from.to_str().unwrap(), "--exact-subset", "100"];
    let found = reweight(&arguments).arg("--calibrate").arg(&to).json();
    let screening = &found["screening"];
    // beside an energy of random weights the engine's energies are best not believed either: the generator's weights
    // hardly vary
    assert!(number(screening, "trust/energy").abs() < 0.1, "{screening}");
    assert!(number(screening, "left") < number(screening, "left_without"), "{screening}");
    let [before, after] = [&from, &to].map(|path| load(path).unwrap());
    assert_eq!(before.trust(), Trust::FULL);
    let trust: Trust = serde_json::from_value(screening["trust"].clone()).unwrap();
    assert_eq!(after.trust(), trust);
    let (mut x, mut log_q) = (vec![0.0; 66], [Evaluation::inside(0.0)]);
    load(MODEL).unwrap().sample(&|_| Stream::new(3, StreamId::Sample, 0, 0), &mut x, &mut log_q).unwrap();
    assert_eq!(log_density(before.as_ref(), &x), log_density(after.as_ref(), &x), "what it says stays the same");

    let flow = ["-n", "50", "--surrogate", MODEL, "--calibrate", to.to_str().unwrap()];
    let refused = reweight(&flow).fails();
    assert!(refused.contains("energy-based model"), "{refused}");
}

#[test]
fn what_is_no_surrogate_is_refused() {
    let folder = folder("reweight-refused");
    let path = folder.join("energy.safetensors");
    energy(&path, 21);
    let path = path.to_str().unwrap();
    let message = reweight(&["-n", "10", "--surrogate", path]).fails();
    assert!(message.contains("63 coordinates, but the generator has 66"), "{message}");
    let message = reweight(&["-n", "10", "--surrogate", MODEL, "--exact-subset", "11"]).fails();
    assert!(message.contains("--exact-subset 11 of 10 samples: must be from 2 to 10"), "{message}");
    assert!(reweight(&["-n", "10", "--exact-subset", "5"]).fails().contains("--surrogate"));
    let subset = ["-n", "1000000", "--surrogate", MODEL, "--exact-subset", "19", "--calibrate", "target/never"];
    let message = reweight(&subset).fails();
    assert!(message.contains("--calibrate fits to 19 exact log-densities: must be at least 20"), "{message}");
}

/// Of raw weights, where those of averages are truncated.
#[test]
fn an_error_that_is_missing_in_the_bias_alone_is_explained() {
    let text =
        reweight(&["-n", "100", "--surrogate", "models/ala2/invariant-ebm.safetensors", "--weights", "truncated"])
            .succeeds();
    let unknown: Vec<&str> = text.lines().filter(|line| line.contains("± ?")).collect();
    assert!(matches!(unknown[..], [line] if line.contains("KL(π | π/c)")), "{text}");
    assert!(text.contains("fewer than 5 effective samples"), "{text}");
}

/// A steerable surrogate goes to the temperature as its generator does: against itself it has no bias there.
#[test]
fn a_steerable_surrogate_is_one_of_the_temperature() {
    let [model, system] = steerable::files(&folder("reweight-steered-surrogate"));
    let mut command = modejump(&["reweight", "-n", "200", "--temperature", "500"]);
    let summary = command.arg(&model).arg("--system").arg(&system).arg("--surrogate").arg(&model).json();
    assert!(number(&summary, "bias/mean_log_c").abs() < 1e-6, "{summary}");
}
