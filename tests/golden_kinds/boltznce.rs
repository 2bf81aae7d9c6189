//! BoltzNCE's vector fields: values and exact divergences of trained checkpoints.

use super::{error, relative_error, Found, Golden};
use modejump::density::Evaluation;
use modejump::io::model_file::{read_tensors, Tensor};
use modejump::models::continuous::{ContinuousConfig, ContinuousFlow, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::gvp_flow::record::GvpNetwork;
use modejump::models::gvp_flow::{boltznce, Config, GvpField};
use modejump::models::network::Network;
use modejump::models::{Flow, ModelCard, ModelConfig, VectorField};
use modejump::nn::Real;
use modejump::ode::Method;
use modejump::rng::{Stream, StreamId};
use modejump::train::flow_matching::{flow_matching, Batch};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const F64_VALUE: f64 = 1e-10;
/// Relative to the largest divergence.
const F64_DIVERGENCE: f64 = 1e-11;
const F32_VALUE: f64 = 3e-5;
const F32_DIVERGENCE: f64 = 1e-5;

/// The checkpoint of a golden file KIND_NAME: `weights/NAME.safetensors` beside it.
fn checkpoint_of(stem: &Path, kind: &str) -> PathBuf {
    let name = stem.file_name().unwrap().to_str().unwrap().strip_prefix(kind).unwrap();
    stem.with_file_name("weights").join(format!("{name}.safetensors"))
}

/// A checkpoint with its architecture in the metadata.
fn checkpoint(path: PathBuf) -> (PathBuf, BTreeMap<String, Tensor>, Value) {
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (tensors, metadata) = read_tensors(&path.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
    let arch = serde_json::from_str(&metadata["arch"]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    (path, tensors, arch)
}

/// The columns set in each row of a multi-hot matrix.
fn features(h: &Tensor) -> Vec<Vec<usize>> {
    let set = |row: &[f64]| row.iter().enumerate().filter(|(_, &v)| v != 0.0).map(|(i, _)| i).collect();
    h.data.chunks_exact(h.shape[1]).map(set).collect()
}

struct Computed {
    value: Vec<f64>,
    divergence: Vec<f64>,
    tangent: Vec<f64>,
    from_jvp: f64,
}

/// Value and divergence in one batch, and the sum of jvp along the unit vectors for the first configuration.
fn compute<R: Real>(field: &GvpField<R>, t: &[f64], x: &[f64]) -> Computed {
    let d = field.dimension();
    let (mut alone, mut value, mut divergence) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; t.len()]);
    field.evaluate(t, x, &mut alone);
    field.evaluate_divergence(t, x, &mut value, &mut divergence);
    assert_eq!(alone, value, "the value depends on whether the divergence is asked for");
    let n = d * d;
    let repeated: Vec<f64> = (0..d).flat_map(|_| x[..d].to_vec()).collect();
    let units: Vec<f64> = (0..n).map(|i| if i / d == i % d { 1.0 } else { 0.0 }).collect();
    let (mut f, mut df) = (vec![0.0; n], vec![0.0; n]);
    field.evaluate_jvp(&vec![t[0]; d], &repeated, &units, &mut f, &mut df);
    assert_eq!(&f[..d], &value[..d], "the value depends on whether the jvp is asked for");
    let from_jvp = (0..d).map(|i| df[i * d + i]).sum();
    Computed { value, divergence, tangent: df, from_jvp }
}

/// `field_*`: eight configurations; the endpoint checkpoints' values are the network's output, not the velocity.
pub fn field(stem: &Path) -> Found {
    let bytes = std::fs::read(stem.with_extension("safetensors")).unwrap_or_else(|e| panic!("{}: {e}", stem.display()));
    let (golden, _) = read_tensors(&stem.display().to_string(), &bytes).unwrap_or_else(|e| panic!("{e}"));
    let (path, tensors, arch) = checkpoint(checkpoint_of(stem, "field_"));
    let config = boltznce::network(&tensors, &arch, features(&golden["h"]))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let double = boltznce::field(&tensors, config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (t, x) = (&golden["t"].data, &golden["x"].data);
    let (exact, single) = (compute(&double, t, x), compute(&double.cast::<f32>().unwrap(), t, x));
    let largest = golden["div_f64"].data.iter().fold(1.0, |m: f64, d| m.max(d.abs()));
    let divergence_error = |found: &[f64]| error(found, &golden["div_f64"].data) / largest;
    let trace_error = |c: &Computed| (c.from_jvp - c.divergence[0]).abs() / largest;
    vec![
        ("v".into(), error(&exact.value, &golden["v_f64"].data), F64_VALUE),
        ("divergence".into(), divergence_error(&exact.divergence), F64_DIVERGENCE),
        ("divergence by jvp".into(), trace_error(&exact), F64_DIVERGENCE),
        ("v in f32".into(), error(&single.value, &golden["v_f64"].data), F32_VALUE),
        ("divergence in f32".into(), divergence_error(&single.divergence), F32_DIVERGENCE),
        ("divergence by jvp in f32".into(), trace_error(&single), F32_DIVERGENCE),
        ("jvp in f32".into(), error(&single.tangent, &exact.tangent), F32_DIVERGENCE * largest),
    ]
}

/// The double-precision field of a golden file's checkpoint, and whether it predicts end points.
fn alanine(stem: &Path, kind: &str) -> (GvpField<f64>, Parametrisation) {
    let (path, tensors, arch) = checkpoint(checkpoint_of(stem, kind));
    let features = super::energies::ala2_types().into_iter().map(|t| vec![t]).collect();
    let config = boltznce::network(&tensors, &arch, features).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let endpoint = arch["endpoint"].as_bool().unwrap();
    let parametrisation = if endpoint { Parametrisation::Endpoint } else { Parametrisation::Velocity };
    (boltznce::field(&tensors, config).unwrap_or_else(|e| panic!("{}: {e}", path.display())), parametrisation)
}

fn settings(parametrisation: Parametrisation, t_end: f64, solver: Method) -> ContinuousConfig {
    ContinuousConfig {
        parametrisation,
        interpolant: Interpolant::Linear,
        times: [1.0, t_end],
        units_per_nm: 1.0,
        stereocentres: vec![],
        prior: Prior::Reference,
        divergence: Divergence::Exact,
        solver,
    }
}

/// A flow on a golden file's checkpoint, with the given end time and solver.
fn flow(stem: &Path, t_end: f64, solver: Method) -> ContinuousFlow<GvpField<f64>> {
    let (field, parametrisation) = alanine(stem, "ode_");
    let config = settings(parametrisation, t_end, solver);
    let model = ModelConfig::GvpFlow(Config { network: field.config().clone(), flow: config.clone() });
    let card = ModelCard::of_cartesian(model, field.dimension());
    ContinuousFlow::new(field, config, card, String::new()).unwrap()
}

/// Runs the flow once; returns points and log q.
fn pass(n: usize, start: &[f64], run: impl Fn(&[f64], &mut [f64], &mut [f64], &mut [Evaluation])) -> [Vec<f64>; 2] {
    let (mut end, mut log_det, mut log_q) = (vec![0.0; start.len()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    run(start, &mut end, &mut log_det, &mut log_q);
    [end, log_q.iter().map(|e| e.log_density).collect()]
}

/// `ode_*`: with fixed steps, those of the reference; with Dormand–Prince, to within the agreement of two adaptive
/// solvers of tolerance 1e-5, of which the reference's runs past the end of its interval.
pub fn ode(stem: &Path) -> Found {
    let golden = Golden::open_alone(stem);
    let t_min = golden.get("tmin")[0];
    let prior = golden.get("prior");
    let four = &prior[..golden.get("rk4_20_x").len()];
    let forward = |t_end, solver, z: &[f64]| {
        let flow = flow(stem, t_end, solver);
        pass(z.len() / 66, z, |z, x, log_det, log_q| flow.generate(z, x, log_det, log_q).unwrap())
    };
    let back = |t_end, solver, x: &[f64]| {
        let flow = flow(stem, t_end, solver);
        pass(x.len() / 66, x, |x, z, log_det, log_q| flow.encode(x, z, log_det, log_q).unwrap())
    };
    let t_rk4 = golden.get("rk4_20_logp_tmin")[0];
    let rk4 = Method::Rk4 { steps: 20 };
    let [x, log_q] = forward(t_rk4, rk4, four);
    let [z, log_q_back] = back(t_rk4, rk4, golden.get("rk4_20_x"));
    let mut found = vec![
        ("RK4 x".into(), error(&x, golden.get("rk4_20_x")), F64_VALUE),
        ("RK4 log q".into(), error(&log_q, golden.get("rk4_20_logp")), F64_VALUE),
        ("RK4 back x".into(), error(&z, golden.get("rk4_20_back_x")), F64_VALUE),
        ("RK4 back log q".into(), error(&log_q_back, golden.get("rk4_20_back_logp")), F64_VALUE),
    ];
    for (name, solver) in [("rk4_50_x", Method::Rk4 { steps: 50 }), ("euler_100_x", Method::Euler { steps: 100 })] {
        found.push((name.into(), error(&forward(t_min, solver, prior)[0], golden.get(name)), F64_VALUE));
    }
    let [x, log_q] = forward(t_min, Method::default(), four);
    let [z, log_q_back] = back(t_min, Method::default(), golden.get("dopri5_x"));
    found.extend([
        ("Dormand–Prince x".into(), error(&x, golden.get("dopri5_x")), SOLVER_X),
        ("log q".into(), error(&log_q, golden.get("dopri5_logp")), SOLVER_LOG_Q),
        ("back x".into(), error(&z, golden.get("dopri5_back_x")), SOLVER_X),
        ("back log q".into(), error(&log_q_back, golden.get("dopri5_back_logp")), SOLVER_LOG_Q),
    ]);
    found
}

/// Two adaptive solvers with tolerance 1e-5 on a field that is stiff near the data.
const SOLVER_X: f64 = 1e-2;
const SOLVER_LOG_Q: f64 = 5e-2;
/// The reference's losses are in single precision.
const LOSS: f64 = 5e-6;

/// `fm_loss_*`: the flow-matching loss and the norm of its gradient with respect to each tensor.
pub fn flow_matching_loss(stem: &Path) -> Found {
    let golden = Golden::open_alone(stem);
    let (field, parametrisation) = alanine(stem, "fm_loss_");
    let network = GvpNetwork::new(field.config().clone()).unwrap();
    let mut gradient = vec![0.0; network.layout().n_parameters()];
    let batch = Batch { data: golden.get("x0"), prior: golden.get("x1"), t: golden.get("t") };
    let config = settings(parametrisation, 0.0, Method::default());
    let largest_weight = golden.get("weight").iter().fold(0.0, |m: f64, w| m.max(*w));
    let loss = flow_matching(&network, field.parameters(), &config, &batch, largest_weight, &mut gradient);
    let mut found = vec![("loss".into(), relative_error(&[loss], golden.get("loss")), LOSS)];
    found.extend(gradient_norms(&golden, "", &network, &gradient, LOSS));
    found
}

/// Norms of the gradient with respect to each tensor, and of the whole gradient.
pub fn gradient_norms(golden: &Golden, kind: &str, network: &impl Network, gradient: &[f64], tolerance: f64) -> Found {
    let names: Vec<String> =
        serde_json::from_str(golden.config[&format!("gradnames{kind}")].as_str().unwrap()).unwrap();
    let norm = |values: &[f64]| values.iter().map(|g| g * g).sum::<f64>().sqrt();
    let place: BTreeMap<&str, (usize, usize)> =
        network.layout().tensors().map(|(name, shape, at)| (name, (at, shape.iter().product()))).collect();
    let norms: Vec<f64> = names
        .iter()
        .map(|name| {
            let (at, n) = *place.get(name.as_str()).unwrap_or_else(|| panic!("no tensor {name}"));
            norm(&gradient[at..at + n])
        })
        .collect();
    let expected = golden.get(&format!("gradnorms{kind}"));
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(*v));
    let all = golden.get(&format!("gradnorm{kind}"));
    vec![
        (format!("gradient norms{kind}"), error(&norms, expected) / largest, tolerance),
        (format!("gradient norm{kind}"), relative_error(&[norm(gradient)], all), tolerance),
    ]
}

/// Any checkpoint: 12 atoms with arbitrary features in a random shape, in both precisions and with both derivatives.
pub fn weights(stem: &Path) -> Found {
    let (path, tensors, arch) = checkpoint(stem.with_extension("safetensors"));
    let features = (0..12).map(|atom| vec![atom]).collect();
    let config = boltznce::network(&tensors, &arch, features).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let double = boltznce::field(&tensors, config).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut stream = Stream::new(1, StreamId::Test, 0, 0);
    let x: Vec<f64> = (0..36).map(|_| 2.0 * stream.normal()).collect();
    let (exact, single) = (compute(&double, &[0.5], &x), compute(&double.cast::<f32>().unwrap(), &[0.5], &x));
    let scale = |values: &[f64]| values.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let [value, divergence] = [scale(&exact.value), scale(&exact.divergence)];
    vec![
        ("divergence by jvp".into(), (exact.from_jvp - exact.divergence[0]).abs() / divergence, F64_DIVERGENCE),
        ("v in f32".into(), error(&single.value, &exact.value) / value, 1e-4),
        ("divergence in f32".into(), error(&single.divergence, &exact.divergence) / divergence, 1e-4),
    ]
}
