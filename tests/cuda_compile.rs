//! Every kernel compiled for every generation of cards, by nvcc and by NVRTC, without a GPU: no error, no warning, no
//! register spilled, nothing left out. `scripts/nvcc.sh` installs both compilers; without them this says that it is skipped.

use modejump::device::{program, Program};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;

#[path = "support/networks.rs"]
mod networks;
#[path = "support/wheels.rs"]
mod wheels;

/// Architectures that nvcc compiles together: one translation for the first, and machine code for each.
const ARCHITECTURES: [&[&str]; 5] = [&["75"], &["80", "86", "89"], &["90"], &["100"], &["120"]];
/// In every translation of a program there are as many of each, since none depends on the card, but for code that some
/// compilers write twice: where one has taken code for never reached, many are missing, and nothing else tells.
const LANDMARKS: [&str; 4] = ["bar.sync", "ld.acquire", "red.release", "shfl.sync"];
/// Share of the landmarks of another translation that all have.
const PRESENT: f64 = 0.85;
/// How many of each a program has, in the translation that was seen first.
type Seen = Mutex<BTreeMap<String, [usize; LANDMARKS.len()]>>;
/// What runs at the same time.
type Job<'a> = Box<dyn FnOnce() -> Result<String, String> + Send + 'a>;

fn main() -> ExitCode {
    let wheels = wheels::folder();
    if !wheels.join("bin/nvcc").exists() {
        println!(
            "cuda_compile: SKIPPED, {} is not there; scripts/nvcc.sh installs it",
            wheels.join("bin/nvcc").display()
        );
        return ExitCode::SUCCESS;
    }
    let asked = |mode: &str| std::env::args().any(|argument| argument == mode);
    if asked("--nvrtc") {
        return nvrtc();
    }
    if asked("--kept") {
        return kept();
    }
    // names of sources, for a part of them: cargo test --test cuda_compile graphormer_ebm
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |program: &Program| names.is_empty() || names.iter().any(|name| name == program.name);
    let programs: Vec<Program> = program::all().into_iter().filter(wanted).collect();
    let pairs = programs.iter().flat_map(|program| ARCHITECTURES.map(|a| (program, architectures_for(program, a))));
    let pairs = pairs.filter(|(_, architectures)| !architectures.is_empty());
    let seen = Seen::default();
    let (seen, compiler) = (&seen, &wheels);
    let mut jobs: Vec<Job> = pairs.map(|(program, a)| Box::new(|| nvcc(compiler, program, a, seen)) as Job).collect();
    if names.is_empty() {
        jobs.push(Box::new(|| at_run_time(&wheels)));
    }
    match all_of(jobs) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// The jobs from the last to the first, as many at a time as there are cores; whether all went well.
fn all_of(jobs: Vec<Job>) -> bool {
    let (jobs, failed) = (Mutex::new(jobs), AtomicBool::new(false));
    let next = || jobs.lock().unwrap().pop();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let report = job();
                    failed.fetch_or(report.is_err(), Ordering::Relaxed);
                    println!("{}", report.unwrap_or_else(|e| e));
                }
            });
        }
    });
    !failed.into_inner()
}

/// NVRTC, in processes of their own: with the library, without it but with what it has left, and `modejump compile`.
fn at_run_time(wheels: &Path) -> Result<String, String> {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_cache");
    let _ = std::fs::remove_dir_all(&cache);
    // NVRTC is looked for by the dynamic linker, whose path is fixed when a process starts
    let run = |command: &mut Command, library: bool| {
        let command = command.env("MODEJUMP_CUDA", wheels).env("MODEJUMP_CACHE", &cache);
        let command = if library { command.env("LD_LIBRARY_PATH", wheels.join("lib")) } else { command };
        command.status().is_ok_and(|status| status.success())
    };
    let this = || Command::new(std::env::current_exe().unwrap());
    match run(this().arg("--nvrtc"), true) && run(this().arg("--kept"), false) && ahead_of_time(run) {
        true => Ok("NVRTC: all of its programs, kept, and ahead of time".into()),
        false => Err("NVRTC: FAILED".into()),
    }
}

/// `modejump compile`, for files of all kinds of kernels but TarFlows'.
fn ahead_of_time(run: impl Fn(&mut Command, bool) -> bool) -> bool {
    let compile = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modejump"));
        run(command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("compile").args(arguments), true)
    };
    let (_, bytes) = networks::all().into_iter().find(|(kind, _)| *kind == "gvp_ebm").unwrap();
    let gvp_ebm = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gvp_ebm.safetensors");
    std::fs::write(&gvp_ebm, bytes).unwrap();
    let models = [
        "models/ala2/model.safetensors",
        "models/ala2/gvp-flow.safetensors",
        "models/ala2/invariant-ebm.safetensors",
        "models/double-well/steerable.safetensors",
        gvp_ebm.to_str().unwrap(),
    ];
    compile(&[&models[..], &["--architecture", "sm_90"]].concat())
        && !compile(&["models/ala2/model.safetensors", "--architecture", "sm_12"])
}

fn has(program: &Program, name: &str, value: &str) -> bool {
    program.constants.iter().any(|constant| (constant.0, constant.1.as_str()) == (name, value))
}

fn is_double(program: &Program) -> bool {
    has(program, "REAL", "double")
}

/// Networks in f64 are the reference path: two architectures will do. Tensor cores that take TF32 came with sm_80, and
/// what is between has the registers of one of these.
fn architectures_for(program: &Program, together: &'static [&'static str]) -> &'static [&'static str] {
    let tensor = has(program, "TENSOR", "1");
    match together[0] {
        "75" | "100" if tensor => &[],
        "80" if tensor => &together[..1],
        "90" => together,
        "80" | "100" | "120" if is_double(program) => &[],
        _ => together,
    }
}

fn title(program: &Program, architectures: &str) -> String {
    let constants: Vec<String> = program.definitions().map(|d| d.replace("-D", "")).collect();
    format!("{}.cu {} {architectures}", program.name, constants.join(" "))
}

/// Registers of every kernel, or what is wrong.
fn nvcc(wheels: &Path, program: &Program, architectures: &[&str], seen: &Seen) -> Result<String, String> {
    let codes: Vec<String> = architectures.iter().map(|a| format!("sm_{a}")).collect();
    let title = title(program, &codes.join(" "));
    let name = program.hash("nvcc");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_compile").join(format!("{name}-{}", codes[0]));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("kernel.cu");
    std::fs::write(&file, &program.source).unwrap();
    let mut command = Command::new(wheels.join("bin/nvcc"));
    command.args(["-O3", "-std=c++17", "-fatbin", "-Xptxas", "-v,-warn-spills", "-o", "/dev/null"]);
    // headers are pasted in, so what a source does not use of them would be called unused
    command.arg("-diag-suppress=177");
    command.arg("-keep").arg("-keep-dir").arg(&folder);
    command.arg(format!("-gencode=arch=compute_{},code=[{}]", architectures[0], codes.join(",")));
    command.args(program.definitions()).arg(&file);
    let output = command.output().map_err(|e| format!("{title}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let registers: Vec<&str> = said.split("Used ").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
    let spills = said
        .lines()
        .any(|line| line.contains("spill stores") && !line.contains(" 0 bytes spill stores, 0 bytes spill loads"));
    let missing = registers.is_empty() || registers.len() % architectures.len() != 0;
    if !output.status.success() || said.contains("warning") || spills || missing {
        return Err(format!("{title}: FAILED\n{said}"));
    }
    let ptx = std::fs::read_to_string(folder.join("kernel.ptx")).map_err(|e| format!("{title}: no PTX: {e}"))?;
    let landmarks = LANDMARKS.map(|landmark| ptx.matches(landmark).count());
    let first = *seen.lock().unwrap().entry(name).or_insert(landmarks);
    let _ = std::fs::remove_dir_all(&folder);
    let fits = |(a, b): (&usize, &usize)| *a.min(b) as f64 >= PRESENT * *a.max(b) as f64;
    if !landmarks.iter().zip(&first).all(fits) {
        return Err(format!(
            "{title}: FAILED, its PTX has {landmarks:?} of {LANDMARKS:?}, and for another card {first:?}"
        ));
    }
    Ok(format!("{title}: {} registers, no spills", registers.join(" and ")))
}

/// What users' machines do at run time, without a look at what was kept.
#[cfg(feature = "cuda")]
fn nvrtc() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    // one variant of each source, since nvcc has seen them all
    let mut programs = program::all();
    programs.retain(|program| !is_double(program));
    programs.dedup_by_key(|program| program.name);
    if let Err(error) = modejump::device::compile::keep_cubin(&programs[0], "sm_90") {
        println!("{error}");
        code = ExitCode::FAILURE;
    }
    for program in programs {
        for architecture in ["sm_75", "sm_90"] {
            let title = title(&program, architecture);
            match modejump::device::compile::compile(&program, architecture) {
                Ok(cubin) => println!("{title}: NVRTC, {} kB", cubin.len().div_ceil(1000)),
                Err(error) => {
                    println!("{title}: FAILED: {error}");
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    code
}

/// What `nvrtc` has kept is found without the library, and nothing else is.
#[cfg(feature = "cuda")]
fn kept() -> ExitCode {
    use modejump::device::compile::{compile, load};
    let program = program::all().into_iter().find(|program| !is_double(program)).unwrap();
    let code = |architecture| load(&program, architecture, |code| Ok(code.to_vec()));
    match (code("sm_90"), code("sm_75"), compile(&program, "sm_90")) {
        (Ok(_), Err(said), Err(_)) if said.to_string().contains("modejump compile") => ExitCode::SUCCESS,
        (Ok(_), Ok(_), Ok(_)) => {
            println!("cuda_compile: SKIPPED a machine without NVRTC: this one has it");
            ExitCode::SUCCESS
        }
        (kept, other, _) => {
            println!("without NVRTC: {:?} and {:?}", kept.map(|_| "found"), other.map(|_| "found"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn kept() -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(not(feature = "cuda"))]
fn nvrtc() -> ExitCode {
    println!("cuda_compile: NVRTC SKIPPED, this build is without the feature `cuda`");
    ExitCode::SUCCESS
}
