//! The vector field of ECNF.

use super::driver::{Fibres, Sanitizer};
use super::fields;
use super::{fibres, with_tensor_cores};
use modejump::device::{Device, Driver};
use modejump::models::egnn_flow::{Egnn, EgnnConfig};
use modejump::models::field_on_device::FieldOnDevice;
use modejump::models::network::{Evaluator, Network};
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};
use std::sync::Arc;

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
pub fn whole<R: Real>() -> Evaluator<Egnn, R> {
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
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new("egnn-smaller", Sanitizer::None).with_shared_memory(99 << 10));
    let card = whole::<f32>().on_device(&driver).unwrap();
    fields::compare("egnn-whole-f32 of a smaller card", &whole::<f32>(), &card, 1, 5e-5);
}

/// With too little shared memory the state of a block lies in memory of its own, and blocks take several
/// configurations.
#[test]
fn without_shared_memory() {
    let driver: Arc<dyn Driver> =
        Arc::new(Fibres::new("egnn-no-shared", Sanitizer::Address).with_shared_memory(1 << 10));
    fields::compare("egnn-no-shared", &small::<f32>(), &small::<f32>().on_device(&driver).unwrap(), 5, 2e-5);
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

fn on_device(driver: &Arc<dyn Driver>) -> FieldOnDevice<f32> {
    small::<f32>().on_device(driver).unwrap()
}

#[test]
fn a_missing_barrier_is_a_data_race() {
    let of_values = "((real)1 - gate) * m.message[f * PAIR_LANES + pair];\n      }\n    }\n    __syncthreads();";
    let of_tangents = "    put(m.first + (2 * part + 1) * PAIR_ROWS, lane, towards);\n  }\n  __syncthreads();";
    fields::barriers_are_missed(&[("egnn-race", of_values), ("egnn-tangents-race", of_tangents)], on_device);
}

/// Messages between atoms of a share that are added twice, those of an atom to itself, and y without its way through
/// the gate.
#[test]
fn wrong_derivatives_are_found() {
    let faults = [
        ("egnn-twice", " || share.moves(atom)) continue;", ") continue;"),
        ("egnn-own-message", "edges.counts(pair) ? gate : (real)0", "gate"),
        ("egnn-gate", "through_gate * of_attention(f)", "(real)0"),
    ];
    fields::wrong_derivatives_are_found(&small::<f32>(), &faults, on_device);
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
