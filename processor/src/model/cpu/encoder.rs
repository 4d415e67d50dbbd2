//! The encoder that runs on kernels of our own: all tokens of a micro-batch are rows of one matrix, and only attention
//! knows where a text begins.
//!
//! A row's numbers depend on its text alone, bit for bit: each is a sum over the same terms in the same order, whichever
//! rows are beside it.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::{
    super::{
        EncodeError, Encoder, Tokens,
        bert::{self, Activation},
        encoder::{check, finite},
        pooling::Pooling,
    },
    attention::{Attention, Heads, Scratch},
    epilogue::{Activate, Bias, Norm, Normalise, Residual},
    format::{Format, Plain},
    kernel::{Multiply, Product},
    matrix::Matrix,
    operand::{Operand, Settle},
    panels::{PADDING, Panels},
};

/// An encoder of the BERT family with its pooling, its dense layers in one format and attention in another or the same.
pub(super) struct CpuEncoder<F, A> {
    format: F,
    attention_format: A,
    config: bert::Config,
    pooling: Pooling,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    heads: Heads,
    /// Room of micro-batches that are done, for those to come: to touch memory for the first time costs much.
    idle: Mutex<Vec<Workspace>>,
}

struct Embeddings {
    words: Vec<f32>,
    /// Each position's vector plus that of the first segment, which is the only one: a text has no second part.
    positions: Vec<f32>,
    norm: Norm,
}

struct Layer {
    query_key_value: Dense,
    attention_output: Dense,
    attention_norm: Norm,
    intermediate: Dense,
    activation: Activation,
    output: Dense,
    output_norm: Norm,
}

struct Dense {
    weights: Panels,
    /// One for each column, those of zeros that fill the last panels included.
    bias: Vec<f32>,
}

/// What is written down of a micro-batch.
struct Workspace {
    /// A row for each token of the micro-batch, to add to …
    hidden: Matrix<f32>,
    /// … and the same to multiply.
    hidden_operand: Operand,
    /// A row for each token of a group of texts …
    query_key_value: Matrix<f32>,
    context: Operand,
    /// … and for some of them, that stay in the cache.
    inner: Operand,
    scratch: Scratch,
}

/// Texts go through a layer in groups of at least so many tokens, so that what one step writes is in the cache for the next.
const GROUP_TOKENS: usize = 168;
/// So many go through the feed-forward part at once.
const FEED_FORWARD_TOKENS: usize = 84;

impl<F: Multiply, A: Plain + Multiply<Isa = F::Isa>> CpuEncoder<F, A> {
    /// Takes the weights out of `vb`, in 32 bits on the CPU. `config` is checked.
    pub(super) fn load(
        format: F,
        attention_format: A,
        config: &bert::Config,
        pooling: Pooling,
        vb: &VarBuilder,
    ) -> Result<Self> {
        let vb = bert::root(vb);
        let layers = vb.pp("encoder").pp("layer");
        Ok(Self {
            format,
            attention_format,
            embeddings: Embeddings::load(config, &vb.pp("embeddings"))?,
            layers: (0..config.num_hidden_layers)
                .map(|layer| Layer::load::<F>(config, &layers.pp(layer)))
                .collect::<Result<_>>()?,
            heads: Heads {
                count: config.num_attention_heads,
                width: config.hidden_size / config.num_attention_heads,
            },
            config: config.clone(),
            pooling,
            idle: Mutex::new(Vec::new()),
        })
    }

    fn run(&self, texts: &[Tokens]) -> Vec<Vec<f32>> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut workspace = idle().pop().unwrap_or_else(|| Workspace::new::<F>(&self.config));
        let tokens = texts.iter().map(|text| text.ids.len()).sum();
        workspace.hidden.reserve_rows(tokens);
        workspace.hidden_operand.reserve_rows(tokens);
        self.embed(texts, &mut workspace);
        let groups = groups(texts);
        for layer in &self.layers {
            for group in &groups {
                self.layer(layer, group, &mut workspace);
            }
        }
        let mut first = 0;
        let pooled = texts.iter().map(|text| {
            let rows = first..first + text.ids.len();
            first = rows.end;
            let rows = rows.map(|row| &workspace.hidden.row(row)[..self.config.hidden_size]);
            self.pooling.pool_rows(&rows)
        });
        let pooled = pooled.collect();
        idle().push(workspace);
        pooled
    }

    fn embed(&self, texts: &[Tokens], workspace: &mut Workspace) {
        let (width, hidden) = (self.config.hidden_size, &mut workspace.hidden);
        let tokens = texts.iter().flat_map(|text| text.ids.iter().enumerate());
        let mut count = 0;
        for (row, (position, &id)) in tokens.enumerate() {
            let word = &self.embeddings.words[id as usize * width..][..width];
            let position = &self.embeddings.positions[position * width..][..width];
            let (numbers, padding) = hidden.row_mut(row).split_at_mut(width);
            for ((to, word), position) in numbers.iter_mut().zip(word).zip(position) {
                *to = word + position;
            }
            padding.fill(0.0);
            count = row + 1;
        }
        self.normalise(
            hidden,
            &mut workspace.hidden_operand,
            0..count,
            &self.embeddings.norm,
        );
    }

    fn layer(&self, layer: &Layer, group: &[Range<usize>], workspace: &mut Workspace) {
        let Workspace {
            hidden,
            hidden_operand,
            query_key_value,
            context,
            inner,
            scratch,
        } = workspace;
        let rows = group[0].start..group[group.len() - 1].end;
        query_key_value.reserve_rows(rows.len());
        context.reserve_rows(rows.len());

        let stride = query_key_value.stride();
        self.format.vectorize(Product {
            format: self.format,
            rows: hidden_operand.rows(rows.clone()),
            columns: layer.query_key_value.weights.view(),
            epilogue: Bias {
                bias: &layer.query_key_value.bias,
                to: query_key_value.all_mut(),
                stride,
            },
        });
        for text in group {
            let of_group = text.start - rows.start..text.end - rows.start;
            let to = context.rows_mut(of_group.clone());
            self.attention_format.vectorize(Attention {
                format: self.attention_format,
                heads: self.heads,
                query_key_value: &query_key_value.all()[of_group.start * stride..of_group.end * stride],
                stride,
                tokens: text.len(),
                context_format: self.format,
                context: to.words,
                context_stride: to.stride,
                scratch,
            });
        }
        self.settle(context, 0..rows.len(), self.config.hidden_size);
        self.add(&layer.attention_output, context, hidden, rows.clone());
        self.normalise(hidden, hidden_operand, rows.clone(), &layer.attention_norm);

        for first in rows.clone().step_by(FEED_FORWARD_TOKENS) {
            let rows = first..rows.end.min(first + FEED_FORWARD_TOKENS);
            inner.reserve_rows(rows.len());
            self.format.vectorize(Product {
                format: self.format,
                rows: hidden_operand.rows(rows.clone()),
                columns: layer.intermediate.weights.view(),
                epilogue: Activate {
                    bias: &layer.intermediate.bias,
                    activation: layer.activation,
                    format: self.format,
                    to: inner.rows_mut(0..rows.len()),
                },
            });
            self.settle(inner, 0..rows.len(), self.config.intermediate_size);
            self.add(&layer.output, inner, hidden, rows.clone());
            self.normalise(hidden, hidden_operand, rows, &layer.output_norm);
        }
    }

    /// Makes words of `rows` of `operand`, whose `columns` are written.
    fn settle(&self, operand: &mut Operand, rows: Range<usize>, columns: usize) {
        self.format.vectorize(Settle {
            format: self.format,
            columns: columns.next_multiple_of(PADDING),
            rows: operand.rows_mut(rows),
        });
    }

    /// Adds what `dense` makes of the first rows of `operand` to `rows` of `hidden`.
    fn add(&self, dense: &Dense, operand: &Operand, hidden: &mut Matrix<f32>, rows: Range<usize>) {
        let stride = hidden.stride();
        let epilogue = Residual {
            bias: &dense.bias,
            to: &mut hidden.all_mut()[rows.start * stride..],
            stride,
        };
        self.format.vectorize(Product {
            format: self.format,
            rows: operand.rows(0..rows.len()),
            columns: dense.weights.view(),
            epilogue,
        });
    }

    fn normalise(&self, hidden: &mut Matrix<f32>, operand: &mut Operand, rows: Range<usize>, norm: &Norm) {
        let stride = hidden.stride();
        self.format.vectorize(Normalise {
            format: self.format,
            rows: &mut hidden.all_mut()[rows.start * stride..rows.end * stride],
            stride,
            to: operand.rows_mut(rows),
            norm,
        });
    }
}

impl<F: Multiply, A: Plain + Multiply<Isa = F::Isa>> Encoder for CpuEncoder<F, A> {
    fn dimension(&self) -> usize {
        self.pooling.dimension(self.config.hidden_size)
    }

    fn encode(&self, texts: &[Tokens]) -> std::result::Result<Vec<Vec<f32>>, EncodeError> {
        check(&self.config, texts)?;
        finite(self.run(texts))
    }
}

/// The rows of each text, in groups of at least [`GROUP_TOKENS`].
fn groups(texts: &[Tokens]) -> Vec<Vec<Range<usize>>> {
    let (mut groups, mut group, mut row) = (Vec::new(), Vec::<Range<usize>>::new(), 0);
    for text in texts {
        group.push(row..row + text.ids.len());
        row += text.ids.len();
        if row - group[0].start >= GROUP_TOKENS {
            groups.push(std::mem::take(&mut group));
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

impl Workspace {
    fn new<F: Format>(config: &bert::Config) -> Self {
        let padded = |columns: usize| columns.next_multiple_of(PADDING);
        let width = padded(config.hidden_size);
        Self {
            hidden: Matrix::new(width),
            hidden_operand: Operand::new::<F>(width),
            query_key_value: Matrix::new(padded(3 * config.hidden_size)),
            context: Operand::new::<F>(width),
            inner: Operand::new::<F>(padded(config.intermediate_size)),
            scratch: Scratch::new(),
        }
    }
}

impl Embeddings {
    fn load(config: &bert::Config, vb: &VarBuilder) -> Result<Self> {
        let width = config.hidden_size;
        let table = |rows: usize, name: &str| numbers(&vb.pp(name).get((rows, width), "weight")?);
        let segments = table(config.type_vocab_size, "token_type_embeddings")?;
        let mut positions = table(config.max_position_embeddings, "position_embeddings")?;
        for position in positions.chunks_exact_mut(width) {
            position
                .iter_mut()
                .zip(&segments)
                .for_each(|(to, segment)| *to += segment);
        }
        Ok(Self {
            words: table(config.vocab_size, "word_embeddings")?,
            positions,
            norm: norm(config, &vb.pp("LayerNorm"))?,
        })
    }
}

impl Layer {
    fn load<F: Format>(config: &bert::Config, vb: &VarBuilder) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let attention = vb.pp("attention");
        Ok(Self {
            query_key_value: query_key_value::<F>(config, &attention.pp("self"))?,
            attention_output: dense::<F>(width, width, &attention.pp("output").pp("dense"))?,
            attention_norm: norm(config, &attention.pp("output").pp("LayerNorm"))?,
            intermediate: dense::<F>(width, inner, &vb.pp("intermediate").pp("dense"))?,
            activation: config.activation(),
            output: dense::<F>(inner, width, &vb.pp("output").pp("dense"))?,
            output_norm: norm(config, &vb.pp("output").pp("LayerNorm"))?,
        })
    }
}

impl Dense {
    fn new<F: Format>(weights: &[f32], mut bias: Vec<f32>, inputs: usize) -> Self {
        let weights = Panels::of_weights::<F>(weights, inputs);
        bias.resize(weights.columns, 0.0);
        Self { weights, bias }
    }
}

fn dense<F: Format>(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Dense> {
    let weights = numbers(&vb.get((outputs, inputs), "weight")?)?;
    Ok(Dense::new::<F>(
        &weights,
        numbers(&vb.get(outputs, "bias")?)?,
        inputs,
    ))
}

/// Query, key and value in one product; the query's part has the scale of the scores in it.
fn query_key_value<F: Format>(config: &bert::Config, vb: &VarBuilder) -> Result<Dense> {
    let width = config.hidden_size;
    let scale = 1.0 / ((width / config.num_attention_heads) as f32).sqrt();
    let (mut weights, mut bias) = (
        Vec::with_capacity(3 * width * width),
        Vec::with_capacity(3 * width),
    );
    for (name, scale) in [("query", scale), ("key", 1.0), ("value", 1.0)] {
        let vb = vb.pp(name);
        weights.extend(
            numbers(&vb.get((width, width), "weight")?)?
                .iter()
                .map(|weight| weight * scale),
        );
        bias.extend(numbers(&vb.get(width, "bias")?)?.iter().map(|bias| bias * scale));
    }
    Ok(Dense::new::<F>(&weights, bias, width))
}

fn norm(config: &bert::Config, vb: &VarBuilder) -> Result<Norm> {
    let (weight, bias) = bert::norm_names(vb);
    let width = config.hidden_size;
    let filled = |name: &str| -> Result<Vec<f32>> {
        let mut numbers = numbers(&vb.get(width, name)?)?;
        numbers.resize(width.next_multiple_of(PADDING), 0.0);
        Ok(numbers)
    };
    Ok(Norm {
        weight: filled(weight)?,
        bias: filled(bias)?,
        width,
        epsilon: config.layer_norm_eps as f32,
    })
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
