//! `modejump train` as a user runs it: killed and started again, it makes the same model; and every kind of energy.

#[cfg(feature = "openmm")]
use modejump::coordinates::Along;
use modejump::coordinates::Topology;
use modejump::density::{Evaluation, Exactness};
use modejump::io::model_file::{self, read_tensors, write_tensors, Data, Tensor};
use modejump::models::energy::EnergyConfig;
use modejump::rng::{Stream, StreamId};
use modejump::trust::Trust;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TOPOLOGY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ala2/topology.pdb");
const SETTINGS: &str = r#"{
    "design": {"hidden": [12], "torsion_hidden": [8], "spline_rounds": 1, "affine_rounds": 1, "torsion_rounds": 1},
    "train": {"phases": [{"steps": 2500, "batch": 32}], "evaluate": 100}
}"#;

/// Two files of frames around the one in the topology.
fn write_frames(folder: &Path) -> [PathBuf; 2] {
    let (_, x0) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    let mut stream = Stream::new(1, StreamId::Test, 0, 0);
    ["a", "b"].map(|name| {
        let x: Vec<f64> =
            (0..1000).flat_map(|_| x0.iter().map(|x| x + 0.004 * stream.normal()).collect::<Vec<_>>()).collect();
        let tensors = BTreeMap::from([("x".to_string(), (vec![1000, x0.len() / 3, 3], Data::F64(x)))]);
        let path = folder.join(name).with_extension("safetensors");
        std::fs::write(&path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
        path
    })
}

/// `x[frame][atom][3]` of such a file.
#[cfg(feature = "openmm")]
fn read_frames(path: &Path) -> Vec<f64> {
    let (mut tensors, _) = read_tensors("frames", &std::fs::read(path).unwrap()).unwrap();
    tensors.remove("x").unwrap().data
}

struct Setting {
    folder: PathBuf,
    frames: [PathBuf; 2],
}

impl Setting {
    fn new(name: &str) -> Setting {
        let folder = std::env::temp_dir().join(format!("modejump-train-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("train.json"), SETTINGS).unwrap();
        Setting { frames: write_frames(&folder), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn command(&self, output: &str, checkpoint: Option<&str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--topology", TOPOLOGY, "--frames"]).args(&self.frames);
        command.arg("--config").arg(self.path("train.json")).arg("-o").arg(self.path(output));
        command.arg("--log").arg(self.path(output).with_extension("log"));
        if let Some(name) = checkpoint {
            command.arg("--checkpoint").arg(self.path(name));
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn tensors(&self, name: &str) -> BTreeMap<String, Tensor> {
        read_tensors(name, &std::fs::read(self.path(name)).unwrap()).unwrap().0
    }

    fn run(&self, output: &str, checkpoint: Option<&str>) -> String {
        let result = self.command(output, checkpoint).output().unwrap();
        let text = String::from_utf8(result.stderr).unwrap();
        assert!(result.status.success(), "{text}");
        text
    }
}

#[cfg(unix)]
#[test]
fn a_killed_training_goes_on_to_the_same_model() {
    let setting = Setting::new("killed");
    // a second name of the file shows that the log is replaced as a whole: never a part of it is there
    std::fs::write(setting.path("whole.log"), "old").unwrap();
    std::fs::hard_link(setting.path("whole.log"), setting.path("old.log")).unwrap();
    setting.run("whole.safetensors", None);
    assert_eq!(std::fs::read(setting.path("old.log")).unwrap(), b"old");

    let child = setting.command("cut.safetensors", Some("state.ckpt")).spawn().unwrap();
    let (log, start) = (setting.path("cut.log"), Instant::now());
    while !log.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "the training writes no log");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let result = child.wait_with_output().unwrap();
    let text = String::from_utf8(result.stderr).unwrap();
    assert!(!result.status.success() && text.contains("interrupted at step"), "{text}");

    let text = setting.run("cut.safetensors", Some("state.ckpt"));
    assert!(text.contains("going on from step"), "{text}");
    let log = |name: &str| std::fs::read(setting.path(name)).unwrap();
    assert!(setting.tensors("cut.safetensors") == setting.tensors("whole.safetensors"), "the models differ");
    assert!(log("cut.log") == log("whole.log"), "the logs differ");

    // a finished training has nothing left to do
    assert!(setting.run("again.safetensors", Some("state.ckpt")).contains("going on from step 2500"));
    assert!(setting.tensors("again.safetensors") == setting.tensors("whole.safetensors"));
    refuses_other_settings(&setting);
    std::fs::remove_dir_all(&setting.folder).unwrap();
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
    let system = Path::new(TOPOLOGY).with_file_name("system.xml");
    for command in ["train", "adapt"] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_modejump"));
        run.arg(command).arg("--topology").arg(setting.path("topology.pdb")).arg("--system").arg(&system);
        let run = run.arg("-o").arg(setting.path("model")).output().unwrap();
        let message = String::from_utf8(run.stderr).unwrap();
        assert!(!run.status.success() && message.contains("system.xml: a mass of 12.0"), "{message}");
    }
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

#[test]
fn a_model_is_not_written_where_its_figure_goes() {
    let setting = Setting::new("figure");
    std::fs::write(setting.path("model.svg"), "a figure").unwrap();
    let run = setting.command("model.svg", None).output().unwrap();
    let message = String::from_utf8(run.stderr).unwrap();
    assert!(!run.status.success() && message.contains("another extension, such as safetensors"), "{message}");
    assert_eq!(std::fs::read(setting.path("model.svg")).unwrap(), b"a figure");
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// Whatever they are for; what would have been written over stays as it is.
#[test]
fn the_files_of_a_training_are_apart() {
    let setting = Setting::new("apart");
    let modes = r#"{ "modes": [{ "name": "a", "within": [] }, { "name": "b", "within": [] }] }"#;
    std::fs::write(setting.path("modes.json"), modes).unwrap();
    let config = SETTINGS.replacen('{', "{\"jump\": {},", 1);
    std::fs::write(setting.path("jump.json"), config).unwrap();
    let topology = setting.path("topology.pdb");
    std::fs::copy(TOPOLOGY, &topology).unwrap();
    let refusal = |output: &str, options: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--topology"]).arg(&topology).arg("-o").arg(setting.path(output));
        options.iter().for_each(|(name, file)| _ = command.arg(name).arg(setting.path(file)));
        let done = command.output().unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && text.contains("would be written over"), "{options:?}: {text}");
        text
    };
    let (frames, config) = (("--frames", "a.safetensors"), ("--config", "train.json"));
    let before = std::fs::read(&setting.frames[0]).unwrap();
    refusal("model.safetensors", &[frames, ("--log", "a.safetensors")]);
    refusal("model.safetensors", &[frames, config, ("--log", "train.json")]);
    refusal("model.safetensors", &[frames, config, ("--checkpoint", "train.json")]);
    refusal("model.safetensors", &[frames, ("--log", "model.safetensors")]);
    refusal("model.safetensors", &[frames, ("--log", "model.svg")]);
    refusal("model.safetensors", &[frames, ("--checkpoint", "state"), ("--log", "state")]);
    refusal("model.safetensors", &[("--keep-frames", "topology.pdb")]);
    refusal("state.frames.safetensors", &[("--checkpoint", "state.ckpt")]);
    let modes = ("--modes", "modes.json");
    std::fs::rename(&setting.frames[0], setting.path("q.a.safetensors")).unwrap();
    assert!(refusal("q.safetensors", &[("--frames", "q.a.safetensors"), modes]).contains("q.a.safetensors"));
    std::fs::rename(&setting.frames[1], setting.path("q.b.jump.safetensors")).unwrap();
    let frames = ("--frames", "q.b.jump.safetensors");
    assert!(refusal("q.safetensors", &[frames, modes, ("--config", "jump.json")]).contains("q.b.jump.safetensors"));
    refusal("modes.json", &[frames, modes]);
    assert_eq!(std::fs::read(setting.path("q.a.safetensors")).unwrap(), before);
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

fn refuses_other_settings(setting: &Setting) {
    let complaint = || {
        let result = setting.command("other.safetensors", Some("state.ckpt")).output().unwrap();
        assert!(!result.status.success());
        String::from_utf8(result.stderr).unwrap()
    };
    std::fs::write(setting.path("train.json"), SETTINGS.replace("\"batch\": 32", "\"batch\": 48")).unwrap();
    assert!(complaint().contains("other training options"));
    std::fs::write(setting.path("train.json"), SETTINGS.replace("\"hidden\"", "\"seed\": 2, \"hidden\"")).unwrap();
    assert!(complaint().contains("belongs to another run"));
    std::fs::write(setting.path("train.json"), SETTINGS.replace("[12]", "[13]")).unwrap();
    assert!(complaint().contains("belongs to another run"));
    std::fs::write(setting.path("train.json"), SETTINGS).unwrap();
    std::fs::copy(&setting.frames[0], &setting.frames[1]).unwrap();
    assert!(complaint().contains("belongs to another run"));
}

/// Two modes of frames: a generator for each, then the second learns to jump by the energies at both ends.
#[cfg(feature = "openmm")]
#[test]
fn bijections_between_modes_are_trained_by_the_energies_at_both_ends() {
    let setting = Setting::new("jump");
    let system = Path::new(TOPOLOGY).with_file_name("system.xml");
    let torsion = Along::Torsion([4, 6, 8, 14]);
    let frames: Vec<f64> = setting.frames.iter().flat_map(|f| read_frames(f)).collect();
    let mut phi: Vec<f64> = frames.chunks_exact(66).map(|x| torsion.value(x)).collect();
    phi.sort_by(f64::total_cmp);
    let (low, middle, high) = (phi[0] - 0.1, phi[phi.len() / 2], phi[phi.len() - 1] + 0.1);
    let mode = |name: &str, from: f64, to: f64| {
        format!(
            r#"{{ "name": "{name}", "within": [{{ "along": {{ "torsion": [4, 6, 8, 14] }}, "range": [{from}, {to}] }}] }}"#
        )
    };
    let modes = format!(r#"{{ "modes": [{}, {}]"#, mode("low", low, middle), mode("high", middle, high));
    let describe = |more: &str| std::fs::write(setting.path("modes.json"), format!("{modes}{more} }}")).unwrap();
    describe("");
    let config = |jump: &str| {
        let design = &SETTINGS[SETTINGS.find(r#""design""#).unwrap()..SETTINGS.find(r#""train""#).unwrap()];
        let phase = r#"{ "steps": 20, "batch": 32 }"#;
        let text = format!(r#"{{ {design} "train": {{ "phases": [{phase}], "evaluate": 10 }}, "jump": {jump} }}"#);
        std::fs::write(setting.path("train.json"), text).unwrap();
    };
    let train = |output: &str, more: &[&str]| {
        let done = setting.command(output, None).arg("--modes").arg(setting.path("modes.json")).args(more).output();
        let done = done.unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let energies = ["--system", system.to_str().unwrap()];
    let phase = r#"{ "steps": 20, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 32 }"#;
    config(&format!(r#"{{ "phases": [{phase}], "evaluate": 10 }}"#));
    let (success, text) = train("both.safetensors", &energies);
    assert!(success, "{text}");
    let model = modejump::models::load(setting.path("both.safetensors")).unwrap();
    assert_eq!(model.modes().unwrap().generators().len(), 2);
    let log = std::fs::read_to_string(setting.path("both.high.jump.log")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert!(last["acceptance"].as_f64().is_some_and(|a| a > 0.0 && a < 1.0), "{log}");
    let (before, after) = (setting.tensors("both.high.safetensors"), setting.tensors("both.high.jump.safetensors"));
    let bundled = setting.tensors("both.safetensors");
    let moved = before.iter().filter(|(name, tensor)| tensor.data != after[*name].data).count();
    assert!(moved > 0 && after.iter().all(|(name, tensor)| tensor.data == bundled[&format!("modes.1.{name}")].data));

    // a way to nowhere is told before generators are trained for it
    describe(r#", "edges": [{ "between": ["low", "nowhere"] }]"#);
    let (success, text) = train("nowhere.safetensors", &energies);
    assert!(!success && text.contains("nowhere") && !setting.path("nowhere.low.safetensors").exists(), "{text}");
    describe("");

    // interrupted, or just too late for that, and gone on with
    let mut command = setting.command("cut.safetensors", Some("state.ckpt"));
    command.arg("--modes").arg(setting.path("modes.json")).args(energies).arg("--json").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while !setting.path("cut.low.log").exists() && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap();
    assert!(setting.path("state.low.ckpt").exists());
    let done = command.output().unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success() && text.contains("going on from step"), "{text}");
    assert!(setting.tensors("cut.safetensors") == bundled, "the models differ");
    let summary: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(
        summary["output"].as_str().unwrap().ends_with("cut.safetensors") && text.contains("low <-> high"),
        "{text}"
    );
    for name in ["low", "high", "high.jump"] {
        assert_eq!(summary["trainings"][name]["last"]["step"].as_u64(), Some(20), "{summary}");
    }

    // settings of the last training are looked at before the first
    let refusal = |jump: &str, more: &[&str], reason: &str| {
        config(jump);
        let (success, text) = train("never.safetensors", more);
        assert!(!success && text.contains(reason), "{text}");
    };
    refusal("{}", &[], "give --system");
    refusal(r#"{ "phases": [{ "steps": 20 }] }"#, &energies, "reverse KL");
    refusal(r#"{ "clip": -1.0 }"#, &energies, "clip");
    refusal(r#"{ "held_out": 0.0 }"#, &energies, "too few for `jump`");
    assert!(!setting.path("never.low.safetensors").exists());
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// A few steps of each kind of energy on the command line: the model loads as a surrogate, is not the one it began
/// with, and a training can start from it, but not from another kind.
#[test]
fn energies_are_trained_from_the_command_line() {
    let setting = Setting::new("energies");
    let train = r#""train": {"steps": 6, "batch": 4, "evaluate": 3}, "contrast": {"negatives": 2}"#;
    let gvp = format!(r#""n_layers": 1, "n_scalars": 8, "n_vectors": 4, "rbf_count": 4, {train}"#);
    let graphormer =
        format!(r#""n_layers": 1, "width": 8, "feed_forward": 8, "heads": 2, "kernels": 4, "reach": 8.0, {train}"#);
    let mlp = format!(r#""width": 8, "layers": 1, {train}"#);
    let kinds = [("graphormer_ebm", &graphormer), ("gvp_ebm", &gvp), ("mlp_ebm", &mlp), ("invariant_ebm", &mlp)];
    for (kind, settings) in kinds {
        std::fs::write(setting.path("train.json"), format!(r#"{{"{kind}": {{{settings}}}}}"#)).unwrap();
        let output = format!("{kind}.safetensors");
        let train = |output: &str, start: Option<&str>| {
            let mut command = setting.command(output, None);
            command.args(["--model", kind]);
            start.into_iter().for_each(|name| _ = command.arg("--start").arg(setting.path(name)));
            let result = command.output().unwrap();
            (result.status.success(), String::from_utf8(result.stderr).unwrap())
        };
        let (success, text) = train(&output, None);
        assert!(success, "{kind}: {text}");
        let model = modejump::models::load(setting.path(&output)).unwrap();
        assert_eq!((model.exactness(), model.dimension()), (Exactness::Surrogate, 66));
        assert!(model.card().topology.is_some() && model.card().provenance["command"].contains(kind));
        let mut log_density = [Evaluation::inside(0.0)];
        model.log_density(&Topology::from_pdb(Path::new(TOPOLOGY)).unwrap().1, &mut log_density).unwrap();
        assert!(log_density[0].log_density.is_finite());
        assert!(std::fs::read_to_string(setting.path(&output).with_extension("log")).unwrap().lines().count() == 2);
        let figure = std::fs::read_to_string(setting.path(&output).with_extension("svg")).unwrap();
        assert!(figure.contains("held-out frames"), "{kind}: the figure of the training shows no losses");

        // the network that goes on is believed anew
        edit_energy(&setting.path(&output), |energy| energy.trust.density = 0.5);
        let (success, text) = train("further.safetensors", Some(&output));
        assert!(success && text.contains("find it anew with `modejump reweight --calibrate`"), "{kind}: {text}");
        edit_energy(&setting.path("further.safetensors"), |energy| assert_eq!(energy.trust, Trust::FULL));
        assert!(setting.tensors("further.safetensors") != setting.tensors(&output), "{kind} has not learned");
        if kind != kinds[0].0 {
            let (success, text) = train("never.safetensors", Some("graphormer_ebm.safetensors"));
            assert!(!success && text.contains(&format!("of the kind graphormer_ebm, not {kind}")), "{text}");
        }
        edit_energy(&setting.path("further.safetensors"), |energy| energy.data_time = 1.0);
        let (success, text) = train("never.safetensors", Some("further.safetensors"));
        assert!(!success && text.contains("further.safetensors: has the data at time 1"), "{kind}: {text}");
    }
    // what weights take out of a flow, and never out of an energy; held_out is looked at later
    let emphasis = r#"{"atoms": [4, 6, 8, 14], "range": [0.0, 2.2], "share": 0.2}"#;
    for (kind, complaint) in [("gvp_ebm", "`emphasis` of `gvp_ebm.train` would make"), ("tarflow", "`held_out` is 2")] {
        let settings = format!(r#"{{"{kind}": {{"train": {{"held_out": 2, "emphasis": {emphasis}}}}}}}"#);
        std::fs::write(setting.path("train.json"), settings).unwrap();
        let done = setting.command("never.safetensors", None).args(["--model", kind]).output().unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && text.contains(complaint), "{text}");
    }
    let linear = mlp.replace("\"negatives\"", "\"interpolant\": \"linear\", \"negatives\"");
    std::fs::write(setting.path("train.json"), format!(r#"{{"invariant_ebm": {{{linear}}}}}"#)).unwrap();
    let mut command = setting.command("never.safetensors", None);
    command.args(["--model", "invariant_ebm", "--start"]).arg(setting.path("invariant_ebm.safetensors"));
    let text = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(text.contains(r#"set `interpolant` in `contrast` to "trigonometric""#), "{text}");
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// Bonds that the frames keep and the model would vary are told, unless the System constrains them.
#[cfg(feature = "openmm")]
#[test]
fn bonds_that_frames_keep_are_told() {
    let setting = Setting::new("rigid");
    std::fs::write(setting.path("train.json"), SETTINGS.replace("2500", "1")).unwrap();
    let system = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name);
    let note = |more: &[&std::ffi::OsStr]| {
        let done = setting.command("model.safetensors", None).args(more).output().unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.success(), "{text}");
        text.lines().find(|line| line.starts_with("note: the frames keep")).map(String::from)
    };
    assert_eq!(note(&[]), None);
    // each hydrogen goes along its bond to where the constraint has it
    let xml = std::fs::read_to_string(system("system-hbonds.xml")).unwrap();
    let constraints = modejump::engines::openmm::System::from_xml(&xml).unwrap().constraints().unwrap();
    let elements = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap().0.elements;
    for path in &setting.frames {
        let mut x = read_frames(path);
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
    let [rigid, flexible] = ["system-hbonds.xml", "system-vacuum.xml"].map(system);
    let told = note(&[]).unwrap();
    assert!(told.contains("(atom 2) at 0.1090 nm, and 11 more") && told.contains("give a --system"), "{told}");
    assert_eq!(note(&["--system".as_ref(), flexible.as_ref()]), Some(told));
    assert_eq!(note(&["--system".as_ref(), rigid.as_ref()]), None);
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// Changes how the energy of a model file is read.
fn edit_energy(path: &Path, edit: impl Fn(&mut EnergyConfig)) {
    let (name, bytes) = (path.display().to_string(), std::fs::read(path).unwrap());
    let mut card = model_file::read(&name, &bytes).unwrap().card;
    edit(card.model.energy_mut().unwrap());
    std::fs::write(path, model_file::with_card(&name, &bytes, &card).unwrap()).unwrap();
}

/// Frames that bring their log-densities: what `--json` prints tells how far the energy is from them.
#[test]
fn known_log_densities_are_compared_with() {
    let setting = Setting::new("densities");
    let train =
        r#""train": {"steps": 120, "batch": 64, "evaluate": 40, "held_out": 0.05, "average": 0.9, "rate": 0.01}"#;
    std::fs::write(
        setting.path("train.json"),
        format!(r#"{{"invariant_ebm": {{"width": 16, "layers": 1, {train}}}}}"#),
    )
    .unwrap();
    let last = || {
        let mut command = setting.command("energy.safetensors", None);
        command.args(["--model", "invariant_ebm", "--json"]).stdout(Stdio::piped());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let summary: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        assert_eq!((summary["steps"].as_u64(), summary["model"].as_str()), (Some(120), Some("invariant_ebm")));
        summary["last"].clone()
    };
    let unknown = last();
    assert!(unknown["deviation"].is_null(), "nothing is known of the frames");

    // the first file knows: constant densities, from which the energy is as far as it varies itself
    let x = read_tensors("frames", &std::fs::read(&setting.frames[0]).unwrap()).unwrap().0.remove("x").unwrap();
    let n = x.shape[0];
    let tensors = BTreeMap::from([
        ("log_density".to_string(), (vec![n], Data::F64(vec![3.0; n]))),
        ("x".to_string(), (x.shape, Data::F64(x.data))),
    ]);
    std::fs::write(&setting.frames[0], write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    let known = last();
    assert_eq!(known["held_out_loss"], unknown["held_out_loss"], "what is known is for comparison only");
    let model = modejump::models::load(setting.path("energy.safetensors")).unwrap();
    let frames = read_tensors("frames", &std::fs::read(&setting.frames[0]).unwrap()).unwrap().0.remove("x").unwrap();
    let mut energies = vec![Evaluation::inside(0.0); 100];
    model.log_density(&frames.data[..100 * model.dimension()], &mut energies).unwrap();
    let energies: Vec<f64> = energies.iter().map(|e| e.log_density).collect();
    let mean = energies.iter().sum::<f64>() / 100.0;
    let deviation = (energies.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / 100.0).sqrt();
    assert!((known["deviation"].as_f64().unwrap() / deviation - 1.0).abs() < 1e-3, "{known} {deviation}");
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

/// A design is written without training; the far end of a map begins as that, and learns by the energies of the System.
#[cfg(feature = "openmm")]
#[test]
fn the_far_end_of_a_map_is_trained_on_the_frames_of_the_near_end() {
    let setting = Setting::new("map");
    let system = Path::new(TOPOLOGY).with_file_name("system-vacuum.xml");
    let design =
        r#""hidden": [12], "torsion_hidden": [8], "spline_rounds": 1, "affine_rounds": 1, "torsion_rounds": 1"#;
    let phase = r#"{"steps": 30, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 32}"#;
    std::fs::write(setting.path("design.json"), format!(r#"{{"design": {{{design}}}, "train": {{"phases": []}}}}"#))
        .unwrap();
    std::fs::write(setting.path("map.json"), format!(r#"{{"train": {{"phases": [{phase}], "evaluate": 15}}}}"#))
        .unwrap();
    let train = |arguments: &[&str], config: &str, output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--topology", TOPOLOGY, "--frames"]).args(&setting.frames).args(arguments);
        command.arg("--config").arg(setting.path(config)).arg("--log").arg(setting.path("map.log"));
        let done = command.arg("-o").arg(setting.path(output)).output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let (success, text) = train(&["--temperature", "1000"], "design.json", "near.safetensors");
    assert!(success, "{text}");
    let near = setting.path("near.safetensors");
    let (near, system) = (near.to_str().unwrap(), system.to_str().unwrap());
    let (success, text) = train(&["--map-from", near, "--system", system], "map.json", "far.safetensors");
    assert!(success, "{text}");
    let log = std::fs::read_to_string(setting.path("map.log")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    for name in ["ess", "acceptance", "reverse_kl"] {
        assert!(last[name].as_f64().is_some(), "{name}: {log}");
    }
    let [near_model, far] =
        ["near.safetensors", "far.safetensors"].map(|f| modejump::models::load(setting.path(f)).unwrap());
    assert_eq!(far.card().temperature, Some(300.0));
    assert_eq!(far.card().provenance["map_from"], near_model.hash());
    modejump::bijection::Bijection::new(near_model, far).unwrap();
    let (near_tensors, far_tensors) = (setting.tensors("near.safetensors"), setting.tensors("far.safetensors"));
    assert!(near_tensors.iter().any(|(name, tensor)| tensor.data != far_tensors[name].data));
    for (arguments, config, message) in [
        (vec!["--map-from", near], "map.json", "give --system"),
        (vec!["--map-from", near, "--system", system], "train.json", "reverse KL"),
        (vec!["--map-from", near, "--system", system, "--model", "gvp_flow"], "map.json", "leave --model out"),
    ] {
        let (success, text) = train(&arguments, config, "never.safetensors");
        assert!(!success && text.contains(message), "{text}");
    }
    frames_of_the_near_end_are_generated_at_its_temperature(&setting, near, system);
    std::fs::remove_dir_all(&setting.folder).unwrap();
}

#[cfg(feature = "openmm")]
fn frames_of_the_near_end_are_generated_at_its_temperature(setting: &Setting, near: &str, system: &str) {
    let kept = setting.path("kept.safetensors");
    let train = |temperature: &str| {
        let explore = r#""frames": 160, "hot_steps": 10, "cooling_steps": 5, "frames_per_segment": 10, "stride": 1"#;
        let phase = r#"{"steps": 2, "likelihood": 0.0, "reverse_kl": 1.0, "energy_batch": 8}"#;
        let options = format!(r#"{{"phases": [{phase}], "evaluation_samples": 8, "held_out": 0.2}}"#);
        let config = format!(r#"{{"explore": {{{explore}{temperature}}}, "train": {options}}}"#);
        std::fs::write(setting.path("explore.json"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--topology", TOPOLOGY, "--map-from", near, "--system", system, "--config"]);
        command.arg(setting.path("explore.json")).arg("--keep-frames").arg(&kept);
        let done = command.arg("-o").arg(setting.path("explored.safetensors")).output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let (success, text) = train("");
    assert!(success, "{text}");
    let (_, metadata) = read_tensors("kept", &std::fs::read(&kept).unwrap()).unwrap();
    assert!(metadata["origin"].contains(r#""temperature":1000.0"#), "{metadata:?}");
    let (success, text) = train(r#", "temperature": 300.0"#);
    assert!(!success && text.contains("that of --map-from is 1000 K"), "{text}");
}

/// A peptide's topology and frames around random places, as files.
fn write_peptide(folder: &Path, name: &str, residues: &[(&str, &str)], frames: usize) -> [PathBuf; 2] {
    let mut stream = Stream::new(3, StreamId::Test, residues.len() as u64, 0);
    let (mut pdb, mut places) = (String::new(), Vec::new());
    for (residue, names) in residues {
        for atom in names.split_whitespace() {
            // too far apart for bonds
            let number = places.len() / 3 + 1;
            let x = [3.0 * number as f64, 3.0 * stream.normal(), 3.0 * stream.normal()];
            let [a, b, c] = x;
            pdb += &format!("ATOM  {number:>5} {atom:<4} {}    {a:8.3}{b:8.3}{c:8.3}\n", residue);
            places.extend(x.map(|v| 0.1 * v));
        }
    }
    let x: Vec<f64> = (0..frames).flat_map(|_| places.clone()).map(|v| v + 0.02 * stream.normal()).collect();
    let tensors = BTreeMap::from([("x".to_string(), (vec![frames, places.len() / 3, 3], Data::F64(x)))]);
    let [topology, data] = ["pdb", "safetensors"].map(|end| folder.join(format!("{name}.{end}")));
    std::fs::write(&topology, pdb).unwrap();
    std::fs::write(&data, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    [topology, data]
}

/// One network learns two peptides of different lengths; the file is that of the first, and another training can start
/// from it.
#[test]
fn a_transferable_flow_is_trained_on_several_peptides() {
    let folder = std::env::temp_dir().join(format!("modejump-train-peptides-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let glycine = [("GLY A   1", "N H H2 H3 CA HA2 HA3 C O OXT")];
    let two = [("GLY A   1", "N H H2 H3 CA HA2 HA3 C O"), ("GLY A   2", "N H CA HA2 HA3 C O OXT")];
    let [one, frames] = write_peptide(&folder, "one", &glycine, 60);
    let [longer, of_longer] = write_peptide(&folder, "two", &two, 50);
    let sizes = r#""channels": 16, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 2"#;
    let options =
        r#""train": {"steps": 60, "batch": 32, "evaluate": 20, "rate": 0.003, "held_out": 0.1, "average": 0.5}"#;
    let peptides = serde_json::json!([{ "topology": longer, "frames": [of_longer] }]);
    let config = format!(r#"{{"transferable_tarflow": {{{sizes}, "peptides": {peptides}, {options}}}}}"#);
    let settings = folder.join("train.json");
    std::fs::write(&settings, config).unwrap();
    let command = |topology: &Path, frames: &Path, output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--model", "transferable_tarflow", "--topology"]).arg(topology);
        command.arg("--frames").arg(frames).arg("--config").arg(&settings).arg("--log").arg(folder.join("log"));
        command.arg("-o").arg(folder.join(output));
        command
    };
    let train = |topology: &Path, frames: &Path, output: &str, start: Option<&str>| {
        let mut command = command(topology, frames, output);
        start.into_iter().for_each(|name| _ = command.arg("--start").arg(folder.join(name)));
        let done = command.output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let (success, text) = train(&one, &frames, "model.safetensors", None);
    assert!(success, "{text}");
    assert!(text.contains("50 of the 60 frames"), "{text}");
    let log = std::fs::read_to_string(folder.join("log")).unwrap();
    let losses: Vec<f64> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["held_out_loss"].as_f64().unwrap())
        .collect();
    assert!(losses.len() == 3 && losses[2] < losses[0] - 0.05, "{losses:?}");
    let model = modejump::models::load(folder.join("model.safetensors")).unwrap();
    assert_eq!((model.exactness(), model.dimension()), (Exactness::Exact, 30));
    // the longer peptide's turn, from what was learned
    let (success, text) = train(&longer, &of_longer, "further.safetensors", Some("model.safetensors"));
    assert!(success, "{text}");
    assert_eq!(modejump::models::load(folder.join("further.safetensors")).unwrap().dimension(), 51);
    // frames are drawn of every peptide, and a checkpoint knows all of them
    let weighted = folder.join("weighted.safetensors");
    let (x, _) = read_tensors("one", &std::fs::read(&frames).unwrap()).unwrap();
    let tensors = BTreeMap::from([
        ("x".to_string(), (x["x"].shape.clone(), Data::F64(x["x"].data.clone()))),
        ("log_weight".to_string(), (vec![60], Data::F64(vec![0.0; 60]))),
    ]);
    std::fs::write(&weighted, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    let mut resampling = command(&one, &weighted, "never.safetensors");
    let complaint = |command: &mut Command| {
        let done = command.output().unwrap();
        assert!(!done.status.success());
        String::from_utf8(done.stderr).unwrap()
    };
    let text = complaint(resampling.arg("--resample"));
    assert!(text.contains("weighted.safetensors: 60 of 60") && text.contains("two.safetensors"), "{text}");
    let mut checked = command(&one, &frames, "checked.safetensors");
    checked.arg("--checkpoint").arg(folder.join("state.ckpt"));
    assert!(checked.output().unwrap().status.success());
    let pdb = std::fs::read_to_string(&longer).unwrap();
    std::fs::write(&longer, pdb.replace("HA2", "HAX").replace("HA3", "HA2").replace("HAX", "HA3")).unwrap();
    let text = complaint(&mut checked);
    assert!(text.contains("belongs to another run"), "{text}");
    std::fs::write(&longer, pdb).unwrap();
    let caps = Path::new(TOPOLOGY);
    let [first, _] = write_frames(&folder);
    let (success, text) = train(caps, &first, "never.safetensors", None);
    assert!(!success && text.contains("residue ACE1") && text.contains("topology.pdb"), "{text}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Frames without weight are not learned: the scale of a new model is that of the others. Weights are those of the
/// file, or those of a density and the energies.
#[test]
fn a_flow_is_trained_on_frames_drawn_by_their_weights() {
    let folder = std::env::temp_dir().join(format!("modejump-train-resample-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let settings = folder.join("train.json");
    let sizes = r#""channels": 8, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 1"#;
    let config = format!(r#"{{"tarflow": {{{sizes}, "train": {{"steps": 2, "batch": 8}}}}}}"#);
    std::fs::write(&settings, config).unwrap();
    let (_, x0) = Topology::from_pdb(Path::new(TOPOLOGY)).unwrap();
    let frame = |scale: f64| x0.iter().map(move |x| scale * x);
    let x: Vec<f64> = (0..40).flat_map(|i| frame(if i % 4 == 0 { 1.5 } else { 1.0 })).collect();
    let write = |name: &str, weights: &str, log_weight: Vec<f64>| {
        let frames = ("x".to_string(), (vec![40, x0.len() / 3, 3], Data::F64(x.clone())));
        let tensors = BTreeMap::from([frames, (weights.to_string(), (vec![log_weight.len()], Data::F64(log_weight)))]);
        std::fs::write(folder.join(name), write_tensors(&tensors, Default::default()).unwrap()).unwrap();
    };
    let train = |frames: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.args(["train", "--model", "tarflow", "--topology", TOPOLOGY, "--frames"]).arg(folder.join(frames));
        command.arg("--config").arg(&settings).arg("-o").arg(folder.join("model.safetensors")).args(more);
        let done = command.output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let units_per_nm = || match &modejump::models::load(folder.join("model.safetensors")).unwrap().card().model {
        modejump::models::ModelConfig::Tarflow(config) => config.units_per_nm,
        other => panic!("{}", other.kind()),
    };
    let weight = |i: usize| if i % 4 == 0 { 3.0 } else { f64::NEG_INFINITY };
    write("weighted.safetensors", "log_weight", (0..40).map(weight).collect());
    let (success, text) = train("weighted.safetensors", &["--resample"]);
    assert!(success && text.contains("10 of 40 frames resampled, ESS 10"), "{text}");
    let large = units_per_nm();
    write(
        "equal.safetensors",
        "log_weight",
        (0..40).map(|i| if i % 4 == 0 { f64::NEG_INFINITY } else { 3.0 }).collect(),
    );
    assert!(train("equal.safetensors", &["--resample", "truncated"]).0);
    assert!((units_per_nm() / large - 1.5).abs() < 1e-9, "{} and {large}", units_per_nm());
    write("short.safetensors", "log_weight", vec![0.0; 39]);
    assert!(train("short.safetensors", &["--resample"]).1.contains("`log_weight` has 39 numbers for 40 frames"));
    write("none.safetensors", "log_weight", vec![f64::NEG_INFINITY; 40]);
    assert!(train("none.safetensors", &["--resample"]).1.contains("all 40 weights are zero"));
    write("plain.safetensors", "reduced_potential", vec![0.0; 40]);
    assert!(train("plain.safetensors", &["--resample"]).1.contains("neither `log_weight`"));
    write("density.safetensors", "log_density", vec![0.0; 40]);
    assert!(train("density.safetensors", &["--resample"]).1.contains("give --system"));
    write("damaged.safetensors", "log_density", (0..40).map(|i| if i == 7 { f64::NAN } else { 0.0 }).collect());
    let text = train("damaged.safetensors", &["--resample"]).1;
    assert!(text.contains("damaged.safetensors: `log_density` is NaN in row 7"), "{text}");
    #[cfg(feature = "openmm")]
    {
        let system = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ala2/system.xml");
        let (success, text) = train("density.safetensors", &["--resample", "--system", system]);
        // a molecule half as long again has no weight beside one as it is
        assert!(success && text.contains("30 of 40 frames resampled, ESS 30"), "{text}");
        assert!((units_per_nm() / large - 1.5).abs() < 1e-9);
        let constrained = concat!(env!("CARGO_MANIFEST_DIR"), "/models/ala2/system-hbonds.xml");
        let (success, text) = train("density.safetensors", &["--resample", "--system", constrained]);
        assert!(!success && text.contains("density.safetensors: the bond") && text.contains("varies it"), "{text}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

/// Before anything is read or made: the frames would be written under the name of another format.
#[test]
fn frames_are_kept_as_safetensors() {
    let mut train = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let output = std::env::temp_dir().join("modejump-train-kept.safetensors");
    let kept = std::env::temp_dir().join("modejump-train-kept.npy");
    train.args(["train", "--topology", TOPOLOGY, "--keep-frames"]).arg(kept).arg("-o").arg(output);
    let done = train.output().unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(
        !done.status.success() && text.contains("kept.npy: frames that are kept are written as safetensors"),
        "{text}"
    );
}

/// What a training takes over from the model of --start: its temperature, if no other is asked for, and its order of
/// atoms. A checkpoint belongs to the model that it started from; settings without effect are refused; a training that
/// diverges writes nothing.
#[test]
fn a_training_starts_from_a_model_of_its_atoms_at_its_temperature() {
    let setting = Setting::new("start");
    let settings = |more: &str| {
        let sizes = r#""channels": 8, "blocks": 2, "layers": 1, "head_size": 8, "expansion": 1"#;
        let config =
            format!(r#"{{"tarflow": {{{sizes}, "train": {{"steps": 60, "batch": 8, "evaluate": 20{more}}}}}}}"#);
        std::fs::write(setting.path("train.json"), config).unwrap();
    };
    let train = |output: &str, checkpoint: Option<&str>, more: &[&str]| {
        let done = setting.command(output, checkpoint).args(["--model", "tarflow"]).args(more).output().unwrap();
        (done.status.success(), String::from_utf8(done.stderr).unwrap())
    };
    let temperature = |name: &str| modejump::models::load(setting.path(name)).unwrap().card().temperature;
    let [hot, default] = ["hot.safetensors", "default.safetensors"].map(|name| setting.path(name));
    let [hot, default] = [&hot, &default].map(|path| path.to_str().unwrap());
    settings("");
    assert!(train(hot, None, &["--temperature", "310"]).0 && train(default, None, &[]).0);
    assert_eq!((temperature(hot), temperature(default)), (Some(310.0), Some(300.0)));
    let checkpoint = Some("state.ckpt");
    assert!(train("further.safetensors", checkpoint, &["--start", hot]).0);
    assert_eq!(temperature("further.safetensors"), Some(310.0));
    let (success, text) = train("other.safetensors", None, &["--start", hot, "--temperature", "330"]);
    assert!(success && text.contains("is of 310 K, what is trained from it of 330 K"), "{text}");
    assert_eq!(temperature("other.safetensors"), Some(330.0));

    let complaint = |output: &str, checkpoint: Option<&str>, more: &[&str]| {
        let (success, text) = train(output, checkpoint, more);
        assert!(!success, "{text}");
        text
    };
    let same = ["--start", default, "--temperature", "310"];
    assert!(complaint("further.safetensors", checkpoint, &same).contains("belongs to another run"));
    let text = complaint(hot, Some("new.ckpt"), &["--start", hot]);
    assert!(text.contains("would be written over"), "{text}");
    assert!(complaint(hot, None, &["--start", hot]).contains("would be written over"));
    // the hydrogens of a methyl group in another order
    let pdb = std::fs::read_to_string(TOPOLOGY).unwrap();
    let other = setting.path("other.pdb");
    std::fs::write(&other, pdb.replace("HB1", "HBX").replace("HB2", "HB1").replace("HBX", "HB2")).unwrap();
    let mut swapped = setting.command("never.safetensors", None);
    swapped.args(["--model", "tarflow", "--start", hot]);
    let arguments: Vec<std::ffi::OsString> = swapped.get_args().map(|a| a.to_owned()).collect();
    let arguments = arguments.iter().map(|a| if a == TOPOLOGY { other.as_os_str() } else { a });
    let done = Command::new(env!("CARGO_BIN_EXE_modejump")).args(arguments).output().unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && text.contains("stands where the model to start from has"), "{text}");

    settings(r#", "rate": 1e30"#);
    let text = complaint("never.safetensors", None, &[]);
    assert!(text.contains("the training has diverged"), "{text}");
    let config = |text: &str| std::fs::write(setting.path("train.json"), text).unwrap();
    config(r#"{"tarflow": {"head_size": 0}}"#);
    assert!(complaint("never.safetensors", None, &[]).contains("heads of 0 do not share 64 channels"));
    config(r#"{"gvp_flow": {}, "tarflow": {}}"#);
    let text = complaint("never.safetensors", None, &[]);
    assert!(text.contains("`gvp_flow` has no effect on this training, which reads tarflow, explore"), "{text}");
    config(r#"{"tarflow": {"train": {"pairing": "independent"}}, "explore": {}}"#);
    assert!(complaint("never.safetensors", None, &[]).contains("`pairing` of `tarflow.train` has no effect"));
    config(r#"{"tarflow": {"head_size": 0}, "explore": {}}"#);
    let text = complaint("never.safetensors", None, &[]);
    assert!(text.contains("note: `explore` of") && text.contains("frames are those of --frames"), "{text}");
    config("{}");
    let double_well = concat!(env!("CARGO_MANIFEST_DIR"), "/models/double-well/generator.safetensors");
    let done = setting
        .command("never.safetensors", None)
        .args(["--model", "coupling", "--start", double_well])
        .output()
        .unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(!done.status.success() && text.contains("2 coordinates, and 22 atoms have 66"), "{text}");
    let of_another_kind = |asked: &str| {
        let start = ["--model", asked, "--start", hot];
        let done = setting.command("never.safetensors", None).args(start).output().unwrap();
        let text = String::from_utf8(done.stderr).unwrap();
        let expected = format!("hot.safetensors: a model of the kind tarflow, not {asked}: give --model tarflow");
        assert!(!done.status.success() && text.contains(&expected), "{text}");
    };
    ["coupling", "egnn_flow", "gvp_ebm"].into_iter().for_each(of_another_kind);
    assert!(!setting.path("never.safetensors").exists());
    std::fs::remove_dir_all(&setting.folder).unwrap();
}
