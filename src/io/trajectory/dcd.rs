//! DCD trajectories (CHARMM, NAMD, OpenMM, X-PLOR): Fortran records of f32 coordinates in ångström. Reads both byte
//! orders; writes little-endian files.

use super::{Clock, Frames};
use crate::coordinates::cell::Cell;
use crate::coordinates::whole::BoxVectors;
use crate::error::{Error, Result};
use crate::units::NM_PER_ANGSTROM;
use std::path::Path;

/// Bytes of a unit-cell record, six doubles.
const CELL: usize = 48;
/// CHARMM's unit of time, ps.
const AKMA: f64 = 0.048_888_21;

/// Walks through Fortran records: length, data, length.
struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Records<'a> {
    fn word(&self, at: usize) -> Option<u32> {
        let word: [u8; 4] = self.bytes.get(at..at + 4)?.try_into().ok()?;
        Some(if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) })
    }

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = self.word(self.at)? as usize;
        let end = self.at.checked_add(4)?.checked_add(length)?;
        let data = self.bytes.get(self.at + 4..end)?;
        if self.word(end)? as usize != length {
            return None;
        }
        self.at = end + 4;
        Some(data)
    }

    fn floats(&self, record: &[u8]) -> Vec<f64> {
        let value = |b: &[u8]| {
            let word = [b[0], b[1], b[2], b[3]];
            f64::from(if self.big_endian { f32::from_be_bytes(word) } else { f32::from_le_bytes(word) })
        };
        record.chunks_exact(4).map(value).collect()
    }

    fn doubles(&self, record: &[u8]) -> Vec<f64> {
        let value = |b: &[u8]| {
            let word = std::array::from_fn(|i| b[i]);
            if self.big_endian {
                f64::from_be_bytes(word)
            } else {
                f64::from_le_bytes(word)
            }
        };
        record.chunks_exact(8).map(value).collect()
    }
}

/// Reads all frames, in nm. Errors: a file that is not DCD, is cut short or malformed, or has fixed atoms or a fourth
/// dimension.
pub fn read(path: &Path) -> Result<Frames> {
    let bytes = crate::io::read(path)?;
    parse(&bytes).map_err(|reason| Error::file(path, reason))
}

fn parse(bytes: &[u8]) -> std::result::Result<Frames, String> {
    let mut records = Records { bytes, at: 0, big_endian: false };
    if records.word(0) != Some(84) {
        records.big_endian = true;
    }
    let header = records.next().filter(|h| h.len() == 84 && &h[..4] == b"CORD").ok_or("not a DCD file")?;
    // ICNTRL(k), counted from 1: the header follows its length, and these follow its name
    let int = |k: usize| records.word(4 + k * 4).unwrap_or(0);
    // X-PLOR has no version, cell or fourth dimension, and an eight-byte time step that overlaps the cell's flag
    let is_charmm = int(20) != 0;
    let (has_cell, has_fourth, fixed) = (is_charmm && int(11) != 0, is_charmm && int(12) != 0, int(9));
    debug_assert_eq!(header.len(), 84);
    if fixed != 0 {
        return Err("DCD files with fixed atoms are not supported; write all atoms".into());
    }
    if has_fourth {
        return Err("DCD files with a fourth dimension are not supported; write only x, y and z".into());
    }
    records.next().ok_or("the title record is truncated or corrupt")?;
    let atoms = records.next().filter(|r| r.len() == 4).ok_or("the atom-count record is truncated or corrupt")?;
    let n_atoms = if records.big_endian {
        u32::from_be_bytes([atoms[0], atoms[1], atoms[2], atoms[3]])
    } else {
        u32::from_le_bytes([atoms[0], atoms[1], atoms[2], atoms[3]])
    } as usize;
    let (mut x, mut boxes) = (Vec::new(), Vec::new());
    let mut frame = 0;
    while records.at < bytes.len() {
        frame += 1;
        let cut = || format!("frame {frame} is truncated or corrupt");
        if has_cell {
            let record = records.next().filter(|r| r.len() == CELL).ok_or_else(cut)?;
            boxes.push(vectors(&records.doubles(record)).unwrap_or_default());
        }
        let mut axes = Vec::with_capacity(3);
        for _ in 0..3 {
            let record = records.next().filter(|r| r.len() == 4 * n_atoms).ok_or_else(cut)?;
            axes.push(records.floats(record));
        }
        for atom in 0..n_atoms {
            x.extend(axes.iter().map(|axis| axis[atom] * NM_PER_ANGSTROM));
        }
    }
    Ok(Frames::new(3 * n_atoms, x).in_boxes(boxes))
}

/// Box of a unit cell. Angles are in degrees, or cosines, which are all within 1. None if it has no volume.
fn vectors(cell: &[f64]) -> Option<BoxVectors> {
    let [a, gamma, b, beta, alpha, c] = *cell else { return None };
    let angles = [alpha, beta, gamma];
    let are_cosines = angles.iter().all(|angle| angle.abs() <= 1.0);
    let cosines = if are_cosines { angles } else { angles.map(|angle| angle.to_radians().cos()) };
    Cell { lengths: [a, b, c].map(|length| length * NM_PER_ANGSTROM), cosines }.vectors()
}

/// Unit cell as OpenMM and NAMD write it: lengths in ångström, and cosines in place of the angles.
fn cell(vectors: &BoxVectors) -> [u8; CELL] {
    let Cell { lengths, cosines: [alpha, beta, gamma] } = Cell::new(vectors);
    let [a, b, c] = lengths.map(|length| length / NM_PER_ANGSTROM);
    let numbers = [a, gamma, b, beta, alpha, c].map(f64::to_le_bytes);
    std::array::from_fn(|i| numbers[i / 8][i % 8])
}

/// Serialises frames of atoms with three coordinates each.
pub fn to_bytes(frames: &Frames, clock: Clock) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut record = |data: &[u8]| {
        let length = (data.len() as u32).to_le_bytes();
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(&length);
    };
    let mut header = [0u8; 84];
    header[..4].copy_from_slice(b"CORD");
    let mut set = |k: usize, value: u32| header[4 + 4 * k..8 + 4 * k].copy_from_slice(&value.to_le_bytes());
    let first = clock.step(0);
    set(0, frames.n() as u32);
    set(1, first as u32);
    set(2, (clock.step(1) - first) as u32); // between frames
    set(9, ((clock.timestep / AKMA) as f32).to_bits());
    set(10, u32::from(!frames.boxes.is_empty()));
    set(19, 24); // CHARMM version
    record(&header);
    let mut title = 1u32.to_le_bytes().to_vec();
    title.extend_from_slice(format!("{:<80}", "WRITTEN BY MODEJUMP").as_bytes());
    record(&title);
    record(&((frames.dimension / 3) as u32).to_le_bytes());
    for (i, x) in frames.x.chunks_exact(frames.dimension).enumerate() {
        frames.boxes.get(i).iter().for_each(|vectors| record(&cell(vectors)));
        for axis in 0..3 {
            let values: Vec<u8> =
                x.iter().skip(axis).step_by(3).flat_map(|v| ((v / NM_PER_ANGSTROM) as f32).to_le_bytes()).collect();
            record(&values);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two frames of two atoms, with the given header numbers, and a record before and after the axes of each frame.
    fn file(control: &[(usize, u32)], before: &[u8], after: &[u8]) -> Vec<u8> {
        let mut bytes = to_bytes(&Frames::new(6, Vec::new()), Clock::default());
        control.iter().for_each(|(k, value)| bytes[4 + 4 * k..8 + 4 * k].copy_from_slice(&value.to_le_bytes()));
        let mut record = |data: &[u8]| {
            let length = (data.len() as u32).to_le_bytes();
            bytes.extend([&length, data, &length].concat());
        };
        for frame in 0..2u8 {
            [before].iter().filter(|r| !r.is_empty()).for_each(|r| record(r));
            (0..3u8).for_each(|axis| record(&[f32::from(frame + axis), 7.5].map(f32::to_le_bytes).concat()));
            [after].iter().filter(|r| !r.is_empty()).for_each(|r| record(r));
        }
        bytes
    }

    #[test]
    fn programs_tell_cells_in_their_own_ways() {
        let x: Vec<f64> =
            [0.0, 1.0, 2.0, 7.5, 7.5, 7.5, 1.0, 2.0, 3.0, 7.5, 7.5, 7.5].map(|a| a * NM_PER_ANGSTROM).to_vec();
        let expected = Ok(Frames::new(6, x));
        assert_eq!(parse(&file(&[], &[], &[])), expected);
        assert_eq!(parse(&file(&[(11, 1)], &[0; 48], &[])), expected);
        // X-PLOR's time step is a double in the place of CHARMM's and of the flag of the cell
        let [low, high] =
            [0, 4].map(|at| u32::from_le_bytes(0.04888821f64.to_le_bytes()[at..at + 4].try_into().unwrap()));
        assert!(low != 0 && high != 0);
        assert_eq!(parse(&file(&[(10, low), (11, high), (20, 0)], &[], &[])), expected);
        // an axis in place of a cell
        assert!(parse(&file(&[(11, 1)], &[], &[])).unwrap_err().starts_with("frame 1 is truncated or corrupt"));
        assert!(parse(&file(&[(12, 1)], &[], &[0; 8])).unwrap_err().contains("fourth dimension"));
    }
}
