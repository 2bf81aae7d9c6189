//! Continuous flows: the whole ODE in one launch, against the CPU.

use super::driver::{Fibres, Sanitizer};
use super::fields::normals;
use super::{egnn_flow, fibres, gvp_flow};
use modejump::density::{Density, Evaluation, Status};
use modejump::device::{Device, Driver};
use modejump::models::card::{ModelCard, ModelConfig};
use modejump::models::continuous::{ContinuousConfig, ContinuousFlow, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::field_on_device::FieldOnDevice;
use modejump::models::{self, VectorField};
use modejump::nn::Real;
use modejump::ode::{End, Method, Report};
use modejump::rng::{Stream, StreamId};
use std::sync::Arc;

pub const ADAPTIVE: Method =
    Method::DormandPrince { absolute: 1e-3, relative: 1e-3, log_density: 1e-2, quadrature: 0, max_steps: 1000 };

pub fn velocity(solver: Method) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times: [1.0, 0.0],
        units_per_nm: 10.0,
        stereocentres: vec![],
        prior: Prior::MeanFree,
        divergence: Divergence::Exact,
        solver,
    }
}

fn endpoint(interpolant: Interpolant) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation: Parametrisation::Endpoint,
        interpolant,
        times: [0.0, 0.5],
        ..velocity(Method::Rk4 { steps: 3 })
    }
}

fn flow<F: VectorField>(
    field: F,
    config: &ContinuousConfig,
    of: impl Fn(ContinuousConfig) -> ModelConfig,
) -> ContinuousFlow<F> {
    let card = ModelCard::of_cartesian(of(config.clone()), field.dimension());
    let card = ModelCard { exactness: config.exactness(), ..card };
    ContinuousFlow::new(field, config.clone(), card, String::new()).unwrap()
}

pub fn gvp<R: Real>(config: &ContinuousConfig) -> models::gvp_flow::GvpFlow<R> {
    let field = gvp_flow::small::<R>();
    let network = field.config().clone();
    flow(field, config, |flow| ModelConfig::GvpFlow(models::gvp_flow::Config { network: network.clone(), flow }))
}

pub fn egnn<R: Real>(config: &ContinuousConfig) -> models::egnn_flow::EgnnFlow<R> {
    let field = egnn_flow::small::<R>();
    let network = egnn_flow::small_config();
    flow(field, config, |flow| ModelConfig::EgnnFlow(models::egnn_flow::Config { network: network.clone(), flow }))
}

/// What comes of rows: points, ln|∂x/∂z| and log q by row, and what the integrations took.
struct Outcome {
    points: Vec<f64>,
    log_det: Vec<f64>,
    log_q: Vec<Evaluation>,
    reports: Vec<Report>,
}

fn run<F: VectorField>(flow: &ContinuousFlow<F>, points: &[f64], encode: bool) -> modejump::Result<Outcome> {
    let n = points.len() / flow.dimension();
    let (mut out, mut log_det) = (vec![0.0; points.len()], vec![0.0; n]);
    let mut log_q = vec![Evaluation::outside(Status::NonFinite); n];
    let reports = match encode {
        true => flow.encode_reported(points, &mut out, &mut log_det, &mut log_q)?,
        false => flow.generate_reported(points, &mut out, &mut log_det, &mut log_q)?,
    };
    Ok(Outcome { points: out, log_det, log_q, reports })
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Samples with log q, latent points with log q, and samples alone; tolerances of positions (nm; latent points ten
/// times that) and of log q; in f64 with as many evaluations and steps.
pub fn compare<F: VectorField, R: Real>(
    name: &str,
    host: &ContinuousFlow<F>,
    card: &ContinuousFlow<FieldOnDevice<R>>,
    n: usize,
    (position, log_density): (f64, f64),
) {
    let d = host.dimension();
    let z = normals(n * d, 1);
    let check = |what: &str, want: &Outcome, found: &Outcome, position: f64| {
        let errors = [largest(&want.points, &found.points), largest(&want.log_det, &found.log_det)];
        println!("{name}, {n} rows: {what} {:.1e} {:.1e}, {:?}", errors[0], errors[1], found.reports[0]);
        assert!(errors[0] < position && errors[1] < log_density, "{name}, {n} rows: {what} {errors:?}");
        for (want, found) in want.log_q.iter().zip(&found.log_q) {
            assert_eq!(want.status, found.status);
            assert!((want.log_density - found.log_density).abs() < log_density, "{name}: {what}");
        }
        match size_of::<R>() {
            8 => assert_eq!(want.reports, found.reports, "{name}: {what}"),
            _ => assert!(want.reports.iter().zip(&found.reports).all(|(want, found)| want.end == found.end)),
        }
    };
    let want = run(host, &z, false).unwrap();
    check("samples", &want, &run(card, &z, false).unwrap(), position);
    let x = &want.points;
    check("latent points", &run(host, x, true).unwrap(), &run(card, x, true).unwrap(), 10.0 * position);
    let alone = |flow: &dyn Density| {
        let (mut x, mut status) = (vec![0.0; n * d], vec![Status::NonFinite; n]);
        flow.sample_only(&|row| Stream::new(5, StreamId::Test, row as u64, 0), &mut x, &mut status).unwrap();
        (x, status)
    };
    let (want, found) = (alone(host), alone(card));
    assert!(largest(&want.0, &found.0) < position && want.1 == found.1, "{name}: samples alone");
}

pub const DOUBLE: (f64, f64) = (1e-11, 1e-9);
pub const SINGLE: (f64, f64) = (1e-5, 1e-3);

/// A launch of blocks that take a sample each, and teams of blocks.
#[test]
fn adaptive_steps() {
    let config = velocity(ADAPTIVE);
    let driver = fibres("paths-adaptive", Sanitizer::None);
    let (host, card) = (gvp::<f64>(&config), gvp::<f64>(&config).on_device(&driver).unwrap());
    [1, 4, 5].into_iter().for_each(|n| compare("gvp", &host, &card, n, DOUBLE));
    let (host, card) = (egnn::<f64>(&config), egnn::<f64>(&config).on_device(&driver).unwrap());
    [1, 5].into_iter().for_each(|n| compare("egnn", &host, &card, n, DOUBLE));
    let (host, card) = (gvp::<f32>(&config), gvp::<f32>(&config).on_device(&driver).unwrap());
    compare("gvp, f32", &host, &card, 4, SINGLE);
    let (host, card) = (egnn::<f32>(&config), egnn::<f32>(&config).on_device(&driver).unwrap());
    compare("egnn, f32", &host, &card, 4, SINGLE);
}

/// A sample's bits depend neither on its team nor on the other samples.
#[test]
fn a_sample_is_the_same_in_every_batch() {
    let (config, driver) = (velocity(ADAPTIVE), fibres("paths-batch", Sanitizer::None));
    check_bits(&gvp::<f32>(&config).on_device(&driver).unwrap());
    check_bits(&egnn::<f32>(&config).on_device(&driver).unwrap());
}

fn check_bits(card: &ContinuousFlow<FieldOnDevice<f32>>) {
    let z = normals(5 * card.dimension(), 1);
    let all = run(card, &z, false).unwrap();
    for row in [0, 4] {
        let range = row * card.dimension()..(row + 1) * card.dimension();
        let one = run(card, &z[range.clone()], false).unwrap();
        assert!(one.points == all.points[range] && one.log_det[0] == all.log_det[row]);
    }
}

/// With a launch for every two samples.
#[test]
fn every_option() {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new("paths-options", Sanitizer::None).with_watchdog());
    let by_quadrature = |quadrature| Method::DormandPrince {
        absolute: 1e-3,
        relative: 1e-3,
        log_density: 1e-2,
        quadrature,
        max_steps: 1000,
    };
    let probes = |probes| ContinuousConfig { divergence: Divergence::Hutchinson { probes }, ..velocity(ADAPTIVE) };
    let configs = [
        ("rk4", velocity(Method::Rk4 { steps: 3 })),
        ("euler", velocity(Method::Euler { steps: 4 })),
        ("one node", velocity(by_quadrature(1))),
        ("three nodes", velocity(by_quadrature(3))),
        ("linear end point", endpoint(Interpolant::Linear)),
        ("trigonometric end point", endpoint(Interpolant::Trigonometric)),
        ("end point, other times", ContinuousConfig { times: [1.0, 0.5], ..endpoint(Interpolant::Trigonometric) }),
        ("a probe", probes(1)),
        ("three probes", probes(3)),
        ("reference prior", ContinuousConfig { prior: Prior::Reference, ..velocity(ADAPTIVE) }),
    ];
    for (name, config) in configs {
        let (host, card) = (gvp::<f64>(&config), gvp::<f64>(&config).on_device(&driver).unwrap());
        compare(name, &host, &card, 5, DOUBLE);
    }
}

/// Samples that are given up end as on the CPU, the others arrive.
#[test]
fn samples_that_are_given_up() {
    let solver = |max_steps| Method::DormandPrince {
        absolute: 1e-7,
        relative: 1e-7,
        log_density: 1e-6,
        quadrature: 0,
        max_steps,
    };
    let few = |max_steps| velocity(solver(max_steps));
    let driver = fibres("paths-given-up", Sanitizer::None);
    let (host, card) = (gvp::<f64>(&few(3)), gvp::<f64>(&few(3)).on_device(&driver).unwrap());
    let mut z = normals(3 * host.dimension(), 1);
    let (want, found) = (run(&host, &z, false).unwrap(), run(&card, &z, false).unwrap());
    assert!(want.reports == found.reports && found.reports.iter().all(|report| report.end == End::StepBudget));
    assert!(found.log_q.iter().all(|log_q| log_q.status == Status::NonFinite));

    let (host, card) = (gvp::<f64>(&few(1000)), gvp::<f64>(&few(1000)).on_device(&driver).unwrap());
    (z[1], z[host.dimension() + 2]) = (f64::NAN, f64::INFINITY);
    let (want, found) = (run(&host, &z, false).unwrap(), run(&card, &z, false).unwrap());
    assert_eq!(want.reports, found.reports);
    assert_eq!(found.reports.iter().map(|r| r.end).collect::<Vec<_>>(), [End::NonFinite, End::NonFinite, End::Done]);
    assert!((want.log_q[2].log_density - found.log_q[2].log_density).abs() < 1e-9);

    // one that becomes stiff, so that steps are rejected
    let stiff = ContinuousConfig { times: [0.0, 0.9], solver: solver(40), ..endpoint(Interpolant::Linear) };
    let (host, card) = (gvp::<f64>(&stiff), gvp::<f64>(&stiff).on_device(&driver).unwrap());
    let z = &normals(2 * host.dimension(), 1);
    let (want, found) = (run(&host, z, false).unwrap(), run(&card, z, false).unwrap());
    assert_eq!(want.reports, found.reports);
    assert!(found.reports.iter().all(|report| report.rejected > 0), "{:?}", found.reports);
}

/// With too little shared memory the state of a block lies in memory of its own.
#[test]
fn little_shared_memory() {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new("paths-little", Sanitizer::None).with_shared_memory(1 << 10));
    let config = velocity(Method::Rk4 { steps: 2 });
    let (host, card) = (gvp::<f32>(&config), gvp::<f32>(&config).on_device(&driver).unwrap());
    compare("little shared memory", &host, &card, 5, SINGLE);
}

/// A sample by a team of blocks, and samples one after the other.
fn under(sanitizer: Sanitizer) {
    let short =
        Method::DormandPrince { absolute: 0.3, relative: 0.3, log_density: 3.0, quadrature: 1, max_steps: 1000 };
    let driver = fibres(&format!("paths-{sanitizer:?}"), sanitizer);
    for (solver, n) in [(short, 1), (Method::Rk4 { steps: 1 }, 5)] {
        let config = velocity(solver);
        let (host, card) = (gvp::<f32>(&config), gvp::<f32>(&config).on_device(&driver).unwrap());
        compare("sanitizer", &host, &card, n, SINGLE);
    }
}

#[test]
fn under_the_address_sanitizer() {
    under(Sanitizer::Address);
}

#[test]
fn under_the_thread_sanitizer() {
    under(Sanitizer::Thread);
}

/// What two samples by a kernel with a planted fault are: `Err` with what the machine or a sanitizer said.
fn with_fault(name: &str, sanitizer: Sanitizer, solver: Method, fault: [&'static str; 2]) -> Result<Outcome, String> {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(fault[0], fault[1]));
    let card = gvp::<f64>(&velocity(solver)).on_device(&driver).map_err(|e| e.to_string())?;
    run(&card, &normals(card.dimension(), 1), false).map_err(|e| e.to_string())
}

#[test]
fn a_block_that_does_not_wait_for_its_team_is_a_data_race() {
    let fault = ["    meet(team);\n    report.evaluations", "    __syncthreads();\n    report.evaluations"];
    let said =
        with_fault("paths-alone", Sanitizer::Thread, Method::Euler { steps: 2 }, fault).err().expect("a data race");
    assert!(said.contains("data race"), "{said}");
}

#[test]
fn a_team_with_one_place_for_its_numbers_is_a_data_race() {
    let fault = ["    turn = 1 - turn;\n", ""];
    let said =
        with_fault("paths-place", Sanitizer::Thread, Method::Euler { steps: 2 }, fault).err().expect("a data race");
    assert!(said.contains("data race"), "{said}");
}

/// Steps that resolve x alone leave more of an error in log q.
#[test]
fn an_integral_whose_error_nobody_judges_is_found() {
    let solver =
        Method::DormandPrince { absolute: 1e-2, relative: 1e-2, log_density: 1e-7, quadrature: 0, max_steps: 1000 };
    let fault = ["!(size >= terms()[DIMENSION])", "false"];
    let found = with_fault("paths-unjudged", Sanitizer::None, solver, fault).unwrap_or_else(|said| panic!("{said}"));
    let want = run(&gvp::<f64>(&velocity(solver)), &normals(15, 1), false).unwrap();
    assert!(found.reports[0].accepted < want.reports[0].accepted);
    assert!((found.log_det[0] - want.log_det[0]).abs() > 1e-6);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    let driver = device.driver().unwrap();
    for config in [velocity(ADAPTIVE), endpoint(Interpolant::Trigonometric), velocity(Method::Rk4 { steps: 5 })] {
        let (host, card) = (gvp::<f64>(&config), gvp::<f64>(&config).on_device(driver).unwrap());
        let (other_host, other_card) = (egnn::<f64>(&config), egnn::<f64>(&config).on_device(driver).unwrap());
        for n in [1, 40, 300, 3000] {
            compare("gvp", &host, &card, n, DOUBLE);
            compare("egnn", &other_host, &other_card, n, DOUBLE);
        }
        let (host, card) = (gvp::<f32>(&config), gvp::<f32>(&config).on_device(driver).unwrap());
        // the worst of 300 rows: their log q in f32 is as far from that in f64
        compare("gvp, f32", &host, &card, 300, (1e-5, 1e-2));
    }
}
