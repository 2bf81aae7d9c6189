//! Criterion benchmarks of the hot paths of coupling flows, vector fields and energies; throughput in FLOP of the networks'
//! products.
//! `cargo bench --bench coupling`; the comparison table is `modejump bench`.

#[path = "../src/bin/modejump/bench/cases.rs"]
mod cases;

use cases::{Attempts, Energies, Fields, Sampling, TRAIN_BATCH};
use criterion::{criterion_group, criterion_main, Criterion, Throughput};
use modejump::models::VectorField;

fn generator(c: &mut Criterion) {
    let flow = cases::spline_generator().unwrap();
    for batch in [1, 1000] {
        let mut group = c.benchmark_group(format!("coupling/ala2/{batch}"));
        group.throughput(Throughput::Elements((flow.flops() * batch as f64) as u64));
        let mut sampling = Sampling::new(&flow, batch);
        group.bench_function("sample", |b| b.iter(|| sampling.sample().unwrap()));
        group.bench_function("log_density", |b| b.iter(|| sampling.log_density().unwrap()));
    }
    let mut group = c.benchmark_group("coupling/ala2");
    group.throughput(Throughput::Elements((2.0 * flow.flops() * Attempts::BATCH as f64) as u64));
    let mut attempts = Attempts::new(flow).unwrap();
    group.bench_function(format!("move × {}", Attempts::BATCH), |b| b.iter(|| attempts.batch().unwrap()));
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
    let tangents = 1.0 + egnn.dimension() as f64;
    vector_field(c, "gvp_flow", &gvp, [gvp.flops(), gvp.divergence_flops()]);
    vector_field(c, "egnn_flow", &egnn, [egnn.flops(), tangents * egnn.flops()]);
}

/// `flops` of a value, and of a value with its divergence.
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

fn energy(c: &mut Criterion) {
    let model = cases::graphormer().unwrap();
    for batch in [1, 128] {
        let mut energies = Energies::new(&model, batch);
        let mut group = c.benchmark_group(format!("graphormer_ebm/ala2/{batch}"));
        group.throughput(Throughput::Elements((model.flops() * batch as f64) as u64));
        group.bench_function("energy", |b| b.iter(|| energies.energy().unwrap()));
        group.throughput(Throughput::Elements((2.0 * model.flops() * batch as f64) as u64));
        group.bench_function("energy_score", |b| b.iter(|| energies.energy_score().unwrap()));
    }
}

criterion_group!(benches, generator, training, vector_fields, energy);
criterion_main!(benches);
