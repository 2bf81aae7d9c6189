//! The battery: tests that a Monte Carlo code can fail.
//!
//! `guards` holds the tests as functions that return the defect they found, `faults` plants eleven known mistakes and
//! requires that the named guard finds each, and `moves` applies the guards to every move on every system.

mod ahead;
mod annealed;
mod delayed_acceptance;
mod densities;
mod driven;
mod exchange;
mod faults;
mod guards;
mod latent_walk;
mod mode_jump;
#[path = "../support/molecule.rs"]
mod molecule;
mod moves;
mod refusals;
mod restart;
mod rotations;
mod statistics;
mod steered;
mod surrogate;
mod systems;
