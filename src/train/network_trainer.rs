//! The training loop of regressed networks: flow matching and energy-based models. It needs no energies from the
//! engine.

use super::batch::spread;
use super::contrastive::ContrastiveOptions;
use super::density;
use super::divergence::{self, Divergence};
use super::flow_matching::{self, Batch, Pairing};
use super::optimiser::{check_settings, AdamW, Schedule, BETA2};
use super::phases::check_rows;
use super::progress::{nan_as_none, Kept, Progress};
use crate::coordinates::vector::{atom, centre, torsion};
use crate::error::{Error, Result};
use crate::models::continuous::ContinuousConfig;
use crate::models::network::{Network, Trainable};
use crate::rng::{Stream, StreamId};
use serde::{Deserialize, Serialize};
use std::ops::{AddAssign, Range};

/// Held-out frames used in an evaluation.
const MOST_HELD_OUT: usize = 256;

/// Frames with a torsion in a given range, drawn more often than they occur, so that a rare basin is learned as well as
/// the common one. The model then has that fraction in the basin; weights or the acceptance of a move correct it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Emphasis {
    /// Atoms of the torsion, counted from 0.
    pub atoms: [usize; 4],
    /// Its range, rad within ±π.
    pub range: [f64; 2],
    /// Fraction of a batch drawn from the range.
    pub share: f64,
}

impl Emphasis {
    /// Indices of the frames `[n][dimension]` inside the range, and of those outside.
    ///
    /// Errors: a fraction outside [0, 1], an atom that the frames do not have, no frame inside or none outside.
    fn split(&self, frames: &[f64], dimension: usize, first: usize) -> Result<[Vec<usize>; 2]> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(Error::invalid(format!("emphasis.share = {}: must be between 0 and 1", self.share)));
        }
        if let Some(a) = self.atoms.iter().find(|&&a| a >= dimension / 3) {
            return Err(Error::invalid(format!(
                "emphasis.atoms: {a} is out of range for {} atoms (indices start at 0)",
                dimension / 3
            )));
        }
        let inside = |frame: &usize| {
            let x = &frames[frame * dimension..][..dimension];
            let [i, j, k, l] = self.atoms.map(|a| atom(x, a));
            (self.range[0]..self.range[1]).contains(&torsion(i, j, k, l))
        };
        let (within, without): (Vec<usize>, Vec<usize>) = (first..frames.len() / dimension).partition(inside);
        match within.is_empty() || without.is_empty() {
            true => Err(Error::invalid(format!(
                "emphasis: {} frames have the torsion in {:?} rad and {} do not; both kinds are required",
                within.len(),
                self.range,
                without.len()
            ))),
            false => Ok([within, without]),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkOptions {
    pub steps: usize,
    /// Peak learning rate.
    pub rate: f64,
    pub schedule: Schedule,
    pub batch: usize,
    /// Frames to draw more often.
    pub emphasis: Option<Emphasis>,
    /// How data and prior are paired in flow matching.
    pub pairing: Pairing,
    /// Upper bound of the weight of an end-point model near the data.
    pub largest_weight: f64,
    pub weight_decay: f64,
    /// Decay of AdamW's second moments.
    pub beta2: f64,
    /// Gradient-clipping norm.
    pub clip: f64,
    /// Decay of the exponential moving average of the parameters; the average is what is saved.
    pub average: f64,
    /// Fraction of the frames held out.
    pub held_out: f64,
    /// Steps between evaluations.
    pub evaluate: usize,
    pub seed: u64,
}

impl Default for NetworkOptions {
    fn default() -> NetworkOptions {
        NetworkOptions {
            steps: 5000,
            rate: 1e-3,
            schedule: Schedule::Cosine,
            batch: 64,
            emphasis: None,
            pairing: Pairing::Superposed,
            largest_weight: 10.0,
            weight_decay: 0.0,
            beta2: BETA2,
            clip: 10.0,
            average: 0.999,
            held_out: 0.02,
            evaluate: 250,
            seed: 1,
        }
    }
}

impl NetworkOptions {
    /// Checks the settings. Errors name the setting that is out of range.
    pub fn check(&self) -> Result<()> {
        check_rows("batch", self.batch)?;
        if self.batch == 0 || self.steps == 0 {
            return Err(Error::invalid("`steps` and `batch` must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(Error::invalid(format!("`held_out` = {}: must be at least 0 and less than 1", self.held_out)));
        }
        if !(self.largest_weight >= flow_matching::LEAST_WEIGHT && self.largest_weight.is_finite()) {
            let least = flow_matching::LEAST_WEIGHT;
            return Err(Error::invalid(format!(
                "`largest_weight` = {}: must be at least {least}",
                self.largest_weight
            )));
        }
        if !(0.0..1.0).contains(&self.beta2) {
            return Err(Error::invalid(format!("`beta2` = {}: must be at least 0 and less than 1", self.beta2)));
        }
        self.schedule.check()?;
        check_settings([self.rate], self.clip, self.weight_decay, self.average)
    }
}

/// Frames of a batch, in the network's units.
pub struct Drawn {
    /// Indices of the frames.
    pub frames: Vec<usize>,
    /// Range of indices they were drawn from: all training frames, or all held-out frames.
    pub among: Range<usize>,
    /// `[n][dimension]`
    pub x: Vec<f64>,
}

/// Loss of a batch, with the two parts of that of an energy-based model before they are weighted; NaN for parts that
/// there are not.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Loss {
    pub total: f64,
    #[serde(with = "nan_as_none")]
    pub score_matching: f64,
    #[serde(with = "nan_as_none")]
    pub contrastive: f64,
}

impl From<f64> for Loss {
    fn from(total: f64) -> Loss {
        Loss { total, score_matching: f64::NAN, contrastive: f64::NAN }
    }
}

impl AddAssign for Loss {
    fn add_assign(&mut self, other: Loss) {
        self.total += other.total;
        self.score_matching += other.score_matching;
        self.contrastive += other.contrastive;
    }
}

/// A training objective: how a batch is prepared, and its loss.
pub trait Objective<N: Trainable>: Sync {
    /// Loss of a batch, with times and noise from `stream`; adds its gradient.
    fn loss(&self, network: &N, parameters: &[f32], batch: Drawn, stream: &mut Stream, gradient: &mut [f32]) -> Loss;

    /// Further settings, besides the network's card, that a continued training must share.
    fn settings(&self) -> String {
        String::new()
    }

    /// Frames it holds besides those that the trainer draws from.
    fn frames(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Standard deviation of log q_model − log q over frames whose log q is known; NaN if none is.
    fn deviation(&self, _network: &N, _parameters: &[f32], _batch: &Drawn) -> f64 {
        f64::NAN
    }
}

/// Flow matching of molecules on the centred space.
pub struct FlowMatching {
    pub config: ContinuousConfig,
    pub pairing: Pairing,
    pub largest_weight: f64,
}

impl<N: Network> Objective<N> for FlowMatching {
    fn loss(&self, network: &N, parameters: &[f32], batch: Drawn, stream: &mut Stream, gradient: &mut [f32]) -> Loss {
        let mut data = batch.x;
        let d = Network::dimension(network);
        let mut prior: Vec<f64> = (0..data.len()).map(|_| stream.normal()).collect();
        prior.chunks_exact_mut(d).for_each(|row| _ = centre(row));
        let [start, end] = self.config.times;
        let t: Vec<f64> = (0..data.len() / d).map(|_| start + (end - start) * stream.uniform()).collect();
        flow_matching::pair(self.pairing, &mut data, &prior, d);
        let batch = Batch { data: &data, prior: &prior, t: &t };
        flow_matching::flow_matching(network, parameters, &self.config, &batch, self.largest_weight, gradient).into()
    }
}

/// Score matching and contrastive estimation of an energy-based model.
pub struct Contrast {
    pub options: ContrastiveOptions,
    /// Whether the noise has no centroid, as for molecules.
    pub mean_free: bool,
    /// log q of each frame, for comparison; NaN where it is not known.
    pub log_density: Vec<f64>,
    /// Network time of the data.
    pub data_time: f64,
}

impl<N: Network> Objective<N> for Contrast {
    fn settings(&self) -> String {
        format!(" {:?}", self.options)
    }

    fn loss(&self, network: &N, parameters: &[f32], batch: Drawn, stream: &mut Stream, gradient: &mut [f32]) -> Loss {
        let noised = self.options.draw(&batch.x, Network::dimension(network), self.mean_free, stream);
        let [score_matching, contrastive] = self.options.losses(network, parameters, &noised, gradient);
        let part = |weight: f64, loss: f64| if weight > 0.0 { weight * loss } else { 0.0 };
        let total = part(self.options.score_weight, score_matching) + part(self.options.nce_weight, contrastive);
        Loss { total, score_matching, contrastive }
    }

    fn deviation(&self, network: &N, parameters: &[f32], batch: &Drawn) -> f64 {
        let known: Vec<f64> = batch.frames.iter().map(|&frame| self.log_density[frame]).collect();
        density::deviation(network, parameters, self.data_time, &batch.x, &known)
    }
}

/// Everything needed to continue a training.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NetworkState {
    pub options: NetworkOptions,
    pub step: usize,
    parameters: Vec<f32>,
    optimiser: AdamW,
    loss: Loss,
    norm: f64,
    since: usize,
    /// Best model so far, if there was an evaluation.
    kept: Option<Kept>,
    pub history: Vec<Progress>,
}

/// Trains a network on frames.
pub struct NetworkTrainer<'a, N, O> {
    network: &'a N,
    objective: O,
    frames: Vec<f64>,
    n_held_out: usize,
    /// Indices of the frames inside and outside the range of `emphasis`, and the fraction to draw inside.
    pools: Option<(f64, [Vec<usize>; 2])>,
    state: NetworkState,
    gradient: Vec<f32>,
    divergence: Divergence,
}

impl<'a, N: Trainable, O: Objective<N>> NetworkTrainer<'a, N, O> {
    /// `frames[n][dimension]` are in the network's units, centred. Errors: options out of range, too few frames.
    pub fn new(
        network: &'a N,
        parameters: Vec<f32>,
        objective: O,
        frames: Vec<f64>,
        options: NetworkOptions,
    ) -> Result<NetworkTrainer<'a, N, O>> {
        let optimiser = AdamW::new(&parameters, options.weight_decay, options.average).with_beta2(options.beta2);
        let state = NetworkState {
            step: 0,
            parameters,
            optimiser,
            loss: Loss::default(),
            norm: 0.0,
            since: 0,
            kept: None,
            history: vec![],
            options,
        };
        NetworkTrainer::resume(network, objective, frames, state)
    }

    /// Continues from a saved state. Errors: a state of another network, frames of another size, too few frames.
    pub fn resume(
        network: &'a N,
        objective: O,
        frames: Vec<f64>,
        state: NetworkState,
    ) -> Result<NetworkTrainer<'a, N, O>> {
        let (d, n_parameters) = (network.dimension(), network.layout().n_parameters());
        if state.parameters.len() != n_parameters {
            return Err(Error::invalid("the saved training state belongs to another model"));
        }
        if !frames.len().is_multiple_of(d) {
            return Err(Error::invalid(format!(
                "found {} numbers, expected whole frames of {d} coordinates",
                frames.len()
            )));
        }
        state.options.check()?;
        let n = frames.len() / d;
        let n_held_out = (n as f64 * state.options.held_out) as usize;
        if n <= n_held_out {
            return Err(Error::invalid(format!("{n} frames are too few: none is left to train on")));
        }
        let split = |emphasis: &Emphasis| emphasis.split(&frames, d, n_held_out).map(|pools| (emphasis.share, pools));
        let pools = state.options.emphasis.as_ref().map(split).transpose()?;
        let gradient = vec![0.0; n_parameters];
        let divergence = Divergence::default();
        Ok(NetworkTrainer { network, objective, frames, n_held_out, pools, state, gradient, divergence })
    }

    /// Everything needed to continue the training.
    pub fn state(&self) -> &NetworkState {
        &self.state
    }

    /// Averaged parameters of the best evaluation so far: the latest, unless an earlier one was better in everything
    /// that is measured.
    pub fn best(&self) -> &[f32] {
        self.state.kept.as_ref().map_or(&self.state.optimiser.average, |kept| &kept.parameters)
    }

    /// Whether all steps are done.
    pub fn is_finished(&self) -> bool {
        self.state.step >= self.state.options.steps
    }

    /// Makes one step. Returns an evaluation when one is due.
    ///
    /// Errors: the training diverges.
    pub fn step(&mut self) -> Result<Option<Progress>> {
        let NetworkOptions { steps, rate, schedule, batch, clip, evaluate, seed, .. } = self.state.options;
        let rate = rate * schedule.factor(self.state.step as f64 / steps as f64);
        let mut stream = Stream::new(seed, StreamId::Train, self.state.step as u64, 0);
        let all = self.n_held_out..self.frames.len() / self.network.dimension();
        let drawn = self.batch((0..batch).map(|_| self.draw(&mut stream)).collect(), all);
        self.gradient.fill(0.0);
        let state = &mut self.state;
        let loss = self.objective.loss(self.network, &state.parameters, drawn, &mut stream, &mut self.gradient);
        let norm = state.optimiser.update(&mut state.parameters, &self.gradient, rate, clip);
        state.step += 1;
        self.divergence.step(state.step, norm)?;
        if norm.is_finite() {
            state.loss += loss;
            (state.norm, state.since) = (state.norm + norm, state.since + 1);
        }
        match state.step.is_multiple_of(evaluate.max(1)) || state.step == steps {
            true => self.evaluate(rate).map(Some),
            false => Ok(None),
        }
    }

    fn batch(&self, frames: Vec<usize>, among: Range<usize>) -> Drawn {
        let d = self.network.dimension();
        let x = frames.iter().flat_map(|frame| &self.frames[frame * d..][..d]).copied().collect();
        Drawn { frames, among, x }
    }

    /// Draws the index of a training frame.
    fn draw(&self, stream: &mut Stream) -> usize {
        let Some((share, [inside, outside])) = &self.pools else {
            return self.n_held_out + stream.below(self.frames.len() / self.network.dimension() - self.n_held_out);
        };
        let pool = if stream.uniform() < *share { inside } else { outside };
        pool[stream.below(pool.len())]
    }

    fn evaluate(&mut self, rate: f64) -> Result<Progress> {
        let since = self.state.since as f64;
        let progress = Progress {
            step: self.state.step,
            rate,
            loss: self.state.loss.total / since,
            score_matching: self.state.loss.score_matching / since,
            contrastive: self.state.loss.contrastive / since,
            gradient_norm: self.state.norm / since,
            ..Progress::nothing()
        };
        let mut progress = self.held_out(progress);
        let losses = [
            (since > 0.0).then_some(("the loss", progress.loss)),
            (self.n_held_out > 0).then_some(("the held-out loss", progress.held_out_loss)),
        ];
        divergence::check(progress.step, losses.into_iter().flatten(), &self.state.optimiser.average)?;
        (self.state.loss, self.state.norm, self.state.since) = (Loss::default(), 0.0, 0);
        Kept::offer(&mut self.state.kept, &mut progress, &self.state.optimiser.average);
        self.state.history.push(progress.clone());
        Ok(progress)
    }

    /// Loss and deviation of the averaged parameters on held-out frames, evenly spread over all of them, always with the
    /// same times and noise; NaN without such frames.
    fn held_out(&mut self, progress: Progress) -> Progress {
        let rows = spread(self.n_held_out, MOST_HELD_OUT);
        if rows.is_empty() {
            return progress;
        }
        let mut stream = Stream::new(self.state.options.seed, StreamId::Bootstrap, 0, 0);
        let batch = self.batch(rows, 0..self.n_held_out);
        let average = &self.state.optimiser.average;
        let deviation = self.objective.deviation(self.network, average, &batch);
        self.gradient.fill(0.0);
        let loss = self.objective.loss(self.network, average, batch, &mut stream, &mut self.gradient);
        Progress { deviation, held_out_loss: loss.total, ..progress }
    }
}

/// Converts frames `[n][dimension]` from nm to the network's units and centres them.
pub fn in_units(frames: &[f64], dimension: usize, units_per_nm: f64) -> Vec<f64> {
    let mut x: Vec<f64> = frames.iter().map(|v| v * units_per_nm).collect();
    x.chunks_exact_mut(dimension).for_each(|row| _ = centre(row));
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::layout::Layout;

    /// Four atoms with the torsion `angle`, rad.
    fn frame(angle: f64) -> Vec<f64> {
        let (sin, cos) = angle.sin_cos();
        vec![1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, cos, sin, 1.0]
    }

    fn emphasis() -> Emphasis {
        Emphasis { atoms: [0, 1, 2, 3], range: [0.5, 1.5], share: 0.3 }
    }

    /// A network with a single parameter.
    struct Number(Layout);

    impl Trainable for Number {
        fn dimension(&self) -> usize {
            3
        }

        fn layout(&self) -> &Layout {
            &self.0
        }
    }

    /// Training frames drive the parameter up forever; held-out frames (the first four) want it at 0.5.
    struct Overfitting;

    impl Objective<Number> for Overfitting {
        fn loss(&self, _: &Number, p: &[f32], batch: Drawn, _: &mut Stream, gradient: &mut [f32]) -> Loss {
            gradient[0] = -1.0;
            let loss = match batch.among.start {
                0 => (f64::from(p[0]) - 0.5).abs(),
                _ => f64::from(-p[0]),
            };
            loss.into()
        }
    }

    #[test]
    fn the_model_that_is_best_on_held_out_frames_is_kept_over_a_restart() {
        let mut layout = Layout::default();
        layout.tensor("p", &[]);
        let network = Number(layout);
        let options = NetworkOptions {
            steps: 10,
            rate: 0.1,
            schedule: Schedule::Constant,
            average: 0.0,
            held_out: 0.4,
            evaluate: 1,
            ..NetworkOptions::default()
        };
        let mut trainer = NetworkTrainer::new(&network, vec![0.0], Overfitting, vec![0.0; 30], options).unwrap();
        while !trainer.is_finished() {
            if let Some(progress) = trainer.step().unwrap() {
                assert_eq!(progress.better, (progress.step > 5).then_some(5), "{progress:?}");
            }
            trainer = NetworkTrainer::resume(&network, Overfitting, vec![0.0; 30], trainer.state().clone()).unwrap();
        }
        assert!((trainer.best()[0] - 0.5).abs() < 1e-3 && trainer.state().parameters[0] > 0.9, "{:?}", trainer.best());
    }

    /// The loss is the mean of the frames.
    struct Mean;

    impl Objective<Number> for Mean {
        fn loss(&self, _: &Number, _: &[f32], batch: Drawn, _: &mut Stream, _: &mut [f32]) -> Loss {
            (batch.x.iter().sum::<f64>() / batch.x.len() as f64).into()
        }
    }

    /// Of two files with 400 held-out frames each, the second was not looked at.
    #[test]
    fn the_held_out_loss_is_that_of_all_held_out_frames() {
        let mut layout = Layout::default();
        layout.tensor("p", &[]);
        let network = Number(layout);
        let frames: Vec<f64> = (0..4000).flat_map(|i| [if i < 400 { 0.0 } else { 1.0 }; 3]).collect();
        let options = NetworkOptions { steps: 1, held_out: 0.2, ..NetworkOptions::default() };
        let mut trainer = NetworkTrainer::new(&network, vec![0.0], Mean, frames, options).unwrap();
        let progress = trainer.step().unwrap().unwrap();
        assert_eq!((progress.loss, progress.held_out_loss), (1.0, 0.5));
    }

    #[test]
    fn frames_are_split_by_their_torsion() {
        let frames: Vec<f64> = [1.0, -2.0, 1.4, 3.0, 0.6].into_iter().flat_map(frame).collect();
        assert_eq!(emphasis().split(&frames, 12, 0).unwrap(), [vec![0, 2, 4], vec![1, 3]]);
        assert_eq!(emphasis().split(&frames, 12, 1).unwrap(), [vec![2, 4], vec![1, 3]], "without those held out");
    }

    #[test]
    fn impossible_emphasis_is_refused_by_name() {
        let frames: Vec<f64> = [1.0, 1.2].into_iter().flat_map(frame).collect();
        let complaint = |emphasis: Emphasis| emphasis.split(&frames, 12, 0).unwrap_err().to_string();
        assert!(complaint(emphasis()).contains("2 frames have the torsion"));
        assert!(complaint(Emphasis { share: 1.5, ..emphasis() }).contains("emphasis.share"));
        assert!(complaint(Emphasis { atoms: [0, 1, 2, 4], ..emphasis() }).contains("emphasis.atoms: 4"));
    }
}
