//! The state whose free energy relative to the rest is computed.

use modejump::coordinates::Region;
use modejump::histogram::on_arc;
use modejump::{Error, Result};
use std::f64::consts::TAU;

/// Rounding of a whole turn, rad: from -3.1416 to 3.1416, or from 0 to 6.28, is the whole circle.
const ROUNDING: f64 = 0.01;

const EXAMPLE: &str = r#"{"along": {"torsion": [0, 1, 2, 3]}, "range": [-1.05, 1.05]}"#;

#[derive(Clone, Debug)]
pub enum State {
    /// Interval from, to of the first torsion considered, rad.
    Arc([f64; 2]),
    /// A region in any other variable.
    Region(Region),
}

impl State {
    /// Default state.
    pub const DEFAULT: State = State::Arc([0.0, 2.2]);

    /// Parses a state from the command line. Errors: text that is neither an interval nor a region.
    pub fn parse(text: &str) -> std::result::Result<State, String> {
        if text.trim_start().starts_with('{') {
            let region = serde_json::from_str(text);
            return region.map(State::Region).map_err(|e| format!("{e}; expected a region such as '{EXAMPLE}'"));
        }
        let numbers: Vec<Option<f64>> = text.split(',').map(|number| number.trim().parse().ok()).collect();
        let [Some(from), Some(to)] = numbers[..] else {
            return Err(format!(
                "expected two numbers, from,to of φ or of the first --torsion, or a region such as '{EXAMPLE}'"
            ));
        };
        let is_angle = |v: f64| v.abs() < TAU + ROUNDING;
        match is_angle(from) && is_angle(to) {
            true => Ok(State::Arc([from, to])),
            false => Err("both must be in radians, from -2 pi to 2 pi; 120 degrees are 2.094".into()),
        }
    }

    /// Text of the state, with the name of the torsion.
    pub fn in_words(&self, torsion: &str) -> String {
        match self {
            State::Arc([from, to]) => format!("{torsion} from {from} to {to}"),
            State::Region(_) => "the region of --state".into(),
        }
    }

    /// Errors: the region refers to atoms that configurations of `dimension` numbers do not have.
    pub fn check(&self, dimension: usize) -> Result<()> {
        match self {
            State::Arc(_) => Ok(()),
            State::Region(region) => region.check(dimension).map_err(|e| Error::invalid(format!("--state: {e}"))),
        }
    }

    /// Whether each configuration of `x[n][dimension]` is in the state; none if there is no torsion to decide by.
    pub fn of(&self, x: &[f64], dimension: usize, torsion: Option<&Vec<f64>>) -> Option<Vec<Option<bool>>> {
        match self {
            State::Arc([from, to]) => {
                let is_whole = to - from >= TAU - ROUNDING;
                let contains = |angle: &f64| Some(is_whole || on_arc(*angle, *from, *to));
                Some(torsion?.iter().map(contains).collect())
            }
            State::Region(region) => Some(x.chunks_exact(dimension).map(|x| Some(region.contains(x))).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_turn_may_be_rounded_either_way() {
        let angles = vec![-3.1, -1.0, 0.0, 1.0, 3.1];
        let of = |text: &str| State::parse(text).unwrap().of(&[], 3, Some(&angles)).unwrap();
        let count = |text: &str| of(text).into_iter().filter(|inside| *inside == Some(true)).count();
        for whole in ["-3.1416,3.1416", "-3.14,3.14", "0,6.2832", "0,6.28", "-6.28,6.28"] {
            assert_eq!(count(whole), 5, "{whole}");
        }
        assert_eq!(["-1.5,1.5", "3.0,-3.0", "0.1,6.2", "1,1"].map(count), [3, 2, 4, 0]);
    }
}
