//! Distances and directions of the edges to an atom, and their tangents.

// Indices of components, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::gvp::{grow, SMALLEST_SQUARE};
use crate::nn::lanes::{Kernel, Lanes, WIDTH};
use crate::nn::Real;

/// Added to every distance.
const DISTANCE_OFFSET: f64 = 1e-8;

/// The edges to one atom, indexed by source; entries of the atom itself and of the padding are meaningless.
#[derive(Clone, Debug, Default)]
pub struct Edges<R> {
    /// u = (x_j − x_i)/d, `[3][stride]`, and d = n(x_j − x_i) + 1e-8.
    pub direction: Vec<R>,
    pub distance: Vec<R>,
    /// d/n, zero below the smallest norm: the gradient of d with respect to x_j is u times this.
    pub slope: Vec<R>,
    pub stride: usize,
    pub destination: usize,
}

/// Tangents of an edge's distance, `[stride]`, and direction, `[3][stride]`.
#[derive(Clone, Debug, Default)]
pub struct EdgeTangents<R> {
    pub distance: Vec<R>,
    pub direction: Vec<R>,
    pub stride: usize,
}

impl<R: Real> Edges<R> {
    /// Sets the edges from the atoms at `x[3][stride]` to atom i.
    pub fn set(&mut self, x: &[R], i: usize) {
        (self.destination, self.stride) = (i, x.len() / 3);
        grow(&mut self.direction, x.len());
        grow(&mut self.distance, self.stride);
        grow(&mut self.slope, self.stride);
        R::vectorised(SetEdges { x, edges: self });
    }
}

struct SetEdges<'a, R> {
    x: &'a [R],
    edges: &'a mut Edges<R>,
}

impl<R: Real> Kernel<R> for SetEdges<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        let (x, edges) = (self.x, self.edges);
        let (stride, i) = (edges.stride, edges.destination);
        let smallest = L::splat(R::from_f64(SMALLEST_SQUARE));
        let one = L::splat(R::from_f64(1.0));
        for j in (0..stride).step_by(WIDTH) {
            let mut vector = [L::zero(); 3];
            let mut square = L::zero();
            for c in 0..3 {
                vector[c] = L::load(&x[c * stride + j..]).sub(L::splat(x[c * stride + i]));
                square = vector[c].mul_add(vector[c], square);
            }
            let norm = square.at_least(smallest).sqrt();
            let distance = norm.add(L::splat(R::from_f64(DISTANCE_OFFSET)));
            let inverse = one.div(distance);
            for c in 0..3 {
                vector[c].mul(inverse).store(&mut edges.direction[c * stride + j..]);
            }
            distance.store(&mut edges.distance[j..]);
            distance.div(norm).where_above(square, smallest).store(&mut edges.slope[j..]);
        }
    }
}

impl<R: Real> EdgeTangents<R> {
    /// Tangents of the edge from atom `from`, given those of its source and of its destination, `[3][stride]`.
    pub fn set(&mut self, edges: &Edges<R>, from: usize, (source, destination): (&[R], &[R]), stride: usize) {
        self.stride = stride;
        grow(&mut self.distance, stride);
        grow(&mut self.direction, 3 * stride);
        R::vectorised(SetEdge { edges, from, source, destination, to: self });
    }
}

struct SetEdge<'a, R> {
    edges: &'a Edges<R>,
    from: usize,
    source: &'a [R],
    destination: &'a [R],
    to: &'a mut EdgeTangents<R>,
}

impl<R: Real> Kernel<R> for SetEdge<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        let (stride, edges) = (self.to.stride, self.edges);
        let direction = [0, 1, 2].map(|c| edges.direction[c * edges.stride + self.from]);
        let slope = L::splat(edges.slope[self.from]);
        let inverse = L::splat(R::from_f64(1.0) / edges.distance[self.from]);
        for t in (0..stride).step_by(WIDTH) {
            let mut moved = [L::zero(); 3];
            let mut along = L::zero();
            for c in 0..3 {
                let place = c * stride + t;
                moved[c] = L::load(&self.source[place..]).sub(L::load(&self.destination[place..]));
                along = moved[c].mul_add(L::splat(direction[c]), along);
            }
            // d(distance) = slope u·dv, du = (dv − u d(distance)) / distance
            let distance = along.mul(slope);
            distance.store(&mut self.to.distance[t..]);
            for c in 0..3 {
                let across = moved[c].sub(L::splat(direction[c]).mul(distance));
                across.mul(inverse).store(&mut self.to.direction[c * stride + t..]);
            }
        }
    }
}
