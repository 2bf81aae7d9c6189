//! TarFlow: an autoregressive flow of transformers over the Cartesian coordinates (Zhai et al., 2024; Sequential
//! Boltzmann Generators: Tan et al., ICML 2025).
//!
//! The 3N coordinates, in units of their standard deviation, form T tokens of D numbers. Block b reads the tokens in
//! forward order if b is even, in reverse order if it is odd, and maps u to v with causal transformers:
//!
//! ```text
//! y = W u + p;   every layer:  y += O attention(LN(y)),   y += F₂ gelu(F₁ LN(y))      (causal)
//! (a_i, b_i) = W′ y_{i−1},  (a_0, b_0) = 0;   v_i = (u_i − b_i) e^{−a_i};   ln|∂v/∂u| = −Σ a
//! ```
//!
//! [`transferable`] has networks for all peptides; they differ in the conditioning of a block and in the token order.
//!
//! z is the output of the last block, standard normal. In the inverse direction u_i = v_i e^{a_i} + b_i is found token
//! by token with a key/value cache of the earlier tokens. ln|∂x/∂z| = Σ a is a by-product, so one pass gives x and log
//! q.
//!
//! **The centroid.** The network is trained on centred configurations to whose centroid normal noise of standard
//! deviation σ was added, since a flow cannot live on the centred space. Its log-density at a configuration with
//! centroid c is taken relative to that noise: log q(x) − ln N(c; 0, σ²), the density of (x, c) for a target e^{−u(x)}
//! N(c; 0, σ²). A move gives the current configuration a fresh c ([`Scope::Noisy`]); the weights −u − log q of samples
//! are those of that target.
//!
//! **Chirality.** The network is not the same for a molecule and its mirror image, so nothing is folded: a sample of
//! the wrong hand has zero density. The rest is not renormalised; log q lacks the constant −ln of the fraction of
//! samples with the right hand.

mod attention;
mod cuda;
mod decoding;
pub mod format;
mod network;
mod runner;
#[cfg(test)]
mod tests;
pub mod transferable;

pub use cuda::{programs, TarFlowOnDevice};
pub use decoding::{Decoded, Decoding, Jacobi};
pub use network::{Recorded, TarNetwork};
pub use transferable::PeptideConfig;

use super::network::{narrow, Trainable};
use super::{Flow, Model, ModelCard, ModelConfig, LOG_2_PI};
use crate::coordinates::vector::centroid;
use crate::coordinates::{CoordinatesConfig, Stereocentre, Topology};
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::error::{Error, Result};
use crate::nn::memory::Spares;
use crate::nn::product::to_bfloat16;
use crate::nn::{Real, Tape, Var};
use crate::rng::Stream;
use decoding::Counters;
use rayon::prelude::*;
use runner::Runner;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Configurations that run together from the data to the prior: few, as each has as many rows as tokens.
const CHUNK: usize = 2;
/// Samples that run together from the prior to the data, one row each: many, as the weights are reread for every token.
const SAMPLES: usize = 64;

/// Configuration in a TarFlow's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub network: TarFlowConfig,
    /// Units of the network per nm: the inverse standard deviation of the training data.
    pub units_per_nm: f64,
    /// Standard deviation σ of the centroid's components in the training data, in the network's units; 1/√N in the
    /// paper. None: the density is over all coordinates as they are.
    pub centroid: Option<f64>,
    /// A molecule of another hand has zero density; if empty, chirality is not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stereocentres: Vec<Stereocentre>,
}

/// Sizes of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TarFlowConfig {
    /// Number of tokens T.
    pub tokens: usize,
    /// Numbers per token D; T D = 3N.
    pub token_size: usize,
    pub channels: usize,
    pub blocks: usize,
    pub layers: usize,
    pub heads: usize,
    /// Hidden width of the perceptrons, as a multiple of the channels.
    pub expansion: usize,
}

/// The generator with networks of type `R`. Latent points are z.
pub struct TarFlow<R: Real> {
    network: TarNetwork,
    parameters: Arc<[R]>,
    runner: Arc<Runner<R>>,
    /// Tapes for gradients.
    tapes: Spares<Tape<R>>,
    scale: Scale,
    options: Options,
    decoded: Counters,
    stereocentres: Vec<Stereocentre>,
    card: ModelCard,
    hash: String,
}

/// Evaluation options of a TarFlow; not part of its file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    pub decoding: Decoding,
    pub centroid: Centroid,
}

/// The density of the centroid c, noise of standard deviation σ, that is divided out of q.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Centroid {
    /// N(c; 0, σ²): a perfect model has equal weights.
    #[default]
    Gauss3,
    /// The density of r = |c|, where r/σ has a χ distribution with three degrees of freedom (Tan et al., proposition
    /// 1). It leaves a factor r² in the weights, so a perfect model has 9/15 of the effective samples. Averages of
    /// observables that do not depend on c are right, but the result is no density: a surrogate, which no move accepts.
    Chi3,
}

/// What TarFlows of any precision offer beyond other models.
pub trait Autoregressive {
    /// The same model with other evaluation options. Errors: options out of range.
    fn with_options(&self, options: Options) -> Result<Arc<dyn Model>>;

    /// Counts of the samples decoded by iteration.
    fn decoded(&self) -> Decoded;
}

/// The model with other evaluation options.
///
/// Errors: options out of range; options other than the default for a model that is not a TarFlow.
pub fn with_options(model: Arc<dyn Model>, options: Options) -> Result<Arc<dyn Model>> {
    if options == Options::default() {
        return Ok(model);
    }
    let kind = model.card().model.kind();
    let none = || {
        Error::Unsupported(format!(
            "iterative decoding and centroid densities are supported only for TarFlows, not for a model of kind {kind}"
        ))
    };
    model.autoregressive().ok_or_else(none)?.with_options(options)
}

/// Scale between the network's units and nm, and the centroid's noise.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub units_per_nm: f64,
    /// Standard deviation σ of the centroid's noise in the network's units, to be divided out.
    pub centroid: Option<f64>,
}

impl Scale {
    /// Scale of a transferable model for a peptide with `atoms` atoms.
    fn of_peptide(config: &transferable::Config, atoms: usize) -> Scale {
        let sigma = 1.0 / (atoms as f64).sqrt();
        Scale { units_per_nm: config.units_per_nm, centroid: config.noisy_centroid.then_some(sigma) }
    }
}

impl<R: Real> TarFlow<R> {
    /// A model of a single system.
    ///
    /// Errors: options out of range; a card of other coordinates or another exactness; a topology of another size.
    pub fn new(parameters: Vec<R>, config: Config, card: ModelCard, hash: String) -> Result<TarFlow<R>> {
        let network = TarNetwork::new(config.network)?;
        let scale = Scale { units_per_nm: config.units_per_nm, centroid: config.centroid };
        Ok(TarFlow { hash, ..TarFlow::of_network(network, parameters, scale, card)? })
    }

    /// A transferable model for the peptide in the card.
    ///
    /// Errors: those of [`TarFlow::new`]; no topology in the card, or one that the model cannot express.
    pub fn of_peptide(
        parameters: Vec<R>,
        config: &transferable::Config,
        card: ModelCard,
        hash: String,
    ) -> Result<TarFlow<R>> {
        let topology = card.topology.as_ref().ok_or_else(no_topology)?;
        let network = TarNetwork::of_peptide(&config.network, topology)?;
        let scale = Scale::of_peptide(config, topology.n_atoms());
        Ok(TarFlow { hash, ..TarFlow::of_network(network, parameters, scale, card)? })
    }

    /// A model of any network, not from a file. Panics if the number of parameters is not the network's.
    ///
    /// Errors: those of [`TarFlow::new`].
    pub fn of_network(network: TarNetwork, parameters: Vec<R>, scale: Scale, card: ModelCard) -> Result<TarFlow<R>> {
        assert_eq!(parameters.len(), network.layout().n_parameters());
        let runner = Runner::new(&network, &parameters, false);
        TarFlow::with(network, parameters.into(), runner, scale, card)
    }

    /// The same model with its matrices rounded to bfloat16 (8 significant bits). Drawing a single sample, whose time
    /// is that of reading the weights, reads half as much. From then on the model is that of the rounded weights, in
    /// the same arithmetic for one row or many: log q of a sample, and of a given configuration, come from one density.
    ///
    /// Errors: those of [`TarFlow::new`].
    pub fn with_bfloat16_weights(self) -> Result<TarFlow<R>> {
        let mut parameters = self.parameters.to_vec();
        for w in self.network.matrices() {
            for place in (0..w.n_in).flat_map(|i| (0..w.n_out).map(move |o| w.place(i, o))) {
                parameters[place] = R::from_f64(to_bfloat16(parameters[place].to_f64() as f32).into());
            }
        }
        let runner = Runner::new(&self.network, &parameters, true);
        Ok(TarFlow {
            hash: self.hash,
            ..TarFlow::with(self.network, parameters.into(), runner, self.scale, self.card)?
        })
    }

    /// The same transferable model for another peptide, of either hand; the weights are shared. It has no hash, as it
    /// is not from a file.
    ///
    /// Errors: a model of a single system; a topology that the model cannot express.
    pub fn bind(&self, topology: Topology) -> Result<TarFlow<R>> {
        let ModelConfig::TransferableTarflow(config) = &self.card.model else {
            return Err(Error::invalid("a single-system model cannot be used for another system"));
        };
        let network = TarNetwork::of_peptide(&config.network, &topology)?;
        let scale = Scale::of_peptide(config, topology.n_atoms());
        let runner = self.runner.bind(&network, &self.parameters);
        TarFlow::with(network, self.parameters.clone(), runner, scale, self.card.of_peptide(topology))
    }

    fn with(
        network: TarNetwork,
        parameters: Arc<[R]>,
        runner: Runner<R>,
        scale: Scale,
        card: ModelCard,
    ) -> Result<TarFlow<R>> {
        let dimension = network.dimension();
        if card.coordinates != (CoordinatesConfig::Cartesian { dimension }) || card.exactness != Exactness::Exact {
            let message = format!(
                "a TarFlow of {dimension} coordinates must be described as exact, with the same number of Cartesian \
                 coordinates"
            );
            return Err(Error::invalid(message));
        }
        card.require_dimension(dimension)?;
        let positive = |v: f64| v > 0.0 && v.is_finite();
        if !positive(scale.units_per_nm) || scale.centroid.is_some_and(|s| !positive(s)) {
            return Err(Error::invalid("units_per_nm and centroid must be positive"));
        }
        if scale.centroid.is_some() && !dimension.is_multiple_of(3) {
            return Err(Error::invalid(format!(
                "a model with a centroid must have three coordinates per atom, found {dimension} coordinates"
            )));
        }
        let stereocentres = match &card.model {
            ModelConfig::Tarflow(config) => config.stereocentres.clone(),
            ModelConfig::TransferableTarflow(config) => config.stereocentres.clone(),
            _ => Vec::new(),
        };
        if let Some(centre) = stereocentres.iter().find(|s| s.last_atom() >= dimension / 3) {
            let (last, atoms) = (centre.last_atom() + 1, dimension / 3);
            return Err(Error::invalid(format!(
                "a stereocentre refers to atom {last}, but the model has {atoms} atoms"
            )));
        }
        let (runner, options, decoded) = (Arc::new(runner), Options::default(), Counters::default());
        Ok(TarFlow {
            network,
            parameters,
            runner,
            tapes: Spares::default(),
            scale,
            options,
            decoded,
            stereocentres,
            card,
            hash: String::new(),
        })
    }

    /// The same model with other evaluation options; the weights are shared.
    ///
    /// Errors: options out of range; another centroid density where the centroid is not noise.
    pub fn with_options(&self, options: Options) -> Result<TarFlow<R>> {
        options.decoding.check()?;
        if options.centroid != Centroid::default() && self.scale.centroid.is_none() {
            return Err(Error::invalid(
                "this model has no centroid noise to divide out: centroid densities are not supported",
            ));
        }
        Ok(TarFlow {
            network: self.network.clone(),
            parameters: self.parameters.clone(),
            runner: self.runner.clone(),
            tapes: Spares::default(),
            scale: self.scale,
            options,
            decoded: Counters::default(),
            stereocentres: self.stereocentres.clone(),
            card: self.card.clone(),
            hash: self.hash.clone(),
        })
    }

    /// Counts of the samples decoded by iteration.
    pub fn decoded(&self) -> Decoded {
        self.decoded.read()
    }

    /// x, ln|∂x/∂z| and log q of one latent point, by iteration and from the likelihood of x; None where x is not
    /// within the tolerance.
    fn decode_together(&self, z: &[f64], how: &Jacobi, x: &mut [f64]) -> Option<(f64, Evaluation)> {
        let mut passes = 0;
        let at_rest = self.runner.decode_together(z, x, how, &mut passes);
        let (mut back, mut log_det) = (vec![0.0; z.len()], [0.0]);
        let close = at_rest && {
            self.runner.encode(x, &mut back, &mut log_det);
            back.iter().zip(z).all(|(back, z)| (back - z).abs() <= how.tolerance)
        };
        self.decoded.count(passes, !close);
        close.then(|| {
            x.iter_mut().for_each(|x| *x /= self.scale.units_per_nm);
            (-log_det[0], self.evaluation(x, &back, log_det[0]))
        })
    }

    /// The transformers.
    pub fn network(&self) -> &TarNetwork {
        &self.network
    }

    /// Parameters in the order of the network's layout.
    pub fn parameters(&self) -> &[R] {
        &self.parameters
    }

    /// Floating-point operations of the matrix products and the attention in one likelihood, and nearly those of one
    /// sample; a multiply-add counts as two.
    pub fn flops(&self) -> f64 {
        let mut tape = Tape::default();
        let given = self.runner.given(&mut tape);
        let x = vec![R::default(); self.network.dimension()];
        self.network.record_given(&self.parameters, &mut tape, &x, &given);
        tape.flops()
    }

    /// log q from ln|∂z/∂x| in the network's units.
    fn evaluation(&self, x: &[f64], z: &[f64], log_det: f64) -> Evaluation {
        let d = z.len() as f64;
        let prior = -0.5 * (z.iter().map(|z| z * z).sum::<f64>() + d * LOG_2_PI);
        let mut log_density = prior + log_det + d * self.scale.units_per_nm.ln();
        if let Some(sigma) = self.centroid_nm() {
            log_density += self.options.centroid.term(x, sigma).0;
        }
        if !x.iter().chain(z).all(|v| v.is_finite()) {
            return Evaluation::outside(Status::NonFinite);
        }
        match self.stereocentres.iter().all(|centre| centre.holds(x)) {
            true => Evaluation::inside(log_density),
            false => Evaluation::outside(Status::WrongChirality),
        }
    }

    /// Converts the result of decoding, x and ln|∂x/∂z| in the network's units, to nm, and fills in log q.
    fn finish_decoding(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) {
        let d = self.network.dimension();
        let scale = d as f64 * self.scale.units_per_nm.ln();
        x.iter_mut().for_each(|x| *x /= self.scale.units_per_nm);
        let rows = z.chunks_exact(d).zip(x.chunks_exact(d));
        for ((z, x), (log_det, log_density)) in rows.zip(log_det.iter_mut().zip(log_density)) {
            *log_density = self.evaluation(x, z, -*log_det);
            *log_det -= scale;
        }
    }

    /// Converts the result of encoding x (nm), z and ln|∂z/∂x| in the network's units, to ln|∂x/∂z| in nm, and fills in
    /// log q.
    fn finish_encoding(&self, x: &[f64], z: &[f64], log_det: &mut [f64], log_density: &mut [Evaluation]) {
        let d = self.network.dimension();
        let scale = d as f64 * self.scale.units_per_nm.ln();
        let rows = x.chunks_exact(d).zip(z.chunks_exact(d));
        for ((x, z), (log_det, log_density)) in rows.zip(log_det.iter_mut().zip(log_density)) {
            *log_density = self.evaluation(x, z, *log_det);
            *log_det = -*log_det - scale;
        }
    }

    /// Fills in log q, and converts its gradient from the network's units to nm.
    fn finish_gradient(
        &self,
        x: &[f64],
        z: &[f64],
        log_det: &[f64],
        log_density: &mut [Evaluation],
        gradient: &mut [f64],
    ) {
        let d = self.network.dimension();
        gradient.iter_mut().for_each(|g| *g *= self.scale.units_per_nm);
        let rows = x.chunks_exact(d).zip(z.chunks_exact(d)).zip(log_det);
        let results = log_density.iter_mut().zip(gradient.chunks_exact_mut(d));
        for (((x, z), &log_det), (evaluation, gradient)) in rows.zip(results) {
            *evaluation = self.evaluation(x, z, log_det);
            if let Some(sigma) = self.centroid_nm() {
                let (c, atoms) = (centroid(x), (d / 3) as f64);
                let slope = self.options.centroid.term(x, sigma).1 / atoms;
                gradient.iter_mut().enumerate().for_each(|(k, g)| *g += slope * c[k % 3]);
            }
            if !evaluation.is_inside() {
                gradient.fill(0.0);
            }
        }
    }

    /// σ in nm.
    fn centroid_nm(&self) -> Option<f64> {
        self.scale.centroid.map(|sigma| sigma / self.scale.units_per_nm)
    }
}

fn no_topology() -> Error {
    Error::invalid("a transferable model requires a topology; add one with `modejump convert --topology`")
}

impl Centroid {
    /// Term added to log q, and the k in its gradient k c with respect to the centroid.
    ///
    /// [`Centroid::Gauss3`]: −ln N(c; 0, σ²), with the N^{3/2} by which the volume of x exceeds that of its centroid
    /// times that of the centred configuration. [`Centroid::Chi3`]: −ln (√(2/π) r²/σ³ e^{−r²/2σ²}), as published.
    fn term(self, x: &[f64], sigma: f64) -> (f64, f64) {
        let (squared, stiffness) = (centroid(x).iter().map(|c| c * c).sum::<f64>(), 1.0 / (sigma * sigma));
        match self {
            Centroid::Gauss3 => {
                let atoms = (x.len() / 3) as f64;
                (0.5 * stiffness * squared + 1.5 * (LOG_2_PI + 2.0 * sigma.ln() + atoms.ln()), stiffness)
            }
            Centroid::Chi3 => {
                let constant = 0.5 * (0.5 * std::f64::consts::PI).ln() + 3.0 * sigma.ln();
                (0.5 * stiffness * squared - squared.ln() + constant, stiffness - 2.0 / squared)
            }
        }
    }
}

impl<R: Real> Flow for TarFlow<R> {
    fn latent_dimension(&self) -> usize {
        self.network.dimension()
    }

    fn generate(&self, z: &[f64], x: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let d = self.network.dimension();
        let scale = d as f64 * self.scale.units_per_nm.ln();
        // small enough that every thread gets a part
        let part = match self.options.decoding {
            Decoding::Sequential => log_det.len().div_ceil(rayon::current_num_threads()).clamp(1, SAMPLES),
            Decoding::Jacobi(_) => 1, // so that a sample does not depend on those beside it
        };
        let chunks = z.par_chunks(part * d).zip(x.par_chunks_mut(part * d));
        let numbers = log_det.par_chunks_mut(part).zip(log_density.par_chunks_mut(part));
        chunks.zip(numbers).for_each(|((z, x), (log_det, log_density))| {
            if let Decoding::Jacobi(how) = &self.options.decoding {
                if let Some((found, evaluation)) = self.decode_together(z, how, x) {
                    (log_det[0], log_density[0]) = (found - scale, evaluation);
                    return;
                }
            }
            self.runner.decode(z, x, log_det);
            self.finish_decoding(z, x, log_det, log_density);
        });
        Ok(())
    }

    fn encode(&self, x: &[f64], z: &mut [f64], log_det: &mut [f64], log_density: &mut [Evaluation]) -> Result<()> {
        let d = self.network.dimension();
        let chunks = x.par_chunks(CHUNK * d).zip(z.par_chunks_mut(CHUNK * d));
        let numbers = log_det.par_chunks_mut(CHUNK).zip(log_density.par_chunks_mut(CHUNK));
        chunks.zip(numbers).for_each(|((x, z), (log_det, log_density))| {
            let scaled: Vec<f64> = x.iter().map(|x| x * self.scale.units_per_nm).collect();
            self.runner.encode(&scaled, z, log_det);
            self.finish_encoding(x, z, log_det, log_density);
        });
        Ok(())
    }
}

impl<R: Real> Autoregressive for TarFlow<R> {
    fn with_options(&self, options: Options) -> Result<Arc<dyn Model>> {
        Ok(Arc::new(TarFlow::with_options(self, options)?))
    }

    fn decoded(&self) -> Decoded {
        TarFlow::decoded(self)
    }
}

/// Sum of each row of a variable.
fn sums<R: Real>(tape: &Tape<R>, var: Var) -> Vec<f64> {
    tape.value(var).chunks_exact(var.columns).map(|row| row.iter().map(|v| v.to_f64()).sum()).collect()
}

impl<R: Real> Density for TarFlow<R> {
    fn dimension(&self) -> usize {
        self.network.dimension()
    }

    fn exactness(&self) -> Exactness {
        match self.options.centroid {
            Centroid::Gauss3 => Exactness::Exact,
            Centroid::Chi3 => Exactness::Surrogate,
        }
    }

    fn scope(&self) -> Scope {
        self.centroid_nm().map_or(Scope::Full, |sigma| Scope::Noisy { sigma })
    }

    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        let n = self.rows(x, log_density)?;
        let mut z = vec![0.0; x.len()];
        z.chunks_exact_mut(self.dimension()).enumerate().for_each(|(row, z)| streams(row).fill_normal(z));
        self.generate(&z, x, &mut vec![0.0; n], log_density)
    }

    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        let n = self.rows(x, log_density)?;
        self.encode(x, &mut vec![0.0; x.len()], &mut vec![0.0; n], log_density)
    }

    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.rows(x, log_density)?;
        self.rows(gradient, log_density)?;
        let (d, units) = (self.network.dimension(), self.scale.units_per_nm);
        let chunks = x.par_chunks(CHUNK * d).zip(gradient.par_chunks_mut(CHUNK * d));
        chunks.zip(log_density.par_chunks_mut(CHUNK)).for_each(|((x, gradient), log_density)| {
            let scaled: Vec<f64> = x.iter().map(|x| x * units).collect();
            self.tapes.with(Tape::default, |tape| {
                tape.clear();
                let given = self.runner.given(tape);
                let recorded = self.network.record_given(&self.parameters, tape, &narrow(&scaled), &given);
                let z: Vec<R> = tape.value(recorded.z).to_vec();
                let minus_z: Vec<R> = z.iter().map(|&z| -z).collect();
                let ones = vec![R::from_f64(1.0); log_density.len() * recorded.log_det.columns];
                tape.backward(&self.parameters, &[(recorded.z, &minus_z), (recorded.log_det, &ones)], None);
                gradient.iter_mut().zip(tape.cotangent(recorded.x)).for_each(|(g, c)| *g = c.to_f64());
                let z: Vec<f64> = z.iter().map(|z| z.to_f64()).collect();
                self.finish_gradient(x, &z, &sums(tape, recorded.log_det), log_density, gradient);
            });
        });
        Ok(())
    }
}

impl<R: Real> Model for TarFlow<R> {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn hash(&self) -> &str {
        &self.hash
    }

    fn flow(&self) -> Option<&dyn Flow> {
        Some(self)
    }

    fn autoregressive(&self) -> Option<&dyn Autoregressive> {
        Some(self)
    }
}
