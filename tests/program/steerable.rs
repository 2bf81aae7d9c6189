//! A small steerable flow of one atom with two auxiliary coordinates, as a file, and a System whose averages are known.

use modejump::coordinates::CoordinatesConfig;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Features, LayerConfig};
use modejump::models::{ModelCard, SteeringConfig};
use modejump::nn::Activation;
use std::path::{Path, PathBuf};

/// About the mean energy of [`harmonic`], with one auxiliary coordinate that says something of x.
pub fn write(path: &Path) {
    let shear = |i: usize, seen: usize| LayerConfig::Affine {
        transformed: vec![i],
        features: Features { periodic: vec![], harmonics: 1, plain: vec![seen] },
        hidden: vec![4],
        activation: Activation::Tanh,
        scale_activation: None,
        preserve_volume: true,
    };
    let mut matrix = vec![0.0; 25];
    [0.12, 0.12, 0.12, 0.9, 1.0].iter().enumerate().for_each(|(i, width)| matrix[6 * i] = *width);
    matrix[15] = 0.4;
    let whiten = LayerConfig::Whiten { transformed: (0..5).collect(), mean: vec![0.0; 5], matrix };
    let config = CouplingConfig { uniform: vec![], layers: vec![shear(0, 3), shear(3, 0), whiten] };
    let mut card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 5 });
    (card.steering, card.temperature) = (Some(SteeringConfig { auxiliary: 2 }), Some(300.0));
    let mut flow = CouplingFlow::<f32>::new(card).unwrap();
    flow.initialise(1);
    std::fs::write(path, flow.to_bytes().unwrap()).unwrap();
}

/// Files of the flow and of the System.
pub fn files(folder: &Path) -> [PathBuf; 2] {
    let [model, system] = ["steered.safetensors", "system.xml"].map(|name| folder.join(name));
    write(&model);
    harmonic(&system);
    [model, system]
}

/// A particle in a well about the origin: u = 50 x² at 300 K, x in nm.
pub fn harmonic(path: &Path) {
    let text = format!(
        "<?xml version=\"1.0\" ?><System openmmVersion=\"8.1\" type=\"System\" version=\"1\"><PeriodicBoxVectors><A x=\"2\" y=\"0\" z=\"0\"/>\
         <B x=\"0\" y=\"2\" z=\"0\"/><C x=\"0\" y=\"0\" z=\"2\"/></PeriodicBoxVectors><Particles><Particle mass=\"12\"/></Particles><Constraints/><Forces>\
         <Force type=\"CustomExternalForce\" version=\"1\" name=\"wells\" energy=\"50*{kt}*(x*x+y*y+z*z)\" forceGroup=\"0\">\
         <PerParticleParameters/><GlobalParameters/><Particles><Particle index=\"0\"/></Particles></Force></Forces></System>",
        kt = modejump::units::thermal_energy(300.0),
    );
    std::fs::write(path, text).unwrap();
}
