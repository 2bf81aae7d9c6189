//! Boxes of periodic Systems.

use crate::command::{files, modejump, tensors, Run};

/// Pairs of atoms in a box that a barostat changes.
#[test]
fn frames_have_the_box_of_their_moment_and_another_one_of_the_topology_is_told() {
    let file = files("md-boxes");
    let particles = r#"<Particle mass="39.948"/>"#.repeat(4);
    let system = format!(
        r#"<System openmmVersion="8.0" type="System" version="1">
        <PeriodicBoxVectors><A x="3" y="0" z="0"/><B x="0" y="3" z="0"/><C x="0" y="0" z="3"/></PeriodicBoxVectors>
        <Particles>{particles}</Particles><Constraints/><Forces>
        <Force forceGroup="0" name="HarmonicBondForce" type="HarmonicBondForce" usesPeriodic="1" version="2">
        <Bonds><Bond d="0.6" k="1000" p1="0" p2="1"/><Bond d="0.6" k="1000" p1="2" p2="3"/></Bonds></Force>
        <Force forceGroup="0" frequency="2" pressure="1" randomSeed="7" temperature="300" type="MonteCarloBarostat" version="1"/>
        </Forces></System>"#
    );
    std::fs::write(file("system.xml"), system).unwrap();
    let run = |crystal: &str, more: &[&str]| {
        let atom = |i: usize| {
            let x = 6.0 * i as f64;
            format!("HETATM{:>5} AR   AR  A{i:>4}    {x:8.3}   0.000   0.000  1.00  0.00          AR\n", i + 1)
        };
        let text = (0..4).map(atom).fold(crystal.to_string(), |text, atom| text + &atom);
        std::fs::write(file("topology.pdb"), text).unwrap();
        let files = ["md", "--topology", &file("topology.pdb"), "--system", &file("system.xml"), "--record", "10"];
        let [_, log] = modejump(&files).args(more).texts();
        log
    };
    let crystal = |a: f64| format!("CRYST1{a:9.3}{a:9.3}{a:9.3}  90.00  90.00  90.00 P 1           1 \n");
    let log = run(&crystal(40.0), &["-n", "200", "-o", &file("run.safetensors")]);
    let told = "topology.pdb has a box of 4.000 × 4.000 × 4.000 nm, but ";
    assert!(
        log.matches(told).count() == 1 && log.contains("one of 3.000 × 3.000 × 3.000 nm: the box of the System"),
        "{log}"
    );
    for alike in [String::new(), crystal(1.0), crystal(30.0)] {
        assert!(!run(&alike, &["-n", "10"]).contains("a box of"), "{alike}");
    }
    let boxes = tensors(file("run.safetensors")).remove("box").unwrap();
    assert_eq!(boxes.shape, [20, 3, 3]);
    let lengths: Vec<f64> = boxes.data.iter().step_by(9).copied().collect();
    assert!(
        lengths.iter().all(|a| (2.0..4.0).contains(a)) && lengths.windows(2).any(|two| two[0] != two[1]),
        "{lengths:?}"
    );
    // and in two parts
    let output = ["-o", &file("run.pdb"), "--checkpoint", &file("run.ckpt")];
    let lines = |steps: &str| -> Vec<String> {
        run("", &[&["-n", steps], &output[..]].concat());
        let text = std::fs::read_to_string(file("run.pdb")).unwrap();
        text.lines().filter(|line| line.starts_with("CRYST1")).map(String::from).collect()
    };
    let (first, all) = (lines("100"), lines("200"));
    assert!(first.len() == 11 && all.len() == 21 && all.starts_with(&first), "{all:?}");
}
