//! Bonds that a model keeps at one length, in configurations from elsewhere: a density is zero where one of them has
//! another length, if only by the rounding of positions in a PDB, GRO or XTC file.

use super::Model;
use crate::coordinates::constraints::{joins, rigid_bonds, CONFIGURATION_TOLERANCE};
use crate::coordinates::vector::distance;
use crate::coordinates::{Coordinates, InternalCoordinates};
use crate::error::{Error, Result};

/// Largest change of a distance, nm, when positions are rounded to 0.001 nm: by half of it in three coordinates of two
/// atoms.
const ROUNDING: f64 = 0.001 * 1.733;

/// A bond that the model keeps at `length` (nm), but that has another one.
struct Changed {
    atoms: [usize; 2],
    length: f64,
    here: f64,
}

impl Changed {
    fn by(&self) -> f64 {
        (self.here - self.length).abs()
    }

    /// As part of a message.
    fn told(&self, model: &dyn Model) -> String {
        let [i, j] = self.atoms.map(|atom| model.card().label(atom));
        let advice = match self.by() <= ROUNDING {
            true => "positions are rounded in PDB, GRO and XTC files: apply the constraints, or use a file of full precision",
            false => "constrain the bonds that the model keeps, or use a model with flexible bonds",
        };
        format!(
            "the model keeps {i} and {j} {:.5} nm apart, but here they are {:.5} nm: {advice}",
            self.length, self.here
        )
    }
}

/// The most changed of the kept bonds of `x[atoms][3]`, nm.
fn most_changed(model: &dyn Model, x: &[f64]) -> Option<Changed> {
    let bonds = model.card().kept_bonds().iter().map(|&(i, j, length)| Changed {
        atoms: [i, j],
        length,
        here: distance(x, i, j),
    });
    let changed = bonds.filter(|bond| bond.by() > CONFIGURATION_TOLERANCE * bond.length);
    changed.max_by(|a, b| a.by().total_cmp(&b.by()))
}

/// Requires the lengths that the model keeps. Errors: a bond of `x[atoms][3]` (nm) has another one.
pub fn require(model: &dyn Model, x: &[f64]) -> Result<()> {
    let refuse = |bond: Changed| Err(Error::invalid(bond.told(model)));
    most_changed(model, x).map_or(Ok(()), refuse)
}

/// Requires frames `x[n][atoms][3]` (nm) with the bonds that the model keeps, and no others, at one length. Errors: a bond
/// of another length, or one that is rigid in the frames only.
pub fn require_in_frames(model: &dyn Model, x: &[f64], dimension: usize) -> Result<()> {
    let changed: Vec<Changed> = x.chunks_exact(dimension).filter_map(|x| most_changed(model, x)).collect();
    let most = changed.iter().max_by(|a, b| a.by().total_cmp(&b.by()));
    let refuse = |bond: &Changed| {
        let (n, of) = (changed.len(), x.len() / dimension);
        Err(Error::invalid(format!(
            "{} (in {n} of {of} frames a bond is outside the model's support)",
            bond.told(model)
        )))
    };
    most.map_or(Ok(()), refuse)?;
    let bonds = model.card().topology.as_ref().map_or(&[][..], |topology| &topology.bonds);
    let rigid = rigid_bonds(bonds, x, dimension);
    let is_flexible =
        |&&(i, j, _): &&(usize, usize, f64)| !model.card().kept_bonds().iter().any(|bond| joins(bond, [i, j]));
    match rigid.iter().find(is_flexible).filter(|_| rigid.len() < bonds.len()) {
        Some(&(i, j, length)) => Err(Error::invalid(format!(
            "the frames keep {} and {} {length:.5} nm apart, but in the model this distance varies: use frames of a simulation \
             without constraints, or a model trained with them",
            model.card().label(i),
            model.card().label(j)
        ))),
        None => Ok(()),
    }
}

/// Gives `x[n][atoms][3]` (nm) the lengths that the model keeps if they differ by no more than the rounding of positions,
/// and leaves all other internal coordinates as they are. Returns how many of the n it changed: none if any bond differs
/// by more, as in a simulation that did not constrain it.
pub fn restore(model: &dyn Model, x: &mut [f64], dimension: usize) -> Result<usize> {
    let changed: Vec<Option<Changed>> = x.chunks_exact(dimension).map(|x| most_changed(model, x)).collect();
    if changed.iter().flatten().any(|bond| bond.by() > ROUNDING) {
        return Ok(0);
    }
    let Some(internal) = internal(model)? else { return Ok(0) };
    let rounded = x.chunks_exact_mut(dimension).zip(&changed).filter(|(_, bond)| bond.is_some());
    Ok(rounded.map(|(x, _)| internal.restore_bonds(x)).count())
}

/// `x[atoms][3]` (nm) with all bonds as the model keeps them, whatever their lengths were, as a simulation with
/// constraints would have it.
pub(super) fn restored(model: &dyn Model, x: &[f64]) -> Result<Vec<f64>> {
    let mut x = x.to_vec();
    if let Some(internal) = internal(model)? {
        internal.restore_bonds(&mut x);
    }
    Ok(x)
}

/// The coordinates of a model that keeps bonds.
fn internal(model: &dyn Model) -> Result<Option<InternalCoordinates>> {
    let card = model.card();
    match card.kept_bonds() {
        [] => Ok(None),
        _ => Ok(Coordinates::new(&card.coordinates, |atom| card.label(atom))?.internal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::density::Evaluation;
    use crate::models::{labels, load};
    use crate::rng::{Stream, StreamId};
    use crate::testing::ala2;

    const N: usize = 20;

    #[test]
    fn lengths_that_a_file_has_rounded_are_restored() {
        let model = load(ala2("model-hbonds.safetensors")).unwrap();
        let (model, d) = (model.as_ref(), model.dimension());
        let (mut x, mut of_samples) = (vec![0.0; N * d], [Evaluation::inside(0.0); N]);
        model.sample(&|row| Stream::new(1, StreamId::Sample, row as u64, 0), &mut x, &mut of_samples).unwrap();
        let same = x.clone();
        assert_eq!(restore(model, &mut x, d).unwrap(), 0);
        assert_eq!(x, same);
        require_in_frames(model, &x, d).unwrap();

        let mut rounded: Vec<f64> = x.iter().map(|x| (x * 1e3).round() * 1e-3).collect();
        let said = require_in_frames(model, &rounded, d).unwrap_err().to_string();
        assert!(said.contains("positions are rounded in PDB") && said.contains(" of 20 frames"), "{said}");
        assert!(restore(model, &mut rounded, d).unwrap() > 0);
        require_in_frames(model, &rounded, d).unwrap();
        let mut evaluations = of_samples;
        model.log_density(&rounded, &mut evaluations).unwrap();
        for (rounded, of_sample) in evaluations.iter().zip(&of_samples) {
            // 0.0003 nm in bonds whose standard deviation is 0.003
            assert!(rounded.is_inside() && (rounded.log_density - of_sample.log_density).abs() < 3.0);
        }
        assert!(rounded.iter().zip(&x).all(|(a, b)| (a - b).abs() < 3e-3));

        // a bond as in a simulation without constraints
        let (i, j, _) = model.card().kept_bonds()[0];
        let mut flexible = x.clone();
        (0..3).for_each(|k| flexible[3 * j + k] += 0.04 * (flexible[3 * j + k] - flexible[3 * i + k]));
        let same = flexible.clone();
        assert_eq!(restore(model, &mut flexible, d).unwrap(), 0);
        assert_eq!(flexible, same);
        let said = require_in_frames(model, &flexible, d).unwrap_err().to_string();
        assert!(said.contains("constrain the bonds that the model keeps") && said.contains("in 1 of 20"), "{said}");
        // the atoms are numbered as in the model's frames, whatever their bonds
        labels::require_labels(model, &flexible[..d]).unwrap();
    }
}
