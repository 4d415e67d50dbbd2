//! How a record is put into bytes: one byte of version, then MessagePack with named fields.
//!
//! Named fields let a newer writer add an optional field without a new version; the version changes when an old
//! reader would misunderstand. MessagePack, so that any language can read the internal topics too.

use serde::{Deserialize, Serialize};

/// A value that crosses a topic.
pub trait Record: Serialize {
    /// What this record is called in errors.
    const KIND: &'static str;
    /// The version that this build writes, and the only one that it reads.
    const VERSION: u8;

    /// About how many bytes the record encodes to.
    fn size_hint(&self) -> usize;

    /// The record as bytes.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.size_hint());
        bytes.push(Self::VERSION);
        rmp_serde::encode::write_named(&mut bytes, self)
            .expect("a record has only types that MessagePack can hold");
        bytes
    }

    /// The record that [`Record::encode`] put into `bytes`. It may borrow from them.
    ///
    /// # Errors
    /// [`DecodeError`], which says whether a newer build wrote it or nobody of ours did.
    fn decode<'a>(bytes: &'a [u8]) -> Result<Self, DecodeError>
    where
        Self: Deserialize<'a>,
    {
        rmp_serde::from_slice(Self::body(bytes)?).map_err(|source| DecodeError::Malformed {
            kind: Self::KIND,
            source,
        })
    }

    /// What follows the version in `bytes`.
    ///
    /// # Errors
    /// [`DecodeError::Empty`], or [`DecodeError::UnknownVersion`] where this build cannot read the rest.
    fn body(bytes: &[u8]) -> Result<&[u8], DecodeError> {
        match bytes.split_first() {
            None => Err(DecodeError::Empty { kind: Self::KIND }),
            Some((&version, body)) if version == Self::VERSION => Ok(body),
            Some((&found, _)) => Err(DecodeError::UnknownVersion {
                kind: Self::KIND,
                found,
                known: Self::VERSION,
            }),
        }
    }
}

/// Why bytes are not the record they should be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A record without a value.
    #[error("{kind} record is empty")]
    Empty {
        /// The record's kind.
        kind: &'static str,
    },
    /// Written by another version of Tributary.
    #[error(
        "{kind} record has version {found}, and this build reads version {known}: {}",
        if found > known { "upgrade the readers first" } else { "let the readers of that version finish first" }
    )]
    UnknownVersion {
        /// The record's kind.
        kind: &'static str,
        /// The version found.
        found: u8,
        /// The version that this build reads.
        known: u8,
    },
    /// Not MessagePack, or not of the record's shape.
    #[error("{kind} record is malformed")]
    Malformed {
        /// The record's kind.
        kind: &'static str,
        /// What the decoder found.
        source: rmp_serde::decode::Error,
    },
}
