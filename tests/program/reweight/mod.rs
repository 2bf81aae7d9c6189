//! `reweight`: weights of samples by their energies.

mod energies;
mod report;
mod surrogate;

use crate::command::{document, files, folder, modejump, number, Run, MODEL, SYSTEM, TOPOLOGY};
use crate::{steerable, tarflow};
use modejump::io::trajectory::{self, Frames};
use modejump::models::layout::Start;
use modejump::models::network::Trainable;
use modejump::models::tarflow::{format, TarFlowConfig, TarNetwork};
use modejump::models::{ModelCard, ModelConfig};
use modejump::rng::{Stream, StreamId};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn reweight(more: &[&str]) -> Command {
    modejump(&[&["reweight", MODEL, "--system", SYSTEM, "--seed", "3"], more].concat())
}

#[test]
fn a_state_may_begin_below_zero() {
    let summary = reweight(&["-n", "200", "--state", "-2,0"]).json();
    assert!(number(&summary, "ess") > 0.0, "{summary}");
}

/// With samples of the generator itself, resampled to the ensemble, and without those of a state that it then seems to
/// hardly ever draw.
#[test]
fn frames_of_the_ensemble_tell_what_samples_cover() {
    let folder = folder("reweight-frames");
    let [run, mirror] = ["run.safetensors", "mirror.npy"].map(|name| folder.join(name).display().to_string());
    modejump(&[
        "md",
        "--topology",
        TOPOLOGY,
        "--system",
        SYSTEM,
        "--model",
        MODEL,
        "-n",
        "8000",
        "--record",
        "10",
        "-o",
        &run,
    ])
    .succeeds();
    let summary = reweight(&["-n", "2000", "--frames", &run]).json();
    let [log_z, error, alone] = ["frames/log_z", "frames/log_z_stderr", "log_z"].map(|key| number(&summary, key));
    assert!(error > 0.0 && error < 0.05 && (log_z - alone).abs() < 0.15, "{summary}");
    assert!((0.4..=1.0).contains(&number(&summary, "frames/ess")), "{summary}");
    assert!(summary["frames"]["n"] == 800 && summary["frames"]["outside_support"] == 0, "{summary}");
    assert!(number(&summary, "frames/state_population") < 0.2, "{summary}");
    let series = folder.join("series.json").display().to_string();
    let text = reweight(&["-n", "2000", "--frames", &run, "-o", &series]).succeeds();
    let document: Value = serde_json::from_str(&std::fs::read_to_string(&series).unwrap()).unwrap();
    let [of_samples, of_frames] = [0, 1].map(|i| &document["series"][i]);
    assert_eq!([&of_samples["name"], &of_frames["name"]], ["model", "run"]);
    assert!(of_frames["phi"].as_array().unwrap().len() == 800 && of_frames["log_weight"].is_null(), "{of_frames}");
    assert!(text.contains("800 of ") && !text.contains("are missing among"), "{text}");
    // in vacuum the frames have other energies than those they were recorded with
    let [_, told] = reweight(&["-n", "20", "--frames", &run]).texts();
    assert!(!told.contains("the energies recorded"), "{told}");
    let vacuum = "models/ala2/system-vacuum.xml";
    let [_, told] = modejump(&["reweight", MODEL, "--system", vacuum, "-n", "20", "--frames", &run]).texts();
    assert!(told.contains("run.safetensors: the energies recorded with the frames differ"), "{told}");
    let other = reweight(&["-n", "20", "--temperature", "310", "--frames", &run]).fails();
    assert!(other.contains("run.safetensors: has frames at 300 K, but the weights are for 310 K"), "{other}");
    // the other hand has no density at all
    let x = trajectory::read(Path::new(&run)).unwrap();
    let mirrored = Frames::new(66, [x.x.clone(), x.x.iter().map(|v| -v).collect()].concat());
    trajectory::write(Path::new(&mirror), &mirrored, None, &[]).unwrap();
    let text = reweight(&["-n", "2000", "--frames", &mirror]).succeeds();
    assert!(
        text.contains("800 of them are outside") && text.contains("50.00 % of the frames\n(configurations"),
        "{text}"
    );
}

/// Sixteen walkers by turns, each eight frames at every place: errors are those of the walkers' own series.
#[test]
fn frames_of_walkers_by_turns_are_no_series() {
    let path = files("reweight-walkers");
    let [places, sorted, turns, mixed] =
        ["places", "sorted", "turns", "mixed"].map(|name| path(&format!("{name}.safetensors")));
    modejump(&["sample", MODEL, "-n", "400", "--seed", "9", "-o", &places]).succeeds();
    let x = trajectory::read(Path::new(&places)).unwrap().x;
    let write = |file: &str, of: &dyn Fn(usize) -> usize, extra: &[(&str, &[f64])]| {
        let x = (0..3200).flat_map(|i| &x[66 * of(i)..][..66]).copied().collect();
        trajectory::write(Path::new(file), &Frames::new(66, x), None, extra).unwrap();
    };
    let by_turns = |i: usize| 25 * (i % 16) + i / 128;
    let walker: Vec<f64> = (0..3200).map(|i| (i % 16) as f64).collect();
    write(&sorted, &|i| i / 8, &[]);
    write(&turns, &by_turns, &[("walker", &walker), ("production", &[1.0; 3200])]);
    write(&mixed, &by_turns, &[]);
    let [of_sorted, of_turns, of_mixed] =
        [&sorted, &turns, &mixed].map(|file| reweight(&["-n", "500", "--frames", file]).json());
    for key in ["frames/log_z_stderr", "frames/state_population_stderr"] {
        assert_eq!(number(&of_sorted, key), number(&of_turns, key), "{key}");
    }
    let [error, wrong] = [&of_turns, &of_mixed].map(|found| number(found, "frames/state_population_stderr"));
    assert!(error > 1.5 * wrong, "{error} {wrong}");
}

#[test]
fn a_state_that_no_frame_shows_has_no_error() {
    let path = files("reweight-unseen");
    let frames = path("frames.npy");
    modejump(&["sample", MODEL, "-n", "50", "-o", &frames]).succeeds();
    let nowhere = r#"{"along": {"distance": [0, 21]}, "range": [9.0, 10.0]}"#;
    let run = || reweight(&["-n", "200", "--frames", &frames, "--state", nowhere]);
    let found = run().json();
    assert_eq!(number(&found, "frames/state_population"), 0.0);
    assert!(found["frames"]["state_population_stderr"].is_null(), "{found}");
    let text = run().succeeds();
    assert!(text.contains("P(state)        0.00 ± ? % of the frames") && text.contains("all outside"), "{text}");
}

/// Averages over frames of `adapt` are those of its production.
#[test]
fn frames_for_training_are_no_sample_of_the_ensemble() {
    let path = files("reweight-training");
    let [samples, training] = ["samples", "training"].map(|name| path(&format!("{name}.safetensors")));
    modejump(&["sample", MODEL, "-n", "20", "-o", &samples]).succeeds();
    let frames = trajectory::read(Path::new(&samples)).unwrap();
    let half: Vec<f64> = (0..20).map(|i| f64::from(i / 10)).collect();
    for (extra, text) in [
        ([("production", &[0.0; 20][..]), ("hot", &half)], "10 of 20 frames have `hot` = 1: they come from replicas"),
        ([("production", &half[..]), ("hot", &[0.0; 20])], "10 of 20 frames have `production` = 0: they were recorded"),
    ] {
        trajectory::write(Path::new(&training), &frames, None, &extra).unwrap();
        let message = reweight(&["-n", "1000000000", "--frames", &training]).fails();
        assert!(message.contains(text) && message.contains("use frames of a production"), "{message}");
    }
}

/// The torsion of the default state, named by its atoms, and a distance; a molecule without a backbone has states, too.
#[test]
fn a_state_may_be_a_region_of_any_torsion() {
    let of = |state: &str| reweight(&["-n", "200", "--state", state]).json();
    let (phi, region) = (of("0,2.2"), of(r#"{"along": {"torsion": [4, 6, 8, 14]}, "range": [0.0, 2.2]}"#));
    assert_eq!(phi["delta_f_kT"], region["delta_f_kT"]);
    let population = number(&phi, "state_population");
    assert_eq!(population, number(&region, "state_population"));
    let delta_f = -(population / (1.0 - population)).ln();
    assert!((number(&phi, "delta_f_kT") - delta_f).abs() < 1e-9, "{phi}");
    let everywhere = of(r#"{"along": {"distance": [0, 21]}, "range": [0.0, 9.0]}"#);
    assert!((number(&everywhere, "state_population") - 1.0).abs() < 1e-9 && everywhere["delta_f_kT"].is_null());
    assert!(everywhere["state_population_stderr"].is_null(), "{everywhere}");
    for wrong in ["1,x,2", "x,0,2.2", "1.0,2.0deg,2.1", "1"] {
        let message = reweight(&["-n", "10", "--state", wrong]).fails();
        assert!(message.contains("expected two numbers"), "{wrong}: {message}");
    }
    let [model, system] = steerable::files(&folder("reweight-region"));
    let mut command =
        modejump(&["reweight", "-n", "2000", "--state", r#"{"along": {"component": 0}, "range": [-0.1, 0.1]}"#]);
    let summary = command.arg(&model).arg("--system").arg(&system).json();
    // within a standard deviation of the normal density that the well has
    let [population, error] = ["state_population", "state_population_stderr"].map(|key| number(&summary, key));
    assert!(error < 0.05 && (population - 0.6827).abs() < 5.0 * error, "{population} {error}");
}

#[test]
fn energies_are_those_of_the_platform() {
    let on = |platform: &str| reweight(&["-n", "200", "--platform", platform]);
    let [double, single] = ["Reference", "CPU"].map(|platform| number(&on(platform).json(), "log_z"));
    assert!(double != single && (double - single).abs() < 1e-3, "{double} {single}");
    let message = on("Abacus").fails();
    assert!(message.contains("Abacus"), "{message}");
}

/// Four atoms with springs between all of them, σ = 0.8/6 nm, whose ln Z is known; a TarFlow that depends on the
/// orientation, and frames of the ensemble.
#[test]
fn samples_and_frames_of_a_tarflow_have_densities_over_the_same_rotations() {
    const SIGMA: f64 = 0.8 / 6.0;
    let folder = folder("reweight-rotated-frames");
    let [model, system, frames] = ["tarflow.safetensors", "springs.xml", "frames.npy"].map(|name| folder.join(name));
    let config = TarFlowConfig { tokens: 4, token_size: 3, channels: 8, blocks: 2, layers: 1, heads: 2, expansion: 2 };
    let network = TarNetwork::new(config.clone()).unwrap();
    let uneven = |name: &str, _: &[usize]| name.contains("proj_out").then_some(Start::Within(0.3));
    let stream = |id| Stream::new(4, StreamId::Test, id, 0);
    let parameters: Vec<f32> = network.layout().initialise(&mut stream(0), uneven);
    let card = ModelCard::of_cartesian(ModelConfig::Tarflow(format::config(config, 6.0)), 12);
    let card = ModelCard { temperature: Some(300.0), ..card };
    std::fs::write(&model, format::to_bytes(&card, &network, &parameters).unwrap()).unwrap();
    let k = 0.00831446261815324 * 300.0 / (4.0 * SIGMA * SIGMA);
    let bond = |(i, j): (usize, usize)| format!(r#"<Bond d="0" k="{k}" p1="{i}" p2="{j}"/>"#);
    let bonds: String = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)].map(bond).concat();
    let text = format!(
        r#"<?xml version="1.0" ?><System type="System" version="1"><PeriodicBoxVectors><A x="2" y="0" z="0"/><B x="0" y="2" z="0"/>
        <C x="0" y="0" z="2"/></PeriodicBoxVectors><Particles>{}</Particles><Constraints/><Forces><Force type="HarmonicBondForce"
        forceGroup="0" usesPeriodic="0" version="2"><Bonds>{bonds}</Bonds></Force></Forces></System>"#,
        r#"<Particle mass="12"/>"#.repeat(4)
    );
    std::fs::write(&system, text).unwrap();
    let mut noise = stream(1);
    let x: Vec<f64> = (0..12 * 2000).map(|_| SIGMA * noise.normal()).collect();
    trajectory::write(&frames, &Frames::new(12, x), None, &[]).unwrap();
    let summary = modejump(&["reweight", "-n", "4000", "--rotations", "8", "--system"])
        .args([&system, &model])
        .arg("--frames")
        .arg(&frames)
        .json();
    let exact = 4.5 * (std::f64::consts::TAU * SIGMA * SIGMA).ln();
    for found in [&summary, &summary["frames"]] {
        let [log_z, error] = ["log_z", "log_z_stderr"].map(|key| number(found, key));
        assert!((log_z - exact).abs() < 4.5 * error && error < 0.1, "{log_z} +- {error}, exact {exact}");
    }
}

#[test]
fn weights_of_a_tarflow_over_rotations_and_as_published() {
    let folder = folder("reweight-tarflow");
    let path = folder.join("tarflow.safetensors");
    tarflow::write(&path);
    let of = |more: &[&str]| modejump(&["reweight", "--system", SYSTEM, "-n", "20"]).arg(&path).args(more).json();
    let (plain, one, three) = (of(&[]), of(&["--rotations", "1"]), of(&["--rotations", "3"]));
    assert_eq!((&plain["log_z"], &plain["likelihood"]), (&one["log_z"], &one["likelihood"]));
    assert_eq!((&three["rotations"], &three["likelihood"]), (&Value::from(3), &Value::from("exact")));
    assert!(number(&three, "log_z") != number(&plain, "log_z"));
    let published = of(&["--centroid", "chi3"]);
    assert!(published["likelihood"] == "surrogate" && published.get("log_z").is_none(), "{published}");
    let refused = reweight(&["-n", "10", "--rotations", "2"]).fails();
    assert!(refused.contains("orientation of a molecule"), "{refused}");
    // the same atoms in a box
    let (periodic, system) =
        (folder.join("periodic.xml"), std::fs::read_to_string("models/ala2/system-vacuum.xml").unwrap());
    std::fs::write(&periodic, system.replace("method=\"0\"", "method=\"2\"")).unwrap();
    let mut command = modejump(&["reweight", "-n", "1000000", "--rotations", "2"]);
    let refused = command.arg(&path).arg("--system").arg(&periodic).fails();
    assert!(refused.contains("periodic.xml: the System is periodic"), "{refused}");
    let refused = reweight(&["-n", "10", "--centroid", "chi3"]).fails();
    assert!(refused.contains("for TarFlows"), "{refused}");
}

/// Three coordinates in a harmonic well: ⟨u⟩ = 3/2, whatever the auxiliary ones are, and ln Z is known.
#[test]
fn auxiliary_coordinates_are_no_part_of_the_energy() {
    let folder = folder("reweight-steerable");
    let ([model, system], output) = (steerable::files(&folder), folder.join("w.json"));
    let of = |more: &[&str]| {
        let mut command = modejump(&["reweight", "-n", "4000"]);
        command.arg(&model).arg("--system").arg(&system).arg("-o").arg(&output).args(more).json()
    };
    let plain = of(&[]);
    let document = document(&output);
    assert_eq!(document["series"][0]["name"], "steered");
    let both = of(&["--surrogate", model.to_str().unwrap()]);
    for summary in [&plain, &both["generator"], &both["surrogate"]] {
        let off = (number(summary, "u_mean") - 1.5) / number(summary, "u_stderr");
        assert!(off.abs() < 5.0 && number(summary, "u_stderr") < 0.1, "{summary}");
    }
    let log_z = 1.5 * (std::f64::consts::PI / 50.0).ln();
    for summary in [&plain, &both["generator"]] {
        let off = (number(summary, "log_z") - log_z) / number(summary, "log_z_stderr");
        assert!(off.abs() < 5.0, "{summary}: {log_z}");
    }
    assert!(number(&both, "bias/mean_log_c").abs() < 1e-6, "{both}");
}

/// A bond that one side keeps and the other varies is named; where both keep it, ln Z has the metric term.
#[test]
fn bonds_are_constrained_on_both_sides_or_on_none() {
    let run = |model: &str, system: &str| {
        let [model, system] = [format!("models/ala2/{model}.safetensors"), format!("models/ala2/{system}.xml")];
        modejump(&["reweight", &model, "--system", &system, "-n", "20"])
    };
    assert!(run("model-hbonds", "system").fails().contains("does not constrain it"));
    assert!(run("model", "system-hbonds").fails().contains("but the model varies it"));
    number(&run("model-hbonds", "system-hbonds").json(), "log_z");
}

/// Positions of an XTC file are rounded by more than a bond that the model keeps may differ; frames of a run without its
/// constraints are none of its ensemble, nor the reverse.
#[test]
fn bonds_that_a_file_has_rounded_are_those_of_the_model() {
    let path = files("reweight-rounded");
    let frames = |model: &str, name: &str| {
        let frames = path(name);
        modejump(&["sample", &format!("models/ala2/{model}.safetensors"), "-n", "200", "--seed", "5", "-o", &frames])
            .succeeds();
        frames
    };
    let run = |name: &str, frames: &str| {
        let [model, system] = ["model", "system"].map(|kind| format!("models/ala2/{kind}{name}"));
        let [model, system] = [format!("{model}.safetensors"), format!("{system}.xml")];
        modejump(&["reweight", &model, "--system", &system, "-n", "500", "--seed", "3", "--frames", frames])
    };
    let [exact, rounded] = ["rigid.safetensors", "rigid.xtc"].map(|name| frames("model-hbonds", name));
    let [json, told] = run("-hbonds", &rounded).arg("--json").texts();
    assert!(
        told.contains("rigid.xtc: positions are rounded: in ") && told.contains("were given their lengths"),
        "{told}"
    );
    let [found, expected]: [Value; 2] = [serde_json::from_str(&json).unwrap(), run("-hbonds", &exact).json()];
    assert_eq!(found["frames"]["outside_support"], 0, "{found}");
    let [a, b] = [&found, &expected].map(|summary| number(summary, "frames/log_z"));
    assert!((a - b).abs() < 0.05, "{a} {b}");

    let flexible = frames("model", "flexible.safetensors");
    let told = run("-hbonds", &flexible).fails();
    assert!(told.contains("flexible.safetensors: the model keeps ") && told.contains("in 200 of 200 frames"), "{told}");
    for frames in [&exact, &rounded] {
        let told = run("", frames).fails();
        assert!(told.contains("the frames keep ") && told.contains("in the model this distance varies"), "{told}");
    }
}

/// Before the first of a number of samples that no test waits for.
#[test]
fn what_cannot_be_meant_or_written_is_refused_at_once() {
    let folder = folder("reweight-outputs");
    let energy = folder.join("energy.safetensors");
    std::fs::copy(MODEL, &energy).unwrap();
    let energy = energy.to_str().unwrap();
    for (more, text) in [
        (&["--state", "0,120"][..], "both must be in radians"),
        (&["--state", "-180,0"], "radian"),
        (&["--state", "0,nan"], "radian"),
        (&["--state", "0"], "two numbers"),
        (
            &["--state", r#"{"along": {"torsion": [4, 6, 8, 22]}, "range": [0, 2]}"#],
            "--state: the reaction coordinate uses atom 22",
        ),
        (&["--state", r#"{"along": {"angle": [4, 6, 8]}, "range": [0, 2]}"#], "expected a region such as"),
        (&["-o", "nowhere/x.json"], "folder nowhere does not exist"),
        (&["-o", MODEL], "would overwrite"),
        (&["--surrogate", energy, "--calibrate", energy], "would overwrite"),
        (&["--surrogate", energy, "--calibrate", "x", "-o", "./x"], "would overwrite"),
    ] {
        let message = reweight(&[&["-n", "1000000000"], more].concat()).fails();
        assert!(message.contains(text), "{more:?}: {message}");
    }
    for more in [&[][..], &["--surrogate", MODEL]] {
        let message = reweight(&[&["-n", "0"], more].concat()).fails();
        assert!(message.contains("-n 0: "), "{message}");
    }
}

/// What was learned is told though it cannot be written.
#[cfg(target_os = "linux")]
/// φ named by its atoms.
#[test]
fn torsions_may_be_the_users_own() {
    let folder = folder("reweight-torsions");
    let of = |more: &[&str]| {
        let file = folder.join("series.json");
        let summary = reweight(&[&["-n", "200", "-o", file.to_str().unwrap()], more].concat()).json();
        let document: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        (summary, document["series"][0].clone())
    };
    let (usual, both) = of(&[]);
    let (summary, series) = of(&["--torsion", "4,6,8,14", "--state", "0,2.2"]);
    assert_eq!(summary["state"], "torsion 4,6,8,14 from 0 to 2.2");
    assert_eq!(summary["state_population"], usual["state_population"]);
    assert_eq!((&series["phi"], series["psi"].is_null()), (&both["phi"], true));
    let (summary, series) = of(&["--torsion", "6,8,14,16", "--torsion", "4,6,8,14"]);
    assert!(summary["state_population"].is_null() && summary["state"].is_null(), "{summary}");
    assert_eq!((&series["phi"], &series["psi"]), (&both["psi"], &both["phi"]));
    assert_eq!(series["axes"], serde_json::json!(["torsion 6,8,14,16", "torsion 4,6,8,14"]));
    for (wrong, reason) in [
        ("4,6,8", "four atom indices"),
        ("4,6,8,14,16", "four atom indices"),
        ("4,6,8,22", "atom 22 of 22"),
        ("4,6,8,4", "twice"),
    ] {
        let message = reweight(&["-n", "10", "--torsion", wrong]).fails();
        assert!(message.contains("--torsion") && message.contains(reason), "{message}");
    }
}

#[test]
fn a_full_disk_does_not_cost_the_summary() {
    let run = reweight(&["-n", "20", "-o", "/dev/full"]).output().unwrap();
    assert!(!run.status.success() && String::from_utf8_lossy(&run.stdout).contains("acceptance"), "{run:?}");
}

#[test]
fn a_state_without_a_backbone_is_refused() {
    let [model, system] = steerable::files(&folder("reweight-no-backbone"));
    let run = || {
        let mut command = modejump(&["reweight", "-n", "20"]);
        command.arg(&model).arg("--system").arg(&system);
        command
    };
    run().succeeds();
    let message = run().args(["--state", "0,2"]).fails();
    assert!(message.contains("--state requires a backbone φ"), "{message}");
}
