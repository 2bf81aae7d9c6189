//! The vector field of ECNF.

use super::driver::Sanitizer;
use super::{fibres, fields, with_tensor_cores};
use modejump::device::Device;
use modejump::models::egnn_flow::{Egnn, EgnnConfig};
use modejump::models::network::{Evaluator, Network};
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};

fn random<R: Real>(config: EgnnConfig) -> Evaluator<Egnn, R> {
    let network = Egnn::new(config).unwrap();
    let parameters = network.layout().initialise(&mut Stream::new(3, StreamId::Initialise, 0, 0), |_, _| None);
    Evaluator::new(network, parameters)
}

/// Of a small network with odd sizes.
pub fn small_config() -> EgnnConfig {
    let features = vec![vec![0], vec![1], vec![0, 2], vec![], vec![1]];
    EgnnConfig { features, n_features: 3, n_layers: 3, n_hidden: 13, coordinate_range: 4.0 }
}

pub fn small<R: Real>() -> Evaluator<Egnn, R> {
    random(small_config())
}

/// ECNF's sizes for alanine dipeptide.
fn whole<R: Real>() -> Evaluator<Egnn, R> {
    let features = (0..22).map(|i| vec![i]).collect();
    random(EgnnConfig { features, n_features: 22, n_layers: 5, n_hidden: 64, coordinate_range: 15.0 })
}

#[test]
fn small_networks() {
    let driver = fibres("egnn-small-f64", Sanitizer::None);
    fields::compare("egnn-small-f64", &small::<f64>(), &small::<f64>().on_device(&driver).unwrap(), 3, 1e-12);
    let driver = fibres("egnn-small-f32", Sanitizer::Address);
    fields::compare("egnn-small-f32", &small::<f32>(), &small::<f32>().on_device(&driver).unwrap(), 3, 2e-5);
}

#[test]
fn sizes_of_ecnf() {
    let driver = fibres("egnn-whole-f32", Sanitizer::None);
    fields::compare("egnn-whole-f32", &whole::<f32>(), &whole::<f32>().on_device(&driver).unwrap(), 1, 5e-5);
}

#[test]
fn by_tensor_cores() {
    let driver = with_tensor_cores("egnn-tensor", Sanitizer::None);
    fields::compare("egnn-tensor", &small::<f32>(), &small::<f32>().on_device(&driver).unwrap(), 2, 2e-5);
}

#[test]
fn under_the_thread_sanitizer() {
    let driver = fibres("egnn-thread", Sanitizer::Thread);
    fields::compare("egnn-thread", &small::<f32>(), &small::<f32>().on_device(&driver).unwrap(), 1, 2e-5);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    fields::compare("egnn-small-f64", &small::<f64>(), &small::<f64>().on_device(driver).unwrap(), 9, 1e-12);
    fields::compare("egnn-whole-f64", &whole::<f64>(), &whole::<f64>().on_device(driver).unwrap(), 9, 1e-11);
    fields::compare("egnn-whole-f32", &whole::<f32>(), &whole::<f32>().on_device(driver).unwrap(), 9, 5e-5);
}
