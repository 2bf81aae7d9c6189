//! The generator of a move: proposals drawn ahead in batches, placed on the current configuration, with their weights.

mod attempt;
mod paths;
mod question;

use super::blocks::Blocks;
use super::wholeness::Wholeness;
use super::{Fate, State};
use crate::coordinates::constraints::Constraints;
use crate::coordinates::vector::Vec3;
use crate::coordinates::{Coordinates, CoordinatesConfig, InternalCoordinates};
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::models::Model;
use crate::orientation;
use crate::trust::Trust;
use attempt::supported;
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
    /// The random numbers of an attempt are a function of seed, step and replica: moves that act at the same step need
    /// different seeds.
    pub seed: u64,
    /// Engine steps between attempts; 0 if unknown, then every attempt draws its own proposals only. So does one whose
    /// number of a step is 2⁴⁰ or more, which engines give to attempts out of turn.
    pub stride: u64,
    /// Attempts whose proposals are drawn in one batch.
    pub batch: usize,
    /// Whether other threads draw the next batch of proposals while the present one is used up (without a stride there
    /// is no next batch), and evaluate the density of the current configuration while the target is asked for its
    /// potentials, so that an attempt waits for neither. Results are the same to the last bit.
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
    /// The current configuration, whole, with its centroid at the origin if the density leaves that alone, or where the
    /// noise has put it.
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
    /// Errors: a density that is not exact (law of exactness 1), options out of range, a frame out of range,
    /// disconnected bonds.
    pub fn new(density: Arc<dyn Density>, bonds: Option<&[[usize; 2]]>, options: Options) -> Result<Generator> {
        check(density.as_ref(), options)?;
        let (dimension, n_proposals) = (density.dimension(), options.n_proposals);
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

    /// A generator of a loaded model. Molecules are made whole by the bonds of the model's topology, else by the
    /// references of its z-matrix. A model of several molecules works without a box only.
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

    /// Adds the metric term of constrained bonds to the target and checks the bonds of every proposal. That the model
    /// keeps these bonds and no others is for the caller to ask ([`Constraints::check_kept`]).
    pub fn set_constraints(&mut self, constraints: Constraints) {
        self.constraints = Some(constraints);
    }

    /// Lets another density stand for the generator's in all weights, as far as it is trusted; proposals are then drawn
    /// without their log q.
    ///
    /// A weight has to be a function of the configuration alone, so that a configuration weighs the same as a proposal
    /// and later as the current state. The screen is therefore asked about placed proposals; of molecules about their
    /// centred copies, since the engine may have moved the molecule to another periodic image in between.
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

    /// Averages every density over this many orientations ([`crate::orientation`]), and gives proposals an orientation
    /// of their own.
    ///
    /// Why that is exact, whatever u: the current configuration gets K fresh rotations, which leaves e^{−u} dR₁ … dR_K
    /// invariant. A proposal is x′ = R y with y drawn and R uniform, and its rotations are R⁻¹, which takes it back to
    /// y, and K − 1 others: (x′, R′) has the density q̄(x′; R′) dR′₁ … dR′_K, whichever of them it was. So an
    /// independence move of (x, R) has the weights e^{−u}/q̄. u is asked for where a proposal has been turned to, and
    /// nothing is turned after the test: were it, the target could not know of directions.
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
        self.density.dimension()
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
}

/// Errors: a density that is not exact, as far as it tells, or of no molecule where it is one of molecules; options out
/// of range.
fn check(density: &dyn Density, options: Options) -> Result<()> {
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
    Ok(())
}
