//! Trajectories of GROMACS in full precision; frames without positions are left out.

use super::{Clock, Frames};
use crate::error::{Error, Result};
use crate::io::gromacs::trr;
use std::path::Path;

/// Reads all frames with positions. Errors: a malformed or truncated file.
pub fn read(path: &Path) -> Result<Frames> {
    let bytes = crate::io::read(path)?;
    let frames = trr::read(&bytes).map_err(|e| Error::file(path, e))?;
    let with_x = frames.into_iter().filter(|frame| !frame.x.is_empty());
    let (x, boxes) = with_x.map(|frame| (frame.x, frame.box_vectors.unwrap_or_default())).unzip();
    Ok(Frames::join(path, x)?.in_boxes(boxes))
}

/// Serialises frames; those without a box get one of zero size.
pub fn write(frames: &Frames, clock: Clock) -> Vec<u8> {
    let (rows, boxes) = (frames.x.chunks_exact(frames.dimension).enumerate(), &frames.boxes);
    let frame = |(i, x): (usize, &[f64])| {
        let (step, time) = (clock.step(i) as i32, clock.time(i));
        let box_vectors = Some(boxes.get(i).copied().unwrap_or_default());
        trr::Frame { step, time, box_vectors, x: x.to_vec(), ..trr::Frame::default() }
    };
    trr::write(&rows.map(frame).collect::<Vec<_>>())
}
