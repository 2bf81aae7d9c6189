//! `modejump sample`

use super::common::{frames_of, hash_of, load_at, read_latent, split, DecodingFlags, PrecisionFlag};
use clap::Args;
use modejump::density::{Evaluation, Status};
use modejump::io::check_apart;
use modejump::io::checkpoint::Identity;
use modejump::io::trajectory::{self, Frames};
use modejump::models::steering::{dimension_without_auxiliary, Steering};
use modejump::models::Model;
use modejump::parallel::{self, room, streams, Ranks};
use modejump::{Error, Result};
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Sample {
    /// Model file
    model: PathBuf,
    /// Number of configurations
    #[arg(short, long, default_value_t = 1000)]
    n: usize,
    /// Seed of the samples: each is a function of the seed and of its number
    #[arg(short, long, default_value_t = 1)]
    seed: u64,
    /// Temperature, K, to which a steerable model is steered [default: that of its training]
    #[arg(long)]
    temperature: Option<f64>,
    /// Latent points (safetensors or npy, `z` [n][latent]) to use instead of random ones
    #[arg(long, conflicts_with_all = ["n", "seed"])]
    z: Option<PathBuf>,
    /// Do not compute log q: about ten times cheaper for a continuous flow. Samples that fail are left out
    #[arg(long, conflicts_with = "z")]
    points_only: bool,
    /// Samples: safetensors (`x`, `log_density`, with --z `log_det`, and `auxiliary` if the model has such
    /// coordinates: log q is then the joint log-density of x and these minus the log-density of these alone, so that −u
    /// − log q is a log-weight), npy, dcd, xtc, trr, pdb or gro; all but safetensors leave out samples outside the
    /// support
    #[arg(short, long)]
    output: PathBuf,
    #[command(flatten)]
    decoding: DecodingFlags,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Sample {
    pub fn run(self) -> Result<()> {
        parallel::run(|ranks| self.on(ranks))
    }

    fn on(&self, ranks: &dyn Ranks) -> Result<()> {
        if ranks.is_first() {
            check_apart(&self.output, [&self.model].into_iter().chain(&self.z))?;
        }
        let model = self.decoding.of(load_at(&self.model, &self.precision, self.temperature)?)?;
        let dimension = model.dimension();
        if ranks.is_first() {
            trajectory::check(
                &self.output,
                dimension_without_auxiliary(model.as_ref()),
                model.card().topology.as_ref(),
            )?;
        }
        ranks.same_run(&self.identity(model.as_ref())?)?;
        if self.points_only {
            return self.points(model.as_ref(), ranks);
        }
        let (x, mut log_density, log_det) = match &self.z {
            Some(path) => {
                let flow = model.flow().ok_or_else(|| Error::invalid("this model has no latent space; remove --z"))?;
                let z = read_latent(path, flow.latent_dimension())?;
                let latent = flow.latent_dimension();
                let (mut x, mut log_det) = (Vec::new(), Vec::new());
                let log_density = ranks.evaluations(z.len() / latent, |rows, log_density| {
                    (x, log_det) = (vec![0.0; rows.len() * dimension], vec![0.0; rows.len()]);
                    flow.generate(&z[rows.start * latent..rows.end * latent], &mut x, &mut log_det, log_density)
                })?;
                (ranks.gather(x)?, log_density, Some(ranks.gather(log_det)?))
            }
            None => {
                let (x, log_density) = ranks.sample(model.as_ref(), self.n, self.seed)?;
                (x, log_density, None)
            }
        };
        self.report_decoding(model.as_ref(), ranks)?;
        if !ranks.is_first() {
            return Ok(());
        }
        let steering = model.steering().unwrap_or(Steering::NONE);
        let dimension = dimension - steering.auxiliary;
        let [mut x, auxiliary] = steering.take_apart(&x, dimension, &mut log_density);
        // a sample that failed is no configuration, and only log q shows that
        if trajectory::require_array(&self.output, "log_density").is_err() {
            let rows = x.chunks_exact(dimension).zip(&log_density);
            x = rows.filter(|(_, e)| e.is_inside()).flat_map(|(row, _)| row.to_vec()).collect();
        }
        let frames = Frames::new(dimension, x);
        let (values, outside) = split(&log_density);
        let mut extra: Vec<(&str, &[f64])> = vec![("log_density", &values)];
        if !auxiliary.is_empty() {
            extra.push(("auxiliary", &auxiliary));
        }
        if let Some(log_det) = &log_det {
            extra.push(("log_det", log_det));
        }
        trajectory::write(&self.output, &frames, model.card().topology.as_ref(), &extra)?;
        report(self.json, Some(&self.output), &frames, &log_density, outside);
        Ok(())
    }
}

impl Sample {
    /// What the samples depend on.
    fn identity(&self, model: &dyn Model) -> Result<Identity> {
        let run = Identity::default().with_content("model", model.hash()).with("-n", self.n).with("--seed", self.seed);
        let run = run.with_some("--temperature", self.temperature).with("--points-only", self.points_only);
        let run = run.with_some("--z", self.z.as_ref().map(|path| hash_of(path)).transpose()?);
        Ok(self.precision.identify(self.decoding.identify(run)))
    }

    /// Reports the passes of iterative decoding, on standard error.
    fn report_decoding(&self, model: &dyn Model, ranks: &dyn Ranks) -> Result<()> {
        let decoded = model.autoregressive().map(|tarflow| tarflow.decoded()).unwrap_or_default();
        let all = ranks.gather(vec![decoded.samples as f64, decoded.passes as f64, decoded.fallbacks as f64])?;
        let sum = |k: usize| all.chunks_exact(3).map(|of_rank| of_rank[k]).sum::<f64>();
        let (samples, passes) = (sum(0), sum(1) / sum(0));
        if samples > 0.0 && ranks.is_first() {
            let fallbacks = sum(2);
            eprintln!(
                "{samples} samples decoded iteratively, {passes:.1} passes each; {fallbacks} of them fell back to sequential decoding"
            );
        }
        Ok(())
    }

    fn points(&self, model: &dyn Model, ranks: &dyn Ranks) -> Result<()> {
        let dimension = model.dimension();
        let of_x = dimension_without_auxiliary(model);
        let own = ranks.share(self.n);
        let (mut x, mut status) = (room(own.len().checked_mul(dimension), 0.0)?, vec![Status::Inside; own.len()]);
        model.sample_only(&streams(self.seed, own), &mut x, &mut status)?;
        let rows = x.chunks_exact(dimension).zip(&status);
        let inside = rows.filter(|(_, s)| **s == Status::Inside);
        let x: Vec<f64> = inside.flat_map(|(row, _)| row[..of_x].to_vec()).collect();
        let frames = Frames::new(of_x, ranks.gather(x)?);
        self.report_decoding(model, ranks)?;
        if !ranks.is_first() {
            return Ok(());
        }
        trajectory::write(&self.output, &frames, model.card().topology.as_ref(), &[])?;
        let failed = self.n - frames.n();
        match self.json {
            true => println!(
                "{}",
                serde_json::json!({ "output": self.output.display().to_string(), "n": frames.n(), "failed": failed })
            ),
            false => println!("{}: {}, {failed} failed", self.output.display(), frames_of(frames.n())),
        }
        Ok(())
    }
}

/// Prints a one-line summary of what was computed and, if an output is given, written, for `sample` and `log-density`.
pub fn report(json: bool, output: Option<&Path>, frames: &Frames, log_density: &[Evaluation], outside: usize) {
    let inside: Vec<f64> = log_density.iter().filter(|e| e.is_inside()).map(|e| e.log_density).collect();
    let mean = (!inside.is_empty()).then(|| inside.iter().sum::<f64>() / inside.len() as f64);
    let failed = log_density.iter().filter(|e| e.status == Status::NonFinite).count();
    if json {
        let summary = serde_json::json!({
            "output": output.map(|output| output.display().to_string()),
            "n": frames.n(),
            "mean_log_density": mean,
            "outside_support": outside,
            "not_finite": failed,
        });
        println!("{summary}");
    } else {
        let counted = |n: usize, what: &str| if n > 0 { format!(", {n} {what}") } else { String::new() };
        let outside = counted(outside - failed, "outside the support")
            + &counted(
                failed,
                "without a finite result (of a continuous flow: the solver may have reached its max_steps)",
            );
        let mean = mean.map_or("no log q to average".into(), |mean| format!("mean log q = {mean:.4}"));
        let written = output.map_or(String::new(), |output| format!("{}: ", output.display()));
        println!("{written}{}, {mean}{outside}", frames_of(frames.n()));
    }
}
