//! Attention: each text by itself, in 32 bits, by the same register block.

use super::{
    epilogue::{Scale, Store, exp},
    format::{RowScale, Scales, Single},
    isa::{Isa, Work, as_words},
    kernel::{Product, Rows},
    matrix::{Line, floats_mut},
    panels::PanelsRef,
};

/// How the columns of queries, keys and values are laid out: side by side, the heads of each one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) count: usize,
    /// Columns of one.
    pub(super) width: usize,
}

/// Room for one head of one text.
pub(super) struct Scratch {
    keys: Vec<Line>,
    values: Vec<Line>,
    scores: Vec<Line>,
}

/// The attention of one text.
pub(super) struct Attention<'a, I> {
    pub(super) isa: I,
    pub(super) heads: Heads,
    /// Queries, which have the scale of the scores in them, keys and values of the text's tokens, from the first on.
    pub(super) query_key_value: &'a [f32],
    pub(super) stride: usize,
    pub(super) tokens: usize,
    /// The text's rows of what comes out. What stands behind the last head's columns, up to a line, is overwritten.
    pub(super) context: &'a mut [f32],
    pub(super) context_stride: usize,
    pub(super) scratch: &'a mut Scratch,
}

/// So many queries have their scores at once: as many as rows of the largest register block.
const QUERIES_AT_ONCE: usize = 14;

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            keys: Vec::new(),
            values: Vec::new(),
            scores: Vec::new(),
        }
    }

    fn reserve(&mut self, tokens: usize, head_width: usize) {
        let panels = |columns: usize, words: usize| columns.div_ceil(Line::WORDS) * words;
        grow(&mut self.keys, panels(tokens, head_width));
        grow(&mut self.values, panels(head_width, tokens));
        grow(&mut self.scores, QUERIES_AT_ONCE * panels(tokens, 1));
    }
}

fn grow(room: &mut Vec<Line>, to: usize) {
    if room.len() < to {
        room.resize(to, Line::ZERO);
    }
}

impl<I: Isa> Work for Attention<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        self.scratch.reserve(self.tokens, self.heads.width);
        for head in 0..self.heads.count {
            self.head(head);
        }
    }
}

impl<I: Isa> Attention<'_, I> {
    #[inline(always)]
    fn head(&mut self, head: usize) {
        let (tokens, Heads { count, width }) = (self.tokens, self.heads);
        let Scratch { keys, values, scores } = &mut *self.scratch;
        let (query_column, all) = (head * width, count * width);
        let part = |from: usize| {
            self.query_key_value[query_column + from..]
                .chunks(self.stride)
                .map(|row| &row[..width])
        };
        columns_of_rows(keys, part(all).take(tokens), width);
        rows_of_rows(values, part(2 * all).take(tokens));
        let keys = packed(keys, tokens, width);
        let values = packed(values, width, tokens);
        let (scores, stride) = (floats_mut(scores), tokens.next_multiple_of(Line::WORDS));
        let queries = as_words(self.query_key_value);
        for first in (0..tokens).step_by(QUERIES_AT_ONCE) {
            let count = QUERIES_AT_ONCE.min(tokens - first);
            let words = &queries[first * self.stride + query_column..];
            let rows = Rows {
                words,
                count,
                stride: self.stride,
                scales: NO_SCALES,
            };
            let format = Single::new(self.isa);
            Product {
                format,
                rows,
                columns: keys,
                epilogue: Store { to: scores, stride },
            }
            .run();
            let by = &softmax(self.isa, &mut scores[..count * stride], stride, tokens);
            let rows = Rows {
                words: as_words(scores),
                count,
                stride,
                scales: NO_SCALES,
            };
            let to = &mut self.context[first * self.context_stride + query_column..];
            let epilogue = Scale {
                by,
                to,
                stride: self.context_stride,
            };
            Product {
                format,
                rows,
                columns: values,
                epilogue,
            }
            .run();
        }
    }
}

const NO_SCALES: &[RowScale] = &[];

fn packed(lines: &[Line], columns: usize, words: usize) -> PanelsRef<'_> {
    PanelsRef {
        lines,
        columns: columns.next_multiple_of(Line::WORDS),
        words,
        scales: Scales::NONE,
    }
}

/// Packs rows as columns: the keys, whose products with a query are its scores.
#[inline(always)]
fn columns_of_rows<'a>(panels: &mut [Line], rows: impl Iterator<Item = &'a [f32]>, width: usize) {
    for (column, row) in rows.enumerate() {
        let panel = &mut panels[column / Line::WORDS * width..][..width];
        for (line, value) in panel.iter_mut().zip(row) {
            line.0[column % Line::WORDS] = value.to_bits();
        }
    }
}

/// Packs rows as they are: the values, of which a query takes a weighted sum.
#[inline(always)]
fn rows_of_rows<'a>(panels: &mut [Line], rows: impl ExactSizeIterator<Item = &'a [f32]>) {
    let count = rows.len();
    for (number, row) in rows.enumerate() {
        let (whole, rest) = as_words(row).as_chunks();
        for (panel, part) in whole.iter().enumerate() {
            panels[panel * count + number] = Line(*part);
        }
        if !rest.is_empty() {
            let mut line = Line::ZERO;
            line.0[..rest.len()].copy_from_slice(rest);
            panels[whole.len() * count + number] = line;
        }
    }
}

/// Makes weights of scores, a row of `stride` for each query, and says by what their sum is one. The weights of what
/// stands behind the first `tokens`, the scores of keys that are none, are next to nothing.
#[inline(always)]
fn softmax<I: Isa>(isa: I, scores: &mut [f32], stride: usize, tokens: usize) -> [f32; QUERIES_AT_ONCE] {
    // The lesser of this and what stands there, and this where that is no number, as a key that is none may give.
    let last_line = stride - Line::WORDS;
    let mut highest = [f32::INFINITY; Line::WORDS];
    for highest in &mut highest[tokens - last_line..] {
        *highest = f32::NEG_INFINITY;
    }
    // One step of all rows before the next of any, so that none waits for its own.
    let mut of_rows = [0.0; QUERIES_AT_ONCE];
    for (scores, to) in scores.chunks_exact_mut(stride).zip(&mut of_rows) {
        for (scores, highest) in scores[last_line..]
            .chunks_exact_mut(I::LANES)
            .zip(highest.chunks_exact(I::LANES))
        {
            isa.store(isa.min(isa.load(scores), isa.load(highest)), scores);
        }
        let mut most = isa.splat(f32::NEG_INFINITY);
        for scores in scores.chunks_exact(I::LANES) {
            most = isa.max(most, isa.load(scores));
        }
        *to = isa.most(most);
    }
    for (scores, of_row) in scores.chunks_exact_mut(stride).zip(&mut of_rows) {
        let most = isa.splat(*of_row);
        let mut sums = isa.splat(0.0);
        for scores in scores.chunks_exact_mut(I::LANES) {
            let weights = exp(isa, isa.sub(isa.load(scores), most));
            sums = isa.add(sums, weights);
            isa.store(weights, scores);
        }
        *of_row = 1.0 / isa.sum(sums);
    }
    of_rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::isa::{Avx2, Avx512},
        *,
    };

    fn agrees<I: Isa>(
        heads: Heads,
        tokens: usize,
        numbers: &[f32],
        scratch: &mut Scratch,
    ) -> Result<(), TestCaseError> {
        let Some(isa) = I::detect() else { return Ok(()) };
        let Heads { count, width } = heads;
        let all = count * width;
        let (stride, context_stride) = (3 * all + 5, all + Line::WORDS);
        let query_key_value: Vec<f32> = numbers.iter().copied().cycle().take(tokens * stride).collect();
        let mut context = vec![0.0; tokens * context_stride];
        let (query_key_value, to) = (&query_key_value[..], &mut context[..]);
        isa.vectorize(Attention {
            isa,
            heads,
            query_key_value,
            stride,
            tokens,
            context: to,
            context_stride,
            scratch,
        });
        let at = |token: usize, part: usize, head: usize, column: usize| {
            f64::from(query_key_value[token * stride + part * all + head * width + column])
        };
        for (token, head) in (0..tokens).flat_map(|token| (0..count).map(move |head| (token, head))) {
            let score = |other| {
                (0..width)
                    .map(|k| at(token, 0, head, k) * at(other, 1, head, k))
                    .sum::<f64>()
            };
            let weights: Vec<f64> = (0..tokens).map(|other| score(other).exp()).collect();
            let all_weights: f64 = weights.iter().sum();
            for column in 0..width {
                let wanted = (0..tokens)
                    .map(|other| weights[other] * at(other, 2, head, column))
                    .sum::<f64>()
                    / all_weights;
                let found = f64::from(context[token * context_stride + head * width + column]);
                prop_assert!(
                    (found - wanted).abs() < 1e-5,
                    "token {token}, head {head}: {found}, not {wanted}"
                );
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn attention_over_any_text_and_any_heads_is_that_of_64_bits(
            count in 1..5_usize,
            width in 1..70_usize,
            texts in prop::collection::vec(1..70_usize, 1..4),
            numbers in prop::collection::vec(-1_f32..1.0, 997),
        ) {
            // Room that a longer text left behind is used again.
            let mut scratch = Scratch::new();
            for tokens in texts {
                agrees::<Avx512>(Heads { count, width }, tokens, &numbers, &mut scratch)?;
                agrees::<Avx2>(Heads { count, width }, tokens, &numbers, &mut scratch)?;
            }
        }
    }
}
