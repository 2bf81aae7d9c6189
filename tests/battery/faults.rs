//! Tests the guards themselves: eleven mistakes that Monte Carlo codes have made, each planted by wrapping the density,
//! the target or the driver, never in the product. Each must be found by the guard named for it, and no guard may fire
//! on the correct code.

use crate::guards::{identity, normalisation, one_shot, Driver, Experiment, Verdict};
use crate::systems::*;
use modejump::density::{Density, Evaluation, Exactness};
use modejump::error::Result;
use modejump::moves::{Fate, Generator, Independence, Move, Options, Outcome, State};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::{Arc, Mutex};

const SEED: u64 = 31;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    QRatioForgotten,
    QRatioSign,
    LogQOffByTwoPercent,
    LogDetMissingInAcceptance,
    TemperatureOffByTwoPercent,
    StaleLogQ,
    StaleEnergy,
    AcceptanceDependsOnMode,
    AcceptReusesProposalUniform,
    RejectedStepsNotCounted,
    LogQWrongEverywhere,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Guard {
    Identity,
    OneShot,
    Normalisation,
}

/// Which guard must find which fault.
const CAUGHT_BY: [(Fault, Guard); 11] = [
    (Fault::QRatioForgotten, Guard::Identity),
    (Fault::QRatioSign, Guard::Identity),
    (Fault::LogQOffByTwoPercent, Guard::Identity),
    (Fault::LogDetMissingInAcceptance, Guard::Identity),
    (Fault::TemperatureOffByTwoPercent, Guard::Identity),
    (Fault::StaleLogQ, Guard::Identity),
    (Fault::StaleEnergy, Guard::Identity),
    (Fault::AcceptanceDependsOnMode, Guard::Identity),
    (Fault::AcceptReusesProposalUniform, Guard::OneShot),
    (Fault::RejectedStepsNotCounted, Guard::OneShot),
    (Fault::LogQWrongEverywhere, Guard::Normalisation),
];

/// State that a faulty sampler remembers although it must not.
#[derive(Default)]
struct Memory {
    log_q: Option<f64>,
    step: u64,
}

/// The generator as the faulty acceptance sees it.
struct FaultyDensity {
    table: Arc<Table>,
    fault: Fault,
    memory: Arc<Mutex<Memory>>,
}

impl FaultyDensity {
    /// The value that the acceptance test uses for log q.
    fn seen(&self, log_q: f64) -> f64 {
        match self.fault {
            Fault::QRatioForgotten => 0.0,
            Fault::QRatioSign => -log_q,
            Fault::LogQOffByTwoPercent => 1.02 * log_q,
            _ => log_q,
        }
    }

    fn model(&self, x: f64) -> f64 {
        let log_q = self.table.log_pdf(x);
        match self.fault {
            // A slope in the log-density that the samples do not follow.
            Fault::LogQWrongEverywhere => log_q + 0.1 * x,
            _ => log_q,
        }
    }
}

impl Density for FaultyDensity {
    fn dimension(&self) -> usize {
        1
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        for (row, (x, e)) in x.iter_mut().zip(e).enumerate() {
            let uniform = match self.fault {
                Fault::AcceptReusesProposalUniform => {
                    let step = self.memory.lock().unwrap().step;
                    Stream::new(SEED, StreamId::Accept, step, 0).uniform()
                }
                _ => streams(row).uniform(),
            };
            *x = self.table.quantile(uniform);
            // The table is z → x with a uniform prior: log q = 0 − log det, and the fault drops the determinant.
            let dropped = self.fault == Fault::LogDetMissingInAcceptance;
            *e = Evaluation::inside(if dropped { 0.0 } else { self.seen(self.model(*x)) });
        }
        Ok(())
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        for (x, e) in x.iter().zip(e) {
            let remembered = self.memory.lock().unwrap().log_q.filter(|_| self.fault == Fault::StaleLogQ);
            *e = Evaluation::inside(remembered.unwrap_or_else(|| self.seen(self.model(*x))));
        }
        Ok(())
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// The model as the identity guard's target: without the faults of the acceptance.
struct Honest {
    inner: FaultyDensity,
}

impl Analytic for Honest {
    fn dimension(&self) -> usize {
        1
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        Evaluation::inside(self.inner.model(x[0]))
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x[0] = self.inner.table.quantile(stream.uniform());
    }
}

/// A target at a temperature that is two percent too low.
struct Scaled<'a>(&'a mut dyn Target, f64);

impl Target for Scaled<'_> {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.0.reduced_potential(x, u)?;
        u.iter_mut().for_each(|u| *u *= self.1);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.0.reduced_potential_gradient(x, u, gradient)
    }
}

struct Faulty {
    fault: Fault,
    memory: Arc<Mutex<Memory>>,
    energy: Option<f64>,
}

impl Faulty {
    fn once(&mut self, kernel: &mut dyn Move, target: &mut dyn Target, x: &mut [f64], step: u64) -> Outcome {
        let factor = if self.fault == Fault::TemperatureOffByTwoPercent { 1.02 } else { 1.0 };
        let mut target = Scaled(target, factor);
        self.memory.lock().unwrap().step = step;
        let mut u = [0.0];
        target.reduced_potential(x, &mut u).unwrap();
        let reduced_potential = match self.fault {
            Fault::StaleEnergy => self.energy.unwrap_or(u[0]),
            _ => u[0],
        };
        let before = x[0];
        let mut state = State { x, box_vectors: None, reduced_potential, step, replica: 0 };
        let mut outcome = kernel.attempt(&mut target, &mut state).unwrap();
        if self.fault == Fault::AcceptanceDependsOnMode && outcome.accepted() && before < 0.0 {
            // Jumps out of the left mode are undone one time in ten.
            if Stream::new(SEED, StreamId::Test, step, 1).uniform() < 0.1 {
                x[0] = before;
                outcome.fate = Fate::Rejected;
            }
        }
        self.energy = Some(outcome.reduced_potential);
        let log_q = if outcome.accepted() { outcome.log_density_proposed } else { outcome.log_density_current };
        self.memory.lock().unwrap().log_q = Some(log_q);
        outcome
    }
}

impl Driver for Faulty {
    fn attempt(&mut self, kernel: &mut dyn Move, target: &mut dyn Target, x: &mut [f64], step: u64) -> Outcome {
        if self.fault != Fault::RejectedStepsNotCounted {
            return self.once(kernel, target, x, step);
        }
        // A chain that records accepted states only.
        let retries = (0..1000).map(|k| step + k * 1_000_000_007);
        let mut outcome = None;
        for step in retries {
            let last = outcome.insert(self.once(kernel, target, x, step));
            if last.accepted() {
                break;
            }
        }
        outcome.unwrap()
    }
    fn forget(&mut self) {
        self.energy = None;
        self.memory.lock().unwrap().log_q = None;
    }
}

const GENERATOR: &[(f64, f64, f64)] = &[(0.5, -1.0, 0.35), (0.5, 1.0, 0.35)];

/// Runs one guard on the sampler with one fault.
fn run(fault: Fault, guard: Guard) -> Verdict {
    let table = Arc::new(normal_mixture(GENERATOR));
    let memory = Arc::new(Mutex::new(Memory::default()));
    let density = || FaultyDensity { table: table.clone(), fault, memory: memory.clone() };
    let kernel = || -> Box<dyn Move> {
        let options = Options { n_proposals: 1, seed: SEED, stride: 0, batch: 1, ..Options::default() };
        Box::new(Independence::new(Generator::new(Arc::new(density()), None, options).unwrap()))
    };
    let honest: Arc<dyn Density> = Arc::new(Exact(Honest { inner: density() }));
    let target = match guard {
        Guard::OneShot => Arc::new(Exact(double_well(0.475))) as Arc<dyn Density>,
        _ => honest.clone(),
    };
    let experiment = Experiment { kernel: &kernel, target, local: 0.3, observables: |x| x.to_vec() };
    let mut driver = Faulty { fault, memory: memory.clone(), energy: None };
    match guard {
        Guard::Identity => identity(&experiment, &mut driver),
        Guard::OneShot => one_shot(&experiment, &mut driver, 50_000),
        Guard::Normalisation => normalisation(honest.as_ref(), -5.0, 5.0),
    }
}

#[test]
fn no_guard_fires_on_the_correct_code() {
    for guard in [Guard::Identity, Guard::OneShot, Guard::Normalisation] {
        run(Fault::None, guard).unwrap_or_else(|found| panic!("{guard:?} fired: {found}"));
    }
}

#[test]
fn identity_catches_its_eight_faults() {
    every_fault_of(Guard::Identity, 8);
}

#[test]
fn one_shot_invariance_catches_its_two_faults() {
    every_fault_of(Guard::OneShot, 2);
}

#[test]
fn normalisation_catches_its_fault() {
    every_fault_of(Guard::Normalisation, 1);
}

fn every_fault_of(guard: Guard, expected: usize) {
    let faults: Vec<Fault> = CAUGHT_BY.iter().filter(|(_, g)| *g == guard).map(|(f, _)| *f).collect();
    assert_eq!(faults.len(), expected);
    for fault in faults {
        match run(fault, guard) {
            Err(found) => println!("{fault:?}: {guard:?} found {found}"),
            Ok(()) => panic!("{fault:?} went unnoticed by {guard:?}"),
        }
    }
}

/// Every guard is needed: these faults pass the guards that are not named for them.
#[test]
fn faults_that_one_guard_alone_can_find() {
    for (fault, blind) in [
        (Fault::LogQWrongEverywhere, Guard::Identity),
        (Fault::RejectedStepsNotCounted, Guard::Identity),
        (Fault::AcceptReusesProposalUniform, Guard::Normalisation),
        (Fault::TemperatureOffByTwoPercent, Guard::OneShot),
    ] {
        run(fault, blind).unwrap_or_else(|found| panic!("{blind:?} sees {fault:?} after all: {found}"));
    }
}
