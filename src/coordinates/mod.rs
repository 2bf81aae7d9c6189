//! From Cartesian coordinates to the coordinates a generator works in, and back, with exact log-determinants.

pub mod internal;
pub mod topology;
pub mod vector;
pub mod zmatrix;

pub use internal::InternalCoordinates;
pub use topology::Topology;
pub use zmatrix::ZMatrix;
