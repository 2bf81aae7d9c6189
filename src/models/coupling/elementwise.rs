//! Layers without a network: circular shifts, fixed marginals, and the linear map that removes correlations.

use super::layers::{Direction, LayerConfig, LayerTape, Rows};
use crate::density::Status;
use crate::error::{Error, Result};
use crate::nn::Real;
use std::f64::consts::{PI, SQRT_2};

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Learned shift on the circle, with the offset of its parameters.
    Shift(usize),
    Wrap(Vec<f64>),
    TruncatedNormal(Vec<TruncatedNormal>),
    /// (low, high, ln(high − low))
    Uniform(Vec<(f64, f64, f64)>),
}

/// Maps each coordinate separately.
#[derive(Clone, Debug)]
pub struct Elementwise {
    pub transformed: Vec<usize>,
    pub(super) kind: Kind,
}

impl Elementwise {
    /// Appends the layer's parameters, if any, at `*end`. Errors: a malformed configuration.
    pub fn new(config: &LayerConfig, end: &mut usize) -> Result<Elementwise> {
        let n = config.transformed().len();
        let same = |name: &str, values: &[f64]| match values.len() == n && values.iter().all(|v| v.is_finite()) {
            true => Ok(()),
            false => Err(Error::invalid(format!("{name}: expected {n} finite numbers, found {values:?}"))),
        };
        let kind = match config {
            LayerConfig::Shift { .. } => {
                let start = *end;
                *end += n;
                Kind::Shift(start)
            }
            LayerConfig::Wrap { shift, .. } => {
                same("wrap.shift", shift)?;
                // without whole turns, in which digits would be lost
                Kind::Wrap(shift.iter().map(|shift| shift % 1.0).collect())
            }
            LayerConfig::TruncatedNormal { mean, sd, lower, upper, .. } => {
                same("truncated_normal.mean", mean)?;
                same("truncated_normal.sd", sd)?;
                let each = mean.iter().zip(sd).map(|(&mean, &sd)| TruncatedNormal::new(mean, sd, *lower, *upper));
                Kind::TruncatedNormal(each.collect::<Result<_>>()?)
            }
            LayerConfig::Uniform { low, high, .. } => {
                same("uniform.low", low)?;
                same("uniform.high", high)?;
                let pairs: Vec<_> = low.iter().zip(high).map(|(&low, &high)| (low, high, (high - low).ln())).collect();
                if let Some((low, high, _)) = pairs.iter().find(|(low, high, _)| low >= high) {
                    return Err(Error::invalid(format!("uniform marginal: low {low} is not below high {high}")));
                }
                Kind::Uniform(pairs)
            }
            _ => return Err(Error::invalid("not an element-wise layer")),
        };
        Ok(Elementwise { transformed: config.transformed().to_vec(), kind })
    }

    /// Range of the learned parameters, if any.
    pub fn parameters(&self) -> Option<std::ops::Range<usize>> {
        match self.kind {
            Kind::Shift(start) => Some(start..start + self.transformed.len()),
            _ => None,
        }
    }

    /// Transforms `rows.u` in place; stores ∂u′/∂u and ∂ log_det/∂u of every coordinate in the tape.
    pub fn apply<R: Real>(&self, direction: Direction, parameters: &[R], rows: &mut Rows, tape: &mut LayerTape<R>) {
        let (dimension, d) = (rows.dimension, self.transformed.len());
        let n = rows.log_det.len();
        tape.kept.resize(n * d, 1.0);
        tape.scale.resize(n * d, 0.0);
        for row in 0..n {
            for (c, &i) in self.transformed.iter().enumerate() {
                let u = rows.u[row * dimension + i];
                let step = match &self.kind {
                    Kind::Shift(start) => circular(u, parameters[start + c].to_f64(), direction),
                    Kind::Wrap(shift) => circular(u, shift[c], direction),
                    Kind::TruncatedNormal(each) => each[c].step(u, direction),
                    Kind::Uniform(each) => uniform(u, each[c], direction),
                };
                let Some(step) = step else {
                    let status = if u.is_finite() { Status::OutOfSupport } else { Status::NonFinite };
                    rows.reject(row, status);
                    continue;
                };
                rows.u[row * dimension + i] = step.value;
                rows.log_det[row] += step.log_det;
                tape.kept[row * d + c] = step.derivative;
                tape.scale[row * d + c] = step.log_det_derivative;
            }
        }
    }

    /// Backward pass; see [`super::layers::Layer::vjp`].
    pub fn vjp<R: Real>(
        &self,
        direction: Direction,
        tape: &LayerTape<R>,
        gu: &mut [f64],
        g_log_det: &[f64],
        gradient: Option<&mut [R]>,
    ) {
        let (n, d) = (g_log_det.len(), self.transformed.len());
        let dimension = gu.len() / n;
        if let (Some(range), Some(gradient)) = (self.parameters(), gradient) {
            let sign = if direction == Direction::Generate { 1.0 } else { -1.0 };
            for row in gu.chunks_exact(dimension) {
                for (g, &i) in gradient[range.clone()].iter_mut().zip(&self.transformed) {
                    *g += R::from_f64(sign * row[i]);
                }
            }
        }
        for row in 0..n {
            for (c, &i) in self.transformed.iter().enumerate() {
                let g = &mut gu[row * dimension + i];
                *g = *g * tape.kept[row * d + c] + g_log_det[row] * tape.scale[row * d + c];
            }
        }
    }
}

/// Result of a one-dimensional map: the value, its derivative, and the log-determinant of the generating direction with
/// its derivative, both derivatives with respect to the map's argument.
struct Step {
    value: f64,
    derivative: f64,
    log_det: f64,
    log_det_derivative: f64,
}

fn circular(u: f64, shift: f64, direction: Direction) -> Option<Step> {
    if !(0.0..=1.0).contains(&u) {
        return None;
    }
    let moved = if direction == Direction::Generate { u + shift } else { u - shift };
    let wrapped = moved - moved.floor();
    Some(Step { value: wrapped, derivative: 1.0, log_det: 0.0, log_det_derivative: 0.0 })
}

fn uniform(u: f64, (low, high, log_det): (f64, f64, f64), direction: Direction) -> Option<Step> {
    let span = high - low;
    let (inside, value, derivative) = match direction {
        Direction::Generate => ((0.0..=1.0).contains(&u), low + span * u, span),
        Direction::Encode => ((low..=high).contains(&u), (u - low) / span, 1.0 / span),
    };
    inside.then_some(Step { value, derivative, log_det, log_det_derivative: 0.0 })
}

/// x = μ + σ Φ⁻¹(Φ(a) + u Z), the normal distribution truncated to [lower, upper].
#[derive(Clone, Debug)]
pub(super) struct TruncatedNormal {
    pub(super) mean: f64,
    pub(super) sd: f64,
    pub(super) lower: f64,
    pub(super) upper: f64,
    /// Φ at the lower end, and the probability Z between the ends.
    pub(super) below: f64,
    pub(super) mass: f64,
    /// ln(Zσ√2π)
    pub(super) log_scale: f64,
}

impl TruncatedNormal {
    fn new(mean: f64, sd: f64, lower: f64, upper: f64) -> Result<TruncatedNormal> {
        let below = normal_cdf((lower - mean) / sd);
        let mass = normal_cdf((upper - mean) / sd) - below;
        if !(sd > 0.0 && mass > 0.0) {
            return Err(Error::invalid(format!(
                "truncated normal: mean {mean} and sd {sd} are invalid on [{lower}, {upper}]; sd must be positive, and \
                 the interval must have nonzero probability"
            )));
        }
        let log_scale = (mass * sd * (2.0 * PI).sqrt()).ln();
        Ok(TruncatedNormal { mean, sd, lower, upper, below, mass, log_scale })
    }

    fn step(&self, u: f64, direction: Direction) -> Option<Step> {
        let (value, t) = match direction {
            Direction::Generate => {
                // strictly inside: the ends have no density
                if !(u > 0.0 && u < 1.0) {
                    return None;
                }
                let t = normal_quantile(self.below + u * self.mass);
                (self.mean + self.sd * t, t)
            }
            Direction::Encode => {
                if !(u > self.lower && u < self.upper) {
                    return None;
                }
                let t = (u - self.mean) / self.sd;
                ((normal_cdf(t) - self.below) / self.mass, t)
            }
        };
        // ln dx/du = ln(Zσ) − ln φ(t)
        let log_det = self.log_scale + 0.5 * t * t;
        let (derivative, dt) = match direction {
            Direction::Generate => {
                let slope = log_det.exp();
                (slope, slope / self.sd)
            }
            Direction::Encode => ((-log_det).exp(), 1.0 / self.sd),
        };
        Some(Step { value, derivative, log_det, log_det_derivative: t * dt })
    }
}

fn normal_cdf(t: f64) -> f64 {
    0.5 * libm::erfc(-t / SQRT_2)
}

/// Φ⁻¹, evaluated on the smaller tail: a rational first guess (Abramowitz and Stegun 26.2.23, error below 4.5e-4), then
/// two Halley steps, each of which cubes the error.
fn normal_quantile(p: f64) -> f64 {
    let tail = p.min(1.0 - p);
    let r = (-2.0 * tail.ln()).sqrt();
    let mut t = (2.515517 + 0.802853 * r + 0.010328 * r * r)
        / (1.0 + 1.432788 * r + 0.189269 * r * r + 0.001308 * r * r * r)
        - r;
    for _ in 0..2 {
        let density = (-0.5 * t * t).exp() / (2.0 * PI).sqrt();
        let newton = (normal_cdf(t) - tail) / density;
        t -= newton / (1.0 + 0.5 * t * newton);
    }
    if p < 0.5 {
        t
    } else {
        -t
    }
}

/// u′ = mean + L u on some coordinates: removes means, widths and linear correlations of stiff coordinates.
#[derive(Clone, Debug)]
pub struct Whiten {
    pub(super) transformed: Vec<usize>,
    pub(super) mean: Vec<f64>,
    /// Lower triangle L, `[n][n]`.
    pub(super) matrix: Vec<f64>,
    pub(super) log_det: f64,
}

impl Whiten {
    /// `matrix` is L, `[n][n]`. Errors: sizes that do not match, or a diagonal that is not positive.
    pub fn new(transformed: Vec<usize>, mean: Vec<f64>, matrix: Vec<f64>) -> Result<Whiten> {
        let n = transformed.len();
        if mean.len() != n || matrix.len() != n * n {
            return Err(Error::invalid(format!("whiten needs a mean of {n} and a matrix of {n} × {n} numbers")));
        }
        let above_diagonal = (0..n).any(|i| matrix[i * n + i + 1..(i + 1) * n].iter().any(|&v| v != 0.0));
        let diagonal = || (0..n).map(|i| matrix[i * n + i]);
        if above_diagonal || !diagonal().all(|d| d > 0.0) || !matrix.iter().chain(&mean).all(|v| v.is_finite()) {
            return Err(Error::invalid(
                "whiten.mean and whiten.matrix must be finite, and the matrix lower triangular with a positive \
                 diagonal",
            ));
        }
        let log_det = diagonal().map(f64::ln).sum();
        Ok(Whiten { transformed, mean, matrix, log_det })
    }

    /// Transforms `rows.u` in place and adds to `log_det`.
    pub fn apply(&self, direction: Direction, rows: &mut Rows) {
        let n = self.transformed.len();
        for (u, log_det) in rows.u.chunks_exact_mut(rows.dimension).zip(rows.log_det.iter_mut()) {
            *log_det += self.log_det;
            match direction {
                // from the last coordinate up, so that every sum reads inputs only
                Direction::Generate => {
                    for i in (0..n).rev() {
                        u[self.transformed[i]] = self.mean[i] + self.lower(i, i + 1, u);
                    }
                }
                Direction::Encode => {
                    for i in 0..n {
                        let rest = u[self.transformed[i]] - self.mean[i] - self.lower(i, i, u);
                        u[self.transformed[i]] = rest / self.matrix[i * n + i];
                    }
                }
            }
        }
    }

    /// Σ_{j < end} L_ij u_j
    fn lower(&self, i: usize, end: usize, u: &[f64]) -> f64 {
        let row = &self.matrix[i * self.transformed.len()..][..end];
        row.iter().zip(&self.transformed).map(|(l, &j)| l * u[j]).sum()
    }

    /// gu ← Lᵀ gu (generate) or L⁻ᵀ gu (encode).
    pub fn vjp(&self, direction: Direction, gu: &mut [f64], rows: usize) {
        let n = self.transformed.len();
        let dimension = gu.len() / rows;
        for g in gu.chunks_exact_mut(dimension) {
            let upper = |j: usize, start: usize, g: &[f64]| -> f64 {
                (start..n).map(|i| self.matrix[i * n + j] * g[self.transformed[i]]).sum()
            };
            match direction {
                Direction::Generate => (0..n).for_each(|j| g[self.transformed[j]] = upper(j, j, g)),
                Direction::Encode => (0..n).rev().for_each(|j| {
                    let rest = g[self.transformed[j]] - upper(j, j + 1, g);
                    g[self.transformed[j]] = rest / self.matrix[j * n + j];
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_turns_of_a_shift_are_left_out() {
        let config = LayerConfig::Wrap { transformed: vec![0, 1], shift: vec![1e16, -2.25] };
        let Kind::Wrap(shift) = Elementwise::new(&config, &mut 0).unwrap().kind else { panic!("another layer") };
        assert_eq!(shift, [0.0, -0.25]);
    }

    #[test]
    fn quantile_inverts_the_cdf_into_both_tails() {
        for t in [-8.0, -3.0, -0.1, 0.0, 1e-9, 0.7, 2.0, 5.0] {
            let p = normal_cdf(t);
            // near p = 1 the argument itself carries 1e-16
            let tolerance = 1e-14 + 2e-16 / ((-0.5 * t * t).exp() / 2.5);
            assert!((normal_quantile(p) - t).abs() < tolerance * 8.0, "{t}: {}", normal_quantile(p));
        }
    }
}
