//! Rows in another order.

use super::{Operation, Point, Tape, Var};
use crate::nn::Scalar;
use std::sync::Arc;

/// In `order`: a row of zeros.
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

    fn forward(&self, _: &[R], inputs: &[R], output: &mut [R]) {
        let (n, x) = (self.x.columns, &inputs[self.x.range()]);
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

impl<R: Scalar> Tape<R> {
    /// Rows of every sample, `order.len()` each, in this order; [`NO_ROW`] gives zeros.
    pub fn rows(&mut self, x: Var, order: &Arc<[u32]>) -> Var {
        assert!(x.rows.is_multiple_of(order.len()) && order.iter().all(|&k| k == NO_ROW || (k as usize) < order.len()));
        let output = self.allocate(x.rows, x.columns);
        self.run(&[], RowsOp { x, order: order.clone(), output })
    }
}
