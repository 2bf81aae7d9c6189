//! `.gro` files: structures as text, nm, in fixed columns whose width follows from the distance of the decimal points.

use crate::coordinates::topology::residue_columns;
use crate::coordinates::whole::BoxVectors;
use crate::coordinates::Topology;
use std::fmt::Write;

/// Names and residues of the first frame's atoms; empty for lines that are too short.
pub fn names(text: &str) -> Topology {
    let mut lines = text.lines().skip(1);
    let atoms = lines.next().and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    let mut topology = Topology::default();
    for line in lines.take(atoms) {
        let field = |from: usize| line.get(from..from + 5).unwrap_or("").trim();
        topology.residues.push(format!("{}{}", field(5), field(0)));
        topology.names.push(field(10).to_string());
        topology.elements.push(String::new()); // the format has no elements
    }
    topology
}

/// First column of the coordinates.
const START: usize = 20;

/// Coordinates `[atoms][3]` (nm) of every frame, and their boxes, zero where there is none. Errors: a line that cannot
/// be read, a file cut off.
pub fn read(text: &str) -> Result<(Vec<Vec<f64>>, Vec<BoxVectors>), String> {
    let mut lines = text.lines().enumerate();
    let (mut frames, mut boxes) = (Vec::new(), Vec::new());
    while let Some((number, title)) = lines.next() {
        let count = lines.next().map(|(_, line)| line);
        if title.trim().is_empty() && count.is_none_or(|line| line.trim().is_empty()) {
            break; // empty lines at the end
        }
        let count = count.ok_or_else(|| format!("line {}: truncated after the title", number + 1))?;
        let atoms: usize = count
            .trim()
            .parse()
            .map_err(|_| format!("line {}: expected the number of atoms, found `{count}`", number + 2))?;
        let mut x = Vec::new();
        for _ in 0..atoms {
            let (number, line) = lines.next().ok_or("truncated within the atoms")?;
            x.extend(position(line).ok_or_else(|| format!("line {}: could not read the coordinates", number + 1))?);
        }
        let (number, line) = lines.next().ok_or("truncated before the box")?;
        boxes.push(box_vectors(line).ok_or_else(|| format!("line {}: expected a box of 3 or 9 numbers", number + 1))?);
        frames.push(x);
    }
    Ok((frames, boxes))
}

/// Parses the diagonal, and the off-diagonal components if there are any.
fn box_vectors(line: &str) -> Option<BoxVectors> {
    let numbers: Option<Vec<f64>> = line.split_whitespace().map(|field| field.parse().ok()).collect();
    match numbers?[..] {
        [a, b, c] => Some([[a, 0.0, 0.0], [0.0, b, 0.0], [0.0, 0.0, c]]),
        [a, b, c, ay, az, bx, bz, cx, cy] => Some([[a, ay, az], [bx, b, bz], [cx, cy, c]]),
        _ => None,
    }
}

fn position(line: &str) -> Option<[f64; 3]> {
    let numbers = line.get(START..)?;
    let mut points = numbers.match_indices('.').map(|(i, _)| i);
    let width = points.next().zip(points.next()).map(|(a, b)| b - a)?;
    let field = |axis: usize| numbers.get(axis * width..(axis + 1) * width)?.trim().parse().ok();
    Some([field(0)?, field(1)?, field(2)?])
}

/// A position in three columns of width eight, as in PDB files too; None if a number does not fit.
pub(in crate::io) fn columns([a, b, c]: [f64; 3]) -> Option<String> {
    let fields = [a, b, c].map(|v| format!("{v:8.3}"));
    fields.iter().all(|field| field.len() == 8).then(|| fields.concat())
}

/// Error message for an atom whose position does not fit.
pub(in crate::io) fn too_far(frame: usize, atom: &str) -> String {
    format!(
        "frame {}: {atom} has coordinates that do not fit the columns of this format; use dcd, xtc, trr, npy or safetensors",
        frame + 1
    )
}

/// Formats frames `x[n][dimension]` (nm) with the names of the topology and their boxes: one per frame (zero means
/// none), or an empty slice. Errors: a position that does not fit into the columns.
pub fn write(dimension: usize, x: &[f64], boxes: &[BoxVectors], topology: &Topology) -> Result<String, String> {
    let mut text = String::new();
    for (k, frame) in x.chunks_exact(dimension).enumerate() {
        let _ = writeln!(text, "modejump\n{}", topology.n_atoms());
        for (i, r) in frame.chunks_exact(3).enumerate() {
            let (residue, number) = residue_columns(&topology.residues[i], 5);
            let (name, serial) = (&topology.names[i], (i + 1) % 100_000);
            let xyz = columns([r[0], r[1], r[2]]).ok_or_else(|| too_far(k, &topology.label(i)))?;
            let _ = writeln!(text, "{number:>5}{residue:<5}{name:>5}{serial:>5}{xyz}");
        }
        text.push_str(&box_line(boxes.get(k).unwrap_or(&[[0.0; 3]; 3])));
    }
    Ok(text)
}

/// Formats the diagonal, and the off-diagonal components if there are any.
fn box_line([a, b, c]: &BoxVectors) -> String {
    let others = [a[1], a[2], b[0], b[2], c[0], c[1]];
    let others = if others == [0.0; 6] { &[][..] } else { &others };
    let numbers = [a[0], b[1], c[2]];
    numbers.iter().chain(others).map(|v| format!("{v:10.5}")).collect::<String>() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "two waters cut to pieces, t= 0.0\n2\n    1SOL     OW    1   0.123  -1.456  12.789\n    \
                        1SOL    HW1    2  -0.0012   0.0000   1.2345\n   2.0 2.0 2.0\n";

    #[test]
    fn columns_follow_the_decimal_points() {
        let (frames, boxes) = read(&[TEXT, TEXT, "\n"].concat()).unwrap();
        assert_eq!(boxes, [[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]; 2]);
        assert_eq!(frames, vec![vec![0.123, -1.456, 12.789, -0.0012, 0.0, 1.2345]; 2]);
        let topology = names(&TEXT.repeat(2));
        assert_eq!((topology.names, topology.residues), (vec!["OW".into(), "HW1".into()], vec!["SOL1".into(); 2]));
        for cut in [30, 40, 80, 110] {
            assert!(read(&TEXT[..cut]).is_err(), "{cut}");
        }
        assert!(read("title\nmany\n").unwrap_err().contains("line 2"));
    }
}
