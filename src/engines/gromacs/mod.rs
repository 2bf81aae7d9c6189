//! GROMACS, driven from outside: `gmx mdrun` runs a segment of dynamics, one `mdrun -rerun` gives the energies and forces of all
//! proposals, and an accepted configuration is written into the checkpoint from which the next segment goes on. Any `gmx` will do.

mod gmx;
mod rerun;
mod run_input;
mod velocities;
mod walker;

pub use gmx::{Evaluation, Gmx};
pub use run_input::{Atom, Integrator, RunInput};
pub use walker::{Options, Progress, Report, Walker};
