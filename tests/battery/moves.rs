//! Every move on every system: identity, reversal, one-shot invariance; and tests specific to single moves.

use crate::driven::Aimed;
use crate::guards::{identity, one_shot, Checked, Correct, Driver, Experiment};
use crate::statistics::ks_two_sample;
use crate::systems::*;
use modejump::coordinates::constraints::Constraints;
use modejump::coordinates::vector::{add, atom, centroid, cross, dot, norm, scale, set_atom, shift, sub, unit};
use modejump::density::{Density, Evaluation, Scope};
use modejump::error::{Error, Result};
use modejump::models::{self, Model, Precision};
use modejump::moves::{
    DelayedAcceptance, Fate, Generator, Independence, Isir, Mixture, Move, Options, RandomWalk, State,
};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::trust::Trust;
use std::sync::Arc;

const STARTS: usize = 50_000;

pub struct System {
    pub name: &'static str,
    pub target: Arc<dyn Density>,
    pub generator: Arc<dyn Density>,
    pub local: f64,
    pub observables: fn(&[f64]) -> Vec<f64>,
}

fn bond(mean: f64, width: f64) -> Table {
    Table::new(0.05, 0.15, move |r| -0.5 * ((r - mean) / width).powi(2))
}

fn angles(target: bool) -> Table {
    let modes: &[(f64, f64, f64)] =
        if target { &[(0.3, 1.2, 0.15), (0.7, 2.1, 0.15)] } else { &[(0.6, 1.2, 0.25), (0.4, 2.1, 0.3)] };
    Table::new(0.0, std::f64::consts::PI, move |t| log_normal_mixture(modes, t) + t.sin().ln())
}

pub fn systems() -> Vec<System> {
    let bent = |target: bool| -> Arc<dyn Density> {
        let width = if target { 0.004 } else { 0.006 };
        let bonds = Some([bond(0.1, width), bond(0.11, width)]);
        Arc::new(Exact(Bent { bonds, rigid: 0.0, angle: angles(target), oriented: !target }))
    };
    vec![
        System {
            name: "double well",
            target: Arc::new(Exact(double_well(0.475))),
            generator: Arc::new(Exact(normal_mixture(&[(0.5, -1.0, 0.35), (0.5, 1.0, 0.35)]))),
            local: 0.3,
            observables: |x| x.to_vec(),
        },
        System {
            name: "double well in two dimensions",
            target: Arc::new(Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 })),
            generator: Arc::new(Exact(DoubleWell2 { well: double_well(-0.2), width: 0.4 })),
            local: 0.2,
            observables: |x| vec![x[0], x[1], x[1] - 0.5 * x[0]],
        },
        System {
            name: "Gaussian mixture",
            target: Arc::new(Exact(GaussianMixture(vec![
                (0.3, vec![-1.0, 0.5, 0.0], 0.4),
                (0.7, vec![1.0, 0.0, -0.5], 0.5),
            ]))),
            generator: Arc::new(Exact(GaussianMixture(vec![
                (0.6, vec![-0.9, 0.4, 0.0], 0.5),
                (0.4, vec![1.1, 0.0, -0.3], 0.7),
            ]))),
            local: 0.3,
            observables: |x| vec![x[0], x[1] + x[2], x.iter().map(|v| v * v).sum()],
        },
        System {
            name: "harmonic polymer",
            target: Arc::new(Exact(Polymer { beads: 4, trap: 1.0, bond: 0.4 })),
            generator: Arc::new(Exact(Polymer { beads: 4, trap: 1.1, bond: 0.45 })),
            local: 0.1,
            observables: |x| vec![x[0], x[9] - x[6], (0..3).map(|k| (x[9 + k] - x[k]).powi(2)).sum()],
        },
        System {
            name: "trimer without its centroid",
            target: Arc::new(Exact(Trimer { width: 0.3, target: true })),
            generator: Arc::new(Exact(Trimer { width: 0.4, target: false })),
            local: 0.1,
            observables: |x| vec![x[0] + x[3] + x[6], x[0] - x[3], (x[4] - x[1]).powi(2) + x[8], x[0] * (x[3] + x[6])],
        },
        System {
            name: "trimer whose centroid is noise",
            target: Arc::new(Exact(Trimer { width: 0.3, target: true })),
            generator: Arc::new(Exact(NoisyTrimer { width: 0.35 })),
            local: 0.1,
            observables: |x| vec![x[0] + x[3] + x[6], x[0] - x[3], (x[4] - x[1]).powi(2) + x[8], x[0] * (x[3] + x[6])],
        },
        System {
            name: "generators of two modes in one model",
            target: Arc::new(Exact(GaussianMixture(vec![(0.3, vec![-0.97, -0.4], 0.1), (0.7, vec![0.96, 0.6], 0.1)]))),
            generator: models::load("models/double-well/modes.safetensors").unwrap(),
            local: 0.05,
            observables: |x| vec![x[0], x[1], (x[1] - 0.5 * x[0]).powi(2)],
        },
        System {
            name: "bent molecule",
            target: bent(true),
            generator: bent(false),
            local: 0.003,
            observables: |x| Bent::internal(x).to_vec(),
        },
    ]
}

/// Systems for the identity test. Where the centroid is noise, the generator's own density at the molecule's position
/// is not the one that proposals are drawn from, so the identity does not hold.
pub fn systems_without_noise() -> Vec<System> {
    systems().into_iter().filter(|s| !matches!(s.generator.scope(), Scope::Noisy { .. })).collect()
}

pub fn generator(density: &Arc<dyn Density>, n_proposals: usize, batch: usize) -> Generator {
    let options = Options { n_proposals, seed: 31, stride: 1, batch, draw_ahead: false, partial: false };
    Generator::new(density.clone(), None, options).unwrap()
}

type Kernel = fn(&Arc<dyn Density>, f64) -> Box<dyn Move>;

const KERNELS: [(&str, Kernel); 8] = [
    ("independence", |q, _| Box::new(Independence::new(generator(q, 1, 16)))),
    ("independence with 3 proposals", |q, _| Box::new(Independence::new(generator(q, 3, 4)))),
    ("i-SIR(1)", |q, _| Box::new(Isir::new(generator(q, 1, 8)))),
    ("i-SIR(4)", |q, _| Box::new(Isir::new(generator(q, 4, 5)))),
    ("mixture", |q, local| {
        let walk = RandomWalk::new(q.dimension(), local, 12).unwrap();
        let parts: Vec<(f64, Box<dyn Move>)> =
            vec![(3.0, Box::new(Isir::new(generator(q, 2, 4)))), (2.0, Box::new(walk))];
        Box::new(Mixture::new(parts, 8).unwrap())
    }),
    ("delayed acceptance by a wrong screen", |q, _| delayed(q, Arc::new(WrongScreen(q.clone())), 1)),
    ("delayed acceptance with 3 steps", |q, _| delayed(q, Arc::new(WrongScreen(q.clone())), 3)),
    ("delayed acceptance with 3 steps by a screen that is half believed", |q, _| {
        let trust = Trust { energy: 0.7, density: 0.4 };
        delayed(q, believed(Arc::new(WrongScreen(q.clone())), trust), 3)
    }),
];

pub fn delayed(q: &Arc<dyn Density>, screen: Arc<dyn Density>, steps: usize) -> Box<dyn Move> {
    Box::new(DelayedAcceptance::new(generator(q, steps, 5), screen).unwrap())
}

#[test]
fn one_shot_invariance_of_every_move_on_every_system() {
    let mut failures = Vec::new();
    for system in systems() {
        for (name, kernel) in KERNELS {
            let experiment = Experiment {
                kernel: &|| kernel(&system.generator, system.local),
                target: system.target.clone(),
                local: system.local,
                observables: system.observables,
            };
            if let Err(found) = one_shot(&experiment, &mut Checked, STARTS) {
                failures.push(format!("{name} on {}: {found}", system.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn identity_of_the_independence_move_on_every_system() {
    for system in systems_without_noise() {
        let experiment = Experiment {
            kernel: &|| KERNELS[0].1(&system.generator, 0.0),
            target: system.generator.clone(),
            local: system.local,
            observables: system.observables,
        };
        identity(&experiment, &mut Correct).unwrap_or_else(|found| panic!("{}: {found}", system.name));
    }
}

/// Flows from model files, f64: one of Cartesian coordinates, one of a molecule's shape with a constrained bond.
#[test]
fn identity_of_the_independence_move_on_coupling_flows() {
    let bytes = std::fs::read("models/double-well/generator.safetensors").unwrap();
    let molecule = crate::molecule::four_atoms().to_bytes().unwrap();
    for (bytes, local) in [(bytes, 0.1), (molecule, 0.0)] {
        let model: Arc<dyn Model> = models::from_bytes("test", &bytes, Precision::F64).unwrap();
        let density: Arc<dyn Density> = model.clone();
        let options = Options { n_proposals: 1, seed: 3, stride: 1, batch: 8, draw_ahead: false, partial: false };
        let kernel = || -> Box<dyn Move> { Box::new(Independence::new(Generator::of_model(&model, options).unwrap())) };
        let experiment = Experiment { kernel: &kernel, target: density, local, observables: |x| x.to_vec() };
        identity(&experiment, &mut Correct).unwrap();
    }
}

/// The centroid noise must be redrawn for the current configuration: otherwise the move is biased, and the test detects
/// it.
#[test]
fn a_forgotten_noise_of_the_centroid_is_caught() {
    struct Forgotten(Arc<dyn Density>);
    impl Density for Forgotten {
        fn dimension(&self) -> usize {
            self.0.dimension()
        }
        fn exactness(&self) -> modejump::density::Exactness {
            self.0.exactness()
        }
        fn scope(&self) -> Scope {
            Scope::Centred
        }
        fn sample(
            &self,
            streams: &(dyn Fn(usize) -> Stream + Sync),
            x: &mut [f64],
            e: &mut [Evaluation],
        ) -> Result<()> {
            self.0.sample(streams, x, e)
        }
        fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
            self.0.log_density(x, e)
        }
        fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
            unreachable!("no gradient is asked for here")
        }
    }
    let systems = systems();
    let system = systems.iter().find(|s| matches!(s.generator.scope(), Scope::Noisy { .. })).unwrap();
    let forgotten: Arc<dyn Density> = Arc::new(Forgotten(system.generator.clone()));
    // the bias grows with the number of attempts, and is small after two
    let after = |q: &Arc<dyn Density>, attempts: u64| -> Vec<f64> {
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let mut kernel = Independence::new(generator(q, 1, 16));
        let mut x = vec![0.0; 9];
        let mut chain = |start: u64| {
            let stream = |_: usize| Stream::new(9, StreamId::Test, start, 0);
            system.target.sample(&stream, &mut x, &mut [Evaluation::inside(0.0)]).unwrap();
            for step in 0..attempts {
                Correct.attempt(&mut kernel, &mut target, &mut x, start * attempts + step);
            }
            x[0] - x[3]
        };
        (0..STARTS as u64 / 2).map(&mut chain).collect()
    };
    let exact = after(&forgotten, 0);
    let p = ks_two_sample(&after(&forgotten, 30), &exact);
    assert!(p < 1e-6, "{p}");
    let p = ks_two_sample(&after(&system.generator, 30), &exact);
    assert!(p > 1e-6, "{p}");
}

#[test]
fn identity_of_independence_and_delayed_acceptance_on_a_continuous_flow() {
    let q: Arc<dyn Density> = Arc::new(continuous_flow());
    let kernels: [Kernel; 2] =
        [|q, _| Box::new(Independence::new(generator(q, 1, 7))), |q, _| delayed(q, q.clone(), 2)];
    for kernel in kernels {
        let observables = |x: &[f64]| x.to_vec();
        let experiment = Experiment { kernel: &|| kernel(&q, 0.0), target: q.clone(), local: 0.05, observables };
        identity(&experiment, &mut Correct).unwrap();
    }
}

#[test]
fn isir_leaves_with_equal_odds_when_the_target_is_the_model() {
    // All weights are equal, so each of K + 1 candidates is chosen equally often and the odds of leaving are K.
    let system = &systems()[2];
    let mut target = NegativeLog::new(system.generator.clone(), 1.0);
    let mut kernel = Isir::new(generator(&system.generator, 3, 4));
    let mut x = vec![0.1, 0.2, 0.3];
    let n = 20_000;
    let mut kept = 0;
    for step in 0..n {
        let outcome = Correct.attempt(&mut kernel, &mut target, &mut x, step);
        assert!((outcome.log_acceptance - 3f64.ln()).abs() < 1e-9);
        kept += u32::from(!outcome.accepted());
    }
    let z = (f64::from(kept) - n as f64 / 4.0) / (n as f64 * 0.25 * 0.75).sqrt();
    assert!(z.abs() < 4.9, "{z}");
    assert_eq!(kernel.statistics().attempts(), n);
    assert!((kernel.statistics().effective_fraction() - 1.0).abs() < 1e-9);
}

/// A jump and its reverse have opposite log α, given by u and log q of the two ends.
#[test]
fn the_jump_back_negates_log_alpha() {
    for system in systems_without_noise() {
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let draw = |density: &Arc<dyn Density>, row: u64| {
            let mut x = vec![0.0; density.dimension()];
            let stream = |_: usize| Stream::new(9, StreamId::Test, row, 0);
            density.sample(&stream, &mut x, &mut [Evaluation::inside(0.0)]).unwrap();
            x
        };
        let log_q = |x: &[f64]| {
            let mut evaluation = [Evaluation::inside(0.0)];
            system.generator.log_density(x, &mut evaluation).unwrap();
            evaluation[0].log_density
        };
        let mut largest: f64 = 0.0;
        for pair in 0..20 {
            let x = draw(&system.target, 2 * pair);
            let mut y = draw(&system.generator, 2 * pair + 1);
            if system.generator.scope() == Scope::Centred {
                // to where the move places it
                let by = sub(centroid(&x), centroid(&y));
                shift(&mut y, by);
            }
            let mut log_alpha = |from: &[f64], to: &[f64]| {
                let aimed: Arc<dyn Density> = Arc::new(Aimed { q: system.generator.clone(), at: to.to_vec() });
                let mut kernel = Independence::new(generator(&aimed, 1, 1));
                Correct.attempt(&mut kernel, &mut target, &mut from.to_vec(), pair).log_acceptance
            };
            let (there, back) = (log_alpha(&x, &y), log_alpha(&y, &x));
            let expected = target.u(&x) - target.u(&y) + log_q(&x) - log_q(&y);
            assert!((there + back).abs() < 1e-8, "{}: {there} and {back}", system.name);
            assert!((there - expected).abs() < 1e-8, "{}: {there}, not {expected}", system.name);
            largest = largest.max(there.abs());
        }
        assert!(largest > 0.1, "{}: {largest}", system.name);
    }
}

#[test]
fn shape_moves_keep_the_frame_of_the_molecule() {
    let system = systems().pop().unwrap();
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let mut kernel = Independence::new(generator(&system.generator, 1, 1));
    let mut x = vec![0.3, -0.2, 0.5, 0.35, -0.12, 0.55, 0.25, -0.1, 0.45];
    let axes = |x: &[f64]| {
        let z = unit(sub(atom(x, 1), atom(x, 0)));
        let y = unit(cross(z, sub(atom(x, 2), atom(x, 0))));
        (atom(x, 0), z, y)
    };
    let mut accepted = 0;
    for step in 0..200 {
        let before = axes(&x);
        let outcome = Correct.attempt(&mut kernel, &mut target, &mut x, step);
        accepted += u32::from(outcome.accepted());
        let after = axes(&x);
        assert_eq!(before.0, after.0, "the origin atom moved");
        assert!(dot(before.1, after.1) > 1.0 - 1e-12 && dot(before.2, after.2) > 1.0 - 1e-12, "the frame turned");
    }
    assert!(accepted > 20);
}

#[test]
fn centred_moves_keep_the_centroid() {
    let system = systems().into_iter().find(|s| s.generator.scope() == Scope::Centred).unwrap();
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let mut kernel = Independence::new(generator(&system.generator, 2, 3));
    let mut x = vec![0.3, -0.2, 0.5, 0.35, -0.12, 0.55, 0.25, -0.1, 0.45];
    let was = centroid(&x);
    let mut accepted = 0;
    for step in 0..200 {
        accepted += u32::from(Correct.attempt(&mut kernel, &mut target, &mut x, step).accepted());
        assert!(norm(sub(centroid(&x), was)) < 1e-12);
    }
    assert!(accepted > 20, "{accepted}");
}

/// A molecule split across the box and moved by lattice vectors gives the same decisions, and the same shape after an
/// acceptance.
#[test]
fn a_cut_molecule_is_made_whole_before_the_move() {
    for system in systems().iter().filter(|s| s.generator.scope() != Scope::Full) {
        cut_and_whole_agree(system);
    }
}

fn cut_and_whole_agree(system: &System) {
    let box_vectors = [[1.0, 0.0, 0.0], [0.3, 0.9, 0.0], [-0.2, 0.4, 0.8]];
    let options = Options { seed: 4, stride: 0, ..Options::default() };
    let whole = [0.3, -0.2, 0.5, 0.35, -0.12, 0.55, 0.25, -0.1, 0.45];
    let mut cut = whole;
    for (i, vector) in [(1, 1), (2, 2)] {
        let moved = add(atom(&cut, i), scale(2.0, box_vectors[vector]));
        set_atom(&mut cut, i, moved);
    }
    let run = |mut x: [f64; 9], bonds: Option<&[[usize; 2]]>| {
        let mut kernel = Independence::new(Generator::new(system.generator.clone(), bonds, options).unwrap());
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let outcomes: Vec<_> = (0..30)
            .map(|step| {
                let reduced_potential = target.u(&whole);
                let mut here = x;
                let boxed = bonds.map(|_| box_vectors);
                let mut state = State { x: &mut here, box_vectors: boxed, reduced_potential, step, replica: 0 };
                let outcome = kernel.attempt(&mut target, &mut state).unwrap();
                if outcome.accepted() {
                    x = if bonds.is_some() { cut } else { whole };
                }
                (outcome.fate, outcome.log_acceptance, here)
            })
            .collect();
        outcomes
    };
    let bonds = [[0, 1], [0, 2]];
    for (a, b) in run(whole, None).iter().zip(run(cut, Some(&bonds))) {
        assert_eq!(a.0, b.0);
        assert!((a.1 - b.1).abs() < 1e-9);
        if a.0 == Fate::Accepted {
            assert!(a.2.iter().zip(&b.2).all(|(a, b)| (a - b).abs() < 1e-9));
        } else {
            assert_eq!(b.2, cut, "a rejected molecule must keep its images, bit for bit");
        }
    }
}

/// Three atoms with two rigid bonds, of masses [1, 10, 10]: constrained dynamics samples sin θ √det Z e^{−u(θ)}, √det Z
/// being far from constant. Returns p of exact draws of θ after two attempts of the move.
pub fn constrained_angles(kernel: &mut dyn Move, starts: u64) -> f64 {
    let potential = |theta: f64| 1.5 * theta.cos();
    // Z = [[1/m₀ + 1/m₁, cos θ/m₀], [cos θ/m₀, 1/m₀ + 1/m₂]].
    let exact = Table::new(0.0, std::f64::consts::PI, move |t| {
        t.sin().ln() - potential(t) + 0.5 * (1.1f64 * 1.1 - t.cos() * t.cos()).ln()
    });
    struct Angle<F>(F);
    impl<F: Fn(f64) -> f64> Target for Angle<F> {
        fn dimension(&self) -> usize {
            9
        }
        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            u.iter_mut().zip(x.chunks_exact(9)).for_each(|(u, x)| *u = (self.0)(Bent::internal(x)[2]));
            Ok(())
        }
        fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
            Err(Error::Unsupported("no gradient is asked for here".into()))
        }
        /// There is no environment to relax.
        fn relax(&mut self, x: &[f64], _: u32) -> Result<f64> {
            Ok((self.0)(Bent::internal(x)[2]))
        }
    }
    let mut target = Angle(potential);
    let molecules = rigid(exact, false);
    let (mut after, mut fresh) = (Vec::new(), Vec::new());
    let mut x = vec![0.0; 9];
    for start in 0..starts {
        molecules.0.draw(&mut Stream::new(1, StreamId::Test, start, 0), &mut x);
        for k in 0..2 {
            Checked.attempt(kernel, &mut target, &mut x, 2 * start + k);
        }
        after.push(Bent::internal(&x)[2]);
        for k in 0..4 {
            molecules.0.draw(&mut Stream::new(2, StreamId::Test, start, k), &mut x);
            fresh.push(Bent::internal(&x)[2]);
        }
    }
    ks_two_sample(&after, &fresh)
}

fn rigid(angle: Table, oriented: bool) -> Arc<Exact<Bent>> {
    Arc::new(Exact(Bent { bonds: None, rigid: 0.1, angle, oriented }))
}

/// The bonds of [`constrained_angles`].
pub fn two_constraints() -> Constraints {
    Constraints::new(&[[0, 1], [0, 2]], &[0.1, 0.1], &[1.0, 10.0, 10.0]).unwrap()
}

#[test]
fn constrained_bonds_are_sampled_with_their_metric_term() {
    let q: Arc<dyn Density> = rigid(Table::new(0.0, std::f64::consts::PI, |t: f64| t.sin().ln()), true);
    let generator = |n_proposals: usize, metric: bool| {
        let options = Options { n_proposals, seed: 2, ..Options::default() };
        let mut generator = Generator::new(q.clone(), None, options).unwrap();
        if metric {
            generator.set_constraints(two_constraints());
        }
        generator
    };
    // the screen depends on the sine of the angle, and is trusted in part
    let screen: Arc<dyn Density> = rigid(Table::new(0.0, std::f64::consts::PI, |t: f64| 3.0 * t.sin().ln()), true);
    let screen = believed(screen, Trust { energy: 0.3, density: 0.4 });
    let kernels: [(&str, Box<dyn Move>); 4] = [
        ("independence", Box::new(Independence::new(generator(1, true)))),
        ("independence with 2 proposals", Box::new(Independence::new(generator(2, true)))),
        ("i-SIR", Box::new(Isir::new(generator(3, true)))),
        ("delayed acceptance", Box::new(DelayedAcceptance::new(generator(2, true), screen).unwrap())),
    ];
    for (name, mut kernel) in kernels {
        let p = constrained_angles(kernel.as_mut(), STARTS as u64);
        assert!(p > crate::statistics::LEVEL, "{name}: p = {p:.1e}");
    }
    let p = constrained_angles(&mut Independence::new(generator(1, false)), STARTS as u64);
    assert!(p < crate::statistics::LEVEL, "leaving the metric term out went unnoticed: p = {p:.1e}");
}

/// Coincident atoms have no metric term: the current configuration does not belong to the constrained ensemble.
#[test]
fn a_state_without_a_metric_term_stays_and_is_counted() {
    let q: Arc<dyn Density> = Arc::new(Exact(Polymer { beads: 3, trap: 1.0, bond: 0.4 }));
    let constrained = || {
        let mut generator = generator(&q, 2, 1);
        generator.set_constraints(two_constraints());
        generator
    };
    let kernels: [Box<dyn Move>; 2] = [Box::new(Independence::new(constrained())), Box::new(Isir::new(constrained()))];
    for mut kernel in kernels {
        let mut x = [-1.0; 9];
        let outcome = Correct.attempt(kernel.as_mut(), &mut NegativeLog::new(q.clone(), 0.0), &mut x, 0);
        assert_eq!((outcome.fate, outcome.log_acceptance), (Fate::Singular, f64::NEG_INFINITY));
    }
}

/// Checks both the proposals and, where all proposals are the same, the acceptance decisions.
#[test]
fn replicas_have_random_numbers_of_their_own() {
    let system = &systems()[0];
    let aimed: Arc<dyn Density> = Arc::new(Aimed { q: system.generator.clone(), at: vec![0.9] });
    let run = |kernel: Kernel, q: &Arc<dyn Density>, replica: u32| -> (Vec<Fate>, Vec<f64>) {
        let (mut kernel, mut target) = (kernel(q, system.local), NegativeLog::new(system.target.clone(), 0.0));
        let attempts = (0..60).map(|step| {
            let mut x = [-1.0];
            let reduced_potential = target.u(&x);
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step, replica };
            let outcome = kernel.attempt(&mut target, &mut state).unwrap();
            (outcome.fate, outcome.log_weight_proposed)
        });
        attempts.unzip()
    };
    for (name, kernel) in KERNELS {
        assert_eq!(run(kernel, &aimed, 1), run(kernel, &aimed, 1), "{name}");
        assert_ne!(run(kernel, &aimed, 0).0, run(kernel, &aimed, 1).0, "{name}");
    }
    let [first, second] = [0, 1].map(|replica| run(KERNELS[0].1, &system.generator, replica).1);
    assert!(first.iter().zip(&second).all(|(a, b)| a != b));
}
