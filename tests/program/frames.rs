//! Frames of every format, in the order of atoms and the unit that a model needs.

use crate::command::{
    files, largest_difference, modejump, number, tensor, tensors, write, Run, MODEL, SYSTEM, TOPOLOGY,
};
use modejump::io::trajectory;

#[test]
fn frames_are_read_and_written_in_every_format() {
    let path = files("frames-formats");
    let of_samples = |name: &str| {
        modejump(&["sample", MODEL, "-n", "5", "-o", &path(name)]).succeeds();
        modejump(&["log-density", MODEL, &path(name), "-o", &path("q.safetensors")]).json()
    };
    let exact = number(&of_samples("x.safetensors"), "mean_log_density");
    // nats that the rounding of the format costs: bonds are a few thousandths of a nanometre wide
    for (name, tolerance) in
        [("x.npy", 1e-9), ("x.dcd", 0.1), ("x.xtc", 1.0), ("x.trr", 1e-9), ("x.pdb", 20.0), ("x.gro", 200.0)]
    {
        let summary = of_samples(name);
        assert_eq!(summary["n"], 5, "{name}");
        let mean = number(&summary, "mean_log_density");
        assert!((mean - exact).abs() < tolerance, "{name}: {mean} for {exact}");
    }
}

#[test]
fn frames_with_atoms_in_another_order_are_refused() {
    let path = files("frames-order");
    for name in ["x.pdb", "x.gro"] {
        modejump(&["sample", MODEL, "-n", "2", "-o", &path(name)]).succeeds();
        modejump(&["log-density", MODEL, &path(name), "-o", &path("q.safetensors")]).succeeds();
        let text = std::fs::read_to_string(path(name)).unwrap();
        // of equal length, so that columns stay
        let exchanged = text.replace("HH31", "HHXX").replace("HH33", "HH31").replace("HHXX", "HH33");
        std::fs::write(path(name), exchanged).unwrap();
        let message = modejump(&["log-density", MODEL, &path(name), "-o", &path("q.safetensors")]).fails();
        assert!(message.contains("found ACE1:HH33 (atom 2) where the model has ACE1:HH31 (atom 2)"), "{message}");
        let train = ["train", "--topology", TOPOLOGY, "--frames", &path(name), "-o", &path("model.safetensors")];
        let message = modejump(&train).fails();
        assert!(message.contains("found ACE1:HH33 (atom 2) where the topology has"), "{message}");
    }
}

/// As GROMACS and LAMMPS write them of a periodic system.
#[test]
fn molecules_that_the_box_cuts_are_made_whole() {
    let path = files("frames-cut");
    let [x, whole, of_whole] = ["x.npy", "whole.trr", "whole.safetensors"].map(&path);
    modejump(&["sample", MODEL, "-n", "4", "-o", &x]).succeeds();
    let mut frames = trajectory::read(x.as_ref()).unwrap();
    trajectory::write(whole.as_ref(), &frames, None, &[]).unwrap();
    modejump(&["log-density", MODEL, &whole, "-o", &of_whole]).succeeds();
    let (a, shift) = (2.0, [1.9, 0.0, 0.1]);
    frames.boxes = vec![[[a, 0.0, 0.0], [0.0, a, 0.0], [0.0, 0.0, a]]; 4];
    frames.x.iter_mut().enumerate().for_each(|(i, v)| *v = (*v + shift[i % 3]).rem_euclid(a));
    for (name, tolerance) in [("cut.trr", 1e-6), ("cut.dcd", 0.1), ("cut.xtc", 1.0), ("cut.safetensors", 1e-6)] {
        let [cut, of_cut] = [name, "of_cut.safetensors"].map(&path);
        trajectory::write(cut.as_ref(), &frames, None, &[]).unwrap();
        let [_, told] = modejump(&["log-density", MODEL, &cut, "-o", &of_cut]).texts();
        assert!(told.contains("the molecule is split across the periodic box in 4 of 4 frames"), "{told}");
        let apart = largest_difference(&tensors(&of_cut)["log_density"].data, &tensors(&of_whole)["log_density"].data);
        assert!(apart < tolerance, "{name}: {apart}");
    }
    // a format without boxes
    let cut = path("cut.npy");
    trajectory::write(cut.as_ref(), &frames, None, &[]).unwrap();
    let message = modejump(&["log-density", MODEL, &cut, "-o", &path("q.safetensors")]).fails();
    assert!(message.contains("that the molecule is whole"), "{message}");
}

/// As `gmx pdb2gmx` gives them another order, which a format without names does not tell.
#[test]
fn frames_are_brought_to_the_models_order_by_a_topology() {
    let path = files("frames-reordered");
    let [x, exchanged, of_x, again, topology] =
        ["x.npy", "exchanged.npy", "q.safetensors", "again.safetensors", "exchanged.pdb"].map(path);
    modejump(&["sample", MODEL, "-n", "3", "-o", &x]).succeeds();
    modejump(&["log-density", MODEL, &x, "-o", &of_x]).succeeds();
    let mut frames = trajectory::read(x.as_ref()).unwrap();
    frames.x.chunks_exact_mut(66).for_each(|x| (0..3).for_each(|k| x.swap(3 + k, 9 + k)));
    trajectory::write(exchanged.as_ref(), &frames, None, &[]).unwrap();
    let pdb = std::fs::read_to_string(TOPOLOGY).unwrap();
    let mut lines: Vec<&str> = pdb.lines().collect();
    let first = lines.iter().position(|line| line.starts_with("ATOM") || line.starts_with("HETATM")).unwrap();
    lines.swap(first + 1, first + 3);
    std::fs::write(&topology, lines.join("\n")).unwrap();
    modejump(&["log-density", MODEL, &exchanged, "--topology", &topology, "-o", &again]).succeeds();
    let apart = || largest_difference(&tensors(&of_x)["log_density"].data, &tensors(&again)["log_density"].data);
    assert!(apart() < 1e-4);
    modejump(&["log-density", MODEL, &exchanged, "-o", &again]).succeeds();
    assert!(apart() > 10.0);
    std::fs::write(&topology, pdb.replace("HH31", "HX31")).unwrap();
    let message = modejump(&["log-density", MODEL, &x, "--topology", &topology, "-o", &again]).fails();
    assert!(
        message.contains("exchanged.pdb: atom ACE1:HH31") && message.contains("use the atom names of the model"),
        "{message}"
    );
}

#[test]
fn frames_in_other_units_are_refused() {
    let path = files("frames-angstrom");
    modejump(&["sample", MODEL, "-n", "3", "-o", &path("x.safetensors")]).succeeds();
    let x = tensors(path("x.safetensors")).remove("x").unwrap();
    let enlarged = tensor(&x.shape, x.data.iter().map(|v| 10.0 * v).collect::<Vec<_>>());
    write(path("a.safetensors"), [("x", enlarged.clone())]);
    let message = modejump(&["log-density", MODEL, &path("a.safetensors"), "-o", &path("q.safetensors")]).fails();
    assert!(message.contains("a.safetensors: ") && message.contains("nm, not Angstrom"), "{message}");
    // as of a DCD with numbers in nm
    write(path("b.safetensors"), [("x", tensor(&x.shape, x.data.iter().map(|v| 0.1 * v).collect::<Vec<_>>()))]);
    let message = modejump(&["log-density", MODEL, &path("b.safetensors"), "-o", &path("q.safetensors")]).fails();
    assert!(message.contains("shorter than 0.0") && message.contains("in Angstrom in formats"), "{message}");
    // samples of a model, whose log q is beside them, are in nm: a poor model is not refused
    write(path("a.safetensors"), [("x", enlarged), ("log_density", tensor(&[3], [0.0; 3]))]);
    modejump(&["log-density", MODEL, &path("a.safetensors"), "-o", &path("q.safetensors")]).succeeds();
}

#[test]
fn a_file_of_another_kind_is_told_by_its_name() {
    let path = files("frames-kinds");
    let [bytes, cut] = ["topology.pdb", "frames.safetensors"].map(&path);
    std::fs::write(&bytes, [0xffu8; 100]).unwrap();
    std::fs::write(&cut, &std::fs::read(MODEL).unwrap()[..1000]).unwrap();
    let message = modejump(&["md", "--topology", &bytes, "--system", SYSTEM]).fails();
    assert!(message.contains("topology.pdb: expected text"), "{message}");
    let message = modejump(&["log-density", MODEL, &cut]).fails();
    assert!(
        message.contains("frames.safetensors: the file ends within its header") && !message.contains("model file"),
        "{message}"
    );
}

/// As editors of another system write it.
#[test]
fn a_mark_before_a_text_is_no_part_of_it() {
    let path = files("frames-mark");
    let [x, frames, topology] = ["x.npy", "x.pdb", "topology.pdb"].map(&path);
    modejump(&["sample", MODEL, "-n", "2", "-o", &x]).succeeds();
    modejump(&["sample", MODEL, "-n", "2", "-o", &frames]).succeeds();
    for (from, to) in [(TOPOLOGY, &topology), (frames.as_str(), &frames)] {
        let text = std::fs::read_to_string(from).unwrap();
        let atoms = text.find("HETATM").or(text.find("ATOM")).unwrap();
        std::fs::write(to, format!("\u{feff}{}", &text[atoms..])).unwrap();
    }
    for frames in [&x, &frames] {
        modejump(&["log-density", MODEL, frames, "--topology", &topology, "-o", &path("q.safetensors")]).succeeds();
    }
}
