//! What the networks of continuous flows and energy-based models compute, in the networks' own units and f64 outside.

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

    /// Whether f(t, Rx + c) = R f(t, x) for every rotation and reflection R of space and every translation c, by
    /// construction of the network. A network without this costs three more directions a divergence and cannot be
    /// folded to one hand.
    fn is_equivariant(&self) -> bool {
        false
    }

    /// Rows that are best integrated together: few, since an exact divergence carries the tangents of each through the
    /// network.
    fn rows_at_once(&self) -> usize {
        4
    }

    /// Whole paths, where the field has a way of its own to carry them; else each step of the ODE is a call of the
    /// functions below.
    fn solver(&self) -> Option<&dyn PathSolver> {
        None
    }

    /// Where it runs, for messages.
    fn device(&self) -> String {
        Device::cpu().describe()
    }

    /// What went wrong in an evaluation, whose results are NaN then: a GPU may fail, which is no rejected proposal. It
    /// stays so.
    fn failure(&self) -> Result<()> {
        Ok(())
    }

    /// `f[n][dimension]`.
    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]);

    /// f and its divergence Σᵢ ∂fᵢ/∂xᵢ, exact, by forward mode.
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]);

    /// f and its derivative `df[n][dimension]` along `dx[n][dimension]`.
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]);
}

/// A field on a GPU, which makes all steps of the ODE in one launch.
pub trait PathSolver {
    /// Carries points `x[n][dimension]` of a continuous flow over the span by its solver, and adds ∫ div dt to
    /// `integral[n]`, unless that is empty; `probes[n][probes][dimension]` where the flow estimates the divergence.
    /// Reports as [`crate::ode::integrate`]. Errors: the GPU's.
    fn carry(
        &self,
        flow: &ContinuousConfig,
        span: [f64; 2],
        probes: &[f64],
        x: &mut [f64],
        integral: &mut [f64],
    ) -> Result<Vec<Report>>;
}

/// A time-dependent energy-based model E(t, x) = log p_t(x) + constant, with the sign of BoltzNCE: a log-density, no
/// energy of physics.
pub trait EnergyFunction: Send + Sync {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// Where it runs, for messages.
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
