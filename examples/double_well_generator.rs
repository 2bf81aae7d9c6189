//! Trains the generator of `examples/cpp-double-well` on the potential alone, by reverse KL without data.
//!
//! cargo run --release --example double_well_generator -- models/double-well/generator.safetensors

#[path = "support/double_well.rs"]
mod double_well;

use double_well::DoubleWell;
use modejump::coordinates::CoordinatesConfig;
use modejump::density::Exactness;
use modejump::error::Result;
use modejump::models::card::FORMAT;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use modejump::models::{ModelCard, ModelConfig, TargetInfo};
use modejump::nn::Activation;
use modejump::train::Phase;
use modejump::train::{TrainOptions, Trainer};

/// Uniform latents through alternating spline couplings, then scaled to |x| < 2, |y| < 3.
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
        steering: None,
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
