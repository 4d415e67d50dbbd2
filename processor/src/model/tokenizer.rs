//! The tokenizer of a model's folder.

use serde::{Deserialize, de::DeserializeOwned};
use tokenizers::{
    Encoding, TruncationDirection, TruncationParams, TruncationStrategy,
    normalizers::{Lowercase, Sequence},
};

use super::{
    Fault, TokenizeError, Tokenizer, Tokens, bert,
    folder::{File, Files},
    words::Words,
};

/// A tokenizer as the hub's `tokenizer.json` describes it.
pub(super) struct HubTokenizer {
    inner: tokenizers::Tokenizer,
    tokens_max: usize,
    /// None where a text has to be tokenized as a whole.
    by_word: Option<ByWord>,
}

/// A text's tokens are those of its words, between the special ones.
struct ByWord {
    words: Words,
    before: Vec<u32>,
    after: Vec<u32>,
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
        let words = Words::of(&inner);
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
        Ok(Self::cut(inner, words, tokens_max))
    }

    /// One that cuts a text to `tokens_max`, and tokenizes it by its `words` where it has them.
    fn cut(mut inner: tokenizers::Tokenizer, words: Option<Words>, tokens_max: usize) -> Self {
        inner
            .with_truncation(Some(TruncationParams {
                direction: TruncationDirection::Right,
                max_length: tokens_max,
                strategy: TruncationStrategy::LongestFirst,
                stride: 0,
            }))
            .expect("the window has room beside the special tokens");
        let by_word = words.and_then(|words| ByWord::new(words, &inner));
        Self {
            inner,
            tokens_max,
            by_word,
        }
    }

    /// The model's window, special tokens included.
    pub(super) fn tokens_max(&self) -> usize {
        self.tokens_max
    }
}

impl Tokenizer for HubTokenizer {
    fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError> {
        let Some(ByWord { words, before, after }) = &self.by_word else {
            let encoding = encode(&self.inner, text, true)?;
            return Ok(Tokens {
                truncated: !encoding.get_overflowing().is_empty(),
                ids: encoding.get_ids().to_vec(),
            });
        };
        let room = self.tokens_max - before.len() - after.len();
        let of_word =
            |word: &str| encode(&self.inner, word, false).map(|encoding| encoding.get_ids().to_vec());
        let of_text = words.tokenize(text, room, of_word)?;
        let read = &of_text[..of_text.len().min(room)];
        Ok(Tokens {
            truncated: read.len() < of_text.len(),
            ids: [before.as_slice(), read, after].concat(),
        })
    }
}

impl ByWord {
    /// None where special tokens do not just stand around a text's own.
    fn new(words: Words, inner: &tokenizers::Tokenizer) -> Option<Self> {
        let ids = |text, special| encode(inner, text, special).map(|encoding| encoding.get_ids().to_vec());
        let (whole, own, none) = (ids("a", true).ok()?, ids("a", false).ok()?, ids("", true).ok()?);
        let begin = whole.windows(own.len()).position(|ids| ids == own)?;
        let (before, after) = (&whole[..begin], &whole[begin + own.len()..]);
        ([before, after].concat() == none).then(|| Self {
            words,
            before: before.to_vec(),
            after: after.to_vec(),
        })
    }
}

fn encode(inner: &tokenizers::Tokenizer, text: &str, special: bool) -> Result<Encoding, TokenizeError> {
    inner.encode_fast(text, special).map_err(|error| TokenizeError {
        message: error.to_string(),
    })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// One of BERT's, whose normalizer does what the letters among `does` say.
    fn bert(does: [bool; 4]) -> tokenizers::Tokenizer {
        let [clean_text, handle_chinese_chars, strip_accents, lowercase] = does;
        let special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "<x>", "A"];
        let words = [
            "a", "##a", "##A", "e", "##e", "é", "##é", "s", "water", "##x", "x", "水", "(", "##́", "¨",
        ];
        let vocabulary: serde_json::Map<_, _> = (0..)
            .zip(special.iter().chain(&words))
            .map(|(id, &word)| (word.to_owned(), json!(id)))
            .collect();
        let added: Vec<_> = (0..)
            .zip(special)
            .map(|(id, content)| {
                json!({ "id": id, "content": content, "single_word": content == "A", "lstrip": content == "[MASK]",
                    "rstrip": content == "<x>", "normalized": content == "<x>", "special": true })
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": { "type": "BertNormalizer", "clean_text": clean_text, "handle_chinese_chars": handle_chinese_chars,
                "strip_accents": strip_accents, "lowercase": lowercase },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": { "type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2] },
            "decoder": null,
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocabulary },
        });
        tokenizers::Tokenizer::from_bytes(tokenizer.to_string()).unwrap()
    }

    fn piece() -> impl Strategy<Value = String> {
        let known = [
            "a", "A", "e", "é", "e\u{301}", "\u{301}", "Σ", "ß", "water", "水", "(", "'", "_", "-", "#",
            "##a", "¨", "[MASK]", "[mask]", "[CLS]", "<x>", "\0", "\u{fffd}", "\u{200b}", " ", " ", "\t",
            "\n", "\r", "\u{b}", "\u{c}", "\u{85}", "\u{a0}", "\u{3000}",
        ];
        prop_oneof![
            20 => prop::sample::select(known.to_vec()).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
            1 => Just("x".repeat(101)),
        ]
    }

    proptest! {
        #[test]
        fn a_text_has_the_tokens_by_its_words_that_it_has_as_a_whole(
            does in any::<[bool; 4]>(),
            lower in any::<bool>(),
            tokens_max in 3_usize..40,
            texts in prop::collection::vec(prop::collection::vec(piece(), 0..30).prop_map(|pieces| pieces.concat()), 4),
        ) {
            let mut inner = bert(does);
            let words = Words::of(&inner);
            prop_assert!(words.is_some());
            if lower {
                lower_first(&mut inner);
            }
            let by_word = HubTokenizer::cut(inner.clone(), words, tokens_max);
            prop_assert!(by_word.by_word.is_some());
            let whole = HubTokenizer::cut(inner, None, tokens_max);
            for text in texts.iter().chain(&texts) {
                prop_assert_eq!(by_word.tokenize(text), whole.tokenize(text), "{:?}", text);
            }
        }
    }

    #[test]
    fn a_text_is_tokenized_as_a_whole_where_words_could_look_beyond_themselves() {
        let mut reaching = bert([true; 4]);
        assert!(Words::of(&reaching).is_some());
        let two_words = tokenizers::AddedToken::from("a e", true);
        reaching.add_special_tokens([two_words]).unwrap();
        assert!(Words::of(&reaching).is_none());
        let mut uncut = bert([true; 4]);
        uncut.with_pre_tokenizer(None::<tokenizers::PreTokenizerWrapper>);
        assert!(Words::of(&uncut).is_none());
    }
}
