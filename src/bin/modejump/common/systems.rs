//! Energies of OpenMM Systems.

use super::PlatformFlag;
use modejump::coordinates::cell::{are_alike, Cell};
use modejump::coordinates::constraints::kept_bonds;
use modejump::coordinates::superpose::random_rotation;
use modejump::coordinates::vector::shift;
use modejump::coordinates::Topology;
use modejump::density::{Scope, Status};
use modejump::engines::openmm::{OpenMmTarget, System};
use modejump::io::trajectory::read_box;
use modejump::models::steering::dimension_without_auxiliary;
use modejump::models::Model;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::train::ExploreOptions;
use modejump::{Error, Result};
use std::path::Path;
use std::sync::Once;

/// Options `explore` of a configuration, at a temperature (K) that is given elsewhere, by `giver`, such as a
/// command-line option. Errors: the configuration has a different one.
pub fn explore_at(options: &ExploreOptions, giver: &str, temperature: f64) -> Result<ExploreOptions> {
    match options.temperature.filter(|given| *given != temperature) {
        None => Ok(ExploreOptions { temperature: Some(temperature), ..options.clone() }),
        Some(given) => Err(Error::invalid(format!(
            "`explore` has temperature {given} K, but {giver} is {temperature} K: remove it from the configuration"
        ))),
    }
}

/// Reads an OpenMM System and leaves out the moves that were added to it, with a message.
pub fn read_system(path: &Path) -> Result<System> {
    static TOLD: Once = Once::new();
    let system = System::from_xml_file(path)?;
    if system.moves_left_out() > 0 {
        TOLD.call_once(|| {
            eprintln!(
                "modejump: {} contains a MonteCarloModeJump, which is ignored: moves are set by command-line options",
                path.display()
            );
        });
    }
    Ok(system)
}

/// Warns if the box of a periodic System differs by more than one part in a thousand from that of the topology, if that
/// has one. Errors: the topology cannot be read.
pub fn warn_of_box(topology: &Path, path: &Path, system: &System) -> Result<()> {
    const TOLERANCE: f64 = 1e-3;
    // a force that does not report whether it is periodic is no reason not to run
    let of_system = system.box_vectors().ok().flatten();
    if let (Some(given), Some(used)) = (read_box(topology)?, of_system) {
        if !are_alike(&given, &used, TOLERANCE) {
            let [given, used] = [given, used].map(|vectors| Cell::new(&vectors));
            let [topology, path] = [topology, path].map(Path::display);
            eprintln!("modejump: {topology} has a box of {given}, but {path} has one of {used}: the box of the System is used");
        }
    }
    Ok(())
}

/// Target with the energies, on all threads, of an OpenMM System read from this file. Errors: also if the number of
/// particles differs from the number of the model's atoms, or masses do not match the atoms, if these are known.
pub fn target(
    path: &Path,
    system: &System,
    dimension: usize,
    atoms: Option<&Topology>,
    temperature: f64,
) -> Result<OpenMmTarget> {
    if 3 * system.n_particles() != dimension {
        let message = match dimension % 3 {
            0 => format!("has {} particles, but the model has {} atoms", system.n_particles(), dimension / 3),
            _ => format!("has {} particles, but the model has {dimension} coordinates", system.n_particles()),
        };
        return Err(Error::file(path, message));
    }
    if let Some(atoms) = atoms {
        require_atoms(path, system, atoms)?;
    }
    OpenMmTarget::new(system, temperature, threads())
}

/// Target for the samples of a model, read from a System file, with the bonds that are constrained.
pub fn target_of(path: &Path, model: &dyn Model, temperature: f64, on: &PlatformFlag) -> Result<OpenMmTarget> {
    let dimension = dimension_without_auxiliary(model);
    let system = on.read_system(path)?;
    target(path, &system, dimension, model.card().topology.as_ref(), temperature)?.with_constraints(&system, model)
}

/// Errors: the energies depend on the position, or, if the model's density describes only shapes or is `averaged` over
/// orientations, on the orientation ([`require_same_elsewhere`]).
pub fn require_described(path: &Path, target: &mut OpenMmTarget, model: &dyn Model, averaged: bool) -> Result<()> {
    let turned = match model.scope() {
        Scope::Full => return Ok(()),
        Scope::Shape { .. } => true,
        Scope::Centred | Scope::Noisy { .. } => averaged,
    };
    require_same_elsewhere(path, target, &a_few_samples(model)?, turned)
}

const A_FEW: usize = 4;

/// Coordinates `x[n][atoms][3]` (nm) of a few samples.
fn a_few_samples(model: &dyn Model) -> Result<Vec<f64>> {
    let (d, atoms) = (model.dimension(), dimension_without_auxiliary(model));
    let (mut x, mut status) = (vec![0.0; A_FEW * d], vec![Status::NonFinite; A_FEW]);
    model.sample_only(&|row| Stream::new(1, StreamId::Proposal, row as u64, 0), &mut x, &mut status)?;
    let samples = x.chunks_exact(d).zip(status).filter(|(_, status)| *status == Status::Inside);
    Ok(samples.flat_map(|(x, _)| &x[..atoms]).copied().collect())
}

/// Checks that u is invariant under shifts, and under rotations if `turned`: weights compare e^{−u} with a density that
/// describes a configuration except for its position, and perhaps its orientation, and are correct only if u does not
/// depend on these either.
///
/// Errors: u of `x[n][atoms][3]` (nm) changes when they are shifted, or rotated.
fn require_same_elsewhere(path: &Path, target: &mut OpenMmTarget, x: &[f64], turned: bool) -> Result<()> {
    // absolute, in kT, and relative to the energy, for single-precision rounding and the meshes of lattice sums
    const TOLERANCE: f64 = 0.05;
    const RELATIVE: f64 = 1e-4;
    let d = target.dimension();
    let mut elsewhere = x.to_vec();
    for (row, x) in elsewhere.chunks_exact_mut(d).enumerate() {
        let mut stream = Stream::new(1, StreamId::Orientation, row as u64, 0);
        if turned {
            random_rotation(x, &mut stream);
        }
        let by: [f64; 3] = std::array::from_fn(|_| stream.normal());
        shift(x, by);
    }
    let n = x.len() / d;
    let (mut here, mut there) = (vec![0.0; n], vec![0.0; n]);
    target.reduced_potential(x, &mut here)?;
    target.reduced_potential(&elsewhere, &mut there)?;
    let differs = |(a, b): &(&f64, &f64)| a.is_finite() && (*a - *b).abs() > TOLERANCE + RELATIVE * a.abs();
    match here.iter().zip(&there).find(differs) {
        None => Ok(()),
        Some((here, there)) => {
            let moved = if turned { "shifted and rotated" } else { "shifted" };
            Err(Error::file(
                path,
                format!(
                    "the energies depend on the position or orientation of the molecule (external force, field or small box): {here:.3} kT for a \
                     sample, {there:.3} kT after it is {moved}. The density does not describe these, so weights would be wrong; \
                     jumps in `modejump md` keep the molecule in place, and are correct"
                ),
            ))
        }
    }
}

/// Target for samples `x[n][atoms][3]` (nm) of an unknown model, which is assumed to keep the bonds that they keep.
/// Errors name a bond that the System constrains and the samples vary, or the reverse.
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
    let mut target = target.with_kept_bonds(system, &kept, &|atom| topology.label(atom))?;
    if let Err(error) = require_same_elsewhere(path, &mut target, &x[..x.len().min(A_FEW * dimension)], true) {
        eprintln!(
            "modejump: {error} (this does not apply if the samples' density includes positions and orientations)"
        );
    }
    Ok(target)
}

/// Errors: the System of a file has other atoms, or has them in another order.
pub fn require_atoms(path: &Path, system: &System, atoms: &Topology) -> Result<()> {
    atoms.require_system(&system.masses(), &system.bonds()?).map_err(|e| Error::file(path, e.to_string()))
}

/// Number of threads of this machine.
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
        assert!(message.contains("300 K, but --temperature is 400 K"), "{message}");
        let config: ExploreOptions = serde_json::from_str(r#"{"temperature": 300}"#).unwrap();
        assert_eq!(config.temperature, Some(300.0));
    }
}
