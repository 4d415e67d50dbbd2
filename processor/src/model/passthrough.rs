//! A stand-in without weights, for measuring everything but the model: as many pseudo-random numbers as asked for.

use std::{num::NonZeroUsize, sync::Arc};

use super::{Dtype, EncodeError, Encoder, Model, ModelConfig, TokenizeError, Tokenizer, Tokens, digest};

/// Special tokens that a model of the BERT family adds to each text.
const SPECIAL_TOKENS: usize = 2;
/// Bytes of English to a token, about.
const BYTES_PER_TOKEN: usize = 4;

pub(super) fn model(dimension: usize, config: &ModelConfig) -> Model {
    let tokens_max = config.tokens_max.unwrap_or(usize::MAX).max(SPECIAL_TOKENS);
    Model {
        digest: digest::of_settings(&format!("passthrough:{dimension} tokens_max={tokens_max}")),
        task: config.task,
        tokens_max,
        device: "cpu".to_owned(),
        path: "passthrough",
        dtype: Dtype::F32,
        tokenizer: Arc::new(Counter { tokens_max }),
        encoder: Box::new(Noise { dimension }),
        encodings_at_once: NonZeroUsize::MIN,
        batch_tokens: 2_048,
    }
}

struct Counter {
    tokens_max: usize,
}

impl Tokenizer for Counter {
    /// The first two ids are a hash of the text, so that a text run twice gets the same vector; the others are zero.
    fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError> {
        let tokens = text.len() / BYTES_PER_TOKEN + SPECIAL_TOKENS;
        let mut ids = vec![0; tokens.min(self.tokens_max)];
        let hash = hash(text.as_bytes());
        ids[0] = (hash >> 32) as u32;
        ids[1] = hash as u32;
        Ok(Tokens {
            ids,
            truncated: tokens > self.tokens_max,
        })
    }
}

struct Noise {
    dimension: usize,
}

impl Encoder for Noise {
    fn dimension(&self) -> usize {
        self.dimension
    }

    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
        Ok(texts
            .iter()
            .map(|text| noise(seed(&text.ids), self.dimension))
            .collect())
    }
}

fn seed(ids: &[u32]) -> u64 {
    ids.iter()
        .take(SPECIAL_TOKENS)
        .fold(0, |seed, &id| seed << 32 | u64::from(id))
}

/// Eight bytes a step, multiplied and folded as in wyhash: enough to tell texts apart, at the speed of memory.
fn hash(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let hash = chunks.iter().fold(bytes.len() as u64, |hash, &chunk| {
        fold(hash ^ u64::from_le_bytes(chunk), ODD)
    });
    fold(hash ^ u64::from_le_bytes(last), ODD)
}

/// Numbers in [-1, 1): 24 random bits each, two from a step of wyrand.
fn noise(seed: u64, dimension: usize) -> Vec<f32> {
    let mut state = seed;
    let mut vector = Vec::with_capacity(dimension + 1);
    while vector.len() < dimension {
        state = state.wrapping_add(0xa076_1d64_78bd_642f);
        let bits = fold(state, state ^ ODD);
        vector.extend(
            [bits as u32, (bits >> 32) as u32]
                .map(|bits| (bits >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0),
        );
    }
    vector.truncate(dimension);
    vector
}

const ODD: u64 = 0xe703_7ed1_a0b4_28db;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vectors(texts: &[&str], dimension: usize) -> Vec<Vec<f32>> {
        let tokens: Vec<_> = texts
            .iter()
            .map(|text| Counter { tokens_max: 256 }.tokenize(text).unwrap())
            .collect();
        Noise { dimension }.encode(&tokens).unwrap()
    }

    #[test]
    fn numbers_are_spread_evenly_over_their_range() {
        let numbers = noise(7, 100_000);
        let (sum, squares) = numbers
            .iter()
            .fold((0.0, 0.0), |(s, q), &x| (s + f64::from(x), q + f64::from(x * x)));
        assert!((sum / 1e5).abs() < 0.01, "mean {}", sum / 1e5);
        assert!(
            (squares / 1e5 - 1.0 / 3.0).abs() < 0.01,
            "mean square {}",
            squares / 1e5
        );
    }

    proptest! {
        #[test]
        fn a_text_has_one_vector_and_another_text_another(a in any::<String>(), b in any::<String>(), dimension in 4_usize..500) {
            let answers = vectors(&[&a, &b, &a], dimension);
            prop_assert!(answers.iter().all(|vector| vector.len() == dimension));
            prop_assert!(answers.iter().flatten().all(|x| (-1.0..1.0).contains(x)));
            prop_assert_eq!(&answers[0], &answers[2]);
            prop_assert_eq!(answers[0] == answers[1], a == b);
        }

        #[test]
        fn tokens_are_a_quarter_of_the_bytes_and_two_more(bytes in 0_usize..5_000, tokens_max in 2_usize..1_000) {
            let tokens = Counter { tokens_max }.tokenize(&"x".repeat(bytes)).unwrap();
            prop_assert_eq!(tokens.ids.len(), (bytes / 4 + 2).min(tokens_max));
            prop_assert_eq!(tokens.truncated, bytes / 4 + 2 > tokens_max);
        }
    }
}
