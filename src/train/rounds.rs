//! Adaptive rounds: simulate, train, freeze, simulate (Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022)).
//!
//! A chain whose generator learns from it is not a Markov chain, and averages over it are biased. Here parameters
//! change only between stages: walkers move by dynamics and by jumps of a frozen generator, their frames are labelled
//! with its epoch, and training on them makes the generator of the next epoch, with a new move and no pending proposal
//! of the old one. When a frozen generator is good enough, or the rounds are used up, it runs the production stage,
//! whose frames alone may be averaged. Every production is preceded by a stage of the same walkers with the same
//! generator.

use super::hot::{ExploreOptions, HotReplicas};
use super::phases::TrainOptions;
use super::progress::{nan_as_none, Progress};
use super::trainer::{TrainState, Trainer};
use crate::coordinates::Region;
use crate::engines::langevin::{Langevin, LangevinOptions};
use crate::error::{Error, Result};
use crate::free_energy::{between_states_of_blocks, between_states_of_series};
use crate::io::model_file;
use crate::models;
use crate::models::coupling::CouplingFlow;
use crate::moves::{Fate, LatentWalkOptions, Method, Move, Options, State, Statistics};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Training steps between two moments at which its state can be saved.
const TRAINING_STEPS: usize = 100;

/// Options of adaptive rounds; lengths in steps of each walker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoundsOptions {
    pub walkers: usize,
    /// Largest number of trainings.
    pub rounds: usize,
    pub steps: u64,
    pub production_steps: u64,
    /// Steps between recorded frames.
    pub stride: u64,
    /// Steps between attempted moves.
    pub frequency: u64,
    /// Production begins after a round in which the frozen generator's proposals have at least this acceptance and this
    /// effective sample size per proposal.
    pub acceptance: f64,
    pub ess: f64,
    /// Largest number of frames of walkers, and of hot replicas, used in a training: the latest.
    pub pool: usize,
    /// Walks in the latent space of the frozen generator, which replace its proposals until production: exploration
    /// (Noé et al., Science 365, eaaw1147 (2019)). The seed is that of the walkers. All rounds are run, since proposals
    /// are not measured.
    pub latent_walk: Option<LatentWalkOptions>,
    /// Region whose population is reported.
    pub region: Option<Region>,
}

impl Default for RoundsOptions {
    fn default() -> RoundsOptions {
        RoundsOptions {
            walkers: 16,
            rounds: 8,
            steps: 20_000,
            production_steps: 100_000,
            stride: 20,
            frequency: 50,
            acceptance: 0.3,
            ess: 0.2,
            pool: 50_000,
            latent_walk: None,
            region: None,
        }
    }
}

impl RoundsOptions {
    fn check(&self, dimension: usize) -> Result<()> {
        let numbers = [
            ("walkers", self.walkers as u64),
            ("rounds", self.rounds as u64),
            ("steps", self.steps),
            ("production_steps", self.production_steps),
            ("stride", self.stride),
            ("frequency", self.frequency),
            ("pool", self.pool as u64),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, value)| *value == 0) {
            return Err(Error::invalid(format!("rounds.{name} = 0: must be at least 1")));
        }
        if self.frequency > self.production_steps {
            return Err(Error::invalid(format!(
                "rounds.frequency = {}: no jump would be attempted in production, which has `production_steps` = {}",
                self.frequency, self.production_steps
            )));
        }
        let shares = [("acceptance", self.acceptance), ("ess", self.ess)];
        if let Some((name, value)) = shares.iter().find(|(_, value)| !(0.0..=1.0).contains(value)) {
            return Err(Error::invalid(format!("rounds.{name} = {value}: must be between 0 and 1")));
        }
        if self.walkers >= 1 << 24 {
            return Err(Error::invalid(format!("rounds.walkers = {}: must be less than 2^24", self.walkers)));
        }
        self.latent_walk.as_ref().map_or(Ok(()), LatentWalkOptions::check)?;
        self.region.as_ref().map_or(Ok(()), |region| region.check(dimension))
    }
}

/// Stage of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Dynamics with jumps of the current generator, for training frames.
    Walk,
    /// Hot replicas, for training frames.
    Heat,
    Train,
    /// Dynamics with jumps of the last generator, for averages.
    Production,
    Finished,
}

/// Results of a stage; NaN for numbers that it does not have.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub stage: Stage,
    /// Epoch of the generator used or made.
    pub epoch: u32,
    /// Steps of each walker's chain so far.
    pub steps: u64,
    /// Frames that the stage recorded or trained on.
    pub frames: usize,
    pub attempts: u64,
    #[serde(with = "nan_as_none")]
    pub acceptance: f64,
    /// Effective sample size per proposal.
    #[serde(with = "nan_as_none")]
    pub ess: f64,
    /// Fraction of the frames in the region, and number of observed entries and exits.
    #[serde(with = "nan_as_none")]
    pub population: f64,
    pub transitions: usize,
    /// ΔF = −ln P(region)/P(rest) with its standard error over the walkers (of a single one's series), kT.
    #[serde(with = "nan_as_none")]
    pub delta_f: f64,
    #[serde(with = "nan_as_none")]
    pub delta_f_stderr: f64,
    /// The last evaluation of a training.
    pub training: Option<Progress>,
}

/// Frames, each with the epoch of the generator it was recorded with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Frames {
    /// `[n][dimension]`; all walkers in turn, then the same walkers at a later time.
    pub x: Vec<f64>,
    pub epoch: Vec<u32>,
}

impl Frames {
    fn push(&mut self, x: &[f64], dimension: usize, epoch: u32) {
        self.x.extend_from_slice(x);
        self.epoch.resize(self.x.len() / dimension, epoch);
    }

    /// The latest frames, at most `n`.
    fn latest(&self, n: usize, dimension: usize) -> &[f64] {
        &self.x[self.epoch.len().saturating_sub(n) * dimension..]
    }

    /// Number of frames recorded with the generator of this epoch, the last so far.
    fn of_epoch(&self, epoch: u32) -> usize {
        self.epoch.iter().rev().take_while(|&&e| e == epoch).count()
    }
}

/// Everything needed to continue bit for bit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundsState {
    pub options: RoundsOptions,
    pub explore: ExploreOptions,
    pub train: TrainOptions,
    pub stage: Stage,
    /// Number of trainings done.
    pub epoch: u32,
    /// Step of the walkers at which the stage began.
    stage_start: u64,
    walkers: Langevin,
    hot: Option<HotReplicas>,
    /// Model file of the frozen generator; empty before the first training.
    pub model: Vec<u8>,
    statistics: Statistics,
    training: Option<Training>,
    /// Training frames of walkers and of hot replicas, which must not be averaged.
    pub chain: Frames,
    pub heated: Frames,
    /// Frames for averages.
    pub production: Frames,
    pub log: Vec<Record>,
}

/// An unfinished training: the model file it started from, and its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Training {
    start: Vec<u8>,
    state: TrainState,
}

/// Makes an untrained generator from frames.
pub type Design<'a> = &'a dyn Fn(&[f64]) -> Result<CouplingFlow<f32>>;

/// The rounds of one system.
pub struct Rounds<'a> {
    target: &'a mut dyn Target,
    hot_target: &'a mut dyn Target,
    design: Design<'a>,
    /// Move of the frozen generator.
    jump: Option<Box<dyn Move>>,
    state: RoundsState,
}

impl<'a> Rounds<'a> {
    /// Starts walkers and hot replicas at `x[n][atoms][3]` (nm), cycling through the configurations. The targets have
    /// the same energies at the temperatures of `explore`; walkers have its temperature, time step, friction and seed.
    /// If `explore` wants no frames, there are no hot replicas.
    ///
    /// Errors: options out of range, and those of [`Langevin::new`].
    pub fn new(
        target: &'a mut dyn Target,
        hot_target: &'a mut dyn Target,
        design: Design<'a>,
        masses: &[f64],
        x: &[f64],
        options: (RoundsOptions, ExploreOptions, TrainOptions),
    ) -> Result<Rounds<'a>> {
        let (options, explore, train) = options;
        let dimension = target.dimension();
        options.check(dimension)?;
        // rather than after hours of walking
        train.check(dimension, true, true)?;
        if train.phases.is_empty() {
            return Err(Error::invalid("`phases` is empty: rounds require at least one training phase"));
        }
        if x.is_empty() || !x.len().is_multiple_of(dimension) {
            return Err(Error::invalid(format!(
                "found {} numbers, expected whole starting configurations of {dimension} coordinates",
                x.len()
            )));
        }
        let ExploreOptions { friction, timestep, seed, .. } = explore;
        let dynamics = LangevinOptions { temperature: explore.kelvin(), friction, timestep, seed };
        let starts: Vec<f64> = x.iter().copied().cycle().take(options.walkers * dimension).collect();
        let walkers = Langevin::new(target, masses, &starts, dynamics)?;
        let hot = match explore.frames {
            0 => None,
            _ => Some(HotReplicas::new(hot_target, masses, x, &explore)?),
        };
        let state = RoundsState {
            options,
            explore,
            train,
            stage: Stage::Walk,
            epoch: 0,
            stage_start: 0,
            walkers,
            hot,
            model: Vec::new(),
            statistics: Statistics::default(),
            training: None,
            chain: Frames::default(),
            heated: Frames::default(),
            production: Frames::default(),
            log: Vec::new(),
        };
        Rounds::resume(target, hot_target, design, state)
    }

    /// Continues from a saved state. Errors: those of [`Rounds::new`], and a state that does not fit.
    pub fn resume(
        target: &'a mut dyn Target,
        hot_target: &'a mut dyn Target,
        design: Design<'a>,
        state: RoundsState,
    ) -> Result<Rounds<'a>> {
        let mut rounds = Rounds { target, hot_target, design, jump: None, state };
        rounds.freeze()?;
        if let Some(jump) = &mut rounds.jump {
            *jump.statistics_mut() = rounds.state.statistics.clone();
        }
        Ok(rounds)
    }

    /// Sets the number of production steps of each walker. Finished rounds continue if there are more, as if that many
    /// had been requested from the beginning. Errors: fewer than were made, or than an attempt takes.
    pub fn set_production_steps(&mut self, steps: u64) -> Result<()> {
        let made = if matches!(self.state.stage, Stage::Production) || self.is_finished() { self.walked() } else { 0 };
        // walks end with a frame
        if made > steps.next_multiple_of(self.state.options.stride) {
            let message = format!(
                "production has already made {made} steps, but `production_steps` = {steps}: must be at least {made}"
            );
            return Err(Error::invalid(message));
        }
        let options = RoundsOptions { production_steps: steps, ..self.state.options.clone() };
        options.check(self.dimension())?;
        self.state.options = options;
        if self.is_finished() && self.walked() < steps {
            self.state.stage = Stage::Production;
            self.state.log.pop();
        }
        Ok(())
    }

    /// Everything needed to continue.
    pub fn state(&mut self) -> &RoundsState {
        if let Some(jump) = &self.jump {
            self.state.statistics = jump.statistics().clone();
        }
        &self.state
    }

    /// Whether the last round is done.
    pub fn is_finished(&self) -> bool {
        self.state.stage == Stage::Finished
    }

    /// Completed fraction of the current stage.
    pub fn stage_progress(&self) -> f64 {
        let state = &self.state;
        let share = |done: usize, all: usize| done as f64 / all.max(1) as f64;
        match state.stage {
            Stage::Walk | Stage::Production => share(self.walked() as usize, self.length() as usize),
            Stage::Heat => share(self.heated(), state.explore.frames),
            Stage::Train => {
                let steps = state.train.phases.iter().map(|p| p.steps).sum();
                state.training.as_ref().map_or(0.0, |t| share(t.state.step, steps))
            }
            Stage::Finished => 1.0,
        }
    }

    /// Does a small part of the current stage, after which the state can be saved. Returns the results of a stage when
    /// it ends. Errors: the target's, and those of the training.
    pub fn advance(&mut self) -> Result<Option<Record>> {
        let record = match self.state.stage {
            Stage::Walk | Stage::Production => self.walk()?,
            Stage::Heat => self.heat()?,
            Stage::Train => self.train()?,
            Stage::Finished => None,
        };
        self.state.log.extend(record.clone());
        Ok(record)
    }

    /// Makes a new move of the frozen generator for this stage; nothing of the previous one remains.
    fn freeze(&mut self) -> Result<()> {
        if self.state.model.is_empty() {
            return Ok(());
        }
        let model = models::load_bytes("the generator of the rounds", &self.state.model)?;
        let seed = self.state.explore.seed;
        let method = match &self.state.options.latent_walk {
            Some(walk) if self.state.stage == Stage::Walk => Method::LatentWalk(walk.clone()),
            _ => Method::Independence { rotations: None },
        };
        self.jump = Some(method.make(&model, Options { seed, ..Options::default() }, None)?);
        Ok(())
    }

    fn dimension(&self) -> usize {
        self.target.dimension()
    }

    fn walked(&self) -> u64 {
        self.state.walkers.step_count() - self.state.stage_start
    }

    fn length(&self) -> u64 {
        match self.state.stage {
            Stage::Production => self.state.options.production_steps,
            _ => self.state.options.steps,
        }
    }

    /// Advances the walkers to the next frame.
    fn walk(&mut self) -> Result<Option<Record>> {
        let (stride, frequency) = (self.state.options.stride, self.state.options.frequency);
        let mut left = stride;
        while left > 0 {
            let run = (frequency - self.state.walkers.step_count() % frequency).min(left);
            self.state.walkers.step(self.target, run as usize)?;
            left -= run;
            if self.state.walkers.step_count().is_multiple_of(frequency) {
                self.attempt()?;
            }
        }
        let (dimension, epoch) = (self.dimension(), self.state.epoch);
        let frames = match self.state.stage {
            Stage::Production => &mut self.state.production,
            _ => &mut self.state.chain,
        };
        frames.push(self.state.walkers.positions(), dimension, epoch);
        match self.walked() >= self.length() {
            true => self.end_of_walk().map(Some),
            false => Ok(None),
        }
    }

    /// Attempts one move of every walker.
    fn attempt(&mut self) -> Result<()> {
        let dimension = self.dimension();
        let Some(jump) = &mut self.jump else { return Ok(()) };
        let walkers = &mut self.state.walkers;
        let mut x = vec![0.0; dimension];
        for walker in 0..self.state.options.walkers {
            x.copy_from_slice(&walkers.positions()[walker * dimension..][..dimension]);
            let mut state = State {
                x: &mut x,
                box_vectors: None,
                reduced_potential: walkers.reduced_potentials()[walker],
                step: walkers.step_count(),
                replica: walker as u32,
            };
            if jump.attempt(self.target, &mut state)?.fate == Fate::Accepted {
                walkers.place(self.target, walker, &x)?;
            }
        }
        Ok(())
    }

    fn end_of_walk(&mut self) -> Result<Record> {
        let record = self.record_of_walk();
        let options = &self.state.options;
        let good = record.acceptance >= options.acceptance && record.ess >= options.ess;
        if self.state.stage == Stage::Production {
            // the results are kept, as a later run may continue
            self.state.stage = Stage::Finished;
            return Ok(record);
        }
        let next = if good || self.state.epoch as usize >= options.rounds {
            Stage::Production
        } else if self.state.hot.is_some() {
            Stage::Heat
        } else {
            Stage::Train
        };
        self.begin(next)?;
        Ok(record)
    }

    fn begin(&mut self, stage: Stage) -> Result<()> {
        self.state.stage = stage;
        self.state.stage_start = self.state.walkers.step_count();
        self.freeze()
    }

    fn record_of_walk(&self) -> Record {
        let state = &self.state;
        let frames = match state.stage {
            Stage::Production => &state.production,
            _ => &state.chain,
        };
        let n = frames.of_epoch(state.epoch);
        let mut record = self.record(n);
        if let Some(jump) = &self.jump {
            record.attempts = jump.statistics().attempts();
            record.acceptance = jump.statistics().acceptance();
            record.ess = jump.statistics().effective_fraction();
        }
        if let Some(region) = &state.options.region {
            let x = frames.latest(n, self.dimension());
            let inside: Vec<bool> = x.chunks_exact(self.dimension()).map(|x| region.contains(x)).collect();
            self.populations(&inside, &mut record);
        }
        record
    }

    /// Fills in the populations from frames in the order of recording.
    fn populations(&self, inside: &[bool], record: &mut Record) {
        let walkers = self.state.options.walkers;
        record.population = inside.iter().filter(|i| **i).count() as f64 / inside.len() as f64;
        record.transitions = inside.iter().zip(&inside[walkers..]).filter(|(a, b)| a != b).count();
        let of_walker = |k: usize| inside[k..].iter().step_by(walkers).map(|i| Some(*i));
        let by_walker: Vec<Option<bool>> = (0..walkers).flat_map(of_walker).collect();
        let delta_f = match walkers {
            1 => between_states_of_series(&by_walker),
            _ => between_states_of_blocks(&by_walker, walkers),
        };
        if let Ok(delta_f) = delta_f {
            (record.delta_f, record.delta_f_stderr) = (delta_f.value, delta_f.standard_error);
        }
    }

    fn record(&self, frames: usize) -> Record {
        Record {
            stage: self.state.stage,
            epoch: self.state.epoch,
            steps: self.state.walkers.step_count(),
            frames,
            attempts: 0,
            acceptance: f64::NAN,
            ess: f64::NAN,
            population: f64::NAN,
            transitions: 0,
            delta_f: f64::NAN,
            delta_f_stderr: f64::NAN,
            training: None,
        }
    }

    /// Number of hot-replica frames in this round.
    fn heated(&self) -> usize {
        self.state.heated.of_epoch(self.state.epoch)
    }

    fn heat(&mut self) -> Result<Option<Record>> {
        if let Some(hot) = &mut self.state.hot {
            let x = hot.segment(self.hot_target, self.target)?;
            let (dimension, epoch) = (self.dimension(), self.state.epoch);
            self.state.heated.push(&x, dimension, epoch);
        }
        if self.heated() < self.state.explore.frames {
            return Ok(None);
        }
        let mut record = self.record(self.heated());
        if let Some(region) = &self.state.options.region {
            let x = self.state.heated.latest(record.frames, self.dimension());
            let inside = x.chunks_exact(self.dimension()).filter(|x| region.contains(x)).count();
            record.population = inside as f64 / record.frames as f64;
        }
        self.begin(Stage::Train)?;
        Ok(Some(record))
    }

    /// Frames that this round trains on: those held out first, then the rest in random order, with the number held out.
    /// Held out are one contiguous stretch of the walkers' frames and one of the hot replicas', since frames a few
    /// steps from training frames would only show how well the model knows those. The stretches are of this epoch,
    /// whose frames no earlier generator was trained on.
    pub(super) fn pool(&self) -> (Vec<f64>, usize) {
        let (dimension, n) = (self.dimension(), self.state.options.pool);
        let parts = [&self.state.chain, &self.state.heated];
        let frames = parts.map(|part| part.latest(n, dimension)).concat();
        let new = parts.map(|part| part.of_epoch(self.state.epoch).min(n));
        let [walked, all] = [parts[0].epoch.len().min(n), frames.len() / dimension];
        let mut stream = Stream::new(self.state.train.seed, StreamId::Resample, u64::MAX, self.state.epoch);
        let new = [walked - new[0]..walked, all - new[1]..all];
        let (held_out, rest) = split(new, all, &self.state.train, &mut stream);
        let order = held_out.iter().chain(&rest);
        (order.flat_map(|i| frames[i * dimension..][..dimension].iter().copied()).collect(), held_out.len())
    }

    fn train(&mut self) -> Result<Option<Record>> {
        let (frames, held_out) = self.pool();
        // the fraction of all frames that gives this number, whichever way it is rounded
        let held_out = (held_out as f64 + 0.5) / (frames.len() / self.dimension()) as f64;
        let training = self.state.training.take();
        let (start, saved) = match training {
            Some(Training { start, state }) => (start, Some(state)),
            None if self.state.model.is_empty() => ((self.design)(&frames)?.to_bytes()?, None),
            None => (self.state.model.clone(), None),
        };
        let flow = CouplingFlow::from_file(&model_file::read("the generator of the rounds", &start)?)?;
        let target: Option<&mut dyn Target> = Some(&mut *self.target);
        let mut trainer = match saved {
            Some(state) => Trainer::resume(flow, &frames, target, state)?,
            None => {
                let seed = self.state.train.seed.wrapping_add(u64::from(self.state.epoch));
                Trainer::new(flow, &frames, target, TrainOptions { seed, held_out, ..self.state.train.clone() })?
            }
        };
        for _ in 0..TRAINING_STEPS {
            trainer.step()?;
        }
        let finished = trainer.is_finished();
        let state = trainer.state().clone();
        if !finished {
            self.state.training = Some(Training { start, state });
            return Ok(None);
        }
        let mut flow = trainer.best()?;
        self.state.epoch += 1;
        flow.card_mut().provenance.insert("epoch".into(), self.state.epoch.to_string());
        self.state.model = flow.to_bytes()?;
        let record = Record { training: state.history.last().cloned(), ..self.record(frames.len() / self.dimension()) };
        self.begin(Stage::Walk)?;
        Ok(Some(record))
    }
}

/// Indices of the held-out frames (from each of the `new` parts one stretch, of the fraction given by `options`), and
/// of all others; both in random order.
fn split(new: [Range<usize>; 2], all: usize, options: &TrainOptions, stream: &mut Stream) -> (Vec<usize>, Vec<usize>) {
    let stretches = new.map(|part| {
        let n = options.held_out_of(part.len());
        let start = part.start + stream.below(part.len() - n + 1);
        start..start + n
    });
    let (mut chosen, mut others): (Vec<usize>, Vec<usize>) =
        (0..all).partition(|i| stretches.iter().any(|stretch| stretch.contains(i)));
    for order in [&mut chosen, &mut others] {
        (1..order.len()).rev().for_each(|i| order.swap(i, stream.below(i + 1)));
    }
    (chosen, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_out_is_one_stretch_of_the_new_frames_of_each_part() {
        let options = TrainOptions { held_out: 0.3, ..TrainOptions::default() };
        for (new, all) in [
            ([0..600, 600..1000], 1000),
            ([400..600, 900..1000], 1000),
            ([700..1000, 1000..1000], 1000),
            ([1..4, 6..7], 7),
            ([0..0, 0..0], 0),
        ] {
            let mut stream = Stream::new(1, StreamId::Resample, 0, 0);
            let (mut chosen, mut others) = split(new.clone(), all, &options, &mut stream);
            let is_shuffled = |order: &[usize]| order.len() < 10 || !order.is_sorted();
            assert!(is_shuffled(&chosen) && is_shuffled(&others));
            chosen.sort_unstable();
            for part in &new {
                let of_part: Vec<usize> = chosen.iter().copied().filter(|i| part.contains(i)).collect();
                assert_eq!(of_part.len(), part.len() * 3 / 10);
                assert!(of_part.windows(2).all(|pair| pair[1] == pair[0] + 1), "{part:?} of {all}: {of_part:?}");
            }
            assert!(chosen.iter().all(|i| new.iter().any(|part| part.contains(i))), "{new:?} of {all}: {chosen:?}");
            others.extend(chosen);
            others.sort_unstable();
            assert!(others.into_iter().eq(0..all));
        }
    }
}
