//! Interpolation paths between configurations, which are the same from either end.

use super::frame::Frame;
use super::superpose::{superposing_rotation, Rotation};
use super::vector::{centre, shift, Vec3};
use super::InternalCoordinates;
use crate::density::Status;

/// Interpolation path x(t) from x(0) to x(1) whose reverse visits the same configurations: x_{a→b}(t) = x_{b→a}(1 − t).
#[derive(Debug)]
pub enum Between<'a> {
    /// Bonds, angles and Cartesian rows change linearly, torsions along the shorter arc; the frame stays in place.
    Internal { coordinates: &'a InternalCoordinates, frame: Frame, from: Vec<f64>, change: Vec<f64> },
    /// Every coordinate changes linearly.
    Straight { from: Vec<f64>, change: Vec<f64> },
    /// The molecule rotates about its centroid at a constant rate, by the rotation that best superposes the two ends,
    /// while every coordinate also changes linearly.
    Turning { centroid: Vec3, rotation: Rotation, from: Vec<f64>, change: Vec<f64> },
}

impl<'a> Between<'a> {
    /// Path in internal coordinates between `a[atoms][3]` and `b[atoms][3]` (nm), which share a frame.
    ///
    /// Errors: the status of an end that cannot be encoded; `Singular` if the frame is undefined or a torsion differs
    /// by exactly half a turn, which has no shorter arc.
    pub fn internal(coordinates: &'a InternalCoordinates, a: &[f64], b: &[f64]) -> Result<Between<'a>, Status> {
        let inside = |x: &[f64]| {
            let mut u = vec![0.0; coordinates.dimension()];
            match coordinates.to_internal(x, &mut u).1 {
                Status::Inside => Ok(u),
                status => Err(status),
            }
        };
        let (from, to) = (inside(a)?, inside(b)?);
        let frame = Frame::of(a, coordinates.zmatrix.frame).ok_or(Status::Singular)?;
        let mut change = difference(&from, &to);
        let turn = coordinates.turn();
        for torsion in coordinates.circles() {
            let arc = change[torsion] - turn * (change[torsion] / turn).round();
            if arc.abs() >= 0.5 * turn {
                return Err(Status::Singular);
            }
            change[torsion] = arc;
        }
        Ok(Between::Internal { coordinates, frame, from, change })
    }

    /// Straight path between any two configurations.
    pub fn straight(a: &[f64], b: &[f64]) -> Between<'a> {
        Between::Straight { from: a.to_vec(), change: difference(a, b) }
    }

    /// Path with rotation between `a[atoms][3]` and `b[atoms][3]`, which share a centroid. Errors: `Singular` if the
    /// best rotation is by exactly half a turn, which can be made in two directions.
    pub fn turning(a: &[f64], b: &[f64]) -> Result<Between<'a>, Status> {
        let (mut from, mut to) = (a.to_vec(), b.to_vec());
        let centroid = centre(&mut from);
        centre(&mut to);
        let rotation = superposing_rotation(&from, &to);
        if rotation.is_half_turn() {
            return Err(Status::Singular);
        }
        rotation.inverse().turn(&mut to);
        let change = difference(&from, &to);
        Ok(Between::Turning { centroid, rotation, from, change })
    }

    /// x(t), 0 < t < 1. Errors: the status of a point that has no configuration.
    pub fn at(&self, t: f64) -> Result<Vec<f64>, Status> {
        let along = |from: &[f64], change: &[f64]| -> Vec<f64> {
            from.iter().zip(change).map(|(from, change)| from + t * change).collect()
        };
        match self {
            Between::Straight { from, change } => Ok(along(from, change)),
            Between::Turning { centroid, rotation, from, change } => {
                let mut x = along(from, change);
                rotation.part(t).turn(&mut x);
                shift(&mut x, *centroid);
                Ok(x)
            }
            Between::Internal { coordinates, frame, from, change } => {
                let (mut u, mut x) = (along(from, change), vec![0.0; 3 * coordinates.n_atoms()]);
                coordinates.within_a_turn(&mut u);
                match coordinates.to_cartesian(&u, &mut x).1 {
                    Status::Inside => {}
                    status => return Err(status),
                }
                Frame::of(&x, coordinates.zmatrix.frame).ok_or(Status::Singular)?.carry(&mut x, frame);
                Ok(x)
            }
        }
    }
}

fn difference(from: &[f64], to: &[f64]) -> Vec<f64> {
    from.iter().zip(to).map(|(from, to)| to - from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::superpose::random_rotation;
    use crate::coordinates::vector::{atom, centroid, norm, torsion};
    use crate::coordinates::ZMatrix;
    use crate::rng::{Stream, StreamId};

    fn chain(phi: f64, bond: f64) -> Vec<f64> {
        // in the frame of the first three atoms
        let mut x = vec![0.0; 12];
        let u = [0.12, 0.15, bond, 1.8, 1.9, phi];
        let (_, status) = coordinates(&[]).to_cartesian(&u, &mut x);
        assert_eq!(status, Status::Inside);
        x.iter_mut().for_each(|v| *v += 0.3);
        x
    }

    fn coordinates(cartesian: &[usize]) -> InternalCoordinates {
        let zmatrix = ZMatrix::new([0, 1, 2], vec![[3, 2, 1, 0]], 4, |a| a.to_string()).unwrap();
        InternalCoordinates::new(zmatrix, false, &[]).unwrap().with_cartesian_rows(cartesian).unwrap()
    }

    fn phi(x: &[f64]) -> f64 {
        torsion(atom(x, 3), atom(x, 2), atom(x, 1), atom(x, 0))
    }

    fn largest(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn a_way_ends_where_it_should_and_is_the_way_back() {
        let (a, mut b) = (chain(2.9, 0.11), chain(-2.5, 0.13));
        let of_b = Frame::of(&b, [0, 1, 2]).unwrap();
        of_b.carry(&mut b, &Frame::of(&a, [0, 1, 2]).unwrap());
        let mut turned = chain(1.2, 0.1);
        random_rotation(&mut turned, &mut Stream::new(3, StreamId::Test, 0, 0));
        centre(&mut turned);
        shift(&mut turned, centroid(&a));
        let (torsions, mixed) = (coordinates(&[]), coordinates(&[0]));
        let ways = [
            (&b, Between::internal(&torsions, &a, &b), Between::internal(&torsions, &b, &a)),
            (&b, Between::internal(&mixed, &a, &b), Between::internal(&mixed, &b, &a)),
            (&turned, Between::turning(&a, &turned), Between::turning(&turned, &a)),
            (&turned, Ok(Between::straight(&a, &turned)), Ok(Between::straight(&turned, &a))),
        ];
        for (b, there, back) in ways {
            let (there, back) = (there.unwrap(), back.unwrap());
            assert!(largest(&there.at(0.0).unwrap(), &a) < 1e-12);
            assert!(largest(&there.at(1.0).unwrap(), b) < 1e-12);
            for t in [0.1, 0.35, 0.5, 0.8] {
                assert!(largest(&there.at(t).unwrap(), &back.at(1.0 - t).unwrap()) < 1e-12);
            }
        }
    }

    #[test]
    fn torsions_take_the_shorter_arc() {
        let (a, b) = (chain(2.9, 0.11), chain(-2.5, 0.11));
        let torsions = coordinates(&[]);
        let middle = Between::internal(&torsions, &a, &b).unwrap().at(0.5).unwrap();
        let expected = 2.9 + 0.5 * (std::f64::consts::TAU - 5.4) - std::f64::consts::TAU;
        assert!((phi(&middle) - expected).abs() < 1e-9, "{} {expected}", phi(&middle));
    }

    /// A path that rotates the molecule keeps its shape; a straight one squeezes it.
    #[test]
    fn a_turning_molecule_keeps_its_shape() {
        let mut a = chain(1.0, 0.11);
        centre(&mut a);
        let mut b = a.clone();
        random_rotation(&mut b, &mut Stream::new(5, StreamId::Test, 0, 0));
        let middle = Between::turning(&a, &b).unwrap().at(0.5).unwrap();
        let straight = Between::straight(&a, &b).at(0.5).unwrap();
        assert!(norm(atom(&straight, 3)) < 0.9 * norm(atom(&a, 3)));
        assert!((phi(&middle) - 1.0).abs() < 1e-9 && largest(&middle, &a) > 0.01);
    }

    #[test]
    fn half_a_turn_has_no_shorter_arc() {
        let zmatrix = ZMatrix::new([0, 1, 2], vec![[3, 2, 1, 0]], 4, |a| a.to_string()).unwrap();
        let torsions = InternalCoordinates::new(zmatrix, true, &[]).unwrap();
        // φ = π/2 and −π/2 with exact coordinates
        let x = |y: f64, z: f64| [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, y, z];
        assert_eq!(Between::internal(&torsions, &x(0.0, 1.0), &x(0.0, -1.0)).err(), Some(Status::Singular));
        assert!(Between::internal(&torsions, &x(0.0, 1.0), &x(0.01, -1.0)).is_ok());
        let line = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 1.0, 0.0];
        assert!(Between::internal(&torsions, &line, &x(0.0, 1.0)).is_err());
    }
}
