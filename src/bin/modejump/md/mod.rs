//! `modejump md`: OpenMM from Rust, with or without jumps.

#[cfg(feature = "openmm")]
mod jumps;
#[cfg(feature = "openmm")]
mod report;
#[cfg(feature = "openmm")]
mod run;

use crate::common::{DecodingFlags, Method, PrecisionFlag};
use crate::dynamics::Dynamics;
use clap::{Args, ValueEnum};
use std::ops::RangeInclusive;
use std::path::PathBuf;

/// The model whose log q decides acceptances.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Likelihood {
    /// The generator's own; with a screen, for the proposals that passed it
    Exact,
    /// The screen's alone: BIASED, jumps then sample exp(-u) q/q_screen, and every report says `surrogate`
    Surrogate,
}

#[derive(Args)]
pub struct Md {
    /// Topology and start: PDB file with the atoms in the order of the System; a periodic box is taken from the System
    #[arg(long)]
    topology: PathBuf,
    /// OpenMM System (XML)
    #[arg(long)]
    system: PathBuf,
    /// Generator; without one the run is plain molecular dynamics
    #[arg(long)]
    model: Option<PathBuf>,
    /// Second model with a cheap log-density, such as an energy-based model: it screens the proposals, and the exact
    /// log-density of the generator is computed for those that pass, and decides (delayed acceptance)
    #[arg(long, requires = "model")]
    screen: Option<PathBuf>,
    /// Log-density that decides whether a jump is accepted
    #[arg(long, value_enum, default_value_t = Likelihood::Exact)]
    acceptance: Likelihood,
    /// Stages of a path that carries every proposal to the energies of the System before it is tested (annealed
    /// importance sampling by Langevin steps with a Metropolis test); 2 gradients per stage
    #[arg(long, requires = "model", conflicts_with_all = ["screen", "solute"], value_parser = stages)]
    anneal: Option<usize>,
    /// Step of the annealing path, nm² [default: 2e-6]
    #[arg(long, requires = "model")]
    anneal_step: Option<f64>,
    /// Walk in the model's latent space instead of taking its proposals: step widths, one of which is chosen at random
    /// in every attempt
    #[arg(long, requires = "model", conflicts_with_all = ["screen", "anneal", "proposals"])]
    #[arg(value_delimiter = ',', num_args = 1..)]
    latent_walk: Option<Vec<f64>>,
    /// Leapfrog steps per Hamiltonian trajectory: for a latent walk, trajectories (each leapfrog step as long as the
    /// width) instead of random steps; for --anneal, trajectories instead of Langevin steps
    #[arg(long, requires = "model", conflicts_with = "solute")]
    leapfrog: Option<usize>,
    /// Particles that the model describes, in its order, counted from 0, such as 0-21; the others, a solvent, stay
    /// where they are in a jump, or relax with --driven
    #[arg(long, requires = "model", value_delimiter = ',', num_args = 1.., value_parser = particles)]
    solute: Option<Vec<RangeInclusive<usize>>>,
    /// Number of steps in which the solute is pulled to a proposal; the other particles relax in between
    #[arg(long, requires = "solute", conflicts_with_all = ["screen", "anneal", "latent_walk", "proposals"])]
    driven: Option<usize>,
    /// Steps per relaxation, a trajectory with a Metropolis test [default: 20]
    #[arg(long, requires = "model")]
    relaxation_steps: Option<usize>,
    /// Time step of the relaxations, ps [default: 0.001]
    #[arg(long, requires = "model")]
    relaxation_timestep: Option<f64>,
    /// Number of orientations over which the model's density is averaged; each proposal gets one of them at random. The
    /// weights vary less where the energies depend little on orientation, at the cost of as many likelihoods. For
    /// TarFlows
    #[arg(long, requires = "model", conflicts_with_all = ["screen", "anneal", "latent_walk", "driven"])]
    rotations: Option<usize>,
    /// Number of steps to run
    #[arg(short = 'n', long, default_value_t = 100_000)]
    steps: u64,
    /// Steps before these that are neither recorded nor averaged (their jumps count as attempts): a run starts from a
    /// minimised configuration, with velocities drawn at the temperature
    #[arg(long, default_value_t = 0)]
    equilibrate: u64,
    /// Steps between attempts to jump
    #[arg(long, default_value_t = 10, requires = "model")]
    frequency: u64,
    /// Proposals per attempt; with more than one, --method says how they are used; with a screen each is a step of the
    /// screening before one exact test
    #[arg(long, default_value_t = 1, requires = "model")]
    proposals: usize,
    /// How several proposals are used [default: isir for two or more; a single one is tested]
    #[arg(long, value_enum, requires = "model", conflicts_with_all = ["screen", "anneal", "latent_walk", "driven"])]
    method: Option<Method>,
    /// Let other threads draw the proposals of coming attempts while the dynamics runs, and evaluate densities while
    /// its energies are computed: the results are the same, bit for bit
    #[arg(long, requires = "model", conflicts_with = "latent_walk")]
    draw_ahead: bool,
    /// Temperature, K
    #[arg(long, default_value_t = 300.0)]
    temperature: f64,
    #[command(flatten)]
    dynamics: Dynamics,
    #[command(flatten)]
    decoding: DecodingFlags,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Steps between recorded frames
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    record: u64,
    /// Trajectory: pdb, gro, dcd, xtc, trr, npy or safetensors (with `reduced_potential`), written every minute, at the
    /// end, and when SIGINT or SIGTERM ends the run
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// State of the run with its frames, written every minute, at the end, and when SIGINT or SIGTERM ends the run. If
    /// the file exists, the run continues from it, bit for bit (except if the System has a barostat, or a cut-off on
    /// the platform CPU, whose neighbour lists OpenMM does not save); a finished run continues with more --steps
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Parses a range of particles: `7` or `0-21`.
fn particles(text: &str) -> std::result::Result<RangeInclusive<usize>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        text.trim().parse::<usize>().map_err(|e| format!("{text:?}: {e}; expected particles such as 0-21"))
    };
    let range = number(first)?..=number(last)?;
    match range.is_empty() {
        true => Err(format!("{text}: the first number must not be greater than the last")),
        false => Ok(range),
    }
}

fn stages(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(stages) => Ok(stages),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(not(feature = "openmm"))]
impl Md {
    pub fn run(self) -> modejump::Result<()> {
        Err(modejump::Error::Unsupported("`modejump md` needs a build with `--features openmm`".into()))
    }
}
