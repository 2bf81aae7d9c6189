//! `modejump reweight`: importance weights of a generator's samples against the target.

mod frames;
mod state;
mod surrogate;

use super::common::{
    hash_of, load, mark, number, tail_in_words, tail_index, temperature, with_error, without_error, DecodingFlags,
    PlatformFlag, PrecisionFlag, RuleFlag, TorsionFlag, Torsions,
};
use clap::{Args, ValueEnum};
use modejump::density::{Evaluation, Exactness};
use modejump::io::checkpoint::Identity;
use modejump::io::{check_apart, check_writable};
use modejump::models::steering::{dimension_without_auxiliary, follow, Steering};
use modejump::models::tarflow::{self, Centroid, Options};
use modejump::models::Model;
use modejump::orientation;
use modejump::parallel::{self, Ranks};
use modejump::rng::{Stream, StreamId};
use modejump::weights::{self, Estimate, Rule};
use modejump::{free_energy, Error, Result};
use serde_json::{json, Value};
use state::State;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Reweight {
    /// Model file
    model: PathBuf,
    /// OpenMM System (XML) with the model's atoms
    #[arg(long)]
    system: PathBuf,
    /// Temperature, K [default: that of the model]. A steerable model is steered to it
    #[arg(long)]
    temperature: Option<f64>,
    /// Number of samples to draw and weight
    #[arg(short, long, default_value_t = 20_000)]
    n: usize,
    /// Seed of the samples
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// State whose population, and free energy relative to the rest, are computed: an interval from,to in radians of the
    /// first backbone φ [default: 0,2.2] or of the first --torsion [no default], or a region of any torsion or distance
    /// of atoms, counted from 0, in the form of `region` of `adapt`, such as '{"along": {"torsion": [0, 1, 2, 3]},
    /// "range": [-1.05, 1.05]}'
    #[arg(long, allow_hyphen_values = true, value_parser = State::parse)]
    state: Option<State>,
    #[command(flatten)]
    torsions: TorsionFlag,
    /// Frames of the ensemble at this temperature, as recorded by `modejump md` with jumps: report whether the samples
    /// cover them. Not those that the model was trained on, which make log Z too small and its error far too small
    #[arg(long, conflicts_with = "surrogate")]
    frames: Option<PathBuf>,
    /// Model file of a density that replaces that of the generator, such as an energy-based model: report the weights
    /// by both on the same samples, and the bias of the surrogate
    #[arg(long)]
    surrogate: Option<PathBuf>,
    /// Compute the generator's own density for only this many of the samples; --calibrate requires 20
    #[arg(long, requires = "surrogate")]
    exact_subset: Option<usize>,
    /// Write the surrogate, an energy-based model, to this file with the factors by which delayed acceptance should
    /// trust it (its `trust`), fitted to the samples whose own density is computed
    #[arg(long, requires = "surrogate")]
    calibrate: Option<PathBuf>,
    /// Number of orientations over which the generator's density is averaged: the weights vary less, at the cost of as
    /// many likelihoods, and are exact if the energies do not depend on orientation (those of a periodic System do).
    /// For TarFlows
    #[arg(long, conflicts_with = "surrogate")]
    rotations: Option<usize>,
    /// Treatment of the centroid noise of a TarFlow in its weights
    #[arg(long, value_enum, default_value_t = CentroidRule::Gauss3)]
    centroid: CentroidRule,
    /// JSON file with the summary and the series that `modejump plot` draws
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    rule: RuleFlag,
    #[command(flatten)]
    decoding: DecodingFlags,
    #[command(flatten)]
    precision: PrecisionFlag,
    #[command(flatten)]
    platform: PlatformFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CentroidRule {
    /// Divide by the density of the centroid: a perfect model has equal weights
    Gauss3,
    /// Divide by the density of its distance from the origin, as in published work: costs 40 % of the effective
    /// samples, and is not a density of configurations
    Chi3,
}

/// Samples of the generator and their properties that do not depend on the likelihood.
struct Samples {
    /// U/kT of x, without the contribution of auxiliary coordinates.
    u: Vec<f64>,
    /// Metric term ½ ln det Z of constrained bonds, which enters the weights in addition to u.
    log_metric: Vec<f64>,
    /// Values of the torsions considered, at most two, and their names.
    angles: Vec<Vec<f64>>,
    axes: Vec<String>,
    /// Whether each sample is in the state, if there is one.
    in_state: Vec<Option<bool>>,
}

impl Samples {
    /// u − ½ ln det Z, as used in the weights.
    fn total(&self) -> Vec<f64> {
        self.u.iter().zip(&self.log_metric).map(|(u, log_metric)| u - log_metric).collect()
    }

    /// Adds the torsions of the samples that are `kept` to a series for figures.
    fn add_angles(&self, series: &mut Value, kept: impl Fn(&[f64]) -> Vec<f64>) {
        for (name, angle) in ["phi", "psi"].into_iter().zip(&self.angles) {
            series[name] = json!(kept(angle));
            series["axes"] = json!(self.axes);
        }
    }

    /// 1 in the state, 0 elsewhere; empty if there is no state.
    fn inside(&self) -> Vec<f64> {
        self.in_state.iter().map(|inside| f64::from(u8::from(*inside == Some(true)))).collect()
    }
}

/// Log-weights of the first samples by one likelihood.
struct Weighted {
    likelihood: Exactness,
    /// Raw log-weights.
    log_weight: Vec<f64>,
    rule: Rule,
    /// Log-weights after the rule, for averages.
    ruled: Vec<f64>,
    /// Number of weights changed by the rule.
    changed: usize,
    /// Number of samples without a density.
    outside: usize,
}

impl Reweight {
    pub fn run(self) -> Result<()> {
        parallel::run(|ranks| self.on(ranks))
    }

    fn on(&self, ranks: &dyn Ranks) -> Result<()> {
        self.check()?;
        if ranks.is_first() {
            self.check_outputs()?;
        }
        let centroid = match self.centroid {
            CentroidRule::Gauss3 => Centroid::Gauss3,
            CentroidRule::Chi3 => Centroid::Chi3,
        };
        let options = Options { decoding: self.decoding.decoding(), centroid };
        let model = tarflow::with_options(load(&self.model, &self.precision)?, options)?;
        let temperature = temperature(self.temperature, model.as_ref())?;
        let model = follow(&model, temperature)?;
        ranks.same_run(&self.identity(model.as_ref(), temperature)?)?;
        if let Some(rotations) = self.rotations {
            orientation::check(model.as_ref(), rotations)?;
        }
        self.state.iter().try_for_each(|state| state.check(dimension_without_auxiliary(model.as_ref())))?;
        self.torsions_of(model.as_ref())?;
        self.check_energies(model.as_ref(), temperature, self.rotations.is_some())?;
        let mut summary = json!({ "model": self.model.display().to_string(), "temperature": temperature, "n": self.n });
        let series = match &self.surrogate {
            Some(path) => self.beside_surrogate(path, model.as_ref(), temperature, ranks, &mut summary)?,
            None => self.alone(model.as_ref(), temperature, ranks, &mut summary)?,
        };
        if !ranks.is_first() {
            return Ok(());
        }
        let written = self.output.as_ref().map_or(Ok(()), |path| {
            let document = json!({ "summary": &summary, "series": series });
            modejump::io::write_atomically(path, document.to_string().as_bytes())
        });
        // the report is printed even if the disk is full by now
        match (self.json, &self.surrogate) {
            (true, _) => println!("{summary}"),
            (false, None) => report(&summary),
            (false, Some(_)) => surrogate::report(&summary),
        }
        written
    }

    /// What the samples, their densities and energies depend on.
    fn identity(&self, model: &dyn Model, temperature: f64) -> Result<Identity> {
        let run = Identity::default().with_content("model", model.hash());
        let run = run.with_content("file for --system", hash_of(&self.system)?).with("--temperature", temperature);
        let run = run.with("-n", self.n).with("--seed", self.seed).with_some("--rotations", self.rotations);
        let run = run.with_some("--surrogate", self.surrogate.as_ref().map(|path| hash_of(path)).transpose()?);
        let run = run.with_some("--exact-subset", self.exact_subset).with("--centroid", self.centroid as u8);
        let run = run.with("--platform", &self.platform.platform);
        Ok(self.precision.identify(self.decoding.identify(run)))
    }

    /// Errors: invalid options.
    fn check(&self) -> Result<()> {
        match self.n {
            0 => Err(Error::invalid("-n 0: must be at least 1")),
            _ => Ok(()),
        }
    }

    /// Errors: outputs that cannot be written, or coincide with inputs or with each other.
    fn check_outputs(&self) -> Result<()> {
        let given = || [&self.model, &self.system].into_iter().chain(&self.surrogate).chain(&self.frames);
        for (path, others) in [(&self.output, &self.calibrate), (&self.calibrate, &None)] {
            let Some(path) = path else { continue };
            check_apart(path, given().chain(others))?;
            check_writable(path)?;
        }
        Ok(())
    }

    fn alone(&self, model: &dyn Model, temperature: f64, ranks: &dyn Ranks, summary: &mut Value) -> Result<Vec<Value>> {
        // checked before the work
        let frames = match self.frames.as_ref().filter(|_| ranks.is_first()) {
            Some(path) => Some(self.frames_of(path, model, temperature)?),
            None => None,
        };
        let (x, mut log_q) = ranks.sample(model, self.n, self.seed)?;
        if let Some(rotations) = self.rotations {
            log_q = ranks.evaluations(self.n, |rows, own| {
                let d = model.dimension();
                let streams = |row| Stream::new(self.seed, StreamId::Orientation, (rows.start + row) as u64, 0);
                let (x, drawn) = (&x[rows.start * d..rows.end * d], &log_q[rows.clone()]);
                own.copy_from_slice(&orientation::averaged(model, x, Some(drawn), rotations, streams)?);
                Ok(())
            })?;
            extend(summary, json!({ "rotations": rotations }));
        }
        let [x, _] = steering(model).take_apart(&x, dimension_without_auxiliary(model), &mut log_q);
        let samples = self.look_at_shared(&x, model, temperature, ranks)?;
        if !ranks.is_first() {
            return Ok(Vec::new());
        }
        let weighted = Weighted::new(model.exactness(), &samples, &log_q, self.rule.rule())?;
        extend(summary, weighted.summary(&samples)?);
        if !samples.in_state.is_empty() {
            let torsion = samples.axes.first().map_or("", String::as_str);
            extend(summary, json!({ "state": self.state().map(|state| state.in_words(torsion)) }));
        }
        let mut series = vec![weighted.series(&stem(&self.model), &samples)];
        if let Some(frames) = frames {
            let (found, of_frames) = frames.beside(&weighted.log_weight)?;
            extend(summary, json!({ "frames": found }));
            series.push(of_frames);
        }
        Ok(series)
    }

    /// Reduced potentials and torsions of configurations without auxiliary coordinates, with the energies computed by
    /// all ranks.
    fn look_at_shared(&self, x: &[f64], model: &dyn Model, temperature: f64, ranks: &dyn Ranks) -> Result<Samples> {
        let d = dimension_without_auxiliary(model);
        let energies =
            ranks.rows(self.n, |rows| self.energies(temperature, model, &x[rows.start * d..rows.end * d]))?;
        self.with_energies(x, model, energies)
    }

    /// As [`Self::look_at_shared`], by this rank alone.
    fn look_at(&self, x: &[f64], model: &dyn Model, temperature: f64) -> Result<Samples> {
        self.with_energies(x, model, self.energies(temperature, model, x)?)
    }

    fn with_energies(&self, x: &[f64], model: &dyn Model, both: Vec<f64>) -> Result<Samples> {
        let dimension = dimension_without_auxiliary(model);
        let (u, log_metric) = both.chunks_exact(2).map(|both| (both[0], both[1])).unzip();
        let torsions = self.torsions_of(model)?;
        let angles = torsions.columns(x);
        let in_state = self.state().and_then(|state| state.of(x, dimension, angles.first()));
        if self.state.is_some() && in_state.is_none() {
            return Err(Error::invalid(
                "--state requires a backbone φ, which the model's atoms do not have: use --torsion or a region, or remove --state",
            ));
        }
        Ok(Samples { u, log_metric, angles, axes: torsions.axes, in_state: in_state.unwrap_or_default() })
    }

    fn torsions_of(&self, model: &dyn Model) -> Result<Torsions> {
        self.torsions.of(dimension_without_auxiliary(model) / 3, model.card().topology.as_ref())
    }

    /// The state; none by default if the torsion is the user's own.
    fn state(&self) -> Option<&State> {
        self.state.as_ref().or(Some(&State::DEFAULT).filter(|_| !self.torsions.is_given()))
    }

    /// u and ½ ln det Z of each configuration, alternating.
    #[cfg(feature = "openmm")]
    fn energies(&self, temperature: f64, model: &dyn Model, x: &[f64]) -> Result<Vec<f64>> {
        use modejump::target::Target;
        let mut target = super::common::target_of(&self.system, model, temperature, &self.platform)?;
        let mut u = vec![0.0; x.len() / target.dimension()];
        target.reduced_potential(x, &mut u)?;
        let rows = x.chunks_exact(target.dimension()).zip(u);
        Ok(rows.flat_map(|(x, u)| [u, if u.is_finite() { target.log_metric(x) } else { 0.0 }]).collect())
    }

    /// Checks the energies before the work. Errors: a System of other atoms, or energies that depend on more than the
    /// density describes; if it is `averaged` over orientations also those that depend on the orientation, through a box
    /// or anything else in the System.
    #[cfg(feature = "openmm")]
    fn check_energies(&self, model: &dyn Model, temperature: f64, averaged: bool) -> Result<()> {
        use super::common::{read_system, require_described, target_of};
        if averaged && read_system(&self.system)?.is_periodic()? {
            return Err(Error::file(
                &self.system,
                "the System is periodic, so the orientation matters and weights averaged over --rotations are not exact; \
                 remove the option",
            ));
        }
        let mut target = target_of(&self.system, model, temperature, &self.platform)?;
        require_described(&self.system, &mut target, model, averaged)
    }

    #[cfg(not(feature = "openmm"))]
    fn check_energies(&self, _: &dyn Model, _: f64, _: bool) -> Result<()> {
        Ok(())
    }

    #[cfg(not(feature = "openmm"))]
    fn energies(&self, _: f64, _: &dyn Model, _: &[f64]) -> Result<Vec<f64>> {
        Err(Error::Unsupported("--system needs a build with `--features openmm`".into()))
    }
}

impl Weighted {
    fn new(likelihood: Exactness, samples: &Samples, log_q: &[Evaluation], rule: Rule) -> Result<Weighted> {
        let log_weight = weights::log_weights(&samples.total()[..log_q.len()], log_q)?;
        let (ruled, changed) = rule.apply(&log_weight)?;
        let outside = log_q.iter().filter(|e| !e.is_inside()).count();
        Ok(Weighted { likelihood, log_weight, rule, ruled, changed, outside })
    }

    /// Raw effective sample size and k̂, and averages with the weights after the rule.
    fn summary(&self, samples: &Samples) -> Result<Value> {
        let (n, ruled) = (self.log_weight.len(), &self.ruled);
        let share = |w: &[f64]| weights::effective_sample_size(w).map(|ess| ess / n as f64);
        let acceptance = weights::acceptance(&self.log_weight);
        let u = weights::mean(ruled, &samples.u[..n])?;
        let mut summary = json!({
            "likelihood": self.likelihood,
            "ess": share(&self.log_weight)?,
            "pareto_k": tail_index(weights::pareto_k(&self.log_weight)?),
            "acceptance": acceptance.value,
            "acceptance_stderr": acceptance.standard_error,
            "rejected": self.log_weight.iter().filter(|w| !w.is_finite()).count(),
            "outside_support": self.outside,
            "weights": self.rule.name(),
            "u_mean": u.value,
            "u_stderr": u.standard_error,
        });
        if self.rule != Rule::Raw {
            extend(&mut summary, json!({ "changed_weights": self.changed, "ess_of_changed": share(ruled)? }));
        }
        // a surrogate is known only up to a constant, and so is its Z
        if self.likelihood != Exactness::Surrogate {
            let log_z = weights::log_normaliser(ruled)?;
            extend(&mut summary, json!({ "log_z": log_z.value, "log_z_stderr": log_z.standard_error }));
        }
        if !samples.in_state.is_empty() {
            let inside = &samples.inside()[..n];
            let population = weights::mean(ruled, inside)?;
            let error = error_of_population(population);
            extend(&mut summary, json!({ "state_population": population.value, "state_population_stderr": error }));
            match free_energy::between_states(ruled, &samples.in_state[..n]) {
                Ok(delta_f) => {
                    extend(
                        &mut summary,
                        json!({ "delta_f_kT": delta_f.value, "delta_f_stderr": delta_f.standard_error }),
                    );
                }
                // a generator that lacks one of the states is still worth a report
                Err(error) => eprintln!("modejump: no free-energy difference: {error}"),
            }
        }
        Ok(summary)
    }

    /// Series for `modejump plot`. JSON has no infinities, so samples without weight appear only in the count `n`.
    fn series(&self, name: &str, samples: &Samples) -> Value {
        let finite = |values: &[f64]| -> Vec<f64> {
            values.iter().zip(&self.ruled).filter(|(_, w)| w.is_finite()).map(|(v, _)| *v).collect()
        };
        let raw: Vec<f64> = self.log_weight.iter().copied().filter(|w| w.is_finite()).collect();
        let mut series = json!({
            "name": name,
            "likelihood": self.likelihood,
            "reduced_potential": finite(&samples.u),
            "n": self.log_weight.len(),
            "weights": self.rule.name(),
            "log_weight": finite(&self.ruled),
            "raw_log_weight": raw,
        });
        samples.add_angles(&mut series, finite);
        series
    }
}

fn steering(model: &dyn Model) -> Steering {
    model.steering().unwrap_or(Steering::NONE)
}

/// Error of the mean of values that are 1 in a state and 0 elsewhere; NaN if all the weight is on one side, which tells
/// nothing of the other.
fn error_of_population(population: Estimate) -> f64 {
    const ROUNDING: f64 = 1e-12;
    match (ROUNDING..1.0 - ROUNDING).contains(&population.value) {
        true => population.standard_error,
        false => f64::NAN,
    }
}

/// Name of a model in figures.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Adds the entries of one object to another.
fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}

/// Text of what was done to the weights before the averages.
fn rule_in_words(s: &Value) -> String {
    let name = s["weights"].as_str().unwrap_or_default();
    let what = match name {
        "truncated" => "at most √n times their mean",
        "smoothed" => "largest ones replaced by a fitted Pareto tail",
        "quantile_clipped" => "largest ones DELETED, biased",
        _ => return name.into(),
    };
    format!("{name}: {what}; {} changed, ESS {:.1} %", s["changed_weights"], 100.0 * number(s, "ess_of_changed"))
}

fn report(s: &Value) {
    let f = |key: &str| number(s, key);
    let mark = mark(s["likelihood"].as_str().unwrap_or_default());
    println!("samples           {}", s["n"]);
    println!("ESS               {:.1} % (raw weights){mark}", 100.0 * f("ess"));
    println!("Pareto k          {}{mark}", tail_in_words(f("pareto_k")));
    if f("rejected") > 0.0 {
        let energies = f("rejected") - f("outside_support");
        println!(
            "rejected          {} samples have no weight: {} outside the generator's support, {energies} without a finite energy",
            s["rejected"], s["outside_support"]
        );
    }
    let acceptance = with_error(100.0 * f("acceptance"), 100.0 * f("acceptance_stderr"), 1);
    println!("acceptance        {acceptance} % for a single new proposal in equilibrium{mark}");
    println!("weights           {}", rule_in_words(s));
    println!("<u>               {} kT{mark}", with_error(f("u_mean"), f("u_stderr"), 3));
    if s.get("log_z").is_some() {
        println!("log Z             {}{mark}", with_error(f("log_z"), f("log_z_stderr"), 4));
    }
    if s.get("state_population").is_some() {
        let population = with_error(100.0 * f("state_population"), 100.0 * f("state_population_stderr"), 2);
        println!("P(state)          {population} % ({}){mark}", s["state"].as_str().unwrap_or_default());
    }
    if s.get("delta_f_kT").is_some() {
        println!("ΔF(state − rest)  {} kT{mark}", with_error(f("delta_f_kT"), f("delta_f_stderr"), 3));
    }
    if s.get("frames").is_some() {
        frames::report(s);
    }
    let errors = ["acceptance_stderr", "u_stderr", "log_z_stderr", "state_population_stderr", "delta_f_stderr"];
    let is_unknown = |of: &Value| errors.iter().any(|key| of.get(key).is_some_and(Value::is_null));
    if is_unknown(s) || is_unknown(&s["frames"]) {
        println!("{}", without_error());
    }
}
