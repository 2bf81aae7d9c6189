//! Reports of the training loop.

use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Result of an evaluation, for the progress line, the log and the plot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub step: usize,
    #[serde(with = "nan_as_none")]
    pub rate: f64,
    /// Training losses, averaged since the last evaluation; NaN where a loss is off.
    #[serde(with = "nan_as_none")]
    pub likelihood: f64,
    #[serde(with = "nan_as_none")]
    pub reverse_kl: f64,
    #[serde(with = "nan_as_none")]
    pub refinement: f64,
    /// Mean ln p̂ of the reaction coordinate, and mean |F/kT − ∇ log q|².
    #[serde(with = "nan_as_none", default = "nothing")]
    pub reaction_coordinate: f64,
    #[serde(with = "nan_as_none", default = "nothing")]
    pub force_matching: f64,
    /// Training loss of a regressed network (flow matching, score matching with contrastive estimation).
    #[serde(with = "nan_as_none", default = "nothing")]
    pub loss: f64,
    /// Loss on held-out frames.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub held_out_loss: f64,
    /// Score-matching and contrastive parts of the loss of an energy-based model, before they are weighted.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub score_matching: f64,
    #[serde(with = "nan_as_none", default = "nothing")]
    pub contrastive: f64,
    /// Standard deviation of log q_model − log q over held-out frames whose log q is known.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub deviation: f64,
    #[serde(with = "nan_as_none")]
    pub gradient_norm: f64,
    /// −mean log q of held-out frames under the averaged parameters; NaN without frames.
    #[serde(with = "nan_as_none")]
    pub held_out: f64,
    /// Effective sample size per sample of the averaged model, and its Pareto k̂; NaN without a target. For a map,
    /// those of the mapped held-out frames.
    #[serde(with = "nan_as_none")]
    pub ess: f64,
    #[serde(with = "nan_as_none")]
    pub pareto_k: f64,
    /// ln Z of the target from these weights, with its standard error. For a map between ensembles that of the ratio of
    /// their Z; NaN for one between modes.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub log_z: f64,
    #[serde(with = "nan_as_none", default = "nothing")]
    pub log_z_stderr: f64,
    /// Mean acceptance of an independence proposal from the averaged model, estimated from pairs of its weighted
    /// samples; for a map, that of an exchange.
    #[serde(with = "nan_as_none")]
    pub acceptance: f64,
    /// Step of an earlier evaluation that was better in everything measured, and whose model is therefore kept.
    #[serde(default)]
    pub better: Option<usize>,
}

fn nothing() -> f64 {
    f64::NAN
}

impl Progress {
    /// Nothing measured yet.
    pub fn nothing() -> Progress {
        let nan = f64::NAN;
        Progress {
            step: 0,
            rate: nan,
            likelihood: nan,
            reverse_kl: nan,
            refinement: nan,
            reaction_coordinate: nan,
            force_matching: nan,
            loss: nan,
            score_matching: nan,
            contrastive: nan,
            held_out_loss: nan,
            deviation: nan,
            gradient_norm: nan,
            held_out: nan,
            ess: nan,
            pareto_k: nan,
            log_z: nan,
            log_z_stderr: nan,
            acceptance: nan,
            better: None,
        }
    }
}

/// The kept model of a training: that of the last evaluation which was not worse than the one kept before in everything
/// that is measured.
///
/// Overfitting, and refinement on too few effective samples, worsen the held-out loss and the acceptance at the same
/// time. One of them alone may get worse on purpose: frames cooled from a high temperature are from no ensemble, and a
/// loss that spreads samples costs acceptance. Both get worse when a model finds states that the frames lack: its ln Z
/// is then larger, and it is not worse. For a regressed network the held-out loss is measured, and the deviation from
/// log q where that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    step: usize,
    measured: [f64; 4],
    /// ln Z and its standard error.
    log_z: [f64; 2],
    pub parameters: Vec<f32>,
}

/// A difference of more standard errors than this is not due to chance.
const SIGNIFICANT: f64 = 5.0;

impl Kept {
    /// Keeps the parameters of an evaluation, or records in it which earlier step was better.
    pub fn offer(kept: &mut Option<Kept>, progress: &mut Progress, parameters: &[f32]) {
        match kept.as_ref().filter(|kept| kept.is_better_than(progress)) {
            Some(kept) => progress.better = Some(kept.step),
            None => {
                let (step, log_z) = (progress.step, [progress.log_z, progress.log_z_stderr]);
                *kept = Some(Kept { step, measured: measured(progress), log_z, parameters: parameters.to_vec() });
            }
        }
    }

    fn is_better_than(&self, other: &Progress) -> bool {
        let both = self.measured.iter().zip(measured(other));
        let mut known = both.filter_map(|(own, other)| own.partial_cmp(&other)).peekable();
        known.peek().is_some() && known.all(Ordering::is_lt) && !self.lacks_states_of(other)
    }

    /// Whether the other model's ln Z is significantly larger.
    fn lacks_states_of(&self, other: &Progress) -> bool {
        other.log_z - self.log_z[0] > SIGNIFICANT * self.log_z[1].hypot(other.log_z_stderr)
    }
}

/// Deviations of a model, the smaller the better; NaN where not measured.
fn measured(progress: &Progress) -> [f64; 4] {
    let Progress { held_out, acceptance, held_out_loss, deviation, .. } = *progress;
    [held_out, -acceptance, held_out_loss, deviation]
}

/// Serialisation of NaN, which JSON does not have, as null.
pub(super) mod nan_as_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Some(*value).filter(|v| v.is_finite()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_worse_in_all_that_is_measured_is_not_kept() {
        let nan = f64::NAN;
        let mut kept = None;
        let mut offer = |step: usize, held_out: f64, acceptance: f64| {
            let mut progress = Progress { step, held_out, acceptance, ..Progress::nothing() };
            Kept::offer(&mut kept, &mut progress, &[step as f32]);
            assert_eq!(kept.as_ref().map(|kept| kept.parameters[0] as usize), Some(progress.better.unwrap_or(step)));
            progress.better
        };
        assert_eq!(offer(1, -5.0, 0.3), None);
        assert_eq!(offer(2, -4.0, 0.4), None, "one of both is better");
        assert_eq!(offer(3, -3.9, 0.39), Some(2));
        assert_eq!(offer(4, -4.0, 0.3), None, "the other is as good");
        assert_eq!(offer(5, -3.0, nan), Some(4), "by frames alone");
        assert_eq!(offer(6, nan, 0.2), Some(4), "by samples alone");
        assert_eq!(offer(7, nan, nan), None, "nothing is known");
    }

    #[test]
    fn a_model_with_states_that_the_kept_one_lacks_is_not_worse() {
        let mut kept = None;
        let mut offer = |step: usize, acceptance: f64, log_z: f64| {
            let mut progress = Progress { step, acceptance, log_z, log_z_stderr: 0.01, ..Progress::nothing() };
            Kept::offer(&mut kept, &mut progress, &[]);
            progress.better
        };
        assert_eq!(offer(1, 0.9, -27.0), None);
        assert_eq!(offer(2, 0.8, -27.03), Some(1));
        assert_eq!(offer(3, 0.8, -26.95), Some(1), "by chance");
        assert_eq!(offer(4, 0.7, -24.7), None);
        assert_eq!(offer(5, 0.6, f64::NAN), Some(4));
    }

    #[test]
    fn of_a_network_the_loss_of_held_out_frames_decides_and_the_deviation_where_it_is_known() {
        let mut kept = None;
        let mut offer = |step: usize, held_out_loss: f64, deviation: f64| {
            let mut progress = Progress { step, held_out_loss, deviation, ..Progress::nothing() };
            Kept::offer(&mut kept, &mut progress, &[]);
            progress.better
        };
        assert_eq!(offer(1, 2.0, f64::NAN), None);
        assert_eq!(offer(2, 2.1, f64::NAN), Some(1));
        assert_eq!(offer(3, 1.9, 0.5), None);
        assert_eq!(offer(4, 2.0, 0.4), None, "nearer to the known log q");
        assert_eq!(offer(5, 2.1, 0.6), Some(4));
    }
}
