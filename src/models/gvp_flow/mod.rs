//! The vector field of BoltzNCE (Aggarwal et al., arXiv 2507.00846): a network of geometric vector perceptrons (Jing et
//! al., ICLR 2021) on the complete graph of a molecule's atoms, equivariant under rotations, reflections, translations
//! and permutations of like atoms.
//!
//! In units of the network, for atoms i, edges j → i and features h, with perceptrons GVP(s, V) as in `gvp.rs`:
//!
//! ```text
//! s_i = silu(We [h_i ; t] + be),  V_i = 0
//! per layer:
//!   d = n(x_j − x_i) + 1e-8,  u = (x_j − x_i)/d,  r_k = exp(−((d − μ_k)/w)²)
//!   (s, V)_i ← norm( (s, V)_i + Σ_j GVP_message([s_j ; r], [u ; V_j]) / message_norm )
//!   (s, V)_i ← (s, V)_i + GVP_update(s_i, V_i)
//!   x_i      ← x_i + coordinate_range · tanh(g) · Vu/n(Vu)      of GVP_position(s_i, V_i)
//!   (s, V)_i ← norm(s_i, V_i)
//! f_i = g · Vu/n(Vu)                                            of GVP_output(s_i, V_i)
//! ```

mod cpu;
pub(super) mod cuda;
mod edges;
mod format;
mod gvp;
pub(super) mod layout;
mod network;
mod norm;
mod position;
pub mod record;
mod tangent;
#[cfg(test)]
mod tests;

pub use cuda::programs;
pub use format::boltznce;

use crate::error::{Error, Result};
use crate::models::continuous::{ContinuousConfig, ContinuousFlow};
use crate::models::layout::{check_features, check_positive, check_sizes, LARGEST_SIZE, MOST_ATOMS, MOST_LAYERS};
use crate::nn::memory::Spares;
use crate::nn::Real;
use crate::rng::{Stream, StreamId};
use layout::Places;
use network::{Network, Workspace};
use serde::{Deserialize, Serialize};

/// Sizes of the network; lengths are in its own unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GvpConfig {
    /// For each atom, the indices of its set features.
    pub features: Vec<Vec<usize>>,
    pub n_features: usize,
    pub n_layers: usize,
    pub n_scalars: usize,
    pub n_vectors: usize,
    /// Centre of the last radial function; the first is at zero.
    pub rbf_max: f64,
    pub rbf_count: usize,
    /// Divisor of the sum of messages.
    pub message_norm: f64,
    /// Largest displacement of an atom in a layer.
    pub coordinate_range: f64,
}

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: GvpConfig,
    pub flow: ContinuousConfig,
}

/// The flow with a network of type `R`.
pub type GvpFlow<R> = ContinuousFlow<GvpField<R>>;

/// The network with parameters of type `R`.
pub struct GvpField<R: Real> {
    config: GvpConfig,
    places: Places,
    parameters: Vec<R>,
    network: Network<R>,
    /// Idle workspaces, so that a warm call does not allocate.
    spares: Spares<Workspace<R>>,
}

/// Upper limit of the network's lengths, in its unit, and of `message_norm`: far beyond any molecule, and squares stay
/// finite in f32.
const LONGEST: f64 = 1e6;

impl GvpConfig {
    /// Checks the sizes and features. Errors name the option or the atom.
    pub fn check(&self) -> Result<()> {
        check_sizes(&[
            ("n_features", self.n_features, LARGEST_SIZE),
            ("n_layers", self.n_layers, MOST_LAYERS),
            ("n_scalars", self.n_scalars, LARGEST_SIZE),
            ("n_vectors", self.n_vectors, LARGEST_SIZE),
            ("rbf_count", self.rbf_count, LARGEST_SIZE),
        ])?;
        if self.n_vectors == 1 {
            let reason =
                "n_vectors = 1 is not supported, because BoltzNCE then takes the length from a single vector: must be \
                 2 or more";
            return Err(Error::invalid(reason));
        }
        let lengths = [
            ("rbf_max", self.rbf_max),
            ("message_norm", self.message_norm),
            ("coordinate_range", self.coordinate_range),
        ];
        check_positive(&lengths)?;
        if let Some((name, value)) = lengths.iter().find(|(_, value)| *value > LONGEST) {
            return Err(Error::invalid(format!("{name} = {value} is too large: must be at most {LONGEST}")));
        }
        if self.features.len() < 2 || self.features.len() > MOST_ATOMS {
            return Err(Error::invalid(format!(
                "features are given for {} atoms: must be 2 to {MOST_ATOMS}",
                self.features.len()
            )));
        }
        check_features(&self.features, self.n_features)
    }
}

impl<R: Real> GvpField<R> {
    /// A field with these parameters, in the order of BoltzNCE's state dict. Errors name the option.
    pub fn new(config: GvpConfig, parameters: Vec<R>) -> Result<GvpField<R>> {
        config.check()?;
        let places = Places::new(&config);
        let (found, needed) = (parameters.len(), places.layout.n_parameters());
        if found != needed {
            return Err(Error::invalid(format!(
                "{found} parameters do not match a network of this size, which has {needed}"
            )));
        }
        let network = Network::new(&config, &places, &parameters);
        Ok(GvpField { config, places, parameters, network, spares: Spares::default() })
    }

    /// A field with random parameters drawn as by [`crate::models::layout::Layout::initialise`]; slopes and norms are
    /// one. Errors name the option.
    pub fn random(config: GvpConfig, seed: u64) -> Result<GvpField<R>> {
        config.check()?;
        let mut stream = Stream::new(seed, StreamId::Initialise, 0, 0);
        let parameters = Places::new(&config).layout.initialise(&mut stream, layout::start);
        GvpField::new(config, parameters)
    }

    /// Sizes of the network.
    pub fn config(&self) -> &GvpConfig {
        &self.config
    }

    /// Parameters in the order of the layout.
    pub fn parameters(&self) -> &[R] {
        &self.parameters
    }

    /// Modifies the parameters and rebuilds the network from them.
    pub fn update(&mut self, change: impl FnOnce(&mut [R])) {
        change(&mut self.parameters);
        self.network = Network::new(&self.config, &self.places, &self.parameters);
    }

    /// Floating-point operations of one evaluation, a multiply-add counting as two: those of the products, with the
    /// part that is linear in a source's features counted once per source, without padding, activations, norms and
    /// geometry.
    pub fn flops(&self) -> f64 {
        let c = self.counts();
        2.0 * c.layers * (c.atoms * (c.linear() + 2.0 * c.update()) + c.edges * (c.edge() + c.f * c.k))
    }

    /// As [`GvpField::flops`], for an evaluation with its divergence: tangents along the coordinates of all atoms but
    /// one in the layers between the first and the last; in these two, three tangents per edge.
    pub fn divergence_flops(&self) -> f64 {
        let c = self.counts();
        let directions = 3.0 * (c.atoms - 1.0);
        let between = (c.layers - 2.0).max(0.0);
        let messages = c.edges * c.edge() * (between * directions + 6.0);
        let nodes = c.atoms * c.update() * ((between + 1.0) * directions + 3.0);
        let linear = c.atoms * c.linear() * (between + 1.0) * directions;
        self.flops() + 2.0 * (messages + nodes + linear)
    }

    fn counts(&self) -> Counts {
        let n = self.config.features.len() as f64;
        Counts {
            atoms: n,
            edges: n * (n - 1.0),
            layers: self.config.n_layers as f64,
            f: self.config.n_scalars as f64,
            v: self.config.n_vectors as f64,
            k: self.config.rbf_count as f64,
        }
    }

    /// A copy with parameters of another precision. Errors: those of [`GvpField::new`].
    pub fn cast<S: Real>(&self) -> Result<GvpField<S>> {
        GvpField::new(self.config.clone(), self.parameters.iter().map(|p| S::from_f64(p.to_f64())).collect())
    }
}

/// Sizes for counting multiply-adds.
struct Counts {
    atoms: f64,
    edges: f64,
    layers: f64,
    f: f64,
    v: f64,
    k: f64,
}

impl Counts {
    /// Linear part of a message, per source.
    fn linear(&self) -> f64 {
        self.f * self.f + 3.0 * self.v * (2.0 * self.v + 1.0)
    }

    /// Rest of a message without the radial functions, per edge: direction, norms, scalars, gates, gated vectors.
    fn edge(&self) -> f64 {
        let h = self.v + 1.0;
        6.0 * h + self.f * h + self.f * self.v + 6.0 * self.v
    }

    /// Node update, per atom.
    fn update(&self) -> f64 {
        self.f * (self.f + 2.0 * self.v) + 3.0 * self.v * (2.0 * self.v + 2.0)
    }
}
