//! Frames, by their weights and beside the System that they are of.

use crate::command::{folder, modejump, tensor, write, Run, MODEL, TOPOLOGY};
use modejump::coordinates::Topology;
use modejump::io::trajectory::{self, Frames};
use std::path::Path;
#[cfg(feature = "openmm")]
use {
    super::{Setting, SETTINGS},
    crate::command::{tensors, SYSTEM},
    modejump::io::model_file::{write_tensors, Data},
    std::collections::BTreeMap,
};

/// A generator of one hand would exclude all of them.
#[test]
fn frames_of_the_other_hand_are_refused() {
    let folder = folder("train-hands");
    let [frames, mirrored, mixed] = ["frames.npy", "mirrored.npy", "mixed.npy"].map(|name| folder.join(name));
    modejump(&["sample", MODEL, "-n", "400", "-o", frames.to_str().unwrap()]).succeeds();
    let x = trajectory::read(&frames).unwrap().x;
    let other: Vec<f64> = x.iter().map(|v| -v).collect();
    trajectory::write(&mirrored, &Frames::new(66, other.clone()), None, &[]).unwrap();
    trajectory::write(&mixed, &Frames::new(66, [&x[..], &other[..66 * 4]].concat()), None, &[]).unwrap();
    let settings = folder.join("settings.json");
    std::fs::write(&settings, r#"{"train": {"phases": []}}"#).unwrap();
    let train = |frames: &Path| {
        let mut command = modejump(&["train", "--topology", TOPOLOGY, "--temperature", "300", "--frames"]);
        command.arg(frames).arg("--config").arg(&settings).arg("-o").arg(folder.join("model.safetensors"));
        command
    };
    let message = train(&mirrored).fails();
    assert!(message.contains("in 400 of 400 frames") && message.contains("has the opposite handedness"), "{message}");
    // of samples in which all other bonds turn
    let [_, told] = train(&frames).texts();
    let amide = "no frame is turned by more than 90° about these bonds: ACE1:C (atom 5) - ALA2:N (atom 7), ALA2:C (atom 15) - NME3:N (atom 17); if";
    assert!(told.contains(amide), "{told}");
    let [_, told] = train(&mixed).texts();
    assert!(told.contains("note: in 4 of 404 frames ALA2:CA") && told.contains("written untrained"), "{told}");
    // only two hydrogens of a methyl group exchanged
    let exchanged = x.chunks_exact(66).map(|x| [&x[..33], &x[36..39], &x[33..36], &x[39..]].concat());
    let exchanged: Vec<f64> = exchanged.flatten().collect();
    for (frames, remedy) in
        [(&exchanged[66 * 200..], "exchange these atoms"), (&exchanged[..], "start simulations from one")]
    {
        let kept = &x[..66 * 400 - frames.len()];
        trajectory::write(&mixed, &Frames::new(66, [kept, frames].concat()), None, &[]).unwrap();
        let [_, told] = train(&mixed).texts();
        let n = frames.len() / 66;
        let what = format!("note: in {n} of 400 frames ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13) are numbered");
        assert!(told.contains(&what) && told.contains(remedy), "{told}");
    }
    // a network on the graph of atoms does not see which is which; of few frames none is held out
    let train = |settings: &str| {
        std::fs::write(folder.join("settings.json"), settings).unwrap();
        let mut command = modejump(&["train", "--model", "egnn_flow", "--topology", TOPOLOGY, "--temperature", "300"]);
        command.arg("--frames").arg(&mixed).arg("--config").arg(folder.join("settings.json"));
        command.arg("-o").arg(folder.join("model.safetensors"));
        command
    };
    let few = Frames::new(66, [&x[..66 * 10], &exchanged[66 * 10..66 * 20]].concat());
    trajectory::write(&mixed, &few, None, &[]).unwrap();
    let sizes = r#""n_layers": 1, "n_hidden": 4, "train": {"steps": 1, "batch": 2, "evaluate": 1}"#;
    let [_, told] = train(&format!(r#"{{"egnn_flow": {{{sizes}}}}}"#)).texts();
    assert!(!told.contains("numbered the other way round"), "{told}");
    assert!(told.contains("note: `held_out` = 0.02 of 20 frames is none"), "{told}");
    let told = train(&format!(r#"{{"egnn_flow": {{"coordinate_range": 0, {sizes}}}}}"#)).fails();
    assert!(told.contains("coordinate_range must be positive and finite, not 0"), "{told}");
}

/// Frames without weight are not learned: the scale of a new model is that of the others. Weights are those of the
/// file, or those of a density and the energies.
#[test]
fn a_flow_is_trained_on_frames_drawn_by_their_weights() {
    let folder = folder("train-resample");
    let settings = folder.join("train.json");
    let sizes = r#""channels": 8, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 1"#;
    let config = format!(r#"{{"tarflow": {{{sizes}, "train": {{"steps": 2, "batch": 8}}}}}}"#);
    std::fs::write(&settings, config).unwrap();
    let (_, x0) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    let frame = |scale: f64| x0.iter().map(move |x| scale * x);
    let x: Vec<f64> = (0..40).flat_map(|i| frame(if i % 4 == 0 { 1.5 } else { 1.0 })).collect();
    let write = |name: &str, weights: &str, log_weight: Vec<f64>| {
        let weights = (weights, tensor(&[log_weight.len()], log_weight));
        write(folder.join(name), [("x", tensor(&[40, x0.len() / 3, 3], x.clone())), weights]);
    };
    let train = |frames: &str, more: &[&str]| {
        let mut command = modejump(&["train", "--model", "tarflow", "--topology", TOPOLOGY, "--frames"]);
        command.arg(folder.join(frames)).arg("--config").arg(&settings);
        command.arg("-o").arg(folder.join("model.safetensors")).args(more);
        command
    };
    let units_per_nm = || match &modejump::models::load(folder.join("model.safetensors")).unwrap().card().model {
        modejump::models::ModelConfig::Tarflow(config) => config.units_per_nm,
        other => panic!("{}", other.kind()),
    };
    let weight = |i: usize| if i % 4 == 0 { 3.0 } else { f64::NEG_INFINITY };
    write("weighted.safetensors", "log_weight", (0..40).map(weight).collect());
    let [_, text] = train("weighted.safetensors", &["--resample"]).texts();
    assert!(text.contains("10 of 40 frames kept by resampling, ESS 10"), "{text}");
    let large = units_per_nm();
    write(
        "equal.safetensors",
        "log_weight",
        (0..40).map(|i| if i % 4 == 0 { f64::NEG_INFINITY } else { 3.0 }).collect(),
    );
    train("equal.safetensors", &["--resample", "truncated"]).succeeds();
    assert!((units_per_nm() / large - 1.5).abs() < 1e-9, "{} and {large}", units_per_nm());
    write("short.safetensors", "log_weight", vec![0.0; 39]);
    assert!(train("short.safetensors", &["--resample"]).fails().contains("`log_weight` has 39 values for 40 frames"));
    write("none.safetensors", "log_weight", vec![f64::NEG_INFINITY; 40]);
    assert!(train("none.safetensors", &["--resample"]).fails().contains("all 40 weights are zero"));
    write("plain.safetensors", "reduced_potential", vec![0.0; 40]);
    assert!(train("plain.safetensors", &["--resample"]).fails().contains("neither `log_weight`"));
    write("density.safetensors", "log_density", vec![0.0; 40]);
    assert!(train("density.safetensors", &["--resample"]).fails().contains("use --system"));
    write("damaged.safetensors", "log_density", (0..40).map(|i| if i == 7 { f64::NAN } else { 0.0 }).collect());
    let text = train("damaged.safetensors", &["--resample"]).fails();
    assert!(text.contains("damaged.safetensors: `log_density` is NaN in row 7"), "{text}");
    #[cfg(feature = "openmm")]
    {
        let [_, text] = train("density.safetensors", &["--resample", "--system", SYSTEM]).texts();
        // a molecule half as long again has no weight beside one as it is
        assert!(text.contains("30 of 40 frames kept by resampling, ESS 30"), "{text}");
        assert!((units_per_nm() / large - 1.5).abs() < 1e-9);
        let constrained = "models/ala2/system-hbonds.xml";
        let text = train("density.safetensors", &["--resample", "--system", constrained]).fails();
        assert!(text.contains("density.safetensors: the bond") && text.contains("varies it"), "{text}");
    }
}

/// Bonds that the frames keep and the model would vary are told, unless the System constrains them.
#[cfg(feature = "openmm")]
#[test]
fn bonds_that_frames_keep_are_told() {
    let setting = Setting::new("rigid");
    setting.configure(&SETTINGS.replace("2500", "1"));
    let [rigid, flexible] = ["hbonds", "vacuum"].map(|name| format!("models/ala2/system-{name}.xml"));
    let note = |more: &[&str]| {
        let [_, text] = setting.train("model.safetensors").args(more).texts();
        text.lines().find(|line| line.starts_with("note: the bond")).map(String::from)
    };
    assert_eq!(note(&[]), None);
    // each hydrogen goes along its bond to where the constraint has it
    let xml = std::fs::read_to_string(&rigid).unwrap();
    let constraints = modejump::engines::openmm::System::from_xml(&xml).unwrap().constraints().unwrap();
    let elements = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap().0.elements;
    for path in &setting.frames {
        let mut x = tensors(path).remove("x").unwrap().data;
        for x in x.chunks_exact_mut(66) {
            for &(a, b, length) in &constraints {
                let (hydrogen, heavy) = if elements[a] == "H" { (a, b) } else { (b, a) };
                let bond: [f64; 3] = std::array::from_fn(|axis| x[3 * hydrogen + axis] - x[3 * heavy + axis]);
                let scale = length / bond.iter().map(|v| v * v).sum::<f64>().sqrt();
                (0..3).for_each(|axis| x[3 * hydrogen + axis] = x[3 * heavy + axis] + scale * bond[axis]);
            }
        }
        let rounded = Data::F32(x.iter().map(|v| *v as f32).collect());
        let tensors = BTreeMap::from([("x".to_string(), (vec![x.len() / 66, 22, 3], rounded))]);
        std::fs::write(path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    }
    let told = note(&[]).unwrap();
    assert!(
        told.contains("(atom 2) keeps a length of 0.1090 nm in the frames, as do 11 more")
            && told.contains("use a --system"),
        "{told}"
    );
    assert_eq!(note(&["--system", &flexible]), Some(told));
    assert_eq!(note(&["--system", &rigid]), None);
}

#[cfg(feature = "openmm")]
#[test]
fn a_system_with_atoms_in_another_order_is_refused() {
    let setting = Setting::new("order");
    let text = std::fs::read_to_string(TOPOLOGY).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let first = lines.iter().position(|line| line.contains(" CH3 ACE")).unwrap();
    lines.swap(first, first + 1); // with a hydrogen
    std::fs::write(setting.path("topology.pdb"), lines.join("\n")).unwrap();
    for command in ["train", "adapt"] {
        let mut command = modejump(&[command, "--system", SYSTEM, "--topology"]);
        let message = command.arg(setting.path("topology.pdb")).arg("-o").arg(setting.path("model")).fails();
        assert!(message.contains("system.xml: found a mass of 12.0"), "{message}");
    }
}

/// CH3 and the first of its hydrogens in each other's place, as other programs order them: bonds are as long as the
/// distances of atoms that are not bonded.
#[test]
fn frames_of_atoms_in_another_order_are_refused() {
    let setting = Setting::new("order");
    let path = &setting.frames[1];
    let mut x = tensors(path).remove("x").unwrap().data;
    x.chunks_exact_mut(66).for_each(|x| (0..3).for_each(|axis| x.swap(axis, 3 + axis)));
    let tensors = BTreeMap::from([("x".to_string(), (vec![x.len() / 66, 22, 3], Data::F64(x)))]);
    std::fs::write(path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    let told = setting.train("model.safetensors").fails();
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(told.contains(&format!("{name}: ACE1:")) && told.contains("which are bonded in the topology"), "{told}");
    assert!(told.contains("atoms in the order of the topology"), "{told}");
}
