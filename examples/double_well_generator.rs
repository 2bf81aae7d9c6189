//! Trains the generator that `examples/cpp-double-well` uses, from the potential alone: reverse KL, no data.
//!
//! cargo run --release --example double_well_generator -- models/double-well/generator.safetensors

use modejump::coordinates::CoordinatesConfig;
use modejump::density::Exactness;
use modejump::error::Result;
use modejump::models::card::FORMAT;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use modejump::models::{ModelCard, ModelConfig, TargetInfo};
use modejump::nn::Activation;
use modejump::target::Target;
use modejump::train::trainer::Phase;
use modejump::train::{TrainOptions, Trainer};

/// u(x, y) = 10 (x² − 1)² + x/2 + 5 (y − x/2)²: two wells, a barrier of 10 kT, correlated coordinates.
struct DoubleWell;

impl Target for DoubleWell {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        for (x, u) in x.chunks_exact(2).zip(u) {
            *u = 10.0 * (x[0] * x[0] - 1.0).powi(2) + 0.5 * x[0] + 5.0 * (x[1] - 0.5 * x[0]).powi(2);
        }
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.reduced_potential(x, u)?;
        for (x, g) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)) {
            let slope = 10.0 * (x[1] - 0.5 * x[0]);
            g[0] = 40.0 * x[0] * (x[0] * x[0] - 1.0) + 0.5 - 0.5 * slope;
            g[1] = slope;
        }
        Ok(())
    }
}

/// Uniform numbers through splines that take turns, then stretched to |x| < 2, |y| < 3.
fn layers() -> Vec<LayerConfig> {
    let spline = |moved: usize| LayerConfig::Spline {
        transformed: vec![moved],
        features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - moved] },
        ends: Ends::Free,
        bins: 24,
        interval: [0.0, 1.0],
        hidden: vec![32, 32],
        activation: Activation::Silu,
        identity_init: true,
    };
    let stretch = LayerConfig::Uniform { transformed: vec![0, 1], low: vec![-2.0, -3.0], high: vec![2.0, 3.0] };
    vec![spline(1), spline(0), spline(1), stretch]
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "double-well.safetensors".into());
    let card = ModelCard {
        format: FORMAT,
        model: ModelConfig::Coupling(CouplingConfig { uniform: vec![0, 1], layers: layers() }),
        coordinates: CoordinatesConfig::Cartesian { dimension: 2 },
        exactness: Exactness::Exact,
        temperature: None,
        target: Some(TargetInfo { description: "u = 10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2".into(), hash: None }),
        topology: None,
        provenance: [("command".to_string(), "cargo run --release --example double_well_generator".to_string())].into(),
    };
    let mut flow = CouplingFlow::<f32>::new(card)?;
    flow.initialise(1);
    let phase = Phase { steps: 3000, rate: 2e-3, likelihood: 0.0, reverse_kl: 1.0, ..Phase::default() };
    let options = TrainOptions { phases: vec![phase], average: 0.995, ..TrainOptions::default() };
    let mut target = DoubleWell;
    let mut trainer = Trainer::new(flow, &[], Some(&mut target), options)?;
    while !trainer.is_finished() {
        if let Some(progress) = trainer.step()? {
            println!("step {:5}  ESS {:.3}  acceptance {:.3}", progress.step, progress.ess, progress.acceptance);
        }
    }
    trainer.averaged()?.save(&path)?;
    println!("wrote {path}");
    Ok(())
}
