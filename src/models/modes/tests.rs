//! A file of two modes: the mixture is a density, and mismatched parts are refused.

use super::*;
use crate::coordinates::{CoordinatesConfig, Region, Topology};
use crate::io::model_file::{self, serialize, Data, ModelFile};
use crate::models::coupling::{CouplingConfig, CouplingFlow, LayerConfig};
use crate::models::{from_bytes, Precision};
use crate::rng::StreamId;

fn generator(mean: f64, width: f64, dimension: usize) -> ModelFile {
    let mut matrix = vec![0.0; dimension * dimension];
    (0..dimension).for_each(|i| matrix[i * dimension + i] = width);
    let transformed: Vec<usize> = (0..dimension).collect();
    let layers = vec![LayerConfig::Whiten { transformed, mean: vec![mean; dimension], matrix }];
    let card =
        ModelCard::of_coupling(CouplingConfig { uniform: vec![], layers }, CoordinatesConfig::Cartesian { dimension });
    let bytes = CouplingFlow::<f64>::new(card).unwrap().to_bytes().unwrap();
    model_file::read("generator", &bytes).unwrap()
}

fn config(files: &[ModelFile]) -> Config {
    let region = |i: usize| ModeRegion {
        name: format!("mode {i}"),
        within: vec![Region { along: Along::Component(0), range: [i as f64 - 1.0, i as f64] }],
        centre: vec![],
    };
    let mode =
        |(i, file): (usize, &ModelFile)| ModeConfig { region: region(i), card: file.card.clone(), reference: vec![] };
    Config {
        nearest_along: vec![],
        modes: files.iter().enumerate().map(mode).collect(),
        edges: vec![],
        noise: 0.0,
        identical: None,
    }
}

fn model(dimension: usize) -> Arc<dyn Model> {
    let files = [generator(-0.5, 0.3, dimension), generator(0.7, 0.2, dimension)];
    from_bytes("modes", &bundle(config(&files), &files).unwrap(), Precision::F64).unwrap()
}

#[test]
fn the_mixture_is_normalised_and_knows_its_samples() {
    let model = model(1);
    let cells = 20_000;
    let x: Vec<f64> = (0..cells).map(|i| -4.0 + 8.0 * (i as f64 + 0.5) / cells as f64).collect();
    let mut log_q = vec![Evaluation::inside(0.0); cells];
    model.log_density(&x, &mut log_q).unwrap();
    let integral: f64 = log_q.iter().map(|e| e.log_density.exp() * 8.0 / cells as f64).sum();
    assert!((integral - 1.0).abs() < 1e-9, "{integral}");

    let n = 4000;
    let (mut samples, mut of_samples) = (vec![0.0; n], vec![Evaluation::inside(0.0); n]);
    let streams = |row: usize| Stream::new(1, StreamId::Test, row as u64, 0);
    model.sample(&streams, &mut samples, &mut of_samples).unwrap();
    let mut again = of_samples.clone();
    model.log_density(&samples, &mut again).unwrap();
    assert!(of_samples.iter().zip(&again).all(|(a, b)| (a.log_density - b.log_density).abs() < 1e-12));
    let left = samples.iter().filter(|&&x| x < 0.1).count() as f64 / n as f64;
    let exact = 0.5 * (0.977_249_868 + 0.001_349_898);
    assert!((left - exact).abs() < 5.0 * (0.25 / n as f64).sqrt(), "{left} against {exact}");
}

/// Proposals of one attempt have parts of one stream: each begins at a block of its own.
#[test]
fn samples_from_parts_of_a_stream_are_all_different() {
    let (model, n) = (model(1), 32);
    let mut samples = vec![0.0; n];
    let part = |row: usize| Stream::new(1, StreamId::Test, 0, 0).at((row as u32) << 20);
    model.sample(&part, &mut samples, &mut vec![Evaluation::inside(0.0); n]).unwrap();
    samples.sort_by(f64::total_cmp);
    samples.dedup();
    assert_eq!(samples.len(), n);
}

/// The random number that chooses the mode is not among those of its generator.
#[test]
fn where_a_sample_lies_in_its_mode_does_not_tell_of_the_choice() {
    let files = [generator(0.0, 1.0, 1), generator(0.0, 1.0, 1)];
    let model = from_bytes("modes", &bundle(config(&files), &files).unwrap(), Precision::F64).unwrap();
    let (n, streams) = (2000, |row: usize| Stream::new(1, StreamId::Test, row as u64, 0));
    let mut samples = vec![0.0; n];
    model.sample(&streams, &mut samples, &mut vec![Evaluation::inside(0.0); n]).unwrap();
    let of_first: Vec<f64> = (0..n).filter(|&row| streams(row).below(2) == 0).map(|row| samples[row]).collect();
    let (m, mean) = (of_first.len() as f64, of_first.iter().sum::<f64>() / of_first.len() as f64);
    let variance = of_first.iter().map(|x| x * x).sum::<f64>() / m;
    assert!(mean.abs() < 5.0 / m.sqrt() && (variance - 1.0).abs() < 5.0 * (2.0 / m).sqrt(), "{mean} {variance}");
}

/// A generator that gives x no density still counts in the mean.
#[test]
fn generators_that_do_not_reach_count_as_zeros() {
    let (inside, outside) = (Evaluation::inside(-1.0), Evaluation::outside(Status::OutOfSupport));
    assert!((mixture(&[outside, inside]).log_density - (-1.0 - 2f64.ln())).abs() < 1e-15);
    assert_eq!(mixture(&[outside, outside]), outside);
}

#[test]
fn the_gradient_is_that_of_differences() {
    let model = model(3);
    let x = [0.1, -0.2, 0.4];
    let (mut log_q, mut gradient) = ([Evaluation::inside(0.0)], [0.0; 3]);
    model.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap();
    for i in 0..3 {
        let at = |h: f64| {
            let mut moved = x;
            moved[i] += h;
            let mut log_q = [Evaluation::inside(0.0)];
            model.log_density(&moved, &mut log_q).unwrap();
            log_q[0].log_density
        };
        let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
        assert!((gradient[i] - expected).abs() < 1e-6, "{i}: {} against {expected}", gradient[i]);
    }
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let refusal = |config: Config, files: &[ModelFile]| {
        let bytes = bundle(config, files).unwrap();
        from_bytes("modes.safetensors", &bytes, Precision::F64).err().unwrap().to_string()
    };
    let other = [generator(-0.5, 0.3, 2), generator(0.7, 0.2, 1)];
    let message = refusal(config(&other), &other);
    assert!(message.contains("mode `mode 1`") && message.contains("modes.safetensors"), "{message}");
    let files = [generator(-0.5, 0.3, 2), generator(0.7, 0.2, 2)];
    let mut nameless = config(&files);
    nameless.modes[1].region.name = "mode 0".into();
    assert!(refusal(nameless, &files).contains("unique names"));
    let mut nested = config(&files);
    nested.modes[1].card.model = ModelConfig::Modes(config(&files));
    assert!(refusal(nested, &files).contains("itself a model of modes"));
    let mut damaged = config(&files);
    damaged.modes[1].card.topology =
        Some(Topology { names: vec![], elements: vec![], residues: vec!["ALA1".into()], bonds: vec![] });
    assert!(refusal(damaged, &files).contains("do not match its number of atoms"));
    assert!(bundle(config(&[]), &[]).is_err());
    let whole = model_file::read("modes", &bundle(config(&files), &files).unwrap()).unwrap();
    let tensors = whole.tensors.into_iter().map(|(name, t)| (name, (t.shape, Data::F64(t.data)))).collect();
    let card = ModelCard { coordinates: CoordinatesConfig::Cartesian { dimension: 5 }, ..whole.card };
    let bytes = serialize(&card, &tensors).unwrap();
    let message = from_bytes("modes.safetensors", &bytes, Precision::F64).err().unwrap().to_string();
    assert!(message.contains("the coordinates, atoms or exactness of the model of modes"), "{message}");
}
