//! Frames to train on: those of `--frames`, or made by molecular dynamics with `--system`.

use super::settings::Config;
use super::Train;
use crate::common::{array, read_frames};
use modejump::coordinates::chirality::{stereocentres, Stereocentre};
use modejump::coordinates::Topology;
use modejump::io::trajectory;
use modejump::{Error, Result};
use std::path::{Path, PathBuf};
#[cfg(feature = "openmm")]
use {
    crate::common::{explore_at, hash_of, interrupted, threads, Progress},
    crate::dynamics::Kept,
    modejump::engines::openmm::System,
    modejump::io::checkpoint::{self, Identity, Kind},
    modejump::io::{model_file, write_atomically},
    modejump::train::dynamics::{Exploration, ExplorationState},
    modejump::train::hot::ExploreOptions,
    serde::{Deserialize, Serialize},
    serde_json::Value,
    std::collections::{BTreeMap, HashMap},
};

/// In the metadata of frames that were generated: of which System, and how.
#[cfg(feature = "openmm")]
const ORIGIN: &str = "origin";
/// Frames that are not all there yet, and where their dynamics is.
#[cfg(feature = "openmm")]
#[derive(Serialize, Deserialize)]
struct Begun {
    walkers: ExplorationState,
    /// Of each frame, nm.
    x: Vec<f64>,
}
#[cfg(feature = "openmm")]
const BEGUN: Kind = Kind { magic: *b"MJ-FRAME", version: 3 };

impl Train {
    /// log q of the n frames, of which a share is held out, from their files; NaN where it is not known: frames drawn
    /// anew have another.
    pub(super) fn log_densities(&self, n: usize, held_out: f64) -> Result<Vec<f64>> {
        if self.frames.is_empty() || self.resample.is_some() {
            return Ok(vec![f64::NAN; n]);
        }
        let files = self.frames.iter().map(|path| read_log_densities(path)).collect::<Result<Vec<_>>>()?;
        Ok(held_out_first(files, 1, held_out))
    }

    /// Frames of files, of which a share is held out. Errors: files of other atoms, or in other units.
    pub(super) fn frames_of(&self, files: &[PathBuf], topology: &Topology, held_out: f64) -> Result<Vec<f64>> {
        let dimension = 3 * topology.n_atoms();
        let read = |path: &PathBuf| {
            let x = read_frames(std::slice::from_ref(path), topology)?;
            if x.is_empty() {
                return Err(Error::file(path, "has no frames"));
            }
            if array(path, "log_weight", x.len() / dimension)?.is_some() {
                eprintln!(
                    "note: {}: all frames count alike, whatever their `log_weight`, which --resample looks at",
                    path.display()
                );
            }
            Ok(x)
        };
        let files = files.iter().map(read).collect::<Result<Vec<_>>>()?;
        Ok(held_out_first(files, dimension, held_out))
    }
}

/// Says how many frames have a stereocentre of another hand than the PDB file. Errors: most of them, which a model with
/// the hands of that file would exclude, and another one would learn as if they were meant.
pub(super) fn require_hands(path: &Path, topology: &Topology, x0: &[f64], frames: &[f64]) -> Result<()> {
    let (centres, n) = (stereocentres(topology, x0), frames.len() / x0.len());
    let of_another_hand = |centre: &Stereocentre| frames.chunks_exact(x0.len()).filter(|x| !centre.holds(x)).count();
    let counted = centres.iter().map(|centre| (of_another_hand(centre), topology.label(centre.centre)));
    let Some((most, label)) = counted.max_by_key(|(count, _)| *count).filter(|(count, _)| *count > 0) else {
        return Ok(());
    };
    let what = format!("in {most} of {n} frames {label} is of the other hand than in {}", path.display());
    match 2 * most > n {
        true => Err(Error::invalid(format!(
            "{what}: give the topology with a configuration of the frames' own hand, or other frames"
        ))),
        false => {
            eprintln!("note: {what}");
            Ok(())
        }
    }
}

/// The rows of `width` numbers of all files, a share of each file first: what is held out are the first rows of all, and
/// a small file would be held out whole, of which nothing is learned then.
pub(super) fn held_out_first(files: Vec<Vec<f64>>, width: usize, share: f64) -> Vec<f64> {
    let (mut rows, mut held_out) = (0, 0);
    let (mut first, mut rest) = (Vec::new(), Vec::new());
    for values in files {
        rows += values.len() / width;
        let more = ((rows as f64 * share) as usize) - held_out;
        held_out += more;
        let (these, others) = values.split_at(more * width);
        first.extend_from_slice(these);
        rest.extend_from_slice(others);
    }
    [first, rest].concat()
}

#[cfg(feature = "openmm")]
impl Train {
    /// Errors: neither files nor a System; files of other atoms, or in other units; kept frames of another origin.
    pub(super) fn frames(&self, config: &Config, topology: &Topology, x0: &[f64]) -> Result<Vec<f64>> {
        if !self.frames.is_empty() {
            return self.frames_of(&self.frames, topology, config.held_out(self.model));
        }
        let (Some(system), Some(file)) = (self.open_system()?, &self.system) else {
            return Err(Error::invalid("give --frames, or --system to generate them"));
        };
        let giver = if self.map_from.is_some() { "that of --map-from" } else { "--temperature" };
        let options = explore_at(&config.explore, giver, self.kelvin_of_frames()?)?;
        let explored = serde_json::to_string(&options).map_err(|e| Error::invalid(format!("the settings: {e}")))?;
        let origin = format!("{} {explored} {}", hash_of(file)?, self.platform.platform);
        let keep = self.kept_frames();
        if let Some(kept) = keep.as_ref().filter(|path| self.checkpoint.is_some() && path.exists()) {
            eprintln!("frames of {}", kept.display());
            require_origin(kept, &origin)?;
            return read_frames(std::slice::from_ref(kept), topology);
        }
        let frames = self.generate(&system, x0, &options, &origin)?;
        if let Some(path) = keep {
            keep_frames(&path, &frames, x0.len(), origin)?;
            // nothing is lost where it cannot be removed
            self.begun_frames().iter().for_each(|begun| _ = std::fs::remove_file(begun));
        }
        Ok(frames)
    }
}

#[cfg(not(feature = "openmm"))]
impl Train {
    pub(super) fn frames(&self, config: &Config, topology: &Topology, _: &[f64]) -> Result<Vec<f64>> {
        match self.frames.is_empty() {
            true => Err(Error::invalid("give --frames")),
            false => self.frames_of(&self.frames, topology, config.held_out(self.model)),
        }
    }
}

#[cfg(feature = "openmm")]
impl Train {
    /// Frames of molecular dynamics from `x0[atoms][3]`, nm, with a bar, or lines where none is shown. With --checkpoint
    /// those that there are are kept on the way.
    fn generate(&self, system: &System, x0: &[f64], options: &ExploreOptions, origin: &str) -> Result<Vec<f64>> {
        options.check()?;
        let n = options.frames;
        if n == 0 {
            return Err(Error::invalid("`explore` has `frames` = 0: there would be nothing to train on"));
        }
        let steps = match options.steps() {
            few @ ..1_000_000 => few.to_string(),
            many => format!("{:.1} million", many as f64 / 1e6),
        };
        eprintln!("{n} frames: {steps} steps of molecular dynamics");
        let mut exploration = Exploration::new(system, x0, options, threads())?;
        let (begun, origin) = (self.begun_frames(), &identity(origin)?);
        let mut frames = match &begun {
            Some(path) => go_on(path, origin, &mut exploration)?,
            None => Vec::new(),
        };
        let keep = |frames: &[f64], exploration: &mut Exploration| match &begun {
            Some(path) => {
                let begun = Begun { walkers: exploration.state()?, x: frames.to_vec() };
                checkpoint::save_run(path, BEGUN, origin, &begun)
            }
            None => Ok(()),
        };
        let mut kept = Kept::of(begun.as_slice());
        let mut progress = Progress::new(n as u64, "frames");
        while frames.len() < n * x0.len() {
            frames.extend(exploration.segment()?);
            let done = frames.len() / x0.len();
            progress.show(done.min(n) as u64, String::new());
            if interrupted() && done < n {
                keep(&frames, &mut exploration)?;
                return Err(Error::invalid(format!(
                    "interrupted after {done} of {n} frames; the same command goes on from there"
                )));
            }
            kept.when_due(|| keep(&frames, &mut exploration));
        }
        progress.end();
        frames.truncate(n * x0.len());
        let failed = frames.chunks_exact(x0.len()).filter(|x| x.iter().any(|v| !v.is_finite())).count();
        match 2 * failed > n {
            false => Ok(frames),
            true => Err(Error::invalid(format!(
                "{failed} of {n} frames are not finite: the dynamics failed; take a smaller `explore.timestep`, {} ps now",
                options.timestep
            ))),
        }
    }
}

/// The frames that were begun with, if any were. Errors: those of another System or other settings.
#[cfg(feature = "openmm")]
fn go_on(path: &Path, origin: &Identity, exploration: &mut Exploration) -> Result<Vec<f64>> {
    let Some(Begun { walkers, x }) = checkpoint::load_run(path, BEGUN, origin)? else { return Ok(Vec::new()) };
    exploration.go_on_from(walkers)?;
    eprintln!("going on with the frames of {}", path.display());
    Ok(x)
}

/// Writes frames `x[n][dimension]` in double precision, so that a training sees the same bits with and without them.
#[cfg(feature = "openmm")]
fn keep_frames(path: &Path, x: &[f64], dimension: usize, origin: String) -> Result<()> {
    let shape = vec![x.len() / dimension, dimension / 3, 3];
    let tensors = BTreeMap::from([("x".to_string(), (shape, model_file::Data::F64(x.to_vec())))]);
    let metadata = HashMap::from([(ORIGIN.to_string(), origin)]);
    write_atomically(path, &model_file::write_tensors(&tensors, metadata)?)
}

#[cfg(feature = "openmm")]
fn require_origin(path: &Path, origin: &str) -> Result<()> {
    let (_, metadata) = model_file::open_tensors(path)?;
    let kept = metadata.get(ORIGIN).map_or("", String::as_str);
    let reason = match identity(origin)?.difference(&identity(kept)?) {
        None => return Ok(()),
        Some(_) if kept.is_empty() => "has frames of an origin that it does not tell".into(),
        Some(difference) => format!("has the frames of other settings (here it is {difference})"),
    };
    Err(Error::file(
        path,
        format!(
            "{reason}: give those it began with, or remove it and the checkpoint beside it to begin anew (or give it as --frames, to train on \
             it all the same)"
        ),
    ))
}

/// The System's hash, the settings of `explore` and the platform, as they stand in an origin with spaces between.
#[cfg(feature = "openmm")]
fn identity(origin: &str) -> Result<Identity> {
    let Some((system, rest)) = origin.split_once(' ') else { return Ok(Identity::default()) };
    let (settings, platform) = rest.rsplit_once(' ').unwrap_or((rest, ""));
    let settings: Value = serde_json::from_str(settings).unwrap_or_default();
    let run = Identity::default().with_content("file for --system", system).with("--platform", platform);
    run.with_settings("explore", &settings)
}

/// `log_density` [n] of a file of n frames; NaN where there is none, and for frames outside the density's support.
fn read_log_densities(path: &Path) -> Result<Vec<f64>> {
    let n = trajectory::read(path)?.n();
    let values = array(path, "log_density", n)?.unwrap_or(vec![f64::NAN; n]);
    Ok(values.into_iter().map(|v| if v.is_finite() { v } else { f64::NAN }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_each_file_is_held_out() {
        let file = |name: usize, n: usize| (0..n).flat_map(|i| [(100 * name + i) as f64; 2]).collect::<Vec<_>>();
        let rows = |sizes: &[usize], share: f64| {
            let files = sizes.iter().enumerate().map(|(name, &n)| file(name + 1, n)).collect();
            held_out_first(files, 2, share).chunks_exact(2).map(|row| row[0] as usize).collect::<Vec<_>>()
        };
        assert_eq!(rows(&[4, 8], 0.25), [100, 200, 201, 101, 102, 103, 202, 203, 204, 205, 206, 207]);
        assert_eq!(rows(&[3], 0.5), [100, 101, 102]);
        // as many in all as of one file, and each row once
        for (sizes, share) in [(&[1, 1, 1, 1, 30][..], 0.1), (&[7, 5, 9], 0.33), (&[5, 5], 0.0), (&[2, 3], 0.99)] {
            let (mut found, n) = (rows(sizes, share), sizes.iter().sum::<usize>());
            let held_out = (n as f64 * share) as usize;
            let of_file = |name: usize| found[..held_out].iter().filter(|&&row| row / 100 == name + 1).count();
            assert!(sizes
                .iter()
                .enumerate()
                .all(|(name, &m)| of_file(name).abs_diff((m as f64 * share) as usize) <= 1));
            found.sort_unstable();
            let all = sizes.iter().enumerate().flat_map(|(name, &m)| (0..m).map(move |i| 100 * (name + 1) + i));
            assert!(found.iter().copied().eq(all), "{found:?}");
        }
    }
}
