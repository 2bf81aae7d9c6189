//! **Weights**: importance log-weights log w = −u − log q and statistics computed from them.
//!
//! A weight of zero is a log-weight of −∞: the sample lies where e^{−u} vanishes. NaN and +∞ are refused, because no
//! average over them is meaningful. Samples are taken to be independent; for time series see [`crate::free_energy`].

pub mod on_device;

use crate::density::Evaluation;
use crate::error::{Error, Result};
use crate::rng::Stream;
use std::collections::BTreeMap;

/// Minimum effective sample size for an error estimate. With less, weights do not reveal their own variance: the
/// estimated error would be near zero however wrong the average is, so none is given.
pub const FEWEST_FOR_ERRORS: usize = 5;

/// A value and its standard error. With importance weights the error is NaN below [`FEWEST_FOR_ERRORS`] effective
/// samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub standard_error: f64,
}

/// log w = −u − log q of samples of the density.
///
/// A sample that the model itself could not place (status other than `Inside`), or whose u is NaN or infinite, has
/// weight zero. Errors: the slices have different lengths.
pub fn log_weights(reduced_potential: &[f64], log_density: &[Evaluation]) -> Result<Vec<f64>> {
    if reduced_potential.len() != log_density.len() {
        return Err(Error::invalid(format!(
            "{} reduced potentials do not match {} log-densities: use one of each per sample",
            reduced_potential.len(),
            log_density.len()
        )));
    }
    Ok(reduced_potential.iter().zip(log_density).map(|(&u, q)| log_weight(u, q)).collect())
}

/// log w = −u − log q of one sample drawn from the density; −∞ if it is unusable.
pub fn log_weight(reduced_potential: f64, log_density: &Evaluation) -> f64 {
    if log_density.is_inside() && reduced_potential.is_finite() {
        -reduced_potential - log_density.log_density
    } else {
        f64::NEG_INFINITY
    }
}

/// ln Σ exp(v), −∞ for an empty slice.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() {
        return max;
    }
    max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// Weights that sum to one. Errors: a NaN or +∞, no weight above zero.
pub fn normalised(log_weights: &[f64]) -> Result<Vec<f64>> {
    check(log_weights)?;
    let total = log_sum_exp(log_weights);
    Ok(log_weights.iter().map(|w| (w - total).exp()).collect())
}

/// Standard error of an average with these normalised weights, given its variance; NaN if the effective sample size is
/// too small.
pub(crate) fn standard_error(weights: &[f64], variance: f64) -> f64 {
    standard_error_of(1.0 / weights.iter().map(|w| w * w).sum::<f64>(), variance)
}

/// As [`standard_error`], given the effective sample size.
pub(crate) fn standard_error_of(effective: f64, variance: f64) -> f64 {
    // equal weights count in full, whatever their rounding
    match effective < FEWEST_FOR_ERRORS as f64 - 1e-9 {
        true => f64::NAN,
        false => variance.sqrt(),
    }
}

fn check(log_weights: &[f64]) -> Result<()> {
    if let Some(i) = log_weights.iter().position(|w| w.is_nan() || *w == f64::INFINITY) {
        return Err(Error::invalid(format!(
            "log-weight {i} is {}: weights require a finite reduced potential and log-density",
            log_weights[i]
        )));
    }
    if log_weights.iter().all(|w| *w == f64::NEG_INFINITY) {
        return Err(Error::invalid(format!(
            "all {} weights are zero: no sample has both a density and a finite energy",
            log_weights.len()
        )));
    }
    Ok(())
}

/// Effective sample size (Σw)²/Σw², between 1 and n (Kish 1965). Raw: nothing is clipped or smoothed.
pub fn effective_sample_size(log_weights: &[f64]) -> Result<f64> {
    check(log_weights)?;
    let doubled: Vec<f64> = log_weights.iter().map(|w| 2.0 * w).collect();
    Ok((2.0 * log_sum_exp(log_weights) - log_sum_exp(&doubled)).exp())
}

/// Effective number of independent samples among particles duplicated by resampling: 1/Σ share² over [`families`].
pub fn effective_families(log_weights: &[f64], ancestors: &[usize]) -> f64 {
    1.0 / families(log_weights, ancestors).iter().map(|share| share * share).sum::<f64>()
}

/// Share of the total weight of each family, the particles that descend from one ancestor; families without weight are
/// left out.
pub fn families(log_weights: &[f64], ancestors: &[usize]) -> Vec<f64> {
    let total = log_sum_exp(log_weights);
    let mut shares = BTreeMap::new();
    for (of, w) in ancestors.iter().zip(log_weights) {
        *shares.entry(of).or_insert(0.0) += (w - total).exp();
    }
    shares.into_values().filter(|&share| share > 0.0).collect()
}

/// Mean acceptance rate of independence proposals in equilibrium: E over x ~ π, y ~ q of min(1, w(y)/w(x)) = E min(w,
/// w′)/E w, both estimated from the weighted samples and pairs of them; NaN for a single one. Delta-method error: the
/// influence of sample l is (2 E min(w, wₗ) − 2 E min(w, w′))/E w − A (wₗ − E w)/E w. Zero where no weight is positive.
pub fn acceptance(log_weights: &[f64]) -> Estimate {
    let n = log_weights.len() as f64;
    let largest = log_weights.iter().copied().filter(|w| w.is_finite()).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return Estimate { value: 0.0, standard_error: f64::NAN };
    }
    let mut w: Vec<f64> = log_weights.iter().map(|w| if w.is_finite() { (w - largest).exp() } else { 0.0 }).collect();
    w.sort_by(f64::total_cmp);
    let mean = w.iter().sum::<f64>() / n;
    // mean over l of min(w, w_l): weights below w in order contribute themselves, the rest w
    let mut below = 0.0;
    let minima: Vec<f64> = w
        .iter()
        .enumerate()
        .map(|(rank, w)| {
            let minimum = (below + w * (n - rank as f64)) / n;
            below += w;
            minimum
        })
        .collect();
    let value = minima.iter().sum::<f64>() / n / mean;
    let influence = |(w, minimum): (&f64, &f64)| (2.0 * minimum - value * mean - value * w) / mean;
    let variance = w.iter().zip(&minima).map(|each| influence(each).powi(2)).sum::<f64>() / (n * n);
    w.iter_mut().for_each(|w| *w /= n * mean);
    // without the pairs of a sample and itself, each of which is accepted
    let value = (n * value - 1.0) / (n - 1.0);
    Estimate { value, standard_error: standard_error(&w, variance) }
}

/// ln(√n ⟨w⟩), the cap on log-weights in truncated importance sampling (Ionides, J. Comput. Graph. Stat. 17, 295
/// (2008)).
pub fn truncation_limit(log_weights: &[f64]) -> f64 {
    log_sum_exp(log_weights) - 0.5 * (log_weights.len() as f64).ln()
}

/// How importance weights are modified before averages are taken.
///
/// Each of the three rules that change weights trades variance for a bias that no error bar shows; the raw effective
/// sample size and k̂ are what measures the generator, whatever the rule.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Unmodified.
    Raw,
    /// w ← min(w, √n ⟨w⟩): truncated importance sampling (Ionides, J. Comput. Graph. Stat. 17, 295 (2008)). Every
    /// sample stays; the bias vanishes as n grows.
    Truncated,
    /// The largest weights are replaced by order statistics of a fitted tail, see [`pareto_smoothed`].
    Smoothed,
    /// Samples whose log-weight is above its (1 − share) quantile are **deleted**, as in published evaluations of
    /// generators (Tan et al., Sequential Boltzmann Generators, 2025; share 0.002). The bias does not vanish as n
    /// grows: what the generator undersamples is undersampled further. The effective sample size of the remainder says
    /// nothing about the generator.
    QuantileClipped { share: f64 },
}

impl Rule {
    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Raw => "raw",
            Rule::Truncated => "truncated",
            Rule::Smoothed => "smoothed",
            Rule::QuantileClipped { .. } => "quantile_clipped",
        }
    }

    /// Applies the rule: returns the log-weights in their order and the number of them changed; a deleted sample has
    /// −∞.
    ///
    /// Errors: no weight above zero, NaN or +∞, a share outside \[0, 1) or so large that no weight remains.
    pub fn apply(self, log_weights: &[f64]) -> Result<(Vec<f64>, usize)> {
        check(log_weights)?;
        let n = log_weights.len() as f64;
        let ruled = match self {
            Rule::Raw => log_weights.to_vec(),
            Rule::Truncated => {
                let most = truncation_limit(log_weights);
                log_weights.iter().map(|w| w.min(most)).collect()
            }
            Rule::Smoothed => pareto_smoothed(log_weights)?.0,
            Rule::QuantileClipped { share } if (0.0..1.0).contains(&share) => {
                let most = quantile(log_weights, 1.0 - share);
                if most == f64::NEG_INFINITY {
                    let positive = log_weights.iter().filter(|w| w.is_finite()).count();
                    return Err(Error::invalid(format!(
                        "deleting a share of {share} of {n} samples leaves none with nonzero weight (only {positive} \
                         have one): use a smaller share or another rule"
                    )));
                }
                log_weights.iter().map(|&w| if w > most { f64::NEG_INFINITY } else { w }).collect()
            }
            Rule::QuantileClipped { share } => {
                return Err(Error::invalid(format!(
                    "the share of samples to delete must be at least 0 and less than 1, not {share}"
                )))
            }
        };
        check(&ruled)?;
        let changed = ruled.iter().zip(log_weights).filter(|(a, b)| a != b).count();
        Ok((ruled, changed))
    }
}

/// Quantile q of at least one value, with linear interpolation between order statistics. Values may be −∞; between −∞
/// and a finite value the quantile is −∞.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    // the difference of two infinities is no number, and neither is −∞ + ∞
    if low == high || low == f64::NEG_INFINITY {
        low
    } else {
        low + place.fract() * (high - low)
    }
}

/// ln Z of the target relative to the density, ln (1/n) Σ w, with the delta-method error sd(w)/(√n mean(w)).
///
/// Errors: those of [`effective_sample_size`].
pub fn log_normaliser(log_weights: &[f64]) -> Result<Estimate> {
    let n = log_weights.len() as f64;
    let ess = effective_sample_size(log_weights)?;
    let value = log_sum_exp(log_weights) - n.ln();
    // n/ess = mean(w²)/mean(w)², so n/ess − 1 is the squared coefficient of variation.
    let variance = ((n / ess - 1.0) / (n - 1.0)).max(0.0);
    Ok(Estimate { value, standard_error: standard_error(&normalised(log_weights)?, variance) })
}

/// Self-normalised importance-sampling mean Σ w a / Σ w of `a[n]` with the delta-method error (Σ W²(a − mean)²)^½, W
/// the normalised weights (Owen, "Monte Carlo theory, methods and examples", eq. 9.8).
///
/// Errors: other lengths, a NaN or +∞ weight, no weight above zero.
pub fn mean(log_weights: &[f64], a: &[f64]) -> Result<Estimate> {
    same_length(log_weights, a)?;
    let weights = normalised(log_weights)?;
    let value: f64 = weights.iter().zip(a).map(|(w, a)| if *w > 0.0 { w * a } else { 0.0 }).sum();
    let variance: f64 = weights.iter().zip(a).filter(|(w, _)| **w > 0.0).map(|(w, a)| (w * (a - value)).powi(2)).sum();
    Ok(Estimate { value, standard_error: standard_error(&weights, variance) })
}

/// [`mean`] with a bootstrap error: the standard deviation of the mean over `replicates` resamplings of the n pairs (w,
/// a), drawn from `stream`. Errors: also fewer than two replicates.
pub fn mean_bootstrap(log_weights: &[f64], a: &[f64], replicates: usize, stream: &mut Stream) -> Result<Estimate> {
    let value = mean(log_weights, a)?.value;
    let weights = normalised(log_weights)?;
    let scatter = bootstrap(weights.len(), replicates, stream, |rows| {
        let (mut top, mut bottom) = (0.0, 0.0);
        for &i in rows.iter().filter(|&&i| weights[i] > 0.0) {
            top += weights[i] * a[i];
            bottom += weights[i];
        }
        top / bottom
    })?;
    Ok(Estimate { value, standard_error: standard_error(&weights, scatter * scatter) })
}

/// Standard deviation of `statistic` over resamplings with replacement of the rows 0..n. Resamplings on which the
/// statistic is not finite (all weights drawn are zero) are redrawn, at most `replicates` times in all.
///
/// Errors: no rows, fewer than two replicates or finite values.
pub fn bootstrap(
    n: usize,
    replicates: usize,
    stream: &mut Stream,
    mut statistic: impl FnMut(&[usize]) -> f64,
) -> Result<f64> {
    if replicates < 2 || n == 0 {
        return Err(Error::invalid("a bootstrap error requires samples and at least 2 replicates".to_string()));
    }
    let mut rows = vec![0; n];
    let mut values = Vec::with_capacity(replicates);
    for _ in 0..2 * replicates {
        rows.iter_mut().for_each(|row| *row = stream.below(n));
        let value = statistic(&rows);
        if value.is_finite() {
            values.push(value);
        }
        if values.len() == replicates {
            break;
        }
    }
    if values.len() < 2 {
        return Err(Error::invalid("the statistic is finite on fewer than 2 bootstrap samples".to_string()));
    }
    let count = values.len() as f64;
    let centre = values.iter().sum::<f64>() / count;
    Ok((values.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / (count - 1.0)).sqrt())
}

fn same_length(log_weights: &[f64], a: &[f64]) -> Result<()> {
    if log_weights.len() != a.len() {
        return Err(Error::invalid(format!(
            "{} log-weights do not match {} values: use one of each per sample",
            log_weights.len(),
            a.len()
        )));
    }
    Ok(())
}

/// KL divergence of the distribution represented by `log_weights` of some samples from that of `other` weights of the
/// same samples, Σ W ln(W/W′) with normalised weights; constants in either cancel. Infinite if a sample with weight has
/// none in `other`. Delta-method error: the influence of a sample is W (ln(W/W′) − KL) + W′ − W.
pub fn divergence(log_weights: &[f64], other: &[f64]) -> Result<Estimate> {
    same_length(log_weights, other)?;
    let (w, v) = (normalised(log_weights)?, normalised(other)?);
    let ratio = |w: f64, v: f64| if w > 0.0 { w * (w / v).ln() } else { 0.0 };
    let value: f64 = w.iter().zip(&v).map(|(&w, &v)| ratio(w, v)).sum();
    let variance: f64 = w.iter().zip(&v).map(|(&w, &v)| (ratio(w, v) - w * value + v - w).powi(2)).sum();
    // NaN if either effective sample size is too small
    Ok(Estimate { value, standard_error: standard_error(&w, standard_error(&v, variance).powi(2)) })
}

/// How [`resample`] uses uniform numbers. All three satisfy E\[copies of i\] = n Wᵢ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// One uniform number shifts the whole comb; least variance in practice.
    Systematic,
    /// One uniform number in each of n strata.
    Stratified,
    /// n independent draws.
    Multinomial,
}

/// Indices of `n` samples drawn in proportion to their weights, in increasing order (Douc & Cappé 2005).
///
/// Errors: those of [`normalised`].
pub fn resample(log_weights: &[f64], n: usize, method: Resampling, stream: &mut Stream) -> Result<Vec<usize>> {
    let weights = normalised(log_weights)?;
    let mut points: Vec<f64> = match method {
        Resampling::Systematic => {
            let shift = stream.uniform();
            (0..n).map(|i| (i as f64 + shift) / n as f64).collect()
        }
        Resampling::Stratified => (0..n).map(|i| (i as f64 + stream.uniform()) / n as f64).collect(),
        Resampling::Multinomial => (0..n).map(|_| stream.uniform()).collect(),
    };
    points.sort_by(f64::total_cmp);
    Ok(select(&weights, &points))
}

/// For each point of [0, 1], in increasing order, the row whose share of the normalised weights contains it.
pub fn select(weights: &[f64], points: &[f64]) -> Vec<usize> {
    // The cumulative sum may end at 1 − ε: the last sample of positive weight then takes the remaining points.
    let last = weights.iter().rposition(|w| *w > 0.0).unwrap_or(0);
    let (mut index, mut cumulative) = (0, weights[0]);
    let pick = |&point: &f64| {
        while point >= cumulative && index < last {
            index += 1;
            cumulative += weights[index];
        }
        index
    };
    points.iter().map(pick).collect()
}

/// Pareto k̂ of the largest weights: the shape of a generalised Pareto distribution fitted to the upper tail (Vehtari,
/// Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling", 2024). Below 0.5 averages converge as usual,
/// above 0.7 they cannot be trusted.
///
/// The tail is what lies above a cut-off. Returns +∞, the worst case, if it has fewer than five weights or most of it
/// is negligible beside the largest. Returns −∞, the best, if fewer than five weights exceed the cut-off by more than
/// rounding and none by more than a factor of two, as for a perfect generator: equal weights have no tail.
pub fn pareto_k(log_weights: &[f64]) -> Result<f64> {
    check(log_weights)?;
    Ok(tail_fit(log_weights).map_or_else(|k| k, |tail| tail.shape))
}

/// Log-weights whose upper tail is replaced by the expected order statistics of the fitted Pareto tail, capped at the
/// largest raw weight; and k̂. Samples keep their order. Without a fit the weights are returned unchanged.
pub fn pareto_smoothed(log_weights: &[f64]) -> Result<(Vec<f64>, f64)> {
    check(log_weights)?;
    let mut smoothed = log_weights.to_vec();
    let tail = match tail_fit(log_weights) {
        Ok(tail) => tail,
        Err(k) => return Ok((smoothed, k)),
    };
    let size = tail.rows.len() as f64;
    for (rank, &row) in tail.rows.iter().enumerate() {
        let p = (rank as f64 + 0.5) / size;
        let excess = if tail.shape.abs() < 1e-12 {
            -tail.scale * (-p).ln_1p()
        } else {
            tail.scale * (-tail.shape * (-p).ln_1p()).exp_m1() / tail.shape
        };
        smoothed[row] = tail.max + (tail.cutoff + excess).ln().min(0.0);
    }
    Ok((smoothed, tail.shape))
}

/// Tolerance, relative or absolute, below which log-weights count as equal.
const EQUAL: f64 = 1e-12;

/// Fitted tail of w/max w above `cutoff`; `rows` in increasing order of weight.
struct Tail {
    rows: Vec<usize>,
    max: f64,
    cutoff: f64,
    shape: f64,
    scale: f64,
}

/// Fits the tail; if there is no fit, the error is k̂ itself, as [`pareto_k`] defines it.
fn tail_fit(log_weights: &[f64]) -> std::result::Result<Tail, f64> {
    let n = log_weights.len();
    let size = (0.2 * n as f64).min(3.0 * (n as f64).sqrt()).ceil() as usize;
    if size < 5 || size >= n {
        return Err(f64::INFINITY);
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| log_weights[i].total_cmp(&log_weights[j]));
    let (max, lowest) = (log_weights[order[n - 1]], log_weights[order[n - size - 1]]);
    let cutoff = (lowest - max).exp();
    let mut rows = order.split_off(n - size);
    // samples without weight stay without
    rows.retain(|&i| log_weights[i].is_finite());
    if rows.len() < 5 {
        return Err(f64::INFINITY);
    }
    // weights equal to the cut-off are not part of the tail; where the cut-off is negligible beside the largest weight,
    // they have collapsed
    if cutoff > 0.0 {
        rows.retain(|&i| log_weights[i] - lowest > EQUAL * max.abs().max(1.0));
        if rows.len() < 5 {
            return Err(if cutoff >= 0.5 { f64::NEG_INFINITY } else { f64::INFINITY });
        }
    }
    let excesses: Vec<f64> = rows.iter().map(|&i| (log_weights[i] - max).exp() - cutoff).collect();
    let (shape, scale) = generalized_pareto(&excesses).ok_or(f64::INFINITY)?;
    // The weakly informative prior of Vehtari et al., appendix: ten observations at k = 0.5.
    let shape = (rows.len() as f64 * shape + 5.0) / (rows.len() as f64 + 10.0);
    Ok(Tail { rows, max, cutoff, shape, scale })
}

/// Shape and scale of a generalised Pareto distribution from increasing excesses, by the empirical-Bayes estimate of
/// Zhang & Stephens, "A new and efficient estimation method for the generalized Pareto distribution", Technometrics 51
/// (2009). Positive shape: heavy tail. None if the excesses are degenerate.
pub fn generalized_pareto(excesses: &[f64]) -> Option<(f64, f64)> {
    let n = excesses.len();
    let quartile = *excesses.get((n as f64 / 4.0 + 0.5).floor() as usize - 1)?;
    let largest = *excesses.last()?;
    if !(quartile > 0.0 && largest.is_finite()) {
        return None;
    }
    let shape_at = |b: f64| excesses.iter().map(|x| (-b * x).ln_1p()).sum::<f64>() / n as f64;
    let grid = 30 + (n as f64).sqrt() as usize;
    let candidates: Vec<f64> = (1..=grid)
        .map(|j| 1.0 / largest + (1.0 - (grid as f64 / (j as f64 - 0.5)).sqrt()) / (3.0 * quartile))
        .collect();
    let log_likelihood: Vec<f64> = candidates
        .iter()
        .map(|&b| {
            let k = shape_at(b);
            n as f64 * ((-b / k).ln() - k - 1.0)
        })
        .map(|l| if l.is_nan() { f64::NEG_INFINITY } else { l })
        .collect();
    let total = log_sum_exp(&log_likelihood);
    let b: f64 = candidates.iter().zip(&log_likelihood).map(|(b, l)| b * (l - total).exp()).sum();
    let shape = shape_at(b);
    (shape.is_finite() && b != 0.0).then(|| (shape, -shape / b))
}

#[cfg(test)]
#[path = "weights_tests.rs"]
mod tests;
