//! Multi-head attention among the atoms of each sample, with an additive bias for each pair and head.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};

/// out_i = Σ_j softmax_j(s q_i·k_j + B_ij) v_j in every head (Vaswani et al. 2017; bias: Ying et al. 2021).
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub atoms: usize,
    pub heads: usize,
}

/// `qkv[rows][3 D]` holds q, k and v side by side, each `[c][head]` so that loops over heads vectorise; the output has
/// the same order. The softmax weights `[i][j][heads]` follow the output.
#[derive(Clone, Debug)]
pub(super) struct AttentionOp {
    qkv: Var,
    bias: Var,
    attention: Attention,
    output: Var,
}

/// Heads summed together in registers.
const LANES: usize = 16;

/// Calls `kernel::<R, L>(first, …)` for groups of L heads starting at `first`: as large as possible, and the remaining
/// heads one by one.
macro_rules! by_heads {
    ($heads:expr, $kernel:ident($($argument:expr),*)) => {
        let whole = $heads / LANES * LANES;
        for first in (0..whole).step_by(LANES) {
            $kernel::<R, LANES>(first, $($argument),*);
        }
        for first in whole..$heads {
            $kernel::<R, 1>(first, $($argument),*);
        }
    };
}

/// Sizes: atoms, heads, width of a head, total columns D.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    h: usize,
    c: usize,
    d: usize,
}

impl AttentionOp {
    fn sizes(&self) -> Sizes {
        let (h, d) = (self.attention.heads, self.qkv.columns / 3);
        Sizes { n: self.attention.atoms, h, c: d / h, d }
    }

    fn scale<R: Scalar>(&self) -> R {
        R::from_f64(1.0 / (self.sizes().c as f64).sqrt())
    }

    /// Size of the output proper; the weights follow.
    fn split(&self) -> usize {
        self.qkv.rows * self.sizes().d
    }
}

/// Rows with a given stride.
type Rows<'a, R> = (&'a [R], usize);

/// The same rows from another offset on.
#[inline(always)]
fn from<R>((values, stride): Rows<R>, place: usize) -> Rows<R> {
    (&values[place..], stride)
}

/// w[i][j][heads], with the strides to the next i and to the next j.
#[derive(Clone, Copy)]
struct Weights<'a, R> {
    values: &'a [R],
    by_row: usize,
    by_column: usize,
}

impl Sizes {
    /// Weights `[i][j][heads]`.
    #[inline(always)]
    fn by_row<'a, R>(&self, values: &'a [R]) -> Weights<'a, R> {
        Weights { values, by_row: self.n * self.h, by_column: self.h }
    }

    /// Weights `[j][i][heads]`.
    #[inline(always)]
    fn by_column<'a, R>(&self, values: &'a [R]) -> Weights<'a, R> {
        Weights { values, by_row: self.h, by_column: self.n * self.h }
    }
}

/// Pairs (i, j) of rows and columns: two by two (`true`), where each value read is used twice, and the remaining ones
/// one by one.
#[inline(always)]
fn tiles(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize, bool)> {
    let (even_rows, even_columns) = (rows - rows % 2, columns - columns % 2);
    let pairs = (0..even_rows).step_by(2).flat_map(move |i| (0..even_columns).step_by(2).map(move |j| (i, j, true)));
    let left = move |i: usize| if i < even_rows { even_columns } else { 0 };
    pairs.chain((0..rows).flat_map(move |i| (left(i)..columns).map(move |j| (i, j, false))))
}

/// out[i][j][h] ← factor · Σ_c a[i][c][h] b[j][c][h] for `rows` rows of a and all n of b.
#[inline(always)]
fn dots<R: Scalar>(Sizes { n, h, d, .. }: Sizes, factor: R, rows: usize, a: Rows<R>, b: Rows<R>, out: &mut [R]) {
    #[inline(always)]
    fn two<R: Scalar, const L: usize>(
        first: usize,
        (n, h, d): (usize, usize, usize),
        factor: R,
        (a, b): (Rows<R>, Rows<R>),
        out: &mut [R],
    ) {
        let [mut s0, mut s1, mut s2, mut s3] = [[R::default(); L]; 4];
        let (next_a, next_b) = (&a.0[a.1..], &b.0[b.1..]);
        for c in (first..d).step_by(h) {
            let (a0, a1, b0, b1) = (&a.0[c..c + L], &next_a[c..c + L], &b.0[c..c + L], &next_b[c..c + L]);
            for l in 0..L {
                s0[l] += a0[l] * b0[l];
                s1[l] += a0[l] * b1[l];
                s2[l] += a1[l] * b0[l];
                s3[l] += a1[l] * b1[l];
            }
        }
        for (place, sum) in [0, h, n * h, n * h + h].into_iter().zip([s0, s1, s2, s3]) {
            out[place + first..][..L].iter_mut().zip(sum).for_each(|(o, s)| *o = factor * s);
        }
    }
    #[inline(always)]
    fn one<R: Scalar, const L: usize>(
        first: usize,
        (h, d): (usize, usize),
        factor: R,
        (a, b): (&[R], &[R]),
        out: &mut [R],
    ) {
        let mut sum = [R::default(); L];
        for c in (first..d).step_by(h) {
            let (a, b) = (&a[c..c + L], &b[c..c + L]);
            for l in 0..L {
                sum[l] += a[l] * b[l];
            }
        }
        out[first..first + L].iter_mut().zip(sum).for_each(|(o, s)| *o = factor * s);
    }
    for (i, j, pair) in tiles(rows, n) {
        let (a, b, out) = (from(a, i * a.1), from(b, j * b.1), &mut out[(i * n + j) * h..]);
        if pair {
            by_heads!(h, two((n, h, d), factor, (a, b), out));
        } else {
            by_heads!(h, one((h, d), factor, (a.0, b.0), out));
        }
    }
}

/// y[i][c][h] += Σ_j w[i][j][h] x[j][c][h] for `rows` rows of y.
#[inline(always)]
fn weighted_sums<R: Scalar>(sizes: Sizes, rows: usize, w: Weights<R>, x: Rows<R>, (y, stride): (&mut [R], usize)) {
    #[inline(always)]
    fn two<R: Scalar, const L: usize>(
        first: usize,
        (n, h): (usize, usize),
        w: Weights<R>,
        x: Rows<R>,
        (y, stride): (&mut [R], usize),
    ) {
        let [mut s0, mut s1, mut s2, mut s3] = [[R::default(); L]; 4];
        let (next_w, next_x) = (&w.values[w.by_row..], &x.0[h..]);
        for j in 0..n {
            let (at_w, at_x) = (j * w.by_column + first, j * x.1 + first);
            let (w0, w1) = (&w.values[at_w..at_w + L], &next_w[at_w..at_w + L]);
            let (x0, x1) = (&x.0[at_x..at_x + L], &next_x[at_x..at_x + L]);
            for l in 0..L {
                s0[l] += w0[l] * x0[l];
                s1[l] += w0[l] * x1[l];
                s2[l] += w1[l] * x0[l];
                s3[l] += w1[l] * x1[l];
            }
        }
        for (place, sum) in [0, h, stride, stride + h].into_iter().zip([s0, s1, s2, s3]) {
            y[place + first..][..L].iter_mut().zip(sum).for_each(|(y, s)| *y += s);
        }
    }
    #[inline(always)]
    fn one<R: Scalar, const L: usize>(first: usize, n: usize, w: Weights<R>, x: Rows<R>, y: &mut [R]) {
        let mut sum = [R::default(); L];
        for j in 0..n {
            let (w, x) = (&w.values[j * w.by_column + first..][..L], &x.0[j * x.1 + first..][..L]);
            for l in 0..L {
                sum[l] += w[l] * x[l];
            }
        }
        y[first..first + L].iter_mut().zip(sum).for_each(|(y, s)| *y += s);
    }
    let Sizes { n, h, c: width, .. } = sizes;
    for (i, c, pair) in tiles(rows, width) {
        let w = Weights { values: &w.values[i * w.by_row..], ..w };
        let (x, y) = (from(x, c * h), &mut y[i * stride + c * h..]);
        if pair {
            by_heads!(h, two((n, h), w, x, (y, stride)));
        } else {
            by_heads!(h, one(n, w, x, y));
        }
    }
}

/// Adds `bias[j][h]` to `weights[j][h]`, and subtracts the largest over j so that no exponential overflows.
#[inline(always)]
fn add_bias<R: Scalar>(h: usize, bias: &[R], weights: &mut [R]) {
    #[inline(always)]
    fn heads<R: Scalar, const L: usize>(first: usize, h: usize, bias: &[R], weights: &mut [R]) {
        let mut top = [R::default(); L];
        for l in 0..L {
            top[l] = weights[first + l] + bias[first + l];
        }
        for (w, b) in weights.chunks_exact_mut(h).zip(bias.chunks_exact(h)) {
            let (w, b) = (&mut w[first..first + L], &b[first..first + L]);
            for l in 0..L {
                w[l] += b[l];
                top[l] = if w[l] > top[l] { w[l] } else { top[l] };
            }
        }
        for w in weights.chunks_exact_mut(h) {
            w[first..first + L].iter_mut().zip(top).for_each(|(w, top)| *w = *w - top);
        }
    }
    by_heads!(h, heads(h, bias, weights));
}

/// Divides `weights[j][h]` by their sum over j.
#[inline(always)]
fn normalise<R: Scalar>(h: usize, weights: &mut [R]) {
    #[inline(always)]
    fn heads<R: Scalar, const L: usize>(first: usize, h: usize, weights: &mut [R]) {
        let mut sum = [R::default(); L];
        for w in weights.chunks_exact(h) {
            let w = &w[first..first + L];
            for l in 0..L {
                sum[l] += w[l];
            }
        }
        let inverse = sum.map(|sum| R::from_f64(1.0) / sum);
        for w in weights.chunks_exact_mut(h) {
            w[first..first + L].iter_mut().zip(inverse).for_each(|(w, s)| *w *= s);
        }
    }
    by_heads!(h, heads(h, weights));
}

/// g ← p (g − Σ_j p g), the derivative of the softmax, which is symmetric.
#[inline(always)]
fn softmax_derivative<R: Scalar>(h: usize, p: &[R], g: &mut [R]) {
    #[inline(always)]
    fn heads<R: Scalar, const L: usize>(first: usize, h: usize, p: &[R], g: &mut [R]) {
        let mut mean = [R::default(); L];
        for (p, g) in p.chunks_exact(h).zip(g.chunks_exact(h)) {
            let (p, g) = (&p[first..first + L], &g[first..first + L]);
            for l in 0..L {
                mean[l] += p[l] * g[l];
            }
        }
        for (p, g) in p.chunks_exact(h).zip(g.chunks_exact_mut(h)) {
            let (p, g) = (&p[first..first + L], &mut g[first..first + L]);
            for l in 0..L {
                g[l] = p[l] * (g[l] - mean[l]);
            }
        }
    }
    by_heads!(h, heads(h, p, g));
}

impl<R: Scalar> Operation<R> for AttentionOp {
    fn output(&self) -> Var {
        self.output
    }

    fn products(&self) -> usize {
        let Sizes { n, d, .. } = self.sizes();
        2 * self.qkv.rows * n * d
    }

    fn forward(&self, point: &Point<R>, output: &mut [R]) {
        let (sizes, scale) = (self.sizes(), self.scale());
        let Sizes { n, h, d, .. } = sizes;
        let (output, weights) = output.split_at_mut(self.split());
        let bias = point.value(self.bias).chunks_exact(n * n * h);
        let samples = point.value(self.qkv).chunks_exact(n * 3 * d).zip(output.chunks_exact_mut(n * d));
        for ((qkv, output), (weights, bias)) in samples.zip(weights.chunks_exact_mut(n * n * h).zip(bias)) {
            // two atoms at a time, whose weights stay in the nearest cache
            let pairs = weights.chunks_mut(2 * n * h).zip(bias.chunks(2 * n * h)).zip(output.chunks_mut(2 * d));
            for (pair, ((weights, bias), output)) in pairs.enumerate() {
                let rows = output.len() / d;
                vectorised!({
                    let queries = (&qkv[6 * pair * d..], 3 * d);
                    dots(sizes, scale, rows, queries, (&qkv[d..], 3 * d), weights);
                    let rows = bias.chunks_exact(n * h).zip(weights.chunks_exact_mut(n * h));
                    rows.for_each(|(bias, weights)| add_bias(h, bias, weights));
                });
                R::exp_slice(weights);
                vectorised!({
                    weights.chunks_exact_mut(n * h).for_each(|w| normalise(h, w));
                    output.fill(R::default());
                    let values = (&qkv[2 * d..], 3 * d);
                    weighted_sums(sizes, rows, sizes.by_row(weights), values, (output, d));
                });
            }
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (sizes, scale) = (self.sizes(), self.scale::<R>());
        let Sizes { n, h, d, .. } = sizes;
        let weights = &point.value(self.output)[self.split()..];
        let (output, d_weights) = output.split_at_mut(self.split());
        let mut parts = vec![R::default(); n * n * h];
        let samples = point.value(self.qkv).chunks_exact(n * 3 * d);
        let samples = samples.zip(tangents[self.qkv.range()].chunks_exact(n * 3 * d));
        let weights = weights.chunks_exact(n * n * h).zip(d_weights.chunks_exact_mut(n * n * h));
        let bias = tangents[self.bias.range()].chunks_exact(n * n * h);
        for ((((x, dx), output), (p, dp)), bias) in samples.zip(output.chunks_exact_mut(n * d)).zip(weights).zip(bias) {
            let stride = 3 * d;
            vectorised!({
                dots(sizes, scale, n, (dx, stride), (&x[d..], stride), dp);
                dots(sizes, scale, n, (x, stride), (&dx[d..], stride), &mut parts);
                dp.iter_mut().zip(&parts).zip(bias).for_each(|((dp, &part), &bias)| *dp += part + bias);
            });
            vectorised!({
                let rows = p.chunks_exact(n * h).zip(dp.chunks_exact_mut(n * h));
                rows.for_each(|(p, dp)| softmax_derivative(h, p, dp));
                output.fill(R::default());
                weighted_sums(sizes, n, sizes.by_row(dp), (&x[2 * d..], stride), (output, d));
                weighted_sums(sizes, n, sizes.by_row(p), (&dx[2 * d..], stride), (output, d));
            });
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (sizes, scale) = (self.sizes(), self.scale::<R>());
        let Sizes { n, h, d, .. } = sizes;
        let weights = &point.value(self.output)[self.split()..];
        let mut scratch = vec![R::default(); n * n * h];
        let g_weights = scratch.as_mut_slice();
        let samples = point.value(self.qkv).chunks_exact(n * 3 * d).zip(cotangent.chunks_exact(n * d));
        for (sample, ((x, g), p)) in samples.zip(weights.chunks_exact(n * n * h)).enumerate() {
            let bias = &mut inputs[self.bias.range()][sample * n * n * h..(sample + 1) * n * n * h];
            let stride = 3 * d;
            vectorised!({
                dots(sizes, R::from_f64(1.0), n, (g, d), (&x[2 * d..], stride), g_weights);
                let rows = p.chunks_exact(n * h).zip(g_weights.chunks_exact_mut(n * h));
                rows.for_each(|(p, g)| softmax_derivative(h, p, g));
                bias.iter_mut().zip(g_weights.iter()).for_each(|(b, &g)| *b += g);
                g_weights.iter_mut().for_each(|g| *g *= scale);
            });
            let slot = &mut inputs[self.qkv.range()][sample * n * 3 * d..(sample + 1) * n * 3 * d];
            vectorised!({
                weighted_sums(sizes, n, sizes.by_row(g_weights), (&x[d..], stride), (slot, stride));
                weighted_sums(sizes, n, sizes.by_column(g_weights), (x, stride), (&mut slot[d..], stride));
                weighted_sums(sizes, n, sizes.by_column(p), (g, d), (&mut slot[2 * d..], stride));
            });
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Attention of `qkv[rows][3 D]` (q, k and v side by side, each `[c][head]`, like the output) with `bias[rows ×
    /// atoms][heads]`; returns `[rows][D]`.
    pub fn attention(&mut self, attention: Attention, qkv: Var, bias: Var) -> Var {
        let Attention { atoms, heads } = attention;
        assert!(qkv.columns.is_multiple_of(3 * heads) && bias.columns == heads && bias.rows == qkv.rows * atoms);
        let columns = qkv.columns / 3;
        let output = self.allocate(1, qkv.rows * columns + bias.len());
        let whole = self.run(&[], AttentionOp { qkv, bias, attention, output });
        Var { rows: qkv.rows, columns, ..whole }
    }
}
