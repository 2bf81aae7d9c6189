//! From the prior to the data: token after token, with the keys and values of the tokens before kept.

use super::{TarFlowConfig, TarNetwork};
use crate::nn::product::{Dense, Packed};
use crate::nn::real::vectorised;
use crate::nn::tape::{gelu, normalise, LayerNorm, Weight};
use crate::nn::Real;
use std::sync::Mutex;

/// The network's weights, laid out for products.
pub(super) struct Decoder<R> {
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

/// Rows of a batch of samples at one token, and what is kept of the tokens before.
#[derive(Default)]
struct Scratch<R> {
    token: Vec<R>,
    y: Vec<R>,
    normed: Vec<R>,
    qkv: Vec<R>,
    mixed: Vec<R>,
    hidden: Vec<R>,
    change: Vec<R>,
    output: Vec<R>,
    scores: Vec<R>,
    /// Keys and values `[layer][sample][token][2 C]`.
    kept: Vec<R>,
}

impl<R: Real> Decoder<R> {
    pub fn new(network: &TarNetwork, p: &[R]) -> Decoder<R> {
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
        Decoder { config: network.config.clone(), blocks: blocks.collect(), pool: Mutex::default() }
    }

    /// `z[n][T D]` to x in the network's units, and ln|∂x/∂z|.
    pub fn decode(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64]) {
        let mut scratch = self.pool.lock().map(|mut pool| pool.pop()).unwrap_or_default().unwrap_or_default();
        scratch.resize(&self.config, log_det.len());
        x.copy_from_slice(z);
        log_det.fill(0.0);
        for (b, block) in self.blocks.iter().enumerate().rev() {
            self.undo(block, b % 2 == 1, &mut scratch, x, log_det);
        }
        if let Ok(mut pool) = self.pool.lock() {
            pool.push(scratch);
        }
    }

    /// v of a block in `x` becomes u.
    fn undo(&self, block: &Block<R>, reverse: bool, s: &mut Scratch<R>, x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, token_size: d, channels: c, .. } = self.config;
        let place = |i: usize| if reverse { tokens - 1 - i } else { i };
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
                self.layer(layer, l, i, s);
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

    fn layer(&self, layer: &Layer<R>, l: usize, i: usize, s: &mut Scratch<R>) {
        normalise(&s.y, (&layer.attention_norm[0], &layer.attention_norm[1]), &mut s.normed);
        layer.qkv.apply(&s.normed, &mut s.qkv);
        self.attend(l, i, s);
        layer.out.apply(&s.mixed, &mut s.change);
        add(&mut s.y, &s.change);
        normalise(&s.y, (&layer.forward_norm[0], &layer.forward_norm[1]), &mut s.normed);
        layer.forward[0].apply(&s.normed, &mut s.hidden);
        // a buffer of the same size would do no more than this
        let hidden = s.hidden.clone();
        gelu(&hidden, &mut s.hidden);
        layer.forward[1].apply(&s.hidden, &mut s.change);
        add(&mut s.y, &s.change);
    }

    /// Keeps the key and the value of token i and mixes the values of all so far.
    fn attend(&self, l: usize, i: usize, s: &mut Scratch<R>) {
        let TarFlowConfig { tokens, channels: c, heads, .. } = self.config;
        let (width, samples) = (c / heads, s.y.len() / c);
        let scale = R::from_f64(1.0 / (width as f64).sqrt());
        let kept = s.kept[l * samples * tokens * 2 * c..].chunks_exact_mut(tokens * 2 * c);
        let rows = s.qkv.chunks_exact(3 * c).zip(s.mixed.chunks_exact_mut(c));
        let scores = &mut s.scores[..=i];
        for ((qkv, mixed), kept) in rows.zip(kept) {
            kept[i * 2 * c..][..2 * c].copy_from_slice(&qkv[c..]);
            for h in 0..heads {
                let (head, values) = (h * width, c + h * width);
                let q = &qkv[head..head + width];
                for (score, kept) in scores.iter_mut().zip(kept.chunks_exact(2 * c)) {
                    *score = scale * dot(q, &kept[head..head + width]);
                }
                let top = scores.iter().fold(scores[0], |top, &w| if w > top { w } else { top });
                scores.iter_mut().for_each(|w| *w = *w - top);
                R::exp_slice(scores);
                let factor = R::from_f64(1.0) / scores.iter().copied().sum::<R>();
                let mixed = &mut mixed[head..head + width];
                mixed.fill(R::default());
                for (&w, kept) in scores.iter().zip(kept.chunks_exact(2 * c)) {
                    let (w, value) = (w * factor, &kept[values..values + width]);
                    vectorised(|| mixed.iter_mut().zip(value).for_each(|(m, &v)| *m += w * v));
                }
            }
        }
    }
}

impl<R: Real> Scratch<R> {
    fn resize(&mut self, config: &TarFlowConfig, n: usize) {
        let TarFlowConfig { tokens, token_size: d, channels: c, layers, expansion, .. } = *config;
        let sizes = [
            (&mut self.token, n * d),
            (&mut self.y, n * c),
            (&mut self.normed, n * c),
            (&mut self.qkv, 3 * n * c),
            (&mut self.mixed, n * c),
            (&mut self.hidden, n * expansion * c),
            (&mut self.change, n * c),
            (&mut self.output, 2 * n * d),
            (&mut self.scores, tokens),
            (&mut self.kept, 2 * layers * n * tokens * c),
        ];
        for (buffer, size) in sizes {
            buffer.resize(size, R::default());
        }
    }
}

fn add<R: Real>(y: &mut [R], change: &[R]) {
    vectorised(|| y.iter_mut().zip(change).for_each(|(y, &c)| *y += c));
}

fn dot<R: Real>(a: &[R], b: &[R]) -> R {
    const PARTS: usize = 16;
    vectorised(|| {
        let mut sums = [R::default(); PARTS];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<PARTS>(), b.as_chunks::<PARTS>());
        for (a, b) in a.iter().zip(b) {
            for k in 0..PARTS {
                sums[k] += a[k] * b[k];
            }
        }
        let rest = a_rest.iter().zip(b_rest).fold(R::default(), |sum, (&a, &b)| sum + a * b);
        sums.into_iter().fold(rest, |sum, s| sum + s)
    })
}
