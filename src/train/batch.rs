//! Sums of losses and parameter gradients over the rows of a batch.

use crate::models::network::Network;
use crate::nn::{Scalar, Tape};
use rayon::prelude::*;

/// Partial sums of a gradient. A fixed number, so that the sum does not depend on the threads.
const LANES: usize = 8;

/// Adds every row's gradient to `gradient`, and returns the sum of what `row` returns. `row` runs the network for one row of
/// the batch on the tape that it is given, and adds to the gradient that it is given.
pub fn accumulate<N: Network, R: Scalar>(
    network: &N,
    rows: usize,
    gradient: &mut [R],
    row: impl Fn(&N, &mut Tape<R>, usize, &mut [R]) -> f64 + Sync,
) -> f64 {
    let lane = |lane: usize| {
        let mut tape = Tape::default();
        let mut sum = vec![R::default(); gradient.len()];
        let loss: f64 = (lane..rows).step_by(LANES).map(|k| row(network, &mut tape, k, &mut sum)).sum();
        (loss, sum)
    };
    let lanes: Vec<(f64, Vec<R>)> = (0..LANES).into_par_iter().map(lane).collect();
    let mut total = 0.0;
    for (loss, sum) in lanes {
        total += loss;
        gradient.iter_mut().zip(sum).for_each(|(g, s)| *g += s);
    }
    total
}
