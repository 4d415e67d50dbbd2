//! Models: tokens in, vectors out.
//!
//! ```text
//! source ─▶ folder ─▶ tokenizer ─▶ Tokens ─▶ Encoder ─▶ one vector a text
//! ```
//!
//! [`load`] makes a [`Model`] of a source: a folder as sentence-transformers or transformers saves it, a model of the
//! Hugging Face hub, or a stand-in that costs nothing. Its tokenizer is shared by the threads that prepare work; its
//! encoder by those of the device. Everything beyond this module sees only the two traits. What runs behind the encoder is
//! kernels of our own on a CPU that has the instructions (`cpu`), and candle on any other and on a GPU (`encoder`, `bert`).

mod bert;
mod config;
#[cfg(target_arch = "x86_64")]
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod digest;
mod encoder;
mod error;
mod folder;
#[cfg(test)]
mod golden;
#[cfg(feature = "hub")]
mod hub;
mod passthrough;
mod path;
mod pooling;
#[cfg(test)]
mod shapes;
mod source;
mod tokenizer;
mod words;

use std::{num::NonZeroUsize, sync::Arc};

use schemas::{Digest, ModelName, Task};

pub use config::{CpuPath, DeviceChoice, Dtype, ModelConfig};
use device::Device;
pub use error::{EncodeError, Fault, LoadError, TokenizeError};
use folder::Folder;
use source::Source;

/// Tokens in, vectors out. One call is one micro-batch; several may run at once.
pub trait Encoder: Send + Sync {
    /// How many numbers a vector has.
    fn dimension(&self) -> usize;

    /// One vector per text, in the order of `texts`, pooled and normalised as the model says; each has
    /// [`dimension`](Self::dimension) finite numbers. A text's vector does not depend on the others beyond the rounding
    /// of sums. Texts of equal length cost least side by side.
    ///
    /// # Errors
    /// [`EncodeError`]: nothing was answered, for any of the texts.
    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError>;
}

/// Text in, tokens out. Shared by all threads that prepare work.
pub trait Tokenizer: Send + Sync {
    /// The tokens of `text`, special ones included, cut to the model's window.
    ///
    /// # Errors
    /// [`TokenizeError`]: this text cannot be read by this model.
    fn tokenize(&self, text: &str) -> Result<Tokens, TokenizeError>;
}

/// What a model reads of one text. Its length is the text's `input_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Indices into the model's vocabulary, special tokens included; never empty.
    pub ids: Vec<u32>,
    /// Whether the text was longer than the model's window, and cut.
    pub truncated: bool,
}

/// A model that is ready to run.
pub struct Model {
    /// The files and settings that decide its answers.
    pub digest: Digest,
    /// What it does.
    pub task: Task,
    /// The most tokens that it reads of a text, special ones included.
    pub tokens_max: usize,
    /// Where it runs: `cpu`, or `cuda:0` and so on.
    pub device: String,
    /// The code that runs it: a [`CpuPath`], or `cuda`.
    pub path: &'static str,
    /// The numbers that it computes with, never [`Dtype::Auto`].
    pub dtype: Dtype,
    /// For the threads that prepare work.
    pub tokenizer: Arc<dyn Tokenizer>,
    /// For the threads of the device.
    pub encoder: Box<dyn Encoder>,
    /// How many calls of the encoder are worth running at once: one a core on a CPU, a few on a GPU.
    pub encodings_at_once: NonZeroUsize,
    /// How many tokens are worth giving it in one call.
    pub batch_tokens: usize,
}

/// Makes the model called `name` ready on the chosen device. Reads, and where the source is a hub downloads, whole
/// files: it blocks for a fraction of a second, or for as long as the download takes.
///
/// # Errors
/// [`LoadError`], whose cause says which file or setting is wrong and what to do.
pub fn load(
    name: &ModelName,
    config: &ModelConfig,
    device: DeviceChoice,
    cpu_path: CpuPath,
) -> Result<Model, LoadError> {
    open(config, device, cpu_path).map_err(|fault| LoadError {
        model: name.clone(),
        fault,
    })
}

fn open(config: &ModelConfig, device: DeviceChoice, cpu_path: CpuPath) -> Result<Model, Fault> {
    let folder = match Source::parse(&config.source)? {
        Source::Passthrough { dimension } => return Ok(passthrough::model(dimension, config)),
        Source::Folder(path) => source::folder(path)?,
        Source::Hub(repository) => source::hub(&repository)?,
    };
    read(&Folder::new(folder), config, device, cpu_path)
}

fn read(
    folder: &Folder,
    config: &ModelConfig,
    device: DeviceChoice,
    cpu_path: CpuPath,
) -> Result<Model, Fault> {
    let (device, dtype) = device::resolve(device, cpu_path, config.dtype)?;
    let files = folder.files()?;
    let bert = files.config.json::<bert::Config>()?;
    bert.check(&files.config.path)?;
    let tokenizer = tokenizer::HubTokenizer::new(&files, &bert, config.tokens_max)?;
    let tokens_max = tokenizer.tokens_max();
    let settings = match &device {
        Device::Cpu(CpuPath::Candle) => format!("dtype={dtype} tokens_max={tokens_max}"),
        #[cfg(target_arch = "x86_64")]
        Device::Cpu(path) if cpu::attention(dtype) == Dtype::Bf16 => {
            format!("dtype={dtype} attention=bf16 path={path} tokens_max={tokens_max}")
        }
        // Another path sums in another order: the last bits differ.
        device => format!("dtype={dtype} path={} tokens_max={tokens_max}", device.path()),
    };
    Ok(Model {
        digest: digest::of(&files, &settings),
        task: config.task,
        tokens_max,
        device: device.name().to_owned(),
        path: device.path(),
        dtype,
        encodings_at_once: device.encodings_at_once(),
        batch_tokens: device.batch_tokens(),
        tokenizer: Arc::new(tokenizer),
        encoder: match device {
            #[cfg(target_arch = "x86_64")]
            Device::Cpu(path @ (CpuPath::Amx | CpuPath::Avx512 | CpuPath::Avx2)) => {
                cpu::encoder(files, &bert, path, dtype)?
            }
            Device::Cpu(_) => Box::new(encoder::BertEncoder::new(files, &bert)?),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => Box::new(cuda::CudaEncoder::new(gpu, files, &bert, dtype)?),
        },
    })
}
