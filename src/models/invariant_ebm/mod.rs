//! A time-conditional energy-based model of one molecule in distances and signed volumes, trained like BoltzNCE's
//! (Aggarwal et al., NeurIPS 2025). E(t, x) is a log-density up to a constant, invariant under translations and
//! rotations.
//!
//! With f(x) all distances |x_i − x_j| and the triple products of bond vectors at every branch and torsion, noise σ(t),
//! and the whitening (U, m, λ, κ) of [`whitening`], which makes all features of order one at every noise level,
//!
//! ```text
//! y = Uᵀ(f(x) − m) / √(λ + σ² + κσ⁴)
//! E = MLP([y ; τ]) + Σ_k a_k(τ) y_k²,   τ_s = s²/(s² + σ²) for lengths s from stiff bonds to the whole molecule
//! ```
//!
//! The quadratic term alone is the normal density in y; the residual MLP ([`super::mlp_ebm`]) learns the non-Gaussian
//! part. A transformer over atoms (`graphormer_ebm`) suits many molecules; this model is for a single one of up to
//! about forty atoms, at a hundredth of the cost.

mod cuda;
#[cfg(test)]
mod tests;
pub mod whitening;

use super::continuous::Interpolant;
use super::energy::{EnergyConfig, EnergyModel};
use super::layout::{check_sizes, Layout, Start, LARGEST_SIZE, MOST_LAYERS};
use super::mlp_ebm::trunk::Trunk;
use super::network::{Evaluator, Network};
use crate::coordinates::chirality::Stereocentre;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::io::model_file::ModelFile;
use crate::nn::tape::{Invariants, Swap, Weight};
use crate::nn::{Real, Scalar, Tape, Var};
use crate::rng::Stream;
use serde::{Deserialize, Serialize};
use whitening::Whitening;

/// Lengths s of the time features, in the network's units (usually Å).
const LENGTHS: [f64; 8] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: InvariantConfig,
    pub energy: EnergyConfig,
}

/// Sizes of the network, and the invariants it reads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvariantConfig {
    pub atoms: usize,
    /// For each volume three vectors, each [from, to] between atoms counted from 0.
    pub volumes: Vec<[[usize; 2]; 3]>,
    /// Centres whose first two neighbours are alike: these are swapped where they give the centre the other hand. The
    /// energy then does not depend on the labels of a methyl group's hydrogens; nor does the density of an equivariant
    /// flow.
    pub prochiral: Vec<Stereocentre>,
    /// Number of features y: the combinations of invariants that vary most relative to their response to noise.
    pub inputs: usize,
    /// Interpolant that gives the noise σ(t) of training.
    pub interpolant: Interpolant,
    pub width: usize,
    /// Residual layers.
    pub layers: usize,
}

impl InvariantConfig {
    /// Number of distances and volumes.
    pub fn n_invariants(&self) -> usize {
        let pairs = self.atoms.saturating_mul(self.atoms.saturating_sub(1)) / 2;
        pairs.saturating_add(self.volumes.len())
    }
}

/// The model with a network of type `R`.
pub type InvariantEbm<R> = EnergyModel<Evaluator<InvariantNetwork, R>>;

/// The network.
#[derive(Clone, Debug)]
pub struct InvariantNetwork {
    config: InvariantConfig,
    layout: Layout,
    invariants: Invariants,
    whitening: Weight,
    /// Offset of λ and κ in the parameters.
    variance: usize,
    trunk: Trunk,
    gate: Weight,
}

/// Triple products of a molecule: three bonds at each branch, and the three bonds of each torsion.
pub fn volumes(topology: &Topology) -> Vec<[[usize; 2]; 3]> {
    let neighbours = topology.neighbours();
    let mut volumes = Vec::new();
    for (centre, around) in neighbours.iter().enumerate() {
        for (k, &c) in around.iter().enumerate() {
            for (j, &b) in around[..k].iter().enumerate() {
                volumes.extend(around[..j].iter().map(|&a| [[centre, a], [centre, b], [centre, c]]));
            }
        }
    }
    for &[j, k] in &topology.bonds {
        for &i in neighbours[j].iter().filter(|&&i| i != k) {
            let ends = neighbours[k].iter().filter(|&&l| l != j && l != i);
            volumes.extend(ends.map(|&l| [[j, i], [j, k], [k, l]]));
        }
    }
    volumes
}

impl InvariantNetwork {
    /// Lays out the parameters. Errors: a size that is zero or too large, or an atom out of range.
    pub fn new(config: InvariantConfig) -> Result<InvariantNetwork> {
        let InvariantConfig { atoms, inputs, width, layers, .. } = config;
        let numbers = config.n_invariants();
        check_sizes(&[
            ("atoms² / 2 + volumes", numbers, LARGEST_SIZE),
            ("inputs", inputs, numbers),
            ("width", width, LARGEST_SIZE),
            ("layers", layers, MOST_LAYERS),
        ])?;
        let three = |c: &Stereocentre| c.neighbours.map(|n| [c.centre, n]);
        let of_centres: Vec<[[usize; 2]; 3]> = config.prochiral.iter().map(three).collect();
        let ends = config.volumes.iter().chain(&of_centres).flatten();
        if let Some([i, j]) = ends.into_iter().find(|[i, j]| *i >= atoms || *j >= atoms || i == j) {
            return Err(Error::invalid(format!(
                "`volumes` or `prochiral` has a vector from atom {i} to atom {j}: must be two different atoms of \
                 {atoms}, counted from 0"
            )));
        }
        let distances = (0..atoms).flat_map(|i| (i + 1..atoms).map(move |j| [i, j])).collect();
        let swap = |c: &Stereocentre| Swap {
            alike: [c.neighbours[0], c.neighbours[1]],
            volume: three(c),
            positive: c.positive,
        };
        let swaps = config.prochiral.iter().map(swap).collect();
        let invariants = Invariants { atoms, distances, volumes: config.volumes.clone().into(), swaps };
        let mut layout = Layout::default();
        let whitening = layout.linear("whitening", numbers, inputs).frozen();
        let variance = layout.tensor("whitening.variance", &[2, inputs]);
        let trunk = Trunk::new(&mut layout, inputs + LENGTHS.len(), width, layers);
        let gate = layout.linear("gate", LENGTHS.len(), inputs);
        Ok(InvariantNetwork { config, layout, invariants, whitening, variance, trunk, gate })
    }

    /// Sizes of the network, and the invariants it reads.
    pub fn config(&self) -> &InvariantConfig {
        &self.config
    }

    /// The invariants f(x).
    pub fn invariants(&self) -> &Invariants {
        &self.invariants
    }

    /// Parameters with the whitening of frames, and random weights.
    pub fn initialise<R: Real>(&self, whitening: &Whitening, stream: &mut Stream) -> Vec<R> {
        let mut parameters: Vec<R> = self.layout.initialise(stream, |name, shape| match name {
            _ if shape.is_empty() => Some(Start::At(1.0)),
            "gate.weight" => Some(Start::At(0.0)),
            "gate.bias" => Some(Start::At(-0.1)),
            _ => None,
        });
        let parts = [&whitening.weight, &whitening.bias, &whitening.variance];
        let values = parts.into_iter().flatten();
        parameters.iter_mut().zip(values).for_each(|(p, &v)| *p = R::from_f64(v));
        parameters
    }

    fn noise(&self, t: f64) -> f64 {
        self.config.interpolant.schedule(t).sigma
    }

    /// 1/√(λ + σ² + κσ⁴) for each row and input.
    fn scale<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64]) -> Var {
        let inputs = self.config.inputs;
        let variance: Vec<f64> = p[self.variance..self.variance + 2 * inputs].iter().map(|v| v.to_f64()).collect();
        let (at_rest, strong) = variance.split_at(inputs);
        let scale = tape.input(t.len(), inputs);
        for (row, &t) in tape.value_mut(scale).chunks_exact_mut(inputs).zip(t) {
            let noise = self.noise(t).powi(2);
            let variances = at_rest.iter().zip(strong).map(|(v, k)| v + noise + k * noise * noise);
            row.iter_mut().zip(variances).for_each(|(s, v)| *s = R::from_f64(1.0 / v.sqrt()));
        }
        scale
    }

    /// Time features τ, `[n][8]`.
    fn time<R: Scalar>(&self, tape: &mut Tape<R>, t: &[f64]) -> Var {
        let time = tape.input(t.len(), LENGTHS.len());
        for (row, &t) in tape.value_mut(time).chunks_exact_mut(LENGTHS.len()).zip(t) {
            let noise = self.noise(t);
            row.iter_mut().zip(LENGTHS).for_each(|(f, s)| *f = R::from_f64(s * s / (s * s + noise * noise)));
        }
        time
    }
}

impl<R: Real> InvariantEbm<R> {
    /// Reads the model from a file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<InvariantEbm<R>> {
        let Config { network, energy } = file.config()?;
        EnergyModel::of_network(InvariantNetwork::new(network.clone())?, *energy, file)
    }
}

impl Network for InvariantNetwork {
    fn dimension(&self) -> usize {
        3 * self.config.atoms
    }

    fn outputs(&self) -> usize {
        1
    }

    fn chunk(&self) -> usize {
        64
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let input = tape.input(t.len(), self.dimension());
        tape.value_mut(input).copy_from_slice(x);
        let (scale, time) = (self.scale(p, tape, t), self.time(tape, t));
        let f = tape.invariants(&self.invariants, input);
        let y = tape.linear(p, self.whitening, f);
        let y = tape.product(y, scale);

        let squares = tape.product(y, y);
        let gate = tape.linear(p, self.gate, time);
        let quadratic = tape.product(gate, squares);
        let quadratic = tape.mean_columns(quadratic);
        let rest = self.trunk.record(p, tape, &[y, time]);
        (input, tape.combine((self.config.inputs as f64, quadratic), (1.0, rest), 0.0))
    }
}
