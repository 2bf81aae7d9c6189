//! What a training uses `--system` for: energies, constraints, and a check that its atoms are those of the topology.

use super::Train;
use modejump::coordinates::Topology;
use modejump::models::Model;
use modejump::target::Target;
use modejump::{Error, Result};
#[cfg(feature = "openmm")]
use {
    crate::common::{require_atoms, target_of_samples, threads, warn_of_box},
    modejump::engines::openmm::{OpenMmTarget, System},
};

/// A System with u − ½ ln det Z of its constraints as the reduced potential, so that ln Z is that of its ensemble. The
/// gradient is that of u: between configurations the term differs by some 0.001.
#[cfg(feature = "openmm")]
struct OfEnsemble(OpenMmTarget);

#[cfg(feature = "openmm")]
impl OfEnsemble {
    fn subtract_metric(&mut self, x: &[f64], u: &mut [f64]) {
        let rows = x.chunks_exact(self.0.dimension()).zip(u).filter(|(_, u)| u.is_finite());
        rows.for_each(|(x, u)| *u -= self.0.log_metric(x));
    }
}

#[cfg(feature = "openmm")]
impl Target for OfEnsemble {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.0.reduced_potential(x, u)?;
        self.subtract_metric(x, u);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.0.reduced_potential_gradient(x, u, gradient)?;
        self.subtract_metric(x, u);
        Ok(())
    }
}

#[cfg(feature = "openmm")]
impl Train {
    /// Errors: the System has other atoms, or another atom order, or atoms that no jump can move.
    pub(super) fn check_system(&self, topology: &Topology) -> Result<()> {
        match (self.open_system()?, &self.system) {
            (Some(system), Some(path)) => {
                require_atoms(path, &system, topology)?;
                if let Some(atom) = system.masses().iter().position(|&mass| mass == 0.0) {
                    let reason = format!(
                        "{} has no mass: virtual sites and frozen particles are not supported by generators; train with a System and a \
                         topology without it, and select the atoms of the model in the simulation (--solute, `particles`)",
                        topology.label(atom)
                    );
                    return Err(Error::file(path, reason));
                }
                warn_of_box(&self.topology, path, &system)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn open_system(&self) -> Result<Option<System>> {
        self.system.as_ref().map(|path| self.platform.read_system(path)).transpose()
    }

    /// The ensemble of the System. Errors: a bond that the System constrains and the model varies, or the reverse.
    pub(super) fn target(&self, model: &dyn Model) -> Result<Option<Box<dyn Target>>> {
        let Some(system) = self.open_system()? else { return Ok(None) };
        let target = OpenMmTarget::new(&system, self.kelvin(), threads())?.with_constraints(&system, model)?;
        Ok(Some(Box::new(OfEnsemble(target))))
    }

    /// Constraints: pairs of atoms and their distance, nm.
    pub(super) fn constraints(&self) -> Result<Vec<(usize, usize, f64)>> {
        self.open_system()?.map_or(Ok(Vec::new()), |system| system.constraints())
    }

    /// Effective reduced potential of samples `x[n][atoms][3]` (nm), −ln of their density in the ensemble of the System
    /// up to a constant: u − ½ ln det Z of constraints. Errors name a bond that the System constrains and the samples
    /// vary, or the reverse.
    pub(super) fn energies_of_samples(&self, x: &[f64], topology: &Topology) -> Result<Option<Vec<f64>>> {
        let (Some(system), Some(path)) = (self.open_system()?, &self.system) else { return Ok(None) };
        let mut target = OfEnsemble(target_of_samples(path, &system, x, topology, self.kelvin())?);
        let mut u = vec![0.0; x.len() / target.dimension()];
        target.reduced_potential(x, &mut u)?;
        Ok(Some(u))
    }
}

#[cfg(not(feature = "openmm"))]
impl Train {
    pub(super) fn check_system(&self, _: &Topology) -> Result<()> {
        Ok(()) // the first use of its energies reports that this build has none
    }

    pub(super) fn target(&self, _: &dyn Model) -> Result<Option<Box<dyn Target>>> {
        self.refuse_system().map(|()| None)
    }

    fn refuse_system(&self) -> Result<()> {
        match &self.system {
            Some(_) => Err(Error::Unsupported("--system needs a build with `--features openmm`".into())),
            None => Ok(()),
        }
    }

    pub(super) fn constraints(&self) -> Result<Vec<(usize, usize, f64)>> {
        Ok(Vec::new())
    }

    pub(super) fn energies_of_samples(&self, _: &[f64], _: &Topology) -> Result<Option<Vec<f64>>> {
        self.refuse_system().map(|()| None)
    }
}
