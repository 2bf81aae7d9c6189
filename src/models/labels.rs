//! Equal atoms at one centre, such as the hydrogens of CH₂ and CH₃, that are numbered the other way round than in the
//! frames a model was trained on. Energies do not know the difference, a density does: no jump from there is accepted.

use super::{Model, Steering};
use crate::coordinates::Topology;
use crate::density::Evaluation;
use crate::error::{Error, Result};

/// ln of how much likelier a configuration has to become, in all and by each exchange.
const FAR_LIKELIER: f64 = 25.0;

/// log q of molecules in nm is above zero, and some hundreds of kT below that where they are hot or bent.
const LOWEST: f64 = -1000.0;

/// Exchanges of equal atoms by which a configuration becomes likelier by far.
#[derive(Clone, Debug, PartialEq)]
pub struct Exchanged {
    pub pairs: Vec<[usize; 2]>,
    /// log q as the configuration is, −∞ outside the support, and after the exchanges.
    pub log_density: [f64; 2],
}

/// Looks for such exchanges in `x[atoms][3]` (nm): none for a molecule that is numbered as in the model's frames, a
/// model without atoms, and one that has auxiliary coordinates.
///
/// Of each set of equal atoms with a single bond at one centre the first two are exchanged: among three that changes
/// the hand, and rotations about the bond are no matter of numbers.
pub fn exchanged(model: &dyn Model, x: &[f64]) -> Result<Option<Exchanged>> {
    let Some(topology) = &model.card().topology else { return Ok(None) };
    let pairs = equal_atoms(topology);
    if pairs.is_empty() || model.steering().unwrap_or(Steering::NONE).auxiliary > 0 || x.len() != model.dimension() {
        return Ok(None);
    }
    let mut x = x.to_vec();
    model.scope().centre(&mut x);
    let rows: Vec<f64> =
        std::iter::once(x.clone()).chain(pairs.iter().map(|&pair| after(&x, &[pair]))).flatten().collect();
    let log_q = log_densities(model, &rows)?;
    let as_it_is = log_q[0];
    let better = pairs.iter().zip(&log_q[1..]).filter(|(_, q)| **q > as_it_is + FAR_LIKELIER);
    let better: Vec<[usize; 2]> = better.map(|(pair, _)| *pair).collect();
    // each by itself may still be outside the support
    let tried = if better.is_empty() && as_it_is == f64::NEG_INFINITY { pairs } else { better };
    let [after] = log_densities(model, &after(&x, &tried))?[..] else { return Ok(None) };
    // a molecule that has no density either way is a broken one
    let is_far_likelier =
        after - as_it_is > FAR_LIKELIER.max(0.5 * as_it_is.abs()) || (as_it_is == f64::NEG_INFINITY && after > 0.0);
    Ok(is_far_likelier.then_some(Exchanged { pairs: tried, log_density: [as_it_is, after] }))
}

/// Errors: `x[atoms][3]` (nm) has equal atoms numbered the other way round; names them.
pub fn require_labels(model: &dyn Model, x: &[f64]) -> Result<()> {
    let Some(Exchanged { pairs, log_density: [before, after] }) = exchanged(model, x)? else { return Ok(()) };
    let pair = |[a, b]: &[usize; 2]| format!("{} and {}", model.card().label(*a), model.card().label(*b));
    let and_then = match after < LOWEST {
        true => ", and even then the shape is like none of these frames: begin with one that is",
        false => "",
    };
    Err(Error::invalid(format!(
        "numbered the other way round than in the frames of the model: {}. With these exchanged log q is {after:.1}, not {before:.1}; \
         as they are, no jump is accepted: exchange them, or train a model of atoms in this order{and_then}",
        pairs.iter().map(pair).collect::<Vec<_>>().join(", ")
    )))
}

/// The first two of every set of atoms of one element with a single bond each, at one centre.
fn equal_atoms(topology: &Topology) -> Vec<[usize; 2]> {
    let neighbours = topology.neighbours();
    let mut pairs = Vec::new();
    for around in &neighbours {
        let ends: Vec<usize> = around.iter().copied().filter(|&atom| neighbours[atom].len() == 1).collect();
        for (k, &a) in ends.iter().enumerate() {
            let equal = |&&b: &&usize| topology.elements[b] == topology.elements[a];
            if ends[..k].iter().any(|b| equal(&b)) {
                continue; // not the first
            }
            pairs.extend(ends[k + 1..].iter().find(equal).map(|&b| [a, b]));
        }
    }
    pairs
}

fn after(x: &[f64], pairs: &[[usize; 2]]) -> Vec<f64> {
    let mut x = x.to_vec();
    for [a, b] in pairs {
        (0..3).for_each(|axis| x.swap(3 * a + axis, 3 * b + axis));
    }
    x
}

/// −∞ outside the support.
fn log_densities(model: &dyn Model, x: &[f64]) -> Result<Vec<f64>> {
    let mut found = vec![Evaluation::inside(0.0); x.len() / model.dimension()];
    model.log_density(x, &mut found)?;
    Ok(found.iter().map(|e| if e.is_inside() { e.log_density } else { f64::NEG_INFINITY }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    fn ala2(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name)
    }

    #[test]
    fn hydrogens_that_are_numbered_the_other_way_round_are_found() {
        let (topology, x) = Topology::from_pdb(&ala2("topology.pdb")).unwrap();
        let [first, second] = ["HB1", "HB2"].map(|name| topology.find("ALA2", name).unwrap());
        let caps = [["ACE1", "HH31", "HH32"], ["NME3", "HH31", "HH32"]]
            .map(|[residue, a, b]| [a, b].map(|name| topology.find(residue, name).unwrap()));
        // three methyl groups
        assert_eq!(equal_atoms(&topology), [caps[0], [first, second], caps[1]]);
        let model = crate::models::load(ala2("model.safetensors")).unwrap();
        assert_eq!(exchanged(model.as_ref(), &x).unwrap(), None);
        for pairs in [vec![[first, second]], vec![caps[0], [first, second], caps[1]]] {
            let found = exchanged(model.as_ref(), &after(&x, &pairs)).unwrap().unwrap();
            assert_eq!(found.pairs, pairs);
            let [before, after] = found.log_density;
            assert!(after > before + 100.0 && after > 50.0, "{found:?}");
            let message = require_labels(model.as_ref(), &super::after(&x, &pairs)).unwrap_err().to_string();
            assert!(message.contains("ALA2:HB1 (atom 12) and ALA2:HB2 (atom 13)"), "{message}");
            assert!(!message.contains("even then"), "{message}");
        }
        // an energy that does not tell equal atoms apart
        let model = crate::models::load(ala2("invariant-ebm.safetensors")).unwrap();
        assert_eq!(exchanged(model.as_ref(), &after(&x, &[[first, second]])).unwrap(), None);
    }
}
