//! Models given on the command line: files, temperatures, warnings.

use super::flags::Type;
use super::{hash_of, PrecisionFlag};
#[cfg(feature = "openmm")]
use modejump::coordinates::Topology;
use modejump::models::{self, labels, Model, ModelCard, Precision, TargetInfo};
use modejump::{Error, Result};
use std::path::Path;
use std::sync::Arc;

pub fn load(path: &Path, precision: &PrecisionFlag) -> Result<Arc<dyn Model>> {
    let precision = match precision.precision {
        Type::F32 => Precision::F32,
        Type::F64 => Precision::F64,
        Type::Bf16 => Precision::Bf16,
    };
    models::load_with(path, precision)
}

/// Loads a model and takes it to a temperature (K), if one is given; the model must then be steerable.
pub fn load_at(path: &Path, precision: &PrecisionFlag, temperature: Option<f64>) -> Result<Arc<dyn Model>> {
    let model = load(path, precision)?;
    temperature.map_or(Ok(model.clone()), |kelvin| model.at_temperature(kelvin))
}

/// Loads a second model, which must describe the same atoms as the generator.
pub fn load_partner(path: &Path, precision: &PrecisionFlag, generator: &dyn Model) -> Result<Arc<dyn Model>> {
    let partner = load(path, precision)?;
    if partner.dimension() != generator.dimension() {
        let (a, b) = (partner.dimension(), generator.dimension());
        return Err(Error::file(path, format!("has {a} coordinates, but the generator has {b}")));
    }
    if let (Some(a), Some(b)) = (&partner.card().topology, &generator.card().topology) {
        if let Some(i) = (0..a.n_atoms().min(b.n_atoms())).find(|&i| a.elements[i] != b.elements[i]) {
            let reason = format!("found {} where the generator has {}", a.label(i), b.label(i));
            return Err(Error::file(path, reason));
        }
    }
    Ok(partner)
}

/// Warns if equivalent atoms of the configuration `x[atoms][3]` (nm) in a file are numbered differently from the
/// model's frames, or stereocentres are inverted: no jump from there would be accepted. Errors: those of the device.
pub fn warn_of_labels(path: &Path, model: &dyn Model, x: &[f64]) -> Result<()> {
    match labels::require_labels(model, x) {
        Err(error @ Error::Engine(_)) => return Err(error),
        Err(error) => eprintln!("modejump: {}: {error}", path.display()),
        Ok(()) => {}
    }
    Ok(())
}

/// The temperature asked for (K), else that of the model.
pub fn temperature(asked: Option<f64>, model: &dyn Model) -> Result<f64> {
    let temperature = asked.or(model.card().temperature);
    temperature.ok_or_else(|| Error::invalid("the model file has no temperature; pass --temperature"))
}

/// Warns if a model makes `moves` (jumps or exchanges) at a temperature `here` (K) other than its own; a steerable
/// model has none of its own.
pub fn warn_of_temperature(model: &dyn Model, here: f64, moves: &str) {
    if model.steering().is_some() {
        return;
    }
    if let Some(t) = model.card().temperature.filter(|t| (t - here).abs() > 0.5) {
        eprintln!("modejump: the model was trained for {t} K; {moves} at {here} K are accepted less often");
    }
}

/// Errors: the atoms of a file are in another order, or have other names, than in the model's card; if the numbers of
/// atoms differ, the two are not compared.
#[cfg(feature = "openmm")]
pub fn require_order(path: &Path, atoms: &Topology, model: &dyn Model) -> Result<()> {
    match &model.card().topology {
        Some(own) if own.n_atoms() == atoms.n_atoms() => {
            own.require_order(atoms, "model").map_err(|e| Error::file(path, e.to_string()))
        }
        _ => Ok(()),
    }
}

/// Adds to a card what it says of the training: temperature (K), System and command.
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
