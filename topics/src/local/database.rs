//! The tables: topics, records, group progress.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, backends::InMemoryBackend,
};
use schemas::{TopicId, TopicName};
use std::sync::RwLock;

use super::unknown_topic;
use crate::{Append, Error, Header, Partition, Record, Standing, Step, Subscription, TopicRef, TopicSpec};

/// Name → number, id, partitions. The number stands for the topic in the other tables' keys.
const TOPICS: TableDefinition<'_, &str, (u32, u128, u32)> = TableDefinition::new("topics");
/// Topic, partition, offset → the record.
const RECORDS: TableDefinition<'_, (u32, i32, i64), StoredRecord<'_>> = TableDefinition::new("records");
/// Topic, partition → the offset of the next record.
const ENDS: TableDefinition<'_, (u32, i32), i64> = TableDefinition::new("ends");
/// Group, topic, partition → the offset after the last record done.
const PROGRESS: TableDefinition<'_, (&str, u32, i32), i64> = TableDefinition::new("progress");

/// Group, topic, partition → what was noted with the progress.
const NOTES: TableDefinition<'_, (&str, u32, i32), &str> = TableDefinition::new("notes");

/// Where a record went, or why nowhere.
type Appended = Result<(Partition, i64), Error>;

/// Timestamp in milliseconds, key, value, headers.
type StoredRecord<'a> = (
    i64,
    Option<&'a [u8]>,
    Option<&'a [u8]>,
    Vec<(&'a str, Option<&'a [u8]>)>,
);

/// A log of records in a database.
pub(super) struct Log {
    database: Database,
    /// The topics, as the table has them: read at every look at a partition.
    topics: RwLock<HashMap<TopicName, Topic>>,
    /// Whether a commit leaves an offset without a record behind what it appended.
    leaves_markers: bool,
}

#[derive(Clone)]
struct Topic {
    number: u32,
    partitions: u32,
    reference: Arc<TopicRef>,
}

impl Log {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let what = || format!("local topics at `{}`", path.display());
        let database = Database::create(path).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::Invalid {
                what: what(),
                detail: "another process has them open: stop it, or choose another `topics.path`".to_owned(),
            },
            error => Error::Invalid {
                what: what(),
                detail: error.to_string(),
            },
        })?;
        Self::over(database).map_err(|error| Error::Invalid {
            what: what(),
            detail: error.to_string(),
        })
    }

    pub(super) fn in_memory() -> Self {
        let database = Database::builder()
            .create_with_backend(InMemoryBackend::new())
            .expect("memory takes a database");
        Self::over(database).expect("an empty database has no broken tables")
    }

    pub(super) fn with_markers(self) -> Self {
        Self {
            leaves_markers: true,
            ..self
        }
    }

    fn over(database: Database) -> Result<Self, redb::Error> {
        let transaction = database.begin_write()?;
        let mut topics = HashMap::new();
        {
            let table = transaction.open_table(TOPICS)?;
            for entry in table.iter()? {
                let (name, value) = entry?;
                let (number, id, partitions) = value.value();
                let Ok(name) = TopicName::new(name.value()) else {
                    continue;
                };
                let reference = Arc::new(TopicRef {
                    name: name.clone(),
                    id: TopicId::from_bytes(id.to_be_bytes()),
                });
                topics.insert(
                    name,
                    Topic {
                        number,
                        partitions,
                        reference,
                    },
                );
            }
            transaction.open_table(RECORDS)?;
            transaction.open_table(ENDS)?;
            transaction.open_table(PROGRESS)?;
            transaction.open_table(NOTES)?;
        }
        transaction.commit()?;
        Ok(Self {
            database,
            topics: RwLock::new(topics),
            leaves_markers: false,
        })
    }

    pub(super) fn ensure(&self, specs: &[TopicSpec]) -> Result<(), Error> {
        let mut topics = self.topics.write().expect("no holder of this lock panics");
        let mut changed = topics.clone();
        let mut write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(TOPICS)?;
                for spec in specs {
                    let number = changed.values().map(|topic| topic.number + 1).max().unwrap_or(0);
                    let topic = changed.entry(spec.name.clone()).or_insert_with(|| {
                        let id = TopicId::from_bytes(uuid::Uuid::new_v4().into_bytes());
                        let reference = Arc::new(TopicRef {
                            name: spec.name.clone(),
                            id,
                        });
                        Topic {
                            number,
                            partitions: 0,
                            reference,
                        }
                    });
                    if spec.partitions > topic.partitions {
                        topic.partitions = spec.partitions;
                        let id = u128::from_be_bytes(*topic.reference.id.as_bytes());
                        table.insert(spec.name.as_str(), (topic.number, id, topic.partitions))?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| unavailable("create topics", &error))?;
        *topics = changed;
        Ok(())
    }

    /// Deletes a topic with its records and every group's progress in it.
    pub(super) fn delete(&self, name: &TopicName) -> Result<(), Error> {
        let number = self.topic(name)?.number;
        let delete = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            transaction.open_table(TOPICS)?.remove(name.as_str())?;
            transaction
                .open_table(RECORDS)?
                .retain(|(topic, ..), _| topic != number)?;
            transaction
                .open_table(ENDS)?
                .retain(|(topic, _), _| topic != number)?;
            transaction
                .open_table(PROGRESS)?
                .retain(|(_, topic, _), _| topic != number)?;
            transaction
                .open_table(NOTES)?
                .retain(|(_, topic, _), _| topic != number)?;
            Ok(transaction.commit()?)
        };
        delete().map_err(|error| unavailable("delete a topic", &error))?;
        self.topics
            .write()
            .expect("no holder of this lock panics")
            .remove(name);
        Ok(())
    }

    pub(super) fn partitions(&self) -> Result<Vec<Partition>, Error> {
        let topics = self.topics.read().expect("no holder of this lock panics");
        let mut partitions: Vec<Partition> = topics
            .values()
            .flat_map(|topic| {
                let count = i32::try_from(topic.partitions).expect("a partition count fits an i32");
                (0..count).map(|index| Partition {
                    topic: Arc::clone(&topic.reference),
                    index,
                })
            })
            .collect();
        partitions.sort();
        Ok(partitions)
    }

    /// How many partitions those of `names` have that exist.
    pub(super) fn sizes(&self, names: &[TopicName]) -> BTreeMap<TopicName, u32> {
        let topics = self.topics.read().expect("no holder of this lock panics");
        let size = |name: &TopicName| Some((name.clone(), topics.get(name)?.partitions));
        names.iter().filter_map(size).collect()
    }

    pub(super) fn committed(&self, group: &str, partition: &Partition) -> Result<Option<i64>, Error> {
        let topic = self.topic(&partition.topic.name)?;
        let read = || -> Result<Option<i64>, redb::Error> {
            let table = self.database.begin_read()?.open_table(PROGRESS)?;
            Ok(table
                .get((group, topic.number, partition.index))?
                .map(|offset| offset.value()))
        };
        read().map_err(|error| unavailable("read the group's progress", &error))
    }

    pub(super) fn read(
        &self,
        partition: &Partition,
        from: i64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Record>, Error> {
        let topic = self.topic(&partition.topic.name)?;
        let read = || -> Result<Vec<Record>, redb::Error> {
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            let first = (topic.number, partition.index, from);
            let last = (topic.number, partition.index, i64::MAX);
            let (mut records, mut bytes) = (Vec::new(), 0);
            for entry in table.range(first..=last)? {
                let (key, value) = entry?;
                let record = restore(key.value().2, value.value());
                bytes += record.size_bytes();
                records.push(record);
                if records.len() >= records_max || bytes >= bytes_max {
                    break;
                }
            }
            Ok(records)
        };
        read().map_err(|error| unavailable(&format!("read {partition}"), &error))
    }

    /// The last record of the first partition of `topic`.
    pub(super) fn last(&self, topic: &TopicName) -> Result<Option<Record>, Error> {
        let Ok(Topic { number, .. }) = self.topic(topic) else {
            return Ok(None);
        };
        let read = || -> Result<Option<Record>, redb::Error> {
            let table = self.database.begin_read()?.open_table(RECORDS)?;
            let last = table.range((number, 0, 0)..=(number, 0, i64::MAX))?.next_back();
            let Some((key, value)) = last.transpose()? else {
                return Ok(None);
            };
            Ok(Some(restore(key.value().2, value.value())))
        };
        read().map_err(|error| unavailable(&format!("read the last record of `{topic}`"), &error))
    }

    pub(super) fn append(&self, records: &[Append]) -> Result<Vec<Appended>, Error> {
        let placed: Vec<Result<(Topic, i32), Error>> =
            records.iter().map(|record| self.place(record)).collect();
        let write = || -> Result<Vec<i64>, redb::Error> {
            let transaction = self.database.begin_write()?;
            let mut offsets = Vec::new();
            {
                let mut writer = Writer::open(&transaction)?;
                for (record, place) in records.iter().zip(&placed) {
                    if let Ok((topic, partition)) = place {
                        offsets.push(writer.append(topic.number, *partition, record)?);
                    }
                }
            }
            transaction.commit()?;
            Ok(offsets)
        };
        let mut offsets = write()
            .map_err(|error| unavailable("append", &error))?
            .into_iter();
        Ok(placed
            .into_iter()
            .map(|place| {
                let (topic, index) = place?;
                let offset = offsets.next().expect("one offset for each placed record");
                Ok((
                    Partition {
                        topic: topic.reference,
                        index,
                    },
                    offset,
                ))
            })
            .collect())
    }

    pub(super) fn append_and_commit(&self, group: &str, steps: &[Step]) -> Result<(), Error> {
        let mut placed = Vec::new();
        for step in steps {
            let source = self.topic(&step.source.topic.name)?;
            let appends = step
                .appends
                .iter()
                .map(|record| self.place(record))
                .collect::<Result<Vec<_>, _>>()?;
            placed.push((source, appends));
        }
        let write = || -> Result<(), redb::Error> {
            let transaction = self.database.begin_write()?;
            {
                let mut writer = Writer::open(&transaction)?;
                let mut progress = transaction.open_table(PROGRESS)?;
                let mut notes = transaction.open_table(NOTES)?;
                let mut appended = BTreeSet::new();
                for (step, (source, places)) in steps.iter().zip(&placed) {
                    for (record, (topic, partition)) in step.appends.iter().zip(places) {
                        writer.append(topic.number, *partition, record)?;
                        appended.insert((topic.number, *partition));
                    }
                    let place = (group, source.number, step.source.index);
                    progress.insert(place, step.next_offset)?;
                    match &step.note {
                        Some(note) => drop(notes.insert(place, note.as_str())?),
                        None => drop(notes.remove(place)?),
                    }
                }
                if self.leaves_markers {
                    for (topic, partition) in appended {
                        writer.skip(topic, partition)?;
                    }
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|error| unavailable("append and commit", &error))
    }

    pub(super) fn lag(&self, group: &str, subscription: &Subscription) -> Result<u64, Error> {
        let partitions = self.partitions()?;
        let read = || -> Result<u64, redb::Error> {
            let transaction = self.database.begin_read()?;
            let (ends, progress) = (transaction.open_table(ENDS)?, transaction.open_table(PROGRESS)?);
            let records = transaction.open_table(RECORDS)?;
            let mut lag = 0;
            for partition in partitions
                .iter()
                .filter(|partition| subscription.matches(&partition.topic.name))
            {
                let Ok(topic) = self.topic(&partition.topic.name) else {
                    continue;
                };
                let end = ends
                    .get((topic.number, partition.index))?
                    .map_or(0, |end| end.value());
                let done = progress
                    .get((group, topic.number, partition.index))?
                    .map_or(0, |done| done.value());
                let first = (topic.number, partition.index, done);
                let last = (topic.number, partition.index, i64::MAX);
                if records.range(first..=last)?.next().is_some() {
                    lag += u64::try_from(end - done).unwrap_or(0);
                }
            }
            Ok(lag)
        };
        read().map_err(|error| unavailable("measure the lag", &error))
    }

    pub(super) fn standing(
        &self,
        group: &str,
        names: &[TopicName],
    ) -> Result<BTreeMap<(TopicName, i32), Standing>, Error> {
        let read = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            let (ends, progress) = (transaction.open_table(ENDS)?, transaction.open_table(PROGRESS)?);
            let notes = transaction.open_table(NOTES)?;
            let mut standing = BTreeMap::new();
            for name in names {
                let Ok(topic) = self.topic(name) else { continue };
                for index in (0_i32..).take(topic.partitions as usize) {
                    let place = (group, topic.number, index);
                    let end = ends.get((topic.number, index))?.map_or(0, |end| end.value());
                    let done = progress.get(place)?.map_or(0, |done| done.value());
                    let of_partition = Standing {
                        note: notes.get(place)?.map(|note| note.value().to_owned()),
                        behind: u64::try_from(end - done).unwrap_or(0),
                        end,
                    };
                    standing.insert((name.clone(), index), of_partition);
                }
            }
            Ok(standing)
        };
        read().map_err(|error| unavailable("look where the group stands", &error))
    }

    fn topic(&self, name: &TopicName) -> Result<Topic, Error> {
        let topics = self.topics.read().expect("no holder of this lock panics");
        topics.get(name).cloned().ok_or_else(|| unknown_topic(name))
    }

    fn place(&self, record: &Append) -> Result<(Topic, i32), Error> {
        let topic = self.topic(&record.topic)?;
        let count = i32::try_from(topic.partitions).expect("a partition count fits an i32");
        let partition = match (record.partition, &record.key) {
            (Some(partition), _) if (0..count).contains(&partition) => partition,
            (Some(partition), _) => {
                return Err(Error::Invalid {
                    what: format!("partition {partition} of topic `{}`", record.topic),
                    detail: format!("does not exist: the topic has {count}"),
                });
            }
            (None, Some(key)) => hashed(key, count),
            (None, None) => hashed(uuid::Uuid::new_v4().as_bytes(), count),
        };
        Ok((topic, partition))
    }
}

struct Writer<'t> {
    records: redb::Table<'t, (u32, i32, i64), StoredRecord<'static>>,
    ends: redb::Table<'t, (u32, i32), i64>,
}

impl<'t> Writer<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            ends: transaction.open_table(ENDS)?,
        })
    }

    fn append(&mut self, topic: u32, partition: i32, record: &Append) -> Result<i64, redb::Error> {
        let offset = self.ends.get((topic, partition))?.map_or(0, |end| end.value());
        let headers = record
            .headers
            .iter()
            .map(|header| (header.name.as_str(), header.value.as_deref()))
            .collect();
        let stored = (
            record.timestamp_ms,
            record.key.as_deref(),
            record.value.as_deref(),
            headers,
        );
        self.records.insert((topic, partition, offset), stored)?;
        self.ends.insert((topic, partition), offset + 1)?;
        Ok(offset)
    }

    /// Leaves an offset without a record.
    fn skip(&mut self, topic: u32, partition: i32) -> Result<(), redb::Error> {
        let end = self.ends.get((topic, partition))?.map_or(0, |end| end.value());
        self.ends.insert((topic, partition), end + 1)?;
        Ok(())
    }
}

fn restore(offset: i64, (timestamp_ms, key, value, headers): StoredRecord<'_>) -> Record {
    let header = |(name, value): (&str, Option<&[u8]>)| Header {
        name: name.to_owned(),
        value: value.map(Bytes::copy_from_slice),
    };
    Record {
        offset,
        timestamp_ms,
        // Only the services write here, and they write the time now.
        stamped_by_log: true,
        key: key.map(Bytes::copy_from_slice),
        value: value.map(Bytes::copy_from_slice),
        headers: headers.into_iter().map(header).collect(),
    }
}

/// FNV-1a, spread over `count` partitions.
fn hashed(bytes: &[u8], count: i32) -> i32 {
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    });
    i32::try_from(hash % count.unsigned_abs()).expect("a remainder of an i32")
}

fn unavailable(what: &str, error: &redb::Error) -> Error {
    Error::Unavailable {
        what: what.to_owned(),
        detail: error.to_string(),
    }
}
