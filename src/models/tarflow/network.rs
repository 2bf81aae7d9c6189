//! The network on a tape: its parameters, and the pass from the data to the prior. Both kinds of TarFlow are this
//! network; they differ in the conditioning of a block and in its token order.

use super::transferable::{self, Adaptive, BlockConditions, Embedder, Transition};
use super::TarFlowConfig;
use crate::error::{Error, Result};
use crate::models::layout::{check_sizes, Layout, Start, LARGEST_SIZE, MOST_ATOMS, MOST_LAYERS};
use crate::models::network::Trainable;
use crate::nn::tape::{Causal, Embed, Function, LayerNorm, Weight, NO_ROW};
use crate::nn::{Real, Scalar, Tape, Var};
use crate::rng::{Stream, StreamId};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub attention_norm: LayerNorm,
    pub qkv: Weight,
    /// Norms of queries and of keys, over all heads.
    pub qk_norms: Option<[LayerNorm; 2]>,
    pub out: Weight,
    pub forward_norm: LayerNorm,
    pub forward: [Weight; 2],
    pub adaptive: Option<Adaptive>,
    pub transition: Option<Transition>,
}

/// Positional embeddings of a block.
#[derive(Clone, Debug)]
pub(super) enum Positions {
    /// A table `[T][C]` at this offset, one row per token whatever the block's order.
    OfTokens(usize),
    /// Sines of the position in the block's order, times the parameter at this offset.
    Sines(usize),
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    /// The i-th token that the block sees is token `order[i]` of the configuration.
    pub order: Arc<[u32]>,
    pub into: Weight,
    pub positions: Positions,
    pub conditions: Option<BlockConditions>,
    pub layers: Vec<Layer>,
    /// `[a, b]`.
    pub out: Weight,
}

/// The network.
#[derive(Clone, Debug)]
pub struct TarNetwork {
    pub(super) config: TarFlowConfig,
    pub(super) layout: Layout,
    pub(super) blocks: Vec<Block>,
    /// Embeddings of atoms and residues, in a transferable network.
    pub(super) embedder: Option<Embedder>,
}

/// Variables of [`TarNetwork::record`].
pub struct Recorded {
    /// `[samples × T][D]`, in the network's units.
    pub x: Var,
    pub z: Var,
    /// `[samples][D]`, whose sum over the columns is ln|∂z/∂x|.
    pub log_det: Var,
    /// z after each block.
    pub after: Vec<Var>,
}

/// Conditioning of a block besides its tokens, `[T][C]` each in the block's order: depends on the parameters and the
/// molecule but not on the configuration. `V` is a tape variable, or the numbers.
#[derive(Clone, Debug)]
pub(super) struct Given<V> {
    pub positions: V,
    /// Condition added before every layer, unless the layers are adaptive.
    pub condition: Option<V>,
    pub layers: Vec<GivenLayer<V>>,
}

#[derive(Clone, Debug)]
pub(super) struct GivenLayer<V> {
    pub attention: Option<Modulation<V>>,
    pub transition: Option<Modulation<V>>,
}

/// γ and β of an adaptive layer norm, and the gate that follows it.
#[derive(Clone, Debug)]
pub(super) struct Modulation<V> {
    pub gamma: V,
    pub beta: V,
    pub gate: V,
}

impl<V> Given<V> {
    /// Applies `f` to every part.
    pub fn map<W>(&self, mut f: impl FnMut(&V) -> W) -> Given<W> {
        Given {
            positions: f(&self.positions),
            condition: self.condition.as_ref().map(&mut f),
            layers: self.layers.iter().map(|layer| layer.map(&mut f)).collect(),
        }
    }
}

impl<V> GivenLayer<V> {
    fn map<W>(&self, f: &mut impl FnMut(&V) -> W) -> GivenLayer<W> {
        let mut each = |m: &Modulation<V>| Modulation { gamma: f(&m.gamma), beta: f(&m.beta), gate: f(&m.gate) };
        GivenLayer { attention: self.attention.as_ref().map(&mut each), transition: self.transition.as_ref().map(each) }
    }
}

/// Checks the sizes. Errors: a size that is zero or too large, or a number of channels not divisible by the number of
/// heads.
pub(super) fn check(config: &TarFlowConfig) -> Result<()> {
    let TarFlowConfig { tokens, token_size, channels, blocks, layers, heads, expansion } = *config;
    check_sizes(&[
        ("tokens", tokens, 3 * MOST_ATOMS),
        ("token_size", token_size, LARGEST_SIZE),
        ("channels", channels, LARGEST_SIZE),
        ("blocks", blocks, MOST_LAYERS),
        ("layers", layers, MOST_LAYERS),
        ("heads", heads, LARGEST_SIZE),
        ("expansion", expansion, 64),
    ])?;
    check_sizes(&[("blocks x layers", blocks * layers, MOST_LAYERS)])?;
    match channels.is_multiple_of(heads) {
        true => Ok(()),
        false => Err(Error::invalid(format!("{channels} channels cannot be divided evenly among {heads} heads"))),
    }
}

/// Appends `name.weight` and `name.bias` of a layer norm.
pub(super) fn norm(layout: &mut Layout, name: String, columns: usize) -> LayerNorm {
    let weight = layout.tensor(format!("{name}.weight"), &[columns]);
    LayerNorm { weight, bias: layout.tensor(format!("{name}.bias"), &[columns]) }
}

/// Appends attention and perceptron of a layer. `last` is the number of the perceptron's second matrix, which may be
/// preceded by a dropout.
pub(super) fn layer(layout: &mut Layout, name: &str, config: &TarFlowConfig, last: usize, qk_norms: bool) -> Layer {
    let (c, hidden) = (config.channels, config.expansion * config.channels);
    let part = |part: &str| format!("{name}.{part}");
    Layer {
        attention_norm: norm(layout, part("attention.norm"), c),
        qkv: layout.transposed_linear(&part("attention.qkv"), c, 3 * c),
        out: layout.transposed_linear(&part("attention.proj"), c, c),
        qk_norms: qk_norms.then(|| ["q", "k"].map(|of| norm(layout, part(&format!("attention.{of}_layer_norm")), c))),
        forward_norm: norm(layout, part("mlp.norm"), c),
        forward: [
            layout.transposed_linear(&part("mlp.main.0"), c, hidden),
            layout.transposed_linear(&part(&format!("mlp.main.{last}")), hidden, c),
        ],
        adaptive: None,
        transition: None,
    }
}

/// a times b, where b has the rows of one sample.
pub(super) fn times<R: Scalar>(tape: &mut Tape<R>, a: Var, b: Var) -> Var {
    let product = tape.scale(a.reshape(1, a.rows * a.columns), b.reshape(1, b.rows * b.columns));
    product.reshape(a.rows, a.columns)
}

/// Repeats the rows of one sample, to `rows` rows.
pub(super) fn for_samples<R: Scalar>(tape: &mut Tape<R>, v: Var, rows: usize) -> Var {
    let all = tape.repeat(v.reshape(1, v.rows * v.columns), rows / v.rows);
    all.reshape(rows, v.columns)
}

impl TarNetwork {
    /// The network of a single system.
    ///
    /// Errors: a size that is zero or too large, or a number of channels not divisible by the number of heads.
    pub fn new(config: TarFlowConfig) -> Result<TarNetwork> {
        check(&config)?;
        let TarFlowConfig { tokens, token_size, channels: c, blocks, layers, .. } = config;
        let mut layout = Layout::default();
        let mut block = |b: usize| {
            let name = |part: &str| format!("blocks.{b}.{part}");
            let l = &mut layout;
            let order = 0..tokens as u32;
            Block {
                order: if b % 2 == 1 { order.rev().collect() } else { order.collect() },
                positions: Positions::OfTokens(l.tensor(name("pos_embed"), &[tokens, c])),
                into: l.linear(&name("proj_in"), token_size, c),
                conditions: None,
                layers: (0..layers).map(|k| layer(l, &name(&format!("attn_blocks.{k}")), &config, 3, false)).collect(),
                out: l.linear(&name("proj_out"), c, 2 * token_size),
            }
        };
        let blocks = (0..blocks).map(&mut block).collect();
        Ok(TarNetwork { config, layout, blocks, embedder: None })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &TarFlowConfig {
        &self.config
    }

    /// Random parameters for which the flow is the identity.
    pub fn initial<R: Real>(&self, seed: u64) -> Vec<R> {
        let special = |name: &str, _: &[usize]| match name {
            _ if name.contains("norm") => Some(Start::At(if name.ends_with("weight") { 1.0 } else { 0.0 })),
            _ if name.contains(".proj_out.") => Some(Start::At(0.0)),
            _ if name.ends_with(".pos_embed") => Some(Start::Within(0.02)),
            _ => transferable::start(name),
        };
        self.layout.initialise(&mut Stream::new(seed, StreamId::Initialise, 0, 0), special)
    }

    /// Matrices that every token passes through.
    pub(super) fn matrices(&self) -> impl Iterator<Item = Weight> + '_ {
        let of_layer = |layer: &Layer| {
            let [first, second] = layer.forward;
            let transition = layer.transition.iter().flat_map(|t| [t.into, t.out]);
            [layer.qkv, layer.out, first, second].into_iter().chain(transition.collect::<Vec<_>>())
        };
        self.blocks.iter().flat_map(move |block| {
            [block.into, block.out].into_iter().chain(block.layers.iter().flat_map(of_layer).collect::<Vec<_>>())
        })
    }

    fn causal(&self) -> Causal {
        Causal { tokens: self.config.tokens, heads: self.config.heads }
    }

    /// Records the conditioning of all blocks.
    pub(super) fn given<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>) -> Vec<Given<Var>> {
        let embedded = self.embedder.as_ref().map(|embedder| embedder.record(p, tape));
        let c = self.config.channels;
        let each = |block: &Block| {
            let positions = match block.positions {
                Positions::OfTokens(at) => tape.embed(p, &Embed { at, columns: c, types: block.order.clone() }, 1),
                Positions::Sines(scale) => transferable::positions(p, tape, scale, (self.config.tokens, c)),
            };
            let none = GivenLayer { attention: None, transition: None };
            let Some((conditions, embedded)) = block.conditions.as_ref().zip(embedded) else {
                return Given { positions, condition: None, layers: vec![none; block.layers.len()] };
            };
            let condition = conditions.record(p, tape, embedded, &block.order);
            let layer = |layer: &Layer| GivenLayer {
                attention: layer.adaptive.as_ref().map(|adaptive| adaptive.record(p, tape, condition)),
                transition: layer.transition.as_ref().map(|t| t.adaptive.record(p, tape, condition)),
            };
            Given { positions, condition: Some(condition), layers: block.layers.iter().map(layer).collect() }
        };
        self.blocks.iter().map(each).collect()
    }

    /// Records the pass from data to prior for `x[n][T D]` in the network's units on an empty tape.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, x: &[R]) -> Recorded {
        let given = self.given(p, tape);
        self.record_given(p, tape, x, &given)
    }

    /// As [`TarNetwork::record`], with the conditioning of the blocks given.
    pub(super) fn record_given<R: Scalar>(
        &self,
        p: &[R],
        tape: &mut Tape<R>,
        x: &[R],
        given: &[Given<Var>],
    ) -> Recorded {
        let TarFlowConfig { tokens, token_size: d, .. } = self.config;
        let samples = x.len() / self.dimension();
        let input = tape.input(samples * tokens, d);
        tape.value_mut(input).copy_from_slice(x);
        let shifted: Arc<[u32]> = std::iter::once(NO_ROW).chain(0..tokens as u32 - 1).collect();
        let (mut h, mut sum_a, mut after) = (input, None, Vec::new());
        for (block, given) in self.blocks.iter().zip(given) {
            let u = tape.rows(h, &block.order);
            let positions = for_samples(tape, given.positions, u.rows);
            let mut y = tape.residual_linear(p, block.into, positions, u);
            for (layer, of_layer) in block.layers.iter().zip(&given.layers) {
                y = self.layer(p, tape, layer, (given.condition, of_layer), y);
            }
            let [a, shift] = [0, d].map(|start| {
                let out = tape.linear(p, block.out.of_outputs(start, d), y);
                tape.rows(out, &shifted)
            });
            let v = tape.combine((1.0, u), (-1.0, shift), 0.0);
            let factor = tape.affine(-1.0, a, 0.0);
            let factor = tape.function(Function::Exp, factor);
            let v = tape.product(v, factor);
            h = tape.rows(v, &inverse(&block.order));
            after.push(h);
            let a = tape.sum_rows(a, tokens);
            sum_a = Some(sum_a.map_or(a, |sum| tape.add(sum, a)));
        }
        let log_det = tape.affine(-1.0, sum_a.expect("at least one block"), 0.0);
        Recorded { x: input, z: h, log_det, after }
    }

    /// Applies one layer to y.
    fn layer<R: Scalar>(
        &self,
        p: &[R],
        tape: &mut Tape<R>,
        layer: &Layer,
        (condition, given): (Option<Var>, &GivenLayer<Var>),
        mut y: Var,
    ) -> Var {
        let Some(modulation) = &given.attention else {
            if let Some(condition) = condition {
                let condition = for_samples(tape, condition, y.rows);
                y = tape.add(y, condition);
            }
            return self.attend(p, tape, layer, y);
        };
        let w = modulation.norm(tape, y);
        let w = self.attend(p, tape, layer, w);
        y = modulation.add(tape, y, w);
        let Some((transition, modulation)) = layer.transition.as_ref().zip(given.transition.as_ref()) else { return y };
        let w = modulation.norm(tape, y);
        let w = transition.record(p, tape, w);
        modulation.add(tape, y, w)
    }

    /// y += O attention(LN(y)), y += F₂ gelu(F₁ LN(y)).
    fn attend<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, layer: &Layer, mut y: Var) -> Var {
        let c = self.config.channels;
        let a = tape.layer_norm(p, layer.attention_norm, y);
        let qkv = match layer.qk_norms {
            None => tape.linear(p, layer.qkv, a),
            Some([of_q, of_k]) => {
                let [q, k, v] = [0, c, 2 * c].map(|start| tape.linear(p, layer.qkv.of_outputs(start, c), a));
                let (q, k) = (tape.layer_norm(p, of_q, q), tape.layer_norm(p, of_k, k));
                tape.side_by_side(&[q, k, v])
            }
        };
        let a = tape.causal_attention(self.causal(), qkv);
        y = tape.residual_linear(p, layer.out, y, a);
        let f = tape.layer_norm(p, layer.forward_norm, y);
        let f = tape.linear(p, layer.forward[0], f);
        let f = tape.gelu(f);
        tape.residual_linear(p, layer.forward[1], y, f)
    }
}

/// The inverse permutation.
fn inverse(order: &[u32]) -> Arc<[u32]> {
    let mut inverse = vec![0; order.len()];
    order.iter().enumerate().for_each(|(i, &place)| inverse[place as usize] = i as u32);
    inverse.into()
}

impl Trainable for TarNetwork {
    /// T D.
    fn dimension(&self) -> usize {
        self.config.tokens * self.config.token_size
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }
}
