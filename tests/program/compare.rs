//! `compare`: how far two ensembles are apart.

use crate::command::{document, folder, modejump, number, Run, MODEL, SYSTEM, TOPOLOGY};
use modejump::coordinates::Topology;
use modejump::io::trajectory::{self, Frames};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

fn compare(a: &Path, b: &Path, more: &[&str]) -> Command {
    let mut command = modejump(&["compare", "--topology", TOPOLOGY]);
    command.arg(a).arg(b).args(more);
    command
}

/// Samples of the shipped generator.
fn samples(path: &Path, n: usize, seed: u64) -> Frames {
    let (n, seed) = (n.to_string(), seed.to_string());
    let options = ["-n", &n, "--seed", &seed, "-o", path.to_str().unwrap()];
    modejump(&[&["sample", MODEL], &options[..]].concat()).succeeds();
    trajectory::read(path).unwrap()
}

#[test]
fn samples_of_one_generator_are_as_near_as_halves_and_a_shifted_torsion_is_not() {
    let folder = folder("compare-seeds");
    // without their density samples pass for a run
    let (a, b, turned) = (folder.join("a.npy"), folder.join("b.dcd"), folder.join("turned.npy"));
    let first = samples(&a, 600, 1);
    samples(&b, 600, 2);
    // B: everything beyond the bond C–N of the second peptide turned by half a radian, which is ψ
    let (topology, _) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    let psi = topology.backbone().psi[0];
    let mut x = first.x.clone();
    x.chunks_exact_mut(66).for_each(|x| turn(x, [psi[1], psi[2]], 15..22, 0.5));
    trajectory::write(&turned, &Frames::new(66, x), None, &[]).unwrap();

    let same = compare(&a, &b, &["--lag", "5"]).json();
    for key in ["torsion_w2", "torsion_w2_sliced", "tica_w2", "ramachandran_jsd"] {
        let (between, halves) =
            (number(&same, &format!("between/{key}")), number(&same, &format!("halves_of_a/{key}")));
        assert!(between > 0.0 && between < 1.3 * halves, "{key}: {between} {halves}");
    }
    assert!(same["between"]["energy_w1"].is_null(), "no energies were given");
    let eigenvalue = format!("eigenvalues {:.3}, ", number(&same, "tica_eigenvalues/0"));
    let [text, told] = compare(&a, &b, &["--lag", "5"]).texts();
    assert!(told.contains("no energies in") && told.contains("a.npy and ") && told.contains("use --system"), "{told}");
    assert!(text.contains(&eigenvalue) && text.contains("at a lag of 5 frames"), "{text}");
    let generated = folder.join("generated.safetensors");
    samples(&generated, 600, 1);
    let barred = compare(&generated, &b, &["--lag", "5"]).json();
    assert!(
        barred["tica_eigenvalues"].is_null() && barred["between"]["tica_w2"].is_null(),
        "no order of time: {barred}"
    );
    let other = compare(&a, &turned, &["--lag", "0"]).json();
    // on the circle there may be a shorter way than to turn all by as much
    let (exact, sliced) = (number(&other, "between/torsion_w2"), number(&other, "between/torsion_w2_sliced"));
    assert!(exact > 0.4 && exact < 0.5 + 1e-9 && sliced > 0.2 && sliced < exact, "{other}");
    assert!(number(&other, "between/ramachandran_jsd") > 2.0 * number(&same, "between/ramachandran_jsd"));
    assert!(other["between"]["tica_w2"].is_null() && other["lag"].is_null());
    let named = compare(&a, &turned, &["--lag", "0", "--torsion", "4,6,8,14", "--torsion", "6,8,14,16"]).json();
    for distance in ["torsion_w2", "torsion_w2_sliced", "ramachandran_jsd"] {
        assert_eq!(named["between"][distance], other["between"][distance], "{distance}");
    }
}

/// Turns atoms about an axis of two others.
fn turn(x: &mut [f64], axis: [usize; 2], atoms: std::ops::Range<usize>, angle: f64) {
    use modejump::coordinates::vector::{add, atom, cross, dot, scale, set_atom, sub, unit};
    let origin = atom(x, axis[0]);
    let n = unit(sub(atom(x, axis[1]), origin));
    for i in atoms {
        let r = sub(atom(x, i), origin);
        let along = scale(dot(n, r) * (1.0 - angle.cos()), n);
        let turned = add(add(scale(angle.cos(), r), scale(angle.sin(), cross(n, r))), along);
        set_atom(x, i, add(origin, turned));
    }
}

#[test]
fn energies_and_weights_are_those_of_the_files() {
    let folder = folder("compare-weights");
    let (a, b) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let frames = samples(&a, 600, 1);
    let u: Vec<f64> = (0..600).map(|i| f64::from(i) * 0.05).collect();
    trajectory::write(&a, &frames, None, &[("reduced_potential", &u)]).unwrap();
    // B: the same frames with energies raised by 2, and others that have no weight
    let others = samples(&b, 50, 7);
    let both = Frames::new(66, [frames.x, others.x].concat());
    let raised: Vec<f64> = u.iter().map(|u| u + 2.0).chain(vec![1e6; 50]).collect();
    let log_w = [vec![-40.0; 600], vec![f64::NEG_INFINITY; 50]].concat();
    trajectory::write(&b, &both, None, &[("reduced_potential", &raised), ("log_weight", &log_w)]).unwrap();

    let output = folder.join("out");
    let found = compare(&a, &b, &["--lag", "5", "-o", output.to_str().unwrap()]).json();
    for key in ["energy_w1", "energy_w2"] {
        assert!((number(&found, &format!("between/{key}")) - 2.0).abs() < 1e-9, "{found}");
    }
    assert!(number(&found, "between/ramachandran_jsd").abs() < 1e-12);
    assert!(number(&found, "between/torsion_w2_sliced").abs() < 1e-6);
    assert!((number(&found, "b/ess") - 600.0 / 650.0).abs() < 1e-9);
    assert_eq!(found["b"]["weights"], "raw");
    assert_eq!(found["b"]["pareto_k"], "-inf", "equal weights have no tail");
    let plain = compare(&a, &b, &["--lag", "0", "--unweighted"]).json();
    assert!(number(&plain, "between/energy_w1") > 1e4 && plain["b"].get("ess").is_none());

    let document = document(output.join("compare.json"));
    assert_eq!(document["summary"], found);
    assert_eq!(document["series"][1]["phi"].as_array().unwrap().len(), 600, "frames without weight are left out");
    let figures = ["energy.svg", "ramachandran.svg", "tica.svg"];
    for name in figures {
        let svg = std::fs::read_to_string(output.join(name)).unwrap();
        assert!(svg.contains("a.safetensors") && svg.contains("b.safetensors"), "{name}");
        std::fs::remove_file(output.join(name)).unwrap();
    }
    let json = output.join("compare.json");
    modejump(&["plot", json.to_str().unwrap(), "-o", output.to_str().unwrap()]).succeeds();
    assert!(figures.iter().all(|name| output.join(name).exists()), "plot draws them from the document");
}

/// Points of exact transport are drawn also where all would fit: by their weights, or fewer of one side.
#[test]
fn distances_that_depend_on_draws_have_their_spread() {
    let folder = folder("compare-draws");
    let [a, b, fewer, weighted] = ["a.npy", "b.npy", "fewer.npy", "weighted.safetensors"].map(|name| folder.join(name));
    samples(&a, 60, 1);
    let frames = samples(&b, 60, 2);
    samples(&fewer, 50, 3);
    let log_w: Vec<f64> = (0..60).map(|i| (0.37 * f64::from(i)).sin()).collect();
    trajectory::write(&weighted, &frames, None, &[("log_weight", &log_w)]).unwrap();
    let spread = |b: &Path| number(&compare(&a, b, &["--lag", "0"]).json(), "between/torsion_w2_sd");
    assert_eq!(spread(&b), 0.0);
    for other in [&fewer, &weighted] {
        assert!(spread(other) > 0.0, "{other:?}");
        assert!(compare(&a, other, &["--lag", "0"]).succeeds().contains("over 4 draws of at most 1000 frames"));
    }
}

/// Raw weights of all frames, whatever was made of them and left out.
#[test]
fn the_figure_of_weights_says_what_the_report_does() {
    let folder = folder("compare-legend");
    let (a, b, output) = (folder.join("a.npy"), folder.join("b.safetensors"), folder.join("out"));
    samples(&a, 100, 1);
    let frames = samples(&b, 300, 2);
    // tail index 0.8
    let mut log_w: Vec<f64> = (0..300).map(|i| -0.8 * ((f64::from(i) + 0.5) / 300.0).ln()).collect();
    log_w[100..200].fill(f64::NEG_INFINITY);
    trajectory::write(&b, &frames, None, &[("log_weight", &log_w)]).unwrap();
    let more =
        ["--weights", "quantile-clipped", "--clipped-share", "0.05", "--lag", "0", "-o", output.to_str().unwrap()];
    let found = compare(&a, &b, &more).json();
    let (ess, k) = (number(&found, "b/ess"), number(&found, "b/pareto_k"));
    assert!(number(&found, "b/ess_of_weights") > 1.2 * ess, "{found}");
    let figure = std::fs::read_to_string(output.join("log_weights.svg")).unwrap();
    let expected = format!("ESS {:.1} %, k = {k:.2}, 100 rejected, weights used: quantile_clipped", 100.0 * ess);
    assert!(figure.contains(&expected), "{expected}");
    // a comparison without weights leaves none of an earlier one there
    compare(&a, &a, &["--lag", "0", "-o", output.to_str().unwrap()]).json();
    assert!(!output.join("log_weights.svg").exists() && output.join("compare.json").exists());
}

#[test]
fn sides_without_a_density_are_not_reweighted_in_silence() {
    let folder = folder("compare-densities");
    let (a, b) = (folder.join("run.dcd"), folder.join("b.safetensors"));
    samples(&a, 100, 1);
    let frames = samples(&b, 100, 2);
    let message = compare(&a, &a, &["--reweight", "--lag", "0"]).fails();
    assert!(message.contains("--reweight: neither") && message.contains("`log_density`"), "{message}");
    let numbers = [("reduced_potential", &[1.0; 100][..]), ("log_density", &[2.0; 100][..])];
    trajectory::write(&b, &frames, None, &numbers).unwrap();
    let [report, told] = compare(&a, &b, &["--reweight", "--lag", "10"]).texts();
    assert!(told.contains("run.dcd has no `log_density`") && told.contains("count equally"), "{told}");
    assert!(!told.contains("b.safetensors"), "{told}");
    assert!(report.contains("Pareto k none: the largest weights are nearly equal"), "{report}");
    // too few frames for that many features
    assert!(told.contains("no slow components") && told.contains("90 pairs of frames"), "{told}");
    assert!(!report.contains("eigenvalues"), "{report}");
}

#[test]
fn energies_of_two_temperatures_and_walkers_by_turns_are_not_compared() {
    let folder = folder("compare-temperatures");
    let [a, b, walkers] = ["a", "b", "walkers"].map(|name| folder.join(format!("{name}.safetensors")));
    let u: Vec<f64> = (0..100).map(f64::from).collect();
    for (seed, path, kelvin) in [(1, &a, 300.0), (2, &b, 450.0)] {
        let frames = samples(path, 100, seed);
        trajectory::write(path, &frames, None, &[("reduced_potential", &u), ("temperature", &[kelvin; 100])]).unwrap();
    }
    let [report, told] = compare(&a, &b, &["--lag", "0"]).texts();
    assert!(told.contains("at 300 K, those in") && told.contains("at 450 K: they are not compared"), "{told}");
    let is_left_out = |line: &str| line.starts_with("energy W1") && line.contains('–');
    assert!(report.lines().any(is_left_out), "{report}");
    let [report, told] = compare(&a, &a, &["--lag", "0"]).texts();
    assert!(
        !told.contains("not compared") && !told.contains("one sample") && !report.lines().any(is_left_out),
        "{report}{told}"
    );
    let frames = samples(&b, 100, 2);
    let mixed: Vec<f64> = (0..100).map(|i| if i < 50 { 300.0 } else { 400.0 }).collect();
    trajectory::write(&b, &frames, None, &[("reduced_potential", &u), ("temperature", &mixed)]).unwrap();
    let told = compare(&a, &b, &["--lag", "0"]).texts()[1].clone();
    assert!(told.contains("b.safetensors: frames at 300 to 400 K are compared as one sample"), "{told}");
    let frames = samples(&walkers, 3000, 3);
    let turns: Vec<f64> = (0..3000).map(|i| f64::from(i % 16)).collect();
    trajectory::write(&walkers, &frames, None, &[("walker", &turns)]).unwrap();
    let told = compare(&walkers, &a, &["--lag", "10"]).arg("-o").arg(folder.join("out")).texts()[1].clone();
    assert!(told.contains("no slow components") && told.contains("alternating frames of several walkers"), "{told}");
    let series = document(folder.join("out/compare.json"))["series"].clone();
    assert_eq!([&series[0]["by_turns"], &series[1]["by_turns"]], [true, false]);
}

#[test]
fn what_cannot_be_compared_is_named() {
    let folder = folder("compare-bad");
    let path = |name: &str| folder.join(name);
    let a = path("a.safetensors");
    let frames = samples(&a, 20, 1);
    let write = |name: &str, dimension: usize, x: Vec<f64>, extra: &[(&str, &[f64])]| {
        trajectory::write(&path(name), &Frames::new(dimension, x), None, extra).unwrap();
        path(name)
    };
    let refused = |b: PathBuf, reasons: &[&str]| {
        let message = compare(&a, &b, &["--lag", "0"]).fails();
        let file = b.file_name().unwrap().to_str().unwrap().to_string();
        for reason in reasons.iter().chain(&[file.as_str()]) {
            assert!(message.contains(reason), "{reason}: {message}");
        }
    };
    refused(write("atoms.dcd", 63, frames.x[..63 * 20].to_vec(), &[]), &["21 atoms", "22 atoms"]);
    refused(write("none.npy", 66, vec![], &[]), &["0 frames"]);
    refused(write("few.npy", 66, frames.x[..66 * 3].to_vec(), &[]), &["3 frames are too few"]);
    let mut x = frames.x.clone();
    x[66 * 4 + 3 * 7] = f64::NAN;
    refused(write("nan.npy", 66, x, &[]), &["frame 5", "atom 8"]);
    let mut x = frames.x.clone();
    x.chunks_exact_mut(66).for_each(|x| (0..3).for_each(|k| x.swap(k, 63 + k)));
    refused(write("order.xtc", 66, x, &[]), &["ACE1:CH3 (atom 1)", "the right order"]);
    let enlarged: Vec<f64> = frames.x.iter().map(|v| 10.0 * v).collect();
    refused(write("angstrom.npy", 66, enlarged.clone(), &[]), &["nm, not Angstrom"]);
    // of a poor model
    let samples = write("poor.safetensors", 66, enlarged, &[("log_density", &[0.0; 20])]);
    compare(&a, &samples, &["--lag", "0"]).succeeds();
    let lengths = [("log_weight", &[0.0; 40][..])];
    refused(write("length.safetensors", 66, frames.x.clone(), &lengths), &["`log_weight` has 40 values for 20 frames"]);
    let mut log_w = [0.0; 20];
    log_w[3] = f64::NAN;
    refused(write("weight.safetensors", 66, frames.x.clone(), &[("log_weight", &log_w)]), &["log-weight 3 is NaN"]);
    std::fs::write(path("empty.dcd"), b"").unwrap();
    refused(path("empty.dcd"), &[]);

    // a PDB file names its atoms
    let (mut topology, _) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    topology.names.swap(11, 12);
    trajectory::write(&path("names.pdb"), &frames, Some(&topology), &[]).unwrap();
    refused(path("names.pdb"), &["found ALA2:HB2 (atom 12) where the topology has ALA2:HB1 (atom 12)"]);

    let message = modejump(&["compare"]).arg(&a).arg(&a).fails();
    assert!(message.contains("--topology"), "{message}");
    assert!(compare(&a, &a, &["--reweight"]).fails().contains("--system"));
    assert!(compare(&a, &a, &["--system", SYSTEM]).fails().contains("--temperature"));
    assert!(compare(&a, &a, &["--platform", "CPU"]).fails().contains("--system"));
}

#[test]
#[cfg(feature = "openmm")]
fn a_generator_that_is_reweighted_comes_nearer_to_another_that_is() {
    let folder = folder("compare-reweighted");
    let (a, b) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    samples(&a, 1500, 1);
    let (n, seed) = ("1500", "5");
    let options = ["-n", n, "--seed", seed, "-o", b.to_str().unwrap()];
    // the generator in vacuum, weighted to the energies in implicit solvent
    modejump(&[&["sample", "models/ala2/model-vacuum.safetensors"], &options[..]].concat()).succeeds();
    let system = ["--system", SYSTEM, "--temperature", "300", "--lag", "0", "--points", "500"];
    let plain = compare(&a, &b, &system).json();
    let weighted = compare(&a, &b, &[&system[..], &["--reweight", "--weights", "truncated"]].concat()).json();
    for key in ["torsion_w2", "torsion_w2_sliced", "ramachandran_jsd"] {
        let (before, after) = (number(&plain, &format!("between/{key}")), number(&weighted, &format!("between/{key}")));
        assert!(after < 0.9 * before, "{key}: {before} {after}");
    }
    assert_eq!(weighted["a"]["weights"], "truncated");
    assert!(number(&weighted, "a/ess") > 0.7 && number(&weighted, "b/ess") < 0.5, "{weighted}");
}

/// As `reweight` does, with the same weights where both sides keep the bonds.
#[test]
#[cfg(feature = "openmm")]
fn reweighted_bonds_are_constrained_on_both_sides_or_on_none() {
    let folder = folder("compare-constraints");
    let run = folder.join("run.npy");
    samples(&run, 10, 2);
    let output = folder.join("out");
    let of = |model: &str, system: &str| {
        let path = folder.join(format!("{model}.safetensors"));
        let (model, system) = (format!("models/ala2/{model}.safetensors"), format!("models/ala2/{system}.xml"));
        modejump(&["sample", &model, "-n", "40", "--seed", "3", "-o", path.to_str().unwrap()]).succeeds();
        let mut command =
            compare(&run, &path, &["--system", &system, "--temperature", "300", "--reweight", "--lag", "0"]);
        command.arg("--output").arg(&output);
        command
    };
    let message = of("model-hbonds", "system").fails();
    assert!(message.contains("model-hbonds.safetensors: ") && message.contains("does not constrain it"), "{message}");
    let message = of("model", "system-hbonds").fails();
    assert!(message.contains("ACE1:HH31 (atom 2)") && message.contains("but the model varies it"), "{message}");

    let raw = folder.join("weights.json");
    let both = ["models/ala2/model-hbonds.safetensors", "--system", "models/ala2/system-hbonds.xml"];
    modejump(&[&["reweight"], &both[..], &["-n", "40", "--seed", "3"]].concat()).arg("-o").arg(&raw).succeeds();
    let weights = |path: PathBuf, side: usize| -> Vec<f64> {
        serde_json::from_value(document(path)["series"][side]["raw_log_weight"].clone()).unwrap()
    };
    of("model-hbonds", "system-hbonds").succeeds();
    let (found, expected) = (weights(output.join("compare.json"), 1), weights(raw, 0));
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
}

#[test]
fn a_side_without_a_finite_energy_is_compared_by_what_else_there_is() {
    let folder = folder("compare-energies");
    let (a, b, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"), folder.join("out"));
    let frames = samples(&a, 40, 1);
    let (u, mut halved) = ([f64::INFINITY; 40], [1.0; 40]);
    halved[..20].fill(f64::INFINITY);
    trajectory::write(&a, &frames, None, &[("reduced_potential", &halved)]).unwrap();
    trajectory::write(&b, &frames, None, &[("reduced_potential", &u)]).unwrap();
    let [printed, told] = compare(&a, &b, &["--lag", "0", "--json"]).arg("--output").arg(&output).texts();
    assert!(told.lines().count() == 1, "{told}");
    assert!(told.contains("no frame in ") && told.contains("b.safetensors has a finite energy"), "{told}");
    let found: Value = serde_json::from_str(&printed).unwrap();
    assert!(found["between"]["energy_w1"].is_null() && found["halves_of_a"]["energy_w1"].is_null(), "{found}");
    assert!(number(&found, "between/torsion_w2") < 1e-9, "{found}");
    assert!(number(&found, "halves_of_a/ramachandran_jsd") > 0.0, "{found}");
    assert_eq!([&found["a"], &found["b"]].map(|side| number(side, "without_finite_energy")), [20.0, 40.0]);
    let map = std::fs::read_to_string(output.join("ramachandran.svg")).unwrap();
    assert!(map.contains("A: a.safetensors") && map.contains("B: b.safetensors"));
}

/// Across a box in some of the frames, as a trajectory is in which molecules were not made whole; in most it is
/// refused.
#[test]
fn molecules_that_are_broken_in_some_frames_are_told() {
    let folder = folder("compare-torn");
    let (run, torn, density) = (folder.join("run.npy"), folder.join("torn.npy"), folder.join("q.safetensors"));
    let mut frames = samples(&run, 20, 1);
    // the last ten atoms of seven frames
    frames.x.chunks_exact_mut(66).take(7).for_each(|x| x[36..].iter_mut().for_each(|x| *x += 3.0));
    trajectory::write(&torn, &frames, None, &[]).unwrap();
    let mut log_density = modejump(&["log-density", MODEL]);
    log_density.arg(&torn).arg("-o").arg(&density);
    for mut command in [compare(&run, &torn, &["--lag", "0"]), log_density] {
        let [_, told] = command.texts();
        let of_energies = told.lines().filter(|line| line.contains("no energies in")).count();
        assert!(told.lines().count() == 1 + of_energies, "{told}");
        assert!(
            told.contains("torn.npy: in 7 of 20 frames") && told.contains("check that the molecule is whole"),
            "{told}"
        );
        assert!(told.contains("ALA2:CB (atom 11) and ALA2:HB"), "{told}");
    }
}

#[test]
#[cfg(feature = "openmm")]
fn the_box_of_a_periodic_system_is_told() {
    let folder = folder("compare-periodic");
    let (run, periodic) = (folder.join("run.npy"), folder.join("periodic.xml"));
    samples(&run, 10, 1);
    let system = std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap();
    std::fs::write(&periodic, system.replace("method=\"0\"", "method=\"2\"")).unwrap();
    let told = |system: &str| {
        let [_, told] = compare(&run, &run, &["--lag", "0", "--system", system, "--temperature", "300"]).texts();
        told
    };
    let note = told(periodic.to_str().unwrap());
    assert_eq!(note.matches("periodic.xml is periodic: energies are computed in its default box").count(), 1, "{note}");
    assert_eq!(told("models/ala2/system-vacuum.xml"), "");
}

/// Before files are read, let alone compared.
/// Four carbon atoms have no residue.
#[test]
fn a_molecule_without_a_backbone_is_told() {
    let folder = folder("compare-butane");
    let places = [[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [2.0, 1.4, 0.0], [3.5, 1.4, 0.0]];
    let atom = |(i, [x, y, z]): (usize, &[f64; 3])| {
        format!("HETATM{:5}  C{}  BUT A   1    {x:8.3}{y:8.3}{z:8.3}  1.00  0.00           C\n", i + 1, i + 1)
    };
    let atoms: String = places.iter().enumerate().map(atom).collect();
    let models = |n: usize| (1..=n).map(|k| format!("MODEL     {k:4}\n{atoms}ENDMDL\n")).collect::<String>() + "END\n";
    let [a, b] = ["a.pdb", "b.pdb"].map(|name| folder.join(name));
    [&a, &b].into_iter().for_each(|path| std::fs::write(path, models(10)).unwrap());
    let mut command = modejump(&["compare", "--lag", "0"]);
    let [report, told] = command.arg(&a).arg(&b).texts();
    assert!(report.contains("–"), "{report}");
    assert!(told.contains("no backbone φ, ψ in this molecule") && told.contains("no energies in"), "{told}");
    let mut command = modejump(&["compare", "--lag", "0", "--torsion", "0,1,2,3"]);
    assert_eq!(number(&command.arg(&a).arg(&b).json(), "between/torsion_w2"), 0.0);
}

#[test]
fn a_folder_that_cannot_be_made_is_refused_at_once() {
    let folder = folder("compare-output");
    let file = folder.join("file");
    std::fs::write(&file, "kept").unwrap();
    let nothing = folder.join("nothing.npy");
    assert!(compare(&nothing, &nothing, &["--points", "0"]).fails().contains("--points 0: must be at least 1"));
    let message = compare(&nothing, &nothing, &["-o", file.to_str().unwrap()]).fails();
    assert!(message.contains("file: expected a folder, found a file"), "{message}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

/// Zeros in the place of what a model could not make.
#[test]
fn frames_outside_the_support_are_left_out_without_weights() {
    let folder = folder("compare-outside");
    let [a, b, clean] = ["a.safetensors", "b.safetensors", "clean.npy"].map(|name| folder.join(name));
    samples(&a, 300, 1);
    let frames = samples(&b, 300, 2);
    let (mut x, mut log_q) = (frames.x.clone(), vec![1.0; 300]);
    x[..20 * 66].fill(0.0);
    log_q[..20].fill(f64::NEG_INFINITY);
    trajectory::write(&b, &Frames::new(66, x), None, &[("log_density", &log_q)]).unwrap();
    trajectory::write(&clean, &Frames::new(66, frames.x[20 * 66..].to_vec()), None, &[]).unwrap();
    let [_, told] = compare(&a, &b, &["--lag", "0"]).texts();
    assert!(told.contains("b.safetensors: 20 of 300 frames are outside the support"), "{told}");
    let [found, expected] = [&b, &clean].map(|b| compare(&a, b, &["--lag", "0"]).json());
    assert_eq!(found["between"], expected["between"]);
}
