//! `modejump gromacs` with the gmx that is installed; what is tested of its runs is in `tests/gromacs`.

use crate::command::{folder, modejump, Run, TOPOLOGY};
use std::path::Path;
use std::process::Command;

/// Runs gmx in a folder.
fn gmx(folder: &Path, line: &str) {
    let output = Command::new("gmx").args(line.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "gmx {line}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether there is a gmx to test with; says so if not.
fn is_installed() -> bool {
    let found = Command::new("gmx").arg("--version").output().is_ok();
    if !found {
        eprintln!("no gmx on the PATH; sh scripts/gromacs.sh installs it where apt may");
    }
    found
}

/// Makes topol.top and plain.gro of alanine dipeptide in vacuum; returns the .mdp options of the example.
fn prepare(folder: &Path) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pdb = here.join(TOPOLOGY).display().to_string();
    gmx(folder, &format!("pdb2gmx -f {pdb} -ff amber99sb-ildn -water none -o start.gro -p topol.top"));
    gmx(folder, "editconf -f start.gro -o plain.gro -box 6 6 6 -c");
    std::fs::read_to_string(here.join("examples/gromacs-ala2/md.mdp")).unwrap()
}

/// As md and log-density tell it, after the first cycle.
#[test]
fn hydrogens_that_are_numbered_the_other_way_round_are_named() {
    if !is_installed() {
        return;
    }
    let folder = folder("gromacs-labels");
    let mdp = prepare(&folder);
    let text = std::fs::read_to_string(folder.join("plain.gro")).unwrap();
    // the places of HB1 and HB2 of the alanine, under the names that they have
    let place = |name: &str| text.lines().find(|line| line.contains(name)).unwrap()[20..44].to_string();
    let (first, second) = (place("  HB1"), place("  HB2"));
    let exchanged = text.replace(&first, "x").replace(&second, &first).replace('x', &second);
    std::fs::write(folder.join("exchanged.gro"), exchanged).unwrap();
    for (name, constraints) in [("plain", "none"), ("exchanged", "none"), ("exchanged", "h-bonds")] {
        let case = format!("{name}-{constraints}");
        std::fs::write(folder.join("md.mdp"), format!("{mdp}constraints = {constraints}\n")).unwrap();
        gmx(&folder, &format!("grompp -f md.mdp -c {name}.gro -p topol.top -o {case}.tpr -maxwarn 1"));
        let [tpr, runs] = [format!("{case}.tpr"), case.clone()].map(|name| folder.join(name).display().to_string());
        let model = if constraints == "none" { "model-vacuum" } else { "model-hbonds" };
        let model = format!("models/ala2/{model}.safetensors");
        let run =
            ["gromacs", &model, "-s", &tpr, "-d", &runs, "--mdrun", "gmx mdrun -nt 1", "-n", "1", "--steps", "50"];
        let [_, said] = modejump(&run).texts();
        let is_told = said.contains(&format!("{case}.tpr: numbered differently from")) && said.contains("ALA2:HB1");
        assert_eq!(is_told, name == "exchanged", "{case}: {said}");
    }
}

#[test]
fn a_run_goes_on_only_from_the_files_that_it_wrote() {
    if !is_installed() {
        return;
    }
    let folder = folder("gromacs-files");
    std::fs::write(folder.join("md.mdp"), prepare(&folder)).unwrap();
    gmx(&folder, "grompp -f md.mdp -c plain.gro -p topol.top -o topol.tpr -maxwarn 1");
    let [tpr, runs] = ["topol.tpr", "run"].map(|name| folder.join(name).display().to_string());
    let run = |model: &str, mdrun: &str, options: &[&str]| {
        let line = ["gromacs", model, "-s", &tpr, "-d", &runs, "--steps", "50", "--mdrun", mdrun];
        modejump(&[&line[..], options].concat())
    };
    let model = "models/ala2/model-vacuum.safetensors";
    let message = run("models/double-well/generator.safetensors", "gmx mdrun", &["-n", "1"]).fails();
    assert!(message.contains("the model has 2 coordinates") && message.contains("molecule"), "{message}");
    let message = run(model, "true", &["-n", "1"]).fails();
    assert!(message.contains("true reported success but did not write ener.edr"), "{message}");

    // before the first cycle there is nothing to say about cycles
    let none = run(model, "gmx mdrun", &["-n", "1", "--maxh", "1e-9"]).succeeds();
    assert!(none.contains("0 cycles (incomplete") && !none.contains("jumped") && !none.contains("per cycle"), "{none}");
    let none = run(model, "gmx mdrun", &["-n", "1", "--maxh", "1e-9"]).json();
    assert!(none["acceptance"].is_null() && none["dynamics_s_per_cycle"].is_null() && none["cycles"] == 0, "{none}");

    let spaced = folder.join("my programs");
    std::fs::create_dir(&spaced).unwrap();
    std::os::unix::fs::symlink("/bin/sh", spaced.join("shell")).unwrap();
    let mdrun = format!("'{}/shell' -c 'exec gmx mdrun -nt 1 \"$@\"' shell", spaced.display());
    run(model, &mdrun, &["-n", "1"]).succeeds();

    // a longer trajectory of another run, a part of the right one, and none
    let path = folder.join("run/traj.xtc");
    let whole = std::fs::read(&path).unwrap();
    gmx(&folder, "mdrun -nt 1 -s topol.tpr -nsteps 2000 -x other.xtc");
    let other = std::fs::read(folder.join("other.xtc")).unwrap();
    // it begins as this one does, with the same seed
    let other = [&other[whole.len()..], &other].concat();
    for (bytes, text) in
        [(Some(&other[..]), "another file has taken its place"), (Some(&whole[..9]), "shorter"), (None, "is missing")]
    {
        std::fs::remove_file(&path).unwrap();
        bytes.map_or(Ok(()), |bytes| std::fs::write(&path, bytes)).unwrap();
        for cycles in ["1", "2"] {
            let message = run(model, &mdrun, &["-n", cycles]).fails();
            assert!(message.contains("traj.xtc") && message.contains(text), "{message}");
            assert_eq!(std::fs::read(&path).ok().as_deref(), bytes);
        }
    }
    std::fs::write(&path, &whole).unwrap();
    run(model, &mdrun, &["-n", "2"]).succeeds();
    assert!(std::fs::read(&path).unwrap().starts_with(&whole));
}
