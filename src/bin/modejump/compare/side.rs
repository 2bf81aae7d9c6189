//! One of the two samples: its frames, energies and weights, and what is observed of them.

use super::Compare;
use crate::common::{ancestors, array, importance, log_density, require_bonds, warn_of_torn_bonds, Torsions};
use modejump::coordinates::Topology;
use modejump::io::trajectory::{self, Frames};
use modejump::metrics::{self, Cloud, Features};
use modejump::tica::Tica;
use modejump::{weights, Error, Result};
use std::ops::Range;
use std::path::Path;

/// Fewest frames whose halves are worth comparing.
const FEWEST: usize = 8;

/// The frames of one file.
pub struct Side {
    pub name: String,
    pub x: Vec<f64>,
    pub n: usize,
    /// u of every frame, if known, and finite for every frame that has weight.
    pub u: Option<Vec<f64>>,
    /// Number of frames without finite u, if u is known.
    pub without_energy: Option<usize>,
    /// Log-weights as given by the file or the generator's density, −∞ for no weight; absent if all frames count
    /// equally.
    pub raw: Option<Vec<f64>>,
    /// Log-weights after the rule that was asked for.
    pub log_weight: Option<Vec<f64>>,
    /// Sample that each frame descends from, if resampling has duplicated some.
    pub ancestor: Option<Vec<usize>>,
    /// Whether the file has a generator's `log_density`.
    pub has_density: bool,
    /// Whether the frames alternate between several walkers, as shown by `walker` or `epoch` in the file.
    pub by_turns: bool,
    /// Temperature of the reduced potentials in the file, K, if it states one.
    pub temperature: Option<f64>,
}

impl Side {
    /// Reads one side. Errors, with the file's name: frames that are not of the topology, arrays of another length,
    /// NaN.
    pub fn read(path: &Path, topology: &Topology, compare: &Compare) -> Result<Side> {
        let named = |e: Error| Error::file(path, e.to_string());
        let mut frames = trajectory::read_of(path, topology, "topology")?;
        let n = frames.n();
        if n < FEWEST {
            return Err(Error::file(
                path,
                format!("{n} frames are too few to compare; at least {FEWEST} are required"),
            ));
        }
        let array = |name: &str| array(path, name, n);
        let (given, of_weights) = (array("reduced_potential")?, array("log_weight")?);
        let density = array("log_density")?;
        let has_density = density.is_some();
        let mut ancestor = ancestors(path, n)?;
        let by_turns = array("walker")?.or(array("epoch")?).is_some();
        let temperatures = array("temperature")?.unwrap_or_default();
        let [coldest, hottest] = [f64::min, f64::max].map(|of| temperatures.iter().copied().reduce(of));
        if let (Some(coldest), Some(hottest)) = (coldest, hottest.filter(|hottest| coldest != Some(*hottest))) {
            eprintln!("note: {}: frames at {coldest} to {hottest} K are compared as one sample", path.display());
        }
        let temperature = temperatures.first().copied();
        match has_density {
            true => warn_of_torn_bonds(path, &frames, topology, "topology"),
            false => require_bonds(path, &mut frames, topology, "topology")?,
        }
        let log_q = if compare.reweight { log_density(path, n)? } else { None };
        let by_system = log_q.as_ref().filter(|_| compare.system.is_some());
        let samples = by_system.map(|log_q| weighable(path, &frames, log_q)).transpose()?;
        let energies = compare.energies(&frames, topology, samples.as_ref()).map_err(|e| match e {
            Error::Unsupported(reason) if samples.is_some() => Error::file(path, reason),
            e => e,
        })?;
        let temperature = temperature.filter(|_| energies.is_none());
        let energies = energies.or(given.map(|u| [u, vec![0.0; n]]));
        let raw = match (log_q, &energies) {
            (Some(log_q), Some([u, log_metric])) => {
                let total: Vec<f64> = u.iter().zip(log_metric).map(|(u, log_metric)| u - log_metric).collect();
                Some(importance(&total, &log_q))
            }
            (Some(_), None) => {
                return Err(Error::file(path, "--reweight requires energies: use --system and --temperature"))
            }
            _ => of_weights.filter(|_| !compare.unweighted),
        };
        let log_weight = match &raw {
            Some(raw) => Some(compare.rule.rule().apply(raw).map_err(named)?.0),
            None => None,
        };
        let u = energies.map(|[u, _]| u);
        let without_energy = u.as_ref().map(|u| u.iter().filter(|u| !u.is_finite()).count());
        let has_weight = |i: usize| log_weight.as_ref().is_none_or(|w| w[i].is_finite());
        let is_known = |u: &Vec<f64>| (0..n).any(|i| u[i].is_finite() && has_weight(i));
        if u.as_ref().is_some_and(|u| !is_known(u)) {
            let weight = if log_weight.is_some() { " with nonzero weight" } else { "" };
            eprintln!(
                "modejump: no frame{weight} in {} has a finite energy: energies are not compared",
                path.display()
            );
        }
        let (mut x, mut u) = (frames.x, u.filter(is_known));
        let name = path.display().to_string();
        // samples that the model failed to make are excluded by weights; without weights such a sample would count as a
        // configuration
        let is_inside = |i: &usize| density.as_ref().is_none_or(|log_q| log_q[*i] != f64::NEG_INFINITY);
        let inside: Vec<usize> = (0..n).filter(|i| raw.is_some() || is_inside(i)).collect();
        if inside.len() < n {
            eprintln!(
                "note: {name}: {} of {n} frames are outside the support of their model and are ignored",
                n - inside.len()
            );
            x = inside.iter().flat_map(|&i| &x[i * frames.dimension..][..frames.dimension]).copied().collect();
            u = u.map(|u| inside.iter().map(|&i| u[i]).collect());
            ancestor = ancestor.map(|ancestor| inside.iter().map(|&i| ancestor[i]).collect());
        }
        Ok(Side {
            name,
            x,
            n: inside.len(),
            u,
            without_energy,
            raw,
            log_weight,
            ancestor,
            has_density,
            by_turns,
            temperature,
        })
    }
}

/// Samples of a generator that have a log q. Errors: too few of them to tell which bonds it keeps.
fn weighable(path: &Path, frames: &Frames, log_q: &[f64]) -> Result<Frames> {
    let rows = frames.x.chunks_exact(frames.dimension).zip(log_q).filter(|(_, q)| q.is_finite());
    let samples = Frames::new(frames.dimension, rows.flat_map(|(x, _)| x).copied().collect());
    match samples.n() {
        n if n < FEWEST => Err(Error::file(
            path,
            format!("{n} frames with a finite `log_density` are too few to reweight; at least {FEWEST} are required"),
        )),
        _ => Ok(samples),
    }
}

/// Quantities of the frames that are compared, with the same columns on both sides.
pub struct Observed {
    name: String,
    pub u: Option<Vec<f64>>,
    /// All torsions `[n][torsions]`, radian, as are the next two.
    pub torsions: Vec<f64>,
    /// Torsions that belong together, `[n][pairs][2]`.
    pub pairs: Vec<f64>,
    /// Torsions shown in figures, at most two.
    pub shown: Vec<f64>,
    /// Slow components `[n][2]`.
    pub components: Option<Vec<f64>>,
    /// Log-weights of all frames; zero if there are none.
    log_weights: Vec<f64>,
}

impl Observed {
    pub fn of(side: &Side, torsions: &Torsions, slow: Option<&(Features, Tica)>) -> Observed {
        let of = |atoms: &[[usize; 4]]| metrics::torsions(&side.x, torsions.n_atoms, atoms);
        Observed {
            name: side.name.clone(),
            u: side.u.clone(),
            torsions: of(&torsions.all),
            pairs: of(&torsions.pairs.concat()),
            shown: of(&torsions.shown),
            components: slow.map(|(features, tica)| tica.project(&features.of(&side.x))),
            log_weights: side.log_weight.clone().unwrap_or_else(|| vec![0.0; side.n]),
        }
    }

    pub fn n(&self) -> usize {
        self.log_weights.len()
    }

    /// Frames of a range, in their order.
    pub fn part(&self, range: Range<usize>) -> Observed {
        let rows = |x: &Vec<f64>| {
            let d = x.len() / self.n();
            x[d * range.start..d * range.end].to_vec()
        };
        Observed {
            name: self.name.clone(),
            u: self.u.as_ref().map(rows),
            torsions: rows(&self.torsions),
            pairs: rows(&self.pairs),
            shown: rows(&self.shown),
            components: self.components.as_ref().map(rows),
            log_weights: self.log_weights[range.clone()].to_vec(),
        }
    }

    /// Finite energies and their weights; none if no frame with weight has one.
    pub fn energies(&self) -> Result<Option<(Vec<f64>, Vec<f64>)>> {
        let both = self.u.iter().flatten().copied().zip(self.log_weights.iter().copied());
        let (u, log_w): (Vec<f64>, Vec<f64>) = both.filter(|(u, w)| u.is_finite() && w.is_finite()).unzip();
        match u.is_empty() {
            true => Ok(None),
            false => Ok(Some((u, weights::normalised(&log_w)?))),
        }
    }

    pub fn weights(&self) -> Result<Vec<f64>> {
        weights::normalised(&self.log_weights)
    }

    /// Weighted rows of columns that belong together. Errors: a value that is not finite.
    pub fn cloud<'a>(&self, rows: &'a [f64], weights: &'a [f64]) -> Result<Cloud<'a>> {
        let d = rows.len() / self.n();
        if let Some(i) = rows.iter().position(|v| !v.is_finite()) {
            let reason =
                format!("frame {} has undefined torsions or distances: atoms coincide or are not finite", i / d + 1);
            return Err(Error::file(&self.name, reason));
        }
        Cloud::new(rows, d, weights)
    }
}
