//! Free-energy differences.
