//! Where Tributary's stages meet: topics of records, read in groups, appended to atomically with the reader's progress.
//!
//! ```text
//!            ┌───────────── a stage ─────────────┐
//! topic ──▶ Reader ──▶ decide (the stage's own) ──▶ Committer ──▶ topics + the group's progress, both or neither
//! ```
//!
//! One trait, [`Topics`], and two implementations held to one conformance suite (`conformance`): [`local`] keeps the
//! records in an embedded database (a file or memory), `kafka` in an Apache Kafka cluster. This crate knows records and
//! positions; what is in a record, it does not know.
//!
//! # What an implementation promises
//! - A partition's records are delivered in order of their offsets, which may have gaps: never subtract offsets.
//! - Only committed records are delivered.
//! - [`Event::Assigned`] comes before the first record of a partition, [`Event::Revoked`] after the last. Both carry the
//!   [`Assignment`], which is new at each handing-over, so that work begun under an older one can be told.
//! - [`Committer::append_and_commit`] appends and advances for exactly those sources that the stage still owns.

mod commits;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod dead_letter;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod local;
mod offload;
mod record;
mod subscription;

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemas::TopicName;

pub use commits::Commits;
pub use dead_letter::{DeadLetter, Letter, dead_letter, replay_begins};
pub use offload::offload;
pub use record::{Append, Header, Partition, Record, TopicRef};
pub use subscription::{Arrivals, Subscription, TopicPattern};

/// A place that holds topics.
#[async_trait]
pub trait Topics: Send + Sync {
    /// Creates the topics that are missing and gives those that exist more partitions where `specs` asks for more.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a topic cannot be as asked; [`Error::Unavailable`] where nobody answers.
    async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error>;

    /// Joins `group` and reads what `subscription` names, each partition from the group's committed position, or from
    /// its first record where the group has none.
    async fn reader(&self, group: &str, subscription: &Subscription) -> Result<Box<dyn Reader>, Error>;

    /// A reader as above, and the committer that advances the same membership of the group.
    async fn stage(
        &self,
        group: &str,
        subscription: &Subscription,
    ) -> Result<(Box<dyn Reader>, Box<dyn Committer>), Error>;

    /// A way to append without reading anything.
    async fn appender(&self) -> Result<Box<dyn Appender>, Error>;

    /// How many records of `subscription` the group has yet to commit, over all partitions. On Kafka the markers of
    /// transactions among them count too; without any record it is zero.
    async fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error>;

    /// Where `group` stands in the partitions of those `topics` that exist. A commit shows here soon after it was made, and at
    /// once to whoever has read a record of a partition that was handed over to it since.
    async fn standing(
        &self,
        group: &str,
        topics: &[TopicName],
    ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error>;

    /// How many partitions each of `topics` has; those that do not exist are missing.
    async fn partitions(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, u32>, Error>;

    /// The last record of the first partition of `topic`, read without any group; none where there is no record, or no
    /// such topic.
    async fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error>;
}

/// Where a group stands in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// What its last commit noted there.
    pub note: Option<String>,
    /// How many records it has yet to commit. On Kafka the markers of transactions and what was aborted count too, so it may
    /// stay above zero: [`Topics::lag`] tells.
    pub behind: u64,
    /// The offset of the next record that will be appended.
    pub end: i64,
}

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: TopicName,
    /// At least this many partitions.
    pub partitions: u32,
    /// The most bytes that a record may have, at least; none leaves it to the cluster.
    pub message_bytes_max: Option<u32>,
    /// Which records are kept.
    pub retention: Retention,
}

impl TopicSpec {
    /// A topic of which everything but its name and size is left to the cluster.
    pub fn new(name: TopicName, partitions: u32) -> Self {
        Self {
            name,
            partitions,
            message_bytes_max: None,
            retention: Retention::Cluster,
        }
    }
}

/// Which records a topic keeps. Local topics keep them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// As the cluster is set, or somebody has set the topic.
    Cluster,
    /// As the cluster is set: a time that the topic was given is taken back.
    ClusterAgain,
    /// Those that are younger than this, in milliseconds. A topic that keeps them for another time is changed.
    TimeMs(u64),
    /// The last one of each key, for ever.
    LastOfKey,
}

/// Reads partitions on behalf of a group.
///
/// Poll [`Reader::next`] without long waits between: it keeps the membership alive. What cannot be taken now is
/// [paused](Reader::pause), not left unread.
#[async_trait]
pub trait Reader: Send {
    /// The next thing that happened. Cancelling the returned future loses nothing.
    async fn next(&mut self) -> Result<Event, Error>;

    /// Stops delivering records of `partitions` until they are resumed. Records already on their way may still come.
    fn pause(&mut self, partitions: &[Partition]) -> Result<(), Error>;

    /// Delivers records of `partitions` again.
    fn resume(&mut self, partitions: &[Partition]) -> Result<(), Error>;

    /// Commits the group's progress without appending: for each partition the offset after the last record done.
    /// Partitions no longer assigned are left out.
    async fn commit(&mut self, progress: &Progress) -> Result<(), Error>;

    /// Leaves the group, so that others take over at once.
    async fn close(self: Box<Self>) -> Result<(), Error>;
}

/// For each partition, the offset after the last record done.
pub type Progress = BTreeMap<Partition, i64>;

/// Tells one handing-over of a partition from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Assignment(pub u64);

/// What a reader reports.
#[derive(Debug)]
pub enum Event {
    /// These partitions are this reader's from now on.
    Assigned(Vec<(Partition, Assignment)>),
    /// These partitions are no longer this reader's: drop what was read of them and not yet committed.
    Revoked(Vec<Partition>),
    /// Records of one partition, in order.
    Records(Chunk),
}

/// Some records of one partition, in order; never empty.
#[derive(Debug)]
pub struct Chunk {
    /// Where they are from.
    pub partition: Partition,
    /// The handing-over under which they were read.
    pub assignment: Assignment,
    /// The records.
    pub records: Vec<Record>,
}

/// Appends and advances the group's progress, both or neither.
#[async_trait]
pub trait Committer: Send {
    /// Commits `steps` as one. Steps whose source is no longer this member's are left out, since its new owner will do
    /// them; which ones is told in the answer. Rebalances and passing faults are retried within.
    ///
    /// # Errors
    /// After any error the outcome is unknown and this committer must not be used again: start the stage over, which
    /// begins at the committed positions.
    async fn append_and_commit(&mut self, steps: Vec<Step>) -> Result<Committed, Error>;
}

/// What one source partition contributes to a commit.
#[derive(Debug, Clone)]
pub struct Step {
    /// The partition that was read.
    pub source: Partition,
    /// The handing-over under which it was read.
    pub assignment: Assignment,
    /// The offset after the last record that this step is about.
    pub next_offset: i64,
    /// What those records became, in order.
    pub appends: Vec<Append>,
    /// What the group is to remember with the offset, in the place of what it remembered before: it is there if the commit is,
    /// and whoever takes the partition over finds it by [`Topics::standing`]. Of at most 4,096 bytes on Kafka, unless the
    /// broker's `offset.metadata.max.bytes` says otherwise.
    pub note: Option<String>,
}

/// What a commit did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Sources whose steps were left out, because they belong to another member by now.
    pub left_out: Vec<Partition>,
}

/// Appends records that come from no topic.
#[async_trait]
pub trait Appender: Send + Sync {
    /// Appends each record, durably, and says where it went. One record's failure is not another's.
    async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>>;
}

/// What went wrong with topics, by what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers, or a passing fault: start over after a pause.
    #[error("{what}: {detail}")]
    Unavailable {
        /// What was tried.
        what: String,
        /// What came instead.
        detail: String,
    },
    /// Another instance took this one's place, or a commit's result is unknown: start over.
    #[error("{what}: {detail}; the stage starts over from its committed positions")]
    Fenced {
        /// What was tried.
        what: String,
        /// What came instead.
        detail: String,
    },
    /// The request or the settings are wrong, and trying again will not help: stop.
    #[error("{what}: {detail}")]
    Invalid {
        /// What was tried.
        what: String,
        /// What is wrong and what would be right.
        detail: String,
    },
}

impl Error {
    /// Whether starting over may help.
    pub fn is_retryable(&self) -> bool {
        !matches!(self, Self::Invalid { .. })
    }
}
