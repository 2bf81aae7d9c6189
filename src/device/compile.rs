//! Run-time compilation of kernels by NVRTC, specialised for one model's sizes and one card, with a cache of files.
//!
//! The cache is `$MODEJUMP_CACHE`, else `$XDG_CACHE_HOME/modejump`, else `~/.cache/modejump`; each file name has a hash
//! of everything that determines the code, and the compiler's version. A folder that cannot be written to costs only
//! time. Without NVRTC, or with one that is too old for the card or too new for its driver, files that another machine
//! has put there are used, whatever its compiler (`ahead.rs`).

use super::Program;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// What the compiler is told besides the architecture and the program's constants.
const STANDARD: &str = "--std=c++17";

/// Passes the machine code of a program for an architecture such as `sm_90` to `load`. A cached file that it refuses
/// (damaged, say) is written anew; if nothing that it accepts compiles here, all matching files are tried. Errors: those
/// of compilation and of `load`.
pub fn load<T>(program: &Program, architecture: &str, load: impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    let name = name(program, architecture);
    load_own(program, architecture, &name, &load).or_else(|reason| {
        let mut tried = kept_by_any(&name).map(|code| load(&code));
        match tried.next() {
            Some(Ok(loaded)) => Ok(loaded),
            Some(refused) => tried.find(Result::is_ok).unwrap_or(if has_library() { Err(reason) } else { refused }),
            None => Err(reason),
        }
    })
}

/// As [`load`], with the code of this machine's compiler.
fn load_own<T>(program: &Program, architecture: &str, name: &str, load: &impl Fn(&[u8]) -> Result<T>) -> Result<T> {
    guard_library()?;
    let file = file(name)?;
    if let Some(loaded) = file.as_ref().and_then(|file| kept(file)).and_then(|code| load(&code).ok()) {
        return Ok(loaded);
    }
    let code = compile(program, architecture)?;
    let loaded = load(&code)?;
    if let Some(file) = file {
        // if this fails, the next run just compiles again
        let _ = keep(&file, &code);
    }
    Ok(loaded)
}

/// Path of the file with the machine code of a program, which is compiled if absent. Errors: no cache folder, or one
/// that cannot be written to; those of compilation.
pub fn keep_cubin(program: &Program, architecture: &str) -> Result<PathBuf> {
    let Some(file) = file(&name(program, architecture))? else {
        return Err(Error::invalid("could not find a cache folder for compiled kernels; set MODEJUMP_CACHE"));
    };
    if kept(&file).is_none() {
        keep(&file, &compile(program, architecture)?)?;
    }
    Ok(file)
}

/// Start of the name of a program's file.
fn name(program: &Program, architecture: &str) -> String {
    format!("{}-{}-", program.name, program.hash(&format!("{architecture} {STANDARD}")))
}

/// Cache file of the local compiler for names starting with `name`.
fn file(name: &str) -> Result<Option<PathBuf>> {
    let (major, minor) = version()?;
    Ok(cache().map(|folder| folder.join(format!("{name}nvrtc{major}.{minor}.cubin"))))
}

/// Cached code from any compiler, the last by name first.
fn kept_by_any(name: &str) -> impl Iterator<Item = Vec<u8>> {
    let entries = cache().and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten();
    let fits = |path: &PathBuf| {
        let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        file.starts_with(name) && file.ends_with(".cubin")
    };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(fits).collect();
    files.sort_unstable();
    files.into_iter().rev().filter_map(|file| kept(&file))
}

/// Compiles without looking at the cache. Errors: no NVRTC, or the compiler's messages.
pub fn compile(program: &Program, architecture: &str) -> Result<Vec<u8>> {
    guard_library()?;
    let failed = |what: &str, e: result::NvrtcError| Error::Engine(format!("{what} {}.cu: {e}", program.name));
    let source = CString::new(program.source.as_str()).map_err(|e| Error::invalid(e.to_string()))?;
    let handle = result::create_program(&source, None).map_err(|e| failed("NVRTC could not read", e))?;
    let target = target(architecture, &supported());
    let mut options = vec![format!("--gpu-architecture={target}"), STANDARD.to_string()];
    options.extend(program.definitions());
    // SAFETY: the handle was just made, and is destroyed once, below; `source` outlives it.
    let compiled = unsafe { result::compile_program(handle, &options) };
    let code = match compiled {
        Ok(()) => read_cubin(handle).map_err(|e| failed("NVRTC returned no machine code for", e)),
        Err(_) => Err(Error::Engine(format!(
            "NVRTC could not compile {}.cu for {architecture}: {}",
            program.name,
            log(handle).trim()
        ))),
    };
    // SAFETY: as above.
    let _ = unsafe { result::destroy_program(handle) };
    code
}

/// Architecture to compile for, as this compiler may be older than the card: a card runs code made for an earlier minor
/// version of its own major version. `known` are numbers such as 90. If nothing fits, the card's own, which the
/// compiler will refuse.
fn target(architecture: &str, known: &[i32]) -> String {
    let number: i32 = architecture.trim_start_matches("sm_").parse().unwrap_or(0);
    let fits = known.iter().filter(|&&other| other / 10 == number / 10 && other <= number);
    fits.max().map_or(architecture.into(), |best| format!("sm_{best}"))
}

/// Architectures that this compiler supports.
fn supported() -> Vec<i32> {
    let mut count = 0;
    // SAFETY: writes to a number, then to as many as it says.
    unsafe {
        if sys::nvrtcGetNumSupportedArchs(&mut count).result().is_err() {
            return Vec::new();
        }
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        match sys::nvrtcGetSupportedArchs(known.as_mut_ptr()).result() {
            Ok(()) => known,
            Err(_) => Vec::new(),
        }
    }
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

/// Major and minor version of the compiler. Errors: NVRTC's.
pub(super) fn version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes to two numbers.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    status.result().map_err(|e| Error::Engine(format!("could not get the version of NVRTC: {e}")))?;
    Ok((major, minor))
}

/// Whether NVRTC can be opened.
fn has_library() -> bool {
    // SAFETY: opens the library, which has no side effects.
    unsafe { sys::is_culib_present() }
}

/// Looks for the library first, as cudarc would panic without it, or without functions that an old one lacks. Errors: it
/// is missing or too old.
pub(super) fn guard_library() -> Result<()> {
    const OLDEST: (i32, i32) = (11, 2);
    if has_library() {
        return match version()? {
            known if known >= OLDEST => Ok(()),
            (major, minor) => Err(Error::Unsupported(format!(
                "NVRTC {major}.{minor} is too old: {}.{} or later compiles kernels for the GPU; install it (`pip install \
                 nvidia-cuda-nvrtc`) and put the folder with libnvrtc.so at the front of LD_LIBRARY_PATH, or use device cpu",
                OLDEST.0, OLDEST.1
            ))),
        };
    }
    Err(Error::Unsupported(
        "could not find libnvrtc, which compiles kernels for the GPU; install it (`pip install nvidia-cuda-nvrtc`, or \
         the CUDA toolkit) and add the folder with libnvrtc.so to LD_LIBRARY_PATH, compile the model's kernels on a \
         machine that has it (`modejump compile`), or use device cpu"
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

/// Machine code in a file, if it is complete.
fn kept(file: &Path) -> Option<Vec<u8>> {
    std::fs::read(file).ok().filter(|bytes| is_whole(bytes))
}

/// Whether both tables named in an ELF file's header lie within it. The driver is not told the length of the code, and
/// would read beyond the end of a partially copied file.
fn is_whole(file: &[u8]) -> bool {
    let number = |place: usize, bytes: usize| {
        let field = file.get(place..place + bytes)?;
        Some(field.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte)))
    };
    let is_within = |offset: usize, size: usize| {
        let end = number(size, 2)?.checked_mul(number(size + 2, 2)?)?.checked_add(number(offset, 8)?)?;
        Some(end <= file.len() as u64)
    };
    file.starts_with(b"\x7fELF") && [(0x20, 0x36), (0x28, 0x3a)].iter().all(|&(o, s)| is_within(o, s) == Some(true))
}

fn keep(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::create_dir_all(file.parent().unwrap_or(file)).map_err(|e| Error::io(file, e))?;
    crate::io::write_atomically(file, bytes)
}

#[cfg(test)]
mod tests {
    use super::{is_whole, target};

    #[test]
    fn a_card_that_is_newer_than_the_compiler_gets_what_it_runs() {
        let known = [75, 80, 86, 89, 90, 100, 120];
        for (card, code) in
            [("sm_90", "sm_90"), ("sm_88", "sm_86"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("sm_110", "sm_110")]
        {
            assert_eq!(target(card, &known), code);
        }
        assert_eq!(target("sm_90", &[]), "sm_90");
    }

    #[test]
    fn code_that_was_copied_in_part_is_none() {
        let mut code = vec![0_u8; 200];
        code[..4].copy_from_slice(b"\x7fELF");
        assert!(is_whole(&code));
        // two sections of 64 bytes, starting at 72
        (code[0x28], code[0x3a], code[0x3c]) = (72, 64, 2);
        assert!(is_whole(&code) && !is_whole(&code[..199]) && !is_whole(&code[..40]) && !is_whole(&[]));
        code[0x2f] = 255;
        assert!(!is_whole(&code));
    }
}
