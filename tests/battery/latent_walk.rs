//! Walks in latent space: identity, invariance, boxes and constraints, and detection of typical mistakes.

use crate::guards::{identity, one_shot, Correct, Driver, Experiment, Verdict};
use crate::moves::{constrained_angles, systems, two_constraints, System};
use crate::statistics::LEVEL;
use crate::systems::*;
use modejump::coordinates::vector::{add, atom, cross, dot, scale, set_atom, sub, unit};
use modejump::coordinates::CoordinatesConfig;
use modejump::density::{Density, Evaluation};
use modejump::error::Result;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use modejump::models::{Flow, Model, ModelCard};
use modejump::moves::{accept, Fate, LatentWalk, LatentWalkOptions, Move, Outcome, Proposal, State, Statistics};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

const STARTS: usize = 20_000;
/// Fewer starts than for random walks: trajectories cost more and are tested just as well.
const STARTS_OF_TRAJECTORIES: usize = 6_000;

fn spline(i: usize, others: Vec<usize>) -> LayerConfig {
    LayerConfig::Spline {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: others },
        ends: Ends::Free,
        bins: 4,
        interval: [0.0, 1.0],
        hidden: vec![6],
        activation: Activation::Silu,
        identity_init: true,
    }
}

fn affine(i: usize, others: Vec<usize>) -> LayerConfig {
    LayerConfig::Affine {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: others },
        hidden: vec![6],
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume: false,
    }
}

/// A flow with random weights: not a useful generator, but a map with a Jacobian.
fn flow(config: CouplingConfig, coordinates: CoordinatesConfig) -> Arc<dyn Model> {
    let mut flow = CouplingFlow::<f64>::new(ModelCard::of_coupling(config, coordinates)).unwrap();
    let mut stream = Stream::new(11, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|w| *w = 0.5 * stream.normal());
    Arc::new(flow)
}

/// Two coordinates, both uniform, on a square.
fn square() -> Arc<dyn Model> {
    let stretch = LayerConfig::Uniform { transformed: vec![0, 1], low: vec![-3.0; 2], high: vec![3.0; 2] };
    let layers = vec![spline(0, vec![1]), spline(1, vec![0]), stretch];
    flow(CouplingConfig { uniform: vec![0, 1], layers }, CoordinatesConfig::Cartesian { dimension: 2 })
}

/// Three coordinates, the first uniform, the others normal.
fn mixed() -> Arc<dyn Model> {
    let stretch = LayerConfig::Uniform { transformed: vec![0], low: vec![-5.0], high: vec![5.0] };
    let layers = vec![spline(0, vec![1, 2]), affine(1, vec![0, 2]), affine(2, vec![0, 1]), stretch];
    flow(CouplingConfig { uniform: vec![0], layers }, CoordinatesConfig::Cartesian { dimension: 3 })
}

/// Three atoms with the bonds 0–1 and 0–2, constrained to 0.1 nm if `kept`.
fn three_atoms(kept: bool) -> CoordinatesConfig {
    CoordinatesConfig::Internal {
        frame: [1, 0, 2],
        rows: vec![],
        normalize_angles: true,
        constraints: if kept { vec![(0, 1, 0.1), (0, 2, 0.1)] } else { vec![] },
        stereocentres: vec![],
        cartesian: vec![],
    }
}

fn uniform(low: Vec<f64>, high: Vec<f64>) -> LayerConfig {
    LayerConfig::Uniform { transformed: (0..low.len()).collect(), low, high }
}

/// Both bonds and their angle, all uniform.
fn bent() -> Arc<dyn Model> {
    let stretch = uniform(vec![0.05, 0.05, 0.01], vec![0.15, 0.15, 0.99]);
    let layers = vec![spline(0, vec![1, 2]), spline(2, vec![0, 1]), spline(1, vec![0, 2]), stretch];
    flow(CouplingConfig { uniform: vec![0, 1, 2], layers }, three_atoms(false))
}

/// The angle alone, uniform in this range in units of π.
pub fn angle_within([low, high]: [f64; 2]) -> Arc<dyn Model> {
    flow(CouplingConfig { uniform: vec![0], layers: vec![uniform(vec![low], vec![high])] }, three_atoms(true))
}

/// Systems of the battery, each with a flow for the walk.
fn cases() -> Vec<(System, Arc<dyn Model>)> {
    let flows = [("double well in two dimensions", square()), ("Gaussian mixture", mixed()), ("bent molecule", bent())];
    let system = |name: &str| systems().into_iter().find(|s| s.name == name).unwrap();
    flows.into_iter().map(|(name, flow)| (system(name), flow)).collect()
}

fn walk(model: &Arc<dyn Model>, widths: &[f64], leapfrog: usize) -> LatentWalk {
    LatentWalk::new(model, LatentWalkOptions { widths: widths.to_vec(), leapfrog, seed: 31 }).unwrap()
}

#[test]
fn one_shot_invariance_of_latent_walks() {
    let kinds = [(&[0.01, 0.06, 0.4][..], 0, STARTS), (&[0.005, 0.02], 3, STARTS_OF_TRAJECTORIES)];
    let mut failures = Vec::new();
    for (system, model) in cases() {
        for (widths, leapfrog, starts) in kinds {
            let experiment = Experiment {
                kernel: &|| Box::new(walk(&model, widths, leapfrog)),
                target: system.target.clone(),
                local: system.local,
                observables: system.observables,
            };
            if let Err(found) = one_shot(&experiment, &mut Correct, starts) {
                failures.push(format!("{leapfrog} leapfrog steps on {}: {found}", system.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Both kinds of walk are accepted often enough for the invariance test above to be meaningful.
#[test]
fn latent_walks_move() {
    for (system, model) in cases() {
        for leapfrog in [0, 3] {
            let mut kernel = walk(&model, &[0.02], leapfrog);
            let mut target = NegativeLog::new(system.target.clone(), 0.0);
            let mut x = vec![0.0; kernel.dimension()];
            system
                .target
                .sample(&|_| Stream::new(1, StreamId::Test, 0, 0), &mut x, &mut [Evaluation::inside(0.0)])
                .unwrap();
            for step in 0..400 {
                Correct.attempt(&mut kernel, &mut target, &mut x, step);
            }
            let acceptance = kernel.statistics().acceptance();
            assert!((0.2..1.0).contains(&acceptance), "{} {leapfrog}: {acceptance}", system.name);
        }
    }
}

/// With a uniform prior the model's log-density is −ln|∂x/∂z|, so with the model as target every step has log α = 0.
#[test]
fn identity_of_a_walk_with_a_uniform_prior() {
    for (model, local) in [(square(), 0.05), (bent(), 0.0005)] {
        let experiment = identity_on(&model, local);
        let kernel = || -> Box<dyn Move> { Box::new(walk(&model, &[0.05, 0.3], 0)) };
        identity(&Experiment { kernel: &kernel, ..experiment }, &mut Correct).unwrap();
    }
}

fn identity_on(model: &Arc<dyn Model>, local: f64) -> Experiment<'static> {
    let target: Arc<dyn Density> = model.clone();
    Experiment { kernel: &|| unreachable!("a kernel is given"), target, local, observables: |x| x.to_vec() }
}

/// log α depends only on the two ends, and swapping them negates it.
#[test]
fn reverse_swapping_the_ends_of_a_walk_negates_log_alpha() {
    for (system, model) in cases() {
        let flow = model.flow().unwrap();
        let mut kernel = walk(&model, &[0.02, 0.1], 0);
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let mut x = vec![0.0; kernel.dimension()];
        system
            .target
            .sample(&|_| Stream::new(1, StreamId::Test, 0, 0), &mut x, &mut [Evaluation::inside(0.0)])
            .unwrap();
        let log_det = |x: &[f64]| {
            let (mut z, mut log_det) = (vec![0.0; flow.latent_dimension()], [0.0]);
            flow.encode(x, &mut z, &mut log_det, &mut [Evaluation::inside(0.0)]).unwrap();
            log_det[0]
        };
        let mut accepted = 0;
        for step in 0..200 {
            let before = x.clone();
            let outcome = Correct.attempt(&mut kernel, &mut target, &mut x, step);
            if outcome.accepted() {
                accepted += 1;
                let there = -target.u(&x) + target.u(&before) + log_det(&x) - log_det(&before);
                assert!(
                    (outcome.log_acceptance - there).abs() < 1e-8,
                    "{}: {} {there}",
                    system.name,
                    outcome.log_acceptance
                );
            }
        }
        assert!(accepted > 20, "{accepted}");
    }
}

/// A molecule split across the box gives the same decisions and the same frame, and is whole after an acceptance.
#[test]
fn a_walk_keeps_the_frame_and_makes_molecules_whole() {
    let (system, model) = cases().pop().unwrap();
    let box_vectors = [[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.4, 0.8]];
    let whole = [0.3, -0.2, 0.5, 0.34, -0.12, 0.55, 0.25, -0.12, 0.46];
    let mut cut = whole;
    for i in [1, 2] {
        let moved = add(atom(&cut, i), scale(2.0, box_vectors[i]));
        set_atom(&mut cut, i, moved);
    }
    let axes = |x: &[f64]| {
        let z = unit(sub(atom(x, 0), atom(x, 1)));
        (z, unit(cross(z, sub(atom(x, 2), atom(x, 1)))))
    };
    for leapfrog in [0, 2] {
        let (mut a, mut b) = (walk(&model, &[0.05], leapfrog), walk(&model, &[0.05], leapfrog));
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let mut accepted = 0;
        for step in 0..100 {
            let (mut x, mut y) = (whole, cut);
            let reduced_potential = target.u(&whole);
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step, replica: 0 };
            let one = a.attempt(&mut target, &mut state).unwrap();
            let mut state = State { x: &mut y, box_vectors: Some(box_vectors), reduced_potential, step, replica: 0 };
            let other = b.attempt(&mut target, &mut state).unwrap();
            assert_eq!(one.fate, other.fate);
            if one.fate != Fate::Accepted {
                assert!(x == whole && y == cut, "a rejected molecule must keep its images, bit for bit");
                continue;
            }
            accepted += 1;
            assert!((one.log_acceptance - other.log_acceptance).abs() < 1e-8);
            let (was, is, of_cut) = (axes(&whole), axes(&x), axes(&y));
            assert!(dot(was.0, is.0) > 1.0 - 1e-12 && dot(was.1, is.1) > 1.0 - 1e-12, "the frame turned");
            assert!(dot(was.0, of_cut.0) > 1.0 - 1e-12 && sub(atom(&y, 0), atom(&y, 1)).iter().all(|d| d.abs() < 0.2));
        }
        assert!(accepted > 10, "{accepted}");
    }
}

#[test]
fn constrained_bonds_are_walked_with_their_metric_term() {
    let model = angle_within([0.001, 0.999]);
    let with_metric = |metric: bool| {
        let mut kernel = walk(&model, &[0.3], 0);
        if metric {
            kernel.set_constraints(two_constraints());
        }
        constrained_angles(&mut kernel, 30_000)
    };
    let p = with_metric(true);
    assert!(p > LEVEL, "p = {p:.1e}");
    let p = with_metric(false);
    assert!(p < LEVEL, "leaving the metric term out went unnoticed: p = {p:.1e}");
}

/// Faults specific to latent walks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// log α = −Δu.
    JacobianForgotten,
    /// The walk continues from the z of the last attempt, although dynamics has moved x since.
    ZOfTheLastAttempt,
}

/// A shorter reimplementation of the walk in which a fault can be planted.
struct Sketch {
    model: Arc<dyn Model>,
    fault: Fault,
    last: Option<(Vec<f64>, f64)>,
    statistics: Statistics,
}

impl Sketch {
    fn boxed(model: &Arc<dyn Model>, fault: Fault) -> Box<dyn Move> {
        Box::new(Sketch { model: model.clone(), fault, last: None, statistics: Statistics::default() })
    }

    fn flow(&self) -> &dyn Flow {
        self.model.flow().unwrap()
    }

    fn encoded(&self, x: &[f64]) -> (Vec<f64>, f64) {
        let (mut z, mut log_det) = (vec![0.0; self.flow().latent_dimension()], [0.0]);
        self.flow().encode(x, &mut z, &mut log_det, &mut [Evaluation::inside(0.0)]).unwrap();
        (z, log_det[0])
    }
}

impl Move for Sketch {
    fn dimension(&self) -> usize {
        self.model.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let fresh = self.encoded(state.x);
        let (z, log_det) = match (self.fault, self.last.take()) {
            (Fault::ZOfTheLastAttempt, Some(last)) => last,
            _ => fresh,
        };
        let mut stream = Stream::new(5, StreamId::Latent, state.step, 0);
        let to: Vec<f64> = z.iter().map(|z| (z + 0.05 * stream.normal()).rem_euclid(1.0)).collect();
        let (mut x, mut log_det_to, mut u) = (vec![0.0; state.x.len()], [0.0], [0.0]);
        self.flow().generate(&to, &mut x, &mut log_det_to, &mut [Evaluation::inside(0.0)])?;
        target.reduced_potential(&x, &mut u)?;
        let factor = if self.fault == Fault::JacobianForgotten { 0.0 } else { -1.0 };
        let (forward, reverse) = (Evaluation::inside(factor * log_det_to[0]), Evaluation::inside(factor * log_det));
        let proposal = Proposal { x: &x, forward, reverse };
        let before = state.reduced_potential;
        let test = accept(&proposal, before, u[0], stream.uniform());
        self.last = Some((z, log_det));
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(&x);
            state.reduced_potential = u[0];
            self.last = Some((to, log_det_to[0]));
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

fn guarded(fault: Fault) -> [Verdict; 2] {
    let (system, model) = cases().remove(0);
    let kernel = || Sketch::boxed(&model, fault);
    let of_identity = Experiment { kernel: &kernel, ..identity_on(&model, 0.05) };
    let of_one_shot = Experiment {
        kernel: &kernel,
        target: system.target.clone(),
        local: system.local,
        observables: system.observables,
    };
    [identity(&of_identity, &mut Correct), one_shot(&of_one_shot, &mut Correct, STARTS)]
}

#[test]
fn mistakes_of_latent_walks_are_caught() {
    for verdict in guarded(Fault::None) {
        verdict.unwrap();
    }
    for fault in [Fault::JacobianForgotten, Fault::ZOfTheLastAttempt] {
        for (guard, verdict) in ["identity", "one shot"].iter().zip(guarded(fault)) {
            assert!(verdict.is_err(), "{fault:?} went unnoticed by {guard}");
        }
    }
}
