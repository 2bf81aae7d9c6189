//! Normalisation and lengths.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};
use std::borrow::Cow;

/// Layer normalisation with learned weight and bias (Ba et al. 2016), given by their offsets in the parameters.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    pub weight: usize,
    pub bias: usize,
}

const EPSILON: f64 = 1e-5;

#[derive(Clone, Debug)]
pub(super) struct LayerNormOp {
    x: Var,
    /// Without it the weights are one and the biases zero.
    norm: Option<LayerNorm>,
    output: Var,
}

/// Mean and 1/√(variance + ε) of a row.
#[inline(always)]
fn moments<R: Scalar>(x: &[R]) -> (R, R) {
    let n = R::from_f64(1.0 / x.len() as f64);
    let mean = sum(x, |x| x) * n;
    let variance = sum(x, |x| (x - mean) * (x - mean)) * n;
    (mean, R::from_f64(1.0) / (variance + R::from_f64(EPSILON)).sqrt())
}

/// Number of partial sums, so that a sum vectorises and no addition waits for the previous one.
const PARTS: usize = 16;

/// Σ f(x).
#[inline(always)]
pub(super) fn sum<R: Scalar>(x: &[R], f: impl Fn(R) -> R) -> R {
    sum_of_pairs(x, x, |x, _| f(x))
}

/// Σ f(x, y).
#[inline(always)]
fn sum_of_pairs<R: Scalar>(x: &[R], y: &[R], f: impl Fn(R, R) -> R) -> R {
    sum_of_triples(x, y, y, |x, y, _| f(x, y))
}

/// Σ f(x, y, z).
#[inline(always)]
pub(super) fn sum_of_triples<R: Scalar>(x: &[R], y: &[R], z: &[R], f: impl Fn(R, R, R) -> R) -> R {
    let mut sums = [R::default(); PARTS];
    let ((xs, x_rest), (ys, y_rest), (zs, z_rest)) =
        (x.as_chunks::<PARTS>(), y.as_chunks::<PARTS>(), z.as_chunks::<PARTS>());
    for ((x, y), z) in xs.iter().zip(ys).zip(zs) {
        for i in 0..PARTS {
            sums[i] += f(x[i], y[i], z[i]);
        }
    }
    for (i, ((&x, &y), &z)) in x_rest.iter().zip(y_rest).zip(z_rest).enumerate() {
        sums[i] += f(x, y, z);
    }
    let mut half = PARTS / 2;
    while half > 0 {
        let (low, high) = sums.split_at_mut(half);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        half /= 2;
    }
    sums[0]
}

/// Layer normalisation: rows of x minus their mean, over their standard deviation, times w plus b.
pub fn normalise<R: Scalar>(x: &[R], (w, b): (&[R], &[R]), y: &mut [R]) {
    normalise_by(w.len(), x, (w, b), y);
}

/// As [`normalise`] for rows of n columns, cycling through the rows of w and b.
pub fn normalise_by<R: Scalar>(n: usize, x: &[R], (w, b): (&[R], &[R]), y: &mut [R]) {
    let weights = w.chunks_exact(n).zip(b.chunks_exact(n)).cycle();
    vectorised!({
        for ((x, y), (w, b)) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)).zip(weights) {
            let (mean, scale) = moments(x);
            for ((y, &x), (&w, &b)) in y.iter_mut().zip(x).zip(w.iter().zip(b)) {
                *y = (x - mean) * scale * w + b;
            }
        }
    });
}

/// As [`normalise`] for the columns from `start` on in rows that are `stride` apart, in place.
pub fn normalise_columns<R: Scalar>(x: &mut [R], (start, stride): (usize, usize), (w, b): (&[R], &[R])) {
    vectorised!({
        for row in x.chunks_exact_mut(stride) {
            let row = &mut row[start..start + w.len()];
            let (mean, scale) = moments(row);
            for (x, (&w, &b)) in row.iter_mut().zip(w.iter().zip(b)) {
                *x = (*x - mean) * scale * w + b;
            }
        }
    });
}

impl LayerNormOp {
    /// rstd · (g − mean(g) − x̂ mean(g x̂)): both the jvp and the vjp of x̂(x), whose Jacobian is symmetric.
    #[inline(always)]
    fn derivative<R: Scalar>(x: &[R], g: &[R], mut write: impl FnMut(usize, R)) {
        let n = R::from_f64(1.0 / x.len() as f64);
        let (mean, scale) = moments(x);
        let mean_g = sum(g, |g| g) * n;
        let mean_gx = sum_of_pairs(x, g, |x, g| g * (x - mean)) * scale * n;
        for (i, (&x, &g)) in x.iter().zip(g).enumerate() {
            write(i, scale * (g - mean_g - (x - mean) * scale * mean_gx));
        }
    }

    fn weight<'a, R: Scalar>(&self, parameters: &'a [R]) -> Cow<'a, [R]> {
        let n = self.x.columns;
        match self.norm {
            Some(norm) => parameters[norm.weight..norm.weight + n].into(),
            None => vec![R::from_f64(1.0); n].into(),
        }
    }

    fn bias<'a, R: Scalar>(&self, parameters: &'a [R]) -> Cow<'a, [R]> {
        let n = self.x.columns;
        match self.norm {
            Some(norm) => parameters[norm.bias..norm.bias + n].into(),
            None => vec![R::default(); n].into(),
        }
    }
}

impl<R: Scalar> Operation<R> for LayerNormOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        normalise(point.value(self.x), (&self.weight(point.parameters), &self.bias(point.parameters)), output);
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let n = self.x.columns;
        let w = self.weight(point.parameters);
        let rows = point.value(self.x).chunks_exact(n).zip(tangents[self.x.range()].chunks_exact(n));
        for ((x, dx), y) in rows.zip(output.chunks_exact_mut(n)) {
            vectorised!(LayerNormOp::derivative(x, dx, |i, d| y[i] = w[i] * d));
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], mut gradient: Option<&mut [R]>) {
        let n = self.x.columns;
        let w = self.weight(point.parameters);
        let mut weighted = vec![R::default(); n];
        let rows = point.value(self.x).chunks_exact(n).zip(cotangent.chunks_exact(n));
        for ((x, g), slot) in rows.zip(inputs[self.x.range()].chunks_exact_mut(n)) {
            weighted.iter_mut().zip(g).zip(w.iter()).for_each(|((s, &g), &w)| *s = g * w);
            vectorised!(LayerNormOp::derivative(x, &weighted, |i, d| slot[i] += d));
            let Some((norm, gradient)) = self.norm.zip(gradient.as_deref_mut()) else { continue };
            let (mean, scale) = moments(x);
            let by_weight = gradient[norm.weight..][..n].iter_mut();
            by_weight.zip(x).zip(g).for_each(|((s, &x), &g)| *s += g * (x - mean) * scale);
            gradient[norm.bias..][..n].iter_mut().zip(g).for_each(|(s, &g)| *s += g);
        }
    }
}

/// Mean over the columns of each row.
#[derive(Clone, Debug)]
pub(super) struct MeanColumnsOp {
    x: Var,
    output: Var,
}

impl<R: Scalar> Operation<R> for MeanColumnsOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, y: &mut [R]) {
        let n = R::from_f64(1.0 / self.x.columns as f64);
        let rows = point.value(self.x).chunks_exact(self.x.columns);
        vectorised!(rows.zip(y).for_each(|(x, y)| *y = sum(x, |x| x) * n));
    }

    fn vjp(&self, _: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let n = R::from_f64(1.0 / self.x.columns as f64);
        let rows = inputs[self.x.range()].chunks_exact_mut(self.x.columns);
        rows.zip(cotangent).for_each(|(slot, &g)| slot.iter_mut().for_each(|s| *s += g * n));
    }
}

/// |v|² of vectors: `[rows][3][channels]` to `[rows][channels]`.
#[derive(Clone, Debug)]
pub(super) struct SquaredLengthOp {
    v: Var,
    output: Var,
}

impl<R: Scalar> Operation<R> for SquaredLengthOp {
    fn output(&self) -> Var {
        self.output
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let c = self.output.columns;
        vectorised!({
            for (v, y) in point.value(self.v).chunks_exact(3 * c).zip(output.chunks_exact_mut(c)) {
                let (x, rest) = v.split_at(c);
                let (u, w) = rest.split_at(c);
                (0..c).for_each(|i| y[i] = x[i] * x[i] + u[i] * u[i] + w[i] * w[i]);
            }
        });
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (c, two) = (self.output.columns, R::from_f64(2.0));
        let rows = point.value(self.v).chunks_exact(3 * c).zip(tangents[self.v.range()].chunks_exact(3 * c));
        for ((v, dv), y) in rows.zip(output.chunks_exact_mut(c)) {
            (0..c).for_each(|i| y[i] = two * (v[i] * dv[i] + v[c + i] * dv[c + i] + v[2 * c + i] * dv[2 * c + i]));
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (c, two) = (self.output.columns, R::from_f64(2.0));
        let rows = point.value(self.v).chunks_exact(3 * c).zip(cotangent.chunks_exact(c));
        vectorised!({
            for ((v, g), slot) in rows.zip(inputs[self.v.range()].chunks_exact_mut(3 * c)) {
                for (v, slot) in v.chunks_exact(c).zip(slot.chunks_exact_mut(c)) {
                    (0..c).for_each(|i| slot[i] += two * g[i] * v[i]);
                }
            }
        });
    }
}

impl<R: Scalar> Tape<R> {
    /// Layer normalisation of the rows of x.
    pub fn layer_norm(&mut self, parameters: &[R], norm: LayerNorm, x: Var) -> Var {
        let output = self.allocate(x.rows, x.columns);
        self.run(parameters, LayerNormOp { x, norm: Some(norm), output })
    }

    /// Layer normalisation without weights: rows minus their mean, over their standard deviation.
    pub fn standardised(&mut self, x: Var) -> Var {
        let output = self.allocate(x.rows, x.columns);
        self.run(&[], LayerNormOp { x, norm: None, output })
    }

    /// Mean over columns, `[rows][1]`.
    pub fn mean_columns(&mut self, x: Var) -> Var {
        let output = self.allocate(x.rows, 1);
        self.run(&[], MeanColumnsOp { x, output })
    }

    /// |v|² per channel of vectors `[rows][3][channels]`.
    pub fn squared_length(&mut self, v: Var) -> Var {
        assert!(v.columns.is_multiple_of(3));
        let output = self.allocate(v.rows, v.columns / 3);
        self.run(&[], SquaredLengthOp { v, output })
    }
}
