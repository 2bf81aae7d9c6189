//! GROMACS, driven from outside: `gmx mdrun` runs a segment of dynamics, one `mdrun -rerun` gives the energies and
//! forces of all proposals, and an accepted configuration is written into the checkpoint from which the next segment
//! goes on. Any `gmx` will do.

mod gmx;
mod matching;
mod rerun;
mod run_folder;
mod run_input;
mod velocities;
mod walker;

pub use gmx::{Evaluation, Gmx};
pub use run_folder::{Progress, Report};
pub use run_input::{Atom, Integrator, RunInput};
pub use walker::{Options, Walker};
