//! `modejump smc`: annealed sequential Monte Carlo from a generator to an engine's energies.

#[cfg(feature = "openmm")]
mod report;
#[cfg(feature = "openmm")]
mod run;

use super::common::{DecodingFlags, PlatformFlag, PrecisionFlag};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Moves {
    /// Langevin steps without a Metropolis test: biased by the step size
    Unadjusted,
    /// Langevin steps without a Metropolis test, with the path action in the weights
    Corrected,
    /// Langevin steps with a Metropolis test (MALA)
    Adjusted,
    /// Leapfrog trajectories with a Metropolis test (HMC)
    Hamiltonian,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resampling {
    /// A comb of equal distances with one random offset
    Systematic,
    /// One random number in each of n equal intervals
    Stratified,
    /// n independent random numbers
    Multinomial,
}

#[derive(Args)]
pub struct Smc {
    /// Generator with a gradient: a coupling flow or a TarFlow
    model: PathBuf,
    /// OpenMM System (XML) with the model's atoms
    #[arg(long)]
    system: PathBuf,
    /// Temperature, K [default: that of the model]. A steerable model is steered to it
    #[arg(long)]
    temperature: Option<f64>,
    /// Number of particles
    #[arg(short, long, default_value_t = 1000)]
    n: usize,
    /// Number of temperatures from generator to target, evenly spaced; without it a pilot run chooses them
    #[arg(long)]
    stages: Option<usize>,
    /// Share of the effective particles that must remain after one step of the temperature, for the pilot run
    #[arg(long, default_value_t = 0.9, conflicts_with = "stages")]
    share: f64,
    /// Number of particles of the pilot run, 10 or more [default: 200]
    #[arg(long)]
    pilots: Option<usize>,
    /// How particles are moved at each temperature
    #[arg(long, value_enum, default_value_t = Moves::Adjusted)]
    moves: Moves,
    /// Leapfrog steps per trajectory, for `--moves hamiltonian` [default: 5]
    #[arg(long)]
    leapfrog: Option<usize>,
    /// Number of moves at each temperature
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Step of the moves, nm² [default: 2e-6]. A pilot run starts with it, and at each temperature adjusts the step of
    /// adjusted and hamiltonian moves until 55 to 65 % of them are accepted; with --stages and --step there is no pilot
    /// run, and this is the step at all temperatures. Corrected and unadjusted moves always have this step, and no
    /// pilot run with --stages
    #[arg(long)]
    step: Option<f64>,
    /// Resample when the effective number of particles falls below this share
    #[arg(long, default_value_t = 0.5)]
    threshold: f64,
    /// How particles are resampled by their weights
    #[arg(long, value_enum, default_value_t = Resampling::Systematic)]
    resampling: Resampling,
    /// Leave out samples with a reduced potential above this value: biased, as in published runs
    #[arg(long)]
    energy_cutoff: Option<f64>,
    /// Seed of samples, pilots, moves and resampling
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// State of the run, written after every temperature; if the file exists, the run continues from it
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Final particles: a safetensors file with `x`, `log_weight`, `reduced_potential`, and the number of the sample
    /// that each descends from (`ancestor`): particles with the same ancestor are not independent
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Log with the results at each temperature, one JSON object per line; `modejump plot --log` draws it
    #[arg(long)]
    log: Option<PathBuf>,
    #[command(flatten)]
    decoding: DecodingFlags,
    #[command(flatten)]
    precision: PrecisionFlag,
    #[command(flatten)]
    platform: PlatformFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[cfg(not(feature = "openmm"))]
impl Smc {
    pub fn run(self) -> modejump::Result<()> {
        Err(modejump::Error::Unsupported("`modejump smc` needs a build with `--features openmm`".into()))
    }
}
