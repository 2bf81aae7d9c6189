//! One error type for the whole library.
//!
//! An [`Error`] is fatal for the call that returns it: bad input, a broken file, a failed engine. A proposal that
//! merely has to be rejected is not an error; see [`crate::density::Status`].

use std::path::{Path, PathBuf};

/// Result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, naming the file, tensor, atom or option, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong shape, range or unit.
    #[error("{0}")]
    InvalidInput(String),
    /// A model file is malformed, truncated or in another format version.
    #[error("model file {path}: {reason}")]
    Model { path: String, reason: String },
    /// A trajectory, checkpoint or data file cannot be parsed.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// The operating system reported an error.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The molecular-dynamics engine failed.
    #[error("{0}")]
    Engine(String),
    /// A user-supplied callback reported failure.
    #[error("callback failed: {0}")]
    Callback(String),
    /// The requested combination is refused because it would not be exact or does not exist.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// Error for an argument or setting out of range; the message says what to do.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::InvalidInput(message.into())
    }

    /// Error for a model file, or for bytes labelled with that name.
    pub fn model(path: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Model { path: path.into(), reason: reason.into() }
    }

    /// Error for the contents of a file.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// Error for a file that could not be read or written.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
}
