//! A file that is read again when it changes while services run, and the value that it says.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use schemas::Operation;
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use topics::offload;

use crate::{
    audit::{self, Auditor},
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

/// What keeps up, while services run, with something that may change.
pub(crate) trait Follows: Send + Sized {
    /// Looks once.
    fn look(&mut self) -> impl Future<Output = ()> + Send;

    /// Looks again and again until `shutdown`.
    fn run(mut self, shutdown: CancellationToken) -> impl Future<Output = anyhow::Result<()>> + Send {
        async move {
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
    }
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
                text.map(|text| (stamp, config::without_mark(text)))
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

/// What a file says of something, kept in force while services run: a file that says it badly changes nothing.
pub(crate) struct FollowedValue<T: ?Sized> {
    /// None where it is fixed.
    followed: Option<(FollowedFile, Subject<T>)>,
    in_force: watch::Sender<Arc<T>>,
    auditor: Auditor,
}

/// What a file is about.
pub(crate) struct Subject<T: ?Sized> {
    /// What the file is called in messages, such as `key file of identity.keys`.
    pub(crate) file: &'static str,
    /// What it says, such as `keys`.
    pub(crate) values: &'static str,
    /// What an instance does that goes by another.
    pub(crate) operation: Operation,
    /// Counts them, by `result`.
    pub(crate) metric: &'static str,
    pub(crate) read: Box<Reading<T>>,
}

/// The value that a text says, and in how many words it is told; or what is wrong with the text.
type Reading<T> = dyn Fn(&str) -> Result<(Arc<T>, String), String> + Send;

impl<T: ?Sized> FollowedValue<T> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// Where it cannot be read, or says it badly.
    pub(crate) fn open(subject: Subject<T>, path: &Path, auditor: Auditor) -> anyhow::Result<Self> {
        let (file, text) = FollowedFile::open(subject.file, path.to_owned())?;
        let (value, _) = (subject.read)(&text)
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("{} `{file}`", subject.file))?;
        Ok(Self {
            followed: Some((file, subject)),
            in_force: watch::Sender::new(value),
            auditor,
        })
    }

    /// Always `value`.
    pub(crate) fn fixed(value: Arc<T>) -> Self {
        Self {
            followed: None,
            in_force: watch::Sender::new(value),
            auditor: Auditor::default(),
        }
    }

    /// The value in force, now and from now on.
    pub(crate) fn in_force(&self) -> watch::Receiver<Arc<T>> {
        self.in_force.subscribe()
    }
}

impl<T: ?Sized + Send + Sync> Follows for FollowedValue<T> {
    async fn look(&mut self) {
        let Some((file, subject)) = &mut self.followed else {
            return;
        };
        let Some(text) = file.look().await else { return };
        let (source, values) = (file.to_string(), subject.values);
        let result = match (subject.read)(&text) {
            Ok((value, detail)) => {
                self.in_force.send_replace(value);
                tracing::info!(source, detail, "{values} changed");
                self.auditor.tell(subject.operation, &source, None, detail);
                "taken"
            }
            Err(problem) => {
                tracing::error!(
                    source,
                    problem,
                    "{values} refused as a whole: those in force stay so"
                );
                self.auditor
                    .tell(subject.operation, &source, Some(audit::REFUSED), problem);
                "refused"
            }
        };
        metrics::counter!(subject.metric, "result" => result).increment(1);
    }
}
