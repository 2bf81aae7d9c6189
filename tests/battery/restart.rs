//! A restarted run continues bit for bit, even in the middle of a block of pre-drawn proposals.

use crate::systems::*;
use modejump::annealing::{even, Kernel as Steps};
use modejump::density::Density;
use modejump::io::checkpoint::{self, Kind};
use modejump::moves::{
    Annealed, DelayedAcceptance, Generator, Independence, Isir, Move, Options, Path, RandomWalk, State, Statistics,
};
use std::sync::Arc;

const STRIDE: u64 = 5;
const KIND: Kind = Kind { magic: *b"MJ--TEST", version: 1 };

/// The next step, the walker's position, and the statistics of both moves: random numbers are a function of the step.
type Saved = (u64, Vec<f64>, [Statistics; 2]);

struct Sampler {
    jump: Box<dyn Move>,
    walk: RandomWalk,
    target: NegativeLog,
    step: u64,
    x: Vec<f64>,
}

type Kernel = fn(Generator, Arc<dyn Density>) -> Box<dyn Move>;

const KERNELS: [Kernel; 4] = [
    |generator, _| Box::new(Isir::new(generator)),
    |generator, screen| Box::new(DelayedAcceptance::new(generator, screen).unwrap()),
    |generator, screen| Box::new(Independence::by_surrogate(generator, screen).unwrap()),
    |generator, _| {
        let path = Path { kernel: Steps::Adjusted, stages: even(3, 0.01), moves: 1 };
        Box::new(Annealed::new(generator, path).unwrap())
    },
];

impl Sampler {
    fn new(kernel: Kernel) -> Sampler {
        let q: Arc<dyn Density> = Arc::new(Exact(DoubleWell2 { well: double_well(0.0), width: 0.4 }));
        let p: Arc<dyn Density> = Arc::new(Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 }));
        let options = Options { n_proposals: 3, seed: 99, stride: STRIDE, batch: 7, draw_ahead: false, partial: false };
        let generator = Generator::new(q.clone(), None, options).unwrap();
        Sampler {
            jump: kernel(generator, Arc::new(WrongScreen(q))),
            walk: RandomWalk::new(2, 0.2, 99).unwrap(),
            target: NegativeLog::new(p, 0.0),
            step: 0,
            x: vec![1.0, 0.4],
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            let u = self.target.u(&self.x);
            let mut state =
                State { x: &mut self.x, box_vectors: None, reduced_potential: u, step: self.step, replica: 6 };
            self.walk.attempt(&mut self.target, &mut state).unwrap();
            if self.step % STRIDE == 0 {
                self.jump.attempt(&mut self.target, &mut state).unwrap();
            }
            self.step += 1;
        }
    }

    fn saved(&self) -> Saved {
        (self.step, self.x.clone(), [self.jump.statistics().clone(), self.walk.statistics().clone()])
    }

    fn restored(kernel: Kernel, (step, x, [jump, walk]): Saved) -> Sampler {
        let mut sampler = Sampler { step, x, ..Sampler::new(kernel) };
        *sampler.jump.statistics_mut() = jump;
        *sampler.walk.statistics_mut() = walk;
        sampler
    }
}

#[test]
fn a_run_that_was_stopped_and_restarted_equals_one_that_was_not() {
    for kernel in KERNELS {
        let folder = std::env::temp_dir().join(format!("modejump-restart-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("run.ckpt");
        let mut straight = Sampler::new(kernel);
        straight.run(1000);
        // 503 is in the middle of a block: attempts at 500 and 505 share one.
        let mut first = Sampler::new(kernel);
        first.run(503);
        checkpoint::save(&path, KIND, &first.saved()).unwrap();
        drop(first);
        let mut second = Sampler::restored(kernel, checkpoint::load(&path, KIND).unwrap());
        second.run(497);
        let bits = |s: &Sampler| s.x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&straight), bits(&second));
        assert_eq!(straight.saved(), second.saved());
        assert!(straight.jump.statistics().acceptance() > 0.2);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
