//! `modejump gromacs` with the gmx that is installed; what is tested of its runs is in `tests/gromacs`.

use crate::command::{folder, modejump, Run, TOPOLOGY};
use std::path::Path;
use std::process::Command;

/// Runs gmx in a folder.
fn gmx(folder: &Path, line: &str) {
    let output = Command::new("gmx").args(line.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "gmx {line}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// As md and log-density tell it, after the first cycle.
#[test]
fn hydrogens_that_are_numbered_the_other_way_round_are_named() {
    if Command::new("gmx").arg("--version").output().is_err() {
        return eprintln!("no gmx on the PATH; sh scripts/gromacs.sh installs it where apt may");
    }
    let folder = folder("gromacs-labels");
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [pdb, mdp] = [TOPOLOGY, "examples/gromacs-ala2/md.mdp"].map(|name| here.join(name).display().to_string());
    gmx(&folder, &format!("pdb2gmx -f {pdb} -ff amber99sb-ildn -water none -o start.gro -p topol.top"));
    gmx(&folder, "editconf -f start.gro -o plain.gro -box 6 6 6 -c");
    let text = std::fs::read_to_string(folder.join("plain.gro")).unwrap();
    // the places of HB1 and HB2 of the alanine, under the names that they have
    let place = |name: &str| text.lines().find(|line| line.contains(name)).unwrap()[20..44].to_string();
    let (first, second) = (place("  HB1"), place("  HB2"));
    let exchanged = text.replace(&first, "x").replace(&second, &first).replace('x', &second);
    std::fs::write(folder.join("exchanged.gro"), exchanged).unwrap();
    for (name, constraints) in [("plain", "none"), ("exchanged", "none"), ("exchanged", "h-bonds")] {
        let case = format!("{name}-{constraints}");
        let options = std::fs::read_to_string(&mdp).unwrap() + &format!("constraints = {constraints}\n");
        std::fs::write(folder.join("md.mdp"), options).unwrap();
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
