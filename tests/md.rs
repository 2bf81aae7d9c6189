//! `modejump md` as a user runs it.
#![cfg(feature = "openmm")]

use modejump::io::{model_file, trajectory};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const MODEL: &str = "models/ala2/model.safetensors";

/// Standard output and standard error.
fn md(more: &[&str]) -> Result<[String; 2], String> {
    let shipped = ["md", "--topology", "models/ala2/topology.pdb", "--system", "models/ala2/system.xml"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let length = if more.contains(&"-n") { &[][..] } else { &["-n", "2000"] };
    let every =
        if more.contains(&"--model") && !more.contains(&"--frequency") { &["--frequency", "20"][..] } else { &[] };
    let run = command.current_dir(root).args(shipped).args(length).args(every).args(more);
    let run = run.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match run.status.success() {
        true => Ok([text(run.stdout), text(run.stderr)]),
        false => Err(text(run.stderr)),
    }
}

fn summary(more: &[&str]) -> Value {
    serde_json::from_str(&md(&[more, &["--json"]].concat()).unwrap()[0]).unwrap()
}

fn count(summary: &Value, key: &str) -> u64 {
    summary[key].as_u64().unwrap_or_else(|| panic!("no {key} in {summary}"))
}

/// The generator screens itself, so that all that passes is accepted.
#[test]
fn a_screen_is_counted() {
    let summary = summary(&["--model", MODEL, "--screen", MODEL, "--proposals", "3"]);
    assert_eq!(summary["likelihood"], "exact");
    assert_eq!(summary["ess_likelihood"], "surrogate", "the weights are the screen's");
    let [attempts, screened] = ["attempts", "screened"].map(|key| count(&summary, key));
    assert!(attempts == 100 && 60 < screened && screened <= attempts, "{summary}");
    assert_eq!(count(&summary, "exact_evaluations"), 2 * screened);
    assert_eq!(summary["second_stage_acceptance"], 1.0);
    assert_eq!(summary["acceptance"], screened as f64 / attempts as f64);
    assert!(summary["correction_variance"].as_f64().unwrap() < 1e-6);
    let [text, _] = md(&["--model", MODEL, "--screen", MODEL]).unwrap();
    assert!(text.contains("passed the screen") && text.contains("Var(ln c) 0.000"), "{text}");
    // the word for what is biased, which this run is not
    assert!(text.contains(" %  (of the screen's weights)") && !text.contains("surrogate"), "{text}");
}

#[test]
fn acceptance_by_a_surrogate_is_marked_everywhere() {
    let asked = ["--model", MODEL, "--screen", MODEL, "--acceptance", "surrogate"];
    let summary = summary(&asked);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"surrogate".into(), &"surrogate".into()));
    assert!(summary.get("screened").is_none() && summary["acceptance"].as_f64().unwrap() > 0.5);
    let [text, log] = md(&asked).unwrap();
    assert!(log.contains("surrogate"), "{log}");
    // all but the line that tells the speed
    assert!(text.lines().skip(1).all(|line| line.contains("surrogate")), "{text}");
}

/// Paths to the System's energies raise the effective share of the generator's weights.
#[test]
fn proposals_may_be_annealed() {
    let plain = summary(&["--model", MODEL]);
    let annealed = summary(&["--model", MODEL, "--anneal", "20"]);
    assert_eq!((annealed["likelihood"].as_str(), count(&annealed, "attempts")), (Some("exact"), 100));
    let ess = |summary: &Value| summary["ess"].as_f64().unwrap();
    assert!(ess(&annealed) > ess(&plain), "{plain} {annealed}");
}

/// Steps of the shipped generator's latent point, at random and by trajectories; they have no weights, so no ESS is
/// told.
#[test]
fn the_latent_space_may_be_walked_in() {
    for more in [&["--latent-walk", "0.02,0.1"][..], &["--latent-walk", "0.05", "--leapfrog", "4"]] {
        let summary = summary(&[&["--model", MODEL], more].concat());
        assert_eq!((summary["likelihood"].as_str(), count(&summary, "attempts")), (Some("exact"), 100));
        let acceptance = summary["acceptance"].as_f64().unwrap();
        assert!(0.3 < acceptance && acceptance < 1.0 && summary.get("ess").is_none(), "{summary}");
    }
}

/// By Metropolis tests, i-SIR and a screen: the whole trajectory and the counters are the same to the last bit.
#[test]
fn proposals_drawn_ahead_change_nothing() {
    let folder = std::env::temp_dir().join(format!("modejump-ahead-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for more in [&[][..], &["--proposals", "3"], &["--screen", MODEL]] {
        let run = |ahead: &[&str]| {
            let file = folder.join("run.safetensors");
            let output = ["--model", MODEL, "-o", file.to_str().unwrap()];
            let mut summary = summary(&[&output, more, ahead].concat());
            summary.as_object_mut().unwrap().retain(|key, _| !["wall_s", "ns_per_day"].contains(&key.as_str()));
            (summary, std::fs::read(file).unwrap())
        };
        let plain = run(&[]);
        assert!(plain.0["acceptance"].as_f64().unwrap() > 0.3, "{}", plain.0);
        assert!(plain == run(&["--draw-ahead"]), "{more:?}: {}", plain.0);
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn several_proposals_are_chosen_from_unless_tests_are_asked_for() {
    let run = |more: &[&str]| {
        let mut summary = summary(&[&["--model", MODEL, "--proposals", "3"], more].concat());
        summary.as_object_mut().unwrap().retain(|key, _| !["wall_s", "ns_per_day"].contains(&key.as_str()));
        summary
    };
    let [chosen, tested] = ["isir", "independence"].map(|method| run(&["--method", method]));
    assert!(run(&[]) == chosen && chosen != tested, "{chosen} {tested}");
    assert_eq!([&chosen, &tested].map(|summary| count(summary, "attempts")), [100; 2]);
    let refused = md(&["--model", MODEL, "--screen", MODEL, "--method", "isir"]).unwrap_err();
    assert!(refused.contains("--screen") && refused.contains("--method"), "{refused}");
}

/// Trained at 600 K, it follows the run to 400 K: no warning, and jumps are accepted.
#[test]
fn a_steerable_model_is_taken_to_the_temperature_of_the_run() {
    let steerable = ["--model", "models/ala2/steerable.safetensors", "--temperature", "400", "--json"];
    let [text, warnings] = md(&steerable).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(summary["acceptance"].as_f64().unwrap() > 0.25 && summary["likelihood"] == "exact", "{summary}");
    assert!(!warnings.contains("trained for"), "{warnings}");
    let [_, warnings] = md(&["--model", MODEL, "--temperature", "400"]).unwrap();
    assert!(warnings.contains("trained for 300"), "{warnings}");
}

#[test]
fn without_a_screen_nothing_of_it_is_told() {
    let summary = summary(&["--model", MODEL]);
    assert_eq!((&summary["likelihood"], &summary["ess_likelihood"]), (&"exact".into(), &"exact".into()));
    assert!(summary.get("screened").is_none() && summary.get("correction_variance").is_none());
    assert!(!md(&["--model", MODEL]).unwrap()[0].contains("surrogate"));
}

#[test]
fn what_does_not_fit_is_refused() {
    for arguments in [&["--model", MODEL, "--acceptance", "surrogate"][..], &["--acceptance", "surrogate"]] {
        assert!(md(arguments).unwrap_err().contains("--screen"));
    }
    assert!(md(&["--screen", MODEL]).unwrap_err().contains("--model"));
    assert!(md(&["--record", "0"]).unwrap_err().contains("--record"));
    assert!(md(&["--frequency", "20"]).unwrap_err().contains("--model"));
    assert!(md(&["--decoding", "jacobi"]).unwrap_err().contains("--model"));
    assert!(md(&["--model", MODEL, "--decoding", "jacobi"]).unwrap_err().contains("TarFlow"));
    let message = md(&["--model", MODEL, "-n", "100", "--frequency", "101"]).unwrap_err();
    assert!(message.contains("in 100 steps there is no attempt"), "{message}");
    for given in ["models/ala2/topology.pdb", "models/ala2/system.xml", MODEL, "models/ala2/../ala2/topology.pdb"] {
        let message = md(&["-n", "1000000000", "--model", MODEL, "-o", given]).unwrap_err();
        assert!(message.contains("would be written over"), "{message}");
    }
    let message = md(&["--model", "models/ala2/model-hbonds.safetensors"]).unwrap_err();
    assert!(message.contains("keeps the bond") && message.contains("constrain it"), "{message}");
    assert!(md(&["--model", MODEL, "--anneal", "0"]).unwrap_err().contains("--anneal"));
    assert!(md(&["--model", MODEL, "--latent-walk", "0"]).unwrap_err().contains("one positive width"));
    assert!(md(&["--model", MODEL, "--latent-walk", "0.1", "--draw-ahead"]).unwrap_err().contains("--latent-walk"));
    let message = md(&["--model", "models/ala2/gvp-flow.safetensors", "--latent-walk", "0.1"]).unwrap_err();
    assert!(message.contains("such as a coupling flow"), "{message}");
    let other = "models/double-well/generator.safetensors";
    let message = md(&["--model", MODEL, "--screen", other]).unwrap_err();
    assert!(message.contains("2 coordinates, the generator has 66"), "{message}");
}

/// A run without end, told to stop after a while: what it printed, and whether it succeeded.
#[cfg(unix)]
fn interrupted(output: &Path, before_the_end: impl FnOnce()) -> (bool, Value, String) {
    use std::process::Stdio;
    let shipped = ["md", "--topology", "models/ala2/topology.pdb", "--system", "models/ala2/system.xml"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(shipped).args([
        "-n",
        "1000000000",
        "--record",
        "10",
        "--json",
    ]);
    let child = command.arg("-o").arg(output).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    before_the_end();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let run = child.wait_with_output().unwrap();
    let summary = serde_json::from_slice(&run.stdout).unwrap();
    (run.status.success(), summary, String::from_utf8(run.stderr).unwrap())
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_keeps_what_it_has() {
    let folder = std::env::temp_dir().join(format!("modejump-interrupted-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let output = folder.join("run.npy");
    let (succeeded, summary, log) = interrupted(&output, || ());
    let steps = count(&summary, "steps");
    assert!(succeeded && (40..1_000_000_000).contains(&steps), "{summary}");
    assert!(log.contains(&format!("interrupted after {steps} of 1000000000 steps")), "{log}");
    assert_eq!(trajectory::read(&output).unwrap().n() as u64, steps / 10);
    // a file that cannot be written any more is an error, after the report
    let (succeeded, summary, log) = interrupted(&output, || std::fs::remove_dir_all(&folder).unwrap());
    assert!(!succeeded && count(&summary, "steps") >= 40 && log.contains("run.npy: "), "{log}");
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_before_its_first_frame_has_failed() {
    use std::process::Stdio;
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["md", "--equilibrate", "1000000000", "-o", "never.npy"]);
    let molecule = ["--topology", "models/ala2/topology.pdb", "--system", "models/ala2/system.xml"];
    let child = command.args(molecule).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let run = child.wait_with_output().unwrap();
    let log = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.code() == Some(1) && log.contains("before the first frame: nothing"), "{log}");
    assert!(run.stdout.is_empty() && !Path::new(env!("CARGO_MANIFEST_DIR")).join("never.npy").exists());
}

/// A System that was written after `addForce(MonteCarloModeJump(…))`.
#[test]
fn a_move_in_the_system_does_not_act() {
    let file = std::env::temp_dir().join(format!("modejump-with-move-{}.xml", std::process::id()));
    let system = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2/system.xml")).unwrap();
    let force = format!(r#"<Force frequency="10" model="{MODEL}" type="MonteCarloModeJump" version="1"/></Forces>"#);
    std::fs::write(&file, system.replace("</Forces>", &force)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["md", "-n", "2000", "--json", "--topology"]);
    let run = command.arg("models/ala2/topology.pdb").arg("--system").arg(&file).output().unwrap();
    std::fs::remove_file(file).unwrap();
    assert!(String::from_utf8(run.stderr).unwrap().contains("holds a MonteCarloModeJump, which is left out"));
    let with: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(with["u_mean"], summary(&[])["u_mean"]);
}

#[test]
fn a_run_that_blows_up_says_where_and_keeps_the_frames_before() {
    let folder = std::env::temp_dir().join(format!("modejump-blown-up-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let output = folder.join("run.npy");
    let run = ["--timestep", "0.02", "--record", "1", "-o", output.to_str().unwrap()];
    let message = md(&run).unwrap_err();
    assert!(message.contains("at step ") && message.contains("smaller --timestep"), "{message}");
    let frames = trajectory::read(&output).unwrap(); // which refuses what is not finite
    assert!(frames.n() > 0 && message.contains(&format!("at step {} ", frames.n() + 1)), "{message}");
    // a move finds it before the next frame
    let message = md(&["--timestep", "0.02", "--model", MODEL]).unwrap_err();
    assert!(message.contains("in steps 1 to 100: ") && message.contains("smaller --timestep"), "{message}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// The shipped topology with two atoms in each other's place, names and all.
fn with_atoms_exchanged(folder: &Path, serials: [usize; 2]) -> String {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2/topology.pdb")).unwrap();
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
    let folder = std::env::temp_dir().join(format!("modejump-order-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let run = |topology: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["md", "-n", "10", "--topology", topology]).args(more);
        let run = command.args(["--system", "models/ala2/system.xml"]).output().unwrap();
        (run.status.success(), String::from_utf8(run.stderr).unwrap())
    };
    // CH3 and HH31
    let (done, message) = run(&with_atoms_exchanged(&folder, [1, 2]), &[]);
    assert!(!done && message.contains("system.xml: a mass of") && message.contains("(atom 1)"), "{message}");
    // two hydrogens: no mass tells, the model's names do
    let hydrogens = with_atoms_exchanged(&folder, [2, 4]);
    assert!(run(&hydrogens, &[]).0);
    let (done, message) = run(&hydrogens, &["--model", MODEL]);
    assert!(
        !done && message.contains("exchanged.pdb: ") && message.contains("stands where the model has"),
        "{message}"
    );
    let whole = run(&hydrogens, &["--model", MODEL, "--solute", "0-21"]);
    assert!(!whole.0 && whole.1.contains("stands where the model has"), "{}", whole.1);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn coordinates_in_another_unit_are_refused() {
    let folder = std::env::temp_dir().join(format!("modejump-md-unit-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("nm.pdb");
    let pdb = std::fs::read_to_string("models/ala2/topology.pdb").unwrap();
    let in_nm = |line: &str| match line.starts_with("ATOM") || line.starts_with("HETATM") {
        true => {
            let x = [30, 38, 46].map(|at| line[at..at + 8].trim().parse::<f64>().unwrap() / 10.0);
            format!("{}{:8.3}{:8.3}{:8.3}{}\n", &line[..30], x[0], x[1], x[2], &line[54..])
        }
        false => format!("{line}\n"),
    };
    std::fs::write(&path, pdb.lines().map(in_nm).collect::<String>()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let run = command.args(["md", "--system", "models/ala2/system.xml", "--topology"]).arg(&path).output().unwrap();
    let message = String::from_utf8(run.stderr).unwrap();
    assert!(message.contains("nm.pdb") && message.contains("coordinates in Angstrom"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_run_goes_on_from_its_checkpoint_bit_for_bit() {
    let folder = std::env::temp_dir().join(format!("modejump-checkpointed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let run = |output: &str, more: &[&str]| {
        let mut summary = summary(&[&["--model", MODEL, "--record", "20", "-o", output], more].concat());
        summary.as_object_mut().unwrap().retain(|key, _| key != "wall_s" && key != "ns_per_day");
        (summary, std::fs::read(output).unwrap())
    };
    let (checkpoint, half) = (file("run.ckpt"), file("half.npy"));
    let checkpointed = ["--checkpoint", &checkpoint];
    let (first, _) = run(&half, &[&checkpointed[..], &["-n", "200"]].concat());
    assert_eq!([count(&first, "steps"), count(&first, "attempts")], [200, 10]);
    let whole = run(&file("whole.npy"), &["-n", "400"]);
    let both = run(&half, &[&checkpointed[..], &["-n", "400"]].concat());
    assert!(whole == both, "{} {}", whole.0, both.0);
    // a finished run is told once more, and is that of its options
    assert!(run(&half, &[&checkpointed[..], &["-n", "400"]].concat()) == whole);
    let refusal = |more: &[&str]| md(&[&["--record", "20"], &checkpointed[..], more].concat()).unwrap_err();
    let message = refusal(&["--model", MODEL, "-n", "300"]);
    assert!(message.contains("is 400 steps on, and --steps is 300"), "{message}");
    let message = refusal(&["--model", MODEL, "-n", "500", "--seed", "2"]);
    assert!(message.contains("run.ckpt") && message.contains("belongs to another run"), "{message}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn steps_of_equilibration_are_not_recorded() {
    let plain = summary(&["-n", "200", "--record", "10"]);
    let later = summary(&["-n", "200", "--record", "10", "--equilibrate", "3000"]);
    assert_eq!([&plain, &later].map(|s| count(s, "steps")), [200, 200]);
    let kelvin = |summary: &Value| summary["t_mean"].as_f64().unwrap();
    // it begins at a minimum, where half of the heat goes into the potential
    assert!(kelvin(&plain) < 230.0 && kelvin(&later) > 230.0, "{plain} {later}");
}

#[test]
fn a_few_frames_have_no_means() {
    let [text, log] = md(&["-n", "300", "--json"]).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(summary.get("u_mean").is_none() && count(&summary, "steps") == 300, "{summary}");
    assert!(log.contains("of 3 frames") && log.contains("--record"), "{log}");
    assert!(!md(&["-n", "300"]).unwrap()[0].contains("<U>"));
    assert!(md(&["-n", "400"]).unwrap()[0].contains("<U>"));
}

/// Before the first of a number of steps that no test waits for.
#[test]
fn a_trajectory_that_cannot_be_written_is_refused_at_once() {
    for (output, text) in [("nowhere/run.dcd", "there is no folder nowhere"), ("run.mdcrd", "`mdcrd`")] {
        let message = md(&["-n", "1000000000", "-o", output]).unwrap_err();
        assert!(message.contains(text), "{message}");
    }
}

/// Alanine dipeptide in vacuum with two argon atoms on springs: a System of which the model describes a part.
fn surrounded(folder: &Path) -> [String; 2] {
    let read =
        |file: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(file));
    let mut system = read("system-vacuum.xml").unwrap();
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
    let topology = read("topology.pdb").unwrap();
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
    let folder = std::env::temp_dir().join(format!("modejump-solute-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let [system, topology] = surrounded(&folder);
    let run = |more: &[&str]| {
        let shipped = ["md", "--topology", &topology, "--system", &system, "-n", "2000", "--frequency", "20", "--json"];
        let model = ["--model", "models/ala2/model-vacuum.safetensors"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        let run =
            command.current_dir(env!("CARGO_MANIFEST_DIR")).args(shipped).args(model).args(more).output().unwrap();
        match run.status.success() {
            true => Ok(String::from_utf8(run.stdout).unwrap()),
            false => Err(String::from_utf8(run.stderr).unwrap()),
        }
    };
    let summary = |more: &[&str]| serde_json::from_str::<Value>(&run(more).unwrap()).unwrap();
    let frozen = summary(&["--solute", "0-21"]);
    assert_eq!((count(&frozen, "attempts"), count(&frozen, "relaxations")), (100, 0));
    let driven = summary(&["--solute", "0-21", "--driven", "5", "--relaxation-steps", "10"]);
    assert_eq!(count(&driven, "attempts"), 100);
    let [tried, accepted] = ["relaxations", "relaxations_accepted"].map(|key| count(&driven, key));
    assert!(tried <= 400 && tried > 100 && accepted as f64 > 0.8 * tried as f64, "{driven}");
    for summary in [&frozen, &driven] {
        let expected = summary["expected_acceptance"].as_f64().unwrap();
        let [acceptance, t] = ["acceptance", "t_mean"].map(|key| summary[key].as_f64().unwrap());
        assert!(acceptance > 0.1 && (acceptance - expected).abs() < 0.2 && (t - 300.0).abs() < 60.0, "{summary}");
    }
    assert_eq!(summary(&["--solute", "0-21", "--driven", "5", "--seed", "7"])["u_mean"], {
        let again = summary(&["--solute", "0-21", "--driven", "5", "--seed", "7"]);
        again["u_mean"].clone()
    });
    for (more, text) in [
        (&["--solute", "0-20"][..], "21 particles, the model 22"),
        (&[][..], "name the particles"),
        (&["--solute", "3-24"][..], "particle 24"),
        (&["--solute", "0-20,20"][..], "twice"),
        (&["--solute", "9-2"][..], "backwards"),
        (&["--driven", "5"][..], "--solute"),
        (&["--solute", "0-21", "--anneal", "3"][..], "cannot be used with"),
        (&["--solute", "0-21", "--latent-walk", "0.1", "--leapfrog", "2"][..], "cannot be used with"),
    ] {
        let error = run(more).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// One model at both ends is ordinary replica exchange.
#[test]
fn temperatures_exchange_through_models() {
    let folder = std::env::temp_dir().join(format!("modejump-exchange-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_string();
    let run = |more: &[&str]| {
        let molecule = ["--topology", "models/ala2/topology.pdb", "--system", "models/ala2/system.xml"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        let run =
            command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("exchange").args(molecule).args(more).output().unwrap();
        match run.status.success() {
            true => Ok(String::from_utf8(run.stdout).unwrap()),
            false => Err(String::from_utf8(run.stderr).unwrap()),
        }
    };
    let twice = ["--models", MODEL, MODEL];
    let asked = [&twice[..], &["--temperatures", "300,340", "-n", "150", "--interval", "20", "--json"]].concat();
    let text = run(&[&asked[..], &["-o", &file("a.npy"), &file("b.npy")]].concat()).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    let exchange = &summary["exchanges"][0];
    assert_eq!(exchange["attempts"], 150);
    let acceptance = exchange["acceptance"].as_f64().unwrap();
    assert!(0.1 < acceptance && acceptance < 0.95, "{summary}");
    let t = [0, 1].map(|k| summary["ensembles"][k]["t_mean"].as_f64().unwrap());
    assert!((t[0] - 300.0).abs() < 40.0 && (t[1] - 340.0).abs() < 40.0 && t[0] < t[1], "{summary}");
    assert_eq!(run(&[&asked[..], &["-o", &file("c.npy")]].concat()).unwrap(), text, "the same seed");
    let [a, b, c] = ["a.npy", "b.npy", "c.npy"].map(|name| std::fs::read(folder.join(name)).unwrap());
    assert!(a == c && a != b && a.len() > 150 * 66 * 4);
    // in two parts
    let (checkpoint, both) = (file("run.ckpt"), [file("first.npy"), file("second.npy")]);
    let part = |n: &str| {
        let more = ["-n", n, "--interval", "20", "--json", "--checkpoint", &checkpoint, "-o", &both[0], &both[1]];
        run(&[&twice[..], &["--temperatures", "300,340"], &more].concat())
    };
    part("60").unwrap();
    assert_eq!(part("150").unwrap(), text);
    assert!([a, b] == both.each_ref().map(|path| std::fs::read(path).unwrap()));
    assert!(part("149").unwrap_err().contains("is 150 exchanges on, and --exchanges is 149"));
    let other = [&asked[..], &["--seed", "2", "--checkpoint", &checkpoint]].concat();
    assert!(run(&other).unwrap_err().contains("run.ckpt") && run(&other).unwrap_err().contains("another run"));
    for (more, text) in [
        (&["--models", MODEL][..], "2 values required"),
        (&[&twice[..], &["--temperatures", "300"]].concat()[..], "2 models, 1 temperatures"),
        (&["--models", MODEL, "models/ala2/modes.safetensors"][..], "modes"),
        (&[&twice[..], &["-o", "a.npy", "b.npy", "c.npy"]].concat()[..], "3 trajectories of 2 temperatures"),
        (&[&twice[..], &["-o", "a.npy", "./a.npy"]].concat()[..], "would be written over"),
        (
            &[&twice[..], &["-n", "1000000000", "-o", "a.npy", "nowhere/b.npy"]].concat()[..],
            "there is no folder nowhere",
        ),
    ] {
        let error = run(more).unwrap_err();
        assert!(error.contains(text), "{error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// As a program that adds hydrogens anew may number them: told at the start, in `md` and by `log-density`.
#[test]
fn hydrogens_that_are_numbered_the_other_way_round_are_named() {
    let folder = std::env::temp_dir().join(format!("modejump-labels-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let text = std::fs::read_to_string("models/ala2/topology.pdb").unwrap();
    // the places of HB1 and HB2, under the names that they have
    let place = |name: &str| text.lines().find(|line| line.contains(name)).unwrap()[30..54].to_string();
    let (first, second) = (place(" HB1 "), place(" HB2 "));
    let exchanged = text.replace(&first, "x").replace(&second, &first).replace('x', &second);
    let topology = folder.join("exchanged.pdb");
    std::fs::write(&topology, exchanged).unwrap();
    let topology = topology.to_str().unwrap();
    let run = ["md", "--topology", topology, "--system", "models/ala2/system.xml", "--model", MODEL, "-n", "100"];
    let output = folder.join("q.safetensors");
    let density = ["log-density", MODEL, topology, "-o", output.to_str().unwrap()];
    for arguments in [&run[..], &density] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        let done = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success(), "{said}");
        assert!(said.contains("exchanged.pdb: numbered the other way round") && said.contains("ALA2:HB1"), "{said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Pairs of atoms in a box that a barostat changes.
#[test]
fn frames_have_the_box_of_their_moment_and_another_one_of_the_topology_is_told() {
    let folder = std::env::temp_dir().join(format!("modejump-boxes-of-frames-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_string();
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["md", "--topology", &file("topology.pdb"), "--system", &file("system.xml"), "--record", "10"]);
        let run = command.args(more).output().unwrap();
        let log = String::from_utf8(run.stderr).unwrap();
        assert!(run.status.success(), "{log}");
        log
    };
    let crystal = |a: f64| format!("CRYST1{a:9.3}{a:9.3}{a:9.3}  90.00  90.00  90.00 P 1           1 \n");
    let log = run(&crystal(40.0), &["-n", "200", "-o", &file("run.safetensors")]);
    let told = "topology.pdb has a box of 4.000 × 4.000 × 4.000 nm, ";
    assert!(
        log.matches(told).count() == 1 && log.contains("one of 3.000 × 3.000 × 3.000 nm: that of the System"),
        "{log}"
    );
    for alike in [String::new(), crystal(1.0), crystal(30.0)] {
        assert!(!run(&alike, &["-n", "10"]).contains("a box of"), "{alike}");
    }
    let (mut tensors, _) = model_file::open_tensors(Path::new(&file("run.safetensors"))).unwrap();
    let boxes = tensors.remove("box").unwrap();
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
    std::fs::remove_dir_all(&folder).unwrap();
}
