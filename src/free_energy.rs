//! Free-energy differences in kT: between two states of one ensemble, and between two ensembles.
//!
//! States of one ensemble: ΔF = F_A − F_B = −ln P(A)/P(B), from importance weights or from a time series.
//! Two ensembles: ΔF = F_B − F_A = −ln Z_B/Z_A from the (targeted) work Φ of samples of either ensemble.

use crate::error::{Error, Result};
use crate::fourier;
use crate::weights::{self, Estimate};
use std::cell::OnceCell;

/// ΔF = −ln P(A)/P(B) from independent weighted samples; `state[i]` is `Some(true)` in A, `Some(false)` in B, else
/// `None`.
///
/// Delta-method error: Var ΔF = Σ W² (1_A/P_A − 1_B/P_B)², W normalised. Errors: a state without weight.
pub fn between_states(log_weights: &[f64], state: &[Option<bool>]) -> Result<Estimate> {
    if log_weights.len() != state.len() {
        return Err(Error::invalid(format!("{} log-weights do not match {} states", log_weights.len(), state.len())));
    }
    let w = weights::normalised(log_weights)?;
    let (a, b) = populations(&w, state)?;
    let variance: f64 = w.iter().zip(state).map(|(w, s)| (w * influence(*s, a, b)).powi(2)).sum();
    Ok(Estimate { value: -(a / b).ln(), standard_error: weights::standard_error(&w, variance) })
}

/// ΔF with the weights `other` minus ΔF with `log_weights`, of the same samples; the delta-method error includes their
/// correlation.
pub fn shift_between_states(log_weights: &[f64], other: &[f64], state: &[Option<bool>]) -> Result<Estimate> {
    let value = between_states(other, state)?.value - between_states(log_weights, state)?.value;
    let (w, v) = (weights::normalised(log_weights)?, weights::normalised(other)?);
    let ((a, b), (c, d)) = (populations(&w, state)?, populations(&v, state)?);
    let difference = |((w, v), s): ((&f64, &f64), &Option<bool>)| v * influence(*s, c, d) - w * influence(*s, a, b);
    let variance: f64 = w.iter().zip(&v).zip(state).map(|each| difference(each).powi(2)).sum();
    // NaN if either effective sample size is too small
    let by_other = weights::standard_error(&v, variance);
    Ok(Estimate { value, standard_error: weights::standard_error(&w, by_other.powi(2)) })
}

/// ΔF = −ln P(A)/P(B) from one correlated time series of states. The error accounts for correlation through the
/// statistical inefficiency of the influence function 1_A/P_A − 1_B/P_B.
pub fn between_states_of_series(state: &[Option<bool>]) -> Result<Estimate> {
    let n = state.len() as f64;
    let (a, b) = populations(&vec![1.0 / n; state.len()], state)?;
    let influences: Vec<f64> = state.iter().map(|s| influence(*s, a, b)).collect();
    Ok(Estimate { value: -(a / b).ln(), standard_error: mean_of_series(&influences)?.standard_error })
}

/// [`between_states_of_series`] with an error from `blocks` equal block averages of the influence function.
pub fn between_states_of_blocks(state: &[Option<bool>], blocks: usize) -> Result<Estimate> {
    let n = state.len() as f64;
    let (a, b) = populations(&vec![1.0 / n; state.len()], state)?;
    let influences: Vec<f64> = state.iter().map(|s| influence(*s, a, b)).collect();
    Ok(Estimate { value: -(a / b).ln(), standard_error: block_error(&influences, blocks)? })
}

fn influence(state: Option<bool>, a: f64, b: f64) -> f64 {
    match state {
        Some(true) => 1.0 / a,
        Some(false) => -1.0 / b,
        None => 0.0,
    }
}

fn populations(weights: &[f64], state: &[Option<bool>]) -> Result<(f64, f64)> {
    let of =
        |wanted: bool| weights.iter().zip(state).filter(|(_, s)| **s == Some(wanted)).fold(0.0, |sum, (w, _)| sum + w);
    let (a, b) = (of(true), of(false));
    if !(a > 0.0 && b > 0.0) {
        return Err(Error::invalid(format!(
            "a free-energy difference requires samples of both states; their populations are {a:.3} and {b:.3}"
        )));
    }
    Ok((a, b))
}

/// Mean of a stationary time series with a standard error that accounts for correlation, sd · √(g/n).
pub fn mean_of_series(series: &[f64]) -> Result<Estimate> {
    let inefficiency = statistical_inefficiency(series)?;
    let value = series.iter().sum::<f64>() / series.len() as f64;
    Ok(Estimate { value, standard_error: error_of_mean(series) * inefficiency.sqrt() })
}

/// Blocks of [`mean_of_blocks`].
const BLOCKS: usize = 40;

/// As [`mean_of_series`], for dynamics that is not reversible, such as that of a Nosé–Hoover thermostat, whose energies
/// oscillate: the error is that of the means of 40 blocks, their variance times 1 + 2 max(0, ρ₁) for the correlation ρ₁
/// of neighbours. If ρ₁ is above two standard errors of it, 2/√40, or the series is short, it is that of
/// [`mean_of_series`].
pub fn mean_of_blocks(series: &[f64]) -> Result<Estimate> {
    let whole = mean_of_series(series)?;
    if series.len() < 2 * BLOCKS {
        return Ok(whole);
    }
    let means = block_means(series, BLOCKS)?;
    let centre = means.iter().sum::<f64>() / BLOCKS as f64;
    let covariance =
        |lag: usize| means[lag..].iter().zip(&means).map(|(a, b)| (a - centre) * (b - centre)).sum::<f64>();
    // equal means have no correlation
    let correlation = if covariance(0) > 0.0 { covariance(1) / covariance(0) } else { 0.0 };
    match correlation > 2.0 / (BLOCKS as f64).sqrt() {
        true => Ok(whole),
        false => {
            let standard_error = error_of_mean(&means) * (1.0 + 2.0 * correlation.max(0.0)).sqrt();
            Ok(Estimate { standard_error, ..whole })
        }
    }
}

/// Number of lags up to which autocovariances are summed directly; beyond, a Fourier transform of all lags is cheaper.
const SUMMED_LAGS: usize = 64;
/// Values of a series that an error estimate needs.
pub const FEWEST_VALUES: usize = 4;

/// Statistical inefficiency g = 1 + 2τ of a stationary series: correlated samples per independent one, at least 1.
///
/// Sums autocorrelations by Geyer's initial positive sequence ("Practical Markov chain Monte Carlo", 1992): pairs of
/// lags (2t, 2t + 1) are added while their sum is positive and made non-increasing, which holds for every reversible
/// chain. Covariances about the series' own mean are too small by the variance of that mean; for W lags this is
/// corrected by the factor 1 + (2W + 1)/n (Wolff, "Monte Carlo errors with less errors", 2004, eq. 49), without which
/// errors of short series come out too small.
///
/// Errors: fewer than 4 values, values that are not finite.
pub fn statistical_inefficiency(series: &[f64]) -> Result<f64> {
    let n = series.len();
    if n < FEWEST_VALUES || series.iter().any(|v| !v.is_finite()) {
        let finite = series.iter().filter(|v| v.is_finite()).count();
        return Err(Error::invalid(format!(
            "an error estimate needs at least {FEWEST_VALUES} values, all finite; found {n}, {finite} of them finite"
        )));
    }
    let mean = series.iter().sum::<f64>() / n as f64;
    let centred: Vec<f64> = series.iter().map(|v| v - mean).collect();
    let transformed = OnceCell::new();
    let covariance = |lag: usize| match lag < SUMMED_LAGS {
        true => centred[lag..].iter().zip(&centred).map(|(a, b)| a * b).sum::<f64>() / n as f64,
        false => transformed.get_or_init(|| fourier::autocovariances(&centred, n / 2 + 2))[lag],
    };
    let variance = covariance(0);
    if variance == 0.0 {
        return Ok(1.0);
    }
    let (mut sum, mut previous, mut lags) = (0.0, f64::INFINITY, 0);
    for t in 0..n / 4 {
        let pair = ((covariance(2 * t) + covariance(2 * t + 1)) / variance).min(previous);
        if pair <= 0.0 {
            break;
        }
        sum += pair;
        previous = pair;
        lags = 2 * t + 1;
    }
    Ok((2.0 * sum - 1.0).max(1.0) * (1.0 + (2 * lags + 1) as f64 / n as f64))
}

/// Standard error of a series' mean from the scatter of `blocks` block means; valid when blocks are much longer than
/// the correlation time. A remainder at the end is left out.
pub fn block_error(series: &[f64], blocks: usize) -> Result<f64> {
    Ok(error_of_mean(&block_means(series, blocks)?))
}

/// Means of equally long blocks; a remainder at the end is left out. Errors: fewer than 2 blocks, or empty ones.
fn block_means(series: &[f64], blocks: usize) -> Result<Vec<f64>> {
    let length = series.len() / blocks.max(1);
    if blocks < 2 || length == 0 {
        return Err(Error::invalid(format!(
            "{} values do not fill {blocks} blocks; use 2 or more blocks, with a value in each",
            series.len()
        )));
    }
    Ok(series.chunks_exact(length).take(blocks).map(|b| b.iter().sum::<f64>() / length as f64).collect())
}

/// Standard error of the mean of independent values.
fn error_of_mean(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

/// Targeted free-energy perturbation from samples of A (Jarzynski 2002): ΔF = F_B − F_A = −ln ⟨e^{−Φ}⟩_A with
/// Φ = u_B(f(x)) − u_A(x) − ln|det ∂f/∂x|. Φ = +∞ is allowed (weight zero).
pub fn perturbation_forward(work: &[f64]) -> Result<Estimate> {
    let negated: Vec<f64> = work.iter().map(|w| -w).collect();
    let log_mean = weights::log_normaliser(&negated)?;
    Ok(Estimate { value: -log_mean.value, ..log_mean })
}

/// Targeted free-energy perturbation from samples of B: ΔF = F_B − F_A = +ln ⟨e^{−Φ}⟩_B with
/// Φ = u_A(f⁻¹(x)) − u_B(x) − ln|det ∂f⁻¹/∂x|.
pub fn perturbation_reverse(work: &[f64]) -> Result<Estimate> {
    let negated: Vec<f64> = work.iter().map(|w| -w).collect();
    weights::log_normaliser(&negated)
}

/// Bennett acceptance ratio (Bennett 1976): ΔF = F_B − F_A from forward work of samples of A and reverse work of
/// samples of B, as the root of Σ_F 1/(1 + e^{M + w_F − ΔF}) = Σ_R 1/(1 + e^{−M + w_R + ΔF}), M = ln(n_F/n_R).
///
/// The equation is solved in logarithms, ln Σ_F − ln Σ_R = 0: this difference increases strictly with ΔF, does not
/// underflow when the ensembles hardly overlap, and treats both signs of ΔF alike. Newton steps that leave the bracket
/// become bisections. The error is Bennett's asymptotic one; NaN at poor overlap, where either sum of Fermi functions f
/// has fewer than [`weights::FEWEST_FOR_ERRORS`] effective terms, (Σf)²/Σf². Infinite work (+∞) is allowed.
///
/// Errors: NaN or −∞, no finite work in one direction, no finite root.
pub fn bar(forward: &[f64], reverse: &[f64]) -> Result<Estimate> {
    let delta = root_of_bar(forward, reverse)?;
    Ok(estimate_of_bar(forward, reverse, delta, 1.0))
}

/// [`bar`] with reverse work from one correlated time series, in time order: its part of the error is scaled by the
/// statistical inefficiency of its terms in the equation. Needs at least 4 values.
pub fn bar_with_series(forward: &[f64], reverse: &[f64]) -> Result<Estimate> {
    let delta = root_of_bar(forward, reverse)?;
    let m = log_ratio(forward, reverse);
    let summed: Vec<f64> = reverse.iter().map(|&w| log_fermi(w, m - delta)).collect();
    let max = summed.iter().fold(f64::NEG_INFINITY, |max, &l| max.max(l));
    let inefficiency = statistical_inefficiency(&summed.iter().map(|l| (l - max).exp()).collect::<Vec<f64>>())?;
    Ok(estimate_of_bar(forward, reverse, delta, inefficiency))
}

/// The root `delta` with its error; `inefficiency`: correlated reverse values per independent one.
fn estimate_of_bar(forward: &[f64], reverse: &[f64], delta: f64, inefficiency: f64) -> Estimate {
    let m = log_ratio(forward, reverse);
    let [of_forward, of_reverse] = [effective_terms(forward, delta - m), effective_terms(reverse, m - delta)];
    // relative variance of the mean of f, for independent samples
    let relative = |effective: f64, work: &[f64]| (1.0 / effective - 1.0 / work.len() as f64).max(0.0);
    let variance = relative(of_forward, forward) + inefficiency * relative(of_reverse, reverse);
    Estimate { value: delta, standard_error: weights::standard_error_of(of_forward.min(of_reverse), variance) }
}

/// M = ln(n_F/n_R)
fn log_ratio(forward: &[f64], reverse: &[f64]) -> f64 {
    (forward.len() as f64 / reverse.len() as f64).ln()
}

/// Effective number of terms (Σf)²/Σf² of the sum of f_i = 1/(1 + e^{w_i − s}).
fn effective_terms(work: &[f64], s: f64) -> f64 {
    let (_, _, ratio) = log_fermi_sum(work, s);
    1.0 / ratio
}

fn root_of_bar(forward: &[f64], reverse: &[f64]) -> Result<f64> {
    for (name, work) in [("forward", forward), ("reverse", reverse)] {
        if work.iter().any(|w| w.is_nan() || *w == f64::NEG_INFINITY) || !work.iter().any(|w| w.is_finite()) {
            return Err(Error::invalid(format!(
                "BAR requires {name} work values without NaN or -inf, at least one of them finite"
            )));
        }
    }
    let m = log_ratio(forward, reverse);
    let equation = |df: f64| {
        let (log_f, slope_f, _) = log_fermi_sum(forward, df - m);
        let (log_r, slope_r, _) = log_fermi_sum(reverse, m - df);
        (log_f - log_r, slope_f + slope_r)
    };
    increasing_root(equation, perturbation_forward(forward)?.value)
}

/// ln 1/(1 + e^{w − s}) without overflow: with t = w − s, −max(t, 0) − ln(1 + e^{−|t|}).
fn log_fermi(w: f64, s: f64) -> f64 {
    let t = w - s;
    if t == f64::INFINITY {
        return f64::NEG_INFINITY;
    }
    -t.max(0.0) - (-t.abs()).exp().ln_1p()
}

/// For f_i = 1/(1 + e^{w_i − s}): ln Σ f, d/ds ln Σ f, and Σf²/(Σf)².
fn log_fermi_sum(work: &[f64], s: f64) -> (f64, f64, f64) {
    let max = work.iter().map(|&w| log_fermi(w, s)).fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut weighted, mut squares) = (0.0, 0.0, 0.0);
    for &w in work {
        let scaled = (log_fermi(w, s) - max).exp();
        sum += scaled;
        squares += scaled * scaled;
        // 1 − f = 1/(1 + e^{s − w}) is d ln f / ds.
        weighted += scaled / (1.0 + (s - w).exp());
    }
    (max + sum.ln(), weighted / sum, squares / (sum * sum))
}

/// Root of a strictly increasing function given with its slope, by Newton steps within a bracket.
fn increasing_root(f: impl Fn(f64) -> (f64, f64), start: f64) -> Result<f64> {
    let (mut low, mut high) = (start, start);
    let mut width = 1.0;
    while f(low).0 > 0.0 {
        low -= width;
        width *= 2.0;
    }
    width = 1.0;
    while f(high).0 < 0.0 {
        high += width;
        width *= 2.0;
    }
    if !(low.is_finite() && high.is_finite()) {
        return Err(Error::invalid("BAR found no finite root: the work values are too large"));
    }
    let mut x = 0.5 * (low + high);
    for _ in 0..200 {
        let (value, slope) = f(x);
        if value == 0.0 {
            return Ok(x);
        }
        if value < 0.0 {
            low = x;
        } else {
            high = x;
        }
        let newton = x - value / slope;
        let next = if newton > low && newton < high { newton } else { 0.5 * (low + high) };
        if (next - x).abs() <= 2.0 * f64::EPSILON * x.abs().max(1.0) {
            return Ok(next);
        }
        x = next;
    }
    Ok(x)
}

#[cfg(test)]
#[path = "free_energy_tests.rs"]
mod tests;
