//! Internal coordinates: bonds, angles and torsions of a z-matrix, with the closed-form log-determinant.
//!
//! With `d`, θ, φ of every row and the frame's two bonds and angle, the Cartesian volume per internal volume is Π d²
//! sin θ (frame: d₀₁² d₁₂² sin θ₀₁₂), times the volume of position and orientation, which the generator leaves alone.
//! Orientation is measured by (α/2π, cos β, γ/2π) when angles are normalised, else by (α, cos β, γ).
//!
//! Mixed coordinates: a row may keep its atom as Cartesian components in the local axes of its three reference atoms.
//! That is a rotation, so its volume factor is one, and unlike a projection on principal components it is always
//! invertible.

use super::constraints::CONFIGURATION_TOLERANCE;
use super::frame::Frame;
use super::placement::{Axes, Placement, SINGULAR};
use super::vector::*;
use super::zmatrix::ZMatrix;
use crate::density::Status;
use crate::error::{Error, Result};
use std::f64::consts::PI;

/// Orientation of a generated configuration: direction of the frame's first bond and side of its third atom. These are
/// the axes of orientation (½, ½, ½) in normalised angles.
const AXIS: Vec3 = [0.0, -0.866_025_403_784_438_6, 0.5];
const SIDE: Vec3 = [1.0, 0.0, 0.0];

/// The map between `x[atoms][3]` (nm) and `u = [free bonds | angles | torsions]`.
///
/// Bonds are in nm. Angles and torsions are in radian, or as θ/π and (φ+π)/2π when normalised. Order within each block:
/// the frame (bonds 0–1 and 1–2; the angle at 1), then the rows of the z-matrix as given.
#[derive(Clone, Debug)]
pub struct InternalCoordinates {
    pub zmatrix: ZMatrix,
    n_atoms: usize,
    normalize_angles: bool,
    /// Length of every bond (frame bonds first) that is constrained.
    pub(crate) fixed: Vec<Option<f64>>,
    /// Index in `u` of every free bond.
    pub(crate) slot: Vec<usize>,
    n_free: usize,
    /// Whether each row is kept as Cartesian components.
    pub(crate) cartesian: Vec<bool>,
}

impl InternalCoordinates {
    /// Internal coordinates by a z-matrix. `fixed` lists constrained bonds as (i, j, length in nm).
    ///
    /// Errors: a constraint that is not a bond of the z-matrix, is listed twice, or whose length is not positive.
    pub fn new(zmatrix: ZMatrix, normalize_angles: bool, fixed: &[(usize, usize, f64)]) -> Result<InternalCoordinates> {
        let n_rows = zmatrix.rows.len();
        let mut lengths = vec![None; n_rows + 2];
        for &(i, j, length) in fixed {
            let bond = bond_index(&zmatrix, i, j).ok_or_else(|| {
                Error::Unsupported(format!(
                    "the constraint between atoms {} and {} is not a bond of the z-matrix, so the generator cannot keep it exactly: constrain only bonds \
                     to hydrogen (HBonds, h-bonds), not angles or all bonds of a ring",
                    i.saturating_add(1),
                    j.saturating_add(1)
                ))
            })?;
            if !(length > 0.0 && length.is_finite()) {
                return Err(Error::invalid(format!(
                    "constraint between atoms {} and {}: the length is {length} nm, but must be positive",
                    i + 1,
                    j + 1
                )));
            }
            if lengths[bond].replace(length).is_some() {
                let message = format!("the constraint between atoms {} and {} is listed twice", i + 1, j + 1);
                return Err(Error::invalid(message));
            }
        }
        let mut slot = vec![usize::MAX; n_rows + 2];
        let mut n_free = 0;
        for (bond, place) in slot.iter_mut().enumerate() {
            if lengths[bond].is_none() {
                *place = n_free;
                n_free += 1;
            }
        }
        Ok(InternalCoordinates {
            n_atoms: n_rows + 3,
            zmatrix,
            normalize_angles,
            fixed: lengths,
            slot,
            n_free,
            cartesian: vec![false; n_rows],
        })
    }

    /// Keeps these rows as Cartesian components (nm) along the axes of their reference atoms (j, k, l): unit(j − k),
    /// the plane's normal unit((j − k) × (j − l)), and their cross product. In `u` they replace bond, angle and
    /// torsion.
    ///
    /// Errors: a row out of range, or one whose bond is constrained.
    pub fn with_cartesian_rows(mut self, rows: &[usize]) -> Result<InternalCoordinates> {
        for &row in rows {
            if row >= self.cartesian.len() {
                return Err(Error::invalid(format!(
                    "Cartesian row {row} is out of range: the z-matrix has {} rows",
                    self.cartesian.len()
                )));
            }
            if self.fixed[row + 2].is_some() {
                let [i, j, ..] = self.zmatrix.rows[row];
                let message = format!(
                    "the bond {}–{} is constrained, so its atom cannot have Cartesian coordinates",
                    i + 1,
                    j + 1
                );
                return Err(Error::Unsupported(message));
            }
            self.cartesian[row] = true;
        }
        Ok(self)
    }

    /// Number of atoms, including the three of the frame.
    pub fn n_atoms(&self) -> usize {
        self.n_atoms
    }

    /// Length of `u`.
    pub fn dimension(&self) -> usize {
        self.n_free + self.n_angles() + self.n_torsions()
    }

    /// Number of free bonds.
    pub fn n_bonds(&self) -> usize {
        self.n_free
    }
    /// Number of angles, including the frame's.
    pub fn n_angles(&self) -> usize {
        self.zmatrix.rows.len() + 1
    }
    /// Number of torsions, one per row of the z-matrix.
    pub fn n_torsions(&self) -> usize {
        self.zmatrix.rows.len()
    }

    /// Whether angles and torsions are scaled to [0, 1], as in bgflow.
    pub fn normalize_angles(&self) -> bool {
        self.normalize_angles
    }

    /// Constrained bonds as (i, j, length in nm).
    pub fn fixed_bonds(&self) -> Vec<(usize, usize, f64)> {
        let [a0, a1, a2] = self.zmatrix.frame;
        let ends = [(a1, a0), (a2, a1)].into_iter().chain(self.zmatrix.rows.iter().map(|r| (r[0], r[1])));
        ends.zip(&self.fixed).filter_map(|((i, j), length)| length.map(|d| (i, j, d))).collect()
    }

    fn scales(&self) -> (f64, f64) {
        if self.normalize_angles {
            (PI, 2.0 * PI)
        } else {
            (1.0, 1.0)
        }
    }

    /// ln of the constant volume factor of normalised angles, torsions and orientation.
    pub(crate) fn log_volume(&self) -> f64 {
        let (angle, torsion) = self.scales();
        let n_cartesian = self.cartesian.iter().filter(|c| **c).count();
        let (n_angles, n_torsions) = (self.n_angles() - n_cartesian, self.n_torsions() + 2 - n_cartesian);
        n_angles as f64 * angle.ln() + n_torsions as f64 * torsion.ln()
    }

    fn angle_offset(&self) -> usize {
        self.n_free
    }
    fn torsion_offset(&self) -> usize {
        self.n_free + self.n_angles()
    }

    /// Maps `x` to `u`; returns ln|∂x/∂u|, the log-determinant of the generating direction.
    pub fn to_internal(&self, x: &[f64], u: &mut [f64]) -> (f64, Status) {
        if x.iter().any(|v| !v.is_finite()) {
            return (0.0, Status::NonFinite);
        }
        let [a0, a1, a2] = self.zmatrix.frame.map(|a| atom(x, a));
        let mut status = Status::Inside;
        let mut log_det = self.log_volume();
        log_det += self.put_bond(u, 0, norm(sub(a1, a0)), &mut status);
        log_det += self.put_bond(u, 1, norm(sub(a2, a1)), &mut status);
        log_det += self.put_angle(u, 0, angle(a0, a1, a2), &mut status);
        for (r, row) in self.zmatrix.rows.iter().enumerate() {
            let [i, j, k, l] = row.map(|a| atom(x, a));
            if self.cartesian[r] {
                let axes = Axes::new(j, k, l);
                if axes.is_singular() {
                    status = worse(status, Status::Singular);
                }
                let components = axes.components(sub(i, j));
                self.places(r).into_iter().zip(components).for_each(|(place, c)| u[place] = c);
                continue;
            }
            log_det += self.put_bond(u, r + 2, norm(sub(i, j)), &mut status);
            log_det += self.put_angle(u, r + 1, angle(i, j, k), &mut status);
            let (jk, kl) = (sub(k, j), sub(l, k));
            if norm(cross(jk, kl)) < SINGULAR * norm(jk) * norm(kl) {
                status = worse(status, Status::Singular);
            }
            let (_, scale) = self.scales();
            let phi = torsion(i, j, k, l);
            u[self.torsion_offset() + r] = if self.normalize_angles { (phi + PI) / scale } else { phi };
        }
        if !log_det.is_finite() || u.iter().any(|v| !v.is_finite()) {
            status = worse(status, Status::Singular);
        }
        (log_det, status)
    }

    /// Length of a full turn of a torsion in `u`.
    pub(super) fn turn(&self) -> f64 {
        if self.normalize_angles {
            1.0
        } else {
            2.0 * PI
        }
    }

    /// Indices in `u` of the torsions, except of rows kept as Cartesian components.
    pub(super) fn circles(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n_torsions()).filter(|r| !self.cartesian[*r]).map(|r| self.torsion_offset() + r)
    }

    /// A torsion in turns, from −½ to ½.
    fn turns(&self, torsion: f64) -> f64 {
        let middle = if self.normalize_angles { 0.5 } else { 0.0 };
        (torsion - middle) / self.turn()
    }

    /// Wraps torsions into one turn.
    pub(super) fn within_a_turn(&self, u: &mut [f64]) {
        self.circles().for_each(|place| u[place] -= self.turn() * self.turns(u[place]).round());
    }

    /// Indices in `u` of a row's bond, angle and torsion.
    fn places(&self, row: usize) -> [usize; 3] {
        [self.slot[row + 2], self.angle_offset() + row + 1, self.torsion_offset() + row]
    }

    fn put_bond(&self, u: &mut [f64], bond: usize, d: f64, status: &mut Status) -> f64 {
        match self.fixed[bond] {
            None => u[self.slot[bond]] = d,
            Some(length) if (d - length).abs() > CONFIGURATION_TOLERANCE * length => {
                *status = worse(*status, Status::BrokenConstraint)
            }
            Some(_) => {}
        }
        2.0 * d.ln()
    }

    fn put_angle(&self, u: &mut [f64], index: usize, theta: f64, status: &mut Status) -> f64 {
        if theta.sin() < SINGULAR {
            *status = worse(*status, Status::Singular);
        }
        u[self.angle_offset() + index] = theta / self.scales().0;
        theta.sin().ln()
    }

    fn bond(&self, u: &[f64], bond: usize) -> f64 {
        self.fixed[bond].unwrap_or_else(|| u[self.slot[bond]])
    }

    fn angle(&self, u: &[f64], index: usize) -> f64 {
        u[self.angle_offset() + index] * self.scales().0
    }

    fn torsion(&self, u: &[f64], row: usize) -> f64 {
        let value = u[self.torsion_offset() + row];
        if self.normalize_angles {
            value * 2.0 * PI - PI
        } else {
            value
        }
    }

    /// Maps `u` to `x`, with the frame's first atom at the origin; returns ln|∂x/∂u|.
    pub fn to_cartesian(&self, u: &[f64], x: &mut [f64]) -> (f64, Status) {
        if u.iter().any(|v| !v.is_finite()) {
            return (0.0, Status::NonFinite);
        }
        let mut status = Status::Inside;
        let mut log_det = self.log_volume();
        let spherical = |number: usize, first: usize| number < first || !self.cartesian[number - first];
        for bond in (0..self.fixed.len()).filter(|&b| spherical(b, 2)) {
            let d = self.bond(u, bond);
            if d <= 0.0 {
                return (0.0, Status::OutOfSupport);
            }
            log_det += 2.0 * d.ln();
        }
        for index in (0..self.n_angles()).filter(|&i| spherical(i, 1)) {
            let theta = self.angle(u, index);
            if theta <= 0.0 || theta >= PI {
                return (0.0, Status::OutOfSupport);
            }
            if theta.sin() < SINGULAR {
                status = Status::Singular;
            }
            log_det += theta.sin().ln();
        }
        // a torsion outside its range would be encoded as another one, with another density
        if self.circles().any(|place| self.turns(u[place]).abs() > 0.5) {
            return (0.0, Status::OutOfSupport);
        }
        let [a0, a1, a2] = self.zmatrix.frame;
        let (sin, cos) = self.angle(u, 0).sin_cos();
        let first = scale(self.bond(u, 0), AXIS);
        let second = add(first, scale(self.bond(u, 1), sub(scale(sin, SIDE), scale(cos, AXIS))));
        set_atom(x, a0, [0.0; 3]);
        set_atom(x, a1, first);
        set_atom(x, a2, second);
        for &r in &self.zmatrix.order {
            let [i, j, k, l] = self.zmatrix.rows[r];
            let (xj, xk, xl) = (atom(x, j), atom(x, k), atom(x, l));
            let axes = Axes::new(xj, xk, xl);
            if axes.is_singular() {
                status = Status::Singular;
            }
            let offset = match self.cartesian[r] {
                true => axes.vector(self.places(r).map(|place| u[place])),
                false => {
                    let placement =
                        Placement { axes, theta: self.angle(u, r + 1).sin_cos(), phi: self.torsion(u, r).sin_cos() };
                    scale(self.bond(u, r + 2), placement.direction())
                }
            };
            set_atom(x, i, add(xj, offset));
        }
        (log_det, status)
    }

    /// Gives constrained bonds their lengths, and leaves free bonds, angles, torsions and the frame as they are. A singular
    /// `x` stays as it is.
    pub fn restore_bonds(&self, x: &mut [f64]) {
        let mut u = vec![0.0; self.dimension()];
        let (_, status) = self.to_internal(x, &mut u);
        let Some(here) = Frame::of(x, self.zmatrix.frame) else { return };
        self.within_a_turn(&mut u);
        let mut kept = vec![0.0; x.len()];
        if matches!(status, Status::Inside | Status::BrokenConstraint)
            && self.to_cartesian(&u, &mut kept).1 == Status::Inside
        {
            if let Some(there) = Frame::of(&kept, self.zmatrix.frame) {
                there.carry(&mut kept, &here);
                x.copy_from_slice(&kept);
            }
        }
    }

    /// Adds to `gx` the cotangent of `x` from those of `u` and of the log-determinant.
    pub fn to_internal_vjp(&self, x: &[f64], gu: &[f64], g_log_det: f64, gx: &mut [f64]) {
        let (angle_scale, torsion_scale) = self.scales();
        let bond_back = |bond: usize, i: usize, j: usize, gx: &mut [f64]| {
            let r = sub(atom(x, i), atom(x, j));
            let d = norm(r);
            let from_u = if self.fixed[bond].is_none() { gu[self.slot[bond]] } else { 0.0 };
            let g = (from_u + g_log_det * 2.0 / d) / d;
            add_to_atom(gx, i, g, r);
            add_to_atom(gx, j, -g, r);
        };
        let angle_back = |index: usize, atoms: [usize; 3], gx: &mut [f64]| {
            let [i, j, k] = atoms.map(|a| atom(x, a));
            let theta = angle(i, j, k);
            let g = gu[self.angle_offset() + index] / angle_scale + g_log_det / theta.tan();
            for (a, d) in atoms.into_iter().zip(angle_gradient(i, j, k)) {
                add_to_atom(gx, a, g, d);
            }
        };
        let [a0, a1, a2] = self.zmatrix.frame;
        bond_back(0, a1, a0, gx);
        bond_back(1, a2, a1, gx);
        angle_back(0, [a0, a1, a2], gx);
        for (r, row) in self.zmatrix.rows.iter().enumerate() {
            if self.cartesian[r] {
                let [i, j, k, l] = row.map(|a| atom(x, a));
                let (axes, offset) = (Axes::new(j, k, l), sub(i, j));
                let g = self.places(r).map(|place| gu[place]);
                let by_offset = axes.vector(g);
                let back = axes.vjp(g.map(|g| scale(g, offset)));
                add_to_atom(gx, row[0], 1.0, by_offset);
                add_to_atom(gx, row[1], -1.0, by_offset);
                row[1..].iter().zip(back).for_each(|(&a, g)| add_to_atom(gx, a, 1.0, g));
                continue;
            }
            bond_back(r + 2, row[0], row[1], gx);
            angle_back(r + 1, [row[0], row[1], row[2]], gx);
            let [i, j, k, l] = row.map(|a| atom(x, a));
            let g = gu[self.torsion_offset() + r] / torsion_scale;
            for (&a, d) in row.iter().zip(torsion_gradient(i, j, k, l)) {
                add_to_atom(gx, a, g, d);
            }
        }
    }

    /// Writes `gu`, the cotangent of `u`, from those of `x` (used as scratch) and of the log-determinant.
    pub fn to_cartesian_vjp(&self, u: &[f64], x: &[f64], gx: &mut [f64], g_log_det: f64, gu: &mut [f64]) {
        let (angle_scale, torsion_scale) = self.scales();
        let put_bond = |gu: &mut [f64], bond: usize, g: f64| {
            if self.fixed[bond].is_none() {
                gu[self.slot[bond]] = g + g_log_det * 2.0 / self.bond(u, bond);
            }
        };
        let angle_term = |index: usize| g_log_det / self.angle(u, index).tan();
        for &r in self.zmatrix.order.iter().rev() {
            let [i, j, k, l] = self.zmatrix.rows[r];
            let (xj, xk, xl) = (atom(x, j), atom(x, k), atom(x, l));
            let (axes, g) = (Axes::new(xj, xk, xl), atom(gx, i));
            add_to_atom(gx, j, 1.0, g);
            let g_axes = if self.cartesian[r] {
                self.places(r).into_iter().zip(axes.components(g)).for_each(|(place, g)| gu[place] = g);
                self.places(r).map(|place| scale(u[place], g))
            } else {
                let placement =
                    Placement { axes, theta: self.angle(u, r + 1).sin_cos(), phi: self.torsion(u, r).sin_cos() };
                let back = placement.vjp(self.bond(u, r + 2), g);
                put_bond(gu, r + 2, back.d);
                gu[self.angle_offset() + r + 1] = (back.theta + angle_term(r + 1)) * angle_scale;
                gu[self.torsion_offset() + r] = back.phi * torsion_scale;
                back.axes
            };
            for (atom, g) in [j, k, l].into_iter().zip(axes.vjp(g_axes)) {
                add_to_atom(gx, atom, 1.0, g);
            }
        }
        let [_, a1, a2] = self.zmatrix.frame;
        let (sin, cos) = self.angle(u, 0).sin_cos();
        let g2 = atom(gx, a2);
        put_bond(gu, 1, dot(g2, sub(scale(sin, SIDE), scale(cos, AXIS))));
        put_bond(gu, 0, dot(add(atom(gx, a1), g2), AXIS));
        let by_angle = self.bond(u, 1) * dot(g2, add(scale(cos, SIDE), scale(sin, AXIS)));
        gu[self.angle_offset()] = (by_angle + angle_term(0)) * angle_scale;
    }
}

/// The first of the two that is not `Inside`.
fn worse(a: Status, b: Status) -> Status {
    if a == Status::Inside {
        b
    } else {
        a
    }
}

/// Index of a bond of the z-matrix: 0 and 1 are the frame's, then the rows'.
fn bond_index(zmatrix: &ZMatrix, i: usize, j: usize) -> Option<usize> {
    let [a0, a1, a2] = zmatrix.frame;
    let same = |p: usize, q: usize| (p == i && q == j) || (p == j && q == i);
    if same(a0, a1) {
        return Some(0);
    }
    if same(a1, a2) {
        return Some(1);
    }
    zmatrix.rows.iter().position(|r| same(r[0], r[1])).map(|r| r + 2)
}

#[cfg(test)]
#[path = "internal_tests.rs"]
mod tests;
