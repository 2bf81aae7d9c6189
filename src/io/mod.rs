//! Files: models, trajectories, checkpoints.

pub mod checkpoint;
#[cfg(feature = "cli")]
pub mod gromacs;
pub mod model_file;
#[cfg(feature = "cli")]
pub mod pytorch;
#[cfg(feature = "cli")]
pub mod trajectory;

use crate::error::{Error, Result};
#[cfg(unix)]
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Contents of a file or a pipe. Errors: it cannot be read, or is a device, some of which have no end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    #[cfg(unix)]
    if std::fs::metadata(path).is_ok_and(|about| about.file_type().is_char_device()) {
        return Err(Error::file(path, "expected a file, found a device"));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// Writes a file atomically, so that readers see the old content or the new: a temporary file in the same folder is
/// flushed to disk and then renamed. A symbolic link is kept and its destination replaced. Special files such as
/// /dev/null are written to directly. Errors: those of writing.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    if is_special(path) {
        let file = std::fs::OpenOptions::new().write(true).open(path);
        return file.and_then(|mut file| file.write_all(bytes)).map_err(|e| Error::io(path, e));
    }
    let (temporary, place) = (beside(path)?, behind_links(path));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &place)
    };
    write().map_err(|e| {
        // If the temporary file cannot be removed either, nothing can be done about it.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, e)
    })
}

/// Creates a folder and its parents. Errors: the path exists and is not a folder; those of the system.
pub fn make_folder(path: &Path) -> Result<()> {
    match path.exists() && !path.is_dir() {
        true => Err(Error::file(path, "expected a folder, found a file")),
        false => std::fs::create_dir_all(path).map_err(|e| Error::io(path, e)),
    }
}

/// Checks in advance of long work that [`write_atomically`] can write there. Errors: a folder that does not exist or
/// cannot be written to, or a folder in place of the file.
pub fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::file(path, "expected a file, found a folder"));
    }
    if is_special(path) {
        return Ok(());
    }
    let temporary = beside(path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            return Err(Error::file(path, format!("folder {} does not exist; create it first", folder.display())));
        }
        _ => (),
    }
    std::fs::File::create(&temporary).and_then(|_| std::fs::remove_file(&temporary)).map_err(|e| Error::io(path, e))?;
    remove_leftovers(path);
    Ok(())
}

/// A temporary file that nobody has written to for this long was left by a process that was killed.
const ABANDONED: Duration = Duration::from_secs(600);

/// Removes temporary files of [`write_atomically`] for this path that killed processes have left, as far as possible.
pub fn remove_leftovers(path: &Path) {
    let place = behind_links(path);
    let (Some(folder), Some(name)) = (place.parent(), place.file_name().and_then(|name| name.to_str())) else { return };
    let is_temporary = |other: &str| {
        let unique = other.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp"));
        let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        unique.and_then(|unique| unique.split_once('-')).is_some_and(|(process, time)| is_hex(process) && is_hex(time))
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|about| about.modified()).map(|time| time.elapsed().unwrap_or_default());
        if entry.file_name().to_str().is_some_and(is_temporary) && age.is_ok_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The text without a leading byte-order mark.
pub fn without_mark(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
}

/// Text of a file, through [`without_mark`]. Errors: those of reading, and content that is not text.
pub fn read_text(path: &Path) -> Result<String> {
    let not_text = |_| Error::file(path, "expected text, found data that is not valid UTF-8");
    let text = String::from_utf8(read(path)?).map_err(not_text)?;
    Ok(without_mark(&text).into())
}

/// Checks before an output is written that it is none of the command's other files, under whatever name or link.
/// Errors: it is one of them.
pub fn check_apart<'a>(output: &Path, others: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    if is_special(output) {
        return Ok(());
    }
    match others.into_iter().find(|other| place(other) == place(output)) {
        Some(other) => {
            let reason = format!("would overwrite {}, another file of this command; use another name", other.display());
            Err(Error::file(output, reason))
        }
        None => Ok(()),
    }
}

/// Canonical path of a file, even if it does not exist yet.
fn place(path: &Path) -> PathBuf {
    let path = behind_links(path);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// Whether the path is a device, a pipe or a socket.
pub fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir())
}

/// Destination of a path through symbolic links, even if the file does not exist yet.
pub fn behind_links(path: &Path) -> PathBuf {
    let mut place = path.to_path_buf();
    // as many links as Linux follows; this also ends cycles
    for _ in 0..40 {
        match std::fs::read_link(&place) {
            Ok(target) => place = place.with_file_name("").join(target),
            Err(_) => break,
        }
    }
    place
}

/// Path of a temporary file unique to this call, among the processes of all machines, in the folder of the file behind
/// links.
fn beside(path: &Path) -> Result<PathBuf> {
    let path = &behind_links(path);
    let mut name = path.file_name().ok_or_else(|| Error::file(path, "not a file name"))?.to_os_string();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    name.push(format!(".{}-{:x}.tmp", std::process::id(), now.as_nanos()));
    Ok(path.with_file_name(name))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_killed_processes_have_left_is_removed() {
        let folder = std::env::temp_dir().join(format!("modejump-leftovers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let old = std::time::SystemTime::now() - 2 * ABANDONED;
        let left = ["run.ckpt.804-18ecb0fec5426222.tmp"];
        let others = ["run.ckpt", "run.ckpt.notes.tmp", "run.ckpt.1-2.tmp.bak", "other.ckpt.804-18ec.tmp"];
        for name in left.iter().chain(&others) {
            std::fs::File::create(folder.join(name)).unwrap().set_modified(old).unwrap();
        }
        std::fs::write(folder.join("run.ckpt.805-18ec.tmp"), "being written").unwrap();
        check_writable(&folder.join("run.ckpt")).unwrap();
        let is_there = |name: &&str| folder.join(name).exists();
        assert!(!left.iter().any(&is_there) && others.iter().chain(&["run.ckpt.805-18ec.tmp"]).all(is_there));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn links_stay_and_devices_are_written_to() {
        let folder = std::env::temp_dir().join(format!("modejump-write-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("elsewhere")).unwrap();
        let [file, link, null] = ["elsewhere/file", "link", "null"].map(|name| folder.join(name));
        std::fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        symlink("/dev/null", &null).unwrap(); // through a link, so that no device of this machine is at risk
        for path in [&link, &null] {
            check_writable(path).unwrap();
            write_atomically(path, b"new").unwrap();
            assert!(std::fs::symlink_metadata(path).unwrap().is_symlink(), "{}", path.display());
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        // one file under several names
        let roundabout = folder.join("elsewhere/../elsewhere/file");
        for other in [&link, &file, &roundabout] {
            let message = check_apart(&link, [&null, other]).unwrap_err().to_string();
            assert!(
                message.contains(&other.display().to_string()) && message.contains("use another name"),
                "{message}"
            );
        }
        check_apart(&link, [&null, &folder.join("file")]).unwrap();
        // nothing written there is kept
        check_apart(&null, [&null]).unwrap();
        // a link to a file that does not exist yet
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(&link).unwrap();
        symlink("elsewhere/file", &link).unwrap();
        assert!(check_apart(&link, [&file]).is_err());
        write_atomically(&link, b"newer").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"newer");
        assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
        let message = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(message.contains("/dev/zero: expected a file"), "{message}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "a temporary file is left");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
