//! The two ends of an annealing path: configurations with both energies and gradients.

use super::Space;
use crate::coordinates::vector::{add_to_atom, centroid, Vec3};
use crate::density::{Density, Evaluation, Scope};
use crate::error::{Error, Result};
use crate::models::steering::Steering;
use crate::parallel::{Alone, Ranks};
use crate::target::Target;
use serde::{Deserialize, Serialize};

/// Configurations `x[n][dimension]` with both energies, −ln q and u, `[n]`, and their gradients `[n][dimension]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Points {
    pub x: Vec<f64>,
    pub source: Vec<f64>,
    pub target: Vec<f64>,
    pub source_gradient: Vec<f64>,
    pub target_gradient: Vec<f64>,
}

impl Points {
    /// Configurations with infinite energies at both ends.
    fn nowhere(x: Vec<f64>, dimension: usize) -> Points {
        let (n, zeros) = (x.len() / dimension, vec![0.0; x.len()]);
        Points {
            x,
            source: vec![f64::INFINITY; n],
            target: vec![f64::INFINITY; n],
            source_gradient: zeros.clone(),
            target_gradient: zeros,
        }
    }

    pub fn n(&self) -> usize {
        self.source.len()
    }

    pub(super) fn dimension(&self) -> usize {
        self.x.len() / self.n().max(1)
    }

    /// E_t of a row; infinite where either energy is not finite, so that no particle goes there.
    pub fn energy(&self, row: usize, t: f64) -> f64 {
        match (1.0 - t) * self.source[row] + t * self.target[row] {
            energy if self.source[row].is_finite() && self.target[row].is_finite() => energy,
            _ => f64::INFINITY,
        }
    }

    /// ∇E_t of a row.
    pub fn gradient(&self, row: usize, t: f64) -> impl Iterator<Item = f64> + '_ {
        let range = row * self.dimension()..(row + 1) * self.dimension();
        let pairs = self.source_gradient[range.clone()].iter().zip(&self.target_gradient[range]);
        pairs.map(move |(source, target)| (1.0 - t) * source + t * target)
    }

    pub(super) fn row(&self, row: usize) -> &[f64] {
        &self.x[row * self.dimension()..(row + 1) * self.dimension()]
    }

    /// Copies row `from` of `other` to row `to`.
    pub(super) fn copy_row(&mut self, to: usize, other: &Points, from: usize) {
        let d = self.dimension();
        self.source[to] = other.source[from];
        self.target[to] = other.target[from];
        for (ours, theirs) in [
            (&mut self.x, &other.x),
            (&mut self.source_gradient, &other.source_gradient),
            (&mut self.target_gradient, &other.target_gradient),
        ] {
            ours[to * d..(to + 1) * d].copy_from_slice(&theirs[from * d..(from + 1) * d]);
        }
    }

    pub(super) fn select(&self, rows: &[usize]) -> Points {
        let mut points = Points {
            x: vec![0.0; rows.len() * self.dimension()],
            source: vec![0.0; rows.len()],
            target: vec![0.0; rows.len()],
            source_gradient: vec![0.0; rows.len() * self.dimension()],
            target_gradient: vec![0.0; rows.len() * self.dimension()],
        };
        rows.iter().enumerate().for_each(|(to, &from)| points.copy_row(to, self, from));
        points
    }
}

/// Density and target at the two ends of a path, and the space in which it may move.
pub struct Bridge<'a> {
    pub density: &'a dyn Density,
    pub target: &'a mut dyn Target,
    pub space: Space,
    /// For a target of x with auxiliary coordinates ([`crate::models::JointTarget`]), what these are.
    pub steering: Steering,
    /// Processes that share the evaluations.
    pub ranks: &'a dyn Ranks,
}

impl<'a> Bridge<'a> {
    /// Paths in the full space, evaluated by one process.
    pub fn new(density: &'a dyn Density, target: &'a mut dyn Target) -> Bridge<'a> {
        Bridge { density, target, space: Space::Full, steering: Steering::NONE, ranks: &Alone }
    }

    /// Both energies with their gradients at `x[n][dimension]`. Rows that are not finite are passed to neither end and
    /// get infinite energies. Errors: a failing density or target, other dimensions.
    pub fn evaluate(&mut self, x: Vec<f64>) -> Result<Points> {
        let d = self.density.dimension();
        if self.target.dimension() != d {
            let message = format!("the density has {d} coordinates, but the target has {}", self.target.dimension());
            return Err(Error::invalid(message));
        }
        let is_finite = |x: &[f64]| x.iter().all(|v| v.is_finite());
        if is_finite(&x) {
            return self.evaluate_finite(x);
        }
        let finite: Vec<usize> = (0..x.len() / d).filter(|row| is_finite(&x[row * d..(row + 1) * d])).collect();
        let packed: Vec<f64> = finite.iter().flat_map(|&row| &x[row * d..(row + 1) * d]).copied().collect();
        let mut points = Points::nowhere(x, d);
        if finite.is_empty() {
            return Ok(points);
        }
        let evaluated = self.evaluate_finite(packed)?;
        finite.iter().enumerate().for_each(|(from, &to)| points.copy_row(to, &evaluated, from));
        Ok(points)
    }

    fn evaluate_finite(&mut self, x: Vec<f64>) -> Result<Points> {
        let d = self.density.dimension();
        self.ranks.same(&x, "configurations")?;
        let rows = self.ranks.share(x.len() / d);
        let n = rows.len();
        let own = &x[rows.start * d..rows.end * d];
        let mut log_q = vec![Evaluation::inside(0.0); n];
        let (mut source_gradient, mut target_gradient) = (vec![0.0; n * d], vec![0.0; n * d]);
        let mut target = vec![0.0; n];
        if n > 0 {
            self.density.log_density_gradient(own, &mut log_q, &mut source_gradient)?;
            self.target.reduced_potential_gradient(own, &mut target, &mut target_gradient)?;
        }
        source_gradient.iter_mut().for_each(|g| *g = -*g);
        let source: Vec<f64> = log_q.iter().map(|e| -e.log_density).collect();
        let mut points = Points {
            source: self.ranks.gather(source)?,
            target: self.ranks.gather(target)?,
            source_gradient: self.ranks.gather(source_gradient)?,
            target_gradient: self.ranks.gather(target_gradient)?,
            x,
        };
        self.add_noise_of_centroid(&mut points);
        self.keep_to_space(&mut points);
        Ok(points)
    }

    /// u(x) of every row, alone: [`Points::target`] also contains the noise of the centroid, auxiliary coordinates, and
    /// the volume factor of the space.
    pub fn reduced_potential(&self, points: &Points) -> Vec<f64> {
        let beside = |x: &[f64]| {
            let auxiliary = &x[x.len() - self.steering.auxiliary..];
            let noise = self.stiffness().map_or(0.0, |stiffness| energy_of_noise(stiffness, centroid(x)));
            noise + self.steering.reduced_potential(auxiliary) - self.space.log_volume(x).0
        };
        let rows = points.x.chunks_exact(points.dimension().max(1));
        rows.zip(&points.target).map(|(x, target)| target - beside(x)).collect()
    }

    /// 1/σ² if the centroid is noise.
    fn stiffness(&self) -> Option<f64> {
        match self.density.scope() {
            Scope::Noisy { sigma } => Some(1.0 / (sigma * sigma)),
            _ => None,
        }
    }

    /// Adds the energy of the centroid's noise to both ends; log q is relative to it.
    fn add_noise_of_centroid(&self, points: &mut Points) {
        let Some(stiffness) = self.stiffness() else { return };
        let d = points.dimension();
        for (row, x) in points.x.chunks_exact(d).enumerate() {
            let c = centroid(x);
            let energy = energy_of_noise(stiffness, c);
            points.source[row] += energy;
            points.target[row] += energy;
            for gradient in [&mut points.source_gradient, &mut points.target_gradient] {
                let row = &mut gradient[row * d..(row + 1) * d];
                row.iter_mut().enumerate().for_each(|(k, g)| *g += 3.0 * stiffness * c[k % 3] / d as f64);
            }
        }
    }

    /// Turns both ends into densities of the free coordinates of the space.
    fn keep_to_space(&self, points: &mut Points) {
        if self.space == Space::Full {
            return;
        }
        let d = points.dimension();
        for (row, x) in points.x.chunks_exact(d).enumerate() {
            let (log_volume, slope) = self.space.log_volume(x);
            points.source[row] -= log_volume;
            points.target[row] -= log_volume;
            for gradient in [&mut points.source_gradient, &mut points.target_gradient] {
                let gradient = &mut gradient[row * d..(row + 1) * d];
                slope.iter().for_each(|&(atom, slope)| add_to_atom(gradient, atom, -1.0, slope));
                self.space.project(gradient);
            }
        }
    }

    /// Draws n samples of the density and evaluates them. Errors: those of [`Bridge::evaluate`], more than memory
    /// holds.
    pub fn sample(&mut self, n: usize, seed: u64) -> Result<Points> {
        let (x, _) = self.ranks.sample(self.density, n, seed)?;
        self.evaluate(x)
    }
}

/// −ln density of a centroid, up to a constant.
fn energy_of_noise(stiffness: f64, c: Vec3) -> f64 {
    0.5 * stiffness * c.iter().map(|c| c * c).sum::<f64>()
}
