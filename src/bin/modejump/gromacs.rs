//! `modejump gromacs`: an unmodified GROMACS with jumps.

use crate::common::{
    interrupted, load, load_partner, mark, warn_of_labels, warn_of_temperature, watch_signals, Method, PrecisionFlag,
    Progress,
};
use clap::Args;
use indicatif::MultiProgress;
use modejump::engines::gromacs::{Gmx, Options, Walker};
use modejump::free_energy::mean_of_blocks;
use modejump::models::Model;
use modejump::{Error, Result};
use serde_json::{json, Value};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Default number of proposals per cycle.
const PROPOSALS: usize = 16;

#[derive(Args)]
pub struct Gromacs {
    /// Generator of the configurations of one molecule
    model: PathBuf,
    /// Run input file; with --multidir its name in every directory
    #[arg(short = 's', long, default_value = "topol.tpr")]
    tpr: PathBuf,
    /// Run input file for the reruns, if that of the dynamics has nstfout = 0: same system, any nstfout > 0
    #[arg(long)]
    rerun_tpr: Option<PathBuf>,
    /// Directory for the files of the run; an existing run in it is continued
    #[arg(short, long, default_value = ".")]
    directory: PathBuf,
    /// Directories of several walkers, each with its own run input file and all its other files
    #[arg(long, num_args = 1.., conflicts_with = "directory")]
    multidir: Vec<PathBuf>,
    /// Number of walkers that run at the same time [default: all]
    #[arg(long)]
    parallel: Option<usize>,
    /// Command that runs gmx; words with spaces are quoted as in a shell, such as "'/opt/my programs/gmx'"
    #[arg(long, default_value = "gmx")]
    gmx: String,
    /// Command that runs mdrun, with options, such as "mpirun -np 4 gmx_mpi mdrun -ntomp 2"; words are quoted as in
    /// --gmx. Refused are -s, -cpi, -cpo, -append, -noappend, -nsteps, -rerun, -deffnm, -multidir, -replex, -plumed,
    /// -ei, -tunepme, -notunepme, -noconfout, -cpt, -cpnum and -maxh [default: mdrun of --gmx]
    #[arg(long)]
    mdrun: Option<String>,
    /// Number of cycles of dynamics and a jump, in total over all starts of the run
    #[arg(short = 'n', long, default_value_t = 100)]
    cycles: u64,
    /// Number of cycles at the beginning of the run whose energies and temperatures are not averaged; their frames are
    /// kept
    #[arg(long, default_value_t = 0)]
    equilibrate: u64,
    /// Steps of dynamics per cycle
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Proposals per cycle, evaluated by one rerun [default: 16; 1 for a model of modes, since a jump between modes has
    /// only one, unless --method isir chooses among more]
    #[arg(long)]
    proposals: Option<usize>,
    /// How the proposals of a cycle are used
    #[arg(long, value_enum, default_value_t = Method::Independence)]
    method: Method,
    /// Second model with a cheap log-density: it screens the proposals, and the exact log-density of the generator
    /// decides (delayed acceptance)
    #[arg(long)]
    screen: Option<PathBuf>,
    /// Number of the model's first atom in the system, counted from 1; the others follow, in any order within a residue
    #[arg(long, default_value_t = 1)]
    first_atom: usize,
    /// Seed of proposals and velocities [default: the run's `ld-seed`, so that independent runs have independent jumps]
    #[arg(long)]
    seed: Option<u64>,
    /// Stop before this many hours have passed; the same command continues the run
    #[arg(long)]
    maxh: Option<f64>,
    #[command(flatten)]
    precision: PrecisionFlag,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Gromacs {
    pub fn run(self) -> Result<()> {
        if self.equilibrate >= self.cycles && self.equilibrate > 0 {
            return Err(Error::invalid(format!(
                "--equilibrate {} leaves none of the {} cycles to average: use a smaller number",
                self.equilibrate, self.cycles
            )));
        }
        if self.cycles == 0 || self.maxh.is_some_and(|hours| hours.is_nan() || hours <= 0.0) {
            return Err(Error::invalid("--cycles and --maxh must be positive"));
        }
        watch_signals()?;
        let gmx = Gmx::new(&self.gmx, self.mdrun.as_deref())?;
        let model = load(&self.model, &self.precision)?;
        let screen =
            self.screen.as_ref().map(|path| load_partner(path, &self.precision, model.as_ref())).transpose()?;
        let folders = if self.multidir.is_empty() { vec![self.directory.clone()] } else { self.multidir.clone() };
        let proposals = self.proposals.unwrap_or_else(|| default_proposals(model.modes().is_some(), self.method));
        let mut walkers = Vec::new();
        for (replica, folder) in folders.iter().enumerate() {
            let options = self.options(folder, replica, proposals)?;
            let walker = Walker::new(&gmx, &model, screen.clone(), options)?;
            warn_of_temperature(model.as_ref(), walker.input().temperature, "jumps");
            walkers.push(walker);
        }
        warn_of_equal_inputs(&folders, &walkers);
        let walkers = self.advance(walkers, model.as_ref())?;
        for (folder, walker) in folders.iter().zip(&walkers) {
            let summary = self.summary(walker)?;
            match self.json {
                true => println!("{summary}"),
                false => print(&folder.display().to_string(), walker, &summary),
            }
        }
        match walkers
            .iter()
            .map(|walker| walker.progress().cycle)
            .min()
            .filter(|&done| interrupted() && done < self.cycles)
        {
            // so that what follows in a script does not start
            Some(done) => Err(Error::Engine(format!(
                "interrupted after {done} of {} cycles: run the same command again to continue",
                self.cycles
            ))),
            None => Ok(()),
        }
    }

    fn options(&self, folder: &std::path::Path, replica: usize, proposals: usize) -> Result<Options> {
        let in_folder = |path: &PathBuf| if self.multidir.is_empty() { path.clone() } else { folder.join(path) };
        let first_atom =
            self.first_atom.checked_sub(1).ok_or_else(|| Error::invalid("--first-atom 0: atoms are counted from 1"))?;
        Ok(Options {
            tpr: in_folder(&self.tpr),
            rerun_tpr: self.rerun_tpr.as_ref().map(in_folder),
            folder: folder.to_path_buf(),
            first_atom,
            steps: self.steps,
            proposals,
            isir: self.method == Method::Isir,
            seed: self.seed,
            replica: replica as u32,
        })
    }

    /// Runs all walkers to the last cycle, or as far as the time allows. The first failure stops all, each after a
    /// whole cycle.
    fn advance(&self, walkers: Vec<Walker>, model: &dyn Model) -> Result<Vec<Walker>> {
        let deadline = self.maxh.and_then(deadline);
        let bars = MultiProgress::new();
        let cells: Vec<Mutex<Walker>> = walkers.into_iter().map(Mutex::new).collect();
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failure = Mutex::new(None);
        let work = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(cell) = cells.get(index) else { break };
            let mut walker = cell.lock().expect("a walker is taken once");
            if let Err(e) = self.cycles(&mut walker, model, deadline, &bars, &failed) {
                failed.store(true, Ordering::Relaxed);
                let of_walker = |folder: &PathBuf| Error::Engine(format!("{}: {e}", folder.display()));
                let e = self.multidir.get(index).map(of_walker).unwrap_or(e);
                failure.lock().expect("no thread panics here").get_or_insert(e);
            }
        };
        let threads = self.parallel.unwrap_or(cells.len()).clamp(1, cells.len());
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        match failure.into_inner().expect("no thread panics here") {
            Some(e) => Err(e),
            None => Ok(cells.into_iter().map(|cell| cell.into_inner().expect("no thread panics here")).collect()),
        }
    }

    fn cycles(
        &self,
        walker: &mut Walker,
        model: &dyn Model,
        deadline: Option<Instant>,
        bars: &MultiProgress,
        stop: &AtomicBool,
    ) -> Result<()> {
        let done = walker.progress().cycle;
        if done > self.cycles {
            let message =
                format!("the run has already done {done} cycles, but --cycles is {}: use {done} or more", self.cycles);
            return Err(Error::invalid(message));
        }
        let mut progress = Progress::among(bars, self.cycles, "cycles");
        let mut longest = Duration::ZERO;
        let mut is_first = true;
        while walker.progress().cycle < self.cycles && !stop.load(Ordering::Relaxed) && !interrupted() {
            if deadline.is_some_and(|deadline| Instant::now() + longest > deadline) {
                break;
            }
            let start = Instant::now();
            let report = match walker.cycle() {
                // most likely the signal ended mdrun as well; the run is where the last cycle left it
                Err(e) if interrupted() => {
                    bars.suspend(|| eprintln!("modejump: the last cycle was given up: {e}"));
                    break;
                }
                report => report?,
            };
            longest = longest.max(start.elapsed());
            let accepted = 100.0 * walker.progress().statistics.acceptance();
            let message = format!("step {}  U {:.1}  accepted {accepted:.0} %", report.step, report.potential_after);
            progress.show(walker.progress().cycle, message);
            // not earlier, since mdrun brings the constrained bonds of the starting structure to their lengths
            if std::mem::take(&mut is_first) {
                if let Some(x) = walker.molecule(model)? {
                    bars.suspend(|| warn_of_labels(walker.tpr(), model, &x))?;
                }
            }
        }
        progress.end();
        Ok(())
    }

    fn summary(&self, walker: &Walker) -> Result<Value> {
        let progress = walker.progress();
        let statistics = &progress.statistics;
        // before the first cycle, shares and times per cycle are 0/0: null in JSON, not printed as text
        let cycles = progress.cycle as f64;
        let acceptance = if progress.cycle > 0 { statistics.acceptance() } else { f64::NAN };
        let mut summary = json!({
            "cycles": progress.cycle,
            "complete": progress.cycle >= self.cycles,
            "step": progress.step,
            "likelihood": statistics.likelihood(),
            "acceptance": acceptance,
            "ess": statistics.effective_fraction(),
            "dynamics_s_per_cycle": progress.dynamics_s / cycles,
            "jump_s_per_cycle": progress.jumps_s / cycles,
        });
        if progress.cycle > 0 {
            let (u, t) = walker.series_after(self.equilibrate)?;
            for (name, series) in [("u", u), ("t", t)] {
                // a handful of frames has no meaningful mean, which is no reason to fail the run
                if let Ok(mean) = mean_of_blocks(&series) {
                    summary[format!("{name}_mean")] = json!(mean.value);
                    summary[format!("{name}_stderr")] = json!(mean.standard_error);
                }
            }
        }
        Ok(summary)
    }
}

/// Warns of walkers with the same run input file: they have the same `ld-seed`, and so the same noise in their
/// dynamics.
fn warn_of_equal_inputs(folders: &[PathBuf], walkers: &[Walker]) {
    for (i, walker) in walkers.iter().enumerate() {
        if let Some(twin) = walkers[..i].iter().position(|other| other.tpr_hash() == walker.tpr_hash()) {
            let [a, b] = [twin, i].map(|k| folders[k].display().to_string());
            eprintln!("modejump: {a} and {b} have the same run input file: use a different ld-seed for each, otherwise their noise is the same");
        }
    }
}

/// Jumps between modes have a single proposal, unless i-SIR chooses among more.
fn default_proposals(of_modes: bool, method: Method) -> usize {
    match of_modes && method != Method::Isir {
        true => 1,
        false => PROPOSALS,
    }
}

/// Time after this many hours from now; none if it is too far to represent.
fn deadline(hours: f64) -> Option<Instant> {
    let left = Duration::try_from_secs_f64(3600.0 * hours.max(0.0)).ok()?;
    Instant::now().checked_add(left)
}

fn print(folder: &str, walker: &Walker, summary: &Value) {
    let progress = walker.progress();
    let statistics = &progress.statistics;
    let number = |name: &str| summary[name].as_f64().unwrap_or(f64::NAN);
    println!(
        "{folder}: {} cycles{}, step {}{}{}",
        progress.cycle,
        if summary["complete"] == json!(true) { "" } else { " (incomplete: run the same command again to continue)" },
        progress.step.unwrap_or(0),
        shares(number("acceptance"), number("ess")),
        mark(statistics.likelihood().name())
    );
    if summary.get("u_mean").is_some() {
        let [u, du, t, dt] = ["u_mean", "u_stderr", "t_mean", "t_stderr"].map(number);
        println!("<U> = {u:.2} ± {du:.2} kJ/mol, <T> = {t:.1} ± {dt:.1} K");
    }
    let [dynamics, jump] = ["dynamics_s_per_cycle", "jump_s_per_cycle"].map(number);
    if progress.cycle > 0 {
        println!("per cycle: {dynamics:.3} s for dynamics, {jump:.3} s for the jump");
    }
}

/// Summary of cycles and proposals, if there were any: jumps between modes have no weights of proposals.
fn shares(moved: f64, ess: f64) -> String {
    let of = |share: f64| Some(100.0 * share).filter(|percent| percent.is_finite());
    let moved = of(moved).map(|moved| format!("; {moved:.1} % of cycles jumped"));
    let ess = of(ess).map(|ess| format!(", ESS {ess:.1} %"));
    moved.unwrap_or_default() + &ess.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_nothing_are_left_out() {
        assert_eq!(shares(f64::NAN, f64::NAN), "");
        assert_eq!(shares(0.5, f64::NAN), "; 50.0 % of cycles jumped");
        assert_eq!(shares(0.5, 0.25), "; 50.0 % of cycles jumped, ESS 25.0 %");
    }

    #[test]
    fn only_jumps_between_modes_without_a_choice_have_one_proposal() {
        assert_eq!([true, false].map(|of_modes| default_proposals(of_modes, Method::Independence)), [1, PROPOSALS]);
        assert_eq!([true, false].map(|of_modes| default_proposals(of_modes, Method::Isir)), [PROPOSALS; 2]);
    }

    #[test]
    fn endless_time_has_no_deadline() {
        assert_eq!([f64::INFINITY, 1e300, 5e15].map(deadline), [None; 3]);
        let in_an_hour = deadline(1.0).unwrap() - Instant::now();
        assert!(in_an_hour.abs_diff(Duration::from_secs(3600)) < Duration::from_secs(60));
        assert!(deadline(-1.0).unwrap() <= Instant::now());
    }
}
