//! Inputs that a move refuses, rejects and counts.

use crate::guards::{Correct, Driver};
use crate::moves::generator;
use crate::systems::*;
use modejump::density::{Density, Evaluation, Exactness, Status};
use modejump::error::{Error, Result};
use modejump::moves::{Fate, Generator, Independence, Isir, Mixture, Move, Options, RandomWalk, State};
use modejump::rng::Stream;
use modejump::target::Target;
use modejump::trust::Trust;
use std::sync::Arc;

/// A density that reports a given status for every sample and every state.
struct Spoiled {
    inner: Arc<dyn Density>,
    sample: Status,
    current: Status,
}

impl Density for Spoiled {
    fn dimension(&self) -> usize {
        self.inner.dimension()
    }
    fn exactness(&self) -> Exactness {
        self.inner.exactness()
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.inner.sample(streams, x, e)?;
        if self.sample != Status::Inside {
            x.fill(f64::NAN);
            e.fill(Evaluation::outside(self.sample));
        }
        Ok(())
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.inner.log_density(x, e)?;
        if self.current != Status::Inside {
            e.fill(Evaluation::outside(self.current));
        }
        Ok(())
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.inner.log_density_gradient(x, e, gradient)
    }
}

#[test]
fn every_reason_is_counted_and_leaves_the_state_alone() {
    let inner: Arc<dyn Density> = Arc::new(Exact(double_well(0.0)));
    let reasons = [
        (Status::OutOfSupport, Fate::OutOfSupport),
        (Status::Singular, Fate::Singular),
        (Status::NonFinite, Fate::NonFinite),
        (Status::WrongChirality, Fate::Chirality),
        (Status::BrokenConstraint, Fate::Constraint),
    ];
    for (status, fate) in reasons {
        for (sample, current) in [(status, Status::Inside), (Status::Inside, status)] {
            let q: Arc<dyn Density> = Arc::new(Spoiled { inner: inner.clone(), sample, current });
            let kernels: [Box<dyn Move>; 2] =
                [Box::new(Independence::new(generator(&q, 2, 3))), Box::new(Isir::new(generator(&q, 2, 3)))];
            for mut kernel in kernels {
                let mut target = NegativeLog::new(inner.clone(), 0.0);
                let mut x = [0.8];
                for step in 0..10 {
                    let outcome = Correct.attempt(kernel.as_mut(), &mut target, &mut x, step);
                    assert_eq!((outcome.fate, outcome.log_acceptance), (fate, f64::NEG_INFINITY));
                }
                assert_eq!(x, [0.8]);
                assert_eq!((kernel.statistics().count(fate), kernel.statistics().attempts()), (10, 10));
            }
        }
    }
}

/// A target that fails or returns nonsense.
struct Broken(std::result::Result<f64, &'static str>);

impl Target for Broken {
    fn dimension(&self) -> usize {
        1
    }
    fn reduced_potential(&mut self, _: &[f64], u: &mut [f64]) -> Result<()> {
        u.fill(self.0.map_err(|e| Error::Callback(e.into()))?);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], _: &mut [f64]) -> Result<()> {
        self.reduced_potential(x, u)
    }
}

#[test]
fn a_failing_target_changes_nothing_and_a_clash_is_rejected() {
    let q: Arc<dyn Density> = Arc::new(Exact(double_well(0.0)));
    let mut kernel = Independence::new(generator(&q, 1, 4));
    let mut x = [0.8];
    let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step: 3, replica: 0 };
    let error = kernel.attempt(&mut Broken(Err("engine lost")), &mut state).unwrap_err();
    assert!(error.to_string().contains("engine lost"));
    for u in [f64::NAN, f64::INFINITY] {
        assert_eq!(kernel.attempt(&mut Broken(Ok(u)), &mut state).unwrap().fate, Fate::NonFinite);
    }
    state.reduced_potential = f64::NAN;
    assert!(kernel.attempt(&mut Broken(Ok(0.0)), &mut state).is_err(), "a failed simulation must not be hidden");
    let mut walk = RandomWalk::new(1, 0.1, 4).unwrap();
    assert!(walk.attempt(&mut Broken(Ok(0.0)), &mut state).is_err(), "nor by a local move");
    assert_eq!(*state.x, [0.8]);
    assert_eq!(kernel.statistics().attempts(), 2);
}

/// They are refused as generators, and thereby in every move: a surrogate decides only if passed to `by_surrogate`.
#[test]
fn inexact_densities_may_not_decide() {
    for exactness in [Exactness::Estimated, Exactness::Surrogate] {
        let q = Labelled { density: Arc::new(Exact(double_well(0.0))), exactness, trust: Trust::FULL };
        let error = Generator::new(Arc::new(q), None, Options::default()).err().unwrap().to_string();
        assert!(error.contains(exactness.name()), "{error}");
    }
}

#[test]
fn senseless_options_are_refused() {
    let q: Arc<dyn Density> = Arc::new(Exact(double_well(0.0)));
    for options in [Options { n_proposals: 0, ..Options::default() }, Options { batch: 0, ..Options::default() }] {
        assert!(Generator::new(q.clone(), None, options).is_err());
    }
    assert!(RandomWalk::new(1, 0.0, 0).is_err());
    assert!(Mixture::new(vec![], 0).is_err());
}

/// Holds even if both mixtures have the same seed.
#[test]
fn a_mixture_in_a_mixture_has_coins_of_its_own() {
    let walk = |width| Box::new(RandomWalk::new(1, width, 0).unwrap()) as Box<dyn Move>;
    let inner = || Mixture::new(vec![(0.5, walk(0.1)), (0.5, walk(0.2))], 9).unwrap();
    let outer = Mixture::new(vec![(0.5, Box::new(inner())), (0.5, walk(0.3))], 9).unwrap();
    let inner = inner();
    let within: Vec<usize> =
        (0..400).filter(|&step| outer.choice(step, 0) == 0).map(|step| inner.choice(step, 0)).collect();
    let first = within.iter().filter(|&&choice| choice == 0).count();
    assert!(4 * first > within.len() && 4 * first < 3 * within.len(), "{first} of {}", within.len());
    let uneven = Mixture::new(vec![(3.0, walk(0.1)), (1.0, walk(0.2))], 9).unwrap();
    let first = (0..400).filter(|&step| uneven.choice(step, 0) == 0).count();
    assert!((260..340).contains(&first), "{first} where 300 are expected");
    let choices = |replica: u32| (0..100).map(|step| outer.choice(step, replica)).collect::<Vec<_>>();
    assert!(choices(0) != choices(1), "so have replicas");
}
