//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled at the first SIGINT or SIGTERM.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let cancelled = token.clone();
    tokio::spawn(async move {
        for again in [false, true] {
            let name = tokio::select! {
                _ = interrupt.recv() => "SIGINT",
                _ = terminate.recv() => "SIGTERM",
            };
            if again {
                tracing::warn!(
                    signal = name,
                    "ending at once; what was under way is done again at the next start"
                );
                std::process::exit(130);
            }
            tracing::info!(
                signal = name,
                "ending: finishing and committing what is under way; again to end at once"
            );
            cancelled.cancel();
        }
    });
    Ok(token)
}

/// What `work` comes to; none where it has not by `limit` after `shutdown`.
pub(crate) async fn or_given_up<T>(
    work: impl Future<Output = T>,
    shutdown: &CancellationToken,
    limit: Duration,
) -> Option<T> {
    let too_long = async {
        shutdown.cancelled().await;
        sleep(limit).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = too_long => None,
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn what_comes_to_no_end_does_not_hold_up_the_end() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let limit = Duration::from_millis(10);
        assert_eq!(or_given_up(ready(7), &shutdown, limit).await, Some(7));
        assert_eq!(or_given_up(pending::<i32>(), &shutdown, limit).await, None);
    }
}
