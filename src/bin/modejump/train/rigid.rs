//! Bonds of one length in all frames, as written by a simulation with constraints. A generator keeps those that
//! --system constrains; it would vary the others, and simulations that constrain them would refuse it.

use super::{Kind, Train};
use modejump::coordinates::constraints::{joins, rigid_bonds};
use modejump::coordinates::Topology;
use modejump::Result;

impl Train {
    /// Warns of rigid bonds in the frames of --frames that a new generator would vary.
    pub(super) fn tell_rigid_bonds(&self, topology: &Topology, frames: &[f64]) -> Result<()> {
        let designs = self.model == Kind::Coupling && self.start.is_none() && self.map_from.is_none();
        if !designs || self.frames.is_empty() {
            return Ok(());
        }
        let mut bonds = rigid_bonds(&topology.bonds, frames, 3 * topology.n_atoms());
        if bonds.is_empty() {
            return Ok(());
        }
        let kept = self.constraints()?;
        bonds.retain(|&(i, j, _)| !kept.iter().any(|bond| joins(bond, [i, j])));
        if let Some(&(i, j, length)) = bonds.first() {
            let [i, j] = [i, j].map(|i| topology.label(i));
            let others = match bonds.len() {
                1 => String::new(),
                n => format!(", as do {} more bonds", n - 1),
            };
            eprintln!(
                "note: the bond {i} - {j} keeps a length of {length:.4} nm in the frames{others}: use a --system with the constraints of \
                 their simulation; otherwise the model varies these bonds, and simulations that constrain them will reject it"
            );
        }
        Ok(())
    }
}
