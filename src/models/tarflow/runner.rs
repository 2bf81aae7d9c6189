//! The network without a tape, its weights packed for products. From the data to the prior all tokens run at once; from
//! the prior to the data token by token, with a key/value cache.

use super::attention::{keep, mix};
use super::decoding::Jacobi;
use super::network::{Given, GivenLayer, Modulation, TarNetwork};
use super::TarFlowConfig;
use crate::nn::memory::{resize, Spares};
use crate::nn::product::{Dense, Packed, Pieces};
use crate::nn::real::vectorised;
use crate::nn::tape::{gelu, normalise, normalise_by, normalise_columns, Causal, LayerNorm, Weight};
use crate::nn::{Real, Tape, Var};
use std::ops::Range;
use std::sync::Arc;

/// The network's weights, packed for products, and the conditioning of its blocks.
pub(super) struct Runner<R> {
    config: TarFlowConfig,
    blocks: Vec<Block<R>>,
    /// Buffers of earlier calls.
    spares: Spares<Scratch<R>>,
}

struct Block<R> {
    order: Arc<[u32]>,
    given: Given<Vec<R>>,
    weights: Arc<BlockWeights<R>>,
}

/// The part of a block that is the same for all peptides.
struct BlockWeights<R> {
    into: Dense<R>,
    layers: Vec<Layer<R>>,
    out: Dense<R>,
}

struct Layer<R> {
    attention_norm: [Vec<R>; 2],
    qkv: Dense<R>,
    qk_norms: Option<[[Vec<R>; 2]; 2]>,
    out: Dense<R>,
    forward_norm: [Vec<R>; 2],
    forward: [Dense<R>; 2],
    transition: Option<Transition<R>>,
}

struct Transition<R> {
    values: Dense<R>,
    gates: Dense<R>,
    out: Dense<R>,
}

/// Rows of a batch: all tokens, or one token of each sample.
#[derive(Default)]
struct Scratch<R> {
    token: Vec<R>,
    y: Vec<R>,
    /// w inside an adaptive layer.
    inner: Vec<R>,
    normed: Vec<R>,
    qkv: Vec<R>,
    mixed: Vec<R>,
    hidden: Vec<R>,
    activated: Vec<R>,
    change: Vec<R>,
    output: Vec<R>,
    scores: Vec<R>,
    /// Key/value cache, `[layer][sample][head][2][token][C / heads]`, so that a head reads contiguous memory; or the
    /// attention weights.
    kept: Vec<R>,
}

impl<R: Real> Runner<R> {
    /// `halves`: the matrices' weights are bfloat16 numbers, and are also stored as such.
    pub fn new(network: &TarNetwork, p: &[R], halves: bool) -> Runner<R> {
        let c = network.config.channels;
        let dense = |w: Weight| {
            let weight = |i: usize, o: usize| p[w.place(i, o)].to_f64();
            let bias = w.bias_of(p);
            let none = vec![R::default(); w.n_out];
            let dense = Dense::new(Packed::new(w.n_in, w.n_out, weight), if bias.is_empty() { &none } else { bias });
            if halves {
                dense.with_halves()
            } else {
                dense
            }
        };
        let norm = |n: LayerNorm| [n.weight, n.bias].map(|at| p[at..at + c].to_vec());
        let weights = network.blocks.iter().map(|block| {
            let layers = block.layers.iter().map(|layer| Layer {
                attention_norm: norm(layer.attention_norm),
                qkv: dense(layer.qkv),
                qk_norms: layer.qk_norms.map(|norms| norms.map(norm)),
                out: dense(layer.out),
                forward_norm: norm(layer.forward_norm),
                forward: layer.forward.map(dense),
                transition: layer.transition.as_ref().map(|transition| {
                    let [values, gates] = transition.halves().map(dense);
                    Transition { values, gates, out: dense(transition.out) }
                }),
            });
            Arc::new(BlockWeights { into: dense(block.into), layers: layers.collect(), out: dense(block.out) })
        });
        Runner::with(network, p, weights)
    }

    /// The same for another peptide, sharing the weights.
    pub fn bind(&self, network: &TarNetwork, p: &[R]) -> Runner<R> {
        Runner::with(network, p, self.blocks.iter().map(|block| block.weights.clone()))
    }

    fn with(network: &TarNetwork, p: &[R], weights: impl Iterator<Item = Arc<BlockWeights<R>>>) -> Runner<R> {
        let mut tape = Tape::default();
        let given = network.given(p, &mut tape);
        let given = given.into_iter().map(|given| given.map(|&var| tape.value(var).to_vec()));
        let blocks = network.blocks.iter().zip(given.zip(weights)).map(|(block, (given, weights))| Block {
            order: block.order.clone(),
            given,
            weights,
        });
        Runner { config: network.config.clone(), blocks: blocks.collect(), spares: Spares::default() }
    }

    /// Conditioning of each block in turn.
    pub fn given_values(&self) -> impl Iterator<Item = &Given<Vec<R>>> {
        self.blocks.iter().map(|block| &block.given)
    }

    /// Conditioning of the blocks as tape inputs.
    pub fn given(&self, tape: &mut Tape<R>) -> Vec<Given<Var>> {
        let c = self.config.channels;
        let mut input = |values: &Vec<R>| {
            let var = tape.input(values.len() / c, c);
            tape.value_mut(var).copy_from_slice(values);
            var
        };
        self.blocks.iter().map(|block| block.given.map(&mut input)).collect()
    }

    /// Maps `x[n][T D]` in the network's units to z, with ln|∂z/∂x|.
    pub fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, heads, .. } = self.config;
        let (n, seen) = (log_det.len(), tokens - 1);
        self.with_scratch(n * seen, n * heads * seen * seen, |s| {
            z.copy_from_slice(x);
            log_det.fill(0.0);
            self.blocks.iter().for_each(|block| self.run(block, s, z, log_det));
        });
    }

    /// Maps `z[n][T D]` to x in the network's units, with ln|∂x/∂z|.
    pub fn decode(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, channels, layers, .. } = self.config;
        let n = log_det.len();
        self.with_scratch(n, 2 * layers * n * tokens * channels, |s| {
            x.copy_from_slice(z);
            log_det.fill(0.0);
            self.blocks.iter().rev().for_each(|block| self.undo(block, s, x, log_det));
        });
    }

    fn with_scratch(&self, rows: usize, kept: usize, body: impl FnOnce(&mut Scratch<R>)) {
        self.spares.with(Scratch::default, |scratch| {
            scratch.resize(&self.config, rows, kept);
            body(scratch);
        });
    }

    /// Replaces u of a block, in `x`, by v.
    fn run(&self, block: &Block<R>, s: &mut Scratch<R>, x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, token_size: d, channels: c, heads, .. } = self.config;
        // no other token sees the last one, and the first is unchanged
        let seen = tokens - 1;
        if seen == 0 {
            return;
        }
        for (row, token) in s.token.chunks_exact_mut(d).enumerate() {
            let at = row / seen * tokens + block.place(row % seen);
            token.iter_mut().zip(&x[at * d..][..d]).for_each(|(t, &x)| *t = R::from_f64(x));
        }
        let causal = Causal { tokens: seen, heads };
        let nothing = |_| Pieces::default();
        block.tokens(0..seen * c, s, nothing, |_, s| causal.forward(&s.qkv, &mut s.mixed, &mut s.kept));
        let samples = s.output.chunks_exact(seen * 2 * d).zip(x.chunks_exact_mut(tokens * d));
        for ((out, x), log_det) in samples.zip(log_det) {
            for (i, out) in out.chunks_exact(2 * d).enumerate() {
                let (a, shift) = out.split_at(d);
                let x = &mut x[block.place(i + 1) * d..][..d];
                for (x, (a, shift)) in x.iter_mut().zip(a.iter().zip(shift)) {
                    *x = (*x - shift.to_f64()) * (-a.to_f64()).exp();
                    *log_det -= a.to_f64();
                }
            }
        }
    }

    /// Replaces v of a block, in `x`, by u.
    fn undo(&self, block: &Block<R>, s: &mut Scratch<R>, x: &mut [f64], log_det: &mut [f64]) {
        let TarFlowConfig { tokens, token_size: d, channels: c, .. } = self.config;
        let n = log_det.len();
        // no other token needs the last one
        for i in 0..tokens - 1 {
            for (token, x) in s.token.chunks_exact_mut(d).zip(x.chunks_exact(tokens * d)) {
                let x = &x[block.place(i) * d..][..d];
                token.iter_mut().zip(x).for_each(|(t, &x)| *t = R::from_f64(x));
            }
            let ahead = |l| self.seen(l, i + 1, n);
            block.tokens(i * c..(i + 1) * c, s, ahead, |l, s| self.attend(l, i..i + 1, s));
            let samples = s.output.chunks_exact(2 * d).zip(x.chunks_exact_mut(tokens * d));
            for ((out, x), log_det) in samples.zip(log_det.iter_mut()) {
                let (a, shift) = out.split_at(d);
                for (x, (a, shift)) in x[block.place(i + 1) * d..][..d].iter_mut().zip(a.iter().zip(shift)) {
                    *x = *x * a.to_f64().exp() + shift.to_f64();
                    *log_det += a.to_f64();
                }
            }
        }
    }

    /// Positions of the keys and values of the first `seen` tokens of n samples.
    fn seen(&self, l: usize, seen: usize, n: usize) -> Pieces {
        let TarFlowConfig { tokens, channels: c, heads, .. } = self.config;
        let size = 2 * n * tokens * c;
        Pieces { range: l * size..(l + 1) * size, part: tokens * c / heads, piece: seen * c / heads }
    }

    /// Caches the keys and values of these tokens, and computes for each the attention over all tokens up to it.
    fn attend(&self, l: usize, these: Range<usize>, s: &mut Scratch<R>) {
        let TarFlowConfig { tokens, channels: c, heads, .. } = self.config;
        let samples = s.y.len() / (c * these.len());
        let size = tokens * 2 * c;
        let rows = s.qkv.chunks_exact(3 * c * these.len()).zip(s.mixed.chunks_exact_mut(c * these.len()));
        for (sample, (qkv, mixed)) in rows.enumerate() {
            let kept = &mut s.kept[(l * samples + sample) * size..];
            let each = these.clone().zip(qkv.chunks_exact(3 * c).zip(mixed.chunks_exact_mut(c)));
            for (i, (qkv, mixed)) in each {
                keep(&qkv[c..], &mut kept[..size], i, heads);
                mix(&qkv[..c], (kept, tokens), i + 1, mixed, heads, &mut s.scores);
            }
        }
    }

    /// [`Runner::decode`] of one sample, with the tokens of a segment all at once: iterates u ← v e^a + b until it
    /// converges. `passes` counts those of all blocks. False if a segment does not converge.
    pub fn decode_together(&self, z: &[f64], x: &mut [f64], how: &Jacobi, passes: &mut usize) -> bool {
        let TarFlowConfig { tokens, channels, layers, .. } = self.config;
        let mut at_rest = true;
        self.with_scratch(1, 2 * layers * tokens * channels, |s| {
            x.copy_from_slice(z);
            at_rest = self.blocks.iter().rev().all(|block| self.undo_together(block, s, x, how, passes));
        });
        at_rest
    }

    /// Replaces v of a block, in `x` (one sample), by u.
    fn undo_together(
        &self,
        block: &Block<R>,
        s: &mut Scratch<R>,
        x: &mut [f64],
        how: &Jacobi,
        passes: &mut usize,
    ) -> bool {
        let TarFlowConfig { tokens, token_size: d, channels: c, .. } = self.config;
        let (v, kept) = (x.to_vec(), s.kept.len());
        for start in (0..tokens - 1).step_by(how.segment) {
            let end = (start + how.segment).min(tokens - 1);
            // every pass makes one more token final, and with it its keys and values, which are cached
            for first in start..end {
                if first - start == how.passes {
                    return false;
                }
                s.resize(&self.config, end - first, kept);
                for (i, token) in (first..end).zip(s.token.chunks_exact_mut(d)) {
                    token.iter_mut().zip(&x[block.place(i) * d..]).for_each(|(t, &x)| *t = R::from_f64(x));
                }
                let ahead = |l| self.seen(l, end, 1);
                block.tokens(first * c..end * c, s, ahead, |l, s| self.attend(l, first..end, s));
                *passes += 1;
                let mut at_rest = true;
                for (i, out) in (first..end).zip(s.output.chunks_exact(2 * d)) {
                    let (places, (a, shift)) = (block.place(i + 1) * d.., out.split_at(d));
                    let pairs = x[places.clone()].iter_mut().zip(&v[places]);
                    for ((x, v), (a, shift)) in pairs.zip(a.iter().zip(shift)) {
                        let factor = a.to_f64().exp();
                        let u = v * factor + shift.to_f64();
                        // residual of the block's equation; false for NaN
                        at_rest &= (u - *x).abs() <= how.residual() * factor;
                        *x = u;
                    }
                }
                if at_rest {
                    break;
                }
            }
        }
        true
    }
}

impl<R: Real> Block<R> {
    /// Index in the configuration of the block's i-th token.
    fn place(&self, i: usize) -> usize {
        self.order[i] as usize
    }

    /// [a, b] of the tokens after those in `s.token`, whose indices in the conditioning are `at`. `mix` turns a layer's
    /// qkv into its attention output, and reads the pieces `ahead` of the cache.
    fn tokens(
        &self,
        at: Range<usize>,
        s: &mut Scratch<R>,
        ahead: impl Fn(usize) -> Pieces,
        mix: impl Fn(usize, &mut Scratch<R>),
    ) {
        let BlockWeights { into, layers, out } = &*self.weights;
        into.apply(&s.token, &mut s.y);
        add_rows(&mut s.y, &self.given.positions[at.clone()]);
        for (l, (layer, given)) in layers.iter().zip(&self.given.layers).enumerate() {
            match &given.attention {
                None => {
                    if let Some(condition) = &self.given.condition {
                        add_rows(&mut s.y, &condition[at.clone()]);
                    }
                    layer.attention(s, ahead(l), |s| mix(l, s));
                    layer.perceptron(s);
                }
                Some(modulation) => layer.adaptive(modulation, given, at.clone(), s, ahead(l), |s| mix(l, s)),
            }
        }
        out.apply(&s.y, &mut s.output);
    }
}

impl<R: Real> Layer<R> {
    fn adaptive(
        &self,
        modulation: &Modulation<Vec<R>>,
        given: &GivenLayer<Vec<R>>,
        at: Range<usize>,
        s: &mut Scratch<R>,
        ahead: Pieces,
        mix: impl FnOnce(&mut Scratch<R>),
    ) {
        let c = self.attention_norm[0].len();
        modulation.normalise(c, at.clone(), s);
        // attention and perceptron update y, which here is w
        std::mem::swap(&mut s.y, &mut s.inner);
        self.attention(s, ahead, mix);
        self.perceptron(s);
        std::mem::swap(&mut s.y, &mut s.inner);
        add_gated(&mut s.y, &s.inner, &modulation.gate[at.clone()]);
        let Some((transition, modulation)) = self.transition.as_ref().zip(given.transition.as_ref()) else { return };
        modulation.normalise(c, at.clone(), s);
        transition.apply(s);
        add_gated(&mut s.y, &s.change, &modulation.gate[at]);
    }

    /// y += O attention(LN(y)), where `mix` turns qkv into the attention output and reads the pieces `ahead` of the
    /// cache.
    fn attention(&self, s: &mut Scratch<R>, ahead: Pieces, mix: impl FnOnce(&mut Scratch<R>)) {
        normalise(&s.y, (&self.attention_norm[0], &self.attention_norm[1]), &mut s.normed);
        self.qkv.apply_and_fetch(&s.normed, &mut s.qkv, (&s.kept, ahead));
        for (k, [w, b]) in self.qk_norms.iter().flatten().enumerate() {
            normalise_columns(&mut s.qkv, (k * w.len(), 3 * w.len()), (w, b));
        }
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

impl<R: Real> Modulation<Vec<R>> {
    /// w = A(y).
    fn normalise(&self, columns: usize, at: Range<usize>, s: &mut Scratch<R>) {
        normalise_by(columns, &s.y, (&self.gamma[at.clone()], &self.beta[at]), &mut s.inner);
    }
}

impl<R: Real> Transition<R> {
    /// Computes the change of y from w.
    fn apply(&self, s: &mut Scratch<R>) {
        self.gates.apply(&s.inner, &mut s.hidden);
        R::silu_slice(&s.hidden, &mut s.activated);
        self.values.apply(&s.inner, &mut s.hidden);
        vectorised!(s.activated.iter_mut().zip(&s.hidden).for_each(|(a, &h)| *a *= h));
        self.out.apply(&s.activated, &mut s.change);
    }
}

impl<R: Real> Scratch<R> {
    fn resize(&mut self, config: &TarFlowConfig, rows: usize, kept: usize) {
        let TarFlowConfig { tokens, token_size: d, channels: c, expansion, .. } = *config;
        let sizes = [
            (&mut self.token, rows * d),
            (&mut self.y, rows * c),
            (&mut self.inner, rows * c),
            (&mut self.normed, rows * c),
            (&mut self.qkv, 3 * rows * c),
            (&mut self.mixed, rows * c),
            (&mut self.hidden, rows * expansion * c),
            (&mut self.activated, rows * expansion * c),
            (&mut self.change, rows * c),
            (&mut self.output, 2 * rows * d),
            (&mut self.scores, tokens),
            (&mut self.kept, kept),
        ];
        for (buffer, size) in sizes {
            resize(buffer, size);
        }
    }
}

fn add<R: Real>(y: &mut [R], change: &[R]) {
    vectorised!(y.iter_mut().zip(change).for_each(|(y, &c)| *y += c));
}

/// Adds rows that repeat for each sample.
fn add_rows<R: Real>(y: &mut [R], rows: &[R]) {
    y.chunks_exact_mut(rows.len()).for_each(|y| add(y, rows));
}

/// y += w times the gates, whose rows repeat for each sample.
fn add_gated<R: Real>(y: &mut [R], w: &[R], gate: &[R]) {
    let samples = y.chunks_exact_mut(gate.len()).zip(w.chunks_exact(gate.len()));
    vectorised!({
        for (y, w) in samples {
            y.iter_mut().zip(w).zip(gate).for_each(|((y, &w), &g)| *y += g * w);
        }
    });
}
