//! A part of a [`Simulation`] as a target of moves, together with its environment.

use cxx::UniquePtr;

use super::{bridge, Simulation};
use crate::error::{Error, Result};
use crate::target::Target;
use crate::units::thermal_energy;

/// The particles that a model describes; the others stay in place or, on the path of a driven move, relax.
#[derive(Clone, Debug)]
pub struct Solute {
    /// Indices in the System, in the order of the model's atoms.
    pub particles: Vec<usize>,
    /// Leapfrog steps of each Hamiltonian Monte Carlo trajectory by which the others relax on a driven path.
    pub relaxation_steps: usize,
    /// Time step of these, ps.
    pub relaxation_timestep: f64,
}

impl Solute {
    /// A solute of these particles, with the plugin's default relaxations: 20 steps of 1 fs.
    pub fn of(particles: Vec<usize>) -> Solute {
        Solute { particles, relaxation_steps: 20, relaxation_timestep: 0.001 }
    }

    /// Errors: particles that are not in the System or occur twice, relaxations out of range.
    fn check(&self, n_particles: usize) -> Result<()> {
        let mut seen = vec![false; n_particles];
        for &particle in &self.particles {
            match seen.get_mut(particle) {
                Some(seen @ false) => *seen = true,
                Some(_) => return Err(Error::invalid(format!("particle {particle} is in the solute twice"))),
                None => {
                    let message = format!(
                        "particle {particle} of the solute is out of range: the System has {n_particles} particles, \
                         counted from 0"
                    );
                    return Err(Error::invalid(message));
                }
            }
        }
        let steps = (1..=1 << 20).contains(&self.relaxation_steps);
        if !(steps && self.relaxation_timestep > 0.0 && self.relaxation_timestep.is_finite()) {
            return Err(Error::invalid(format!(
                "relaxations of {} steps of {} ps are out of range: use 1 to {} steps of positive length",
                self.relaxation_steps,
                self.relaxation_timestep,
                1 << 20
            )));
        }
        Ok(())
    }
}

/// u(x, e) of a solute at x in an environment e: that of the [`Simulation`] at the last [`Solvent::begin`], as relaxed
/// since.
pub(super) struct Solvent {
    inner: UniquePtr<bridge::Solvent>,
    dimension: usize,
    kt: f64,
    seed: u64,
}

impl Solvent {
    pub(super) fn new(simulation: &mut Simulation, solute: &Solute, seed: u64) -> Result<Solvent> {
        solute.check(simulation.n_particles())?;
        let particles: Vec<u64> = solute.particles.iter().map(|&particle| particle as u64).collect();
        let inner = bridge::new_solvent(
            simulation.inner.pin_mut(),
            &particles,
            solute.relaxation_steps,
            solute.relaxation_timestep,
        )?;
        Ok(Solvent { inner, dimension: 3 * particles.len(), kt: thermal_energy(simulation.temperature), seed })
    }

    /// Starts the attempt at this step: takes the environment from the simulation.
    pub(super) fn begin(&mut self, simulation: &mut Simulation, step: u64) -> Result<()> {
        Ok(self.inner.pin_mut().begin(simulation.inner.pin_mut(), self.kt, self.seed, step)?)
    }

    /// Positions of all particles `x[particles][3]`, nm, at the last energy evaluation.
    pub(super) fn positions(&self, x: &mut [f64]) -> Result<()> {
        Ok(self.inner.get_positions(x)?)
    }

    /// Number of trajectories of the environment, and of those accepted.
    pub(super) fn relaxations(&self) -> [u64; 2] {
        [self.inner.trajectories(), self.inner.accepted()]
    }
}

impl Target for Solvent {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        for (x, u) in x.chunks_exact(self.dimension).zip(u) {
            *u = self.inner.pin_mut().energy_at(x)? / self.kt;
        }
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, _: &[f64], _: &mut [f64], _: &mut [f64]) -> Result<()> {
        Err(Error::Unsupported(
            "gradients are not available for part of a System: use jumps or driven moves, without annealed paths or \
             trajectories"
                .into(),
        ))
    }

    fn relax(&mut self, x: &[f64], stage: u32) -> Result<f64> {
        Ok(self.inner.pin_mut().relax(x, stage)? / self.kt)
    }
}
