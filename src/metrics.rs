//! **Metrics**: distances between two samples of one molecule, as used in the literature to compare generators (Klein
//! and Noé, "Transferable Boltzmann generators", 2024; Tan et al., "Sequential Boltzmann Generators", 2025).
//!
//! Each is a distance between finite samples, and positive even if both come from one distribution. Its value between
//! two halves of a reference shows how small it can get.

use crate::coordinates::topology::Backbone;
use crate::coordinates::vector::{atom, distance, torsion};
use crate::coordinates::Topology;
use crate::error::{Error, Result};
use crate::rng::Stream;
pub use crate::transport::Cloud;
use crate::transport::{by_assignment, on_the_line, sliced};
use std::f64::consts::{PI, TAU};

/// W₁ and W₂ between reduced potentials (kT), exact for weighted samples. Errors: clouds of another dimension than one.
pub fn energy_distances(a: Cloud, b: Cloud) -> Result<[f64; 2]> {
    Ok([on_the_line(1, a, b)?, on_the_line(2, a, b)?])
}

/// W₂ between torsions on the torus (radian), rows `[torsions]`: the squared distance is the sum over all torsions of
/// min(|Δ|, 2π − |Δ|)². By exact assignment between at most `points` rows of each.
pub fn torsion_distance(a: Cloud, b: Cloud, points: usize, stream: &mut Stream) -> f64 {
    by_assignment(a, b, points, stream, |a, b| a.iter().zip(b).map(|(a, b)| arc(a - b).powi(2)).sum())
}

/// Number of random orthonormal bases for sliced distances.
const BASES: usize = 32;

/// Sliced W₂ of the points (cos θ, sin θ) of the torsions, in units of radius 1, using all rows `[torsions]` (radian).
/// Since chords are shorter than arcs, and slicing gives a lower bound, it never exceeds [`torsion_distance`] between
/// all rows. Errors: clouds of different dimensions.
pub fn sliced_torsion_distance(a: Cloud, b: Cloud, stream: &mut Stream) -> Result<f64> {
    let embed = |cloud: &Cloud| cloud.rows().iter().flat_map(|t| [t.cos(), t.sin()]).collect::<Vec<_>>();
    let (rows_a, rows_b) = (embed(&a), embed(&b));
    let [a, b] = [(&rows_a, a), (&rows_b, b)].map(|(rows, c)| Cloud::new(rows, 2 * c.dimension(), c.weights()));
    sliced(a?, b?, BASES, stream)
}

/// W₂ in a plane, such as that of two time-lagged components, by exact assignment between at most `points` rows of
/// each.
pub fn plane_distance(a: Cloud, b: Cloud, points: usize, stream: &mut Stream) -> f64 {
    by_assignment(a, b, points, stream, |a, b| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum())
}

/// Bins per angle in Ramachandran histograms, 10° each.
const BINS: usize = 36;

/// Jensen–Shannon divergence between Ramachandran histograms of 10° bins, in bits (0 if they are equal, 1 if they do
/// not overlap), averaged over residues. Rows `[residues][φ, ψ]` in radian. Errors: numbers of angles that are odd,
/// zero or differ.
pub fn ramachandran_divergence(a: Cloud, b: Cloud) -> Result<f64> {
    let residues = a.dimension() / 2;
    if a.dimension() != b.dimension() || residues == 0 || a.dimension() % 2 != 0 {
        return Err(Error::invalid(format!(
            "expected equal numbers of angles in pairs of φ and ψ, found {} and {}",
            a.dimension(),
            b.dimension()
        )));
    }
    let histogram = |cloud: &Cloud, residue: usize| {
        let bin = |angle: f64| (((angle + PI).rem_euclid(TAU) / TAU * BINS as f64) as usize).min(BINS - 1);
        let mut mass = vec![0.0; BINS * BINS];
        for (row, w) in cloud.rows().chunks_exact(cloud.dimension()).zip(cloud.weights()) {
            mass[bin(row[2 * residue]) * BINS + bin(row[2 * residue + 1])] += w;
        }
        mass
    };
    let of = |residue| jensen_shannon(&histogram(&a, residue), &histogram(&b, residue));
    Ok((0..residues).map(of).sum::<f64>() / residues as f64)
}

/// ½ Σ p log₂(2p/(p + q)) + ½ Σ q log₂(2q/(p + q)) of two lists of probabilities (Lin, IEEE Trans. Inf. Theory 37, 145
/// (1991)).
pub fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let half = |p: f64, q: f64| if p > 0.0 { 0.5 * p * (2.0 * p / (p + q)).log2() } else { 0.0 };
    p.iter().zip(q).map(|(&p, &q)| half(p, q) + half(q, p)).sum()
}

/// Torsions `[n][torsions]` in radian of frames `x[n][atoms][3]`.
pub fn torsions(x: &[f64], n_atoms: usize, quadruples: &[[usize; 4]]) -> Vec<f64> {
    let of = |x: &[f64], atoms: &[usize; 4]| {
        let [a, b, c, d] = atoms.map(|i| atom(x, i));
        torsion(a, b, c, d)
    };
    x.chunks_exact(3 * n_atoms).flat_map(|x| quadruples.iter().map(move |atoms| of(x, atoms))).collect()
}

/// Features for time-lagged components of a molecule, as in the evaluations of Sequential Boltzmann Generators:
/// distances between all pairs of carbon, nitrogen and sulphur atoms (nm), or of Cα atoms if there are more than four;
/// cosine and sine of all φ, ψ and ω.
pub struct Features {
    pairs: Vec<[usize; 2]>,
    torsions: Vec<[usize; 4]>,
    n_atoms: usize,
}

impl Features {
    /// Errors: a molecule with fewer than two such atoms and no backbone.
    pub fn new(topology: &Topology) -> Result<Features> {
        let Backbone { phi, psi, omega } = topology.backbone();
        let alphas: Vec<usize> = (0..topology.n_atoms()).filter(|&i| topology.names[i] == "CA").collect();
        let heavy = (0..topology.n_atoms()).filter(|&i| ["C", "N", "S"].contains(&topology.elements[i].as_str()));
        let chosen = if alphas.len() > 4 { alphas } else { heavy.collect() };
        let pairs: Vec<[usize; 2]> =
            (0..chosen.len()).flat_map(|i| (0..i).map(move |j| [j, i])).map(|[j, i]| [chosen[j], chosen[i]]).collect();
        let torsions = [phi, psi, omega].concat();
        if pairs.is_empty() && torsions.is_empty() {
            return Err(Error::invalid(
                "the molecule has fewer than two carbon, nitrogen or sulphur atoms, and no backbone",
            ));
        }
        Ok(Features { pairs, torsions, n_atoms: topology.n_atoms() })
    }

    /// Number of features per configuration.
    pub fn dimension(&self) -> usize {
        self.pairs.len() + 2 * self.torsions.len()
    }

    /// Features `[n][dimension]` of frames `x[n][atoms][3]`, nm.
    pub fn of(&self, x: &[f64]) -> Vec<f64> {
        let row = |x: &[f64]| {
            let distances = self.pairs.iter().map(|&[i, j]| distance(x, i, j));
            let angles = torsions(x, self.n_atoms, &self.torsions);
            distances.chain(angles.into_iter().flat_map(|t| [t.cos(), t.sin()])).collect::<Vec<_>>()
        };
        x.chunks_exact(3 * self.n_atoms).flat_map(row).collect()
    }
}

/// Length of the shorter arc, 0 … π.
fn arc(difference: f64) -> f64 {
    let turned = difference.rem_euclid(TAU);
    turned.min(TAU - turned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::StreamId;
    use std::path::Path;

    fn stream() -> Stream {
        Stream::new(4, StreamId::Test, 0, 0)
    }

    fn uniform(n: usize) -> Vec<f64> {
        vec![1.0 / n as f64; n]
    }

    #[test]
    fn a_turn_of_all_torsions_costs_its_arc() {
        let mut numbers = stream();
        let (n, d) = (50, 3);
        let a: Vec<f64> = (0..n * d).map(|_| TAU * numbers.uniform()).collect();
        // narrow about ±π, so that the shorter arc crosses the cut
        let near: Vec<f64> = a.iter().map(|t| PI - 0.01 * t).collect();
        let over: Vec<f64> = near.iter().map(|t| t + 0.2 - TAU).collect();
        let w = uniform(n);
        let cloud = |x| Cloud::new(x, d, &w).unwrap();
        let found = torsion_distance(cloud(&near), cloud(&over), 100, &mut stream());
        assert!((found - 0.2 * 3f64.sqrt()).abs() < 1e-9, "{found}");
        let other: Vec<f64> = (0..n * d).map(|_| TAU * numbers.uniform() - PI).collect();
        let exact = torsion_distance(cloud(&a), cloud(&other), 100, &mut stream());
        let sliced = sliced_torsion_distance(cloud(&a), cloud(&other), &mut stream()).unwrap();
        assert!(sliced < exact && sliced > 0.1 * exact, "{sliced} {exact}");
        assert!(sliced_torsion_distance(cloud(&near), cloud(&near), &mut stream()).unwrap() < 1e-12);
    }

    #[test]
    fn torsion_distance_is_the_best_of_all_pairings() {
        let mut numbers = stream();
        for _ in 0..20 {
            let [a, b]: [Vec<f64>; 2] = std::array::from_fn(|_| (0..8).map(|_| TAU * numbers.uniform()).collect());
            let cost = |i: usize, j: usize| -> f64 {
                let way = |k: usize| (a[2 * i + k] - b[2 * j + k]).abs() % TAU;
                (0..2).map(|k| way(k).min(TAU - way(k)).powi(2)).sum()
            };
            let mut best = f64::INFINITY;
            for p in 0..256 {
                let place = [p % 4, p / 4 % 4, p / 16 % 4, p / 64];
                if (0..4).all(|j| place.contains(&j)) {
                    best = best.min((0..4).map(|i| cost(i, place[i])).sum());
                }
            }
            let w = uniform(4);
            let (a, b) = (Cloud::new(&a, 2, &w).unwrap(), Cloud::new(&b, 2, &w).unwrap());
            assert!((torsion_distance(a, b, 10, &mut stream()) - (best / 4.0).sqrt()).abs() < 1e-12);
        }
    }

    #[test]
    fn divergences_of_known_histograms() {
        assert_eq!(jensen_shannon(&[0.5, 0.5, 0.0], &[0.5, 0.5, 0.0]), 0.0);
        assert_eq!(jensen_shannon(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        // (1, 0) against (1/2, 1/2): 1/2 log2(4/3) + 1/4 log2(2/3) + 1/4
        let known = 0.5 * (4f64 / 3.0).log2() + 0.25 * (2f64 / 3.0).log2() + 0.25 * 2f64.log2();
        assert!((jensen_shannon(&[1.0, 0.0], &[0.5, 0.5]) - known).abs() < 1e-15);
        // two residues, one of them identical; the other in two bins against one of these
        let (a, b) = ([0.1, 0.1, 1.0, 1.0, 0.1, 0.1, -1.0, 1.0], [0.1, 0.1, 1.0, 1.0]);
        let (a, b) = (Cloud::new(&a, 4, &[0.5, 0.5]).unwrap(), Cloud::new(&b, 4, &[1.0]).unwrap());
        assert!((ramachandran_divergence(a, b).unwrap() - 0.5 * known).abs() < 1e-15);
        // the second residue's ψ is independent of the first's
        let (c, d) = ([0.1, 0.1, 1.0, 1.0], [0.1, 0.1, 1.0, -1.0]);
        let [c, d] = [&c, &d].map(|x| Cloud::new(x, 4, &[1.0]).unwrap());
        assert_eq!(ramachandran_divergence(c, d).unwrap(), 0.5);
        // other branches of the same angles
        let (c, d) = ([PI, 3.0 * PI], [-PI, PI]);
        let [c, d] = [&c, &d].map(|x| Cloud::new(x, 2, &[1.0]).unwrap());
        assert_eq!(ramachandran_divergence(c, d).unwrap(), 0.0);
        assert!(ramachandran_divergence(a, c).is_err());
    }

    #[test]
    fn features_of_alanine_dipeptide() {
        let (topology, x) = Topology::from_pdb(Path::new("models/ala2/topology.pdb")).unwrap();
        let features = Features::new(&topology).unwrap();
        // six carbons, two nitrogens; φ and ψ: its caps have no Cα, and so no ω
        assert_eq!(features.dimension(), 28 + 4);
        let row = features.of(&x);
        assert_eq!(row.len(), 32);
        let phi = torsions(&x, 22, &topology.backbone().phi)[0];
        assert!((row[28] - phi.cos()).abs() < 1e-12 && (row[29] - phi.sin()).abs() < 1e-12);
        assert!((row[0] - distance(&x, 0, 4)).abs() < 1e-12);
    }
}
