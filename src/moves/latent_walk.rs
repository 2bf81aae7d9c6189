//! Walks in latent space: local steps in a flow's z, which are large and cheap moves of x.

use super::wholeness::Wholeness;
use super::{accept, checked, Fate, Move, Outcome, Proposal, State, Statistics};
use crate::annealing::MOST_LEAPFROG_STEPS;
use crate::coordinates::constraints::Constraints;
use crate::coordinates::frame::Frame;
use crate::density::{Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::models::{flow_of, Model};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Steps of a walk in latent space.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LatentWalkOptions {
    /// Step widths, one of which is chosen at random in every attempt. The prior of a latent coordinate has width 1, or
    /// is uniform on [0, 1).
    pub widths: Vec<f64>,
    /// Leapfrog steps of a Hamiltonian trajectory, each as long as the width; 0 for a random walk.
    pub leapfrog: usize,
    pub seed: u64,
}

impl Default for LatentWalkOptions {
    fn default() -> LatentWalkOptions {
        LatentWalkOptions { widths: vec![0.05, 0.3], leapfrog: 0, seed: 0 }
    }
}

impl LatentWalkOptions {
    /// Errors: no widths, widths that are not positive, trajectories that are too long.
    pub(crate) fn check(&self) -> Result<()> {
        if self.widths.is_empty() || self.widths.iter().any(|s| !(*s > 0.0 && s.is_finite())) {
            let message =
                format!("invalid widths {:?} of a latent walk: use one or more positive, finite widths", self.widths);
            return Err(Error::invalid(message));
        }
        if self.leapfrog > MOST_LEAPFROG_STEPS {
            return Err(Error::invalid(format!(
                "{} leapfrog steps are too many: use at most {MOST_LEAPFROG_STEPS}, or 0 for a random walk",
                self.leapfrog
            )));
        }
        Ok(())
    }
}

/// Metropolis moves in the latent space of a flow x = T(z) (Noé et al., Science 365, eaaw1147 (2019)).
///
/// In z the target e^{−u(x)} becomes e^{−u(T(z))} |∂x/∂z|, and the prior plays no part. A random walk proposes z′ = z +
/// s ξ, ξ standard normal, with s one of the widths; coordinates with a uniform prior are wrapped to [0, 1). The step
/// density is symmetric, so log α = −Δu + ln|∂x/∂z|(z′) − ln|∂x/∂z|(z). In terms of x, log q(x′|x) = −ln|∂x/∂z|(z′) up
/// to terms that cancel.
///
/// Hamiltonian Monte Carlo (Duane et al., Phys. Lett. B 195, 216 (1987)) draws momenta p and integrates H = u(T(z)) −
/// ln|∂x/∂z| + ½ p² by leapfrog steps, a reversible, volume-preserving map of (z, p) whatever the force: log α = −ΔH.
/// Metric terms of constraints enter the test but not the force. Gradients of target and flow are needed.
///
/// z is recomputed from the current configuration at every attempt. A model of the shape keeps the frame of the current
/// configuration, as independence moves do, and the same Jacobians of position and orientation cancel. Proposals are
/// not samples of the model, so no weights are recorded: the statistics have counts and log α, and the log q of an
/// outcome is the model's.
pub struct LatentWalk {
    options: LatentWalkOptions,
    space: Space,
    current: Point,
    /// End of the step or trajectory; during a trajectory, its current point.
    proposed: Point,
    momenta: Vec<f64>,
    statistics: Statistics,
}

/// The latent space of a flow, with the gradients and constraints that the target adds.
struct Space {
    model: Arc<dyn Model>,
    wholeness: Wholeness,
    constraints: Option<Constraints>,
    /// For each latent coordinate, whether it is periodic on [0, 1).
    wraps: Vec<bool>,
    /// ∂u/∂x at the current point; the next field is ∂/∂z of u(T(z)) − ln|∂x/∂z|.
    gradient_x: Vec<f64>,
    gradient: Vec<f64>,
}

/// A point of latent space with everything the test needs.
#[derive(Clone)]
struct Point {
    z: Vec<f64>,
    /// Configuration, on the frame of the current one.
    x: Vec<f64>,
    /// log q of the model; outside if the point is unusable.
    evaluation: Evaluation,
    log_det: f64,
    /// u as the target returns it; `u_total` is u minus the metric term of constraints.
    u: f64,
    u_total: f64,
}

impl LatentWalk {
    /// Errors: a model that is not a flow, whose log-determinant is not exact, or that describes a molecule without its
    /// centroid; widths or trajectories out of range; trajectories for a flow without gradients.
    pub fn new(model: &Arc<dyn Model>, options: LatentWalkOptions) -> Result<LatentWalk> {
        options.check()?;
        let flow = flow_of(model.as_ref())?;
        if !matches!(model.scope(), Scope::Full | Scope::Shape { .. }) || model.exactness() != Exactness::Exact {
            return Err(Error::Unsupported(
                "latent walks require a flow with an exact density of all coordinates or of the shape, such as a \
                 coupling flow"
                    .into(),
            ));
        }
        if options.leapfrog > 0 {
            flow.pull_back(&[], &[], &[], &mut [])?;
        }
        let (latent, dimension) = (flow.latent_dimension(), model.dimension());
        let (z, x) = (vec![0.0; latent], vec![0.0; dimension]);
        let point = Point { z, x, evaluation: nowhere(), log_det: 0.0, u: f64::INFINITY, u_total: f64::INFINITY };
        Ok(LatentWalk {
            options,
            space: Space {
                wraps: (0..latent).map(|i| flow.is_uniform(i)).collect(),
                wholeness: Wholeness::of_model(model.as_ref()),
                constraints: None,
                gradient_x: vec![0.0; dimension],
                gradient: vec![0.0; latent],
                model: model.clone(),
            },
            current: point.clone(),
            proposed: point,
            momenta: vec![0.0; latent],
            statistics: Statistics::default(),
        })
    }

    /// Adds the metric (Fixman) term of constrained bonds to the target and checks the bonds of every proposal. The
    /// caller must check that the model keeps exactly these bonds ([`Constraints::check_kept`]).
    pub fn set_constraints(&mut self, constraints: Constraints) {
        self.space.constraints = Some(constraints);
    }

    /// Proposes z + s ξ, with s = `width`.
    fn walk(&mut self, target: &mut dyn Target, frame: Option<&Frame>, width: f64, noise: &mut Stream) -> Result<()> {
        let LatentWalk { space, current, proposed, .. } = self;
        noise.fill_normal(&mut proposed.z);
        proposed.z.iter_mut().zip(&current.z).for_each(|(z, from)| *z = from + width * *z);
        space.wrap(&mut proposed.z);
        space.generate(frame, proposed)?;
        if proposed.evaluation.is_inside() {
            let mut u = [f64::INFINITY];
            target.reduced_potential(&proposed.x, &mut u)?;
            proposed.u = u[0];
        }
        Ok(())
    }

    /// Proposes the end of a trajectory with fresh momenta; returns ½ p² at its start and end.
    fn trajectory(
        &mut self,
        target: &mut dyn Target,
        frame: Option<&Frame>,
        step: f64,
        noise: &mut Stream,
    ) -> Result<[f64; 2]> {
        let LatentWalk { space, current, proposed, momenta, options, .. } = self;
        noise.fill_normal(momenta);
        let kinetic = |p: &[f64]| 0.5 * p.iter().map(|p| p * p).sum::<f64>();
        let before = kinetic(momenta);
        proposed.z.copy_from_slice(&current.z);
        space.leapfrog(target, frame, proposed, momenta, (options.leapfrog, step))?;
        Ok([before, kinetic(momenta)])
    }
}

impl Space {
    /// Makes the current configuration whole and computes its z. Returns its frame if the model describes the shape.
    fn encode(&mut self, state: &State, point: &mut Point) -> Result<Option<Frame>> {
        point.x.copy_from_slice(state.x);
        self.wholeness.apply(state.box_vectors.as_ref(), &mut point.x)?;
        let (mut log_det, mut evaluation) = ([0.0], [nowhere()]);
        flow_of(self.model.as_ref())?.encode(&point.x, &mut point.z, &mut log_det, &mut evaluation)?;
        let frame = match self.model.scope() {
            Scope::Shape { frame } => Frame::of(&point.x, frame),
            _ => None,
        };
        (point.log_det, point.evaluation, point.u) = (log_det[0], evaluation[0], state.reduced_potential);
        if frame.is_none() && self.model.scope() != Scope::Full {
            point.evaluation = Evaluation::outside(Status::Singular);
        }
        self.add_metric(point);
        if !point.u_total.is_finite() && point.evaluation.is_inside() {
            point.evaluation = Evaluation::outside(Status::Singular);
        }
        Ok(frame)
    }

    /// Computes x = T(z) of a point, placed on `frame`, with u still unknown. Returns the frame that the flow itself
    /// gave it.
    fn generate(&self, frame: Option<&Frame>, point: &mut Point) -> Result<Option<Frame>> {
        let (mut log_det, mut evaluation) = ([0.0], [nowhere()]);
        flow_of(self.model.as_ref())?.generate(&point.z, &mut point.x, &mut log_det, &mut evaluation)?;
        let [mut evaluation] = evaluation;
        let mut own = None;
        if let (Scope::Shape { frame: atoms }, Some(frame), true) = (self.model.scope(), frame, evaluation.is_inside())
        {
            own = Frame::of(&point.x, atoms);
            match &own {
                Some(own) => own.carry(&mut point.x, frame),
                None => evaluation = Evaluation::outside(Status::Singular),
            }
        }
        if evaluation.is_inside() && !log_det[0].is_finite() {
            evaluation = Evaluation::outside(Status::NonFinite);
        }
        evaluation = checked(&point.x, evaluation, self.constraints.as_ref());
        (point.evaluation, point.log_det, point.u) = (evaluation, log_det[0], f64::INFINITY);
        Ok(own)
    }

    /// Subtracts the metric term of constraints, once u is known.
    fn add_metric(&mut self, point: &mut Point) {
        let metric = self.constraints.as_mut().filter(|_| point.u.is_finite()).map_or(0.0, |c| c.log_metric(&point.x));
        point.u_total = point.u - metric;
    }

    fn wrap(&self, z: &mut [f64]) {
        z.iter_mut().zip(&self.wraps).filter(|(_, wraps)| **wraps).for_each(|(z, _)| *z = z.rem_euclid(1.0));
    }

    /// Integrates z and p. A trajectory ends unusable at the first point that is unusable: the reverse trajectory would
    /// meet it too.
    fn leapfrog(
        &mut self,
        target: &mut dyn Target,
        frame: Option<&Frame>,
        point: &mut Point,
        p: &mut [f64],
        (steps, step): (usize, f64),
    ) -> Result<()> {
        self.find_gradient(target, frame, point)?;
        for _ in 0..steps {
            if !point.evaluation.is_inside() {
                break;
            }
            p.iter_mut().zip(&self.gradient).for_each(|(p, g)| *p -= 0.5 * step * g);
            point.z.iter_mut().zip(&*p).for_each(|(z, p)| *z += step * p);
            self.wrap(&mut point.z);
            self.find_gradient(target, frame, point)?;
            p.iter_mut().zip(&self.gradient).for_each(|(p, g)| *p -= 0.5 * step * g);
        }
        Ok(())
    }

    /// Computes T(z) of a point and ∂/∂z of u(T(z)) − ln|∂x/∂z|. A gradient that is not finite makes the point
    /// unusable.
    fn find_gradient(&mut self, target: &mut dyn Target, frame: Option<&Frame>, point: &mut Point) -> Result<()> {
        let own = self.generate(frame, point)?;
        let Space { model, gradient_x: gx, gradient: gz, .. } = self;
        gz.fill(0.0);
        if !point.evaluation.is_inside() {
            return Ok(());
        }
        let mut u = [f64::INFINITY];
        target.reduced_potential_gradient(&point.x, &mut u, gx)?;
        point.u = u[0];
        if let (Some(frame), Some(own)) = (frame, own) {
            let about_origin = |axes| Frame { origin: [0.0; 3], axes };
            about_origin(frame.axes).carry(gx, &about_origin(own.axes));
        }
        if u[0].is_finite() && gx.iter().all(|g| g.is_finite()) {
            flow_of(model.as_ref())?.pull_back(&point.z, gx, &[-1.0], gz)?;
        }
        if !u[0].is_finite() || gx.iter().chain(&*gz).any(|g| !g.is_finite()) {
            point.evaluation = Evaluation::outside(Status::NonFinite);
        }
        Ok(())
    }
}

fn nowhere() -> Evaluation {
    Evaluation::outside(Status::NonFinite)
}

/// Log-density of a point in terms of x, where `log_kernel` is that of reaching its z.
fn reached(point: &Point, log_kernel: f64) -> Evaluation {
    match point.evaluation.is_inside() {
        true => Evaluation::inside(log_kernel - point.log_det),
        false => point.evaluation,
    }
}

impl Move for LatentWalk {
    fn dimension(&self) -> usize {
        self.space.model.dimension()
    }

    fn attempt(&mut self, target: &mut dyn Target, state: &mut State) -> Result<Outcome> {
        state.check(self.dimension(), target)?;
        let frame = self.space.encode(state, &mut self.current)?;
        let mut noise = Stream::new(self.options.seed, StreamId::Latent, state.step, state.replica);
        let width = self.options.widths[noise.below(self.options.widths.len())];
        let mut kinetic = [0.0; 2];
        match self.options.leapfrog {
            _ if !self.current.evaluation.is_inside() => self.proposed.clone_from(&self.current), // to be rejected in any case
            0 => self.walk(target, frame.as_ref(), width, &mut noise)?,
            _ => kinetic = self.trajectory(target, frame.as_ref(), width, &mut noise)?,
        }
        self.space.add_metric(&mut self.proposed);
        let (current, proposed) = (&self.current, &self.proposed);
        let proposal = Proposal {
            x: &proposed.x,
            forward: reached(proposed, -kinetic[0]),
            reverse: reached(current, -kinetic[1]),
        };
        let uniform = Stream::new(self.options.seed, StreamId::Accept, state.step, state.replica).uniform();
        let test = accept(&proposal, current.u_total, proposed.u_total, uniform);
        if test.0 == Fate::Accepted {
            state.x.copy_from_slice(&proposed.x);
            state.reduced_potential = proposed.u;
        }
        let [from, to] = [current, proposed].map(|point| (point.u_total, point.evaluation));
        let outcome = Outcome::of_test(test, from, to, state.reduced_potential);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::CoordinatesConfig;
    use crate::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
    use crate::models::ModelCard;
    use crate::nn::Activation;

    /// u = Σ cosh x.
    struct Walls;

    impl Target for Walls {
        fn dimension(&self) -> usize {
            2
        }

        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
        }

        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            u.iter_mut().zip(x.chunks_exact(2)).for_each(|(u, x)| *u = x[0].cosh() + x[1].cosh());
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g = x.sinh());
            Ok(())
        }
    }

    /// Affine couplings with random weights; the second coordinate has a uniform prior.
    fn walk(leapfrog: usize) -> LatentWalk {
        let layer = |i: usize| LayerConfig::Affine {
            transformed: vec![i],
            features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - i] },
            hidden: vec![6],
            activation: Activation::Silu,
            scale_activation: None,
            preserve_volume: false,
        };
        let config = CouplingConfig { uniform: vec![1], layers: vec![layer(0), layer(1)] };
        let card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 2 });
        let mut flow = CouplingFlow::<f64>::new(card).unwrap();
        let mut stream = Stream::new(3, StreamId::Test, 0, 0);
        flow.parameters_mut().iter_mut().for_each(|w| *w = 0.5 * stream.normal());
        let model: Arc<dyn Model> = Arc::new(flow);
        LatentWalk::new(&model, LatentWalkOptions { leapfrog, ..LatentWalkOptions::default() }).unwrap()
    }

    /// End of a trajectory, and H there minus H at the start.
    fn follow(walk: &mut LatentWalk, z: &[f64], p: &mut [f64], step: f64) -> (Vec<f64>, f64) {
        let energy = |point: &Point, p: &[f64]| point.u - point.log_det + 0.5 * p.iter().map(|p| p * p).sum::<f64>();
        let LatentWalk { space, proposed: point, options, .. } = walk;
        point.z.copy_from_slice(z);
        space.find_gradient(&mut Walls, None, point).unwrap();
        let before = energy(point, p);
        space.leapfrog(&mut Walls, None, point, p, (options.leapfrog, step)).unwrap();
        (point.z.clone(), energy(point, p) - before)
    }

    #[test]
    fn a_trajectory_comes_back_with_its_momenta_reversed() {
        let mut walk = walk(12);
        // fast enough to go round the circle
        for p0 in [[0.4, 3.0], [-1.0, -2.5], [2.0, 0.1]] {
            let mut p = p0.to_vec();
            let (z, change) = follow(&mut walk, &[0.3, 0.8], &mut p, 0.1);
            p.iter_mut().for_each(|p| *p = -*p);
            let (back, change_back) = follow(&mut walk, &z, &mut p, 0.1);
            assert!((0.0..1.0).contains(&z[1]) && (z[0] - 0.3).abs() > 0.01);
            assert!((back[0] - 0.3).abs() < 1e-10 && (back[1] - 0.8).abs() < 1e-10, "{back:?}");
            assert!((change + change_back).abs() < 1e-10);
            assert!(p.iter().zip(p0).all(|(p, p0)| (p + p0).abs() < 1e-10), "{p:?}");
        }
    }

    /// The force matches the energy: errors fall with the square of the step.
    #[test]
    fn trajectories_keep_the_energy_to_second_order() {
        let error = |leapfrog: usize| {
            let step = 0.6 / leapfrog as f64;
            follow(&mut walk(leapfrog), &[0.3, 0.4], &mut [0.4, 0.3], step).1.abs()
        };
        let ratio = error(20) / error(40);
        assert!(error(40) < 1e-4 && (3.6..4.4).contains(&ratio), "{} {ratio}", error(40));
    }

    #[test]
    fn what_cannot_be_walked_is_refused() {
        let model = walk(0).space.model;
        let refusal = |widths: Vec<f64>, leapfrog: usize| {
            LatentWalk::new(&model, LatentWalkOptions { widths, leapfrog, seed: 0 }).err().unwrap().to_string()
        };
        assert!(refusal(vec![], 0).contains("one or more positive, finite widths"));
        assert!(refusal(vec![0.1, 0.0], 0).contains("[0.1, 0.0]"));
        assert!(refusal(vec![0.1], 10_001).contains("10001 leapfrog"));
    }
}
