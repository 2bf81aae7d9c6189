//! Atoms and bonds of one molecule, read from a PDB file or an OpenMM System.

use crate::error::{Error, Result};
use crate::io::read_text;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

/// Names, elements, residues and bonds of a molecule, in the order of the coordinates.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Topology {
    /// Atom names as in the PDB file.
    pub names: Vec<String>,
    /// Element symbols.
    pub elements: Vec<String>,
    /// Residue label of every atom, such as `ALA2`.
    pub residues: Vec<String>,
    /// Pairs of atom indices, smaller first, sorted.
    pub bonds: Vec<[usize; 2]>,
}

/// Backbone torsions of a peptide, each by its four atoms: φ is C–N–CA–C, ψ N–CA–C–N, ω CA–C–N–CA.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backbone {
    pub phi: Vec<[usize; 4]>,
    pub psi: Vec<[usize; 4]>,
    pub omega: Vec<[usize; 4]>,
}

impl Backbone {
    /// φ and ψ of every residue that has both.
    pub fn phi_psi(&self) -> Vec<[[usize; 4]; 2]> {
        let psi_of = |phi: &[usize; 4]| self.psi.iter().find(|psi| phi[1..] == psi[..3]);
        self.phi.iter().filter_map(|phi| Some([*phi, *psi_of(phi)?])).collect()
    }
}

/// Element symbols with covalent radii in nm (Cordero et al., Dalton Trans. 2008, 2832) and masses in dalton.
const ELEMENTS: &[(&str, f64, f64)] = &[
    ("H", 0.031, 1.008),
    ("B", 0.084, 10.81),
    ("C", 0.076, 12.011),
    ("N", 0.071, 14.007),
    ("O", 0.066, 15.999),
    ("F", 0.057, 18.998),
    ("NA", 0.166, 22.990),
    ("MG", 0.141, 24.305),
    ("SI", 0.111, 28.085),
    ("P", 0.107, 30.974),
    ("S", 0.105, 32.06),
    ("CL", 0.102, 35.45),
    ("K", 0.203, 39.098),
    ("CA", 0.176, 40.078),
    ("FE", 0.132, 55.845),
    ("ZN", 0.122, 65.38),
    ("SE", 0.120, 78.971),
    ("BR", 0.120, 79.904),
    ("I", 0.139, 126.90),
];

/// Atoms farther apart than this multiple of the sum of their radii are hardly bonded.
pub(crate) const STRETCHED: f64 = 1.4;

/// Covalent radius, nm.
pub(crate) fn radius(element: &str) -> Option<f64> {
    ELEMENTS.iter().find(|e| e.0.eq_ignore_ascii_case(element)).map(|e| e.1)
}

/// Upper limit for the mass of a hydrogen, dalton: mass repartitioning takes it to 4.
const HEAVIEST_HYDROGEN: f64 = 4.2;

/// Element with the nearest mass (dalton); hydrogen for repartitioned masses below 4.2.
pub fn element_of_mass(mass: f64) -> &'static str {
    if mass < HEAVIEST_HYDROGEN {
        return "H";
    }
    let nearest = ELEMENTS.iter().min_by(|a, b| (a.2 - mass).abs().total_cmp(&(b.2 - mass).abs()));
    nearest.map_or("C", |e| e.0)
}

impl Topology {
    /// Number of atoms.
    pub fn n_atoms(&self) -> usize {
        self.names.len()
    }

    /// Label such as `ALA2:CB (atom 11)`, counting from one as PDB files do.
    pub fn label(&self, atom: usize) -> String {
        match (self.residues.get(atom), self.names.get(atom)) {
            (Some(residue), Some(name)) => format!("{residue}:{name} (atom {})", atom + 1),
            _ => format!("atom {}", atom + 1),
        }
    }

    /// Neighbours of every atom, in ascending order.
    pub fn neighbours(&self) -> Vec<Vec<usize>> {
        let mut lists = vec![Vec::new(); self.n_atoms()];
        for &[i, j] in &self.bonds {
            lists[i].push(j);
            lists[j].push(i);
        }
        lists.iter_mut().for_each(|list| list.sort_unstable());
        lists
    }

    /// A torsion about every bond that may turn: it is in no ring, and both its atoms have other neighbours, the first
    /// of which is taken.
    pub fn rotatable(&self) -> Vec<[usize; 4]> {
        let neighbours = self.neighbours();
        let is_in_ring = |j: usize, k: usize| {
            let (mut seen, mut reached) = (vec![false; neighbours.len()], vec![j]);
            while let Some(i) = reached.pop() {
                let next = neighbours[i].iter().filter(|&&to| (i, to) != (j, k));
                for &to in next {
                    if !std::mem::replace(&mut seen[to], true) {
                        reached.push(to);
                    }
                }
            }
            seen[k]
        };
        let end = |of: usize, not: usize| neighbours[of].iter().copied().find(|&i| i != not);
        let torsion = |&[j, k]: &[usize; 2]| Some([end(j, k)?, j, k, end(k, j)?]);
        self.bonds.iter().filter(|&&[j, k]| !is_in_ring(j, k)).filter_map(torsion).collect()
    }

    /// Index of the atom with this name in this residue, e.g. `("ALA2", "CA")`.
    pub fn find(&self, residue: &str, name: &str) -> Option<usize> {
        (0..self.n_atoms()).find(|&i| self.residues[i] == residue && self.names[i] == name)
    }

    /// Checks that a System, with these masses and bonded pairs, has the atoms of the topology in the same order, which
    /// masses alone do not tell.
    ///
    /// Errors: another number of particles or impossible masses; bonds of particles that it lacks; bonds that only the
    /// System has together with bonds that only the topology has. If just one of them has extra bonds, such as to
    /// metals, or constrained angles of rigid water, that is accepted.
    pub fn require_system(&self, masses: &[f64], bonds: &[(usize, usize)]) -> Result<()> {
        self.require_masses(masses)?;
        if let Some((a, b)) = bonds.iter().find(|(a, b)| *a.max(b) >= self.n_atoms()) {
            let message = format!("the System bonds particles {a} and {b}, counted from 0, of {}", self.n_atoms());
            return Err(Error::invalid(message));
        }
        let neighbours = self.neighbours();
        let are_hydrogens = |a: usize, b: usize| [a, b].iter().all(|&i| self.elements[i].eq_ignore_ascii_case("H"));
        let is_known = |a: usize, b: usize| {
            let have_common = || neighbours[a].iter().any(|&between| neighbours[between].contains(&b));
            neighbours[a].contains(&b) || (are_hydrogens(a, b) && have_common())
        };
        let theirs: BTreeSet<[usize; 2]> = bonds.iter().map(|&(a, b)| [a.min(b), a.max(b)]).collect();
        let missing = theirs.iter().find(|[a, b]| !is_known(*a, *b));
        let foreign = self.bonds.iter().find(|bond| !theirs.contains(*bond));
        match (missing, foreign) {
            (Some([a, b]), Some([c, d])) => Err(Error::invalid(format!(
                "the System bonds {} to {}, but the topology bonds {} to {}: both must have the atoms in the same order (bonds of a topology come \
                 from its residues, from CONECT records or from distances)",
                self.label(*a),
                self.label(*b),
                self.label(*c),
                self.label(*d)
            ))),
            _ => Ok(()),
        }
    }

    /// Checks that these can be the masses (dalton) of the atoms. Repartitioning makes hydrogens heavier and their
    /// neighbours lighter, but no heavy atom heavier, so swapped atoms are revealed by the one that is too heavy for
    /// its element. A carbon may include the mass of the hydrogens left out of a united atom.
    ///
    /// Errors: another number of particles; the first atom with another element's mass. Virtual sites and frozen
    /// particles, of mass zero, are accepted.
    pub(crate) fn require_masses(&self, masses: &[f64]) -> Result<()> {
        if masses.len() != self.n_atoms() {
            return Err(Error::invalid(format!(
                "found {} particles, but the topology has {} atoms",
                masses.len(),
                self.n_atoms()
            )));
        }
        let residues: Vec<&str> = self.residues.iter().map(String::as_str).collect();
        // a residue of one atom is an ion: its names, and elements guessed from them, vary too much
        for i in residue_runs(&residues).into_iter().filter(|run| run.len() > 1).flatten() {
            let (element, mass) = (&self.elements[i], masses[i]);
            let Some(own) = ELEMENTS.iter().find(|e| e.0.eq_ignore_ascii_case(element)).map(|e| e.2) else { continue };
            let allowed = match own < 2.0 {
                true => 0.0..HEAVIEST_HYDROGEN,
                false => 1.2..own + 0.5,
            };
            let left_out = (mass - own) / ELEMENTS[0].2;
            let is_united = element.eq_ignore_ascii_case("C")
                && (0.9..4.1).contains(&left_out)
                && (left_out - left_out.round()).abs() < 0.01;
            let of_mass = element_of_mass(mass);
            let is_named_so = self.names[i].to_uppercase().starts_with(of_mass) && of_mass.len() == 2;
            if mass != 0.0 && !allowed.contains(&mass) && !is_united && !is_named_so {
                return Err(Error::invalid(format!(
                    "found a mass of {mass} where the topology has {}, {element}: both must have the atoms in the same order; use element X for \
                     beads of several atoms (columns 77 and 78 of a PDB file)",
                    self.label(i)
                )));
            }
        }
        Ok(())
    }

    /// Backbone torsions φ (C–N–CA–C) and ψ (N–CA–C–N) of the first residue that has both.
    pub fn phi_psi(&self) -> Option<[[usize; 4]; 2]> {
        self.backbone().phi_psi().into_iter().next()
    }

    /// All backbone torsions, in the order of their first atoms.
    pub fn backbone(&self) -> Backbone {
        let neighbours = self.neighbours();
        let steps = |chain: &[usize], name: &str| -> Vec<Vec<usize>> {
            let last = chain[chain.len() - 1];
            let next = neighbours[last].iter().filter(|&&j| self.names[j] == name && !chain.contains(&j));
            next.map(|&j| [chain, &[j]].concat()).collect()
        };
        let paths = |names: [&str; 4]| -> Vec<[usize; 4]> {
            let starts = (0..self.n_atoms()).filter(|&i| self.names[i] == names[0]).map(|i| vec![i]).collect();
            let grow = |chains: Vec<Vec<usize>>, name: &&str| chains.iter().flat_map(|c| steps(c, name)).collect();
            let chains: Vec<Vec<usize>> = names[1..].iter().fold(starts, grow);
            chains.iter().map(|c| [c[0], c[1], c[2], c[3]]).collect()
        };
        Backbone {
            phi: paths(["C", "N", "CA", "C"]),
            psi: paths(["N", "CA", "C", "N"]),
            omega: paths(["CA", "C", "N", "CA"]),
        }
    }

    /// Reads the first model of a PDB file: atoms, bonds (CONECT records, else covalent radii) and coordinates
    /// `[atoms][3]` in nm.
    ///
    /// Errors: a file that cannot be read, has no atoms, or has malformed coordinates.
    pub fn from_pdb(path: &Path) -> Result<(Topology, Vec<f64>)> {
        let text = read_text(path)?;
        let mut topology = Topology::default();
        let mut x = Vec::new();
        let mut serials = Vec::new();
        let mut conect = Vec::new();
        // CONECT records follow all models, of which the first is read
        let mut first_model = true;
        for (number, line) in text.lines().enumerate() {
            let bad =
                |what: &str| Error::file(path, format!("line {}: could not read the {what} of a PDB file", number + 1));
            if line.starts_with("ENDMDL") {
                first_model = false;
            } else if first_model && (line.starts_with("ATOM") || line.starts_with("HETATM")) {
                let field = |from: usize, to: usize| line.get(from..to.min(line.len())).unwrap_or("").trim();
                let name = field(12, 16).to_string();
                topology.elements.push(pdb_element(field(76, 78), &name));
                // four columns are used for the name, unless it ends in a digit, which would be taken for part of the
                // number
                let four = field(17, 21);
                let residue = if four.ends_with(|c: char| c.is_ascii_digit()) { field(17, 20) } else { four };
                topology.residues.push(format!("{residue}{}", field(22, 26)));
                topology.names.push(name);
                serials.push(field(6, 11).to_string());
                for axis in 0..3 {
                    let value = field(30 + 8 * axis, 38 + 8 * axis).parse::<f64>().map_err(|_| bad("coordinates"))?;
                    x.push(value * crate::units::NM_PER_ANGSTROM);
                }
            } else if line.starts_with("CONECT") {
                let serial = |k: usize| line.get(6 + 5 * k..(11 + 5 * k).min(line.len())).map(str::trim);
                let first = serial(0).unwrap_or("").to_string();
                conect.extend(
                    (1..5).filter_map(serial).filter(|s| !s.is_empty()).map(|s| (first.clone(), s.to_string())),
                );
            }
        }
        if topology.names.is_empty() {
            return Err(Error::file(path, "no ATOM or HETATM record: expected a PDB file"));
        }
        let mut places: HashMap<&str, usize> = HashMap::new();
        for (place, serial) in serials.iter().enumerate() {
            places.entry(serial).or_insert(place);
        }
        let index = |serial: &str| places.get(serial).copied();
        topology.set_bonds(conect.iter().filter_map(|(a, b)| Some([index(a)?, index(b)?])));
        topology.add_bonds_by_distance(&x);
        Ok((topology, x))
    }

    /// Whether the atoms agree with those of another topology, in the same order, judging by elements and names.
    pub fn has_atoms_of(&self, other: &Topology) -> bool {
        self.elements == other.elements && self.names == other.names
    }

    /// Replaces the bonds; input may be unordered and contain duplicates.
    pub fn set_bonds(&mut self, bonds: impl IntoIterator<Item = [usize; 2]>) {
        self.bonds = bonds.into_iter().map(|[i, j]| [i.min(j), i.max(j)]).collect();
        self.bonds.sort_unstable();
        self.bonds.dedup();
    }

    /// Adds bonds by distance, since PDB files have CONECT records for hetero-residues only: pairs closer than 1.25
    /// times the sum of covalent radii are bonded, unless both atoms have such records, as across a
    /// bicyclo[1.1.1]pentane.
    fn add_bonds_by_distance(&mut self, x: &[f64]) {
        use super::vector::distance;
        const REACH: f64 = 1.25;
        let mut bonds = self.bonds.clone();
        let mut is_told = vec![false; self.n_atoms()];
        bonds.iter().flatten().for_each(|&atom| is_told[atom] = true);
        let radii: Vec<Option<f64>> = self.elements.iter().map(|element| radius(element)).collect();
        // bonds reach no farther than adjacent cells
        let side = 2.0 * REACH * radii.iter().flatten().fold(1e-3, |widest: f64, &r| widest.max(r));
        let mut cells: HashMap<[i64; 3], Vec<(usize, f64)>> = HashMap::new();
        for (j, b) in radii.iter().enumerate().filter_map(|(j, radius)| Some((j, (*radius)?))) {
            let cell = [0, 1, 2].map(|k| (x[3 * j + k] / side).floor() as i64);
            for turn in 0..27_i64 {
                let beside = [0, 1, 2].map(|k| cell[k].saturating_add(turn / [1, 3, 9][k] % 3 - 1));
                for &(i, a) in cells.get(&beside).into_iter().flatten() {
                    let both_hydrogen = self.elements[i] == "H" && self.elements[j] == "H";
                    let both_told = is_told[i] && is_told[j];
                    if !both_hydrogen && !both_told && distance(x, i, j) < REACH * (a + b) {
                        bonds.push([i, j]);
                    }
                }
            }
            cells.entry(cell).or_default().push((j, b));
        }
        self.set_bonds(bonds);
    }
}

/// Splits a residue label such as `ALA2`, `ALA-1` or `1PE7` into name and number, which is at its end.
pub fn residue_parts(label: &str) -> (&str, &str) {
    label.split_at(residue_name(label).len())
}

/// [`residue_parts`] of an ASCII label, cut to fields of `columns` characters: the start of the name, the last digits
/// of the number.
pub fn residue_columns(label: &str, columns: usize) -> (&str, &str) {
    let (name, number) = residue_parts(label);
    (&name[..name.len().min(columns)], &number[number.len().saturating_sub(columns)..])
}

/// Name in a residue label such as `ALA2` or `ALA-1`: all but the number at its end.
pub(super) fn residue_name(label: &str) -> &str {
    let name = label.trim_end_matches(|c: char| c.is_ascii_digit());
    match name.len() < label.len() {
        true => name.strip_suffix('-').unwrap_or(name),
        false => name,
    }
}

/// Index ranges of consecutive equal labels.
pub(super) fn residue_runs(labels: &[&str]) -> Vec<std::ops::Range<usize>> {
    let starts: Vec<usize> = (0..labels.len()).filter(|&i| i == 0 || labels[i] != labels[i - 1]).collect();
    let ends = starts.iter().skip(1).copied().chain([labels.len()]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// Element column if there is one, else the first letter of the atom name.
fn pdb_element(column: &str, name: &str) -> String {
    if !column.is_empty() {
        return column.to_string();
    }
    name.chars().find(|c| c.is_alphabetic()).map_or("C".into(), |c| c.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two residues between caps, with atoms listed side chain first, so that their order does not help.
    #[test]
    fn torsions_of_the_backbone_are_found_by_bonds() {
        let names = ["CH3", "C", "CB", "CA", "N", "C", "CB", "C", "CA", "N", "N", "CH3"];
        let mut topology = Topology { names: names.map(String::from).to_vec(), ..Topology::default() };
        topology.residues = vec!["X1".into(); 12];
        topology.set_bonds([[0, 1], [1, 4], [4, 3], [3, 2], [3, 5], [5, 9], [9, 8], [8, 6], [8, 7], [7, 10], [10, 11]]);
        let backbone = topology.backbone();
        assert_eq!(backbone.phi, [[1, 4, 3, 5], [5, 9, 8, 7]]);
        assert_eq!(backbone.psi, [[4, 3, 5, 9], [9, 8, 7, 10]]);
        assert_eq!(backbone.omega, [[3, 5, 9, 8]]);
        assert_eq!(backbone.phi_psi(), [[[1, 4, 3, 5], [4, 3, 5, 9]], [[5, 9, 8, 7], [9, 8, 7, 10]]]);
        assert_eq!(topology.phi_psi(), Some([[1, 4, 3, 5], [4, 3, 5, 9]]));
    }

    /// CONECT records follow all models.
    #[test]
    fn bonds_of_chains_turn_and_those_of_rings_do_not() {
        let molecule = |elements: &str, bonds: &[[usize; 2]]| Topology {
            names: elements.chars().map(String::from).collect(),
            residues: vec!["LIG1".into(); elements.len()],
            elements: elements.chars().map(String::from).collect(),
            bonds: bonds.to_vec(),
        };
        // three atoms in a ring, with a chain of three
        let bonds = [[0, 1], [1, 2], [2, 0], [2, 3], [3, 4], [4, 5]];
        assert_eq!(molecule("CCCCCC", &bonds).rotatable(), [[0, 2, 3, 4], [2, 3, 4, 5]]);
        let (ala2, _) = Topology::from_pdb(Path::new("models/ala2/topology.pdb")).unwrap();
        let turns = |a: [&str; 2], b: [&str; 2]| {
            let [j, k] = [a, b].map(|[residue, name]| ala2.find(residue, name).unwrap());
            ala2.rotatable().iter().any(|t| [t[1], t[2]] == [j, k] || [t[1], t[2]] == [k, j])
        };
        assert!(turns(["ACE1", "C"], ["ALA2", "N"]) && turns(["ALA2", "CA"], ["ALA2", "CB"]));
        assert_eq!(ala2.rotatable().len(), 7); // φ, ψ, two amide bonds and three methyl groups
    }

    #[test]
    fn the_first_model_of_a_pdb_file_has_the_bonds_of_all() {
        let atom = |serial: usize, name: &str, element: &str, x: f64| {
            format!(
                "HETATM{serial:5} {name:<4} LIG A   1    {x:8.3}   0.000   0.000  1.00  0.00          {element:>2}\n"
            )
        };
        let model = |number: usize, x: f64| {
            format!("MODEL {number:8}\n{}{}ENDMDL\n", atom(1, "C1", "C", 0.0), atom(2, "X2", "SN", x))
        };
        let path = std::env::temp_dir().join(format!("modejump-models-{}.pdb", std::process::id()));
        std::fs::write(&path, [model(1, 2.2), model(2, 2.4), "CONECT    1    2\nEND\n".into()].concat()).unwrap();
        let (topology, x) = Topology::from_pdb(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((topology.n_atoms(), &topology.bonds[..]), (2, &[[0, 1]][..]));
        assert!(x.len() == 6 && (x[3] - 0.22).abs() < 1e-12);
    }

    /// The bridgeheads of a bicyclo[1.1.1]pentane are as close as a long bond, but their records show none.
    #[test]
    fn records_of_both_atoms_say_whether_they_are_bonded() {
        let bonds_of = |records: &[[usize; 2]]| {
            let mut topology =
                Topology { elements: vec!["C".into(); 3], names: vec!["C".into(); 3], ..Topology::default() };
            topology.residues = vec!["LIG1".into(); 3];
            topology.set_bonds(records.iter().copied());
            topology.add_bonds_by_distance(&[0.0, 0.0, 0.0, 0.155, 0.0, 0.0, 0.0, 0.187, 0.0]);
            topology.bonds
        };
        assert_eq!(bonds_of(&[[0, 1], [1, 2]]), [[0, 1], [1, 2]]);
        assert_eq!(bonds_of(&[[0, 1]]), [[0, 1], [0, 2]]);
    }

    #[test]
    fn residues_may_have_negative_numbers() {
        for (label, name, number) in
            [("ALA2", "ALA", "2"), ("ALA-1", "ALA", "-1"), ("ALA", "ALA", ""), ("X-", "X-", ""), ("1PE12", "1PE", "12")]
        {
            assert_eq!((residue_name(label), residue_parts(label)), (name, (name, number)));
        }
    }

    fn methylamine() -> Topology {
        let own = |v: [&str; 7]| v.map(String::from).to_vec();
        Topology {
            names: own(["C", "H1", "H2", "H3", "N", "H4", "H5"]),
            elements: own(["C", "H", "H", "H", "N", "H", "H"]),
            residues: vec!["LIG1".into(); 7],
            bonds: vec![],
        }
    }

    #[test]
    fn bonds_tell_another_order_of_equal_elements() {
        let bonds = [[0, 1], [0, 2], [0, 3], [0, 4], [4, 5], [4, 6]];
        let topology = Topology { bonds: bonds.to_vec(), ..methylamine() };
        let (c, n, h) = (12.011, 14.007, 1.008);
        let masses = [c, h, h, h, n, h, h];
        let bonds: Vec<(usize, usize)> = topology.bonds.iter().map(|&[a, b]| (b, a)).collect();
        topology.require_system(&masses, &bonds).unwrap();
        // one bond more, one less, none, and an angle's end atoms
        topology.require_system(&masses, &[&bonds[..], &[(1, 6)]].concat()).unwrap();
        topology.require_system(&masses, &bonds[1..]).unwrap();
        topology.require_system(&masses, &[]).unwrap();
        topology.require_system(&masses, &[&bonds[1..], &[(1, 2)]].concat()).unwrap();
        let message = topology.require_system(&masses, &[(0, 7)]).unwrap_err().to_string();
        assert!(message.contains("bonds particles 0 and 7, counted from 0, of 7"), "{message}");
        // a hydrogen of carbon for one of nitrogen
        let other = |atom: usize| [0, 6, 2, 3, 4, 5, 1][atom];
        let swapped: Vec<(usize, usize)> = bonds.iter().map(|&(a, b)| (other(a), other(b))).collect();
        let message = topology.require_system(&masses, &swapped).unwrap_err().to_string();
        assert!(message.contains("bonds LIG1:C (atom 1) to") && message.contains("in the same order"), "{message}");
    }

    #[test]
    fn masses_tell_another_order_of_the_elements_but_no_repartitioning() {
        let topology = methylamine();
        let (c, n, h) = (12.011, 14.007, 1.008);
        topology.require_masses(&[c, h, h, h, n, h, h]).unwrap();
        topology.require_masses(&[c - 9.072, 4.032, 4.032, 4.032, n - 6.048, 4.032, 4.032]).unwrap();
        topology.require_masses(&[c, 2.014, 0.0, h, 0.0, h, h]).unwrap(); // deuterium, virtual sites
        for united in [13.019, 14.027, 15.035, 16.043] {
            topology.require_masses(&[united, h, h, h, n, h, h]).unwrap();
        }
        for (masses, atom) in [
            ([n, h, h, h, c, h, h], "LIG1:C (atom 1)"),
            ([h, c, h, h, n, h, h], "LIG1:C (atom 1)"),
            ([15.999, h, h, h, n, h, h], "LIG1:C (atom 1)"),
            ([c, h, h, n - 6.048, 4.032, 4.032, h], "LIG1:H3 (atom 4)"),
        ] {
            let message = topology.require_masses(&masses).unwrap_err().to_string();
            assert!(message.contains(atom), "{message}");
        }
        assert!(topology
            .require_masses(&[c, h])
            .unwrap_err()
            .to_string()
            .contains("2 particles, but the topology has 7 atoms"));
        // without an element column, chlorine is taken for carbon by its first letter
        let mut chloride = methylamine();
        chloride.names[0] = "CL1".into();
        chloride.require_masses(&[35.45, h, h, h, n, h, h]).unwrap();
        chloride.names[0] = "C1".into();
        assert!(chloride.require_masses(&[35.45, h, h, h, n, h, h]).is_err());
    }
}
