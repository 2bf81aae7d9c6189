//! Every model that the repository ships loads, and knows the density of a real configuration.

use modejump::coordinates::Topology;
use modejump::density::{Evaluation, Exactness};
use modejump::io::model_file;
use modejump::models::{self, ModelConfig};
use modejump::ode::Method;
use modejump::rng::{Stream, StreamId};
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2")
}

#[test]
fn models_of_alanine_dipeptide_evaluate_its_topology() {
    let (topology, x) = Topology::from_pdb(&folder().join("topology.pdb")).unwrap();
    for name in ["model.safetensors", "gvp-flow.safetensors", "steerable.safetensors"] {
        let model = models::load(folder().join(name)).unwrap();
        assert_eq!(model.card().topology.as_ref().map(|t| t.n_atoms()), Some(topology.n_atoms()), "{name}");
        let mut log_q = [Evaluation::inside(0.0)];
        model.log_density(&x, &mut log_q).unwrap();
        assert!(log_q[0].is_inside() && log_q[0].log_density.is_finite(), "{name}: {log_q:?}");
        let mirror: Vec<f64> = x.iter().map(|v| -v).collect();
        model.log_density(&mirror, &mut log_q).unwrap();
        assert!(!log_q[0].is_inside(), "{name}: D-alanine has density {log_q:?}");
        let refused = models::load_with(folder().join(name), models::Precision::Bf16).err().unwrap().to_string();
        assert!(refused.contains("bf16") && refused.contains(model.card().model.kind()), "{refused}");
    }
}

/// Bonds of no length leave no direction for the atoms that are placed by them.
#[test]
fn samples_that_are_not_finite_have_no_density() {
    let bytes = std::fs::read(folder().join("model-hbonds.safetensors")).unwrap();
    let mut card = serde_json::to_value(model_file::read_card("short", &bytes).unwrap()).unwrap();
    card["coordinates"]["constraints"][0][2] = 1e-100.into();
    let card = serde_json::from_value(card).unwrap();
    let model = models::load_bytes("short", &model_file::with_card("short", &bytes, &card).unwrap()).unwrap();
    let (mut x, mut log_q) = (vec![0.0; 66 * 8], vec![Evaluation::inside(0.0); 8]);
    model.sample(&|row| Stream::new(1, StreamId::Sample, row as u64, 0), &mut x, &mut log_q).unwrap();
    for (x, log_q) in x.chunks_exact(66).zip(&log_q) {
        assert!(x.iter().all(|v| v.is_finite()) || !log_q.is_inside(), "{log_q:?}");
    }
}

/// Where the density of one mode is next to nothing, its gradient may overflow.
#[test]
fn gradients_of_modes_are_finite_where_one_has_no_density() {
    let path = folder().with_file_name("double-well").join("modes.safetensors");
    let mut file = model_file::open(&path).unwrap();
    file.tensors.get_mut("modes.0.layers.0.log_alpha").unwrap().data.fill(7.0);
    let tensors = file.tensors.into_iter().map(|(name, t)| (name, (t.shape, model_file::Data::F64(t.data)))).collect();
    let model = models::load_bytes("steep", &model_file::serialize(&file.card, &tensors).unwrap()).unwrap();
    let (n, d) = (500, model.dimension());
    let (mut x, mut log_q) = (vec![0.0; n * d], vec![Evaluation::inside(0.0); n]);
    model.sample(&|row| Stream::new(1, StreamId::Sample, row as u64, 0), &mut x, &mut log_q).unwrap();
    let mut gradient = vec![0.0; n * d];
    model.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap();
    // others, at 10³⁰ nm and more, are beyond the numbers of the network
    let is_dense = |log_q: &Evaluation| log_q.is_inside() && log_q.log_density > -1e6;
    let inside: Vec<_> = gradient.chunks_exact(d).zip(&log_q).filter(|(_, log_q)| is_dense(log_q)).collect();
    let finite = inside.iter().filter(|(g, _)| g.iter().all(|v| v.is_finite())).count();
    assert!(inside.len() > 100 && finite == inside.len(), "{finite} of {}", inside.len());
}

/// The energy is that of the flow: near-equal densities for near-equal shapes, and the same for the labels of a methyl
/// group.
#[test]
fn the_energy_of_alanine_dipeptide_knows_good_shapes_from_bad_ones() {
    let (topology, x) = Topology::from_pdb(&folder().join("topology.pdb")).unwrap();
    let model = models::load(folder().join("invariant-ebm.safetensors")).unwrap();
    assert_eq!(model.exactness(), Exactness::Surrogate);
    let log_q = |x: &[f64]| {
        let mut log_q = [Evaluation::inside(0.0)];
        model.log_density(x, &mut log_q).unwrap();
        log_q[0].log_density
    };
    let carbon = topology.find("ALA2", "CB").unwrap();
    let hydrogens: Vec<usize> =
        topology.neighbours()[carbon].iter().copied().filter(|&a| topology.elements[a] == "H").collect();
    let (mut relabelled, mut stretched) = (x.clone(), x.clone());
    for axis in 0..3 {
        relabelled.swap(3 * hydrogens[0] + axis, 3 * hydrogens[1] + axis);
        let bond = x[3 * hydrogens[0] + axis] - x[3 * carbon + axis];
        stretched[3 * hydrogens[0] + axis] += 0.3 * bond;
    }
    assert_eq!(log_q(&relabelled), log_q(&x), "labels of a methyl group");
    assert!(log_q(&x).is_finite() && log_q(&stretched) < log_q(&x) - 10.0, "a C-H bond 30 % too long");
}

/// The quadrature along the path finds what the integration of log q as a component of the solution finds, to the size
/// of the solver's errors: samples of the shipped flow, far below what an acceptance notices.
#[test]
fn the_quadrature_of_the_shipped_flow_is_as_good_as_its_steps() {
    let path = folder().join("gvp-flow.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let mut card = model_file::read("flow", &bytes).unwrap().card;
    let ModelConfig::GvpFlow(config) = &mut card.model else { panic!("another kind of flow") };
    let Method::DormandPrince { ref mut quadrature, .. } = config.flow.solver else { panic!("another solver") };
    assert_eq!(std::mem::replace(quadrature, 0), 3);
    let folder = std::env::temp_dir().join(format!("modejump-quadrature-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let other = folder.join("component.safetensors");
    std::fs::write(&other, model_file::with_card("flow", &bytes, &card).unwrap()).unwrap();
    let [quadrature, component] = [path, other].map(|path| {
        let (mut x, mut log_q) = (vec![0.0; 2 * 66], [Evaluation::inside(0.0); 2]);
        let streams = |row: usize| Stream::new(1, StreamId::Sample, row as u64, 0);
        models::load(path).unwrap().sample(&streams, &mut x, &mut log_q).unwrap();
        log_q.map(|e| e.log_density)
    });
    for (a, b) in quadrature.into_iter().zip(component) {
        assert!((a - b).abs() < 0.05, "{a} by quadrature, {b} as a component");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
