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
    circular_profile_of_families(angles, log_weights, &(0..angles.len()).collect::<Vec<_>>(), bins)
}

/// As [`circular_profile`], of weighted particles of which those with the same of `ancestors[n]` are copies by
/// resampling: only the families are independent.
pub fn circular_profile_of_families(
    angles: &[f64],
    log_weights: &[f64],
    ancestors: &[usize],
    bins: usize,
) -> Result<CircularProfile> {
    for (name, n) in [("log-weights", log_weights.len()), ("ancestors", ancestors.len())] {
        if n != angles.len() {
            return Err(Error::invalid(format!("{} angles do not match {n} {name}", angles.len())));
        }
    }
    let rows = bin_rows(angles, bins)?;
    let weights = weights::normalised(log_weights)?;
    let mut masses = vec![0.0; bins];
    rows.iter().zip(&weights).for_each(|(&bin, w)| masses[bin] += w);
    let mut names = ancestors.to_vec();
    names.sort_unstable();
    names.dedup();
    let family: Vec<usize> = ancestors.iter().map(|name| names.partition_point(|other| other < name)).collect();
    // Σ W f(bin) of each family
    let sums = |f: &dyn Fn(usize) -> f64| {
        let mut sums = vec![0.0; names.len()];
        family.iter().zip(&weights).zip(&rows).for_each(|((&family, w), &bin)| sums[family] += w * f(bin));
        sums
    };
    let effective = 1.0 / sums(&|_| 1.0).iter().map(|share| share * share).sum::<f64>();
    // Var P_b = Σ over families of (Σ W (1_b − P_b))²
    let variance = |b: usize| -> f64 {
        let influences = sums(&|bin| f64::from(bin == b) - masses[b]);
        influences.iter().map(|influence| influence * influence).sum()
    };
    let errors: Vec<f64> = (0..bins).map(|b| weights::standard_error_of(effective, variance(b))).collect();
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
    fn copies_of_samples_add_nothing_to_what_is_known() {
        let mut stream = Stream::new(7, StreamId::Test, 0, 0);
        let angles: Vec<f64> = (0..400).map(|_| TAU * stream.uniform()).collect();
        let log_w: Vec<f64> = angles.iter().map(|a| 0.3 * a.cos()).collect();
        let expected = circular_profile(&angles, &log_w, 6).unwrap();
        // each one nine times, by turns
        let copies: Vec<usize> = (0..3600).map(|i| i % 400).collect();
        let of = |values: &[f64]| copies.iter().map(|&i| values[i]).collect::<Vec<_>>();
        let names: Vec<usize> = copies.iter().map(|i| 1000 - i).collect();
        let found = circular_profile_of_families(&of(&angles), &of(&log_w), &names, 6).unwrap();
        let as_independent = circular_profile(&of(&angles), &of(&log_w), 6).unwrap();
        for ((a, b), c) in found.density.iter().zip(&expected.density).zip(&as_independent.density) {
            assert!((a.value - b.value).abs() < 1e-12 && (a.standard_error / b.standard_error - 1.0).abs() < 1e-9);
            assert!((c.standard_error / b.standard_error - 1.0 / 3.0).abs() < 1e-9);
        }
        let few = circular_profile_of_families(&angles, &log_w, &vec![3; 400], 6).unwrap();
        assert!(few.density.iter().all(|d| d.standard_error.is_nan()));
        assert!(circular_profile_of_families(&angles, &log_w, &[3], 6).is_err());
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
