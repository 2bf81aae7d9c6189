//! Annealed independence moves: identity, invariance on every system, and detection of typical mistakes in such paths.

use crate::guards::{identity, one_shot, Correct, Experiment, Verdict};
use crate::moves::{generator, systems, systems_without_noise};
use crate::statistics::{ks_two_sample, LEVEL};
use crate::systems::*;
use modejump::annealing::{even, step_all, Bridge, Kernel, Points, Space, Stage};
use modejump::coordinates::constraints::Constraints;
use modejump::coordinates::vector::{add_to_atom, angle, atom, centre, cross, norm, sub, unit};
use modejump::density::{Density, Evaluation};
use modejump::error::Result;
use modejump::moves::{
    accept, Annealed, Fate, Generator, Independence, Move, Options, Outcome, Path, Proposal, State, Statistics,
};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

/// Fewer starts than elsewhere: moves with gradients cost more and are tested just as well.
const STARTS: usize = 20_000;

type Kind = (&'static str, usize, Kernel);

const KINDS: [Kind; 2] =
    [("MALA", 1, Kernel::Adjusted), ("HMC with 2 proposals", 2, Kernel::Hamiltonian { leapfrog: 2 })];

/// Annealed move with steps about as long as those of the local dynamics.
fn annealed(q: &Arc<dyn Density>, local: f64, (_, proposals, kernel): Kind) -> Box<dyn Move> {
    let path = Path { kernel, stages: even(2, 0.3 * local * local), moves: 1 };
    Box::new(Annealed::new(generator(q, proposals, 8), path).unwrap())
}

#[test]
fn one_shot_invariance_of_annealed_moves_on_every_system() {
    let mut failures = Vec::new();
    for system in systems() {
        for kind in KINDS {
            let experiment = Experiment {
                kernel: &|| annealed(&system.generator, system.local, kind),
                target: system.target.clone(),
                local: system.local,
                observables: system.observables,
            };
            if let Err(found) = one_shot(&experiment, &mut Correct, STARTS) {
                failures.push(format!("{} on {}: {found}", kind.0, system.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn identity_of_annealed_moves_on_every_system() {
    for system in systems_without_noise() {
        for kind in KINDS {
            let experiment = Experiment {
                kernel: &|| annealed(&system.generator, system.local, kind),
                target: system.generator.clone(),
                local: system.local,
                observables: system.observables,
            };
            identity(&experiment, &mut Correct)
                .unwrap_or_else(|found| panic!("{} on {}: {found}", kind.0, system.name));
        }
    }
}

/// Longer paths are accepted more often than the generator's own proposals.
#[test]
fn paths_raise_the_acceptance() {
    let system = &systems()[2];
    let acceptance = |mut kernel: Box<dyn Move>| {
        let mut target = NegativeLog::new(system.target.clone(), 0.0);
        let mut x = vec![1.0, 0.0, -0.5];
        for step in 0..4000 {
            Correct.attempt(kernel.as_mut(), &mut target, &mut x, step);
        }
        (kernel.statistics().acceptance(), kernel.statistics().effective_fraction())
    };
    use crate::guards::Driver;
    let plain = acceptance(Box::new(Independence::new(generator(&system.generator, 1, 16))));
    let path = Path { kernel: Kernel::Adjusted, stages: even(10, 0.03), moves: 2 };
    let annealed = acceptance(Box::new(Annealed::new(generator(&system.generator, 1, 16), path).unwrap()));
    assert!(annealed.0 > plain.0 + 0.05 && annealed.1 > plain.1 + 0.05, "{plain:?} {annealed:?}");
}

/// Faults specific to annealed moves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// The end of the path is weighted by e^{−u}/q, as if it had been drawn from q.
    PlainWeights,
    /// The proposal is weighted by its path, but the current configuration by e^{−u}/q.
    NoPathOfTheCurrent,
    /// The kernels act on the current configuration in forward instead of reverse order.
    WayBackInForwardOrder,
    /// On the forward path, ln W is incremented after the move at the new t instead of before it.
    WeighedAfterTheMove,
    /// On the backward path, ln W is incremented before the move at the old t instead of after it.
    WeighedBeforeTheMoveBack,
}

const FAULTS: [Fault; 5] = [
    Fault::PlainWeights,
    Fault::NoPathOfTheCurrent,
    Fault::WayBackInForwardOrder,
    Fault::WeighedAfterTheMove,
    Fault::WeighedBeforeTheMoveBack,
];

/// A shorter reimplementation of the move in which a fault can be planted.
struct Sketch {
    density: Arc<dyn Density>,
    stages: Vec<Stage>,
    fault: Fault,
    statistics: Statistics,
}

impl Sketch {
    fn moved(bridge: &mut Bridge, points: &mut Points, stage: Stage, stream: &mut Stream) {
        step_all(bridge, points, Kernel::Adjusted, stage, std::slice::from_mut(stream)).unwrap();
    }

    fn plain(points: &Points) -> f64 {
        points.source[0] - points.target[0]
    }

    fn there(&self, bridge: &mut Bridge, y: &mut Points, stream: &mut Stream) -> f64 {
        let (mut log_w, mut before) = (0.0, 0.0);
        for &stage in &self.stages {
            let late = self.fault == Fault::WeighedAfterTheMove;
            if late {
                Sketch::moved(bridge, y, stage, stream);
            }
            log_w += (stage.t - before) * Sketch::plain(y);
            if !late {
                Sketch::moved(bridge, y, stage, stream);
            }
            before = stage.t;
        }
        match self.fault {
            Fault::PlainWeights => Sketch::plain(y),
            _ => log_w,
        }
    }

    fn back(&self, bridge: &mut Bridge, x: &mut Points, stream: &mut Stream) -> f64 {
        if [Fault::PlainWeights, Fault::NoPathOfTheCurrent].contains(&self.fault) {
            return Sketch::plain(x);
        }
        let n = self.stages.len();
        let mut log_w = 0.0;
        for step in 0..n {
            let k = if self.fault == Fault::WayBackInForwardOrder { step } else { n - 1 - step };
            let dt = self.stages[k].t - if k == 0 { 0.0 } else { self.stages[k - 1].t };
            let early = self.fault == Fault::WeighedBeforeTheMoveBack;
            log_w += if early { dt * Sketch::plain(x) } else { 0.0 };
            Sketch::moved(bridge, x, self.stages[k], stream);
            log_w += if early { 0.0 } else { dt * Sketch::plain(x) };
        }
        log_w
    }
}

impl Move for Sketch {
    fn dimension(&self) -> usize {
        self.density.dimension()
    }
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let density = self.density.clone();
        let stream = |path: u32| Stream::new(17, StreamId::Anneal, state.step, state.replica).at(path << 20);
        let mut drawn = vec![0.0; self.dimension()];
        density.sample(&|_| stream(2), &mut drawn, &mut [Evaluation::inside(0.0)])?;
        let mut bridge = Bridge::new(density.as_ref(), target);
        let (mut x, mut y) = (bridge.evaluate(state.x.to_vec())?, bridge.evaluate(drawn)?);
        let of_x = self.back(&mut bridge, &mut x, &mut stream(0));
        let of_y = self.there(&mut bridge, &mut y, &mut stream(1));
        let (ux, uy) = (state.reduced_potential, y.target[0]);
        let inside = |log_w: f64, u: f64| Evaluation::inside(-u - log_w);
        let proposal = Proposal { x: &y.x, forward: inside(of_y, uy), reverse: inside(of_x, ux) };
        let test = accept(&proposal, ux, uy, stream(3).uniform());
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(&y.x);
            state.reduced_potential = uy;
        }
        Ok(Outcome::of_test(test, (ux, proposal.reverse), (uy, proposal.forward), state.reduced_potential))
    }
    fn statistics(&self) -> &Statistics {
        &self.statistics
    }
    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}

fn sketched(fault: Fault) -> Verdict {
    // The generator is poor enough for the path to matter, the steps are long enough to move far, and most of the path
    // is left to the last stage: with even stages the order of the backward path hardly matters, and the guard cannot
    // detect it.
    let stage = |t| Stage { t, step: 0.1 };
    let density: Arc<dyn Density> = Arc::new(Exact(normal_mixture(&[(0.7, -0.8, 0.5), (0.3, 1.2, 0.5)])));
    let kernel = || -> Box<dyn Move> {
        let (density, stages) = (density.clone(), [0.1, 0.3, 1.0].map(stage).to_vec());
        Box::new(Sketch { density, stages, fault, statistics: Statistics::default() })
    };
    let target: Arc<dyn Density> = Arc::new(Exact(double_well(0.475)));
    let experiment = Experiment { kernel: &kernel, target, local: 0.3, observables: |x| x.to_vec() };
    one_shot(&experiment, &mut Correct, 50_000)
}

#[test]
fn one_shot_invariance_catches_the_faults_of_paths() {
    sketched(Fault::None).unwrap_or_else(|found| panic!("the guard fired on correct paths: {found}"));
    for fault in FAULTS {
        match sketched(fault) {
            Err(found) => println!("{fault:?}: {found}"),
            Ok(()) => panic!("{fault:?} went unnoticed"),
        }
    }
}

#[test]
fn what_is_no_path_is_refused() {
    let q = systems().pop().unwrap().generator;
    let path = |kernel, stages, moves| Path { kernel, stages, moves };
    let (mala, good) = (Kernel::Adjusted, even(4, 0.1));
    let stage = |t, step| Stage { t, step };
    for (path, reason) in [
        (path(mala, vec![], 1), "0 stages"),
        (path(mala, vec![stage(0.5, 0.1)], 1), "non-decreasing t"),
        (path(mala, vec![stage(0.6, 0.1), stage(0.4, 0.1), stage(1.0, 0.1)], 1), "non-decreasing t"),
        (path(mala, vec![stage(f64::NAN, 0.1), stage(1.0, 0.1)], 1), "non-decreasing t"),
        (path(mala, vec![stage(-0.5, 0.1), stage(1.0, 0.1)], 1), "non-decreasing t"),
        (path(mala, vec![stage(1.0, 0.0)], 1), "step of a stage is 0"),
        (path(mala, good.clone(), 0), "moves"),
        (path(mala, good.clone(), 1 << 20), "random numbers"),
        (path(Kernel::Hamiltonian { leapfrog: usize::MAX }, good.clone(), 1), "leapfrog steps"),
        (path(Kernel::Unadjusted { corrected: true }, good.clone(), 1), "Metropolis test"),
    ] {
        let message = Annealed::new(generator(&q, 1, 4), path).err().unwrap().to_string();
        assert!(message.contains(reason), "{message}");
    }
    let with = |n_proposals| Generator::new(q.clone(), None, Options { n_proposals, ..Options::default() }).unwrap();
    let message = Annealed::new(with(4096), path(mala, good.clone(), 1)).err().unwrap().to_string();
    assert!(message.contains("4095"), "{message}");
    let mut kept = with(1);
    kept.set_constraints(Constraints::new(&[[0, 1]], &[0.1], &[1.0; 3]).unwrap());
    let message = Annealed::new(kept, path(mala, good, 1)).err().unwrap().to_string();
    assert!(message.contains("constrained bond"), "{message}");
}

/// A current configuration that the generator cannot produce is kept and the reason counted; a proposal whose path
/// begins where the target has zero weight is rejected and counted likewise.
#[test]
fn unusable_ends_are_rejected_with_their_reason() {
    let system = &systems()[0];
    let path = || Path { kernel: Kernel::Adjusted, stages: even(2, 0.01), moves: 1 };
    let mut kernel = Annealed::new(generator(&system.generator, 1, 1), path()).unwrap();
    let mut target = NegativeLog::new(system.target.clone(), 0.0);
    let outside = 1e200;
    let mut x = [outside];
    let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 1.0, step: 3, replica: 0 };
    let outcome = kernel.attempt(&mut target, &mut state).unwrap();
    assert!(outcome.fate != Fate::Accepted && outcome.fate != Fate::Rejected, "{outcome:?}");
    assert_eq!((x[0], kernel.statistics().proposals()), (outside, 0));

    struct Hole;
    impl Target for Hole {
        fn dimension(&self) -> usize {
            1
        }
        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            u.iter_mut().zip(x).for_each(|(u, x)| *u = if *x > 0.0 { f64::INFINITY } else { 0.0 });
            Ok(())
        }
        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            gradient.fill(0.0);
            self.reduced_potential(x, u)
        }
    }
    let mut kernel = Annealed::new(generator(&system.generator, 1, 1), path()).unwrap();
    let mut x = [-1.0];
    for step in 0..200 {
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step, replica: 0 };
        kernel.attempt(&mut Hole, &mut state).unwrap();
        assert!(x[0] <= 0.0, "step {step}");
    }
    let statistics = kernel.statistics();
    assert!(statistics.count(Fate::NonFinite) > 50 && statistics.count(Fate::Accepted) > 30, "{statistics:?}");
}

/// Three independent, normally distributed atoms, without the term for their centroid.
struct Cluster {
    /// Removes the volume element of the shape coordinates, as if it had been forgotten.
    without_volume: Option<Space>,
}

impl Target for Cluster {
    fn dimension(&self) -> usize {
        9
    }
    fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        let mut y = x.to_vec();
        centre(&mut y);
        u[0] = 0.5 * y.iter().map(|y| y * y).sum::<f64>();
        gradient.copy_from_slice(&y);
        if let Some(space) = self.without_volume {
            let (volume, slope) = space.log_volume(x);
            u[0] += volume;
            slope.iter().for_each(|&(atom, slope)| add_to_atom(gradient, atom, 1.0, slope));
        }
        Ok(())
    }
}

/// Steps with a fixed frame leave the distribution of shapes invariant, but not if the volume element of the remaining
/// coordinates is omitted.
#[test]
fn steps_in_the_frame_of_three_atoms_keep_their_shapes() {
    let normals: Arc<dyn Density> = Arc::new(Exact(GaussianMixture(vec![(1.0, vec![0.0; 9], 1.0)])));
    let draw = |row: u64| {
        let mut x = vec![0.0; 9];
        let stream = |_: usize| Stream::new(3, StreamId::Test, row, 0);
        normals.sample(&stream, &mut x, &mut [Evaluation::inside(0.0)]).unwrap();
        x
    };
    let shape = |x: &[f64]| {
        let [a, b, c] = [0, 1, 2].map(|i| atom(x, i));
        [norm(sub(b, a)), norm(sub(c, a)), angle(b, a, c)]
    };
    let after = |forgotten: bool, start: u64| {
        let x = draw(start);
        let z = unit(sub(atom(&x, 1), atom(&x, 0)));
        let y = unit(cross(z, sub(atom(&x, 2), atom(&x, 0))));
        let space = Space::Frame { frame: [0, 1, 2], axes: [cross(y, z), y, z] };
        let mut target = Cluster { without_volume: forgotten.then_some(space) };
        let mut bridge = Bridge { space, ..Bridge::new(normals.as_ref(), &mut target) };
        let mut points = bridge.evaluate(x).unwrap();
        let mut streams = [Stream::new(8, StreamId::Test, start, 0)];
        for kernel in [Kernel::Adjusted, Kernel::Hamiltonian { leapfrog: 3 }, Kernel::Adjusted] {
            step_all(&mut bridge, &mut points, kernel, Stage { t: 1.0, step: 0.15 }, &mut streams).unwrap();
        }
        shape(&points.x)
    };
    let exact: Vec<[f64; 3]> = (100_000..180_000).map(|row| shape(&draw(row))).collect();
    let least_p = |forgotten: bool| {
        let found: Vec<[f64; 3]> = (0..20_000).map(|start| after(forgotten, start)).collect();
        let column = |rows: &[[f64; 3]], k: usize| rows.iter().map(|row| row[k]).collect::<Vec<_>>();
        (0..3).map(|k| ks_two_sample(&column(&found, k), &column(&exact, k))).fold(1.0, f64::min)
    };
    assert!(least_p(false) > LEVEL, "{}", least_p(false));
    assert!(least_p(true) < LEVEL, "a forgotten volume went unnoticed: {}", least_p(true));
}
