//! The torsions used for figures, states and comparisons.

use clap::Args;
use modejump::coordinates::{Along, Topology};
use modejump::metrics;
use modejump::{Error, Result};

#[derive(Args)]
pub struct TorsionFlag {
    /// Torsion to use instead of the backbone φ and ψ: four atoms, counted from 0. If given twice, both are analysed
    /// together
    #[arg(long = "torsion", value_name = "I,J,K,L", value_parser = four_atoms)]
    given: Vec<[usize; 4]>,
}

impl TorsionFlag {
    /// The torsions that were given, else those of the backbone. Errors: atoms that the molecule does not have.
    pub fn of(&self, n_atoms: usize, topology: Option<&Topology>) -> Result<Torsions> {
        if !self.is_given() {
            return Ok(Torsions::of_backbone(n_atoms, topology));
        }
        for torsion in &self.given {
            let named = |e| Error::invalid(format!("--torsion {}: {e}", listed(torsion)));
            Along::Torsion(*torsion).check(3 * n_atoms).map_err(named)?;
        }
        let pairs = self.given.chunks_exact(2).map(|two| [two[0], two[1]]).collect();
        let shown: Vec<[usize; 4]> = self.given.iter().copied().take(2).collect();
        let axes = shown.iter().map(|torsion| format!("torsion {}", listed(torsion))).collect();
        Ok(Torsions { n_atoms, all: self.given.clone(), pairs, shown, axes })
    }

    pub fn pairs_in_words(&self) -> &'static str {
        if self.is_given() {
            "pairs"
        } else {
            "φ and ψ"
        }
    }

    pub fn is_given(&self) -> bool {
        !self.given.is_empty()
    }
}

/// Torsions, each of four atoms.
pub struct Torsions {
    pub n_atoms: usize,
    pub all: Vec<[usize; 4]>,
    /// Pairs that belong together, such as φ and ψ of a residue.
    pub pairs: Vec<[[usize; 4]; 2]>,
    /// The first pair, or the first torsion if there is none, for figures.
    pub shown: Vec<[usize; 4]>,
    /// Names of the torsions shown.
    pub axes: Vec<String>,
}

impl Torsions {
    fn of_backbone(n_atoms: usize, topology: Option<&Topology>) -> Torsions {
        let backbone = topology.map(Topology::backbone).unwrap_or_default();
        let pairs = backbone.phi_psi();
        // a capped residue without the second cap has φ only
        let alone = || backbone.phi.iter().copied().take(1).collect();
        let shown: Vec<[usize; 4]> = pairs.first().map_or_else(alone, |both| both.to_vec());
        let axes = ["φ", "ψ"].iter().zip(&shown).map(|(name, _)| name.to_string()).collect();
        Torsions { n_atoms, all: [backbone.phi, backbone.psi].concat(), pairs, shown, axes }
    }

    /// Values of the torsions shown, radian, one column each, for configurations `x[n][atoms][3]`.
    pub fn columns(&self, x: &[f64]) -> Vec<Vec<f64>> {
        self.shown.iter().map(|&torsion| metrics::torsions(x, self.n_atoms, &[torsion])).collect()
    }
}

fn listed(torsion: &[usize; 4]) -> String {
    torsion.map(|atom| atom.to_string()).join(",")
}

fn four_atoms(text: &str) -> std::result::Result<[usize; 4], String> {
    let atoms: Vec<usize> = text.split(',').map_while(|atom| atom.trim().parse().ok()).collect();
    match (<[usize; 4]>::try_from(atoms), text.split(',').count()) {
        (Ok(atoms), 4) => Ok(atoms),
        _ => Err("expected four atom indices, such as 4,6,8,11".into()),
    }
}
