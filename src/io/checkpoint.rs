//! Checkpoints: everything that makes a restarted run continue bit for bit.
//!
//! Random numbers are a function of (seed, stream, step, replica), so a step number stands for the state of the
//! generator of random numbers, and pre-drawn proposals are drawn again. What remains is where the replicas are and
//! what was counted.
//!
//! A file is eight bytes that name the kind, format version (u32), length of the payload (u64), its hash (32
//! hexadecimal digits), payload; little endian. The payload is bincode 2.0.1, fixed-size integers. bincode is used in
//! this module only.

use crate::error::{Error, Result};
use crate::io::model_file::hash;
use crate::io::write_atomically;
use serde::{de::DeserializeOwned, Serialize};
use std::path::Path;

/// What a checkpoint is of. Its version is counted up by hand, with every change of what its state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// First bytes of the file.
    pub magic: [u8; 8],
    pub version: u32,
}

/// The state of a training.
pub const TRAINING: Kind = Kind { magic: *b"MJ-TRAIN", version: 8 };
/// Adaptive rounds.
pub const ROUNDS: Kind = Kind { magic: *b"MJ-ROUND", version: 8 };
const HEADER: usize = 8 + 4 + 8 + 32;

/// Writes any state as a checkpoint of its kind, beside the file and then in its place: a kill at any moment leaves the
/// old checkpoint or the new one.
pub fn save<T: Serialize>(path: &Path, kind: Kind, state: &T) -> Result<()> {
    let payload = bincode::serde::encode_to_vec(state, configuration())
        .map_err(|e| Error::file(path, format!("the checkpoint cannot be encoded: {e}")))?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(kind.magic);
    bytes.extend(kind.version.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(hash(&payload).as_bytes());
    bytes.extend(payload);
    write_atomically(path, &bytes)
}

/// Reads what [`save`] wrote. Errors: another kind or version of file, truncated, damaged.
pub fn load<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    decode(&bytes, kind).map_err(|reason| Error::file(path, reason))
}

/// The state of a run with what it belongs to: its files and options as text.
pub fn save_run<T: Serialize>(path: &Path, kind: Kind, identity: &str, state: &T) -> Result<()> {
    save(path, kind, &(identity, state))
}

/// What the run with this identity left at `path`; none where there is no file. Errors: those of [`load`], the state of
/// another run.
pub fn load_run<T: DeserializeOwned>(path: &Path, kind: Kind, identity: &str) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let run = payload(&bytes, kind).and_then(|payload| {
        // the state of another run may be of another type
        let (belongs, rest): (String, _) = part(payload)?;
        if belongs != identity {
            return Err("belongs to another run, of other files, options or seed: give those it began with, or remove it to begin anew".into());
        }
        whole(rest)
    });
    run.map(Some).map_err(|reason| Error::file(path, reason))
}

/// Behind the header of a file of this kind.
fn payload(bytes: &[u8], kind: Kind) -> std::result::Result<&[u8], String> {
    if bytes.get(..8) != Some(&kind.magic[..]) {
        return Err("not a modejump checkpoint of this kind".into());
    }
    let header: &[u8; HEADER] =
        bytes.get(..HEADER).and_then(|h| h.try_into().ok()).ok_or("the checkpoint is cut off in its header")?;
    let version = u32::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
    let known = kind.version;
    if version != known {
        return Err(format!("checkpoint of format version {version}; this program reads version {known}: finish it with the program that began it, or begin anew"));
    }
    let length = u64::from_le_bytes(std::array::from_fn(|i| header[12 + i]));
    let payload = &bytes[HEADER..];
    if payload.len() as u64 != length {
        return Err(format!("{length} bytes of data expected, {} found: cut off or mixed up", payload.len()));
    }
    if hash(payload).as_bytes() != &header[20..] {
        return Err("the data do not match their checksum: the file is damaged".into());
    }
    Ok(payload)
}

/// The next value, and what follows it.
fn part<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<(T, &[u8]), String> {
    let (state, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|e| format!("the data cannot be decoded: {e}"))?;
    Ok((state, &bytes[used..]))
}

fn whole<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    match part(bytes)? {
        (state, []) => Ok(state),
        (_, rest) => Err(format!("{} bytes too many", rest.len())),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], kind: Kind) -> std::result::Result<T, String> {
    whole(payload(bytes, kind)?)
}

fn configuration() -> impl bincode::config::Config {
    // without a limit: it would be one of the whole state, and what is decoded has passed its checksum
    bincode::config::standard().with_fixed_int_encoding().with_little_endian()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moves::Statistics;
    use std::path::PathBuf;

    const KIND: Kind = Kind { magic: *b"MJ--TEST", version: 3 };

    /// Step, coordinates and counts of a walker.
    type Walker = (u64, Vec<f64>, Statistics);

    fn example() -> Walker {
        (u64::MAX - 1, vec![0.1, -0.0, f64::MIN_POSITIVE], Statistics::default())
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("modejump-checkpoint-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn what_is_saved_comes_back_and_no_temporary_file_stays() {
        let folder = folder("round-trip");
        let path = folder.join("run.ckpt");
        std::fs::write(&path, b"older").unwrap();
        save(&path, KIND, &example()).unwrap();
        assert_eq!(load::<Walker>(&path, KIND).unwrap(), example());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn every_truncation_and_every_damaged_byte_is_refused() {
        let folder = folder("damage");
        let path = folder.join("run.ckpt");
        save(&path, KIND, &example()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<Walker>(&bytes[..length], KIND).is_err(), "{length} bytes were taken for a checkpoint");
        }
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 0x10;
            assert!(decode::<Walker>(&damaged, KIND).is_err(), "damage at byte {i} went unnoticed");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode::<Walker>(&longer, KIND).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn another_version_is_refused_by_number() {
        let mut bytes = Vec::from(KIND.magic);
        let other = KIND.version + 1;
        bytes.extend(other.to_le_bytes());
        bytes.extend([0; 40]);
        assert!(decode::<Walker>(&bytes, KIND).unwrap_err().contains(&format!("version {other}")));
    }

    #[test]
    fn a_folder_that_does_not_exist_is_an_error() {
        let message = save(Path::new("/nonexistent-folder/run.ckpt"), KIND, &example()).unwrap_err().to_string();
        assert!(message.contains("/nonexistent-folder/run.ckpt"), "{message}");
    }
}
