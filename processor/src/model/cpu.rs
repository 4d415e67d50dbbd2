//! Kernels of our own for CPUs of the x86-64 kind.
//!
//! ```text
//! isa ─▶ format ─▶ kernel ◀─ panels, operand   one register block over f32, bf16 and int8, under AVX-512 or AVX2
//!                    │ └▶ amx                  or tiles instead of registers, for bf16 and int8
//!         epilogue ──┼── attention
//!                    ▼
//!                 encoder                      all tokens of a micro-batch as rows of one matrix
//! ```
//!
//! What the CPU has is a value that cannot be made where it lacks it; with one in hand all but the innermost loop is safe.

mod amx;
mod attention;
mod encoder;
mod epilogue;
mod format;
mod isa;
mod kernel;
mod matrix;
mod operand;
mod panels;

use candle_nn::VarBuilder;

use super::{CpuPath, Dtype, Encoder, Fault, bert, encoder::weights, folder::Files, pooling::Pooling};
use amx::{Amx, Tiled};
use encoder::CpuEncoder;
use format::{Bf16, Format, Int8, Plain, Single};
use isa::{Avx2, Avx512};
use kernel::Multiply;

/// What this CPU has, the fastest first.
pub(super) fn offers() -> Vec<(CpuPath, Vec<Dtype>)> {
    fn has<F: Format>(dtype: Dtype) -> Option<Dtype> {
        F::detect().map(|_| dtype)
    }
    let bf16_tiles = has::<Tiled<Bf16, Amx>>(Dtype::Bf16);
    // Beside `int8`, attention is in `bf16`.
    let int8_tiles = bf16_tiles.and(has::<Tiled<Int8, Amx>>(Dtype::Int8));
    let amx = [bf16_tiles, int8_tiles];
    let avx512 = [
        has::<Single<Avx512>>(Dtype::F32),
        has::<Bf16>(Dtype::Bf16),
        has::<Int8>(Dtype::Int8),
    ];
    let avx2 = has::<Single<Avx2>>(Dtype::F32);
    [
        (CpuPath::Amx, amx.into_iter().flatten().collect()),
        (CpuPath::Avx512, avx512.into_iter().flatten().collect()),
        (CpuPath::Avx2, avx2.into_iter().collect::<Vec<_>>()),
    ]
    .into_iter()
    .filter(|(_, dtypes)| !dtypes.is_empty())
    .collect()
}

/// An encoder with the weights of `files`; the files are let go once it has them. `path` and `dtype` are of the [`offers`].
pub(super) fn encoder(
    files: Files,
    config: &bert::Config,
    path: CpuPath,
    dtype: Dtype,
) -> Result<Box<dyn Encoder>, Fault> {
    type TilesOfBf16 = Tiled<Bf16, Amx>;
    match (path, dtype, attention(dtype)) {
        (CpuPath::Amx, Dtype::Int8, _) => load::<Tiled<Int8, Amx>, TilesOfBf16>(files, config),
        (CpuPath::Amx, ..) => load::<TilesOfBf16, TilesOfBf16>(files, config),
        (CpuPath::Avx512, Dtype::Bf16, _) => load::<Bf16, Bf16>(files, config),
        (CpuPath::Avx512, Dtype::Int8, Dtype::Bf16) => load::<Int8, Bf16>(files, config),
        (CpuPath::Avx512, Dtype::Int8, _) => load::<Int8, Single<Avx512>>(files, config),
        (CpuPath::Avx512, ..) => load::<Single<Avx512>, Single<Avx512>>(files, config),
        _ => load::<Single<Avx2>, Single<Avx2>>(files, config),
    }
}

/// One whose tiles are emulated, on any CPU with AVX-512 for them; none on others.
#[cfg(test)]
pub(super) fn encoder_by_emulated_tiles(
    files: Files,
    config: &bert::Config,
    dtype: Dtype,
) -> Option<Result<Box<dyn Encoder>, Fault>> {
    use amx::tests::Emulated;
    type TilesOfBf16 = Tiled<Bf16, Emulated>;
    TilesOfBf16::detect()?;
    match dtype {
        Dtype::Int8 => Int8::detect().map(|_| load::<Tiled<Int8, Emulated>, TilesOfBf16>(files, config)),
        _ => Some(load::<TilesOfBf16, TilesOfBf16>(files, config)),
    }
}

/// What attention is in where the dense layers are in `dtype`: it has no `int8`, and a CPU may have that and no `bf16`.
pub(super) fn attention(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::Bf16 | Dtype::Int8 if Bf16::detect().is_some() => Dtype::Bf16,
        _ => Dtype::F32,
    }
}

/// With dense layers in the format `F` and attention in `A`.
fn load<F: Multiply, A: Plain + Multiply<Isa = F::Isa>>(
    files: Files,
    config: &bert::Config,
) -> Result<Box<dyn Encoder>, Fault> {
    let format = F::detect().expect("the CPU offers it");
    let attention_format = A::detect().expect("the CPU has it");
    let pooling = Pooling::read(&files, config.hidden_size)?;
    let load = |vb: &VarBuilder<'_>| CpuEncoder::load(format, attention_format, config, pooling, vb);
    Ok(Box::new(weights(files.weights, load)?))
}
