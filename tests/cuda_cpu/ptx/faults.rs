//! What the machine must find: planted faults in the kernels of TarFlows, and small kernels that are wrong.

use super::super::{fields, tarflow};
use super::{alu, compiler, Ptx};
use modejump::density::{Density, Evaluation};
use modejump::device::{Buffer, Driver, Program};
use modejump::models::tarflow::{TarFlow, TarFlowConfig};
use modejump::models::Flow;
use std::sync::Arc;

/// What is wrong with a single sample by a TarFlow with faults: what the machine said, or how far off it is.
fn wrong_sample(
    of: &dyn Fn() -> TarFlow<f32>,
    architecture: &'static str,
    faults: &[(&'static str, &'static str)],
) -> Result<f64, String> {
    let driver: Arc<dyn Driver> = Arc::new(Ptx::new(architecture).with_faults("tarflow", faults));
    let card = of().on_device(&driver).map_err(|e| e.to_string())?;
    let z = fields::normals(card.dimension(), 1);
    let (mut x, mut log_det, mut log_q) = (vec![0.0; z.len()], [0.0], [Evaluation::inside(0.0)]);
    card.generate(&z, &mut x, &mut log_det, &mut log_q).map_err(|e| e.to_string())?;
    let want = tarflow::generated(&of(), &z).0;
    // no number is as far off as can be
    let errors = want.iter().zip(&x).map(|(a, b)| if b.is_nan() { f64::INFINITY } else { (a - b).abs() });
    Ok(errors.fold(0.0, f64::max))
}

/// Of sizes at which code was left out.
fn wide() -> TarFlow<f32> {
    let sizes = TarFlowConfig { tokens: 6, token_size: 1, channels: 64, blocks: 1, layers: 2, heads: 4, expansion: 4 };
    tarflow::of_sizes(sizes)
}

/// Compilers from 12.4 to 13.2 took most of the kernel for never reached where shared memory was addressed so.
#[test]
fn code_that_a_compiler_leaves_out_is_found() {
    let faults = [
        ("  real* of_team;\n  int shift;", "  real *of_team, *shared;"),
        (
            "real* sums() const { return (real*)of_block() + shift; }",
            "real* sums() const { __builtin_assume(__isShared(shared)); return shared; }",
        ),
        ("return sums() - 2 * WIDTH * a.tokens;", "return shared - 2 * WIDTH * a.tokens;"),
        (
            "ALONE ? 2 * (WIDTH * a.tokens + MOST_ASKED * THREADS) : 0};",
            "(real*)of_block() + (ALONE ? 2 * (WIDTH * a.tokens + MOST_ASKED * THREADS) : 0)};",
        ),
    ];
    if compiler().is_some() {
        let [old, new] = ["75", "90"].map(|architecture| wrong_sample(&wide, architecture, &faults));
        println!("sm_75: {old:?}, sm_90: {new:?}");
        assert!(old.is_ok_and(|error| error < 1e-4) && !new.is_ok_and(|error| error < 1e-3));
    }
}

/// Weights and keys that a single sample's team asked for and did not wait for; and cards that copy at once.
#[test]
fn copies_that_are_not_waited_for_are_found() {
    let faults = [
        ("    if (ALONE) ARRIVED();\n#pragma unroll", "#pragma unroll"),
        ("    ARRIVED();\n    __syncthreads();", "    __syncthreads();"),
    ];
    for fault in faults.into_iter().filter(|_| compiler().is_some()) {
        let [old, new] =
            ["75", "90"].map(|architecture| wrong_sample(&|| tarflow::single(6, 1), architecture, &[fault]).unwrap());
        assert!(old < 1e-4 && new > 1e-3, "{fault:?}: {old:e} {new:e}");
    }
}

/// Kernels of one array, of which the last is right.
const SOURCE: &str = r#"
#include "common.cuh"
struct Arguments { float* values; };
KERNEL(misaligned, Arguments) {
  const Four four = *(const Four*)(a.values + 1 + threadIdx.x);
  a.values[threadIdx.x] = four.v[0] + four.v[1] + four.v[2] + four.v[3];
}
KERNEL(beyond, Arguments) {
  float* const near = (float*)of_block();
  near[threadIdx.x + 1] = a.values[threadIdx.x];
}
KERNEL(early, Arguments) {
  if (threadIdx.x > 40) return;
  __syncthreads();
  a.values[threadIdx.x] = 1.0f;
}
KERNEL(elsewhere, Arguments) {
  if (threadIdx.x > 40) {
    a.values[threadIdx.x] = 1.0f;
    __syncthreads();
    a.values[0] = 3.0f;
  } else {
    a.values[threadIdx.x] = 2.0f;
    __syncthreads();
    a.values[1] = 4.0f;
  }
}
KERNEL(divergent, Arguments) {
  float value = a.values[threadIdx.x];
  if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(0xffffffffu, value, 1);
  a.values[threadIdx.x] = value;
}
KERNEL(in_vain, Arguments) {
  u32* const arrivals = (u32*)a.values;
  if (blockIdx.x == 0) COUNT_IN(arrivals);
  while (LOOK(arrivals) < 2 * THREADS) {}
}
KERNEL(unordered, Arguments) {
  float* const near = (float*)of_block();
  near[threadIdx.x] = a.values[threadIdx.x];
  a.values[threadIdx.x] = near[THREADS - 1 - threadIdx.x];
}
KERNEL(reversed, Arguments) {
  float* const near = (float*)of_block();
  near[threadIdx.x] = a.values[threadIdx.x];
  __syncthreads();
  a.values[threadIdx.x] = near[THREADS - 1 - threadIdx.x];
}
"#;

const THREADS: u32 = 64;

/// What becomes of the numbers from zero on, by two blocks at once where the kernel is for them.
fn run(kernel: &str) -> modejump::Result<Vec<f32>> {
    let driver: Arc<dyn Driver> = Arc::new(Ptx::new("90"));
    let program = Program::new("wrong", SOURCE, &[("REAL", &"float"), ("THREADS", &THREADS)]);
    let mut values: Vec<f32> = (0..THREADS).map(|i| i as f32).collect();
    let (buffer, id) = (Buffer::of(&driver, &values)?, driver.kernel(&program, kernel)?);
    let (shared, argument) = (4 * THREADS as usize, buffer.address().to_le_bytes());
    // SAFETY: the kernels take one address, of a number for each thread.
    match kernel {
        "in_vain" => unsafe { driver.launch_together(id, 2, THREADS, shared, &argument) }?,
        _ => unsafe { driver.launch(id, 1, THREADS, shared, &argument) }?,
    }
    buffer.read(&mut values)?;
    Ok(values)
}

#[test]
fn wrong_kernels_are_found() {
    for (kernel, said) in [
        ("misaligned", "are misaligned"),
        ("beyond", "are beyond an array"),
        ("early", "ended while others wait"),
        ("elsewhere", "waits at another barrier"),
        ("divergent", "divergence"),
        ("in_vain", "wait for each other in vain"),
    ] {
        if compiler().is_some() {
            let error = run(kernel).expect_err(kernel).to_string();
            println!("{error}");
            assert!(error.contains(said) && error.contains("line"), "{kernel}: {error}");
        }
    }
}

#[test]
fn a_missing_barrier_changes_values() {
    if compiler().is_some() {
        let reversed: Vec<f32> = (0..THREADS).rev().map(|i| i as f32).collect();
        assert_eq!(run("reversed").unwrap(), reversed);
        assert_ne!(run("unordered").unwrap(), reversed);
    }
}

#[test]
fn instructions_compute_what_they_should() {
    let one = |opcode, a: u64| match alu::find(opcode) {
        Some(alu::Function::One(f)) => f(a),
        _ => panic!("{opcode}"),
    };
    let two = |opcode, a: u64, b: u64| match alu::find(opcode) {
        Some(alu::Function::Two(f)) => f(a, b),
        _ => panic!("{opcode}"),
    };
    let three = |opcode, a: u64, b: u64, c: u64| match alu::find(opcode) {
        Some(alu::Function::Three(f)) => f(a, b, c),
        _ => panic!("{opcode}"),
    };
    let bits = |x: f32| u64::from(x.to_bits());
    let minus = |n: i32| u64::from(n as u32);
    assert_eq!(two("mul.hi.s32", minus(-3), 5) as u32, u32::MAX);
    assert_eq!(two("mul.wide.u32", minus(-1), 2), 0x1_ffff_fffe);
    assert_eq!(two("mul.wide.s32", minus(-1), 2), -2_i64 as u64);
    assert_eq!(two("shr.s32", minus(-8), 40) as i32, -1);
    assert_eq!(two("shl.b32", 1, 32), 0);
    assert_eq!(two("setp.lt.s32", minus(-1), 0), 1);
    assert_eq!(two("setp.lt.u32", minus(-1), 0), 0);
    assert_eq!(two("setp.ltu.f32", bits(f32::NAN), bits(0.0)), 1);
    assert_eq!(two("setp.ne.f32", bits(f32::NAN), bits(0.0)), 0);
    assert_eq!(two("min.f32", bits(f32::NAN), bits(2.0)), bits(2.0));
    assert_eq!(two("copysign.f32", bits(-1.0), bits(2.0)), bits(-2.0));
    // 1 + 2⁻²⁴ lies between two numbers
    assert_eq!(two("add.rz.f32", bits(1.0), bits(f32::EPSILON / 2.0)), bits(1.0));
    assert_eq!(two("add.rz.f32", bits(-1.0), bits(f32::EPSILON / 8.0)), bits((-1.0_f32).next_up()));
    assert_eq!(three("fma.rm.f32", bits(-1.0), bits(1.0), bits(-1e-30)), bits((-1.0_f32).next_down()));
    assert_eq!(three("fma.rm.f32", bits(0.75), bits(1.0), bits(1e-30)), bits(0.75));
    assert_eq!(three("selp.b32", 7, 9, 0), 9);
    assert_eq!(three("prmt.b32", 0x3322_1100, 0x7766_5544, 0x5140), 0x5511_4400);
    assert_eq!(three("bfe.u32", 0xab00_0000, 24, 8), 0xab);
    assert_eq!(three("shf.l.wrap.b32", 0x8000_0000, 1, 1), 3);
    assert_eq!(one("cvt.rni.s32.f32", bits(2.5)) as i32, 2);
    assert_eq!(one("cvt.rzi.s32.f64", (-2.9_f64).to_bits()) as i32, -2);
    assert_eq!(one("cvt.rmi.f64.f64", (-2.1_f64).to_bits()), (-3.0_f64).to_bits());
    assert_eq!(one("cvt.s64.s32", minus(-5)), -5_i64 as u64);
    assert_eq!(one("cvt.u64.u32", u64::MAX), 0xffff_ffff);
    assert_eq!(one("cvt.rna.tf32.f32", bits(1.0 + 1.0 / 2048.0)), bits(1.0 + 1.0 / 1024.0));
    assert_eq!(one("cvt.sat.f32.f32", bits(f32::NAN)), bits(0.0));
    assert_eq!(one("clz.b64", 1) as u32, 63);
    for wrong in ["mul.wide.f32", "fma.f32", "cvt.f32.s32", "vadd.s32.s32.s32"] {
        assert!(alu::find(wrong).is_none(), "{wrong}");
    }
}
