//! `modejump explore`: from a few structures to a generator, by walks in its latent space between trainings.

use crate::rounds::RoundsArguments;
use clap::Args;
use modejump::Result;
use std::path::PathBuf;

#[derive(Args)]
pub struct Explore {
    #[command(flatten)]
    rounds: RoundsArguments,
    /// Structures to start from, one or more files of frames [default: the structure of --topology]
    #[arg(long, num_args = 1..)]
    structures: Vec<PathBuf>,
}

impl Explore {
    pub fn run(self) -> Result<()> {
        self.rounds.run(Some(self.structures))
    }
}
