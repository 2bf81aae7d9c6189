//! `modejump train --modes`: one generator per metastable state, with a common latent space, in one model file.

use super::settings::Config;
use super::Train;
use crate::modes::Description;
use modejump::coordinates::Topology;
use modejump::io::model_file;
use modejump::models::coupling::CouplingFlow;
use modejump::models::Model;
use modejump::modes::Modes;
use modejump::train::architecture::designs;
use modejump::train::{Jump, TrainOptions, TrainState, Trainer};
use modejump::{models, Error, Result};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// Contents of --modes.
pub(super) struct Plan {
    description: Description,
    modes: Modes,
}

impl Train {
    /// Errors: modes of other atoms; settings with which the bijections could not be trained after the generators.
    pub(super) fn plan(&self, path: &Path, config: &Config, dimension: usize) -> Result<Plan> {
        let description = Description::read(path)?;
        let modes = description.regions(dimension).map_err(|e| Error::file(path, e.to_string()))?;
        if let Some(options) = &config.jump {
            if self.system.is_none() {
                return Err(Error::invalid("`jump` trains on the energies at both ends: use --system"));
            }
            let checked = options.check_for_map().and_then(|()| options.check(dimension, false, true));
            checked.map_err(|e| Error::invalid(format!("`jump`: {e}")))?;
        }
        Ok(Plan { description, modes })
    }

    /// Trains the generator of each mode on its frames; energies count only inside the mode.
    pub(super) fn modes(&self, plan: Plan, config: Config, topology: &Topology, frames: &[f64]) -> Result<Value> {
        let dimension = 3 * topology.n_atoms();
        let Plan { description, modes } = plan;
        let mut of_mode = vec![Vec::new(); modes.names().len()];
        for x in frames.chunks_exact(dimension) {
            modes.of(x).into_iter().for_each(|mode| of_mode[mode].extend_from_slice(x));
        }
        for (name, frames) in modes.names().iter().zip(&of_mode) {
            eprintln!("{name}: {} frames", frames.len() / dimension);
            if frames.is_empty() {
                return Err(Error::invalid(format!("no frame is in mode `{name}`: use frames that visit it")));
            }
            if config.jump.as_ref().is_some_and(|jump| jump.held_out_of(frames.len() / dimension) < 2) {
                let reason =
                    "too few for `jump`, which requires two held-out frames: use more frames or a larger `held_out`";
                return Err(Error::invalid(format!("the frames of mode `{name}` are {reason}")));
            }
        }
        let flows = designs(topology, &of_mode, &self.constraints()?, &config.design)?;
        // checked before training: whether the generators can be combined
        let untrained = |flow: &CouplingFlow<f32>| model_file::read("the design of a generator", &flow.to_bytes()?);
        description.jump_of(&flows.iter().map(untrained).collect::<Result<Vec<_>>>()?, &self.output)?;
        let (mut parts, mut trainings) = (Vec::new(), serde_json::Map::new());
        for (mode, (flow, frames)) in flows.into_iter().zip(&of_mode).enumerate() {
            let name = &modes.names()[mode];
            let own = self.of_mode(name);
            eprintln!("{}", own.output.display());
            let summary = own.coupling(flow, frames, Some((&modes, mode)), config.train.clone())?;
            trainings.insert(name.clone(), summary);
            parts.push(own.output);
        }
        if let Some(options) = &config.jump {
            for mode in 1..parts.len() {
                let name = &modes.names()[mode];
                let own = self.of_jump(name);
                let ends = [&of_mode[0][..], &of_mode[mode]];
                let summary = own.jump([&parts[0], &parts[mode]], ends, (&modes, mode), options)?;
                trainings.insert(format!("{name}.jump"), summary);
                parts[mode] = own.output;
            }
        }
        description.write(&parts, &self.output)?.iter().for_each(|edge| eprintln!("{edge}"));
        self.sign()?;
        let output = self.output.display().to_string();
        Ok(json!({ "output": output, "model": self.model.name(), "trainings": trainings }))
    }

    /// Continues the training of the second of two generators, so that T_b ∘ T_a⁻¹ jumps between their modes, by the
    /// energies at both ends.
    fn jump(
        &self,
        [from, to]: [&Path; 2],
        frames: [&[f64]; 2],
        (modes, mode): (&Modes, usize),
        options: &TrainOptions,
    ) -> Result<Value> {
        let from = models::load(from)?;
        let to = model_file::open(to)?;
        let flow = CouplingFlow::from_file(&to)?;
        eprintln!("{}: {} <-> {}", self.output.display(), modes.names()[0], modes.names()[mode]);
        let Some(mut target) = self.target(&flow)? else {
            return Err(Error::invalid("`jump` trains on the energies at both ends: use --system"));
        };
        let mut potentials = |x: &[f64]| -> Result<Vec<f64>> {
            let mut u = vec![0.0; x.len() / from.dimension().max(1)];
            target.reduced_potential(x, &mut u)?;
            Ok(u)
        };
        let u = [potentials(frames[0])?, potentials(frames[1])?];
        let identity = self.identity(flow.card(), flow.parameters(), frames[1])?;
        let identity = identity.with_content("generator of the first mode", from.hash());
        let identity = identity.with_content("generator of the other mode", &to.hash);
        let jump = Jump::new(from, modes.clone(), [0, mode], frames, [&u[0], &u[1]], options.held_out)?;
        let saved = self.saved_state(&identity, options, |state: &TrainState| (state.step, &state.options))?;
        let trainer = match saved {
            Some(state) => Trainer::resume(flow, &[], Some(target.as_mut()), state)?,
            None => Trainer::new(flow, &[], Some(target.as_mut()), options.clone())?,
        };
        self.train(trainer.with_map(jump)?, &identity)
    }

    /// Training of one mode, with its own files: `jump.safetensors` and mode `c7eq` make `jump.c7eq.safetensors`.
    pub(super) fn of_mode(&self, name: &str) -> Train {
        let beside = |path: &PathBuf| {
            let extension = path.extension().map(|e| e.to_string_lossy().into_owned()).unwrap_or_default();
            path.with_extension(format!("{name}.{extension}"))
        };
        Train {
            output: beside(&self.output),
            checkpoint: self.checkpoint.as_ref().map(beside),
            log: self.log.as_ref().map(beside),
            ..self.clone()
        }
    }

    /// Training of the bijection between the first mode and this one.
    pub(super) fn of_jump(&self, name: &str) -> Train {
        self.of_mode(&format!("{name}.jump"))
    }

    /// Records the command that made it in the file of all modes.
    fn sign(&self) -> Result<()> {
        let bytes = modejump::io::read(&self.output)?;
        let name = self.output.display().to_string();
        let mut card = model_file::read(&name, &bytes)?.card;
        self.complete(&mut card)?;
        modejump::io::write_atomically(&self.output, &model_file::with_card(&name, &bytes, &card)?)
    }
}
