//! Jumps between the two states of a dimer in a dense bath: 76 coordinates, with 36 bath particles that can change
//! places.
//!
//! `make dimer`, or `cargo run --release --example lj_dimer -- [folder] [steps]`: generates frames of each state, trains
//! a bijection between them on the energies at both ends, runs local dynamics from the closed state with and without
//! jumps, and compares with umbrella sampling, which is independent of the jumps. Prints the table of `docs/moves.md`
//! and writes `profile.svg`, `results.json` and the model file.

#[path = "support/lj_dimer.rs"]
mod lj_dimer;

use lj_dimer::{free, lattice, length, start, trajectory, LjDimer, DIMENSION, MIDDLE, PARTICLES};
use modejump::coordinates::{Along, CoordinatesConfig, Region};
use modejump::error::{Error, Result};
use modejump::io::{model_file, write_atomically};
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::modes::{bundle, Config, IdenticalConfig, ModeConfig};
use modejump::models::{self, Model, ModelCard};
use modejump::modes::{ModeRegion, Modes};
use modejump::moves::{Fate, ModeJump, Move, Options, State};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::train::{Jump, Phase, Schedule, TrainOptions, Trainer};
use modejump::transport::assignment;
use modejump::weights::log_sum_exp;
use plotters::prelude::*;
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const LENGTHS: [f64; 2] = [0.94, 2.06];
const CHAINS: u64 = 4;
/// Trajectories per chain and state that generate frames.
const FRAMES: usize = 20_000;
/// Attempts per chain in the comparison, and trajectories before each attempt.
const ATTEMPTS: u64 = 100_000;
const LOCAL: usize = 3;
/// Trajectories discarded for equilibration.
const EQUILIBRATION: usize = 500;
/// Harmonic windows of the umbrella sampling along the dimer's length.
const WINDOWS: usize = 18;
const WINDOW: f64 = 400.0;
const UMBRELLA: usize = 20_000;
/// Range and number of bins of the profile.
const RANGE: [f64; 2] = [0.6, 2.4];
const BINS: usize = 90;

/// Names and regions of the modes, by the x coordinate of the dimer's second particle: the potential holds the dimer's
/// axis along x.
fn regions() -> Vec<ModeRegion> {
    let mode = |name: &str, range: [f64; 2]| ModeRegion {
        name: name.into(),
        within: vec![Region { along: Along::Component(2), range }],
        centre: vec![],
    };
    vec![mode("closed", [0.0, 0.5 * MIDDLE]), mode("open", [0.5 * MIDDLE, 3.0])]
}

/// Reorders the bath particles to match the reference.
fn sorted(reference: &[f64], x: &[f64]) -> Vec<f64> {
    let place = |x: &[f64], p: usize, k: usize| x[2 * (2 + p) + k];
    let order =
        assignment(PARTICLES - 2, |p, q| (0..2).map(|k| (place(reference, p, k) - place(x, q, k)).powi(2)).sum());
    let bath = order.iter().flat_map(|&q| [place(x, q, 0), place(x, q, 1)]);
    x[..4].iter().copied().chain(bath).collect()
}

/// Frames of one state and its reference: the mean position of each bath particle, found by alternating between
/// reordering and averaging.
fn frames(d: f64) -> (Vec<f64>, Vec<f64>) {
    let chain = |seed: u64| {
        let mut stream = Stream::new(seed, StreamId::Test, (1e3 * d) as u64, 0);
        let mut x = start(d);
        (0..EQUILIBRATION).for_each(|_| _ = trajectory(&mut x, &free, &mut stream));
        (0..FRAMES)
            .flat_map(|_| {
                trajectory(&mut x, &free, &mut stream);
                x.clone()
            })
            .collect::<Vec<f64>>()
    };
    let raw: Vec<f64> = (0..CHAINS).into_par_iter().flat_map_iter(chain).collect();
    let mut reference = lattice(d);
    for _ in 0..3 {
        let some: Vec<&[f64]> = raw.chunks_exact(DIMENSION).step_by(10).collect();
        let mut mean = vec![0.0; DIMENSION];
        for x in &some {
            mean.iter_mut().zip(sorted(&reference, x)).for_each(|(m, x)| *m += x / some.len() as f64);
        }
        reference = mean;
    }
    let frames = raw.par_chunks_exact(DIMENSION).flat_map_iter(|x| sorted(&reference, x)).collect();
    (frames, reference)
}

/// Flow of one state: `blocks` of couplings that move the bath (all x given all y, all y given all x, and every other
/// particle given its neighbours), then fixed positions and widths for the dimer's coordinates.
fn flow(d: f64, blocks: usize) -> Result<CouplingFlow<f32>> {
    let bath = |moves: &dyn Fn(usize, usize) -> bool| -> Vec<usize> {
        let all = (0..PARTICLES - 2).flat_map(|p| [(p, 0), (p, 1)]);
        all.filter(|&(p, k)| moves(p, k)).map(|(p, k)| 2 * (2 + p) + k).collect()
    };
    let coupling = |transformed: Vec<usize>| LayerConfig::Affine {
        features: Features {
            periodic: vec![],
            harmonics: 1,
            plain: (0..DIMENSION).filter(|i| !transformed.contains(i)).collect(),
        },
        transformed,
        hidden: vec![256, 256],
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume: false,
    };
    let along = |axis: usize| coupling(bath(&|_, k| k == axis));
    let half = |half: usize| coupling(bath(&|p, _| (p / 6 + p % 6) % 2 == half));
    let block = |_| [along(0), along(1), half(0), half(1)];
    let mut matrix = vec![0.0; 16];
    [0.1, 0.15, 0.1, 0.15].into_iter().enumerate().for_each(|(i, sd)| matrix[5 * i] = sd);
    let dimer = LayerConfig::Whiten { transformed: vec![0, 1, 2, 3], mean: vec![-0.5 * d, 0.0, 0.5 * d, 0.0], matrix };
    let layers = (0..blocks).flat_map(block).chain([dimer]).collect();
    let coordinates = CoordinatesConfig::Cartesian { dimension: DIMENSION };
    let mut flow = CouplingFlow::new(ModelCard::of_coupling(CouplingConfig { uniform: vec![], layers }, coordinates))?;
    flow.initialise(7);
    Ok(flow)
}

/// Trains the bijection from closed to open; returns it as a model file.
fn train(steps: usize) -> Result<Vec<u8>> {
    let [(closed, at_closed), (open, at_open)] = LENGTHS.map(frames);
    let potentials = |x: &[f64]| {
        let mut u = vec![0.0; x.len() / DIMENSION];
        LjDimer.reduced_potential(x, &mut u).map(|()| u)
    };
    let u = [potentials(&closed)?, potentials(&open)?];
    let modes = Modes::new(&[], &regions(), DIMENSION)?;
    let from: Arc<dyn Model> = Arc::new(flow(LENGTHS[0], 0)?);
    let jump = Jump::new(from, modes, [0, 1], [&closed, &open], [&u[0], &u[1]], 0.05)?;
    // slowly at first: overlapping particles give large gradients, and a squeezed bath does not recover
    let phase = |steps, rate, schedule| Phase { steps, rate, schedule, energy_batch: 512, ..Phase::of_map() };
    let phases = vec![phase(steps / 10, 5e-5, Schedule::Constant), phase(steps, 3e-4, Schedule::Cosine)];
    let options = TrainOptions { phases, evaluate: steps / 20 + 1, average: 0.99, ..TrainOptions::default() };
    let mut target = LjDimer;
    let mut trainer = Trainer::new(flow(LENGTHS[1], 2)?, &[], Some(&mut target), options)?.with_map(jump)?;
    while !trainer.is_finished() {
        if let Some(progress) = trainer.step()? {
            println!("{:>6}  jumps accepted {:.2} %", progress.step, 100.0 * progress.acceptance);
        }
    }
    let file = |flow: &CouplingFlow<f32>| model_file::read("dimer", &flow.to_bytes()?);
    let files = [file(&flow(LENGTHS[0], 0)?)?, file(&trainer.averaged()?)?];
    let parts = regions().into_iter().zip(&files).zip([at_closed, at_open]);
    let config = Config {
        nearest_along: vec![],
        modes: parts
            .map(|((region, file), reference)| ModeConfig { region, card: file.card.clone(), reference })
            .collect(),
        edges: vec![],
        noise: 0.0,
        identical: Some(IdenticalConfig { dimension: 2, particles: (2..PARTICLES).collect() }),
    };
    bundle(config, &files)
}

/// Record of a chain: the dimer's length and u after every trajectory, and the outcomes of its jumps.
struct Chain {
    lengths: Vec<f64>,
    energies: Vec<f64>,
    jump: Option<ModeJump>,
    seconds: f64,
}

/// Runs local dynamics from the closed state, with jumps if a model is given.
fn simulate(model: Option<&Arc<dyn Model>>, replica: u32) -> Result<Chain> {
    let options = Options { seed: 3, ..Options::default() };
    let mut jump = model.map(|model| ModeJump::of_model(model, None, options)).transpose()?;
    let mut stream = Stream::new(5, StreamId::Dynamics, 0, replica);
    let (mut x, mut target, begin) = (start(LENGTHS[0]), LjDimer, Instant::now());
    (0..EQUILIBRATION).for_each(|_| _ = trajectory(&mut x, &free, &mut stream));
    let (mut lengths, mut energies) = (Vec::new(), Vec::new());
    for step in 0..ATTEMPTS {
        let mut u = 0.0;
        (0..LOCAL).for_each(|_| u = trajectory(&mut x, &free, &mut stream));
        if let Some(jump) = &mut jump {
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential: u, step, replica };
            u = jump.attempt(&mut target, &mut state)?.reduced_potential;
        }
        lengths.push(length(&x));
        energies.push(u);
    }
    Ok(Chain { lengths, energies, jump, seconds: begin.elapsed().as_secs_f64() })
}

fn centre(bin: usize) -> f64 {
    RANGE[0] + (RANGE[1] - RANGE[0]) * (bin as f64 + 0.5) / BINS as f64
}

fn histogram(lengths: &[f64]) -> Vec<f64> {
    let mut counts = vec![0.0; BINS];
    for d in lengths {
        let bin = ((d - RANGE[0]) / (RANGE[1] - RANGE[0]) * BINS as f64).floor();
        if (0.0..BINS as f64).contains(&bin) {
            counts[bin as usize] += 1.0;
        }
    }
    counts
}

/// −ln of the fraction in every bin, and ΔF = −ln P(open)/P(closed).
fn profile(log_mass: &[f64]) -> (Vec<f64>, f64) {
    let total = log_sum_exp(log_mass);
    let side = |open: bool| {
        let part: Vec<f64> = (0..BINS).filter(|&b| (centre(b) > MIDDLE) == open).map(|b| log_mass[b]).collect();
        log_sum_exp(&part)
    };
    (log_mass.iter().map(|m| total - m).collect(), side(false) - side(true))
}

/// ln of the unbiased mass of every bin, from the windows by the weighted histogram method (Ferrenberg and Swendsen,
/// Phys. Rev. Lett. 63, 1195 (1989)).
fn umbrella(seed: u64) -> Vec<f64> {
    let middle = |w: usize| RANGE[0] + (RANGE[1] - RANGE[0]) * (w as f64 + 0.5) / WINDOWS as f64;
    let held = |w: usize, d: f64| (0.5 * WINDOW * (d - middle(w)).powi(2), WINDOW * (d - middle(w)));
    let window = |w: usize| {
        let mut stream = Stream::new(seed, StreamId::Test, w as u64, 1);
        let mut x = start(middle(w));
        let bias = |d: f64| held(w, d);
        (0..EQUILIBRATION).for_each(|_| _ = trajectory(&mut x, &bias, &mut stream));
        let lengths: Vec<f64> = (0..UMBRELLA)
            .map(|_| {
                trajectory(&mut x, &bias, &mut stream);
                length(&x)
            })
            .collect();
        histogram(&lengths)
    };
    let counts: Vec<Vec<f64>> = (0..WINDOWS).into_par_iter().map(window).collect();
    let total: Vec<f64> = (0..BINS).map(|b| counts.iter().map(|c| c[b]).sum::<f64>().ln()).collect();
    let n: Vec<f64> = counts.iter().map(|c| c.iter().sum::<f64>().ln()).collect();
    let (mut f, mut log_mass) = (vec![0.0; WINDOWS], vec![0.0; BINS]);
    for _ in 0..5000 {
        for (b, mass) in log_mass.iter_mut().enumerate() {
            let terms: Vec<f64> = (0..WINDOWS).map(|w| n[w] + f[w] - held(w, centre(b)).0).collect();
            *mass = total[b] - log_sum_exp(&terms);
        }
        for (w, f) in f.iter_mut().enumerate() {
            let terms: Vec<f64> = log_mass.iter().enumerate().map(|(b, mass)| mass - held(w, centre(b)).0).collect();
            *f = -log_sum_exp(&terms);
        }
    }
    log_mass
}

/// Mean and standard error of independent values.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n * (n - 1.0))).sqrt())
}

fn chains(model: Option<&Arc<dyn Model>>) -> Result<Vec<Chain>> {
    (0..CHAINS as u32).into_par_iter().map(|replica| simulate(model, replica)).collect()
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().unwrap_or_else(|| "target/dimer".into()));
    let steps = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(4000);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    let path = folder.join("modes.safetensors");
    if !path.exists() {
        write_atomically(&path, &train(steps)?)?;
    }
    let model = models::load(&path)?;
    let (jumping, plain) = (chains(Some(&model))?, chains(None)?);
    let begin = Instant::now();
    let windows: Vec<Vec<f64>> = (0..CHAINS).map(umbrella).collect();
    let held = begin.elapsed().as_secs_f64();
    let logs = |chain: &Chain| histogram(&chain.lengths).iter().map(|c| c.ln()).collect::<Vec<_>>();
    let of_jumps: Vec<(Vec<f64>, f64)> = jumping.iter().map(|chain| profile(&logs(chain))).collect();
    let of_windows: Vec<(Vec<f64>, f64)> = windows.iter().map(|w| profile(w)).collect();
    let shift = |of: &[(Vec<f64>, f64)]| mean(&of.iter().map(|(_, shift)| *shift).collect::<Vec<_>>());
    let seconds = |chains: &[Chain]| chains.iter().map(|chain| chain.seconds).sum::<f64>();
    let crossings = |chain: &Chain| chain.lengths.windows(2).filter(|w| (w[0] > MIDDLE) != (w[1] > MIDDLE)).count();
    let count = |fate: Fate| {
        jumping.iter().filter_map(|chain| chain.jump.as_ref()).map(|jump| jump.statistics().count(fate)).sum::<u64>()
    };
    let attempts = (CHAINS * ATTEMPTS) as f64;
    let [jumps, umbrella] = [shift(&of_jumps), shift(&of_windows)];
    println!("jumps: accepted {:.2} %", 100.0 * count(Fate::Accepted) as f64 / attempts);
    for fate in [Fate::Rejected, Fate::OutOfSupport, Fate::NonFinite, Fate::WrongMode] {
        println!("  {fate:?} {:.2} %", 100.0 * count(fate) as f64 / attempts);
    }
    println!("| | crossings | dF / kT | <u> | s |\n|---|---|---|---|---|");
    for (name, chains, shift) in [("jumps", &jumping, Some(jumps)), ("local dynamics alone", &plain, None)] {
        let u = mean(&chains.iter().map(|c| mean(&c.energies).0).collect::<Vec<_>>());
        let shift = shift.map_or("–".into(), |(value, error)| format!("{value:.3} ± {error:.3}"));
        let crossings: usize = chains.iter().map(crossings).sum();
        println!("| {name} | {crossings} | {shift} | {:.2} ± {:.2} | {:.0} |", u.0, u.1, seconds(chains));
    }
    println!("| umbrella sampling | – | {:.3} ± {:.3} | – | {held:.0} |", umbrella.0, umbrella.1);
    let average = |of: &[(Vec<f64>, f64)]| -> Vec<f64> {
        (0..BINS)
            .map(|b| -log_sum_exp(&of.iter().map(|(f, _)| -f[b]).collect::<Vec<_>>()) + (of.len() as f64).ln())
            .collect()
    };
    let results = serde_json::json!({
        "lengths": (0..BINS).map(centre).collect::<Vec<_>>(),
        "jumps": average(&of_jumps), "umbrella": average(&of_windows), "shift": { "jumps": jumps, "umbrella": umbrella },
    });
    let path = folder.join("results.json");
    std::fs::write(&path, results.to_string()).map_err(|e| Error::io(&path, e))?;
    figure(&folder.join("profile.svg"), &average(&of_jumps), &average(&of_windows))
}

/// Plots the free energy along the dimer's length from jumps and from umbrella sampling.
fn figure(path: &Path, jumps: &[f64], umbrella: &[f64]) -> Result<()> {
    let mut svg = String::new();
    draw(&mut svg, jumps, umbrella).map_err(|e| Error::invalid(format!("could not draw the figure: {e}")))?;
    write_atomically(path, svg.as_bytes())
}

fn draw(svg: &mut String, jumps: &[f64], umbrella: &[f64]) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, (560, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let bottom = umbrella.iter().copied().fold(f64::INFINITY, f64::min);
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(52)
        .build_cartesian_2d(RANGE[0]..RANGE[1], -1.0..24.0)?;
    chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("length of the dimer").y_desc("F / kT").draw()?;
    let points = |f: &[f64]| -> Vec<(f64, f64)> {
        f.iter().enumerate().map(|(b, f)| (centre(b), f - bottom)).filter(|p| p.1.is_finite() && p.1 < 24.0).collect()
    };
    let (grey, blue) = (RGBColor(120, 120, 120), RGBColor(31, 119, 180));
    chart
        .draw_series(LineSeries::new(points(umbrella), grey.stroke_width(2)))?
        .label("umbrella sampling")
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], grey.stroke_width(2)));
    chart
        .draw_series(points(jumps).into_iter().map(|p| Circle::new(p, 3, blue.filled())))?
        .label("local dynamics and jumps")
        .legend(move |(x, y)| Circle::new((x + 9, y), 3, blue.filled()));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperMiddle)
        .border_style(TRANSPARENT)
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}
