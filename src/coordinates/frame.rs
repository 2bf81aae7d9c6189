//! The frame of three atoms that defines a molecule's position and orientation.

use super::vector::{add, atom, cross, dot, norm, scale, set_atom, sub, unit, Vec3};

/// Sine of the frame's angle below which its orientation is undefined.
const SINGULAR: f64 = 1e-6;

/// Origin at the first atom; z axis to the second; the third in the half-plane of positive x.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    pub origin: Vec3,
    /// x, y, z.
    pub axes: [Vec3; 3],
}

impl Frame {
    /// Frame of these atoms; None if they are collinear.
    pub fn of(x: &[f64], atoms: [usize; 3]) -> Option<Frame> {
        let origin = atom(x, atoms[0]);
        let (a, b) = (sub(atom(x, atoms[1]), origin), sub(atom(x, atoms[2]), origin));
        let normal = cross(a, b);
        let sine = norm(normal) / (norm(a) * norm(b));
        if sine.is_nan() || sine < SINGULAR {
            return None;
        }
        let (z, y) = (unit(a), unit(normal));
        Some(Frame { origin, axes: [cross(y, z), y, z] })
    }

    /// Moves a configuration rigidly from this frame to another.
    pub fn carry(&self, x: &mut [f64], to: &Frame) {
        for i in 0..x.len() / 3 {
            let r = sub(atom(x, i), self.origin);
            let local = self.axes.map(|axis| dot(r, axis));
            let turned =
                add(add(scale(local[0], to.axes[0]), scale(local[1], to.axes[1])), scale(local[2], to.axes[2]));
            set_atom(x, i, add(to.origin, turned));
        }
    }
}
