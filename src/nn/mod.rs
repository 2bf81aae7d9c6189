//! The few layers that all models share. Each has forward, jvp and vjp in one file.
//!
//! Parameters live in one flat vector per model; a layer knows its ranges in it. So the optimiser, the moving average
//! and the gradient buffers of threads are plain slices. Matrices are row-major; a batch is `[n][features]`.

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
