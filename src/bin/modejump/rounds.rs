//! Shared part of `modejump adapt` and `modejump explore`: rounds that simulate, train and freeze, in a folder.

use crate::common::PlatformFlag;
use clap::Args;
use modejump::Result;
use std::path::PathBuf;

#[derive(Args)]
pub struct RoundsArguments {
    /// Topology: PDB file with the atoms in the order of the System
    #[arg(long)]
    topology: PathBuf,
    /// OpenMM System (XML), without constraints
    #[arg(long)]
    system: PathBuf,
    /// Temperature, K
    #[arg(long, default_value_t = 300.0)]
    temperature: f64,
    /// Settings (JSON with `rounds`, `explore` for dynamics and hot replicas, `design` and `train`); defaults for those
    /// that are absent
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder for all files of the rounds; an earlier run in it is continued
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    platform: PlatformFlag,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

#[cfg(not(feature = "openmm"))]
impl RoundsArguments {
    pub fn run(self, _: Option<Vec<PathBuf>>) -> Result<()> {
        Err(modejump::Error::Unsupported("rounds need a build with `--features openmm`".into()))
    }
}

#[cfg(feature = "openmm")]
mod run {
    use super::*;
    use crate::common::{
        claim, describe_training, explore_at, hash_of, interrupted, parse_settings, read_frames, require_atoms,
        require_one_numbering, threads, warn_of_box, watch_signals, CHECKPOINT_INTERVAL,
    };
    use crate::dynamics::check_start;
    use indicatif::{ProgressBar, ProgressStyle};
    use modejump::coordinates::Topology;
    use modejump::engines::openmm::{OpenMmTarget, System};
    use modejump::io::checkpoint::{self, Identity};
    use modejump::io::{check_apart, make_folder, model_file, read_text, trajectory, write_atomically};
    use modejump::models::coupling::CouplingFlow;
    use modejump::train::rounds::{Frames, Record};
    use modejump::train::{check_design, design, dynamics, DesignOptions, ExploreOptions, Phase, TrainOptions};
    use modejump::train::{Rounds, RoundsOptions, RoundsState, Stage};
    use modejump::Error;
    use serde::{Deserialize, Serialize};
    use serde_json::Value;
    use std::time::Instant;

    /// Contents of the file given by `--config`.
    #[derive(Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Config {
        rounds: RoundsOptions,
        explore: ExploreOptions,
        design: DesignOptions,
        train: TrainOptions,
    }

    impl Default for Config {
        fn default() -> Config {
            Config {
                rounds: RoundsOptions::default(),
                explore: ExploreOptions { frames: 30_000, ..ExploreOptions::default() },
                design: DesignOptions::default(),
                train: TrainOptions { phases: Phase::with_energies(), ..TrainOptions::default() },
            }
        }
    }

    impl RoundsArguments {
        /// Runs the rounds. With `structures` it is an exploration: walkers start at the structures in these files, or
        /// at the configuration of the topology if there is no file, and walk in latent space, without hot replicas.
        pub fn run(self, structures: Option<Vec<PathBuf>>) -> Result<()> {
            self.check_apart(structures.as_deref().unwrap_or_default())?;
            let config = self.config(structures.is_some())?;
            // checked now, not after hours of walking
            config.train.check_temperatures(config.design.steerable)?;
            let (topology, x0) = Topology::from_pdb(&self.topology)?;
            check_start(&self.topology, &topology, &x0)?;
            let system = self.open_system(&topology)?;
            check_design(&topology, &x0, &[], &config.design)?;
            make_folder(&self.output)?;
            let starts = self.starts(structures.as_deref().unwrap_or_default(), &topology, &x0)?;
            let identity = self.identity(&config, &starts)?;
            let saved = self.saved_state(&identity)?;

            let minimised = |x: &[f64]| dynamics::minimised(&system, x, &config.explore);
            let starts = starts.chunks_exact(x0.len()).map(minimised).collect::<Result<Vec<_>>>()?.concat();
            let mut target = OpenMmTarget::new(&system, self.temperature, threads())?;
            let mut hot_target = OpenMmTarget::new(&system, config.explore.hot_temperature, threads())?;
            let new_generator = |frames: &[f64]| self.new_generator(&topology, &starts, frames, &config.design);
            let rounds = match saved {
                Some(state) => {
                    let mut rounds = Rounds::resume(&mut target, &mut hot_target, &new_generator, state)?;
                    rounds.set_production_steps(config.rounds.production_steps)?;
                    rounds
                }
                None => {
                    let options = (config.rounds.clone(), config.explore.clone(), config.train.clone());
                    let masses = system.masses();
                    Rounds::new(&mut target, &mut hot_target, &new_generator, &masses, &starts, options)?
                }
            };
            self.go(rounds, &identity, &topology)
        }

        /// Errors: an input file would be overwritten.
        fn check_apart(&self, structures: &[PathBuf]) -> Result<()> {
            for name in
                ["state.ckpt", "log.jsonl", "model.safetensors", "training.safetensors", "production.safetensors"]
            {
                let given = [&self.topology, &self.system].into_iter().chain(&self.config);
                check_apart(&self.file(name), given.chain(structures))?;
            }
            Ok(())
        }

        fn config(&self, explores: bool) -> Result<Config> {
            let mut config = match &self.config {
                None => Config::default(),
                Some(path) => parse_settings(path, &read_text(path)?)?,
            };
            config.explore = explore_at(&config.explore, "--temperature", self.temperature)?;
            if explores {
                config.explore.frames = 0;
                config.rounds.latent_walk.get_or_insert_default();
            }
            Ok(config)
        }

        fn starts(&self, structures: &[PathBuf], topology: &Topology, x0: &[f64]) -> Result<Vec<f64>> {
            if structures.is_empty() {
                return Ok(x0.to_vec());
            }
            let starts = read_frames(structures, topology)?;
            require_one_numbering(topology, &starts)?;
            Ok(starts)
        }

        fn open_system(&self, topology: &Topology) -> Result<System> {
            let system = self.platform.read_system(&self.system)?;
            require_atoms(&self.system, &system, topology)?;
            warn_of_box(&self.topology, &self.system, &system)?;
            match system.constraints()?.first() {
                None => Ok(system),
                Some((a, b, _)) => Err(Error::Unsupported(format!(
                    "{}: the bond between {} and {} is constrained, but the walkers of the rounds do not support constraints: use a \
                     System without them (constraints=None), or train with `modejump train` and run with `modejump md`",
                    self.system.display(),
                    topology.label(*a),
                    topology.label(*b)
                ))),
            }
        }

        fn identity(&self, config: &Config, starts: &[f64]) -> Result<Identity> {
            let starts: Vec<u8> = starts.iter().flat_map(|v| v.to_le_bytes()).collect();
            let run = Identity::default().with_content("file for --topology", hash_of(&self.topology)?);
            let run = run.with_content("file for --system", hash_of(&self.system)?);
            let run = run.with_content("set of structures to start from", model_file::hash(&starts));
            let mut settings = serde_json::to_value(config)
                .map_err(|e| Error::invalid(format!("could not serialise the settings: {e}")))?;
            // a production may be made longer
            settings["rounds"]["production_steps"] = Value::Null;
            // --temperature is part of `explore`
            run.with("--platform", &self.platform.platform).with_settings("", &settings)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.output.join(name)
        }

        fn saved_state(&self, identity: &Identity) -> Result<Option<RoundsState>> {
            let path = self.file("state.ckpt");
            claim(&path)?;
            let state = checkpoint::load_run(&path, checkpoint::ROUNDS, identity)?;
            let outputs = ["production.safetensors", "training.safetensors", "model.safetensors", "log.jsonl"];
            if state.is_some() {
                eprintln!("resuming from {}", path.display());
            } else if let Some(there) = outputs.iter().find(|name| self.file(name).exists()) {
                let reason = format!("contains {there} but no state.ckpt: use a new folder for new rounds");
                return Err(Error::file(&self.output, reason));
            }
            Ok(state)
        }

        fn save(&self, rounds: &mut Rounds, identity: &Identity) -> Result<()> {
            checkpoint::save_run(&self.file("state.ckpt"), checkpoint::ROUNDS, identity, rounds.state())
        }

        /// Designs a new generator. The starts come first, because the stereocentres of the first one become those of
        /// the generator.
        fn new_generator(
            &self,
            topology: &Topology,
            starts: &[f64],
            frames: &[f64],
            options: &DesignOptions,
        ) -> Result<CouplingFlow<f32>> {
            let mut flow = design(topology, &[starts, frames].concat(), &[], options)?;
            describe_training(flow.card_mut(), self.temperature, Some(&self.system))?;
            Ok(flow)
        }

        fn go(&self, mut rounds: Rounds, identity: &Identity, topology: &Topology) -> Result<()> {
            watch_signals()?;
            let bar = ProgressBar::new(1000);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg} {elapsed_precise}") {
                bar.set_style(style);
            }
            self.save(&mut rounds, identity)?; // before there is any other file
            let mut saved = Instant::now();
            while !rounds.is_finished() {
                let record = rounds.advance()?;
                bar.set_position((1000.0 * rounds.stage_progress()) as u64);
                if let Some(record) = &record {
                    bar.suspend(|| eprintln!("{}", line(record)));
                    self.write(rounds.state(), topology)?;
                }
                let stop = interrupted();
                if stop || record.is_some() || saved.elapsed() > CHECKPOINT_INTERVAL {
                    self.save(&mut rounds, identity)?;
                    saved = Instant::now();
                }
                if stop && !rounds.is_finished() {
                    bar.abandon();
                    return Err(Error::invalid("interrupted; run the same command again to resume"));
                }
            }
            bar.finish_and_clear();
            self.write(rounds.state(), topology)?;
            self.report(rounds.state())
        }

        /// Writes everything but the state, as far as the rounds have come.
        fn write(&self, state: &RoundsState, topology: &Topology) -> Result<()> {
            let log: String =
                state.log.iter().map(|record| serde_json::to_string(record).unwrap_or_default() + "\n").collect();
            write_atomically(&self.file("log.jsonl"), log.as_bytes())?;
            crate::plot::rounds_figure(&self.file(crate::plot::ROUNDS), &state.log)?;
            if !state.model.is_empty() {
                write_atomically(&self.file("model.safetensors"), &state.model)?;
            }
            let dimension = 3 * topology.n_atoms();
            let write = |name: &str, parts: &[&Frames], extra: &[(&str, &[f64])]| {
                let x = parts.iter().flat_map(|frames| frames.x.iter().copied()).collect();
                let frames = trajectory::Frames::new(dimension, x);
                let epoch: Vec<f64> = parts.iter().flat_map(|frames| &frames.epoch).map(|&e| f64::from(e)).collect();
                let extra = [extra, &[("epoch", &epoch[..])]].concat();
                trajectory::write(&self.file(name), &frames, Some(topology), &extra)
            };
            let walker = |n: usize| (0..n).map(|i| (i % state.options.walkers) as f64);
            let (cold, hot) = (state.chain.epoch.len(), state.heated.epoch.len());
            let of_hot: Vec<f64> = [vec![0.0; cold], vec![1.0; hot]].concat();
            let to_train = [("production", &vec![0.0; cold + hot][..]), ("hot", &of_hot)];
            write("training.safetensors", &[&state.chain, &state.heated], &to_train)?;
            let n = state.production.epoch.len();
            if n > 0 {
                let of_walker: Vec<f64> = walker(n).collect();
                let to_average = [("production", &vec![1.0; n][..]), ("walker", &of_walker)];
                write("production.safetensors", &[&state.production], &to_average)?;
            }
            Ok(())
        }

        fn report(&self, state: &RoundsState) -> Result<()> {
            let Some(last) = state.log.last() else { return Ok(()) };
            if let Some(doubt) = doubt(last, &state.options) {
                eprintln!("modejump: {doubt}; for a better generator, use more `rounds`, `steps` or training");
            }
            let path = |name: &str| self.file(name).display().to_string();
            let summary = serde_json::json!({
                "model": path("model.safetensors"),
                "frames": path("production.safetensors"),
                "log": path("log.jsonl"),
                "production": last,
            });
            match self.json {
                true => println!("{summary}"),
                false => println!("{}\n{}", line(last), path("production.safetensors")),
            }
            Ok(())
        }
    }

    /// Acceptance below which jumps contribute nothing to the averages.
    const HARDLY_ANY: f64 = 1e-3;

    /// Reason why the averages of this production may not be what is wanted, if there is one.
    fn doubt(last: &Record, asked: &RoundsOptions) -> Option<String> {
        let percent = |share: f64| 100.0 * share;
        if last.acceptance < HARDLY_ANY {
            return Some(format!(
                "{} in production ({:.2} % of {} proposals): it is effectively plain dynamics, and states that it did not visit are \
                 missing from the averages",
                if last.acceptance == 0.0 { "no jump was accepted" } else { "almost no jump was accepted" },
                percent(last.acceptance),
                last.attempts
            ));
        }
        (last.acceptance < asked.acceptance || last.ess < asked.ess).then(|| {
            format!(
                "production accepted {:.1} % of the proposals, with an ESS of {:.1} %, where {:.1} % and {:.1} % were requested: the \
                 averages are exact, but may converge slowly",
                percent(last.acceptance),
                percent(last.ess),
                percent(asked.acceptance),
                percent(asked.ess)
            )
        })
    }

    /// One line with the most important numbers of a record.
    fn line(record: &Record) -> String {
        let item = |name: &str, value: f64, digits: usize| match value.is_nan() {
            true => String::new(),
            false => format!("  {name} {value:.digits$}"),
        };
        let stage = match record.stage {
            Stage::Walk => "walk",
            Stage::Heat => "heat",
            Stage::Train => "train",
            Stage::Production | Stage::Finished => "production",
        };
        let trained = |f: fn(&modejump::train::Progress) -> f64| record.training.as_ref().map_or(f64::NAN, f);
        [
            format!("epoch {}  {stage}  {} frames", record.epoch, record.frames),
            item("accepted %", 100.0 * record.acceptance, 1),
            item("ESS %", 100.0 * record.ess, 1),
            item("in region %", 100.0 * record.population, 2),
            item("dF", record.delta_f, 3),
            item("±", record.delta_f_stderr, 3),
            item("held-out", trained(|p| p.held_out), 2),
            item("ESS %", 100.0 * trained(|p| p.ess), 1),
        ]
        .concat()
    }
}
