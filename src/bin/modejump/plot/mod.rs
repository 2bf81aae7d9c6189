//! `modejump plot`: SVG figures of runs, of a reweighted generator, of comparisons, and of logs.

mod figures;

use super::common::parse_json;
use clap::Args;
use modejump::annealing::Progress as Stage;
use modejump::io::{check_apart, make_folder, read_text};
use modejump::train::rounds::Record;
use modejump::train::Progress;
use modejump::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Plot {
    /// JSON files with series, as written by `modejump reweight`, `modejump compare` and the demo
    #[arg(required_unless_present = "log")]
    data: Vec<PathBuf>,
    /// Log of a training (`modejump train --log`), of annealing (`modejump smc --log`), or of rounds (`log.jsonl` of
    /// `modejump adapt` and `explore`)
    #[arg(long)]
    log: Option<PathBuf>,
    /// Folder for the figures
    #[arg(short, long, default_value = ".")]
    output: PathBuf,
}

/// One set of observations: a run (time series) or weighted independent samples.
#[derive(Deserialize, Serialize)]
pub struct Series {
    pub name: String,
    /// Number of all samples, including those without weight or energy, which are omitted below; 0 if none are.
    #[serde(default)]
    pub n: usize,
    /// Names of the torsions that follow; if absent, φ and ψ of the backbone.
    #[serde(default)]
    pub axes: Vec<String>,
    /// Torsions, radian.
    #[serde(default)]
    pub phi: Vec<f64>,
    #[serde(default)]
    pub psi: Vec<f64>,
    /// First and second time-lagged component.
    #[serde(default)]
    pub tic1: Vec<f64>,
    #[serde(default)]
    pub tic2: Vec<f64>,
    /// Reduced potentials u = U/kT.
    #[serde(default)]
    pub reduced_potential: Vec<f64>,
    /// Whether the frames alternate between several walkers: errors of such a series are not known.
    #[serde(default)]
    pub by_turns: bool,
    /// Log-weights, for weighted samples only: one for each of those above.
    #[serde(default)]
    pub log_weight: Vec<f64>,
    /// Sample that each particle descends from, if resampling has duplicated some.
    #[serde(default)]
    pub ancestor: Vec<usize>,
    /// Log-weights of all samples that have weight, before a rule changed them; absent if equal to `log_weight`.
    #[serde(default)]
    pub raw_log_weight: Vec<f64>,
    /// Name of the rule that turned them into `log_weight`.
    #[serde(default)]
    pub weights: String,
}

/// Largest number of samples: those without weight are only counted, and figures represent them by log-weights of −∞.
/// No file has more than this.
const MOST_SAMPLES: usize = 20_000_000;

impl Series {
    /// Errors: arrays of different lengths, which would be mismatched; more samples than is possible.
    fn check(&self) -> Result<()> {
        let of_samples = [
            ("phi", self.phi.len()),
            ("psi", self.psi.len()),
            ("tic1", self.tic1.len()),
            ("tic2", self.tic2.len()),
            ("reduced_potential", self.reduced_potential.len()),
            ("log_weight", self.log_weight.len()),
            ("ancestor", self.ancestor.len()),
        ];
        let mut given = of_samples.into_iter().filter(|(_, n)| *n > 0);
        if let Some((first, n)) = given.next() {
            if let Some((other, others)) = given.find(|(_, others)| *others != n) {
                return Err(Error::invalid(format!(
                    "series `{}` has {n} values in `{first}` but {others} in `{other}`: every sample must have one of each",
                    self.name,
                )));
            }
        }
        match self.n > MOST_SAMPLES {
            true => Err(Error::invalid(format!(
                "series `{}` has `n` = {}: figures can show at most {MOST_SAMPLES} samples",
                self.name, self.n
            ))),
            false => Ok(()),
        }
    }

    /// Names of the axes of `phi` and `psi`.
    fn torsions(&self) -> [&str; 2] {
        let named = |i: usize, usual| self.axes.get(i).map_or(usual, String::as_str);
        [named(0, "φ"), named(1, "ψ")]
    }

    /// Log-weights of all samples before any rule, −∞ for those without weight.
    fn raw(&self) -> Vec<f64> {
        let given = if self.raw_log_weight.is_empty() { &self.log_weight } else { &self.raw_log_weight };
        let mut raw = given.clone();
        raw.resize(given.len().max(self.n), f64::NEG_INFINITY);
        raw
    }

    /// Rule that changed the weights, if any.
    fn rule(&self) -> Option<&str> {
        Some(self.weights.as_str()).filter(|rule| !matches!(*rule, "" | "raw"))
    }
}

#[derive(Deserialize)]
struct Document {
    series: Vec<Series>,
}

type Figure<'a> = DrawingArea<SVGBackend<'a>, Shift>;

impl Plot {
    pub fn run(self) -> Result<()> {
        make_folder(&self.output)?;
        for name in FIGURES.iter().chain(&[TRAINING, ROUNDS, ANNEALING]) {
            check_apart(&self.output.join(name), self.data.iter().chain(&self.log))?;
        }
        let mut given = Vec::new();
        for path in &self.data {
            let text = String::from_utf8(modejump::io::read(path)?).map_err(|_| Error::file(path, NOT_TEXT))?;
            let document: Document = parse_json(path, &text).map_err(|e| match Log::of(&text) {
                Some(Log::Training) => Error::file(path, "a training log: pass it to --log"),
                Some(Log::Rounds) => Error::file(path, "a log of rounds: pass it to --log"),
                Some(Log::Annealing) => Error::file(path, "an annealing log: pass it to --log"),
                None => e,
            })?;
            document.series.iter().try_for_each(Series::check).map_err(|e| Error::file(path, e.to_string()))?;
            given.push((path, document.series));
        }
        require_one_torsion(&given)?;
        let series = apart(given);
        let written = draw(&self.output, &series, &FIGURES)?;
        if let ([path, ..], true) = (&self.data[..], written.is_empty()) {
            let reason =
                "there is nothing to draw: no series has `phi`, `tic1` and `tic2`, `reduced_potential` or `log_weight`";
            return Err(Error::file(path, reason));
        }
        written.iter().for_each(|path| println!("{}", path.display()));
        if let Some(log) = &self.log {
            match draw_log(&self.output, log)? {
                Some(path) => println!("{}", path.display()),
                None => return Err(Error::file(log, "there is nothing to draw yet")),
            }
        }
        Ok(())
    }
}

/// Series of all files; if several have the same name, such as two runs of `reweight` with one model, the name of the
/// file is added.
fn apart(mut given: Vec<(&PathBuf, Vec<Series>)>) -> Vec<Series> {
    let names: Vec<String> = given.iter().flat_map(|(_, series)| series.iter().map(|s| s.name.clone())).collect();
    for (path, series) in &mut given {
        for s in series.iter_mut().filter(|s| names.iter().filter(|name| **name == s.name).count() > 1) {
            s.name = format!("{} ({})", s.name, path.file_stem().unwrap_or_default().display());
        }
    }
    given.into_iter().flat_map(|(_, series)| series).collect()
}

/// Errors: the files have different torsions, but free energies are drawn along one.
fn require_one_torsion(given: &[(&PathBuf, Vec<Series>)]) -> Result<()> {
    let all = given.iter().flat_map(|(path, series)| series.iter().map(move |s| (path, s)));
    let mut along = all.filter(|(_, s)| !s.phi.is_empty()).map(|(path, s)| (path, s.torsions()[0]));
    let Some((first, name)) = along.next() else { return Ok(()) };
    match along.find(|(_, other)| *other != name) {
        Some((path, other)) => Err(Error::file(
            path,
            format!(
                "is along {other}, but {} is along {name}: use files of the same torsion, or draw each into its own folder",
                first.display()
            ),
        )),
        None => Ok(()),
    }
}

/// Said of a file of a kind that no figure is drawn from, such as a trajectory.
const NOT_TEXT: &str = "not a text file: figures are drawn from JSON files with series, as written by `modejump reweight`, \
                        `modejump compare` and the demo, or from a log with --log; use `modejump compare` to draw figures of \
                        trajectories";

/// Name of the figure of a training log.
const TRAINING: &str = "training.svg";
/// Name of the figure of a log of rounds.
pub const ROUNDS: &str = "rounds.svg";
/// Name of the figure of an annealing log.
const ANNEALING: &str = "annealing.svg";
/// Names of all figures that [`draw`] can draw from series.
const FIGURES: [&str; 5] = ["ramachandran.svg", "tica.svg", "free_energy.svg", "energy.svg", "log_weights.svg"];

/// Draws into a folder those of the named figures for which the series have the data; returns the files written.
pub fn draw(folder: &Path, series: &[Series], names: &[&str]) -> Result<Vec<PathBuf>> {
    let with = |f: fn(&Series) -> bool| series.iter().filter(|s| f(s)).collect::<Vec<_>>();
    let maps = with(|s| !s.phi.is_empty() && !s.psi.is_empty());
    let planes = with(|s| !s.tic1.is_empty() && !s.tic2.is_empty());
    let panels = |series: &[&Series]| (470 * series.len().max(1) as u32, 440);
    type Planned<'a> = (&'static str, (u32, u32), Vec<&'a Series>, Draw);
    let planned: [Planned; FIGURES.len()] = [
        (FIGURES[0], panels(&maps), maps, figures::ramachandran),
        (FIGURES[1], panels(&planes), planes, figures::components),
        (FIGURES[2], (760, 440), with(|s| !s.phi.is_empty()), figures::free_energy),
        (FIGURES[3], (760, 440), with(|s| !s.reduced_potential.is_empty()), figures::energy),
        (FIGURES[4], (760, 440), with(|s| !s.log_weight.is_empty()), figures::log_weights),
    ];
    let wanted = |planned: &Planned| names.contains(&planned.0) && !planned.2.is_empty();
    let mut written = Vec::new();
    for (name, size, series, draw) in planned.into_iter().filter(wanted) {
        let path = folder.join(name);
        figure(&path, size, |area| draw(area, &series))?;
        written.push(path);
    }
    Ok(written)
}

/// Writes one SVG figure of this size (width, height).
fn figure(path: &Path, size: (u32, u32), draw: impl FnOnce(&Figure) -> Outcome) -> Result<()> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let failed = |e: Box<dyn std::error::Error>| Error::file(path, e.to_string());
        area.fill(&WHITE).map_err(|e| failed(e.into()))?;
        draw(&area).map_err(failed)?;
        area.present().map_err(|e| failed(e.into()))?;
    }
    modejump::io::write_atomically(path, svg.as_bytes())
}

/// Training curves: losses, effective sample size, acceptance. Returns whether there was something to draw.
pub fn training_figure(path: &Path, history: &[Progress]) -> Result<bool> {
    curves(path, "Training", &figures::training(history))
}

/// Results of the stages of `adapt` or `explore`. Returns whether there was something to draw.
pub fn rounds_figure(path: &Path, history: &[Record]) -> Result<bool> {
    curves(path, "Rounds", &figures::rounds(history))
}

fn annealing_figure(path: &Path, history: &[Stage]) -> Result<bool> {
    curves(path, "Annealing", &figures::annealing(history))
}

fn curves(path: &Path, title: &str, panels: &[figures::Panel]) -> Result<bool> {
    match panels.len() {
        0 => Ok(false),
        n => figure(path, (760, 380 * n as u32), |area| figures::curves(area, title, panels)).map(|_| true),
    }
}

type Outcome = std::result::Result<(), Box<dyn std::error::Error>>;
type Draw = fn(&Figure, &[&Series]) -> Outcome;

/// Logs that the program writes, with one JSON object per line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Log {
    Training,
    Rounds,
    Annealing,
}

impl Log {
    /// Kind of a log, from its first line; none for text of another kind.
    fn of(text: &str) -> Option<Log> {
        let first: Value = serde_json::from_str(text.lines().find(|line| !line.trim().is_empty())?).ok()?;
        match ["stage", "t", "step"].map(|key| first.get(key).is_some()) {
            [true, ..] => Some(Log::Rounds),
            [_, true, _] => Some(Log::Annealing),
            [_, _, true] => Some(Log::Training),
            _ => None,
        }
    }
}

/// Draws the figure of a log into a folder, if there is something to draw.
fn draw_log(folder: &Path, log: &Path) -> Result<Option<PathBuf>> {
    let text = read_text(log)?;
    let path = |name| folder.join(name);
    let (path, is_drawn) = match Log::of(&text) {
        Some(Log::Rounds) => (path(ROUNDS), rounds_figure(&path(ROUNDS), &lines(log, &text)?)?),
        Some(Log::Annealing) => (path(ANNEALING), annealing_figure(&path(ANNEALING), &lines(log, &text)?)?),
        Some(Log::Training) | None => (path(TRAINING), training_figure(&path(TRAINING), &lines(log, &text)?)?),
    };
    Ok(is_drawn.then_some(path))
}

/// Parses a log with one object per line.
fn lines<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Vec<T>> {
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| {
            let reason = format!(
                "line {}: {e}; a log of `modejump train --log` or `smc --log` must have one JSON object per line",
                i + 1
            );
            Error::file(path, reason)
        })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}
