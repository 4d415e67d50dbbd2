//! A linear layer: rows times weights, plus a bias, by cuBLASLt.

use std::{ffi::c_void, ptr};

use cudarc::{
    cublaslt::{result, sys},
    driver::{CudaStream, DevicePtr, DevicePtrMut},
};

use super::{Buffer, Error, Gpu, gpu::Blas};
use crate::model::Dtype;

/// A linear layer's weights, and how they are multiplied.
///
/// cuBLASLt would choose another algorithm for another number of rows, which sums in another order and so gives other
/// bits. Here it is asked once, for a large micro-batch and among the algorithms that add up each number of the result in
/// one go, and the answer is used for any number of rows.
pub(super) struct Product {
    weight: Buffer,
    /// Added by cuBLASLt, which knows it by its address: the description has it.
    _bias: Buffer,
    description: Description,
    weight_layout: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    dtype: Dtype,
    inputs: usize,
    outputs: usize,
}

/// What a product of one micro-batch runs with.
pub(super) struct Scratch<'a> {
    pub(super) stream: &'a CudaStream,
    /// For cuBLASLt itself.
    pub(super) memory: &'a Buffer,
    pub(super) rows: usize,
}

/// NVIDIA's advice for Hopper, and more than enough for what came before it.
pub(super) const SCRATCH_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T`.
const TRANSPOSED: i32 = 1;

/// For so many rows the algorithm is chosen.
const ROWS_TYPICAL: usize = 8_192;

// SAFETY: descriptions and layouts are plain memory that nothing changes after `new`.
unsafe impl Send for Product {}
// SAFETY: as above.
unsafe impl Sync for Product {}

impl Product {
    /// `weight` has a row of `inputs` numbers for each of the `outputs`, `bias` one number for each.
    pub(super) fn new(
        gpu: &Gpu,
        dtype: Dtype,
        (inputs, outputs): (usize, usize),
        weight: Buffer,
        bias: Buffer,
    ) -> Result<Self, Error> {
        // A matrix of rows is to cuBLASLt, which thinks in columns, its transpose: result = weightᵀ × rows.
        let description = Description::new(&bias.device_ptr(gpu.loading()).0)?;
        let weight_layout = Layout::new(dtype, inputs, outputs)?;
        let (rows, sums) = (
            Layout::new(dtype, inputs, ROWS_TYPICAL)?,
            Layout::new(dtype, outputs, ROWS_TYPICAL)?,
        );
        let wishes = Wishes::new()?;
        // SAFETY: all of them were made by cuBLASLt and live until the end of this function.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                gpu.blas().0,
                description.0,
                weight_layout.0,
                rows.0,
                sums.0,
                sums.0,
                wishes.0,
            )
        }?;
        Ok(Self {
            weight,
            _bias: bias,
            description,
            weight_layout,
            algorithm: found.algo,
            dtype,
            inputs,
            outputs,
        })
    }

    /// Queues the product of `rows`, which has `inputs` numbers in each, into `sums`, which has room for `outputs`.
    pub(super) fn run(
        &self,
        blas: &Blas,
        with: &Scratch,
        rows: &Buffer,
        sums: &mut Buffer,
    ) -> Result<(), Error> {
        let size = super::kernels::size(self.dtype);
        assert!(
            rows.len() >= with.rows * self.inputs * size && sums.len() >= with.rows * self.outputs * size
        );
        let rows_layout = Layout::new(self.dtype, self.inputs, with.rows)?;
        let sums_layout = Layout::new(self.dtype, self.outputs, with.rows)?;
        let (one, zero) = (1_f32, 0_f32);
        let (weight, _weight) = self.weight.device_ptr(with.stream);
        let (rows, _rows) = rows.device_ptr(with.stream);
        let (sums, _sums) = sums.device_ptr_mut(with.stream);
        let (memory, _memory) = with.memory.device_ptr(with.stream);
        // SAFETY: the layouts describe no more than the buffers hold, as asserted; the scratch memory has
        // `SCRATCH_BYTES`, and is this stream's own.
        unsafe {
            result::matmul(
                blas.0,
                self.description.0,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&zero).cast(),
                weight as *const c_void,
                self.weight_layout.0,
                rows as *const c_void,
                rows_layout.0,
                sums as *const c_void,
                sums_layout.0,
                sums as *mut c_void,
                sums_layout.0,
                &raw const self.algorithm,
                memory as *mut c_void,
                SCRATCH_BYTES,
                with.stream.cu_stream().cast(),
            )
        }?;
        Ok(())
    }
}

/// What is computed: in 32 bits, whatever the numbers are, with the weights transposed and a bias added.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(bias: &cudarc::driver::sys::CUdeviceptr) -> Result<Self, Error> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        // Not TF32, which would keep 10 bits of an `f32`'s 23.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = Self(result::create_matmul_desc(
            compute,
            sys::cudaDataType_t::CUDA_R_32F,
        )?);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        description.set(
            Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
            &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        )?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        Ok(description)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the value is as large as is said, and copied.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        }?;
        Ok(())
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: nothing else destroys it.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// Columns of numbers, one after the other.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: Dtype, numbers: usize, columns: usize) -> Result<Self, Error> {
        let of = match dtype {
            Dtype::F32 => sys::cudaDataType_t::CUDA_R_32F,
            Dtype::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Dtype::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Dtype::Int8 | Dtype::Auto => unreachable!("a device has its dtype resolved"),
        };
        Ok(Self(result::create_matrix_layout(
            of,
            numbers as u64,
            columns as u64,
            numbers as i64,
        )?))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: nothing else destroys it, and cuBLASLt copies what it needs of it.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm may do.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new() -> Result<Self, Error> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let wishes = Self(result::create_matmul_pref()?);
        wishes.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &SCRATCH_BYTES,
        )?;
        // No reduction scheme: no sum is split and put together afterwards.
        wishes.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &0_u32)?;
        Ok(wishes)
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<(), Error> {
        // SAFETY: the value is as large as is said, and copied.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        }?;
        Ok(())
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: nothing else destroys it.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
