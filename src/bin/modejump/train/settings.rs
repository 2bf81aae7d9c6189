//! The settings of `--config`, and which of them each training reads.

use super::{energy, field, tarflow, transferable, Kind, Train};
use crate::common::{parse_json, parse_settings};
use modejump::io::read_text;
use modejump::train::{DesignOptions, NetworkOptions, Phase, TrainOptions};
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map as JsonMap, Value};
use std::path::Path;

/// Sections of `--config` as written.
type Sections = JsonMap<String, Value>;

/// Contents of the file given by `--config`.
#[derive(Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub design: DesignOptions,
    pub train: TrainOptions,
    /// With --modes: settings of the training of the bijections between the first mode and the others, after the
    /// generators; absent if they are not trained.
    pub jump: Option<TrainOptions>,
    pub gvp_flow: field::GvpDesign,
    pub egnn_flow: field::EgnnDesign,
    pub tarflow: tarflow::TarflowDesign,
    pub transferable_tarflow: transferable::TransferableDesign,
    pub graphormer_ebm: energy::GraphormerDesign,
    pub invariant_ebm: energy::InvariantDesign,
    pub gvp_ebm: energy::GvpEnergyDesign,
    pub mlp_ebm: energy::MlpDesign,
    #[cfg(feature = "openmm")]
    pub explore: modejump::train::dynamics::ExploreOptions,
    /// Not read by this build, which makes no frames.
    #[cfg(not(feature = "openmm"))]
    pub explore: serde_json::Value,
}

/// Settings in the section of a network that are read if --start gives the network.
const READ_AGAIN: [&str; 3] = ["train", "contrast", "peptides"];

impl Train {
    /// Errors: the file is not JSON, or has settings that this training does not read.
    pub(super) fn config(&self) -> Result<Config> {
        let (mut config, sections): (Config, Sections) = match &self.config {
            Some(path) => {
                let text = read_text(path)?;
                let (config, sections) = (parse_settings(path, &text)?, parse_json(path, &text)?);
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

    /// Errors: settings that the training of this model never reads. Those that it does not read this time are
    /// reported.
    fn check_sections(&self, path: &Path, sections: &Sections) -> Result<()> {
        let read = self.sections();
        if let Some(name) = sections.keys().find(|name| !read.contains(name)) {
            let reason = format!("`{name}` has no effect on this training, which reads {}: remove it", read.join(", "));
            return Err(Error::file(path, reason));
        }
        let model = self.model.name();
        let options = sections.get(&model).and_then(|section| section.get("train"));
        let given = |name: &&str| options.and_then(|options| options.get(name)).is_some_and(|value| !value.is_null());
        let matches_flows = matches!(self.model, Kind::GvpFlow | Kind::EgnnFlow);
        if let Some(name) = ["pairing", "largest_weight"].iter().find(|name| !matches_flows && given(name)) {
            let reason = format!("`{name}` of `{model}.train` applies only to flow matching: remove it");
            return Err(Error::file(path, reason));
        }
        if self.model.name().ends_with("_ebm") && given(&"emphasis") {
            let reason = format!(
                "`emphasis` of `{model}.train` applies only to flows: an energy would learn a different distribution from that of the frames, and no \
                 weights correct for that; remove it"
            );
            return Err(Error::file(path, reason));
        }
        let unused = [
            ("design", self.start.is_some(), "the model of --start has its own"),
            ("design", self.map_from.is_some() && self.start.is_none(), "the model of --map-from has its own"),
            ("explore", !self.frames.is_empty(), "the frames are those of --frames"),
        ];
        for (name, _, reason) in unused.iter().filter(|(name, is_unused, _)| *is_unused && sections.contains_key(*name))
        {
            eprintln!("note: `{name}` of {} is not used: {reason}", path.display());
        }
        let section = sections.get(&model).and_then(Value::as_object).filter(|_| self.start.is_some());
        let sizes: Vec<&str> = section
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .filter(|key| !READ_AGAIN.contains(key))
            .collect();
        if !sizes.is_empty() {
            let (sizes, path) = (sizes.join(", "), path.display());
            eprintln!(
                "note: settings of `{model}` in {path} that are not used: {sizes}; the model of --start has its own"
            );
        }
        Ok(())
    }

    /// Sections of the configuration that the training reads.
    fn sections(&self) -> Vec<String> {
        let own = match (self.model, &self.modes) {
            (Kind::Coupling, None) => vec!["design".into(), "train".into()],
            (Kind::Coupling, Some(_)) => vec!["design".into(), "train".into(), "jump".into()],
            (other, _) => vec![other.name()],
        };
        [own, vec!["explore".into()]].concat()
    }

    /// Checks the settings before frames are generated, which takes long. Errors name the setting that is out of range.
    pub(super) fn check_settings(&self, config: &Config, dimension: usize) -> Result<()> {
        if self.map_from.is_some() {
            config.train.check_for_map()?;
            self.system.as_ref().ok_or_else(map_without_energies)?;
        }
        match config.network(self.model) {
            Some(_) if dimension < 6 => Err(Error::invalid(
                "a molecule of one particle has no shape for a network to learn: for the potential of a point, use the Rust library \
                 (examples/double_well_generator.rs, examples/two_dimensional_ebm.rs)",
            )),
            Some(network) => network.check(),
            None => config.train.check(dimension, self.map_from.is_none(), self.system.is_some()),
        }
    }
}

impl Config {
    /// Training options of a network; none for a coupling flow.
    fn network(&self, model: Kind) -> Option<&NetworkOptions> {
        Some(match model {
            Kind::Coupling => return None,
            Kind::GvpFlow => &self.gvp_flow.train,
            Kind::EgnnFlow => &self.egnn_flow.train,
            Kind::Tarflow => &self.tarflow.train,
            Kind::TransferableTarflow => &self.transferable_tarflow.train,
            Kind::GraphormerEbm => &self.graphormer_ebm.train,
            Kind::InvariantEbm => &self.invariant_ebm.train,
            Kind::GvpEbm => &self.gvp_ebm.train,
            Kind::MlpEbm => &self.mlp_ebm.train,
        })
    }

    /// Share of the frames that is held out for this model.
    pub(super) fn held_out(&self, model: Kind) -> f64 {
        self.network(model).map_or(self.train.held_out, |network| network.held_out)
    }
}

pub(super) fn map_without_energies() -> Error {
    Error::invalid("--map-from requires energies: use --system")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Collects "`key` = value" of all settings in a section, in order; null for those without a default.
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
    fn sections_in_part_keep_the_defaults_of_their_model() {
        let of = |text: &str| -> Config { parse_settings(Path::new("c.json"), text).unwrap() };
        let changed = of(r#"{ "invariant_ebm": { "contrast": { "nce_weight": 0.5 }, "train": { "steps": 7 } },
            "tarflow": { "train": { "steps": 7 } }, "jump": {} }"#);
        let mut expected = serde_json::to_value(Config::default()).unwrap();
        expected["invariant_ebm"]["contrast"]["nce_weight"] = 0.5.into();
        expected["invariant_ebm"]["train"]["steps"] = 7.into();
        expected["tarflow"]["train"]["steps"] = 7.into();
        expected["jump"] = serde_json::to_value(TrainOptions::default()).unwrap();
        assert_eq!(serde_json::to_value(changed).unwrap(), expected);
        let nothing = of("{}");
        assert_eq!(serde_json::to_value(nothing).unwrap(), serde_json::to_value(Config::default()).unwrap());
        let message = parse_settings::<Config>(Path::new("c.json"), "{\n \"tarflow\": { \"stepz\": 1 } }").err();
        assert!(message.unwrap().to_string().contains("line 2"));
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
