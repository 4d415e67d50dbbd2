//! What is settled for the whole process, before anything runs: how it allocates, and who uses its cores.

#![expect(
    unsafe_code,
    reason = "an allocator's settings are a symbol, and candle's an environment variable"
)]

/// Records are many small allocations, made on one thread and given back on another, and files are few large ones: the
/// system's allocator spends a tenth of a service's time on them, and takes more memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A model allocates and frees its tensors, of up to some 10 MB each, thousands of times a second. Large ones in pages of
/// their own that go back to the system at once cost a quarter of the model's time in page faults. And what one thread gives
/// back the next one of the same core takes: an arena a thread had the sink touch half as much memory again.
// SAFETY: jemalloc reads this symbol as a pointer to a text that ends in zero, and so it is.
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_SETTINGS: &[u8; 52] = b"thp:always,oversize_threshold:0,percpu_arena:percpu\0";

const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Keeps candle from spreading the operations of one micro-batch over all cores, which wait for one another after each: the
/// processor runs a micro-batch on every core instead. To be called before any thread is started.
pub(crate) fn settle() {
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: no other thread runs yet that could read the environment.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
}
