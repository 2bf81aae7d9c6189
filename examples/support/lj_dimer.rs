//! A bistable dimer in a bath of repulsive Lennard-Jones particles, in the plane (Noé, Olsson, Köhler and Wu, Science
//! 365, eaaw1147 (2019), supplement; Sbailò, Dibak and Noé, J. Chem. Phys. 154, 074101 (2021)). Everything is in reduced
//! units with kT = 1.

use modejump::error::Result;
use modejump::rng::Stream;
use modejump::target::Target;

/// Number of particles: the two of the dimer come first, then those of the bath.
pub const PARTICLES: usize = 2 + 36;
pub const DIMENSION: usize = 2 * PARTICLES;

const SIGMA: f64 = 1.1;
/// The box is |x|, |y| < HALF_BOX with harmonic walls.
const HALF_BOX: f64 = 3.0;
const WALL: f64 = 100.0;
/// Force constant that keeps the dimer's midpoint at the origin and its axis along x.
const RESTRAINT: f64 = 20.0;
/// Length halfway between the two states.
pub const MIDDLE: f64 = 1.5;

/// x holds the coordinates `[particle][2]`.
pub struct LjDimer;

impl Target for LjDimer {
    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        let mut gradient = [0.0; DIMENSION];
        x.chunks_exact(DIMENSION).zip(u).for_each(|(x, u)| *u = energy(x, &mut gradient));
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        let rows = x.chunks_exact(DIMENSION).zip(gradient.chunks_exact_mut(DIMENSION));
        rows.zip(u).for_each(|((x, gradient), u)| *u = energy(x, gradient));
        Ok(())
    }
}

/// Length of the dimer.
pub fn length(x: &[f64]) -> f64 {
    (x[2] - x[0]).hypot(x[3] - x[1])
}

/// The dimer's own term of u and its slope: −δ − 25 δ² + 10 δ⁴, δ = 2 (d − 1.5); wells at 0.94 and 2.06 with a barrier
/// of 15.6 kT between them.
pub fn bond(d: f64) -> (f64, f64) {
    let delta = 2.0 * (d - MIDDLE);
    (-delta - 25.0 * delta.powi(2) + 10.0 * delta.powi(4), 2.0 * (-1.0 - 50.0 * delta + 40.0 * delta.powi(3)))
}

fn energy(x: &[f64], gradient: &mut [f64]) -> f64 {
    gradient.fill(0.0);
    let (mut u, slope) = bond(length(x));
    for k in 0..2 {
        let part = slope * (x[2 + k] - x[k]) / length(x);
        gradient[2 + k] += part;
        gradient[k] -= part;
    }
    let middle = x[0] + x[2];
    u += RESTRAINT * (middle.powi(2) + x[1].powi(2) + x[3].powi(2));
    gradient[0] += 2.0 * RESTRAINT * middle;
    gradient[2] += 2.0 * RESTRAINT * middle;
    gradient[1] += 2.0 * RESTRAINT * x[1];
    gradient[3] += 2.0 * RESTRAINT * x[3];
    for (x, gradient) in x.iter().zip(gradient.iter_mut()) {
        let beyond = (x.abs() - HALF_BOX).max(0.0).copysign(*x);
        u += WALL * beyond * beyond;
        *gradient += 2.0 * WALL * beyond;
    }
    for i in 2..PARTICLES {
        for j in 0..i {
            let [dx, dy] = [0, 1].map(|k| x[2 * i + k] - x[2 * j + k]);
            let inverse = SIGMA * SIGMA / (dx * dx + dy * dy);
            let repulsion = inverse.powi(6);
            u += repulsion;
            let factor = -12.0 * repulsion * inverse / (SIGMA * SIGMA);
            gradient[2 * i] += factor * dx;
            gradient[2 * i + 1] += factor * dy;
            gradient[2 * j] -= factor * dx;
            gradient[2 * j + 1] -= factor * dy;
        }
    }
    u
}

/// Bias that holds the dimer near a given length: energy and slope. Free dynamics has none.
pub type Bias<'a> = &'a dyn Fn(f64) -> (f64, f64);

pub fn free(_: f64) -> (f64, f64) {
    (0.0, 0.0)
}

/// A starting configuration: the bath on a square lattice, moved downhill until no particles overlap.
pub fn start(length: f64) -> Vec<f64> {
    let mut x = lattice(length);
    let (mut u, mut gradient) = ([0.0], [0.0; DIMENSION]);
    for _ in 0..20_000 {
        u[0] = energy(&x, &mut gradient);
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        let step = f64::min(1e-3, 0.02 / norm.max(f64::MIN_POSITIVE));
        x.iter_mut().zip(&gradient).for_each(|(x, g)| *x -= step * g);
    }
    x
}

/// The dimer along x, the bath on a square lattice of 6 x 6.
pub fn lattice(length: f64) -> Vec<f64> {
    let site = |i: usize| [i / 6, i % 6].map(|k| k as f64 - 2.5);
    [-0.5 * length, 0.0, 0.5 * length, 0.0].into_iter().chain((0..PARTICLES - 2).flat_map(site)).collect()
}

/// Local dynamics: one trajectory of 20 leapfrog steps of 0.02 with fresh momenta of unit mass and a Metropolis test
/// (HMC; Duane et al. 1987). The two dimer particles are identical; the left one always comes first, even after the
/// dimer has turned around. Returns u including the bias.
pub fn trajectory(x: &mut [f64], bias: Bias, stream: &mut Stream) -> f64 {
    const STEPS: usize = 20;
    const STEP: f64 = 0.02;
    let force = |x: &[f64], gradient: &mut [f64]| {
        let d = length(x);
        let (held, slope) = bias(d);
        let u = energy(x, gradient) + held;
        for k in 0..2 {
            let part = slope * (x[2 + k] - x[k]) / d;
            gradient[2 + k] += part;
            gradient[k] -= part;
        }
        u
    };
    let kinetic = |p: &[f64]| 0.5 * p.iter().map(|p| p * p).sum::<f64>();
    let mut p: Vec<f64> = (0..DIMENSION).map(|_| stream.normal()).collect();
    let (mut y, mut gradient) = (x.to_vec(), [0.0; DIMENSION]);
    let before = force(&y, &mut gradient);
    let total = before + kinetic(&p);
    let mut u = before;
    for _ in 0..STEPS {
        p.iter_mut().zip(&gradient).for_each(|(p, g)| *p -= 0.5 * STEP * g);
        y.iter_mut().zip(&p).for_each(|(y, p)| *y += STEP * p);
        u = force(&y, &mut gradient);
        p.iter_mut().zip(&gradient).for_each(|(p, g)| *p -= 0.5 * STEP * g);
    }
    if stream.uniform().ln() >= total - u - kinetic(&p) {
        return before;
    }
    x.copy_from_slice(&y);
    if x[2] < x[0] {
        x[..4].rotate_left(2);
    }
    u
}
