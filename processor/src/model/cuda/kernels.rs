//! What `kernels.cu` can do, compiled for one model.

use std::sync::Arc;

use cudarc::{
    driver::{CudaFunction, CudaStream, CudaView, LaunchConfig, PushKernelArg},
    nvrtc::{CompileOptions, compile_ptx_with_opts},
};

use super::{
    Buffer, Error, Gpu, Norm,
    workspace::{Batch, Workspace},
};
use crate::model::{
    Dtype,
    bert::{self, Activation},
    pooling::{Mode, Pooling},
};

/// The kernels, as they were compiled for a shape.
pub(super) struct Kernels {
    shape: Shape,
    narrow_weights: CudaFunction,
    embed: CudaFunction,
    attend: CudaFunction,
    add_and_normalise: CudaFunction,
    activate_all: CudaFunction,
    pool: CudaFunction,
}

/// What the kernels are compiled for.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) dtype: Dtype,
    pub(super) width: usize,
    pub(super) inner: usize,
    heads: usize,
    epsilon: f64,
    activation: Activation,
    modes: Vec<Mode>,
    normalise: bool,
}

/// How many queries of a text are one unit of the attention; `TILE` in `kernels.cu`.
pub(super) const TILE_ROWS: usize = 16;

/// Of every block.
const THREADS: usize = 128;
const THREADS_A_WARP: usize = 32;

/// Of what `activate_all` does at once.
pub(super) const VECTOR_BYTES: usize = 16;

/// A row is kept in a warp's registers.
const WIDTH_MAX: usize = 2_048;
/// Keys and values are kept in a block's shared memory.
const HEAD_MAX: usize = 128;

/// The bytes of a number.
pub(super) fn size(dtype: Dtype) -> usize {
    match dtype {
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::Bf16 => 2,
        Dtype::Int8 | Dtype::Auto => unreachable!("a device has its dtype resolved"),
    }
}

impl Shape {
    pub(super) fn new(config: &bert::Config, pooling: &Pooling, dtype: Dtype) -> Result<Self, Error> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        if !width.is_multiple_of(2) || width > WIDTH_MAX {
            let what = format!("hidden_size {width}: it must be even, and at most {WIDTH_MAX}");
            return Err(Error::Shape { what });
        }
        if width / heads > HEAD_MAX {
            let what = format!("heads of {} numbers: at most {HEAD_MAX}", width / heads);
            return Err(Error::Shape { what });
        }
        Ok(Self {
            dtype,
            width,
            inner: config.intermediate_size,
            heads,
            epsilon: config.layer_norm_eps,
            activation: config.activation(),
            modes: pooling.modes.clone(),
            normalise: pooling.normalise,
        })
    }

    /// The bytes of `numbers` of the model's dtype.
    pub(super) fn bytes(&self, numbers: usize) -> usize {
        numbers * size(self.dtype)
    }

    /// Whether `attend` takes a warp a unit, as on the tensor cores, or a block.
    fn has_warp_attention(&self) -> bool {
        self.dtype != Dtype::F32 && (self.width / self.heads).is_multiple_of(32)
    }

    fn definitions(&self) -> Vec<String> {
        let dtype = match self.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 1,
            Dtype::Bf16 => 2,
            Dtype::Int8 | Dtype::Auto => unreachable!("a device has its dtype resolved"),
        };
        let activation = match self.activation {
            Activation::Gelu => 0,
            Activation::GeluTanh => 1,
            Activation::Relu => 2,
        };
        let mode = |mode: &Mode| match mode {
            Mode::First => "0",
            Mode::Max => "1",
            Mode::Mean => "2",
            Mode::MeanSqrtLength => "3",
        };
        vec![
            format!("-DDTYPE={dtype}"),
            format!("-DWIDTH={}", self.width),
            format!("-DHEADS={}", self.heads),
            format!("-DEPSILON={:e}", self.epsilon),
            format!("-DACTIVATION={activation}"),
            format!(
                "-DMODES={}",
                self.modes.iter().map(mode).collect::<Vec<_>>().join(",")
            ),
            format!("-DNORMALISE={}", u8::from(self.normalise)),
        ]
    }
}

impl Kernels {
    pub(super) fn compile(gpu: &Gpu, shape: Shape) -> Result<Self, Error> {
        let mut options = shape.definitions();
        options.push(format!("--gpu-architecture={}", gpu.architecture()?));
        let options = CompileOptions {
            options,
            name: Some("kernels.cu".to_owned()),
            ..CompileOptions::default()
        };
        let module = gpu
            .context()
            .load_module(compile_ptx_with_opts(include_str!("kernels.cu"), options)?)?;
        Ok(Self {
            shape,
            narrow_weights: module.load_function("narrow_weights")?,
            embed: module.load_function("embed")?,
            attend: module.load_function("attend")?,
            add_and_normalise: module.load_function("add_and_normalise")?,
            activate_all: module.load_function("activate_all")?,
            pool: module.load_function("pool")?,
        })
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// `wide` on the device, in the model's dtype.
    pub(super) fn narrowed(&self, stream: &Arc<CudaStream>, wide: &[f32]) -> Result<Buffer, Error> {
        let from = stream.clone_htod(wide)?;
        let mut narrow = stream.alloc_zeros(self.shape.bytes(wide.len()))?;
        let count = u32::try_from(wide.len()).map_err(|_| Error::Shape {
            what: format!("a matrix of {} numbers", wide.len()),
        })?;
        let mut launch = stream.launch_builder(&self.narrow_weights);
        launch.arg(&from).arg(&mut narrow).arg(&count);
        // SAFETY: both buffers have `count` numbers.
        unsafe { launch.launch(blocks(wide.len().div_ceil(THREADS))) }?;
        Ok(narrow)
    }

    pub(super) fn embed(
        &self,
        own: &mut Workspace,
        batch: &Batch,
        words: &Buffer,
        places: &Buffer,
        norm: &Norm,
    ) -> Result<(), Error> {
        let (ids, positions) = (own.input.slice(batch.ids()), own.input.slice(batch.positions()));
        let rows = batch.rows as u32;
        let mut launch = own.stream.launch_builder(&self.embed);
        launch.arg(&ids).arg(&positions).arg(words).arg(places);
        launch
            .arg(&norm.gain)
            .arg(&norm.bias)
            .arg(&mut own.hidden)
            .arg(&rows);
        // SAFETY: ids are of the vocabulary and positions of the window, as the encoder checked; `hidden` has room for
        // the rows.
        unsafe { launch.launch(blocks(warps(batch.rows))) }?;
        Ok(())
    }

    /// From query, key and value of each token to its context.
    pub(super) fn attend(
        &self,
        stream: &CudaStream,
        input: &cudarc::driver::CudaSlice<u32>,
        batch: &Batch,
        joined: &Buffer,
        contexts: &mut Buffer,
    ) -> Result<(), Error> {
        let tiles: CudaView<u32> = input.slice(batch.tile_words());
        let count = batch.tiles as u32;
        let units = batch.tiles * self.shape.heads;
        let grid = if self.shape.has_warp_attention() {
            warps(units)
        } else {
            units
        };
        let mut launch = stream.launch_builder(&self.attend);
        launch.arg(joined).arg(&tiles).arg(contexts).arg(&count);
        // SAFETY: the tiles lie within the rows, for which both buffers have room.
        unsafe { launch.launch(blocks(grid)) }?;
        Ok(())
    }

    pub(super) fn add_and_normalise(
        &self,
        stream: &CudaStream,
        batch: &Batch,
        update: &Buffer,
        norm: &Norm,
        hidden: &mut Buffer,
    ) -> Result<(), Error> {
        let rows = batch.rows as u32;
        let mut launch = stream.launch_builder(&self.add_and_normalise);
        launch
            .arg(update)
            .arg(&norm.gain)
            .arg(&norm.bias)
            .arg(hidden)
            .arg(&rows);
        // SAFETY: both buffers have room for the rows.
        unsafe { launch.launch(blocks(warps(batch.rows))) }?;
        Ok(())
    }

    pub(super) fn activate(
        &self,
        stream: &CudaStream,
        batch: &Batch,
        inner: &mut Buffer,
    ) -> Result<(), Error> {
        let vectors = self
            .shape
            .bytes(batch.rows * self.shape.inner)
            .div_ceil(VECTOR_BYTES);
        let count = vectors as u32;
        let mut launch = stream.launch_builder(&self.activate_all);
        launch.arg(inner).arg(&count);
        // SAFETY: the buffer has room for the rows, and is a multiple of such vectors.
        unsafe { launch.launch(blocks(vectors.div_ceil(THREADS))) }?;
        Ok(())
    }

    pub(super) fn pool(&self, own: &mut Workspace, batch: &Batch) -> Result<(), Error> {
        let texts: CudaView<u32> = own.input.slice(batch.text_words());
        let mut launch = own.stream.launch_builder(&self.pool);
        launch.arg(&own.hidden).arg(&texts).arg(&mut own.vectors);
        // SAFETY: the texts lie within the rows, and there is room for a vector of each.
        unsafe { launch.launch(blocks(batch.texts)) }?;
        Ok(())
    }
}

/// Blocks of warps that take one row or unit each.
fn warps(units: usize) -> usize {
    units.div_ceil(THREADS / THREADS_A_WARP)
}

fn blocks(count: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count as u32, 1, 1),
        block_dim: (THREADS as u32, 1, 1),
        shared_mem_bytes: 0,
    }
}
