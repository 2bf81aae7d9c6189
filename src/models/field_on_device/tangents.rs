//! Compile-time constants and block sizes of programs based on `cuda/tangents.cuh`: networks with messages between all
//! atoms.

use super::{needs_scratch, padded, threads, Machine, Numbers};
use crate::device::{program::real, Program};
use crate::nn::Real;

/// Lanes of pairs that fill a block.
const PAIR_LANES: usize = 192;
/// Largest number of directions in a share; a product's lanes come in eights.
const MOST_DIRECTIONS: usize = 4;

/// How a block processes a configuration.
pub struct Block {
    pub numbers: Numbers,
    /// Directions of derivatives computed at once; 0 for values only.
    directions: usize,
    /// Atoms whose messages are computed at once: for values, and for tangents.
    destinations: usize,
    beside: usize,
}

impl Block {
    /// From the numbers of values and tangents for a given number of destination atoms at once, and those on the tape.
    pub fn new<R>(
        n_atoms: usize,
        directions: usize,
        shared: usize,
        values: impl Fn(usize) -> usize,
        tangents: impl Fn(usize) -> usize,
        tape: usize,
    ) -> Block {
        let lanes = padded(n_atoms);
        let destinations = at_once::<R>(lanes, shared, &values);
        if directions == 0 {
            let numbers = Numbers::of_state(values(destinations));
            return Block { numbers, directions, destinations, beside: 0 };
        }
        let beside = at_once::<R>(lanes * directions, shared, &tangents);
        let state = values(destinations).max(tangents(beside));
        Block { numbers: Numbers { state, tape }, directions, destinations, beside }
    }

    /// Directions of a share: as many as shared memory has room for, or the largest number if even one does not fit.
    pub fn directions<R>(shared: usize, block: impl Fn(usize) -> Block) -> usize {
        let fits = |directions: &usize| !needs_scratch::<R>(block(*directions).numbers.state, shared);
        [MOST_DIRECTIONS, 2, 1].into_iter().find(fits).unwrap_or(MOST_DIRECTIONS)
    }
}

/// Largest number that does not exceed a block's lanes and whose state of `memory(number)` numbers fits into shared
/// memory; at least 1.
fn at_once<R>(lanes: usize, shared: usize, memory: impl Fn(usize) -> usize) -> usize {
    (1..=PAIR_LANES / lanes).rev().find(|&number| !needs_scratch::<R>(memory(number), shared)).unwrap_or(1)
}

/// A program for such a block, with further constants of the model.
pub fn program<R: Real>(
    (name, source): (&'static str, &str),
    n_atoms: usize,
    block: &Block,
    Machine { shared, tensor }: Machine,
    own: &[(&'static str, usize)],
) -> Program {
    let numbers = [
        ("TENSOR", usize::from(tensor)),
        ("THREADS", threads::<R>()),
        ("DIRECTIONS", block.directions),
        ("DESTINATIONS", block.destinations),
        ("BESIDE", block.beside),
        ("SCRATCH", usize::from(needs_scratch::<R>(block.numbers.state, shared))),
        ("ATOMS", n_atoms),
        ("PADDED", padded(n_atoms)),
    ];
    let name_of_real = real::<R>();
    let mut constants: Vec<(_, &dyn std::fmt::Display)> = vec![("REAL", &name_of_real)];
    constants.extend(numbers.iter().chain(own).map(|(name, value)| (*name, value as &dyn std::fmt::Display)));
    Program::new(name, source, &constants)
}
