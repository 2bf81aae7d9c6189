//! `modejump compile`

use super::common::{evaluations, load, PrecisionFlag};
use clap::Args;
use modejump::density::Status;
use modejump::device::ahead::{AheadOfTime, BATCHES};
use modejump::device::{self, Device, Driver};
use modejump::models::Model;
use modejump::rng::{Stream, StreamId};
use modejump::Result;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args)]
pub struct Compile {
    /// Model files
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Of the card: sm_75 (Turing), sm_80 (A100), sm_86, sm_87 (Orin), sm_89 (Ada), sm_90 (Hopper), sm_100, sm_103, sm_120 (Blackwell)
    #[arg(long)]
    architecture: String,
    #[command(flatten)]
    precision: PrecisionFlag,
}

impl Compile {
    pub fn run(self) -> Result<()> {
        for path in &self.models {
            let machine = Arc::new(AheadOfTime::new(&self.architecture)?);
            let driver: Arc<dyn Driver> = machine.clone();
            device::set_default(Device::with_driver(driver));
            let model = load(path, &self.precision)?;
            for rows in BATCHES {
                exercise(model.as_ref(), rows)?;
            }
            println!("{}: {} programs for {}", path.display(), machine.files().len(), self.architecture);
            machine.files().iter().for_each(|file| println!("  {}", file.display()));
        }
        Ok(())
    }
}

/// Asks the model for all that it has kernels for; what it says is of no interest.
fn exercise(model: &dyn Model, rows: usize) -> Result<()> {
    let streams = |row: usize| Stream::new(1, StreamId::Sample, 0, row as u32);
    let d = model.dimension();
    let (mut x, mut log_q, mut status) = (vec![0.0; rows * d], evaluations(rows), vec![Status::Inside; rows]);
    if let Some(energy) = model.energy() {
        let (t, mut u, mut score) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows * d]);
        energy.energy(&t, &x, &mut u);
        energy.energy_score(&t, &x, &mut u, &mut score);
        return energy.failure();
    }
    if let Some(field) = model.field() {
        let (t, mut f, mut of_divergence) = (vec![0.0; rows], vec![0.0; rows * d], vec![0.0; rows]);
        field.evaluate(&t, &x, &mut f);
        field.evaluate_divergence(&t, &x, &mut f, &mut of_divergence);
        field.evaluate_jvp(&t, &x, &vec![0.0; rows * d], &mut f, &mut vec![0.0; rows * d]);
        field.failure()?;
    }
    model.sample(&streams, &mut x, &mut log_q)?;
    model.sample_only(&streams, &mut x, &mut status)?;
    // a coupling flow's, and a TarFlow's
    if model.field().is_none() {
        model.log_density_gradient(&x, &mut log_q, &mut vec![0.0; rows * d])?;
    }
    model.log_density(&x, &mut log_q)
}
