//! The network without a tape, its weights laid out for products. From the data to the prior for all tokens at once; from the prior to
//! the data token after token, with the keys and values of the tokens before kept.

use super::{TarFlowConfig, TarNetwork};
use crate::nn::product::{Dense, Packed};
use crate::nn::real::vectorised;
use crate::nn::tape::{gelu, normalise, Causal, LayerNorm, Weight};
use crate::nn::Real;
use std::sync::Mutex;

/// The network's weights, laid out for products.
pub(super) struct Runner<R> {
    config: TarFlowConfig,
    blocks: Vec<Block<R>>,
    /// Buffers of earlier calls.
    pool: Mutex<Vec<Scratch<R>>>,
}

struct Block<R> {
    into: Dense<R>,
    positions: Vec<R>,
    layers: Vec<Layer<R>>,
    out: Dense<R>,
}

struct Layer<R> {
    attention_norm: [Vec<R>; 2],
    qkv: Dense<R>,
    out: Dense<R>,
    forward_norm: [Vec<R>; 2],
    forward: [Dense<R>; 2],
}

/// Rows of a batch: of all tokens, or of one token of each sample.
#[derive(Default)]
struct Scratch<R> {
    token: Vec<R>,
    y: Vec<R>,
    normed: Vec<R>,
    qkv: Vec<R>,
    mixed: Vec<R>,
    hidden: Vec<R>,
    activated: Vec<R>,
    change: Vec<R>,
    output: Vec<R>,
    scores: Vec<R>,
    /// Keys and values of the tokens before, `[layer][sample][token][2 C]`; or the weights of the attention.
    kept: Vec<R>,
}

impl<R: Real> Runner<R> {
    pub fn new(network: &TarNetwork, p: &[R]) -> Runner<R> {
        let dense = |w: Weight| {
            let weight = |i: usize, o: usize| p[w.place(i, o)].to_f64();
            Dense::new(Packed::new(w.n_in, w.n_out, weight), w.bias_of(p))
        };
        let c = network.config.channels;
        let norm = |n: LayerNorm| [n.weight, n.bias].map(|at| p[at..at + c].to_vec());
        let blocks = network.blocks.iter().map(|block| Block {
            into: dense(block.into),
            positions: p[block.positions..block.positions + network.config.tokens * c].to_vec(),
            layers: block
                .layers
                .iter()
                .map(|layer| Layer {
                    attention_norm: norm(layer.attention_norm),
                    qkv: dense(layer.qkv),
                    out: dense(layer.out),
                    forward_norm: norm(layer.forward_norm),
                    forward: layer.forward.map(dense),
                })
                .collect(),
            out: dense(block.out),
        });
        Runner { config: network.config.clone(), blocks: blocks.collect(), pool: Mutex::default() }
    }

    /// `x[n][T D]` in the network's units to z, and ln|∂z/∂x|.
    pub fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, heads, .. } = self.config;
        let n = log_det.len();
        self.with_scratch(n * tokens, n * heads * tokens * tokens, |s| {
            z.copy_from_slice(x);
            log_det.fill(0.0);
            for (b, block) in self.blocks.iter().enumerate() {
                self.run(block, b % 2 == 1, s, z, log_det);
            }
        });
    }

    /// `z[n][T D]` to x in the network's units, and ln|∂x/∂z|.
    pub fn decode(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, channels, layers, .. } = self.config;
        let n = log_det.len();
        self.with_scratch(n, 2 * layers * n * tokens * channels, |s| {
            x.copy_from_slice(z);
            log_det.fill(0.0);
            for (b, block) in self.blocks.iter().enumerate().rev() {
                self.undo(block, b % 2 == 1, s, x, log_det);
            }
        });
    }

    fn with_scratch(&self, rows: usize, kept: usize, body: impl FnOnce(&mut Scratch<R>)) {
        let mut scratch = self.pool.lock().map(|mut pool| pool.pop()).unwrap_or_default().unwrap_or_default();
        scratch.resize(&self.config, rows, kept);
        body(&mut scratch);
        if let Ok(mut pool) = self.pool.lock() {
            pool.push(scratch);
        }
    }

    /// Place in a configuration of the token that a block sees as its i-th.
    fn place(&self, reverse: bool, i: usize) -> usize {
        if reverse {
            self.config.tokens - 1 - i
        } else {
            i
        }
    }

    /// u of a block in `x` becomes v.
    fn run(&self, block: &Block<R>, reverse: bool, s: &mut Scratch<R>, x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, token_size: d, channels: c, heads, .. } = self.config;
        for (row, token) in s.token.chunks_exact_mut(d).enumerate() {
            let at = row / tokens * tokens + self.place(reverse, row % tokens);
            token.iter_mut().zip(&x[at * d..][..d]).for_each(|(t, &x)| *t = R::from_f64(x));
        }
        block.into.apply(&s.token, &mut s.y);
        for (row, y) in s.y.chunks_exact_mut(c).enumerate() {
            add(y, &block.positions[self.place(reverse, row % tokens) * c..][..c]);
        }
        let causal = Causal { tokens, heads };
        for layer in &block.layers {
            layer.attention(s, |s| causal.forward(&s.qkv, &mut s.mixed, &mut s.kept));
            layer.perceptron(s);
        }
        block.out.apply(&s.y, &mut s.output);
        let samples = s.output.chunks_exact(tokens * 2 * d).zip(x.chunks_exact_mut(tokens * d));
        for ((out, x), log_det) in samples.zip(log_det) {
            for (i, out) in out.chunks_exact(2 * d).enumerate().take(tokens - 1) {
                let (a, shift) = out.split_at(d);
                let x = &mut x[self.place(reverse, i + 1) * d..][..d];
                for (x, (a, shift)) in x.iter_mut().zip(a.iter().zip(shift)) {
                    *x = (*x - shift.to_f64()) * (-a.to_f64()).exp();
                    *log_det -= a.to_f64();
                }
            }
        }
    }

    /// v of a block in `x` becomes u.
    fn undo(&self, block: &Block<R>, reverse: bool, s: &mut Scratch<R>, x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, token_size: d, channels: c, .. } = self.config;
        let place = |i: usize| self.place(reverse, i);
        // the last token is not needed for any other
        for i in 0..tokens - 1 {
            for (token, x) in s.token.chunks_exact_mut(d).zip(x.chunks_exact(tokens * d)) {
                let x = &x[place(i) * d..][..d];
                token.iter_mut().zip(x).for_each(|(t, &x)| *t = R::from_f64(x));
            }
            block.into.apply(&s.token, &mut s.y);
            let position = &block.positions[place(i) * c..][..c];
            s.y.chunks_exact_mut(c).for_each(|y| add(y, position));
            for (l, layer) in block.layers.iter().enumerate() {
                layer.attention(s, |s| self.attend(l, i, s));
                layer.perceptron(s);
            }
            block.out.apply(&s.y, &mut s.output);
            let samples = s.output.chunks_exact(2 * d).zip(x.chunks_exact_mut(tokens * d));
            for ((out, x), log_det) in samples.zip(log_det.iter_mut()) {
                let (a, shift) = out.split_at(d);
                for (x, (a, shift)) in x[place(i + 1) * d..][..d].iter_mut().zip(a.iter().zip(shift)) {
                    *x = *x * a.to_f64().exp() + shift.to_f64();
                    *log_det += a.to_f64();
                }
            }
        }
    }

    /// Keeps the key and the value of token i and mixes the values of all so far.
    fn attend(&self, l: usize, i: usize, s: &mut Scratch<R>) {
        let TarFlowConfig { tokens, channels: c, heads, .. } = self.config;
        let (width, samples) = (c / heads, s.y.len() / c);
        let scale = R::from_f64(1.0 / (width as f64).sqrt());
        let kept = s.kept[l * samples * tokens * 2 * c..].chunks_exact_mut(tokens * 2 * c);
        let rows = s.qkv.chunks_exact(3 * c).zip(s.mixed.chunks_exact_mut(c));
        let (seen, scores) = (i + 1, &mut s.scores[..heads * (i + 1)]);
        for ((qkv, mixed), kept) in rows.zip(kept) {
            kept[i * 2 * c..][..2 * c].copy_from_slice(&qkv[c..]);
            let kept = &kept[..seen * 2 * c];
            vectorised(|| {
                for (h, scores) in scores.chunks_exact_mut(seen).enumerate() {
                    let q = &qkv[h * width..(h + 1) * width];
                    for (score, kept) in scores.iter_mut().zip(kept.chunks_exact(2 * c)) {
                        *score = scale * dot(q, &kept[h * width..(h + 1) * width]);
                    }
                    let top = scores.iter().fold(scores[0], |top, &w| if w > top { w } else { top });
                    scores.iter_mut().for_each(|w| *w = *w - top);
                }
            });
            R::exp_slice(scores);
            vectorised(|| {
                for (h, scores) in scores.chunks_exact(seen).enumerate() {
                    let sum = scores.iter().fold(R::default(), |sum, &w| sum + w);
                    let factor = R::from_f64(1.0) / sum;
                    let mixed = &mut mixed[h * width..(h + 1) * width];
                    mixed.fill(R::default());
                    for (&w, kept) in scores.iter().zip(kept.chunks_exact(2 * c)) {
                        let (w, value) = (w * factor, &kept[c + h * width..c + (h + 1) * width]);
                        mixed.iter_mut().zip(value).for_each(|(m, &v)| *m += w * v);
                    }
                }
            });
        }
    }
}

impl<R: Real> Layer<R> {
    /// y += O attention(LN(y)), where `mix` turns qkv into what is mixed.
    fn attention(&self, s: &mut Scratch<R>, mix: impl FnOnce(&mut Scratch<R>)) {
        normalise(&s.y, (&self.attention_norm[0], &self.attention_norm[1]), &mut s.normed);
        self.qkv.apply(&s.normed, &mut s.qkv);
        mix(s);
        self.out.apply(&s.mixed, &mut s.change);
        add(&mut s.y, &s.change);
    }

    /// y += F₂ gelu(F₁ LN(y)).
    fn perceptron(&self, s: &mut Scratch<R>) {
        normalise(&s.y, (&self.forward_norm[0], &self.forward_norm[1]), &mut s.normed);
        self.forward[0].apply(&s.normed, &mut s.hidden);
        gelu(&s.hidden, &mut s.activated);
        self.forward[1].apply(&s.activated, &mut s.change);
        add(&mut s.y, &s.change);
    }
}

impl<R: Real> Scratch<R> {
    fn resize(&mut self, config: &TarFlowConfig, rows: usize, kept: usize) {
        let TarFlowConfig { tokens, token_size: d, channels: c, heads, expansion, .. } = *config;
        let sizes = [
            (&mut self.token, rows * d),
            (&mut self.y, rows * c),
            (&mut self.normed, rows * c),
            (&mut self.qkv, 3 * rows * c),
            (&mut self.mixed, rows * c),
            (&mut self.hidden, rows * expansion * c),
            (&mut self.activated, rows * expansion * c),
            (&mut self.change, rows * c),
            (&mut self.output, 2 * rows * d),
            (&mut self.scores, heads * tokens),
            (&mut self.kept, kept),
        ];
        for (buffer, size) in sizes {
            buffer.resize(size, R::default());
        }
    }
}

fn add<R: Real>(y: &mut [R], change: &[R]) {
    vectorised(|| y.iter_mut().zip(change).for_each(|(y, &c)| *y += c));
}

#[inline(always)]
fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    const PARTS: usize = 16;
    let mut sums = [R::default(); PARTS];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<PARTS>(), b.as_chunks::<PARTS>());
    for (a, b) in a.iter().zip(b) {
        for k in 0..PARTS {
            sums[k] += a[k] * b[k];
        }
    }
    let rest = a_rest.iter().zip(b_rest).fold(R::default(), |sum, (&a, &b)| sum + a * b);
    sums.into_iter().fold(rest, |sum, s| sum + s)
}
