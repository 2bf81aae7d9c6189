//! A restarted run goes on bit for bit, also in the middle of a block of pre-drawn proposals.

use crate::systems::*;
use modejump::annealing::{even, Kernel as Steps};
use modejump::density::Density;
use modejump::io::checkpoint::{Checkpoint, Replica};
use modejump::moves::{
    Annealed, DelayedAcceptance, Generator, Independence, Isir, Move, Options, Path, RandomWalk, State,
};
use std::sync::Arc;

struct Sampler {
    jump: Box<dyn Move>,
    walk: RandomWalk,
    target: NegativeLog,
    options: Options,
    replica: Replica,
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
        let options = Options { n_proposals: 3, seed: 99, stride: 5, batch: 7, draw_ahead: false };
        let generator = Generator::new(q.clone(), None, options).unwrap();
        Sampler {
            jump: kernel(generator, Arc::new(WrongScreen(q))),
            walk: RandomWalk::new(2, 0.2, 99).unwrap(),
            target: NegativeLog::new(p, 0.0),
            options,
            replica: Replica {
                replica: 6,
                step: 0,
                x: vec![1.0, 0.4],
                velocities: vec![],
                box_vectors: None,
                reduced_potential: 0.0,
            },
        }
    }

    fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            let Replica { replica, step, x, reduced_potential, .. } = &mut self.replica;
            *reduced_potential = self.target.u(x);
            let mut state =
                State { x, box_vectors: None, reduced_potential: *reduced_potential, step: *step, replica: *replica };
            self.walk.attempt(&mut self.target, &mut state).unwrap();
            if *step % self.options.stride == 0 {
                self.jump.attempt(&mut self.target, &mut state).unwrap();
            }
            *reduced_potential = state.reduced_potential;
            *step += 1;
        }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            model_hash: "analytic".into(),
            generator_epoch: 0,
            options: self.options,
            replicas: vec![self.replica.clone()],
            statistics: vec![self.jump.statistics().clone(), self.walk.statistics().clone()],
        }
    }

    fn restore(checkpoint: Checkpoint, kernel: Kernel) -> Sampler {
        let mut sampler = Sampler::new(kernel);
        assert_eq!(checkpoint.options, sampler.options);
        let [jump, walk] = <[_; 2]>::try_from(checkpoint.statistics).unwrap();
        *sampler.jump.statistics_mut() = jump;
        *sampler.walk.statistics_mut() = walk;
        sampler.replica = checkpoint.replicas.into_iter().next().unwrap();
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
        first.checkpoint().save(&path).unwrap();
        drop(first);
        let mut second = Sampler::restore(Checkpoint::load(&path).unwrap(), kernel);
        second.run(497);
        let bits = |s: &Sampler| s.replica.x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&straight), bits(&second));
        assert_eq!(straight.checkpoint(), second.checkpoint());
        assert!(straight.jump.statistics().acceptance() > 0.2);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
