//! Frames, and the times at which they were taken.

use crate::coordinates::whole::BoxVectors;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Configurations of one molecule or abstract system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Frames {
    /// Numbers per frame: 3 × atoms for molecules.
    pub dimension: usize,
    /// `[n][dimension]`, nm.
    pub x: Vec<f64>,
    /// Periodic box of each frame, nm; zero for a frame without one. Empty if no frame has a box.
    pub boxes: Vec<BoxVectors>,
}

impl Frames {
    /// Frames without boxes.
    pub fn new(dimension: usize, x: Vec<f64>) -> Frames {
        Frames { dimension, x, boxes: Vec::new() }
    }

    /// The frames with the boxes in their file; none if all are zero.
    pub(super) fn in_boxes(self, boxes: Vec<BoxVectors>) -> Frames {
        let is_none = |vectors: &BoxVectors| vectors == &[[0.0; 3]; 3];
        let boxes = if boxes.iter().all(is_none) { Vec::new() } else { boxes };
        Frames { boxes, ..self }
    }

    /// Number of frames.
    pub fn n(&self) -> usize {
        self.x.len() / self.dimension.max(1)
    }

    /// The frames, if they have this dimension. Errors: another one.
    pub fn require(self, path: &Path, dimension: usize) -> Result<Frames> {
        if self.dimension == dimension {
            return Ok(self);
        }
        let [found, needed] = match self.dimension.is_multiple_of(3) && dimension.is_multiple_of(3) {
            true => [self.dimension, dimension].map(|d| format!("{d} ({} atoms)", d / 3)),
            false => [self.dimension, dimension].map(|d| d.to_string()),
        };
        Err(Error::file(path, format!("frames have dimension {found}, expected {needed}")))
    }

    /// Array shape: `[n][atoms][3]`, or `[n][dimension]` if the dimension is not a multiple of three.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self.dimension % 3 {
            0 => vec![self.n(), self.dimension / 3, 3],
            _ => vec![self.n(), self.dimension],
        }
    }

    /// Frames from an array of either shape. Errors: another shape.
    pub(super) fn from_shape(path: &Path, shape: &[usize], x: Vec<f64>) -> Result<Frames> {
        let dimension = match *shape {
            [_, atoms, 3] => atoms.checked_mul(3),
            [_, dimension] => Some(dimension),
            _ => None,
        };
        match dimension {
            Some(dimension) if dimension > 0 => Ok(Frames::new(dimension, x)),
            _ => Err(Error::file(
                path,
                format!("`x` has shape {shape:?}, expected [frames][atoms][3] or [frames][dimension]"),
            )),
        }
    }

    /// Joins frames. Errors: no frames, or frames of different sizes.
    pub(super) fn join(path: &Path, frames: Vec<Vec<f64>>) -> Result<Frames> {
        let dimension = frames.first().map_or(0, Vec::len);
        if dimension == 0 {
            return Err(Error::file(path, "no frame contains positions"));
        }
        if let Some(i) = frames.iter().position(|x| x.len() != dimension) {
            let (here, first) = (frames[i].len() / 3, dimension / 3);
            return Err(Error::file(path, format!("frame {} has {here} atoms, but frame 1 has {first}", i + 1)));
        }
        Ok(Frames::new(dimension, frames.concat()))
    }
}

/// Times of the frames, for formats that store them.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Steps done at each frame; frames beyond the last entry are numbered.
    pub steps: &'a [u64],
    /// Time step, ps.
    pub timestep: f64,
}

/// Samples have no time: they are numbered from 0, and 1 ps apart.
impl Default for Clock<'_> {
    fn default() -> Self {
        Clock { steps: &[], timestep: 1.0 }
    }
}

impl Clock<'_> {
    pub(super) fn step(&self, frame: usize) -> u64 {
        match (self.steps.get(frame), self.steps.last()) {
            (Some(&step), _) => step,
            (None, last) => last.map_or(0, |last| last + 1) + (frame - self.steps.len()) as u64,
        }
    }

    /// Time of a frame, ps.
    pub(super) fn time(&self, frame: usize) -> f64 {
        self.step(frame) as f64 * self.timestep
    }
}
