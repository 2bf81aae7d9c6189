//! The run: a pilot run, then the annealing, with a checkpoint after every temperature.

use super::{Moves, Resampling, Smc};
use crate::common::{claim, evaluations, hash_of, load, require_described, target_of, temperature, Progress};
use clap::ValueEnum;
use modejump::annealing::{
    even, Annealing, Bridge, Kernel, Options, Pilot, Progress as Stage, Temperatures, FEWEST_PILOTS,
    MOST_LEAPFROG_STEPS,
};
use modejump::io::checkpoint::{self, Identity, Kind};
use modejump::io::trajectory::{self, Frames};
use modejump::io::{check_apart, check_writable};
use modejump::models::steering::{dimension_without_auxiliary, follow, JointTarget, Steering};
use modejump::models::Model;
use modejump::parallel::{self, Ranks};
use modejump::weights;
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

const RUN: Kind = Kind { magic: *b"MJ-ANNEA", version: 9 };
/// Largest number of stages of a pilot run.
const MOST_STAGES: usize = 10_000;
/// Largest number of temperatures of a run.
const LARGEST_PLAN: usize = 10_000_000;
const PILOTS: usize = 200;
const LEAPFROG_STEPS: usize = 5;
/// nm²
const STEP: f64 = 2e-6;

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

/// Errors: a model without a gradient, or one that keeps bond lengths, which is told before long work.
fn check_model(model: &dyn Model) -> Result<()> {
    let origin = vec![0.0; model.dimension()];
    model.log_density_gradient(&origin, &mut evaluations(1), &mut origin.clone())?;
    if !model.card().kept_bonds().is_empty() {
        return Err(Error::Unsupported(
            "annealed paths move every atom and do not keep bond lengths: use a model without constrained bonds, and a System \
             without constraints"
                .into(),
        ));
    }
    Ok(())
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
        if ranks.is_first() {
            self.check_outputs(model.as_ref())?;
        }
        check_model(model.as_ref())?;
        let mut target = target_of(&self.system, model.as_ref(), temperature, &self.platform)?;
        require_described(&self.system, &mut target, model.as_ref(), false)?;
        let steering = model.steering().unwrap_or(Steering::NONE);
        let mut target = JointTarget::new(&mut target, steering);
        let mut bridge = Bridge { ranks, steering, ..Bridge::new(model.as_ref(), &mut target) };
        let identity = self.identity(model.as_ref(), temperature)?;
        let mut run = match self.saved(ranks, &identity)? {
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

    /// Errors: an output that cannot be written, or would overwrite another file of the run.
    fn check_outputs(&self, model: &dyn Model) -> Result<()> {
        let given = || [&self.model, &self.system].into_iter();
        if let Some(path) = &self.output {
            check_apart(path, given().chain(&self.checkpoint).chain(&self.log))?;
            trajectory::require_array(path, "log_weight")?;
            trajectory::check(path, dimension_without_auxiliary(model), model.card().topology.as_ref())?;
        }
        if let Some(path) = &self.log {
            check_apart(path, given().chain(&self.checkpoint))?;
            check_writable(path)?;
        }
        if let Some(path) = &self.checkpoint {
            check_apart(path, given())?;
            check_writable(path)?;
            claim(path)?;
        }
        Ok(())
    }

    /// The state at --checkpoint, if there is one, the same on all ranks. Errors: another run's, or other options on
    /// some rank.
    fn saved(&self, ranks: &dyn Ranks, identity: &Identity) -> Result<Option<Saved>> {
        ranks.same_run(identity)?;
        let saved = match &self.checkpoint {
            Some(path) => checkpoint::load_run::<Saved>(path, RUN, identity)?,
            None => None,
        };
        ranks.same(&numbers(&saved), "a checkpoint (it must be on a file system shared by all ranks)")?;
        match saved.as_ref().filter(|_| ranks.is_first()) {
            Some(State::Pilot(pilot)) => eprintln!("resuming the pilot run from t = {:.4}", pilot.t()),
            Some(State::Run(run)) => {
                eprintln!("resuming from t = {:.4}", run.history.last().map_or(0.0, |stage| stage.t));
            }
            None => {}
        }
        Ok(saved)
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
        let run = run.with("-n", n).with("--seed", seed).with_some("--stages", stages.as_ref()).with("--share", share);
        let run =
            run.with("--pilots", pilots.unwrap_or(PILOTS)).with("--moves", moves.get_name()).with("--repeat", repeat);
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
}
