//! Models of PDB files (in ångström there).

use super::Frames;
use crate::coordinates::cell::Cell;
use crate::coordinates::topology::residue_columns;
use crate::coordinates::whole::BoxVectors;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::io::gromacs::gro;
use crate::io::read_text;
use crate::units::NM_PER_ANGSTROM;
use std::path::Path;

/// Reads all models, in nm. Errors: coordinates that cannot be read, models of different sizes, or none.
pub fn read(path: &Path) -> Result<Frames> {
    let text = read_text(path)?;
    let (mut models, mut x) = (Vec::new(), Vec::new());
    // box of each model, and the latest one given
    let (mut boxes, mut vectors) = (Vec::new(), [[0.0; 3]; 3]);
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("ENDMDL") {
            models.push(std::mem::take(&mut x));
            boxes.push(vectors);
        } else if line.starts_with("CRYST1") {
            vectors = parse_box(line).unwrap_or_default();
        } else if line.starts_with("ATOM") || line.starts_with("HETATM") {
            for axis in 0..3 {
                let value = line.get(30 + 8 * axis..38 + 8 * axis).and_then(|v| v.trim().parse::<f64>().ok());
                let value = value
                    .ok_or_else(|| Error::file(path, format!("line {}: could not read the coordinates", number + 1)))?;
                x.push(value * NM_PER_ANGSTROM);
            }
        }
    }
    models.push(x);
    boxes.push(vectors);
    let mut of_atoms = models.iter().map(|x| !x.is_empty());
    boxes.retain(|_| of_atoms.next().unwrap_or(false));
    models.retain(|x| !x.is_empty());
    if models.is_empty() {
        return Err(Error::file(path, "no ATOM or HETATM record"));
    }
    Ok(Frames::join(path, models)?.in_boxes(boxes))
}

/// Box of the first CRYST1 record, if it has one: structures without a crystal have a box of 1 Å or of zero size there.
pub fn read_box(path: &Path) -> Result<Option<BoxVectors>> {
    let text = read_text(path)?;
    Ok(text.lines().find(|line| line.starts_with("CRYST1")).and_then(parse_box))
}

fn parse_box(line: &str) -> Option<BoxVectors> {
    let field = |from: usize, to: usize| line.get(from..to.min(line.len()))?.trim().parse::<f64>().ok();
    let lengths = [field(6, 15)?, field(15, 24)?, field(24, 33)?];
    let angles = [field(33, 40)?, field(40, 47)?, field(47, 54)?];
    let is_none = lengths == [1.0; 3] && angles == [90.0; 3];
    let cell = Cell { lengths: lengths.map(|a| a * NM_PER_ANGSTROM), cosines: angles.map(|a| a.to_radians().cos()) };
    cell.vectors().filter(|_| !is_none)
}

/// A CRYST1 record. Errors: a box that does not fit into the columns.
fn box_line(path: &Path, frame: usize, vectors: &BoxVectors) -> Result<String> {
    let cell = Cell::new(vectors);
    let lengths = cell.lengths.map(|length| format!("{:9.3}", length / NM_PER_ANGSTROM)).concat();
    if lengths.len() > 27 {
        let reason = format!("frame {}: a box of {cell} does not fit the columns of this format", frame + 1);
        return Err(Error::file(path, reason + "; use dcd, xtc, trr or safetensors"));
    }
    let angles = cell.angles().map(|angle| format!("{angle:7.2}")).concat();
    Ok(format!("CRYST1{lengths}{angles} P 1           1 \n"))
}

/// Formats frames as models; `topology` names the atoms. A box at the top applies to all frames. If boxes differ, the
/// one at the top is the first frame's, and each model also has its own behind MODEL, where GROMACS, VMD and MDAnalysis
/// read it; programs with one box per file, such as OpenMM and MDTraj, take the last. Errors: a position or box that
/// does not fit into the columns.
pub fn write(path: &Path, frames: &Frames, topology: &Topology) -> Result<Vec<u8>> {
    use std::fmt::Write;
    let boxes = frames.boxes.iter().enumerate().map(|(k, vectors)| box_line(path, k, vectors));
    let boxes = boxes.collect::<Result<Vec<_>>>()?;
    let mut text = boxes.first().cloned().unwrap_or_default();
    let differ = boxes.windows(2).any(|pair| pair[0] != pair[1]);
    for (model, x) in frames.x.chunks_exact(frames.dimension).enumerate() {
        let _ = writeln!(text, "MODEL     {:4}", (model + 1) % 10_000);
        if differ {
            text.push_str(&boxes[model]);
        }
        for (i, r) in x.chunks_exact(3).enumerate() {
            let (name, (residue, number)) = (&topology.names[i], residue_columns(&topology.residues[i], 4));
            let name = if name.len() < 4 { format!(" {name}") } else { name.clone() };
            // three letters and a free column, which a fourth letter may use
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
