//! Transferable TarFlow and Prose, trained by maximum likelihood on one or more peptides.

use super::beginning::Beginning;
use super::tarflow::{default_training, heads, standard_deviation};
use super::Train;
use crate::common::require_hands;
use modejump::coordinates::chirality::stereocentres;
use modejump::coordinates::Topology;
use modejump::io::model_file;
use modejump::models::card::ModelCard;
use modejump::models::network::Trainable;
use modejump::models::tarflow::format::published_orders;
use modejump::models::tarflow::transferable::{Config, EmbeddingConfig, RESIDUE_BASE};
use modejump::models::tarflow::{PeptideConfig, TarNetwork};
use modejump::train::likelihood::{OtherPeptide, Peptides};
use modejump::train::network_trainer::in_units;
use modejump::train::NetworkOptions;
use modejump::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A new transferable TarFlow and its training.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransferableDesign {
    /// Whether the network has adaptive layer norms, transitions and lookahead conditioning (Prose); otherwise it is a
    /// TarFlow with additive conditioning.
    prose: bool,
    channels: usize,
    blocks: usize,
    layers: usize,
    head_size: usize,
    expansion: usize,
    /// Peptides in addition to that of --topology and --frames. Each row of a batch is of any of them, with equal
    /// probability.
    peptides: Vec<PeptideFrames>,
    pub(super) train: NetworkOptions,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PeptideFrames {
    topology: PathBuf,
    frames: Vec<PathBuf>,
}

impl Default for TransferableDesign {
    fn default() -> TransferableDesign {
        TransferableDesign {
            prose: true,
            channels: 64,
            blocks: 8,
            layers: 2,
            head_size: 32,
            expansion: 4,
            peptides: Vec::new(),
            train: default_training(),
        }
    }
}

impl TransferableDesign {
    /// Files that it names, in addition to --topology and --frames.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.peptides.iter().flat_map(|peptide| [&peptide.topology].into_iter().chain(&peptide.frames))
    }

    /// Errors: the number of channels is no multiple of the head size.
    fn network(&self) -> Result<PeptideConfig> {
        let TransferableDesign { prose, channels, blocks, layers, head_size, expansion, .. } = *self;
        Ok(PeptideConfig {
            channels,
            blocks,
            layers,
            heads: heads(channels, head_size)?,
            expansion,
            orders: published_orders(prose),
            most_atoms: None,
            embedding: EmbeddingConfig {
                atom_types: 55,
                residue_types: 21,
                part: channels,
                hidden: channels,
                width: channels,
                base: RESIDUE_BASE,
            },
            lookahead: prose,
            qk_norms: true,
            adaptive: prose,
            transition: prose,
        })
    }
}

/// A peptide, the file it comes from, and its frames in nm.
struct Molecule<'a> {
    path: &'a Path,
    topology: Topology,
    frames: Vec<f64>,
}

impl Train {
    pub(super) fn transferable(
        &self,
        design: &TransferableDesign,
        topology: Topology,
        x0: &[f64],
        frames: Vec<f64>,
    ) -> Result<Value> {
        let stereocentres = stereocentres(&topology, x0);
        let mut molecules = vec![Molecule { path: &self.topology, topology, frames }];
        for (peptide, PeptideFrames { topology: path, frames }) in (1..).zip(&design.peptides) {
            let (topology, x0) = Topology::from_pdb(path)?;
            let frames = self.resampled(frames, &topology, peptide, design.train.held_out)?;
            require_hands(path, &topology, &x0, &frames, true)?;
            molecules.push(Molecule { path, topology, frames });
        }
        share_numbers(&mut molecules);
        let topology = &molecules[0].topology;
        let begin = match &self.start {
            Some(path) => {
                let begin = self.go_on::<Config>(model_file::open(path)?)?;
                let config = Config { stereocentres, ..begin.config.clone() };
                let card = ModelCard { model: config.clone().into(), ..begin.card.of_peptide(topology.clone()) };
                Beginning { config, card, ..begin }
            }
            None => {
                let parts: Vec<(&[f64], usize)> =
                    molecules.iter().map(|m| (m.frames.as_slice(), 3 * m.topology.n_atoms())).collect();
                let units_per_nm = 1.0 / standard_deviation(&parts);
                let config = Config { network: design.network()?, units_per_nm, noisy_centroid: true, stereocentres };
                Beginning::new(config, topology.n_atoms())
            }
        };
        let config = &begin.config;
        let mut others = Vec::new();
        for molecule in &molecules[1..] {
            let network = network(&config.network, molecule)?;
            let frames = in_units(&molecule.frames, network.dimension(), config.units_per_nm);
            others.push(OtherPeptide { network, topology: molecule.topology.clone(), frames });
        }
        let first = molecules.swap_remove(0);
        let network = network(&config.network, &first)?;
        let parameters = begin.parameters(&network, |network| Ok(network.initial(design.train.seed)))?;
        let objective = Peptides { noisy_centroid: config.noisy_centroid, others };
        let frames = (first.frames, config.units_per_nm);
        self.regress(begin.card, first.topology, (&network, parameters), objective, frames, &design.train)
    }
}

/// Errors name the file, and the residue or atom that cannot be expressed.
fn network(config: &PeptideConfig, molecule: &Molecule) -> Result<TarNetwork> {
    TarNetwork::of_peptide(config, &molecule.topology).map_err(|e| Error::file(molecule.path, e.to_string()))
}

/// Equal numbers of frames of each peptide, spread over all its files: a frame is held out of all or of none.
fn share_numbers(molecules: &mut [Molecule]) {
    let count = |m: &Molecule| m.frames.len() / (3 * m.topology.n_atoms());
    let fewest = molecules.iter().map(count).min().unwrap_or(0);
    for molecule in molecules {
        let frames = count(molecule);
        if frames > fewest {
            let path = molecule.path.display();
            eprintln!("note: using {fewest} of the {frames} frames of {path}, as many as of the other peptides");
            let width = 3 * molecule.topology.n_atoms();
            let row = |i: usize| &molecule.frames[i * frames / fewest * width..][..width];
            molecule.frames = (0..fewest).flat_map(row).copied().collect();
        }
    }
}
