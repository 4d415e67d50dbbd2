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
    /// The upper half of an `f32`; on CUDA, and on CPUs with AVX-512 BF16.
    Bf16,
    /// 8 bits with a scale for each token and for each output; on CPUs with AVX-512 VNNI.
    Int8,
    /// The fastest of those that stay as close to `f32` as a stated floor: on a CPU `bf16` where it has it, else `f32`.
    Auto,
}

impl Dtype {
    /// The word in the configuration and in the `model_dtype` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
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

/// Which code runs a model on a CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuPath {
    /// What the environment variable `TRIBUTARY_CPU_PATH` says, or the fastest that this CPU has.
    #[default]
    Auto,
    /// Kernels of our own for AMX: `bf16` and `int8`, as far as the CPU has their tiles.
    Amx,
    /// Kernels of our own for AVX-512: `f32`, and `bf16` and `int8` where the CPU has BF16 and VNNI.
    Avx512,
    /// Kernels of our own for AVX2 with FMA: `f32`.
    Avx2,
    /// candle, on any CPU: `f32`.
    Candle,
}

impl CpuPath {
    /// The word in the configuration and in the `model_path` column.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Amx => "amx",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Candle => "candle",
        }
    }
}

impl fmt::Display for CpuPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
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
