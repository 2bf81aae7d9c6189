use super::plan::Search;
use super::*;
use crate::coordinates::vector::centre;
use crate::density::{Density, Evaluation, Exactness, Scope, Status};
use crate::target::Target;

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
    let mut bridge = Bridge::new(&density, &mut target);
    let points = bridge.sample(400, seed).unwrap();
    let options = Options { kernel, seed, ..Options::default() };
    let mut run = Annealing::new(&bridge, points, even(stages, step), options).unwrap();
    while !run.is_finished() {
        run.stage(&mut bridge).unwrap();
    }
    let right: Vec<f64> = run.points.x.chunks_exact(2).map(|x| f64::from(u8::from(x[0] > 0.0))).collect();
    (run.log_z(), weights::mean(&run.log_weights, &right).unwrap().value)
}

/// Deviations of the means of Z/Z_true and of P over seeds from the truth, in standard errors.
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
        // Z is unbiased; the bias of P is of order 1/n, far below its error
        let [z, p] = scores(kernel, stages, step);
        assert!(z.abs() < 4.5 && p.abs() < 4.5, "{kernel:?}: {z} {p}");
    }
}

#[test]
fn faults_are_found() {
    // faults: an unadjusted step that is too long, without its correction; a path that ends before the target
    let [z, p] = scores(Kernel::Unadjusted { corrected: false }, 20, 0.08);
    assert!(z.abs().max(p.abs()) > 6.0, "{z} {p}");
    let short = vec![Stage { t: 0.5, step: 0.1 }];
    let points = Normal(1.0);
    let mut target = Wells;
    let mut bridge = Bridge::new(&points, &mut target);
    let samples = bridge.sample(10, 1).unwrap();
    assert!(Annealing::new(&bridge, samples, short, Options::default()).is_err());
}

fn share(share: f64, most: usize) -> Temperatures {
    Temperatures::Share { share, most }
}

#[test]
fn a_plan_is_made_by_pilots_and_then_fixed() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    for (start, kernel) in
        [(1e-5, Kernel::Adjusted), (1e3, Kernel::Adjusted), (0.01, Kernel::Hamiltonian { leapfrog: 3 })]
    {
        let options = Options { kernel, ..Options::default() };
        for temperatures in [share(0.97, 100), Temperatures::Even(5)] {
            let pilots = bridge.sample(500, 99).unwrap();
            let plan = plan(&mut bridge, pilots, start, temperatures, &options).unwrap();
            assert!(plan.len() > 3 && plan.last().unwrap().t == 1.0 && plan.windows(2).all(|w| w[0].t < w[1].t));
            let points = bridge.sample(2000, 1).unwrap();
            let mut run = Annealing::new(&bridge, points, plan, options.clone()).unwrap();
            while !run.is_finished() {
                let progress = run.stage(&mut bridge).unwrap();
                assert!(progress.ess > 0.3 && (0.45..0.75).contains(&progress.acceptance), "{start}: {progress:?}");
            }
            assert!((run.log_z() - truth().0).abs() < 0.2);
        }
    }
}

/// The search ends even if every step, or none, is accepted.
#[test]
fn a_search_ends() {
    for acceptance in [0.0, 1.0] {
        let (mut search, mut step, mut tried) = (Search::default(), 1.0, 0);
        while let Some(next) = search.after(step, acceptance) {
            (step, tried) = (next, tried + 1);
        }
        assert!(tried < 20 && step > 0.0 && step.is_finite(), "{tried} {step}");
    }
}

/// The squared error is the variance over runs, or somewhat larger: with systematic or stratified resampling one
/// family's gain is the loss of others.
#[test]
fn the_error_of_one_run_is_the_scatter_of_many() {
    use Resampling::{Multinomial, Stratified, Systematic};
    let runs = 1000;
    let cases = [
        (Systematic, 0.0, 1.3),
        (Systematic, 1.0, 1.8),
        (Stratified, 1.0, 1.8),
        (Systematic, 0.5, 1.8),
        (Multinomial, 1.0, 1.3),
    ];
    for (resampling, threshold, most) in cases {
        let (density, mut target) = (Normal(1.2), Wells);
        let mut bridge = Bridge::new(&density, &mut target);
        let (mut log_z, mut squares) = (Vec::new(), 0.0);
        for seed in 0..runs {
            let mut points = bridge.sample(400, seed).unwrap();
            // a quarter, at random
            let lost: Vec<usize> = (0..400).filter(|&row| points.row(row)[1] > 0.8).collect();
            lost.into_iter().for_each(|row| points.target[row] = f64::INFINITY);
            let options = Options { resampling, threshold, seed, ..Options::default() };
            let mut run = Annealing::new(&bridge, points, even(10, 0.05), options).unwrap();
            (0..10).for_each(|_| _ = run.stage(&mut bridge).unwrap());
            log_z.push(run.log_z());
            // none where the estimate of the variance is negative, as it may be after many resamplings
            let error = run.log_normaliser().standard_error;
            assert!(error != 0.0, "an error of zero where there is no estimate");
            squares += if resampling == Multinomial && error.is_nan() { 0.0 } else { error.powi(2) };
        }
        let mean = log_z.iter().sum::<f64>() / runs as f64;
        let scatter = log_z.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / (runs - 1) as f64;
        let ratio = squares / runs as f64 / scatter;
        println!("{resampling:?} below {threshold}: {ratio:.2} of the variance {scatter:.5}");
        assert!((0.8..most).contains(&ratio), "{resampling:?} below {threshold}: {ratio}");
    }
}

#[test]
fn one_family_tells_no_error() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    let mut points = bridge.sample(20, 4).unwrap();
    points.target[0] = -1e4;
    let mut run = Annealing::new(&bridge, points, even(2, 0.05), Options::default()).unwrap();
    assert!(run.families().len() == 20 && run.log_normaliser().standard_error < 1e-7);
    run.stage(&mut bridge).unwrap();
    assert!(run.families().len() == 1 && run.log_normaliser().standard_error.is_nan());
}

/// The conditional effective sample size of a single particle is always one.
#[test]
fn a_plan_needs_pilots() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    for (n, lost, share, text) in
        [(1, 0, 0.9, "1 of 1"), (100, 95, 0.9, "5 of 100"), (20, 0, 0.05, "a plan requires 40")]
    {
        let mut pilots = bridge.sample(n, 99).unwrap();
        pilots.target[..lost].fill(f64::INFINITY);
        let message = plan(&mut bridge, pilots, 0.1, Temperatures::Share { share, most: 100 }, &Options::default())
            .unwrap_err()
            .to_string();
        assert!(message.contains(text), "{message}");
    }
}

#[test]
fn what_is_no_run_is_refused() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    let kernel = Kernel::Hamiltonian { leapfrog: 0 };
    for (n, stages, options, text) in [
        (0, 2, Options::default(), "0 particles at 2 temperatures"),
        (5, 0, Options::default(), "5 particles at 0 temperatures"),
        (5, 2, Options { kernel, ..Options::default() }, "0 leapfrog steps"),
        (5, 2, Options { moves: 0, ..Options::default() }, "use at least 1 move"),
    ] {
        let points = bridge.sample(n, 1).unwrap();
        let message = Annealing::new(&bridge, points, even(stages, 0.1), options).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
}

/// Most samples clash, with energies of any size.
#[test]
fn a_plan_goes_as_slowly_as_clashes_ask_for() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    let mut pilots = bridge.sample(100, 99).unwrap();
    (0..70).for_each(|row| pilots.target[row] = 10f64.powi(row as i32 - 20));
    let run = Annealing::new(&bridge, pilots.clone(), even(1, 0.1), Options::default()).unwrap();
    let next = plan::next_temperature(&run, 0.0, 0.9);
    let weights: Vec<f64> = (0..100).map(|row| -next * (pilots.target[row] - pilots.source[row])).collect();
    let left = weights::effective_sample_size(&weights).unwrap() / 100.0;
    assert!((left - 0.9).abs() < 0.01, "{left} of the particles are left at t = {next:e}");
    let plan = plan(&mut bridge, pilots, 0.1, share(0.9, 1000), &Options::default()).unwrap();
    assert!(plan.last().unwrap().t == 1.0 && plan.windows(2).all(|w| w[0].t < w[1].t), "{} stages", plan.len());
}

#[test]
fn configurations_that_are_not_finite_are_nowhere() {
    let (density, mut target) = (Normal(1.2), Wells);
    let points = Bridge::new(&density, &mut target).evaluate(vec![f64::NAN; 4]).unwrap();
    assert!(points.n() == 2 && points.energy(0, 0.5) == f64::INFINITY && points.energy(1, 1.0) == f64::INFINITY);
}

#[test]
fn a_run_that_is_saved_goes_on_bit_for_bit() {
    let (density, mut target) = (Normal(1.2), Wells);
    let mut bridge = Bridge::new(&density, &mut target);
    let points = bridge.sample(50, 4).unwrap();
    let mut straight = Annealing::new(&bridge, points, even(8, 0.05), Options::default()).unwrap();
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
    let mut bridge = Bridge::new(&density, &mut target);
    let mut points = bridge.sample(100, 4).unwrap();
    points.target[..50].fill(f64::INFINITY);
    let run = Annealing::new(&bridge, points.clone(), even(2, 0.05), Options::default()).unwrap();
    assert!((run.log_z() - 0.5f64.ln()).abs() < 1e-12 && run.points.n() == 50);
    points.target.fill(f64::NAN);
    let message = Annealing::new(&bridge, points, even(2, 0.05), Options::default()).unwrap_err().to_string();
    assert!(message.contains("none of 100 samples"), "{message}");
}

/// Flat on a square, zero beyond; as a target, with this tilt along x.
struct Square(f64);

impl Square {
    fn holds(x: &[f64]) -> bool {
        x.iter().all(|x| x.abs() < 1.0)
    }
}

impl Density for Square {
    fn dimension(&self) -> usize {
        2
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, streams: &(dyn Fn(usize) -> Stream + Sync), x: &mut [f64], e: &mut [Evaluation]) -> Result<()> {
        for (row, x) in x.chunks_exact_mut(2).enumerate() {
            let mut stream = streams(row);
            x.iter_mut().for_each(|x| *x = 2.0 * stream.uniform() - 1.0);
        }
        self.log_density(x, e)
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        e.iter_mut().zip(x.chunks_exact(2)).for_each(|(e, x)| {
            *e = if Square::holds(x) {
                Evaluation::inside(-4f64.ln())
            } else {
                Evaluation::outside(Status::OutOfSupport)
            }
        });
        Ok(())
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        gradient.fill(0.0);
        self.log_density(x, e)
    }
}

impl Target for Square {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for ((x, g), u) in x.chunks_exact(2).zip(gradient.chunks_exact_mut(2)).zip(u) {
            g.copy_from_slice(&[self.0, 0.0]);
            *u = if Square::holds(x) { self.0 * x[0] } else { f64::INFINITY };
        }
        Ok(())
    }
}

/// From beyond the wall no step leads back, so a particle that would go there has to stay and keep its weight: in a
/// flat landscape all weights are equal, and the density at the wall is that in the middle. If it lost its weight, Z
/// would come out too small.
#[test]
fn corrected_steps_that_would_leave_the_support_are_not_made() {
    let (density, mut target) = (Square(0.0), Square(0.0));
    let mut bridge = Bridge::new(&density, &mut target);
    let points = bridge.sample(2000, 3).unwrap();
    let options = Options { kernel: Kernel::Unadjusted { corrected: true }, moves: 5, ..Options::default() };
    let mut run = Annealing::new(&bridge, points, even(4, 0.05), options).unwrap();
    while !run.is_finished() {
        let progress = run.stage(&mut bridge).unwrap();
        assert!(progress.acceptance < 0.9 && (progress.log_z - progress.t * 4f64.ln()).abs() < 1e-12, "{progress:?}");
    }
    let at_the_wall = run.points.x.iter().filter(|x| x.abs() > 0.8).count() as f64 / 4000.0;
    assert!((at_the_wall - 0.2).abs() < 5.0 * (0.16f64 / 4000.0).sqrt(), "{at_the_wall}");
}

/// A wall of 1e20 kT stops corrected steps as an infinite one does, instead of rounding all weights away.
#[test]
fn weights_of_corrected_steps_survive_walls_of_any_height() {
    let options = Options { kernel: Kernel::Unadjusted { corrected: true }, ..Options::default() };
    let log_z = [1e13, 1e20, f64::INFINITY].map(|height| {
        let (density, mut target) = (Normal(1.2), Wall(height));
        let mut bridge = Bridge::new(&density, &mut target);
        let points = bridge.sample(4000, 1).unwrap();
        let mut run = Annealing::new(&bridge, points, even(10, 0.02), options.clone()).unwrap();
        while !run.is_finished() {
            run.stage(&mut bridge).unwrap();
        }
        run.log_z()
    });
    assert!(log_z[0] == log_z[2] && log_z[1] == log_z[2] && log_z[0].abs() < 10.0, "{log_z:?}");
}

/// Wells with a wall beyond x = 1.5.
struct Wall(f64);

impl Target for Wall {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], out: &mut [f64]) -> Result<()> {
        Wells.reduced_potential(x, out)?;
        out.iter_mut().zip(x.chunks_exact(2)).for_each(|(u, x)| *u += if x[0] > 1.5 { self.0 } else { 0.0 });
        Ok(())
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], out: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        Wells.reduced_potential_gradient(x, out, gradient)?;
        self.reduced_potential(x, out)
    }
}

/// Neither the noise of moves nor the numbers of resampling.
#[test]
fn no_random_number_serves_twice() {
    let (density, mut target) = (Square(1e-3), Square(1e-3));
    let mut bridge = Bridge::new(&density, &mut target);
    let (n, step) = (500, 1e-5);
    let points = bridge.evaluate(vec![0.0; 2 * n]).unwrap();
    let options = Options { moves: 2, threshold: 0.0, ..Options::default() };
    let mut run = Annealing::new(&bridge, points, even(3, step), options).unwrap();
    (0..3).for_each(|_| _ = run.stage(&mut bridge).unwrap());
    let spread = run.points.x.iter().map(|x| x * x).sum::<f64>() / (2 * n) as f64;
    // six steps, each with a variance of 2ε
    assert!((spread / (12.0 * step) - 1.0).abs() < 5.0 * (1.0 / n as f64).sqrt(), "{spread:e}");

    // negligible steps, so that only resampling acts
    let points = bridge.evaluate((0..n).flat_map(|row| [row as f64 / n as f64, 0.0]).collect()).unwrap();
    let options = Options { threshold: 1.0, resampling: Resampling::Multinomial, ..Options::default() };
    let mut run = Annealing::new(&bridge, points, even(3, 1e-30), options).unwrap();
    let [first, second] = [0; 2].map(|_| {
        assert!(run.stage(&mut bridge).unwrap().resampled);
        run.points.x.chunks_exact(2).map(|x| (x[0] * n as f64).round() as usize).collect::<Vec<_>>()
    });
    let again: Vec<usize> = first.iter().map(|&row| first[row]).collect();
    assert!(second.iter().zip(&again).filter(|(a, b)| a == b).count() < n / 2, "the same rows were drawn twice");
}

/// Two atoms about a centroid that is noise, and a target of the same shape.
struct Pair;

impl Pair {
    /// −ln q relative to the noise, which equals u, and its gradient.
    fn energy(x: &[f64]) -> (f64, Vec<f64>) {
        let mut y = x.to_vec();
        centre(&mut y);
        (3.0 * y.iter().map(|y| y * y).sum::<f64>(), y.iter().map(|y| 6.0 * y).collect())
    }
}

impl Density for Pair {
    fn dimension(&self) -> usize {
        6
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn scope(&self) -> Scope {
        Scope::Noisy { sigma: 0.3 }
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("no samples are drawn here")
    }
    fn log_density(&self, _: &[f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        for (row, x) in x.chunks_exact(6).enumerate() {
            let (energy, slope) = Pair::energy(x);
            e[row] = Evaluation::inside(-energy);
            slope.iter().enumerate().for_each(|(k, g)| gradient[6 * row + k] = -g);
        }
        Ok(())
    }
}

impl Target for Pair {
    fn dimension(&self) -> usize {
        6
    }
    fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for (row, x) in x.chunks_exact(6).enumerate() {
            let (energy, slope) = Pair::energy(x);
            u[row] = energy;
            gradient[6 * row..6 * row + 6].copy_from_slice(&slope);
        }
        Ok(())
    }
}

/// If it were added to the target alone, a perfect model would have unequal weights.
#[test]
fn the_noise_of_the_centroid_belongs_to_both_ends() {
    let (density, mut target) = (Pair, Pair);
    let mut bridge = Bridge::new(&density, &mut target);
    let x = vec![0.1, -0.2, 0.4, 0.5, 0.3, -0.1];
    let points = bridge.evaluate(x.clone()).unwrap();
    assert_eq!((&points.source, &points.source_gradient), (&points.target, &points.target_gradient));
    // u excludes the noise, and so does the energy cut-off
    let (u, of_path) = (Pair::energy(&x).0, points.target[0]);
    assert!((bridge.reduced_potential(&points)[0] - u).abs() < 1e-12 && of_path > u + 0.1);
    let options = Options { energy_cutoff: Some(u + 0.1), ..Options::default() };
    assert_eq!(Annealing::new(&bridge, points.clone(), even(1, 0.1), options).unwrap().points.n(), 1);
    for k in 0..6 {
        let mut at = |shift: f64| {
            let mut moved = x.clone();
            moved[k] += shift;
            bridge.evaluate(moved).unwrap().source[0]
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((slope - points.source_gradient[k]).abs() < 1e-7, "{k}");
    }
}

/// Engines stop with an error on NaN coordinates; a step that explodes must be rejected instead.
#[test]
fn no_end_sees_a_configuration_that_is_not_finite() {
    struct Strict;
    impl Target for Strict {
        fn dimension(&self) -> usize {
            2
        }
        fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
            unreachable!("the gradient is always asked for")
        }
        fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
            assert!(x.iter().all(|x| x.is_finite()), "the engine has been shown {x:?}");
            gradient.fill(f64::MAX);
            u.fill(0.0);
            Ok(())
        }
    }
    let (density, mut target) = (Normal(1.0), Strict);
    let mut bridge = Bridge::new(&density, &mut target);
    let points = bridge.evaluate(vec![1.0, 2.0, f64::NAN, 0.0, 3.0, 4.0]).unwrap();
    assert_eq!((points.target[0], points.target[1], points.target[2]), (0.0, f64::INFINITY, 0.0));
    assert_eq!(points.row(2), [3.0, 4.0]);
    for kernel in [Kernel::Adjusted, Kernel::Hamiltonian { leapfrog: 2 }] {
        let mut points = bridge.evaluate(vec![1.0, 2.0]).unwrap();
        let mut streams = [Stream::new(4, StreamId::Test, 0, 0)];
        let moved = step_all(&mut bridge, &mut points, kernel, Stage { t: 1.0, step: 1e3 }, &mut streams).unwrap();
        assert!(!moved[0].taken && points.x == [1.0, 2.0]);
    }
}

/// In the free coordinates of a space, gradients match the energies at both ends, and steps stay in the space.
#[test]
fn a_path_stays_in_its_space() {
    use crate::coordinates::vector::{atom, centroid, cross, dot, norm, sub, unit};
    let x = vec![0.1, -0.2, 0.4, 0.5, 0.3, -0.1, 0.9, -0.4, 0.2, 0.3, 0.3, 0.8];
    let z = unit(sub(atom(&x, 1), atom(&x, 0)));
    let y = unit(cross(z, sub(atom(&x, 2), atom(&x, 0))));
    let frame = Space::Frame { frame: [0, 1, 2], axes: [cross(y, z), y, z] };
    for space in [Space::Centred, frame] {
        let (density, mut target) = (Free(4), Free(4));
        let mut bridge = Bridge { space, ..Bridge::new(&density, &mut target) };
        let start = bridge.evaluate(x.clone()).unwrap();
        let mut direction: Vec<f64> = (0..12).map(|k| (1.7 * f64::from(k)).sin()).collect();
        space.project(&mut direction);
        let mut at = |h: f64| {
            let moved = x.iter().zip(&direction).map(|(x, v)| x + h * v).collect();
            bridge.evaluate(moved).unwrap().energy(0, 0.5)
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        let u: f64 = x.iter().map(|x| x.powi(4)).sum();
        assert!((bridge.reduced_potential(&start)[0] - u).abs() < 1e-12, "{space:?}: u has no part of the volume");
        let exact: f64 = start.gradient(0, 0.5).zip(&direction).map(|(g, v)| g * v).sum();
        assert!((slope - exact).abs() < 1e-6 * exact.abs(), "{space:?}: {slope} {exact}");

        let mut points = start.clone();
        let mut streams = [Stream::new(4, StreamId::Test, 0, 0)];
        for kernel in [Kernel::Adjusted, Kernel::Hamiltonian { leapfrog: 3 }] {
            let taken = (0..50)
                .filter(|_| {
                    let stage = Stage { t: 0.4, step: 1e-3 };
                    step_all(&mut bridge, &mut points, kernel, stage, &mut streams).unwrap()[0].taken
                })
                .count();
            assert!(taken > 20, "{space:?} {kernel:?} {taken}");
        }
        let x = &points.x;
        match space {
            Space::Centred => assert!(norm(sub(centroid(x), centroid(&start.x))) < 1e-12),
            _ => {
                let along = unit(sub(atom(x, 1), atom(x, 0)));
                let third = dot(sub(atom(x, 2), atom(x, 0)), y);
                assert!(atom(x, 0) == atom(&start.x, 0) && dot(along, z) > 1.0 - 1e-12 && third.abs() < 1e-12);
            }
        }
    }
}

/// Any number of atoms in harmonic wells about the origin.
struct Free(usize);

impl Density for Free {
    fn dimension(&self) -> usize {
        3 * self.0
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("no samples are drawn here")
    }
    fn log_density(&self, _: &[f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        e[0] = Evaluation::inside(-2.0 * x.iter().map(|x| x * x).sum::<f64>());
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g = -4.0 * x);
        Ok(())
    }
}

impl Target for Free {
    fn dimension(&self) -> usize {
        3 * self.0
    }
    fn reduced_potential(&mut self, _: &[f64], _: &mut [f64]) -> Result<()> {
        unreachable!("the gradient is always asked for")
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        u[0] = x.iter().map(|x| x.powi(4)).sum();
        gradient.iter_mut().zip(x).for_each(|(g, x)| *g = 4.0 * x.powi(3));
        Ok(())
    }
}
