//! Layers shared by all models. Each has its forward pass, jvp and vjp in one file.
//!
//! Parameters are stored in one flat vector per model, in which a layer knows its ranges, so that optimiser, moving
//! average and the threads' gradient buffers are plain slices. Matrices are row-major; a batch is `[n][features]`.

pub mod activation;
pub mod dual;
pub mod lanes;
pub mod linear;
pub mod memory;
pub mod mlp;
pub mod parameters;
pub mod product;
pub mod real;
pub mod tape;

pub use activation::Activation;
pub use dual::Dual;
pub use linear::Linear;
pub use mlp::{Mlp, MlpTape};
pub use parameters::Parameters;
pub use real::{Real, Scalar};
pub use tape::{Tape, Var};
