//! What the configuration says of a model.

use std::fmt;

use schemas::Task;
use serde::{Deserialize, Serialize};

/// Where a model comes from and how it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A folder; `hf://owner/name` or `hf://owner/name@revision` for a model of the Hugging Face hub; or
    /// `passthrough:384`, which gives as many pseudo-random numbers and is for measuring everything but the model.
    pub source: String,
    /// What it does.
    #[serde(default)]
    pub task: Task,
    /// The numbers that it computes with.
    #[serde(default)]
    pub dtype: Dtype,
    /// The most tokens that it reads of a text, special ones included; longer texts are cut. The model's own window,
    /// which is also the upper bound, where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_max: Option<usize>,
}

/// The numbers that a model computes with. Vectors come out in 32 bits whatever it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// IEEE 754 with 32 bits.
    #[default]
    F32,
    /// IEEE 754 with 16 bits; on CUDA only.
    F16,
    /// The upper half of an `f32`; on CUDA only.
    Bf16,
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// Which device the models run on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceChoice {
    /// CUDA where this build has it and a GPU is there, the CPU otherwise.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_all_that_a_model_needs_and_an_unknown_key_is_refused() {
        let config: ModelConfig = serde_json::from_str(r#"{"source":"hf://a/b"}"#).unwrap();
        assert_eq!((config.dtype, config.tokens_max), (Dtype::F32, None));
        let error = serde_json::from_str::<ModelConfig>(r#"{"source":"x","type":"f16"}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `type`"), "{error}");
    }
}
