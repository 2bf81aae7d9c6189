//! The guards: each runs an experiment and returns `Err` with the defect it found.

use crate::statistics::{chi_square, ks_two_sample, LEVEL};
use crate::systems::NegativeLog;
use modejump::density::{Density, Evaluation};
use modejump::moves::{Move, Outcome, RandomWalk, State};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

pub type Verdict = Result<(), String>;

/// How a sampler uses its moves: correctly ([`Correct`]), or with a planted fault.
pub trait Driver {
    /// Makes one attempt at x, at this step, with u(x) evaluated by the driver; returns the outcome as the sampler
    /// sees it.
    fn attempt(&mut self, kernel: &mut dyn Move, target: &mut dyn Target, x: &mut [f64], step: u64) -> Outcome;
    /// Called when an unrelated chain begins.
    fn forget(&mut self) {}
}

pub struct Correct;

impl Driver for Correct {
    fn attempt(&mut self, kernel: &mut dyn Move, target: &mut dyn Target, x: &mut [f64], step: u64) -> Outcome {
        let mut u = [0.0];
        target.reduced_potential(x, &mut u).unwrap();
        let mut state = State { x, box_vectors: None, reduced_potential: u[0], step, replica: 0 };
        kernel.attempt(target, &mut state).unwrap()
    }
}

/// Like [`Correct`], but also checks the resulting state: its stored potential is correct, and after a rejection it is
/// unchanged bit for bit.
pub struct Checked;

impl Driver for Checked {
    fn attempt(&mut self, kernel: &mut dyn Move, target: &mut dyn Target, x: &mut [f64], step: u64) -> Outcome {
        let mut u = [0.0];
        target.reduced_potential(x, &mut u).unwrap();
        let before = x.to_vec();
        let mut state = State { x, box_vectors: None, reduced_potential: u[0], step, replica: 0 };
        let outcome = kernel.attempt(target, &mut state).unwrap();
        let claimed = state.reduced_potential;
        assert_eq!(claimed, outcome.reduced_potential);
        match outcome.accepted() {
            true => {
                target.reduced_potential(x, &mut u).unwrap();
                assert!((claimed - u[0]).abs() < 1e-9 * u[0].abs().max(1.0), "{claimed} where {} is right", u[0]);
            }
            false => {
                assert_eq!(claimed, u[0]);
                assert!(x.iter().zip(&before).all(|(x, before)| x.to_bits() == before.to_bits()));
            }
        }
        outcome
    }
}

/// Input of a guard. Kernels are newly created, so that guards do not share state.
pub struct Experiment<'a> {
    pub kernel: &'a dyn Fn() -> Box<dyn Move>,
    pub target: Arc<dyn Density>,
    /// Width of the local dynamics between jumps; none if 0.
    pub local: f64,
    /// Observables whose distributions are compared.
    pub observables: fn(&[f64]) -> Vec<f64>,
}

fn local_step(walk: &mut RandomWalk, target: &mut NegativeLog, x: &mut [f64], step: u64) {
    let reduced_potential = target.u(x);
    let mut state = State { x, box_vectors: None, reduced_potential, step, replica: 0 };
    walk.attempt(target, &mut state).unwrap();
}

fn draw(density: &Arc<dyn Density>, seed: u64, row: u64, x: &mut [f64]) {
    let mut evaluation = [Evaluation::inside(0.0)];
    density.sample(&|_| Stream::new(seed, StreamId::Test, row, 0), x, &mut evaluation).unwrap();
}

/// Checks that with the model as target every jump has log α = 0 and is accepted, even after dynamics has moved x.
pub fn identity(experiment: &Experiment, driver: &mut dyn Driver) -> Verdict {
    let mut target = NegativeLog::new(experiment.target.clone(), 3.0);
    let mut kernel = (experiment.kernel)();
    let mut walk = RandomWalk::new(kernel.dimension(), experiment.local.max(1e-3), 77).unwrap();
    let mut x = vec![0.0; kernel.dimension()];
    draw(&experiment.target, 5, 0, &mut x);
    driver.forget();
    for step in 0..200 {
        let before = x.clone();
        let outcome = driver.attempt(kernel.as_mut(), &mut target, &mut x, step);
        if outcome.log_acceptance.is_nan() || outcome.log_acceptance.abs() > 1e-8 {
            return Err(format!("step {step}: log α = {} where 0 is right", outcome.log_acceptance));
        }
        if !outcome.accepted() || x == before {
            return Err(format!("step {step}: {:?} where acceptance is certain", outcome.fate));
        }
        if experiment.local > 0.0 {
            local_step(&mut walk, &mut target, &mut x, step);
        }
    }
    Ok(())
}

/// Checks that exact draws of the target remain exact draws after jump, local step, jump: each observable is compared
/// with fresh exact draws (Kolmogorov–Smirnov), and so are the populations of its eight octiles (χ²).
pub fn one_shot(experiment: &Experiment, driver: &mut dyn Driver, starts: usize) -> Verdict {
    let mut target = NegativeLog::new(experiment.target.clone(), -2.0);
    let mut kernel = (experiment.kernel)();
    let mut walk = RandomWalk::new(kernel.dimension(), experiment.local.max(1e-3), 78).unwrap();
    let mut x = vec![0.0; kernel.dimension()];
    let mut after: Vec<Vec<f64>> = Vec::new();
    for start in 0..starts as u64 {
        draw(&experiment.target, 6, start, &mut x);
        driver.forget();
        driver.attempt(kernel.as_mut(), &mut target, &mut x, 2 * start);
        if experiment.local > 0.0 {
            local_step(&mut walk, &mut target, &mut x, start);
        }
        driver.attempt(kernel.as_mut(), &mut target, &mut x, 2 * start + 1);
        push(&mut after, (experiment.observables)(&x));
    }
    let mut exact: Vec<Vec<f64>> = Vec::new();
    for row in 0..4 * starts as u64 {
        draw(&experiment.target, 7, row, &mut x);
        push(&mut exact, (experiment.observables)(&x));
    }
    for (i, (after, exact)) in after.iter().zip(&exact).enumerate() {
        let ks = ks_two_sample(after, exact);
        let octiles = octile_test(after, exact);
        if ks < LEVEL || octiles < LEVEL {
            return Err(format!("observable {i}: p = {ks:.1e} (KS), {octiles:.1e} (octiles)"));
        }
    }
    Ok(())
}

fn push(columns: &mut Vec<Vec<f64>>, row: Vec<f64>) {
    columns.resize(row.len(), Vec::new());
    columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
}

/// χ² test of the counts in the octiles of the exact sample. The octiles' own error, a quarter of the counts' variance,
/// is accounted for by scaling down the counts.
fn octile_test(after: &[f64], exact: &[f64]) -> f64 {
    let mut sorted = exact.to_vec();
    sorted.sort_by(f64::total_cmp);
    let edges: Vec<f64> = (1..8).map(|k| sorted[k * sorted.len() / 8]).collect();
    let mut counts = [0.0; 8];
    for value in after {
        counts[edges.partition_point(|edge| edge <= value)] += 1.0;
    }
    // Var(count) is inflated by 1 + n/m: scale the sample down to the size that has this relative variance.
    let scale = 1.0 / (1.0 + after.len() as f64 / exact.len() as f64);
    let counts = counts.map(|c| c * scale);
    chi_square(&counts, &[0.125; 8])
}

/// Checks that a one-dimensional density integrates to one.
pub fn normalisation(density: &dyn Density, low: f64, high: f64) -> Verdict {
    let cells = 40_000;
    let step = (high - low) / cells as f64;
    let x: Vec<f64> = (0..cells).map(|i| low + (i as f64 + 0.5) * step).collect();
    let mut evaluations = vec![Evaluation::inside(0.0); cells];
    density.log_density(&x, &mut evaluations).map_err(|e| e.to_string())?;
    let integral: f64 = evaluations.iter().map(|e| e.log_density.exp() * step).sum();
    if (integral - 1.0).abs() > 1e-5 {
        return Err(format!("the density integrates to {integral}"));
    }
    Ok(())
}
