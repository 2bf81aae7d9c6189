//! Weighted samples of the generator, from which self-refinement draws its batches.

use super::losses::Samples;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::weights;
use serde::{Deserialize, Serialize};

/// Samples of the last few draws.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Pool {
    /// `[n][dimension]`
    x: Vec<f64>,
    log_weight: Vec<f64>,
    /// Weights for drawing batches; empty until the first batch after a change of the samples.
    #[serde(skip)]
    softened: Vec<f64>,
}

impl Pool {
    /// Log-weights of the samples, after truncation.
    pub fn log_weights(&self) -> &[f64] {
        &self.log_weight
    }

    /// Adds samples with truncated weights (Ionides, J. Comput. Graph. Stat. 17, 295 (2008)): w ≤ mean(w) √n. The
    /// oldest samples beyond `capacity` are dropped.
    pub fn add(&mut self, samples: &Samples, capacity: usize) {
        let n = samples.log_weight.len();
        let dimension = samples.x.len() / n.max(1);
        let limit = weights::truncation_limit(&samples.log_weight);
        for (row, &w) in samples.log_weight.iter().enumerate().filter(|(_, w)| w.is_finite()) {
            self.x.extend_from_slice(&samples.x[row * dimension..][..dimension]);
            self.log_weight.push(w.min(limit));
        }
        let surplus = self.log_weight.len().saturating_sub(capacity);
        self.log_weight.drain(..surplus);
        self.x.drain(..surplus * dimension);
        self.softened.clear();
    }

    /// Draws n samples `[n][dimension]` by weights tempered until the fraction `effective` of the pool is effective.
    /// Errors: an empty pool.
    pub fn batch(&mut self, n: usize, effective: f64, stream: &mut Stream) -> Result<Vec<f64>> {
        if self.softened.is_empty() {
            self.softened = softened(&self.log_weight, effective)?;
        }
        let dimension = self.x.len() / self.log_weight.len().max(1);
        let chosen = weights::resample(&self.softened, n, weights::Resampling::Systematic, stream)?;
        Ok(chosen.iter().flat_map(|&i| &self.x[i * dimension..][..dimension]).copied().collect())
    }
}

/// Weights raised to the largest power ≤ 1 at which this fraction of them is effective (tempered weights, as in
/// adaptive importance sampling; their fixed point is still the target). A flow that fits few samples of large weight
/// loses all others, and refines itself away.
fn softened(log_weights: &[f64], share: f64) -> Result<Vec<f64>> {
    let to_power = |power: f64| log_weights.iter().map(|w| power * w).collect::<Vec<f64>>();
    let is_effective = |power: f64| {
        let ess = weights::effective_sample_size(&to_power(power))?;
        Ok::<bool, Error>(ess >= share * log_weights.len() as f64)
    };
    if share == 0.0 || is_effective(1.0)? {
        return Ok(log_weights.to_vec());
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..10 {
        let middle = 0.5 * (low + high);
        match is_effective(middle)? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(to_power(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::StreamId;

    #[test]
    fn weights_are_softened_as_little_as_the_share_asks_for() {
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let log_weights: Vec<f64> = (0..2000).map(|_| 5.0 * stream.normal()).collect();
        let share = |log_weights: &[f64]| weights::effective_sample_size(log_weights).unwrap() / 2000.0;
        assert!(share(&log_weights) < 0.01);
        let soft = softened(&log_weights, 0.1).unwrap();
        assert!((0.1..0.11).contains(&share(&soft)), "{}", share(&soft));
        let power = soft[0] / log_weights[0];
        assert!(0.0 < power && power < 1.0);
        assert!(soft.iter().zip(&log_weights).all(|(soft, w)| (soft - power * w).abs() < 1e-12));
        assert_eq!(softened(&log_weights, 0.0).unwrap(), log_weights);
        assert_eq!(softened(&soft, 0.05).unwrap(), soft);
    }
}
