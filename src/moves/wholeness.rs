//! Making the molecules of a model whole in a periodic box.

use crate::coordinates::whole::{BoxVectors, WholeMolecule};
use crate::coordinates::CoordinatesConfig;
use crate::density::Scope;
use crate::error::{Error, Result};
use crate::models::steering::dimension_without_auxiliary;
use crate::models::Model;

/// Errors: the reason, if moves of the model's atoms cannot be made in a periodic box.
pub fn check_box(model: &dyn Model) -> Result<()> {
    Wholeness::of_model(model).no_box.map_or(Ok(()), |reason| Err(Error::Unsupported(reason)))
}

/// Makes the molecule of `x[atoms][3]` (nm) whole in a box, as moves do. Errors: those of [`check_box`], a box without
/// volume.
pub fn make_whole(model: &dyn Model, box_vectors: Option<&BoxVectors>, x: &mut [f64]) -> Result<()> {
    Wholeness::of_model(model).apply(box_vectors, x)
}

/// How molecules are made whole: set up once for a model, applied to every configuration from which a move starts.
#[derive(Clone, Debug, Default)]
pub(super) struct Wholeness {
    molecule: Option<WholeMolecule>,
    /// Why a box cannot be used, if so.
    no_box: Option<String>,
}

impl Wholeness {
    /// For one molecule. Errors: bonds that do not connect it.
    pub fn of_bonds(n_atoms: usize, bonds: &[[usize; 2]]) -> Result<Wholeness> {
        Ok(Wholeness { molecule: Some(WholeMolecule::new(n_atoms, bonds)?), no_box: None })
    }

    /// For a model: by the bonds of its topology, or else by the references of its z-matrix. A model of several
    /// molecules works without a box only.
    pub fn of_model(model: &dyn Model) -> Wholeness {
        let card = model.card();
        let bonds = match (&card.topology, &card.coordinates) {
            (Some(topology), _) => topology.bonds.clone(),
            (None, CoordinatesConfig::Internal { frame: [a, b, c], rows, .. }) => {
                rows.iter().map(|row| [row[0], row[1]]).chain([[*a, *b], [*b, *c]]).collect()
            }
            (None, CoordinatesConfig::Cartesian { .. }) => {
                let no_box = (model.scope() != Scope::Full).then(|| {
                    "the model file has no topology, so its molecule cannot be made whole in a periodic box".to_string()
                });
                return Wholeness { molecule: None, no_box };
            }
        };
        match Wholeness::of_bonds(dimension_without_auxiliary(model) / 3, &bonds) {
            Ok(wholeness) => wholeness,
            Err(reason) => Wholeness { molecule: None, no_box: Some(reason.to_string()) },
        }
    }

    /// Makes `x[atoms][3]` (nm) whole if there is a box, leaving auxiliary coordinates behind them untouched.
    ///
    /// Errors: a box for a model that allows none, a box without volume.
    pub fn apply(&self, box_vectors: Option<&BoxVectors>, x: &mut [f64]) -> Result<()> {
        let Some(box_vectors) = box_vectors else { return Ok(()) };
        if let Some(reason) = &self.no_box {
            return Err(Error::Unsupported(reason.clone()));
        }
        match &self.molecule {
            Some(molecule) => molecule.apply(box_vectors, &mut x[..3 * molecule.n_atoms()]),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auxiliary_coordinates_stay() {
        let wholeness = Wholeness::of_bonds(2, &[[0, 1]]).unwrap();
        let mut x = [0.1, 0.0, 0.0, 1.9, 0.0, 0.0, 7.0, -8.0];
        wholeness.apply(Some(&[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]), &mut x).unwrap();
        assert!((x[3] - -0.1).abs() < 1e-12 && x[6..] == [7.0, -8.0], "{x:?}");
    }
}
