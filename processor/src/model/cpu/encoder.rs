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
    format::{Format, RowScale},
    isa::Work,
    kernel::{Product, Rows},
    matrix::Matrix,
    panels::{PADDING, Panels},
};

/// An encoder of the BERT family with its pooling, in one format.
pub(super) struct CpuEncoder<F> {
    format: F,
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
    /// A row for each token of the micro-batch.
    hidden: Matrix<f32>,
    /// A row for each token of a group of texts …
    query_key_value: Matrix<f32>,
    context: Matrix<f32>,
    /// … and for some of them, that stay in the cache.
    inner: Matrix<f32>,
    operand: Operand,
    scratch: Scratch,
}

/// The left side of a product, in a format.
struct Operand {
    words: Matrix<u32>,
    scales: Vec<RowScale>,
}

/// Texts go through a layer in groups of at least so many tokens, so that what one step writes is in the cache for the next.
const GROUP_TOKENS: usize = 168;
/// So many go through the feed-forward part at once.
const FEED_FORWARD_TOKENS: usize = 84;

impl<F: Format> CpuEncoder<F> {
    /// Takes the weights out of `vb`, in 32 bits on the CPU. `config` is checked.
    pub(super) fn load(format: F, config: &bert::Config, pooling: Pooling, vb: &VarBuilder) -> Result<Self> {
        let vb = bert::root(vb);
        let layers = vb.pp("encoder").pp("layer");
        Ok(Self {
            format,
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
        let mut workspace = idle().pop().unwrap_or_else(|| Workspace::new(&self.config));
        let tokens = texts.iter().map(|text| text.ids.len()).sum();
        workspace.hidden.reserve_rows(tokens);
        self.embed(texts, &mut workspace.hidden);
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

    fn embed(&self, texts: &[Tokens], hidden: &mut Matrix<f32>) {
        let width = self.config.hidden_size;
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
        self.normalise(hidden, 0..count, &self.embeddings.norm);
    }

    fn layer(&self, layer: &Layer, group: &[Range<usize>], workspace: &mut Workspace) {
        let Workspace {
            hidden,
            query_key_value,
            context,
            inner,
            operand,
            scratch,
        } = workspace;
        let rows = group[0].start..group[group.len() - 1].end;
        query_key_value.reserve_rows(rows.len());
        context.reserve_rows(rows.len());

        operand.encode(self.format, hidden, rows.clone(), self.config.hidden_size);
        let stride = query_key_value.stride();
        let bias = &layer.query_key_value.bias;
        let epilogue = Bias {
            bias,
            to: query_key_value.all_mut(),
            stride,
        };
        self.format.vectorize(Product {
            format: self.format,
            rows: operand.rows(rows.len()),
            columns: layer.query_key_value.weights.view(),
            epilogue,
        });
        for text in group {
            let first = text.start - rows.start;
            let context_stride = context.stride();
            self.format.vectorize(Attention {
                isa: self.format.isa(),
                heads: self.heads,
                query_key_value: &query_key_value.all()[first * stride..][..text.len() * stride],
                stride,
                tokens: text.len(),
                context: &mut context.all_mut()[first * context_stride..],
                context_stride,
                scratch,
            });
        }
        operand.encode(self.format, context, 0..rows.len(), self.config.hidden_size);
        self.add(&layer.attention_output, operand, hidden, rows.clone());
        self.normalise(hidden, rows.clone(), &layer.attention_norm);

        for first in rows.clone().step_by(FEED_FORWARD_TOKENS) {
            let rows = first..rows.end.min(first + FEED_FORWARD_TOKENS);
            inner.reserve_rows(rows.len());
            operand.encode(self.format, hidden, rows.clone(), self.config.hidden_size);
            let stride = inner.stride();
            self.format.vectorize(Product {
                format: self.format,
                rows: operand.rows(rows.len()),
                columns: layer.intermediate.weights.view(),
                epilogue: Activate {
                    bias: &layer.intermediate.bias,
                    activation: layer.activation,
                    to: inner.all_mut(),
                    stride,
                },
            });
            operand.encode(self.format, inner, 0..rows.len(), self.config.intermediate_size);
            self.add(&layer.output, operand, hidden, rows.clone());
            self.normalise(hidden, rows, &layer.output_norm);
        }
    }

    /// Adds what `dense` makes of `operand` to `rows` of `hidden`.
    fn add(&self, dense: &Dense, operand: &Operand, hidden: &mut Matrix<f32>, rows: Range<usize>) {
        let stride = hidden.stride();
        let epilogue = Residual {
            bias: &dense.bias,
            to: &mut hidden.all_mut()[rows.start * stride..],
            stride,
        };
        self.format.vectorize(Product {
            format: self.format,
            rows: operand.rows(rows.len()),
            columns: dense.weights.view(),
            epilogue,
        });
    }

    fn normalise(&self, hidden: &mut Matrix<f32>, rows: Range<usize>, norm: &Norm) {
        let stride = hidden.stride();
        let rows = &mut hidden.all_mut()[rows.start * stride..rows.end * stride];
        self.format.vectorize(Normalise {
            isa: self.format.isa(),
            rows,
            stride,
            norm,
        });
    }
}

impl<F: Format> Encoder for CpuEncoder<F> {
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

impl Operand {
    /// Takes `rows` of `matrix` in a format.
    fn encode<F: Format>(&mut self, format: F, matrix: &Matrix<f32>, rows: Range<usize>, columns: usize) {
        self.words.reserve_rows(rows.len());
        self.scales.clear();
        format.vectorize(Encode {
            format,
            matrix,
            rows,
            columns,
            operand: self,
        });
    }

    fn rows(&self, count: usize) -> Rows<'_> {
        Rows {
            words: self.words.all(),
            count,
            stride: self.words.stride(),
            scales: &self.scales,
        }
    }
}

struct Encode<'a, F> {
    format: F,
    matrix: &'a Matrix<f32>,
    rows: Range<usize>,
    columns: usize,
    operand: &'a mut Operand,
}

impl<F: Format> Work for Encode<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let columns = self.columns.next_multiple_of(PADDING);
        for (to, row) in self.rows.enumerate() {
            let scale = self
                .format
                .encode(&self.matrix.row(row)[..columns], self.operand.words.row_mut(to));
            self.operand.scales.push(scale);
        }
    }
}

impl Workspace {
    fn new(config: &bert::Config) -> Self {
        let padded = |columns: usize| columns.next_multiple_of(PADDING);
        let (width, inner) = (padded(config.hidden_size), padded(config.intermediate_size));
        Self {
            hidden: Matrix::new(width),
            query_key_value: Matrix::new(padded(3 * config.hidden_size)),
            context: Matrix::new(width),
            inner: Matrix::new(inner),
            operand: Operand {
                words: Matrix::new(width.max(inner)),
                scales: Vec::new(),
            },
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
    Ok(Norm {
        weight: numbers(&vb.get(config.hidden_size, weight)?)?,
        bias: numbers(&vb.get(config.hidden_size, bias)?)?,
        epsilon: config.layer_norm_eps as f32,
    })
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
