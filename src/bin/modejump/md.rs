//! `modejump md`: OpenMM from Rust, with or without jumps.

use crate::common::{DecodingFlags, Method, PrecisionFlag};
use crate::dynamics::Dynamics;
use clap::{Args, ValueEnum};
use modejump::Result;
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
    pub fn run(self) -> Result<()> {
        Err(modejump::Error::Unsupported("`modejump md` needs a build with `--features openmm`".into()))
    }
}

#[cfg(feature = "openmm")]
mod run {
    use super::*;
    use crate::common::{
        hash_of, interrupted, load, load_partner, mark, require_order, tail_in_words, tail_index, warn_of_labels,
        warn_of_temperature, watch_signals, Progress,
    };
    use crate::dynamics::{
        add_means, earlier, failed, require_frames, require_whole, show_means, start, tell_of_memory, Kept, Record,
    };
    use modejump::annealing::{even, Kernel};
    use modejump::coordinates::vector::atom;
    use modejump::coordinates::Topology;
    use modejump::engines::openmm::{JumpingSimulation, Simulation, Solute, System};
    use modejump::io::checkpoint::{self, Identity, Kind};
    use modejump::io::{check_apart, check_writable, trajectory};
    use modejump::models::tarflow::Decoding;
    use modejump::models::Model;
    use modejump::moves::{self, Fate, LatentWalkOptions, Options, Path, Statistics};
    use modejump::rng::{Stream, StreamId};
    use modejump::Error;
    use serde::{Deserialize, Serialize};
    use serde_json::{json, Value};

    const RUN: Kind = Kind { magic: *b"MJ-MDRUN", version: 6 };

    /// State from which a run continues.
    #[derive(Default, Serialize, Deserialize)]
    struct Saved {
        /// OpenMM's checkpoint.
        simulation: Vec<u8>,
        jumps: Option<(Statistics, [u64; 2])>,
        record: Record,
        /// s.
        wall: f64,
    }

    fn join(list: &[impl ToString]) -> String {
        list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    enum Engine {
        Plain(Simulation),
        Jumping(Box<JumpingSimulation>),
    }

    impl Engine {
        fn step(&mut self, n: u64) -> Result<()> {
            match self {
                Engine::Plain(simulation) => simulation.step(n as usize),
                Engine::Jumping(jumping) => jumping.step(n),
            }
        }

        fn simulation(&mut self) -> &mut Simulation {
            match self {
                Engine::Plain(simulation) => simulation,
                Engine::Jumping(jumping) => &mut jumping.simulation,
            }
        }

        fn statistics(&self) -> Option<&Statistics> {
            match self {
                Engine::Plain(_) => None,
                Engine::Jumping(jumping) => Some(jumping.jump().statistics()),
            }
        }

        /// Statistics of the jumps, and numbers of relaxations: tried, accepted.
        fn jumps(&self) -> Option<(Statistics, [u64; 2])> {
            match self {
                Engine::Plain(_) => None,
                Engine::Jumping(jumping) => Some((jumping.jump().statistics().clone(), jumping.relaxations())),
            }
        }

        fn go_on_from(&mut self, simulation: &[u8], jumps: Option<(Statistics, [u64; 2])>) -> Result<()> {
            if let (Engine::Jumping(jumping), Some((statistics, relaxations))) = (&mut *self, jumps) {
                jumping.count_from(statistics, relaxations);
            }
            self.simulation().load_checkpoint(simulation)
        }
    }

    /// Options with their defaults, which are set here and not by clap, so that an option without effect can be
    /// detected.
    impl Md {
        /// nm²
        fn anneal_step(&self) -> f64 {
            self.anneal_step.unwrap_or(2e-6)
        }

        fn leapfrog(&self) -> usize {
            self.leapfrog.unwrap_or(0)
        }

        fn relaxation_steps(&self) -> usize {
            self.relaxation_steps.unwrap_or(20)
        }

        /// ps
        fn relaxation_timestep(&self) -> f64 {
            self.relaxation_timestep.unwrap_or(0.001)
        }
    }

    impl Md {
        /// Errors: options that have nothing to act on.
        fn check_options(&self) -> Result<()> {
            for (option, is_given, of, has_one) in [
                ("--anneal-step", self.anneal_step.is_some(), "--anneal", self.anneal.is_some()),
                (
                    "--leapfrog",
                    self.leapfrog.is_some(),
                    "--latent-walk or --anneal",
                    self.latent_walk.is_some() || self.anneal.is_some(),
                ),
                ("--relaxation-steps", self.relaxation_steps.is_some(), "--driven", self.driven.is_some()),
                ("--relaxation-timestep", self.relaxation_timestep.is_some(), "--driven", self.driven.is_some()),
            ] {
                if is_given && !has_one {
                    return Err(Error::invalid(format!("{option} requires {of}")));
                }
            }
            Ok(())
        }

        pub fn run(self) -> Result<()> {
            self.check_options()?;
            if self.acceptance == Likelihood::Surrogate && self.screen.is_none() {
                return Err(Error::invalid("--acceptance surrogate requires --screen with the surrogate"));
            }
            if self.model.is_none() && self.decoding.decoding() != Decoding::Sequential {
                return Err(Error::invalid("--decoding requires --model"));
            }
            if self.model.is_some() && self.frequency > self.steps {
                let (frequency, steps) = (self.frequency, self.steps);
                return Err(Error::invalid(format!(
                    "--frequency {frequency}: no jump would be attempted in {steps} steps"
                )));
            }
            watch_signals()?;
            let (topology, x0, system) = start(&self.topology, &self.system)?;
            let given = || [&self.topology, &self.system].into_iter().chain(&self.model).chain(&self.screen);
            if let Some(path) = &self.output {
                check_apart(path, given().chain(&self.checkpoint))?;
                trajectory::check(path, x0.len(), Some(&topology))?;
            }
            if self.keeps_positions() {
                tell_of_memory(self.steps.div_ceil(self.record), system.n_particles());
            }
            let mut engine = self.engine(&system, &topology, &x0)?;
            let identity = self.identity()?;
            let done = |saved: &Saved| saved.record.steps;
            let before = earlier(self.checkpoint.as_deref(), RUN, &identity, ("steps", self.steps), done)?;
            let mut saved = match before {
                Some(before) => {
                    if system.has_barostat() {
                        eprintln!("modejump: the System has a barostat, which counts steps from zero again: the run continues, but not bit for bit");
                    }
                    engine.go_on_from(&before.simulation, before.jumps.clone())?;
                    before
                }
                None => {
                    if let Some(path) = &self.checkpoint {
                        check_apart(path, given())?;
                        check_writable(path)?;
                    }
                    let simulation = engine.simulation();
                    simulation.set_positions(&x0)?;
                    simulation.minimise(10.0, 500)?;
                    simulation.redraw_velocities(&mut Stream::new(
                        self.dynamics.seed,
                        StreamId::Velocity,
                        u64::MAX,
                        0,
                    ))?;
                    self.equilibrate(&mut engine)?;
                    Saved::default()
                }
            };
            let (beginning, before) = (std::time::Instant::now(), saved.wall);
            let dynamics = self.dynamics.at(self.temperature);
            let write = |record: &Record| match &self.output {
                Some(path) if record.n() > 0 => record.write(path, &topology, &dynamics),
                _ => Ok(()),
            };
            let mut kept = Kept::of(self.output.as_slice());
            let keep = |engine: &mut Engine, saved: &mut Saved| -> Result<()> {
                saved.wall = before + beginning.elapsed().as_secs_f64();
                let Some(path) = &self.checkpoint else { return Ok(()) };
                (saved.simulation, saved.jumps) = (engine.simulation().checkpoint()?, engine.jumps());
                checkpoint::save_run(path, RUN, &identity, saved)
            };
            let run = self.record_run(&mut engine, &mut saved, &mut |engine, saved| {
                kept.when_due(|| write(&saved.record).and(keep(engine, saved)))
            });
            // the frames before a failure are kept, and the report is printed even if the disk is full by now
            let written = write(&saved.record);
            run?;
            let written = written.and(keep(&mut engine, &mut saved));
            self.report(&engine, &saved.record, saved.wall)?;
            written.and(require_whole(saved.record.steps, self.steps, "steps"))
        }

        /// Identity of the run: everything that changes its results, except the number of steps.
        fn identity(&self) -> Result<Identity> {
            let files = [
                ("file for --topology", Some(&self.topology)),
                ("file for --system", Some(&self.system)),
                ("file for --model", self.model.as_ref()),
                ("file for --screen", self.screen.as_ref()),
            ];
            let mut run = Identity::default();
            for (name, path) in files.into_iter().filter_map(|(name, path)| Some((name, path?))) {
                run = run.with_content(name, hash_of(path)?);
            }
            let run = self.dynamics.identify(run).with("--temperature", self.temperature);
            let run = run.with("--record", self.record).with("--equilibrate", self.equilibrate);
            Ok(self.identify_jumps(run))
        }

        fn identify_jumps(&self, run: Identity) -> Identity {
            let Md { frequency, proposals, anneal, driven, rotations, .. } = self;
            let method = if self.is_isir() { Method::Isir } else { Method::Independence };
            let [method, acceptance] = [method.to_possible_value(), self.acceptance.to_possible_value()]
                .map(|value| value.expect("none is skipped"));
            let widths = self.latent_walk.as_ref().map(|widths| join(widths));
            let particle = |range: &RangeInclusive<usize>| format!("{}-{}", range.start(), range.end());
            let solute = self.solute.as_ref().map(|ranges| join(&ranges.iter().map(particle).collect::<Vec<_>>()));
            let run =
                run.with("--frequency", frequency).with("--proposals", proposals).with("--method", method.get_name());
            let run = run.with("--acceptance", acceptance.get_name()).with_some("--anneal", anneal.as_ref());
            let run = run
                .with("--anneal-step", self.anneal_step())
                .with_some("--latent-walk", widths)
                .with("--leapfrog", self.leapfrog());
            let run = run.with_some("--solute", solute).with_some("--driven", driven.as_ref());
            let run = run.with("--relaxation-steps", self.relaxation_steps());
            let run = run.with("--relaxation-timestep", self.relaxation_timestep());
            let run = run.with_some("--rotations", rotations.as_ref());
            self.precision.identify(self.decoding.identify(run))
        }

        fn engine(&self, system: &System, topology: &Topology, x0: &[f64]) -> Result<Engine> {
            let dynamics = self.dynamics.at(self.temperature);
            let Some(path) = &self.model else { return Ok(Engine::Plain(Simulation::new(system, &dynamics)?)) };
            let model = self.decoding.of(load(path, &self.precision)?)?;
            let method = self.method(model.as_ref())?;
            warn_of_temperature(model.as_ref(), self.temperature, "jumps");
            if system.holds_centre_of_mass_in_a_field() {
                eprintln!(
                    "modejump: the System has a CMMotionRemover, and a CustomExternalForce or massless particles: the dynamics keeps the centre of mass fixed, \
                     but jumps do not, so averages depend on how often jumps are attempted; remove the CMMotionRemover"
                );
            }
            if let Some(error) = model.integration_error()? {
                eprintln!("log q of a sample differs by {error:.1e} between forward and backward integration");
            }
            let options = Options {
                n_proposals: self.proposals,
                seed: self.dynamics.seed,
                draw_ahead: self.draw_ahead,
                ..Options::default()
            };
            let solute = self.solute.as_ref().map(|ranges| Solute {
                particles: ranges.iter().cloned().flatten().take(system.n_particles() + 1).collect(),
                relaxation_steps: self.relaxation_steps(),
                relaxation_timestep: self.relaxation_timestep(),
            });
            let described = (&model, solute);
            let jumping = JumpingSimulation::new(system, &dynamics, described, method, self.frequency, options)?;
            require_order(&self.topology, &self.described(topology), model.as_ref())?;
            let x: Vec<f64> = self.described_atoms(topology.n_atoms()).flat_map(|i| atom(x0, i)).collect();
            warn_of_labels(&self.topology, model.as_ref(), &x);
            Ok(Engine::Jumping(Box::new(jumping)))
        }

        /// Indices below n of the atoms that the model describes.
        fn described_atoms(&self, n: usize) -> impl Iterator<Item = usize> + '_ {
            let all = 0..=n.saturating_sub(1);
            let ranges = self.solute.as_ref().map_or_else(|| vec![all], |ranges| ranges.clone());
            ranges.into_iter().flatten().take_while(move |&i| i < n)
        }

        /// Names, elements and residues of the atoms that the model describes.
        fn described(&self, all: &Topology) -> Topology {
            let of = |list: &[String]| self.described_atoms(all.n_atoms()).map(|i| list[i].clone()).collect();
            let [names, elements, residues] = [&all.names, &all.elements, &all.residues].map(|list| of(list));
            Topology { names, elements, residues, bonds: Vec::new() }
        }

        /// Whether the next state is chosen among all proposals (i-SIR), unless another option determines how they are
        /// used.
        fn is_isir(&self) -> bool {
            self.method.map_or(self.proposals > 1, |method| method == Method::Isir)
        }

        fn method(&self, model: &dyn Model) -> Result<moves::Method> {
            if let Some(path) = &self.screen {
                let screen = load_partner(path, &self.precision, model)?;
                if self.acceptance == Likelihood::Exact {
                    return Ok(moves::Method::Screened(screen));
                }
                eprintln!("modejump: acceptance by the surrogate alone is biased: jumps sample exp(-u) q/q_surrogate");
                return Ok(moves::Method::Surrogate(screen));
            }
            if let Some(steps) = self.driven {
                return Ok(moves::Method::Driven(steps));
            }
            if let Some(widths) = self.latent_walk.clone() {
                let options = LatentWalkOptions { widths, leapfrog: self.leapfrog(), ..LatentWalkOptions::default() };
                return Ok(moves::Method::LatentWalk(options));
            }
            if let Some(stages) = self.anneal {
                let stages = even(stages, self.anneal_step());
                let kernel = match self.leapfrog() {
                    0 => Kernel::Adjusted,
                    leapfrog => Kernel::Hamiltonian { leapfrog },
                };
                return Ok(moves::Method::Annealed(Path { kernel, stages, moves: 1 }));
            }
            if model.modes().is_some() && self.proposals > 1 && self.method.is_none() {
                return Err(Error::invalid(format!(
                    "--proposals {}: a jump between the modes of a model has only one proposal; remove this option, or choose among proposals of all \
                     modes with --method isir",
                    self.proposals
                )));
            }
            let rotations = self.rotations;
            Ok(match self.is_isir() {
                true => moves::Method::Isir { rotations },
                false => moves::Method::Independence { rotations },
            })
        }

        fn equilibrate(&self, engine: &mut Engine) -> Result<()> {
            let mut progress = Progress::new(self.equilibrate, "equilibration steps");
            let mut done = 0;
            while done < self.equilibrate && !interrupted() {
                let n = self.record.min(self.equilibrate - done);
                engine.step(n).map_err(|e| failed(e, done + 1..=done + n))?;
                done += n;
                progress.show(done, String::new());
            }
            progress.end();
            Ok(())
        }

        fn keeps_positions(&self) -> bool {
            self.output.is_some() || self.checkpoint.is_some()
        }

        /// Runs and records the steps; `after` gets engine and record after every frame.
        fn record_run(
            &self,
            engine: &mut Engine,
            saved: &mut Saved,
            after: &mut dyn FnMut(&mut Engine, &mut Saved),
        ) -> Result<()> {
            let mut progress = Progress::new(self.steps, "steps");
            let mut done = saved.record.steps;
            while done < self.steps && !interrupted() {
                let n = (self.record - done % self.record).min(self.steps - done);
                engine.step(n).map_err(|e| failed(e, done + 1..=done + n))?;
                done += n;
                saved.record.take(engine.simulation(), done, self.keeps_positions())?;
                after(engine, saved);
                let accepted = engine.statistics().map(|statistics| {
                    let mark = mark(statistics.likelihood().name());
                    format!("accepted {:.0} %{mark}", 100.0 * statistics.acceptance())
                });
                progress.show(done, accepted.unwrap_or_default());
            }
            progress.end();
            require_frames(done, self.steps)
        }

        fn report(&self, engine: &Engine, record: &Record, wall: f64) -> Result<()> {
            record.warn_of_heat(self.temperature);
            let means = record.means();
            let mut summary = json!({
                "steps": record.steps,
                "wall_s": wall,
                "ns_per_day": record.steps as f64 * self.dynamics.timestep * 86.4 / wall,
            });
            match &means {
                Some(means) => add_means(&mut summary, means),
                None => {
                    let n = record.n();
                    eprintln!(
                        "modejump: too few frames for a mean energy and temperature ({n}); record more with --record"
                    );
                }
            }
            if let Engine::Jumping(jumping) = engine {
                self.summarise(jumping, &mut summary);
            }
            if self.json {
                println!("{summary}");
                return Ok(());
            }
            println!(
                "{} steps in {wall:.1} s, {:.0} ns/day",
                record.steps,
                summary["ns_per_day"].as_f64().unwrap_or(0.0)
            );
            if let Some(means) = &means {
                println!("{}{}", show_means(means), mark(summary["likelihood"].as_str().unwrap_or_default()));
            }
            if let Engine::Jumping(jumping) = engine {
                self.print(jumping);
            }
            Ok(())
        }

        /// Exactness of the log q in the weights: with a screen, that of the screen, whichever model decides.
        fn weights(&self) -> &'static str {
            match self.screen {
                Some(_) => "surrogate",
                None => "exact",
            }
        }

        fn is_delayed(&self) -> bool {
            self.screen.is_some() && self.acceptance == Likelihood::Exact
        }

        fn summarise(&self, jumping: &JumpingSimulation, summary: &mut Value) {
            let s = jumping.jump().statistics();
            summary["likelihood"] = json!(s.likelihood());
            summary["attempts"] = json!(s.attempts());
            summary["acceptance"] = json!(s.acceptance());
            for fate in Fate::ALL {
                summary[fate.name()] = json!(s.count(fate));
            }
            if s.proposals() > 0 {
                summary["ess"] = json!(s.effective_fraction());
                summary["pareto_k"] = tail_index(s.pareto_k());
                summary["ess_likelihood"] = json!(self.weights());
            }
            if self.solute.is_some() {
                let expected = s.expected_acceptance();
                summary["expected_acceptance"] = json!(expected.value);
                summary["expected_acceptance_stderr"] = json!(expected.standard_error);
                summary["relaxations"] = json!(jumping.relaxations()[0]);
                summary["relaxations_accepted"] = json!(jumping.relaxations()[1]);
            }
            if self.is_delayed() {
                summary["screened"] = json!(s.screened());
                summary["exact_evaluations"] = json!(s.exact_evaluations());
                summary["second_stage_acceptance"] = json!(s.second_stage_acceptance());
                summary["correction_variance"] = json!(s.correction_variance());
            }
        }

        fn print(&self, jumping: &JumpingSimulation) {
            let s = jumping.jump().statistics();
            let (accepted, ess) = (100.0 * s.acceptance(), 100.0 * s.effective_fraction());
            println!("{} attempts, {accepted:.1} % accepted{}", s.attempts(), mark(s.likelihood().name()));
            let untested = Fate::ALL.iter().filter(|&&fate| fate != Fate::Accepted && fate != Fate::Rejected);
            let untested = untested.filter(|&&fate| s.count(fate) > 0);
            let untested: Vec<String> = untested.map(|&fate| format!("{} {}", s.count(fate), fate.name())).collect();
            if !untested.is_empty() {
                println!("not tested: {}", untested.join(", "));
            }
            if s.proposals() > 0 {
                // the weights of a screen do not make an exact run a biased one
                let whose = match self.is_delayed() {
                    true => "  (of the screen's weights)".into(),
                    false => mark(self.weights()),
                };
                println!("ESS {ess:.1} %, Pareto k {}{whose}", tail_in_words(s.pareto_k()));
            }
            if self.solute.is_some() {
                let expected = s.expected_acceptance();
                println!("expected acceptance: {:.2e} ± {:.1e}", expected.value, expected.standard_error);
            }
            let [relaxations, accepted] = jumping.relaxations();
            if relaxations > 0 {
                let share = 100.0 * accepted as f64 / relaxations as f64;
                println!("{relaxations} relaxations of the solvent, {share:.0} % accepted");
            }
            if self.is_delayed() {
                let number = |value: f64, digits: usize| match value.is_finite() {
                    true => format!("{value:.digits$}"),
                    false => "–".into(), // nothing passed
                };
                println!(
                    "{} passed the screen, {} exact log-densities, second-stage acceptance {} %, Var(ln c) {}",
                    s.screened(),
                    s.exact_evaluations(),
                    number(100.0 * s.second_stage_acceptance(), 1),
                    number(s.correction_variance(), 3)
                );
            }
        }
    }
}
