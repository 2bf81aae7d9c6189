//! Progress of a command.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Time between two lines if standard error is not a terminal, as in the log of a batch job.
const BETWEEN_LINES: Duration = Duration::from_secs(60);

/// A progress bar with a message; if it cannot be shown, a line now and then.
pub struct Progress {
    bar: ProgressBar,
    what: &'static str,
    told: Instant,
    is_silent: bool,
}

impl Progress {
    /// Progress over n units of `what`.
    #[cfg(feature = "openmm")]
    pub fn new(n: u64, what: &'static str) -> Progress {
        Progress::of(ProgressBar::new(n), what)
    }

    /// One of several bars.
    pub fn among(bars: &MultiProgress, n: u64, what: &'static str) -> Progress {
        Progress::of(bars.add(ProgressBar::new(n)), what)
    }

    /// No output, for progress that another process reports.
    #[cfg(feature = "openmm")]
    pub fn silent() -> Progress {
        Progress { is_silent: true, ..Progress::of(ProgressBar::hidden(), "") }
    }

    fn of(bar: ProgressBar, what: &'static str) -> Progress {
        let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}  {{msg}}  {{eta}} left"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Progress { bar, what, told: Instant::now(), is_silent: false }
    }

    pub fn show(&mut self, done: u64, message: String) {
        if self.bar.is_hidden() && !self.is_silent && self.told.elapsed() > BETWEEN_LINES {
            let n = self.bar.length().unwrap_or(done);
            eprintln!("{}", format!("{done} of {n} {}  {message}", self.what).trim_end());
            self.told = Instant::now();
        }
        self.bar.set_position(done);
        self.bar.set_message(message);
    }

    /// Prints a line beside the bar.
    #[cfg(feature = "openmm")]
    pub fn tell(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }

    pub fn end(self) {
        self.bar.finish_and_clear();
    }
}
