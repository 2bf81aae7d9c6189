use super::*;
use crate::rng::{Stream, StreamId};

fn stream(step: u64) -> Stream {
    Stream::new(21, StreamId::Test, step, 0)
}

/// Gaussian work that obeys Crooks: w_F ~ N(ΔF + s²/2, s²), w_R ~ N(−ΔF + s²/2, s²).
fn crooks(n: usize, m: usize, df: f64, s: f64, stream: &mut Stream) -> (Vec<f64>, Vec<f64>) {
    let forward = (0..n).map(|_| df + 0.5 * s * s + s * stream.normal()).collect();
    let reverse = (0..m).map(|_| -df + 0.5 * s * s + s * stream.normal()).collect();
    (forward, reverse)
}

#[test]
fn bar_is_right_for_both_signs_and_its_error_honest() {
    for df in [-12.0, -0.5, 0.0, 3.0, 250.0] {
        let mut chi2 = 0.0;
        for step in 0..300 {
            let (forward, reverse) = crooks(300, 500, df, 2.0, &mut stream(step));
            let estimate = bar(&forward, &reverse).unwrap();
            chi2 += ((estimate.value - df) / estimate.standard_error).powi(2) / 300.0;
        }
        assert!((chi2 - 1.0).abs() < 5.0 * (2.0f64 / 300.0).sqrt(), "{df}: {chi2}");
    }
}

/// Gaussian work of standard deviation s obeys Crooks; the reverse one as a stationary AR(1) series.
#[test]
fn bar_counts_the_correlation_of_a_series() {
    let (df, s, kept) = (1.5, 1.2f64, 0.95f64);
    let (mut chi2, mut as_independent) = (0.0, 0.0);
    for step in 0..300 {
        let mut stream = stream(step);
        let forward: Vec<f64> = (0..2000).map(|_| df + 0.5 * s * s + s * stream.normal()).collect();
        let mut z = stream.normal();
        let reverse: Vec<f64> = (0..4000)
            .map(|_| {
                z = kept * z + (1.0 - kept * kept).sqrt() * stream.normal();
                0.5 * s * s - df + s * z
            })
            .collect();
        let estimate = bar_with_series(&forward, &reverse).unwrap();
        chi2 += ((estimate.value - df) / estimate.standard_error).powi(2) / 300.0;
        let naive = bar(&forward, &reverse).unwrap();
        assert_eq!(naive.value, estimate.value);
        as_independent += ((naive.value - df) / naive.standard_error).powi(2) / 300.0;
    }
    assert!((chi2 - 1.0).abs() < 5.0 * (2.0f64 / 300.0).sqrt(), "{chi2}");
    assert!(as_independent > 3.0, "{as_independent}");
    assert!(bar_with_series(&[0.0; 10], &[0.0; 3]).is_err());
}

/// Of work with a standard deviation of 8 kT, and 300 values, a few decide, whose scatter says nothing of the rest.
#[test]
fn bar_has_no_error_at_poor_overlap() {
    let with_errors = |s: f64| {
        let of = |step| crooks(300, 500, 1.0, s, &mut stream(step));
        let runs =
            (0..100).map(of).map(|(forward, reverse)| [bar(&forward, &reverse), bar_with_series(&forward, &reverse)]);
        runs.flatten().filter(|estimate| estimate.as_ref().unwrap().standard_error.is_finite()).count()
    };
    assert_eq!([2.0, 4.0, 8.0, 10.0].map(with_errors), [200, 200, 0, 0]);
}

#[test]
fn bar_changes_sign_when_the_ends_are_swapped() {
    let (forward, reverse) = crooks(50, 20, -7.0, 1.5, &mut stream(1));
    let there = bar(&forward, &reverse).unwrap();
    let back = bar(&reverse, &forward).unwrap();
    assert!((there.value + back.value).abs() < 1e-12);
    assert!((there.standard_error - back.standard_error).abs() < 1e-12);
}

#[test]
fn bar_survives_ensembles_that_hardly_overlap() {
    // All forward work 900, all reverse work 700: by symmetry of the equation ΔF = (900 − 700)/2.
    let estimate = bar(&[900.0; 10], &[700.0; 10]).unwrap();
    assert!((estimate.value - 100.0).abs() < 1e-9);
    let with_impossible = bar(&[1.0, f64::INFINITY], &[0.5, -0.5]).unwrap();
    assert!(with_impossible.value.is_finite());
    assert!(bar(&[f64::NAN], &[0.0]).is_err());
    assert!(bar(&[], &[0.0]).is_err());
    assert!(bar(&[f64::INFINITY], &[0.0]).is_err());
}

#[test]
fn perturbation_agrees_from_both_ends() {
    let (forward, reverse) = crooks(200_000, 200_000, -4.0, 0.6, &mut stream(3));
    for estimate in [perturbation_forward(&forward).unwrap(), perturbation_reverse(&reverse).unwrap()] {
        assert!((estimate.value + 4.0).abs() < 5.0 * estimate.standard_error, "{estimate:?}");
        assert!(estimate.standard_error < 0.01);
    }
}

#[test]
fn weighted_state_difference_and_error() {
    let mut chi2 = 0.0;
    for step in 0..300 {
        // x uniform on (0, 1), weight 2x: P(x < 1/2) = 1/4, so ΔF of A = lower half is ln 3.
        let mut stream = stream(step);
        let x: Vec<f64> = (0..3000).map(|_| stream.uniform()).collect();
        let log_w: Vec<f64> = x.iter().map(|x| (2.0 * x).ln()).collect();
        let state: Vec<Option<bool>> = x.iter().map(|x| Some(*x < 0.5)).collect();
        let estimate = between_states(&log_w, &state).unwrap();
        chi2 += ((estimate.value - 3f64.ln()) / estimate.standard_error).powi(2) / 300.0;
    }
    assert!((chi2 - 1.0).abs() < 5.0 * (2.0f64 / 300.0).sqrt(), "{chi2}");
    assert!(between_states(&[0.0, 0.0], &[Some(true), None]).is_err());
}

/// Two-state Markov chain that leaves A with probability `a`, B with probability `b`: P(A) = b/(a+b), g =
/// (2−a−b)/(a+b).
fn two_state(n: usize, a: f64, b: f64, stream: &mut Stream) -> Vec<Option<bool>> {
    let mut in_a = stream.uniform() < b / (a + b);
    (0..n)
        .map(|_| {
            let leave = if in_a { a } else { b };
            if stream.uniform() < leave {
                in_a = !in_a;
            }
            Some(in_a)
        })
        .collect()
}

#[test]
fn errors_of_a_correlated_series_count_the_correlation() {
    let (a, b) = (0.02f64, 0.05f64);
    let exact = -(b / a).ln();
    let (mut chi2, mut chi2_blocks, mut g) = (0.0, 0.0, 0.0);
    for step in 0..200 {
        let states = two_state(20_000, a, b, &mut stream(step));
        let estimate = between_states_of_series(&states).unwrap();
        chi2 += ((estimate.value - exact) / estimate.standard_error).powi(2) / 200.0;
        let blocks = between_states_of_blocks(&states, 40).unwrap();
        chi2_blocks += ((blocks.value - exact) / blocks.standard_error).powi(2) / 200.0;
        let series: Vec<f64> = states.iter().map(|s| f64::from(*s == Some(true))).collect();
        g += statistical_inefficiency(&series).unwrap() / 200.0;
    }
    let expected = (2.0 - a - b) / (a + b);
    assert!((g / expected - 1.0).abs() < 0.1, "{g} for {expected}");
    for value in [chi2, chi2_blocks] {
        assert!((value - 1.0).abs() < 5.0 * (2.0f64 / 200.0).sqrt() + 0.1, "{value}");
    }
}

/// Reference implementation that sums covariances lag by lag.
fn inefficiency_by_sums(series: &[f64]) -> f64 {
    let n = series.len();
    let mean = series.iter().sum::<f64>() / n as f64;
    let covariance =
        |lag: usize| series[lag..].iter().zip(series).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / n as f64;
    let (mut sum, mut previous, mut lags) = (0.0, f64::INFINITY, 0);
    for t in 0..n / 4 {
        let pair = ((covariance(2 * t) + covariance(2 * t + 1)) / covariance(0)).min(previous);
        if pair <= 0.0 {
            break;
        }
        sum += pair;
        previous = pair;
        lags = 2 * t + 1;
    }
    (2.0 * sum - 1.0).max(1.0) * (1.0 + (2 * lags + 1) as f64 / n as f64)
}

fn autoregressive(n: usize, rho: f64, stream: &mut Stream) -> Vec<f64> {
    let mut x = 0.0;
    let mut next = || {
        x = rho * x + (1.0 - rho * rho).sqrt() * stream.normal();
        x
    };
    (0..n).map(|_| next()).collect()
}

#[test]
fn the_inefficiency_is_that_of_sums_lag_by_lag() {
    for (n, rho) in [(4, 0.5), (100, 0.5), (129, 0.9), (3000, 0.999), (10_000, 0.99)] {
        let series = autoregressive(n, rho, &mut stream(n as u64));
        let (found, expected) = (statistical_inefficiency(&series).unwrap(), inefficiency_by_sums(&series));
        assert!((found / expected - 1.0).abs() < 1e-10, "{n} {rho}: {found} {expected}");
        // identical while only directly summed lags are used
        assert!(found == expected || expected > 10.0, "{n} {rho}: {found} {expected}");
    }
}

/// Ten independent samples: without the correction of the covariances, variances of the mean were a quarter too small.
#[test]
fn the_error_of_a_short_series_is_not_too_small() {
    let (n, rho, series) = (200, 0.9f64, 2000);
    let (mut claimed, mut scatter) = (0.0, 0.0);
    for i in 0..series {
        // starts in equilibrium
        let long = autoregressive(2 * n, rho, &mut stream(5000 + i));
        let mean = mean_of_series(&long[n..]).unwrap();
        claimed += mean.standard_error.powi(2) / series as f64;
        scatter += mean.value.powi(2) / series as f64;
    }
    assert!((0.88..1.2).contains(&(claimed / scatter)), "{}", claimed / scatter);
}

/// A drift through all frames, correlated over a quarter of them: lag by lag that would take 10¹¹ products, minutes.
#[test]
fn the_error_of_a_long_slow_series_takes_moments() {
    let n = 1_000_000;
    let series: Vec<f64> = (0..n).map(|i| i as f64).collect();
    let g = statistical_inefficiency(&series).unwrap();
    assert!(g > 0.1 * n as f64 && g < n as f64, "{g}");
}

#[test]
fn independent_series_has_inefficiency_one() {
    let mut stream = stream(4);
    let series: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
    let g = statistical_inefficiency(&series).unwrap();
    assert!((1.0..1.2).contains(&g), "{g}");
    assert_eq!(statistical_inefficiency(&[2.0; 10]).unwrap(), 1.0);
    assert!(statistical_inefficiency(&[1.0, f64::NAN, 1.0, 2.0]).is_err());
    assert!(block_error(&series, 1).is_err());
    // concatenated walkers: each is a block of its own
    let of_walkers = [1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0];
    assert!((block_error(&of_walkers, 3).unwrap() - 1.0).abs() < 1e-12);
}

#[test]
fn a_state_without_samples_has_a_population_of_zero() {
    let message = between_states(&[0.0; 3], &[Some(false); 3]).unwrap_err().to_string();
    assert!(message.ends_with("populations are 0.000 and 1.000"), "{message}");
}

/// Blocks of a few correlation times are correlated; without that errors were a quarter too small.
#[test]
fn errors_of_short_blocks_count_their_correlation() {
    let (tau, runs) = (10.0f64, 1000);
    let mut chi2 = 0.0;
    for length in [20, 30, 50] {
        for seed in 0..runs {
            // starts in equilibrium
            let series = autoregressive(BLOCKS * length + 200, (-1.0 / tau).exp(), &mut stream(20_000 + seed));
            let mean = mean_of_blocks(&series[200..]).unwrap();
            chi2 += (mean.value / mean.standard_error).powi(2) / (3 * runs) as f64;
        }
    }
    assert!((chi2 - 1.0).abs() < 0.25, "{chi2}");
    let equal = mean_of_blocks(&[2.0; 400]).unwrap();
    assert_eq!((equal.value, equal.standard_error), (2.0, 0.0));
}

/// Oscillating series, as of a Nosé–Hoover thermostat: x_t = 2 r cos ω x_{t−1} − r² x_{t−2} + ξ, whose mean over n steps
/// has the variance 1/n (1 − 2 r cos ω + r²)⁻².
#[test]
fn errors_of_oscillating_series_come_from_blocks() {
    let (r, omega, n) = (0.98_f64, 0.3_f64, 8000);
    let (a, b) = (2.0 * r * omega.cos(), -r * r);
    let truth = 1.0 / ((1.0 - a - b) * (n as f64).sqrt());
    let errors = |of: fn(&[f64]) -> Result<Estimate>| -> f64 {
        let of_seed = |seed: u64| {
            let mut stream = stream(900 + seed);
            let mut series = vec![0.0, 0.0];
            for t in 2..n + 500 {
                series.push(a * series[t - 1] + b * series[t - 2] + stream.normal());
            }
            of(&series[500..]).unwrap().standard_error.powi(2) / 20.0
        };
        (0..20).map(of_seed).sum::<f64>().sqrt()
    };
    let (by_blocks, by_sequence) = (errors(mean_of_blocks), errors(mean_of_series));
    assert!((by_blocks / truth - 1.0).abs() < 0.15, "{by_blocks} where {truth} is right");
    assert!((by_sequence / truth - 1.0).abs() > 0.5, "{by_sequence}");
    // a slow series has correlated blocks
    let slow = autoregressive(8000, 0.999, &mut stream(77));
    assert_eq!(mean_of_blocks(&slow).unwrap(), mean_of_series(&slow).unwrap());
}
