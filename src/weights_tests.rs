use super::*;
use crate::density::Status;
use crate::rng::StreamId;

fn stream(step: u64) -> Stream {
    Stream::new(11, StreamId::Test, step, 0)
}

#[test]
fn log_weight_has_its_sign_and_unusable_samples_weigh_nothing() {
    let inside = Evaluation::inside(-3.0);
    assert_eq!(log_weight(2.0, &inside), 1.0);
    assert_eq!(log_weight(f64::NAN, &inside), f64::NEG_INFINITY);
    assert_eq!(log_weight(f64::INFINITY, &inside), f64::NEG_INFINITY);
    assert_eq!(log_weight(0.0, &Evaluation::outside(Status::Singular)), f64::NEG_INFINITY);
    assert!(log_weights(&[1.0], &[]).is_err());
}

#[test]
fn log_sum_exp_survives_large_numbers_and_zeros() {
    assert!((log_sum_exp(&[1e4, 1e4]) - (1e4 + 2f64.ln())).abs() < 1e-9);
    assert_eq!(log_sum_exp(&[f64::NEG_INFINITY, 3.0]), 3.0);
    assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
}

#[test]
fn effective_sample_size_of_known_weights() {
    assert!((effective_sample_size(&[5.0; 40]).unwrap() - 40.0).abs() < 1e-10);
    assert!((effective_sample_size(&[0.0, -800.0]).unwrap() - 1.0).abs() < 1e-12);
    // Weights 1, 2, 3: 36/14.
    let w: Vec<f64> = [1.0f64, 2.0, 3.0].iter().map(|w| w.ln() + 700.0).collect();
    assert!((effective_sample_size(&w).unwrap() - 36.0 / 14.0).abs() < 1e-12);
}

#[test]
fn weights_that_mean_nothing_are_refused() {
    for bad in [vec![f64::NAN, 0.0], vec![f64::INFINITY], vec![f64::NEG_INFINITY; 3], vec![]] {
        assert!(normalised(&bad).is_err(), "{bad:?}");
        assert!(pareto_k(&bad).is_err(), "{bad:?}");
    }
    assert!(mean(&[0.0], &[1.0, 2.0]).is_err());
}

/// Samples of N(0, 1) reweighted to N(m, 1): log w = m x − m²/2, Z = 1, mean m.
fn shifted_gaussian(n: usize, m: f64, step: u64) -> (Vec<f64>, Vec<f64>) {
    let mut stream = stream(step);
    let x: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
    (x.iter().map(|x| m * x - 0.5 * m * m).collect(), x)
}

#[test]
fn reweighted_mean_and_normaliser_are_right_and_their_errors_honest() {
    // Over 400 repetitions the deviations in units of the stated error must have unit variance: χ²(400) within ±5σ.
    let (mut mean_z, mut log_z, mut boot_z) = (0.0, 0.0, 0.0);
    for step in 0..400 {
        let (log_w, x) = shifted_gaussian(2000, 0.7, step);
        let estimate = mean(&log_w, &x).unwrap();
        mean_z += ((estimate.value - 0.7) / estimate.standard_error).powi(2) / 400.0;
        let z = log_normaliser(&log_w).unwrap();
        log_z += (z.value / z.standard_error).powi(2) / 400.0;
        if step % 10 == 0 {
            let boot = mean_bootstrap(&log_w, &x, 100, &mut Stream::new(3, StreamId::Bootstrap, step, 0)).unwrap();
            assert_eq!(boot.value, estimate.value);
            boot_z += boot.standard_error / estimate.standard_error / 40.0;
        }
    }
    let allowed = 5.0 * (2.0f64 / 400.0).sqrt();
    assert!((mean_z - 1.0).abs() < allowed, "{mean_z}");
    assert!((log_z - 1.0).abs() < allowed, "{log_z}");
    assert!((boot_z - 1.0).abs() < 0.05, "{boot_z}");
}

#[test]
fn resampling_keeps_the_expected_number_of_copies() {
    let log_w: Vec<f64> = [0.05f64, 0.0, 0.4, 0.25, 0.3].iter().map(|w| w.ln()).collect();
    let weights = normalised(&log_w).unwrap();
    for method in [Resampling::Systematic, Resampling::Stratified, Resampling::Multinomial] {
        let (n, repeats) = (7, 20_000);
        let mut counts = [0f64; 5];
        let mut stream = stream(1);
        for _ in 0..repeats {
            let chosen = resample(&log_w, n, method, &mut stream).unwrap();
            assert!(chosen.windows(2).all(|w| w[0] <= w[1]));
            chosen.iter().for_each(|&i| counts[i] += 1.0);
        }
        for (i, count) in counts.iter().enumerate() {
            let expected = weights[i] * (n * repeats) as f64;
            // Multinomial variance bounds the other two.
            assert!((count - expected).abs() <= 5.0 * expected.sqrt(), "{method:?} {i}: {count} {expected}");
        }
        assert_eq!(counts[1], 0.0, "a sample of weight zero was drawn");
    }
}

/// A remainder left by rounding goes to the last sample with weight.
#[test]
fn points_beyond_the_sum_choose_no_sample_of_weight_zero() {
    assert_eq!(select(&[0.0, 0.5, 0.25, 0.0, 0.0], &[0.1, 0.6, 0.8, 1.0]), [1, 2, 2, 2]);
}

#[test]
fn systematic_resampling_is_within_one_copy_of_the_weights() {
    let log_w: Vec<f64> = [0.1f64, 0.2, 0.7].iter().map(|w| w.ln()).collect();
    for step in 0..50 {
        let chosen = resample(&log_w, 10, Resampling::Systematic, &mut stream(step)).unwrap();
        for (i, expected) in [1.0f64, 2.0, 7.0].iter().enumerate() {
            let copies = chosen.iter().filter(|&&j| j == i).count() as f64;
            assert!((copies - expected).abs() <= 1.0);
        }
    }
}

#[test]
fn generalized_pareto_fit_recovers_shape_and_scale() {
    for (shape, scale) in [(0.3, 2.0), (0.9, 0.5), (-0.2, 1.0)] {
        let mut stream = stream(5);
        let mut x: Vec<f64> =
            (0..20_000).map(|_| scale / shape * ((-shape * stream.uniform().ln()).exp() - 1.0)).collect();
        x.sort_by(f64::total_cmp);
        let (k, sigma) = generalized_pareto(&x).unwrap();
        // Asymptotic error of the maximum-likelihood shape: (1 + k)/√n.
        assert!((k - shape).abs() < 5.0 * (1.0 + shape) / 20_000f64.sqrt(), "{k} for {shape}");
        assert!((sigma / scale - 1.0).abs() < 5.0 * (2.0 * (1.0 + shape) / 20_000f64).sqrt(), "{sigma} for {scale}");
    }
    assert!(generalized_pareto(&[0.0; 10]).is_none());
}

#[test]
fn pareto_k_tells_heavy_from_light_tails() {
    let mut stream = stream(6);
    // w = U^{−k} has Pareto index k exactly.
    for k in [0.2, 1.0] {
        let log_w: Vec<f64> = (0..40_000).map(|_| -k * stream.uniform().ln()).collect();
        let fitted = pareto_k(&log_w).unwrap();
        assert!((fitted - k).abs() < 5.0 * (1.0 + k) / 600f64.sqrt(), "{fitted} for {k}");
    }
}

#[test]
fn pareto_k_without_a_fit_tells_collapsed_weights_from_equal_ones() {
    let equal = [-3.0; 100];
    assert_eq!(pareto_k(&equal).unwrap(), f64::NEG_INFINITY);
    assert_eq!(pareto_smoothed(&equal).unwrap(), (equal.to_vec(), f64::NEG_INFINITY));
    // a perfect generator, up to rounding
    let rounded: Vec<f64> = (0..1000).map(|i| -191.6 - 3e-14 * f64::from(i % 7)).collect();
    assert_eq!(pareto_k(&rounded).unwrap(), f64::NEG_INFINITY);
    assert_eq!(pareto_smoothed(&rounded).unwrap(), (rounded, f64::NEG_INFINITY));
    // bounded weights, some as large as the cut-off: far from collapsed
    let of_two = |large: usize, factor: f64| -> Vec<f64> {
        (0..2000).map(|i| if i < large { factor.ln() - 50.0 } else { -50.0 }).collect()
    };
    for (large, factor) in [(20, 2.0), (20, 10.0), (5, 1.5)] {
        let k = pareto_k(&of_two(large, factor)).unwrap();
        assert!(k.is_finite() && k < 0.0, "{large} of {factor}: {k}");
        let smoothed = pareto_smoothed(&of_two(large, factor)).unwrap().0;
        assert!(smoothed.iter().all(|w| (-50.0 - 1e-9..=factor.ln() - 50.0).contains(w)), "{large} of {factor}");
    }
    assert_eq!(pareto_k(&of_two(4, 1.9)).unwrap(), f64::NEG_INFINITY);
    assert_eq!(pareto_k(&of_two(4, 2.1)).unwrap(), f64::INFINITY);
    // one of many samples has all the weight, as with a generator that has missed the target
    let collapsed: Vec<f64> = (0..1000).map(|i| -1000.0 * f64::from(i)).collect();
    assert_eq!(pareto_k(&collapsed).unwrap(), f64::INFINITY);
    let single = [vec![0.0], vec![f64::NEG_INFINITY; 999]].concat();
    assert_eq!(pareto_k(&single).unwrap(), f64::INFINITY);
    // too few to have a tail, whatever their values
    assert_eq!(pareto_k(&[0.0; 10]).unwrap(), f64::INFINITY);
}

/// One sample has all the weight: averages are its values, whose scatter is unknown.
#[test]
fn averages_of_collapsed_weights_have_no_error() {
    let n = 1000;
    let log_w: Vec<f64> = (0..n).map(|i| -1000.0 * i as f64).collect();
    let x: Vec<f64> = (0..n).map(|i| i as f64).collect();
    let state: Vec<Option<bool>> = (0..n).map(|i| Some(i % 2 == 0)).collect();
    let mut near = log_w.clone();
    near[1] = -0.5;
    let none =
        |estimate: Estimate| assert!(estimate.value.is_finite() && estimate.standard_error.is_nan(), "{estimate:?}");
    none(mean(&log_w, &x).unwrap());
    none(mean_bootstrap(&log_w, &x, 20, &mut stream(2)).unwrap());
    none(log_normaliser(&log_w).unwrap());
    none(acceptance(&log_w));
    none(divergence(&near, &near).unwrap());
    none(divergence(&near, &vec![0.0; n]).unwrap());
    none(crate::free_energy::between_states(&near, &state).unwrap());
    none(crate::free_energy::shift_between_states(&vec![0.0; n], &near, &state).unwrap());
    let profile = crate::histogram::circular_profile(&vec![0.1; n], &log_w, 4).unwrap();
    none(profile.density[2]);
    // five effective samples suffice
    assert_eq!(mean(&[0.0; 5], &[1.0; 5]).unwrap().standard_error, 0.0);
    assert!(mean(&[0.0; 4], &[1.0; 4]).unwrap().standard_error.is_nan());
}

#[test]
fn smoothing_keeps_order_and_never_exceeds_the_largest_weight() {
    let mut stream = stream(8);
    let log_w: Vec<f64> = (0..5000).map(|_| -0.8 * stream.uniform().ln() - 40.0).collect();
    let (smoothed, k) = pareto_smoothed(&log_w).unwrap();
    assert!((0.5..1.1).contains(&k));
    let max = log_w.iter().copied().fold(f64::MIN, f64::max);
    let mut order: Vec<usize> = (0..log_w.len()).collect();
    order.sort_by(|&i, &j| log_w[i].total_cmp(&log_w[j]));
    assert!(order.windows(2).all(|w| smoothed[w[0]] <= smoothed[w[1]] + 1e-12));
    assert!(smoothed.iter().all(|w| *w <= max));
    assert!(smoothed.iter().zip(&log_w).filter(|(a, b)| a != b).count() > 100);
}

/// Fewer samples with weight than a tail of all of them would have.
#[test]
fn samples_without_weight_stay_without_in_a_smoothed_tail() {
    let mut stream = stream(9);
    let log_w: Vec<f64> = (0..1000).map(|i| if i % 12 == 0 { stream.normal() } else { f64::NEG_INFINITY }).collect();
    let (smoothed, k) = pareto_smoothed(&log_w).unwrap();
    assert!(log_w.iter().zip(&smoothed).all(|(raw, smooth)| raw.is_finite() == smooth.is_finite()));
    assert_eq!(pareto_k(&log_w).unwrap(), k);
    // the tail of the others by themselves, from weight zero
    assert!(k.is_finite() && k < 1.0, "{k}");
    let few: Vec<f64> = (0..1000).map(|i| if i < 4 { 0.1 * i as f64 } else { f64::NEG_INFINITY }).collect();
    assert_eq!(pareto_smoothed(&few).unwrap(), (few, f64::INFINITY));
}

#[test]
fn acceptance_of_lognormal_weights_is_known_and_its_error_honest() {
    assert!((acceptance(&[0.3; 50]).value - 1.0).abs() < 1e-12);
    assert_eq!(acceptance(&[f64::NEG_INFINITY; 3]).value, 0.0);
    // a sample is no partner of itself: of 1 and 3, min/mean
    assert!((acceptance(&[0.0, 3f64.ln()]).value - 0.5).abs() < 1e-12 && acceptance(&[0.0]).value.is_nan());
    // σ = 1: erfc(σ/2); one sample in ten without weight takes a tenth of the acceptance
    for (share, step) in [(1.0, 0), (0.9, 1000)] {
        let (mut chi2, repeats) = (0.0, 400);
        for repeat in 0..repeats {
            let mut stream = stream(step + repeat);
            let w: Vec<f64> =
                (0..2000).map(|_| if stream.uniform() < share { stream.normal() } else { f64::NEG_INFINITY }).collect();
            let found = acceptance(&w);
            chi2 += ((found.value - share * libm::erfc(0.5)) / found.standard_error).powi(2) / repeats as f64;
        }
        assert!((chi2 - 1.0).abs() < 5.0 * (2.0 / repeats as f64).sqrt(), "{chi2}");
    }
}

#[test]
fn rules_do_to_weights_what_their_names_say() {
    let log_w: Vec<f64> = [1.0f64, 1.0, 1.0, 61.0].map(f64::ln).iter().map(|w| w - 300.0).collect();
    assert_eq!(Rule::Raw.apply(&log_w).unwrap(), (log_w.clone(), 0));
    // √4 times the mean of 16
    let (truncated, changed) = Rule::Truncated.apply(&log_w).unwrap();
    assert!((truncated[3] - (32f64.ln() - 300.0)).abs() < 1e-12 && changed == 1 && truncated[..3] == log_w[..3]);
    let (clipped, changed) = Rule::QuantileClipped { share: 0.1 }.apply(&log_w).unwrap();
    assert!(clipped[3] == f64::NEG_INFINITY && changed == 1 && clipped[..3] == log_w[..3]);
    assert_eq!(Rule::QuantileClipped { share: 0.0 }.apply(&log_w).unwrap().1, 0);
    assert!(Rule::QuantileClipped { share: 1.0 }.apply(&log_w).is_err());
    assert!(Rule::Truncated.apply(&[f64::NAN, 0.0]).is_err());
    let gap = [f64::NEG_INFINITY, f64::NEG_INFINITY, 1.0, 3.0];
    assert_eq!([quantile(&gap, 0.2), quantile(&gap, 1.0), quantile(&gap[2..], 0.25)], [f64::NEG_INFINITY, 3.0, 1.5]);
    assert_eq!(
        [quantile(&gap, 0.5), quantile(&gap, 1.0 / 3.0)],
        [f64::NEG_INFINITY; 2],
        "between none and a finite value"
    );
}

#[test]
fn deleting_all_that_have_weight_is_refused_for_what_it_is() {
    let clip = |finite: usize| {
        let log_w = [vec![1.0; finite], vec![f64::NEG_INFINITY; 1000 - finite]].concat();
        let message = Rule::QuantileClipped { share: 0.002 }.apply(&log_w).unwrap_err().to_string();
        assert!(message.contains(&format!("only {finite} have")) && message.contains("0.002 of 1000"), "{message}");
    };
    clip(1);
    // the quantile lies between a weight of zero and a positive one
    clip(2);
    let three = [vec![1.0, 2.0, 3.0], vec![f64::NEG_INFINITY; 997]].concat();
    let (kept, changed) = Rule::QuantileClipped { share: 0.002 }.apply(&three).unwrap();
    assert_eq!((kept[0], changed), (1.0, 2));
}

/// The bias of truncation decreases with the number of samples; that of deleting a share of them does not.
#[test]
fn the_bias_of_truncation_vanishes_and_that_of_deletion_does_not() {
    let bias = |rule: Rule, n: usize| {
        let repeats = 4_000_000 / n;
        let of = |repeat: usize| {
            let (log_w, x) = shifted_gaussian(n, 1.0, 10_000 + repeat as u64);
            mean(&rule.apply(&log_w).unwrap().0, &x).unwrap().value
        };
        1.0 - (0..repeats).map(of).sum::<f64>() / repeats as f64
    };
    let clipped = Rule::QuantileClipped { share: 0.01 };
    assert!(bias(Rule::Truncated, 40_000).abs() < 0.005, "{}", bias(Rule::Truncated, 40_000));
    assert!(bias(clipped, 400) > 0.08 && bias(clipped, 40_000) > 0.08, "{}", bias(clipped, 40_000));
}

/// Samples of N(0, 1) weighted to N(0, s²), and the same weights less ln c = a x, which stand for N(−a s², s²).
fn shifted(n: usize, s: f64, a: f64, step: u64) -> [Vec<f64>; 3] {
    let mut stream = stream(step);
    let x: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
    let w: Vec<f64> = x.iter().map(|x| 0.5 * x * x * (1.0 - 1.0 / (s * s))).collect();
    // a constant in the second weights changes nothing
    let v = w.iter().zip(&x).map(|(w, x)| w - a * x + 40.0).collect();
    [x, w, v]
}

#[test]
fn the_divergence_of_shifted_gaussians_is_known_and_its_error_honest() {
    let (s, a) = (0.8, 0.3);
    let truth = 0.5 * (a * s) * (a * s);
    let (mut chi2, repeats) = (0.0, 300);
    for step in 0..repeats {
        let [_, w, v] = shifted(1000, s, a, 100 + step);
        let kl = divergence(&w, &v).unwrap();
        chi2 += ((kl.value - truth) / kl.standard_error).powi(2) / repeats as f64;
    }
    assert!((chi2 - 1.0).abs() < 5.0 * (2.0 / repeats as f64).sqrt(), "{chi2}");
    let [_, w, _] = shifted(100, s, a, 1);
    assert!(divergence(&w, &w).unwrap().value.abs() < 1e-14);
    let mut none = w.clone();
    none[3] = f64::NEG_INFINITY;
    assert_eq!(divergence(&w, &none).unwrap().value, f64::INFINITY);
    assert!(divergence(&w, &w[1..]).is_err());
}

#[test]
fn the_shift_between_states_is_known_and_its_error_honest() {
    // populations of a half and of a sixth, so that mixing up the errors shows
    let (s, a) = (0.8, 1.2);
    let upper = 0.5 * libm::erfc(a * s / 2f64.sqrt());
    let truth = -(upper / (1.0 - upper)).ln();
    let (mut chi2, repeats) = (0.0, 300);
    for step in 0..repeats {
        let [x, w, v] = shifted(2000, s, a, 500 + step);
        let state: Vec<Option<bool>> = x.iter().map(|&x| Some(x > 0.0)).collect();
        let shift = crate::free_energy::shift_between_states(&w, &v, &state).unwrap();
        chi2 += ((shift.value - truth) / shift.standard_error).powi(2) / repeats as f64;
    }
    assert!((chi2 - 1.0).abs() < 5.0 * (2.0 / repeats as f64).sqrt(), "{chi2}");
}
