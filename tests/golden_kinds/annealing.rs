//! Annealed Langevin runs and importance weights of transferable-samplers, with recorded noise and that program's
//! conventions: times j/T for j = 0 … T − 1, weights from the configuration before the move, one resampling at the end.

use super::{error, Found, Golden};
use modejump::annealing::{energy_drop, langevin, leapfrog, log_ratio, Bridge, Points};
use modejump::density::{Density, Evaluation, Exactness};
use modejump::rng::Stream;
use modejump::target::Target;
use modejump::weights::{self, Rule};
use modejump::Result;
use std::path::Path;

/// exp(−|r − μ|²/2s²)/2πs².
struct Source;

const S: f64 = 1.2;
const MU: [f64; 2] = [0.3, -0.2];

impl Density for Source {
    fn dimension(&self) -> usize {
        2
    }
    fn exactness(&self) -> Exactness {
        Exactness::Exact
    }
    fn sample(&self, _: &(dyn Fn(usize) -> Stream + Sync), _: &mut [f64], _: &mut [Evaluation]) -> Result<()> {
        unreachable!("the starting points are recorded")
    }
    fn log_density(&self, x: &[f64], e: &mut [Evaluation]) -> Result<()> {
        self.log_density_gradient(x, e, &mut vec![0.0; x.len()])
    }
    fn log_density_gradient(&self, x: &[f64], e: &mut [Evaluation], gradient: &mut [f64]) -> Result<()> {
        for ((x, e), g) in x.chunks_exact(2).zip(e).zip(gradient.chunks_exact_mut(2)) {
            let r = [x[0] - MU[0], x[1] - MU[1]];
            let squared = (r[0] * r[0] + r[1] * r[1]) / (S * S);
            *e = Evaluation::inside(-0.5 * squared - 2.0 * S.ln() - (2.0 * std::f64::consts::PI).ln());
            (g[0], g[1]) = (-r[0] / (S * S), -r[1] / (S * S));
        }
        Ok(())
    }
}

/// x⁴ − 4x² + x/2 + y² + 0.3 x y.
struct Wells;

impl Target for Wells {
    fn dimension(&self) -> usize {
        2
    }
    fn reduced_potential(&mut self, x: &[f64], u: &mut [f64]) -> Result<()> {
        self.reduced_potential_gradient(x, u, &mut vec![0.0; x.len()])
    }
    fn reduced_potential_gradient(&mut self, x: &[f64], u: &mut [f64], gradient: &mut [f64]) -> Result<()> {
        for ((r, u), g) in x.chunks_exact(2).zip(u).zip(gradient.chunks_exact_mut(2)) {
            let (x, y) = (r[0], r[1]);
            *u = x.powi(4) - 4.0 * x * x + 0.5 * x + y * y + 0.3 * x * y;
            (g[0], g[1]) = (4.0 * x.powi(3) - 8.0 * x + 0.5 + 0.3 * y, 2.0 * y + 0.3 * x);
        }
        Ok(())
    }
}

fn rows(points: &Points, rows: &[usize]) -> Vec<f64> {
    rows.iter().flat_map(|&row| points.x[2 * row..2 * row + 2].iter().copied()).collect()
}

/// `smc_toy/*_f64`. Single-precision files hold the reference's own arithmetic, which has no counterpart here.
pub fn run(stem: &Path) -> Found {
    let name = stem.file_name().unwrap().to_str().unwrap();
    let golden = Golden::open_alone(stem);
    let tolerance = if name.ends_with("_f32") { 2e-4 } else { 1e-11 };
    let (source, mut target) = (Source, Wells);
    let mut bridge = Bridge::new(&source, &mut target);
    let start = bridge.evaluate(golden.get("x0").to_vec()).unwrap();
    let mut found: Found = vec![
        ("source energies".into(), error(&start.source, golden.get("E_source_x0")), tolerance),
        ("target energies".into(), error(&start.target, golden.get("E_target_x0")), tolerance),
    ];
    let n = golden.get("final_logw").len();
    let all = start.n();
    let below: Vec<usize> = (0..all).filter(|&row| n == all || start.target[row] < 20.0).collect();
    let mut points = bridge.evaluate(rows(&start, &below)).unwrap();
    let mut log_w = vec![0.0; n];
    let [mut of_x, mut of_w, mut of_ess] = [0.0f64; 3];
    let mut resamplings = 0;
    let steps = golden.get("t").len();
    for j in 0..steps {
        let (t, dt, eps) = (golden.get("t")[j], golden.get("dt")[j], golden.get("eps")[j]);
        let energies = points.target.iter().zip(&points.source);
        log_w.iter_mut().zip(energies).for_each(|(w, (u, source))| *w -= dt * (u - source));
        let noise = &golden.get("noise")[2 * all * j..][..2 * n];
        let uniforms = &golden.get("unif")[all * j..][..n];
        points = match name.split('_').next() {
            Some("ula") => bridge.evaluate(proposals(&points, t, eps, noise)).unwrap(),
            Some("mala") => {
                let after = bridge.evaluate(proposals(&points, t, eps, noise)).unwrap();
                let ratios: Vec<f64> = (0..n).map(|row| log_ratio(&points, &after, row, t, eps)).collect();
                taken(&mut bridge, &points, &after, &ratios, uniforms)
            }
            _ => {
                let mut p = noise.to_vec();
                let after = leapfrog(&mut bridge, &points, &mut p, t, eps, 1).unwrap();
                let drops: Vec<f64> = (0..n).map(|row| energy_drop(&points, noise, &after, &p, row, t)).collect();
                taken(&mut bridge, &points, &after, &drops, uniforms)
            }
        };
        let ess = weights::effective_sample_size(&log_w).unwrap() / n as f64;
        of_w = of_w.max(error(&log_w, &golden.get("logw")[n * j..][..n]));
        of_ess = of_ess.max((ess - golden.get("ess_per_step")[j]).abs());
        if golden.get("resample_steps").get(resamplings) == Some(&(j as f64)) {
            let shift = golden.get("ures")[resamplings];
            let comb: Vec<f64> = (0..n).map(|i| (i as f64 + shift) / n as f64).collect();
            let picked = weights::select(&weights::normalised(&log_w).unwrap(), &comb);
            let expected = &golden.get("resample_idx")[n * resamplings..][..n];
            let same = picked.iter().zip(expected).all(|(&a, &b)| a as f64 == b);
            found.push((format!("resampling {resamplings}"), f64::from(u8::from(!same)), 0.0));
            points = bridge.evaluate(rows(&points, &picked)).unwrap();
            resamplings += 1;
            if j + 1 < steps {
                log_w.fill(0.0);
            }
        }
        // compare positions only up to the first resampling; the final ones are compared below
        if resamplings == 0 {
            of_x = of_x.max(error(&points.x, &golden.get("pos")[2 * n * j..][..2 * n]));
        }
    }
    of_x = of_x.max(error(&points.x, golden.get("final_x")));
    of_w = of_w.max(error(&log_w, golden.get("final_logw")));
    found.extend([("x".into(), of_x, tolerance), ("log w".into(), of_w, tolerance), ("ESS".into(), of_ess, tolerance)]);
    found
}

fn proposals(points: &Points, t: f64, eps: f64, noise: &[f64]) -> Vec<f64> {
    let row = |row: usize| {
        langevin(&points.x[2 * row..2 * row + 2], points.gradient(row, t), eps, &noise[2 * row..2 * row + 2])
    };
    (0..points.n()).flat_map(row).collect()
}

/// Points after the Metropolis test: accepted rows are replaced, rejected rows stay.
fn taken(bridge: &mut Bridge, before: &Points, after: &Points, ratios: &[f64], uniforms: &[f64]) -> Points {
    let row = |(row, (ratio, uniform)): (usize, (&f64, &f64))| {
        let from = if uniform.ln() < *ratio { after } else { before };
        from.x[2 * row..2 * row + 2].to_vec()
    };
    let x = ratios.iter().zip(uniforms).enumerate().flat_map(row).collect();
    bridge.evaluate(x).unwrap()
}

/// `snis/snis_*`: raw weights, and those kept by the reference's clipping rule.
pub fn importance(stem: &Path) -> Found {
    let golden = Golden::open_alone(stem);
    let log_w = golden.get("logw");
    let n = log_w.len() as f64;
    let ess = weights::effective_sample_size(log_w).unwrap();
    let mean = weights::mean(log_w, golden.get("observable")).unwrap().value;
    let log_mean = weights::log_sum_exp(log_w) - n.ln();
    let kept = golden.get("keep");
    let (clipped, deleted) = Rule::QuantileClipped { share: 0.002 }.apply(log_w).unwrap();
    let keeps: Vec<f64> = clipped.iter().map(|w| f64::from(u8::from(w.is_finite()))).collect();
    let ess_of_clipped = weights::effective_sample_size(&clipped).unwrap() / (n - deleted as f64);
    let threshold = weights::quantile(log_w, 0.998);
    vec![
        ("weights".into(), error(&weights::normalised(log_w).unwrap(), golden.get("weights")), 1e-14),
        ("ESS".into(), error(&[ess], golden.get("ess_kish")), 1e-9),
        ("ESS over n".into(), error(&[ess / n], golden.get("ess_norm")), 1e-12),
        ("log mean weight".into(), error(&[log_mean], golden.get("log_mean_w")), 1e-11),
        ("mean".into(), error(&[mean], golden.get("snis_mean")), 1e-11),
        ("clipping threshold".into(), error(&[threshold], golden.get("clip_quantile_threshold")), 1e-11),
        ("kept by clipping".into(), error(&keeps, kept), 0.0),
        ("ESS over n after clipping".into(), error(&[ess_of_clipped], golden.get("ess_norm_after_clip")), 1e-12),
    ]
}
