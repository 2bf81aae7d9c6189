//! Helpers for moves that follow a path from the current state to a proposal: annealed and driven ones.

use super::Generator;
use crate::annealing::Space;
use crate::coordinates::frame::Frame;
use crate::coordinates::vector::{centre, shift};
use crate::coordinates::Between;
use crate::density::{Evaluation, Scope, Status};
use std::borrow::Cow;

impl Generator {
    /// Current configuration as the density describes it.
    pub(in crate::moves) fn current_as_drawn(&self) -> &[f64] {
        &self.current.x
    }

    /// Proposal k as the density describes it: with its centroid as drawn, if the density includes one.
    pub(in crate::moves) fn as_drawn(&self, k: usize) -> Vec<f64> {
        let mut x = self.proposal(k).0.to_vec();
        match self.density.scope() {
            Scope::Full | Scope::Shape { .. } => {}
            Scope::Centred => _ = centre(&mut x),
            Scope::Noisy { .. } => {
                centre(&mut x);
                shift(&mut x, self.proposals.centroids[k]);
            }
        }
        x
    }

    /// Takes configurations as the density describes them, `[n][dimension]`, to the position of the current one.
    pub(in crate::moves) fn placed<'a>(&self, x: &'a [f64]) -> Cow<'a, [f64]> {
        if matches!(self.density.scope(), Scope::Full | Scope::Shape { .. }) {
            return x.into();
        }
        let mut placed = x.to_vec();
        for x in placed.chunks_exact_mut(self.dimension()) {
            centre(x);
            shift(x, self.current.centroid);
        }
        placed.into()
    }

    /// Pulls gradients at [`Generator::placed`] back to gradients by its argument, in place.
    pub(in crate::moves) fn pull_back(&self, gradient: &mut [f64]) {
        if matches!(self.density.scope(), Scope::Centred | Scope::Noisy { .. }) {
            for gradient in gradient.chunks_exact_mut(self.dimension()) {
                centre(gradient);
            }
        }
    }

    /// Space of displacements that change what the density describes and nothing else.
    pub(in crate::moves) fn space(&self) -> Space {
        match self.density.scope() {
            Scope::Full | Scope::Noisy { .. } => Space::Full,
            Scope::Centred => Space::Centred,
            Scope::Shape { frame } => match Frame::of(&self.current.x, frame) {
                Some(Frame { axes, .. }) => Space::Frame { frame, axes },
                None => Space::Full, // the attempt will be rejected
            },
        }
    }

    /// Indices of the proposals that are usable so far.
    pub(in crate::moves) fn usable(&self) -> Vec<usize> {
        (0..self.n_proposals()).filter(|&k| self.proposals.evaluations[k].is_inside()).collect()
    }

    /// Interpolation path from the current configuration, made whole, to proposal k: in internal coordinates if the
    /// model has them, with a rotation if the density describes the orientation, else straight. No path moves the frame
    /// or the centroid.
    ///
    /// Errors: the status that says why there is no path.
    pub(in crate::moves) fn way_to(&self, k: usize) -> std::result::Result<Between<'_>, Status> {
        let (to, scope) = (self.proposal(k).0, self.density.scope());
        match (&self.internal, scope) {
            (Some(internal), Scope::Shape { .. }) => Between::internal(internal, &self.current.x, to),
            (_, Scope::Centred | Scope::Noisy { .. }) => Between::turning(&self.placed(&self.current.x), to),
            _ => Ok(Between::straight(&self.current.x, to)),
        }
    }

    /// Makes proposal k unusable, with this status.
    pub(in crate::moves) fn refuse(&mut self, k: usize, status: Status) {
        self.proposals.evaluations[k] = Evaluation::outside(status);
    }

    /// Replaces proposal k by another configuration, given as the density describes it.
    pub(in crate::moves) fn set_end(&mut self, k: usize, x: &[f64]) {
        let (d, placed) = (self.dimension(), self.placed(x));
        self.proposals.x[k * d..(k + 1) * d].copy_from_slice(&placed);
    }

    /// Sets the log-weight of proposal k, whatever the density of its configuration.
    pub(in crate::moves) fn set_log_weight(&mut self, k: usize, log_weight: f64) {
        if self.proposals.evaluations[k].is_inside() && self.proposals.u_total[k].is_finite() {
            self.proposals.evaluations[k] = Evaluation::inside(-self.proposals.u_total[k] - log_weight);
        }
    }

    pub(in crate::moves) fn set_log_weight_current(&mut self, log_weight: f64) {
        self.current.evaluation = Evaluation::inside(-self.current.u - log_weight);
    }
}
