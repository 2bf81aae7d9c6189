//! BoltzNCE's energy-based model: a transformer over atoms whose attention is biased by distances (Aggarwal et al.,
//! NeurIPS 2025; Graphormer-3D: Shi et al. 2022). E(t, x) is a log-density up to a constant.
//!
//! With r_ij = |x_j − x_i| and a pair of numbers (a, b) for every pair of atom types,
//!
//! ```text
//! G_ij = Gaussians(a r_ij + b),   B_ij = W₂ silu(W₁ G_ij + b₁) + b₂   (one number per head)
//! X_i = type_i + W_e Σ_j G_ij + time(t)
//! every layer:  X += O softmax(q k/√c + B) v,  q, k, v of LN(X);   X += F₂ silu(F₁ LN(X) + f₁) + f₂
//! E = Σ_i e₂ silu(e₁ LN(X_i) + ..) + ..
//! ```

mod cuda;
pub mod format;
#[cfg(test)]
mod tests;

pub use cuda::programs;

use super::energy::{EnergyConfig, EnergyModel};
use super::layout::{check_sizes, Layout, Start, LARGEST_SIZE, MOST_ATOMS, MOST_LAYERS};
use super::network::{Evaluator, Network};
use crate::error::{Error, Result};
use crate::nn::tape::{Attention, Embed, Function, Gaussians, LayerNorm, TypedAffine, Weight};
use crate::nn::{Real, Scalar, Tape, Var};
use crate::rng::{Stream, StreamId};
use serde::{Deserialize, Serialize};

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: GraphormerConfig,
    pub energy: EnergyConfig,
}

/// Version of the network in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    /// As trained by BoltzNCE: every component of x_j − x_i is shifted by 1e-5, so r_ij is neither quite symmetric nor
    /// quite rotation-invariant; an atom is its own neighbour; the time passes through a single hidden unit.
    Boltznce,
    /// Exactly invariant distances, no self-neighbours in the sum of Gaussians, unordered type pairs, a wide time
    /// network.
    Clean,
}

/// Sizes of the network, and the atoms' types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphormerConfig {
    pub version: Version,
    /// Type of every atom, from 0.
    pub types: Vec<usize>,
    pub n_types: usize,
    pub n_layers: usize,
    /// How many times the layers are repeated with the same weights.
    #[serde(default = "one")]
    pub blocks: usize,
    /// Width D of an atom's feature row.
    pub width: usize,
    pub feed_forward: usize,
    pub heads: usize,
    /// Number of Gaussians.
    pub kernels: usize,
}

fn one() -> usize {
    1
}

/// The model with a network of type `R`.
pub type GraphormerEbm<R> = EnergyModel<Evaluator<Graphormer, R>>;

#[derive(Clone, Debug)]
struct Layer {
    attention_norm: LayerNorm,
    qkv: Weight,
    out: Weight,
    forward_norm: LayerNorm,
    forward: [Weight; 2],
}

/// The network.
#[derive(Clone, Debug)]
pub struct Graphormer {
    config: GraphormerConfig,
    layout: Layout,
    atoms: Embed,
    time: [Weight; 2],
    distance: TypedAffine,
    gaussians: Gaussians,
    bias: [Weight; 2],
    edge: Weight,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    energy: [Weight; 2],
}

impl Graphormer {
    /// Lays out the parameters. Errors: a size that is zero or too large, a type out of range, or a width not divisible
    /// by the number of heads.
    pub fn new(config: GraphormerConfig) -> Result<Graphormer> {
        let GraphormerConfig { version, n_types, width: d, feed_forward, heads, kernels, n_layers, blocks, .. } =
            config;
        check_sizes(&[
            ("atoms", config.types.len(), MOST_ATOMS),
            ("n_types", n_types, LARGEST_SIZE),
            ("n_layers", n_layers, MOST_LAYERS),
            ("blocks", blocks, MOST_LAYERS),
            ("width", d, LARGEST_SIZE),
            ("feed_forward", feed_forward, LARGEST_SIZE),
            ("heads", heads, LARGEST_SIZE),
            ("kernels", kernels, LARGEST_SIZE),
        ])?;
        if !d.is_multiple_of(heads) {
            return Err(Error::invalid(format!("{d} columns cannot be divided evenly among {heads} heads")));
        }
        if let Some(atom) = config.types.iter().position(|&t| t >= n_types) {
            return Err(Error::invalid(format!(
                "atom {}: type {} is out of range for {n_types} types",
                atom + 1,
                config.types[atom]
            )));
        }
        // BoltzNCE's tables keep their first row and column for padding
        let (rows, n_pairs, hidden) = match version {
            Version::Boltznce => (n_types + 1, (n_types + 1) * (n_types + 1), 1),
            Version::Clean => (n_types, n_types * (n_types + 1) / 2, d),
        };
        let mut layout = Layout::default();
        let p = |name: &str| format!("graphormer.{name}");
        let types = config.types.iter().map(|&t| (t + rows - n_types) as u32).collect();
        let atoms = Embed { at: layout.tensor(p("atom_encoder.weight"), &[rows, d]), columns: d, types };
        fn norm(layout: &mut Layout, name: String, d: usize) -> LayerNorm {
            let weight = layout.tensor(format!("{name}.weight"), &[d]);
            LayerNorm { weight, bias: layout.tensor(format!("{name}.bias"), &[d]) }
        }
        let l = &mut layout;
        let time = [l.linear(&p("time_encoder.layer1"), 1, hidden), l.linear(&p("time_encoder.layer2"), hidden, d)];
        let gaussians = Gaussians {
            means: l.tensor(p("gbf.means.weight"), &[1, kernels]),
            widths: l.tensor(p("gbf.stds.weight"), &[1, kernels]),
            count: kernels,
        };
        let distance = TypedAffine {
            factor: l.tensor(p("gbf.mul.weight"), &[n_pairs, 1]),
            shift: l.tensor(p("gbf.bias.weight"), &[n_pairs, 1]),
            types: pair_types(&config),
        };
        let bias =
            [l.linear(&p("bias_proj.layer1"), kernels, kernels), l.linear(&p("bias_proj.layer2"), kernels, heads)];
        let edge = l.linear(&p("edge_proj"), kernels, d);
        let mut layer = |k: usize| {
            let name = |part: &str| p(&format!("layers.{k}.{part}"));
            Layer {
                qkv: l.transposed_linear(&name("self_attn.in_proj"), d, 3 * d),
                out: l.transposed_linear(&name("self_attn.out_proj"), d, d),
                attention_norm: norm(l, name("self_attn_layer_norm"), d),
                forward: [
                    l.transposed_linear(&name("fc1"), d, feed_forward),
                    l.transposed_linear(&name("fc2"), feed_forward, d),
                ],
                forward_norm: norm(l, name("final_layer_norm"), d),
            }
        };
        let layers: Vec<Layer> = (0..n_layers).map(&mut layer).collect();
        for layer in &layers {
            heads_innermost(l, layer, d, heads);
        }
        let final_norm = norm(l, p("final_ln"), d);
        let energy = [l.linear(&p("energy_proj.layer1"), d, d), l.linear(&p("energy_proj.layer2"), d, 1)];
        Ok(Graphormer { config, layout, atoms, time, distance, gaussians, bias, edge, layers, final_norm, energy })
    }

    /// Sizes of the network, and the atoms' types.
    pub fn config(&self) -> &GraphormerConfig {
        &self.config
    }

    /// Random parameters: Gaussians evenly spaced from 0 to `reach` in the network's units; layer norms and distance
    /// factors are one.
    pub fn initial<R: Real>(&self, reach: f64, seed: u64) -> Vec<R> {
        let special = |name: &str, _: &[usize]| match name {
            "graphormer.gbf.mul.weight" => Some(Start::At(1.0)),
            "graphormer.gbf.bias.weight" => Some(Start::At(0.0)),
            _ if name.contains("_norm.") || name.contains("final_ln.") => {
                Some(Start::At(if name.ends_with("weight") { 1.0 } else { 0.0 }))
            }
            _ => None,
        };
        let mut parameters = self.layout.initialise(&mut Stream::new(seed, StreamId::Initialise, 0, 0), special);
        let Gaussians { means, widths, count } = self.gaussians;
        let step = reach / count as f64;
        for k in 0..count {
            parameters[means + k] = R::from_f64(step * k as f64);
            parameters[widths + k] = R::from_f64(step);
        }
        parameters
    }

    fn n_atoms(&self) -> usize {
        self.config.types.len()
    }

    /// r_ij, `[n × atoms × atoms][1]`.
    fn distances<R: Scalar>(&self, tape: &mut Tape<R>, x: Var) -> Var {
        let d = tape.pairs(Some((1.0, x)), Some((-1.0, x)), self.n_atoms());
        let squared = match self.config.version {
            Version::Boltznce => {
                let d = tape.affine(1.0, d, 1e-5);
                tape.squared_length(d)
            }
            // the floor keeps the root differentiable where i = j
            Version::Clean => {
                let squared = tape.squared_length(d);
                tape.affine(1.0, squared, 1e-10)
            }
        };
        tape.function(Function::Root, squared)
    }
}

/// The file stores q, k, v and the output of attention head by head; the tape's operation expects heads innermost.
fn heads_innermost(layout: &mut Layout, layer: &Layer, d: usize, heads: usize) {
    let width = d / heads;
    let column = move |k: usize| k / d * d + k % heads * width + k % d / heads;
    layout.reorder(layer.qkv.at, move |i| column(i % (3 * d)) * d + i / (3 * d));
    layout.reorder(layer.qkv.at + 3 * d * d, column);
    layout.reorder(layer.out.at, move |i| i % d * d + column(i / d));
}

/// Type of every ordered pair of atoms, `[i][j]`.
fn pair_types(config: &GraphormerConfig) -> std::sync::Arc<[u32]> {
    let pair = |a: usize, b: usize| match config.version {
        Version::Boltznce => (a + 1) * (config.n_types + 1) + b + 1,
        Version::Clean => a.max(b) * (a.max(b) + 1) / 2 + a.min(b),
    };
    let types = &config.types;
    types.iter().flat_map(|&a| types.iter().map(move |&b| pair(a, b) as u32)).collect()
}

impl Network for Graphormer {
    fn dimension(&self) -> usize {
        3 * self.n_atoms()
    }

    fn outputs(&self) -> usize {
        1
    }

    fn chunk(&self) -> usize {
        16
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let (n, samples) = (self.n_atoms(), t.len());
        let input = tape.input(samples * n, 3);
        tape.value_mut(input).copy_from_slice(x);
        let time = tape.input(samples, 1);
        tape.value_mut(time).iter_mut().zip(t).for_each(|(slot, &t)| *slot = R::from_f64(t));

        let r = self.distances(tape, input);
        let y = tape.typed_affine(p, &self.distance, r);
        let g = tape.gaussians(p, self.gaussians, y);
        let bias = tape.linear(p, self.bias[0], g);
        let bias = tape.silu(bias);
        let bias = tape.linear(p, self.bias[1], bias);

        let neighbours = tape.sum_pairs(g, n, self.config.version == Version::Boltznce);
        let edges = tape.linear(p, self.edge, neighbours);
        let time = tape.linear(p, self.time[0], time);
        let time = tape.silu(time);
        let time = tape.linear(p, self.time[1], time);
        let time = tape.repeat(time, n);
        let atoms = tape.embed(p, &self.atoms, samples);
        let atoms = tape.add(atoms, edges);
        let mut rows = tape.add(atoms, time);

        let attention = Attention { atoms: n, heads: self.config.heads };
        for layer in (0..self.config.blocks).flat_map(|_| &self.layers) {
            let a = tape.layer_norm(p, layer.attention_norm, rows);
            let qkv = tape.linear(p, layer.qkv, a);
            let a = tape.attention(attention, qkv, bias);
            rows = tape.residual_linear(p, layer.out, rows, a);
            let f = tape.layer_norm(p, layer.forward_norm, rows);
            let f = tape.linear(p, layer.forward[0], f);
            let f = tape.silu(f);
            rows = tape.residual_linear(p, layer.forward[1], rows, f);
        }
        let e = tape.layer_norm(p, self.final_norm, rows);
        let e = tape.linear(p, self.energy[0], e);
        let e = tape.silu(e);
        let e = tape.linear(p, self.energy[1], e);
        (input, tape.sum_rows(e, n))
    }
}
