//! Frames whose bonds are none: of another unit, another order of atoms, or molecules that are not whole.

use super::Frames;
use crate::coordinates::vector::distance;
use crate::coordinates::whole::WholeMolecule;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use std::path::Path;

/// A bond longer than this (nm) is none.
const LONGEST_BOND: f64 = 0.3;
/// Half of the bonds of molecules, or of beads of several atoms, are shorter (nm).
const LONGEST_MEDIAN: f64 = 0.7;
/// And are longer (nm): those of hydrogen molecules have 0.074.
const SHORTEST_MEDIAN: f64 = 0.05;

/// Frames in which atoms of a bond are too far apart for one: in Angstrom, in another order, of a molecule that is not
/// whole.
pub struct Torn {
    pub frames: usize,
    of: usize,
    /// Atoms of the first few of the bonds.
    bonds: String,
    whose: String,
    /// Whether most frames have one bond torn.
    pub are_most: bool,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Torn { frames, of, bonds, whose, .. } = self;
        write!(
            f,
            "in {frames} of {of} frames atoms bonded in the {whose} are more than {LONGEST_BOND} nm apart: {bonds}"
        )
    }
}

fn is_torn(x: &[f64], [i, j]: [usize; 2]) -> bool {
    distance(x, i, j) > LONGEST_BOND
}

/// Puts molecules that a periodic box cuts together by the frames' boxes: frames in which a bond of these atoms is none,
/// if that makes all of them bonds. Returns how many.
pub fn make_whole(frames: &mut Frames, atoms: &Topology) -> usize {
    let Ok(molecule) = WholeMolecule::new(atoms.n_atoms(), &atoms.bonds) else { return 0 };
    let has_torn = |x: &[f64]| atoms.bonds.iter().any(|&bond| is_torn(x, bond));
    let mut made = 0;
    for (x, vectors) in frames.x.chunks_exact_mut(frames.dimension).zip(&frames.boxes) {
        let mut whole = x.to_vec();
        if has_torn(x) && molecule.apply(vectors, &mut whole).is_ok() && !has_torn(&whole) {
            x.copy_from_slice(&whole);
            made += 1;
        }
    }
    made
}

/// The frames, if any, in which a bond of these atoms is none; `whose` says of what `atoms` are the list.
pub fn torn_frames(frames: &Frames, atoms: &Topology, whose: &str) -> Option<Torn> {
    const NAMED: usize = 3;
    let rows = || frames.x.chunks_exact(frames.dimension);
    let of_bond = |&bond: &[usize; 2]| (bond, rows().filter(|x| is_torn(x, bond)).count());
    let torn: Vec<([usize; 2], usize)> = atoms.bonds.iter().map(of_bond).filter(|(_, count)| *count > 0).collect();
    if torn.is_empty() {
        return None;
    }
    let name = |(bond, _): &([usize; 2], usize)| bond.map(|i| atoms.label(i)).join(" and ");
    let mut bonds = torn.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if torn.len() > NAMED {
        bonds += &format!(", and {} bonds more", torn.len() - NAMED);
    }
    Some(Torn {
        frames: rows().filter(|x| torn.iter().any(|(bond, _)| is_torn(x, *bond))).count(),
        of: frames.n(),
        bonds,
        whose: whose.into(),
        are_most: torn.iter().any(|(_, count)| 2 * count > frames.n()),
    })
}

/// Errors: frames, one in twenty of them or more, whose bonds (`atoms`) are as long as those of molecules are in
/// Angstrom, or ten times too short: of a file whose format has Angstrom, and numbers in nm.
pub fn require_nanometres(path: &Path, frames: &Frames, atoms: &Topology) -> Result<()> {
    let median = |x: &[f64]| {
        let mut lengths: Vec<f64> = atoms.bonds.iter().map(|&[i, j]| distance(x, i, j)).collect();
        let middle = lengths.len() / 2;
        *lengths.select_nth_unstable_by(middle, f64::total_cmp).1
    };
    if atoms.bonds.is_empty() {
        return Ok(());
    }
    let medians: Vec<f64> = frames.x.chunks_exact(frames.dimension).map(median).collect();
    let refuse = |is_wrong: &dyn Fn(f64) -> bool, what: &str, remedy: &str| {
        let wrong: Vec<usize> = (0..medians.len()).filter(|&row| is_wrong(medians[row])).collect();
        match wrong.first() {
            Some(&row) if 20 * wrong.len() >= frames.n() => Err(Error::file(
                path,
                format!(
                    "in {} of {} frames, the first of them frame {}, half of the bonds are {what} than {:.3} nm: {remedy}",
                    wrong.len(),
                    frames.n(),
                    row + 1,
                    medians[row]
                ),
            )),
            _ => Ok(()),
        }
    };
    refuse(
        &|median| median > LONGEST_MEDIAN,
        "longer",
        "coordinates have to be in nm, not Angstrom, and of whole molecules",
    )?;
    refuse(
        &|median| median < SHORTEST_MEDIAN,
        "shorter",
        "coordinates have to be in nm, but in Angstrom in the formats that are (DCD, PDB)",
    )
}
