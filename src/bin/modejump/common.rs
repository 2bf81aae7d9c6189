//! What several subcommands share.

use clap::{Args, ValueEnum};
#[cfg(feature = "openmm")]
use modejump::coordinates::constraints::kept_bonds;
use modejump::coordinates::Topology;
use modejump::density::Evaluation;
#[cfg(feature = "openmm")]
use modejump::engines::openmm::{OpenMmTarget, System};
use modejump::io::model_file::{self, read_tensors};
use modejump::io::trajectory::{self, Frames};
use modejump::models::tarflow::{self, Decoding, Jacobi, Options};
use modejump::models::{self, Model, ModelCard, Precision, TargetInfo};
#[cfg(feature = "openmm")]
use modejump::train::ExploreOptions;
use modejump::weights::{self, Rule};
use modejump::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::{json, Value};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
#[cfg(feature = "openmm")]
use std::sync::Once;
use std::time::Duration;

/// Time between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
/// Set by SIGINT and SIGTERM.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the first SIGINT or SIGTERM is for [`interrupted`] to tell, and the second ends the program.
/// Errors: a second call.
pub fn watch_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130); // asked twice
        }
    })
    .map_err(|e| Error::invalid(format!("signals cannot be handled: {e}")))
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// `explore` of a configuration at a temperature that something else gives, `giver`, such as an option of the command line. Errors: another
/// one in the configuration.
#[cfg(feature = "openmm")]
pub fn explore_at(options: &ExploreOptions, giver: &str, temperature: f64) -> Result<ExploreOptions> {
    match options.temperature.filter(|given| *given != temperature) {
        None => Ok(ExploreOptions { temperature: Some(temperature), ..options.clone() }),
        Some(given) => Err(Error::invalid(format!(
            "`explore` has temperature {given} K, and {giver} is {temperature} K: leave it out of the configuration"
        ))),
    }
}

/// What a JSON file holds. Errors: text of another kind; what is wrong in it, and where.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    use serde_json::error::Category;
    serde_json::from_str(text).map_err(|e| match e.classify() {
        Category::Data => Error::file(path, e.to_string()),
        _ => Error::file(path, format!("JSON is expected here, and this is none: {e}")),
    })
}

/// Of what a file holds.
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(model_file::hash(&std::fs::read(path).map_err(|e| Error::io(path, e))?))
}

/// What every card says of its training: temperature (K), System and command.
pub fn describe_training(card: &mut ModelCard, temperature: f64, system: Option<&Path>) -> Result<()> {
    let info = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok::<_, Error>(TargetInfo { description: format!("OpenMM System {name}"), hash: Some(hash_of(path)?) })
    };
    card.temperature = Some(temperature);
    card.target = system.map(info).transpose()?;
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    card.provenance.insert("command".into(), format!("modejump {command}"));
    card.provenance.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    Ok(())
}

#[derive(Clone, Debug, Args)]
pub struct PlatformFlag {
    /// OpenMM platform for energies: `CPU`, in single precision, is faster where Reference is slow, as with a CustomGBForce
    #[arg(long, default_value = "Reference")]
    pub platform: String,
}

impl PlatformFlag {
    #[cfg(feature = "openmm")]
    pub fn read_system(&self, path: &Path) -> Result<System> {
        Ok(read_system(path)?.on_platform(&self.platform))
    }
}

#[derive(Debug, Args)]
pub struct PrecisionFlag {
    /// Type of the networks; coordinates and densities are f64 in either case
    #[arg(long, value_enum, default_value_t = Type::F32)]
    precision: Type,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Type {
    F32,
    F64,
    /// f32 with weights rounded to bfloat16, of TarFlows: single samples in less time
    Bf16,
}

/// Share of the samples whose weights published evaluations delete.
pub const CLIPPED_SHARE: f64 = 0.002;

#[derive(Args)]
pub struct DecodingFlags {
    /// How a TarFlow finds its samples; log q is that of the sample in any case, by iteration that of its likelihood
    #[arg(long, value_enum, default_value_t = Decode::Sequential)]
    decoding: Decode,
    /// Tokens of a segment of `--decoding gauss-seidel`
    #[arg(long, default_value_t = 16, requires = "decoding")]
    segment: usize,
    /// Of an iteration: largest error of the latent point, above what rounding leaves (some 1e-5 in f32); at most 1e-3, within which samples have the density
    /// that is said of them
    #[arg(long, default_value_t = 1e-4, requires = "decoding")]
    decoding_tolerance: f64,
    /// Of an iteration: most passes of all tokens, or of a segment; a sample that needs more is decoded sequentially
    #[arg(long, default_value_t = 32, requires = "decoding")]
    decoding_passes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Decode {
    /// Token after token
    Sequential,
    /// All tokens together, by iteration
    Jacobi,
    /// Segments of tokens after each other, each by iteration
    GaussSeidel,
}

impl DecodingFlags {
    pub fn decoding(&self) -> Decoding {
        let segment = match self.decoding {
            Decode::Sequential => return Decoding::Sequential,
            Decode::Jacobi => usize::MAX,
            Decode::GaussSeidel => self.segment,
        };
        Decoding::Jacobi(Jacobi { segment, tolerance: self.decoding_tolerance, passes: self.decoding_passes })
    }

    /// The model with the decoding asked for. Errors: as of [`tarflow::with_options`].
    pub fn of(&self, model: Arc<dyn Model>) -> Result<Arc<dyn Model>> {
        tarflow::with_options(model, Options { decoding: self.decoding(), ..Options::default() })
    }
}

/// What is made of the proposals of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// One Metropolis test for each proposal, one after the other
    Independence,
    /// A choice among all proposals and the current state
    Isir,
}

#[derive(Args)]
pub struct RuleFlag {
    /// What is done to importance weights before averages are made of them; the raw ESS and Pareto k are reported in any case
    #[arg(long, value_enum, default_value_t = Weights::Raw)]
    weights: Weights,
    /// Share of the samples that `--weights quantile-clipped` deletes
    #[arg(long, default_value_t = CLIPPED_SHARE, requires = "weights", allow_negative_numbers = true)]
    clipped_share: f64,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Weights {
    /// Nothing
    Raw,
    /// At most sqrt(n) times their mean: no sample is deleted, less variance, a bias that vanishes as n grows
    Truncated,
    /// The largest by a fitted Pareto tail: no sample is deleted
    Smoothed,
    /// Samples with the largest weights DELETED, as published evaluations do it: BIASED for any n
    QuantileClipped,
}

impl RuleFlag {
    pub fn rule(&self) -> Rule {
        self.weights.rule(self.clipped_share)
    }
}

impl Weights {
    /// `clipped_share` is of the samples that quantile clipping deletes.
    pub fn rule(self, clipped_share: f64) -> Rule {
        match self {
            Weights::Raw => Rule::Raw,
            Weights::Truncated => Rule::Truncated,
            Weights::Smoothed => Rule::Smoothed,
            Weights::QuantileClipped => Rule::QuantileClipped { share: clipped_share },
        }
    }
}

/// The array of this name with a number for each of the n frames of a safetensors file, if the file has one.
///
/// Errors: another length.
pub fn array(path: &Path, name: &str, n: usize) -> Result<Option<Vec<f64>>> {
    if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("safetensors")) {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (mut tensors, _) = model_file::read_tensors(&path.display().to_string(), &bytes)?;
    match tensors.remove(name).map(|tensor| tensor.data) {
        Some(data) if data.len() != n => {
            Err(Error::file(path, format!("`{name}` has {} numbers for {n} frames", data.len())))
        }
        data => Ok(data),
    }
}

/// log w = −u − log q; no weight where either is not finite.
pub fn importance(u: &[f64], log_q: &[f64]) -> Vec<f64> {
    let weight = |(u, q): (&f64, &f64)| match -u - q {
        w if w.is_finite() => w,
        _ => f64::NEG_INFINITY,
    };
    u.iter().zip(log_q).map(weight).collect()
}

pub fn load(path: &Path, precision: &PrecisionFlag) -> Result<Arc<dyn Model>> {
    let precision = match precision.precision {
        Type::F32 => Precision::F32,
        Type::F64 => Precision::F64,
        Type::Bf16 => Precision::Bf16,
    };
    models::load_with(path, precision)
}

/// At a temperature (K) to which a steerable model can be taken, if one is asked for.
pub fn load_at(path: &Path, precision: &PrecisionFlag, temperature: Option<f64>) -> Result<Arc<dyn Model>> {
    let model = load(path, precision)?;
    temperature.map_or(Ok(model.clone()), |kelvin| model.at_temperature(kelvin))
}

/// A second model, which must describe the atoms of the generator.
pub fn load_partner(path: &Path, precision: &PrecisionFlag, generator: &dyn Model) -> Result<Arc<dyn Model>> {
    let partner = load(path, precision)?;
    if partner.dimension() != generator.dimension() {
        let (a, b) = (partner.dimension(), generator.dimension());
        return Err(Error::file(path, format!("{a} coordinates, the generator has {b}")));
    }
    if let (Some(a), Some(b)) = (&partner.card().topology, &generator.card().topology) {
        if let Some(i) = (0..a.n_atoms().min(b.n_atoms())).find(|&i| a.elements[i] != b.elements[i]) {
            let reason = format!("{} stands where the generator has {}", a.label(i), b.label(i));
            return Err(Error::file(path, reason));
        }
    }
    Ok(partner)
}

/// Frames without names or units show by bonds that are none what is wrong with them, which is told; `whose` says of what `atoms` are the list.
/// Errors: most of the frames have the same.
pub fn require_bonds(path: &Path, frames: &Frames, atoms: &Topology, whose: &str) -> Result<()> {
    match trajectory::torn_frames(frames, atoms, whose) {
        Some(torn) if torn.are_most => Err(Error::file(
            path,
            format!(
                "{torn}; coordinates have to be in nm, not Angstrom; or the atoms are in another order, or the molecule is not whole"
            ),
        )),
        Some(torn) => {
            eprintln!("modejump: {}: {torn}; is the molecule whole there?", path.display());
            Ok(())
        }
        None => Ok(()),
    }
}

/// The same for the samples of a model, whose unit and order are known: a poor model is no reason to refuse them.
pub fn warn_of_torn_bonds(path: &Path, samples: &Frames, atoms: &Topology, whose: &str) {
    if let Some(torn) = trajectory::torn_frames(samples, atoms, whose) {
        eprintln!("modejump: {}: {torn}; a poor model has drawn them, or one of other atoms", path.display());
    }
}

/// Errors: atoms of a file in another order, or of other names, than a model's card has them; with another number of atoms the two are not
/// compared.
#[cfg(feature = "openmm")]
pub fn require_order(path: &Path, atoms: &Topology, model: &dyn Model) -> Result<()> {
    match &model.card().topology {
        Some(own) if own.n_atoms() == atoms.n_atoms() => {
            own.require_order(atoms, "model").map_err(|e| Error::file(path, e.to_string()))
        }
        _ => Ok(()),
    }
}

/// What is asked for, else the model's.
pub fn temperature(asked: Option<f64>, model: &dyn Model) -> Result<f64> {
    let temperature = asked.or(model.card().temperature);
    temperature.ok_or_else(|| Error::invalid("the model file has no temperature; give --temperature"))
}

/// Says so where a model makes moves, jumps or exchanges, at another temperature (K) than its own; a steerable one has none of its own.
pub fn warn_of_temperature(model: &dyn Model, here: f64, moves: &str) {
    if model.steering().is_some() {
        return;
    }
    if let Some(t) = model.card().temperature.filter(|t| (t - here).abs() > 0.5) {
        eprintln!("modejump: the model was trained for {t} K; {moves} at {here} K are accepted less");
    }
}

/// An OpenMM System without the moves that were added to it, which is told.
#[cfg(feature = "openmm")]
pub fn read_system(path: &Path) -> Result<System> {
    static TOLD: Once = Once::new();
    let system = System::from_xml_file(path)?;
    if system.moves_left_out() > 0 {
        TOLD.call_once(|| {
            eprintln!(
                "modejump: {} holds a MonteCarloModeJump, which is left out: moves here are those of the command line",
                path.display()
            );
        });
    }
    Ok(system)
}

/// The energies, on all threads, of an OpenMM System that was read from this file. Errors: also another number of particles than the model has
/// atoms, and masses that are not those of the atoms, where they are known.
#[cfg(feature = "openmm")]
pub fn target(
    path: &Path,
    system: &System,
    dimension: usize,
    atoms: Option<&Topology>,
    temperature: f64,
) -> Result<OpenMmTarget> {
    if 3 * system.n_particles() != dimension {
        let message = format!("{} particles, the model has {} atoms", system.n_particles(), dimension / 3);
        return Err(Error::file(path, message));
    }
    if let Some(atoms) = atoms {
        atoms.require_masses(&system.masses()).map_err(|e| Error::file(path, e.to_string()))?;
    }
    OpenMmTarget::new(system, temperature, threads())
}

/// The same for the samples of a model, with its constrained bonds.
#[cfg(feature = "openmm")]
pub fn target_of(path: &Path, model: &dyn Model, temperature: f64, on: &PlatformFlag) -> Result<OpenMmTarget> {
    let dimension = modejump::models::steering::dimension_without_auxiliary(model);
    let system = on.read_system(path)?;
    target(path, &system, dimension, model.card().topology.as_ref(), temperature)?.with_constraints(&system, model)
}

/// The same for samples `x[n][atoms][3]` (nm) of a model that is not known: it keeps the bonds that they keep. Errors name a bond that the System
/// constrains and the samples vary, or the reverse.
#[cfg(feature = "openmm")]
pub fn target_of_samples(
    path: &Path,
    system: &System,
    x: &[f64],
    topology: &Topology,
    temperature: f64,
) -> Result<OpenMmTarget> {
    let dimension = 3 * topology.n_atoms();
    let bonds = system.bonds()?.into_iter().map(|(a, b)| [a, b]).chain(topology.bonds.iter().copied());
    let kept = kept_bonds(&bonds.collect::<Vec<_>>(), x, dimension);
    let target = target(path, system, dimension, Some(topology), temperature)?;
    target.with_kept_bonds(system, &kept, &|atom| topology.label(atom))
}

/// k̂ for a summary: a number, or as a text "inf" or "-inf", since JSON knows no infinities.
pub fn tail_index(k: f64) -> Value {
    match k.is_finite() {
        true => json!(k),
        false => json!(k.to_string()),
    }
}

/// k̂ for a report, with a warning where the weights are not to be trusted.
pub fn tail_in_words(k: f64) -> String {
    let what = match k {
        f64::NEG_INFINITY => return "none: the largest weights are alike".into(),
        f64::INFINITY => "infinite".into(),
        k => format!("{k:.2}"),
    };
    format!("{what}{}", if k > 0.7 { "  (weights are unreliable above 0.7)" } else { "" })
}

/// A number of a summary, also one that [`tail_index`] wrote; NaN where there is none.
pub fn number(summary: &Value, key: &str) -> f64 {
    let text = || summary[key].as_str()?.parse().ok();
    summary[key].as_f64().or_else(text).unwrap_or(f64::NAN)
}

/// An average with its error, a question mark where weights are too few to tell one.
pub fn with_error(value: f64, error: f64, digits: usize) -> String {
    match error.is_nan() {
        true => format!("{value:.digits$} ± ?"),
        false => format!("{value:.digits$} ± {error:.digits$}"),
    }
}

/// What the question mark of [`with_error`] stands for.
pub fn without_error() -> String {
    format!("±?: fewer than {} effective samples tell no error", weights::FEWEST_FOR_ERRORS)
}

pub fn evaluations(n: usize) -> Vec<Evaluation> {
    vec![Evaluation::inside(0.0); n]
}

/// log q per row, and how many rows are outside the support.
pub fn split(log_density: &[Evaluation]) -> (Vec<f64>, usize) {
    let values = log_density.iter().map(|e| e.log_density).collect();
    (values, log_density.iter().filter(|e| !e.is_inside()).count())
}

/// Marks numbers whose likelihood is not exact.
pub fn mark(likelihood: &str) -> String {
    match likelihood {
        "exact" | "" => String::new(),
        other => format!("  ({other} likelihood)"),
    }
}

pub fn frames_of(n: usize) -> String {
    format!("{n} configuration{}", if n == 1 { "" } else { "s" })
}

/// Latent points `[n][latent]`: tensor `z` of a safetensors file, or a npy array. Errors: another shape, numbers that are not finite.
pub fn read_latent(path: &Path, latent: usize) -> Result<Vec<f64>> {
    let (shape, z) = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
        let z = trajectory::read(path)?;
        (vec![z.n(), z.dimension], z.x)
    } else {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let (mut tensors, _) = read_tensors(&path.display().to_string(), &bytes)?;
        let z = tensors.remove("z").ok_or_else(|| Error::file(path, "no tensor `z`"))?;
        (z.shape, z.data)
    };
    if !matches!(shape[..], [_, width] if width == latent) {
        return Err(Error::file(path, format!("`z` has shape {shape:?}, the model needs [n, {latent}]")));
    }
    match z.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::file(path, format!("`z` holds {} in point {}", z[i], i / latent + 1))),
        None => Ok(z),
    }
}

/// Threads of this machine.
#[cfg(feature = "openmm")]
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(all(test, feature = "openmm"))]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_that_is_given_is_not_replaced() {
        let of = |temperature| ExploreOptions { temperature, ..ExploreOptions::default() };
        for given in [None, Some(400.0)] {
            assert_eq!(explore_at(&of(given), "--temperature", 400.0).unwrap().kelvin(), 400.0);
        }
        let message = explore_at(&of(Some(300.0)), "--temperature", 400.0).unwrap_err().to_string();
        assert!(message.contains("300 K, and --temperature is 400 K"), "{message}");
        let config: ExploreOptions = serde_json::from_str(r#"{"temperature": 300}"#).unwrap();
        assert_eq!(config.temperature, Some(300.0));
    }
}
