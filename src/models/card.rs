//! Description of a model in its file: the JSON under the metadata key `modejump`.

use super::continuous::ContinuousConfig;
use super::coupling::CouplingConfig;
use super::energy::EnergyConfig;
use super::{egnn_flow, graphormer_ebm, gvp_ebm, gvp_flow, invariant_ebm, mlp_ebm, modes, tarflow};
use crate::coordinates::chirality::Stereocentre;
use crate::coordinates::{CoordinatesConfig, Topology};
use crate::density::Exactness;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the file format.
pub const FORMAT: u32 = 1;

/// A model's description, the JSON in its file: its kind, atoms, temperature and provenance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    pub format: u32,
    pub model: ModelConfig,
    pub coordinates: CoordinatesConfig,
    pub exactness: Exactness,
    /// Temperature of the distribution the model was trained for, K.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Whether and how the model follows the temperature of its user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steering: Option<SteeringConfig>,
    #[serde(default)]
    pub target: Option<TargetInfo>,
    /// Atoms in the order of the coordinates; absent for models of abstract coordinates.
    #[serde(default)]
    pub topology: Option<Topology>,
    /// Where the model comes from: commands, data, version, reference.
    #[serde(default)]
    pub provenance: BTreeMap<String, String>,
}

/// A model that can be evaluated at other temperatures than that of its training ([`crate::models::Steering`]).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SteeringConfig {
    /// Number of auxiliary coordinates v, the last of the model's coordinates; their target is the normal density of
    /// variance τ.
    pub auxiliary: usize,
}

/// A kind of model, identified by the configuration in its files.
pub trait ModelKind: Clone + Into<ModelConfig> {
    /// Name in model files and on the command line.
    const NAME: &'static str;

    /// The configuration, if the model is of this kind.
    fn of(model: &ModelConfig) -> Option<&Self>;
}

macro_rules! kinds {
    ($($variant:ident($config:ty) = $name:literal,)+) => {
        /// Kind and sizes of the model.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "config")]
        pub enum ModelConfig {
            $(#[serde(rename = $name)] $variant($config),)+
        }

        impl ModelConfig {
            /// [`ModelKind::NAME`].
            pub fn kind(&self) -> &'static str {
                match self {
                    $(ModelConfig::$variant(_) => $name,)+
                }
            }
        }

        $(
            impl From<$config> for ModelConfig {
                fn from(config: $config) -> ModelConfig {
                    ModelConfig::$variant(config)
                }
            }

            impl ModelKind for $config {
                const NAME: &'static str = $name;

                fn of(model: &ModelConfig) -> Option<&Self> {
                    match model {
                        ModelConfig::$variant(config) => Some(config),
                        _ => None,
                    }
                }
            }
        )+
    };
}

kinds! {
    Coupling(CouplingConfig) = "coupling",
    EgnnFlow(egnn_flow::Config) = "egnn_flow",
    GraphormerEbm(graphormer_ebm::Config) = "graphormer_ebm",
    GvpEbm(gvp_ebm::Config) = "gvp_ebm",
    GvpFlow(gvp_flow::Config) = "gvp_flow",
    InvariantEbm(invariant_ebm::Config) = "invariant_ebm",
    MlpEbm(mlp_ebm::Config) = "mlp_ebm",
    Modes(modes::Config) = "modes",
    Tarflow(tarflow::Config) = "tarflow",
    TransferableTarflow(tarflow::transferable::Config) = "transferable_tarflow",
}

impl ModelConfig {
    /// The energy's settings, if it is an energy-based model.
    pub fn energy_mut(&mut self) -> Option<&mut EnergyConfig> {
        match self {
            ModelConfig::GraphormerEbm(config) => Some(&mut config.energy),
            ModelConfig::GvpEbm(config) => Some(&mut config.energy),
            ModelConfig::InvariantEbm(config) => Some(&mut config.energy),
            ModelConfig::MlpEbm(config) => Some(&mut config.energy),
            ModelConfig::Coupling(_)
            | ModelConfig::EgnnFlow(_)
            | ModelConfig::GvpFlow(_)
            | ModelConfig::Modes(_)
            | ModelConfig::Tarflow(_)
            | ModelConfig::TransferableTarflow(_) => None,
        }
    }

    /// The flow's settings, if it is a continuous flow.
    pub fn flow(&self) -> Option<&ContinuousConfig> {
        match self {
            ModelConfig::EgnnFlow(config) => Some(&config.flow),
            ModelConfig::GvpFlow(config) => Some(&config.flow),
            _ => None,
        }
    }

    /// Whether the model can tell two equal atoms, bound to the same ones, from each other: a network on a graph of atoms
    /// sees their features only.
    pub(crate) fn tells_apart(&self, [a, b]: [usize; 2]) -> bool {
        let differ = |features: &[Vec<usize>]| features.get(a) != features.get(b);
        match self {
            ModelConfig::EgnnFlow(config) => differ(&config.network.features),
            ModelConfig::GraphormerEbm(config) => config.network.types.get(a) != config.network.types.get(b),
            ModelConfig::GvpEbm(config) => differ(&config.network.features),
            ModelConfig::GvpFlow(config) => differ(&config.network.features),
            _ => true,
        }
    }

    /// The exactness of log q, as far as the configuration determines it.
    fn exactness(&self) -> Exactness {
        match self {
            ModelConfig::GraphormerEbm(_)
            | ModelConfig::GvpEbm(_)
            | ModelConfig::InvariantEbm(_)
            | ModelConfig::MlpEbm(_) => Exactness::Surrogate,
            ModelConfig::EgnnFlow(egnn_flow::Config { flow, .. })
            | ModelConfig::GvpFlow(gvp_flow::Config { flow, .. }) => flow.exactness(),
            ModelConfig::Coupling(_)
            | ModelConfig::Modes(_)
            | ModelConfig::Tarflow(_)
            | ModelConfig::TransferableTarflow(_) => Exactness::Exact,
        }
    }
}

/// The potential that a model was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetInfo {
    pub description: String,
    /// Hash of the System file, hexadecimal.
    #[serde(default)]
    pub hash: Option<String>,
}

impl ModelCard {
    /// Checks the parts that do not depend on the kind of model. Errors: what is wrong, in words.
    pub fn check(&self) -> std::result::Result<(), String> {
        if let Some(t) = self.temperature.filter(|t| !(*t > 0.0 && t.is_finite())) {
            return Err(format!("the temperature must be positive and finite, not {t} K"));
        }
        let exactness = self.model.exactness();
        if self.exactness != exactness {
            let (found, expected, kind) = (self.exactness.name(), exactness.name(), self.model.kind());
            return Err(format!("the exactness is `{found}`, but that of this model of kind {kind} is `{expected}`"));
        }
        let Some(topology) = &self.topology else { return Ok(()) };
        let n = topology.n_atoms();
        let lists = [topology.names.len(), topology.elements.len(), topology.residues.len()];
        if lists.iter().any(|&length| length != n) || topology.bonds.iter().flatten().any(|&atom| atom >= n) {
            return Err(
                "the names, elements, residues and bonds of the topology do not match its number of atoms".into()
            );
        }
        // which messages show in terminals
        let mut shown = topology.names.iter().chain(&topology.elements).chain(&topology.residues);
        match shown.find(|text| text.chars().any(char::is_control)) {
            Some(text) => Err(format!("a name of the topology has control characters: {text:?}")),
            None => Ok(()),
        }
    }

    /// The card of a coupling flow; temperature, target, topology and provenance are left unset.
    pub fn of_coupling(config: CouplingConfig, coordinates: CoordinatesConfig) -> ModelCard {
        ModelCard::new(config.into(), coordinates)
    }

    /// The card of a model of `dimension` Cartesian coordinates; the rest is left unset as in
    /// [`ModelCard::of_coupling`].
    pub fn of_cartesian(model: impl Into<ModelConfig>, dimension: usize) -> ModelCard {
        ModelCard::new(model.into(), CoordinatesConfig::Cartesian { dimension })
    }

    /// The card of the same transferable model for another peptide, of either hand.
    pub fn of_peptide(&self, topology: Topology) -> ModelCard {
        let coordinates = CoordinatesConfig::Cartesian { dimension: 3 * topology.n_atoms() };
        let mut model = self.model.clone();
        if let ModelConfig::TransferableTarflow(config) = &mut model {
            config.stereocentres.clear();
        }
        // the target was that of the other peptide
        ModelCard { model, coordinates, topology: Some(topology), target: None, ..self.clone() }
    }

    fn new(model: ModelConfig, coordinates: CoordinatesConfig) -> ModelCard {
        let exactness = model.exactness();
        ModelCard {
            format: FORMAT,
            model,
            coordinates,
            exactness,
            temperature: None,
            steering: None,
            target: None,
            topology: None,
            provenance: BTreeMap::new(),
        }
    }

    /// Bonds that have exactly this length in every sample: (i, j, nm).
    pub fn kept_bonds(&self) -> &[(usize, usize, f64)] {
        match &self.coordinates {
            CoordinatesConfig::Internal { constraints, .. } => constraints,
            CoordinatesConfig::Cartesian { .. } => &[],
        }
    }

    /// Centres whose chirality the model preserves.
    pub fn stereocentres(&self) -> &[Stereocentre] {
        match (&self.coordinates, &self.model) {
            (CoordinatesConfig::Internal { stereocentres, .. }, _) => stereocentres,
            (_, ModelConfig::Tarflow(config)) => &config.stereocentres,
            (_, ModelConfig::TransferableTarflow(config)) => &config.stereocentres,
            _ => self.model.flow().map_or(&[], |config| &config.stereocentres),
        }
    }

    /// As [`Topology::match_atoms`]; without atom names the order is taken as it is. Errors: also another number of
    /// atoms.
    pub fn match_atoms(&self, residues: &[&str], names: &[&str]) -> Result<Vec<usize>> {
        if let Some(topology) = &self.topology {
            return topology.match_atoms(residues, names);
        }
        let dimension = match &self.coordinates {
            CoordinatesConfig::Cartesian { dimension } => {
                dimension.saturating_sub(self.steering.map_or(0, |steering| steering.auxiliary))
            }
            CoordinatesConfig::Internal { rows, .. } => 3 * (rows.len() + 3),
        };
        match names.len().checked_mul(3) == Some(dimension) {
            true => Ok((0..names.len()).collect()),
            false => {
                Err(Error::invalid(format!("found {} atoms, but the model has {dimension} coordinates", names.len())))
            }
        }
    }

    /// Requires atoms that fit the coordinates. Errors: a topology whose number of atoms does not match the `dimension`
    /// of x.
    pub(crate) fn require_dimension(&self, dimension: usize) -> Result<()> {
        match self.topology.as_ref().map(Topology::n_atoms).filter(|atoms| 3 * atoms != dimension) {
            Some(atoms) => Err(Error::invalid(format!(
                "the topology has {atoms} atoms, but the model has {dimension} coordinates"
            ))),
            None => Ok(()),
        }
    }

    /// Label of an atom for messages.
    pub fn label(&self, atom: usize) -> String {
        match &self.topology {
            Some(topology) => topology.label(atom),
            None => format!("atom {}", atom + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exactness_that_the_model_does_not_have_is_refused() {
        let config = CouplingConfig { uniform: vec![], layers: vec![] };
        let card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 9 });
        assert_eq!(card.check(), Ok(()));
        let reason = ModelCard { exactness: Exactness::Surrogate, ..card }.check().unwrap_err();
        assert!(reason.contains("is `surrogate`") && reason.contains("coupling is `exact`"), "{reason}");
    }

    #[test]
    fn names_that_a_terminal_would_obey_are_refused() {
        let config = CouplingConfig { uniform: vec![], layers: vec![] };
        let topology = |name: &str| Topology {
            names: vec![name.into()],
            elements: vec!["C".into()],
            residues: vec!["LIG1".into()],
            bonds: vec![],
        };
        let card = |name| ModelCard {
            topology: Some(topology(name)),
            ..ModelCard::of_coupling(config.clone(), CoordinatesConfig::Cartesian { dimension: 3 })
        };
        assert_eq!(card("C1'").check(), Ok(()));
        assert!(card("\u{1b}]0;C\u{7}").check().unwrap_err().contains(r"\u{1b}]0;C"));
    }

    #[test]
    fn without_names_atoms_are_counted() {
        let config = CouplingConfig { uniform: vec![], layers: vec![] };
        let of = |dimension| ModelCard::of_coupling(config.clone(), CoordinatesConfig::Cartesian { dimension });
        let matched = |card: &ModelCard, n: usize| card.match_atoms(&vec!["A1"; n], &vec!["C"; n]);
        assert_eq!(matched(&of(9), 3).unwrap(), [0, 1, 2]);
        let steerable = ModelCard { steering: Some(SteeringConfig { auxiliary: 2 }), ..of(11) };
        assert_eq!(matched(&steerable, 3).unwrap(), [0, 1, 2]);
        for (card, n) in [(of(2), 3), (of(2), 0), (of(9), 2), (of(11), 3), (steerable, 4)] {
            let message = matched(&card, n).unwrap_err().to_string();
            assert!(message.contains(&format!("found {n} atoms, but the model has")), "{message}");
        }
    }
}
