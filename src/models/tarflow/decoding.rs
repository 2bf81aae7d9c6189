//! Methods of decoding a sample from its latent point.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Method of decoding tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Decoding {
    /// Token by token, with a key/value cache.
    #[default]
    Sequential,
    /// Several tokens at once, by iteration.
    Jacobi(Jacobi),
}

/// Jacobi decoding: u_i = v_i e^{a_i} + b_i, where a and b depend on the tokens before i, as a fixed point. All tokens
/// of a segment are updated in one parallel pass until they converge (Song et al., "Accelerating feedforward
/// computation via parallel nonlinear equation solving", ICML 2021; for TarFlow: Liu and Qin, arXiv 2505.12849).
/// Segments are done in sequence, which makes it a Gauss–Seidel iteration over segments. Each pass makes one more token
/// exact, so the iteration ends.
///
/// The density of such a sample is that of its likelihood: x is encoded, which also shows how far its latent point is
/// from the requested one. A sample that is not within the tolerance, or needs more passes, is decoded sequentially.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jacobi {
    /// Tokens decoded together; at least all of the model's for a plain Jacobi iteration.
    pub segment: usize,
    /// Largest difference in a component of z between the requested point and that of the sample. Rounding in f32
    /// leaves about 1e-5 for a trained model.
    pub tolerance: f64,
    /// Largest number of passes per segment.
    pub passes: usize,
}

/// Largest tolerance: log q is that of the decoded point x, which was drawn with the density of another point z at most
/// this far away.
const LARGEST_TOLERANCE: f64 = 1e-3;

impl Default for Jacobi {
    fn default() -> Jacobi {
        Jacobi { segment: usize::MAX, tolerance: 1e-4, passes: 32 }
    }
}

impl Jacobi {
    /// Tolerance of a block, chosen so that the errors of all blocks normally stay within the tolerance.
    pub(super) fn residual(&self) -> f64 {
        0.1 * self.tolerance
    }
}

impl Decoding {
    /// Checks the options. Errors: no tokens in a segment, no passes, or a tolerance that is not positive or exceeds
    /// 1e-3.
    pub(super) fn check(&self) -> Result<()> {
        match *self {
            Decoding::Jacobi(Jacobi { segment, tolerance, passes })
                if segment == 0 || passes == 0 || tolerance.is_nan() || tolerance <= 0.0 =>
            {
                let segment = if segment == usize::MAX { "all".into() } else { segment.to_string() };
                Err(Error::invalid(format!(
                    "iterative decoding in segments of {segment} tokens with {passes} passes and tolerance \
                     {tolerance}: all must be positive"
                )))
            }
            Decoding::Jacobi(Jacobi { tolerance, .. }) if tolerance > LARGEST_TOLERANCE => {
                Err(Error::invalid(format!(
                    "iterative decoding to a tolerance of {tolerance} is too inaccurate: samples would not have the \
                     reported density; use {LARGEST_TOLERANCE} or less"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Counts of samples to be decoded by iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    pub samples: u64,
    /// Passes of all blocks and segments; each computes the tokens of a segment that are not exact yet.
    pub passes: u64,
    /// Samples that were decoded sequentially in the end.
    pub fallbacks: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    samples: AtomicU64,
    passes: AtomicU64,
    fallbacks: AtomicU64,
}

impl Counters {
    /// Counts a sample.
    pub fn count(&self, passes: usize, fell_back: bool) {
        self.samples.fetch_add(1, Ordering::Relaxed);
        self.passes.fetch_add(passes as u64, Ordering::Relaxed);
        self.fallbacks.fetch_add(u64::from(fell_back), Ordering::Relaxed);
    }

    /// The counts so far.
    pub fn read(&self) -> Decoded {
        let [samples, passes, fallbacks] =
            [&self.samples, &self.passes, &self.fallbacks].map(|counter| counter.load(Ordering::Relaxed));
        Decoded { samples, passes, fallbacks }
    }
}
