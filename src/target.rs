//! **Target**: the reduced potential u(x) = β(U + pV) and its gradient, supplied by an engine or an analytic test system.

use crate::error::Result;

/// An unnormalised density e^{−u(x)}.
pub trait Target {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// u of each row of `x[n][dimension]`, dimensionless. A non-finite u is allowed: the proposal is rejected and counted.
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()>;

    /// u and ∇ₓu (1/nm for molecules), `gradient[n][dimension]`.
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()>;
}
