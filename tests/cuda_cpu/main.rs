//! The kernels of `cuda/`, unmodified, run on the CPU with every model that has them, and compared with the Rust code:
//! plain, under the address and the thread sanitizer, and with planted faults that must be found; and what NVIDIA's
//! compiler makes of them for cards of several generations, by an interpreter of PTX.

mod coupling;
mod driver;
mod egnn_flow;
mod fields;
mod graphormer_ebm;
mod gvp_ebm;
mod gvp_flow;
mod mlp_ebm;
mod models;
mod paths;
mod ptx;
mod tarflow;
mod tensor;
mod weights;

use driver::{Fibres, Sanitizer};
use modejump::device::{Buffer, Driver, Program};
use std::sync::Arc;

fn fibres(name: &str, sanitizer: Sanitizer) -> Arc<dyn Driver> {
    Arc::new(Fibres::new(name, sanitizer))
}

fn with_tensor_cores(name: &str, sanitizer: Sanitizer) -> Arc<dyn Driver> {
    Arc::new(Fibres::new(name, sanitizer).with_tensor_cores())
}

/// Sums each warp's 32 numbers by shuffles.
const SHUFFLES: &str = r#"
struct Arguments { double* values; };
KERNEL(sum, Arguments) {
  double value = a.values[threadIdx.x];
  for (int bits = 16; bits > 0; bits /= 2) value += __shfl_xor_sync(0xffffffffu, value, bits);
  a.values[threadIdx.x] = value;
}
KERNEL(divergent, Arguments) {
  double value = a.values[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
  a.values[threadIdx.x] = value;
}
KERNEL(early, Arguments) {
  if (threadIdx.x > 40) return;
  __syncthreads();
  a.values[threadIdx.x] = 1.0;
}
"#;

fn run(kernel: &str) -> modejump::Result<Vec<f64>> {
    let driver = fibres(&format!("shuffles-{kernel}"), Sanitizer::None);
    let mut values: Vec<f64> = (0..64).map(f64::from).collect();
    let buffer = Buffer::of(&driver, &values)?;
    let id = driver.kernel(&Program::new("shuffles", SHUFFLES, &[]), kernel)?;
    // SAFETY: the kernels take one address, of 64 numbers for 64 threads.
    unsafe { driver.launch(id, 1, 64, 0, &buffer.address().to_le_bytes()) }?;
    buffer.read(&mut values)?;
    Ok(values)
}

#[test]
fn lanes_exchange_values() {
    let values = run("sum").unwrap();
    assert!(values[..32].iter().all(|&v| v == 496.0) && values[32..].iter().all(|&v| v == 1520.0), "{values:?}");
}

#[test]
fn a_divergent_shuffle_is_found() {
    let said = run("divergent").unwrap_err().to_string();
    assert!(said.contains("divergence"), "{said}");
}

#[test]
fn a_thread_that_ends_before_a_barrier_is_found() {
    let said = run("early").unwrap_err().to_string();
    assert!(said.contains("ended while others wait"), "{said}");
}
