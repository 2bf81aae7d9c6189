//! The analytic densities themselves, and the weights made from them.

use crate::guards::normalisation;
use crate::statistics::{normal, LEVEL};
use crate::systems::*;
use modejump::density::{Density, Evaluation};
use modejump::rng::{Stream, StreamId};
use modejump::weights;

#[test]
fn one_dimensional_densities_integrate_to_one() {
    normalisation(&Exact(double_well(0.475)), -3.0, 3.0).unwrap();
    normalisation(&Exact(normal_mixture(&[(0.6, -1.0, 0.3), (0.4, 1.0, 0.4)])), -5.0, 5.0).unwrap();
    let well = double_well(0.475);
    assert!((well.below(0.0) - 0.70803).abs() < 1e-5, "P(A) = {}", well.below(0.0));
    assert!((well.below(well.quantile(0.37)) - 0.37).abs() < 1e-12);
}

#[test]
fn two_dimensional_well_integrates_to_one() {
    let density = Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 });
    let (n, low, step) = (500, -3.5, 7.0 / 500.0);
    let mut sum = 0.0;
    for i in 0..n {
        let x: Vec<f64> = (0..n).flat_map(|j| [low + step * (i as f64 + 0.5), low + step * (j as f64 + 0.5)]).collect();
        let mut evaluations = vec![Evaluation::inside(0.0); n];
        density.log_density(&x, &mut evaluations).unwrap();
        sum += evaluations.iter().map(|e| e.log_density.exp()).sum::<f64>() * step * step;
    }
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

/// E_q[p/q] = 1 for normalised p and q: tests the sampler against both densities.
fn expected_weight_is_one(p: &dyn Density, q: &dyn Density) {
    let n = 100_000;
    let d = q.dimension();
    let mut x = vec![0.0; n * d];
    let mut log_q = vec![Evaluation::inside(0.0); n];
    q.sample(&|row| Stream::new(3, StreamId::Test, row as u64, 0), &mut x, &mut log_q).unwrap();
    let mut log_p = log_q.clone();
    p.log_density(&x, &mut log_p).unwrap();
    let u: Vec<f64> = log_p.iter().map(|e| -e.log_density).collect();
    let log_w = weights::log_weights(&u, &log_q).unwrap();
    let w: Vec<f64> = log_w.iter().map(|w| w.exp()).collect();
    let mean = w.iter().sum::<f64>() / n as f64;
    let variance = w.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n as f64;
    let p_value = normal((mean - 1.0) / (variance / n as f64).sqrt());
    assert!(p_value > LEVEL, "E[w] = {mean}, p = {p_value}");
    assert!(weights::pareto_k(&log_w).unwrap() < 0.7);
}

#[test]
fn samples_have_the_density_they_claim() {
    let narrow = GaussianMixture(vec![(0.3, vec![-1.0, 0.5, 0.0], 0.5), (0.7, vec![1.0, 0.0, -0.5], 0.4)]);
    let wide = GaussianMixture(vec![(0.5, vec![-1.0, 0.4, 0.0], 0.7), (0.5, vec![0.9, 0.0, -0.4], 0.8)]);
    expected_weight_is_one(&Exact(narrow), &Exact(wide));
    let stiff = Polymer { beads: 4, trap: 1.0, bond: 0.35 };
    let loose = Polymer { beads: 4, trap: 1.1, bond: 0.45 };
    expected_weight_is_one(&Exact(stiff), &Exact(loose));
    let target = DoubleWell2 { well: double_well(0.475), width: 0.3 };
    let wide = DoubleWell2 { well: double_well(0.1), width: 0.4 };
    expected_weight_is_one(&Exact(target), &Exact(wide));
}
