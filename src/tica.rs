//! Time-lagged independent components (Pérez-Hernández et al., J. Chem. Phys. 139, 015102 (2013)) of one trajectory,
//! with the frames weighted to the stationary distribution (Koopman reweighting: Wu et al., J. Chem. Phys. 146, 154104
//! (2017)).
//!
//! With x the features at a time, y those a lag later, and w the weight of the pair,
//!
//! ```text
//! C₀ = Σ w (x xᵀ + y yᵀ)/2Σw,   C_τ = Σ w (x yᵀ + y xᵀ)/2Σw,   C_τ v = λ C₀ v
//! ```
//!
//! relative to the mean Σ w (x + y)/2Σw. A component is v·(x − mean), scaled by its eigenvalue λ (the kinetic map: Noé
//! and Clementi, J. Chem. Theory Comput. 11, 5002 (2015)). Conventions and cut-off are those of deeptime, but for
//! the order: by λ, so that fast alternations (λ < 0) do not count as slow, where deeptime orders by |λ|.

use crate::error::{Error, Result};
use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Variance below which directions in feature space are left out.
const LEAST_VARIANCE: f64 = 1e-6;

/// Minimum number of frame pairs per feature. With fewer, the fit adapts to noise, and components appear slow that are
/// not.
const FEWEST_PAIRS: usize = 10;

/// The slowest linear components of a trajectory.
#[derive(Clone, Debug)]
pub struct Tica {
    mean: DVector<f64>,
    /// Linear map from features to components, `[features][components]`.
    transform: DMatrix<f64>,
    /// λ of each component, descending.
    pub eigenvalues: Vec<f64>,
}

impl Tica {
    /// Fits the slowest `components` of a trajectory `features[n][dimension]` at a lag in frames.
    ///
    /// Errors: fewer frames than twice the lag, fewer than ten pairs of frames per feature, features that are not
    /// finite, fewer independent features than components, a trajectory without a stationary distribution.
    pub fn fit(features: &[f64], dimension: usize, lag: usize, components: usize) -> Result<Tica> {
        let n = features.len() / dimension.max(1);
        if lag == 0 || n / 2 < lag.max(2) {
            return Err(Error::invalid(format!(
                "{n} frames are too few for a lag of {lag}: the lag must be from 1 to half the number of frames"
            )));
        }
        if n - lag < FEWEST_PAIRS * dimension {
            return Err(Error::invalid(format!(
                "{} pairs of frames at a lag of {lag} are too few for {dimension} features: {} are required",
                n - lag,
                FEWEST_PAIRS * dimension
            )));
        }
        if let Some(i) = features.iter().position(|v| !v.is_finite()) {
            return Err(Error::invalid(format!("a feature of frame {} is {}", i / dimension + 1, features[i])));
        }
        let block = |from: usize| {
            DMatrix::from_row_slice(n - lag, dimension, &features[from * dimension..(from + n - lag) * dimension])
        };
        let (x, y) = (block(0), block(lag));
        let weights = koopman_weights(&x, &y)?;
        let total: f64 = 2.0 * weights.sum();
        let mean = (x.tr_mul(&weights) + y.tr_mul(&weights)) / total;
        let centred = |m: &DMatrix<f64>| DMatrix::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] - mean[j]);
        let weighted = |m: &DMatrix<f64>| DMatrix::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] * weights[i]);
        let (x, y) = (centred(&x), centred(&y));
        let (wx, wy) = (weighted(&x), weighted(&y));
        let instantaneous = (x.tr_mul(&wx) + y.tr_mul(&wy)) / total;
        let lagged = (x.tr_mul(&wy) + y.tr_mul(&wx)) / total;
        let whitening = inverse_root(&instantaneous);
        if whitening.ncols() < components {
            let found = whitening.ncols();
            return Err(Error::invalid(format!(
                "{found} independent features are too few for {components} components"
            )));
        }
        let slow = SymmetricEigen::new(whitening.tr_mul(&lagged) * &whitening);
        let mut order: Vec<usize> = (0..whitening.ncols()).collect();
        order.sort_by(|&i, &j| slow.eigenvalues[j].total_cmp(&slow.eigenvalues[i]));
        order.truncate(components);
        let eigenvalues: Vec<f64> = order.iter().map(|&k| slow.eigenvalues[k]).collect();
        let columns: Vec<DVector<f64>> =
            order.iter().map(|&k| &whitening * slow.eigenvectors.column(k) * slow.eigenvalues[k]).collect();
        Ok(Tica { mean, transform: DMatrix::from_columns(&columns), eigenvalues })
    }

    /// Components `[n][components]` of `features[n][dimension]`, dimensionless.
    pub fn project(&self, features: &[f64]) -> Vec<f64> {
        let d = self.mean.len();
        let row = |x: &[f64]| {
            let x = DVector::from_column_slice(x) - &self.mean;
            self.transform.tr_mul(&x).iter().copied().collect::<Vec<_>>()
        };
        features.chunks_exact(d).flat_map(row).collect()
    }
}

/// Koopman weights of the pairs (x, y), under which y has the mean of x: w = 1 + (x − x̄)·R u, where R whitens the
/// covariance of x, and (1 − Kᵀ) u = Rᵀ(ȳ − x̄), K = Rᵀ C_τ R. They may be negative if data are few.
fn koopman_weights(x: &DMatrix<f64>, y: &DMatrix<f64>) -> Result<DVector<f64>> {
    let n = x.nrows() as f64;
    let means = [x, y].map(|m| m.row_mean());
    let centred = |m: &DMatrix<f64>, mean: &nalgebra::RowDVector<f64>| {
        DMatrix::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)] - mean[j])
    };
    let (x, y) = (centred(x, &means[0]), centred(y, &means[1]));
    let whitening = inverse_root(&(x.tr_mul(&x) / n));
    if whitening.ncols() == 0 {
        return Ok(DVector::from_element(x.nrows(), 1.0));
    }
    let koopman = whitening.tr_mul(&(x.tr_mul(&y) / n)) * &whitening;
    let drift = whitening.tr_mul(&(&means[1] - &means[0]).transpose());
    let u = (DMatrix::identity(koopman.nrows(), koopman.nrows()) - koopman.transpose()).lu().solve(&drift).ok_or_else(
        || Error::invalid("the trajectory has no stationary distribution: a feature changes and never changes back"),
    )?;
    Ok((x * whitening * u).add_scalar(1.0))
}

/// Whitening matrix R with Rᵀ C R = 1, on the directions in which C has variance.
fn inverse_root(covariance: &DMatrix<f64>) -> DMatrix<f64> {
    let eigen = SymmetricEigen::new(covariance.clone());
    let kept: Vec<DVector<f64>> = (0..covariance.nrows())
        .filter(|&k| eigen.eigenvalues[k] > LEAST_VARIANCE)
        .map(|k| eigen.eigenvectors.column(k) / eigen.eigenvalues[k].sqrt())
        .collect();
    match kept.is_empty() {
        true => DMatrix::zeros(covariance.nrows(), 0),
        false => DMatrix::from_columns(&kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    /// Three autoregressive processes of unit variance, mixed: the slow directions are known.
    fn mixed(n: usize, start: f64) -> (Vec<f64>, Vec<f64>) {
        let mut stream = Stream::new(3, StreamId::Test, 0, 0);
        let rho = [0.98f64, 0.9, 0.2];
        let mut state = [start, 0.0, 0.0];
        let (mut pure, mut features) = (Vec::new(), Vec::new());
        for _ in 0..n {
            for (s, rho) in state.iter_mut().zip(rho) {
                *s = rho * *s + (1.0 - rho * rho).sqrt() * stream.normal();
            }
            let [a, b, c] = state;
            pure.push(a);
            // the sum of the first two is a redundant feature
            features.extend([2.0 * a + b + 5.0, b - c, a + 3.0 * c - 1.0, 2.0 * a + b]);
        }
        (pure, features)
    }

    #[test]
    fn slow_components_of_a_mixture_are_found() {
        let (pure, features) = mixed(200_000, 0.0);
        let lag = 5;
        let tica = Tica::fit(&features, 4, lag, 2).unwrap();
        for (found, rho) in tica.eigenvalues.iter().zip([0.98f64, 0.9]) {
            assert!((found - rho.powi(lag as i32)).abs() < 0.01, "{found}");
        }
        let slowest: Vec<f64> = tica.project(&features).chunks_exact(2).map(|c| c[0] / tica.eigenvalues[0]).collect();
        let (n, dot) = (pure.len() as f64, pure.iter().zip(&slowest).map(|(a, b)| a * b).sum::<f64>());
        let squares: f64 = slowest.iter().map(|v| v * v).sum();
        assert!((dot / n).abs() > 0.98 && (squares / n - 1.0).abs() < 0.01, "{} {}", dot / n, squares / n);
    }

    /// A short trajectory with a start so far out of equilibrium that some weights are negative.
    #[test]
    fn components_are_those_of_deeptime() {
        let text = std::fs::read_to_string("tests/golden/metrics/tica.json").unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let array = |key: &str| -> Vec<f64> { serde_json::from_value(golden[key].clone()).unwrap() };
        let lag = golden["lag"].as_u64().unwrap() as usize;
        let tica = Tica::fit(&array("features"), 4, lag, 2).unwrap();
        for (found, expected) in tica.eigenvalues.iter().zip(array("eigenvalues")) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
        let (found, expected) = (tica.project(&array("features")), array("components"));
        for k in 0..2 {
            // the sign of a component is arbitrary
            let sign = (found[k] * expected[k]).signum();
            let pairs = found.iter().zip(&expected).skip(k).step_by(2);
            let error = pairs.map(|(a, b)| (sign * a - b).abs()).fold(0.0, f64::max);
            assert!(error < 1e-7, "component {k}: {error}");
        }
    }

    #[test]
    fn weights_take_a_start_out_of_equilibrium_away() {
        // 500 frames starting twenty standard deviations away: relaxation takes fifty
        let (_, features) = mixed(500, 20.0);
        let block = |from: usize| DMatrix::from_row_slice(490, 4, &features[4 * from..4 * (from + 490)]);
        let (x, y) = (block(0), block(10));
        let w = koopman_weights(&x, &y).unwrap();
        assert!((w.mean() - 1.0).abs() < 1e-9);
        let (before, after) = (x.tr_mul(&w) / 490.0, y.tr_mul(&w) / 490.0);
        assert!((&before - &after).norm() < 1e-9, "the weighted distribution is stationary: {before} {after}");
        // the first feature is 5 in equilibrium
        assert!(
            (before[0] - 5.0).abs() < 0.5 * (x.column(0).mean() - 5.0).abs(),
            "{} {}",
            before[0],
            x.column(0).mean()
        );
    }

    #[test]
    fn what_has_no_components_is_refused() {
        let (_, features) = mixed(50, 0.0);
        assert!(Tica::fit(&features, 4, 26, 2).unwrap_err().to_string().contains("too few for a lag"));
        assert!(Tica::fit(&features, 4, 0, 2).is_err());
        let beyond = Tica::fit(&features, 4, usize::MAX / 2 + 1, 2);
        assert!(beyond.unwrap_err().to_string().contains("too few for a lag"), "twice the lag has no number");
        let message = Tica::fit(&features, 4, 11, 2).unwrap_err().to_string();
        assert!(message.contains("39 pairs of frames") && message.contains("4 features: 40 are required"), "{message}");
        assert!(Tica::fit(&features, 4, 10, 2).is_ok());
        assert!(Tica::fit(&[1.0; 100], 1, 5, 1).unwrap_err().to_string().contains("independent features"));
        assert!(Tica::fit(&[f64::NAN; 100], 1, 5, 1).unwrap_err().to_string().contains("frame 1"));
    }
}
