//! Training of a jump between two modes: f = T_b ∘ T_a⁻¹ with T_a fixed, from the energies at both ends.
//!
//! With W(x) = e^{u(x) − u(f(x))} |∂f/∂x|, the acceptance ratio of the jump before it is capped at 1, L = −½ E_{x ~ a}
//! log W(x) − ½ E_{y ~ b} log W⁻¹(y): reverse KL from either end. The frames of b keep f from losing a part of b, which
//! the frames of a alone would not (Sbailò, Dibak and Noé, J. Chem. Phys. 154, 074101 (2021), also train on frames of
//! both modes).

use super::batch::spread;
use super::losses::{regularise, Pass};
use super::map::{counted, usable, Map, MapLoss, Quality};
use crate::density::{Evaluation, Status};
use crate::error::{Error, Result};
use crate::models::coupling::CouplingFlow;
use crate::models::{flow_of, Model};
use crate::modes::{Modes, Within};
use crate::rng::Stream;
use crate::target::Target;
use crate::weights::{self, Estimate};
use std::sync::Arc;

/// Frames of two modes, between which T_b ∘ T_a⁻¹ is to jump.
pub struct Jump {
    modes: Modes,
    /// Indices of the modes a and b.
    ends: [usize; 2],
    there: Map,
    from: Arc<dyn Model>,
    /// Frames of b `[n][dimension]`, and their reduced potentials.
    frames: Vec<f64>,
    u: Vec<f64>,
    /// Number of frames of b held out for evaluations, the first ones.
    held_out: usize,
}

impl Jump {
    /// From a flow for mode `ends[0]` and frames `x[n][dimension]` of both modes with their reduced potentials `u[n]`,
    /// in that order. The fraction `held_out` of either is never trained on. Proposals outside the intended mode do not
    /// count.
    ///
    /// Errors: a model without a latent space; too few frames.
    pub fn new(
        from: Arc<dyn Model>,
        modes: Modes,
        ends: [usize; 2],
        x: [&[f64]; 2],
        u: [&[f64]; 2],
        held_out: f64,
    ) -> Result<Jump> {
        let there = Map::new(from.as_ref(), x[0], u[0], held_out)?;
        let d = from.dimension();
        let usable: Vec<usize> = (0..u[1].len()).filter(|&i| u[1][i].is_finite()).collect();
        let kept = (usable.len() as f64 * held_out) as usize;
        if kept < 2 || usable.len() - kept < 2 {
            return Err(Error::invalid(format!(
                "{} usable frames of mode `{}`, too few to train on with a fraction of {held_out} held out",
                usable.len(),
                modes.names()[ends[1]]
            )));
        }
        let frames = usable.iter().flat_map(|&i| x[1][i * d..][..d].iter().copied()).collect();
        let u = usable.iter().map(|&i| u[1][i]).collect();
        Ok(Jump { modes, ends, there, from, frames, u, held_out: kept })
    }

    fn within<'t>(&self, target: &'t mut dyn Target, end: usize) -> Within<'t> {
        Within { target, modes: self.modes.clone(), mode: self.ends[end] }
    }

    /// Images of these frames of b in a, and the intermediates of the pass.
    fn back(&self, flow: &CouplingFlow<f32>, rows: &[usize]) -> Result<Back> {
        let d = self.from.dimension();
        let pass = Pass::encode(flow, rows.iter().flat_map(|&i| &self.frames[i * d..][..d]).copied().collect());
        let z = pass.latent();
        let n = rows.len();
        let (mut x, mut log_det) = (vec![0.0; n * d], vec![0.0; n]);
        let mut evaluations = vec![Evaluation::outside(Status::NonFinite); n];
        flow_of(self.from.as_ref())?.generate(&z, &mut x, &mut log_det, &mut evaluations)?;
        for (evaluation, reached) in evaluations.iter_mut().zip(&pass.log_q) {
            if !reached.is_inside() {
                *evaluation = *reached;
            }
        }
        Ok(Back { pass, z, x, log_det, evaluations })
    }

    /// log W⁻¹ of frames of b whose images have these reduced potentials.
    fn weigh(&self, back: &Back, rows: &[usize], u: &[f64]) -> Vec<f64> {
        let there = back.pass.log_det();
        let weigh = |i: usize| usable(self.u[rows[i]] - u[i] + back.log_det[i] - there[i], &back.evaluations[i]);
        (0..rows.len()).map(weigh).collect()
    }
}

/// Frames of b mapped to a.
struct Back {
    /// Pass through T_b⁻¹.
    pass: Pass,
    z: Vec<f64>,
    /// T_a(z), ln|∂T_a/∂z| and whether there is an image.
    x: Vec<f64>,
    log_det: Vec<f64>,
    evaluations: Vec<Evaluation>,
}

impl MapLoss for Jump {
    fn reverse_kl(
        &self,
        flow: &CouplingFlow<f32>,
        target: &mut dyn Target,
        n: usize,
        stream: &mut Stream,
        scale: f64,
        gradient: &mut [f32],
    ) -> Result<Vec<f64>> {
        let n = n.div_ceil(2);
        let mut within = self.within(target, 1);
        let mut log_w = self.there.reverse_kl(flow, &mut within, n, stream, 0.5 * scale, gradient)?;
        let mut within = self.within(target, 0);
        let frames = self.u.len() - self.held_out;
        let rows: Vec<usize> = (0..n).map(|_| self.held_out + stream.below(frames)).collect();
        let mut back = self.back(flow, &rows)?;
        let (mut u, mut gx) = (vec![0.0; n], vec![0.0; back.x.len()]);
        within.reduced_potential_gradient(&back.x, &mut u, &mut gx)?;
        log_w.extend(self.weigh(&back, &rows, &u));
        let share = 0.5 * scale / n as f64;
        let counts = counted(&back.evaluations, &u, share);
        let nothing = vec![0.0; gx.len()];
        regularise(&u, &back.evaluations, &mut gx, &nothing, share);
        let g_log_det: Vec<f64> = counts.iter().map(|share| -share).collect();
        let mut gz = vec![0.0; back.z.len()];
        flow_of(self.from.as_ref())?.pull_back(&back.z, &gx, &g_log_det, &mut gz)?;
        back.pass.back_from_latent(flow, &gz, &counts, gradient);
        Ok(log_w)
    }

    fn quality(&self, flow: &CouplingFlow<f32>, target: &mut dyn Target, n: usize) -> Result<Quality> {
        let there = self.there.log_weights(flow, &mut self.within(target, 1), &self.there.held_out(n))?;
        let rows = spread(self.held_out, n);
        let images = self.back(flow, &rows)?;
        let mut u = vec![0.0; rows.len()];
        self.within(target, 0).reduced_potential(&images.x, &mut u)?;
        let back = self.weigh(&images, &rows, &u);
        let accepted = |log_w: &[f64]| log_w.iter().map(|w| w.min(0.0).exp()).sum::<f64>() / log_w.len() as f64;
        // by detailed balance as many jumps are accepted from either end, so there are b attempts from one to a from the
        // other: (b a + a b)/(a + b) of all are accepted
        let (a, b) = (accepted(&there), accepted(&back));
        let ess = |log_w: &[f64]| weights::effective_sample_size(log_w).map_or(0.0, |ess| ess / log_w.len() as f64);
        Ok(Quality {
            ess: ess(&there).min(ess(&back)),
            pareto_k: weights::pareto_k(&there).unwrap_or(f64::NAN),
            log_z: Estimate { value: f64::NAN, standard_error: f64::NAN },
            acceptance: if a + b > 0.0 { 2.0 * a * b / (a + b) } else { 0.0 },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinates::{Along, CoordinatesConfig, Region};
    use crate::models::coupling::{CouplingConfig, Features, LayerConfig};
    use crate::models::ModelCard;
    use crate::modes::ModeRegion;
    use crate::moves::{Edge, ModeJump, Move, State};
    use crate::nn::Activation;
    use crate::rng::StreamId;
    use crate::train::{Phase, TrainOptions, Trainer};

    const D: usize = 2;
    const MEANS: [f64; 2] = [-2.0, 2.0];
    const SDS: [[f64; 2]; 2] = [[0.3, 0.5], [0.4, 0.2]];

    /// Affine couplings, initially the identity, then a normal density about one of the means.
    fn flow(mean: f64, sds: [f64; 2], couplings: usize) -> CouplingFlow<f32> {
        let coupling = |turn: usize| LayerConfig::Affine {
            transformed: vec![turn % 2],
            features: Features { periodic: vec![], harmonics: 1, plain: vec![1 - turn % 2] },
            hidden: vec![8],
            activation: Activation::Silu,
            scale_activation: None,
            preserve_volume: false,
        };
        let normal = LayerConfig::Whiten {
            transformed: vec![0, 1],
            mean: vec![mean, 0.0],
            matrix: vec![sds[0], 0.0, 0.0, sds[1]],
        };
        let layers = (0..couplings).map(coupling).chain([normal]).collect();
        let card = ModelCard::of_coupling(
            CouplingConfig { uniform: vec![], layers },
            CoordinatesConfig::Cartesian { dimension: D },
        );
        let mut flow = CouplingFlow::new(card).unwrap();
        flow.initialise(3);
        flow
    }

    /// Two normal densities, the second raised by one kT.
    struct Two;

    impl Target for Two {
        fn dimension(&self) -> usize {
            D
        }
        fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
            self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
        }
        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            for ((x, g), u) in x.chunks_exact(D).zip(gradient.chunks_exact_mut(D)).zip(u) {
                let mode = usize::from(x[0] >= 0.0);
                let scaled = [(x[0] - MEANS[mode]) / SDS[mode][0], x[1] / SDS[mode][1]];
                *u = 0.5 * (scaled[0].powi(2) + scaled[1].powi(2)) + mode as f64;
                (0..D).for_each(|k| g[k] = scaled[k] / SDS[mode][k]);
            }
            Ok(())
        }
    }

    fn modes() -> Modes {
        let half = |name: &str, range: [f64; 2]| ModeRegion {
            name: name.into(),
            within: vec![Region { along: Along::Component(0), range }],
            centre: vec![],
        };
        Modes::new(&[], &[half("left", [-9.0, 0.0]), half("right", [0.0, 9.0])], D).unwrap()
    }

    fn frames(mode: usize) -> Vec<f64> {
        let mut stream = Stream::new(11 + mode as u64, StreamId::Test, 0, 0);
        (0..1000).flat_map(|_| [MEANS[mode] + SDS[mode][0] * stream.normal(), SDS[mode][1] * stream.normal()]).collect()
    }

    fn from() -> Arc<dyn Model> {
        Arc::new(flow(MEANS[0], SDS[0], 0))
    }

    fn jump() -> Jump {
        let x = [frames(0), frames(1)];
        let u = [0, 1].map(|mode| {
            let mut u = vec![0.0; 1000];
            Two.reduced_potential(&x[mode], &mut u).unwrap();
            u
        });
        Jump::new(from(), modes(), [0, 1], [&x[0], &x[1]], [&u[0], &u[1]], 0.3).unwrap()
    }

    /// In the right mode, with wrong widths and a slightly wrong mean.
    fn start() -> CouplingFlow<f32> {
        flow(1.8, [0.25, 0.3], 4)
    }

    #[test]
    fn its_gradient_is_that_of_finite_differences() {
        let (jump, mut flow) = (jump(), start());
        let mut stream = Stream::new(6, StreamId::Test, 0, 0);
        flow.parameters_mut().iter_mut().for_each(|p| *p += 0.03 * stream.normal() as f32);
        let batch = || Stream::new(7, StreamId::Test, 0, 0);
        let loss = |flow: &CouplingFlow<f32>, gradient: &mut [f32]| {
            let log_w = jump.reverse_kl(flow, &mut Two, 200, &mut batch(), 2.0, gradient).unwrap();
            assert!(log_w.iter().all(|w| w.is_finite()), "{log_w:?}");
            -2.0 * log_w.iter().sum::<f64>() / 200.0
        };
        let mut gradient = vec![0.0; flow.parameters().len()];
        loss(&flow, &mut gradient);
        let mut largest: Vec<usize> = (0..gradient.len()).collect();
        largest.sort_by(|&i, &j| gradient[j].abs().total_cmp(&gradient[i].abs()));
        for &k in &largest[..8] {
            let mut shifted = |shift: f32| {
                flow.parameters_mut()[k] += shift;
                let loss = loss(&flow, &mut vec![0.0; gradient.len()]);
                flow.parameters_mut()[k] -= shift;
                loss
            };
            let difference = (shifted(3e-3) - shifted(-3e-3)) / 6e-3;
            assert!((f64::from(gradient[k]) / difference - 1.0).abs() < 0.02, "{k}: {} {difference}", gradient[k]);
        }
    }

    /// The acceptance that training reports is that of the move, and the bijection becomes nearly perfect: then W is
    /// Z_b/Z_a for all x.
    #[test]
    fn training_tells_the_acceptance_of_the_move() {
        let phase = Phase { steps: 600, rate: 0.02, energy_batch: 64, ..Phase::of_map() };
        let options = TrainOptions { phases: vec![phase], evaluate: 300, average: 0.9, ..TrainOptions::default() };
        let before = jump().quality(&start(), &mut Two, 300).unwrap();
        let mut target = Two;
        let mut trainer = Trainer::new(start(), &[], Some(&mut target), options).unwrap().with_map(jump()).unwrap();
        while !trainer.is_finished() {
            trainer.step().unwrap();
        }
        let last = trainer.state().history.last().unwrap().clone();
        let z = |mode: usize| SDS[mode][0] * SDS[mode][1] * (-(mode as f64)).exp();
        // with W = Z_b/Z_a = r everywhere, min(1, r) and min(1, 1/r) of the jumps are accepted
        let r = z(1) / z(0);
        let perfect = 2.0 * r / (1.0 + r);
        assert!(before.ess < 0.8 && last.ess > 0.98, "{before:?} {last:?}");
        assert!((last.acceptance - perfect).abs() < 0.02, "{last:?}");

        let to: Arc<dyn Model> = Arc::new(trainer.averaged().unwrap());
        let map = crate::bijection::Bijection::new(from(), to).unwrap();
        let edge = Edge { modes: [0, 1], map, weights: [1.0; 2] };
        let mut move_ = ModeJump::new(modes(), vec![edge], 5).unwrap();
        let mut accepted = [0.0; 2];
        for (step, x) in frames(0)[..600].chunks_exact(D).chain(frames(1)[..600].chunks_exact(D)).enumerate() {
            let (mut x, mut u) = (x.to_vec(), [0.0]);
            Two.reduced_potential(&x, &mut u).unwrap();
            let mut state =
                State { x: &mut x, box_vectors: None, reduced_potential: u[0], step: step as u64, replica: 0 };
            let outcome = move_.attempt(&mut Two, &mut state).unwrap();
            accepted[step / 300] += outcome.log_acceptance.min(0.0).exp() / 300.0;
        }
        let [a, b] = accepted;
        let in_equilibrium = 2.0 * a * b / (a + b);
        assert!((in_equilibrium - last.acceptance).abs() < 1e-3, "{accepted:?} {}", last.acceptance);
    }

    #[test]
    fn proposals_in_the_wrong_mode_and_useless_frames_do_not_count() {
        // a map that stays near the left mode: every proposal is in the wrong one
        let stays = flow(-1.9, [0.3, 0.3], 4);
        let quality = jump().quality(&stays, &mut Two, 300).unwrap();
        assert_eq!((quality.acceptance, quality.ess), (0.0, 0.0));
        let x = frames(0);
        let refused = |n: usize, u: f64| {
            let u = vec![u; 1000];
            let few: &[f64] = &x[..n * D];
            Jump::new(from(), modes(), [0, 1], [&x, few], [&vec![0.0; 1000], &u[..n]], 0.3).err().unwrap().to_string()
        };
        assert!(refused(3, 0.0).contains("3 usable frames of mode `right`"));
        assert!(refused(1000, f64::NAN).contains("0 usable frames of mode `right`"));
    }
}
