//! Whitening: features of order one at every noise level.
//!
//! With C the covariance of the invariants f over the frames and N = E[J Jᵀ] their covariance under small noise of
//! variance one in x (J = ∂f/∂x), the columns of U solve C U = N U Λ with UᵀNU = 1: with noise of variance σ² the
//! covariance of Uᵀf stays diagonal, Λ + σ². The largest Λ are kept. Distances are not linear in x; the excess under
//! strong noise grows as κσ⁴, and κ is measured.

use super::InvariantNetwork;
use crate::error::{Error, Result};
use crate::models::continuous::Schedule;
use crate::models::network::Network;
use crate::nn::Tape;
use crate::rng::{Stream, StreamId};
use nalgebra::{Cholesky, DMatrix, SymmetricEigen};

/// Number of frames over which the noise's covariance is averaged.
const MOST_JACOBIANS: usize = 200;
/// Number of frames to which strong noise is added.
const MOST_NOISED: usize = 2000;
/// Number of frames for the covariance.
const MOST_FRAMES: usize = 50_000;
/// Ridge added to N, relative to its mean diagonal: some combinations of many distances are insensitive to noise to
/// first order.
const RIDGE: f64 = 0.1;
/// Smallest standard deviation, in the network's units: much smaller than that of a stiff bond (0.03 Å), so that a
/// combination that hardly varies is not blown up.
const SMALLEST_DEVIATION: f64 = 0.01;
/// Time at which κ is measured.
const STRONG_NOISE: f64 = 0.4;

/// y = weight · f + bias has zero mean and variance `variance` over the frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitening {
    /// Uᵀ, `[out][in]`.
    pub weight: Vec<f64>,
    /// −Uᵀm.
    pub bias: Vec<f64>,
    /// λ, then κ.
    pub variance: Vec<f64>,
}

impl Whitening {
    /// From `frames[n][3 atoms]` in the network's units. Errors: too few frames, or frames that are not finite.
    pub fn of(network: &InvariantNetwork, frames: &[f64]) -> Result<Whitening> {
        let (d, numbers) = (network.dimension(), network.invariants().len());
        let n = frames.len() / d;
        if n < 2 {
            return Err(Error::invalid(format!("a covariance requires at least 2 frames, found {n}")));
        }
        let stride = n.div_ceil(MOST_FRAMES);
        let rows: Vec<&[f64]> = frames.chunks_exact(d).step_by(stride).collect();
        let mut mean = vec![0.0; numbers];
        let mut values = Vec::with_capacity(rows.len() * numbers);
        for row in &rows {
            let mut tape = Tape::<f64>::default();
            let f = invariants(network, &mut tape, row).1;
            mean.iter_mut().zip(tape.value(f)).for_each(|(m, f)| *m += f / rows.len() as f64);
            values.extend_from_slice(tape.value(f));
        }
        values.chunks_exact_mut(numbers).for_each(|row| row.iter_mut().zip(&mean).for_each(|(v, m)| *v -= m));
        let covariance = second_moment(&values, numbers);
        let stride = n.div_ceil(MOST_JACOBIANS);
        let jacobians: Vec<f64> = frames.chunks_exact(d).step_by(stride).flat_map(|x| jacobian(network, x)).collect();
        let mut noise = second_moment(&jacobians, numbers) * d as f64;
        let ridge = RIDGE * noise.trace() / numbers as f64;
        (0..numbers).for_each(|k| noise[(k, k)] += ridge);

        let failed = || {
            Error::invalid(
                "could not compute the covariance of the frames' distances: check that all coordinates are finite",
            )
        };
        let lower = Cholesky::new(noise).ok_or_else(failed)?.l();
        let solve = |m: &DMatrix<f64>| lower.solve_lower_triangular(m).ok_or_else(failed);
        let reduced = solve(&solve(&covariance)?.transpose())?;
        if reduced.iter().any(|v| !v.is_finite()) {
            return Err(failed());
        }
        let eigen = SymmetricEigen::new((&reduced + reduced.transpose()) * 0.5);
        let u = lower.transpose().solve_upper_triangular(&eigen.eigenvectors).ok_or_else(failed)?;
        let mut order: Vec<usize> = (0..numbers).collect();
        order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
        order.truncate(network.config().inputs);
        let weight: Vec<f64> = order.iter().flat_map(|&k| u.column(k).iter().copied().collect::<Vec<_>>()).collect();
        let bias = weight.chunks_exact(numbers).map(|u| -u.iter().zip(&mean).map(|(u, m)| u * m).sum::<f64>());
        let floor = SMALLEST_DEVIATION * SMALLEST_DEVIATION;
        let variance = order.iter().map(|&k| eigen.eigenvalues[k].max(floor)).collect();
        let mut whitening = Whitening { bias: bias.collect(), weight, variance };
        let strong = whitening.of_strong_noise(network, &rows);
        whitening.variance.extend(strong);
        Ok(whitening)
    }

    /// κ: excess of the mean square of each y at strong noise over λ + σ², divided by σ⁴.
    fn of_strong_noise(&self, network: &InvariantNetwork, rows: &[&[f64]]) -> Vec<f64> {
        let Schedule { alpha, sigma, .. } = network.config().interpolant.schedule(STRONG_NOISE);
        let mut stream = Stream::new(0, StreamId::Initialise, 1, 0);
        let mut excess = vec![0.0; self.variance.len()];
        let rows = &rows[..rows.len().min(MOST_NOISED)];
        for row in rows {
            let x: Vec<f64> = row.iter().map(|x| alpha * x + sigma * stream.normal()).collect();
            let mut tape = Tape::default();
            let f = invariants(network, &mut tape, &x).1;
            let columns = self.weight.chunks_exact(f.columns).zip(&self.bias);
            for ((excess, (u, bias)), v) in excess.iter_mut().zip(columns).zip(&self.variance) {
                let y: f64 = bias + u.iter().zip(tape.value(f)).map(|(u, f)| u * f).sum::<f64>();
                *excess += (y * y - v - sigma * sigma) / rows.len() as f64;
            }
        }
        excess.into_iter().map(|e| (e / sigma.powi(4)).max(0.0)).collect()
    }
}

/// Variables of one configuration and of its invariants.
fn invariants(network: &InvariantNetwork, tape: &mut Tape<f64>, x: &[f64]) -> (crate::nn::Var, crate::nn::Var) {
    let input = tape.input(1, x.len());
    tape.value_mut(input).copy_from_slice(x);
    (input, tape.invariants(network.invariants(), input))
}

/// ∂f/∂x, `[3 atoms][numbers]`.
fn jacobian(network: &InvariantNetwork, x: &[f64]) -> Vec<f64> {
    let mut tape = Tape::default();
    let (input, f) = invariants(network, &mut tape, x);
    let column = |k: usize| {
        let mut seed = vec![0.0; x.len()];
        seed[k] = 1.0;
        tape.jvp(&[], &[(input, &seed)]);
        tape.tangent(f).to_vec()
    };
    (0..x.len()).flat_map(column).collect()
}

/// Mean of v vᵀ over the rows v.
fn second_moment(rows: &[f64], columns: usize) -> DMatrix<f64> {
    let n = rows.len() / columns;
    let matrix = DMatrix::from_column_slice(columns, n, rows);
    &matrix * matrix.transpose() / n as f64
}
