//! **Target**: the reduced potential u(x) = β(U + pV) and its gradient, supplied by an engine or an analytic test
//! system.

use crate::error::{Error, Result};

/// Errors: a temperature (K) that is not positive and finite.
pub fn require_temperature(kelvin: f64) -> Result<()> {
    match kelvin > 0.0 && kelvin.is_finite() {
        true => Ok(()),
        false => Err(Error::invalid(format!("the temperature must be positive and finite, not {kelvin} K"))),
    }
}

/// An unnormalised density e^{−u(x)}.
pub trait Target {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    /// u of each row of `x[n][dimension]`, dimensionless. A non-finite u is allowed: the proposal is rejected and
    /// counted.
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()>;

    /// u and ∇ₓu (1/nm for molecules), `gradient[n][dimension]`.
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()>;

    /// Moves the environment (the part of the system that is not in x, such as a solvent) while x is held fixed, by a
    /// kernel reversible for e^{−u(x, ·)}, which includes its own Metropolis test if it needs one. Returns u(x, ·) for
    /// the new environment; later energies refer to it. Random numbers are a function of the attempt, which the target
    /// knows, and of `stage`, counted from 0 in each attempt. Needed by driven moves; the caller restores the
    /// environment after an attempt that is not accepted.
    ///
    /// Errors: a target without an environment.
    fn relax(&mut self, x: &[f64], stage: u32) -> Result<f64> {
        let _ = (x, stage);
        Err(Error::Unsupported("this target has no environment to relax, which a driven move requires".into()))
    }
}
