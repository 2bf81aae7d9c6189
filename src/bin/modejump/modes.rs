//! `modejump modes`: combines the generators of several metastable states in one model file; and the description that
//! it reads.

use super::common::read_json;
use clap::Args;
use modejump::coordinates::Along;
use modejump::io::model_file::{self, ModelFile};
use modejump::io::trajectory::require_tensors;
use modejump::io::{check_apart, check_writable, write_atomically};
use modejump::models::modes::{bundle, Config, EdgeConfig, IdenticalConfig, ModeConfig};
use modejump::modes::{ModeRegion, Modes as Regions};
use modejump::moves::{ModeJump, Options};
use modejump::{models, Error, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Modes {
    /// Description: JSON with `modes`, each with a `name`, its region (`within` or `centre`) and the `generator`, a
    /// model file beside the description
    description: PathBuf,
    /// Model file to write
    #[arg(short, long)]
    output: PathBuf,
}

impl Modes {
    pub fn run(self) -> Result<()> {
        let description = Description::read(&self.description)?;
        let paths = description.generators().map_err(|e| Error::file(&self.description, e.to_string()))?;
        check_apart(&self.output, [&self.description].into_iter().chain(&paths))?;
        check_writable(&self.output)?;
        require_tensors(&self.output, "models")?;
        description.write(&paths, &self.output)?.iter().for_each(|edge| println!("{edge}"));
        Ok(())
    }
}

/// Modes as the user describes them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    #[serde(default)]
    nearest_along: Vec<Along>,
    modes: Vec<ModeDescription>,
    #[serde(default)]
    edges: Vec<EdgeConfig>,
    #[serde(default)]
    noise: f64,
    #[serde(default)]
    identical: Option<IdenticalConfig>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ModeDescription {
    name: String,
    within: Vec<modejump::coordinates::Region>,
    centre: Vec<f64>,
    generator: Option<PathBuf>,
    reference: Vec<f64>,
}

impl Description {
    /// Reads a description. Errors name the file and the line.
    pub fn read(path: &Path) -> Result<Description> {
        let mut description: Description = read_json(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for generator in description.modes.iter_mut().filter_map(|mode| mode.generator.as_mut()) {
            *generator = folder.join(&*generator);
        }
        Ok(description)
    }

    fn generators(&self) -> Result<Vec<PathBuf>> {
        let path = |mode: &ModeDescription| {
            mode.generator.clone().ok_or_else(|| Error::invalid(format!("mode `{}` has no `generator`", mode.name)))
        };
        self.modes.iter().map(path).collect()
    }

    fn region_of(mode: &ModeDescription) -> ModeRegion {
        ModeRegion { name: mode.name.clone(), within: mode.within.clone(), centre: mode.centre.clone() }
    }

    /// Regions of the modes, for configurations of `dimension` numbers.
    pub fn regions(&self, dimension: usize) -> Result<Regions> {
        let regions: Vec<ModeRegion> = self.modes.iter().map(Description::region_of).collect();
        Regions::new(&self.nearest_along, &regions, dimension)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.modes.iter().map(|mode| &mode.name)
    }

    /// Writes the model file of these generators, one per mode, if jumps can be made with it, and returns the possible
    /// jumps as text.
    pub fn write(&self, generators: &[PathBuf], output: &Path) -> Result<Vec<String>> {
        let files = generators.iter().map(|path| model_file::open(path)).collect::<Result<Vec<_>>>()?;
        let (bytes, jump) = self.jump_of(&files, output)?;
        write_atomically(output, &bytes)?;
        let name = |mode: usize| &jump.modes().names()[mode];
        Ok(jump.edges().iter().map(|edge| format!("{} <-> {}", name(edge.modes[0]), name(edge.modes[1]))).collect())
    }

    /// Model file of these generators, one per mode, and the move that it makes. Errors: no move can be made with it.
    pub fn jump_of(&self, files: &[ModelFile], output: &Path) -> Result<(Vec<u8>, ModeJump)> {
        let mode = |(mode, file): (&ModeDescription, &ModelFile)| ModeConfig {
            region: Description::region_of(mode),
            card: file.card.clone(),
            reference: mode.reference.clone(),
        };
        let config = Config {
            nearest_along: self.nearest_along.clone(),
            modes: self.modes.iter().zip(files).map(mode).collect(),
            edges: self.edges.clone(),
            noise: self.noise,
            identical: self.identical.clone(),
        };
        let bytes = bundle(config, files)?;
        let model = models::load_bytes(&output.display().to_string(), &bytes)?;
        let jump = ModeJump::of_model(&model, None, Options::default())?;
        Ok((bytes, jump))
    }
}
