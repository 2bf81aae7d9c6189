//! Learned replica exchange, driven from Rust: one [`Simulation`] per ensemble; neighbours exchange configurations
//! through maps.

use super::{OpenMmTarget, Simulation, SimulationOptions, System};
use crate::bijection::Bijection;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::moves::{Exchange, State, Statistics};
use crate::rng::{Stream, StreamId};
use crate::target::Target;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The simulation of one ensemble.
struct Replica {
    simulation: Simulation,
    target: OpenMmTarget,
    x: Vec<f64>,
    u: f64,
}

impl Replica {
    /// Makes steps, then updates position and energy.
    fn run(&mut self, steps: u64) -> Result<()> {
        self.simulation.step(steps as usize)?;
        self.simulation.positions(&mut self.x)?;
        let mut u = [f64::NAN];
        self.target.reduced_potential(&self.x, &mut u)?;
        self.u = u[0];
        Ok(())
    }
}

/// State from which [`ExchangingReplicas`] continue bit for bit.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct ReplicasState {
    step: u64,
    /// OpenMM's checkpoint of each replica.
    simulations: Vec<Vec<u8>>,
    /// Exchange statistics of each pair of neighbours.
    statistics: Vec<Statistics>,
}

/// Langevin dynamics of one molecule at several temperatures, with exchanges between neighbours through maps between
/// their ensembles.
///
/// Replica k stays at its temperature; configurations move. Between exchanges replicas run in parallel on the available
/// threads, or in turn on the Reference platform, whose random numbers are one sequence per process.
pub struct ExchangingReplicas {
    replicas: Vec<Replica>,
    /// Exchanges between replicas k and k + 1.
    exchanges: Vec<Exchange>,
    interval: u64,
    seed: u64,
    step: u64,
}

impl ExchangingReplicas {
    /// Replicas where `models[k]` belongs to the ensemble at `temperatures[k]` (K); maps go through the latent space
    /// that neighbours share. `dynamics.temperature` is ignored. Exchanges are `interval` steps apart.
    ///
    /// Errors: fewer than two models, not one temperature per model, an interval of 0, a System with a barostat,
    /// neighbours without a common latent space, a System with another number of particles than the models have atoms,
    /// a particle without mass, a constraint that a model does not keep (named).
    pub fn new(
        system: &System,
        dynamics: &SimulationOptions,
        models: &[Arc<dyn Model>],
        temperatures: &[f64],
        interval: u64,
    ) -> Result<ExchangingReplicas> {
        if models.len() < 2 || models.len() != temperatures.len() || interval == 0 {
            return Err(Error::invalid(format!(
                "{} models, {} temperatures, {interval} steps between exchanges: use two or more models, one \
                 temperature for each, and at least one step",
                models.len(),
                temperatures.len()
            )));
        }
        if system.has_barostat() {
            return Err(Error::Unsupported(
                "exchanges through maps require constant volume, but the System has a barostat; remove it".into(),
            ));
        }
        let all: Vec<usize> = (0..system.n_particles()).collect();
        system.require_free(&all)?;
        let mut exchanges = Vec::new();
        for pair in models.windows(2) {
            let map = Bijection::new(pair[0].clone(), pair[1].clone())?;
            if map.dimension() != 3 * system.n_particles() {
                return Err(Error::Unsupported(format!(
                    "the System has {} particles, but the models have {} atoms: for exchanges, the models must \
                     describe all particles",
                    system.n_particles(),
                    map.dimension() / 3
                )));
            }
            let mut exchange = Exchange::new(map, dynamics.seed);
            exchange.set_constraints(system.constraints_of(pair[0].as_ref(), &all)?)?;
            exchanges.push(exchange);
        }
        let replica = |(k, &temperature): (usize, &f64)| {
            let seed = dynamics.seed.wrapping_mul(1_000_003).wrapping_add(k as u64);
            let options = SimulationOptions { temperature, seed, ..dynamics.clone() };
            Ok(Replica {
                simulation: Simulation::new(system, &options)?,
                target: OpenMmTarget::on_platform(system, temperature, 1, &dynamics.platform)?,
                x: vec![0.0; 3 * system.n_particles()],
                u: f64::NAN,
            })
        };
        let replicas = temperatures.iter().enumerate().map(replica).collect::<Result<_>>()?;
        Ok(ExchangingReplicas { replicas, exchanges, interval, seed: dynamics.seed, step: 0 })
    }

    /// Starts all replicas at `x[particles][3]` (nm): minimises and draws velocities.
    pub fn start(&mut self, x: &[f64]) -> Result<()> {
        for (k, Replica { simulation, .. }) in self.replicas.iter_mut().enumerate() {
            simulation.set_positions(x)?;
            simulation.minimise(10.0, 500)?;
            simulation.redraw_velocities(&mut Stream::new(self.seed, StreamId::Velocity, u64::MAX, k as u32))?;
        }
        Ok(())
    }

    /// Makes `interval` steps of every replica, then one exchange attempt for every pair of neighbours, in order: the
    /// first with the second, the second with the third, and so on.
    pub fn iterate(&mut self) -> Result<()> {
        let interval = self.interval;
        self.replicas.par_iter_mut().try_for_each(|replica| replica.run(interval))?;
        self.step += interval;
        let mut changed = vec![false; self.replicas.len()];
        for (k, exchange) in self.exchanges.iter_mut().enumerate() {
            let [a, b] = &mut self.replicas[k..k + 2] else { unreachable!("a pair") };
            let step = self.step;
            let [mut of_a, mut of_b] = [(&mut a.x, a.u, k), (&mut b.x, b.u, k + 1)].map(|(x, u, replica)| State {
                x,
                box_vectors: None,
                reduced_potential: u,
                step,
                replica: replica as u32,
            });
            let outcome = exchange.attempt([&mut a.target, &mut b.target], [&mut of_a, &mut of_b])?;
            if outcome.accepted() {
                [a.u, b.u] = outcome.reduced_potentials;
                changed[k..k + 2].fill(true);
            }
        }
        for (k, (replica, _)) in self.replicas.iter_mut().zip(changed).enumerate().filter(|(_, (_, changed))| *changed)
        {
            replica.simulation.set_positions(&replica.x)?;
            let mut stream = Stream::new(self.seed, StreamId::Velocity, self.step, k as u32);
            replica.simulation.redraw_velocities(&mut stream)?;
        }
        Ok(())
    }

    /// State from which a later run can continue.
    pub fn state(&mut self) -> Result<ReplicasState> {
        let simulations = self.simulations().map(Simulation::checkpoint).collect::<Result<_>>()?;
        Ok(ReplicasState { step: self.step, simulations, statistics: self.statistics().cloned().collect() })
    }

    /// Continues from a state of replicas with the same models, temperatures, dynamics and interval. Errors: a state
    /// with another number of replicas, a checkpoint that OpenMM refuses.
    pub fn go_on_from(&mut self, state: &ReplicasState) -> Result<()> {
        let (n, found) = (self.replicas.len(), state.simulations.len());
        if found != n || state.statistics.len() != n - 1 {
            return Err(Error::invalid(format!("the state has {found} replicas, expected {n}")));
        }
        for (simulation, bytes) in self.simulations().zip(&state.simulations) {
            simulation.load_checkpoint(bytes)?;
        }
        for (exchange, statistics) in self.exchanges.iter_mut().zip(&state.statistics) {
            *exchange.statistics_mut() = statistics.clone();
        }
        self.step = state.step;
        Ok(())
    }

    /// Simulations in the order of their temperatures.
    pub fn simulations(&mut self) -> impl Iterator<Item = &mut Simulation> {
        self.replicas.iter_mut().map(|replica| &mut replica.simulation)
    }

    /// Statistics of the exchanges of replicas k and k + 1, in order.
    pub fn statistics(&self) -> impl Iterator<Item = &Statistics> {
        self.exchanges.iter().map(Exchange::statistics)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{about, chain};
    use super::*;

    /// The middle one of three replicas takes part in two exchanges per iteration, the second with the result of the
    /// first.
    #[test]
    fn a_replica_that_has_exchanged_goes_into_the_next_exchange_as_it_is() {
        let (system, x) = (chain(2, ""), [0.0, 0.0, 0.0, 0.4, 0.0, 0.0]);
        let models = [0; 3].map(|_| about(&x, 1.0));
        let dynamics = SimulationOptions { timestep: 0.005, ..SimulationOptions::default() };
        let mut replicas = ExchangingReplicas::new(&system, &dynamics, &models, &[300.0, 320.0, 340.0], 5).unwrap();
        replicas.start(&x).unwrap();
        for _ in 0..20 {
            replicas.iterate().unwrap();
            for Replica { target, x, u, .. } in &mut replicas.replicas {
                let mut there = [f64::NAN];
                target.reduced_potential(x, &mut there).unwrap();
                assert!((there[0] - *u).abs() < 1e-9, "{u} is not {}", there[0]);
            }
        }
        assert!(replicas.statistics().all(|s| s.acceptance() > 0.3));
    }

    #[test]
    fn replicas_side_by_side_go_where_they_go_by_turns() {
        let (system, x) = (chain(2, ""), [0.0, 0.0, 0.0, 0.4, 0.0, 0.0]);
        let ends = [1, 2].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let models = [0; 3].map(|_| about(&x, 1.0));
            let dynamics = SimulationOptions { platform: "CPU".into(), ..SimulationOptions::default() };
            let mut replicas = ExchangingReplicas::new(&system, &dynamics, &models, &[300.0, 320.0, 340.0], 5).unwrap();
            replicas.start(&x).unwrap();
            pool.install(|| (0..20).try_for_each(|_| replicas.iterate())).unwrap();
            replicas.replicas.into_iter().flat_map(|replica| replica.x).collect::<Vec<f64>>()
        });
        assert_eq!(ends[0], ends[1]);
    }
}
