//! Coupling flows: generators, generators of modes, and target ends of maps between ensembles.

use super::settings::{map_without_energies, Config};
use super::{Kind, Train};
use modejump::coordinates::Topology;
use modejump::models::coupling::CouplingFlow;
use modejump::models::steering::dimension_without_auxiliary;
use modejump::models::{self, Model, ModelConfig};
use modejump::modes::{Modes, Within};
use modejump::target::Target;
use modejump::train::{check_design, design, Map, TrainOptions, TrainState, Trainer};
use modejump::{Error, Result};
use serde_json::Value;

impl Train {
    /// Checks, before frames are generated, which takes long, that the training can start from the given flow, or that
    /// a new one can be designed for the molecule. Errors: a molecule without internal coordinates, constraints that are
    /// not among them, settings out of range; those of [`Self::flow`] and [`Self::target`].
    pub(super) fn check_design(&self, config: &Config, topology: &Topology, x0: &[f64]) -> Result<()> {
        if self.model != Kind::Coupling {
            return Ok(());
        }
        if self.start.is_some() || self.map_from.is_some() {
            return self.target(&self.flow(config, topology, x0)?).map(drop);
        }
        config.train.check_temperatures(config.design.steerable)?;
        check_design(topology, x0, &self.constraints()?, &config.design)
    }

    /// Flow that the training starts from. Errors: a model of other atoms, or of another kind.
    pub(super) fn flow(&self, config: &Config, topology: &Topology, frames: &[f64]) -> Result<CouplingFlow<f32>> {
        match self.start.as_ref().or(self.map_from.as_ref()) {
            Some(path) => {
                let file = self.start_model(path, topology)?;
                if !matches!(file.card.model, ModelConfig::Coupling(_)) {
                    return Err(self.other_kind(path, &file.card.model));
                }
                let flow = CouplingFlow::from_file(&file)?;
                let (atoms, own) = (topology.n_atoms(), dimension_without_auxiliary(&flow));
                match own == 3 * atoms {
                    true => Ok(flow),
                    false => Err(Error::file(
                        path,
                        format!("the model has {own} coordinates, but {atoms} atoms have {}", 3 * atoms),
                    )),
                }
            }
            None => design(topology, frames, &self.constraints()?, &config.design),
        }
    }

    /// Trains one flow; for the generator of a mode, energies count only inside the mode.
    pub(super) fn coupling(
        &self,
        mut flow: CouplingFlow<f32>,
        frames: &[f64],
        mode: Option<(&Modes, usize)>,
        options: TrainOptions,
    ) -> Result<Value> {
        self.complete(flow.card_mut())?;
        eprintln!("{} parameters, {:.2} MFLOP per sample", flow.parameters().len(), flow.flops() * 1e-6);
        let mut target = self.target(&flow)?;
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
                identity = identity.with_content("file for --map-from", from.hash());
                flow.card_mut().provenance.insert("map_from".into(), from.hash().into());
                Some(self.map(from.as_ref(), target, frames, options.held_out)?)
            }
        };
        let frames = if map.is_some() { &[] } else { frames };
        let saved = self.saved_state(&identity, &options, |state: &TrainState| (state.step, &state.options))?;
        let trainer = match saved {
            Some(state) => Trainer::resume(flow, frames, target, state)?,
            None => Trainer::new(flow, frames, target, options)?,
        };
        match map {
            Some(map) => self.train(trainer.with_map(map)?, &identity),
            None => self.train(trainer, &identity),
        }
    }

    /// Map with the frames of the ensemble that is mapped from. Both ensembles have the same System, so that their
    /// reduced potentials differ only by the temperature.
    fn map(&self, from: &dyn Model, target: &mut dyn Target, frames: &[f64], held_out: f64) -> Result<Map> {
        let temperature = self.kelvin_of_frames()?;
        let mut u = vec![0.0; frames.len() / from.dimension().max(1)];
        target.reduced_potential(frames, &mut u)?;
        u.iter_mut().for_each(|u| *u *= self.kelvin() / temperature);
        Map::new(from, frames, &u, held_out)
    }
}
