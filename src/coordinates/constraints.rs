//! Bonds constrained by the engine: the metric (Fixman) term of the target, and the check that proposals keep them.

use super::vector::{atom, distance, dot, norm, scale, sub, Vec3};
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap, HashSet};

// How far a constrained bond may deviate depends on where the positions come from. Proposals keep it to f64 rounding
// and are held to that (`PROPOSAL_TOLERANCE`). Engines converge constraints to about 1e-5, and many keep positions in
// single precision: the current configuration of a move (`CONFIGURATION_TOLERANCE`) and frames of full precision
// (`FRAME_TOLERANCE`) may deviate ten times as much, which is still a hundredth of thermal motion. Positions in xtc and
// gro files are rounded to 0.001 nm, so a rigid bond shows only by its small spread (`ROUNDED_FRAME_SPREAD`), which is
// no proof.

/// Largest |d − d₀|/d₀ in a proposal, and between the lengths kept by a model and by the engine.
const PROPOSAL_TOLERANCE: f64 = 1e-6;
/// Largest |d − d₀|/d₀ in a configuration to be encoded, beyond which it is outside the model's support (also in
/// `cuda/internal_coordinates.cuh`).
pub const CONFIGURATION_TOLERANCE: f64 = 1e-4;
/// Largest relative deviation from the mean in frames of full precision.
const FRAME_TOLERANCE: f64 = 1e-4;
/// Largest standard deviation in frames that may be rounded, nm. Rounding to 0.001 nm gives a rigid bond 0.0004; the
/// stiffest bonds of molecules have 0.002 at 300 K.
const ROUNDED_FRAME_SPREAD: f64 = 7e-4;
/// Minimum number of frames from which a spread is judged.
const FEWEST: usize = 20;

/// Those of `pairs` with the same length in all frames `x[n][dimension]` (nm), with that length: the bonds that a model
/// keeps fixed, when only its samples are known. Empty without frames; with few frames more pairs than the model keeps
/// may be returned, with one frame all are.
pub fn kept_bonds(pairs: &[[usize; 2]], x: &[f64], dimension: usize) -> Vec<(usize, usize, f64)> {
    let is_kept = |lengths: &[f64], mean: f64| lengths.iter().all(|d| (d - mean).abs() <= FRAME_TOLERANCE * mean);
    bonds_that(is_kept, pairs, x, dimension)
}

/// Those of `pairs` that hardly vary in frames `x[n][dimension]` (nm), which may be rounded, with their mean lengths:
/// bonds that a simulation has probably constrained. Empty for fewer than 20 frames.
pub fn rigid_bonds(pairs: &[[usize; 2]], x: &[f64], dimension: usize) -> Vec<(usize, usize, f64)> {
    let is_rigid = |lengths: &[f64], mean: f64| {
        let variance = lengths.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / lengths.len() as f64;
        lengths.len() >= FEWEST && variance.sqrt() < ROUNDED_FRAME_SPREAD
    };
    bonds_that(is_rigid, pairs, x, dimension)
}

/// Pairs whose lengths in the frames, given with their mean, pass a test; with their mean lengths.
fn bonds_that(
    test: impl Fn(&[f64], f64) -> bool,
    pairs: &[[usize; 2]],
    x: &[f64],
    dimension: usize,
) -> Vec<(usize, usize, f64)> {
    if x.is_empty() {
        return Vec::new();
    }
    let bond = |&[a, b]: &[usize; 2]| {
        let lengths: Vec<f64> = x.chunks_exact(dimension).map(|x| distance(x, a, b)).collect();
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        test(&lengths, mean).then_some((a, b, mean))
    };
    pairs.iter().filter_map(bond).collect()
}

/// Whether this bond joins the two atoms of `pair`, in either order.
pub fn joins(&(a, b, _): &(usize, usize, f64), pair: [usize; 2]) -> bool {
    pair == [a, b] || pair == [b, a]
}

/// Constrained pairs of one molecule, with lengths and masses.
#[derive(Clone, Debug)]
pub struct Constraints {
    pairs: Vec<[usize; 2]>,
    lengths: Vec<f64>,
    inverse_masses: Vec<f64>,
    /// Constraints that share atoms, directly or through others: Z is block-diagonal over these.
    clusters: Vec<Vec<usize>>,
    /// Workspace for the largest block.
    block: Vec<f64>,
    units: Vec<Vec3>,
}

impl Constraints {
    /// Constraints with atom indices `pairs`, `lengths` in nm, and `masses` of all atoms of the molecule, dalton.
    ///
    /// Errors: an atom out of range, a length or a constrained atom's mass that is not positive, an atom bound to
    /// itself, a pair listed twice.
    pub fn new(pairs: &[[usize; 2]], lengths: &[f64], masses: &[f64]) -> Result<Constraints> {
        if pairs.len() != lengths.len() {
            return Err(Error::invalid(format!("{} constraints, but {} lengths", pairs.len(), lengths.len())));
        }
        let mut listed = HashSet::new();
        for (&[a, b], &d) in pairs.iter().zip(lengths) {
            let name = format!("constraint between atoms {a} and {b}, counted from 0");
            if a == b || a >= masses.len() || b >= masses.len() {
                return Err(Error::invalid(format!("{name}: expected two different atoms of {}", masses.len())));
            }
            if !listed.insert([a.min(b), a.max(b)]) {
                return Err(Error::invalid(format!("{name}: listed twice")));
            }
            if !(d > 0.0 && d.is_finite()) {
                return Err(Error::invalid(format!("{name}: the length is {d} nm, but must be positive")));
            }
            if [a, b].iter().any(|&i| !(masses[i] > 0.0 && masses[i].is_finite())) {
                return Err(Error::invalid(format!(
                    "{name}: the masses are {} and {} dalton, but constrained atoms must have positive masses",
                    masses[a], masses[b]
                )));
            }
        }
        let clusters = clusters(pairs, masses.len());
        let largest = clusters.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Constraints {
            pairs: pairs.to_vec(),
            lengths: lengths.to_vec(),
            inverse_masses: masses.iter().map(|m| 1.0 / m).collect(),
            clusters,
            block: vec![0.0; largest * largest],
            units: vec![[0.0; 3]; pairs.len()],
        })
    }

    /// Selects the model's constraints from `all` that an engine has (its indices of two atoms, length in nm),
    /// renumbered to the model's indices; None if it constrains none of the model's bonds. `atoms[k]` is the engine's
    /// index of the model's atom k, `masses[k]` its mass, dalton.
    ///
    /// Errors: an atom of the model constrained to one outside it, by its `label`; those of [`Constraints::new`] and
    /// [`Constraints::check_kept`].
    pub fn among(
        all: &[(usize, usize, f64)],
        atoms: &[usize],
        masses: &[f64],
        kept: &[(usize, usize, f64)],
        label: &dyn Fn(usize) -> String,
    ) -> Result<Option<Constraints>> {
        let of_model: HashMap<usize, usize> = atoms.iter().enumerate().map(|(k, &atom)| (atom, k)).collect();
        let (mut pairs, mut lengths) = (Vec::new(), Vec::new());
        for (a, b, length) in all {
            match (of_model.get(a), of_model.get(b)) {
                (Some(&a), Some(&b)) => {
                    pairs.push([a, b]);
                    lengths.push(*length);
                }
                (None, None) => {}
                (Some(&atom), None) | (None, Some(&atom)) => {
                    return Err(Error::Unsupported(format!(
                        "{} is constrained to an atom outside the model; remove the constraint, or use a model of both atoms",
                        label(atom)
                    )))
                }
            }
        }
        let constraints = (!pairs.is_empty()).then(|| Constraints::new(&pairs, &lengths, masses)).transpose()?;
        Constraints::check_kept(kept, constraints.as_ref(), label)?;
        Ok(constraints)
    }

    /// Checks that the engine constrains exactly the bonds `kept` (i, j, length in nm), which have these lengths in
    /// every sample of the generator. A kept bond that the engine leaves free would put its configurations outside the
    /// generator's support; a constrained bond that the generator varies would never occur in the engine.
    ///
    /// Errors: the first bond that differs, named by the `label` of its atoms.
    pub fn check_kept(
        kept: &[(usize, usize, f64)],
        constraints: Option<&Constraints>,
        label: &dyn Fn(usize) -> String,
    ) -> Result<()> {
        let (pairs, lengths) = constraints.map_or((&[][..], &[][..]), |c| (&c.pairs, &c.lengths));
        let name = |a, b| format!("{} - {}", label(a), label(b));
        if let Some(&(a, b, length)) = kept.iter().find(|bond| !pairs.iter().any(|&pair| joins(bond, pair))) {
            return Err(Error::Unsupported(format!(
                "the model keeps the bond {} at {} nm, but the engine does not constrain it, so no simulated configuration is in the \
                 support of the model; constrain the bond, or use a model that varies it",
                name(a, b),
                written(length)
            )));
        }
        for (&[a, b], &d) in pairs.iter().zip(lengths) {
            let bond = name(a, b);
            let Some(&(_, _, length)) = kept.iter().find(|bond| joins(bond, [a, b])) else {
                return Err(Error::Unsupported(format!(
                    "the bond {bond} is constrained to {} nm, but the model varies it; remove the constraint, or train a \
                     model that keeps this bond fixed",
                    written(d)
                )));
            };
            if ((length - d) / d).abs() > PROPOSAL_TOLERANCE {
                return Err(Error::Unsupported(format!(
                    "the bond {bond} is constrained to {} nm, but the model keeps it at {} nm; use the force field \
                     the model was trained with",
                    written(d),
                    written(length)
                )));
            }
        }
        Ok(())
    }

    /// Largest |d − d₀|/d₀ in `x[atoms][3]` (nm); NaN counts as infinite.
    pub fn largest_deviation(&self, x: &[f64]) -> f64 {
        let deviation = |(&[a, b], &d): (&[usize; 2], &f64)| {
            let value = (distance(x, a, b) - d).abs() / d;
            if value.is_nan() {
                f64::INFINITY
            } else {
                value
            }
        };
        self.pairs.iter().zip(&self.lengths).map(deviation).fold(0.0, f64::max)
    }

    /// Whether every constrained bond has its length, within the tolerance for proposals.
    pub fn are_kept(&self, x: &[f64]) -> bool {
        self.largest_deviation(x) <= PROPOSAL_TOLERANCE
    }

    /// Projects velocities `v[atoms][3]` at `x` onto those that preserve the constrained lengths, orthogonally in the
    /// mass metric: v ← v − M⁻¹ Gᵀ Z⁻¹ G v. Maxwell–Boltzmann velocities become those of the constrained molecule.
    pub fn project_velocities(&mut self, x: &[f64], v: &mut [f64]) {
        self.set_units(x);
        for c in 0..self.clusters.len() {
            let n = self.fill_block(c);
            let cluster = &self.clusters[c];
            let rates = cluster.iter().map(|&k| {
                let [a, b] = self.pairs[k];
                dot(self.units[k], sub(atom(v, a), atom(v, b)))
            });
            let rates = nalgebra::DVector::from_iterator(n, rates);
            let z = nalgebra::DMatrix::from_row_slice(n, n, &self.block[..n * n]);
            // Z is singular for collinear bonds of one triangle, which no molecule has
            let Some(multipliers) = z.cholesky().map(|z| z.solve(&rates)) else { continue };
            for (&k, multiplier) in cluster.iter().zip(multipliers.iter()) {
                for (i, sign) in self.pairs[k].into_iter().zip([-1.0, 1.0]) {
                    let change = scale(sign * multiplier * self.inverse_masses[i], self.units[k]);
                    (0..3).for_each(|axis| v[3 * i + axis] += change[axis]);
                }
            }
        }
    }

    /// Metric (Fixman) term ½ ln det Z, Z = G M⁻¹ Gᵀ with the gradients of the bond lengths as rows of G (Fixman 1974;
    /// Frenkel and Smit, ch. 15). Constrained dynamics samples e^{−u} √det Z δ(d − d₀), so this number is added to −u.
    /// NaN where Z is singular.
    pub fn log_metric(&mut self, x: &[f64]) -> f64 {
        self.set_units(x);
        let mut log_det = 0.0;
        for c in 0..self.clusters.len() {
            let n = self.fill_block(c);
            log_det += log_det_positive(&mut self.block[..n * n], n);
        }
        0.5 * log_det
    }

    fn set_units(&mut self, x: &[f64]) {
        for (unit, &[a, b]) in self.units.iter_mut().zip(&self.pairs) {
            let r = sub(atom(x, a), atom(x, b));
            *unit = scale(1.0 / norm(r), r);
        }
    }

    /// Fills in Z of one cluster from the unit vectors; returns its size.
    fn fill_block(&mut self, cluster: usize) -> usize {
        let cluster = &self.clusters[cluster];
        let n = cluster.len();
        for (row, &c) in cluster.iter().enumerate() {
            for (column, &d) in cluster.iter().enumerate() {
                self.block[row * n + column] =
                    coupling(self.pairs[c], self.pairs[d], &self.inverse_masses) * dot(self.units[c], self.units[d]);
            }
        }
        n
    }
}

/// Σ ±1/m over shared atoms: plus if the atom is at the same end of both pairs, minus otherwise.
fn coupling(c: [usize; 2], d: [usize; 2], inverse_masses: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (i, &a) in c.iter().enumerate() {
        for (j, &b) in d.iter().enumerate() {
            if a == b {
                sum += if i == j { inverse_masses[a] } else { -inverse_masses[a] };
            }
        }
    }
    sum
}

/// ln det of a symmetric positive definite matrix by Cholesky in place; NaN if it is not positive definite.
fn log_det_positive(m: &mut [f64], n: usize) -> f64 {
    let mut log_det = 0.0;
    for k in 0..n {
        for j in 0..k {
            m[k * n + k] -= m[k * n + j] * m[k * n + j];
        }
        if m[k * n + k] <= 0.0 {
            return f64::NAN;
        }
        let pivot = m[k * n + k].sqrt();
        log_det += 2.0 * pivot.ln();
        for i in k + 1..n {
            for j in 0..k {
                m[i * n + k] -= m[i * n + j] * m[k * n + j];
            }
            m[i * n + k] /= pivot;
        }
    }
    log_det
}

fn clusters(pairs: &[[usize; 2]], n_atoms: usize) -> Vec<Vec<usize>> {
    // atoms of a cluster are labelled by their smallest index
    let mut root: Vec<usize> = (0..n_atoms).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    for &[a, b] in pairs {
        let (a, b) = (find(&mut root, a), find(&mut root, b));
        root[a.max(b)] = a.min(b);
    }
    let mut by_root = BTreeMap::<usize, Vec<usize>>::new();
    for (c, &[a, _]) in pairs.iter().enumerate() {
        by_root.entry(find(&mut root, a)).or_default().push(c);
    }
    by_root.into_values().collect()
}

/// A length rounded for messages, without digits left over from unit conversion.
fn written(length: f64) -> f64 {
    (1e9 * length).round() / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Stream, StreamId};

    const METHYL: [f64; 15] = [0.0, 0.0, 0.0, 0.1, 0.02, 0.0, -0.04, 0.1, 0.01, -0.03, -0.05, 0.09, 0.0, 0.0, -0.15];

    /// det Z from the full matrix G M⁻¹ Gᵀ by expansion, for at most three constraints.
    fn brute_force(x: &[f64], pairs: &[[usize; 2]], masses: &[f64]) -> f64 {
        let rows: Vec<Vec<f64>> = pairs
            .iter()
            .map(|&[a, b]| {
                let r = sub(atom(x, a), atom(x, b));
                let mut row = vec![0.0; x.len()];
                for axis in 0..3 {
                    row[3 * a + axis] = r[axis] / norm(r);
                    row[3 * b + axis] = -r[axis] / norm(r);
                }
                row
            })
            .collect();
        let z = |i: usize, j: usize| (0..x.len()).map(|k| rows[i][k] * rows[j][k] / masses[k / 3]).sum::<f64>();
        let det = match pairs.len() {
            1 => z(0, 0),
            2 => z(0, 0) * z(1, 1) - z(0, 1) * z(1, 0),
            _ => {
                z(0, 0) * (z(1, 1) * z(2, 2) - z(1, 2) * z(2, 1)) - z(0, 1) * (z(1, 0) * z(2, 2) - z(1, 2) * z(2, 0))
                    + z(0, 2) * (z(1, 0) * z(2, 1) - z(1, 1) * z(2, 0))
            }
        };
        0.5 * det.ln()
    }

    #[test]
    fn metric_of_clusters_matches_the_full_matrix() {
        let masses = [12.0, 1.0, 1.5, 4.0, 14.0];
        for pairs in [vec![[0, 1]], vec![[0, 1], [2, 0]], vec![[0, 1], [2, 0], [0, 3]], vec![[1, 0], [2, 3], [4, 1]]] {
            let lengths: Vec<f64> = pairs.iter().map(|&[a, b]| distance(&METHYL, a, b)).collect();
            let mut constraints = Constraints::new(&pairs, &lengths, &masses).unwrap();
            let difference = constraints.log_metric(&METHYL) - brute_force(&METHYL, &pairs, &masses);
            assert!(difference.abs() < 1e-13, "{pairs:?}: {difference}");
            assert!(constraints.are_kept(&METHYL));
        }
    }

    #[test]
    fn projected_velocities_keep_the_bonds_and_the_momentum() {
        let masses = [12.0, 1.0, 1.5, 4.0, 14.0];
        let pairs = [[0, 1], [2, 0], [0, 3], [4, 3]];
        let lengths = pairs.map(|[a, b]| distance(&METHYL, a, b));
        let mut constraints = Constraints::new(&pairs, &lengths, &masses).unwrap();
        let drawn: Vec<f64> = (0..15).map(|i| (1.7 * f64::from(i)).sin()).collect();
        let mut v = drawn.clone();
        constraints.project_velocities(&METHYL, &mut v);
        for [a, b] in pairs {
            let rate = dot(sub(atom(&METHYL, a), atom(&METHYL, b)), sub(atom(&v, a), atom(&v, b)));
            assert!(rate.abs() < 1e-15, "{a}-{b}: {rate}");
        }
        let momentum = |v: &[f64], axis: usize| (0..5).map(|i| masses[i] * v[3 * i + axis]).sum::<f64>();
        assert!((0..3).all(|axis| (momentum(&v, axis) - momentum(&drawn, axis)).abs() < 1e-12));
        // the removed part is orthogonal to the rest in the mass metric
        let product: f64 = (0..15).map(|k| masses[k / 3] * v[k] * (drawn[k] - v[k])).sum();
        assert!(product.abs() < 1e-12 && v != drawn);
    }

    #[test]
    fn deviations_are_relative_and_nan_is_broken() {
        let constraints = Constraints::new(&[[0, 1]], &[0.1], &[1.0, 1.0]).unwrap();
        let deviation = constraints.largest_deviation(&[0.0, 0.0, 0.0, 0.0, 0.101, 0.0]);
        assert!((deviation - 0.01).abs() < 1e-12);
        assert!(!constraints.are_kept(&[f64::NAN, 0.0, 0.0, 0.0, 0.1, 0.0]));
    }

    /// The matrix of the metric would be singular.
    #[test]
    fn a_bond_is_constrained_once() {
        let twice = Constraints::new(&[[0, 1], [1, 0]], &[0.1, 0.1], &[1.0, 1.0]).err().unwrap().to_string();
        assert!(twice.contains("between atoms 1 and 0, counted from 0: listed twice"), "{twice}");
    }

    #[test]
    fn bonds_of_one_length_are_found_in_frames() {
        let mut x = METHYL.repeat(3);
        x[15 + 12] = 0.01; // atom 4 of the second frame
        x[30 + 3] += 1e-6; // atom 1 of the third, like rounding
        let kept = kept_bonds(&[[1, 0], [0, 4], [2, 0]], &x, 15);
        let lengths = [(1, 0), (2, 0)].map(|(a, b)| (a, b, distance(&METHYL, a, b)));
        assert_eq!(kept.len(), 2, "{kept:?}");
        assert!(
            kept.iter().zip(lengths).all(|(a, b)| (a.0, a.1) == (b.0, b.1) && (a.2 - b.2).abs() < 1e-6),
            "{kept:?}"
        );
    }

    #[test]
    fn no_frames_have_no_bonds_of_one_length() {
        assert!(kept_bonds(&[[1, 0]], &[], 15).is_empty() && rigid_bonds(&[[1, 0]], &[], 15).is_empty());
    }

    /// Three atoms in a row: a bond of 0.1 nm with no spread, and one with that of the stiffest bonds.
    #[test]
    fn rigid_bonds_are_known_from_rounded_coordinates_and_from_stiff_bonds() {
        let mut stream = Stream::new(1, StreamId::Test, 0, 0);
        let mut frame = || {
            let place: [f64; 3] = std::array::from_fn(|_| stream.uniform());
            let length = 0.1 + 0.002 * stream.normal();
            [[0.5 / 13.0, 1.2 / 13.0, 0.0], [0.0; 3], [0.0, length, 0.0]]
                .concat()
                .iter()
                .zip(place.iter().cycle())
                .map(|(x, at)| x + at)
                .collect()
        };
        let frames: Vec<Vec<f64>> = (0..200).map(|_| frame()).collect();
        let exact = frames.concat();
        let rounded: Vec<f64> = exact.iter().map(|x| (1e3 * x).round() * 1e-3).collect();
        let bonds = [[0, 1], [1, 2]];
        for x in [&exact, &rounded] {
            let rigid = rigid_bonds(&bonds, x, 9);
            let is_first = |&(i, j, length): &(usize, usize, f64)| (i, j) == (0, 1) && (length - 0.1).abs() < 2e-4;
            assert!(rigid.len() == 1 && is_first(&rigid[0]), "{rigid:?}");
        }
        // the strict test finds nothing in rounded frames
        assert_eq!([&exact, &rounded].map(|x| kept_bonds(&bonds, x, 9).len()), [1, 0]);
        assert!(rigid_bonds(&bonds, &exact[..9 * (FEWEST - 1)], 9).is_empty());
    }

    #[test]
    fn bonds_that_only_one_side_keeps_are_refused_by_name() {
        let constraints = Constraints::new(&[[0, 1], [2, 0]], &[0.1, 0.11], &[1.0; 3]).unwrap();
        let check = |kept: &[(usize, usize, f64)], constraints| {
            let checked = Constraints::check_kept(kept, constraints, &|i| format!("X{i}"));
            checked.err().map(|e| e.to_string()).unwrap_or_default()
        };
        let (first, second) = ((1, 0, 0.1), (0, 2, 0.11));
        assert_eq!(check(&[first, second], Some(&constraints)), "");
        assert_eq!(check(&[], None), "");
        for (kept, said) in [
            (&[first][..], "X2 - X0 is constrained to 0.11 nm, but the model varies it"),
            (&[first, (0, 2, 0.1101)], "X2 - X0 is constrained to 0.11 nm, but the model keeps it at 0.1101 nm"),
            (&[first, second, (2, 1, 0.2)], "X2 - X1 at 0.2 nm, but the engine does not"),
            // two faults: which one is reported is fixed
            (&[first, (2, 1, 0.2)], "X2 - X1 at 0.2 nm, but the engine does not"),
        ] {
            let message = check(kept, Some(&constraints));
            assert!(message.contains(said), "{message}");
        }
        assert!(check(&[first], None).contains("X1 - X0 at 0.1 nm"));
    }

    #[test]
    fn constraints_among_atoms_of_an_engine_are_those_of_the_model() {
        let of = |all: &[(usize, usize, f64)], kept: &[(usize, usize, f64)]| {
            Constraints::among(all, &[7, 5, 6], &[1.0, 2.0, 3.0], kept, &|i| format!("X{i}"))
        };
        let water = (8, 9, 0.09572);
        let found = of(&[water, (5, 7, 0.1)], &[(0, 1, 0.1)]).unwrap().unwrap();
        assert_eq!((found.pairs, found.lengths), (vec![[1, 0]], vec![0.1]));
        assert!(of(&[water], &[]).unwrap().is_none());
        for (all, kept, said) in [
            (&[(6, 8, 0.1)][..], &[][..], "X2 is constrained to an atom outside the model"),
            (&[(8, 6, 0.1)], &[], "X2 is constrained to an atom outside the model"),
            (&[(5, 7, 0.1)], &[], "X1 - X0 is constrained to 0.1 nm, but the model varies it"),
            (&[water], &[(0, 1, 0.1)], "X0 - X1 at 0.1 nm, but the engine does not"),
        ] {
            let message = of(all, kept).unwrap_err().to_string();
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn senseless_constraints_are_refused() {
        assert!(Constraints::new(&[[0, 0]], &[0.1], &[1.0, 1.0]).is_err());
        assert!(Constraints::new(&[[0, 2]], &[0.1], &[1.0, 1.0]).is_err());
        assert!(Constraints::new(&[[0, 1]], &[-0.1], &[1.0, 1.0]).is_err());
        assert!(Constraints::new(&[[0, 1]], &[0.1], &[1.0, 0.0]).is_err());
        assert!(Constraints::new(&[[0, 1]], &[], &[1.0, 1.0]).is_err());
    }
}
