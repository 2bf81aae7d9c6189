//! `sample` and `log-density`: configurations, latent points, what is refused before the work.

use crate::command::{files, largest_difference, modejump, tensor, tensors, write, Run, MODEL, TOPOLOGY};
use crate::tarflow;
use modejump::io::model_file::Tensor;
use serde_json::json;
use std::path::Path;

#[test]
fn samples_of_a_tarflow_by_iteration_are_those_in_turn() {
    let path = files("sample-decoding");
    let (model, output) = (path("tarflow.safetensors"), path("x.safetensors"));
    tarflow::write(Path::new(&model));
    let sample = |model: &str, more: &[&str]| modejump(&[&["sample", model, "-n", "9", "-o", &output], more].concat());
    assert_eq!(sample(&model, &[]).texts()[1], "");
    let in_turn = tensors(&output);
    for (decoding, more) in [("jacobi", &[][..]), ("gauss-seidel", &["--segment", "5"])] {
        let [_, report] = sample(&model, &[&["--decoding", decoding], more].concat()).texts();
        assert!(report.starts_with("9 samples decoded iteratively") && report.contains(" 0 of them"), "{report}");
        let found = tensors(&output);
        assert!(largest_difference(&found["x"].data, &in_turn["x"].data) < 1e-5);
        assert!(largest_difference(&found["log_density"].data, &in_turn["log_density"].data) < 1e-3);
    }
    let [_, report] = sample(&model, &["--decoding", "jacobi", "--decoding-passes", "1"]).texts();
    assert!(report.contains(" 9 of them fell back to sequential decoding"), "{report}");
    let found = tensors(&output);
    assert_eq!((&found["x"].data, &found["log_density"].data), (&in_turn["x"].data, &in_turn["log_density"].data));
    let refused = sample(MODEL, &["--decoding", "jacobi"]).fails();
    assert!(refused.contains("only for TarFlows, not for a model of kind coupling"), "{refused}");
}

/// Samples have the noise of the centroid; configurations that are elsewhere get it, wherever they are.
#[test]
fn centroids_of_frames_are_drawn_for_a_model_that_has_noise_there() {
    let path = files("sample-centroids");
    let (model, samples, moved, output) =
        (path("tarflow.safetensors"), path("x.safetensors"), path("moved.safetensors"), path("q.safetensors"));
    tarflow::write(Path::new(&model));
    let f64_networks = ["--precision", "f64"];
    modejump(&[&["sample", &model, "-n", "9", "-o", &samples][..], &f64_networks].concat()).succeeds();
    let x = tensors(&samples);
    let log_q = |frames: &str, seed: &str| {
        modejump(&[&["log-density", &model, frames, "--seed", seed, "-o", &output][..], &f64_networks].concat())
            .succeeds();
        tensors(&output).remove("log_density").unwrap().data
    };
    assert!(largest_difference(&log_q(&samples, "1"), &x["log_density"].data) < 1e-7);
    let log_q_at = |shift: f64, seed: &str| {
        let data: Vec<f64> = x["x"].data.iter().map(|v| v + shift).collect();
        write(&moved, [("x", tensor(&x["x"].shape, data))]);
        log_q(&moved, seed)
    };
    let near = log_q_at(3.0, "1");
    assert!(largest_difference(&near, &log_q_at(-7.0, "1")) < 1e-7);
    assert!(largest_difference(&near, &log_q_at(3.0, "2")) > 1e-3);
    assert!(largest_difference(&near, &x["log_density"].data) < 20.0, "the centroid was taken for what it is not");
    // those of samples are theirs, however far a poor model puts them, unless they were centred since
    let with_log_q = |x: Vec<f64>, shape: &[usize]| {
        write(&moved, [("x", tensor(shape, x)), ("log_density", tensor(&[9], [0.0; 9]))]);
        log_q(&moved, "1")
    };
    let shape = x["x"].shape.clone();
    let far = with_log_q(x["x"].data.iter().map(|v| v + 3.0).collect(), &shape);
    assert!(far.iter().zip(&near).all(|(far, near)| *far < near - 100.0), "{far:?}");
    let rows = x["x"].data.chunks_exact(66);
    let centred = rows.flat_map(|x| {
        let mean: [f64; 3] = std::array::from_fn(|k| x.iter().skip(k).step_by(3).sum::<f64>() / 22.0);
        x.iter().enumerate().map(move |(i, v)| v - mean[i % 3]).collect::<Vec<_>>()
    });
    assert!(largest_difference(&near, &with_log_q(centred.collect(), &shape)) < 1e-7);
}

#[test]
fn log_densities_need_not_be_written() {
    let path = files("sample-summary");
    modejump(&["sample", MODEL, "-n", "5", "-o", &path("x.npy")]).succeeds();
    let of = |more: &[&str]| modejump(&[&["log-density", MODEL, &path("x.npy")], more].concat());
    let written = of(&["-o", &path("q.safetensors")]).succeeds();
    assert!(written.starts_with(&path("q.safetensors: 5 configurations, mean log q = ")), "{written}");
    assert_eq!(format!("{}{}", path("q.safetensors: "), of(&[]).succeeds()), written);
    assert_eq!(of(&[]).json()["output"], json!(null));
}

/// The other half is in tests/mpi.rs.
#[test]
#[cfg(not(feature = "mpi"))]
fn one_of_several_processes_without_mpi_is_refused() {
    let output = files("sample-processes")("x.npy");
    for variable in ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"] {
        let mut command = modejump(&["sample", MODEL, "-n", "1", "-o", &output]);
        let message = command.env(variable, "2").fails();
        assert!(message.contains("--features mpi"), "{message}");
        command.env(variable, "1").succeeds();
    }
}

#[test]
fn samples_have_the_density_that_log_density_finds_and_latent_points_give_them_back() {
    let path = files("sample-latent");
    let (samples, densities, again) = (path("x.safetensors"), path("q.safetensors"), path("again.safetensors"));
    let f64_networks = ["--precision", "f64"];

    let summary =
        modejump(&[&["sample", MODEL, "-n", "20", "--seed", "3", "-o", &samples][..], &f64_networks].concat()).json();
    assert_eq!((&summary["n"], &summary["outside_support"]), (&json!(20), &json!(0)));
    let summary = modejump(&[&["log-density", MODEL, &samples, "-o", &densities][..], &f64_networks].concat()).json();
    assert_eq!(summary["n"], 20);
    let (x, q) = (tensors(&samples), tensors(&densities));
    assert_eq!((x["x"].shape.as_slice(), x["log_density"].shape.as_slice()), (&[20, 22, 3][..], &[20][..]));
    assert!(largest_difference(&x["log_density"].data, &q["log_density"].data) < 1e-7);

    for command in ["sample", "log-density"] {
        modejump(&[&[command, MODEL, "--z", &densities, "-o", &again][..], &f64_networks].concat()).succeeds();
        let back = tensors(&again);
        for name in ["log_density", "log_det"] {
            assert!(largest_difference(&back[name].data, &q[name].data) < 1e-7, "{command}: {name}");
        }
    }
}

/// Samples of a steerable model at a temperature, weighed with its auxiliary coordinates: ⟨u⟩ is that of quadrature.
#[test]
fn a_steerable_model_is_sampled_at_a_temperature() {
    const STEERABLE: &str = "models/double-well/steerable.safetensors";
    let path = files("sample-steering");
    let (samples, densities) = (path("x.safetensors"), path("q.safetensors"));
    for kelvin in [300.0, 900.0] {
        let at = kelvin.to_string();
        modejump(&["sample", STEERABLE, "-n", "20000", "--temperature", &at, "-o", &samples]).succeeds();
        let drawn = tensors(&samples);
        assert_eq!(drawn["x"].shape, [20_000, 2]);
        assert_eq!(drawn["auxiliary"].shape, [20_000, 2]);
        modejump(&["log-density", STEERABLE, &samples, "--temperature", &at, "-o", &densities]).succeeds();
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
    let message = modejump(&["sample", MODEL, "-n", "1", "--temperature", "400", "-o", &samples]).fails();
    assert!(message.contains("cannot be used at another temperature"), "{message}");
}

#[test]
fn latent_points_of_another_shape_or_not_finite_are_refused() {
    let path = files("sample-latent-refused");
    modejump(&["sample", MODEL, "-n", "2", "-o", &path("x.npy")]).succeeds();
    modejump(&["log-density", MODEL, &path("x.npy"), "-o", &path("q.safetensors")]).succeeds();
    let z = tensors(path("q.safetensors")).remove("z").unwrap();
    let (n, latent) = (z.shape[0], z.shape[1]);
    let mut not_finite = z.data.clone();
    not_finite[latent + 3] = f64::NAN;
    for (shape, data, text) in [
        (vec![latent, n], z.data.clone(), format!("`z` has shape [{latent}, {n}], expected [n, {latent}]")),
        (vec![n * latent], z.data.clone(), format!("[{}]", n * latent)),
        (vec![n, latent], not_finite, "`z` contains NaN in point 2".into()),
    ] {
        write(path("z.safetensors"), [("z", Tensor { shape, data })]);
        for command in ["sample", "log-density"] {
            let message =
                modejump(&[command, MODEL, "--z", &path("z.safetensors"), "-o", &path("again.safetensors")]).fails();
            assert!(message.contains(&text), "{message}");
        }
    }
}

#[test]
fn no_configurations_have_no_mean() {
    let output = files("sample-none")("x.safetensors");
    let text = modejump(&["sample", MODEL, "-n", "0", "-o", &output]).succeeds();
    assert!(text.ends_with("0 configurations, no log q to average\n"), "{text}");
    assert!(modejump(&["sample", MODEL, "-n", "0", "-o", &output]).json()["mean_log_density"].is_null());
}

/// Before the first of a number of samples that no test waits for.
#[test]
fn samples_that_cannot_be_written_are_refused_at_once() {
    for (model, output, text) in [
        (MODEL, "nowhere/x.npy", "folder nowhere does not exist"),
        (MODEL, "x.mdcrd", "`mdcrd`"),
        ("models/double-well/generator.safetensors", "x.trr", "found 2 coordinates; use npy or safetensors"),
    ] {
        let message = modejump(&["sample", model, "-n", "1000000", "-o", output]).fails();
        assert!(message.contains(text), "{message}");
    }
    for (option, value) in [("-n", "-5"), ("--temperature", "-300")] {
        let message = modejump(&["sample", MODEL, option, value, "-o", "x.npy"]).fails();
        assert!(message.contains("'-5' for") || message.contains("cannot be used at another temperature"), "{message}");
    }
}

#[test]
fn log_densities_that_cannot_be_written_are_refused_at_once() {
    for (output, text) in [
        ("nowhere/q.safetensors", "folder nowhere does not exist"),
        ("q.npy", "written as safetensors"),
        ("q.json", "written as safetensors"),
        ("q.dcd", "written as safetensors"),
    ] {
        let message = modejump(&["log-density", MODEL, "no-frames.npy", "-o", output]).fails();
        assert!(message.contains(output) && message.contains(text), "{message}");
    }
}

/// By whatever name; what would have been written over stays as it is.
#[test]
fn an_output_that_is_an_input_is_refused() {
    let path = files("sample-apart");
    let (model, again) = (path("m.safetensors"), path("../sample-apart/m.safetensors"));
    let (x, figure) = (path("x.safetensors"), path("training.svg"));
    std::fs::copy(MODEL, &model).unwrap();
    std::fs::copy("models/ala2/training.jsonl", &figure).unwrap();
    modejump(&["sample", &model, "-n", "2", "-o", &x]).succeeds();
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
        let message = modejump(arguments).fails();
        assert!(message.contains("would overwrite") && message.contains("use another name"), "{message}");
    }
    assert!(before == bytes());
}

/// A continuous flow has density everywhere, but its solver may take too few steps.
#[test]
fn a_solver_that_gives_up_is_told_from_the_support() {
    let model = files("log-density-solver")("flow.safetensors");
    let mut bytes = std::fs::read("models/ala2/gvp-flow.safetensors").unwrap();
    let [steps, fewer] = [br#"\"max_steps\": 1000"#, br#"\"max_steps\":    2"#];
    let at = bytes.windows(steps.len()).position(|window| window == steps).unwrap();
    bytes[at..at + fewer.len()].copy_from_slice(fewer);
    std::fs::write(&model, bytes).unwrap();
    let run = || modejump(&["log-density", &model, TOPOLOGY]);
    let told = run().succeeds();
    assert!(told.contains("1 without a finite result") && told.contains("max_steps"), "{told}");
    assert!(!told.contains("outside the support"), "{told}");
    assert_eq!(run().json()["not_finite"], 1);
}
