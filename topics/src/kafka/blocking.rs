//! Calls that wait, kept off the threads that serve everybody.

use crate::Error;

/// Runs `work` where it holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => Err(Error::Unavailable {
                what: "call to the topics".to_owned(),
                detail: cancelled.to_string(),
            }),
        },
    }
}
