use super::*;
use crate::rng::{Stream, StreamId};
use crate::testing::log_abs_determinant;

/// A branched molecule of seven atoms with one constrained bond.
fn example(normalize: bool) -> (InternalCoordinates, Vec<f64>) {
    let rows = vec![[3, 2, 1, 0], [4, 1, 2, 0], [5, 3, 2, 1], [6, 3, 2, 5]];
    let zmatrix = ZMatrix::new([0, 1, 2], rows, 7, |a| a.to_string()).unwrap();
    let internal = InternalCoordinates::new(zmatrix, normalize, &[(3, 6, 0.11)]).unwrap();
    // with radians, also mixed coordinates: atoms 3 and 5 in Cartesian components
    let internal = internal.with_cartesian_rows(if normalize { &[] } else { &[0, 2] }).unwrap();
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    let (n_bonds, n_angles) = (internal.n_bonds(), internal.n_angles());
    let u = (0..internal.dimension())
        .map(|c| {
            let r = stream.uniform();
            let (angle, torsion) = if normalize { (0.5 + 0.2 * r, r) } else { (1.5 + 0.5 * r, 6.0 * r - 3.0) };
            if c < n_bonds {
                0.1 + 0.05 * r
            } else if c < n_bonds + n_angles {
                angle
            } else {
                torsion
            }
        })
        .collect();
    (internal, u)
}

/// It would be encoded as another torsion, with another log q.
#[test]
fn a_torsion_beyond_its_turn_is_out_of_support() {
    for normalize in [true, false] {
        let (internal, mut u) = example(normalize);
        let place = internal.torsion_offset() + 1;
        let ends = if normalize { [0.0, 1.0] } else { [-PI, PI] };
        for (value, inside) in [(ends[0], true), (ends[1], true), (ends[0] - 1e-9, false), (ends[1] + 1e-9, false)] {
            u[place] = value;
            let (_, status) = internal.to_cartesian(&u, &mut [0.0; 21]);
            assert_eq!(status == Status::Inside, inside, "{value}: {status:?}");
        }
    }
}

/// Reported by their status, not as a NaN log-determinant.
#[test]
fn bonds_and_angles_that_are_none_are_out_of_support() {
    for normalize in [true, false] {
        let (internal, u) = example(normalize);
        let straight = if normalize { 1.0 } else { PI };
        let angle = internal.angle_offset();
        for (place, value) in
            [(0, 0.0), (1, -0.1), (angle, 0.0), (angle, -0.1), (angle, straight), (angle, 1.1 * straight)]
        {
            let mut u = u.clone();
            u[place] = value;
            assert_eq!(internal.to_cartesian(&u, &mut [0.0; 21]).1, Status::OutOfSupport, "{place}: {value}");
        }
    }
}

/// Also if the nearly collinear atoms have no angle of their own among the coordinates.
#[test]
fn references_that_are_nearly_on_a_line_are_singular() {
    let mut x = [0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.15, 0.08, 0.0, 0.2, 1e-3, 0.0, -0.05, 0.02, 0.07];
    for cartesian in [&[][..], &[1]] {
        let rows = vec![[3, 2, 1, 0], [4, 0, 1, 3]];
        let zmatrix = ZMatrix::new([0, 1, 2], rows, 5, |a| a.to_string()).unwrap();
        let internal = InternalCoordinates::new(zmatrix, false, &[]).unwrap().with_cartesian_rows(cartesian).unwrap();
        for (aside, expected) in [(1e-3, Status::Inside), (1e-8, Status::Singular)] {
            x[10] = aside;
            let (mut u, mut back) = ([0.0; 9], x);
            assert_eq!(internal.to_internal(&x, &mut u).1, expected, "{cartesian:?}, {aside}");
            assert_eq!(internal.to_cartesian(&u, &mut back).1, expected, "{cartesian:?}, {aside}");
        }
    }
}

#[test]
fn there_and_back() {
    for normalize in [true, false] {
        let (internal, u) = example(normalize);
        let (mut x, mut back) = (vec![0.0; 21], vec![0.0; u.len()]);
        let (log_det, status) = internal.to_cartesian(&u, &mut x);
        assert_eq!(status, Status::Inside);
        let (log_det_back, status) = internal.to_internal(&x, &mut back);
        assert_eq!(status, Status::Inside);
        assert!((log_det - log_det_back).abs() < 1e-12);
        assert!(u.iter().zip(&back).all(|(a, b)| (a - b).abs() < 1e-12));
    }
}

#[test]
fn cotangents_match_differences() {
    cotangents(true);
    cotangents(false);
}

fn cotangents(normalize: bool) {
    let (internal, u) = example(normalize);
    let mut stream = Stream::new(4, StreamId::Test, 0, 0);
    let mut normals = |n: usize| (0..n).map(|_| stream.normal()).collect::<Vec<f64>>();
    let (wx, wu, w_log_det) = (normals(21), normals(u.len()), 0.7);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut x = vec![0.0; 21];
    internal.to_cartesian(&u, &mut x);

    let generate = |u: &[f64]| {
        let mut x = vec![0.0; 21];
        let (log_det, _) = internal.to_cartesian(u, &mut x);
        dot(&wx, &x) + w_log_det * log_det
    };
    let (mut scratch, mut gu) = (wx.clone(), vec![0.0; u.len()]);
    internal.to_cartesian_vjp(&u, &x, &mut scratch, w_log_det, &mut gu);
    let encode = |x: &[f64]| {
        let mut u = vec![0.0; wu.len()];
        let (log_det, _) = internal.to_internal(x, &mut u);
        dot(&wu, &u) + w_log_det * log_det
    };
    let mut gx = vec![0.0; 21];
    internal.to_internal_vjp(&x, &wu, w_log_det, &mut gx);

    let check = |f: &dyn Fn(&[f64]) -> f64, at: &[f64], gradient: &[f64]| {
        let h = 1e-6;
        for c in 0..at.len() {
            let (mut up, mut down) = (at.to_vec(), at.to_vec());
            up[c] += h;
            down[c] -= h;
            let d = (f(&up) - f(&down)) / (2.0 * h);
            assert!((gradient[c] - d).abs() < 1e-6 * d.abs().max(1.0), "coordinate {c}: {} and {d}", gradient[c]);
        }
    };
    check(&generate, &u, &gu);
    check(&encode, &x, &gx);
}

#[test]
fn mixed_coordinates_have_the_volume_of_the_jacobian() {
    // ∂x/∂(frame volume, u) with the six rigid coordinates added by hand: x = R(w) X(u) + t
    let (internal, u) = example(false);
    let full = |v: &[f64]| {
        let mut x = vec![0.0; 21];
        internal.to_cartesian(&v[6..], &mut x);
        let [a, b, c] = [v[3], v[4], v[5]];
        let mut y = vec![0.0; 21];
        for i in 0..7 {
            let r = atom(&x, i);
            // rotations about z, y, x; at the origin of (a, b, c) they are the three infinitesimal rotations
            let r = [r[0] * a.cos() - r[1] * a.sin(), r[0] * a.sin() + r[1] * a.cos(), r[2]];
            let r = [r[0] * b.cos() + r[2] * b.sin(), r[1], r[2] * b.cos() - r[0] * b.sin()];
            let r = [r[0], r[1] * c.cos() - r[2] * c.sin(), r[1] * c.sin() + r[2] * c.cos()];
            set_atom(&mut y, i, add(r, [v[0], v[1], v[2]]));
        }
        y
    };
    let mut v = vec![0.0; 6];
    v.extend(&u);
    let n = v.len();
    assert_eq!(n, 20, "one bond is constrained");
    // the constrained bond is the missing coordinate: add its direction
    let mut jacobian = vec![vec![0.0; 21]; 21];
    let h = 1e-6;
    for c in 0..n {
        let (mut up, mut down) = (v.clone(), v.clone());
        up[c] += h;
        down[c] -= h;
        let (up, down) = (full(&up), full(&down));
        (0..21).for_each(|r| jacobian[r][c] = (up[r] - down[r]) / (2.0 * h));
    }
    let x = full(&v);
    let along = unit(sub(atom(&x, 6), atom(&x, 3)));
    (0..3).for_each(|axis| jacobian[18 + axis][20] = along[axis]);
    let expected = log_abs_determinant(jacobian);
    let (log_det, _) = internal.to_cartesian(&u, &mut [0.0; 21]);
    assert!((log_det - expected).abs() < 1e-6, "{log_det} {expected}");
}

#[test]
fn collinear_atoms_are_singular_and_a_stretched_constraint_is_broken() {
    let (internal, u) = example(true);
    let mut x = vec![0.0; 21];
    internal.to_cartesian(&u, &mut x);
    let mut scratch = u.clone();
    let mut stretched = x.clone();
    let (r3, r6) = (atom(&x, 3), atom(&x, 6));
    set_atom(&mut stretched, 6, add(r3, scale(1.01, sub(r6, r3))));
    assert_eq!(internal.to_internal(&stretched, &mut scratch).1, Status::BrokenConstraint);
    let mut line = x.clone();
    let (r0, r1) = (atom(&x, 0), atom(&x, 1));
    set_atom(&mut line, 2, add(r1, sub(r1, r0)));
    assert_eq!(internal.to_internal(&line, &mut scratch).1, Status::Singular);
    x[4] = f64::NAN;
    assert_eq!(internal.to_internal(&x, &mut scratch).1, Status::NonFinite);
}
