//! Work on many rows, shared by the processes (ranks) started by `mpirun`.
//!
//! Every rank runs the same program on the same inputs and holds the same data for all rows; only what is costly about
//! a row, its sample or energies, is computed by one rank and sent to the others. Random streams are those of a row's
//! global index, and sums run over all rows in order on every rank, so the results are the same to the last bit on any
//! number of ranks, as far as energies do not depend on the rows before (OpenMM's do on its CPU platform with a
//! cut-off). Decisions based on rounded numbers must agree on all ranks: `same` compares the data that all are
//! about to work on, so that machines that round differently cause an error instead of a wrong answer.

#[cfg(feature = "mpi")]
mod mpi;

use crate::density::{Density, Evaluation, Status};
use crate::error::{Error, Result};
use crate::io::checkpoint::Identity;
use crate::rng::{Stream, StreamId};
use std::error::Error as _;
use std::io::Write;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

/// The processes of a run.
pub trait Ranks {
    /// Index of this process, from 0; the first one prints and writes.
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    /// Concatenates the numbers of all ranks, in rank order. Collective: every rank has to call it.
    fn gather(&self, own: Vec<f64>) -> Result<Vec<f64>> {
        Ok(own)
    }

    /// Ends the processes of all ranks, which may be waiting for this one.
    fn abort(&self) -> ! {
        std::process::exit(1)
    }
}

/// A single process.
pub struct Alone;

impl Ranks for Alone {}

impl dyn Ranks + '_ {
    /// Whether this is the rank that writes and reports.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's share of n rows.
    pub fn share(&self, n: usize) -> Range<usize> {
        let start = |rank| n * rank / self.size();
        start(self.rank())..start(self.rank() + 1)
    }

    /// Computes numbers of n rows, equally many for each, where every rank computes its share; returns all in order.
    ///
    /// Errors: those of this rank, while the others wait for it; the caller has to end them (as [`run`] does).
    pub fn rows(&self, n: usize, compute: impl FnOnce(Range<usize>) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
        let share = self.share(n);
        let own = if share.is_empty() { Vec::new() } else { compute(share)? };
        self.gather(own)
    }

    /// Like `rows`, for evaluations.
    pub fn evaluations(
        &self,
        n: usize,
        compute: impl FnOnce(Range<usize>, &mut [Evaluation]) -> Result<()>,
    ) -> Result<Vec<Evaluation>> {
        let packed = self.rows(n, |rows| {
            let mut own = room(Some(rows.len()), Evaluation::outside(Status::NonFinite))?;
            compute(rows, &mut own)?;
            Ok(own.iter().flat_map(|e| [e.log_density, f64::from(e.status as u8)]).collect())
        })?;
        let unpack = |pair: &[f64]| Evaluation { log_density: pair[0], status: Status::ALL[pair[1] as usize] };
        Ok(packed.chunks_exact(2).map(unpack).collect())
    }

    /// Draws n samples of a density `[n][dimension]` with their log q, from streams by row index. Errors: a failing
    /// density, more than memory holds.
    pub fn sample(&self, density: &dyn Density, n: usize, seed: u64) -> Result<(Vec<f64>, Vec<Evaluation>)> {
        let mut own = room(self.share(n).len().checked_mul(density.dimension()), 0.0)?;
        let log_q = self.evaluations(n, |rows, log_q| density.sample(&streams(seed, rows), &mut own, log_q))?;
        Ok((self.gather(own)?, log_q))
    }

    /// Errors: the ranks have been given different models, files or options.
    pub fn same_run(&self, identity: &Identity) -> Result<()> {
        let bytes = format!("{identity:?}").into_bytes();
        self.same(&bytes.into_iter().map(f64::from).collect::<Vec<_>>(), "a model, a System or options")
    }

    /// Errors: the ranks hold different numbers here; `what` describes them.
    pub fn same(&self, numbers: &[f64], what: &str) -> Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        let digests = self.gather(vec![digest(numbers)])?;
        match digests.iter().position(|&other| other != digests[0]) {
            None => Ok(()),
            Some(rank) => Err(Error::invalid(format!(
                "rank {rank} has {what} different from those of rank 0: all ranks must have the same files and \
                 options, and run on machines of the same kind"
            ))),
        }
    }
}

/// A vector of n copies of `value`; n = None stands for an overflow. Errors: more than memory holds, instead of an
/// abort.
pub fn room<T: Clone>(n: Option<usize>, value: T) -> Result<Vec<T>> {
    let mut values = Vec::new();
    match n.filter(|&n| values.try_reserve_exact(n).is_ok()) {
        Some(n) => {
            values.resize(n, value);
            Ok(values)
        }
        None => Err(Error::invalid("not enough memory for this many rows: use fewer at a time")),
    }
}

/// Starts the threads for computations on the CPU, as many as there are cores or `RAYON_NUM_THREADS` says, unless the
/// process has them already. Errors: threads that the system refuses, now and at every later call.
pub fn start_threads() -> Result<()> {
    static REFUSED: OnceLock<Option<String>> = OnceLock::new();
    // a pool that was built before, which is no refusal, is an error without a source
    let refusal = || rayon::ThreadPoolBuilder::new().build_global().err()?.source().map(|e| e.to_string());
    match REFUSED.get_or_init(refusal) {
        None => Ok(()),
        Some(reason) => Err(Error::Unsupported(format!(
            "could not start the threads of computations ({reason}): set RAYON_NUM_THREADS to fewer, or raise the limit \
             of processes (ulimit -u)"
        ))),
    }
}

/// Streams for samples of these rows of a run.
pub fn streams(seed: u64, rows: Range<usize>) -> impl Fn(usize) -> Stream + Sync {
    move |row| Stream::new(seed, StreamId::Sample, (rows.start + row) as u64, 0)
}

/// Hash of the numbers' bits, word by word, as an integer that an f64 holds exactly.
fn digest(numbers: &[f64]) -> f64 {
    let mix = |hash: u64, number: &f64| (hash ^ number.to_bits()).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    let hash = numbers.iter().fold(0xcbf2_9ce4_8422_2325 ^ numbers.len() as u64, mix);
    (hash >> 11) as f64
}

/// Runs `body` on the ranks started by `mpirun`, else alone. A rank that fails reports why and ends the others.
///
/// Errors: those of `body` in a single process; several processes that do not know of each other.
pub fn run<T>(body: impl FnOnce(&dyn Ranks) -> Result<T>) -> Result<T> {
    let ranks = start()?;
    let done = body(ranks.as_ref());
    if let (Err(error), 2..) = (&done, ranks.size()) {
        if ranks.rank() > 0 {
            // an error on all ranks is reported by the first, which ends the others meanwhile
            sleep(Duration::from_secs(1));
        }
        let said = format!("modejump: rank {} of {}: {error}\n", ranks.rank(), ranks.size());
        // output that mpirun has not forwarded when it learns of the end is lost, and all of it is if standard error is
        // closed
        let _ = std::io::stderr().write_all(said.as_bytes());
        sleep(Duration::from_millis(500));
        ranks.abort();
    }
    done
}

#[cfg(feature = "mpi")]
fn start() -> Result<Box<dyn Ranks>> {
    let ranks = mpi::Mpi::start()?;
    match launched() {
        Some(processes) if processes > 1 && ranks.size() == 1 => Err(Error::Unsupported(format!(
            "this is one of {processes} processes, but the MPI library it is linked with sees only one: start it with \
             the mpirun of that library"
        ))),
        _ => Ok(Box::new(ranks)),
    }
}

#[cfg(not(feature = "mpi"))]
fn start() -> Result<Box<dyn Ranks>> {
    match launched() {
        Some(processes @ 2..) => Err(Error::Unsupported(format!(
            "this is one of {processes} processes, which would all do the same work: running on several ranks requires \
             a build with `--features mpi`"
        ))),
        _ => Ok(Box::new(Alone)),
    }
}

/// Says on standard error if this is one of several processes, for work that they do not share.
pub fn warn_of_copies() {
    if let Some(processes @ 2..) = launched() {
        let said = format!("modejump: this is one of {processes} processes, each of which does this work by itself\n");
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
}

/// Number of processes that `mpirun` (MPICH and its descendants, or Open MPI) or `srun` says it has started.
fn launched() -> Option<usize> {
    ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"]
        .iter()
        .find_map(|name| std::env::var(name).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One {
        rank: usize,
        size: usize,
    }

    impl Ranks for One {
        fn rank(&self) -> usize {
            self.rank
        }

        fn size(&self) -> usize {
            self.size
        }
    }

    #[test]
    fn shares_are_all_rows_in_order() {
        for (n, size) in [(0, 3), (2, 5), (97, 4), (8, 8), (100, 1)] {
            let shares = (0..size).flat_map(|rank| {
                let one: &dyn Ranks = &One { rank, size };
                let share = one.share(n);
                assert!(share.len() <= n.div_ceil(size), "{share:?}");
                share
            });
            assert!(shares.eq(0..n), "{n} rows on {size} ranks");
        }
    }

    #[test]
    fn what_does_not_fit_into_memory_is_refused() {
        assert_eq!(room(Some(3), 0.5).unwrap(), [0.5; 3]);
        for n in [None, Some(usize::MAX), Some(1 << 59)] {
            assert!(room(n, 0.0).unwrap_err().to_string().contains("use fewer at a time"));
        }
    }

    #[test]
    fn a_digest_knows_order_length_and_every_bit() {
        let x = [1.0, -2.5, 0.0];
        let others: [&[f64]; 5] = [
            &[1.0, 0.0, -2.5],
            &[1.0, -2.5],
            &[1.0, -2.5, -0.0],
            &[f64::from_bits(1.0f64.to_bits() + 1), -2.5, 0.0],
            &[],
        ];
        for other in others {
            assert_ne!(digest(&x), digest(other), "{other:?}");
        }
        assert_eq!(digest(&x), digest(&[1.0, -2.5, 0.0]));
    }

    #[test]
    fn evaluations_keep_their_status() {
        let alone: &dyn Ranks = &Alone;
        let expected: Vec<Evaluation> =
            Status::ALL.iter().map(|&status| Evaluation { log_density: -1.5, status }).collect();
        let found = alone.evaluations(expected.len(), |rows, own| {
            own.copy_from_slice(&expected[rows]);
            Ok(())
        });
        assert_eq!(found.unwrap(), expected);
    }
}
