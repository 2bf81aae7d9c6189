//! BoltzNCE's losses for a time-dependent energy-based model (Aggarwal et al., NeurIPS 2025): denoising score matching, and
//! noise contrastive estimation over the time.

use super::batch::accumulate;
use crate::models::network::Network;
use crate::nn::{Real, Tape};

/// Noised data in the network's units.
pub struct Noised<'a> {
    /// `[n][dimension]`: x_t = α x_data + σ x_prior, the noise x_prior, and σ per row.
    pub x: &'a [f64],
    pub noise: &'a [f64],
    pub sigma: &'a [f64],
    /// Network times `[n]`.
    pub t: &'a [f64],
}

/// Step of the directional difference below, in the network's units: largest displacement of a coordinate.
fn step<R: Real>() -> f64 {
    match R::NAME {
        "f64" => 1e-4,
        _ => 1e-2,
    }
}

/// L = mean over rows and coordinates of (σ ∇ₓE(t, x) + noise)² (Vincent 2011; weight σ²).
///
/// The gradient needs ∂θ of ∇ₓE. With v = ∂L/∂(∇ₓE) held fixed, ∂θ L = d/dε ∂θ E(x + εv), a directional difference of two
/// ordinary gradients. Its error is quadratic in the step, and far below the noise of a batch.
pub fn score_matching<N: Network, R: Real>(network: &N, parameters: &[R], batch: &Noised, gradient: &mut [R]) -> f64 {
    let d = network.dimension();
    let norm = 1.0 / (batch.t.len() * d) as f64;
    accumulate(network, batch.t.len(), gradient, |network, tape, row, gradient| {
        let (t, sigma) = (batch.t[row], batch.sigma[row]);
        let (x, noise) = (&batch.x[row * d..][..d], &batch.noise[row * d..][..d]);
        let score = score(network, parameters, tape, t, x);
        let residual: Vec<f64> = score.iter().zip(noise).map(|(s, z)| sigma * s + z).collect();
        let loss = norm * residual.iter().map(|r| r * r).sum::<f64>();
        let largest = residual.iter().fold(0.0f64, |m, r| m.max(r.abs()));
        if largest == 0.0 || sigma == 0.0 {
            return loss;
        }
        // v = 2 σ residual · norm, along which x moves by at most one step
        let reach = step::<R>() / largest;
        let slope = 2.0 * sigma * norm / (2.0 * reach);
        let shifted = |sign: f64| x.iter().zip(&residual).map(move |(x, r)| x + sign * reach * r);
        let both: Vec<f64> = shifted(1.0).chain(shifted(-1.0)).collect();
        tape.clear();
        let (_, e) = network.record(parameters, tape, &[t, t], &both);
        tape.backward(parameters, &[(e, &[R::from_f64(slope), R::from_f64(-slope)])], Some(gradient));
        loss
    })
}

fn score<N: Network, R: Real>(network: &N, parameters: &[R], tape: &mut Tape<R>, t: f64, x: &[f64]) -> Vec<f64> {
    tape.clear();
    let (input, e) = network.record(parameters, tape, &[t], x);
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
        let x: Vec<f64> = times.iter().flat_map(|_| batch.x[row * d..][..d].iter().copied()).collect();
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
