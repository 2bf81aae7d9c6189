//! `modejump log-density`

use super::common::{evaluations, load_at, read_latent, split, PrecisionFlag};
use super::sample::report;
use clap::Args;
use modejump::coordinates::vector::{centre, centroid, norm, shift};
use modejump::density::Scope;
use modejump::io::model_file::{write_tensors, Data};
use modejump::io::trajectory::{self, Frames};
use modejump::io::{check_apart, check_writable};
use modejump::models::Steering;
use modejump::rng::{Stream, StreamId};
use modejump::{Error, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Args)]
pub struct LogDensity {
    /// Model file
    model: PathBuf,
    /// Configurations: pdb, gro, dcd, xtc, trr, npy or safetensors (`x` [frame][atom][3], nm)
    #[arg(required_unless_present = "z")]
    frames: Option<PathBuf>,
    /// Latent points (`z` [n][latent]) instead of configurations
    #[arg(long, conflicts_with = "frames")]
    z: Option<PathBuf>,
    /// K: takes a steerable model there from the temperature of its training
    #[arg(long)]
    temperature: Option<f64>,
    /// Of the auxiliary coordinates that some steerable models have beside x: they are drawn, and log q is that of both without the density
    /// of these. And of the centroids that TarFlows see with noise: where frames lie elsewhere (more than 8 standard deviations of the
    /// noise from the origin), all are centred and get such a centroid, as in moves, which leaves the ensemble as it is
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// safetensors with `log_density` [n] (−inf outside the support) and, for flows, `z` and `log_det` (of z → x)
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl LogDensity {
    pub fn run(self) -> Result<()> {
        trajectory::require_tensors(&self.output, "log-densities")?;
        check_apart(&self.output, [&self.model].into_iter().chain(&self.frames).chain(&self.z))?;
        check_writable(&self.output)?;
        let model = load_at(&self.model, &self.precision, self.temperature)?;
        let dimension = model.dimension();
        let steering = model.steering().unwrap_or(Steering::NONE);
        let mut arrays: BTreeMap<String, (Vec<usize>, Data)> = BTreeMap::new();
        let flow = model.flow();
        let (frames, mut log_density) = if let Some(path) = &self.z {
            let flow = flow.ok_or_else(|| Error::invalid("this model has no latent space; give configurations"))?;
            let z = read_latent(path, flow.latent_dimension())?;
            let n = z.len() / flow.latent_dimension();
            let (mut x, mut log_det, mut log_density) = (vec![0.0; n * dimension], vec![0.0; n], evaluations(n));
            flow.generate(&z, &mut x, &mut log_det, &mut log_density)?;
            arrays.insert("x".into(), (vec![n, dimension], Data::F64(x.clone())));
            arrays.insert("log_det".into(), (vec![n], Data::F64(log_det)));
            (Frames { dimension, x }, log_density)
        } else {
            let path = self.frames.as_ref().ok_or_else(|| Error::invalid("give FRAMES or --z"))?;
            let of_x = dimension - steering.auxiliary;
            let frames = match &model.card().topology {
                Some(atoms) => {
                    let frames = trajectory::read_of(path, atoms, "model")?;
                    trajectory::require_nanometres(path, &frames, atoms)?;
                    trajectory::require_bonds(path, &frames, atoms, "model")?;
                    frames
                }
                None => trajectory::read(path)?,
            };
            let mut frames = frames.require(path, of_x)?;
            if let Scope::Noisy { sigma } = model.scope() {
                draw_centroids(&mut frames, sigma, self.seed);
            }
            let streams = |row: usize| Stream::new(self.seed, StreamId::Auxiliary, row as u64, 0);
            let frames = Frames { dimension, x: steering.join(&frames.x, of_x, &streams) };
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
        modejump::io::write_atomically(&self.output, &write_tensors(&arrays, Default::default())?)?;
        report(self.json, &self.output, &frames, &log_density, outside);
        Ok(())
    }
}

/// Standard deviations of a centroid's noise within which frames have it already, as samples of the model do.
const NOISE: f64 = 8.0;

/// A frame that is not centred but for noise of standard deviation sigma (nm) gets a centroid drawn from it: the density of the model
/// is one of (shape, centroid), of no meaning where the centroid is anywhere.
fn draw_centroids(frames: &mut Frames, sigma: f64, seed: u64) {
    let (dimension, n) = (frames.dimension, frames.n());
    let rows = frames.x.chunks_exact_mut(dimension).enumerate();
    let mut drawn = 0;
    for (row, x) in rows.filter(|(_, x)| norm(centroid(x)) > NOISE * sigma) {
        centre(x);
        let mut stream = Stream::new(seed, StreamId::Centroid, row as u64, 0);
        shift(x, std::array::from_fn(|_| sigma * stream.normal()));
        drawn += 1;
    }
    if drawn > 0 {
        eprintln!(
            "note: {drawn} of {n} frames are not centred, and get a centroid drawn from the noise of the model's training (--seed)"
        );
    }
}
