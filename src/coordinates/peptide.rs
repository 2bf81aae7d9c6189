//! Peptides as transferable models see them: type numbers for atoms and residues, and atom orders
//! (transferable-samplers: Tan et al. 2025, "Amortized Sampling with Transferable Normalizing Flows").
//!
//! A table of the twenty amino acids defines everything: which atoms a residue has, and in which order. What it does
//! not list cannot be expressed: caps, disulphide bridges, other protonation states.

use super::naming::match_names;
use super::topology::{residue_name, residue_runs, Topology};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Names of the atom types, numbered from 1; 0 was the padding of the reference.
const ATOM_TYPES: [&str; 54] = [
    "C", "CA", "CB", "CD", "CD1", "CD2", "CE", "CE1", "CE2", "CE3", "CG", "CG1", "CG2", "CH2", "CZ", "CZ2", "CZ3", "H",
    "HA", "HB", "HD", "HD1", "HD2", "HE", "HE1", "HE2", "HE3", "HG", "HG1", "HG2", "HH", "HH1", "HH2", "HZ", "HZ2",
    "HZ3", "N", "ND1", "ND2", "NE", "NE1", "NE2", "NH1", "NH2", "NZ", "O", "OD", "OE", "OG", "OG1", "OH", "OXT", "SD",
    "SG",
];

/// An amino acid with its side chain in two orders, `variant` empty if equal to `standard`.
struct AminoAcid {
    name: &'static str,
    standard: &'static str,
    variant: &'static str,
}

const fn amino_acid(name: &'static str, standard: &'static str, variant: &'static str) -> AminoAcid {
    AminoAcid { name, standard, variant }
}

/// Amino acids by residue type, numbered from 1.
const AMINO_ACIDS: [AminoAcid; 20] = [
    amino_acid("ALA", "CB HB1 HB2 HB3", ""),
    amino_acid("ARG", "CB HB2 HB3 CG HG2 HG3 CD HD2 HD3 NE HE CZ NH1 HH11 HH12 NH2 HH21 HH22", ""),
    amino_acid("ASN", "CB HB2 HB3 CG OD1 ND2 HD21 HD22", ""),
    amino_acid("ASP", "CB HB2 HB3 CG OD1 OD2", ""),
    amino_acid("CYS", "CB HB2 HB3 SG HG", ""),
    amino_acid("GLN", "CB HB2 HB3 CG HG2 HG3 CD OE1 NE2 HE21 HE22", ""),
    amino_acid("GLU", "CB HB2 HB3 CG HG2 HG3 CD OE1 OE2", ""),
    amino_acid("GLY", "", ""),
    amino_acid("HIS", "CB HB2 HB3 CG ND1 CE1 HE1 NE2 HE2 CD2 HD2", "CB HB2 HB3 CG CD2 HD2 NE2 HE2 CE1 HE1 ND1"),
    amino_acid(
        "ILE",
        "CB HB CG2 HG21 HG22 HG23 CG1 HG12 HG13 CD1 HD11 HD12 HD13",
        "CB HB CG1 HG12 HG13 CD1 HD11 HD12 HD13 CG2 HG21 HG22 HG23",
    ),
    amino_acid(
        "LEU",
        "CB HB2 HB3 CG HG CD1 HD11 HD12 HD13 CD2 HD21 HD22 HD23",
        "CB HB2 HB3 CG HG CD2 HD21 HD22 HD23 CD1 HD11 HD12 HD13",
    ),
    amino_acid("LYS", "CB HB2 HB3 CG HG2 HG3 CD HD2 HD3 CE HE2 HE3 NZ HZ1 HZ2 HZ3", ""),
    amino_acid("MET", "CB HB2 HB3 CG HG2 HG3 SD CE HE1 HE2 HE3", ""),
    amino_acid(
        "PHE",
        "CB HB2 HB3 CG CD1 HD1 CE1 HE1 CZ HZ CE2 HE2 CD2 HD2",
        "CB HB2 HB3 CG CD2 HD2 CE2 HE2 CZ HZ CE1 HE1 CD1 HD1",
    ),
    amino_acid("PRO", "CB HB2 HB3 CG HG2 HG3 CD HD2 HD3", "CD HD2 HD3 CG HG2 HG3 CB HB2 HB3"),
    amino_acid("SER", "CB HB2 HB3 OG HG", ""),
    amino_acid("THR", "CB HB OG1 HG1 CG2 HG21 HG22 HG23", "CB HB CG2 HG21 HG22 HG23 OG1 HG1"),
    amino_acid(
        "TRP",
        "CB HB2 HB3 CG CD1 HD1 NE1 HE1 CE2 CZ2 HZ2 CH2 HH2 CZ3 HZ3 CE3 HE3 CD2",
        "CB HB2 HB3 CG CD2 CE3 HE3 CZ3 HZ3 CH2 HH2 CZ2 HZ2 CE2 NE1 HE1 CD1 HD1",
    ),
    amino_acid(
        "TYR",
        "CB HB2 HB3 CG CD1 HD1 CE1 HE1 CZ OH HH CE2 HE2 CD2 HD2",
        "CB HB2 HB3 CG CD2 HD2 CE2 HE2 CZ OH HH CE1 HE1 CD1 HD1",
    ),
    amino_acid("VAL", "CB HB CG1 HG11 HG12 HG13 CG2 HG21 HG22 HG23", "CB HB CG2 HG21 HG22 HG23 CG1 HG11 HG12 HG13"),
];

/// Backbone atoms before and after the side chain, in N-to-C order and in C-to-N order.
const FORWARD: [&[&str]; 2] = [&["N", "H", "H2", "H3", "CA", "HA", "HA2", "HA3"], &["C", "O", "OXT"]];
const BACKWARD: [&[&str]; 2] = [&["OXT", "C", "O", "CA", "HA", "HA2", "HA3"], &["N", "H", "H2", "H3"]];
/// Atoms of the terminal residues only: of the first, and of the last.
const ENDS: [&[&str]; 2] = [&["H2", "H3"], &["OXT"]];
/// Atoms that every residue must have; those of glycine only; those of all others.
const NEEDED: [&[&str]; 3] = [&["N", "CA", "C", "O"], &["HA2", "HA3"], &["HA"]];

/// Network input for a peptide, apart from its coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoding {
    /// Type of each atom, 1 to 54.
    pub atom_types: Vec<u32>,
    /// Type of each atom's residue, 1 to 20, in the order of their three-letter names.
    pub residue_types: Vec<u32>,
    /// Position of each atom's residue in the chain, counted from 1.
    pub residue_positions: Vec<u32>,
    pub n_residues: u32,
}

/// A linear peptide of the twenty amino acids, with a charged or neutral N terminus.
#[derive(Clone, Debug)]
pub struct Peptide {
    pub encoding: Encoding,
    residues: Vec<Residue>,
}

/// Amino-acid type, and atom names with their indices in the topology.
#[derive(Clone, Debug)]
struct Residue {
    kind: usize,
    atoms: Vec<(String, u32)>,
}

impl Residue {
    fn find(&self, name: &str) -> Option<u32> {
        self.atoms.iter().find(|(own, _)| own == name).map(|(_, place)| *place)
    }

    fn side(&self, variant: bool) -> impl Iterator<Item = &'static str> {
        let AminoAcid { standard, variant: other, .. } = AMINO_ACIDS[self.kind];
        (if variant && !other.is_empty() { other } else { standard }).split_whitespace()
    }
}

impl Peptide {
    /// Peptide of a topology. Atoms are recognised by the names of PDB files or of other conventions (`HB1` and `HB2`
    /// for `HB2` and `HB3`); a new residue starts where the label changes. HIE is accepted for HIS with its hydrogen at
    /// NE2.
    ///
    /// Errors name the residue or atom that cannot be expressed, occurs twice, is missing, or is not bonded to the
    /// next; bonds are checked only if the topology has any.
    pub fn of(topology: &Topology) -> Result<Peptide> {
        let labels: Vec<&str> = topology.residues.iter().map(String::as_str).collect();
        let mut encoding =
            Encoding { atom_types: vec![], residue_types: vec![], residue_positions: vec![], n_residues: 0 };
        let mut residues: Vec<Residue> = Vec::new();
        let runs = residue_runs(&labels);
        let kinds = runs.iter().map(|run| amino_acid_of(labels[run.start])).collect::<Result<Vec<_>>>()?;
        let last = runs.len().saturating_sub(1);
        let topology = &with_names_of_the_table(topology, &runs, &kinds);
        for (k, (run, kind)) in runs.into_iter().zip(kinds).enumerate() {
            let atoms = run.clone().map(|i| (topology.names[i].clone(), i as u32)).collect();
            let residue = Residue { kind, atoms };
            check(topology, run.clone(), &residue)?;
            check_ends(&topology.residues[run.start], &residue, [k == 0, k == last])?;
            if let Some(before) = residues.last() {
                check_bond(topology, before, &residue)?;
            }
            encoding.n_residues += 1;
            for i in run {
                let number = atom_type(AMINO_ACIDS[kind].name, &topology.names[i]);
                let number =
                    number.ok_or_else(|| Error::invalid(format!("{} has no known atom type", topology.label(i))))?;
                encoding.atom_types.push(number);
                encoding.residue_types.push(kind as u32 + 1);
                encoding.residue_positions.push(encoding.n_residues);
            }
            residues.push(residue);
        }
        Ok(Peptide { encoding, residues })
    }

    /// Atoms in this order: the i-th is the topology's atom `order[i]`.
    pub fn order(&self, order: AtomOrder) -> Vec<u32> {
        let [before, after] = if order.from_c { BACKWARD } else { FORWARD };
        let mut residues: Vec<&Residue> = self.residues.iter().collect();
        if order.from_c {
            residues.reverse();
        }
        let is_heavy = |name: &&str| !name.starts_with('H');
        let backbone = || before.iter().chain(after).copied();
        let mut atoms: Vec<u32> = Vec::new();
        if order.backbone_first {
            let heavy = residues.iter().flat_map(|r| backbone().filter(is_heavy).filter_map(|name| r.find(name)));
            atoms.extend(heavy);
        }
        for residue in residues {
            let left = |name: &&str| !(order.backbone_first && is_heavy(name));
            let [before, after] = [before, after].map(|part| part.iter().copied().filter(left));
            let names = before.chain(residue.side(order.variant)).chain(after);
            atoms.extend(names.filter_map(|name| residue.find(name)));
        }
        if order.flip {
            atoms.reverse();
        }
        atoms
    }
}

/// Index of a residue's amino acid in the table.
fn amino_acid_of(label: &str) -> Result<usize> {
    let name = match residue_name(label) {
        "HIE" => "HIS",
        name => name,
    };
    AMINO_ACIDS.iter().position(|a| a.name == name).ok_or_else(|| {
        let known: Vec<&str> = AMINO_ACIDS.iter().map(|a| a.name).collect();
        Error::invalid(format!(
            "residue {label} is not supported: transferable models support {} (HIS protonated at NE2, also named HIE), but no caps, \
             bridges or other protonation states",
            known.join(", ")
        ))
    })
}

/// Renames the atoms of complete residues to the table's names.
fn with_names_of_the_table(topology: &Topology, runs: &[Range<usize>], kinds: &[usize]) -> Topology {
    let mut named = topology.clone();
    for (k, (run, &kind)) in runs.iter().zip(kinds).enumerate() {
        let given = &topology.names[run.clone()];
        let names = names_of_residue(kind, given, [k == 0, k + 1 == runs.len()]);
        let Ok(places) = match_names(&names, given) else { continue };
        for (name, place) in names.iter().zip(places) {
            // the table calls the first hydrogen of the N terminus H
            named.names[run.start + place] = if *name == "H1" { "H" } else { name }.into();
        }
    }
    named
}

/// Names of all atoms of a residue; in the first residue, with as many hydrogens on N as the number of atoms allows.
fn names_of_residue(kind: usize, given: &[String], [is_first, is_last]: [bool; 2]) -> Vec<&'static str> {
    let AminoAcid { name, standard, .. } = AMINO_ACIDS[kind];
    let is_proline = name == "PRO";
    let mut names = [NEEDED[0], NEEDED[if name == "GLY" { 1 } else { 2 }]].concat();
    names.extend(standard.split_whitespace());
    names.extend(if is_last { ENDS[1] } else { &[] });
    let first = if given.iter().any(|name| name == "H1") { "H1" } else { "H" };
    let on_n: &[&str] = match (is_first, is_proline) {
        (true, true) => ENDS[0],
        (true, false) => &[first, "H2", "H3"],
        (false, true) => &[],
        (false, false) => &["H"],
    };
    names.extend(on_n.iter().take(given.len().saturating_sub(names.len())));
    names
}

/// Checks that every atom is known for its residue and occurs once, and that no atom of the side chain is missing.
fn check(topology: &Topology, run: Range<usize>, residue: &Residue) -> Result<()> {
    let (label, name) = (&topology.residues[run.start], AMINO_ACIDS[residue.kind].name);
    let known: Vec<&str> = FORWARD.iter().flat_map(|part| part.iter().copied()).chain(residue.side(false)).collect();
    for i in run.clone() {
        let own = &topology.names[i];
        if !known.contains(&own.as_str()) {
            let message =
                format!("{} is not a known atom of {name}; known atoms: {}", topology.label(i), known.join(", "));
            return Err(Error::invalid(message));
        }
        if (run.start..i).any(|k| topology.names[k] == *own) {
            return Err(Error::invalid(format!("residue {label} has more than one atom {own}")));
        }
    }
    let alpha = NEEDED[if name == "GLY" { 1 } else { 2 }];
    let mut needed = NEEDED[0].iter().chain(alpha).copied().chain(residue.side(false));
    match needed.find(|name| residue.find(name).is_none()) {
        Some(missing) => Err(Error::invalid(format!(
            "residue {label} lacks {missing}: transferable models require all atoms of {name}"
        ))),
        None => Ok(()),
    }
}

/// Checks that the ends are charged, or the N terminus is NH2, and that residues between them are amides. Otherwise a
/// ring, or separate chains, would pass for one linear peptide with the same encoding.
fn check_ends(label: &str, residue: &Residue, [is_first, is_last]: [bool; 2]) -> Result<()> {
    let has = |name: &&&str| residue.find(name).is_some();
    let is_proline = AMINO_ACIDS[residue.kind].name == "PRO";
    let amide: &[&str] = if is_proline { &[] } else { &["H"] };
    let needed = [amide, if is_first { &["H2"] } else { &[] }, if is_last { ENDS[1] } else { &[] }].concat();
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        let message = format!(
            "residue {label} lacks {missing}: transferable models require linear peptides with H, H2 and optionally H3 on N of the first residue \
             (H2 for PRO), OXT in the last, and H on every other N (except that of PRO)"
        );
        return Err(Error::invalid(message));
    }
    let inner: &[&str] = if is_proline { &["H"] } else { &[] };
    let refused =
        [if is_first { &[] } else { ENDS[0] }, if is_first { &[] } else { inner }, if is_last { &[] } else { ENDS[1] }];
    match refused.concat().iter().find(has) {
        Some(name) => {
            let place = if *name == "OXT" { "last" } else { "first" };
            let message = format!(
                "residue {label} has {name}, which only the {place} residue of a peptide has: transferable models support a single chain"
            );
            Err(Error::invalid(message))
        }
        None => Ok(()),
    }
}

/// Checks that C of a residue is bonded to N of the next.
fn check_bond(topology: &Topology, before: &Residue, after: &Residue) -> Result<()> {
    let (Some(c), Some(n)) = (before.find("C"), after.find("N")) else { return Ok(()) };
    let bond = [c.min(n) as usize, c.max(n) as usize];
    match topology.bonds.is_empty() || topology.bonds.contains(&bond) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "no bond between {} and {}: transferable models support a single chain with its residues in order",
            topology.label(c as usize),
            topology.label(n as usize)
        ))),
    }
}

/// Type number of an atom. Hydrogens on one heavy atom share a type, and so do the oxygens of a carboxylate.
fn atom_type(residue: &str, name: &str) -> Option<u32> {
    let is_ring = ["HIS", "PHE", "TRP", "TYR"].contains(&residue)
        && ["HE", "HD", "HZ", "HH"].iter().any(|start| name.starts_with(start));
    let numbered = name.starts_with('H') && name.ends_with(['1', '2', '3']) && !is_ring;
    let is_acid = name.starts_with("OE") || name.starts_with("OD");
    let name = if numbered || is_acid { &name[..name.len() - 1] } else { name };
    ATOM_TYPES.iter().position(|&known| known == name).map(|k| k as u32 + 1)
}

/// An order of a peptide's atoms, written as in transferable-samplers: `n2c_backbone-first_variant_flip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AtomOrder {
    /// Residues from the C terminus to the N terminus (`c2n`), instead of `n2c`.
    pub from_c: bool,
    /// Heavy atoms of the whole backbone first (`backbone-first`), instead of `residue-by-residue`.
    pub backbone_first: bool,
    /// Rings in the opposite direction and branches exchanged (`variant`, instead of `standard`).
    pub variant: bool,
    /// The whole list reversed (`_flip`).
    pub flip: bool,
}

impl AtomOrder {
    /// All sixteen orders.
    pub fn all() -> impl Iterator<Item = AtomOrder> {
        (0..16).map(|k| AtomOrder {
            from_c: k & 8 != 0,
            backbone_first: k & 4 != 0,
            variant: k & 2 != 0,
            flip: k & 1 != 0,
        })
    }
}

impl std::fmt::Display for AtomOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |is: bool, words: [&'static str; 2]| words[usize::from(is)];
        write!(
            f,
            "{}_{}_{}{}",
            word(self.from_c, ["n2c", "c2n"]),
            word(self.backbone_first, ["residue-by-residue", "backbone-first"]),
            word(self.variant, ["standard", "variant"]),
            word(self.flip, ["", "_flip"])
        )
    }
}

impl From<AtomOrder> for String {
    fn from(order: AtomOrder) -> String {
        order.to_string()
    }
}

impl std::str::FromStr for AtomOrder {
    type Err = Error;

    fn from_str(text: &str) -> Result<AtomOrder> {
        AtomOrder::all().find(|order| order.to_string() == text).ok_or_else(|| {
            Error::invalid(format!(
                "unknown atom order `{text}`: expected n2c or c2n, backbone-first or residue-by-residue, standard or variant, and \
                 optionally _flip, as in {}",
                AtomOrder { from_c: false, backbone_first: true, variant: false, flip: true }
            ))
        })
    }
}

impl TryFrom<String> for AtomOrder {
    type Error = Error;

    fn try_from(text: String) -> Result<AtomOrder> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(residues: &[(&str, &str)]) -> Topology {
        let mut topology = Topology::default();
        for (k, (residue, names)) in residues.iter().enumerate() {
            for name in names.split_whitespace() {
                topology.names.push(name.into());
                topology.residues.push(format!("{residue}{}", k + 1));
                topology.elements.push(name[..1].into());
            }
        }
        topology
    }

    /// Encodings and all sixteen orders of peptides, from the reference implementation.
    #[test]
    fn encodings_and_orders_are_those_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sbg/prose_tiny/topologies.json");
        let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let numbers = |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
        for (name, expected) in golden.as_object().unwrap() {
            let atoms: Vec<(String, String)> = serde_json::from_value(expected["atoms"].clone()).unwrap();
            let positions = numbers(&expected["encodings"]["aa_pos"]);
            let mut topology = Topology::default();
            for ((residue, atom), position) in atoms.iter().zip(&positions) {
                topology.names.push(atom.clone());
                topology.elements.push(atom[..1].into());
                topology.residues.push(format!("{residue}{position}"));
            }
            let peptide = Peptide::of(&topology).unwrap();
            let encoding = &peptide.encoding;
            assert_eq!(encoding.atom_types, numbers(&expected["encodings"]["atom_type"]), "{name}");
            assert_eq!(encoding.residue_types, numbers(&expected["encodings"]["aa_type"]), "{name}");
            assert_eq!(encoding.residue_positions, positions, "{name}");
            assert_eq!([encoding.n_residues].to_vec(), numbers(&expected["encodings"]["seq_len"]), "{name}");
            let orders = expected["permutations"].as_object().unwrap();
            assert_eq!(orders.len(), 16);
            for (key, order) in orders {
                assert_eq!(peptide.order(key.parse().unwrap()), numbers(order), "{name} {key}");
            }
        }
    }

    /// Every amino acid between two glycines: each order has every atom once, and every atom a type.
    #[test]
    fn every_amino_acid_can_be_expressed() {
        let mut seen = std::collections::BTreeSet::new();
        for acid in &AMINO_ACIDS {
            let alpha = if acid.name == "GLY" { "HA2 HA3" } else { "HA" };
            let amide = if acid.name == "PRO" { "" } else { "H" };
            let middle = format!("{} N {amide} CA {alpha} C O", acid.standard);
            let ends = ["N H H2 H3 CA HA2 HA3 C O", "N H CA HA2 HA3 C O OXT"];
            let topology = topology(&[("GLY", ends[0]), (acid.name, &middle), ("GLY", ends[1])]);
            let peptide = Peptide::of(&topology).unwrap();
            seen.extend(peptide.encoding.atom_types.iter().copied());
            for order in AtomOrder::all() {
                let mut atoms = peptide.order(order);
                atoms.sort_unstable();
                assert!(atoms.iter().copied().eq(0..topology.n_atoms() as u32), "{} {order}", acid.name);
                assert_eq!(order.to_string().parse::<AtomOrder>().unwrap(), order);
            }
            let sorted = |names: &'static str| {
                let mut names: Vec<&str> = names.split_whitespace().collect();
                names.sort_unstable();
                names
            };
            assert!(acid.variant.is_empty() || sorted(acid.standard) == sorted(acid.variant), "{}", acid.name);
        }
        assert!(seen.into_iter().eq(1..=54), "every type occurs");
    }

    /// Names of GROMACS with Amber and CHARMM force fields give the same peptide.
    #[test]
    fn names_of_other_conventions_are_known() {
        let of = |residues: &[(&str, &str)]| {
            let peptide = Peptide::of(&topology(residues)).unwrap();
            let orders: Vec<Vec<u32>> = AtomOrder::all().map(|order| peptide.order(order)).collect();
            (peptide.encoding, orders)
        };
        let pdb = of(&[
            ("GLY", "N H H2 H3 CA HA2 HA3 C O"),
            ("ILE", "N H CA HA CB HB CG2 HG21 HG22 HG23 CG1 HG12 HG13 CD1 HD11 HD12 HD13 C O"),
            ("SER", "N H CA HA CB HB2 HB3 OG HG C O OXT"),
        ]);
        let amber = [
            ("GLY", "N H1 H2 H3 CA HA1 HA2 C O"),
            ("ILE", "N H CA HA CB HB CG2 HG21 HG22 HG23 CG1 HG11 HG12 CD HD1 HD2 HD3 C O"),
            ("SER", "N H CA HA CB HB1 HB2 OG HG C OC1 OC2"),
        ];
        assert_eq!(of(&amber), pdb);
        let charmm = [
            amber[0],
            ("ILE", "N HN CA HA CB HB CG2 HG21 HG22 HG23 CG1 HG11 HG12 CD HD1 HD2 HD3 C O"),
            ("SER", "N HN CA HA CB HB1 HB2 OG HG1 C OT1 OT2"),
        ];
        assert_eq!(of(&charmm), pdb);
        let ends = |first, last| of(&[("PRO", first), ("ALA", last)]);
        let sides = ["CD HD2 HD3 CG HG2 HG3 CB HB2 HB3 CA HA C O", "CD HD1 HD2 CG HG1 HG2 CB HB1 HB2 CA HA C O"];
        let last = "N H CA HA CB HB1 HB2 HB3 C O OXT";
        assert_eq!(ends(&format!("N H1 H2 {}", sides[1]), last), ends(&format!("N H2 H3 {}", sides[0]), last));
    }

    #[test]
    fn types_of_hydrogens_and_oxygens_are_shared() {
        for (residue, name, shared) in [
            ("ALA", "HB1", "HB"),
            ("GLY", "H3", "H"),
            ("ASN", "HD21", "HD2"),
            ("ASN", "OD1", "OD"),
            ("GLU", "OE2", "OE"),
            ("PHE", "HD1", "HD1"),
            ("TRP", "HH2", "HH2"),
            ("HIS", "HE2", "HE2"),
            ("HIS", "HB2", "HB"),
            ("LYS", "HZ3", "HZ"),
            ("TYR", "HH", "HH"),
            ("THR", "HG1", "HG"),
            ("THR", "OG1", "OG1"),
        ] {
            let expected = ATOM_TYPES.iter().position(|&t| t == shared).map(|k| k as u32 + 1);
            assert_eq!(atom_type(residue, name), expected, "{residue} {name}");
        }
    }

    #[test]
    fn what_cannot_be_expressed_is_named() {
        let alanine = "N H CA HA CB HB1 HB2 HB3 C O";
        for (residues, words) in [
            (vec![("ACE", "CH3 C O"), ("ALA", alanine)], "residue ACE1 is not supported"),
            (vec![("ALA", alanine), ("NME", "N H C")], "residue NME2"),
            (vec![("CYX", "N CA C O CB SG")], "CYX1"),
            (vec![("HID", "N CA C O")], "HID1"),
            (
                vec![("ALA", "N H1 CA HA CB HB1 HB2 HB3 C O")],
                "ALA1:H1 (atom 2) is not a known atom of ALA; known atoms:",
            ),
            (vec![("ALA", "N H CA HA CB HB1 HB2 C O")], "residue ALA1 lacks HB3"),
            (vec![("ALA", "N H CA HA CB HB1 HB2 HB3 C")], "residue ALA1 lacks O"),
            (vec![("GLY", "N H CA HA C O")], "residue GLY1 lacks HA2"),
            (vec![("ALA", "N H CA HA CB HB1 HB2 HB3 HB3 C O")], "more than one atom HB3"),
            (vec![("HIS", "N H CA HA CB HB2 HB3 CG ND1 HD1 CE1 HE1 NE2 CD2 HD2 C O")], "HIS1:HD1 (atom 10)"),
        ] {
            let message = Peptide::of(&topology(&residues)).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        let (first, inner, last) = ("N H H2 H3 CA HA CB HB1 HB2 HB3 C O", alanine, "N H CA HA CB HB1 HB2 HB3 C O OXT");
        let proline = "N CD HD2 HD3 CG HG2 HG3 CB HB2 HB3 CA HA C O";
        Peptide::of(&topology(&[("ALA", first), ("PRO", proline), ("ALA", inner), ("ALA", last)])).unwrap();
        for (chain, words) in [
            ([("ALA", inner), ("ALA", inner), ("ALA", inner)], "residue ALA1 lacks H2"),
            ([("ALA", first), ("ALA", inner), ("ALA", inner)], "residue ALA3 lacks OXT"),
            ([("ALA", first), ("ALA", "N CA HA CB HB1 HB2 HB3 C O"), ("ALA", last)], "residue ALA2 lacks H:"),
            ([("ALA", first), ("ALA", last), ("ALA", last)], "residue ALA2 has OXT, which only the last"),
            ([("ALA", first), ("ALA", first), ("ALA", last)], "residue ALA2 has H2, which only the first"),
            (
                [("ALA", first), ("PRO", &format!("{proline} H")), ("ALA", last)],
                "residue PRO2 has H, which only the first",
            ),
        ] {
            let message = Peptide::of(&topology(&chain)).unwrap_err().to_string();
            assert!(message.contains(words), "{words}: {message}");
        }
        // separate chains: bonds, but none between the residues
        let mut chains = topology(&[("ALA", first), ("ALA", last)]);
        let [c, n] = [chains.find("ALA1", "C").unwrap(), chains.find("ALA2", "N").unwrap()];
        chains.set_bonds([[0, 1], [c, n]]);
        Peptide::of(&chains).unwrap();
        chains.set_bonds([[0, 1]]);
        let message = Peptide::of(&chains).unwrap_err().to_string();
        assert!(message.contains("no bond between ALA1:C (atom 11) and ALA2:N (atom 13)"), "{message}");
        let message = "n2c_sideways".parse::<AtomOrder>().unwrap_err().to_string();
        assert!(
            message.contains("`n2c_sideways`") && message.contains("n2c_backbone-first_standard_flip"),
            "{message}"
        );
    }
}
