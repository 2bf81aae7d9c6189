//! Molecular-dynamics engines that supply energies, forces and trajectories.

#[cfg(feature = "openmm")]
pub mod openmm;
