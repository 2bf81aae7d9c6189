use super::*;
use crate::io::model_file::read;
use crate::models::{EnergyFunction, Model, ModelCard, ModelConfig};
use crate::rng::StreamId;

fn config() -> Config {
    let network = GvpConfig {
        features: vec![vec![0], vec![1, 2], vec![1], vec![1], vec![]],
        n_features: 3,
        n_layers: 2,
        n_scalars: 8,
        n_vectors: 3,
        rbf_max: 6.0,
        rbf_count: 5,
        message_norm: 3.0,
        coordinate_range: 0.7,
    };
    Config { network, energy: EnergyConfig { units_per_nm: 10.0, data_time: 0.0, trust: Default::default() } }
}

fn model() -> GvpEbm<f64> {
    let network = GvpEnergy::new(config().network).unwrap();
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    let mut parameters: Vec<f64> = network.initialise(&mut stream);
    parameters.iter_mut().for_each(|p| *p += 0.2 * stream.normal());
    let card = ModelCard::of_cartesian(config(), 15);
    EnergyModel::new(Evaluator::new(network, parameters), config().energy, card, String::new())
}

fn positions() -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, 0, 0);
    (0..15).map(|_| stream.normal()).collect()
}

fn energy(model: &GvpEbm<f64>, t: f64, x: &[f64]) -> f64 {
    let mut e = [0.0];
    model.network().energy(&[t], x, &mut e);
    e[0]
}

#[test]
fn the_energy_is_invariant() {
    let (model, x) = (model(), positions());
    let e = energy(&model, 0.3, &x);
    // a rotation, a reflection and a translation
    let moved: Vec<f64> =
        x.chunks_exact(3).flat_map(|r| [4.0 - 0.6 * r[1] - 0.8 * r[2], r[0], 0.8 * r[1] - 0.6 * r[2]]).collect();
    assert!((energy(&model, 0.3, &moved) - e).abs() < 1e-12);
    // atoms 3 and 4 are alike, 1 and 3 are not
    let permuted = |order: [usize; 5]| order.iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect::<Vec<_>>();
    assert!((energy(&model, 0.3, &permuted([0, 1, 3, 2, 4])) - e).abs() < 1e-12);
    assert!((energy(&model, 0.3, &permuted([2, 1, 0, 3, 4])) - e).abs() > 1e-5);
    assert!((energy(&model, 0.4, &x) - e).abs() > 1e-5, "the time matters");
}

#[test]
fn the_score_is_the_gradient() {
    let (model, x, h) = (model(), positions(), 1e-5);
    let (mut e, mut score) = ([0.0], [0.0; 15]);
    model.network().energy_score(&[0.3], &x, &mut e, &mut score);
    for k in 0..15 {
        let shifted = |s: f64| {
            let mut x = x.clone();
            x[k] += s * h;
            energy(&model, 0.3, &x)
        };
        let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * h);
        assert!((difference - score[k]).abs() < 1e-8 * difference.abs().max(1.0), "{difference} {}", score[k]);
    }
    assert!(score.iter().any(|s| s.abs() > 1e-3), "a flat energy shows nothing");
}

#[test]
fn a_saved_model_is_the_same() {
    let model = model();
    let bytes = model.to_bytes().unwrap();
    let again = GvpEbm::<f64>::from_file(&read("saved", &bytes).unwrap()).unwrap();
    assert_eq!(again.network().parameters(), model.network().parameters());
    assert_eq!(crate::models::load_bytes("saved", &bytes).unwrap().card(), model.card());
}

#[test]
fn impossible_files_are_refused() {
    let complaint = |damage: &dyn Fn(&mut ModelFile)| {
        let mut file = read("saved", &model().to_bytes().unwrap()).unwrap();
        damage(&mut file);
        GvpEbm::<f64>::from_file(&file).err().unwrap().to_string()
    };
    let missing = complaint(&|file| drop(file.tensors.remove("energy.2.bias")));
    assert!(missing.contains("energy.2.bias"), "{missing}");
    let layers = complaint(&|file| match &mut file.card.model {
        ModelConfig::GvpEbm(config) => config.network.n_layers = 0,
        _ => unreachable!(),
    });
    assert!(layers.contains("n_layers"), "{layers}");
}
