//! What scripts rely on: `sample`, `log-density` and their latent input, every trajectory format, `--json`, `bench`,
//! `plot`.

use modejump::io::model_file::{read_tensors, write_tensors, Data, Tensor};
use modejump::io::trajectory;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "support/tarflow.rs"]
mod tarflow;

const MODEL: &str = "models/ala2/model.safetensors";

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("command-line-{name}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What a run printed.
fn modejump(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json_of(arguments: &[&str]) -> Value {
    serde_json::from_str(&modejump(arguments)).unwrap()
}

fn tensors(path: &str) -> BTreeMap<String, Tensor> {
    read_tensors(path, &std::fs::read(path).unwrap()).unwrap().0
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.data.len(), b.data.len());
    a.data.iter().zip(&b.data).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn samples_of_a_tarflow_by_iteration_are_those_in_turn() {
    let folder = folder("decoding");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, output) = (path("tarflow.safetensors"), path("x.safetensors"));
    tarflow::write(Path::new(&model));
    let sample = |model: &str, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["sample", model, "-n", "9", "-o", &output]);
        let run = command.args(more).output().unwrap();
        (run.status.success(), String::from_utf8(run.stderr).unwrap())
    };
    assert_eq!(sample(&model, &[]), (true, String::new()));
    let in_turn = tensors(&output);
    for (decoding, more) in [("jacobi", &[][..]), ("gauss-seidel", &["--segment", "5"])] {
        let (done, report) = sample(&model, &[&["--decoding", decoding], more].concat());
        assert!(done && report.starts_with("9 samples by iteration") && report.contains(" 0 of them"), "{report}");
        let found = tensors(&output);
        assert!(largest_difference(&found["x"], &in_turn["x"]) < 1e-5);
        assert!(largest_difference(&found["log_density"], &in_turn["log_density"]) < 1e-3);
    }
    let (_, report) = sample(&model, &["--decoding", "jacobi", "--decoding-passes", "1"]);
    assert!(report.contains(" 9 of them sequentially"), "{report}");
    let found = tensors(&output);
    assert_eq!((&found["x"].data, &found["log_density"].data), (&in_turn["x"].data, &in_turn["log_density"].data));
    let (done, refused) = sample(MODEL, &["--decoding", "jacobi"]);
    assert!(!done && refused.contains("for TarFlows, and this is a model of kind coupling"), "{refused}");
}

/// Samples have the noise of the centroid; configurations that are elsewhere get it, wherever they are.
#[test]
fn centroids_of_frames_are_drawn_for_a_model_that_has_noise_there() {
    let folder = folder("centroids");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, samples, moved, output) =
        (path("tarflow.safetensors"), path("x.safetensors"), path("moved.safetensors"), path("q.safetensors"));
    tarflow::write(Path::new(&model));
    let f64_networks = ["--precision", "f64"];
    modejump(&[&["sample", &model, "-n", "9", "-o", &samples][..], &f64_networks].concat());
    let x = tensors(&samples);
    let log_q = |frames: &str, seed: &str| {
        modejump(&[&["log-density", &model, frames, "--seed", seed, "-o", &output][..], &f64_networks].concat());
        tensors(&output).remove("log_density").unwrap()
    };
    assert!(largest_difference(&log_q(&samples, "1"), &x["log_density"]) < 1e-7);
    let log_q_at = |shift: f64, seed: &str| {
        let data = x["x"].data.iter().map(|v| v + shift).collect();
        let frames = BTreeMap::from([("x".to_string(), (x["x"].shape.clone(), Data::F64(data)))]);
        std::fs::write(&moved, write_tensors(&frames, Default::default()).unwrap()).unwrap();
        log_q(&moved, seed)
    };
    let near = log_q_at(3.0, "1");
    assert!(largest_difference(&near, &log_q_at(-7.0, "1")) < 1e-7);
    assert!(largest_difference(&near, &log_q_at(3.0, "2")) > 1e-3);
    assert!(largest_difference(&near, &x["log_density"]) < 20.0, "the centroid was taken for what it is not");
}

/// The other half is in tests/mpi.rs.
#[test]
#[cfg(not(feature = "mpi"))]
fn one_of_several_processes_without_mpi_is_refused() {
    for variable in ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let run = |processes: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
            let output = folder("processes").join("x.npy").display().to_string();
            command.current_dir(env!("CARGO_MANIFEST_DIR")).env(variable, processes);
            command.args(["sample", MODEL, "-n", "1", "-o", &output]).output().unwrap()
        };
        let refused = run("2");
        let message = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && message.contains("--features mpi"), "{message}");
        assert!(run("1").status.success());
    }
}

#[test]
fn samples_have_the_density_that_log_density_finds_and_latent_points_give_them_back() {
    let folder = folder("latent");
    let path = |name: &str| folder.join(name).display().to_string();
    let (samples, densities, again) = (path("x.safetensors"), path("q.safetensors"), path("again.safetensors"));
    let f64_networks = ["--precision", "f64"];

    let summary =
        json_of(&[&["sample", MODEL, "-n", "20", "--seed", "3", "--json", "-o", &samples][..], &f64_networks].concat());
    assert_eq!((&summary["n"], &summary["outside_support"]), (&json!(20), &json!(0)));
    let summary = json_of(&[&["log-density", MODEL, &samples, "--json", "-o", &densities][..], &f64_networks].concat());
    assert_eq!(summary["n"], 20);
    let (x, q) = (tensors(&samples), tensors(&densities));
    assert_eq!((x["x"].shape.as_slice(), x["log_density"].shape.as_slice()), (&[20, 22, 3][..], &[20][..]));
    assert!(largest_difference(&x["log_density"], &q["log_density"]) < 1e-7);

    for command in ["sample", "log-density"] {
        modejump(&[&[command, MODEL, "--z", &densities, "-o", &again][..], &f64_networks].concat());
        let back = tensors(&again);
        assert!(largest_difference(&back["log_density"], &q["log_density"]) < 1e-7, "{command}");
        assert!(largest_difference(&back["log_det"], &q["log_det"]) < 1e-7, "{command}");
    }
}

/// Samples of a steerable model at a temperature, weighed with its auxiliary coordinates: ⟨u⟩ is that of quadrature.
#[test]
fn a_steerable_model_is_sampled_at_a_temperature() {
    const STEERABLE: &str = "models/double-well/steerable.safetensors";
    let folder = folder("steering");
    let path = |name: &str| folder.join(name).display().to_string();
    let (samples, densities) = (path("x.safetensors"), path("q.safetensors"));
    for kelvin in [300.0, 900.0] {
        let at = kelvin.to_string();
        modejump(&["sample", STEERABLE, "-n", "20000", "--temperature", &at, "-o", &samples]);
        let drawn = tensors(&samples);
        assert_eq!(drawn["x"].shape, [20_000, 2]);
        assert_eq!(drawn["auxiliary"].shape, [20_000, 2]);
        modejump(&["log-density", STEERABLE, &samples, "--temperature", &at, "-o", &densities]);
        let u_of =
            |x: f64, y: f64| (10.0 * (x * x - 1.0).powi(2) + 0.5 * x + 5.0 * (y - 0.5 * x).powi(2)) * 300.0 / kelvin;
        let u: Vec<f64> = drawn["x"].data.chunks_exact(2).map(|x| u_of(x[0], x[1])).collect();
        let mean_of = |log_q: &Tensor| {
            let weights: Vec<f64> = u.iter().zip(&log_q.data).map(|(u, q)| (-u - q).exp()).collect();
            weights.iter().zip(&u).map(|(w, u)| w * u).sum::<f64>() / weights.iter().sum::<f64>()
        };
        let (mut sum, mut norm) = (0.0, 0.0);
        for i in 0..8000 {
            let x = -4.0 + 1e-3 * f64::from(i);
            let u = u_of(x, 0.5 * x);
            (sum, norm) = (sum + u * (-u).exp(), norm + (-u).exp());
        }
        let (found, expected) = (mean_of(&drawn["log_density"]), sum / norm + 0.5);
        assert!((found - expected).abs() < 0.04, "{kelvin} K: {found}, not {expected}");
        assert!(tensors(&densities)["log_density"].data.iter().all(|q| q.is_finite()));
    }
    let plain = ["sample", MODEL, "-n", "1", "--temperature", "400", "-o", &samples];
    let output =
        Command::new(env!("CARGO_BIN_EXE_modejump")).args(plain).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.unwrap();
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("does not follow the temperature")
    );
}

#[test]
fn frames_are_read_and_written_in_every_format() {
    let folder = folder("formats");
    let path = |name: &str| folder.join(name).display().to_string();
    let of_samples = |name: &str| {
        modejump(&["sample", MODEL, "-n", "5", "-o", &path(name)]);
        json_of(&["log-density", MODEL, &path(name), "--json", "-o", &path("q.safetensors")])
    };
    let exact = of_samples("x.safetensors")["mean_log_density"].as_f64().unwrap();
    // nats that the rounding of the format costs: bonds are a few thousandths of a nanometre wide
    for (name, tolerance) in
        [("x.npy", 1e-9), ("x.dcd", 0.1), ("x.xtc", 1.0), ("x.trr", 1e-9), ("x.pdb", 20.0), ("x.gro", 200.0)]
    {
        let summary = of_samples(name);
        assert_eq!(summary["n"], 5, "{name}");
        let mean = summary["mean_log_density"].as_f64().unwrap();
        assert!((mean - exact).abs() < tolerance, "{name}: {mean} for {exact}");
    }
}

#[test]
fn latent_points_of_another_shape_or_not_finite_are_refused() {
    let folder = folder("latent-refused");
    let path = |name: &str| folder.join(name).display().to_string();
    modejump(&["sample", MODEL, "-n", "2", "-o", &path("x.npy")]);
    modejump(&["log-density", MODEL, &path("x.npy"), "-o", &path("q.safetensors")]);
    let z = tensors(&path("q.safetensors")).remove("z").unwrap();
    let (n, latent) = (z.shape[0], z.shape[1]);
    let mut not_finite = z.data.clone();
    not_finite[latent + 3] = f64::NAN;
    for (shape, data, text) in [
        (vec![latent, n], z.data.clone(), format!("`z` has shape [{latent}, {n}], the model needs [n, {latent}]")),
        (vec![n * latent], z.data.clone(), format!("[{}]", n * latent)),
        (vec![n, latent], not_finite, "`z` holds NaN in point 2".into()),
    ] {
        let arrays = BTreeMap::from([("z".to_string(), (shape, Data::F64(data)))]);
        std::fs::write(path("z.safetensors"), write_tensors(&arrays, Default::default()).unwrap()).unwrap();
        for command in ["sample", "log-density"] {
            let message =
                refused("cpu", &[command, MODEL, "--z", &path("z.safetensors"), "-o", &path("again.safetensors")]);
            assert!(message.contains(&text), "{message}");
        }
    }
}

#[test]
fn no_configurations_have_no_mean() {
    let output = folder("none").join("x.safetensors").display().to_string();
    let text = modejump(&["sample", MODEL, "-n", "0", "-o", &output]);
    assert!(text.ends_with("0 configurations, no log q to average\n"), "{text}");
    assert!(json_of(&["sample", MODEL, "-n", "0", "--json", "-o", &output])["mean_log_density"].is_null());
}

#[test]
fn frames_with_atoms_in_another_order_are_refused() {
    let folder = folder("order");
    let path = |name: &str| folder.join(name).display().to_string();
    for name in ["x.pdb", "x.gro"] {
        modejump(&["sample", MODEL, "-n", "2", "-o", &path(name)]);
        modejump(&["log-density", MODEL, &path(name), "-o", &path("q.safetensors")]);
        let text = std::fs::read_to_string(path(name)).unwrap();
        // of equal length, so that columns stay
        let exchanged = text.replace("HH31", "HHXX").replace("HH33", "HH31").replace("HHXX", "HH33");
        std::fs::write(path(name), exchanged).unwrap();
        let message = refused("cpu", &["log-density", MODEL, &path(name), "-o", &path("q.safetensors")]);
        assert!(message.contains("ACE1:HH33 (atom 2) stands where the model has ACE1:HH31 (atom 2)"), "{message}");
        let train = [
            "train",
            "--topology",
            "models/ala2/topology.pdb",
            "--frames",
            &path(name),
            "-o",
            &path("model.safetensors"),
        ];
        let message = refused("cpu", &train);
        assert!(message.contains("stands where the topology has"), "{message}");
    }
}

/// Before the first of a number of samples that no test waits for.
#[test]
fn samples_that_cannot_be_written_are_refused_at_once() {
    for (model, output, text) in [
        (MODEL, "nowhere/x.npy", "there is no folder nowhere"),
        (MODEL, "x.mdcrd", "`mdcrd`"),
        ("models/double-well/generator.safetensors", "x.trr", "2 coordinates are none; write npy or safetensors"),
    ] {
        let message = refused("cpu", &["sample", model, "-n", "1000000", "-o", output]);
        assert!(message.contains(text), "{message}");
    }
}

/// By whatever name; what would have been written over stays as it is.
#[test]
fn an_output_that_is_an_input_is_refused() {
    let folder = folder("apart");
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, again) = (path("m.safetensors"), path("../command-line-apart/m.safetensors"));
    let (x, figure) = (path("x.safetensors"), path("training.svg"));
    std::fs::copy(MODEL, &model).unwrap();
    std::fs::copy("models/ala2/training.jsonl", &figure).unwrap();
    modejump(&["sample", &model, "-n", "2", "-o", &x]);
    let bytes = || [&model, &x, &figure].map(|path| std::fs::read(path).unwrap());
    let before = bytes();
    for arguments in [
        &["sample", &model, "-n", "5", "-o", &again][..],
        &["sample", &model, "--z", &x, "-o", &x],
        &["log-density", &model, &x, "-o", &x],
        &["log-density", &again, &x, "-o", &model],
        &["log-density", &model, "--z", &x, "-o", &x],
        &["evaluate", &model, &x, "-o", &x],
        &["plot", "--log", &figure, "-o", &path("")],
    ] {
        let message = refused("cpu", arguments);
        assert!(message.contains("would be written over") && message.contains("give another name"), "{message}");
    }
    assert!(before == bytes());
}

#[test]
fn log_densities_that_cannot_be_written_are_refused_at_once() {
    for (output, text) in [
        ("nowhere/q.safetensors", "there is no folder nowhere"),
        ("q.npy", "written as safetensors"),
        ("q.dcd", "written as safetensors"),
    ] {
        let message = refused("cpu", &["log-density", MODEL, "no-frames.npy", "-o", output]);
        assert!(message.contains(output) && message.contains(text), "{message}");
    }
}

#[test]
fn frames_in_angstrom_are_refused() {
    let folder = folder("angstrom");
    let path = |name: &str| folder.join(name).display().to_string();
    modejump(&["sample", MODEL, "-n", "3", "-o", &path("x.safetensors")]);
    let x = tensors(&path("x.safetensors")).remove("x").unwrap();
    let enlarged = x.data.iter().map(|v| 10.0 * v).collect();
    let arrays = BTreeMap::from([("x".to_string(), (x.shape, Data::F64(enlarged)))]);
    std::fs::write(path("a.safetensors"), write_tensors(&arrays, Default::default()).unwrap()).unwrap();
    let message = refused("cpu", &["log-density", MODEL, &path("a.safetensors"), "-o", &path("q.safetensors")]);
    assert!(message.contains("a.safetensors: ") && message.contains("nm, not Angstrom"), "{message}");
    // samples of a model, whose log q is beside them, are in nm: a poor model is not refused
    let arrays =
        [("x".to_string(), arrays["x"].clone()), ("log_density".to_string(), (vec![3], Data::F64(vec![0.0; 3])))];
    std::fs::write(path("a.safetensors"), write_tensors(&arrays.into(), Default::default()).unwrap()).unwrap();
    modejump(&["log-density", MODEL, &path("a.safetensors"), "-o", &path("q.safetensors")]);
}

/// As `gmx pdb2gmx` gives them another order, which a format without names does not tell.
#[test]
fn frames_are_brought_to_the_models_order_by_a_topology() {
    let folder = folder("reordered");
    let path = |name: &str| folder.join(name).display().to_string();
    let [x, exchanged, of_x, again, topology] =
        ["x.npy", "exchanged.npy", "q.safetensors", "again.safetensors", "exchanged.pdb"].map(path);
    modejump(&["sample", MODEL, "-n", "3", "-o", &x]);
    modejump(&["log-density", MODEL, &x, "-o", &of_x]);
    let mut frames = trajectory::read(x.as_ref()).unwrap();
    frames.x.chunks_exact_mut(66).for_each(|x| (0..3).for_each(|k| x.swap(3 + k, 9 + k)));
    trajectory::write(exchanged.as_ref(), &frames, None, &[]).unwrap();
    let pdb = std::fs::read_to_string("models/ala2/topology.pdb").unwrap();
    let mut lines: Vec<&str> = pdb.lines().collect();
    let first = lines.iter().position(|line| line.starts_with("ATOM") || line.starts_with("HETATM")).unwrap();
    lines.swap(first + 1, first + 3);
    std::fs::write(&topology, lines.join("\n")).unwrap();
    modejump(&["log-density", MODEL, &exchanged, "--topology", &topology, "-o", &again]);
    assert!(largest_difference(&tensors(&of_x)["log_density"], &tensors(&again)["log_density"]) < 1e-4);
    modejump(&["log-density", MODEL, &exchanged, "-o", &again]);
    assert!(largest_difference(&tensors(&of_x)["log_density"], &tensors(&again)["log_density"]) > 10.0);
    std::fs::write(&topology, pdb.replace("HH31", "HX31")).unwrap();
    let message = refused("cpu", &["log-density", MODEL, &x, "--topology", &topology, "-o", &again]);
    assert!(message.contains("exchanged.pdb: atom ACE1:HH31") && message.contains("the model's names"), "{message}");
}

#[test]
fn inspect_lists_the_atoms() {
    let text = modejump(&["inspect", MODEL]);
    let has = |line: &str| text.lines().any(|found| found.split_whitespace().eq(line.split_whitespace()));
    assert!(has("atoms 22") && has("1 ACE1 CH3 C") && has("11 ALA2 CB C"), "{text}");
}

#[test]
fn what_is_no_model_is_told_what_is() {
    let convert = ["convert", "models/ala2/topology.pdb", "--kind", "tarflow", "-o", "m.safetensors"];
    for command in [&["inspect", "models/ala2/topology.pdb"][..], &convert] {
        let message = refused("cpu", command);
        assert!(
            message.contains("not a readable safetensors file") && message.contains(".pt, .pth, .ckpt"),
            "{message}"
        );
    }
}

/// `inspect … | head` is no failure to be told with a backtrace.
#[test]
#[cfg(unix)]
fn a_reader_that_has_seen_enough_ends_the_program() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let command = command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["inspect", MODEL]);
    let mut process =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(141), 0));
}

#[test]
fn what_is_no_json_is_named() {
    let output = folder("json").display().to_string();
    let message = refused("cpu", &["plot", "README.md", "-o", &output]);
    assert!(message.contains("README.md: JSON is expected"), "{message}");
    let message = refused("cpu", &["plot", "--log", "README.md", "-o", &output]);
    assert!(message.contains("README.md: line 1: ") && message.contains("a JSON object a line"), "{message}");
    let message = refused("cpu", &["plot", MODEL, "-o", &output]);
    assert!(
        message.contains("not text") && message.contains("`modejump compare` makes figures of trajectories"),
        "{message}"
    );
    let message = refused("cpu", &["plot", MODEL, "-o", "README.md"]);
    assert!(message.contains("README.md: is a file; give the name of a folder"), "{message}");
}

#[test]
fn series_that_cannot_be_meant_are_refused() {
    let folder = folder("series");
    let path = |name: &str| folder.join(name).display().to_string();
    for (series, text) in [
        (
            json!([{ "name": "a", "phi": [1, 2, 3], "psi": [1, 2, 3], "log_weight": [0, 0] }]),
            "series `a` has 3 numbers in `phi` and 2 in `log_weight`",
        ),
        (json!([{ "name": "b", "phi": [1, 2, 3, 1, 2], "psi": [1, 2, 3] }]), "5 numbers in `phi` and 3 in `psi`"),
        (json!([{ "name": "c", "reduced_potential": [1, 2, 3], "log_weight": [0, 0, 0, 50] }]), "series `c` has 3"),
        (json!([{ "name": "d", "n": 4e12 as u64, "log_weight": [5, 5] }]), "series `d` has `n` of 4000000000000"),
        (json!([{ "name": "e", "psi": [1, 2] }]), "nothing to draw"),
        (json!([]), "nothing to draw"),
    ] {
        std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
        let message = refused("cpu", &["plot", &path("series.json"), "-o", &path("out")]);
        assert!(message.contains("series.json: ") && message.contains(text), "{message}");
        assert_eq!(std::fs::read_dir(path("out")).unwrap().count(), 0);
    }
}

#[test]
#[cfg(feature = "cuda")]
fn help_names_every_architecture_that_is_accepted() {
    let message = refused("cpu", &["compile", MODEL, "--architecture", "sm_12"]);
    let names = message.split("give one of ").nth(1).unwrap().trim().split(", ");
    let help = modejump(&["compile", "--help"]);
    // as words, since sm_10 is the beginning of sm_100
    let words: Vec<&str> = help.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    assert!(names.clone().count() > 5);
    names.for_each(|name| assert!(words.contains(&name), "{name}: {help}"));
}

#[test]
fn a_benchmark_is_an_object_a_line() {
    let text = modejump(&["bench", "--json", "--threads", "1", "coupling/sample", "coupling/log_density"]);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert!(line["name"].as_str().unwrap().starts_with("coupling/"));
        assert_eq!((&line["size"], &line["device"], &line["threads"]), (&json!("ala2"), &json!("cpu"), &json!(1)));
        let numbers = [&line["batch"], &line["ms_per_sample"], &line["gflops"]].map(|v| v.as_f64().unwrap());
        assert!(numbers.iter().all(|v| *v > 0.0));
    }
}

#[test]
fn benchmarks_of_shipped_models_are_left_out_where_these_are_not() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let run =
        command.current_dir(folder("bench")).args(["bench", "--threads", "1", "gvp_flow/sample"]).output().unwrap();
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(run.status.success() && told.contains("gvp_flow/sample is left out"), "{told}");
}

#[test]
fn every_figure_is_drawn() {
    let folder = folder("figures");
    let path = |name: &str| folder.join(name).display().to_string();
    let wave = |scale: f64| (0..400).map(|i| scale * (0.37 * f64::from(i)).sin()).collect::<Vec<f64>>();
    let run = json!({ "name": "MD", "phi": wave(3.0), "psi": wave(2.0), "reduced_potential": wave(4.0) });
    let mut generator = run.clone();
    generator["name"] = json!("generator");
    generator["log_weight"] = json!(wave(1.5));
    std::fs::write(path("series.json"), json!({ "series": [run, generator] }).to_string()).unwrap();
    let line = |step: usize| {
        json!({ "step": step, "rate": 1e-3, "likelihood": 2.0, "reverse_kl": null, "refinement": null,
            "gradient_norm": 1.0, "held_out": 1.5, "ess": 0.5, "pareto_k": 0.4, "acceptance": 0.6 })
        .to_string()
    };
    std::fs::write(path("log.jsonl"), [line(1), line(2), line(3)].join("\n")).unwrap();
    modejump(&["plot", &path("series.json"), "--log", &path("log.jsonl"), "-o", &path("")]);
    for name in ["ramachandran", "free_energy", "energy", "log_weights", "training"] {
        let figure = std::fs::read_to_string(folder.join(name).with_extension("svg")).unwrap();
        assert!(figure.starts_with("<svg") && figure.len() > 2000, "{name}");
    }
}

/// Points of the curves of a figure, in pixels.
fn curves(svg: &str) -> Vec<Vec<[f64; 2]>> {
    let lines =
        svg.split("<polyline").skip(1).filter(|line| line.split('>').next().unwrap().contains("stroke-width=\"2\""));
    let points = |line: &str| -> Vec<[f64; 2]> {
        let text = line.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let point = |pair: &str| pair.split_once(',').map(|(x, y)| [x, y].map(|v| v.parse().unwrap())).unwrap();
        text.split_whitespace().map(point).collect()
    };
    lines.map(points).collect()
}

#[test]
fn figures_show_what_there_is_where_weights_collapse_and_atoms_clash() {
    let folder = folder("wild");
    let path = |name: &str| folder.join(name).display().to_string();
    let wave = |scale: f64| (0..400).map(|i| scale * (0.37 * f64::from(i)).sin()).collect::<Vec<f64>>();
    let spread = |curve: &[[f64; 2]], k: usize| {
        let values = || curve.iter().map(|point| point[k]);
        values().fold(f64::MIN, f64::max) - values().fold(f64::MAX, f64::min)
    };
    // ten angles in each of sixty bins, half of the circle 20 kT above the other
    let phi: Vec<f64> =
        (0..600).map(|i| (f64::from(i) + 0.5).mul_add(std::f64::consts::TAU / 600.0, -std::f64::consts::PI)).collect();
    let high: Vec<f64> = phi.iter().map(|&phi| if phi > 0.0 { -20.0 } else { 0.0 }).collect();
    let (mut clashing, mut collapsed) = (wave(4.0), wave(3000.0));
    clashing[..8].fill(1e7);
    collapsed[0] = 5000.0;
    let series = json!([
        { "name": "MD", "reduced_potential": wave(4.0) },
        { "name": "generator", "reduced_potential": clashing },
        { "name": "high", "phi": phi, "log_weight": high },
        { "name": "collapsed", "log_weight": collapsed, "n": 500 },
    ]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]);
    let figure = |name: &str| std::fs::read_to_string(path(name)).unwrap();
    // the line ends where F leaves the axis
    assert_eq!(curves(&figure("free_energy.svg")).concat().len(), 30);
    let energy = figure("energy.svg");
    assert!(energy.contains("generator, 2.0 % beyond") && !energy.contains("MD,"), "clashes are told");
    let there: Vec<[f64; 2]> = curves(&energy)[0].iter().copied().filter(|point| point[1] < 380.0).collect();
    assert!(spread(&there, 0) > 300.0, "and leave the reference its room");
    let weights = figure("log_weights.svg");
    assert!(weights.contains("collapsed: ESS 0.2 %, k = ∞, 100 rejected"), "{weights}");
    assert!(spread(&curves(&weights)[1], 1) > 5.0, "weights far below the largest are on the axis");
}

#[test]
fn free_energies_show_their_errors_also_where_a_bin_stands_alone() {
    let folder = folder("errors");
    let path = |name: &str| folder.join(name).display().to_string();
    // one bin with most of the frames, and two of ten each far from it and from each other
    let phi = [vec![-1.0; 400], vec![1.0; 10], vec![2.0; 10]].concat();
    let mut collapsed = vec![-40.0; 420];
    collapsed[..2].fill(0.0);
    let series = json!([
        { "name": "lone", "phi": phi, "log_weight": vec![0.0; 420] },
        { "name": "collapsed", "phi": phi, "log_weight": collapsed },
        { "name": "line", "phi": (0..420).map(|i| -1.0 + 1e-3 * f64::from(i)).collect::<Vec<_>>(), "log_weight": vec![0.0; 420] },
    ]);
    std::fs::write(path("series.json"), json!({ "series": series }).to_string()).unwrap();
    modejump(&["plot", &path("series.json"), "-o", &path("")]);
    let figure = std::fs::read_to_string(path("free_energy.svg")).unwrap();
    let bars: Vec<&str> = figure.split("<polyline").skip(1).filter(|bar| bar.contains("stroke-width=\"3\"")).collect();
    let heights: Vec<f64> = bars
        .iter()
        .map(|bar| {
            let points = bar.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
            let y: Vec<f64> =
                points.split_whitespace().map(|p| p.split(',').nth(1).unwrap().parse().unwrap()).collect();
            y[1] - y[0]
        })
        .collect();
    // of ten frames F is known to 2 · 10^-1/2 kT either way, and of the axis of some 4 kT that is a good part
    assert!(heights.len() == 3 && heights[1] > 50.0 && heights[2] > 50.0, "{heights:?}");
    assert_eq!(figure.matches("<polygon").count(), 1, "a band where there is a line");
    assert!(figure.contains("collapsed, no errors: &lt; 5 effective samples"), "{figure}");
    assert_eq!(figure.matches("no errors").count(), 1);
}

#[test]
fn the_figure_of_a_training_shows_every_point() {
    let folder = folder("training");
    let path = |name: &str| folder.join(name).display().to_string();
    let figure = |log: &str| {
        modejump(&["plot", "--log", log, "-o", &path("")]);
        std::fs::read_to_string(path("training.svg")).unwrap()
    };
    let heights = |svg: &str| -> Vec<f64> {
        let of = |tag: &str| tag.split("cy=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        svg.split("<circle").skip(1).map(of).collect()
    };
    let svg = figure("models/ala2/training.jsonl");
    // 1, 18 and 17 of -log q, 18 of each share
    let points = heights(&svg);
    assert_eq!(points.len(), 72);
    // one of training frames alone, and the first of held-out frames, the highest, below the upper edge of the frame
    let highest = points.iter().copied().fold(f64::MAX, f64::min);
    assert!(highest > 50.0 && !svg.contains("beyond"), "{highest}");
    // a map's training has energies alone, and a log without a step nothing to show
    let line = json!({ "step": 5, "rate": 1e-3, "likelihood": null, "reverse_kl": 3.0, "refinement": null, "gradient_norm": 1.0,
        "held_out": null, "ess": null, "pareto_k": null, "acceptance": null });
    std::fs::write(path("map.jsonl"), line.to_string()).unwrap();
    let map = figure(&path("map.jsonl"));
    assert!(
        map.contains("reverse KL of samples") && !map.contains("training frames") && heights(&map).len() == 1,
        "{map}"
    );
    std::fs::write(path("empty.jsonl"), "").unwrap();
    assert!(refused("cpu", &["plot", "--log", &path("empty.jsonl"), "-o", &path("")]).contains("no step of a training"));
    // curves that rise have their legend below
    let legend = svg.split("<text").find(|text| text.contains("effective sample size")).unwrap();
    let y: f64 = legend.split(" y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    assert!(y > 570.0, "{y}");
    // what is far away is told, and not drawn
    let text = std::fs::read_to_string("models/ala2/training.jsonl").unwrap();
    std::fs::write(path("wild.jsonl"), text.replacen("-215.0336", "914.0336", 1)).unwrap();
    let svg = figure(&path("wild.jsonl"));
    assert!(svg.contains("−log q of training frames, 1 of 1 points beyond"), "{svg}");
    assert!(svg.contains("\n−log q of held-out frames\n") && heights(&svg).len() == 71, "{svg}");
}

/// What a run that must fail said.
fn refused(device: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    let output =
        command.current_dir(env!("CARGO_MANIFEST_DIR")).env("MODEJUMP_DEVICE", device).args(arguments).output();
    let output = output.unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    let said = refused("", &["sample", MODEL, "-o", "nowhere.dcd", "--device", "toaster"]);
    assert!(said.contains("\"toaster\" is unknown; give cpu, auto, cuda or cuda:N"), "{said}");
    // no machine has a hundred GPUs; most have no driver either
    let said = refused("cuda:99", &["log-density", MODEL, "nothing.dcd", "-o", "nowhere.safetensors"]);
    let reason = ["libcuda", "GPU 99 was asked for", "feature `cuda`", "the NVIDIA driver"];
    assert!(said.contains("MODEJUMP_DEVICE") && reason.iter().any(|r| said.contains(r)), "{said}");
    let samples = folder("device").join("x.dcd").display().to_string();
    assert_eq!(json_of(&["--device", "auto", "sample", MODEL, "-n", "2", "--json", "-o", &samples])["n"], 2);
}
