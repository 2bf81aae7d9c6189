//! Sums of losses and parameter gradients over the rows of a batch.

use crate::nn::{Scalar, Tape};
use rayon::prelude::*;
use std::ops::Range;

/// Partial sums of a gradient. A fixed number, so that the sum does not depend on the threads.
const LANES: usize = 8;

/// Adds the gradients of all rows to `gradient`, and returns the sum of what `part` returns. `part` runs the network
/// for some rows of the batch, `chunk` at most, on the tape that it is given, and adds to the gradient that it is
/// given.
pub fn accumulate<R: Scalar>(
    rows: usize,
    chunk: usize,
    gradient: &mut [R],
    part: impl Fn(&mut Tape<R>, Range<usize>, &mut [R]) -> f64 + Sync,
) -> f64 {
    let lane = |lane: usize| {
        let mut tape = Tape::default();
        let mut sum = vec![R::default(); gradient.len()];
        let starts = (lane * chunk..rows).step_by(LANES * chunk);
        let loss: f64 = starts
            .map(|start| {
                tape.clear();
                part(&mut tape, start..rows.min(start + chunk), &mut sum)
            })
            .sum();
        (loss, sum)
    };
    let lanes: Vec<(f64, Vec<R>)> = (0..LANES.min(rows.div_ceil(chunk))).into_par_iter().map(lane).collect();
    let mut total = 0.0;
    for (loss, sum) in lanes {
        total += loss;
        gradient.iter_mut().zip(sum).for_each(|(g, s)| *g += s);
    }
    total
}
