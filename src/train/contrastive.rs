//! BoltzNCE's losses for a time-dependent energy-based model (Aggarwal et al., NeurIPS 2025): denoising score matching, and
//! noise contrastive estimation over the time.

use super::batch::accumulate;
use crate::models::network::{narrow, Network};
use crate::nn::{Dual, Real, Scalar, Tape};
use rayon::prelude::*;

/// Noised data in the network's units.
pub struct Noised<'a> {
    /// `[n][dimension]`: x_t = α x_data + σ x_prior, the noise x_prior, and σ per row.
    pub x: &'a [f64],
    pub noise: &'a [f64],
    pub sigma: &'a [f64],
    /// Network times `[n]`.
    pub t: &'a [f64],
}

/// L = mean over rows and coordinates of (σ ∇ₓE(t, x) + noise)² (Vincent 2011; weight σ²).
///
/// The gradient needs ∂θ of ∇ₓE. With v = ∂L/∂(∇ₓE) held fixed, ∂θ L = d/dε ∂θ E(x + εv): the slope of an ordinary gradient
/// on [`Dual`] numbers.
pub fn score_matching<N: Network, R: Real>(network: &N, parameters: &[R], batch: &Noised, gradient: &mut [R]) -> f64 {
    let (d, n) = (network.dimension(), batch.t.len());
    let norm = 1.0 / (n * d) as f64;
    let of_row = |tape: &mut Tape<R>, row: usize| -> Vec<f64> {
        let score = score(network, parameters, tape, batch.t[row], &batch.x[row * d..][..d]);
        let noise = &batch.noise[row * d..][..d];
        score.iter().zip(noise).map(|(s, z)| batch.sigma[row] * s + z).collect()
    };
    let residuals: Vec<Vec<f64>> = (0..n).into_par_iter().map_init(Tape::default, of_row).collect();
    let fixed: Vec<Dual<R>> = parameters.iter().map(|&p| Dual::new(p, R::default())).collect();
    let mut sum = vec![Dual::default(); gradient.len()];
    accumulate(network, n, &mut sum, |network, tape, row, sum| {
        let v = residuals[row].iter().map(|r| R::from_f64(2.0 * batch.sigma[row] * norm * r));
        let x: Vec<Dual<R>> =
            batch.x[row * d..][..d].iter().zip(v).map(|(&x, v)| Dual::new(R::from_f64(x), v)).collect();
        tape.clear();
        let (_, e) = network.record(&fixed, tape, &[batch.t[row]], &x);
        tape.backward(&fixed, &[(e, &[Scalar::from_f64(1.0)])], Some(sum));
        0.0
    });
    gradient.iter_mut().zip(sum).for_each(|(g, s)| *g += s.slope);
    norm * residuals.iter().flatten().map(|r| r * r).sum::<f64>()
}

fn score<N: Network, R: Real>(network: &N, parameters: &[R], tape: &mut Tape<R>, t: f64, x: &[f64]) -> Vec<f64> {
    tape.clear();
    let (input, e) = network.record(parameters, tape, &[t], &narrow(x));
    tape.backward(parameters, &[(e, &[R::from_f64(1.0)])], None);
    tape.cotangent(input).iter().map(|v| v.to_f64()).collect()
}

/// L = −mean [E(t, x_t) − log(e^{E(t, x_t)} + Σ_k e^{E(t′_k, x_t)})] (InfoNCE over the time: the model must tell when x_t was
/// seen). `negatives[n][k]` are the other times of each row.
pub fn contrastive<N: Network, R: Real>(
    network: &N,
    parameters: &[R],
    batch: &Noised,
    negatives: &[f64],
    gradient: &mut [R],
) -> f64 {
    let (d, n) = (network.dimension(), batch.t.len());
    let per_row = negatives.len() / n;
    accumulate(network, n, gradient, |network, tape, row, gradient| {
        let times: Vec<f64> =
            std::iter::once(batch.t[row]).chain(negatives[row * per_row..][..per_row].iter().copied()).collect();
        let x: Vec<R> = times.iter().flat_map(|_| narrow(&batch.x[row * d..][..d])).collect();
        tape.clear();
        let (_, e) = network.record(parameters, tape, &times, &x);
        let energies: Vec<f64> = tape.value(e).iter().map(|e| e.to_f64()).collect();
        let total = crate::weights::log_sum_exp(&energies);
        let seed = |(k, e): (usize, &f64)| R::from_f64(((e - total).exp() - f64::from(k == 0)) / n as f64);
        let seed: Vec<R> = energies.iter().enumerate().map(seed).collect();
        tape.backward(parameters, &[(e, &seed)], Some(gradient));
        (total - energies[0]) / n as f64
    })
}
