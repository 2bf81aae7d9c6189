//! Generator moves that live inside a molecular-dynamics engine.
//!
//! Six concepts carry the library: [`density::Density`], [`target::Target`], `moves::Proposal`, `moves::Move`,
//! [`weights`]
//! and [`rng::Stream`]. Everything else public is built on them (bijections, modes, steering, trust in a screen,
//! bridges, replica exchange).
//! ARCHITECTURE.md tells how they meet in one proposal.

pub mod annealing;
pub mod bijection;
pub mod c_api;
pub mod coordinates;
pub mod density;
pub mod device;
pub mod engines;
pub mod error;
mod fourier;
pub mod free_energy;
pub mod histogram;
pub mod io;
pub mod metrics;
pub mod models;
pub mod modes;
pub mod moves;
pub mod nn;
pub mod ode;
pub mod orientation;
pub mod parallel;
pub mod rng;
pub mod target;
#[cfg(test)]
mod testing;
pub mod tica;
pub mod train;
pub mod transport;
pub mod trust;
pub mod units;
pub mod weights;

pub use error::{Error, Result};
