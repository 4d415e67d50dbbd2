//! The product of rows and packed columns, in every format by the same register block.

#![expect(
    unsafe_code,
    reason = "the inner loop reads words by pointers, whose bounds are checked before it"
)]

use super::{
    epilogue::Epilogue,
    format::{Dot, Format, RowScale},
    isa::{Isa, Work},
    matrix::Line,
    panels::PanelsRef,
};

/// Rows of words, the left side of a product.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    /// From the first word of the first row on.
    pub(super) words: &'a [u32],
    pub(super) count: usize,
    /// From one row to the next.
    pub(super) stride: usize,
    /// One a row, or none where the format needs none.
    pub(super) scales: &'a [RowScale],
}

/// All rows times all columns, each value handed to `epilogue`.
pub(super) struct Product<'a, F, E> {
    pub(super) format: F,
    pub(super) rows: Rows<'a>,
    pub(super) columns: PanelsRef<'a>,
    pub(super) epilogue: E,
}

/// As many rows go through all columns before the next, so that they stay in the second cache.
const ROWS_IN_CACHE: usize = 168;

/// The most rows that any format multiplies at once.
pub(super) const MOST_ROWS: usize = 32;
/// The most columns that any takes multiples of.
pub(super) const MOST_COLUMNS: usize = 32;

/// A format with what multiplies it.
pub(super) trait Multiply: Format {
    /// Rows that it multiplies at once, no more than [`MOST_ROWS`].
    const ROWS: usize;
    /// It takes columns in multiples of this many, 16 or [`MOST_COLUMNS`] …
    const COLUMNS: usize;
    /// … and words of them in multiples of this many.
    const WORDS: usize;

    /// Does a product.
    ///
    /// # Safety
    /// Its rows and columns are in bounds.
    unsafe fn multiply<E: Epilogue<Self::Isa>>(product: Product<'_, Self, E>);
}

impl<F: Multiply, E: Epilogue<F::Isa>> Work for Product<'_, F, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Rows {
            words, count, stride, ..
        } = self.rows;
        assert!(
            count == 0 || words.len() >= (count - 1) * stride + self.columns.words,
            "rows end beyond their words"
        );
        assert!(
            self.columns.lines.len() >= self.columns.columns / Line::WORDS * self.columns.words,
            "columns end beyond their lines"
        );
        // SAFETY: as was asserted.
        unsafe { F::multiply(self) }
    }
}

/// By registers.
impl<F: Dot> Multiply for F {
    const ROWS: usize = 14;
    const COLUMNS: usize = Line::WORDS;
    const WORDS: usize = 1;

    #[inline(always)]
    unsafe fn multiply<E: Epilogue<F::Isa>>(mut product: Product<'_, F, E>) {
        let count = product.rows.count;
        let mut first = 0;
        while first < count {
            let last = count.min(first + ROWS_IN_CACHE);
            let mut column = 0;
            while column < product.columns.columns {
                // SAFETY: rows and columns are in bounds, by the caller's word.
                column += unsafe { product.columns_of_rows(first, last, column) };
            }
            first = last;
        }
    }
}

impl<F: Dot, E: Epilogue<F::Isa>> Product<'_, F, E> {
    /// The rows from `first` to `last` times the columns from `column` on, as many as registers hold; how many those are.
    ///
    /// # Safety
    /// The rows and `column` are in bounds.
    #[inline(always)]
    unsafe fn columns_of_rows(&mut self, first: usize, last: usize, column: usize) -> usize {
        let lanes = <F::Isa as Isa>::LANES;
        let two = column + 2 * lanes <= self.columns.columns;
        let mut row = first;
        while row < last {
            // SAFETY: no block has more rows than are left, and `two` says whether there are so many columns.
            row += unsafe {
                match two {
                    true => self.some_rows::<2>(row, last - row, column),
                    false => self.some_rows::<1>(row, last - row, column),
                }
            };
        }
        if two { 2 * lanes } else { lanes }
    }

    /// A block of rows, as large as `left` allows; how many rows that was.
    ///
    /// # Safety
    /// As many rows from `row` and registers of columns from `column` are in bounds.
    #[inline(always)]
    unsafe fn some_rows<const REGISTERS: usize>(&mut self, row: usize, left: usize, column: usize) -> usize {
        // SAFETY: no arm takes more rows than are left.
        unsafe {
            match left.min(<F::Isa as Isa>::ROWS_MAX) {
                14.. => self.block::<14, REGISTERS>(row, column),
                8..14 => self.block::<8, REGISTERS>(row, column),
                6..8 => self.block::<6, REGISTERS>(row, column),
                4..6 => self.block::<4, REGISTERS>(row, column),
                2..4 => self.block::<2, REGISTERS>(row, column),
                _ => self.block::<1, REGISTERS>(row, column),
            }
        }
    }

    /// The register block. The sums of each value run over the words in their order, whatever the block.
    ///
    /// # Safety
    /// `ROWS` rows from `row` and `REGISTERS` registers of columns from `column` are in bounds.
    #[inline(always)]
    #[expect(
        clippy::needless_range_loop,
        reason = "arrays in step, with constant bounds, become registers"
    )]
    unsafe fn block<const ROWS: usize, const REGISTERS: usize>(
        &mut self,
        row: usize,
        column: usize,
    ) -> usize {
        let (format, words, stride) = (self.format, self.columns.words, self.rows.stride);
        let lanes = <F::Isa as Isa>::LANES;
        let rows = self.rows.words[row * stride..].as_ptr();
        let mut columns = [std::ptr::null::<u32>(); REGISTERS];
        for register in 0..REGISTERS {
            let at = column + register * lanes;
            let panel = &self.columns.lines[at / Line::WORDS * words..];
            columns[register] = panel.as_ptr().cast::<u32>().wrapping_add(at % Line::WORDS);
        }
        // What the next block of columns will read comes from further away than the rows, which stay.
        let next = REGISTERS * lanes / Line::WORDS * words * Line::WORDS;
        let mut offsets = [0; ROWS];
        for offset in 0..ROWS {
            offsets[offset] = offset * stride;
            for register in 0..REGISTERS {
                self.epilogue
                    .expect(format.isa(), row + offset, column + register * lanes);
            }
        }
        let mut sums = [[format.zero(); REGISTERS]; ROWS];
        for word in 0..words {
            let mut of_columns = [format.splat(0); REGISTERS];
            for register in 0..REGISTERS {
                // SAFETY: a line of each panel for each word, by the caller's word.
                of_columns[register] = unsafe { format.load(columns[register]) };
                format.isa().prefetch(columns[register].wrapping_add(next));
                columns[register] = columns[register].wrapping_add(Line::WORDS);
            }
            for row in 0..ROWS {
                // SAFETY: the row is in bounds, by the caller's word.
                let of_row = format.splat(unsafe { *rows.add(offsets[row]).add(word) });
                for register in 0..REGISTERS {
                    sums[row][register] = format.dot(sums[row][register], of_row, of_columns[register]);
                }
            }
        }
        for (offset, sums) in sums.iter().enumerate() {
            let scale = self
                .rows
                .scales
                .get(row + offset)
                .copied()
                .unwrap_or(RowScale::ONE);
            for (register, &sums) in sums.iter().enumerate() {
                let at = column + register * lanes;
                let values = format.values(sums, scale, self.columns.scales.from(at));
                self.epilogue.take(format.isa(), row + offset, at, values);
            }
        }
        ROWS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            amx::{Amx, Tiled, tests::Emulated},
            epilogue::Store,
            format::{Bf16, Encode, Int8, Single},
            isa::{Avx2, Avx512},
            matrix::Matrix,
            operand::Operand,
            panels::{PADDING, Panels},
        },
        *,
    };

    /// What words stand for, by the format's definition.
    fn decoded<F: Format>(words: &[u32], unsigned: bool, scale: RowScale) -> Vec<f64> {
        let number = |word: &u32| match F::PER_WORD {
            1 => vec![f64::from(f32::from_bits(*word))],
            2 => [word << 16, word & 0xffff_0000]
                .map(|bits| f64::from(f32::from_bits(bits)))
                .to_vec(),
            _ => word
                .to_le_bytes()
                .map(|byte| match unsigned {
                    true => (f64::from(byte) - f64::from(scale.zero)) * f64::from(scale.scale),
                    false => f64::from(byte.cast_signed()) * f64::from(scale.scale),
                })
                .to_vec(),
        };
        words.iter().flat_map(number).collect()
    }

    /// A product beside the same in `f64` of the numbers that the words stand for.
    fn agrees<F: Multiply>(
        count: usize,
        inputs: usize,
        outputs: usize,
        numbers: &[f32],
    ) -> Result<(), TestCaseError> {
        let Some(format) = F::detect() else { return Ok(()) };
        let mut numbers = numbers.iter().copied().cycle();
        let padded = inputs.next_multiple_of(PADDING);
        let (mut operand, mut rows) = (Operand::new::<F>(padded), Vec::new());
        operand.reserve_rows(count);
        for row in 0..count {
            let mut values: Vec<f32> = numbers.by_ref().take(inputs).collect();
            values.resize(padded, 0.0);
            let to = operand.rows_mut(row..row + 1);
            let (row, values) = (to.words, &values[..]);
            to.scales[0] = format.vectorize(Encode { format, values, row });
            rows.push(decoded::<F>(&row[..padded / F::PER_WORD], true, to.scales[0]));
        }
        let weights: Vec<f32> = numbers.take(inputs * outputs).collect();
        let panels = Panels::of_weights::<F>(&weights, inputs);
        let mut to = Matrix::<f32>::new(panels.columns);
        to.reserve_rows(count);
        let stride = to.stride();
        format.vectorize(Product {
            format,
            rows: operand.rows(0..count),
            columns: panels.view(),
            epilogue: Store {
                to: to.all_mut(),
                stride,
            },
        });
        for (column, weights) in weights.chunks(inputs).enumerate() {
            let mut encoded = Vec::new();
            let mut weights = weights.to_vec();
            weights.resize(padded, 0.0);
            let scale = F::encode_weights(&weights, &mut encoded).scale;
            let weights = decoded::<F>(&encoded, false, RowScale { scale, zero: 0.0 });
            for (row, values) in rows.iter().enumerate() {
                let products = values.iter().zip(&weights).map(|(a, b)| a * b);
                let (sum, size): (f64, f64) = (products.clone().sum(), products.map(f64::abs).sum());
                let off = (f64::from(to.row(row)[column]) - sum).abs();
                // Codes of int8 are summed exactly, but those of their zero are taken off in 32 bits.
                let allowed = if F::PER_WORD == 4 { 1e-4 } else { 1e-5 };
                prop_assert!(
                    off <= allowed * size + 1e-30,
                    "row {row}, column {column}: {off} off {sum}"
                );
            }
            prop_assert!(
                to.row(0)[outputs..panels.columns]
                    .iter()
                    .all(|&filler| filler == 0.0)
            );
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn products_of_any_shape_are_those_of_64_bits(
            count in 1..60_usize,
            inputs in 1..200_usize,
            outputs in 1..100_usize,
            numbers in prop::collection::vec(-3_f32..3.0, 1_009),
        ) {
            agrees::<Single<Avx512>>(count, inputs, outputs, &numbers)?;
            agrees::<Single<Avx2>>(count, inputs, outputs, &numbers)?;
            agrees::<Bf16>(count, inputs, outputs, &numbers)?;
            agrees::<Int8>(count, inputs, outputs, &numbers)?;
            agrees::<Tiled<Bf16, Emulated>>(count, inputs, outputs, &numbers)?;
            agrees::<Tiled<Int8, Emulated>>(count, inputs, outputs, &numbers)?;
            agrees::<Tiled<Bf16, Amx>>(count, inputs, outputs, &numbers)?;
            agrees::<Tiled<Int8, Amx>>(count, inputs, outputs, &numbers)?;
        }
    }
}
