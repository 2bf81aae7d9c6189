//! SIMD over sixteen numbers: kernels are written once over [`Lanes`] and compiled for AVX-512, AVX2 with FMA, and
//! plain Rust; [`Real::vectorised`] picks one at run time.
//!
//! Rows of features are zero-padded to whole lanes. Everything in a kernel must be `#[inline(always)]`: an AVX-512
//! instruction in a function that is not inlined into the one compiled for AVX-512 becomes a call.

use super::real::Real;

/// Numbers in one [`Lanes`].
pub const WIDTH: usize = 16;

/// `n` rounded up to whole lanes.
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(WIDTH)
}

/// A computation that is compiled for every instruction set.
pub trait Kernel<R: Real> {
    type Output;
    /// Must be `#[inline(always)]`.
    fn run<L: Lanes<R>>(self) -> Self::Output;
}

/// Sixteen numbers of type `R`. Implementations are private to this module, since a value may exist only where the
/// processor has its instructions.
pub trait Lanes<R: Real>: Copy {
    /// Columns of a product's register tile, in lanes: as many as six rows leave room for.
    const COLUMNS: usize;

    /// # Safety
    /// Sixteen numbers must be readable at `from`.
    unsafe fn read(from: *const R) -> Self;
    /// Sixteen bfloat16 numbers, two per word: number j is the low half of word j, number 8 + j the high half.
    ///
    /// # Safety
    /// Eight words must be readable at `from`.
    unsafe fn read_halves(from: *const u32) -> Self;
    /// # Safety
    /// Sixteen numbers must be writable at `to`.
    unsafe fn write(self, to: *mut R);
    fn splat(value: R) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// self · factor + term.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger one; NaN in `self` is kept.
    fn at_least(self, floor: Self) -> Self;
    /// `self` where `test` > `floor`, else zero.
    fn where_above(self, test: Self, floor: Self) -> Self;
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn sum(self) -> R;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(R::default())
    }

    /// The first sixteen numbers.
    #[inline(always)]
    fn load(from: &[R]) -> Self {
        assert!(from.len() >= WIDTH);
        // SAFETY: asserted above.
        unsafe { Self::read(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [R]) {
        assert!(to.len() >= WIDTH);
        // SAFETY: asserted above.
        unsafe { self.write(to.as_mut_ptr()) }
    }

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let one = Self::splat(R::from_f64(1.0));
        one.div(one.add(Self::zero().sub(self).exp()))
    }
}

/// Decodes the words of [`Lanes::read_halves`], number by number.
#[inline(always)]
fn widen<R: Real>(words: [u32; WIDTH / 2]) -> [R; WIDTH] {
    let bits = |i: usize| if i < WIDTH / 2 { words[i] << 16 } else { words[i - WIDTH / 2] & 0xffff_0000 };
    std::array::from_fn(|i| R::from_f64(f64::from(f32::from_bits(bits(i)))))
}

/// Prefetches these numbers.
#[inline(always)]
pub fn prefetch<R>(numbers: &[R]) {
    #[cfg(target_arch = "x86_64")]
    for line in numbers.chunks(64 / size_of::<R>()) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: only a hint, which reads nothing; every processor of this kind has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = numbers;
}

/// Lanes in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable<R>([R; WIDTH]);

impl<R: Real> Portable<R> {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(R, R) -> R) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl<R: Real> Lanes<R> for Portable<R> {
    const COLUMNS: usize = 1;

    #[inline(always)]
    unsafe fn read(from: *const R) -> Self {
        // SAFETY: the caller's promise.
        Portable(unsafe { from.cast::<[R; WIDTH]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn read_halves(from: *const u32) -> Self {
        // SAFETY: the caller's promise.
        Portable(widen(unsafe { from.cast::<[u32; WIDTH / 2]>().read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn write(self, to: *mut R) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[R; WIDTH]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    fn splat(value: R) -> Self {
        Portable([value; WIDTH])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i].fused(factor.0[i], term.0[i])))
    }
    #[inline(always)]
    fn at_least(self, floor: Self) -> Self {
        self.zip(floor, |a, b| if a < b { b } else { a })
    }
    #[inline(always)]
    fn where_above(self, test: Self, floor: Self) -> Self {
        let above = test.zip(floor, |a, b| if a > b { R::from_f64(1.0) } else { R::default() });
        self.zip(above, |a, keep| if keep > R::default() { a } else { R::default() })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Portable(self.0.map(R::sqrt))
    }
    #[inline(always)]
    fn exp(mut self) -> Self {
        R::exp_slice(&mut self.0);
        self
    }
    #[inline(always)]
    fn sum(self) -> R {
        self.0.into_iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{Lanes, WIDTH};
    use std::arch::x86_64::*;

    /// `value` with its registers replaced by the expression in `i`; not a closure, which might not be inlined.
    macro_rules! each {
        ($i:ident in $count:literal, $value:ident: $expression:expr) => {{
            let mut result = $value;
            for $i in 0..$count {
                result.0[$i] = unsafe { $expression };
            }
            result
        }};
    }

    /// Lanes made of vector registers.
    macro_rules! lanes {
        ($name:ident: $real:ty, [$vector:ty; $count:literal], columns $columns:literal,
         $set:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $div:ident, $fma:ident, $max:ident,
         $sqrt:ident, above $above:ident, sum $sum:ident, exp $exp:ident, halves $halves:ident) => {
            #[derive(Clone, Copy)]
            pub struct $name([$vector; $count]);

            impl $name {
                const PART: usize = WIDTH / $count;
            }

            // SAFETY, for every intrinsic below: these types are named only by functions compiled for the instruction
            // set, which are called only after the processor was checked; pointers are valid for sixteen numbers by
            // contract.
            impl Lanes<$real> for $name {
                const COLUMNS: usize = $columns;

                #[inline(always)]
                unsafe fn read(from: *const $real) -> Self {
                    unsafe {
                        let mut result = Self([$set(0.0); $count]);
                        for i in 0..$count {
                            result.0[i] = $load(from.add(i * Self::PART));
                        }
                        result
                    }
                }
                #[inline(always)]
                unsafe fn read_halves(from: *const u32) -> Self {
                    unsafe { $halves(from) }
                }
                #[inline(always)]
                unsafe fn write(self, to: *mut $real) {
                    for i in 0..$count {
                        unsafe { $store(to.add(i * Self::PART), self.0[i]) }
                    }
                }
                #[inline(always)]
                fn splat(value: $real) -> Self {
                    Self([unsafe { $set(value) }; $count])
                }
                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    each!(i in $count, self: $add(self.0[i], other.0[i]))
                }
                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    each!(i in $count, self: $sub(self.0[i], other.0[i]))
                }
                #[inline(always)]
                fn mul(self, other: Self) -> Self {
                    each!(i in $count, self: $mul(self.0[i], other.0[i]))
                }
                #[inline(always)]
                fn div(self, other: Self) -> Self {
                    each!(i in $count, self: $div(self.0[i], other.0[i]))
                }
                #[inline(always)]
                fn mul_add(self, factor: Self, term: Self) -> Self {
                    each!(i in $count, self: $fma(self.0[i], factor.0[i], term.0[i]))
                }
                #[inline(always)]
                fn at_least(self, floor: Self) -> Self {
                    // the instruction returns its second operand if one is NaN
                    each!(i in $count, self: $max(floor.0[i], self.0[i]))
                }
                #[inline(always)]
                fn where_above(self, test: Self, floor: Self) -> Self {
                    each!(i in $count, self: $above(self.0[i], test.0[i], floor.0[i]))
                }
                #[inline(always)]
                fn sqrt(self) -> Self {
                    each!(i in $count, self: $sqrt(self.0[i]))
                }
                #[inline(always)]
                fn exp(self) -> Self {
                    $exp(self)
                }
                #[inline(always)]
                fn sum(self) -> $real {
                    let mut total = self.0[0];
                    for part in &self.0[1..] {
                        total = unsafe { $add(total, *part) };
                    }
                    unsafe { $sum(total) }
                }
            }
        };
    }

    /// eˣ by the polynomial of `real::simd::exp1`, with its range. `$power`: p · 2ⁿ, n in the low mantissa bits of a
    /// float.
    macro_rules! exp32 {
        ($function:ident: $name:ident, $count:literal, $set:ident, $min:ident, $power:ident) => {
            #[inline(always)]
            fn $function(x: $name) -> $name {
                const ROUND: f32 = 12_582_912.0;
                let c = <$name as Lanes<f32>>::splat;
                let x = x.at_least(c(-87.3));
                let x = each!(i in $count, x: $min($set(88.3), x.0[i]));
                let shifted = x.mul_add(c(std::f32::consts::LOG2_E), c(ROUND));
                let n = shifted.sub(c(ROUND));
                let r = n.mul_add(c(-0.693_359_4), x);
                let r = n.mul_add(c(2.121_944_4e-4), r);
                let p = c(1.0 / 720.0).mul_add(r, c(1.0 / 120.0));
                let p = p.mul_add(r, c(1.0 / 24.0)).mul_add(r, c(1.0 / 6.0)).mul_add(r, c(0.5));
                let p = p.mul_add(r, c(1.0)).mul_add(r, c(1.0));
                each!(i in $count, p: $power(p.0[i], shifted.0[i]))
            }
        };
    }
    exp32!(exp512: Avx512, 1, _mm512_set1_ps, _mm512_min_ps, power512);
    exp32!(exp256: Avx2, 2, _mm256_set1_ps, _mm256_min_ps, power256);

    #[inline(always)]
    unsafe fn power512(p: __m512, n: __m512) -> __m512 {
        unsafe {
            let bits = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
            _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_add_epi32(bits, _mm512_set1_epi32(0x3f80_0000))))
        }
    }

    #[inline(always)]
    unsafe fn power256(p: __m256, n: __m256) -> __m256 {
        unsafe {
            let bits = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_set1_epi32(0x3f80_0000))))
        }
    }

    /// eˣ of each number by the standard library.
    #[inline(always)]
    fn exp_each<L: Lanes<f64>>(x: L) -> L {
        let mut values = [0.0f64; WIDTH];
        x.store(&mut values);
        values.iter_mut().for_each(|v| *v = v.exp());
        L::load(&values)
    }

    /// The low and the high halves of eight words, as floats.
    #[inline(always)]
    unsafe fn apart(from: *const u32) -> [__m256i; 2] {
        unsafe {
            let words = _mm256_loadu_si256(from.cast());
            [_mm256_slli_epi32::<16>(words), _mm256_and_si256(words, _mm256_set1_epi32(!0xffff))]
        }
    }

    #[inline(always)]
    unsafe fn halves512(from: *const u32) -> Avx512 {
        unsafe {
            let [low, high] = apart(from);
            Avx512([_mm512_castsi512_ps(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high))])
        }
    }

    #[inline(always)]
    unsafe fn halves256(from: *const u32) -> Avx2 {
        unsafe { Avx2(apart(from).map(|part| _mm256_castsi256_ps(part))) }
    }

    #[inline(always)]
    unsafe fn halves_each<L: Lanes<f64>>(from: *const u32) -> L {
        L::load(&super::widen::<f64>(unsafe { from.cast::<[u32; WIDTH / 2]>().read_unaligned() }))
    }

    #[inline(always)]
    unsafe fn above512(a: __m512, test: __m512, floor: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(test, floor), a) }
    }

    #[inline(always)]
    unsafe fn above512_double(a: __m512d, test: __m512d, floor: __m512d) -> __m512d {
        unsafe { _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(test, floor), a) }
    }

    #[inline(always)]
    unsafe fn above256(a: __m256, test: __m256, floor: __m256) -> __m256 {
        unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(test, floor), a) }
    }

    #[inline(always)]
    unsafe fn above256_double(a: __m256d, test: __m256d, floor: __m256d) -> __m256d {
        unsafe { _mm256_and_pd(_mm256_cmp_pd::<_CMP_GT_OQ>(test, floor), a) }
    }

    #[inline(always)]
    unsafe fn sum8(v: __m256) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn sum4(v: __m256d) -> f64 {
        unsafe {
            let two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
            _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
        }
    }

    lanes!(Avx512: f32, [__m512; 1], columns 4, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps,
        _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_max_ps, _mm512_sqrt_ps,
        above above512, sum _mm512_reduce_add_ps, exp exp512, halves halves512);
    lanes!(Avx512Double: f64, [__m512d; 2], columns 2, _mm512_set1_pd, _mm512_loadu_pd, _mm512_storeu_pd, _mm512_add_pd,
        _mm512_sub_pd, _mm512_mul_pd, _mm512_div_pd, _mm512_fmadd_pd, _mm512_max_pd, _mm512_sqrt_pd,
        above above512_double, sum _mm512_reduce_add_pd, exp exp_each, halves halves_each);
    lanes!(Avx2: f32, [__m256; 2], columns 1, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps,
        _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_max_ps, _mm256_sqrt_ps,
        above above256, sum sum8, exp exp256, halves halves256);
    lanes!(Avx2Double: f64, [__m256d; 4], columns 1, _mm256_set1_pd, _mm256_loadu_pd, _mm256_storeu_pd, _mm256_add_pd,
        _mm256_sub_pd, _mm256_mul_pd, _mm256_div_pd, _mm256_fmadd_pd, _mm256_max_pd, _mm256_sqrt_pd,
        above above256_double, sum sum4, exp exp_each, halves halves_each);
}

/// Whether an instruction set may be chosen: 0 is plain Rust, 1 AVX2, 2 AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn allowed(_level: u8) -> bool {
    #[cfg(test)]
    return _level <= HIGHEST.get();
    #[cfg(not(test))]
    true
}

#[cfg(test)]
thread_local! {
    /// Highest instruction set that tests allow on this thread.
    pub(crate) static HIGHEST: std::cell::Cell<u8> = const { std::cell::Cell::new(2) };
}

/// Runs a kernel of one number type on the best available instruction set.
macro_rules! dispatch_kernel {
    ($real:ty, $avx512:ident, $avx2:ident) => {
        fn vectorised<K: crate::nn::lanes::Kernel<$real>>(kernel: K) -> K::Output {
            #[cfg(target_arch = "x86_64")]
            {
                use crate::nn::lanes::x86;
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,avx512bw,fma")]
                fn avx512<K: crate::nn::lanes::Kernel<$real>>(kernel: K) -> K::Output {
                    kernel.run::<x86::$avx512>()
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<K: crate::nn::lanes::Kernel<$real>>(kernel: K) -> K::Output {
                    kernel.run::<x86::$avx2>()
                }
                use crate::nn::real::{instruction_set, InstructionSet};
                match instruction_set() {
                    // SAFETY: the processor has the features that the function was compiled for.
                    InstructionSet::Avx512 => return unsafe { avx512(kernel) },
                    // SAFETY: as above.
                    InstructionSet::Avx2 => return unsafe { avx2(kernel) },
                    InstructionSet::Baseline => {}
                }
            }
            kernel.run::<crate::nn::lanes::Portable<$real>>()
        }
    };
}
pub(super) use dispatch_kernel;

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests all operations on sixteen numbers: values, and sums.
    struct Everything<'a, R>(&'a [R], &'a [R]);

    impl<R: Real> Kernel<R> for Everything<'_, R> {
        type Output = (Vec<Vec<f64>>, f64);

        #[inline(always)]
        fn run<L: Lanes<R>>(self) -> Self::Output {
            let (a, b) = (L::load(self.0), L::load(self.1));
            let words: [u32; WIDTH / 2] = std::array::from_fn(|i| 0x3f80_4000 + i as u32);
            let two = L::splat(R::from_f64(2.0));
            let results = [
                a.add(b),
                a.sub(b),
                a.mul(b),
                a.div(b),
                a.mul_add(b, two),
                a.at_least(b),
                a.where_above(b, two),
                a.mul(a).sqrt(),
                a.exp(),
                a.sigmoid(),
                // SAFETY: eight words.
                unsafe { L::read_halves(words.as_ptr()) },
            ];
            let mut lists = Vec::new();
            for result in results {
                let mut list = vec![R::default(); WIDTH];
                result.store(&mut list);
                lists.push(list.iter().map(|v| v.to_f64()).collect());
            }
            (lists, a.sum().to_f64())
        }
    }

    fn check<R: Real>(tolerance: f64) {
        let a: Vec<f64> = (0..WIDTH).map(|i| 1.7 * i as f64 - 12.0).collect();
        let b: Vec<f64> = (0..WIDTH).map(|i| if i % 2 == 0 { 0.3 } else { 5.5 } + i as f64).collect();
        let convert = |v: &[f64]| v.iter().map(|&v| R::from_f64(v)).collect::<Vec<R>>();
        for level in 0..3 {
            HIGHEST.set(level);
            let (lists, sum) = R::vectorised(Everything(&convert(&a), &convert(&b)));
            HIGHEST.set(2);
            assert!((sum - a.iter().sum::<f64>()).abs() < 1e3 * tolerance);
            let truths: [fn(usize, f64, f64) -> f64; 11] = [
                |_, a, b| a + b,
                |_, a, b| a - b,
                |_, a, b| a * b,
                |_, a, b| a / b,
                |_, a, b| a * b + 2.0,
                |_, a, b| a.max(b),
                |_, a, b| if b > 2.0 { a } else { 0.0 },
                |_, a, _| a.abs(),
                |_, a, _| a.exp(),
                |_, a, _| 1.0 / (1.0 + (-a).exp()),
                // bits 4000 + i below, 3f80 above
                |i, _, _| if i < 8 { f64::from(f32::from_bits((0x4000 + i as u32) << 16)) } else { 1.0 },
            ];
            for (number, (list, truth)) in lists.iter().zip(truths).enumerate() {
                for i in 0..WIDTH {
                    let truth = truth(i, a[i], b[i]);
                    let error = (list[i] - truth).abs() / truth.abs().max(1e-30);
                    assert!(list[i] == truth || error < tolerance, "level {level}, {number}: {} {truth}", list[i]);
                }
            }
        }
    }

    #[test]
    fn operations_are_the_same_on_all_instruction_sets() {
        check::<f32>(2e-6);
        check::<f64>(1e-14);
    }

    #[test]
    fn not_a_number_stays() {
        for level in 0..3 {
            HIGHEST.set(level);
            let nan = [f32::NAN; WIDTH];
            let (lists, sum) = f32::vectorised(Everything(&nan, &[1.0; WIDTH]));
            HIGHEST.set(2);
            assert!(sum.is_nan());
            for number in [0, 1, 2, 3, 4, 5, 7, 8, 9] {
                assert!(lists[number].iter().all(|v| v.is_nan()), "level {level}, {number}");
            }
        }
    }
}
