//! Proposals drawn ahead by a thread, and densities evaluated in parallel with the target, are identical bit for bit to
//! those computed without threads.

use crate::systems::*;
use modejump::annealing::{even, Kernel as Steps};
use modejump::density::{Density, Evaluation, Exactness};
use modejump::error::{Error, Result};
use modejump::models::{self, Model, Precision};
use modejump::moves::{
    Annealed, DelayedAcceptance, Generator, Independence, Isir, Move, Options, Outcome, Path, State,
};
use modejump::rng::Stream;
use modejump::target::Target;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

type Kernel = fn(Generator, Arc<dyn Density>) -> Box<dyn Move>;

const KERNELS: [Kernel; 4] = [
    |generator, _| Box::new(Independence::new(generator)),
    |generator, _| Box::new(Isir::new(generator)),
    |generator, screen| Box::new(DelayedAcceptance::new(generator, screen).unwrap()),
    |generator, _| {
        let path = Path { kernel: Steps::Adjusted, stages: even(2, 0.01), moves: 1 };
        Box::new(Annealed::new(generator, path).unwrap())
    },
];

const OPTIONS: Options = Options { n_proposals: 2, seed: 5, stride: 4, batch: 6, draw_ahead: false, partial: false };

/// Attempts in blocks, off the grid, alternating between two replicas, and back in time, as after restoring a
/// checkpoint.
fn steps() -> impl Iterator<Item = (u64, u32)> {
    let straight = (0..40).map(|k| (4 * k, 3));
    let off_the_grid = [(161, 3), (164, 3), (165, 3), (168, 3)];
    let replicas = (50..90).map(|k| (4 * k, (k % 2) as u32));
    let back = (10..20).map(|k| (4 * k, 3));
    straight.chain(off_the_grid).chain(replicas).chain(back)
}

fn outcomes(mut kernel: Box<dyn Move>, target: &Arc<dyn Density>, mut x: Vec<f64>) -> Vec<(Vec<u64>, u64)> {
    let mut target = NegativeLog::new(target.clone(), 0.0);
    let attempt = |(step, replica)| {
        let reduced_potential = target.u(&x);
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step, replica };
        let Outcome { log_acceptance, .. } = kernel.attempt(&mut target, &mut state).unwrap();
        (x.iter().map(|v| v.to_bits()).collect(), log_acceptance.to_bits())
    };
    steps().map(attempt).collect()
}

#[test]
fn results_with_and_without_the_thread_are_the_same_bit_for_bit() {
    let q: Arc<dyn Density> = Arc::new(Exact(DoubleWell2 { well: double_well(0.0), width: 0.4 }));
    let p: Arc<dyn Density> = Arc::new(Exact(DoubleWell2 { well: double_well(0.475), width: 0.3 }));
    for kernel in KERNELS {
        let run = |draw_ahead: bool| {
            let generator = Generator::new(q.clone(), None, Options { draw_ahead, ..OPTIONS }).unwrap();
            outcomes(kernel(generator, Arc::new(WrongScreen(q.clone()))), &p, vec![1.0, 0.5])
        };
        let plain = run(false);
        assert_eq!(plain, run(true));
        assert!(plain.windows(2).filter(|w| w[0].0 != w[1].0).count() > 10, "something has moved");
    }
}

/// A network in single precision, whose rounding depends on the composition of a batch.
#[test]
fn a_network_gives_the_same_with_any_number_of_threads() {
    let bytes = std::fs::read("models/double-well/generator.safetensors").unwrap();
    let model: Arc<dyn Model> = models::from_bytes("test", &bytes, Precision::F32).unwrap();
    let target: Arc<dyn Density> = model.clone();
    let run = |draw_ahead: bool, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let generator = Generator::of_model(&model, Options { draw_ahead, ..OPTIONS }).unwrap();
            outcomes(Box::new(Independence::new(generator)), &target, vec![1.0, 0.5])
        })
    };
    let plain = run(false, 1);
    for (ahead, threads) in [(true, 1), (true, 2), (false, 3), (true, 3)] {
        assert_eq!(plain, run(ahead, threads), "{ahead} {threads}");
    }
}

/// A density that counts the sample calls made in proposal threads, and fails after a given number of blocks.
struct Watched {
    inner: Exact<Table>,
    in_threads: AtomicUsize,
    left: AtomicUsize,
    rows: AtomicUsize,
}

impl Watched {
    fn new(left: usize) -> Arc<Watched> {
        let inner = Exact(normal_mixture(&[(1.0, 0.0, 1.0)]));
        let [in_threads, rows] = [0, 0].map(AtomicUsize::new);
        Arc::new(Watched { inner, in_threads, left: AtomicUsize::new(left), rows })
    }
}

impl Density for Watched {
    fn dimension(&self) -> usize {
        1
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        if std::thread::current().name() == Some("modejump-proposals") {
            self.in_threads.fetch_add(1, Ordering::SeqCst);
        }
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| Error::invalid("no sample is left"))?;
        self.rows.fetch_add(e.len(), Ordering::SeqCst);
        self.inner.sample(streams, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.inner.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

#[test]
fn blocks_are_drawn_in_a_thread_once_and_its_errors_are_those_of_the_attempt() {
    let density = Watched::new(5);
    let options = Options { draw_ahead: true, ..OPTIONS };
    let mut kernel = Independence::new(Generator::new(density.clone(), None, options).unwrap());
    let mut target = NegativeLog::new(Arc::new(Exact(double_well(0.3))), 0.0);
    let mut x = [0.9];
    let mut attempt = |step| {
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step, replica: 0 };
        kernel.attempt(&mut target, &mut state).map(|_| x[0])
    };
    // five blocks of six attempts, four steps apart: the first drawn by the attempt, the others in threads
    for step in 0..30 {
        attempt(4 * step).unwrap();
    }
    let before = x[0];
    let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step: 120, replica: 0 };
    let message = kernel.attempt(&mut target, &mut state).unwrap_err().to_string();
    assert!(message.contains("no sample is left"), "{message}");
    assert_eq!((x[0], density.in_threads.load(Ordering::SeqCst)), (before, 5));
}

/// Two replicas share a move and alternate attempts: there are as many draws as blocks.
#[test]
fn replicas_in_turn_keep_their_blocks() {
    let density = Watched::new(100);
    let mut kernel = Independence::new(Generator::new(density.clone(), None, OPTIONS).unwrap());
    let mut target = NegativeLog::new(Arc::new(Exact(double_well(0.3))), 0.0);
    let mut x = [[0.9], [-0.9]];
    for step in 0..12 {
        for (replica, x) in x.iter_mut().enumerate() {
            let replica = replica as u32;
            let mut state = State { x, box_vectors: None, reduced_potential: 0.0, step: 4 * step, replica };
            kernel.attempt(&mut target, &mut state).unwrap();
        }
    }
    assert_eq!(100 - density.left.load(Ordering::SeqCst), 4, "two blocks of six attempts for each");
}

/// Attempts like those of `MonteCarloModeJump.attempt()` draw only their own proposals.
#[test]
fn attempts_out_of_turn_draw_their_own() {
    let density = Watched::new(100);
    let mut kernel = Independence::new(Generator::new(density.clone(), None, OPTIONS).unwrap());
    let mut target = NegativeLog::new(Arc::new(Exact(double_well(0.3))), 0.0);
    let mut x = [0.9];
    for step in [0, 1 << 40, 4 | 1 << 40, 2 << 40] {
        let mut state = State { x: &mut x, box_vectors: None, reduced_potential: 0.0, step, replica: 0 };
        kernel.attempt(&mut target, &mut state).unwrap();
    }
    assert_eq!(density.rows.load(Ordering::SeqCst), 12 + 3 * 2);
}

/// A density that counts its evaluations, and panics at a configuration that is far away.
struct Asked {
    inner: Exact<Table>,
    times: AtomicUsize,
}

impl Density for Asked {
    fn dimension(&self) -> usize {
        1
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.inner.sample(streams, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        assert!(x[0] < 100.0, "the density is lost");
        self.times.fetch_add(1, Ordering::SeqCst);
        self.inner.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// A potential that waits until the density has been evaluated, and fails when the time is up.
struct Waiting<'a>(&'a Asked, Duration);

impl Target for Waiting<'_> {
    fn dimension(&self) -> usize {
        1
    }
    fn reduced_potential(&mut self, _: &[f64], u: &mut [f64]) -> Result<()> {
        let start = Instant::now();
        while self.0.times.load(Ordering::SeqCst) == 0 {
            if start.elapsed() > self.1 {
                return Err(Error::invalid("the density was not asked meanwhile"));
            }
            sleep(Duration::from_micros(100));
        }
        u.fill(0.0);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

#[test]
fn the_density_is_evaluated_beside_the_potential() {
    let attempt = |threads: usize, mut x: f64, patience: Duration| {
        let inner = Exact(normal_mixture(&[(1.0, 0.0, 1.0)]));
        let density = Arc::new(Asked { inner, times: AtomicUsize::new(0) });
        let generator = Generator::new(density.clone(), None, Options { draw_ahead: true, ..OPTIONS }).unwrap();
        let mut kernel = Independence::new(generator);
        let x = std::slice::from_mut(&mut x);
        let mut state = State { x, box_vectors: None, reduced_potential: 0.0, step: 0, replica: 0 };
        let mut target = Waiting(&density, patience);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let result = pool.install(|| kernel.attempt(&mut target, &mut state).map(|_| ()));
        result.map(|()| density.times.load(Ordering::SeqCst))
    };
    assert_eq!(attempt(2, 0.5, Duration::from_secs(60)).unwrap(), 1);
    // the calling thread is the only one in its pool: the target's failure is returned as the attempt's error
    let message = attempt(1, 0.5, Duration::from_millis(20)).unwrap_err().to_string();
    assert!(message.contains("not asked meanwhile"), "{message}");
    let panic = catch_unwind(AssertUnwindSafe(|| attempt(2, 1000.0, Duration::from_millis(20)))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"the density is lost"));
}
