//! TarFlow of transferable-samplers: single-system here, transferable in its own file.

use super::{error, relative_error, transferable, Found, Golden};
use modejump::density::{Density, Evaluation};
use modejump::io::model_file::{Data, Tensor};
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, Centroid, Config, Decoding, Jacobi, Options, TarFlow, TarNetwork};
use modejump::models::{Flow, ModelCard};
use modejump::nn::{Real, Tape};
use modejump::train::likelihood::negative_log_likelihood;
use std::collections::BTreeMap;
use std::path::Path;

/// Tolerances of coordinates and log-densities.
pub fn tolerance<R: Real>() -> (f64, f64) {
    match R::NAME {
        "f64" => (1e-11, 1e-11),
        _ => (2e-5, 1e-4),
    }
}

/// `tarflow_*/io_*` and `prose_*/io_*`, in the network's units and without removing the centroid noise.
pub fn check(stem: &Path) -> Found {
    let config = Golden::open_with(stem, &stem.with_file_name("config.json")).config;
    if config["kind"] == "tarflow_transferable" {
        return transferable::check(stem);
    }
    match stem.file_name().is_some_and(|name| name == "io_f32") {
        true => check_as::<f32>(stem),
        false => check_as::<f64>(stem),
    }
}

fn flow<R: Real>(weights: &BTreeMap<String, Tensor>, head_size: usize, centroid: Option<f64>) -> TarFlow<R> {
    let (network, tensors) = format::of_checkpoint(weights.clone(), head_size).unwrap_or_else(|e| panic!("{e}"));
    let parameters =
        TarNetwork::new(network.clone()).unwrap().layout().read(&tensors).unwrap_or_else(|e| panic!("{e}"));
    let atoms = network.tokens * network.token_size / 3;
    let config = Config { network, units_per_nm: 1.0, centroid, stereocentres: vec![] };
    let card = ModelCard::of_cartesian(config.clone(), 3 * atoms);
    TarFlow::new(parameters, config, card, String::new()).unwrap()
}

fn check_as<R: Real>(stem: &Path) -> Found {
    let config = stem.with_file_name("config.json");
    let golden = Golden::open_with(stem, &config);
    let weights = Golden::open_with(&stem.with_file_name("state_f32"), &config).tensors;
    let head_size = golden.config["head_dim"].as_u64().unwrap() as usize;
    let noisy = golden.get("com_std_proposals")[0];
    let [flow, noisy] = [None, Some(noisy)].map(|centroid| flow::<R>(&weights, head_size, centroid));
    let (x, n) = (golden.get("x"), golden.tensor("x").shape[0]);
    let d = flow.dimension();
    let (of_x, of_log) = tolerance::<R>();
    let nowhere = Evaluation::inside(0.0);

    // output of each block
    let narrow: Vec<R> = x.iter().map(|&v| R::from_f64(v)).collect();
    let mut tape = Tape::default();
    let recorded = flow.network().record(flow.parameters(), &mut tape, &narrow);
    let values = |var| tape.value(var).iter().map(|v| v.to_f64()).collect::<Vec<f64>>();
    let blocks = recorded.after.iter().enumerate();
    let largest = blocks.map(|(b, &var)| error(&values(var), golden.get(&format!("block{b}_out")))).fold(0.0, f64::max);
    let mut found: Found = vec![("blocks".into(), largest, of_x)];

    let (mut z, mut log_det, mut log_q) = (vec![0.0; n * d], vec![0.0; n], vec![nowhere; n]);
    flow.encode(x, &mut z, &mut log_det, &mut log_q).unwrap();
    let log_det: Vec<f64> = log_det.iter().map(|v| -v).collect();
    let log_q: Vec<f64> = log_q.iter().map(|e| e.log_density).collect();
    found.push(("z".into(), error(&z, golden.get("fwd_z")), of_x));
    found.push(("log-det".into(), error(&log_det, golden.get("fwd_logdet_sum")), of_log));
    found.push(("log q".into(), error(&log_q, golden.get("log_q")), of_log));

    // the generating direction; the reference runs the network again for log q
    let mut back = vec![0.0; n * d];
    let (mut sum_a, mut of_sample) = (vec![0.0; n], vec![nowhere; n]);
    flow.generate(golden.get("z_in"), &mut back, &mut sum_a, &mut of_sample).unwrap();
    let of_sample: Vec<f64> = of_sample.iter().map(|e| e.log_density).collect();
    found.push(("x".into(), error(&back, golden.get("rev_x")), of_x));
    found.push(("log q of samples".into(), error(&of_sample, golden.get("rev_log_q")), of_log));

    // by iteration, with all tokens at once or in segments of five
    let tolerance = if R::NAME == "f64" { 1e-11 } else { 1e-5 };
    for (name, segment) in [("x, Jacobi", usize::MAX), ("x, Gauss–Seidel", 5)] {
        let how = Jacobi { segment, tolerance, passes: usize::MAX };
        let together = flow.with_options(Options { decoding: Decoding::Jacobi(how), ..Options::default() }).unwrap();
        together.generate(golden.get("z_in"), &mut back, &mut sum_a, &mut vec![nowhere; n]).unwrap();
        found.push((name.into(), error(&back, golden.get("rev_x")), of_x));
        found.push(("fallbacks".into(), together.decoded().fallbacks as f64, 0.0));
    }

    // the paper's centroid correction, by the density of its distance from the origin
    let radial = noisy.with_options(Options { centroid: Centroid::Chi3, ..Options::default() }).unwrap();
    let mut adjusted = vec![nowhere; n];
    radial.log_density(x, &mut adjusted).unwrap();
    let adjusted: Vec<f64> = adjusted.iter().map(|e| e.log_density).collect();
    let relative = if R::NAME == "f64" { 1e-11 } else { 1e-5 };
    found.push(("log q, radial".into(), relative_error(&adjusted, golden.get("log_q_com_adjusted")), relative));

    let (mut evaluations, mut gradient) = (vec![nowhere; n], vec![0.0; n * d]);
    flow.log_density_gradient(x, &mut evaluations, &mut gradient).unwrap();
    gradient.iter_mut().for_each(|g| *g = -*g);
    let expected = golden.get("proposal_energy_grad");
    let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let of_gradient = if R::NAME == "f64" { 1e-9 } else { 1e-5 * scale };
    found.push(("gradient".into(), error(&gradient, expected), of_gradient));
    found.extend(training(stem, &flow, &golden));
    found
}

/// Maximum-likelihood loss per coordinate and its gradients, if the file exists.
fn training<R: Real>(stem: &Path, flow: &TarFlow<R>, golden: &Golden) -> Found {
    let name = if R::NAME == "f64" { "train_grads_f64" } else { "train_grads_f32" };
    let path = stem.with_file_name(name);
    if !path.with_extension("safetensors").exists() {
        return Found::new();
    }
    let expected = Golden::open_alone(&path);
    let mut gradient = vec![R::default(); flow.parameters().len()];
    let loss = negative_log_likelihood(flow.network(), flow.parameters(), golden.get("x"), &mut gradient);
    compare_training(&expected, flow.network(), loss, &gradient)
}

/// Compares a loss and its gradients, by tensor name.
pub fn compare_training<R: Real>(expected: &Golden, network: &TarNetwork, loss: f64, gradient: &[R]) -> Found {
    // the reference's loss includes the constant
    let loss = loss + 0.5 * (2.0 * std::f64::consts::PI).ln();
    let (of_loss, of_gradient) = if R::NAME == "f64" { (1e-11, 1e-9) } else { (1e-5, 1e-5) };
    let mut found: Found = vec![("loss".into(), error(&[loss], expected.get("loss")), of_loss)];
    let written = network.layout().write(gradient);
    let mut largest = 0.0f64;
    for (name, (_, data)) in written {
        let values = match data {
            Data::F32(values) => values.into_iter().map(f64::from).collect(),
            Data::F64(values) => values,
        };
        largest = largest.max(error(&values, expected.get(&format!("grad.{name}"))));
    }
    found.push(("parameter gradients".into(), largest, of_gradient));
    found
}
