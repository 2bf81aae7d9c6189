//! Checks that run input files and a model go together: indices of the model's atoms, and a step at which a rerun has
//! forces.

use super::run_input::RunInput;
use crate::error::{Error, Result};
use crate::models::steering::dimension_without_auxiliary;
use crate::models::Model;
use std::path::Path;

/// A step at which a rerun writes forces. Errors: other atoms, no frames with forces.
pub(super) fn force_step(tpr: &Path, other: &RunInput, input: &RunInput) -> Result<i32> {
    if other.atoms != input.atoms {
        return Err(Error::file(tpr, "the atoms differ from those in the .tpr file of the dynamics"));
    }
    match other.force_frames {
        n @ 1..=0x7fff_ffff => Ok(n as i32),
        _ => Err(Error::Unsupported(format!(
            "{}: nstfout = 0, but velocities after a jump require forces. Set nstfout to the number of steps between \
             jumps, or to any large number, and run grompp again, or pass a second file made this way with --rerun-tpr",
            tpr.display()
        ))),
    }
}

/// Index in the system of each atom of the model, whose molecule begins at `first`. Errors: a model of anything but a
/// molecule, other atoms there (named), virtual sites, groups that separate its atoms.
pub(super) fn model_atoms(model: &dyn Model, input: &RunInput, first: usize) -> Result<Vec<usize>> {
    let dimension = dimension_without_auxiliary(model);
    if dimension == 0 || dimension % 3 != 0 {
        return Err(Error::invalid(format!(
            "the model has {dimension} coordinates, but the atoms of a molecule have three each: use a generator of the \
             configurations of one molecule"
        )));
    }
    let n = dimension / 3;
    let there = first.checked_add(n).and_then(|end| input.atoms.get(first..end)).ok_or_else(|| {
        Error::invalid(format!(
            "the model's {n} atoms, starting at atom {}, exceed the system's {} atoms",
            first + 1,
            input.atoms.len()
        ))
    })?;
    let residues: Vec<&str> = there.iter().map(|a| a.residue.as_str()).collect();
    let names: Vec<&str> = there.iter().map(|a| a.name.as_str()).collect();
    let order = model.card().match_atoms(&residues, &names).map_err(|e| {
        let [from, to] = [&there[0], &there[n - 1]].map(|atom| format!("{} {}", atom.residue, atom.name));
        let (a, b) = (first + 1, first + n);
        Error::invalid(format!(
            "atoms {a} to {b} ({from} to {to}) do not match the model: {e}; use --first-atom to set where its molecule \
             begins"
        ))
    })?;
    if let Some(site) = there.iter().find(|a| a.mass <= 0.0) {
        return Err(Error::Unsupported(format!(
            "{} {} has no mass: models of virtual sites are not supported",
            site.residue, site.name
        )));
    }
    let inside = |atom: &usize| (first..first + n).contains(atom);
    if let Some(site) = input.sites.iter().find(|site| site.iter().any(inside)) {
        let label =
            |atom: &usize| input.atoms.get(*atom).map(|a| format!("{} {}", a.residue, a.name)).unwrap_or_default();
        return Err(Error::Unsupported(format!(
            "the virtual site {} follows atoms of the model ({}), but jumps would not move it",
            label(&site[0]),
            site[1..].iter().filter(|atom| inside(atom)).map(label).collect::<Vec<_>>().join(", ")
        )));
    }
    let groups = input.momentum_groups.get(first..first + n).unwrap_or_default();
    if let Some(k) = groups.iter().position(|group| *group != groups[0]) {
        return Err(Error::Unsupported(format!(
            "comm-grps of the .tpr file splits the model's atoms between {} {} and {} {}: a jump changes the momentum \
             of each part, which GROMACS would remove; put them in one group",
            there[k - 1].residue,
            there[k - 1].name,
            there[k].residue,
            there[k].name
        )));
    }
    Ok(order.into_iter().map(|k| first + k).collect())
}
