//! Coupling flows.

use super::driver::{Fibres, Sanitizer};
use super::fibres;
use modejump::coordinates::chirality::Stereocentre;
use modejump::coordinates::CoordinatesConfig;
use modejump::density::{Density, Evaluation, Status};
use modejump::device::{Device, Driver};
use modejump::io::model_file;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, CouplingOnDevice, Ends, Features, LayerConfig};
use modejump::models::{Flow, ModelCard};
use modejump::nn::{Activation, Real};
use modejump::rng::{Stream, StreamId};
use std::sync::Arc;

pub fn shipped<R: Real>(path: &str) -> CouplingFlow<R> {
    let bytes = std::fs::read(path).unwrap();
    CouplingFlow::from_file(&model_file::read(path, &bytes).unwrap()).unwrap()
}

fn features(periodic: &[usize], plain: &[usize]) -> Features {
    Features { periodic: periodic.to_vec(), harmonics: 2, plain: plain.to_vec() }
}

/// Seven atoms in radians with a constraint, Cartesian rows and a hand; the layers and options that the shipped flows
/// lack.
pub fn everything<R: Real>() -> CouplingFlow<R> {
    let coordinates = CoordinatesConfig::Internal {
        frame: [0, 1, 2],
        rows: vec![[3, 2, 1, 0], [4, 1, 2, 0], [5, 3, 2, 1], [6, 3, 2, 5]],
        normalize_angles: false,
        constraints: vec![(3, 6, 0.11)],
        stereocentres: vec![Stereocentre { centre: 3, neighbours: [2, 5, 6], positive: true }],
        cartesian: vec![1],
    };
    // u: five bonds, five angles, four torsions; row 1 has its components in the places 3, 7 and 11
    let bounded: Vec<usize> = (0..14).filter(|i| ![0, 3, 7].contains(i)).collect();
    let (low, high) = bounded
        .iter()
        .map(|&i| {
            if i < 5 {
                (0.12, 0.16)
            } else if i < 10 {
                (1.7, 2.1)
            } else {
                (-3.1, 3.1)
            }
        })
        .unzip();
    let free = |transformed: &[usize], features| LayerConfig::Spline {
        transformed: transformed.to_vec(),
        features,
        ends: Ends::Free,
        bins: 5,
        interval: [0.0, 1.0],
        hidden: vec![13, 10],
        activation: Activation::Relu,
        identity_init: false,
    };
    let affine = |transformed: &[usize], plain: &[usize], preserve_volume| LayerConfig::Affine {
        transformed: transformed.to_vec(),
        features: features(&[12], plain),
        hidden: vec![8],
        activation: Activation::Silu,
        scale_activation: Some(Activation::Tanh),
        preserve_volume,
    };
    let layers = vec![
        affine(&[0, 3, 7], &[1, 2, 8], true),
        affine(&[3, 7], &[0], false),
        free(&[4, 5, 6, 10], features(&[12, 13], &[9, 0])),
        free(&[9, 12], features(&[10], &[4])),
        LayerConfig::TruncatedNormal {
            transformed: vec![1, 2, 8],
            mean: vec![0.4, 0.6, 0.5],
            sd: vec![0.3, 0.2, 9.0],
            lower: 0.0,
            upper: 1.0,
        },
        LayerConfig::Shift { transformed: vec![10, 12, 13] },
        LayerConfig::Uniform { transformed: bounded.clone(), low, high },
        LayerConfig::Whiten {
            transformed: vec![0, 3, 7],
            mean: vec![0.14, 0.05, 0.06],
            matrix: vec![0.004, 0.0, 0.0, 0.001, 0.004, 0.0, -0.002, 0.001, 0.003],
        },
    ];
    let card = ModelCard::of_coupling(CouplingConfig { uniform: bounded, layers }, coordinates);
    let mut flow = CouplingFlow::new(card).unwrap();
    flow.initialise(1);
    let mut stream = Stream::new(2, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p += R::from_f64(0.2 * stream.normal()));
    flow
}

/// Two Cartesian coordinates.
fn plane<R: Real>() -> CouplingFlow<R> {
    shipped("models/double-well/generator.safetensors")
}

fn streams(row: usize) -> Stream {
    Stream::new(7, StreamId::Test, 3, row as u32)
}

struct Samples {
    x: Vec<f64>,
    log_q: Vec<Evaluation>,
}

fn sample(density: &dyn Density, n: usize) -> Samples {
    let mut samples = Samples { x: vec![0.0; n * density.dimension()], log_q: vec![Evaluation::inside(0.0); n] };
    density.sample(&streams, &mut samples.x, &mut samples.log_q).unwrap();
    samples
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn assert_same(what: &str, a: &[Evaluation], b: &[Evaluation], tolerance: f64) {
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.status, b.status, "{what}: row {row}");
        let error = (a.log_density - b.log_density).abs() / a.log_density.abs().max(1.0);
        assert!(!a.is_inside() || error < tolerance, "{what}: row {row}: {} and {}", a.log_density, b.log_density);
    }
}

/// log q at x, and its gradients in the place of x.
fn gradients(density: &dyn Density, x: &[f64]) -> Samples {
    let log_q = vec![Evaluation::inside(0.0); x.len() / density.dimension()];
    let mut found = Samples { x: vec![f64::NAN; x.len()], log_q };
    density.log_density_gradient(x, &mut found.log_q, &mut found.x).unwrap();
    found
}

/// Cotangents of latent points from some of x and of ln|∂x/∂z|.
fn pulled_back(flow: &(impl Flow + Density), z: &[f64]) -> Vec<f64> {
    let n = z.len() / flow.latent_dimension();
    let mut stream = Stream::new(8, StreamId::Test, 0, 0);
    let gx: Vec<f64> = (0..n * flow.dimension()).map(|_| stream.normal()).collect();
    let g_log_det: Vec<f64> = (0..n).map(|row| (row as f64).cos()).collect();
    let mut gz = vec![f64::NAN; z.len()];
    flow.pull_back(z, &gx, &g_log_det, &mut gz).unwrap();
    gz
}

/// The largest difference of two gradients of a row, as a part of the row's largest component. Of a thousand rows one
/// does not count: what f32 takes to the other side of a knot has another second derivative there.
fn worst_gradient(want: &[f64], found: &[f64], dimension: usize) -> f64 {
    let rows = want.chunks(dimension).zip(found.chunks(dimension));
    let mut errors: Vec<f64> = rows
        .map(|(want, found)| {
            assert!(found.iter().all(|g| g.is_finite()), "{found:?}");
            largest(want, found) / want.iter().fold(f64::MIN_POSITIVE, |most, g| most.max(g.abs()))
        })
        .collect();
    errors.sort_by(|a, b| b.total_cmp(a));
    errors[errors.len() / 1000]
}

/// Samples, densities and their gradients, latent points, and rows that must be refused, against the CPU. Tolerances of
/// x, of log q and, relative, of gradients.
pub fn compare<R: Real>(
    name: &str,
    flow: &dyn Fn() -> CouplingFlow<R>,
    driver: &Arc<dyn Driver>,
    n: usize,
    tolerance: (f64, f64, f64),
) {
    let (host, card) = (flow(), flow().on_device(driver).unwrap());
    let (want, found) = (sample(&host, n), sample(&card, n));
    assert!(want.log_q.iter().filter(|e| e.is_inside()).count() * 3 > n, "{name}: few samples are inside");
    assert_same(name, &want.log_q, &found.log_q, tolerance.1);
    let inside: Vec<usize> = (0..n).filter(|&row| want.log_q[row].is_inside()).collect();
    let d = host.dimension();
    for &row in &inside {
        let error = largest(&want.x[row * d..][..d], &found.x[row * d..][..d]);
        assert!(error < tolerance.0, "{name}: row {row}: x differs by {error:e}");
    }
    // densities of the samples, and of what no sample is
    let mut x = want.x.clone();
    x[0] = f64::NAN;
    if d > 3 {
        (0..d).step_by(3).for_each(|i| x[d + i] = -x[d + i]); // the mirror image
        x[2 * d..][..3].copy_from_slice(&[9.0, 9.0, 9.0]); // far away
        let second: Vec<f64> = x[3 * d..][3..6].to_vec();
        x[3 * d..][..3].copy_from_slice(&second); // on another atom
    }
    let (mut a, mut b) = (vec![Evaluation::inside(0.0); n], vec![Evaluation::inside(0.0); n]);
    host.log_density(&x, &mut a).unwrap();
    card.log_density(&x, &mut b).unwrap();
    assert_same(name, &a, &b, tolerance.1);
    assert_eq!(b[0].status, Status::NonFinite);
    let (by_host, by_card) = (gradients(&host, &x), gradients(&card, &x));
    assert_same(name, &by_host.log_q, &by_card.log_q, tolerance.1);
    let error = worst_gradient(&by_host.x, &by_card.x, d);
    assert!(error < tolerance.2, "{name}: gradients differ by {error:e}");
    // and there and back through latent points, and gradients by them
    let (mut z, mut log_det, mut back) = (vec![0.0; n * card.latent_dimension()], vec![0.0; n], vec![0.0; n * d]);
    card.encode(&found.x, &mut z, &mut log_det, &mut a).unwrap();
    card.generate(&z, &mut back, &mut log_det, &mut b).unwrap();
    assert_same(name, &a, &b, 1e3 * tolerance.1);
    let (by_host, by_card) = (pulled_back(&host, &z), pulled_back(&card, &z));
    let pulled = worst_gradient(&by_host, &by_card, host.latent_dimension());
    assert!(pulled < tolerance.2, "{name}: gradients by latent points differ by {pulled:e}");
    println!("{name}: {n} rows, {} inside, gradients within {error:.0e} and {pulled:.0e}", inside.len());
}

/// Tolerances of `compare`.
pub const DOUBLE: (f64, f64, f64) = (1e-11, 1e-9, 1e-11);
pub const SINGLE: (f64, f64, f64) = (3e-5, 3e-3, 1e-3);
const SINGLE_ON_A_GPU: (f64, f64, f64) = (3e-4, 1e-2, 1e-2);

fn double(name: &str, flow: &dyn Fn() -> CouplingFlow<f64>, n: usize) {
    compare(name, flow, &fibres(&format!("{name}-f64"), Sanitizer::None), n, DOUBLE);
}

fn single(name: &str, flow: &dyn Fn() -> CouplingFlow<f32>, n: usize) {
    compare(name, flow, &fibres(&format!("{name}-f32"), Sanitizer::None), n, SINGLE);
}

#[test]
fn alanine_dipeptide() {
    double("ala2", &|| shipped("models/ala2/model.safetensors"), 35);
    single("ala2", &|| shipped("models/ala2/model.safetensors"), 35);
}

#[test]
fn alanine_dipeptide_with_constraints() {
    double("ala2-hbonds", &|| shipped("models/ala2/model-hbonds.safetensors"), 9);
}

#[test]
fn every_layer_and_option() {
    double("everything", &everything, 40);
    single("everything", &everything, 40);
}

/// Rows that have a block each.
#[test]
fn few_rows() {
    let four = |name, sanitizer| -> Arc<dyn Driver> { Arc::new(Fibres::new(name, sanitizer).with_multiprocessors(4)) };
    let (ala2, f32_too) = (|| shipped("models/ala2/model.safetensors"), SINGLE);
    compare::<f64>("ala2", &ala2, &four("ala2-few", Sanitizer::None), 4, DOUBLE);
    for (name, sanitizer) in
        [("few", Sanitizer::None), ("few-address", Sanitizer::Address), ("few-thread", Sanitizer::Thread)]
    {
        compare("everything", &everything::<f32>, &four(name, sanitizer), 4, f32_too);
    }
}

/// Of variance τ = 1/2, with auxiliary coordinates.
#[test]
fn at_another_temperature() {
    double("steerable", &|| shipped::<f64>("models/double-well/steerable.safetensors").at_variance(0.5), 20);
}

#[test]
fn two_dimensions() {
    double("plane", &plane, 33);
}

/// The same on a card, and in batches that fill it.
#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    compare::<f64>("ala2", &|| shipped("models/ala2/model.safetensors"), driver, 5000, DOUBLE);
    compare::<f64>("ala2-hbonds", &|| shipped("models/ala2/model-hbonds.safetensors"), driver, 77, DOUBLE);
    compare::<f64>("everything", &everything, driver, 5000, DOUBLE);
    compare::<f64>("everything", &everything, driver, 500, DOUBLE);
    compare::<f64>("plane", &plane, driver, 5000, DOUBLE);
    compare::<f32>("ala2", &|| shipped("models/ala2/model.safetensors"), driver, 5000, SINGLE_ON_A_GPU);
    compare::<f32>("everything", &everything, driver, 5000, SINGLE_ON_A_GPU);
}

/// Whatever the order of warps and lanes, the tile, or the batch, the bits are the same.
#[test]
fn results_do_not_depend_on_the_schedule() {
    let fibres = Arc::new(Fibres::new("schedule", Sanitizer::None));
    let driver: Arc<dyn Driver> = fibres.clone();
    let card = everything::<f32>().on_device(&driver).unwrap();
    let d = card.dimension();
    let whole = sample(&card, 70); // five tiles of sixteen, and blocks for gradients of four of them
    let by_x = gradients(&card, &whole.x);
    let (mut z, mut log_det, mut log_q) = (vec![0.0; 70 * card.latent_dimension()], [0.0; 70], whole.log_q.clone());
    card.encode(&whole.x, &mut z, &mut log_det, &mut log_q).unwrap();
    let by_z = pulled_back(&card, &z);
    fibres.seed.store(2, std::sync::atomic::Ordering::Relaxed);
    for n in [5, 2] {
        let again = sample(&card, n); // one of eight, and two of one
        assert_eq!(whole.x[..n * d], again.x);
        assert_eq!(whole.log_q[..n], again.log_q);
        let again = gradients(&card, &whole.x[64 * d..][..n * d]);
        assert_eq!(by_x.x[64 * d..][..n * d], again.x);
        assert_eq!(by_x.log_q[64..][..n], again.log_q);
        let first = n * card.latent_dimension();
        assert_eq!(by_z[..first], pulled_back(&card, &z[..first]));
    }
    assert!(by_x.log_q[64..66].iter().any(|e| e.is_inside()), "gradients of none of the last are compared");
}

#[test]
fn under_the_address_sanitizer() {
    compare("everything", &everything::<f32>, &fibres("everything-address", Sanitizer::Address), 9, SINGLE);
}

#[test]
fn under_the_thread_sanitizer() {
    compare("everything", &everything::<f32>, &fibres("everything-thread", Sanitizer::Thread), 9, SINGLE);
}

/// The flow on a machine with a planted fault.
fn faulty(name: &str, sanitizer: Sanitizer, from: &'static str, to: &'static str) -> CouplingOnDevice<f32> {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(from, to));
    everything::<f32>().on_device(&driver).unwrap()
}

/// What a kernel with a planted fault does: `Err` with what the machine or a sanitizer said, or samples.
fn with_fault(name: &str, sanitizer: Sanitizer, from: &'static str, to: &'static str) -> Result<Samples, String> {
    let card = faulty(name, sanitizer, from, to);
    let n = 9;
    let mut samples = Samples { x: vec![0.0; n * card.dimension()], log_q: vec![Evaluation::inside(0.0); n] };
    card.sample(&streams, &mut samples.x, &mut samples.log_q).map_err(|e| e.to_string())?;
    Ok(samples)
}

const BARRIER_AFTER_A_LAYER: (&str, &str) = ("    __syncthreads();\n    from = to;", "    from = to;");

#[test]
fn a_missing_barrier_changes_the_samples() {
    let (from, to) = BARRIER_AFTER_A_LAYER;
    let found = with_fault("no-barrier", Sanitizer::None, from, to).unwrap();
    let want = sample(&everything::<f32>(), 9);
    let same =
        want.log_q.iter().zip(&found.log_q).filter(|(a, b)| (a.log_density - b.log_density).abs() < 3e-3).count();
    assert!(same < 9, "no row differs");
}

#[test]
fn a_missing_barrier_is_a_data_race() {
    let (from, to) = BARRIER_AFTER_A_LAYER;
    let said = with_fault("no-barrier-thread", Sanitizer::Thread, from, to).err().expect("a data race");
    assert!(said.contains("data race") && said.contains("in add_input"), "{said}");
}

#[test]
fn a_barrier_that_some_threads_miss_is_found() {
    let (from, to) = ("  settle(s, d, -1.0);", "  if (threadIdx.x < 40) settle(s, d, -1.0);");
    let said = with_fault("divergent", Sanitizer::None, from, to).err().expect("a fault");
    assert!(said.contains("waits at another barrier"), "{said}");
}

#[test]
fn one_word_beyond_shared_memory_is_found() {
    let (from, to) = ("s.failed = s.status + TILE;", "s.failed = s.status + TILE + 1;");
    let said = with_fault("beyond", Sanitizer::Address, from, to).err().expect("an overflow");
    assert!(said.contains("heap-buffer-overflow"), "{said}");
}

#[test]
fn a_wrong_sign_is_found() {
    let found = with_fault("sign", Sanitizer::None, "settle(s, d, -1.0)", "settle(s, d, 1.0)").unwrap();
    let want = sample(&everything::<f32>(), 9);
    let same =
        want.log_q.iter().zip(&found.log_q).filter(|(a, b)| (a.log_density - b.log_density).abs() < 3e-3).count();
    assert_eq!(same, 0);
}

/// The derivatives of a layer's activations taken for those of the layer below.
#[test]
fn a_wrong_gradient_is_found() {
    let (from, to) = ("slopes + layers[i - 1].slopes * TILE", "slopes + layers[0].slopes * TILE");
    let (host, card) = (everything::<f32>(), faulty("wrong-gradient", Sanitizer::None, from, to));
    let x = sample(&host, 9).x;
    let (want, found) = (gradients(&host, &x), gradients(&card, &x));
    assert_same("values are right", &want.log_q, &found.log_q, SINGLE.1);
    assert!(worst_gradient(&want.x, &found.x, host.dimension()) > 10.0 * SINGLE.2);
}

/// Before the cotangents of an atom are added up all of them must be there.
#[test]
fn a_missing_barrier_on_the_way_back_is_a_data_race() {
    let (from, to) = ("row, g.l);\n  }\n  __syncthreads();", "row, g.l);\n  }\n");
    let card = faulty("no-barrier-back", Sanitizer::Thread, from, to);
    let x = sample(&everything::<f32>(), 3).x;
    let (mut log_q, mut gradient) = ([Evaluation::inside(0.0); 3], vec![0.0; x.len()]);
    let said = card.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap_err().to_string();
    assert!(said.contains("data race"), "{said}");
}
