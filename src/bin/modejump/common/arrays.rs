//! Frames and other arrays read from files, and per-frame numbers.

use modejump::coordinates::Topology;
use modejump::density::Evaluation;
use modejump::io::model_file;
use modejump::io::trajectory::{self, Format, Frames};
use modejump::{Error, Result};
use std::path::{Path, PathBuf};

/// Array of this name in a safetensors file, with one number for each of its n frames, if the file has one.
///
/// Errors: the array has another length.
pub fn array(path: &Path, name: &str, n: usize) -> Result<Option<Vec<f64>>> {
    if !Format::Safetensors.is_of(path) {
        return Ok(None);
    }
    let (mut tensors, _) = model_file::open_tensors(path)?;
    match tensors.remove(name).map(|tensor| tensor.data) {
        Some(data) if data.len() != n => {
            Err(Error::file(path, format!("`{name}` has {} values for {n} frames", data.len())))
        }
        data => Ok(data),
    }
}

/// Frames `x[n][atoms][3]`, nm, of all files, concatenated. Errors: other atoms, another unit, or molecules that are
/// not whole.
pub fn read_frames(paths: &[PathBuf], topology: &Topology) -> Result<Vec<f64>> {
    let read = |path: &PathBuf| {
        let mut frames = trajectory::read_of(path, topology, "topology")?;
        trajectory::require_nanometres(path, &frames, topology)?;
        require_bonds(path, &mut frames, topology, "topology")?;
        Ok(frames.x)
    };
    Ok(paths.iter().map(read).collect::<Result<Vec<_>>>()?.concat())
}

/// Index of the sample that each of the n particles of `smc` descends from, if the file has it.
pub fn ancestors(path: &Path, n: usize) -> Result<Option<Vec<usize>>> {
    Ok(array(path, "ancestor", n)?.map(|of| of.into_iter().map(|sample| sample as usize).collect()))
}

/// Makes molecules whole and says so. Other defects of frames without names or units show as bonds of impossible
/// lengths; `whose` says what `atoms` are the list of. Errors: most of the frames have such bonds, or hardly a bond.
pub fn require_bonds(path: &Path, frames: &mut Frames, atoms: &Topology, whose: &str) -> Result<()> {
    let made = trajectory::make_whole(frames, atoms);
    if made > 0 {
        let (path, n) = (path.display(), frames.n());
        eprintln!(
            "modejump: {path}: the molecule is split across the periodic box in {made} of {n} frames: it was made whole along its bonds"
        );
    }
    match trajectory::torn_frames(frames, atoms, whose) {
        Some(torn) if torn.are_most => {
            let reason = format!(
                "{torn}; check that coordinates are in nm, not Angstrom, that the atoms are in the right order, and that the molecule is whole"
            );
            return Err(Error::file(path, reason));
        }
        Some(torn) => {
            eprintln!("modejump: {}: {torn}; check that the molecule is whole in these frames", path.display());
        }
        None => {}
    }
    trajectory::require_bonded(path, frames, atoms, whose)
}

/// Warns of impossible bond lengths in samples of a model, whose unit and atom order are known: a poor model is no
/// reason to refuse them.
pub fn warn_of_torn_bonds(path: &Path, samples: &Frames, atoms: &Topology, whose: &str) {
    if let Some(torn) = trajectory::torn_frames(samples, atoms, whose) {
        eprintln!(
            "modejump: {}: {torn}; these samples are from a poor model, or from a model of other atoms",
            path.display()
        );
    }
}

/// Latent points `[n][latent]`: tensor `z` of a safetensors file, or an npy array. Errors: another shape, or numbers
/// that are not finite.
pub fn read_latent(path: &Path, latent: usize) -> Result<Vec<f64>> {
    let (shape, z) = if Format::Npy.is_of(path) {
        let z = trajectory::read(path)?;
        (vec![z.n(), z.dimension], z.x)
    } else {
        let (mut tensors, _) = model_file::open_tensors(path)?;
        let z = tensors.remove("z").ok_or_else(|| Error::file(path, "tensor `z` is missing"))?;
        (z.shape, z.data)
    };
    if !matches!(shape[..], [_, width] if width == latent) {
        return Err(Error::file(path, format!("`z` has shape {shape:?}, expected [n, {latent}]")));
    }
    match z.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::file(path, format!("`z` contains {} in point {}", z[i], i / latent + 1))),
        None => Ok(z),
    }
}

/// Array `log_density` of samples to be weighted, −∞ for one outside the support. Errors: NaN, which is not the
/// logarithm of a density; another length.
pub fn log_density(path: &Path, n: usize) -> Result<Option<Vec<f64>>> {
    let given = array(path, "log_density", n)?;
    match given.as_ref().and_then(|values| values.iter().position(|v| v.is_nan())) {
        None => Ok(given),
        Some(row) => Err(Error::file(
            path,
            format!(
                "`log_density` is NaN in row {row}: the file is corrupt or from a failed computation; write it again"
            ),
        )),
    }
}

/// Log-weights log w = −u − log q; −∞ where either is not finite.
pub fn importance(u: &[f64], log_q: &[f64]) -> Vec<f64> {
    let weight = |(u, q): (&f64, &f64)| match -u - q {
        w if w.is_finite() => w,
        _ => f64::NEG_INFINITY,
    };
    u.iter().zip(log_q).map(weight).collect()
}

pub fn evaluations(n: usize) -> Vec<Evaluation> {
    vec![Evaluation::inside(0.0); n]
}

/// log q of each row, and the number of rows outside the support.
pub fn split(log_density: &[Evaluation]) -> (Vec<f64>, usize) {
    let values = log_density.iter().map(|e| e.log_density).collect();
    (values, log_density.iter().filter(|e| !e.is_inside()).count())
}
