//! Steerable flows: every move at several temperatures, the shipped model on a temperature ladder, and detection of
//! typical mistakes with auxiliary coordinates.

use crate::guards::{one_shot, Checked, Correct, Driver, Experiment};
use crate::statistics::LEVEL;
use crate::systems::*;
use modejump::annealing::{even, Kernel as Steps};
use modejump::coordinates::CoordinatesConfig;
use modejump::density::{Density, Evaluation, Exactness, Scope};
use modejump::error::Result;
use modejump::free_energy::mean_of_series;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::{self, JointTarget, Model, ModelCard, Steering, SteeringConfig};
use modejump::moves::{
    self, steered, Annealed, DelayedAcceptance, Generator, Independence, Isir, LatentWalk, LatentWalkOptions, Move,
    Options, Outcome, Path, RandomWalk, State, Statistics,
};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use std::sync::Arc;

const STARTS: usize = 20_000;
/// Training temperature of the flow, K.
const TRAINED: f64 = 500.0;
const TEMPERATURES: [f64; 2] = [300.0, 900.0];
const OPTIONS: Options = Options { n_proposals: 1, seed: 31, stride: 1, batch: 8, draw_ahead: false, partial: false };

/// u = (4 (x² − 1)² + 0.475 x)/τ, y normal about x/2 with variance 0.09 τ.
fn target(kelvin: f64) -> Arc<dyn Density> {
    let tau = kelvin / TRAINED;
    let well = Table::new(-3.2, 3.2, move |x: f64| -(4.0 * (x * x - 1.0).powi(2) + 0.475 * x) / tau);
    Arc::new(Exact(DoubleWell2 { well, width: 0.3 * tau.sqrt() }))
}

/// Volume-preserving couplings of (x, y) and two auxiliary coordinates with random parameters, then a linear map that
/// correlates each of these with x or y: a poor generator, in which v strongly depends on x.
fn flow(correlation: f64) -> Arc<dyn Model> {
    let coupling = |moved: [usize; 2], seen: [usize; 2]| LayerConfig::Affine {
        transformed: moved.to_vec(),
        features: Features { periodic: vec![], harmonics: 1, plain: seen.to_vec() },
        hidden: vec![8],
        activation: Activation::Tanh,
        scale_activation: None,
        preserve_volume: true,
    };
    let rest = (1.0 - correlation * correlation).sqrt();
    let rows =
        [[0.9, 0.0, 0.0, 0.0], [0.4, 0.4, 0.0, 0.0], [correlation, 0.0, rest, 0.0], [0.0, correlation, 0.0, rest]];
    let whiten = LayerConfig::Whiten { transformed: (0..4).collect(), mean: vec![0.0; 4], matrix: rows.concat() };
    let layers = vec![coupling([0, 1], [2, 3]), coupling([2, 3], [0, 1]), coupling([0, 2], [1, 3]), whiten];
    let mut card = ModelCard::of_coupling(
        CouplingConfig { uniform: vec![], layers },
        CoordinatesConfig::Cartesian { dimension: 4 },
    );
    (card.steering, card.temperature) = (Some(SteeringConfig { auxiliary: 2 }), Some(TRAINED));
    let mut flow = CouplingFlow::<f64>::new(card).unwrap();
    flow.initialise(4);
    let mut stream = Stream::new(6, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p += 0.1 * stream.normal());
    Arc::new(flow)
}

type Make = fn(&Arc<dyn Model>) -> Result<Box<dyn Move>>;

const KERNELS: [(&str, Make, usize); 5] = [
    ("independence", |m| Ok(Box::new(Independence::new(Generator::of_model(m, OPTIONS)?))), STARTS),
    ("i-SIR", |m| Ok(Box::new(Isir::new(Generator::of_model(m, Options { n_proposals: 3, ..OPTIONS })?))), STARTS),
    (
        "delayed acceptance",
        |m| {
            let screen: Arc<dyn Density> = Arc::new(WrongScreen(m.clone()));
            Ok(Box::new(DelayedAcceptance::new(Generator::of_model(m, OPTIONS)?, screen)?))
        },
        STARTS,
    ),
    (
        "annealed",
        |m| {
            let path = Path { kernel: Steps::Adjusted, stages: even(3, 0.01), moves: 1 };
            Ok(Box::new(Annealed::new(Generator::of_model(m, OPTIONS)?, path)?))
        },
        4000,
    ),
    (
        "latent walk",
        |m| {
            let options = LatentWalkOptions { widths: vec![0.1, 0.5], leapfrog: 2, seed: 31 };
            Ok(Box::new(LatentWalk::new(m, options)?))
        },
        6000,
    ),
];

fn at(kelvin: f64, make: Make) -> Box<dyn Move> {
    let mut kernel = steered(&flow(0.5), OPTIONS.seed, make).unwrap();
    kernel.set_temperature(kelvin).unwrap();
    kernel
}

fn observables(x: &[f64]) -> Vec<f64> {
    vec![x[0], x[1], x[1] - 0.5 * x[0]]
}

#[test]
fn one_shot_invariance_of_every_move_at_two_temperatures() {
    for (name, make, starts) in KERNELS {
        for kelvin in TEMPERATURES {
            let experiment =
                Experiment { kernel: &|| at(kelvin, make), target: target(kelvin), local: 0.2, observables };
            one_shot(&experiment, &mut Checked, starts).unwrap_or_else(|e| panic!("{name} at {kelvin} K: {e}"));
        }
    }
}

/// Auxiliary coordinates are drawn for each replica.
#[test]
fn replicas_have_auxiliary_coordinates_of_their_own() {
    for (name, make, _) in KERNELS {
        let [first, second] = [0, 1].map(|replica| {
            let mut target = NegativeLog::new(target(TRAINED), 0.0);
            let mut x = [0.9, 0.3];
            let reduced_potential = target.u(&x);
            let mut state = State { x: &mut x, box_vectors: None, reduced_potential, step: 5, replica };
            at(TRAINED, make).attempt(&mut target, &mut state).unwrap().log_density_current
        });
        assert_ne!(first, second, "{name}");
    }
}

/// Replicas that alternate on one move get the same results as each would alone, and the counters include all of them.
#[test]
fn an_attempt_does_not_depend_on_the_temperatures_before() {
    for (name, make, _) in KERNELS {
        let attempt = |kernel: &mut dyn Move, kelvin: f64, step: u64| {
            kernel.set_temperature(kelvin).unwrap();
            let mut x = [0.9, 0.3];
            let outcome = Correct.attempt(kernel, &mut NegativeLog::new(target(kelvin), 0.0), &mut x, step);
            (x, outcome)
        };
        let mut both = at(TEMPERATURES[0], make);
        let mut alone = TEMPERATURES.map(|kelvin| at(kelvin, make));
        for step in 0..6 {
            let turn = step as usize % 2;
            let taking_turns = attempt(both.as_mut(), TEMPERATURES[turn], step);
            assert_eq!(taking_turns, attempt(alone[turn].as_mut(), TEMPERATURES[turn], step), "{name}, step {step}");
        }
        let (found, expected) = (both.statistics(), alone[1].statistics());
        assert_eq!(found.attempts(), 6, "{name}");
        // weights of two temperatures cannot be compared
        assert!(found.log_weights().eq(expected.log_weights()), "{name}");
        both.reset_statistics();
        both.set_temperature(TEMPERATURES[0]).unwrap();
        assert_eq!((both.statistics().attempts(), both.statistics().proposals()), (0, 0), "{name}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut kernel = at(300.0, KERNELS[0].1);
    for kelvin in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(kernel.set_temperature(kelvin).is_err(), "{kelvin} K");
    }
    let mut unchanged = NegativeLog::new(target(300.0), 0.0);
    assert!(
        kernel.dimension() == 2
            && Correct.attempt(kernel.as_mut(), &mut unchanged, &mut [1.0, 0.5], 1).log_acceptance.is_finite()
    );
    let maps =
        modejump::bijection::Bijection::new(flow(0.5), flow(0.5)).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(maps.contains("auxiliary"), "{maps}");
}

/// The move as [`moves::Steered`] makes it, or with a mistake.
struct Mistaken {
    kernel: Independence,
    model: Arc<dyn Model>,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// The current state's auxiliary coordinates are drawn once for all attempts.
    NotRefreshed,
    /// Auxiliary coordinates are drawn for the training temperature.
    AuxiliaryOfTraining,
    /// Proposals are drawn at the training temperature and weighted as if drawn at another.
    ProposalsOfTraining,
}

/// Draws at one temperature, with the densities of another.
struct Between {
    draws: Arc<dyn Model>,
    weighs: Arc<dyn Model>,
}

impl Density for Between {
    fn dimension(&self) -> usize {
        4
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        Scope::Full
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.draws.sample(streams, x, e)?;
        self.weighs.log_density(x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.weighs.log_density(x, e)
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

impl Mistaken {
    fn new(kelvin: f64, mistake: Mistake) -> Mistaken {
        let of_training = flow(0.85);
        let model = of_training.at_temperature(kelvin).unwrap();
        let draws = if mistake == Mistake::ProposalsOfTraining { of_training } else { model.clone() };
        let density: Arc<dyn Density> = Arc::new(Between { draws, weighs: model.clone() });
        Mistaken { kernel: Independence::new(Generator::new(density, None, OPTIONS).unwrap()), model, mistake }
    }
}

impl Mistaken {
    fn once(&mut self, target: &mut dyn Target, state: &mut State, step: u64) -> Result<Outcome> {
        let steering = self.model.steering().unwrap();
        let mut v = [0.0; 2];
        let mut fresh = Stream::new(12, StreamId::Test, step, 0);
        match self.mistake {
            Mistake::NotRefreshed => v = [1.2, -0.8].map(|v| v * steering.variance.sqrt()),
            Mistake::AuxiliaryOfTraining => Steering { variance: 1.0, ..steering }.draw(&mut fresh, &mut v),
            Mistake::None | Mistake::ProposalsOfTraining => steering.draw(&mut fresh, &mut v),
        }
        let mut joint = [state.x[0], state.x[1], v[0], v[1]];
        let reduced_potential = state.reduced_potential + steering.reduced_potential(&v);
        let mut with_v = State { x: &mut joint, box_vectors: None, reduced_potential, step, replica: 0 };
        let outcome = self.kernel.attempt(&mut JointTarget::new(target, steering), &mut with_v)?;
        let accepted_potential = with_v.reduced_potential - steering.reduced_potential(&joint[2..]);
        if outcome.accepted() {
            state.x.copy_from_slice(&joint[..2]);
            state.reduced_potential = accepted_potential;
        }
        Ok(outcome)
    }
}

impl Move for Mistaken {
    fn dimension(&self) -> usize {
        2
    }
    /// Makes several Metropolis tests in succession, which amplify a bias.
    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        let mut outcome = self.once(target, state, 8 * state.step)?;
        for k in 1..8 {
            outcome = self.once(target, state, 8 * state.step + k)?;
        }
        Ok(outcome)
    }
    fn statistics(&self) -> &Statistics {
        self.kernel.statistics()
    }
    fn statistics_mut(&mut self) -> &mut Statistics {
        self.kernel.statistics_mut()
    }
}

#[test]
fn mistakes_of_steered_moves_are_caught() {
    use Mistake::*;
    for mistake in [None, NotRefreshed, AuxiliaryOfTraining, ProposalsOfTraining] {
        let kelvin = 4.0 * TRAINED;
        let kernel = || -> Box<dyn Move> { Box::new(Mistaken::new(kelvin, mistake)) };
        let experiment = Experiment { kernel: &kernel, target: target(kelvin), local: 0.2, observables };
        let verdict = one_shot(&experiment, &mut Correct, 15_000);
        assert_eq!(verdict.is_err(), mistake != None, "{mistake:?}: {verdict:?} (level {LEVEL:e})");
    }
}

/// u = 10 (x² − 1)² + x/2 + 5 (y − x/2)² at 300 K.
struct DoubleWellAt(f64);

impl Target for DoubleWellAt {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        for (x, u) in x.chunks_exact(2).zip(u) {
            let potential = 10.0 * (x[0] * x[0] - 1.0).powi(2) + 0.5 * x[0] + 5.0 * (x[1] - 0.5 * x[0]).powi(2);
            *u = potential * 300.0 / self.0;
        }
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        unreachable!("no gradient is asked for here")
    }
}

/// One model at all temperatures of a ladder: ⟨u⟩ agrees with quadrature, and most jumps are accepted.
#[test]
fn the_shipped_model_serves_a_ladder_of_temperatures() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/steerable.safetensors");
    let model = models::load(path).unwrap();
    let mut jump = moves::of_model(&model, OPTIONS, None).unwrap();
    for kelvin in [300.0, 450.0, 600.0, 1200.0] {
        let mut target = DoubleWellAt(kelvin);
        jump.set_temperature(kelvin).unwrap();
        jump.statistics_mut().reset();
        let mut walk = RandomWalk::new(2, 0.15, 4).unwrap();
        let (mut x, mut series) = ([-1.0, -0.5], Vec::new());
        for step in 0..20_000 {
            Correct.attempt(jump.as_mut(), &mut target, &mut x, step);
            series.push(Correct.attempt(&mut walk, &mut target, &mut x, step).reduced_potential);
        }
        let mean = mean_of_series(&series[100..]).unwrap();
        let (mut sum, mut norm) = (0.0, 0.0);
        for i in 0..8000 {
            let x = -4.0 + 1e-3 * f64::from(i);
            let u = (10.0 * (x * x - 1.0).powi(2) + 0.5 * x) * 300.0 / kelvin;
            (sum, norm) = (sum + u * (-u).exp(), norm + (-u).exp());
        }
        let expected = sum / norm + 0.5; // y contributes 1/2
        let deviations = (mean.value - expected) / mean.standard_error;
        assert!(deviations.abs() < 5.0, "{kelvin} K: <u> = {} ± {}, not {expected}", mean.value, mean.standard_error);
        assert!(jump.statistics().acceptance() > 0.6, "{kelvin} K: {}", jump.statistics().acceptance());
    }
}
