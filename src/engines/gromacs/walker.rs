//! A run: cycles of dynamics and a jump.

use super::gmx::{energies, Gmx};
use super::matching::{force_step, model_atoms};
use super::rerun::{place, select, Candidate, RerunTarget};
use super::run_folder::{Progress, Report, RunFolder, Settings};
use super::run_input::RunInput;
use super::velocities::{half_impulse, ModelAtoms};
use crate::coordinates::constraints::Constraints;
use crate::coordinates::whole::WholeMolecule;
use crate::error::{Error, Result};
use crate::io::gromacs::cpt::Checkpoint;
use crate::io::gromacs::trr;
use crate::io::model_file::hash;
use crate::models::Model;
use crate::moves::{self, Method, Move, State};
use crate::units::thermal_energy;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Settings of a run, apart from its models.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run input of the dynamics.
    pub tpr: PathBuf,
    /// Run input of the reruns, if that of the dynamics writes no forces; it must give the same energies.
    pub rerun_tpr: Option<PathBuf>,
    /// Directory of the run's files; created if missing.
    pub folder: PathBuf,
    /// Index of the model's first atom in the system; the others follow it.
    pub first_atom: usize,
    /// Steps of dynamics between jumps.
    pub steps: u64,
    pub proposals: usize,
    /// Select among all proposals and the current state (i-SIR) instead of testing one after the other.
    pub isir: bool,
    /// Seed; None takes that of the run input, so that runs with independent dynamics also have independent jumps.
    pub seed: Option<u64>,
    /// Index of the walker, 24 bits.
    pub replica: u32,
}

/// A run that can be continued.
pub struct Walker {
    gmx: Gmx,
    options: Options,
    seed: u64,
    /// Absolute paths.
    tpr: PathBuf,
    rerun_tpr: PathBuf,
    input: RunInput,
    rerun_step: i32,
    atoms: Vec<usize>,
    model: ModelAtoms,
    jump: Box<dyn Move>,
    folder: RunFolder,
}

impl Walker {
    /// Begins a run, or continues the one in the directory.
    ///
    /// Errors: a `.tpr` file that does not go with jumps (the option and why), atoms that are not the model's (named),
    /// a constraint that the model does not keep (named), no forces in reruns, a directory in use, one with a run of
    /// other settings, with files that a new run would overwrite or that are no longer as the run left them.
    pub fn new(gmx: &Gmx, model: &Arc<dyn Model>, screen: Option<Arc<dyn Model>>, options: Options) -> Result<Walker> {
        if options.steps == 0 {
            return Err(Error::invalid("the number of steps between jumps must not be 0"));
        }
        let input = gmx.read(&options.tpr)?;
        input.check_interval(options.steps)?;
        let rerun_tpr = options.rerun_tpr.clone().unwrap_or_else(|| options.tpr.clone());
        let of_reruns = options.rerun_tpr.as_ref().map(|tpr| gmx.read(tpr)).transpose()?;
        let rerun_step = force_step(&rerun_tpr, of_reruns.as_ref().unwrap_or(&input), &input)?;
        if input.periodic {
            moves::check_box(model.as_ref())?;
        }
        let atoms = model_atoms(model.as_ref(), &input, options.first_atom)?;
        let masses: Vec<f64> = atoms.iter().map(|&i| input.atoms[i].mass).collect();
        let card = model.card();
        let label = |atom| card.label(atom);
        let constraints = Constraints::among(&input.constraints, &atoms, &masses, card.kept_bonds(), &label)?;
        let seed = options.seed.unwrap_or(input.seed);
        let generator_options = moves::Options {
            n_proposals: options.proposals,
            seed,
            stride: options.steps,
            partial: atoms.len() < input.atoms.len(),
            ..Default::default()
        };
        let settings = Settings {
            model: model.hash().to_string(),
            screen: screen.as_ref().map(|screen| screen.hash().to_string()),
            tpr: hash(&crate::io::read(&options.tpr)?),
            first_atom: options.first_atom,
            steps: options.steps,
            proposals: options.proposals,
            isir: options.isir,
            seed,
            replica: options.replica,
        };
        let method = match (screen, options.isir) {
            (Some(_), true) => {
                return Err(Error::invalid("a screen is supported only for independence proposals, not for i-SIR"))
            }
            (Some(screen), false) => Method::Screened(screen),
            (None, true) => Method::Isir { rotations: None },
            (None, false) => Method::Independence { rotations: None },
        };
        let mut jump = method.make(model, generator_options, constraints.clone())?;
        jump.set_temperature(input.temperature)?;
        let folder = RunFolder::open(&options.folder, settings, jump.statistics())?;
        *jump.statistics_mut() = folder.progress.statistics.clone();
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, e));
        Ok(Walker {
            gmx: gmx.clone(),
            tpr: absolute(&options.tpr)?,
            rerun_tpr: absolute(&rerun_tpr)?,
            options,
            seed,
            input,
            rerun_step,
            atoms,
            model: ModelAtoms { masses, constraints },
            jump,
            folder,
        })
    }

    pub fn progress(&self) -> &Progress {
        &self.folder.progress
    }

    /// The run input file of the dynamics.
    pub fn tpr(&self) -> &Path {
        &self.options.tpr
    }

    /// Hash of the run input file.
    pub fn tpr_hash(&self) -> &str {
        &self.folder.progress.settings.tpr
    }

    pub fn input(&self) -> &RunInput {
        &self.input
    }

    /// The model's molecule `[atoms][3]` (nm) after the last cycle, in the model's order and whole if its bonds are
    /// known; None before the first cycle.
    pub fn molecule(&self, model: &dyn Model) -> Result<Option<Vec<f64>>> {
        let Some(path) = self.folder.state() else { return Ok(None) };
        let state = self.checkpoint(&path)?;
        let mut x = select(&state.positions(), &self.atoms);
        let box_vectors = state.box_vectors(&self.input.box_vectors).filter(|_| self.input.periodic);
        if let (Some(box_vectors), Some(topology)) = (box_vectors, &model.card().topology) {
            WholeMolecule::new(self.atoms.len(), &topology.bonds)?.apply(&box_vectors, &mut x)?;
        }
        Ok(Some(x))
    }

    fn checkpoint(&self, path: &Path) -> Result<Checkpoint> {
        let bytes = crate::io::read(path)?;
        Checkpoint::new(bytes, self.input.atoms.len()).map_err(|e| Error::file(path, e))
    }

    /// Potential energies (kJ/mol) and temperatures (K) of the run's recorded frames after its first `cycles`.
    pub fn series_after(&self, cycles: u64) -> Result<(Vec<f64>, Vec<f64>)> {
        let series = energies(&self.folder.path.join("ener.edr"))?;
        let steps = i64::try_from(cycles.saturating_mul(self.options.steps)).unwrap_or(i64::MAX);
        let begin = self.input.first_step.saturating_add(steps);
        let is_early = |step: &&i64| cycles > 0 && **step <= begin;
        let early = series.steps.iter().take_while(is_early).count();
        Ok((series.potential[early..].to_vec(), series.temperature[early..].to_vec()))
    }

    /// Runs dynamics, then one attempt. If anything fails, the run stays where it was.
    pub fn cycle(&mut self) -> Result<Report> {
        let scratch = self.folder.make_scratch()?;
        let done = self.cycle_in(&scratch);
        if done.is_err() {
            *self.jump.statistics_mut() = self.folder.progress.statistics.clone();
            self.folder.keep_logs(&scratch);
        }
        // no longer needed; if it cannot be removed now, the next start removes it
        let _ = fs::remove_dir_all(&scratch);
        done
    }

    fn cycle_in(&mut self, scratch: &Path) -> Result<Report> {
        let start = Instant::now();
        let energies = self.gmx.segment(scratch, &self.tpr, self.folder.state().as_deref(), self.options.steps)?;
        let (step, potential) = self.check_segment(&energies)?;
        let dynamics_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let mut state = self.checkpoint(&scratch.join("next.cpt"))?;
        let report = self.attempt(scratch, &mut state, step, potential)?;
        let jumps_s = start.elapsed().as_secs_f64();
        self.folder.commit(scratch, state.bytes(), &report, self.jump.statistics(), [dynamics_s, jumps_s])?;
        Ok(report)
    }

    /// Step and potential energy at the end of a segment with this file of energies, which must have begun where the
    /// last cycle ended.
    fn check_segment(&self, path: &Path) -> Result<(i64, f64)> {
        let series = energies(path)?;
        let (Some(&step), Some(&potential)) = (series.steps.last(), series.potential.last()) else {
            return Err(Error::file(path, "contains no frames"));
        };
        let Progress { step: last_step, potential: last_potential, .. } = self.folder.progress;
        let before = last_step.unwrap_or(self.input.first_step);
        if step - before != self.options.steps as i64 {
            let message = format!("mdrun ended after {} of {} steps", step - before, self.options.steps);
            return Err(Error::Engine(message));
        }
        if let (Some(before), Some(expected)) = (last_step, last_potential) {
            let first = (series.steps[0] == before).then(|| series.potential[0]).filter(|u| u.is_finite());
            if first.is_some_and(|found| !agree(found, expected)) {
                return Err(Error::Engine(format!(
                    "the dynamics continued at {} kJ/mol instead of the {expected} kJ/mol after the last jump: this \
                     version of GROMACS does not take positions from an edited checkpoint",
                    first.unwrap_or(f64::NAN)
                )));
            }
        }
        Ok((step, potential))
    }

    fn attempt(&mut self, scratch: &Path, state: &mut Checkpoint, step: i64, potential: f64) -> Result<Report> {
        let Walker { gmx, options, seed, rerun_tpr, input, atoms, model, jump, .. } = self;
        let kt = thermal_energy(input.temperature);
        let (x, v) = (state.positions(), state.velocities());
        check_motion(&x, &v, step)?;
        let box_vectors = state.box_vectors(&input.box_vectors);
        if input.periodic && box_vectors.is_none() {
            return Err(Error::file(scratch.join("next.cpt"), "the box of the .tpr file is missing"));
        }
        let mut of_model = select(&x, atoms);
        let frame = trr::Frame {
            step: self.rerun_step,
            box_vectors: Some(box_vectors.unwrap_or_default()),
            x: x.clone(),
            ..Default::default()
        };
        let mut target = RerunTarget {
            gmx,
            folder: scratch,
            tpr: rerun_tpr,
            frame,
            atoms,
            kt,
            displacement: 0.25 * input.timestep,
            potential,
            momentum: model.momentum(&select(&v, atoms)),
            model,
            stream: RerunTarget::velocities_of(*seed, step as u64, options.replica),
            current: None,
            candidates: Vec::new(),
        };
        let mut here = State {
            x: &mut of_model,
            box_vectors: box_vectors.filter(|_| input.periodic),
            reduced_potential: potential / kt,
            step: step as u64,
            replica: options.replica,
        };
        let outcome = jump.attempt(&mut target, &mut here)?;
        let potential_after = here.reduced_potential * kt;
        let RerunTarget { current, candidates, .. } = target;
        if let Some(current) = &current {
            if !agree(current.energy, potential) {
                return Err(Error::Engine(format!(
                    "a rerun of the current configuration gives {} kJ/mol, but the dynamics {potential} kJ/mol: parts \
                     of the energy depend on the history or on --rerun-tpr, so jumps would not be exact",
                    current.energy
                )));
            }
        }
        if outcome.accepted() {
            let taken = candidates.iter().find(|candidate| candidate.x == of_model);
            let (Some(taken), Some(current)) = (taken, current) else {
                return Err(Error::Engine("an accepted configuration was never evaluated".into()));
            };
            let (x, v) = self.jumped(x, v, &current.forces, taken)?;
            state.set(&x, &v);
        }
        Ok(Report { step, potential, potential_after, outcome })
    }

    /// Positions and stored velocities of the whole system after a jump.
    fn jumped(&mut self, x: Vec<f64>, v: Vec<f64>, forces: &[f64], to: &Candidate) -> Result<(Vec<f64>, Vec<f64>)> {
        let h = self.input.timestep;
        let kick = to
            .kick
            .as_ref()
            .ok_or_else(|| Error::Engine("GROMACS found no finite energy near an accepted configuration".into()))?;
        let (mut x, mut v) = (x, v);
        // all atoms but the model's keep their on-step velocity
        for (k, v) in v.iter_mut().enumerate().filter(|(k, _)| self.input.atoms[k / 3].mass > 0.0) {
            *v += 0.5 * h * (forces[k] - to.forces[k]) / self.input.atoms[k / 3].mass;
        }
        // half-step impulses at both ends, which relate stored to on-step momentum
        let (before, after) =
            (half_impulse(h, &select(forces, &self.atoms)), half_impulse(h, &select(&to.forces, &self.atoms)));
        let stored = self.model.momentum(&to.drawn);
        let momentum = std::array::from_fn(|axis| stored[axis] + before[axis] - after[axis]);
        let new = self.model.step_back(h, &to.x, &to.drawn, kick, momentum);
        place(&mut x, &self.atoms, &to.x);
        place(&mut v, &self.atoms, &new);
        Ok((x, v))
    }
}

/// Whether two energies in kJ/mol agree up to single-precision rounding and a different order of summation.
fn agree(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.01 + 2e-6 * b.abs()
}

/// Errors: positions `[atoms][3]` (nm) or velocities (nm/ps) that are not finite, or so far away that GROMACS would take
/// for ever to put the atom back into the box.
fn check_motion(x: &[f64], v: &[f64], step: i64) -> Result<()> {
    const FARTHEST: f64 = 1e6; // nm
    let is_bad = |k: &usize| !(x[*k].abs() < FARTHEST && v[*k].is_finite());
    match (0..x.len()).find(is_bad) {
        Some(k) => Err(Error::Engine(format!(
            "a coordinate of atom {} is {} nm and its velocity {} nm/ps at step {step}: the simulation failed before the \
             jump; minimize the energy first, or use a smaller time step",
            k / 3 + 1,
            x[k],
            v[k]
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_has_exploded_is_told() {
        assert!(check_motion(&[0.0, -2e3, 1e-7], &[1.0; 3], 5).is_ok());
        for (x, v) in [(f64::NAN, 0.0), (1e9, 0.0), (1.0, f64::INFINITY)] {
            let told = check_motion(&[0.0, 0.0, 0.0, x, 0.0, 0.0], &[0.0, 0.0, 0.0, v, 0.0, 0.0], 5).unwrap_err();
            assert!(told.to_string().contains("of atom 2 is") && told.to_string().contains("at step 5"), "{told}");
        }
    }
}
