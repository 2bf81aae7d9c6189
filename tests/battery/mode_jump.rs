//! Jumps between modes: identity, invariance, edges chosen with unequal probability, identical particles, and detection
//! of typical mistakes.

use crate::guards::{identity, one_shot, Correct, Driver, Experiment, Verdict};
use crate::latent_walk::angle_within;
use crate::moves::{constrained_angles, two_constraints};
use crate::statistics::LEVEL;
use crate::systems::*;
use modejump::bijection::{Bijection, Mapped};
use modejump::coordinates::{Along, CoordinatesConfig, Region};
use modejump::density::{Density, Evaluation, Status};
use modejump::error::Result;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::{Model, ModelCard};
use modejump::modes::{ModeRegion, Modes};
use modejump::moves::{accept, Edge, Fate, Identical, ModeJump, Move, Outcome, Proposal, State, Statistics};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

const STARTS: usize = 40_000;

/// A shift and a scale.
fn stretch(mean: &[f64], width: f64) -> LayerConfig {
    let d = mean.len();
    let mut matrix = vec![0.0; d * d];
    (0..d).for_each(|i| matrix[i * d + i] = width);
    LayerConfig::Whiten { transformed: (0..d).collect(), mean: mean.to_vec(), matrix }
}

fn of_layers(dimension: usize, layers: Vec<LayerConfig>) -> CouplingFlow<f64> {
    let coordinates = CoordinatesConfig::Cartesian { dimension };
    CouplingFlow::new(ModelCard::of_coupling(CouplingConfig { uniform: vec![], layers }, coordinates)).unwrap()
}

/// A flow of Cartesian coordinates: affine couplings with random networks, then a shift to the mean and a scale.
fn flow(mean: &[f64], width: f64, seed: u64) -> Arc<dyn Model> {
    let d = mean.len();
    let coupling = |moved: usize| LayerConfig::Affine {
        transformed: vec![moved],
        features: Features { periodic: vec![], harmonics: 1, plain: (0..d).filter(|&i| i != moved).collect() },
        hidden: vec![6],
        activation: Activation::Tanh,
        scale_activation: None,
        preserve_volume: false,
    };
    let mut flow = of_layers(d, (0..d).map(coupling).chain([stretch(mean, width)]).collect());
    let mut stream = Stream::new(seed, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p = 0.4 * stream.normal());
    Arc::new(flow)
}

fn half(name: &str, range: [f64; 2]) -> ModeRegion {
    let within = vec![Region { along: Along::Component(0), range }];
    ModeRegion { name: name.into(), within, centre: vec![] }
}

fn halves(dimension: usize) -> Modes {
    let regions = [half("left", [f64::NEG_INFINITY, 0.0]), half("right", [0.0, f64::INFINITY])];
    Modes::new(&[], &regions, dimension).unwrap()
}

fn wells() -> [Arc<dyn Model>; 2] {
    [flow(&[-1.0, -0.5], 0.25, 1), flow(&[1.0, 0.4], 0.35, 2)]
}

fn edge(modes: [usize; 2], models: [Arc<dyn Model>; 2], weights: [f64; 2]) -> Edge {
    let [from, to] = models;
    Edge { modes, map: Bijection::new(from, to).unwrap(), weights }
}

fn between_wells(noise: f64) -> Box<dyn Move> {
    let mut jump = ModeJump::new(halves(2), vec![edge([0, 1], wells(), [1.0; 2])], 17).unwrap();
    jump.set_noise(noise).unwrap();
    Box::new(jump)
}

fn double_well_2() -> Arc<dyn Density> {
    Arc::new(Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 }))
}

fn observables(x: &[f64]) -> Vec<f64> {
    vec![x[0], x[1], x[1] - 0.5 * x[0]]
}

/// The density that equals q_i in mode i: each mode maps onto the other, and every jump is accepted.
struct Piecewise {
    modes: Modes,
    models: [Arc<dyn Model>; 2],
}

impl Analytic for Piecewise {
    fn dimension(&self) -> usize {
        2
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let mut evaluation = [Evaluation::inside(0.0)];
        self.models[self.modes.of(x).unwrap()].log_density(x, &mut evaluation).unwrap();
        evaluation[0]
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x.copy_from_slice(&[-1.0 + 0.01 * stream.normal(), -0.5]);
    }
}

#[test]
fn identity_where_every_mode_is_the_image_of_the_other() {
    // modes so far apart that no image lies in the wrong mode
    let models = [flow(&[-5.0, -0.5], 0.25, 1), flow(&[5.0, 0.4], 0.35, 2)];
    let target: Arc<dyn Density> = Arc::new(Exact(Piecewise { modes: halves(2), models: models.clone() }));
    let kernel = || -> Box<dyn Move> {
        Box::new(ModeJump::new(halves(2), vec![edge([0, 1], models.clone(), [1.0; 2])], 17).unwrap())
    };
    let experiment = Experiment { kernel: &kernel, target, local: 0.1, observables: |x| x.to_vec() };
    identity(&experiment, &mut Correct).unwrap();
}

#[test]
fn one_shot_invariance_of_jumps_between_two_wells() {
    for noise in [0.0, 0.5] {
        let kernel = || between_wells(noise);
        let experiment = Experiment { kernel: &kernel, target: double_well_2(), local: 0.2, observables };
        one_shot(&experiment, &mut Correct, STARTS).unwrap_or_else(|found| panic!("noise {noise}: {found}"));
    }
}

#[test]
fn jumps_between_wells_are_accepted_and_leave_the_rest_to_the_dynamics() {
    let mut jump = between_wells(0.0);
    let mut target = NegativeLog::new(double_well_2(), 0.0);
    let mut x = [-1.0, -0.5];
    for step in 0..2000 {
        Correct.attempt(jump.as_mut(), &mut target, &mut x, step);
    }
    assert!(jump.statistics().acceptance() > 0.2, "{}", jump.statistics().acceptance());
}

/// Two constrained bonds, with modes of small and large angles, from flows whose latent space is the unit interval:
/// noise steps wrap around it.
#[test]
fn constrained_bonds_are_jumped_with_their_metric_term() {
    // the end-to-end distance at a right angle
    let right = 0.02f64.sqrt();
    let region = |name: &str, range: [f64; 2]| {
        let within = vec![Region { along: Along::Distance([1, 2]), range }];
        ModeRegion { name: name.into(), within, centre: vec![] }
    };
    let p = |noise: f64, metric: bool| {
        let modes = Modes::new(&[], &[region("closed", [0.0, right]), region("open", [right, 1.0])], 9).unwrap();
        let models = [[0.001, 0.6], [0.4, 0.999]].map(angle_within);
        let mut jump = ModeJump::new(modes, vec![edge([0, 1], models, [1.0; 2])], 17).unwrap();
        jump.set_noise(noise).unwrap();
        if metric {
            jump.set_constraints(two_constraints());
        }
        constrained_angles(&mut jump, 30_000)
    };
    for noise in [0.0, 0.3] {
        let with_metric = p(noise, true);
        assert!(with_metric > LEVEL, "noise {noise}: p = {with_metric:.1e}");
    }
    let without = p(0.3, false);
    assert!(without < LEVEL, "leaving the metric term out went unnoticed: p = {without:.1e}");
}

/// Three modes in a row; the two edges from the middle one are chosen with unequal probability, and their weights there
/// differ from those at the ends.
fn three_modes() -> (Arc<dyn Density>, ModeJump) {
    let centres = [[-2.0, 0.0], [0.0, 1.0], [2.0, 0.0]];
    let component = |k: usize, share: f64| (share, centres[k].to_vec(), 0.4);
    let target = GaussianMixture(vec![component(0, 0.2), component(1, 0.5), component(2, 0.3)]);
    let along = [Along::Component(0), Along::Component(1)];
    let region = |k: usize| ModeRegion { name: k.to_string(), within: vec![], centre: centres[k].to_vec() };
    let modes = Modes::new(&along, &[region(0), region(1), region(2)], 2).unwrap();
    let models: Vec<_> = (0..3).map(|k| flow(&centres[k], 0.35, 5 + k as u64)).collect();
    let pair = |i: usize, j: usize| [models[i].clone(), models[j].clone()];
    let edges = vec![edge([0, 1], pair(0, 1), [1.0, 3.0]), edge([1, 2], pair(1, 2), [1.0, 2.0])];
    (Arc::new(Exact(target)), ModeJump::new(modes, edges, 23).unwrap())
}

#[test]
fn one_shot_invariance_with_unequal_choices_among_three_modes() {
    // noise must not depend on the edge chosen
    for noise in [0.0, 0.5] {
        let kernel = || -> Box<dyn Move> {
            let mut jump = three_modes().1;
            jump.set_noise(noise).unwrap();
            Box::new(jump)
        };
        let target = three_modes().0;
        let experiment = Experiment { kernel: &kernel, target, local: 0.1, observables: |x| x.to_vec() };
        one_shot(&experiment, &mut Correct, STARTS).unwrap_or_else(|found| panic!("noise {noise}: {found}"));
    }
}

/// A coordinate with two modes, and three particles in a line whose spread depends on it.
struct Bath;

const SPREAD: [f64; 2] = [0.8, 1.3];

impl Analytic for Bath {
    fn dimension(&self) -> usize {
        4
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let part = |mode: usize, centre: f64| {
            let particles: f64 = x[1..].iter().map(|v| -0.5 * (v / SPREAD[mode]).powi(2) - SPREAD[mode].ln()).sum();
            0.5f64.ln() - 0.5 * ((x[0] - centre) / 0.3).powi(2) + particles
        };
        Evaluation::inside(modejump::weights::log_sum_exp(&[part(0, -1.0), part(1, 1.0)]))
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        let mode = usize::from(stream.uniform() < 0.5);
        x[0] = [-1.0, 1.0][mode] + 0.3 * stream.normal();
        x[1..].iter_mut().for_each(|v| *v = SPREAD[mode] * stream.normal());
    }
}

/// Reference positions, in a different order in each mode.
const REFERENCES: [[f64; 4]; 2] = [[-1.0, -0.8, 0.0, 0.7], [1.0, 1.2, -1.4, 0.2]];

fn bath() -> Box<dyn Move> {
    let models = [flow(&REFERENCES[0], 0.4, 11), flow(&REFERENCES[1], 0.5, 12)];
    let mut jump = ModeJump::new(halves(4), vec![edge([0, 1], models, [1.0; 2])], 29).unwrap();
    let references = REFERENCES.iter().map(|reference| reference.to_vec()).collect();
    jump.set_identical(Identical { dimension: 1, particles: vec![1, 2, 3], references }).unwrap();
    Box::new(jump)
}

/// One labelled particle, and quantities that do not depend on the particles' labels.
fn of_the_bath(x: &[f64]) -> Vec<f64> {
    let mut sorted = x[1..].to_vec();
    sorted.sort_by(f64::total_cmp);
    vec![x[0], x[1], sorted[0], sorted[1], sorted[2] - sorted[0]]
}

#[test]
fn one_shot_invariance_with_identical_particles() {
    let kernel = bath;
    let target: Arc<dyn Density> = Arc::new(Exact(Bath));
    let experiment = Experiment { kernel: &kernel, target, local: 0.1, observables: of_the_bath };
    one_shot(&experiment, &mut Correct, STARTS).unwrap();
}

#[test]
fn a_jump_takes_each_particle_to_its_place_in_the_other_mode() {
    let mut jump = bath();
    let mut target = NegativeLog::new(Arc::new(Exact(Bath)), 0.0);
    // particles 2, 3 and 1 in the first, second and third position
    let mut x = [-1.0, 0.7, -0.8, 0.0];
    let mut jumped = 0;
    for step in 0..50 {
        let outcome = Correct.attempt(jump.as_mut(), &mut target, &mut x, step);
        jumped += usize::from(outcome.accepted());
        let places = [x[2], x[3], x[1]];
        let along = if x[0] < 0.0 { places } else { [places[1], places[2], places[0]] };
        assert!(along.is_sorted(), "{x:?}");
    }
    assert!(jumped > 2, "{jumped}");
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The proposal is not checked to be in the other mode, as in the public code's particle sampler (2021).
    ModeNotChecked,
    LogDetForgotten,
    /// The image of sorted particles is not checked to be sorted.
    OrderNotChecked,
}

/// A shorter reimplementation of a jump along one edge, in which a fault can be planted. With a bath, particles 1 to 3
/// are identical.
struct Faulty {
    fault: Fault,
    edge: Edge,
    modes: Modes,
    bath: bool,
    statistics: Statistics,
}

impl Faulty {
    /// Coordinates sorted by position, as the references are.
    fn order(&self, x: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..x.len()).collect();
        if self.bath {
            order[1..].sort_by(|&i, &j| x[i].total_cmp(&x[j]));
        }
        order
    }
}

impl Move for Faulty {
    fn dimension(&self) -> usize {
        self.edge.map.dimension()
    }
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let mode = self.modes.of(state.x).unwrap();
        let map = if mode == 0 { self.edge.map.clone() } else { self.edge.map.inverse() };
        let nowhere = Evaluation::outside(Status::NonFinite);
        let mut mapped = [Mapped { forward: nowhere, reverse: nowhere }];
        let mut y = vec![0.0; state.x.len()];
        let order = self.order(state.x);
        let sorted: Vec<f64> = order.iter().map(|&i| state.x[i]).collect();
        map.map(&sorted, &mut y, &mut mapped)?;
        let [mut mapped] = mapped;
        if self.fault != Fault::OrderNotChecked && !self.order(&y).is_sorted() {
            mapped.forward = Evaluation::outside(Status::OutOfSupport);
        }
        let image = y.clone();
        order.iter().zip(image).for_each(|(&i, image)| y[i] = image);
        if self.fault != Fault::ModeNotChecked && self.modes.of(&y) == Some(mode) {
            mapped.forward = Evaluation::outside(Status::OutOfSupport);
        }
        if self.fault == Fault::LogDetForgotten {
            [mapped.forward, mapped.reverse] = [Evaluation::inside(0.0); 2];
        }
        let mut u = [0.0];
        target.reduced_potential(&y, &mut u)?;
        let Mapped { forward, reverse } = mapped;
        let uniform = Stream::new(5, StreamId::Accept, state.step, state.replica).uniform();
        let before = state.reduced_potential;
        let test = accept(&Proposal { x: &y, forward, reverse }, before, u[0], uniform);
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(&y);
        }
        Ok(Outcome::of_test(test, (before, reverse), (u[0], forward), state.reduced_potential))
    }
    fn statistics(&self) -> &Statistics {
        &self.statistics
    }
    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}

/// Verdict for the two wells, with maps that often stay in their mode, or for the bath, with maps that often change the
/// order.
fn verdict_of(fault: Fault, bath: bool) -> Verdict {
    let target: Arc<dyn Density> = if bath { Arc::new(Exact(Bath)) } else { double_well_2() };
    let observables = if bath { of_the_bath } else { observables };
    let models = match bath {
        false => [flow(&[-0.4, -0.5], 0.5, 1), flow(&[0.4, 0.4], 0.6, 2)],
        true => [flow(&REFERENCES[0], 0.4, 11), flow(&[1.0, -0.8, 0.2, 0.8], 0.6, 12)],
    };
    let kernel = || -> Box<dyn Move> {
        let (edge, modes) = (edge([0, 1], models.clone(), [1.0; 2]), halves(if bath { 4 } else { 2 }));
        Box::new(Faulty { fault, edge, modes, bath, statistics: Statistics::default() })
    };
    one_shot(&Experiment { kernel: &kernel, target, local: 0.1, observables }, &mut Correct, STARTS)
}

#[test]
fn the_mistakes_that_mode_jumps_invite_are_caught() {
    for bath in [false, true] {
        verdict_of(Fault::None, bath).unwrap_or_else(|found| panic!("the correct jump, bath {bath}: {found}"));
    }
    for (fault, bath) in
        [(Fault::ModeNotChecked, false), (Fault::LogDetForgotten, false), (Fault::OrderNotChecked, true)]
    {
        let verdict = verdict_of(fault, bath);
        println!("{fault:?}: {verdict:?}");
        assert!(verdict.is_err(), "{fault:?} was not found");
    }
}

/// Coincident atoms have no metric term: the current configuration does not belong to the constrained ensemble.
#[test]
fn a_state_without_a_metric_term_stays_and_is_counted() {
    let to = [1.0, 1.0, 1.0, 1.1, 1.0, 1.0, 1.0, 1.1, 1.0];
    let models = [[-1.0; 9], to].map(|mean| -> Arc<dyn Model> { Arc::new(of_layers(9, vec![stretch(&mean, 0.5)])) });
    let mut jump = ModeJump::new(halves(9), vec![edge([0, 1], models, [1.0; 2])], 1).unwrap();
    jump.set_constraints(two_constraints());
    let mut target = NegativeLog::new(Arc::new(Exact(Trimer { width: 0.3, target: true })), 0.0);
    let mut x = [-1.0; 9];
    let outcome = Correct.attempt(&mut jump, &mut target, &mut x, 0);
    assert_eq!((outcome.fate, outcome.log_acceptance, x), (Fate::Singular, f64::NEG_INFINITY, [-1.0; 9]));
    assert_eq!(jump.statistics().expected_acceptance().value, 0.0);
}

#[test]
fn a_state_in_no_mode_stays_and_is_counted() {
    let regions = [half("left", [-9.0, -0.5]), half("right", [0.5, 9.0])];
    let modes = Modes::new(&[], &regions, 2).unwrap();
    let mut jump = ModeJump::new(modes, vec![edge([0, 1], wells(), [1.0; 2])], 1).unwrap();
    let mut target = NegativeLog::new(double_well_2(), 0.0);
    let mut x = [0.1, 0.2];
    let outcome = Correct.attempt(&mut jump, &mut target, &mut x, 0);
    assert_eq!((outcome.fate, outcome.log_acceptance, x), (Fate::WrongMode, f64::NEG_INFINITY, [0.1, 0.2]));
    assert_eq!((jump.statistics().count(Fate::WrongMode), jump.statistics().attempts()), (1, 1));
    assert_eq!(jump.counts()[0].attempts, [0, 0]);
}

#[test]
fn edges_that_make_no_sense_are_refused() {
    let refusal = |edges: Vec<Edge>| ModeJump::new(halves(2), edges, 1).err().unwrap().to_string();
    assert!(refusal(vec![]).contains("require at least one edge"));
    assert!(refusal(vec![edge([1, 1], wells(), [1.0; 2])]).contains("joins modes 1 and 1 of 2"));
    assert!(refusal(vec![edge([0, 2], wells(), [1.0; 2])]).contains("joins modes 0 and 2 of 2"));
    assert!(refusal(vec![edge([0, 1], wells(), [1.0, 0.0])]).contains("positive"));
    let mut jump = ModeJump::new(halves(2), vec![edge([0, 1], wells(), [1.0; 2])], 1).unwrap();
    assert!(jump.set_noise(-1.0).is_err() && jump.set_noise(f64::NAN).is_err());
    let short = Identical { dimension: 1, particles: vec![0, 1], references: vec![vec![0.0; 2]] };
    assert!(jump.set_identical(short).unwrap_err().to_string().contains("reference"));
    // a jump that omits a particle cannot be reversed
    for (particles, reason) in [(vec![1, 0, 1], "particle 1 appears twice"), (vec![usize::MAX, 1], "out of range")] {
        let identical = Identical { dimension: 1, particles, references: Vec::new() };
        assert!(jump.set_identical(identical).unwrap_err().to_string().contains(reason), "{reason}");
    }
}
