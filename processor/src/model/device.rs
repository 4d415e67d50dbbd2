//! Which device a model runs on.

use std::{num::NonZeroUsize, thread};

#[cfg(feature = "cuda")]
use super::cuda;
use super::{CpuPath, DeviceChoice, Dtype, Fault, path};

/// What is there to run on.
pub(super) enum Device {
    /// The CPU, by this path.
    Cpu(CpuPath),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Gpu),
}

/// The device, and the numbers that it computes with: never [`Dtype::Auto`].
pub(super) fn resolve(
    choice: DeviceChoice,
    cpu_path: CpuPath,
    dtype: Dtype,
) -> Result<(Device, Dtype), Fault> {
    let on_cpu = || path::resolve(cpu_path, dtype).map(|(path, dtype)| (Device::Cpu(path), dtype));
    match choice {
        DeviceChoice::Cpu => on_cpu(),
        DeviceChoice::Cuda => on_gpu(gpu()?, dtype),
        DeviceChoice::Auto => match gpu() {
            Ok(gpu) => on_gpu(gpu, dtype),
            Err(why) => {
                tracing::debug!(%why, "models run on the CPU");
                on_cpu()
            }
        },
    }
}

/// `auto` is `f32` there: no floor is stated for the others.
fn on_gpu(gpu: Device, dtype: Dtype) -> Result<(Device, Dtype), Fault> {
    match dtype {
        Dtype::Auto => Ok((gpu, Dtype::F32)),
        Dtype::Int8 => Err(Fault::Setting {
            problem: "dtype `int8` needs a CPU, and the device is CUDA: use `f32`, `bf16` or `f16`"
                .to_owned(),
        }),
        dtype => Ok((gpu, dtype)),
    }
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<Device, Fault> {
    match cuda::Gpu::first() {
        Ok(gpu) => Ok(Device::Cuda(gpu)),
        Err(error) => Err(Fault::Device {
            problem: format!("the first CUDA device cannot be used: {error}"),
        }),
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<Device, Fault> {
    let problem =
        "this build has no CUDA: build it with the feature `cuda`, or set the device to `cpu`".to_owned();
    Err(Fault::Device { problem })
}

impl Device {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda:0",
        }
    }

    /// The code that runs models on it.
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Cpu(path) => path.as_str(),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
        }
    }

    /// A CPU is busiest with a micro-batch on each core, a GPU while some are copied and one is computed.
    pub(super) fn encodings_at_once(&self) -> NonZeroUsize {
        match self {
            Self::Cpu(_) => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => cuda::ENCODINGS_AT_ONCE,
        }
    }

    /// How many tokens of a micro-batch keep it busy, where the configuration says nothing.
    pub(super) fn batch_tokens(&self) -> usize {
        match self {
            Self::Cpu(_) => 2_048,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => cuda::BATCH_TOKENS,
        }
    }
}

#[cfg(all(test, not(feature = "cuda")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_cuda_says_how_to_get_it_and_runs_on_the_cpu_when_left_to_choose() {
        let resolve = |choice| resolve(choice, CpuPath::Candle, Dtype::F32);
        let fault = resolve(DeviceChoice::Cuda).err().unwrap();
        assert!(fault.to_string().contains("feature `cuda`"), "{fault}");
        let (device, dtype) = resolve(DeviceChoice::Auto).unwrap();
        assert_eq!((device.name(), dtype), ("cpu", Dtype::F32));
    }
}
