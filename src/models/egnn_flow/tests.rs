use super::*;
use crate::models::field::VectorField;
use crate::models::layout::Layout;
use crate::rng::{Stream, StreamId};

fn small() -> Evaluator<Egnn, f64> {
    let config = EgnnConfig {
        features: vec![vec![0], vec![1], vec![1, 2], vec![2]],
        n_features: 3,
        n_layers: 2,
        n_hidden: 8,
        coordinate_range: 4.0,
    };
    let network = Egnn::new(config).unwrap();
    let parameters = network.layout().initialise(&mut Stream::new(3, StreamId::Test, 0, 0), |_, _| None);
    Evaluator::new(network, parameters)
}

fn normals(n: usize, index: u64) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, index, 0);
    (0..n).map(|_| stream.normal()).collect()
}

fn velocity(field: &impl VectorField, t: &[f64], x: &[f64]) -> Vec<f64> {
    let mut v = vec![0.0; x.len()];
    field.evaluate(t, x, &mut v);
    v
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn the_field_is_equivariant_and_centred() {
    let field = small();
    let x = normals(12, 1);
    let v = velocity(&field, &[0.3], &x);
    assert!(v.iter().any(|v| v.abs() > 1e-3));
    let turn = |x: &[f64]| -> Vec<f64> { x.chunks_exact(3).flat_map(|r| [-r[1], r[0], -r[2]]).collect() };
    let shifted: Vec<f64> = turn(&x).chunks_exact(3).flat_map(|r| [r[0] + 0.7, r[1] - 2.0, r[2] + 0.1]).collect();
    assert!(largest(&velocity(&field, &[0.3], &shifted), &turn(&v)) < 1e-12);
    (0..3).for_each(|k| assert!(v.iter().skip(k).step_by(3).sum::<f64>().abs() < 1e-12));
}

#[test]
fn divergence_and_jvp_match_differences() {
    let field = small();
    let (t, x, dx, h) = ([0.3, 0.8], normals(24, 1), normals(24, 2), 1e-5);
    let (mut v, mut divergence, mut dv) = (vec![0.0; 24], vec![0.0; 2], vec![0.0; 24]);
    field.evaluate_divergence(&t, &x, &mut v, &mut divergence);
    assert_eq!(v, velocity(&field, &t, &x));
    for k in 0..12 {
        let shifted = |s: f64| {
            let mut x = x.clone();
            (0..2).for_each(|row| x[12 * row + k] += s * h);
            velocity(&field, &t, &x)
        };
        let (up, down) = (shifted(1.0), shifted(-1.0));
        (0..2).for_each(|row| divergence[row] -= (up[12 * row + k] - down[12 * row + k]) / (2.0 * h));
    }
    assert!(divergence.iter().all(|d| d.abs() < 1e-7), "{divergence:?}");
    field.evaluate_jvp(&t, &x, &dx, &mut v, &mut dv);
    let along = |s: f64| velocity(&field, &t, &x.iter().zip(&dx).map(|(x, d)| x + s * h * d).collect::<Vec<_>>());
    let difference: Vec<f64> = along(1.0).iter().zip(along(-1.0)).map(|(a, b)| (a - b) / (2.0 * h)).collect();
    assert!(largest(&dv, &difference) < 1e-7);
}

/// The network with its divergence from a derivative along each coordinate.
struct ByCoordinates(Egnn);

impl Network for ByCoordinates {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }

    fn outputs(&self) -> usize {
        self.0.outputs()
    }

    fn chunk(&self) -> usize {
        self.0.chunk()
    }

    fn layout(&self) -> &Layout {
        self.0.layout()
    }

    fn record<R: Scalar>(&self, p: &[R], tape: &mut Tape<R>, t: &[f64], x: &[R]) -> (Var, Var) {
        self.0.record(p, tape, t, x)
    }
}

#[test]
fn divergences_are_those_by_coordinates() {
    let compare = |atoms: usize, n_layers: usize, n_hidden: usize| {
        let features = (0..atoms).map(|i| vec![i % 3]).collect();
        let network =
            Egnn::new(EgnnConfig { features, n_features: 3, n_layers, n_hidden, coordinate_range: 4.0 }).unwrap();
        let parameters: Vec<f64> = network.layout().initialise(&mut Stream::new(7, StreamId::Test, 0, 0), |_, _| None);
        let single = Evaluator::new(network.clone(), parameters.iter().map(|&p| p as f32).collect());
        let reference = Evaluator::new(ByCoordinates(network.clone()), parameters.clone());
        let (t, x) = ([0.2, 0.9], normals(6 * atoms, 4));
        let of = |field: &dyn VectorField| {
            let (mut v, mut divergence) = (vec![0.0; 6 * atoms], vec![0.0; 2]);
            field.evaluate_divergence(&t, &x, &mut v, &mut divergence);
            (v, divergence)
        };
        let (v, truth) = of(&reference);
        let (same, found) = of(&Evaluator::new(network, parameters));
        assert_eq!(v, same);
        let scale = truth[0].abs().max(truth[1].abs());
        assert!(
            largest(&found, &truth) <= 1e-13 * scale.max(1.0),
            "{atoms} {n_layers} {n_hidden}: {found:?}, not {truth:?}"
        );
        assert!(largest(&of(&single).1, &truth) <= 1e-5 * scale.max(1.0), "{atoms} {n_layers} {n_hidden} in f32");
    };
    // direction counts that leave a column partly empty, fill it, and need more columns than a tile has; sizes that are
    // not whole tiles
    for (atoms, layers, hidden) in [(1, 2, 4), (2, 1, 3), (2, 2, 5), (3, 3, 7), (7, 4, 16), (24, 3, 20)] {
        compare(atoms, layers, hidden);
    }
}

#[test]
fn impossible_configurations_are_refused() {
    let config = small().network.config().clone();
    assert!(Egnn::new(EgnnConfig { n_layers: 0, ..config.clone() }).is_err());
    let error = Egnn::new(EgnnConfig { n_features: 2, ..config }).unwrap_err().to_string();
    assert!(error.contains("atom 3"), "{error}");
}
