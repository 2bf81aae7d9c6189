//! Settings of a training: phases of combined losses.

use super::optimiser::{check_settings, Schedule};
use super::reaction_coordinate::ReactionCoordinate;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// A phase of training with its own learning rate and combination of losses. Weight zero switches a loss off.
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
    /// Relative temperatures τ (over that of training) at which reverse KL of a steerable flow is taken, in turn; if
    /// empty, 1 alone.
    pub latent_temperatures: Vec<f64>,
    /// Weight of the [`TrainOptions::reaction_coordinate`] loss over the samples of reverse KL.
    pub reaction_coordinate: f64,
    /// Weight of force matching on the frames of the likelihood's batch; the loss itself has the unit of x to the power
    /// −2.
    pub force_matching: f64,
    /// Maximum likelihood on the model's own importance-resampled samples: weight and batch.
    pub refinement: f64,
    pub refinement_batch: usize,
    /// Steps between draws of new samples for refinement, number of samples drawn, and number kept.
    pub refresh: usize,
    pub draw: usize,
    pub keep: usize,
    /// Fraction of the kept samples that must be effective: otherwise the weights are raised to a power below 1. 0
    /// takes them as they are.
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

/// Checks the number of rows in memory at once.
pub(super) fn check_rows(name: &str, rows: usize) -> Result<()> {
    const MOST: usize = 1 << 24;
    match rows > MOST {
        true => Err(Error::invalid(format!("`{name}` = {rows}: must be at most {MOST} to fit into memory"))),
        false => Ok(()),
    }
}

impl Phase {
    /// Checks the settings of a phase. Errors: weights that are negative or not finite; a phase that trains nothing
    /// because a number is 0; settings of a loss that is off.
    fn check(&self) -> Result<()> {
        self.schedule.check()?;
        let weights = [
            ("likelihood", self.likelihood),
            ("reverse_kl", self.reverse_kl),
            ("reaction_coordinate", self.reaction_coordinate),
            ("force_matching", self.force_matching),
            ("refinement", self.refinement),
        ];
        if let Some((name, weight)) = weights.iter().find(|(_, weight)| !(*weight >= 0.0 && weight.is_finite())) {
            return Err(Error::invalid(format!("a phase has the weight `{name}` = {weight}: must be 0 or positive")));
        }
        if weights.iter().all(|(_, weight)| *weight == 0.0) {
            return Err(Error::invalid(
                "a phase has only losses of weight 0 and trains nothing: set a positive weight, such as `likelihood`",
            ));
        }
        if !(0.0..1.0).contains(&self.effective) {
            let share = self.effective;
            return Err(Error::invalid(format!(
                "a phase has `effective` = {share}: must be at least 0 and less than 1"
            )));
        }
        if !self.latent_temperatures.is_empty() && self.reverse_kl == 0.0 {
            return Err(Error::invalid(
                "a phase has `latent_temperatures`, which are those of reverse KL, but `reverse_kl` = 0: set a positive weight, or remove \
                 `latent_temperatures`",
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
        if let Some((name, ..)) = needed.iter().find(|(_, number, is_needed)| *is_needed && *number == 0) {
            return Err(Error::invalid(format!("a phase has `{name}` = 0: must be at least 1")));
        }
        let mut rows = needed.iter().filter(|(name, ..)| *name != "steps");
        rows.try_for_each(|(name, number, _)| check_rows(name, *number))
    }

    /// Phases for energies with frames that are few or from no proper ensemble: maximum likelihood until the flow is
    /// near, then refinement on its own samples.
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
    /// Coordinate along which phases with a weight for it spread the samples of reverse KL.
    pub reaction_coordinate: Option<ReactionCoordinate>,
    pub weight_decay: f64,
    /// Gradient-clipping norm.
    pub clip: f64,
    /// Decay of the exponential moving average of the parameters; the average is what is saved.
    pub average: f64,
    /// Fraction of the frames held out.
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
            patience: 10,
            seed: 1,
        }
    }
}

impl TrainOptions {
    /// Checks the phases for [`super::trainer::Trainer::with_map`]. Errors: a phase with another loss than reverse KL,
    /// which would train the far end of a map as a generator; a phase with latent temperatures, which are those of the
    /// near end.
    pub fn check_for_map(&self) -> Result<()> {
        if self.phases.iter().any(|p| !p.latent_temperatures.is_empty()) {
            return Err(Error::invalid(
                "a map takes its latent points from the other end: remove `latent_temperatures`",
            ));
        }
        let others = |p: &Phase| p.likelihood + p.force_matching + p.refinement + p.reaction_coordinate;
        match self.phases.iter().all(|p| others(p) == 0.0 && p.reverse_kl > 0.0) {
            true => Ok(()),
            false => Err(Error::invalid(
                "a map is trained by reverse KL alone: set a positive `reverse_kl` in every phase, and `likelihood` \
                 and all other losses to 0",
            )),
        }
    }

    /// Checks the latent temperatures. Errors: temperatures for a flow that is not steerable, or that are not positive.
    pub fn check_temperatures(&self, steerable: bool) -> Result<()> {
        let given: Vec<f64> = self.phases.iter().flat_map(|p| p.latent_temperatures.iter().copied()).collect();
        if !given.is_empty() && !steerable {
            return Err(Error::invalid(
                "`latent_temperatures` require a steerable flow: set `steerable` in its design",
            ));
        }
        match given.iter().find(|t| !(**t > 0.0 && t.is_normal())) {
            Some(t) => Err(Error::invalid(format!("`latent_temperatures` contains {t}: must be positive numbers"))),
            None => Ok(()),
        }
    }

    /// Number of held-out frames out of n: the first ones.
    pub fn held_out_of(&self, n: usize) -> usize {
        (n as f64 * self.held_out) as usize
    }

    /// Checks all settings. Errors: settings out of range, losses whose inputs are missing, or settings that train
    /// nothing.
    pub fn check(&self, dimension: usize, has_frames: bool, has_target: bool) -> Result<()> {
        let needs = |f: fn(&Phase) -> f64| self.phases.iter().any(|p| f(p) > 0.0);
        let refuse = |message: &str| Err(Error::invalid(message));
        self.phases.iter().try_for_each(Phase::check)?;
        check_rows("evaluation_samples", self.evaluation_samples)?;
        if has_target && self.evaluation_samples == 0 {
            return refuse("`evaluation_samples` = 0: must be at least 1 with energies");
        }
        if (needs(|p| p.likelihood) || needs(|p| p.force_matching)) && !has_frames {
            return refuse(
                "maximum likelihood and force matching require frames; pass a trajectory, or set `likelihood` and \
                 `force_matching` to 0",
            );
        }
        let needs_energies = needs(|p| p.reverse_kl) || needs(|p| p.refinement) || needs(|p| p.force_matching);
        if needs_energies && !has_target {
            return refuse("reverse KL, refinement and force matching require energies; pass a System");
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return refuse(
                "`held_out`, the fraction of the frames that is not trained on, must be at least 0 and less than 1",
            );
        }
        check_settings(self.phases.iter().map(|p| p.rate), self.clip, self.weight_decay, self.average)?;
        if let Some(coordinate) = &self.reaction_coordinate {
            coordinate.check(dimension)?;
            if !needs(|p| p.reaction_coordinate) {
                return refuse(
                    "`reaction_coordinate` has no effect without a weight: set its weight `reaction_coordinate` in a phase \
                     with `reverse_kl`, or remove it",
                );
            }
        } else if needs(|p| p.reaction_coordinate) {
            return refuse("a phase has a weight for `reaction_coordinate`; define the coordinate next to `phases`");
        }
        if self.phases.iter().any(|p| p.reaction_coordinate > 0.0 && p.reverse_kl <= 0.0) {
            return refuse(
                "`reaction_coordinate` spreads the samples of reverse KL; set a positive `reverse_kl` in the same phase",
            );
        }
        Ok(())
    }
}
