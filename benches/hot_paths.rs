//! Criterion benchmarks of the hot paths: coupling flows, vector fields and energies, with throughput in FLOP of the
//! networks' matrix products; the integrator without a network; importance weights, with throughput in weights. Run
//! `make bench`, or `cargo bench -- PART_OF_A_NAME`; `modejump bench` prints the comparison table.

#[path = "../src/bin/modejump/bench/cases.rs"]
mod cases;

use cases::{Attempts, Energies, Fields, Odes, Sampling, TRAIN_BATCH};
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use modejump::annealing::{self, Kernel};
use modejump::bijection::Bijection;
use modejump::coordinates::CoordinatesConfig;
use modejump::density::Evaluation;
use modejump::models::coupling::{CouplingConfig, CouplingFlow, LayerConfig};
use modejump::models::tarflow::TarFlow;
use modejump::models::{EnergyFunction, Model, ModelCard, VectorField};
use modejump::modes::Modes;
use modejump::moves::{
    Annealed, Edge, Exchange, Generator, Independence, Isir, LatentWalk, LatentWalkOptions, ModeJump, Move, Options,
    Path, State,
};
use modejump::ode::{self, Method, Stage};
use modejump::rng::{Stream, StreamId};
use modejump::target::Target;
use modejump::{free_energy, weights};
use std::sync::Arc;
use std::time::Duration;

fn generator(c: &mut Criterion) {
    let flow = cases::spline_generator().unwrap();
    for batch in [1, 1000] {
        let mut group = c.benchmark_group(format!("coupling/ala2/{batch}"));
        group.throughput(Throughput::Elements((flow.flops() * batch as f64) as u64));
        let mut sampling = Sampling::new(&flow, batch);
        group.bench_function("sample", |b| b.iter(|| sampling.sample().unwrap()));
        group.bench_function("log_density", |b| b.iter(|| sampling.log_density().unwrap()));
        // backward through every matrix product costs as much as forward
        group.throughput(Throughput::Elements((2.0 * flow.flops() * batch as f64) as u64));
        group.bench_function("log_density_score", |b| b.iter(|| sampling.gradient().unwrap()));
    }
    let mut group = c.benchmark_group("coupling/ala2");
    group.throughput(Throughput::Elements((2.0 * flow.flops() * Attempts::BATCH as f64) as u64));
    let mut attempts = Attempts::new(flow).unwrap();
    group.bench_function(format!("move × {}", Attempts::BATCH), |b| b.iter(|| attempts.batch().unwrap()));
    for (name, draw_ahead) in [("in turn", false), ("ahead", true)] {
        let flow = cases::spline_generator().unwrap();
        let mut attempts = Attempts::beside(flow, Duration::from_micros(100), draw_ahead).unwrap();
        let name = format!("move × {}, energies of 100 µs, {name}", Attempts::BATCH);
        group.bench_function(name, |b| b.iter(|| attempts.batch().unwrap()));
    }
}

/// Overhead of a move beyond its generator and the energies, both of which cost almost nothing here. 66 coordinates.
fn overheads(c: &mut Criterion) {
    // one-layer flow: a normal density, with the given mean of x0
    let normal = |mean: f64| -> Arc<dyn Model> {
        let place = LayerConfig::Whiten { transformed: vec![0], mean: vec![mean], matrix: vec![1.0] };
        let config = CouplingConfig { uniform: vec![], layers: vec![place] };
        let card = ModelCard::of_coupling(config, CoordinatesConfig::Cartesian { dimension: 66 });
        Arc::new(CouplingFlow::<f32>::new(card).unwrap())
    };
    let free = || normal(0.0);
    let generator = |n_proposals: usize| {
        Generator::new(free(), None, Options { n_proposals, seed: 1, ..Options::default() }).unwrap()
    };
    let walk = |leapfrog: usize| {
        LatentWalk::new(&free(), LatentWalkOptions { leapfrog, ..LatentWalkOptions::default() }).unwrap()
    };
    let map = || Bijection::new(free(), free()).unwrap();
    let sides = Modes::by(vec!["left".into(), "right".into()], |x| Some(usize::from(x[0] > 0.0))).unwrap();
    let edge = Edge { modes: [0, 1], map: Bijection::new(normal(-5.0), normal(5.0)).unwrap(), weights: [1.0; 2] };
    let path = Path { kernel: Kernel::Adjusted, stages: annealing::even(10, 1e-3), moves: 1 };
    let kernels: Vec<(&str, Box<dyn Move>)> = vec![
        ("independence", Box::new(Independence::new(generator(1)))),
        ("i-SIR of 4", Box::new(Isir::new(generator(4)))),
        ("annealed, 10 stages", Box::new(Annealed::new(generator(1), path).unwrap())),
        ("latent walk", Box::new(walk(0))),
        ("latent walk, 10 leapfrog steps", Box::new(walk(10))),
        ("mode jump", Box::new(ModeJump::new(sides, vec![edge], 1).unwrap())),
    ];
    let mut group = c.benchmark_group(format!("overhead × {}", Attempts::BATCH));
    for (name, kernel) in kernels {
        let mut x = cases::normal_frames(66);
        if name == "mode jump" {
            x[0] -= 5.0; // start inside one mode, so that the jump leads to the other
        }
        let mut attempts = Attempts::of(kernel, x);
        group.bench_function(name, |b| b.iter(|| attempts.batch().unwrap()));
    }
    // what an annealed move evaluates of its generator at every step; included in the annealed figure above
    let (generator, x) = (free(), cases::normal_frames(66));
    let (mut log_q, mut gradient) = ([Evaluation::inside(0.0)], vec![0.0; 66]);
    group.bench_function("log q and gradient of the generator", |bench| {
        bench.iter(|| {
            for _ in 0..Attempts::BATCH {
                generator.log_density_gradient(&x, &mut log_q, &mut gradient).unwrap();
            }
        })
    });
    let mut exchange = Exchange::new(map(), 1);
    let [mut a, mut b] = [cases::normal_frames(66), cases::normal_frames(66)];
    let mut step = 0;
    group.bench_function("learned exchange", |bench| {
        bench.iter(|| {
            for _ in 0..Attempts::BATCH {
                step += 1;
                let state = |x, replica| State { x, box_vectors: None, reduced_potential: 0.0, step, replica };
                let flat = || cases::Flat(66, Duration::ZERO);
                let targets: [&mut dyn Target; 2] = [&mut flat(), &mut flat()];
                exchange.attempt(targets, [&mut state(&mut a, 0), &mut state(&mut b, 1)]).unwrap();
            }
        })
    });
}

fn training(c: &mut Criterion) {
    let flow = cases::affine66().unwrap();
    let mut group = c.benchmark_group("coupling/cartesian66");
    group.throughput(Throughput::Elements((3.0 * flow.flops() * TRAIN_BATCH as f64) as u64));
    let frames = cases::normal_frames(66 * 8192);
    let mut trainer = cases::trainer(flow, &frames).unwrap();
    group.bench_function("train_step", |b| b.iter(|| trainer.step().unwrap()));
}

fn vector_fields(c: &mut Criterion) {
    let (gvp, egnn) = (cases::gvp_field().unwrap(), cases::egnn().unwrap());
    vector_field(c, "gvp_flow", &gvp, [gvp.flops(), gvp.divergence_flops()]);
    vector_field(c, "egnn_flow", &egnn, [egnn.flops(), egnn.divergence_flops()]);
    let flow = cases::gvp_flow("models/ala2/gvp-flow.safetensors").unwrap();
    let mut odes = Odes::new(&flow, 1);
    let mut group = c.benchmark_group("gvp_flow/ala2/1");
    group.sample_size(10);
    group.throughput(Throughput::Elements(cases::sample_flops(&flow).unwrap() as u64));
    group.bench_function("sample", |b| b.iter(|| odes.sample().unwrap()));
}

/// `flops`: FLOP of a value, and of a value with its divergence.
fn vector_field(c: &mut Criterion, name: &str, field: &dyn VectorField, flops: [f64; 2]) {
    for batch in [1, 8] {
        let mut fields = Fields::new(field, batch);
        let mut group = c.benchmark_group(format!("{name}/ala2/{batch}"));
        group.throughput(Throughput::Elements((flops[0] * batch as f64) as u64));
        group.bench_function("velocity", |b| b.iter(|| fields.velocity().unwrap()));
        group.throughput(Throughput::Elements((flops[1] * batch as f64) as u64));
        group.bench_function("velocity_divergence", |b| b.iter(|| fields.velocity_divergence().unwrap()));
    }
}

fn tarflow(c: &mut Criterion) {
    autoregressive(c, "tarflow/Ace-A-Nme", &cases::tarflow("Ace-A-Nme").unwrap());
    autoregressive(c, "prose/AAAAAA", &cases::prose().unwrap());
}

fn autoregressive(c: &mut Criterion, name: &str, flow: &TarFlow<f32>) {
    for batch in [1, 64] {
        let mut group = c.benchmark_group(format!("{name}/{batch}"));
        group.sample_size(10);
        group.throughput(Throughput::Elements((flow.flops() * batch as f64) as u64));
        let mut sampling = Sampling::new(flow, batch);
        group.bench_function("sample", |b| b.iter(|| sampling.sample().unwrap()));
        group.bench_function("log_density", |b| b.iter(|| sampling.log_density().unwrap()));
    }
}

fn energies(c: &mut Criterion) {
    let (graphormer, invariant) = (cases::graphormer().unwrap(), cases::invariant().unwrap());
    let gvp = cases::gvp_energy().unwrap();
    energy(c, "graphormer_ebm", &graphormer, graphormer.flops());
    energy(c, "gvp_ebm", &gvp, gvp.flops());
    energy(c, "invariant_ebm", &invariant, invariant.flops());
}

fn energy(c: &mut Criterion, name: &str, model: &dyn EnergyFunction, flops: f64) {
    for batch in [1, 128] {
        let mut energies = Energies::new(model, batch);
        let mut group = c.benchmark_group(format!("{name}/ala2/{batch}"));
        group.throughput(Throughput::Elements((flops * batch as f64) as u64));
        group.bench_function("energy", |b| b.iter(|| energies.energy().unwrap()));
        group.throughput(Throughput::Elements((2.0 * flops * batch as f64) as u64));
        group.bench_function("energy_score", |b| b.iter(|| energies.energy_score().unwrap()));
    }
}

/// The field is a rotation with a divergence, which costs almost nothing, so this times the integrator itself.
fn integrator(c: &mut Criterion) {
    const DIMENSION: usize = 66;
    let mut rotation = |stage: Stage| {
        for (x, dx) in stage.x.chunks_exact(2).zip(stage.dx.chunks_exact_mut(2)) {
            (dx[0], dx[1]) = (6.0 * x[1], -6.0 * x[0]);
        }
        stage.rate.fill(1.0);
    };
    for batch in [1, 128] {
        let start = cases::normal_frames(batch * DIMENSION);
        let mut group = c.benchmark_group(format!("ode/{DIMENSION}/{batch}"));
        group.throughput(Throughput::Elements(batch as u64));
        for (name, method) in [("dormand_prince", Method::default()), ("rk4 × 20", Method::Rk4 { steps: 20 })] {
            group.bench_function(name, |b| {
                b.iter(|| {
                    let (mut x, mut integral) = (start.clone(), vec![0.0; batch]);
                    ode::integrate(&method, [1.0, 0.0], DIMENSION, &mut x, &mut integral, &mut rotation)
                });
            });
        }
    }
}

fn importance_weights(c: &mut Criterion) {
    const SAMPLES: usize = 20_000;
    let log_weights = cases::normal_frames(SAMPLES);
    let observable = cases::normal_frames(SAMPLES);
    let mut group = c.benchmark_group(format!("weights/{SAMPLES}"));
    group.throughput(Throughput::Elements(SAMPLES as u64));
    group.bench_function("ess", |b| b.iter(|| weights::effective_sample_size(&log_weights).unwrap()));
    group.bench_function("pareto_k", |b| b.iter(|| weights::pareto_k(&log_weights).unwrap()));
    group.bench_function("mean", |b| b.iter(|| weights::mean(&log_weights, &observable).unwrap()));
    group.bench_function("mean_bootstrap × 100", |b| {
        let mut stream = Stream::new(1, StreamId::Bootstrap, 0, 0);
        b.iter(|| weights::mean_bootstrap(&log_weights, &observable, 100, &mut stream).unwrap());
    });
    group.bench_function("bar", |b| b.iter(|| free_energy::bar(&log_weights, &observable).unwrap()));
}

criterion_group!(
    benches,
    generator,
    overheads,
    training,
    vector_fields,
    tarflow,
    energies,
    integrator,
    importance_weights
);
criterion_main!(benches);
