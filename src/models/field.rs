//! Interfaces to the networks of continuous flows and energy-based models: inputs and outputs in the network's units,
//! in f64.

use super::continuous::ContinuousConfig;
use crate::device::Device;
use crate::error::Result;
use crate::ode::Report;

/// A time-dependent vector field f(t, x): the network of a continuous flow.
///
/// Batches are row-major, `x[n][dimension]` with `t[n]`; a row's result does not depend on the other rows. Non-finite
/// input gives non-finite output, never a panic.
pub trait VectorField: Send + Sync {
    /// Coordinates per configuration, 3 × atoms.
    fn dimension(&self) -> usize;

    /// Whether f(t, Rx + c) = R f(t, x) holds by construction of the network, for every rotation or reflection R of
    /// space and every translation c. A network without this costs three more directions per divergence, and its
    /// samples cannot be folded to one hand.
    fn is_equivariant(&self) -> bool {
        false
    }

    /// Best number of rows to integrate together: few, since an exact divergence carries each row's tangents through
    /// the network.
    fn rows_at_once(&self) -> usize {
        4
    }

    /// A solver that carries whole paths, where the field has one of its own; otherwise each step of the ODE calls the
    /// functions below.
    fn solver(&self) -> Option<&dyn PathSolver> {
        None
    }

    /// The device it runs on, for messages.
    fn device(&self) -> String {
        Device::cpu().describe()
    }

    /// The first failure of an evaluation (of a GPU, say), whose results are NaN; such NaN must not pass for rejected
    /// proposals. It persists.
    fn failure(&self) -> Result<()> {
        Ok(())
    }

    /// Writes f(t, x) to `f[n][dimension]`.
    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]);

    /// f and its divergence Σᵢ ∂fᵢ/∂xᵢ, exact, by forward mode.
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]);

    /// f and its Jacobian–vector product `df[n][dimension]` along `dx[n][dimension]`.
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]);
}

/// A field on a GPU that makes all steps of the ODE in one launch.
pub trait PathSolver {
    /// Carries points `x[n][dimension]` of a continuous flow over the span with the flow's solver, and adds ∫ div dt to
    /// `integral[n]`, unless that is empty; `probes[n][probes][dimension]` are given where the flow estimates the
    /// divergence. Reports as [`crate::ode::integrate`] does. Errors: the GPU's.
    fn carry(
        &self,
        flow: &ContinuousConfig,
        span: [f64; 2],
        probes: &[f64],
        x: &mut [f64],
        integral: &mut [f64],
    ) -> Result<Vec<Report>>;
}

/// A time-dependent energy-based model E(t, x) = log p_t(x) + constant, with BoltzNCE's sign: a log-density, not a
/// physical energy.
pub trait EnergyFunction: Send + Sync {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// The device it runs on, for messages.
    fn device(&self) -> String {
        Device::cpu().describe()
    }

    /// As [`VectorField::failure`].
    fn failure(&self) -> Result<()> {
        Ok(())
    }

    /// E of each row of `x[n][dimension]` at `t[n]`.
    fn energy(&self, t: &[f64], x: &[f64], energy: &mut [f64]);

    /// E and the score ∇ₓE, `score[n][dimension]`.
    fn energy_score(&self, t: &[f64], x: &[f64], energy: &mut [f64], score: &mut [f64]);
}
