use super::*;
use crate::density::Exactness;

/// Standard normal of width s in two dimensions.
struct Normal(f64);

impl Density for Normal {
    fn dimension(&self) -> usize {
        2
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        for (row, x) in x.chunks_exact_mut(2).enumerate() {
            let mut stream = streams(row);
            x.iter_mut().for_each(|x| *x = self.0 * stream.normal());
        }
        self.log_density(x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        for (x, e) in x.chunks_exact(2).zip(e) {
            let squared = (x[0] * x[0] + x[1] * x[1]) / (self.0 * self.0);
            *e = Evaluation::inside(-0.5 * squared - (2.0 * std::f64::consts::PI * self.0 * self.0).ln());
        }
        Ok(())
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g = -x / (self.0 * self.0));
        self.log_density(x, e)
    }
}

/// u = x⁴ − 4 x² + x/2 + y² + 0.3 x y.
struct Wells;

fn u(x: f64, y: f64) -> f64 {
    x.powi(4) - 4.0 * x * x + 0.5 * x + y * y + 0.3 * x * y
}

impl Target for Wells {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], out: &mut [f64]) -> Result<()> {
        x.chunks_exact(2).zip(out).for_each(|(x, out)| *out = u(x[0], x[1]));
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], out: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for (x, g) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)) {
            g[0] = 4.0 * x[0].powi(3) - 8.0 * x[0] + 0.5 + 0.3 * x[1];
            g[1] = 2.0 * x[1] + 0.3 * x[0];
        }
        self.reduced_potential(x, out)
    }
}

/// ln Z and P(x > 0) by a grid.
fn truth() -> (f64, f64) {
    let (n, reach) = (600, 6.0);
    let at = |i: usize| reach * (2.0 * (i as f64 + 0.5) / n as f64 - 1.0);
    let cell = (2.0 * reach / n as f64).powi(2);
    let (mut z, mut right) = (0.0, 0.0);
    for (i, j) in (0..n * n).map(|k| (k / n, k % n)) {
        let w = (-u(at(i), at(j))).exp() * cell;
        z += w;
        right += if at(i) > 0.0 { w } else { 0.0 };
    }
    (z.ln(), right / z)
}

/// ln Z and P(x > 0) of one run.
fn run(kernel: Kernel, stages: usize, step: f64, seed: u64) -> (f64, f64) {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge { density: &density, target: &mut target };
    let points = bridge.sample(400, seed).unwrap();
    let options = Options { kernel, seed, ..Options::default() };
    let mut run = Annealing::new(points, even(stages, step), options).unwrap();
    while !run.is_finished() {
        run.stage(&mut bridge).unwrap();
    }
    let right: Vec<f64> = run.points.x.chunks_exact(2).map(|x| f64::from(u8::from(x[0] > 0.0))).collect();
    (run.log_z(), weights::mean(&run.log_weights, &right).unwrap().value)
}

/// Means of Z/Z_true and of P over seeds, in standard errors from the truth.
fn scores(kernel: Kernel, stages: usize, step: f64) -> [f64; 2] {
    let (log_z, right) = truth();
    let runs: Vec<(f64, f64)> = (0..200).map(|seed| run(kernel, stages, step, seed)).collect();
    let score = |values: Vec<f64>, truth: f64| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let error = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
        println!("{kernel:?}: {mean} ± {error}, {truth}");
        (mean - truth) / error
    };
    [score(runs.iter().map(|r| (r.0 - log_z).exp()).collect(), 1.0), score(runs.iter().map(|r| r.1).collect(), right)]
}

#[test]
fn every_kernel_gives_the_normaliser_and_the_populations() {
    for (kernel, stages, step) in [
        (Kernel::Adjusted, 10, 0.05),
        (Kernel::Hamiltonian { leapfrog: 3 }, 10, 0.02),
        (Kernel::Unadjusted { corrected: true }, 20, 0.02),
    ] {
        // Z without bias; P with one of order 1/n, far below its error
        let [z, p] = scores(kernel, stages, step);
        assert!(z.abs() < 4.5 && p.abs() < 4.5, "{kernel:?}: {z} {p}");
    }
}

#[test]
fn faults_are_found() {
    // an unadjusted step that is too long, without its correction; and a path that ends before the target
    let [z, p] = scores(Kernel::Unadjusted { corrected: false }, 20, 0.08);
    assert!(z.abs().max(p.abs()) > 6.0, "{z} {p}");
    let short = vec![Stage { t: 0.5, step: 0.1 }];
    let points = Normal(1.0);
    let mut target = Wells;
    let mut bridge = Bridge { density: &points, target: &mut target };
    let samples = bridge.sample(10, 1).unwrap();
    assert!(Annealing::new(samples, short, Options::default()).is_err());
}

#[test]
fn a_plan_is_made_by_pilots_and_then_fixed() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge { density: &density, target: &mut target };
    let pilots = bridge.sample(500, 99).unwrap();
    let options = Options::default();
    let plan = plan(&mut bridge, pilots, 0.4, 0.97, 100, &options).unwrap();
    assert!(plan.len() > 3 && plan.last().unwrap().t == 1.0 && plan.windows(2).all(|w| w[0].t < w[1].t));
    assert!(plan.last().unwrap().step < 0.4, "long steps were shortened");
    let points = bridge.sample(2000, 1).unwrap();
    let mut run = Annealing::new(points, plan, options).unwrap();
    while !run.is_finished() {
        let progress = run.stage(&mut bridge).unwrap();
        assert!(progress.ess > 0.3 && progress.acceptance > 0.2, "{progress:?}");
    }
    assert!((run.log_z() - truth().0).abs() < 0.2);
}

#[test]
fn a_run_that_is_saved_goes_on_bit_for_bit() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge { density: &density, target: &mut target };
    let points = bridge.sample(50, 4).unwrap();
    let mut straight = Annealing::new(points, even(8, 0.05), Options::default()).unwrap();
    let mut stopped = straight.clone();
    (0..8).for_each(|_| _ = straight.stage(&mut bridge).unwrap());
    (0..3).for_each(|_| _ = stopped.stage(&mut bridge).unwrap());
    let saved = serde_json::to_string(&stopped).unwrap();
    let mut again: Annealing = serde_json::from_str(&saved).unwrap();
    (0..5).for_each(|_| _ = again.stage(&mut bridge).unwrap());
    assert_eq!(again, straight);
}

#[test]
fn samples_without_a_finite_energy_count_in_the_normaliser() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge { density: &density, target: &mut target };
    let mut points = bridge.sample(100, 4).unwrap();
    points.target[..50].fill(f64::INFINITY);
    let run = Annealing::new(points.clone(), even(2, 0.05), Options::default()).unwrap();
    assert!((run.log_z() - 0.5f64.ln()).abs() < 1e-12 && run.points.n() == 50);
    points.target.fill(f64::NAN);
    let message = Annealing::new(points, even(2, 0.05), Options::default()).unwrap_err().to_string();
    assert!(message.contains("none of 100 samples"), "{message}");
}
