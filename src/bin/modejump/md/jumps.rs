//! The options of the jumps: how proposals are used.

use super::{Likelihood, Md};
use crate::common::{load_partner, Method};
use clap::ValueEnum;
use modejump::annealing::{even, Kernel};
use modejump::io::checkpoint::Identity;
use modejump::models::tarflow::Decoding;
use modejump::models::Model;
use modejump::moves::{self, LatentWalkOptions, Path};
use modejump::{Error, Result};
use std::ops::RangeInclusive;

/// Options with their defaults, which are set here and not by clap, so that an option without effect can be
/// detected.
impl Md {
    /// nm²
    fn anneal_step(&self) -> f64 {
        self.anneal_step.unwrap_or(2e-6)
    }

    fn leapfrog(&self) -> usize {
        self.leapfrog.unwrap_or(0)
    }

    pub(super) fn relaxation_steps(&self) -> usize {
        self.relaxation_steps.unwrap_or(20)
    }

    /// ps
    pub(super) fn relaxation_timestep(&self) -> f64 {
        self.relaxation_timestep.unwrap_or(0.001)
    }
}

impl Md {
    /// Errors: options that have nothing to act on.
    pub(super) fn check_options(&self) -> Result<()> {
        for (option, is_given, of, has_one) in [
            ("--anneal-step", self.anneal_step.is_some(), "--anneal", self.anneal.is_some()),
            (
                "--leapfrog",
                self.leapfrog.is_some(),
                "--latent-walk or --anneal",
                self.latent_walk.is_some() || self.anneal.is_some(),
            ),
            ("--relaxation-steps", self.relaxation_steps.is_some(), "--driven", self.driven.is_some()),
            ("--relaxation-timestep", self.relaxation_timestep.is_some(), "--driven", self.driven.is_some()),
        ] {
            if is_given && !has_one {
                return Err(Error::invalid(format!("{option} requires {of}")));
            }
        }
        if self.acceptance == Likelihood::Surrogate && self.screen.is_none() {
            return Err(Error::invalid("--acceptance surrogate requires --screen with the surrogate"));
        }
        if self.model.is_none() && self.decoding.decoding() != Decoding::Sequential {
            return Err(Error::invalid("--decoding requires --model"));
        }
        if self.model.is_some() && self.frequency > self.steps {
            let (frequency, steps) = (self.frequency, self.steps);
            return Err(Error::invalid(format!(
                "--frequency {frequency}: no jump would be attempted in {steps} steps"
            )));
        }
        Ok(())
    }

    pub(super) fn identify_jumps(&self, run: Identity) -> Identity {
        let Md { frequency, proposals, anneal, driven, rotations, .. } = self;
        let method = if self.is_isir() { Method::Isir } else { Method::Independence };
        let [method, acceptance] = [method.to_possible_value(), self.acceptance.to_possible_value()]
            .map(|value| value.expect("none is skipped"));
        let widths = self.latent_walk.as_ref().map(|widths| join(widths));
        let particle = |range: &RangeInclusive<usize>| format!("{}-{}", range.start(), range.end());
        let solute = self.solute.as_ref().map(|ranges| join(&ranges.iter().map(particle).collect::<Vec<_>>()));
        let run = run.with("--frequency", frequency).with("--proposals", proposals).with("--method", method.get_name());
        let run = run.with("--acceptance", acceptance.get_name()).with_some("--anneal", anneal.as_ref());
        let run = run
            .with("--anneal-step", self.anneal_step())
            .with_some("--latent-walk", widths)
            .with("--leapfrog", self.leapfrog());
        let run = run.with_some("--solute", solute).with_some("--driven", driven.as_ref());
        let run = run.with("--relaxation-steps", self.relaxation_steps());
        let run = run.with("--relaxation-timestep", self.relaxation_timestep());
        let run = run.with_some("--rotations", rotations.as_ref());
        self.precision.identify(self.decoding.identify(run))
    }

    /// Whether the next state is chosen among all proposals (i-SIR), unless another option determines how they are
    /// used.
    fn is_isir(&self) -> bool {
        self.method.map_or(self.proposals > 1, |method| method == Method::Isir)
    }

    pub(super) fn method(&self, model: &dyn Model) -> Result<moves::Method> {
        if let Some(path) = &self.screen {
            let screen = load_partner(path, &self.precision, model)?;
            if self.acceptance == Likelihood::Exact {
                return Ok(moves::Method::Screened(screen));
            }
            eprintln!("modejump: acceptance by the surrogate alone is biased: jumps sample exp(-u) q/q_surrogate");
            return Ok(moves::Method::Surrogate(screen));
        }
        if let Some(steps) = self.driven {
            return Ok(moves::Method::Driven(steps));
        }
        if let Some(widths) = self.latent_walk.clone() {
            let options = LatentWalkOptions { widths, leapfrog: self.leapfrog(), ..LatentWalkOptions::default() };
            return Ok(moves::Method::LatentWalk(options));
        }
        if let Some(stages) = self.anneal {
            let stages = even(stages, self.anneal_step());
            let kernel = match self.leapfrog() {
                0 => Kernel::Adjusted,
                leapfrog => Kernel::Hamiltonian { leapfrog },
            };
            return Ok(moves::Method::Annealed(Path { kernel, stages, moves: 1 }));
        }
        if model.modes().is_some() && self.proposals > 1 && self.method.is_none() {
            return Err(Error::invalid(format!(
                "--proposals {}: a jump between the modes of a model has only one proposal; remove this option, or choose among proposals of all \
                 modes with --method isir",
                self.proposals
            )));
        }
        let rotations = self.rotations;
        Ok(match self.is_isir() {
            true => moves::Method::Isir { rotations },
            false => moves::Method::Independence { rotations },
        })
    }
}

fn join(list: &[impl ToString]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
