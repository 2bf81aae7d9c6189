//! Periodic boxes by lengths and angles, as in crystallography.

use super::vector::{cross, dot, norm, scale, sub};
use super::whole::BoxVectors;

/// A box up to rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Lengths of a, b and c, nm.
    pub lengths: [f64; 3],
    /// Cosines of α (between b and c), β (a and c) and γ (a and b).
    pub cosines: [f64; 3],
}

impl Cell {
    /// Cell of box vectors.
    pub fn new(vectors: &BoxVectors) -> Cell {
        let lengths = vectors.map(norm);
        let cosine = |i: usize, j: usize| dot(vectors[i], vectors[j]) / (lengths[i] * lengths[j]);
        Cell { lengths, cosines: [cosine(1, 2), cosine(0, 2), cosine(0, 1)] }
    }

    /// α, β and γ in degrees.
    pub fn angles(&self) -> [f64; 3] {
        self.cosines.map(|cosine| cosine.clamp(-1.0, 1.0).acos().to_degrees())
    }

    /// Box vectors with a along x and b in the xy plane; None if these lengths and angles span no volume.
    pub fn vectors(&self) -> Option<BoxVectors> {
        let ([a, b, c], [alpha, beta, gamma]) = (self.lengths, self.cosines);
        let sine = (1.0 - gamma * gamma).sqrt();
        let (x, y) = (beta, (alpha - beta * gamma) / sine);
        let z = (1.0 - x * x - y * y).sqrt();
        let vectors = [[a, 0.0, 0.0], [b * gamma, b * sine, 0.0], [c * x, c * y, c * z]];
        let volume = dot(vectors[0], cross(vectors[1], vectors[2]));
        (volume > 0.0 && volume.is_finite()).then_some(vectors)
    }
}

/// Lengths, and also the angles unless all are right angles.
impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let [a, b, c] = self.lengths;
        write!(f, "{a:.3} × {b:.3} × {c:.3} nm")?;
        match self.angles() {
            angles if angles.iter().all(|angle| (angle - 90.0).abs() < 0.005) => Ok(()),
            [alpha, beta, gamma] => write!(f, " ({alpha:.2}°, {beta:.2}°, {gamma:.2}°)"),
        }
    }
}

/// Whether two boxes, with a along x and b in the xy plane, have the same lattice: their vectors differ by lattice
/// vectors and at most by `tolerance`, as a fraction of their lengths.
pub fn are_alike(these: &BoxVectors, those: &BoxVectors, tolerance: f64) -> bool {
    (0..3).all(|k| {
        let mut difference = sub(these[k], those[k]);
        for axis in (0..k).rev() {
            let images = (difference[axis] / those[axis][axis]).round();
            difference = sub(difference, scale(images, those[axis]));
        }
        norm(difference) <= tolerance * norm(those[k])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRICLINIC: BoxVectors = [[2.0, 0.0, 0.0], [0.9, 1.8, 0.0], [-0.8, 0.7, 1.7]];

    #[test]
    fn lengths_and_angles_give_the_vectors_back() {
        let back = Cell::new(&TRICLINIC).vectors().unwrap();
        assert!(back.iter().flatten().zip(TRICLINIC.iter().flatten()).all(|(a, b)| (a - b).abs() < 1e-12), "{back:?}");
        let right = Cell::new(&[[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 4.0]]);
        assert_eq!((right.angles(), right.to_string().as_str()), ([90.0; 3], "2.000 × 3.000 × 4.000 nm"));
        let text = Cell::new(&[[2.0, 0.0, 0.0], [1.0, 3f64.sqrt(), 0.0], [0.0, 0.0, 4.0]]).to_string();
        assert_eq!(text, "2.000 × 2.000 × 4.000 nm (90.00°, 90.00°, 60.00°)");
        assert_eq!(Cell { lengths: [0.0; 3], cosines: [0.0; 3] }.vectors(), None);
        assert_eq!(Cell { lengths: [1.0; 3], cosines: [-0.9; 3] }.vectors(), None, "angles of no corner");
    }

    #[test]
    fn boxes_are_compared_as_lattices() {
        let [a, b, c] = TRICLINIC;
        assert!(are_alike(&TRICLINIC, &TRICLINIC, 0.0));
        // other vectors of the same lattice
        assert!(are_alike(&[a, sub(b, a), sub(sub(c, b), a)], &TRICLINIC, 1e-12));
        assert!(are_alike(&[scale(1.0009, a), b, c], &TRICLINIC, 1e-3));
        for other in [[scale(1.0011, a), b, c], [a, scale(1.0011, b), c], [a, b, scale(0.9989, c)]] {
            assert!(!are_alike(&other, &TRICLINIC, 1e-3), "{other:?}");
        }
    }
}
