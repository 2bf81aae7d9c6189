//! Rational-quadratic spline coupling, with the parameter layout and constants of nflows and bgflow.
//!
//! Network output per row: `[D][K]` widths, `[D][K]` heights, `[D][K]` slopes (`[D][K−1]` with linear ends), then one
//! final slope for every coordinate with free ends.

use super::conditioner::Conditioner;
use super::layers::{Direction, Ends, LayerConfig, LayerTape, Rows};
use super::spline::{Bin, MIN_BIN, MIN_SLOPE};
use crate::density::Status;
use crate::error::{Error, Result};
use crate::nn::{Parameters, Real};

#[derive(Clone, Debug)]
pub struct SplineCoupling {
    pub conditioner: Conditioner,
    pub(super) transformed: Vec<usize>,
    pub(super) ends: Ends,
    pub(super) bins: usize,
    pub(super) left: f64,
    pub(super) span: f64,
    /// Sharpness β of the softplus that makes slopes positive: 1, or ln 2/(1 − MIN_SLOPE) for zero to give slope one.
    pub(super) beta: f64,
}

/// Bin number in the tape for an argument beyond linear ends.
const OUTSIDE: usize = usize::MAX;

impl SplineCoupling {
    /// Appends the layer's parameters at `*end`. Errors: a malformed configuration.
    pub fn new(config: &LayerConfig, end: &mut usize) -> Result<SplineCoupling> {
        let LayerConfig::Spline { transformed, features, ends, bins, interval, hidden, activation, identity_init } =
            config
        else {
            return Err(Error::invalid("not a spline layer"));
        };
        if *bins < 2 || *bins as f64 * MIN_BIN >= 1.0 {
            return Err(Error::invalid(format!("a spline needs 2 to 999 bins, got {bins}")));
        }
        let [left, right] = *interval;
        if !(left < right && (right - left).is_finite()) {
            return Err(Error::invalid(format!(
                "invalid spline interval [{left}, {right}]: the ends must be finite and increasing"
            )));
        }
        let (d, k) = (transformed.len(), *bins);
        let n_out = match ends {
            Ends::Free => 3 * k * d + d,
            Ends::Circular => 3 * k * d,
            Ends::Linear => (3 * k - 1) * d,
        };
        Ok(SplineCoupling {
            conditioner: Conditioner::new(features, hidden, n_out, *activation, end)?,
            transformed: transformed.clone(),
            ends: *ends,
            bins: k,
            left,
            span: right - left,
            beta: if *identity_init { std::f64::consts::LN_2 / (1.0 - MIN_SLOPE) } else { 1.0 },
        })
    }

    /// Index of slope `k` of coordinate `c` among a row's slopes; None if it is one by definition.
    fn slope_place(&self, c: usize, k: usize) -> Option<usize> {
        let (d, n) = (self.transformed.len(), self.bins);
        match self.ends {
            Ends::Circular => Some(c * n + k % n),
            Ends::Free if k == n => Some(d * n + c),
            Ends::Free => Some(c * n + k),
            Ends::Linear if k == 0 || k == n => None,
            Ends::Linear => Some(c * (n - 1) + k - 1),
        }
    }

    /// Softmax of widths and heights, and softplus of slopes, for all rows at once.
    fn prepare<R: Real>(&self, tape: &mut LayerTape<R>, rows: usize) {
        let (n_out, kd) = (self.conditioner.mlp.n_out(), 2 * self.bins * self.transformed.len());
        let n_slopes = n_out - kd;
        tape.softmax.resize(rows * kd, R::default());
        tape.slopes.resize(rows * n_slopes, R::default());
        let beta = R::from_f64(self.beta);
        for (row, output) in tape.conditioner.output.chunks_exact(n_out).enumerate() {
            let softmax = &mut tape.softmax[row * kd..][..kd];
            for (to, from) in softmax.chunks_exact_mut(self.bins).zip(output.chunks_exact(self.bins)) {
                let largest = from.iter().copied().fold(from[0], |a, b| if b > a { b } else { a });
                to.iter_mut().zip(from).for_each(|(to, &from)| *to = from - largest);
            }
            let slopes = &mut tape.slopes[row * n_slopes..][..n_slopes];
            slopes.iter_mut().zip(&output[kd..]).for_each(|(to, &from)| *to = beta * from);
        }
        R::exp_slice(&mut tape.softmax);
        for group in tape.softmax.chunks_exact_mut(self.bins) {
            let inverse = R::from_f64(1.0) / group.iter().copied().sum::<R>();
            group.iter_mut().for_each(|p| *p *= inverse);
        }
        R::softplus_slice(&mut tape.slopes);
    }

    /// The bin of coordinate `c` that contains `value`, on the x axis (`by_width`) or the y axis, and its index.
    fn find<R: Real>(&self, softmax: &[R], slopes: &[R], c: usize, value: f64, by_width: bool) -> (Bin, usize) {
        let k = self.bins;
        let size = |p: R| self.span * (MIN_BIN + (1.0 - MIN_BIN * k as f64) * p.to_f64());
        let widths = &softmax[c * k..][..k];
        let heights = &softmax[(self.transformed.len() + c) * k..][..k];
        let searched = if by_width { widths } else { heights };
        let (mut n, mut knot) = (0, self.left);
        while n < k - 1 {
            let next = knot + size(searched[n]);
            if next > value {
                break;
            }
            knot = next;
            n += 1;
        }
        let other: f64 =
            self.left + (if by_width { heights } else { widths })[..n].iter().map(|&p| size(p)).sum::<f64>();
        let slope =
            |k: usize| self.slope_place(c, k).map_or(1.0, |place| MIN_SLOPE + slopes[place].to_f64() / self.beta);
        let (x, y) = if by_width { (knot, other) } else { (other, knot) };
        let bin = Bin { x, width: size(widths[n]), y, height: size(heights[n]), left: slope(n), right: slope(n + 1) };
        (bin, n)
    }

    /// Transforms `rows.u` in place, rejects rows beyond the interval unless the ends are linear, and adds to
    /// `log_det`.
    pub fn apply<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        rows: &mut Rows,
        tape: &mut LayerTape<R>,
    ) {
        let (dimension, n, d) = (rows.dimension, rows.log_det.len(), self.transformed.len());
        self.conditioner.forward(parameters, rows.u, dimension, &mut tape.conditioner);
        self.prepare(tape, n);
        tape.bins.clear();
        let (kd, n_slopes) = (tape.softmax.len() / n, tape.slopes.len() / n);
        let right = self.left + self.span;
        for row in 0..n {
            let (softmax, slopes) = (&tape.softmax[row * kd..][..kd], &tape.slopes[row * n_slopes..][..n_slopes]);
            let mut log_det = 0.0;
            for c in 0..d {
                let place = row * dimension + self.transformed[c];
                let value = rows.u[place];
                let (bin, number) = self.find(softmax, slopes, c, value, direction == Direction::Encode);
                if !(self.left..=right).contains(&value) {
                    if self.ends != Ends::Linear {
                        rows.reject(row, Status::OutOfSupport);
                    }
                    tape.bins.push((bin, OUTSIDE, value, 0.0));
                    continue;
                }
                let (result, log_slope) = match direction {
                    Direction::Encode => bin.analytic(value),
                    Direction::Generate => bin.root(value),
                };
                let argument = if direction == Direction::Encode { value } else { result };
                tape.bins.push((bin, number, argument, log_slope));
                rows.u[place] = result;
                log_det -= log_slope;
            }
            rows.log_det[row] += log_det;
        }
    }

    /// Backward pass; see [`super::layers::Layer::vjp`].
    pub fn vjp<R: Real>(
        &self,
        direction: Direction,
        parameters: &Parameters<R>,
        tape: &mut LayerTape<R>,
        gu: &mut [f64],
        g_log_det: &[f64],
        gradient: Option<&mut [R]>,
    ) {
        let (n, d, k) = (g_log_det.len(), self.transformed.len(), self.bins);
        let (dimension, n_out) = (gu.len() / n, self.conditioner.mlp.n_out());
        let (kd, n_slopes) = (2 * k * d, n_out - 2 * k * d);
        let conditioner = &mut tape.conditioner;
        conditioner.g_output.clear();
        conditioner.g_output.resize(n * n_out, R::default());
        for row in 0..n {
            let softmax = &tape.softmax[row * kd..][..kd];
            let slopes = &tape.slopes[row * n_slopes..][..n_slopes];
            let g_output = &mut conditioner.g_output[row * n_out..][..n_out];
            for c in 0..d {
                let (bin, number, argument, log_slope) = tape.bins[row * d + c];
                if number == OUTSIDE {
                    continue;
                }
                let g = &mut gu[row * dimension + self.transformed[c]];
                let g_slope = -g_log_det[row];
                let vjp = match direction {
                    Direction::Encode => bin.vjp(argument, *g, g_slope),
                    // x = f⁻¹(z; bin): dx = (dz − ∂f/∂bin · dbin)/f′
                    Direction::Generate => {
                        let through = *g + bin.vjp(argument, 0.0, g_slope).argument;
                        let g_z = through * (-log_slope).exp();
                        *g = g_z;
                        bin.vjp(argument, -g_z, g_slope)
                    }
                };
                if direction == Direction::Encode {
                    *g = vjp.argument;
                }
                self.softmax_vjp(&softmax[c * k..][..k], number, vjp.x, vjp.width, &mut g_output[c * k..][..k]);
                let heights = (d + c) * k;
                self.softmax_vjp(&softmax[heights..][..k], number, vjp.y, vjp.height, &mut g_output[heights..][..k]);
                for (knot, g) in [(number, vjp.left), (number + 1, vjp.right)] {
                    if let Some(place) = self.slope_place(c, knot) {
                        // d softplus(t)/dt = 1 − e^{−softplus(t)}
                        let derivative = -(-slopes[place].to_f64()).exp_m1();
                        g_output[kd + place] += R::from_f64(g * derivative);
                    }
                }
            }
        }
        self.conditioner.vjp(parameters, conditioner, gu, dimension, gradient);
    }

    /// Backward pass of the softmax: knot `n` is the sum of the sizes before it. Adds to `g`, from the cotangents of
    /// knot `n` and of its size, those of the network's outputs.
    fn softmax_vjp<R: Real>(&self, p: &[R], n: usize, g_knot: f64, g_size: f64, g: &mut [R]) {
        let factor = R::from_f64(self.span * (1.0 - MIN_BIN * self.bins as f64));
        let (g_knot, g_size) = (R::from_f64(g_knot), R::from_f64(g_size));
        let mean = p[..n].iter().copied().sum::<R>() * g_knot + p[n] * g_size;
        for (j, (g, &p)) in g.iter_mut().zip(p).enumerate() {
            let by_size = if j < n {
                g_knot
            } else if j == n {
                g_size
            } else {
                R::default()
            };
            *g = factor * p * (by_size - mean);
        }
    }
}
