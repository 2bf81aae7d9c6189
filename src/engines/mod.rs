//! Molecular-dynamics engines that supply energies, forces and trajectories.

#[cfg(feature = "cli")]
pub mod gromacs;
pub mod langevin;
#[cfg(feature = "openmm")]
pub mod openmm;
