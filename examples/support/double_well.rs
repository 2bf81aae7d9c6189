//! The double well used by the examples.

use modejump::error::Result;
use modejump::target::Target;

/// u(x, y) = 10 (x² − 1)² + x/2 + 5 (y − x/2)²: two wells, a barrier of 10 kT, correlated coordinates.
pub struct DoubleWell;

impl Target for DoubleWell {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        for (x, u) in x.chunks_exact(2).zip(u) {
            *u = 10.0 * (x[0] * x[0] - 1.0).powi(2) + 0.5 * x[0] + 5.0 * (x[1] - 0.5 * x[0]).powi(2);
        }
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.reduced_potential(x, u)?;
        for (x, g) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)) {
            let slope = 10.0 * (x[1] - 0.5 * x[0]);
            g[0] = 40.0 * x[0] * (x[0] * x[0] - 1.0) + 0.5 - 0.5 * slope;
            g[1] = slope;
        }
        Ok(())
    }
}
