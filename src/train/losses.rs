//! Losses and their gradients. Each adds `scale · ∂L/∂parameters` to `gradient` and returns the value for progress
//! lines. Errors are those of the target or of the flow.

use super::reaction_coordinate::ReactionCoordinate;
use crate::density::{Density, Evaluation};
use crate::error::{Error, Result};
use crate::models::coupling::{CouplingFlow, Workspace, CHUNK, LANES};
use crate::models::Model;
use crate::nn::parameters::add_lanes;
use crate::nn::Real;
use crate::rng::Stream;
use crate::target::Target;
use rayon::prelude::*;

/// Beyond this excess over the typical reduced energy the energy loss grows only logarithmically (Noé et al. 2019,
/// supplement). Training only: moves use the plain energy.
const ENERGY_KNEE: f64 = 40.0;
/// Largest norm of one sample's gradient with respect to x, 1/nm.
const LARGEST_FORCE: f64 = 3e4;
/// Displacement of a configuration in the directional difference of force matching, in the unit of x.
const DISPLACEMENT: f64 = 1e-5;

/// Maximum likelihood: L = −mean log q(x). Frames outside the support are left out. Returns L.
pub fn maximum_likelihood(flow: &CouplingFlow<f32>, x: &[f64], scale: f64, gradient: &mut [f32]) -> Result<f64> {
    let n = x.len() / flow.dimension();
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.parameter_gradient(x, &vec![-scale / n as f64; n], &mut log_q, gradient)?;
    let inside: Vec<f64> = log_q.iter().filter(|e| e.is_inside()).map(|e| e.log_density).collect();
    Ok(-inside.iter().sum::<f64>() / inside.len().max(1) as f64)
}

/// Samples of the model with their energies, the input to reverse KL and self-refinement.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// `[n][dimension]`, nm.
    pub x: Vec<f64>,
    pub log_density: Vec<f64>,
    pub reduced_potential: Vec<f64>,
    /// −u − log q; −∞ for samples that a move would reject.
    pub log_weight: Vec<f64>,
}

/// Draws n samples and evaluates their reduced potential.
pub fn draw(
    flow: &CouplingFlow<f32>,
    target: &mut dyn Target,
    n: usize,
    streams: &(dyn Fn(usize) -> Stream + Sync),
) -> Result<Samples> {
    let mut x = vec![0.0; n * flow.dimension()];
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.sample(streams, &mut x, &mut log_q)?;
    let mut u = vec![0.0; n];
    target.reduced_potential(&x, &mut u)?;
    Ok(collect(x, &log_q, u))
}

fn collect(x: Vec<f64>, log_q: &[Evaluation], u: Vec<f64>) -> Samples {
    let log_weight = log_q.iter().zip(&u).map(|(e, &u)| crate::weights::log_weight(u, e)).collect();
    Samples { x, log_density: log_q.iter().map(|e| e.log_density).collect(), reduced_potential: u, log_weight }
}

/// Reverse KL: L = mean [u(x) + log q(x)] over x = T(z), by the path gradient: ∂/∂θ through x at fixed density
/// parameters (Roeder, Wu, Duvenaud, NeurIPS 2017; Vaitl et al., ICML 2022), which vanishes sample by sample when q is
/// the target.
///
/// With `spread`, a reaction coordinate and a weight, its loss over the same samples is added. Returns the samples and
/// that loss, or NaN without it.
pub fn reverse_kl(
    flow: &CouplingFlow<f32>,
    target: &mut dyn Target,
    n: usize,
    streams: &(dyn Fn(usize) -> Stream + Sync),
    scale: f64,
    spread: Option<(&ReactionCoordinate, f64)>,
    gradient: &mut [f32],
) -> Result<(Samples, f64)> {
    let dx = flow.dimension();
    let mut pass = Pass::new(flow, n, &|row, z| flow.draw_latent(&mut streams(row), z));
    let Pass { x, log_q, .. } = &pass;
    let (mut u, mut gx) = (vec![0.0; n], vec![0.0; n * dx]);
    target.reduced_potential_gradient(x, &mut u, &mut gx)?;
    let (mut again, mut g_log_q) = (log_q.clone(), vec![0.0; n * dx]);
    flow.log_density_gradient(x, &mut again, &mut g_log_q)?;
    regularise(&u, log_q, &mut gx, &g_log_q, scale / n as f64);
    let spread = spread.map_or(f64::NAN, |(coordinate, weight)| {
        let usable: Vec<bool> = log_q.iter().zip(&u).map(|(e, u)| e.is_inside() && u.is_finite()).collect();
        coordinate.spread(x, &usable, weight, &mut gx)
    });
    pass.back(flow, &gx, &vec![0.0; n], gradient);
    Ok((collect(pass.x, &pass.log_q, u), spread))
}

/// Rows passed through a flow, with the intermediates needed for the backward pass.
pub(super) struct Pass {
    /// `[n][dimension]`, nm.
    pub x: Vec<f64>,
    pub log_q: Vec<Evaluation>,
    workspaces: Vec<Workspace<f32>>,
}

impl Pass {
    /// Maps latent points to configurations; `fill(row, z)` writes point number `row`.
    pub fn new(flow: &CouplingFlow<f32>, n: usize, fill: &(dyn Fn(usize, &mut [f64]) + Sync)) -> Pass {
        let mut pass = Pass::of(vec![0.0; n * flow.dimension()], n);
        pass.each_chunk(flow, |chunk, ws, x| flow.generate_chunk(ws, x, |row, z| fill(chunk * CHUNK + row, z)));
        pass
    }

    /// Maps configurations `x[n][dimension]` to latent points.
    pub fn encode(flow: &CouplingFlow<f32>, x: Vec<f64>) -> Pass {
        let n = x.len() / flow.dimension();
        let mut pass = Pass::of(x, n);
        pass.each_chunk(flow, |_, ws, x| flow.encode_chunk(ws, x));
        pass
    }

    fn of(x: Vec<f64>, n: usize) -> Pass {
        let workspaces = (0..n.div_ceil(CHUNK)).map(|_| Workspace::default()).collect();
        Pass { x, log_q: vec![Evaluation::inside(0.0); n], workspaces }
    }

    fn each_chunk(&mut self, flow: &CouplingFlow<f32>, body: impl Fn(usize, &mut Workspace<f32>, &mut [f64]) + Sync) {
        let dx = flow.dimension();
        let chunks = self.x.par_chunks_mut(CHUNK * dx).zip(self.log_q.par_chunks_mut(CHUNK)).zip(&mut self.workspaces);
        chunks.enumerate().for_each(|(chunk, ((x, log_q), ws))| {
            body(chunk, ws, x);
            log_q.iter_mut().enumerate().for_each(|(row, e)| *e = ws.evaluation(row));
        });
    }

    /// ln|∂x/∂z| `[n]`.
    pub fn log_det(&self) -> Vec<f64> {
        self.workspaces.iter().flat_map(|ws| ws.log_det.iter().copied()).collect()
    }

    /// Latent points after [`Pass::encode`], `[n][latent]`.
    pub fn latent(&self) -> Vec<f64> {
        self.workspaces.iter().flat_map(|ws| ws.u.iter().copied()).collect()
    }

    /// Backward pass after [`Pass::new`]: from the cotangents of x `[n][dimension]` and of ln|∂x/∂z| `[n]`, adds those
    /// of the parameters to `gradient`.
    pub fn back(&mut self, flow: &CouplingFlow<f32>, gx: &[f64], g_log_det: &[f64], gradient: &mut [f32]) {
        self.each_lane(flow, gx, g_log_det, gradient, |ws, x, gx, g, sum| flow.generate_vjp(ws, x, gx, g, Some(sum)));
    }

    /// Backward pass after [`Pass::encode`]: from the cotangents of z `[n][latent]` and of ln|∂x/∂z| `[n]`, adds those
    /// of the parameters to `gradient`.
    pub fn back_from_latent(&mut self, flow: &CouplingFlow<f32>, gz: &[f64], g_log_det: &[f64], gradient: &mut [f32]) {
        self.each_lane(flow, gz, g_log_det, gradient, |ws, x, gz, g, sum| flow.encode_pull(ws, x, gz, g, sum));
    }

    /// Runs `vjp(workspace, x, cotangent, g_log_det, sum)` for every chunk; the number of partial sums does not depend
    /// on the threads.
    fn each_lane(
        &mut self,
        flow: &CouplingFlow<f32>,
        cotangent: &[f64],
        g_log_det: &[f64],
        gradient: &mut [f32],
        vjp: impl Fn(&mut Workspace<f32>, &[f64], &[f64], &[f64], &mut [f32]) + Sync,
    ) {
        let (dx, width) = (flow.dimension(), cotangent.len() / g_log_det.len().max(1));
        let lanes = self.workspaces.len().div_ceil(LANES).max(1);
        let rows = (
            self.x.par_chunks(lanes * CHUNK * dx),
            cotangent.par_chunks(lanes * CHUNK * width),
            g_log_det.par_chunks(lanes * CHUNK),
        );
        let partial: Vec<Vec<f32>> = self
            .workspaces
            .par_chunks_mut(lanes)
            .zip(rows.into_par_iter())
            .map(|(workspaces, (x, cotangent, g_log_det))| {
                let mut sum = vec![0.0; gradient.len()];
                let rows = x.chunks(CHUNK * dx).zip(cotangent.chunks(CHUNK * width)).zip(g_log_det.chunks(CHUNK));
                for (ws, ((x, cotangent), g_log_det)) in workspaces.iter_mut().zip(rows) {
                    vjp(ws, x, cotangent, g_log_det, &mut sum);
                }
                sum
            })
            .collect();
        add_lanes(&partial, gradient);
    }
}

/// Force matching (Köhler, Krämer, Noé, NeurIPS 2021, eq. 5): L = mean |F(x)/kT − ∇ₓ log q(x)|² over frames
/// `x[n][dimension]`, with F/kT = −∇u from the target; in the unit of x to the power −2. Frames outside the support, or
/// within a displacement of its boundary, are left out. Returns L.
///
/// With v = F/kT − ∇ₓ log q held fixed, ∂L/∂θ = −2/n Σ ∂/∂ε ∂/∂θ log q(x + ε v): a central difference of two parameter
/// gradients, in f64 whatever the type of the flow's networks. Splines are only C¹, so ∇ₓ log q jumps at their knots:
/// the loss is meant for affine couplings, and with splines its gradient is right up to noise from the few frames that
/// the displacement moves across a knot.
///
/// Errors: a flow with bonds of fixed length, along which it has no force.
pub fn force_matching<R: Real>(
    flow: &CouplingFlow<R>,
    target: &mut dyn Target,
    x: &[f64],
    scale: f64,
    gradient: &mut [R],
) -> Result<f64> {
    if !flow.card().kept_bonds().is_empty() {
        return Err(Error::Unsupported(
            "force matching is not supported for models with bonds of fixed length, along which they have no force; set \
             `force_matching` to 0"
                .into(),
        ));
    }
    let flow = flow.cast::<f64>()?;
    let d = flow.dimension();
    let n = x.len() / d;
    let mut log_q = vec![Evaluation::inside(0.0); n];
    let (mut u, mut mismatch, mut score) = (vec![0.0; n], vec![0.0; n * d], vec![0.0; n * d]);
    target.reduced_potential_gradient(x, &mut u, &mut mismatch)?;
    flow.log_density_gradient(x, &mut log_q, &mut score)?;
    mismatch.iter_mut().zip(&score).for_each(|(v, s)| *v = -*v - s);
    let norms: Vec<f64> = mismatch.chunks_exact(d).map(|v| v.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();

    let mut displaced = [x, x].concat();
    for (side, sign) in displaced.chunks_exact_mut(n * d).zip([1.0, -1.0]) {
        for ((y, v), norm) in side.chunks_exact_mut(d).zip(mismatch.chunks_exact(d)).zip(&norms) {
            y.iter_mut().zip(v).for_each(|(y, v)| *y += sign * DISPLACEMENT * v / norm.max(f64::MIN_POSITIVE));
        }
    }
    let mut on_both_sides = vec![Evaluation::inside(0.0); 2 * n];
    flow.log_density(&displaced, &mut on_both_sides)?;
    let counts = |i: usize| {
        norms[i].is_finite() && [log_q[i], on_both_sides[i], on_both_sides[n + i]].iter().all(|e| e.is_inside())
    };
    let rows: Vec<usize> = (0..n).filter(|&i| counts(i)).collect();
    let mut weights = vec![0.0; 2 * n];
    for &i in &rows {
        weights[i] = -scale / rows.len() as f64 * norms[i] / DISPLACEMENT;
        weights[n + i] = -weights[i];
    }
    let mut of_both_sides = vec![0.0; gradient.len()];
    flow.parameter_gradient(&displaced, &weights, &mut on_both_sides, &mut of_both_sides)?;
    gradient.iter_mut().zip(of_both_sides).for_each(|(g, s)| *g += R::from_f64(s));
    Ok(rows.iter().map(|&i| norms[i] * norms[i]).sum::<f64>() / rows.len() as f64)
}

/// gx ← factor · (softened ∇u + ∇ log q), clipped in norm; zero for rejected samples: outside the support, without an
/// energy, or in another mode than the target's ([`crate::modes::Within`]). Without ∇u nothing would hold such a sample
/// against ∇ log q, which drives it away from the model; the likelihood is what brings the model back to its mode.
pub(super) fn regularise(u: &[f64], log_q: &[Evaluation], gx: &mut [f64], g_log_q: &[f64], factor: f64) {
    let mut sorted: Vec<f64> = u.iter().copied().filter(|u| u.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let typical = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let dx = gx.len() / u.len();
    for (row, (gx, g_log_q)) in gx.chunks_exact_mut(dx).zip(g_log_q.chunks_exact(dx)).enumerate() {
        let excess = u[row] - typical;
        let soften = if excess > ENERGY_KNEE { ENERGY_KNEE / excess } else { 1.0 };
        gx.iter_mut().zip(g_log_q).for_each(|(g, q)| *g = soften * *g + q);
        let norm = gx.iter().map(|g| g * g).sum::<f64>().sqrt();
        let factor = match log_q[row].is_inside() && u[row].is_finite() && norm.is_finite() {
            true => factor * (LARGEST_FORCE / norm).min(1.0),
            false => 0.0,
        };
        gx.iter_mut().for_each(|g| *g = if factor == 0.0 { 0.0 } else { *g * factor });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::density::Status;

    #[test]
    fn rejected_samples_have_no_gradient() {
        let inside = Evaluation::inside(-1.0);
        let log_q = [inside, Evaluation::outside(Status::OutOfSupport), inside, inside, inside];
        let u = [2.0, 1.0, f64::INFINITY, f64::NAN, 1e4];
        let mut gx: Vec<f64> = (1..=10).map(f64::from).collect();
        let g_log_q = [0.5; 10];
        regularise(&u, &log_q, &mut gx, &g_log_q, 2.0);
        assert_eq!(gx[..8], [3.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        // far above the others: ∇u is scaled by the slope of the logarithm
        let soften = ENERGY_KNEE / (1e4 - 2.0);
        assert_eq!(gx[8..], [2.0 * (9.0 * soften + 0.5), 2.0 * (10.0 * soften + 0.5)]);
    }
}
