//! Densities averaged over orientations: moves that use them leave the target invariant, even if it depends on
//! orientation, and are accepted more often; likely mistakes are caught.

use crate::guards::{one_shot, Correct, Experiment, Verdict};
use crate::moves::{generator, systems};
use crate::systems::*;
use modejump::coordinates::superpose::random_rotation;
use modejump::coordinates::vector::{centre, shift};
use modejump::density::{Density, Evaluation, Exactness, Scope};
use modejump::error::Result;
use modejump::moves::{Independence, Isir, Move, Outcome, State, Statistics};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::{Arc, Mutex};

const STARTS: usize = 40_000;

const CLOUD: Cloud = Cloud { width: 0.3 };

fn target() -> Arc<dyn Density> {
    Arc::new(Exact(CLOUD))
}

fn in_a_field() -> Arc<dyn Density> {
    Arc::new(Exact(Dipole { cloud: CLOUD, shift: 0.1 }))
}

/// A density whose samples all have one orientation.
fn of_one_orientation() -> Arc<dyn Density> {
    Arc::new(Exact(NoisyTrimer { width: 0.35 }))
}

/// Internal distances, position of the first atom relative to the second, and position of the centroid.
fn observables(x: &[f64]) -> Vec<f64> {
    let squared = |i: usize, j: usize| (0..3).map(|k| (x[3 * i + k] - x[3 * j + k]).powi(2)).sum::<f64>();
    vec![squared(0, 1), squared(1, 2) - squared(0, 2), x[0] - x[3], x[4] - x[1], x[0] + x[3] + x[6]]
}

fn invariance(kernel: &dyn Fn() -> Box<dyn Move>) -> Verdict {
    one_shot(&Experiment { kernel, target: in_a_field(), local: 0.1, observables }, &mut Correct, STARTS)
}

#[test]
fn averages_over_rotations_leave_the_target_invariant() {
    let q = of_one_orientation();
    for rotations in [1, 4] {
        let verdict = invariance(&|| Box::new(Independence::over_rotations(generator(&q, 1, 16), rotations).unwrap()));
        verdict.unwrap_or_else(|found| panic!("independence, {rotations} rotations: {found}"));
    }
    let verdict = invariance(&|| Box::new(Isir::over_rotations(generator(&q, 2, 8), 3).unwrap()));
    verdict.unwrap_or_else(|found| panic!("i-SIR: {found}"));
}

#[test]
fn more_rotations_accept_more() {
    let acceptance = |rotations: usize| {
        let mut kernel = Independence::over_rotations(generator(&of_one_orientation(), 1, 16), rotations).unwrap();
        let mut target = NegativeLog::new(target(), 0.0);
        let mut x = vec![0.1, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.3];
        for step in 0..4000 {
            let reduced_potential = target.u(&x);
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step, replica: 0 };
            kernel.attempt(&mut target, &mut state).unwrap();
        }
        kernel.statistics().acceptance()
    };
    let [one, four, sixteen] = [1, 4, 16].map(acceptance);
    assert!(one + 0.02 < four && four + 0.005 < sixteen, "{one} {four} {sixteen}");
}

/// Records the configurations at which it is evaluated; all its samples are one configuration.
struct Noted {
    at: Vec<f64>,
    asked: Mutex<Vec<f64>>,
}

impl Density for Noted {
    fn dimension(&self) -> usize {
        9
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        Scope::Centred
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        x.chunks_exact_mut(9).for_each(|x| x.copy_from_slice(&self.at));
        e.fill(Evaluation::inside(0.0));
        Ok(())
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.asked.lock().unwrap().extend_from_slice(x);
        e.fill(Evaluation::inside(0.0));
        Ok(())
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// Copies of the current configuration, copies of proposals, and the proposals as placed: one shape, but no two with
/// the same rotation.
#[test]
fn every_copy_has_a_rotation_of_its_own() {
    let mut at = vec![0.1, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.3];
    centre(&mut at);
    let noted = Arc::new(Noted { at: at.clone(), asked: Mutex::default() });
    let q: Arc<dyn Density> = noted.clone();
    let mut kernel = Isir::over_rotations(generator(&q, 2, 1), 3).unwrap();
    let asked_of_target = Mutex::new(Vec::new());
    let mut target = Asked { at: &asked_of_target };
    let mut state = State { x: &mut at, box_vectors: None, reduced_potential: 0.0, step: 0, replica: 0 };
    kernel.attempt(&mut target, &mut state).unwrap();
    let mut all = std::mem::take(&mut *noted.asked.lock().unwrap());
    all.extend(asked_of_target.into_inner().unwrap());
    let rows: Vec<&[f64]> = all.chunks_exact(9).collect();
    // three copies of the current configuration, two of each proposal, and the two proposals
    assert_eq!(rows.len(), 3 + 2 * 2 + 2);
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    for (i, a) in rows.iter().enumerate() {
        assert!(rows[..i].iter().all(|b| distance(a, b) > 1e-3), "{i}: {rows:?}");
    }
}

/// A flat potential that records the configurations at which it is evaluated.
struct Asked<'a> {
    at: &'a Mutex<Vec<f64>>,
}

impl Target for Asked<'_> {
    fn dimension(&self) -> usize {
        9
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.at.lock().unwrap().extend_from_slice(x);
        u.fill(0.0);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// A fault: the proposal is not one of its own copies, so its density is that of K orientations that were never drawn.
struct AllTurned(Arc<dyn Density>);

impl Density for AllTurned {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        self.0.scope()
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.sample(streams, x, e)?;
        let mut turned = x.to_vec();
        for (row, x) in turned.chunks_exact_mut(self.dimension()).enumerate() {
            let seed = streams(row).u64();
            random_rotation(x, &mut Stream::new(seed, StreamId::Test, 0, 0));
        }
        self.0.log_density(&turned, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

#[test]
fn a_proposal_that_is_none_of_its_copies_is_caught() {
    let faulty: Arc<dyn Density> = Arc::new(AllTurned(of_one_orientation()));
    for rotations in [1, 4] {
        let verdict =
            invariance(&|| Box::new(Independence::over_rotations(generator(&faulty, 1, 16), rotations).unwrap()));
        assert!(verdict.is_err(), "{rotations} rotations");
    }
}

/// A fault: a new configuration is rotated after the test, as if the target did not depend on orientation.
struct TurnedLater(Independence);

impl Move for TurnedLater {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let outcome = self.0.attempt(target, state)?;
        if outcome.accepted() {
            let centroid = centre(state.x);
            random_rotation(state.x, &mut Stream::new(1, StreamId::Test, state.step, 0));
            shift(state.x, centroid);
        }
        Ok(outcome)
    }
    fn statistics(&self) -> &Statistics {
        self.0.statistics()
    }
    fn statistics_mut(&mut self) -> &mut Statistics {
        self.0.statistics_mut()
    }
}

#[test]
fn a_turn_after_the_test_is_caught() {
    let later = || TurnedLater(Independence::over_rotations(generator(&of_one_orientation(), 1, 16), 4).unwrap());
    assert!(invariance(&|| Box::new(later())).is_err());
}

#[test]
fn what_has_no_orientation_to_turn_is_refused() {
    for system in systems() {
        let has = matches!(system.generator.scope(), Scope::Centred | Scope::Noisy { .. });
        let made = Independence::over_rotations(generator(&system.generator, 1, 4), 2);
        assert_eq!(made.is_ok(), has, "{}", system.name);
        if let Err(error) = made {
            assert!(error.to_string().contains("orientation of a molecule"), "{error}");
        }
    }
    let q = of_one_orientation();
    let refused = Isir::over_rotations(generator(&q, 1, 4), 0).err().unwrap().to_string();
    assert!(refused.contains("0 rotations"), "{refused}");
}

/// A periodic box breaks rotational symmetry, but the energies account for that.
#[test]
fn a_box_changes_nothing() {
    let attempt = |box_vectors| {
        let mut kernel = Independence::over_rotations(generator(&of_one_orientation(), 1, 4), 2).unwrap();
        let mut target = NegativeLog::new(in_a_field(), 0.0);
        let mut x = vec![0.1, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0, 0.3];
        let reduced_potential = target.u(&x);
        kernel
            .attempt(&mut target, &mut State { x: &mut x, box_vectors, reduced_potential, step: 0, replica: 0 })
            .unwrap()
    };
    assert_eq!(attempt(None), attempt(Some([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 3.0]])));
}
