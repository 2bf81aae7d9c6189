//! Bonds of one length in all frames, as a simulation that constrains them writes them. A generator keeps those that --system constrains; the
//! others it would vary, and a simulation with such constraints refuse it.

use super::{Kind, Train};
use modejump::coordinates::constraints::joins;
use modejump::coordinates::vector::distance;
use modejump::coordinates::Topology;
use modejump::Result;

/// Standard deviation below which a bond counts as rigid, nm. Rounded to 0.001 nm, as in xtc files, a rigid bond has 0.0004; the stiffest
/// bonds of molecules have 0.002 at 300 K.
const RIGID: f64 = 7e-4;
/// Fewer frames say nothing of a spread.
const FEWEST: usize = 20;

impl Train {
    /// Tells of rigid bonds in the frames of --frames that the generator, whose design is to be made, would vary.
    pub(super) fn tell_rigid_bonds(&self, topology: &Topology, frames: &[f64]) -> Result<()> {
        let designs = self.model == Kind::Coupling && self.start.is_none() && self.map_from.is_none();
        if !designs || self.frames.is_empty() {
            return Ok(());
        }
        let mut bonds = rigid_bonds(topology, frames);
        if bonds.is_empty() {
            return Ok(());
        }
        let kept = self.constraints()?;
        bonds.retain(|(pair, _)| !kept.iter().any(|bond| joins(bond, *pair)));
        if let Some(([i, j], length)) = bonds.first() {
            let [i, j] = [i, j].map(|&i| topology.label(i));
            let others = match bonds.len() {
                1 => String::new(),
                n => format!(", and {} more bonds at theirs", n - 1),
            };
            eprintln!(
                "note: the frames keep the bond {i} - {j} at {length:.4} nm{others}: give a --system that constrains what their simulation did, \
                 or simulations with such constraints will refuse the model, which varies the bonds"
            );
        }
        Ok(())
    }
}

/// Bonds that hardly vary over the frames `x[n][atoms][3]`, and their mean lengths, nm.
fn rigid_bonds(topology: &Topology, x: &[f64]) -> Vec<([usize; 2], f64)> {
    let dimension = 3 * topology.n_atoms();
    let n = x.len() / dimension;
    if n < FEWEST {
        return Vec::new();
    }
    let mean_if_rigid = |&[i, j]: &[usize; 2]| {
        let lengths = || x.chunks_exact(dimension).map(|x| distance(x, i, j));
        let mean = lengths().sum::<f64>() / n as f64;
        let variance = lengths().map(|length| (length - mean).powi(2)).sum::<f64>() / n as f64;
        (variance.sqrt() < RIGID).then_some(([i, j], mean))
    };
    topology.bonds.iter().filter_map(mean_if_rigid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use modejump::rng::{Stream, StreamId};

    /// Three atoms in a row, of bonds of 0.1 nm that one after the other has no, and a thermal spread.
    #[test]
    fn rigid_bonds_are_known_from_rounded_coordinates_and_from_stiff_bonds() {
        let mut topology = Topology { names: ["A", "B", "C"].map(String::from).to_vec(), ..Topology::default() };
        topology.set_bonds([[0, 1], [1, 2]]);
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let mut frame = || {
            let place: [f64; 3] = std::array::from_fn(|_| stream.uniform());
            let length = 0.1 + 0.002 * stream.normal();
            [[0.06, 0.08, 0.0], [0.0; 3], [0.0, length, 0.0]]
                .concat()
                .iter()
                .zip(place.iter().cycle())
                .map(|(x, at)| x + at)
                .collect()
        };
        let frames: Vec<Vec<f64>> = (0..200).map(|_| frame()).collect();
        let exact = frames.concat();
        let rounded: Vec<f64> = exact.iter().map(|x| (1e3 * x).round() * 1e-3).collect();
        for x in [&exact, &rounded] {
            let bonds = rigid_bonds(&topology, x);
            assert!(bonds.len() == 1 && bonds[0].0 == [0, 1] && (bonds[0].1 - 0.1).abs() < 2e-4, "{bonds:?}");
        }
        assert!(rigid_bonds(&topology, &exact[..9 * (FEWEST - 1)]).is_empty());
    }
}
