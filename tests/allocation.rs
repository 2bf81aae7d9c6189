//! A warm attempt does not allocate. This target has its own allocator that counts, so it holds this test only.

#[path = "battery/systems.rs"]
mod systems;

use modejump::density::Density;
use modejump::models::gvp_flow::{GvpConfig, GvpField};
use modejump::models::VectorField;
use modejump::moves::{Generator, Independence, Isir, LatentWalk, LatentWalkOptions, Move, Options, State};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use systems::{Exact, GaussianMixture, NegativeLog};

struct Counting;

thread_local! {
    /// Per thread: what idle threads of rayon's pool do meanwhile is not part of an attempt.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged; the counter is the only addition.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // No access to a thread's variables is possible any more while the thread ends.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps GlobalAlloc's contract, which is System's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; the pointer came from System.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations in 180 attempts after 20 to warm up.
fn allocations(mut kernel: Box<dyn Move>, target: Arc<dyn Density>, mut x: Vec<f64>) -> usize {
    let mut target = NegativeLog::new(target, 0.0);
    let mut attempt = |step: u64, x: &mut [f64]| {
        let reduced_potential = target.u(x);
        let mut state = State { x, box_vectors: None, reduced_potential, step, replica: 0 };
        kernel.attempt(&mut target, &mut state).unwrap().accepted()
    };
    (0..20).for_each(|k| _ = attempt(10 * k, &mut x));
    let before = ALLOCATIONS.get();
    let accepted = (20..200).filter(|k| attempt(10 * k, &mut x)).count();
    let after = ALLOCATIONS.get();
    assert!(accepted > 10);
    after - before
}

/// Allocations in a second evaluation of a vector field, of its divergence, and of a directional derivative.
fn field_allocations() -> usize {
    let config = GvpConfig {
        features: (0..5).map(|atom| vec![atom]).collect(),
        n_features: 5,
        n_layers: 3,
        n_scalars: 32,
        n_vectors: 16,
        rbf_max: 6.0,
        rbf_count: 16,
        message_norm: 10.0,
        coordinate_range: 1.0,
    };
    let field = GvpField::<f32>::random(config, 1).unwrap();
    let x: Vec<f64> = (0..15).map(|i| f64::from(i * i % 7)).collect();
    let (mut f, mut df, mut divergence) = (vec![0.0; 15], vec![0.0; 15], [0.0]);
    let mut evaluate = || {
        field.evaluate(&[0.5], &x, &mut f);
        field.evaluate_divergence(&[0.5], &x, &mut f, &mut divergence);
        field.evaluate_jvp(&[0.5], &x, &x, &mut f, &mut df);
    };
    evaluate();
    let before = ALLOCATIONS.get();
    evaluate();
    ALLOCATIONS.get() - before
}

#[test]
fn a_warm_attempt_does_not_allocate() {
    assert_eq!(field_allocations(), 0);
    let mixture = |width: f64| -> Arc<dyn Density> {
        Arc::new(Exact(GaussianMixture(vec![(0.5, vec![-1.0; 6], width), (0.5, vec![1.0; 6], width)])))
    };
    let options =
        |n_proposals| Options { n_proposals, seed: 1, stride: 10, batch: 8, draw_ahead: false, partial: false };
    let analytic = |n| Generator::new(mixture(0.6), None, options(n)).unwrap();
    assert_eq!(allocations(Box::new(Independence::new(analytic(2))), mixture(0.5), vec![1.0; 6]), 0);
    assert_eq!(allocations(Box::new(Isir::new(analytic(4))), mixture(0.5), vec![1.0; 6]), 0);
    // A coupling flow; the target is the flow itself. Blocks of proposals run out and are drawn anew meanwhile.
    let model = modejump::models::load("models/double-well/generator.safetensors").unwrap();
    for (batch, n_proposals) in [(32, 1), (256, 3)] {
        let flow = Generator::of_model(&model, Options { batch, ..options(n_proposals) }).unwrap();
        assert_eq!(allocations(Box::new(Independence::new(flow)), model.clone(), vec![1.0, 0.5]), 0);
    }
    let walk = LatentWalk::new(&model, LatentWalkOptions::default()).unwrap();
    assert_eq!(allocations(Box::new(walk), model.clone(), vec![1.0, 0.5]), 0);
}
