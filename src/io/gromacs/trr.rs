//! `.trr` files: positions, velocities and forces in full precision.

use super::xdr::Reader;
use super::{walk, Span};
use crate::coordinates::whole::BoxVectors;

const MAGIC: i32 = 1993;
const NAME: &[u8; 12] = b"GMX_trn_file";

/// One frame, in nm, ps, nm/ps and kJ/(mol nm). Parts that a frame does not have are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    pub step: i32,
    pub time: f64,
    pub box_vectors: Option<BoxVectors>,
    /// `[atoms][3]`, as are `v` and `f`.
    pub x: Vec<f64>,
    pub v: Vec<f64>,
    pub f: Vec<f64>,
}

/// Sizes in bytes of the parts of a frame.
struct Header {
    box_size: usize,
    others: usize,
    parts: [usize; 3],
    atoms: usize,
    double: bool,
    step: i32,
    time: f64,
}

fn header(reader: &mut Reader) -> Result<Header, String> {
    if reader.i32()? != MAGIC {
        return Err("not a .trr frame".into());
    }
    let (_, _) = (reader.i32()?, reader.string()?);
    let sizes: [usize; 10] = {
        let mut sizes = [0; 10];
        for size in &mut sizes {
            *size = reader.size("size")?;
        }
        sizes
    };
    let [inputrec, energies, box_size, virial, pressure, topology, symbols, x, v, f] = sizes;
    if inputrec + energies + topology + symbols != 0 {
        return Err("data other than positions, velocities and forces are not supported".into());
    }
    let atoms = reader.size("number of atoms")?;
    let double = if box_size > 0 { box_size == 72 } else { [x, v, f].iter().any(|&s| s > 0 && s == 24 * atoms) };
    let width = if double { 8 } else { 4 };
    if ![0, 9 * width].contains(&box_size) || [x, v, f].iter().any(|&s| s != 0 && s != 3 * width * atoms) {
        return Err(format!("sizes {box_size}, {x}, {v}, {f} do not match {atoms} atoms"));
    }
    let (step, _) = (reader.i32()?, reader.i32()?);
    let (time, _) = (reader.real(double)?, reader.real(double)?);
    Ok(Header { box_size, others: virial + pressure, parts: [x, v, f], atoms, double, step, time })
}

pub(super) fn spans(bytes: &[u8]) -> Result<Vec<Span>, String> {
    walk(bytes, 0, |reader| {
        let header = header(reader)?;
        reader.take(header.box_size + header.others + header.parts.iter().sum::<usize>())?;
        Ok(i64::from(header.step))
    })
}

/// All frames of a file in memory. Errors: not a `.trr` file, or cut off (with the frame).
pub fn read(bytes: &[u8]) -> Result<Vec<Frame>, String> {
    let mut reader = Reader::new(bytes, 0);
    let mut frames = Vec::new();
    while !reader.at_end() {
        frames.push(frame(&mut reader).map_err(|e| format!("frame {}: {e}", frames.len() + 1))?);
    }
    Ok(frames)
}

fn frame(reader: &mut Reader) -> Result<Frame, String> {
    let Header { box_size, others, parts, atoms, double, step, time } = header(reader)?;
    let box_vectors = match box_size {
        0 => None,
        _ => {
            let b = reader.reals(9, double)?;
            Some([[b[0], b[1], b[2]], [b[3], b[4], b[5]], [b[6], b[7], b[8]]])
        }
    };
    reader.take(others)?;
    let mut part = |size: usize| if size > 0 { reader.reals(3 * atoms, double) } else { Ok(Vec::new()) };
    let [x, v, f] = parts;
    Ok(Frame { step, time, box_vectors, x: part(x)?, v: part(v)?, f: part(f)? })
}

/// Serialises frames in double precision, which builds of either precision read.
pub fn write(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        let atoms = [&frame.x, &frame.v, &frame.f].iter().map(|part| part.len() / 3).max().unwrap_or(0);
        let ints = |values: &[usize]| values.iter().flat_map(|&v| (v as i32).to_be_bytes()).collect::<Vec<u8>>();
        bytes.extend(ints(&[MAGIC as usize, NAME.len() + 1, NAME.len()]));
        bytes.extend(NAME);
        let box_size = if frame.box_vectors.is_some() { 72 } else { 0 };
        let [x, v, f] = [&frame.x, &frame.v, &frame.f].map(|part| 8 * part.len());
        bytes.extend(ints(&[0, 0, box_size, 0, 0, 0, 0, x, v, f, atoms]));
        bytes.extend(frame.step.to_be_bytes());
        bytes.extend(0i32.to_be_bytes());
        let box_vectors = frame.box_vectors.iter().flatten().flatten();
        let numbers = [frame.time, 0.0].into_iter().chain(box_vectors.copied());
        let parts = [&frame.x, &frame.v, &frame.f].into_iter().flatten().copied();
        bytes.extend(numbers.chain(parts).flat_map(f64::to_be_bytes));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_every_cut_is_an_error() {
        let whole = Frame {
            step: 7,
            time: 0.25,
            box_vectors: Some([[2.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, 0.25, 3.0]]),
            x: (0..6).map(f64::from).collect(),
            v: (0..6).map(|i| -0.1 * f64::from(i)).collect(),
            f: Vec::new(),
        };
        let forces = Frame { x: Vec::new(), v: Vec::new(), f: vec![1.0; 6], box_vectors: None, ..whole.clone() };
        let bytes = write(&[whole.clone(), forces.clone()]);
        assert_eq!(read(&bytes).unwrap(), [whole, forces]);
        let spans = spans(&bytes).unwrap();
        assert_eq!((spans.len(), spans[1].step, spans[1].bytes.end), (2, 7, bytes.len()));
        for length in 1..bytes.len() {
            assert_eq!(read(&bytes[..length]).is_ok(), length == spans[0].bytes.end, "{length} bytes");
        }
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x81;
            let _ = read(&damaged); // an error or other numbers, no panic
        }
    }
}
