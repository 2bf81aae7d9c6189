//! Frames, and when they were taken.

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
    /// Of the periodic box of each frame, nm; of no size for a frame without one. Empty where no frame has a box.
    pub boxes: Vec<BoxVectors>,
}

impl Frames {
    /// Without boxes.
    pub fn new(dimension: usize, x: Vec<f64>) -> Frames {
        Frames { dimension, x, boxes: Vec::new() }
    }

    /// With the boxes that a file has for them.
    pub(super) fn in_boxes(self, boxes: Vec<BoxVectors>) -> Frames {
        let is_none = |vectors: &BoxVectors| vectors == &[[0.0; 3]; 3];
        let boxes = if boxes.iter().all(is_none) { Vec::new() } else { boxes };
        Frames { boxes, ..self }
    }

    /// Number of frames.
    pub fn n(&self) -> usize {
        self.x.len() / self.dimension.max(1)
    }

    /// An error if the frames do not have this many numbers.
    pub fn require(self, path: &Path, dimension: usize) -> Result<Frames> {
        if self.dimension == dimension {
            return Ok(self);
        }
        let reason = format!(
            "frames of {} numbers ({} atoms); {dimension} ({} atoms) are needed",
            self.dimension,
            self.dimension / 3,
            dimension / 3
        );
        Err(Error::file(path, reason))
    }

    /// `[n][atoms][3]`, or `[n][dimension]` where the dimension is no multiple of three.
    pub(super) fn shape(&self) -> Vec<usize> {
        match self.dimension % 3 {
            0 => vec![self.n(), self.dimension / 3, 3],
            _ => vec![self.n(), self.dimension],
        }
    }

    /// An array of either shape. Errors: another one.
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
                format!("`x` has shape {shape:?}; [frames][atoms][3] or [frames][dimension] is needed"),
            )),
        }
    }

    /// Errors: no frames, or frames of different sizes.
    pub(super) fn join(path: &Path, frames: Vec<Vec<f64>>) -> Result<Frames> {
        let dimension = frames.first().map_or(0, Vec::len);
        if dimension == 0 {
            return Err(Error::file(path, "no frame with positions"));
        }
        if let Some(i) = frames.iter().position(|x| x.len() != dimension) {
            let (here, first) = (frames[i].len() / 3, dimension / 3);
            return Err(Error::file(path, format!("frame {} has {here} atoms, the first {first}", i + 1)));
        }
        Ok(Frames::new(dimension, frames.concat()))
    }
}

/// When frames were taken, for the formats that say it.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Steps that were done at each frame; beyond the last one, and without any, frames are numbered.
    pub steps: &'a [u64],
    /// ps
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

    /// ps
    pub(super) fn time(&self, frame: usize) -> f64 {
        self.step(frame) as f64 * self.timestep
    }
}
