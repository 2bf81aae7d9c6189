//! Target of a jump: energies of proposals, with everything else an acceptance needs, by one rerun.

use super::gmx::{Evaluation, Gmx};
use super::velocities::ModelAtoms;
use crate::error::{Error, Result};
use crate::io::gromacs::trr::Frame;
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::path::Path;

/// A proposal with everything its acceptance needs.
pub(super) struct Candidate {
    /// Coordinates of the model's atoms, nm, as the move proposed them.
    pub x: Vec<f64>,
    /// Their new on-step velocities, nm/ps.
    pub drawn: Vec<f64>,
    /// Forces on all atoms of the system, kJ/(mol nm).
    pub forces: Vec<f64>,
    /// Forces on the model's atoms for the half step back; None if GROMACS refused that configuration.
    pub kick: Option<Vec<f64>>,
}

pub(super) struct RerunTarget<'a> {
    pub gmx: &'a Gmx,
    pub folder: &'a Path,
    pub tpr: &'a Path,
    /// The current state of the whole system, at a step for which forces are written.
    pub frame: Frame,
    /// Index in the system of each atom of the model.
    pub atoms: &'a [usize],
    pub model: &'a mut ModelAtoms,
    pub kt: f64,
    /// h/4, ps: how far back along the new velocities the forces for the half step back are evaluated.
    pub displacement: f64,
    /// Potential energy of the current configuration as reported by the dynamics, kJ/mol.
    pub potential: f64,
    /// Momentum of the model's atoms, dalton nm/ps.
    pub momentum: [f64; 3],
    pub stream: Stream,
    /// Evaluation of the current configuration, after the rerun.
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

/// Copies the model's atoms into arrays of the whole system.
pub(super) fn place(all: &mut [f64], atoms: &[usize], of_model: &[f64]) {
    for (&i, r) in atoms.iter().zip(of_model.chunks_exact(3)) {
        all[3 * i..3 * i + 3].copy_from_slice(r);
    }
}

pub(super) fn select(all: &[f64], atoms: &[usize]) -> Vec<f64> {
    atoms.iter().flat_map(|&i| all[3 * i..3 * i + 3].iter().copied()).collect()
}

/// Whether an atom is farther from the first one than any energy could allow, or not finite. GROMACS subtracts the box
/// from a coordinate until the atom is inside, which does not end for a very large number.
fn is_torn(x: &[f64]) -> bool {
    const FARTHEST: f64 = 1000.0; // nm
    let is_near = |(k, value): (usize, &f64)| (value - x[k % 3]).abs() < FARTHEST;
    // NaN is not near either
    !x.iter().enumerate().all(is_near)
}

/// Whether two atoms coincide in GROMACS's precision. Three bonds apart they make it read a table at NaN.
fn has_coincidence(x: &[f64]) -> bool {
    let mut places: Vec<[f32; 3]> = x.chunks_exact(3).map(|r| [r[0] as f32, r[1] as f32, r[2] as f32]).collect();
    places.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    places.windows(2).any(|pair| pair[0] == pair[1])
}

impl Target for RerunTarget<'_> {
    fn dimension(&self) -> usize {
        3 * self.atoms.len()
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        u.fill(f64::INFINITY);
        let rows = x.chunks_exact(3 * self.atoms.len()).enumerate();
        let rows: Vec<(usize, &[f64])> = rows.filter(|(_, x)| !is_torn(x) && !has_coincidence(x)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        // one draw serves all proposals, of which at most one is accepted
        let drawn: Vec<Vec<f64>> =
            rows.iter().map(|(_, x)| self.model.draw(self.kt, x, self.momentum, &mut self.stream.clone())).collect();
        let mut frames = vec![self.frame.clone()];
        frames.extend(rows.iter().map(|(_, x)| self.placed(x)));
        frames.extend(rows.iter().zip(&drawn).map(|((_, x), v)| {
            let displaced: Vec<f64> = x.iter().zip(v).map(|(x, v)| x - self.displacement * v).collect();
            self.placed(&displaced)
        }));
        let mut evaluations = self.gmx.rerun(self.folder, self.tpr, &frames)?.into_iter();
        let first = evaluations.next().flatten();
        let current = first.ok_or_else(|| {
            Error::Engine("GROMACS found no finite energy for the current configuration of the run".into())
        })?;
        let evaluations: Vec<Option<Evaluation>> = evaluations.collect();
        for (k, (&(row, x), drawn)) in rows.iter().zip(drawn).enumerate() {
            let Some(at) = &evaluations[k] else { continue };
            // both ends of a jump come from one calculation, since the dynamics rounds differently and may sum in
            // another order
            u[row] = (self.potential + (at.energy - current.energy)) / self.kt;
            let kick = evaluations[rows.len() + k].as_ref().map(|e| select(&e.forces, self.atoms));
            self.candidates.push(Candidate { x: x.to_vec(), drawn, forces: at.forces.clone(), kick });
        }
        self.current = Some(current);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported("reruns do not provide gradients".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gromacs_cannot_take_is_infinite_and_not_asked() {
        let mut target = RerunTarget {
            gmx: &Gmx::new("no-such-gmx", None).unwrap(),
            folder: Path::new("no-such-folder"),
            tpr: Path::new("topol.tpr"),
            frame: Frame { x: vec![0.0; 9], ..Default::default() },
            atoms: &[0, 1],
            model: &mut ModelAtoms { masses: vec![1.0; 2], constraints: None },
            kt: 2.5,
            displacement: 0.0,
            potential: 0.0,
            momentum: [0.0; 3],
            stream: RerunTarget::velocities_of(1, 0, 0),
            current: None,
            candidates: Vec::new(),
        };
        let far = [0.0, 0.0, 0.0, 1e17, 0.0, 0.0];
        let nowhere = [0.0, 0.0, 0.0, 0.1, f64::NAN, 0.0];
        let coincident = [0.1, 0.2, 0.3, 0.1, 0.2, 0.3 + 1e-12];
        let mut u = [0.0; 3];
        target.reduced_potential(&[far, nowhere, coincident].concat(), &mut u).unwrap();
        assert_eq!(u, [f64::INFINITY; 3]);
        // a configuration that can be evaluated is evaluated
        let asked = target.reduced_potential(&[far, [0.0, 0.0, 0.0, 0.1, 0.0, 0.0]].concat(), &mut u[..2]);
        assert!(asked.unwrap_err().to_string().contains("no-such-folder"));
    }
}
