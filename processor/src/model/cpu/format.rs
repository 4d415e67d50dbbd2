//! The formats of the numbers that are multiplied: one `f32`, two `bf16` or four `int8` of consecutive columns are a word of
//! 32 bits, and a product of two words adds one, two or four products to a sum.

#![expect(
    unsafe_code,
    reason = "intrinsics, each behind the proof that the CPU has them"
)]

use std::arch::x86_64::*;

use super::isa::{Avx512, Isa, Work, as_floats, as_floats_mut};

/// A format that this CPU multiplies. As with [`Isa`], a value of it is the proof.
pub(super) trait Format: Copy + Send + Sync + 'static {
    type Isa: Isa;
    /// How many numbers a word has.
    const PER_WORD: usize;
    /// How many it has while its row is written.
    const WRITTEN_PER_WORD: usize = Self::PER_WORD;

    fn detect() -> Option<Self>;
    fn isa(self) -> Self::Isa;
    fn vectorize<W: Work>(self, work: W) -> W::Output;

    /// Writes a part of a row, its numbers from `column` on.
    fn write(self, values: <Self::Isa as Isa>::Vector, column: usize, row: &mut [u32]);
    /// Makes words of a row whose `columns`, a multiple of 64, are all written.
    fn settle(self, columns: usize, row: &mut [u32]) -> RowScale;
    /// `values`, the weights of one output, as words of a column.
    fn encode_weights(values: &[f32], words: &mut Vec<u32>) -> ColumnScale;
}

/// A format whose products are added up in registers.
pub(super) trait Dot: Format {
    /// Words side by side, [`Isa::LANES`] of them.
    type Words: Copy;
    /// A sum of products for each.
    type Sums: Copy;

    fn zero(self) -> Self::Sums;
    /// The same word of a row in each lane.
    fn splat(self, word: u32) -> Self::Words;
    /// One word of so many columns.
    ///
    /// # Safety
    /// So many words can be read at `from`.
    unsafe fn load(self, from: *const u32) -> Self::Words;
    /// Adds the products of two words to each sum.
    fn dot(self, sums: Self::Sums, row: Self::Words, columns: Self::Words) -> Self::Sums;
    /// The numbers that the sums stand for. The columns' scales are those of the sums, or none where none are needed.
    fn values(self, sums: Self::Sums, row: RowScale, columns: Scales<'_>) -> <Self::Isa as Isa>::Vector;
}

/// A format whose numbers need no scale, so that attention can be in it.
pub(super) trait Plain: Format {
    /// Words of columns, over the first of `words`: those of [`Format::PER_WORD`] rows, which `row` gives, side by side in one.
    fn weave(self, row: impl Fn(usize) -> <Self::Isa as Isa>::Vector, words: &mut [u32]);
}

/// What a row of `int8` means: `(code - zero) * scale`. The other formats mean what they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RowScale {
    pub(super) scale: f32,
    pub(super) zero: f32,
}

impl RowScale {
    pub(super) const ONE: Self = Self {
        scale: 1.0,
        zero: 0.0,
    };
}

/// What a column of `int8` means, and the sum of its codes, which a row's zero is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ColumnScale {
    pub(super) scale: f32,
    pub(super) sum: f32,
}

impl ColumnScale {
    const ONE: Self = Self { scale: 1.0, sum: 0.0 };
}

/// The scales of some columns, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Scales<'a> {
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
}

impl<'a> Scales<'a> {
    pub(super) const NONE: Self = Scales {
        scales: &[],
        sums: &[],
    };

    /// Those of the columns from `column` on.
    #[inline(always)]
    pub(super) fn from(self, column: usize) -> Self {
        let from = |all: &'a [f32]| all.get(column..).unwrap_or_default();
        Self {
            scales: from(self.scales),
            sums: from(self.sums),
        }
    }
}

/// 32 bits, by the fused multiplication and addition of an instruction set.
#[derive(Clone, Copy)]
pub(super) struct Single<I>(I);

/// The upper halves of `f32`, by AVX-512 BF16.
#[derive(Clone, Copy)]
pub(super) struct Bf16(Avx512);

/// 8 bits, by AVX-512 VNNI: a row's are unsigned, with a scale and a zero of its own; a column's signed, with a scale.
#[derive(Clone, Copy)]
pub(super) struct Int8(Avx512);

impl<I: Isa> Format for Single<I> {
    type Isa = I;
    const PER_WORD: usize = 1;

    fn detect() -> Option<Self> {
        I::detect().map(Self)
    }

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        self.0.vectorize(work)
    }

    #[inline(always)]
    fn write(self, values: I::Vector, column: usize, row: &mut [u32]) {
        self.0.store(values, as_floats_mut(&mut row[column..]));
    }

    #[inline(always)]
    fn settle(self, _: usize, _: &mut [u32]) -> RowScale {
        RowScale::ONE
    }

    fn encode_weights(values: &[f32], words: &mut Vec<u32>) -> ColumnScale {
        words.extend(values.iter().map(|value| value.to_bits()));
        ColumnScale::ONE
    }
}

impl<I: Isa> Dot for Single<I> {
    type Words = I::Vector;
    type Sums = I::Vector;

    #[inline(always)]
    fn zero(self) -> I::Vector {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn splat(self, word: u32) -> I::Vector {
        self.0.splat(f32::from_bits(word))
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> I::Vector {
        // SAFETY: the caller's.
        self.0
            .load(unsafe { std::slice::from_raw_parts(from.cast(), I::LANES) })
    }

    #[inline(always)]
    fn dot(self, sums: I::Vector, row: I::Vector, columns: I::Vector) -> I::Vector {
        self.0.fma(row, columns, sums)
    }

    #[inline(always)]
    fn values(self, sums: I::Vector, _: RowScale, _: Scales<'_>) -> I::Vector {
        sums
    }
}

impl<I: Isa> Plain for Single<I> {
    #[inline(always)]
    fn weave(self, row: impl Fn(usize) -> I::Vector, words: &mut [u32]) {
        self.0.store(row(0), as_floats_mut(words));
    }
}

impl Format for Bf16 {
    type Isa = Avx512;
    const PER_WORD: usize = 2;

    fn detect() -> Option<Self> {
        Avx512::detect()
            .filter(|_| is_x86_feature_detected!("avx512bf16"))
            .map(Self)
    }

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.0
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512bf16")]
        fn compiled<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: `self` exists, so the CPU has these features.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn write(self, values: __m512, column: usize, row: &mut [u32]) {
        assert!(column + 16 <= 2 * row.len(), "room for a vector");
        // SAFETY: `self` exists, and there is room for 16 numbers of 16 bits, by what was asserted.
        unsafe {
            let words = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values));
            _mm256_storeu_si256(row.as_mut_ptr().cast::<u16>().add(column).cast(), words);
        }
    }

    #[inline(always)]
    fn settle(self, _: usize, _: &mut [u32]) -> RowScale {
        RowScale::ONE
    }

    fn encode_weights(values: &[f32], words: &mut Vec<u32>) -> ColumnScale {
        let pairs = values.as_chunks::<2>().0;
        words.extend(pairs.iter().map(|&[low, high]| bf16(low) | bf16(high) << 16));
        ColumnScale::ONE
    }
}

impl Dot for Bf16 {
    type Words = __m512i;
    type Sums = __m512;

    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m512i {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512, row: __m512i, columns: __m512i) -> __m512 {
        // SAFETY: `self` exists, so the CPU has the instruction; both are 32 values of 16 bits by another name.
        unsafe {
            let (row, columns) = (
                std::mem::transmute::<__m512i, __m512bh>(row),
                std::mem::transmute::<__m512i, __m512bh>(columns),
            );
            _mm512_dpbf16_ps(sums, row, columns)
        }
    }

    #[inline(always)]
    fn values(self, sums: __m512, _: RowScale, _: Scales<'_>) -> __m512 {
        sums
    }
}

impl Plain for Bf16 {
    #[inline(always)]
    fn weave(self, row: impl Fn(usize) -> __m512, words: &mut [u32]) {
        // The numbers of either row in turn.
        const IN_TURN: [u16; 32] = {
            let mut from = [0; 32];
            let mut number = 0;
            while number < 16 {
                from[2 * number] = number as u16;
                from[2 * number + 1] = number as u16 + 16;
                number += 1;
            }
            from
        };
        let words: &mut [u32; 16] = words.first_chunk_mut().expect("room for a vector");
        // SAFETY: `self` exists, so the CPU has the instructions, and both arrays are as long as a vector.
        unsafe {
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(row(1), row(0)));
            let woven = _mm512_permutexvar_epi16(_mm512_loadu_si512(IN_TURN.as_ptr().cast()), both);
            _mm512_storeu_si512(words.as_mut_ptr().cast(), woven);
        }
    }
}

impl Format for Int8 {
    type Isa = Avx512;
    const PER_WORD: usize = 4;
    /// In 32 bits, since the scale of a row is known when all of it is.
    const WRITTEN_PER_WORD: usize = 1;

    fn detect() -> Option<Self> {
        Avx512::detect()
            .filter(|_| is_x86_feature_detected!("avx512vnni"))
            .map(Self)
    }

    #[inline(always)]
    fn isa(self) -> Avx512 {
        self.0
    }

    fn vectorize<W: Work>(self, work: W) -> W::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,avx512vnni")]
        fn compiled<W: Work>(work: W) -> W::Output {
            work.run()
        }
        // SAFETY: `self` exists, so the CPU has these features.
        unsafe { compiled(work) }
    }

    #[inline(always)]
    fn write(self, values: __m512, column: usize, row: &mut [u32]) {
        self.0.store(values, as_floats_mut(&mut row[column..]));
    }

    /// From the least to the most of its numbers and of zero, in 255 steps.
    #[inline(always)]
    fn settle(self, columns: usize, row: &mut [u32]) -> RowScale {
        let isa = self.0;
        let zeros = isa.splat(0.0);
        // What is no number gets lost in minima and maxima; times zero it stays none.
        let (mut least, mut most, mut finite) = (zeros, zeros, zeros);
        for values in as_floats(&row[..columns]).chunks_exact(16) {
            let values = isa.load(values);
            (least, most) = (isa.min(least, values), isa.max(most, values));
            finite = isa.fma(values, zeros, finite);
        }
        let (least, most, finite) = (-isa.most(isa.sub(zeros, least)), isa.most(most), isa.sum(finite));
        let scale = ((most - least) / STEPS_OF_A_ROW).max(f32::MIN_POSITIVE) + finite;
        let zero = (-least / scale).round_ties_even();
        let (per_step, zeros) = (isa.splat(1.0 / scale), isa.splat(zero));
        // The codes take the place of numbers that were read before.
        for (vector, column) in (0..columns).step_by(16).enumerate() {
            let codes = isa.fma(isa.load(as_floats(&row[column..])), per_step, zeros);
            let words: &mut [u32; 4] = row[4 * vector..].first_chunk_mut().expect("room for codes");
            // SAFETY: `self` exists, and `words` has 16 bytes. The codes are from 0 to 255, or one beyond by rounding,
            // which the conversion cuts off.
            unsafe {
                let codes = _mm512_max_epi32(_mm512_cvtps_epi32(codes), _mm512_setzero_si512());
                _mm_storeu_si128(words.as_mut_ptr().cast(), _mm512_cvtusepi32_epi8(codes));
            }
        }
        RowScale { scale, zero }
    }

    fn encode_weights(values: &[f32], words: &mut Vec<u32>) -> ColumnScale {
        let most = values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        let finite: f32 = values.iter().map(|value| value * 0.0).sum();
        let scale = (most / STEPS_OF_A_COLUMN).max(f32::MIN_POSITIVE);
        let code = |value: f32| (value / scale).round_ties_even() as i8;
        let quads = values.as_chunks::<4>().0.iter().map(|quad| quad.map(code));
        words.extend(
            quads
                .clone()
                .map(|quad| u32::from_le_bytes(quad.map(i8::cast_unsigned))),
        );
        let sum: i32 = quads.flatten().map(i32::from).sum();
        ColumnScale {
            scale: scale + finite,
            sum: sum as f32,
        }
    }
}

impl Dot for Int8 {
    type Words = __m512i;
    type Sums = __m512i;

    #[inline(always)]
    fn zero(self) -> __m512i {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> __m512i {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm512_set1_epi32(word.cast_signed()) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u32) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn dot(self, sums: __m512i, row: __m512i, columns: __m512i) -> __m512i {
        // SAFETY: `self` exists, so the CPU has the instruction.
        unsafe { _mm512_dpbusd_epi32(sums, row, columns) }
    }

    #[inline(always)]
    fn values(self, sums: __m512i, row: RowScale, columns: Scales<'_>) -> __m512 {
        let isa = self.0;
        // SAFETY: `self` exists, so the CPU has the instruction.
        let sums = unsafe { _mm512_cvtepi32_ps(sums) };
        let sums = isa.fma(isa.splat(-row.zero), isa.load(columns.sums), sums);
        isa.mul(sums, isa.mul(isa.splat(row.scale), isa.load(columns.scales)))
    }
}

const STEPS_OF_A_ROW: f32 = 255.0;
const STEPS_OF_A_COLUMN: f32 = 127.0;

/// The nearest `bf16`, of two equally near ones the even one, as the CPU rounds.
pub(super) fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() {
        return bits >> 16 | 0x40;
    }
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// A row of numbers, a multiple of 64, in a format.
#[cfg(test)]
pub(super) struct Encode<'a, F> {
    pub(super) format: F,
    pub(super) values: &'a [f32],
    pub(super) row: &'a mut [u32],
}

#[cfg(test)]
impl<F: Format> Work for Encode<'_, F> {
    type Output = RowScale;

    #[inline(always)]
    fn run(self) -> RowScale {
        let (isa, lanes) = (self.format.isa(), <F::Isa as Isa>::LANES);
        for column in (0..self.values.len()).step_by(lanes) {
            self.format
                .write(isa.load(&self.values[column..]), column, self.row);
        }
        self.format.settle(self.values.len(), self.row)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in super::super) fn encoded<F: Format>(format: F, values: &[f32]) -> (Vec<u32>, RowScale) {
        let mut words = vec![0; values.len() / F::WRITTEN_PER_WORD];
        let row = &mut words;
        let scale = format.vectorize(Encode { format, values, row });
        words.truncate(values.len() / F::PER_WORD);
        (words, scale)
    }

    fn values() -> impl Strategy<Value = Vec<f32>> {
        (1..9_usize, -20..20_i32).prop_flat_map(|(lines, exponent)| {
            let most = 2_f32.powi(exponent);
            prop::collection::vec(-most..most, 64 * lines)
        })
    }

    proptest! {
        #[test]
        fn rows_of_bf16_are_rounded_as_weights_are(values in values()) {
            let Some(format) = Bf16::detect() else { return Ok(()) };
            let mut weights = Vec::new();
            Bf16::encode_weights(&values, &mut weights);
            prop_assert_eq!(encoded(format, &values).0, weights);
        }

        #[test]
        fn codes_of_int8_are_within_half_a_step_of_their_values(values in values()) {
            let Some(format) = Int8::detect() else { return Ok(()) };
            let (words, RowScale { scale, zero }) = encoded(format, &values);
            let codes = words.iter().flat_map(|word| word.to_le_bytes());
            for (&value, code) in values.iter().zip(codes) {
                let off = (f32::from(code) - zero) * scale - value;
                prop_assert!(off.abs() <= 1.001 * scale, "{value} is {off} off, and a step is {scale}");
            }
            let mut words = Vec::new();
            let ColumnScale { scale, sum } = Int8::encode_weights(&values, &mut words);
            let codes: Vec<i8> = words.iter().flat_map(|word| word.to_le_bytes()).map(u8::cast_signed).collect();
            for (&value, &code) in values.iter().zip(&codes) {
                let off = f32::from(code) * scale - value;
                prop_assert!(off.abs() <= 0.501 * scale, "{value} is {off} off, and a step is {scale}");
            }
            prop_assert_eq!(sum, codes.iter().map(|&code| f32::from(code)).sum::<f32>());
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_not_made_finite() {
        let Some(format) = Int8::detect() else { return };
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 64];
            values[17] = odd;
            assert!(encoded(format, &values).1.scale.is_nan(), "{odd}");
            assert!(
                Int8::encode_weights(&values, &mut Vec::new()).scale.is_nan(),
                "{odd}"
            );
        }
    }
}
