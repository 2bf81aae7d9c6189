//! Modes: one generator for each metastable state, all with the same latent space.
//!
//! As a density this is their mixture with equal weights, q(x) = 1/m Σ_i q_i(x), for moves that draw x′ afresh. In
//! jumps between modes ([`crate::moves::ModeJump`]) T_j ∘ T_i⁻¹ maps mode i onto mode j.
//!
//! The file holds the tensors of generator i under `modes.i.` and its card in the configuration.

mod format;
#[cfg(test)]
mod tests;

pub use format::bundle;

use super::card::{ModelCard, ModelConfig};
use super::Model;
use crate::coordinates::Along;
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::modes::{ModeRegion, Modes};
use crate::rng::Stream;
use crate::weights::log_sum_exp;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Configuration in the model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Reaction coordinates; if given, a configuration belongs to the mode whose centre is nearest along them.
    #[serde(default)]
    pub nearest_along: Vec<Along>,
    pub modes: Vec<ModeConfig>,
    /// Pairs of modes between which jumps are attempted; if empty, all pairs.
    #[serde(default)]
    pub edges: Vec<EdgeConfig>,
    /// Standard deviation of the normal step in latent space that is part of every jump.
    #[serde(default)]
    pub noise: f64,
    #[serde(default)]
    pub identical: Option<IdenticalConfig>,
}

/// One metastable state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModeConfig {
    pub region: ModeRegion,
    /// Card of its generator.
    pub card: ModelCard,
    /// A configuration of the mode, the reference for the assignment of identical particles.
    #[serde(default)]
    pub reference: Vec<f64>,
}

/// Jumps between two modes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// Names of the two modes.
    pub between: [String; 2],
    /// How often this edge is chosen at either end, relative to the other edges there.
    #[serde(default = "equally")]
    pub weights: [f64; 2],
}

fn equally() -> [f64; 2] {
    [1.0; 2]
}

/// Particles that can be exchanged without a change of energy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdenticalConfig {
    /// Coordinates per particle: 3, or 2 in the plane.
    pub dimension: usize,
    /// Indices of the particles, from 0.
    pub particles: Vec<usize>,
}

/// The generators of all modes.
pub struct ModeGenerators {
    card: ModelCard,
    hash: String,
    generators: Vec<Arc<dyn Model>>,
    modes: Modes,
}

impl ModeGenerators {
    /// Combines the generators. Errors: modes that [`Modes::new`] refuses; generators that are not exact or have
    /// different coordinates.
    fn new(card: ModelCard, hash: String, generators: Vec<Arc<dyn Model>>) -> Result<ModeGenerators> {
        let config = config_of(&card)?;
        let Some(first) = generators.first() else {
            return Err(Error::invalid("a model of modes requires at least one generator"));
        };
        let regions: Vec<ModeRegion> = config.modes.iter().map(|mode| mode.region.clone()).collect();
        let modes = Modes::new(&config.nearest_along, &regions, first.dimension())?;
        let (own, of_first) = (&card, first.card());
        if own.coordinates != of_first.coordinates
            || own.topology != of_first.topology
            || own.exactness != Exactness::Exact
            || own.steering.is_some()
        {
            return Err(Error::invalid(format!(
                "the coordinates, atoms or exactness of the model of modes do not match those of mode `{}`",
                regions[0].name
            )));
        }
        for (generator, region) in generators.iter().zip(&regions) {
            let (a, b) = (first.card(), generator.card());
            let same = generator.dimension() == first.dimension()
                && generator.scope() == first.scope()
                && a.topology == b.topology
                && a.kept_bonds() == b.kept_bonds();
            if generator.steering().is_some_and(|s| s.auxiliary > 0) {
                let name = &region.name;
                return Err(Error::Unsupported(format!(
                    "mode `{name}`: its generator has auxiliary coordinates, which jumps between modes do not support"
                )));
            }
            if !same || generator.exactness() != Exactness::Exact {
                return Err(Error::invalid(format!(
                    "mode `{}`: its generator must be exact, with the same atoms, coordinates and constant bonds as \
                     that of `{}`",
                    region.name, regions[0].name
                )));
            }
        }
        Ok(ModeGenerators { card, hash, generators, modes })
    }

    /// The configuration in the card.
    pub fn config(&self) -> &Config {
        // checked on construction
        config_of(&self.card).expect("a card of modes")
    }

    /// One generator per mode.
    pub fn generators(&self) -> &[Arc<dyn Model>] {
        &self.generators
    }

    /// The metastable states.
    pub fn modes(&self) -> &Modes {
        &self.modes
    }

    /// log q_i of every row, `[generators][n]`. Errors: the generators'.
    fn parts(&self, x: &[f64], n: usize) -> Result<Vec<Vec<Evaluation>>> {
        let each = |generator: &Arc<dyn Model>| {
            let mut evaluations = vec![Evaluation::outside(Status::NonFinite); n];
            generator.log_density(x, &mut evaluations)?;
            Ok(evaluations)
        };
        self.generators.iter().map(each).collect()
    }
}

fn config_of(card: &ModelCard) -> Result<&Config> {
    match &card.model {
        ModelConfig::Modes(config) => Ok(config),
        other => Err(Error::invalid(format!("expected a model of kind modes, found {}", other.kind()))),
    }
}

/// log 1/m Σ q_i of one row; outside only if all are.
fn mixture(parts: &[Evaluation]) -> Evaluation {
    if !parts.iter().any(Evaluation::is_inside) {
        return parts[0];
    }
    let log_q: Vec<f64> = parts.iter().map(|e| e.log_density).collect();
    Evaluation::inside(log_sum_exp(&log_q) - (parts.len() as f64).ln())
}

impl Density for ModeGenerators {
    fn dimension(&self) -> usize {
        self.generators[0].dimension()
    }

    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }

    fn scope(&self) -> Scope {
        self.generators[0].scope()
    }

    /// A row's first random number chooses the mode; its generator has the stream from the next block on, as kernels
    /// need a stream of which nothing has been drawn.
    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let d = self.dimension();
        let choose = |stream: &mut Stream| stream.below(self.generators.len());
        let chosen: Vec<usize> = (0..n).map(|row| choose(&mut streams(row))).collect();
        for (i, generator) in self.generators.iter().enumerate() {
            let rows: Vec<usize> = (0..n).filter(|&row| chosen[row] == i).collect();
            let rest = |k: usize| {
                let mut stream = streams(rows[k]);
                choose(&mut stream);
                stream.at_next_block()
            };
            let mut samples = vec![0.0; rows.len() * d];
            let mut found = vec![Evaluation::outside(Status::NonFinite); rows.len()];
            generator.sample(&rest, &mut samples, &mut found)?;
            for ((&row, sample), found) in rows.iter().zip(samples.chunks_exact(d)).zip(found) {
                x[row * d..(row + 1) * d].copy_from_slice(sample);
                log_density[row] = found;
            }
        }
        let parts = self.parts(x, n)?;
        for (row, evaluation) in log_density.iter_mut().enumerate().filter(|(_, e)| e.is_inside()) {
            *evaluation = mixture(&parts.iter().map(|part| part[row]).collect::<Vec<_>>());
        }
        Ok(())
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let parts = self.parts(x, n)?;
        for (row, evaluation) in log_density.iter_mut().enumerate() {
            *evaluation = mixture(&parts.iter().map(|part| part[row]).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// ∇ log q = Σ_i q_i/(m q) ∇ log q_i.
    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let d = self.dimension();
        self.log_density(x, log_density)?;
        gradient.fill(0.0);
        let m = (self.generators.len() as f64).ln();
        let mut part = vec![Evaluation::outside(Status::NonFinite); n];
        let mut of_part = vec![0.0; x.len()];
        for generator in &self.generators {
            generator.log_density_gradient(x, &mut part, &mut of_part)?;
            for row in (0..n).filter(|&row| log_density[row].is_inside() && part[row].is_inside()) {
                let share = (part[row].log_density - m - log_density[row].log_density).exp();
                // the gradient of a density of next to nothing may have overflowed
                if share == 0.0 {
                    continue;
                }
                let sum = gradient[row * d..(row + 1) * d].iter_mut();
                sum.zip(&of_part[row * d..(row + 1) * d]).for_each(|(sum, g)| *sum += share * g);
            }
        }
        Ok(())
    }
}

impl Model for ModeGenerators {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn device(&self) -> String {
        self.generators[0].device()
    }

    fn modes(&self) -> Option<&ModeGenerators> {
        Some(self)
    }
}
