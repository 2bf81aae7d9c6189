//! Permuted rows, and values side by side.

use super::{Operation, Point, Tape, Var};
use crate::nn::Scalar;
use std::sync::Arc;

/// Entry of `order` that gives a row of zeros.
pub const NO_ROW: u32 = u32::MAX;

/// Row r of each sample is row `order[r]` of its input, or zero.
#[derive(Clone, Debug)]
pub(super) struct RowsOp {
    x: Var,
    order: Arc<[u32]>,
    output: Var,
}

impl RowsOp {
    /// (row of the output, row of the input).
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let t = self.order.len();
        let rows = 0..self.output.rows;
        rows.map(move |r| (r, self.order[r % t]))
            .filter(|p| p.1 != NO_ROW)
            .map(move |(r, k)| (r, r / t * t + k as usize))
    }
}

impl<R: Scalar> Operation<R> for RowsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (n, x) = (self.x.columns, point.value(self.x));
        output.fill(R::default());
        for (to, from) in self.pairs() {
            output[to * n..(to + 1) * n].copy_from_slice(&x[from * n..(from + 1) * n]);
        }
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (n, slot) = (self.x.columns, &mut inputs[self.x.range()]);
        for (to, from) in self.pairs() {
            let g = &cotangent[to * n..(to + 1) * n];
            slot[from * n..(from + 1) * n].iter_mut().zip(g).for_each(|(s, &g)| *s += g);
        }
    }
}

/// Concatenates the columns of three values.
#[derive(Clone, Debug)]
pub(super) struct SideBySideOp {
    parts: [Var; 3],
    output: Var,
}

impl SideBySideOp {
    /// Parts, each with its first column.
    fn places(&self) -> impl Iterator<Item = (Var, usize)> + '_ {
        self.parts.iter().scan(0, |column, &part| {
            *column += part.columns;
            Some((part, *column - part.columns))
        })
    }
}

impl<R: Scalar> Operation<R> for SideBySideOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        for (part, start) in self.places() {
            let rows = output.chunks_exact_mut(self.output.columns).zip(point.value(part).chunks_exact(part.columns));
            rows.for_each(|(row, part)| row[start..start + part.len()].copy_from_slice(part));
        }
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        for (part, start) in self.places() {
            let slots = inputs[part.range()].chunks_exact_mut(part.columns);
            for (slot, g) in slots.zip(cotangent.chunks_exact(self.output.columns)) {
                slot.iter_mut().zip(&g[start..]).for_each(|(s, &g)| *s += g);
            }
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// [a, b, c]: the concatenated columns of three values with equal numbers of rows.
    pub fn side_by_side(&mut self, parts: &[Var; 3]) -> Var {
        assert!(parts.iter().all(|part| part.rows == parts[0].rows));
        let output = self.allocate(parts[0].rows, parts.iter().map(|part| part.columns).sum());
        self.run(&[], SideBySideOp { parts: *parts, output })
    }

    /// Rows of every sample, `order.len()` each, in this order; [`NO_ROW`] gives zeros.
    pub fn rows(&mut self, x: Var, order: &Arc<[u32]>) -> Var {
        assert!(x.rows.is_multiple_of(order.len()) && order.iter().all(|&k| k == NO_ROW || (k as usize) < order.len()));
        let output = self.allocate(x.rows, x.columns);
        self.run(&[], RowsOp { x, order: order.clone(), output })
    }
}
