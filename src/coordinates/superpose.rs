//! Optimal superposition of two sets of points, and rotations.

use super::vector::{atom, dot, set_atom};
use crate::rng::Stream;

/// Rotates `x[atoms][3]` about the origin onto `reference`, by the proper rotation with the least Σ|R x − reference|²
/// (Horn, J. Opt. Soc. Am. A 4, 629 (1987): its quaternion is the eigenvector of the largest eigenvalue of a 4 × 4
/// matrix). Both must be centred.
pub fn superpose(x: &mut [f64], reference: &[f64]) {
    superposing_rotation(x, reference).turn(x);
}

/// The rotation that [`superpose`] applies.
pub fn superposing_rotation(x: &[f64], reference: &[f64]) -> Rotation {
    let mut s = [[0.0; 3]; 3];
    for i in 0..x.len() / 3 {
        let (a, b) = (atom(x, i), atom(reference, i));
        for (row, a) in s.iter_mut().zip(a) {
            row.iter_mut().zip(b).for_each(|(s, b)| *s += a * b);
        }
    }
    let [[xx, xy, xz], [yx, yy, yz], [zx, zy, zz]] = s;
    let horn = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ];
    Rotation(leading_eigenvector(horn))
}

/// A rotation about the origin, as a unit quaternion (w, x, y, z).
#[derive(Clone, Copy, Debug)]
pub struct Rotation([f64; 4]);

impl Rotation {
    /// Rotates `x[atoms][3]` about the origin.
    pub fn turn(&self, x: &mut [f64]) {
        turn(x, rotation(self.0));
    }

    /// Inverse rotation.
    pub fn inverse(&self) -> Rotation {
        let [w, x, y, z] = self.0;
        Rotation([w, -x, -y, -z])
    }

    /// Whether the angle is exactly π, so that its direction is ambiguous.
    pub fn is_half_turn(&self) -> bool {
        self.0[0] == 0.0
    }

    /// Rotation about the same axis by the fraction `t` of the angle, taken between −π and π.
    pub fn part(&self, t: f64) -> Rotation {
        let [w, x, y, z] = self.0;
        let (w, x, y, z) = if w < 0.0 { (-w, -x, -y, -z) } else { (w, x, y, z) };
        let sine = (x * x + y * y + z * z).sqrt();
        let half = t * sine.atan2(w);
        // the axis is undefined if the angle is zero
        let scale = if sine > 0.0 { half.sin() / sine } else { 0.0 };
        Rotation([half.cos(), scale * x, scale * y, scale * z])
    }
}

/// Rotates `x[atoms][3]` about the origin by a uniformly distributed random rotation (Shoemake 1992: a normalised
/// normal quaternion).
pub fn random_rotation(x: &mut [f64], stream: &mut Stream) {
    let q: [f64; 4] = std::array::from_fn(|_| stream.normal());
    let length = q.iter().map(|q| q * q).sum::<f64>().sqrt();
    turn(x, rotation(q.map(|q| q / length)));
}

fn turn(x: &mut [f64], rotation: [[f64; 3]; 3]) {
    for i in 0..x.len() / 3 {
        let r = atom(x, i);
        set_atom(x, i, std::array::from_fn(|k| dot(rotation[k], r)));
    }
}

/// Rotation matrix of a unit quaternion.
fn rotation([w, x, y, z]: [f64; 4]) -> [[f64; 3]; 3] {
    [
        [1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y - w * z), 2.0 * (x * z + w * y)],
        [2.0 * (x * y + w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z - w * x)],
        [2.0 * (x * z - w * y), 2.0 * (y * z + w * x), 1.0 - 2.0 * (x * x + y * y)],
    ]
}

/// Relative difference below which two eigenvalues count as equal: far above rounding, far below what a bent molecule has.
const EQUAL: f64 = 1e-6;

/// Unit eigenvector of the largest eigenvalue of a symmetric matrix, by Jacobi rotations. If there are several, as for
/// molecules on a line, the one with the largest first component, which as a rotation has the smallest angle: any other
/// choice would be that of rounding, and not the same for the way back. Zero in the first component if all have that.
fn leading_eigenvector(mut a: [[f64; 4]; 4]) -> [f64; 4] {
    let mut vectors = [[0.0; 4]; 4];
    (0..4).for_each(|i| vectors[i][i] = 1.0);
    for _ in 0..30 {
        for p in 0..3 {
            for q in p + 1..4 {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in a.iter_mut().chain(&mut vectors) {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                let (above, below) = (a[p], a[q]);
                a[p] = std::array::from_fn(|k| c * above[k] - s * below[k]);
                a[q] = std::array::from_fn(|k| s * above[k] + c * below[k]);
            }
        }
    }
    let largest = (0..4).max_by(|&i, &j| a[i][i].total_cmp(&a[j][j])).unwrap_or(0);
    let leading: [f64; 4] = std::array::from_fn(|k| vectors[k][largest]);
    let equal: Vec<usize> =
        (0..4).filter(|&i| a[largest][largest] - a[i][i] <= EQUAL * a[largest][largest].abs()).collect();
    if equal.len() == 1 {
        return leading;
    }
    let nearest: [f64; 4] = std::array::from_fn(|k| equal.iter().map(|&i| vectors[0][i] * vectors[k][i]).sum());
    let length = nearest.iter().map(|q| q * q).sum::<f64>().sqrt();
    match length > EQUAL {
        true => nearest.map(|q| q / length),
        false => [0.0, leading[1], leading[2], leading[3]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    fn normals(n: usize, index: u64) -> Vec<f64> {
        let mut stream = Stream::new(9, StreamId::Test, index, 0);
        (0..n).map(|_| stream.normal()).collect()
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
    }

    fn turned(x: &[f64], quaternion: &[f64]) -> Vec<f64> {
        let norm = quaternion.iter().map(|q| q * q).sum::<f64>().sqrt();
        let r = rotation(std::array::from_fn(|k| quaternion[k] / norm));
        x.chunks_exact(3)
            .flat_map(|v| (0..3).map(|k| (0..3).map(|l| r[k][l] * v[l]).sum()).collect::<Vec<_>>())
            .collect()
    }

    /// A molecule on a line can be turned about it, too.
    #[test]
    fn a_line_is_turned_by_the_smallest_angle() {
        let line =
            |direction: [f64; 3]| [-0.1, 0.04, 0.06].iter().flat_map(|r| direction.map(|d| r * d)).collect::<Vec<_>>();
        let (x, y) = (line([1.0, 0.0, 0.0]), line([0.6, 0.8, 0.0]));
        for noise in [0.0, 1e-12, -1e-12] {
            let mut x = x.clone();
            x[4] += noise;
            let Rotation([w, a, b, c]) = superposing_rotation(&x, &y);
            let half = 0.5 * 0.8_f64.atan2(0.6);
            let error = (w.abs() - half.cos()).abs() + a.abs() + b.abs() + (c.abs() - half.sin()).abs();
            assert!(error < 1e-9, "{error}");
        }
        let back: Vec<f64> = x.iter().map(|v| -v).collect();
        assert!(superposing_rotation(&x, &back).is_half_turn());
        assert!(superposing_rotation(&y, &y.iter().map(|v| -v).collect::<Vec<_>>()).is_half_turn());
    }

    #[test]
    fn a_turned_copy_is_found_and_a_mirror_image_is_not_used() {
        let x = normals(21, 1);
        let mut copy = turned(&x, &normals(4, 2));
        superpose(&mut copy, &x);
        assert!(distance(&copy, &x) < 1e-20);
        let mirror: Vec<f64> = x.iter().map(|v| -v).collect();
        let mut image = mirror.clone();
        superpose(&mut image, &x);
        assert!(distance(&image, &x) > 0.1);
        // no other rotation gives a better fit
        for k in 0..200 {
            assert!(distance(&turned(&mirror, &normals(4, 10 + k)), &x) >= distance(&image, &x) - 1e-9);
        }
    }
}
