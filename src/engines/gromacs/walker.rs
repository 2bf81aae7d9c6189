//! One run directory: cycles of dynamics and a jump, each committed as a whole.
//!
//! A cycle works in a folder of its own. Then the new state is written under a new name, frames and the line of `jumps.csv` are
//! appended, and last `modejump.ckpt` is replaced, which says what the state is and how long the other files are. Killed at any
//! moment, the run goes on from what `modejump.ckpt` says, and cuts off what came after it.

use super::gmx::{energies, part, read_with, Gmx};
use super::rerun::{place, select, Candidate, RerunTarget};
use super::run_input::RunInput;
use super::velocities::{half_impulse, ModelAtoms};
use crate::coordinates::constraints::Constraints;
use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Kind};
use crate::io::gromacs::cpt::Checkpoint;
use crate::io::gromacs::{spans, trr};
use crate::io::make_folder;
use crate::io::model_file::hash;
use crate::models::steering::dimension_without_auxiliary;
use crate::models::Model;
use crate::moves::{self, Method, Move, Outcome, State, Statistics};
use crate::units::thermal_energy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const RUN: Kind = Kind { magic: *b"MJ-GMXRN", version: 6 };
const PROGRESS: &str = "modejump.ckpt";
/// Trajectories and energies of the segments, joined.
const JOINED: [&str; 3] = ["traj.xtc", "traj.trr", "ener.edr"];
/// Of dynamics and of reruns.
const LOGS: [&str; 2] = ["md", "rerun"];
const JUMPS: &str = "jumps.csv";
const HEADER: &str = "cycle,step,potential,fate,log_acceptance,log_weight,log_weight_proposed,potential_after\n";

/// What a run is, beside its models.
#[derive(Clone, Debug)]
pub struct Options {
    /// Run input of the dynamics.
    pub tpr: PathBuf,
    /// Run input of the reruns, if the other writes no forces; it must give the same energies.
    pub rerun_tpr: Option<PathBuf>,
    /// Where the run keeps its files; made if it is not there.
    pub folder: PathBuf,
    /// Index of the model's first atom in the system; the others follow it.
    pub first_atom: usize,
    /// Steps of dynamics between jumps.
    pub steps: u64,
    pub proposals: usize,
    /// Choose among all proposals and the current state (i-SIR) instead of one test after the other.
    pub isir: bool,
    pub seed: u64,
    /// Number of the walker, 24 bits.
    pub replica: u32,
}

/// What a run must keep to be the same run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    model: String,
    screen: Option<String>,
    tpr: String,
    first_atom: usize,
    steps: u64,
    proposals: usize,
    isir: bool,
    seed: u64,
    replica: u32,
}

impl Settings {
    /// What differs from another run's, by the options of `modejump gromacs`.
    fn differences(&self, other: &Settings) -> String {
        let method = |settings: &Settings| if settings.isir { "isir" } else { "independence" };
        let same_file = |same: bool, name: &str| (!same).then(|| format!("another {name}"));
        let number = |name: &str, [a, b]: [u64; 2]| (a != b).then(|| format!("--{name} {b} instead of {a}"));
        let all = [
            same_file(self.model == other.model, "model"),
            same_file(self.screen == other.screen, "--screen"),
            same_file(self.tpr == other.tpr, "run input file (--tpr)"),
            number("first-atom", [self, other].map(|s| s.first_atom as u64 + 1)),
            number("steps", [self, other].map(|s| s.steps)),
            number("proposals", [self, other].map(|s| s.proposals as u64)),
            (self.isir != other.isir).then(|| format!("--method {} instead of {}", method(other), method(self))),
            number("seed", [self, other].map(|s| s.seed)),
            (self.replica != other.replica).then(|| "another place among the walkers of --multidir".to_string()),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// How far a run has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    settings: Settings,
    /// Cycles done.
    pub cycle: u64,
    /// Step of the engine.
    pub step: Option<i64>,
    /// File of the state the next cycle begins with.
    state: Option<String>,
    /// Potential energy there, kJ/mol, as far as it is known.
    potential: Option<f64>,
    lengths: BTreeMap<String, u64>,
    last_steps: BTreeMap<String, i64>,
    pub statistics: Statistics,
    /// Wall time of dynamics and of jumps, s.
    pub dynamics_s: f64,
    pub jumps_s: f64,
}

/// What one cycle did.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub step: i64,
    /// kJ/mol, before and after the jump.
    pub potential: f64,
    pub potential_after: f64,
    pub outcome: Outcome,
}

/// A run that can go on.
pub struct Walker {
    gmx: Gmx,
    options: Options,
    /// Absolute paths.
    tpr: PathBuf,
    rerun_tpr: PathBuf,
    input: RunInput,
    rerun_step: i32,
    atoms: Vec<usize>,
    model: ModelAtoms,
    jump: Box<dyn Move>,
    progress: Progress,
    /// Held while the run directory is ours.
    _lock: File,
}

impl Walker {
    /// Begins a run, or goes on with the one in the directory. Errors: a `.tpr` file that jumps do not go with (the option and why),
    /// atoms that are not the model's (named), a constraint that the model does not keep (named), no forces in reruns, a directory
    /// in use, one with a run of other settings or with files that a new run would overwrite.
    pub fn new(gmx: &Gmx, model: &Arc<dyn Model>, screen: Option<Arc<dyn Model>>, options: Options) -> Result<Walker> {
        if options.steps == 0 {
            return Err(Error::invalid("0 steps between jumps: dynamics and jumps must alternate"));
        }
        let input = gmx.read(&options.tpr)?;
        input.check_interval(options.steps)?;
        let rerun_tpr = options.rerun_tpr.clone().unwrap_or_else(|| options.tpr.clone());
        let of_reruns = options.rerun_tpr.as_ref().map(|tpr| gmx.read(tpr)).transpose()?;
        let rerun_step = force_step(&rerun_tpr, of_reruns.as_ref().unwrap_or(&input), &input)?;
        let atoms = model_atoms(model.as_ref(), &input, &options)?;
        let masses: Vec<f64> = atoms.iter().map(|&i| input.atoms[i].mass).collect();
        let card = model.card();
        let label = |atom| card.label(atom);
        let constraints = Constraints::among(&input.constraints, &atoms, &masses, card.kept_bonds(), &label)?;
        let generator_options = moves::Options {
            n_proposals: options.proposals,
            seed: options.seed,
            stride: options.steps,
            ..Default::default()
        };
        let settings = Settings {
            model: model.hash().to_string(),
            screen: screen.as_ref().map(|screen| screen.hash().to_string()),
            tpr: hash(&fs::read(&options.tpr).map_err(|e| Error::io(&options.tpr, e))?),
            first_atom: options.first_atom,
            steps: options.steps,
            proposals: options.proposals,
            isir: options.isir,
            seed: options.seed,
            replica: options.replica,
        };
        let method = match (screen, options.isir) {
            (Some(_), true) => return Err(Error::invalid("a screen goes with independence proposals, not with i-SIR")),
            (Some(screen), false) => Method::Screened(screen),
            (None, true) => Method::Isir { rotations: None },
            (None, false) => Method::Independence { rotations: None },
        };
        let mut jump = method.make(model, generator_options, constraints.clone())?;
        jump.set_temperature(input.temperature)?;
        let lock = lock(&options.folder)?;
        let progress = open(&options.folder, settings, jump.statistics())?;
        *jump.statistics_mut() = progress.statistics.clone();
        let absolute = |path: &Path| fs::canonicalize(path).map_err(|e| Error::io(path, e));
        Ok(Walker {
            gmx: gmx.clone(),
            tpr: absolute(&options.tpr)?,
            rerun_tpr: absolute(&rerun_tpr)?,
            options: Options { folder: absolute(&options.folder)?, ..options },
            input,
            rerun_step,
            atoms,
            model: ModelAtoms { masses, constraints },
            jump,
            progress,
            _lock: lock,
        })
    }

    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Of the run input file.
    pub fn tpr_hash(&self) -> &str {
        &self.progress.settings.tpr
    }

    pub fn input(&self) -> &RunInput {
        &self.input
    }

    /// Potential energies (kJ/mol) and temperatures (K) of all recorded frames of the run.
    pub fn series(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let series = energies(&self.options.folder.join("ener.edr"))?;
        Ok((series.potential, series.temperature))
    }

    /// Dynamics, then one attempt. Whatever fails, the run is where it was.
    pub fn cycle(&mut self) -> Result<Report> {
        let scratch = self.options.folder.join(format!("cycle-{}-{}", self.progress.cycle + 1, std::process::id()));
        fs::create_dir(&scratch).map_err(|e| Error::io(&scratch, e))?;
        let done = self.cycle_in(&scratch);
        if done.is_err() {
            *self.jump.statistics_mut() = self.progress.statistics.clone();
            // what GROMACS says of it; a log that cannot be kept is no second failure
            for log in LOGS.iter().flat_map(|stem| {
                [part(&scratch, stem, ".log").ok().flatten(), Some(scratch.join(format!("{stem}.log")))]
            }) {
                let name = log
                    .as_ref()
                    .and_then(|log| log.file_name())
                    .map(|name| format!("failed-{}", name.to_string_lossy()));
                let _ = log.zip(name).map(|(log, name)| fs::rename(log, self.options.folder.join(name)));
            }
        }
        // of no use any more; what cannot be removed now is removed at the next start
        let _ = fs::remove_dir_all(&scratch);
        done
    }

    fn cycle_in(&mut self, scratch: &Path) -> Result<Report> {
        let start = Instant::now();
        let from = self.progress.state.as_ref().map(|name| self.options.folder.join(name));
        self.gmx.segment(scratch, &self.tpr, from.as_deref(), self.options.steps)?;
        let (step, potential) = self.check_segment(scratch)?;
        let dynamics_s = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let path = scratch.join("next.cpt");
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let mut state = Checkpoint::new(bytes, self.input.atoms.len()).map_err(|e| Error::file(&path, e))?;
        let report = self.attempt(scratch, &mut state, step, potential)?;
        let jumps_s = start.elapsed().as_secs_f64();
        self.commit(scratch, state.bytes(), &report, [dynamics_s, jumps_s])?;
        Ok(report)
    }

    /// Step and potential energy at the end of a segment, which must have begun where the last cycle left off.
    fn check_segment(&self, scratch: &Path) -> Result<(i64, f64)> {
        let path = part(scratch, "ener", ".edr")?.ok_or_else(|| Error::file(scratch, "mdrun left no energies"))?;
        let series = energies(&path)?;
        let (Some(&step), Some(&potential)) = (series.steps.last(), series.potential.last()) else {
            return Err(Error::file(&path, "no frame"));
        };
        // the first segment begins with its first frame, if that is not its last
        let first = (series.steps.len() > 1).then(|| series.steps[0]);
        if let Some(before) = self.progress.step.or(first).filter(|before| step - before != self.options.steps as i64) {
            let message = format!("mdrun ended after {} of {} steps", step - before, self.options.steps);
            return Err(Error::Engine(message));
        }
        if let (Some(before), Some(expected)) = (self.progress.step, self.progress.potential) {
            let first = (series.steps[0] == before).then(|| series.potential[0]).filter(|u| u.is_finite());
            if first.is_some_and(|found| !agree(found, expected)) {
                return Err(Error::Engine(format!(
                    "the dynamics went on at {} kJ/mol and not at {expected} kJ/mol, where the last jump left off: this version \
                     of GROMACS does not take positions from an edited checkpoint",
                    first.unwrap_or(f64::NAN)
                )));
            }
        }
        Ok((step, potential))
    }

    fn attempt(&mut self, scratch: &Path, state: &mut Checkpoint, step: i64, potential: f64) -> Result<Report> {
        let Walker { gmx, options, rerun_tpr, input, atoms, model, jump, .. } = self;
        let kt = thermal_energy(input.temperature);
        let (x, v) = (state.positions(), state.velocities());
        let box_vectors = state.box_vectors(&input.box_vectors);
        if input.periodic && box_vectors.is_none() {
            return Err(Error::file(scratch.join("next.cpt"), "the box of the .tpr file is not there"));
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
            stream: RerunTarget::velocities_of(options.seed, step as u64, options.replica),
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
                    "a rerun of the current configuration gives {} kJ/mol, the dynamics {potential} kJ/mol: the energy has parts \
                     that depend on the past or on --rerun-tpr; jumps would not be exact",
                    current.energy
                )));
            }
        }
        if outcome.accepted() {
            let taken = candidates.iter().find(|candidate| candidate.x == of_model);
            let (Some(taken), Some(current)) = (taken, current) else {
                return Err(Error::Engine("an accepted configuration that was never evaluated".into()));
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
            .ok_or_else(|| Error::Engine("GROMACS finds no finite energy beside an accepted configuration".into()))?;
        let (mut x, mut v) = (x, v);
        // all atoms but the model's carry their velocity on the step across
        for (k, v) in v.iter_mut().enumerate().filter(|(k, _)| self.input.atoms[k / 3].mass > 0.0) {
            *v += 0.5 * h * (forces[k] - to.forces[k]) / self.input.atoms[k / 3].mass;
        }
        // what the model's atoms have on the step, less what they had stored, and the same at the other end
        let (before, after) =
            (half_impulse(h, &select(forces, &self.atoms)), half_impulse(h, &select(&to.forces, &self.atoms)));
        let stored = self.model.momentum(&to.drawn);
        let momentum = std::array::from_fn(|axis| stored[axis] + before[axis] - after[axis]);
        let new = self.model.step_back(h, &to.x, &to.drawn, kick, momentum);
        place(&mut x, &self.atoms, &to.x);
        place(&mut v, &self.atoms, &new);
        Ok((x, v))
    }

    fn commit(&mut self, scratch: &Path, state: &[u8], report: &Report, seconds: [f64; 2]) -> Result<()> {
        let folder = &self.options.folder;
        let mut next = self.progress.clone();
        next.cycle += 1;
        next.step = Some(report.step);
        next.potential = Some(report.potential_after);
        next.statistics = self.jump.statistics().clone();
        next.dynamics_s += seconds[0];
        next.jumps_s += seconds[1];
        let name = format!("state_{}.cpt", next.cycle);
        crate::io::write_atomically(&folder.join(&name), state)?;
        for joined in JOINED {
            let (stem, extension) = joined.split_once('.').expect("a name with an extension");
            if let Some(path) = part(scratch, stem, &format!(".{extension}"))? {
                append_frames(folder, joined, extension, &path, &mut next)?;
            }
        }
        let line = line(next.cycle, report);
        append(
            folder,
            JUMPS,
            if next.lengths.contains_key(JUMPS) { "" } else { HEADER }.as_bytes(),
            line.as_bytes(),
            &mut next,
        )?;
        let before = next.state.replace(name);
        checkpoint::save(&folder.join(PROGRESS), RUN, &next)?;
        self.progress = next;
        if let Some(before) = before {
            let _ = fs::remove_file(folder.join(before)); // else at the next start
        }
        if let Some(log) = part(scratch, "md", ".log")? {
            let _ = fs::copy(log, folder.join("md.log")); // for the user's eyes
        }
        Ok(())
    }
}

/// Whether two energies in kJ/mol are the same to the rounding of single precision and of another order of sums.
fn agree(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.01 + 2e-6 * b.abs()
}

/// A step at which a rerun writes forces.
fn force_step(tpr: &Path, other: &RunInput, input: &RunInput) -> Result<i32> {
    if other.atoms != input.atoms {
        return Err(Error::file(tpr, "other atoms than in the .tpr file of the dynamics"));
    }
    match other.force_frames {
        n @ 1..=0x7fff_ffff => Ok(n as i32),
        _ => Err(Error::Unsupported(format!(
            "{}: nstfout = 0, but velocities after a jump need forces. Set nstfout to the steps between jumps, or to any large \
             number, and run grompp again; or give a second file made so with --rerun-tpr",
            tpr.display()
        ))),
    }
}

/// Index in the system of each atom of the model.
fn model_atoms(model: &dyn Model, input: &RunInput, options: &Options) -> Result<Vec<usize>> {
    let (n, first) = (dimension_without_auxiliary(model) / 3, options.first_atom);
    let there = first.checked_add(n).and_then(|end| input.atoms.get(first..end)).ok_or_else(|| {
        Error::invalid(format!(
            "the model's {n} atoms, from {} on, are more than the system's {}",
            first + 1,
            input.atoms.len()
        ))
    })?;
    let residues: Vec<&str> = there.iter().map(|a| a.residue.as_str()).collect();
    let names: Vec<&str> = there.iter().map(|a| a.name.as_str()).collect();
    let order = model.card().match_atoms(&residues, &names)?;
    if let Some(site) = there.iter().find(|a| a.mass <= 0.0) {
        return Err(Error::Unsupported(format!(
            "{} {} has no mass: virtual sites cannot be generated",
            site.residue, site.name
        )));
    }
    let inside = |atom: &usize| (first..first + n).contains(atom);
    if let Some(site) = input.sites.iter().find(|site| site.iter().any(inside)) {
        let label =
            |atom: &usize| input.atoms.get(*atom).map(|a| format!("{} {}", a.residue, a.name)).unwrap_or_default();
        return Err(Error::Unsupported(format!(
            "the virtual site {} follows atoms of the model ({}), and jumps would leave it behind",
            label(&site[0]),
            site[1..].iter().filter(|atom| inside(atom)).map(label).collect::<Vec<_>>().join(", ")
        )));
    }
    let groups = input.momentum_groups.get(first..first + n).unwrap_or_default();
    if let Some(k) = groups.iter().position(|group| *group != groups[0]) {
        return Err(Error::Unsupported(format!(
            "comm-grps of the .tpr file parts the model's atoms between {} {} and {} {}: a jump changes the momentum of either part, \
             which GROMACS would take away; have them in one group",
            there[k - 1].residue, there[k - 1].name, there[k].residue, there[k].name
        )));
    }
    Ok(order.into_iter().map(|k| first + k).collect())
}

/// Makes the folder and takes it for this process.
fn lock(folder: &Path) -> Result<File> {
    make_folder(folder)?;
    let path = folder.join("modejump.lock");
    let file = File::create(&path).map_err(|e| Error::io(&path, e))?;
    file.try_lock().map_err(|e| not_locked(&path, e))?;
    Ok(file)
}

fn not_locked(path: &Path, error: TryLockError) -> Error {
    let reason = match error {
        TryLockError::WouldBlock => "another modejump is at work in this directory".to_string(),
        TryLockError::Error(e) => {
            format!("cannot be locked ({e}); have the run's directory on a file system that knows locks, such as a local disk")
        }
    };
    Error::file(path, reason)
}

/// The run in a folder, or a new one. What interrupted cycles have left is removed.
fn open(folder: &Path, settings: Settings, statistics: &Statistics) -> Result<Progress> {
    let path = folder.join(PROGRESS);
    if !path.exists() {
        let names = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten();
        let ours = |name: &String| JOINED.iter().chain(&[JUMPS, "md.log"]).any(|ours| ours == name) || is_state(name);
        if let Some(there) = names.map(|entry| entry.file_name().to_string_lossy().into_owned()).find(ours) {
            let reason = format!("{there} is there, but no {PROGRESS}: give a new run a directory of its own");
            return Err(Error::file(folder, reason));
        }
        let progress = Progress {
            settings,
            cycle: 0,
            step: None,
            state: None,
            potential: None,
            lengths: BTreeMap::new(),
            last_steps: BTreeMap::new(),
            statistics: statistics.clone(),
            dynamics_s: 0.0,
            jumps_s: 0.0,
        };
        checkpoint::save(&path, RUN, &progress)?;
        return Ok(progress);
    }
    let mut progress: Progress = checkpoint::load(&path, RUN)?;
    // nothing was made with the settings of a run that has not come through its first cycle
    if progress.cycle == 0 && progress.settings != settings {
        progress = Progress { settings, statistics: statistics.clone(), ..progress };
        checkpoint::save(&path, RUN, &progress)?;
    } else if progress.settings != settings {
        let reason = format!(
            "the run in this directory has other settings ({}): go on with the same, or begin a new directory",
            progress.settings.differences(&settings)
        );
        return Err(Error::file(folder, reason));
    }
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_scratch(&name) {
            let _ = fs::remove_dir_all(entry.path());
        } else if is_state(&name) && Some(&name) != progress.state.as_ref() {
            let _ = fs::remove_file(entry.path());
        }
    }
    match progress.state.as_ref().map(|name| folder.join(name)).filter(|state| !state.exists()) {
        Some(state) => Err(Error::file(
            state,
            "the state that the run goes on from is not there: put it back, or begin a new directory",
        )),
        None => Ok(progress),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a folder is one that a cycle works in, and not the user's.
fn is_scratch(name: &str) -> bool {
    let numbers = name.strip_prefix("cycle-").and_then(|numbers| numbers.split_once('-'));
    numbers.is_some_and(|(cycle, process)| is_number(cycle) && is_number(process))
}

/// Whether a file is a state that a cycle has left, and not the user's.
fn is_state(name: &str) -> bool {
    name.strip_prefix("state_").and_then(|name| name.strip_suffix(".cpt")).is_some_and(is_number)
}

/// Appends the frames of a segment that come after those that are there; the first frame of a segment is the last of the one before.
fn append_frames(folder: &Path, joined: &str, extension: &str, from: &Path, progress: &mut Progress) -> Result<()> {
    let frames = read_with(from, |bytes| {
        let spans = spans(extension, bytes)?;
        let head = spans.first().map_or(0, |span| span.bytes.start);
        let last = progress.last_steps.get(joined).copied();
        let is_after = |step: i64, last: i64| match extension {
            "edr" => step > last,
            _ => (step as i32).wrapping_sub(last as i32) > 0, // steps of trajectories have 32 bits, and begin again
        };
        let new = spans.iter().filter(|span| last.is_none_or(|last| is_after(span.step, last)));
        let frames: Vec<u8> = new.flat_map(|span| bytes[span.bytes.clone()].iter().copied()).collect();
        Ok((bytes[..head].to_vec(), frames, spans.last().map(|span| span.step)))
    });
    let (head, frames, last) = frames?;
    append(folder, joined, &head, &frames, progress)?;
    if let Some(last) = last {
        progress.last_steps.insert(joined.to_string(), last);
    }
    Ok(())
}

/// Appends to a file of the run what comes after its recorded length; `head` opens a new file.
fn append(folder: &Path, name: &str, head: &[u8], bytes: &[u8], progress: &mut Progress) -> Result<()> {
    let path = folder.join(name);
    let length = progress.lengths.get(name).copied().unwrap_or(0);
    let head = if length == 0 { head } else { &[] };
    let write = || -> std::io::Result<()> {
        let mut file = File::options().create(true).truncate(false).write(true).open(&path)?;
        if file.metadata()?.len() < length {
            return Err(std::io::Error::other("shorter than when the run wrote it last"));
        }
        file.set_len(length)?;
        file.seek(std::io::SeekFrom::End(0))?;
        file.write_all(head)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|e| Error::io(&path, e))?;
    progress.lengths.insert(name.to_string(), length + (head.len() + bytes.len()) as u64);
    Ok(())
}

fn line(cycle: u64, report: &Report) -> String {
    let Report { step, potential, potential_after, outcome } = report;
    let fate = outcome.fate.name();
    let Outcome { log_acceptance, log_weight_current, log_weight_proposed, .. } = outcome;
    format!("{cycle},{step},{potential},{fate},{log_acceptance},{log_weight_current},{log_weight_proposed},{potential_after}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            model: String::new(),
            screen: None,
            tpr: String::new(),
            first_atom: 0,
            steps: 10,
            proposals: 1,
            isir: false,
            seed: 1,
            replica: 0,
        }
    }

    #[test]
    fn differences_are_named_by_options() {
        let other = Settings { first_atom: 4, isir: true, tpr: "another".into(), ..settings() };
        let said = settings().differences(&other);
        assert_eq!(
            said,
            "another run input file (--tpr), --first-atom 5 instead of 1, --method isir instead of independence"
        );
    }

    #[test]
    fn a_lock_that_is_taken_and_one_that_cannot_be_are_told_apart() {
        let path = Path::new("run/modejump.lock");
        let taken = not_locked(path, TryLockError::WouldBlock).to_string();
        assert!(taken.contains("another modejump is at work"), "{taken}");
        let unsupported = std::io::Error::from(std::io::ErrorKind::Unsupported);
        let none = not_locked(path, TryLockError::Error(unsupported)).to_string();
        assert!(
            none.contains("unsupported") && none.contains("file system") && !none.contains("another modejump"),
            "{none}"
        );
    }

    #[test]
    fn what_cycles_have_left_is_removed_and_nothing_else() {
        let folder = std::env::temp_dir().join(format!("modejump-walker-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        open(&folder, settings(), &Statistics::default()).unwrap();
        let (leftovers, others) = (
            ["cycle-3-4711", "state_2.cpt"],
            ["cycle-3", "cycle-3-notes", "state_2.cpt.bak", "state_best.cpt", "state_2"],
        );
        for name in leftovers.iter().chain(&others) {
            let path = folder.join(name);
            if name.starts_with("cycle") { fs::create_dir(path) } else { fs::write(path, "") }.unwrap();
        }
        open(&folder, settings(), &Statistics::default()).unwrap();
        let is_there = |name: &&str| folder.join(name).exists();
        assert!(!leftovers.iter().any(&is_there) && others.iter().all(&is_there));
        // settings are those of a run when it has come through a cycle
        let other = Settings { steps: 20, ..settings() };
        let progress = open(&folder, other.clone(), &Statistics::default()).unwrap();
        let progress = Progress { cycle: 1, state: Some("state_1.cpt".into()), ..progress };
        checkpoint::save(&folder.join(PROGRESS), RUN, &progress).unwrap();
        let message = |settings| open(&folder, settings, &Statistics::default()).unwrap_err().to_string();
        assert!(message(settings()).contains("--steps 10 instead of 20"), "{}", message(settings()));
        assert!(message(other.clone()).contains("state_1.cpt"), "{}", message(other));
        fs::remove_dir_all(&folder).unwrap();
    }
}
