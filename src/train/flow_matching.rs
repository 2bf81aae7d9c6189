//! Flow matching (Lipman et al., ICLR 2023; Albergo and Vanden-Eijnden, ICLR 2023): regression on the velocity, or on
//! the end point, of straight or trigonometric paths between prior and data.

use super::batch::accumulate;
use crate::coordinates::superpose::superpose;
use crate::models::continuous::{ContinuousConfig, Parametrisation, Schedule};
use crate::models::network::Network;
use crate::nn::Real;
use crate::transport::assignment;
use serde::{Deserialize, Serialize};

/// How a batch of prior points is paired with a batch of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// Independent pairs.
    Independent,
    /// The assignment that minimises Σ|x_data − x_prior|² (minibatch optimal transport: Tong et al. 2024; Pooladian et
    /// al. 2023).
    Assignment,
    /// Data rotated onto the prior points, for equivariant fields.
    Superposed,
    /// Both: assignment by the distance after superposition, then superposition (equivariant flow matching, Klein et
    /// al. 2023).
    SuperposedAssignment,
}

/// A batch in the network's units: `data[n][dimension]` and `prior[n][dimension]`, paired row by row, at times `t[n]`.
pub struct Batch<'a> {
    pub data: &'a [f64],
    pub prior: &'a [f64],
    /// Network times.
    pub t: &'a [f64],
}

/// Lower bound of the weight of an end point.
pub const LEAST_WEIGHT: f64 = 0.005;

/// Loss and its gradient over a batch, L = mean over rows and coordinates of w(t) |f(t, x_t) − target|².
///
/// Velocity: w = 1, target = α′ x_data + σ′ x_prior. End point: target = x_data, w = |α′σ − ασ′|/σ clipped to
/// [[`LEAST_WEIGHT`], `largest_weight`] as in BoltzNCE, so errors of the velocity are weighted by σ/|α′σ − ασ′|.
pub fn flow_matching<N: Network, R: Real>(
    network: &N,
    parameters: &[R],
    config: &ContinuousConfig,
    batch: &Batch,
    largest_weight: f64,
    gradient: &mut [R],
) -> f64 {
    let d = network.dimension();
    let norm = 1.0 / (batch.t.len() * d) as f64;
    accumulate(batch.t.len(), network.chunk(), gradient, |tape, rows, gradient| {
        let t = &batch.t[rows.clone()];
        let [data, prior] = [batch.data, batch.prior].map(|x| &x[rows.start * d..rows.end * d]);
        let schedules: Vec<Schedule> = t.iter().map(|&t| config.schedule(t)).collect();
        let each = || (0..data.len()).map(|i| (&schedules[i / d], data[i], prior[i]));
        let x: Vec<R> = each().map(|(s, x0, x1)| R::from_f64(s.alpha * x0 + s.sigma * x1)).collect();
        let (_, output) = network.record(parameters, tape, t, &x);
        let mut loss = 0.0;
        let seed: Vec<R> = each()
            .zip(tape.value(output))
            .map(|((s, x0, x1), f)| {
                let (target, weight) = match config.parametrisation {
                    Parametrisation::Velocity => (s.d_alpha * x0 + s.d_sigma * x1, 1.0),
                    Parametrisation::Endpoint => {
                        let slope = (s.d_alpha * s.sigma - s.alpha * s.d_sigma) / s.sigma;
                        (x0, slope.abs().clamp(LEAST_WEIGHT, largest_weight))
                    }
                };
                let error = f.to_f64() - target;
                loss += weight * error * error * norm;
                R::from_f64(2.0 * weight * error * norm)
            })
            .collect();
        tape.backward(parameters, &[(output, &seed)], Some(gradient));
        loss
    })
}

/// Pairs data with prior points: reorders and rotates the rows of `data[n][dimension]`.
pub fn pair(pairing: Pairing, data: &mut Vec<f64>, prior: &[f64], dimension: usize) {
    let n = prior.len() / dimension;
    let row = |x: &[f64], i: usize| x[i * dimension..(i + 1) * dimension].to_vec();
    let turned = |data: &[f64], i: usize, j: usize| {
        let mut x = row(data, i);
        superpose(&mut x, &row(prior, j));
        x
    };
    let distance = |x: &[f64], j: usize| -> f64 { x.iter().zip(&row(prior, j)).map(|(a, b)| (a - b) * (a - b)).sum() };
    let place: Vec<usize> = match pairing {
        Pairing::Independent | Pairing::Superposed => (0..n).collect(),
        Pairing::Assignment => assignment(n, |j, i| distance(&row(data, i), j)),
        Pairing::SuperposedAssignment => assignment(n, |j, i| distance(&turned(data, i, j), j)),
    };
    let turn = matches!(pairing, Pairing::Superposed | Pairing::SuperposedAssignment);
    let rows = place.iter().enumerate().flat_map(|(j, &i)| if turn { turned(data, i, j) } else { row(data, i) });
    *data = rows.collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    fn normals(n: usize, index: u64) -> Vec<f64> {
        let mut stream = Stream::new(7, StreamId::Test, index, 0);
        (0..n).map(|_| stream.normal()).collect()
    }

    #[test]
    fn pairing_brings_prior_and_data_together() {
        let (n, d) = (12, 15);
        let centred = |x: Vec<f64>| -> Vec<f64> {
            x.chunks_exact(d)
                .flat_map(|row| {
                    let mean: Vec<f64> = (0..3).map(|k| row.iter().skip(k).step_by(3).sum::<f64>() / 5.0).collect();
                    row.iter().enumerate().map(|(i, v)| v - mean[i % 3]).collect::<Vec<_>>()
                })
                .collect()
        };
        let (data, prior) = (centred(normals(n * d, 1)), centred(normals(n * d, 2)));
        let cost = |pairing| {
            let mut paired = data.clone();
            pair(pairing, &mut paired, &prior, d);
            paired.iter().zip(&prior).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
        };
        let independent = cost(Pairing::Independent);
        assert!(cost(Pairing::Assignment) < independent);
        assert!(cost(Pairing::Superposed) < independent);
        assert!(cost(Pairing::SuperposedAssignment) < cost(Pairing::Superposed).min(cost(Pairing::Assignment)));
    }
}
