//! The encoder on an NVIDIA GPU: matrix products by cuBLASLt, everything between them by kernels of our own.
//!
//! ```text
//! ids ─▶ embed ─▶ [ product ─▶ attend ─▶ product ─▶ add and normalise ─▶ product ─▶ activate ─▶ product ─▶ add and
//!        normalise ] ─▶ pool ─▶ vectors                    [ ] once a layer; all of it queued at once on one stream
//! ```
//!
//! Texts are packed as on the CPU, and nothing is padded: a product sees rows of tokens, attention sees each text. The
//! host waits once a micro-batch, for its vectors. Several micro-batches run at once, each on a stream with buffers of
//! its own ([`Workspace`]), so that the device computes one while another's texts come in and its vectors go out.
//!
//! Nothing of CUDA is needed to build this: driver, cuBLASLt and NVRTC are opened when a model is loaded, and the kernels
//! are compiled then, for the model's shape.
//!
//! **A text's bits do not depend on its neighbours.** Our kernels compute each row, and each text, in an order of its own;
//! and a product's algorithm is chosen once, for its weights, and never by the number of rows ([`Product`]).

#![expect(
    unsafe_code,
    reason = "kernels are launched and cuBLASLt is called with pointers; each says what makes it sound"
)]

mod gpu;
mod kernels;
mod product;
mod workspace;

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};

use candle_core::Tensor;
use candle_nn::{LayerNorm, Linear};
use cudarc::driver::CudaSlice;

use super::{
    Dtype, EncodeError, Encoder, Fault, Tokens,
    bert::{self, Bert},
    encoder,
    folder::Files,
    pooling::Pooling,
};
use gpu::Error;
pub(super) use gpu::Gpu;
use kernels::{Kernels, Shape};
use product::{Product, Scratch};
use workspace::{Batch, Workspace};

/// How many micro-batches are worth running at once, on an H100: kernels of one fill the gaps that those of another leave,
/// and hide its copies and its host (`bench/`, gpu).
pub(super) const ENCODINGS_AT_ONCE: NonZeroUsize = NonZeroUsize::new(4).unwrap();

/// How many tokens of a micro-batch keep an H100 busy; more gain nothing (`bench/`, gpu).
pub(super) const BATCH_TOKENS: usize = 16_384;

/// An encoder of the BERT family with its pooling, on a GPU.
pub(super) struct CudaEncoder {
    bert: CudaBert,
    config: bert::Config,
}

impl CudaEncoder {
    /// Puts the weights on `gpu`; the files are let go once they are there.
    pub(super) fn new(gpu: Gpu, files: Files, config: &bert::Config, dtype: Dtype) -> Result<Self, Fault> {
        let pooling = Pooling::read(&files, config.hidden_size)?;
        let bert = encoder::weights(files.weights, |vb| Bert::load(config, vb))?;
        match CudaBert::new(gpu, &bert, config, &pooling, dtype) {
            Ok(bert) => Ok(Self {
                bert,
                config: config.clone(),
            }),
            Err(error) => Err(Fault::Device {
                problem: format!("the model cannot be put on the GPU: {error}"),
            }),
        }
    }
}

impl Encoder for CudaEncoder {
    fn dimension(&self) -> usize {
        self.bert.dimension
    }

    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        encoder::check(&self.config, texts)?;
        let vectors = self.bert.encode(texts);
        encoder::finite(vectors.map_err(|error| encoder::classify(&error.to_string(), texts))?)
    }
}

/// The network with its weights on the device.
struct CudaBert {
    gpu: Gpu,
    kernels: Kernels,
    words: Buffer,
    positions: Buffer,
    norm: Norm,
    layers: Vec<Layer>,
    dimension: usize,
    /// Those that no micro-batch uses just now.
    workspaces: Mutex<Vec<Workspace>>,
}

/// Numbers of the model's dtype on the device.
type Buffer = CudaSlice<u8>;

struct Layer {
    query_key_value: Product,
    context: Product,
    context_norm: Norm,
    intermediate: Product,
    output: Product,
    output_norm: Norm,
}

struct Norm {
    gain: Buffer,
    bias: Buffer,
}

impl CudaBert {
    /// Copies the weights of `bert`, which is on the CPU in 32 bits, to `gpu` as `dtype`.
    fn new(
        gpu: Gpu,
        bert: &Bert,
        config: &bert::Config,
        pooling: &Pooling,
        dtype: Dtype,
    ) -> Result<Self, Error> {
        let shape = Shape::new(config, pooling, dtype)?;
        let kernels = Kernels::compile(&gpu, shape)?;
        let load = Load {
            gpu: &gpu,
            kernels: &kernels,
        };
        let layer = |layer: &bert::Layer| {
            Ok(Layer {
                query_key_value: load.product(&layer.attention.query_key_value)?,
                context: load.product(&layer.attention.output)?,
                context_norm: load.norm(&layer.attention_norm)?,
                intermediate: load.product(&layer.intermediate)?,
                output: load.product(&layer.output)?,
                output_norm: load.norm(&layer.output_norm)?,
            })
        };
        let (words, positions) = (
            load.buffer(&bert.embeddings.words)?,
            load.buffer(&bert.embeddings.positions)?,
        );
        let norm = load.norm(&bert.embeddings.norm)?;
        let layers = bert.layers.iter().map(layer).collect::<Result<_, Error>>()?;
        gpu.finish_loading()?;
        Ok(Self {
            dimension: pooling.dimension(config.hidden_size),
            gpu,
            kernels,
            words,
            positions,
            norm,
            layers,
            workspaces: Mutex::default(),
        })
    }

    /// One vector a text; there is at least one.
    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, Error> {
        let batch = Batch::of(texts);
        let mut workspace = self.workspace(&batch)?;
        workspace.put(texts, &batch)?;
        self.queue(&mut workspace, &batch)?;
        let vectors = workspace.take(batch.texts)?;
        // One that failed is dropped: what it holds, and whether its stream still works, is not known.
        self.idle().push(workspace);
        Ok(vectors)
    }

    /// Queues a whole pass over what was put into `workspace`, and waits for none of it.
    fn queue(&self, workspace: &mut Workspace, batch: &Batch) -> Result<(), Error> {
        let (kernels, on) = (&self.kernels, self.gpu.blas());
        kernels.embed(workspace, batch, &self.words, &self.positions, &self.norm)?;
        for layer in &self.layers {
            let own = &mut *workspace;
            let with = Scratch {
                stream: &own.stream,
                memory: &own.scratch,
                rows: batch.rows,
            };
            layer.query_key_value.run(on, &with, &own.hidden, &mut own.wide)?;
            kernels.attend(&own.stream, &own.input, batch, &own.wide, &mut own.context)?;
            layer.context.run(on, &with, &own.context, &mut own.update)?;
            kernels.add_and_normalise(
                &own.stream,
                batch,
                &own.update,
                &layer.context_norm,
                &mut own.hidden,
            )?;
            layer.intermediate.run(on, &with, &own.hidden, &mut own.wide)?;
            kernels.activate(&own.stream, batch, &mut own.wide)?;
            layer.output.run(on, &with, &own.wide, &mut own.update)?;
            kernels.add_and_normalise(
                &own.stream,
                batch,
                &own.update,
                &layer.output_norm,
                &mut own.hidden,
            )?;
        }
        kernels.pool(workspace, batch)
    }

    /// One that is idle, or a new one, with room for `batch`.
    fn workspace(&self, batch: &Batch) -> Result<Workspace, Error> {
        let idle = self.idle().pop();
        match idle {
            Some(workspace) if workspace.has_room_for(batch) => Ok(workspace),
            // What was too small is given back first.
            too_small => {
                drop(too_small);
                Workspace::new(&self.gpu, self.kernels.shape(), self.dimension, batch)
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Workspace>> {
        self.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies weights to the device.
struct Load<'a> {
    gpu: &'a Gpu,
    kernels: &'a Kernels,
}

impl Load<'_> {
    fn buffer(&self, weights: &Tensor) -> Result<Buffer, Error> {
        let wide = weights.flatten_all()?.to_vec1::<f32>()?;
        self.kernels.narrowed(self.gpu.loading(), &wide)
    }

    fn product(&self, linear: &Linear) -> Result<Product, Error> {
        let (outputs, inputs) = linear.weight().dims2()?;
        let bias = linear.bias().expect("every linear layer of BERT has a bias");
        let (weight, bias) = (self.buffer(linear.weight())?, self.buffer(bias)?);
        Product::new(
            self.gpu,
            self.kernels.shape().dtype,
            (inputs, outputs),
            weight,
            bias,
        )
    }

    fn norm(&self, norm: &LayerNorm) -> Result<Norm, Error> {
        let bias = norm.bias().expect("every layer norm of BERT has a bias");
        Ok(Norm {
            gain: self.buffer(norm.weight())?,
            bias: self.buffer(bias)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Result, Shape, Tensor};
    use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
    use proptest::{prelude::*, test_runner::TestRunner};

    use super::{super::bert::Run, *};

    /// Weights that are a function of their name: as wide as keeps the sums of a layer near one.
    struct Random;

    impl SimpleBackend for Random {
        fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
            let inputs = *shape.dims().last().expect("no weight is a single number");
            let (middle, spread) = match name.rsplit('.').next() {
                Some("bias") => (0.0, 0.1),
                _ if shape.rank() == 1 => (1.0, 0.3),
                _ => (0.0, (4.0 / inputs as f32).sqrt()),
            };
            let mut state = name.bytes().fold(1_u64, |state, byte| {
                state.wrapping_mul(31).wrapping_add(byte.into())
            });
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                middle + spread * ((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
            };
            let numbers: Vec<f32> = (0..shape.elem_count()).map(|_| next()).collect();
            Tensor::from_vec(numbers, shape, device)?.to_dtype(dtype)
        }

        fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
            panic!("`{name}` has a shape")
        }

        fn contains_tensor(&self, _: &str) -> bool {
            false
        }
    }

    /// What candle answers on the CPU.
    fn reference(bert: &Bert, pooling: &Pooling, texts: &[Tokens]) -> Vec<Vec<f32>> {
        let runs = Run::of(texts.iter().map(|text| text.ids.len()));
        let ids: Vec<u32> = texts.iter().flat_map(|text| text.ids.clone()).collect();
        let positions: Vec<u32> = texts.iter().flat_map(|text| 0..text.ids.len() as u32).collect();
        let on = |words: Vec<u32>| Tensor::new(words, &Device::Cpu).unwrap();
        let hidden = bert.forward(&on(ids), &on(positions), &runs).unwrap();
        let pooled = runs.iter().flat_map(|run| {
            let pooled = pooling.pool(&run.of_packed(&hidden).unwrap()).unwrap();
            pooled.to_vec2().unwrap()
        });
        pooled.collect()
    }

    #[test]
    fn random_models_of_any_shape_agree_with_candle_on_the_cpu() {
        let gpu = Gpu::first().expect("the tests of the feature `cuda` need an NVIDIA GPU");
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 8,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let texts = prop::collection::vec(prop::collection::vec(0_u32..500, 1..300), 1..12);
        for (width, heads, inner) in [
            (384, 12, 1_536),
            (768, 12, 3_072),
            (1_024, 16, 4_096),
            (256, 2, 1_024),
            (192, 2, 200),
            (100, 5, 60),
            (18, 3, 10),
        ] {
            let config: bert::Config = serde_json::from_value(serde_json::json!({
                "model_type": "bert", "vocab_size": 500, "hidden_size": width, "num_hidden_layers": 2,
                "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": "gelu",
                "max_position_embeddings": 300, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            }))
            .unwrap();
            let bert = Bert::load(
                &config,
                &VarBuilder::from_backend(Box::new(Random), DType::F32, Device::Cpu),
            )
            .unwrap();
            let pooling = Pooling {
                modes: vec![super::super::pooling::Mode::Mean],
                normalise: true,
            };
            for (dtype, difference_max) in [(Dtype::F32, 1e-4), (Dtype::F16, 1e-2), (Dtype::Bf16, 6e-2)] {
                let ours = CudaBert::new(gpu.clone(), &bert, &config, &pooling, dtype).unwrap();
                runner
                    .run(&texts, |texts| {
                        let texts: Vec<Tokens> = texts
                            .into_iter()
                            .map(|ids| Tokens {
                                ids,
                                truncated: false,
                            })
                            .collect();
                        let (theirs, ours) =
                            (reference(&bert, &pooling, &texts), ours.encode(&texts).unwrap());
                        for (ours, theirs) in ours.iter().zip(&theirs) {
                            let apart = ours
                                .iter()
                                .zip(theirs)
                                .map(|(a, b)| (a - b).powi(2))
                                .sum::<f32>()
                                .sqrt();
                            // The vectors have length one. What is no number is no less than anything.
                            prop_assert!(apart < difference_max, "{width}/{heads} {dtype}: {apart:e}");
                        }
                        Ok(())
                    })
                    .unwrap();
            }
        }
    }
}
