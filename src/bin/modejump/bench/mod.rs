//! `modejump bench`: milliseconds per sample and GFLOP/s of the hot paths.

pub mod cases;

use cases::{Attempts, Energies, Fields, Odes, Sampling, TRAIN_BATCH};
use clap::Args;
use modejump::density::Density;
use modejump::device::{self, Driver};
use modejump::io::model_file;
use modejump::models::continuous::ContinuousFlow;
use modejump::models::coupling::CouplingFlow;
use modejump::models::field_on_device::EnergyKernel;
use modejump::models::network::Evaluator;
use modejump::models::tarflow::{Decoding, Jacobi, Options, TarFlow};
use modejump::models::{EnergyFunction, VectorField};
use modejump::nn::real::Matrix;
use modejump::nn::Scalar;
use modejump::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NAMES: [&str; 22] = [
    "coupling/sample",
    "coupling/log_density",
    "coupling/log_density_score",
    "coupling/train_step",
    "coupling/move",
    "gvp_flow/velocity",
    "gvp_flow/velocity_divergence",
    "gvp_flow/sample",
    "egnn_flow/velocity",
    "egnn_flow/velocity_divergence",
    "graphormer_ebm/energy",
    "graphormer_ebm/energy_score",
    "gvp_ebm/energy",
    "gvp_ebm/energy_score",
    "invariant_ebm/energy",
    "invariant_ebm/energy_score",
    "tarflow/sample",
    "tarflow/sample_jacobi",
    "tarflow/log_density",
    "tarflow/log_density_score",
    "prose/sample",
    "prose/log_density",
];
const BATCHES: [usize; 2] = [1, 1000];
/// Batch sizes for flows on a GPU.
const DEVICE_BATCHES: [usize; 3] = [1, 1000, 100_000];
const FIELD_DEVICE_BATCHES: [usize; 2] = [1, 1024];
const FIELD_BATCHES: [usize; 2] = [1, 128];
const TOKEN_BATCHES: [usize; 2] = [1, 64];
/// Batch sizes for TarFlows on a GPU: a single sample spread over the GPU, one sample on each part of it, and more than
/// it takes at once.
const TOKEN_DEVICE_BATCHES: [usize; 3] = [1, 64, 4096];
/// Batch sizes for Prose, for which a batch of 64 would take a minute per repetition.
const PROSE_BATCHES: [usize; 2] = [1, 8];
const DIVERGENCE_BATCHES: [usize; 2] = [1, 8];
/// Batch sizes for whole ODEs with exact divergences, some 70 evaluations each.
const ODE_BATCHES: [usize; 2] = [1, 4];
/// Minimum time and number of repetitions of a case; the fastest repetition counts.
const LEAST_TIME: Duration = Duration::from_millis(800);
const LEAST_REPETITIONS: usize = 12;
/// Shipped models, used if they exist.
const SHIPPED: &str = "models/ala2/model.safetensors";
const SHIPPED_FLOW: &str = "models/ala2/gvp-flow.safetensors";

#[derive(Args)]
pub struct Bench {
    /// Cases to measure, by default all: a full name selects only that case, a part of a name all cases that contain it
    names: Vec<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    /// Number of threads
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Generator for sample, log_density and move [default: models/ala2/model.safetensors or, if that file does not
    /// exist, a random one with the architecture of bgflow]
    #[arg(long)]
    model: Option<PathBuf>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    size: String,
    device: &'a str,
    threads: usize,
    batch: usize,
    ms_per_sample: f64,
    /// GFLOP/s of the networks' products and attention, counting a multiplication with its addition as two operations.
    gflops: f64,
    /// gflops relative to those of a large product on the same threads, measured at the start; none for a GPU.
    peak_fraction: Option<f64>,
    model: &'a str,
}

impl Bench {
    pub fn run(self) -> Result<()> {
        let exact = |w: &str| NAMES.contains(&w);
        let selects = |w: &str, name: &str| name == w || !exact(w) && name.contains(w);
        let wanted = |name: &str| self.names.is_empty() || self.names.iter().any(|w| selects(w, name));
        if let Some(unknown) = self.names.iter().find(|w| !NAMES.iter().any(|name| name.contains(w.as_str()))) {
            return Err(Error::invalid(format!(
                "unknown benchmark `{unknown}`; known benchmarks: {}",
                NAMES.join(", ")
            )));
        }
        let threads =
            self.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()), usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| Error::invalid(format!("--threads {threads}: {e}")))?;
        pool.install(|| {
            let peak = peak_gflops(threads);
            let (flow, size, model) = self.generator()?;
            let report = Report { json: self.json, threads, device: "cpu".into(), peak: Some(peak), size, model };
            report.header();
            for name in NAMES.into_iter().filter(|name| wanted(name)) {
                measure(name, &flow, &report)?;
            }
            Ok(())
        })
    }

    /// The flow, its size for the report, and its origin.
    fn generator(&self) -> Result<(CouplingFlow<f32>, String, String)> {
        let path = self.model.as_deref().or_else(|| Some(Path::new(SHIPPED)).filter(|p| p.exists()));
        let Some(path) = path else {
            return Ok((cases::spline_generator()?, "ala2".into(), "random, bgflow's architecture".into()));
        };
        let flow = CouplingFlow::from_file(&model_file::open(path)?)?;
        let size = match self.model {
            Some(_) => path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default(),
            None => "ala2".into(),
        };
        Ok((flow, size, path.display().to_string()))
    }
}

fn measure(name: &'static str, flow: &CouplingFlow<f32>, report: &Report) -> Result<()> {
    match name {
        "coupling/train_step" => {
            let flow = cases::affine66()?;
            let flops = 3.0 * flow.flops();
            let frames = cases::normal_frames(66 * 8192);
            let mut trainer = cases::trainer(flow, &frames)?;
            let time = fastest(|| trainer.step().map(|_| ()))?;
            report.line(name, Some("cartesian66"), TRAIN_BATCH, time, flops);
        }
        "coupling/move" => {
            let mut attempts = Attempts::new(flow.cast()?)?;
            let time = fastest(|| attempts.batch())? / Attempts::BATCH as f64;
            // the proposal, and log q of the current configuration
            report.line(name, None, 1, time, 2.0 * flow.flops());
        }
        "gvp_flow/velocity" | "gvp_flow/velocity_divergence" => {
            let field = cases::gvp_field()?;
            let flops = [field.flops(), field.divergence_flops()];
            match device::default()?.driver() {
                None => measure_field(name, &field, flops, report)?,
                Some(driver) => measure_field(name, &field.on_device(driver)?, flops, &report.on(driver))?,
            }
        }
        "gvp_flow/sample" if !Path::new(SHIPPED_FLOW).exists() => {
            eprintln!("modejump: {name} is skipped: {SHIPPED_FLOW} is missing");
        }
        "gvp_flow/sample" => {
            let flow = cases::gvp_flow(SHIPPED_FLOW)?;
            let (flops, report) = (cases::sample_flops(&flow)?, &report.of(SHIPPED_FLOW));
            match device::default()?.driver() {
                None => measure_ode(name, &flow, flops, report)?,
                Some(driver) => measure_ode(name, &flow.on_device(driver)?, flops, &report.on(driver))?,
            }
        }
        "egnn_flow/velocity" | "egnn_flow/velocity_divergence" => {
            let field = cases::egnn()?;
            let flops = [field.flops(), field.divergence_flops()];
            match device::default()?.driver() {
                None => measure_field(name, &field, flops, report)?,
                Some(driver) => measure_field(name, &field.on_device(driver)?, flops, &report.on(driver))?,
            }
        }
        "graphormer_ebm/energy" | "graphormer_ebm/energy_score" => measure_network(name, cases::graphormer()?, report)?,
        "gvp_ebm/energy" | "gvp_ebm/energy_score" => measure_network(name, cases::gvp_energy()?, report)?,
        "invariant_ebm/energy" | "invariant_ebm/energy_score" => measure_network(name, cases::invariant()?, report)?,
        "tarflow/sample" | "tarflow/sample_jacobi" | "tarflow/log_density" | "tarflow/log_density_score" => {
            ["Ace-A-Nme", "AAAAAA"].into_iter().try_for_each(|system| measure_tokens(name, system, report))?
        }
        "prose/sample" | "prose/log_density" => {
            let flow = cases::prose()?;
            match device::default()?.driver() {
                None => {
                    for batch in PROSE_BATCHES {
                        report.line(name, Some("AAAAAA"), batch, time_of(name, &flow, batch)?, flow.flops());
                    }
                }
                Some(driver) => measure_tarflow(name, "AAAAAA", flow, driver, report)?,
            }
        }
        _ => measure_coupling(name, flow, report)?,
    }
    Ok(())
}

/// Prints the lines of a TarFlow, on the default device.
fn measure_tokens(name: &'static str, system: &str, report: &Report) -> Result<()> {
    let mut flow = cases::tarflow(system)?;
    if let Some(driver) = device::default()?.driver() {
        // iterative decoding on the CPU only
        if !name.ends_with("jacobi") {
            measure_tarflow(name, system, flow, driver, report)?;
        }
        return Ok(());
    }
    if name.ends_with("jacobi") {
        flow = flow.with_options(Options { decoding: Decoding::Jacobi(Jacobi::default()), ..Options::default() })?;
    }
    for batch in TOKEN_BATCHES {
        report.line(name, Some(system), batch, time_of(name, &flow, batch)?, flops_of(name, flow.flops()));
    }
    if name.ends_with("score") {
        return Ok(()); // only with the weights as they are
    }
    let (flow, size) = (flow.with_bfloat16_weights()?, format!("{system}, bf16"));
    report.line(name, Some(&size), 1, time_of(name, &flow, 1)?, flow.flops());
    Ok(())
}

/// Prints the lines of a coupling flow, on the default device.
fn measure_coupling(name: &'static str, flow: &CouplingFlow<f32>, report: &Report) -> Result<()> {
    let flops = flops_of(name, flow.flops());
    match device::default()?.driver() {
        None => {
            for batch in BATCHES {
                report.line(name, None, batch, time_of(name, flow, batch)?, flops);
            }
        }
        Some(driver) => {
            let on_device = flow.cast::<f32>()?.on_device(driver)?;
            let report = report.on(driver);
            for batch in DEVICE_BATCHES {
                report.line(name, None, batch, time_of(name, &on_device, batch)?, flops);
            }
        }
    }
    Ok(())
}

/// Prints the lines of a TarFlow on a GPU.
fn measure_tarflow(
    name: &'static str,
    size: &str,
    flow: TarFlow<f32>,
    driver: &Arc<dyn Driver>,
    report: &Report,
) -> Result<()> {
    let (flops, report) = (flops_of(name, flow.flops()), report.on(driver));
    let flow = flow.on_device(driver)?;
    for batch in TOKEN_DEVICE_BATCHES {
        report.line(name, Some(size), batch, time_of(name, &flow, batch)?, flops);
    }
    Ok(())
}

/// Operations of the case with this name, given those of a log q: the backward pass through every product costs as much
/// as the forward pass.
fn flops_of(name: &str, flops: f64) -> f64 {
    flops * if name.ends_with("score") { 2.0 } else { 1.0 }
}

/// Times sampling with log q, log q alone, or log q with its gradient, selected by the end of the name.
fn time_of(name: &str, flow: &dyn Density, batch: usize) -> Result<f64> {
    let mut sampling = Sampling::new(flow, batch);
    sampling.sample()?;
    match name {
        _ if name.contains("/sample") => fastest(|| sampling.sample()),
        _ if name.ends_with("score") => fastest(|| sampling.gradient()),
        _ => fastest(|| sampling.log_density()),
    }
}

/// Prints the lines of a field; `flops` of a value, and of a value with its divergence.
fn measure_field(name: &'static str, field: &dyn VectorField, flops: [f64; 2], report: &Report) -> Result<()> {
    let divergence = name.ends_with("velocity_divergence");
    let batches = match (report.peak.is_some(), divergence) {
        (false, _) => &FIELD_DEVICE_BATCHES[..],
        (true, true) => &DIVERGENCE_BATCHES,
        (true, false) => &FIELD_BATCHES,
    };
    for &batch in batches {
        let mut fields = Fields::new(field, batch);
        let time = fastest(|| if divergence { fields.velocity_divergence() } else { fields.velocity() })?;
        report.line(name, Some("ala2"), batch, time, flops[usize::from(divergence)]);
    }
    Ok(())
}

/// Prints the lines of samples with log q by an ODE.
fn measure_ode<F: VectorField>(
    name: &'static str,
    flow: &ContinuousFlow<F>,
    flops: f64,
    report: &Report,
) -> Result<()> {
    for batch in if report.peak.is_some() { ODE_BATCHES } else { FIELD_DEVICE_BATCHES } {
        let mut odes = Odes::new(flow, batch);
        let time = fastest(|| odes.sample())?;
        report.line(name, None, batch, time, flops);
    }
    Ok(())
}

/// Prints the lines of an energy, on the default device.
fn measure_network<N: EnergyKernel>(name: &'static str, model: Evaluator<N, f32>, report: &Report) -> Result<()> {
    match device::default()?.driver() {
        None => measure_energy(name, &model, model.flops(), report),
        Some(driver) => measure_energy(name, &model.on_device(driver)?, model.flops(), &report.on(driver)),
    }
}

/// Prints the lines of an energy; `flops` of a value.
fn measure_energy(name: &'static str, model: &dyn EnergyFunction, flops: f64, report: &Report) -> Result<()> {
    for batch in if report.peak.is_some() { FIELD_BATCHES } else { FIELD_DEVICE_BATCHES } {
        let mut energies = Energies::new(model, batch);
        let (time, flops) = match name.ends_with("energy_score") {
            false => (fastest(|| energies.energy())?, flops),
            // the backward pass through every product costs as much as the forward pass
            true => (fastest(|| energies.energy_score())?, 2.0 * flops),
        };
        report.line(name, Some("ala2"), batch, time, flops);
    }
    Ok(())
}

/// Seconds of the fastest repetition: other load on the machine only adds time.
fn fastest(mut body: impl FnMut() -> Result<()>) -> Result<f64> {
    body()?;
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    for repetition in 0.. {
        if repetition >= LEAST_REPETITIONS && start.elapsed() > LEAST_TIME {
            break;
        }
        let begin = Instant::now();
        body()?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// GFLOP/s of 512³ products in f32, one per thread, on all threads at once.
fn peak_gflops(threads: usize) -> f64 {
    const N: usize = 512;
    let a = vec![0.5f32; N * N];
    let mut c = vec![vec![0.0f32; N * N]; threads];
    let mut product = || {
        c.par_iter_mut().with_max_len(1).for_each(|c| {
            let m = Matrix::row_major(N);
            f32::gemm((N, N, N), (c, m), (&a, m), (&a, m), false);
        });
        Ok(())
    };
    let seconds = fastest(&mut product).unwrap_or(f64::NAN);
    2e-9 * (N * N * N * threads) as f64 / seconds
}

#[derive(Clone)]
struct Report {
    json: bool,
    threads: usize,
    device: String,
    peak: Option<f64>,
    size: String,
    model: String,
}

impl Report {
    /// Report for a GPU, whose peak is not measured.
    fn on(&self, driver: &Arc<dyn Driver>) -> Report {
        Report { device: driver.describe(), peak: None, ..self.clone() }
    }

    /// Report for a model other than the generator of alanine dipeptide.
    fn of(&self, model: &str) -> Report {
        Report { model: model.into(), size: "ala2".into(), ..self.clone() }
    }

    fn header(&self) {
        if !self.json {
            let peak = self.peak.unwrap_or(f64::NAN);
            println!("{} thread(s), GEMM peak {peak:.0} GFLOP/s, model: {}", self.threads, self.model);
            println!(
                "{:28} {:12} {:>6} {:>14} {:>10} {:>8}",
                "name", "size", "batch", "ms/sample", "GFLOP/s", "of peak"
            );
        }
    }

    /// Prints a line; `seconds` of one batch, `flops` per sample. Without `size`, that of the generator.
    fn line(&self, name: &str, size: Option<&str>, batch: usize, seconds: f64, flops: f64) {
        let gflops = 1e-9 * flops * batch as f64 / seconds;
        let line = Line {
            name,
            size: size.unwrap_or(&self.size).to_string(),
            device: &self.device,
            threads: self.threads,
            batch,
            ms_per_sample: 1e3 * seconds / batch as f64,
            gflops,
            peak_fraction: self.peak.map(|peak| gflops / peak),
            model: if size.is_some() { "random" } else { &self.model },
        };
        if self.json {
            println!("{}", serde_json::to_string(&line).unwrap_or_default());
            return;
        }
        let of_peak = line.peak_fraction.map_or_else(|| self.device.clone(), |f| format!("{:7.1}%", 100.0 * f));
        println!("{name:28} {:12} {batch:6} {:14.5} {gflops:10.2} {of_peak}", line.size, line.ms_per_sample);
    }
}
