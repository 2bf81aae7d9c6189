//! Matching of atoms between two lists of one molecule, whose programs may follow different conventions: PDB has HB2
//! and HB3 where GROMACS has HB1 and HB2, and CD1, OXT and H1 where it has CD, OC2 and HH31.

use super::topology::{residue_name, residue_runs};
use super::Topology;
use crate::error::{Error, Result};

/// Alternative names of residues in force fields, by protonation and bridges; the common one first.
const RESIDUES: &[&[&str]] = &[
    &["HIS", "HID", "HIE", "HIP", "HSD", "HSE", "HSP", "HISA", "HISB", "HISD", "HISE", "HISH"],
    &["CYS", "CYX", "CYM", "CYSH"],
    &["ASP", "ASH", "ASPH"],
    &["GLU", "GLH", "GLUH"],
    &["LYS", "LYN", "LYP", "LYSH"],
    &["NME", "NMA", "NAC"],
];

/// Names of the two oxygens of the C terminus.
const CARBOXYLATES: [[&str; 2]; 3] = [["OC1", "OC2"], ["OT1", "OT2"], ["O1", "O2"]];

impl Topology {
    /// Index of each atom in another program's list of the same molecule: `order[i]` is the index there of atom i here.
    /// Atoms are matched by name within their residues, including names of other conventions; residues by name in order
    /// of appearance, whatever their numbers, as `ALA2` or `ALA`.
    ///
    /// Errors: another number of atoms or residues, a residue of another name, an atom that is missing there or occurs
    /// twice; each is named.
    pub fn match_atoms(&self, residues: &[&str], names: &[&str]) -> Result<Vec<usize>> {
        if names.len() != self.n_atoms() || residues.len() != names.len() {
            return Err(Error::invalid(format!("found {} atoms, but the model has {}", names.len(), self.n_atoms())));
        }
        let own: Vec<&str> = self.residues.iter().map(String::as_str).collect();
        let (own, theirs) = (residue_runs(&own), residue_runs(residues));
        if own.len() != theirs.len() {
            return Err(Error::invalid(format!("found {} residues, but the model has {}", theirs.len(), own.len())));
        }
        let mut order = Vec::with_capacity(names.len());
        for (here, there) in own.into_iter().zip(theirs) {
            let (a, b) = (&self.residues[here.start], residues[there.start]);
            if common_name(a) != common_name(b) {
                return Err(Error::invalid(format!("found residue {b} where the model has {a}")));
            }
            if here.len() != there.len() {
                return Err(Error::invalid(format!(
                    "residue {b} has {} atoms, but {} in the model",
                    there.len(),
                    here.len()
                )));
            }
            let first = here.start;
            let places =
                match_names(&self.names[here], &names[there.clone()]).map_err(|unmatched| match unmatched {
                    Unmatched::Twice(name) => Error::invalid(format!("residue {b} has more than one atom {name}")),
                    Unmatched::Missing(i) => Error::invalid(format!(
                        "atom {} of the model is not in residue {b}, which has {}: use the atom names of the model",
                        self.label(first + i),
                        names[there.clone()].join(", ")
                    )),
                })?;
            order.extend(places.into_iter().map(|place| there.start + place));
        }
        Ok(order)
    }

    /// Checks that another list of as many atoms has them in this order, by name, including names of other conventions;
    /// `whose` describes the owner of this list.
    ///
    /// Errors: the first atom that differs.
    pub fn require_order(&self, other: &Topology, whose: &str) -> Result<()> {
        let labels: Vec<&str> = self.residues.iter().map(String::as_str).collect();
        for run in residue_runs(&labels) {
            let (own, theirs) = (&self.names[run.clone()], &other.names[run.clone()]);
            let is_in_order = |order: Vec<usize>| order.into_iter().enumerate().all(|(i, place)| i == place);
            if own == theirs || match_names(own, theirs).is_ok_and(is_in_order) {
                continue;
            }
            let i = run.start + own.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(0);
            let (here, own) = (other.label(i), self.label(i));
            return Err(Error::invalid(format!(
                "found {here} where the {whose} has {own}: the atoms must have the same order and names"
            )));
        }
        Ok(())
    }
}

/// The common name that represents all names of a residue.
fn common_name(label: &str) -> &str {
    let name = residue_name(label);
    RESIDUES.iter().find(|names| names.contains(&name)).map_or(name, |names| names[0])
}

/// Why two lists of names are not those of one residue.
pub(super) enum Unmatched {
    /// Index of an atom here that has no match there.
    Missing(usize),
    /// Name that occurs twice there.
    Twice(String),
}

/// Index in `theirs` of each atom name in `own`, two equally long lists of one residue.
pub(super) fn match_names(
    own: &[impl AsRef<str>],
    theirs: &[impl AsRef<str>],
) -> std::result::Result<Vec<usize>, Unmatched> {
    let (own, theirs) = (common_names(own), common_names(theirs));
    if let Some(k) = (0..theirs.len()).find(|&k| theirs[..k].contains(&theirs[k])) {
        return Err(Unmatched::Twice(theirs[k].clone()));
    }
    let mut places = vec![None; own.len()];
    let (mut here, mut there) = (series(&own), series(&theirs));
    let likenesses: [fn(&str) -> &str; 3] = [|name| name, stem, common_stem];
    for likeness in likenesses {
        let kind = |(name, atoms): &(String, Vec<usize>)| (likeness(name).to_string(), atoms.len());
        let only = |groups: &[(String, Vec<usize>)], wanted| {
            let mut like = (0..groups.len()).filter(|&k| kind(&groups[k]) == wanted);
            like.next().filter(|_| like.next().is_none())
        };
        let single = (0..here.len()).filter(|&k| only(&here, kind(&here[k])).is_some());
        let pairs: Vec<[usize; 2]> = single.filter_map(|k| Some([k, only(&there, kind(&here[k]))?])).collect();
        for [a, b] in pairs {
            for (i, k) in std::mem::take(&mut here[a].1).into_iter().zip(std::mem::take(&mut there[b].1)) {
                places[i] = Some(k);
            }
        }
    }
    places.iter().enumerate().map(|(i, place)| place.ok_or(Unmatched::Missing(i))).collect()
}

/// Names with their numbers moved to the end (1HB becomes HB1), and the oxygens of the C terminus as in PDB.
fn common_names(names: &[impl AsRef<str>]) -> Vec<String> {
    let mut names: Vec<String> = names.iter().map(|name| turned(name.as_ref())).collect();
    let place = |wanted: &str| names.iter().position(|name| name == wanted);
    let pairs = CARBOXYLATES.iter().filter_map(|[a, b]| Some([place(a)?, place(b)?]));
    if let (Some([a, b]), None) = (pairs.into_iter().next(), place("O")) {
        (names[a], names[b]) = ("O".into(), "OXT".into());
    }
    names
}

fn turned(name: &str) -> String {
    let rest = name.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{rest}{}", &name[..name.len() - rest.len()])
}

fn stem(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '#')
}

/// Stem of a name, unified for the amide hydrogen, hydrogens at the N terminus, and the methyl group of a cap.
fn common_stem(name: &str) -> &str {
    match stem(name) {
        "HN" | "HT" | "HH" => "H",
        "CH" => "C",
        other => other,
    }
}

/// Groups of atoms: each heavy atom by its name; numbered hydrogens of one stem together, in the order of their numbers
/// (HB# for HB2 and HB3).
fn series(names: &[String]) -> Vec<(String, Vec<usize>)> {
    let mut found: Vec<(String, Vec<usize>)> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let is_numbered = name.starts_with('H') && stem(name).len() < name.len();
        let key = if is_numbered { format!("{}#", stem(name)) } else { name.clone() };
        match found.iter_mut().find(|(other, _)| *other == key) {
            Some((_, atoms)) => atoms.push(i),
            None => found.push((key, vec![i])),
        }
    }
    for (_, atoms) in &mut found {
        atoms.sort_by_key(|&i| (names[i].len(), &names[i]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `residue: names` of several residues.
    fn atoms(text: &str) -> (Vec<String>, Vec<String>) {
        let mut lists = (Vec::new(), Vec::new());
        for (residue, names) in text.lines().filter_map(|line| line.trim().split_once(": ")) {
            for name in names.split(' ') {
                lists.0.push(residue.to_string());
                lists.1.push(name.to_string());
            }
        }
        lists
    }

    fn topology(text: &str) -> Topology {
        let (residues, names) = atoms(text);
        Topology {
            elements: names.iter().map(|name| turned(name)[..1].to_string()).collect(),
            names,
            residues,
            bonds: vec![],
        }
    }

    fn matched(own: &str, theirs: &str) -> Result<Vec<usize>> {
        let (residues, names) = atoms(theirs);
        let [residues, names] = [&residues, &names].map(|list| list.iter().map(String::as_str).collect::<Vec<_>>());
        topology(own).match_atoms(&residues, &names)
    }

    const CAPPED: &str = "ACE1: CH3 HH31 C
        NME3: N H";

    #[test]
    fn atoms_are_matched_by_name_within_residues() {
        assert_eq!(matched(CAPPED, "ACE7: HH31 CH3 C\nNME8: N H").unwrap(), [1, 0, 2, 3, 4]);
        for (theirs, reason) in [
            (
                "ACE1: HH31 CH3 C\nNME3: N CA",
                "atom NME3:H (atom 5) of the model is not in residue NME3, which has N, CA",
            ),
            ("ACE1: HH31 CH3 C\nNME3: N N", "more than one atom N"),
            ("ACE1: HH31 CH3 C\nALA3: N H", "ALA3"),
            ("ACE1: HH31 CH3\nNME3: C N H", "2 atoms, but 3 in the model"),
            ("ACE1: HH31 CH3 C N H", "1 residues"),
            ("ACE7: HH31 CH3 C\nNME8: N", "found 4 atoms"),
        ] {
            let message = matched(CAPPED, theirs).unwrap_err().to_string();
            assert!(message.contains(reason), "{message}");
        }
    }

    /// PDB files, GROMACS with Amber's and CHARMM's force fields, old PDB files.
    #[test]
    fn conventions_differ_in_names() {
        let in_order = |own: &str, theirs: &str| {
            let n = atoms(own).0.len();
            assert_eq!(matched(own, theirs).unwrap(), (0..n).collect::<Vec<_>>(), "{theirs}");
            assert_eq!(matched(theirs, own).unwrap(), (0..n).collect::<Vec<_>>(), "{theirs}");
        };
        in_order("GLY1: N H CA HA2 HA3 C O", "GLY1: N HN CA HA1 HA2 C O");
        in_order("LEU2: CB HB2 HB3 CD1 HD11 HD12 HD13", "LEU2: CB HB1 HB2 CD1 HD11 HD12 HD13");
        in_order("LEU2: CB HB2 HB3 CD1 HD11 HD12 HD13", "LEU2: CB 1HB 2HB CD1 1HD1 2HD1 3HD1");
        in_order(
            "ILE2: CB HB CG2 HG21 HG22 HG23 CG1 HG12 HG13 CD1 HD11 HD12 HD13",
            "ILE2: CB HB CG2 HG21 HG22 HG23 CG1 HG11 HG12 CD HD1 HD2 HD3",
        );
        in_order("SER2: N H CA CB HB2 HB3 OG HG C O OXT", "SER4: N HN CA CB HB1 HB2 OG HG1 C OT1 OT2");
        in_order("ALA2: N H1 H2 H3 C O OXT", "ALA2: N H1 H2 H3 C OC1 OC2");
        in_order("ACE1: CH3 H1 H2 H3 C O\nHIS2: N H", "ACE1: CH3 HH31 HH32 HH33 C O\nHSD2: N HN");
        in_order("NME3: N H C H1 H2 H3", "NMA3: N H CH3 HH31 HH32 HH33");
        in_order("CYX2: N H", "CYS2: N H");
        assert_eq!(matched("GLY1: HA2 CA HA3", "GLY1: HA2 HA1 CA").unwrap(), [1, 2, 0]);
        // names without information, another tautomer
        for (own, theirs) in [("LIG1: C1 C2", "LIG1: C3 C4"), ("HID1: HD1 HE1 HD2", "HIE1: HE1 HE2 HD2")] {
            assert!(matched(own, theirs).is_err(), "{theirs}");
        }
    }

    fn methylamine() -> Topology {
        topology("LIG1: C H1 H2 H3 N H4 H5")
    }

    #[test]
    fn the_first_atom_in_another_order_is_named() {
        let (own, mut other) = (methylamine(), methylamine());
        other.residues = vec!["UNL7".into(); 7];
        own.require_order(&other, "model").unwrap();
        other.names.swap(2, 5);
        let message = own.require_order(&other, "model").unwrap_err().to_string();
        assert!(message.contains("found UNL7:H4 (atom 3) where the model has LIG1:H2 (atom 3)"), "{message}");
        // element symbols with numbers are also names
        let (hoh, ohh) = (topology("LIG1: H1 O2 H3"), topology("LIG1: O1 H2 H3"));
        assert!(hoh.require_order(&ohh, "model").unwrap_err().to_string().contains("O1"));
        // in the right order, in another convention
        topology("GLY1: CA HA2 HA3").require_order(&topology("GLY1: CA HA1 HA2"), "model").unwrap();
        assert!(topology("GLY1: CA HA2 HA3").require_order(&topology("GLY1: CA HA2 HA1"), "model").is_err());
    }
}
