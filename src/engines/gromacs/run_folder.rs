//! The directory of a run and its files; every cycle is committed as a whole.
//!
//! A cycle works in its own folder. Then the new state is written under a new name, frames and the line of `jumps.csv`
//! are appended, and last `modejump.ckpt` is replaced, which records the state and what the other files hold. If killed
//! at any moment, the run continues from `modejump.ckpt` and truncates what came after it.

use super::gmx::{part, read_with};
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Kind};
use crate::io::gromacs::spans;
use crate::io::make_folder;
use crate::io::model_file::hash;
use crate::moves::{Outcome, Statistics};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const RUN: Kind = Kind { magic: *b"MJ-GMXRN", version: 9 };
const PROGRESS: &str = "modejump.ckpt";
/// Trajectories and energies of the segments, concatenated.
const JOINED: [&str; 3] = ["traj.xtc", "traj.trr", "ener.edr"];
/// Logs of dynamics and of reruns.
const LOGS: [&str; 2] = ["md", "rerun"];
const JUMPS: &str = "jumps.csv";
const HEADER: &str = "cycle,step,potential,fate,log_acceptance,log_weight,log_weight_proposed,potential_after\n";

/// Settings that must not change during a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub(super) model: String,
    pub(super) screen: Option<String>,
    pub(super) tpr: String,
    pub(super) first_atom: usize,
    pub(super) steps: u64,
    pub(super) proposals: usize,
    pub(super) isir: bool,
    pub(super) seed: u64,
    pub(super) replica: u32,
}

impl Settings {
    /// Describes the differences from another run's settings, by the options of `modejump gromacs`.
    fn differences(&self, other: &Settings) -> String {
        let method = |settings: &Settings| if settings.isir { "isir" } else { "independence" };
        let same_file = |same: bool, name: &str| (!same).then(|| format!("a different {name}"));
        let number = |name: &str, [a, b]: [u64; 2]| (a != b).then(|| format!("--{name} {b} instead of {a}"));
        let all = [
            same_file(self.model == other.model, "model"),
            same_file(self.screen == other.screen, "--screen"),
            same_file(self.tpr == other.tpr, "run input file (--tpr)"),
            number("first-atom", [self, other].map(|s| s.first_atom as u64 + 1)),
            number("steps", [self, other].map(|s| s.steps)),
            number("proposals", [self, other].map(|s| s.proposals as u64)),
            (self.isir != other.isir).then(|| format!("--method {} instead of {}", method(other), method(self))),
            number("seed", [self, other].map(|s| s.seed)),
            (self.replica != other.replica).then(|| "a different position among the walkers of --multidir".to_string()),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// A file in the run's directory, and the hash of its contents: GROMACS's checkpoints have no checksum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct StateFile {
    name: String,
    hash: String,
}

impl StateFile {
    /// Errors: a file that is gone, or is not what was written.
    fn check(&self, folder: &Path) -> Result<()> {
        let path = folder.join(&self.name);
        match fs::read(&path) {
            Ok(bytes) if hash(&bytes) == self.hash => Ok(()),
            Ok(_) => Err(lost(&path, "the state that the run continues from is truncated or corrupt")),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                Err(lost(&path, "the state that the run continues from is missing"))
            }
            Err(e) => Err(Error::io(&path, e)),
        }
    }
}

/// Error for a file without which a run cannot continue.
fn lost(path: &Path, reason: &str) -> Error {
    Error::file(path, format!("{reason}: restore it, or use a new directory"))
}

/// Number of bytes at the end of what was written by which a file is known again: the whole may be too much to read.
const TAIL: u64 = 1 << 16;

/// What the run has written to a file that it appends to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Written {
    length: u64,
    /// Hash of the last bytes, at most [`TAIL`].
    tail: String,
}

impl Written {
    /// Of the first `length` bytes of a file.
    fn new(file: &mut File, length: u64) -> std::io::Result<Written> {
        let mut tail = vec![0; length.min(TAIL) as usize];
        file.seek(SeekFrom::Start(length - tail.len() as u64))?;
        file.read_exact(&mut tail)?;
        Ok(Written { length, tail: hash(&tail) })
    }

    /// Errors: a file that is gone, or does not begin with what was written. What follows may be that of an interrupted
    /// cycle.
    fn check(&self, path: &Path) -> Result<()> {
        let mut file = match File::open(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(lost(path, "a file of the run is missing")),
            file => file.map_err(|e| Error::io(path, e))?,
        };
        let found = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if found < self.length {
            let reason = format!("has {found} bytes, shorter than the {} that the run has written", self.length);
            return Err(lost(path, &reason));
        }
        match Written::new(&mut file, self.length).map_err(|e| Error::io(path, e))? == *self {
            true => Ok(()),
            false => Err(lost(path, "another file has taken its place, or its contents were changed")),
        }
    }
}

/// Progress of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    pub(super) settings: Settings,
    /// Number of cycles done.
    pub cycle: u64,
    /// Engine step reached.
    pub step: Option<i64>,
    /// State from which the next cycle begins.
    state: Option<StateFile>,
    /// Potential energy of that state, kJ/mol, if known.
    pub(super) potential: Option<f64>,
    written: BTreeMap<String, Written>,
    last_steps: BTreeMap<String, i64>,
    pub statistics: Statistics,
    /// Wall time of dynamics and of jumps, s.
    pub dynamics_s: f64,
    pub jumps_s: f64,
}

/// Report on one cycle.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub step: i64,
    /// Potential energies before and after the jump, kJ/mol.
    pub potential: f64,
    pub potential_after: f64,
    pub outcome: Outcome,
}

/// A run's directory, locked while this value lives.
pub(super) struct RunFolder {
    /// Absolute path.
    pub(super) path: PathBuf,
    pub(super) progress: Progress,
    _lock: File,
}

impl RunFolder {
    /// Begins a run, or continues the one that is there; `statistics` are those of an unused move. Errors: a directory
    /// in use, one with a run of other settings or with files changed since, or one with files that a new run would
    /// overwrite.
    pub(super) fn open(folder: &Path, settings: Settings, statistics: &Statistics) -> Result<RunFolder> {
        let lock = lock(folder)?;
        let progress = progress_in(folder, settings, statistics)?;
        let path = fs::canonicalize(folder).map_err(|e| Error::io(folder, e))?;
        Ok(RunFolder { path, progress, _lock: lock })
    }

    /// Creates the folder in which the next cycle works.
    pub(super) fn make_scratch(&self) -> Result<PathBuf> {
        let scratch = self.path.join(format!("cycle-{}-{}", self.progress.cycle + 1, std::process::id()));
        fs::create_dir(&scratch).map_err(|e| Error::io(&scratch, e))?;
        Ok(scratch)
    }

    /// File of the state from which the next cycle begins; None before the first.
    pub(super) fn state(&self) -> Option<PathBuf> {
        self.progress.state.as_ref().map(|state| self.path.join(&state.name))
    }

    /// Keeps GROMACS's logs of a failed cycle, ignoring logs that cannot be kept.
    pub(super) fn keep_logs(&self, scratch: &Path) {
        for stem in LOGS {
            let logs = [part(scratch, stem, ".log").ok().flatten(), Some(scratch.join(format!("{stem}.log")))];
            for log in logs.iter().flatten() {
                let name = log.file_name().map(|name| format!("failed-{}", name.to_string_lossy()));
                let _ = name.map(|name| fs::rename(log, self.path.join(name)));
            }
        }
    }

    /// Commits a cycle: the files it left in `scratch`, the state from which the next one begins, its report, and its
    /// `seconds` of dynamics and of the jump. Errors: files that cannot be read or written.
    pub(super) fn commit(
        &mut self,
        scratch: &Path,
        state: &[u8],
        report: &Report,
        statistics: &Statistics,
        seconds: [f64; 2],
    ) -> Result<()> {
        let folder = &self.path;
        let mut next = self.progress.clone();
        next.cycle += 1;
        next.step = Some(report.step);
        next.potential = Some(report.potential_after);
        next.statistics = statistics.clone();
        next.dynamics_s += seconds[0];
        next.jumps_s += seconds[1];
        let name = format!("state_{}.cpt", next.cycle);
        crate::io::write_atomically(&folder.join(&name), state)?;
        for joined in JOINED {
            let (stem, extension) = joined.split_once('.').expect("a name with an extension");
            if let Some(path) = part(scratch, stem, &format!(".{extension}"))? {
                append_frames(folder, joined, extension, &path, &mut next)?;
            }
        }
        let line = line(next.cycle, report);
        append(
            folder,
            JUMPS,
            if next.written.contains_key(JUMPS) { "" } else { HEADER }.as_bytes(),
            line.as_bytes(),
            &mut next,
        )?;
        let before = next.state.replace(StateFile { name, hash: hash(state) });
        checkpoint::save(&folder.join(PROGRESS), RUN, &next)?;
        self.progress = next;
        if let Some(before) = before {
            let _ = fs::remove_file(folder.join(before.name)); // else removed at the next start
        }
        if let Some(log) = part(scratch, "md", ".log")? {
            let _ = fs::copy(log, folder.join("md.log")); // for the user to look at
        }
        Ok(())
    }
}

/// Creates the folder if needed and locks it for this process.
fn lock(folder: &Path) -> Result<File> {
    make_folder(folder)?;
    let path = folder.join("modejump.lock");
    let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
    file.try_lock().map_err(|e| not_locked(&path, e))?;
    Ok(file)
}

fn not_locked(path: &Path, error: TryLockError) -> Error {
    let reason = match error {
        TryLockError::WouldBlock => {
            "another modejump process is using this directory, or the directory is given twice".to_string()
        }
        TryLockError::Error(e) => {
            format!(
                "could not be locked ({e}); put the run's directory on a file system that supports locks, such as a \
                 local disk"
            )
        }
    };
    Error::file(path, reason)
}

/// Progress of the run in a folder, or of a new one. Removes what interrupted cycles have left.
fn progress_in(folder: &Path, settings: Settings, statistics: &Statistics) -> Result<Progress> {
    let path = folder.join(PROGRESS);
    if !path.exists() {
        let names = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten();
        let ours = |name: &String| JOINED.iter().chain(&[JUMPS, "md.log"]).any(|ours| ours == name) || is_state(name);
        if let Some(there) = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(ours) {
            let reason = format!("contains {there} but no {PROGRESS}: use a new directory for a new run");
            return Err(Error::file(folder, reason));
        }
        let progress = Progress {
            settings,
            cycle: 0,
            step: None,
            state: None,
            potential: None,
            written: BTreeMap::new(),
            last_steps: BTreeMap::new(),
            statistics: statistics.clone(),
            dynamics_s: 0.0,
            jumps_s: 0.0,
        };
        checkpoint::save(&path, RUN, &progress)?;
        return Ok(progress);
    }
    let mut progress: Progress = checkpoint::load(&path, RUN)?;
    // settings may change as long as no cycle has been completed
    if progress.cycle == 0 && progress.settings != settings {
        progress = Progress { settings, statistics: statistics.clone(), ..progress };
        checkpoint::save(&path, RUN, &progress)?;
    } else if progress.settings != settings {
        let reason = format!(
            "the settings differ from those of the run in this directory ({}): continue with the same settings, or use \
             a new directory",
            progress.settings.differences(&settings)
        );
        return Err(Error::file(folder, reason));
    }
    progress.state.as_ref().map_or(Ok(()), |state| state.check(folder))?;
    progress.written.iter().try_for_each(|(name, written)| written.check(&folder.join(name)))?;
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_scratch(&name) {
            let _ = fs::remove_dir_all(entry.path());
        } else if is_state(&name) && progress.state.as_ref().is_none_or(|state| state.name != name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(progress)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a folder is a cycle's working folder, not the user's.
fn is_scratch(name: &str) -> bool {
    let numbers = name.strip_prefix("cycle-").and_then(|numbers| numbers.split_once('-'));
    numbers.is_some_and(|(cycle, process)| is_number(cycle) && is_number(process))
}

/// Whether a file is a state left by a cycle, not the user's.
fn is_state(name: &str) -> bool {
    name.strip_prefix("state_").and_then(|name| name.strip_suffix(".cpt")).is_some_and(is_number)
}

/// Appends the frames of a segment that follow those already there; the first frame of a segment repeats the last of
/// the one before.
fn append_frames(folder: &Path, joined: &str, extension: &str, from: &Path, progress: &mut Progress) -> Result<()> {
    let frames = read_with(from, |bytes| {
        let spans = spans(extension, bytes)?;
        let head = spans.first().map_or(0, |span| span.bytes.start);
        let last = progress.last_steps.get(joined).copied();
        let is_after = |step: i64, last: i64| match extension {
            "edr" => step > last,
            _ => (step as i32).wrapping_sub(last as i32) > 0, // step numbers in trajectories have 32 bits and wrap
        };
        let new = spans.iter().filter(|span| last.is_none_or(|last| is_after(span.step, last)));
        let frames: Vec<u8> = new.flat_map(|span| bytes[span.bytes.clone()].iter().copied()).collect();
        // the first number of a frame reveals its precision
        let beginning = bytes[..bytes.len().min(head + 4)].to_vec();
        Ok((beginning, head, frames, spans.last().map(|span| span.step)))
    });
    let (beginning, head, frames, last) = frames?;
    if head > 0 && progress.written.get(joined).is_some_and(|written| written.length > 0) {
        check_beginning(&folder.join(joined), &beginning)?;
    }
    append(folder, joined, &beginning[..head], &frames, progress)?;
    if let Some(last) = last {
        progress.last_steps.insert(joined.to_string(), last);
    }
    Ok(())
}

/// Errors: the file of energies begins differently.
fn check_beginning(path: &Path, beginning: &[u8]) -> Result<()> {
    let mut begun = vec![0; beginning.len()];
    File::open(path).and_then(|mut file| file.read_exact(&mut begun)).map_err(|e| Error::io(path, e))?;
    match begun == beginning {
        true => Ok(()),
        false => Err(Error::file(
            path,
            "the run was started with a different precision or version of GROMACS, whose energies cannot share a file \
             with those of this one: continue with the original",
        )),
    }
}

/// Appends to a file of the run at its recorded length; `head` starts a new file. Errors: also a file that is not as the
/// run left it.
fn append(folder: &Path, name: &str, head: &[u8], bytes: &[u8], progress: &mut Progress) -> Result<()> {
    let path = folder.join(name);
    let before = progress.written.get(name);
    before.map_or(Ok(()), |written| written.check(&path))?;
    let length = before.map_or(0, |written| written.length);
    let head = if length == 0 { head } else { &[] };
    let write = || -> std::io::Result<Written> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        file.set_len(length)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(head)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Written::new(&mut file, length + (head.len() + bytes.len()) as u64)
    };
    let written = write().map_err(|e| Error::io(&path, e))?;
    progress.written.insert(name.to_string(), written);
    Ok(())
}

fn line(cycle: u64, report: &Report) -> String {
    let Report { step, potential, potential_after, outcome } = report;
    let fate = outcome.fate.name();
    let Outcome { log_acceptance, log_weight_current, log_weight_proposed, .. } = outcome;
    format!("{cycle},{step},{potential},{fate},{log_acceptance},{log_weight_current},{log_weight_proposed},{potential_after}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            model: String::new(),
            screen: None,
            tpr: String::new(),
            first_atom: 0,
            steps: 10,
            proposals: 1,
            isir: false,
            seed: 1,
            replica: 0,
        }
    }

    #[test]
    fn differences_are_named_by_options() {
        let other = Settings { first_atom: 4, isir: true, tpr: "another".into(), ..settings() };
        let said = settings().differences(&other);
        assert_eq!(
            said,
            "a different run input file (--tpr), --first-atom 5 instead of 1, --method isir instead of independence"
        );
    }

    #[test]
    fn a_lock_that_is_taken_and_one_that_cannot_be_are_told_apart() {
        let path = Path::new("run/modejump.lock");
        let taken = not_locked(path, TryLockError::WouldBlock).to_string();
        assert!(taken.contains("another modejump process is using"), "{taken}");
        let unsupported = std::io::Error::from(std::io::ErrorKind::Unsupported);
        let none = not_locked(path, TryLockError::Error(unsupported)).to_string();
        assert!(
            none.contains("unsupported") && none.contains("file system") && !none.contains("another modejump process"),
            "{none}"
        );
    }

    #[test]
    fn energies_of_another_gromacs_are_not_joined() {
        let folder = std::env::temp_dir().join(format!("modejump-joined-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut progress = RunFolder::open(&folder, settings(), &Statistics::default()).unwrap().progress;
        let part = folder.join("part.edr");
        let mixed = &include_bytes!("../../../tests/golden/gromacs/mixed.edr")[..];
        let double = &include_bytes!("../../../tests/golden/gromacs/double.edr")[..];
        let mut join = |energies: &[u8]| {
            fs::write(&part, energies).unwrap();
            append_frames(&folder, "ener.edr", "edr", &part, &mut progress)
        };
        join(mixed).and_then(|()| join(mixed)).unwrap();
        let message = join(double).unwrap_err().to_string();
        assert!(message.contains("a different precision or version"), "{message}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_is_not_as_the_run_left_it_is_refused() {
        let folder = std::env::temp_dir().join(format!("modejump-written-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let open = || RunFolder::open(&folder, settings(), &Statistics::default()).map(|run| run.progress);
        let mut progress = open().unwrap();
        let path = folder.join("traj.trr");
        let frames: Vec<u8> = (0..TAIL as usize).map(|i| (i % 251) as u8).collect();
        append(&folder, "traj.trr", b"", &frames, &mut progress).unwrap();
        append(&folder, "traj.trr", b"", b"ten frames", &mut progress).unwrap();
        checkpoint::save(&folder.join(PROGRESS), RUN, &progress).unwrap();
        let whole = fs::read(&path).unwrap();
        // as an interrupted cycle leaves it, which is cut off
        fs::write(&path, [&whole[..], b"half a fra"].concat()).unwrap();
        append(&folder, "traj.trr", b"", b"", &mut open().unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        let other = [vec![1; whole.len()], b"and more".to_vec()].concat();
        let changed = [&whole[..whole.len() - 1], b"S"].concat();
        let last = whole.len() - 1;
        for (bytes, text) in [
            (Some(&whole[..last]), format!("has {last} bytes, shorter than the {} ", whole.len())),
            (Some(&other[..]), "another file has taken its place".into()),
            (Some(&changed[..]), "its contents were changed".into()),
            (None, "is missing".into()),
        ] {
            fs::remove_file(&path).unwrap();
            bytes.map_or(Ok(()), |bytes| fs::write(&path, bytes)).unwrap();
            let messages = [open().err(), append(&folder, "traj.trr", b"", b"frame", &mut progress.clone()).err()];
            for message in messages.map(|error| error.expect("a refusal").to_string()) {
                let words = ["traj.trr", &text, "restore it, or use a new directory"];
                assert!(words.iter().all(|word| message.contains(word)), "{message}");
            }
            // nothing was changed
            assert_eq!(fs::read(&path).ok().as_deref(), bytes);
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_cycles_have_left_is_removed_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("modejump-walker-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        RunFolder::open(&folder, settings(), &Statistics::default()).unwrap();
        let (leftovers, others) = (
            ["cycle-3-4711", "state_2.cpt"],
            ["cycle-3", "cycle-3-notes", "state_2.cpt.bak", "state_best.cpt", "state_2"],
        );
        for name in leftovers.iter().chain(&others) {
            let path = folder.join(name);
            if name.starts_with("cycle") { fs::create_dir(path) } else { fs::write(path, "") }.unwrap();
        }
        RunFolder::open(&folder, settings(), &Statistics::default()).unwrap();
        let is_there = |name: &&str| folder.join(name).exists();
        assert!(!leftovers.iter().any(&is_there) && others.iter().all(&is_there));
        // settings are fixed once a cycle is complete
        let other = Settings { steps: 20, ..settings() };
        let progress = RunFolder::open(&folder, other.clone(), &Statistics::default()).unwrap().progress;
        let state = StateFile { name: "state_1.cpt".into(), hash: hash(b"as written") };
        let progress = Progress { cycle: 1, state: Some(state), ..progress };
        checkpoint::save(&folder.join(PROGRESS), RUN, &progress).unwrap();
        let message =
            |settings| RunFolder::open(&folder, settings, &Statistics::default()).err().expect("a refusal").to_string();
        assert!(message(settings()).contains("--steps 10 instead of 20"), "{}", message(settings()));
        for (bytes, text) in [(None, "is missing"), (Some("as writteN"), "is truncated or corrupt")] {
            if let Some(bytes) = bytes {
                fs::write(folder.join("state_1.cpt"), bytes).unwrap();
            }
            let found = message(other.clone());
            assert!(found.contains("state_1.cpt") && found.contains(text), "{found}");
        }
        fs::write(folder.join("state_1.cpt"), "as written").unwrap();
        RunFolder::open(&folder, other, &Statistics::default()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
    }
}
