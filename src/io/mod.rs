//! Files: models, trajectories, checkpoints.

pub mod model_file;
