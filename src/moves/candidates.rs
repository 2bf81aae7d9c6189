//! The generator of a move: proposals drawn ahead in batches, placed on the current configuration, with their weights.

use super::blocks::Blocks;
use super::wholeness::Wholeness;
use super::{Fate, State, Statistics};
use crate::annealing::Space;
use crate::coordinates::constraints::Constraints;
use crate::coordinates::frame::Frame;
use crate::coordinates::superpose::random_rotation;
use crate::coordinates::vector::{centre, shift, Vec3};
use crate::coordinates::{Between, Coordinates, CoordinatesConfig, InternalCoordinates};
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::orientation;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use crate::trust::Trust;
use std::borrow::Cow;
use std::sync::Arc;

/// Most proposals an attempt can have, so that their counters do not meet.
const MOST_PROPOSALS: usize = 1 << 12;
/// Coordinates that are drawn at once: 2 GB.
const MOST_NUMBERS: usize = 1 << 28;
/// |Δ log q| of an integrated density; a hundredth is harmless.
const LARGEST_INTEGRATION_ERROR: f64 = 0.1;

/// How many proposals, from which random numbers, and how they are drawn ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Proposals of one attempt, at least 1.
    pub n_proposals: usize,
    /// The random numbers of an attempt are a function of seed, step and replica: moves that act at the same step need different seeds.
    pub seed: u64,
    /// Engine steps between attempts; 0 if unknown, then every attempt draws its own proposals only.
    pub stride: u64,
    /// Attempts whose proposals are drawn in one batch.
    pub batch: usize,
    /// Whether a thread of its own draws the next batch of proposals while the present one is used up, so that an attempt need not
    /// wait for it. Samples, and so results, are the same to the last bit. Without a stride there is no next batch.
    pub draw_ahead: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { n_proposals: 1, seed: 0, stride: 0, batch: 32, draw_ahead: false }
    }
}

/// A density, ready to propose for attempts at given steps.
pub struct Generator {
    density: Arc<dyn Density>,
    /// The density that stands for `density` in all weights, until [`Generator::exact`] is asked.
    screen: Option<Arc<dyn Density>>,
    /// How far the screen is believed.
    trust: Trust,
    options: Options,
    /// Over how many rotations weights are averaged; 0: they are not.
    rotations: usize,
    whole: Wholeness,
    /// Bonds, angles and torsions of a model that has them.
    internal: Option<InternalCoordinates>,
    /// Whether the model keeps bonds at fixed lengths.
    rigid: bool,
    constraints: Option<Constraints>,
    blocks: Blocks,
    /// The current configuration, whole, with its centroid at the origin if the density leaves that alone, or where the noise has
    /// put it.
    current: Vec<f64>,
    centroid: Vec3,
    /// Where the density drew the centroids of the proposals, if that is noise.
    drawn_centroids: Vec<Vec3>,
    current_evaluation: Evaluation,
    u_current: f64,
    placed: Vec<f64>,
    evaluations: Vec<Evaluation>,
    /// Reduced potentials of the target, and with the metric term of constraints subtracted.
    u: Vec<f64>,
    u_total: Vec<f64>,
    /// Usable proposals, packed for one call of the target.
    packed: Vec<f64>,
    packed_rows: Vec<usize>,
    packed_u: Vec<f64>,
}

impl Generator {
    /// `bonds` make a molecule whole in a periodic box; pass none if x is not a molecule or no box is ever given.
    ///
    /// Errors: a density that is not exact (law of exactness 1), options out of range, a frame out of range, disconnected bonds.
    pub fn new(density: Arc<dyn Density>, bonds: Option<&[[usize; 2]]>, options: Options) -> Result<Generator> {
        if density.exactness() != Exactness::Exact {
            return Err(Error::Unsupported(format!(
                "the model's density is {}, and only an exact one may decide an acceptance: use the model for reweighting \
                 or to screen the proposals of a generator",
                density.exactness().name()
            )));
        }
        if let Some(error) = density.integration_error()?.filter(|error| *error > LARGEST_INTEGRATION_ERROR) {
            return Err(Error::Unsupported(format!(
                "log q of a sample of the model is off by {error:.2} on the way back, and {LARGEST_INTEGRATION_ERROR} is the most that may \
                 decide an acceptance: smaller tolerances, or more steps, of its solver are needed"
            )));
        }
        let Options { n_proposals, batch, stride, .. } = options;
        if !(1..=MOST_PROPOSALS).contains(&n_proposals) || !(1..=1 << 20).contains(&batch) {
            return Err(Error::invalid(format!(
                "{n_proposals} proposals in batches of {batch}: use 1 to {MOST_PROPOSALS} proposals, 1 to {} attempts",
                1 << 20
            )));
        }
        let dimension = density.dimension();
        let numbers = (n_proposals * if stride > 0 { batch } else { 1 }).saturating_mul(dimension);
        if numbers > MOST_NUMBERS {
            return Err(Error::invalid(format!(
                "{n_proposals} proposals of {dimension} coordinates in batches of {batch}: {numbers} numbers are drawn at once, and at most \
                 {MOST_NUMBERS} can be; use smaller batches"
            )));
        }
        if let Scope::Shape { frame } = density.scope() {
            if !dimension.is_multiple_of(3) || frame.iter().any(|&i| 3 * i >= dimension) {
                return Err(Error::invalid(format!(
                    "frame atoms {frame:?} are beyond the {} atoms of the model",
                    dimension / 3
                )));
            }
        }
        let has_centroid = matches!(density.scope(), Scope::Centred | Scope::Noisy { .. });
        if has_centroid && (dimension == 0 || !dimension.is_multiple_of(3)) {
            return Err(Error::invalid(format!("{dimension} coordinates are not those of atoms with a centroid")));
        }
        let whole = match bonds {
            Some(bonds) => Wholeness::of_bonds(dimension / 3, bonds)?,
            None => Wholeness::default(),
        };
        let nowhere = Evaluation::outside(Status::NonFinite);
        Ok(Generator {
            options,
            rotations: 0,
            screen: None,
            trust: Trust::default(),
            whole,
            internal: None,
            rigid: false,
            constraints: None,
            blocks: Blocks::new(density.clone(), options),
            current: vec![0.0; dimension],
            centroid: [0.0; 3],
            drawn_centroids: vec![[0.0; 3]; n_proposals],
            current_evaluation: nowhere,
            u_current: f64::NAN,
            placed: vec![0.0; n_proposals * dimension],
            evaluations: vec![nowhere; n_proposals],
            u: vec![0.0; n_proposals],
            u_total: vec![0.0; n_proposals],
            packed: vec![0.0; n_proposals * dimension],
            packed_rows: Vec::with_capacity(n_proposals),
            packed_u: vec![0.0; n_proposals],
            density,
        })
    }

    /// A generator of a loaded model. Molecules are made whole by the bonds of the model's topology, else by the references of
    /// its z-matrix. A model of several molecules works without a box only.
    pub fn of_model(model: &Arc<dyn Model>, options: Options) -> Result<Generator> {
        let rigid = !model.card().kept_bonds().is_empty();
        let whole = Wholeness::of_model(model.as_ref());
        let internal = match &model.card().coordinates {
            config @ CoordinatesConfig::Internal { .. } => {
                Coordinates::new(config, |atom| model.card().label(atom))?.internal()
            }
            CoordinatesConfig::Cartesian { .. } => None,
        };
        Ok(Generator { rigid, whole, internal, ..Generator::new(model.clone(), None, options)? })
    }

    /// The same for an engine that may constrain bonds.
    pub fn constrained(
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Generator> {
        Ok(Generator { constraints, ..Generator::of_model(model, options)? })
    }

    /// Adds the metric term of constrained bonds to the target and checks the bonds of every proposal. That the model keeps these bonds and no others
    /// is for the caller to ask ([`Constraints::check_kept`]).
    pub fn set_constraints(&mut self, constraints: Constraints) {
        self.constraints = Some(constraints);
    }

    /// Lets another density stand for the generator's in all weights, as far as it is trusted; proposals are then drawn without
    /// their log q.
    ///
    /// A weight has to be a function of the configuration alone, so that a configuration weighs the same as a proposal and
    /// later as the current state. The screen is therefore asked about placed proposals; of molecules about their centred
    /// copies, since the engine may have moved the molecule to another periodic image in between.
    pub(super) fn set_screen(&mut self, screen: Arc<dyn Density>, trust: Trust) -> Result<()> {
        trust.check()?;
        if screen.dimension() != self.dimension() {
            return Err(Error::invalid(format!(
                "the generator has {} coordinates and the screening model {}",
                self.dimension(),
                screen.dimension()
            )));
        }
        (self.screen, self.trust) = (Some(screen), trust);
        self.blocks.draw_points_only();
        Ok(())
    }

    /// Averages every density over this many orientations ([`crate::orientation`]), and gives proposals an orientation of their own.
    ///
    /// Why that is exact, whatever u: the current configuration gets K fresh rotations, which leaves e^{−u} dR₁ … dR_K invariant. A
    /// proposal is x′ = R y with y drawn and R uniform, and its rotations are R⁻¹, which takes it back to y, and K − 1 others: (x′, R′) has
    /// the density q̄(x′; R′) dR′₁ … dR′_K, whichever of them it was. So an independence move of (x, R) has the weights e^{−u}/q̄. u is asked
    /// for where a proposal has been turned to, and nothing is turned after the test: were it, the target could not know of directions.
    ///
    /// Errors: a density that does not describe the orientation, no rotations or too many.
    pub(super) fn average_rotations(&mut self, rotations: usize) -> Result<()> {
        orientation::check(self.density.as_ref(), rotations)?;
        self.rotations = rotations;
        Ok(())
    }

    /// log q of the generator itself at the current configuration and at proposal k.
    pub(super) fn exact(&self, k: usize) -> Result<[Evaluation; 2]> {
        let pair = [self.current.as_slice(), &self.as_drawn(k)].concat();
        let mut evaluations = [Evaluation::outside(Status::NonFinite); 2];
        self.density.log_density(&pair, &mut evaluations)?;
        Ok(evaluations.map(supported))
    }

    /// The current configuration as the density describes it.
    pub(super) fn current_as_drawn(&self) -> &[f64] {
        &self.current
    }

    /// Proposal k as the density describes it: its centroid where it was drawn, if the density knows of one.
    pub(super) fn as_drawn(&self, k: usize) -> Vec<f64> {
        let mut x = self.proposal(k).0.to_vec();
        match self.density.scope() {
            Scope::Full | Scope::Shape { .. } => {}
            Scope::Centred => _ = centre(&mut x),
            Scope::Noisy { .. } => {
                centre(&mut x);
                shift(&mut x, self.drawn_centroids[k]);
            }
        }
        x
    }

    /// Configurations as the density describes them, `[n][dimension]`, at the place of the current one.
    pub(super) fn placed<'a>(&self, x: &'a [f64]) -> Cow<'a, [f64]> {
        if matches!(self.density.scope(), Scope::Full | Scope::Shape { .. }) {
            return x.into();
        }
        let mut placed = x.to_vec();
        for x in placed.chunks_exact_mut(self.dimension()) {
            centre(x);
            shift(x, self.centroid);
        }
        placed.into()
    }

    /// From gradients at [`Generator::placed`] to those by what is placed.
    pub(super) fn pull_back(&self, gradient: &mut [f64]) {
        if matches!(self.density.scope(), Scope::Centred | Scope::Noisy { .. }) {
            for gradient in gradient.chunks_exact_mut(self.dimension()) {
                centre(gradient);
            }
        }
    }

    /// The displacements that change what the density describes, and nothing else.
    pub(super) fn space(&self) -> Space {
        match self.density.scope() {
            Scope::Full | Scope::Noisy { .. } => Space::Full,
            Scope::Centred => Space::Centred,
            Scope::Shape { frame } => match Frame::of(&self.current, frame) {
                Some(Frame { axes, .. }) => Space::Frame { frame, axes },
                None => Space::Full, // the attempt is rejected already
            },
        }
    }

    /// Proposals that can be made so far.
    pub(super) fn usable(&self) -> Vec<usize> {
        (0..self.n_proposals()).filter(|&k| self.evaluations[k].is_inside()).collect()
    }

    /// The way from the current configuration, made whole, to proposal k: in internal coordinates if the model has them, turning
    /// if the density describes the orientation, else straight. None of them moves the frame or the centroid.
    ///
    /// Errors: no way, by the status that says why.
    pub(super) fn way_to(&self, k: usize) -> std::result::Result<Between<'_>, Status> {
        let (to, scope) = (self.proposal(k).0, self.density.scope());
        match (&self.internal, scope) {
            (Some(internal), Scope::Shape { .. }) => Between::internal(internal, &self.current, to),
            (_, Scope::Centred | Scope::Noisy { .. }) => Between::turning(&self.placed(&self.current), to),
            _ => Ok(Between::straight(&self.current, to)),
        }
    }

    /// Rejects proposal k under this name.
    pub(super) fn refuse(&mut self, k: usize, status: Status) {
        self.evaluations[k] = Evaluation::outside(status);
    }

    /// Another configuration, as the density describes it, in place of proposal k.
    pub(super) fn set_end(&mut self, k: usize, x: &[f64]) {
        let (d, placed) = (self.dimension(), self.placed(x));
        self.placed[k * d..(k + 1) * d].copy_from_slice(&placed);
    }

    /// Gives proposal k this weight, whatever the density of its configuration.
    pub(super) fn set_log_weight(&mut self, k: usize, log_weight: f64) {
        if self.evaluations[k].is_inside() && self.u_total[k].is_finite() {
            self.evaluations[k] = Evaluation::inside(-self.u_total[k] - log_weight);
        }
    }

    pub(super) fn set_log_weight_current(&mut self, log_weight: f64) {
        self.current_evaluation = Evaluation::inside(-self.u_current - log_weight);
    }

    /// Whether some bonds have a fixed length, by constraints or by the model.
    pub(super) fn keeps_bonds(&self) -> bool {
        self.constraints.is_some() || self.rigid
    }

    /// The model that proposals are drawn from.
    pub fn density(&self) -> &Arc<dyn Density> {
        &self.density
    }

    /// As they were given.
    pub fn options(&self) -> Options {
        self.options
    }

    pub(super) fn dimension(&self) -> usize {
        self.current.len()
    }

    /// log q of the current configuration, or what the screen says.
    pub(super) fn current(&self) -> Evaluation {
        self.current_evaluation
    }

    /// u of the current configuration, metric term included.
    pub(super) fn u_current(&self) -> f64 {
        self.u_current
    }

    pub(super) fn log_weight_current(&self) -> f64 {
        -self.u_current - self.current_evaluation.log_density
    }

    pub(super) fn n_proposals(&self) -> usize {
        self.options.n_proposals
    }

    /// x′, log q(x′) and u(x′) of proposal k, metric term included.
    pub(super) fn proposal(&self, k: usize) -> (&[f64], Evaluation, f64) {
        let d = self.dimension();
        (&self.placed[k * d..(k + 1) * d], self.evaluations[k], self.u_total[k])
    }

    /// Makes proposal k the state, with u(x′) as the target gave it.
    pub(super) fn take(&self, k: usize, state: &mut State) {
        state.x.copy_from_slice(self.proposal(k).0);
        state.reduced_potential = self.u[k];
    }

    pub(super) fn log_weight(&self, k: usize) -> f64 {
        crate::weights::log_weight(self.u_total[k], &self.evaluations[k])
    }

    /// What makes proposal k unusable, or `Rejected`.
    pub(super) fn fate(&self, k: usize) -> Fate {
        match Fate::of(self.evaluations[k].status) {
            Fate::Rejected if !self.u_total[k].is_finite() => Fate::NonFinite,
            fate => fate,
        }
    }

    /// Draws, places and weighs the proposals of this attempt, evaluates the density afresh at the current configuration
    /// (dynamics has moved it since the last attempt), and records the proposals' log-weights.
    pub(super) fn prepare(
        &mut self,
        target: &mut dyn Target,
        state: &State,
        statistics: &mut Statistics,
    ) -> Result<()> {
        self.begin(target, state)?;
        self.screen_proposals()?;
        self.evaluate(target)?;
        for k in 0..self.n_proposals() {
            statistics.record_weight(self.log_weight(k));
        }
        Ok(())
    }

    /// The current configuration with its density, and proposals where it is; their potentials are not known yet.
    pub(super) fn begin(&mut self, target: &dyn Target, state: &State) -> Result<()> {
        state.check(self.dimension(), target)?;
        self.current.copy_from_slice(state.x);
        self.whole.apply(state.box_vectors.as_ref(), &mut self.current)?;
        if matches!(self.density.scope(), Scope::Centred | Scope::Noisy { .. }) {
            self.centroid = centre(&mut self.current);
        }
        if let Scope::Noisy { sigma } = self.density.scope() {
            let mut stream = Stream::new(self.options.seed, StreamId::Centroid, state.step, state.replica);
            shift(&mut self.current, std::array::from_fn(|_| sigma * stream.normal()));
        }
        let mut evaluation = [self.current_evaluation];
        match &self.screen {
            None if self.rotations > 0 => {
                let streams = |_: usize| orientations(self.options.seed, state.step, state.replica, 0);
                evaluation[0] =
                    orientation::averaged(self.density.as_ref(), &self.current, None, self.rotations, streams)?[0];
            }
            None => self.density.log_density(&self.current, &mut evaluation)?,
            Some(screen) => {
                let x = &mut self.packed[..self.current.len()];
                x.copy_from_slice(&self.current);
                centre_molecule(self.density.scope(), x);
                screen.log_density(x, &mut evaluation)?;
            }
        }
        let metric = self.constraints.as_mut().map_or(0.0, |c| c.log_metric(&self.current));
        self.u_current = state.reduced_potential - metric;
        self.current_evaluation = self.trusted(evaluation[0], self.u_current);
        if !self.u_current.is_finite() && self.current_evaluation.is_inside() {
            self.current_evaluation = Evaluation::outside(Status::Singular);
        }
        self.place(state.step, state.replica)?;
        self.u.fill(f64::INFINITY);
        self.u_total.fill(f64::INFINITY);
        Ok(())
    }

    /// Copies the proposals of an attempt and puts each where the current configuration is.
    ///
    /// If the density describes the shape only, that is a rigid motion by which its frame coincides with that of the current
    /// configuration: same origin atom, same axis, same half-plane. Why that is exact: write x = (x₀, R, s), origin,
    /// orientation and shape; the volume element is dx₀ dR J(s) ds with dR the Haar measure, so J depends on the shape
    /// alone. The move keeps (x₀, R) and draws s′ with density q(x′) J(s′) · const, independent of (x₀, R) because q is.
    /// Conditional on (x₀, R) the target's density of s is e^{−u} J(s). In the Hastings ratio J cancels:
    /// α = e^{−u(x′)+u(x)} q(x)/q(x′). Sampling a conditional of the target leaves the target invariant.
    ///
    /// If it describes all but the centroid, that is the translation to the current centroid. Write x = (c, y), centroid and
    /// centred configuration; the volume element is N^{3/2} dc dy, its factor constant. The move keeps c and draws y′ with
    /// density q(y′) on the centred space, so conditional on c it is an independence move with α = e^{−u(x′)+u(x)} q(y)/q(y′).
    /// Orientation is part of y: q need not be invariant under rotation.
    ///
    /// If its centroid is noise, the same translation: write x = (c, y) with the target e^{−u(y)} N(c; 0, σ²). Drawing c afresh for
    /// the current y leaves that invariant, and so does an independence move of (c, y) with α = e^{−u(y′)+u(y)} · [q(c, y)/N(c)] /
    /// [q(c′, y′)/N(c′)], ratios that are the density's log q. Where the molecule is put is of no account then.
    fn place(&mut self, step: u64, replica: u32) -> Result<()> {
        let d = self.dimension();
        let (x, evaluations) = self.blocks.of(step, replica)?;
        self.placed.copy_from_slice(x);
        self.evaluations.copy_from_slice(evaluations);
        let turning = |row: usize| orientations(self.options.seed, step, replica, 1 + row as u32);
        if self.rotations > 0 {
            let drawn = Some(self.evaluations.as_slice());
            self.evaluations =
                orientation::averaged(self.density.as_ref(), &self.placed, drawn, self.rotations, |row| {
                    turning(2 * row)
                })?;
        }
        let frame = match self.density.scope() {
            Scope::Full => return Ok(()),
            Scope::Shape { frame } => frame,
            Scope::Centred | Scope::Noisy { .. } => {
                let rows = self.placed.chunks_exact_mut(d).zip(&mut self.drawn_centroids);
                for (row, (x, drawn)) in rows.enumerate() {
                    *drawn = centre(x);
                    if self.rotations > 0 {
                        random_rotation(x, &mut turning(2 * row + 1));
                    }
                    shift(x, self.centroid);
                }
                return Ok(());
            }
        };
        let Some(to) = Frame::of(&self.current, frame) else {
            self.current_evaluation = Evaluation::outside(Status::Singular);
            return Ok(());
        };
        for (x, evaluation) in self.placed.chunks_exact_mut(d).zip(&mut self.evaluations) {
            if !evaluation.is_inside() {
                continue;
            }
            match Frame::of(x, frame) {
                Some(from) => from.carry(x, &to),
                None => *evaluation = Evaluation::outside(Status::Singular),
            }
        }
        Ok(())
    }

    /// What the screen, if there is one, says of the placed proposals.
    fn screen_proposals(&mut self) -> Result<()> {
        let Some(screen) = self.screen.clone() else { return Ok(()) };
        let d = self.current.len();
        for (x, evaluation) in self.placed.chunks_exact(d).zip(&mut self.evaluations) {
            if evaluation.is_inside() {
                let copy = &mut self.packed[..d];
                copy.copy_from_slice(x);
                centre_molecule(self.density.scope(), copy);
                let mut found = [*evaluation];
                screen.log_density(copy, &mut found)?;
                *evaluation = found[0];
            }
        }
        Ok(())
    }

    /// What an evaluation stands for in a weight: log q, or what a screen says as far as it is trusted.
    fn trusted(&self, evaluation: Evaluation, u: f64) -> Evaluation {
        let log_density = self.trust.log_density(u, evaluation.log_density);
        match evaluation.is_inside() && self.screen.is_some() {
            true => supported(Evaluation { log_density, ..evaluation }),
            false => supported(evaluation),
        }
    }

    /// u of every usable proposal in one call of the target, and the checks that need no target.
    pub(super) fn evaluate(&mut self, target: &mut dyn Target) -> Result<()> {
        let d = self.current.len();
        self.packed_rows.clear();
        for (k, x) in self.placed.chunks_exact(d).enumerate() {
            let evaluation = &mut self.evaluations[k];
            *evaluation = supported(*evaluation);
            if evaluation.is_inside() && x.iter().any(|v| !v.is_finite()) {
                *evaluation = Evaluation::outside(Status::NonFinite);
            }
            if evaluation.is_inside() && self.constraints.as_ref().is_some_and(|c| !c.are_kept(x)) {
                *evaluation = Evaluation::outside(Status::BrokenConstraint);
            }
            if evaluation.is_inside() {
                let row = self.packed_rows.len();
                self.packed[row * d..(row + 1) * d].copy_from_slice(x);
                self.packed_rows.push(k);
            }
        }
        let n = self.packed_rows.len();
        if n > 0 {
            target.reduced_potential(&self.packed[..n * d], &mut self.packed_u[..n])?;
        }
        self.u.fill(f64::INFINITY);
        for (&k, &u) in self.packed_rows.iter().zip(&self.packed_u) {
            self.u[k] = u;
        }
        for k in 0..self.u.len() {
            let x = &self.placed[k * d..(k + 1) * d];
            let usable = self.u[k].is_finite();
            let metric = self.constraints.as_mut().filter(|_| usable).map_or(0.0, |c| c.log_metric(x));
            self.u_total[k] = self.u[k] - metric;
            if usable {
                self.evaluations[k] = self.trusted(self.evaluations[k], self.u_total[k]);
            }
        }
        Ok(())
    }
}

/// Rotations of an attempt: of the current configuration (0), and of its proposals.
fn orientations(seed: u64, step: u64, replica: u32, which: u32) -> Stream {
    // no use takes as many numbers as are between two
    Stream::new(seed, StreamId::Orientation, step, replica).at(which << 18)
}

/// Centres what is a molecule rather than abstract coordinates.
fn centre_molecule(scope: Scope, x: &mut [f64]) {
    if scope != Scope::Full {
        centre(x);
    }
}

/// A density of zero means outside the support, whatever the model calls it.
fn supported(evaluation: Evaluation) -> Evaluation {
    if evaluation.is_inside() && !evaluation.log_density.is_finite() {
        return Evaluation::outside(Status::OutOfSupport);
    }
    evaluation
}
