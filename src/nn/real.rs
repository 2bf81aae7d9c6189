//! The floating-point type of a network: f32 by default, f64 as the reference path.

#[cfg(target_arch = "x86_64")]
use super::lanes::allowed;
use super::lanes::{dispatch_kernel, Kernel};
use gemm_common::Parallelism;

/// Strides of an operand in a GEMM, `dst = [dst +] lhs · rhs`.
#[derive(Clone, Copy)]
pub struct Matrix {
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Matrix {
    /// A row-major matrix with `columns` columns.
    pub fn row_major(columns: usize) -> Matrix {
        Matrix { row_stride: columns, column_stride: 1 }
    }

    /// A row-major matrix with `columns` columns, read as its transpose.
    pub fn transposed(columns: usize) -> Matrix {
        Matrix { row_stride: 1, column_stride: columns }
    }

    /// The transpose of this one.
    pub fn turned(self) -> Matrix {
        Matrix { row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// Index just past the last element of an m × n view.
    fn end(self, m: usize, n: usize) -> usize {
        (m - 1) * self.row_stride + (n - 1) * self.column_stride + 1
    }
}

/// Number type of a network: a floating-point number, or one with a derivative ([`super::Dual`]).
pub trait Scalar:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + std::iter::Sum
    + 'static
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
{
    const NAME: &'static str;

    fn from_f64(value: f64) -> Self;
    fn to_f64(self) -> f64;

    fn sqrt(self) -> Self;

    /// y ← exp(y), element by element.
    fn exp_slice(values: &mut [Self]);
    /// y ← tanh(y).
    fn tanh_slice(values: &mut [Self]);
    /// y ← σ(x).
    fn sigmoid_slice(x: &[Self], y: &mut [Self]);
    /// y ← x · σ(x).
    fn silu_slice(x: &[Self], y: &mut [Self]);
    /// gradient ← gradient · d silu(x)/dx.
    fn silu_backward(pre: &[Self], gradient: &mut [Self]);
    /// y ← erf(y).
    fn erf_slice(values: &mut [Self]);
    /// y ← ln(1 + eʸ).
    fn softplus_slice(values: &mut [Self]);

    /// `dst[m][n] = lhs[m][k] · rhs[k][n]`, added to dst if `accumulate`. Single-threaded.
    fn gemm(
        shape: (usize, usize, usize),
        dst: (&mut [Self], Matrix),
        lhs: (&[Self], Matrix),
        rhs: (&[Self], Matrix),
        accumulate: bool,
    );
}

/// Implements [`Scalar::gemm`] with the crate for one type.
macro_rules! gemm_of {
    ($crate_of_type:ident, $real:ident) => {
        fn gemm(
            (m, n, k): (usize, usize, usize),
            dst: (&mut [$real], Matrix),
            lhs: (&[$real], Matrix),
            rhs: (&[$real], Matrix),
            accumulate: bool,
        ) {
            if m == 0 || n == 0 {
                return;
            }
            assert!(k > 0, "a product must be over at least one feature");
            assert!(dst.0.len() >= dst.1.end(m, n) && lhs.0.len() >= lhs.1.end(m, k) && rhs.0.len() >= rhs.1.end(k, n));
            let c = (dst.0.as_mut_ptr(), dst.1);
            let (a, b) = ((lhs.0.as_ptr(), lhs.1), (rhs.0.as_ptr(), rhs.1));
            // the crate's kernels write columns: rows of dst are columns of its transpose, rhsᵀ lhsᵀ
            let (m, n, c, a, b) = match dst.1.column_stride < dst.1.row_stride {
                true => (n, m, (c.0, c.1.turned()), (b.0, b.1.turned()), (a.0, a.1.turned())),
                false => (m, n, c, a, b),
            };
            let strides = |matrix: Matrix| (matrix.column_stride as isize, matrix.row_stride as isize);
            let ((c_column, c_row), (a_column, a_row), (b_column, b_row)) = (strides(c.1), strides(a.1), strides(b.1));
            // SAFETY: the assertion above keeps every index that the strides reach inside its slice; dst is borrowed
            // mutably, so it overlaps neither operand.
            unsafe {
                $crate_of_type::gemm::$real::get_gemm_fn()(
                    m,
                    n,
                    k,
                    c.0,
                    c_column,
                    c_row,
                    accumulate,
                    a.0,
                    a_column,
                    a_row,
                    b.0,
                    b_column,
                    b_row,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
    };
}

/// Compiles plain loops for the widest vector instructions of this processor. Everything they call must be inlined.
///
/// A macro rather than a function that takes a closure: the loops are written out for every instruction set, each as a
/// closure called in one place only, which the compiler inlines however long it is. A closure shared by all sets would
/// remain a call, to code compiled for the oldest processor.
macro_rules! vectorised {
    ($loops:expr) => {
        match $crate::nn::real::instruction_set() {
            // SAFETY: the processor has the features that the function was compiled for.
            #[cfg(target_arch = "x86_64")]
            $crate::nn::real::InstructionSet::Avx512 => unsafe { $crate::nn::real::with_avx512(|| $loops) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            $crate::nn::real::InstructionSet::Avx2 => unsafe { $crate::nn::real::with_avx2(|| $loops) },
            $crate::nn::real::InstructionSet::Baseline => $loops,
        }
    };
}
pub(crate) use vectorised;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,fma")]
#[inline]
pub(crate) fn with_avx512<T>(loops: impl FnOnce() -> T) -> T {
    loops()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
pub(crate) fn with_avx2<T>(loops: impl FnOnce() -> T) -> T {
    loops()
}

/// Vector instruction sets that loops and kernels are compiled for.
#[derive(Clone, Copy)]
pub(crate) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn instruction_set() -> InstructionSet {
    InstructionSet::Baseline
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn instruction_set() -> InstructionSet {
    let has = |found: [bool; 4]| found.into_iter().all(|f| f);
    if allowed(2)
        && has([
            is_x86_feature_detected!("avx512f"),
            is_x86_feature_detected!("avx512dq"),
            is_x86_feature_detected!("avx512vl"),
            is_x86_feature_detected!("avx512bw"),
        ])
    {
        return InstructionSet::Avx512;
    }
    match allowed(1) && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        true => InstructionSet::Avx2,
        false => InstructionSet::Baseline,
    }
}

/// Floating-point numbers.
pub trait Real: Scalar + bytemuck::Pod {
    /// Runs a kernel with the widest instructions of this processor.
    fn vectorised<K: Kernel<Self>>(kernel: K) -> K::Output;

    /// self · factor + term, in one instruction where every processor of the target has it, otherwise with two
    /// roundings.
    fn fused(self, factor: Self, term: Self) -> Self;
}

impl Real for f64 {
    dispatch_kernel!(f64, Avx512Double, Avx2Double);

    #[inline(always)]
    fn fused(self, factor: f64, term: f64) -> f64 {
        match cfg!(target_arch = "aarch64") {
            true => self.mul_add(factor, term),
            false => self * factor + term,
        }
    }
}

impl Scalar for f64 {
    gemm_of!(gemm_f64, f64);

    const NAME: &'static str = "f64";

    #[inline(always)]
    fn from_f64(value: f64) -> f64 {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        self.sqrt()
    }
    fn sigmoid_slice(x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = 1.0 / (1.0 + (-x).exp()));
    }
    fn exp_slice(values: &mut [f64]) {
        values.iter_mut().for_each(|v| *v = v.exp());
    }
    fn tanh_slice(values: &mut [f64]) {
        values.iter_mut().for_each(|v| *v = v.tanh());
    }
    fn silu_slice(x: &[f64], y: &mut [f64]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x / (1.0 + (-x).exp()));
    }
    fn silu_backward(pre: &[f64], gradient: &mut [f64]) {
        for (g, &x) in gradient.iter_mut().zip(pre) {
            let s = 1.0 / (1.0 + (-x).exp());
            *g *= s * (1.0 + x * (1.0 - s));
        }
    }
    fn erf_slice(values: &mut [f64]) {
        values.iter_mut().for_each(|v| *v = libm::erf(*v));
    }
    fn softplus_slice(values: &mut [f64]) {
        values.iter_mut().for_each(|v| *v = v.max(0.0) + (-v.abs()).exp().ln_1p());
    }
}

impl Real for f32 {
    dispatch_kernel!(f32, Avx512, Avx2);

    #[inline(always)]
    fn fused(self, factor: f32, term: f32) -> f32 {
        match cfg!(target_arch = "aarch64") {
            true => self.mul_add(factor, term),
            false => self * factor + term,
        }
    }
}

impl Scalar for f32 {
    gemm_of!(gemm_f32, f32);

    const NAME: &'static str = "f32";

    #[inline(always)]
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        self.sqrt()
    }
    fn sigmoid_slice(x: &[f32], y: &mut [f32]) {
        simd::sigmoid(x, y);
    }
    fn exp_slice(values: &mut [f32]) {
        simd::exp(values);
    }
    fn tanh_slice(values: &mut [f32]) {
        simd::tanh(values);
    }
    fn silu_slice(x: &[f32], y: &mut [f32]) {
        simd::silu(x, y);
    }
    fn silu_backward(pre: &[f32], gradient: &mut [f32]) {
        simd::silu_backward(pre, gradient);
    }
    fn erf_slice(values: &mut [f32]) {
        simd::erf(values);
    }
    fn softplus_slice(values: &mut [f32]) {
        simd::softplus(values);
    }
}

/// Element-wise f32 functions as polynomials in plain Rust; the compiler vectorises them for the instruction sets named
/// in `dispatch`, 10–30 times faster than libm.
mod simd {
    /// a·b + c: one instruction where the caller is compiled with FMA, otherwise with two roundings.
    #[inline(always)]
    fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
        if FMA {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }

    /// eˣ for x clipped to [−87.3, 88.3]; relative error below 2e-7 (degree-6 Taylor on |r| ≤ ½ ln 2).
    #[inline(always)]
    fn exp1<const FMA: bool>(x: f32) -> f32 {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to an integer in the low mantissa bits
        let x = x.clamp(-87.3, 88.3);
        let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let r = fma::<FMA>(n, -0.693_359_4, x); // ln 2 in two parts
        let r = fma::<FMA>(n, 2.121_944_4e-4, r);
        let mut p = 1.0 / 720.0;
        p = fma::<FMA>(p, r, 1.0 / 120.0);
        p = fma::<FMA>(p, r, 1.0 / 24.0);
        p = fma::<FMA>(p, r, 1.0 / 6.0);
        p = fma::<FMA>(p, r, 0.5);
        p = fma::<FMA>(p, r, 1.0);
        p = fma::<FMA>(p, r, 1.0);
        let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
        p * scale
    }

    #[inline(always)]
    fn tanh1<const FMA: bool>(x: f32) -> f32 {
        let a = x.abs();
        let e = exp1::<FMA>(-2.0 * a);
        let far = (1.0 - e) / (1.0 + e);
        let q = x * x; // odd Taylor polynomial: the quotient loses digits near zero
        let mut p = -1382.0 / 155_925.0;
        p = fma::<FMA>(p, q, 62.0 / 2835.0);
        p = fma::<FMA>(p, q, -17.0 / 315.0);
        p = fma::<FMA>(p, q, 2.0 / 15.0);
        p = fma::<FMA>(p, q, -1.0 / 3.0);
        p = fma::<FMA>(p, q, 1.0);
        if a < 0.3 {
            x * p
        } else {
            far.copysign(x)
        }
    }

    #[inline(always)]
    fn sigmoid1<const FMA: bool>(x: f32) -> f32 {
        1.0 / (1.0 + exp1::<FMA>(-x))
    }

    /// erf as x P(x²)/Q(x²) up to |x| = 4, beyond which no f32 lies between erf(x) and ±1: absolute error 4e-7
    /// (coefficients of Eigen's `erf`).
    #[inline(always)]
    fn erf1<const FMA: bool>(x: f32) -> f32 {
        let x = x.clamp(-4.0, 4.0);
        let square = x * x;
        let mut p = -2.726_142_4e-10;
        for c in [2.770_681_5e-8, -2.101_024e-6, -5.692_506_2e-5, -7.349_906_4e-4, -2.954_6e-3, -1.609_603_3e-2] {
            p = fma::<FMA>(p, square, c);
        }
        let mut q = -1.456_607_15e-5;
        for c in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2] {
            q = fma::<FMA>(q, square, c);
        }
        x * p / q
    }

    /// ln(1 + y) for y in [0, 1]: atanh series of y/(2+y), |argument| ≤ 1/3.
    #[inline(always)]
    fn ln_1p1<const FMA: bool>(y: f32) -> f32 {
        let t = y / (2.0 + y);
        let q = t * t;
        let mut p = 2.0 / 15.0;
        for c in [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
            p = fma::<FMA>(p, q, c);
        }
        t * p
    }

    #[inline(always)]
    fn exp_body<const FMA: bool>(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = exp1::<FMA>(*v));
    }
    #[inline(always)]
    fn erf_body<const FMA: bool>(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = erf1::<FMA>(*v));
    }
    #[inline(always)]
    fn tanh_body<const FMA: bool>(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = tanh1::<FMA>(*v));
    }
    #[inline(always)]
    fn silu_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = x * sigmoid1::<FMA>(x));
    }
    #[inline(always)]
    fn sigmoid_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = sigmoid1::<FMA>(x));
    }
    #[inline(always)]
    fn softplus_body<const FMA: bool>(values: &mut [f32]) {
        values.iter_mut().for_each(|v| *v = v.max(0.0) + ln_1p1::<FMA>(exp1::<FMA>(-v.abs())));
    }
    #[inline(always)]
    fn silu_backward_body<const FMA: bool>(pre: &[f32], gradient: &mut [f32]) {
        for (g, &x) in gradient.iter_mut().zip(pre) {
            let s = sigmoid1::<FMA>(x);
            *g *= s * fma::<FMA>(x, 1.0 - s, 1.0);
        }
    }

    macro_rules! dispatch {
        ($name:ident, $body:ident, ($($arg:ident: $type:ty),*)) => {
            pub fn $name($($arg: $type),*) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,fma")]
                    fn avx512($($arg: $type),*) {
                        $body::<true>($($arg),*)
                    }
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2($($arg: $type),*) {
                        $body::<true>($($arg),*)
                    }
                    match super::instruction_set() {
                        // SAFETY: the processor has the features that the function was compiled for.
                        super::InstructionSet::Avx512 => return unsafe { avx512($($arg),*) },
                        // SAFETY: as above.
                        super::InstructionSet::Avx2 => return unsafe { avx2($($arg),*) },
                        super::InstructionSet::Baseline => {}
                    }
                }
                $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
            }
        };
    }

    dispatch!(exp, exp_body, (values: &mut [f32]));
    dispatch!(erf, erf_body, (values: &mut [f32]));
    dispatch!(tanh, tanh_body, (values: &mut [f32]));
    dispatch!(silu, silu_body, (x: &[f32], y: &mut [f32]));
    dispatch!(sigmoid, sigmoid_body, (x: &[f32], y: &mut [f32]));
    dispatch!(softplus, softplus_body, (values: &mut [f32]));
    dispatch!(silu_backward, silu_backward_body, (pre: &[f32], gradient: &mut [f32]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn largest_error(range: (f32, f32), f: fn(&mut [f32]), truth: fn(f64) -> f64) -> f64 {
        let n = 200_001;
        let x: Vec<f32> = (0..n).map(|i| range.0 + (range.1 - range.0) * i as f32 / (n - 1) as f32).collect();
        let mut y = x.clone();
        f(&mut y);
        let error = |(x, y): (&f32, &f32)| {
            let t = truth(f64::from(*x));
            (f64::from(*y) - t).abs() / t.abs().max(1e-30)
        };
        x.iter().zip(&y).map(error).fold(0.0, f64::max)
    }

    fn silu(values: &mut [f32]) {
        let pre = values.to_vec();
        f32::silu_slice(&pre, values);
    }

    #[test]
    fn vectorised_functions_are_accurate() {
        assert!(largest_error((-87.0, 88.0), f32::exp_slice, f64::exp) < 3e-7);
        assert!(largest_error((-9.0, 9.0), f32::tanh_slice, f64::tanh) < 1e-6);
        assert!(largest_error((-60.0, 60.0), silu, |x| x / (1.0 + (-x).exp())) < 5e-7);
        let x: Vec<f32> = (-60_000..60_000).map(|i| i as f32 * 1e-4).collect();
        let mut y = x.clone();
        f32::erf_slice(&mut y);
        assert!(x.iter().zip(&y).all(|(x, y)| (f64::from(*y) - libm::erf(f64::from(*x))).abs() < 6e-7));
        assert!(largest_error((-0.49, 0.49), f32::erf_slice, libm::erf) < 3e-7);
        assert!(largest_error((-60.0, 60.0), f32::softplus_slice, |x| x.max(0.0) + (-x.abs()).exp().ln_1p()) < 1e-6);
    }

    #[test]
    fn silu_derivative_matches_differences() {
        let x: Vec<f64> = (-40..40).map(|i| 0.17 * f64::from(i)).collect();
        let h = 1e-5;
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut g = vec![1.0; x.len()];
        f64::silu_backward(&x, &mut g);
        let x32: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let mut g32 = vec![1.0f32; x.len()];
        f32::silu_backward(&x32, &mut g32);
        for i in 0..x.len() {
            let d = (silu(x[i] + h) - silu(x[i] - h)) / (2.0 * h);
            assert!((g[i] - d).abs() < 1e-9);
            assert!((f64::from(g32[i]) - d).abs() < 1e-6);
        }
    }
}
