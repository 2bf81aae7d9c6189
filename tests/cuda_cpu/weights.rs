//! Weights that are on a machine, against those of the CPU.

use super::driver::{Fibres, Sanitizer};
use super::fibres;
use modejump::device::{Device, Driver};
use modejump::rng::{Stream, StreamId};
use modejump::weights::on_device::WeightsOnDevice;
use modejump::weights::{self, Resampling};
use std::sync::Arc;

const METHODS: [Resampling; 3] = [Resampling::Systematic, Resampling::Stratified, Resampling::Multinomial];

/// Wide log-weights far from zero, every seventh of them of no weight.
fn log_weights(n: usize) -> Vec<f64> {
    let mut stream = Stream::new(4, StreamId::Test, 0, 0);
    (0..n).map(|i| if i % 7 == 6 { f64::NEG_INFINITY } else { 3.0 * stream.normal() - 900.0 }).collect()
}

fn stream() -> Stream {
    Stream::new(8, StreamId::Resample, 2, 0)
}

pub fn compare(driver: &Arc<dyn Driver>, n: usize) {
    let mut want = log_weights(n);
    let mut found = WeightsOnDevice::new(driver, &want).unwrap();
    let energies = |scale: f64| -> Vec<f64> { (0..n).map(|i| scale * (i as f64).sin()).collect() };
    let (target, source) = (energies(2.0), energies(0.3));
    found.add_work(0.25, &target, &source).unwrap();
    want.iter_mut().zip(target.iter().zip(&source)).for_each(|(w, (u, s))| *w -= 0.25 * (u - s));
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(1.0);
    assert!(found.read().unwrap().iter().zip(&want).all(|(a, b)| a == b || close(*a, *b)));
    assert!(close(weights::log_sum_exp(&want), found.log_sum_exp().unwrap()));
    let [ess, on_device] = [weights::effective_sample_size(&want), found.effective_sample_size()].map(|v| v.unwrap());
    assert!((ess - on_device).abs() < 1e-12 * n as f64, "{ess} {on_device}");
    let mut normalised = vec![f64::NAN; n];
    found.normalised().unwrap().read(&mut normalised).unwrap();
    assert!(weights::normalised(&want).unwrap().iter().zip(&normalised).all(|(a, b)| (a - b).abs() < 1e-12));
    for method in METHODS {
        let rows = weights::resample(&want, n + 3, method, &mut stream()).unwrap();
        assert_eq!(found.resample(n + 3, method, &stream()).unwrap(), rows, "{n} {method:?}");
    }
}

#[test]
fn numbers_of_the_cpu() {
    let driver = fibres("weights", Sanitizer::None);
    [1, 5, 2048, 2049, 7000, 30_000].into_iter().for_each(|n| compare(&driver, n));
}

#[test]
fn under_the_sanitizers() {
    for sanitizer in [Sanitizer::Address, Sanitizer::Thread] {
        compare(&fibres(&format!("weights-{sanitizer:?}"), sanitizer), 4500);
    }
}

/// 30,000 numbers are 15 pieces, of which the machine runs 8 blocks; the bits are those of a machine that runs them
/// all.
#[test]
fn bits_do_not_depend_on_the_blocks() {
    let sums = |name, multiprocessors| {
        let driver: Arc<dyn Driver> =
            Arc::new(Fibres::new(name, Sanitizer::None).with_multiprocessors(multiprocessors));
        let found = WeightsOnDevice::new(&driver, &log_weights(30_000)).unwrap();
        [found.log_sum_exp().unwrap(), found.effective_sample_size().unwrap()]
    };
    assert_eq!(sums("weights-few", 1), sums("weights-many", 100));
}

#[test]
fn what_the_cpu_refuses() {
    let driver = fibres("weights-refused", Sanitizer::None);
    let said = |log_weights: &[f64]| {
        let of_cpu = weights::normalised(log_weights).err().map(|e| e.to_string());
        let found = WeightsOnDevice::new(&driver, log_weights).and_then(|found| found.log_sum_exp());
        (of_cpu, found.err().map(|e| e.to_string()))
    };
    for log_weights in [vec![0.0, f64::NAN, 1.0], vec![f64::INFINITY], vec![f64::NEG_INFINITY; 3000]] {
        let (of_cpu, found) = said(&log_weights);
        assert!(of_cpu.is_some() && of_cpu == found, "{of_cpu:?} {found:?}");
    }
    let mut drawn = stream();
    drawn.uniform();
    let found = WeightsOnDevice::new(&driver, &[0.0]).unwrap();
    assert!(found.resample(1, Resampling::Systematic, &drawn).is_err());
}

/// What kernels with a planted fault make of 4500 weights.
fn with_fault(name: &str, sanitizer: Sanitizer, from: &'static str, to: &'static str) -> modejump::Result<Vec<usize>> {
    let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, sanitizer).with_fault(from, to));
    WeightsOnDevice::new(&driver, &log_weights(4500))?.resample(4500, Resampling::Systematic, &stream())
}

#[test]
fn a_sum_that_does_not_wait_is_a_data_race() {
    let fault = ["half /= 2) {\n    __syncthreads();", "half /= 2) {"];
    let said = with_fault("weights-race", Sanitizer::Thread, fault[0], fault[1]).unwrap_err().to_string();
    assert!(said.contains("data race"), "{said}");
}

#[test]
fn a_row_that_is_left_out_is_found() {
    let found = with_fault(
        "weights-out",
        Sanitizer::None,
        "a.weights[i] = memory[threadIdx.x] + sum;",
        "a.weights[i] = memory[threadIdx.x];",
    );
    let want = weights::resample(&log_weights(4500), 4500, Resampling::Systematic, &mut stream()).unwrap();
    assert_ne!(found.unwrap(), want);
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    let device = Device::cuda(0).unwrap();
    [1, 2049, 30_000, 1_000_000].into_iter().for_each(|n| compare(device.driver().unwrap(), n));
}
