//! `.cpt` files: the state of a run. Positions and velocities are found and replaced in place; everything else, such as
//! the step and the states of thermostat and random numbers, is left unchanged.
//!
//! GROMACS writes each array of the state as its number of values, their type (1 float, 2 double) and the values, with
//! positions and velocities adjacent. The reader searches for such a pair of arrays with three numbers per atom.
//! Checkpoints have no checksum, and GROMACS reads the edited file like its own (2022 and 2026 write the state in the
//! same way).

use super::xdr::{decode, encode};
use crate::coordinates::whole::BoxVectors;

/// Type codes in the file and bytes of float and double.
const TYPES: [(i32, usize); 2] = [(1, 4), (2, 8)];

/// A checkpoint in memory.
pub struct Checkpoint {
    bytes: Vec<u8>,
    atoms: usize,
    double: bool,
    x: usize,
    v: usize,
}

impl Checkpoint {
    /// Finds positions and velocities in a file's bytes. Errors: those of this many atoms are missing or ambiguous.
    pub fn new(bytes: Vec<u8>, atoms: usize) -> Result<Checkpoint, String> {
        let mut found = Vec::new();
        for (kind, width) in TYPES {
            let head = [(3 * atoms as i32).to_be_bytes(), kind.to_be_bytes()].concat();
            let array = head.len() + 3 * width * atoms;
            for start in 0..(bytes.len() + 1).saturating_sub(2 * array) {
                if bytes[start..].starts_with(&head) && bytes[start + array..].starts_with(&head) {
                    found.push((width == 8, start + head.len(), start + array + head.len()));
                }
            }
        }
        match found[..] {
            // for three atoms the preceding arrays, of the box, have the same length
            [.., (double, x, v)] if found.len() == 1 || atoms == 3 => Ok(Checkpoint { bytes, atoms, double, x, v }),
            _ => Err(format!(
                "expected positions and velocities of {atoms} atoms once, found them {} times: the checkpoint is of another \
                 system, or this version of GROMACS uses another checkpoint format",
                found.len()
            )),
        }
    }

    /// The box, if one is found that agrees with `about` (nm) to five digits.
    pub fn box_vectors(&self, about: &BoxVectors) -> Option<BoxVectors> {
        let (kind, width) = TYPES[usize::from(self.double)];
        let head = [9i32.to_be_bytes(), kind.to_be_bytes()].concat();
        let arrays = self.bytes[..self.x].windows(head.len() + 9 * width).filter(|w| w.starts_with(&head));
        let boxes = arrays.map(|w| decode(&w[head.len()..], self.double));
        let boxes = boxes.map(|b| [[b[0], b[1], b[2]], [b[3], b[4], b[5]], [b[6], b[7], b[8]]]);
        let scale = about.iter().flatten().fold(0.0, |m: f64, v| m.max(v.abs()));
        let agrees =
            |b: &BoxVectors| b.iter().flatten().zip(about.iter().flatten()).all(|(a, b)| (a - b).abs() <= 2e-5 * scale);
        boxes.into_iter().find(agrees)
    }

    fn array(&self, start: usize) -> Vec<f64> {
        let width = if self.double { 8 } else { 4 };
        decode(&self.bytes[start..start + 3 * width * self.atoms], self.double)
    }

    /// Positions `[atoms][3]`, nm.
    pub fn positions(&self) -> Vec<f64> {
        self.array(self.x)
    }

    /// Velocities `[atoms][3]`, nm/ps, as the integrator stores them: half a step behind the positions.
    pub fn velocities(&self) -> Vec<f64> {
        self.array(self.v)
    }

    /// Replaces positions and velocities, rounded to the precision of the file.
    pub fn set(&mut self, positions: &[f64], velocities: &[f64]) {
        for (start, values) in [(self.x, positions), (self.v, velocities)] {
            let encoded = encode(values, self.double);
            assert_eq!(values.len(), 3 * self.atoms, "three numbers an atom");
            self.bytes[start..start + encoded.len()].copy_from_slice(&encoded);
        }
    }

    /// Bytes of the file, with the changes made.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arbitrary data, positions and velocities of two atoms, more data.
    fn example(kind: i32, double: bool) -> Vec<u8> {
        let array = |values: &[f64]| {
            let head = [6i32.to_be_bytes(), kind.to_be_bytes()].concat();
            [head, encode(values, double)].concat()
        };
        let x: Vec<f64> = (0..6).map(|i| 0.25 * f64::from(i)).collect();
        let v: Vec<f64> = (0..6).map(|i| -0.5 * f64::from(i)).collect();
        let cell = [3.0, 0.0, 0.0, 0.5, 2.0, 0.0, 0.0, 0.25, 1.0];
        let cell = [[9i32.to_be_bytes(), kind.to_be_bytes()].concat(), encode(&cell, double)].concat();
        [vec![7; 13], cell, array(&x), array(&v), vec![9; 5]].concat()
    }

    #[test]
    fn positions_and_velocities_are_found_and_nothing_else_changes() {
        for (kind, double) in [(1, false), (2, true)] {
            let bytes = example(kind, double);
            let mut checkpoint = Checkpoint::new(bytes.clone(), 2).unwrap();
            assert_eq!(checkpoint.positions()[5], 1.25);
            assert_eq!(checkpoint.velocities()[1], -0.5);
            let about = [[3.00001, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, 0.25, 1.0]];
            assert_eq!(checkpoint.box_vectors(&about).unwrap()[0], [3.0, 0.0, 0.0]);
            assert!(checkpoint.box_vectors(&[[3.1, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, 0.25, 1.0]]).is_none());
            let (x, v) = (checkpoint.positions(), checkpoint.velocities());
            checkpoint.set(&v, &x);
            assert_eq!((checkpoint.positions(), checkpoint.velocities()), (v.clone(), x.clone()));
            checkpoint.set(&x, &v);
            assert_eq!(checkpoint.bytes(), bytes);
        }
    }

    /// Three atoms, whose arrays are as long as those of the box before them.
    #[test]
    fn three_atoms_have_the_last_arrays() {
        let array = |first: f64| {
            let values: Vec<f64> = (0..9).map(|i| first + f64::from(i)).collect();
            [[9i32.to_be_bytes(), 1i32.to_be_bytes()].concat(), encode(&values, false)].concat()
        };
        let bytes = [vec![7; 13], array(0.0), array(10.0), vec![1; 4], array(20.0), array(30.0), vec![9; 5]].concat();
        let checkpoint = Checkpoint::new(bytes, 3).unwrap();
        assert_eq!([checkpoint.positions()[0], checkpoint.velocities()[0]], [20.0, 30.0]);
    }

    #[test]
    fn what_is_not_there_once_is_refused() {
        let bytes = example(1, false);
        assert!(Checkpoint::new(bytes.clone(), 3).is_err());
        assert!(Checkpoint::new(bytes[..bytes.len() - 6].to_vec(), 2).is_err());
        let twice = [bytes.clone(), bytes].concat();
        assert!(Checkpoint::new(twice, 2).err().unwrap().contains("2 times"));
        assert!(Checkpoint::new(Vec::new(), 2).is_err());
    }
}
