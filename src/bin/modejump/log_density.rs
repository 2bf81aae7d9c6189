//! `modejump log-density`

use super::common::{
    array, evaluations, load_at, read_latent, require_bonds, split, warn_of_labels, warn_of_torn_bonds, PrecisionFlag,
};
use super::sample::report;
use clap::Args;
use modejump::coordinates::vector::{atom, centre, centroid, dot, shift, Vec3};
use modejump::coordinates::Topology;
use modejump::density::Scope;
use modejump::io::model_file::{write_tensors, Data};
use modejump::io::trajectory::{self, Frames};
use modejump::io::{check_apart, check_writable};
use modejump::models::{kept_bonds, Model, ModelCard, Steering};
use modejump::rng::{Stream, StreamId};
use modejump::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct LogDensity {
    /// Model file
    model: PathBuf,
    /// Configurations: pdb, gro, dcd, xtc, trr, npy or safetensors (`x` [frame][atom][3], nm)
    #[arg(required_unless_present = "z")]
    frames: Option<PathBuf>,
    /// PDB file with the atoms of the frames in their order; if this differs from the model's order, the atoms are
    /// reordered by name. Without it the frames are assumed to be in the model's order, which cannot be checked for
    /// formats without names
    #[arg(long, conflicts_with = "z")]
    topology: Option<PathBuf>,
    /// Latent points (`z` [n][latent]) instead of configurations
    #[arg(long, conflicts_with = "frames")]
    z: Option<PathBuf>,
    /// Temperature, K, to which a steerable model is steered [default: that of its training]
    #[arg(long)]
    temperature: Option<f64>,
    /// Seed of the auxiliary coordinates that some steerable models have beside x: they are drawn, and log q is the
    /// joint log-density minus that of these alone. Also seed of the centroids that TarFlows are trained on with noise:
    /// if those of the frames are not distributed like this noise (all at the origin, or elsewhere), all frames are
    /// centred and get centroids drawn from it, as in moves, which leaves the ensemble unchanged
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// For a TarFlow: take the centroids of all frames as they are, for example to compare log q with that of another
    /// program
    #[arg(long, conflicts_with = "z")]
    keep_centroids: bool,
    /// safetensors with `log_density` [n] (−inf outside the support) and, for flows, `z` and `log_det` (of z → x);
    /// without it only the summary is printed
    #[arg(short, long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl LogDensity {
    pub fn run(self) -> Result<()> {
        if let Some(output) = &self.output {
            trajectory::require_tensors(output, "log-densities")?;
            check_apart(output, [&self.model].into_iter().chain(&self.frames).chain(&self.z).chain(&self.topology))?;
            check_writable(output)?;
        }
        let model = load_at(&self.model, &self.precision, self.temperature)?;
        let dimension = model.dimension();
        let steering = model.steering().unwrap_or(Steering::NONE);
        let mut arrays: BTreeMap<String, (Vec<usize>, Data)> = BTreeMap::new();
        let flow = model.flow();
        let (frames, mut log_density) = if let Some(path) = &self.z {
            let flow = flow
                .ok_or_else(|| Error::invalid("this model has no latent space; pass configurations instead of --z"))?;
            let z = read_latent(path, flow.latent_dimension())?;
            let n = z.len() / flow.latent_dimension();
            let (mut x, mut log_det, mut log_density) = (vec![0.0; n * dimension], vec![0.0; n], evaluations(n));
            flow.generate(&z, &mut x, &mut log_det, &mut log_density)?;
            arrays.insert("x".into(), (vec![n, dimension], Data::F64(x.clone())));
            arrays.insert("log_det".into(), (vec![n], Data::F64(log_det)));
            (Frames::new(dimension, x), log_density)
        } else {
            let path = self.frames.as_ref().ok_or_else(|| Error::invalid("FRAMES or --z is required"))?;
            let centroids = if self.keep_centroids { Centroids::AsTheyAre } else { Centroids::Noise };
            let frames = as_of_model(path, self.topology.as_deref(), model.as_ref(), (self.seed, centroids))?;
            if let Err(error) = kept_bonds::require_in_frames(model.as_ref(), &frames.x, dimension) {
                eprintln!("modejump: {}: {error}", path.display());
            }
            let n = frames.n();
            let mut log_density = evaluations(n);
            match flow {
                Some(flow) => {
                    let d = flow.latent_dimension();
                    let (mut z, mut log_det) = (vec![0.0; n * d], vec![0.0; n]);
                    flow.encode(&frames.x, &mut z, &mut log_det, &mut log_density)?;
                    arrays.insert("z".into(), (vec![n, d], Data::F64(z)));
                    arrays.insert("log_det".into(), (vec![n], Data::F64(log_det)));
                }
                None => model.log_density(&frames.x, &mut log_density)?,
            }
            (frames, log_density)
        };
        steering.take_apart(&frames.x, dimension - steering.auxiliary, &mut log_density);
        let (values, outside) = split(&log_density);
        arrays.insert("log_density".into(), (vec![values.len()], Data::F64(values)));
        if let Some(output) = &self.output {
            modejump::io::write_atomically(output, &write_tensors(&arrays, Default::default())?)?;
        }
        report(self.json, self.output.as_deref(), &frames, &log_density, outside);
        Ok(())
    }
}

/// Treatment of the centroids of frames, for a model that sees noise there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Centroids {
    AsTheyAre,
    /// Drawn anew if they are not distributed like this noise.
    Noise,
}

/// Frames of a file as a model's density takes them: in the order of its atoms (reordered from that of `topology`, if
/// given), with auxiliary coordinates, and with centroids for a model that sees noise there.
pub fn as_of_model(
    path: &Path,
    topology: Option<&Path>,
    model: &dyn Model,
    (seed, centroids): (u64, Centroids),
) -> Result<Frames> {
    let steering = model.steering().unwrap_or(Steering::NONE);
    let of_x = model.dimension() - steering.auxiliary;
    let mut frames = read(path, topology, model.card())?.require(path, of_x)?;
    if let (Scope::Noisy { sigma }, Centroids::Noise) = (model.scope(), centroids) {
        // samples of a model have a log q, to which their centroids belong
        let own = array(path, "log_density", frames.n())?.is_some();
        draw_centroids(&mut frames, sigma, seed, own);
    }
    restore_bonds(path, model, &mut frames)?;
    if let Some(first) = frames.x.get(..of_x) {
        warn_of_labels(path, model, first);
    }
    let streams = |row: usize| Stream::new(seed, StreamId::Auxiliary, row as u64, 0);
    Ok(Frames::new(model.dimension(), steering.join(&frames.x, of_x, &streams)))
}

/// Gives bonds that the model keeps their lengths back where the file has rounded them, and says so.
fn restore_bonds(path: &Path, model: &dyn Model, frames: &mut Frames) -> Result<()> {
    let (n, dimension) = (frames.n(), frames.dimension);
    let restored = kept_bonds::restore(model, &mut frames.x, dimension)?;
    if restored > 0 {
        eprintln!(
            "note: {}: positions are rounded: in {restored} of {n} frames bonds that the model keeps were given their lengths",
            path.display()
        );
    }
    Ok(())
}

/// The frames, in the order of the model's atoms.
fn read(path: &Path, topology: Option<&Path>, card: &ModelCard) -> Result<Frames> {
    let mut frames = match (topology, &card.topology) {
        (Some(topology), _) => read_in_order(path, topology, card)?,
        (None, Some(atoms)) => trajectory::read_of(path, atoms, "model")?,
        (None, None) => trajectory::read(path)?,
    };
    let Some(atoms) = &card.topology else { return Ok(frames) };
    if array(path, "log_density", frames.n())?.is_some() {
        warn_of_torn_bonds(path, &frames, atoms, "model");
        return Ok(frames);
    }
    trajectory::require_nanometres(path, &frames, atoms)?;
    require_bonds(path, &mut frames, atoms, "model")?;
    Ok(frames)
}

/// Frames of the atoms of a PDB file, brought to the model's order.
fn read_in_order(path: &Path, topology: &Path, card: &ModelCard) -> Result<Frames> {
    let (atoms, _) = Topology::from_pdb(topology)?;
    let frames = trajectory::read_of(path, &atoms, "topology")?;
    let [residues, names] =
        [&atoms.residues, &atoms.names].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
    let order = card.match_atoms(&residues, &names).map_err(|e| Error::file(topology, e.to_string()))?;
    let rows = frames.x.chunks_exact(frames.dimension);
    let x = rows.flat_map(|row| order.iter().flat_map(|&i| atom(row, i))).collect();
    Ok(Frames { x, ..frames })
}

/// Whether centroids are about as spread as noise of standard deviation sigma (nm), as those of the model's own samples
/// are. Those of centred frames are all zero, those of frames from elsewhere spread more: the sum of n squared
/// centroids over σ² follows a χ² distribution of 3n degrees of freedom.
fn are_noise(centroids: impl Iterator<Item = Vec3>, n: usize, sigma: f64) -> bool {
    let degrees = 3.0 * n as f64;
    let spread = centroids.map(|c| dot(c, c)).sum::<f64>() / (sigma * sigma * degrees);
    // the noise of a trained model differs a little from that of its training
    let error = 0.5 + 6.0 * (2.0 / degrees).sqrt();
    spread > (1.0 - error).max(1e-3) && spread < 1.0 + error
}

/// Draws centroids for frames whose centroids are not noise of standard deviation sigma (nm): the model's density is
/// one of (shape, centroid), and meaningless for arbitrary centroids. A model's own samples keep theirs, unless they
/// were centred since.
fn draw_centroids(frames: &mut Frames, sigma: f64, seed: u64, own: bool) {
    let (dimension, n) = (frames.dimension, frames.n());
    let centroids = || frames.x.chunks_exact(dimension).map(centroid);
    let moved = own && centroids().any(|c| dot(c, c) > 1e-6 * sigma * sigma);
    if n == 0 || moved || are_noise(centroids(), n, sigma) {
        return;
    }
    for (row, x) in frames.x.chunks_exact_mut(dimension).enumerate() {
        centre(x);
        let mut stream = Stream::new(seed, StreamId::Centroid, row as u64, 0);
        shift(x, std::array::from_fn(|_| sigma * stream.normal()));
    }
    eprintln!(
        "note: the centroids of the frames are not distributed like the model's training noise, so all {n} are drawn from it (--seed; \
         `log-density --keep-centroids` keeps them)"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_that_are_noise_are_told_from_others() {
        let of = |n: usize, spread: f64, offset: f64| {
            let mut stream = Stream::new(3, StreamId::Test, n as u64, 0);
            let centroids: Vec<Vec3> =
                (0..n).map(|_| std::array::from_fn(|_| offset + spread * stream.normal())).collect();
            are_noise(centroids.into_iter(), n, 0.1)
        };
        for n in [1, 10, 1000] {
            assert!(of(n, 0.1, 0.0), "{n}");
            assert!(!of(n, 0.0, 0.0) && !of(n, 0.1, 0.7), "{n}");
        }
        assert!(of(1000, 0.105, 0.0) && !of(1000, 0.03, 0.0) && !of(1000, 0.1, 0.15));
    }
}
