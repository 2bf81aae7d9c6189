//! TarFlow, of a single system and for all peptides.

use super::driver::{Fibres, Sanitizer};
use super::fibres;
use super::fields::normals;
use super::models::networks;
use modejump::density::{Density, Evaluation, Status};
use modejump::device::{Device, Driver};
use modejump::io::model_file;
use modejump::models::layout::Start;
use modejump::models::network::Trainable;
use modejump::models::tarflow::{
    format, Autoregressive, Centroid, Config, Decoding, Jacobi, Options, PeptideConfig, TarFlow, TarFlowConfig,
    TarNetwork,
};
use modejump::models::{Flow, ModelCard, ModelConfig};
use modejump::nn::Real;
use modejump::rng::{Stream, StreamId};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Parameters that make no part idle, the last layers small: e^a must not run away in any of thousands of rows.
fn parameters<R: Real>(network: &TarNetwork) -> Vec<R> {
    let most = 0.6 / network.config().channels as f64;
    let special = |name: &str, _: &[usize]| name.contains("proj_out").then_some(Start::Within(most));
    network.layout().initialise(&mut Stream::new(3, StreamId::Test, 0, 0), special)
}

/// Sizes that fill no pass, no slice and no warp.
pub fn single<R: Real>(tokens: usize, token_size: usize) -> TarFlow<R> {
    of_sizes(TarFlowConfig { tokens, token_size, channels: 15, blocks: 2, layers: 2, heads: 3, expansion: 5 })
}

pub fn of_sizes<R: Real>(network: TarFlowConfig) -> TarFlow<R> {
    let dimension = network.tokens * network.token_size;
    let config = Config { network, units_per_nm: 4.0, centroid: Some(0.5), stereocentres: vec![] };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let card = ModelCard::of_cartesian(config.clone(), dimension);
    TarFlow::new(parameters(&network), config, card, String::new()).unwrap()
}

/// For glycine. [lookahead, norms of queries and keys, adaptive, transition].
pub fn transferable<R: Real>([lookahead, qk_norms, adaptive, transition]: [bool; 4]) -> TarFlow<R> {
    of_glycine(|small| PeptideConfig { layers: 2, channels: 6, lookahead, qk_norms, adaptive, transition, ..small })
}

/// As one that is small, and has all options, with changes.
pub fn of_glycine<R: Real>(changed: impl Fn(PeptideConfig) -> PeptideConfig) -> TarFlow<R> {
    let (_, bytes) = networks::all().into_iter().find(|(kind, _)| *kind == "transferable_tarflow").unwrap();
    let card = model_file::read("glycine", &bytes).unwrap().card;
    let ModelConfig::TransferableTarflow(config) = card.model.clone() else { panic!("{}", card.model.kind()) };
    let network = changed(config.network.clone());
    let config = modejump::models::tarflow::transferable::Config { network, ..config };
    let network = TarNetwork::of_peptide(&config.network, card.topology.as_ref().unwrap()).unwrap();
    let card = ModelCard { model: ModelConfig::TransferableTarflow(config.clone()), ..card };
    TarFlow::of_peptide(parameters(&network), &config, card, String::new()).unwrap()
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// (x or z, ln|∂x/∂z|, log q)
pub type Rows = (Vec<f64>, Vec<f64>, Vec<f64>);

pub fn generated(flow: &dyn Flow, z: &[f64]) -> Rows {
    let n = z.len() / flow.latent_dimension();
    let (mut x, mut log_det, mut log_q) = (vec![0.0; z.len()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    flow.generate(z, &mut x, &mut log_det, &mut log_q).unwrap();
    (x, log_det, log_q.iter().map(|e| e.log_density).collect())
}

pub fn encoded(flow: &dyn Flow, x: &[f64]) -> Rows {
    let n = x.len() / flow.latent_dimension();
    let (mut z, mut log_det, mut log_q) = (vec![0.0; x.len()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    flow.encode(x, &mut z, &mut log_det, &mut log_q).unwrap();
    (z, log_det, log_q.iter().map(|e| e.log_density).collect())
}

/// Samples and densities of n rows against the CPU. Tolerances of x, z and of log q.
pub fn compare<R: Real>(name: &str, flow: &dyn Fn() -> TarFlow<R>, driver: &Arc<dyn Driver>, n: usize, of: (f64, f64)) {
    let (host, card) = (flow(), flow().on_device(driver).unwrap());
    let z = normals(n * host.dimension(), 1);
    let (want, found) = (generated(&host, &z), generated(&card, &z));
    let there = [largest(&want.0, &found.0), largest(&want.1, &found.1).max(largest(&want.2, &found.2))];
    let (want, found) = (encoded(&host, &want.0), encoded(&card, &want.0));
    let back = [largest(&want.0, &found.0), largest(&want.1, &found.1).max(largest(&want.2, &found.2))];
    println!("{name}: x {:.1e}, its log q {:.1e}; z {:.1e}, its log q {:.1e}", there[0], there[1], back[0], back[1]);
    assert!(there[0] < of.0 && back[0] < of.0, "{name}: x and z differ by {:e} and {:e}", there[0], back[0]);
    assert!(there[1] < of.1 && back[1] < of.1, "{name}: log q differs by {:e} and {:e}", there[1], back[1]);
    assert!(largest(&z, &found.0) < 10.0 * of.0, "{name}: not there and back");
}

/// log q and its gradient.
fn with_gradient(density: &dyn Density, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = x.len() / density.dimension();
    let (mut log_q, mut gradient) = (vec![Evaluation::inside(0.0); n], vec![0.0; x.len()]);
    density.log_density_gradient(x, &mut log_q, &mut gradient).unwrap();
    (log_q.iter().map(|e| e.log_density).collect(), gradient)
}

/// log q and gradients of n rows against the CPU, relative to the largest.
pub fn compare_gradients(name: &str, host: &dyn Density, card: &dyn Density, n: usize, tolerance: f64) {
    let x: Vec<f64> = normals(n * host.dimension(), 4).iter().map(|x| 0.2 * x).collect();
    let (want, found) = (with_gradient(host, &x), with_gradient(card, &x));
    let relative = |a: &[f64], b: &[f64]| largest(a, b) / a.iter().fold(1.0, |most: f64, a| most.max(a.abs()));
    let errors = [relative(&want.0, &found.0), relative(&want.1, &found.1)];
    println!("{name}: log q {:.1e}, its gradient {:.1e}", errors[0], errors[1]);
    assert!(errors[0].max(errors[1]) < tolerance, "{name}: log q and its gradient differ by {errors:?}");
}

/// Of gradients, relative.
pub const OF_GRADIENTS: f64 = 1e-12;
pub const OF_SINGLE_GRADIENTS: f64 = 2e-5;

pub const DOUBLE: (f64, f64) = (1e-11, 1e-11);
/// As of the golden data.
pub const SINGLE: (f64, f64) = (2e-5, 1e-4);
pub const ALL: [bool; 4] = [true; 4];

/// The reference's own numbers, by a team of four blocks.
#[test]
fn golden_data() {
    golden(&fibres("tarflow-golden", Sanitizer::None));
}

pub fn golden(driver: &Arc<dyn Driver>) {
    let read = |name: &str| {
        let path = format!("{}/tests/golden/sbg/tarflow_small/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        model_file::read_tensors(&path, &std::fs::read(&path).unwrap()).unwrap().0
    };
    let (network, tensors) = format::of_checkpoint(read("state_f32"), 64).unwrap();
    let parameters: Vec<f32> = TarNetwork::new(network.clone()).unwrap().layout().read(&tensors).unwrap();
    let config = Config { network, units_per_nm: 1.0, centroid: None, stereocentres: vec![] };
    let card = ModelCard::of_cartesian(config.clone(), 66);
    let card = TarFlow::new(parameters, config, card, String::new()).unwrap().on_device(driver).unwrap();
    let io = read("io_f32");
    let get = |name: &str| io[name].data.as_slice();
    let (z, x) = (encoded(&card, get("x")), generated(&card, get("z_in")));
    let of_x = [largest(&z.0, get("fwd_z")), largest(&x.0, get("rev_x"))];
    let of_log_q = [largest(&z.2, get("log_q")), largest(&x.2, get("rev_log_q"))];
    let of_gradient = {
        let (_, gradient) = with_gradient(&card, get("x"));
        gradient.iter().zip(get("proposal_energy_grad")).map(|(g, of_energy)| (g + of_energy).abs()).fold(0.0, f64::max)
    };
    println!("golden: z and x {of_x:?}, log q {of_log_q:?}, its gradient {of_gradient:.1e}");
    assert!(of_gradient < 1e-4, "{of_gradient}");
    assert!(of_x[0].max(of_x[1]) < SINGLE.0 && of_log_q[0].max(of_log_q[1]) < SINGLE.1, "{of_x:?} {of_log_q:?}");
}

/// A team of blocks for one row, with one lane on the way to the data, teams of one block for many; and whatever the
/// batch, the team, the order of warps and lanes, the bits are the same.
#[test]
fn single_system() {
    let fibres = Arc::new(Fibres::new("tarflow-f64", Sanitizer::None));
    let driver: Arc<dyn Driver> = fibres.clone();
    let flow = || single::<f64>(6, 3);
    compare("teams of one", &flow, &driver, 49, DOUBLE);
    let (card, z) = (flow().on_device(&driver).unwrap(), normals(18 * 49, 1));
    let whole = generated(&card, &z);
    let back = encoded(&card, &whole.0);
    fibres.seed.store(2, Ordering::Relaxed);
    for n in [1, 3] {
        let of = |all: &Rows| (all.0[..18 * n].to_vec(), all.1[..n].to_vec(), all.2[..n].to_vec());
        assert!(generated(&card, &z[..18 * n]) == of(&whole), "{n} samples");
        assert!(encoded(&card, &whole.0[..18 * n]) == of(&back), "{n} densities");
    }
    // a card with fewer blocks than heads
    let little: Arc<dyn Driver> = Arc::new(Fibres::new("tarflow-two", Sanitizer::None).with_multiprocessors(1));
    let (x, log_det, _) = generated(&flow().on_device(&little).unwrap(), &z[..18]);
    assert!(x == whole.0[..18] && log_det == whole.1[..1], "two blocks");
    // a team's tokens in three parts
    compare("one row", &|| single::<f64>(20, 3), &driver, 1, DOUBLE);
}

/// A team for one row, teams of one block for more than the card has blocks, and blocks that take one row after the
/// other; the bits are the same.
#[test]
fn gradients_of_a_single_system() {
    let fibres = Arc::new(Fibres::new("tarflow-gradient", Sanitizer::None));
    let driver: Arc<dyn Driver> = fibres.clone();
    let (host, card) = (single::<f64>(6, 3), single::<f64>(6, 3).on_device(&driver).unwrap());
    compare_gradients("a team", &host, &card, 1, OF_GRADIENTS);
    compare_gradients("teams of one", &host, &card, 9, OF_GRADIENTS);
    let x = normals(18 * 9, 5);
    let whole = with_gradient(&card, &x);
    fibres.seed.store(2, Ordering::Relaxed);
    for n in [1, 3] {
        assert!(with_gradient(&card, &x[..18 * n]) == (whole.0[..n].to_vec(), whole.1[..18 * n].to_vec()), "{n} rows");
    }
    // tokens in two stripes of a tile and several groups; one whose network sees nothing
    for tokens in [38, 1] {
        let of = || single::<f64>(tokens, 3);
        compare_gradients(&format!("{tokens} tokens"), &of(), &of().on_device(&driver).unwrap(), 1, OF_GRADIENTS);
    }
}

#[test]
fn for_all_peptides() {
    let driver = fibres("tarflow-peptides", Sanitizer::None);
    for variant in [[false, true, false, false], [true, false, true, false]] {
        compare(&format!("{variant:?}"), &|| transferable::<f64>(variant), &driver, 2, DOUBLE);
        let card = transferable::<f64>(variant).on_device(&driver).unwrap();
        compare_gradients(&format!("{variant:?}"), &transferable::<f64>(variant), &card, 2, OF_GRADIENTS);
    }
    let card = transferable::<f64>(ALL).on_device(&driver).unwrap();
    compare_gradients("all", &transferable::<f64>(ALL), &card, 2, OF_GRADIENTS);
}

#[test]
fn what_the_host_does() {
    let driver = fibres("tarflow-options", Sanitizer::None);
    let (host, card) = (single::<f64>(4, 3), single::<f64>(4, 3).on_device(&driver).unwrap());
    let (mut x, d) = (normals(2 * host.dimension(), 2), host.dimension());
    let options = Options { centroid: Centroid::Chi3, ..Options::default() };
    let (radial, on_card) = (host.with_options(options).unwrap(), card.with_options(options).unwrap());
    assert_eq!(on_card.exactness(), radial.exactness());
    let (want, found) = (encoded(&radial, &x), encoded(on_card.flow().unwrap(), &x));
    assert!(largest(&want.2, &found.2) < 1e-11 && largest(&want.2, &encoded(&card, &x).2) > 0.1);
    let density: &dyn Density = on_card.as_ref();
    compare_gradients("radial", &radial, density, 2, OF_GRADIENTS);
    x[d] = f64::NAN;
    let mut log_q = [Evaluation::inside(0.0); 2];
    card.log_density(&x, &mut log_q).unwrap();
    assert!(log_q[0].is_inside() && log_q[1].status == Status::NonFinite);
    let (beside, gradient) = with_gradient(&card, &x);
    assert!((beside[0] - log_q[0].log_density).abs() < 1e-11 && beside[1] == f64::NEG_INFINITY);
    assert!(gradient[0] != 0.0 && gradient[d..].iter().all(|g| *g == 0.0));

    let by_iteration = Options { decoding: Decoding::Jacobi(Jacobi::default()), ..Options::default() };
    let said =
        [card.with_options(by_iteration).err(), host.with_options(by_iteration).unwrap().on_device(&driver).err()];
    let small: Arc<dyn Driver> = Arc::new(Fibres::new("tarflow-little", Sanitizer::None).with_shared_memory(30 << 10));
    for (said, word) in said.into_iter().chain([host.on_device(&small).err()]).zip(["iterative", "iterative", "30 KiB"])
    {
        let said = said.expect("an error").to_string();
        assert!(said.contains(word) && said.contains("device cpu"), "{said}");
    }
}

#[test]
fn under_the_address_sanitizer() {
    let driver = fibres("tarflow-address", Sanitizer::Address);
    compare("address", &|| transferable::<f32>(ALL), &driver, 2, SINGLE);
    let card = transferable::<f32>(ALL).on_device(&driver).unwrap();
    compare_gradients("address", &transferable::<f32>(ALL), &card, 2, OF_SINGLE_GRADIENTS);
}

#[test]
fn under_the_thread_sanitizer() {
    let driver = fibres("tarflow-thread", Sanitizer::Thread);
    compare("thread", &|| single::<f32>(6, 1), &driver, 1, SINGLE);
    let card = single::<f32>(6, 1).on_device(&driver).unwrap();
    compare_gradients("thread", &single::<f32>(6, 1), &card, 1, OF_SINGLE_GRADIENTS);
}

/// A TarFlow whose kernels have a planted fault.
fn faulty(
    name: &str,
    sanitizer: Sanitizer,
    from: &'static str,
    to: &'static str,
) -> Result<impl Density + Flow, String> {
    faulty_in("tarflow", name, sanitizer, (from, to))
}

/// One program of which has it.
fn faulty_in(
    program: &'static str,
    name: &str,
    sanitizer: Sanitizer,
    (from, to): (&'static str, &'static str),
) -> Result<impl Density + Flow, String> {
    let fibres = Fibres::new(name, sanitizer).with_fault(from, to).only_in(program);
    let driver: Arc<dyn Driver> = Arc::new(fibres);
    single::<f64>(4, 3).on_device(&driver).map_err(|e| e.to_string())
}

/// What a kernel with a planted fault does to a row on its way to the prior: `Err` with what the machine or a sanitizer
/// said, or log q.
fn with_fault(name: &str, sanitizer: Sanitizer, from: &'static str, to: &'static str) -> Result<f64, String> {
    let card = faulty(name, sanitizer, from, to)?;
    let mut log_q = [Evaluation::inside(0.0)];
    card.log_density(&normals(12, 1), &mut log_q).map_err(|e| e.to_string())?;
    Ok(log_q[0].log_density)
}

#[test]
fn a_block_that_does_not_wait_for_its_team_is_a_data_race() {
    let (from, to) = ("  meet(team);\n  attention(", "  __syncthreads();\n  attention(");
    let said = with_fault("tarflow-alone", Sanitizer::Thread, from, to).expect_err("a data race");
    assert!(said.contains("data race"), "{said}");
}

#[test]
fn a_block_that_does_not_come_to_its_team_is_found() {
    let (from, to) = ("if (a.encode) meet(team);", "if (a.encode && team.rank > 0) meet(team);");
    let said = with_fault("tarflow-absent", Sanitizer::None, from, to).expect_err("a fault");
    assert!(said.contains("wait for each other in vain"), "{said}");
}

#[test]
fn a_token_that_does_not_see_itself_is_found() {
    let (from, to) = ("seen = token + 1,", "seen = token > 0 ? token : 1,");
    let found = with_fault("tarflow-blind", Sanitizer::None, from, to).unwrap();
    let want = encoded(&single::<f64>(4, 3), &normals(12, 1)).2[0];
    assert!((found - want).abs() > 1e-6, "{found} {want}");
}

/// Weights and keys that a single sample's team asked for and did not wait for.
#[test]
fn what_is_not_waited_for_is_found() {
    for (name, from, to) in [
        ("tarflow-weights", "    if (ALONE) ARRIVED();\n#pragma unroll", "#pragma unroll"),
        ("tarflow-keys", "    ARRIVED();\n    __syncthreads();", "    __syncthreads();"),
    ] {
        let card = faulty(name, Sanitizer::None, from, to).unwrap();
        let (mut x, mut log_det, mut log_q) = ([0.0; 12], [0.0], [Evaluation::inside(0.0)]);
        card.generate(&normals(12, 1), &mut x, &mut log_det, &mut log_q).unwrap();
        let want = generated(&single::<f64>(4, 3), &normals(12, 1)).0;
        assert!(x.iter().zip(&want).any(|(x, want)| !x.is_finite() || (x - want).abs() > 1e-6), "{name}: {x:?}");
    }
}

/// Blocks that do not wait for what others of their team have normalised, and weights that are not waited for.
#[test]
fn faults_of_gradients_are_found() {
    let x = normals(12, 1);
    let gradient = |name, sanitizer, from, to| {
        let card = faulty_in("tarflow_gradient", name, sanitizer, (from, to)).unwrap();
        let (mut log_q, mut gradient) = ([Evaluation::inside(0.0)], vec![0.0; 12]);
        card.log_density_gradient(&x, &mut log_q, &mut gradient).map(|()| gradient)
    };
    let (from, to) = ("threadIdx.x % GROUP);\n  meet(w.team);", "threadIdx.x % GROUP);\n  __syncthreads();");
    let said = gradient("tarflow-gradient-alone", Sanitizer::Thread, from, to).expect_err("a data race").to_string();
    assert!(said.contains("data race"), "{said}");
    let (from, to) = ("      ARRIVED();\n      __syncthreads();", "      __syncthreads();");
    let found = gradient("tarflow-gradient-weights", Sanitizer::None, from, to).unwrap();
    let want = with_gradient(&single::<f64>(4, 3), &x).1;
    assert!(found.iter().zip(&want).any(|(g, want)| !g.is_finite() || (g - want).abs() > 1e-6), "{found:?}");
}

/// Of alanine dipeptide as published, with a token for each coordinate.
fn whole() -> TarFlow<f32> {
    let network =
        TarFlowConfig { tokens: 66, token_size: 1, channels: 256, blocks: 4, layers: 4, heads: 4, expansion: 4 };
    let config = Config { network, units_per_nm: 1.0, centroid: None, stereocentres: vec![] };
    let network = TarNetwork::new(config.network.clone()).unwrap();
    let card = ModelCard::of_cartesian(config.clone(), 66);
    TarFlow::new(parameters(&network), config, card, String::new()).unwrap()
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    golden(driver);
    for n in [1, 9, 300, 5000] {
        compare("small", &|| single::<f64>(20, 3), driver, n, DOUBLE);
        compare("peptide", &|| transferable::<f64>(ALL), driver, n, DOUBLE);
        compare("peptide, f32", &|| transferable::<f32>(ALL), driver, n, SINGLE);
        let card = transferable::<f64>(ALL).on_device(driver).unwrap();
        compare_gradients(
            "small",
            &single::<f64>(20, 3),
            &single::<f64>(20, 3).on_device(driver).unwrap(),
            n,
            OF_GRADIENTS,
        );
        compare_gradients("peptide", &transferable::<f64>(ALL), &card, n, OF_GRADIENTS);
        let card = transferable::<f32>(ALL).on_device(driver).unwrap();
        compare_gradients("peptide, f32", &transferable::<f32>(ALL), &card, n, OF_SINGLE_GRADIENTS);
    }
    let card = whole().on_device(driver).unwrap();
    for n in [1, 40] {
        compare("whole", &whole, driver, n, (1e-4, 1e-3));
        compare_gradients("whole", &whole(), &card, n, 1e-4);
    }
}
