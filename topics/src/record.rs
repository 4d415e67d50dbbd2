//! Records, and where they stand.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use schemas::{TopicId, TopicName};

/// A topic that exists.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicRef {
    /// Its name.
    pub name: TopicName,
    /// Its id, which a re-created topic does not share.
    pub id: TopicId,
}

/// One partition of a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The topic.
    pub topic: Arc<TopicRef>,
    /// Which of its partitions.
    pub index: i32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.topic.name, self.index)
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({self})")
    }
}

/// A record as it stands in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// When it was written, in milliseconds since 1970 UTC, by the producer's clock or the broker's as the topic says.
    pub timestamp_ms: i64,
    /// Whether `timestamp_ms` is the time at which the log took the record, which its producer cannot choose.
    pub stamped_by_log: bool,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value; none is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in order; names may repeat.
    pub headers: Vec<Header>,
}

impl Record {
    /// The value of the first header called `name`, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let header = self.headers.iter().find(|header| header.name == name)?;
        std::str::from_utf8(header.value.as_deref()?).ok()
    }

    /// Roughly what the record holds in memory, in bytes.
    pub fn size_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|header| header.name.len() + header.value.as_ref().map_or(0, Bytes::len))
            .sum();
        size_of::<Self>()
            + self.key.as_ref().map_or(0, Bytes::len)
            + self.value.as_ref().map_or(0, Bytes::len)
            + headers
    }
}

/// A header of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value; Kafka allows none.
    pub value: Option<Bytes>,
}

impl Header {
    /// A header with a value of text.
    pub fn text(name: &str, value: &str) -> Self {
        Self {
            name: name.to_owned(),
            value: Some(Bytes::copy_from_slice(value.as_bytes())),
        }
    }
}

/// A record to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// The topic, which must exist.
    pub topic: TopicName,
    /// The partition; none leaves it to the key, or to chance.
    pub partition: Option<i32>,
    /// The time now, in milliseconds since 1970 UTC. Never a time that somebody claims: Kafka deletes records by it, and
    /// refuses one that is far off its clock.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// The headers.
    pub headers: Vec<Header>,
}
