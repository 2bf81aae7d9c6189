//! Ranks of MPI.

use super::Ranks;
use crate::error::{Error, Result};
use ::mpi::datatype::PartitionMut;
use ::mpi::environment::Universe;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives};
use ::mpi::{Count, Threading};

/// All ranks that `mpirun` started.
pub struct Mpi {
    world: SimpleCommunicator,
    /// Finalises MPI when dropped.
    _universe: Universe,
}

impl Mpi {
    /// Starts MPI. Errors: MPI was started in this process before.
    pub fn start() -> Result<Mpi> {
        let started = ::mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.ok_or_else(|| Error::invalid("MPI has already been started in this process"))?;
        Ok(Mpi { world: universe.world(), _universe: universe })
    }
}

impl Ranks for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn gather(&self, own: Vec<f64>) -> Result<Vec<f64>> {
        let mut lengths = vec![0; self.size()];
        self.world.all_gather_into(&(own.len() as u64), &mut lengths[..]);
        let total: u64 = lengths.iter().sum();
        if total > Count::MAX as u64 {
            return Err(Error::invalid(format!(
                "{total} numbers are too many for one MPI message, which holds at most {}: use fewer rows",
                Count::MAX
            )));
        }
        let counts: Vec<Count> = lengths.iter().map(|&length| length as Count).collect();
        let starts: Vec<Count> = counts.iter().scan(0, |at, count| Some(std::mem::replace(at, *at + count))).collect();
        let mut all = vec![0.0; total as usize];
        self.world.all_gather_varcount_into(&own[..], &mut PartitionMut::new(&mut all[..], counts, starts));
        Ok(all)
    }

    fn abort(&self) -> ! {
        self.world.abort(1)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // finalising MPI would wait for the other ranks, which wait for this one
        if std::thread::panicking() {
            self.abort();
        }
    }
}
