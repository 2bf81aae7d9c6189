//! An energy-based model on geometric vector perceptrons: the embedding and layers of [`super::gvp_flow`], then a
//! perceptron on the mean over atoms (BoltzNCE's `GVP_EBM`; Aggarwal et al., arXiv 2507.00846). E(t, x) is a
//! log-density up to a constant, invariant under rotations, reflections, translations and permutations of like atoms.
//!
//! ```text
//! (s, V)_i = layers(t, x)
//! E = e₂ silu(e₁ mean_i s_i + ..) + ..
//! ```

mod cuda;
#[cfg(test)]
mod tests;

pub use cuda::programs;

use super::energy::{EnergyConfig, EnergyModel};
use super::gvp_flow::layout::start;
use super::gvp_flow::record::Trunk;
use super::gvp_flow::GvpConfig;
use super::layout::Layout;
use super::network::{Evaluator, Network};
use crate::error::Result;
use crate::io::model_file::ModelFile;
use crate::nn::tape::Weight;
use crate::nn::{Real, Scalar, Tape, Var};
use crate::rng::Stream;
use serde::{Deserialize, Serialize};

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: GvpConfig,
    pub energy: EnergyConfig,
}

/// The model with a network of type `R`.
pub type GvpEbm<R> = EnergyModel<Evaluator<GvpEnergy, R>>;

/// The network. Tensors have the same names as the flow's; the final perceptron is `energy.0` and `energy.2`.
#[derive(Clone, Debug)]
pub struct GvpEnergy {
    trunk: Trunk,
    layout: Layout,
    energy: [Weight; 2],
}

impl GvpEnergy {
    /// Lays out the parameters. Errors name the option or the atom.
    pub fn new(config: GvpConfig) -> Result<GvpEnergy> {
        let (f, mut layout) = (config.n_scalars, Layout::default());
        let trunk = Trunk::new(config, &mut layout)?;
        let mut weight = |name: &str, n_out: usize| {
            let at = layout.tensor(format!("{name}.weight"), &[n_out, f]);
            Weight::new(at, f, n_out).with_bias(layout.tensor(format!("{name}.bias"), &[n_out]))
        };
        let energy = [weight("energy.0", f), weight("energy.2", 1)];
        Ok(GvpEnergy { trunk, layout, energy })
    }

    /// Sizes of the network.
    pub fn config(&self) -> &GvpConfig {
        self.trunk.config()
    }

    /// Random weights; slopes and norms are one.
    pub fn initialise<R: Real>(&self, stream: &mut Stream) -> Vec<R> {
        self.layout.initialise(stream, start)
    }
}

impl<R: Real> GvpEbm<R> {
    /// Reads the model from a file. Errors name the tensor or the option.
    pub fn from_file(file: &ModelFile) -> Result<GvpEbm<R>> {
        let Config { network, energy } = file.config()?;
        EnergyModel::of_network(GvpEnergy::new(network.clone())?, *energy, file)
    }
}

impl Network for GvpEnergy {
    fn dimension(&self) -> usize {
        3 * self.trunk.n_atoms()
    }

    fn outputs(&self) -> usize {
        1
    }

    fn chunk(&self) -> usize {
        1
    }

    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        let (input, s, _) = self.trunk.record(p, tape, t, x);
        let n = self.trunk.n_atoms();
        let sum = tape.sum_rows(s, n);
        let mean = tape.affine(1.0 / n as f64, sum, 0.0);
        let e = tape.linear(p, self.energy[0], mean);
        let e = tape.silu(e);
        (input, tape.linear(p, self.energy[1], e))
    }
}
