//! `modejump compile`

use super::common::{load, PrecisionFlag};
use clap::Args;
use modejump::device::ahead::{exercise, AheadOfTime, BATCHES};
use modejump::device::{self, Device, Driver};
use modejump::Result;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Args)]
pub struct Compile {
    /// Model files
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Architecture of the GPU: sm_75 (Turing), sm_80 (A100), sm_86, sm_87 (Orin), sm_89 (Ada), sm_90 (Hopper), sm_100,
    /// sm_103, sm_110, sm_120, sm_121 (Blackwell)
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
