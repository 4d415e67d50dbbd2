//! What one micro-batch needs on the device and beside it: a stream, buffers, and pinned memory on the host's side, which
//! is copied without the processor.

use std::{ops::Range, sync::Arc};

use cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice, sys::CUevent_flags};

use super::{
    Buffer, Error, Gpu,
    kernels::{Shape, TILE_ROWS, VECTOR_BYTES},
    product::SCRATCH_BYTES,
};
use crate::model::Tokens;

/// How large a micro-batch is, and so where in the input what stands: ids, positions, texts, tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Batch {
    /// Tokens of all texts.
    pub(super) rows: usize,
    pub(super) texts: usize,
    /// Units of the attention: up to [`TILE_ROWS`] rows of one text.
    pub(super) tiles: usize,
}

/// `Text` and `Tile` of `kernels.cu`, in words of 32 bits.
const TEXT_WORDS: usize = 2;
const TILE_WORDS: usize = 3;

impl Batch {
    pub(super) fn of(texts: &[Tokens]) -> Self {
        let lengths = || texts.iter().map(|text| text.ids.len());
        Self {
            rows: lengths().sum(),
            texts: texts.len(),
            tiles: lengths().map(|tokens| tokens.div_ceil(TILE_ROWS)).sum(),
        }
    }

    pub(super) fn ids(&self) -> Range<usize> {
        0..self.rows
    }

    pub(super) fn positions(&self) -> Range<usize> {
        after(self.ids(), self.rows)
    }

    pub(super) fn text_words(&self) -> Range<usize> {
        after(self.positions(), self.texts * TEXT_WORDS)
    }

    pub(super) fn tile_words(&self) -> Range<usize> {
        after(self.text_words(), self.tiles * TILE_WORDS)
    }

    fn words(&self) -> usize {
        self.tile_words().end
    }

    /// Writes what the device has to know of `texts`, which are this batch.
    fn write(&self, texts: &[Tokens], words: &mut [u32]) {
        let (mut row, mut tile) = (0, self.tile_words().start);
        for (number, Tokens { ids, .. }) in texts.iter().enumerate() {
            let tokens = ids.len();
            words[row..][..tokens].copy_from_slice(ids);
            for (position, word) in words[self.rows + row..][..tokens].iter_mut().enumerate() {
                *word = position as u32;
            }
            let text = self.text_words().start + number * TEXT_WORDS;
            words[text..][..TEXT_WORDS].copy_from_slice(&[row as u32, tokens as u32]);
            for first in (0..tokens).step_by(TILE_ROWS) {
                words[tile..][..TILE_WORDS].copy_from_slice(&[row as u32, tokens as u32, first as u32]);
                tile += TILE_WORDS;
            }
            row += tokens;
        }
    }
}

fn after(before: Range<usize>, length: usize) -> Range<usize> {
    before.end..before.end + length
}

/// Room for one micro-batch at a time.
pub(super) struct Workspace {
    pub(super) stream: Arc<CudaStream>,
    /// What [`Batch::write`] wrote.
    pub(super) input: CudaSlice<u32>,
    /// The tokens' vectors, from layer to layer.
    pub(super) hidden: Buffer,
    /// Query, key and value side by side; then what is between the two products of the feed-forward part.
    pub(super) wide: Buffer,
    pub(super) context: Buffer,
    /// What is about to be added to `hidden`.
    pub(super) update: Buffer,
    /// The answers.
    pub(super) vectors: CudaSlice<f32>,
    /// cuBLASLt's own.
    pub(super) scratch: Buffer,
    dimension: usize,
    input_pinned: PinnedHostSlice<u32>,
    vectors_pinned: PinnedHostSlice<f32>,
    done: CudaEvent,
    room: Batch,
}

/// Rooms are multiples of so many rows, so that micro-batches that differ by little share one.
const ROWS_STEP: usize = 1_024;

impl Workspace {
    /// With room for `batch`.
    pub(super) fn new(gpu: &Gpu, shape: &Shape, dimension: usize, batch: &Batch) -> Result<Self, Error> {
        let rows = batch.rows.next_multiple_of(ROWS_STEP);
        // Texts and tiles are at least a row each.
        let room = Batch {
            rows,
            texts: (batch.texts * 2).min(rows),
            tiles: rows.min((batch.texts * 2).min(rows) + rows / TILE_ROWS),
        };
        let stream = gpu.context().new_stream()?;
        let numbers = |numbers: usize| {
            let bytes = shape.bytes(rows * numbers).next_multiple_of(VECTOR_BYTES);
            Ok::<Buffer, Error>(stream.alloc_zeros(bytes)?)
        };
        Ok(Self {
            input: stream.alloc_zeros(room.words())?,
            hidden: numbers(shape.width)?,
            wide: numbers(shape.inner.max(3 * shape.width))?,
            context: numbers(shape.width)?,
            update: numbers(shape.width)?,
            vectors: stream.alloc_zeros(room.texts * dimension)?,
            scratch: stream.alloc_zeros(SCRATCH_BYTES)?,
            dimension,
            // SAFETY: written before it is read, each time.
            input_pinned: unsafe { gpu.context().alloc_pinned_with_flags(room.words(), 0) }?,
            // SAFETY: as above.
            vectors_pinned: unsafe { gpu.context().alloc_pinned_with_flags(room.texts * dimension, 0) }?,
            // Whoever waits for it sleeps.
            done: gpu
                .context()
                .new_event(Some(CUevent_flags::CU_EVENT_BLOCKING_SYNC))?,
            stream,
            room,
        })
    }

    pub(super) fn has_room_for(&self, batch: &Batch) -> bool {
        let Batch { rows, texts, tiles } = *batch;
        rows <= self.room.rows && texts <= self.room.texts && tiles <= self.room.tiles
    }

    /// Queues the copy of `texts`, which are `batch`, to the device.
    pub(super) fn put(&mut self, texts: &[Tokens], batch: &Batch) -> Result<(), Error> {
        let words = &mut self.input_pinned.as_mut_slice()?[..batch.words()];
        batch.write(texts, words);
        Ok(self.stream.memcpy_htod(&*words, &mut self.input)?)
    }

    /// Queues the copy of the vectors, waits for it, and with it for all that was queued before.
    pub(super) fn take(&mut self, texts: usize) -> Result<Vec<Vec<f32>>, Error> {
        let numbers = &mut self.vectors_pinned.as_mut_slice()?[..texts * self.dimension];
        self.stream
            .memcpy_dtoh(&self.vectors.slice(..numbers.len()), numbers)?;
        self.done.record(&self.stream)?;
        self.done.synchronize()?;
        Ok(numbers
            .chunks_exact(self.dimension)
            .map(<[f32]>::to_vec)
            .collect())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // Where a micro-batch failed half-way, copies may still be under way. What that says was said before.
        let _ = self.stream.synchronize();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_input_says_of_every_row_what_it_is_and_its_tiles_cover_it_once(
            lengths in prop::collection::vec(1_usize..70, 1..20),
        ) {
            let texts: Vec<Tokens> = lengths
                .iter()
                .enumerate()
                .map(|(text, &tokens)| Tokens { ids: vec![text as u32; tokens], truncated: false })
                .collect();
            let batch = Batch::of(&texts);
            let mut words = vec![u32::MAX; batch.words()];
            batch.write(&texts, &mut words);
            let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids.clone()).collect();
            prop_assert_eq!(&words[batch.ids()], &ids[..]);
            let positions: Vec<u32> = lengths.iter().flat_map(|&tokens| 0..tokens as u32).collect();
            prop_assert_eq!(&words[batch.positions()], &positions[..]);
            let mut covered = Vec::new();
            for tile in words[batch.tile_words()].chunks_exact(TILE_WORDS) {
                let [start, tokens, first] = [tile[0], tile[1], tile[2]];
                covered.extend((first..tokens.min(first + TILE_ROWS as u32)).map(|row| start + row));
            }
            prop_assert_eq!(covered, (0..batch.rows as u32).collect::<Vec<_>>());
            let mut row = 0;
            for (text, &tokens) in words[batch.text_words()].chunks_exact(TEXT_WORDS).zip(&lengths) {
                prop_assert_eq!(text, &[row, tokens as u32]);
                row += tokens as u32;
            }
        }
    }
}
