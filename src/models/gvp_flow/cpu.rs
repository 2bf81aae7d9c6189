//! The field on CPUs: configurations are distributed over threads, each evaluated by one.

use super::network::Workspace;
use super::GvpField;
use crate::models::field::VectorField;
use crate::nn::Real;
use rayon::prelude::*;

/// Calls `body(row, row of a, row of b)` for all n rows; a single row stays on this thread.
fn for_rows(n: usize, a: &mut [f64], b: &mut [f64], body: impl Fn(usize, &mut [f64], &mut [f64]) + Sync + Send) {
    match n {
        0 => {}
        1 => body(0, a, b),
        _ => {
            let (wide, other) = (a.len() / n, b.len() / n);
            let rows = a.par_chunks_mut(wide).zip(b.par_chunks_mut(other));
            rows.enumerate().for_each(|(row, (a, b))| body(row, a, b));
        }
    }
}

impl<R: Real> VectorField for GvpField<R> {
    fn dimension(&self) -> usize {
        3 * self.config.features.len()
    }

    fn is_equivariant(&self) -> bool {
        true
    }

    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        let d = self.dimension();
        assert!(x.len() == t.len() * d && f.len() == x.len(), "expected {} rows of {d} coordinates", t.len());
        let row = |(row, f): (usize, &mut [f64])| {
            self.spares.with(Workspace::default, |ws| self.network.evaluate(t[row], &x[row * d..][..d], ws, f))
        };
        match t.len() {
            0 => {}
            1 => row((0, f)),
            _ => f.par_chunks_mut(d).enumerate().for_each(row),
        }
    }

    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        let (d, n) = (self.dimension(), t.len());
        assert!(
            x.len() == n * d && f.len() == x.len() && divergence.len() == n,
            "expected {n} rows of {d} coordinates"
        );
        for_rows(n, f, divergence, |row, f, divergence| {
            let x = &x[row * d..][..d];
            divergence[0] =
                self.spares.with(Workspace::default, |ws| self.network.evaluate_divergence(t[row], x, ws, f));
        });
    }

    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        let (d, n) = (self.dimension(), t.len());
        let lengths = [x.len(), dx.len(), f.len(), df.len()];
        assert!(lengths.iter().all(|&length| length == n * d), "expected {n} rows of {d} coordinates");
        for_rows(n, f, df, |row, f, df| {
            let (x, dx) = (&x[row * d..][..d], &dx[row * d..][..d]);
            self.spares.with(Workspace::default, |ws| self.network.evaluate_jvp(t[row], x, dx, ws, f, df));
        });
    }
}
