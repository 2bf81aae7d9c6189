//! Plan of temperatures and step sizes, made by a pilot run.

use super::{Annealing, Bridge, Kernel, Options, Points, Progress, Stage};
use crate::error::{Error, Result};
use crate::weights;
use serde::{Deserialize, Serialize};

/// Range in which the acceptance of adjusted moves should lie.
const WANTED: [f64; 2] = [0.55, 0.65];
/// Factor by which a step size is changed until one too short and one too long are known.
const CHANGE: f64 = 4.0;
/// Ratio below which two step sizes count as equal.
const ALIKE: f64 = 1.1;
/// Maximum number of step sizes tried at one temperature.
const MOST_TRIED: usize = 16;
/// Minimum number of pilots: the conditional effective sample size of n is never below 1/n of them, so for few it is
/// meaningless.
pub const FEWEST_PILOTS: usize = 10;

/// How the temperatures of a plan are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperatures {
    /// Adaptive: the conditional effective sample size (Zhou, Johansen and Aston 2016) of each temperature step is this
    /// share of all particles. Errors: more than `most` temperatures.
    Share { share: f64, most: usize },
    /// This number of evenly spaced temperatures.
    Even(usize),
}

/// `stages` = T even temperatures 1/T … 1 with one step size.
pub fn even(stages: usize, step: f64) -> Vec<Stage> {
    (1..=stages).map(|j| Stage { t: j as f64 / stages as f64, step }).collect()
}

/// A pilot run, on samples separate from those of the run itself, so that the run's weights are independent of the
/// plan.
///
/// At each temperature the step size of adjusted moves is tuned until 55 to 65 % are accepted, and is then frozen in
/// the plan. Moves without a test keep the given step size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pilot {
    /// The pilot particles; its plan is what has been found so far.
    run: Annealing,
    temperatures: Temperatures,
    step: f64,
    /// Number of moves made by all pilots so far; each has its own random numbers.
    moves: u64,
}

impl Pilot {
    /// Errors: as for [`Annealing::new`]; a share outside (0, 1); too few pilots to measure it.
    pub fn new(
        bridge: &mut Bridge,
        pilots: Points,
        step: f64,
        temperatures: Temperatures,
        options: &Options,
    ) -> Result<Pilot> {
        let share = match temperatures {
            Temperatures::Share { share, .. } if !(share > 0.0 && share < 1.0) => {
                return Err(Error::invalid(format!("the share of the particles must be between 0 and 1, not {share}")));
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
                "{usable} of {drawn} pilots are usable, but a plan requires {fewest}: draw more pilots, or set the \
                 number of temperatures and the step"
            ))),
            false => Ok(Pilot { run, temperatures, step, moves: 0 }),
        }
    }

    /// Temperature t of the pilots.
    pub fn t(&self) -> f64 {
        self.run.plan.last().map_or(0.0, |stage| stage.t)
    }

    /// Plan found so far; complete once t is 1.
    pub fn plan(&self) -> &[Stage] {
        &self.run.plan
    }

    /// Finds the next temperature and its step size. Errors: a failing density or target, more temperatures than
    /// allowed.
    pub fn stage(&mut self, bridge: &mut Bridge) -> Result<Progress> {
        let (before, stages) = (self.t(), self.run.plan.len());
        let t = match self.temperatures {
            Temperatures::Share { most, .. } if stages >= most => {
                return Err(Error::invalid(format!(
                    "{most} stages are not enough: the pilot run only reached t = {before:.4}"
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

/// Search for the step size at one temperature.
#[derive(Default)]
pub(super) struct Search {
    tried: usize,
    /// The longest step known to be too short, and the shortest known to be too long.
    bounds: [Option<f64>; 2],
}

impl Search {
    /// Next step size to try after `step` gave this acceptance; None if `step` is to be used.
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

/// Makes a whole pilot run and returns its plan. Errors: those of [`Pilot::new`] and [`Pilot::stage`].
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

/// Finds, by bisection, the t′ at which n (Σ W w)²/Σ W w² of the incremental weights w falls to `share` n.
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
    // bisect in the logarithm, as clashes have energies of any size; every step is forward, however short
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
