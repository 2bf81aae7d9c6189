//! Trajectories: PDB, GRO, DCD, XTC, TRR, `.npy` and safetensors, chosen by the file's extension. Frames are
//! `x[n][atoms][3]` in nm.

mod bonds;
mod dcd;
mod frames;
mod npy;
mod pdb;
#[cfg(test)]
mod tests;
mod trr;
mod xtc;

pub use bonds::{make_whole, require_bonded, require_nanometres, torn_frames, Torn};
pub use frames::{Clock, Frames};
pub use pdb::read_box;

use crate::coordinates::whole::box_from_slice;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::io::gromacs::gro;
use crate::io::model_file::{self, Data};
use crate::io::{check_writable, is_special, read_text, write_atomically};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::panic::UnwindSafe;
use std::path::Path;
use std::sync::Once;

/// File format, given by the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Pdb,
    Gro,
    Dcd,
    Xtc,
    Trr,
    Npy,
    Safetensors,
}

impl Format {
    const EXTENSIONS: [(&'static str, Format); 7] = [
        ("pdb", Format::Pdb),
        ("gro", Format::Gro),
        ("dcd", Format::Dcd),
        ("xtc", Format::Xtc),
        ("trr", Format::Trr),
        ("npy", Format::Npy),
        ("safetensors", Format::Safetensors),
    ];

    /// Format of a file by its extension. Errors: an unknown extension.
    pub fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let known = Format::EXTENSIONS.iter().find(|(name, _)| *name == extension);
        known.map(|(_, format)| *format).ok_or_else(|| {
            let known = Format::EXTENSIONS.map(|(name, _)| name).join(", ");
            Error::file(path, format!("unknown extension `{extension}`; known extensions: {known}"))
        })
    }

    /// Whether the file's extension is that of this format.
    pub fn is_of(self, path: &Path) -> bool {
        Format::of(path).is_ok_and(|format| format == self)
    }

    /// Whether the format can only hold frames of atoms.
    fn is_of_atoms(self) -> bool {
        !matches!(self, Format::Npy | Format::Safetensors)
    }

    /// Columns for an atom's name, in formats with names.
    fn name_columns(self) -> Option<usize> {
        match self {
            Format::Pdb => Some(4),
            Format::Gro => Some(5),
            _ => None,
        }
    }
}

/// Runs a reader of another crate, which panics on malformed files, without its panic's message. None if it panicked.
fn without_panic<T>(read: impl FnOnce() -> T + UnwindSafe) -> Option<T> {
    thread_local!(static READS: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !READS.get() {
                before(panic);
            }
        }));
    });
    READS.set(true);
    let result = std::panic::catch_unwind(read);
    READS.set(false);
    result.ok()
}

/// Errors: a file without contents, or one that a program has compressed as a whole.
fn check_beginning(path: &Path) -> Result<()> {
    if is_special(path) {
        return Ok(());
    }
    let mut beginning = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(3).read_to_end(&mut beginning).map_err(|e| Error::io(path, e))?;
    match beginning[..] {
        [] => Err(Error::file(path, "the file is empty")),
        [0x1f, 0x8b, ..] | [b'B', b'Z', b'h'] | [0xfd, b'7', b'z'] | [0x28, 0xb5, 0x2f] => {
            Err(Error::file(path, "the file is compressed; decompress it first (gunzip, bunzip2, unxz, unzstd)"))
        }
        _ => Ok(()),
    }
}

/// Reads all frames. Errors: unknown extension, truncated or malformed file (with the frame), non-finite coordinates.
pub fn read(path: &Path) -> Result<Frames> {
    let format = Format::of(path)?;
    check_beginning(path)?;
    let frames = match format {
        Format::Pdb => pdb::read(path),
        Format::Gro => {
            let (frames, boxes) = gro::read(&read_text(path)?).map_err(|e| Error::file(path, e))?;
            Ok(Frames::join(path, frames)?.in_boxes(boxes))
        }
        Format::Dcd => dcd::read(path),
        Format::Xtc => xtc::read(path),
        Format::Trr => trr::read(path),
        Format::Npy => npy::read(path),
        Format::Safetensors => read_safetensors(path),
    }?;
    match frames.x.iter().position(|v| !v.is_finite()) {
        None => Ok(frames),
        Some(i) => {
            let (frame, atom) = (i / frames.dimension, i % frames.dimension / 3);
            Err(Error::file(path, format!("frame {}: a coordinate of atom {} is {}", frame + 1, atom + 1, frames.x[i])))
        }
    }
}

/// Reads frames of these atoms; `whose` names the source of the list. Errors: those of [`read`], another number of
/// atoms, and, in formats with names, another order or other names.
pub fn read_of(path: &Path, atoms: &Topology, whose: &str) -> Result<Frames> {
    let frames = read(path)?.require(path, 3 * atoms.n_atoms())?;
    let given = match Format::of(path)? {
        Format::Pdb => Topology::from_pdb(path)?.0,
        Format::Gro => gro::names(&read_text(path)?),
        _ => return Ok(frames),
    };
    atoms.require_order(&given, whose).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(frames)
}

/// Requires a format for further arrays. Errors: one that cannot store an array of this name beside the frames, so that
/// [`write()`] would leave it out.
pub fn require_array(path: &Path, name: &str) -> Result<()> {
    match Format::Safetensors.is_of(path) {
        true => Ok(()),
        false => {
            let reason = format!("this format cannot store `{name}` with the frames; use the extension safetensors");
            Err(Error::file(path, reason))
        }
    }
}

/// Formats of numbers, texts and networks; safetensors output must not have their extensions.
const OTHER_FORMATS: [&str; 10] = ["csv", "json", "jsonl", "npz", "onnx", "pt", "pth", "svg", "txt", "xml"];

/// Checks the name of a file to be written as safetensors. Errors: the extension of a frame format or of another
/// well-known format, which the contents would contradict.
pub fn require_tensors(path: &Path, what: &str) -> Result<()> {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let is_of_frames = Format::of(path).is_ok_and(|format| format != Format::Safetensors);
    match is_of_frames || OTHER_FORMATS.iter().any(|other| extension == *other) {
        true => Err(Error::file(path, format!("{what} are written as safetensors; use that extension"))),
        false => Ok(()),
    }
}

/// Writes frames, and for safetensors further arrays `[n]` beside them. `topology` names the atoms of a PDB file.
/// Errors: those of [`check`], names or positions that do not fit into the format's columns, and those of writing.
pub fn write(path: &Path, frames: &Frames, topology: Option<&Topology>, extra: &[(&str, &[f64])]) -> Result<()> {
    write_timed(path, frames, Clock::default(), topology, extra)
}

/// As [`write()`], for frames of a trajectory in time. Boxes are stored in all formats but npy; in safetensors as `box`
/// `[n][3][3]`, nm.
pub fn write_timed(
    path: &Path,
    frames: &Frames,
    clock: Clock,
    topology: Option<&Topology>,
    extra: &[(&str, &[f64])],
) -> Result<()> {
    let (dimension, boxes) = (frames.dimension, &frames.boxes);
    check_format(path, dimension, topology)?;
    if !boxes.is_empty() && boxes.len() != frames.n() {
        return Err(Error::file(path, format!("{} boxes for {} frames", boxes.len(), frames.n())));
    }
    let bytes = match Format::of(path)? {
        Format::Pdb => pdb::write(path, frames, named(path, dimension, topology, 4)?)?,
        Format::Gro => {
            let text = gro::write(dimension, &frames.x, boxes, named(path, dimension, topology, 5)?);
            text.map_err(|reason| Error::file(path, reason))?.into_bytes()
        }
        Format::Dcd => dcd::to_bytes(frames, clock),
        Format::Xtc => xtc::write(path, frames, clock)?,
        Format::Trr => trr::write(frames, clock),
        Format::Npy => npy::write(path, frames)?,
        Format::Safetensors => write_safetensors(frames, extra)?,
    };
    write_atomically(path, &bytes)
}

/// Checks in advance of long work that [`write()`] will have all it needs for frames of this dimension. Errors: an
/// unknown extension, no atom names for a format with names, no place for the file.
pub fn check(path: &Path, dimension: usize, topology: Option<&Topology>) -> Result<()> {
    check_format(path, dimension, topology)?;
    check_writable(path)
}

fn check_format(path: &Path, dimension: usize, topology: Option<&Topology>) -> Result<()> {
    let format = Format::of(path)?;
    if format.is_of_atoms() && !dimension.is_multiple_of(3) {
        let reason = format!(
            "this format requires three coordinates per atom, found {dimension} coordinates; use npy or safetensors"
        );
        return Err(Error::file(path, reason));
    }
    match format.name_columns() {
        Some(columns) => named(path, dimension, topology, columns).map(drop),
        None => Ok(()),
    }
}

/// Topology for a format with names. Errors: no topology, another number of atoms, or names that do not fit into its
/// columns and would be altered in the file.
fn named<'a>(path: &Path, dimension: usize, topology: Option<&'a Topology>, columns: usize) -> Result<&'a Topology> {
    let topology = topology.ok_or_else(|| {
        Error::file(path, "this format requires a topology; without one, use dcd, xtc, trr, npy or safetensors")
    })?;
    if 3 * topology.n_atoms() != dimension {
        return Err(Error::file(
            path,
            format!("the topology has {} atoms, but the frames have {}", topology.n_atoms(), dimension / 3),
        ));
    }
    let fits = |i: usize| {
        let (name, residue) = (&topology.names[i], &topology.residues[i]);
        name.len() <= columns && name.is_ascii() && residue.is_ascii()
    };
    match (0..topology.n_atoms()).find(|&i| !fits(i)) {
        None => Ok(topology),
        Some(i) => {
            let reason = format!(
                "{}: names must be ASCII and fit the {columns} columns of this format; use dcd, xtc, trr, npy or safetensors",
                topology.label(i)
            );
            Err(Error::file(path, reason))
        }
    }
}

fn read_safetensors(path: &Path) -> Result<Frames> {
    let (mut tensors, _) = model_file::open_tensors(path)?;
    let x = tensors.remove("x").ok_or_else(|| Error::file(path, "tensor `x` is missing"))?;
    let frames = Frames::from_shape(path, &x.shape, x.data)?;
    match tensors.remove("box") {
        Some(boxes) if boxes.shape == [frames.n(), 3, 3] => {
            let (vectors, _) = boxes.data.as_chunks::<9>();
            Ok(frames.in_boxes(vectors.iter().map(box_from_slice).collect()))
        }
        // boxes of something else, or of all frames together
        _ => Ok(frames),
    }
}

fn write_safetensors(frames: &Frames, extra: &[(&str, &[f64])]) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::from([("x".to_string(), (frames.shape(), Data::F64(frames.x.clone())))]);
    if !frames.boxes.is_empty() {
        let numbers = frames.boxes.iter().flatten().flatten().copied().collect();
        tensors.insert("box".into(), (vec![frames.n(), 3, 3], Data::F64(numbers)));
    }
    for (name, values) in extra {
        let shape = match values.len() == frames.n() || frames.n() == 0 {
            true => vec![values.len()],
            false => vec![frames.n(), values.len() / frames.n()],
        };
        tensors.insert(name.to_string(), (shape, Data::F64(values.to_vec())));
    }
    model_file::write_tensors(&tensors, Default::default())
}
