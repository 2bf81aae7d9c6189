//! Handedness of stereocentres: a generator of one hand gives the other hand zero density.

use super::topology::Topology;
use super::vector::{atom, cross, dot, sub};
use serde::{Deserialize, Serialize};

/// A centre with three of its neighbours; `positive` is the sign of their triple product seen from the centre.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stereocentre {
    pub centre: usize,
    pub neighbours: [usize; 3],
    pub positive: bool,
}

impl Stereocentre {
    /// Largest atom index among its four atoms.
    pub fn last_atom(&self) -> usize {
        self.neighbours.iter().fold(self.centre, |last, &atom| last.max(atom))
    }

    /// Whether `x[atoms][3]` has this handedness.
    pub fn holds(&self, x: &[f64]) -> bool {
        (triple_product(x, self.centre, self.neighbours) > 0.0) == self.positive
    }
}

fn triple_product(x: &[f64], centre: usize, neighbours: [usize; 3]) -> f64 {
    let [a, b, c] = neighbours.map(|n| sub(atom(x, n), atom(x, centre)));
    dot(a, cross(b, c))
}

/// Atoms with four topologically distinct neighbours, with the handedness they have in `x`.
pub fn stereocentres(topology: &Topology, x: &[f64]) -> Vec<Stereocentre> {
    let neighbours = topology.neighbours();
    let rank = graph_ranks(topology, &neighbours);
    let distinct = |list: &[usize]| (1..4).all(|b| (0..b).all(|a| rank[list[a]] != rank[list[b]]));
    (0..neighbours.len())
        .filter(|&i| neighbours[i].len() == 4 && distinct(&neighbours[i]))
        .map(|centre| {
            let three = [neighbours[centre][0], neighbours[centre][1], neighbours[centre][2]];
            Stereocentre { centre, neighbours: three, positive: triple_product(x, centre, three) > 0.0 }
        })
        .collect()
}

/// Atoms with four neighbours of which two are equivalent and terminal, such as the hydrogens of a methyl group: their
/// labels give the centre a handedness, the one it has in `x`. The first two neighbours are the equivalent ones.
pub fn prochiral_centres(topology: &Topology, x: &[f64]) -> Vec<Stereocentre> {
    let neighbours = topology.neighbours();
    let rank = graph_ranks(topology, &neighbours);
    let alike = |a: usize, b: usize| rank[a] == rank[b] && neighbours[a].len() == 1;
    let centre = |centre: usize| {
        let around = &neighbours[centre];
        let pairs = (1..around.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        let (i, j) = pairs.into_iter().find(|&(i, j)| around.len() == 4 && alike(around[i], around[j]))?;
        let third = (0..4).find(|&k| k != i && k != j)?;
        let three = [around[i], around[j], around[third]];
        Some(Stereocentre { centre, neighbours: three, positive: triple_product(x, centre, three) > 0.0 })
    };
    (0..neighbours.len()).filter_map(centre).collect()
}

/// Equivalence classes of the atoms of a molecule, numbered from 0 in order of first appearance; atoms that the bond
/// graph cannot distinguish, such as the hydrogens of a methyl group, share a class.
pub fn classes(topology: &Topology) -> Vec<usize> {
    let ranks = graph_ranks(topology, &topology.neighbours());
    let mut seen: Vec<usize> = Vec::new();
    let mut number = |rank: usize| match seen.iter().position(|&r| r == rank) {
        Some(class) => class,
        None => {
            seen.push(rank);
            seen.len() - 1
        }
    };
    ranks.into_iter().map(&mut number).collect()
}

/// Ranks of atoms, equal for those that cannot be distinguished by repeatedly comparing elements and neighbours
/// (Morgan's refinement).
fn graph_ranks(topology: &Topology, neighbours: &[Vec<usize>]) -> Vec<usize> {
    let n = neighbours.len();
    let number = |keys: &[(usize, Vec<usize>)]| -> Vec<usize> {
        let mut sorted: Vec<_> = keys.iter().collect();
        sorted.sort();
        sorted.dedup();
        keys.iter().map(|key| sorted.binary_search(&key).unwrap_or(0)).collect()
    };
    let element = |i: usize| topology.elements[i].bytes().fold(0usize, |h, b| h * 256 + usize::from(b));
    let mut rank = number(&(0..n).map(|i| (element(i), vec![])).collect::<Vec<_>>());
    for _ in 0..n {
        let key = |i: usize| {
            let mut around: Vec<usize> = neighbours[i].iter().map(|&j| rank[j]).collect();
            around.sort_unstable();
            (rank[i], around)
        };
        let next = number(&(0..n).map(key).collect::<Vec<_>>());
        if next.iter().max() == rank.iter().max() {
            return next;
        }
        rank = next;
    }
    rank
}
