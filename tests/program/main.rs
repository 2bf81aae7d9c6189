//! The program as a user runs it: what its commands print, write and refuse.
//!
//! `command` has what the tests share; the others have the names of commands, or of what several commands have in common.

mod command;
mod compare;
mod convert;
mod devices;
mod evaluate;
#[cfg(feature = "openmm")]
mod exchange;
mod frames;
mod gromacs;
mod inspect;
#[cfg(feature = "openmm")]
mod md;
mod modes;
mod plot;
#[cfg(feature = "openmm")]
mod reweight;
#[cfg(feature = "openmm")]
mod rounds;
mod sample;
#[cfg(feature = "openmm")]
mod smc;
#[cfg(feature = "openmm")]
mod steerable;
#[path = "../support/tarflow.rs"]
mod tarflow;
mod train;
