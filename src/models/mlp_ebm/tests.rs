use super::*;
use crate::coordinates::Topology;
use crate::density::{Density, Evaluation, Exactness};
use crate::io::model_file::read;
use crate::models::{EnergyFunction, Model, ModelCard, ModelConfig};
use crate::rng::StreamId;

fn small() -> MlpEbm<f64> {
    of_dimension(3, None)
}

fn of_dimension(dimension: usize, topology: Option<Topology>) -> MlpEbm<f64> {
    let config = Config {
        network: MlpConfig { dimension, width: 10, layers: 2 },
        energy: EnergyConfig { units_per_nm: 1.0, data_time: 0.0, trust: Default::default() },
    };
    let network = MlpNetwork::new(config.network).unwrap();
    let mut stream = Stream::new(3, StreamId::Test, 0, 0);
    let mut parameters: Vec<f64> = network.initialise(&mut stream);
    parameters.iter_mut().for_each(|p| *p += 0.2 * stream.normal());
    let card = ModelCard { topology, ..ModelCard::of_cartesian(config.clone(), dimension) };
    EnergyModel::new(Evaluator::new(network, parameters), config.energy, card, String::new())
}

fn normals(n: usize) -> Vec<f64> {
    let mut stream = Stream::new(5, StreamId::Test, 0, 0);
    (0..n).map(|_| stream.normal()).collect()
}

#[test]
fn the_score_is_the_gradient() {
    let model = small();
    let (x, t, h) = (normals(6), [0.2, 0.9], 1e-5);
    let (mut e, mut score) = ([0.0; 2], [0.0; 6]);
    model.network().energy_score(&t, &x, &mut e, &mut score);
    for k in 0..6 {
        let shifted = |s: f64| {
            let (mut x, mut e) = (x.clone(), [0.0; 2]);
            x[k] += s * h;
            model.network().energy(&t, &x, &mut e);
            e[k / 3]
        };
        assert!((shifted(0.0) - e[k / 3]).abs() < 1e-14);
        let difference = (shifted(1.0) - shifted(-1.0)) / (2.0 * h);
        assert!((difference - score[k]).abs() < 1e-8 * difference.abs().max(1.0), "{difference} {}", score[k]);
        assert!(score[k].abs() > 1e-3, "a flat energy shows nothing");
    }
}

/// Training uses centred copies of molecules only.
#[test]
fn the_place_of_a_molecule_does_not_matter() {
    let names = vec!["C".to_string(); 2];
    let topology = Topology { elements: names.clone(), residues: names.clone(), names, bonds: vec![] };
    let model = of_dimension(6, Some(topology));
    let at = |shift: f64| {
        let x: Vec<f64> = normals(6).iter().enumerate().map(|(k, x)| x + shift * (k % 3) as f64).collect();
        let (mut e, mut gradient) = ([Evaluation::inside(0.0)], [0.0; 6]);
        model.log_density_gradient(&x, &mut e, &mut gradient).unwrap();
        (e[0].log_density, gradient)
    };
    let ((here, gradient), (there, _)) = (at(0.0), at(3.0));
    assert!((here - there).abs() < 1e-12);
    assert!((0..3).all(|axis| (gradient[axis] + gradient[3 + axis]).abs() < 1e-12) && gradient[0].abs() > 1e-3);
}

#[test]
fn the_energy_depends_on_time() {
    let (model, mut e) = (small(), [0.0; 2]);
    model.network().energy(&[0.0, 0.5], &normals(3).repeat(2), &mut e);
    assert!((e[0] - e[1]).abs() > 1e-3);
}

#[test]
fn a_saved_model_is_the_same() {
    let model = small();
    let file = read("saved", &model.to_bytes().unwrap()).unwrap();
    let again = MlpEbm::<f64>::from_file(&file).unwrap();
    assert_eq!(again.network().parameters(), model.network().parameters());
    let loaded = crate::models::load_bytes("saved", &model.to_bytes().unwrap()).unwrap();
    assert_eq!((loaded.dimension(), loaded.exactness()), (3, Exactness::Surrogate));
    assert_eq!(loaded.card(), model.card());
    let (x, zero) = (normals(6), [Evaluation::inside(0.0); 2]);
    let (mut single, mut double) = (zero, zero);
    loaded.log_density(&x, &mut single).unwrap();
    model.log_density(&x, &mut double).unwrap();
    for (a, b) in single.iter().zip(double) {
        assert!((a.log_density - b.log_density).abs() < 1e-5);
    }
}

#[test]
fn impossible_files_are_refused() {
    let complaint = |damage: &dyn Fn(&mut ModelFile)| {
        let mut file = read("saved", &small().to_bytes().unwrap()).unwrap();
        damage(&mut file);
        MlpEbm::<f64>::from_file(&file).err().unwrap().to_string()
    };
    let missing = complaint(&|file| drop(file.tensors.remove("layers.1.beta")));
    assert!(missing.contains("layers.1.beta"), "{missing}");
    let exact = complaint(&|file| file.card.exactness = Exactness::Exact);
    assert!(exact.contains("surrogate"), "{exact}");
    let network = |change: fn(&mut MlpConfig)| {
        complaint(&|file| match &mut file.card.model {
            ModelConfig::MlpEbm(config) => change(&mut config.network),
            _ => unreachable!(),
        })
    };
    assert!(network(|c| c.dimension = 2).contains("energy-based model of 2 coordinates"));
    assert!(network(|c| c.width = usize::MAX).contains("width"));
    assert!(network(|c| c.layers = 0).contains("layers"));
}
