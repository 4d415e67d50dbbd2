//! The tokens of words, remembered.
//!
//! Nearly all of a text are words that were there before, and BERT's tokenizers cut a text at white space and punctuation before
//! all else: what stands between has the same tokens wherever it stands. So each such word is tokenized once, by the tokenizer
//! itself.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use tokenizers::{AddedToken, ModelWrapper, NormalizerWrapper, PreTokenizerWrapper};

/// Longer words are hardly ever seen twice.
const WORD_BYTES_MAX: usize = 32;
/// A language has this many words in use; they take some 10 MB. When there are more, all are forgotten, so that a flood of
/// made-up words does no harm for longer than it lasts.
const WORDS_MAX: usize = 65_536;
/// So many are remembered of one text, which may have any number of words without tokens.
const NEW_WORDS_MAX: usize = 1_000;

/// Words and their tokens, shared by the threads that tokenize. What a tenant sends decides the keys, so they are hashed
/// by the standard library's hasher, which cannot be foreseen.
pub(super) struct Words {
    known: RwLock<HashMap<Box<str>, Box<[u32]>>>,
    /// Added tokens with punctuation, where they stand in a text as they are.
    added: Vec<String>,
    /// Punctuation at which nothing is cut, since other added tokens may have it, or look at it.
    joining: Vec<char>,
}

impl Words {
    /// None where a word's tokens may depend on what stands beside it, as far as is known here.
    ///
    /// # Sources
    /// `BertNormalizer` changes each character by itself, or with its combining marks, of which white space and ASCII's punctuation have
    /// none; `BertPreTokenizer` cuts at both; and `WordPiece` looks at one piece of what was cut. Before that the `AddedVocabulary` looks for
    /// its tokens in all of a text.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<Self> {
        let by_word = matches!(
            tokenizer.get_normalizer(),
            Some(NormalizerWrapper::BertNormalizer(_))
        ) && matches!(
            tokenizer.get_pre_tokenizer(),
            Some(PreTokenizerWrapper::BertPreTokenizer(_))
        ) && matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_));
        let added: Vec<AddedToken> = tokenizer.get_added_tokens_decoder().into_values().collect();
        // Of other characters the normalizer may make punctuation.
        let reaches = |token: &AddedToken| {
            token.content.contains(char::is_whitespace) || (token.normalized && !token.content.is_ascii())
        };
        if !by_word || added.iter().any(reaches) {
            return None;
        }
        let (normalized, as_is): (Vec<_>, Vec<_>) = added.iter().partition(|token| token.normalized);
        let marks = normalized
            .iter()
            .flat_map(|token| token.content.chars().filter(|char| is_mark(*char)));
        // The one mark beside which a token that must stand alone does not.
        let beside = added.iter().any(|token| token.single_word).then_some('_');
        Some(Self {
            known: RwLock::default(),
            joining: marks.chain(beside).collect(),
            added: as_is
                .into_iter()
                .filter(|token| token.content.contains(is_mark))
                .map(|token| token.content.clone())
                .collect(),
        })
    }

    /// The tokens of `text` without special ones around it, or somewhat more than `tokens_max` of them from its beginning.
    /// `tokenize` is asked for those of a word that is not known.
    ///
    /// # Errors
    /// Those of `tokenize`.
    pub(super) fn tokenize<E>(
        &self,
        text: &str,
        tokens_max: usize,
        tokenize: impl Fn(&str) -> Result<Vec<u32>, E>,
    ) -> Result<Vec<u32>, E> {
        let mut ids = Vec::with_capacity(tokens_max.min(text.len() / 3));
        let mut new = Vec::new();
        let mut known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for word in self.cut(text) {
            if let Some(tokens) = known.get(word) {
                ids.extend_from_slice(tokens);
            } else {
                // A word may be as long as a text: nobody waits for it meanwhile.
                drop(known);
                let tokens = tokenize(word)?;
                ids.extend_from_slice(&tokens);
                if word.len() <= WORD_BYTES_MAX && new.len() < NEW_WORDS_MAX {
                    new.push((word, tokens));
                }
                known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            }
            if ids.len() > tokens_max {
                break;
            }
        }
        drop(known);
        if !new.is_empty() {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() + new.len() > WORDS_MAX {
                known.clear();
            }
            known.extend(new.into_iter().map(|(word, tokens)| (word.into(), tokens.into())));
        }
        Ok(ids)
    }

    /// The words of `text`, of which a punctuation mark is one.
    fn cut<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        // Not at the form feed, which `BertNormalizer` leaves out like other control characters.
        let stretches = text.split([' ', '\t', '\n', '\r']);
        stretches
            .flat_map(|stretch| {
                let cuts = stretch.contains(is_mark)
                    && !stretch.contains(self.joining.as_slice())
                    && !self.added.iter().any(|token| stretch.contains(token));
                let is_cut_at = move |char| cuts && is_mark(char);
                stretch.split_inclusive(is_cut_at).flat_map(move |part| {
                    let mark_bytes = usize::from(part.ends_with(is_cut_at));
                    let (word, mark) = part.split_at(part.len() - mark_bytes);
                    [word, mark]
                })
            })
            .filter(|word| !word.is_empty())
    }
}

fn is_mark(char: char) -> bool {
    char.is_ascii_punctuation()
}
