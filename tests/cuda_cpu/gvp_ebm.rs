//! Energies on geometric vector perceptrons.

use super::driver::{Fibres, Sanitizer};
use super::fibres;
use super::fields::{compare_energies, largest, normals};
use super::gvp_flow;
use modejump::device::{Device, Driver};
use modejump::models::gvp_ebm::GvpEnergy;
use modejump::models::gvp_flow::GvpConfig;
use modejump::models::network::Evaluator;
use modejump::models::EnergyFunction;
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};
use std::sync::Arc;

fn network<R: Real>(config: GvpConfig) -> Evaluator<GvpEnergy, R> {
    let network = GvpEnergy::new(config).unwrap();
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    let parameters = network.initialise::<f64>(&mut stream);
    let parameters = parameters.iter().map(|p| R::from_f64(p + 0.1 * stream.normal())).collect();
    Evaluator::new(network, parameters)
}

pub fn compare<R: Real>(name: &str, config: GvpConfig, driver: &Arc<dyn Driver>, rows: usize, tolerance: f64) {
    let host = network::<R>(config);
    let x = normals(rows * host.dimension(), 1);
    compare_energies(name, &host, &host.on_device(driver).unwrap(), &x, tolerance);
}

#[test]
fn small_networks() {
    let small = gvp_flow::small_config;
    compare::<f64>("small-f64", small(), &fibres("gvp-ebm-f64", Sanitizer::None), 3, 1e-11);
    compare::<f32>("small-f32", small(), &fibres("gvp-ebm-f32", Sanitizer::None), 3, 1e-4);
}

/// With too little shared memory the state of a block lies in memory of its own, behind its tape.
#[test]
fn with_little_shared_memory() {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new("gvp-ebm-little", Sanitizer::None).with_shared_memory(4 << 10));
    compare::<f64>("little", gvp_flow::small_config(), &driver, 2, 1e-11);
}

#[test]
fn sizes_of_boltznce() {
    compare::<f32>("whole", gvp_flow::whole_config(), &fibres("gvp-ebm-whole", Sanitizer::None), 1, 1e-4);
}

#[test]
fn under_the_sanitizers() {
    for (name, sanitizer) in [("gvp-ebm-address", Sanitizer::Address), ("gvp-ebm-thread", Sanitizer::Thread)] {
        compare::<f32>(name, gvp_flow::small_config(), &fibres(name, sanitizer), 1, 1e-4);
    }
}

/// Energy and score of two rows by a kernel with a planted fault, and what was said.
fn with_fault(
    name: &str,
    sanitizer: Sanitizer,
    from: &'static str,
    to: &'static str,
) -> (Vec<f64>, Vec<f64>, modejump::Result<()>) {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(from, to));
    let host = network::<f32>(gvp_flow::small_config());
    let card = host.on_device(&driver).unwrap();
    let (mut energy, mut score) = (vec![0.0; 2], vec![0.0; 2 * host.dimension()]);
    card.energy_score(&[0.5; 2], &normals(2 * host.dimension(), 1), &mut energy, &mut score);
    (energy, score, card.failure())
}

#[test]
fn a_mean_that_is_not_waited_for_is_a_data_race() {
    let from = "mean[f * SINGLE + lane] = ((real)1 / ATOMS) * sum;\n  }\n  __syncthreads();";
    let said = with_fault("gvp-ebm-race", Sanitizer::Thread, from, from.strip_suffix("  __syncthreads();").unwrap()).2;
    assert!(said.unwrap_err().to_string().contains("data race"));
}

/// As if the last layer needed two atoms only, which holds for a share of a divergence.
#[test]
fn messages_to_too_few_atoms_are_found() {
    let (from, to) = ("tangents(a.trunk, scratch, p, false, tape)", "tangents(a.trunk, scratch, p, true, tape)");
    let (energy, score, said) = with_fault("gvp-ebm-few", Sanitizer::None, from, to);
    said.unwrap();
    let host = network::<f32>(gvp_flow::small_config());
    let (mut want, mut of_host) = (vec![0.0; 2], vec![0.0; 2 * host.dimension()]);
    host.energy_score(&[0.5; 2], &normals(2 * host.dimension(), 1), &mut want, &mut of_host);
    assert!(largest(&want, &energy) < 1e-4 && largest(&of_host, &score) > 1e-3);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    for rows in [1, 9, 300] {
        compare::<f64>("small, f64", gvp_flow::small_config(), driver, rows, 1e-11);
        compare::<f32>("small, f32", gvp_flow::small_config(), driver, rows, 1e-4);
        compare::<f64>("whole, f64", gvp_flow::whole_config(), driver, rows, 1e-11);
        compare::<f32>("whole, f32", gvp_flow::whole_config(), driver, rows, 1e-4);
    }
}
