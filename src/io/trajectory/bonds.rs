//! Frames with impossible bond lengths: in another unit, with another order of atoms, or with molecules that are not
//! whole.

use super::Frames;
use crate::coordinates::topology::{radius, STRETCHED};
use crate::coordinates::vector::distance;
use crate::coordinates::whole::WholeMolecule;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use std::path::Path;

/// Atoms farther apart than this (nm) are not bonded.
const LONGEST_BOND: f64 = 0.3;
/// Upper limit of the median bond length (nm) of molecules, or of beads of several atoms.
const LONGEST_MEDIAN: f64 = 0.7;
/// Number of frames from which median lengths of a bond are taken.
const FRAMES_OF_MEDIAN: usize = 200;
/// Lower limit of the median bond length (nm); hydrogen molecules have 0.074.
const SHORTEST_MEDIAN: f64 = 0.05;

/// Frames in which bonded atoms are too far apart for a bond: in ångström, in another order, or of a molecule that is
/// not whole.
pub struct Torn {
    pub frames: usize,
    of: usize,
    /// The first few of the impossible bonds, by their atoms.
    bonds: String,
    whose: String,
    /// Whether these are most of the frames.
    pub are_most: bool,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Torn { frames, of, bonds, whose, .. } = self;
        write!(
            f,
            "in {frames} of {of} frames, atoms that are bonded in the {whose} are more than {LONGEST_BOND} nm apart: {bonds}"
        )
    }
}

fn is_torn(x: &[f64], [i, j]: [usize; 2]) -> bool {
    distance(x, i, j) > LONGEST_BOND
}

/// Uses the frames' boxes to reassemble molecules cut by the periodic boundary: changes frames with an impossible bond
/// between these atoms if that makes all bonds possible. Returns how many it changed.
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

/// Finds frames in which a bond of these atoms is impossibly long; `whose` names the source of `atoms`.
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
        bonds += &format!(", and {} more", torn.len() - NAMED);
    }
    let frames_torn = rows().filter(|x| torn.iter().any(|(bond, _)| is_torn(x, *bond))).count();
    Some(Torn {
        frames: frames_torn,
        of: frames.n(),
        bonds,
        whose: whose.into(),
        are_most: 2 * frames_torn > frames.n(),
    })
}

/// Requires bonds of about the length that their atoms' radii suggest, in half of the frames. Errors: a bond between atoms
/// that are hardly bonded; `whose` names the source of `atoms`.
pub fn require_bonded(path: &Path, frames: &Frames, atoms: &Topology, whose: &str) -> Result<()> {
    let stride = frames.n().div_ceil(FRAMES_OF_MEDIAN).max(1);
    for &[i, j] in &atoms.bonds {
        // atoms of unknown elements may be beads
        let (Some(a), Some(b)) = (radius(&atoms.elements[i]), radius(&atoms.elements[j])) else { continue };
        let mut lengths: Vec<f64> =
            frames.x.chunks_exact(frames.dimension).step_by(stride).map(|x| distance(x, i, j)).collect();
        lengths.sort_by(f64::total_cmp);
        match lengths.get(lengths.len() / 2) {
            Some(middle) if *middle > STRETCHED * (a + b) => {
                return Err(Error::file(
                    path,
                    format!(
                        "{} and {}, which are bonded in the {whose}, are {middle:.3} nm apart in half of the frames or farther, {:.1} times \
                         as far as usual: use frames with the atoms in the order of the {whose}",
                        atoms.label(i),
                        atoms.label(j),
                        middle / (a + b)
                    ),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Requires frames in nm. Errors: at least one frame in twenty has bond lengths (of `atoms`) typical of ångström, or
/// ten times too short: a file whose format uses ångström but whose numbers are in nm.
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
                    "in {} of {} frames (the first is frame {}), half of the bonds are {what} than {:.3} nm: {remedy}",
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
        "coordinates must be in nm, not Angstrom, and molecules must be whole",
    )?;
    refuse(
        &|median| median < SHORTEST_MEDIAN,
        "shorter",
        "coordinates must be in nm, or in Angstrom in formats that use it (DCD, PDB)",
    )
}
