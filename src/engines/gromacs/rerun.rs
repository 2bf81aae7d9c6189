//! The target of a jump: energies of proposals, and of what else an acceptance needs, by one rerun.

use super::gmx::{Evaluation, Gmx};
use super::velocities::ModelAtoms;
use crate::error::{Error, Result};
use crate::io::gromacs::trr::Frame;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::path::Path;

/// A proposal with all that its acceptance needs.
pub(super) struct Candidate {
    /// Coordinates of the model's atoms, nm, as the move proposed them.
    pub x: Vec<f64>,
    /// Their new velocities on the step, nm/ps.
    pub drawn: Vec<f64>,
    /// Forces on all atoms of the system.
    pub forces: Vec<f64>,
    /// Forces on the model's atoms for the half step back; none if GROMACS refused that configuration.
    pub kick: Option<Vec<f64>>,
}

pub(super) struct RerunTarget<'a> {
    pub gmx: &'a Gmx,
    pub folder: &'a Path,
    pub tpr: &'a Path,
    /// The whole system as it is, at a step for which forces are written.
    pub frame: Frame,
    /// Index in the system of each atom of the model.
    pub atoms: &'a [usize],
    pub model: &'a mut ModelAtoms,
    pub kt: f64,
    /// h/4, ps: how far back along the new velocities the forces of the half step back are taken.
    pub displacement: f64,
    /// Momentum of the model's atoms, dalton nm/ps.
    pub momentum: [f64; 3],
    pub stream: Stream,
    /// At the current configuration, after the rerun.
    pub current: Option<Evaluation>,
    pub candidates: Vec<Candidate>,
}

impl RerunTarget<'_> {
    pub fn velocities_of(seed: u64, step: u64, replica: u32) -> Stream {
        Stream::new(seed, StreamId::Velocity, step, replica)
    }

    fn placed(&self, x: &[f64]) -> Frame {
        let mut frame = self.frame.clone();
        place(&mut frame.x, self.atoms, x);
        frame
    }
}

/// Puts the model's atoms into arrays of the whole system.
pub(super) fn place(all: &mut [f64], atoms: &[usize], of_model: &[f64]) {
    for (&i, r) in atoms.iter().zip(of_model.chunks_exact(3)) {
        all[3 * i..3 * i + 3].copy_from_slice(r);
    }
}

pub(super) fn select(all: &[f64], atoms: &[usize]) -> Vec<f64> {
    atoms.iter().flat_map(|&i| all[3 * i..3 * i + 3].iter().copied()).collect()
}

impl Target for RerunTarget<'_> {
    fn dimension(&self) -> usize {
        3 * self.atoms.len()
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        let rows = || x.chunks_exact(3 * self.atoms.len());
        // one draw serves all proposals, of which one at most is taken
        let drawn: Vec<Vec<f64>> =
            rows().map(|x| self.model.draw(self.kt, x, self.momentum, &mut self.stream.clone())).collect();
        let mut frames = vec![self.frame.clone()];
        frames.extend(rows().map(|x| self.placed(x)));
        frames.extend(rows().zip(&drawn).map(|(x, v)| {
            let displaced: Vec<f64> = x.iter().zip(v).map(|(x, v)| x - self.displacement * v).collect();
            self.placed(&displaced)
        }));
        let mut evaluations = self.gmx.rerun(self.folder, self.tpr, &frames)?.into_iter();
        let first = evaluations.next().flatten();
        self.current = Some(first.ok_or_else(|| {
            Error::Engine("GROMACS finds no finite energy for the current configuration of the run".into())
        })?);
        let evaluations: Vec<Option<Evaluation>> = evaluations.collect();
        for (k, (x, drawn)) in rows().zip(drawn).enumerate() {
            u[k] = f64::INFINITY;
            let Some(at) = &evaluations[k] else { continue };
            u[k] = at.energy / self.kt;
            let kick = evaluations[u.len() + k].as_ref().map(|e| select(&e.forces, self.atoms));
            self.candidates.push(Candidate { x: x.to_vec(), drawn, forces: at.forces.clone(), kick });
        }
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported("no move here asks a rerun for gradients".into()))
    }
}
