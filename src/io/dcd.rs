//! DCD trajectories (CHARMM, NAMD, OpenMM): Fortran records of f32 coordinates in ångström. Reads both byte orders, unit-cell
//! records and fixed-size frames; writes little-endian files without a cell.

use super::trajectory::Frames;
use crate::error::{Error, Result};
use crate::units::NM_PER_ANGSTROM;
use std::path::Path;

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
}

pub fn read(path: &Path) -> Result<Frames> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    parse(&bytes).map_err(|reason| Error::file(path, reason))
}

fn parse(bytes: &[u8]) -> std::result::Result<Frames, String> {
    let mut records = Records { bytes, at: 0, big_endian: false };
    if records.word(0) != Some(84) {
        records.big_endian = true;
    }
    let header = records.next().filter(|h| h.len() == 84 && &h[..4] == b"CORD").ok_or("not a DCD file")?;
    let int = |k: usize| records.word(4 + k * 4).unwrap_or(0); // the header starts behind its length
    let (has_cell, fixed) = (int(11) != 0, int(9));
    debug_assert_eq!(header.len(), 84);
    if fixed != 0 {
        return Err("DCD files with fixed atoms are not read; write all atoms".into());
    }
    records.next().ok_or("the title record is cut short")?;
    let atoms = records.next().filter(|r| r.len() == 4).ok_or("the atom-count record is cut short")?;
    let n_atoms = if records.big_endian {
        u32::from_be_bytes([atoms[0], atoms[1], atoms[2], atoms[3]])
    } else {
        u32::from_le_bytes([atoms[0], atoms[1], atoms[2], atoms[3]])
    } as usize;
    let mut x = Vec::new();
    let mut frame = 0;
    while records.at < bytes.len() {
        frame += 1;
        let cut = || format!("frame {frame} is cut short or malformed");
        if has_cell {
            records.next().ok_or_else(cut)?;
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
    Ok(Frames { dimension: 3 * n_atoms, x })
}

/// Of frames of atoms, three coordinates each.
pub fn to_bytes(frames: &Frames) -> Vec<u8> {
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
    set(0, frames.n() as u32);
    set(1, 1); // first step
    set(2, 1); // steps between frames
    set(9, 1.0f32.to_bits()); // time step, arbitrary
    set(19, 24); // CHARMM version
    record(&header);
    let mut title = 1u32.to_le_bytes().to_vec();
    title.extend_from_slice(format!("{:<80}", "WRITTEN BY MODEJUMP").as_bytes());
    record(&title);
    record(&((frames.dimension / 3) as u32).to_le_bytes());
    for x in frames.x.chunks_exact(frames.dimension) {
        for axis in 0..3 {
            let values: Vec<u8> =
                x.iter().skip(axis).step_by(3).flat_map(|v| ((v / NM_PER_ANGSTROM) as f32).to_le_bytes()).collect();
            record(&values);
        }
    }
    bytes
}
