//! The tokenizer of a model's folder.

use serde::{Deserialize, de::DeserializeOwned};
use tokenizers::{
    TruncationDirection, TruncationParams, TruncationStrategy,
    normalizers::{Lowercase, Sequence},
};

use super::{
    Fault, TokenizeError, Tokenizer, Tokens, bert,
    folder::{File, Files},
};

/// A tokenizer as the hub's `tokenizer.json` describes it.
pub(super) struct HubTokenizer {
    inner: tokenizers::Tokenizer,
    tokens_max: usize,
}

/// What `sentence_bert_config.json` may say.
#[derive(Default, Deserialize)]
struct Sentence {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// What `tokenizer_config.json` may say. A model without a window has 1e30 here.
#[derive(Default, Deserialize)]
struct Window {
    model_max_length: Option<f64>,
}

/// What `config_sentence_transformers.json` may say.
#[derive(Default, Deserialize)]
struct Prompts {
    default_prompt_name: Option<String>,
}

impl HubTokenizer {
    /// `tokens_max` narrows the model's own window, which is what sentence-transformers takes: `max_seq_length`, else
    /// `model_max_length`, and never more than there are positions.
    pub(super) fn new(files: &Files, bert: &bert::Config, tokens_max: Option<usize>) -> Result<Self, Fault> {
        let sentence = optional::<Sentence>(files.sentence.as_ref())?;
        let stated = match sentence.max_seq_length {
            Some(tokens) => tokens,
            None => optional::<Window>(files.tokenizer_config.as_ref())?
                .model_max_length
                .unwrap_or(f64::MAX) as usize,
        };
        refuse_prompts(files)?;
        let window = stated.min(bert.max_position_embeddings);
        Self::with_window(
            files,
            bert,
            sentence.do_lower_case,
            tokens_max.map_or(window, |tokens| tokens.min(window)),
        )
    }

    fn with_window(
        files: &Files,
        bert: &bert::Config,
        lower_case: bool,
        tokens_max: usize,
    ) -> Result<Self, Fault> {
        let file = &files.tokenizer;
        let mut inner = tokenizers::Tokenizer::from_bytes(&file.bytes)
            .map_err(|error| file.malformed(format!("is no tokenizer: {error}")))?;
        if inner.get_vocab_size(true) > bert.vocab_size {
            let (words, rows) = (inner.get_vocab_size(true), bert.vocab_size);
            return Err(file.malformed(format!("has {words} words, and the model has vectors for {rows}")));
        }
        if lower_case {
            lower_first(&mut inner);
        }
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .expect("no truncation is always possible");
        let empty = inner
            .encode_fast("", true)
            .map_err(|error| file.malformed(format!("cannot read an empty text: {error}")))?;
        let special = empty.len();
        if special == 0 {
            return Err(
                file.malformed("adds no special tokens, so that a text could have none at all".to_owned())
            );
        }
        if tokens_max <= special {
            let problem = format!(
                "tokens_max {tokens_max} leaves no room beside {special} special tokens: allow at least {}",
                special + 1
            );
            return Err(Fault::Setting { problem });
        }
        inner
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: tokens_max,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .expect("the window has room beside the special tokens");
        Ok(Self { inner, tokens_max })
    }

    /// The model's window, special tokens included.
    pub(super) fn tokens_max(&self) -> usize {
        self.tokens_max
    }
}

impl Tokenizer for HubTokenizer {
    fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError> {
        let encoding = self
            .inner
            .encode_fast(text, true)
            .map_err(|error| TokenizeError {
                message: error.to_string(),
            })?;
        Ok(Tokens {
            ids: encoding.get_ids().to_vec(),
            truncated: !encoding.get_overflowing().is_empty(),
        })
    }
}

/// Lowers letters before all else, but not those of a special token such as `[MASK]`.
fn lower_first(inner: &mut tokenizers::Tokenizer) {
    let then = inner.get_normalizer().cloned();
    let steps = [Some(Lowercase.into()), then].into_iter().flatten().collect();
    inner
        .with_normalizer(Some(Sequence::new(steps)))
        .expect("lowering letters touches no special token");
}

/// A default prompt would change every answer, and the pooling may have to leave it out again.
fn refuse_prompts(files: &Files) -> Result<(), Fault> {
    let Some(file) = &files.prompts else { return Ok(()) };
    match file.json::<Prompts>()?.default_prompt_name {
        None => Ok(()),
        Some(name) => Err(Fault::Unsupported {
            path: file.path.clone(),
            field: "default_prompt_name",
            found: format!("`{name}`"),
            supported: "models without a default prompt: set it to null and let the jobs bring the prompt",
        }),
    }
}

fn optional<T: Default + DeserializeOwned>(file: Option<&File>) -> Result<T, Fault> {
    file.map_or_else(|| Ok(T::default()), File::json)
}
