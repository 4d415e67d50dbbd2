//! Vectors of `f32`, and the instruction sets that work on them.
//!
//! A value of an instruction set exists only where the CPU has it, so having one is the proof that its instructions may
//! be used, and everything that takes one is safe.

#![expect(
    unsafe_code,
    reason = "intrinsics, each behind the proof that the CPU has them"
)]

use std::arch::x86_64::*;

/// An instruction set that this CPU has.
pub(super) trait Isa: Copy + Send + Sync + 'static {
    /// So many numbers side by side.
    type Vector: Copy;
    /// How many.
    const LANES: usize;
    /// The most rows of a register block: as many as leave a register for a word of a row, and two for columns.
    const ROWS_MAX: usize;

    /// The proof, where the CPU has it.
    fn detect() -> Option<Self>;
    /// Compiles `work` for this instruction set.
    fn vectorize<W: Work>(self, work: W) -> W::Output;

    /// Has the cache line there, if there is one, brought nearer.
    #[inline(always)]
    fn prefetch<T>(self, line: *const T) {
        // SAFETY: a prefetch of any address is allowed, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
    fn splat(self, value: f32) -> Self::Vector;
    /// The first numbers of `from`.
    fn load(self, from: &[f32]) -> Self::Vector;
    /// Over the first numbers of `to`.
    fn store(self, vector: Self::Vector, to: &mut [f32]);
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where one of both is no number.
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where one of both is no number.
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    /// To the nearest whole number.
    fn round(self, a: Self::Vector) -> Self::Vector;
    /// `a` times two to the power of `exponent`, a whole number from -126 to 127.
    fn times_power_of_two(self, a: Self::Vector, exponent: Self::Vector) -> Self::Vector;
    /// Of all lanes.
    fn sum(self, a: Self::Vector) -> f32;
    /// Of all lanes that are a number.
    fn most(self, a: Self::Vector) -> f32;
}

/// What is compiled anew for each instruction set. Its `run`, and all that it calls, is `#[inline(always)]`, since code
/// that is not inlined would be compiled for any CPU.
pub(super) trait Work {
    type Output;
    fn run(self) -> Self::Output;
}

/// AVX-512 with its parts F, BW, DQ and VL, which no CPU with one of the formats lacks.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// AVX2 with FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Methods of [`Isa`] that are one intrinsic each.
macro_rules! intrinsics {
    ($($name:ident($($argument:ident),+) = $intrinsic:expr;)+) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: Self::Vector),+) -> Self::Vector {
                // SAFETY: `self` exists, so the CPU has the instruction.
                unsafe { $intrinsic }
            }
        )+
    };
}

impl Isa for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;
    const ROWS_MAX: usize = 14;

    fn detect() -> Option<Self> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma");
        all.then_some(Self(()))
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
        fn compiled<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: `self` exists, so the CPU has these features.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from: &[f32; 16] = from.first_chunk().expect("a vector's worth of numbers");
        // SAFETY: `self` exists, and `from` has 16 numbers.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, vector: __m512, to: &mut [f32]) {
        let to: &mut [f32; 16] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: `self` exists, and `to` has 16 numbers.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), vector) }
    }

    intrinsics! {
        add(a, b) = _mm512_add_ps(a, b);
        sub(a, b) = _mm512_sub_ps(a, b);
        mul(a, b) = _mm512_mul_ps(a, b);
        div(a, b) = _mm512_div_ps(a, b);
        min(a, b) = _mm512_min_ps(a, b);
        max(a, b) = _mm512_max_ps(a, b);
        fma(a, b, c) = _mm512_fmadd_ps(a, b, c);
        round(a) = _mm512_roundscale_ps::<_MM_FROUND_TO_NEAREST_INT>(a);
        times_power_of_two(a, exponent) = _mm512_scalef_ps(a, exponent);
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe { _mm512_reduce_add_ps(a) }
    }

    #[inline(always)]
    fn most(self, a: __m512) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe { _mm512_reduce_max_ps(a) }
    }
}

impl Isa for Avx2 {
    type Vector = __m256;
    const LANES: usize = 8;
    const ROWS_MAX: usize = 6;

    fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx2,fma")]
        fn compiled<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: `self` exists, so the CPU has these features.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from: &[f32; 8] = from.first_chunk().expect("a vector's worth of numbers");
        // SAFETY: `self` exists, and `from` has 8 numbers.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, vector: __m256, to: &mut [f32]) {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: `self` exists, and `to` has 8 numbers.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), vector) }
    }

    intrinsics! {
        add(a, b) = _mm256_add_ps(a, b);
        sub(a, b) = _mm256_sub_ps(a, b);
        mul(a, b) = _mm256_mul_ps(a, b);
        div(a, b) = _mm256_div_ps(a, b);
        min(a, b) = _mm256_min_ps(a, b);
        max(a, b) = _mm256_max_ps(a, b);
        fma(a, b, c) = _mm256_fmadd_ps(a, b, c);
        round(a) = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a);
        times_power_of_two(a, exponent) = {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127));
            _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        };
    }

    #[inline(always)]
    fn sum(self, a: __m256) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe {
            let halves = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let quarters = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32(_mm_add_ss(quarters, _mm_movehdup_ps(quarters)))
        }
    }

    #[inline(always)]
    fn most(self, a: __m256) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe {
            let halves = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let quarters = _mm_max_ps(halves, _mm_movehl_ps(halves, halves));
            _mm_cvtss_f32(_mm_max_ss(quarters, _mm_movehdup_ps(quarters)))
        }
    }
}

/// The sum of `values`, whose number need not be a multiple of the lanes.
#[inline(always)]
pub(super) fn sum_of<I: Isa>(
    isa: I,
    values: &[f32],
    of: impl Fn(I::Vector) -> I::Vector,
    of_one: impl Fn(f32) -> f32,
) -> f32 {
    let chunks = values.chunks_exact(I::LANES);
    let rest: f32 = chunks.remainder().iter().map(|&value| of_one(value)).sum();
    let mut sums = isa.splat(0.0);
    for chunk in chunks {
        sums = isa.add(sums, of(isa.load(chunk)));
    }
    isa.sum(sums) + rest
}

/// Words of 32 bits as the numbers that they are.
pub(super) fn as_floats(words: &[u32]) -> &[f32] {
    // SAFETY: both have 32 bits and the same alignment, and any bits are a value of both.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) }
}

/// As [`as_floats`], to write to.
pub(super) fn as_floats_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: as above, and `words` is borrowed for as long.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}
