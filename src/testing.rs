//! Helpers shared by unit tests.

use std::path::{Path, PathBuf};

/// A file of the shipped models of alanine dipeptide.
pub fn ala2(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name)
}

/// ln|det a|, by Gaussian elimination with partial pivoting.
pub fn log_abs_determinant(mut a: Vec<Vec<f64>>) -> f64 {
    let n = a.len();
    let mut log = 0.0;
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i][k].abs().total_cmp(&a[j][k].abs())).unwrap();
        a.swap(k, pivot);
        log += a[k][k].abs().ln();
        let (above, below) = a.split_at_mut(k + 1);
        for row in below {
            let factor = row[k] / above[k][k];
            row.iter_mut().zip(&above[k]).skip(k).for_each(|(a, p)| *a -= factor * p);
        }
    }
    log
}
