//! The left side of a product: rows that are written by what comes before it, number by number, in its format.

use std::ops::Range;

use super::{
    format::{Format, RowScale},
    isa::Work,
    kernel::Rows,
    matrix::Matrix,
};

pub(super) struct Operand {
    words: Matrix<u32>,
    scales: Vec<RowScale>,
}

/// Some rows of an operand, to write to.
pub(super) struct RowsMut<'a> {
    /// From the first word of the first row on.
    pub(super) words: &'a mut [u32],
    pub(super) stride: usize,
    /// One a row.
    pub(super) scales: &'a mut [RowScale],
}

impl Operand {
    pub(super) fn new<F: Format>(columns: usize) -> Self {
        Self {
            words: Matrix::new(columns / F::WRITTEN_PER_WORD),
            scales: Vec::new(),
        }
    }

    /// Makes room for at least so many rows, and keeps it.
    pub(super) fn reserve_rows(&mut self, rows: usize) {
        self.words.reserve_rows(rows);
        let rows = self.scales.len().max(rows);
        self.scales.resize(rows, RowScale::ONE);
    }

    pub(super) fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let stride = self.words.stride();
        Rows {
            words: &self.words.all()[rows.start * stride..rows.end * stride],
            count: rows.len(),
            stride,
            scales: &self.scales[rows],
        }
    }

    pub(super) fn rows_mut(&mut self, rows: Range<usize>) -> RowsMut<'_> {
        let stride = self.words.stride();
        RowsMut {
            words: &mut self.words.all_mut()[rows.start * stride..rows.end * stride],
            stride,
            scales: &mut self.scales[rows],
        }
    }
}

/// Settles rows whose columns are all written.
pub(super) struct Settle<'a, F> {
    pub(super) format: F,
    pub(super) columns: usize,
    pub(super) rows: RowsMut<'a>,
}

impl<F: Format> Work for Settle<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let rows = self.rows.words.chunks_exact_mut(self.rows.stride);
        for (row, scale) in rows.zip(self.rows.scales) {
            *scale = self.format.settle(self.columns, row);
        }
    }
}
