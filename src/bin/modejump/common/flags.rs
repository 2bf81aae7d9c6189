//! Options that several commands share.

use clap::{Args, ValueEnum};
use modejump::io::checkpoint::Identity;
use modejump::models::tarflow::{self, Decoding, Jacobi, Options};
use modejump::models::Model;
use modejump::weights::Rule;
use modejump::Result;
use std::sync::Arc;
#[cfg(feature = "openmm")]
use {modejump::engines::openmm::System, std::path::Path};

#[derive(Clone, Debug, Args)]
pub struct PlatformFlag {
    /// OpenMM platform for energies: `CPU`, in single precision, is faster where Reference is slow, such as with a
    /// CustomGBForce
    #[arg(long, default_value = "Reference", requires = "system")]
    pub platform: String,
}

impl PlatformFlag {
    #[cfg(feature = "openmm")]
    pub fn read_system(&self, path: &Path) -> Result<System> {
        Ok(super::read_system(path)?.on_platform(&self.platform))
    }
}

#[derive(Debug, Args)]
pub struct PrecisionFlag {
    /// Precision of the networks; coordinates and densities are f64 in any case
    #[arg(long, value_enum, default_value_t = Type::F32)]
    pub(super) precision: Type,
}

impl PrecisionFlag {
    /// Adds the option to the identity of a run, which continues only with the same value.
    pub fn identify(&self, run: Identity) -> Identity {
        run.with("--precision", format!("{:?}", self.precision).to_lowercase())
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Type {
    F32,
    F64,
    /// f32 with weights rounded to bfloat16, for TarFlows: single samples take less time
    Bf16,
}

/// Share of the samples whose weights are deleted in published evaluations.
pub const CLIPPED_SHARE: f64 = 0.002;

#[derive(Args)]
pub struct DecodingFlags {
    /// How a TarFlow computes samples from latent points; log q is exact for the sample in any case, with iterative
    /// decoding by evaluating its likelihood
    #[arg(long, value_enum, default_value_t = Decode::Sequential)]
    decoding: Decode,
    /// Tokens per segment, for `--decoding gauss-seidel`
    #[arg(long, default_value_t = 16, requires = "decoding")]
    segment: usize,
    /// Iterative decoding: maximum error of the latent point, beyond rounding (about 1e-5 in f32); at most 1e-3, so that
    /// samples have the density that is reported for them
    #[arg(long, default_value_t = 1e-4, requires = "decoding")]
    decoding_tolerance: f64,
    /// Iterative decoding: maximum number of passes over all tokens, or over a segment; a sample that needs more is
    /// decoded sequentially
    #[arg(long, default_value_t = 32, requires = "decoding")]
    decoding_passes: usize,
}

impl DecodingFlags {
    pub fn decoding(&self) -> Decoding {
        let segment = match self.decoding {
            Decode::Sequential => return Decoding::Sequential,
            Decode::Jacobi => usize::MAX,
            Decode::GaussSeidel => self.segment,
        };
        Decoding::Jacobi(Jacobi { segment, tolerance: self.decoding_tolerance, passes: self.decoding_passes })
    }

    /// Adds the option to the identity of a run, which continues only with the same value.
    pub fn identify(&self, run: Identity) -> Identity {
        let name = self.decoding.to_possible_value().map_or(String::new(), |value| value.get_name().to_string());
        let run = run.with("--decoding", name);
        match self.decoding() {
            Decoding::Sequential => run,
            Decoding::Jacobi(jacobi) => run
                .with("--segment", jacobi.segment)
                .with("--decoding-tolerance", jacobi.tolerance)
                .with("--decoding-passes", jacobi.passes),
        }
    }

    /// The model with the decoding asked for. Errors: those of [`tarflow::with_options`].
    pub fn of(&self, model: Arc<dyn Model>) -> Result<Arc<dyn Model>> {
        tarflow::with_options(model, Options { decoding: self.decoding(), ..Options::default() })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Decode {
    /// Token after token
    Sequential,
    /// All tokens together, by Jacobi iteration
    Jacobi,
    /// One segment of tokens after the other, each by iteration
    GaussSeidel,
}

/// Use of the proposals of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// One Metropolis test for each proposal, one after the other
    Independence,
    /// A choice among all proposals and the current state
    Isir,
}

#[derive(Args)]
pub struct RuleFlag {
    /// Treatment of importance weights before averages are taken; the raw ESS and Pareto k are reported in any case
    #[arg(long, value_enum, default_value_t = Weights::Raw)]
    weights: Weights,
    /// Share of the samples that `--weights quantile-clipped` deletes: those with weights above the interpolated
    /// quantile 1 − share, at least one unless the share is 0 or the largest weights are equal
    #[arg(long, default_value_t = CLIPPED_SHARE, requires = "weights")]
    clipped_share: f64,
}

impl RuleFlag {
    pub fn rule(&self) -> Rule {
        self.weights.rule(self.clipped_share)
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Weights {
    /// No change
    Raw,
    /// Weights limited to sqrt(n) times their mean: no sample is deleted, less variance, and a bias that vanishes as n
    /// grows
    Truncated,
    /// Largest weights smoothed by a fitted Pareto tail (PSIS): no sample is deleted
    Smoothed,
    /// Samples with the largest weights DELETED, as in published evaluations: BIASED for any n
    QuantileClipped,
}

impl Weights {
    /// The rule; `clipped_share` is the share of the samples that quantile clipping deletes.
    pub fn rule(self, clipped_share: f64) -> Rule {
        match self {
            Weights::Raw => Rule::Raw,
            Weights::Truncated => Rule::Truncated,
            Weights::Smoothed => Rule::Smoothed,
            Weights::QuantileClipped => Rule::QuantileClipped { share: clipped_share },
        }
    }
}
