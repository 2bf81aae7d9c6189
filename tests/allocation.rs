//! A warm attempt does not allocate. This target has its own allocator that counts, so it holds this test only.

#[path = "battery/systems.rs"]
mod systems;

use modejump::density::Density;
use modejump::moves::{Generator, Independence, Isir, Move, Options, State};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use systems::{Exact, GaussianMixture, NegativeLog};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged; the counter is the only addition.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

#[test]
fn a_warm_attempt_does_not_allocate() {
    let mixture = |width: f64| -> Arc<dyn Density> {
        Arc::new(Exact(GaussianMixture(vec![(0.5, vec![-1.0; 6], width), (0.5, vec![1.0; 6], width)])))
    };
    let generator = |n_proposals| {
        let options = Options { n_proposals, seed: 1, stride: 10, batch: 8 };
        Generator::new(mixture(0.6), None, options).unwrap()
    };
    let kernels: [Box<dyn Move>; 2] = [Box::new(Independence::new(generator(2))), Box::new(Isir::new(generator(4)))];
    for mut kernel in kernels {
        let mut target = NegativeLog::new(mixture(0.5), 0.0);
        let mut x = vec![1.0; 6];
        let mut attempt = |step: u64, x: &mut [f64]| {
            let reduced_potential = target.u(x);
            let mut state = State { x, box_vectors: None, reduced_potential, step, replica: 0 };
            kernel.attempt(&mut target, &mut state).unwrap().accepted()
        };
        (0..20).for_each(|k| _ = attempt(10 * k, &mut x));
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let accepted = (20..200).filter(|k| attempt(10 * k, &mut x)).count();
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
        assert!(accepted > 10);
    }
}
