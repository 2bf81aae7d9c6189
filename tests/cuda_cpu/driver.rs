//! A machine that runs kernels on the CPU: `fibres.h` makes C++ of their source, every launch is one run of that
//! program.

use modejump::device::{Driver, KernelId, Program, Reading};
use modejump::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// What watches over the program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sanitizer {
    None,
    /// Addresses and undefined behaviour.
    Address,
    /// Data races.
    Thread,
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_cpu")
}

impl Sanitizer {
    /// g++ with what it is always told.
    fn compiler(self) -> Command {
        let mut command = Command::new("g++");
        command.args(["-std=c++17", "-Wall", "-Wextra", "-Winvalid-pch"]);
        command.args(["-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-clobbered"]);
        command.args(match self {
            Sanitizer::None => &["-O2"][..],
            Sanitizer::Address => &["-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
            Sanitizer::Thread => &["-g1", "-O1", "-fsanitize=thread"],
        });
        command
    }

    /// A copy of `fibres.h` with its precompiled form beside it, made once: a third of the time that a kernel takes to
    /// compile.
    fn precompiled(self) -> PathBuf {
        static MADE: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
        let make = || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda_cpu/header-{self:?}"));
            fs::create_dir_all(&folder).unwrap();
            let header = folder.join("fibres.h");
            fs::copy(here().join("fibres.h"), &header).unwrap();
            let mut command = self.compiler();
            command.args(["-x", "c++-header"]).arg(&header).arg("-o").arg(folder.join("fibres.h.gch"));
            assert!(command.status().unwrap().success(), "{command:?}");
            header
        };
        MADE[self as usize].get_or_init(make).clone()
    }

    /// The program, compiled once for all tests and kept for later runs. Errors: what the compiler refuses, and its
    /// warnings unless the program is `faulty`.
    fn compiled(self, program: &Program, faulty: bool) -> Result<PathBuf> {
        static MADE: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_cpu/programs");
        let compiler = format!("{:?} {} {}", self.compiler(), include_str!("fibres.h"), include_str!("launcher.h"));
        let binary = folder.join(format!("{}-{}", program.name, program.hash(&compiler)));
        let guard = MADE.lock().unwrap().entry(binary.clone()).or_default().clone();
        let _alone = guard.lock().unwrap();
        if binary.exists() {
            return Ok(binary);
        }
        fs::create_dir_all(&folder).unwrap();
        // on the command line they would come before the header, which is compiled without them
        let define = |(name, value): &(&str, String)| format!("#define {name} {value}\n");
        let constants: String = program.constants.iter().map(define).collect();
        let (file, begun) = (binary.with_extension("cu"), binary.with_extension("begun"));
        fs::write(&file, constants + &program.source).unwrap();
        let mut command = self.compiler();
        command.arg("-include").arg(self.precompiled()).arg("-include").arg(&file);
        command.args(["-x", "c++"]).arg(here().join("launcher.h")).arg("-o").arg(&begun);
        let output = command.output().map_err(|e| Error::Engine(format!("g++: {e}")))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() || (!faulty && said.contains("warning")) {
            return Err(Error::Engine(format!("{command:?}\n{said}")));
        }
        fs::rename(&begun, &binary).unwrap();
        Ok(binary)
    }
}

pub struct Fibres {
    folder: PathBuf,
    sanitizer: Sanitizer,
    shared_memory: usize,
    multiprocessors: usize,
    tensor_cores: bool,
    /// (what to look for, what to put there), applied to the source: planted faults.
    faults: Vec<(&'static str, &'static str)>,
    /// The program that has them; all where it is none.
    faulty: Option<&'static str>,
    watchdog: bool,
    /// Order of warps and lanes.
    pub seed: AtomicU32,
    kernels: Mutex<Vec<(PathBuf, String)>>,
    memory: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Fibres {
    pub fn new(name: &str, sanitizer: Sanitizer) -> Fibres {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_cpu").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Fibres {
            folder,
            sanitizer,
            shared_memory: 227 << 10,
            multiprocessors: 2,
            tensor_cores: false,
            faults: Vec::new(),
            faulty: None,
            watchdog: false,
            seed: AtomicU32::new(1),
            kernels: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    /// With every `from` in the source replaced by `to`.
    pub fn with_fault(mut self, from: &'static str, to: &'static str) -> Fibres {
        self.faults.push((from, to));
        self
    }

    /// With faults in this one of a model's programs alone.
    pub fn only_in(self, program: &'static str) -> Fibres {
        Fibres { faulty: Some(program), ..self }
    }

    /// As a card with a display.
    pub fn with_watchdog(self) -> Fibres {
        Fibres { watchdog: true, ..self }
    }

    /// With so many bytes of shared memory a block instead of those of an H100.
    pub fn with_shared_memory(self, shared_memory: usize) -> Fibres {
        Fibres { shared_memory, ..self }
    }

    /// With so many multiprocessors instead of two.
    pub fn with_multiprocessors(self, multiprocessors: usize) -> Fibres {
        Fibres { multiprocessors, ..self }
    }

    /// With tensor cores.
    pub fn with_tensor_cores(self) -> Fibres {
        Fibres { tensor_cores: true, ..self }
    }

    /// The program with this driver's faults, compiled.
    fn compile(&self, program: &Program) -> Result<PathBuf> {
        let faults = if self.faulty.is_none_or(|name| name == program.name) { &self.faults[..] } else { &[] };
        let mut program = program.clone();
        for (from, to) in faults {
            assert!(program.source.contains(from), "the planted fault does not fit: {from:?}");
            program.source = program.source.replace(from, to);
        }
        self.sanitizer.compiled(&program, !faults.is_empty())
    }

    fn run(&self, binary: &Path, launch: &Path, result: &Path) -> Command {
        // The thread sanitizer wants its addresses where they are without randomisation.
        let mut command = match self.sanitizer {
            Sanitizer::Thread => Command::new("setarch"),
            _ => Command::new(binary),
        };
        if self.sanitizer == Sanitizer::Thread {
            command.arg("-R").arg(binary).env("TSAN_OPTIONS", "halt_on_error=1:exitcode=66");
        }
        command.arg(launch).arg(result);
        command
    }

    /// One run of a kernel. `shape`: grid, block, bytes of shared memory, whether all blocks are there at once.
    fn start(&self, kernel: KernelId, shape: [u32; 4], argument: &[u8]) -> Result<()> {
        let (binary, name) = self.kernels.lock().unwrap()[kernel.0].clone();
        let mut memory = self.memory.lock().unwrap();
        let (launch, result) = (self.folder.join("launch"), self.folder.join("result"));
        let mut file = std::io::BufWriter::new(File::create(&launch).unwrap());
        let (seed, n) = (self.seed.load(Ordering::Relaxed), argument.len());
        let [grid, block, shared, together] = shape;
        writeln!(file, "{name} {grid} {block} {shared} {seed} {together} {} {n}", memory.len()).unwrap();
        for (address, bytes) in memory.iter() {
            file.write_all(&address.to_le_bytes()).unwrap();
            file.write_all(&(bytes.len() as u64).to_le_bytes()).unwrap();
            file.write_all(bytes).unwrap();
        }
        file.write_all(argument).unwrap();
        file.into_inner().unwrap();
        let mut command = self.run(&binary, &launch, &result);
        let output = command.output().map_err(|e| Error::Engine(format!("{command:?}: {e}")))?;
        if !output.status.success() {
            return Err(Error::Engine(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let bytes = fs::read(&result).unwrap();
        let mut rest = &bytes[..];
        for buffer in memory.values_mut() {
            let (contents, others) = rest.split_at(buffer.len());
            buffer.copy_from_slice(contents);
            rest = others;
        }
        Ok(())
    }
}

impl Driver for Fibres {
    fn describe(&self) -> String {
        "kernels on the CPU".into()
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

    fn has_watchdog(&self) -> bool {
        self.watchdog
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn kernel(&self, program: &Program, name: &str) -> Result<KernelId> {
        let binary = self.compile(program)?;
        let mut kernels = self.kernels.lock().unwrap();
        kernels.push((binary, name.to_string()));
        Ok(KernelId(kernels.len() - 1))
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut memory = self.memory.lock().unwrap();
        // as no pointer and no number looks
        let address = memory.keys().last().map_or(0x5a5a_0000_0000_0000, |last| last + (1 << 32));
        memory.insert(address, vec![0xff; bytes]);
        Ok(address)
    }

    fn free(&self, address: u64) {
        assert!(self.memory.lock().unwrap().remove(&address).is_some(), "freed twice, or never allocated");
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.memory.lock().unwrap().get_mut(&address).unwrap()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn download(&self, readings: &mut [Reading]) -> Result<()> {
        let memory = self.memory.lock().unwrap();
        for (address, bytes) in readings.iter_mut().filter(|(_, bytes)| !bytes.is_empty()) {
            bytes.copy_from_slice(&memory[address][..bytes.len()]);
        }
        Ok(())
    }

    unsafe fn launch(&self, kernel: KernelId, grid: u32, block: u32, shared: usize, argument: &[u8]) -> Result<()> {
        self.start(kernel, [grid, block, shared as u32, 0], argument)
    }

    /// Two for each multiprocessor.
    fn resident(&self, _: KernelId, _: u32, _: usize) -> Result<usize> {
        Ok(2 * self.multiprocessors())
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
        self.start(kernel, [grid, block, shared as u32, 1], argument)
    }
}
