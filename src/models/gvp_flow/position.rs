//! The perceptron with a single output vector: act(g) · Vu/n(Vu), a coordinate step or the output of the network.

// Indices of components and of register tiles, as in the formulas.
#![allow(clippy::needless_range_loop)]

use super::gvp::{grow, Gvp, Linear, Scratch, Tape, SMALLEST_SQUARE};
use super::layout::GvpPlaces;
use crate::nn::lanes::{Kernel, Lanes, WIDTH};
use crate::nn::product::Packed;
use crate::nn::Real;

#[derive(Clone, Debug)]
pub struct VectorOutput<R> {
    gvp: Gvp<R>,
    gate_weights: Vec<R>,
    /// Wh Wu, padded.
    output_weights: Vec<R>,
    /// act(g) = range · tanh(g), or g.
    range: Option<f64>,
}

/// Scratch of [`VectorOutput`].
#[derive(Clone, Debug, Default)]
pub struct OutputScratch<R> {
    linear: Linear<R>,
    scratch: Scratch<R>,
    tape: Tape<R>,
    by_s: Vec<R>,
    by_v: Vec<R>,
}

impl<R: Real> VectorOutput<R> {
    /// Packs the weights; with `range` the gate is range · tanh(g), otherwise g.
    pub fn new(parameters: &[R], places: &GvpPlaces, range: Option<f64>) -> VectorOutput<R> {
        let gvp = Gvp::new(parameters, places, 0);
        let first_output = |packed: &Packed<R>, n: usize| {
            let mut weights: Vec<R> = packed.weights.iter().step_by(WIDTH).take(packed.n_in).copied().collect();
            weights.resize(n, R::default());
            weights
        };
        let gate_weights = first_output(&gvp.gates, gvp.widths()[0]);
        let output_weights = first_output(&gvp.outputs, gvp.widths()[1]);
        VectorOutput { gvp, gate_weights, output_weights, range }
    }

    /// Columns of the Jacobian: scalars, and vectors `[3][vectors]`.
    pub fn n_inputs(&self) -> usize {
        self.gate_weights.len() + 3 * self.output_weights.len()
    }

    /// The vector of each row and, if wanted, its Jacobian `[rows][3][n_inputs]`.
    pub fn forward(
        &self,
        s: &[R],
        v: &[R],
        scratch: &mut OutputScratch<R>,
        vectors: &mut [[R; 3]],
        mut jacobian: Option<&mut Vec<R>>,
    ) {
        let rows = vectors.len();
        let OutputScratch { linear, scratch, tape, by_s, by_v } = scratch;
        self.gvp.linear(rows, s, v, true, linear);
        self.gvp.scalars(rows, linear, None, scratch, jacobian.is_some().then_some((&mut *tape, 0)));
        self.gvp.gate_values(rows, scratch);
        if let Some(jacobian) = &mut jacobian {
            grow(jacobian, rows * 3 * self.n_inputs());
            grow(by_s, self.gate_weights.len());
            grow(by_v, 3 * self.output_weights.len());
        }
        for (row, vector) in vectors.iter_mut().enumerate() {
            let (vu, g) = (self.gvp.single_output(row, linear), self.gvp.gate(row, scratch).to_f64());
            let square = vu.iter().map(|v| v * v).sum::<f64>();
            let norm = if square < SMALLEST_SQUARE { SMALLEST_SQUARE } else { square }.sqrt();
            let unit = vu.map(|v| v / norm);
            let (act, slope) = match self.range {
                Some(range) => (range * g.tanh(), range * (1.0 - g.tanh().powi(2))),
                None => (g, 1.0),
            };
            *vector = unit.map(|u| R::from_f64(act * u));
            if let Some(jacobian) = &mut jacobian {
                self.gvp.gradient(&self.gate_weights, (tape, row), scratch, by_s, by_v);
                let turned = if square > SMALLEST_SQUARE { 1.0 } else { 0.0 };
                for to in 0..3 {
                    let n = self.n_inputs();
                    let line = &mut jacobian[(row * 3 + to) * n..][..n];
                    let along = R::from_f64(slope * unit[to]);
                    line.iter_mut().zip(by_s.iter().chain(by_v.iter())).for_each(|(j, &by)| *j = along * by);
                    let by_output = &mut line[self.gate_weights.len()..];
                    for (c, by) in by_output.chunks_exact_mut(self.output_weights.len()).enumerate() {
                        let same = if c == to { 1.0 } else { 0.0 };
                        let factor = R::from_f64(act / norm * (same - turned * unit[c] * unit[to]));
                        by.iter_mut().zip(&self.output_weights).for_each(|(j, &w)| *j += factor * w);
                    }
                }
            }
        }
    }
}

/// Kernel: to[c · stride + row] += Σ jacobian[c] · (ds, dv)[row], a vector's tangents in all directions.
pub struct JacobianProduct<'a, R> {
    /// `[3][inputs]`
    pub jacobian: &'a [R],
    pub rows: usize,
    pub ds: &'a [R],
    pub dv: &'a [R],
    pub to: &'a mut [R],
    pub stride: usize,
}

impl<R: Real> Kernel<R> for JacobianProduct<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes<R>>(self) {
        let (f, u) = (self.ds.len() / self.rows, self.dv.len() / self.rows);
        let n = f + u;
        for row in 0..self.rows {
            let mut sum = [L::zero(); 3];
            for (part, place, width) in [(self.ds, 0, f), (self.dv, f, u)] {
                let part = &part[row * width..][..width];
                for i in (0..width).step_by(WIDTH) {
                    let tangent = L::load(&part[i..]);
                    for c in 0..3 {
                        sum[c] = L::load(&self.jacobian[c * n + place + i..]).mul_add(tangent, sum[c]);
                    }
                }
            }
            for c in 0..3 {
                self.to[c * self.stride + row] += sum[c].sum();
            }
        }
    }
}
