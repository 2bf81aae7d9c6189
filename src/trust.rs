//! How far the screen of delayed acceptance is trusted.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Minimum number of configurations for a fit.
pub const FEWEST: usize = 20;
/// Outlier limit of a fit, in standard deviations from the median (estimated from the quartiles): configurations with
/// log-weights beyond are left out, since they are never accepted, whatever a screen says.
const FAR: f64 = 5.0;

/// Coefficients of stage 1 of delayed acceptance, log w_s = −`energy` · u − `density` · log q_s.
///
/// The move is exact for any values. Best are those that best predict log w = −u − log q: one and one if q_s is q; a
/// smaller `density` where the errors of log q_s are as large as log w itself, since then it should be believed only in
/// part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trust {
    pub energy: f64,
    pub density: f64,
}

impl Default for Trust {
    fn default() -> Trust {
        Trust::FULL
    }
}

impl Trust {
    /// Full trust, as if q_s were q.
    pub const FULL: Trust = Trust { energy: 1.0, density: 1.0 };

    /// The value that replaces log q in −u − log q, so that the weight becomes w_s.
    pub fn log_density(&self, u: f64, log_q_s: f64) -> f64 {
        match *self == Trust::FULL {
            true => log_q_s,
            false => (self.energy - 1.0) * u + self.density * log_q_s,
        }
    }

    /// Errors: coefficients that are not finite.
    pub fn check(&self) -> Result<()> {
        match self.energy.is_finite() && self.density.is_finite() {
            true => Ok(()),
            false => {
                let Trust { energy, density, .. } = self;
                Err(Error::invalid(format!(
                    "trust in the energy ({energy}) and in the density ({density}) must be finite"
                )))
            }
        }
    }

    /// Coefficients for which log w_s best predicts log w, by least squares over samples of q with a free constant.
    /// Samples with non-finite values are ignored.
    ///
    /// Errors: too few samples, samples that are all alike.
    pub fn fit(u: &[f64], log_q: &[f64], log_q_s: &[f64]) -> Result<Trust> {
        let rows = fitted(u, log_q, log_q_s)?;
        let mean: [f64; 3] = std::array::from_fn(|i| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64);
        let product = |i: usize, j: usize| rows.iter().map(|row| (row[i] - mean[i]) * (row[j] - mean[j])).sum::<f64>();
        let (uu, us, ss) = (product(0, 0), product(0, 1), product(1, 1));
        let (uw, sw) = (product(0, 2), product(1, 2));
        let determinant = uu * ss - us * us;
        if determinant.is_nan() || determinant <= 1e-9 * uu * ss {
            return Err(Error::invalid(
                "energies and log-densities of the samples vary too little, or are linearly dependent",
            ));
        }
        Ok(Trust { energy: (uw * ss - sw * us) / determinant, density: (sw * uu - uw * us) / determinant })
    }

    /// Standard deviation of log w − log w_s over the samples of the fit: what is left for the second stage. Least for
    /// the trust that [`Trust::fit`] finds.
    ///
    /// Errors: too few samples.
    pub fn left(&self, u: &[f64], log_q: &[f64], log_q_s: &[f64]) -> Result<f64> {
        let rows = fitted(u, log_q, log_q_s)?;
        let left: Vec<f64> = rows.iter().map(|row| row[2] - self.energy * row[0] - self.density * row[1]).collect();
        let n = left.len() as f64;
        let mean = left.iter().sum::<f64>() / n;
        Ok((left.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
    }
}

/// The samples of a fit: −u, −log q_s and log w of those that are finite and no outliers. Errors: too few samples.
fn fitted(u: &[f64], log_q: &[f64], log_q_s: &[f64]) -> Result<Vec<[f64; 3]>> {
    let all = u.iter().zip(log_q).zip(log_q_s).map(|((u, q), s)| [-u, -s, -u - q]);
    let mut rows: Vec<[f64; 3]> = all.filter(|row| row.iter().all(|v| v.is_finite())).collect();
    if rows.len() < FEWEST {
        return Err(Error::invalid(format!("{} usable samples are too few; a fit requires {FEWEST}", rows.len())));
    }
    let [median, deviation] = robust(rows.iter().map(|row| row[2]).collect());
    rows.retain(|row| (row[2] - median).abs() <= FAR * deviation);
    Ok(rows)
}

/// Median of at least one value, and the standard deviation of a normal distribution with the same quartiles.
fn robust(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let [lower, median, upper] = [1, 2, 3].map(|k| values[k * (values.len() - 1) / 4]);
    [median, (upper - lower) / 1.349]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    #[test]
    fn the_fit_finds_what_is_there() {
        let mut stream = Stream::new(7, StreamId::Test, 0, 0);
        let mut normal = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
        let n = 20_000;
        let (log_w, noise, u) = (normal(n), normal(n), normal(n));
        // a screen whose error is as large as log w: it should be trusted by half, in energy and density alike
        let log_q: Vec<f64> = (0..n).map(|i| -5.0 * u[i] - log_w[i]).collect();
        let u: Vec<f64> = u.iter().map(|u| 5.0 * u).collect();
        let log_q_s: Vec<f64> = (0..n).map(|i| log_q[i] + noise[i] + 3.0).collect();
        let fit = Trust::fit(&u, &log_q, &log_q_s).unwrap();
        assert!((fit.energy - 0.5).abs() < 0.02 && (fit.density - 0.5).abs() < 0.02, "{fit:?}");
        let left = [fit, Trust::FULL].map(|trust| trust.left(&u, &log_q, &log_q_s).unwrap());
        assert!((left[0] - 0.5f64.sqrt()).abs() < 0.02 && (left[1] - 1.0).abs() < 0.02, "{left:?}");
        // outliers and infinities do not matter
        let mut wild = u.clone();
        (wild[0], wild[1], wild[2]) = (1e9, f64::INFINITY, f64::NAN);
        let other = Trust::fit(&wild, &log_q, &log_q_s).unwrap();
        assert!((other.energy - fit.energy).abs() < 1e-3 && (other.density - fit.density).abs() < 1e-3, "{other:?}");
        let exact = Trust::fit(&u, &log_q, &log_q).unwrap();
        assert!((exact.energy - 1.0).abs() < 1e-9 && (exact.density - 1.0).abs() < 1e-9, "{exact:?}");
    }

    #[test]
    fn senseless_samples_are_refused() {
        assert!(Trust::fit(&[0.0; 5], &[0.0; 5], &[0.0; 5]).unwrap_err().to_string().contains("5 usable samples"));
        assert!(Trust::fit(&[0.0; 50], &[0.0; 50], &[0.0; 50]).is_err());
        assert!(Trust { energy: f64::NAN, density: 1.0 }.check().is_err());
    }

    #[test]
    fn the_weight_is_what_it_says() {
        let trust = Trust { energy: 0.3, density: 0.7 };
        assert!((-2.0 - trust.log_density(2.0, 5.0) - (-0.3 * 2.0 - 0.7 * 5.0)).abs() < 1e-15);
        assert_eq!(Trust::FULL.log_density(f64::INFINITY, 5.0), 5.0);
    }
}
