//! The report at the end of a run.

use super::{Moves, Smc};
use crate::common::{number, tail_in_words, tail_index, with_error};
use modejump::annealing::{Annealing, LeftOut};
use modejump::weights::{self, FEWEST_FOR_ERRORS};
use modejump::Result;
use serde_json::{json, Value};

/// Adjusted moves with an acceptance below or above these do next to nothing: their steps are far too long or too
/// short.
const IDLE: [f64; 2] = [0.05, 0.95];

impl Smc {
    pub(super) fn report(&self, run: &Annealing) -> Result<()> {
        let ess = weights::effective_sample_size(&run.log_weights)? / run.log_weights.len() as f64;
        let resamplings = run.history.iter().filter(|stage| stage.resampled).count();
        let stages = run.history.len() as f64;
        let acceptance = run.history.iter().map(|stage| stage.acceptance).sum::<f64>() / stages;
        let (log_z, families, effective) = (run.log_normaliser(), run.families(), run.effective_families());
        let summary: Value = json!({
            "particles": run.log_weights.len(),
            "stages": run.history.len(),
            "resamplings": resamplings,
            "ess": ess,
            "pareto_k": tail_index(weights::pareto_k(&run.log_weights)?),
            "acceptance": acceptance,
            "log_z": log_z.value,
            "log_z_stderr": log_z.standard_error,
            "families": families.len(),
            "effective_families": effective,
            "left_out": run.left_out,
            "biased": self.energy_cutoff.is_some() || self.moves == Moves::Unadjusted,
        });
        if self.json {
            println!("{summary}");
            return Ok(());
        }
        println!("{} particles, {} temperatures, {resamplings} resamplings", summary["particles"], summary["stages"]);
        let LeftOut { without_density, without_energy, above_cutoff } = run.left_out;
        for (lost, why) in [
            (without_density, "have no density"),
            (without_energy, "have no finite energy"),
            (above_cutoff, "have an energy above the cut-off"),
        ] {
            if lost > 0 {
                println!("rejected          {lost} of {} samples {why}", self.n);
            }
        }
        let since = if resamplings > 0 { "since the last resampling" } else { "at the end" };
        println!("ESS               {:.1} % {since}", 100.0 * ess);
        println!("Pareto k          {}, {since}", tail_in_words(number(&summary, "pareto_k")));
        println!("acceptance        {:.1} %", 100.0 * acceptance);
        println!(
            "families          {} of {} samples have descendants, equivalent to {effective:.1} independent samples",
            families.len(),
            self.n
        );
        println!("log Z             {}", with_error(log_z.value, log_z.standard_error, 4));
        if log_z.standard_error.is_nan() {
            println!(
                "(±?: no error estimate {})",
                match effective < FEWEST_FOR_ERRORS as f64 {
                    true => format!("with fewer than {FEWEST_FOR_ERRORS} effective families; use more particles"),
                    false =>
                        "as that of the variance came out negative, which can happen unless resampling is systematic"
                            .into(),
                }
            );
        }
        if !matches!(self.moves, Moves::Unadjusted | Moves::Corrected) && !(IDLE[0]..=IDLE[1]).contains(&acceptance) {
            println!(
                "(the moves have little effect: their step is too {}; {})",
                if acceptance < 0.5 { "long" } else { "short" },
                match self.step {
                    Some(_) => "without --step, a pilot run chooses it",
                    None => "use more samples (-n), with which the pilot run chooses a better one, or --step",
                }
            );
        }
        if summary["biased"] == json!(true) {
            println!("(biased, by moves without a test or by the energy cut-off)");
        }
        Ok(())
    }
}
