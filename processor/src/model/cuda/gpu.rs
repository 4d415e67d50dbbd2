//! The device, what is needed to run on it, and what can go wrong.

use std::sync::Arc;

use cudarc::{
    cublaslt, driver,
    driver::{CudaContext, CudaStream, DriverError},
    nvrtc,
};

/// A GPU that is ready to take a model.
#[derive(Clone)]
pub(in crate::model) struct Gpu {
    context: Arc<CudaContext>,
    blas: Arc<Blas>,
    loading: Arc<CudaStream>,
}

/// What a GPU, or a library that it needs, says.
#[derive(Debug, thiserror::Error)]
pub(in crate::model) enum Error {
    /// There is no driver, or not the libraries.
    #[error("{what} cannot be opened: {help}")]
    Missing { what: &'static str, help: &'static str },
    /// The model's shape is none that the kernels can do.
    #[error("the GPU's kernels cannot do {what}")]
    Shape { what: String },
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("cuBLASLt: {0}")]
    Blas(#[from] cublaslt::result::CublasError),
    #[error("the kernels do not compile: {0}")]
    Compile(#[from] nvrtc::CompileError),
    #[error(transparent)]
    Weights(#[from] candle_core::Error),
}

impl Gpu {
    /// The first one.
    pub(in crate::model) fn first() -> Result<Self, Error> {
        const TOOLKIT: &str = "install the CUDA runtime libraries, or name their folder in LD_LIBRARY_PATH";
        // SAFETY: each opens a library, runs its initialisers and leaves it open.
        let (driver, blas, compiler) = unsafe {
            (
                driver::sys::is_culib_present(),
                cublaslt::sys::is_culib_present(),
                nvrtc::sys::is_culib_present(),
            )
        };
        for (present, what, help) in [
            (driver, "libcuda", "install the NVIDIA driver"),
            (blas, "libcublasLt", TOOLKIT),
            (compiler, "libnvrtc", TOOLKIT),
        ] {
            if !present {
                return Err(Error::Missing { what, help });
            }
        }
        let context = CudaContext::new(0)?;
        // SAFETY: a workspace is used by one stream only, and weights are written before any stream reads them
        // (`finish_loading`), so no two streams need to be told of one another.
        unsafe { context.disable_event_tracking() };
        Ok(Self {
            blas: Arc::new(Blas(cublaslt::result::create_handle()?)),
            loading: context.new_stream()?,
            context,
        })
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn blas(&self) -> &Blas {
        &self.blas
    }

    /// What weights are copied on.
    pub(super) fn loading(&self) -> &Arc<CudaStream> {
        &self.loading
    }

    /// Waits until every weight is where it should be.
    pub(super) fn finish_loading(&self) -> Result<(), Error> {
        Ok(self.loading.synchronize()?)
    }

    /// `compute_90` and so on.
    pub(super) fn architecture(&self) -> Result<String, Error> {
        let (major, minor) = self.context.compute_capability()?;
        Ok(format!("compute_{major}{minor}"))
    }
}

/// A handle of cuBLASLt.
pub(super) struct Blas(pub(super) cublaslt::sys::cublasLtHandle_t);

// SAFETY: cuBLASLt may be called with one handle from many threads.
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nothing else destroys it. An error at the end of the process helps nobody.
        let _ = unsafe { cublaslt::result::destroy_handle(self.0) };
    }
}
