//! Which device a model runs on.

use std::{num::NonZeroUsize, thread};

use candle_core::{DType, Device, DeviceLocation};

use super::{DeviceChoice, Dtype, Fault};

pub(super) fn resolve(choice: DeviceChoice) -> Result<Device, Fault> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda => cuda(),
        DeviceChoice::Auto => Ok(cuda().unwrap_or(Device::Cpu)),
    }
}

fn cuda() -> Result<Device, Fault> {
    if !cfg!(feature = "cuda") {
        let problem =
            "this build has no CUDA: build it with the feature `cuda`, or set the device to `cpu`".to_owned();
        return Err(Fault::Device { problem });
    }
    Device::new_cuda(0).map_err(|error| Fault::Device {
        problem: format!("the first CUDA device cannot be used: {error}"),
    })
}

pub(super) fn name(device: &Device) -> String {
    match device.location() {
        DeviceLocation::Cpu => "cpu".to_owned(),
        DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// A GPU runs one micro-batch on all its units; a CPU is busiest with one on each core.
pub(super) fn encodings_at_once(device: &Device) -> NonZeroUsize {
    match device.is_cpu() {
        true => thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        false => NonZeroUsize::MIN,
    }
}

/// What candle computes with on CUDA. `auto` is `f32` there: no floor is stated for the others.
pub(super) fn dtype_on_cuda(dtype: Dtype) -> Result<Dtype, Fault> {
    match dtype {
        Dtype::Auto => Ok(Dtype::F32),
        Dtype::Int8 => Err(Fault::Setting {
            problem: "dtype `int8` needs a CPU, and the device is CUDA: use `f32`, `bf16` or `f16`"
                .to_owned(),
        }),
        dtype => Ok(dtype),
    }
}

pub(super) fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
        Dtype::Int8 | Dtype::Auto => unreachable!("candle is given only what it has"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_it_and_runs_on_the_cpu_when_left_to_choose() {
        let fault = resolve(DeviceChoice::Cuda).unwrap_err();
        assert!(fault.to_string().contains("feature `cuda`"), "{fault}");
        assert!(resolve(DeviceChoice::Auto).unwrap().is_cpu());
    }
}
