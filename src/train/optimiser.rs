//! AdamW (Loshchilov and Hutter, ICLR 2019), learning-rate schedules, gradient clipping and an exponential moving
//! average of the parameters.

use crate::error::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Learning-rate schedule over a phase, as a factor of the peak rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    Constant,
    /// Linear warm-up over the first 2 %, then cosine decay to zero.
    Cosine,
    /// Linear rise over the first 30 %, then cosine decay to zero (Smith and Topin 2017).
    OneCycle,
    /// Like [`Schedule::OneCycle`] with other fractions: of the steps in which the rate rises, and of the peak rate at
    /// the start and the end.
    Cycle {
        rise: f64,
        lowest: f64,
    },
}

impl Schedule {
    /// Factor of the peak rate at `progress` in [0, 1].
    pub fn factor(self, progress: f64) -> f64 {
        let ramp = |rise: f64| {
            if progress < rise {
                return (progress / rise).max(1e-3);
            }
            0.5 * (1.0 + (std::f64::consts::PI * (progress - rise) / (1.0 - rise)).cos())
        };
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => ramp(0.02),
            Schedule::OneCycle => ramp(0.3),
            Schedule::Cycle { rise, lowest } => lowest + (1.0 - lowest) * ramp(rise),
        }
    }

    /// Checks the fractions of the schedule. Errors: fractions outside their range.
    pub fn check(self) -> Result<()> {
        match self {
            Schedule::Cycle { rise, lowest } if !((0.0..1.0).contains(&rise) && (0.0..=1.0).contains(&lowest)) => {
                Err(Error::invalid(format!(
                    "`schedule` has `rise` = {rise} and `lowest` = {lowest}: must be between 0 and 1, and `rise` less than 1"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Optimiser state: first and second moments and the moving average, all in the layout of the parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    step: u64,
    first: Vec<f32>,
    second: Vec<f32>,
    /// Exponential moving average of the parameters.
    pub average: Vec<f32>,
    weight_decay: f32,
    decay: f32,
    /// Decay rate β₂ of the second moments.
    beta2: f32,
}

const BETA1: f32 = 0.9;
/// Default decay rate of the second moments.
pub const BETA2: f64 = 0.999;
const EPSILON: f32 = 1e-8;
const BLOCK: usize = 32_768;

/// Checks settings (name, value). Errors: a rate or clipping norm that is not positive, a negative weight decay, or an
/// averaging decay outside [0, 1).
pub fn check_settings(rates: impl IntoIterator<Item = f64>, clip: f64, weight_decay: f64, average: f64) -> Result<()> {
    let refuse = |name: &str, value: f64, what: &str| Err(Error::invalid(format!("`{name}` = {value}: {what}")));
    if let Some(rate) = rates.into_iter().find(|rate| !(*rate > 0.0 && rate.is_finite())) {
        return refuse("rate", rate, "must be a positive number");
    }
    match (clip, weight_decay, average) {
        (clip, ..) if clip.is_nan() || clip <= 0.0 => refuse("clip", clip, "must be a positive number"),
        (_, decay, _) if !(decay >= 0.0 && decay.is_finite()) => refuse("weight_decay", decay, "must be 0 or positive"),
        (.., average) if !(0.0..1.0).contains(&average) => {
            refuse("average", average, "must be at least 0 and less than 1")
        }
        _ => Ok(()),
    }
}

impl AdamW {
    /// `decay` is that of the moving average; it warms up as (1 + t)/(10 + t).
    pub fn new(parameters: &[f32], weight_decay: f64, decay: f64) -> AdamW {
        AdamW {
            step: 0,
            first: vec![0.0; parameters.len()],
            second: vec![0.0; parameters.len()],
            average: parameters.to_vec(),
            weight_decay: weight_decay as f32,
            decay: decay as f32,
            beta2: BETA2 as f32,
        }
    }

    /// The same optimiser with another decay rate of the second moments.
    pub fn with_beta2(self, beta2: f64) -> AdamW {
        AdamW { beta2: beta2 as f32, ..self }
    }

    /// Makes one descent step, with the gradient clipped to norm `clip`. Returns the norm before clipping; a step with
    /// a non-finite gradient is skipped.
    pub fn update(&mut self, parameters: &mut [f32], gradient: &[f32], rate: f64, clip: f64) -> f64 {
        let norm = gradient.par_chunks(BLOCK).map(sum_of_squares).collect::<Vec<_>>().iter().sum::<f64>().sqrt();
        if !norm.is_finite() {
            return norm;
        }
        self.step += 1;
        let scale = if norm > clip { (clip / norm) as f32 } else { 1.0 };
        let t = self.step as i32;
        let beta2 = self.beta2;
        let (c1, c2) = (1.0 - BETA1.powi(t), 1.0 - beta2.powi(t));
        let rate = rate as f32;
        let shrink = 1.0 - rate * self.weight_decay;
        let t = self.step as f32;
        let keep = self.decay.min((1.0 + t) / (10.0 + t));
        let blocks = parameters.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK));
        let moments = self.first.par_chunks_mut(BLOCK).zip(self.second.par_chunks_mut(BLOCK));
        blocks.zip(moments).zip(self.average.par_chunks_mut(BLOCK)).for_each(|(((p, g), (m, v)), average)| {
            for i in 0..p.len() {
                let g = scale * g[i];
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                v[i] = beta2 * v[i] + (1.0 - beta2) * g * g;
                // parameters that no gradient has ever reached are frozen
                let shrink = if v[i] > 0.0 { shrink } else { 1.0 };
                p[i] = shrink * p[i] - rate * (m[i] / c1) / ((v[i] / c2).sqrt() + EPSILON);
                average[i] = keep * average[i] + (1.0 - keep) * p[i];
            }
        });
        norm
    }
}

/// Sum of squares in eight partial sums, which vectorise; independent of the threads.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (groups, rest) = values.as_chunks::<8>();
    for group in groups {
        sums.iter_mut().zip(group).for_each(|(s, &g)| *s += f64::from(g) * f64::from(g));
    }
    rest.iter().for_each(|&g| sums[0] += f64::from(g) * f64::from(g));
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published recipe of TarFlows: warm-up over a twentieth of the steps from 1/500 of the peak, and decay back
    /// to that.
    #[test]
    fn a_cycle_begins_and_ends_where_it_is_told_to() {
        let cycle = Schedule::Cycle { rise: 0.05, lowest: 0.002 };
        assert!((cycle.factor(0.0) - 0.002).abs() < 2e-3 && (cycle.factor(1.0) - 0.002).abs() < 1e-12);
        assert!((cycle.factor(0.05) - 1.0).abs() < 1e-12 && cycle.check().is_ok());
        assert_eq!(Schedule::Cycle { rise: 0.3, lowest: 0.0 }.factor(0.7), Schedule::OneCycle.factor(0.7));
        assert!(Schedule::Cycle { rise: 1.0, lowest: 0.0 }.check().is_err());
        let text = r#"{"cycle": {"rise": 0.05, "lowest": 0.002}}"#;
        assert_eq!(serde_json::from_str::<Schedule>(text).unwrap(), cycle);
        assert_eq!(serde_json::from_str::<Schedule>("\"one_cycle\"").unwrap(), Schedule::OneCycle);
    }

    #[test]
    fn finds_the_minimum_of_a_quadratic_and_skips_nan() {
        let mut p = vec![3.0f32, -2.0];
        let mut adam = AdamW::new(&p, 0.0, 0.9);
        for step in 0..2000 {
            let gradient = [2.0 * (p[0] - 1.0), 20.0 * (p[1] - 0.5)];
            adam.update(&mut p, &gradient, 0.05 * Schedule::Cosine.factor(f64::from(step) / 2000.0), 10.0);
        }
        assert!((p[0] - 1.0).abs() < 1e-3 && (p[1] - 0.5).abs() < 1e-3, "{p:?}");
        let before = p.clone();
        assert!(adam.update(&mut p, &[f32::NAN, 0.0], 0.1, 1.0).is_nan());
        assert_eq!(p, before);
    }

    #[test]
    fn settings_that_are_no_numbers_to_step_by_are_named() {
        let message =
            |rate, clip, decay, average| check_settings([rate], clip, decay, average).unwrap_err().to_string();
        assert!(message(-0.01, 1.0, 0.0, 0.9).contains("`rate` = -0.01"));
        assert!(message(1e-3, -1.0, 0.0, 0.9).contains("`clip`"));
        assert!(message(1e-3, 1.0, f64::NAN, 0.9).contains("`weight_decay`"));
        assert!(message(1e-3, 1.0, 0.0, 1.0).contains("`average`"));
        check_settings([1e-3], f64::INFINITY, 0.0, 0.0).unwrap();
    }

    #[test]
    fn what_no_gradient_reaches_does_not_decay() {
        let mut p = vec![3.0f32, 3.0];
        let mut adam = AdamW::new(&p, 0.1, 0.9);
        for _ in 0..10 {
            adam.update(&mut p, &[1e-3, 0.0], 0.01, 10.0);
        }
        assert!(p[0] < 3.0 && p[1] == 3.0, "{p:?}");
    }
}
