//! BoltzNCE's energy-based model.

use super::driver::{Fibres, Sanitizer};
use super::fields::{compare_energies, normals};
use super::{fibres, with_tensor_cores};
use modejump::device::{Device, Driver};
use modejump::models::graphormer_ebm::{Graphormer, GraphormerConfig, Version};
use modejump::models::network::{Evaluator, Network};
use modejump::models::EnergyFunction;
use modejump::nn::Real;
use std::sync::Arc;

/// A small network with odd sizes, run through twice.
pub fn small<R: Real>(version: Version) -> Evaluator<Graphormer, R> {
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

/// With more heads than a team has blocks.
fn many_heads<R: Real>() -> Evaluator<Graphormer, R> {
    let config = GraphormerConfig { width: 66, heads: 33, ..small::<R>(Version::Clean).network.config().clone() };
    random(config)
}

/// BoltzNCE's sizes for alanine dipeptide.
pub fn whole<R: Real>() -> Evaluator<Graphormer, R> {
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
pub fn compare<R: Real>(
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

/// A machine for teams of five blocks, a head each, two of them at once.
fn for_teams(name: &str, sanitizer: Sanitizer) -> Fibres {
    Fibres::new(name, sanitizer).with_multiprocessors(5)
}

/// More configurations than teams; heads that the blocks of a team do not share evenly, of which some have none; all
/// state in memory of the card.
#[test]
fn teams() {
    let [address, thread] = [Sanitizer::Address, Sanitizer::Thread];
    let shared = |name, sanitizer| Arc::new(for_teams(name, sanitizer)) as Arc<dyn Driver>;
    let driver = shared("graphormer-teams-f64", Sanitizer::None);
    compare("teams-f64", &small::<f64>(Version::Boltznce), &driver, 3, 1e-11);
    compare("teams-f32", &small::<f32>(Version::Boltznce), &shared("graphormer-teams-f32", address), 2, 1e-4);
    compare("teams-thread", &small::<f32>(Version::Clean), &shared("graphormer-teams-thread", thread), 1, 1e-4);
    let many =
        Arc::new(Fibres::new("graphormer-many-heads", Sanitizer::None).with_multiprocessors(32)) as Arc<dyn Driver>;
    compare("many-heads-f64", &many_heads::<f64>(), &many, 1, 1e-11);
    let without: Arc<dyn Driver> =
        Arc::new(for_teams("graphormer-teams-scratch", Sanitizer::None).with_shared_memory(0));
    compare("teams-scratch", &small::<f32>(Version::Clean), &without, 3, 1e-4);
}

/// Whether a team takes a configuration or a block does, its bits are the same.
#[test]
fn teams_give_the_bits_of_blocks() {
    let run = |host: &Evaluator<Graphormer, f32>, name: &str, multiprocessors: usize| {
        let driver: Arc<dyn Driver> =
            Arc::new(Fibres::new(name, Sanitizer::None).with_multiprocessors(multiprocessors));
        let card = host.on_device(&driver).unwrap();
        let x = normals(EnergyFunction::dimension(&card), 1);
        let (mut energy, mut score) = (vec![0.0], vec![0.0; x.len()]);
        card.energy_score(&[0.3], &x, &mut energy, &mut score);
        card.failure().unwrap();
        let both = energy[0];
        card.energy(&[0.3], &x, &mut energy);
        assert_eq!(both, energy[0]);
        (both, score)
    };
    let host = small::<f32>(Version::Boltznce);
    assert_eq!(run(&host, "graphormer-of-blocks", 4), run(&host, "graphormer-of-teams", 5));
    let host = whole::<f32>();
    assert_eq!(run(&host, "graphormer-whole-blocks", 31), run(&host, "graphormer-whole-teams", 32));
}

#[test]
fn planted_faults() {
    let run = |name: &str, sanitizer, from, to| {
        let driver: Arc<dyn Driver> = Arc::new(for_teams(name, sanitizer).with_fault(from, to));
        let host = small::<f32>(Version::Clean);
        let x = normals(2 * Network::dimension(&host.network), 1);
        let run = |model: &dyn EnergyFunction| {
            let (mut energy, mut score) = (vec![0.0; 2], vec![0.0; x.len()]);
            model.energy_score(&[0.3, 0.3], &x, &mut energy, &mut score);
            model.failure().map(|()| [energy, score].concat())
        };
        let found = run(&host.on_device(&driver).unwrap()).map_err(|e| e.to_string());
        (run(&host).unwrap(), found)
    };
    // a team that does not wait for the rows of its other blocks
    let said = run(
        "graphormer-race",
        Sanitizer::Thread,
        "  meet(team);\n  if (far == near)",
        "  __syncthreads();\n  if (far == near)",
    );
    assert!(said.1.unwrap_err().contains("data race"));
    // a share of the outputs that ends too early; sums in the place of others; pairs that nobody looks at
    for (name, from, to) in [
        ("graphormer-outputs", "LEAST((m.place.rank + 1) * each, n)}", "LEAST((m.place.rank + 1) * each, n - 2)}"),
        ("graphormer-sums", "(chunk * n + o) * LANES + lane, more", "o * LANES + lane, more"),
        ("graphormer-pairs", "i < ATOMS; i += TEAM) pairs_back", "i < ATOMS - 1; i += TEAM) pairs_back"),
    ] {
        let (want, found) = run(name, Sanitizer::None, from, to);
        let wrong =
            found.is_ok_and(|found| found.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-3 * b.abs().max(1.0)));
        assert!(!wrong, "{name} was not found");
    }
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
    // by teams, and by blocks
    for rows in [1, 9, 200] {
        compare("whole-f32", &whole::<f32>(), driver, rows, 1e-4);
    }
    let card = whole::<f32>().on_device(driver).unwrap();
    let x = normals(200 * EnergyFunction::dimension(&card), 1);
    let (first, mut alone, mut batch) = (&x[..x.len() / 200], vec![0.0], vec![0.0; 200]);
    card.energy(&[0.3], first, &mut alone);
    card.energy(&[0.3; 200], &x, &mut batch);
    assert_eq!(alone[0], batch[0]);
}
