//! Resampling of frames by their weights, for models that learn the target from samples of their own: self-refinement
//! (Tan et al. 2025, "Amortized Sampling with Transferable Normalizing Flows").

use super::frames::held_out_first;
use super::Train;
use crate::common::{ancestors, array, importance, log_density, read_frames, CLIPPED_SHARE};
use modejump::coordinates::Topology;
use modejump::rng::{Stream, StreamId};
use modejump::weights::{self, Resampling};
use modejump::{Error, Result};
use std::path::{Path, PathBuf};

impl Train {
    /// Frames of each file, resampled to the same number in proportion to their weights by the rule of --resample, or
    /// unchanged without it; a share of each is held out. Peptide 0 is that of --topology.
    ///
    /// Errors: no files; files without weights, or with none above zero.
    pub(super) fn resampled(
        &self,
        files: &[PathBuf],
        topology: &Topology,
        peptide: u32,
        held_out: f64,
    ) -> Result<Vec<f64>> {
        let Some(weights) = self.resample else { return self.frames_of(files, topology, held_out) };
        let rule = weights.rule(CLIPPED_SHARE);
        if files.is_empty() {
            return Err(Error::invalid(
                "--resample requires frames of every peptide: use weighted samples, such as those of `smc -o`",
            ));
        }
        let dimension = 3 * topology.n_atoms();
        let mut resampled = Vec::new();
        for (number, path) in files.iter().enumerate() {
            let x = read_frames(std::slice::from_ref(path), topology)?;
            let n = x.len() / dimension;
            let named = |e: Error| Error::file(path, e.to_string());
            let log_weights = self.log_weights(path, &x, topology, peptide)?;
            let (ruled, _) = rule.apply(&log_weights).map_err(named)?;
            let mut stream = Stream::new(1, StreamId::Resample, number as u64, peptide);
            let mut drawn = weights::resample(&ruled, n, Resampling::Systematic, &mut stream).map_err(named)?;
            let frames = drawn.iter().flat_map(|&row| &x[row * dimension..][..dimension]).copied();
            resampled.push(frames.collect::<Vec<f64>>());
            let ess = weights::effective_sample_size(&log_weights).map_err(named)?;
            drawn.dedup();
            eprintln!(
                "{}: {} of {n} frames kept by resampling, ESS {ess:.0} (raw weights)",
                path.display(),
                drawn.len()
            );
            let ancestor = ancestors(path, n)?.unwrap_or_else(|| (0..n).collect());
            warn_of_few(path, n, weights::effective_families(&ruled, &ancestor));
        }
        Ok(held_out_first(resampled, dimension, held_out))
    }

    /// Log-weights of a file: its `log_weight`, or those from `log_density` and the energies of --system, which is that
    /// of peptide 0.
    fn log_weights(&self, path: &Path, x: &[f64], topology: &Topology, peptide: u32) -> Result<Vec<f64>> {
        let n = x.len() / (3 * topology.n_atoms());
        if let Some(given) = array(path, "log_weight", n)? {
            return Ok(given);
        }
        let Some(log_q) = log_density(path, n)? else {
            return Err(Error::file(
                path,
                "has neither `log_weight`, as written by `modejump smc`, nor `log_density`, as written by `modejump sample`: remove --resample",
            ));
        };
        if peptide > 0 {
            let reason = "weights from `log_density` require energies, but --system is for the peptide of --topology: use a file with \
                          `log_weight`, as written by `modejump smc`";
            return Err(Error::file(path, reason));
        }
        let u = self.energies_of_samples(x, topology).map_err(|e| Error::file(path, e.to_string()))?;
        let u = u.ok_or_else(|| {
            Error::file(path, "the weights exp(-u)/q require energies: use --system and --temperature")
        })?;
        Ok(importance(&u, &log_q))
    }
}

/// Share of independent frames below which resampled frames are mostly copies of each other.
const FEW: f64 = 0.02;

/// Warns if the resampled frames come from few frames: a model memorises those, and held-out copies cannot show it.
fn warn_of_few(path: &Path, n: usize, independent: f64) {
    if independent < (FEW * n as f64).max(weights::FEWEST_FOR_ERRORS as f64) {
        eprintln!(
            "warning: {}: the resampled frames are equivalent to only {independent:.1} independent frames of {n}: the model will memorise them, and held-out \
             frames, copies of the same, will not show it; use samples with better weights, such as those of `smc` with more particles",
            path.display()
        );
    }
}
