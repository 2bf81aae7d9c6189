//! Files: models, trajectories, checkpoints.

pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod dcd;
#[cfg(feature = "cli")]
pub mod gromacs;
pub mod model_file;
#[cfg(feature = "cli")]
pub mod pytorch;
#[cfg(feature = "cli")]
pub mod trajectory;

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Writes a file so that readers see the old content or the new, never a part: a temporary file in the same folder, flushed
/// to the disk, then renamed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = beside(path)?;
    use std::io::Write;
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        // Nothing can be done about a temporary file that will not go away either.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Whether [`write_atomically`] will have a place to write to, to be asked before long work. Errors: a folder that is not there, that has
/// no room for a file of ours, or that stands where the file should.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "is a folder; give the name of a file"));
    }
    let temporary = beside(path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            return Err(Error::file(path, format!("there is no folder {}: make it first", folder.display())));
        }
        _ => (),
    }
    std::fs::File::create(&temporary).and_then(|_| std::fs::remove_file(&temporary)).map_err(|e| Error::io(path, e))
}

/// A temporary file of this process in the same folder.
fn beside(path: &Path) -> Result<PathBuf> {
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "not a file name"))?.to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(name))
}
