//! Molecular-dynamics engines that supply energies, forces and trajectories.

pub mod langevin;
#[cfg(feature = "openmm")]
pub mod openmm;
