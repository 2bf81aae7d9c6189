//! The training loop: phases of a mix of losses, with a state that can be saved and continued bit for bit.

use super::divergence::{self, Divergence};
use super::losses::{self, Samples};
use super::map::{MapLoss, Quality};
use super::optimiser::{check_settings, AdamW, Schedule};
use super::progress::{Kept, Progress};
use super::reaction_coordinate::ReactionCoordinate;
use crate::density::{Density, Evaluation};
use crate::error::{Error, Result};
use crate::models::coupling::CouplingFlow;
use crate::models::steering::{dimension_without_auxiliary, JointTarget, Steering};
use crate::models::Model;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::weights;
use serde::{Deserialize, Serialize};

/// One stretch of training with its own learning rate and mix of losses. Weight zero switches a loss off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phase {
    pub steps: usize,
    /// Peak learning rate.
    pub rate: f64,
    pub schedule: Schedule,
    /// Maximum likelihood on the frames: weight and batch.
    pub likelihood: f64,
    pub batch: usize,
    /// Reverse KL by the engine's energies: weight and batch.
    pub reverse_kl: f64,
    pub energy_batch: usize,
    /// τ, temperatures over that of training, at which reverse KL of a steerable flow is taken, one after the other; empty: at 1 alone.
    pub latent_temperatures: Vec<f64>,
    /// Weight of the loss of [`TrainOptions::reaction_coordinate`] over the samples of reverse KL.
    pub reaction_coordinate: f64,
    /// Weight of force matching on the frames of the likelihood's batch; the loss itself has the unit of x to the power
    /// −2.
    pub force_matching: f64,
    /// Maximum likelihood on the model's own importance-resampled samples: weight and batch.
    pub refinement: f64,
    pub refinement_batch: usize,
    /// Steps between draws of new samples for refinement, how many, and how many are kept.
    pub refresh: usize,
    pub draw: usize,
    pub keep: usize,
    /// Share of the kept samples that has to be effective: the weights are taken to a power below 1 as long as it is not. 0 takes them as they are.
    pub effective: f64,
}

impl Default for Phase {
    fn default() -> Phase {
        Phase {
            steps: 10_000,
            rate: 1e-3,
            schedule: Schedule::Cosine,
            likelihood: 1.0,
            batch: 512,
            reverse_kl: 0.0,
            energy_batch: 256,
            latent_temperatures: Vec::new(),
            reaction_coordinate: 0.0,
            force_matching: 0.0,
            refinement: 0.0,
            refinement_batch: 512,
            refresh: 100,
            draw: 4096,
            keep: 65_536,
            effective: 0.0,
        }
    }
}

impl Phase {
    /// Errors: weights that are none; a phase that trains nothing, by the number that is 0; settings of a loss that is off.
    fn check(&self) -> Result<()> {
        let weights = [
            ("likelihood", self.likelihood),
            ("reverse_kl", self.reverse_kl),
            ("reaction_coordinate", self.reaction_coordinate),
            ("force_matching", self.force_matching),
            ("refinement", self.refinement),
        ];
        if let Some((name, weight)) = weights.iter().find(|(_, weight)| !(*weight >= 0.0 && weight.is_finite())) {
            return Err(Error::invalid(format!(
                "a phase gives `{name}` the weight {weight}; use 0 or a positive number"
            )));
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::invalid(
                "a phase gives every loss the weight 0 and trains nothing: give one a weight, such as `likelihood`",
            ));
        }
        if !(0.0..1.0).contains(&self.effective) {
            let share = self.effective;
            return Err(Error::invalid(format!(
                "a phase has `effective` = {share}: give a share from 0 to less than 1"
            )));
        }
        if !self.latent_temperatures.is_empty() && self.reverse_kl == 0.0 {
            return Err(Error::invalid(
                "a phase has `latent_temperatures`, at which reverse KL is taken, and `reverse_kl` = 0: give it a weight, or leave \
                 `latent_temperatures` out",
            ));
        }
        let refines = self.refinement > 0.0;
        let needed = [
            ("steps", self.steps, true),
            ("batch", self.batch, self.likelihood > 0.0 || self.force_matching > 0.0),
            ("energy_batch", self.energy_batch, self.reverse_kl > 0.0),
            ("refinement_batch", self.refinement_batch, refines),
            ("draw", self.draw, refines),
            ("keep", self.keep, refines),
        ];
        match needed.iter().find(|(_, number, is_needed)| *is_needed && *number == 0) {
            Some((name, ..)) => Err(Error::invalid(format!("a phase has `{name}` = 0: at least 1 is needed"))),
            None => Ok(()),
        }
    }

    /// For frames of no ensemble, or too few, and energies: maximum likelihood as long as it takes to be near, then refinement by samples of the flow itself.
    pub fn with_energies() -> Vec<Phase> {
        let by_frames = Phase { steps: 200, rate: 2e-3, schedule: Schedule::Constant, ..Phase::default() };
        let [draw, keep] = [2048, 30_000];
        let refinement =
            Phase { likelihood: 0.0, refinement: 1.0, refresh: 2, draw, keep, effective: 0.05, ..Phase::default() };
        vec![by_frames, Phase { steps: 2000, ..refinement }]
    }

    /// Reverse KL alone, for the far end of a map.
    pub fn of_map() -> Phase {
        Phase { steps: 3000, likelihood: 0.0, reverse_kl: 1.0, ..Phase::default() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainOptions {
    pub phases: Vec<Phase>,
    /// What the samples of reverse KL are spread along in phases that give it a weight.
    pub reaction_coordinate: Option<ReactionCoordinate>,
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
    /// Decay of the moving average of the parameters; the average is what is saved.
    pub average: f64,
    /// Share of the frames held out.
    pub held_out: f64,
    /// Steps between evaluations, and samples drawn in each for the effective sample size.
    pub evaluate: usize,
    pub evaluation_samples: usize,
    /// Ends a phase without energy terms after this many evaluations without a better held-out likelihood; 0 = never.
    pub patience: usize,
    pub seed: u64,
}

impl Default for TrainOptions {
    fn default() -> TrainOptions {
        TrainOptions {
            phases: vec![Phase::default()],
            reaction_coordinate: None,
            weight_decay: 1e-5,
            clip: 10.0,
            average: 0.999,
            held_out: 0.05,
            evaluate: 500,
            evaluation_samples: 4096,
            patience: 0,
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// Errors: a phase with another loss than reverse KL, which would train the far end of a map as a generator; one with temperatures of the
    /// latent points, which are those of the near end.
    pub fn check_for_map(&self) -> Result<()> {
        if self.phases.iter().any(|p| !p.latent_temperatures.is_empty()) {
            return Err(Error::invalid(
                "a map takes its latent points from the other end: leave `latent_temperatures` out",
            ));
        }
        let others = |p: &Phase| p.likelihood + p.force_matching + p.refinement + p.reaction_coordinate;
        match self.phases.iter().all(|p| others(p) == 0.0 && p.reverse_kl > 0.0) {
            true => Ok(()),
            false => Err(Error::invalid(
                "a map is trained by reverse KL alone: give `reverse_kl` a weight in every phase, and set `likelihood` \
                 and all other losses to 0",
            )),
        }
    }

    /// Errors: other temperatures for a flow that has one, or such that are not positive.
    pub fn check_temperatures(&self, steerable: bool) -> Result<()> {
        let given: Vec<f64> = self.phases.iter().flat_map(|p| p.latent_temperatures.iter().copied()).collect();
        if !given.is_empty() && !steerable {
            return Err(Error::invalid(
                "`latent_temperatures` are for a steerable flow: set `steerable` in its design",
            ));
        }
        match given.iter().find(|t| !(**t > 0.0 && t.is_normal())) {
            Some(t) => Err(Error::invalid(format!("`latent_temperatures`: {t}, use positive numbers"))),
            None => Ok(()),
        }
    }

    /// How many of n frames are held out: the first ones.
    pub fn held_out_of(&self, n: usize) -> usize {
        (n as f64 * self.held_out) as usize
    }

    /// Errors: losses without what they are made of, or by which nothing is trained.
    pub fn check(&self, dimension: usize, has_frames: bool, has_target: bool) -> Result<()> {
        let needs = |f: fn(&Phase) -> f64| self.phases.iter().any(|p| f(p) > 0.0);
        let refuse = |message: &str| Err(Error::invalid(message));
        self.phases.iter().try_for_each(Phase::check)?;
        if has_target && self.evaluation_samples == 0 {
            return refuse("`evaluation_samples` = 0: with energies, at least 1 is needed");
        }
        if (needs(|p| p.likelihood) || needs(|p| p.force_matching)) && !has_frames {
            return refuse(
                "maximum likelihood and force matching need frames; give a trajectory or set `likelihood` and \
                 `force_matching` to 0",
            );
        }
        let needs_energies = needs(|p| p.reverse_kl) || needs(|p| p.refinement) || needs(|p| p.force_matching);
        if needs_energies && !has_target {
            return refuse("reverse KL, refinement and force matching need energies; give a System");
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return refuse(
                "`held_out` is the share of the frames that is not trained on: give a number from 0 to less than 1",
            );
        }
        check_settings(self.phases.iter().map(|p| p.rate), self.clip, self.weight_decay, self.average)?;
        if let Some(coordinate) = &self.reaction_coordinate {
            coordinate.check(dimension)?;
            if !needs(|p| p.reaction_coordinate) {
                return refuse(
                    "`reaction_coordinate` has no effect without a weight: give `reaction_coordinate` one in a phase with \
                     `reverse_kl`, or leave it out",
                );
            }
        } else if needs(|p| p.reaction_coordinate) {
            return refuse("a phase gives `reaction_coordinate` a weight; say beside `phases` what the coordinate is");
        }
        if self.phases.iter().any(|p| p.reaction_coordinate > 0.0 && p.reverse_kl <= 0.0) {
            return refuse(
                "`reaction_coordinate` spreads the samples of reverse KL; give `reverse_kl` a weight in the same phase",
            );
        }
        Ok(())
    }
}

/// Replicas of the training stream from here on draw auxiliary coordinates.
const AUXILIARY: u32 = 1 << 20;

/// Everything that a later run needs to continue.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainState {
    pub options: TrainOptions,
    pub step: usize,
    phase: usize,
    phase_start: usize,
    parameters: Vec<f32>,
    optimiser: AdamW,
    pool_x: Vec<f64>,
    pool_log_weight: Vec<f64>,
    best_held_out: f64,
    evaluations_since_best: usize,
    kept: Option<Kept>,
    sums: Sums,
    pub history: Vec<Progress>,
}

/// Sums over the steps since the last evaluation.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Sums {
    steps: f64,
    likelihood: f64,
    force_matching: f64,
    reverse_kl: f64,
    reaction_coordinate: f64,
    refinement: f64,
    gradient_norm: f64,
}

/// Frames that are looked at before a training.
const FIRST_FRAMES: usize = 64;

/// Errors: frames of which none has a density, so that there is nothing to learn from them.
fn require_density(flow: &CouplingFlow<f32>, frames: &[f64]) -> Result<()> {
    let n = frames.len() / flow.dimension();
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.log_density(frames, &mut log_q)?;
    match log_q.iter().any(Evaluation::is_inside) || n == 0 {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "none of the first {n} frames has a density under the model ({}): are they in nm, of these atoms in this order, with the bonds that the \
             model keeps?",
            log_q[0].status.words()
        ))),
    }
}

/// Trains one flow on frames, a target, or both.
pub struct Trainer<'a> {
    flow: CouplingFlow<f32>,
    frames: &'a [f64],
    /// With auxiliary coordinates, if the flow has such.
    held_out: Vec<f64>,
    target: Option<JointTarget<'a>>,
    /// Where the latent points of reverse KL come from instead of the prior.
    map: Option<Box<dyn MapLoss>>,
    state: TrainState,
    gradient: Vec<f32>,
    divergence: Divergence,
    /// Softened, of the pool as it is; empty until a batch is drawn from it.
    pool_weights: Vec<f64>,
}

impl<'a> Trainer<'a> {
    /// `frames[n][dimension]` may be empty when no phase uses them; `target` may be absent likewise. Both are of configurations x and of the
    /// temperature of training: a steerable flow with auxiliary coordinates gets these here, drawn afresh for every batch.
    pub fn new(
        flow: CouplingFlow<f32>,
        frames: &'a [f64],
        target: Option<&'a mut dyn Target>,
        options: TrainOptions,
    ) -> Result<Trainer<'a>> {
        let optimiser = AdamW::new(flow.parameters(), options.weight_decay, options.average);
        let state = TrainState {
            step: 0,
            phase: 0,
            phase_start: 0,
            parameters: flow.parameters().to_vec(),
            optimiser,
            pool_x: Vec::new(),
            pool_log_weight: Vec::new(),
            best_held_out: f64::INFINITY,
            evaluations_since_best: 0,
            kept: None,
            sums: Sums::default(),
            history: Vec::new(),
            options,
        };
        Trainer::resume(flow, frames, target, state)
    }

    /// Continues from a saved state.
    pub fn resume(
        mut flow: CouplingFlow<f32>,
        frames: &'a [f64],
        target: Option<&'a mut dyn Target>,
        state: TrainState,
    ) -> Result<Trainer<'a>> {
        let dx = dimension_without_auxiliary(&flow);
        state.options.check(dx, !frames.is_empty(), target.is_some())?;
        state.options.check_temperatures(flow.steering().is_some())?;
        if !frames.len().is_multiple_of(dx) {
            return Err(Error::invalid(format!("{} numbers are no frames of {dx} coordinates", frames.len())));
        }
        if state.parameters.len() != flow.parameters().len() {
            return Err(Error::invalid("the saved training state belongs to another model"));
        }
        flow.parameters_mut().copy_from_slice(&state.parameters);
        let n = frames.len() / dx;
        let n_held_out = state.options.held_out_of(n);
        let (held_out, frames) = frames.split_at(n_held_out * dx);
        let steering = flow.steering().unwrap_or(Steering::NONE);
        let seed = state.options.seed;
        let join =
            |frames: &[f64]| steering.join(frames, dx, &|row| Stream::new(seed, StreamId::Auxiliary, row as u64, 0));
        let held_out = join(held_out);
        require_density(&flow, &join(&frames[..frames.len().min(FIRST_FRAMES * dx)]))?;
        let target = target.map(|target| JointTarget::of_training(target, steering));
        let gradient = vec![0.0; flow.parameters().len()];
        let divergence = Divergence::default();
        Ok(Trainer { flow, frames, held_out, target, map: None, state, gradient, divergence, pool_weights: Vec::new() })
    }

    /// Trains the flow as the far end of a map, by reverse KL on the latent points of another ensemble's frames.
    /// Errors: those of [`TrainOptions::check_for_map`].
    pub fn with_map(mut self, map: impl MapLoss + 'static) -> Result<Trainer<'a>> {
        self.state.options.check_for_map()?;
        self.map = Some(Box::new(map));
        Ok(self)
    }

    pub fn state(&mut self) -> &TrainState {
        self.state.parameters.copy_from_slice(self.flow.parameters());
        &self.state
    }

    /// The model with averaged parameters, as it is now.
    pub fn averaged(&self) -> Result<CouplingFlow<f32>> {
        self.with_parameters(&self.state.optimiser.average)
    }

    /// The averaged model of the last evaluation that was not worse than the best one before, by held-out frames and by the acceptance that is expected
    /// of its proposals, as far as these are measured: what is worth saving of a training that overfits, or runs away. As it is now before the first evaluation.
    pub fn best(&self) -> Result<CouplingFlow<f32>> {
        self.with_parameters(self.state.kept.as_ref().map_or(&self.state.optimiser.average, |kept| &kept.parameters))
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<CouplingFlow<f32>> {
        let mut model = self.flow.cast::<f32>()?;
        model.parameters_mut().copy_from_slice(parameters);
        Ok(model)
    }

    /// Steps of all phases together.
    pub fn total_steps(&self) -> usize {
        self.state.options.phases.iter().map(|p| p.steps).sum()
    }

    pub fn step_count(&self) -> usize {
        self.state.step
    }

    pub fn is_finished(&self) -> bool {
        self.state.phase >= self.state.options.phases.len()
    }

    /// One step. Returns an evaluation when one was due.
    ///
    /// Errors: the training diverges; the target fails.
    pub fn step(&mut self) -> Result<Option<Progress>> {
        let Some(phase) = self.state.options.phases.get(self.state.phase).cloned() else { return Ok(None) };
        let done = self.state.step - self.state.phase_start;
        let rate = phase.rate * phase.schedule.factor(done as f64 / phase.steps.max(1) as f64);
        self.gradient.fill(0.0);
        let sums = self.state.sums;
        if phase.likelihood > 0.0 {
            let x = self.batch(phase.batch);
            let loss = losses::maximum_likelihood(&self.flow, &x, phase.likelihood, &mut self.gradient)?;
            self.state.sums.likelihood += loss;
        }
        if phase.force_matching > 0.0 {
            let x = self.batch(phase.batch);
            let Some(target) = self.target.as_mut() else { return Ok(None) };
            let loss = losses::force_matching(&self.flow, target, &x, phase.force_matching, &mut self.gradient)?;
            self.state.sums.force_matching += loss;
        }
        if phase.reverse_kl > 0.0 {
            self.energy_step(&phase)?;
        }
        if phase.refinement > 0.0 {
            self.refinement_step(&phase, done)?;
        }
        let norm =
            self.state.optimiser.update(self.flow.parameters_mut(), &self.gradient, rate, self.state.options.clip);
        self.state.step += 1;
        self.divergence.step(self.state.step, norm)?;
        if norm.is_finite() {
            self.state.sums.gradient_norm += norm;
            self.state.sums.steps += 1.0;
        } else {
            self.state.sums = sums; // of the steps that were taken
        }
        let ends = done + 1 >= phase.steps;
        let progress = match ends || self.state.step.is_multiple_of(self.state.options.evaluate.max(1)) {
            true => Some(self.evaluate(&phase, rate)?),
            false => None,
        };
        if ends || self.out_of_patience(&phase) {
            self.state.phase += 1;
            self.state.phase_start = self.state.step;
            self.state.evaluations_since_best = 0;
            self.state.best_held_out = f64::INFINITY; // the next one has losses of its own
        }
        Ok(progress)
    }

    fn out_of_patience(&self, phase: &Phase) -> bool {
        let patience = self.state.options.patience;
        patience > 0
            && phase.reverse_kl == 0.0
            && phase.refinement == 0.0
            && phase.force_matching == 0.0
            && self.state.evaluations_since_best >= patience
    }

    fn stream(&self, id: StreamId, replica: u32) -> Stream {
        Stream::new(self.state.options.seed, id, self.state.step as u64, replica)
    }

    /// Random frames.
    fn batch(&self, n: usize) -> Vec<f64> {
        let dx = dimension_without_auxiliary(&self.flow);
        let mut stream = self.stream(StreamId::Train, 0);
        let mut x = Vec::with_capacity(n * dx);
        (0..n).for_each(|_| x.extend_from_slice(&self.frames[stream.below(self.frames.len() / dx) * dx..][..dx]));
        match self.flow.steering() {
            Some(steering) => {
                let (seed, step) = (self.state.options.seed, self.state.step as u64);
                steering.join(&x, dx, &|row| Stream::new(seed, StreamId::Train, step, AUXILIARY + row as u32))
            }
            None => x,
        }
    }

    fn energy_step(&mut self, phase: &Phase) -> Result<()> {
        let (seed, step) = (self.state.options.seed, self.state.step as u64);
        let streams = move |row: usize| Stream::new(seed, StreamId::Sample, step, row as u32);
        let Some(target) = self.target.as_mut() else { return Ok(()) };
        if let Some(map) = &self.map {
            let (n, scale) = (phase.energy_batch, phase.reverse_kl);
            let log_w = map.reverse_kl(&self.flow, target, n, &mut streams(0), scale, &mut self.gradient)?;
            self.state.sums.reverse_kl -= finite_mean(&log_w);
            return Ok(());
        }
        let coordinate = self.state.options.reaction_coordinate.as_ref().filter(|_| phase.reaction_coordinate > 0.0);
        let at_once = phase.latent_temperatures.get(step as usize % phase.latent_temperatures.len().max(1));
        let taken = at_once.map(|&variance| self.flow.at_variance(variance));
        let flow = taken.as_ref().unwrap_or(&self.flow);
        target.at(flow.steering().unwrap_or(Steering::NONE));
        let (samples, spread) = losses::reverse_kl(
            flow,
            target,
            phase.energy_batch,
            &streams,
            phase.reverse_kl,
            coordinate.map(|c| (c, phase.reaction_coordinate)),
            &mut self.gradient,
        )?;
        target.at(self.flow.steering().unwrap_or(Steering::NONE));
        self.state.sums.reverse_kl -= finite_mean(&samples.log_weight);
        self.state.sums.reaction_coordinate += spread;
        Ok(())
    }

    fn refinement_step(&mut self, phase: &Phase, done: usize) -> Result<()> {
        if done.is_multiple_of(phase.refresh.max(1)) {
            // the averaged model is the better generator; at the start of a phase it fills the pool
            let n = if done == 0 { phase.keep } else { phase.draw };
            let (seed, step) = (self.state.options.seed, self.state.step as u64);
            let streams = move |row: usize| Stream::new(seed, StreamId::Resample, step, row as u32);
            let model = self.averaged()?;
            let Some(target) = self.target.as_mut() else { return Ok(()) };
            let samples = losses::draw(&model, target, n, &streams)?;
            self.keep(samples, phase.keep);
        }
        let x = self.refinement_batch(phase)?;
        let loss = losses::maximum_likelihood(&self.flow, &x, phase.refinement, &mut self.gradient)?;
        self.state.sums.refinement += loss;
        Ok(())
    }

    /// Adds samples to the pool with truncated weights (Ionides, J. Comput. Graph. Stat. 17, 295 (2008)): w ≤ mean(w) √n.
    fn keep(&mut self, samples: Samples, capacity: usize) {
        let dx = self.flow.dimension();
        let n = samples.log_weight.len() as f64;
        let limit = weights::log_sum_exp(&samples.log_weight) - 0.5 * n.ln();
        let state = &mut self.state;
        for (x, &w) in samples.x.chunks_exact(dx).zip(&samples.log_weight).filter(|(_, w)| w.is_finite()) {
            state.pool_x.extend_from_slice(x);
            state.pool_log_weight.push(w.min(limit));
        }
        let surplus = state.pool_log_weight.len().saturating_sub(capacity);
        state.pool_log_weight.drain(..surplus);
        state.pool_x.drain(..surplus * dx);
        self.pool_weights.clear();
    }

    fn refinement_batch(&mut self, phase: &Phase) -> Result<Vec<f64>> {
        let n = phase.refinement_batch;
        let dx = self.flow.dimension();
        let mut stream = self.stream(StreamId::Train, 1);
        divergence::check_weights(self.state.step, &self.state.pool_log_weight)?;
        if self.pool_weights.is_empty() {
            self.pool_weights = softened(&self.state.pool_log_weight, phase.effective)?;
        }
        let chosen = weights::resample(&self.pool_weights, n, weights::Resampling::Systematic, &mut stream)?;
        Ok(chosen.iter().flat_map(|&i| self.state.pool_x[i * dx..][..dx].iter().copied()).collect())
    }

    fn evaluate(&mut self, phase: &Phase, rate: f64) -> Result<Progress> {
        let model = self.averaged()?;
        let sums = self.state.sums;
        let norm = sums.gradient_norm / sums.steps;
        let measured = (sums.steps > 0.0).then_some(("the gradient's norm", norm));
        divergence::check(self.state.step, measured, &self.state.optimiser.average)?;
        let mean = |sum: f64, weight: f64| if weight > 0.0 { sum / sums.steps } else { f64::NAN };
        let mut progress = Progress {
            step: self.state.step,
            rate,
            likelihood: mean(sums.likelihood, phase.likelihood),
            force_matching: mean(sums.force_matching, phase.force_matching),
            reverse_kl: mean(sums.reverse_kl, phase.reverse_kl),
            reaction_coordinate: mean(sums.reaction_coordinate, phase.reaction_coordinate),
            refinement: mean(sums.refinement, phase.refinement),
            gradient_norm: norm,
            ..Progress::nothing()
        };
        self.state.sums = Sums::default();
        if !self.held_out.is_empty() {
            progress.held_out = held_out(&model, &self.held_out)?;
            if progress.held_out < self.state.best_held_out {
                self.state.best_held_out = progress.held_out;
                self.state.evaluations_since_best = 0;
            } else {
                self.state.evaluations_since_best += 1;
            }
        }
        let (seed, step) = (self.state.options.seed, self.state.step as u64);
        if let Some(target) = self.target.as_mut() {
            let streams = move |row: usize| Stream::new(seed, StreamId::Bootstrap, step, row as u32);
            let n = self.state.options.evaluation_samples;
            let quality = match &self.map {
                Some(map) => map.quality(&model, target, n)?,
                None => {
                    let log_w = losses::draw(&model, target, n, &streams)?.log_weight;
                    divergence::check_weights(step as usize, &log_w)?;
                    Quality::of(&log_w)?
                }
            };
            progress.ess = quality.ess;
            progress.pareto_k = quality.pareto_k;
            progress.acceptance = quality.acceptance;
        }
        Kept::offer(&mut self.state.kept, &mut progress, &self.state.optimiser.average);
        self.state.history.push(progress.clone());
        Ok(progress)
    }
}

/// The weights to the largest power ≤ 1 with which this share of them is effective (tempered weights, as of adaptive
/// importance sampling: their fixed point is the target all the same): a flow that fits few samples of large weight loses all others, and refines itself away.
fn softened(log_weights: &[f64], share: f64) -> Result<Vec<f64>> {
    let to_power = |power: f64| log_weights.iter().map(|w| power * w).collect::<Vec<f64>>();
    let is_effective = |power: f64| {
        let ess = weights::effective_sample_size(&to_power(power))?;
        Ok::<bool, Error>(ess >= share * log_weights.len() as f64)
    };
    if share == 0.0 || is_effective(1.0)? {
        return Ok(log_weights.to_vec());
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..10 {
        let middle = 0.5 * (low + high);
        match is_effective(middle)? {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(to_power(low))
}

fn finite_mean(values: &[f64]) -> f64 {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.iter().sum::<f64>() / finite.len().max(1) as f64
}

/// −mean log q over at most 8192 of the held-out frames.
fn held_out(model: &CouplingFlow<f32>, frames: &[f64]) -> Result<f64> {
    let dx = model.dimension();
    let n = (frames.len() / dx).min(8192);
    let mut log_q = vec![Evaluation::inside(0.0); n];
    model.log_density(&frames[..n * dx], &mut log_q)?;
    let inside: Vec<f64> = log_q.iter().filter(|e| e.is_inside()).map(|e| e.log_density).collect();
    Ok(-inside.iter().sum::<f64>() / inside.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_softened_as_little_as_the_share_asks_for() {
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let log_weights: Vec<f64> = (0..2000).map(|_| 5.0 * stream.normal()).collect();
        let share = |log_weights: &[f64]| weights::effective_sample_size(log_weights).unwrap() / 2000.0;
        assert!(share(&log_weights) < 0.01);
        let soft = softened(&log_weights, 0.1).unwrap();
        assert!((0.1..0.11).contains(&share(&soft)), "{}", share(&soft));
        let power = soft[0] / log_weights[0];
        assert!(0.0 < power && power < 1.0);
        assert!(soft.iter().zip(&log_weights).all(|(soft, w)| (soft - power * w).abs() < 1e-12));
        assert_eq!(softened(&log_weights, 0.0).unwrap(), log_weights);
        assert_eq!(softened(&soft, 0.05).unwrap(), soft);
    }
}
