//! Learned replica exchange: two replicas swap configurations through a map between their ensembles.

use super::wholeness::Wholeness;
use super::{accept, checked, Fate, Proposal, State, Statistics};
use crate::bijection::{Bijection, Mapped};
use crate::coordinates::constraints::Constraints;
use crate::density::{Evaluation, Status};
use crate::error::{Error, Result};
use crate::rng::{Stream, StreamId};
use crate::target::Target;

/// Result of one exchange attempt between replicas a and b.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExchangeOutcome {
    pub fate: Fate,
    /// log α = log W_a + log W_b, not clipped at 0; −∞ if either side has no image.
    pub log_acceptance: f64,
    /// Importance log-weights: log W_a = u_a(x_a) − u_b(f(x_a)) + ln|∂f(x_a)|, of f(x_a) as a sample of b, and log W_b
    /// = u_b(x_b) − u_a(f⁻¹(x_b)) + ln|∂f⁻¹(x_b)|; both −∞ if either side has no image.
    pub log_weights: [f64; 2],
    /// u_a and u_b of the states after the attempt.
    pub reduced_potentials: [f64; 2],
}

impl ExchangeOutcome {
    /// Whether the replicas have exchanged configurations.
    pub fn accepted(&self) -> bool {
        self.fate == Fate::Accepted
    }
}

/// Learned replica exchange: x_b′ = f(x_a), x_a′ = f⁻¹(x_b), with a bijection f from the configurations of replica a to
/// those of replica b (Invernizzi, Krämer, Clementi and Noé, J. Phys. Chem. Lett. 13, 11643 (2022)):
///
/// log α = u_a(x_a) + u_b(x_b) − u_b(f(x_a)) − u_a(f⁻¹(x_b)) + ln|∂f(x_a)| + ln|∂f⁻¹(x_b)|.
///
/// Why it is exact: the pair moves by (x_a, x_b) → (f⁻¹(x_b), f(x_a)), which is its own inverse: applied twice it gives
/// (f⁻¹(f(x_a)), f(f⁻¹(x_b))). A proposal by such an involution, with its Jacobian determinant in the Metropolis ratio,
/// leaves the pair's density e^{−u_a(x_a) − u_b(x_b)} invariant (Green 1995; Tierney 1998), whatever f is. With f the
/// identity it is ordinary replica exchange.
///
/// A map in internal coordinates changes the shape only, and each replica keeps its own frame: f(x_a) is placed on the
/// frame of x_b, f⁻¹(x_b) on that of x_a. Why that preserves the measure: write x = (x₀, R, s), origin, orientation and
/// shape, with volume element dx₀ dR J(s) ds. All (x₀, R) stay fixed, and the shapes move by the involution (s_a, s_b)
/// → (f⁻¹(s_b), f(s_a)), whose Jacobian with respect to the measure J(s) ds is |∂f| |∂f⁻¹|, the determinants that flows
/// in internal coordinates return. So this is the same Metropolis step on the density of the shapes given the frames,
/// and a step that leaves a conditional density invariant leaves the joint one invariant.
///
/// Engines that exchange the ensembles of their replicas rather than the configurations, with all that surrounds a
/// molecule, carry the frames along ([`Exchange::carry_frames`]): f(x_a) stays on the frame of x_a, f⁻¹(x_b) on that of
/// x_b. That too is an involution of the pair, which also swaps the (x₀, R), a step of determinant one.
///
/// Weights in the statistics are W_a: of the mapped configurations of a, as samples of b.
pub struct Exchange {
    /// f and f⁻¹.
    maps: [Bijection; 2],
    seed: u64,
    whole: Wholeness,
    carry_frames: bool,
    constraints: Option<Constraints>,
    statistics: Statistics,
}

/// One side of an exchange: a replica's configuration and its image under the map.
struct Side {
    x: Vec<f64>,
    /// u(x), metric term included.
    u: f64,
    /// Image, on the frame it is to have.
    image: Vec<f64>,
    mapped: Mapped,
}

impl Exchange {
    /// `map` takes configurations of replica a to those of replica b; `seed` is that of the Metropolis tests. Exchanges
    /// attempted at the same step, such as those between the pairs of a ladder, need different seeds or different
    /// replica numbers in their states.
    pub fn new(map: Bijection, seed: u64) -> Exchange {
        let whole = Wholeness::of_model(map.from().as_ref());
        let inverse = map.inverse();
        Exchange {
            maps: [map, inverse],
            seed,
            whole,
            carry_frames: false,
            constraints: None,
            statistics: Statistics::default(),
        }
    }

    /// Adds the metric (Fixman) term of bonds constrained by the engine (None: no bond is constrained) to both targets,
    /// and checks the bonds of every image. Unlike in moves of one model, which may know no more of it than its
    /// density, the constraints are checked against both models.
    ///
    /// Errors: a bond that one of the models does not keep at its length, or that a model keeps and the engine does
    /// not, by name.
    pub fn set_constraints(&mut self, constraints: Option<Constraints>) -> Result<()> {
        for model in [self.map().from(), self.map().to()] {
            let card = model.card();
            Constraints::check_kept(card.kept_bonds(), constraints.as_ref(), &|atom| card.label(atom))?;
        }
        self.constraints = constraints;
        Ok(())
    }

    /// Whether configurations carry their frames to the other replica, instead of each replica keeping its own.
    pub fn carry_frames(&mut self, yes: bool) {
        self.carry_frames = yes;
    }

    /// The bijection from the configurations of a to those of b.
    pub fn map(&self) -> &Bijection {
        &self.maps[0]
    }

    /// Number of coordinates per configuration.
    pub fn dimension(&self) -> usize {
        self.map().dimension()
    }

    /// Makes one attempt on replicas a and b, each with its own reduced potential. If the outcome is `Accepted` both
    /// states change, otherwise neither does, bit for bit. The random number is a function of seed, step and the two
    /// replica numbers.
    ///
    /// Errors: states or targets of another dimension, states at different steps or with the same replica number, a
    /// current configuration or reduced potential that is not finite, a failing target; the states are then untouched.
    pub fn attempt(&mut self, targets: [&mut dyn Target; 2], states: [&mut State; 2]) -> Result<ExchangeOutcome> {
        let [a, b] = &states;
        self.check(&targets, [a, b])?;
        let mut stream = Stream::new(self.seed, StreamId::Exchange, a.step, a.replica).at(b.replica);
        let (mut from_a, mut from_b) = (self.side(0, a)?, self.side(1, b)?);
        self.place(&mut from_a, &from_b.x);
        self.place(&mut from_b, &from_a.x);
        let [target_a, target_b] = targets;
        let both = [&from_a, &from_b].iter().all(|side| side.mapped.status() == Status::Inside);
        let plain = match both {
            true => [evaluate(target_a, &from_b.image)?, evaluate(target_b, &from_a.image)?],
            false => [f64::INFINITY; 2],
        };
        // u_a(f⁻¹(x_b)) and u_b(f(x_a))
        let proposed = [plain[0] - self.metric(&from_b.image), plain[1] - self.metric(&from_a.image)];
        let joint = [from_b.image.as_slice(), &from_a.image].concat();
        let proposal = Proposal {
            x: &joint,
            forward: product(from_a.mapped.forward, from_b.mapped.forward),
            reverse: product(from_a.mapped.reverse, from_b.mapped.reverse),
        };
        let (u_current, u_proposed) = (from_a.u + from_b.u, proposed[0] + proposed[1]);
        let (fate, log_acceptance) = accept(&proposal, u_current, u_proposed, stream.uniform());
        let log_weight = |side: &Side, u: f64| match u.is_finite() {
            true => side.u - u + side.mapped.log_det(),
            false => f64::NEG_INFINITY,
        };
        let mut outcome = ExchangeOutcome {
            fate,
            log_acceptance,
            log_weights: [log_weight(&from_a, proposed[1]), log_weight(&from_b, proposed[0])],
            reduced_potentials: [a.reduced_potential, b.reduced_potential],
        };
        if outcome.accepted() {
            outcome.reduced_potentials = plain;
            for ((state, x), u) in states.into_iter().zip([&from_b.image, &from_a.image]).zip(plain) {
                state.x.copy_from_slice(x);
                state.reduced_potential = u;
            }
        }
        self.statistics.record_weight(outcome.log_weights[0]);
        self.statistics.record_test(fate, log_acceptance);
        Ok(outcome)
    }

    /// Counts since construction or the last reset.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Mutable statistics, for restoring a checkpoint.
    pub fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }

    fn check(&self, targets: &[&mut dyn Target; 2], states: [&State; 2]) -> Result<()> {
        let d = self.dimension();
        for (name, target, state) in [("a", &targets[0], states[0]), ("b", &targets[1], states[1])] {
            if target.dimension() != d || state.x.len() != d {
                return Err(Error::invalid(format!(
                    "the map has {d} coordinates, but the target of replica {name} has {} and its state {}",
                    target.dimension(),
                    state.x.len()
                )));
            }
            state.require_finite(&format!("the configuration of replica {name}"))?;
            if !state.reduced_potential.is_finite() {
                return Err(Error::invalid(format!(
                    "the reduced potential of replica {name} is {} at step {}: the simulation failed before the \
                     exchange",
                    state.reduced_potential, state.step
                )));
            }
        }
        let [a, b] = states;
        if a.step != b.step || a.replica == b.replica {
            return Err(Error::invalid(format!(
                "cannot exchange replica {} at step {} with replica {} at step {}: must be two different replicas at \
                 the same step",
                a.replica, a.step, b.replica, b.step
            )));
        }
        Ok(())
    }

    /// Replica `which` made whole, with its image.
    fn side(&mut self, which: usize, state: &State) -> Result<Side> {
        let mut x = state.x.to_vec();
        self.whole.apply(state.box_vectors.as_ref(), &mut x)?;
        let u = state.reduced_potential - self.metric(&x);
        let nowhere = Evaluation::outside(Status::NonFinite);
        let (mut image, mut mapped) = (vec![0.0; x.len()], [Mapped { forward: nowhere, reverse: nowhere }]);
        self.maps[which].map(&x, &mut image, &mut mapped)?;
        let [mut mapped] = mapped;
        if !u.is_finite() && mapped.reverse.is_inside() {
            mapped.reverse = Evaluation::outside(Status::Singular);
        }
        Ok(Side { x, u, image, mapped })
    }

    /// Places the image on the frame of the other replica's configuration `there` (unless frames are carried) and makes
    /// the checks that need no target.
    fn place(&self, side: &mut Side, there: &[f64]) {
        if side.mapped.status() != Status::Inside {
            return;
        }
        if !self.carry_frames && !self.map().place(there, &mut side.image) {
            side.mapped.forward = Evaluation::outside(Status::Singular);
        } else {
            side.mapped.forward = checked(&side.image, side.mapped.forward, self.constraints.as_ref());
        }
    }

    /// Metric term ½ ln det Z of the constrained bonds.
    fn metric(&mut self, x: &[f64]) -> f64 {
        self.constraints.as_mut().map_or(0.0, |c| c.log_metric(x))
    }
}

fn evaluate(target: &mut dyn Target, x: &[f64]) -> Result<f64> {
    let mut u = [f64::NAN];
    target.reduced_potential(x, &mut u)?;
    Ok(u[0])
}

/// Joint density of two independent proposals.
fn product(a: Evaluation, b: Evaluation) -> Evaluation {
    match (a.is_inside(), b.is_inside()) {
        (true, true) => Evaluation::inside(a.log_density + b.log_density),
        (false, _) => a,
        (true, false) => b,
    }
}
