//! Learned likelihoods in the plane: how well denoising score matching, noise contrastive estimation over time, and
//! both together learn two exactly known densities (Aggarwal et al., NeurIPS 2025, toy systems).
//!
//! `make toy`, or `cargo run --release --example two_dimensional_ebm -- [folder] [steps]`, prints the table of
//! `docs/two-dimensional-study.md` and writes its figures and `results.json` to the folder.

use modejump::error::{Error, Result};
use modejump::io::write_atomically;
use modejump::models::mlp_ebm::{MlpConfig, MlpNetwork};
use modejump::models::network::Evaluator;
use modejump::models::EnergyFunction;
use modejump::rng::{Stream, StreamId};
use modejump::train::contrastive::ContrastiveOptions;
use modejump::train::{AdamW, Schedule};
use modejump::weights::log_sum_exp;
use plotters::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Instant;

const NETWORK: MlpConfig = MlpConfig { dimension: 2, width: 128, layers: 4 };
const BATCH: usize = 512;
const STEPS: usize = 2500;
const RATE: f64 = 4e-3;
const SEEDS: [u64; 3] = [1, 2, 3];
/// Decay of the parameter average, which is used for evaluation.
const AVERAGE: f64 = 0.995;
const LARGEST_GRADIENT: f64 = 1.0;

/// Densities are compared on a grid over the square |x|, |y| < HALF.
const HALF: f64 = 1.6;
const CELLS: usize = 256;

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum System {
    /// Equal Gaussians of standard deviation 0.1 on a circle of radius 1.
    EightGaussians,
    /// Chessboard: every other square of side 0.4 in the square |x|, |y| < 1, including the corners.
    Checkerboard,
}

impl System {
    fn name(self) -> &'static str {
        match self {
            System::EightGaussians => "eight Gaussians",
            System::Checkerboard => "checkerboard",
        }
    }

    fn file(self) -> &'static str {
        match self {
            System::EightGaussians => "eight-gaussians.svg",
            System::Checkerboard => "checkerboard.svg",
        }
    }

    fn sample(self, stream: &mut Stream) -> [f64; 2] {
        match self {
            System::EightGaussians => {
                let (sin, cos) = (std::f64::consts::FRAC_PI_4 * stream.below(8) as f64).sin_cos();
                [cos + 0.1 * stream.normal(), sin + 0.1 * stream.normal()]
            }
            System::Checkerboard => {
                let square = 2 * stream.below(13);
                [square % 5, square / 5].map(|k| 0.4 * (k as f64 + stream.uniform()) - 1.0)
            }
        }
    }

    fn log_density(self, [x, y]: [f64; 2]) -> f64 {
        match self {
            System::EightGaussians => {
                let log_terms: Vec<f64> = (0..8)
                    .map(|k| {
                        let (sin, cos) = (std::f64::consts::FRAC_PI_4 * f64::from(k)).sin_cos();
                        -((x - cos).powi(2) + (y - sin).powi(2)) / 0.02
                    })
                    .collect();
                log_sum_exp(&log_terms) - (8.0 * std::f64::consts::TAU * 0.01).ln()
            }
            System::Checkerboard => {
                let [column, row] = [x, y].map(|v| ((v + 1.0) / 0.4).floor());
                match x.abs() < 1.0 && y.abs() < 1.0 && (column + row) % 2.0 == 0.0 {
                    true => -f64::ln(13.0 * 0.16),
                    false => f64::NEG_INFINITY,
                }
            }
        }
    }
}

/// Distances between the exact density p and the model q, both normalised on the grid.
#[derive(Clone, Copy, Debug, Serialize)]
struct Distances {
    /// KL(p‖q), nats.
    forward_kl: f64,
    /// KL(q‖p); `None` if infinite, as it is where p is zero.
    reverse_kl: Option<f64>,
    /// ½ ∫|p − q|
    total_variation: f64,
}

#[derive(Serialize)]
struct Outcome {
    system: System,
    losses: &'static str,
    options: ContrastiveOptions,
    /// After training with each of SEEDS.
    distances: Vec<Distances>,
    seconds: f64,
}

impl Outcome {
    fn row(&self) -> String {
        let all = |value: fn(&Distances) -> f64| self.distances.iter().map(value).collect::<Vec<f64>>();
        let forward = range(&all(|d| d.forward_kl));
        let reverse = range(&all(|d| d.reverse_kl.unwrap_or(f64::INFINITY)));
        let variation = range(&all(|d| d.total_variation));
        let (system, losses, seconds) = (self.system.name(), self.losses, self.seconds);
        format!("| {system} | {losses} | {forward} | {reverse} | {variation} | {seconds:.0} |")
    }
}

/// Smallest and largest of some values.
fn range(values: &[f64]) -> String {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match smallest.is_finite() {
        true => format!("{smallest:.4} to {largest:.4}"),
        false => "∞".into(),
    }
}

/// Centres of the grid's cells, row by row.
fn grid() -> impl Iterator<Item = [f64; 2]> {
    let place = |k: usize| 2.0 * HALF * (k as f64 + 0.5) / CELLS as f64 - HALF;
    (0..CELLS * CELLS).map(move |i| [place(i % CELLS), place(i / CELLS)])
}

/// ln of the mass of every cell.
fn normalised(log_density: Vec<f64>) -> Vec<f64> {
    let total = log_sum_exp(&log_density);
    log_density.into_iter().map(|l| l - total).collect()
}

fn distances(log_p: &[f64], log_q: &[f64]) -> Distances {
    let kl = |a: &[f64], b: &[f64]| -> f64 {
        a.iter().zip(b).filter(|(a, _)| a.is_finite()).map(|(a, b)| a.exp() * (a - b)).sum()
    };
    let variation = log_p.iter().zip(log_q).map(|(p, q)| 0.5 * (p.exp() - q.exp()).abs()).sum();
    let reverse = kl(log_q, log_p);
    Distances {
        forward_kl: kl(log_p, log_q),
        reverse_kl: Some(reverse).filter(|kl| kl.is_finite()),
        total_variation: variation,
    }
}

/// E(0, ·) on the grid after training.
fn train(system: System, options: ContrastiveOptions, steps: usize, seed: u64) -> Result<Vec<f64>> {
    options.check()?;
    let network = MlpNetwork::new(NETWORK)?;
    let mut parameters: Vec<f32> = network.initialise(&mut Stream::new(seed, StreamId::Initialise, 0, 0));
    let mut adam = AdamW::new(&parameters, 0.0, AVERAGE);
    for step in 0..steps {
        let mut stream = Stream::new(seed, StreamId::Train, step as u64, 0);
        let data: Vec<f64> = (0..BATCH).flat_map(|_| system.sample(&mut stream)).collect();
        let batch = options.draw(&data, 2, false, &mut stream);
        let mut gradient = vec![0.0; parameters.len()];
        let [score, nce] = options.losses(&network, &parameters, &batch, &mut gradient);
        let rate = RATE * Schedule::Cosine.factor(step as f64 / steps as f64);
        adam.update(&mut parameters, &gradient, rate, LARGEST_GRADIENT);
        if step % 500 == 0 {
            let losses = [("score matching", options.score_weight, score), ("contrastive", options.nce_weight, nce)];
            let used = losses.iter().filter(|(_, weight, _)| *weight > 0.0);
            let used: String = used.map(|(name, _, loss)| format!(", {name} {loss:.4}")).collect();
            eprintln!("{}, seed {seed}: step {step}{used}", system.name());
        }
    }
    let model = Evaluator::new(network, adam.average.clone());
    let x: Vec<f64> = grid().flatten().collect();
    let mut energy = vec![0.0; CELLS * CELLS];
    model.energy(&vec![0.0; energy.len()], &x, &mut energy);
    Ok(energy)
}

fn main() -> Result<()> {
    let argument = |k: usize| std::env::args().nth(k);
    let folder = PathBuf::from(argument(1).unwrap_or_else(|| "target/toy".into()));
    let steps = match argument(2) {
        Some(text) => text.parse().map_err(|_| Error::invalid(format!("invalid number of steps: {text}")))?,
        None => STEPS,
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let both = ContrastiveOptions { negatives: 4, window: 1.0, time_power: 2.0, ..Default::default() };
    let losses = [
        ("score matching", ContrastiveOptions { nce_weight: 0.0, ..both }),
        ("contrastive", ContrastiveOptions { score_weight: 0.0, ..both }),
        ("both", both),
    ];
    println!("| density | losses | KL(p‖q) | KL(q‖p) | total variation | seconds |");
    println!("|---|---|---|---|---|---|");
    let mut outcomes = Vec::new();
    for system in [System::EightGaussians, System::Checkerboard] {
        let log_p = normalised(grid().map(|x| system.log_density(x)).collect());
        let mut maps = vec![("exact", log_p.clone())];
        for (losses, options) in losses {
            let start = Instant::now();
            let trained = SEEDS.map(|seed| Ok(normalised(train(system, options, steps, seed)?)));
            let trained = trained.into_iter().collect::<Result<Vec<Vec<f64>>>>()?;
            let distances = trained.iter().map(|log_q| distances(&log_p, log_q)).collect();
            let seconds = start.elapsed().as_secs_f64();
            outcomes.push(Outcome { system, losses, options, distances, seconds });
            println!("{}", outcomes[outcomes.len() - 1].row());
            maps.push((losses, trained[0].clone()));
        }
        figure(&folder.join(system.file()), &maps)?;
    }
    let path = folder.join("results.json");
    let json = serde_json::to_string_pretty(&outcomes).map_err(|e| Error::file(&path, e.to_string()))?;
    write_atomically(&path, json.as_bytes())
}

/// Draws ln of the density relative to the maximum of the exact one, one panel per density.
fn figure(path: &Path, maps: &[(&str, Vec<f64>)]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, maps).map_err(|e| Error::file(path, e.to_string()))?;
    write_atomically(path, svg.as_bytes())
}

/// Grid cells along the side of a drawn square.
const COARSE: usize = 4;
/// Shades from zero to the highest density, evenly spaced over DEPTH in ln.
const SHADES: usize = 12;
const DEPTH: f64 = 6.0;

fn draw(svg: &mut String, maps: &[(&str, Vec<f64>)]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let squares = CELLS / COARSE;
    let area = SVGBackend::with_string(svg, (270 * maps.len() as u32, 300)).into_drawing_area();
    area.fill(&WHITE)?;
    let highest = maps[0].1.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    for (panel, (name, log_mass)) in area.split_evenly((1, maps.len())).iter().zip(maps) {
        let mut chart = ChartBuilder::on(panel)
            .caption(name, ("Helvetica, Arial, sans-serif", 16))
            .margin(10)
            .build_cartesian_2d(0..squares as i32, 0..squares as i32)?;
        let shade = |column: usize, row: usize| {
            let cell = |k: usize| (row * COARSE + k / COARSE) * CELLS + column * COARSE + k % COARSE;
            let mass: f64 = (0..COARSE * COARSE).map(|k| (log_mass[cell(k)] - highest).exp()).sum();
            let depth = (mass / (COARSE * COARSE) as f64).ln() / DEPTH;
            ((1.0 + depth).clamp(0.0, 1.0) * SHADES as f64).round() as usize
        };
        for row in 0..squares {
            let shades: Vec<usize> = (0..squares).map(|column| shade(column, row)).collect();
            let mut column = 0;
            for run in shades.chunk_by(|a, b| a == b) {
                let corners = [(column as i32, row as i32), ((column + run.len()) as i32, row as i32 + 1)];
                column += run.len();
                if run[0] > 0 {
                    let colour = BLUE_INK.mix(run[0] as f64 / SHADES as f64);
                    chart.draw_series([Rectangle::new(corners, colour.filled())])?;
                }
            }
        }
        chart.draw_series([Rectangle::new([(0, 0), (squares as i32, squares as i32)], FAINT)])?;
    }
    area.present()?;
    Ok(())
}

const BLUE_INK: RGBColor = RGBColor(8, 64, 129);
const FAINT: RGBColor = RGBColor(200, 204, 210);
