//! ECNF: a continuous flow on an E(n)-equivariant graph network (Satorras et al., NeurIPS 2021; Klein et al., NeurIPS
//! 2023; ECNF++: Tan et al., ICML 2025).
//!
//! With r_ij = |x_i − x_j|², a_ij = r_ij of the input, and d_ij = (x_i − x_j)/(√(r_ij + 1e-8) + 1), every layer does
//!
//! ```text
//! m_ij = silu(W₂ silu(W₁ [h_i, h_j, r_ij, a_ij] + b₁) + b₂),   m_ij ← m_ij σ(w_a·m_ij + b_a)
//! x_i ← x_i + (range/L) Σ_{j≠i} d_ij tanh(w_c·silu(W_c m_ij + b_c))
//! h_i ← h_i + N₂ silu(N₁ [h_i, Σ_{j≠i} m_ij] + c₁) + c₂
//! ```
//!
//! and the velocity is x^L − x^0 without its mean over the atoms. The prior is at t = 0, the data at t = 1.

mod cuda;
mod divergence;
pub mod format;
#[cfg(test)]
mod tests;

pub use cuda::programs;

use super::continuous::{ContinuousConfig, ContinuousFlow};
use super::layout::{check_features, check_positive, check_sizes, Layout};
use super::layout::{LARGEST_SIZE, MOST_ATOMS, MOST_LAYERS};
use super::network::{features_and_time, Evaluator, Network};
use crate::error::Result;
use crate::nn::tape::{Function, Weight};
use crate::nn::{Real, Scalar, Tape, Var};
use serde::{Deserialize, Serialize};

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: EgnnConfig,
    pub flow: ContinuousConfig,
}

/// Sizes of the network, and the atoms' features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgnnConfig {
    /// For every atom, the indices of the ones in its multi-hot feature vector.
    pub features: Vec<Vec<usize>>,
    /// Length of the feature vectors; the time is appended.
    pub n_features: usize,
    pub n_layers: usize,
    pub n_hidden: usize,
    /// Farthest an atom moves over all layers, per neighbour, in the network's units.
    pub coordinate_range: f64,
}

/// The flow with networks of type `R`.
pub type EgnnFlow<R> = ContinuousFlow<Evaluator<Egnn, R>>;

#[derive(Clone, Debug)]
struct Layer {
    edge: [Weight; 2],
    node: [Weight; 2],
    coordinate: [Weight; 2],
    attention: Weight,
}

/// The vector field.
#[derive(Clone, Debug)]
pub struct Egnn {
    config: EgnnConfig,
    layout: Layout,
    embedding: Weight,
    layers: Vec<Layer>,
}

impl Egnn {
    /// Lays out the parameters. Errors: a size that is zero or too large, a range that is not positive, or a feature
    /// out of range.
    pub fn new(config: EgnnConfig) -> Result<Egnn> {
        let h = config.n_hidden;
        check_positive(&[("coordinate_range", config.coordinate_range)])?;
        check_sizes(&[
            ("atoms", config.features.len(), MOST_ATOMS),
            ("n_features", config.n_features, LARGEST_SIZE),
            ("n_layers", config.n_layers, MOST_LAYERS),
            ("n_hidden", h, LARGEST_SIZE),
        ])?;
        check_features(&config.features, config.n_features)?;
        let mut layout = Layout::default();
        let mut weight = |name: String, n_in: usize, n_out: usize, bias: bool| {
            let w = Weight::new(layout.tensor(format!("{name}.weight"), &[n_out, n_in]), n_in, n_out);
            match bias {
                true => w.with_bias(layout.tensor(format!("{name}.bias"), &[n_out])),
                false => w,
            }
        };
        let embedding = weight("egnn.embedding".into(), config.n_features + 1, h, true);
        let layer = |l: usize| {
            let mut part = |name: &str, n_in, n_out, bias| weight(format!("egnn.gcl_{l}.{name}"), n_in, n_out, bias);
            Layer {
                edge: [part("edge_mlp.0", 2 * h + 2, h, true), part("edge_mlp.2", h, h, true)],
                node: [part("node_mlp.0", 2 * h, h, true), part("node_mlp.2", h, h, true)],
                coordinate: [part("coord_mlp.0", h, h, true), part("coord_mlp.2", h, 1, false)],
                attention: part("att_mlp.0", h, 1, true),
            }
        };
        let layers = (0..config.n_layers).map(layer).collect();
        Ok(Egnn { config, layout, embedding, layers })
    }

    /// Sizes of the network, and the atoms' features.
    pub fn config(&self) -> &EgnnConfig {
        &self.config
    }

    fn n_atoms(&self) -> usize {
        self.config.features.len()
    }

    fn step(&self) -> f64 {
        self.config.coordinate_range / self.config.n_layers as f64
    }

    fn run<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> Recorded {
        let (n, hidden) = (self.n_atoms(), self.config.n_hidden);
        let input = tape.input(t.len() * n, 3);
        tape.value_mut(input).copy_from_slice(x);
        let features = features_and_time(tape, &self.config.features, self.config.n_features, t);
        let mut h = tape.linear(p, self.embedding, features);
        let mut x = input;
        let mut distance = None;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let d = tape.pairs(Some((-1.0, x)), Some((1.0, x)), n);
            let r = tape.squared_length(d);
            let a = *distance.get_or_insert(r);
            let length = tape.affine(1.0, r, 1e-8);
            let length = tape.function(Function::Root, length);
            let length = tape.affine(1.0, length, 1.0);
            let inverse = tape.function(Function::Reciprocal, length);
            let towards = tape.scale(d, inverse);

            // W₁ acts on the atoms once instead of on every pair
            let [first, second] = layer.edge;
            let of_destination = tape.linear(p, first.without_bias().of_inputs(0, hidden), h);
            let of_source = tape.linear(p, first.without_bias().of_inputs(hidden, hidden), h);
            let of_atoms = tape.pairs(Some((1.0, of_source)), Some((1.0, of_destination)), n);
            let of_distances = tape.linear_of(p, first.of_inputs(2 * hidden, 2), &[r, a]);
            let first = tape.add(of_atoms, of_distances);
            let m = tape.silu(first);
            let second = tape.linear(p, second, m);
            let message = tape.silu(second);
            let gate = tape.linear(p, layer.attention, message);
            let gate = tape.function(Function::Sigmoid, gate);
            let m = tape.scale(message, gate);

            let coordinate = tape.linear(p, layer.coordinate[0], m);
            let c = tape.silu(coordinate);
            let c = tape.linear(p, layer.coordinate[1], c);
            let c = tape.function(Function::Tanh, c);
            let shift = tape.scale(towards, c);
            let shift = tape.sum_pairs(shift, n, false);
            x = tape.combine((1.0, x), (self.step(), shift), 0.0);

            let m = tape.sum_pairs(m, n, false);
            let node = tape.linear_of(p, layer.node[0], &[h, m]);
            let update = tape.silu(node);
            let update = tape.linear(p, layer.node[1], update);
            h = tape.add(h, update);
            layers.push(RecordedLayer { d, r, inverse, first, second, message, gate, coordinate, c, node });
        }
        let v = tape.combine((1.0, x), (-1.0, input), 0.0);
        Recorded { x: input, v: tape.centred(v, n), layers }
    }
}

/// The network recorded on a tape.
struct Recorded {
    x: Var,
    v: Var,
    layers: Vec<RecordedLayer>,
}

/// Intermediate values of a layer from which its derivatives are formed. Per pair: x_i − x_j, r, 1/(√(r + 1e-8) + 1),
/// the outputs of W₁ and W₂, m before the gate and σ, the output of W_c, and c; per atom: the output of N₁.
struct RecordedLayer {
    d: Var,
    r: Var,
    inverse: Var,
    first: Var,
    second: Var,
    message: Var,
    gate: Var,
    coordinate: Var,
    c: Var,
    node: Var,
}

impl Network for Egnn {
    fn dimension(&self) -> usize {
        3 * self.n_atoms()
    }

    fn outputs(&self) -> usize {
        self.dimension()
    }

    fn is_equivariant(&self) -> bool {
        true
    }

    fn chunk(&self) -> usize {
        1
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let Recorded { x, v, .. } = self.run(p, tape, t, x);
        (x, v)
    }

    /// By tangents of whole layers; see the `divergence` module.
    fn divergence<R: Real>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R], both: &mut [f64]) {
        let d = self.dimension();
        for ((&t, x), both) in t.iter().zip(x.chunks_exact(d)).zip(both.chunks_exact_mut(d + 1)) {
            tape.clear();
            let recorded = self.run(p, tape, &[t], x);
            both.iter_mut().zip(tape.value(recorded.v)).for_each(|(to, v)| *to = v.to_f64());
            both[d] = self.trace(p, tape, &recorded);
        }
    }
}
