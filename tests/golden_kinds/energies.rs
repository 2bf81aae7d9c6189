//! BoltzNCE's Graphormer EBM.

use super::boltznce::gradient_norms;
use super::{error, relative_error, Found, Golden};
use modejump::io::model_file::{read_tensors, Tensor};
use modejump::models::graphormer_ebm::{format, Graphormer};
use modejump::models::network::{Evaluator, Network};
use modejump::models::EnergyFunction;
use modejump::nn::Real;
use modejump::train::contrastive::{contrastive, score_matching, Noised};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Weights for a golden file: the `graphormer_seed*` file beside it.
fn weights(stem: &Path) -> (BTreeMap<String, Tensor>, PathBuf) {
    let folder = stem.parent().unwrap();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    let files = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let path = files.filter(|p| name(p).starts_with("graphormer_seed") && name(p).ends_with(".safetensors")).max();
    let path = path.unwrap_or_else(|| panic!("{}: no graphormer_seed*.safetensors beside it", stem.display()));
    let bytes = std::fs::read(&path).unwrap();
    (read_tensors(&name(&path), &bytes).unwrap().0, path)
}

pub fn network<R: Real>(stem: &Path, types: Vec<usize>) -> Evaluator<Graphormer, R> {
    let (tensors, path) = weights(stem);
    let (config, tensors) = format::of_boltznce(tensors, types, 1).unwrap();
    let network = Graphormer::new(config).unwrap();
    let parameters = network.layout().read(&tensors).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Evaluator::new(network, parameters)
}

/// Atom types of alanine dipeptide in BoltzNCE's data, counted from 0.
pub fn ala2_types() -> Vec<usize> {
    let merged = |i: usize| match i {
        1..=3 => 2,
        11..=13 => 12,
        19..=21 => 20,
        _ => i,
    };
    (0..22).map(merged).collect()
}

/// `graphormer_field`: energies and scores.
pub fn graphormer(stem: &Path) -> Found {
    let golden = Golden::open_alone(stem);
    let types: Vec<usize> = golden.get("atoms").iter().map(|&a| a as usize - 1).collect();
    let mut found = compare::<f64>(&golden, stem, &types, "f64", 1e-10);
    found.extend(compare::<f32>(&golden, stem, &types, "f32", 1e-5));
    found
}

fn compare<R: Real>(golden: &Golden, stem: &Path, types: &[usize], precision: &str, tolerance: f64) -> Found {
    let model = network::<R>(stem, types.to_vec());
    let (t, x) = (golden.get("t"), golden.get("x"));
    let expected = [golden.get(&format!("energy_{precision}")), golden.get(&format!("score_{precision}"))];
    let (mut energy, mut again, mut score) = (vec![0.0; t.len()], vec![0.0; t.len()], vec![0.0; x.len()]);
    model.energy(t, x, &mut again);
    model.energy_score(t, x, &mut energy, &mut score);
    assert_eq!(energy, again);
    let largest = expected[1].iter().fold(0.0f64, |m, v| m.max(v.abs()));
    vec![
        (format!("energy {precision}"), relative_error(&energy, expected[0]), tolerance),
        (format!("score {precision}"), error(&score, expected[1]) / largest, tolerance),
    ]
}

/// `ebm_loss_*`: denoising score matching and noise contrastive estimation, with gradients with respect to each tensor.
pub fn losses(stem: &Path) -> Found {
    let golden = Golden::open_alone(stem);
    // the reference's own file is for alanine dipeptide, in single precision: see
    // tests/golden/boltznce/make_graphormer.py
    let types = match golden.tensors.get("atoms") {
        Some(atoms) => atoms.data.iter().map(|&a| a as usize - 1).collect(),
        None => ala2_types(),
    };
    let single = golden.get("t").iter().all(|&t| f64::from(t as f32) == t);
    let (of_loss, of_gradient) = if single { (1e-5, 1e-3) } else { (1e-6, 1e-6) };
    let model = network::<f64>(stem, types);
    let sigma: Vec<f64> = golden.get("t").iter().map(|t| (std::f64::consts::FRAC_PI_2 * t).sin()).collect();
    let values = |name: &str| golden.get(name).to_vec();
    let (x, noise, weight) = (values("xt"), values("x1"), vec![1.0; sigma.len()]);
    let batch = Noised { x, noise, sigma, weight, t: values("t"), negatives: values("t_neg") };
    let mut found = Found::new();
    let mut compare = |kind: &str, loss: f64, gradient: &[f64]| {
        found.push((format!("loss{kind}"), relative_error(&[loss], golden.get(&format!("loss{kind}"))), of_loss));
        found.extend(gradient_norms(&golden, kind, &model.network, gradient, of_gradient));
    };
    let zero = || vec![0.0; model.parameters().len()];
    let mut gradient = zero();
    let loss = score_matching(&model.network, model.parameters(), &batch, 1.0, &mut gradient);
    compare("_score", loss, &gradient);
    let mut gradient = zero();
    let loss = contrastive(&model.network, model.parameters(), &batch, 1.0, &mut gradient);
    compare("_nce", loss, &gradient);
    found
}
