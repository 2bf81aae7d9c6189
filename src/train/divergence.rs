//! Detection of a diverged training.

use crate::error::{Error, Result};

/// Steps in a row that the optimiser may skip: a single batch may overflow, but not all of them.
const MOST_SKIPPED: usize = 100;

/// Counts consecutive steps whose gradient was not finite.
#[derive(Default)]
pub struct Divergence {
    skipped: usize,
}

impl Divergence {
    /// Records a step by its gradient norm. Errors: too many steps skipped in a row.
    pub fn step(&mut self, step: usize, norm: f64) -> Result<()> {
        self.skipped = if norm.is_finite() { 0 } else { self.skipped + 1 };
        match self.skipped < MOST_SKIPPED {
            true => Ok(()),
            false => Err(diverged(step, &format!("the last {MOST_SKIPPED} gradients are not finite"))),
        }
    }
}

/// Checks the losses (by name, if any step was taken since the last report) and the averaged parameters.
///
/// Errors: one of them is not finite.
pub fn check<'a>(step: usize, losses: impl IntoIterator<Item = (&'a str, f64)>, average: &[f32]) -> Result<()> {
    if let Some((name, value)) = losses.into_iter().find(|(_, value)| !value.is_finite()) {
        return Err(diverged(step, &format!("{name} is {value}")));
    }
    match average.iter().all(|p| p.is_finite()) {
        true => Ok(()),
        false => Err(diverged(step, "the averaged parameters are not finite")),
    }
}

/// Checks the log-weights of samples. Errors: none is finite.
pub fn check_weights(step: usize, log_w: &[f64]) -> Result<()> {
    match log_w.iter().any(|w| w.is_finite()) {
        true => Ok(()),
        false => Err(diverged(step, "no sample of the model is in the support of the target")),
    }
}

fn diverged(step: usize, what: &str) -> Error {
    Error::invalid(format!(
        "training diverged at step {step}: {what}. The model, if one was written, is that of the last report; reduce `rate` or `clip`, \
         and check the frames"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_steps_may_be_skipped_but_not_a_hundred_in_a_row() {
        let mut divergence = Divergence::default();
        for step in 1..=99 {
            divergence.step(step, f64::NAN).unwrap();
        }
        divergence.step(100, 1.0).unwrap();
        for step in 101..=199 {
            divergence.step(step, f64::INFINITY).unwrap();
        }
        let message = divergence.step(200, f64::NAN).unwrap_err().to_string();
        assert!(message.contains("diverged at step 200") && message.contains("`rate`"), "{message}");
    }

    #[test]
    fn what_a_report_measures_must_be_finite() {
        check(5, [("the loss", 1.0)], &[0.5, -2.0]).unwrap();
        let message = check(5, [("the loss", f64::NAN)], &[]).unwrap_err().to_string();
        assert!(message.contains("the loss is NaN"), "{message}");
        assert!(check(5, [], &[0.0, f32::INFINITY]).unwrap_err().to_string().contains("averaged parameters"));
        check_weights(5, &[f64::NEG_INFINITY, -1e5]).unwrap();
        let message = check_weights(5, &[f64::NEG_INFINITY; 4]).unwrap_err().to_string();
        assert!(message.contains("diverged at step 5: no sample of the model"), "{message}");
    }
}
