//! A plan of temperatures and steps, made by a pilot run.

use super::{Annealing, Bridge, Kernel, Options, Points, Progress, Stage};
use crate::error::{Error, Result};
use crate::weights;
use serde::{Deserialize, Serialize};

/// Where the acceptance of adjusted moves is wanted.
const WANTED: [f64; 2] = [0.55, 0.65];
/// By how much a step is changed at a time, until there are one that is too short and one that is too long.
const CHANGE: f64 = 4.0;
/// Such two steps are one.
const ALIKE: f64 = 1.1;
/// Steps that are tried at one temperature.
const MOST_TRIED: usize = 16;
/// Fewest pilots: the conditional effective sample size of n is never below 1/n of them, and of few it says nothing.
pub const FEWEST_PILOTS: usize = 10;

/// How the temperatures of a plan are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperatures {
    /// So that the conditional effective sample size (Zhou, Johansen and Aston 2016) of each step is this share of all.
    /// Errors: more than `most` of them.
    Share { share: f64, most: usize },
    /// So many, evenly spaced.
    Even(usize),
}

/// T even temperatures 1/T … 1 with one step.
pub fn even(stages: usize, step: f64) -> Vec<Stage> {
    (1..=stages).map(|j| Stage { t: j as f64 / stages as f64, step }).collect()
}

/// A pilot run, with samples that are none of those of the run itself, so that its weights know nothing of the choice.
///
/// At each temperature the step of adjusted moves is changed until 55 to 65 % of them are accepted; it is frozen with
/// the plan. Moves without a test keep the step that was given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pilot {
    /// Its plan is what has been found so far.
    run: Annealing,
    temperatures: Temperatures,
    step: f64,
    /// Moves of all pilots that were made: each has random numbers of its own.
    moves: u64,
}

impl Pilot {
    /// Errors: as for a run; a share outside (0, 1); too few pilots to tell it.
    pub fn new(
        bridge: &mut Bridge,
        pilots: Points,
        step: f64,
        temperatures: Temperatures,
        options: &Options,
    ) -> Result<Pilot> {
        let share = match temperatures {
            Temperatures::Share { share, .. } if !(share > 0.0 && share < 1.0) => {
                return Err(Error::invalid(format!("a share of {share} of the particles; between 0 and 1 is needed")));
            }
            Temperatures::Share { share, .. } => share,
            Temperatures::Even(_) => 1.0,
        };
        let drawn = pilots.n();
        let mut run = Annealing::new(bridge, pilots, vec![Stage { t: 1.0, step }], options.clone())?;
        run.plan.clear();
        let (usable, fewest) = (run.points.n(), FEWEST_PILOTS.max((2.0 / share).ceil() as usize));
        match usable < fewest {
            true => Err(Error::invalid(format!(
                "{usable} of {drawn} pilots are of use, and {fewest} are needed to make a plan: draw more pilots, or give the number of \
                 temperatures and the step"
            ))),
            false => Ok(Pilot { run, temperatures, step, moves: 0 }),
        }
    }

    /// Where the pilots are.
    pub fn t(&self) -> f64 {
        self.run.plan.last().map_or(0.0, |stage| stage.t)
    }

    /// What has been found so far; the whole plan once t is 1.
    pub fn plan(&self) -> &[Stage] {
        &self.run.plan
    }

    /// Finds one more temperature and its step. Errors: as for a run; more temperatures than there may be.
    pub fn stage(&mut self, bridge: &mut Bridge) -> Result<Progress> {
        let (before, stages) = (self.t(), self.run.plan.len());
        let t = match self.temperatures {
            Temperatures::Share { most, .. } if stages >= most => {
                return Err(Error::invalid(format!(
                    "{most} stages are not enough: the pilot run is at t = {before:.4}"
                )));
            }
            Temperatures::Share { share, .. } => next_temperature(&self.run, before, share),
            Temperatures::Even(n) => (stages + 1) as f64 / n as f64,
        };
        let (ess, resampled) = self.run.rise(before, t)?;
        let mut search = Search::default();
        let acceptance = loop {
            let acceptance = self.run.make_moves(bridge, Stage { t, step: self.step }, self.moves)?;
            self.moves += self.run.options.moves as u64;
            let is_adjusted = !matches!(self.run.options.kernel, Kernel::Unadjusted { .. });
            match search.after(self.step, acceptance).filter(|_| is_adjusted) {
                Some(step) => self.step = step,
                None => break acceptance,
            }
        };
        self.run.plan.push(Stage { t, step: self.step });
        self.run.done += 1;
        Ok(self.run.progress(Stage { t, step: self.step }, ess, resampled, acceptance))
    }
}

/// A search for the step at one temperature.
#[derive(Default)]
pub(super) struct Search {
    tried: usize,
    /// The longest step that was too short, the shortest one that was too long.
    bounds: [Option<f64>; 2],
}

impl Search {
    /// What to try after a step with this acceptance; none if that one will do.
    pub(super) fn after(&mut self, step: f64, acceptance: f64) -> Option<f64> {
        self.tried += 1;
        if acceptance > WANTED[1] {
            self.bounds[0] = Some(step);
        } else if acceptance < WANTED[0] {
            self.bounds[1] = Some(step);
        } else {
            return None;
        }
        let next = match self.bounds {
            [Some(short), Some(long)] if long < ALIKE * short => return None,
            [Some(short), Some(long)] => (short * long).sqrt(),
            [Some(short), None] => CHANGE * short,
            [None, Some(long)] => long / CHANGE,
            [None, None] => return None,
        };
        Some(next).filter(|next| self.tried < MOST_TRIED && next.is_finite() && *next > 0.0)
    }
}

/// The whole of a pilot run: the plan.
pub fn plan(
    bridge: &mut Bridge,
    pilots: Points,
    step: f64,
    temperatures: Temperatures,
    options: &Options,
) -> Result<Vec<Stage>> {
    let mut pilot = Pilot::new(bridge, pilots, step, temperatures, options)?;
    while pilot.t() < 1.0 {
        pilot.stage(bridge)?;
    }
    Ok(pilot.run.plan)
}

/// The t′ at which n (Σ W w)²/Σ W w² of the incremental weights w falls to `share` n, by bisection.
pub(super) fn next_temperature(run: &Annealing, t: f64, share: f64) -> f64 {
    let differences: Vec<f64> =
        run.points.target.iter().zip(&run.points.source).map(|(u, source)| u - source).collect();
    let conditional = |dt: f64| {
        let once: Vec<f64> = run.log_weights.iter().zip(&differences).map(|(w, d)| w - dt * d).collect();
        let twice: Vec<f64> = run.log_weights.iter().zip(&differences).map(|(w, d)| w - 2.0 * dt * d).collect();
        let all = weights::log_sum_exp(&run.log_weights);
        (2.0 * weights::log_sum_exp(&once) - weights::log_sum_exp(&twice) - all).exp()
    };
    if conditional(1.0 - t) >= share {
        return 1.0;
    }
    // of the logarithm, as clashes have energies of any size; each step forward is one, however short
    let (mut low, mut high) = (f64::MIN_POSITIVE.ln(), (1.0 - t).ln());
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if conditional(middle.exp()) >= share {
            low = middle;
        } else {
            high = middle;
        }
    }
    (t + low.exp()).max(t.next_up()).min(1.0)
}
