//! The report at the end of a run.

use super::run::Engine;
use super::{Likelihood, Md};
use crate::common::{mark, tail_in_words, tail_index};
use crate::dynamics::{add_means, show_means, Record};
use modejump::engines::openmm::JumpingSimulation;
use modejump::moves::Fate;
use modejump::Result;
use serde_json::{json, Value};

/// Expected acceptance below which a remedy is named, and number of attempts before that, as in OpenMM's plugin.
const LOW_ACCEPTANCE: f64 = 0.01;
const ADVISED_AFTER: u64 = 100;
/// Share of the relaxations below which they should be shorter, as in OpenMM's plugin.
const LOW_RELAXATION: f64 = 0.5;

impl Md {
    pub(super) fn report(&self, engine: &Engine, record: &Record, wall: f64) -> Result<()> {
        record.warn_of_heat(self.temperature);
        let means = record.means();
        let mut summary = json!({
            "steps": record.steps,
            "wall_s": wall,
            "ns_per_day": record.steps as f64 * self.dynamics.timestep * 86.4 / wall,
        });
        match &means {
            Some(means) => add_means(&mut summary, means),
            None => {
                let n = record.n();
                eprintln!(
                    "modejump: too few frames for a mean energy and temperature ({n}); record more with --record"
                );
            }
        }
        if let Engine::Jumping(jumping) = engine {
            self.summarise(jumping, &mut summary);
        }
        if self.json {
            println!("{summary}");
            return Ok(());
        }
        println!("{} steps in {wall:.1} s, {:.0} ns/day", record.steps, summary["ns_per_day"].as_f64().unwrap_or(0.0));
        if let Some(means) = &means {
            println!("{}{}", show_means(means), mark(summary["likelihood"].as_str().unwrap_or_default()));
        }
        if let Engine::Jumping(jumping) = engine {
            self.print(jumping);
        }
        Ok(())
    }

    /// Exactness of the log q in the weights: with a screen, that of the screen, whichever model decides.
    fn weights(&self) -> &'static str {
        match self.screen {
            Some(_) => "surrogate",
            None => "exact",
        }
    }

    fn is_delayed(&self) -> bool {
        self.screen.is_some() && self.acceptance == Likelihood::Exact
    }

    fn summarise(&self, jumping: &JumpingSimulation, summary: &mut Value) {
        let s = jumping.jump().statistics();
        summary["likelihood"] = json!(s.likelihood());
        summary["attempts"] = json!(s.attempts());
        summary["acceptance"] = json!(s.acceptance());
        for fate in Fate::ALL {
            summary[fate.name()] = json!(s.count(fate));
        }
        if s.proposals() > 0 {
            summary["ess"] = json!(s.effective_fraction());
            summary["pareto_k"] = tail_index(s.pareto_k());
            summary["ess_likelihood"] = json!(self.weights());
        }
        if self.solute.is_some() {
            let expected = s.expected_acceptance();
            summary["expected_acceptance"] = json!(expected.value);
            summary["expected_acceptance_stderr"] = json!(expected.standard_error);
            summary["relaxations"] = json!(jumping.relaxations()[0]);
            summary["relaxations_accepted"] = json!(jumping.relaxations()[1]);
        }
        if self.is_delayed() {
            summary["screened"] = json!(s.screened());
            summary["exact_evaluations"] = json!(s.exact_evaluations());
            summary["second_stage_acceptance"] = json!(s.second_stage_acceptance());
            summary["correction_variance"] = json!(s.correction_variance());
        }
    }

    /// What helps where the particles beside the solute reject its jumps.
    fn remedy(&self) -> &str {
        match self.driven {
            None => "proposals overlap with the other particles, which --driven lets relax; or use an implicit solvent",
            Some(_) => "the other particles cannot relax fast enough: use more --driven steps, or an implicit solvent",
        }
    }

    fn print(&self, jumping: &JumpingSimulation) {
        let s = jumping.jump().statistics();
        let (accepted, ess) = (100.0 * s.acceptance(), 100.0 * s.effective_fraction());
        println!("{} attempts, {accepted:.1} % accepted{}", s.attempts(), mark(s.likelihood().name()));
        let untested = Fate::ALL.iter().filter(|&&fate| fate != Fate::Accepted && fate != Fate::Rejected);
        let untested = untested.filter(|&&fate| s.count(fate) > 0);
        let untested: Vec<String> = untested.map(|&fate| format!("{} {}", s.count(fate), fate.name())).collect();
        if !untested.is_empty() {
            println!("not tested: {}", untested.join(", "));
        }
        if s.proposals() > 0 {
            // the weights of a screen do not make an exact run a biased one
            let whose = match self.is_delayed() {
                true => "  (of the screen's weights)".into(),
                false => mark(self.weights()),
            };
            println!("ESS {ess:.1} %, Pareto k {}{whose}", tail_in_words(s.pareto_k()));
        }
        let [relaxations, relaxed] = jumping.relaxations();
        let share = relaxed as f64 / relaxations as f64;
        let in_vain = relaxations >= ADVISED_AFTER && share < LOW_RELAXATION;
        if self.solute.is_some() {
            let expected = s.expected_acceptance();
            println!("expected acceptance: {:.2e} ± {:.1e}", expected.value, expected.standard_error);
            let low = expected.value + 2.0 * expected.standard_error < LOW_ACCEPTANCE;
            if s.attempts() >= ADVISED_AFTER && low && !in_vain {
                println!("(jumps hardly help here: {} (docs/solvent.md))", self.remedy());
            }
        }
        if relaxations > 0 {
            println!("{relaxations} relaxations of the solvent, {:.0} % accepted", 100.0 * share);
            if in_vain {
                let timestep = self.relaxation_timestep();
                println!("(the others were in vain: use a smaller --relaxation-timestep, now {timestep} ps, or fewer --relaxation-steps)");
            }
        }
        if self.is_delayed() {
            let number = |value: f64, digits: usize| match value.is_finite() {
                true => format!("{value:.digits$}"),
                false => "–".into(), // nothing passed
            };
            println!(
                "{} passed the screen, {} exact log-densities, second-stage acceptance {} %, Var(ln c) {}",
                s.screened(),
                s.exact_evaluations(),
                number(100.0 * s.second_stage_acceptance(), 1),
                number(s.correction_variance(), 3)
            );
        }
    }
}
