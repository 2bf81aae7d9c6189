//! One attempt: the current state as the model sees it, the placed proposals, and their weights.

use super::question::Question;
use super::{Current, Generator, Proposals, Usable};
use crate::coordinates::frame::Frame;
use crate::coordinates::superpose::random_rotation;
use crate::coordinates::vector::{centre, shift};
use crate::density::{Evaluation, Scope, Status};
use crate::error::Result;
use crate::moves::{checked, State, Statistics};
use crate::orientation;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::borrow::Cow;

impl Generator {
    /// Draws, places and weighs the proposals of this attempt, evaluates the density afresh at the current
    /// configuration (dynamics has moved it since the last attempt), and records the proposals' log-weights. If
    /// proposals are drawn ahead, another thread evaluates that density while the target computes its potentials.
    pub(in crate::moves) fn prepare(
        &mut self,
        target: &mut dyn Target,
        state: &State,
        statistics: &mut Statistics,
    ) -> Result<()> {
        self.locate(target, state)?;
        self.place(state.step, state.replica)?;
        self.screen_proposals()?;
        let question = self.question(state);
        let density = match self.options.draw_ahead {
            true => question.into_owned().answer_during(|| self.evaluate(target))?,
            false => {
                let density = question.answer()?;
                self.evaluate(target)?;
                density
            }
        };
        self.weigh_current(density);
        self.record_weights(statistics);
        Ok(())
    }

    /// Records the proposals' log-weights, if those of different attempts can be compared.
    pub(in crate::moves) fn record_weights(&self, statistics: &mut Statistics) {
        if !self.options.partial {
            (0..self.n_proposals()).for_each(|k| statistics.record_weight(self.log_weight(k)));
        }
    }

    /// Evaluates the density of the current configuration and places the proposals; their potentials remain unknown
    /// (infinite).
    pub(in crate::moves) fn begin(&mut self, target: &dyn Target, state: &State) -> Result<()> {
        self.locate(target, state)?;
        let density = self.question(state).answer()?;
        self.weigh_current(density);
        self.place(state.step, state.replica)?;
        self.proposals.u.fill(f64::INFINITY);
        self.proposals.u_total.fill(f64::INFINITY);
        Ok(())
    }

    /// Makes the current configuration whole, moves it to where the density describes it, and sets its potential.
    fn locate(&mut self, target: &dyn Target, state: &State) -> Result<()> {
        state.check(self.dimension(), target)?;
        let Current { x, centroid, u, .. } = &mut self.current;
        x.copy_from_slice(state.x);
        self.whole.apply(state.box_vectors.as_ref(), x)?;
        if matches!(self.density.scope(), Scope::Centred | Scope::Noisy { .. }) {
            *centroid = centre(x);
        }
        if let Scope::Noisy { sigma } = self.density.scope() {
            let mut stream = Stream::new(self.options.seed, StreamId::Centroid, state.step, state.replica);
            shift(x, std::array::from_fn(|_| sigma * stream.normal()));
        }
        let metric = self.constraints.as_mut().map_or(0.0, |c| c.log_metric(x));
        *u = state.reduced_potential - metric;
        Ok(())
    }

    /// The density evaluation needed for the current configuration.
    fn question(&self, state: &State) -> Question<'_> {
        let orientations = orientations(self.options.seed, state.step, state.replica, 0);
        let mut x = Cow::from(&self.current.x);
        match &self.screen {
            None => Question { density: self.density.clone(), x, rotations: self.rotations, orientations },
            Some(screen) => {
                self.density.scope().centre(x.to_mut());
                Question { density: screen.density.clone(), x, rotations: 0, orientations }
            }
        }
    }

    /// Sets the current configuration's evaluation from its log-density.
    fn weigh_current(&mut self, density: Evaluation) {
        self.current.evaluation = self.trusted(density, self.current.u);
        let has_frame = match self.density.scope() {
            Scope::Shape { frame } => Frame::of(&self.current.x, frame).is_some(),
            _ => true,
        };
        if !has_frame || (!self.current.u.is_finite() && self.current.evaluation.is_inside()) {
            self.current.evaluation = Evaluation::outside(Status::Singular);
        }
    }

    /// Copies the proposals of an attempt and places each at the current configuration.
    ///
    /// If the density describes the shape only, placing is the rigid motion that makes a proposal's frame coincide with
    /// that of the current configuration: same origin atom, same axis, same half-plane. Why that is exact: write x =
    /// (x₀, R, s), origin, orientation and shape; the volume element is dx₀ dR J(s) ds with dR the Haar measure, so J
    /// depends on the shape alone. The move keeps (x₀, R) and draws s′ with density q(x′) J(s′) · const, independent of
    /// (x₀, R) because q is. Conditional on (x₀, R) the target's density of s is e^{−u} J(s). In the Hastings ratio J
    /// cancels: α = e^{−u(x′)+u(x)} q(x)/q(x′). Sampling a conditional of the target leaves the target invariant.
    ///
    /// If it describes all but the centroid, placing is the translation to the current centroid. Write x = (c, y),
    /// centroid and centred configuration; the volume element is N^{3/2} dc dy, with a constant factor. The move keeps
    /// c and draws y′ with density q(y′) on the centred space, so conditional on c it is an independence move with α =
    /// e^{−u(x′)+u(x)} q(y)/q(y′). Orientation is part of y: q need not be invariant under rotation.
    ///
    /// If its centroid is noise, placing is the same translation: write x = (c, y) with the target e^{−u(y)} N(c; 0,
    /// σ²). Drawing a fresh c for the current y leaves that invariant, and so does an independence move of (c, y) with
    /// α = e^{−u(y′)+u(y)} · [q(c, y)/N(c)] / [q(c′, y′)/N(c′)], ratios that are the density's log q. The position at
    /// which the molecule is placed then does not matter.
    fn place(&mut self, step: u64, replica: u32) -> Result<()> {
        let d = self.dimension();
        let (x, evaluations) = self.blocks.of(step, replica)?;
        self.proposals.x.copy_from_slice(x);
        self.proposals.evaluations.copy_from_slice(evaluations);
        let Proposals { x, centroids, evaluations, .. } = &mut self.proposals;
        let turning = |row: usize| orientations(self.options.seed, step, replica, 1 + row as u32);
        if self.rotations > 0 {
            let drawn = Some(evaluations.as_slice());
            let turning = |row| turning(2 * row);
            *evaluations = orientation::averaged(self.density.as_ref(), x, drawn, self.rotations, turning)?;
        }
        let frame = match self.density.scope() {
            Scope::Full => return Ok(()),
            Scope::Shape { frame } => frame,
            Scope::Centred | Scope::Noisy { .. } => {
                for (row, (x, drawn)) in x.chunks_exact_mut(d).zip(centroids).enumerate() {
                    *drawn = centre(x);
                    if self.rotations > 0 {
                        random_rotation(x, &mut turning(2 * row + 1));
                    }
                    shift(x, self.current.centroid);
                }
                return Ok(());
            }
        };
        // without a frame the current configuration is outside the support, and the attempt is rejected
        let Some(to) = Frame::of(&self.current.x, frame) else { return Ok(()) };
        for (x, evaluation) in x.chunks_exact_mut(d).zip(evaluations) {
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

    /// Replaces the log-densities of the placed proposals by the screen's, if there is one.
    fn screen_proposals(&mut self) -> Result<()> {
        let Some(screen) = &self.screen else { return Ok(()) };
        let (d, Proposals { x, evaluations, .. }) = (self.density.dimension(), &mut self.proposals);
        for (x, evaluation) in x.chunks_exact(d).zip(evaluations) {
            if evaluation.is_inside() {
                let mut copy = x.to_vec();
                self.density.scope().centre(&mut copy);
                screen.density.log_density(&copy, std::slice::from_mut(evaluation))?;
            }
        }
        Ok(())
    }

    /// The evaluation that enters a weight: log q, or a screen's log-density to the extent it is trusted.
    fn trusted(&self, evaluation: Evaluation, u: f64) -> Evaluation {
        match &self.screen {
            Some(screen) if evaluation.is_inside() => {
                let log_density = screen.trust.log_density(u, evaluation.log_density);
                supported(Evaluation { log_density, ..evaluation })
            }
            _ => supported(evaluation),
        }
    }

    /// Makes the checks that need no target, then evaluates u of all usable proposals in one call of the target.
    pub(in crate::moves) fn evaluate(&mut self, target: &mut dyn Target) -> Result<()> {
        let (d, Usable { rows, x: packed, u: of_packed }) = (self.density.dimension(), &mut self.usable);
        rows.clear();
        for (k, x) in self.proposals.x.chunks_exact(d).enumerate() {
            let evaluation = &mut self.proposals.evaluations[k];
            *evaluation = checked(x, supported(*evaluation), self.constraints.as_ref());
            if evaluation.is_inside() {
                packed[rows.len() * d..(rows.len() + 1) * d].copy_from_slice(x);
                rows.push(k);
            }
        }
        let n = rows.len();
        if n > 0 {
            target.reduced_potential(&packed[..n * d], &mut of_packed[..n])?;
        }
        self.proposals.u.fill(f64::INFINITY);
        rows.iter().zip(of_packed).for_each(|(&k, u)| self.proposals.u[k] = *u);
        for k in 0..self.proposals.u.len() {
            let (x, u) = (&self.proposals.x[k * d..(k + 1) * d], self.proposals.u[k]);
            let usable = u.is_finite();
            let metric = self.constraints.as_mut().filter(|_| usable).map_or(0.0, |c| c.log_metric(x));
            self.proposals.u_total[k] = u - metric;
            if usable {
                self.proposals.evaluations[k] = self.trusted(self.proposals.evaluations[k], u - metric);
            }
        }
        Ok(())
    }
}

/// Stream of rotations in an attempt: `which` = 0 for the current configuration, 1 and up for proposals.
fn orientations(seed: u64, step: u64, replica: u32, which: u32) -> Stream {
    // no use draws as many numbers as lie between two values of `which`
    Stream::new(seed, StreamId::Orientation, step, replica).at(which << 18)
}

/// Maps a non-finite log q (a density of zero) to `OutOfSupport`, whatever status the model gives it.
pub(super) fn supported(evaluation: Evaluation) -> Evaluation {
    if evaluation.is_inside() && !evaluation.log_density.is_finite() {
        return Evaluation::outside(Status::OutOfSupport);
    }
    evaluation
}
