use super::*;
use crate::models::mlp_ebm::{MlpConfig, MlpNetwork};
use crate::models::network::Evaluator;
use crate::models::EnergyFunction;
use crate::rng::StreamId;
use crate::train::{AdamW, Schedule};

fn stream(step: u64) -> Stream {
    Stream::new(7, StreamId::Test, step, 0)
}

fn small() -> (MlpNetwork, Vec<f64>) {
    let network = MlpNetwork::new(MlpConfig { dimension: 3, width: 6, layers: 2 }).unwrap();
    let parameters = network.initialise(&mut stream(0));
    (network, parameters)
}

fn batch(options: ContrastiveOptions, n: usize) -> Noised {
    let data: Vec<f64> = (0..3 * n).map(|i| (0.7 * i as f64).sin()).collect();
    options.draw(&data, 3, false, &mut stream(1))
}

/// Compares the gradient that `loss` adds with a difference of losses.
fn check_gradient(parameters: &[f64], loss: impl Fn(&[f64], &mut [f64]) -> f64) {
    let mut gradient = vec![0.0; parameters.len()];
    loss(parameters, &mut gradient);
    let (mut scratch, h) = (gradient.clone(), 1e-5);
    for k in 0..parameters.len() {
        let mut at = |s: f64| {
            let mut shifted = parameters.to_vec();
            shifted[k] += s * h;
            loss(&shifted, &mut scratch)
        };
        let difference = (at(1.0) - at(-1.0)) / (2.0 * h);
        let tolerance = 1e-8 * difference.abs().max(1.0);
        assert!((difference - gradient[k]).abs() < tolerance, "parameter {k}: {difference} {}", gradient[k]);
    }
    assert!(gradient.iter().any(|g| g.abs() > 1e-2));
}

/// More rows than one chunk holds, with a last chunk that is not full.
#[test]
fn gradients_match_differences() {
    let (network, parameters) = small();
    let options = ContrastiveOptions { score_weight: 0.7, nce_weight: 1.3, negatives: 2, ..Default::default() };
    let batch = batch(options, 150);
    check_gradient(&parameters, |parameters, gradient| {
        let [score, nce] = options.losses(&network, parameters, &batch, gradient);
        0.7 * score + 1.3 * nce
    });
}

/// Score matching with row-dependent weights.
#[test]
fn weighted_gradients_match_differences() {
    let (network, parameters) = small();
    let options = ContrastiveOptions { nce_weight: 0.0, antithetic: true, least_noise: 0.2, ..Default::default() };
    let batch = batch(options, 20);
    check_gradient(&parameters, |parameters, gradient| options.losses(&network, parameters, &batch, gradient)[0]);
}

#[test]
fn gradients_do_not_depend_on_threads() {
    let (network, parameters) = small();
    let options = ContrastiveOptions::default();
    let batch = batch(options, 700);
    let gradient = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut gradient = vec![0.0; parameters.len()];
        let losses = pool.install(|| options.losses(&network, &parameters, &batch, &mut gradient));
        (losses, gradient)
    };
    assert_eq!(gradient(1), gradient(3));
}

/// Sorted by value, the true time has each rank with the same probability, and no times pile up at the ends.
#[test]
fn nothing_but_x_tells_the_true_time() {
    let n = 30_000;
    for (window, time_power) in [(0.05, 1.0), (0.4, 1.0), (3.0, 1.0), (0.4, 2.0)] {
        let options = ContrastiveOptions { window, time_power, negatives: 2, ..Default::default() };
        let batch = batch(options, n);
        let mut ranks = [0usize; 3];
        for (t, others) in batch.t.iter().zip(batch.negatives.chunks_exact(2)) {
            assert!(others.iter().all(|t| (0.0..=1.0).contains(t)));
            ranks[others.iter().filter(|o| *o < t).count()] += 1;
        }
        // five standard deviations of a binomial share
        let spread = |p: f64, n: usize| 5.0 * (p * (1.0 - p) / n as f64).sqrt();
        let shares = ranks.map(|r| r as f64 / n as f64);
        assert!(shares.iter().all(|s| (s - 1.0 / 3.0).abs() < spread(1.0 / 3.0, n)), "window {window}: {shares:?}");
        for end in [0.0, 1.0] {
            let even = |t: &f64| t.powf(1.0 / time_power);
            let close = batch.negatives.iter().filter(|t| (even(t) - end).abs() < 0.02).count();
            // in the worst case the two other times of a row coincide
            assert!(
                (close as f64 / (2 * n) as f64 - 0.02).abs() < spread(0.02, n),
                "window {window}: {close} at {end}"
            );
        }
    }
}

/// Near the data the noise of the target, 1/σ, cancels in the gradient.
#[test]
fn antithetic_rows_quiet_the_gradient_near_the_data() {
    let (network, parameters) = small();
    let spread = |antithetic: bool| {
        let options = ContrastiveOptions {
            nce_weight: 0.0,
            antithetic,
            time_power: 12.0,
            least_noise: 1.0,
            ..Default::default()
        };
        let gradients: Vec<f64> = (0..30)
            .map(|k| {
                let batch = options.draw(&[0.3; 24], 3, false, &mut stream(10 + k));
                let mut gradient = vec![0.0; parameters.len()];
                options.losses(&network, &parameters, &batch, &mut gradient);
                gradient[0]
            })
            .collect();
        let mean = gradients.iter().sum::<f64>() / 30.0;
        gradients.iter().map(|g| (g - mean).powi(2)).sum::<f64>()
    };
    assert!(spread(true) < 0.1 * spread(false), "{} {}", spread(true), spread(false));
}

#[test]
fn antithetic_rows_are_pairs() {
    let batch = batch(ContrastiveOptions { antithetic: true, ..Default::default() }, 7);
    for k in [0, 2, 4] {
        assert_eq!(batch.t[k], batch.t[k + 1]);
        (3 * k..3 * k + 3).for_each(|i| assert_eq!(batch.noise[i], -batch.noise[i + 3]));
    }
    assert_ne!(batch.t[5], batch.t[6], "an odd row out is left as it is");
}

/// Each in a stratum of its own: those of the second rows, which are those of the first, were not visited.
#[test]
fn times_of_antithetic_pairs_are_spread_evenly() {
    for n in [2000, 1999] {
        let batch = batch(ContrastiveOptions { antithetic: true, ..Default::default() }, n);
        let strata: Vec<f64> = batch.t.iter().step_by(2).map(|t| 1000.0 * t).collect();
        assert!(strata.iter().enumerate().all(|(k, t)| *t as usize == k));
        let upper = strata.iter().filter(|t| t.fract() > 0.5).count();
        // five standard deviations
        assert!(upper.abs_diff(500) < 80, "{upper}");
    }
}

#[test]
fn noise_of_molecules_is_mean_free() {
    let options = ContrastiveOptions::default();
    let noised = options.draw(&[0.0; 24], 12, true, &mut stream(2));
    for (x, noise) in noised.x.chunks_exact(12).zip(noised.noise.chunks_exact(12)) {
        for k in 0..3 {
            assert!(noise.iter().skip(k).step_by(3).sum::<f64>().abs() < 1e-14);
        }
        assert!(x.iter().any(|x| x.abs() > 1e-3));
    }
}

#[test]
fn impossible_options_are_refused_by_name() {
    let good = ContrastiveOptions::default();
    good.check().unwrap();
    let complaint = |options: ContrastiveOptions| options.check().unwrap_err().to_string();
    assert!(complaint(ContrastiveOptions { window: 0.0, ..good }).contains("window"));
    assert!(complaint(ContrastiveOptions { time_power: f64::NAN, ..good }).contains("time_power"));
    assert!(complaint(ContrastiveOptions { least_noise: -1.0, ..good }).contains("least_noise"));
    assert!(complaint(ContrastiveOptions { negatives: 0, ..good }).contains("negatives"));
    assert!(complaint(ContrastiveOptions { score_weight: f64::NAN, ..good }).contains("score_weight"));
    assert!(complaint(ContrastiveOptions { score_weight: 0.0, nce_weight: 0.0, ..good }).contains("both"));
    ContrastiveOptions { nce_weight: 0.0, negatives: 0, ..good }.check().unwrap();
}

/// Two Gaussians of unequal weight on a line; KL(p‖q) by quadrature after a short training.
fn divergence(options: ContrastiveOptions) -> f64 {
    let network = MlpNetwork::new(MlpConfig { dimension: 1, width: 32, layers: 2 }).unwrap();
    let mut parameters: Vec<f32> = network.initialise(&mut stream(0));
    let mut adam = AdamW::new(&parameters, 0.0, 0.98);
    for step in 0..400 {
        let mut stream = Stream::new(7, StreamId::Train, step, 0);
        let mut draw = || if stream.uniform() < 0.3 { 1.0 } else { -1.0 } + 0.2 * stream.normal();
        let data: Vec<f64> = (0..256).map(|_| draw()).collect();
        let batch = options.draw(&data, 1, false, &mut stream);
        let mut gradient = vec![0.0; parameters.len()];
        options.losses(&network, &parameters, &batch, &mut gradient);
        adam.update(&mut parameters, &gradient, 5e-3 * Schedule::Cosine.factor(step as f64 / 400.0), 1.0);
    }
    let x: Vec<f64> = (0..600).map(|k| 0.01 * (f64::from(k) - 299.5)).collect();
    let normalised = |l: Vec<f64>| {
        let total = log_sum_exp(&l);
        l.into_iter().map(|l| l - total).collect::<Vec<_>>()
    };
    let well = |x: f64, weight: f64, at: f64| f64::ln(weight) - (x - at).powi(2) / 0.08;
    let p = normalised(x.iter().map(|&x| log_sum_exp(&[well(x, 0.3, 1.0), well(x, 0.7, -1.0)])).collect());
    let mut q = vec![0.0; x.len()];
    Evaluator::new(network, adam.average).energy(&vec![0.0; x.len()], &x, &mut q);
    p.iter().zip(normalised(q)).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn both_losses_together_learn_a_density() {
    let both = ContrastiveOptions { window: 1.0, time_power: 2.0, ..Default::default() };
    let together = divergence(both);
    let score = divergence(ContrastiveOptions { nce_weight: 0.0, ..both });
    let nce = divergence(ContrastiveOptions { score_weight: 0.0, ..both });
    println!("KL of both {together:.4}, of score matching {score:.4}, contrastive {nce:.4}");
    assert!(together < 0.05, "{together}");
    assert!(score > 2.0 * together && nce > 2.0 * together, "{score} {nce} {together}");
}
