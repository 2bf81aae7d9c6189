//! The generator of a move: proposals drawn ahead in batches, placed at the current configuration, with their weights.

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

/// Maximum number of proposals per attempt, so that their random counters do not overlap.
const MOST_PROPOSALS: usize = 1 << 12;
/// Maximum number of coordinates drawn at once: 2 GB.
const MOST_NUMBERS: usize = 1 << 28;
/// Largest |Δ log q| tolerated from a density by numerical integration. Proposals are integrated forward and the current
/// configuration backward, so where the errors of a state have one sign, its free energy is off by as much, in kT.
const LARGEST_INTEGRATION_ERROR: f64 = 0.05;

/// Number of proposals, their random seed, and how they are drawn ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// Proposals per attempt, at least 1.
    pub n_proposals: usize,
    /// Seed. Random numbers of an attempt are a function of seed, step and replica, so moves that act at the same step
    /// need different seeds.
    pub seed: u64,
    /// Engine steps between attempts; 0 if unknown, in which case each attempt draws only its own proposals. So does an
    /// attempt with step number 2⁴⁰ or more, which engines give to attempts out of turn.
    pub stride: u64,
    /// Number of attempts whose proposals are drawn in one batch.
    pub batch: usize,
    /// Whether other threads draw the next batch of proposals while the present one is used up (only with a stride,
    /// since otherwise there is no next batch) and evaluate the density of the current configuration while the target
    /// computes its potentials, so that an attempt waits for neither. Results are the same to the last bit.
    pub draw_ahead: bool,
    /// Whether the density describes a part of a system, the rest of which has other configurations in later attempts:
    /// weights of proposals cannot be compared then, and none are recorded.
    pub partial: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { n_proposals: 1, seed: 0, stride: 0, batch: 32, draw_ahead: false, partial: false }
    }
}

/// A density prepared to propose for attempts at given steps.
pub struct Generator {
    density: Arc<dyn Density>,
    screen: Option<Screen>,
    options: Options,
    /// Number of rotations over which densities are averaged; 0: none.
    rotations: usize,
    whole: Wholeness,
    /// Internal coordinates, for a model that has them.
    internal: Option<InternalCoordinates>,
    /// Whether the model keeps some bonds at fixed lengths.
    rigid: bool,
    constraints: Option<Constraints>,
    blocks: Blocks,
    current: Current,
    proposals: Proposals,
    usable: Usable,
}

/// A density that replaces the generator's in all weights, to the extent it is trusted; [`Generator::exact`] still
/// returns the generator's own.
struct Screen {
    density: Arc<dyn Density>,
    trust: Trust,
}

/// The configuration of the simulation, as the density describes it.
struct Current {
    /// Whole; its centroid is at the origin if the density leaves it alone, or where the noise puts it.
    x: Vec<f64>,
    /// Where its centroid is in the simulation.
    centroid: Vec3,
    evaluation: Evaluation,
    /// u minus the metric term of constraints.
    u: f64,
}

/// The proposals of an attempt, placed at the current configuration.
struct Proposals {
    x: Vec<f64>,
    /// Centroids as drawn, for a density in which the centroid is noise.
    centroids: Vec<Vec3>,
    evaluations: Vec<Evaluation>,
    /// Reduced potentials as the target returns them; `u_total` is u minus the metric term of constraints.
    u: Vec<f64>,
    u_total: Vec<f64>,
}

/// The usable ones among the proposals, packed for one call of the target.
struct Usable {
    rows: Vec<usize>,
    x: Vec<f64>,
    u: Vec<f64>,
}

impl Generator {
    /// A generator for this density. `bonds` make a molecule whole in a periodic box; pass None if x is not a molecule
    /// or no box is ever given.
    ///
    /// Errors: a density that is not exact (law of exactness 1), options or a frame out of range, disconnected bonds.
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
            whole,
            internal: None,
            rigid: false,
            constraints: None,
            blocks: Blocks::new(density.clone(), options)?,
            current: Current { x: vec![0.0; dimension], centroid: [0.0; 3], evaluation: nowhere, u: f64::NAN },
            proposals: Proposals {
                x: vec![0.0; n_proposals * dimension],
                centroids: vec![[0.0; 3]; n_proposals],
                evaluations: vec![nowhere; n_proposals],
                u: vec![0.0; n_proposals],
                u_total: vec![0.0; n_proposals],
            },
            usable: Usable {
                rows: Vec::with_capacity(n_proposals),
                x: vec![0.0; n_proposals * dimension],
                u: vec![0.0; n_proposals],
            },
            density,
        })
    }

    /// A generator for a loaded model. Molecules are made whole by the bonds of the model's topology, or else by the
    /// references of its z-matrix. A model of several molecules works without a box only.
    ///
    /// Errors: those of [`Generator::new`], coordinates of the model that are not valid.
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

    /// Like [`Generator::of_model`], for an engine that may constrain bonds.
    pub fn constrained(
        model: &Arc<dyn Model>,
        options: Options,
        constraints: Option<Constraints>,
    ) -> Result<Generator> {
        Ok(Generator { constraints, ..Generator::of_model(model, options)? })
    }

    /// Adds the metric (Fixman) term of constrained bonds to the target and checks the bonds of every proposal. The
    /// caller must check that the model keeps exactly these bonds ([`Constraints::check_kept`]).
    pub fn set_constraints(&mut self, constraints: Constraints) {
        self.constraints = Some(constraints);
    }

    /// Replaces the generator's density by a screen's in all weights, to the extent it is trusted; proposals are then
    /// drawn without log q.
    ///
    /// A weight has to be a function of the configuration alone, so that a configuration weighs the same as a proposal
    /// and later as the current state. The screen is therefore evaluated on placed proposals, for molecules on centred
    /// copies, since the engine may have moved the molecule to another periodic image in between.
    ///
    /// Errors: a screen of another dimension, trust out of range.
    pub(super) fn set_screen(&mut self, screen: Arc<dyn Density>, trust: Trust) -> Result<()> {
        trust.check()?;
        if screen.dimension() != self.dimension() {
            return Err(Error::invalid(format!(
                "the generator has {} coordinates, but the screening model has {}",
                self.dimension(),
                screen.dimension()
            )));
        }
        self.screen = Some(Screen { density: screen, trust });
        self.blocks.draw_points_only();
        Ok(())
    }

    /// Averages every density over this many orientations ([`crate::orientation`]) and gives each proposal a random
    /// orientation.
    ///
    /// Why that is exact, whatever u: the current configuration gets K fresh rotations, which leaves e^{−u} dR₁ … dR_K
    /// invariant. A proposal is x′ = R y with y drawn from the generator and R uniform; its rotations are R⁻¹, which
    /// takes it back to y, and K − 1 others. Then (x′, R′) has density q̄(x′; R′) dR′₁ … dR′_K, whichever of the
    /// rotations was R⁻¹, so an independence move of (x, R) has weights e^{−u}/q̄. u is evaluated at the rotated
    /// proposal and nothing is rotated after the test; otherwise u would have to be invariant under rotation.
    ///
    /// Errors: a density that does not describe the orientation, a number of rotations that is zero or too large.
    pub(super) fn average_rotations(&mut self, rotations: usize) -> Result<()> {
        orientation::check(self.density.as_ref(), rotations)?;
        self.rotations = rotations;
        Ok(())
    }

    /// The generator's own log q at the current configuration and at proposal k.
    pub(super) fn exact(&self, k: usize) -> Result<[Evaluation; 2]> {
        let pair = [self.current.x.as_slice(), &self.as_drawn(k)].concat();
        let mut evaluations = [Evaluation::outside(Status::NonFinite); 2];
        self.density.log_density(&pair, &mut evaluations)?;
        Ok(evaluations.map(supported))
    }

    /// Errors: a density without a gradient.
    pub(super) fn require_gradient(&self) -> Result<()> {
        self.density.log_density_gradient(&[], &mut [], &mut [])
    }

    /// Whether some bonds have fixed lengths, by constraints or by the model.
    pub(super) fn keeps_bonds(&self) -> bool {
        self.constraints.is_some() || self.rigid
    }

    /// The density that proposals are drawn from.
    pub fn density(&self) -> &Arc<dyn Density> {
        &self.density
    }

    /// The options given at construction.
    pub fn options(&self) -> Options {
        self.options
    }

    pub(super) fn dimension(&self) -> usize {
        self.density.dimension()
    }

    /// log q of the current configuration, or the screen's.
    pub(super) fn current(&self) -> Evaluation {
        self.current.evaluation
    }

    /// u of the current configuration minus the metric term.
    pub(super) fn u_current(&self) -> f64 {
        self.current.u
    }

    pub(super) fn log_weight_current(&self) -> f64 {
        -self.current.u - self.current.evaluation.log_density
    }

    pub(super) fn n_proposals(&self) -> usize {
        self.options.n_proposals
    }

    /// x′, log q(x′) and u(x′) of proposal k, with the metric term subtracted.
    pub(super) fn proposal(&self, k: usize) -> (&[f64], Evaluation, f64) {
        let (d, Proposals { x, evaluations, u_total, .. }) = (self.dimension(), &self.proposals);
        (&x[k * d..(k + 1) * d], evaluations[k], u_total[k])
    }

    /// Copies proposal k into the state, with u(x′) as the target returned it.
    pub(super) fn take(&self, k: usize, state: &mut State) {
        state.x.copy_from_slice(self.proposal(k).0);
        state.reduced_potential = self.proposals.u[k];
    }

    pub(super) fn log_weight(&self, k: usize) -> f64 {
        crate::weights::log_weight(self.proposals.u_total[k], &self.proposals.evaluations[k])
    }

    /// Why proposal k is unusable, or `Rejected`.
    pub(super) fn fate(&self, k: usize) -> Fate {
        match Fate::of(self.proposals.evaluations[k].status) {
            Fate::Rejected if !self.proposals.u_total[k].is_finite() => Fate::NonFinite,
            fate => fate,
        }
    }
}

/// Checks density and options.
///
/// Errors: a density that is not exact, declares a frame or centroid without being one of atoms, or integrates
/// inaccurately; options out of range.
fn check(density: &dyn Density, options: Options) -> Result<()> {
    if density.exactness() != Exactness::Exact {
        return Err(Error::Unsupported(format!(
            "the exactness of the model's density is `{}`, but acceptance requires an exact density: use the model for reweighting or to \
             screen the proposals of a generator",
            density.exactness().name()
        )));
    }
    if let Some(error) = density.integration_error()?.filter(|error| *error > LARGEST_INTEGRATION_ERROR) {
        return Err(Error::Unsupported(format!(
            "log q of a sample of the model is off by {error:.3} when integrated back, but acceptance allows at most \
             {LARGEST_INTEGRATION_ERROR}: reduce its solver's tolerances, or increase its number of steps"
        )));
    }
    let Options { n_proposals, batch, stride, .. } = options;
    if !(1..=MOST_PROPOSALS).contains(&n_proposals) || !(1..=1 << 20).contains(&batch) {
        return Err(Error::invalid(format!(
            "{n_proposals} proposals in batches of {batch} are out of range: use 1 to {MOST_PROPOSALS} proposals and \
             batches of 1 to {} attempts",
            1 << 20
        )));
    }
    let dimension = density.dimension();
    let numbers = (n_proposals * if stride > 0 { batch } else { 1 }).saturating_mul(dimension);
    if numbers > MOST_NUMBERS {
        return Err(Error::invalid(format!(
            "{n_proposals} proposals of {dimension} coordinates in batches of {batch} draw {numbers} numbers at once: \
             must be at most {MOST_NUMBERS}; use smaller batches"
        )));
    }
    if let Scope::Shape { frame } = density.scope() {
        if !dimension.is_multiple_of(3) || frame.iter().any(|&i| 3 * i >= dimension) {
            return Err(Error::invalid(format!(
                "frame atoms {frame:?} are out of range for a model of {} atoms",
                dimension / 3
            )));
        }
    }
    let has_centroid = matches!(density.scope(), Scope::Centred | Scope::Noisy { .. });
    if has_centroid && (dimension == 0 || !dimension.is_multiple_of(3)) {
        return Err(Error::invalid(format!(
            "a model with a centroid must have three coordinates per atom, found {dimension} coordinates"
        )));
    }
    Ok(())
}
