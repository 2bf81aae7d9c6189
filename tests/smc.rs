//! `modejump smc` as a user runs it: from the generator in implicit solvent to the energies in vacuum, and back.
#![cfg(feature = "openmm")]

use modejump::engines::openmm::{OpenMmTarget, System};
use modejump::io::model_file::read_tensors;
use modejump::target::Target;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[path = "support/steerable.rs"]
mod steerable;
#[path = "support/tarflow.rs"]
mod tarflow;

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("modejump-smc-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn command(more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    command.args(["smc", "models/ala2/model.safetensors", "--system", "models/ala2/system.xml", "--json"]).args(more);
    command
}

fn smc(more: &[&str]) -> Result<Value, String> {
    let run = command(more).output().unwrap();
    match run.status.success() {
        true => Ok(serde_json::from_slice(&run.stdout).unwrap()),
        false => Err(String::from_utf8(run.stderr).unwrap()),
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value}"))
}

#[test]
fn the_normaliser_is_that_of_importance_weights() {
    // −191.648 ± 0.003 by 20,000 importance weights of this generator, which are good ones
    for more in [
        vec![],
        vec!["--stages", "4", "--moves", "hamiltonian"],
        vec!["--stages", "8", "--moves", "corrected", "--step", "2e-7"],
    ] {
        let summary = smc(&[&["-n", "800", "--pilots", "100"], &more[..]].concat()).unwrap();
        assert!((number(&summary, "log_z") + 191.648).abs() < 0.1, "{more:?}: {summary}");
        assert!(number(&summary, "ess") > 0.5 && summary["biased"] == false, "{summary}");
    }
    let biased = smc(&["-n", "100", "--stages", "2", "--moves", "unadjusted", "--step", "1e-7"]).unwrap();
    assert_eq!(biased["biased"], true);
}

/// u(x) and nothing beside it, neither of the noise of a centroid nor of auxiliary coordinates.
#[test]
fn particles_are_written_with_the_energies_of_the_system() {
    let folder = folder("energies");
    let [model, system, output] = ["model.safetensors", "system.xml", "x.safetensors"].map(|name| folder.join(name));
    for (write, atoms) in [(tarflow::write as fn(&Path), 22), (steerable::write, 1)] {
        write(&model);
        match atoms {
            1 => steerable::harmonic(&system),
            _ => _ = std::fs::copy("models/ala2/system-vacuum.xml", &system).unwrap(),
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.arg("smc").arg(&model).arg("--system").arg(&system).arg("-o").arg(&output);
        let run = command.args(["-n", "40", "--stages", "2", "--step", "1e-6"]).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let (tensors, _) = read_tensors("particles", &std::fs::read(&output).unwrap()).unwrap();
        let mut u = vec![0.0; 40];
        let mut target = OpenMmTarget::new(&System::from_xml_file(&system).unwrap(), 300.0, 1).unwrap();
        target.reduced_potential(&tensors["x"].data, &mut u).unwrap();
        for (row, (u, written)) in u.iter().zip(&tensors["reduced_potential"].data).enumerate() {
            assert!((u - written).abs() < 1e-6 * (1.0 + u.abs()), "{atoms} atoms, row {row}: {u} {written}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_killed_run_goes_on_to_the_same_particles() {
    let folder = folder("killed");
    let path = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let (state, whole, continued) = (path("run.ckpt"), path("whole.safetensors"), path("continued.safetensors"));
    let options = ["-n", "300", "--stages", "60", "--step", "1e-6"];
    let expected = smc(&[&options[..], &["-o", &whole]].concat()).unwrap();
    let arguments = [&options[..], &["--checkpoint", &state, "-o", &continued]].concat();
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !Path::new(&state).exists() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(smc(&arguments).unwrap(), expected);
    assert!(std::fs::read(&whole).unwrap() == std::fs::read(&continued).unwrap());
    let other = smc(&[&arguments[..], &["--seed", "2"]].concat()).unwrap_err();
    assert!(other.contains("belongs to another run"), "{other}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// A System is known by what it says, not by the name of its file.
#[test]
fn another_system_of_the_same_name_is_refused() {
    let folder = folder("system");
    let [state, here, there] = ["run.ckpt", "here.xml", "there.xml"].map(|name| folder.join(name));
    let run = |system: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).args(["smc", "models/ala2/model.safetensors"]);
        command.args(["-n", "10", "--stages", "2", "--step", "1e-6", "--json"]).arg("--checkpoint").arg(&state);
        command.arg("--system").arg(system).output().unwrap()
    };
    for copy in [&here, &there] {
        std::fs::copy("models/ala2/system.xml", copy).unwrap();
    }
    let first = run(&here);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert_eq!(run(&there).stdout, first.stdout);
    std::fs::copy("models/ala2/system-vacuum.xml", &here).unwrap();
    let refused = run(&here);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another run"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_cannot_be_annealed_is_said() {
    let failed = |model: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
        let run =
            command.args(["smc", model, "--system", "models/ala2/system.xml", "-n", "2", "--stages", "2"]).output();
        let run = run.unwrap();
        assert!(!run.status.success());
        String::from_utf8(run.stderr).unwrap()
    };
    assert!(failed("models/ala2/gvp-flow.safetensors").contains("no gradient"));
    assert!(failed("models/double-well/generator.safetensors").contains("temperature"));
    assert!(failed("models/ala2/model-hbonds.safetensors").contains("keep no bond at its length"));
    let message = smc(&["-n", "1000000000", "-o", "nowhere/x.safetensors"]).unwrap_err();
    assert!(message.contains("there is no folder nowhere"), "{message}");
    let message = smc(&["-n", "1000000000", "-o", "models/ala2/system.xml"]).unwrap_err();
    assert!(message.contains("would be written over"), "{message}");
    // before the work: particles without their weights stand for nothing
    for name in ["x.dcd", "x.npy", "x.xtc", "x.pdb"] {
        let message = smc(&["-n", "1000000000", "-o", name]).unwrap_err();
        assert!(
            message.contains(name) && message.contains("`log_weight`") && message.contains("safetensors"),
            "{message}"
        );
    }
    assert!(smc(&["--energy-cutoff", "-1e9", "-n", "10", "--stages", "2"]).unwrap_err().contains("below the cut-off"));
    for (more, text) in [
        (&["-n", "0"][..], "-n 0: give the number"),
        (&["--stages", "0"], "--stages 0: give 1"),
        (&["--pilots", "0"], "--pilots 0: give 10"),
        (&["--pilots", "1"], "--stages"),
        (&["--step", "0"], "--step 0: give a positive"),
        (&["--repeat", "0"], "--repeat 0"),
        (&["--moves", "hamiltonian", "--leapfrog", "0"], "--leapfrog 0"),
        (&["--leapfrog", "3"], "`--moves hamiltonian`"),
    ] {
        let message = smc(more).unwrap_err();
        assert!(message.contains(text), "{more:?}: {message}");
    }
}

/// A checkpoint that cannot be written is told; the run goes on, says what it has found, and fails at the end.
#[test]
#[cfg(target_os = "linux")]
fn a_checkpoint_that_cannot_be_written_does_not_cost_the_run() {
    let folder = folder("full");
    // no file above 16 kB, and no signal for one
    let limited = format!("trap '' XFSZ; ulimit -f 32; exec {} \"$@\"", env!("CARGO_BIN_EXE_modejump"));
    let mut command = Command::new("sh");
    command.args(["-c", &limited, "sh", "smc", "models/ala2/model.safetensors", "--system", "models/ala2/system.xml"]);
    command
        .args(["-n", "100", "--stages", "2", "--step", "1e-6", "--json", "--checkpoint"])
        .arg(folder.join("run.ckpt"));
    let run = command.output().unwrap();
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && said.contains("run.ckpt") && said.contains("the run goes on"), "{said}");
    let summary: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert!(number(&summary, "log_z").is_finite());
    std::fs::remove_dir_all(folder).unwrap();
}
