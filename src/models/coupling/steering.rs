//! Which coupling flows are steerable, and such a flow at another temperature.

use super::layers::LayerConfig;
use super::{CouplingConfig, CouplingFlow};
use crate::coordinates::Coordinates;
use crate::error::{Error, Result};
use crate::models::card::SteeringConfig;
use crate::models::{steering, Model};
use crate::nn::Real;

/// Checks that the layers preserve the volume of all coordinates with a normal prior, the ones that follow the
/// temperature.
///
/// Coordinates with the uniform prior (rotatable torsions) stay as trained, and may pass through any layer that reads
/// nothing else: conditional on them q_τ ∝ q_1^{1/τ} holds. Errors name the layer.
pub(super) fn check(
    steering: SteeringConfig,
    config: &CouplingConfig,
    coordinates: &Coordinates,
    uniform: &[bool],
) -> Result<()> {
    let first_auxiliary = match (coordinates, uniform.len().checked_sub(steering.auxiliary)) {
        (_, Some(first)) if first == uniform.len() => first,
        (Coordinates::Cartesian(_), Some(first)) if first > 0 => first,
        (Coordinates::Cartesian(_), _) => {
            let (auxiliary, all) = (steering.auxiliary, uniform.len());
            return Err(Error::invalid(format!(
                "steering: {auxiliary} auxiliary coordinates out of {all} leave none for x"
            )));
        }
        _ => return Err(Error::invalid("steering: auxiliary coordinates require a model in Cartesian coordinates")),
    };
    if uniform[first_auxiliary..].contains(&true) {
        return Err(Error::invalid(
            "steering: an auxiliary coordinate has a uniform prior; it must have a normal prior",
        ));
    }
    for (i, layer) in config.layers.iter().enumerate() {
        let refuse = |reason: &str| Err(Error::invalid(format!("layer {i} of a steerable flow {reason}")));
        let turning = layer.transformed().iter().filter(|&&c| uniform[c]).count();
        if turning == layer.transformed().len() {
            let sees_all = layer.conditions().all(|c| uniform[c]);
            if !sees_all {
                return refuse(
                    "transforms coordinates with a uniform prior given coordinates with a normal prior: only the \
                     latter depend on the temperature",
                );
            }
            continue;
        }
        let keeps_volume = match layer {
            // a scale by coordinates that do not follow is a constant for those that do
            LayerConfig::Affine { preserve_volume, .. } => *preserve_volume || layer.conditions().all(|c| uniform[c]),
            LayerConfig::Whiten { .. } => true,
            LayerConfig::Wrap { transformed, .. } => transformed.iter().all(|&c| c < first_auxiliary),
            _ => false,
        };
        if turning > 0 || !keeps_volume {
            return refuse(
                "does not preserve volume: use affine couplings with `preserve_volume`, whitening, and fixed shifts of \
                 torsions, each acting only on coordinates with a normal prior",
            );
        }
    }
    Ok(())
}

impl<R: Real> CouplingFlow<R> {
    /// τ at a temperature (K). Errors: a flow that is not steerable, and those of [`steering::variance`].
    pub(super) fn variance_at(&self, kelvin: f64) -> Result<f64> {
        match self.card.steering {
            Some(_) => steering::variance(kelvin, self.card.temperature),
            None => Err(self.does_not_follow()),
        }
    }

    /// The same flow with latent and auxiliary variance τ; the parameters are shared.
    pub fn at_variance(&self, variance: f64) -> CouplingFlow<R> {
        CouplingFlow {
            card: self.card.clone(),
            hash: self.hash.clone(),
            coordinates: self.coordinates.clone(),
            layers: self.layers.clone(),
            uniform: self.uniform.clone(),
            parameters: self.parameters.clone(),
            variance,
            workspaces: self.workspaces.clone(),
            gradients: self.gradients.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::CoordinatesConfig;
    use crate::density::{Density, Evaluation};
    use crate::models::coupling::Features;
    use crate::models::{self, JointTarget, ModelCard, Precision, LOG_2_PI};
    use crate::nn::Activation;
    use crate::rng::{Stream, StreamId};
    use crate::target::Target;
    use std::sync::Arc;

    fn coupling(moved: &[usize], seen: &[usize], preserve_volume: bool) -> LayerConfig {
        LayerConfig::Affine {
            transformed: moved.to_vec(),
            features: Features { periodic: vec![], harmonics: 1, plain: seen.to_vec() },
            hidden: vec![8],
            activation: Activation::Tanh,
            scale_activation: Some(Activation::Silu),
            preserve_volume,
        }
    }

    fn card(layers: Vec<LayerConfig>, uniform: Vec<usize>, dimension: usize, auxiliary: usize) -> ModelCard {
        ModelCard {
            steering: Some(SteeringConfig { auxiliary }),
            temperature: Some(500.0),
            ..ModelCard::of_coupling(CouplingConfig { uniform, layers }, CoordinatesConfig::Cartesian { dimension })
        }
    }

    /// Affine couplings of pairs, then shears of single coordinates, and a fixed scale.
    fn flow<R: Real>(dimension: usize) -> CouplingFlow<R> {
        let mut layers = vec![LayerConfig::Whiten { transformed: vec![0], mean: vec![0.3], matrix: vec![0.7] }];
        if dimension == 4 {
            layers.extend([coupling(&[0, 1], &[2, 3], true), coupling(&[2, 3], &[0, 1], true)]);
        }
        layers.extend([coupling(&[0], &[1], true), coupling(&[1], &[0], true)]);
        let mut flow = CouplingFlow::new(card(layers, vec![], dimension, dimension / 2)).unwrap();
        flow.initialise(1);
        let mut stream = Stream::new(2, StreamId::Test, 0, 0);
        flow.parameters_mut().iter_mut().for_each(|p| *p += R::from_f64(0.4 * stream.normal()));
        flow
    }

    fn points(n: usize) -> Vec<f64> {
        let mut stream = Stream::new(5, StreamId::Test, 0, 0);
        (0..n).map(|_| 1.3 * stream.normal()).collect()
    }

    fn log_q(density: &dyn Density, x: &[f64]) -> Vec<f64> {
        let mut evaluations = vec![Evaluation::inside(0.0); x.len() / density.dimension()];
        density.log_density(x, &mut evaluations).unwrap();
        evaluations.iter().map(|e| e.log_density).collect()
    }

    /// ln|∂x/∂z| is that of the fixed scale for any parameters, in either precision and direction.
    #[test]
    fn the_volume_is_kept() {
        fn largest_change<R: Real>(dimension: usize) -> f64 {
            let (flow, z) = (flow::<R>(dimension), points(50 * dimension));
            let (mut x, mut log_det, mut e) = (z.clone(), vec![0.0; 50], vec![Evaluation::inside(0.0); 50]);
            models::Flow::generate(&flow, &z, &mut x, &mut log_det, &mut e).unwrap();
            let (mut back, mut of_encoding) = (z.clone(), vec![0.0; 50]);
            models::Flow::encode(&flow, &x, &mut back, &mut of_encoding, &mut e).unwrap();
            assert!(x.iter().zip(&z).any(|(x, z)| (x - z).abs() > 0.5), "the flow does nothing");
            log_det.iter().chain(&of_encoding).map(|l| (l - 0.7f64.ln()).abs()).fold(0.0, f64::max)
        }
        for dimension in [2, 4] {
            assert!(largest_change::<f64>(dimension) < 1e-12 && largest_change::<f32>(dimension) < 1e-12);
        }
    }

    /// log q_τ = log q_1/τ + const, with the constant that normalises it.
    #[test]
    fn the_density_is_a_power_of_that_of_training() {
        let (flow, x) = (flow::<f64>(4), points(400));
        let at_one = log_q(&flow, &x);
        for tau in [0.25, 0.6, 1.0, 3.0] {
            let constant = 0.5 * 4.0 * (LOG_2_PI * (1.0 / tau - 1.0) - f64::ln(tau)) + 0.7f64.ln() * (1.0 / tau - 1.0);
            for (q_tau, q) in log_q(&flow.at_variance(tau), &x).iter().zip(&at_one) {
                assert!((q_tau - q / tau - constant).abs() < 1e-10 * q.abs().max(1.0), "τ = {tau}: {q_tau} and {q}");
            }
        }
    }

    /// Quadrature over x and v, one coordinate each; samples are those of the density, since the mean of q_τ′/q_τ is
    /// one.
    #[test]
    fn the_density_is_normalised_at_every_temperature() {
        for tau in [0.4, 1.0, 2.0] {
            let flow = flow::<f64>(2).at_variance(tau);
            let (n, step) = (600, 0.05);
            let axis = |i: usize| (i as f64 - 0.5 * n as f64) * step;
            let grid: Vec<f64> = (0..n * n).flat_map(|k| [axis(k / n), axis(k % n)]).collect();
            let integral: f64 = log_q(&flow, &grid).iter().map(|l| l.exp() * step * step).sum();
            assert!((integral - 1.0).abs() < 1e-6, "τ = {tau}: {integral}");

            let (mut x, mut e) = (vec![0.0; 2 * 20_000], vec![Evaluation::inside(0.0); 20_000]);
            flow.sample(&|row| Stream::new(3, StreamId::Test, row as u64, 0), &mut x, &mut e).unwrap();
            let other = log_q(&flow.at_variance(0.8 * tau), &x);
            let mean = other.iter().zip(&e).map(|(o, e)| (o - e.log_density).exp()).sum::<f64>() / 20_000.0;
            assert!((mean - 1.0).abs() < 0.02, "τ = {tau}: {mean}");
        }
    }

    #[test]
    fn gradients_at_another_temperature_match_differences() {
        struct Cosh;
        impl Target for Cosh {
            fn dimension(&self) -> usize {
                2
            }
            fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
                u.iter_mut().zip(x.chunks_exact(2)).for_each(|(u, x)| *u = x[0].cosh() + x[1].cosh());
                Ok(())
            }
            fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
                gradient.iter_mut().zip(x).for_each(|(g, x)| *g = x.sinh());
                self.reduced_potential(x, u)
            }
            /// There is no environment to relax.
            fn relax(&mut self, x: &[f64], _: u32) -> Result<f64> {
                let mut u = [0.0];
                self.reduced_potential(x, &mut u)?;
                Ok(u[0])
            }
        }
        let (flow, x) = (flow::<f64>(4).at_variance(0.6), points(12));
        let (mut e, mut u) = ([Evaluation::inside(0.0); 3], [0.0; 3]);
        let (mut of_q, mut of_u) = (x.clone(), x.clone());
        flow.log_density_gradient(&x, &mut e, &mut of_q).unwrap();
        let steering = Model::steering(&flow).unwrap();
        let mut of_training = Cosh;
        let mut target = JointTarget::of_training(&mut of_training, steering);
        target.reduced_potential_gradient(&x, &mut u, &mut of_u).unwrap();
        // also during a driven move
        assert_eq!([0, 1, 2].map(|row| target.relax(&x[4 * row..4 * row + 4], 0).unwrap()), u);
        for i in 0..x.len() {
            let mut at = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                target.reduced_potential(&x, &mut u).unwrap();
                (log_q(&flow, &x)[i / 4], u[i / 4])
            };
            let (up, down) = (at(1e-5), at(-1e-5));
            assert!((of_q[i] - (up.0 - down.0) / 2e-5).abs() < 1e-5, "log q by coordinate {i}");
            assert!((of_u[i] - (up.1 - down.1) / 2e-5).abs() < 1e-5, "u by coordinate {i}");
        }
    }

    #[test]
    fn a_file_gives_the_same_model_at_all_temperatures() {
        let (flow, x) = (flow::<f64>(4), points(40));
        let bytes = flow.at_variance(2.0).to_bytes().unwrap();
        let loaded = models::from_bytes("memory", &bytes, Precision::F64).unwrap();
        assert_eq!(loaded.steering(), Some(models::Steering { auxiliary: 2, variance: 1.0 }));
        assert_eq!(log_q(loaded.as_ref(), &x), log_q(&flow, &x), "a file is of the temperature of training");
        for kelvin in [300.0, 1000.0] {
            let taken = loaded.at_temperature(kelvin).unwrap();
            assert_eq!(log_q(taken.as_ref(), &x), log_q(&flow.at_variance(kelvin / 500.0), &x));
            let back = taken.at_temperature(500.0).unwrap();
            assert_eq!(log_q(back.as_ref(), &x), log_q(&flow, &x));
        }
        let mut without = flow;
        without.card_mut().temperature = None;
        let model: Arc<dyn Model> = Arc::new(without);
        assert!(model.at_temperature(300.0).err().unwrap().to_string().contains("the temperature it was trained at"));
    }

    #[test]
    fn layers_that_change_the_volume_are_refused() {
        let refusal = |card: ModelCard| CouplingFlow::<f32>::new(card).err().unwrap().to_string();
        let shear = || coupling(&[0], &[1], true);
        let circular = |seen: usize| LayerConfig::Spline {
            transformed: vec![0],
            features: Features { periodic: vec![seen], harmonics: 1, plain: vec![] },
            ends: crate::models::coupling::Ends::Circular,
            bins: 4,
            interval: [0.0, 1.0],
            hidden: vec![4],
            activation: Activation::Silu,
            identity_init: true,
        };
        let scaled = vec![shear(), coupling(&[1], &[0], false)];
        let message = refusal(card(scaled, vec![], 2, 1));
        assert!(message.contains("layer 1") && message.contains("preserve_volume"), "{message}");
        let message = refusal(card(vec![circular(1)], vec![0], 3, 1));
        assert!(message.contains("layer 0") && message.contains("uniform"), "{message}");
        assert!(
            CouplingFlow::<f32>::new(card(vec![circular(1), coupling(&[2], &[0, 1], true)], vec![0, 1], 3, 1)).is_ok()
        );
        assert!(refusal(card(vec![shear()], vec![], 2, 2)).contains("leave none"));
        assert!(refusal(card(vec![shear()], vec![], 2, usize::MAX)).contains("leave none"));
        assert!(refusal(card(vec![], vec![1], 2, 1)).contains("auxiliary coordinate"));
        let plain = ModelCard { steering: None, ..card(vec![shear()], vec![], 2, 0) };
        let plain = CouplingFlow::<f32>::new(plain).unwrap();
        assert!(plain
            .at_temperature(300.0)
            .err()
            .unwrap()
            .to_string()
            .contains("cannot be used at another temperature"));
    }
}
