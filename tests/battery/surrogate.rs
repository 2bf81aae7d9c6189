//! Acceptance by a surrogate's log q_s: biased in the predicted way, unbiased where q_s = q, and marked wherever it is
//! reported.

use crate::delayed_acceptance::Counting;
use crate::guards::{identity, one_shot, Correct, Driver, Experiment};
use crate::moves::{delayed, generator, systems, systems_without_noise};
use crate::statistics::{ks_two_sample, normal, LEVEL};
use crate::systems::*;
use modejump::density::{Density, Exactness};
use modejump::moves::{Independence, Isir, Mixture, Move, RandomWalk};
use modejump::rng::{Stream, StreamId};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

const N: usize = 50_000;
const GENERATOR: &[(f64, f64, f64)] = &[(0.5, -1.0, 0.35), (0.5, 1.0, 0.35)];
/// Favours the left well three to one.
const SURROGATE: &[(f64, f64, f64)] = &[(0.75, -1.0, 0.4), (0.25, 1.0, 0.4)];

fn by_surrogate(q: &Arc<dyn Density>, surrogate: Arc<dyn Density>, n_proposals: usize) -> Box<dyn Move> {
    Box::new(Independence::by_surrogate(generator(q, n_proposals, 5), surrogate).unwrap())
}

/// π of the double well, and π q/q_s.
fn target_and_biased() -> (Table, Table) {
    let log_target = |x: f64| -4.0 * (x * x - 1.0).powi(2) - 0.475 * x;
    let log_ratio = |x| log_normal_mixture(GENERATOR, x) - log_normal_mixture(SURROGATE, x);
    (double_well(0.475), Table::new(-2.6, 2.6, move |x| log_target(x) + log_ratio(x)))
}

fn draws(table: &Table, seed: u64, n: usize) -> Vec<f64> {
    (0..n as u64).map(|row| table.quantile(Stream::new(seed, StreamId::Test, row, 0).uniform())).collect()
}

/// Configurations after two moves from each start.
fn moved(starts: &[f64], n_proposals: usize) -> Vec<f64> {
    let q: Arc<dyn Density> = Arc::new(Exact(normal_mixture(GENERATOR)));
    let mut kernel = by_surrogate(&q, Arc::new(Exact(normal_mixture(SURROGATE))), n_proposals);
    let mut target = NegativeLog::new(Arc::new(Exact(double_well(0.475))), 3.0);
    let attempts = |(start, &x): (usize, &f64)| {
        let mut x = [x];
        (0..2).for_each(|k| _ = Correct.attempt(kernel.as_mut(), &mut target, &mut x, 2 * start as u64 + k));
        x[0]
    };
    starts.iter().enumerate().map(attempts).collect()
}

#[test]
fn a_wrong_surrogate_leaves_the_biased_density_invariant_and_the_target_not() {
    let (target, biased) = target_and_biased();
    // the correct population is 0.708; the surrogate's factor of three shifts it the other way
    assert!(target.below(0.0) > 0.7 && biased.below(0.0) < 0.5, "{} {}", target.below(0.0), biased.below(0.0));
    for n_proposals in [1, 3] {
        let after = moved(&draws(&biased, 11, N), n_proposals);
        let p = ks_two_sample(&after, &draws(&biased, 12, 4 * N));
        assert!(p > LEVEL, "{n_proposals} proposals: p = {p:.1e}");
        let (left, expected) = (after.iter().filter(|x| **x < 0.0).count() as f64 / N as f64, biased.below(0.0));
        let z = (left - expected) / (expected * (1.0 - expected) / N as f64).sqrt();
        assert!(normal(z) > LEVEL, "{left} of the population on the left, {expected} is π q/q_s");
        let p = ks_two_sample(&moved(&draws(&target, 11, N), n_proposals), &draws(&target, 12, 4 * N));
        assert!(p < LEVEL, "a bias of this size must be seen");
    }
}

#[test]
fn a_long_chain_goes_to_the_biased_population() {
    let (_, biased) = target_and_biased();
    let q: Arc<dyn Density> = Arc::new(Exact(normal_mixture(GENERATOR)));
    let mut kernel = by_surrogate(&q, Arc::new(Exact(normal_mixture(SURROGATE))), 1);
    let mut target = NegativeLog::new(Arc::new(Exact(double_well(0.475))), 0.0);
    let mut x = [1.0];
    let blocks: Vec<f64> = (0..100)
        .map(|block| {
            let left = |k: u64| {
                Correct.attempt(kernel.as_mut(), &mut target, &mut x, 500 * block + k);
                f64::from(u8::from(x[0] < 0.0))
            };
            (0..500).map(left).sum::<f64>() / 500.0
        })
        .collect();
    let mean = blocks.iter().sum::<f64>() / 100.0;
    let error = (blocks.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / 99.0 / 100.0).sqrt();
    let z = (mean - biased.below(0.0)) / error;
    assert!(z.abs() < 5.0, "{mean} ± {error}, {} is π q/q_s", biased.below(0.0));
}

#[test]
fn a_perfect_surrogate_is_unbiased_on_every_system() {
    for system in systems_without_noise() {
        for n_proposals in [1, 3] {
            let kernel = || by_surrogate(&system.generator, system.generator.clone(), n_proposals);
            let experiment = |target: &Arc<dyn Density>| Experiment {
                kernel: &kernel,
                target: target.clone(),
                local: system.local,
                observables: system.observables,
            };
            let found = identity(&experiment(&system.generator), &mut Correct);
            let found = found.and_then(|()| one_shot(&experiment(&system.target), &mut Correct, N / 5));
            found.unwrap_or_else(|found| panic!("{} with {n_proposals} proposals: {found}", system.name));
        }
    }
}

#[test]
fn a_perfect_surrogate_gives_the_independence_move() {
    let system = &systems()[1];
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let mut plain = Independence::new(generator(&system.generator, 2, 5));
    let mut kernel = by_surrogate(&system.generator, system.generator.clone(), 2);
    let (mut x, mut y) = ([1.0, 0.4], [1.0, 0.4]);
    for step in 0..200 {
        let a = Correct.attempt(&mut plain, &mut target, &mut x, step);
        assert_eq!((a, x), (Correct.attempt(kernel.as_mut(), &mut target, &mut y, step), y));
    }
}

/// The purpose of a surrogate: the generator's log q is computed neither for proposals nor for the state.
#[test]
fn the_exact_density_is_never_asked() {
    let system = &systems()[2];
    let counting = Arc::new(Counting { q: system.generator.clone(), rows: AtomicUsize::new(0) });
    let q: Arc<dyn Density> = counting.clone();
    let mut kernel = by_surrogate(&q, Arc::new(WrongScreen(system.generator.clone())), 2);
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let mut x = vec![0.1, 0.2, 0.3];
    (0..500).for_each(|step| _ = Correct.attempt(kernel.as_mut(), &mut target, &mut x, step));
    assert_eq!(counting.rows.load(Ordering::Relaxed), 0);
    let statistics = kernel.statistics();
    assert!(statistics.acceptance() > 0.1);
    assert_eq!((statistics.screened(), statistics.exact_evaluations()), (0, 0));
}

#[test]
fn statistics_say_what_decides() {
    let system = &systems()[2];
    let q = &system.generator;
    let (exact, surrogate) = (q.clone(), Arc::new(WrongScreen(q.clone())));
    // a surrogate by its role, whatever exactness the density reports
    for mut kernel in [by_surrogate(q, surrogate.clone(), 1), by_surrogate(q, exact, 1)] {
        kernel.statistics_mut().reset();
        assert_eq!(kernel.statistics().likelihood(), Exactness::Surrogate);
        assert!(serde_json::to_string(kernel.statistics()).unwrap().contains("surrogate"));
    }
    let exact: [Box<dyn Move>; 3] = [
        delayed(q, surrogate.clone(), 1),
        Box::new(Isir::new(generator(q, 2, 1))),
        Box::new(Independence::new(generator(q, 1, 1))),
    ];
    for kernel in exact {
        assert_eq!(kernel.statistics().likelihood(), Exactness::Exact);
        assert!(!serde_json::to_string(kernel.statistics()).unwrap().contains("surrogate"));
    }
    let walk = || -> Box<dyn Move> { Box::new(RandomWalk::new(3, 0.1, 1).unwrap()) };
    let mixed = Mixture::new(vec![(1.0, walk()), (1.0, by_surrogate(q, surrogate, 1))], 1).unwrap();
    assert_eq!(mixed.statistics().likelihood(), Exactness::Surrogate);
    assert_eq!(Mixture::new(vec![(1.0, walk())], 1).unwrap().statistics().likelihood(), Exactness::Exact);
}

#[test]
fn a_surrogate_of_another_size_is_refused() {
    let systems = systems();
    let refused = Independence::by_surrogate(generator(&systems[0].generator, 1, 1), systems[2].generator.clone());
    assert!(refused.err().unwrap().to_string().contains("3"));
}
