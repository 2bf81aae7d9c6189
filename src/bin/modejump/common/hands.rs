//! Handedness and numbering of frames: of stereocentres, and of equal atoms at one centre (the hydrogens of CH₂), whose
//! numbers dynamics does not exchange.

use modejump::coordinates::chirality::{prochiral_centres, stereocentres, Stereocentre};
use modejump::coordinates::Topology;
use modejump::{Error, Result};
use std::path::Path;

/// Reports how many frames have a stereocentre of the opposite handedness to that of the PDB file, or equal atoms
/// numbered the other way round, if the model will tell these apart. Errors: most of them have such a stereocentre,
/// which a model with the handedness of that file would exclude, and another one would learn as if it were intended.
pub fn require_hands(path: &Path, topology: &Topology, x0: &[f64], frames: &[f64], told_apart: bool) -> Result<()> {
    let (n, path) = (frames.len() / x0.len(), path.display());
    let most_frequent = |centres: Vec<Stereocentre>| {
        let differs = |centre: &Stereocentre| frames.chunks_exact(x0.len()).filter(|x| !centre.holds(x)).count();
        let counted = centres.into_iter().map(|centre| (differs(&centre), centre));
        counted.max_by_key(|(count, _)| *count).filter(|(count, _)| *count > 0)
    };
    if let Some((most, centre)) = most_frequent(stereocentres(topology, x0)) {
        let label = topology.label(centre.centre);
        let what = format!("in {most} of {n} frames {label} has the opposite handedness to that in {path}");
        if 2 * most > n {
            let remedy = "use a topology with the handedness of the frames, or other frames";
            return Err(Error::invalid(format!("{what}: {remedy}")));
        }
        eprintln!("note: {what}");
    }
    let prochiral = if told_apart { prochiral_centres(topology, x0) } else { Vec::new() };
    if let Some((most, centre)) = most_frequent(prochiral) {
        let what = format!(
            "in {most} of {n} frames {} are numbered the other way round than in {path}",
            pair(topology, &centre)
        );
        match most == n {
            true => eprintln!("note: {what}: start simulations from one of the frames"),
            false => eprintln!(
                "note: {what}: to the model the two numberings are different states, so populations may be wrong; exchange these \
                 atoms in the frames that differ"
            ),
        }
    }
    Ok(())
}

/// Errors: a structure among `structures[n][dimension]` has a stereocentre of the opposite handedness to that in the
/// first one, or equal atoms numbered the other way round.
#[cfg(feature = "openmm")]
pub fn require_one_numbering(topology: &Topology, structures: &[f64]) -> Result<()> {
    let dimension = 3 * topology.n_atoms();
    let first = &structures[..dimension];
    let differs = |centre: &Stereocentre| structures.chunks_exact(dimension).position(|x| !centre.holds(x));
    for centre in stereocentres(topology, first) {
        if let Some(i) = differs(&centre) {
            return Err(Error::invalid(format!(
                "structure {}: {} has the opposite handedness to that in structure 1: use structures with the same handedness",
                i + 1,
                topology.label(centre.centre)
            )));
        }
    }
    for centre in prochiral_centres(topology, first) {
        if let Some(i) = differs(&centre) {
            return Err(Error::invalid(format!(
                "structure {}: {} are numbered the other way round than in structure 1: exchange them, since the generator \
                 would treat the two numberings as different states",
                i + 1,
                pair(topology, &centre)
            )));
        }
    }
    Ok(())
}

/// Labels of the two equal atoms at a prochiral centre.
fn pair(topology: &Topology, centre: &Stereocentre) -> String {
    let [a, b, _] = centre.neighbours.map(|atom| topology.label(atom));
    format!("{a} and {b}")
}
