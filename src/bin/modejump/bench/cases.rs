//! Benchmark cases: models of fixed sizes, and one timed piece of work per name.

use modejump::coordinates::{CoordinatesConfig, Topology};
use modejump::density::{Density, Evaluation};
use modejump::io::model_file;
use modejump::models::card::ModelCard;
use modejump::models::continuous::{ContinuousFlow, Interpolant};
use modejump::models::coupling::{CouplingConfig, CouplingFlow, Ends, Features, LayerConfig};
use modejump::models::egnn_flow::{Egnn, EgnnConfig};
use modejump::models::graphormer_ebm::{Graphormer, GraphormerConfig, Version};
use modejump::models::gvp_ebm::GvpEnergy;
use modejump::models::gvp_flow::{GvpConfig, GvpField, GvpFlow};
use modejump::models::invariant_ebm::whitening::Whitening;
use modejump::models::invariant_ebm::{InvariantConfig, InvariantNetwork};
use modejump::models::layout::Start;
use modejump::models::network::{Evaluator, Network, Trainable};
use modejump::models::tarflow::transferable::{Config, EmbeddingConfig, RESIDUE_BASE};
use modejump::models::tarflow::{self, PeptideConfig, TarFlow, TarFlowConfig, TarNetwork};
use modejump::models::{EnergyFunction, Model, VectorField};
use modejump::moves::{Generator, Independence, Move, Options, State};
use modejump::nn::Activation;
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::train::{Phase, TrainOptions, Trainer};
use modejump::Result;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Configurations per training step.
pub const TRAIN_BATCH: usize = 512;
/// Attempts whose proposals are drawn together, as in a simulation.
const MOVE_BATCH: usize = 32;

fn card(config: CouplingConfig, coordinates: CoordinatesConfig) -> ModelCard {
    ModelCard::of_coupling(config, coordinates)
}

fn range(start: usize, n: usize) -> Vec<usize> {
    (start..start + n).collect()
}

/// RealNVP of 66 Cartesian coordinates: 8 alternating affine couplings, networks 33 → 256 → 256 → 66, 0.73 M
/// parameters.
pub fn affine66() -> Result<CouplingFlow<f32>> {
    let layer = |turn: usize| LayerConfig::Affine {
        transformed: range(if turn % 2 == 0 { 33 } else { 0 }, 33),
        features: Features { periodic: vec![], harmonics: 1, plain: range(if turn % 2 == 0 { 0 } else { 33 }, 33) },
        hidden: vec![256, 256],
        activation: Activation::Silu,
        scale_activation: None,
        preserve_volume: false,
    };
    let config = CouplingConfig { uniform: vec![], layers: (0..8).map(layer).collect() };
    let mut flow = CouplingFlow::new(card(config, CoordinatesConfig::Cartesian { dimension: 66 }))?;
    flow.initialise(1);
    Ok(flow)
}

/// The internal-coordinate spline generator that bgflow builds for 22 atoms (alanine dipeptide): four couplings of the
/// torsions, then angles given torsions and bonds given both; 0.56 M parameters.
pub fn spline_generator() -> Result<CouplingFlow<f32>> {
    const ATOMS: usize = 22;
    const HIDDEN: usize = 176;
    let (bonds, angles, torsions) = (range(0, 21), range(21, 20), range(41, 19));
    let spline = |transformed: &[usize], periodic: &[usize], plain: &[usize], ends: Ends| LayerConfig::Spline {
        transformed: transformed.to_vec(),
        features: Features { periodic: periodic.to_vec(), harmonics: 1, plain: plain.to_vec() },
        ends,
        bins: 8,
        interval: [0.0, 1.0],
        hidden: vec![HIDDEN, HIDDEN],
        activation: Activation::Silu,
        identity_init: true,
    };
    let marginal = |transformed: &[usize], mean: f64, sd: f64| LayerConfig::TruncatedNormal {
        transformed: transformed.to_vec(),
        mean: vec![mean; transformed.len()],
        sd: vec![sd; transformed.len()],
        lower: 0.01,
        upper: 1.0,
    };
    let (first, second) = torsions.split_at(9);
    let layers = vec![
        spline(first, second, &[], Ends::Circular),
        spline(second, first, &[], Ends::Circular),
        spline(first, second, &[], Ends::Circular),
        spline(second, first, &[], Ends::Circular),
        spline(&angles, &torsions, &[], Ends::Free),
        spline(&bonds, &torsions, &angles, Ends::Free),
        marginal(&bonds, 0.13, 0.004),
        marginal(&angles, 0.62, 0.02),
        LayerConfig::Uniform { transformed: torsions.clone(), low: vec![0.0; 19], high: vec![1.0; 19] },
    ];
    let coordinates = CoordinatesConfig::Internal {
        frame: [0, 1, 2],
        rows: (3..ATOMS).map(|i| [i, i - 1, i - 2, i - 3]).collect(),
        normalize_angles: true,
        constraints: vec![],
        stereocentres: vec![],
        cartesian: vec![],
    };
    let mut flow = CouplingFlow::new(card(CouplingConfig { uniform: range(0, 60), layers }, coordinates))?;
    flow.initialise(1);
    // output layers away from zero, so that bins and slopes differ as in a trained model
    let mut stream = Stream::new(1, StreamId::Initialise, 1 << 20, 0);
    flow.parameters_mut().iter_mut().for_each(|p| *p += 0.02 * stream.normal() as f32);
    Ok(flow)
}

/// Classes of alanine dipeptide's atoms in BoltzNCE and transferable-samplers.
const CLASSES: [usize; 22] = [0, 2, 2, 2, 4, 5, 6, 7, 8, 9, 10, 12, 12, 12, 14, 15, 16, 17, 18, 20, 20, 20];

fn features() -> Vec<Vec<usize>> {
    CLASSES.iter().map(|&class| vec![class]).collect()
}

/// BoltzNCE's vector field for 22 atoms (alanine dipeptide) with random weights: 5 layers, 108 933 parameters.
pub fn gvp_field() -> Result<GvpField<f32>> {
    GvpField::random(gvp(), 1)
}

fn gvp() -> GvpConfig {
    GvpConfig {
        features: features(),
        n_features: 21,
        n_layers: 5,
        n_scalars: 64,
        n_vectors: 16,
        rbf_max: 20.0,
        rbf_count: 16,
        message_norm: 10.0,
        coordinate_range: 10.0,
    }
}

/// The vector field of alanine dipeptide with its ODE, loaded from a file.
pub fn gvp_flow(path: &str) -> Result<GvpFlow<f32>> {
    GvpFlow::from_file(&model_file::open(path.as_ref())?)
}

/// BoltzNCE's other energy, on the network that its vector field has.
pub fn gvp_energy() -> Result<Evaluator<GvpEnergy, f32>> {
    let network = GvpEnergy::new(gvp())?;
    let parameters = network.initialise(&mut initialise());
    Ok(Evaluator::new(network, parameters))
}

fn initialise() -> Stream {
    Stream::new(1, StreamId::Initialise, 0, 0)
}

/// The vector field of ECNF for alanine dipeptide with random weights: 5 layers of 64, 147 717 parameters.
pub fn egnn() -> Result<Evaluator<Egnn, f32>> {
    let config = EgnnConfig { features: features(), n_features: 21, n_layers: 5, n_hidden: 64, coordinate_range: 15.0 };
    let network = Egnn::new(config)?;
    let parameters = Network::layout(&network).initialise(&mut initialise(), |_, _| None);
    Ok(Evaluator::new(network, parameters))
}

/// BoltzNCE's energy for alanine dipeptide with random weights: 8 layers of 256, 32 heads, 50 Gaussians, 3 257 221
/// parameters.
pub fn graphormer() -> Result<Evaluator<Graphormer, f32>> {
    let config = GraphormerConfig {
        version: Version::Boltznce,
        types: CLASSES.to_vec(),
        n_types: 21,
        n_layers: 8,
        blocks: 1,
        width: 256,
        feed_forward: 256,
        heads: 32,
        kernels: 50,
    };
    let network = Graphormer::new(config)?;
    // Gaussians spread like distances in Å
    let parameters = Network::layout(&network).initialise(&mut initialise(), |name, _| match name {
        "graphormer.gbf.means.weight" | "graphormer.gbf.stds.weight" => Some(Start::Within(3.0)),
        "graphormer.gbf.mul.weight" => Some(Start::At(1.0)),
        "graphormer.gbf.bias.weight" => Some(Start::At(0.0)),
        _ => None,
    });
    Ok(Evaluator::new(network, parameters))
}

/// An energy of alanine dipeptide in its distances with random weights: 208 inputs, 3 layers of 256.
pub fn invariant() -> Result<Evaluator<InvariantNetwork, f32>> {
    // as many volumes as the molecule has
    let volumes = (0..61).map(|k| [1, 2, 3].map(|j| [k % 22, (k + j) % 22])).collect();
    let config = InvariantConfig {
        atoms: 22,
        volumes,
        prochiral: vec![],
        inputs: 208,
        interpolant: Interpolant::Trigonometric,
        width: 256,
        layers: 3,
    };
    let network = InvariantNetwork::new(config)?;
    let whitening = Whitening::of(&network, &configurations(400, 66))?;
    let parameters = network.initialise(&whitening, &mut initialise());
    Ok(Evaluator::new(network, parameters))
}

/// TarFlow of Sequential Boltzmann Generators with random weights, selected by the name of its system: one token per
/// coordinate of Ace-A-Nme (12 707 848 parameters), or per atom of AAAAAA (64 048 932).
pub fn tarflow(system: &str) -> Result<TarFlow<f32>> {
    let network = match system {
        "Ace-A-Nme" => {
            TarFlowConfig { tokens: 66, token_size: 1, channels: 256, blocks: 4, layers: 4, heads: 4, expansion: 4 }
        }
        _ => TarFlowConfig { tokens: 63, token_size: 3, channels: 384, blocks: 6, layers: 6, heads: 6, expansion: 4 },
    };
    let config = tarflow::format::config(network.clone(), 1.0);
    let network = TarNetwork::new(network)?;
    let parameters = near_identity(&network);
    let card = ModelCard::of_cartesian(config.clone(), network.dimension());
    TarFlow::new(parameters, config, card, String::new())
}

/// Prose with random weights (288 117 560 parameters) for AAAAAA.
pub fn prose() -> Result<TarFlow<f32>> {
    let orders = ["backbone-first_standard", "residue-by-residue_standard_flip"];
    let orders = orders.iter().map(|order| format!("n2c_{order}").parse()).collect::<Result<_>>()?;
    let embedding =
        EmbeddingConfig { atom_types: 128, residue_types: 64, part: 384, hidden: 384, width: 384, base: RESIDUE_BASE };
    let network = PeptideConfig {
        channels: 384,
        blocks: 8,
        layers: 8,
        heads: 6,
        expansion: 4,
        orders,
        most_atoms: Some(178),
        embedding,
        lookahead: true,
        qk_norms: true,
        adaptive: true,
        transition: true,
    };
    let config = Config { network, units_per_nm: 1.0, noisy_centroid: true, stereocentres: vec![] };
    let mut topology = Topology::default();
    for k in 1..=6 {
        let ends = [if k == 1 { "H2 H3" } else { "" }, if k == 6 { "OXT" } else { "" }];
        let names = format!("N H {} CA HA CB HB1 HB2 HB3 C O {}", ends[0], ends[1]);
        for name in names.split_whitespace() {
            topology.names.push(name.into());
            topology.elements.push(name[..1].into());
            topology.residues.push(format!("ALA{k}"));
        }
    }
    let network = TarNetwork::of_peptide(&config.network, &topology)?;
    let card = ModelCard::of_cartesian(config.clone(), 3 * topology.n_atoms());
    let card = ModelCard { topology: Some(topology), ..card };
    TarFlow::of_peptide(near_identity(&network), &config, card, String::new())
}

/// Random weights, small in the last layers, so that e^a stays near one.
fn near_identity(network: &TarNetwork) -> Vec<f32> {
    let special = |name: &str, _: &[usize]| match name {
        _ if name.contains(".proj_out.") => Some(Start::Within(0.01)),
        _ if name.contains("norm") && name.ends_with("weight") => Some(Start::At(1.0)),
        _ => None,
    };
    network.layout().initialise(&mut initialise(), special)
}

/// Coordinates `[batch][dimension]` with the spread of a molecule in Å.
fn configurations(batch: usize, dimension: usize) -> Vec<f64> {
    normal_frames(batch * dimension).iter().map(|x| 2.5 * x).collect()
}

/// A field evaluated at some configurations, with reused buffers.
pub struct Fields<'a> {
    field: &'a dyn VectorField,
    t: Vec<f64>,
    x: Vec<f64>,
    f: Vec<f64>,
    divergence: Vec<f64>,
}

impl Fields<'_> {
    pub fn new(field: &dyn VectorField, batch: usize) -> Fields<'_> {
        let x = configurations(batch, field.dimension());
        Fields { field, t: vec![0.5; batch], f: vec![0.0; x.len()], x, divergence: vec![0.0; batch] }
    }

    pub fn velocity(&mut self) -> Result<()> {
        self.field.evaluate(&self.t, &self.x, &mut self.f);
        Ok(())
    }

    pub fn velocity_divergence(&mut self) -> Result<()> {
        self.field.evaluate_divergence(&self.t, &self.x, &mut self.f, &mut self.divergence);
        Ok(())
    }
}

/// An energy evaluated at some configurations, with reused buffers.
pub struct Energies<'a> {
    model: &'a dyn EnergyFunction,
    t: Vec<f64>,
    x: Vec<f64>,
    energy: Vec<f64>,
    score: Vec<f64>,
}

impl Energies<'_> {
    pub fn new(model: &dyn EnergyFunction, batch: usize) -> Energies<'_> {
        let x = configurations(batch, model.dimension());
        Energies { model, t: vec![0.0; batch], energy: vec![0.0; batch], score: vec![0.0; x.len()], x }
    }

    pub fn energy(&mut self) -> Result<()> {
        self.model.energy(&self.t, &self.x, &mut self.energy);
        Ok(())
    }

    pub fn energy_score(&mut self) -> Result<()> {
        self.model.energy_score(&self.t, &self.x, &mut self.energy, &mut self.score);
        Ok(())
    }
}

/// Sampling with log q, into reused buffers.
pub struct Sampling<'a> {
    flow: &'a dyn Density,
    x: Vec<f64>,
    log_q: Vec<Evaluation>,
    gradient: Vec<f64>,
    calls: u64,
}

impl Sampling<'_> {
    pub fn new(flow: &dyn Density, batch: usize) -> Sampling<'_> {
        let x = vec![0.0; batch * flow.dimension()];
        Sampling { flow, x, log_q: vec![Evaluation::inside(0.0); batch], gradient: Vec::new(), calls: 0 }
    }

    pub fn sample(&mut self) -> Result<()> {
        self.calls += 1;
        let step = self.calls;
        let streams = move |row: usize| Stream::new(1, StreamId::Sample, step, row as u32);
        self.flow.sample(&streams, &mut self.x, &mut self.log_q)
    }

    /// log q of the configurations drawn last.
    pub fn log_density(&mut self) -> Result<()> {
        self.flow.log_density(&self.x, &mut self.log_q)
    }

    /// log q of the configurations drawn last, with its gradient.
    pub fn gradient(&mut self) -> Result<()> {
        self.gradient.resize(self.x.len(), 0.0);
        self.flow.log_density_gradient(&self.x, &mut self.log_q, &mut self.gradient)
    }
}

/// Samples with log q by an ODE, always from the same latent points.
pub struct Odes<'a, F> {
    flow: &'a ContinuousFlow<F>,
    z: Vec<f64>,
    x: Vec<f64>,
    log_det: Vec<f64>,
    log_q: Vec<Evaluation>,
}

impl<F: VectorField> Odes<'_, F> {
    pub fn new(flow: &ContinuousFlow<F>, batch: usize) -> Odes<'_, F> {
        let mut z = vec![0.0; batch * flow.dimension()];
        Stream::new(1, StreamId::Sample, 0, 0).fill_normal(&mut z);
        let (x, log_det, log_q) = (z.clone(), vec![0.0; batch], vec![Evaluation::inside(0.0); batch]);
        Odes { flow, z, x, log_det, log_q }
    }

    pub fn sample(&mut self) -> Result<()> {
        self.flow.generate_reported(&self.z, &mut self.x, &mut self.log_det, &mut self.log_q).map(|_| ())
    }
}

/// A field that counts its evaluations without and with the divergence.
struct Counted<'a> {
    field: &'a GvpField<f32>,
    values: AtomicUsize,
    divergences: AtomicUsize,
}

impl VectorField for Counted<'_> {
    fn dimension(&self) -> usize {
        self.field.dimension()
    }

    fn is_equivariant(&self) -> bool {
        self.field.is_equivariant()
    }

    fn evaluate(&self, t: &[f64], x: &[f64], f: &mut [f64]) {
        self.values.fetch_add(t.len(), Ordering::Relaxed);
        self.field.evaluate(t, x, f);
    }

    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        self.divergences.fetch_add(t.len(), Ordering::Relaxed);
        self.field.evaluate_divergence(t, x, f, divergence);
    }

    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        self.field.evaluate_jvp(t, x, dx, f, df);
    }
}

/// Floating-point operations of the first sample of [`Odes`], whose divergences are exact.
pub fn sample_flops(flow: &GvpFlow<f32>) -> Result<f64> {
    let field = flow.vector_field();
    let counted = Counted { field, values: AtomicUsize::new(0), divergences: AtomicUsize::new(0) };
    let counted = ContinuousFlow::new(counted, flow.config().clone(), flow.card().clone(), String::new())?;
    Odes::new(&counted, 1).sample()?;
    let Counted { values, divergences, .. } = counted.vector_field();
    let times = |count: &AtomicUsize, flops: f64| count.load(Ordering::Relaxed) as f64 * flops;
    Ok(times(values, field.flops()) + times(divergences, field.divergence_flops()))
}

/// A training step by maximum likelihood on normal frames, with the optimiser's update.
pub fn trainer(flow: CouplingFlow<f32>, frames: &[f64]) -> Result<Trainer<'_>> {
    let phase = Phase { steps: usize::MAX, batch: TRAIN_BATCH, ..Phase::default() };
    let options = TrainOptions { phases: vec![phase], evaluate: usize::MAX, held_out: 0.0, ..TrainOptions::default() };
    Trainer::new(flow, frames, None, options)
}

pub fn normal_frames(n: usize) -> Vec<f64> {
    let mut stream = Stream::new(1, StreamId::Train, 0, 9);
    (0..n).map(|_| stream.normal()).collect()
}

/// Attempts of a move on a flat target.
pub struct Attempts {
    kernel: Box<dyn Move>,
    x: Vec<f64>,
    energy: Duration,
    step: u64,
}

/// A target of this dimension whose energy takes this long.
pub struct Flat(pub usize, pub Duration);

impl Target for Flat {
    fn dimension(&self) -> usize {
        self.0
    }

    fn reduced_potential(&mut self, _: &[f64], u: &mut [f64]) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < self.1 * u.len() as u32 {
            std::hint::spin_loop();
        }
        u.fill(0.0);
        Ok(())
    }

    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        gradient.fill(0.0);
        self.reduced_potential(x, u)
    }
}

impl Attempts {
    /// Attempts of an independence move, with energies that cost nothing.
    pub fn new(flow: CouplingFlow<f32>) -> Result<Attempts> {
        Attempts::beside(flow, Duration::ZERO, false)
    }

    /// Attempts of an independence move, with energies that take this long.
    pub fn beside(flow: CouplingFlow<f32>, energy: Duration, draw_ahead: bool) -> Result<Attempts> {
        let mut start = Sampling::new(&flow, 1);
        start.sample()?;
        let x = start.x;
        let options = Options { n_proposals: 1, seed: 1, stride: 1, batch: MOVE_BATCH, draw_ahead, partial: false };
        let generator = Generator::new(Arc::new(flow), None, options)?;
        Ok(Attempts { energy, ..Attempts::of(Box::new(Independence::new(generator)), x) })
    }

    /// Attempts of any move, starting at x.
    pub fn of(kernel: Box<dyn Move>, x: Vec<f64>) -> Attempts {
        Attempts { kernel, x, energy: Duration::ZERO, step: 0 }
    }

    /// Makes one attempt per proposal of a batch, so that the cost of drawing the batch is shared.
    pub fn batch(&mut self) -> Result<()> {
        let mut target = Flat(self.x.len(), self.energy);
        for _ in 0..MOVE_BATCH {
            let state =
                &mut State { x: &mut self.x, box_vectors: None, reduced_potential: 0.0, step: self.step, replica: 0 };
            self.kernel.attempt(&mut target, state)?;
            self.step += 1;
        }
        Ok(())
    }

    pub const BATCH: usize = MOVE_BATCH;
}
