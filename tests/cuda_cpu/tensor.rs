//! Products by tensor cores, alone.

use super::driver::{Fibres, Sanitizer};
use super::fields::normals;
use modejump::device::{Buffer, Device, Driver, Program};
use std::sync::Arc;

/// y = 0.5 o + lane + W x.
const SOURCE: &str = r#"
#include "common.cuh"
struct Arguments { const real *w, *x; real* y; int n_in, n_out, lanes, padding; };
KERNEL(multiply, Arguments) {
  const auto start = [&](int o, int lane, real* sum) {
    for (int r = 0; r < 8; ++r) sum[r] = 0.5f * o + (lane + r);
  };
  const auto finish = [&](int o, int lane, real* sum) { put_eight(a.y + o * a.lanes + lane, sum); };
  product(a.w, a.n_in, a.n_out, a.lanes, a.x, start, finish);
}
"#;

const THREADS: u32 = 96;

/// The largest error of an output, relative to what its terms come to without their signs. The inputs behind the last
/// are no numbers.
fn error(driver: &Arc<dyn Driver>, [n_in, n_out, lanes]: [usize; 3]) -> f64 {
    let numbers = |n: usize, index: u64| normals(n, index).iter().map(|&v| v as f32).collect::<Vec<f32>>();
    let (w, mut x) = (numbers(n_in * n_out, 1), numbers(n_in * lanes, 2));
    x.extend(vec![f32::NAN; 8 * lanes]);
    let buffers = [Buffer::of(driver, &w).unwrap(), Buffer::of(driver, &x).unwrap()];
    let found = Buffer::of(driver, &vec![f32::NAN; n_out * lanes]).unwrap();
    let constants: [(_, &dyn std::fmt::Display); 3] = [("REAL", &"float"), ("THREADS", &THREADS), ("TENSOR", &1)];
    let kernel = driver.kernel(&Program::new("multiply", SOURCE, &constants), "multiply").unwrap();
    let addresses = [buffers[0].address(), buffers[1].address(), found.address()].map(u64::to_le_bytes);
    let sizes = [n_in, n_out, lanes, 0].map(|n| (n as i32).to_le_bytes());
    let argument = [addresses.as_flattened(), sizes.as_flattened()].concat();
    // SAFETY: the kernel takes three addresses, of matrices of these sizes, and the sizes.
    unsafe { driver.launch(kernel, 1, THREADS, 0, &argument) }.unwrap();
    let mut y = vec![0.0; n_out * lanes];
    found.read(&mut y).unwrap();
    let of = |i: usize| {
        let (o, lane) = (i / lanes, i % lanes);
        let terms = (0..n_in).map(|k| f64::from(w[k * n_out + o]) * f64::from(x[k * lanes + lane]));
        let start = 0.5 * o as f64 + lane as f64;
        let (sum, size) = terms.fold((start, start), |(sum, size), term| (sum + term, size + term.abs()));
        (f64::from(y[i]) - sum).abs() / size
    };
    (0..y.len()).map(of).fold(0.0, |most, error| if error.is_nan() { error } else { f64::max(most, error) })
}

/// [inputs, outputs, lanes]: less than a piece, one, more than a warp takes at once, those of a Graphormer.
const SIZES: [[usize; 3]; 6] = [[3, 2, 8], [8, 16, 8], [20, 34, 24], [50, 18, 40], [17, 6, 64], [256, 256, 24]];

pub fn check(driver: &Arc<dyn Driver>) {
    for sizes in SIZES {
        let error = error(driver, sizes);
        println!("{sizes:?}: {error:.1e}");
        assert!(error < 1e-6, "{sizes:?}: {error:e}");
    }
}

#[test]
fn products_of_all_sizes() {
    for (name, sanitizer) in [("tensor", Sanitizer::None), ("tensor-address", Sanitizer::Address)] {
        check(&(Arc::new(Fibres::new(name, sanitizer)) as Arc<dyn Driver>));
    }
}

/// Without the small parts, and with lanes of another thread.
#[test]
fn faults_are_found() {
    for (name, from, to) in [
        ("tensor-small", "MMA(piece, a.small, b.large);", ""),
        ("tensor-lanes", "const int wanted = t ^ d;", "const int wanted = t;"),
    ] {
        let driver: Arc<dyn Driver> = Arc::new(Fibres::new(name, Sanitizer::None).with_fault(from, to));
        let error = error(&driver, [20, 34, 24]);
        assert!(error.is_nan() || error > 1e-5, "{name}: {error:e}");
    }
}

/// What the instruction cuts off adds up where a sum stays in it to the end.
#[test]
fn pieces_are_added_up_outside() {
    let driver: Arc<dyn Driver> = Arc::new(
        Fibres::new("tensor-inside", Sanitizer::None)
            .with_fault(
                "for (int i = 0; i < 4; ++i) sum[e][i] += piece[i];",
                "for (int i = 0; i < 4; ++i) sum[e][i] = piece[i];",
            )
            .with_fault("float piece[4] = {0.0f, 0.0f, 0.0f, 0.0f};", "float* const piece = sum[e];"),
    );
    let error = error(&driver, [256, 256, 24]);
    assert!(error > 5e-7, "{error:e}");
}

#[test]
#[ignore = "needs a GPU: make test-gpu"]
fn on_a_gpu() {
    check(Device::cuda(0).unwrap().driver().unwrap());
}
