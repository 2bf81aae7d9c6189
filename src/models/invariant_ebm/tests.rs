use super::*;
use crate::io::model_file::read;
use crate::models::{EnergyFunction, ModelCard};
use crate::rng::StreamId;

const ATOMS: usize = 5;

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

fn network() -> InvariantNetwork {
    InvariantNetwork::new(InvariantConfig {
        atoms: ATOMS,
        volumes: vec![[[0, 1], [0, 2], [0, 3]], [[1, 0], [1, 2], [2, 4]]],
        prochiral: vec![Stereocentre { centre: 0, neighbours: [1, 2, 3], positive: true }],
        inputs: 11,
        interpolant: Interpolant::Trigonometric,
        width: 6,
        layers: 2,
    })
    .unwrap()
}

/// Small deviations from a single shape.
fn frames(n: usize) -> Vec<f64> {
    let shape = normals(3 * ATOMS, 1);
    normals(3 * ATOMS * n, 2).iter().enumerate().map(|(i, z)| 2.0 * shape[i % (3 * ATOMS)] + 0.05 * z).collect()
}

fn small() -> Evaluator<InvariantNetwork, f64> {
    let network = network();
    let whitening = Whitening::of(&network, &frames(100)).unwrap();
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    let parameters = network.initialise(&whitening, &mut stream);
    Evaluator::new(network, parameters)
}

fn energy(model: &impl EnergyFunction, t: f64, x: &[f64]) -> f64 {
    let mut e = [0.0];
    model.energy(&[t], x, &mut e);
    e[0]
}

#[test]
fn the_score_is_the_gradient() {
    let (model, x, h) = (small(), frames(2), 1e-6);
    let (mut e, mut score) = ([0.0; 2], vec![0.0; 6 * ATOMS]);
    model.energy_score(&[0.0, 0.6], &x, &mut e, &mut score);
    for (row, t) in [0.0, 0.6].into_iter().enumerate() {
        let x = &x[3 * ATOMS * row..][..3 * ATOMS];
        assert!((energy(&model, t, x) - e[row]).abs() < 1e-12);
        for k in 0..3 * ATOMS {
            let shifted = |s: f64| {
                let mut x = x.to_vec();
                x[k] += s * h;
                energy(&model, t, &x)
            };
            let (difference, score) = ((shifted(1.0) - shifted(-1.0)) / (2.0 * h), score[3 * ATOMS * row + k]);
            assert!((difference - score).abs() < 1e-6 * difference.abs().max(1.0), "{difference} {score}");
        }
    }
    assert!(score.iter().any(|s| s.abs() > 0.1));
}

#[test]
fn the_energy_is_invariant_but_for_mirrors_and_time() {
    let (model, x) = (small(), frames(1));
    let turned: Vec<f64> = x.chunks_exact(3).flat_map(|r| [0.3 - r[1], r[0] - 1.0, 2.0 + r[2]]).collect();
    let mirrored: Vec<f64> = x.chunks_exact(3).flat_map(|r| [-r[0], r[1], r[2]]).collect();
    let e = energy(&model, 0.1, &x);
    assert!((energy(&model, 0.1, &turned) - e).abs() < 1e-9 * e.abs().max(1.0));
    assert!((energy(&model, 0.1, &mirrored) - e).abs() > 1e-3, "volumes see the hand");
    assert!((energy(&model, 0.5, &x) - e).abs() > 1e-3, "the time matters");
    assert!(energy(&model, 0.1, &[0.0; 3 * ATOMS]).is_finite(), "atoms may meet");
    let relabelled: Vec<f64> = [0, 2, 1, 3, 4].iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect();
    assert_eq!(energy(&model, 0.1, &relabelled), e, "the labels of alike atoms do not matter");
}

/// Uᵀf has zero mean, its covariance is diag(λ) up to the floor, and small noise adds its variance to it.
#[test]
fn whitened_numbers_are_uncorrelated_with_and_without_noise() {
    let (network, x) = (network(), frames(4000));
    let n = network.config().inputs;
    let w = Whitening::of(&network, &x).unwrap();
    let covariance = |x: &[f64]| -> Vec<f64> {
        let mut tape = Tape::<f64>::default();
        let input = tape.input(x.len() / (3 * ATOMS), 3 * ATOMS);
        tape.value_mut(input).copy_from_slice(x);
        let f = tape.invariants(network.invariants(), input);
        let whiten = |f: &[f64]| -> Vec<f64> {
            let dot = |u: &[f64]| u.iter().zip(f).map(|(u, f)| u * f).sum::<f64>();
            w.weight.chunks_exact(f.len()).zip(&w.bias).map(|(u, b)| b + dot(u)).collect()
        };
        let rows: Vec<Vec<f64>> = tape.value(f).chunks_exact(f.columns).map(whiten).collect();
        (0..n * n).map(|k| rows.iter().map(|y| y[k / n] * y[k % n]).sum::<f64>() / rows.len() as f64).collect()
    };
    let noise = 0.02;
    let noised: Vec<f64> = x.iter().zip(normals(x.len(), 9)).map(|(x, z)| x + noise * z).collect();
    let (quiet, noised) = (covariance(&x), covariance(&noised));
    // directions not dominated by the ridge
    let strong: Vec<usize> = (0..n).filter(|&k| w.variance[k] > 0.03f64.powi(2)).collect();
    assert!(strong.len() >= 6, "{:?}", w.variance);
    for &i in &strong {
        for &j in &strong {
            let (expected, scale) = (if i == j { w.variance[i] } else { 0.0 }, (w.variance[i] * w.variance[j]).sqrt());
            assert!((quiet[i * n + j] - expected).abs() < 1e-6 * scale, "{i} {j}: {}", quiet[i * n + j]);
        }
        let rise = (noised[i * n + i] - quiet[i * n + i]) / (noise * noise);
        assert!((0.7..1.3).contains(&rise), "{i}: noise of variance one adds {rise}");
    }
}

#[test]
fn whitening_is_not_trained() {
    let model = small();
    let network = &model.network;
    let mut tape = Tape::default();
    let (_, e) = network.record(model.parameters(), &mut tape, &[0.2], &frames(1));
    let mut gradient = vec![0.0; model.parameters().len()];
    tape.backward(model.parameters(), &[(e, &[1.0])], Some(&mut gradient));
    for (name, shape, at) in network.layout().tensors() {
        let part = &gradient[at..at + shape.iter().product::<usize>()];
        assert_eq!(part.iter().all(|g| *g == 0.0), name.starts_with("whitening"), "{name}");
    }
}

#[test]
fn a_saved_model_is_the_same() {
    let model = small();
    let energy = EnergyConfig { units_per_nm: 10.0, data_time: 0.0, trust: Default::default() };
    let config = Config { network: model.network.config().clone(), energy };
    let card = ModelCard::of_cartesian(config, 3 * ATOMS);
    let model = EnergyModel::new(model, energy, card, String::new());
    let file = read("saved", &model.to_bytes().unwrap()).unwrap();
    let again = InvariantEbm::<f64>::from_file(&file).unwrap();
    assert_eq!(again.network().parameters(), model.network().parameters());
    let mut damaged = read("saved", &model.to_bytes().unwrap()).unwrap();
    damaged.tensors.remove("whitening.variance");
    assert!(InvariantEbm::<f64>::from_file(&damaged).err().unwrap().to_string().contains("whitening.variance"));
}

#[test]
fn impossible_configurations_are_refused() {
    let config = network().config().clone();
    let complaint = |config: InvariantConfig| InvariantNetwork::new(config).unwrap_err().to_string();
    assert!(complaint(InvariantConfig { width: 0, ..config.clone() }).contains("width"));
    assert!(complaint(InvariantConfig { atoms: usize::MAX, ..config.clone() }).contains("atoms"));
    assert!(complaint(InvariantConfig { layers: usize::MAX, ..config.clone() }).contains("layers"));
    assert!(complaint(InvariantConfig { inputs: 13, ..config.clone() }).contains("inputs"));
    let beyond = vec![[[0, 1], [0, 2], [0, ATOMS]]];
    assert!(complaint(InvariantConfig { volumes: beyond, ..config }).contains("from atom 0 to atom 5"));
    assert!(Whitening::of(&network(), &frames(1)).is_err());
    assert!(Whitening::of(&network(), &[f64::NAN; 6 * ATOMS]).is_err());
}

#[test]
fn branches_and_torsions_have_volumes() {
    let topology =
        Topology { bonds: vec![[0, 1], [1, 2], [1, 3], [3, 4]], names: vec!["C".into(); 5], ..Default::default() };
    assert_eq!(volumes(&topology), [[[1, 0], [1, 2], [1, 3]], [[1, 0], [1, 3], [3, 4]], [[1, 2], [1, 3], [3, 4]]]);
}
