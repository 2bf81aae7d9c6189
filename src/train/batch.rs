//! Rows of a batch: which of the held-out ones, and sums of losses and parameter gradients over them.

use crate::nn::parameters::add_lanes;
use crate::nn::{Scalar, Tape};
use rayon::prelude::*;
use std::ops::Range;

/// Number of partial sums of a gradient; fixed, so that the sum does not depend on the threads.
const LANES: usize = 8;

/// At most `most` of `n` rows, evenly spread over all of them: their beginning may be the frames of one file.
pub fn spread(n: usize, most: usize) -> Vec<usize> {
    let rows = n.min(most);
    (0..rows).map(|i| i * n / rows).collect()
}

/// Adds the gradients of all rows to `gradient`, and returns the sum of the values of `part`, which runs the network
/// for at most `chunk` rows of the batch on the given tape and adds to the given gradient.
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
    let lanes = (0..LANES.min(rows.div_ceil(chunk))).into_par_iter().map(lane);
    let (losses, sums): (Vec<f64>, Vec<Vec<R>>) = lanes.unzip();
    add_lanes(&sums, gradient);
    losses.iter().sum()
}
