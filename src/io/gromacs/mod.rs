//! GROMACS files: trajectories (`.trr`, `.xtc`), structures (`.gro`), energies (`.edr`), checkpoints (`.cpt`).
//!
//! All but `.gro` are XDR: big-endian numbers, strings padded to four bytes. Reals are floats in files of a
//! mixed-precision build and doubles in those of a double-precision build; the sizes tell which.

pub mod cpt;
pub mod edr;
pub mod gro;
pub mod trr;
mod xdr;
mod xtc;

use std::ops::Range;

/// Byte range of a frame in a file, and its step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub step: i64,
    pub bytes: Range<usize>,
}

/// Frames of a `.trr`, `.xtc` or `.edr` file. In an `.edr` file a list of names precedes the first.
///
/// Errors: another extension, a file of none of these formats, or one that is cut off (with the frame).
pub fn spans(extension: &str, bytes: &[u8]) -> Result<Vec<Span>, String> {
    match extension {
        "trr" => trr::spans(bytes),
        "xtc" => xtc::spans(bytes),
        "edr" => edr::spans(bytes),
        other => Err(format!("reading frames of .{other} files is not supported")),
    }
}

/// Walks over consecutive frames to the end of the file, their lengths given by `frame`.
fn walk(
    bytes: &[u8],
    start: usize,
    frame: impl Fn(&mut xdr::Reader) -> Result<i64, String>,
) -> Result<Vec<Span>, String> {
    let mut reader = xdr::Reader::new(bytes, start);
    let mut spans = Vec::new();
    while !reader.at_end() {
        let begin = reader.position();
        let step = frame(&mut reader).map_err(|e| format!("frame {}: {e}", spans.len() + 1))?;
        spans.push(Span { step, bytes: begin..reader.position() });
    }
    Ok(spans)
}

/// Files written by GROMACS 2022.5 in mixed and in double precision, compared with what it prints of them.
#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! golden {
        ($name:literal) => {
            include_bytes!(concat!("../../../tests/golden/gromacs/", $name))
        };
    }

    #[test]
    fn energies_are_those_that_gmx_energy_prints() {
        let printed = [
            ([10.111359, 4.396881, -23.606262], [313.496826, 278.582642, 293.024628]),
            ([10.111332, -2.255923, -17.047339], [309.974234, 298.090085, 303.592222]),
        ];
        for (bytes, (u, t)) in [&golden!("mixed.edr")[..], golden!("double.edr")].into_iter().zip(printed) {
            let energies = edr::read(bytes).unwrap();
            assert_eq!(energies.steps, [0, 100, 200]);
            for (name, printed) in [("Potential", u), ("Temperature", t)] {
                let found = energies.series(name).unwrap();
                assert!(found.iter().zip(printed).all(|(a, b)| (a - b).abs() < 1e-6), "{name}: {found:?}");
            }
            assert!(energies.series("Pot").unwrap_err().contains("Potential"));
        }
    }

    #[test]
    fn frames_and_states_are_those_that_gmx_dump_prints() {
        let forces = [[371.174, 866.709, 256.738], [371.180, 482.246, 214.340]];
        for (bytes, forces) in [&golden!("mixed.trr")[..], golden!("double.trr")].into_iter().zip(forces) {
            let frames = trr::read(bytes).unwrap();
            assert_eq!(frames.iter().map(|f| f.step).collect::<Vec<_>>(), [0, 100, 200]);
            assert!(frames.iter().zip(forces).all(|(f, x)| (f.f[0] - x).abs() < 5e-3 && f.f.len() == 66));
            assert_eq!(frames[2].box_vectors, Some([[6.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]]));
        }
        let states = [([2.88779, 3.37258], [1.71158, 1.78499]), ([3.01618, 3.34089], [1.76368, -0.189491])];
        for (bytes, (x, v)) in [&golden!("mixed.cpt")[..], golden!("double.cpt")].into_iter().zip(states) {
            let state = cpt::Checkpoint::new(bytes.to_vec(), 22).unwrap();
            let ends = |values: Vec<f64>| [values[0], values[65]];
            for (found, printed) in [(ends(state.positions()), x), (ends(state.velocities()), v)] {
                assert!(found.iter().zip(printed).all(|(a, b)| (a - b).abs() < 6e-6), "{found:?}");
            }
            let cube = [[6.0, 0.0, 0.0], [0.0, 6.0, 0.0], [0.0, 0.0, 6.0]];
            assert_eq!(state.box_vectors(&cube), Some(cube));
            let (x, v) = (state.positions(), state.velocities());
            let mut edited = cpt::Checkpoint::new(bytes.to_vec(), 22).unwrap();
            edited.set(&x, &v);
            assert_eq!(edited.bytes(), bytes, "to the last bit");
        }
    }

    #[test]
    fn frames_are_found_and_cut_or_damaged_files_are_errors() {
        let files = [
            ("xtc", &golden!("mixed.xtc")[..]),
            ("xtc", golden!("double.xtc")),
            ("trr", golden!("mixed.trr")),
            ("trr", golden!("double.trr")),
            ("edr", golden!("mixed.edr")),
            ("edr", golden!("double.edr")),
        ];
        for (extension, bytes) in files {
            let found = spans(extension, bytes).unwrap();
            assert_eq!(found.iter().map(|span| span.step).collect::<Vec<_>>(), [0, 100, 200], "{extension}");
            assert_eq!(found[2].bytes.end, bytes.len());
            assert!(found.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start));
            for length in 0..bytes.len() {
                let whole = found.iter().any(|span| span.bytes.end == length || span.bytes.start == length);
                assert_eq!(spans(extension, &bytes[..length]).is_ok(), whole || length == 0 && extension != "edr");
            }
            for i in 0..bytes.len() {
                let mut damaged = bytes.to_vec();
                damaged[i] ^= 0xC1;
                let _ = spans(extension, &damaged); // an error or other frames; no panic, no endless memory
            }
        }
        assert!(spans("tng", &[]).unwrap_err().contains("tng"));
    }
}
