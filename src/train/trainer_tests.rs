//! A training that was saved and loaded continues bit for bit; losses that need a flow.

use super::losses;
use super::optimiser::Schedule;
use super::phases::{Phase, TrainOptions};
use super::reaction_coordinate::ReactionCoordinate;
use super::trainer::{held_out, TrainState, Trainer, MOST_HELD_OUT};
use crate::coordinates::Along;
use crate::coordinates::CoordinatesConfig;
use crate::density::{Density, Evaluation, Exactness, Status};
use crate::error::Result;
use crate::io::checkpoint;
use crate::models::card::{ModelCard, ModelConfig, SteeringConfig, FORMAT};
use crate::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use crate::models::JointTarget;
use crate::nn::Activation;
use crate::rng::{Stream, StreamId};
use crate::target::Target;

const DIMENSION: usize = 6;

fn flow() -> CouplingFlow<f32> {
    flow_of(affine(DIMENSION, 8), DIMENSION)
}

/// Four affine couplings of the two halves of the coordinates.
fn affine(dimension: usize, hidden: usize) -> CouplingConfig {
    let half = |h: usize| (h * dimension / 2..(h + 1) * dimension / 2).collect::<Vec<_>>();
    let layer = |turn: usize| LayerConfig::Affine {
        transformed: half(turn % 2),
        features: Features { periodic: vec![], harmonics: 1, plain: half(1 - turn % 2) },
        hidden: vec![hidden],
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume: false,
    };
    CouplingConfig { uniform: vec![], layers: (0..4).map(layer).collect() }
}

fn flow_of(config: CouplingConfig, dimension: usize) -> CouplingFlow<f32> {
    let mut flow = CouplingFlow::new(ModelCard {
        format: FORMAT,
        model: ModelConfig::Coupling(config),
        coordinates: CoordinatesConfig::Cartesian { dimension },
        exactness: Exactness::Exact,
        temperature: None,
        steering: None,
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

fn finish(trainer: &mut Trainer) {
    while !trainer.is_finished() {
        trainer.step().unwrap();
    }
}

#[test]
fn of_a_training_that_overfits_the_best_model_is_kept() {
    let frames = &frames()[..24 * DIMENSION];
    let phases = vec![Phase { steps: 400, rate: 0.01, schedule: Schedule::Constant, ..Phase::default() }];
    let options = TrainOptions { phases, held_out: 0.5, evaluate: 20, average: 0.9, ..TrainOptions::default() };
    let mut trainer = Trainer::new(flow(), frames, None, options).unwrap();
    finish(&mut trainer);
    let history = trainer.state().history.clone();
    let best = history.iter().min_by(|a, b| a.held_out.total_cmp(&b.held_out)).unwrap();
    let last = history.last().unwrap();
    assert!(last.held_out > best.held_out + 1.0 && last.better == Some(best.step), "{best:?} {last:?}");
    let held_out = |flow: CouplingFlow<f32>| {
        let mut log_q = vec![Evaluation::inside(0.0); 12];
        flow.log_density(&frames[..12 * DIMENSION], &mut log_q).unwrap();
        -log_q.iter().map(|e| e.log_density).sum::<f64>() / 12.0
    };
    assert_eq!(held_out(trainer.best().unwrap()), best.held_out);
    assert_eq!(held_out(trainer.averaged().unwrap()), last.held_out);
}

/// Energies centred elsewhere lead away from the frames; patience is not spent on the way back.
/// Twice as many held-out frames as are evaluated, of which the second half is from another file.
#[test]
fn the_held_out_loss_is_that_of_all_held_out_frames() {
    let flow = flow();
    let d = flow.dimension();
    let files = [0.0, 2.0].map(|x| vec![x; MOST_HELD_OUT * d]);
    let [first, second] = files.each_ref().map(|x| held_out(&flow, x).unwrap());
    assert!((first - second).abs() > 0.1, "{first} {second}");
    let both = held_out(&flow, &files.concat()).unwrap();
    assert!((both - 0.5 * (first + second)).abs() < 1e-9, "{both} of {first} and {second}");
}

#[test]
fn patience_begins_anew_with_each_phase() {
    let frames = frames();
    let by_frames = Phase { steps: 60, rate: 0.01, schedule: Schedule::Constant, ..Phase::default() };
    let by_energies = Phase { likelihood: 0.0, reverse_kl: 1.0, steps: 30, ..by_frames.clone() };
    let phases = vec![Phase { steps: 300, ..by_frames.clone() }, by_energies, by_frames];
    let options = TrainOptions { phases, patience: 2, evaluate: 10, average: 0.5, ..TrainOptions::default() };
    let mut target = Gaussian;
    let mut trainer = Trainer::new(flow(), &frames, Some(&mut target), options).unwrap();
    finish(&mut trainer);
    let history = &trainer.state().history;
    let held_out: Vec<f64> = history.iter().rev().take(6).map(|progress| progress.held_out).collect();
    let before = history.iter().map(|progress| progress.held_out).fold(f64::INFINITY, f64::min);
    assert!(held_out[4] > before + 0.1 && held_out[4] > held_out[2], "{held_out:?} after {before}");
    let steps = history.last().unwrap().step;
    let of_last = steps - history.iter().rev().find(|progress| !progress.reverse_kl.is_nan()).unwrap().step;
    assert!(of_last > 20, "{of_last} steps: {held_out:?}");
}

/// Twenty steps with `cut` saved to a file and loaded in between: the bytes of the last state, and the first
/// parameters' drift.
fn train(phase: Phase, with_target: bool, cut: Option<usize>) -> (Vec<u8>, Vec<f32>) {
    let spread = ReactionCoordinate { along: Along::Component(0), range: [-3.0, 3.0], bandwidth: 0.3 };
    let options = TrainOptions {
        reaction_coordinate: (phase.reaction_coordinate > 0.0).then_some(spread),
        phases: vec![phase],
        evaluate: 7,
        evaluation_samples: 64,
        ..TrainOptions::default()
    };
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
        reaction_coordinate: 0.3,
        force_matching: 0.01,
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

#[test]
fn a_training_that_diverges_ends_with_an_error() {
    let frames = frames();
    let phase = Phase { steps: 1000, rate: 1e30, schedule: Schedule::Constant, batch: 16, ..Phase::default() };
    let options = TrainOptions { phases: vec![phase], evaluate: 20, ..TrainOptions::default() };
    let mut trainer = Trainer::new(flow(), &frames, None, options).unwrap();
    let message = (0..1000).find_map(|_| trainer.step().err()).expect("it has diverged").to_string();
    assert!(message.contains("training diverged at step"), "{message}");
}

#[test]
fn losses_without_what_they_need_are_refused() {
    let refusal = |phase: Phase, spread: Option<ReactionCoordinate>| {
        let options = TrainOptions { phases: vec![phase], reaction_coordinate: spread, ..TrainOptions::default() };
        Trainer::new(flow(), &frames(), Some(&mut Gaussian), options).err().unwrap().to_string()
    };
    let along = |i| Some(ReactionCoordinate { along: Along::Component(i), range: [0.0, 1.0], bandwidth: 0.1 });
    let phase = Phase { reaction_coordinate: 1.0, ..Phase::default() };
    assert!(refusal(phase.clone(), None).contains("define the coordinate next to `phases`"));
    assert!(refusal(phase.clone(), along(0)).contains("set a positive `reverse_kl`"));
    assert!(refusal(Phase::default(), along(0)).contains("has no effect without a weight"));
    assert!(refusal(Phase { reverse_kl: 1.0, ..phase }, along(DIMENSION)).contains("component 6"));
    let options = |phase| TrainOptions { phases: vec![phase], ..TrainOptions::default() };
    let forces = Phase { likelihood: 0.0, force_matching: 1.0, ..Phase::default() };
    assert!(Trainer::new(flow(), &[], Some(&mut Gaussian), options(forces.clone())).is_err());
    let message = Trainer::new(flow(), &frames(), None, options(forces)).err().unwrap().to_string();
    assert!(message.contains("pass a System"), "{message}");
}

/// A flow with random weights in every layer.
fn shaken(flow: &mut CouplingFlow<f64>) {
    let mut stream = Stream::new(5, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|w| *w += 0.2 * stream.normal());
}

/// mean |∇u + ∇ log q|², from the definition.
fn mismatch(flow: &CouplingFlow<f64>, x: &[f64]) -> f64 {
    let n = x.len() / DIMENSION;
    let (mut u, mut force, mut score) = (vec![0.0; n], vec![0.0; x.len()], vec![0.0; x.len()]);
    Gaussian.reduced_potential_gradient(x, &mut u, &mut force).unwrap();
    flow.log_density_gradient(x, &mut vec![Evaluation::inside(0.0); n], &mut score).unwrap();
    force.iter().zip(&score).map(|(f, s)| (f + s).powi(2)).sum::<f64>() / n as f64
}

#[test]
fn the_gradient_of_force_matching_agrees_with_differences() {
    let mut flow = flow().cast::<f64>().unwrap();
    shaken(&mut flow);
    let x = &frames()[..20 * DIMENSION];
    let mut gradient = vec![0.0; flow.parameters().len()];
    let loss = losses::force_matching(&flow, &mut Gaussian, x, 3.0, &mut gradient).unwrap();
    assert!((loss - mismatch(&flow, x)).abs() < 1e-10);
    let largest = gradient.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
    for k in (0..gradient.len()).step_by(7) {
        let mut moved = |h: f64| {
            flow.parameters_mut()[k] += h;
            let loss = mismatch(&flow, x);
            flow.parameters_mut()[k] -= h;
            loss
        };
        let difference = 3.0 * (moved(1e-5) - moved(-1e-5)) / 2e-5;
        assert!((gradient[k] - difference).abs() < 1e-7 * largest, "{k}: {} {difference}", gradient[k]);
    }
}

/// A batch that includes a frame outside the flow's support has the loss of its other frames.
#[test]
fn force_matching_leaves_out_what_is_outside_the_support() {
    let mut flow = flow_of(splines(), 2).cast::<f64>().unwrap();
    shaken(&mut flow);
    let of = |x: &[f64]| {
        let mut gradient = vec![0.0; flow.parameters().len()];
        let loss = losses::force_matching(&flow, &mut DoubleWell, x, 1.0, &mut gradient).unwrap();
        (loss, gradient)
    };
    let (inside, edge) = ([0.3, -0.2, 0.9, 0.4], [3.0 - 1e-7, 0.1, 7.0, 0.0]);
    let (loss, gradient) = of(&inside);
    let (same_loss, same_gradient) = of(&[inside, edge].concat());
    assert!(loss > 0.0 && (loss - same_loss).abs() < 1e-9);
    assert!(gradient.iter().zip(&same_gradient).all(|(a, b)| (a - b).abs() < 1e-9));
}

/// u = 8 (r² − 1)² + 2 y²: wells at r = ±1, a barrier of 8 kT.
struct DoubleWell;

impl Target for DoubleWell {
    fn dimension(&self) -> usize {
        2
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for ((x, g), u) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)).zip(u) {
            let well = x[0] * x[0] - 1.0;
            *u = 8.0 * well * well + 2.0 * x[1] * x[1];
            g.copy_from_slice(&[32.0 * well * x[0], 4.0 * x[1]]);
        }
        Ok(())
    }
}

/// Splines on the square [−3, 3]².
fn splines() -> CouplingConfig {
    let spline = |i: usize| LayerConfig::Spline {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - i] },
        hidden: vec![16],
        activation: Activation::Silu,
        bins: 12,
        ends: Ends::Free,
        interval: [0.0, 1.0],
        identity_init: true,
    };
    let stretch = LayerConfig::Uniform { transformed: vec![0, 1], low: vec![-3.0; 2], high: vec![3.0; 2] };
    CouplingConfig { uniform: vec![0, 1], layers: vec![spline(0), spline(1), spline(0), stretch] }
}

/// Fraction of 2000 samples with r > 0 from a generator that saw frames of the left well, and was then trained on
/// energies.
fn share_on_the_right(reaction_coordinate: f64) -> f64 {
    let mut stream = Stream::new(6, StreamId::Test, 0, 0);
    let left: Vec<f64> = (0..500).flat_map(|_| [0.12 * stream.normal() - 1.0, 0.5 * stream.normal()]).collect();
    let by_frames =
        Phase { steps: 300, rate: 5e-3, batch: 128, schedule: super::Schedule::Constant, ..Phase::default() };
    let by_energies = Phase { steps: 500, likelihood: 0.0, reverse_kl: 1.0, reaction_coordinate, ..by_frames.clone() };
    let along_x = ReactionCoordinate { along: Along::Component(0), range: [-1.5, 1.5], bandwidth: 0.1 };
    let options = TrainOptions {
        phases: vec![by_frames, by_energies],
        reaction_coordinate: (reaction_coordinate > 0.0).then_some(along_x),
        average: 0.95,
        evaluate: 1000,
        ..TrainOptions::default()
    };
    let mut target = DoubleWell;
    let mut trainer = Trainer::new(flow_of(affine(2, 32), 2), &left, Some(&mut target), options).unwrap();
    while !trainer.is_finished() {
        trainer.step().unwrap();
    }
    let (mut x, mut status) = (vec![0.0; 4000], vec![Status::Inside; 2000]);
    let streams = |row: usize| Stream::new(7, StreamId::Test, 1, row as u32);
    trainer.averaged().unwrap().sample_only(&streams, &mut x, &mut status).unwrap();
    x.chunks(2).filter(|x| x[0] > 0.0).count() as f64 / 2000.0
}

#[test]
fn a_reaction_coordinate_spreads_over_a_barrier_where_energies_alone_stay() {
    let (alone, spread) = (share_on_the_right(0.0), share_on_the_right(2.0));
    assert!(alone < 0.01, "energies alone: {alone}");
    assert!((0.25..0.75).contains(&spread), "with the reaction coordinate: {spread}");
}

/// A steerable flow gets its auxiliary coordinates from the trainer; what it learns at two temperatures holds at a
/// third.
#[test]
fn a_steerable_flow_is_trained_at_several_temperatures() {
    let CouplingConfig { mut layers, .. } = affine(2 * DIMENSION, 8);
    for layer in &mut layers {
        let LayerConfig::Affine { preserve_volume, .. } = layer else { continue };
        *preserve_volume = true;
    }
    let matrix = (0..DIMENSION * DIMENSION).map(|k| if k % (DIMENSION + 1) == 0 { 0.8 } else { 0.0 }).collect();
    layers.push(LayerConfig::Whiten { transformed: (0..DIMENSION).collect(), mean: vec![0.0; DIMENSION], matrix });
    let card = ModelCard {
        steering: Some(SteeringConfig { auxiliary: DIMENSION }),
        ..ModelCard::of_coupling(
            CouplingConfig { uniform: vec![], layers },
            CoordinatesConfig::Cartesian { dimension: 2 * DIMENSION },
        )
    };
    let flow = || {
        let mut flow = CouplingFlow::<f32>::new(card.clone()).unwrap();
        flow.initialise(3);
        flow
    };
    let mut stream = Stream::new(2, StreamId::Test, 0, 0);
    let frames: Vec<f64> = (0..500 * DIMENSION).map(|_| 1.0 + 0.8 * stream.normal()).collect();
    let phase = Phase {
        steps: 250,
        rate: 1e-2,
        batch: 128,
        reverse_kl: 1.0,
        energy_batch: 64,
        latent_temperatures: vec![0.4, 2.0],
        ..Phase::default()
    };
    let options = TrainOptions { phases: vec![phase], average: 0.95, evaluate: 250, ..TrainOptions::default() };
    let mut target = Gaussian;
    let mut trainer = Trainer::new(flow(), &frames, Some(&mut target), options.clone()).unwrap();
    let mut last = None;
    while !trainer.is_finished() {
        last = trainer.step().unwrap().or(last);
    }
    let last = last.unwrap();
    assert!(last.ess > 0.9 && last.held_out.is_finite(), "{last:?}");
    let steered = trainer.averaged().unwrap().at_variance(0.7);
    let mut joint = JointTarget::of_training(&mut target, crate::models::Model::steering(&steered).unwrap());
    let streams = |row: usize| Stream::new(5, StreamId::Test, row as u64, 0);
    let drawn = losses::draw(&steered, &mut joint, 2000, &streams).unwrap();
    let ess = crate::weights::effective_sample_size(&drawn.log_weight).unwrap() / 2000.0;
    assert!(ess > 0.9, "{ess}");

    let refusal = |flow: CouplingFlow<f32>, taus: Vec<f64>| {
        let phases = vec![Phase { latent_temperatures: taus, ..options.phases[0].clone() }];
        let options = TrainOptions { phases, ..options.clone() };
        Trainer::new(flow, &frames, Some(&mut Gaussian), options).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refusal(flow_of(affine(DIMENSION, 8), DIMENSION), vec![0.5]).contains("steerable"));
    assert!(refusal(flow(), vec![1.0, 0.0]).contains("positive"));
}

/// Settings that would train nothing, or would end in a panic.
#[test]
fn phases_that_train_nothing_are_refused() {
    let x = frames();
    let refused = |options: TrainOptions, reason: &str| {
        let message = Trainer::new(flow(), &x, Some(&mut Gaussian), options).err().expect(reason).to_string();
        assert!(message.contains(reason), "{message}");
    };
    let of = |phase| TrainOptions { phases: vec![phase], ..TrainOptions::default() };
    let plain = Phase::default;
    refused(of(Phase { steps: 0, ..plain() }), "`steps` = 0");
    refused(of(Phase { batch: 0, ..plain() }), "`batch` = 0");
    refused(of(Phase { reverse_kl: 1.0, energy_batch: 0, ..plain() }), "`energy_batch` = 0");
    refused(of(Phase { batch: 1 << 40, ..plain() }), "fit into memory");
    refused(TrainOptions { evaluation_samples: 1 << 40, ..TrainOptions::default() }, "fit into memory");
    for (name, phase) in [
        ("refinement_batch", Phase { refinement_batch: 0, ..plain() }),
        ("draw", Phase { draw: 0, ..plain() }),
        ("keep", Phase { keep: 0, ..plain() }),
    ] {
        refused(of(Phase { refinement: 0.5, ..phase }), &format!("`{name}` = 0"));
    }
    refused(of(Phase { likelihood: 0.0, ..plain() }), "trains nothing");
    refused(of(Phase { reverse_kl: -0.5, ..plain() }), "weight `reverse_kl` = -0.5");
    refused(of(Phase { likelihood: f64::NAN, ..plain() }), "weight `likelihood` = NaN");
    refused(of(Phase { latent_temperatures: vec![0.5], ..plain() }), "`reverse_kl` = 0");
    refused(of(Phase { effective: 1.0, ..plain() }), "`effective` = 1");
    refused(TrainOptions { evaluation_samples: 0, ..TrainOptions::default() }, "`evaluation_samples` = 0");
    let of_map = |phase: Phase| of(phase).check_for_map().map_err(|e| e.to_string());
    of_map(Phase::of_map()).unwrap();
    assert!(of_map(plain()).unwrap_err().contains("by reverse KL alone"));
    let at_other = Phase { latent_temperatures: vec![0.5], ..Phase::of_map() };
    assert!(of_map(at_other).unwrap_err().contains("remove `latent_temperatures`"));
    // without phases the design is written as it is, and unused settings may have any value
    Trainer::new(flow(), &x, None, TrainOptions { phases: vec![], ..TrainOptions::default() }).unwrap();
    let unused = Phase { energy_batch: 0, refinement_batch: 0, draw: 0, keep: 0, ..plain() };
    Trainer::new(flow(), &x, None, TrainOptions { evaluation_samples: 0, ..of(unused) }).unwrap();
}
