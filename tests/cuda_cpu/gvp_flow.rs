//! The vector field of BoltzNCE.

use super::driver::{Fibres, Sanitizer};
use super::fields::{self, normals};
use super::{fibres, with_tensor_cores};
use modejump::device::{Device, Driver};
use modejump::models::field_on_device::FieldOnDevice;
use modejump::models::gvp_flow::{GvpConfig, GvpField};
use modejump::models::VectorField;
use modejump::nn::Real;
use std::sync::Arc;

/// A small network with odd sizes.
pub fn small<R: Real>() -> GvpField<R> {
    GvpField::random(small_config(), 4).unwrap()
}

pub fn small_config() -> GvpConfig {
    GvpConfig {
        features: vec![vec![0], vec![1], vec![0, 2], vec![], vec![1]],
        n_features: 3,
        n_layers: 3,
        n_scalars: 11,
        n_vectors: 3,
        rbf_max: 6.0,
        rbf_count: 5,
        message_norm: 2.0,
        coordinate_range: 1.5,
    }
}

/// BoltzNCE's sizes for alanine dipeptide.
pub fn whole<R: Real>() -> GvpField<R> {
    GvpField::random(whole_config(), 5).unwrap()
}

pub fn whole_config() -> GvpConfig {
    GvpConfig {
        features: (0..22).map(|i| vec![i % 21]).collect(),
        n_features: 21,
        n_layers: 5,
        n_scalars: 64,
        n_vectors: 16,
        rbf_max: 20.0,
        rbf_count: 16,
        message_norm: 10.0,
        coordinate_range: 10.0,
    }
}

pub fn compare<R: Real>(name: &str, host: &GvpField<R>, driver: &Arc<dyn Driver>, rows: usize, tolerance: f64) {
    fields::compare(name, host, &host.on_device(driver).unwrap(), rows, tolerance);
}

#[test]
fn small_networks() {
    compare("small-f64", &small::<f64>(), &fibres("gvp-small-f64", Sanitizer::None), 3, 1e-12);
    compare("small-f32", &small::<f32>(), &fibres("gvp-small-f32", Sanitizer::None), 3, 2e-5);
}

#[test]
fn sizes_of_boltznce() {
    compare("whole-f64", &whole::<f64>(), &fibres("gvp-whole-f64", Sanitizer::None), 1, 1e-11);
    compare("whole-f32", &whole::<f32>(), &fibres("gvp-whole-f32", Sanitizer::None), 1, 5e-5);
    let smaller = Fibres::new("gvp-smaller", Sanitizer::None).with_shared_memory(99 << 10);
    let smaller: Arc<dyn Driver> = Arc::new(smaller);
    compare("whole-f32 of a smaller card", &whole::<f32>(), &smaller, 1, 5e-5);
}

/// Values and tangents.
#[test]
fn by_tensor_cores() {
    compare("tensor", &small::<f32>(), &with_tensor_cores("gvp-tensor", Sanitizer::None), 2, 2e-5);
    let driver = with_tensor_cores("gvp-tensor-address", Sanitizer::Address);
    compare("tensor-address", &small::<f32>(), &driver, 1, 2e-5);
}

/// With too little shared memory the state of a block lies in memory of its own, and blocks take several
/// configurations.
#[test]
fn without_shared_memory() {
    let driver: Arc<dyn Driver> =
        Arc::new(Fibres::new("gvp-no-shared", Sanitizer::Address).with_shared_memory(1 << 10));
    compare("no-shared", &small::<f32>(), &driver, 5, 2e-5);
}

#[test]
fn under_the_address_sanitizer() {
    compare("address", &small::<f32>(), &fibres("gvp-address", Sanitizer::Address), 2, 2e-5);
}

#[test]
fn under_the_thread_sanitizer() {
    compare("thread", &small::<f32>(), &fibres("gvp-thread", Sanitizer::Thread), 1, 2e-5);
}

/// A failed launch is an error, not a configuration that is rejected.
#[test]
fn a_failure_is_told() {
    let fault = ("  put_eight(m.g + o * WIDTH + lane, sum);", "  put_eight(m.g + o * WIDTH + lane + 800, sum);");
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new("gvp-beyond", Sanitizer::Address).with_fault(fault.0, fault.1));
    let card = small::<f32>().on_device(&driver).unwrap();
    let mut f = vec![0.0; 15];
    card.evaluate(&[0.5], &normals(15, 1), &mut f);
    assert!(f.iter().all(|v| v.is_nan()));
    let said = card.failure().unwrap_err().to_string();
    assert!(said.contains("heap-buffer-overflow"), "{said}");
}

fn on_device(driver: &Arc<dyn Driver>) -> FieldOnDevice<f32> {
    small::<f32>().on_device(driver).unwrap()
}

#[test]
fn a_missing_barrier_is_a_data_race() {
    let of_values = "  norms<PAIR_LANES>(m, gvp, w + gvp.direction_hidden, RADIAL, perceptrons);\n  __syncthreads();";
    let of_tangents = "    put(m.norm + q * WIDTH * DIRECTIONS, lane, sum);\n  }\n  __syncthreads();";
    fields::barriers_are_missed(&[("gvp-race", of_values), ("gvp-tangents-race", of_tangents)], on_device);
}

/// Messages between atoms of a share that are added twice, a tape of another configuration, and one with messages of an
/// atom to itself.
#[test]
fn wrong_derivatives_are_found() {
    let faults = [
        ("gvp-twice", " || share.moves(atom)) continue;", ") continue;"),
        ("gvp-of-another", "at > first && at % parts > 0", "at > first"),
        ("gvp-own-message", "record.counts(lane) ? m.g[u * WIDTH + lane] : (real)0", "m.g[u * WIDTH + lane]"),
    ];
    fields::wrong_derivatives_are_found(&small::<f32>(), &faults, on_device);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    compare("small-f64", &small::<f64>(), driver, 9, 1e-12);
    compare("whole-f64", &whole::<f64>(), driver, 9, 1e-11);
    compare("whole-f32", &whole::<f32>(), driver, 9, 5e-5);
}
