//! Multi-head attention among the atoms of each sample, with an additive bias for every pair and head.

use super::{Operation, Point, Tape, Var};
use crate::nn::real::{vectorised, Scalar};

/// out_i = Σ_j softmax_j(s q_i·k_j + B_ij) v_j in every head (Vaswani et al. 2017; bias: Ying et al. 2021).
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub atoms: usize,
    pub heads: usize,
}

/// `qkv[rows][3 D]` holds q, k and v side by side, head after head; the softmax weights `[i][j][heads]` follow the output.
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

    /// q, k or v (`which` = 0, 1, 2) of one sample with heads innermost, `[atom][c][head]`: loops over heads then vectorise.
    fn heads_inside<R: Scalar>(&self, rows: &[R], which: usize, out: &mut [R]) {
        let Sizes { h, c, d, .. } = self.sizes();
        for (row, out) in rows.chunks_exact(3 * d).zip(out.chunks_exact_mut(d)) {
            let row = &row[which * d..(which + 1) * d];
            for (head, values) in row.chunks_exact(c).enumerate() {
                values.iter().enumerate().for_each(|(k, &v)| out[k * h + head] = v);
            }
        }
    }

    /// The inverse of `heads_inside`, added.
    fn add_heads_outside<R: Scalar>(&self, rows: &mut [R], stride: usize, which: usize, inside: &[R]) {
        let Sizes { h, c, d, .. } = self.sizes();
        for (row, inside) in rows.chunks_exact_mut(stride).zip(inside.chunks_exact(d)) {
            let row = &mut row[which * d..(which + 1) * d];
            for (head, values) in row.chunks_exact_mut(c).enumerate() {
                values.iter_mut().enumerate().for_each(|(k, v)| *v += inside[k * h + head]);
            }
        }
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

    /// y[c][h] += Σ_j w[j][h] x[j][c][h], the rows of weights `stride` apart.
    #[inline(always)]
    fn weighted_sum<R: Scalar>(h: usize, (w, stride): (&[R], usize), x: &[R], y: &mut [R]) {
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
        let d = y.len();
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
        let Sizes { n, h, d, .. } = self.sizes();
        let (output, weights) = output.split_at_mut(self.split());
        let bias = inputs[self.bias.range()].chunks_exact(n * n * h);
        let mut scratch = vec![R::default(); 4 * n * d + h];
        let (qkv, rest) = scratch.split_at_mut(3 * n * d);
        let (out, row) = rest.split_at_mut(n * d);
        let samples = inputs[self.qkv.range()].chunks_exact(n * 3 * d).zip(output.chunks_exact_mut(n * d));
        for ((rows, output), (weights, bias)) in samples.zip(weights.chunks_exact_mut(n * n * h).zip(bias)) {
            qkv.chunks_exact_mut(n * d).enumerate().for_each(|(which, slot)| self.heads_inside(rows, which, slot));
            let (q, kv) = qkv.split_at(n * d);
            let (k, v) = kv.split_at(n * d);
            vectorised(|| {
                let rows = weights.chunks_exact_mut(n * h).zip(bias.chunks_exact(n * h));
                for (q, (weights, bias)) in q.chunks_exact(d).zip(rows) {
                    for (k, w) in k.chunks_exact(d).zip(weights.chunks_exact_mut(h)) {
                        AttentionOp::dot(h, self.scale(), q, k, w);
                    }
                    weights.iter_mut().zip(bias).for_each(|(w, &b)| *w += b);
                    AttentionOp::subtract_largest(h, weights, row);
                }
            });
            R::exp_slice(weights);
            vectorised(|| {
                out.fill(R::default());
                for (out, weights) in out.chunks_exact_mut(d).zip(weights.chunks_exact_mut(n * h)) {
                    row.fill(R::default());
                    for w in weights.chunks_exact(h) {
                        row.iter_mut().zip(w).for_each(|(s, &w)| *s += w);
                    }
                    row.iter_mut().for_each(|s| *s = R::from_f64(1.0) / *s);
                    for w in weights.chunks_exact_mut(h) {
                        w.iter_mut().zip(row.iter()).for_each(|(w, &s)| *w *= s);
                    }
                    AttentionOp::weighted_sum(h, (weights, h), v, out);
                }
            });
            output.fill(R::default());
            self.add_heads_outside(output, d, 0, out);
        }
    }

    fn jvp(&self, point: &Point<R>, tangents: &[R], output: &mut [R]) {
        let Sizes { n, h, d, .. } = self.sizes();
        let weights = &point.value(self.output)[self.split()..];
        let (output, d_weights) = output.split_at_mut(self.split());
        d_weights.copy_from_slice(&tangents[self.bias.range()]);
        let mut qkv = vec![R::default(); 6 * n * d];
        let (mut out, mut row) = (vec![R::default(); n * d], vec![R::default(); h]);
        let samples = output.len() / (n * d);
        for sample in 0..samples {
            let rows = |x: &[R], slot: &mut [R]| {
                let x = &x[sample * n * 3 * d..(sample + 1) * n * 3 * d];
                slot.chunks_exact_mut(n * d).enumerate().for_each(|(which, slot)| self.heads_inside(x, which, slot));
            };
            let (value, tangent) = qkv.split_at_mut(3 * n * d);
            rows(point.value(self.qkv), value);
            rows(&tangents[self.qkv.range()], tangent);
            let part = |which: usize, i: usize| which * n * d + i * d..which * n * d + (i + 1) * d;
            let v = 2 * n * d..3 * n * d;
            out.fill(R::default());
            for i in 0..n {
                let pair = (sample * n + i) * n * h..(sample * n + i + 1) * n * h;
                let (p, dp) = (&weights[pair.clone()], &mut d_weights[pair]);
                for j in 0..n {
                    let (qi, kj) = (part(0, i), part(1, j));
                    for (a, b) in [(&tangent[qi.clone()], &value[kj.clone()]), (&value[qi], &tangent[kj])] {
                        AttentionOp::dot(h, self.scale(), a, b, &mut row);
                        dp[j * h..(j + 1) * h].iter_mut().zip(&row).for_each(|(w, &s)| *w += s);
                    }
                }
                AttentionOp::softmax_derivative(h, p, dp, &mut row);
                let out = &mut out[i * d..(i + 1) * d];
                AttentionOp::weighted_sum(h, (dp, h), &value[v.clone()], out);
                AttentionOp::weighted_sum(h, (p, h), &tangent[v.clone()], out);
            }
            let output = &mut output[sample * n * d..(sample + 1) * n * d];
            output.fill(R::default());
            self.add_heads_outside(output, d, 0, &out);
        }
    }

    fn vjp(&self, point: &Point<R>, cotangent: &[R], inputs: &mut [R], _: Option<&mut [R]>) {
        let Sizes { n, h, d, .. } = self.sizes();
        let weights = &point.value(self.output)[self.split()..];
        let mut scratch = vec![R::default(); 7 * n * d + n * n * h + h];
        let (qkv, rest) = scratch.split_at_mut(3 * n * d);
        let (g_qkv, rest) = rest.split_at_mut(3 * n * d);
        let (g_out, rest) = rest.split_at_mut(n * d);
        let (g_weights, row) = rest.split_at_mut(n * n * h);
        let samples = cotangent[..self.split()].len() / (n * d);
        for sample in 0..samples {
            let rows = sample * n * 3 * d..(sample + 1) * n * 3 * d;
            let values = &point.value(self.qkv)[rows.clone()];
            qkv.chunks_exact_mut(n * d).enumerate().for_each(|(which, slot)| self.heads_inside(values, which, slot));
            let (q, kv) = qkv.split_at(n * d);
            let (k, v) = kv.split_at(n * d);
            g_qkv.fill(R::default());
            let (gq, gkv) = g_qkv.split_at_mut(n * d);
            let (gk, gv) = gkv.split_at_mut(n * d);
            // cotangents of the output, heads inside
            let g = &cotangent[sample * n * d..(sample + 1) * n * d];
            for (g, inside) in g.chunks_exact(d).zip(g_out.chunks_exact_mut(d)) {
                let c = d / h;
                g.iter().enumerate().for_each(|(k, &g)| inside[k % c * h + k / c] = g);
            }
            let bias = &mut inputs[self.bias.range()][sample * n * n * h..(sample + 1) * n * n * h];
            let p = &weights[sample * n * n * h..(sample + 1) * n * n * h];
            vectorised(|| {
                let rows = g_weights.chunks_exact_mut(n * h).zip(p.chunks_exact(n * h));
                for ((g_weights, p), g_out) in rows.zip(g_out.chunks_exact(d)) {
                    for (g, v) in g_weights.chunks_exact_mut(h).zip(v.chunks_exact(d)) {
                        AttentionOp::dot(h, R::from_f64(1.0), g_out, v, g);
                    }
                    AttentionOp::softmax_derivative(h, p, g_weights, row);
                }
                bias.iter_mut().zip(g_weights.iter()).for_each(|(b, &g)| *b += g);
                g_weights.iter_mut().for_each(|g| *g *= self.scale::<R>());
            });
            let stride = n * h;
            vectorised(|| {
                for i in 0..n {
                    let (of_row, of_column) = (&g_weights[i * stride..(i + 1) * stride], &g_weights[i * h..]);
                    let atom = i * d..(i + 1) * d;
                    AttentionOp::weighted_sum(h, (of_row, h), k, &mut gq[atom.clone()]);
                    AttentionOp::weighted_sum(h, (of_column, stride), q, &mut gk[atom.clone()]);
                    AttentionOp::weighted_sum(h, (&p[i * h..], stride), g_out, &mut gv[atom]);
                }
            });
            let slot = &mut inputs[self.qkv.range()][rows];
            for (which, part) in [&*gq, &*gk, &*gv].into_iter().enumerate() {
                self.add_heads_outside(slot, 3 * d, which, part);
            }
        }
    }
}

impl<R: Scalar> Tape<R> {
    /// Attention of `qkv[rows][3 D]` (q, k and v side by side, head after head) with `bias[rows × atoms][heads]`; `[rows][D]`.
    pub fn attention(&mut self, attention: Attention, qkv: Var, bias: Var) -> Var {
        let Attention { atoms, heads } = attention;
        assert!(qkv.columns.is_multiple_of(3 * heads) && bias.columns == heads && bias.rows == qkv.rows * atoms);
        let columns = qkv.columns / 3;
        let output = self.allocate(1, qkv.rows * columns + bias.len());
        let whole = self.run(&[], AttentionOp { qkv, bias, attention, output });
        Var { rows: qkv.rows, columns, ..whole }
    }
}
