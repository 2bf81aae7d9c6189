//! Topologies with atoms in another order or in another unit, and Systems of which the model describes a part.

use super::count;
use crate::command::{folder, modejump, number, Run, MODEL, SYSTEM, TOPOLOGY};
use std::path::Path;

/// The shipped topology with two atoms in each other's place, names and all.
fn with_atoms_exchanged(folder: &Path, serials: [usize; 2]) -> String {
    let text = std::fs::read_to_string(TOPOLOGY).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    let line =
        |serial: usize| lines.iter().position(|line| line.get(6..11).map(str::trim) == Some(&serial.to_string()));
    let [a, b] = serials.map(|serial| line(serial).unwrap());
    lines.swap(a, b);
    let path = folder.join("exchanged.pdb").to_str().unwrap().to_string();
    std::fs::write(&path, lines.join("\n")).unwrap();
    path
}

#[test]
fn atoms_in_another_order_than_the_systems_or_the_models_are_refused() {
    let folder = folder("md-order");
    let run = |topology: &str, more: &[&str]| {
        modejump(&[&["md", "-n", "10", "--topology", topology, "--system", SYSTEM], more].concat())
    };
    // CH3 and HH31
    let message = run(&with_atoms_exchanged(&folder, [1, 2]), &[]).fails();
    assert!(message.contains("system.xml: found a mass of") && message.contains("(atom 1)"), "{message}");
    // two hydrogens: no mass tells, the model's names do
    let hydrogens = with_atoms_exchanged(&folder, [2, 4]);
    run(&hydrogens, &[]).succeeds();
    // nor of those at two carbons, but bonds do
    let [a, b] = [10, 12]; // HA and HB1
    let message = run(&with_atoms_exchanged(&folder, [a, b]), &[]).fails();
    assert!(message.contains("the System bonds ") && message.contains("in the same order"), "{message}");
    let hydrogens = with_atoms_exchanged(&folder, [2, 4]);
    let message = run(&hydrogens, &["--model", MODEL]).fails();
    assert!(message.contains("exchanged.pdb: ") && message.contains(" where the model has"), "{message}");
    let message = run(&hydrogens, &["--model", MODEL, "--solute", "0-21"]).fails();
    assert!(message.contains(" where the model has"), "{message}");
}

#[test]
fn coordinates_in_another_unit_are_refused() {
    let folder = folder("md-unit");
    let path = folder.join("nm.pdb");
    let pdb = std::fs::read_to_string(TOPOLOGY).unwrap();
    let in_nm = |line: &str| match line.starts_with("ATOM") || line.starts_with("HETATM") {
        true => {
            let x = [30, 38, 46].map(|at| line[at..at + 8].trim().parse::<f64>().unwrap() / 10.0);
            format!("{}{:8.3}{:8.3}{:8.3}{}\n", &line[..30], x[0], x[1], x[2], &line[54..])
        }
        false => format!("{line}\n"),
    };
    std::fs::write(&path, pdb.lines().map(in_nm).collect::<String>()).unwrap();
    for command in ["md", "train"] {
        let output = folder.join("out.safetensors");
        let message = modejump(&[command, "--system", SYSTEM, "-o"]).arg(output).arg("--topology").arg(&path).fails();
        assert!(
            message.contains("nm.pdb") && message.contains("coordinates in PDB files must be in Angstrom"),
            "{message}"
        );
    }
}

/// Alanine dipeptide in vacuum with two argon atoms on springs: a System of which the model describes a part.
fn surrounded(folder: &Path) -> [String; 2] {
    let mut system = std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap();
    // from the end of the file to its beginning, so that places stay valid
    for (section, entry) in [
        ("</Particles>", r#"<Particle eps="0.996" q="0" sig="0.34"/>"#), // of the NonbondedForce
        ("</Bonds>", r#"<Bond d="0.45" k="300" p1="8" p2="22"/><Bond d="0.45" k="300" p1="10" p2="23"/>"#),
        ("</Particles>", r#"<Particle mass="39.948"/>"#),
    ] {
        let place = match entry.contains("mass") {
            true => system.find(section),
            false => system.rfind(section),
        };
        let entries = if entry.contains("Bond") { entry.to_string() } else { entry.repeat(2) };
        system.insert_str(place.unwrap(), &entries);
    }
    let topology = std::fs::read_to_string(TOPOLOGY).unwrap();
    let atom = |serial: usize, x: f64| {
        format!(
            "HETATM{serial:>5} Ar    AR A{:>4}    {x:>8.3}{:>8.3}{:>8.3}  1.00  0.00          Ar\n",
            serial - 19,
            30.0,
            30.0
        )
    };
    let (atoms, _) = topology.split_once("TER").or(topology.split_once("CONECT")).unwrap();
    let topology = format!("{atoms}{}{}END\n", atom(23, 10.0), atom(24, 14.0));
    [("system.xml", system), ("start.pdb", topology)].map(|(name, text)| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    })
}

/// A jump of the solute alone with the rest frozen, and one in which the rest gives way.
#[test]
fn a_solute_may_jump_among_other_particles() {
    let folder = folder("md-solute");
    let [system, topology] = surrounded(&folder);
    let shipped = ["md", "--topology", &topology, "--system", &system, "-n", "2000", "--frequency", "20"];
    let model = ["--model", "models/ala2/model-vacuum.safetensors"];
    let run = |more: &[&str]| modejump(&[&shipped, &model[..], more].concat());
    let summary = |more: &[&str]| run(more).json();
    let frozen = summary(&["--solute", "0-21"]);
    assert_eq!((count(&frozen, "attempts"), count(&frozen, "relaxations")), (100, 0));
    let driven = summary(&["--solute", "0-21", "--driven", "5", "--relaxation-steps", "10"]);
    assert_eq!(count(&driven, "attempts"), 100);
    let [tried, accepted] = ["relaxations", "relaxations_accepted"].map(|key| count(&driven, key));
    assert!(tried <= 400 && tried > 100 && accepted as f64 > 0.8 * tried as f64, "{driven}");
    for summary in [&frozen, &driven] {
        let expected = number(summary, "expected_acceptance");
        let [acceptance, t] = ["acceptance", "t_mean"].map(|key| number(summary, key));
        assert!(acceptance > 0.1 && (acceptance - expected).abs() < 0.2 && (t - 300.0).abs() < 60.0, "{summary}");
    }
    assert_eq!(summary(&["--solute", "0-21", "--driven", "5", "--seed", "7"])["u_mean"], {
        let again = summary(&["--solute", "0-21", "--driven", "5", "--seed", "7"]);
        again["u_mean"].clone()
    });
    let rough = ["--solute", "0-21", "--driven", "5", "--relaxation-timestep", "1"];
    assert!(run(&rough).succeeds().contains("use a smaller --relaxation-timestep, now 1 ps"));
    // nor is anything else advised where hardly a jump is accepted
    let told = run(&[&rough[..], &["--temperature", "3"]].concat()).succeeds();
    assert!(told.contains("use a smaller --relaxation-timestep") && !told.contains("--driven steps"), "{told}");
    for (more, text) in [(&[][..], "--driven lets relax"), (&["--driven", "1"][..], "use more --driven steps")] {
        let cold = ["--solute", "0-21", "--temperature", "3"];
        let told = run(&[&cold, more].concat()).succeeds();
        assert!(told.contains("jumps hardly help here") && told.contains(text), "{told}");
    }
    for (more, text) in [
        (&["--solute", "0-20"][..], "21 particles, but the model has 22"),
        (&[][..], "specify the particles"),
        (&["--solute", "3-24"][..], "particle 24"),
        (&["--solute", "0-20,20"][..], "twice"),
        (&["--solute", "9-2"][..], "must not be greater"),
        (&["--driven", "5"][..], "--solute"),
        (&["--solute", "0-21", "--anneal", "3"][..], "cannot be used with"),
        (&["--solute", "0-21", "--latent-walk", "0.1", "--leapfrog", "2"][..], "cannot be used with"),
    ] {
        let error = run(more).fails();
        assert!(error.contains(text), "{error}");
    }
}

/// As a program that adds hydrogens anew may number them: told at the start, in `md` and by `log-density`.
#[test]
fn hydrogens_that_are_numbered_the_other_way_round_are_named() {
    let folder = folder("md-labels");
    let text = std::fs::read_to_string(TOPOLOGY).unwrap();
    // the places of HB1 and HB2, under the names that they have
    let place = |name: &str| text.lines().find(|line| line.contains(name)).unwrap()[30..54].to_string();
    let (first, second) = (place(" HB1 "), place(" HB2 "));
    let exchanged = text.replace(&first, "x").replace(&second, &first).replace('x', &second);
    let topology = folder.join("exchanged.pdb");
    std::fs::write(&topology, exchanged).unwrap();
    let (topology, output) = (topology.to_str().unwrap(), folder.join("q.safetensors"));
    // with bonds that this model keeps at another length, which a simulation would constrain
    let rigid = ["models/ala2/system-hbonds.xml", "models/ala2/model-hbonds.safetensors"];
    for arguments in [
        &["md", "--topology", topology, "--system", rigid[0], "--model", rigid[1], "-n", "10"][..],
        &["log-density", rigid[1], topology],
        &["md", "--topology", topology, "--system", SYSTEM, "--model", MODEL, "-n", "100"],
        &["log-density", MODEL, topology, "-o", output.to_str().unwrap()],
        &["log-density", MODEL, topology],
    ] {
        let [_, said] = modejump(arguments).texts();
        assert!(said.contains("exchanged.pdb: numbered differently from") && said.contains("ALA2:HB1"), "{said}");
    }
}
