//! Reading: one thread polls librdkafka and turns what it says into events.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::{
    ClientConfig, ClientContext, Message, Statistics, Timestamp, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode,
};
use schemas::TopicName;
use tokio::sync::{mpsc, oneshot};

use super::{
    ANSWER_LIMIT, blocking,
    client::{Complaints, classified, failed, not_created},
    ids::TopicIds,
    lookout::Lookout,
    membership::{Change, Membership, Place},
    native,
    stall::{Sighting, StallWatch},
};
use crate::{
    Assignment, Chunk, Error, Event, Partition, Progress, Reader, Record, Step, Subscription, TopicPattern,
};

/// Partitions of a `group` that stand still while records wait in them.
const STALLED_PARTITIONS: &str = "tributary_topics_stalled_partitions";
/// Events that wait for the stage. With the two bounds of a chunk this bounds their memory; when it is reached the
/// thread waits, and librdkafka stops fetching at its own bound.
const EVENTS_WAITING_MAX: usize = 4;
/// A chunk ends after this many records.
const CHUNK_RECORDS_MAX: usize = 1_000;
/// A chunk ends after this many bytes, so that memory stays bounded where records are large.
const CHUNK_BYTES_MAX: usize = 1 << 20;
/// How soon the thread notices that the reader was closed, when nothing else happens.
const POLL_MS: u64 = 50;
/// How long the thread waits for the names of the topics that there are. Meanwhile it hears nothing else.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long a closing reader waits for librdkafka to leave the group.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);
/// How long a commit is tried again while the group rebalances.
pub(super) const REBALANCE_LIMIT: Duration = Duration::from_secs(60);
/// How long to wait for the group to change before a refused commit is tried again.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) type GroupConsumer = BaseConsumer<MemberContext>;

/// The callbacks of a member of a group. They run on the polling thread, inside a poll.
pub(super) struct MemberContext {
    pub(super) membership: Membership,
    group: String,
    stall_watch: Mutex<StallWatch>,
    complaints: Complaints,
}

impl ClientContext for MemberContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.complaints.log(level, facility, message);
    }

    /// Comes every `statistics.interval.ms`.
    fn stats(&self, statistics: Statistics) {
        let mut watch = self.stall_watch.lock().expect("no holder of this lock panics");
        let stalls = watch.look(sightings(statistics));
        metrics::gauge!(STALLED_PARTITIONS, "group" => self.group.clone()).set(stalls.count as f64);
        for Sighting {
            place: (topic, partition),
            position,
            end,
        } in stalls.begun
        {
            tracing::warn!(
                group = self.group,
                topic,
                partition,
                position,
                end,
                "partition stands still while records wait: its stage holds it back, or the broker does not deliver"
            );
        }
        for (topic, partition) in stalls.over {
            tracing::info!(
                group = self.group,
                topic,
                partition,
                "partition stands still no more"
            );
        }
    }
}

impl ConsumerContext for MemberContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => self.membership.assign(places(partitions)),
            Rebalance::Revoke(partitions) => {
                // Nobody pauses it from here on. Paused, it would still be so should it come back.
                self.membership.revoke(places(partitions));
                if let Err(error) = consumer.resume(partitions) {
                    tracing::debug!(%error, "a revoked partition was not resumed");
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }
}

/// Partitions that are read now, and where. What is at the end of a partition and is no record for anybody, such as the
/// marker of a transaction, counts as read when it was fetched.
fn sightings(statistics: Statistics) -> Vec<Sighting> {
    let mut sightings = Vec::new();
    for (topic, statistics) in statistics.topics {
        let read_now = statistics
            .partitions
            .values()
            .filter(|partition| partition.fetch_state == "active");
        sightings.extend(read_now.map(|partition| Sighting {
            place: (topic.clone(), partition.partition),
            position: partition.app_offset.max(partition.next_offset),
            end: partition.ls_offset,
        }));
    }
    sightings
}

fn places(partitions: &TopicPartitionList) -> Vec<Place> {
    partitions
        .elements()
        .iter()
        .map(|element| (element.topic().to_owned(), element.partition()))
        .collect()
}

/// A member of a group, reading.
pub(super) struct KafkaReader {
    events: mpsc::Receiver<Result<Event, Error>>,
    /// The polling thread owns the consumer: it closes it, and nobody else may be the last to hold it.
    consumer: Weak<GroupConsumer>,
    /// What the stage was told that it has.
    told: HashMap<Partition, Assignment>,
    stop: Arc<AtomicBool>,
    left: oneshot::Receiver<()>,
}

impl KafkaReader {
    /// Joins the group of `config`.
    pub(super) fn join(
        config: &ClientConfig,
        group: String,
        subscription: &Subscription,
        ids: TopicIds,
        complaints: Complaints,
    ) -> Result<Self, Error> {
        let context = MemberContext {
            membership: Membership::default(),
            group,
            stall_watch: Mutex::default(),
            complaints,
        };
        let consumer: GroupConsumer = config
            .create_with_context(context)
            .map_err(|error| not_created(&error))?;
        // A pattern that is subscribed to before there is a connection waits for the next refresh of metadata.
        native::ping(consumer.client(), ANSWER_LIMIT)
            .map_err(|code| classified("join a group", code, false, code.to_string()))?;
        let regexes: Option<Vec<String>> = subscription.patterns.iter().map(topic_regex).collect();
        let lookout = match regexes {
            Some(regexes) => {
                let topics: Vec<&str> = regexes.iter().map(String::as_str).collect();
                consumer.subscribe(&topics).map_err(|error| Error::Invalid {
                    what: format!("subscribe to `{}`", topics.join("`, `")),
                    detail: error.to_string(),
                })?;
                None
            }
            None => {
                let mut lookout = Lookout::new(config, subscription);
                let looked = lookout.look(&consumer, ANSWER_LIMIT);
                looked.map_err(|error| failed("subscribe to topics", &error))?;
                Some(lookout)
            }
        };
        let consumer = Arc::new(consumer);
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let (leaving, left) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Self {
            events,
            consumer: Arc::downgrade(&consumer),
            told: HashMap::new(),
            stop: Arc::clone(&stop),
            left,
        };
        let poller = Poller {
            consumer,
            ids,
            events: sender,
            held: HashMap::new(),
            unknown: BTreeMap::new(),
            lookout,
            stop,
        };
        let thread = move || {
            poller.run();
            // The other end may be gone: nobody has to wait.
            leaving.send(()).ok();
        };
        std::thread::Builder::new()
            .name("kafka-reader".to_owned())
            .spawn(thread)
            .map_err(|error| Error::Unavailable {
                what: "start the thread of a Kafka reader".to_owned(),
                detail: error.to_string(),
            })?;
        Ok(reader)
    }

    pub(super) fn consumer(&self) -> Weak<GroupConsumer> {
        self.consumer.clone()
    }

    fn ended() -> Error {
        Error::Unavailable {
            what: "read from Kafka".to_owned(),
            detail: "this reader has ended".to_owned(),
        }
    }
}

/// What librdkafka takes for the topics of `pattern`: a POSIX regular expression where it begins with `^`. None where there is
/// no such expression.
fn topic_regex(pattern: &TopicPattern) -> Option<String> {
    match pattern {
        TopicPattern::Exact(topic) => Some(topic.to_string()),
        // Of what a topic's name may contain, only the dot means something in a regular expression.
        TopicPattern::Under(prefix) => Some(format!("^{}[^.]+$", prefix.replace('.', "\\."))),
        TopicPattern::Sharded(..) => None,
    }
}

#[async_trait]
impl Reader for KafkaReader {
    async fn next(&mut self) -> Result<Event, Error> {
        let event = self.events.recv().await.unwrap_or_else(|| Err(Self::ended()))?;
        match &event {
            Event::Assigned(partitions) => self.told.extend(partitions.iter().cloned()),
            Event::Revoked(partitions) => self.told.retain(|partition, _| !partitions.contains(partition)),
            Event::Records(_) => {}
        }
        Ok(event)
    }

    fn pause(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        let consumer = self.consumer.upgrade().ok_or_else(Self::ended)?;
        // What has changed hands, which the stage may not know yet, would be paused when it comes back.
        let membership = &consumer.context().membership;
        membership
            .while_told(&self.told, partitions, |held| consumer.pause(&list(held)))
            .map_err(|error| failed("pause partitions", &error))
    }

    fn resume(&mut self, partitions: &[Partition]) -> Result<(), Error> {
        let consumer = self.consumer.upgrade().ok_or_else(Self::ended)?;
        let told = partitions
            .iter()
            .filter(|partition| self.told.contains_key(partition));
        consumer
            .resume(&list(told))
            .map_err(|error| failed("resume partitions", &error))
    }

    async fn commit(&mut self, progress: &Progress) -> Result<(), Error> {
        let steps = progress.iter().filter_map(|(partition, next_offset)| {
            let assignment = *self.told.get(partition)?;
            Some(Step {
                source: partition.clone(),
                assignment,
                next_offset: *next_offset,
                appends: Vec::new(),
                note: None,
            })
        });
        let (steps, consumer) = (steps.collect::<Vec<_>>(), self.consumer());
        blocking(move || {
            let consumer = consumer.upgrade().ok_or_else(Self::ended)?;
            commit_progress(&consumer, steps).map(drop)
        })
        .await
    }

    async fn close(mut self: Box<Self>) -> Result<(), Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.events.close();
        match tokio::time::timeout(LEAVE_LIMIT, &mut self.left).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Unavailable {
                what: "leave the group".to_owned(),
                detail: format!("not done after {} s", LEAVE_LIMIT.as_secs()),
            }),
        }
    }
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Commits the offsets of those `steps` whose source is still held, and gives back the others. While the broker is
/// asked, no partition changes hands.
pub(super) fn commit_progress(consumer: &GroupConsumer, mut steps: Vec<Step>) -> Result<Vec<Step>, Error> {
    let mut left_out = Vec::new();
    let began = Instant::now();
    loop {
        let membership = &consumer.context().membership;
        let (committed, held, others) = membership.while_held(steps, |held| {
            if held.is_empty() {
                Ok(())
            } else {
                consumer.commit(&offsets(held), CommitMode::Sync)
            }
        });
        left_out.extend(others);
        match committed {
            Ok(()) => return Ok(left_out),
            Err(error) if is_rebalance(error.rdkafka_error_code()) && began.elapsed() < REBALANCE_LIMIT => {
                membership.wait_for_change(RETRY_PAUSE);
                steps = held;
            }
            Err(error) => return Err(failed("commit the group's progress", &error)),
        }
    }
}

fn list<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(partition.topic.name.as_str(), partition.index);
    }
    list
}

pub(super) fn offsets(steps: &[Step]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(steps.len());
    for step in steps {
        let offset = rdkafka::Offset::Offset(step.next_offset);
        let mut place = list.add_partition(step.source.topic.name.as_str(), step.source.index);
        place
            .set_offset(offset)
            .expect("an offset that is not negative can be set");
        if let Some(note) = &step.note {
            place.set_metadata(note);
        }
    }
    list
}

/// Whether the broker refused a commit because the group moved on, and not for good.
pub(super) fn is_rebalance(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Some(Code::IllegalGeneration | Code::UnknownMemberId | Code::RebalanceInProgress)
    )
}

/// The thread that polls. It never waits for anything but the cluster and the stage.
struct Poller {
    consumer: Arc<GroupConsumer>,
    ids: TopicIds,
    events: mpsc::Sender<Result<Event, Error>>,
    held: HashMap<String, BTreeMap<i32, Held>>,
    /// Assigned, of topics that the broker which was asked did not know: it may not have heard of them yet.
    unknown: BTreeMap<Place, Assignment>,
    /// None where librdkafka follows the topics.
    lookout: Option<Lookout>,
    stop: Arc<AtomicBool>,
}

struct Held {
    partition: Partition,
    assignment: Assignment,
    next_offset: i64,
}

/// Why the thread ends: the reader was closed, or it had to be told an error.
struct Ended;

impl Poller {
    fn run(mut self) {
        let Err(Ended) = self.poll();
        self.held.clear();
        drop(self.events);
        // Whoever commits at this moment holds the consumer too; the group is served until he is done.
        let mut consumer = self.consumer;
        loop {
            match Arc::try_unwrap(consumer) {
                Ok(last) => break drop(last),
                Err(shared) => consumer = shared,
            }
            consumer.poll(Duration::from_millis(POLL_MS));
        }
    }

    fn poll(&mut self) -> Result<std::convert::Infallible, Ended> {
        let consumer = Arc::clone(&self.consumer);
        let mut open: Option<OpenChunk> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Ended);
            }
            if let Some(lookout) = self.lookout.as_mut().filter(|lookout| lookout.is_due())
                && let Err(error) = lookout.look(&consumer, LOOK_LIMIT)
            {
                tracing::warn!(%error, "it was not seen which topics there are: new ones are not read yet");
            }
            let patience = Duration::from_millis(if open.is_some() { 0 } else { POLL_MS });
            let polled = consumer.poll(patience);
            // What changed hands did so before the record that was just polled, and after those before it.
            for change in consumer.context().membership.take_changes() {
                self.send_chunk(&mut open)?;
                self.tell(change)?;
            }
            match polled {
                None => self.send_chunk(&mut open)?,
                Some(Ok(message)) => self.take(&message, &mut open)?,
                Some(Err(error)) => {
                    if let Some(error) = worth_telling(&error) {
                        self.send_chunk(&mut open)?;
                        return self.fail(error);
                    }
                }
            }
        }
    }

    fn take(&mut self, message: &BorrowedMessage<'_>, open: &mut Option<OpenChunk>) -> Result<(), Ended> {
        let (topic, index, offset) = (message.topic(), message.partition(), message.offset());
        if !open.as_ref().is_some_and(|open| open.is_of(topic, index)) {
            self.send_chunk(open)?;
        }
        if !self.unknown.is_empty() && self.unknown.contains_key(&(topic.to_owned(), index)) {
            // It has a record, so its topic is there by now.
            let unknown = std::mem::take(&mut self.unknown);
            self.assign(unknown.into_iter().collect())?;
        }
        let Some(held) = self
            .held
            .get_mut(topic)
            .and_then(|partitions| partitions.get_mut(&index))
        else {
            // Its topic is gone, and another of the same name may be there by now.
            return self.fail(recreated(topic, index));
        };
        if offset < held.next_offset {
            return self.fail(recreated(topic, index));
        }
        held.next_offset = offset + 1;
        let chunk = open.get_or_insert_with(|| OpenChunk::new(held));
        chunk.push(message);
        if chunk.is_full() {
            self.send_chunk(open)
        } else {
            Ok(())
        }
    }

    fn tell(&mut self, change: Change) -> Result<(), Ended> {
        match change {
            Change::Assigned(assigned) => self.assign(assigned),
            Change::Revoked(places) => {
                let revoked: Vec<Partition> = places
                    .iter()
                    .filter_map(|(topic, index)| Some(self.held.get_mut(topic)?.remove(index)?.partition))
                    .collect();
                self.unknown.retain(|place, _| !places.contains(place));
                if revoked.is_empty() {
                    Ok(())
                } else {
                    self.send(Event::Revoked(revoked))
                }
            }
        }
    }

    fn assign(&mut self, assigned: Vec<(Place, Assignment)>) -> Result<(), Ended> {
        let names = assigned
            .iter()
            .filter_map(|((topic, _), _)| TopicName::new(topic).ok())
            .collect();
        // A topic of this name may have been created anew since its id was last asked for.
        let topics = match self.ids.ask(names) {
            Ok(topics) => topics,
            Err(error) => return self.fail(error),
        };
        let mut told = Vec::new();
        for ((name, index), assignment) in assigned {
            let Some(topic) = TopicName::new(&name).ok().and_then(|name| topics.get(&name)) else {
                tracing::warn!(
                    topic = name,
                    partition = index,
                    "was assigned and is not known to the broker"
                );
                self.unknown.insert((name, index), assignment);
                continue;
            };
            let partition = Partition {
                topic: Arc::clone(topic),
                index,
            };
            told.push((partition.clone(), assignment));
            self.held.entry(name).or_default().insert(
                index,
                Held {
                    partition,
                    assignment,
                    next_offset: 0,
                },
            );
        }
        if told.is_empty() {
            Ok(())
        } else {
            self.send(Event::Assigned(told))
        }
    }

    fn send_chunk(&self, open: &mut Option<OpenChunk>) -> Result<(), Ended> {
        match open.take() {
            Some(open) => self.send(Event::Records(open.chunk)),
            None => Ok(()),
        }
    }

    fn send(&self, event: Event) -> Result<(), Ended> {
        self.events.blocking_send(Ok(event)).map_err(|_| Ended)
    }

    fn fail<T>(&self, error: Error) -> Result<T, Ended> {
        // Nobody left to tell is as good as told.
        self.events.blocking_send(Err(error)).ok();
        Err(Ended)
    }
}

/// The error that a stage must hear; the others pass, since librdkafka goes on trying.
pub(super) fn worth_telling(error: &KafkaError) -> Option<Error> {
    let told = failed("read from Kafka", error);
    match error {
        KafkaError::PartitionEOF(_) => None,
        KafkaError::MessageConsumptionFatal(_) => Some(told),
        _ if matches!(told, Error::Unavailable { .. }) => {
            tracing::warn!(%error, "reading from Kafka is disturbed");
            None
        }
        _ => Some(told),
    }
}

/// What stands in `message`.
pub(super) fn record(message: &BorrowedMessage<'_>) -> Record {
    Record {
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        // The broker refuses a record whose producer says so itself.
        stamped_by_log: matches!(message.timestamp(), Timestamp::LogAppendTime(_)),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: native::headers(message),
    }
}

fn recreated(topic: &str, index: i32) -> Error {
    Error::Fenced {
        what: format!("read `{topic}[{index}]`"),
        detail: "its offsets began again: the topic was deleted and created anew".to_owned(),
    }
}

/// A chunk that still grows.
struct OpenChunk {
    chunk: Chunk,
    bytes: usize,
}

impl OpenChunk {
    fn new(held: &Held) -> Self {
        let chunk = Chunk {
            partition: held.partition.clone(),
            assignment: held.assignment,
            records: Vec::new(),
        };
        Self { chunk, bytes: 0 }
    }

    fn is_of(&self, topic: &str, index: i32) -> bool {
        self.chunk.partition.index == index && self.chunk.partition.topic.name.as_str() == topic
    }

    fn is_full(&self) -> bool {
        self.chunk.records.len() >= CHUNK_RECORDS_MAX || self.bytes >= CHUNK_BYTES_MAX
    }

    fn push(&mut self, message: &BorrowedMessage<'_>) {
        let record = record(message);
        self.bytes += record.size_bytes();
        self.chunk.records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_becomes_an_anchored_expression_with_its_dots_taken_literally() {
        assert_eq!(
            topic_regex(&TopicPattern::Under("tributary.work.shared.".to_owned())).as_deref(),
            Some("^tributary\\.work\\.shared\\.[^.]+$")
        );
        assert_eq!(
            topic_regex(&TopicPattern::Exact(TopicName::new("jobs").unwrap())).as_deref(),
            Some("jobs")
        );
    }

    #[test]
    fn a_lost_membership_is_told_and_a_lost_connection_is_not() {
        let told = |code| worth_telling(&KafkaError::MessageConsumption(code));
        assert!(matches!(
            told(RDKafkaErrorCode::PollExceeded),
            Some(Error::Fenced { .. })
        ));
        assert!(matches!(
            told(RDKafkaErrorCode::TopicAuthorizationFailed),
            Some(Error::Invalid { .. })
        ));
        assert!(told(RDKafkaErrorCode::AllBrokersDown).is_none());
        assert!(told(RDKafkaErrorCode::UnknownTopicOrPartition).is_none());
        let fatal = KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::IllegalGeneration);
        assert!(matches!(worth_telling(&fatal), Some(Error::Fenced { .. })));
    }
}
