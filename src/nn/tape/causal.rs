//! Causal multi-head attention: every token attends to itself and to those before it.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Matrix, Scalar};

/// out_i = Σ_{j ≤ i} softmax_j(q_i·k_j/√c) v_j in every head of c columns (Vaswani et al. 2017).
#[derive(Clone, Copy, Debug)]
pub struct Causal {
    pub tokens: usize,
    pub heads: usize,
}

/// `qkv[rows][3 D]` holds q, k and v side by side, each `[head][c]`, like the output. The softmax weights
/// `[sample][head][i][j]`, zero above the diagonal, follow the output.
#[derive(Clone, Debug)]
pub(super) struct CausalOp {
    qkv: Var,
    causal: Causal,
    output: Var,
}

impl CausalOp {
    fn d(&self) -> usize {
        self.qkv.columns / 3
    }

    /// Size of the output proper; the weights follow.
    fn split(&self) -> usize {
        self.qkv.rows * self.d()
    }
}

impl Causal {
    fn scale<R: Scalar>(&self, d: usize) -> R {
        R::from_f64(1.0 / ((d / self.heads) as f64).sqrt())
    }

    /// For every sample and head the offsets in qkv, in the output and in the weights.
    fn parts(self, rows: usize, d: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let (t, heads) = (self.tokens, self.heads);
        (0..rows / t).flat_map(move |s| {
            (0..heads).map(move |h| (s * t * 3 * d + h * d / heads, s * t * d + h * d / heads, (s * heads + h) * t * t))
        })
    }

    /// a[T][c] · b[T][c]ᵀ, with the given row strides.
    fn outer<R: Scalar>(&self, c: usize, a: (&[R], usize), b: (&[R], usize), to: &mut [R], accumulate: bool) {
        let t = self.tokens;
        let to = (&mut to[..t * t], Matrix::row_major(t));
        R::gemm((t, t, c), to, (a.0, Matrix::row_major(a.1)), (b.0, Matrix::transposed(b.1)), accumulate);
    }

    /// to[T][c] += w[T][T] · a[T][c], or with wᵀ.
    fn mix<R: Scalar>(&self, c: usize, w: &[R], transposed: bool, a: (&[R], usize), to: (&mut [R], usize)) {
        let t = self.tokens;
        let view = if transposed { Matrix::transposed(t) } else { Matrix::row_major(t) };
        let to = (to.0, Matrix::row_major(to.1));
        R::gemm((t, c, t), to, (&w[..t * t], view), (a.0, Matrix::row_major(a.1)), true);
    }

    /// Computes `output[rows][D]` and `weights[sample][head][i][j]` from `qkv[rows][3 D]`.
    pub fn forward<R: Scalar>(&self, qkv: &[R], output: &mut [R], weights: &mut [R]) {
        let t = self.tokens;
        let rows = weights.len() / (self.heads * t);
        let d = output.len() / rows;
        let c = d / self.heads;
        output.fill(R::default());
        for (at, out, w) in self.parts(rows, d) {
            let weights = &mut weights[w..w + t * t];
            self.outer(c, (&qkv[at..], 3 * d), (&qkv[at + d..], 3 * d), weights, false);
            weights.chunks_exact_mut(t).enumerate().for_each(|(i, row)| softmax(row, i, self.scale(d)));
            self.mix(c, weights, false, (&qkv[at + 2 * d..], 3 * d), (&mut output[out..], d));
        }
    }
}

/// Replaces a row of scores by softmax weights up to `last`, and by zeros after it.
fn softmax<R: Scalar>(row: &mut [R], last: usize, scale: R) {
    let (seen, unseen) = row.split_at_mut(last + 1);
    unseen.fill(R::default());
    let top = seen.iter().fold(seen[0], |top, &w| if w > top { w } else { top });
    vectorised!(seen.iter_mut().for_each(|w| *w = scale * (*w - top)));
    R::exp_slice(seen);
    let factor = R::from_f64(1.0) / seen.iter().copied().sum::<R>();
    vectorised!(seen.iter_mut().for_each(|w| *w *= factor));
}

/// g ← p (g − Σ p g) · `scale`: the derivative of a row's softmax, which is symmetric.
fn softmax_derivative<R: Scalar>(p: &[R], g: &mut [R], scale: R) {
    let mean = p.iter().zip(g.iter()).map(|(&p, &g)| p * g).sum::<R>();
    vectorised!(g.iter_mut().zip(p).for_each(|(g, &p)| *g = scale * p * (*g - mean)));
}

impl<R: Scalar> Operation<R> for CausalOp {
    fn output(&self) -> Var {
        self.output
    }

    fn products(&self) -> usize {
        2 * self.qkv.rows * self.causal.tokens * self.d()
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (output, weights) = output.split_at_mut(self.split());
        self.causal.forward(point.value(self.qkv), output, weights);
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (Causal { tokens: t, heads }, d) = (self.causal, self.d());
        let (causal, c) = (self.causal, d / heads);
        let (x, dx) = (point.value(self.qkv), &tangents[self.qkv.range()]);
        let weights = &point.value(self.output)[self.split()..];
        let (output, d_weights) = output.split_at_mut(self.split());
        output.fill(R::default());
        for (at, out, w) in causal.parts(self.qkv.rows, d) {
            let (p, dp) = (&weights[w..w + t * t], &mut d_weights[w..w + t * t]);
            causal.outer(c, (&dx[at..], 3 * d), (&x[at + d..], 3 * d), dp, false);
            causal.outer(c, (&x[at..], 3 * d), (&dx[at + d..], 3 * d), dp, true);
            let rows = p.chunks_exact(t).zip(dp.chunks_exact_mut(t));
            rows.for_each(|(p, dp)| softmax_derivative(p, dp, causal.scale(d)));
            causal.mix(c, dp, false, (&x[at + 2 * d..], 3 * d), (&mut output[out..], d));
            causal.mix(c, p, false, (&dx[at + 2 * d..], 3 * d), (&mut output[out..], d));
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (Causal { tokens: t, heads }, d, x) = (self.causal, self.d(), point.value(self.qkv));
        let (causal, c) = (self.causal, d / heads);
        let weights = &point.value(self.output)[self.split()..];
        let slot = &mut inputs[self.qkv.range()];
        let mut g_weights = vec![R::default(); t * t];
        for (at, out, w) in causal.parts(self.qkv.rows, d) {
            let (p, g) = (&weights[w..w + t * t], &cotangent[out..]);
            causal.outer(c, (g, d), (&x[at + 2 * d..], 3 * d), &mut g_weights, false);
            let rows = p.chunks_exact(t).zip(g_weights.chunks_exact_mut(t));
            rows.for_each(|(p, g)| softmax_derivative(p, g, causal.scale(d)));
            causal.mix(c, &g_weights, false, (&x[at + d..], 3 * d), (&mut slot[at..], 3 * d));
            causal.mix(c, &g_weights, true, (&x[at..], 3 * d), (&mut slot[at + d..], 3 * d));
            causal.mix(c, p, true, (g, d), (&mut slot[at + 2 * d..], 3 * d));
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Causal attention of `qkv[samples × tokens][3 D]`; returns `[samples × tokens][D]`.
    pub fn causal_attention(&mut self, causal: Causal, qkv: Var) -> Var {
        let Causal { tokens, heads } = causal;
        assert!(qkv.columns.is_multiple_of(3 * heads) && qkv.rows.is_multiple_of(tokens));
        let columns = qkv.columns / 3;
        let output = self.allocate(1, qkv.rows * (columns + heads * tokens));
        let whole = self.run(&[], CausalOp { qkv, causal, output });
        Var { rows: qkv.rows, columns, ..whole }
    }
}
