//! The encoder that runs on candle: weights from a folder, a packed micro-batch in, one vector a text out.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;

use super::{
    EncodeError, Encoder, Fault, Tokens,
    bert::{self, Bert, Run},
    folder::{File, Files},
    pooling::Pooling,
};

/// An encoder of the BERT family with its pooling, on the CPU.
pub(super) struct BertEncoder {
    bert: Bert,
    pooling: Pooling,
    config: bert::Config,
}

impl BertEncoder {
    /// Takes the weights out of the files, which are let go then.
    pub(super) fn new(files: Files, config: &bert::Config) -> Result<Self, Fault> {
        Ok(Self {
            pooling: Pooling::read(&files, config.hidden_size)?,
            bert: weights(files.weights, |vb| Bert::load(config, vb))?,
            config: config.clone(),
        })
    }

    fn run(&self, texts: &[Tokens]) -> candle_core::Result<Vec<Vec<f32>>> {
        let runs = Run::of(texts.iter().map(|text| text.ids.len()));
        let ids: Vec<u32> = texts.iter().flat_map(|text| &text.ids).copied().collect();
        let positions: Vec<u32> = texts.iter().flat_map(|text| 0..text.ids.len() as u32).collect();
        let hidden = self.bert.forward(
            &Tensor::from_vec(ids, positions.len(), &Device::Cpu)?,
            &Tensor::new(positions, &Device::Cpu)?,
            &runs,
        )?;
        let pooled = runs
            .iter()
            .map(|run| self.pooling.pool(&run.of_packed(&hidden)?))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&pooled, 0)?.to_vec2()
    }
}

impl Encoder for BertEncoder {
    fn dimension(&self) -> usize {
        self.pooling.dimension(self.config.hidden_size)
    }

    fn encode(&self, texts: &[Tokens]) -> Result<Vec<Vec<f32>>, EncodeError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        check(&self.config, texts)?;
        finite(self.run(texts).map_err(|error| classify(&words(error), texts))?)
    }
}

/// Refuses what a model would answer with a panic, or on a GPU with nonsense.
pub(super) fn check(config: &bert::Config, texts: &[Tokens]) -> Result<(), EncodeError> {
    let (vocabulary, window) = (config.vocab_size, config.max_position_embeddings);
    for (position, text) in texts.iter().enumerate() {
        let tokens = text.ids.len();
        if tokens == 0 || tokens > window {
            return Err(failed(format!(
                "text {position} has {tokens} tokens, and 1 to {window} can be read"
            )));
        }
        if let Some(id) = text.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(failed(format!(
                "text {position} has the token {id}, and the vocabulary has {vocabulary}"
            )));
        }
    }
    Ok(())
}

/// Refuses vectors of which one has a number that is none.
pub(super) fn finite(vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, EncodeError> {
    match vectors
        .iter()
        .position(|vector| vector.iter().any(|x| !x.is_finite()))
    {
        None => Ok(vectors),
        Some(position) => Err(failed(format!(
            "the vector of text {position} has a number that is not finite"
        ))),
    }
}

fn failed(message: String) -> EncodeError {
    EncodeError::Failed { message }
}

/// The words of CUDA and cuBLASLt are all there is to tell a lack of memory by.
pub(super) fn classify(message: &str, texts: &[Tokens]) -> EncodeError {
    if message.contains("OUT_OF_MEMORY")
        || message.contains("ALLOC_FAILED")
        || message.contains("out of memory")
    {
        let tokens = texts.iter().map(|text| text.ids.len()).sum();
        EncodeError::OutOfMemory {
            texts: texts.len(),
            tokens,
            message: message.to_owned(),
        }
    } else {
        failed(message.to_owned())
    }
}

/// Makes an encoder of the weights in `file`, which come in 32 bits, on the CPU.
pub(super) fn weights<T>(
    file: File,
    load: impl FnOnce(&VarBuilder) -> candle_core::Result<T>,
) -> Result<T, Fault> {
    let File { path, bytes, .. } = file;
    let malformed = |problem| Fault::Malformed {
        path: path.clone(),
        problem,
    };
    let length = bytes.len();
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).map_err(|error| {
        let words = words(error);
        malformed(format!(
            "is cut off or is no safetensors file ({length} bytes, {words}): get it again"
        ))
    })?;
    load(&vb).map_err(|error| malformed(format!("does not fit its config.json: {}", words(error))))
}

/// What candle says, without the backtrace that it puts into its message where `RUST_BACKTRACE` is set.
fn words(error: candle_core::Error) -> String {
    match error {
        candle_core::Error::WithBacktrace { inner, .. } => words(*inner),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        let texts = [Tokens {
            ids: vec![1, 2, 3],
            truncated: false,
        }];
        let error = classify("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")", &texts);
        assert!(
            matches!(
                error,
                EncodeError::OutOfMemory {
                    texts: 1,
                    tokens: 3,
                    ..
                }
            ),
            "{error}"
        );
        assert!(matches!(
            classify("no kernel image", &texts),
            EncodeError::Failed { .. }
        ));
    }
}
