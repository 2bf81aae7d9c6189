//! Checkpoints: everything needed for a restarted run to continue bit for bit.
//!
//! Random numbers are a function of (seed, stream, step, replica), so a step number replaces the state of the random
//! number generator, and pre-drawn proposals are drawn again. What remains are the replicas' positions and the
//! counters.
//!
//! A file consists of eight bytes that name the kind, the format version (u32), the length of the payload (u64), its
//! hash (32 hexadecimal digits), and the payload; little endian. The payload is bincode 2.0.1 with fixed-size integers.
//! bincode is used in this module only.

use crate::error::{Error, Result};
use crate::io::model_file::hash;
use crate::io::{is_special, read, write_atomically};
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use serde_json::Value;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Kind of a checkpoint. The version is incremented by hand with every change of the state's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// First bytes of the file.
    pub magic: [u8; 8],
    pub version: u32,
}

/// State of a training.
pub const TRAINING: Kind = Kind { magic: *b"MJ-TRAIN", version: 12 };
/// State of adaptive rounds.
pub const ROUNDS: Kind = Kind { magic: *b"MJ-ROUND", version: 14 };
const HEADER: usize = 8 + 4 + 8 + 32;

/// Whether a file exists whose first bytes are not those of a checkpoint of any kind.
pub fn is_other_file(path: &Path) -> bool {
    let mut start = [0; 3];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start != *b"MJ-"
}

/// Writes a state as a checkpoint of its kind, first to a temporary file: killing the process at any moment leaves the
/// old checkpoint or the new one. Errors: those of writing.
pub fn save<T: Serialize>(path: &Path, kind: Kind, state: &T) -> Result<()> {
    let payload = bincode::serde::encode_to_vec(state, configuration())
        .map_err(|e| Error::file(path, format!("could not serialise the checkpoint: {e}")))?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(kind.magic);
    bytes.extend(kind.version.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(hash(&payload).as_bytes());
    bytes.extend(payload);
    write_atomically(path, &bytes)
}

/// Reads what [`save`] wrote. Errors: a file of another kind or version, truncated, or damaged.
pub fn load<T: DeserializeOwned>(path: &Path, kind: Kind) -> Result<T> {
    let bytes = read(path)?;
    decode(&bytes, kind).map_err(|reason| Error::file(path, reason))
}

/// Identity of a run: its files and options, each under the name known to the user.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    name: String,
    value: String,
    says: Says,
}

/// How a differing part is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
enum Says {
    /// By its two values.
    Values,
    /// As another one.
    Another,
    /// As another one, unless something else differs, of which it may be a consequence.
    AnotherAlone,
}

/// Largest number of differing parts that are named.
const MOST_NAMED: usize = 5;

impl Identity {
    /// Adds the value of an option.
    pub fn with(self, name: &str, value: impl Display) -> Identity {
        self.and(name, value.to_string(), Says::Values)
    }

    /// Adds an optional option.
    pub fn with_some(self, name: &str, value: Option<impl Display>) -> Identity {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds content by its hash; `name` follows "a different", such as `file for --system`.
    pub fn with_content(self, name: &str, hash: impl Display) -> Identity {
        self.and(name, hash.to_string(), Says::Another)
    }

    /// Adds something derived from other parts and from things without a name of their own.
    pub fn with_consequence(self, name: &str, hash: impl Display) -> Identity {
        self.and(name, hash.to_string(), Says::AnotherAlone)
    }

    /// Adds all settings of a file for `--config`, or of a section of it, as `section.setting`. Errors: settings that
    /// JSON cannot hold.
    pub fn with_settings<T: Serialize>(mut self, section: &str, settings: &T) -> Result<Identity> {
        let settings = serde_json::to_value(settings)
            .map_err(|e| Error::invalid(format!("could not serialise the settings: {e}")))?;
        self.add_settings(section, &settings);
        Ok(self)
    }

    fn add_settings(&mut self, place: &str, value: &Value) {
        match value {
            Value::Null => {}
            Value::Object(settings) => {
                for (name, value) in settings {
                    self.add_settings(&[place, name].join(if place.is_empty() { "" } else { "." }), value);
                }
            }
            Value::Array(list) if list.iter().any(Value::is_object) => {
                for (i, value) in list.iter().enumerate() {
                    self.add_settings(&format!("{place}[{i}]"), value);
                }
            }
            value => self.parts.push(Part { name: format!("`{place}`"), value: value.to_string(), says: Says::Values }),
        }
    }

    fn and(mut self, name: &str, value: String, says: Says) -> Identity {
        self.parts.push(Part { name: name.into(), value, says });
        self
    }

    /// Differences from another run, such as `--seed 2 instead of 1`; None if there are none.
    pub fn difference(&self, other: &Identity) -> Option<String> {
        let find = |parts: &[Part], name: &str| parts.iter().find(|part| part.name == name).map(|p| p.value.clone());
        let gone = other.parts.iter().filter(|part| find(&self.parts, &part.name).is_none());
        let differs = |part: &&Part| find(&self.parts, &part.name) != find(&other.parts, &part.name);
        let mut all: Vec<&Part> = self.parts.iter().chain(gone).filter(differs).collect();
        if all.iter().any(|part| part.says != Says::AnotherAlone) {
            all.retain(|part| part.says != Says::AnotherAlone);
        }
        let say = |part: &&Part| {
            let Part { name, says, .. } = part;
            match (says, find(&self.parts, name), find(&other.parts, name)) {
                (Says::Values, Some(here), Some(there)) => format!("{name} {here} instead of {there}"),
                (Says::Values, Some(here), None) => format!("{name} {here} instead of none"),
                (Says::Values, None, there) => format!("no {name} instead of {}", there.unwrap_or_default()),
                (_, None, _) => format!("no {name}"),
                (_, Some(_), None) => format!("a {name}"),
                (_, Some(_), Some(_)) => format!("a different {name}"),
            }
        };
        let more = all.len().saturating_sub(MOST_NAMED);
        let mut named: Vec<String> = all.iter().take(MOST_NAMED).map(say).collect();
        if more > 0 {
            named.push(format!("{more} more"));
        }
        (!named.is_empty()).then(|| named.join(", "))
    }

    /// Requires the identity of this run. Errors: another one; says how they differ.
    pub fn require(&self, run: &Identity) -> std::result::Result<(), String> {
        match self.difference(run) {
            None => Ok(()),
            Some(difference) => Err(format!(
                "belongs to another run (this run has {difference}): use the options and files of that run, or another checkpoint for a new run (`adapt` and `explore`: another folder)"
            )),
        }
    }
}

/// Saves the state of a run with its identity. Errors: those of [`save`].
pub fn save_run<T: Serialize>(path: &Path, kind: Kind, identity: &Identity, state: &T) -> Result<()> {
    save(path, kind, &(identity, state))
}

/// State that the run with this identity left at `path`; None if there is no file. Errors: those of [`load`]; a device;
/// the state of another run, with the differences.
pub fn load_run<T: DeserializeOwned>(path: &Path, kind: Kind, identity: &Identity) -> Result<Option<T>> {
    if !path.exists() {
        return Ok(None);
    }
    // some devices have no end
    if is_special(path) {
        return Err(Error::file(path, "a checkpoint must be a file, not a device or a pipe"));
    }
    let bytes = read(path)?;
    let run = payload(&bytes, kind).and_then(|payload| {
        // the state of another run may have another type
        let (belongs, rest): (Identity, _) = part(payload)?;
        identity.require(&belongs)?;
        whole(rest)
    });
    run.map(Some).map_err(|reason| Error::file(path, reason))
}

/// Payload after the header of a file of this kind. Errors: another kind or version, truncated, or damaged.
fn payload(bytes: &[u8], kind: Kind) -> std::result::Result<&[u8], String> {
    if bytes.get(..8) != Some(&kind.magic[..]) {
        return Err("not a modejump checkpoint of this kind".into());
    }
    let header: &[u8; HEADER] =
        bytes.get(..HEADER).and_then(|h| h.try_into().ok()).ok_or("truncated checkpoint: the header is incomplete")?;
    let version = u32::from_le_bytes(std::array::from_fn(|i| header[8 + i]));
    let known = kind.version;
    if version != known {
        return Err(format!(
            "checkpoint format version {version} is not supported (expected version {known}): finish the run with the modejump that started \
             it, or start again"
        ));
    }
    let length = u64::from_le_bytes(std::array::from_fn(|i| header[12 + i]));
    let payload = &bytes[HEADER..];
    if payload.len() as u64 != length {
        return Err(format!(
            "expected {length} bytes of data, found {}: the checkpoint is truncated or corrupt",
            payload.len()
        ));
    }
    if hash(payload).as_bytes() != &header[20..] {
        return Err("the data do not match their checksum: the checkpoint is corrupt".into());
    }
    Ok(payload)
}

/// Decodes the next value; returns it with the remaining bytes.
fn part<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<(T, &[u8]), String> {
    let (state, used) = bincode::serde::decode_from_slice(bytes, configuration())
        .map_err(|e| format!("could not decode the data: {e}"))?;
    Ok((state, &bytes[used..]))
}

fn whole<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    match part(bytes)? {
        (state, []) => Ok(state),
        (_, rest) => Err(format!("{} unexpected bytes at the end", rest.len())),
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8], kind: Kind) -> std::result::Result<T, String> {
    whole(payload(bytes, kind)?)
}

fn configuration() -> impl bincode::config::Config {
    // no limit: it would apply to the whole state, and the decoded bytes have passed their checksum
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
    fn what_differs_between_runs_is_named() {
        let of = |seed: u64, system: &str, steps: &[u64]| {
            let phases: Vec<Value> =
                steps.iter().map(|steps| serde_json::json!({ "steps": steps, "rate": 0.5 })).collect();
            let identity = Identity::default().with_content("file for --system", system).with("--seed", seed);
            let identity = identity.with_consequence("set of first parameters", seed);
            identity.with_settings("", &serde_json::json!({ "train": { "phases": phases, "patience": null } })).unwrap()
        };
        let run = of(1, "a", &[10]);
        assert_eq!(run.difference(&run), None);
        let said = of(2, "b", &[20]).difference(&run).unwrap();
        assert_eq!(
            said,
            "a different file for --system, --seed 2 instead of 1, `train.phases[0].steps` 20 instead of 10"
        );
        let said = run.clone().with("--anneal", 3).difference(&of(1, "a", &[10, 7])).unwrap();
        assert_eq!(
            said,
            "--anneal 3 instead of none, no `train.phases[1].rate` instead of 0.5, no `train.phases[1].steps` instead of 7"
        );
        let said = of(1, "a", &[10]).with_content("file for --screen", "c").difference(&run).unwrap();
        assert_eq!(said, "a file for --screen");
        assert!(of(1, "a", &[2; 9]).difference(&run).unwrap().ends_with("instead of none, 12 more"));
        let parameters = |hash: &str| Identity::default().with_consequence("set of first parameters", hash);
        assert_eq!(parameters("a").difference(&parameters("b")).unwrap(), "a different set of first parameters");
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
