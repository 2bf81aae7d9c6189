//! The common test battery on small random flows with every kind of layer.

use super::*;
use crate::coordinates::CoordinatesConfig;
use crate::density::{Density, Evaluation, Status};
use crate::models::Flow;
use crate::nn::Activation;

fn features(periodic: &[usize], plain: &[usize]) -> Features {
    Features { periodic: periodic.to_vec(), harmonics: 2, plain: plain.to_vec() }
}

fn spline(transformed: &[usize], features: Features, ends: Ends, interval: [f64; 2]) -> LayerConfig {
    let hidden = vec![12, 9];
    let transformed = transformed.to_vec();
    LayerConfig::Spline {
        transformed,
        features,
        ends,
        bins: 5,
        interval,
        hidden,
        activation: Activation::Silu,
        identity_init: true,
    }
}

/// A seven-atom molecule in internal coordinates with one constraint; all layer kinds.
pub(crate) fn example() -> CouplingFlow<f64> {
    let coordinates = CoordinatesConfig::Internal {
        frame: [0, 1, 2],
        rows: vec![[3, 2, 1, 0], [4, 1, 2, 0], [5, 3, 2, 1], [6, 3, 2, 5]],
        normalize_angles: true,
        constraints: vec![(3, 6, 0.11)],
        stereocentres: vec![],
        cartesian: Vec::new(),
    };
    // u: five bonds 0–4, five angles 5–9, four torsions 10–13; torsions 10 and 12 are free, the rest is stiff
    let stiff: Vec<usize> = (0..10).chain([11, 13]).collect();
    let mut matrix = vec![0.0; 144];
    for i in 0..12 {
        matrix[i * 12 + i] = if i < 5 { 0.004 } else { 0.02 };
        (0..i).for_each(|j| matrix[i * 12 + j] = 0.001 * ((i + 2 * j) % 5) as f64);
    }
    let mean = (0..12).map(|i| if i < 5 { 0.12 } else { 0.55 }).collect();
    let affine = |transformed: &[usize], periodic: &[usize], plain: &[usize], preserve_volume, scale_activation| {
        let (transformed, features) = (transformed.to_vec(), features(periodic, plain));
        LayerConfig::Affine {
            transformed,
            features,
            hidden: vec![8],
            activation: Activation::Silu,
            scale_activation,
            preserve_volume,
        }
    };
    let layers = vec![
        spline(&[10], features(&[12], &[]), Ends::Circular, [0.0, 1.0]),
        LayerConfig::Shift { transformed: vec![10, 12] },
        spline(&[12], features(&[10], &[1]), Ends::Circular, [0.0, 1.0]),
        affine(&[0, 1, 2, 3, 4, 11], &[10, 12], &[5, 6, 7, 8, 9, 13], false, None),
        affine(&[5, 6, 7, 8, 9, 13], &[10], &[0, 1, 11], true, Some(Activation::Tanh)),
        spline(&[2, 7, 13], features(&[10, 12], &[0]), Ends::Linear, [-3.0, 3.0]),
        LayerConfig::Whiten { transformed: stiff, mean, matrix },
        LayerConfig::Wrap { transformed: vec![11, 13], shift: vec![0.45, 0.45] },
    ];
    let card = ModelCard {
        temperature: Some(300.0),
        ..ModelCard::of_coupling(CouplingConfig { uniform: vec![10, 12], layers }, coordinates)
    };
    let mut flow = CouplingFlow::new(card).unwrap();
    flow.initialise(1);
    let mut stream = Stream::new(2, StreamId::Test, 0, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p += 0.15 * stream.normal());
    flow
}

fn sample(flow: &CouplingFlow<f64>, n: usize) -> (Vec<f64>, Vec<Evaluation>) {
    let mut x = vec![0.0; n * flow.dimension()];
    let mut log_q = vec![Evaluation::inside(0.0); n];
    flow.sample(&|row| Stream::new(3, StreamId::Test, row as u64, 0), &mut x, &mut log_q).unwrap();
    (x, log_q)
}

#[test]
fn encoding_inverts_generating_with_the_same_density() {
    let flow = example();
    let n = 150;
    let (x, log_q) = sample(&flow, n);
    assert!(log_q.iter().filter(|e| e.is_inside()).count() > 140);
    let mut back = log_q.clone();
    flow.log_density(&x, &mut back).unwrap();
    for (a, b) in log_q.iter().zip(&back) {
        assert!(
            a.status == b.status && (!a.is_inside() || (a.log_density - b.log_density).abs() < 1e-9),
            "{a:?} {b:?}"
        );
    }
    let d = flow.latent_dimension();
    let (mut z, mut log_det, mut again) = (vec![0.0; n * d], vec![0.0; n], x.clone());
    flow.encode(&x, &mut z, &mut log_det, &mut back).unwrap();
    flow.generate(&z, &mut again, &mut log_det, &mut back).unwrap();
    assert!(x.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-9));
}

#[test]
fn log_det_is_that_of_the_jacobian() {
    // ln|∂x/∂z| on shape space: the Gram determinant of ∂x/∂z is not a volume there, so compare through the internal
    // coordinates, whose Cartesian factor has its own test
    let flow = example();
    let d = flow.latent_dimension();
    let mut stream = Stream::new(9, StreamId::Test, 0, 0);
    let z: Vec<f64> = (0..d)
        .map(|i| if [10, 12].contains(&i) { 0.2 + 0.1 * stream.uniform() } else { 0.5 * stream.normal() })
        .collect();
    let u_and_log_det = |z: &[f64]| {
        flow.with_workspace(|ws| {
            let mut x = vec![0.0; flow.dimension()];
            flow.generate_chunk(ws, &mut x, |_, u| u.copy_from_slice(z));
            let mut u = vec![0.0; d];
            let (by_coordinates, status) = flow.coordinates().encode(&x, &mut u);
            assert_eq!(status, Status::Inside);
            (u, ws.log_det[0] - by_coordinates)
        })
    };
    let h = 1e-5;
    let mut jacobian = vec![0.0; d * d];
    for c in 0..d {
        let (mut up, mut down) = (z.clone(), z.clone());
        up[c] += h;
        down[c] -= h;
        let (up, down) = (u_and_log_det(&up).0, u_and_log_det(&down).0);
        (0..d).for_each(|r| jacobian[r * d + c] = (up[r] - down[r]) / (2.0 * h));
    }
    let found = u_and_log_det(&z).1;
    let expected = log_abs_determinant(jacobian, d);
    assert!((found - expected).abs() < 1e-6, "{found} {expected}");
}

fn log_abs_determinant(mut a: Vec<f64>, n: usize) -> f64 {
    let mut log_det = 0.0;
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs())).unwrap();
        (0..n).for_each(|c| a.swap(k * n + c, pivot * n + c));
        log_det += a[k * n + k].abs().ln();
        for i in k + 1..n {
            let f = a[i * n + k] / a[k * n + k];
            (k..n).for_each(|c| a[i * n + c] -= f * a[k * n + c]);
        }
    }
    log_det
}

#[test]
fn gradients_match_differences() {
    let mut flow = example();
    let n = 5;
    let (x, _) = sample(&flow, n);
    let mut log_q = vec![Evaluation::inside(0.0); n];
    let mut gradient = vec![0.0; x.len()];
    flow.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap();
    let total = |flow: &CouplingFlow<f64>, x: &[f64]| {
        let mut log_q = vec![Evaluation::inside(0.0); n];
        flow.log_density(x, &mut log_q).unwrap();
        log_q.iter().enumerate().map(|(row, e)| (row + 1) as f64 * e.log_density).sum::<f64>()
    };
    let h = 1e-7;
    let dx = flow.dimension();
    for c in 9..x.len() {
        if c % dx == 11 {
            continue; // atom 3 carries the constrained bond's end, tested through atom 6 below
        }
        let (mut up, mut down) = (x.clone(), x.clone());
        up[c] += h;
        down[c] -= h;
        let d = (total(&flow, &up) - total(&flow, &down)) / (2.0 * h);
        let expected = gradient[c] * (c / dx + 1) as f64;
        assert!((expected - d).abs() < 1e-4 * d.abs().max(10.0), "coordinate {c}: {expected} {d}");
    }
    let weights: Vec<f64> = (1..=n).map(|w| w as f64).collect();
    let mut by_parameters = vec![0.0; flow.parameters().len()];
    flow.parameter_gradient(&x, &weights, &mut log_q, &mut by_parameters).unwrap();
    check_parameters(&mut flow, &by_parameters, |flow| total(flow, &x));
}

/// Each layer with ends keeps to them whatever comes before or after, and so does the uniform prior.
#[test]
fn beyond_the_ends_of_a_layer_there_is_no_density() {
    let one = vec![0];
    let layers = [
        Some(spline(&one, features(&[], &[1]), Ends::Free, [0.0, 1.0])),
        Some(spline(&one, features(&[], &[1]), Ends::Circular, [0.0, 1.0])),
        Some(LayerConfig::Shift { transformed: one.clone() }),
        Some(LayerConfig::Wrap { transformed: one.clone(), shift: vec![0.3] }),
        Some(LayerConfig::Uniform { transformed: one.clone(), low: vec![0.0], high: vec![1.0] }),
        Some(LayerConfig::TruncatedNormal {
            transformed: one.clone(),
            mean: vec![0.4],
            sd: vec![0.5],
            lower: 0.0,
            upper: 1.0,
        }),
        None,
    ];
    for layer in layers {
        let uniform = if layer.is_some() { vec![] } else { one.clone() };
        let config = CouplingConfig { uniform, layers: layer.iter().cloned().collect() };
        let mut flow =
            CouplingFlow::<f64>::new(ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 2 }))
                .unwrap();
        flow.initialise(3);
        let points = [0.5, 0.2, -0.1, 0.2, 1.1, 0.2];
        let (mut log_q, mut generated) = ([Evaluation::inside(0.0); 3], [Evaluation::inside(0.0); 3]);
        flow.log_density(&points, &mut log_q).unwrap();
        flow.generate(&points, &mut [0.0; 6], &mut [0.0; 3], &mut generated).unwrap();
        for found in [log_q, generated] {
            assert!(found[0].is_inside(), "{layer:?}");
            assert!(found[1..].iter().all(|e| *e == Evaluation::outside(Status::OutOfSupport)), "{layer:?}: {found:?}");
        }
    }
}

#[test]
fn rows_outside_the_support_have_no_part_in_a_gradient() {
    let flow = example();
    let ((x, _), dx) = (sample(&flow, 3), flow.dimension());
    // at twice the size every bond is outside the support
    let with_one_outside: Vec<f64> = x.iter().copied().chain(x[..dx].iter().map(|x| 2.0 * x)).collect();
    let of = |x: &[f64], weights: &[f64]| {
        let mut log_q = vec![Evaluation::inside(0.0); weights.len()];
        let mut gradient = vec![0.0; flow.parameters().len()];
        flow.parameter_gradient(x, weights, &mut log_q, &mut gradient).unwrap();
        (gradient, log_q)
    };
    let ((without, _), (with, log_q)) = (of(&x, &[1.0; 3]), of(&with_one_outside, &[1.0; 4]));
    assert!(log_q[..3].iter().all(Evaluation::is_inside) && !log_q[3].is_inside());
    assert!(with.iter().zip(&without).all(|(a, b)| (a - b).abs() < 1e-9 * b.abs().max(1.0)));
    let (mut log_q, mut by_x) = ([Evaluation::inside(0.0); 4], vec![1.0; 4 * dx]);
    flow.log_density_gradient(&with_one_outside, &mut log_q, &mut by_x).unwrap();
    assert!(by_x[3 * dx..].iter().all(|g| *g == 0.0));
}

/// Compares directional differences of `value` along 40 random directions in parameter space with `gradient`.
fn check_parameters(flow: &mut CouplingFlow<f64>, gradient: &[f64], value: impl Fn(&CouplingFlow<f64>) -> f64) {
    let start = flow.parameters().to_vec();
    let mut stream = Stream::new(8, StreamId::Test, 0, 0);
    let h = 1e-6;
    for _ in 0..40 {
        let direction: Vec<f64> = start.iter().map(|_| stream.normal() * f64::from(stream.uniform() < 0.05)).collect();
        let mut along = |s: f64| {
            flow.parameters_mut().iter_mut().zip(&start).zip(&direction).for_each(|((p, p0), d)| *p = p0 + s * d);
            value(flow)
        };
        let d = (along(h) - along(-h)) / (2.0 * h);
        let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        assert!((expected - d).abs() < 2e-6 * d.abs().max(10.0), "{expected} {d}");
    }
    flow.parameters_mut().copy_from_slice(&start);
}

#[test]
fn generating_gradient_matches_differences() {
    let mut flow = example();
    let (n, d, dx) = (4, flow.latent_dimension(), flow.dimension());
    let mut stream = Stream::new(6, StreamId::Test, 0, 0);
    let z: Vec<f64> = (0..n * d)
        .map(|i| if [10, 12].contains(&(i % d)) { stream.uniform() } else { 0.7 * stream.normal() })
        .collect();
    let gx: Vec<f64> = (0..n * dx).map(|_| stream.normal()).collect();
    let g_log_det: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
    let value = |flow: &CouplingFlow<f64>, z: &[f64]| {
        let (mut x, mut log_det, mut log_q) = (vec![0.0; n * dx], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
        flow.generate(z, &mut x, &mut log_det, &mut log_q).unwrap();
        assert!(log_q.iter().all(Evaluation::is_inside));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        dot(&gx, &x) + dot(&g_log_det, &log_det)
    };
    let mut gradient = vec![0.0; flow.parameters().len()];
    flow.with_workspace(|ws| {
        let mut x = vec![0.0; n * dx];
        flow.generate_chunk(ws, &mut x, |row, u| u.copy_from_slice(&z[row * d..][..d]));
        flow.generate_vjp(ws, &x, &gx, &g_log_det, Some(&mut gradient));
    });
    check_parameters(&mut flow, &gradient, |flow: &CouplingFlow<f64>| value(flow, &z));

    let mut gz = vec![0.0; n * d];
    flow.pull_back(&z, &gx, &g_log_det, &mut gz).unwrap();
    for i in 0..n * d {
        let moved = |h: f64| {
            let mut z = z.clone();
            z[i] += h;
            value(&flow, &z)
        };
        let difference = (moved(1e-6) - moved(-1e-6)) / 2e-6;
        assert!((gz[i] - difference).abs() < 1e-6 * (1.0 + difference.abs()), "z {i}: {} {difference}", gz[i]);
    }
}

#[test]
fn a_file_gives_the_same_model_back_and_f32_is_near() {
    let flow = example();
    let bytes = flow.to_bytes().unwrap();
    let (x, log_q) = sample(&flow, 64);
    let mut again = log_q.clone();
    let loaded = crate::models::from_bytes("memory", &bytes, crate::models::Precision::F64).unwrap();
    loaded.log_density(&x, &mut again).unwrap();
    let mut direct = log_q.clone();
    flow.log_density(&x, &mut direct).unwrap();
    assert_eq!(again, direct);
    let single = crate::models::load_bytes("memory", &bytes).unwrap();
    single.log_density(&x, &mut again).unwrap();
    for (a, b) in direct.iter().zip(&again).filter(|(a, _)| a.is_inside()) {
        assert!((a.log_density - b.log_density).abs() < 1e-4, "{a:?} {b:?}");
    }
}

#[test]
fn results_do_not_depend_on_the_threads() {
    let flow = example().cast::<f32>().unwrap();
    let n = 700;
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut x = vec![0.0; n * flow.dimension()];
            let mut log_q = vec![Evaluation::inside(0.0); n];
            flow.sample(&|row| Stream::new(3, StreamId::Test, row as u64, 0), &mut x, &mut log_q).unwrap();
            let mut gradient = vec![0.0f32; flow.parameters().len()];
            flow.parameter_gradient(&x, &vec![1.0; n], &mut log_q, &mut gradient).unwrap();
            (x, log_q, gradient)
        })
    };
    assert!(run(1) == run(3));
}
