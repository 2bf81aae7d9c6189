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
use std::path::Path;

/// Writes a file so that readers see the old content or the new, never a part: a temporary file in the same folder, flushed
/// to the disk, then renamed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "not a file name"))?;
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);
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
