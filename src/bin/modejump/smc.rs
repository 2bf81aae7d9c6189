//! `modejump smc`: annealed sequential Monte Carlo from a generator to an engine's energies.

use super::common::{DecodingFlags, PlatformFlag, PrecisionFlag};
use clap::{Args, ValueEnum};
use modejump::Result;
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
    /// adjusted and hamiltonian moves until 55 to 65 % of them are accepted. With --stages and --step there is no pilot
    /// run, and this is the step at all temperatures
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
    pub fn run(self) -> Result<()> {
        Err(modejump::Error::Unsupported("`modejump smc` needs a build with `--features openmm`".into()))
    }
}

#[cfg(feature = "openmm")]
mod run {
    use super::*;
    use crate::common::{
        claim, evaluations, hash_of, load, number, require_described, tail_in_words, tail_index, target_of,
        temperature, with_error, Progress,
    };
    use modejump::annealing::{
        even, Annealing, Bridge, Kernel, LeftOut, Options, Pilot, Progress as Stage, Temperatures, FEWEST_PILOTS,
        MOST_LEAPFROG_STEPS,
    };
    use modejump::io::checkpoint::{self, Identity, Kind};
    use modejump::io::trajectory::{self, Frames};
    use modejump::io::{check_apart, check_writable};
    use modejump::models::steering::{dimension_without_auxiliary, follow, JointTarget, Steering};
    use modejump::models::Model;
    use modejump::parallel::{self, Ranks};
    use modejump::weights::{self, FEWEST_FOR_ERRORS};
    use modejump::Error;
    use serde::{Deserialize, Serialize};
    use serde_json::{json, Value};

    const RUN: Kind = Kind { magic: *b"MJ-ANNEA", version: 9 };
    /// Largest number of stages of a pilot run.
    const MOST_STAGES: usize = 10_000;
    /// Largest number of temperatures of a run.
    const LARGEST_PLAN: usize = 10_000_000;
    const PILOTS: usize = 200;
    const LEAPFROG_STEPS: usize = 5;
    /// nm²
    const STEP: f64 = 2e-6;
    /// Adjusted moves with an acceptance below or above these do next to nothing: their steps are far too long or too
    /// short.
    const IDLE: [f64; 2] = [0.05, 0.95];

    /// State of a run, in its pilot run or later.
    #[derive(Serialize, Deserialize)]
    enum State<P, R> {
        Pilot(P),
        Run(R),
    }
    type Saved = State<Pilot, Annealing>;
    type ToSave<'a> = State<&'a Pilot, &'a Annealing>;

    /// Numbers that must be the same on all ranks.
    fn numbers(saved: &Option<Saved>) -> [f64; 2] {
        match saved {
            None => [0.0, 0.0],
            Some(State::Pilot(pilot)) => [1.0, pilot.plan().len() as f64],
            Some(State::Run(run)) => [2.0, run.done as f64],
        }
    }

    fn in_words(stage: &Stage) -> String {
        format!(
            "t {:.4}  ESS {:.0} %{}  accepted {:.0} %  ln Z {:.3}",
            stage.t,
            100.0 * stage.ess,
            if stage.resampled { " resampled" } else { "" },
            100.0 * stage.acceptance,
            stage.log_z
        )
    }

    impl Smc {
        pub fn run(self) -> Result<()> {
            parallel::run(|ranks| self.on(ranks))
        }

        /// Runs on every rank alike, except for the work that is divided among ranks, and printing and writing, which
        /// only the first does.
        fn on(&self, ranks: &dyn Ranks) -> Result<()> {
            self.check()?;
            let model = self.decoding.of(load(&self.model, &self.precision)?)?;
            let temperature = temperature(self.temperature, model.as_ref())?;
            let model = follow(&model, temperature)?;
            let dimension = dimension_without_auxiliary(model.as_ref());
            if let Some(path) = self.output.as_ref().filter(|_| ranks.is_first()) {
                check_apart(path, [&self.model, &self.system].into_iter().chain(&self.checkpoint).chain(&self.log))?;
                trajectory::require_array(path, "log_weight")?;
                trajectory::check(path, dimension, model.card().topology.as_ref())?;
            }
            if let Some(path) = self.log.as_ref().filter(|_| ranks.is_first()) {
                check_apart(path, [&self.model, &self.system].into_iter().chain(&self.checkpoint))?;
                check_writable(path)?;
            }
            if let Some(path) = self.checkpoint.as_ref().filter(|_| ranks.is_first()) {
                check_apart(path, [&self.model, &self.system])?;
                check_writable(path)?;
                claim(path)?;
            }
            // checked before long work
            model.log_density_gradient(
                &vec![0.0; model.dimension()],
                &mut evaluations(1),
                &mut vec![0.0; model.dimension()],
            )?;
            if !model.card().kept_bonds().is_empty() {
                return Err(Error::Unsupported(
                    "annealed paths move every atom and do not keep bond lengths: use a model without constrained bonds, and a System \
                     without constraints"
                        .into(),
                ));
            }
            let mut target = target_of(&self.system, model.as_ref(), temperature, &self.platform)?;
            require_described(&self.system, &mut target, model.as_ref(), false)?;
            let steering = model.steering().unwrap_or(Steering::NONE);
            let mut target = JointTarget::new(&mut target, steering);
            let mut bridge = Bridge { ranks, steering, ..Bridge::new(model.as_ref(), &mut target) };
            let identity = self.identity(model.as_ref(), temperature)?;
            let bytes = format!("{identity:?}").into_bytes();
            ranks.same(&bytes.into_iter().map(f64::from).collect::<Vec<_>>(), "a model, a System or options")?;
            let saved = match &self.checkpoint {
                Some(path) => checkpoint::load_run::<Saved>(path, RUN, &identity)?,
                None => None,
            };
            ranks.same(&numbers(&saved), "a checkpoint (it must be on a file system shared by all ranks)")?;
            if let Some(state) = saved.as_ref().filter(|_| ranks.is_first()) {
                match state {
                    State::Pilot(pilot) => eprintln!("resuming the pilot run from t = {:.4}", pilot.t()),
                    State::Run(run) => {
                        eprintln!("resuming from t = {:.4}", run.history.last().map_or(0.0, |stage| stage.t));
                    }
                }
            }
            let mut run = match saved {
                Some(State::Run(run)) => run,
                Some(State::Pilot(pilot)) => self.begin(&mut bridge, Some(pilot), &identity)?,
                None => self.begin(&mut bridge, None, &identity)?,
            };
            let saved = self.advance(&mut run, &mut bridge, &identity)?;
            if !ranks.is_first() {
                return Ok(());
            }
            // the report is printed even if the disk is full by now
            let written = self.write(&run, &bridge, model.as_ref(), temperature).and(self.write_log(&run));
            self.report(&run)?;
            written.and(saved)
        }

        /// Errors: invalid options.
        fn check(&self) -> Result<()> {
            let Smc { n, stages, pilots, step, repeat, leapfrog, energy_cutoff, threshold, share, .. } = *self;
            let message = if n == 0 {
                "-n 0: must be at least 1".into()
            } else if stages == Some(0) {
                "--stages 0: must be at least 1; without this option, a pilot run chooses the temperatures".into()
            } else if stages.is_some_and(|stages| stages > LARGEST_PLAN) {
                format!("--stages {}: must be at most {LARGEST_PLAN}", stages.unwrap_or_default())
            } else if let Some(pilots) = pilots.filter(|_| self.is_planned()) {
                format!("--pilots {pilots}: the temperatures and the step are set, so there is no pilot run; remove this option")
            } else if let Some(pilots) = pilots.filter(|&pilots| pilots < FEWEST_PILOTS) {
                format!(
                    "--pilots {pilots}: the pilot run requires at least {FEWEST_PILOTS} particles; use more, or set the plan with --stages \
                     and --step"
                )
            } else if !(0.0..=1.0).contains(&threshold) {
                format!("--threshold {threshold}: must be a share of the particles, from 0 to 1")
            } else if !(share > 0.0 && share < 1.0) {
                format!("--share {share}: must be a share of the particles, greater than 0 and less than 1")
            } else if step.is_some_and(|step| !(step > 0.0 && step.is_finite())) {
                format!("--step {}: must be a positive number, in nm²", step.unwrap_or_default())
            } else if repeat == 0 {
                "--repeat 0: must be at least 1".into()
            } else if leapfrog.is_some() && self.moves != Moves::Hamiltonian {
                "--leapfrog requires `--moves hamiltonian`".into()
            } else if energy_cutoff.is_some_and(f64::is_nan) {
                "--energy-cutoff: must be a number".into()
            } else if let Some(steps) = leapfrog.filter(|steps| !(1..=MOST_LEAPFROG_STEPS).contains(steps)) {
                format!("--leapfrog {steps}: must be from 1 to {MOST_LEAPFROG_STEPS}")
            } else {
                return Ok(());
            };
            Err(Error::invalid(message))
        }

        fn options(&self) -> Options {
            let kernel = match self.moves {
                Moves::Unadjusted => Kernel::Unadjusted { corrected: false },
                Moves::Corrected => Kernel::Unadjusted { corrected: true },
                Moves::Adjusted => Kernel::Adjusted,
                Moves::Hamiltonian => Kernel::Hamiltonian { leapfrog: self.leapfrog.unwrap_or(LEAPFROG_STEPS) },
            };
            let resampling = match self.resampling {
                Resampling::Systematic => weights::Resampling::Systematic,
                Resampling::Stratified => weights::Resampling::Stratified,
                Resampling::Multinomial => weights::Resampling::Multinomial,
            };
            let Smc { repeat: moves, threshold, seed, energy_cutoff, .. } = *self;
            Options { kernel, moves, threshold, resampling, seed, energy_cutoff }
        }

        fn identity(&self, model: &dyn Model, temperature: f64) -> Result<Identity> {
            let Smc { n, stages, share, pilots, step, repeat, threshold, seed, energy_cutoff, .. } = self;
            let [moves, resampling] = [self.moves.to_possible_value(), self.resampling.to_possible_value()]
                .map(|value| value.expect("none is skipped"));
            let run = Identity::default().with_content("model", model.hash());
            let run = run.with_content("file for --system", hash_of(&self.system)?).with("--temperature", temperature);
            let run =
                run.with("-n", n).with("--seed", seed).with_some("--stages", stages.as_ref()).with("--share", share);
            let run = run
                .with("--pilots", pilots.unwrap_or(PILOTS))
                .with("--moves", moves.get_name())
                .with("--repeat", repeat);
            let run = match self.options().kernel {
                Kernel::Hamiltonian { leapfrog } => run.with("--leapfrog", leapfrog),
                _ => run,
            };
            let run = run
                .with_some("--step", step.as_ref())
                .with("--threshold", threshold)
                .with("--resampling", resampling.get_name());
            let run = run.with_some("--energy-cutoff", energy_cutoff.as_ref());
            let run = run.with("--platform", &self.platform.platform);
            Ok(self.precision.identify(self.decoding.identify(run)))
        }

        /// Whether temperatures and steps are known without a pilot run.
        fn is_planned(&self) -> bool {
            let is_adjusted = matches!(self.moves, Moves::Adjusted | Moves::Hamiltonian);
            self.stages.is_some() && (self.step.is_some() || !is_adjusted)
        }

        /// Makes the run. A pilot run comes first (or is resumed) unless --stages and, for adjusted moves, --step fix
        /// the plan.
        fn begin(&self, bridge: &mut Bridge, pilot: Option<Pilot>, identity: &Identity) -> Result<Annealing> {
            let (options, step) = (self.options(), self.step.unwrap_or(STEP));
            let stages = match self.stages.filter(|_| self.is_planned()) {
                Some(stages) => even(stages, step),
                None => {
                    let pilot = pilot.map_or_else(|| self.new_pilot(bridge, step), Ok)?;
                    self.explore(pilot, bridge, identity)?.plan().to_vec()
                }
            };
            let points = bridge.sample(self.n, self.seed)?;
            Annealing::new(bridge, points, stages, options)
        }

        fn new_pilot(&self, bridge: &mut Bridge, step: f64) -> Result<Pilot> {
            // other samples and random numbers than those of the run, so that its weights do not depend on the choice
            let options = Options { seed: self.seed.wrapping_add(1 << 32), ..self.options() };
            let temperatures = match self.stages {
                Some(stages) => Temperatures::Even(stages),
                None => Temperatures::Share { share: self.share, most: MOST_STAGES },
            };
            let pilots = bridge.sample(self.pilots.unwrap_or(PILOTS), options.seed)?;
            Pilot::new(bridge, pilots, step, temperatures, &options)
        }

        /// Takes the pilot run to its end.
        fn explore(&self, mut pilot: Pilot, bridge: &mut Bridge, identity: &Identity) -> Result<Pilot> {
            let first = bridge.ranks.is_first();
            let mut progress = if first { Progress::new(100, "percent (pilot run)") } else { Progress::silent() };
            while pilot.t() < 1.0 {
                let stage = pilot.stage(bridge)?;
                progress.show((100.0 * stage.t) as u64, format!("{}  step {:.1e} nm²", in_words(&stage), stage.step));
                // a checkpoint that cannot be written is reported by the run
                let _ = self.save(State::Pilot(&pilot), identity, first);
            }
            progress.end();
            Ok(pilot)
        }

        /// Takes the run to its end. The inner result tells whether the last checkpoint was written.
        fn advance(&self, run: &mut Annealing, bridge: &mut Bridge, identity: &Identity) -> Result<Result<()>> {
            let mut saved = Ok(());
            let first = bridge.ranks.is_first();
            let mut progress = if first { Progress::new(run.plan.len() as u64, "stages") } else { Progress::silent() };
            while !run.is_finished() {
                let stage = run.stage(bridge)?;
                progress.show(run.done as u64, in_words(&stage));
                saved = self.save(State::Run(run), identity, first);
                if let Err(error) = &saved {
                    progress.tell(&format!("modejump: {error}; the run continues and will try again"));
                }
            }
            progress.end();
            Ok(saved)
        }

        fn save(&self, state: ToSave, identity: &Identity, first: bool) -> Result<()> {
            match self.checkpoint.as_ref().filter(|_| first) {
                Some(path) => checkpoint::save_run(path, RUN, identity, &state),
                None => Ok(()),
            }
        }

        fn write_log(&self, run: &Annealing) -> Result<()> {
            let Some(path) = &self.log else { return Ok(()) };
            let line = |stage: &Stage| json!(stage).to_string() + "\n";
            modejump::io::write_atomically(path, run.history.iter().map(line).collect::<String>().as_bytes())
        }

        fn write(&self, run: &Annealing, bridge: &Bridge, model: &dyn Model, temperature: f64) -> Result<()> {
            let Some(path) = &self.output else { return Ok(()) };
            let dimension = dimension_without_auxiliary(model);
            let rows = run.points.x.chunks_exact(model.dimension());
            let frames = Frames::new(dimension, rows.flat_map(|row| row[..dimension].to_vec()).collect());
            let u = bridge.reduced_potential(&run.points);
            let kelvin = vec![temperature; u.len()];
            let ancestor: Vec<f64> = run.ancestors().iter().map(|&sample| sample as f64).collect();
            let extra: [(&str, &[f64]); 4] = [
                ("log_weight", &run.log_weights),
                ("reduced_potential", &u),
                ("temperature", &kelvin),
                ("ancestor", &ancestor),
            ];
            trajectory::write(path, &frames, model.card().topology.as_ref(), &extra)
        }

        fn report(&self, run: &Annealing) -> Result<()> {
            let ess = weights::effective_sample_size(&run.log_weights)? / run.log_weights.len() as f64;
            let resamplings = run.history.iter().filter(|stage| stage.resampled).count();
            let stages = run.history.len() as f64;
            let acceptance = run.history.iter().map(|stage| stage.acceptance).sum::<f64>() / stages;
            let (log_z, families, effective) = (run.log_normaliser(), run.families(), run.effective_families());
            let summary: Value = json!({
                "particles": run.log_weights.len(),
                "stages": run.history.len(),
                "resamplings": resamplings,
                "ess": ess,
                "pareto_k": tail_index(weights::pareto_k(&run.log_weights)?),
                "acceptance": acceptance,
                "log_z": log_z.value,
                "log_z_stderr": log_z.standard_error,
                "families": families.len(),
                "effective_families": effective,
                "left_out": run.left_out,
                "biased": self.energy_cutoff.is_some() || self.moves == Moves::Unadjusted,
            });
            if self.json {
                println!("{summary}");
                return Ok(());
            }
            println!(
                "{} particles, {} temperatures, {resamplings} resamplings",
                summary["particles"], summary["stages"]
            );
            let LeftOut { without_density, without_energy, above_cutoff } = run.left_out;
            for (lost, why) in [
                (without_density, "have no density"),
                (without_energy, "have no finite energy"),
                (above_cutoff, "have an energy above the cut-off"),
            ] {
                if lost > 0 {
                    println!("rejected          {lost} of {} samples {why}", self.n);
                }
            }
            let since = if resamplings > 0 { "since the last resampling" } else { "at the end" };
            println!("ESS               {:.1} % {since}", 100.0 * ess);
            println!("Pareto k          {}", tail_in_words(number(&summary, "pareto_k")));
            println!("acceptance        {:.1} %", 100.0 * acceptance);
            println!(
                "families          {} of {} samples have descendants, equivalent to {effective:.1} independent samples",
                families.len(),
                self.n
            );
            println!("log Z             {}", with_error(log_z.value, log_z.standard_error, 4));
            if log_z.standard_error.is_nan() {
                println!(
                    "(±?: no error estimate with fewer than {} effective families; use more particles)",
                    FEWEST_FOR_ERRORS
                );
            }
            if !matches!(self.moves, Moves::Unadjusted | Moves::Corrected) && !(IDLE[0]..=IDLE[1]).contains(&acceptance)
            {
                println!(
                    "(the moves have little effect: their step is too {}; without --step, a pilot run chooses it)",
                    if acceptance < 0.5 { "long" } else { "short" }
                );
            }
            if summary["biased"] == json!(true) {
                println!("(biased, by moves without a test or by the energy cut-off)");
            }
            Ok(())
        }
    }
}
