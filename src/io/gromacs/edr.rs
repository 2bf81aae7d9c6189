//! `.edr` files: energies and the other quantities written with them.

use super::xdr::Reader;
use super::{walk, Span};

const NAMES_MAGIC: i32 = -55555;
const FRAME_MAGIC: i32 = -7777777;
/// Number before a frame's magic number.
const FIRST: f64 = -2e10;
/// Bytes per item of a block, by type: int, float, double, 64-bit int, char (stored as an int).
const WIDTHS: [usize; 5] = [4, 4, 8, 8, 4];
const STRING: usize = 5;

/// All frames of a file, in its units: kJ/mol for energies, K for the temperature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Energies {
    pub names: Vec<String>,
    pub steps: Vec<i64>,
    /// `[frames][names]`; NaN in frames without energies.
    pub values: Vec<f64>,
}

impl Energies {
    /// Values of one term in all frames. Errors: no such term; lists those there are.
    pub fn series(&self, name: &str) -> Result<Vec<f64>, String> {
        let column = self.names.iter().position(|n| n == name);
        let column = column.ok_or_else(|| format!("unknown term `{name}`; known terms: {}", self.names.join(", ")))?;
        Ok(self.values.chunks_exact(self.names.len()).map(|row| row[column]).collect())
    }
}

/// Parses a file. Errors: not an `.edr` file, written before version 4 of the format (GROMACS 4.5), or cut off (with
/// the frame).
pub fn read(bytes: &[u8]) -> Result<Energies, String> {
    let (names, start) = names(bytes)?;
    let mut energies = Energies { names, ..Energies::default() };
    let mut reader = Reader::new(bytes, start);
    while !reader.at_end() {
        let number = energies.steps.len() + 1;
        let (step, values) = frame(&mut reader).map_err(|e| format!("frame {number}: {e}"))?;
        if ![0, energies.names.len()].contains(&values.len()) {
            return Err(format!("frame {number}: {} values for {} names", values.len(), energies.names.len()));
        }
        energies.steps.push(step);
        let missing = energies.names.len() - values.len();
        energies.values.extend(values);
        energies.values.extend(std::iter::repeat_n(f64::NAN, missing));
    }
    Ok(energies)
}

pub(super) fn spans(bytes: &[u8]) -> Result<Vec<Span>, String> {
    let (_, start) = names(bytes)?;
    walk(bytes, start, |reader| Ok(frame(reader)?.0))
}

/// Names of the terms, and the position of the first frame.
fn names(bytes: &[u8]) -> Result<(Vec<String>, usize), String> {
    let mut reader = Reader::new(bytes, 0);
    if reader.i32()? != NAMES_MAGIC {
        return Err("not an .edr file".into());
    }
    known(reader.i32()?)?;
    let mut names = Vec::new();
    for _ in 0..reader.size("number of terms")? {
        names.push(reader.string()?);
        reader.string()?; // its unit
    }
    Ok((names, reader.position()))
}

fn known(version: i32) -> Result<(), String> {
    match version {
        4.. => Ok(()),
        _ => Err(format!("format version {version} is too old")),
    }
}

fn frame(reader: &mut Reader) -> Result<(i64, Vec<f64>), String> {
    // frames in either precision begin with the same number
    let start = reader.position();
    let single = f64::from(reader.f32()?) == f64::from(FIRST as f32) && reader.i32()? == FRAME_MAGIC;
    let double = !single;
    if double {
        *reader = reader.again(start);
        if reader.f64()? != FIRST || reader.i32()? != FRAME_MAGIC {
            return Err("not an energy frame".into());
        }
    }
    let version = reader.i32()?;
    known(version)?;
    let (_, step) = (reader.f64()?, reader.i64()?);
    let (sums, _) = (reader.i32()?, reader.i64()?);
    if version >= 5 {
        reader.f64()?;
    }
    let (terms, _) = (reader.size("number of terms")?, reader.i32()?);
    let mut blocks = Vec::new();
    for _ in 0..reader.size("number of blocks")? {
        reader.i32()?;
        for _ in 0..reader.size("number of parts of a block")? {
            blocks.push((reader.size("block type")?, reader.size("block size")?));
        }
    }
    reader.take(3 * 4)?;
    let values: Vec<f64> = match sums > 0 {
        false => reader.reals(terms, double)?,
        // each with its average and sum
        true => reader
            .reals(terms.checked_mul(3).ok_or("a count is out of range")?, double)?
            .into_iter()
            .step_by(3)
            .collect(),
    };
    for (kind, n) in blocks {
        match WIDTHS.get(kind) {
            Some(width) => {
                reader.take(n.checked_mul(*width).ok_or("a count is out of range")?)?;
            }
            None if kind == STRING => (0..n).try_for_each(|_| reader.string().map(drop))?,
            None => return Err(format!("unsupported block type {kind}")),
        }
    }
    Ok((step, values))
}
