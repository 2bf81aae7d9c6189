//! Every kind of energy.

use super::Setting;
use crate::command::{number, tensor, tensors, write, Run, TOPOLOGY};
use modejump::coordinates::Topology;
use modejump::density::{Evaluation, Exactness};
use modejump::io::model_file;
use modejump::models::energy::EnergyConfig;
use modejump::trust::Trust;
use std::path::Path;

/// A few steps of each kind of energy on the command line: the model loads as a surrogate, is not the one it began
/// with, and a training can start from it, but not from another kind.
#[test]
fn energies_are_trained_from_the_command_line() {
    let setting = Setting::new("energies");
    let train = r#""train": {"steps": 6, "batch": 4, "evaluate": 3}, "contrast": {"negatives": 2}"#;
    let gvp = format!(r#""n_layers": 1, "n_scalars": 8, "n_vectors": 4, "rbf_count": 4, {train}"#);
    let graphormer =
        format!(r#""n_layers": 1, "width": 8, "feed_forward": 8, "heads": 2, "kernels": 4, "reach": 8.0, {train}"#);
    let mlp = format!(r#""width": 8, "layers": 1, {train}"#);
    setting.configure(&format!(r#"{{"graphormer_ebm": {{{}}}}}"#, graphormer.replace("8.0", "-3")));
    let told = setting.train("never.safetensors").args(["--model", "graphormer_ebm"]).fails();
    assert!(told.contains("reach must be positive and finite, not -3"), "{told}");
    let kinds = [("graphormer_ebm", &graphormer), ("gvp_ebm", &gvp), ("mlp_ebm", &mlp), ("invariant_ebm", &mlp)];
    for (kind, settings) in kinds {
        setting.configure(&format!(r#"{{"{kind}": {{{settings}}}}}"#));
        let output = format!("{kind}.safetensors");
        let train = |output: &str, start: Option<&str>| {
            let mut command = setting.train(output);
            command.args(["--model", kind]);
            start.into_iter().for_each(|name| _ = command.arg("--start").arg(setting.path(name)));
            command
        };
        train(&output, None).succeeds();
        let model = modejump::models::load(setting.path(&output)).unwrap();
        assert_eq!((model.exactness(), model.dimension()), (Exactness::Surrogate, 66));
        assert!(model.card().topology.is_some() && model.card().provenance["command"].contains(kind));
        let mut log_density = [Evaluation::inside(0.0)];
        model.log_density(&Topology::from_pdb(Path::new(TOPOLOGY)).unwrap().1, &mut log_density).unwrap();
        assert!(log_density[0].log_density.is_finite());
        assert!(std::fs::read_to_string(setting.path(&output).with_extension("log")).unwrap().lines().count() == 2);
        let figure = std::fs::read_to_string(setting.path(&output).with_extension("svg")).unwrap();
        assert!(figure.contains("held-out frames"), "{kind}: the figure of the training shows no losses");

        // the network that goes on is believed anew
        edit_energy(&setting.path(&output), |energy| energy.trust.density = 0.5);
        let [_, text] = train("further.safetensors", Some(&output)).texts();
        assert!(text.contains("fit it again with `modejump reweight --calibrate`"), "{kind}: {text}");
        edit_energy(&setting.path("further.safetensors"), |energy| assert_eq!(energy.trust, Trust::FULL));
        assert!(setting.tensors("further.safetensors") != setting.tensors(&output), "{kind} has not learned");
        if kind != kinds[0].0 {
            let text = train("never.safetensors", Some("graphormer_ebm.safetensors")).fails();
            assert!(text.contains(&format!("expected a model of kind {kind}, found graphormer_ebm")), "{text}");
        }
        edit_energy(&setting.path("further.safetensors"), |energy| energy.data_time = 1.0);
        let text = train("never.safetensors", Some("further.safetensors")).fails();
        assert!(text.contains("further.safetensors: has the data at time 1"), "{kind}: {text}");
    }
    // what weights take out of a flow, and never out of an energy; held_out is looked at later
    let emphasis = r#"{"atoms": [4, 6, 8, 14], "range": [0.0, 2.2], "share": 0.2}"#;
    for (kind, complaint) in
        [("gvp_ebm", "`emphasis` of `gvp_ebm.train` applies only to flows"), ("tarflow", "`held_out` = 2")]
    {
        setting.configure(&format!(r#"{{"{kind}": {{"train": {{"held_out": 2, "emphasis": {emphasis}}}}}}}"#));
        let text = setting.train("never.safetensors").args(["--model", kind]).fails();
        assert!(text.contains(complaint), "{text}");
    }
    let linear = mlp.replace("\"negatives\"", "\"interpolant\": \"linear\", \"negatives\"");
    setting.configure(&format!(r#"{{"invariant_ebm": {{{linear}}}}}"#));
    let mut command = setting.train("never.safetensors");
    let start = setting.path("invariant_ebm.safetensors");
    let text = command.args(["--model", "invariant_ebm", "--start"]).arg(start).fails();
    assert!(text.contains(r#"set `interpolant` in `contrast` to "trigonometric""#), "{text}");
}

/// Changes how the energy of a model file is read.
fn edit_energy(path: &Path, edit: impl Fn(&mut EnergyConfig)) {
    let (name, bytes) = (path.display().to_string(), std::fs::read(path).unwrap());
    let mut card = model_file::read(&name, &bytes).unwrap().card;
    edit(card.model.energy_mut().unwrap());
    std::fs::write(path, model_file::with_card(&name, &bytes, &card).unwrap()).unwrap();
}

/// Frames that bring their log-densities: what `--json` prints tells how far the energy is from them.
#[test]
fn known_log_densities_are_compared_with() {
    let setting = Setting::new("densities");
    let train =
        r#""train": {"steps": 120, "batch": 64, "evaluate": 40, "held_out": 0.05, "average": 0.9, "rate": 0.01}"#;
    setting.configure(&format!(r#"{{"invariant_ebm": {{"width": 16, "layers": 1, {train}}}}}"#));
    let last = || {
        let summary = setting.train("energy.safetensors").args(["--model", "invariant_ebm"]).json();
        assert_eq!((summary["steps"].as_u64(), summary["model"].as_str()), (Some(120), Some("invariant_ebm")));
        summary["last"].clone()
    };
    let unknown = last();
    assert!(unknown["deviation"].is_null(), "nothing is known of the frames");

    // the first file knows, of which half of the frames that are held out are: constant densities, from which the energy is as far as it varies itself
    let x = tensors(&setting.frames[0]).remove("x").unwrap();
    let n = x.shape[0];
    write(&setting.frames[0], [("log_density", tensor(&[n], vec![3.0; n])), ("x", x.clone())]);
    let known = last();
    assert_eq!(known["held_out_loss"], unknown["held_out_loss"], "what is known is for comparison only");
    let model = modejump::models::load(setting.path("energy.safetensors")).unwrap();
    let mut energies = vec![Evaluation::inside(0.0); 50];
    model.log_density(&x.data[..50 * model.dimension()], &mut energies).unwrap();
    let energies: Vec<f64> = energies.iter().map(|e| e.log_density).collect();
    let mean = energies.iter().sum::<f64>() / 50.0;
    let deviation = (energies.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / 50.0).sqrt();
    assert!((number(&known, "deviation") / deviation - 1.0).abs() < 1e-3, "{known} {deviation}");
}
