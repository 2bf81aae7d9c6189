//! Tests specific to delayed acceptance: its two stages, their cost, and mistakes in the second.

use crate::guards::{identity, one_shot, Correct, Driver, Experiment, Verdict};
use crate::moves::{delayed, generator, systems, systems_without_noise};
use crate::systems::*;
use modejump::density::{Density, Evaluation, Exactness, Scope, Status};
use modejump::error::Result;
use modejump::moves::{DelayedAcceptance, Fate, Independence, Isir, Mixture, Move};
use modejump::rng::Stream;
use modejump::trust::Trust;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The result of the first stage is taken as the new state.
    StageTwoForgotten,
    /// c(x)/c(x′) instead of c(x′)/c(x).
    RatioInverted,
    /// log q of the state is the value from its acceptance, although dynamics has moved it since.
    StaleLogQ,
}

/// A generator that gives the second stage a faulty log q. The second stage evaluates (state, proposal) in one call.
struct Faulty {
    q: Arc<dyn Density>,
    screen: Arc<dyn Density>,
    fault: Fault,
    remembered: Mutex<Option<f64>>,
}

impl Density for Faulty {
    fn dimension(&self) -> usize {
        self.q.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        self.q.scope()
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.q.sample(streams, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.q.log_density(x, e)?;
        let mut screened = e.to_vec();
        self.screen.log_density(x, &mut screened)?;
        for (e, s) in e.iter_mut().zip(&screened) {
            match self.fault {
                Fault::StageTwoForgotten => *e = *s,
                Fault::RatioInverted => *e = Evaluation::inside(2.0 * s.log_density - e.log_density),
                Fault::None | Fault::StaleLogQ => {}
            }
        }
        let next = e[1].log_density;
        let mut remembered = self.remembered.lock().unwrap();
        if let (Fault::StaleLogQ, Some(old)) = (self.fault, remembered.replace(next)) {
            e[0] = Evaluation::inside(old);
        }
        Ok(())
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// Runs the one-shot guard with a wrong screen, or the identity guard with the generator as both target and screen.
fn run(fault: Fault, wrong_screen: bool) -> Verdict {
    let system = &systems()[0];
    let q = system.generator.clone();
    let screen: Arc<dyn Density> = if wrong_screen { Arc::new(WrongScreen(q.clone())) } else { q.clone() };
    let kernel = || {
        let (q, screen) = (q.clone(), screen.clone());
        let faulty: Arc<dyn Density> =
            Arc::new(Faulty { q, screen: screen.clone(), fault, remembered: Mutex::new(None) });
        delayed(&faulty, screen, 1)
    };
    let target = if wrong_screen { system.target.clone() } else { q.clone() };
    let experiment = Experiment { kernel: &kernel, target, local: system.local, observables: system.observables };
    match wrong_screen {
        true => one_shot(&experiment, &mut Correct, 50_000),
        false => identity(&experiment, &mut Correct),
    }
}

#[test]
fn planted_faults_of_the_second_stage_are_caught() {
    for wrong_screen in [true, false] {
        run(Fault::None, wrong_screen).unwrap_or_else(|found| panic!("fired on the correct code: {found}"));
    }
    for (fault, wrong_screen) in
        [(Fault::StageTwoForgotten, true), (Fault::RatioInverted, true), (Fault::StaleLogQ, false)]
    {
        match run(fault, wrong_screen) {
            Err(found) => println!("{fault:?}: found {found}"),
            Ok(()) => panic!("{fault:?} went unnoticed"),
        }
    }
}

#[test]
fn identity_on_every_system() {
    for system in systems_without_noise() {
        for steps in [1, 3] {
            let experiment = Experiment {
                kernel: &|| delayed(&system.generator, system.generator.clone(), steps),
                target: system.generator.clone(),
                local: system.local,
                observables: system.observables,
            };
            identity(&experiment, &mut Correct).unwrap_or_else(|found| panic!("{}: {found}", system.name));
        }
    }
}

/// The expected acceptance agrees with the observed acceptance, also for moves of more than one test.
#[test]
fn the_expected_acceptance_is_that_of_the_attempt() {
    for system in systems_without_noise() {
        let wrong: Arc<dyn Density> = system.target.clone();
        let of = |k| generator(&system.generator, k, 5);
        let isir = || Box::new(Isir::new(of(4))) as Box<dyn Move>;
        let kernels: [(&str, Box<dyn Move>); 6] = [
            ("one test", Box::new(Independence::new(of(1)))),
            ("four tests", Box::new(Independence::new(of(4)))),
            ("i-SIR", isir()),
            ("a mixture", Box::new(Mixture::new(vec![(1.0, isir()), (1.0, isir())], 3).unwrap())),
            ("delayed", delayed(&system.generator, wrong.clone(), 1)),
            ("delayed, three tests", delayed(&system.generator, wrong, 3)),
        ];
        for (name, mut kernel) in kernels {
            let mut target = NegativeLog::new(system.target.clone(), 0.0);
            let (mut x, mut e) = (vec![0.0; system.target.dimension()], [Evaluation::inside(0.0)]);
            let stream = |_: usize| Stream::new(3, modejump::rng::StreamId::Test, 0, 0);
            system.target.sample(&stream, &mut x, &mut e).unwrap();
            let n = 4000;
            for step in 0..n {
                Correct.attempt(kernel.as_mut(), &mut target, &mut x, step);
            }
            let statistics = kernel.statistics();
            let (found, expected) = (statistics.acceptance(), statistics.expected_acceptance().value);
            let error = (found * (1.0 - found) / n as f64).sqrt() + 1e-3;
            assert!((found - expected).abs() < 5.0 * error, "{}, {name}: {found} for {expected}", system.name);
        }
    }
}

/// With the generator as its own screen the second stage has nothing to correct: the move equals the independence move.
#[test]
fn a_perfect_screen_gives_the_independence_move() {
    for system in systems_without_noise() {
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let mut plain = Independence::new(generator(&system.generator, 1, 5));
        let mut kernel = delayed(&system.generator, system.generator.clone(), 1);
        let (mut x, mut e) = (vec![0.0; system.target.dimension()], [Evaluation::inside(0.0)]);
        let stream = |_: usize| Stream::new(3, modejump::rng::StreamId::Test, 0, 0);
        system.target.sample(&stream, &mut x, &mut e).unwrap();
        let mut y = x.clone();
        for step in 0..100 {
            let (a, b) = (
                Correct.attempt(&mut plain, &mut target, &mut x, step),
                Correct.attempt(kernel.as_mut(), &mut target, &mut y, step),
            );
            assert_eq!((a.fate, &x), (b.fate, &y), "{} at step {step}", system.name);
        }
        let statistics = kernel.statistics();
        assert_eq!(statistics.screened(), statistics.count(Fate::Accepted));
        assert!(statistics.correction_variance() < 1e-18);
    }
}

/// A screen that is q itself, trusted by α in the energy and β in the density, weights by e^{−αu} q^{−β} in stage 1:
/// these weights appear in the statistics, and the correction left to stage 2 has the variance of
/// (1 − α) u + (1 − β) ln q.
#[test]
fn a_screen_is_believed_as_far_as_its_trust() {
    let trust = Trust { energy: 0.5, density: 0.25 };
    let system = &systems()[0];
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let q = &system.generator;
    let mut kernel = delayed(q, believed(q.clone(), trust), 1);
    let (mut x, mut e) = (vec![0.0; system.target.dimension()], [Evaluation::inside(0.0)]);
    let stream = |_: usize| Stream::new(3, modejump::rng::StreamId::Test, 0, 0);
    system.target.sample(&stream, &mut x, &mut e).unwrap();
    let mut seen = [0, 0];
    for step in 0..200 {
        let before = x.clone();
        let outcome = Correct.attempt(kernel.as_mut(), &mut target, &mut x, step);
        let u = target.u(&before);
        q.log_density(&before, &mut e).unwrap();
        let decided_by_screen = kernel.statistics().screened() as usize == seen[0];
        let expected = match decided_by_screen {
            true => -0.5 * u - 0.25 * e[0].log_density,
            false => -u - e[0].log_density,
        };
        assert!((outcome.log_weight_current - expected).abs() < 1e-9, "step {step}");
        seen = [kernel.statistics().screened() as usize, seen[1] + usize::from(decided_by_screen)];
    }
    assert!(seen[0] > 20 && seen[1] > 20, "{seen:?}");
    assert!(kernel.statistics().correction_variance() > 1e-3);
}

/// Counts the rows evaluated by a generator.
pub struct Counting {
    pub q: Arc<dyn Density>,
    pub rows: AtomicUsize,
}

impl Density for Counting {
    fn dimension(&self) -> usize {
        self.q.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("proposals must be drawn without their log q")
    }
    fn sample_only(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        status: &mut [Status],
    ) -> Result<()> {
        self.q.sample_only(streams, x, status)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.rows.fetch_add(e.len(), Ordering::Relaxed);
        self.q.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

#[test]
fn the_exact_density_is_asked_only_about_what_passed_the_screen() {
    let system = &systems()[2];
    let counting = Arc::new(Counting { q: system.generator.clone(), rows: AtomicUsize::new(0) });
    let q: Arc<dyn Density> = counting.clone();
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let mut kernel = delayed(&q, Arc::new(WrongScreen(system.generator.clone())), 2);
    let mut x = vec![0.1, 0.2, 0.3];
    for step in 0..500 {
        let before = kernel.statistics().screened();
        let outcome = Correct.attempt(kernel.as_mut(), &mut target, &mut x, step);
        let passed = kernel.statistics().screened() > before;
        assert!(passed || !outcome.accepted());
    }
    let statistics = kernel.statistics();
    let (screened, accepted) = (statistics.screened(), statistics.count(Fate::Accepted));
    assert!(0 < accepted && accepted < screened && screened < 450, "{accepted} of {screened}");
    assert_eq!(statistics.exact_evaluations(), 2 * screened);
    assert_eq!(counting.rows.load(Ordering::Relaxed) as u64, 2 * screened);
    assert!(statistics.correction_variance() > 0.1);
}

/// Always proposes the same point, so that the rate between two points can be counted.
struct To(Arc<dyn Density>, f64);

impl Density for To {
    fn dimension(&self) -> usize {
        1
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        x.fill(self.1);
        self.0.log_density(x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

#[test]
fn reverse_the_rates_between_two_points_balance() {
    let system = &systems()[0];
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let n = 40_000;
    for (x, y) in [(-1.0, 0.9), (-0.7, 1.3), (0.8, 1.1)] {
        let mut rate = |from: f64, to: f64| {
            let q: Arc<dyn Density> = Arc::new(To(system.generator.clone(), to));
            let screen = Arc::new(WrongScreen(system.generator.clone()));
            let mut kernel = DelayedAcceptance::new(generator(&q, 1, 64), screen).unwrap();
            let accepted = (0..n).filter(|step| {
                let mut here = [from];
                Correct.attempt(&mut kernel, &mut target, &mut here, *step).accepted()
            });
            accepted.count() as f64 / n as f64
        };
        let (there, back) = (rate(x, y), rate(y, x));
        let log_q = |x: f64| {
            let mut e = [Evaluation::inside(0.0)];
            system.generator.log_density(&[x], &mut e).unwrap();
            e[0].log_density
        };
        // π(x) q(y) α(x→y) = π(y) q(x) α(y→x)
        let ratio = (-target.u(&[x]) + log_q(y) + target.u(&[y]) - log_q(x)).exp();
        let error = ratio * ((there / n as f64).sqrt() + (back / n as f64).sqrt() / ratio);
        assert!((ratio * there - back).abs() < 5.0 * error, "{x} to {y}: {ratio} · {there} against {back} ± {error}");
        assert!(there > 0.0 && back > 0.0);
    }
}

#[test]
fn a_screen_of_another_size_is_refused() {
    let systems = systems();
    let refused = DelayedAcceptance::new(generator(&systems[0].generator, 1, 1), systems[2].generator.clone());
    assert!(refused.err().unwrap().to_string().contains("screening model"));
}
