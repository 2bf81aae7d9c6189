//! `smc`: from the generator in implicit solvent to the energies in vacuum, and back.

use crate::command::{document, files, folder, modejump, number, tensors, Run, MODEL, SYSTEM, TOPOLOGY};
use crate::{steerable, tarflow};
use modejump::engines::openmm::{OpenMmTarget, System};
use modejump::target::Target;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Stdio};

fn smc(more: &[&str]) -> Command {
    modejump(&[&["smc", MODEL, "--system", SYSTEM], more].concat())
}

#[test]
fn the_normaliser_is_that_of_importance_weights() {
    // −191.648 ± 0.003 by 20,000 importance weights of this generator, which are good ones
    for more in [
        vec![],
        vec!["--stages", "4", "--moves", "hamiltonian"],
        vec!["--stages", "8", "--moves", "corrected", "--step", "2e-7"],
    ] {
        let summary = smc(&[&["-n", "800"], &more[..]].concat()).json();
        let [log_z, error] = ["log_z", "log_z_stderr"].map(|name| number(&summary, name));
        assert!((log_z + 191.648).abs() < 0.1 && (log_z + 191.648).abs() < 5.0 * error, "{more:?}: {summary}");
        assert!(number(&summary, "ess") > 0.5 && summary["biased"] == false, "{summary}");
    }
    let biased = smc(&["-n", "100", "--stages", "2", "--moves", "unadjusted", "--step", "1e-7"]).json();
    assert_eq!(biased["biased"], true);
}

/// u(x) and nothing beside it, neither of the noise of a centroid nor of auxiliary coordinates.
#[test]
fn particles_are_written_with_the_energies_of_the_system() {
    let folder = folder("smc-energies");
    let [model, system, output] = ["model.safetensors", "system.xml", "x.safetensors"].map(|name| folder.join(name));
    for (write, atoms) in [(tarflow::write as fn(&Path), 22), (steerable::write, 1)] {
        write(&model);
        match atoms {
            1 => steerable::harmonic(&system),
            _ => _ = std::fs::copy("models/ala2/system-vacuum.xml", &system).unwrap(),
        }
        let mut command = modejump(&["smc", "-n", "40", "--stages", "2", "--step", "1e-6"]);
        command.arg(&model).arg("--system").arg(&system).arg("-o").arg(&output).succeeds();
        let tensors = tensors(&output);
        let mut u = vec![0.0; 40];
        let mut target = OpenMmTarget::new(&System::from_xml_file(&system).unwrap(), 300.0, 1).unwrap();
        target.reduced_potential(&tensors["x"].data, &mut u).unwrap();
        for (row, (u, written)) in u.iter().zip(&tensors["reduced_potential"].data).enumerate() {
            assert!((u - written).abs() < 1e-6 * (1.0 + u.abs()), "{atoms} atoms, row {row}: {u} {written}");
        }
    }
}

/// Within the run, and within the pilot run that plans it.
#[test]
fn a_killed_run_goes_on_to_the_same_particles() {
    let path = files("smc-killed");
    for options in
        [["-n", "300", "--stages", "60", "--step", "1e-6"], ["-n", "100", "--share", "0.995", "--pilots", "300"]]
    {
        let (state, whole, continued) = (path("run.ckpt"), path("whole.safetensors"), path("continued.safetensors"));
        let expected = smc(&[&options[..], &["-o", &whole]].concat()).json();
        let arguments = [&options[..], &["--checkpoint", &state, "-o", &continued]].concat();
        let mut child = smc(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !Path::new(&state).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(smc(&arguments).json(), expected);
        assert!(std::fs::read(&whole).unwrap() == std::fs::read(&continued).unwrap());
        let other = smc(&[&arguments[..], &["--seed", "2"]].concat()).fails();
        assert!(other.contains("belongs to another run (this run has --seed 2 instead of 1)"), "{other}");
        std::fs::remove_file(&state).unwrap();
    }
}

/// Steps that were begun with far too short find their way; the log, its figure and the families say what happened.
#[test]
fn a_pilot_run_finds_the_steps_and_the_log_tells_all() {
    let path = files("smc-log");
    let (log, output) = (path("run.jsonl"), path("x.safetensors"));
    let run = ["-n", "60", "--stages", "3", "--threshold", "1", "--log", &log, "-o", &output];
    let summary = smc(&run).json();
    assert!((0.3..0.9).contains(&number(&summary, "acceptance")), "{summary}");
    let text = std::fs::read_to_string(&log).unwrap();
    let stages: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(stages.iter().map(|s| number(s, "t")).collect::<Vec<_>>(), [1.0 / 3.0, 2.0 / 3.0, 1.0]);
    assert_eq!(number(&stages[2], "log_z"), number(&summary, "log_z"));
    let tensors = tensors(&output);
    let ancestor: Vec<usize> = tensors["ancestor"].data.iter().map(|&sample| sample as usize).collect();
    let families = modejump::weights::effective_families(&tensors["log_weight"].data, &ancestor);
    assert!((families - number(&summary, "effective_families")).abs() < 1e-9 && families < 60.0, "{summary}");
    modejump(&["plot", "--log", &log, "-o", &path("figures")]).succeeds();
    assert!(std::fs::read_to_string(path("figures/annealing.svg")).unwrap().contains("ln Z of the path"));
    let compare = ["compare", &output, &output, "--topology", TOPOLOGY, "-o", &path("figures")];
    let report = modejump(&compare).succeeds();
    assert!(report.contains(&format!("equivalent to {families:.1} independent samples")), "{report}");
    let series = document(path("figures/compare.json"))["series"][1].clone();
    assert_eq!(series["ancestor"], serde_json::json!(ancestor));
    let still = smc(&["-n", "20", "--stages", "3", "--step", "1e-12", "--threshold", "1"]).succeeds();
    for name in ["ESS", "Pareto k"] {
        let line = still.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.ends_with(" since the last resampling"), "{still}");
    }
    assert!(still.contains("the moves have little effect: their step is too short"), "{still}");
}

/// A System is known by what it says, not by the name of its file.
#[test]
fn another_system_of_the_same_name_is_refused() {
    let folder = folder("smc-system");
    let [state, here, there] = ["run.ckpt", "here.xml", "there.xml"].map(|name| folder.join(name));
    let run = |system: &Path| {
        let mut command = modejump(&["smc", MODEL, "-n", "10", "--stages", "2", "--step", "1e-6"]);
        command.arg("--checkpoint").arg(&state).arg("--system").arg(system);
        command
    };
    for copy in [&here, &there] {
        std::fs::copy(SYSTEM, copy).unwrap();
    }
    let first = run(&here).json();
    assert_eq!(run(&there).json(), first);
    std::fs::copy("models/ala2/system-vacuum.xml", &here).unwrap();
    let refused = run(&here).fails();
    assert!(refused.contains("belongs to another run (this run has a different file for --system)"), "{refused}");
}

#[test]
fn what_cannot_be_annealed_is_said() {
    let failed = |model: &str| modejump(&["smc", model, "--system", SYSTEM, "-n", "2", "--stages", "2"]).fails();
    assert!(failed("models/ala2/gvp-flow.safetensors").contains("no gradient"));
    assert!(failed("models/double-well/generator.safetensors").contains("temperature"));
    assert!(failed("models/ala2/model-hbonds.safetensors").contains("do not keep bond lengths"));
    let message = smc(&["-n", "1000000000", "-o", "nowhere/x.safetensors"]).fails();
    assert!(message.contains("folder nowhere does not exist"), "{message}");
    let message = smc(&["-n", "1000000000", "--checkpoint", "nowhere/x.ckpt"]).fails();
    assert!(message.contains("folder nowhere does not exist"), "{message}");
    let message = smc(&["-n", "1000000000", "-o", SYSTEM]).fails();
    assert!(message.contains("would overwrite"), "{message}");
    // before the work: particles without their weights stand for nothing
    for name in ["x.dcd", "x.npy", "x.xtc", "x.pdb"] {
        let message = smc(&["-n", "1000000000", "-o", name]).fails();
        assert!(
            message.contains(name) && message.contains("`log_weight`") && message.contains("safetensors"),
            "{message}"
        );
    }
    assert!(smc(&["--energy-cutoff", "-1e9", "-n", "10", "--stages", "2"]).fails().contains("below the cut-off"));
    for (more, text) in [
        (&["-n", "0"][..], "-n 0: must be at least 1"),
        (&["--stages", "0"], "--stages 0: must be at least 1"),
        (&["--stages", "10000000000000000"], "must be at most 10000000"),
        (&["--pilots", "0"], "--pilots 0: the pilot run requires at least 10"),
        (&["--pilots", "1"], "--stages"),
        (&["--pilots", "100", "--stages", "5", "--step", "1e-6"], "no pilot run"),
        (&["--step", "0"], "--step 0: must be a positive"),
        (&["--repeat", "0"], "--repeat 0"),
        (&["--moves", "hamiltonian", "--leapfrog", "0"], "--leapfrog 0: must be from 1"),
        (&["--moves", "hamiltonian", "--leapfrog", "100000000"], "must be from 1 to 10000"),
        (&["--energy-cutoff", "nan"], "--energy-cutoff: must be a number"),
        (&["--leapfrog", "3"], "`--moves hamiltonian`"),
    ] {
        let message = smc(more).fails();
        assert!(message.contains(text), "{more:?}: {message}");
    }
}

/// A checkpoint that cannot be written is told; the run goes on, says what it has found, and fails at the end.
#[test]
#[cfg(target_os = "linux")]
fn a_checkpoint_that_cannot_be_written_does_not_cost_the_run() {
    let folder = folder("smc-full");
    // no file above 16 kB
    let limited = format!("ulimit -f 32; exec {} \"$@\"", env!("CARGO_BIN_EXE_modejump"));
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &limited, "sh", "smc", MODEL, "--system", SYSTEM, "-n", "100", "--stages", "2"]);
    command.args(["--step", "1e-6", "--json", "--checkpoint"]).arg(folder.join("run.ckpt"));
    let run = command.output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && said.contains("run.ckpt") && said.contains("the run continues"), "{said}");
    let summary: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(number(&summary, "log_z").is_finite());
}
