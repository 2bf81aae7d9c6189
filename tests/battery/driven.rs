//! Driven moves: a solute in a bath whose distribution is known exactly, and detection of typical mistakes.

use crate::latent_walk::angle_within;
use crate::molecule::four_atoms;
use crate::moves::{constrained_angles, generator, two_constraints};
use crate::statistics::{ks_two_sample, LEVEL};
use crate::systems::*;
use modejump::coordinates::vector::{atom, torsion};
use modejump::density::{Density, Evaluation, Exactness, Scope};
use modejump::error::{Error, Result};
use modejump::models::Model;
use modejump::moves::{
    accept, Driven, Fate, Generator, Independence, Move, Options, Outcome, Proposal, State, Statistics,
};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

const STARTS: usize = 20_000;

/// A solute with a known density and a bath that depends on it: two coordinates, independent and normal given the
/// solute.
#[derive(Clone)]
struct Solution {
    solute: Arc<dyn Density>,
    /// Mean and width of the bath, given the solute.
    bath: fn(&[f64]) -> [f64; 2],
}

impl Solution {
    fn u(&self, s: &[f64], e: &[f64; 2]) -> f64 {
        let mut log_p = [Evaluation::inside(0.0)];
        self.solute.log_density(s, &mut log_p).unwrap();
        let [mean, width] = (self.bath)(s);
        e.iter().map(|e| 0.5 * ((e - mean) / width).powi(2) + width.ln()).sum::<f64>() - log_p[0].log_density
    }

    fn draw(&self, seed: u64, row: u64) -> (Vec<f64>, [f64; 2]) {
        let mut s = vec![0.0; self.solute.dimension()];
        self.solute
            .sample(&|_| Stream::new(seed, StreamId::Test, row, 0), &mut s, &mut [Evaluation::inside(0.0)])
            .unwrap();
        let [mean, width] = (self.bath)(&s);
        let mut stream = Stream::new(seed, StreamId::Test, row, 1);
        (s, std::array::from_fn(|_| mean + width * stream.normal()))
    }
}

/// How the bath is moved.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Relaxation {
    /// Random-walk steps with a Metropolis test.
    Tested,
    /// The same steps without a Metropolis test.
    Untested,
    /// Halfway towards the mean of the bath, with some noise: leaves another distribution invariant.
    Cooled,
}

/// Stands in for the engine: it holds the bath, and moves it on request.
struct Engine {
    solution: Solution,
    relaxation: Relaxation,
    e: [f64; 2],
    step: u64,
}

impl Target for Engine {
    fn dimension(&self) -> usize {
        self.solution.solute.dimension()
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        let rows = x.chunks_exact(self.dimension());
        u.iter_mut().zip(rows).for_each(|(u, s)| *u = self.solution.u(s, &self.e));
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for")
    }
    fn relax(&mut self, s: &[f64], stage: u32) -> Result<f64> {
        let mut stream = Stream::new(8, StreamId::Relax, self.step, 0).at(stage << 10);
        let [mean, width] = (self.solution.bath)(s);
        let mut here = self.solution.u(s, &self.e);
        for _ in 0..2 {
            let there: [f64; 2] = match self.relaxation {
                Relaxation::Cooled => self.e.map(|e| 0.5 * (e + mean) + 0.3 * width * stream.normal()),
                _ => self.e.map(|e| e + 0.8 * width * stream.normal()),
            };
            let u = self.solution.u(s, &there);
            if stream.uniform().ln() < here - u || self.relaxation != Relaxation::Tested {
                (self.e, here) = (there, u);
            }
        }
        Ok(here)
    }
}

impl Engine {
    fn new(solution: &Solution, relaxation: Relaxation) -> Engine {
        Engine { solution: solution.clone(), relaxation, e: [0.0; 2], step: 0 }
    }

    /// Makes one attempt; checks that after a rejection everything is unchanged bit for bit.
    fn attempt(&mut self, jump: &mut dyn Move, s: &mut [f64], step: u64) -> Outcome {
        self.step = step;
        let (kept, before) = (self.e, s.to_vec());
        let u = self.solution.u(s, &self.e);
        let mut state = State { x: s, box_vectors: None, reduced_potential: u, step, replica: 0 };
        let outcome = jump.attempt(self, &mut state).unwrap();
        let claimed = state.reduced_potential;
        if !outcome.accepted() {
            self.e = kept;
            assert!(s.iter().zip(&before).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        assert_eq!(claimed, outcome.reduced_potential);
        assert!((claimed - self.solution.u(s, &self.e)).abs() < 1e-9);
        outcome
    }
}

/// A double well whose bath is displaced and wider in the other well: 6 widths apart, so that a frozen bath hardly ever
/// allows a jump.
fn bistable() -> (Solution, Arc<dyn Density>) {
    let solution =
        Solution { solute: Arc::new(Exact(double_well(0.475))), bath: |s| [0.9 * s[0], 0.3 * (0.3 * s[0]).exp()] };
    (solution, Arc::new(Exact(normal_mixture(&[(0.5, -1.0, 0.35), (0.5, 1.0, 0.35)]))))
}

fn phi(s: &[f64]) -> f64 {
    torsion(atom(s, 3), atom(s, 2), atom(s, 1), atom(s, 0))
}

/// Tests that exact draws of solute and bath remain exact draws after two attempts: the least p over the observables.
fn least_p(engine: &mut Engine, jump: &mut dyn Move, see: fn(&[f64]) -> f64) -> (f64, f64) {
    let solution = engine.solution.clone();
    let seen = |s: &[f64], e: &[f64; 2]| {
        let [mean, width] = (solution.bath)(s);
        [see(s), e[0], (e[0] - mean) / width, (e[1] - mean).powi(2)]
    };
    let after: Vec<[f64; 4]> = (0..STARTS as u64)
        .map(|start| {
            let (mut s, e) = solution.draw(6, start);
            engine.e = e;
            for k in 0..2 {
                engine.attempt(jump, &mut s, 2 * start + k);
            }
            seen(&s, &engine.e)
        })
        .collect();
    let exact: Vec<[f64; 4]> = (0..4 * STARTS as u64)
        .map(|row| {
            let (s, e) = solution.draw(7, row);
            seen(&s, &e)
        })
        .collect();
    let column = |rows: &[[f64; 4]], k: usize| rows.iter().map(|row| row[k]).collect::<Vec<_>>();
    let p = (0..4).map(|k| ks_two_sample(&column(&after, k), &column(&exact, k))).fold(1.0, f64::min);
    (p, jump.statistics().acceptance())
}

#[test]
fn one_shot_invariance_of_driven_moves() {
    let (solution, q) = bistable();
    let mut accepted = Vec::new();
    for steps in [1, 3, 20] {
        let mut jump = Driven::new(generator(&q, 1, 8), steps).unwrap();
        let (p, acceptance) = least_p(&mut Engine::new(&solution, Relaxation::Tested), &mut jump, |s| s[0]);
        assert!(p > LEVEL, "{steps} steps: p = {p:.1e}");
        let expected = jump.statistics().expected_acceptance();
        assert!((expected.value - acceptance).abs() < 0.02, "{expected:?} {acceptance}");
        accepted.push(acceptance);
    }
    println!("{accepted:?} accepted");
    assert!(accepted[2] > accepted[0] + 0.05, "{accepted:?}");
}

/// Invariance with a path in bonds, angles and a torsion, for a model that is its own target.
#[test]
fn one_shot_invariance_in_internal_coordinates() {
    let model: Arc<dyn Model> = Arc::new(four_atoms());
    let solute: Arc<dyn Density> = model.clone();
    let solution = Solution { solute, bath: |s| [phi(s).cos(), 0.2 + 0.1 * phi(s).sin()] };
    let options = Options { seed: 31, ..Options::default() };
    let mut jump = Driven::new(Generator::of_model(&model, options).unwrap(), 6).unwrap();
    let (p, acceptance) = least_p(&mut Engine::new(&solution, Relaxation::Tested), &mut jump, phi);
    assert!(p > LEVEL && acceptance > 0.1, "p = {p:.1e}, {acceptance} accepted");
}

/// The metric term enters the work of the path, and no perturbation counts it twice.
#[test]
fn constrained_bonds_are_driven_with_their_metric_term() {
    let with_metric = |metric: bool| {
        let options = Options { seed: 31, ..Options::default() };
        let constraints = metric.then(two_constraints);
        let generator = Generator::constrained(&angle_within([0.001, 0.999]), options, constraints).unwrap();
        constrained_angles(&mut Driven::new(generator, 3).unwrap(), 30_000)
    };
    let p = with_metric(true);
    assert!(p > LEVEL, "p = {p:.1e}");
    let p = with_metric(false);
    assert!(p < LEVEL, "leaving the metric term out went unnoticed: p = {p:.1e}");
}

/// For generators that also describe orientation: the solute rotates along its path.
#[test]
fn one_shot_invariance_of_a_turning_solute() {
    let solute: Arc<dyn Density> = Arc::new(Exact(Trimer { width: 0.3, target: true }));
    let solution = Solution { solute, bath: |s| [s[0] - s[3], 0.3 + 0.1 * (s[1] - s[4]).sin()] };
    for q in [
        Arc::new(Exact(Trimer { width: 0.4, target: false })) as Arc<dyn Density>,
        Arc::new(Exact(NoisyTrimer { width: 0.35 })),
    ] {
        let mut jump = Driven::new(generator(&q, 1, 8), 6).unwrap();
        let (p, acceptance) = least_p(&mut Engine::new(&solution, Relaxation::Tested), &mut jump, |s| s[0] - s[6]);
        assert!(p > LEVEL && acceptance > 0.04, "p = {p:.1e}, {acceptance} accepted");
    }
}

/// Faults specific to driven moves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The relaxations leave another distribution invariant.
    RelaxedWithoutATest,
    RelaxedToAnotherTemperature,
    /// The potentials of the two ends decide, as if no work had been done along the path.
    EndsOnly,
    /// Only the work of the first perturbation is counted.
    FirstPerturbationOnly,
    /// The work of the last perturbation, after which nothing relaxes, is omitted.
    LastPerturbationForgotten,
    /// log q is omitted.
    DensityForgotten,
}

const FAULTS: [Fault; 6] = [
    Fault::RelaxedWithoutATest,
    Fault::RelaxedToAnotherTemperature,
    Fault::EndsOnly,
    Fault::FirstPerturbationOnly,
    Fault::LastPerturbationForgotten,
    Fault::DensityForgotten,
];

/// A shorter reimplementation of the move for one coordinate, in which a fault can be planted.
struct Sketch {
    q: Arc<dyn Density>,
    steps: usize,
    fault: Fault,
    statistics: Statistics,
}

impl Sketch {
    fn log_q(&self, s: f64) -> Evaluation {
        let mut evaluation = [Evaluation::inside(0.0)];
        self.q.log_density(&[s], &mut evaluation).unwrap();
        if self.fault == Fault::DensityForgotten {
            return Evaluation::inside(0.0);
        }
        evaluation[0]
    }
}

impl Move for Sketch {
    fn dimension(&self) -> usize {
        1
    }
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let stream = |id| Stream::new(17, id, state.step, state.replica);
        let mut drawn = [0.0];
        self.q.sample(&|_| stream(StreamId::Proposal), &mut drawn, &mut [Evaluation::inside(0.0)])?;
        let (start, end) = (state.x[0], drawn[0]);
        let (mut here, mut work, mut first) = (state.reduced_potential, 0.0, None);
        let at = |target: &mut dyn Target, s: f64| {
            let mut u = [0.0];
            target.reduced_potential(&[s], &mut u).map(|()| u[0])
        };
        let point = |k: usize| start + (end - start) * k as f64 / self.steps as f64;
        for k in 1..=self.steps {
            let before = at(target, point(k))?;
            let last = k == self.steps;
            if !(last && self.fault == Fault::LastPerturbationForgotten) {
                work += before - here;
            }
            here = if last { before } else { target.relax(&[point(k)], k as u32)? };
            first.get_or_insert(work);
        }
        let u = match self.fault {
            Fault::EndsOnly => here,
            Fault::FirstPerturbationOnly => state.reduced_potential + first.unwrap(),
            _ => state.reduced_potential + work,
        };
        let proposal = Proposal { x: &drawn, forward: self.log_q(end), reverse: self.log_q(start) };
        let uniform = stream(StreamId::Accept).uniform();
        let before = state.reduced_potential;
        let test = accept(&proposal, before, u, uniform);
        if test.0 == Fate::Accepted {
            (state.x[0], state.reduced_potential) = (end, here);
        }
        Ok(Outcome::of_test(test, (before, proposal.reverse), (u, proposal.forward), state.reduced_potential))
    }
    fn statistics(&self) -> &Statistics {
        &self.statistics
    }
    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}

fn sketched(fault: Fault) -> f64 {
    let solution = bistable().0;
    let q: &'static [(f64, f64, f64)] = match fault {
        // far from the target within the wells, too; otherwise a forgotten q is hard to detect
        Fault::DensityForgotten => &[(0.9, -1.2, 0.3), (0.1, 1.0, 0.3)],
        _ => &[(0.2, -1.1, 0.35), (0.8, 0.9, 0.4)],
    };
    let q: Arc<dyn Density> = Arc::new(Exact(normal_mixture(q)));
    let relaxation = match fault {
        Fault::RelaxedWithoutATest => Relaxation::Untested,
        Fault::RelaxedToAnotherTemperature => Relaxation::Cooled,
        _ => Relaxation::Tested,
    };
    let mut jump = Sketch { q, steps: 3, fault, statistics: Statistics::default() };
    least_p(&mut Engine::new(&solution, relaxation), &mut jump, |s| s[0]).0
}

#[test]
fn one_shot_invariance_catches_the_faults_of_driven_moves() {
    let p = sketched(Fault::None);
    assert!(p > LEVEL, "the guard fired on the correct move: p = {p:.1e}");
    for fault in FAULTS {
        let p = sketched(fault);
        println!("{fault:?}: p = {p:.1e}");
        assert!(p < LEVEL, "{fault:?} went unnoticed: p = {p:.1e}");
    }
}

/// Proposes one point, whatever its density.
pub struct Aimed {
    pub q: Arc<dyn Density>,
    pub at: Vec<f64>,
}

impl Density for Aimed {
    fn dimension(&self) -> usize {
        self.q.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        self.q.scope()
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        x.chunks_exact_mut(self.at.len()).for_each(|x| x.copy_from_slice(&self.at));
        self.q.log_density(x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.q.log_density(x, e)
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.q.log_density_gradient(x, e, gradient)
    }
}

/// A bath that follows a prescribed path.
struct Script {
    solution: Solution,
    e: [f64; 2],
    to: Vec<[f64; 2]>,
}

impl Target for Script {
    fn dimension(&self) -> usize {
        self.solution.solute.dimension()
    }
    fn reduced_potential(&mut self, s: &[f64], u: &mut [f64]) -> Result<()> {
        u[0] = self.solution.u(s, &self.e);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for")
    }
    fn relax(&mut self, s: &[f64], stage: u32) -> Result<f64> {
        self.e = self.to[stage as usize];
        Ok(self.solution.u(s, &self.e))
    }
}

/// A path and its reverse have opposite log α, whatever the bath does.
#[test]
fn the_way_back_has_the_reciprocal_ratio() {
    let (solution, q) = bistable();
    let path = [[-0.9, -1.0], [-0.4, -0.3], [0.3, 0.1], [0.6, 0.9]];
    let log_alpha = |from: f64, to: f64, path: &[[f64; 2]]| {
        let aimed: Arc<dyn Density> = Arc::new(Aimed { q: q.clone(), at: vec![to] });
        let mut jump = Driven::new(generator(&aimed, 1, 1), path.len()).unwrap();
        let mut target = Script { solution: solution.clone(), e: path[0], to: path[1..].to_vec() };
        let mut x = [from];
        let reduced_potential = solution.u(&x, &path[0]);
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step: 0, replica: 0 };
        jump.attempt(&mut target, &mut state).unwrap().log_acceptance
    };
    let backwards: Vec<[f64; 2]> = path.iter().rev().copied().collect();
    let (there, back) = (log_alpha(-0.9, 1.1, &path), log_alpha(1.1, -0.9, &backwards));
    assert!((there + back).abs() < 1e-9 && there.abs() > 0.1, "{there} {back}");
}

#[test]
fn a_run_that_was_stopped_and_restarted_equals_one_that_was_not() {
    let (solution, q) = bistable();
    let new = || {
        Driven::new(Generator::new(q.clone(), None, Options { seed: 5, stride: 1, ..Options::default() }).unwrap(), 4)
            .unwrap()
    };
    let run = |jump: &mut Driven, engine: &mut Engine, s: &mut [f64], steps: std::ops::Range<u64>| {
        steps.for_each(|step| _ = engine.attempt(jump, s, step));
    };
    let (mut straight, mut engine, mut s) = (new(), Engine::new(&solution, Relaxation::Tested), [-1.0]);
    run(&mut straight, &mut engine, &mut s, 0..500);
    let (mut restarted, mut again) = ([-1.0], Engine::new(&solution, Relaxation::Tested));
    run(&mut new(), &mut again, &mut restarted, 0..203);
    let mut continued = Engine { e: again.e, ..Engine::new(&solution, Relaxation::Tested) };
    run(&mut new(), &mut continued, &mut restarted, 203..500);
    assert_eq!((s[0].to_bits(), engine.e.map(f64::to_bits)), (restarted[0].to_bits(), continued.e.map(f64::to_bits)));
    assert!(straight.statistics().acceptance() > 0.02);
}

#[test]
fn what_cannot_be_driven_is_refused() {
    let (solution, q) = bistable();
    let refusal = |n, steps| Driven::new(generator(&q, n, 1), steps).err().unwrap().to_string();
    assert!(refusal(1, 0).contains("0 steps") && refusal(2, 5).contains("one proposal"));
    // a target without an environment: one step works without it, two fail
    let mut target = NegativeLog::new(solution.solute.clone(), 0.0);
    let mut attempt = |jump: &mut dyn Move| {
        let mut x = [0.9];
        let reduced_potential = target.u(&x);
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step: 3, replica: 0 };
        let result = jump.attempt(&mut target, &mut state);
        (result, x)
    };
    let (result, x) = attempt(&mut Driven::new(generator(&q, 1, 1), 2).unwrap());
    assert!(matches!(result, Err(Error::Unsupported(_))) && x == [0.9]);
    // one step equals the independence move
    let (one, x) = attempt(&mut Driven::new(generator(&q, 1, 1), 1).unwrap());
    let (plain, y) = attempt(&mut Independence::new(generator(&q, 1, 1)));
    assert_eq!((one.unwrap(), x), (plain.unwrap(), y));
}
