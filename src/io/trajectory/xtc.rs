//! Compressed trajectories of GROMACS.

use super::{without_panic, Clock, Frames};
use crate::coordinates::whole::box_from_slice;
use crate::error::{Error, Result};
use crate::io::gromacs::spans;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Precision of XTC, 1e-5 nm.
const XTC_PRECISION: f32 = 1e5;

/// Reads all frames. Errors: a malformed or truncated file.
pub fn read(path: &Path) -> Result<Frames> {
    let bytes = crate::io::read(path)?;
    spans("xtc", &bytes).map_err(|reason| Error::file(path, reason))?;
    let frames = AtomicUsize::new(0);
    let read = without_panic(|| {
        let length = bytes.len() as u64;
        let mut reader = molly::XTCReader::new(std::io::Cursor::new(bytes));
        let (mut x, mut boxes, mut dimension) = (Vec::new(), Vec::new(), 0);
        let mut frame = molly::Frame::default();
        while reader.file.position() < length {
            let count = 1 + frames.fetch_add(1, Ordering::Relaxed);
            reader.read_frame(&mut frame).map_err(|e| format!("frame {count}: {e}"))?;
            if count > 1 && frame.positions.len() != dimension {
                return Err(format!(
                    "frame {count} has {} atoms, but frame 1 has {}",
                    frame.positions.len() / 3,
                    dimension / 3
                ));
            }
            dimension = frame.positions.len();
            x.extend(frame.positions.iter().map(|&v| f64::from(v)));
            boxes.push(box_from_slice(&frame.boxvec.map(f64::from)));
        }
        Ok(Frames::new(dimension, x).in_boxes(boxes))
    });
    let malformed =
        || Err(format!("frame {} is corrupt: copy or write the file again", frames.load(Ordering::Relaxed)));
    read.unwrap_or_else(malformed).map_err(|reason| Error::file(path, reason))
}

/// Formats frames; those without a box get one of zero size. Errors: those of the writer.
pub fn write(path: &Path, frames: &Frames, clock: Clock) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = molly::XTCWriter::new(&mut bytes);
    for (i, x) in frames.x.chunks_exact(frames.dimension).enumerate() {
        let frame = molly::Frame {
            step: clock.step(i) as u32,
            time: clock.time(i) as f32,
            boxvec: frames.boxes.get(i).map_or([0.0; 9], |b| std::array::from_fn(|k| b[k / 3][k % 3] as f32)),
            precision: XTC_PRECISION,
            positions: x.iter().map(|&v| v as f32).collect(),
        };
        writer.write_frame(&frame).map_err(|e| Error::file(path, format!("frame {}: {e}", i + 1)))?;
    }
    Ok(bytes)
}
