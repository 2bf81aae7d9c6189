//! The compiled kernels against the Rust code, on small networks with odd sizes and on those that are published.

use super::super::{
    coupling, egnn_flow, fields, graphormer_ebm, gvp_ebm, gvp_flow, mlp_ebm, paths, tarflow, tensor, weights,
};
use super::{compiler, Ptx};
use modejump::density::Density;
use modejump::device::Driver;
use modejump::models::continuous::Interpolant;
use modejump::models::graphormer_ebm::Version;
use modejump::models::tarflow::{PeptideConfig, TarFlowConfig};
use modejump::ode::Method;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

/// The oldest, one whose copies go on by themselves, and one for which the compiler has another optimiser: for TarFlows,
/// whose copies and teams differ between them.
const EACH: [&str; 3] = ["75", "90", "120"];
/// The oldest is compiled as the second is.
const BOTH: [&str; 2] = ["90", "120"];
/// For f64, as on every card.
const ONE: [&str; 1] = ["90"];
const NEWEST: [&str; 1] = ["120"];

/// Architectures to run instead, from the environment: `MODEJUMP_PTX="80 100"`.
fn asked() -> Option<Vec<&'static str>> {
    let asked = std::env::var("MODEJUMP_PTX").ok()?;
    Some(Box::leak(asked.into_boxed_str()).split_whitespace().collect())
}

/// A check on the machine for each architecture.
fn on(test: &str, architectures: &[&'static str], of: impl Fn(Ptx) -> Ptx, check: impl Fn(&Arc<dyn Driver>)) {
    let asked = asked();
    for architecture in asked.as_deref().unwrap_or(architectures).iter().filter(|_| compiler().is_some()) {
        let ptx = Arc::new(of(Ptx::new(architecture)));
        let start = Instant::now();
        check(&(ptx.clone() as Arc<dyn Driver>));
        let (steps, seconds) = (ptx.steps.load(Ordering::Relaxed) as f64 / 1e6, start.elapsed().as_secs_f64());
        println!("{test}, sm_{architecture}: {steps:.0} million instructions, {seconds:.1} s");
    }
}

fn plain(ptx: Ptx) -> Ptx {
    ptx
}

#[test]
fn weights_of_samples() {
    on("weights", &BOTH, plain, |driver| [5, 4500, 30_000].into_iter().for_each(|n| weights::compare(driver, n)));
}

#[test]
fn products_by_tensor_cores() {
    on("products", &BOTH, plain, tensor::check);
}

#[test]
fn energies_of_perceptrons() {
    on("mlp_ebm", &BOTH, plain, |driver| {
        mlp_ebm::of_molecule::<f32>(driver, Interpolant::Linear, &[3, 19], 1e-4);
        mlp_ebm::of_plane::<f32>(driver, &[9], 1e-4);
        mlp_ebm::shipped::<f32>(driver, 9, 1e-4);
    });
    on("mlp_ebm by tensor cores", &BOTH, Ptx::with_tensor_cores, |driver| mlp_ebm::shipped::<f32>(driver, 9, 1e-4));
    on("mlp_ebm, f64", &ONE, plain, |driver| {
        mlp_ebm::of_molecule::<f64>(driver, Interpolant::Trigonometric, &[3], 1e-11);
    });
}

#[test]
fn coupling_flows() {
    on("coupling", &BOTH, plain, |driver| {
        coupling::compare("everything", &coupling::everything::<f32>, driver, 9, coupling::SINGLE);
        let ala2 = || coupling::shipped("models/ala2/model.safetensors");
        coupling::compare::<f32>("ala2", &ala2, driver, 9, coupling::SINGLE);
    });
    on("coupling, f64", &ONE, plain, |driver| {
        coupling::compare("everything", &coupling::everything::<f64>, driver, 9, coupling::DOUBLE);
    });
    let few = |ptx: Ptx| ptx.with_multiprocessors(4);
    on("coupling, few rows", &ONE, few, |driver| {
        coupling::compare("everything", &coupling::everything::<f32>, driver, 4, coupling::SINGLE);
    });
}

#[test]
fn fields_of_geometric_perceptrons() {
    on("gvp_flow", &BOTH, plain, |driver| gvp_flow::compare("gvp", &gvp_flow::small::<f32>(), driver, 2, 2e-5));
    on("gvp_flow by tensor cores", &BOTH, Ptx::with_tensor_cores, |driver| {
        gvp_flow::compare("gvp", &gvp_flow::small::<f32>(), driver, 1, 2e-5);
    });
    on("gvp_flow, f64", &ONE, plain, |driver| gvp_flow::compare("gvp", &gvp_flow::small::<f64>(), driver, 1, 1e-12));
    on("gvp_flow, whole", &NEWEST, plain, |driver| {
        gvp_flow::compare("gvp", &gvp_flow::whole::<f32>(), driver, 1, 5e-5)
    });
}

#[test]
fn energies_of_geometric_perceptrons() {
    on("gvp_ebm", &BOTH, plain, |driver| {
        gvp_ebm::compare::<f32>("gvp_ebm", gvp_flow::small_config(), driver, 2, 1e-4);
    });
    on("gvp_ebm, f64", &ONE, plain, |driver| {
        gvp_ebm::compare::<f64>("gvp_ebm", gvp_flow::small_config(), driver, 1, 1e-11);
    });
    on("gvp_ebm, whole", &ONE, plain, |driver| {
        gvp_ebm::compare::<f32>("gvp_ebm", gvp_flow::whole_config(), driver, 1, 1e-4);
    });
}

#[test]
fn equivariant_fields() {
    on("egnn_flow", &BOTH, plain, |driver| {
        let host = egnn_flow::small::<f32>();
        fields::compare("egnn", &host, &host.on_device(driver).unwrap(), 2, 2e-5);
    });
    on("egnn_flow by tensor cores", &BOTH, Ptx::with_tensor_cores, |driver| {
        let host = egnn_flow::small::<f32>();
        fields::compare("egnn", &host, &host.on_device(driver).unwrap(), 1, 2e-5);
    });
    on("egnn_flow, f64", &ONE, plain, |driver| {
        let host = egnn_flow::small::<f64>();
        fields::compare("egnn", &host, &host.on_device(driver).unwrap(), 1, 1e-12);
    });
    on("egnn_flow, whole", &NEWEST, plain, |driver| {
        let host = egnn_flow::whole::<f32>();
        fields::compare("egnn", &host, &host.on_device(driver).unwrap(), 1, 5e-5);
    });
}

/// By blocks, and by teams of them.
#[test]
fn energies_of_graphormers() {
    let teams = |ptx: Ptx| ptx.with_multiprocessors(5);
    on("graphormer_ebm", &BOTH, plain, |driver| {
        graphormer_ebm::compare("clean", &graphormer_ebm::small::<f32>(Version::Clean), driver, 2, 1e-4);
    });
    on("graphormer_ebm by teams", &BOTH, teams, |driver| {
        graphormer_ebm::compare("teams", &graphormer_ebm::small::<f32>(Version::Boltznce), driver, 1, 1e-4);
    });
    on("graphormer_ebm by tensor cores", &BOTH, Ptx::with_tensor_cores, |driver| {
        graphormer_ebm::compare("tensor", &graphormer_ebm::small::<f32>(Version::Boltznce), driver, 1, 1e-4);
    });
    on("graphormer_ebm, f64", &ONE, teams, |driver| {
        graphormer_ebm::compare("f64", &graphormer_ebm::small::<f64>(Version::Boltznce), driver, 1, 1e-11);
    });
    on(
        "graphormer_ebm by teams, whole",
        &ONE,
        |ptx| ptx.with_multiprocessors(32),
        |driver| {
            graphormer_ebm::compare("whole", &graphormer_ebm::whole::<f32>(), driver, 1, 1e-4);
        },
    );
    on("graphormer_ebm, whole", &NEWEST, plain, |driver| {
        graphormer_ebm::compare("whole", &graphormer_ebm::whole::<f32>(), driver, 1, 1e-4);
    });
}

/// A single sample, which has a variant of its own, and more.
#[test]
fn tarflows() {
    on("tarflow", &EACH, plain, |driver| {
        for n in [1, 5] {
            tarflow::compare("small", &|| tarflow::single::<f32>(6, 1), driver, n, tarflow::SINGLE);
        }
    });
    on("tarflow, f64", &ONE, plain, |driver| {
        tarflow::compare("f64", &|| tarflow::single::<f64>(4, 3), driver, 1, tarflow::DOUBLE);
    });
}

/// The variant for a single sample, teams of blocks and blocks by themselves round alike: exactness asks for the same log q
/// of a configuration wherever it comes from.
#[test]
fn bits_of_a_sample_are_those_of_every_batch() {
    on("tarflow, bits", &EACH, plain, |driver| {
        let card = tarflow::of_sizes::<f32>(tarflow_of_atoms()).on_device(driver).unwrap();
        let z = fields::normals(9 * card.dimension(), 1);
        let whole = tarflow::generated(&card, &z);
        let back = tarflow::encoded(&card, &whole.0);
        for n in [1, 3] {
            let d = n * card.dimension();
            let of = |all: &tarflow::Rows| (all.0[..d].to_vec(), all.1[..n].to_vec(), all.2[..n].to_vec());
            assert!(tarflow::generated(&card, &z[..d]) == of(&whole), "{n} samples");
            assert!(tarflow::encoded(&card, &whole.0[..d]) == of(&back), "{n} densities");
        }
    });
}

/// Of sizes at which compilers unroll.
fn tarflow_of_atoms() -> TarFlowConfig {
    TarFlowConfig { tokens: 4, token_size: 3, channels: 64, blocks: 2, layers: 1, heads: 4, expansion: 4 }
}

#[test]
fn gradients_of_tarflows() {
    on("tarflow_gradient", &EACH, plain, |driver| {
        let of = || tarflow::single::<f32>(6, 1);
        let card = of().on_device(driver).unwrap();
        for rows in [1, 5] {
            tarflow::compare_gradients("small", &of(), &card, rows, tarflow::OF_SINGLE_GRADIENTS);
        }
    });
    on("tarflow_gradient, f64", &ONE, plain, |driver| {
        let card = tarflow::single::<f64>(4, 3).on_device(driver).unwrap();
        tarflow::compare_gradients("f64", &tarflow::single::<f64>(4, 3), &card, 1, tarflow::OF_GRADIENTS);
    });
}

/// With the layers of the published one, for alanine dipeptide, and few tokens.
#[test]
fn wide_tarflows() {
    let sizes = TarFlowConfig { tokens: 6, token_size: 1, channels: 256, blocks: 1, layers: 4, heads: 4, expansion: 4 };
    on("wide tarflow", &EACH, plain, |driver| {
        let of = || tarflow::of_sizes::<f32>(sizes.clone());
        tarflow::compare("wide", &of, driver, 1, tarflow::SINGLE);
        let card = of().on_device(driver).unwrap();
        tarflow::compare_gradients("wide", &of(), &card, 1, tarflow::OF_SINGLE_GRADIENTS);
    });
}

#[test]
fn tarflows_for_all_peptides() {
    on("transferable", &EACH, plain, |driver| {
        let of = || tarflow::transferable::<f32>(tarflow::ALL);
        for n in [1, 5] {
            tarflow::compare("all options", &of, driver, n, tarflow::SINGLE);
        }
        let card = of().on_device(driver).unwrap();
        tarflow::compare_gradients("all options", &of(), &card, 1, tarflow::OF_SINGLE_GRADIENTS);
    });
}

/// With layers as wide as Prose's, but less of them.
#[test]
fn wide_tarflows_for_all_peptides() {
    on("wide transferable", &ONE, plain, |driver| {
        let sizes = |small: PeptideConfig| PeptideConfig {
            channels: 384,
            blocks: 1,
            layers: 2,
            heads: 6,
            expansion: 4,
            orders: small.orders[..1].to_vec(),
            ..small
        };
        tarflow::compare("wide", &|| tarflow::of_glycine::<f32>(sizes), driver, 1, tarflow::SINGLE);
    });
}

/// By teams of blocks, and by blocks that take a sample each.
#[test]
fn paths_of_samples() {
    on("paths, gvp", &BOTH, plain, |driver| {
        for (solver, n) in [(paths::ADAPTIVE, 1), (Method::Rk4 { steps: 1 }, 5)] {
            let config = paths::velocity(solver);
            let (host, card) = (paths::gvp::<f32>(&config), paths::gvp::<f32>(&config).on_device(driver).unwrap());
            paths::compare("gvp", &host, &card, n, paths::SINGLE);
        }
    });
    on("paths, egnn", &BOTH, plain, |driver| {
        let config = paths::velocity(Method::Euler { steps: 2 });
        let (host, card) = (paths::egnn::<f32>(&config), paths::egnn::<f32>(&config).on_device(driver).unwrap());
        paths::compare("egnn", &host, &card, 1, paths::SINGLE);
    });
    on("paths, f64", &ONE, plain, |driver| {
        let config = paths::velocity(paths::ADAPTIVE);
        let (host, card) = (paths::gvp::<f64>(&config), paths::gvp::<f64>(&config).on_device(driver).unwrap());
        paths::compare("gvp", &host, &card, 1, paths::DOUBLE);
    });
}
