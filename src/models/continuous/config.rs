//! Configuration of a continuous flow in the model file; interpolants and quantities derived from them.

use crate::coordinates::Stereocentre;
use crate::density::Exactness;
use crate::error::{Error, Result};
use crate::models::layout::{check_positive, check_sizes, LARGEST_SIZE};
use crate::ode::Method;
use serde::{Deserialize, Serialize};
use std::f64::consts::FRAC_PI_2;

/// Parametrisation: the meaning of the network's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parametrisation {
    /// The velocity dx/dt.
    Velocity,
    /// The data point at the end of the path.
    Endpoint,
}

/// Interpolant x_t = α(t) x_data + σ(t) x_prior, with t counted from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolant {
    /// α = 1 − t, σ = t.
    Linear,
    /// α = cos(πt/2), σ = sin(πt/2).
    Trigonometric,
}

impl Interpolant {
    /// Coefficients at time t from the data.
    pub fn schedule(self, t: f64) -> Schedule {
        match self {
            Interpolant::Linear => Schedule { alpha: 1.0 - t, sigma: t, d_alpha: -1.0, d_sigma: 1.0 },
            Interpolant::Trigonometric => {
                let (sin, cos) = (FRAC_PI_2 * t).sin_cos();
                Schedule { alpha: cos, sigma: sin, d_alpha: -FRAC_PI_2 * sin, d_sigma: FRAC_PI_2 * cos }
            }
        }
    }
}

/// Prior density of the flow, in the network's units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prior {
    /// Standard normal density of centred configurations, normalised on their 3N − 3 dimensions.
    #[default]
    MeanFree,
    /// −|z|²/2 in all 3N dimensions without its constant, as in BoltzNCE: samples have a random centroid that e^{−u}
    /// does not account for, so the density is a surrogate. Log-densities are in the network's units. For comparison
    /// only.
    Reference,
}

/// Method of computing the divergence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// Exactly, along all directions by forward mode.
    #[default]
    Exact,
    /// Hutchinson's estimate tr J ≈ mean of eᵀJe over random signs e, which are fixed along a sample's path (Grathwohl
    /// et al., ICLR 2019) and a function of its starting point.
    Hutchinson { probes: usize },
}

/// Configuration of a continuous flow in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinuousConfig {
    pub parametrisation: Parametrisation,
    pub interpolant: Interpolant,
    /// Network times of the prior and of the data, both in [0, 1]; the integration ends exactly there.
    pub times: [f64; 2],
    /// Units of the network per nm.
    pub units_per_nm: f64,
    /// Mirror images are folded to these hands, which adds ln 2 to log q; if empty, samples have both hands.
    #[serde(default)]
    pub stereocentres: Vec<Stereocentre>,
    #[serde(default)]
    pub prior: Prior,
    #[serde(default)]
    pub divergence: Divergence,
    #[serde(default)]
    pub solver: Method,
}

impl ContinuousConfig {
    /// Exactness of the flow's log-density: Dormand–Prince and RK4 count as exact up to their step errors, which
    /// [`super::ContinuousFlow::round_trip`] measures; Euler's are too large for that.
    pub fn exactness(&self) -> Exactness {
        match (self.prior, self.solver, self.divergence) {
            (Prior::Reference, _, _) | (_, Method::Euler { .. }, _) => Exactness::Surrogate,
            (_, _, Divergence::Hutchinson { .. }) => Exactness::Estimated,
            _ => Exactness::Exact,
        }
    }

    pub(super) fn check(&self, dimension: usize) -> Result<()> {
        self.solver.check()?;
        if self.times.iter().any(|t| !(0.0..=1.0).contains(t)) || self.times[0] == self.times[1] {
            return Err(Error::invalid(format!(
                "times {:?} of prior and data must be two different numbers from 0 to 1",
                self.times
            )));
        }
        if self.parametrisation == Parametrisation::Endpoint && self.schedule(self.times[1]).sigma <= 0.0 {
            return Err(Error::invalid(format!(
                "times {:?}: the velocity of an endpoint model is infinite at the end of the path; stop slightly \
                 earlier, for example 0.001 before it",
                self.times
            )));
        }
        check_positive(&[("units_per_nm", self.units_per_nm)])?;
        if let Divergence::Hutchinson { probes } = self.divergence {
            check_sizes(&[("probes", probes, LARGEST_SIZE)])?;
        }
        if dimension < 6 || dimension % 3 != 0 {
            return Err(Error::invalid(format!(
                "expected three coordinates for each of two or more atoms, found {dimension} coordinates"
            )));
        }
        if let Some(atom) = self.stereocentres.iter().map(Stereocentre::last_atom).find(|&a| a >= dimension / 3) {
            return Err(Error::invalid(format!(
                "a stereocentre refers to atom {atom}, counted from 0, but the model has {} atoms",
                dimension / 3
            )));
        }
        Ok(())
    }

    /// Coefficients at network time t.
    pub fn schedule(&self, t: f64) -> Schedule {
        // time from the data, and its rate of change in network time
        let (s, rate) = if self.times[0] > self.times[1] { (t, 1.0) } else { (1.0 - t, -1.0) };
        let Schedule { alpha, sigma, d_alpha, d_sigma } = self.interpolant.schedule(s);
        Schedule { alpha, sigma, d_alpha: rate * d_alpha, d_sigma: rate * d_sigma }
    }
}

/// Coefficients of the interpolant at one time, with their time derivatives.
pub struct Schedule {
    pub alpha: f64,
    pub sigma: f64,
    pub d_alpha: f64,
    pub d_sigma: f64,
}

impl Schedule {
    /// Coefficients (a, b) of v = a x + b x_data: the prior point is (x − α x_data)/σ, so v = α′ x_data + σ′ x_prior
    /// has a = σ′/σ and b = α′ − α σ′/σ.
    pub fn by_endpoint(&self) -> (f64, f64) {
        let a = self.d_sigma / self.sigma;
        (a, self.d_alpha - self.alpha * a)
    }

    /// Coefficients (a, b) of the score ∇ log p_t = a x + b v: it is −E[x_prior | x]/σ, and α v − α′ x = (α σ′ − α′ σ)
    /// E[x_prior | x].
    pub fn score(&self) -> (f64, f64) {
        let scale = 1.0 / (self.sigma * (self.alpha * self.d_sigma - self.d_alpha * self.sigma));
        (self.d_alpha * scale, -self.alpha * scale)
    }
}
