//! Multi-head attention among the atoms of each sample, with an additive bias for every pair and head.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};

/// out_i = Σ_j softmax_j(s q_i·k_j + B_ij) v_j in every head (Vaswani et al. 2017; bias: Ying et al. 2021).
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub atoms: usize,
    pub heads: usize,
}

/// `qkv[rows][3 D]` holds q, k and v side by side, each `[c][head]` so that loops over heads vectorise; so does the output. The
/// softmax weights `[i][j][heads]` follow it.
#[derive(Clone, Debug)]
pub(super) struct AttentionOp {
    qkv: Var,
    bias: Var,
    attention: Attention,
    output: Var,
}

/// Heads that are summed together, in registers.
const LANES: usize = 16;

/// Sizes: atoms, heads, width of a head, all columns D.
struct Sizes {
    n: usize,
    h: usize,
    c: usize,
    d: usize,
}

impl Sizes {
    /// q, k or v (`which` = 0, 1, 2) of an atom in the rows of a sample.
    #[inline(always)]
    fn place(&self, which: usize, atom: usize) -> std::ops::Range<usize> {
        let start = (3 * atom + which) * self.d;
        start..start + self.d
    }
}

impl AttentionOp {
    fn sizes(&self) -> Sizes {
        let (h, d) = (self.attention.heads, self.qkv.columns / 3);
        Sizes { n: self.attention.atoms, h, c: d / h, d }
    }

    fn scale<R: Scalar>(&self) -> R {
        R::from_f64(1.0 / (self.sizes().c as f64).sqrt())
    }

    /// Numbers of the output proper; the weights follow.
    fn split(&self) -> usize {
        self.qkv.rows * self.sizes().d
    }

    /// out[h] ← factor · Σ_c a[c][h] b[c][h].
    #[inline(always)]
    fn dot<R: Scalar>(h: usize, factor: R, a: &[R], b: &[R], out: &mut [R]) {
        #[inline(always)]
        fn heads<R: Scalar, const L: usize>((h, first): (usize, usize), factor: R, a: &[R], b: &[R], out: &mut [R]) {
            let mut sum = [R::default(); L];
            for (a, b) in a.chunks_exact(h).zip(b.chunks_exact(h)) {
                let (a, b) = (&a[first..first + L], &b[first..first + L]);
                for l in 0..L {
                    sum[l] += a[l] * b[l];
                }
            }
            out[first..first + L].iter_mut().zip(sum).for_each(|(o, s)| *o = factor * s);
        }
        for block in 0..h / LANES {
            heads::<R, LANES>((h, block * LANES), factor, a, b, out);
        }
        for first in h / LANES * LANES..h {
            heads::<R, 1>((h, first), factor, a, b, out);
        }
    }

    /// y[c][h] += Σ_j w[j][h] x[j][c][h], the rows of the weights and those of x as far apart as said.
    #[inline(always)]
    fn weighted_sum<R: Scalar>(h: usize, (w, stride): (&[R], usize), (x, d): (&[R], usize), y: &mut [R]) {
        #[inline(always)]
        fn heads<R: Scalar, const L: usize>(
            first: usize,
            (w, stride): (&[R], usize),
            (x, d): (&[R], usize),
            y: &mut [R],
        ) {
            let mut sum = [R::default(); L];
            sum.copy_from_slice(y);
            for (w, x) in w.chunks(stride).zip(x.chunks(d)) {
                let (w, x) = (&w[first..first + L], &x[..L]);
                for l in 0..L {
                    sum[l] += w[l] * x[l];
                }
            }
            y.copy_from_slice(&sum);
        }
        for (c, y) in y.chunks_exact_mut(h).enumerate() {
            let rows = |first: usize| (&x[c * h + first..], d);
            for block in 0..h / LANES {
                let first = block * LANES;
                heads::<R, LANES>(first, (w, stride), rows(first), &mut y[first..first + LANES]);
            }
            for first in h / LANES * LANES..h {
                heads::<R, 1>(first, (w, stride), rows(first), &mut y[first..=first]);
            }
        }
    }

    /// `weights[j][h]` less their largest over j, so that no exponential overflows.
    #[inline(always)]
    fn subtract_largest<R: Scalar>(h: usize, weights: &mut [R], top: &mut [R]) {
        top.copy_from_slice(&weights[..h]);
        for w in weights.chunks_exact(h) {
            top.iter_mut().zip(w).for_each(|(top, &w)| *top = if w > *top { w } else { *top });
        }
        for w in weights.chunks_exact_mut(h) {
            w.iter_mut().zip(top.iter()).for_each(|(w, &top)| *w = *w - top);
        }
    }

    /// g ← p (g − Σ_j p g), the derivative of the softmax, which is symmetric.
    #[inline(always)]
    fn softmax_derivative<R: Scalar>(h: usize, p: &[R], g: &mut [R], mean: &mut [R]) {
        mean.fill(R::default());
        for (p, g) in p.chunks_exact(h).zip(g.chunks_exact(h)) {
            mean.iter_mut().zip(p).zip(g).for_each(|((m, &p), &g)| *m += p * g);
        }
        for (p, g) in p.chunks_exact(h).zip(g.chunks_exact_mut(h)) {
            g.iter_mut().zip(p).zip(mean.iter()).for_each(|((g, &p), &m)| *g = p * (*g - m));
        }
    }
}

impl<R: Scalar> Operation<R> for AttentionOp {
    fn output(&self) -> Var {
        self.output
    }

    fn products(&self) -> usize {
        let Sizes { n, d, .. } = self.sizes();
        2 * self.qkv.rows * n * d
    }

    fn forward(&self, _: &[R], inputs: &[R], output: &mut [R]) {
        let (sizes, scale) = (self.sizes(), self.scale());
        let Sizes { n, h, d, .. } = sizes;
        let (output, weights) = output.split_at_mut(self.split());
        let bias = inputs[self.bias.range()].chunks_exact(n * n * h);
        let mut row = vec![R::default(); h];
        let samples = inputs[self.qkv.range()].chunks_exact(n * 3 * d).zip(output.chunks_exact_mut(n * d));
        for ((rows, output), (weights, bias)) in samples.zip(weights.chunks_exact_mut(n * n * h).zip(bias)) {
            vectorised(|| {
                let pairs = weights.chunks_exact_mut(n * h).zip(bias.chunks_exact(n * h));
                for (i, (weights, bias)) in pairs.enumerate() {
                    for (j, w) in weights.chunks_exact_mut(h).enumerate() {
                        AttentionOp::dot(h, scale, &rows[sizes.place(0, i)], &rows[sizes.place(1, j)], w);
                    }
                    weights.iter_mut().zip(bias).for_each(|(w, &b)| *w += b);
                    AttentionOp::subtract_largest(h, weights, &mut row);
                }
            });
            R::exp_slice(weights);
            let one = R::from_f64(1.0);
            vectorised(|| {
                output.fill(R::default());
                for (output, weights) in output.chunks_exact_mut(d).zip(weights.chunks_exact_mut(n * h)) {
                    row.fill(R::default());
                    for w in weights.chunks_exact(h) {
                        row.iter_mut().zip(w).for_each(|(s, &w)| *s += w);
                    }
                    row.iter_mut().for_each(|s| *s = one / *s);
                    for w in weights.chunks_exact_mut(h) {
                        w.iter_mut().zip(row.iter()).for_each(|(w, &s)| *w *= s);
                    }
                    AttentionOp::weighted_sum(h, (weights, h), (&rows[2 * d..], 3 * d), output);
                }
            });
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let (sizes, scale) = (self.sizes(), self.scale::<R>());
        let Sizes { n, h, d, .. } = sizes;
        let weights = &point.value(self.output)[self.split()..];
        let (output, d_weights) = output.split_at_mut(self.split());
        d_weights.copy_from_slice(&tangents[self.bias.range()]);
        let mut row = vec![R::default(); h];
        let samples = point.value(self.qkv).chunks_exact(n * 3 * d);
        let samples = samples.zip(tangents[self.qkv.range()].chunks_exact(n * 3 * d));
        let weights = weights.chunks_exact(n * n * h).zip(d_weights.chunks_exact_mut(n * n * h));
        for (((x, dx), output), (p, dp)) in samples.zip(output.chunks_exact_mut(n * d)).zip(weights) {
            vectorised(|| {
                output.fill(R::default());
                let pairs = p.chunks_exact(n * h).zip(dp.chunks_exact_mut(n * h));
                for (i, (output, (p, dp))) in output.chunks_exact_mut(d).zip(pairs).enumerate() {
                    for (j, dp) in dp.chunks_exact_mut(h).enumerate() {
                        let (q, k) = (sizes.place(0, i), sizes.place(1, j));
                        for (a, b) in [(&dx[q.clone()], &x[k.clone()]), (&x[q], &dx[k])] {
                            AttentionOp::dot(h, scale, a, b, &mut row);
                            dp.iter_mut().zip(&row).for_each(|(w, &s)| *w += s);
                        }
                    }
                    AttentionOp::softmax_derivative(h, p, dp, &mut row);
                    AttentionOp::weighted_sum(h, (dp, h), (&x[2 * d..], 3 * d), output);
                    AttentionOp::weighted_sum(h, (p, h), (&dx[2 * d..], 3 * d), output);
                }
            });
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let (sizes, scale) = (self.sizes(), self.scale::<R>());
        let Sizes { n, h, d, .. } = sizes;
        let weights = &point.value(self.output)[self.split()..];
        let mut scratch = vec![R::default(); n * n * h + h];
        let (g_weights, row) = scratch.split_at_mut(n * n * h);
        let samples = point.value(self.qkv).chunks_exact(n * 3 * d).zip(cotangent.chunks_exact(n * d));
        for (sample, ((x, g), p)) in samples.zip(weights.chunks_exact(n * n * h)).enumerate() {
            let bias = &mut inputs[self.bias.range()][sample * n * n * h..(sample + 1) * n * n * h];
            vectorised(|| {
                let pairs = g_weights.chunks_exact_mut(n * h).zip(p.chunks_exact(n * h));
                let one = R::from_f64(1.0);
                for ((g_weights, p), g) in pairs.zip(g.chunks_exact(d)) {
                    for (j, g_weight) in g_weights.chunks_exact_mut(h).enumerate() {
                        AttentionOp::dot(h, one, g, &x[sizes.place(2, j)], g_weight);
                    }
                    AttentionOp::softmax_derivative(h, p, g_weights, row);
                }
                bias.iter_mut().zip(g_weights.iter()).for_each(|(b, &g)| *b += g);
                g_weights.iter_mut().for_each(|g| *g *= scale);
            });
            let slot = &mut inputs[self.qkv.range()][sample * n * 3 * d..(sample + 1) * n * 3 * d];
            let stride = n * h;
            vectorised(|| {
                for i in 0..n {
                    let (of_row, of_column) = (&g_weights[i * stride..(i + 1) * stride], &g_weights[i * h..]);
                    AttentionOp::weighted_sum(h, (of_row, h), (&x[d..], 3 * d), &mut slot[sizes.place(0, i)]);
                    AttentionOp::weighted_sum(h, (of_column, stride), (x, 3 * d), &mut slot[sizes.place(1, i)]);
                    AttentionOp::weighted_sum(h, (&p[i * h..], stride), (g, d), &mut slot[sizes.place(2, i)]);
                }
            });
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Attention of `qkv[rows][3 D]` (q, k and v side by side, each `[c][head]`, as the output is) with `bias[rows × atoms][heads]`; `[rows][D]`.
    pub fn attention(&mut self, attention: Attention, qkv: Var, bias: Var) -> Var {
        let Attention { atoms, heads } = attention;
        assert!(qkv.columns.is_multiple_of(3 * heads) && bias.columns == heads && bias.rows == qkv.rows * atoms);
        let columns = qkv.columns / 3;
        let output = self.allocate(1, qkv.rows * columns + bias.len());
        let whole = self.run(&[], AttentionOp { qkv, bias, attention, output });
        Var { rows: qkv.rows, columns, ..whole }
    }
}
