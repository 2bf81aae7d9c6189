//! BoltzNCE's losses for a time-dependent energy-based model (Aggarwal et al., NeurIPS 2025): denoising score matching,
//! and noise-contrastive estimation over the time.

use super::batch::accumulate;
use crate::coordinates::vector::centre;
use crate::error::{Error, Result};
use crate::models::continuous::Interpolant;
use crate::models::network::{narrow, Network};
use crate::nn::{Dual, Real, Tape};
use crate::rng::Stream;
use crate::weights::log_sum_exp;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Weights and sampling of the losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveOptions {
    pub interpolant: Interpolant,
    pub score_weight: f64,
    pub nce_weight: f64,
    /// Number of other times each row is compared with.
    pub negatives: usize,
    /// Spread of these times: standard deviation of a row's times, including the true one, about their common centre.
    /// From 1 on all times are nearly uniform.
    pub window: f64,
    /// Times are this power of evenly spread numbers: 1 for uniform times as in BoltzNCE, 2 for more of them near the
    /// data. `window` is measured in the even numbers.
    pub time_power: f64,
    /// Every second row repeats the row before it with the sign of the noise flipped. The noise in the score-matching
    /// gradient at small σ, which grows as 1/σ, then cancels: two such rows are the Hutchinson estimate of implicit
    /// score matching (Hyvärinen 2005).
    pub antithetic: bool,
    /// Noise level σ_l, in the network's units, below which a row's weight in the score matching, normally σ², stops
    /// falling: it is increased by the factor 1 + σ_l²/(σ² + σ_l²/100). Useful only with `antithetic`.
    pub least_noise: f64,
}

impl Default for ContrastiveOptions {
    fn default() -> ContrastiveOptions {
        ContrastiveOptions {
            interpolant: Interpolant::Trigonometric,
            score_weight: 1.0,
            nce_weight: 1.0,
            negatives: 4,
            window: 0.1,
            time_power: 1.0,
            antithetic: false,
            least_noise: 0.0,
        }
    }
}

/// Noised data in the network's units.
#[derive(Clone, Debug)]
pub struct Noised {
    /// `[n][dimension]`: x_t = α x_data + σ x_prior, the noise x_prior, and σ per row.
    pub x: Vec<f64>,
    pub noise: Vec<f64>,
    pub sigma: Vec<f64>,
    /// Weight of each row in the score matching.
    pub weight: Vec<f64>,
    /// Network times `[n]`.
    pub t: Vec<f64>,
    /// Other times of each row, `[n][k]`.
    pub negatives: Vec<f64>,
}

impl ContrastiveOptions {
    /// Checks the options. Errors name the option.
    pub fn check(&self) -> Result<()> {
        let weights = [("score_weight", self.score_weight), ("nce_weight", self.nce_weight)];
        if let Some((name, value)) = weights.iter().find(|(_, w)| !(*w >= 0.0 && w.is_finite())) {
            return Err(Error::invalid(format!("{name} = {value}: must be 0 or positive")));
        }
        if self.score_weight + self.nce_weight == 0.0 {
            return Err(Error::invalid("score_weight and nce_weight are both 0: at least one must be positive"));
        }
        if self.nce_weight > 0.0 && self.negatives == 0 {
            return Err(Error::invalid(
                "negatives = 0: must be at least 1 for the contrastive loss; without it, set nce_weight = 0",
            ));
        }
        if !(self.least_noise >= 0.0 && self.least_noise.is_finite()) {
            return Err(Error::invalid(format!("least_noise = {}: must be 0 or positive", self.least_noise)));
        }
        let positive = [("window", self.window), ("time_power", self.time_power)];
        match positive.iter().find(|(_, value)| !(*value > 0.0 && value.is_finite())) {
            Some((name, value)) => Err(Error::invalid(format!("{name} = {value}: must be a positive number"))),
            None => Ok(()),
        }
    }

    /// Draws times, noise and other times for `data[n][dimension]` in the network's units. The data lie at time 0; the
    /// times are stratified over the rows, or over their antithetic pairs. `mean_free` noise is for molecules, whose
    /// centroid the model ignores.
    ///
    /// The other times are drawn so that nothing but x reveals which of a row's times is the true one: all are spread
    /// alike about a centre, and reflected at 0 and 1. If they were clamped there, or several were drawn about the true
    /// time itself, they would bias the ratios p_t(x)/p_t′(x) that the loss is to find.
    pub fn draw(&self, data: &[f64], dimension: usize, mean_free: bool, stream: &mut Stream) -> Noised {
        let n = data.len() / dimension;
        let copies = if self.antithetic { 2 } else { 1 };
        let strata = n.div_ceil(copies) as f64;
        let mut even: Vec<f64> = (0..n).map(|row| ((row / copies) as f64 + stream.uniform()) / strata).collect();
        let mut noise: Vec<f64> = data.iter().map(|_| stream.normal()).collect();
        if mean_free {
            noise.chunks_exact_mut(dimension).for_each(|row| _ = centre(row));
        }
        let mut data = data.to_vec();
        if self.antithetic {
            even.chunks_exact_mut(2).for_each(|pair| pair[1] = pair[0]);
            turn_over(&mut data, dimension, 1.0);
            turn_over(&mut noise, dimension, -1.0);
        }
        let mut near = |s: f64| reflected(s + self.window * stream.normal());
        let others = |&s: &f64| {
            let middle = near(s);
            (0..self.negatives).map(|_| near(middle)).collect::<Vec<_>>()
        };
        let time = |s: f64| s.powf(self.time_power);
        let negatives = even.iter().flat_map(others).map(time).collect();
        let t: Vec<f64> = even.into_iter().map(time).collect();
        let schedules: Vec<_> = t.iter().map(|&t| self.interpolant.schedule(t)).collect();
        let noised = |(i, (x0, x1)): (usize, (&f64, &f64))| {
            let s = &schedules[i / dimension];
            s.alpha * x0 + s.sigma * x1
        };
        let x = data.iter().zip(&noise).enumerate().map(noised).collect();
        let sigma: Vec<f64> = schedules.iter().map(|s| s.sigma).collect();
        let weight = sigma.iter().map(|&s| self.weight(s)).collect();
        Noised { x, noise, weight, sigma, t, negatives }
    }

    /// Factor on the weight σ² of the score matching at noise σ.
    fn weight(&self, sigma: f64) -> f64 {
        let least = self.least_noise * self.least_noise;
        // bounded: far below, rounding errors take the place of the noise
        1.0 + if least > 0.0 { least / (sigma * sigma + 0.01 * least) } else { 0.0 }
    }

    /// Adds ∂L/∂parameters of L = `score_weight` · L_score + `nce_weight` · L_nce to `gradient`, and returns both
    /// losses; NaN for a loss with weight zero.
    pub fn losses<N: Network, R: Real>(
        &self,
        network: &N,
        parameters: &[R],
        batch: &Noised,
        gradient: &mut [R],
    ) -> [f64; 2] {
        let mut losses = [f64::NAN; 2];
        if self.score_weight > 0.0 {
            losses[0] = score_matching(network, parameters, batch, self.score_weight, gradient);
        }
        if self.nce_weight > 0.0 {
            losses[1] = contrastive(network, parameters, batch, self.nce_weight, gradient);
        }
        losses
    }
}

/// Replaces every second row by `factor` times the row before it.
fn turn_over(rows: &mut [f64], columns: usize, factor: f64) {
    for pair in rows.chunks_exact_mut(2 * columns) {
        let (first, second) = pair.split_at_mut(columns);
        second.iter_mut().zip(first).for_each(|(b, a)| *b = factor * *a);
    }
}

/// Reflects t into [0, 1] at its ends.
fn reflected(t: f64) -> f64 {
    let t = t.rem_euclid(2.0);
    t.min(2.0 - t)
}

/// L = mean over rows and coordinates of w (σ ∇ₓE(t, x) + noise)² (Vincent 2011; weight wσ²), minus the part (w − 1)
/// noise² that does not depend on the parameters. Adds scale · ∂L/∂parameters.
///
/// The gradient needs ∂θ of ∇ₓE. With v = ∂L/∂(∇ₓE) held fixed, ∂θ L = d/dε ∂θ E(x + εv): the derivative of an ordinary
/// gradient, computed with [`Dual`] numbers.
pub fn score_matching<N: Network, R: Real>(
    network: &N,
    parameters: &[R],
    batch: &Noised,
    scale: f64,
    gradient: &mut [R],
) -> f64 {
    let (d, n, chunk) = (network.dimension(), batch.t.len(), network.chunk());
    let norm = 1.0 / (n * d) as f64;
    let mut residuals = vec![0.0; n * d];
    let parts = residuals.par_chunks_mut(chunk * d).zip(batch.t.par_chunks(chunk)).enumerate();
    parts.for_each_init(Tape::default, |tape, (k, (residuals, t))| {
        let first = k * chunk * d;
        tape.clear();
        let (x, e) = network.record(parameters, tape, t, &narrow(&batch.x[first..][..residuals.len()]));
        tape.backward(parameters, &[(e, &vec![R::from_f64(1.0); t.len()])], None);
        for (i, (residual, score)) in residuals.iter_mut().zip(tape.cotangent(x)).enumerate() {
            *residual = batch.sigma[(first + i) / d] * score.to_f64() + batch.noise[first + i];
        }
    });
    let fixed: Vec<Dual<R>> = parameters.iter().map(|&p| Dual::new(p, R::default())).collect();
    let mut sum = vec![Dual::default(); gradient.len()];
    accumulate(n, chunk, &mut sum, |tape: &mut Tape<Dual<R>>, rows, sum| {
        let shifted = |i: usize| {
            let v = 2.0 * batch.weight[i / d] * batch.sigma[i / d] * norm * residuals[i];
            Dual::new(R::from_f64(batch.x[i]), R::from_f64(scale * v))
        };
        let x: Vec<Dual<R>> = (rows.start * d..rows.end * d).map(shifted).collect();
        let ones = vec![Dual::new(R::from_f64(1.0), R::default()); rows.len()];
        let (_, e) = network.record(&fixed, tape, &batch.t[rows], &x);
        tape.backward(&fixed, &[(e, &ones)], Some(sum));
        0.0
    });
    gradient.iter_mut().zip(sum).for_each(|(g, s)| *g += s.slope);
    let loss = |(i, r): (usize, &f64)| {
        let w = batch.weight[i / d];
        w * r * r - (w - 1.0) * batch.noise[i] * batch.noise[i]
    };
    norm * residuals.iter().enumerate().map(loss).sum::<f64>()
}

/// L = −mean [E(t, x_t) − log(e^{E(t, x_t)} + Σ_k e^{E(t′_k, x_t)})] (InfoNCE over the time: the model must tell the
/// true time of x_t). Adds scale · ∂L/∂parameters.
pub fn contrastive<N: Network, R: Real>(
    network: &N,
    parameters: &[R],
    batch: &Noised,
    scale: f64,
    gradient: &mut [R],
) -> f64 {
    let (d, n) = (network.dimension(), batch.t.len());
    let others = batch.negatives.len() / n;
    let each = 1 + others;
    accumulate(n, network.chunk().div_ceil(each), gradient, |tape, rows, gradient| {
        let (mut times, mut x) = (Vec::new(), Vec::new());
        for row in rows {
            times.push(batch.t[row]);
            times.extend(&batch.negatives[row * others..][..others]);
            (0..each).for_each(|_| x.extend(narrow::<R>(&batch.x[row * d..][..d])));
        }
        let (_, e) = network.record(parameters, tape, &times, &x);
        let (mut loss, mut seed) = (0.0, Vec::new());
        for energies in tape.value(e).chunks_exact(each) {
            let energies: Vec<f64> = energies.iter().map(|e| e.to_f64()).collect();
            let total = log_sum_exp(&energies);
            loss += (total - energies[0]) / n as f64;
            let share = |(k, e): (usize, &f64)| scale * ((e - total).exp() - f64::from(k == 0)) / n as f64;
            seed.extend(energies.iter().enumerate().map(share).map(R::from_f64));
        }
        tape.backward(parameters, &[(e, &seed)], Some(gradient));
        loss
    })
}

#[cfg(test)]
#[path = "contrastive_tests.rs"]
mod tests;
