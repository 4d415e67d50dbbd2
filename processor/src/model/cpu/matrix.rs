//! Matrices whose rows begin on cache lines.

#![expect(unsafe_code, reason = "lines are read as the words that they consist of")]

/// 64 bytes that are a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; Line::WORDS]);

impl Line {
    pub(super) const WORDS: usize = 16;
    pub(super) const ZERO: Self = Self([0; Self::WORDS]);
}

/// Lines as the words that they consist of.
pub(super) fn words_mut(lines: &mut [Line]) -> &mut [u32] {
    // SAFETY: a line is 16 words without a gap.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * Line::WORDS) }
}

/// What may stand in a matrix: any bits of 32 are one.
pub(super) trait Word: Copy {}
impl Word for u32 {}
impl Word for f32 {}

/// Rows of numbers or of words, zero at first.
pub(super) struct Matrix<T> {
    lines: Vec<Line>,
    stride: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Word> Matrix<T> {
    /// Room for rows of `columns`. An odd number of lines lies between the starts of two, so that rows side by side do not
    /// all fall into the same set of the cache; so there is always a line of room behind the last column.
    pub(super) fn new(columns: usize) -> Self {
        Self {
            lines: Vec::new(),
            stride: (columns.div_ceil(Line::WORDS) + 1) | 1,
            of: std::marker::PhantomData,
        }
    }

    /// Makes room for at least so many rows, and keeps it.
    pub(super) fn reserve_rows(&mut self, rows: usize) {
        let lines = self.lines.len().max(rows * self.stride);
        self.lines.resize(lines, Line::ZERO);
    }

    /// From the start of one row to that of the next.
    pub(super) fn stride(&self) -> usize {
        self.stride * Line::WORDS
    }

    pub(super) fn all(&self) -> &[T] {
        // SAFETY: a line is 16 words without a gap, and any bits are a `T`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * Line::WORDS) }
    }

    pub(super) fn all_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for as long.
        unsafe {
            std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * Line::WORDS)
        }
    }

    pub(super) fn row(&self, row: usize) -> &[T] {
        let stride = self.stride();
        &self.all()[row * stride..][..stride]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [T] {
        let stride = self.stride();
        &mut self.all_mut()[row * stride..][..stride]
    }
}
