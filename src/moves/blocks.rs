//! Proposals as the density draws them, in blocks of attempts; a thread may draw the next block ahead.

use super::Options;
use crate::density::{Density, Evaluation, Status};
use crate::error::{Error, Result};
use crate::parallel::room;
use crate::rng::{Stream, StreamId};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Stream counters between two proposals of one attempt: 2²¹ random numbers for each.
const COUNTERS_PER_PROPOSAL: u32 = 1 << 20;

/// Step numbers from here on belong to attempts that an engine counts apart from its steps: they do not follow each
/// other by the stride.
const COUNTED: u64 = 1 << 40;

/// A run of attempts whose proposals are drawn together.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Block {
    first_step: u64,
    attempts: usize,
    replica: u32,
}

/// Samples of the density with log q, `[attempts · n_proposals]` rows.
#[derive(Default)]
struct Drawn {
    x: Vec<f64>,
    evaluations: Vec<Evaluation>,
}

/// All that is needed to draw a block, with the same result whichever thread draws it and when.
#[derive(Clone)]
struct Recipe {
    density: Arc<dyn Density>,
    options: Options,
    /// Whether samples are drawn without log q.
    points_only: bool,
}

impl Recipe {
    /// Memory for the longest block. Errors: more than there is.
    fn memory(&self) -> Result<Drawn> {
        let Options { n_proposals, stride, batch, .. } = self.options;
        let rows = n_proposals * if stride > 0 { batch } else { 1 };
        let nowhere = Evaluation::outside(Status::NonFinite);
        Ok(Drawn { x: room(rows.checked_mul(self.density.dimension()), 0.0)?, evaluations: room(Some(rows), nowhere)? })
    }

    fn draw(&self, block: Block, drawn: &mut Drawn) -> Result<()> {
        let Options { n_proposals, seed, stride, .. } = self.options;
        let rows = block.attempts * n_proposals;
        let streams = |row: usize| {
            let step = block.first_step.wrapping_add((row / n_proposals) as u64 * stride);
            let index = (row % n_proposals) as u32 * COUNTERS_PER_PROPOSAL;
            Stream::new(seed, StreamId::Proposal, step, block.replica).at(index)
        };
        let x = &mut drawn.x[..rows * self.density.dimension()];
        let evaluations = &mut drawn.evaluations[..rows];
        if !self.points_only {
            return self.density.sample(&streams, x, evaluations);
        }
        let mut status = vec![Status::NonFinite; rows];
        self.density.sample_only(&streams, x, &mut status)?;
        evaluations.iter_mut().zip(status).for_each(|(e, status)| {
            *e = if status == Status::Inside { Evaluation::inside(0.0) } else { Evaluation::outside(status) }
        });
        Ok(())
    }
}

/// A block being drawn by a thread. Dropping it waits for the thread, except in a process forked since, which has none.
struct Ahead {
    block: Block,
    thread: Option<JoinHandle<Result<Drawn>>>,
    process: u32,
}

impl Ahead {
    fn start(recipe: &Recipe, block: Block, mut into: Drawn) -> Result<Ahead> {
        let recipe = recipe.clone();
        let draw = move || recipe.draw(block, &mut into).map(|()| into);
        let thread = std::thread::Builder::new().name("modejump-proposals".into()).spawn(draw);
        let thread =
            thread.map_err(|e| Error::invalid(format!("could not start a thread for upcoming proposals: {e}")))?;
        Ok(Ahead { block, thread: Some(thread), process: std::process::id() })
    }

    fn wait(mut self) -> Result<Drawn> {
        let thread = self.thread.take().expect("a thread is waited for once");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        match self.thread.take() {
            Some(thread) if self.process != std::process::id() => std::mem::forget(thread),
            Some(thread) => {
                // the block is not wanted any more, nor is any error in it
                let _ = thread.join();
            }
            None => {}
        }
    }
}

/// Blocks of proposals of every replica.
///
/// With stride s and batch B, attempts at multiples of s form blocks of B, and a block is always drawn whole, whichever
/// of its attempts comes first. The composition of a batch may change the rounding of a network; blocks do not change
/// when a run is restarted within one, so the run continues bit for bit. Replicas that take turns each keep their block
/// until it is used up.
pub(super) struct Blocks {
    recipe: Recipe,
    /// Replicas by last use, the latest at the end.
    replicas: Vec<OfReplica>,
}

/// Number of replicas whose blocks are kept; with more, blocks are redrawn at every turn.
const MOST_REPLICAS: usize = 64;

/// The block of a replica's present attempt, and possibly the next.
struct OfReplica {
    replica: u32,
    present: Option<Block>,
    drawn: Drawn,
    /// Block that a thread draws while the present one is used up.
    ahead: Option<Ahead>,
    /// Spare memory for the next block.
    spare: Drawn,
}

impl Blocks {
    /// Errors: more memory than there is.
    pub(super) fn new(density: Arc<dyn Density>, options: Options) -> Result<Blocks> {
        let recipe = Recipe { density, options, points_only: false };
        let mut blocks = Blocks { recipe, replicas: Vec::with_capacity(MOST_REPLICAS) };
        blocks.turn_to(0)?;
        Ok(blocks)
    }

    /// Draws samples without log q from now on.
    pub(super) fn draw_points_only(&mut self) {
        self.recipe.points_only = true;
        self.replicas.clear();
    }

    /// Proposals of the attempt at this step: x `[n_proposals][dimension]` and their evaluations.
    ///
    /// Errors: those of the density, a thread that cannot be started, more memory than there is.
    pub(super) fn of(&mut self, step: u64, replica: u32) -> Result<(&[f64], &[Evaluation])> {
        let Options { n_proposals, stride, batch, draw_ahead, .. } = self.recipe.options;
        let on_grid = stride > 0 && step < COUNTED && step.is_multiple_of(stride);
        let block = match on_grid {
            true => {
                let attempt = step / stride;
                Block { first_step: (attempt - attempt % batch as u64) * stride, attempts: batch, replica }
            }
            false => Block { first_step: step, attempts: 1, replica },
        };
        self.turn_to(replica)?;
        let of_replica = self.replicas.last_mut().expect("its turn has come");
        of_replica.draw(&self.recipe, block, on_grid && draw_ahead)?;
        let attempt = if on_grid { ((step - block.first_step) / stride) as usize } else { 0 };
        let (first, d) = (attempt * n_proposals, self.recipe.density.dimension());
        let (rows, Drawn { x, evaluations }) = (first..first + n_proposals, &of_replica.drawn);
        Ok((&x[rows.start * d..rows.end * d], &evaluations[rows]))
    }

    /// Makes this replica the last of the list; drops the first if there are too many.
    fn turn_to(&mut self, replica: u32) -> Result<()> {
        match self.replicas.iter().position(|of_replica| of_replica.replica == replica) {
            Some(place) => self.replicas[place..].rotate_left(1),
            None => {
                if self.replicas.len() == MOST_REPLICAS {
                    self.replicas.remove(0);
                }
                let (drawn, spare) = (self.recipe.memory()?, Drawn::default());
                self.replicas.push(OfReplica { replica, present: None, drawn, ahead: None, spare });
            }
        }
        Ok(())
    }
}

impl OfReplica {
    /// Makes `block` the present one, and starts drawing the next if `ahead`.
    fn draw(&mut self, recipe: &Recipe, block: Block, ahead: bool) -> Result<()> {
        if self.present == Some(block) {
            return Ok(());
        }
        self.present = None;
        match self.ahead.take().filter(|ahead| ahead.block == block) {
            Some(ahead) => self.spare = std::mem::replace(&mut self.drawn, ahead.wait()?),
            None => recipe.draw(block, &mut self.drawn)?,
        }
        self.present = Some(block);
        let length = block.attempts as u64 * recipe.options.stride;
        if let Some(first_step) = block.first_step.checked_add(length).filter(|_| ahead) {
            let memory = match std::mem::take(&mut self.spare) {
                none if none.x.is_empty() => recipe.memory()?, // first use, or taken by a discarded block
                memory => memory,
            };
            self.ahead = Some(Ahead::start(recipe, Block { first_step, ..block }, memory)?);
        }
        Ok(())
    }
}
