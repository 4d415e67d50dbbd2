//! Keeps a service running: a fault outside is waited out, and the service starts over from its committed positions.

use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio_util::sync::CancellationToken;

use crate::health::{Health, State};

/// A service that has run this long before a fault is taken for well: the next wait is short again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// An error that may pass.
pub(crate) trait Passing: std::error::Error + Send + Sync + 'static {
    /// Whether starting over may help.
    fn is_retryable(&self) -> bool;
}

impl Passing for topics::Error {
    fn is_retryable(&self) -> bool {
        topics::Error::is_retryable(self)
    }
}

impl Passing for sink::Error {
    fn is_retryable(&self) -> bool {
        sink::Error::is_retryable(self)
    }
}

/// Runs `run` until `shutdown`, again after every fault that may pass. `run` says through the health when it runs.
///
/// # Errors
/// The first error that starting over cannot help.
pub(crate) async fn keep_running<E: Passing, F: Future<Output = Result<(), E>>>(
    service: &'static str,
    health: &Health,
    shutdown: &CancellationToken,
    mut run: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let backoff = || {
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(15))
    };
    let mut waits = backoff().without_max_times().with_jitter().build();
    health.set(service, State::Starting);
    loop {
        let began = Instant::now();
        let error = match run().await {
            Ok(()) => return Ok(()),
            Err(error) if shutdown.is_cancelled() => {
                tracing::warn!(service, %error, "ended with work uncommitted: it is done again at the next start");
                return Ok(());
            }
            Err(error) if !error.is_retryable() => {
                return Err(anyhow::Error::new(error).context(format!("{service} stopped")));
            }
            Err(error) => error,
        };
        if began.elapsed() > WELL_AFTER {
            waits = backoff().without_max_times().with_jitter().build();
        }
        let wait = waits.next().expect("the backoff has no last wait");
        let causes = causes(&error);
        tracing::warn!(
            service,
            error = causes,
            wait_ms = wait.as_millis() as u64,
            "waiting, then starting over"
        );
        health.set(service, State::Waiting { reason: causes });
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
