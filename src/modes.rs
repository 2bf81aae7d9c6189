//! Metastable states (modes): regions of configuration space.

use crate::coordinates::{Along, Region};
use crate::error::{Error, Result};
use crate::target::Target;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::sync::Arc;

/// Definition of a mode, as in model files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeRegion {
    pub name: String,
    /// Conditions that must all hold in the mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Region>,
    /// Centre of the mode, one value for each reaction coordinate of `nearest_along`, rad or nm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub centre: Vec<f64>,
}

/// A target restricted to one mode: e^−u within the mode, zero outside. Used in training the mode's generator.
pub struct Within<'a> {
    pub target: &'a mut dyn Target,
    pub modes: Modes,
    pub mode: usize,
}

impl Within<'_> {
    fn forbid(&self, x: &[f64], u: &mut [f64]) {
        let dimension = self.target.dimension();
        for (x, u) in x.chunks_exact(dimension).zip(u) {
            if self.modes.of(x) != Some(self.mode) {
                *u = f64::INFINITY;
            }
        }
    }
}

impl Target for Within<'_> {
    fn dimension(&self) -> usize {
        self.target.dimension()
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.target.reduced_potential(x, u)?;
        self.forbid(x, u);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.target.reduced_potential_gradient(x, u, gradient)?;
        self.forbid(x, u);
        Ok(())
    }
}

type ModeFunction = dyn Fn(&[f64]) -> Option<usize> + Send + Sync;

/// Assigns configurations to modes. A configuration is in one mode or in none, as a function of x alone.
#[derive(Clone)]
pub struct Modes {
    names: Vec<String>,
    of: Arc<ModeFunction>,
}

impl Modes {
    /// Modes defined by ranges of reaction coordinates, or with `nearest_along` by the nearest centre along these
    /// (Voronoi cells).
    ///
    /// Errors: fewer than two modes, names that are not unique, a mode without a region, wrong numbers of values, atoms
    /// beyond those of configurations of `dimension` numbers.
    pub fn new(nearest_along: &[Along], modes: &[ModeRegion], dimension: usize) -> Result<Modes> {
        let names: Vec<String> = modes.iter().map(|mode| mode.name.clone()).collect();
        let along = nearest_along.to_vec();
        for mode in modes {
            let name = &mode.name;
            let says = |e: Error| Error::invalid(format!("mode `{name}`: {e}"));
            mode.within.iter().try_for_each(|region| region.check(dimension)).map_err(says)?;
            if mode.centre.len() != along.len() || mode.centre.iter().any(|v| !v.is_finite()) {
                return Err(Error::invalid(format!(
                    "mode `{name}`: `centre` is {:?}; expected a finite number for each reaction coordinate of `nearest_along`, {} in all",
                    mode.centre,
                    along.len()
                )));
            }
            if along.is_empty() == mode.within.is_empty() {
                let message = "use either `within`, or a `centre` with `nearest_along` for all modes, but not both";
                return Err(Error::invalid(format!("mode `{name}`: {message}")));
            }
        }
        along.iter().try_for_each(|a| a.check(dimension))?;
        if !along.is_empty() {
            let centres: Vec<Vec<f64>> = modes.iter().map(|mode| mode.centre.clone()).collect();
            return Modes::by(names, move |x| nearest(&along, &centres, x));
        }
        let regions: Vec<Vec<Region>> = modes.iter().map(|mode| mode.within.clone()).collect();
        Modes::by(names, move |x| regions.iter().position(|of_mode| of_mode.iter().all(|region| region.contains(x))))
    }

    /// Modes defined by a function that returns the index of the mode of x, or None. It must depend on x alone: the
    /// same result for the same x, and for the molecule in any position and orientation.
    ///
    /// Errors: fewer than two modes, names that are not unique.
    pub fn by(names: Vec<String>, of: impl Fn(&[f64]) -> Option<usize> + Send + Sync + 'static) -> Result<Modes> {
        let unique = names.iter().collect::<std::collections::BTreeSet<_>>().len() == names.len();
        if names.len() < 2 || !unique {
            return Err(Error::invalid(format!("found {} modes: must be two or more with unique names", names.len())));
        }
        Ok(Modes { names, of: Arc::new(of) })
    }

    /// Index of the mode with this name. Errors: no such mode.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.names
            .iter()
            .position(|known| known == name)
            .ok_or_else(|| Error::invalid(format!("unknown mode `{name}`; known modes: {}", self.names.join(", "))))
    }

    /// Names of the modes, by index.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Mode of a whole molecule; None if it is in none.
    pub fn of(&self, x: &[f64]) -> Option<usize> {
        (self.of)(x).filter(|&mode| mode < self.names.len())
    }
}

/// Index of the nearest centre along the reaction coordinates, on the shorter arc for torsions; the first of equally
/// near ones; None for non-finite values.
fn nearest(along: &[Along], centres: &[Vec<f64>], x: &[f64]) -> Option<usize> {
    let values: Vec<f64> = along.iter().map(|a| a.value(x)).collect();
    if values.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let squared = |centre: &Vec<f64>| -> f64 {
        let parts = along.iter().zip(&values).zip(centre).map(|((along, value), centre)| {
            let delta = value - centre;
            match along.is_periodic() {
                true => delta - 2.0 * PI * (delta / (2.0 * PI)).round(),
                false => delta,
            }
        });
        parts.map(|delta| delta * delta).sum()
    };
    let distances: Vec<f64> = centres.iter().map(squared).collect();
    (0..distances.len()).min_by(|&i, &j| distances[i].total_cmp(&distances[j]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(nearest_along: &str, modes: &str, dimension: usize) -> Result<Modes> {
        let along: Vec<Along> = serde_json::from_str(nearest_along).unwrap();
        Modes::new(&along, &serde_json::from_str::<Vec<ModeRegion>>(modes).unwrap(), dimension)
    }

    #[test]
    fn voronoi_cells_of_torsions_take_the_shorter_arc() {
        let centres = r#"[{ "name": "trans", "centre": [-3.0] }, { "name": "cis", "centre": [0.5] }]"#;
        let modes = modes(r#"[{ "torsion": [0, 1, 2, 3] }]"#, centres, 12).unwrap();
        // a torsion of +π, next to −3
        let trans = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, -1.0, 0.0];
        let cis = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!((modes.of(&trans), modes.of(&cis)), (Some(0), Some(1)));
        assert_eq!(modes.of(&[f64::NAN; 12]), None);
        assert_eq!(modes.index("cis").unwrap(), 1);
        assert!(modes.index("gauche").unwrap_err().to_string().contains("trans, cis"));
    }

    /// Also where its gradient is evaluated.
    #[test]
    fn a_target_within_a_mode_forbids_the_others() {
        struct Flat;
        impl Target for Flat {
            fn dimension(&self) -> usize {
                1
            }
            fn reduced_potential(&mut self, _: &[f64], u: &mut [f64]) -> Result<()> {
                u.fill(2.0);
                Ok(())
            }
            fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
                gradient.fill(0.0);
                self.reduced_potential(x, u)
            }
        }
        let halves = r#"[{ "name": "left", "centre": [-1.0] }, { "name": "right", "centre": [1.0] }]"#;
        let modes = modes(r#"[{ "component": 0 }]"#, halves, 1).unwrap();
        let mut within = Within { target: &mut Flat, modes, mode: 1 };
        let (mut u, mut with_gradient) = ([0.0; 2], [0.0; 2]);
        within.reduced_potential(&[-0.5, 0.5], &mut u).unwrap();
        within.reduced_potential_gradient(&[-0.5, 0.5], &mut with_gradient, &mut [0.0; 2]).unwrap();
        assert_eq!([u, with_gradient], [[f64::INFINITY, 2.0]; 2]);
    }

    #[test]
    fn modes_that_say_no_region_or_two_are_refused() {
        let refusal = |along: &str, text: &str| modes(along, text, 3).err().unwrap().to_string();
        let one = r#"{ "name": "a", "within": [{ "along": { "component": 0 }, "range": [0.0, 1.0] }] }"#;
        assert!(refusal("[]", &format!(r#"[{one}, {{ "name": "b" }}]"#)).contains("mode `b`"));
        assert!(refusal("[]", &format!("[{one}]")).contains("two or more"));
        assert!(refusal("[]", &format!("[{one}, {one}]")).contains("unique names"));
        let beyond = one.replace("\"component\": 0", "\"component\": 3").replace("\"a\"", "\"b\"");
        assert!(refusal("[]", &format!("[{one}, {beyond}]")).contains("component 3 of 3"));
        let centred = r#"{ "name": "b", "centre": [0.0, 1.0] }"#;
        assert!(refusal(r#"[{ "component": 0 }]"#, &format!("[{centred}]")).contains("`nearest_along`, 1 in all"));
    }
}
