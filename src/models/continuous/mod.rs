//! Continuous normalizing flow: a vector field transported from the prior to the data by an ODE (Chen et al., NeurIPS
//! 2018; flow matching: Lipman et al., ICLR 2023).
//!
//! ```text
//! dx/dt = P v(t, x),   log q(x_data) = log p(x_prior) − ∫ div dt,   div = tr(P ∂v/∂x P)
//! ```
//!
//! The prior is the standard normal density on the (3N − 3)-dimensional space of configurations with their centroid at
//! the origin, P the projection onto that space (subtract the mean over atoms), and the flow stays in it: log q is the
//! normalised density with respect to its volume. For a translation-invariant velocity ∂v/∂x P = ∂v/∂x, so its
//! divergence needs no correction; for any other, (1/N) Σ_c 1_cᵀ ∂v/∂x 1_c over the three translations 1_c is
//! subtracted.

mod config;

pub use config::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior, Schedule};

use super::egnn_flow::Egnn;
use super::field::VectorField;
use super::field_on_device::FieldOnDevice;
use super::gvp_flow::GvpField;
use super::network::Evaluator;
use super::{Flow, Model, ModelCard, LOG_2_PI};
use crate::coordinates::vector::centre;
use crate::coordinates::CoordinatesConfig;
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::device::Driver;
use crate::error::{Error, Result};
use crate::nn::Real;
use crate::ode::{self, End, Report, Stage};
use crate::rng::{Stream, StreamId};
use rayon::prelude::*;
use std::f64::consts::LN_2;
use std::sync::{Arc, OnceLock};

/// Round-trip errors of a sample carried to the prior and back.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    /// |Δ log q| between the two directions; infinite if either failed.
    pub log_density: f64,
    /// Largest |Δx| of a coordinate, nm.
    pub position: f64,
    /// Integration reports: to the prior, and back to the data.
    pub reports: [Report; 2],
}

const SAMPLES_THERE_AND_BACK: usize = 4;

/// A continuous flow over the vector field `F`.
///
/// Latent points are prior points `[3N]` in the network's units. With mirror images folded, z and −z give the same
/// sample.
pub struct ContinuousFlow<F> {
    field: F,
    card: ModelCard,
    config: ContinuousConfig,
    hash: String,
    /// Round-trip error of a few samples, computed on first request.
    integration_error: OnceLock<Option<f64>>,
}

impl<F: VectorField> ContinuousFlow<F> {
    /// Builds the flow on a field. Errors: options out of range; a card of other coordinates or another exactness;
    /// stereocentres with a field that is not equivariant, for then mirror images have different densities.
    pub fn new(field: F, config: ContinuousConfig, card: ModelCard, hash: String) -> Result<ContinuousFlow<F>> {
        let dimension = field.dimension();
        config.check(dimension)?;
        if card.coordinates != (CoordinatesConfig::Cartesian { dimension }) {
            return Err(Error::invalid(format!(
                "the network has {dimension} coordinates, so the model must have the same number of Cartesian \
                 coordinates"
            )));
        }
        card.require_dimension(dimension)?;
        if card.exactness != config.exactness() {
            return Err(Error::invalid(format!(
                "the model's description declares its density {:?}, but with this prior, solver and divergence it is \
                 {:?}",
                card.exactness,
                config.exactness()
            )));
        }
        if !config.stereocentres.is_empty() && !field.is_equivariant() {
            return Err(Error::invalid("stereocentres need a network that is equivariant under reflection"));
        }
        Ok(ContinuousFlow { field, card, config, hash, integration_error: OnceLock::new() })
    }

    /// The same flow with another implementation of its field.
    fn with_field<G: VectorField>(self, field: G) -> Result<ContinuousFlow<G>> {
        ContinuousFlow::new(field, self.config, self.card, self.hash)
    }

    /// The vector field that is integrated.
    pub fn vector_field(&self) -> &F {
        &self.field
    }

    /// The flow's configuration: prior, times, solver and the rest.
    pub fn config(&self) -> &ContinuousConfig {
        &self.config
    }

    fn mean_free(&self) -> bool {
        self.config.prior == Prior::MeanFree
    }

    /// Dimension of the space the flow lives in.
    fn degrees_of_freedom(&self) -> f64 {
        (self.field.dimension() - if self.mean_free() { 3 } else { 0 }) as f64
    }

    /// ln|∂(x in nm)/∂(x in network units)|.
    fn log_unit(&self) -> f64 {
        match self.config.prior {
            Prior::MeanFree => -self.degrees_of_freedom() * self.config.units_per_nm.ln(),
            Prior::Reference => 0.0,
        }
    }

    /// log p(z), plus ln 2 where two mirror images share a sample.
    fn log_prior(&self, z: &[f64]) -> f64 {
        let quadratic = -0.5 * z.iter().map(|v| v * v).sum::<f64>();
        match self.config.prior {
            Prior::MeanFree => {
                let folded = if self.config.stereocentres.is_empty() { 0.0 } else { LN_2 };
                quadratic - 0.5 * self.degrees_of_freedom() * LOG_2_PI + folded
            }
            Prior::Reference => quadratic,
        }
    }

    fn draw_prior(&self, stream: &mut Stream, z: &mut [f64]) {
        stream.fill_normal(z);
        if self.mean_free() {
            centre(z);
        }
    }

    /// Velocity of the flow, and its divergence where requested.
    fn velocity(&self, probes: &[f64], stage: Stage) {
        let Stage { rows, t, x, dx, rate } = stage;
        match self.config.divergence {
            _ if rate.is_empty() => self.field.evaluate(t, x, dx),
            Divergence::Exact => self.exact_divergence(t, x, dx, rate),
            Divergence::Hutchinson { .. } => self.estimated_divergence(rows, probes, (t, x), dx, rate),
        }
        let d = self.field.dimension();
        for (i, (x, dx)) in x.chunks_exact(d).zip(dx.chunks_exact_mut(d)).enumerate() {
            if self.mean_free() {
                centre(dx);
            }
            if self.config.parametrisation == Parametrisation::Endpoint {
                let (a, b) = self.config.schedule(t[i]).by_endpoint();
                dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = a * x + b * *dx);
                rate.iter_mut().skip(i).take(1).for_each(|r| *r = a * self.degrees_of_freedom() + b * *r);
            }
        }
    }

    /// f and tr(P ∂f/∂x P).
    fn exact_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        self.field.evaluate_divergence(t, x, f, divergence);
        if !self.mean_free() || self.field.is_equivariant() {
            return;
        }
        let d = self.field.dimension();
        let (mut along, mut df, mut again) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]);
        for axis in 0..3 {
            along.iter_mut().enumerate().for_each(|(i, v)| *v = f64::from(u8::from(i % 3 == axis)));
            self.field.evaluate_jvp(t, x, &along, &mut again, &mut df);
            for (divergence, df) in divergence.iter_mut().zip(df.chunks_exact(d)) {
                *divergence -= 3.0 / d as f64 * df.iter().skip(axis).step_by(3).sum::<f64>();
            }
        }
    }

    /// f and the mean of eᵀ ∂f/∂x e over projected probes e, whose expectation is tr(P ∂f/∂x P).
    fn estimated_divergence(
        &self,
        rows: &[usize],
        probes: &[f64],
        (t, x): (&[f64], &[f64]),
        f: &mut [f64],
        divergence: &mut [f64],
    ) {
        let d = self.field.dimension();
        let n_probes = self.n_probes();
        let (mut along, mut df) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        divergence.fill(0.0);
        for k in 0..n_probes {
            for (along, row) in along.chunks_exact_mut(d).zip(rows) {
                along.copy_from_slice(&probes[(row * n_probes + k) * d..][..d]);
            }
            self.field.evaluate_jvp(t, x, &along, f, &mut df);
            for ((divergence, e), df) in divergence.iter_mut().zip(along.chunks_exact(d)).zip(df.chunks_exact(d)) {
                *divergence += e.iter().zip(df).map(|(e, df)| e * df).sum::<f64>() / n_probes as f64;
            }
        }
    }

    fn n_probes(&self) -> usize {
        match self.config.divergence {
            Divergence::Exact => 0,
            Divergence::Hutchinson { probes } => probes,
        }
    }

    /// Random probe vectors `[rows][probes][3N]` for paths starting at these points.
    fn probes(&self, starts: &[f64]) -> Vec<f64> {
        let d = self.field.dimension();
        let mut probes = Vec::with_capacity(starts.len() * self.n_probes());
        for start in starts.chunks_exact(d) {
            let mut stream = Stream::new(fingerprint(start), StreamId::Probe, 0, 0);
            for _ in 0..self.n_probes() {
                let mut probe: Vec<f64> = (0..d).map(|_| if stream.uniform() < 0.5 { -1.0 } else { 1.0 }).collect();
                if self.mean_free() {
                    centre(&mut probe);
                }
                probes.extend(probe);
            }
        }
        probes
    }

    /// Carries points `y[n][3N]` (network units) over the span and adds ∫ div dt to `integral[n]`, unless that is
    /// empty. A sample's result does not depend on its chunk.
    fn carry(&self, span: [f64; 2], y: &mut [f64], integral: &mut [f64]) -> Result<Vec<Report>> {
        let probes = |y: &[f64], integral: &[f64]| if integral.is_empty() { Vec::new() } else { self.probes(y) };
        if let Some(solver) = self.field.solver() {
            return solver.carry(&self.config, span, &probes(y, integral), y, integral);
        }
        let (d, chunk) = (self.field.dimension(), self.field.rows_at_once());
        let parts: Vec<&mut [f64]> = match integral.is_empty() {
            true => y.chunks(chunk * d).map(|_| &mut [][..]).collect(),
            false => integral.chunks_mut(chunk).collect(),
        };
        let chunks = y.par_chunks_mut(chunk * d).zip(parts);
        let reports: Vec<Vec<Report>> = chunks
            .map(|(y, integral)| {
                let probes = probes(y, integral);
                let mut derivative = |stage: Stage| self.velocity(&probes, stage);
                ode::integrate(&self.config.solver, span, d, y, integral, &mut derivative)
            })
            .collect();
        self.field.failure()?;
        Ok(reports.concat())
    }

    /// Converts from network units to nm, and takes the mirror image where the hand is wrong.
    fn finish(&self, x: &mut [f64]) -> Status {
        x.iter_mut().for_each(|v| *v /= self.config.units_per_nm);
        if x.iter().any(|v| !v.is_finite()) {
            return Status::NonFinite;
        }
        if !self.has_hands(x) {
            x.iter_mut().for_each(|v| *v = -*v);
        }
        if self.has_hands(x) {
            Status::Inside
        } else {
            Status::WrongChirality
        }
    }

    fn has_hands(&self, x: &[f64]) -> bool {
        self.config.stereocentres.iter().all(|centre| centre.holds(x))
    }

    /// [`Flow::generate`] with the integration report of each sample; failed ones, which [`ode::failures`] names, have
    /// status `NonFinite`. Errors: sizes that do not match, a failure of the device.
    pub fn generate_reported(
        &self,
        z: &[f64],
        x: &mut [f64],
        log_det: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<Vec<Report>> {
        self.check_rows(z, x, log_det, log_density)?;
        let d = self.field.dimension();
        x.copy_from_slice(z);
        if self.mean_free() {
            x.chunks_exact_mut(d).for_each(|x| _ = centre(x));
        }
        let log_prior: Vec<f64> = x.chunks_exact(d).map(|z| self.log_prior(z)).collect();
        log_det.fill(0.0);
        let reports = self.carry(self.config.times, x, log_det)?;
        for (row, x) in x.chunks_exact_mut(d).enumerate() {
            let status = if reports[row].end == End::Done { self.finish(x) } else { Status::NonFinite };
            log_det[row] += self.log_unit();
            log_density[row] = match status {
                Status::Inside => Evaluation::inside(log_prior[row] - log_det[row]),
                status => Evaluation::outside(status),
            };
        }
        Ok(reports)
    }

    /// [`Flow::encode`] with the integration report of each sample. Configurations of the wrong hand are not
    /// integrated: their reports count no evaluations, and z is NaN. Errors: sizes that do not match, a failure of the
    /// device.
    pub fn encode_reported(
        &self,
        x: &[f64],
        z: &mut [f64],
        log_det: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<Vec<Report>> {
        self.check_rows(z, x, log_det, log_density)?;
        let d = self.field.dimension();
        let mut usable = Vec::with_capacity(log_density.len());
        let mut packed = Vec::with_capacity(x.len());
        for (row, x) in x.chunks_exact(d).enumerate() {
            if x.iter().any(|v| !v.is_finite()) {
                log_density[row] = Evaluation::outside(Status::NonFinite);
            } else if !self.has_hands(x) {
                log_density[row] = Evaluation::outside(Status::WrongChirality);
            } else {
                usable.push(row);
                packed.extend(x.iter().map(|v| v * self.config.units_per_nm));
            }
        }
        if self.mean_free() {
            packed.chunks_exact_mut(d).for_each(|y| _ = centre(y));
        }
        let mut integral = vec![0.0; usable.len()];
        let [prior, data] = self.config.times;
        let done = self.carry([data, prior], &mut packed, &mut integral)?;
        let untouched = Report { evaluations: 0, accepted: 0, rejected: 0, end: End::Done };
        let mut reports = vec![untouched; log_density.len()];
        z.fill(f64::NAN);
        log_det.fill(f64::NAN);
        for (i, &row) in usable.iter().enumerate() {
            let y = &packed[i * d..][..d];
            z[row * d..][..d].copy_from_slice(y);
            log_det[row] = self.log_unit() - integral[i];
            log_density[row] = match done[i].end {
                End::Done => Evaluation::inside(self.log_prior(y) - log_det[row]),
                _ => Evaluation::outside(Status::NonFinite),
            };
            reports[row] = done[i];
        }
        Ok(reports)
    }

    fn check_rows(&self, z: &[f64], x: &[f64], log_det: &[f64], log_density: &[Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.rows(z, log_density)?;
        if log_det.len() != n {
            return Err(Error::invalid(format!("{n} samples need {n} log-determinants, got {}", log_det.len())));
        }
        Ok(())
    }

    /// Carries `x[n][3N]` (nm) to the prior and back. The error in log q is of the size of the effect of the solver's
    /// tolerance on an acceptance; well below 0.01 is harmless. Errors: those of [`Self::encode_reported`].
    pub fn round_trip(&self, x: &[f64]) -> Result<Vec<RoundTrip>> {
        let d = self.field.dimension();
        let n = x.len() / d;
        let nowhere = Evaluation::outside(Status::NonFinite);
        let (mut z, mut back, mut log_det) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; n]);
        let (mut there, mut again) = (vec![nowhere; n], vec![nowhere; n]);
        let to_prior = self.encode_reported(x, &mut z, &mut log_det, &mut there)?;
        let to_data = self.generate_reported(&z, &mut back, &mut log_det, &mut again)?;
        Ok((0..n)
            .map(|row| {
                let mut start = x[row * d..][..d].to_vec();
                if self.mean_free() {
                    centre(&mut start);
                }
                let shifts = start.iter().zip(&back[row * d..][..d]).map(|(a, b)| (a - b).abs());
                let found = there[row].is_inside() && again[row].is_inside();
                let or_infinity = |v: f64| if found { v } else { f64::INFINITY };
                RoundTrip {
                    log_density: or_infinity((there[row].log_density - again[row].log_density).abs()),
                    position: or_infinity(shifts.fold(0.0, f64::max)),
                    reports: [to_prior[row], to_data[row]],
                }
            })
            .collect())
    }

    /// Samples of the stochastic equation with the same marginal densities at every time, dx = (v dt + σ/2 · ∇log p_t
    /// |dt|) + √σ dW, with the score derived from the velocity (Albergo, Boffi and Vanden-Eijnden, arXiv 2303.08797),
    /// by equal Euler–Maruyama steps that end exactly at the data. They have no log q. Errors: no steps, sizes that do
    /// not match, a failure of the device.
    pub fn sample_stochastic(
        &self,
        steps: usize,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        status: &mut [Status],
    ) -> Result<()> {
        let d = self.field.dimension();
        if steps == 0 || x.len() != status.len() * d {
            return Err(Error::invalid(format!(
                "{steps} steps for {} samples of {d} coordinates in {} numbers: use at least one step, and one number \
                 per coordinate",
                status.len(),
                x.len()
            )));
        }
        let rows = self.field.rows_at_once();
        let chunks = x.par_chunks_mut(rows * d).zip(status.par_chunks_mut(rows)).enumerate();
        chunks.for_each(|(chunk, (x, status))| {
            let mut streams: Vec<Stream> = (0..status.len()).map(|row| streams(chunk * rows + row)).collect();
            x.chunks_exact_mut(d).zip(&mut streams).for_each(|(x, stream)| self.draw_prior(stream, x));
            self.stochastic_steps(steps, &mut streams, x);
            x.chunks_exact_mut(d).zip(status).for_each(|(x, status)| *status = self.finish(x));
        });
        self.field.failure()
    }

    fn stochastic_steps(&self, steps: usize, streams: &mut [Stream], x: &mut [f64]) {
        let d = self.field.dimension();
        let [start, end] = self.config.times;
        let rows: Vec<usize> = (0..streams.len()).collect();
        let (mut v, mut noise) = (vec![0.0; x.len()], vec![0.0; d]);
        let dt = (end - start) / steps as f64;
        for step in 0..steps {
            let t = start + step as f64 * dt;
            let times = vec![t; rows.len()];
            self.velocity(&[], Stage { rows: &rows, t: &times, x, dx: &mut v, rate: &mut [] });
            let schedule = self.config.schedule(t);
            let (a, b) = schedule.score();
            let (drift, width) = (0.5 * schedule.sigma * dt.abs(), (schedule.sigma * dt.abs()).sqrt());
            for ((x, v), stream) in x.chunks_exact_mut(d).zip(v.chunks_exact(d)).zip(&mut *streams) {
                self.draw_prior(stream, &mut noise);
                for ((x, v), noise) in x.iter_mut().zip(v).zip(&noise) {
                    *x += v * dt + drift * (a * *x + b * v) + width * noise;
                }
            }
        }
    }
}

/// FNV-1a hash of the bits.
fn fingerprint(x: &[f64]) -> u64 {
    let bytes = x.iter().flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl<R: Real> ContinuousFlow<GvpField<R>> {
    /// Moves the field to a GPU, where each call is one launch. Errors: the driver's.
    pub fn on_device(self, driver: &Arc<dyn Driver>) -> Result<ContinuousFlow<FieldOnDevice<R>>> {
        let field = self.field.on_device(driver)?;
        self.with_field(field)
    }
}

impl<R: Real> ContinuousFlow<Evaluator<Egnn, R>> {
    /// Moves the field to a GPU. Errors: the driver's.
    pub fn on_device(self, driver: &Arc<dyn Driver>) -> Result<ContinuousFlow<FieldOnDevice<R>>> {
        let field = self.field.on_device(driver)?;
        self.with_field(field)
    }
}

impl<F: VectorField> Density for ContinuousFlow<F> {
    fn dimension(&self) -> usize {
        self.field.dimension()
    }

    fn exactness(&self) -> Exactness {
        self.config.exactness()
    }

    fn integration_error(&self) -> Result<Option<f64>> {
        if let Some(found) = self.integration_error.get() {
            return Ok(*found);
        }
        let mut x = vec![0.0; SAMPLES_THERE_AND_BACK * self.dimension()];
        let mut there = [Evaluation::outside(Status::NonFinite); SAMPLES_THERE_AND_BACK];
        let mut back = there;
        self.sample(&|row| Stream::new(u64::MAX, StreamId::Sample, row as u64, 0), &mut x, &mut there)?;
        self.log_density(&x, &mut back)?;
        // a sample that does not find its way back has log q = −∞, which makes the error infinite
        let samples = there.iter().zip(&back).filter(|(there, _)| there.is_inside());
        let found = samples.map(|(there, back)| (there.log_density - back.log_density).abs()).reduce(f64::max);
        Ok(*self.integration_error.get_or_init(|| found))
    }

    fn scope(&self) -> Scope {
        if self.mean_free() {
            Scope::Centred
        } else {
            Scope::Full
        }
    }

    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let mut z = vec![0.0; x.len()];
        z.chunks_exact_mut(self.dimension()).enumerate().for_each(|(row, z)| self.draw_prior(&mut streams(row), z));
        self.generate(&z, x, &mut vec![0.0; n], log_density)
    }

    /// The same integration without the divergence, which takes nearly all of the time.
    fn sample_only(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        status: &mut [Status],
    ) -> Result<()> {
        let d = self.dimension();
        if x.len() != status.len() * d {
            return Err(Error::invalid(format!(
                "expected {} samples of {d} coordinates, found {} numbers",
                status.len(),
                x.len()
            )));
        }
        x.chunks_exact_mut(d).enumerate().for_each(|(row, x)| self.draw_prior(&mut streams(row), x));
        let reports = self.carry(self.config.times, x, &mut [])?;
        for ((x, status), report) in x.chunks_exact_mut(d).zip(status).zip(reports) {
            *status = if report.end == End::Done { self.finish(x) } else { Status::NonFinite };
        }
        Ok(())
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.encode(x, &mut vec![0.0; x.len()], &mut vec![0.0; n], log_density)
    }

    /// Always an error: the gradient requires the adjoint equation, for which networks have no derivatives yet.
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported(
            "a continuous flow has no gradient of its log-density: train it by flow matching, and use moves that \
             require only log q (independence, i-SIR, delayed acceptance)"
                .into(),
        ))
    }
}

impl<F: VectorField> Flow for ContinuousFlow<F> {
    fn latent_dimension(&self) -> usize {
        self.field.dimension()
    }

    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        self.generate_reported(z, x, log_det, log_density).map(drop)
    }

    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        self.encode_reported(x, z, log_det, log_density).map(drop)
    }
}

impl<F: VectorField> Model for ContinuousFlow<F> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn device(&self) -> String {
        self.field.device()
    }

    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }

    fn field(&self) -> Option<&dyn VectorField> {
        Some(&self.field)
    }
}

#[cfg(test)]
mod tests;
