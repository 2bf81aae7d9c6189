//! Histograms on the circle: probability and free-energy profile of an angle, with errors.

use crate::error::{Error, Result};
use crate::free_energy;
use crate::weights::{self, Estimate};
use std::f64::consts::{PI, TAU};

/// Density and free energy of an angle on a grid of equal bins over [−π, π).
#[derive(Clone, Debug)]
pub struct CircularProfile {
    /// Bin centres, radian.
    pub centres: Vec<f64>,
    /// Probability per radian.
    pub density: Vec<Estimate>,
    /// F(φ) = −ln density in kT, shifted so that the lowest is 0; +∞ with error NaN in empty bins.
    pub free_energy: Vec<Estimate>,
}

/// Profile from independent weighted samples, with delta-method errors. `angles[n]` in radian, on any branch.
pub fn circular_profile(angles: &[f64], log_weights: &[f64], bins: usize) -> Result<CircularProfile> {
    if angles.len() != log_weights.len() {
        return Err(Error::invalid(format!("{} angles do not match {} log-weights", angles.len(), log_weights.len())));
    }
    let rows = bin_rows(angles, bins)?;
    let weights = weights::normalised(log_weights)?;
    let mut masses = vec![0.0; bins];
    rows.iter().zip(&weights).for_each(|(&bin, w)| masses[bin] += w);
    // Var P_b = Σ W² (1_b − P_b)²; split into the rows inside and outside the bin.
    let (mut inside, mut total) = (vec![0.0; bins], 0.0);
    for (&bin, w) in rows.iter().zip(&weights) {
        inside[bin] += w * w;
        total += w * w;
    }
    let errors: Vec<f64> = (0..bins)
        .map(|b| inside[b] * (1.0 - masses[b]).powi(2) + (total - inside[b]).max(0.0) * masses[b].powi(2))
        .map(|variance| weights::standard_error(&weights, variance))
        .collect();
    Ok(profile(&masses, &errors))
}

/// Profile from one correlated time series, with errors from the statistical inefficiency of each bin's indicator.
pub fn circular_profile_of_series(angles: &[f64], bins: usize) -> Result<CircularProfile> {
    let rows = bin_rows(angles, bins)?;
    let estimates: Vec<Estimate> = (0..bins)
        .map(|b| {
            let indicator: Vec<f64> = rows.iter().map(|&row| f64::from(row == b)).collect();
            free_energy::mean_of_series(&indicator)
        })
        .collect::<Result<_>>()?;
    let masses: Vec<f64> = estimates.iter().map(|e| e.value).collect();
    let errors: Vec<f64> = estimates.iter().map(|e| e.standard_error).collect();
    Ok(profile(&masses, &errors))
}

/// Whether `angle` lies on the arc that runs counter-clockwise from `from` to `to`, all in radian on any branch.
pub fn on_arc(angle: f64, from: f64, to: f64) -> bool {
    (angle - from).rem_euclid(TAU) < (to - from).rem_euclid(TAU)
}

fn bin_rows(angles: &[f64], bins: usize) -> Result<Vec<usize>> {
    if bins == 0 {
        return Err(Error::invalid("a histogram needs at least one bin"));
    }
    angles
        .iter()
        .enumerate()
        .map(|(i, angle)| {
            if !angle.is_finite() {
                return Err(Error::invalid(format!("angle {i} is {angle}: remove the frame or fix the trajectory")));
            }
            Ok((((angle + PI).rem_euclid(TAU) / TAU * bins as f64) as usize).min(bins - 1))
        })
        .collect()
}

fn profile(masses: &[f64], errors: &[f64]) -> CircularProfile {
    let width = TAU / masses.len() as f64;
    let lowest = -masses.iter().map(|m| (m / width).ln()).fold(f64::NEG_INFINITY, f64::max);
    let estimate = |value, standard_error| Estimate { value, standard_error };
    CircularProfile {
        centres: (0..masses.len()).map(|b| -PI + (b as f64 + 0.5) * width).collect(),
        density: masses.iter().zip(errors).map(|(m, e)| estimate(m / width, e / width)).collect(),
        free_energy: masses.iter().zip(errors).map(|(m, e)| estimate(-(m / width).ln() - lowest, e / m)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    /// Density of bin b under p(φ) = (1 + cos φ)/2π.
    fn exact(b: usize, bins: usize) -> f64 {
        let width = TAU / bins as f64;
        let (low, high) = (-PI + b as f64 * width, -PI + (b + 1) as f64 * width);
        (width + high.sin() - low.sin()) / TAU / width
    }

    #[test]
    fn weighted_profile_matches_the_exact_one_within_its_band() {
        let mut stream = Stream::new(5, StreamId::Test, 0, 0);
        // Uniform angles on another branch, reweighted by 1 + cos φ.
        let angles: Vec<f64> = (0..100_000).map(|_| TAU * (1.0 + stream.uniform())).collect();
        let log_w: Vec<f64> = angles.iter().map(|a| (1.0 + a.cos()).ln()).collect();
        let profile = circular_profile(&angles, &log_w, 18).unwrap();
        let integral: f64 = profile.density.iter().map(|d| d.value * TAU / 18.0).sum();
        assert!((integral - 1.0).abs() < 1e-12);
        for (b, d) in profile.density.iter().enumerate() {
            assert!((d.value - exact(b, 18)).abs() < 5.5 * d.standard_error, "bin {b}: {d:?} {}", exact(b, 18));
            assert!(d.standard_error < 0.05 * exact(b, 18).max(0.02));
        }
        let lowest = profile.free_energy.iter().map(|f| f.value).fold(f64::INFINITY, f64::min);
        assert_eq!(lowest, 0.0);
        assert!((profile.centres[0] + PI - PI / 18.0).abs() < 1e-12);
    }

    #[test]
    fn series_profile_of_independent_angles_has_binomial_errors() {
        let mut stream = Stream::new(6, StreamId::Test, 0, 0);
        let angles: Vec<f64> = (0..4000).map(|_| TAU * stream.uniform()).collect();
        let profile = circular_profile_of_series(&angles, 4).unwrap();
        for d in &profile.density {
            let p = d.value * TAU / 4.0;
            let binomial = (p * (1.0 - p) / 4000.0).sqrt() * 4.0 / TAU;
            assert!((0.99..1.3).contains(&(d.standard_error / binomial)), "{d:?} {binomial}");
        }
    }

    #[test]
    fn empty_bins_are_infinite_and_edges_belong_to_one_bin() {
        let profile = circular_profile(&[-PI, PI, 0.1], &[0.0; 3], 2).unwrap();
        assert!((profile.density[0].value * PI - 2.0 / 3.0).abs() < 1e-12);
        let empty = circular_profile(&[0.1], &[0.0], 4).unwrap();
        assert_eq!(empty.free_energy[0].value, f64::INFINITY);
        assert!(circular_profile(&[f64::NAN], &[0.0], 4).is_err());
        assert!(on_arc(3.5, 3.0, -2.0) && !on_arc(0.0, 3.0, -2.0) && on_arc(0.0, 0.0, 2.2) && !on_arc(2.3, 0.0, 2.2));
    }
}
