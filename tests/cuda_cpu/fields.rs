//! What the tests of vector fields share.

use super::driver::{Fibres, Sanitizer};
use modejump::device::Driver;
use modejump::models::field_on_device::FieldOnDevice;
use modejump::models::{EnergyFunction, VectorField};
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};
use std::sync::Arc;

pub fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(9, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

pub fn largest(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    let size = a.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / size
}

/// Values, divergences and derivatives against the CPU, relative to the largest number.
pub fn compare(name: &str, host: &dyn VectorField, card: &dyn VectorField, rows: usize, tolerance: f64) {
    let d = host.dimension();
    let (x, dx) = (normals(rows * d, 1), normals(rows * d, 2));
    let t: Vec<f64> = (0..rows).map(|row| 0.1 + 0.2 * row as f64).collect();
    let run = |field: &dyn VectorField| {
        let (mut f, mut df, mut again, mut divergence) =
            (vec![0.0; rows * d], vec![0.0; rows * d], vec![0.0; rows * d], vec![0.0; rows]);
        field.evaluate(&t, &x, &mut f);
        field.evaluate_divergence(&t, &x, &mut again, &mut divergence);
        assert!(largest(&f, &again) < tolerance);
        field.evaluate_jvp(&t, &x, &dx, &mut again, &mut df);
        assert!(largest(&f, &again) < tolerance);
        field.failure().unwrap();
        (f, df, divergence)
    };
    let ((f, df, divergence), found) = (run(host), run(card));
    for (what, a, b) in [("f", &f, &found.0), ("df", &df, &found.1), ("divergence", &divergence, &found.2)] {
        let error = largest(a, b);
        println!("{name}: {what} {error:.1e}");
        assert!(error < tolerance, "{name}: {what} differs by {error:e}");
    }
}

/// Divergences of five rows of five atoms by kernels with a planted fault, and what was said.
fn with_fault<R: Real>(
    name: &str,
    sanitizer: Sanitizer,
    [from, to]: [&'static str; 2],
    on_device: impl Fn(&Arc<dyn Driver>) -> FieldOnDevice<R>,
) -> (Vec<f64>, modejump::Result<()>) {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(from, to));
    let card = on_device(&driver);
    let mut divergence = vec![0.0; 5];
    card.evaluate_divergence(&[0.5; 5], &normals(75, 1), &mut [0.0; 75], &mut divergence);
    (divergence, card.failure())
}

/// Kernels without one of these barriers, by the text that ends with it: each is found to be a data race.
pub fn barriers_are_missed<R: Real>(
    faults: &[(&str, &'static str)],
    on_device: impl Fn(&Arc<dyn Driver>) -> FieldOnDevice<R>,
) {
    for &(name, from) in faults {
        let fault = [from, from.strip_suffix("__syncthreads();").unwrap()];
        let said = with_fault(name, Sanitizer::Thread, fault, &on_device).1.unwrap_err().to_string();
        assert!(said.contains("data race"), "{said}");
    }
}

/// Faults, (name, from, to), by which divergences are none.
pub fn wrong_derivatives_are_found<R: Real>(
    host: &dyn VectorField,
    faults: &[(&str, &'static str, &'static str)],
    on_device: impl Fn(&Arc<dyn Driver>) -> FieldOnDevice<R>,
) {
    let (mut f, mut want) = (vec![0.0; 75], vec![0.0; 5]);
    host.evaluate_divergence(&[0.5; 5], &normals(75, 1), &mut f, &mut want);
    for &(name, from, to) in faults {
        let (found, said) = with_fault(name, Sanitizer::None, [from, to], &on_device);
        said.unwrap();
        let error = largest(&want, &found);
        assert!(error > 1e-3, "{name}: {error:e}");
    }
}

/// Energies and scores of configurations against the CPU, relative to the largest.
pub fn compare_energies(name: &str, host: &dyn EnergyFunction, card: &dyn EnergyFunction, x: &[f64], tolerance: f64) {
    let rows = x.len() / host.dimension();
    let t: Vec<f64> = (0..rows).map(|row| 0.1 + 0.2 * (row % 5) as f64).collect();
    let run = |model: &dyn EnergyFunction| {
        let (mut energy, mut again, mut score) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; x.len()]);
        model.energy(&t, x, &mut energy);
        model.energy_score(&t, x, &mut again, &mut score);
        model.failure().unwrap();
        assert!(largest(&energy, &again) < tolerance);
        (energy, score)
    };
    let ((energy, score), found) = (run(host), run(card));
    for (what, a, b) in [("energy", &energy, &found.0), ("score", &score, &found.1)] {
        let error = largest(a, b);
        println!("{name}, {rows} rows: {what} {error:.1e}");
        assert!(error < tolerance, "{name}, {rows} rows: {what} differs by {error:e}");
    }
}
