//! Columns, packed as the kernel reads them.

use super::{
    format::{ColumnScale, Format, Scales},
    matrix::Line,
};

/// Columns in panels of 16. Line *k* of a panel is word *k* of each of its columns, so the kernel reads a panel from its
/// beginning to its end. The tiles of AMX want the same bytes.
pub(super) struct Panels {
    lines: Vec<Line>,
    /// Columns in panels, those of zeros that fill the last ones included.
    pub(super) columns: usize,
    /// Words of each column.
    pub(super) words: usize,
    scales: Vec<f32>,
    sums: Vec<f32>,
}

/// A reader's view of panels: of weights, or of the keys or values of one text.
#[derive(Clone, Copy)]
pub(super) struct PanelsRef<'a> {
    pub(super) lines: &'a [Line],
    pub(super) columns: usize,
    pub(super) words: usize,
    pub(super) scales: Scales<'a>,
}

/// Columns and their words are filled with zeros to multiples of as many numbers.
///
/// 64 numbers are whole lines in every format.
pub(super) const PADDING: usize = 64;

impl Panels {
    /// The weights of a dense layer, `outputs` rows of `inputs` numbers, as columns.
    pub(super) fn of_weights<F: Format>(weights: &[f32], inputs: usize) -> Self {
        let columns = (weights.len() / inputs).next_multiple_of(PADDING);
        let words = inputs.next_multiple_of(PADDING) / F::PER_WORD;
        let mut panels = Self {
            lines: vec![Line::ZERO; columns / Line::WORDS * words],
            columns,
            words,
            scales: vec![0.0; columns],
            sums: vec![0.0; columns],
        };
        let (mut padded, mut encoded) = (vec![0.0; words * F::PER_WORD], Vec::with_capacity(words));
        for (column, weights) in weights.chunks_exact(inputs).enumerate() {
            padded[..inputs].copy_from_slice(weights);
            encoded.clear();
            let ColumnScale { scale, sum } = F::encode_weights(&padded, &mut encoded);
            (panels.scales[column], panels.sums[column]) = (scale, sum);
            let panel = &mut panels.lines[column / Line::WORDS * words..][..words];
            for (line, &word) in panel.iter_mut().zip(&encoded) {
                line.0[column % Line::WORDS] = word;
            }
        }
        panels
    }

    pub(super) fn view(&self) -> PanelsRef<'_> {
        PanelsRef {
            lines: &self.lines,
            columns: self.columns,
            words: self.words,
            scales: Scales {
                scales: &self.scales,
                sums: &self.sums,
            },
        }
    }
}
