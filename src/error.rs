//! One error type for the whole library.
//!
//! An [`Error`] is fatal for the call that returns it: bad input, a broken file, an engine that failed.
//! A proposal that merely has to be rejected is not an error, see [`crate::density::Status`].

use std::path::{Path, PathBuf};

/// What functions of this crate return.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, with the file, tensor, atom or option and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong shape, range or unit.
    #[error("{0}")]
    InvalidInput(String),
    /// A model file is malformed, truncated or of another format version.
    #[error("model file {path}: {reason}")]
    Model { path: String, reason: String },
    /// A trajectory, checkpoint or data file cannot be understood.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The molecular-dynamics engine failed.
    #[error("{0}")]
    Engine(String),
    /// A user-supplied callback reported failure.
    #[error("callback failed: {0}")]
    Callback(String),
    /// The combination asked for is refused, because it would not be exact or does not exist.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// An argument or a setting that is out of range; the message says what to do.
    pub fn invalid(message: impl Into<String>) -> Error {
        Error::InvalidInput(message.into())
    }

    /// What is wrong with a model file, or with bytes of that name.
    pub fn model(path: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Model { path: path.into(), reason: reason.into() }
    }

    /// What is wrong with the contents of a file.
    pub fn file(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::File { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// A file that could not be read or written.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Error {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }
}
