//! Energies and their scores, as fields with a single output.

use super::{Batch, FieldKernel, FieldOnDevice};
use crate::device::Driver;
use crate::error::Result;
use crate::models::field::{EnergyFunction, VectorField};
use crate::models::network::{Evaluator, Network};
use crate::nn::Real;
use std::sync::Arc;

/// An energy that has kernels.
pub trait EnergyKernel: Network {
    /// The kernels, with the network's parameters on a GPU: with no directions that of values, with those of a share of
    /// its score that of values and scores. Errors: the driver's.
    fn kernel<R: Real>(&self, parameters: &[R], driver: &Arc<dyn Driver>) -> Result<FieldKernel>;
}

impl<N: EnergyKernel, R: Real> Evaluator<N, R> {
    /// Copies the network to a GPU and compiles its kernels. Errors: the driver's.
    pub fn on_device(&self, driver: &Arc<dyn Driver>) -> Result<EnergyOnDevice<R>> {
        FieldOnDevice::new(driver, self.network.kernel(self.parameters(), driver)?).map(EnergyOnDevice)
    }
}

/// An energy evaluated on a GPU.
pub struct EnergyOnDevice<R: Real>(FieldOnDevice<R>);

impl<R: Real> EnergyOnDevice<R> {
    fn values(&self, t: &[f64], x: &[f64], energy: &mut [f64]) -> Result<()> {
        let mut work = self.0.begin(t, x)?;
        self.0.launch(&mut work, 0, t.len(), 1, Batch::default())?;
        work.f.read(energy)
    }

    fn scores(&self, t: &[f64], x: &[f64], energy: &mut [f64], score: &mut [f64]) -> Result<()> {
        let mut work = self.0.begin(t, x)?;
        work.df.reserve(score.len())?;
        let batch = Batch { df: work.df.address(), ..Batch::default() };
        let FieldKernel { directions, shares, .. } = self.0.kernel;
        self.0.launch(&mut work, directions, t.len(), shares, batch)?;
        work.driver.download(&mut [work.f.copy_to(energy), work.df.copy_to(score)])
    }
}

impl<R: Real> EnergyFunction for EnergyOnDevice<R> {
    fn dimension(&self) -> usize {
        VectorField::dimension(&self.0)
    }

    fn device(&self) -> String {
        VectorField::device(&self.0)
    }

    fn failure(&self) -> Result<()> {
        VectorField::failure(&self.0)
    }

    fn energy(&self, t: &[f64], x: &[f64], energy: &mut [f64]) {
        let launch = self.0.rows_at_once();
        let d = self.0.dimension() * launch;
        for ((t, x), energy) in t.chunks(launch).zip(x.chunks(d)).zip(energy.chunks_mut(launch)) {
            let result = self.values(t, x, energy);
            self.0.note(result, energy);
        }
    }

    fn energy_score(&self, t: &[f64], x: &[f64], energy: &mut [f64], score: &mut [f64]) {
        let launch = self.0.rows_at_once();
        let d = self.0.dimension() * launch;
        let rows = t.chunks(launch).zip(x.chunks(d));
        for ((t, x), (energy, score)) in rows.zip(energy.chunks_mut(launch).zip(score.chunks_mut(d))) {
            let result = self.scores(t, x, energy, score);
            if result.is_err() {
                score.fill(f64::NAN);
            }
            self.0.note(result, energy);
        }
    }
}
