//! Whole models of every kind, loaded to a machine from a file.

use super::driver::Sanitizer;
use super::fibres;
use modejump::density::Evaluation;
use modejump::device::Device;
use modejump::models::{load_on, Model, Precision};
use modejump::rng::{Stream, StreamId};
use std::path::Path;

#[path = "../support/networks.rs"]
pub mod networks;

fn log_density(model: &dyn Model, x: &[f64]) -> Vec<f64> {
    let mut log_q = vec![Evaluation::inside(0.0); x.len() / model.dimension()];
    model.log_density(x, &mut log_q).unwrap();
    log_q.iter().map(|e| e.log_density).collect()
}

/// All kinds give the densities of the CPU, and samples where they have any.
#[test]
fn every_kind() {
    let device = Device::with_driver(fibres("models", Sanitizer::None));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_cpu_models");
    std::fs::create_dir_all(&folder).unwrap();
    let modes = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/double-well/modes.safetensors");
    for (kind, bytes) in networks::all().into_iter().chain([("modes", std::fs::read(modes).unwrap())]) {
        let path = folder.join(format!("{kind}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        let host = load_on(&path, Precision::F64, &Device::cpu()).unwrap();
        let card = load_on(&path, Precision::F64, &device).unwrap_or_else(|error| panic!("{kind}: {error}"));
        // one that follows the temperature: at another than that of its file
        let (host, card) = match host.steering() {
            Some(_) => (host.at_temperature(420.0).unwrap(), card.at_temperature(420.0).unwrap()),
            None => (host, card),
        };
        assert_eq!((card.device().as_str(), host.device().as_str()), ("kernels on the CPU", "cpu"));
        let streams = |row: usize| Stream::new(3, StreamId::Test, 0, row as u32);
        let (n, d) = (3, host.dimension());
        let (mut x, mut log_q) = (vec![0.0; n * d], vec![Evaluation::inside(0.0); n]);
        if host.sample(&streams, &mut x, &mut log_q).is_err() {
            // an energy has no samples
            x.iter_mut().enumerate().for_each(|(i, x)| *x = 0.1 * streams(i).normal());
        } else {
            let (mut again, mut of_card) = (vec![0.0; n * d], log_q.clone());
            card.sample(&streams, &mut again, &mut of_card).unwrap();
            let largest = x.iter().zip(&again).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest < 1e-6, "{kind}: samples differ by {largest:e} nm");
        }
        let (want, found) = (log_density(&*host, &x), log_density(&*card, &x));
        for (want, found) in want.iter().zip(&found) {
            assert!((want - found).abs() < 1e-6 * want.abs().max(1.0), "{kind}: log q {want} and {found}");
        }
    }
}
