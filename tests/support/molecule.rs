//! A molecule of four atoms for tests: C0 - H1 kept at 0.11 nm, everything else free.

use modejump::coordinates::{CoordinatesConfig, Topology};
use modejump::models::coupling::{CouplingConfig, CouplingFlow, LayerConfig};
use modejump::models::ModelCard;

pub fn four_atoms() -> CouplingFlow<f32> {
    let coordinates = CoordinatesConfig::Internal {
        frame: [0, 1, 2],
        rows: vec![[3, 2, 0, 1]],
        normalize_angles: true,
        constraints: vec![(0, 1, 0.11)],
        stereocentres: vec![],
        cartesian: Vec::new(),
    };
    // u = bonds (C0-C2, O3-C2; C0-H1 is fixed), angles, torsion: five numbers, all uniform.
    let layers = vec![LayerConfig::Uniform {
        transformed: (0..5).collect(),
        low: vec![0.14, 0.11, 0.5, 0.5, 0.0],
        high: vec![0.16, 0.13, 0.7, 0.7, 1.0],
    }];
    let names = ["C0", "H1", "C2", "O3"].map(String::from).to_vec();
    let mut topology = Topology {
        elements: ["C", "H", "C", "O"].map(String::from).to_vec(),
        residues: vec!["ABC1".into(); 4],
        names,
        bonds: vec![],
    };
    topology.set_bonds([[0, 1], [0, 2], [2, 3]]);
    let card = ModelCard {
        temperature: Some(300.0),
        topology: Some(topology),
        ..ModelCard::of_coupling(CouplingConfig { uniform: (0..5).collect(), layers }, coordinates)
    };
    CouplingFlow::new(card).expect("a valid model")
}
