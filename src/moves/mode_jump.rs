//! Neural mode jumps: bijections that map one metastable state onto another.

use super::wholeness::Wholeness;
use super::{accept, checked, Fate, Move, Options, Outcome, Proposal, State, Statistics};
use crate::bijection::{Bijection, Mapped};
use crate::coordinates::constraints::Constraints;
use crate::density::{Evaluation, Exactness, Status};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::modes::Modes;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::transport::assignment;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A pair of modes joined by a bijection.
pub struct Edge {
    pub modes: [usize; 2],
    /// Bijection from the configurations of the first mode to those of the second.
    pub map: Bijection,
    /// Relative weight with which the edge is chosen at either end, among the other edges there; positive.
    pub weights: [f64; 2],
}

/// Counts of the jumps along an edge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeCount {
    /// Attempts that started in the first mode, and in the second.
    pub attempts: [u64; 2],
    pub accepted: [u64; 2],
}

/// Particles whose permutation leaves the energy unchanged, and their reference positions in every mode.
pub struct Identical {
    /// Coordinates per particle.
    pub dimension: usize,
    pub particles: Vec<usize>,
    /// A reference configuration of every mode, `[modes][dimension of x]`.
    pub references: Vec<Vec<f64>>,
}

impl Identical {
    /// Optimal assignment: order[p] is the identical particle of x that takes place p of the mode's reference, with the
    /// least total squared distance.
    fn order(&self, mode: usize, x: &[f64]) -> Vec<usize> {
        let reference = &self.references[mode];
        let place = |x: &[f64], p: usize, k: usize| x[self.particles[p] * self.dimension + k];
        assignment(self.particles.len(), |p, q| {
            (0..self.dimension).map(|k| (place(reference, p, k) - place(x, q, k)).powi(2)).sum()
        })
    }

    /// Permutes x: particle order[p] goes to place p.
    fn sorted(&self, order: &[usize], x: &[f64]) -> Vec<f64> {
        let mut sorted = x.to_vec();
        for (p, &q) in order.iter().enumerate() {
            sorted[self.coordinates(p)].copy_from_slice(&x[self.coordinates(q)]);
        }
        sorted
    }

    /// Inverse of [`Identical::sorted`].
    fn restored(&self, order: &[usize], sorted: &[f64]) -> Vec<f64> {
        let mut x = sorted.to_vec();
        for (p, &q) in order.iter().enumerate() {
            x[self.coordinates(q)].copy_from_slice(&sorted[self.coordinates(p)]);
        }
        x
    }

    fn coordinates(&self, p: usize) -> std::ops::Range<usize> {
        let first = self.particles[p] * self.dimension;
        first..first + self.dimension
    }
}

/// Neural mode-jump Monte Carlo (Sbailò, Dibak and Noé, J. Chem. Phys. 154, 074101 (2021)).
///
/// Edges join modes; edge k between i and j has a bijection f_k, applied forwards from i and backwards from j. At x in
/// mode i edge k is chosen with probability P_i(k), y = f_k(x), and
///
/// log α = −(u(y) − u(x)) + ln|∂y/∂x| + ln P_j(k) − ln P_i(k), −∞ unless y is in mode j.
///
/// Why it is exact: on pairs (x in one of the two modes of k, k) the jump is an involution, since from y in mode j the
/// same edge leads back by f_k⁻¹; for an involution with Jacobian J the test min(1, J π(y) P_j(k)/π(x) P_i(k)) leaves π
/// invariant (Green, Biometrika 82, 711 (1995)). A y outside mode j would take another edge back, or the same one in
/// the other direction; without the mode check the chain would be biased. A state in no mode, or in one without edges,
/// stays.
///
/// With noise, y = T_b(T_a⁻¹(x) + s ξ), ξ standard normal. The proposal density at y is N(ξ) s^−d / |∂T_b/∂z|, the
/// reverse one N(−ξ) s^−d / |∂T_a/∂z|: the normal densities cancel and log α is the same.
///
/// Identical particles are permuted to the order σ of the mode's reference before f, and back after it: y = σ⁻¹ f(σ x).
/// The reverse jump sorts y by the other mode's reference. It returns to x if that order is σ as well, that is if f(σ
/// x) is already in order; if not, the proposal is rejected as out of support.
pub struct ModeJump {
    modes: Modes,
    edges: Vec<Edge>,
    /// f_k⁻¹ of every edge.
    inverses: Vec<Bijection>,
    noise: f64,
    identical: Option<Identical>,
    seed: u64,
    wholeness: Wholeness,
    constraints: Option<Constraints>,
    counts: Vec<EdgeCount>,
    statistics: Statistics,
}

/// A proposed jump.
struct Jump {
    y: Vec<f64>,
    mapped: Mapped,
    /// ln P_i(k), ln P_j(k).
    log_choice: [f64; 2],
    edge: usize,
    /// Whether the jump goes from the first mode to the second.
    forward: bool,
}

impl ModeJump {
    /// Errors: no edge, an edge from a mode to itself or to one that does not exist, weights that are not positive,
    /// maps of different dimension.
    pub fn new(modes: Modes, edges: Vec<Edge>, seed: u64) -> Result<ModeJump> {
        let Some(first) = edges.first() else {
            return Err(Error::invalid("jumps between modes require at least one edge"));
        };
        let dimension = first.map.dimension();
        for Edge { modes: [i, j], map, weights } in &edges {
            if i == j || *i.max(j) >= modes.names().len() {
                let n = modes.names().len();
                return Err(Error::invalid(format!(
                    "an edge joins modes {i} and {j} of {n}: must be two different modes, counted from 0"
                )));
            }
            if weights.iter().any(|w| !(*w > 0.0 && w.is_finite())) {
                return Err(Error::invalid(format!("weights {weights:?} of an edge must be positive and finite")));
            }
            if map.dimension() != dimension {
                let message = format!(
                    "all maps must have the same number of coordinates, found {dimension} and {}",
                    map.dimension()
                );
                return Err(Error::invalid(message));
            }
        }
        let wholeness = Wholeness::of_model(first.map.from().as_ref());
        let counts = vec![EdgeCount::default(); edges.len()];
        let statistics = Statistics::of(Exactness::Exact);
        let inverses = edges.iter().map(|edge| edge.map.inverse()).collect();
        let (noise, identical, constraints) = (0.0, None, None);
        Ok(ModeJump { modes, edges, inverses, noise, identical, seed, wholeness, constraints, counts, statistics })
    }

    /// A move for a model of kind `modes`. `modes`, if given, assigns configurations to modes instead of the model.
    ///
    /// Errors: a model of another kind, edges of modes that do not exist, more than one proposal per attempt.
    pub fn of_model(model: &Arc<dyn Model>, modes: Option<Modes>, options: Options) -> Result<ModeJump> {
        if options.n_proposals != 1 {
            return Err(Error::invalid(format!(
                "{} proposals: a jump between modes requires one",
                options.n_proposals
            )));
        }
        let Some(generators) = model.modes() else {
            return Err(Error::Unsupported(format!(
                "a model of kind {} has no modes to jump between: combine the generators of the modes with `modejump \
                 modes`",
                model.card().model.kind()
            )));
        };
        let (config, named) = (generators.config(), generators.modes());
        let n = generators.generators().len();
        let mut pairs: Vec<([usize; 2], [f64; 2])> = Vec::new();
        for edge in &config.edges {
            let [i, j] = &edge.between;
            pairs.push(([named.index(i)?, named.index(j)?], edge.weights));
        }
        if pairs.is_empty() {
            pairs.extend((0..n).flat_map(|i| (i + 1..n).map(move |j| ([i, j], [1.0; 2]))));
        }
        let edge = |(modes, weights): ([usize; 2], [f64; 2])| {
            let [from, to] = modes.map(|mode| generators.generators()[mode].clone());
            Ok(Edge { modes, weights, map: Bijection::new(from, to)? })
        };
        let edges = pairs.into_iter().map(edge).collect::<Result<Vec<_>>>()?;
        let mut jump = ModeJump::new(modes.unwrap_or_else(|| named.clone()), edges, options.seed)?;
        jump.set_noise(config.noise)?;
        if let Some(identical) = &config.identical {
            jump.set_identical(Identical {
                dimension: identical.dimension,
                particles: identical.particles.clone(),
                references: config.modes.iter().map(|mode| mode.reference.clone()).collect(),
            })?;
        }
        Ok(jump)
    }

    /// Sets the standard deviation of a normal step in latent space, added in every jump. Errors: a negative one.
    pub fn set_noise(&mut self, noise: f64) -> Result<()> {
        if !(noise >= 0.0 && noise.is_finite()) {
            return Err(Error::invalid(format!("noise of {noise} in latent space: must be non-negative and finite")));
        }
        self.noise = noise;
        Ok(())
    }

    /// Sets identical particles.
    ///
    /// Errors: particles or references that do not fit these configurations, maps that keep a molecule's frame.
    pub fn set_identical(&mut self, identical: Identical) -> Result<()> {
        let (d, k) = (self.dimension(), identical.dimension);
        if self.edges.iter().any(|edge| edge.map.changes_shape_only()) {
            return Err(Error::Unsupported(
                "identical particles are sorted by position, which models in internal coordinates do not describe"
                    .into(),
            ));
        }
        if k == 0 || identical.particles.iter().any(|&p| p >= d / k) {
            return Err(Error::invalid(format!(
                "identical particles of {k} coordinates are out of range for a configuration of {d} coordinates"
            )));
        }
        let particles = &identical.particles;
        if let Some(p) = particles.iter().enumerate().find_map(|(i, p)| particles[..i].contains(p).then_some(p)) {
            return Err(Error::invalid(format!("identical particles: particle {p} appears twice")));
        }
        if identical.references.len() != self.modes.names().len() || identical.references.iter().any(|r| r.len() != d) {
            return Err(Error::invalid(format!(
                "identical particles require a `reference` of {d} numbers in every mode"
            )));
        }
        self.identical = Some(identical);
        Ok(())
    }

    /// Adds the metric (Fixman) term of constrained bonds to the target and checks the bonds of every proposal. The
    /// caller must check that the model keeps exactly these bonds ([`Constraints::check_kept`]).
    pub fn set_constraints(&mut self, constraints: Constraints) {
        self.constraints = Some(constraints);
    }

    /// The metastable states.
    pub fn modes(&self) -> &Modes {
        &self.modes
    }

    /// The pairs of modes between which jumps are made.
    pub fn edges(&self) -> &[Edge] {
        &self.edges
    }

    /// Counts of every edge, in order.
    pub fn counts(&self) -> &[EdgeCount] {
        &self.counts
    }

    /// Sum of the weights of all edges at a mode.
    fn total_weight(&self, mode: usize) -> f64 {
        self.edges.iter().filter_map(|edge| weight(edge, mode)).sum()
    }

    /// Log-probability of edge k among those of the mode at its end `from` (0 or 1).
    fn log_choice(&self, k: usize, from: usize) -> f64 {
        let mode = self.edges[k].modes[from];
        (self.edges[k].weights[from] / self.total_weight(mode)).ln()
    }

    /// Edge chosen from a mode by a uniform number; None if the mode has no edge.
    fn choose(&self, mode: usize, uniform: f64) -> Option<usize> {
        let mut left = uniform * self.total_weight(mode);
        let mut chosen = None;
        for (k, edge) in self.edges.iter().enumerate() {
            let Some(weight) = weight(edge, mode) else { continue };
            chosen = Some(k);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    /// Draws a jump from x, made whole; None if x is in no mode with an edge.
    fn draw(&self, x: &[f64], state: &State) -> Result<Option<Jump>> {
        let mut stream = Stream::new(self.seed, StreamId::Proposal, state.step, state.replica);
        let Some(mode) = self.modes.of(x) else { return Ok(None) };
        let Some(k) = self.choose(mode, stream.uniform()) else { return Ok(None) };
        let edge = &self.edges[k];
        let forward = edge.modes[0] == mode;
        let (from, to) = if forward { (0, 1) } else { (1, 0) };
        let map = if forward { &edge.map } else { &self.inverses[k] };
        let order = self.identical.as_ref().map(|identical| identical.order(mode, x));
        let sorted = match (&self.identical, &order) {
            (Some(identical), Some(order)) => identical.sorted(order, x),
            _ => x.to_vec(),
        };
        let mut y = vec![0.0; x.len()];
        let nowhere = Evaluation::outside(Status::NonFinite);
        let mut mapped = [Mapped { forward: nowhere, reverse: nowhere }];
        map.map_with(&sorted, &mut y, &mut mapped, &mut |_, z| {
            if self.noise > 0.0 {
                z.iter_mut().for_each(|z| *z += self.noise * stream.normal());
            }
        })?;
        let [mut mapped] = mapped;
        if let (Some(identical), Some(order)) = (&self.identical, &order) {
            let there = mapped.status() == Status::Inside;
            if there && !identical.order(edge.modes[to], &y).iter().enumerate().all(|(p, &q)| p == q) {
                mapped.forward = Evaluation::outside(Status::OutOfSupport);
            }
            y = identical.restored(order, &y);
        }
        let log_choice = [self.log_choice(k, from), self.log_choice(k, to)];
        Ok(Some(Jump { y, mapped, log_choice, edge: k, forward }))
    }

    /// Metropolis test of a jump; updates the state if it is accepted.
    fn decide(&mut self, target: &mut dyn Target, state: &mut State, x: &[f64], jump: &Jump) -> Result<Outcome> {
        let Jump { y, mapped, log_choice, edge, forward } = jump;
        let to = self.edges[*edge].modes[usize::from(*forward)];
        let proposed = checked(y, mapped.forward, self.constraints.as_ref());
        let mut metric = |x: &[f64]| self.constraints.as_mut().map_or(0.0, |c| c.log_metric(x));
        let (mut current, u_current) = (mapped.reverse, state.reduced_potential - metric(x));
        if !u_current.is_finite() && current.is_inside() {
            current = Evaluation::outside(Status::Singular);
        }
        let usable = proposed.is_inside() && current.is_inside();
        if usable && self.modes.of(y) != Some(to) {
            return Ok(stays(Fate::WrongMode, state.reduced_potential));
        }
        let mut u = [f64::INFINITY];
        if usable {
            target.reduced_potential(y, &mut u)?;
        }
        let u_proposed = if u[0].is_finite() { u[0] - metric(y) } else { u[0] };
        let with = |side: Evaluation, log_choice: f64| match side.is_inside() {
            true => Evaluation::inside(side.log_density + log_choice),
            false => side,
        };
        let (forward, reverse) = (with(proposed, log_choice[0]), with(current, log_choice[1]));
        let uniform = Stream::new(self.seed, StreamId::Accept, state.step, state.replica).uniform();
        let test = accept(&Proposal { x: y, forward, reverse }, u_current, u_proposed, uniform);
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(y);
            state.reduced_potential = u[0];
        }
        Ok(Outcome::of_test(test, (u_current, reverse), (u_proposed, forward), state.reduced_potential))
    }
}

impl Move for ModeJump {
    fn dimension(&self) -> usize {
        self.edges[0].map.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        state.check(self.dimension(), target)?;
        let mut x = state.x.to_vec();
        self.wholeness.apply(state.box_vectors.as_ref(), &mut x)?;
        let outcome = match self.draw(&x, state)? {
            None => stays(Fate::WrongMode, state.reduced_potential),
            Some(jump) => {
                let outcome = self.decide(target, state, &x, &jump)?;
                let count = &mut self.counts[jump.edge];
                let start = usize::from(!jump.forward);
                count.attempts[start] += 1;
                count.accepted[start] += u64::from(outcome.accepted());
                outcome
            }
        };
        self.statistics.record(&outcome);
        Ok(outcome)
    }

    fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    fn statistics_mut(&mut self) -> &mut Statistics {
        &mut self.statistics
    }
}

/// The edge's weight at a mode; None if the mode is not one of its ends.
fn weight(edge: &Edge, mode: usize) -> Option<f64> {
    edge.modes.iter().position(|&m| m == mode).map(|end| edge.weights[end])
}

/// Outcome of an attempt that ends without a proposal to weigh.
fn stays(fate: Fate, reduced_potential: f64) -> Outcome {
    let never = f64::NEG_INFINITY;
    Outcome {
        fate,
        log_acceptance: never,
        log_weight_current: never,
        log_weight_proposed: never,
        log_density_current: never,
        log_density_proposed: never,
        reduced_potential,
        probability: 0.0,
    }
}
