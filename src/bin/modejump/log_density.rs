//! `modejump log-density`

use super::common::{
    array, evaluations, load_at, read_latent, require_bonds, split, warn_of_labels, warn_of_torn_bonds, PrecisionFlag,
};
use super::sample::report;
use clap::Args;
use modejump::coordinates::vector::{atom, centre, centroid, dot, shift};
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
    /// joint log-density minus that of these alone. Also seed of the centroids of frames for TarFlows trained with noise
    /// there: frames are centred and get centroids drawn from it, as in moves, which leaves the ensemble unchanged.
    /// Samples of a model, in files with `log_density`, keep theirs
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
    /// Drawn anew, except those of a model's own samples.
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
        // samples of a model have a log q, to which their centroids belong, unless they were centred since
        let own = array(path, "log_density", frames.n())?.is_some();
        let centred = || frames.x.chunks_exact(of_x).map(centroid).all(|c| dot(c, c) <= 1e-6 * sigma * sigma);
        if !own || centred() {
            draw_centroids(&mut frames, sigma, seed);
        }
    }
    restore_bonds(path, model, &mut frames)?;
    if let Some(first) = frames.x.get(..of_x) {
        warn_of_labels(path, model, first)?;
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

/// Draws the centroids of all frames as noise of standard deviation sigma (nm): the model's density is one of (shape,
/// centroid), and meaningless for arbitrary centroids.
fn draw_centroids(frames: &mut Frames, sigma: f64, seed: u64) {
    for (row, x) in frames.x.chunks_exact_mut(frames.dimension).enumerate() {
        centre(x);
        let mut stream = Stream::new(seed, StreamId::Centroid, row as u64, 0);
        shift(x, std::array::from_fn(|_| sigma * stream.normal()));
    }
    eprintln!(
        "note: for this model centroids are noise, so those of all {} frames are drawn from it (--seed; `log-density --keep-centroids` keeps them)",
        frames.n()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_are_drawn_from_the_noise_whatever_they_were() {
        let (n, sigma) = (4000, 0.1);
        let mut frames = Frames::new(6, (0..n).flat_map(|i| [0.01 * i as f64, 0.3, -2.0, 0.5, 0.4, 1.0]).collect());
        draw_centroids(&mut frames, sigma, 3);
        let mean = |power: i32| {
            let of = |x: &[f64]| centroid(x).map(|c| c.powi(power)).iter().sum::<f64>() / 3.0;
            frames.x.chunks_exact(6).map(of).sum::<f64>() / n as f64
        };
        assert!(mean(1).abs() < 5.0 * sigma / (3.0 * n as f64).sqrt());
        assert!((mean(2) / (sigma * sigma) - 1.0).abs() < 5.0 * (2.0 / (3.0 * n as f64)).sqrt());
        assert!((mean(4) / sigma.powi(4) - 3.0).abs() < 0.5);
        let width = |x: &[f64]| x[3] - x[0];
        assert!((width(&frames.x[6..]) - 0.49).abs() < 1e-12);
    }
}
