//! Energies that end in a residual network: of coordinates, and of a molecule's distances and volumes.

use super::driver::{Fibres, Sanitizer};
use super::fields::{compare_energies, largest, normals};
use super::{fibres, with_tensor_cores};
use modejump::coordinates::chirality::Stereocentre;
use modejump::coordinates::Topology;
use modejump::device::{Device, Driver};
use modejump::io::model_file::read;
use modejump::models::continuous::Interpolant;
use modejump::models::invariant_ebm::whitening::Whitening;
use modejump::models::invariant_ebm::{InvariantConfig, InvariantEbm, InvariantNetwork};
use modejump::models::mlp_ebm::{MlpConfig, MlpNetwork};
use modejump::models::network::Evaluator;
use modejump::models::EnergyFunction;
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};
use modejump::Error;
use std::path::Path;
use std::sync::Arc;

const ATOMS: usize = 7;

fn shape() -> Vec<f64> {
    normals(3 * ATOMS, 7).iter().map(|x| 2.0 * x).collect()
}

/// Deviations from one shape, some so large that hydrogens change their hand.
fn frames(rows: usize) -> Vec<f64> {
    let deviations = normals(3 * ATOMS * rows, 1);
    deviations.iter().zip(shape().iter().cycle()).map(|(z, x)| x + 0.7 * z).collect()
}

/// A small network with odd sizes; two centres share a hydrogen, so the order of the swaps counts.
fn molecule<R: Real>(interpolant: Interpolant) -> Evaluator<InvariantNetwork, R> {
    let centre = |centre, neighbours, positive| Stereocentre { centre, neighbours, positive };
    let network = InvariantNetwork::new(InvariantConfig {
        atoms: ATOMS,
        volumes: vec![[[0, 1], [0, 2], [0, 3]], [[1, 0], [1, 2], [2, 4]], [[3, 0], [3, 5], [5, 6]]],
        prochiral: vec![centre(0, [1, 2, 3], true), centre(3, [4, 5, 0], false), centre(0, [2, 6, 5], true)],
        inputs: 13,
        interpolant,
        width: 9,
        layers: 2,
    })
    .unwrap();
    let whitening = Whitening::of(&network, &frames(100)).unwrap();
    let parameters = network.initialise(&whitening, &mut Stream::new(3, StreamId::Test, 0, 0));
    Evaluator::new(network, parameters)
}

fn plane<R: Real>() -> Evaluator<MlpNetwork, R> {
    let network = MlpNetwork::new(MlpConfig { dimension: 2, width: 15, layers: 3 }).unwrap();
    let parameters = network.initialise(&mut Stream::new(3, StreamId::Test, 0, 0));
    Evaluator::new(network, parameters)
}

/// The energy of alanine dipeptide that comes with the project, at its molecule, in the network's units.
pub fn shipped<R: Real>(driver: &Arc<dyn Driver>, rows: usize, tolerance: f64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2");
    let bytes = std::fs::read(folder.join("invariant-ebm.safetensors")).unwrap();
    let model = InvariantEbm::<R>::from_file(&read("invariant-ebm", &bytes).unwrap()).unwrap();
    let (_, molecule) = Topology::from_pdb(&folder.join("topology.pdb")).unwrap();
    let noise = normals(rows * molecule.len(), 1);
    let x: Vec<f64> = noise.iter().zip(molecule.iter().cycle()).map(|(z, x)| 10.0 * x + 0.2 * z).collect();
    let host = model.network();
    compare_energies("shipped", host, &host.on_device(driver).unwrap(), &x, tolerance);
}

/// Less than a block, a block, and more.
const ROWS: [usize; 3] = [1, 8, 19];

pub fn of_molecule<R: Real>(driver: &Arc<dyn Driver>, interpolant: Interpolant, rows: &[usize], tolerance: f64) {
    let host = molecule::<R>(interpolant);
    let card = host.on_device(driver).unwrap();
    rows.iter().for_each(|&n| compare_energies("molecule", &host, &card, &frames(n), tolerance));
}

pub fn of_plane<R: Real>(driver: &Arc<dyn Driver>, rows: &[usize], tolerance: f64) {
    let host = plane::<R>();
    let card = host.on_device(driver).unwrap();
    rows.iter().for_each(|&n| compare_energies("plane", &host, &card, &normals(2 * n, 4), tolerance));
}

#[test]
fn small_networks() {
    let driver = fibres("mlp-ebm", Sanitizer::None);
    of_molecule::<f64>(&driver, Interpolant::Trigonometric, &ROWS, 1e-11);
    of_plane::<f64>(&driver, &ROWS, 1e-11);
}

#[test]
fn the_energy_that_is_shipped() {
    shipped::<f32>(&fibres("mlp-ebm-shipped", Sanitizer::None), 9, 1e-4);
    shipped::<f32>(&with_tensor_cores("mlp-ebm-tensor", Sanitizer::None), 9, 1e-4);
}

#[test]
fn under_the_address_sanitizer() {
    let driver = fibres("mlp-ebm-address", Sanitizer::Address);
    of_molecule::<f32>(&driver, Interpolant::Linear, &[3], 1e-4);
    of_plane::<f32>(&driver, &[9], 1e-4);
}

#[test]
fn under_the_thread_sanitizer() {
    let driver = fibres("mlp-ebm-thread", Sanitizer::Thread);
    of_molecule::<f32>(&driver, Interpolant::Linear, &[2], 1e-4);
}

/// Energies and scores by a kernel with a planted fault, and what the machine or a sanitizer said.
fn with_fault(
    name: &str,
    sanitizer: Sanitizer,
    from: &'static str,
    to: &'static str,
) -> (Vec<f64>, Vec<f64>, Result<(), Error>) {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(from, to));
    let card = molecule::<f32>(Interpolant::Linear).on_device(&driver).unwrap();
    let (mut energy, mut score) = ([0.0; 8], vec![0.0; 8 * 3 * ATOMS]);
    card.energy_score(&[0.5; 8], &frames(8), &mut energy, &mut score);
    (energy.to_vec(), score, card.failure())
}

#[test]
fn a_missing_barrier_is_a_data_race() {
    let from = "three_at(m.x, (int)m.order[atom * LANES + lane], lane));\n  __syncthreads();";
    let to = "three_at(m.x, (int)m.order[atom * LANES + lane], lane));";
    let (_, _, said) = with_fault("mlp-ebm-race", Sanitizer::Thread, from, to);
    assert!(said.unwrap_err().to_string().contains("data race"));
}

/// A failed launch is an error, not a number that may be believed.
#[test]
fn a_failure_is_told() {
    let from = "put_three(m.a, 3 * k, lane,";
    let (energy, score, said) =
        with_fault("mlp-ebm-beyond", Sanitizer::Address, from, "put_three(m.a, 3 * k + 16, lane,");
    assert!(said.unwrap_err().to_string().contains("heap-buffer-overflow"));
    assert!(energy.iter().chain(&score).all(|v| v.is_nan()));
}

/// A cotangent that goes to the atom in whose place another was put; which also shows that atoms change places in these
/// tests.
#[test]
fn scores_of_swapped_atoms_are_told_apart() {
    let (from, to) = ("ATOMS + (int)m.order[atom * LANES + lane]) * 3", "ATOMS + atom) * 3");
    let (energy, wrong, said) = with_fault("mlp-ebm-order", Sanitizer::None, from, to);
    said.unwrap();
    let (mut again, mut score) = ([0.0; 8], vec![0.0; 8 * 3 * ATOMS]);
    molecule::<f32>(Interpolant::Linear).energy_score(&[0.5; 8], &frames(8), &mut again, &mut score);
    assert!(largest(&energy, &again) < 1e-4);
    assert!(largest(&score, &wrong) > 1e-2);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    let rows = [1, 9, 5000];
    of_molecule::<f64>(driver, Interpolant::Trigonometric, &rows, 1e-11);
    of_molecule::<f32>(driver, Interpolant::Linear, &rows, 1e-4);
    of_plane::<f64>(driver, &rows, 1e-11);
    of_plane::<f32>(driver, &rows, 1e-4);
    shipped::<f64>(driver, 100, 1e-10);
    shipped::<f32>(driver, 5000, 1e-4);
}
