//! Statistics of a move: counts by fate, and the latest log-weights of its proposals.

use super::{Fate, Outcome};
use crate::density::Exactness;
use crate::weights::{self, Estimate};

/// Log-weights kept; older ones are overwritten.
const LOG_CAPACITY: usize = 1 << 16;

/// Counts of attempts by fate, running sums over all proposals' weights, and the latest log-weights.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Statistics {
    /// Exactness of the log q that decides acceptances.
    likelihood: Exactness,
    counts: [u64; 8],
    weights: Weights,
    /// Acceptance probabilities of the attempts.
    probability: Series,
    stages: Stages,
}

/// Weights of proposals.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Weights {
    proposals: u64,
    usable: u64,
    sum_log_weight: f64,
    /// Σ w/e^m and Σ (w/e^m)², where m = `largest` is the largest log-weight so far.
    largest: f64,
    sum: f64,
    sum_squares: f64,
    latest: Ring,
}

impl Weights {
    fn new(latest: Ring) -> Weights {
        let largest = f64::NEG_INFINITY;
        Weights { proposals: 0, usable: 0, sum_log_weight: 0.0, largest, sum: 0.0, sum_squares: 0.0, latest }
    }

    fn push(&mut self, log_weight: f64) {
        self.proposals += 1;
        self.latest.push(log_weight);
        if !log_weight.is_finite() {
            return;
        }
        self.usable += 1;
        self.sum_log_weight += log_weight;
        if log_weight > self.largest {
            let shrink = (self.largest - log_weight).exp();
            self.sum *= shrink;
            self.sum_squares *= shrink * shrink;
            self.largest = log_weight;
        }
        let weight = (log_weight - self.largest).exp();
        self.sum += weight;
        self.sum_squares += weight * weight;
    }
}

/// Number, mean and sum of squared deviations of the values pushed (Welford).
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Running {
    n: u64,
    mean: f64,
    deviations: f64,
}

impl Running {
    fn push(&mut self, value: f64) {
        self.n += 1;
        let deviation = value - self.mean;
        self.mean += deviation / self.n as f64;
        self.deviations += deviation * (value - self.mean);
    }

    /// Sample variance; NaN for fewer than two values.
    fn variance(&self) -> f64 {
        match self.n {
            0 | 1 => f64::NAN,
            n => self.deviations / (n - 1) as f64,
        }
    }
}

/// Blocks in which a [`Series`] has its error, when their length doubles; twice as many just before.
const BLOCKS: usize = 32;

/// Mean of values in the order of time, with a standard error by blocks that grow with the series: 32 to 63 blocks,
/// once there are that many values. It is right if correlations last for less than a block.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Series {
    n: u64,
    /// Values per block, a power of two.
    length: u64,
    /// Sums of the full blocks, and of the one that is being filled.
    blocks: Vec<f64>,
    open: f64,
}

impl Series {
    /// All its memory is allocated here.
    fn new() -> Series {
        Series { n: 0, length: 1, blocks: Vec::with_capacity(2 * BLOCKS), open: 0.0 }
    }

    fn push(&mut self, value: f64) {
        self.n += 1;
        self.open += value;
        if self.n % self.length != 0 {
            return;
        }
        self.blocks.push(std::mem::take(&mut self.open));
        if self.blocks.len() == 2 * BLOCKS {
            (0..BLOCKS).for_each(|k| self.blocks[k] = self.blocks[2 * k] + self.blocks[2 * k + 1]);
            self.blocks.truncate(BLOCKS);
            self.length *= 2;
        }
    }

    /// NaN without a value; the error is NaN for fewer than two.
    fn mean(&self) -> Estimate {
        let mut means = Running::default();
        self.blocks.iter().for_each(|sum| means.push(sum / self.length as f64));
        let standard_error = (means.variance() / self.blocks.len() as f64).sqrt();
        let sum = self.blocks.iter().sum::<f64>() + self.open;
        Estimate { value: sum / self.n as f64, standard_error }
    }
}

/// Counts of the two stages of delayed acceptance.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Stages {
    passed: u64,
    exact_evaluations: u64,
    /// Finite values of ln c(x′)/c(x).
    correction: Running,
}

impl Default for Statistics {
    fn default() -> Statistics {
        Statistics::of(Exactness::Exact)
    }
}

impl Statistics {
    /// Empty statistics of a move whose acceptances are decided by a log q of this exactness.
    pub(super) fn of(likelihood: Exactness) -> Statistics {
        Statistics::empty(likelihood, Ring::new())
    }

    /// Exactness of the log q that decides acceptances. With `Surrogate` the move is biased, and so is everything
    /// computed from its chain; reports say so.
    pub fn likelihood(&self) -> Exactness {
        self.likelihood
    }

    /// Number of attempts with this fate.
    pub fn count(&self, fate: Fate) -> u64 {
        self.counts[fate as usize]
    }

    /// Number of attempts: the sum of the eight counters.
    pub fn attempts(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Fraction of attempts accepted; 0 before the first.
    pub fn acceptance(&self) -> f64 {
        self.count(Fate::Accepted) as f64 / self.attempts().max(1) as f64
    }

    /// Mean acceptance probability over all attempts ([`Outcome::probability`]) with its standard error: an estimate of
    /// the acceptance rate, available long before the first acceptance where that is rare. The error is that of 32 or
    /// more blocks of successive attempts, from which the current configuration may hardly have changed. While a few
    /// attempts dominate the mean, the true rate may exceed it by more than the error says. The mean is NaN before the
    /// first attempt, the error before the second.
    pub fn expected_acceptance(&self) -> Estimate {
        self.probability.mean()
    }

    /// Number of proposals whose weight was recorded, usable or not.
    pub fn proposals(&self) -> u64 {
        self.weights.proposals
    }

    /// Mean log-weight of the usable proposals; NaN before the first.
    pub fn mean_log_weight(&self) -> f64 {
        self.weights.sum_log_weight / self.weights.usable as f64
    }

    /// Effective sample size as a fraction, (Σw)²/(n Σw²), over all n proposals, unusable ones with weight zero; NaN
    /// before the first usable one.
    pub fn effective_fraction(&self) -> f64 {
        let Weights { proposals, sum, sum_squares, .. } = self.weights;
        sum * sum / (proposals as f64 * sum_squares)
    }

    /// Latest log-weights of proposals, oldest first; −∞ for an unusable proposal.
    pub fn log_weights(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.weights.latest.iter()
    }

    /// Pareto k of the latest log-weights ([`weights::pareto_k`]); NaN before the first usable one.
    pub fn pareto_k(&self) -> f64 {
        weights::pareto_k(&self.log_weights().collect::<Vec<f64>>()).unwrap_or(f64::NAN)
    }

    /// Number of delayed-acceptance attempts that passed the screen to the exact stage: divided by all attempts, the
    /// acceptance rate of stage 1.
    pub fn screened(&self) -> u64 {
        self.stages.passed
    }

    /// Acceptance rate of stage 2: accepted attempts over those that passed the screen; NaN before the first such
    /// attempt.
    pub fn second_stage_acceptance(&self) -> f64 {
        match self.stages.passed {
            0 => f64::NAN,
            passed => self.count(Fate::Accepted) as f64 / passed as f64,
        }
    }

    /// Number of exact log-densities evaluated in the second stage of delayed acceptance.
    pub fn exact_evaluations(&self) -> u64 {
        self.stages.exact_evaluations
    }

    /// Variance of ln c(x′)/c(x), c = q_screen/q, over attempts that reached the second stage: a measure of how far the
    /// screen is from the generator. NaN before the second such attempt.
    pub fn correction_variance(&self) -> f64 {
        self.stages.correction.variance()
    }

    /// Clears all counts; keeps the likelihood's exactness and the log's memory.
    pub fn reset(&mut self) {
        let mut latest = std::mem::take(&mut self.weights.latest);
        latest.clear();
        *self = Statistics::empty(self.likelihood, latest);
    }

    fn empty(likelihood: Exactness, latest: Ring) -> Statistics {
        Statistics {
            likelihood,
            counts: [0; 8],
            weights: Weights::new(latest),
            probability: Series::new(),
            stages: Stages::default(),
        }
    }

    /// Records the log-weight of one proposal.
    pub(super) fn record_weight(&mut self, log_weight: f64) {
        self.weights.push(log_weight);
    }

    /// Takes the counts of `other`, whose weights belong to another target, and gives it its own.
    pub(super) fn exchange_counts(&mut self, other: &mut Statistics) {
        std::mem::swap(self, other);
        std::mem::swap(&mut self.weights, &mut other.weights);
    }

    /// Records that an attempt reached the second stage of delayed acceptance, with its ln c(x′)/c(x).
    pub(super) fn record_correction(&mut self, exact_evaluations: u64, log_ratio: f64) {
        let stages = &mut self.stages;
        stages.passed += 1;
        stages.exact_evaluations += exact_evaluations;
        if log_ratio.is_finite() {
            stages.correction.push(log_ratio);
        }
    }

    /// Counts one attempt.
    pub(super) fn record(&mut self, outcome: &Outcome) {
        self.record_chance(outcome.fate, outcome.probability);
    }

    /// Counts one attempt that consisted of a single Metropolis test.
    pub(super) fn record_test(&mut self, fate: Fate, log_acceptance: f64) {
        self.record_chance(fate, log_acceptance.min(0.0).exp());
    }

    /// Counts one attempt with this acceptance probability.
    fn record_chance(&mut self, fate: Fate, probability: f64) {
        self.counts[fate as usize] += 1;
        self.probability.push(probability);
    }
}

/// The last [`LOG_CAPACITY`] numbers pushed; memory is allocated once.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Ring {
    values: Vec<f64>,
    /// Index of the oldest value once the ring is full.
    next: usize,
}

impl Ring {
    fn new() -> Ring {
        Ring { values: Vec::with_capacity(LOG_CAPACITY), next: 0 }
    }

    fn clear(&mut self) {
        self.values.clear();
        self.next = 0;
    }

    fn push(&mut self, value: f64) {
        if self.values.len() < LOG_CAPACITY {
            self.values.push(value);
        } else {
            self.values[self.next] = value;
            self.next = (self.next + 1) % LOG_CAPACITY;
        }
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        let n = self.values.len();
        (0..n).map(move |i| self.values[(self.next + i) % n])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_sums_match_the_whole_sample() {
        let mut statistics = Statistics::default();
        let log_w: [f64; 6] = [-700.0, 3.0, f64::NEG_INFINITY, 5.0, 4.5, 700.0];
        for w in &log_w[..5] {
            statistics.record_weight(*w);
        }
        let expected = crate::weights::effective_sample_size(&log_w[..5]).unwrap() / 5.0;
        assert!((statistics.effective_fraction() - expected).abs() < 1e-12);
        assert!((statistics.mean_log_weight() - (-700.0 + 3.0 + 5.0 + 4.5) / 4.0).abs() < 1e-12);
        statistics.record_weight(log_w[5]);
        assert!((statistics.effective_fraction() - 1.0 / 6.0).abs() < 1e-12);
        statistics.reset();
        assert_eq!(statistics, Statistics::default());
    }

    #[test]
    fn the_correction_has_its_variance() {
        let mut statistics = Statistics::default();
        assert!(statistics.correction_variance().is_nan());
        for v in [1e3 + 1.0, 1e3 + 2.0, f64::NEG_INFINITY, 1e3 + 6.0] {
            statistics.record_correction(2, v);
        }
        assert!((statistics.correction_variance() - 7.0).abs() < 1e-9);
        assert_eq!((statistics.screened(), statistics.exact_evaluations()), (4, 8));
        assert_eq!(statistics.second_stage_acceptance(), 0.0);
        assert!(Statistics::default().second_stage_acceptance().is_nan());
    }

    #[test]
    fn the_acceptance_to_be_expected_is_known_before_the_first() {
        let mut statistics = Statistics::default();
        assert!(statistics.expected_acceptance().value.is_nan());
        for log_alpha in [f64::NEG_INFINITY, -800.0, 0.5f64.ln(), 0.1f64.ln(), 3.0] {
            statistics.record_test(Fate::Rejected, log_alpha);
        }
        let found = statistics.expected_acceptance();
        // probabilities 0, 0, 0.5, 0.1, 1
        assert!((found.value - 0.32).abs() < 1e-12, "{found:?}");
        assert!((found.standard_error - (0.187f64 / 5.0).sqrt()).abs() < 1e-12, "{found:?}");
    }

    /// Attempts from a configuration that seldom changes have chances that last: for 50 attempts here, so the error is
    /// √50 times that of independent ones.
    #[test]
    fn the_error_of_the_expected_acceptance_knows_of_correlations() {
        let mut stream = crate::rng::Stream::new(1, crate::rng::StreamId::Test, 0, 0);
        let (mut z, runs) = (0.0, 200);
        for _ in 0..runs {
            let mut statistics = Statistics::default();
            let mut chance = 0.0;
            for attempt in 0..20_000 {
                if attempt % 50 == 0 {
                    chance = stream.uniform();
                }
                statistics.record_chance(Fate::Rejected, chance);
            }
            let found = statistics.expected_acceptance();
            z += ((found.value - 0.5) / found.standard_error).powi(2) / runs as f64;
        }
        assert!((z.sqrt() - 1.0).abs() < 0.2, "{z}");
    }

    #[test]
    fn the_log_keeps_the_latest_in_order() {
        let mut ring = Ring::new();
        (0..LOG_CAPACITY + 3).for_each(|i| ring.push(i as f64));
        assert_eq!(ring.iter().next(), Some(3.0));
        assert_eq!(ring.iter().last(), Some((LOG_CAPACITY + 2) as f64));
        assert_eq!(ring.iter().len(), LOG_CAPACITY);
    }
}
