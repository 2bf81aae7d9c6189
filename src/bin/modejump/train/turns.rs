//! Bonds about which the molecule does not turn in the training frames: a generator will not turn there either.

use super::Train;
use modejump::coordinates::vector::{atom, torsion};
use modejump::coordinates::Topology;
use std::f64::consts::FRAC_PI_2;

/// Number of bonds that are named.
const NAMED: usize = 8;

impl Train {
    /// Names the bonds about which no frame is turned by more than 90° from the mean, such as amide bonds that are trans
    /// in all frames.
    pub(super) fn tell_turns(&self, topology: &Topology, frames: &[f64]) {
        let dimension = 3 * topology.n_atoms();
        let stays = |&[i, j, k, l]: &[usize; 4]| {
            let angles =
                frames.chunks_exact(dimension).map(|x| torsion(atom(x, i), atom(x, j), atom(x, k), atom(x, l)));
            let (sin, cos) = angles.clone().fold((0.0, 0.0), |(sin, cos), a| (sin + a.sin(), cos + a.cos()));
            let mean = f64::atan2(sin, cos);
            angles.into_iter().all(|a| (a - mean).cos() >= FRAC_PI_2.cos())
        };
        let staying = topology.rotatable().into_iter().filter(stays);
        let bonds: Vec<String> =
            staying.map(|[_, j, k, _]| format!("{} - {}", topology.label(j), topology.label(k))).collect();
        if bonds.is_empty() {
            return;
        }
        let others = match bonds.len().saturating_sub(NAMED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let remedy = match self.frames.is_empty() {
            true => "raise `hot_temperature` of `explore`",
            false => "add frames in which they are turned",
        };
        eprintln!(
            "note: no frame is turned by more than 90° about these bonds: {}{others}; if it should be, {remedy}",
            bonds[..bonds.len().min(NAMED)].join(", ")
        );
    }
}
