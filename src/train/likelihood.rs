//! Maximum likelihood of TarFlows on Cartesian frames, randomly rotated and with centroid noise (Tan et al., ICML
//! 2025).

use super::batch::accumulate;
use super::network_trainer::{Drawn, Loss, Objective};
use crate::coordinates::superpose::random_rotation;
use crate::coordinates::vector::shift;
use crate::coordinates::Topology;
use crate::io::model_file::hash;
use crate::models::network::Trainable;
use crate::models::tarflow::TarNetwork;
use crate::nn::Real;
use crate::rng::Stream;

/// Configurations that run together.
const CHUNK: usize = 8;

/// Mean of −log q over the rows of `x[n][dimension]` in the network's units, per coordinate and without the constant ½
/// ln 2π; adds its gradient.
pub fn negative_log_likelihood<R: Real>(network: &TarNetwork, parameters: &[R], x: &[f64], gradient: &mut [R]) -> f64 {
    negative_log_likelihood_of_all(&[(network, x)], parameters, gradient)
}

/// As [`negative_log_likelihood`], over configurations of several molecules, each given as its transferable network and
/// rows of its own length: the mean over all rows, each per coordinate. No padding.
pub fn negative_log_likelihood_of_all<R: Real>(
    molecules: &[(&TarNetwork, &[f64])],
    parameters: &[R],
    gradient: &mut [R],
) -> f64 {
    let rows: usize = molecules.iter().map(|(network, x)| x.len() / network.dimension()).sum();
    let part = |&(network, x): &(&TarNetwork, &[f64])| {
        add(network, parameters, x, 1.0 / (rows * network.dimension()) as f64, gradient)
    };
    molecules.iter().map(part).sum()
}

/// Sum of −log q over the rows times `norm`, without constants; adds its gradient.
fn add<R: Real>(network: &TarNetwork, parameters: &[R], x: &[f64], norm: f64, gradient: &mut [R]) -> f64 {
    let d = network.dimension();
    accumulate(x.len() / d, CHUNK, gradient, |tape, part, gradient| {
        let x: Vec<R> = x[part.start * d..part.end * d].iter().map(|&v| R::from_f64(v)).collect();
        let recorded = network.record(parameters, tape, &x);
        let (z, log_det) = (tape.value(recorded.z), tape.value(recorded.log_det));
        let energy: f64 = z.iter().map(|z| 0.5 * z.to_f64() * z.to_f64()).sum();
        let loss = norm * (energy - log_det.iter().map(|v| v.to_f64()).sum::<f64>());
        let of_z: Vec<R> = z.iter().map(|&z| R::from_f64(norm) * z).collect();
        let of_log_det = vec![R::from_f64(-norm); log_det.len()];
        tape.backward(parameters, &[(recorded.z, &of_z), (recorded.log_det, &of_log_det)], Some(gradient));
        loss
    })
}

/// Maximum-likelihood objective for one molecule.
pub struct Likelihood {
    /// Standard deviation of the centroid's noise in the network's units.
    pub centroid: Option<f64>,
}

impl Objective<TarNetwork> for Likelihood {
    fn loss(
        &self,
        network: &TarNetwork,
        parameters: &[f32],
        batch: Drawn,
        stream: &mut Stream,
        gradient: &mut [f32],
    ) -> Loss {
        let mut x = batch.x;
        for row in x.chunks_exact_mut(network.dimension()) {
            random_rotation(row, stream);
            if let Some(sigma) = self.centroid {
                shift(row, std::array::from_fn(|_| sigma * stream.normal()));
            }
        }
        negative_log_likelihood(network, parameters, &x, gradient).into()
    }
}

/// Maximum-likelihood objective for a transferable network on several peptides. Each row of a batch is from one of
/// them, chosen uniformly: for the trainer's peptide the frame drawn by the trainer, for another one a frame drawn
/// uniformly. Frames with held-out indices are held out for all peptides. Panics if a peptide has fewer frames than the
/// trainer.
pub struct Peptides {
    /// Whether the centroid has noise of standard deviation 1/√N in the network's units.
    pub noisy_centroid: bool,
    /// Peptides besides the trainer's.
    pub others: Vec<OtherPeptide>,
}

/// A peptide besides the trainer's.
pub struct OtherPeptide {
    /// The transferable network for it.
    pub network: TarNetwork,
    pub topology: Topology,
    /// `[n][dimension]`, centred and in the network's units.
    pub frames: Vec<f64>,
}

impl Objective<TarNetwork> for Peptides {
    fn frames(&self) -> Vec<f64> {
        self.others.iter().flat_map(|other| &other.frames).copied().collect()
    }

    fn settings(&self) -> String {
        let topologies: Vec<&Topology> = self.others.iter().map(|other| &other.topology).collect();
        match topologies.is_empty() {
            true => String::new(),
            false => format!(" {}", hash(format!("{topologies:?}").as_bytes())),
        }
    }

    fn loss(
        &self,
        network: &TarNetwork,
        parameters: &[f32],
        batch: Drawn,
        stream: &mut Stream,
        gradient: &mut [f32],
    ) -> Loss {
        let networks: Vec<&TarNetwork> =
            std::iter::once(network).chain(self.others.iter().map(|other| &other.network)).collect();
        let mut rows = vec![Vec::new(); networks.len()];
        for own in batch.x.chunks_exact(network.dimension()) {
            let k = stream.below(networks.len());
            let d = networks[k].dimension();
            let mut row = match k {
                0 => own.to_vec(),
                _ => {
                    let frame = batch.among.start + stream.below(batch.among.len());
                    self.others[k - 1].frames[frame * d..][..d].to_vec()
                }
            };
            random_rotation(&mut row, stream);
            if self.noisy_centroid {
                let sigma = 1.0 / ((d / 3) as f64).sqrt();
                shift(&mut row, std::array::from_fn(|_| sigma * stream.normal()));
            }
            rows[k].extend(row);
        }
        let molecules: Vec<(&TarNetwork, &[f64])> =
            networks.into_iter().zip(rows.iter().map(Vec::as_slice)).filter(|(_, x)| !x.is_empty()).collect();
        negative_log_likelihood_of_all(&molecules, parameters, gradient).into()
    }
}
