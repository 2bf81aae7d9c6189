//! A machine that runs on the CPU what NVIDIA's compiler has made of kernels for a generation of cards: their PTX, which
//! is what comes out of its optimiser.

mod alu;
mod code;
mod faults;
mod machine;
mod parse;
mod tests;
mod text;
mod warp;

use code::Module;
use machine::{address_of, array_of, Arrays, Launch};
use modejump::device::{Driver, KernelId, Program, Reading};
use modejump::{Error, Result};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

#[path = "../../support/wheels.rs"]
mod wheels;

/// nvcc, and what it says of itself, for the names of what it made. Where there is none, that is said once, past the
/// captured output of tests.
fn compiler() -> Option<&'static (PathBuf, String)> {
    static FOUND: OnceLock<Option<(PathBuf, String)>> = OnceLock::new();
    let find = || {
        let nvcc = wheels::folder().join("bin/nvcc");
        if let Ok(said) = Command::new(&nvcc).arg("--version").output() {
            return Some((nvcc, String::from_utf8_lossy(&said.stdout).into_owned()));
        }
        let missing = format!("{} is not there; scripts/nvcc.sh installs it", nvcc.display());
        let _ = writeln!(io::stderr(), "cuda_cpu: SKIPPED the PTX of all kernels, {missing}");
        None
    };
    FOUND.get_or_init(find).as_ref()
}

pub struct Ptx {
    /// As in `compute_90`.
    architecture: &'static str,
    shared_memory: usize,
    multiprocessors: usize,
    tensor_cores: bool,
    /// A program's name, and (what to look for, what to put there) in its source: planted faults.
    faults: (&'static str, Vec<(&'static str, &'static str)>),
    kernels: Mutex<Vec<(Arc<Module>, usize)>>,
    arrays: Mutex<Arrays>,
    /// Instructions that were run, and launches.
    steps: AtomicU64,
    launches: AtomicU64,
}

impl Ptx {
    pub fn new(architecture: &'static str) -> Ptx {
        let kilobytes = match architecture {
            "75" => 64,
            "80" => 163,
            "90" | "100" => 227,
            _ => 99,
        };
        Ptx {
            architecture,
            shared_memory: kilobytes << 10,
            multiprocessors: 2,
            tensor_cores: false,
            faults: ("", Vec::new()),
            kernels: Mutex::default(),
            arrays: Mutex::default(),
            steps: AtomicU64::new(0),
            launches: AtomicU64::new(0),
        }
    }

    /// With every `from` in a program's source replaced by `to`.
    pub fn with_faults(self, program: &'static str, faults: &[(&'static str, &'static str)]) -> Ptx {
        Ptx { faults: (program, faults.to_vec()), ..self }
    }

    /// With so many multiprocessors instead of two.
    pub fn with_multiprocessors(self, multiprocessors: usize) -> Ptx {
        Ptx { multiprocessors, ..self }
    }

    pub fn with_tensor_cores(self) -> Ptx {
        Ptx { tensor_cores: true, ..self }
    }

    /// The program, compiled once for all tests, and kept for the next time that they run.
    fn module(&self, program: &Program) -> Result<Arc<Module>> {
        type Once = Arc<Mutex<Option<Arc<Module>>>>;
        static MODULES: Mutex<Option<HashMap<PathBuf, Once>>> = Mutex::new(None);
        let program = self.with_its_faults(program);
        let (nvcc, version) = compiler().ok_or_else(|| Error::Engine("nvcc is not there".into()))?;
        let name = format!("{}-{}.{}.ptx", program.name, program.hash(version), self.architecture);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_cpu/ptx").join(name);
        let once = MODULES.lock().unwrap().get_or_insert_default().entry(file.clone()).or_default().clone();
        let mut module = once.lock().unwrap();
        if let Some(module) = &*module {
            return Ok(module.clone());
        }
        if !file.exists() {
            translate(nvcc, &program, self.architecture, &file)?;
        }
        let text = fs::read_to_string(&file).unwrap();
        let parsed = parse::parse(&text).map_err(|said| Error::Engine(format!("{}: {said}", file.display())))?;
        Ok(module.insert(Arc::new(parsed)).clone())
    }

    fn with_its_faults(&self, program: &Program) -> Program {
        let (of, faults) = &self.faults;
        let mut program = program.clone();
        for (from, to) in faults.iter().filter(|_| program.name == *of) {
            assert!(program.source.contains(from), "the planted fault does not fit: {from:?}");
            program.source = program.source.replace(from, to);
        }
        program
    }

    fn start(&self, kernel: KernelId, shape: [u32; 2], shared: usize, argument: &[u8], together: bool) -> Result<()> {
        let (module, kernel) = self.kernels.lock().unwrap()[kernel.0].clone();
        let ([grid, threads], seed) = (shape, self.launches.fetch_add(1, Ordering::Relaxed));
        let launch = Launch { module: &module, kernel, grid, threads, shared, argument, together, seed };
        let steps = machine::run(&launch, &mut self.arrays.lock().unwrap()).map_err(Error::Engine)?;
        self.steps.fetch_add(steps, Ordering::Relaxed);
        Ok(())
    }
}

/// A file of PTX, whole or not at all.
fn translate(nvcc: &Path, program: &Program, architecture: &str, file: &Path) -> Result<()> {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    // other processes may do the same
    let [source, part] = ["cu", "part"].map(|end| file.with_extension(format!("{}.{end}", std::process::id())));
    fs::write(&source, &program.source).unwrap();
    let mut command = Command::new(nvcc);
    command.args(["-O3", "-std=c++17", "-ptx", "-diag-suppress=177"]).arg(format!("-arch=compute_{architecture}"));
    command.args(program.definitions()).arg(&source).arg("-o").arg(&part);
    let output = command.output().map_err(|e| Error::Engine(format!("{command:?}: {e}")))?;
    if !output.status.success() {
        return Err(Error::Engine(format!("{command:?}\n{}", String::from_utf8_lossy(&output.stderr))));
    }
    fs::remove_file(source).unwrap();
    fs::rename(part, file).unwrap();
    Ok(())
}

impl Driver for Ptx {
    fn describe(&self) -> String {
        format!("PTX of sm_{} on the CPU", self.architecture)
    }

    fn shared_memory(&self) -> usize {
        self.shared_memory
    }

    fn memory(&self) -> usize {
        16 << 30
    }

    fn tensor_cores(&self) -> bool {
        self.tensor_cores
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn kernel(&self, program: &Program, name: &str) -> Result<KernelId> {
        let module = self.module(program)?;
        let kernel = *module.names.get(name).ok_or_else(|| Error::Engine(format!("no kernel {name}")))?;
        let mut kernels = self.kernels.lock().unwrap();
        kernels.push((module, kernel));
        Ok(KernelId(kernels.len() - 1))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut arrays = self.arrays.lock().unwrap();
        arrays.push(Some(vec![0xff; bytes]));
        Ok(address_of(arrays.len() - 1))
    }

    fn free(&self, address: u64) {
        let array = self.arrays.lock().unwrap()[array_of(address)].take();
        assert!(array.is_some(), "freed twice, or never allocated");
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let mut arrays = self.arrays.lock().unwrap();
        arrays[array_of(address)].as_mut().unwrap()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, readings: &mut [Reading]) -> Result<()> {
        let arrays = self.arrays.lock().unwrap();
        for (address, bytes) in readings.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            bytes.copy_from_slice(&arrays[array_of(*address)].as_ref().unwrap()[..bytes.len()]);
        }
        Ok(())
    }

    unsafe fn launch(&self, kernel: KernelId, grid: u32, block: u32, shared: usize, argument: &[u8]) -> Result<()> {
        self.start(kernel, [grid, block], shared, argument, false)
    }

    /// Two for each multiprocessor.
    fn resident(&self, _: KernelId, _: u32, _: usize) -> Result<usize> {
        Ok(2 * self.multiprocessors)
    }

    unsafe fn launch_together(
        &self,
        kernel: KernelId,
        grid: u32,
        block: u32,
        shared: usize,
        argument: &[u8],
    ) -> Result<()> {
        assert!(grid as usize <= self.resident(kernel, block, shared)?, "{grid} blocks are too many at once");
        self.start(kernel, [grid, block], shared, argument, true)
    }
}
