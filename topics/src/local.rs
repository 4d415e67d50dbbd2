//! Topics in an embedded database: one file, or memory. It is what `demo`, `up` and the tests run on.
//!
//! Records, group progress and topics are tables of one `redb` database, so append-and-commit is one write transaction:
//! atomic, and on a file durable when it returns. Membership of groups lives in memory, because all members live in
//! this process. Records are deleted with their topic only: the log is the whole history.

mod database;
mod groups;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::Path,
    pin::pin,
    sync::Arc,
};

use async_trait::async_trait;
use schemas::TopicName;
use tokio::sync::{Mutex, Notify};

use crate::{
    Append, Appender, Assignment, Chunk, Committed, Committer, Error, Event, Partition, Progress, Reader,
    Record, Standing, Step, Subscription, TopicSpec, Topics, offload,
};
use database::Log;
use groups::{Groups, MemberId};

/// A chunk ends after this many records, where nothing else is said, so that a stage can look up between chunks.
const CHUNK_RECORDS_MAX: usize = 1_000;
/// A chunk ends after this many bytes of values, so that memory stays bounded where records are large.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Topics in an embedded database. Clones share it.
#[derive(Clone)]
pub struct LocalTopics {
    shared: Arc<Shared>,
    chunk_records_max: usize,
}

struct Shared {
    log: Log,
    /// Held while a commit is checked and written, so that no partition changes hands in between.
    groups: Arc<Mutex<Groups>>,
    /// Tells readers to look again, in the order in which they began to wait: something was appended, or a membership
    /// changed.
    changed: Arc<Notify>,
}

impl LocalTopics {
    /// Topics in the file at `path`, which is created where it is missing.
    ///
    /// # Errors
    /// [`Error::Invalid`] where another process has the file open, or it is not such a file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::over(Log::open(path)?))
    }

    /// Topics in memory, gone when the last clone is dropped.
    pub fn in_memory() -> Self {
        Self::over(Log::in_memory())
    }

    /// The same with what a stage may stumble over on Kafka: a chunk has no more than `chunk_records_max` records, and in each
    /// partition that a commit appended to, an offset is taken by the marker of its transaction.
    pub fn in_memory_like_kafka(chunk_records_max: usize) -> Self {
        Self {
            chunk_records_max,
            ..Self::over(Log::in_memory().with_markers())
        }
    }

    /// Deletes a topic, with its records and every group's progress in it. One that is created under its name later has
    /// another id.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such topic.
    pub async fn delete(&self, name: &TopicName) -> Result<(), Error> {
        let mut groups = self.shared.groups.lock().await;
        self.shared.log.delete(name)?;
        groups.rebalance_all(&self.shared.log.partitions()?);
        self.shared.notify();
        Ok(())
    }

    fn over(log: Log) -> Self {
        let shared = Shared {
            log,
            groups: Arc::default(),
            changed: Arc::default(),
        };
        Self {
            shared: Arc::new(shared),
            chunk_records_max: CHUNK_RECORDS_MAX,
        }
    }

    async fn join(&self, group: &str, subscription: &Subscription) -> Result<LocalReader, Error> {
        let partitions = self.shared.log.partitions()?;
        let member = self
            .shared
            .groups
            .lock()
            .await
            .join(group, subscription.clone(), &partitions);
        self.shared.notify();
        Ok(LocalReader {
            membership: Membership {
                shared: Arc::clone(&self.shared),
                group: group.into(),
                member,
            },
            chunk_records_max: self.chunk_records_max,
            owned: BTreeMap::new(),
            turn: VecDeque::new(),
            paused: BTreeSet::new(),
        })
    }
}

impl Shared {
    fn notify(&self) {
        self.changed.notify_waiters();
    }
}

#[async_trait]
impl Topics for LocalTopics {
    async fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
        let mut groups = self.shared.groups.lock().await;
        self.shared.log.ensure(specs)?;
        groups.rebalance_all(&self.shared.log.partitions()?);
        self.shared.notify();
        Ok(())
    }

    async fn reader(&self, group: &str, subscription: &Subscription) -> Result<Box<dyn Reader>, Error> {
        Ok(Box::new(self.join(group, subscription).await?))
    }

    async fn stage(
        &self,
        group: &str,
        subscription: &Subscription,
    ) -> Result<(Box<dyn Reader>, Box<dyn Committer>), Error> {
        let reader = self.join(group, subscription).await?;
        let committer = LocalCommitter {
            shared: Arc::clone(&self.shared),
            group: group.into(),
            member: reader.membership.member,
        };
        Ok((Box::new(reader), Box::new(committer)))
    }

    async fn appender(&self) -> Result<Box<dyn Appender>, Error> {
        Ok(Box::new(LocalAppender {
            shared: Arc::clone(&self.shared),
        }))
    }

    async fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error> {
        self.shared.log.lag(group, subscription)
    }

    async fn standing(
        &self,
        group: &str,
        topics: &[TopicName],
    ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error> {
        self.shared.log.standing(group, topics)
    }

    async fn partitions(&self, topics: &[TopicName]) -> Result<BTreeMap<TopicName, u32>, Error> {
        Ok(self.shared.log.sizes(topics))
    }

    async fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        self.shared.log.last(topic)
    }
}

struct LocalReader {
    membership: Membership,
    chunk_records_max: usize,
    owned: BTreeMap<Partition, Owned>,
    /// The owned partitions in the order of their next turn.
    turn: VecDeque<Partition>,
    paused: BTreeSet<Partition>,
}

struct Owned {
    assignment: Assignment,
    next_offset: i64,
}

/// A place in a group, given up when dropped, as Kafka gives up that of a member that fell silent.
struct Membership {
    shared: Arc<Shared>,
    group: Arc<str>,
    member: MemberId,
}

impl Drop for Membership {
    fn drop(&mut self) {
        let (shared, group, member) = (Arc::clone(&self.shared), Arc::clone(&self.group), self.member);
        let leave = move |groups: &mut Groups| {
            groups.leave(&group, member);
        };
        if let Ok(mut groups) = shared.groups.try_lock() {
            leave(&mut groups);
            shared.notify();
            return;
        }
        let waiting = Arc::clone(&shared);
        std::thread::spawn(move || {
            leave(&mut waiting.groups.blocking_lock());
            waiting.notify();
        });
    }
}

impl LocalReader {
    /// Brings what is owned up to date with the group. Says what was lost first, so that no partition is ever held twice.
    async fn follow_group(&mut self) -> Result<Option<Event>, Error> {
        let Membership {
            shared,
            group,
            member,
        } = &self.membership;
        let groups = shared.groups.lock().await;
        let assigned = groups.assigned(group, *member);
        let revoked: Vec<Partition> = self
            .owned
            .iter()
            .filter(|(partition, owned)| assigned.get(partition) != Some(&owned.assignment))
            .map(|(partition, _)| partition.clone())
            .collect();
        if !revoked.is_empty() {
            self.owned.retain(|partition, _| !revoked.contains(partition));
            self.turn.retain(|partition| !revoked.contains(partition));
            self.paused.retain(|partition| !revoked.contains(partition));
            return Ok(Some(Event::Revoked(revoked)));
        }
        let mut new = Vec::new();
        for (partition, assignment) in assigned {
            if !self.owned.contains_key(&partition) {
                let next_offset = shared.log.committed(group, &partition)?.unwrap_or(0);
                self.owned.insert(
                    partition.clone(),
                    Owned {
                        assignment,
                        next_offset,
                    },
                );
                self.turn.push_back(partition.clone());
                new.push((partition, assignment));
            }
        }
        Ok((!new.is_empty()).then_some(Event::Assigned(new)))
    }

    fn read_chunk(&mut self) -> Result<Option<Chunk>, Error> {
        for _ in 0..self.turn.len() {
            let Some(partition) = self.turn.pop_front() else {
                break;
            };
            self.turn.push_back(partition.clone());
            if self.paused.contains(&partition) {
                continue;
            }
            let Some(owned) = self.owned.get_mut(&partition) else {
                continue;
            };
            let records = self.membership.shared.log.read(
                &partition,
                owned.next_offset,
                self.chunk_records_max,
                CHUNK_BYTES_MAX,
            )?;
            if let Some(last) = records.last() {
                owned.next_offset = last.offset + 1;
                return Ok(Some(Chunk {
                    partition,
                    assignment: owned.assignment,
                    records,
                }));
            }
        }
        Ok(None)
    }
}

#[async_trait]
impl Reader for LocalReader {
    async fn next(&mut self) -> Result<Event, Error> {
        loop {
            let mut changed = pin!(Arc::clone(&self.membership.shared.changed).notified_owned());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(event) = self.follow_group().await? {
                return Ok(event);
            }
            if let Some(chunk) = self.read_chunk()? {
                return Ok(Event::Records(chunk));
            }
            changed.await;
        }
    }

    fn pause(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        self.paused.extend(
            partitions
                .iter()
                .filter(|partition| self.owned.contains_key(partition))
                .cloned(),
        );
        Ok(())
    }

    fn resume(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        self.paused.retain(|partition| !partitions.contains(partition));
        Ok(())
    }

    async fn commit(&mut self, progress: &Progress) -> Result<(), Error> {
        let steps = progress
            .iter()
            .filter_map(|(partition, next_offset)| {
                let assignment = self.owned.get(partition)?.assignment;
                let source = partition.clone();
                Some(Step {
                    source,
                    assignment,
                    next_offset: *next_offset,
                    appends: Vec::new(),
                    note: None,
                })
            })
            .collect();
        let Membership {
            shared,
            group,
            member,
        } = &self.membership;
        commit(shared, group, *member, steps).await.map(drop)
    }

    async fn close(self: Box<Self>) -> Result<(), Error> {
        Ok(())
    }
}

struct LocalCommitter {
    shared: Arc<Shared>,
    group: Arc<str>,
    member: MemberId,
}

#[async_trait]
impl Committer for LocalCommitter {
    async fn append_and_commit(&mut self, steps: Vec<Step>) -> Result<Committed, Error> {
        commit(&self.shared, &self.group, self.member, steps).await
    }
}

async fn commit(
    shared: &Arc<Shared>,
    group: &Arc<str>,
    member: MemberId,
    steps: Vec<Step>,
) -> Result<Committed, Error> {
    let (shared, group) = (Arc::clone(shared), Arc::clone(group));
    let groups = Arc::clone(&shared.groups).lock_owned().await;
    offload(move || {
        let (mine, others): (Vec<Step>, Vec<Step>) = steps
            .into_iter()
            .partition(|step| groups.owns(&group, member, &step.source, step.assignment));
        shared.log.append_and_commit(&group, &mine)?;
        drop(groups);
        shared.notify();
        Ok(Committed {
            left_out: others.into_iter().map(|step| step.source).collect(),
        })
    })
    .await
}

struct LocalAppender {
    shared: Arc<Shared>,
}

#[async_trait]
impl Appender for LocalAppender {
    async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>> {
        let shared = Arc::clone(&self.shared);
        let count = records.len();
        let appended = offload(move || {
            let results = shared.log.append(&records)?;
            shared.notify();
            Ok::<_, Error>(results)
        })
        .await;
        appended.unwrap_or_else(|error| {
            let detail = error.to_string();
            (0..count)
                .map(|_| {
                    Err(Error::Unavailable {
                        what: "append".to_owned(),
                        detail: detail.clone(),
                    })
                })
                .collect()
        })
    }
}

fn unknown_topic(topic: &TopicName) -> Error {
    Error::Invalid {
        what: format!("topic `{topic}`"),
        detail: "does not exist: create it before appending to it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Place;

    fn place(topics: LocalTopics) -> Place {
        let topics: Arc<dyn Topics> = Arc::new(topics);
        Place {
            first: Arc::clone(&topics),
            second: topics,
        }
    }

    crate::conformance_tests!(async { place(LocalTopics::in_memory()) });

    mod like_kafka {
        use super::*;

        crate::conformance_tests!(async { place(LocalTopics::in_memory_like_kafka(1)) });
    }
}
