//! One model for a temperature ladder: trains a temperature-steerable flow on the double well at 600 K, then runs jumps
//! and local steps with it from 300 K to 1200 K.
//!
//! cargo run --release --example double_well_steerable -- models/double-well/steerable.safetensors
//!
//! If the model file exists, training is skipped.

#[path = "support/double_well.rs"]
mod double_well;

use double_well::DoubleWell;
use modejump::coordinates::CoordinatesConfig;
use modejump::error::Result;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::{self, Model, ModelCard, SteeringConfig, TargetInfo};
use modejump::moves::{self, Move, Options, RandomWalk, State};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::train::Phase;
use modejump::train::{Schedule, TrainOptions, Trainer};
use std::path::Path;
use std::sync::Arc;

/// The double well defines u at 300 K; the model is trained at 600 K.
const POTENTIAL: f64 = 300.0;
const TRAINED: f64 = 600.0;
const LADDER: [f64; 5] = [300.0, 400.0, 600.0, 850.0, 1200.0];

/// The double well at a given temperature (K).
struct At(f64);

impl Target for At {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        DoubleWell.reduced_potential(x, u)?;
        u.iter_mut().for_each(|u| *u *= POTENTIAL / self.0);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        DoubleWell.reduced_potential_gradient(x, u, gradient)?;
        u.iter_mut().chain(gradient).for_each(|v| *v *= POTENTIAL / self.0);
        Ok(())
    }
}

/// Volume-preserving couplings of (x, y, v, w) that alternate between positions and auxiliary coordinates, and between
/// the pairs (x, v) and (y, w).
fn flow() -> Result<CouplingFlow<f32>> {
    let coupling = |moved: [usize; 2], seen: [usize; 2]| LayerConfig::Affine {
        transformed: moved.to_vec(),
        features: Features { periodic: vec![], harmonics: 1, plain: seen.to_vec() },
        hidden: vec![48, 48],
        activation: Activation::Silu,
        scale_activation: Some(Activation::Silu),
        preserve_volume: true,
    };
    let pairs = [([0, 1], [2, 3]), ([2, 3], [0, 1]), ([0, 2], [1, 3]), ([1, 3], [0, 2])];
    let mut layers: Vec<LayerConfig> =
        (0..16).map(|i| pairs[i % 4]).map(|(moved, seen)| coupling(moved, seen)).collect();
    layers.push(LayerConfig::Whiten {
        transformed: vec![0, 1],
        mean: vec![0.0; 2],
        matrix: vec![0.5, 0.0, 0.25, 0.45],
    });
    let mut card = ModelCard::of_coupling(
        CouplingConfig { uniform: vec![], layers },
        CoordinatesConfig::Cartesian { dimension: 4 },
    );
    card.steering = Some(SteeringConfig { auxiliary: 2 });
    card.temperature = Some(TRAINED);
    card.target = Some(TargetInfo {
        description: "u = 10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2 at 300 K, half of it at 600 K".into(),
        hash: None,
    });
    card.provenance.insert("command".into(), "cargo run --release --example double_well_steerable".into());
    let mut flow = CouplingFlow::new(card)?;
    flow.initialise(5);
    Ok(flow)
}

/// Independent configurations at 600 K: x by rejection sampling from a uniform density on |x| < 2, y normal given x.
fn frames(n: usize) -> Vec<f64> {
    let mut stream = Stream::new(1, StreamId::Dynamics, 0, 0);
    let tau = TRAINED / POTENTIAL;
    let mut frames = Vec::with_capacity(2 * n);
    while frames.len() < 2 * n {
        let x = 4.0 * stream.uniform() - 2.0;
        let log_p = -(10.0 * (x * x - 1.0).powi(2) + 0.5 * (x + 1.2)) / tau;
        if stream.uniform().ln() < log_p {
            frames.extend([x, 0.5 * x + (tau / 10.0).sqrt() * stream.normal()]);
        }
    }
    frames
}

fn train(path: &Path) -> Result<()> {
    let frames = frames(200_000);
    let likelihood = Phase { steps: 4000, rate: 2e-3, batch: 512, ..Phase::default() };
    let energies = Phase {
        steps: 4000,
        rate: 1e-3,
        reverse_kl: 1.0,
        latent_temperatures: vec![0.5, 0.75, 1.0, 1.5, 2.0],
        schedule: Schedule::Cosine,
        ..likelihood.clone()
    };
    let options = TrainOptions { phases: vec![likelihood, energies], average: 0.995, ..TrainOptions::default() };
    let mut target = At(TRAINED);
    let mut trainer = Trainer::new(flow()?, &frames, Some(&mut target), options)?;
    while !trainer.is_finished() {
        if let Some(progress) = trainer.step()? {
            println!("step {:5}  ESS {:.3}  acceptance {:.3}", progress.step, progress.ess, progress.acceptance);
        }
    }
    trainer.averaged()?.save(path)?;
    println!("wrote {}", path.display());
    Ok(())
}

/// ⟨u⟩ by quadrature over x; y contributes 1/2.
fn mean_by_quadrature(kelvin: f64) -> f64 {
    let tau = kelvin / POTENTIAL;
    let (mut sum, mut norm) = (0.0, 0.0);
    for i in 0..40_000 {
        let x = -4.0 + 2e-4 * f64::from(i);
        let u = (10.0 * (x * x - 1.0).powi(2) + 0.5 * x) / tau;
        sum += u * (-u).exp();
        norm += (-u).exp();
    }
    sum / norm + 0.5
}

/// Runs jumps, each followed by a local step, at one temperature. Returns the acceptance of the jumps and u of every
/// state.
fn run(model: &Arc<dyn Model>, kelvin: f64, replica: u32, attempts: u64) -> Result<(f64, Vec<f64>)> {
    let mut target = At(kelvin);
    let mut jump = moves::of_model(model, Options { seed: 3, stride: 1, ..Options::default() }, None)?;
    jump.set_temperature(kelvin)?;
    let mut walk = RandomWalk::new(2, 0.15, 4)?;
    let (mut x, mut u, mut series) = ([-1.0, -0.5], [0.0], Vec::new());
    target.reduced_potential(&x, &mut u)?;
    for step in 0..attempts {
        let moves: [&mut dyn Move; 2] = [jump.as_mut(), &mut walk];
        for kernel in moves {
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential: u[0], step, replica };
            kernel.attempt(&mut target, &mut state)?;
            u[0] = state.reduced_potential;
        }
        series.push(u[0]);
    }
    Ok((jump.statistics().acceptance(), series))
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "steerable.safetensors".into());
    if !Path::new(&path).exists() {
        train(Path::new(&path))?;
    }
    let model = models::load(&path)?;
    println!("T (K)   acceptance of jumps   <u> by jumps and steps   <u> by quadrature");
    for (replica, kelvin) in LADDER.into_iter().enumerate() {
        let (acceptance, u) = run(&model, kelvin, replica as u32, 100_000)?;
        let mean = modejump::free_energy::mean_of_series(&u)?;
        let (found, error) = (mean.value, mean.standard_error);
        println!(
            "{kelvin:5}   {:19.1} %   {found:13.4} ± {error:.4}   {:17.4}",
            100.0 * acceptance,
            mean_by_quadrature(kelvin)
        );
    }
    Ok(())
}
