//! `modejump train --modes`: one generator for each metastable state, with one latent space for all, in one model file.

use super::{Config, Train};
use crate::modes::Description;
use modejump::coordinates::Topology;
use modejump::io::model_file;
use modejump::train::architecture::designs;
use modejump::{Error, Result};
use std::path::{Path, PathBuf};

impl Train {
    /// Each mode's frames train its generator; energies count in the mode alone.
    pub(super) fn modes(&self, path: &Path, config: Config, topology: &Topology, frames: &[f64]) -> Result<()> {
        let dimension = 3 * topology.n_atoms();
        let description = Description::read(path)?;
        let modes = description.regions(dimension).map_err(|e| Error::file(path, e.to_string()))?;
        let mut of_mode = vec![Vec::new(); modes.names().len()];
        for x in frames.chunks_exact(dimension) {
            modes.of(x).into_iter().for_each(|mode| of_mode[mode].extend_from_slice(x));
        }
        for (name, frames) in modes.names().iter().zip(&of_mode) {
            eprintln!("{name}: {} frames", frames.len() / dimension);
            if frames.is_empty() {
                return Err(Error::invalid(format!("no frame is in mode `{name}`: give frames that visit it")));
            }
        }
        let flows = designs(topology, &of_mode, &self.constraints()?, &config.design)?;
        let mut parts = Vec::new();
        for (mode, (flow, frames)) in flows.into_iter().zip(&of_mode).enumerate() {
            let own = self.of_mode(&modes.names()[mode]);
            eprintln!("{}", own.output.display());
            own.coupling(flow, frames, Some((&modes, mode)), config.train.clone())?;
            parts.push(own.output);
        }
        description.write(&parts, &self.output)?;
        self.sign()
    }

    /// The same training for one mode, with files of its own: `jump.safetensors` and mode `c7eq` make `jump.c7eq.safetensors`.
    fn of_mode(&self, name: &str) -> Train {
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

    /// Says in the file of all modes what made it.
    fn sign(&self) -> Result<()> {
        let bytes = std::fs::read(&self.output).map_err(|e| Error::io(&self.output, e))?;
        let name = self.output.display().to_string();
        let mut card = model_file::read(&name, &bytes)?.card;
        self.complete(&mut card)?;
        modejump::io::write_atomically(&self.output, &model_file::with_card(&name, &bytes, &card)?)
    }
}
