//! Z-matrix: the three placed atoms that define bond, angle and torsion of each further atom.

use super::topology::Topology;
use crate::error::{Error, Result};

/// One row: atom `i` is placed by the distance to `j`, the angle i–j–k and the torsion i–j–k–l.
pub type Row = [usize; 4];

/// A frame of three atoms (bonds 0–1 and 1–2, angle at 1) and one row for every further atom.
#[derive(Clone, Debug, PartialEq)]
pub struct ZMatrix {
    pub frame: [usize; 3],
    /// Rows in the order given, in which a generator's angles and torsions are stored.
    pub rows: Vec<Row>,
    /// Row indices in an order of placement: every row comes after those of its three reference atoms.
    pub order: Vec<usize>,
}

impl ZMatrix {
    /// Checks the rows and finds the order of placement: repeatedly, all rows whose reference atoms are placed, by
    /// index. The round of a row is one more than the last of those of its reference atoms, 0 being that of the frame.
    ///
    /// Errors: an atom out of range, placed twice, repeated within a row, not placed or not reachable, named by
    /// `label`.
    pub fn new(frame: [usize; 3], rows: Vec<Row>, n_atoms: usize, label: impl Fn(usize) -> String) -> Result<ZMatrix> {
        let mut listed = vec![false; n_atoms];
        let all = frame.iter().chain(rows.iter().flatten());
        if let Some(atom) = all.clone().find(|&&a| a >= n_atoms) {
            return Err(Error::invalid(format!(
                "the z-matrix contains atom {}, but the molecule has {n_atoms} atoms",
                atom.saturating_add(1)
            )));
        }
        for &atom in frame.iter().chain(rows.iter().map(|row| &row[0])) {
            if std::mem::replace(&mut listed[atom], true) {
                return Err(Error::invalid(format!("the z-matrix places {} twice", label(atom))));
            }
        }
        if let Some(row) = rows.iter().find(|r| (1..4).any(|a| (0..a).any(|b| r[a] == r[b]))) {
            return Err(Error::invalid(format!("the z-matrix row of {} repeats an atom", label(row[0]))));
        }
        if let Some(atom) = (0..n_atoms).find(|&a| !listed[a]) {
            return Err(Error::invalid(format!("the z-matrix does not place {}", label(atom))));
        }
        let mut referring = vec![Vec::new(); n_atoms];
        rows.iter().enumerate().for_each(|(r, row)| row[1..].iter().for_each(|&a| referring[a].push(r)));
        let (mut missing, mut round) = (vec![3; rows.len()], vec![0_usize; n_atoms]);
        let mut placed = frame.to_vec();
        while let Some(atom) = placed.pop() {
            for &r in &referring[atom] {
                let [i, ..] = rows[r];
                round[i] = round[i].max(round[atom] + 1);
                missing[r] -= 1;
                if missing[r] == 0 {
                    placed.push(i);
                }
            }
        }
        let unreached: Vec<String> = (0..rows.len()).filter(|&r| missing[r] > 0).map(|r| label(rows[r][0])).collect();
        if !unreached.is_empty() {
            return Err(Error::invalid(format!("the z-matrix cannot reach {}", unreached.join(", "))));
        }
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&r| round[rows[r][0]]);
        Ok(ZMatrix { frame, rows, order })
    }

    /// Z-matrix from rows in bgmol's notation, where frame atoms have −1 for missing references.
    ///
    /// Errors: also frame rows that are missing.
    pub fn from_rows_with_frame(rows: &[[i64; 4]], n_atoms: usize, label: impl Fn(usize) -> String) -> Result<ZMatrix> {
        let missing = |row: &[i64; 4]| row.iter().filter(|&&a| a < 0).count();
        let with = |n: usize| rows.iter().find(|r| missing(r) == n).map(|r| r[0] as usize);
        let (Some(a), Some(b), Some(c)) = (with(3), with(2), with(1)) else {
            return Err(Error::invalid(
                "the z-matrix must have one row each with three, two and one missing references",
            ));
        };
        let whole = rows.iter().filter(|r| missing(r) == 0).map(|r| r.map(|a| a as usize)).collect();
        ZMatrix::new([a, b, c], whole, n_atoms, label)
    }

    /// Builds a z-matrix for any connected molecule of at least three atoms.
    ///
    /// The frame starts at the heavy atom nearest the centre of the bond graph, so that chains of placement stay short.
    /// The first atom placed about a bond carries its torsion; its siblings refer to it (improper torsions), so that
    /// they follow its rotation and their own torsions are stiff.
    ///
    /// Errors: fewer than three atoms, a molecule that is not connected.
    pub fn automatic(topology: &Topology) -> Result<ZMatrix> {
        let n = topology.n_atoms();
        if n < 3 {
            return Err(Error::invalid(format!(
                "internal coordinates require at least three atoms, but the molecule has {n}"
            )));
        }
        let neighbours = topology.neighbours();
        let heavy = |a: usize| topology.elements[a] != "H";
        let centre = graph_centre(&neighbours, &heavy);
        let unreachable: Vec<String> = distances(&neighbours, centre)
            .iter()
            .enumerate()
            .filter(|(_, d)| d.is_none())
            .map(|(a, _)| topology.label(a))
            .collect();
        if !unreachable.is_empty() {
            let (n, first) = (unreachable.len(), unreachable[..unreachable.len().min(3)].join(", "));
            return Err(Error::invalid(format!(
                "the molecule is not connected: {n} of its atoms ({first}{}) cannot be reached from {} along bonds; add missing bonds, and \
                 train a model of a solute without the solvent, with a System of the solute alone",
                if n > 3 { ", …" } else { "" },
                topology.label(centre)
            )));
        }
        let prefer = |list: &[usize], not: &[usize]| {
            let mut best: Vec<usize> = list.iter().copied().filter(|a| !not.contains(a)).collect();
            best.sort_by_key(|&a| (!heavy(a), std::cmp::Reverse(neighbours[a].len()), a));
            best.first().copied()
        };
        let second = prefer(&neighbours[centre], &[]).unwrap_or(centre);
        let frame = match prefer(&neighbours[second], &[centre]) {
            Some(third) => [centre, second, third],
            None => match prefer(&neighbours[centre], &[second]) {
                Some(third) => [second, centre, third],
                None => return Err(Error::invalid("no three bonded atoms to start from")),
            },
        };
        let rows = grow(&neighbours, frame, &heavy);
        ZMatrix::new(frame, rows, n, |a| topology.label(a))
    }
}

/// Breadth-first placement from the frame outwards; heavy atoms first, then hydrogens.
fn grow(neighbours: &[Vec<usize>], frame: [usize; 3], heavy: &dyn Fn(usize) -> bool) -> Vec<Row> {
    let n = neighbours.len();
    let mut parent = vec![usize::MAX; n];
    let [a0, a1, a2] = frame;
    (parent[a0], parent[a2], parent[a1]) = (a1, a1, a0);
    let mut placed = vec![false; n];
    frame.iter().for_each(|&a| placed[a] = true);
    // The first atom placed about a bond (j, k), by child atom j.
    let mut leader: Vec<Option<usize>> = vec![None; n];
    leader[a1] = Some(a2);
    let mut rows = Vec::with_capacity(n - 3);
    let mut queue = std::collections::VecDeque::from([a1, a0, a2]);
    while let Some(j) = queue.pop_front() {
        let mut children: Vec<usize> = neighbours[j].iter().copied().filter(|&i| !placed[i]).collect();
        children.sort_by_key(|&i| (!heavy(i), i));
        for i in children {
            let k = parent[j];
            let l = match leader[j] {
                Some(sibling) => sibling,
                None => {
                    leader[j] = Some(i);
                    reference(neighbours, &placed, &parent, j, k)
                }
            };
            rows.push([i, j, k, l]);
            placed[i] = true;
            parent[i] = j;
            queue.push_back(i);
        }
    }
    rows
}

/// Placed atom from which the torsion about (j, k) is measured: k's parent, else k's first placed neighbour.
fn reference(neighbours: &[Vec<usize>], placed: &[bool], parent: &[usize], j: usize, k: usize) -> usize {
    let up = parent[k];
    if up != j && up != usize::MAX {
        return up;
    }
    let free = |&l: &usize| placed[l] && l != j && l != k;
    // A frame atom always has the third frame atom within two bonds.
    neighbours[k].iter().copied().find(|l| free(l)).unwrap_or_else(|| (0..placed.len()).find(|l| free(l)).unwrap_or(0))
}

fn distances(neighbours: &[Vec<usize>], from: usize) -> Vec<Option<usize>> {
    let mut distance = vec![None; neighbours.len()];
    distance[from] = Some(0);
    let mut queue = std::collections::VecDeque::from([from]);
    while let Some(a) = queue.pop_front() {
        for &b in &neighbours[a] {
            if distance[b].is_none() {
                distance[b] = distance[a].map(|d| d + 1);
                queue.push_back(b);
            }
        }
    }
    distance
}

/// Centre of the bond graph: the heavy atom (any atom if there is none) whose greatest bond distance to others is
/// least; ties go to the one with most neighbours, then by index.
fn graph_centre(neighbours: &[Vec<usize>], heavy: &dyn Fn(usize) -> bool) -> usize {
    let eccentricity = |a: usize| distances(neighbours, a).into_iter().flatten().max().unwrap_or(0);
    let reached = |a: usize| distances(neighbours, a).into_iter().flatten().count();
    (0..neighbours.len())
        .min_by_key(|&a| {
            (std::cmp::Reverse(reached(a)), !heavy(a), eccentricity(a), std::cmp::Reverse(neighbours[a].len()), a)
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::{chirality, InternalCoordinates};
    use crate::density::Status;
    use crate::testing::ala2;

    #[test]
    fn alanine_dipeptide_gets_a_z_matrix_along_bonds() {
        let (topology, x) = Topology::from_pdb(&ala2("topology.pdb")).unwrap();
        assert_eq!(topology.bonds.len(), 21);
        let zmatrix = ZMatrix::automatic(&topology).unwrap();
        let bonded = |i: usize, j: usize| topology.bonds.contains(&[i.min(j), i.max(j)]);
        assert!(zmatrix.rows.iter().all(|r| bonded(r[0], r[1]) && bonded(r[1], r[2])));
        assert!(bonded(zmatrix.frame[0], zmatrix.frame[1]) && bonded(zmatrix.frame[1], zmatrix.frame[2]));
        let internal = InternalCoordinates::new(zmatrix, true, &[]).unwrap();
        let (mut u, mut y) = (vec![0.0; internal.dimension()], vec![0.0; x.len()]);
        assert_eq!(internal.to_internal(&x, &mut u).1, Status::Inside);
        assert_eq!(internal.to_cartesian(&u, &mut y).1, Status::Inside);
        let stereo = chirality::stereocentres(&topology, &x);
        assert_eq!(stereo.len(), 1, "the alpha carbon alone is a stereocentre");
        assert!(stereo[0].holds(&y));
        let mirrored: Vec<f64> = x.chunks_exact(3).flat_map(|r| [-r[0], r[1], r[2]]).collect();
        assert!(!stereo[0].holds(&mirrored));
    }

    #[test]
    fn chains_rings_stars_and_three_atoms_work() {
        let molecule = |n: usize, bonds: &[[usize; 2]]| Topology {
            names: (0..n).map(|i| format!("C{i}")).collect(),
            elements: vec!["C".into(); n],
            residues: vec!["MOL1".into(); n],
            bonds: bonds.to_vec(),
        };
        let ring: Vec<[usize; 2]> = (0..6).map(|i| [i.min((i + 1) % 6), i.max((i + 1) % 6)]).collect();
        let chain: Vec<[usize; 2]> = (0..9).map(|i| [i, i + 1]).collect();
        let star: Vec<[usize; 2]> = (1..5).map(|i| [0, i]).collect();
        for (n, bonds) in [(6, &ring[..]), (10, &chain), (5, &star), (3, &chain[..2])] {
            let zmatrix = ZMatrix::automatic(&molecule(n, bonds)).unwrap();
            assert_eq!(zmatrix.order.len(), n - 3);
        }
    }

    #[test]
    fn atoms_that_cannot_be_reached_are_named() {
        let (mut topology, _) = Topology::from_pdb(&ala2("topology.pdb")).unwrap();
        topology.bonds.retain(|b| *b != [16, 18]);
        let error = ZMatrix::automatic(&topology).unwrap_err().to_string();
        assert!(
            error.contains("4 of its atoms (NME3:CH3 (atom 19), NME3:HH31 (atom 20), NME3:HH32 (atom 21), …)")
                && error.contains("add missing bonds"),
            "{error}"
        );
        // a row may come before those of its reference atoms
        let chain = vec![[5, 4, 3, 2], [3, 2, 1, 0], [4, 3, 2, 1], [6, 2, 1, 0]];
        assert_eq!(ZMatrix::new([0, 1, 2], chain, 7, |a| format!("atom {a}")).unwrap().order, [1, 3, 2, 0]);
        let circular =
            ZMatrix::new([0, 1, 2], vec![[3, 4, 1, 0], [4, 3, 1, 0]], 5, |a| format!("atom {a}")).unwrap_err();
        assert!(circular.to_string().contains("cannot reach atom 3, atom 4"), "{circular}");
    }
}
