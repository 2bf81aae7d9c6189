//! The training loop: phases of combined losses, with a state that can be saved and continued bit for bit.

use super::batch::spread;
use super::divergence::{self, Divergence};
use super::losses;
use super::map::{MapLoss, Quality};
use super::optimiser::AdamW;
use super::phases::{Phase, TrainOptions};
use super::pool::Pool;
use super::progress::{Kept, Progress};
use crate::density::{Density, Evaluation};
use crate::error::{Error, Result};
use crate::models::coupling::CouplingFlow;
use crate::models::steering::{dimension_without_auxiliary, JointTarget, Steering};
use crate::models::Model;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use serde::{Deserialize, Serialize};

/// Stream replicas from here on draw auxiliary coordinates.
const AUXILIARY: u32 = 1 << 20;

/// Everything needed to continue a training.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainState {
    pub options: TrainOptions,
    pub step: usize,
    phase: usize,
    phase_start: usize,
    parameters: Vec<f32>,
    optimiser: AdamW,
    pool: Pool,
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

/// Frames checked before training starts.
const FIRST_FRAMES: usize = 64;
/// Held-out frames used in an evaluation.
pub(super) const MOST_HELD_OUT: usize = 8192;

/// Requires that some frames have a density. Errors: none has, so that there is nothing to learn from them.
fn require_density(flow: &CouplingFlow<f32>, frames: &[f64]) -> Result<()> {
    let n = frames.len() / flow.dimension();
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.log_density(frames, &mut log_q)?;
    match log_q.iter().any(Evaluation::is_inside) || n == 0 {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "none of the first {n} frames has a density under the model ({}): they must be in nm, with the model's atoms in its order and the \
             bond lengths that it keeps",
            log_q[0].status.words()
        ))),
    }
}

/// Trains one flow on frames, a target, or both.
pub struct Trainer<'a> {
    flow: CouplingFlow<f32>,
    frames: &'a [f64],
    /// Held-out frames, with auxiliary coordinates if the flow has them.
    held_out: Vec<f64>,
    target: Option<JointTarget<'a>>,
    /// Source of the latent points of reverse KL in place of the prior.
    map: Option<Box<dyn MapLoss>>,
    state: TrainState,
    gradient: Vec<f32>,
    divergence: Divergence,
}

impl<'a> Trainer<'a> {
    /// `frames[n][dimension]` may be empty if no phase uses them; likewise `target` may be absent. Both are for
    /// configurations x at the training temperature: the auxiliary coordinates of a steerable flow are added here,
    /// drawn afresh for every batch.
    ///
    /// Errors: options out of range; frames or a target that are missing, do not fit, or have no density.
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
            pool: Pool::default(),
            best_held_out: f64::INFINITY,
            evaluations_since_best: 0,
            kept: None,
            sums: Sums::default(),
            history: Vec::new(),
            options,
        };
        Trainer::resume(flow, frames, target, state)
    }

    /// Continues from a saved state. Errors: those of [`Trainer::new`], and a state that does not fit the flow.
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
            return Err(Error::invalid(format!(
                "found {} numbers, expected whole frames of {dx} coordinates",
                frames.len()
            )));
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
        Ok(Trainer { flow, frames, held_out, target, map: None, state, gradient, divergence })
    }

    /// Trains the flow as the far end of a map, by reverse KL on the latent points of another ensemble's frames.
    /// Errors: those of [`TrainOptions::check_for_map`].
    pub fn with_map(mut self, map: impl MapLoss + 'static) -> Result<Trainer<'a>> {
        self.state.options.check_for_map()?;
        self.map = Some(Box::new(map));
        Ok(self)
    }

    /// Everything needed to continue the training.
    pub fn state(&mut self) -> &TrainState {
        self.state.parameters.copy_from_slice(self.flow.parameters());
        &self.state
    }

    /// The current model with averaged parameters.
    pub fn averaged(&self) -> Result<CouplingFlow<f32>> {
        self.with_parameters(&self.state.optimiser.average)
    }

    /// The averaged model of the last evaluation that was not worse than its best predecessor, by held-out frames, by
    /// the expected acceptance of its proposals and by ln Z, as far as these are measured: the model worth saving if the
    /// training overfits or diverges. The current one before the first evaluation, and in a phase with a reaction
    /// coordinate.
    pub fn best(&self) -> Result<CouplingFlow<f32>> {
        self.with_parameters(self.state.kept.as_ref().map_or(&self.state.optimiser.average, |kept| &kept.parameters))
    }

    fn with_parameters(&self, parameters: &[f32]) -> Result<CouplingFlow<f32>> {
        let mut model = self.flow.cast::<f32>()?;
        model.parameters_mut().copy_from_slice(parameters);
        Ok(model)
    }

    /// Total number of steps of all phases.
    pub fn total_steps(&self) -> usize {
        self.state.options.phases.iter().map(|p| p.steps).sum()
    }

    /// Number of steps done, over all phases.
    pub fn step_count(&self) -> usize {
        self.state.step
    }

    /// Whether the last phase is done.
    pub fn is_finished(&self) -> bool {
        self.state.phase >= self.state.options.phases.len()
    }

    /// Makes one step. Returns an evaluation when one is due.
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
            self.state.sums = sums; // of the steps taken
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
            self.state.best_held_out = f64::INFINITY; // the next phase has its own losses
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

    /// Draws random training frames.
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
            self.state.pool.add(&samples, phase.keep);
        }
        divergence::check_weights(self.state.step, self.state.pool.log_weights())?;
        let mut stream = self.stream(StreamId::Train, 1);
        let x = self.state.pool.batch(phase.refinement_batch, phase.effective, &mut stream)?;
        let loss = losses::maximum_likelihood(&self.flow, &x, phase.refinement, &mut self.gradient)?;
        self.state.sums.refinement += loss;
        Ok(())
    }

    fn evaluate(&mut self, phase: &Phase, rate: f64) -> Result<Progress> {
        let model = self.averaged()?;
        let sums = self.state.sums;
        let norm = sums.gradient_norm / sums.steps;
        let measured = (sums.steps > 0.0).then_some(("the gradient norm", norm));
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
            (progress.log_z, progress.log_z_stderr) = (quality.log_z.value, quality.log_z.standard_error);
        }
        if phase.reaction_coordinate > 0.0 {
            self.state.kept = None; // samples that are spread on purpose are worse in all that is measured
        }
        Kept::offer(&mut self.state.kept, &mut progress, &self.state.optimiser.average);
        self.state.history.push(progress.clone());
        Ok(progress)
    }
}

fn finite_mean(values: &[f64]) -> f64 {
    let finite: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    finite.iter().sum::<f64>() / finite.len().max(1) as f64
}

/// Held-out loss: −mean log q over held-out frames, evenly spread over all of them. Those outside the support are left
/// out.
pub(super) fn held_out(model: &CouplingFlow<f32>, frames: &[f64]) -> Result<f64> {
    let dx = model.dimension();
    let rows = spread(frames.len() / dx, MOST_HELD_OUT);
    let x: Vec<f64> = rows.iter().flat_map(|row| &frames[row * dx..][..dx]).copied().collect();
    let mut log_q = vec![Evaluation::inside(0.0); rows.len()];
    model.log_density(&x, &mut log_q)?;
    let inside: Vec<f64> = log_q.iter().filter(|e| e.is_inside()).map(|e| e.log_density).collect();
    Ok(-inside.iter().sum::<f64>() / inside.len().max(1) as f64)
}
