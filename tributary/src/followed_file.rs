//! A file that is read again when it changes while services run.

use std::{path::PathBuf, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};
use topics::offload;

use crate::{
    config,
    file_watch::{FileWatch, Next, Stamp},
};

/// How often to look at what may change while services run.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// The times to look at. One that takes long puts the others off.
pub(crate) fn looks() -> Interval {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// A file, and what is known of it.
#[derive(Debug)]
pub(crate) struct FollowedFile {
    /// What it is called in messages, such as `tenants file`.
    kind: &'static str,
    path: PathBuf,
    watch: FileWatch,
}

impl FollowedFile {
    /// Reads it for the first time.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn open(kind: &'static str, path: PathBuf) -> anyhow::Result<(Self, String)> {
        let text = config::read(kind, &path)?;
        let watch = FileWatch::new(text.clone());
        Ok((Self { kind, path, watch }, text))
    }

    /// Its content, where that is new and stood there at two looks in a row. One that cannot be read is complained of once.
    pub(crate) async fn look(&mut self) -> Option<String> {
        let path = self.path.clone();
        let stamp = offload(move || std::fs::metadata(path).map(|file| Stamp::of(&file))).await;
        let read = match stamp {
            Ok(stamp) if self.watch.look(&stamp) == Next::Wait => return None,
            Ok(stamp) => {
                let path = self.path.clone();
                let text = offload(move || std::fs::read_to_string(path)).await;
                text.map(|text| (stamp, text))
            }
            Err(error) => Err(error),
        };
        match read {
            Ok((stamp, text)) => self.watch.read(stamp, text).map(str::to_owned),
            Err(error) => {
                if self.watch.fail() == Next::Complain {
                    tracing::error!(path = %self.path.display(), %error, "{} cannot be read: what is in force stays so", self.kind);
                }
                None
            }
        }
    }
}

impl std::fmt::Display for FollowedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}
