//! A training that was saved and loaded goes on bit for bit.

use super::trainer::{Phase, TrainOptions, TrainState, Trainer};
use crate::coordinates::CoordinatesConfig;
use crate::density::{Density, Exactness};
use crate::error::Result;
use crate::io::checkpoint;
use crate::models::card::{ModelCard, ModelConfig, FORMAT};
use crate::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use crate::nn::Activation;
use crate::rng::{Stream, StreamId};
use crate::target::Target;

const DIMENSION: usize = 6;

fn flow() -> CouplingFlow<f32> {
    let layer = |turn: usize| {
        let half = |h: usize| (3 * h..3 * h + 3).collect::<Vec<_>>();
        LayerConfig::Affine {
            transformed: half(turn % 2),
            features: Features { periodic: vec![], harmonics: 1, plain: half(1 - turn % 2) },
            hidden: vec![8],
            activation: Activation::Silu,
            scale_activation: None,
            preserve_volume: false,
        }
    };
    let config = CouplingConfig { uniform: vec![], layers: (0..4).map(layer).collect() };
    let mut flow = CouplingFlow::new(ModelCard {
        format: FORMAT,
        model: ModelConfig::Coupling(config),
        coordinates: CoordinatesConfig::Cartesian { dimension: DIMENSION },
        exactness: Exactness::Exact,
        temperature: None,
        target: None,
        topology: None,
        provenance: Default::default(),
    })
    .unwrap();
    flow.initialise(3);
    flow
}

/// u = |x − 1|²/(2·0.8²)
struct Gaussian;

impl Target for Gaussian {
    fn dimension(&self) -> usize {
        DIMENSION
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g = (x - 1.0) / 0.64);
        for (u, x) in u.iter_mut().zip(x.chunks_exact(DIMENSION)) {
            *u = x.iter().map(|x| (x - 1.0).powi(2) / 1.28).sum();
        }
        Ok(())
    }
}

fn frames() -> Vec<f64> {
    let mut stream = Stream::new(2, StreamId::Test, 0, 0);
    (0..300 * DIMENSION).map(|i| 0.8 * stream.normal() + (i % 2) as f64).collect()
}

/// Twenty steps with `cut` saved to a file and loaded in between: the bytes of the last state, and the first parameters' drift.
fn train(phase: Phase, with_target: bool, cut: Option<usize>) -> (Vec<u8>, Vec<f32>) {
    let options = TrainOptions { phases: vec![phase], evaluate: 7, evaluation_samples: 64, ..TrainOptions::default() };
    let path =
        std::env::temp_dir().join(format!("modejump-training-{}-{with_target}-{cut:?}.ckpt", std::process::id()));
    let frames = frames();
    let mut target = Gaussian;
    let mut run = |state: Option<TrainState>, steps: usize| {
        let target = with_target.then_some(&mut target as &mut dyn Target);
        let mut trainer = match state {
            None => Trainer::new(flow(), &frames, target, options.clone()),
            Some(state) => Trainer::resume(flow(), &frames, target, state),
        }
        .unwrap();
        (0..steps).for_each(|_| _ = trainer.step().unwrap());
        checkpoint::save(&path, checkpoint::TRAINING, trainer.state()).unwrap();
        trainer.averaged().unwrap().parameters().to_vec()
    };
    let parameters = match cut {
        None => run(None, 20),
        Some(n) => {
            run(None, n);
            let state: TrainState = checkpoint::load(&path, checkpoint::TRAINING).unwrap();
            assert_eq!(state.step, n);
            run(Some(state), 20 - n)
        }
    };
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    (bytes, parameters)
}

fn check(phase: Phase, with_target: bool) {
    let whole = train(phase.clone(), with_target, None);
    assert!(whole.1 != flow().parameters(), "nothing was learned");
    for cut in [1, 10, 13] {
        assert!(train(phase.clone(), with_target, Some(cut)) == whole, "cut after {cut} steps");
    }
}

#[test]
fn training_on_frames_goes_on_bit_for_bit() {
    check(Phase { steps: 20, batch: 32, ..Phase::default() }, false);
}

#[test]
fn training_on_energies_goes_on_bit_for_bit() {
    let phase = Phase {
        steps: 20,
        batch: 32,
        reverse_kl: 0.5,
        energy_batch: 32,
        refinement: 0.5,
        refinement_batch: 32,
        refresh: 6,
        draw: 64,
        keep: 128,
        ..Phase::default()
    };
    check(phase, true);
}

#[test]
fn a_state_of_another_model_is_refused() {
    let frames = frames();
    let options = TrainOptions::default();
    let state = Trainer::new(flow(), &frames, None, options).unwrap().state().clone();
    let mut card = crate::models::Model::card(&flow()).clone();
    let ModelConfig::Coupling(config) = &mut card.model else { unreachable!() };
    config.layers.truncate(3);
    let other = CouplingFlow::new(card).unwrap();
    assert_eq!(other.dimension(), DIMENSION);
    let message = Trainer::resume(other, &frames, None, state).err().unwrap().to_string();
    assert!(message.contains("another model"), "{message}");
}
