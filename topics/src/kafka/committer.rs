//! Committing: one thread appends what a stage decided and advances its group, both or neither.
//!
//! # Why a member that lost a partition cannot commit for it
//! A transaction's offsets carry the member's id and generation, and the broker refuses those of a past generation. The
//! two are taken *before* it is checked that the sources are still held. So either the partition changed hands before
//! the check, which then leaves its step out, or after it, and then the broker refuses what was taken before. A client
//! that is not a member at all carries no id, and from such a one the broker takes anything: nothing is sent then.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, Weak, mpsc},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rdkafka::{
    ClientConfig, ClientContext, Message, Statistics,
    config::RDKafkaLogLevel,
    consumer::{Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaError},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    types::RDKafkaErrorCode,
};
use tokio::sync::oneshot;

use super::{
    client::{Complaints, failed, not_appended},
    native,
    polled::polled,
    reader::{GroupConsumer, REBALANCE_LIMIT, RETRY_PAUSE, commit_progress, is_rebalance, offsets},
    settings::Delivery,
};
use crate::{Append, Committed, Committer, Error, Partition, Step};

/// How long any one call of a transaction may take.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// How soon it is noticed that a record was refused, while others are still on their way.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Hands commits to the thread that does them.
pub(super) struct KafkaCommitter {
    requests: mpsc::Sender<Request>,
}

struct Request {
    steps: Vec<Step>,
    reply: oneshot::Sender<Result<Committed, Error>>,
}

/// A producer that is ready, and whose predecessor of the same name can no longer commit.
pub(super) struct StageProducer {
    producer: Arc<BaseProducer<Deliveries>>,
    delivery: Delivery,
}

impl StageProducer {
    /// Waits until transactions that a predecessor left open are ended.
    pub(super) fn new(
        config: &ClientConfig,
        delivery: Delivery,
        complaints: Complaints,
    ) -> Result<Self, Error> {
        let producer = polled(config, Deliveries::new(complaints))?;
        if delivery == Delivery::Transactional {
            producer
                .init_transactions(CALL_LIMIT)
                .map_err(|error| failed("begin to use transactions", &error))?;
        }
        Ok(Self { producer, delivery })
    }
}

impl KafkaCommitter {
    pub(super) fn start(producer: StageProducer, consumer: Weak<GroupConsumer>) -> Result<Self, Error> {
        let (requests, receiver) = mpsc::channel::<Request>();
        let worker = Worker {
            producer: producer.producer,
            delivery: producer.delivery,
            consumer,
        };
        let thread = move || {
            for Request { steps, reply } in receiver {
                let committed = worker.commit(steps);
                let spent = committed.is_err();
                // Whoever asked may be gone; the commit stands all the same.
                reply.send(committed).ok();
                if spent {
                    break;
                }
            }
        };
        std::thread::Builder::new()
            .name("kafka-committer".to_owned())
            .spawn(thread)
            .map_err(|error| Error::Unavailable {
                what: "start the thread of a Kafka committer".to_owned(),
                detail: error.to_string(),
            })?;
        Ok(Self { requests })
    }
}

#[async_trait]
impl Committer for KafkaCommitter {
    async fn append_and_commit(&mut self, steps: Vec<Step>) -> Result<Committed, Error> {
        let ended = || Error::Fenced {
            what: "commit".to_owned(),
            detail: "this committer has ended".to_owned(),
        };
        let (reply, replied) = oneshot::channel();
        self.requests
            .send(Request { steps, reply })
            .map_err(|_| ended())?;
        replied.await.unwrap_or_else(|_| Err(ended()))
    }
}

struct Worker {
    producer: Arc<BaseProducer<Deliveries>>,
    delivery: Delivery,
    consumer: Weak<GroupConsumer>,
}

/// How an attempt at a transaction ended, when its end is known.
enum Attempt {
    Committed,
    /// The group moved on: nothing was done, and it may be tried again.
    Refused,
}

impl Worker {
    fn commit(&self, steps: Vec<Step>) -> Result<Committed, Error> {
        let Some(consumer) = self.consumer.upgrade() else {
            // The member has left: nothing is its own any more.
            return Ok(Committed {
                left_out: sources(steps),
            });
        };
        let left_out = match self.delivery {
            Delivery::Transactional => self.commit_transaction(&consumer, steps)?,
            Delivery::Idempotent => self.append_then_commit(&consumer, steps)?,
        };
        Ok(Committed {
            left_out: sources(left_out),
        })
    }

    /// Gives back the steps that were left out.
    fn commit_transaction(&self, consumer: &GroupConsumer, mut steps: Vec<Step>) -> Result<Vec<Step>, Error> {
        let membership = &consumer.context().membership;
        let mut left_out = Vec::new();
        let began = Instant::now();
        loop {
            let member = as_member(consumer);
            let (held, others) = membership.sort_out(steps);
            left_out.extend(others);
            if held.is_empty() {
                return Ok(left_out);
            }
            if let Some(member) = member
                && let Attempt::Committed = self.attempt(&held, &member)?
            {
                return Ok(left_out);
            }
            if began.elapsed() > REBALANCE_LIMIT {
                return Err(Error::Unavailable {
                    what: "commit".to_owned(),
                    detail: format!("the group did not settle within {} s", REBALANCE_LIMIT.as_secs()),
                });
            }
            membership.wait_for_change(RETRY_PAUSE);
            steps = held;
        }
    }

    fn attempt(&self, steps: &[Step], member: &ConsumerGroupMetadata) -> Result<Attempt, Error> {
        let producer = &self.producer;
        producer
            .begin_transaction()
            .map_err(|error| unknown("begin a transaction", &error))?;
        if let Err(error) = self.append(steps) {
            // The appends are what is wrong; how giving up went does not matter, since the producer is done for.
            self.abort().ok();
            return Err(error);
        }
        let result = producer
            .send_offsets_to_transaction(&offsets(steps), member, CALL_LIMIT)
            .and_then(|()| producer.commit_transaction(CALL_LIMIT));
        match result {
            Ok(()) => Ok(Attempt::Committed),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => self.give_up(error),
            Err(error) => Err(unknown("commit a transaction", &error)),
        }
    }

    fn give_up(&self, error: RDKafkaError) -> Result<Attempt, Error> {
        let code = error.code();
        self.abort()
            .map_err(|error| unknown("abort a transaction", &error))?;
        if is_rebalance(Some(code)) {
            Ok(Attempt::Refused)
        } else {
            Err(failed("commit a transaction", &KafkaError::Transaction(error)))
        }
    }

    fn abort(&self) -> Result<(), KafkaError> {
        // librdkafka waits until every record is reported.
        self.purge();
        self.producer.abort_transaction(CALL_LIMIT)
    }

    /// Forgets what is not acknowledged.
    fn purge(&self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
    }

    fn append_then_commit(&self, consumer: &GroupConsumer, steps: Vec<Step>) -> Result<Vec<Step>, Error> {
        let (held, mut left_out) = consumer.context().membership.sort_out(steps);
        if let Err(error) = self.append(&held) {
            // The producer, which is done for, lives on for a moment: nothing may come after what it did not append.
            self.purge();
            return Err(error);
        }
        left_out.extend(commit_progress(consumer, held)?);
        Ok(left_out)
    }

    /// Appends what `steps` became, and waits until all of it is acknowledged.
    fn append(&self, steps: &[Step]) -> Result<(), Error> {
        let deliveries = self.producer.context();
        deliveries.begin();
        let mut sent = 0;
        for append in steps.iter().flat_map(|step| &step.appends) {
            self.send(append, sent)?;
            sent += 1;
        }
        // In pieces, since librdkafka may never report what stands behind a record that was refused.
        while !deliveries.is_decided(sent) {
            native::flush(self.producer.client(), FLUSH_LIMIT);
        }
        deliveries.wait_for(sent)
    }

    /// Sends the record that follows `sent` others.
    fn send(&self, append: &Append, sent: usize) -> Result<(), Error> {
        let mut record = native_record(append, ());
        let mut alone = false;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) if !alone => {
                    self.producer.context().wait_for_half(sent)?;
                    alone = self.producer.in_flight_count() == 0;
                    record = refused;
                }
                Err((error, _)) => return Err(not_sent(append, &error)),
            }
        }
    }
}

fn sources(steps: Vec<Step>) -> Vec<Partition> {
    steps.into_iter().map(|step| step.source).collect()
}

/// What proves to the broker that `consumer` is a member; none while it is not.
fn as_member(consumer: &GroupConsumer) -> Option<ConsumerGroupMetadata> {
    // An id is never given twice, so when it is the same before and after, it is the one in between.
    let before = native::member_id(consumer.client())?;
    let metadata = consumer.group_metadata()?;
    (native::member_id(consumer.client())? == before).then_some(metadata)
}

/// An error after which nobody knows what was committed.
fn unknown(what: &str, error: &KafkaError) -> Error {
    match failed(what, error) {
        Error::Unavailable { what, detail } => Error::Fenced { what, detail },
        other => other,
    }
}

pub(super) fn native_record<D: rdkafka::util::IntoOpaque>(
    append: &Append,
    opaque: D,
) -> BaseRecord<'_, [u8], [u8], D> {
    let headers = (!append.headers.is_empty()).then(|| {
        append.headers.iter().fold(
            OwnedHeaders::new_with_capacity(append.headers.len()),
            |headers, header| {
                headers.insert(Header {
                    key: &header.name,
                    value: header.value.as_deref(),
                })
            },
        )
    });
    BaseRecord {
        topic: append.topic.as_str(),
        partition: append.partition,
        payload: append.value.as_deref(),
        key: append.key.as_deref(),
        timestamp: Some(append.timestamp_ms),
        headers,
        delivery_opaque: opaque,
    }
}

/// Why librdkafka did not take `append`.
pub(super) fn not_sent(append: &Append, error: &KafkaError) -> Error {
    let size_bytes =
        append.key.as_ref().map_or(0, |key| key.len()) + append.value.as_ref().map_or(0, |value| value.len());
    not_appended(
        append.topic.as_str(),
        size_bytes,
        error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
    )
}

/// What became of the records of one append. Reports come in on the producer's thread.
struct Deliveries {
    tally: Mutex<Tally>,
    enough: Condvar,
    complaints: Complaints,
}

#[derive(Default)]
struct Tally {
    reported: usize,
    /// So many reports end the wait.
    awaited: Option<usize>,
    failure: Option<Failure>,
}

struct Failure {
    topic: String,
    size_bytes: usize,
    code: RDKafkaErrorCode,
}

impl Deliveries {
    fn new(complaints: Complaints) -> Self {
        Self {
            tally: Mutex::default(),
            enough: Condvar::new(),
            complaints,
        }
    }

    fn begin(&self) {
        *self.tally() = Tally::default();
    }

    /// Waits until half of those of `sent` records that are not reported yet are.
    fn wait_for_half(&self, sent: usize) -> Result<(), Error> {
        let reported = self.tally().reported;
        self.wait_for(reported + (sent - reported).div_ceil(2))
    }

    /// Waits until so many records are reported, and tells if one of them failed. Each is reported in the end: it fails
    /// when the time limit of the transaction, or `message.timeout.ms`, is up.
    fn wait_for(&self, reported: usize) -> Result<(), Error> {
        let mut tally = self.tally();
        while tally.reported < reported && tally.failure.is_none() {
            tally.awaited = Some(reported);
            tally = self.enough.wait(tally).expect("no holder of this lock panics");
        }
        tally.awaited = None;
        match &tally.failure {
            Some(Failure {
                topic,
                size_bytes,
                code,
            }) => Err(not_appended(topic, *size_bytes, *code)),
            None => Ok(()),
        }
    }

    /// Whether nothing is left to wait for: so many records are reported, or one of them failed.
    fn is_decided(&self, reported: usize) -> bool {
        let tally = self.tally();
        tally.reported >= reported || tally.failure.is_some()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no holder of this lock panics")
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.complaints.log(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let mut tally = self.tally();
        tally.reported += 1;
        if let Err((error, message)) = result {
            let failure = Failure {
                topic: message.topic().to_owned(),
                size_bytes: message.key_len() + message.payload_len(),
                code: error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
            };
            let first = &mut tally.failure;
            // A record that is too large takes the others of its batch with it: it is the largest.
            if first
                .as_ref()
                .is_none_or(|first| first.code == failure.code && first.size_bytes < failure.size_bytes)
            {
                *first = Some(failure);
            }
        }
        let enough =
            tally.awaited.is_some_and(|awaited| tally.reported >= awaited) || tally.failure.is_some();
        drop(tally);
        if enough {
            self.enough.notify_all();
        }
    }
}
