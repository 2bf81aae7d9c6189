//! Analytic systems: densities that can be evaluated and sampled exactly, and targets made from them.
#![allow(dead_code)] // shared by several test targets

use modejump::coordinates::superpose::random_rotation;
use modejump::coordinates::vector::{angle, atom, centre, centroid, norm, set_atom, shift, sub};
use modejump::coordinates::CoordinatesConfig;
use modejump::density::{Density, Evaluation, Exactness, Scope, Status};
use modejump::error::Result;
use modejump::models::continuous::{ContinuousConfig, ContinuousFlow, Divergence, Interpolant, Parametrisation, Prior};
use modejump::models::coupling::CouplingConfig;
use modejump::models::{ModelCard, VectorField};
use modejump::ode::Method;
use modejump::rng::Stream;
use modejump::target::Target;
use modejump::trust::Trust;
use std::sync::Arc;

const LOG_2_PI: f64 = 1.837_877_066_409_345_3;

/// A density for one configuration at a time; [`Density`] is derived from it, with gradients by central differences.
pub trait Analytic: Send + Sync {
    fn dimension(&self) -> usize;
    fn scope(&self) -> Scope {
        Scope::Full
    }
    fn log_density(&self, x: &[f64]) -> Evaluation;
    fn draw(&self, stream: &mut Stream, x: &mut [f64]);
}

pub struct Exact<A>(pub A);

impl<A: Analytic> Density for Exact<A> {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        self.0.scope()
    }
    fn sample(
        &self,
        streams: &(dyn Fn(usize) -> Stream + Sync),
        x: &mut [f64],
        log_density: &mut [Evaluation],
    ) -> Result<()> {
        self.rows(x, log_density)?;
        for (row, (x, e)) in x.chunks_exact_mut(self.dimension()).zip(log_density).enumerate() {
            self.0.draw(&mut streams(row), x);
            *e = self.0.log_density(x);
        }
        Ok(())
    }
    fn log_density(&self, x: &[f64], log_density: &mut [Evaluation]) -> Result<()> {
        self.rows(x, log_density)?;
        for (x, e) in x.chunks_exact(self.dimension()).zip(log_density) {
            *e = self.0.log_density(x);
        }
        Ok(())
    }
    fn log_density_gradient(&self, x: &[f64], log_density: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        self.log_density(x, log_density)?;
        let d = self.dimension();
        for ((x, g), e) in x.chunks_exact(d).zip(gradient.chunks_exact_mut(d)).zip(log_density) {
            let mut moved = x.to_vec();
            for i in 0..d {
                let mut at = |shift: f64| {
                    moved[i] = x[i] + shift;
                    self.0.log_density(&moved).log_density
                };
                g[i] = if e.is_inside() { (at(1e-6) - at(-1e-6)) / 2e-6 } else { 0.0 };
                moved[i] = x[i];
            }
        }
        Ok(())
    }
}

/// u = −log p of a density, plus a shift: the target whose exact samples are those of the density.
pub struct NegativeLog {
    pub density: Arc<dyn Density>,
    pub shift: f64,
    evaluations: Vec<Evaluation>,
}

impl NegativeLog {
    pub fn new(density: Arc<dyn Density>, shift: f64) -> NegativeLog {
        NegativeLog { density, shift, evaluations: vec![Evaluation::inside(0.0); 64] }
    }
    pub fn u(&mut self, x: &[f64]) -> f64 {
        let mut u = [0.0];
        self.reduced_potential(x, &mut u).unwrap();
        u[0]
    }
}

impl Target for NegativeLog {
    fn dimension(&self) -> usize {
        self.density.dimension()
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.density.log_density(x, &mut self.evaluations[..u.len()])?;
        u.iter_mut().zip(&self.evaluations).for_each(|(u, e)| *u = self.shift - e.log_density);
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        self.density.log_density_gradient(x, &mut self.evaluations[..u.len()], gradient)?;
        u.iter_mut().zip(&self.evaluations).for_each(|(u, e)| *u = self.shift - e.log_density);
        gradient.iter_mut().for_each(|g| *g = -*g);
        Ok(())
    }
}

/// A one-dimensional density e^{f(x)}/Z on an interval, sampled through its tabulated distribution function.
pub struct Table {
    log_f: Box<dyn Fn(f64) -> f64 + Send + Sync>,
    low: f64,
    step: f64,
    cumulative: Vec<f64>,
    log_z: f64,
}

impl Table {
    pub fn new(low: f64, high: f64, log_f: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Table {
        let cells = 1 << 16;
        let step = (high - low) / f64::from(cells);
        let mut cumulative = vec![0.0];
        for i in 0..cells {
            // Mid-point rule: the table's error is of order step², 1e-9 here.
            cumulative.push(cumulative[i as usize] + log_f(low + (f64::from(i) + 0.5) * step).exp() * step);
        }
        let z = *cumulative.last().unwrap();
        cumulative.iter_mut().for_each(|c| *c /= z);
        Table { log_f: Box::new(log_f), low, step, cumulative, log_z: z.ln() }
    }
    pub fn high(&self) -> f64 {
        self.low + self.step * (self.cumulative.len() - 1) as f64
    }
    pub fn log_pdf(&self, x: f64) -> f64 {
        if x > self.low && x < self.high() {
            (self.log_f)(x) - self.log_z
        } else {
            f64::NEG_INFINITY
        }
    }
    pub fn quantile(&self, p: f64) -> f64 {
        let cell = (self.cumulative.partition_point(|c| *c <= p) - 1).min(self.cumulative.len() - 2);
        let width = self.cumulative[cell + 1] - self.cumulative[cell];
        self.low + (cell as f64 + (p - self.cumulative[cell]) / width) * self.step
    }
    /// Probability of x below `x`.
    pub fn below(&self, x: f64) -> f64 {
        let t = ((x - self.low) / self.step).clamp(0.0, (self.cumulative.len() - 2) as f64);
        let cell = t as usize;
        self.cumulative[cell] + (t - cell as f64) * (self.cumulative[cell + 1] - self.cumulative[cell])
    }
}

fn evaluation(log_density: f64) -> Evaluation {
    if log_density == f64::NEG_INFINITY {
        Evaluation::outside(Status::OutOfSupport)
    } else {
        Evaluation::inside(log_density)
    }
}

impl Analytic for Table {
    fn dimension(&self) -> usize {
        1
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        evaluation(self.log_pdf(x[0]))
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x[0] = self.quantile(stream.uniform());
    }
}

/// u = 4 (x² − 1)² + tilt x: barrier 4 kT, P(x < 0) = 0.7080 for tilt 0.475.
pub fn double_well(tilt: f64) -> Table {
    Table::new(-2.6, 2.6, move |x: f64| -4.0 * (x * x - 1.0).powi(2) - tilt * x)
}

/// ln of a mixture of normal densities (weight, mean, width).
pub fn log_normal_mixture(components: &[(f64, f64, f64)], x: f64) -> f64 {
    let terms = components.iter().map(|(w, m, s)| w.ln() - s.ln() - 0.5 * LOG_2_PI - 0.5 * ((x - m) / s).powi(2));
    modejump::weights::log_sum_exp(&terms.collect::<Vec<_>>())
}

pub fn normal_mixture(components: &'static [(f64, f64, f64)]) -> Table {
    Table::new(-5.0, 5.0, move |x| log_normal_mixture(components, x))
}

/// The double well in x with y normal about x/2: correlated and two-dimensional.
pub struct DoubleWell2 {
    pub well: Table,
    pub width: f64,
}

impl Analytic for DoubleWell2 {
    fn dimension(&self) -> usize {
        2
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let t = (x[1] - 0.5 * x[0]) / self.width;
        evaluation(self.well.log_pdf(x[0]) - 0.5 * (t * t + LOG_2_PI) - self.width.ln())
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x[0] = self.well.quantile(stream.uniform());
        x[1] = 0.5 * x[0] + self.width * stream.normal();
    }
}

/// Isotropic normal components (weight, mean, width); weights sum to one.
pub struct GaussianMixture(pub Vec<(f64, Vec<f64>, f64)>);

impl Analytic for GaussianMixture {
    fn dimension(&self) -> usize {
        self.0[0].1.len()
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let log_component = |(w, m, s): &(f64, Vec<f64>, f64)| {
            let r2: f64 = x.iter().zip(m).map(|(x, m)| ((x - m) / s).powi(2)).sum();
            w.ln() - 0.5 * r2 - x.len() as f64 * (s.ln() + 0.5 * LOG_2_PI)
        };
        let largest = self.0.iter().map(log_component).fold(f64::NEG_INFINITY, f64::max);
        evaluation(largest + self.0.iter().map(|c| (log_component(c) - largest).exp()).sum::<f64>().ln())
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        let mut left = stream.uniform();
        let mut chosen = &self.0[0];
        for component in &self.0 {
            chosen = component;
            left -= component.0;
            if left < 0.0 {
                break;
            }
        }
        x.iter_mut().zip(&chosen.1).for_each(|(x, m)| *x = m + chosen.2 * stream.normal());
    }
}

/// A harmonic polymer of beads in three dimensions: the first bead in a harmonic trap, each further bead tied to the
/// previous one.
pub struct Polymer {
    pub beads: usize,
    pub trap: f64,
    pub bond: f64,
}

impl Analytic for Polymer {
    fn dimension(&self) -> usize {
        3 * self.beads
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let log_normal = |t: f64, s: f64| -0.5 * ((t / s).powi(2) + LOG_2_PI) - s.ln();
        let first: f64 = x[..3].iter().map(|t| log_normal(*t, self.trap)).sum();
        let rest: f64 = (3..x.len()).map(|i| log_normal(x[i] - x[i - 3], self.bond)).sum();
        evaluation(first + rest)
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        for i in 0..x.len() {
            x[i] = if i < 3 { self.trap * stream.normal() } else { x[i - 3] + self.bond * stream.normal() };
        }
    }
}

/// The shape of three atoms: two bonds at atom 0 and their angle, with given densities; position and orientation are
/// random in samples of a `target`, the standard frame in samples of a generator.
///
/// The volume element is dx₀ dR r₁² r₂² sin θ dr₁ dr₂ dθ, which divides the densities of (r₁, r₂, θ).
pub struct Bent {
    pub bonds: Option<[Table; 2]>,
    /// Length of a rigid bond.
    pub rigid: f64,
    pub angle: Table,
    pub oriented: bool,
}

impl Bent {
    pub fn internal(x: &[f64]) -> [f64; 3] {
        let [a, b, c] = [atom(x, 0), atom(x, 1), atom(x, 2)];
        [norm(sub(b, a)), norm(sub(c, a)), angle(b, a, c)]
    }
}

impl Analytic for Bent {
    fn dimension(&self) -> usize {
        9
    }
    fn scope(&self) -> Scope {
        Scope::Shape { frame: [0, 1, 2] }
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let [r1, r2, theta] = Bent::internal(x);
        let bonds = self.bonds.as_ref().map_or(0.0, |[b1, b2]| b1.log_pdf(r1) + b2.log_pdf(r2));
        evaluation(bonds + self.angle.log_pdf(theta) - 2.0 * (r1 * r2).ln() - theta.sin().ln())
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        let (r1, r2) = match &self.bonds {
            Some([b1, b2]) => (b1.quantile(stream.uniform()), b2.quantile(stream.uniform())),
            None => (self.rigid, self.rigid),
        };
        let (sin, cos) = self.angle.quantile(stream.uniform()).sin_cos();
        let local = [[0.0; 3], [0.0, 0.0, r1], [r2 * sin, 0.0, r2 * cos]];
        (0..3).for_each(|i| set_atom(x, i, local[i]));
        if self.oriented {
            return;
        }
        random_rotation(x, stream);
        shift(x, [stream.uniform(), stream.uniform(), stream.uniform()]);
    }
}

/// Three atoms about a normally distributed centroid; with `target`, the first atom is displaced towards the centroid's
/// position, which correlates centroid and shape. A generator describes only the centred configuration.
pub struct Trimer {
    pub width: f64,
    pub target: bool,
}

impl Trimer {
    const TRAP: f64 = 0.5;

    /// Mean of the centred configuration.
    fn mean(&self, c: [f64; 3]) -> Vec<f64> {
        let mut mean = vec![0.0; 9];
        if self.target {
            mean[0] = 0.5 * (2.0 * c[0]).tanh();
            mean[4] = 0.3;
        }
        centre(&mut mean);
        mean
    }
}

impl Analytic for Trimer {
    fn dimension(&self) -> usize {
        9
    }
    fn scope(&self) -> Scope {
        Scope::Centred
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let mut y = x.to_vec();
        let c = centre(&mut y);
        let r2: f64 = y.iter().zip(self.mean(c)).map(|(y, m)| ((y - m) / self.width).powi(2)).sum();
        let shape = -0.5 * r2 - 6.0 * (self.width.ln() + 0.5 * LOG_2_PI);
        if !self.target {
            return evaluation(shape);
        }
        // dx = 3^{3/2} dc dy
        let log_normal = |t: f64| -0.5 * ((t / Trimer::TRAP).powi(2) + LOG_2_PI) - Trimer::TRAP.ln();
        evaluation(shape + c.iter().map(|c| log_normal(*c)).sum::<f64>() - 1.5 * 3f64.ln())
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = self.width * stream.normal());
        centre(x);
        let c = if self.target { std::array::from_fn(|_| Trimer::TRAP * stream.normal()) } else { [0.0; 3] };
        x.iter_mut().zip(self.mean(c)).for_each(|(x, m)| *x += m);
        shift(x, c);
        debug_assert!((0..3).all(|k| (centroid(x)[k] - c[k]).abs() < 1e-12));
    }
}

/// A generator of three atoms whose centroid is noise, correlated with the shape; log q is relative to normal noise of
/// the standard deviation given by the scope.
pub struct NoisyTrimer {
    pub width: f64,
}

impl NoisyTrimer {
    const NOISE: f64 = 0.2;
    /// Mean and standard deviation that the generator has instead of 0 and [`NoisyTrimer::NOISE`].
    const CENTROID: (f64, f64) = (0.1, 0.2);

    fn mean(c: [f64; 3]) -> Vec<f64> {
        let mut mean = vec![3.0 * c[0], 0.0, 0.0, 0.0, 0.3 + 3.0 * c[1], 0.0, 0.0, 0.0, 0.0];
        centre(&mut mean);
        mean
    }
}

impl Analytic for NoisyTrimer {
    fn dimension(&self) -> usize {
        9
    }
    fn scope(&self) -> Scope {
        Scope::Noisy { sigma: NoisyTrimer::NOISE }
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let mut y = x.to_vec();
        let c = centre(&mut y);
        let r2: f64 = y.iter().zip(NoisyTrimer::mean(c)).map(|(y, m)| ((y - m) / self.width).powi(2)).sum();
        let normal = |t: f64, (mean, s): (f64, f64)| -0.5 * ((t - mean) / s).powi(2) - s.ln();
        let noise = (0.0, NoisyTrimer::NOISE);
        let of_centroid: f64 = c.iter().map(|&c| normal(c, NoisyTrimer::CENTROID) - normal(c, noise)).sum();
        evaluation(-0.5 * r2 - 6.0 * (self.width.ln() + 0.5 * LOG_2_PI) + of_centroid)
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = self.width * stream.normal());
        centre(x);
        let (mean, std) = NoisyTrimer::CENTROID;
        let c: [f64; 3] = std::array::from_fn(|_| mean + std * stream.normal());
        x.iter_mut().zip(NoisyTrimer::mean(c)).for_each(|(x, m)| *x += m);
        shift(x, c);
    }
}

/// A rotationally invariant target of three atoms: normal about a normally distributed centroid.
pub struct Cloud {
    pub width: f64,
}

impl Analytic for Cloud {
    fn dimension(&self) -> usize {
        9
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let mut y = x.to_vec();
        let c = centre(&mut y);
        let log_normal = |t: &f64, s: f64| -0.5 * ((t / s).powi(2) + LOG_2_PI) - s.ln();
        let shape = y.iter().map(|y| log_normal(y, self.width)).sum::<f64>() + 3.0 * (self.width.ln() + 0.5 * LOG_2_PI);
        evaluation(shape + c.iter().map(|c| log_normal(c, Trimer::TRAP)).sum::<f64>() - 1.5 * 3f64.ln())
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        x.iter_mut().for_each(|x| *x = self.width * stream.normal());
        centre(x);
        shift(x, std::array::from_fn(|_| Trimer::TRAP * stream.normal()));
    }
}

/// [`Cloud`] with charges on the first two atoms, in a field along the first axis that pulls them apart: a target that
/// depends on orientation.
pub struct Dipole {
    pub cloud: Cloud,
    /// Displacement of each charged atom by the field, nm.
    pub shift: f64,
}

impl Dipole {
    fn displace(&self, x: &mut [f64], sign: f64) {
        x[0] += sign * self.shift;
        x[3] -= sign * self.shift;
    }
}

impl Analytic for Dipole {
    fn dimension(&self) -> usize {
        self.cloud.dimension()
    }
    fn log_density(&self, x: &[f64]) -> Evaluation {
        let mut x = x.to_vec();
        self.displace(&mut x, -1.0);
        self.cloud.log_density(&x)
    }
    fn draw(&self, stream: &mut Stream, x: &mut [f64]) {
        self.cloud.draw(stream, x);
        self.displace(x, 1.0);
    }
}

/// A vector field sin(2x)/2 in every coordinate: not even invariant under translation.
pub struct Waves(pub usize);

impl VectorField for Waves {
    fn dimension(&self) -> usize {
        self.0
    }
    fn evaluate(&self, _: &[f64], x: &[f64], f: &mut [f64]) {
        f.iter_mut().zip(x).for_each(|(f, x)| *f = 0.5 * (2.0 * x).sin());
    }
    fn evaluate_divergence(&self, t: &[f64], x: &[f64], f: &mut [f64], divergence: &mut [f64]) {
        self.evaluate(t, x, f);
        let rows = divergence.iter_mut().zip(x.chunks_exact(self.0));
        rows.for_each(|(divergence, x)| *divergence = x.iter().map(|x| (2.0 * x).cos()).sum());
    }
    fn evaluate_jvp(&self, t: &[f64], x: &[f64], dx: &[f64], f: &mut [f64], df: &mut [f64]) {
        self.evaluate(t, x, f);
        df.iter_mut().zip(x).zip(dx).for_each(|((df, x), dx)| *df = (2.0 * x).cos() * dx);
    }
}

/// A continuous flow of three atoms with tolerances so tight that its log-densities in both directions agree to 1e-8.
pub fn continuous_flow() -> ContinuousFlow<Waves> {
    let tight = Method::DormandPrince {
        absolute: 1e-11,
        relative: 1e-11,
        log_density: 1e-11,
        quadrature: 0,
        max_steps: 10_000,
    };
    let config = ContinuousConfig {
        parametrisation: Parametrisation::Velocity,
        interpolant: Interpolant::Linear,
        times: [1.0, 0.0],
        units_per_nm: 5.0,
        stereocentres: vec![],
        prior: Prior::MeanFree,
        divergence: Divergence::Exact,
        solver: tight,
    };
    let coupling = CouplingConfig { uniform: vec![], layers: vec![] };
    let card = ModelCard::of_coupling(coupling, CoordinatesConfig::Cartesian { dimension: 9 });
    ContinuousFlow::new(Waves(9), config, card, String::new()).unwrap()
}

/// A substitute for another density that is far from it and lacks even its invariances; it cannot sample.
pub struct WrongScreen(pub Arc<dyn Density>);

impl Density for WrongScreen {
    fn dimension(&self) -> usize {
        self.0.dimension()
    }
    fn exactness(&self) -> Exactness {
        Exactness::Surrogate
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("a screen is never asked for samples")
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.0.log_density(x, e)?;
        for (x, e) in x.chunks_exact(self.dimension()).zip(e) {
            if e.is_inside() {
                *e = Evaluation::inside(0.7 * e.log_density + 0.8 * (4.0 * x[0]).sin() + 17.0);
            }
        }
        Ok(())
    }
    fn log_density_gradient(&self, _: &[f64], _: &mut [Evaluation], _: &mut [f64]) -> Result<()> {
        unreachable!("a screen is never asked for gradients")
    }
}

/// A density relabelled with a given exactness, and a given trust as a screen.
pub struct Labelled {
    pub density: Arc<dyn Density>,
    pub exactness: Exactness,
    pub trust: Trust,
}

impl Density for Labelled {
    fn dimension(&self) -> usize {
        self.density.dimension()
    }
    fn exactness(&self) -> Exactness {
        self.exactness
    }
    fn trust(&self) -> Trust {
        self.trust
    }
    fn sample(&self, s: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        self.density.sample(s, x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.density.log_density(x, e)
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], g: &mut [f64]) -> Result<()> {
        self.density.log_density_gradient(x, e, g)
    }
}

/// A screen with the given trust.
pub fn believed(density: Arc<dyn Density>, trust: Trust) -> Arc<dyn Density> {
    Arc::new(Labelled { exactness: density.exactness(), density, trust })
}
