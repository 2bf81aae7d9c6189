//! Trains one generator for each well of a double well, on the potential alone, and writes both to one model file for
//! jumps between the wells by T_right ∘ T_left⁻¹.
//!
//! cargo run --release --example double_well_modes -- models/double-well/modes.safetensors

#[path = "support/double_well.rs"]
mod double_well;

use double_well::DoubleWell;
use modejump::coordinates::{Along, CoordinatesConfig, Region};
use modejump::error::Result;
use modejump::io::{model_file, write_atomically};
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::modes::{bundle, Config, ModeConfig};
use modejump::models::{ModelCard, TargetInfo};
use modejump::modes::{ModeRegion, Modes, Within};
use modejump::nn::Activation;
use modejump::train::Phase;
use modejump::train::{TrainOptions, Trainer};

fn regions() -> Vec<ModeRegion> {
    let half = |name: &str, range: [f64; 2]| ModeRegion {
        name: name.into(),
        within: vec![Region { along: Along::Component(0), range }],
        centre: vec![],
    };
    vec![half("left", [-3.0, 0.0]), half("right", [0.0, 3.0])]
}

/// Alternating affine couplings, then the normal density of the harmonic approximation about the minimum.
fn generator(sign: f64) -> Result<CouplingFlow<f32>> {
    let coupling = |moved: usize| LayerConfig::Affine {
        transformed: vec![moved],
        features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - moved] },
        hidden: vec![16, 16],
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume: false,
    };
    // widths of x and of y − x/2, from the curvatures 80 and 10
    let (wx, wy) = (80f64.powf(-0.5), 10f64.powf(-0.5));
    let harmonic = LayerConfig::Whiten {
        transformed: vec![0, 1],
        mean: vec![sign, 0.5 * sign],
        matrix: vec![wx, 0.0, 0.5 * wx, wy],
    };
    let layers = vec![coupling(1), coupling(0), coupling(1), coupling(0), harmonic];
    let mut card = ModelCard::of_coupling(
        CouplingConfig { uniform: vec![], layers },
        CoordinatesConfig::Cartesian { dimension: 2 },
    );
    card.target = Some(TargetInfo { description: "10 (x^2 - 1)^2 + x/2 + 5 (y - x/2)^2".into(), hash: None });
    card.provenance.insert("command".into(), "cargo run --release --example double_well_modes".into());
    let mut flow = CouplingFlow::new(card)?;
    flow.initialise(7);
    Ok(flow)
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "double-well-modes.safetensors".into());
    let (regions, mut target) = (regions(), DoubleWell);
    let modes = Modes::new(&[], &regions, 2)?;
    let mut files = Vec::new();
    for (mode, sign) in [-1.0, 1.0].into_iter().enumerate() {
        let phase =
            Phase { steps: 1500, rate: 3e-3, likelihood: 0.0, reverse_kl: 1.0, energy_batch: 256, ..Phase::default() };
        let options = TrainOptions { phases: vec![phase], evaluate: 500, ..TrainOptions::default() };
        let mut within = Within { target: &mut target, modes: modes.clone(), mode };
        let mut trainer = Trainer::new(generator(sign)?, &[], Some(&mut within), options)?;
        while !trainer.is_finished() {
            if let Some(progress) = trainer.step()? {
                println!("{:>6} {:>6} ESS {:.1} %", regions[mode].name, progress.step, 100.0 * progress.ess);
            }
        }
        files.push(model_file::read(&regions[mode].name, &trainer.averaged()?.to_bytes()?)?);
    }
    let mode = |(region, file): (ModeRegion, &model_file::ModelFile)| ModeConfig {
        region,
        card: file.card.clone(),
        reference: vec![],
    };
    let config = Config {
        nearest_along: vec![],
        modes: regions.into_iter().zip(&files).map(mode).collect(),
        edges: vec![],
        noise: 0.0,
        identical: None,
    };
    write_atomically(path.as_ref(), &bundle(config, &files)?)
}
