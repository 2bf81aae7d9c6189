//! Identities of the field and of its derivatives, on small random networks whose sizes do not fill whole lanes.

use super::*;
use crate::io::model_file::{read, ModelFile};
use crate::models::card::ModelCard;
use crate::models::continuous::{ContinuousConfig, Divergence, Interpolant, Parametrisation, Prior};
use crate::models::VectorField;
use crate::ode::Method;

fn config(n_layers: usize, n_scalars: usize, n_vectors: usize) -> GvpConfig {
    GvpConfig {
        features: vec![vec![0], vec![1, 4], vec![2], vec![2], vec![3], vec![2], vec![]],
        n_features: 5,
        n_layers,
        n_scalars,
        n_vectors,
        rbf_max: 6.0,
        rbf_count: 7,
        message_norm: 3.0,
        coordinate_range: 0.7,
    }
}

/// Random values for all parameters, including slopes and biases.
fn field(config: GvpConfig) -> GvpField<f64> {
    let mut field = GvpField::random(config, 3).unwrap();
    let mut stream = Stream::new(4, StreamId::Test, 0, 0);
    field.update(|parameters| parameters.iter_mut().for_each(|p| *p += 0.1 * stream.normal()));
    field
}

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

/// f of one configuration.
fn value(field: &GvpField<f64>, t: f64, x: &[f64]) -> Vec<f64> {
    let mut f = vec![0.0; x.len()];
    field.evaluate(&[t], x, &mut f);
    f
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, e| if e.is_nan() { f64::INFINITY } else { m.max(e) })
}

/// Networks with one layer, with only a first and a last, and with one between; narrow ones, and one wider than a tile.
fn networks() -> Vec<GvpField<f64>> {
    [(1, 20, 5), (2, 16, 3), (3, 20, 5), (3, 70, 18)].map(|(layers, s, v)| field(config(layers, s, v))).into()
}

#[test]
fn field_is_equivariant() {
    for field in networks() {
        let x = normals(21, 0);
        let f = value(&field, 0.3, &x);
        assert!(f.iter().any(|f| f.abs() > 1e-2), "a field of zeros shows nothing");
        let moved: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + [40.0, -7.0, 3.0][i % 3]).collect();
        assert!(largest_difference(&value(&field, 0.3, &moved), &f) < 1e-11);

        // a rotation about an axis other than the coordinate axes, then a reflection
        let (c, s) = (0.6f64, 0.8f64);
        let turn = |v: &[f64]| {
            let [a, b, z] = [c * v[0] - s * v[1], s * v[0] + c * v[1], v[2]];
            [a, c * b - s * z, s * b + c * z]
        };
        for mirror in [1.0, -1.0] {
            let rotate = |x: &[f64]| -> Vec<f64> {
                let each = x.chunks_exact(3).map(turn);
                each.flat_map(|[a, b, z]| [a, b, mirror * z]).collect()
            };
            assert!(largest_difference(&value(&field, 0.3, &rotate(&x)), &rotate(&f)) < 1e-12);
        }

        // atoms 2, 3 and 5 have the same features
        let permute = |x: &[f64]| -> Vec<f64> {
            [0, 1, 5, 2, 4, 3, 6].iter().flat_map(|&i| x[3 * i..3 * i + 3].to_vec()).collect()
        };
        assert!(largest_difference(&value(&field, 0.3, &permute(&x)), &permute(&f)) < 1e-12);
    }
}

#[test]
fn derivatives_match_differences() {
    for (number, field) in networks().iter().enumerate() {
        let (x, dx, t, h) = (normals(21, 1), normals(21, 2), 0.7, 1e-5);
        let difference = |along: &[f64]| -> Vec<f64> {
            let shifted = |sign: f64| x.iter().zip(along).map(|(x, d)| x + sign * h * d).collect::<Vec<_>>();
            let (plus, minus) = (value(field, t, &shifted(1.0)), value(field, t, &shifted(-1.0)));
            plus.iter().zip(minus).map(|(p, m)| (p - m) / (2.0 * h)).collect()
        };
        let (mut f, mut df) = (vec![0.0; 21], vec![0.0; 21]);
        field.evaluate_jvp(&[t], &x, &dx, &mut f, &mut df);
        assert_eq!(f, value(field, t, &x));
        let error = largest_difference(&df, &difference(&dx));
        assert!(error < 1e-7, "network {number}: jvp differs by {error}");

        let unit = |i: usize| (0..21).map(|j| if i == j { 1.0 } else { 0.0 }).collect::<Vec<f64>>();
        let truth: f64 = (0..21).map(|i| difference(&unit(i))[i]).sum();
        let mut divergence = [0.0];
        field.evaluate_divergence(&[t], &x, &mut f, &mut divergence);
        assert_eq!(f, value(field, t, &x));
        let error = (divergence[0] - truth).abs();
        assert!(error < 1e-7, "network {number}: divergence {} differs by {error}", divergence[0]);
    }
}

#[test]
fn two_atoms_and_coinciding_atoms_have_finite_derivatives() {
    let field = field(GvpConfig { features: vec![vec![0], vec![1]], ..config(3, 20, 5) });
    for x in [[0.0, 0.0, 0.0, 0.3, -0.4, 1.0], [0.5; 6]] {
        let (mut f, mut divergence) = (vec![0.0; 6], [0.0]);
        field.evaluate_divergence(&[0.2], &x, &mut f, &mut divergence);
        assert!(f.iter().chain(&divergence).all(|v| v.is_finite()), "{x:?}: {f:?}, {divergence:?}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let field = field(config(3, 20, 5)).cast::<f32>().unwrap();
    let (n, d) = (9, 21);
    let (x, t) = (normals(n * d, 6), (0..n).map(|i| i as f64 / 10.0).collect::<Vec<_>>());
    let (mut f, mut divergence) = (vec![0.0; n * d], vec![0.0; n]);
    field.evaluate_divergence(&t, &x, &mut f, &mut divergence);
    let mut alone = vec![0.0; n * d];
    field.evaluate(&t, &x, &mut alone);
    assert_eq!(alone, f);
    for row in 0..n {
        let (mut one, mut div) = (vec![0.0; d], [0.0]);
        field.evaluate_divergence(&t[row..=row], &x[row * d..][..d], &mut one, &mut div);
        assert_eq!((&one[..], div[0]), (&f[row * d..][..d], divergence[row]), "row {row}");
    }
}

#[test]
fn not_a_number_comes_out_where_it_goes_in() {
    let field = field(config(2, 20, 5)).cast::<f32>().unwrap();
    for bad in [f64::NAN, f64::INFINITY] {
        let mut x = normals(21, 7);
        x[4] = bad;
        let (mut f, mut divergence) = (vec![0.0; 21], [0.0]);
        field.evaluate_divergence(&[0.2], &x, &mut f, &mut divergence);
        assert!(f.iter().all(|f| !f.is_finite()) && !divergence[0].is_finite(), "{bad}: {f:?}");
    }
}

#[test]
fn f32_is_near_f64() {
    for field in networks() {
        let single = field.cast::<f32>().unwrap();
        let x = normals(21, 8);
        let (mut f, mut f32s) = (vec![0.0; 21], vec![0.0; 21]);
        let (mut divergence, mut divergence32) = ([0.0], [0.0]);
        field.evaluate_divergence(&[0.4], &x, &mut f, &mut divergence);
        single.evaluate_divergence(&[0.4], &x, &mut f32s, &mut divergence32);
        assert!(largest_difference(&f, &f32s) < 3e-5);
        assert!((divergence[0] - divergence32[0]).abs() < 2e-4 * divergence[0].abs().max(1.0));
    }
}

#[test]
fn instruction_sets_agree() {
    use crate::nn::lanes::HIGHEST;
    let field = field(config(3, 70, 18));
    let single = field.cast::<f32>().unwrap();
    let x = normals(21, 9);
    let (mut truth, mut f, mut exact, mut divergence) = (vec![0.0; 21], vec![0.0; 21], [0.0], [0.0]);
    field.evaluate_divergence(&[0.4], &x, &mut truth, &mut exact);
    for level in 0..3 {
        HIGHEST.set(level);
        single.evaluate_divergence(&[0.4], &x, &mut f, &mut divergence);
        assert!(largest_difference(&f, &truth) < 3e-5, "level {level}");
        assert!((divergence[0] - exact[0]).abs() < 2e-4 * exact[0].abs().max(1.0), "level {level}");
        field.evaluate_divergence(&[0.4], &x, &mut f, &mut divergence);
        assert!(largest_difference(&f, &truth) < 1e-12 && (divergence[0] - exact[0]).abs() < 1e-11, "level {level}");
    }
    HIGHEST.set(2);
}

fn model_config() -> Config {
    Config {
        network: config(2, 20, 5),
        flow: ContinuousConfig {
            parametrisation: Parametrisation::Velocity,
            interpolant: Interpolant::Linear,
            times: [1.0, 0.0],
            units_per_nm: 10.0,
            stereocentres: vec![],
            prior: Prior::MeanFree,
            divergence: Divergence::Exact,
            solver: Method::default(),
        },
    }
}

fn saved() -> (GvpField<f64>, ModelFile) {
    let field = field(model_config().network);
    let card = ModelCard::of_cartesian(model_config(), 21);
    let file = read("saved", &field.to_bytes(&card).unwrap()).unwrap();
    (field, file)
}

#[test]
fn a_saved_field_is_the_same() {
    let (field, file) = saved();
    assert_eq!(GvpField::<f64>::from_file(&file, &model_config()).unwrap().parameters(), field.parameters());
}

#[test]
fn a_damaged_file_is_refused_with_the_tensor_named() {
    let name = "convs.1.edge_message.0.Wh";
    let complaint = |damage: &dyn Fn(&mut ModelFile)| {
        let mut file = saved().1;
        damage(&mut file);
        GvpField::<f64>::from_file(&file, &model_config()).err().unwrap().to_string()
    };
    let missing = complaint(&|file| drop(file.tensors.remove(name)));
    assert!(missing.contains(name) && missing.contains("missing"), "{missing}");
    let shape = complaint(&|file| file.tensors.get_mut(name).unwrap().shape = vec![36]);
    assert!(shape.contains(name) && shape.contains("[6, 6]"), "{shape}");
    let nan = complaint(&|file| file.tensors.get_mut(name).unwrap().data[3] = f64::NAN);
    assert!(nan.contains(name) && nan.contains("position 3"), "{nan}");
    let more = complaint(&|file| {
        let tensor = file.tensors[name].clone();
        file.tensors.insert("convs.7.Wh".into(), tensor);
    });
    assert!(more.contains("convs.7.Wh"), "{more}");
}

#[test]
fn hostile_sizes_are_refused() {
    let good = model_config();
    type Spoil = fn(&mut GvpConfig);
    let cases: [(&str, Spoil); 7] = [
        ("n_vectors = 1", |c| c.n_vectors = 1),
        ("n_layers", |c| c.n_layers = 0),
        ("n_scalars", |c| c.n_scalars = usize::MAX),
        ("rbf_max", |c| c.rbf_max = f64::NAN),
        ("coordinate_range", |c| c.coordinate_range = 1e300),
        ("atoms", |c| c.features.truncate(1)),
        ("feature 5", |c| c.features[3] = vec![5]),
    ];
    for (word, spoil) in cases {
        let mut config = good.network.clone();
        spoil(&mut config);
        let message = GvpField::<f64>::random(config, 0).err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
    }
    let unknown = r#"{"network": {"sizes": 3}}"#;
    assert!(serde_json::from_str::<Config>(unknown).is_err());
}
