//! The files of a model's folder, as sentence-transformers or transformers saves it.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use super::Fault;

/// A model's folder, wherever it came from.
pub(super) struct Folder {
    root: PathBuf,
}

/// What decides a model's answers, read into memory.
pub(super) struct Files {
    /// The encoder's shape.
    pub(super) config: File,
    /// Vocabulary and rules of the tokenizer.
    pub(super) tokenizer: File,
    /// The tokenizer's window, for a model that states no other.
    pub(super) tokenizer_config: Option<File>,
    /// The model's window, and whether letters are lowered first.
    pub(super) sentence: Option<File>,
    /// Prompts that sentence-transformers would put before each text.
    pub(super) prompts: Option<File>,
    /// How tokens become one vector; none in a bare transformers folder.
    pub(super) pooling: Option<File>,
    /// Whether vectors have length one.
    pub(super) normalise: bool,
    /// Which module follows which; none in a bare transformers folder.
    modules: Option<File>,
    /// The weights.
    pub(super) weights: File,
}

/// One file.
pub(super) struct File {
    /// Where it was read.
    pub(super) path: PathBuf,
    /// Its path within the model's folder, with forward slashes.
    pub(super) name: String,
    /// What it holds.
    pub(super) bytes: Vec<u8>,
}

/// An entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// Where the parts of a model are within its folder.
struct Layout {
    transformer: String,
    pooling: Option<String>,
    normalise: bool,
}

const MODULES: &str = "modules.json";
const WEIGHTS: &str = "model.safetensors";

impl Folder {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Reads all that decides the answers.
    pub(super) fn files(&self) -> Result<Files, Fault> {
        let modules = self.read_if_there(MODULES)?;
        let layout = match &modules {
            Some(modules) => Layout::of(modules)?,
            // sentence-transformers reads a bare folder as mean pooling; its models that are meant for such use
            // are compared by the cosine, so length one loses nothing.
            None => Layout {
                transformer: String::new(),
                pooling: None,
                normalise: true,
            },
        };
        let at = |name: &str| within(&layout.transformer, name);
        Ok(Files {
            config: self.read(&at("config.json"))?,
            tokenizer: self.read(&at("tokenizer.json"))?,
            tokenizer_config: self.read_if_there(&at("tokenizer_config.json"))?,
            sentence: self.read_if_there(&at("sentence_bert_config.json"))?,
            prompts: self.read_if_there("config_sentence_transformers.json")?,
            pooling: match &layout.pooling {
                Some(folder) => Some(self.read(&within(folder, "config.json"))?),
                None => None,
            },
            normalise: layout.normalise,
            modules,
            weights: self.weights(&at(WEIGHTS))?,
        })
    }

    fn weights(&self, name: &str) -> Result<File, Fault> {
        let sharded = self.root.join(format!("{name}.index.json"));
        let pickled = self.root.join(name).with_file_name("pytorch_model.bin");
        match self.read_if_there(name)? {
            Some(weights) => Ok(weights),
            None if sharded.exists() => Err(Fault::Malformed {
                path: sharded,
                problem: "splits the weights over several files: save them as one model.safetensors"
                    .to_owned(),
            }),
            None if pickled.exists() => Err(Fault::Malformed {
                path: pickled,
                problem:
                    "is the only weights file, and a pickle can run code: save them as model.safetensors"
                        .to_owned(),
            }),
            None => self.read(name),
        }
    }

    fn read(&self, name: &str) -> Result<File, Fault> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(File {
                path,
                name: name.to_owned(),
                bytes,
            }),
            Err(source) => Err(Fault::Unreadable { path, source }),
        }
    }

    fn read_if_there(&self, name: &str) -> Result<Option<File>, Fault> {
        match self.read(name) {
            Err(Fault::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }
}

impl Files {
    /// Every file, in the order of the digest.
    pub(super) fn all(&self) -> impl Iterator<Item = &File> {
        [
            Some(&self.config),
            Some(&self.tokenizer),
            self.tokenizer_config.as_ref(),
            self.sentence.as_ref(),
        ]
        .into_iter()
        .chain([
            self.prompts.as_ref(),
            self.modules.as_ref(),
            self.pooling.as_ref(),
            Some(&self.weights),
        ])
        .flatten()
    }
}

impl File {
    /// The file as JSON of this shape.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| self.malformed(format!("is not as expected: {error}")))
    }

    pub(super) fn malformed(&self, problem: String) -> Fault {
        Fault::Malformed {
            path: self.path.clone(),
            problem,
        }
    }
}

impl Layout {
    /// A transformer, a pooling and perhaps a normalisation, in this order: what sentence-transformers runs one after
    /// the other. The classes changed their packages over the years, never their names.
    fn of(file: &File) -> Result<Self, Fault> {
        let modules = file.json::<Vec<Module>>()?;
        for module in &modules {
            let plain = Path::new(&module.path)
                .components()
                .all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(file.malformed(format!(
                    "names the path `{}`, which leads out of the folder",
                    module.path
                )));
            }
        }
        let classes: Vec<_> = modules.iter().map(Module::name).collect();
        let normalise = match classes.as_slice() {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => {
                return Err(Fault::Unsupported {
                    path: file.path.clone(),
                    field: "the modules",
                    found: format!("`{}`", classes.join(", ")),
                    supported: "`Transformer, Pooling` and `Transformer, Pooling, Normalize`",
                });
            }
        };
        Ok(Self {
            transformer: modules[0].path.clone(),
            pooling: Some(modules[1].path.clone()),
            normalise,
        })
    }
}

impl Module {
    fn name(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }
}

fn within(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(modules: &str) -> Result<Layout, Fault> {
        Layout::of(&File {
            path: "m/modules.json".into(),
            name: MODULES.to_owned(),
            bytes: modules.into(),
        })
    }

    #[test]
    fn modules_are_known_by_their_class_whatever_package_it_is_in() {
        for package in [
            "sentence_transformers.models",
            "sentence_transformers.base.modules.transformer",
        ] {
            let modules = format!(
                r#"[{{"path":"0_T","type":"{package}.Transformer"}},{{"path":"1_P","type":"{package}.Pooling"}}]"#
            );
            let layout = layout(&modules).unwrap();
            assert_eq!(
                (layout.transformer.as_str(), layout.pooling.as_deref()),
                ("0_T", Some("1_P"))
            );
            assert!(!layout.normalise);
        }
    }

    #[test]
    fn a_module_that_we_do_not_run_is_named() {
        let modules = r#"[{"path":"","type":"x.Transformer"},{"path":"1","type":"x.Pooling"},{"path":"2","type":"x.Dense"}]"#;
        let fault = layout(modules).err().unwrap().to_string();
        assert!(
            fault.contains("the modules `Transformer, Pooling, Dense`"),
            "{fault}"
        );
    }

    #[test]
    fn a_module_cannot_lead_out_of_the_folder() {
        for path in ["../other", "/etc", "a/../../b"] {
            let modules =
                format!(r#"[{{"path":"{path}","type":"x.Transformer"}},{{"path":"1","type":"x.Pooling"}}]"#);
            let fault = layout(&modules).err().unwrap().to_string();
            assert!(fault.contains("leads out of the folder"), "{fault}");
        }
    }
}
