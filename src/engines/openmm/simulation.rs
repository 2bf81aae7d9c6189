//! Langevin dynamics with OpenMM.

use cxx::UniquePtr;

use super::{bridge, System};
use crate::coordinates::whole::{box_from_slice, BoxVectors};
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::units::{thermal_energy, BOLTZMANN};

/// Settings of a [`Simulation`].
#[derive(Clone, Debug)]
pub struct SimulationOptions {
    /// Temperature, K.
    pub temperature: f64,
    /// Friction coefficient, 1/ps.
    pub friction: f64,
    /// Time step, ps.
    pub timestep: f64,
    /// Seed of the thermostat's noise.
    pub seed: u64,
    /// OpenMM platform: `Reference`, `CPU`, `OpenCL`, `CUDA`, …
    pub platform: String,
    /// Threads of the `CPU` platform, 0 = OpenMM's choice.
    pub threads: usize,
}

impl Default for SimulationOptions {
    fn default() -> SimulationOptions {
        SimulationOptions {
            temperature: 300.0,
            friction: 1.0,
            timestep: 0.001,
            seed: 1,
            platform: "Reference".to_string(),
            threads: 1,
        }
    }
}

/// A running simulation with the LangevinMiddle integrator.
pub struct Simulation {
    pub(super) inner: UniquePtr<bridge::Simulation>,
    masses: Vec<f64>,
    pub(super) temperature: f64,
}

impl Simulation {
    /// Errors: an unknown platform (the message lists those available), options out of range, a System that OpenMM
    /// refuses.
    pub fn new(system: &System, options: &SimulationOptions) -> Result<Simulation> {
        let checks = [
            ("temperature", options.temperature, options.temperature > 0.0),
            ("friction", options.friction, options.friction >= 0.0),
            ("timestep", options.timestep, options.timestep > 0.0),
        ];
        if let Some((name, value, _)) = checks.iter().find(|(_, value, ok)| !(*ok && value.is_finite())) {
            return Err(Error::invalid(format!("{name} = {value} is out of range")));
        }
        super::load_plugins()?;
        let inner = bridge::new_simulation(
            &system.inner,
            &options.platform,
            options.threads,
            options.temperature,
            options.friction,
            options.timestep,
            openmm_seed(options.seed),
        )?;
        Ok(Simulation { inner, masses: system.masses(), temperature: options.temperature })
    }

    /// Number of particles of the System, including virtual sites.
    pub fn n_particles(&self) -> usize {
        self.masses.len()
    }

    /// Advances `n` timesteps.
    pub fn step(&mut self, n: usize) -> Result<()> {
        // OpenMM counts in int.
        let mut left = n;
        while left > 0 {
            let chunk = left.min(1 << 30);
            self.inner.pin_mut().step(chunk)?;
            left -= chunk;
        }
        Ok(())
    }

    /// Number of steps made since the Context was created; part of a checkpoint.
    pub fn step_count(&self) -> Result<u64> {
        Ok(self.inner.step_count()? as u64)
    }

    /// Writes positions `x[particles][3]`, nm.
    pub fn positions(&mut self, x: &mut [f64]) -> Result<()> {
        Ok(self.inner.pin_mut().get_positions(x)?)
    }

    /// Sets positions `x[particles][3]`, nm, and places the virtual sites.
    pub fn set_positions(&mut self, x: &[f64]) -> Result<()> {
        Ok(self.inner.pin_mut().set_positions(x)?)
    }

    /// Writes velocities `v[particles][3]`, nm/ps, as the integrator stores them: half a step behind the positions.
    pub fn velocities(&mut self, v: &mut [f64]) -> Result<()> {
        Ok(self.inner.pin_mut().get_velocities(v)?)
    }

    /// Draws velocities from Maxwell–Boltzmann, converts them to the form that the integrator stores (half a step
    /// behind, see `set_drawn_velocities` in bridge.cpp) and projects them onto the constraints. Needed after every
    /// jump of the positions.
    pub fn redraw_velocities(&mut self, stream: &mut Stream) -> Result<()> {
        let kt = thermal_energy(self.temperature);
        let width = |mass: f64| if mass > 0.0 { (kt / mass).sqrt() } else { 0.0 };
        let v: Vec<f64> =
            self.masses.iter().flat_map(|&m| [width(m); 3]).map(|width| width * stream.normal()).collect();
        Ok(self.inner.pin_mut().set_drawn_velocities(&v)?)
    }

    /// Box vectors (nm), if the System is periodic.
    pub fn box_vectors(&self) -> Result<Option<BoxVectors>> {
        let mut flat = [0.0; 9];
        let periodic = self.inner.box_vectors(&mut flat)?;
        Ok(periodic.then(|| box_from_slice(&flat)))
    }

    /// Potential energy, kJ/mol.
    pub fn potential_energy(&mut self) -> Result<f64> {
        Ok(self.inner.pin_mut().potential_energy()?)
    }

    /// Kinetic energy, kJ/mol, by the integrator's own estimator.
    pub fn kinetic_energy(&mut self) -> Result<f64> {
        Ok(self.inner.pin_mut().kinetic_energy()?)
    }

    /// Instantaneous temperature, K: 2 E_kin / (k_B × degrees of freedom), where a CMMotionRemover takes 3 degrees of
    /// freedom.
    pub fn temperature(&mut self) -> Result<f64> {
        Ok(2.0 * self.kinetic_energy()? / (BOLTZMANN * self.inner.degrees_of_freedom()))
    }

    /// Minimises the energy until the forces' root mean square is below `tolerance` (kJ/(mol nm)); 0 iterations = no
    /// limit.
    pub fn minimise(&mut self, tolerance: f64, max_iterations: usize) -> Result<()> {
        Ok(self.inner.pin_mut().minimise(tolerance, max_iterations.min(i32::MAX as usize) as i32)?)
    }

    /// The complete state, including random numbers; valid for the same System, platform and OpenMM version.
    pub fn checkpoint(&mut self) -> Result<Vec<u8>> {
        Ok(self.inner.pin_mut().save_checkpoint()?)
    }

    /// Restores a [`Simulation::checkpoint`]; the run then continues bit for bit (Reference).
    pub fn load_checkpoint(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.inner.pin_mut().load_checkpoint(bytes)?)
    }
}

/// Seed for OpenMM, a positive int: 0 would make OpenMM choose one.
fn openmm_seed(seed: u64) -> i32 {
    match (seed ^ seed >> 31) as i32 & i32::MAX {
        0 => i32::MAX,
        seed => seed,
    }
}
