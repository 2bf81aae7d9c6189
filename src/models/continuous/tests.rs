//! Continuous flows over fields whose flow or derivatives are known.

use super::config::Schedule;
use super::*;
use crate::coordinates::vector::{norm, shift};
use crate::coordinates::Stereocentre;
use crate::moves::{Generator, Options};
use crate::ode::Method;
use crate::testing::log_abs_determinant;
use crate::weights;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

const TIGHT: Method =
    Method::DormandPrince { absolute: 1e-10, relative: 1e-10, log_density: 1e-10, quadrature: 0, max_steps: 10_000 };

fn config(parametrisation: Parametrisation, interpolant: Interpolant, times: [f64; 2]) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation,
        interpolant,
        times,
        units_per_nm: 10.0,
        stereocentres: vec![],
        prior: Prior::MeanFree,
        divergence: Divergence::Exact,
        solver: TIGHT,
    }
}

fn plain() -> ContinuousConfig {
    config(Parametrisation::Velocity, Interpolant::Linear, [1.0, 0.0])
}

fn flow<F: VectorField>(field: F, config: ContinuousConfig) -> ContinuousFlow<F> {
    try_flow(field, config).unwrap()
}

fn try_flow<F: VectorField>(field: F, config: ContinuousConfig) -> Result<ContinuousFlow<F>> {
    let dimension = field.dimension();
    let card = ModelCard {
        coordinates: CoordinatesConfig::Cartesian { dimension },
        exactness: config.exactness(),
        provenance: BTreeMap::new(),
        ..ModelCard::of_coupling(
            crate::models::coupling::CouplingConfig { uniform: vec![], layers: vec![] },
            CoordinatesConfig::Cartesian { dimension },
        )
    };
    ContinuousFlow::new(field, config, card, String::new())
}

fn streams(row: usize) -> Stream {
    Stream::new(11, StreamId::Test, row as u64, 0)
}

fn sample<F: VectorField>(flow: &ContinuousFlow<F>, n: usize) -> (Vec<f64>, Vec<Evaluation>) {
    let (mut x, mut e) = (vec![0.0; n * flow.dimension()], vec![Evaluation::outside(Status::NonFinite); n]);
    flow.sample(&streams, &mut x, &mut e).unwrap();
    (x, e)
}

fn log_density<F: VectorField>(flow: &ContinuousFlow<F>, x: &[f64]) -> Vec<f64> {
    let mut e = vec![Evaluation::outside(Status::NonFinite); x.len() / flow.dimension()];
    flow.log_density(x, &mut e).unwrap();
    e.iter().map(|e| e.log_density).collect()
}

/// The ideal field for centred normal data of width `wide` along one direction and `narrow` along the others. It is
/// continued linearly off the space of centred configurations, so it depends on translations.
struct Gaussian {
    config: ContinuousConfig,
    direction: Vec<f64>,
    narrow: f64,
    wide: f64,
}

impl Gaussian {
    fn new(config: ContinuousConfig, wide: f64) -> Gaussian {
        let mut direction = vec![0.3, -0.2, 0.5, 0.0, 0.4, 0.1, -0.6, 0.2, 0.1];
        centre(&mut direction);
        let length = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        direction.iter_mut().for_each(|v| *v /= length);
        Gaussian { config, direction, narrow: 0.5, wide }
    }
    /// E[network's target | x]/x for normal data of this width.
    fn factor(&self, t: f64, width: f64) -> f64 {
        let s = self.config.schedule(t);
        let data = s.alpha * width * width / variance(&s, width);
        match self.config.parametrisation {
            Parametrisation::Endpoint => data,
            Parametrisation::Velocity => s.d_alpha * data + s.d_sigma * s.sigma / variance(&s, width),
        }
    }
    fn apply(&self, t: f64, x: &[f64], f: &mut [f64]) {
        let (narrow, wide) = (self.factor(t, self.narrow), self.factor(t, self.wide));
        let along: f64 = x.iter().zip(&self.direction).map(|(x, w)| x * w).sum();
        f.iter_mut().zip(x).zip(&self.direction).for_each(|((f, x), w)| *f = narrow * x + (wide - narrow) * along * w);
    }
    /// log q of a point in nm.
    fn log_density(&self, x: &[f64]) -> f64 {
        let mut y: Vec<f64> = x.iter().map(|v| 10.0 * v).collect();
        centre(&mut y);
        let s = self.config.schedule(self.config.times[1]);
        let along: f64 = y.iter().zip(&self.direction).map(|(y, w)| y * w).sum();
        let all: f64 = y.iter().map(|v| v * v).sum();
        let (narrow, wide) = (variance(&s, self.narrow), variance(&s, self.wide));
        let quadratic = (all - along * along) / narrow + along * along / wide;
        -0.5 * (quadratic + 5.0 * narrow.ln() + wide.ln() + 6.0 * LOG_2_PI) + 6.0 * 10f64.ln()
    }
}

fn variance(s: &Schedule, width: f64) -> f64 {
    (s.alpha * width).powi(2) + s.sigma * s.sigma
}

impl VectorField for Gaussian {
    fn dimension(&self) -> usize {
        9
    }
    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        for ((t, x), f) in t.iter().zip(x.chunks_exact(9)).zip(f.chunks_exact_mut(9)) {
            self.apply(*t, x, f);
        }
    }
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        self.evaluate(t, x, f);
        for (d, t) in divergence.iter_mut().zip(t) {
            *d = 8.0 * self.factor(*t, self.narrow) + self.factor(*t, self.wide);
        }
    }
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        self.evaluate(t, x, f);
        self.evaluate(t, dx, df);
    }
}

/// Attracting atoms, fᵢ = strength · Σⱼ e^{−r²/2} (xⱼ − xᵢ), with a wind sin(xᵢ) over space.
struct Pairs {
    atoms: usize,
    strength: f64,
    wind: f64,
}

impl Pairs {
    fn row(&self, t: f64, x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        for (i, (f, df)) in f.iter_mut().zip(df.iter_mut()).enumerate() {
            (*f, *df) = (self.wind * x[i].sin(), self.wind * x[i].cos() * dx[i]);
        }
        let strength = self.strength * (1.0 + t);
        for i in 0..self.atoms {
            for j in (0..self.atoms).filter(|j| *j != i) {
                let r: [f64; 3] = std::array::from_fn(|k| x[3 * j + k] - x[3 * i + k]);
                let dr: [f64; 3] = std::array::from_fn(|k| dx[3 * j + k] - dx[3 * i + k]);
                let phi = strength * (-0.5 * norm(r).powi(2)).exp();
                let d_phi = -phi * (r[0] * dr[0] + r[1] * dr[1] + r[2] * dr[2]);
                for k in 0..3 {
                    f[3 * i + k] += phi * r[k];
                    df[3 * i + k] += phi * dr[k] + d_phi * r[k];
                }
            }
        }
    }
}

impl VectorField for Pairs {
    fn dimension(&self) -> usize {
        3 * self.atoms
    }
    fn is_equivariant(&self) -> bool {
        self.wind == 0.0
    }
    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        self.evaluate_jvp(t, x, &vec![0.0; x.len()], f, &mut vec![0.0; x.len()]);
    }
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        let d = self.dimension();
        let mut df = vec![0.0; x.len()];
        divergence.fill(0.0);
        for i in 0..d {
            let along: Vec<f64> = (0..x.len()).map(|k| f64::from(u8::from(k % d == i))).collect();
            self.evaluate_jvp(t, x, &along, f, &mut df);
            divergence.iter_mut().enumerate().for_each(|(row, v)| *v += df[row * d + i]);
        }
    }
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        let d = self.dimension();
        for (row, t) in t.iter().enumerate() {
            let range = row * d..(row + 1) * d;
            self.row(*t, &x[range.clone()], &dx[range.clone()], &mut f[range.clone()], &mut df[range]);
        }
    }
}

fn all_configs() -> Vec<ContinuousConfig> {
    let mut configs = Vec::new();
    for parametrisation in [Parametrisation::Velocity, Parametrisation::Endpoint] {
        for interpolant in [Interpolant::Linear, Interpolant::Trigonometric] {
            for times in [[1.0, 0.02], [0.0, 0.98]] {
                configs.push(config(parametrisation, interpolant, times));
            }
        }
    }
    configs
}

#[test]
fn a_linear_flow_has_the_density_of_its_normal_distribution() {
    for config in all_configs() {
        let field = Gaussian::new(config.clone(), 1.7);
        let exact = |x: &[f64]| Gaussian::new(config.clone(), 1.7).log_density(x);
        let flow = flow(field, config.clone());
        assert_eq!((flow.exactness(), flow.scope()), (Exactness::Exact, Scope::Centred));
        let (x, e) = sample(&flow, 40);
        for ((x, e), back) in x.chunks_exact(9).zip(e).zip(log_density(&flow, &x)) {
            assert!((e.log_density - exact(x)).abs() < 1e-6, "{config:?}: {} {}", e.log_density, exact(x));
            assert!((back - exact(x)).abs() < 1e-6, "{config:?}: {back} {}", exact(x));
        }
    }
}

#[test]
fn samples_have_the_covariance_of_the_data() {
    let config = config(Parametrisation::Endpoint, Interpolant::Trigonometric, [1.0, 0.02]);
    let field = Gaussian::new(config.clone(), 1.7);
    let (direction, n) = (field.direction.clone(), 4000);
    let s = config.schedule(0.02);
    let (wide, narrow) = (variance(&s, 1.7), variance(&s, 0.5));
    let flow = flow(field, config);
    let mut stochastic = vec![0.0; n * 9];
    let mut status = vec![Status::NonFinite; n];
    flow.sample_stochastic(400, &streams, &mut stochastic, &mut status).unwrap();
    assert!(status.iter().all(|s| *s == Status::Inside));
    for (name, x, bias) in [("ODE", sample(&flow, n).0, 0.0), ("SDE", stochastic, 0.02)] {
        let (mut along, mut all) = (0.0, 0.0);
        for x in x.chunks_exact(9) {
            assert!(crate::coordinates::vector::centroid(x).iter().all(|c| c.abs() < 1e-12), "{name}");
            along += x.iter().zip(&direction).map(|(x, w)| 10.0 * x * w).sum::<f64>().powi(2) / n as f64;
            all += x.iter().map(|v| 100.0 * v * v).sum::<f64>() / n as f64;
        }
        // five standard errors of a variance, plus the bias of Euler's steps
        let error = |variance: f64, m: f64| 5.0 * variance * (2.0 / (m * n as f64)).sqrt() + bias * variance;
        assert!((along - wide).abs() < error(wide, 1.0), "{name}: {along} for {wide}");
        assert!(((all - along) / 5.0 - narrow).abs() < error(narrow, 5.0), "{name}: {all} {along} for {narrow}");
    }
}

/// An orthonormal basis of the centred configurations, as rows.
fn basis(atoms: usize) -> Vec<Vec<f64>> {
    let helmert = |m: usize, i: usize| {
        let scale = 1.0 / ((m * (m + 1)) as f64).sqrt();
        match i {
            _ if i < m => scale,
            _ if i == m => -(m as f64) * scale,
            _ => 0.0,
        }
    };
    let vector = |m: usize, axis: usize| {
        (0..3 * atoms).map(|k| if k % 3 == axis { helmert(m, k / 3) } else { 0.0 }).collect::<Vec<f64>>()
    };
    (1..atoms).flat_map(|m| (0..3).map(move |axis| vector(m, axis))).collect()
}

#[test]
fn log_det_is_that_of_the_jacobian_on_the_centred_space() {
    for (wind, parametrisation) in [
        (0.0, Parametrisation::Velocity),
        (0.4, Parametrisation::Velocity),
        (0.0, Parametrisation::Endpoint),
        (0.4, Parametrisation::Endpoint),
    ] {
        let times = [1.0, 0.3];
        let flow = flow(Pairs { atoms: 4, strength: 0.3, wind }, config(parametrisation, Interpolant::Linear, times));
        let mut z: Vec<f64> = (0..12).map(|i| (1.3 * i as f64).sin()).collect();
        centre(&mut z);
        let generate = |z: &[f64]| {
            let (mut x, mut log_det, mut e) = (vec![0.0; 12], [0.0], [Evaluation::inside(0.0)]);
            flow.generate(z, &mut x, &mut log_det, &mut e).unwrap();
            assert!(e[0].is_inside());
            (x, log_det[0], e[0].log_density)
        };
        let basis = basis(4);
        let h = 1e-4;
        let columns: Vec<Vec<f64>> = basis
            .iter()
            .map(|b| {
                let at = |s: f64| generate(&z.iter().zip(b).map(|(z, b)| z + s * b).collect::<Vec<_>>()).0;
                let (up, down) = (at(h), at(-h));
                let dx: Vec<f64> = up.iter().zip(&down).map(|(u, d)| (u - d) / (2.0 * h)).collect();
                basis.iter().map(|c| c.iter().zip(&dx).map(|(c, d)| c * d).sum()).collect()
            })
            .collect();
        let (x, log_det, log_q) = generate(&z);
        let numeric = log_abs_determinant(columns);
        assert!((log_det - numeric).abs() < 1e-5, "wind {wind}, {parametrisation:?}: {log_det} {numeric}");
        let log_p = -0.5 * z.iter().map(|v| v * v).sum::<f64>() - 4.5 * LOG_2_PI;
        assert!((log_q - (log_p - log_det)).abs() < 1e-12);
        let (mut back, mut log_det_back, mut e) = (vec![0.0; 12], [0.0], [Evaluation::inside(0.0)]);
        flow.encode(&x, &mut back, &mut log_det_back, &mut e).unwrap();
        assert!(back.iter().zip(&z).all(|(a, b)| (a - b).abs() < 1e-7), "{back:?} {z:?}");
        assert!((log_det_back[0] - log_det).abs() < 1e-7 && (e[0].log_density - log_q).abs() < 1e-7);
    }
}

/// E_q[p/q] = 1 for a normalised p on the centred space.
#[test]
fn the_density_is_normalised_on_the_centred_space() {
    let loose =
        Method::DormandPrince { absolute: 1e-6, relative: 1e-6, log_density: 1e-5, quadrature: 0, max_steps: 1000 };
    for wind in [0.0, 0.3] {
        let flow = flow(Pairs { atoms: 3, strength: -0.15, wind }, ContinuousConfig { solver: loose, ..plain() });
        let n = 20_000;
        let (x, log_q) = sample(&flow, n);
        let width = 0.07;
        let log_p = |x: &[f64]| {
            let r2: f64 = x.iter().map(|v| (v / width).powi(2)).sum();
            -0.5 * r2 - 6.0 * (width.ln() + 0.5 * LOG_2_PI)
        };
        let w: Vec<f64> = x.chunks_exact(9).zip(&log_q).map(|(x, q)| (log_p(x) - q.log_density).exp()).collect();
        let mean = w.iter().sum::<f64>() / n as f64;
        let error = (w.iter().map(|w| (w - mean).powi(2)).sum::<f64>()).sqrt() / n as f64;
        assert!((mean - 1.0).abs() < 5.0 * error && error < 0.02, "wind {wind}: E[w] = {mean} ± {error}");
        let log_w: Vec<f64> = w.iter().map(|w| w.ln()).collect();
        assert!(weights::pareto_k(&log_w).unwrap() < 0.5);
    }
}

#[test]
fn the_way_there_and_back_is_reported() {
    let at = |solver| {
        let flow = flow(Pairs { atoms: 4, strength: 0.5, wind: 0.0 }, ContinuousConfig { solver, ..plain() });
        let (x, _) = sample(&flow, 20);
        let trips = flow.round_trip(&x).unwrap();
        let largest = |f: fn(&RoundTrip) -> f64| trips.iter().map(f).fold(0.0, f64::max);
        assert!(trips.iter().all(|t| t.reports.iter().all(|r| r.end == End::Done && r.evaluations > 0)));
        (largest(|t| t.log_density), largest(|t| t.position))
    };
    let (log_q, x) = at(TIGHT);
    assert!(log_q < 1e-7 && x < 1e-9, "{log_q} {x}");
    let (log_q, x) = at(Method::default());
    assert!(log_q < 2e-3 && x < 1e-5, "{log_q} {x}");
    let (coarse, _) = at(Method::Rk4 { steps: 2 });
    assert!(coarse > log_q, "{coarse} {log_q}");
}

#[test]
fn moves_refuse_a_flow_whose_steps_are_too_coarse() {
    let generator = |solver| {
        let pairs = Pairs { atoms: 4, strength: 2.0, wind: 0.0 };
        let flow = flow(pairs, ContinuousConfig { solver, ..plain() });
        let error = flow.integration_error().unwrap().unwrap();
        (error, Generator::new(Arc::new(flow), None, Options::default()).err().map(|e| e.to_string()))
    };
    let (error, refused) = generator(Method::default());
    assert!(error < 0.01 && refused.is_none(), "{error} {refused:?}");
    let (error, refused) = generator(Method::Rk4 { steps: 1 });
    assert!(
        error > 0.1 && refused.is_some_and(|refused| refused.contains("reduce its solver's tolerances")),
        "{error}"
    );
}

/// A field that is finite only for a limited number of calls.
struct Tiring {
    calls: AtomicUsize,
    most: AtomicUsize,
}

impl VectorField for &Tiring {
    fn dimension(&self) -> usize {
        9
    }
    fn evaluate(&self, _: &[f64], x: &[f64], f: &mut [f64]) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        let factor = if calls < self.most.load(Ordering::Relaxed) { 0.1 } else { f64::NAN };
        f.iter_mut().zip(x).for_each(|(f, x)| *f = factor * x);
    }
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        self.evaluate(t, x, f);
        divergence.fill(0.9);
    }
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        self.evaluate(t, x, f);
        df.iter_mut().zip(dx).for_each(|(df, dx)| *df = 0.1 * dx);
    }
}

#[test]
fn samples_that_do_not_find_their_way_back_have_an_infinite_error() {
    static FIELD: Tiring = Tiring { calls: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) };
    let mut samples = (vec![0.0; 36], [Evaluation::outside(Status::NonFinite); 4]);
    let streams = |row| Stream::new(u64::MAX, StreamId::Sample, row as u64, 0);
    flow(&FIELD, plain()).sample(&streams, &mut samples.0, &mut samples.1).unwrap();
    assert!(samples.1.iter().all(|sample| sample.is_inside()));
    // enough calls for the first direction once more
    FIELD.most.store(2 * FIELD.calls.load(Ordering::Relaxed), Ordering::Relaxed);
    let lost = flow(&FIELD, plain());
    assert_eq!(lost.integration_error().unwrap(), Some(f64::INFINITY));
    let refused = Generator::new(Arc::new(lost), None, Options::default()).err().unwrap().to_string();
    assert!(refused.contains("off by inf"), "{refused}");
}

fn hand() -> Stereocentre {
    Stereocentre { centre: 0, neighbours: [1, 2, 3], positive: true }
}

#[test]
fn mirror_images_are_folded_to_one_hand() {
    let field = || Pairs { atoms: 4, strength: 0.3, wind: 0.0 };
    let both = flow(field(), plain());
    let one = flow(field(), ContinuousConfig { stereocentres: vec![hand()], ..plain() });
    let ((x_both, e_both), (x, e)) = (sample(&both, 200), sample(&one, 200));
    let mut mirrored = 0;
    for row in 0..200 {
        let (a, b) = (&x_both[12 * row..][..12], &x[12 * row..][..12]);
        let sign = if hand().holds(a) { 1.0 } else { -1.0 };
        mirrored += usize::from(sign < 0.0);
        assert!(hand().holds(b) && a.iter().zip(b).all(|(a, b)| *a == sign * b));
        assert!((e[row].log_density - e_both[row].log_density - LN_2).abs() < 1e-12);
    }
    assert!((60..140).contains(&mirrored), "{mirrored}");
    let there = log_density(&one, &x);
    assert!(there.iter().zip(&e).all(|(a, e)| (a - e.log_density).abs() < 1e-7));
    let wrong: Vec<f64> = x.iter().map(|v| -v).collect();
    let mut e = vec![Evaluation::inside(0.0); 200];
    one.log_density(&wrong, &mut e).unwrap();
    assert!(e.iter().all(|e| *e == Evaluation::outside(Status::WrongChirality)));
    let refused = try_flow(
        Pairs { atoms: 4, strength: 0.3, wind: 0.1 },
        ContinuousConfig { stereocentres: vec![hand()], ..plain() },
    );
    assert!(refused.err().unwrap().to_string().contains("equivariant"));
}

/// With two centres, half of the samples have the right hand at one and the wrong one at the other, in either image.
#[test]
fn what_is_right_in_no_mirror_is_of_the_wrong_hand() {
    let other = Stereocentre { centre: 1, neighbours: [2, 3, 4], positive: true };
    let hands = [hand(), other];
    let config = ContinuousConfig { stereocentres: hands.to_vec(), ..plain() };
    let flow = flow(Pairs { atoms: 5, strength: 0.3, wind: 0.0 }, config);
    let (x, e) = sample(&flow, 100);
    for (x, e) in x.chunks_exact(15).zip(&e) {
        assert_eq!(e.is_inside(), hands.iter().all(|hand| hand.holds(x)));
        assert!(e.is_inside() || *e == Evaluation::outside(Status::WrongChirality));
    }
    assert!(e.iter().any(Evaluation::is_inside) && e.iter().any(|e| !e.is_inside()));
}

#[test]
fn the_density_of_an_equivariant_field_ignores_rotation_and_translation() {
    let (sin, cos) = 0.7f64.sin_cos();
    let moved = |x: &[f64]| {
        let mut y: Vec<f64> =
            x.chunks_exact(3).flat_map(|r| [cos * r[0] - sin * r[1], sin * r[0] + cos * r[1], r[2]]).collect();
        shift(&mut y, [0.3, -2.0, 1.0]);
        y
    };
    let free = flow(Pairs { atoms: 4, strength: 0.5, wind: 0.0 }, plain());
    let (x, _) = sample(&free, 1);
    assert!((log_density(&free, &x)[0] - log_density(&free, &moved(&x))[0]).abs() < 1e-7);
    // a field with a preferred direction has a density that is not rotation-invariant, but still translation-invariant
    let bound = flow(Pairs { atoms: 4, strength: 0.5, wind: 0.5 }, plain());
    let mut shifted = x.clone();
    shift(&mut shifted, [0.3, -2.0, 1.0]);
    let q = log_density(&bound, &x)[0];
    assert!((q - log_density(&bound, &shifted)[0]).abs() < 1e-7);
    assert!((q - log_density(&bound, &moved(&x))[0]).abs() > 1e-3);
}

#[test]
fn estimated_divergences_are_unbiased_repeatable_and_marked() {
    for wind in [0.0, 0.4] {
        let field = || Pairs { atoms: 4, strength: 0.4, wind };
        let exact = flow(field(), plain());
        let config = ContinuousConfig { divergence: Divergence::Hutchinson { probes: 2 }, ..plain() };
        let estimated = flow(field(), config);
        assert_eq!(estimated.exactness(), Exactness::Estimated);
        let n = 300;
        let (x, e) = sample(&estimated, n);
        assert_eq!((x.clone(), e.clone()), sample(&estimated, n));
        let q = log_density(&exact, &x);
        let off: Vec<f64> = e.iter().zip(q).map(|(e, q)| e.log_density - q).collect();
        let mean = off.iter().sum::<f64>() / n as f64;
        let error = off.iter().map(|o| (o - mean).powi(2)).sum::<f64>().sqrt() / n as f64;
        assert!(error > 1e-3 && mean.abs() < 5.0 * error, "wind {wind}: {mean} ± {error}");
    }
}

#[test]
fn the_prior_of_the_reference_is_unnormalised_and_a_surrogate() {
    let flow =
        flow(Pairs { atoms: 3, strength: 0.0, wind: 0.0 }, ContinuousConfig { prior: Prior::Reference, ..plain() });
    assert_eq!((flow.exactness(), flow.scope()), (Exactness::Surrogate, Scope::Full));
    // the field is zero, so samples are those of the prior
    let (x, e) = sample(&flow, 5);
    for (x, e) in x.chunks_exact(9).zip(e) {
        assert!((e.log_density + 0.5 * x.iter().map(|v| 100.0 * v * v).sum::<f64>()).abs() < 1e-12);
        assert!(crate::coordinates::vector::centroid(x).iter().any(|c| c.abs() > 1e-6));
    }
}

#[test]
fn results_do_not_depend_on_threads_or_on_the_batch() {
    let flow =
        flow(Pairs { atoms: 4, strength: 0.5, wind: 0.2 }, ContinuousConfig { solver: Method::default(), ..plain() });
    let n = 3 * flow.vector_field().rows_at_once() + 1;
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| sample(&flow, n))
    };
    let (x, e) = run(1);
    assert_eq!((x.clone(), e), run(3));
    let together = log_density(&flow, &x);
    for row in [0, 5, n - 1] {
        assert_eq!(log_density(&flow, &x[12 * row..][..12])[0], together[row]);
    }
    let (mut alone, mut status) = (vec![0.0; 12 * n], vec![Status::NonFinite; n]);
    flow.sample_only(&streams, &mut alone, &mut status).unwrap();
    assert!(status.iter().all(|s| *s == Status::Inside));
    assert!(alone.iter().zip(&x).all(|(a, b)| (a - b).abs() < 1e-5), "without log q the samples are the same");
}

#[test]
fn samples_that_cannot_be_integrated_are_named_and_have_no_density() {
    let solver =
        Method::DormandPrince { absolute: 1e-10, relative: 1e-10, log_density: 1e-10, quadrature: 0, max_steps: 12 };
    let short = flow(Pairs { atoms: 3, strength: 0.5, wind: 0.0 }, ContinuousConfig { solver, ..plain() });
    let z: Vec<f64> = (0..18).map(|i| if i < 9 { 40.0 * i as f64 } else { (i as f64).sin() }).collect();
    let (mut x, mut log_det, mut e) = (vec![0.0; 18], vec![0.0; 2], vec![Evaluation::inside(0.0); 2]);
    // distant atoms do not interact: sample 0 arrives in a few steps
    let reports = short.generate_reported(&z, &mut x, &mut log_det, &mut e).unwrap();
    assert_eq!((reports[0].end, reports[1].end), (End::Done, End::StepBudget));
    assert!(e[0].is_inside());
    assert_eq!(e[1], Evaluation::outside(Status::NonFinite));
    let message = ode::failures(&reports).unwrap();
    assert!(message.contains("sample 1") && message.contains("max_steps"), "{message}");
    let trips = short.round_trip(&[f64::NAN; 9]).unwrap();
    assert_eq!(trips[0].log_density, f64::INFINITY);
    assert!(short.log_density_gradient(&x, &mut e, &mut z.clone()).unwrap_err().to_string().contains("flow matching"));
}

#[test]
fn a_configuration_needs_to_say_little() {
    let parse = |text: &str| serde_json::from_str::<ContinuousConfig>(text);
    let least = r#"{"parametrisation": "velocity", "interpolant": "linear", "times": [1, 0], "units_per_nm": 10"#;
    let config = parse(&format!("{least}}}")).unwrap();
    assert_eq!(config, ContinuousConfig { solver: Method::default(), ..plain() });
    let more = format!(
        "{least}, \"prior\": \"reference\", \"divergence\": {{\"hutchinson\": {{\"probes\": 3}}}}, \
         \"solver\": {{\"kind\": \"rk4\", \"steps\": 20}}}}"
    );
    let config = parse(&more).unwrap();
    assert_eq!((config.prior, config.divergence), (Prior::Reference, Divergence::Hutchinson { probes: 3 }));
    assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    assert!(parse(&format!("{least}, \"sovler\": 1}}")).is_err());
}

#[test]
fn senseless_configurations_are_refused() {
    let field = || Pairs { atoms: 3, strength: 0.1, wind: 0.0 };
    let endpoint = config(Parametrisation::Endpoint, Interpolant::Linear, [1.0, 0.0]);
    assert!(try_flow(field(), endpoint).err().unwrap().to_string().contains("earlier"));
    for bad in [
        ContinuousConfig { times: [1.0, 1.0], ..plain() },
        ContinuousConfig { times: [1.0, -0.1], ..plain() },
        ContinuousConfig { units_per_nm: 0.0, ..plain() },
        ContinuousConfig { divergence: Divergence::Hutchinson { probes: 0 }, ..plain() },
        ContinuousConfig { solver: Method::Rk4 { steps: 0 }, ..plain() },
        ContinuousConfig { stereocentres: vec![Stereocentre { centre: 3, ..hand() }], ..plain() },
    ] {
        assert!(try_flow(field(), bad.clone()).is_err(), "{bad:?}");
    }
    let euler = ContinuousConfig { solver: Method::Euler { steps: 50 }, ..plain() };
    assert_eq!(flow(field(), euler).exactness(), Exactness::Surrogate);
}
