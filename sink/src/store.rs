//! The object store that the lake is in.

use std::{collections::BTreeMap, error::Error as _, path::PathBuf, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, future::join_all};
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    local::LocalFileSystem, memory::InMemory, path::Path, prefix::PrefixStore,
};
use url::Url;

use crate::{Error, layout};

/// Settings of the store, by their names in the `object_store` crate, such as `aws_endpoint`.
pub type Options = BTreeMap<String, String>;

/// How often a create is tried that is answered "already exists" while nothing is there.
const CREATE_TRIES_MAX: usize = 8;
/// How often a create is tried again of which nobody knows whether it was done. The client of the store does not: to it a
/// create that is repeated is another one. More would only put off that the service starts over.
const CREATES_AGAIN_MAX: usize = 3;
/// How long a request may take, body and answer, where the user does not say. The client's own 30 s would have a file of
/// `sink.file_bytes_max` need a link of tens of megabits that it has for itself, and each start over end the same way.
#[cfg(feature = "cloud")]
const REQUEST_LIMIT: &str = "5 minutes";
/// How often the start-up proof creates one key from all sides. A store that does not lock is caught at nearly every try.
const PROBE_ROUNDS: usize = 4;
/// How many creates of one key run side by side in the proof.
const PROBE_WRITERS: usize = 16;
/// A round in which nobody is told that he won proves nothing: the winner's answer was lost, or all writes were in conflict.
/// So many such rounds are tried again.
const PROBE_ROUNDS_LOST_MAX: usize = 16;

/// The object store that the lake is in. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: Arc<str>,
}

/// How one round of the start-up proof ended.
enum Round {
    /// One create won, and its bytes are there.
    OneWon,
    /// None was told that it won; what one of them was told instead.
    NobodyWon(StoreError),
    /// So many won, or one did and other bytes are there.
    NotAtomic { winners: usize },
}

/// What became of a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The object is there now, with the bytes given.
    New,
    /// The object was there already, with the same bytes.
    Same,
    /// The object was there already, with these bytes.
    Different(Bytes),
}

impl Store {
    /// Opens the lake at `url`: a folder, which is created where it is missing, or `s3://`, `gs://`, `az://` with
    /// `options` on top of the usual variables of the environment.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the address or a setting is wrong.
    pub fn open(url: &str, options: &Options) -> Result<Self, Error> {
        let invalid = |why: String| invalid(url, &why);
        match place(url).map_err(invalid)? {
            Place::Folder(folder) => {
                std::fs::create_dir_all(&folder).map_err(|error| invalid(error.to_string()))?;
                let store = LocalFileSystem::new_with_prefix(&folder);
                let store = store.map_err(|error| invalid(error.to_string()))?;
                Ok(Self::over(Arc::new(store.with_fsync(true)), url))
            }
            Place::Remote(parsed) => Ok(Self::over(remote(&parsed, options).map_err(invalid)?, url)),
        }
    }

    /// The same to read what sinks have written there: a lake is not made by looking at it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the address or a setting is wrong, or no sink has written there;
    /// [`Error::Unavailable`] where the store does not answer.
    pub async fn open_written(url: &str, options: &Options) -> Result<Self, Error> {
        if let Place::Folder(folder) = place(url).map_err(|why| invalid(url, &why))?
            && !folder.is_dir()
        {
            return Err(invalid(url, "there is no such folder"));
        }
        let store = Self::open(url, options)?;
        match store.inner.list(Some(&layout::path(layout::RANGES))).next().await {
            Some(Ok(_)) => Ok(store),
            Some(Err(error)) => Err(store.failed("list its ranges", error)),
            None => Err(invalid(url, "no sink has written there: nothing is in `_ranges`")),
        }
    }

    /// The lake in `inner`; `url` is what it is called in messages.
    pub fn over(inner: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self {
            inner,
            url: url.into(),
        }
    }

    /// What the lake is called in messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    /// Creates an object, never overwriting one. What is there already is read back and compared: some stores answer
    /// "already exists" to a conflict that left nothing, and then it is tried again. So it is where the answer is lost: what
    /// the first try has left is the same.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the store does not answer or goes on contradicting itself.
    pub async fn create(&self, path: &Path, bytes: impl Into<PutPayload>) -> Result<Created, Error> {
        let bytes = bytes.into();
        let backoff = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(20))
            .with_jitter();
        let mut waits = backoff.with_max_times(CREATE_TRIES_MAX).build();
        let mut waits_for_an_answer = ExponentialBuilder::new()
            .with_max_times(CREATES_AGAIN_MAX)
            .build();
        loop {
            let options = PutOptions {
                mode: PutMode::Create,
                ..PutOptions::default()
            };
            let refused = match self.inner.put_opts(path, bytes.clone(), options).await {
                Ok(_) => return Ok(Created::New),
                Err(error @ (StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => error,
                Err(error) => {
                    let error = self.failed(&format!("create `{path}`"), error);
                    let wait = waits_for_an_answer.next().filter(|_| error.is_retryable());
                    let Some(wait) = wait else {
                        return Err(error);
                    };
                    let cause = error.source().map(ToString::to_string);
                    tracing::warn!(%error, cause, wait_ms = wait.as_millis() as u64, "creating it again");
                    tokio::time::sleep(wait).await;
                    continue;
                }
            };
            match self.read(path).await? {
                Some(found) if is_same(&found, &bytes) => return Ok(Created::Same),
                Some(found) => return Ok(Created::Different(found)),
                None => match waits.next() {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => {
                        return Err(Error::Unavailable {
                            what: format!("create `{path}`"),
                            source: refused,
                        });
                    }
                },
            }
        }
    }

    /// Reads an object; none where it is not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the store does not answer.
    pub async fn read(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        let read = async { self.inner.get(path).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(&format!("read `{path}`"), error)),
        }
    }

    /// Whether an object is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the store does not answer.
    pub(crate) async fn has(&self, path: &Path) -> Result<bool, Error> {
        match self.inner.head(path).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.failed(&format!("look for `{path}`"), error)),
        }
    }

    /// The paths under `folder`, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the store does not answer.
    pub async fn list(&self, folder: &Path) -> Result<Vec<Path>, Error> {
        let mut paths: Vec<Path> = self.list_behind(folder, None).try_collect().await?;
        paths.sort();
        Ok(paths)
    }

    /// The paths under `folder` that sort behind one, or all, in whatever order the store lists them.
    pub(crate) fn list_behind(
        &self,
        folder: &Path,
        behind: Option<&Path>,
    ) -> impl Stream<Item = Result<Path, Error>> + use<> {
        let listed = match behind {
            Some(behind) => self.inner.list_with_offset(Some(folder), behind),
            None => self.inner.list(Some(folder)),
        };
        let (store, what) = (self.clone(), format!("list `{folder}`"));
        listed.map(move |meta| match meta {
            Ok(meta) => Ok(meta.location),
            Err(error) => Err(store.failed(&what, error)),
        })
    }

    /// Proves that of many creates of one key exactly one wins, and that its bytes are what is there then.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the store is not atomic in this; [`Error::Unavailable`] where it does not answer, or does not
    /// say who won.
    pub async fn prove_create_is_atomic(&self) -> Result<(), Error> {
        let (mut proven, mut lost) = (0, 0);
        while proven < PROBE_ROUNDS {
            match self.probe().await? {
                Round::OneWon => proven += 1,
                Round::NobodyWon(_) if lost < PROBE_ROUNDS_LOST_MAX => lost += 1,
                Round::NobodyWon(source) => {
                    return Err(Error::Unavailable {
                        what: format!(
                            "prove that `{}` creates atomically: of {PROBE_WRITERS} creates of one key none is told that it won",
                            self.url
                        ),
                        source,
                    });
                }
                Round::NotAtomic { winners } => {
                    return Err(Error::Invalid {
                        what: format!(
                            "the store of the lake `{}` does not create atomically: of {PROBE_WRITERS} creates of one key {winners} won{}. Exactly-once rests on that; use AWS S3, Google Cloud Storage, Azure, versitygw 1.8.0 or later, or a local folder",
                            self.url,
                            if winners == 1 {
                                ", and the bytes of another are there"
                            } else {
                                ""
                            }
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    async fn probe(&self) -> Result<Round, Error> {
        let path = layout::path(&format!("{}/{}", layout::PROBES, uuid::Uuid::new_v4().simple()));
        let creates = (0..PROBE_WRITERS).map(|writer| {
            let bytes = Bytes::from(format!("writer {writer} {}", "x".repeat(1_000)));
            let path = path.clone();
            async move {
                let options = PutOptions {
                    mode: PutMode::Create,
                    ..PutOptions::default()
                };
                (
                    self.inner.put_opts(&path, bytes.clone().into(), options).await,
                    bytes,
                )
            }
        });
        let (mut winners, mut refused) = (Vec::new(), None);
        for (result, bytes) in join_all(creates).await {
            match result {
                Ok(_) => winners.push(bytes),
                Err(error @ (StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => {
                    refused = Some(error);
                }
                Err(error) => return Err(self.failed(&format!("create `{path}`"), error)),
            }
        }
        let found = self.read(&path).await?;
        // What a probe leaves behind does no harm, so a failure to remove it is none of the sink.
        let _ = self.inner.delete(&path).await;
        Ok(match (winners.as_slice(), refused) {
            ([], Some(refused)) => Round::NobodyWon(refused),
            ([winner], _) if found.as_ref() == Some(winner) => Round::OneWon,
            _ => Round::NotAtomic {
                winners: winners.len(),
            },
        })
    }

    fn failed(&self, what: &str, source: StoreError) -> Error {
        match source {
            StoreError::PermissionDenied { .. }
            | StoreError::Unauthenticated { .. }
            | StoreError::NotImplemented { .. }
            | StoreError::NotSupported { .. }
            | StoreError::UnknownConfigurationKey { .. } => Error::Invalid {
                what: format!("the lake `{}` refuses to {what}: {source}", self.url),
            },
            source => Error::Unavailable {
                what: format!("{what} in `{}`", self.url),
                source,
            },
        }
    }
}

fn invalid(url: &str, why: &str) -> Error {
    Error::Invalid {
        what: format!("the lake `{url}` cannot be opened: {why}"),
    }
}

/// What a lake's address names.
enum Place {
    Folder(PathBuf),
    Remote(Url),
}

fn place(url: &str) -> Result<Place, String> {
    match Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => match parsed.to_file_path() {
            Ok(folder) => Ok(Place::Folder(folder)),
            Err(()) => Err("it is no path of this machine".to_owned()),
        },
        // Of one letter it would be a drive.
        Ok(parsed) if parsed.scheme().len() > 1 => Ok(Place::Remote(parsed)),
        _ => Ok(Place::Folder(url.into())),
    }
}

fn is_same(found: &Bytes, bytes: &PutPayload) -> bool {
    let mut rest = &found[..];
    found.len() == bytes.content_length()
        && bytes.iter().all(|part| {
            let (same, more) = rest.split_at(part.len());
            rest = more;
            same == part
        })
}

#[cfg(feature = "cloud")]
fn remote(url: &Url, options: &Options) -> Result<Arc<dyn ObjectStore>, String> {
    use object_store::{aws::AmazonS3ConfigKey, azure::AzureConfigKey, gcp::GoogleConfigKey};
    let known: fn(&str) -> bool = match url.scheme() {
        "memory" => return Ok(Arc::new(InMemory::new())),
        "s3" | "s3a" => |key| key.parse::<AmazonS3ConfigKey>().is_ok(),
        "gs" => |key| key.parse::<GoogleConfigKey>().is_ok(),
        _ => |key| key.parse::<AzureConfigKey>().is_ok(),
    };
    if let Some(unknown) = options.keys().find(|key| !known(key)) {
        return Err(format!(
            "sink.options.{unknown} is no setting of a {}:// store",
            url.scheme()
        ));
    }
    let defaults = std::iter::once(("timeout".to_owned(), REQUEST_LIMIT.to_owned()));
    let environment = std::env::vars()
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .filter(|(key, _)| known(key));
    let options = defaults.chain(environment).chain(options.clone());
    let (store, prefix) = object_store::parse_url_opts(url, options).map_err(|error| error.to_string())?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

#[cfg(not(feature = "cloud"))]
fn remote(url: &Url, _options: &Options) -> Result<Arc<dyn ObjectStore>, String> {
    match url.scheme() {
        "memory" => Ok(Arc::new(PrefixStore::new(InMemory::new(), Path::default()))),
        scheme => Err(format!(
            "this build knows no {scheme}:// stores: build it with --features cloud, or give a folder"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_and_memory_create_atomically() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_str().unwrap(), &Options::new()).unwrap();
        store.prove_create_is_atomic().await.unwrap();
        Store::open("memory://lake", &Options::new())
            .unwrap()
            .prove_create_is_atomic()
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_there_already_is_compared_and_never_overwritten() {
        let store = Store::open("memory://lake", &Options::new()).unwrap();
        let (path, one, two) = (
            layout::path("a"),
            Bytes::from_static(b"1"),
            Bytes::from_static(b"2"),
        );
        assert_eq!(store.create(&path, one.clone()).await.unwrap(), Created::New);
        assert_eq!(store.create(&path, one.clone()).await.unwrap(), Created::Same);
        assert_eq!(
            store.create(&path, two).await.unwrap(),
            Created::Different(one.clone())
        );
        assert_eq!(store.read(&path).await.unwrap(), Some(one));
    }

    #[tokio::test]
    async fn a_lake_that_no_sink_has_written_to_is_none_and_is_not_made_by_looking_at_it() {
        let folder = tempfile::tempdir().unwrap();
        let opened = async |path: &std::path::Path| {
            let opened = Store::open_written(path.to_str().unwrap(), &Options::new()).await;
            opened.map_err(|error| error.to_string())
        };
        let nowhere = folder.path().join("lkae");
        let complaint = opened(&nowhere).await.unwrap_err();
        assert!(complaint.contains("there is no such folder"), "{complaint}");
        assert!(!nowhere.exists());
        let complaint = opened(folder.path()).await.unwrap_err();
        assert!(complaint.contains("no sink has written there"), "{complaint}");
        let store = Store::open(folder.path().to_str().unwrap(), &Options::new()).unwrap();
        let intent = layout::path("_ranges/x/0/00000000000000000000.json");
        store.create(&intent, Bytes::new()).await.unwrap();
        opened(folder.path()).await.unwrap();
    }

    #[test]
    fn a_lake_that_cannot_be_written_says_which_and_why() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Store::open(file.join("lake").to_str().unwrap(), &Options::new()).unwrap_err();
        assert!(error.to_string().contains("cannot be opened"), "{error}");
    }
}
