//! Three-vectors and the geometry of four atoms.

/// A vector, nm for positions.
pub type Vec3 = [f64; 3];

pub fn add(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2]]
}
pub fn sub(a: Vec3, b: Vec3) -> Vec3 {
    [a[0] - b[0], a[1] - b[1], a[2] - b[2]]
}
pub fn scale(s: f64, a: Vec3) -> Vec3 {
    [s * a[0], s * a[1], s * a[2]]
}
pub fn dot(a: Vec3, b: Vec3) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}
pub fn cross(a: Vec3, b: Vec3) -> Vec3 {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}
pub fn norm(a: Vec3) -> f64 {
    dot(a, a).sqrt()
}
/// Unit vector along a; NaN for the zero vector.
pub fn unit(a: Vec3) -> Vec3 {
    scale(1.0 / norm(a), a)
}

/// Atom `i` of one configuration `x[atoms][3]`.
pub fn atom(x: &[f64], i: usize) -> Vec3 {
    [x[3 * i], x[3 * i + 1], x[3 * i + 2]]
}

/// Distance between atoms i and j of `x[atoms][3]`.
pub fn distance(x: &[f64], i: usize, j: usize) -> f64 {
    norm(sub(atom(x, i), atom(x, j)))
}

/// Sets atom i of `x[atoms][3]` to r.
pub fn set_atom(x: &mut [f64], i: usize, r: Vec3) {
    x[3 * i..3 * i + 3].copy_from_slice(&r);
}

/// `x[i] += s · r`
pub fn add_to_atom(x: &mut [f64], i: usize, s: f64, r: Vec3) {
    for axis in 0..3 {
        x[3 * i + axis] += s * r[axis];
    }
}

/// Unweighted mean position of the atoms.
pub fn centroid(x: &[f64]) -> Vec3 {
    let n = x.len() / 3;
    scale(1.0 / n as f64, (0..n).fold([0.0; 3], |sum, i| add(sum, atom(x, i))))
}

/// Moves the centroid to the origin; returns its former position.
pub fn centre(x: &mut [f64]) -> Vec3 {
    let was = centroid(x);
    shift(x, scale(-1.0, was));
    was
}

/// Translates every atom by `r`.
pub fn shift(x: &mut [f64], r: Vec3) {
    (0..x.len() / 3).for_each(|i| add_to_atom(x, i, 1.0, r));
}

/// Bond angle at `j` between `i` and `k`, in (0, π), by atan2, since acos loses digits at both ends.
pub fn angle(i: Vec3, j: Vec3, k: Vec3) -> f64 {
    let (a, b) = (sub(i, j), sub(k, j));
    norm(cross(a, b)).atan2(dot(a, b))
}

/// Torsion i–j–k–l about the bond j–k, in [−π, π]; zero in cis, IUPAC sign.
pub fn torsion(i: Vec3, j: Vec3, k: Vec3, l: Vec3) -> f64 {
    let (b0, b1, b2) = (sub(i, j), unit(sub(k, j)), sub(l, k));
    let v = sub(b0, scale(dot(b0, b1), b1));
    let w = sub(b2, scale(dot(b2, b1), b1));
    dot(cross(b1, v), w).atan2(dot(v, w))
}

/// ∂angle/∂(i, j, k).
pub fn angle_gradient(i: Vec3, j: Vec3, k: Vec3) -> [Vec3; 3] {
    let (a, b) = (sub(i, j), sub(k, j));
    let (la, lb) = (norm(a), norm(b));
    let (ua, ub) = (scale(1.0 / la, a), scale(1.0 / lb, b));
    let cos = dot(ua, ub);
    let sin = norm(cross(ua, ub));
    let gi = scale(1.0 / (la * sin), sub(scale(cos, ua), ub));
    let gk = scale(1.0 / (lb * sin), sub(scale(cos, ub), ua));
    [gi, scale(-1.0, add(gi, gk)), gk]
}

/// ∂torsion/∂(i, j, k, l) (Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), eq. 27).
pub fn torsion_gradient(i: Vec3, j: Vec3, k: Vec3, l: Vec3) -> [Vec3; 4] {
    let (f, g, h) = (sub(i, j), sub(j, k), sub(l, k));
    let (a, b) = (cross(f, g), cross(h, g));
    let (a2, b2, lg) = (dot(a, a), dot(b, b), norm(g));
    let gi = scale(-lg / a2, a);
    let gl = scale(lg / b2, b);
    let s = sub(scale(dot(f, g) / (a2 * lg), a), scale(dot(h, g) / (b2 * lg), b));
    [gi, sub(s, gi), scale(-1.0, add(s, gl)), gl]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_match_differences() {
        let r = [[0.1, -0.2, 0.3], [0.0, 0.1, 0.2], [0.4, 0.2, -0.1], [0.3, 0.5, 0.6]];
        let h = 1e-6;
        let difference = |f: &dyn Fn(&[Vec3; 4]) -> f64, atom: usize, axis: usize| {
            let (mut up, mut down) = (r, r);
            up[atom][axis] += h;
            down[atom][axis] -= h;
            (f(&up) - f(&down)) / (2.0 * h)
        };
        let by_angle = angle_gradient(r[0], r[1], r[2]);
        let by_torsion = torsion_gradient(r[0], r[1], r[2], r[3]);
        for axis in 0..3 {
            for atom in 0..4 {
                let d = difference(&|r| torsion(r[0], r[1], r[2], r[3]), atom, axis);
                assert!((by_torsion[atom][axis] - d).abs() < 1e-8, "torsion, atom {atom}: {d}");
                if atom < 3 {
                    let d = difference(&|r| angle(r[0], r[1], r[2]), atom, axis);
                    assert!((by_angle[atom][axis] - d).abs() < 1e-8, "angle, atom {atom}: {d}");
                }
            }
        }
    }
}
