//! The run: the engine with its moves, frames and checkpoints.

use super::Md;
use crate::common::{
    hash_of, interrupted, load, mark, require_order, warn_of_labels, warn_of_temperature, watch_signals, Progress,
};
use crate::dynamics::{earlier, failed, require_frames, require_whole, start, tell_of_memory, Kept, Pace, Record};
use modejump::coordinates::vector::atom;
use modejump::coordinates::Topology;
use modejump::engines::openmm::{JumpingSimulation, Simulation, Solute, System};
use modejump::io::checkpoint::{self, Identity, Kind};
use modejump::io::{check_apart, check_writable, trajectory};
use modejump::moves::{make_whole, Options, Statistics};
use modejump::rng::{Stream, StreamId};
use modejump::Result;
use serde::{Deserialize, Serialize};
use std::time::Instant;

const RUN: Kind = Kind { magic: *b"MJ-MDRUN", version: 8 };

/// State from which a run continues.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    /// Steps done, those of the equilibration first.
    done: u64,
    /// OpenMM's checkpoint.
    simulation: Vec<u8>,
    jumps: Option<(Statistics, [u64; 2])>,
    record: Record,
    /// Time of the steps after the equilibration, s.
    wall: f64,
}

pub(super) enum Engine {
    Plain(Simulation),
    Jumping(Box<JumpingSimulation>),
}

impl Engine {
    fn step(&mut self, n: u64) -> Result<()> {
        match self {
            Engine::Plain(simulation) => simulation.step(n as usize),
            Engine::Jumping(jumping) => jumping.step(n),
        }
    }

    fn simulation(&mut self) -> &mut Simulation {
        match self {
            Engine::Plain(simulation) => simulation,
            Engine::Jumping(jumping) => &mut jumping.simulation,
        }
    }

    fn statistics(&self) -> Option<&Statistics> {
        match self {
            Engine::Plain(_) => None,
            Engine::Jumping(jumping) => Some(jumping.jump().statistics()),
        }
    }

    /// Statistics of the jumps, and numbers of relaxations: tried, accepted.
    fn jumps(&self) -> Option<(Statistics, [u64; 2])> {
        match self {
            Engine::Plain(_) => None,
            Engine::Jumping(jumping) => Some((jumping.jump().statistics().clone(), jumping.relaxations())),
        }
    }

    fn go_on_from(&mut self, simulation: &[u8], jumps: Option<(Statistics, [u64; 2])>) -> Result<()> {
        if let (Engine::Jumping(jumping), Some((statistics, relaxations))) = (&mut *self, jumps) {
            jumping.count_from(statistics, relaxations);
        }
        self.simulation().load_checkpoint(simulation)
    }
}

impl Md {
    pub fn run(self) -> Result<()> {
        self.check_options()?;
        watch_signals()?;
        let (topology, x0, system) = start(&self.topology, &self.system)?;
        let given = || [&self.topology, &self.system].into_iter().chain(&self.model).chain(&self.screen);
        if let Some(path) = &self.output {
            check_apart(path, given().chain(&self.checkpoint))?;
            trajectory::check(path, x0.len(), Some(&topology))?;
        }
        if self.keeps_positions() {
            tell_of_memory(self.steps.div_ceil(self.record), system.n_particles());
        }
        let mut engine = self.engine(&system, &topology, &x0)?;
        let identity = self.identity()?;
        let done = |saved: &Saved| saved.done.saturating_sub(self.equilibrate);
        let before = earlier(self.checkpoint.as_deref(), RUN, &identity, ("steps", self.steps), done)?;
        let mut saved = match before {
            Some(mut before) => {
                if system.has_barostat() {
                    eprintln!("modejump: the System has a barostat, which counts steps from zero again: the run continues, but not bit for bit");
                }
                engine.go_on_from(&before.simulation, before.jumps.clone())?;
                if before.done < self.equilibrate {
                    eprintln!("resuming after {} equilibration steps", before.done);
                }
                if done(&before) < self.steps {
                    before.record.go_on_every(self.record);
                }
                before
            }
            None => {
                if let Some(path) = &self.checkpoint {
                    check_apart(path, given())?;
                    check_writable(path)?;
                }
                let simulation = engine.simulation();
                simulation.set_positions(&x0)?;
                simulation.minimise(10.0, 500)?;
                simulation.redraw_velocities(&mut Stream::new(self.dynamics.seed, StreamId::Velocity, u64::MAX, 0))?;
                Saved::default()
            }
        };
        let dynamics = self.dynamics.at(self.temperature);
        let write = |record: &Record| match &self.output {
            Some(path) if record.n() > 0 => record.write(path, &topology, &dynamics),
            _ => Ok(()),
        };
        let mut kept = Kept::of(self.output.as_slice());
        let keep = |engine: &mut Engine, saved: &mut Saved| -> Result<()> {
            let Some(path) = &self.checkpoint else { return Ok(()) };
            (saved.simulation, saved.jumps) = (engine.simulation().checkpoint()?, engine.jumps());
            checkpoint::save_run(path, RUN, &identity, saved)
        };
        let run = self.record_run(&mut engine, &mut saved, &mut |engine, saved| {
            kept.when_due(|| write(&saved.record).and(keep(engine, saved)))
        });
        // the frames before a failure are kept, and the report is printed even if the disk is full by now
        let written = write(&saved.record);
        run?;
        let written = written.and(keep(&mut engine, &mut saved));
        if let Err(interrupted) = require_frames(&saved.record, self.steps, self.checkpoint.as_deref()) {
            return written.and(Err(interrupted));
        }
        self.report(&engine, &saved.record, saved.wall)?;
        written.and(require_whole(done(&saved), self.steps, "steps"))
    }

    /// Identity of the run: everything that changes its results, except the number of steps.
    fn identity(&self) -> Result<Identity> {
        let files = [
            ("file for --topology", Some(&self.topology)),
            ("file for --system", Some(&self.system)),
            ("file for --model", self.model.as_ref()),
            ("file for --screen", self.screen.as_ref()),
        ];
        let mut run = Identity::default();
        for (name, path) in files.into_iter().filter_map(|(name, path)| Some((name, path?))) {
            run = run.with_content(name, hash_of(path)?);
        }
        let run = self.dynamics.identify(run).with("--temperature", self.temperature);
        let run = run.with("--record", self.record).with("--equilibrate", self.equilibrate);
        Ok(self.identify_jumps(run))
    }

    fn engine(&self, system: &System, topology: &Topology, x0: &[f64]) -> Result<Engine> {
        let dynamics = self.dynamics.at(self.temperature);
        let Some(path) = &self.model else { return Ok(Engine::Plain(Simulation::new(system, &dynamics)?)) };
        let model = self.decoding.of(load(path, &self.precision)?)?;
        let method = self.method(model.as_ref())?;
        warn_of_temperature(model.as_ref(), self.temperature, "jumps");
        if system.holds_centre_of_mass_in_a_field() {
            eprintln!(
                "modejump: the System has a CMMotionRemover, and a CustomExternalForce or massless particles: the dynamics keeps the centre of mass fixed, \
                 but jumps do not, so averages depend on how often jumps are attempted; remove the CMMotionRemover"
            );
        }
        if let Some(error) = model.integration_error()? {
            eprintln!("log q of a sample differs by {error:.1e} between forward and backward integration");
        }
        let options = Options {
            n_proposals: self.proposals,
            seed: self.dynamics.seed,
            draw_ahead: self.draw_ahead,
            ..Options::default()
        };
        let solute = self.solute.as_ref().map(|ranges| Solute {
            particles: ranges.iter().cloned().flatten().take(system.n_particles() + 1).collect(),
            relaxation_steps: self.relaxation_steps(),
            relaxation_timestep: self.relaxation_timestep(),
        });
        let described = (&model, solute);
        let jumping = JumpingSimulation::new(system, &dynamics, described, method, self.frequency, options)?;
        require_order(&self.topology, &self.described(topology), model.as_ref())?;
        let mut x: Vec<f64> = self.described_atoms(topology.n_atoms()).flat_map(|i| atom(x0, i)).collect();
        make_whole(model.as_ref(), system.box_vectors()?.as_ref(), &mut x)?;
        warn_of_labels(&self.topology, model.as_ref(), &x)?;
        Ok(Engine::Jumping(Box::new(jumping)))
    }

    /// Indices below n of the atoms that the model describes.
    fn described_atoms(&self, n: usize) -> impl Iterator<Item = usize> + '_ {
        let all = 0..=n.saturating_sub(1);
        let ranges = self.solute.as_ref().map_or_else(|| vec![all], |ranges| ranges.clone());
        ranges.into_iter().flatten().take_while(move |&i| i < n)
    }

    /// Names, elements and residues of the atoms that the model describes.
    fn described(&self, all: &Topology) -> Topology {
        let of = |list: &[String]| self.described_atoms(all.n_atoms()).map(|i| list[i].clone()).collect();
        let [names, elements, residues] = [&all.names, &all.elements, &all.residues].map(|list| of(list));
        Topology { names, elements, residues, bonds: Vec::new() }
    }

    fn keeps_positions(&self) -> bool {
        self.output.is_some() || self.checkpoint.is_some()
    }

    /// Makes the steps, of which those after the equilibration are recorded; `after` gets engine and record now and
    /// then, and after every frame.
    fn record_run(
        &self,
        engine: &mut Engine,
        saved: &mut Saved,
        after: &mut dyn FnMut(&mut Engine, &mut Saved),
    ) -> Result<()> {
        let mut pace = Pace::new();
        let mut progress = Progress::new(self.equilibrate, "equilibration steps");
        while saved.done < self.equilibrate && !interrupted() {
            self.advance(engine, saved, &mut pace, (0, self.equilibrate))?;
            progress.show(saved.done, String::new());
            after(engine, saved);
        }
        progress.end();
        let mut progress = Progress::new(self.steps, "steps");
        while saved.done < self.equilibrate + self.steps && !interrupted() {
            let (done, start) = (saved.done - self.equilibrate, Instant::now());
            let next = (done - done % self.record + self.record).min(self.steps);
            self.advance(engine, saved, &mut pace, (self.equilibrate, next))?;
            if saved.done - self.equilibrate == next {
                saved.record.take(engine.simulation(), next, self.keeps_positions())?;
            }
            saved.wall += start.elapsed().as_secs_f64();
            after(engine, saved);
            let accepted = engine.statistics().map(|statistics| {
                let mark = mark(statistics.likelihood().name());
                format!("accepted {:.0} %{mark}", 100.0 * statistics.acceptance())
            });
            progress.show(saved.done - self.equilibrate, accepted.unwrap_or_default());
        }
        progress.end();
        Ok(())
    }

    /// Makes steps for about a second, at most until `to` of those after the first `before` are done.
    fn advance(&self, engine: &mut Engine, saved: &mut Saved, pace: &mut Pace, (before, to): (u64, u64)) -> Result<()> {
        let done = saved.done - before;
        let n = pace.advance(to - done, |n| engine.step(n).map_err(|e| failed(e, done + 1..=done + n)))?;
        saved.done += n;
        Ok(())
    }
}
