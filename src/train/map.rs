//! Training of a map from one ensemble to another: f = T_b ∘ T_a⁻¹ with T_a fixed (Invernizzi, Krämer, Clementi and
//! Noé, J. Phys. Chem. Lett. 13, 11643 (2022)).
//!
//! Reverse KL with the frames of ensemble a in place of a prior: L = E_{x ~ a} [u_b(f(x)) − ln|∂f/∂x|], which is −E log
//! W_a up to terms independent of T_b, W_a = e^{u_a(x) − u_b(f(x))} |∂f/∂x|. If T_b starts as T_a, f starts as the
//! identity. The latent points of the frames are computed once.

use super::batch::spread;
use super::losses::{regularise, Pass};
use crate::density::{Density, Evaluation, Status};
use crate::error::{Error, Result};
use crate::models::coupling::CouplingFlow;
use crate::models::{flow_of, Flow, Model};
use crate::rng::Stream;
use crate::target::Target;
use crate::weights::{self, Estimate};

/// Loss that trains T_b of a map T_b ∘ T_a⁻¹ in place of samples from the prior.
pub trait MapLoss {
    /// Adds scale · ∂L/∂parameters over a batch of n frames to `gradient`. Returns log W of the batch; L is minus their
    /// mean, where they are finite, up to a constant. Errors: the target's.
    fn reverse_kl(
        &self,
        flow: &CouplingFlow<f32>,
        target: &mut dyn Target,
        n: usize,
        stream: &mut Stream,
        scale: f64,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>>;

    /// Quality of the map, from at most n held-out frames (at either end). Errors: the target's.
    fn quality(&self, flow: &CouplingFlow<f32>, target: &mut dyn Target, n: usize) -> Result<Quality>;
}

/// Quality measures of a map.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Effective fraction of the frames, from log W.
    pub ess: f64,
    pub pareto_k: f64,
    /// Logarithm of the mean weight; NaN where the weights are for both directions.
    pub log_z: Estimate,
    /// Mean equilibrium acceptance of the move that the map is used for.
    pub acceptance: f64,
}

impl Quality {
    /// From log-weights of moves whose acceptance depends on pairs of them: independence proposals, and exchanges.
    /// Errors: no finite log-weight.
    pub fn of(log_weights: &[f64]) -> Result<Quality> {
        Ok(Quality {
            ess: weights::effective_sample_size(log_weights)? / log_weights.len() as f64,
            pareto_k: weights::pareto_k(log_weights).unwrap_or(f64::NAN),
            log_z: weights::log_normaliser(log_weights)?,
            acceptance: weights::acceptance(log_weights).value,
        })
    }
}

/// Frames of ensemble a, as T_a encodes them.
pub struct Map {
    dimension: usize,
    /// T_a⁻¹(x) `[n][dimension]`.
    latent: Vec<f64>,
    /// u_a(x) − ln|∂T_a/∂z| `[n]`.
    offset: Vec<f64>,
    /// Number of frames held out for evaluations, the first ones.
    held_out: usize,
}

impl Map {
    /// Encodes frames `x[n][atoms][3]` with reduced potentials `u[n]` in their own ensemble; the fraction `held_out` is
    /// never trained on. Frames outside the support of T_a are left out.
    ///
    /// Errors: a model without a latent space; fewer than two usable frames to train on and to hold out.
    pub fn new(from: &dyn Model, x: &[f64], u: &[f64], held_out: f64) -> Result<Map> {
        let flow = flow_of(from)?;
        if from.steering().is_some_and(|s| s.auxiliary > 0) {
            return Err(Error::Unsupported("maps from models with auxiliary coordinates are not supported".into()));
        }
        let dimension = flow.latent_dimension();
        let mut z = vec![0.0; u.len() * dimension];
        let mut log_det = vec![0.0; u.len()];
        let mut evaluations = vec![Evaluation::outside(Status::NonFinite); u.len()];
        flow.encode(x, &mut z, &mut log_det, &mut evaluations)?;
        let mut map = Map { dimension, latent: Vec::new(), offset: Vec::new(), held_out: 0 };
        for (i, z) in z.chunks_exact(dimension).enumerate() {
            if evaluations[i].is_inside() && u[i].is_finite() {
                map.latent.extend_from_slice(z);
                map.offset.push(u[i] - log_det[i]);
            }
        }
        map.held_out = (map.offset.len() as f64 * held_out) as usize;
        if map.held_out < 2 || map.offset.len() - map.held_out < 2 {
            return Err(Error::invalid(format!(
                "{} of {} frames lie in the support of the model that the map comes from, too few to train on \
                 with a fraction of {held_out} held out",
                map.offset.len(),
                u.len()
            )));
        }
        Ok(map)
    }

    /// Indices of n random training frames.
    pub fn batch(&self, n: usize, stream: &mut Stream) -> Vec<usize> {
        (0..n).map(|_| self.held_out + stream.below(self.offset.len() - self.held_out)).collect()
    }

    /// Indices of at most n held-out frames, evenly spread over all of them.
    pub fn held_out(&self, n: usize) -> Vec<usize> {
        spread(self.held_out, n)
    }

    /// log W_a of these frames under T_b; −∞ where there is no image. Errors: the target's.
    pub fn log_weights(&self, flow: &CouplingFlow<f32>, target: &mut dyn Target, rows: &[usize]) -> Result<Vec<f64>> {
        let pass = self.pass(flow, rows)?;
        let mut u = vec![0.0; rows.len()];
        target.reduced_potential(&pass.x, &mut u)?;
        Ok(self.weigh(&pass, rows, &u))
    }

    fn pass(&self, flow: &CouplingFlow<f32>, rows: &[usize]) -> Result<Pass> {
        if flow.latent_dimension() != self.dimension {
            return Err(Error::invalid(format!(
                "the map is from {} latent coordinates to {}: start training with the model that it comes from",
                self.dimension,
                flow.latent_dimension()
            )));
        }
        let d = self.dimension;
        Ok(Pass::new(flow, rows.len(), &|row, z| z.copy_from_slice(&self.latent[rows[row] * d..][..d])))
    }

    fn weigh(&self, pass: &Pass, rows: &[usize], u: &[f64]) -> Vec<f64> {
        let log_det = pass.log_det();
        let weigh = |i: usize| usable(self.offset[rows[i]] - u[i] + log_det[i], &pass.log_q[i]);
        (0..rows.len()).map(weigh).collect()
    }
}

/// log W of a row; −∞ if it has no image or its weight is not finite.
pub(super) fn usable(log_w: f64, image: &Evaluation) -> f64 {
    if log_w.is_finite() && image.is_inside() {
        log_w
    } else {
        f64::NEG_INFINITY
    }
}

/// Weight of every row in the loss; zero for rows without an image or without its potential.
pub(super) fn counted(images: &[Evaluation], u: &[f64], share: f64) -> Vec<f64> {
    images.iter().zip(u).map(|(e, u)| if e.is_inside() && u.is_finite() { share } else { 0.0 }).collect()
}

impl MapLoss for Map {
    fn reverse_kl(
        &self,
        flow: &CouplingFlow<f32>,
        target: &mut dyn Target,
        n: usize,
        stream: &mut Stream,
        scale: f64,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>> {
        let rows = self.batch(n, stream);
        let mut pass = self.pass(flow, &rows)?;
        let (mut u, mut gx) = (vec![0.0; n], vec![0.0; n * flow.dimension()]);
        target.reduced_potential_gradient(&pass.x, &mut u, &mut gx)?;
        let nothing = vec![0.0; gx.len()];
        regularise(&u, &pass.log_q, &mut gx, &nothing, scale / n as f64);
        let g_log_det = counted(&pass.log_q, &u, -scale / n as f64);
        pass.back(flow, &gx, &g_log_det, gradient);
        Ok(self.weigh(&pass, &rows, &u))
    }

    /// With the acceptance of an exchange.
    fn quality(&self, flow: &CouplingFlow<f32>, target: &mut dyn Target, n: usize) -> Result<Quality> {
        Quality::of(&self.log_weights(flow, target, &self.held_out(n))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::CoordinatesConfig;
    use crate::models::coupling::{CouplingConfig, Features, LayerConfig};
    use crate::models::ModelCard;
    use crate::nn::Activation;
    use crate::rng::StreamId;
    use crate::train::{Phase, TrainOptions, Trainer};

    const D: usize = 4;

    /// Affine couplings, initially the identity.
    fn flow() -> CouplingFlow<f32> {
        let layer = |turn: usize| LayerConfig::Affine {
            transformed: vec![turn % 2, 2 + turn % 2],
            features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - turn % 2, 3 - turn % 2] },
            hidden: vec![8],
            activation: Activation::Silu,
            scale_activation: None,
            preserve_volume: false,
        };
        let config = CouplingConfig { uniform: vec![], layers: (0..4).map(layer).collect() };
        let card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: D });
        let mut flow = CouplingFlow::new(card).unwrap();
        flow.initialise(3);
        flow
    }

    /// A normal density with this mean and standard deviation in every coordinate.
    struct Normal(f64, f64);

    impl Target for Normal {
        fn dimension(&self) -> usize {
            D
        }
        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            let of = |x: &[f64]| x.iter().map(|x| 0.5 * ((x - self.0) / self.1).powi(2)).sum();
            u.iter_mut().zip(x.chunks_exact(D)).for_each(|(u, x)| *u = of(x));
            Ok(())
        }
        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g = (x - self.0) / self.1.powi(2));
            self.reduced_potential(x, u)
        }
    }

    fn hot() -> Normal {
        Normal(0.0, 1.0)
    }

    fn cold() -> Normal {
        Normal(0.8, 0.5)
    }

    fn map() -> (Map, Vec<f64>) {
        let mut stream = Stream::new(5, StreamId::Test, 0, 0);
        let x: Vec<f64> = (0..1000 * D).map(|_| stream.normal()).collect();
        let mut u = vec![0.0; 1000];
        hot().reduced_potential(&x, &mut u).unwrap();
        (Map::new(&flow(), &x, &u, 0.3).unwrap(), x)
    }

    #[test]
    fn a_map_begins_as_the_identity() {
        let (map, x) = map();
        let rows = map.held_out(1000);
        let (mut u_hot, mut u_cold) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
        hot().reduced_potential(&x[..rows.len() * D], &mut u_hot).unwrap();
        cold().reduced_potential(&x[..rows.len() * D], &mut u_cold).unwrap();
        let log_w = map.log_weights(&flow(), &mut cold(), &rows).unwrap();
        assert_eq!(log_w.len(), 300);
        assert!(log_w.iter().zip(u_hot.iter().zip(&u_cold)).all(|(w, (a, b))| (w - (a - b)).abs() < 1e-6));
    }

    #[test]
    fn its_gradient_is_that_of_finite_differences() {
        let (map, _) = map();
        let mut flow = flow();
        let mut stream = Stream::new(6, StreamId::Test, 0, 0);
        flow.parameters_mut().iter_mut().for_each(|p| *p += 0.05 * stream.normal() as f32);
        let batch = || Stream::new(7, StreamId::Test, 0, 0);
        let rows = map.batch(100, &mut batch());
        let mut gradient = vec![0.0; flow.parameters().len()];
        // energies close enough to each other that none is softened
        let target = || Normal(0.3, 0.9);
        map.reverse_kl(&flow, &mut target(), 100, &mut batch(), 2.0, &mut gradient).unwrap();
        let mut largest: Vec<usize> = (0..gradient.len()).collect();
        largest.sort_by(|&i, &j| gradient[j].abs().total_cmp(&gradient[i].abs()));
        for &k in &largest[..8] {
            let mut loss = |shift: f32| {
                flow.parameters_mut()[k] += shift;
                let log_w = map.log_weights(&flow, &mut target(), &rows).unwrap();
                flow.parameters_mut()[k] -= shift;
                -log_w.iter().sum::<f64>() / 100.0
            };
            let difference = 2.0 * (loss(3e-3) - loss(-3e-3)) / 6e-3;
            assert!((f64::from(gradient[k]) / difference - 1.0).abs() < 0.02, "{k}: {} {difference}", gradient[k]);
        }
    }

    #[test]
    fn training_finds_the_map_and_tells_the_acceptance() {
        let phase = Phase { steps: 400, rate: 0.02, energy_batch: 64, ..Phase::of_map() };
        let options = TrainOptions { phases: vec![phase], evaluate: 200, average: 0.9, ..TrainOptions::default() };
        let mut target = cold();
        let mut trainer = Trainer::new(flow(), &[], Some(&mut target), options).unwrap().with_map(map().0).unwrap();
        while !trainer.is_finished() {
            trainer.step().unwrap();
        }
        let last = trainer.state().history.last().unwrap().clone();
        assert!(last.ess > 0.9 && last.acceptance > 0.8 && last.reverse_kl.is_finite(), "{last:?}");
        let (map, _) = map();
        let before = map.log_weights(&flow(), &mut cold(), &map.held_out(300)).unwrap();
        assert!(weights::effective_sample_size(&before).unwrap() < 100.0);
    }

    #[test]
    fn other_losses_and_useless_frames_are_refused() {
        let mut target = cold();
        let options =
            TrainOptions { phases: vec![Phase { refinement: 1.0, ..Phase::of_map() }], ..TrainOptions::default() };
        let trainer = Trainer::new(flow(), &[], Some(&mut target), options).unwrap();
        let error = trainer.with_map(map().0).err().unwrap().to_string();
        assert!(error.contains("reverse KL alone"), "{error}");
        let error = Map::new(&flow(), &[f64::NAN; 10 * D], &[0.0; 10], 0.3).err().unwrap().to_string();
        assert!(error.contains("0 of 10 frames"), "{error}");
    }
}
