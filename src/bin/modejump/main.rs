//! `modejump`: trains, converts, samples and reweights generators, and runs molecular dynamics with jumps.

/// As std's `eprintln!`, which panics if standard error is closed: that must not end a run.
macro_rules! eprintln {
    ($($text:tt)*) => {{
        let line = format!($($text)*) + "\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    }};
}

mod adapt;
mod bench;
mod common;
mod compare;
#[cfg(feature = "cuda")]
mod compile;
mod convert;
mod dynamics;
mod evaluate;
mod exchange;
mod explore;
mod gromacs;
mod inspect;
mod log_density;
mod md;
mod modes;
mod plot;
mod reweight;
mod rounds;
mod sample;
mod smc;
mod train;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use modejump::device::Device;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "modejump", version, about = "Generator moves for molecular dynamics", max_term_width = 100)]
struct Cli {
    /// Where models run: cpu, auto, cuda or cuda:N [default: $MODEJUMP_DEVICE, else cpu]
    #[arg(long, global = true, value_name = "NAME")]
    device: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a generator on frames, engine energies, or both
    Train(train::Train),
    /// Simulate, train on the frames, and simulate with the trained generator, in rounds
    Adapt(adapt::Adapt),
    /// Train on a few structures, walk in latent space, and train on what was found, in rounds
    Explore(explore::Explore),
    /// Turn a checkpoint of another program into a model file
    Convert(convert::Convert),
    /// Put the generators of several metastable states into one model file, to jump between them
    Modes(modes::Modes),
    /// Show what a model file, or any safetensors or PyTorch file, contains
    Inspect(inspect::Inspect),
    /// Draw configurations with their log-densities
    Sample(sample::Sample),
    /// Evaluate log q of configurations
    LogDensity(log_density::LogDensity),
    /// Evaluate the network of a continuous flow or an energy-based model
    Evaluate(evaluate::Evaluate),
    /// Run OpenMM, with jumps if a model is given
    Md(md::Md),
    /// Run OpenMM at several temperatures, with exchanges through maps between the ensembles
    Exchange(exchange::Exchange),
    /// Run GROMACS with jumps: works with any gmx, nothing to install
    Gromacs(gromacs::Gromacs),
    /// Importance weights against an engine's energies: ESS, free energies. log Z differs between kinds of models by
    /// constants given in docs/comparing.md
    Reweight(reweight::Reweight),
    /// Carry samples of a generator to an engine's energies by annealed moves with importance weights
    Smc(smc::Smc),
    /// Compare two samples or trajectories of one molecule: energies, torsions, slow components
    Compare(compare::Compare),
    /// Compile a model's kernels for a GPU in another machine
    #[cfg(feature = "cuda")]
    Compile(compile::Compile),
    /// Time the hot paths
    Bench(bench::Bench),
    /// Draw figures of runs, weights and training
    Plot(plot::Plot),
}

impl Command {
    /// Whether the ranks of `mpirun` divide the work.
    fn is_shared(&self) -> bool {
        matches!(self, Command::Sample(_) | Command::Reweight(_) | Command::Smc(_))
    }

    /// Whether the command runs models. The others only read files, or compile for another machine, and need no GPU.
    fn runs_models(&self) -> bool {
        !matches!(
            self,
            Command::Convert(_)
                | Command::Modes(_)
                | Command::Inspect(_)
                | Command::Compile(_)
                | Command::Compare(_)
                | Command::Plot(_)
        )
    }
}

/// Ends the program quietly when the reader of standard output has closed the pipe, as other programs do; reports other
/// failures to print, such as a full disk.
fn end_with_output() {
    const PRINTING: &str = "failed printing to stdout";
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>();
        match message.filter(|message| message.starts_with(PRINTING)) {
            Some(message) if message.contains("Broken pipe") => std::process::exit(141),
            Some(message) => {
                eprintln!("modejump: {message}");
                std::process::exit(1)
            }
            None => usual(panic),
        }
    }));
}

/// Turns a file as large as the system allows (`ulimit -f`) into a write error, as a full disk is, instead of a signal
/// that ends the program without a message.
fn meet_limits_of_files() {
    #[cfg(unix)]
    // SAFETY: an ignored signal runs no code; it is set before any thread is there.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// The parsed command line. A negative number is taken as the value of the option before it, whose own check then
/// reports what is wrong.
fn arguments() -> Cli {
    let negative = |command: clap::Command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    };
    let matches = Cli::command().mut_subcommands(negative).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit())
}

fn main() -> ExitCode {
    end_with_output();
    meet_limits_of_files();
    let Cli { device, command } = arguments();
    match run(device, command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("modejump: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(device: Option<String>, command: Command) -> modejump::Result<()> {
    if !command.is_shared() {
        modejump::parallel::warn_of_copies();
    }
    if command.runs_models() {
        modejump::parallel::start_threads()?;
        if let Some(name) = device {
            modejump::device::set_default(Device::parse(&name)?);
        }
    } else {
        modejump::device::set_default(Device::cpu());
    }
    match command {
        Command::Train(command) => command.run(),
        Command::Adapt(command) => command.run(),
        Command::Explore(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Modes(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Sample(command) => command.run(),
        Command::LogDensity(command) => command.run(),
        Command::Evaluate(command) => command.run(),
        Command::Md(command) => command.run(),
        Command::Exchange(command) => command.run(),
        Command::Gromacs(command) => command.run(),
        Command::Reweight(command) => command.run(),
        Command::Smc(command) => command.run(),
        Command::Compare(command) => command.run(),
        #[cfg(feature = "cuda")]
        Command::Compile(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Plot(command) => command.run(),
    }
}
