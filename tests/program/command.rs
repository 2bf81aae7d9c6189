//! The program, run in the root of the repository, and the files that it reads and writes.

use modejump::io::model_file::{read_tensors, write_tensors, Data, Tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const MODEL: &str = "models/ala2/model.safetensors";
pub const SYSTEM: &str = "models/ala2/system.xml";
pub const TOPOLOGY: &str = "models/ala2/topology.pdb";

/// The program with these arguments.
pub fn modejump(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments);
    command
}

/// Runs that must end as a test expects.
pub trait Run {
    /// What a run that succeeds writes to standard output and to standard error.
    fn texts(&mut self) -> [String; 2];

    /// What a run that fails writes to standard error.
    fn fails(&mut self) -> String;

    /// What a run that succeeds writes to standard output.
    fn succeeds(&mut self) -> String {
        let [text, _] = self.texts();
        text
    }

    /// What a run that succeeds prints with `--json`, which is added here.
    fn json(&mut self) -> Value;
}

impl Run for Command {
    fn texts(&mut self) -> [String; 2] {
        let output = self.output().unwrap();
        assert!(output.status.success(), "{self:?}\n{}", String::from_utf8_lossy(&output.stderr));
        [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.arg("--json").succeeds()).unwrap()
    }

    fn fails(&mut self) -> String {
        let output = self.output().unwrap();
        assert!(!output.status.success(), "{self:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A run that gets a signal, such as `TERM`, after what is waited for.
pub fn interrupted(command: &mut Command, name: &str, wait: impl FnOnce()) -> Output {
    let run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait();
    signal(&run, name);
    run.wait_with_output().unwrap()
}

/// Sends a signal to a run, which may be over but has not been waited for.
pub fn signal(run: &Child, name: &str) {
    let arguments = [format!("-{name}"), run.id().to_string()];
    assert!(Command::new("kill").args(arguments).status().unwrap().success());
}

/// What a run says on standard error that is interrupted and then says `told`. A run that was over, or too far, before the signal
/// came does not; then `run`, which must begin anew, is repeated.
pub fn interrupted_in_time(told: &str, run: impl Fn() -> Output) -> String {
    let mut said = String::new();
    for _ in 0..5 {
        let output = run();
        said = String::from_utf8(output.stderr).unwrap();
        if !output.status.success() && said.contains(told) {
            return said;
        }
    }
    panic!("no run was interrupted: {said}");
}

/// Waits until a run beside the test has done something, two minutes at most.
pub fn wait_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(120), "two minutes have gone by");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// An empty folder of this name, which begins with the test's module.
pub fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("program").join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// What files in such a folder are called.
pub fn files(name: &str) -> impl Fn(&str) -> String {
    let folder = folder(name);
    move |name| folder.join(name).to_str().unwrap().to_string()
}

/// Tensors of a safetensors file.
pub fn tensors(path: impl AsRef<Path>) -> BTreeMap<String, Tensor> {
    let name = path.as_ref().display().to_string();
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    read_tensors(&name, &bytes).unwrap().0
}

/// Writes tensors into a safetensors file.
pub fn write<S: Into<String>>(path: impl AsRef<Path>, tensors: impl IntoIterator<Item = (S, Tensor)>) {
    let tensors = tensors.into_iter().map(|(name, t)| (name.into(), (t.shape, Data::F64(t.data)))).collect();
    std::fs::write(path, write_tensors(&tensors, Default::default()).unwrap()).unwrap();
}

/// A tensor of such a shape.
pub fn tensor(shape: &[usize], data: impl Into<Vec<f64>>) -> Tensor {
    Tensor { shape: shape.to_vec(), data: data.into() }
}

/// NaN if there is one.
pub fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f64::total_cmp).unwrap()
}

/// What a JSON file says.
pub fn document(path: impl AsRef<Path>) -> Value {
    let name = path.as_ref().display().to_string();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The objects of a log, one a line.
pub fn log(path: impl AsRef<Path>) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The number at a place in a document, such as `bias/kl`.
pub fn number(document: &Value, place: &str) -> f64 {
    let found = document.pointer(&format!("/{place}")).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no {place} in {document}"))
}
