//! Temperature-steerable models (Dibak, Klein, Krämer and Noé, Phys. Rev. Research 4, L042005 (2022)).
//!
//! The latent density is N(0, τ I) with τ = T/T₀, T₀ the training temperature, and the map T preserves volume. Then
//!
//! log q_τ(x, v) = −|T⁻¹(x, v)|²/2τ − (d/2) ln 2πτ + const, so q_τ ∝ q_1^{1/τ},
//!
//! just as e^{−U/kT} ∝ (e^{−U/kT₀})^{1/τ}: a model that is right at T₀ is right at all temperatures. A
//! volume-preserving map of a normal density is not very expressive; auxiliary coordinates v beside x, with the target
//! N(0, τ I), give it room. Averages over x do not depend on them.
//!
//! For a move the density is that of (x, v), and the target is e^{−u(x)} N(v; 0, τ). v is not part of the engine's
//! state: it is drawn afresh for the current configuration at every attempt ([`crate::moves::Steered`]).

use crate::density::Evaluation;
use crate::error::{Error, Result};
use crate::models::{Model, LOG_2_PI};
use crate::rng::Stream;
use crate::target::Target;
use std::sync::Arc;

/// The temperature a steerable model is set to, and its auxiliary coordinates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Steering {
    /// Number of auxiliary coordinates; they are the last of the model's coordinates.
    pub auxiliary: usize,
    /// τ = T/T₀, the temperature over that of training: the variance of the latent and of the auxiliary coordinates.
    pub variance: f64,
}

impl Steering {
    /// A model without auxiliary coordinates at its training temperature.
    pub const NONE: Steering = Steering { auxiliary: 0, variance: 1.0 };

    /// Draws v from N(0, τ).
    pub fn draw(&self, stream: &mut Stream, v: &mut [f64]) {
        let width = self.variance.sqrt();
        stream.fill_normal(v);
        v.iter_mut().for_each(|v| *v *= width);
    }

    /// −ln N(v; 0, τ), the reduced potential of the auxiliary coordinates.
    pub fn reduced_potential(&self, v: &[f64]) -> f64 {
        let squared = v.iter().map(|v| v * v).sum::<f64>();
        0.5 * (squared / self.variance + v.len() as f64 * (LOG_2_PI + self.variance.ln()))
    }

    /// Joins `x[n][dimension]` with v drawn from `streams(row)`; returns rows (x, v), `[n][dimension + auxiliary]`.
    pub fn join(&self, x: &[f64], dimension: usize, streams: &dyn Fn(usize) -> Stream) -> Vec<f64> {
        let mut joint = vec![0.0; x.len() / dimension * (dimension + self.auxiliary)];
        let rows = joint.chunks_exact_mut(dimension + self.auxiliary).zip(x.chunks_exact(dimension));
        for (row, (joint, x)) in rows.enumerate() {
            let (to, v) = joint.split_at_mut(dimension);
            to.copy_from_slice(x);
            self.draw(&mut streams(row), v);
        }
        joint
    }

    /// Splits `joint[n][dimension + auxiliary]` into x and v, and turns log q(x, v) into log q(x, v) − ln N(v; 0, τ),
    /// so that −u(x) − log q is the log-weight of x.
    pub fn take_apart(&self, joint: &[f64], dimension: usize, log_density: &mut [Evaluation]) -> [Vec<f64>; 2] {
        let [mut x, mut auxiliary] = [Vec::new(), Vec::new()];
        for (row, log_density) in joint.chunks_exact(dimension + self.auxiliary).zip(log_density) {
            let (of_x, v) = row.split_at(dimension);
            x.extend_from_slice(of_x);
            auxiliary.extend_from_slice(v);
            log_density.log_density += self.reduced_potential(v);
        }
        [x, auxiliary]
    }
}

/// Number of the model's coordinates without the auxiliary ones.
pub fn dimension_without_auxiliary(model: &dyn Model) -> usize {
    model.dimension() - model.steering().map_or(0, |s| s.auxiliary)
}

/// The model at a temperature (K) if it is steerable; otherwise the model as it is.
///
/// Errors: those of [`Model::at_temperature`].
pub fn follow(model: &Arc<dyn Model>, kelvin: f64) -> Result<Arc<dyn Model>> {
    match model.steering() {
        Some(steering) if steering.variance != variance(kelvin, model.card().temperature)? => {
            model.at_temperature(kelvin)
        }
        _ => Ok(model.clone()),
    }
}

/// Temperature (K) of a steerable model.
pub fn temperature(model: &dyn Model) -> Option<f64> {
    Some(model.steering()?.variance * model.card().temperature?)
}

/// τ at a temperature (K). Errors: a temperature that is not positive, or no training temperature in the model file.
pub(crate) fn variance(kelvin: f64, trained_for: Option<f64>) -> Result<f64> {
    let trained_for = trained_for.ok_or_else(|| {
        Error::invalid(
            "the model file does not give the temperature it was trained at, so the model cannot be used at another \
             temperature",
        )
    })?;
    let variance = kelvin / trained_for;
    if !(kelvin > 0.0 && variance.is_normal() && variance > 0.0) {
        return Err(Error::invalid(format!(
            "invalid temperature {kelvin} K for a model trained at {trained_for} K: their ratio must be positive and finite"
        )));
    }
    Ok(variance)
}

/// Target density of (x, v), with the reduced potential u(x) − ln N(v; 0, τ).
pub struct JointTarget<'a> {
    target: &'a mut dyn Target,
    steering: Steering,
    factor: f64,
    x: Vec<f64>,
    gx: Vec<f64>,
}

impl<'a> JointTarget<'a> {
    /// Takes u from `target` as it is, at the model's current temperature.
    pub fn new(target: &'a mut dyn Target, steering: Steering) -> JointTarget<'a> {
        JointTarget { target, steering, factor: 1.0, x: Vec::new(), gx: Vec::new() }
    }

    /// Takes u/τ from a `target` at the training temperature, whatever the model's temperature.
    pub fn of_training(target: &'a mut dyn Target, steering: Steering) -> JointTarget<'a> {
        let mut joint = JointTarget::new(target, steering);
        joint.at(steering);
        joint
    }

    /// Moves a target made by [`JointTarget::of_training`] to another temperature.
    pub fn at(&mut self, steering: Steering) {
        (self.steering, self.factor) = (steering, 1.0 / steering.variance);
    }

    /// Iterates over (x, v) of each row.
    fn split<'b>(&self, joint: &'b [f64]) -> impl Iterator<Item = (&'b [f64], &'b [f64])> {
        let d = self.target.dimension();
        joint.chunks_exact(d + self.steering.auxiliary).map(move |row| row.split_at(d))
    }

    fn take_x(&mut self, joint: &[f64]) {
        let mut x = std::mem::take(&mut self.x);
        x.clear();
        self.split(joint).for_each(|(row, _)| x.extend_from_slice(row));
        self.x = x;
    }

    fn add_auxiliary(&self, joint: &[f64], u: &mut [f64]) {
        for (u, (_, v)) in u.iter_mut().zip(self.split(joint)) {
            *u = self.factor * *u + self.steering.reduced_potential(v);
        }
    }
}

impl Target for JointTarget<'_> {
    fn dimension(&self) -> usize {
        self.target.dimension() + self.steering.auxiliary
    }

    fn reduced_potential(&mut self, joint: &[f64], u: &mut [f64]) -> Result<()> {
        self.take_x(joint);
        self.target.reduced_potential(&self.x, u)?;
        self.add_auxiliary(joint, u);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, joint: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.take_x(joint);
        let d = self.target.dimension();
        self.gx.resize(self.x.len(), 0.0);
        self.target.reduced_potential_gradient(&self.x, u, &mut self.gx)?;
        let rows = gradient.chunks_exact_mut(d + self.steering.auxiliary).zip(self.gx.chunks_exact(d));
        for ((gradient, gx), (_, v)) in rows.zip(self.split(joint)) {
            let (of_x, of_v) = gradient.split_at_mut(d);
            of_x.iter_mut().zip(gx).for_each(|(to, g)| *to = self.factor * g);
            of_v.iter_mut().zip(v).for_each(|(to, v)| *to = v / self.steering.variance);
        }
        self.add_auxiliary(joint, u);
        Ok(())
    }

    fn relax(&mut self, joint: &[f64], stage: u32) -> Result<f64> {
        let (x, v) = joint.split_at(self.target.dimension());
        Ok(self.factor * self.target.relax(x, stage)? + self.steering.reduced_potential(v))
    }
}
