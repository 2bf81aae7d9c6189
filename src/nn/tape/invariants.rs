//! Distances and signed volumes, which are invariant under translations and rotations.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::Scalar;
use std::sync::Arc;

/// Selection of invariants, with atoms counted from 0. A vector `[i, j]` goes from atom i to atom j.
#[derive(Clone, Debug, PartialEq)]
pub struct Invariants {
    pub atoms: usize,
    /// Vectors whose lengths |v| are invariants.
    pub distances: Arc<[[usize; 2]]>,
    /// Triples of vectors for u₁ · (u₂ × u₃) of their directions u, which changes sign under reflection.
    pub volumes: Arc<[[[usize; 2]; 3]]>,
    /// Swaps applied first.
    pub swaps: Arc<[Swap]>,
}

/// Two like atoms that are swapped if a volume has the wrong sign, so that the invariants do not depend on their
/// labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Swap {
    pub alike: [usize; 2],
    pub volume: [[usize; 2]; 3],
    pub positive: bool,
}

impl Invariants {
    /// Number of invariants.
    pub fn len(&self) -> usize {
        self.distances.len() + self.volumes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Clone, Debug)]
pub(super) struct InvariantsOp {
    x: Var,
    invariants: Invariants,
    output: Var,
}

type Vector<R> = [R; 3];

/// Added to squared lengths, so that lengths and directions stay differentiable where two atoms coincide.
const FLOOR: f64 = 1e-10;

fn dot<R: Scalar>(a: Vector<R>, b: Vector<R>) -> R {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

fn cross<R: Scalar>(a: Vector<R>, b: Vector<R>) -> Vector<R> {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn scaled<R: Scalar>(s: R, a: Vector<R>) -> Vector<R> {
    a.map(|a| s * a)
}

/// Length and direction.
fn polar<R: Scalar>(v: Vector<R>) -> (R, Vector<R>) {
    let length = (dot(v, v) + R::from_f64(FLOOR)).sqrt();
    (length, scaled(R::from_f64(1.0) / length, v))
}

/// The volume, with its derivative with respect to each vector.
fn volume<R: Scalar>(vectors: [Vector<R>; 3]) -> (R, [Vector<R>; 3]) {
    let [(la, a), (lb, b), (lc, c)] = vectors.map(polar);
    let normals = [cross(b, c), cross(c, a), cross(a, b)];
    let value = dot(a, normals[0]);
    let derivative = |length: R, direction: Vector<R>, normal: Vector<R>| -> Vector<R> {
        let inverse = R::from_f64(1.0) / length;
        std::array::from_fn(|k| inverse * (normal[k] - value * direction[k]))
    };
    (value, [derivative(la, a, normals[0]), derivative(lb, b, normals[1]), derivative(lc, c, normals[2])])
}

fn vector<R: Scalar>(x: &[R], [from, to]: [usize; 2]) -> Vector<R> {
    std::array::from_fn(|k| x[3 * to + k] - x[3 * from + k])
}

/// Adds the cotangent `g` of a vector to those of its atoms.
fn add_to_ends<R: Scalar>(slots: &mut [R], [from, to]: [usize; 2], g: Vector<R>) {
    for (k, g) in g.into_iter().enumerate() {
        slots[3 * to + k] += g;
        slots[3 * from + k] += -g;
    }
}

impl InvariantsOp {
    fn width(&self) -> usize {
        3 * self.invariants.atoms
    }

    /// Writes to `places` the atom at each position after the swaps of those with the wrong hand.
    fn order<R: Scalar>(&self, x: &[R], places: &mut Vec<usize>) {
        places.clear();
        places.extend(0..self.invariants.atoms);
        for swap in self.invariants.swaps.iter() {
            let [a, b, c] = swap.volume.map(|pair| vector(x, pair));
            if (dot(a, cross(b, c)) > R::default()) != swap.positive {
                places.swap(swap.alike[0], swap.alike[1]);
            }
        }
    }
}

/// Copies the rows of `x[atoms][3]` in the order `places`.
fn gather<R: Scalar>(x: &[R], places: &[usize], to: &mut [R]) {
    to.chunks_exact_mut(3).zip(places).for_each(|(r, &place)| r.copy_from_slice(&x[3 * place..3 * place + 3]));
}

impl<R: Scalar> Operation<R> for InvariantsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let Invariants { distances, volumes, .. } = &self.invariants;
        let (mut places, mut row) = (Vec::new(), vec![R::default(); self.width()]);
        let rows = point.value(self.x).chunks_exact(self.width());
        for (x, y) in rows.zip(output.chunks_exact_mut(self.invariants.len())) {
            self.order(x, &mut places);
            gather(x, &places, &mut row);
            let x = &row[..];
            let (lengths, y) = y.split_at_mut(distances.len());
            lengths.iter_mut().zip(distances.iter()).for_each(|(y, &pair)| *y = polar(vector(x, pair)).0);
            y.iter_mut().zip(volumes.iter()).for_each(|(y, &v)| *y = volume(v.map(|pair| vector(x, pair))).0);
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let Invariants { distances, volumes, .. } = &self.invariants;
        let rows = point.value(self.x).chunks_exact(self.width());
        let rows = rows.zip(tangents[self.x.range()].chunks_exact(self.width()));
        let (mut places, mut row, mut tangent) =
            (Vec::new(), vec![R::default(); self.width()], vec![R::default(); self.width()]);
        for ((x, dx), y) in rows.zip(output.chunks_exact_mut(self.invariants.len())) {
            self.order(x, &mut places);
            gather(x, &places, &mut row);
            gather(dx, &places, &mut tangent);
            let (x, dx) = (&row[..], &tangent[..]);
            let (lengths, y) = y.split_at_mut(distances.len());
            for (y, &pair) in lengths.iter_mut().zip(distances.iter()) {
                *y = dot(polar(vector(x, pair)).1, vector(dx, pair));
            }
            for (y, &pairs) in y.iter_mut().zip(volumes.iter()) {
                let derivatives = volume(pairs.map(|pair| vector(x, pair))).1;
                *y = (0..3).map(|k| dot(derivatives[k], vector(dx, pairs[k]))).sum();
            }
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let Invariants { distances, volumes, .. } = &self.invariants;
        let rows = point.value(self.x).chunks_exact(self.width()).zip(cotangent.chunks_exact(self.invariants.len()));
        let (mut places, mut row, mut slots) =
            (Vec::new(), vec![R::default(); self.width()], vec![R::default(); self.width()]);
        for ((x, g), outer) in rows.zip(inputs[self.x.range()].chunks_exact_mut(self.width())) {
            self.order(x, &mut places);
            gather(x, &places, &mut row);
            slots.fill(R::default());
            let x = &row[..];
            let (by_length, g) = g.split_at(distances.len());
            for (&g, &pair) in by_length.iter().zip(distances.iter()) {
                add_to_ends(&mut slots, pair, scaled(g, polar(vector(x, pair)).1));
            }
            for (&g, &pairs) in g.iter().zip(volumes.iter()) {
                let derivatives = volume(pairs.map(|pair| vector(x, pair))).1;
                pairs.into_iter().zip(derivatives).for_each(|(pair, d)| add_to_ends(&mut slots, pair, scaled(g, d)));
            }
            for (slots, &place) in slots.chunks_exact(3).zip(&places) {
                outer[3 * place..3 * place + 3].iter_mut().zip(slots).for_each(|(o, &s)| *o += s);
            }
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Distances, then volumes, of configurations `[samples][3 atoms]`; returns `[samples][numbers]`.
    pub fn invariants(&mut self, invariants: &Invariants, x: Var) -> Var {
        assert_eq!(x.columns, 3 * invariants.atoms);
        let output = self.allocate(x.rows, invariants.len());
        self.run(&[], InvariantsOp { x, invariants: invariants.clone(), output })
    }
}
