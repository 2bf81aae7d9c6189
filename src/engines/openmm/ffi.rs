//! Interface to C++. Every function that may throw returns `Result`; no exception leaves the bridge.

#[cxx::bridge(namespace = "modejump::openmm")]
pub mod bridge {
    unsafe extern "C++" {
        include!("modejump/src/engines/openmm/bridge.h");

        type System;
        type Evaluator;
        type Simulation;
        type Solvent;

        fn openmm_version() -> Result<String>;
        fn load_plugins(directory: &str) -> Result<()>;

        fn system_from_xml(xml: &str) -> Result<SharedPtr<System>>;
        fn n_particles(self: &System) -> usize;
        fn masses(self: &System, masses: &mut [f64]);
        /// Pairs of particles, flat, and the lengths in nm.
        fn constraints(self: &System, pairs: &mut Vec<u64>, lengths: &mut Vec<f64>) -> Result<()>;
        /// Pairs of particles of all HarmonicBondForces and constraints, flat.
        fn bonds(self: &System, pairs: &mut Vec<u64>) -> Result<()>;
        fn has_barostat(self: &System) -> bool;
        fn removes_centre_of_mass_motion(self: &System) -> bool;
        fn is_held_in_space(self: &System) -> bool;
        fn is_periodic(self: &System) -> Result<bool>;
        /// Box vectors, flat, in nm.
        fn default_box_vectors(self: &System, vectors: &mut [f64]) -> Result<()>;
        fn moves_left_out(self: &System) -> usize;

        fn new_evaluator(system: &SharedPtr<System>, platform: &str) -> Result<UniquePtr<Evaluator>>;
        /// Three vectors in nm, flat.
        fn set_box_vectors(self: Pin<&mut Evaluator>, vectors: &[f64]) -> Result<()>;
        /// x[n][particles][3] in nm; energies[n] in kJ/mol; forces like x in kJ/(mol nm), or empty.
        fn evaluate(self: Pin<&mut Evaluator>, x: &[f64], energies: &mut [f64], forces: &mut [f64]) -> Result<()>;

        fn new_simulation(
            system: &SharedPtr<System>,
            platform: &str,
            threads: usize,
            temperature: f64,
            friction: f64,
            timestep: f64,
            seed: i32,
        ) -> Result<UniquePtr<Simulation>>;
        fn step(self: Pin<&mut Simulation>, n: usize) -> Result<()>;
        fn step_count(self: &Simulation) -> Result<i64>;
        fn get_positions(self: Pin<&mut Simulation>, x: &mut [f64]) -> Result<()>;
        fn set_positions(self: Pin<&mut Simulation>, x: &[f64]) -> Result<()>;
        fn get_velocities(self: Pin<&mut Simulation>, v: &mut [f64]) -> Result<()>;
        fn set_drawn_velocities(self: Pin<&mut Simulation>, v: &[f64]) -> Result<()>;
        fn potential_energy(self: Pin<&mut Simulation>) -> Result<f64>;
        fn kinetic_energy(self: Pin<&mut Simulation>) -> Result<f64>;
        fn degrees_of_freedom(self: &Simulation) -> f64;
        fn minimise(self: Pin<&mut Simulation>, tolerance: f64, max_iterations: i32) -> Result<()>;
        fn save_checkpoint(self: Pin<&mut Simulation>) -> Result<Vec<u8>>;
        fn load_checkpoint(self: Pin<&mut Simulation>, bytes: &[u8]) -> Result<()>;
        /// Writes box vectors, flat, in nm; returns whether the System is periodic.
        fn box_vectors(self: &Simulation, vectors: &mut [f64]) -> Result<bool>;

        fn new_solvent(
            simulation: Pin<&mut Simulation>,
            solute: &[u64],
            steps: usize,
            step_size: f64,
        ) -> Result<UniquePtr<Solvent>>;
        fn begin(
            self: Pin<&mut Solvent>,
            simulation: Pin<&mut Simulation>,
            kt: f64,
            seed: u64,
            step: u64,
        ) -> Result<()>;
        /// Energy in kJ/mol with the solute at x.
        fn energy_at(self: Pin<&mut Solvent>, x: &[f64]) -> Result<f64>;
        fn relax(self: Pin<&mut Solvent>, x: &[f64], stage: u32) -> Result<f64>;
        /// Positions of all particles, nm.
        fn get_positions(self: &Solvent, x: &mut [f64]) -> Result<()>;
        fn trajectories(self: &Solvent) -> u64;
        fn accepted(self: &Solvent) -> u64;
    }
}
