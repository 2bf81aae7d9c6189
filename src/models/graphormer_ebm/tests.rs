use super::*;
use crate::models::field::EnergyFunction;
use crate::rng::{Stream, StreamId};

fn small(version: Version) -> Evaluator<Graphormer, f64> {
    let config = GraphormerConfig {
        version,
        types: vec![0, 1, 1, 2],
        n_types: 3,
        n_layers: 2,
        blocks: 2,
        width: 8,
        feed_forward: 6,
        heads: 2,
        kernels: 5,
    };
    let network = Graphormer::new(config).unwrap();
    let parameters = network.layout().initialise(&mut Stream::new(3, StreamId::Test, 0, 0), |_, _| None);
    Evaluator::new(network, parameters)
}

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

fn energy(model: &impl EnergyFunction, t: f64, x: &[f64]) -> f64 {
    let mut e = [0.0];
    model.energy(&[t], x, &mut e);
    e[0]
}

#[test]
fn the_score_is_the_gradient() {
    for version in [Version::Boltznce, Version::Clean] {
        let model = small(version);
        let (x, h) = (normals(24, 1), 1e-5);
        let (mut e, mut score) = ([0.0; 2], vec![0.0; 24]);
        model.energy_score(&[0.2, 0.9], &x, &mut e, &mut score);
        for (row, t) in [0.2, 0.9].into_iter().enumerate() {
            let x = &x[12 * row..][..12];
            assert!((energy(&model, t, x) - e[row]).abs() < 1e-12);
            for k in 0..12 {
                let shifted = |s: f64| {
                    let mut x = x.to_vec();
                    x[k] += s * h;
                    energy(&model, t, &x)
                };
                let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * h);
                assert!((difference - score[12 * row + k]).abs() < 1e-6 * difference.abs().max(1.0), "{version:?}");
            }
        }
    }
}

#[test]
fn the_clean_energy_is_invariant_and_the_other_nearly_so() {
    for (version, tolerance) in [(Version::Clean, 1e-12), (Version::Boltznce, 1e-3)] {
        let model = small(version);
        let x = normals(12, 1);
        let moved: Vec<f64> = x.chunks_exact(3).flat_map(|r| [0.3 - r[1], r[0] - 1.0, 2.0 - r[2]]).collect();
        let swapped: Vec<f64> = [0, 2, 1, 3].iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect();
        let e = energy(&model, 0.1, &x);
        assert!((energy(&model, 0.1, &moved) - e).abs() < tolerance, "{version:?}");
        assert!((energy(&model, 0.1, &swapped) - e).abs() < 1e-12, "atoms of one type are alike");
        assert!((energy(&model, 0.5, &x) - e).abs() > 1e-6, "the time matters");
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let config = small(Version::Clean).network.config().clone();
    assert!(Graphormer::new(GraphormerConfig { heads: 3, ..config.clone() }).is_err());
    let error = Graphormer::new(GraphormerConfig { n_types: 2, ..config }).unwrap_err().to_string();
    assert!(error.contains("atom 4"), "{error}");
}
