//! Models of PDB files, in ångström there.

use super::Frames;
use crate::coordinates::topology::residue_columns;
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::io::gromacs::gro;
use crate::units::NM_PER_ANGSTROM;
use std::path::Path;

pub fn read(path: &Path) -> Result<Frames> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    let (mut models, mut x) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("ENDMDL") {
            models.push(std::mem::take(&mut x));
        } else if line.starts_with("ATOM") || line.starts_with("HETATM") {
            for axis in 0..3 {
                let value = line.get(30 + 8 * axis..38 + 8 * axis).and_then(|v| v.trim().parse::<f64>().ok());
                let value = value
                    .ok_or_else(|| Error::file(path, format!("line {}: cannot read the coordinates", number + 1)))?;
                x.push(value * NM_PER_ANGSTROM);
            }
        }
    }
    models.push(x);
    models.retain(|x| !x.is_empty());
    if models.is_empty() {
        return Err(Error::file(path, "no ATOM or HETATM record"));
    }
    Frames::join(path, models)
}

/// `topology` names the atoms.
pub fn write(path: &Path, frames: &Frames, topology: &Topology) -> Result<Vec<u8>> {
    use std::fmt::Write;
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
