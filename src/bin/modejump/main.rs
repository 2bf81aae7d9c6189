//! `modejump`: trains, converts, samples and reweights generators, and runs molecular dynamics with jumps.

mod common;
mod log_density;
mod sample;
mod train;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "modejump", version, about = "Generator moves for molecular dynamics", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a generator on frames, engine energies, or both
    Train(train::Train),
    /// Draw configurations with their log-densities
    Sample(sample::Sample),
    /// Evaluate log q of configurations
    LogDensity(log_density::LogDensity),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Train(command) => command.run(),
        Command::Sample(command) => command.run(),
        Command::LogDensity(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modejump: {error}");
            ExitCode::FAILURE
        }
    }
}
