//! `modejump adapt`: a generator that learns from the simulation it speeds up, in rounds. Walkers start at the
//! topology's configuration; hot replicas find other states.

use crate::rounds::RoundsArguments;
use clap::Args;
use modejump::Result;

#[derive(Args)]
pub struct Adapt {
    #[command(flatten)]
    rounds: RoundsArguments,
}

impl Adapt {
    pub fn run(self) -> Result<()> {
        self.rounds.run(None)
    }
}
