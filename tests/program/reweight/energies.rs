//! Energies that weights can be made of: the metric term of constrained bonds, and what depends on the place.

use crate::command::{document, folder, modejump, tensors, Run};
use crate::tarflow;
use modejump::coordinates::constraints::Constraints;
use modejump::engines::openmm::System;

/// ln W + u + ln q of each sample is the metric term of its constrained bonds.
#[test]
fn weights_have_the_metric_term_of_constrained_bonds() {
    let folder = folder("reweight-metric");
    let [weights, samples] = ["w.json", "x.safetensors"].map(|name| folder.join(name));
    let (model, system) = ("models/ala2/model-hbonds.safetensors", "models/ala2/system-hbonds.xml");
    let few = ["-n", "20", "--seed", "3", "--precision", "f64", "-o"];
    modejump(&["reweight", model, "--system", system]).args(few).arg(&weights).succeeds();
    modejump(&["sample", model]).args(few).arg(&samples).succeeds();
    let document = document(&weights);
    let series = |key: &str| -> Vec<f64> {
        let numbers = document["series"][0][key].as_array().unwrap();
        numbers.iter().map(|v| v.as_f64().unwrap()).collect()
    };
    let samples = tensors(&samples);
    let system = System::from_xml_file(system).unwrap();
    let (pairs, lengths): (Vec<_>, Vec<_>) =
        system.constraints().unwrap().into_iter().map(|(a, b, length)| ([a, b], length)).unzip();
    let mut constraints = Constraints::new(&pairs, &lengths, &system.masses()).unwrap();
    let (log_w, u) = (series("raw_log_weight"), series("reduced_potential"));
    let mut terms = Vec::new();
    for (row, x) in samples["x"].data.chunks_exact(66).enumerate() {
        let (term, metric) = (log_w[row] + u[row] + samples["log_density"].data[row], constraints.log_metric(x));
        assert!((term - metric).abs() < 1e-6, "row {row}: {term}, not {metric}");
        terms.push(term);
    }
    assert!(terms.iter().any(|term| (term - terms[0]).abs() > 1e-4), "{terms:?}");
}

/// A field along z that does not know where the molecule is, and a wall that does: weights of a density of shapes, or
/// of one averaged over orientations, would be those of one place.
#[test]
fn energies_that_depend_on_the_place_are_refused() {
    let folder = folder("reweight-place");
    let flow = folder.join("tarflow.safetensors");
    tarflow::write(&flow);
    let flow = flow.to_str().unwrap();
    let molecule = std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap();
    // what a flow of random weights makes has energies that hide all others
    let particles = r#"<Particle mass="12"/>"#.repeat(22);
    let bare = format!(
        r#"<System openmmVersion="8.1" type="System" version="1"><PeriodicBoxVectors><A x="2" y="0" z="0"/><B x="0" y="2" z="0"/>
        <C x="0" y="0" z="2"/></PeriodicBoxVectors><Particles>{particles}</Particles><Constraints/><Forces></Forces></System>"#
    );
    let with = |text: &str, name: &str, energy: &str| {
        let force = format!(
            r#"<Force type="CustomExternalForce" version="1" name="outside" energy="{energy}" forceGroup="0"><PerParticleParameters>
            <Parameter name="q"/></PerParticleParameters><GlobalParameters/><Particles><Particle index="0" param1="1"/><Particle
            index="18" param1="-1"/></Particles></Force></Forces>"#
        );
        let path = folder.join(name);
        std::fs::write(&path, text.replace("</Forces>", &force)).unwrap();
        path.to_str().unwrap().to_string()
    };
    let in_field = with(&molecule, "molecule.xml", "30*q*z");
    let (field, wall) = (with(&bare, "field.xml", "30*q*z"), with(&bare, "wall.xml", "30*q^2*z"));
    let vacuum = "models/ala2/model-vacuum.safetensors";
    // before the first of a number of samples that no test waits for
    for arguments in [
        &["reweight", vacuum, "--system", &in_field, "-n", "1000000000"][..],
        &["reweight", flow, "--system", &wall, "-n", "1000000000"],
        &["reweight", flow, "--system", &field, "-n", "1000000000", "--rotations", "2"],
        &["smc", vacuum, "--system", &in_field, "-n", "1000000000"],
    ] {
        let message = modejump(arguments).fails();
        assert!(
            message.contains("energies depend on the position or orientation of the molecule"),
            "{arguments:?}: {message}"
        );
    }
    // a TarFlow's density knows of orientations
    modejump(&["reweight", flow, "--system", &field, "-n", "10"]).succeeds();
}
