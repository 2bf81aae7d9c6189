//! The training loop of all models, with progress, log, checkpoints and figure.

use super::Train;
use crate::common::{interrupted, CHECKPOINT_INTERVAL};
use indicatif::{ProgressBar, ProgressStyle};
use modejump::io::checkpoint::{self, Identity};
use modejump::io::write_atomically;
use modejump::train::{Progress, Trainer};
use modejump::{Error, Result};
use serde_json::{json, Value};
use std::path::Path;
use std::time::Instant;

/// A training that the loop can drive.
pub(super) trait Training {
    fn step(&mut self) -> Result<Option<Progress>>;
    fn step_count(&self) -> usize;
    fn total_steps(&self) -> usize;
    fn is_finished(&self) -> bool;
    fn history(&mut self) -> &[Progress];
    fn save_state(&mut self, path: &Path, identity: &Identity) -> Result<()>;
    /// Writes the model with averaged parameters: the best so far, if the training can tell it.
    fn save_model(&self, path: &Path) -> Result<()>;
}

impl Training for Trainer<'_> {
    fn step(&mut self) -> Result<Option<Progress>> {
        Trainer::step(self)
    }

    fn step_count(&self) -> usize {
        Trainer::step_count(self)
    }

    fn total_steps(&self) -> usize {
        Trainer::total_steps(self)
    }

    fn is_finished(&self) -> bool {
        Trainer::is_finished(self)
    }

    fn history(&mut self) -> &[Progress] {
        &self.state().history
    }

    fn save_state(&mut self, path: &Path, identity: &Identity) -> Result<()> {
        checkpoint::save_run(path, checkpoint::TRAINING, identity, self.state())
    }

    fn save_model(&self, path: &Path) -> Result<()> {
        self.best()?.save(path)
    }
}

impl Train {
    /// Runs the training and returns its summary.
    pub(super) fn train(&self, mut trainer: impl Training, identity: &Identity) -> Result<Value> {
        let mut saved = Instant::now();
        let bar = ProgressBar::new(trainer.total_steps() as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed_precise} left {eta_precise} {msg}")
        {
            bar.set_style(style);
        }
        // a file that cannot be written now is tried again at the next evaluation and at the end, where an error fails
        // the training
        let try_again = |written: Result<()>| {
            if let Err(error) = written {
                bar.suspend(|| eprintln!("modejump: {error}; the training continues and will try again"));
            }
        };
        let mut log: String = trainer.history().iter().map(log_line).collect();
        while !trainer.is_finished() {
            if let Some(progress) = trainer.step()? {
                bar.set_message(line(&progress));
                let report = format!("{:>7} {}", progress.step, line(&progress));
                if bar.is_hidden() {
                    eprintln!("{report}");
                } else {
                    bar.println(report);
                }
                log += &log_line(&progress);
                if let Some(path) = &self.log {
                    try_again(write_atomically(path, log.as_bytes()));
                }
                try_again(trainer.save_model(&self.output));
            }
            bar.set_position(trainer.step_count() as u64);
            let stop = interrupted();
            if stop || saved.elapsed() > CHECKPOINT_INTERVAL {
                let written = self.save_state(&mut trainer, identity);
                if stop {
                    written?;
                } else {
                    try_again(written);
                }
                saved = Instant::now();
            }
            if stop && !trainer.is_finished() {
                bar.abandon();
                return Err(Error::invalid(format!(
                    "interrupted at step {}; run the same command again to resume",
                    trainer.step_count()
                )));
            }
        }
        bar.finish();
        let (done, all) = (trainer.step_count(), trainer.total_steps());
        if done < all {
            eprintln!(
                "stopped after {done} of {all} steps: the held-out likelihood has not improved for `patience` evaluations"
            );
        }
        if let Some(step) = trainer.history().last().and_then(|progress| progress.better) {
            eprintln!("the model is that of step {step}");
        }
        self.save_state(&mut trainer, identity)?;
        trainer.save_model(&self.output)?;
        if let Some(path) = &self.log {
            write_atomically(path, log.as_bytes())?;
        }
        let figure = self.figure();
        let is_drawn = crate::plot::training_figure(&figure, trainer.history())?;
        Ok(json!({
            "output": self.output.display().to_string(),
            "figure": is_drawn.then(|| figure.display().to_string()),
            "model": self.model.name(),
            "steps": trainer.step_count(),
            "last": trainer.history().last(),
        }))
    }
}

fn log_line(progress: &Progress) -> String {
    serde_json::to_string(progress).unwrap_or_default() + "\n"
}

/// The most important numbers, for the progress line.
fn line(p: &Progress) -> String {
    let item = |name: &str, value: f64, digits: usize| match value.is_nan() {
        true => String::new(),
        false => format!("{name} {value:.digits$}  "),
    };
    [
        item("loss", p.loss, 4),
        item("score", p.score_matching, 4),
        item("nce", p.contrastive, 4),
        item("held-out", p.held_out_loss, 4),
        item("sd(ln q)", p.deviation, 3),
        item("-ln q", p.likelihood, 3),
        item("held-out", p.held_out, 3),
        item("kl", p.reverse_kl, 3),
        item("rc", p.reaction_coordinate, 3),
        item("refine", p.refinement, 3),
        item("|F-dlnq|^2", p.force_matching, 0),
        item("|g|", p.gradient_norm, 2),
        item("ESS %", 100.0 * p.ess, 2),
        item("k", p.pareto_k, 2),
        item("ln Z", p.log_z, 2),
        item("accept %", 100.0 * p.acceptance, 1),
        p.better.map_or(String::new(), |step| format!("worse than step {step}, which is kept")),
    ]
    .concat()
}
