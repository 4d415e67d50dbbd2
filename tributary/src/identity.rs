//! The keys that tokens are checked with, followed while services run.

use std::sync::Arc;

use ingest::identity::{Config, Identity, Keys};
use schemas::Operation;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    audit::{self, Auditor},
    followed_file::{FollowedFile, looks},
    metric_names,
};

/// Keeps the keys in force those of the file. A key that is taken out of it is good for about two looks more.
pub(crate) struct Follower {
    /// None where no token is demanded.
    followed: Option<(Config, FollowedFile)>,
    in_force: watch::Sender<Arc<Identity>>,
    auditor: Auditor,
}

impl Follower {
    /// Reads the keys, where a token is demanded.
    ///
    /// # Errors
    /// Where the file cannot be read or holds no keys.
    pub(crate) fn open(config: &Config) -> anyhow::Result<Self> {
        let Some(path) = config.check().map_err(anyhow::Error::msg)? else {
            return Ok(Self::nowhere());
        };
        let (file, text) = FollowedFile::open("key file of identity.keys", path.clone())?;
        let keys = Keys::read(&text)
            .map_err(|problem| anyhow::anyhow!("key file `{file}` of identity.keys: {problem}"))?;
        let identity = Identity::new(config, keys);
        Ok(Self {
            followed: Some((config.clone(), file)),
            in_force: watch::Sender::new(Arc::new(identity)),
            auditor: Auditor::default(),
        })
    }

    /// No token is demanded.
    pub(crate) fn nowhere() -> Self {
        Self {
            followed: None,
            in_force: watch::Sender::new(Arc::new(Identity::nowhere())),
            auditor: Auditor::default(),
        }
    }

    /// The same, which tells `auditor` of each file of keys.
    pub(crate) fn audited(self, auditor: Auditor) -> Self {
        Self { auditor, ..self }
    }

    /// Who can prove who he is, now and from now on.
    pub(crate) fn identity(&self) -> watch::Receiver<Arc<Identity>> {
        self.in_force.subscribe()
    }

    /// Looks again and again until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let mut looks = looks();
        let for_ever = async {
            loop {
                looks.tick().await;
                self.look().await;
            }
        };
        shutdown.run_until_cancelled(for_ever).await;
        Ok(())
    }

    async fn look(&mut self) {
        let Some((config, file)) = &mut self.followed else {
            return;
        };
        let Some(text) = file.look().await else { return };
        let source = file.to_string();
        let result = match Keys::read(&text) {
            Ok(keys) => {
                tracing::info!(source, keys = keys.count(), "keys changed");
                let detail = format!("{} keys", keys.count());
                self.auditor.tell(Operation::TakeKeys, &source, None, detail);
                let identity = Identity::new(config, keys);
                self.in_force.send_replace(Arc::new(identity));
                "taken"
            }
            Err(problem) => {
                tracing::error!(source, %problem, "keys refused as a whole: those in force stay so");
                self.auditor.tell(
                    Operation::TakeKeys,
                    &source,
                    Some(audit::REFUSED),
                    problem.to_string(),
                );
                "refused"
            }
        };
        metrics::counter!(metric_names::KEY_SETS, "result" => result).increment(1);
    }
}
