//! Comparison of samples of the generator with frames of the ensemble: whether the samples cover what the frames show.
//!
//! Weights of samples cannot reveal configurations that the generator hardly ever draws. Samples and frames together
//! give Z by Bennett's acceptance ratio. With this Z the weights of the frames tell the effective share of the samples,
//! 1/⟨w/Z⟩ over the frames, and how much of the ensemble n samples cover: a frame with w/Z > n is drawn less than once,
//! given its share of the ensemble.

use super::{error_of_population, extend, stem, Reweight, Samples};
use crate::common::{array, evaluations, number, with_error};
use crate::log_density::{as_of_model, Centroids};
use modejump::coordinates::superpose::random_rotation;
use modejump::coordinates::vector::{centre, shift};
use modejump::density::{Evaluation, Scope};
use modejump::free_energy::{bar_with_series, mean_of_series, FEWEST_VALUES};
use modejump::io::trajectory::Frames;
use modejump::models::steering::dimension_without_auxiliary;
use modejump::models::{kept_bonds, Model};
use modejump::rng::{Stream, StreamId};
use modejump::{orientation, weights, Error, Result};
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

/// A frame is not covered if one sample like it would have more than this share of the weight of all.
const LARGEST_SHARE: f64 = 0.1;
/// Share of frames that are not covered, above which averages over the samples are in doubt.
const TOLERATED: f64 = 1e-3;
/// Difference of energies, kT, that rounding does not make.
const OTHER_ENERGY: f64 = 0.1;

/// Arrays of the frames of `adapt` and `explore`, their values for frames that must not be averaged, and the reasons.
const NOT_OF_THE_ENSEMBLE: [(&str, f64, &str); 2] = [
    ("hot", 1.0, "they come from replicas at a higher temperature"),
    ("production", 0.0, "they were recorded for training, before the generator was final"),
];

impl Reweight {
    /// Reads frames as the model's density takes them, those of each `walker` in turn, with their reduced potentials if the
    /// file has them. Errors: frames of another temperature, from before production, of hot replicas, not of the model's
    /// atoms, or with bonds of other lengths than the model keeps.
    fn read_frames(&self, path: &Path, model: &dyn Model, kelvin: f64) -> Result<(Frames, Option<Vec<f64>>)> {
        let mut frames = as_of_model(path, None, model, (self.seed, Centroids::Noise))?;
        if matches!(model.scope(), Scope::Noisy { .. }) && self.check_energies(model, kelvin, true).is_ok() {
            turn_at_random(&mut frames, self.seed);
        }
        kept_bonds::require_in_frames(model, &frames.x, frames.dimension)
            .map_err(|e| Error::file(path, e.to_string()))?;
        let array = |name: &str| array(path, name, frames.n());
        let temperatures = array("temperature")?.unwrap_or_default();
        if let Some(other) = temperatures.into_iter().find(|other| (other - kelvin).abs() > 0.5) {
            return Err(Error::file(path, format!("has frames at {other} K, but the weights are for {kelvin} K")));
        }
        for (name, wrong, why) in NOT_OF_THE_ENSEMBLE {
            let found = array(name)?.iter().flatten().filter(|value| **value == wrong).count();
            if found > 0 {
                let reason = format!(
                    "{found} of {} frames have `{name}` = {wrong}: {why}, so they are no sample of the ensemble; use frames of a \
                     production, such as `production.safetensors` of `adapt` and `explore`",
                    frames.n()
                );
                return Err(Error::file(path, reason));
            }
        }
        let u = array("reduced_potential")?;
        Ok(match array("walker")? {
            Some(walker) => {
                let order = by_walker(&walker);
                let rows = order.iter().flat_map(|i| &frames.x[i * frames.dimension..][..frames.dimension]);
                let u = u.map(|u| order.iter().map(|&i| u[i]).collect());
                (Frames::new(frames.dimension, rows.copied().collect()), u)
            }
            None => (frames, u),
        })
    }

    /// Densities and potentials of the frames in a file. Errors: those of [`Self::read_frames`]; fewer frames than an
    /// error estimate needs; frames without a finite energy.
    pub(super) fn frames_of(&self, path: &Path, model: &dyn Model, kelvin: f64) -> Result<WeighedFrames> {
        let (frames, of_file) = self.read_frames(path, model, kelvin)?;
        if frames.n() < FEWEST_VALUES {
            let reason = format!("has {} frames, but an error estimate needs at least {FEWEST_VALUES}", frames.n());
            return Err(Error::file(path, reason));
        }
        let mut log_q: Vec<Evaluation> = evaluations(frames.n());
        match self.rotations {
            None => model.log_density(&frames.x, &mut log_q)?,
            Some(rotations) => {
                let streams = |row| Stream::new(self.seed, StreamId::Orientation, row as u64, 1);
                log_q = orientation::averaged(model, &frames.x, None, rotations, streams)?;
            }
        }
        let [x, _] = super::steering(model).take_apart(&frames.x, dimension_without_auxiliary(model), &mut log_q);
        let samples = self.look_at(&x, model, kelvin)?;
        let failed = samples.u.iter().filter(|u| !u.is_finite()).count();
        if failed > 0 {
            let reason =
                format!("{failed} of {} frames have no finite energy, so they are not of the ensemble", frames.n());
            return Err(Error::file(path, reason));
        }
        warn_of_other_energies(path, of_file.as_deref().unwrap_or_default(), &samples.u);
        Ok(WeighedFrames { path: path.to_path_buf(), samples, log_q })
    }
}

/// Frames with their densities and potentials.
pub(super) struct WeighedFrames {
    path: PathBuf,
    samples: Samples,
    log_q: Vec<Evaluation>,
}

impl WeighedFrames {
    /// Summary of the frames together with the log-weights of samples, and a series for figures.
    pub(super) fn beside(&self, log_weight: &[f64]) -> Result<(Value, Value)> {
        let WeighedFrames { path, samples: of_frames, log_q } = self;
        let log_w = log_weights(of_frames, log_q);
        let forward: Vec<f64> = log_weight.iter().map(|w| -w).collect();
        let delta = bar_with_series(&forward, &log_w).map_err(|e| Error::file(path, e.to_string()))?;
        let log_z = -delta.value;
        let n = log_q.len() as f64;
        let ess = (log_z + n.ln() - weights::log_sum_exp(&log_w)).exp();
        let largest = log_z + (LARGEST_SHARE * log_weight.len() as f64).ln();
        let uncovered = log_w.iter().filter(|w| **w > largest).count();
        let mut found = json!({
            "file": path.display().to_string(),
            "n": log_q.len(),
            "outside_support": log_q.iter().filter(|e| !e.is_inside()).count(),
            "ess": ess.min(1.0),
            "uncovered": uncovered as f64 / n,
            "log_z": log_z,
            "log_z_stderr": delta.standard_error,
        });
        let inside = of_frames.inside();
        if let Ok(population) = mean_of_series(&inside) {
            let (value, error) = (population.value, error_of_population(population));
            extend(&mut found, json!({ "state_population": value, "state_population_stderr": error }));
        }
        Ok((found, series(&stem(path), of_frames)))
    }
}

/// Gives frames random orientations, as the configurations of the ensemble have that the density was trained on: those of
/// a superposed trajectory are all alike.
fn turn_at_random(frames: &mut Frames, seed: u64) {
    for (row, x) in frames.x.chunks_exact_mut(frames.dimension).enumerate() {
        let centroid = centre(x);
        random_rotation(x, &mut Stream::new(seed, StreamId::Orientation, row as u64, 2));
        shift(x, centroid);
    }
}

/// Order of frames of one walker after the other. Those of each keep theirs, which is that of time, so that correlations
/// of the whole are those of the walkers.
fn by_walker(walker: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..walker.len()).collect();
    order.sort_by(|&i, &j| walker[i].total_cmp(&walker[j]));
    order
}

/// Warns if most reduced potentials that the frames were recorded with are others than those of the System.
fn warn_of_other_energies(path: &Path, of_file: &[f64], u: &[f64]) {
    let mut differences: Vec<f64> = of_file.iter().zip(u).map(|(of_file, u)| (of_file - u).abs()).collect();
    differences.sort_by(f64::total_cmp);
    if let Some(&middle) = differences.get(differences.len() / 2).filter(|middle| **middle > OTHER_ENERGY) {
        eprintln!(
            "modejump: {}: the energies recorded with the frames differ from those of the System, by {middle:.2} kT in half of them or \
             more: use frames of this System",
            path.display()
        );
    }
}

fn series(name: &str, frames: &Samples) -> Value {
    let mut series = json!({ "name": name, "n": frames.u.len(), "reduced_potential": frames.u });
    frames.add_angles(&mut series, <[f64]>::to_vec);
    series
}

/// ln w of each frame; +∞ where the density of the generator is zero.
fn log_weights(frames: &Samples, log_q: &[Evaluation]) -> Vec<f64> {
    let density = log_q.iter().map(|e| if e.is_inside() { e.log_density } else { f64::NEG_INFINITY });
    frames.total().iter().zip(density).map(|(u, log_q)| -u - log_q).collect()
}

/// Prints the part of a summary that comes from `frames`.
pub(super) fn report(summary: &Value) {
    let frames = &summary["frames"];
    let f = |key: &str| number(frames, key);
    println!("frames            {} of {}", frames["n"], frames["file"].as_str().unwrap_or_default());
    if f("outside_support") > 0.0 {
        println!("                  {} of them are outside the generator's support", frames["outside_support"]);
    }
    let ess = 100.0 * f("ess");
    let ess = if ess < 0.1 { format!("{ess:.1e}") } else { format!("{ess:.1}") };
    println!("  ESS             {ess} % of the samples, estimated from the frames");
    println!("  log Z           {} from samples and frames", with_error(f("log_z"), f("log_z_stderr"), 4));
    if frames.get("state_population").is_some() {
        let population = with_error(100.0 * f("state_population"), 100.0 * f("state_population_stderr"), 2);
        println!("  P(state)        {population} % of the frames");
    }
    println!("  not covered     {:.2} % of the frames", 100.0 * f("uncovered"));
    if f("uncovered") > TOLERATED {
        println!(
            "(configurations like these are missing among the samples, or represented by very few: averages with their weights may be wrong by more \
             than their errors; use averages over the frames, from a run with jumps)"
        );
    }
}
