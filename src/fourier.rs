//! Autocovariances of long series by a fast Fourier transform.

use nalgebra::Complex;
use std::f64::consts::TAU;

/// Autocovariances Σ xᵢ xᵢ₊ₗ / n of a centred series, for every lag l below `lags`, in O(n log n).
pub fn autocovariances(x: &[f64], lags: usize) -> Vec<f64> {
    // zero padding, so that the end of the series does not wrap around to its beginning
    let size = (x.len() + lags).next_power_of_two();
    let mut z: Vec<Complex<f64>> = x.iter().map(|&v| v.into()).collect();
    z.resize(size, 0.0.into());
    let roots: Vec<_> = (0..size / 2).map(|k| Complex::from_polar(1.0, -TAU * k as f64 / size as f64)).collect();
    to_reversed(&mut z, &roots);
    z.iter_mut().for_each(|z| *z = z.norm_sqr().into());
    // for a real and even spectrum the transform is its own inverse up to the factor `size`
    from_reversed(&mut z, &roots);
    z[..lags].iter().map(|z| z.re / (size as f64 * x.len() as f64)).collect()
}

/// Radix-2 transform by decimation in frequency; the result is in bit-reversed order.
fn to_reversed(z: &mut [Complex<f64>], roots: &[Complex<f64>]) {
    let mut half = z.len() / 2;
    while half > 0 {
        for block in z.chunks_exact_mut(2 * half) {
            let (a, b) = block.split_at_mut(half);
            for ((a, b), root) in a.iter_mut().zip(b).zip(roots.iter().step_by(roots.len() / half)) {
                (*a, *b) = (*a + *b, (*a - *b) * root);
            }
        }
        half /= 2;
    }
}

/// The same transform by decimation in time, from bit-reversed input.
fn from_reversed(z: &mut [Complex<f64>], roots: &[Complex<f64>]) {
    let mut half = 1;
    while half < z.len() {
        for block in z.chunks_exact_mut(2 * half) {
            let (a, b) = block.split_at_mut(half);
            for ((a, b), root) in a.iter_mut().zip(b).zip(roots.iter().step_by(roots.len() / half)) {
                let turned = *b * root;
                (*a, *b) = (*a + turned, *a - turned);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    #[test]
    fn they_are_the_sums_over_pairs() {
        for (n, lags) in [(1, 1), (4, 4), (37, 20), (1000, 502)] {
            let mut stream = Stream::new(31, StreamId::Test, n as u64, 0);
            let x: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
            let found = autocovariances(&x, lags);
            for (lag, found) in found.iter().enumerate() {
                let sum: f64 = x[lag..].iter().zip(&x).map(|(a, b)| a * b).sum();
                assert!((found - sum / n as f64).abs() < 1e-13, "{n} {lag}: {found}");
            }
        }
    }
}
