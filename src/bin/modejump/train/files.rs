//! Checks, before the work, of the files that a training reads and writes: none may overwrite another.

use super::settings::Config;
use super::Train;
use crate::modes::Description;
use modejump::io::{check_apart, check_writable};
use modejump::{Error, Result};
use std::path::{is_separator, Path, PathBuf};

impl Train {
    /// Errors: an output cannot be written, or is another file of this command.
    pub(super) fn check_files(&self, config: &Config) -> Result<()> {
        let inputs = self.inputs(config);
        let outputs = self.outputs(config)?;
        for (i, path) in outputs.iter().enumerate() {
            check_writable(path)?;
            check_apart(path, inputs.iter().copied().chain(&outputs[..i]))?;
        }
        Ok(())
    }

    fn inputs<'a>(&'a self, config: &'a Config) -> Vec<&'a PathBuf> {
        let models = [&self.start, &self.map_from].into_iter().flatten();
        let descriptions = [&self.system, &self.config, &self.modes].into_iter().flatten();
        let peptides = config.transferable_tarflow.files();
        [&self.topology].into_iter().chain(&self.frames).chain(models).chain(descriptions).chain(peptides).collect()
    }

    fn outputs(&self, config: &Config) -> Result<Vec<PathBuf>> {
        let trainings = match &self.modes {
            Some(path) => self.trainings_of_modes(path, config.jump.is_some())?,
            None => vec![self.clone()],
        };
        let mut outputs = vec![self.output.clone()];
        for training in trainings {
            outputs.extend((training.output != self.output).then(|| training.output.clone()));
            outputs.push(training.figure());
            outputs.extend(training.log.into_iter().chain(training.checkpoint));
        }
        outputs.extend(self.kept_frames().into_iter().chain(self.begun_frames()));
        Ok(outputs)
    }

    /// Trainings of --modes, each with its own files. Errors: names of modes that cannot be part of a file name.
    fn trainings_of_modes(&self, path: &Path, jumps: bool) -> Result<Vec<Train>> {
        let description = Description::read(path)?;
        if let Some(name) = description.names().find(|name| name.contains(is_separator)) {
            let reason = format!("mode `{name}`: the name is used in file names and must not contain a path separator");
            return Err(Error::file(path, reason));
        }
        let generators = description.names().map(|name| self.of_mode(name));
        let bijections = description.names().skip(1).filter(|_| jumps).map(|name| self.of_jump(name));
        Ok(generators.chain(bijections).collect())
    }

    /// Figure of the training, beside the model.
    pub(super) fn figure(&self) -> PathBuf {
        self.output.with_extension("svg")
    }

    /// File in which generated frames are kept, if any.
    pub(super) fn kept_frames(&self) -> Option<PathBuf> {
        let beside = || self.checkpoint.as_ref().map(|path| path.with_extension("frames.safetensors"));
        self.keep_frames.clone().or_else(beside).filter(|_| self.frames.is_empty())
    }

    /// File in which generated frames are kept until they are complete.
    pub(super) fn begun_frames(&self) -> Option<PathBuf> {
        let beside = |path: &PathBuf| path.with_extension("frames.ckpt");
        self.checkpoint.as_ref().filter(|_| self.frames.is_empty()).map(beside)
    }
}
