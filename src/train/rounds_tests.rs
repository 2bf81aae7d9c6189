//! Rounds on a double well with a barrier that dynamics does not cross: the second well is found and weighted
//! correctly, and an interrupted run continues to the same result.

use super::optimiser::Schedule;
use super::phases::{Phase, TrainOptions};
use super::rounds::{Rounds, RoundsOptions, RoundsState, Stage};
use super::ExploreOptions;
use crate::coordinates::CoordinatesConfig;
use crate::coordinates::{Along, Region};
use crate::error::Result;
use crate::io::checkpoint;
use crate::models::card::ModelCard;
use crate::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use crate::moves::LatentWalkOptions;
use crate::nn::Activation;
use crate::target::Target;

/// βU = s (12 (r² − 1)² + ½ r + 5 (y − r/2)² + ½ z²) with r = x₀/0.1 nm and so on, s = 300 K/T.
struct DoubleWell {
    scale: f64,
}

const UNIT: f64 = 0.1;

impl Target for DoubleWell {
    fn dimension(&self) -> usize {
        3
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for ((x, g), u) in x.chunks_exact(3).zip(gradient.chunks_exact_mut(3)).zip(u) {
            let [r, y, z] = [x[0] / UNIT, x[1] / UNIT, x[2] / UNIT];
            let (well, tilt) = (r * r - 1.0, y - 0.5 * r);
            *u = self.scale * (12.0 * well * well + 0.5 * r + 5.0 * tilt * tilt + 0.5 * z * z);
            let slopes = [48.0 * well * r + 0.5 - 5.0 * tilt, 10.0 * tilt, z];
            g.iter_mut().zip(slopes).for_each(|(g, slope)| *g = self.scale * slope / UNIT);
        }
        Ok(())
    }
}

/// Splines that take turns on a box of ±3 units.
fn design(_: &[f64]) -> Result<CouplingFlow<f32>> {
    let spline = |i: usize| LayerConfig::Spline {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: (0..3).filter(|&k| k != i).collect() },
        ends: Ends::Free,
        bins: 16,
        interval: [0.0, 1.0],
        hidden: vec![24],
        activation: Activation::Silu,
        identity_init: true,
    };
    let stretch = LayerConfig::Uniform { transformed: vec![0, 1, 2], low: vec![-0.3; 3], high: vec![0.3; 3] };
    let layers = vec![spline(0), spline(1), spline(2), spline(0), stretch];
    let config = CouplingConfig { uniform: vec![0, 1, 2], layers };
    let mut flow = CouplingFlow::new(ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 3 }))?;
    flow.initialise(2);
    Ok(flow)
}

fn options() -> (RoundsOptions, ExploreOptions, TrainOptions) {
    let rounds = RoundsOptions {
        walkers: 8,
        rounds: 2,
        steps: 400,
        production_steps: 6000,
        stride: 20,
        frequency: 10,
        acceptance: 0.3,
        ess: 0.3,
        pool: 1000,
        latent_walk: None,
        region: Some(Region { along: Along::Component(0), range: [0.0, 1.0] }),
    };
    let explore = ExploreOptions {
        frames: 320,
        hot_temperature: 3000.0,
        timestep: 0.005,
        hot_steps: 400,
        cooling_steps: 200,
        frames_per_segment: 5,
        stride: 20,
        ..ExploreOptions::default()
    };
    let by_frames = Phase { steps: 150, rate: 5e-3, schedule: Schedule::Constant, batch: 128, ..Phase::default() };
    let refinement = Phase {
        steps: 150,
        likelihood: 0.0,
        refinement: 1.0,
        refinement_batch: 128,
        refresh: 5,
        draw: 256,
        keep: 2000,
        ..by_frames.clone()
    };
    let train = TrainOptions {
        phases: vec![by_frames, refinement],
        average: 0.95,
        evaluate: 1000,
        evaluation_samples: 512,
        ..TrainOptions::default()
    };
    (rounds, explore, train)
}

/// Runs to the end from the left well, reloading from a file after every `cut` advances if given.
fn run(name: &str, cut: Option<usize>) -> RoundsState {
    run_from(name, &[-UNIT, -0.5 * UNIT, 0.0], options(), cut)
}

fn run_from(
    name: &str,
    x: &[f64],
    options: (RoundsOptions, ExploreOptions, TrainOptions),
    cut: Option<usize>,
) -> RoundsState {
    let path = std::env::temp_dir().join(format!("modejump-rounds-{name}-{}.ckpt", std::process::id()));
    let (mut target, mut hot) = (DoubleWell { scale: 1.0 }, DoubleWell { scale: 0.1 });
    let mut rounds = Rounds::new(&mut target, &mut hot, &design, &[20.0], x, options).unwrap();
    let mut done = 0;
    while !rounds.is_finished() {
        rounds.advance().unwrap();
        done += 1;
        if cut.is_some_and(|cut| done % cut == 0) {
            checkpoint::save(&path, checkpoint::ROUNDS, rounds.state()).unwrap();
            let state: RoundsState = checkpoint::load(&path, checkpoint::ROUNDS).unwrap();
            drop(rounds);
            rounds = Rounds::resume(&mut target, &mut hot, &design, state).unwrap();
        }
    }
    _ = std::fs::remove_file(path);
    rounds.state().clone()
}

/// −ln P(r > 0)/P(r < 0) by quadrature over r; y and z are the same on both sides.
fn exact_delta_f() -> f64 {
    let side = |sign: f64| -> f64 {
        let boltzmann = |r: f64| (-(12.0 * (r * r - 1.0).powi(2) + 0.5 * r)).exp();
        (0..20_000).map(|i| boltzmann(sign * (i as f64 + 0.5) * 1e-4)).sum()
    };
    -(side(1.0) / side(-1.0)).ln()
}

#[test]
fn rounds_find_the_other_well_and_production_weighs_it_right() {
    let state = run("whole", None);
    let stages: Vec<Stage> = state.log.iter().map(|r| r.stage).collect();
    assert_eq!(stages[..4], [Stage::Walk, Stage::Heat, Stage::Train, Stage::Walk], "{stages:?}");
    assert_eq!(stages.last(), Some(&Stage::Production));
    let (first, last) = (&state.log[0], state.log.last().unwrap());
    assert_eq!((first.attempts, first.population), (0, 0.0), "dynamics alone must not cross");
    assert!(last.acceptance > 0.2 && last.transitions > 100, "{last:?}");
    let error = last.delta_f - exact_delta_f();
    assert!(error.abs() < 5.0 * last.delta_f_stderr && last.delta_f_stderr < 0.15, "{error} ± {}", last.delta_f_stderr);
    // frames know their epoch, and those of production are all of the last generator
    assert!(state.production.epoch.iter().all(|&e| e == state.epoch));
    assert_eq!((state.production.epoch.len(), last.frames), (8 * 300, 8 * 300));
    let walked: usize = state.log.iter().filter(|r| r.stage == Stage::Walk).map(|r| r.frames).sum();
    assert_eq!(walked, state.chain.epoch.len(), "each is reported of with its own epoch");
    assert!(
        state.chain.epoch.is_sorted() && state.chain.epoch[0] == 0 && state.chain.epoch.last() == Some(&state.epoch)
    );
}

/// Its error is that of the series, as there are no other walkers.
#[test]
fn a_single_walker_has_a_free_energy_too() {
    let (rounds, explore, train) = options();
    let rounds = RoundsOptions { walkers: 1, steps: 3200, production_steps: 40_000, ..rounds };
    let state = run_from("alone", &[-UNIT, -0.5 * UNIT, 0.0], (rounds, explore, train), None);
    let last = state.log.last().unwrap();
    let error = last.delta_f - exact_delta_f();
    assert!(error.abs() < 5.0 * last.delta_f_stderr && last.delta_f_stderr < 0.2, "{error} ± {}", last.delta_f_stderr);
}

#[test]
fn rounds_that_were_cut_go_on_bit_for_bit() {
    let (whole, cut) = (run("uncut", None), run("cut", Some(7)));
    assert!(whole.model == cut.model, "the generators differ");
    assert!(whole.production.x == cut.production.x && whole.chain.x == cut.chain.x && whole.heated.x == cut.heated.x);
    assert_eq!(format!("{:?}", whole.log), format!("{:?}", cut.log));
}

#[test]
fn frames_that_a_generator_was_trained_on_are_not_held_out_from_the_next() {
    let (rounds, explore, mut train) = options();
    train.phases.truncate(1);
    train.phases[0].steps = 1;
    let rounds = RoundsOptions { steps: 100, acceptance: 1.0, pool: 50, ..rounds };
    let explore = ExploreOptions { frames: 160, ..explore };
    let (mut target, mut hot) = (DoubleWell { scale: 1.0 }, DoubleWell { scale: 0.1 });
    let start = [-UNIT, -0.5 * UNIT, 0.0];
    let mut rounds =
        Rounds::new(&mut target, &mut hot, &design, &[20.0], &start, (rounds, explore, train.clone())).unwrap();
    for epoch in 0..2 {
        while rounds.state().stage != Stage::Train {
            rounds.advance().unwrap();
        }
        let (x, held_out) = rounds.pool();
        // of 40 new walker frames, and of the 50 hot-replica frames that fit into the pool
        assert_eq!((x.len() / 3, held_out), ([90, 100][epoch as usize], 2 + 2));
        let state = rounds.state();
        let is_new = |x: &[f64]| {
            [&state.chain, &state.heated]
                .iter()
                .any(|part| part.x.chunks(3).zip(&part.epoch).any(|(y, &e)| y == x && e == epoch))
        };
        assert!(x.chunks(3).take(held_out).all(is_new));
        rounds.advance().unwrap();
    }
}

/// Exploration from a configuration in either well, without hot replicas: half of the walkers start on the wrong side,
/// and latent walks bring them over.
#[test]
fn latent_walks_explore_and_production_weighs_them_right() {
    let (rounds, explore, train) = options();
    let walk = LatentWalkOptions { widths: vec![0.05, 0.3], ..LatentWalkOptions::default() };
    let rounds = RoundsOptions { steps: 1000, latent_walk: Some(walk), ..rounds };
    let explore = ExploreOptions { frames: 0, ..explore };
    let both = [-UNIT, -0.5 * UNIT, 0.0, UNIT, 0.5 * UNIT, 0.0];
    let (whole, cut) = (
        run_from("explored", &both, (rounds.clone(), explore.clone(), train.clone()), None),
        run_from("explored-cut", &both, (rounds, explore, train), Some(11)),
    );
    let stages: Vec<Stage> = whole.log.iter().map(|r| r.stage).collect();
    use Stage::{Production, Train, Walk};
    assert_eq!(stages, [Walk, Train, Walk, Train, Walk, Production]);
    let walks: Vec<_> = whole.log.iter().filter(|r| r.stage == Walk).collect();
    assert_eq!((walks[0].population, walks[0].transitions), (0.5, 0), "dynamics alone must not cross");
    assert!(walks[2].transitions > 5 && walks[2].ess.is_nan(), "{:?}", walks[2]);
    let last = whole.log.last().unwrap();
    let error = last.delta_f - exact_delta_f();
    assert!(error.abs() < 5.0 * last.delta_f_stderr && last.delta_f_stderr < 0.15, "{error} ± {}", last.delta_f_stderr);
    assert!(whole.model == cut.model && whole.production.x == cut.production.x);
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    let refusal_of = |all: (RoundsOptions, ExploreOptions, TrainOptions)| {
        let (mut target, mut hot) = (DoubleWell { scale: 1.0 }, DoubleWell { scale: 0.1 });
        Rounds::new(&mut target, &mut hot, &design, &[20.0], &[0.0; 3], all).err().unwrap().to_string()
    };
    let refusal = |change: &dyn Fn(&mut RoundsOptions)| {
        let mut all = options();
        change(&mut all.0);
        refusal_of(all)
    };
    assert!(refusal(&|o| o.walkers = 0).contains("rounds.walkers"));
    assert!(refusal(&|o| o.frequency = 0).contains("rounds.frequency"));
    let never = refusal(&|o| (o.frequency, o.production_steps) = (51, 50));
    assert!(never.contains("rounds.frequency = 51: no jump would be attempted in production"), "{never}");
    assert!(refusal(&|o| o.acceptance = 30.0).contains("rounds.acceptance = 30: must be between 0 and 1"));
    assert!(
        refusal(&|o| o.ess = -1.0).contains("rounds.ess = -1") && refusal(&|o| o.ess = f64::NAN).contains("rounds.ess")
    );
    let refusal_of_hot = |change: &dyn Fn(&mut ExploreOptions)| {
        let mut all = options();
        change(&mut all.1);
        refusal_of(all)
    };
    assert!(refusal_of_hot(&|o| o.stride = 0).contains("explore.stride = 0"));
    assert!(refusal_of_hot(&|o| o.frames_per_segment = 0).contains("explore.frames_per_segment = 0"));
    let beyond = Region { along: Along::Component(3), range: [0.0, 1.0] };
    let no_width = LatentWalkOptions { widths: vec![], ..LatentWalkOptions::default() };
    assert!(refusal(&|o| o.latent_walk = Some(no_width.clone())).contains("one or more positive, finite widths"));
    assert!(refusal(&|o| o.region = Some(beyond.clone())).contains("component 3 of 3"));
}
