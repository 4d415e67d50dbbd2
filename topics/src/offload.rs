//! Work that takes long, kept off the threads that serve everybody.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs `work` where it holds nobody up. On a runtime of one thread it runs in place, so that everything there happens in
/// one order, the same each time.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and whoever waits here with it.
            Err(_) => std::future::pending().await,
        },
    }
}
