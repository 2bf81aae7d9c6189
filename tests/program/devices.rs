//! Devices, architectures and benchmarks.

use crate::command::{files, folder, modejump, number, Run, MODEL};
use serde_json::{json, Value};

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    let said = modejump(&["sample", MODEL, "-o", "nowhere.dcd", "--device", "toaster"]).fails();
    assert!(said.contains("unknown device \"toaster\"; known devices: cpu, auto, cuda, cuda:N"), "{said}");
    // no machine has a hundred GPUs; most have no driver either
    let said = modejump(&["log-density", MODEL, "nothing.dcd", "-o", "nowhere.safetensors"])
        .env("MODEJUMP_DEVICE", "cuda:99")
        .fails();
    let reason = ["libcuda", "GPU 99 is not available", "feature `cuda`", "the NVIDIA driver"];
    assert!(said.contains("MODEJUMP_DEVICE") && reason.iter().any(|r| said.contains(r)), "{said}");
    let seen = modejump(&["--device", "cuda:99", "inspect", MODEL]).env("MODEJUMP_DEVICE", "cuda:99").succeeds();
    assert!(seen.contains("coupling"), "{seen}");
    let samples = files("devices-any")("x.dcd");
    assert_eq!(modejump(&["--device", "auto", "sample", MODEL, "-n", "2", "-o", &samples]).json()["n"], 2);
}

#[test]
#[cfg(feature = "cuda")]
fn help_names_every_architecture_that_is_accepted() {
    // whatever the device, of which there need be none here
    let message = modejump(&["--device", "cuda:99", "compile", MODEL, "--architecture", "sm_12"]).fails();
    let names = message.split("known architectures: ").nth(1).unwrap().trim().split(", ");
    let help = modejump(&["compile", "--help"]).succeeds();
    // as words, since sm_10 is the beginning of sm_100
    let words: Vec<&str> = help.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    assert!(names.clone().count() > 5);
    names.for_each(|name| assert!(words.contains(&name), "{name}: {help}"));
}

#[test]
fn a_benchmark_is_an_object_a_line() {
    let text = modejump(&["bench", "--json", "--threads", "1", "coupling/sample", "coupling/log_density"]).succeeds();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert!(line["name"].as_str().unwrap().starts_with("coupling/"));
        assert_eq!((&line["size"], &line["device"], &line["threads"]), (&json!("ala2"), &json!("cpu"), &json!(1)));
        assert!(["batch", "ms_per_sample", "gflops"].iter().all(|name| number(&line, name) > 0.0), "{line}");
    }
}

#[test]
fn benchmarks_of_shipped_models_are_left_out_where_these_are_not() {
    let mut command = modejump(&["bench", "--threads", "1", "gvp_flow/sample"]);
    let [_, told] = command.current_dir(folder("devices-bench")).texts();
    assert!(told.contains("gvp_flow/sample is skipped"), "{told}");
}
