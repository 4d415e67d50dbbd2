//! The encoder of the BERT family, on candle: all-MiniLM, BGE, E5, GTE in their first generations.
//!
//! Ported from the reference (<https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/bert/modeling_bert.py>),
//! and ours rather than that of candle-transformers, whose two hundred models cost minutes of build.
//!
//! Texts are packed, not padded: the tokens of a micro-batch stand one after the other in one matrix, through which all
//! dense layers go at once, and attention takes each run of equally long texts by itself. So there is no padding that
//! could leak or cost anything, and no mask.

use std::path::Path;

use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, ops::softmax_last_dim};
use serde::Deserialize;

use super::Fault;

/// The hub's `config.json`, as far as it decides the answers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Config {
    model_type: String,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    hidden_act: String,
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    pub(super) layer_norm_eps: f64,
    #[serde(default)]
    position_embedding_type: PositionEmbedding,
    #[serde(default)]
    is_decoder: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(transparent)]
struct PositionEmbedding(String);

impl Default for PositionEmbedding {
    fn default() -> Self {
        Self("absolute".to_owned())
    }
}

impl Config {
    /// Whether this build runs such a model. `path` is for the fault.
    pub(super) fn check(&self, path: &Path) -> std::result::Result<(), Fault> {
        let unsupported = |field, found: &str, supported| {
            Err(Fault::Unsupported {
                path: path.to_owned(),
                field,
                found: format!("`{found}`"),
                supported,
            })
        };
        if self.model_type != "bert" {
            return unsupported("model_type", &self.model_type, "`bert`");
        }
        if self.position_embedding_type.0 != "absolute" {
            return unsupported(
                "position_embedding_type",
                &self.position_embedding_type.0,
                "`absolute`",
            );
        }
        if self.is_decoder {
            return unsupported("is_decoder", "true", "`false`");
        }
        if Activation::named(&self.hidden_act).is_none() {
            return unsupported("hidden_act", &self.hidden_act, Activation::NAMES);
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let (width, heads) = (self.hidden_size, self.num_attention_heads);
            let problem =
                format!("has hidden_size {width}, which num_attention_heads {heads} does not divide");
            return Err(Fault::Malformed {
                path: path.to_owned(),
                problem,
            });
        }
        Ok(())
    }

    /// What stands between the two layers of the feed-forward part, of a configuration that was checked.
    pub(super) fn activation(&self) -> Activation {
        Activation::named(&self.hidden_act).expect("the configuration was checked")
    }
}

/// The texts of a micro-batch that stand side by side and have the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The row of its first token.
    pub(super) start: usize,
    /// Its texts.
    pub(super) texts: usize,
    /// The tokens of each.
    pub(super) tokens: usize,
}

impl Run {
    /// The runs of texts with these lengths, in their order.
    pub(super) fn of(lengths: impl IntoIterator<Item = usize>) -> Vec<Self> {
        let mut runs: Vec<Self> = Vec::new();
        for tokens in lengths {
            match runs.last_mut() {
                Some(run) if run.tokens == tokens => run.texts += 1,
                last => {
                    let start = last.map_or(0, |run| run.start + run.rows());
                    runs.push(Self {
                        start,
                        texts: 1,
                        tokens,
                    });
                }
            }
        }
        runs
    }

    fn rows(self) -> usize {
        self.texts * self.tokens
    }

    /// Its rows of `packed`, (tokens of the micro-batch, width), as (texts, tokens, width).
    pub(super) fn of_packed(self, packed: &Tensor) -> Result<Tensor> {
        packed
            .narrow(0, self.start, self.rows())?
            .reshape((self.texts, self.tokens, ()))
    }
}

/// An encoder with its weights.
pub(super) struct Bert {
    pub(super) embeddings: Embeddings,
    pub(super) layers: Vec<Layer>,
}

impl Bert {
    /// Takes the weights out of `vb`. `config` is checked.
    pub(super) fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let vb = root(vb);
        let layers = vb.pp("encoder").pp("layer");
        Ok(Self {
            embeddings: Embeddings::load(config, &vb.pp("embeddings"))?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load(config, &layers.pp(layer)))
                .collect::<Result<_>>()?,
        })
    }

    /// The vectors of all tokens, (tokens, hidden_size). `ids` and `positions` are (tokens); `runs` cover them.
    pub(super) fn forward(&self, ids: &Tensor, positions: &Tensor, runs: &[Run]) -> Result<Tensor> {
        let hidden = self.embeddings.forward(ids, positions)?;
        self.layers
            .iter()
            .try_fold(hidden, |hidden, layer| layer.forward(&hidden, runs))
    }
}

pub(super) struct Embeddings {
    pub(super) words: Tensor,
    /// Each position's vector plus that of the first segment, which is the only one: a text has no second part.
    pub(super) positions: Tensor,
    pub(super) norm: LayerNorm,
}

impl Embeddings {
    fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let table = |rows: usize, name: &str| vb.pp(name).get((rows, width), "weight");
        let segments = table(config.type_vocab_size, "token_type_embeddings")?;
        let positions = table(config.max_position_embeddings, "position_embeddings")?;
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions: positions.broadcast_add(&segments.narrow(0, 0, 1)?)?,
            norm: norm(config, &vb.pp("LayerNorm"))?,
        })
    }

    fn forward(&self, ids: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let words = self.words.index_select(ids, 0)?;
        self.norm
            .forward(&(words + self.positions.index_select(positions, 0)?)?)
    }
}

pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) attention_norm: LayerNorm,
    pub(super) intermediate: Linear,
    activation: Activation,
    pub(super) output: Linear,
    pub(super) output_norm: LayerNorm,
}

impl Layer {
    fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            attention: Attention::load(config, &vb.pp("attention"))?,
            attention_norm: norm(config, &vb.pp("attention").pp("output").pp("LayerNorm"))?,
            intermediate: linear(width, inner, &vb.pp("intermediate").pp("dense"))?,
            activation: config.activation(),
            output: linear(inner, width, &vb.pp("output").pp("dense"))?,
            output_norm: norm(config, &vb.pp("output").pp("LayerNorm"))?,
        })
    }

    fn forward(&self, hidden: &Tensor, runs: &[Run]) -> Result<Tensor> {
        let hidden = self
            .attention_norm
            .forward(&(self.attention.forward(hidden, runs)? + hidden)?)?;
        let inner = self.activation.apply(&self.intermediate.forward(&hidden)?)?;
        self.output_norm
            .forward(&(self.output.forward(&inner)? + hidden)?)
    }
}

pub(super) struct Attention {
    /// Query, key and value in one product; the query's part has the scale of the scores in it.
    pub(super) query_key_value: Linear,
    pub(super) output: Linear,
    heads: usize,
}

impl Attention {
    fn load(config: &Config, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let scale = 1.0 / ((width / config.num_attention_heads) as f64).sqrt();
        let part = |name: &str| linear(width, width, &vb.pp("self").pp(name));
        let (query, key, value) = (part("query")?, part("key")?, part("value")?);
        let joined =
            |of: fn(&Linear) -> &Tensor| Tensor::cat(&[&(of(&query) * scale)?, of(&key), of(&value)], 0);
        let bias = joined(|linear| linear.bias().expect("every linear layer of BERT has a bias"))?;
        Ok(Self {
            query_key_value: Linear::new(joined(Linear::weight)?, Some(bias)),
            output: linear(width, width, &vb.pp("output").pp("dense"))?,
            heads: config.num_attention_heads,
        })
    }

    fn forward(&self, hidden: &Tensor, runs: &[Run]) -> Result<Tensor> {
        let query_key_value = self.query_key_value.forward(hidden)?;
        let contexts = runs
            .iter()
            .map(|run| self.attend(&run.of_packed(&query_key_value)?))
            .collect::<Result<Vec<_>>>()?;
        self.output.forward(&Tensor::cat(&contexts, 0)?)
    }

    /// From (texts, tokens, 3 * width) to (texts * tokens, width).
    fn attend(&self, query_key_value: &Tensor) -> Result<Tensor> {
        let (texts, tokens, columns) = query_key_value.dims3()?;
        let split = query_key_value
            .reshape((texts, tokens, 3, self.heads, ()))?
            .permute((2, 0, 3, 1, 4))?
            .contiguous()?
            .flatten(1, 2)?;
        let (query, key, value) = (split.get(0)?, split.get(1)?, split.get(2)?);
        let weights = softmax_last_dim(&query.matmul(&key.t()?)?)?;
        weights
            .matmul(&value)?
            .reshape((texts, self.heads, tokens, ()))?
            .transpose(1, 2)?
            .reshape((texts * tokens, columns / 3))
    }
}

/// What stands between the two layers of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Gelu,
    GeluTanh,
    Relu,
}

impl Activation {
    const NAMES: &str = "`gelu`, `gelu_new`, `gelu_pytorch_tanh` and `relu`";

    fn named(name: &str) -> Option<Self> {
        match name {
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::GeluTanh),
            "relu" => Some(Self::Relu),
            _ => None,
        }
    }

    fn apply(self, inner: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => inner.gelu_erf(),
            Self::GeluTanh => inner.gelu(),
            Self::Relu => inner.relu(),
        }
    }
}

/// Where the weights begin: under `bert.`, or not.
pub(super) fn root<'a>(vb: &VarBuilder<'a>) -> VarBuilder<'a> {
    if vb.contains_tensor("bert.embeddings.word_embeddings.weight") {
        vb.pp("bert")
    } else {
        vb.clone()
    }
}

fn linear(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Linear> {
    Ok(Linear::new(
        vb.get((outputs, inputs), "weight")?,
        Some(vb.get(outputs, "bias")?),
    ))
}

/// The oldest checkpoints call weight and bias of a layer norm gamma and beta.
pub(super) fn norm_names(vb: &VarBuilder) -> (&'static str, &'static str) {
    if vb.contains_tensor("gamma") {
        ("gamma", "beta")
    } else {
        ("weight", "bias")
    }
}

fn norm(config: &Config, vb: &VarBuilder) -> Result<LayerNorm> {
    let (weight, bias) = norm_names(vb);
    let width = config.hidden_size;
    Ok(LayerNorm::new(
        vb.get(width, weight)?,
        vb.get(width, bias)?,
        config.layer_norm_eps,
    ))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(changes: &[(&str, serde_json::Value)]) -> Config {
        let mut config = serde_json::json!({
            "model_type": "bert", "vocab_size": 9, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3,
            "intermediate_size": 8, "hidden_act": "gelu", "max_position_embeddings": 4, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "some_key_of_next_year": true,
        });
        for (field, value) in changes {
            config[*field] = value.clone();
        }
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn a_model_that_we_do_not_run_is_refused_by_its_field() {
        assert!(config(&[]).check(Path::new("c")).is_ok());
        for (field, value, complaint) in [
            (
                "model_type",
                "xlm-roberta".into(),
                "has model_type `xlm-roberta`, and this build runs only `bert`",
            ),
            (
                "position_embedding_type",
                "relative_key".into(),
                "has position_embedding_type `relative_key`",
            ),
            ("is_decoder", true.into(), "has is_decoder `true`"),
            ("hidden_act", "silu".into(), "has hidden_act `silu`"),
            (
                "num_attention_heads",
                5.into(),
                "has hidden_size 12, which num_attention_heads 5 does not divide",
            ),
            ("num_attention_heads", 0.into(), "num_attention_heads 0"),
        ] {
            let fault = config(&[(field, value)])
                .check(Path::new("c"))
                .unwrap_err()
                .to_string();
            assert!(fault.contains(complaint), "{fault}");
        }
    }

    proptest! {
        #[test]
        fn runs_cover_every_token_once_and_in_order(lengths in prop::collection::vec(1_usize..4, 0..30)) {
            let runs = Run::of(lengths.iter().copied());
            let mut row = 0;
            for run in &runs {
                prop_assert_eq!(run.start, row);
                row += run.rows();
            }
            let again: Vec<_> = runs.iter().flat_map(|run| std::iter::repeat_n(run.tokens, run.texts)).collect();
            prop_assert_eq!(again, lengths);
            prop_assert!(runs.windows(2).all(|pair| pair[0].tokens != pair[1].tokens));
        }
    }
}
