//! OpenMM from Rust: energies and forces of batches ([`OpenMmTarget`]) and Langevin dynamics ([`Simulation`]).
//!
//! Units are OpenMM's own: nm, ps, kJ/mol, dalton, K. For molecules of some tens of atoms the `Reference` platform is
//! the fastest (no thread hand-over per call), so it is the default.

mod exchanging;
mod ffi;
mod jumping;
mod simulation;
mod solvent;
mod target;
#[cfg(test)]
mod tests;

pub use exchanging::{ExchangingReplicas, ReplicasState};
pub use jumping::JumpingSimulation;
pub use simulation::{Simulation, SimulationOptions};
pub use solvent::Solute;
pub use target::OpenMmTarget;

use std::path::Path;
use std::sync::OnceLock;

use crate::coordinates::constraints::Constraints;
use crate::coordinates::whole::{box_from_slice, BoxVectors};
use crate::error::{Error, Result};
use crate::models::Model;
use ffi::bridge;

// SAFETY: an OpenMM::System is not changed after it was read, and every access through `&System` is const in C++.
unsafe impl Send for bridge::System {}
// SAFETY: as above.
unsafe impl Sync for bridge::System {}
// SAFETY: a Context may move between threads as long as one thread at a time uses it; all uses take `&mut`.
unsafe impl Send for bridge::Evaluator {}
// SAFETY: as above.
unsafe impl Send for bridge::Simulation {}
// SAFETY: as above.
unsafe impl Send for bridge::Solvent {}

impl From<cxx::Exception> for Error {
    fn from(exception: cxx::Exception) -> Error {
        Error::Engine(format!("OpenMM: {}", exception.what()))
    }
}

/// Loads OpenMM's platforms once: from `OPENMM_PLUGIN_DIR`, else from the installation that this was built with.
fn load_plugins() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        let directory =
            std::env::var("OPENMM_PLUGIN_DIR").unwrap_or_else(|_| env!("MODEJUMP_OPENMM_PLUGINS").to_string());
        bridge::load_plugins(&directory).map_err(|error| format!("plugins in {directory}: {error}"))
    };
    LOADED.get_or_init(load).clone().map_err(Error::Engine)
}

/// Version of the OpenMM library in use, such as "8.6".
pub fn version() -> Result<String> {
    Ok(bridge::openmm_version()?)
}

/// Particles and forces, as OpenMM's `System` XML stores them. Cheap to clone, shared among threads.
#[derive(Clone)]
pub struct System {
    inner: cxx::SharedPtr<bridge::System>,
    platform: String,
}

/// In double precision.
const REFERENCE: &str = "Reference";

const NO_SYSTEM: &str = "this is not an OpenMM System: write one with openmm.XmlSerializer.serialize";

impl System {
    /// Reads what `openmm.XmlSerializer.serialize(system)` wrote, but for the plugin's moves (`MonteCarloModeJump`):
    /// the System is what energies and dynamics are those of, and a move of its own would act beside them unseen
    /// ([`System::moves_left_out`]).
    ///
    /// Errors: the file cannot be read, is not XML, or holds no System.
    pub fn from_xml_file(path: impl AsRef<Path>) -> Result<System> {
        let path = path.as_ref();
        let xml = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::InvalidData => Error::file(path, NO_SYSTEM),
            _ => Error::io(path, source),
        })?;
        System::from_xml(&xml).map_err(|error| Error::file(path, error.to_string()))
    }

    /// As [`System::from_xml_file`], from the text.
    pub fn from_xml(xml: &str) -> Result<System> {
        load_plugins()?;
        // The deserialiser casts without a check, so another kind of object has to be stopped here.
        if !xml.contains("<System") {
            return Err(Error::invalid(NO_SYSTEM));
        }
        Ok(System { inner: bridge::system_from_xml(xml)?, platform: REFERENCE.into() })
    }

    /// Has targets of it, and walkers that make frames, compute on this OpenMM platform instead of `Reference`. `CPU`
    /// is in single precision, and faster where `Reference` is slow, as with a CustomGBForce.
    pub fn on_platform(self, platform: &str) -> System {
        System { platform: platform.into(), ..self }
    }

    /// The platform's name.
    pub fn platform(&self) -> &str {
        &self.platform
    }

    /// Particles, virtual sites included.
    pub fn n_particles(&self) -> usize {
        self.inner.n_particles()
    }

    /// Whether one of its forces changes the box.
    pub fn has_barostat(&self) -> bool {
        self.inner.has_barostat()
    }

    /// Whether its dynamics keeps the centre of mass where it is though the energy depends on where that is (a CMMotionRemover
    /// beside a CustomExternalForce, or particles without mass): what moves the centre samples more than the dynamics does.
    pub fn holds_centre_of_mass_in_a_field(&self) -> bool {
        self.inner.removes_centre_of_mass_motion() && self.inner.is_held_in_space()
    }

    /// Whether one of its forces acts across the box. Errors: a force that does not say so.
    pub fn is_periodic(&self) -> Result<bool> {
        Ok(self.inner.is_periodic()?)
    }

    /// Box vectors (nm) that a run begins with, if the System is periodic. Errors: those of [`System::is_periodic`].
    pub fn box_vectors(&self) -> Result<Option<BoxVectors>> {
        let mut flat = [0.0; 9];
        self.inner.default_box_vectors(&mut flat)?;
        Ok(self.is_periodic()?.then(|| box_from_slice(&flat)))
    }

    /// Forces `MonteCarloModeJump` that the file has and the System has not.
    pub fn moves_left_out(&self) -> usize {
        self.inner.moves_left_out()
    }

    /// Masses, dalton; 0 for virtual sites and frozen particles.
    pub fn masses(&self) -> Vec<f64> {
        let mut masses = vec![0.0; self.n_particles()];
        self.inner.masses(&mut masses);
        masses
    }

    /// Constrained pairs of particles and their distances, nm.
    pub fn constraints(&self) -> Result<Vec<(usize, usize, f64)>> {
        let (mut pairs, mut lengths) = (Vec::new(), Vec::new());
        self.inner.constraints(&mut pairs, &mut lengths)?;
        Ok(pairs.chunks(2).zip(lengths).map(|(pair, length)| (pair[0] as usize, pair[1] as usize, length)).collect())
    }

    /// Errors: a particle of these, which a move would move, that the System holds in place or sets by others.
    fn require_free(&self, particles: &[usize]) -> Result<()> {
        let masses = self.masses();
        match particles.iter().find(|&&particle| masses.get(particle) == Some(&0.0)) {
            Some(particle) => Err(Error::Unsupported(format!(
                "particle {particle} has no mass: the System holds it in place, or it is a virtual site, and a jump would move it"
            ))),
            None => Ok(()),
        }
    }

    /// Those among `particles`, which are the model's atoms in its order, by the model's indices, if there are any;
    /// errors as those of [`Constraints::among`].
    fn constraints_of(&self, model: &dyn Model, particles: &[usize]) -> Result<Option<Constraints>> {
        self.constraints_among(particles, model.card().kept_bonds(), &|atom| model.card().label(atom))
    }

    /// The same for samples with these bonds (i, j, length in nm) at one length; `label` names atoms.
    fn constraints_among(
        &self,
        particles: &[usize],
        kept: &[(usize, usize, f64)],
        label: &dyn Fn(usize) -> String,
    ) -> Result<Option<Constraints>> {
        let all = self.masses();
        // a particle that is not there has no constraint either; it is refused where the solute is made
        let masses: Vec<f64> = particles.iter().map(|&particle| all.get(particle).copied().unwrap_or(0.0)).collect();
        Constraints::among(&self.constraints()?, particles, &masses, kept, label)
    }

    /// Bonded pairs: those of every HarmonicBondForce, and the constraints (which replace bonds), sorted, each once.
    pub fn bonds(&self) -> Result<Vec<(usize, usize)>> {
        let mut pairs = Vec::new();
        self.inner.bonds(&mut pairs)?;
        let sorted = |pair: &[u64]| (pair[0].min(pair[1]) as usize, pair[0].max(pair[1]) as usize);
        let mut bonds: Vec<_> = pairs.chunks(2).map(sorted).collect();
        bonds.sort_unstable();
        bonds.dedup();
        Ok(bonds)
    }
}
