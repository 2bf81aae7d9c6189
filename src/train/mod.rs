//! Training of generators: maximum likelihood and force matching on frames, reverse KL with the engine's energies
//! (optionally spread along a reaction coordinate), and self-refinement on the model's own importance-weighted samples,
//! in any combination ([`trainer`]). Networks (vector fields, energies, TarFlows) are trained by [`network_trainer`]:
//! flow matching, score matching with contrastive estimation, likelihood. Training never enters an acceptance
//! probability: a finished model is frozen.

pub mod architecture;
mod batch;
pub mod contrastive;
pub mod density;
mod divergence;
#[cfg(feature = "openmm")]
pub mod dynamics;
pub mod flow_matching;
pub mod hot;
pub mod jump;
pub mod likelihood;
pub mod losses;
pub mod map;
pub mod network_trainer;
pub mod optimiser;
pub mod phases;
mod pool;
pub mod progress;
pub mod reaction_coordinate;
pub mod rounds;
#[cfg(test)]
mod rounds_tests;
pub mod trainer;
#[cfg(test)]
mod trainer_tests;

pub use architecture::{check_design, design, DesignOptions};
pub use contrastive::ContrastiveOptions;
pub use hot::{ExploreOptions, HotReplicas};
pub use jump::Jump;
pub use likelihood::Likelihood;
pub use map::{Map, MapLoss};
pub use network_trainer::{Contrast, Emphasis, FlowMatching, NetworkOptions, NetworkState, NetworkTrainer};
pub use optimiser::{AdamW, Schedule};
pub use phases::{Phase, TrainOptions};
pub use progress::Progress;
pub use reaction_coordinate::ReactionCoordinate;
pub use rounds::{Rounds, RoundsOptions, RoundsState, Stage};
pub use trainer::{TrainState, Trainer};
