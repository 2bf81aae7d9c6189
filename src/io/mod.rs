//! Files: models, trajectories, checkpoints.

pub mod checkpoint;
pub mod model_file;
