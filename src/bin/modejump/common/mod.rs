//! What several subcommands share.

mod arrays;
mod flags;
mod models;
mod progress;
mod report;
#[cfg(feature = "openmm")]
mod systems;
mod torsions;

pub use arrays::*;
pub use flags::*;
pub use models::*;
pub use progress::Progress;
pub use report::*;
#[cfg(feature = "openmm")]
pub use systems::*;
pub use torsions::*;

use modejump::io::{checkpoint, model_file, read_text, without_mark};
use modejump::{Error, Result};
use serde::de::DeserializeOwned;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Time between two checkpoints.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// Set by SIGINT and SIGTERM.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Signals that come together are one request: `timeout`, and what ends jobs, signal a process and its group.
const TOGETHER: Duration = Duration::from_secs(1);

/// From now on the first SIGINT or SIGTERM is for [`interrupted`] to tell, and one that comes later ends the program.
/// Errors: a second call.
pub fn watch_signals() -> Result<()> {
    let mut first = None;
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::Relaxed);
        if first.get_or_insert_with(Instant::now).elapsed() > TOGETHER {
            std::process::exit(130); // asked twice
        }
    })
    .map_err(|e| Error::invalid(format!("signals cannot be handled: {e}")))
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Takes a checkpoint for this process until its end, by a file beside it: of two runs with one, such as a job and the
/// one that was queued again, each would write over the other's. Errors: another process has it.
pub fn claim(checkpoint: &Path) -> Result<()> {
    // beside a file of another kind, which is refused when it is read, nothing is left
    if checkpoint::is_other_file(checkpoint) {
        return Ok(());
    }
    let mut beside = checkpoint.as_os_str().to_owned();
    beside.push(".lock");
    // where no file can be made there, the checkpoint's own writing tells; some file systems know no locks
    let Ok(file) = File::create(&beside) else { return Ok(()) };
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(Error::file(checkpoint, "another modejump is at work with this checkpoint"));
    }
    std::mem::forget(file);
    Ok(())
}

/// What a JSON file holds. Errors: also one that cannot be read, or is no text.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(path, &read_text(path)?)
}

/// What the text of a JSON file holds. Errors: text of another kind; what is wrong in it, and where.
pub fn parse_json<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T> {
    use serde_json::error::Category;
    serde_json::from_str(without_mark(text)).map_err(|e| match e.classify() {
        Category::Data => Error::file(path, e.to_string()),
        _ => Error::file(path, format!("JSON is expected here, and this is none: {e}")),
    })
}

/// Of what a file holds.
pub fn hash_of(path: &Path) -> Result<String> {
    Ok(model_file::hash(&std::fs::read(path).map_err(|e| Error::io(path, e))?))
}
