//! Trajectories of GROMACS in full precision; their frames without positions are left out.

use super::{Clock, Frames};
use crate::coordinates::whole::BoxVectors;
use crate::error::{Error, Result};
use crate::io::gromacs::trr;
use std::path::Path;

pub fn read(path: &Path) -> Result<Frames> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let frames = trr::read(&bytes).map_err(|e| Error::file(path, e))?;
    Frames::join(path, frames.into_iter().map(|frame| frame.x).filter(|x| !x.is_empty()).collect())
}

/// Frames without a box have one of no size.
pub fn write(frames: &Frames, clock: Clock, boxes: &[BoxVectors]) -> Vec<u8> {
    let frames = frames.x.chunks_exact(frames.dimension).enumerate();
    let frame = |(i, x): (usize, &[f64])| {
        let (step, time) = (clock.step(i) as i32, clock.time(i));
        let box_vectors = boxes.get(i).copied().or(Some([[0.0; 3]; 3]));
        trr::Frame { step, time, box_vectors, x: x.to_vec(), ..trr::Frame::default() }
    };
    trr::write(&frames.map(frame).collect::<Vec<_>>())
}
