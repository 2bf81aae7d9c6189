//! Molecular dynamics with generator jumps, driven from Rust: a [`Simulation`] in which every `frequency`-th step is
//! followed by a move attempt on all particles, or on those of a solute.

use super::solvent::{Solute, Solvent};
use super::{OpenMmTarget, Simulation, SimulationOptions, System};
use crate::error::{Error, Result};
use crate::models::steering::dimension_without_auxiliary;
use crate::models::Model;
use crate::moves::{check_box, Method, Move, Options, Outcome, State, Statistics};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use std::sync::Arc;

/// Errors: a method that needs gradients, for a part of a System, which has energies only.
fn check_gradients(method: &Method, is_part: bool) -> Result<()> {
    let what = match method {
        Method::Annealed(_) if is_part => "an annealed path (--anneal)",
        Method::LatentWalk(walk) if is_part && walk.leapfrog > 0 => "a latent-space trajectory (--leapfrog)",
        _ => return Ok(()),
    };
    Err(Error::Unsupported(format!(
        "{what} requires gradients, but a solute in a larger System (--solute) only has energies: remove that option, \
         or use a driven move (--driven)"
    )))
}

/// Langevin dynamics with jumps of one molecule, which is the System or a part of it.
pub struct JumpingSimulation {
    // dropped before the simulation, whose Context a solvent's own is linked to
    target: Energies,
    pub simulation: Simulation,
    jump: Box<dyn Move>,
    frequency: u64,
    seed: u64,
    /// Relaxation counts carried over from an earlier run.
    earlier_relaxations: [u64; 2],
    /// Positions of all particles, and of those that jump.
    x: [Vec<f64>; 2],
}

/// u as a function of the positions that jump.
enum Energies {
    Whole(OpenMmTarget),
    Part(Solvent, Solute),
}

impl JumpingSimulation {
    /// Sets up the simulation. `options.stride` is set to `frequency`, the steps between attempts. Without a `solute`
    /// the model describes the whole System.
    ///
    /// A steerable model is taken to the temperature of the dynamics.
    ///
    /// Errors: numbers of particles and atoms that differ, a particle without mass, a constraint that the model does
    /// not keep (named) or that ties the solute to the rest, frequency 0, a driven move of all particles, a move along
    /// gradients of a part, a second model of another dimension.
    pub fn new(
        system: &System,
        dynamics: &SimulationOptions,
        (model, solute): (&Arc<dyn Model>, Option<Solute>),
        method: Method,
        frequency: u64,
        options: Options,
    ) -> Result<JumpingSimulation> {
        if frequency == 0 {
            return Err(Error::invalid("the frequency of jumps must not be 0; to run without jumps, remove the model"));
        }
        let all: Vec<usize> = (0..system.n_particles()).collect();
        let particles = solute.as_ref().map_or(&all, |solute| &solute.particles);
        let atoms = dimension_without_auxiliary(model.as_ref()) / 3;
        if particles.len() != atoms {
            let those = if solute.is_some() { "the solute" } else { "the System" };
            return Err(Error::Unsupported(format!(
                "{those} has {} particles, but the model has {atoms} atoms: specify the particles that the model \
                 describes as the solute (`modejump md --solute`), or use the model of this molecule",
                particles.len()
            )));
        }
        if let Method::Driven(steps) = method {
            if particles.len() == all.len() {
                return Err(Error::invalid(
                    "a driven move requires a solute that is only part of the System: otherwise there is no \
                     environment to relax",
                ));
            }
            if (2 * all.len() + 1).saturating_mul(steps) > u32::MAX as usize {
                return Err(Error::invalid(format!(
                    "a driven move of {steps} steps requires more random numbers than an attempt has"
                )));
            }
        }
        system.require_free(particles)?;
        if system.is_periodic()? {
            check_box(model.as_ref())?;
        }
        check_gradients(&method, solute.is_some())?;
        let options = Options { stride: frequency, partial: particles.len() < all.len(), ..options };
        let mut jump = method.make(model, options, system.constraints_of(model.as_ref(), particles)?)?;
        jump.set_temperature(dynamics.temperature)?;
        let x = [&all, particles].map(|particles| vec![0.0; 3 * particles.len()]);
        let mut simulation = Simulation::new(system, dynamics)?;
        let target = match solute {
            None => Energies::Whole(OpenMmTarget::on_platform(system, dynamics.temperature, 1, &dynamics.platform)?),
            Some(solute) => Energies::Part(Solvent::new(&mut simulation, &solute, options.seed)?, solute),
        };
        Ok(JumpingSimulation {
            target,
            simulation,
            jump,
            frequency,
            seed: options.seed,
            earlier_relaxations: [0; 2],
            x,
        })
    }

    /// Advances `n` time steps, with the attempts that fall due.
    pub fn step(&mut self, n: u64) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let now = self.simulation.step_count()?;
            let run = (self.frequency - now % self.frequency).min(left);
            self.simulation.step(run as usize)?;
            left -= run;
            if (now + run).is_multiple_of(self.frequency) {
                self.attempt(now + run)?;
            }
        }
        Ok(())
    }

    fn attempt(&mut self, step: u64) -> Result<Outcome> {
        let JumpingSimulation { target, simulation, jump, x: [all, x], .. } = self;
        simulation.positions(all)?;
        let box_vectors = simulation.box_vectors()?;
        let energies: &mut dyn Target = match target {
            Energies::Whole(target) => {
                x.copy_from_slice(all);
                // a barostat may have changed the box
                box_vectors.iter().try_for_each(|vectors| target.set_box_vectors(vectors))?;
                target
            }
            Energies::Part(solvent, solute) => {
                for (x, &particle) in x.chunks_exact_mut(3).zip(&solute.particles) {
                    x.copy_from_slice(&all[3 * particle..3 * particle + 3]);
                }
                solvent.begin(simulation, step)?;
                solvent
            }
        };
        let mut u = [0.0];
        energies.reduced_potential(x, &mut u)?;
        let mut state = State { x, box_vectors, reduced_potential: u[0], step, replica: 0 };
        let outcome = jump.attempt(energies, &mut state)?;
        if outcome.accepted() {
            match target {
                Energies::Whole(_) => all.copy_from_slice(x),
                Energies::Part(solvent, solute) => {
                    solvent.positions(all)?;
                    for (x, &particle) in x.chunks_exact(3).zip(&solute.particles) {
                        all[3 * particle..3 * particle + 3].copy_from_slice(x);
                    }
                }
            }
            simulation.set_positions(all)?;
            simulation.redraw_velocities(&mut Stream::new(self.seed, StreamId::Velocity, step, 0))?;
        }
        Ok(outcome)
    }

    /// Number of trajectories by which the environment relaxed on driven paths, and number of those accepted.
    pub fn relaxations(&self) -> [u64; 2] {
        let here = match &self.target {
            Energies::Whole(_) => [0; 2],
            Energies::Part(solvent, _) => solvent.relaxations(),
        };
        std::array::from_fn(|i| here[i] + self.earlier_relaxations[i])
    }

    /// Continues the counts of an earlier run.
    pub fn count_from(&mut self, statistics: Statistics, relaxations: [u64; 2]) {
        *self.jump.statistics_mut() = statistics;
        self.earlier_relaxations = relaxations;
    }

    pub fn jump(&self) -> &dyn Move {
        self.jump.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{about, chain};
    use super::*;
    use crate::annealing::{even, Kernel};
    use crate::moves::{LatentWalkOptions, Path};
    use crate::units::thermal_energy;
    use std::path::PathBuf;

    const ROW: [f64; 9] = [0.0, 0.0, 0.0, 0.4, 0.0, 0.0, 0.8, 0.0, 0.0];

    /// After an acceptance the environment stays as relaxed, with random numbers that belong to the attempt.
    #[test]
    fn what_gave_way_stays_there_after_an_acceptance() {
        let (system, solute) = (chain(3, ""), Solute::of(vec![0]));
        let (dynamics, kt) = (SimulationOptions::default(), thermal_energy(300.0));
        // proposals at the current position, so that each is accepted
        let model = about(&ROW[..3], 1e-6);
        let options = Options::default();
        let mut jumping =
            JumpingSimulation::new(&system, &dynamics, (&model, Some(solute)), Method::Driven(3), 10, options).unwrap();
        let environments = [10, 20].map(|step| {
            jumping.simulation.set_positions(&ROW).unwrap();
            let outcome = jumping.attempt(step).unwrap();
            assert!(outcome.accepted(), "{outcome:?}");
            let energy = jumping.simulation.potential_energy().unwrap();
            assert!((energy / kt - outcome.reduced_potential).abs() < 1e-9, "{energy} {outcome:?}");
            let mut x = ROW;
            jumping.simulation.positions(&mut x).unwrap();
            x
        });
        let moved = |a: &[f64; 9], b: &[f64; 9]| (3..9).map(|k| (a[k] - b[k]).abs()).fold(0.0, f64::max);
        let [first, second] = &environments;
        assert!(
            moved(first, &ROW) > 1e-3 && moved(second, &ROW) > 1e-3 && moved(first, second) > 1e-3,
            "{environments:?}"
        );
    }

    /// Energies use the box as changed by a barostat, and attempts fall due however the steps are divided.
    #[test]
    fn attempts_are_in_the_box_of_the_moment() {
        let barostat = r#"<Force forceGroup="0" frequency="1" name="MonteCarloBarostat" pressure="1" randomSeed="1" temperature="300"
            type="MonteCarloBarostat" version="1"/>"#;
        let (system, x) = (chain(2, barostat), [0.1, 0.0, 0.0, 1.7, 0.0, 0.0]);
        let (dynamics, model) = (SimulationOptions::default(), about(&x, 0.05));
        let mut jumping = JumpingSimulation::new(
            &system,
            &dynamics,
            (&model, None),
            Method::Independence { rotations: None },
            6,
            Options::default(),
        )
        .unwrap();
        jumping.simulation.set_positions(&x).unwrap();
        (0..30).for_each(|_| jumping.step(4).unwrap());
        assert_eq!(jumping.jump().statistics().attempts(), 20);
        let box_vectors = jumping.simulation.box_vectors().unwrap().unwrap();
        assert!((box_vectors[0][0] - 2.0).abs() > 1e-3, "{box_vectors:?}");
        let outcome = jumping.attempt(120).unwrap();
        let energy = jumping.simulation.potential_energy().unwrap() / thermal_energy(300.0);
        assert!((energy - outcome.reduced_potential).abs() < 1e-9, "{energy} {outcome:?}");
    }

    /// Refused before any work, with a message that says what to leave out.
    #[test]
    fn what_needs_the_whole_of_a_system_or_more_than_the_model_is_refused() {
        let path = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name);
        let system = System::from_xml_file(path("system-vacuum.xml")).unwrap();
        let model = crate::models::load(path("model-vacuum.safetensors")).unwrap();
        let refusal = |method: Method, solute: Option<Solute>| {
            let (options, dynamics) = (Options::default(), SimulationOptions::default());
            let made = JumpingSimulation::new(&system, &dynamics, (&model, solute), method, 10, options);
            made.err().map(|e| e.to_string()).unwrap_or_default()
        };
        let whole = || Some(Solute::of((0..22).collect()));
        let annealed = Method::Annealed(Path { kernel: Kernel::Adjusted, stages: even(2, 1e-6), moves: 1 });
        let walk = |leapfrog| Method::LatentWalk(LatentWalkOptions { leapfrog, ..Default::default() });
        assert!(refusal(annealed.clone(), whole()).contains("--anneal") && refusal(annealed, None).is_empty());
        assert!(refusal(walk(2), whole()).contains("--leapfrog") && refusal(walk(0), whole()).is_empty());
        for solute in [whole(), None] {
            assert!(refusal(Method::Driven(5), solute.clone()).contains("there is no environment to relax"));
            // refused by the model: one of the shape has no orientation to average over
            assert!(refusal(Method::Independence { rotations: Some(4) }, solute).contains("orientation of a molecule"));
        }
    }

    #[test]
    fn a_solute_with_constraints_has_to_be_there() {
        let path = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/ala2").join(name);
        let system = System::from_xml_file(path("system-hbonds.xml")).unwrap();
        let model = crate::models::load(path("model-hbonds.safetensors")).unwrap();
        let refusal = |particles: Vec<usize>| {
            let (dynamics, described) = (SimulationOptions::default(), (&model, Some(Solute::of(particles))));
            let made = JumpingSimulation::new(
                &system,
                &dynamics,
                described,
                Method::Independence { rotations: None },
                10,
                Options::default(),
            );
            made.err().map(|e| e.to_string()).unwrap_or_default()
        };
        // the carbonyl carbon, which has no constraint
        let beyond = (0..22).map(|atom| if atom == 4 { 22 } else { atom }).collect();
        assert!(refusal(beyond).contains("particle 22 of the solute is out of range: the System has 22 particles"));
        let shifted = (1..23).collect();
        assert!(refusal(shifted).contains("is constrained to an atom outside the model"));
        assert_eq!(refusal((0..22).collect()), "");
    }
}
