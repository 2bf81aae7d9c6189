//! GROMACS, driven from outside: `gmx mdrun` runs a segment of dynamics, one `mdrun -rerun` gives energies and forces
//! of all proposals, and an accepted configuration is written into the checkpoint from which the next segment
//! continues. Works with an unmodified `gmx`.

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
