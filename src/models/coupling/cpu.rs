//! Evaluation and derivatives on the CPU: chunks of rows in parallel, each through all layers.

use super::layers::{Direction, Layer, LayerTape, Rows};
use super::CouplingFlow;
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::models::card::ModelCard;
use crate::models::{Flow, Model, Steering, LOG_2_PI};
use crate::nn::parameters::add_lanes;
use crate::nn::Real;
use crate::rng::Stream;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows that pass through the layers together. A row's result depends only on its chunk, never on the threads.
pub const CHUNK: usize = 64;
/// Number of partial sums of a parameter gradient; fixed, so that the sum does not depend on the threads.
pub const LANES: usize = 4;

/// Workspace of one chunk; buffers grow once.
#[derive(Default)]
pub struct Workspace<R> {
    /// `[rows][dimension_u]`: latent points after encoding, generator coordinates after generating.
    pub u: Vec<f64>,
    /// ln|∂x/∂z| per row.
    pub log_det: Vec<f64>,
    pub status: Vec<Status>,
    /// log p(z) per row.
    pub log_prior: Vec<f64>,
    tapes: Vec<LayerTape<R>>,
    gu: Vec<f64>,
    gx: Vec<f64>,
}

impl<R: Real> Workspace<R> {
    fn reset(&mut self, rows: usize, dimension: usize, n_layers: usize) {
        self.u.resize(rows * dimension, 0.0);
        self.gu.resize(rows * dimension, 0.0);
        self.log_det.clear();
        self.log_det.resize(rows, 0.0);
        self.log_prior.clear();
        self.log_prior.resize(rows, 0.0);
        self.status.clear();
        self.status.resize(rows, Status::Inside);
        self.tapes.resize_with(n_layers, LayerTape::default);
    }

    /// log q and status of a row.
    pub fn evaluation(&self, row: usize) -> Evaluation {
        match self.status[row] {
            Status::Inside => Evaluation::inside(self.log_prior[row] - self.log_det[row]),
            status => Evaluation::outside(status),
        }
    }

    fn mark(&mut self, row: usize, status: Status) {
        if self.status[row] == Status::Inside {
            self.status[row] = status;
        }
    }
}

impl<R: Real> CouplingFlow<R> {
    pub(super) fn dimension_u(&self) -> usize {
        self.uniform.len()
    }

    /// Runs `body` with a workspace from the pool.
    pub fn with_workspace<T>(&self, body: impl FnOnce(&mut Workspace<R>) -> T) -> T {
        self.workspaces.with(Workspace::default, body)
    }

    /// Draws a latent point from the prior.
    pub fn draw_latent(&self, stream: &mut Stream, z: &mut [f64]) {
        let width = self.variance.sqrt();
        for (z, &uniform) in z.iter_mut().zip(&self.uniform) {
            *z = if uniform { stream.uniform() } else { width * stream.normal() };
        }
    }

    /// Fills `log_prior` from the latent points in `u`.
    fn prior(&self, ws: &mut Workspace<R>) {
        let d = self.dimension_u();
        let log_volume = LOG_2_PI + self.variance.ln();
        for row in 0..ws.log_det.len() {
            let (mut log_prior, mut inside) = (0.0, true);
            for (&z, &uniform) in ws.u[row * d..][..d].iter().zip(&self.uniform) {
                if uniform {
                    inside &= (0.0..=1.0).contains(&z);
                } else {
                    log_prior -= 0.5 * (z * z / self.variance + log_volume);
                }
            }
            ws.log_prior[row] = log_prior;
            if !inside {
                ws.mark(row, Status::OutOfSupport);
            }
        }
    }

    fn layers_in(&self, direction: Direction, ws: &mut Workspace<R>) {
        let Workspace { u, log_det, status, tapes, .. } = ws;
        let mut rows = Rows { dimension: self.dimension_u(), u, log_det, status };
        let mut apply =
            |(layer, tape): (&Layer, &mut LayerTape<R>)| layer.apply(direction, &self.parameters, &mut rows, tape);
        match direction {
            Direction::Generate => self.layers.iter().zip(tapes).for_each(&mut apply),
            Direction::Encode => self.layers.iter().zip(tapes).rev().for_each(&mut apply),
        }
    }

    /// Maps the latent points in `ws.u` (n rows, written by `fill`) to `x[n][dimension]`.
    pub fn generate_chunk(&self, ws: &mut Workspace<R>, x: &mut [f64], fill: impl Fn(usize, &mut [f64])) {
        let (d, dx) = (self.dimension_u(), self.coordinates.dimension_x());
        let n = x.len() / dx;
        ws.reset(n, d, self.layers.len());
        ws.u.chunks_exact_mut(d).enumerate().for_each(|(row, z)| fill(row, z));
        self.prior(ws);
        self.layers_in(Direction::Generate, ws);
        for (row, x) in x.chunks_exact_mut(dx).enumerate() {
            let (log_det, status) = self.coordinates.generate(&ws.u[row * d..][..d], x);
            ws.log_det[row] += log_det;
            ws.mark(row, status);
        }
    }

    /// Maps `x[n][dimension]` to latent points, left in `ws.u`.
    pub fn encode_chunk(&self, ws: &mut Workspace<R>, x: &[f64]) {
        let (d, dx) = (self.dimension_u(), self.coordinates.dimension_x());
        ws.reset(x.len() / dx, d, self.layers.len());
        for (row, x) in x.chunks_exact(dx).enumerate() {
            let u = &mut ws.u[row * d..][..d];
            let (log_det, status) = self.coordinates.encode(x, u);
            if status != Status::Inside {
                u.fill(0.5); // any finite point: the row is rejected, but shares its chunk with others
            }
            ws.log_det[row] = log_det;
            ws.mark(row, status);
        }
        self.layers_in(Direction::Encode, ws);
        self.prior(ws);
    }

    /// Backward pass after [`Self::encode_chunk`]: for L = Σ w·log q(x), adds ∂L/∂parameters to `gradient` and writes
    /// ∂L/∂x to `gx`, each if given. Rows outside the support have weight zero.
    pub fn encode_vjp(
        &self,
        ws: &mut Workspace<R>,
        x: &[f64],
        weights: &[f64],
        gradient: Option<&mut [R]>,
        gx: Option<&mut [f64]>,
    ) {
        let d = self.dimension_u();
        let weight: Vec<f64> =
            weights.iter().zip(&ws.status).map(|(&w, &s)| if s == Status::Inside { w } else { 0.0 }).collect();
        let g_log_det: Vec<f64> = weight.iter().map(|w| -w).collect();
        let Workspace { u, gu, .. } = ws;
        for (row, gu) in gu.chunks_exact_mut(d).enumerate() {
            for ((g, &z), &uniform) in gu.iter_mut().zip(&u[row * d..]).zip(&self.uniform) {
                *g = if uniform || weight[row] == 0.0 { 0.0 } else { -weight[row] * z / self.variance };
            }
        }
        self.encode_back(ws, x, &g_log_det, gradient, gx);
    }

    /// Backward pass after [`Self::encode_chunk`]: from the cotangents of z `[rows][latent]` and of ln|∂x/∂z|, adds
    /// those of the parameters to `gradient`. Rows outside the support contribute zero.
    pub fn encode_pull(&self, ws: &mut Workspace<R>, x: &[f64], gz: &[f64], g_log_det: &[f64], gradient: &mut [R]) {
        let d = self.dimension_u();
        let mut g_log_det = g_log_det.to_vec();
        ws.gu.copy_from_slice(gz);
        for row in (0..g_log_det.len()).filter(|&row| ws.status[row] != Status::Inside) {
            g_log_det[row] = 0.0;
            ws.gu[row * d..][..d].fill(0.0);
        }
        self.encode_back(ws, x, &g_log_det, Some(gradient), None);
    }

    /// Propagates the cotangents of z, in `ws.gu`, and of ln|∂x/∂z| back through the layers.
    fn encode_back(
        &self,
        ws: &mut Workspace<R>,
        x: &[f64],
        g_log_det: &[f64],
        mut gradient: Option<&mut [R]>,
        gx: Option<&mut [f64]>,
    ) {
        let (d, dx) = (self.dimension_u(), self.coordinates.dimension_x());
        let Workspace { gu, tapes, .. } = ws;
        for (layer, tape) in self.layers.iter().zip(tapes) {
            layer.vjp(Direction::Encode, &self.parameters, tape, gu, g_log_det, gradient.as_deref_mut());
        }
        if let Some(gx) = gx {
            gx.fill(0.0);
            for row in (0..g_log_det.len()).filter(|&row| g_log_det[row] != 0.0) {
                let (x, gx) = (&x[row * dx..][..dx], &mut gx[row * dx..][..dx]);
                self.coordinates.encode_vjp(x, &gu[row * d..][..d], g_log_det[row], gx);
            }
        }
    }

    /// Backward pass after [`Self::generate_chunk`]: from the cotangents of x and of ln|∂x/∂z|, adds those of the
    /// parameters to `gradient`, if given, and leaves those of z in the workspace. Rows outside the support must have
    /// zero cotangents.
    pub fn generate_vjp(
        &self,
        ws: &mut Workspace<R>,
        x: &[f64],
        gx: &[f64],
        g_log_det: &[f64],
        mut gradient: Option<&mut [R]>,
    ) {
        let (d, dx) = (self.dimension_u(), self.coordinates.dimension_x());
        let Workspace { u, gu, gx: scratch, status, tapes, .. } = ws;
        for row in 0..g_log_det.len() {
            let gu = &mut gu[row * d..][..d];
            if status[row] != Status::Inside {
                gu.fill(0.0);
                continue;
            }
            scratch.clear();
            scratch.extend_from_slice(&gx[row * dx..][..dx]);
            self.coordinates.generate_vjp(&u[row * d..][..d], &x[row * dx..][..dx], scratch, g_log_det[row], gu);
        }
        for (layer, tape) in self.layers.iter().zip(tapes).rev() {
            layer.vjp(Direction::Generate, &self.parameters, tape, gu, g_log_det, gradient.as_deref_mut());
        }
    }

    /// For L = Σ w·log q(x) over `x[n][dimension]`: writes log q per row and adds ∂L/∂parameters to `gradient`. Errors:
    /// sizes that do not match.
    pub fn parameter_gradient(
        &self,
        x: &[f64],
        weights: &[f64],
        log_density: &mut [Evaluation],
        gradient: &mut [R],
    ) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let dx = self.dimension();
        let lane = n.div_ceil(LANES).max(1);
        let partial: Vec<Vec<R>> =
            (x.par_chunks(lane * dx), weights.par_chunks(lane), log_density.par_chunks_mut(lane))
                .into_par_iter()
                .map(|(x, weights, log_density)| {
                    let mut sum = self.take_gradient();
                    self.with_workspace(|ws| {
                        let chunks = x
                            .chunks(2 * CHUNK * dx)
                            .zip(weights.chunks(2 * CHUNK))
                            .zip(log_density.chunks_mut(2 * CHUNK));
                        for ((x, weights), log_density) in chunks {
                            self.encode_chunk(ws, x);
                            log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
                            self.encode_vjp(ws, x, weights, Some(&mut sum), None);
                        }
                    });
                    sum
                })
                .collect();
        add_lanes(&partial, gradient);
        partial.into_iter().for_each(|sum| self.gradients.put_back(sum));
        Ok(())
    }

    /// A zero gradient, in reused memory: fresh pages cost more than clearing old ones.
    fn take_gradient(&self) -> Vec<R> {
        let mut gradient = self.gradients.take().unwrap_or_default();
        gradient.clear();
        gradient.resize(self.parameters.len(), R::default());
        gradient
    }

    pub(super) fn check_latent(&self, z: &[f64], n: usize) -> Result<()> {
        if z.len() == n * self.dimension_u() {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "expected {n} latent points of {} numbers, found {} numbers",
            self.dimension_u(),
            z.len()
        )))
    }

    pub(super) fn check_pull_back(&self, z: &[f64], gx: &[f64], g_log_det: &[f64], gz: &[f64]) -> Result<()> {
        let (n, dx) = (g_log_det.len(), self.dimension());
        self.check_latent(z, n)?;
        self.check_latent(gz, n)?;
        if gx.len() == n * dx {
            return Ok(());
        }
        Err(Error::invalid(format!("expected {n} gradients of {dx} numbers, found {} numbers", gx.len())))
    }
}

/// Calls `body(first row, chunk of a, chunk of b)` for chunks of rows; a single chunk stays on this thread.
fn for_chunks<A: Send, B: Send>(
    a: &mut [A],
    b: &mut [B],
    n: usize,
    body: impl Fn(usize, &mut [A], &mut [B]) + Sync + Send,
) {
    if n == 0 {
        return;
    }
    let (wa, wb) = (a.len() / n, b.len() / n);
    if n <= CHUNK {
        return body(0, a, b);
    }
    let pairs = a.par_chunks_mut(wa * CHUNK).zip(b.par_chunks_mut(wb * CHUNK));
    pairs.enumerate().for_each(|(chunk, (a, b))| body(chunk * CHUNK, a, b));
}

/// Calls `body` for chunks of rows; a single chunk stays on this thread.
fn for_each<C: Send>(mut chunks: impl Iterator<Item = C>, body: impl Fn(C) + Sync + Send) {
    let Some(first) = chunks.next() else { return };
    let others: Vec<C> = chunks.collect();
    match others.is_empty() {
        true => body(first),
        false => _ = rayon::join(|| body(first), || others.into_par_iter().for_each(&body)),
    }
}

impl<R: Real> Density for CouplingFlow<R> {
    fn dimension(&self) -> usize {
        self.coordinates.dimension_x()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn scope(&self) -> Scope {
        self.coordinates.scope()
    }

    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        let n = self.rows(x, log_density)?;
        for_chunks(x, log_density, n, |first, x, log_density| {
            self.with_workspace(|ws| {
                self.generate_chunk(ws, x, |row, z| self.draw_latent(&mut streams(first + row), z));
                log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
            })
        });
        Ok(())
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let dx = self.dimension();
        for_chunks(log_density, &mut vec![(); n], n, |first, log_density, _| {
            self.with_workspace(|ws| {
                self.encode_chunk(ws, &x[first * dx..][..log_density.len() * dx]);
                log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
            })
        });
        Ok(())
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.rows(gradient, log_density)?;
        let dx = self.dimension();
        for_chunks(log_density, gradient, n, |first, log_density, gradient| {
            let rows = log_density.len();
            let x = &x[first * dx..][..rows * dx];
            self.with_workspace(|ws| {
                self.encode_chunk(ws, x);
                log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
                self.encode_vjp(ws, x, &vec![1.0; rows], None, Some(gradient));
            })
        });
        Ok(())
    }
}

impl<R: Real> Flow for CouplingFlow<R> {
    fn latent_dimension(&self) -> usize {
        self.dimension_u()
    }

    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.check_latent(z, n)?;
        let (d, dx) = (self.dimension_u(), self.dimension());
        let rows = x.chunks_mut(CHUNK * dx).zip(log_det.chunks_mut(CHUNK)).zip(log_density.chunks_mut(CHUNK));
        for_each(rows.zip(z.chunks(CHUNK * d)), |(((x, log_det), log_density), z)| {
            self.with_workspace(|ws| {
                self.generate_chunk(ws, x, |row, u| u.copy_from_slice(&z[row * d..][..d]));
                log_det.copy_from_slice(&ws.log_det);
                log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
            })
        });
        Ok(())
    }

    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.check_latent(z, n)?;
        let (d, dx) = (self.dimension_u(), self.dimension());
        let rows = z.chunks_mut(CHUNK * d).zip(log_det.chunks_mut(CHUNK)).zip(log_density.chunks_mut(CHUNK));
        for_each(rows.zip(x.chunks(CHUNK * dx)), |(((z, log_det), log_density), x)| {
            self.with_workspace(|ws| {
                self.encode_chunk(ws, x);
                z.copy_from_slice(&ws.u);
                log_det.copy_from_slice(&ws.log_det);
                log_density.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
            })
        });
        Ok(())
    }

    fn is_uniform(&self, i: usize) -> bool {
        self.uniform[i]
    }

    fn pull_back(&self, z: &[f64], gx: &[f64], g_log_det: &[f64], gz: &mut [f64]) -> Result<()> {
        self.check_pull_back(z, gx, g_log_det, gz)?;
        let (d, dx) = (self.dimension_u(), self.dimension());
        let rows = gz.chunks_mut(CHUNK * d).zip(z.chunks(CHUNK * d));
        for_each(rows.zip(gx.chunks(CHUNK * dx).zip(g_log_det.chunks(CHUNK))), |((gz, z), (gx, g_log_det))| {
            self.with_workspace(|ws| {
                let mut x = vec![0.0; gx.len()];
                self.generate_chunk(ws, &mut x, |row, u| u.copy_from_slice(&z[row * d..][..d]));
                let inside: Vec<f64> = g_log_det
                    .iter()
                    .zip(&ws.status)
                    .map(|(&g, &s)| if s == Status::Inside { g } else { 0.0 })
                    .collect();
                self.generate_vjp(ws, &x, gx, &inside, None);
                gz.copy_from_slice(&ws.gu);
            })
        });
        Ok(())
    }
}

impl<R: Real> Model for CouplingFlow<R> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }

    fn steering(&self) -> Option<Steering> {
        self.card.steering.map(|s| Steering { auxiliary: s.auxiliary, variance: self.variance })
    }

    fn at_temperature(&self, kelvin: f64) -> Result<Arc<dyn Model>> {
        Ok(Arc::new(self.at_variance(self.variance_at(kelvin)?)))
    }
}
