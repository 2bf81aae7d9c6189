//! Shared part of commands that run molecular dynamics: options, start, recording.

use clap::Args;
use modejump::coordinates::vector::distance;
use modejump::coordinates::Topology;
use modejump::{Error, Result};
use std::path::Path;

#[derive(Args)]
pub struct Dynamics {
    /// Friction coefficient, 1/ps
    #[arg(long, default_value_t = 1.0)]
    friction: f64,
    /// Time step, ps
    #[arg(long, default_value_t = 0.001)]
    pub timestep: f64,
    /// Seed of velocities, thermostat and jumps
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// OpenMM platform
    #[arg(long, default_value = "Reference")]
    platform: String,
}

/// Range of the distance between the two nearest heavy atoms of a molecule, nm.
const SHORTEST: f64 = 0.05;
const LONGEST: f64 = 1.0;
/// Number of heavy atoms that are examined: neighbours in a file are near each other.
const LOOKED_AT: usize = 1000;

/// Errors: the coordinates of a PDB file are not numbers, or not those of a molecule, for instance because they are in
/// nm, where PDB files have Angstrom.
pub fn check_start(path: &Path, topology: &Topology, x0: &[f64]) -> Result<()> {
    if let Some(i) = x0.iter().position(|v| !v.is_finite()) {
        return Err(Error::file(path, format!("{} has a coordinate of {}", topology.label(i / 3), x0[i])));
    }
    // massless sites lie beside their atoms
    let heavy =
        (0..topology.n_atoms()).filter(|&i| matches!(topology.elements[i].as_str(), "C" | "N" | "O" | "S" | "P"));
    let heavy: Vec<usize> = heavy.take(LOOKED_AT).collect();
    let pairs = heavy.iter().enumerate().flat_map(|(k, &i)| heavy[..k].iter().map(move |&j| (i, j)));
    let distance = |(i, j): (usize, usize)| distance(x0, i, j);
    match pairs.map(distance).min_by(f64::total_cmp).filter(|d| !(SHORTEST..LONGEST).contains(d)) {
        Some(d) => Err(Error::file(
            path,
            format!(
                "the closest two carbon, nitrogen, oxygen, sulphur or phosphorus atoms are {:.3} Angstrom apart: coordinates in PDB files must be in Angstrom",
                10.0 * d
            ),
        )),
        None => Ok(()),
    }
}

#[cfg(feature = "openmm")]
pub use run::*;

#[cfg(feature = "openmm")]
mod run {
    use super::{check_start, Dynamics};
    use crate::common::{claim, read_system, require_atoms, warn_of_box, CHECKPOINT_INTERVAL};
    use modejump::coordinates::Topology;
    use modejump::engines::openmm::{Simulation, SimulationOptions, System};
    use modejump::free_energy::mean_of_series;
    use modejump::io::checkpoint::{self, Identity, Kind};
    use modejump::io::is_special;
    use modejump::io::trajectory::{self, Clock, Frames};
    use modejump::units::thermal_energy;
    use modejump::weights::Estimate;
    use modejump::{Error, Result};
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};
    use serde_json::{json, Value};
    use std::ops::RangeInclusive;
    use std::path::{Path, PathBuf};
    use std::time::{Duration, Instant};

    /// Multiple of its temperature at which a run has blown up.
    const HOT: f64 = 3.0;
    const REMEDY: &str = "use a smaller --timestep, or check the starting structure";

    /// Adds the steps to an error of the engine or of a move, most of which come from numbers that are not finite.
    pub fn failed(error: Error, steps: RangeInclusive<u64>) -> Error {
        let (first, last) = steps.into_inner();
        Error::Engine(format!("in steps {first} to {last}: {error}; if the run has blown up, {REMEDY}"))
    }

    /// Errors: a signal ended the run before its first frame, so there is nothing to report.
    pub fn require_frames(record: &Record, all: u64, checkpoint: Option<&Path>) -> Result<()> {
        let kept = match checkpoint {
            Some(_) => "run the same command again to continue from --checkpoint",
            None => "nothing was recorded or written",
        };
        match record.n() == 0 && all > 0 {
            true => Err(Error::Engine(format!("interrupted before the first frame: {kept}"))),
            false => Ok(()),
        }
    }

    /// Number of time steps that take about a second, so that a signal does not wait for longer.
    pub struct Pace(u64);

    impl Pace {
        pub fn new() -> Pace {
            Pace(16)
        }

        /// Makes at most `most` steps with `step`; returns how many.
        pub fn advance(&mut self, most: u64, step: impl FnOnce(u64) -> Result<()>) -> Result<u64> {
            let (n, start) = (self.0.min(most), Instant::now());
            step(n)?;
            match start.elapsed().as_secs_f64() {
                ..0.5 if n == self.0 => self.0 *= 2,
                1.0.. => self.0 = (self.0 / 2).max(1),
                _ => (),
            }
            Ok(n)
        }
    }

    /// Errors: a signal ended the run early, so that what follows it in a script does not start. Called after the
    /// report.
    pub fn require_whole(done: u64, all: u64, what: &str) -> Result<()> {
        match done < all {
            true => Err(Error::Engine(format!("interrupted after {done} of {all} {what}"))),
            false => Ok(()),
        }
    }

    /// State at --checkpoint from which a run continues, if there is one, with a message that says so. `what` names the
    /// option that asks for `all`, of which `done` are done. Errors: the state of another run, or of a longer one.
    pub fn earlier<T: DeserializeOwned>(
        path: Option<&Path>,
        kind: Kind,
        identity: &Identity,
        (what, all): (&str, u64),
        done: impl Fn(&T) -> u64,
    ) -> Result<Option<T>> {
        let Some(path) = path else { return Ok(None) };
        claim(path)?;
        let Some(saved) = checkpoint::load_run(path, kind, identity)? else { return Ok(None) };
        let done = done(&saved);
        if done > all {
            return Err(Error::file(path, format!("has already done {done} {what}, but --{what} is {all}")));
        }
        if done > 0 {
            eprintln!("resuming after {done} {what}");
        }
        Ok(Some(saved))
    }

    impl Dynamics {
        /// Adds the options to the identity of a run, which continues only with the same values.
        pub fn identify(&self, run: Identity) -> Identity {
            let Dynamics { friction, timestep, seed, platform } = self;
            run.with("--seed", seed)
                .with("--timestep", timestep)
                .with("--friction", friction)
                .with("--platform", platform)
        }

        /// Simulation options at a temperature, K.
        pub fn at(&self, temperature: f64) -> SimulationOptions {
            SimulationOptions {
                temperature,
                friction: self.friction,
                timestep: self.timestep,
                seed: self.seed,
                platform: self.platform.clone(),
                threads: 1,
            }
        }
    }

    /// Schedule on which frames are written during a run, so that a killed run loses a minute at most: every minute,
    /// and for at most a tenth of the time.
    pub struct Kept {
        last: Instant,
        wait: Duration,
        /// False for pipes and devices: a second write would repeat the frames.
        files: bool,
    }

    impl Kept {
        pub fn of(outputs: &[PathBuf]) -> Kept {
            let files = !outputs.iter().any(|path| is_special(path));
            Kept { last: Instant::now(), wait: CHECKPOINT_INTERVAL, files }
        }

        /// Writes if it is time. A failure is reported, and the run goes on: there may be room at its end.
        pub fn when_due(&mut self, write: impl FnOnce() -> Result<()>) {
            if !self.files || self.last.elapsed() < self.wait {
                return;
            }
            let beginning = Instant::now();
            if let Err(e) = write() {
                eprintln!("modejump: {e}; the run continues and will try again");
            }
            self.last = Instant::now();
            self.wait = CHECKPOINT_INTERVAL.max(10 * (self.last - beginning));
        }
    }

    #[derive(Default, Serialize, Deserialize)]
    pub struct Record {
        /// Number of steps done when the last frame was taken.
        pub steps: u64,
        /// Number of steps done when each frame was taken.
        at: Vec<u64>,
        /// Positions; empty if they are not needed.
        frames: Frames,
        /// Potential energies, kJ/mol.
        energy: Vec<f64>,
        /// Instantaneous temperatures, K.
        temperature: Vec<f64>,
    }

    impl Record {
        /// Records a frame after this many steps, with positions only if they are kept. Errors: the run has blown up;
        /// the frame is then not recorded.
        pub fn take(&mut self, simulation: &mut Simulation, steps: u64, keeps_positions: bool) -> Result<()> {
            let (energy, temperature) = (simulation.potential_energy()?, simulation.temperature()?);
            if !energy.is_finite() || !temperature.is_finite() {
                return Err(Error::Engine(format!(
                    "at step {steps} the potential energy is {energy} kJ/mol and the temperature {temperature} K: {REMEDY}"
                )));
            }
            self.steps = steps;
            if keeps_positions {
                let Frames { dimension, x, boxes } = &mut self.frames;
                *dimension = 3 * simulation.n_particles();
                let start = x.len();
                x.resize(start + *dimension, 0.0);
                simulation.positions(&mut x[start..])?;
                // no box if a force does not report whether it is periodic
                boxes.extend(simulation.box_vectors().ok().flatten());
            }
            self.energy.push(energy);
            self.temperature.push(temperature);
            self.at.push(steps);
            Ok(())
        }

        /// Writes the trajectory of this dynamics, with reduced potentials or times if the format has room for them.
        pub fn write(&self, path: &Path, topology: &Topology, dynamics: &SimulationOptions) -> Result<()> {
            let u: Vec<f64> = self.energy.iter().map(|e| e / thermal_energy(dynamics.temperature)).collect();
            let clock = Clock { steps: &self.at, timestep: dynamics.timestep };
            let kelvin = vec![dynamics.temperature; u.len()];
            let beside = [("reduced_potential", &u[..]), ("temperature", &kelvin)];
            trajectory::write_timed(path, &self.frames, clock, Some(topology), &beside)
        }

        /// Drops the last frame unless its step is a multiple of `interval`: it was the end of a run that now goes on.
        pub fn go_on_every(&mut self, interval: u64) {
            if self.steps % interval == 0 {
                return;
            }
            let n = self.n() - 1;
            self.at.truncate(n);
            self.energy.truncate(n);
            self.temperature.truncate(n);
            self.frames.x.truncate(n * self.frames.dimension);
            self.frames.boxes.truncate(n);
            self.steps = self.at.last().copied().unwrap_or(0);
        }

        pub fn n(&self) -> usize {
            self.energy.len()
        }

        /// Warns if the instantaneous temperatures are far from the one asked for, as in a run that is slowly blowing
        /// up.
        pub fn warn_of_heat(&self, kelvin: f64) {
            let mean = self.temperature.iter().sum::<f64>() / self.n() as f64;
            if mean > HOT * kelvin {
                eprintln!("modejump: the mean temperature is {mean:.3e} K, but {kelvin} K was requested: the run has blown up; {REMEDY}");
            }
        }

        /// Means ⟨U⟩ (kJ/mol) and ⟨T⟩ (K). None for a handful of frames, which have no meaningful mean: no reason to
        /// fail the run.
        pub fn means(&self) -> Option<[Estimate; 2]> {
            Some([mean_of_series(&self.energy).ok()?, mean_of_series(&self.temperature).ok()?])
        }
    }

    /// Topology, positions and System from which a run starts; the box is that of the System, with a warning if the
    /// topology has another. Errors: those of [`check_start`], and a System with another number of particles than the
    /// topology has atoms, or with masses that do not match them.
    pub fn start(topology: &Path, system: &Path) -> Result<(Topology, Vec<f64>, System)> {
        let (pdb, xml) = (topology, system);
        let (topology, x0) = Topology::from_pdb(pdb)?;
        check_start(pdb, &topology, &x0)?;
        let system = read_system(xml)?;
        require_atoms(xml, &system, &topology)?;
        warn_of_box(pdb, xml, &system)?;
        Ok((topology, x0, system))
    }

    /// Adds u_mean, u_stderr, t_mean and t_stderr to a summary.
    pub fn add_means(summary: &mut Value, [u, t]: &[Estimate; 2]) {
        for (name, mean) in [("u", u), ("t", t)] {
            summary[format!("{name}_mean")] = json!(mean.value);
            summary[format!("{name}_stderr")] = json!(mean.standard_error);
        }
    }

    /// Text of the means and their errors.
    pub fn show_means([u, t]: &[Estimate; 2]) -> String {
        let [u, du, t, dt] = [u.value, u.standard_error, t.value, t.standard_error];
        format!("<U> = {u:.2} ± {du:.2} kJ/mol, <T> = {t:.1} ± {dt:.1} K")
    }

    /// Warns of the memory that it takes to keep this many frames until they are written.
    pub fn tell_of_memory(frames: u64, particles: usize) {
        let gigabytes = 24e-9 * frames as f64 * particles as f64;
        if gigabytes > 1.0 {
            eprintln!(
                "note: recording {frames} frames of {particles} particles takes {gigabytes:.1} GB of memory, and half as much again while they are written; \
                 increase the number of steps between frames to reduce it"
            );
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn frames_are_kept_when_they_are_due() {
            let mut kept = Kept::of(&[PathBuf::from("run.dcd")]);
            let mut written = 0;
            kept.when_due(|| {
                written += 1;
                Ok(())
            });
            assert_eq!(written, 0, "the first minute is not over");
            kept.wait = Duration::ZERO;
            kept.when_due(|| {
                written += 1;
                Err(Error::invalid("a full disk"))
            });
            assert_eq!((written, kept.wait), (1, CHECKPOINT_INTERVAL));
            let mut kept = Kept { wait: Duration::ZERO, ..Kept::of(&[PathBuf::from("/dev/null")]) };
            kept.when_due(|| panic!("what is no file is written to once"));
        }
    }
}
