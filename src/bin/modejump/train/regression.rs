//! Shared part of vector fields, energy-based models and TarFlows: a network on a tape, trained on frames alone.

use super::drive::Training;
use super::Train;
use modejump::coordinates::Topology;
use modejump::io::checkpoint::{self, Identity};
use modejump::io::{model_file, write_atomically};
use modejump::models::card::ModelCard;
use modejump::models::network::Trainable;
use modejump::train::network_trainer::{in_units, Objective};
use modejump::train::{NetworkOptions, NetworkState, NetworkTrainer, Progress};
use modejump::{Error, Result};
use serde_json::Value;
use std::path::Path;

impl Train {
    /// Trains a network, starting with `parameters`, on frames in nm, which it sees in its own units.
    pub(super) fn regress<N: Trainable, O: Objective<N>>(
        &self,
        mut card: ModelCard,
        topology: Topology,
        (network, parameters): (&N, Vec<f32>),
        objective: O,
        (frames, units_per_nm): (Vec<f64>, f64),
        options: &NetworkOptions,
    ) -> Result<Value> {
        let dimension = network.dimension();
        if dimension != 3 * topology.n_atoms() {
            let (atoms, of_model) = (topology.n_atoms(), dimension / 3);
            return Err(Error::file(&self.topology, format!("has {atoms} atoms, but the model has {of_model}")));
        }
        self.complete(&mut card)?;
        card.topology = Some(topology);
        eprintln!("{} parameters", parameters.len());
        let identity = self.identity(&card, &parameters, &[&frames, &objective.frames()[..]].concat())?;
        let of_losses = model_file::hash(objective.settings().as_bytes());
        let identity = identity.with_content("set of the losses' settings, or of further peptides", of_losses);
        let saved = self.saved_state(&identity, options, |state: &NetworkState| (state.step, &state.options))?;
        let frames = in_units(&frames, dimension, units_per_nm);
        let trainer = match saved {
            Some(state) => NetworkTrainer::resume(network, objective, frames, state)?,
            None => NetworkTrainer::new(network, parameters, objective, frames, options.clone())?,
        };
        self.train(Regression { card, network, trainer }, &identity)
    }
}

struct Regression<'a, N, O> {
    card: ModelCard,
    network: &'a N,
    trainer: NetworkTrainer<'a, N, O>,
}

impl<N: Trainable, O: Objective<N>> Training for Regression<'_, N, O> {
    fn step(&mut self) -> Result<Option<Progress>> {
        self.trainer.step()
    }

    fn step_count(&self) -> usize {
        self.trainer.state().step
    }

    fn total_steps(&self) -> usize {
        self.trainer.state().options.steps
    }

    fn is_finished(&self) -> bool {
        self.trainer.is_finished()
    }

    fn history(&mut self) -> &[Progress] {
        &self.trainer.state().history
    }

    fn save_state(&mut self, path: &Path, identity: &Identity) -> Result<()> {
        checkpoint::save_run(path, checkpoint::TRAINING, identity, self.trainer.state())
    }

    fn save_model(&self, path: &Path) -> Result<()> {
        let tensors = self.network.layout().write(self.trainer.best());
        write_atomically(path, &model_file::serialize(&self.card, &tensors)?)
    }
}
