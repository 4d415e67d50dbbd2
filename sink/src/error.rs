//! What goes wrong in a sink, by what to do next.

/// What went wrong in a sink.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The topics failed.
    #[error(transparent)]
    Topics(#[from] topics::Error),
    /// The store does not answer, or failed in passing: start over after a pause.
    #[error("the lake is not reachable: {what}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What came instead.
        source: object_store::Error,
    },
    /// Another sink fixed a range first, otherwise: start over from what stands in the lake.
    #[error("another sink fixed a range first: {what}")]
    Overtaken {
        /// Which range, and how.
        what: String,
    },
    /// The store's address, settings or rights are wrong: stop.
    #[error("{what}")]
    Invalid {
        /// What is wrong, and what would be right.
        what: String,
    },
    /// The lake and the log contradict each other: stop before anything is made worse.
    #[error("{what}")]
    Contradiction {
        /// Which parts of them, and what each says.
        what: String,
    },
}

impl Error {
    /// Whether starting over may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Topics(error) => error.is_retryable(),
            Self::Unavailable { .. } | Self::Overtaken { .. } => true,
            Self::Invalid { .. } | Self::Contradiction { .. } => false,
        }
    }
}
