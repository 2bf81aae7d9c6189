//! **Density**: a model that knows log q(x), its gradient, and (if it can) samples with their log q.

use crate::coordinates::vector::centre;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::trust::Trust;

/// How far a log-density can be trusted, from best to worst. Only `Exact` may enter the final acceptance test, unless a
/// user asks for a surrogate by name (ARCHITECTURE.md, law of exactness).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exactness {
    /// The density of the samples, up to rounding.
    Exact,
    /// An unbiased or noisy estimate of the density (Hutchinson).
    Estimated,
    /// A different function that stands in for the density (an energy-based model).
    Surrogate,
}

impl Exactness {
    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Exactness::Exact => "exact",
            Exactness::Estimated => "estimated",
            Exactness::Surrogate => "surrogate",
        }
    }
}

/// Whether a configuration lies where the density is defined and positive. Anything but `Inside` means log q = −∞: the
/// move is rejected and counted under this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Inside,
    /// The generator cannot produce this configuration.
    OutOfSupport,
    /// Internal coordinates are undefined here (collinear atoms, coinciding atoms).
    Singular,
    /// NaN or infinity in the configuration or in the calculation.
    NonFinite,
    /// A stereocentre has the opposite handedness.
    WrongChirality,
    /// The length of a constrained bond differs from the generator's.
    BrokenConstraint,
}

impl Status {
    /// All variants, in order of declaration.
    pub const ALL: [Status; 6] = [
        Status::Inside,
        Status::OutOfSupport,
        Status::Singular,
        Status::NonFinite,
        Status::WrongChirality,
        Status::BrokenConstraint,
    ];

    /// Description for messages.
    pub fn words(self) -> &'static str {
        match self {
            Status::Inside => "inside",
            Status::OutOfSupport => "outside its support",
            Status::Singular => "undefined internal coordinates",
            Status::NonFinite => "not finite",
            Status::WrongChirality => "a stereocentre of the opposite handedness",
            Status::BrokenConstraint => "a constant bond of a different length",
        }
    }
}

/// log q of one configuration, or why it has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Natural logarithm of the density in x coordinates (nm); −∞ unless `status` is `Inside`.
    pub log_density: f64,
    pub status: Status,
}

impl Evaluation {
    /// A point of the support with its log q; `NonFinite` if that is NaN or +∞.
    pub fn inside(log_density: f64) -> Evaluation {
        if log_density.is_nan() || log_density == f64::INFINITY {
            return Evaluation::outside(Status::NonFinite);
        }
        Evaluation { log_density, status: Status::Inside }
    }

    /// A point without a density, and the reason.
    pub fn outside(status: Status) -> Evaluation {
        Evaluation { log_density: f64::NEG_INFINITY, status }
    }

    /// Whether the point is in the support, so that its log q counts.
    pub fn is_inside(&self) -> bool {
        self.status == Status::Inside
    }
}

/// Which part of a configuration the density describes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scope {
    /// All coordinates.
    Full,
    /// Shape only. Position and orientation are those of a frame of three atoms (origin, z axis, xz plane); a move
    /// keeps the frame of the current configuration.
    Shape { frame: [usize; 3] },
    /// Shape and orientation. The centroid is left alone: log q is normalised on the 3N − 3 coordinates without it,
    /// with the measure of the space of vectors whose mean over atoms is zero, and log q(x) is that of x with its
    /// centroid moved to the origin.
    Centred,
    /// Shape and orientation, with a centroid c that is noise: log q(x) is the density of x relative to that of c under
    /// a normal density of standard deviation `sigma` (nm) per component. For a target e^{−u} independent of c, this is
    /// a density of (x, c) with target e^{−u(x)} N(c; 0, σ²): a move draws a fresh c for the current configuration.
    Noisy { sigma: f64 },
}

impl Scope {
    /// Moves the centroid of a molecule `x[atoms][3]` to the origin; leaves abstract coordinates (`Full`) alone.
    pub fn centre(self, x: &mut [f64]) {
        if self != Scope::Full {
            centre(x);
        }
    }
}

/// A model of a probability density over configurations.
///
/// Batches are row-major, `x[n][dimension]`; for molecules `dimension` = 3 × atoms and x is in nm.
pub trait Density: Send + Sync {
    /// Coordinates per configuration.
    fn dimension(&self) -> usize;

    fn exactness(&self) -> Exactness;

    /// For densities obtained by numerical integration: the largest |Δ log q| over a few samples between their
    /// generation and the integration back. None for others.
    fn integration_error(&self) -> Result<Option<f64>> {
        Ok(None)
    }

    fn scope(&self) -> Scope {
        Scope::Full
    }

    /// Draws n samples: writes `x[n][dimension]` and their evaluations. Row `i` takes its random numbers from
    /// `streams(i)` alone, from where it stands, so it depends on no other row.
    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()>;

    /// Draws samples without log q, for models where that is cheaper. A row whose status is not `Inside` is not a
    /// sample. The same streams need not reproduce [`Density::sample`] to the last bit.
    fn sample_only(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        status: &mut [Status],
    ) -> Result<()> {
        let mut evaluations = vec![Evaluation::outside(Status::NonFinite); status.len()];
        self.sample(streams, x, &mut evaluations)?;
        status.iter_mut().zip(evaluations).for_each(|(status, e)| *status = e.status);
        Ok(())
    }

    /// log q of each row of `x[n][dimension]`.
    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()>;

    /// log q and ∇ₓ log q, `gradient[n][dimension]`; the gradient is zero in rows that are not `Inside`.
    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()>;

    /// How far delayed acceptance trusts this density when it screens another model's proposals.
    fn trust(&self) -> Trust {
        Trust::default()
    }

    /// Number of rows in a batch. Errors: `x` of the wrong length.
    fn rows(&self, x: &[f64], log_density: &[Evaluation]) -> Result<usize> {
        let n = log_density.len();
        if x.len() != n * self.dimension() {
            return Err(Error::invalid(format!(
                "{n} configurations of {} coordinates need {} numbers, got {}",
                self.dimension(),
                n * self.dimension(),
                x.len()
            )));
        }
        Ok(n)
    }
}
