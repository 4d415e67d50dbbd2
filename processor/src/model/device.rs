//! Which device a model runs on.

use std::{num::NonZeroUsize, thread};

use candle_core::{DType, Device, DeviceLocation};

use super::{DeviceChoice, Dtype, Fault};

pub(super) fn resolve(choice: DeviceChoice, dtype: Dtype) -> Result<Device, Fault> {
    let device = match choice {
        DeviceChoice::Cpu => Device::Cpu,
        DeviceChoice::Cuda => cuda()?,
        DeviceChoice::Auto => cuda().unwrap_or(Device::Cpu),
    };
    if device.is_cpu() && dtype != Dtype::F32 {
        let problem = format!("dtype `{dtype}` needs CUDA, and the device is the CPU: use `f32`");
        return Err(Fault::Setting { problem });
    }
    Ok(device)
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

pub(super) fn dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_refused_on_the_cpu() {
        assert!(resolve(DeviceChoice::Cpu, Dtype::F32).is_ok());
        for dtype in [Dtype::F16, Dtype::Bf16] {
            let fault = resolve(DeviceChoice::Cpu, dtype).unwrap_err();
            assert_eq!(
                fault.to_string(),
                format!("dtype `{dtype}` needs CUDA, and the device is the CPU: use `f32`")
            );
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_it_and_runs_on_the_cpu_when_left_to_choose() {
        let fault = resolve(DeviceChoice::Cuda, Dtype::F32).unwrap_err();
        assert!(fault.to_string().contains("feature `cuda`"), "{fault}");
        assert!(resolve(DeviceChoice::Auto, Dtype::F32).unwrap().is_cpu());
    }
}
