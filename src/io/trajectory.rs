//! Trajectories: PDB, GRO, DCD, XTC, TRR, `.npy` and safetensors, chosen by the file's extension. Frames are `x[n][atoms][3]` in nm.

use super::dcd;
use super::gromacs::{gro, trr};
use crate::coordinates::topology::residue_columns;
use crate::coordinates::vector::distance;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::io::model_file::{self, Data};
use crate::io::{check_writable, write_atomically};
use crate::units::NM_PER_ANGSTROM;
use std::collections::BTreeMap;
use std::path::Path;

/// Configurations of one molecule or abstract system.
#[derive(Clone, Debug, PartialEq)]
pub struct Frames {
    /// Numbers per frame: 3 × atoms for molecules.
    pub dimension: usize,
    /// `[n][dimension]`, nm.
    pub x: Vec<f64>,
}

impl Frames {
    pub fn n(&self) -> usize {
        self.x.len() / self.dimension.max(1)
    }

    /// An error if the frames do not have this many numbers.
    pub fn require(self, path: &Path, dimension: usize) -> Result<Frames> {
        if self.dimension == dimension {
            return Ok(self);
        }
        let reason = format!(
            "frames of {} numbers ({} atoms); {dimension} ({} atoms) are needed",
            self.dimension,
            self.dimension / 3,
            dimension / 3
        );
        Err(Error::file(path, reason))
    }
}

/// When frames were taken, for the formats that say it.
#[derive(Clone, Copy, Debug)]
pub struct Clock<'a> {
    /// Steps that were done at each frame; beyond the last one, and without any, frames are numbered.
    pub steps: &'a [u64],
    /// ps
    pub timestep: f64,
}

/// Samples have no time: they are numbered from 0, and 1 ps apart.
impl Default for Clock<'_> {
    fn default() -> Self {
        Clock { steps: &[], timestep: 1.0 }
    }
}

impl Clock<'_> {
    pub(super) fn step(&self, frame: usize) -> u64 {
        match (self.steps.get(frame), self.steps.last()) {
            (Some(&step), _) => step,
            (None, last) => last.map_or(0, |last| last + 1) + (frame - self.steps.len()) as u64,
        }
    }

    /// ps
    fn time(&self, frame: usize) -> f64 {
        self.step(frame) as f64 * self.timestep
    }
}

/// XTC keeps 1e-5 nm.
const XTC_PRECISION: f32 = 1e5;
/// A bond longer than this (nm) is none.
const LONGEST_BOND: f64 = 0.3;
/// Half of the bonds of molecules, or of beads of several atoms, are shorter (nm).
const LONGEST_MEDIAN: f64 = 0.7;
const FORMATS: &str = "pdb, gro, dcd, xtc, trr, npy and safetensors are known";

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Reads all frames. Errors: unknown extension, truncated or malformed file (with the frame), non-finite coordinates.
pub fn read(path: &Path) -> Result<Frames> {
    let frames = match extension(path).as_str() {
        "pdb" => read_pdb(path)?,
        "gro" => {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
            join(path, gro::read(&text).map_err(|e| Error::file(path, e))?)?
        }
        "dcd" => dcd::read(path)?,
        "xtc" => read_xtc(path)?,
        "trr" => {
            let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
            let frames = trr::read(&bytes).map_err(|e| Error::file(path, e))?;
            join(path, frames.into_iter().map(|frame| frame.x).filter(|x| !x.is_empty()).collect())?
        }
        "npy" => read_npy(path)?,
        "safetensors" => read_safetensors(path)?,
        other => return Err(unknown(path, other)),
    };
    if let Some(i) = frames.x.iter().position(|v| !v.is_finite()) {
        let (frame, atom) = (i / frames.dimension, i % frames.dimension / 3);
        return Err(Error::file(path, format!("frame {}: atom {} is at {}", frame + 1, atom + 1, frames.x[i])));
    }
    Ok(frames)
}

/// Frames of these atoms; `whose` says of what they are the list. Errors: also another number of atoms, and another order or other names in
/// a format that has them.
pub fn read_of(path: &Path, atoms: &Topology, whose: &str) -> Result<Frames> {
    let frames = read(path)?.require(path, 3 * atoms.n_atoms())?;
    let given = match extension(path).as_str() {
        "pdb" => Topology::from_pdb(path)?.0,
        "gro" => gro::names(&std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?),
        _ => return Ok(frames),
    };
    atoms.require_order(&given, whose).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(frames)
}

/// Frames in which atoms of a bond are too far apart for one: in Angstrom, in another order, of a molecule that is not whole.
pub struct Torn {
    frames: usize,
    of: usize,
    /// Atoms of the first few of the bonds.
    bonds: String,
    whose: String,
    /// Whether most frames have one bond torn.
    pub are_most: bool,
}

impl std::fmt::Display for Torn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Torn { frames, of, bonds, whose, .. } = self;
        write!(
            f,
            "in {frames} of {of} frames atoms bonded in the {whose} are more than {LONGEST_BOND} nm apart: {bonds}"
        )
    }
}

/// The frames, if any, in which a bond of these atoms is none; `whose` says of what `atoms` are the list.
pub fn torn_frames(frames: &Frames, atoms: &Topology, whose: &str) -> Option<Torn> {
    const NAMED: usize = 3;
    let rows = || frames.x.chunks_exact(frames.dimension);
    let is_torn = |x: &[f64], [i, j]: [usize; 2]| distance(x, i, j) > LONGEST_BOND;
    let of_bond = |&bond: &[usize; 2]| (bond, rows().filter(|x| is_torn(x, bond)).count());
    let torn: Vec<([usize; 2], usize)> = atoms.bonds.iter().map(of_bond).filter(|(_, count)| *count > 0).collect();
    if torn.is_empty() {
        return None;
    }
    let name = |(bond, _): &([usize; 2], usize)| bond.map(|i| atoms.label(i)).join(" and ");
    let mut bonds = torn.iter().take(NAMED).map(name).collect::<Vec<_>>().join(", ");
    if torn.len() > NAMED {
        bonds += &format!(", and {} bonds more", torn.len() - NAMED);
    }
    Some(Torn {
        frames: rows().filter(|x| torn.iter().any(|(bond, _)| is_torn(x, *bond))).count(),
        of: frames.n(),
        bonds,
        whose: whose.into(),
        are_most: torn.iter().any(|(_, count)| 2 * count > frames.n()),
    })
}

/// Errors: frames, one in twenty of them or more, whose bonds (`atoms`) are as long as those of molecules are in Angstrom.
pub fn require_nanometres(path: &Path, frames: &Frames, atoms: &Topology) -> Result<()> {
    let median = |x: &[f64]| {
        let mut lengths: Vec<f64> = atoms.bonds.iter().map(|&[i, j]| distance(x, i, j)).collect();
        let middle = lengths.len() / 2;
        *lengths.select_nth_unstable_by(middle, f64::total_cmp).1
    };
    if atoms.bonds.is_empty() {
        return Ok(());
    }
    let rows = frames.x.chunks_exact(frames.dimension).map(median).enumerate();
    let long: Vec<(usize, f64)> = rows.filter(|(_, median)| *median > LONGEST_MEDIAN).collect();
    match long.first() {
        Some((row, median)) if 20 * long.len() >= frames.n() => Err(Error::file(
            path,
            format!(
                "in {} of {} frames, the first of them frame {}, half of the bonds are longer than {median:.2} nm: coordinates have to be \
                 in nm, not Angstrom, and of whole molecules",
                long.len(),
                frames.n(),
                row + 1
            ),
        )),
        _ => Ok(()),
    }
}

/// Errors: a format that has no place for an array of this name beside the frames, which [`write()`] would leave out.
pub fn require_array(path: &Path, name: &str) -> Result<()> {
    match extension(path).as_str() {
        "safetensors" => Ok(()),
        other => {
            Err(Error::file(path, format!("`{other}` files hold no `{name}` beside the frames; write safetensors")))
        }
    }
}

/// Errors: the name of a file of frames, for something that is written as safetensors: it would hold another format than it says.
pub fn require_tensors(path: &Path, what: &str) -> Result<()> {
    match ["npy", "dcd", "xtc", "trr", "pdb", "gro"].contains(&extension(path).as_str()) {
        true => Err(Error::file(path, format!("{what} are written as safetensors: give another extension"))),
        false => Ok(()),
    }
}

/// Writes frames, and for safetensors further arrays `[n]` beside them. `topology` names the atoms of a PDB file.
pub fn write(path: &Path, frames: &Frames, topology: Option<&Topology>, extra: &[(&str, &[f64])]) -> Result<()> {
    write_timed(path, frames, Clock::default(), topology, extra)
}

/// The same for frames of a trajectory in time.
pub fn write_timed(
    path: &Path,
    frames: &Frames,
    clock: Clock,
    topology: Option<&Topology>,
    extra: &[(&str, &[f64])],
) -> Result<()> {
    check_format(path, frames.dimension, topology)?;
    let bytes = match extension(path).as_str() {
        "pdb" => write_pdb(path, frames, topology)?,
        "dcd" => dcd::to_bytes(frames, clock),
        "xtc" => write_xtc(path, frames, clock)?,
        "trr" => write_trr(frames, clock),
        "gro" => {
            let text = gro::write(frames.dimension, &frames.x, named(path, frames.dimension, topology)?);
            text.map_err(|reason| Error::file(path, reason))?.into_bytes()
        }
        "npy" => write_npy(path, frames)?,
        "safetensors" => write_safetensors(frames, extra)?,
        other => return Err(unknown(path, other)),
    };
    write_atomically(path, &bytes)
}

/// Whether [`write()`] will find all it needs for frames of this dimension, to be asked before long work: an extension it knows, the atoms
/// that the format names, a place for the file.
pub fn check(path: &Path, dimension: usize, topology: Option<&Topology>) -> Result<()> {
    check_format(path, dimension, topology)?;
    check_writable(path)
}

fn check_format(path: &Path, dimension: usize, topology: Option<&Topology>) -> Result<()> {
    match extension(path).as_str() {
        "pdb" | "gro" | "dcd" | "xtc" | "trr" if !dimension.is_multiple_of(3) => {
            let reason =
                format!("this format is of atoms, and {dimension} coordinates are none; write npy or safetensors");
            Err(Error::file(path, reason))
        }
        "pdb" | "gro" => named(path, dimension, topology).map(drop),
        "dcd" | "xtc" | "trr" | "npy" | "safetensors" => Ok(()),
        other => Err(unknown(path, other)),
    }
}

fn unknown(path: &Path, extension: &str) -> Error {
    Error::file(path, format!("unknown extension `{extension}`; {FORMATS}"))
}

/// `[n][atoms][3]`, or `[n][dimension]` where the dimension is no multiple of three.
fn shape(frames: &Frames) -> Vec<usize> {
    match frames.dimension % 3 {
        0 => vec![frames.n(), frames.dimension / 3, 3],
        _ => vec![frames.n(), frames.dimension],
    }
}

fn from_shape(path: &Path, shape: &[usize], x: Vec<f64>) -> Result<Frames> {
    let dimension = match *shape {
        [_, atoms, 3] => atoms.checked_mul(3),
        [_, dimension] => Some(dimension),
        _ => None,
    };
    match dimension {
        Some(dimension) if dimension > 0 => Ok(Frames { dimension, x }),
        _ => Err(Error::file(
            path,
            format!("`x` has shape {shape:?}; [frames][atoms][3] or [frames][dimension] is needed"),
        )),
    }
}

fn read_safetensors(path: &Path) -> Result<Frames> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let (mut tensors, _) = model_file::read_tensors(&path.display().to_string(), &bytes)?;
    let x = tensors.remove("x").ok_or_else(|| Error::file(path, "no tensor `x`"))?;
    from_shape(path, &x.shape, x.data)
}

fn write_safetensors(frames: &Frames, extra: &[(&str, &[f64])]) -> Result<Vec<u8>> {
    let mut tensors = BTreeMap::from([("x".to_string(), (shape(frames), Data::F64(frames.x.clone())))]);
    for (name, values) in extra {
        let shape = match values.len() == frames.n() || frames.n() == 0 {
            true => vec![values.len()],
            false => vec![frames.n(), values.len() / frames.n()],
        };
        tensors.insert(name.to_string(), (shape, Data::F64(values.to_vec())));
    }
    model_file::write_tensors(&tensors, Default::default())
}

fn read_npy(path: &Path) -> Result<Frames> {
    use ndarray_npy::{ViewNpyError, ViewNpyExt};
    let file = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    // where numbers lie as the views want them; a view allocates nothing that the file does not hold
    let mut numbers = vec![0.0f64; file.len().div_ceil(8)];
    let bytes = &mut bytemuck::cast_slice_mut(&mut numbers)[..file.len()];
    bytes.copy_from_slice(&file);
    let bytes = &*bytes;
    // The reader asserts that what a shape names can be numbered; a panic there is a malformed file.
    let read = std::panic::catch_unwind(|| match ndarray::ArrayViewD::<f64>::view_npy(bytes) {
        Err(ViewNpyError::WrongDescriptor(_)) => Ok(ndarray::ArrayViewD::<f32>::view_npy(bytes)?.mapv(f64::from)),
        array => Ok(array?.to_owned()),
    });
    let array = read.map_err(|_| Error::file(path, "malformed shape"))?.map_err(|e| {
        let reason = match e {
            ViewNpyError::WrongDescriptor(_) | ViewNpyError::NonNativeEndian => {
                "numbers of this type are not read: save them as float32 or float64, little-endian".into()
            }
            e => e.to_string(),
        };
        Error::file(path, reason)
    })?;
    from_shape(path, array.shape(), array.iter().copied().collect())
}

fn write_npy(path: &Path, frames: &Frames) -> Result<Vec<u8>> {
    use ndarray_npy::WriteNpyExt;
    let bad = |e: String| Error::file(path, e);
    let array = ndarray::ArrayD::from_shape_vec(shape(frames), frames.x.clone()).map_err(|e| bad(e.to_string()))?;
    let mut bytes = Vec::new();
    array.write_npy(&mut bytes).map_err(|e| bad(e.to_string()))?;
    Ok(bytes)
}

fn read_xtc(path: &Path) -> Result<Frames> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    super::gromacs::spans("xtc", &bytes).map_err(|reason| Error::file(path, reason))?;
    // The reader asserts what it finds in headers; a panic there is a malformed file.
    let read = std::panic::catch_unwind(move || {
        let length = bytes.len() as u64;
        let mut reader = molly::XTCReader::new(std::io::Cursor::new(bytes));
        let (mut x, mut dimension, mut count) = (Vec::new(), 0, 0usize);
        let mut frame = molly::Frame::default();
        while reader.file.position() < length {
            count += 1;
            reader.read_frame(&mut frame).map_err(|e| format!("frame {count}: {e}"))?;
            if count > 1 && frame.positions.len() != dimension {
                return Err(format!(
                    "frame {count} has {} atoms, the first {}",
                    frame.positions.len() / 3,
                    dimension / 3
                ));
            }
            dimension = frame.positions.len();
            x.extend(frame.positions.iter().map(|&v| f64::from(v)));
        }
        Ok(Frames { dimension, x })
    });
    read.unwrap_or_else(|_| Err("malformed frame".into())).map_err(|reason| Error::file(path, reason))
}

fn write_xtc(path: &Path, frames: &Frames, clock: Clock) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut writer = molly::XTCWriter::new(&mut bytes);
    for (i, x) in frames.x.chunks_exact(frames.dimension).enumerate() {
        let frame = molly::Frame {
            step: clock.step(i) as u32,
            time: clock.time(i) as f32,
            precision: XTC_PRECISION,
            positions: x.iter().map(|&v| v as f32).collect(),
            ..molly::Frame::default()
        };
        writer.write_frame(&frame).map_err(|e| Error::file(path, format!("frame {}: {e}", i + 1)))?;
    }
    Ok(bytes)
}

fn write_trr(frames: &Frames, clock: Clock) -> Vec<u8> {
    let frames = frames.x.chunks_exact(frames.dimension).enumerate();
    let frame = |(i, x): (usize, &[f64])| {
        let (step, time) = (clock.step(i) as i32, clock.time(i));
        trr::Frame { step, time, box_vectors: Some([[0.0; 3]; 3]), x: x.to_vec(), ..trr::Frame::default() }
    };
    trr::write(&frames.map(frame).collect::<Vec<_>>())
}

/// Frames of equal size, at least one.
fn join(path: &Path, frames: Vec<Vec<f64>>) -> Result<Frames> {
    let dimension = frames.first().map_or(0, Vec::len);
    if dimension == 0 {
        return Err(Error::file(path, "no frame with positions"));
    }
    if let Some(i) = frames.iter().position(|x| x.len() != dimension) {
        let (here, first) = (frames[i].len() / 3, dimension / 3);
        return Err(Error::file(path, format!("frame {} has {here} atoms, the first {first}", i + 1)));
    }
    Ok(Frames { dimension, x: frames.concat() })
}

fn read_pdb(path: &Path) -> Result<Frames> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let (mut x, mut dimension, mut start) = (Vec::new(), None, 0);
    let mut close = |x: &Vec<f64>, start: &mut usize| {
        let length = x.len() - *start;
        *start = x.len();
        match length {
            0 => Ok(()),
            n if *dimension.get_or_insert(n) == n => Ok(()),
            n => Err(Error::file(path, format!("a model has {} atoms, the first another number", n / 3))),
        }
    };
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("ENDMDL") {
            close(&x, &mut start)?;
        } else if line.starts_with("ATOM") || line.starts_with("HETATM") {
            for axis in 0..3 {
                let value = line.get(30 + 8 * axis..38 + 8 * axis).and_then(|v| v.trim().parse::<f64>().ok());
                x.push(
                    value.ok_or_else(|| {
                        Error::file(path, format!("line {}: cannot read the coordinates", number + 1))
                    })? * NM_PER_ANGSTROM,
                );
            }
        }
    }
    close(&x, &mut start)?;
    let dimension = dimension.ok_or_else(|| Error::file(path, "no ATOM or HETATM record"))?;
    Ok(Frames { dimension, x })
}

/// The topology that a format with names needs. Errors: also names that its columns do not hold, which would be others in the file.
fn named<'a>(path: &Path, dimension: usize, topology: Option<&'a Topology>) -> Result<&'a Topology> {
    let topology = topology
        .ok_or_else(|| Error::file(path, "this format needs a topology; write dcd, xtc, trr, npy or safetensors"))?;
    if 3 * topology.n_atoms() != dimension {
        return Err(Error::file(
            path,
            format!("{} atoms in the topology, {} in the frames", topology.n_atoms(), dimension / 3),
        ));
    }
    let columns = if extension(path) == "gro" { 5 } else { 4 };
    let fits = |i: usize| {
        let (name, residue) = (&topology.names[i], &topology.residues[i]);
        name.len() <= columns && name.is_ascii() && residue.is_ascii()
    };
    match (0..topology.n_atoms()).find(|&i| !fits(i)) {
        None => Ok(topology),
        Some(i) => {
            let reason = format!(
                "{} does not fit into the {columns} columns of a name; write dcd, xtc, trr, npy or safetensors",
                topology.label(i)
            );
            Err(Error::file(path, reason))
        }
    }
}

fn write_pdb(path: &Path, frames: &Frames, topology: Option<&Topology>) -> Result<Vec<u8>> {
    use std::fmt::Write;
    let topology = named(path, frames.dimension, topology)?;
    let mut text = String::new();
    for (model, x) in frames.x.chunks_exact(frames.dimension).enumerate() {
        let _ = writeln!(text, "MODEL     {:4}", (model + 1) % 10_000);
        for (i, r) in x.chunks_exact(3).enumerate() {
            let (name, (residue, number)) = (&topology.names[i], residue_columns(&topology.residues[i], 4));
            let name = if name.len() < 4 { format!(" {name}") } else { name.clone() };
            // three letters and a free column, which a fourth letter may take
            let residue = format!("{residue:>3}");
            let xyz = gro::columns([r[0], r[1], r[2]].map(|v| v / NM_PER_ANGSTROM));
            let xyz = xyz.ok_or_else(|| Error::file(path, gro::too_far(model, &topology.label(i))))?;
            let element = &topology.elements[i];
            let serial = (i + 1) % 100_000;
            let _ = writeln!(
                text,
                "ATOM  {serial:>5} {name:<4} {residue:<4}A{number:>4}    {xyz}  1.00  0.00          {element:>2}"
            );
        }
        text.push_str("ENDMDL\n");
    }
    text.push_str("END\n");
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_gives_the_frames_back() {
        let folder = std::env::temp_dir().join(format!("modejump-trajectory-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let frames = Frames { dimension: 36, x: (0..36 * 7).map(|i| 0.37 * (0.61 * f64::from(i)).sin()).collect() };
        let topology = Topology {
            names: (0..12).map(|i| format!("C{i}")).collect(),
            elements: vec!["C".into(); 12],
            residues: vec!["LIG1".into(); 12],
            bonds: vec![],
        };
        for (extension, tolerance) in [
            ("pdb", 5.1e-5),
            ("gro", 5.1e-4),
            ("dcd", 1e-7),
            ("xtc", 6e-6),
            ("trr", 0.0),
            ("npy", 0.0),
            ("safetensors", 0.0),
        ] {
            let path = folder.join(format!("frames.{extension}"));
            write(&path, &frames, Some(&topology), &[]).unwrap();
            let back = read(&path).unwrap();
            assert_eq!(back.dimension, 36, "{extension}");
            assert_eq!(back.n(), 7, "{extension}");
            let error = frames.x.iter().zip(&back.x).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(error <= tolerance, "{extension}: {error}");
            // a file cut short is an error or has fewer frames, never a panic
            let bytes = std::fs::read(&path).unwrap();
            for cut in [0, 1, 10, bytes.len() / 2, bytes.len() - 1] {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                if let Ok(cut) = read(&path) {
                    assert!(cut.n() <= 7);
                }
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    /// Sizes that a header claims and its file does not hold.
    #[test]
    fn no_memory_is_taken_for_what_is_not_there() {
        let folder = std::env::temp_dir().join(format!("modejump-hostile-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("frames.npy");
        write(&path, &Frames { dimension: 3, x: vec![0.5; 6] }, None, &[]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let shape = bytes.windows(9).position(|w| w == b"(2, 1, 3)").expect("a shape");
        bytes[shape..shape + 28].copy_from_slice(b"(1000000000, 22, 1000000), }");
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).is_err());
        // nothing at all, of a size that has no number
        for claimed in
            [b"(0, 9223372036854775, 3), }  ", b"(0, 6148914691236517206, 3),}", b"(0, 18446744073709551615),}  "]
        {
            bytes[shape..shape + 29].copy_from_slice(claimed);
            std::fs::write(&path, &bytes[..bytes.len() - 48]).unwrap();
            assert!(read(&path).map_or(true, |frames| frames.n() == 0), "{}", String::from_utf8_lossy(claimed));
        }

        let path = folder.join("frames.xtc");
        let frames = Frames { dimension: 36, x: (0..36).map(f64::from).collect() };
        write(&path, &frames, None, &[]).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // the number of atoms is there twice
        for place in [4, 52] {
            assert_eq!(bytes[place..place + 4], 12i32.to_be_bytes());
            bytes[place..place + 4].copy_from_slice(&i32::MAX.to_be_bytes());
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("2147483647 atoms in"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn numbers_of_other_types_are_told_how_to_be_saved() {
        use ndarray_npy::WriteNpyExt;
        let path = std::env::temp_dir().join(format!("modejump-integers-{}.npy", std::process::id()));
        let mut bytes = Vec::new();
        ndarray::arr2(&[[1i64, 2, 3]]).write_npy(&mut bytes).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("save them as float32 or float64"));
        let descriptor = bytes.windows(3).position(|w| w == b"<i8").expect("a type");
        bytes[descriptor..descriptor + 3].copy_from_slice(b">f8");
        std::fs::write(&path, &bytes).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("save them as float32 or float64"));
        std::fs::remove_file(&path).unwrap();
    }

    /// Columns have a width, which what is written into them must not burst.
    #[test]
    fn names_and_numbers_stay_in_their_columns() {
        let folder = std::env::temp_dir().join(format!("modejump-columns-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut frames = Frames { dimension: 9, x: [0.25, -99.9, 999.9].repeat(3) };
        let own = |names: [&str; 3]| names.map(String::from).to_vec();
        let mut topology = Topology {
            names: own(["C", "HH31", "O"]),
            elements: own(["C", "H", "O"]),
            residues: own(["NALA1", "ALA123456", "1PE123"]),
            bonds: vec![],
        };
        for (extension, residues) in [("pdb", ["NALA1", "ALA3456", "1PE123"]), ("gro", ["NALA1", "ALA23456", "1PE123"])]
        {
            let path = folder.join(format!("frames.{extension}"));
            write(&path, &frames, Some(&topology), &[]).unwrap();
            let back = read_of(&path, &topology, "topology").unwrap();
            assert!(frames.x.iter().zip(&back.x).all(|(a, b)| (a - b).abs() < 1e-9), "{extension}: {:?}", back.x);
            let names = match extension {
                "pdb" => Topology::from_pdb(&path).unwrap().0,
                _ => gro::names(&std::fs::read_to_string(&path).unwrap()),
            };
            assert_eq!((names.residues, names.names), (own(residues), topology.names.clone()), "{extension}");
            frames.x[4] = -1000.0;
            let message = write(&path, &frames, Some(&topology), &[]).unwrap_err().to_string();
            assert!(message.contains("frame 1: ALA123456:HH31 (atom 2)") && message.contains("write dcd"), "{message}");
            frames.x[4] = -99.9;
            topology.names[2] = "O12345".into();
            let message = check(&path, 9, Some(&topology)).unwrap_err().to_string();
            assert!(message.contains("1PE123:O12345 (atom 3)"), "{message}");
            topology.names[2] = "O".into();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn formats_with_times_have_those_of_the_clock() {
        let folder = std::env::temp_dir().join(format!("modejump-times-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let frames = Frames { dimension: 36, x: (0..36 * 3).map(|i| (0.61 * f64::from(i)).sin()).collect() };
        let steps = [50, 100, 120];
        for (clock, expected, between) in [
            (Clock { steps: &steps, timestep: 0.002 }, [(50, 0.1), (100, 0.2), (120, 0.24)], 50),
            (Clock::default(), [(0, 0.0), (1, 1.0), (2, 2.0)], 1),
        ] {
            let path = |extension: &str| folder.join(format!("frames.{extension}"));
            let written = |extension: &str| {
                write_timed(&path(extension), &frames, clock, None, &[]).unwrap();
                std::fs::read(path(extension)).unwrap()
            };
            let mut times: Vec<(i64, f64)> =
                trr::read(&written("trr")).unwrap().iter().map(|f| (i64::from(f.step), f.time)).collect();
            let mut reader = molly::XTCReader::new(std::io::Cursor::new(written("xtc")));
            for _ in 0..3 {
                let mut frame = molly::Frame::default();
                reader.read_frame(&mut frame).unwrap();
                times.push((i64::from(frame.step), f64::from(frame.time)));
            }
            for ((step, time), (expected, ps)) in times.iter().zip(expected.iter().cycle()) {
                assert!(step == expected && (time - ps).abs() < 1e-6, "{times:?}");
            }
            let dcd = written("dcd");
            let int = |k: usize| u32::from_le_bytes(dcd[4 + 4 * k..8 + 4 * k].try_into().unwrap());
            assert_eq!([int(1), int(2), int(3)], [3, expected[0].0 as u32, between]);
            let timestep = f64::from(f32::from_bits(int(10))) * 0.04888821;
            assert!((timestep - clock.timestep).abs() < 1e-6, "{timestep}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn coordinates_that_are_no_atoms_are_refused_by_formats_of_atoms() {
        let frames = Frames { dimension: 2, x: vec![0.5; 6] };
        for extension in ["pdb", "gro", "dcd", "xtc", "trr"] {
            let path = std::env::temp_dir().join(format!("modejump-no-atoms-{}.{extension}", std::process::id()));
            let message = write(&path, &frames, None, &[]).unwrap_err().to_string();
            assert!(message.ends_with("2 coordinates are none; write npy or safetensors"), "{message}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn an_unknown_extension_is_named() {
        let error = read(Path::new("frames.mdcrd")).unwrap_err().to_string();
        assert!(error.contains("mdcrd") && error.contains("xtc"), "{error}");
    }
}
