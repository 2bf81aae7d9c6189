//! Making molecules whole that a periodic box has cut, along their bonds.

use super::vector::{add, atom, cross, dot, norm, scale, set_atom, sub, Vec3};
use crate::error::{Error, Result};

/// Box vectors as rows, nm: any triclinic box of positive volume.
pub type BoxVectors = [[f64; 3]; 3];

/// Order in which atoms are moved next to a bonded atom already in place.
#[derive(Clone, Debug)]
pub struct WholeMolecule {
    /// (placed atom, bonded atom to place), breadth first from atom 0.
    steps: Vec<[usize; 2]>,
    n_atoms: usize,
}

impl WholeMolecule {
    /// Number of atoms.
    pub fn n_atoms(&self) -> usize {
        self.n_atoms
    }

    /// Errors: an atom index out of range, an atom that no chain of bonds reaches (named, counting from one).
    pub fn new(n_atoms: usize, bonds: &[[usize; 2]]) -> Result<WholeMolecule> {
        let mut neighbours = vec![Vec::new(); n_atoms];
        for &[i, j] in bonds {
            if i >= n_atoms || j >= n_atoms {
                return Err(Error::invalid(format!(
                    "bond {}-{} is out of range: there are {n_atoms} atoms",
                    i + 1,
                    j + 1
                )));
            }
            neighbours[i].push(j);
            neighbours[j].push(i);
        }
        let mut placed = vec![false; n_atoms];
        let mut steps: Vec<[usize; 2]> = Vec::with_capacity(n_atoms.saturating_sub(1));
        let mut queue = std::collections::VecDeque::from([0]);
        if n_atoms > 0 {
            placed[0] = true;
        }
        while let Some(i) = queue.pop_front() {
            for &j in neighbours.get(i).map_or(&[][..], |list| list) {
                if !placed[j] {
                    placed[j] = true;
                    steps.push([i, j]);
                    queue.push_back(j);
                }
            }
        }
        if let Some(lost) = placed.iter().position(|p| !p) {
            return Err(Error::invalid(format!(
                "atom {} is not bonded to the molecule of atom 1, so it cannot be made whole in a periodic box",
                lost + 1
            )));
        }
        Ok(WholeMolecule { steps, n_atoms })
    }

    /// Moves every atom of `x[atoms][3]` (nm) by lattice vectors to the image nearest its bonded neighbour; atom 0
    /// stays.
    ///
    /// The difference is rounded in fractional coordinates. That finds the true bond vector whenever the bond is
    /// shorter than half of every distance between opposite box faces, since a fractional coordinate is at most
    /// |bond|/distance.
    ///
    /// Errors: a box without volume, a bond that long, another number of coordinates.
    pub fn apply(&self, box_vectors: &BoxVectors, x: &mut [f64]) -> Result<()> {
        if x.len() != 3 * self.n_atoms {
            return Err(Error::invalid(format!(
                "found {} coordinates, expected three for each of {} atoms",
                x.len(),
                self.n_atoms
            )));
        }
        let [a, b, c] = *box_vectors;
        let volume = dot(a, cross(b, c));
        let reciprocal = [cross(b, c), cross(c, a), cross(a, b)].map(|v| scale(1.0 / volume, v));
        if volume == 0.0 || reciprocal.iter().flatten().any(|v| !v.is_finite()) {
            return Err(Error::invalid(format!("box vectors {box_vectors:?} nm span no volume")));
        }
        for &[i, j] in &self.steps {
            let mut bond = sub(atom(x, j), atom(x, i));
            let images = reciprocal.map(|r| dot(r, bond).round());
            for (vector, image) in box_vectors.iter().zip(images) {
                bond = sub(bond, scale(image, *vector));
            }
            let length = norm(bond);
            if reciprocal.iter().any(|r| length * norm(*r) >= 0.5) {
                return Err(Error::invalid(format!(
                    "the bond between atoms {} and {} is {length:.3} nm, half the box or more, so its periodic image is ambiguous",
                    i + 1,
                    j + 1
                )));
            }
            // Atoms already in the right image keep their coordinates to the last bit.
            if images != [0.0; 3] {
                set_atom(x, j, add(atom(x, i), bond));
            }
        }
        Ok(())
    }
}

/// Box vectors from nine numbers, row by row.
pub fn box_from_slice(numbers: &[f64; 9]) -> BoxVectors {
    let row = |i: usize| -> Vec3 { [numbers[3 * i], numbers[3 * i + 1], numbers[3 * i + 2]] };
    [row(0), row(1), row(2)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    const TRICLINIC: BoxVectors = [[2.0, 0.0, 0.0], [0.9, 1.8, 0.0], [-0.8, 0.7, 1.7]];

    #[test]
    fn a_molecule_cut_at_random_comes_back_whole() {
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let bonds = [[0, 1], [1, 2], [2, 3], [1, 4]];
        let molecule = WholeMolecule::new(5, &bonds).unwrap();
        for _ in 0..200 {
            let mut whole = vec![0.0; 15];
            whole[..3].iter_mut().for_each(|x| *x = stream.uniform());
            for [i, j] in bonds {
                let step = [stream.normal(), stream.normal(), stream.normal()];
                let placed = add(atom(&whole, i), scale(0.15 / norm(step), step));
                set_atom(&mut whole, j, placed);
            }
            let mut cut = whole.clone();
            for j in 1..5 {
                for vector in TRICLINIC {
                    let images = stream.below(5) as f64 - 2.0;
                    let moved = add(atom(&cut, j), scale(images, vector));
                    set_atom(&mut cut, j, moved);
                }
            }
            molecule.apply(&TRICLINIC, &mut cut).unwrap();
            assert!(cut.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-12));
            let before = whole.clone();
            molecule.apply(&TRICLINIC, &mut whole).unwrap();
            assert_eq!(before, whole, "a whole molecule must not move at all");
        }
    }

    #[test]
    fn impossible_tasks_are_refused_by_name() {
        let lost = WholeMolecule::new(3, &[[0, 1]]).unwrap_err().to_string();
        assert!(lost.contains("atom 3"), "{lost}");
        assert!(WholeMolecule::new(2, &[[0, 5]]).is_err());
        let molecule = WholeMolecule::new(2, &[[0, 1]]).unwrap();
        assert!(molecule.apply(&[[0.0; 3]; 3], &mut [0.0; 6]).is_err());
        let far = molecule.apply(&TRICLINIC, &mut [0.0, 0.0, 0.0, 0.95, 0.0, 0.0]).unwrap_err().to_string();
        assert!(far.contains("atoms 1 and 2"), "{far}");
        assert!(molecule.apply(&TRICLINIC, &mut [0.0; 3]).is_err());
    }
}
