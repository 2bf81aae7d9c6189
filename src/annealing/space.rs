//! Subspaces in which a path may move.

use crate::coordinates::vector::{atom, centre, dot, scale, set_atom, sub, Vec3};

/// A linear space of displacements. A density that leaves the centroid, or a frame of three atoms, alone is annealed to
/// the target without changing it: paths move the other coordinates only, whatever the target's dependence on the rest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Space {
    /// All displacements.
    Full,
    /// Displacements that leave the centroid in place.
    Centred,
    /// Displacements that preserve the frame: the first atom stays, the second moves along the third axis, the third in
    /// the half-plane of the first and third. `axes` are orthonormal.
    Frame { frame: [usize; 3], axes: [Vec3; 3] },
}

impl Space {
    /// Projects a displacement or gradient `v[dimension]` onto the space, in place.
    pub fn project(&self, v: &mut [f64]) {
        match *self {
            Space::Full => {}
            Space::Centred => _ = centre(v),
            Space::Frame { frame: [a, b, c], axes: [_, y, z] } => {
                set_atom(v, a, [0.0; 3]);
                let along = dot(atom(v, b), z);
                set_atom(v, b, scale(along, z));
                let inside = sub(atom(v, c), scale(dot(atom(v, c), y), y));
                set_atom(v, c, inside);
            }
        }
    }

    /// Log of the Cartesian volume per unit volume of the free coordinates, up to a constant, and its gradient as
    /// (atom, vector) pairs; −∞ where undefined.
    ///
    /// With position and orientation of a frame given, z the distance of its first two atoms and ρ that of the third
    /// from their line, dx = dx₀ · z² dz dΩ · ρ dρ dφ dz′ · …: orientations account for dΩ and dφ, so the volume is z²
    /// ρ.
    pub fn log_volume(&self, x: &[f64]) -> (f64, Vec<(usize, Vec3)>) {
        let Space::Frame { frame: [a, b, c], axes: [first, _, third] } = *self else { return (0.0, Vec::new()) };
        let z = dot(sub(atom(x, b), atom(x, a)), third);
        let rho = dot(sub(atom(x, c), atom(x, a)), first);
        if !(z > 0.0 && rho > 0.0) {
            return (f64::NEG_INFINITY, Vec::new());
        }
        (2.0 * z.ln() + rho.ln(), vec![(b, scale(2.0 / z, third)), (c, scale(1.0 / rho, first))])
    }
}
