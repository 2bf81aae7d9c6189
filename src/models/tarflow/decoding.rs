//! How a sample is found from its latent point.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// How tokens are found one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Decoding {
    /// Token after token, with the keys and values of those before kept.
    #[default]
    Sequential,
    /// Tokens together, by iteration.
    Jacobi(Jacobi),
}

/// u_i = v_i e^{a_i} + b_i, where a and b depend on the tokens before i, as a fixed point: all tokens of a segment are
/// put in, and come out of one parallel pass, until they stay (Song et al., "Accelerating feedforward computation via
/// parallel nonlinear equation solving", ICML 2021; for TarFlow: Liu and Qin, arXiv 2505.12849). Segments go one after
/// the other, which makes it a Gauss–Seidel iteration of segments. Each pass makes one more token exact, so the
/// iteration ends.
///
/// The density of a sample found so is that of its likelihood: x is encoded, which also tells how far its latent point
/// is from the one that was asked for. A sample that is not within the tolerance, or needs more passes, is decoded
/// sequentially.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jacobi {
    /// Tokens that are found together; those of the whole model or more for a plain Jacobi iteration.
    pub segment: usize,
    /// Largest difference in a component of z between the point asked for and the one of the sample. Rounding of f32
    /// leaves some 1e-5 of a trained model.
    pub tolerance: f64,
    /// Most passes of a segment.
    pub passes: usize,
}

/// Largest tolerance: log q is that of the point x which was found, drawn with the density of another point z that is
/// as near as this.
const LARGEST_TOLERANCE: f64 = 1e-3;

impl Default for Jacobi {
    fn default() -> Jacobi {
        Jacobi { segment: usize::MAX, tolerance: 1e-4, passes: 32 }
    }
}

impl Jacobi {
    /// Of a block, so that those of all blocks stay within the tolerance as a rule.
    pub(super) fn residual(&self) -> f64 {
        0.1 * self.tolerance
    }
}

impl Decoding {
    /// Errors: no tokens in a segment, no passes, a tolerance that is not positive or beyond 1e-3.
    pub(super) fn check(&self) -> Result<()> {
        match *self {
            Decoding::Jacobi(Jacobi { segment, tolerance, passes })
                if segment == 0 || passes == 0 || tolerance.is_nan() || tolerance <= 0.0 =>
            {
                let segment = if segment == usize::MAX { "all".into() } else { segment.to_string() };
                Err(Error::invalid(format!(
                    "decoding by iteration in segments of {segment} tokens, {passes} passes, tolerance {tolerance}: all must be positive"
                )))
            }
            Decoding::Jacobi(Jacobi { tolerance, .. }) if tolerance > LARGEST_TOLERANCE => Err(Error::invalid(format!(
                "decoding by iteration to a tolerance of {tolerance}: samples would not have the density that is said of them; give \
                 {LARGEST_TOLERANCE} or less"
            ))),
            _ => Ok(()),
        }
    }
}

/// What became of the samples that were to be decoded together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    pub samples: u64,
    /// Of all blocks and segments; each computes the tokens of a segment that are not exact yet.
    pub passes: u64,
    /// Samples that were decoded sequentially after all.
    pub fallbacks: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    samples: AtomicU64,
    passes: AtomicU64,
    fallbacks: AtomicU64,
}

impl Counters {
    pub fn count(&self, passes: usize, fell_back: bool) {
        self.samples.fetch_add(1, Ordering::Relaxed);
        self.passes.fetch_add(passes as u64, Ordering::Relaxed);
        self.fallbacks.fetch_add(u64::from(fell_back), Ordering::Relaxed);
    }

    pub fn read(&self) -> Decoded {
        let [samples, passes, fallbacks] =
            [&self.samples, &self.passes, &self.fallbacks].map(|counter| counter.load(Ordering::Relaxed));
        Decoded { samples, passes, fallbacks }
    }
}
