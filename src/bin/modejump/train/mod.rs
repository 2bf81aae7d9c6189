//! `modejump train`

mod beginning;
mod coupling;
mod drive;
mod energy;
mod field;
mod files;
mod frames;
mod modes;
mod regression;
mod resample;
mod rigid;
mod settings;
mod system;
mod tarflow;
mod transferable;
mod turns;

use crate::common::{claim, describe_training, hash_of, require_hands, watch_signals, PlatformFlag, Weights};
use crate::dynamics::check_start;
use clap::{Args, ValueEnum};
use modejump::coordinates::Topology;
use modejump::io::checkpoint::{self, Identity};
use modejump::io::model_file::{self, ModelFile};
use modejump::io::trajectory;
use modejump::models::{ModelCard, ModelConfig};
use modejump::{Error, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::{Map as JsonMap, Value};
use std::path::{Path, PathBuf};

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
    /// TarFlow for all peptides (Prose), trained on one or more of them
    TransferableTarflow,
    /// Energy-based model of the density of the frames (samples of a generator), by score matching and contrastive
    /// estimation
    GraphormerEbm,
    /// Energy-based model of one molecule in its distances and volumes, trained in the same way
    InvariantEbm,
    /// Energy-based model on geometric vector perceptrons
    GvpEbm,
    /// Energy-based model on a perceptron of all coordinates, for few atoms: it is not invariant under rotations
    MlpEbm,
}

impl Kind {
    /// Whether equal atoms at one centre differ for the model: networks on graphs of atoms see their elements only.
    fn tells_equal_atoms_apart(self) -> bool {
        match self {
            Kind::Coupling | Kind::Tarflow | Kind::TransferableTarflow | Kind::MlpEbm => true,
            Kind::GvpFlow | Kind::EgnnFlow | Kind::GraphormerEbm | Kind::InvariantEbm | Kind::GvpEbm => false,
        }
    }

    /// Name on the command line and in model files.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
    }
}

#[derive(Args, Clone)]
pub struct Train {
    /// Kind of model to train
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
    /// Resample the frames of each file of --frames, to the same number, in proportion to their weights, for a model
    /// that learns the target from its own samples: the weights are `log_weight` of the file, as written by `smc`, or
    /// else exp(-u)/q from its `log_density`, as written by `sample`, and --system. The value is the treatment of the
    /// weights before resampling
    #[arg(long, value_enum, requires = "frames", num_args = 0..=1, default_missing_value = "raw")]
    resample: Option<Weights>,
    /// Temperature, K [default: that of the model of --start, else 300]
    #[arg(long)]
    temperature: Option<f64>,
    /// Settings (JSON with `design`, `train` and `explore`, or under the name of the model, such as `gvp_ebm`);
    /// defaults for those that are absent. Sections that the model does not use are refused
    #[arg(long)]
    config: Option<PathBuf>,
    /// Start from this model instead of a new one, with its sizes and its order of atoms
    #[arg(long)]
    start: Option<PathBuf>,
    /// Train the target end of a map between ensembles, for learned replica exchange: this coupling flow (at its
    /// temperature) maps from the ensemble of --frames, the trained one to that of --system at --temperature. Without
    /// --start the map starts as the identity; without --frames they are generated at the temperature of this flow
    #[arg(long)]
    map_from: Option<PathBuf>,
    /// Trained model; a figure of the training is drawn beside it, under the same name with the extension svg, and
    /// replaces an existing one
    #[arg(short, long)]
    output: PathBuf,
    /// File for generated frames (safetensors); with --checkpoint they are read from it if it exists [default with
    /// --checkpoint: beside the checkpoint]
    #[arg(long, conflicts_with = "frames")]
    keep_frames: Option<PathBuf>,
    /// State of the training, written every minute and on SIGINT or SIGTERM; if the file exists, the training continues
    /// from it. Generated frames are kept beside it, from the beginning
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Training log (JSON, one object per line); with --modes NAME.jsonl gives one per training, NAME.MODE.jsonl
    #[arg(long)]
    log: Option<PathBuf>,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
    /// Train one generator for each of the metastable states of this description (JSON), to jump between them; for
    /// coupling flows only
    #[arg(long, conflicts_with_all = ["start", "map_from"])]
    modes: Option<PathBuf>,
}

impl Train {
    pub fn run(mut self) -> Result<()> {
        if self.output.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg")) {
            let reason =
                "this is the name of the training figure; use another extension for the model, such as safetensors";
            return Err(Error::file(&self.output, reason));
        }
        if self.map_from.is_some() && self.model != Kind::Coupling {
            return Err(Error::invalid("--map-from trains coupling flows: remove --model"));
        }
        if self.modes.is_some() && self.model != Kind::Coupling {
            return Err(Error::invalid(format!("--modes trains coupling flows, not {}", self.model.name())));
        }
        let config = self.config()?;
        self.check_files(&config)?;
        trajectory::require_tensors(&self.output, "models")?;
        if let Some(path) = &self.keep_frames {
            trajectory::require_tensors(path, "kept frames")?;
        }
        self.temperature = Some(self.temperature()?);
        let (topology, x0) = Topology::from_pdb(&self.topology)?;
        check_start(&self.topology, &topology, &x0)?;
        self.check_system(&topology)?;
        self.check_settings(&config, 3 * topology.n_atoms())?;
        self.check_design(&config, &topology, &x0)?;
        if self.model == Kind::Coupling && config.train.phases.is_empty() {
            eprintln!("note: `phases` is empty: the model is written untrained");
        }
        let plan = self.modes.as_ref().map(|path| self.plan(path, &config, 3 * topology.n_atoms())).transpose()?;
        if let Some(path) = &self.checkpoint {
            claim(path)?;
            watch_signals()?;
        }
        let frames = match self.resample {
            Some(_) => self.resampled(&self.frames, &topology, 0, config.held_out(self.model))?,
            None => self.frames(&config, &topology, &x0)?,
        };
        require_hands(&self.topology, &topology, &x0, &frames, self.model.tells_equal_atoms_apart())?;
        self.tell_held_out(config.held_out(self.model), frames.len() / x0.len());
        self.tell_rigid_bonds(&topology, &frames)?;
        self.tell_turns(&topology, &frames);
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

    /// Prints the summary of everything that was trained, or the names of its figures.
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

    /// Temperature (K) asked for, else that of the model to start from, else 300 K. Errors: a number that is not
    /// positive.
    fn temperature(&self) -> Result<f64> {
        let of_start = match &self.start {
            Some(path) => temperature_of(path)?,
            None => None,
        };
        let temperature = self.temperature.or(of_start).unwrap_or(300.0);
        modejump::target::require_temperature(temperature)?;
        if let (Some(path), Some(of_start)) = (&self.start, of_start.filter(|t| *t != temperature)) {
            eprintln!(
                "note: {} is for {of_start} K, but the model trained from it is for {temperature} K",
                path.display()
            );
        }
        Ok(temperature)
    }

    /// Temperature (K), after `run` has resolved it.
    fn kelvin(&self) -> f64 {
        self.temperature.unwrap_or(300.0)
    }

    /// Temperature (K) of the frames: for a map that of the ensemble that is mapped from. Errors: the model of that
    /// ensemble does not state it.
    fn kelvin_of_frames(&self) -> Result<f64> {
        let Some(path) = &self.map_from else { return Ok(self.kelvin()) };
        temperature_of(path)?
            .ok_or_else(|| Error::file(path, "has no temperature: train it with `modejump train --temperature`"))
    }

    /// Model to start from. Errors: its atoms are in another order than in --topology; another number of atoms is
    /// reported by the caller.
    fn start_model(&self, path: &Path, topology: &Topology) -> Result<ModelFile> {
        let file = model_file::open(path)?;
        if let Some(own) = file.card.topology.as_ref().filter(|own| own.n_atoms() == topology.n_atoms()) {
            own.require_order(topology, "model to start from")
                .map_err(|e| Error::file(&self.topology, e.to_string()))?;
        }
        Ok(file)
    }

    /// Error for a model of --start, or --map-from, of another kind than the one asked for.
    fn other_kind(&self, path: &Path, found: &ModelConfig) -> Error {
        let (found, asked) = (found.kind(), self.model.name());
        let remedy = match self.map_from.is_some() {
            true => "--map-from takes coupling flows only".to_string(),
            false => format!("use --model {found}, or remove --start"),
        };
        Error::file(path, format!("expected a model of kind {asked}, found {found}: {remedy}"))
    }

    /// Identity of the training: the design of the model, whatever the command that asked for it, its initial
    /// parameters, the frames, and the model to start from.
    fn identity(&self, card: &ModelCard, parameters: &[f32], frames: &[f64]) -> Result<Identity> {
        let text = |part: serde_json::Result<String>| {
            part.map_err(|e| Error::invalid(format!("could not serialise the model description: {e}")))
                .map(|text| text.into_bytes())
        };
        let hash_of_text = |part| Ok::<_, Error>(model_file::hash(&text(part)?));
        let parameters: Vec<u8> = parameters.iter().flat_map(|v| v.to_le_bytes()).collect();
        let frames: Vec<u8> = frames.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut run = Identity::default().with_content("set of frames", model_file::hash(&frames));
        if let Some(path) = &self.start {
            run = run.with_content("file for --start", hash_of(path)?);
        }
        if let Some(hash) = card.target.as_ref().and_then(|target| target.hash.as_ref()) {
            run = run.with_content("file for --system", hash);
        }
        let rest = ModelCard { provenance: Default::default(), target: None, temperature: None, ..card.clone() };
        let topology = hash_of_text(serde_json::to_string(&card.topology))?;
        Ok(run
            .with_content("topology", topology)
            .with_some("--temperature", card.temperature)
            .with("--platform", &self.platform.platform)
            .with_consequence("design of the model", hash_of_text(serde_json::to_string(&rest))?)
            .with_consequence("set of first parameters (`seed`)", model_file::hash(&parameters)))
    }

    /// Adds to a card what it says of the training.
    fn complete(&self, card: &mut ModelCard) -> Result<()> {
        describe_training(card, self.kelvin(), self.system.as_deref())
    }

    /// State to continue from, if there is one; an error if it belongs to another training. `about` returns its step
    /// and its options, which must equal the present ones.
    fn saved_state<S: DeserializeOwned, O: Serialize>(
        &self,
        identity: &Identity,
        options: &O,
        about: impl Fn(&S) -> (usize, &O),
    ) -> Result<Option<S>> {
        let Some(path) = self.checkpoint.as_deref() else { return Ok(None) };
        let Some(state) = checkpoint::load_run(path, checkpoint::TRAINING, identity)? else { return Ok(None) };
        let (step, of_run) = about(&state);
        let settings = |options: &O| Identity::default().with_settings("", options);
        settings(options)?.require(&settings(of_run)?).map_err(|reason| Error::file(path, reason))?;
        eprintln!("resuming from step {step} of {}", path.display());
        Ok(Some(state))
    }

    fn save_state(&self, training: &mut impl drive::Training, identity: &Identity) -> Result<()> {
        match &self.checkpoint {
            Some(path) => training.save_state(path, identity),
            None => Ok(()),
        }
    }
}

/// Temperature (K), if the model file states it.
fn temperature_of(path: &Path) -> Result<Option<f64>> {
    Ok(model_file::open_card(path)?.temperature)
}
