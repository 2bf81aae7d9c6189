//! Every model that the repository ships loads, and knows the density of a real configuration.

use modejump::coordinates::Topology;
use modejump::density::Evaluation;
use modejump::models;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2")
}

#[test]
fn models_of_alanine_dipeptide_evaluate_its_topology() {
    let (topology, x) = Topology::from_pdb(&folder().join("topology.pdb")).unwrap();
    for name in ["model.safetensors", "gvp-flow.safetensors"] {
        let model = models::load(folder().join(name)).unwrap();
        assert_eq!(model.card().topology.as_ref().map(|t| t.n_atoms()), Some(topology.n_atoms()), "{name}");
        let mut log_q = [Evaluation::inside(0.0)];
        model.log_density(&x, &mut log_q).unwrap();
        assert!(log_q[0].is_inside() && log_q[0].log_density.is_finite(), "{name}: {log_q:?}");
        let mirror: Vec<f64> = x.iter().map(|v| -v).collect();
        model.log_density(&mirror, &mut log_q).unwrap();
        assert!(!log_q[0].is_inside(), "{name}: D-alanine has density {log_q:?}");
    }
}
