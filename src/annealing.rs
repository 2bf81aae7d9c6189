//! Annealed sequential Monte Carlo: particles are carried from a density q to a target e^{−u} along
//!
//! ```text
//! ln γ_t(x) = (1 − t) ln q(x) − t u(x),   t = 0 … 1
//! ```
//!
//! From one temperature to the next the weights change by ln γ_t′(x) − ln γ_t(x) = −(t′ − t)(u(x) + ln q(x)) (Neal,
//! Statistics and Computing 11, 125 (2001); the discrete Jarzynski equality), particles are resampled when their
//! effective sample size falls, and every particle makes Langevin moves that leave γ_t′ invariant (Del Moral, Doucet
//! and Jasra 2006; Sequential Boltzmann Generators: Tan et al. 2025). The path ends at t = 1, where the weighted
//! particles represent the target, and the product of the mean weights between resamplings estimates Z = ∫e^{−u},
//! without bias if the plan was fixed beforehand, as [`plan`] does.

mod bridge;
mod plan;
mod space;

pub use bridge::{Bridge, Points};
pub use plan::{even, plan, Pilot, Temperatures, FEWEST_PILOTS};
pub use space::Space;

use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::weights::{self, Estimate, Resampling};
use serde::{Deserialize, Serialize};

/// How a particle is moved at one temperature. E_t = −ln γ_t; ε is the step size, in the square of x's unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Kernel {
    /// Unadjusted Langevin step x′ = x − ε ∇E_t + √2ε ξ, without a test: leaves γ_t invariant up to an error that
    /// vanishes with ε. With `corrected` the weights absorb the path action ln γ_t(x′) k(x|x′) − ln γ_t(x) k(x′|x),
    /// which compensates for the error. A corrected step that would leave the support is not made and leaves the weight
    /// unchanged: the part of the mass at x′ that steps outside from there comes from x′ itself.
    Unadjusted { corrected: bool },
    /// The same step with a Metropolis test (MALA; Roberts and Tweedie 1996).
    Adjusted,
    /// `leapfrog` steps of length √2ε with fresh momenta of unit mass, and a Metropolis test (HMC; Duane et al. 1987).
    Hamiltonian { leapfrog: usize },
}

/// One temperature of a run, with the step size ε of its moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub t: f64,
    pub step: f64,
}

/// Longer trajectories are a mistake.
pub const MOST_LEAPFROG_STEPS: usize = 10_000;

/// Errors: no stages, t that does not rise from 0 or above to 1, a step that is not positive, trajectories without
/// leapfrog steps or with more than [`MOST_LEAPFROG_STEPS`].
pub(crate) fn check_stages(plan: &[Stage], kernel: Kernel) -> Result<()> {
    let rises = plan.is_sorted_by(|a, b| a.t <= b.t) && plan.first().is_some_and(|stage| stage.t >= 0.0);
    let ends = plan.last().is_some_and(|stage| stage.t == 1.0);
    if !(rises && ends) {
        return Err(Error::invalid("stages must have non-decreasing t that starts at 0 or above and ends at 1"));
    }
    if let Some(Stage { step, .. }) = plan.iter().find(|stage| !(stage.step > 0.0 && stage.step.is_finite())) {
        return Err(Error::invalid(format!("the step of a stage is {step}, but must be positive and finite")));
    }
    match kernel {
        Kernel::Hamiltonian { leapfrog } if !(1..=MOST_LEAPFROG_STEPS).contains(&leapfrog) => {
            Err(Error::invalid(format!("{leapfrog} leapfrog steps are out of range: use 1 to {MOST_LEAPFROG_STEPS}")))
        }
        _ => Ok(()),
    }
}

/// Settings for moving and resampling particles on the path from density to target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    pub kernel: Kernel,
    /// Moves per temperature.
    pub moves: usize,
    /// Resample when the effective sample size falls below this fraction of the particles.
    pub threshold: f64,
    pub resampling: Resampling,
    pub seed: u64,
    /// Discards particles whose initial u(x) is above this: **biased**, as in published runs; the weights do not
    /// account for it.
    pub energy_cutoff: Option<f64>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            kernel: Kernel::Adjusted,
            moves: 1,
            threshold: 0.5,
            resampling: Resampling::Systematic,
            seed: 1,
            energy_cutoff: None,
        }
    }
}

/// A Langevin step: returns x − ε ∇E + √2ε ξ.
pub fn langevin<'a>(
    x: &'a [f64],
    gradient: impl Iterator<Item = f64> + 'a,
    step: f64,
    noise: &'a [f64],
) -> impl Iterator<Item = f64> + 'a {
    let width = (2.0 * step).sqrt();
    x.iter().zip(gradient).zip(noise).map(move |((x, g), xi)| x - step * g + width * xi)
}

/// Log transition density ln k(b|a) of a Langevin step at temperature t, up to a constant.
fn log_step(a: (&Points, usize), b: &[f64], t: f64, step: f64) -> f64 {
    let (points, row) = a;
    let moved = points.row(row).iter().zip(points.gradient(row, t)).zip(b);
    -moved.map(|((a, g), b)| (b - a + step * g).powi(2)).sum::<f64>() / (4.0 * step)
}

/// ln γ_t(x′) k(x|x′) − ln γ_t(x) k(x′|x) of one row: the log-acceptance of an adjusted step, the path action of an
/// unadjusted one.
pub fn log_ratio(before: &Points, after: &Points, row: usize, t: f64, step: f64) -> f64 {
    let energies = before.energy(row, t) - after.energy(row, t);
    let ratio =
        energies + log_step((after, row), before.row(row), t, step) - log_step((before, row), after.row(row), t, step);
    if ratio.is_nan() {
        f64::NEG_INFINITY
    } else {
        ratio
    }
}

/// A run between two stages: particles, weights and everything needed to resume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Annealing {
    pub options: Options,
    pub plan: Vec<Stage>,
    /// Number of stages done.
    pub done: usize,
    pub points: Points,
    pub log_weights: Vec<f64>,
    ancestors: Vec<usize>,
    /// Number of samples at t = 0, including those without weight.
    samples: usize,
    pub left_out: LeftOut,
    /// Σ ln of the mean weight before each resampling.
    log_z: f64,
    pub history: Vec<Progress>,
}

/// Numbers of samples at t = 0 that do not become particles, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeftOut {
    pub without_density: usize,
    /// Without a finite energy, or, for steps with a path action, without one below 1e12 kT.
    pub without_energy: usize,
    pub above_cutoff: usize,
}

/// Report on one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub t: f64,
    pub step: f64,
    /// Effective sample size as a fraction of all particles, before any resampling.
    pub ess: f64,
    pub resampled: bool,
    /// Acceptance rate of the moves; 1 without a test.
    pub acceptance: f64,
    /// ln Z of γ_t relative to q so far.
    pub log_z: f64,
    /// Effective number of independent samples, 1/Σ share² over families of particles.
    pub families: f64,
}

impl Annealing {
    /// A run with particles at t = 0 and equal weights.
    ///
    /// Errors: no particles, options out of range, a plan that does not rise to t = 1, no sample of finite energy.
    pub fn new(bridge: &Bridge, points: Points, plan: Vec<Stage>, options: Options) -> Result<Annealing> {
        if points.n() == 0 || plan.is_empty() {
            let (n, stages) = (points.n(), plan.len());
            return Err(Error::invalid(format!("{n} particles at {stages} temperatures: use at least one of each")));
        }
        check_stages(&plan, options.kernel)?;
        if options.moves == 0 || !(0.0..=1.0).contains(&options.threshold) {
            return Err(Error::invalid(format!(
                "moves = {}, threshold = {}: use at least 1 move, and a threshold from 0 to 1",
                options.moves, options.threshold
            )));
        }
        let (u, cutoff) = (bridge.reduced_potential(&points), options.energy_cutoff.unwrap_or(f64::INFINITY));
        let mut left_out = LeftOut::default();
        let mut usable = Vec::new();
        for (row, u) in u.into_iter().enumerate() {
            if !points.source[row].is_finite() {
                left_out.without_density += 1;
            } else if !holds(options.kernel, &points, row) {
                left_out.without_energy += 1;
            } else if u < cutoff {
                usable.push(row);
            } else {
                left_out.above_cutoff += 1;
            }
        }
        if usable.is_empty() {
            return Err(Error::invalid(format!(
                "none of {} samples has a finite energy{}",
                points.n(),
                if options.energy_cutoff.is_some() { " below the cut-off" } else { "" }
            )));
        }
        // samples without weight count in ln Z
        let samples = if options.energy_cutoff.is_some() { usable.len() } else { points.n() };
        let log_z = (usable.len() as f64 / samples as f64).ln();
        let log_weights = vec![0.0; usable.len()];
        Ok(Annealing {
            options,
            plan,
            done: 0,
            points: points.select(&usable),
            log_weights,
            ancestors: (0..usable.len()).collect(),
            samples,
            left_out,
            log_z,
            history: Vec::new(),
        })
    }

    /// Whether the last stage, at t = 1, is done.
    pub fn is_finished(&self) -> bool {
        self.done == self.plan.len()
    }

    /// Log of the mean weight of all paths so far; at the end, ln Z of the target relative to q.
    pub fn log_z(&self) -> f64 {
        self.log_z + weights::log_sum_exp(&self.log_weights) - (self.log_weights.len() as f64).ln()
    }

    /// Index of the sample at t = 0 from which each particle descends.
    pub fn ancestors(&self) -> &[usize] {
        &self.ancestors
    }

    /// Share of the total weight of each family; families without weight are left out.
    pub fn families(&self) -> Vec<f64> {
        weights::families(&self.log_weights, &self.ancestors)
    }

    /// Effective number of independent samples among the particles.
    pub fn effective_families(&self) -> f64 {
        weights::effective_families(&self.log_weights, &self.ancestors)
    }

    /// `log_z` with its standard error. Initial samples are independent of each other, and so are their
    /// families, except for what multinomial resampling adds (Lee and Whiteley, Biometrika 105, 609 (2018)): an estimate
    /// of a variance that may come out negative after many resamplings, and then there is no error (NaN). With systematic
    /// or stratified resampling the error is an upper bound: 1.1 to 1.5 times too large after few resamplings, several
    /// times if particles are resampled at every stage.
    pub fn log_normaliser(&self) -> Estimate {
        let families = self.families();
        let pairs = |n: usize| n as f64 / (n as f64 - 1.0);
        let resamplings = self.history.iter().filter(|stage| stage.resampled).count();
        let by_chance = match self.options.resampling {
            Resampling::Multinomial => pairs(self.log_weights.len()).powi(resamplings as i32),
            Resampling::Systematic | Resampling::Stratified => 1.0,
        };
        let apart = 1.0 - families.iter().map(|share| share * share).sum::<f64>();
        let variance = 1.0 - by_chance * pairs(self.samples) * apart;
        // equal weights of samples that were never resampled have none, but for rounding
        let variance = if variance <= 0.0 && by_chance > 1.0 { f64::NAN } else { variance.max(0.0) };
        Estimate { value: self.log_z(), standard_error: weights::standard_error(&families, variance) }
    }

    /// Makes one stage: reweighting to the next temperature, resampling if needed, moves. Errors: a failing density or
    /// target.
    pub fn stage(&mut self, bridge: &mut Bridge) -> Result<Progress> {
        let Stage { t, step } = self.plan[self.done];
        let before = self.done.checked_sub(1).map_or(0.0, |k| self.plan[k].t);
        let (ess, resampled) = self.rise(before, t)?;
        let acceptance = self.make_moves(bridge, Stage { t, step }, (self.done * self.options.moves) as u64)?;
        self.done += 1;
        let progress = self.progress(Stage { t, step }, ess, resampled, acceptance);
        self.history.push(progress);
        Ok(progress)
    }

    fn progress(&self, Stage { t, step }: Stage, ess: f64, resampled: bool, acceptance: f64) -> Progress {
        let families = self.effective_families();
        Progress { t, step, ess, resampled, acceptance, log_z: self.log_z(), families }
    }

    /// Reweights to the next temperature and resamples if needed. Returns the effective fraction before that, and
    /// whether it resampled.
    fn rise(&mut self, before: f64, t: f64) -> Result<(f64, bool)> {
        self.reweight(t - before);
        let ess = weights::effective_sample_size(&self.log_weights)? / self.log_weights.len() as f64;
        let resampled = ess < self.options.threshold && t < 1.0;
        if resampled {
            let mut stream = Stream::new(self.options.seed, StreamId::Resample, self.done as u64, 0);
            self.resample(&mut stream)?;
        }
        Ok((ess, resampled))
    }

    /// log w += ln γ_{t+dt} − ln γ_t.
    fn reweight(&mut self, dt: f64) {
        let energies = self.points.target.iter().zip(&self.points.source);
        self.log_weights.iter_mut().zip(energies).for_each(|(w, (u, source))| *w -= dt * (u - source));
    }

    /// Resamples to equal weights; the mean weight is absorbed into ln Z.
    fn resample(&mut self, stream: &mut Stream) -> Result<()> {
        let n = self.log_weights.len();
        let rows = weights::resample(&self.log_weights, n, self.options.resampling, stream)?;
        self.log_z = self.log_z();
        self.points = self.points.select(&rows);
        self.ancestors = rows.iter().map(|&row| self.ancestors[row]).collect();
        self.log_weights.fill(0.0);
        Ok(())
    }

    /// Makes the moves of one temperature, numbered from `first`; returns the fraction accepted.
    fn make_moves(&mut self, bridge: &mut Bridge, Stage { t, step }: Stage, first: u64) -> Result<f64> {
        let mut accepted = 0.0;
        for turn in (first..).take(self.options.moves) {
            accepted += self.moved(bridge, t, step, turn)?;
        }
        Ok(accepted / self.options.moves as f64)
    }

    /// Makes one move of every particle; returns the fraction accepted.
    fn moved(&mut self, bridge: &mut Bridge, t: f64, step: f64, turn: u64) -> Result<f64> {
        let seed = self.options.seed;
        let streams = |row: usize| Stream::new(seed, StreamId::Dynamics, turn, row as u32);
        let mut streams: Vec<Stream> = (0..self.points.n()).map(streams).collect();
        let moved = step_all(bridge, &mut self.points, self.options.kernel, Stage { t, step }, &mut streams)?;
        let mut accepted = 0;
        for (row, Moved { taken, log_ratio }) in moved.into_iter().enumerate() {
            accepted += usize::from(taken);
            match self.options.kernel {
                Kernel::Unadjusted { corrected: true } if taken => self.log_weights[row] += log_ratio,
                // the particle went where the target has no weight
                Kernel::Unadjusted { corrected: false } if !taken => self.log_weights[row] = f64::NEG_INFINITY,
                _ => {}
            }
        }
        Ok(accepted as f64 / self.points.n() as f64)
    }
}

/// Largest |energy| in kT for steps with a path action, where the weights gain ln γ_t and lose it again: above this,
/// rounding would leave more than 1e-4 of a nat. Larger energies count as infinite, since particles of such weight do
/// not survive.
const LARGEST: f64 = 1e12;

/// Whether particles may be at this row: both energies are within the kernel's limit.
fn holds(kernel: Kernel, points: &Points, row: usize) -> bool {
    let largest = match kernel {
        Kernel::Unadjusted { corrected: true } => LARGEST,
        _ => f64::MAX,
    };
    points.source[row].abs() <= largest && points.target[row].abs() <= largest
}

/// Result of a move for one row.
pub struct Moved {
    pub taken: bool,
    /// Log-acceptance, or the path action of a step without a test.
    pub log_ratio: f64,
}

/// Makes one move of every row with a kernel at one stage. Each row draws from its own stream: the noise, then the
/// uniform number of its test. Errors: a failing density or target.
pub fn step_all(
    bridge: &mut Bridge,
    points: &mut Points,
    kernel: Kernel,
    Stage { t, step }: Stage,
    streams: &mut [Stream],
) -> Result<Vec<Moved>> {
    let (n, d) = (points.n(), points.dimension());
    let mut noise = vec![0.0; points.x.len()];
    for (noise, stream) in noise.chunks_exact_mut(d.max(1)).zip(&mut *streams) {
        stream.fill_normal(noise);
        bridge.space.project(noise);
    }
    let (after, log_ratios): (Points, Vec<f64>) = match kernel {
        Kernel::Hamiltonian { leapfrog: steps } => {
            let mut p = noise.clone();
            let after = leapfrog(bridge, points, &mut p, t, (2.0 * step).sqrt(), steps)?;
            let drops = (0..n).map(|row| energy_drop(points, &noise, &after, &p, row, t)).collect();
            (after, drops)
        }
        Kernel::Unadjusted { .. } | Kernel::Adjusted => {
            let mut x = Vec::with_capacity(points.x.len());
            for (row, noise) in noise.chunks_exact(d.max(1)).enumerate() {
                x.extend(langevin(points.row(row), points.gradient(row, t), step, noise));
            }
            let after = bridge.evaluate(x)?;
            let ratios = (0..n).map(|row| log_ratio(points, &after, row, t, step)).collect();
            (after, ratios)
        }
    };
    let mut moved = Vec::with_capacity(n);
    for (row, stream) in streams.iter_mut().enumerate() {
        let log_ratio = log_ratios[row];
        let taken = match kernel {
            Kernel::Unadjusted { .. } => holds(kernel, &after, row),
            _ => stream.uniform().ln() < log_ratio,
        };
        if taken {
            points.copy_row(row, &after, row);
        }
        moved.push(Moved { taken, log_ratio });
    }
    Ok(moved)
}

/// Makes `steps` leapfrog steps of length h on E_t with momenta `p[n][dimension]` of unit mass, which are updated in
/// place.
///
/// Errors: a failing density or target.
pub fn leapfrog(bridge: &mut Bridge, from: &Points, p: &mut [f64], t: f64, h: f64, steps: usize) -> Result<Points> {
    let kick = |points: &Points, p: &mut [f64]| {
        for (row, p) in p.chunks_exact_mut(points.dimension()).enumerate() {
            p.iter_mut().zip(points.gradient(row, t)).for_each(|(p, g)| *p -= 0.5 * h * g);
        }
    };
    let mut points = from.clone();
    for _ in 0..steps.max(1) {
        kick(&points, p);
        let x = points.x.iter().zip(p.iter()).map(|(x, p)| x + h * p).collect();
        points = bridge.evaluate(x)?;
        kick(&points, p);
    }
    Ok(points)
}

/// H before minus H after for one row: the log-acceptance of a trajectory.
pub fn energy_drop(before: &Points, p: &[f64], after: &Points, p_after: &[f64], row: usize, t: f64) -> f64 {
    let d = before.dimension();
    let kinetic = |p: &[f64]| 0.5 * p[row * d..(row + 1) * d].iter().map(|p| p * p).sum::<f64>();
    let drop = before.energy(row, t) - after.energy(row, t) + kinetic(p) - kinetic(p_after);
    if drop.is_nan() {
        f64::NEG_INFINITY
    } else {
        drop
    }
}

#[cfg(test)]
#[path = "annealing_tests.rs"]
mod tests;
