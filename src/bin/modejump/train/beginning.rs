//! Start of the training of a network: a new model, or that of `--start`.

use super::Train;
use modejump::coordinates::Topology;
use modejump::io::model_file::{ModelFile, Tensor};
use modejump::models::card::{ModelCard, ModelKind};
use modejump::models::network::Trainable;
use modejump::rng::{Stream, StreamId};
use modejump::train::NetworkOptions;
use modejump::Result;
use std::collections::BTreeMap;

/// Configuration and card of a new model, or of that of `--start`, for which the tensors are present too.
pub(super) struct Beginning<C> {
    pub config: C,
    pub card: ModelCard,
    pub tensors: Option<BTreeMap<String, Tensor>>,
}

impl<C: ModelKind> Beginning<C> {
    pub fn new(config: C, atoms: usize) -> Beginning<C> {
        let card = ModelCard::of_cartesian(config.clone(), 3 * atoms);
        Beginning { config, card, tensors: None }
    }

    /// Parameters of the model of `--start`, or `new` ones. Errors name the tensor.
    pub fn parameters<N: Trainable>(&self, network: &N, new: impl FnOnce(&N) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        match &self.tensors {
            Some(tensors) => network.layout().read(tensors),
            None => new(network),
        }
    }
}

impl Train {
    /// Errors: the model of --start is of another kind, or has other atoms.
    pub(super) fn begin<C: ModelKind>(
        &self,
        topology: &Topology,
        new: impl FnOnce() -> Result<C>,
    ) -> Result<Beginning<C>> {
        match &self.start {
            Some(path) => self.go_on(self.start_model(path, topology)?),
            None => Ok(Beginning::new(new()?, topology.n_atoms())),
        }
    }

    /// Starts from the model of --start. Errors: it is of another kind.
    pub(super) fn go_on<C: ModelKind>(&self, ModelFile { card, tensors, name, .. }: ModelFile) -> Result<Beginning<C>> {
        match C::of(&card.model) {
            Some(config) => Ok(Beginning { config: config.clone(), card, tensors: Some(tensors) }),
            None => Err(self.other_kind(name.as_ref(), &card.model)),
        }
    }
}

/// Random numbers for new parameters.
pub(super) fn initial_stream(options: &NetworkOptions) -> Stream {
    Stream::new(options.seed, StreamId::Initialise, 0, 0)
}
