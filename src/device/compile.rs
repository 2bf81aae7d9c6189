//! Kernels from source at run time, by NVRTC: specialised for one model's sizes and one card, kept in files.
//!
//! The files lie in `$MODEJUMP_CACHE`, else `$XDG_CACHE_HOME/modejump`, else `~/.cache/modejump`; each is named after a hash
//! of everything that made it. A folder that cannot be written to costs only time.

use super::Program;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;
use std::path::PathBuf;

/// The machine code of a program for an architecture such as `sm_90`.
pub fn cubin(program: &Program, architecture: &str) -> Result<Vec<u8>> {
    guard_library()?;
    let compiler = format!("nvrtc {} {architecture}", version()?);
    let file = cache().map(|folder| folder.join(format!("{}-{}.cubin", program.name, program.hash(&compiler))));
    if let Some(bytes) = file.as_ref().and_then(|file| std::fs::read(file).ok()).filter(|bytes| is_elf(bytes)) {
        return Ok(bytes);
    }
    let bytes = compile(program, architecture)?;
    if let Some(file) = file {
        keep(&file, &bytes);
    }
    Ok(bytes)
}

/// Compiles, without a look at what was kept.
pub fn compile(program: &Program, architecture: &str) -> Result<Vec<u8>> {
    guard_library()?;
    let failed = |what: &str, e: result::NvrtcError| Error::Engine(format!("{what} {}.cu: {e}", program.name));
    let source = CString::new(program.source.as_str()).map_err(|e| Error::invalid(e.to_string()))?;
    let handle = result::create_program(&source, None).map_err(|e| failed("NVRTC cannot read", e))?;
    let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_string()];
    options.extend(program.definitions());
    // SAFETY: the handle was just made, and is destroyed once, below; `source` outlives it.
    let compiled = unsafe { result::compile_program(handle, &options) };
    let code = match compiled {
        Ok(()) => read_cubin(handle).map_err(|e| failed("NVRTC gives no machine code of", e)),
        Err(_) => Err(Error::Engine(format!(
            "NVRTC cannot compile {}.cu for {architecture}: {}",
            program.name,
            log(handle).trim()
        ))),
    };
    // SAFETY: as above.
    let _ = unsafe { result::destroy_program(handle) };
    code
}

fn read_cubin(handle: sys::nvrtcProgram) -> std::result::Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the handle is live; `code` has the size that the library asks for.
    unsafe {
        sys::nvrtcGetCUBINSize(handle, &mut size).result()?;
        let mut code = vec![0_u8; size];
        sys::nvrtcGetCUBIN(handle, code.as_mut_ptr().cast()).result()?;
        Ok(code)
    }
}

fn log(handle: sys::nvrtcProgram) -> String {
    // SAFETY: the handle is live.
    let log = unsafe { result::get_program_log(handle) }.unwrap_or_default();
    log.into_iter().map(|c| c as u8 as char).filter(|&c| c != '\0').collect()
}

fn version() -> Result<String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two numbers to write to.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    status.result().map_err(|e| Error::Engine(format!("NVRTC does not tell its version: {e}")))?;
    Ok(format!("{major}.{minor}"))
}

/// cudarc panics where the library is not there, so it is looked for first.
fn guard_library() -> Result<()> {
    // SAFETY: opens the library, which has no side effects.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Unsupported(
        "libnvrtc, which compiles kernels for the GPU, is not found; install it (`pip install nvidia-cuda-nvrtc`, or the CUDA \
         toolkit) and put the folder with libnvrtc.so into LD_LIBRARY_PATH, or use the device cpu"
            .into(),
    ))
}

fn cache() -> Option<PathBuf> {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = from("MODEJUMP_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|folder| folder.join("modejump")))
        .or_else(|| from("HOME").map(|folder| folder.join(".cache/modejump")))?;
    Some(folder.join("kernels"))
}

fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// Written aside and renamed, so that nobody reads half a file. Failure only means that the next run compiles again.
fn keep(file: &std::path::Path, bytes: &[u8]) {
    let aside = file.with_extension(format!("{}.part", std::process::id()));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(file.parent().unwrap_or(file))?;
        std::fs::write(&aside, bytes)?;
        std::fs::rename(&aside, file)
    };
    if write().is_err() {
        let _ = std::fs::remove_file(&aside);
    }
}
