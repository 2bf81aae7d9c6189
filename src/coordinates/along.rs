//! Reaction coordinates (collective variables): functions of a configuration.

use super::vector::{add_to_atom, atom, distance, sub, torsion, torsion_gradient, unit};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A reaction coordinate r(x).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Along {
    /// Torsion of four atoms, counted from 0, in rad within ±π.
    Torsion([usize; 4]),
    /// Distance between two atoms, nm.
    Distance([usize; 2]),
    /// One component of x, for systems that are not molecules.
    Component(usize),
}

impl Along {
    /// Checks a range of this coordinate. Errors: angles in degrees.
    pub fn check_angles(&self, [from, to]: [f64; 2]) -> Result<()> {
        match self.is_periodic() && !(from.abs() <= TURN && to.abs() <= TURN) {
            true => Err(Error::invalid(format!(
                "the range [{from}, {to}] of the torsion is invalid: angles must be in radians, within ±π (degrees times 0.01745)"
            ))),
            false => Ok(()),
        }
    }

    /// Errors: atoms or a component beyond configurations of `dimension` numbers, a repeated atom.
    pub fn check(&self, dimension: usize) -> Result<()> {
        let lacking = match self {
            Along::Torsion(atoms) => beyond(atoms, dimension),
            Along::Distance(atoms) => beyond(atoms, dimension),
            Along::Component(i) => (*i >= dimension).then(|| format!("component {i} of {dimension}")),
        };
        let atoms: &[usize] = match self {
            Along::Torsion(atoms) => atoms,
            Along::Distance(atoms) => atoms,
            Along::Component(_) => &[],
        };
        let twice = (1..atoms.len()).find(|&i| atoms[..i].contains(&atoms[i]));
        match (lacking, twice) {
            (Some(what), _) => Err(Error::invalid(format!(
                "the reaction coordinate uses {what}, which is out of range (indices start at 0)"
            ))),
            (None, Some(i)) => Err(Error::invalid(format!("the reaction coordinate uses atom {} twice", atoms[i]))),
            (None, None) => Ok(()),
        }
    }

    /// Whether r is periodic with 2π.
    pub fn is_periodic(&self) -> bool {
        matches!(self, Along::Torsion(_))
    }

    /// r(x); NaN where it is undefined.
    pub fn value(&self, x: &[f64]) -> f64 {
        match *self {
            Along::Torsion(atoms) => {
                let [i, j, k, l] = atoms.map(|a| atom(x, a));
                torsion(i, j, k, l)
            }
            Along::Distance([i, j]) => distance(x, i, j),
            Along::Component(i) => x[i],
        }
    }

    /// Adds g ∂r/∂x to gx.
    pub fn vjp(&self, x: &[f64], g: f64, gx: &mut [f64]) {
        match *self {
            Along::Torsion(atoms) => {
                let [i, j, k, l] = atoms.map(|a| atom(x, a));
                for (a, gradient) in atoms.into_iter().zip(torsion_gradient(i, j, k, l)) {
                    add_to_atom(gx, a, g, gradient);
                }
            }
            Along::Distance([i, j]) => {
                let direction = unit(sub(atom(x, i), atom(x, j)));
                add_to_atom(gx, i, g, direction);
                add_to_atom(gx, j, -g, direction);
            }
            Along::Component(i) => gx[i] += g,
        }
    }
}

fn beyond(atoms: &[usize], dimension: usize) -> Option<String> {
    let lacking = atoms.iter().find(|&&a| a >= dimension / 3)?;
    Some(format!("atom {lacking} of {}", dimension / 3))
}

/// Half a turn, with an allowance for rounding.
const TURN: f64 = std::f64::consts::PI + 1e-6;

/// Region of configuration space: r(x) within a range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    pub along: Along,
    /// Range [from, to); for a torsion in rad within ±π, where it may wrap around, such as from 2.2 to −1.
    pub range: [f64; 2],
}

impl Region {
    /// Errors: atoms or a component beyond configurations of `dimension` numbers, an empty range.
    pub fn check(&self, dimension: usize) -> Result<()> {
        self.along.check(dimension)?;
        self.along.check_angles(self.range)?;
        let [from, to] = self.range;
        match from < to || (self.along.is_periodic() && from > to) {
            true => Ok(()),
            false => Err(Error::invalid(format!("the range [{from}, {to}] of the reaction coordinate is empty"))),
        }
    }

    /// Whether a configuration is in the region.
    pub fn contains(&self, x: &[f64]) -> bool {
        let ([from, to], r) = (self.range, self.along.value(x));
        match from < to {
            true => (from..to).contains(&r),
            false => r >= from || r < to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_torsions_go_around_and_others_do_not() {
        let around = Region { along: Along::Torsion([0, 1, 2, 3]), range: [3.0, -3.0] };
        around.check(12).unwrap();
        // a torsion of ±π, and one of 0
        let trans = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0];
        let cis = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert!(around.contains(&trans) && !around.contains(&cis));
        let distance = Region { along: Along::Distance([0, 1]), range: [0.5, 1.5] };
        assert!(distance.contains(&trans));
        let error = Region { range: [1.5, 0.5], ..distance }.check(12).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
        let torsion = |range| Region { along: Along::Torsion([0, 1, 2, 3]), range };
        let error = torsion([0.0, 90.0]).check(12).unwrap_err();
        assert!(error.to_string().contains("radian"), "{error}");
        torsion([-std::f64::consts::PI, std::f64::consts::PI]).check(12).unwrap();
        let error = Along::Torsion([0, 1, 2, 0]).check(12).unwrap_err();
        assert!(error.to_string().contains("atom 0 twice"), "{error}");
        assert!(Region { along: Along::Distance([0, 4]), range: [0.0, 1.0] }.check(12).is_err());
    }

    #[test]
    fn gradients_match_differences() {
        let x = [0.1, -0.2, 0.3, 0.0, 0.1, 0.2, 0.4, 0.2, -0.1, 0.3, 0.5, 0.6];
        for along in [Along::Torsion([0, 1, 2, 3]), Along::Distance([3, 1]), Along::Component(5)] {
            let mut gradient = vec![0.0; x.len()];
            along.vjp(&x, 2.0, &mut gradient);
            for i in 0..x.len() {
                let at = |h: f64| {
                    let mut moved = x;
                    moved[i] += h;
                    along.value(&moved)
                };
                let expected = 2.0 * (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((gradient[i] - expected).abs() < 1e-7, "{along:?} {i}: {} {expected}", gradient[i]);
            }
        }
    }
}
