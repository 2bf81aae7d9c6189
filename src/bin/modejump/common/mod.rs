//! Code shared by several subcommands.

mod arrays;
mod flags;
mod hands;
mod models;
mod progress;
mod report;
#[cfg(feature = "openmm")]
mod systems;
mod torsions;

pub use arrays::*;
pub use flags::*;
pub use hands::*;
pub use models::*;
pub use progress::Progress;
pub use report::*;
#[cfg(feature = "openmm")]
pub use systems::*;
pub use torsions::*;

use modejump::io::{behind_links, checkpoint, model_file, read_text, remove_leftovers, without_mark};
use modejump::{Error, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// Set by SIGINT, SIGTERM and SIGHUP.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Signals within this time count as one request: `timeout` and job schedulers signal a process and its group.
const TOGETHER: Duration = Duration::from_secs(1);

/// Installs signal handlers: from now on the first SIGINT, SIGTERM or (unless it is ignored) SIGHUP sets
/// [`interrupted`], and a later one ends the program. Errors: a second call.
pub fn watch_signals() -> Result<()> {
    let mut first = None;
    #[cfg(unix)]
    let ignored = ignores_hangups();
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::Relaxed);
        if first.get_or_insert_with(Instant::now).elapsed() > TOGETHER {
            std::process::exit(130); // asked twice
        }
    })
    .map_err(|e| Error::invalid(format!("could not install the signal handler: {e}")))?;
    #[cfg(unix)]
    if ignored {
        ignore_hangups();
    }
    Ok(())
}

/// Whether SIGHUP was ignored when the program started, as under `nohup`.
#[cfg(unix)]
fn ignores_hangups() -> bool {
    // SAFETY: only asks; zeros are a valid `sigaction`.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &mut now) == 0 && now.sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(unix)]
fn ignore_hangups() {
    // SAFETY: an ignored signal runs no code.
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_IGN);
    }
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Locks a checkpoint for this process until it ends, by a file beside it: two runs with the same checkpoint, such as a
/// job and its requeued copy, would overwrite each other's. Errors: another process has it.
pub fn claim(checkpoint: &Path) -> Result<()> {
    // no lock file is left beside a file of another kind, which is refused when it is read
    if checkpoint::is_other_file(checkpoint) {
        return Ok(());
    }
    let mut beside = behind_links(checkpoint).into_os_string();
    beside.push(".lock");
    // if no file can be created there, writing the checkpoint will report it; some file systems have no locks
    let Ok(file) = File::create(&beside) else { return Ok(()) };
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(Error::file(checkpoint, "another modejump process is using this checkpoint"));
    }
    std::mem::forget(file);
    remove_leftovers(checkpoint);
    Ok(())
}

/// Reads a JSON file. Errors: also a file that cannot be read, or is not text.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_text(path)?)
}

/// Parses the text of a JSON file. Errors: text that is not JSON; invalid content, with its place.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    use serde_json::error::Category;
    serde_json::from_str(without_mark(text)).map_err(|e| match e.classify() {
        Category::Data => Error::file(path, e.to_string()),
        _ => Error::file(path, format!("expected JSON: {e}")),
    })
}

/// Settings in the text of a JSON file; what a section leaves out is as in the default of the whole, which may differ
/// from that of the section's type. Errors: those of [`parse_json`].
pub fn parse_settings<T: Default + Serialize + DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    parse_json::<T>(path, text)?; // tells the line of what is wrong
    let error = |e: serde_json::Error| Error::file(path, e.to_string());
    let mut settings = serde_json::to_value(T::default()).map_err(error)?;
    overlay(&mut settings, parse_json(path, text)?);
    serde_json::from_value(settings).map_err(error)
}

/// Objects take up the keys of `given`; all else is replaced.
fn overlay(settings: &mut Value, given: Value) {
    match (settings, given) {
        (Value::Object(settings), Value::Object(given)) => {
            given.into_iter().for_each(|(key, value)| overlay(settings.entry(key).or_insert(Value::Null), value))
        }
        (settings, given) => *settings = given,
    }
}

/// Hash of the contents of a file.
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(model_file::hash(&modejump::io::read(path)?))
}
