//! One network for all peptides (Tan et al. 2025, "Amortized Sampling with Transferable Normalizing Flows"): TarFlow
//! with conditions, and Prose.
//!
//! A token is an atom. Block b reads the atoms in an order of the peptide ([`AtomOrder`]). Each atom i has an embedding
//! e of its type, its residue's type, its residue's number and the number of residues, from which block b computes its
//! condition c:
//!
//! ```text
//! e = E₂ gelu(E₁ [type, residue type, S₁₀₀₀(residue), S₁₀₀₀(residues)])
//! c_i = C e_i,  or with a look ahead  c_i = C₂ gelu(C₁ [e_i, e_{i+1}])            (i and i + 1 in the block's order)
//! S_D(p)_{2k} = sin(p w_k),  S_D(p)_{2k+1} = cos(p w_k),  w_k = D^{−2k/C};      the block's positions are s S₁₀₀₀₀(i)
//! ```
//!
//! Without adaptive layer norms, y += c before each layer. With them, as in Prose, a layer is
//!
//! ```text
//! A(y) = LN(y) σ(Γ LN(c)) + B LN(c)                                          (LN(y) without weights)
//! w = A(y);  w += O attention(LN(w));  w += F₂ gelu(F₁ LN(w));  y += w σ(G c)
//! w = A′(y);  y += σ(G′ c) T (silu(w V) (w U))                                          (the transition)
//! ```
//!
//! Queries and keys may be normalised over all channels before they are split into heads.

use super::network::{check, for_samples, layer, norm, times, Block, Layer, Modulation, Positions, TarNetwork};
use super::TarFlowConfig;
use crate::coordinates::peptide::{AtomOrder, Encoding, Peptide};
use crate::coordinates::{Stereocentre, Topology};
use crate::error::{Error, Result};
use crate::models::layout::{check_sizes, Layout, Start, LARGEST_SIZE, MOST_ATOMS};
use crate::nn::tape::{Embed, Function, LayerNorm, Weight, NO_ROW};
use crate::nn::{Scalar, Tape, Var};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Configuration in the file of a transferable TarFlow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: PeptideConfig,
    /// Units of the network per nm: the inverse of the standard deviation by which the training data was divided.
    pub units_per_nm: f64,
    /// Whether the centroid of the training data had noise of standard deviation 1/√N in the network's units.
    pub noisy_centroid: bool,
    /// Stereocentres of the file's peptide: a molecule of another hand has zero density; if empty, chirality is not
    /// checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stereocentres: Vec<Stereocentre>,
}

/// The network, independent of the peptide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeptideConfig {
    pub channels: usize,
    pub blocks: usize,
    pub layers: usize,
    pub heads: usize,
    /// Hidden width of perceptrons and transitions, as a multiple of the channels.
    pub expansion: usize,
    /// Token orders of the blocks, repeated cyclically if there are more blocks.
    pub orders: Vec<AtomOrder>,
    /// Largest number of atoms that the network was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_atoms: Option<usize>,
    pub embedding: EmbeddingConfig,
    /// Whether an atom's condition includes the next atom's embedding.
    pub lookahead: bool,
    pub qk_norms: bool,
    /// Whether layer norms are adaptive; otherwise conditions are added.
    pub adaptive: bool,
    /// Whether a transition follows each perceptron; only with adaptive layer norms.
    pub transition: bool,
}

/// Sizes of the embedding of atoms and residues.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// Numbers of table rows.
    pub atom_types: usize,
    pub residue_types: usize,
    /// Columns of each of the four parts.
    pub part: usize,
    pub hidden: usize,
    /// Columns of e.
    pub width: usize,
    /// D of the sines of residues.
    pub base: f64,
}

/// D of the sines of positions.
const POSITION_BASE: f64 = 10_000.0;
/// D of the sines of residues in the published models.
pub const RESIDUE_BASE: f64 = 1000.0;

/// Tables and perceptron for e, and the peptide whose atoms are embedded.
#[derive(Clone, Debug)]
pub(super) struct Embedder {
    config: EmbeddingConfig,
    encoding: Encoding,
    atoms: usize,
    residues: usize,
    mlp: [Weight; 2],
}

impl Embedder {
    /// e of each atom, `[T][width]`.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>) -> Var {
        let EmbeddingConfig { part: columns, base, .. } = self.config;
        let [atoms, residues] =
            [(self.atoms, &self.encoding.atom_types), (self.residues, &self.encoding.residue_types)]
                .map(|(at, types)| tape.embed(p, &Embed { at, columns, types: types.as_slice().into() }, 1));
        let positions = self.encoding.residue_positions.iter();
        let places: Vec<f64> = positions.flat_map(|&k| [k, self.encoding.n_residues]).map(f64::from).collect();
        let places = sines(tape, &places, columns, base).reshape(self.encoding.atom_types.len(), 2 * columns);
        let hidden = tape.linear_of(p, self.mlp[0], &[atoms, residues, places]);
        let hidden = tape.gelu(hidden);
        tape.linear(p, self.mlp[1], hidden)
    }
}

/// C, or C₁ and C₂.
#[derive(Clone, Debug)]
pub(super) enum BlockConditions {
    Plain(Weight),
    Lookahead([Weight; 2]),
}

impl BlockConditions {
    /// c of each atom in the block's order, `[T][C]`.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, embedded: Var, order: &Arc<[u32]>) -> Var {
        let own = tape.rows(embedded, order);
        match self {
            BlockConditions::Plain(weight) => tape.linear(p, *weight, own),
            BlockConditions::Lookahead([first, second]) => {
                let next: Arc<[u32]> = order[1..].iter().copied().chain([NO_ROW]).collect();
                let next = tape.rows(embedded, &next);
                let hidden = tape.linear_of(p, *first, &[own, next]);
                let hidden = tape.gelu(hidden);
                tape.linear(p, *second, hidden)
            }
        }
    }
}

/// An adaptive layer norm (Γ, B) and the gate G that follows it.
#[derive(Clone, Debug)]
pub(super) struct Adaptive {
    norm: LayerNorm,
    gamma: Weight,
    beta: Weight,
    gate: Weight,
}

impl Adaptive {
    /// γ, β and the gate for each row of the condition.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, condition: Var) -> Modulation<Var> {
        let normed = tape.layer_norm(p, self.norm, condition);
        let [gamma, gate] = [(self.gamma, normed), (self.gate, condition)].map(|(weight, x)| {
            let x = tape.linear(p, weight, x);
            tape.function(Function::Sigmoid, x)
        });
        Modulation { gamma, beta: tape.linear(p, self.beta, normed), gate }
    }
}

impl Modulation<Var> {
    /// A(y).
    pub fn norm<R: Scalar>(&self, tape: &mut Tape<R>, y: Var) -> Var {
        let normed = tape.standardised(y);
        let scaled = times(tape, normed, self.gamma);
        let beta = for_samples(tape, self.beta, y.rows);
        tape.add(scaled, beta)
    }

    /// y + w σ(G c).
    pub fn add<R: Scalar>(&self, tape: &mut Tape<R>, y: Var, w: Var) -> Var {
        let w = times(tape, w, self.gate);
        tape.add(y, w)
    }
}

/// silu(w V) (w U) T.
#[derive(Clone, Debug)]
pub(super) struct Transition {
    pub adaptive: Adaptive,
    /// U and V side by side.
    pub into: Weight,
    pub out: Weight,
}

impl Transition {
    /// U and V.
    pub fn halves(&self) -> [Weight; 2] {
        let hidden = self.into.n_out / 2;
        [0, hidden].map(|start| self.into.of_outputs(start, hidden))
    }

    /// Records the transition of w.
    pub fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, w: Var) -> Var {
        let [values, gates] = self.halves().map(|weight| tape.linear(p, weight, w));
        let gates = tape.silu(gates);
        let hidden = tape.product(gates, values);
        tape.linear(p, self.out, hidden)
    }
}

/// S of each position, `[positions][columns]`.
fn sines<R: Scalar>(tape: &mut Tape<R>, places: &[f64], columns: usize, base: f64) -> Var {
    let var = tape.input(places.len(), columns);
    for (row, place) in tape.value_mut(var).chunks_exact_mut(columns).zip(places) {
        for (k, pair) in row.chunks_mut(2).enumerate() {
            let angle = place * (-2.0 * k as f64 * base.ln() / columns as f64).exp();
            pair.iter_mut().zip([angle.sin(), angle.cos()]).for_each(|(slot, value)| *slot = R::from_f64(value));
        }
    }
    var
}

/// s S(0), s S(1), …, with s at this offset.
pub(super) fn positions<R: Scalar>(
    p: &[R],
    tape: &mut Tape<R>,
    scale: usize,
    (tokens, channels): (usize, usize),
) -> Var {
    let places: Vec<f64> = (0..tokens).map(|i| i as f64).collect();
    let sines = sines(tape, &places, channels, POSITION_BASE);
    let scale = tape.embed(p, &Embed { at: scale, columns: 1, types: [0].into() }, 1);
    times(tape, sines, scale)
}

/// Initial values of the parameters that a single system's network does not have.
pub(super) fn start(name: &str) -> Option<Start> {
    const GATE: &str = ".to_adaln_zero_gamma.0.";
    match name {
        _ if name.ends_with(".pos_embed_scale") => Some(Start::At(0.01)),
        _ if name.contains(GATE) => Some(Start::At(if name.ends_with("weight") { 0.0 } else { -2.0 })),
        // unit variance
        _ if name.contains("_embed.weight") => Some(Start::Within(3f64.sqrt())),
        _ => None,
    }
}

impl PeptideConfig {
    /// Sizes for a peptide with this number of atoms.
    fn sizes(&self, tokens: usize) -> TarFlowConfig {
        let PeptideConfig { channels, blocks, layers, heads, expansion, .. } = *self;
        TarFlowConfig { tokens, token_size: 3, channels, blocks, layers, heads, expansion }
    }

    /// Token order of a block.
    fn order(&self, block: usize) -> AtomOrder {
        self.orders[block % self.orders.len()]
    }
}

impl TarNetwork {
    /// The network for a peptide.
    ///
    /// Errors: a size out of range; a residue or an atom that cannot be expressed (named); more atoms than the network
    /// was made for.
    pub fn of_peptide(config: &PeptideConfig, topology: &Topology) -> Result<TarNetwork> {
        let peptide = Peptide::of(topology)?;
        if config.orders.is_empty() {
            return Err(Error::invalid("`orders` is empty: at least one atom order is required"));
        }
        let orders = (0..config.blocks.min(config.orders.len())).map(|b| peptide.order(config.order(b)));
        TarNetwork::of_encoding(config, peptide.encoding.clone(), &orders.collect::<Vec<_>>())
    }

    /// As [`TarNetwork::of_peptide`], with the peptide's encoding and the blocks' token orders (repeated cyclically)
    /// given.
    ///
    /// Errors: a size out of range; lists of different lengths or no orders; more atoms than the network was made for.
    pub fn of_encoding(config: &PeptideConfig, encoding: Encoding, orders: &[Vec<u32>]) -> Result<TarNetwork> {
        let atoms = encoding.atom_types.len();
        let sizes = config.sizes(atoms);
        check(&sizes)?;
        check_sizes(&[("atoms", atoms, config.most_atoms.unwrap_or(MOST_ATOMS))])?;
        let EmbeddingConfig { atom_types, residue_types, part, hidden, width, base } = config.embedding;
        check_sizes(&[
            ("atom_types", atom_types, LARGEST_SIZE),
            ("residue_types", residue_types, LARGEST_SIZE),
            ("part", part, LARGEST_SIZE),
            ("hidden", hidden, LARGEST_SIZE),
            ("width", width, LARGEST_SIZE),
        ])?;
        let within = |types: &[u32], rows: usize| types.len() == atoms && types.iter().all(|&t| (t as usize) < rows);
        if !within(&encoding.atom_types, atom_types)
            || !within(&encoding.residue_types, residue_types)
            || encoding.residue_positions.len() != atoms
        {
            let message = format!(
                "the encoding does not match {atoms} atoms and tables of {atom_types} atom types and {residue_types} \
                 residue types"
            );
            return Err(Error::invalid(message));
        }
        if orders.is_empty() || !orders.iter().all(|order| is_permutation(order, atoms)) {
            return Err(Error::invalid(format!(
                "every atom order must be a permutation of the {atoms} atoms, and at least one is required"
            )));
        }
        if !(base > 1.0 && base.is_finite()) {
            return Err(Error::invalid(format!(
                "the base of the sinusoidal embedding must be finite and greater than 1, not {base}"
            )));
        }
        if config.transition && !config.adaptive {
            return Err(Error::invalid("a transition requires adaptive layer norms"));
        }
        let mut layout = Layout::default();
        let embedder = Embedder {
            config: config.embedding.clone(),
            encoding,
            atoms: layout.tensor("cond_embed.atom_embed.weight", &[atom_types, part]),
            residues: layout.tensor("cond_embed.residue_embed.weight", &[residue_types, part]),
            mlp: [
                layout.linear("cond_embed.mlp.0", 4 * part, hidden),
                layout.linear("cond_embed.mlp.2", hidden, width),
            ],
        };
        let blocks = (0..config.blocks).map(|b| {
            let order = orders[b % orders.len()].as_slice().into();
            block(&mut layout, config, &sizes, &format!("blocks.{b}"), order)
        });
        let blocks = blocks.collect();
        Ok(TarNetwork { config: sizes, layout, blocks, embedder: Some(embedder) })
    }
}

fn is_permutation(order: &[u32], n: usize) -> bool {
    let mut sorted = order.to_vec();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..n as u32)
}

/// Appends a block. The tensors are in the order of the reference's parameters, by which moving averages are numbered.
fn block(layout: &mut Layout, config: &PeptideConfig, sizes: &TarFlowConfig, name: &str, order: Arc<[u32]>) -> Block {
    let (c, width) = (config.channels, config.embedding.width);
    let part = |part: &str| format!("{name}.{part}");
    Block {
        order,
        positions: Positions::Sines(layout.tensor(part("pos_embed_scale"), &[1])),
        into: layout.linear(&part("proj_in"), sizes.token_size, c),
        conditions: Some(match config.lookahead {
            false => BlockConditions::Plain(layout.transposed_linear(&part("proj_cond"), width, c)),
            true => BlockConditions::Lookahead([
                layout.transposed_linear(&part("proj_cond.0"), 2 * width, c),
                layout.transposed_linear(&part("proj_cond.2"), c, c),
            ]),
        }),
        layers: (0..config.layers)
            .map(|k| {
                let name = part(&format!("attn_blocks.{k}"));
                match config.adaptive {
                    false => layer(layout, &name, sizes, 2, config.qk_norms),
                    true => adaptive_layer(layout, config, sizes, &name),
                }
            })
            .collect(),
        out: layout.linear(&part("proj_out"), c, 2 * sizes.token_size),
    }
}

fn adaptive_layer(layout: &mut Layout, config: &PeptideConfig, sizes: &TarFlowConfig, name: &str) -> Layer {
    let (c, hidden) = (config.channels, config.expansion * config.channels);
    let norms = |layout: &mut Layout, name: String| {
        let linear = |layout: &mut Layout, part: &str| layout.transposed_linear(&format!("{name}.{part}"), c, c);
        let norm = norm(layout, format!("{name}.adaln.norm_cond"), c);
        let gamma = linear(layout, "adaln.to_gamma.0");
        (norm, gamma, layout.transposed_matrix(&format!("{name}.adaln.to_beta"), c, c))
    };
    let gate = |layout: &mut Layout, name: String| {
        layout.transposed_linear(&format!("{name}.scale_output.to_adaln_zero_gamma.0"), c, c)
    };
    let around = |(norm, gamma, beta), gate| Adaptive { norm, gamma, beta, gate };
    let of_attention = format!("{name}.mha");
    let adaln = norms(layout, of_attention.clone());
    let inner = layer(layout, &format!("{of_attention}.mha"), sizes, 2, config.qk_norms);
    let adaptive = Some(around(adaln, gate(layout, of_attention)));
    let transition = config.transition.then(|| {
        let name = format!("{name}.transition");
        let adaln = norms(layout, name.clone());
        let into = layout.transposed_matrix(&format!("{name}.transition.swish_linear.0"), c, 2 * hidden);
        let out = layout.transposed_matrix(&format!("{name}.transition.linear_out"), hidden, c);
        Transition { adaptive: around(adaln, gate(layout, name)), into, out }
    });
    Layer { adaptive, transition, ..inner }
}
