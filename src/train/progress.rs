//! What the training loop reports.

use serde::{Deserialize, Serialize};

/// What an evaluation found, for the progress line, the log and the plot.
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
    /// Loss of a regressed network (flow matching, score matching with contrastive estimation), and that of held-out
    /// frames.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub loss: f64,
    #[serde(with = "nan_as_none", default = "nothing")]
    pub held_out_loss: f64,
    /// Standard deviation of log q_model − log q over held-out frames whose log q is known.
    #[serde(with = "nan_as_none", default = "nothing")]
    pub deviation: f64,
    #[serde(with = "nan_as_none")]
    pub gradient_norm: f64,
    /// −mean log q of held-out frames by the averaged parameters; NaN without frames.
    #[serde(with = "nan_as_none")]
    pub held_out: f64,
    /// Effective sample size per sample of the averaged model, and its Pareto k̂; NaN without a target. Of a map: of
    /// held-out frames, mapped.
    #[serde(with = "nan_as_none")]
    pub ess: f64,
    #[serde(with = "nan_as_none")]
    pub pareto_k: f64,
    /// Mean acceptance of an independence proposal from the averaged model, from pairs of its weighted samples; of a
    /// map, that of an exchange.
    #[serde(with = "nan_as_none")]
    pub acceptance: f64,
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
            held_out_loss: nan,
            deviation: nan,
            gradient_norm: nan,
            held_out: nan,
            ess: nan,
            pareto_k: nan,
            acceptance: nan,
        }
    }
}

/// JSON has no NaN: a number that was not measured is written as null.
mod nan_as_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        Some(*value).filter(|v| v.is_finite()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}
