//! Attention: each text by itself, by the same register block.

use super::{
    epilogue::{Scale, Store, exp},
    format::{Format, Plain, RowScale, Scales},
    isa::{Isa, Work, as_floats, as_floats_mut},
    kernel::{MOST_COLUMNS, MOST_ROWS, Multiply, Product, Rows},
    matrix::{Line, words_mut},
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
    queries: Vec<Line>,
    keys: Vec<Line>,
    values: Vec<Line>,
    scores: Vec<Line>,
}

/// The attention of one text, in a format of its own.
pub(super) struct Attention<'a, A, F> {
    pub(super) format: A,
    pub(super) heads: Heads,
    /// Queries, which have the scale of the scores in them, keys and values of the text's tokens, from the first on.
    pub(super) query_key_value: &'a [f32],
    pub(super) stride: usize,
    pub(super) tokens: usize,
    /// What `context` is written in.
    pub(super) context_format: F,
    /// The text's rows of what comes out. What stands behind the last head's columns, up to a line, is overwritten.
    pub(super) context: &'a mut [u32],
    pub(super) context_stride: usize,
    pub(super) scratch: &'a mut Scratch,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self {
            queries: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            scores: Vec::new(),
        }
    }

    fn reserve<A: Multiply>(&mut self, tokens: usize, head_width: usize) {
        let lines = |numbers: usize| numbers.next_multiple_of(A::COLUMNS) / Line::WORDS;
        grow(
            &mut self.queries,
            A::ROWS * words::<A>(head_width).div_ceil(Line::WORDS),
        );
        grow(&mut self.keys, lines(tokens) * words::<A>(head_width));
        grow(&mut self.values, lines(head_width) * words::<A>(tokens));
        grow(&mut self.scores, A::ROWS * lines(tokens));
    }
}

/// Of as many numbers, filled with zeros to as many as a product takes.
fn words<A: Multiply>(numbers: usize) -> usize {
    numbers.div_ceil(A::PER_WORD).next_multiple_of(A::WORDS)
}

fn grow(room: &mut Vec<Line>, to: usize) {
    if room.len() < to {
        room.resize(to, Line::ZERO);
    }
}

impl<A: Plain + Multiply, F: Format<Isa = A::Isa>> Work for Attention<'_, A, F> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        self.scratch.reserve::<A>(self.tokens, self.heads.width);
        for head in 0..self.heads.count {
            self.head(head);
        }
    }
}

impl<A: Plain + Multiply, F: Format<Isa = A::Isa>> Attention<'_, A, F> {
    #[inline(always)]
    fn head(&mut self, head: usize) {
        let (format, tokens, Heads { count, width }) = (self.format, self.tokens, self.heads);
        let Scratch {
            queries,
            keys,
            values,
            scores,
        } = &mut *self.scratch;
        let (column, all) = (head * width, count * width);
        let row =
            |token: usize, part: usize| &self.query_key_value[token * self.stride + part + column..][..width];
        columns_of_rows(format, keys, (0..tokens).map(|token| row(token, all)), width);
        rows_of_rows(
            format,
            values,
            (0..tokens).map(|token| row(token, 2 * all)),
            width,
        );
        let keys = packed::<A>(keys, tokens, width);
        let values = packed::<A>(values, width, tokens);
        let (queries, query_stride) = (words_mut(queries), keys.words.next_multiple_of(Line::WORDS));
        let (scores, stride) = (words_mut(scores), keys.columns);
        for first in (0..tokens).step_by(A::ROWS) {
            let count = A::ROWS.min(tokens - first);
            for (query, token) in queries.chunks_exact_mut(query_stride).zip(first..first + count) {
                written(format, row(token, 0), keys.words, query);
            }
            Product {
                format,
                rows: rows(queries, count, query_stride),
                columns: keys,
                epilogue: Store {
                    to: as_floats_mut(scores),
                    stride,
                },
            }
            .run();
            let by = &softmax(format, &mut scores[..count * stride], stride, tokens);
            Product {
                format,
                rows: rows(scores, count, stride),
                columns: values,
                epilogue: Scale {
                    by,
                    format: self.context_format,
                    to: &mut self.context[first * self.context_stride..],
                    stride: self.context_stride,
                    column,
                    columns: width,
                },
            }
            .run();
        }
    }
}

fn rows(words: &[u32], count: usize, stride: usize) -> Rows<'_> {
    const NO_SCALES: &[RowScale] = &[];
    Rows {
        words,
        count,
        stride,
        scales: NO_SCALES,
    }
}

fn packed<A: Multiply>(lines: &[Line], columns: usize, numbers: usize) -> PanelsRef<'_> {
    PanelsRef {
        lines,
        columns: columns.next_multiple_of(A::COLUMNS),
        words: words::<A>(numbers),
        scales: Scales::NONE,
    }
}

/// The first of `numbers`, and zeros where there are no more.
#[inline(always)]
fn load<I: Isa>(isa: I, numbers: &[f32]) -> I::Vector {
    if numbers.len() >= I::LANES {
        return isa.load(numbers);
    }
    let mut filled = [0.0; Line::WORDS];
    filled[..numbers.len()].copy_from_slice(numbers);
    isa.load(&filled)
}

/// Writes as many `words` of a row in a format, and more up to a vector; behind its end are zeros.
#[inline(always)]
fn written<A: Plain>(format: A, row: &[f32], words: usize, to: &mut [u32]) {
    for column in (0..words * A::PER_WORD).step_by(<A::Isa as Isa>::LANES) {
        let numbers = row.get(column..).unwrap_or_default();
        format.write(load(format.isa(), numbers), column, to);
    }
}

/// Packs rows as columns: the keys, whose products with a query are its scores.
#[inline(always)]
fn columns_of_rows<'a, A: Plain + Multiply>(
    format: A,
    panels: &mut [Line],
    rows: impl Iterator<Item = &'a [f32]>,
    width: usize,
) {
    let words = words::<A>(width);
    let mut lanes = [0; 64];
    for (column, row) in rows.enumerate() {
        let panel = &mut panels[column / Line::WORDS * words..][..words];
        for (part, lines) in panel.chunks_mut(64 / A::PER_WORD).enumerate() {
            let row = row.get(64 * part..).unwrap_or_default();
            written(format, row, lines.len(), &mut lanes);
            for (line, word) in lines.iter_mut().zip(lanes) {
                line.0[column % Line::WORDS] = word;
            }
        }
    }
}

/// Packs rows as they are: the values, of which a query takes a weighted sum.
#[inline(always)]
fn rows_of_rows<'a, A: Plain + Multiply>(
    format: A,
    panels: &mut [Line],
    mut rows: impl ExactSizeIterator<Item = &'a [f32]>,
    width: usize,
) {
    let lanes = <A::Isa as Isa>::LANES;
    let words = words::<A>(rows.len());
    for word in 0..words {
        let mut of_word = [&[][..]; 2];
        for row in &mut of_word[..A::PER_WORD] {
            *row = rows.next().unwrap_or_default();
        }
        for column in (0..width).step_by(lanes) {
            let numbers = |row: usize| load(format.isa(), of_word[row].get(column..).unwrap_or_default());
            let line = &mut panels[column / Line::WORDS * words + word];
            format.weave(numbers, &mut line.0[column % Line::WORDS..]);
        }
    }
}

/// Makes weights of scores, a row of `stride` for each query, in a format, and says by what their sum is one. The weights
/// of what stands behind the first `tokens`, the scores of keys that are none, are next to nothing.
#[inline(always)]
fn softmax<A: Plain + Multiply>(
    format: A,
    scores: &mut [u32],
    stride: usize,
    tokens: usize,
) -> [f32; MOST_ROWS] {
    let (isa, lanes) = (format.isa(), <A::Isa as Isa>::LANES);
    // The lesser of this and what stands there, and this where that is no number, as a key that is none may give.
    let last_block = stride - A::COLUMNS;
    let mut highest = [f32::INFINITY; MOST_COLUMNS];
    for highest in &mut highest[tokens - last_block..] {
        *highest = f32::NEG_INFINITY;
    }
    // One step of all rows before the next of any, so that none waits for its own.
    let mut of_rows = [0.0; MOST_ROWS];
    for (scores, to) in as_floats_mut(scores).chunks_exact_mut(stride).zip(&mut of_rows) {
        for (scores, highest) in scores[last_block..]
            .chunks_exact_mut(lanes)
            .zip(highest.chunks_exact(lanes))
        {
            isa.store(isa.min(isa.load(scores), isa.load(highest)), scores);
        }
        let mut most = isa.splat(f32::NEG_INFINITY);
        for scores in scores.chunks_exact(lanes) {
            most = isa.max(most, isa.load(scores));
        }
        *to = isa.most(most);
    }
    for (scores, of_row) in scores.chunks_exact_mut(stride).zip(&mut of_rows) {
        let most = isa.splat(*of_row);
        let mut sums = isa.splat(0.0);
        // The weights take the place of scores that were read before.
        for column in (0..stride).step_by(lanes) {
            let weights = exp(isa, isa.sub(isa.load(as_floats(&scores[column..])), most));
            sums = isa.add(sums, weights);
            format.write(weights, column, scores);
        }
        *of_row = 1.0 / isa.sum(sums);
    }
    of_rows
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{
            amx::{Amx, Tiled, tests::Emulated},
            format::{Bf16, Single, bf16},
            isa::{Avx2, Avx512},
        },
        *,
    };

    /// Attention in a format, with the context in 32 bits, is that in 64 bits of the same numbers.
    fn agrees<A: Plain + Multiply>(
        heads: Heads,
        tokens: usize,
        numbers: &[f32],
        scratch: &mut Scratch,
    ) -> Result<(), TestCaseError> {
        let Some(format) = A::detect() else { return Ok(()) };
        let Heads { count, width } = heads;
        let all = count * width;
        let (stride, context_stride) = (3 * all + 5, all + Line::WORDS);
        let in_format = |&number: &f32| match A::PER_WORD {
            1 => number,
            _ => f32::from_bits(bf16(number) << 16),
        };
        let query_key_value: Vec<f32> = numbers
            .iter()
            .map(in_format)
            .cycle()
            .take(tokens * stride)
            .collect();
        // Weights of `bf16` are off by half of their last place.
        let allowed = if A::PER_WORD == 1 { 1e-5 } else { 2e-3 };
        let mut context = vec![0; tokens * context_stride];
        let (query_key_value, to) = (&query_key_value[..], &mut context[..]);
        format.vectorize(Attention {
            format,
            heads,
            query_key_value,
            stride,
            tokens,
            context_format: Single::<A::Isa>::detect().unwrap(),
            context: to,
            context_stride,
            scratch,
        });
        let context = as_floats(&context);
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
                    (found - wanted).abs() < allowed,
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
                let heads = Heads { count, width };
                agrees::<Single<Avx512>>(heads, tokens, &numbers, &mut scratch)?;
                agrees::<Single<Avx2>>(heads, tokens, &numbers, &mut scratch)?;
                agrees::<Bf16>(heads, tokens, &numbers, &mut scratch)?;
                agrees::<Tiled<Bf16, Emulated>>(heads, tokens, &numbers, &mut scratch)?;
                agrees::<Tiled<Bf16, Amx>>(heads, tokens, &numbers, &mut scratch)?;
            }
        }
    }
}
