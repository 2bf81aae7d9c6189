//! bgflow and nflows: splines, RealNVP, internal coordinates, whole generators.

use super::{error, Found, Golden};
use modejump::coordinates::{CoordinatesConfig, InternalCoordinates, ZMatrix};
use modejump::density::{Density, Evaluation};
use modejump::io::model_file::Tensor;
use modejump::models::card::ModelCard;
use modejump::models::coupling::{bgflow, CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use modejump::models::Flow;
use modejump::nn::{Activation, Real};
use std::path::Path;

const EXACT: f64 = 1e-11;
const LOG_DET: f64 = 1e-10;

/// Tolerances of values and log-determinants of a flow in single precision; the measured errors are 3e-7 and 1.1e-5.
const F32_Z: f64 = 3e-6;
const F32_LOG_DET: f64 = 1e-4;

struct Mapped {
    values: Vec<f64>,
    log_det: Vec<f64>,
    log_density: Vec<f64>,
}

fn unpack(values: Vec<f64>, log_det: Vec<f64>, evaluations: &[Evaluation]) -> Mapped {
    Mapped { values, log_det, log_density: evaluations.iter().map(|e| e.log_density).collect() }
}

fn generate<R: Real>(flow: &CouplingFlow<R>, z: &[f64]) -> Mapped {
    let n = z.len() / flow.latent_dimension();
    let (mut x, mut log_det, mut log_q) =
        (vec![0.0; n * flow.dimension()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    flow.generate(z, &mut x, &mut log_det, &mut log_q).unwrap();
    unpack(x, log_det, &log_q)
}

fn encode<R: Real>(flow: &CouplingFlow<R>, x: &[f64]) -> Mapped {
    let n = x.len() / flow.dimension();
    let (mut z, mut log_det, mut log_q) =
        (vec![0.0; n * flow.latent_dimension()], vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    flow.encode(x, &mut z, &mut log_det, &mut log_q).unwrap();
    unpack(z, log_det, &log_q)
}

fn negated(values: &[f64]) -> Vec<f64> {
    values.iter().map(|v| -v).collect()
}

/// A flow of one spline layer whose network consists of linear layers with the given weights.
fn one_spline(layer: LayerConfig, dimension: usize, network: &[(&[f64], &[f64])]) -> CouplingFlow<f64> {
    let card = ModelCard::of_coupling(
        CouplingConfig { uniform: vec![], layers: vec![layer] },
        CoordinatesConfig::Cartesian { dimension },
    );
    let mut flow = CouplingFlow::new(card).unwrap();
    let flat: Vec<f64> = network.iter().flat_map(|(w, b)| w.iter().chain(b.iter()).copied()).collect();
    flow.parameters_mut().copy_from_slice(&flat);
    flow
}

/// `rqs_raw_*`: 64 sets of raw parameters for 5 splines of 8 bins, on [0, 1] and on a scaled interval.
pub fn rqs_raw(stem: &Path) -> Found {
    let golden = Golden::open(stem);
    let [n, d, k] = golden.tensor("w").shape[..] else { panic!("w is not three-dimensional") };
    let interval: [f64; 2] = serde_json::from_value(golden.config["scaled_interval"].clone()).unwrap();
    let mut errors = [0.0f64; 6];
    for row in 0..n {
        let part = |name: &str, width: usize| &golden.get(name)[row * d * width..][..d * width];
        let (w, h, s) = (part("w", k), part("h", k), part("d", k + 1));
        let slopes = (0..d).flat_map(|c| s[c * (k + 1)..][..k].to_vec());
        let last = (0..d).map(|c| s[c * (k + 1) + k]);
        let bias: Vec<f64> = w.iter().chain(h).copied().chain(slopes).chain(last).collect();
        let flow = |interval: [f64; 2]| {
            let layer = LayerConfig::Spline {
                transformed: (0..d).collect(),
                features: Features { periodic: vec![], harmonics: 1, plain: vec![d] },
                ends: Ends::Free,
                bins: k,
                interval,
                hidden: vec![],
                activation: Activation::Silu,
                identity_init: golden.config["enable_identity_init"].as_bool().unwrap(),
            };
            one_spline(layer, d + 1, &[(&vec![0.0; bias.len()], &bias)])
        };
        let with_dummy = |values: &[f64]| values.iter().copied().chain([0.0]).collect::<Vec<_>>();
        let mut compare = |slot: usize, found: Mapped, values: &str, log_det: &str, sign: f64| {
            let sum: f64 = part(log_det, 1).iter().sum();
            errors[slot] = errors[slot].max(error(&found.values[..d], part(values, 1)));
            errors[slot + 1] = errors[slot + 1].max((sign * found.log_det[0] - sum).abs());
        };
        let unit = flow([0.0, 1.0]);
        compare(0, encode(&unit, &with_dummy(part("x", 1))), "y", "logdet", -1.0);
        compare(2, generate(&unit, &with_dummy(part("y", 1))), "x_inv", "logdet_inv", 1.0);
        compare(4, encode(&flow(interval), &with_dummy(part("x_scaled", 1))), "y_scaled", "logdet_scaled", -1.0);
    }
    ["y", "logdet", "x_inv", "logdet_inv", "y_scaled", "logdet_scaled"]
        .iter()
        .zip(errors)
        .map(|(name, e)| (name.to_string(), e, if name.starts_with("logdet") { LOG_DET } else { EXACT }))
        .collect()
}

/// `spline_transformer_*`: one coupling with its network.
pub fn spline_transformer(stem: &Path) -> Found {
    let golden = Golden::open(stem);
    let [n, c] = golden.tensor("cond").shape[..] else { panic!("cond is not a matrix") };
    let d = golden.tensor("in").shape[1];
    let weight = |l: usize| golden.tensor(&format!("w._params_net.net._layers.{}.weight", 2 * l));
    let bias = |l: usize| golden.get(&format!("w._params_net.net._layers.{}.bias", 2 * l));
    let layer = LayerConfig::Spline {
        transformed: (0..d).collect(),
        features: Features { periodic: (d..d + c).collect(), harmonics: 1, plain: vec![] },
        ends: if golden.config["is_circular"].as_bool().unwrap() { Ends::Circular } else { Ends::Free },
        bins: golden.config["n_bins"].as_u64().unwrap() as usize,
        interval: [0.0, 1.0],
        hidden: vec![weight(0).shape[0], weight(1).shape[0]],
        activation: Activation::Silu,
        identity_init: stem.to_string_lossy().ends_with("idinit"),
    };
    let network: Vec<(&[f64], &[f64])> = (0..3).map(|l| (&weight(l).data[..], bias(l))).collect();
    let flow = one_spline(layer, d + c, &network);
    let rows = |name: &str| -> Vec<f64> {
        let (values, cond) = (golden.get(name), golden.get("cond"));
        (0..n)
            .flat_map(|r| values[r * d..][..d].iter().chain(&cond[r * c..][..c]).copied().collect::<Vec<_>>())
            .collect()
    };
    let first = |found: &Mapped| found.values.chunks_exact(d + c).flat_map(|r| r[..d].to_vec()).collect::<Vec<_>>();
    let (forward, back) = (generate(&flow, &rows("in")), encode(&flow, &rows("out")));
    vec![
        ("out".into(), error(&first(&forward), golden.get("out")), EXACT),
        ("logdet".into(), error(&forward.log_det, golden.get("logdet")), LOG_DET),
        ("back".into(), error(&first(&back), golden.get("back")), EXACT),
        ("logdet_back".into(), error(&negated(&back.log_det), golden.get("logdet_back")), LOG_DET),
    ]
}

/// `realnvp_*`: z → x, x → z, log q and its gradient.
pub fn realnvp(stem: &Path) -> Found {
    let mut golden = Golden::open(stem);
    for (key, activation) in [("activation", "relu"), ("scale_activation", "tanh")] {
        golden.config[key] = activation.into(); // as given by its `shift_net` and `scale_net`
    }
    golden.config["final_swap"] = true.into(); // as given by its `layers`
    let flow = bgflow::convert(&golden.tensors, &golden.config, None).unwrap();
    let (forward, back) = (generate(&flow, golden.get("z")), encode(&flow, golden.get("x_eval")));
    let single = encode(&flow.cast::<f32>().unwrap(), golden.get("x_eval"));
    vec![
        ("x".into(), error(&forward.values, golden.get("x")), EXACT),
        ("logdet_z2x".into(), error(&forward.log_det, golden.get("logdet_z2x")), LOG_DET),
        ("z_eval".into(), error(&back.values, golden.get("z_eval")), EXACT),
        ("logdet_eval".into(), error(&negated(&back.log_det), golden.get("logdet_eval")), LOG_DET),
        ("logq_eval".into(), error(&back.log_density, golden.get("logq_eval")), LOG_DET),
        ("grad_logq_eval".into(), gradient_error(&flow, &golden), EXACT),
        ("z_eval f32".into(), error(&single.values, golden.get("z_eval")), F32_Z),
        ("logq_eval f32".into(), error(&single.log_density, golden.get("logq_eval")), F32_LOG_DET),
    ]
}

/// Error of the gradient relative to its largest component.
fn gradient_error(flow: &CouplingFlow<f64>, golden: &Golden) -> f64 {
    let (x, expected) = (golden.get("x_eval"), golden.get("grad_logq_eval"));
    let n = x.len() / flow.dimension();
    let (mut log_q, mut gradient) = (vec![Evaluation::inside(0.0); n], vec![0.0; x.len()]);
    flow.log_density_gradient(x, &mut log_q, &mut gradient).unwrap();
    let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    error(&gradient, expected) / scale
}

/// `ic_relative_*`, `ic_global_*`, `ic_mixed_*`: bonds, angles and torsions of MD frames, the log-determinant, and the
/// inverse. bgflow's mixed coordinates whiten the fixed atoms, by a projection when dimensions are dropped; here these
/// atoms are kept as components in the frame of three of them, so that the inverse is exact, and the whitening's
/// constant is omitted.
pub fn internal(stem: &Path) -> Found {
    let golden = Golden::open(stem);
    let global = golden.config["cls"].as_str().unwrap().starts_with("Global");
    let normalize = golden.config["normalize_angles"].as_bool().unwrap();
    let x = golden.get("x");
    let dx = golden.tensor("x").shape[1];
    let rows: Vec<[usize; 4]> =
        serde_json::from_value(golden.config[if global { "rel_z_matrix" } else { "z_matrix" }].clone()).unwrap();
    let (frame, rows) = if global { (frame_of(&golden), rows) } else { relative_frame(&golden, rows) };
    let n_extra = rows.len() - golden.tensor("torsions").shape[1];
    let zmatrix = ZMatrix::new(frame, rows, dx / 3, |a| a.to_string()).unwrap();
    let mixed = golden.config["cls"].as_str().unwrap().starts_with("Mixed");
    let cartesian: Vec<usize> = if mixed { (0..n_extra).collect() } else { vec![] };
    let internal = InternalCoordinates::new(zmatrix, normalize, &[]).unwrap();
    let internal = internal.with_cartesian_rows(&cartesian).unwrap();
    let whitening = if mixed { golden.get("jacobian_xz")[0] } else { 0.0 };
    let (nb, na) = (golden.tensor("bonds").shape[1], golden.tensor("angles").shape[1]);
    let nt = golden.tensor("torsions").shape[1];
    let mut errors = [0.0f64; 5];
    let mut u = vec![0.0; internal.dimension()];
    let mut back = vec![0.0; dx];
    for (row, x) in x.chunks_exact(dx).enumerate() {
        let (log_det, _) = internal.to_internal(x, &mut u);
        let blocks = [
            (0, nb, "bonds"),
            (internal.n_bonds(), na, "angles"),
            (internal.n_bonds() + internal.n_angles(), nt, "torsions"),
        ];
        for (slot, (start, n, name)) in blocks.into_iter().enumerate() {
            let skip = if global {
                0
            } else if name == "torsions" {
                n_extra
            } else {
                start_of_relative(name) + n_extra
            };
            errors[slot] = errors[slot].max(error(&u[start + skip..][..n], &golden.get(name)[row * n..][..n]));
        }
        // the relative transformation omits the frame and the rows of its fixed atoms
        let n_fixed = if mixed { 0 } else { n_extra };
        let left_out = if global { 0.0 } else { fixed_part(&internal, &u, n_fixed, normalize) };
        errors[3] = errors[3].max((-log_det + left_out - (golden.get("dlogp_x2ic")[row] - whitening)).abs());
        let (log_det_back, _) = internal.to_cartesian(&u, &mut back);
        errors[4] = errors[4].max((log_det_back - log_det).abs()).max(shape_error(x, &back));
    }
    ["bonds", "angles", "torsions", "dlogp_x2ic", "round trip"]
        .iter()
        .zip(errors)
        .map(|(name, e)| (name.to_string(), e, if *name == "dlogp_x2ic" { LOG_DET } else { EXACT }))
        .collect()
}

fn frame_of(golden: &Golden) -> [usize; 3] {
    serde_json::from_value(golden.config["initial_atoms"].clone()).unwrap()
}

/// A frame of three fixed atoms, and rows for the other fixed atoms followed by the given rows.
fn relative_frame(golden: &Golden, rows: Vec<[usize; 4]>) -> ([usize; 3], Vec<[usize; 4]>) {
    let fixed: Vec<usize> = serde_json::from_value(golden.config["fixed_atoms"].clone()).unwrap();
    let frame = [fixed[0], fixed[1], fixed[fixed.len() - 1]];
    let extra = fixed.iter().filter(|a| !frame.contains(a)).map(|&a| [a, frame[1], frame[0], frame[2]]);
    (frame, extra.chain(rows).collect())
}

/// Offset of the rows: the frame's bonds (two) or angle (one) come first.
fn start_of_relative(name: &str) -> usize {
    if name == "bonds" {
        2
    } else {
        1
    }
}

/// The part of the log-determinant due to the frame and the first `n_extra` rows.
fn fixed_part(internal: &InternalCoordinates, u: &[f64], n_extra: usize, normalize: bool) -> f64 {
    use std::f64::consts::PI;
    let (angle, torsion) = if normalize { (PI, 2.0 * PI) } else { (1.0, 1.0) };
    let bonds: f64 = u[..2 + n_extra].iter().map(|d| 2.0 * d.ln()).sum();
    let angles: f64 = u[internal.n_bonds()..][..1 + n_extra].iter().map(|a| (a * angle).sin().ln() + angle.ln()).sum();
    bonds + angles + (n_extra + 2) as f64 * torsion.ln()
}

/// Largest difference in interatomic distances.
fn shape_error(a: &[f64], b: &[f64]) -> f64 {
    let distance =
        |x: &[f64], i: usize, j: usize| (0..3).map(|c| (x[3 * i + c] - x[3 * j + c]).powi(2)).sum::<f64>().sqrt();
    let n = a.len() / 3;
    (0..n)
        .flat_map(|i| (0..i).map(move |j| (i, j)))
        .map(|(i, j)| (distance(a, i, j) - distance(b, i, j)).abs())
        .fold(0.0, f64::max)
}

/// `icbg_*`: whole alanine-dipeptide generators.
pub fn generator(stem: &Path) -> Found {
    let golden = Golden::open(stem);
    let flow = bgflow::convert(&golden.tensors, &golden.config, None).unwrap();
    let join = |prefix: &str| {
        let blocks = ["BONDS", "ANGLES", "TORSIONS"].map(|field| golden.tensor(&format!("{prefix}_{field}")));
        let n = blocks[0].shape[0];
        let row = |t: &Tensor, r: usize| t.data[r * t.shape[1]..][..t.shape[1]].to_vec();
        (0..n).flat_map(|r| blocks.iter().flat_map(|t| row(t, r)).collect::<Vec<_>>()).collect::<Vec<f64>>()
    };
    let (forward, back) = (generate(&flow, &join("z")), encode(&flow, golden.get("x_eval")));
    let returned = encode(&flow, golden.get("x"));
    let bad: Vec<usize> = serde_json::from_value(golden.config["bad_rows_logdet_x2z"].clone()).unwrap();
    let mut logdet_x2z = golden.get("logdet_x2z").to_vec();
    bad.iter().for_each(|&row| logdet_x2z[row] = -golden.get("logdet_z2x")[row]);
    let single = encode(&flow.cast::<f32>().unwrap(), golden.get("x_eval"));
    let log_q = negated(golden.get("neglogq_eval"));
    vec![
        ("x".into(), error(&forward.values, golden.get("x")), EXACT),
        ("logdet_z2x".into(), error(&forward.log_det, golden.get("logdet_z2x")), LOG_DET),
        ("logdet_x2z".into(), error(&negated(&returned.log_det), &logdet_x2z), LOG_DET),
        ("zeval".into(), error(&back.values, &join("zeval")), EXACT),
        ("logdet_eval".into(), error(&negated(&back.log_det), golden.get("logdet_eval")), LOG_DET),
        ("neglogq_eval".into(), error(&back.log_density, &log_q), LOG_DET),
        ("grad_logq_eval".into(), gradient_error(&flow, &golden), EXACT),
        ("zeval f32".into(), error(&single.values, &join("zeval")), F32_Z),
        ("neglogq_eval f32".into(), error(&single.log_density, &log_q), F32_LOG_DET),
    ]
}
