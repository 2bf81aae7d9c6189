//! `modejump train`

mod energy;
mod field;
mod files;
mod modes;
mod regression;
mod resample;
mod rigid;
mod tarflow;
mod transferable;

use crate::common::{
    describe_training, hash_of, interrupted, parse_json, require_bonds, watch_signals, PlatformFlag, Weights,
    CHECKPOINT_INTERVAL,
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use modejump::coordinates::Topology;
use modejump::io::model_file::{self, ModelFile};
use modejump::io::{checkpoint, trajectory, write_atomically};
use modejump::models::coupling::CouplingFlow;
use modejump::models::steering::dimension_without_auxiliary;
use modejump::models::{self, Model, ModelCard};
use modejump::modes::{Modes, Within};
use modejump::target::Target;
use modejump::train::{design, DesignOptions, Map, Phase, Progress, TrainOptions, TrainState, Trainer};
use modejump::{Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{json, Map as JsonMap, Value};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Models that can be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    /// Normalizing flow in internal coordinates: the generator of the moves
    Coupling,
    /// Continuous flow on geometric vector perceptrons, by flow matching
    GvpFlow,
    /// Continuous flow on an E(n)-equivariant graph network, by flow matching
    EgnnFlow,
    /// Autoregressive flow of transformers over Cartesian coordinates, by maximum likelihood
    Tarflow,
    /// The same for all peptides (Prose), trained on one or more of them
    TransferableTarflow,
    /// Energy-based model of the frames' density (samples of a generator), by score matching and contrastive estimation
    GraphormerEbm,
    /// Energy-based model of one molecule in its distances and volumes, trained likewise
    InvariantEbm,
    /// Energy-based model on geometric vector perceptrons
    GvpEbm,
    /// Energy-based model on a perceptron of all coordinates, which is not invariant under rotations: for few atoms
    MlpEbm,
}

impl Kind {
    /// As on the command line and in model files.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

#[derive(Args, Clone)]
pub struct Train {
    /// What to train
    #[arg(long, value_enum, default_value_t = Kind::Coupling)]
    model: Kind,
    /// Topology: PDB file with the atoms in the engine's order
    #[arg(long)]
    topology: PathBuf,
    /// OpenMM System (XML): energies for reverse KL and refinement, constraints, and molecular dynamics for frames
    #[arg(long)]
    system: Option<PathBuf>,
    #[command(flatten)]
    platform: PlatformFlag,
    /// Training frames, one or more files: pdb, gro, dcd, xtc, trr, npy, or safetensors with `x` [frame][atom][3] in nm
    #[arg(long, num_args = 1..)]
    frames: Vec<PathBuf>,
    /// Draw as many frames of each file of --frames anew in proportion to their weights, for a model that learns the target from samples
    /// of its own: `log_weight` of the file, as `smc` writes it, else exp(-u)/q of its `log_density`, as `sample` writes it, and
    /// --system. What is done to the weights before
    #[arg(long, value_enum, requires = "frames", num_args = 0..=1, default_missing_value = "raw")]
    resample: Option<Weights>,
    /// Temperature, K; without it that of the model of --start, else 300 K
    #[arg(long)]
    temperature: Option<f64>,
    /// Settings (JSON with `design`, `train` and `explore`, or under the name of the model, such as `gvp_ebm`); defaults where
    /// absent. Sections that the model does not read are refused
    #[arg(long)]
    config: Option<PathBuf>,
    /// Start from this model instead of a new one, with its settings of size and its order of atoms
    #[arg(long)]
    start: Option<PathBuf>,
    /// Train the far end of a map between ensembles, for learned replica exchange: this coupling flow (at its
    /// temperature) maps from the ensemble of --frames, the trained one to that of --system at --temperature. Without
    /// --start the map begins as the identity, without --frames they are generated at the temperature of this flow
    #[arg(long)]
    map_from: Option<PathBuf>,
    /// The trained model; a figure of the training is drawn beside it, or replaced, under the same name with the extension svg
    #[arg(short, long)]
    output: PathBuf,
    /// Where generated frames are kept; with --checkpoint they are taken from there when the file exists (default then:
    /// beside the checkpoint)
    #[arg(long, conflicts_with = "frames")]
    keep_frames: Option<PathBuf>,
    /// State of the training, written every minute and on SIGINT or SIGTERM once there are frames (those that are generated are kept beside it when all
    /// are there); when the file exists, training goes on from it
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Training log (JSON, an object a line)
    #[arg(long)]
    log: Option<PathBuf>,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    /// Train one generator for each of the metastable states of this description (JSON), to jump between them; of coupling flows only
    #[arg(long, conflicts_with_all = ["start", "map_from"])]
    modes: Option<PathBuf>,
}

/// The sections of `--config` as they are written.
type Sections = JsonMap<String, Value>;

/// The file behind `--config`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    design: DesignOptions,
    train: TrainOptions,
    /// With --modes: how the bijections between the first mode and the others are trained after the generators, if they are.
    jump: Option<TrainOptions>,
    gvp_flow: field::GvpDesign,
    egnn_flow: field::EgnnDesign,
    tarflow: tarflow::TarflowDesign,
    transferable_tarflow: transferable::TransferableDesign,
    graphormer_ebm: energy::GraphormerDesign,
    invariant_ebm: energy::InvariantDesign,
    gvp_ebm: energy::GvpEnergyDesign,
    mlp_ebm: energy::MlpDesign,
    #[cfg(feature = "openmm")]
    explore: modejump::train::dynamics::ExploreOptions,
}

impl Train {
    pub fn run(mut self) -> Result<()> {
        if self.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
            let reason =
                "is where the figure of the training goes; give the model another extension, such as safetensors";
            return Err(Error::file(&self.output, reason));
        }
        if self.map_from.is_some() && self.model != Kind::Coupling {
            return Err(Error::invalid("--map-from trains coupling flows: leave --model out"));
        }
        if self.modes.is_some() && self.model != Kind::Coupling {
            return Err(Error::invalid(format!("--modes trains coupling flows, not {}", self.model.name())));
        }
        trajectory::require_tensors(&self.output, "models")?;
        let config = self.config()?;
        self.check_files(&config)?;
        self.temperature = Some(self.temperature()?);
        let (topology, x0) = Topology::from_pdb(&self.topology)?;
        self.check_system(&topology)?;
        self.check_settings(&config, 3 * topology.n_atoms())?;
        let plan = self.modes.as_ref().map(|path| self.plan(path, &config, 3 * topology.n_atoms())).transpose()?;
        let frames = match self.resample {
            Some(_) => self.resampled(&self.frames, &topology, 0)?,
            None => self.frames(&config, &topology, &x0)?,
        };
        self.tell_rigid_bonds(&topology, &frames)?;
        if self.checkpoint.is_some() {
            watch_signals()?;
        }
        let summary = match self.model {
            Kind::Coupling => match plan {
                Some(plan) => self.modes(plan, config, &topology, &frames),
                None => self.coupling(self.flow(&config, &topology, &frames)?, &frames, None, config.train),
            },
            Kind::GvpFlow => self.gvp_flow(&config.gvp_flow, topology, &x0, frames),
            Kind::EgnnFlow => self.egnn_flow(&config.egnn_flow, topology, &x0, frames),
            Kind::Tarflow => self.tarflow(&config.tarflow, topology, &x0, frames),
            Kind::TransferableTarflow => self.transferable(&config.transferable_tarflow, topology, &x0, frames),
            Kind::GraphormerEbm => self.graphormer_ebm(&config.graphormer_ebm, topology, frames),
            Kind::InvariantEbm => self.invariant_ebm(&config.invariant_ebm, topology, &x0, frames),
            Kind::GvpEbm => self.gvp_ebm(&config.gvp_ebm, topology, frames),
            Kind::MlpEbm => self.mlp_ebm(&config.mlp_ebm, topology, frames),
        }?;
        self.report(&summary);
        Ok(())
    }

    /// Before frames are made, which takes long. Errors name the setting that is out of range.
    fn check_settings(&self, config: &Config, dimension: usize) -> Result<()> {
        if self.map_from.is_some() {
            config.train.check_for_map()?;
            self.system.as_ref().ok_or_else(map_without_energies)?;
        }
        let network = match self.model {
            Kind::Coupling => return config.train.check(dimension, self.map_from.is_none(), self.system.is_some()),
            Kind::GvpFlow => &config.gvp_flow.train,
            Kind::EgnnFlow => &config.egnn_flow.train,
            Kind::Tarflow => &config.tarflow.train,
            Kind::TransferableTarflow => &config.transferable_tarflow.train,
            Kind::GraphormerEbm => &config.graphormer_ebm.train,
            Kind::InvariantEbm => &config.invariant_ebm.train,
            Kind::GvpEbm => &config.gvp_ebm.train,
            Kind::MlpEbm => &config.mlp_ebm.train,
        };
        network.check()
    }

    /// The summary of all that was trained, or the names of its figures.
    fn report(&self, summary: &Value) {
        if self.json {
            return println!("{summary}");
        }
        let parts = summary["trainings"].as_object().into_iter().flat_map(JsonMap::values);
        [summary]
            .into_iter()
            .chain(parts)
            .filter_map(|part| part["figure"].as_str())
            .for_each(|path| println!("{path}"));
    }

    /// That asked for, else that of the model to start from, else 300 K. Errors: a number that is not positive.
    fn temperature(&self) -> Result<f64> {
        let of_start = match &self.start {
            Some(path) => temperature_of(path)?,
            None => None,
        };
        let temperature = self.temperature.or(of_start).unwrap_or(300.0);
        modejump::target::require_temperature(temperature)?;
        if let (Some(path), Some(of_start)) = (&self.start, of_start.filter(|t| *t != temperature)) {
            eprintln!("note: {} is of {of_start} K, what is trained from it of {temperature} K", path.display());
        }
        Ok(temperature)
    }

    /// As `run` has found it.
    fn kelvin(&self) -> f64 {
        self.temperature.unwrap_or(300.0)
    }

    /// That of the frames, K: for a map that of the ensemble that is mapped from. Errors: a model of it that does not say.
    fn kelvin_of_frames(&self) -> Result<f64> {
        let Some(path) = &self.map_from else { return Ok(self.kelvin()) };
        temperature_of(path)?.ok_or_else(|| {
            Error::file(path, "does not say at which temperature it is: write it with `modejump train --temperature`")
        })
    }

    /// The model to start from. Errors: atoms in another order than --topology has them; another number is for the caller to tell.
    fn start_model(&self, path: &Path, topology: &Topology) -> Result<ModelFile> {
        let file = read_model(path)?;
        if let Some(own) = file.card.topology.as_ref().filter(|own| own.n_atoms() == topology.n_atoms()) {
            own.require_order(topology, "model to start from")
                .map_err(|e| Error::file(&self.topology, e.to_string()))?;
        }
        Ok(file)
    }

    /// Names the model's design, whatever the command that asked for it, the parameters it begins with, the frames, and the model to start
    /// from.
    fn identity(&self, card: &ModelCard, parameters: &[f32], frames: &[f64]) -> Result<String> {
        let mut card = card.clone();
        card.provenance.clear();
        let card = serde_json::to_string(&card).map_err(|e| Error::invalid(format!("the model's description: {e}")))?;
        let parameters: Vec<u8> = parameters.iter().flat_map(|v| v.to_le_bytes()).collect();
        let frames: Vec<u8> = frames.iter().flat_map(|v| v.to_le_bytes()).collect();
        let start = self.start.as_deref().map(hash_of).transpose()?.map_or(String::new(), |hash| format!(" {hash}"));
        let [card, parameters, frames] = [card.as_bytes(), &parameters, &frames].map(model_file::hash);
        Ok(format!("{card} {parameters} {frames}{start} {}", self.platform.platform))
    }

    fn flow(&self, config: &Config, topology: &Topology, frames: &[f64]) -> Result<CouplingFlow<f32>> {
        match self.start.as_ref().or(self.map_from.as_ref()) {
            Some(path) => {
                let flow = CouplingFlow::from_file(&self.start_model(path, topology)?)
                    .map_err(|e| Error::file(path, format!("{e}; --model says what is trained")))?;
                let (atoms, own) = (topology.n_atoms(), dimension_without_auxiliary(&flow));
                match own == 3 * atoms {
                    true => Ok(flow),
                    false => Err(Error::file(
                        path,
                        format!("a model of {own} coordinates, and {atoms} atoms have {}", 3 * atoms),
                    )),
                }
            }
            None => design(topology, frames, &self.constraints()?, &config.design),
        }
    }

    /// Trains one flow; for the generator of a mode, energies count in the mode alone.
    fn coupling(
        &self,
        mut flow: CouplingFlow<f32>,
        frames: &[f64],
        mode: Option<(&Modes, usize)>,
        options: TrainOptions,
    ) -> Result<Value> {
        self.complete(flow.card_mut())?;
        eprintln!("{} parameters, {:.2} MFLOP a sample", flow.parameters().len(), flow.flops() * 1e-6);
        let mut target = self.target()?;
        let target: Option<&mut dyn Target> = match target.as_mut() {
            Some(target) => Some(target.as_mut()),
            None => None,
        };
        let mut within = None;
        let mut target: Option<&mut dyn Target> = match (target, mode) {
            (Some(target), Some((modes, mode))) => Some(within.insert(Within { target, modes: modes.clone(), mode })),
            (target, _) => target,
        };
        let mut identity = self.identity(flow.card(), flow.parameters(), frames)?;
        let map = match (&self.map_from, target.as_deref_mut()) {
            (None, _) => None,
            (Some(_), None) => return Err(map_without_energies()),
            (Some(path), Some(target)) => {
                options.check_for_map()?;
                let from = models::load(path)?;
                identity = format!("{identity} from {}", from.hash());
                flow.card_mut().provenance.insert("map_from".into(), from.hash().into());
                Some(self.map(from.as_ref(), target, frames, options.held_out)?)
            }
        };
        let frames = if map.is_some() { &[] } else { frames };
        let saved = self.saved_state(&identity, |state: &TrainState| (state.step, state.options == options))?;
        let trainer = match saved {
            Some(state) => Trainer::resume(flow, frames, target, state)?,
            None => Trainer::new(flow, frames, target, options)?,
        };
        match map {
            Some(map) => self.train(trainer.with_map(map)?, &identity),
            None => self.train(trainer, &identity),
        }
    }

    /// The frames of the ensemble that is mapped from. Both ensembles have one System, so that their reduced potentials
    /// differ by the temperature alone.
    fn map(&self, from: &dyn Model, target: &mut dyn Target, frames: &[f64], held_out: f64) -> Result<Map> {
        let temperature = self.kelvin_of_frames()?;
        let mut u = vec![0.0; frames.len() / from.dimension().max(1)];
        target.reduced_potential(frames, &mut u)?;
        u.iter_mut().for_each(|u| *u *= self.kelvin() / temperature);
        Map::new(from, frames, &u, held_out)
    }

    /// log q of the n frames, from their files; NaN where it is not known: frames drawn anew have another.
    fn log_densities(&self, n: usize) -> Result<Vec<f64>> {
        match self.frames.is_empty() || self.resample.is_some() {
            true => Ok(vec![f64::NAN; n]),
            false => Ok(self.frames.iter().map(|path| read_log_densities(path)).collect::<Result<Vec<_>>>()?.concat()),
        }
    }

    /// What every card says of its training.
    fn complete(&self, card: &mut ModelCard) -> Result<()> {
        describe_training(card, self.kelvin(), self.system.as_deref())
    }

    /// The state to go on from, if there is one; an error if it belongs to another training.
    /// `about` tells its step, and whether its options are those asked for.
    fn saved_state<S: DeserializeOwned>(
        &self,
        identity: &str,
        about: impl Fn(&S) -> (usize, bool),
    ) -> Result<Option<S>> {
        let Some(path) = self.checkpoint.as_deref() else { return Ok(None) };
        let Some(state) = checkpoint::load_run(path, checkpoint::TRAINING, identity)? else { return Ok(None) };
        let (step, same_options) = about(&state);
        if !same_options {
            let reason = "belongs to other training options: give those it began with, or remove it to begin anew";
            return Err(Error::file(path, reason));
        }
        eprintln!("going on from step {step} of {}", path.display());
        Ok(Some(state))
    }

    fn save_state(&self, training: &mut impl Training, identity: &str) -> Result<()> {
        match &self.checkpoint {
            Some(path) => training.save_state(path, identity),
            None => Ok(()),
        }
    }

    fn config(&self) -> Result<Config> {
        let (mut config, sections): (Config, Sections) = match &self.config {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
                let (config, sections) = (parse_json(path, &text)?, parse_json(path, &text)?);
                self.check_sections(path, &sections)?;
                (config, sections)
            }
            None => Default::default(),
        };
        let names_phases = |section: &str| sections.get(section).is_some_and(|section| section.get("phases").is_some());
        if !names_phases("train") {
            if self.map_from.is_some() {
                config.train.phases = vec![Phase::of_map()];
            } else if self.system.is_some() {
                config.train.phases = Phase::with_energies();
            }
        }
        if let Some(jump) = config.jump.as_mut().filter(|_| !names_phases("jump")) {
            jump.phases = vec![Phase::of_map()];
        }
        Ok(config)
    }

    /// Settings that this model's training never reads are refused, those that it does not read this time are told.
    fn check_sections(&self, path: &Path, sections: &Sections) -> Result<()> {
        let read = self.sections();
        if let Some(name) = sections.keys().find(|name| !read.contains(name)) {
            let reason =
                format!("`{name}` has no effect on this training, which reads {}: leave it out", read.join(", "));
            return Err(Error::file(path, reason));
        }
        let model = self.model.name();
        let options = sections.get(&model).and_then(|section| section.get("train"));
        let given = |name: &&str| options.and_then(|options| options.get(name)).is_some_and(|value| !value.is_null());
        let matches_flows = matches!(self.model, Kind::GvpFlow | Kind::EgnnFlow);
        if let Some(name) = ["pairing", "largest_weight"].iter().find(|name| !matches_flows && given(name)) {
            let reason =
                format!("`{name}` of `{model}.train` has no effect: it is of flow matching alone; leave it out");
            return Err(Error::file(path, reason));
        }
        if self.model.name().ends_with("_ebm") && given(&"emphasis") {
            let reason = format!(
                "`emphasis` of `{model}.train` would make the energy that of other frames than those of --frames, which no weight takes back: \
                 it is of flows alone; leave it out"
            );
            return Err(Error::file(path, reason));
        }
        let unused = [
            ("design", self.start.is_some(), "the model of --start has its own"),
            ("design", self.map_from.is_some() && self.start.is_none(), "the model of --map-from has its own"),
            ("explore", !self.frames.is_empty(), "frames are those of --frames"),
        ];
        for (name, _, reason) in unused.iter().filter(|(name, is_unused, _)| *is_unused && sections.contains_key(*name))
        {
            eprintln!("note: `{name}` of {} is not used: {reason}", path.display());
        }
        Ok(())
    }

    /// What the training reads of the configuration.
    fn sections(&self) -> Vec<String> {
        let own = match (self.model, &self.modes) {
            (Kind::Coupling, None) => vec!["design".into(), "train".into()],
            (Kind::Coupling, Some(_)) => vec!["design".into(), "train".into(), "jump".into()],
            (other, _) => vec![other.name()],
        };
        [own, vec!["explore".into()]].concat()
    }

    /// The loop of every training. Returns its summary.
    fn train(&self, mut trainer: impl Training, identity: &str) -> Result<Value> {
        let mut saved = Instant::now();
        let bar = ProgressBar::new(trainer.total_steps() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} left {eta_precise} {msg}")
        {
            bar.set_style(style);
        }
        let mut log: String = trainer.history().iter().map(log_line).collect();
        while !trainer.is_finished() {
            if let Some(progress) = trainer.step()? {
                bar.set_message(line(&progress));
                let report = format!("{:>7} {}", progress.step, line(&progress));
                if bar.is_hidden() {
                    eprintln!("{report}");
                } else {
                    bar.println(report);
                }
                log += &log_line(&progress);
                if let Some(path) = &self.log {
                    write_atomically(path, log.as_bytes())?;
                }
                trainer.save_model(&self.output)?;
            }
            bar.set_position(trainer.step_count() as u64);
            let stop = interrupted();
            if stop || saved.elapsed() > CHECKPOINT_INTERVAL {
                self.save_state(&mut trainer, identity)?;
                saved = Instant::now();
            }
            if stop && !trainer.is_finished() {
                bar.abandon();
                return Err(Error::invalid(format!(
                    "interrupted at step {}; the same command goes on from there",
                    trainer.step_count()
                )));
            }
        }
        bar.finish();
        self.save_state(&mut trainer, identity)?;
        trainer.save_model(&self.output)?;
        let figure = self.figure();
        super::plot::training_figure(&figure, trainer.history())?;
        Ok(json!({
            "output": self.output.display().to_string(),
            "figure": figure.display().to_string(),
            "model": self.model.name(),
            "steps": trainer.step_count(),
            "last": trainer.history().last(),
        }))
    }
}

#[cfg(feature = "openmm")]
impl Train {
    /// Errors: a System of other atoms, or with its atoms in another order.
    fn check_system(&self, topology: &Topology) -> Result<()> {
        match (self.open_system()?, &self.system) {
            (Some(system), Some(path)) => {
                topology.require_masses(&system.masses()).map_err(|e| Error::file(path, e.to_string()))
            }
            _ => Ok(()),
        }
    }

    fn open_system(&self) -> Result<Option<modejump::engines::openmm::System>> {
        self.system.as_ref().map(|path| self.platform.read_system(path)).transpose()
    }

    fn target(&self) -> Result<Option<Box<dyn Target>>> {
        let open =
            |system| modejump::engines::openmm::OpenMmTarget::new(&system, self.kelvin(), super::common::threads());
        Ok(self.open_system()?.map(open).transpose()?.map(|t| Box::new(t) as Box<dyn Target>))
    }

    fn constraints(&self) -> Result<Vec<(usize, usize, f64)>> {
        self.open_system()?.map_or(Ok(Vec::new()), |system| system.constraints())
    }

    fn frames(&self, config: &Config, topology: &Topology, x0: &[f64]) -> Result<Vec<f64>> {
        if !self.frames.is_empty() {
            return read_frames(&self.frames, topology);
        }
        let keep = self.kept_frames();
        let (Some(system), Some(file)) = (self.open_system()?, &self.system) else {
            return Err(Error::invalid("give --frames, or --system to generate them"));
        };
        let giver = if self.map_from.is_some() { "that of --map-from" } else { "--temperature" };
        let options = super::common::explore_at(&config.explore, giver, self.kelvin_of_frames()?)?;
        let explored = serde_json::to_string(&options).map_err(|e| Error::invalid(format!("the settings: {e}")))?;
        let origin = format!("{} {explored} {}", hash_of(file)?, self.platform.platform);
        if let Some(kept) = keep.as_ref().filter(|path| self.checkpoint.is_some() && path.exists()) {
            eprintln!("frames of {}", kept.display());
            require_origin(kept, &origin)?;
            return read_frames(std::slice::from_ref(kept), topology);
        }
        let steps = options.steps() as f64 / 1e6;
        eprintln!("{} frames: {steps:.1} million steps of molecular dynamics", options.frames);
        let bar = ProgressBar::new(options.frames as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} frames {elapsed_precise} left {eta_precise}")
        {
            bar.set_style(style);
        }
        let told = std::cell::Cell::new(Instant::now());
        let progress = |n: usize| {
            bar.set_position(n as u64);
            if bar.is_hidden() && told.get().elapsed() > REPORT_INTERVAL {
                eprintln!("{n} of {} frames", options.frames);
                told.set(Instant::now());
            }
        };
        let threads = super::common::threads();
        let mut frames = modejump::train::dynamics::explore(&system, x0, &options, threads, &progress)?;
        bar.finish();
        if let Some(path) = &keep {
            // as they will be read again: a continued training sees the same frames, bit for bit
            frames.iter_mut().for_each(|v| *v = f64::from(*v as f32));
            let shape = vec![frames.len() / x0.len(), x0.len() / 3, 3];
            let data = model_file::Data::F32(frames.iter().map(|&v| v as f32).collect());
            let tensors = std::collections::BTreeMap::from([("x".to_string(), (shape, data))]);
            let metadata = std::collections::HashMap::from([(ORIGIN.to_string(), origin)]);
            modejump::io::write_atomically(path, &model_file::write_tensors(&tensors, metadata)?)?;
        }
        Ok(frames)
    }
}

#[cfg(not(feature = "openmm"))]
impl Train {
    fn check_system(&self, _: &Topology) -> Result<()> {
        Ok(()) // the first use of its energies says that this build has none
    }

    fn target(&self) -> Result<Option<Box<dyn Target>>> {
        match &self.system {
            Some(_) => Err(Error::Unsupported("--system needs a build with `--features openmm`".into())),
            None => Ok(None),
        }
    }

    fn constraints(&self) -> Result<Vec<(usize, usize, f64)>> {
        Ok(Vec::new())
    }

    fn frames(&self, _: &Config, topology: &Topology, _: &[f64]) -> Result<Vec<f64>> {
        match self.frames.is_empty() {
            true => Err(Error::invalid("give --frames")),
            false => read_frames(&self.frames, topology),
        }
    }
}

/// A training that the loop can drive.
trait Training {
    fn step(&mut self) -> Result<Option<Progress>>;
    fn step_count(&self) -> usize;
    fn total_steps(&self) -> usize;
    fn is_finished(&self) -> bool;
    fn history(&mut self) -> &[Progress];
    fn save_state(&mut self, path: &Path, identity: &str) -> Result<()>;
    /// Writes the model with averaged parameters, the best so far where the training tells it.
    fn save_model(&self, path: &Path) -> Result<()>;
}

impl Training for Trainer<'_> {
    fn step(&mut self) -> Result<Option<Progress>> {
        Trainer::step(self)
    }

    fn step_count(&self) -> usize {
        Trainer::step_count(self)
    }

    fn total_steps(&self) -> usize {
        Trainer::total_steps(self)
    }

    fn is_finished(&self) -> bool {
        Trainer::is_finished(self)
    }

    fn history(&mut self) -> &[Progress] {
        &self.state().history
    }

    fn save_state(&mut self, path: &Path, identity: &str) -> Result<()> {
        checkpoint::save_run(path, checkpoint::TRAINING, identity, self.state())
    }

    fn save_model(&self, path: &Path) -> Result<()> {
        self.best()?.save(path)
    }
}

fn log_line(progress: &Progress) -> String {
    serde_json::to_string(progress).unwrap_or_default() + "\n"
}

/// In the metadata of frames that were generated: of which System, and how.
#[cfg(feature = "openmm")]
const ORIGIN: &str = "origin";
/// Between lines about frames that are made, where no bar shows them.
#[cfg(feature = "openmm")]
const REPORT_INTERVAL: std::time::Duration = std::time::Duration::from_secs(20);

#[cfg(feature = "openmm")]
fn require_origin(path: &Path, origin: &str) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (_, metadata) = model_file::read_tensors(&path.display().to_string(), &bytes)?;
    match metadata.get(ORIGIN).is_some_and(|kept| kept == origin) {
        true => Ok(()),
        false => Err(Error::file(
            path,
            "has the frames of another System, another temperature or other `explore` settings: give those it began with, or remove \
             it and the checkpoint beside it to begin anew (or give it as --frames, to train on it all the same)",
        )),
    }
}

fn read_frames(paths: &[PathBuf], topology: &Topology) -> Result<Vec<f64>> {
    let mut x = Vec::new();
    for path in paths {
        let frames = trajectory::read_of(path, topology, "topology")?;
        trajectory::require_nanometres(path, &frames, topology)?;
        require_bonds(path, &frames, topology, "topology")?;
        x.extend(frames.x);
    }
    Ok(x)
}

/// `log_density` [n] of a file of n frames; NaN where there is none, and for frames outside the density's support.
fn read_log_densities(path: &Path) -> Result<Vec<f64>> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        return Ok(vec![f64::NAN; trajectory::read(path)?.n()]);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (mut tensors, _) = model_file::read_tensors(&path.display().to_string(), &bytes)?;
    let frames = tensors.get("x").and_then(|x| x.shape.first()).copied().unwrap_or(0);
    let values = tensors.remove("log_density").map_or(vec![f64::NAN; frames], |tensor| tensor.data);
    match values.len() == frames {
        true => Ok(values.into_iter().map(|v| if v.is_finite() { v } else { f64::NAN }).collect()),
        false => Err(Error::file(path, format!("log_density has {} numbers for {frames} frames", values.len()))),
    }
}

fn map_without_energies() -> Error {
    Error::invalid("--map-from needs energies: give --system")
}

/// K, if the file of the model tells it.
fn temperature_of(path: &Path) -> Result<Option<f64>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    Ok(model_file::read_card(&path.display().to_string(), &bytes)?.temperature)
}

/// The model file of --start.
fn read_model(path: &Path) -> Result<ModelFile> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    model_file::read(&path.display().to_string(), &bytes)
}

/// The numbers that matter, for the progress line.
fn line(p: &Progress) -> String {
    let item = |name: &str, value: f64, digits: usize| match value.is_nan() {
        true => String::new(),
        false => format!("{name} {value:.digits$}  "),
    };
    [
        item("loss", p.loss, 4),
        item("held-out", p.held_out_loss, 4),
        item("sd(ln q)", p.deviation, 3),
        item("nll", p.likelihood, 3),
        item("held-out", p.held_out, 3),
        item("kl", p.reverse_kl, 3),
        item("rc", p.reaction_coordinate, 3),
        item("refine", p.refinement, 3),
        item("|F-dlnq|^2", p.force_matching, 0),
        item("|g|", p.gradient_norm, 2),
        item("ESS %", 100.0 * p.ess, 2),
        item("k", p.pareto_k, 2),
        item("accept %", 100.0 * p.acceptance, 1),
        p.better.map_or(String::new(), |step| format!("worse than step {step}, which is kept")),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "`key` = value" of all settings below, in order; null for what has no default.
    fn settings(section: &Value, found: &mut Vec<String>) {
        for (key, value) in section.as_object().into_iter().flatten() {
            match value {
                Value::Object(_) => settings(value, found),
                Value::Array(phases) if phases.iter().any(Value::is_object) => {
                    phases.iter().for_each(|phase| settings(phase, found))
                }
                value => found.push(format!("`{key}` = {value}")),
            }
        }
    }

    #[test]
    fn without_settings_a_system_decides_about_the_phases() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            train: Train,
        }
        let phases = |more: &[&str]| {
            let line = [&["train", "--topology", "a.pdb", "-o", "q.safetensors"], more].concat();
            <Line as clap::Parser>::parse_from(line).train.config().unwrap().train.phases
        };
        assert_eq!(phases(&["--frames", "x.npy"]), TrainOptions::default().phases);
        assert_eq!(phases(&["--frames", "x.npy", "--system", "s.xml"]), Phase::with_energies());
        assert_eq!(phases(&["--map-from", "p.safetensors", "--system", "s.xml"]), [Phase::of_map()]);
    }

    #[test]
    fn all_settings_are_documented_with_their_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/training.md");
        let text = std::fs::read_to_string(path).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        let mut found = Vec::new();
        settings(&serde_json::to_value(Config::default()).unwrap(), &mut found);
        found.sort();
        found.dedup();
        let missing: Vec<&String> = found.iter().filter(|setting| !text.contains(*setting)).collect();
        assert!(missing.is_empty() && found.len() > 60, "{missing:?}");
    }
}
