//! transferable-samplers' ECNF.

use super::{error, relative_error, Found, Golden};
use modejump::density::Evaluation;
use modejump::io::model_file::Tensor;
use modejump::models::continuous::{ContinuousConfig, ContinuousFlow, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::egnn_flow::{format, Config, Egnn, EgnnConfig};
use modejump::models::network::{Evaluator, Network};
use modejump::models::{Flow, ModelCard, ModelConfig, VectorField};
use modejump::nn::Real;
use modejump::ode::Method;
use std::collections::BTreeMap;
use std::path::Path;

/// Tolerances in double and single precision: absolute for velocities, relative for divergences.
fn tolerance<R: Real>() -> (f64, f64) {
    match R::NAME {
        "f64" => (1e-10, 1e-10),
        _ => (3e-5, 1e-5),
    }
}

/// `ecnf*/io_*`: velocities, and for one molecule the Jacobian at t = 0.3.
pub fn ecnf(stem: &Path) -> Found {
    match stem.file_name().is_some_and(|name| name == "io_f32") {
        true => ecnf_as::<f32>(stem),
        false => ecnf_as::<f64>(stem),
    }
}

fn ecnf_as<R: Real>(stem: &Path) -> Found {
    let golden = Golden::open_with(stem, &stem.with_file_name("config.json"));
    let weights = Golden::open_with(&stem.with_file_name("state_f32"), &stem.with_file_name("config.json")).tensors;
    let range = golden.config["coords_range_layer"].as_f64().unwrap() * golden.config["num_layers"].as_f64().unwrap();
    let (x, t, v) = (golden.get("x"), golden.get("t"), golden.get("v"));
    let [samples, atoms, 3] = golden.tensor("x").shape[..] else { panic!("x is not [n][atoms][3]") };
    let (of_v, of_divergence) = tolerance::<R>();
    if golden.tensors.contains_key("mask") {
        let mut largest = 0.0f64;
        for s in 0..samples {
            let present = golden.get("mask")[s * atoms..(s + 1) * atoms].iter().filter(|&&m| m > 0.0).count();
            let field = field::<R>(&weights, encoded(&golden, s * atoms, present), range);
            let row = s * atoms * 3..(s * atoms + present) * 3;
            largest = largest.max(error(&velocity(&field, &t[s..=s], &x[row.clone()]), &v[row]));
        }
        return vec![("v".into(), largest, of_v * scale::<R>(v))];
    }
    let types: Vec<usize> = serde_json::from_value(golden.config["h_initial_types"].clone()).unwrap();
    let features = types.into_iter().map(|t| vec![t]).collect();
    let field = field::<R>(&weights, features, range);
    let at = vec![0.3; samples];
    let mut found = vec![
        ("v".into(), error(&velocity(&field, t, x), v), of_v * scale::<R>(v)),
        ("v(0.3)".into(), error(&velocity(&field, &at, x), golden.get("v_scalar_t0.3")), of_v * scale::<R>(v)),
    ];
    // the reference's ODE right-hand side for the first two rows: velocity and −divergence
    let wrapped = golden.tensor("wrapped_t0.3");
    let (rows, d) = (wrapped.shape[0], 3 * atoms);
    let (mut f, mut divergence) = (vec![0.0; rows * d], vec![0.0; rows]);
    field.evaluate_divergence(&at[..rows], &x[..rows * d], &mut f, &mut divergence);
    let expected: Vec<f64> = wrapped.data.chunks_exact(d + 1).map(|row| -row[d]).collect();
    found.push(("divergence".into(), relative_error(&divergence, &expected), of_divergence));
    let jacobian = golden.get("jacobian_t0.3_sample0");
    let columns: Vec<Vec<f64>> = (0..d)
        .map(|k| {
            let mut dx = vec![0.0; d];
            dx[k] = 1.0;
            let (mut f, mut df) = (vec![0.0; d], vec![0.0; d]);
            field.evaluate_jvp(&[0.3], &x[..d], &dx, &mut f, &mut df);
            df
        })
        .collect();
    let rows: Vec<f64> = (0..d * d).map(|i| columns[i % d][i / d]).collect();
    found.push(("Jacobian".into(), error(&rows, jacobian), of_v * scale::<R>(jacobian)));
    found.extend(integrated(&golden, field));
    found
}

/// The reference's Dormand–Prince runs, to within the error of a solver of their tolerance: the reference has one step
/// size for the whole batch and the log-determinant in its error norm; here each sample has its own steps. The
/// reference's error falls with its tolerance.
fn integrated<R: Real>(golden: &Golden, field: Evaluator<Egnn, R>) -> Found {
    let (z, n_atoms) = (golden.get("z"), field.dimension() / 3);
    let config = ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times: [0.0, 1.0],
        units_per_nm: 1.0,
        stereocentres: vec![],
        prior: Prior::Reference,
        divergence: Divergence::Exact,
        solver: Method::DormandPrince {
            absolute: 1e-6,
            relative: 1e-6,
            log_density: 1e-5,
            quadrature: 0,
            max_steps: 1000,
        },
    };
    let model = ModelConfig::EgnnFlow(Config { network: field.network.config().clone(), flow: config.clone() });
    let card = ModelCard::of_cartesian(model, 3 * n_atoms);
    let flow = ContinuousFlow::new(field, config, card, String::new()).unwrap();
    let n = z.len() / (3 * n_atoms);
    let (mut x, mut log_det, mut log_q) = (vec![0.0; z.len()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    flow.generate(z, &mut x, &mut log_det, &mut log_q).unwrap();
    let mut found = Found::new();
    for (run, of_x, of_log_det) in [("ode_tol0.0001", 1e-2, 0.5), ("ode_tol1e-06", 1e-4, 5e-3)] {
        let Some(expected) = golden.tensors.get(&format!("{run}_x")) else { continue };
        // the reference accumulates −∫div
        let dlogp: Vec<f64> = log_det.iter().map(|v| -v).collect();
        found.push((format!("{run} x"), error(&x, &expected.data), of_x));
        found.push((format!("{run} log-det"), error(&dlogp, golden.get(&format!("{run}_dlogp"))), of_log_det));
    }
    found
}

/// Scale of the tolerance: in single precision, errors grow with the values.
fn scale<R: Real>(values: &[f64]) -> f64 {
    match R::NAME {
        "f64" => 1.0,
        _ => values.iter().fold(1.0f64, |m, v| m.max(v.abs())),
    }
}

fn field<R: Real>(weights: &BTreeMap<String, Tensor>, features: Vec<Vec<usize>>, range: f64) -> Evaluator<Egnn, R> {
    let (config, tensors): (EgnnConfig, _) = format::of_ecnf(weights.clone(), features, range).unwrap();
    let network = Egnn::new(config).unwrap();
    let mut parameters = vec![R::default(); network.layout().n_parameters()];
    for (name, shape, at) in network.layout().tensors() {
        assert_eq!(tensors[name].shape, shape, "{name}");
        parameters[at..].iter_mut().zip(&tensors[name].data).for_each(|(p, &v)| *p = R::from_f64(v));
    }
    assert_eq!(tensors.len(), network.layout().tensors().count());
    Evaluator::new(network, parameters)
}

/// Transferable features: atom type (54 classes), residue position (2), residue type (20).
fn encoded(golden: &Golden, first: usize, present: usize) -> Vec<Vec<usize>> {
    let code = |name: &str, atom: usize| golden.get(name)[first + atom] as usize - 1;
    let each = |i| vec![code("enc.atom_type", i), 54 + code("enc.aa_pos", i), 56 + code("enc.aa_type", i)];
    (0..present).map(each).collect()
}

fn velocity(field: &impl VectorField, t: &[f64], x: &[f64]) -> Vec<f64> {
    let mut v = vec![0.0; x.len()];
    field.evaluate(t, x, &mut v);
    v
}
