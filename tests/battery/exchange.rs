//! Learned replica exchange: identity, reversal, invariance of the pair of ensembles, and detection of a forgotten
//! determinant.

use crate::moves::{systems, System};
use crate::statistics::{ks_two_sample, LEVEL};
use crate::systems::*;
use modejump::bijection::Bijection;
use modejump::coordinates::constraints::Constraints;
use modejump::coordinates::vector::{add, atom, scale, set_atom};
use modejump::coordinates::CoordinatesConfig;
use modejump::density::{Density, Evaluation, Exactness, Scope};
use modejump::error::Result;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::{Flow, Model, ModelCard};
use modejump::moves::{Exchange, ExchangeOutcome, Fate, Move, RandomWalk, State};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

const STARTS: usize = 20_000;

/// A model whose log q is an estimate.
struct Estimated(Arc<dyn Model>);

impl Density for Estimated {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Estimated
    }
    fn scope(&self) -> Scope {
        self.0.scope()
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.sample(streams, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.log_density(x, e)
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.0.log_density_gradient(x, e, gradient)
    }
}

impl Model for Estimated {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }
    fn hash(&self) -> &str {
        self.0.hash()
    }
    fn flow(&self) -> Option<&dyn Flow> {
        self.0.flow()
    }
}

#[test]
fn maps_are_made_of_exact_models_only() {
    let one = || flow(CoordinatesConfig::Cartesian { dimension: 2 }, &[0.0; 2], &[1.0; 2], 0.1, 3);
    assert!(Bijection::new(one(), one()).is_ok());
    for (from, to) in [(one(), Arc::new(Estimated(one())) as Arc<dyn Model>), (Arc::new(Estimated(one())), one())] {
        let refused = Bijection::new(from, to).err().unwrap().to_string();
        assert!(refused.contains(Exactness::Estimated.name()), "{refused}");
    }
}

/// Two ensembles with exact draws, and flows whose composition maps one to the other, poorly.
struct Pair {
    name: &'static str,
    targets: [Arc<dyn Density>; 2],
    flows: [Arc<dyn Model>; 2],
    local: f64,
    observables: fn(&[f64]) -> Vec<f64>,
}

fn affine(transformed: usize, plain: Vec<usize>) -> LayerConfig {
    LayerConfig::Affine {
        transformed: vec![transformed],
        features: Features { periodic: vec![], harmonics: 1, plain },
        hidden: vec![8],
        activation: Activation::Tanh,
        scale_activation: None,
        preserve_volume: false,
    }
}

/// Affine couplings with random parameters, if there is more than one coordinate, then the mean and width of every
/// coordinate.
fn flow(coordinates: CoordinatesConfig, mean: &[f64], width: &[f64], strength: f64, seed: u64) -> Arc<dyn Model> {
    let d = mean.len();
    let coupled = if d > 1 { 0..d } else { 0..0 };
    let mut layers: Vec<LayerConfig> = coupled.rev().map(|i| affine(i, (0..d).filter(|&j| j != i).collect())).collect();
    let matrix = (0..d * d).map(|k| if k % (d + 1) == 0 { width[k / d] } else { 0.0 }).collect();
    layers.push(LayerConfig::Whiten { transformed: (0..d).collect(), mean: mean.to_vec(), matrix });
    let card = ModelCard::of_coupling(CouplingConfig { uniform: vec![], layers }, coordinates);
    let mut flow = CouplingFlow::<f64>::new(card).unwrap();
    flow.initialise(seed);
    let mut stream = Stream::new(seed, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p += strength * stream.normal());
    Arc::new(flow)
}

fn of_three_atoms(constraints: Vec<(usize, usize, f64)>) -> CoordinatesConfig {
    CoordinatesConfig::Internal {
        frame: [1, 0, 2],
        rows: vec![],
        normalize_angles: true,
        constraints,
        stereocentres: vec![],
        cartesian: vec![],
    }
}

fn bent(modes: &'static [(f64, f64, f64)], width: f64) -> Arc<dyn Density> {
    let bond = |mean: f64| Table::new(0.05, 0.2, move |r| -0.5 * ((r - mean) / width).powi(2));
    let angle = Table::new(0.0, std::f64::consts::PI, |t| log_normal_mixture(modes, t) + t.sin().ln());
    Arc::new(Exact(Bent { bonds: Some([bond(0.1), bond(0.11)]), rigid: 0.0, angle, oriented: false }))
}

fn pairs() -> Vec<Pair> {
    let plane = || CoordinatesConfig::Cartesian { dimension: 2 };
    vec![
        Pair {
            name: "plane",
            targets: [
                Arc::new(Exact(DoubleWell2 { well: double_well(-0.2), width: 0.4 })),
                Arc::new(Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 })),
            ],
            flows: [flow(plane(), &[0.0, 0.0], &[1.0, 0.4], 0.1, 1), flow(plane(), &[0.0, 0.0], &[0.95, 0.32], 0.1, 2)],
            local: 0.2,
            observables: |x| vec![x[0], x[1], x[1] - 0.5 * x[0]],
        },
        Pair {
            name: "bent molecules",
            targets: [
                bent(&[(0.5, 1.2, 0.25), (0.5, 2.1, 0.3)], 0.007),
                bent(&[(0.3, 1.2, 0.15), (0.7, 2.1, 0.15)], 0.004),
            ],
            flows: [
                flow(of_three_atoms(vec![]), &[0.1, 0.11, 0.5], &[0.007, 0.007, 0.15], 0.1, 3),
                flow(of_three_atoms(vec![]), &[0.101, 0.11, 0.52], &[0.004, 0.004, 0.13], 0.1, 4),
            ],
            local: 0.003,
            observables: |x| [&Bent::internal(x)[..], &[x[0], (x[3] - x[0]) * (x[4] - x[1])]].concat(),
        },
    ]
}

fn map(flows: &[Arc<dyn Model>; 2]) -> Bijection {
    Bijection::new(flows[0].clone(), flows[1].clone()).unwrap()
}

/// Makes one attempt, with the reduced potentials evaluated by the driver.
fn attempt(
    exchange: &mut Exchange,
    [target_a, target_b]: &mut [NegativeLog; 2],
    [a, b]: [&mut [f64]; 2],
    step: u64,
) -> ExchangeOutcome {
    let u = [target_a.u(a), target_b.u(b)];
    let mut a = State { x: a, box_vectors: None, reduced_potential: u[0], step, replica: 0 };
    let mut b = State { x: b, box_vectors: None, reduced_potential: u[1], step, replica: 1 };
    exchange.attempt([target_a, target_b], [&mut a, &mut b]).unwrap()
}

fn draw(density: &Arc<dyn Density>, seed: u64, row: u64, replica: u32) -> Vec<f64> {
    let mut x = vec![0.0; density.dimension()];
    density
        .sample(&|_| Stream::new(seed, StreamId::Test, row, replica), &mut x, &mut [Evaluation::inside(0.0)])
        .unwrap();
    x
}

fn targets(densities: &[Arc<dyn Density>; 2]) -> [NegativeLog; 2] {
    [NegativeLog::new(densities[0].clone(), -2.0), NegativeLog::new(densities[1].clone(), 1.0)]
}

/// Tests that exact draws of both ensembles remain exact after exchange, local steps, exchange. Returns the smallest p
/// and the acceptance.
fn one_shot(pair: &Pair, flows: &[Arc<dyn Model>; 2], carry_frames: bool, starts: usize) -> (f64, f64) {
    let mut exchange = Exchange::new(map(flows), 31);
    exchange.carry_frames(carry_frames);
    let mut targets = targets(&pair.targets);
    let mut walk = RandomWalk::new(map(flows).dimension(), pair.local, 78).unwrap();
    let mut found: [[Vec<Vec<f64>>; 2]; 2] = Default::default();
    let mut push = |which: usize, kind: usize, row: Vec<f64>| {
        let columns = &mut found[which][kind];
        columns.resize(row.len(), Vec::new());
        columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
    };
    for start in 0..starts as u64 {
        let mut x: [Vec<f64>; 2] = std::array::from_fn(|i| draw(&pair.targets[i], 6, start, i as u32));
        for k in 0..2 {
            let [a, b] = &mut x;
            attempt(&mut exchange, &mut targets, [a, b], 2 * start + k);
            for (i, x) in x.iter_mut().enumerate() {
                let reduced_potential = targets[i].u(x);
                let step = 2 * start + k;
                let mut state = State { x, box_vectors: None, reduced_potential, step, replica: i as u32 };
                walk.attempt(&mut targets[i], &mut state).unwrap();
            }
        }
        for (i, x) in x.iter().enumerate() {
            push(i, 0, (pair.observables)(x));
            for k in 0..3 {
                push(i, 1, (pair.observables)(&draw(&pair.targets[i], 7, start, 3 * k + i as u32)));
            }
        }
    }
    let columns = found.iter().flat_map(|[after, exact]| after.iter().zip(exact));
    let p = columns.map(|(after, exact)| ks_two_sample(after, exact)).fold(1.0, f64::min);
    (p, exchange.statistics().acceptance())
}

#[test]
fn one_shot_invariance_of_both_ensembles() {
    for pair in pairs() {
        for carry_frames in [false, true] {
            let (p, acceptance) = one_shot(&pair, &pair.flows, carry_frames, STARTS);
            assert!(p > LEVEL, "{}: p = {p:.1e}", pair.name);
            assert!((0.1..0.9).contains(&acceptance), "{}: {acceptance}", pair.name);
        }
    }
}

/// A flow that forgets the determinant of its map.
struct Forgetful(Arc<dyn Model>);

impl Density for Forgetful {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn exactness(&self) -> Exactness {
        self.0.exactness()
    }
    fn scope(&self) -> Scope {
        self.0.scope()
    }
    fn sample(&self, s: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.sample(s, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.log_density(x, e)
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], g: &mut [f64]) -> Result<()> {
        self.0.log_density_gradient(x, e, g)
    }
}

impl Flow for Forgetful {
    fn latent_dimension(&self) -> usize {
        self.0.flow().unwrap().latent_dimension()
    }
    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.flow().unwrap().generate(z, x, log_det, e)?;
        log_det.fill(0.0);
        Ok(())
    }
    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.flow().unwrap().encode(x, z, log_det, e)?;
        log_det.fill(0.0);
        Ok(())
    }
}

impl Model for Forgetful {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }
    fn hash(&self) -> &str {
        self.0.hash()
    }
    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }
}

#[test]
fn a_forgotten_determinant_is_caught() {
    for pair in pairs() {
        let forgetful = pair.flows.clone().map(|flow| -> Arc<dyn Model> { Arc::new(Forgetful(flow)) });
        let (p, _) = one_shot(&pair, &forgetful, false, 2 * STARTS);
        assert!(p < LEVEL, "{}: went unnoticed, p = {p:.1e}", pair.name);
    }
}

#[test]
fn with_one_target_and_the_identity_every_exchange_is_a_swap() {
    for pair in pairs() {
        let one = [pair.targets[0].clone(), pair.targets[0].clone()];
        let mut exchange = Exchange::new(map(&[pair.flows[0].clone(), pair.flows[0].clone()]), 3);
        let mut targets = [NegativeLog::new(one[0].clone(), 3.0), NegativeLog::new(one[1].clone(), 3.0)];
        for step in 0..50 {
            let (x, y) = (draw(&one[0], 5, step, 0), draw(&one[1], 5, step, 1));
            let (mut a, mut b) = (x.clone(), y.clone());
            let outcome = attempt(&mut exchange, &mut targets, [&mut a, &mut b], step);
            assert!(outcome.log_acceptance.abs() < 1e-7 && outcome.accepted(), "{}: {outcome:?}", pair.name);
            if pair.name == "plane" {
                assert!(a.iter().zip(&y).chain(b.iter().zip(&x)).all(|(a, b)| (a - b).abs() < 1e-9));
            } else {
                // shapes are exchanged; the atom at the origin stays
                let shapes = Bent::internal(&a).into_iter().zip(Bent::internal(&y));
                assert!(shapes
                    .chain(Bent::internal(&b).into_iter().zip(Bent::internal(&x)))
                    .all(|(a, b)| (a - b).abs() < 1e-9));
                assert!(a[3..6] == x[3..6] && b[3..6] == y[3..6]);
            }
        }
    }
}

#[test]
fn a_second_exchange_undoes_the_first_and_negates_log_alpha() {
    for pair in pairs() {
        let mut exchange = Exchange::new(map(&pair.flows), 3);
        let mut targets = targets(&pair.targets);
        let mut seen = 0;
        for step in 0..200 {
            let (x, y) = (draw(&pair.targets[0], 5, step, 0), draw(&pair.targets[1], 5, step, 1));
            let (mut a, mut b) = (x.clone(), y.clone());
            let there = attempt(&mut exchange, &mut targets, [&mut a, &mut b], step);
            if !there.accepted() {
                assert!(a == x && b == y, "a rejected exchange leaves both alone, bit for bit");
                continue;
            }
            let sum: f64 = there.log_weights.iter().sum();
            assert!((sum - there.log_acceptance).abs() < 1e-9);
            assert!((there.reduced_potentials[1] - targets[1].u(&b)).abs() < 1e-12);
            let back = attempt(&mut exchange, &mut targets, [&mut a, &mut b], 1000 + step);
            assert!((there.log_acceptance + back.log_acceptance).abs() < 1e-6, "{}: {there:?} {back:?}", pair.name);
            if back.accepted() {
                assert!(a.iter().zip(&x).chain(b.iter().zip(&y)).all(|(a, b)| (a - b).abs() < 1e-8));
                seen += 1;
            }
        }
        assert!(seen > 5, "{}: {seen}", pair.name);
        assert_eq!(exchange.statistics().proposals(), exchange.statistics().attempts());
    }
}

/// With bonds constrained by the engine, the Metropolis test includes the metric terms of both configurations; without
/// them the pair is biased.
#[test]
fn constrained_bonds_have_their_metric_term() {
    let masses = [1.0, 10.0, 10.0];
    let metric = |t: f64| 0.5 * (1.1f64 * 1.1 - t.cos() * t.cos()).ln();
    let potentials: [fn(f64) -> f64; 2] = [|t| 1.5 * t.cos(), |t| 8.0 * (t - 1.2).powi(2)];
    let exact = potentials.map(|u| {
        let angle = Table::new(0.0, std::f64::consts::PI, move |t| t.sin().ln() - u(t) + metric(t));
        Arc::new(Exact(Bent { bonds: None, rigid: 0.1, angle, oriented: false }))
    });
    struct Angle(fn(f64) -> f64);
    impl Target for Angle {
        fn dimension(&self) -> usize {
            9
        }
        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            u.iter_mut().zip(x.chunks_exact(9)).for_each(|(u, x)| *u = (self.0)(Bent::internal(x)[2]));
            Ok(())
        }
        fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
            unreachable!("no gradient is asked for here")
        }
    }
    let rigid = || of_three_atoms(vec![(0, 1, 0.1), (0, 2, 0.1)]);
    let flows = [flow(rigid(), &[0.6], &[0.2], 0.0, 5), flow(rigid(), &[0.4], &[0.1], 0.0, 6)];
    // also records for each start log α and, where accepted, the change of the metric terms
    let p_value = |with_metric: bool| {
        let mut exchange = Exchange::new(map(&flows), 7);
        if with_metric {
            let constraints = |length: f64| Constraints::new(&[[0, 1], [0, 2]], &[0.1, length], &masses).unwrap();
            assert!(exchange.set_constraints(Some(constraints(0.12))).unwrap_err().to_string().contains("0.12"));
            exchange.set_constraints(Some(constraints(0.1))).unwrap();
        }
        let (mut found, mut tests): ([[Vec<f64>; 2]; 2], _) = (Default::default(), Vec::new());
        for start in 0..2 * STARTS as u64 {
            let mut x = [vec![0.0; 9], vec![0.0; 9]];
            for (i, x) in x.iter_mut().enumerate() {
                exact[i].0.draw(&mut Stream::new(1, StreamId::Test, start, i as u32), x);
                let mut fresh = vec![0.0; 9];
                for k in 0..3 {
                    exact[i].0.draw(&mut Stream::new(2, StreamId::Test, start, 3 * k + i as u32), &mut fresh);
                    found[i][1].push(Bent::internal(&fresh)[2]);
                }
            }
            let metrics = |x: &[Vec<f64>; 2]| x.iter().map(|x| metric(Bent::internal(x)[2])).sum::<f64>();
            let before = metrics(&x);
            let [x_a, x_b] = &mut x;
            let (u_a, u_b) = (potentials[0](Bent::internal(x_a)[2]), potentials[1](Bent::internal(x_b)[2]));
            let mut a = State { x: x_a, box_vectors: None, reduced_potential: u_a, step: start, replica: 0 };
            let mut b = State { x: x_b, box_vectors: None, reduced_potential: u_b, step: start, replica: 1 };
            let targets: [&mut dyn Target; 2] = [&mut Angle(potentials[0]), &mut Angle(potentials[1])];
            let outcome = exchange.attempt(targets, [&mut a, &mut b]).unwrap();
            assert_eq!(outcome.reduced_potentials, [a.reduced_potential, b.reduced_potential]);
            for (state, potential) in [&a, &b].into_iter().zip(potentials) {
                let u = potential(Bent::internal(state.x)[2]);
                assert!((state.reduced_potential - u).abs() < 1e-9, "{} is not {u}", state.reduced_potential);
            }
            tests.push((outcome.log_acceptance, outcome.accepted().then(|| metrics(&x) - before)));
            x.iter().zip(&mut found).for_each(|(x, found)| found[0].push(Bent::internal(x)[2]));
        }
        (found.iter().map(|[after, exact]| ks_two_sample(after, exact)).fold(1.0, f64::min), tests)
    };
    let (p, with) = p_value(true);
    assert!(p > LEVEL, "p = {p:.1e}");
    let (p, without) = p_value(false);
    for ((log_alpha, change), (plain, _)) in with.iter().zip(&without) {
        let Some(change) = change else { continue };
        assert!((log_alpha - plain - change).abs() < 1e-9, "{log_alpha} is not {plain} + {change}");
    }
    assert!(p < LEVEL, "leaving the metric term out went unnoticed: p = {p:.1e}");
}

#[test]
fn a_cut_molecule_is_made_whole_before_the_exchange() {
    let pair = pairs().pop().unwrap();
    let vectors = [[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.4, 0.8]];
    let mut targets = targets(&pair.targets);
    let (mut accepted, mut rejected) = (0, 0);
    for step in 0..50 {
        let (x, y) = (draw(&pair.targets[0], 5, step, 0), draw(&pair.targets[1], 5, step, 1));
        let mut cut = x.clone();
        let there = add(atom(&cut, 1), scale(2.0, vectors[1]));
        set_atom(&mut cut, 1, there);
        let (u_a, u_b) = (targets[0].u(&x), targets[1].u(&y));
        let mut run = |x: &[f64], box_vectors| {
            let (mut x, mut y) = (x.to_vec(), y.clone());
            let mut a = State { x: &mut x, box_vectors, reduced_potential: u_a, step, replica: 0 };
            let mut b = State { x: &mut y, box_vectors, reduced_potential: u_b, step, replica: 1 };
            let [target_a, target_b] = &mut targets;
            let outcome = Exchange::new(map(&pair.flows), 3).attempt([target_a, target_b], [&mut a, &mut b]).unwrap();
            (outcome, x, y)
        };
        let (whole, in_box) = (run(&x, None), run(&cut, Some(vectors)));
        assert_eq!(whole.0.fate, in_box.0.fate);
        assert!((whole.0.log_acceptance - in_box.0.log_acceptance).abs() < 1e-6);
        match in_box.0.accepted() {
            true => assert!(whole.1.iter().zip(&in_box.1).all(|(a, b)| (a - b).abs() < 1e-9)),
            false => assert!(in_box.1 == cut && in_box.2 == y, "rejected replicas keep their images, bit for bit"),
        }
        accepted += u32::from(in_box.0.accepted());
        rejected += u32::from(!in_box.0.accepted());
    }
    assert!(accepted > 5 && rejected > 5, "{accepted} {rejected}");
}

/// The random number is a function of seed, step and the two replicas.
#[test]
fn an_exchange_is_repeated_bit_for_bit() {
    let pair = &pairs()[0];
    let run = |seed: u64, step: u64, replicas: [u32; 2]| {
        let mut exchange = Exchange::new(map(&pair.flows), seed);
        let mut targets = targets(&pair.targets);
        let fates = (0..40).map(|i| {
            let (mut x, mut y) = (draw(&pair.targets[0], 5, i, 0), draw(&pair.targets[1], 5, i, 1));
            let u = [targets[0].u(&x), targets[1].u(&y)];
            let step = step + i;
            let mut a = State { x: &mut x, box_vectors: None, reduced_potential: u[0], step, replica: replicas[0] };
            let mut b = State { x: &mut y, box_vectors: None, reduced_potential: u[1], step, replica: replicas[1] };
            let [target_a, target_b] = &mut targets;
            exchange.attempt([target_a, target_b], [&mut a, &mut b]).unwrap().accepted()
        });
        fates.collect::<Vec<bool>>()
    };
    let first = run(1, 0, [0, 1]);
    assert_eq!(first, run(1, 0, [0, 1]));
    for other in [run(2, 0, [0, 1]), run(1, 1000, [0, 1]), run(1, 0, [2, 1]), run(1, 0, [0, 2])] {
        assert_ne!(first, other);
    }
}

#[test]
fn what_cannot_be_exchanged_is_refused_or_counted() {
    let pair = &pairs()[1];
    let mut exchange = Exchange::new(map(&pair.flows), 3);
    let mut targets = targets(&pair.targets);
    let (x, y) = (draw(&pair.targets[0], 5, 0, 0), draw(&pair.targets[1], 5, 0, 1));
    let collinear = vec![0.0, 0.0, 0.0, 0.1, 0.0, 0.0, -0.1, 0.0, 0.0];
    let mut run = |x: &[f64], u: f64, replica: u32| {
        let (mut a, mut b) = (x.to_vec(), y.clone());
        let mut first = State { x: &mut a, box_vectors: None, reduced_potential: u, step: 4, replica: 0 };
        let mut second = State { x: &mut b, box_vectors: None, reduced_potential: 1.0, step: 4, replica };
        let [target_a, target_b] = &mut targets;
        let outcome = exchange.attempt([target_a, target_b], [&mut first, &mut second]);
        assert!(b == y && a == x, "the states are untouched");
        outcome
    };
    let outcome = run(&collinear, 0.0, 1).unwrap();
    assert_eq!((outcome.fate, outcome.log_acceptance), (Fate::Singular, f64::NEG_INFINITY));
    assert_eq!(outcome.log_weights[0], f64::NEG_INFINITY);
    for (x, u, replica, message) in [
        (&x[..], f64::NAN, 1, "replica a is NaN"),
        (&x[..], 0.0, 0, "two different replicas"),
        (&x[..6], 0.0, 1, "its state 6"),
    ] {
        let error = run(x, u, replica).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let other: &System = &systems()[0];
    let mut wrong = NegativeLog::new(other.target.clone(), 0.0);
    let mut a = State { x: &mut x.clone(), box_vectors: None, reduced_potential: 0.0, step: 0, replica: 0 };
    let mut b = State { x: &mut y.clone(), box_vectors: None, reduced_potential: 0.0, step: 0, replica: 1 };
    assert!(exchange.attempt([&mut wrong, &mut targets[1]], [&mut a, &mut b]).is_err());
    assert_eq!(exchange.statistics().attempts(), 1);
}
