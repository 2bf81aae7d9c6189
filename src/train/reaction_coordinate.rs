//! Reaction-coordinate loss: spreads a generator's samples along a coordinate that they would otherwise cover only in
//! part (Noé et al., Science 365, eaaw1147 (2019)).

use crate::coordinates::Along;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Largest bandwidth for a torsion, rad: up to this only the images at ±2π matter.
const WIDEST: f64 = 1.0;

/// J = E[ln p̂(r)] over a batch of samples, with the kernel density p̂(r) = 1/n Σ_j K(r − r_j) of the samples in a
/// range. It is minus the entropy of r, so it is smallest for a flat p̂. K is a Gaussian, wrapped around the circle for
/// a torsion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReactionCoordinate {
    pub along: Along,
    /// Samples outside [min, max] neither count nor get a gradient.
    pub range: [f64; 2],
    /// Standard deviation of K, in the unit of r.
    pub bandwidth: f64,
}

impl ReactionCoordinate {
    /// Checks the settings. Errors: atoms or a component that x does not have, an empty range, angles in degrees, a
    /// bandwidth that is not positive or wider than the circle allows.
    pub fn check(&self, dimension: usize) -> Result<()> {
        self.along.check(dimension)?;
        self.along.check_angles(self.range)?;
        let [min, max] = self.range;
        if min.partial_cmp(&max) != Some(std::cmp::Ordering::Less) {
            return Err(Error::invalid(format!(
                "reaction_coordinate.range = [{min}, {max}]: must be [min, max] with min < max"
            )));
        }
        let widest = if self.along.is_periodic() { WIDEST } else { f64::INFINITY };
        if !(self.bandwidth > 0.0 && self.bandwidth.is_finite() && self.bandwidth <= widest) {
            let limit = if self.along.is_periodic() { format!(" and at most {WIDEST} rad") } else { String::new() };
            let message = format!("reaction_coordinate.bandwidth = {}: must be positive{limit}", self.bandwidth);
            return Err(Error::invalid(message));
        }
        Ok(())
    }

    /// K(Δ) and dK/dΔ.
    fn kernel(&self, delta: f64) -> [f64; 2] {
        let h = self.bandwidth;
        let gaussian = |d: f64| {
            let k = (-0.5 * (d / h).powi(2)).exp() / (h * (2.0 * PI).sqrt());
            [k, -d / (h * h) * k]
        };
        if !self.along.is_periodic() {
            return gaussian(delta);
        }
        let delta = delta - 2.0 * PI * (delta / (2.0 * PI)).round();
        let images = [-2.0 * PI, 0.0, 2.0 * PI].map(|turn| gaussian(delta + turn));
        images.into_iter().fold([0.0; 2], |sum, k| [sum[0] + k[0], sum[1] + k[1]])
    }

    /// J over the rows of `x[n][dimension]` that are `usable` and in the range; adds `scale · ∂J/∂x` to `gx`. NaN if
    /// there is no such row.
    ///
    /// With S_i = Σ_j K(r_i − r_j): ∂J/∂r_i = 1/n Σ_j K′(r_i − r_j) (1/S_i + 1/S_j), since K is even.
    pub fn spread(&self, x: &[f64], usable: &[bool], scale: f64, gx: &mut [f64]) -> f64 {
        let d = x.len() / usable.len().max(1);
        let row = |i: usize| i * d..(i + 1) * d;
        let in_range = |r: f64| r >= self.range[0] && r <= self.range[1];
        let rows: Vec<(usize, f64)> = (0..usable.len())
            .filter(|&i| usable[i])
            .map(|i| (i, self.along.value(&x[row(i)])))
            .filter(|&(_, r)| in_range(r))
            .collect();
        let n = rows.len() as f64;
        let kernels: Vec<Vec<[f64; 2]>> =
            rows.iter().map(|&(_, r)| rows.iter().map(|&(_, s)| self.kernel(r - s)).collect()).collect();
        let sums: Vec<f64> = kernels.iter().map(|row| row.iter().map(|k| k[0]).sum()).collect();
        for (a, &(i, _)) in rows.iter().enumerate() {
            let slope: f64 = kernels[a].iter().zip(&sums).map(|(k, s)| k[1] * (1.0 / sums[a] + 1.0 / s)).sum();
            self.along.vjp(&x[row(i)], scale * slope / n, &mut gx[row(i)]);
        }
        sums.iter().map(|s| (s / n).ln()).sum::<f64>() / n
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    fn torsion_of_four() -> ReactionCoordinate {
        ReactionCoordinate { along: Along::Torsion([0, 1, 2, 3]), range: [-PI, PI], bandwidth: 0.4 }
    }

    /// Five configurations of four atoms, some with torsions near ±π.
    fn chains() -> Vec<f64> {
        let mut stream = Stream::new(4, StreamId::Test, 0, 0);
        (0..5).flat_map(|_| (0..12).map(|i| (i / 3) as f64 * 0.2 + stream.normal()).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn the_gradient_agrees_with_differences() {
        let line = ReactionCoordinate { along: Along::Component(1), range: [-0.5, 2.0], bandwidth: 0.3 };
        let usable = [true, true, false, true, true];
        for coordinate in [torsion_of_four(), line] {
            let x = chains();
            let mut gradient = vec![0.0; x.len()];
            let loss = coordinate.spread(&x, &usable, 2.0, &mut gradient);
            assert!(loss.is_finite() && gradient.iter().any(|g| *g != 0.0));
            let of = |x: &[f64]| coordinate.spread(x, &usable, 0.0, &mut vec![0.0; x.len()]);
            for i in 0..x.len() {
                let h = 1e-6;
                let moved = |h: f64| {
                    let mut y = x.clone();
                    y[i] += h;
                    of(&y)
                };
                let difference = 2.0 * (moved(h) - moved(-h)) / (2.0 * h);
                assert!(
                    (gradient[i] - difference).abs() < 1e-7,
                    "{:?} {i}: {} {difference}",
                    coordinate.along,
                    gradient[i]
                );
            }
        }
    }

    /// ln p̂ of one torsion is that of its kernel at zero, and the kernel integrates to 1 on the circle.
    #[test]
    fn kernels_on_the_circle_are_normalised_and_know_no_end() {
        let coordinate = torsion_of_four();
        let n = 1000;
        let step = 2.0 * PI / n as f64;
        let total: f64 = (0..n).map(|i| coordinate.kernel(i as f64 * step)[0] * step).sum();
        assert!((total - 1.0).abs() < 1e-12, "{total}");
        assert!((coordinate.kernel(PI - 0.1)[0] - coordinate.kernel(0.1 - PI)[0]).abs() < 1e-15);
        assert!((coordinate.kernel(2.0 * PI + 0.1)[0] - coordinate.kernel(0.1)[0]).abs() < 1e-12);
    }

    #[test]
    fn what_the_system_does_not_have_is_refused() {
        let mut coordinate = torsion_of_four();
        coordinate.check(12).unwrap();
        assert!(coordinate.check(11).unwrap_err().to_string().contains("atom 3 of 3"));
        coordinate.bandwidth = 2.0;
        assert!(coordinate.check(12).unwrap_err().to_string().contains("bandwidth"));
        coordinate = ReactionCoordinate { range: [1.0, 1.0], ..torsion_of_four() };
        assert!(coordinate.check(12).unwrap_err().to_string().contains("range"));
        coordinate.range = [0.0, 90.0];
        assert!(coordinate.check(12).unwrap_err().to_string().contains("radians"));
        coordinate.along = Along::Component(12);
        assert!(coordinate.check(12).unwrap_err().to_string().contains("component 12"));
    }
}
