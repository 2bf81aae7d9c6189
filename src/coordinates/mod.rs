//! Maps between Cartesian coordinates and the coordinates of a generator, with exact log-determinants.

pub mod along;
pub mod between;
pub mod cell;
pub mod chirality;
pub mod constraints;
pub mod frame;
pub mod internal;
mod naming;
pub mod peptide;
mod placement;
pub mod superpose;
pub mod topology;
pub mod vector;
pub mod whole;
pub mod zmatrix;

pub use along::{Along, Region};
pub use between::Between;
pub use chirality::Stereocentre;
pub use internal::InternalCoordinates;
pub use peptide::{AtomOrder, Peptide};
pub use topology::Topology;
pub use zmatrix::ZMatrix;

use crate::density::{Scope, Status};
use crate::error::Result;
use serde::{Deserialize, Serialize};

/// Coordinates of a generator, as described in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CoordinatesConfig {
    /// Cartesian or abstract coordinates, used as they are.
    Cartesian { dimension: usize },
    /// Bonds, angles and torsions; position and orientation are left alone.
    Internal {
        frame: [usize; 3],
        /// One row (i, j, k, l) for every atom outside the frame.
        rows: Vec<[usize; 4]>,
        /// θ/π and (φ+π)/2π instead of radians.
        normalize_angles: bool,
        /// Bonds of constant length: (i, j, length in nm).
        #[serde(default)]
        constraints: Vec<(usize, usize, f64)>,
        #[serde(default)]
        stereocentres: Vec<Stereocentre>,
        /// Rows whose atoms are kept as Cartesian components (mixed coordinates).
        #[serde(default)]
        cartesian: Vec<usize>,
    },
}

/// The map between configurations `x` and the generator's coordinates `u`.
#[derive(Clone, Debug)]
pub enum Coordinates {
    Cartesian(usize),
    Internal(InternalCoordinates, Vec<Stereocentre>),
}

impl Coordinates {
    /// Builds the map. `label` names an atom in error messages.
    ///
    /// Errors: an invalid z-matrix, constraints that are not bonds of it, Cartesian rows or stereocentres out of range.
    pub fn new(config: &CoordinatesConfig, label: impl Fn(usize) -> String) -> Result<Coordinates> {
        match config {
            CoordinatesConfig::Cartesian { dimension } => Ok(Coordinates::Cartesian(*dimension)),
            CoordinatesConfig::Internal { frame, rows, normalize_angles, constraints, stereocentres, cartesian } => {
                let n_atoms = rows.len() + 3;
                let zmatrix = ZMatrix::new(*frame, rows.clone(), n_atoms, label)?;
                let internal = InternalCoordinates::new(zmatrix, *normalize_angles, constraints)?;
                let internal = internal.with_cartesian_rows(cartesian)?;
                let named = |s: &Stereocentre| s.neighbours.iter().chain([&s.centre]).all(|&a| a < n_atoms);
                if !stereocentres.iter().all(named) {
                    return Err(crate::Error::invalid(format!(
                        "an atom of a stereocentre is out of range: the molecule has {n_atoms} atoms"
                    )));
                }
                Ok(Coordinates::Internal(internal, stereocentres.clone()))
            }
        }
    }

    /// The internal coordinates, if there are any.
    pub fn internal(self) -> Option<InternalCoordinates> {
        match self {
            Coordinates::Cartesian(_) => None,
            Coordinates::Internal(internal, _) => Some(internal),
        }
    }

    /// Number of coordinates of a configuration x.
    pub fn dimension_x(&self) -> usize {
        match self {
            Coordinates::Cartesian(n) => *n,
            Coordinates::Internal(internal, _) => 3 * internal.n_atoms(),
        }
    }

    /// Number of coordinates of a generator point u.
    pub fn dimension_u(&self) -> usize {
        match self {
            Coordinates::Cartesian(n) => *n,
            Coordinates::Internal(internal, _) => internal.dimension(),
        }
    }

    /// Which part of a configuration a density in these coordinates describes.
    pub fn scope(&self) -> Scope {
        match self {
            Coordinates::Cartesian(_) => Scope::Full,
            Coordinates::Internal(internal, _) => Scope::Shape { frame: internal.zmatrix.frame },
        }
    }

    /// Bonds of constant length: (i, j, length in nm).
    pub fn constraints(&self) -> Vec<(usize, usize, f64)> {
        match self {
            Coordinates::Cartesian(_) => Vec::new(),
            Coordinates::Internal(internal, _) => internal.fixed_bonds(),
        }
    }

    /// Maps x → u; returns ln|∂x/∂u|.
    pub fn encode(&self, x: &[f64], u: &mut [f64]) -> (f64, Status) {
        match self {
            Coordinates::Cartesian(_) => {
                u.copy_from_slice(x);
                (0.0, if x.iter().all(|v| v.is_finite()) { Status::Inside } else { Status::NonFinite })
            }
            Coordinates::Internal(internal, centres) => with_hand(internal.to_internal(x, u), centres, x),
        }
    }

    /// Maps u → x; returns ln|∂x/∂u|.
    pub fn generate(&self, u: &[f64], x: &mut [f64]) -> (f64, Status) {
        let (log_det, status) = match self {
            Coordinates::Cartesian(_) => {
                x.copy_from_slice(u);
                (0.0, Status::Inside)
            }
            Coordinates::Internal(internal, centres) => with_hand(internal.to_cartesian(u, x), centres, x),
        };
        let is_finite = status != Status::Inside || x.iter().all(|v| v.is_finite());
        (log_det, if is_finite { status } else { Status::NonFinite })
    }

    /// Adds the cotangent of x from those of u and of the log-determinant.
    pub fn encode_vjp(&self, x: &[f64], gu: &[f64], g_log_det: f64, gx: &mut [f64]) {
        match self {
            Coordinates::Cartesian(_) => gx.iter_mut().zip(gu).for_each(|(x, u)| *x += u),
            Coordinates::Internal(internal, _) => internal.to_internal_vjp(x, gu, g_log_det, gx),
        }
    }

    /// Writes the cotangent of u from those of x (used as scratch) and of the log-determinant.
    pub fn generate_vjp(&self, u: &[f64], x: &[f64], gx: &mut [f64], g_log_det: f64, gu: &mut [f64]) {
        match self {
            Coordinates::Cartesian(_) => gu.copy_from_slice(gx),
            Coordinates::Internal(internal, _) => internal.to_cartesian_vjp(u, x, gx, g_log_det, gu),
        }
    }
}

fn with_hand((log_det, status): (f64, Status), centres: &[Stereocentre], x: &[f64]) -> (f64, Status) {
    if status == Status::Inside && !centres.iter().all(|centre| centre.holds(x)) {
        return (log_det, Status::WrongChirality);
    }
    (log_det, status)
}
