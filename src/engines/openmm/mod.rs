//! OpenMM from Rust: energies and forces of batches ([`OpenMmTarget`]), Langevin dynamics ([`Simulation`]), and
//! dynamics with jumps or learned replica exchange.
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
use quick_xml::events::Event;

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

/// Loads OpenMM's platforms once: from `OPENMM_PLUGIN_DIR`, else from the installation used at build time.
fn load_plugins() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        let directory =
            std::env::var("OPENMM_PLUGIN_DIR").unwrap_or_else(|_| env!("MODEJUMP_OPENMM_PLUGINS").to_string());
        bridge::load_plugins(&directory)
            .map_err(|error| format!("could not load OpenMM plugins from {directory}: {error}"))
    };
    LOADED.get_or_init(load).clone().map_err(Error::Engine)
}

/// Version of the OpenMM library in use, such as "8.6".
pub fn version() -> Result<String> {
    Ok(bridge::openmm_version()?)
}

/// Particles and forces, as in OpenMM's `System` XML. Cheap to clone, shared among threads.
#[derive(Clone)]
pub struct System {
    inner: cxx::SharedPtr<bridge::System>,
    platform: String,
}

/// The default platform, in double precision.
const REFERENCE: &str = "Reference";

const NO_SYSTEM: &str = "this is not an OpenMM System: write one with openmm.XmlSerializer.serialize";

/// Checks that every element is closed: OpenMM's deserialiser reads part of a truncated file as if it were whole, or
/// crashes. Errors: an element that is not closed, or is closed by another name.
fn check_elements(xml: &str) -> Result<()> {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut open = Vec::new();
    let cut = |open: &[String]| {
        let within = open.last().map_or(String::new(), |name| format!(" within <{name}>"));
        Error::invalid(format!("the System is truncated{within}: write or copy the file again"))
    };
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => open.push(element.name().as_ref().to_string()),
            Ok(Event::End(_)) => _ = open.pop(),
            Ok(Event::Eof) if open.is_empty() => return Ok(()),
            Ok(Event::Eof) | Err(quick_xml::Error::Syntax(_)) => return Err(cut(&open)),
            Ok(_) => {}
            Err(error) => {
                let line =
                    1 + xml.as_bytes()[..reader.error_position() as usize].iter().filter(|b| **b == b'\n').count();
                return Err(Error::invalid(format!("line {line}: {error}; write or copy the file again")));
            }
        }
    }
}

impl System {
    /// Reads a file written by `openmm.XmlSerializer.serialize(system)`, leaving out the plugin's moves
    /// (`MonteCarloModeJump`): energies and dynamics are those of the System alone, in which such a move would act
    /// unseen ([`System::moves_left_out`]).
    ///
    /// Errors: the file cannot be read, is not XML, or holds no System.
    pub fn from_xml_file(path: impl AsRef<Path>) -> Result<System> {
        let path = path.as_ref();
        let xml = String::from_utf8(crate::io::read(path)?).map_err(|_| Error::file(path, NO_SYSTEM))?;
        System::from_xml(&xml).map_err(|error| Error::file(path, error.to_string()))
    }

    /// [`System::from_xml_file`], from the text.
    pub fn from_xml(xml: &str) -> Result<System> {
        load_plugins()?;
        // the deserialiser casts without a check, so other kinds of object must be rejected here
        if !xml.contains("<System") {
            return Err(Error::invalid(NO_SYSTEM));
        }
        check_elements(xml)?;
        Ok(System { inner: bridge::system_from_xml(xml)?, platform: REFERENCE.into() })
    }

    /// Selects the OpenMM platform for targets of this System and for walkers that make frames, instead of `Reference`.
    /// `CPU` is in single precision, and faster where `Reference` is slow, as with a CustomGBForce.
    pub fn on_platform(self, platform: &str) -> System {
        System { platform: platform.into(), ..self }
    }

    /// Name of the platform.
    pub fn platform(&self) -> &str {
        &self.platform
    }

    /// Number of particles, including virtual sites.
    pub fn n_particles(&self) -> usize {
        self.inner.n_particles()
    }

    /// Whether one of its forces changes the box (a barostat).
    pub fn has_barostat(&self) -> bool {
        self.inner.has_barostat()
    }

    /// Whether its dynamics fixes the centre of mass although the energy depends on its position (a CMMotionRemover
    /// beside a CustomExternalForce, or particles without mass): moves that shift the centre would sample more than the
    /// dynamics does.
    pub fn holds_centre_of_mass_in_a_field(&self) -> bool {
        self.inner.removes_centre_of_mass_motion() && self.inner.is_held_in_space()
    }

    /// Whether one of its forces uses periodic boundaries. Errors: a force that does not report it.
    pub fn is_periodic(&self) -> Result<bool> {
        Ok(self.inner.is_periodic()?)
    }

    /// Initial box vectors (nm), if the System is periodic. Errors: those of [`System::is_periodic`].
    pub fn box_vectors(&self) -> Result<Option<BoxVectors>> {
        let mut flat = [0.0; 9];
        self.inner.default_box_vectors(&mut flat)?;
        Ok(self.is_periodic()?.then(|| box_from_slice(&flat)))
    }

    /// Number of `MonteCarloModeJump` forces in the file that were left out.
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

    /// Errors: one of these particles, which a move would displace, is held in place by the System or positioned by
    /// others.
    fn require_free(&self, particles: &[usize]) -> Result<()> {
        let masses = self.masses();
        match particles.iter().find(|&&particle| masses.get(particle) == Some(&0.0)) {
            Some(particle) => Err(Error::Unsupported(format!(
                "particle {particle} has no mass: it is fixed in place by the System or is a virtual site, so a jump \
                 cannot move it"
            ))),
            None => Ok(()),
        }
    }

    /// Constraints among `particles`, the model's atoms in order, with the model's indices; None if there are none.
    /// Errors: those of [`Constraints::among`].
    fn constraints_of(&self, model: &dyn Model, particles: &[usize]) -> Result<Option<Constraints>> {
        self.constraints_among(particles, model.card().kept_bonds(), &|atom| model.card().label(atom))
    }

    /// [`constraints_of`](System::constraints_of) for samples in which these bonds (i, j, length in nm) have a fixed
    /// length; `label` names atoms.
    fn constraints_among(
        &self,
        particles: &[usize],
        kept: &[(usize, usize, f64)],
        label: &dyn Fn(usize) -> String,
    ) -> Result<Option<Constraints>> {
        let all = self.masses();
        // a particle that does not exist has no constraint; it is refused when the solute is made
        let masses: Vec<f64> = particles.iter().map(|&particle| all.get(particle).copied().unwrap_or(0.0)).collect();
        Constraints::among(&self.constraints()?, particles, &masses, kept, label)
    }

    /// Bonded pairs: those of every HarmonicBondForce and the constraints (which replace bonds), sorted, without
    /// duplicates.
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
