//! Hypothesis tests. The level is 1e-6 everywhere, with fixed seeds: a test that fires is a fault, never bad luck.

pub const LEVEL: f64 = 1e-6;

/// p-value of the two-sample Kolmogorov–Smirnov test (asymptotic, with Stephens' correction).
pub fn ks_two_sample(a: &[f64], b: &[f64]) -> f64 {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values
    };
    let (a, b) = (sorted(a), sorted(b));
    let (n, m) = (a.len() as f64, b.len() as f64);
    let (mut i, mut j, mut distance) = (0, 0, 0f64);
    while i < a.len() && j < b.len() {
        let value = a[i].min(b[j]);
        while i < a.len() && a[i] <= value {
            i += 1;
        }
        while j < b.len() && b[j] <= value {
            j += 1;
        }
        distance = distance.max((i as f64 / n - j as f64 / m).abs());
    }
    let root = (n * m / (n + m)).sqrt();
    let lambda = (root + 0.12 + 0.11 / root) * distance;
    let terms = (1..=100).map(|k| {
        let k = f64::from(k);
        let sign = if k % 2.0 == 1.0 { 2.0 } else { -2.0 };
        sign * (-2.0 * k * k * lambda * lambda).exp()
    });
    if lambda < 0.2 {
        1.0
    } else {
        terms.sum::<f64>().clamp(0.0, 1.0)
    }
}

/// p-value of the χ² test of counts against probabilities.
pub fn chi_square(counts: &[f64], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    let chi2: f64 = counts.iter().zip(probabilities).map(|(c, p)| (c - n * p).powi(2) / (n * p)).sum();
    upper_gamma(0.5 * (counts.len() as f64 - 1.0), 0.5 * chi2)
}

/// Two-sided p-value of a standard normal deviate.
pub fn normal(z: f64) -> f64 {
    upper_gamma(0.5, 0.5 * z * z)
}

/// Regularised upper incomplete gamma function Q(a, x) for 2a a positive integer, by recurrence from Q(1/2) or Q(1).
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let half_integer = (2.0 * a) as u64 % 2 == 1;
    let (mut s, mut q) = if half_integer { (0.5, erfc(x.sqrt())) } else { (1.0, (-x).exp()) };
    // ln of x^s e^{-x} / Γ(s + 1).
    let mut log_term =
        if half_integer { 0.5 * x.ln() - x - (0.5 * std::f64::consts::PI.sqrt()).ln() } else { x.ln() - x };
    while s < a - 0.25 {
        q += log_term.exp();
        s += 1.0;
        // s already has its next value: x^s / Γ(s + 1).
        log_term += x.ln() - s.ln();
    }
    q
}

/// Complementary error function by series (small x) or continued fraction.
fn erfc(x: f64) -> f64 {
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - 2.0 / std::f64::consts::PI.sqrt() * sum;
    }
    let fraction = (1..=60).rev().fold(x, |tail, k| x + f64::from(k) / 2.0 / tail);
    (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
}

#[test]
fn p_values_match_tables() {
    // Two-sided 5 % and 1e-6 points of the normal distribution, 5 % points of χ² with 1, 4 and 5 degrees of freedom.
    for (value, expected) in [
        (normal(1.959_963_985), 0.05),
        (normal(4.891_638_475), 1e-6),
        (upper_gamma(0.5, 3.841_458_821 / 2.0), 0.05),
        (upper_gamma(2.0, 9.487_729_037 / 2.0), 0.05),
        (upper_gamma(2.5, 11.070_497_694 / 2.0), 0.05),
    ] {
        assert!((value / expected - 1.0).abs() < 1e-6, "{value} for {expected}");
    }
    let grid: Vec<f64> = (0..1000).map(f64::from).collect();
    assert!(ks_two_sample(&grid, &grid) > 0.99);
    // Kolmogorov's 5 % point is 1.358: shift so that √(nm/(n+m)) D has that value.
    let shifted: Vec<f64> = grid.iter().map(|x| x + 60.5).collect();
    assert!((ks_two_sample(&grid, &shifted) - 0.05).abs() < 0.01);
}
