//! BoltzNCE's energy-based model.

use super::driver::Sanitizer;
use super::fields::{compare_energies, normals};
use super::{fibres, with_tensor_cores};
use modejump::device::{Device, Driver};
use modejump::models::graphormer_ebm::{Graphormer, GraphormerConfig, Version};
use modejump::models::network::Evaluator;
use modejump::models::EnergyFunction;
use modejump::nn::Real;
use std::sync::Arc;

/// A small network with odd sizes, run through twice.
fn small<R: Real>(version: Version) -> Evaluator<Graphormer, R> {
    let config = GraphormerConfig {
        version,
        types: vec![0, 1, 2, 1, 0],
        n_types: 3,
        n_layers: 2,
        blocks: 2,
        width: 15,
        feed_forward: 11,
        heads: 5,
        kernels: 7,
    };
    random(config)
}

/// BoltzNCE's sizes for alanine dipeptide.
fn whole<R: Real>() -> Evaluator<Graphormer, R> {
    let config = GraphormerConfig {
        version: Version::Boltznce,
        types: (0..22).map(|i| i % 21).collect(),
        n_types: 21,
        n_layers: 8,
        blocks: 1,
        width: 256,
        feed_forward: 256,
        heads: 32,
        kernels: 50,
    };
    random(config)
}

fn random<R: Real>(config: GraphormerConfig) -> Evaluator<Graphormer, R> {
    let network = Graphormer::new(config).unwrap();
    let parameters = network.initial(6.0, 4);
    Evaluator::new(network, parameters)
}

/// Of random configurations, in the network's units.
fn compare<R: Real>(
    name: &str,
    host: &Evaluator<Graphormer, R>,
    driver: &Arc<dyn Driver>,
    rows: usize,
    tolerance: f64,
) {
    let card = host.on_device(driver).unwrap();
    let x: Vec<f64> = normals(rows * EnergyFunction::dimension(&card), 1).iter().map(|x| 2.0 * x).collect();
    compare_energies(name, host, &card, &x, tolerance);
}

#[test]
fn small_networks() {
    let driver = fibres("graphormer-f64", Sanitizer::None);
    compare("boltznce-f64", &small::<f64>(Version::Boltznce), &driver, 3, 1e-11);
    let driver = fibres("graphormer-clean-f64", Sanitizer::None);
    compare("clean-f64", &small::<f64>(Version::Clean), &driver, 3, 1e-11);
    let driver = fibres("graphormer-f32", Sanitizer::Address);
    compare("boltznce-f32", &small::<f32>(Version::Boltznce), &driver, 2, 1e-4);
}

#[test]
fn sizes_of_boltznce() {
    compare("whole-f32", &whole::<f32>(), &fibres("graphormer-whole-f32", Sanitizer::None), 1, 1e-4);
}

/// Products by 3xTF32 are as good as those of f32.
#[test]
fn by_tensor_cores() {
    let driver = with_tensor_cores("graphormer-tensor", Sanitizer::Address);
    compare("tensor", &small::<f32>(Version::Boltznce), &driver, 2, 1e-4);
    let driver = with_tensor_cores("graphormer-tensor-thread", Sanitizer::Thread);
    compare("tensor-thread", &small::<f32>(Version::Clean), &driver, 1, 1e-4);
}

#[test]
fn under_the_thread_sanitizer() {
    let driver = fibres("graphormer-thread", Sanitizer::Thread);
    compare("thread", &small::<f32>(Version::Clean), &driver, 1, 1e-4);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    compare("boltznce-f64", &small::<f64>(Version::Boltznce), driver, 9, 1e-11);
    compare("whole-f64", &whole::<f64>(), driver, 9, 1e-10);
    compare("whole-f32", &whole::<f32>(), driver, 9, 1e-4);
}
