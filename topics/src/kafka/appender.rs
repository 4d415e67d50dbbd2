//! Appending without reading, through an idempotent producer.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rdkafka::{
    ClientConfig, ClientContext, Message, Statistics,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use schemas::TopicName;
use tokio::sync::{Notify, oneshot};

use super::{
    blocking,
    client::{Complaints, not_appended},
    committer::{native_record, not_sent},
    ids::TopicIds,
    polled::polled,
};
use crate::{Append, Appender, Error, Partition, TopicRef};

/// How long to wait for news of room in librdkafka's queue before looking.
const LOOK: Duration = Duration::from_millis(5);

/// Appends through a producer of its own.
pub(super) struct KafkaAppender {
    producer: Arc<BaseProducer<Acknowledgements>>,
    ids: TopicIds,
}

impl KafkaAppender {
    pub(super) fn new(config: &ClientConfig, ids: TopicIds, complaints: Complaints) -> Result<Self, Error> {
        let context = Acknowledgements {
            room: Arc::default(),
            complaints,
        };
        Ok(Self {
            producer: polled(config, context)?,
            ids,
        })
    }

    /// Waits while librdkafka's queue is full.
    async fn send(&self, append: &Append, slot: Slot) {
        let room = Arc::clone(&self.producer.context().room);
        let mut opaque = Box::new(slot);
        let mut alone = false;
        loop {
            // Listening begins before the attempt, or room that is made in between would be missed.
            let made = room.notified();
            tokio::pin!(made);
            made.as_mut().enable();
            match self.producer.send(native_record(append, opaque)) {
                Ok(()) => return,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) if !alone => {
                    opaque = refused.delivery_opaque;
                }
                Err((error, refused)) => return refused.delivery_opaque.fill(Err(not_sent(append, &error))),
            }
            // A record is reported a moment before its room is free.
            tokio::time::timeout(LOOK, made).await.ok();
            alone = self.producer.in_flight_count() == 0;
        }
    }
}

#[async_trait]
impl Appender for KafkaAppender {
    async fn append(&self, records: Vec<Append>) -> Vec<Result<(Partition, i64), Error>> {
        let (done, all_done) = oneshot::channel();
        let count = records.len();
        let batch = Arc::new(Batch {
            placed: Mutex::new((0..count).map(|_| Err(lost())).collect()),
            done: Mutex::new(Some(done)),
        });
        let mut topics: Vec<TopicName> = Vec::new();
        for (index, append) in records.iter().enumerate() {
            if topics.last() != Some(&append.topic) {
                topics.push(append.topic.clone());
            }
            self.send(
                append,
                Slot {
                    batch: Arc::clone(&batch),
                    index,
                },
            )
            .await;
        }
        drop(batch);
        let placed = all_done
            .await
            .unwrap_or_else(|_| (0..count).map(|_| Err(lost())).collect());
        let ids = self.ids.clone();
        let topics = blocking(move || ids.recall(topics)).await;
        records
            .iter()
            .zip(placed)
            .map(|(append, placed)| located(append, placed?, &topics))
            .collect()
    }
}

fn located(
    append: &Append,
    (index, offset): (i32, i64),
    topics: &Result<BTreeMap<TopicName, Arc<TopicRef>>, Error>,
) -> Result<(Partition, i64), Error> {
    let what = || format!("append to `{}`", append.topic);
    let unknown = |detail: String| Error::Unavailable { what: what(), detail };
    match topics {
        Ok(topics) => match topics.get(&append.topic) {
            Some(topic) => Ok((
                Partition {
                    topic: Arc::clone(topic),
                    index,
                },
                offset,
            )),
            None => Err(unknown("the topic is gone since".to_owned())),
        },
        Err(error) => Err(unknown(format!("done, but the topic's id is not known: {error}"))),
    }
}

fn lost() -> Error {
    Error::Unavailable {
        what: "append".to_owned(),
        detail: "the producer was closed before it was done".to_owned(),
    }
}

/// Where a record went.
type Placed = Result<(i32, i64), Error>;

/// Records that are waited for together.
struct Batch {
    placed: Mutex<Vec<Placed>>,
    done: Mutex<Option<oneshot::Sender<Vec<Placed>>>>,
}

impl Drop for Batch {
    fn drop(&mut self) {
        let placed = std::mem::take(self.placed.get_mut().expect("no holder of this lock panics"));
        if let Some(done) = self.done.get_mut().expect("no holder of this lock panics").take() {
            // Whoever waited may be gone; the records stand all the same.
            done.send(placed).ok();
        }
    }
}

/// One record's place in its batch. The last one that is dropped ends the wait.
struct Slot {
    batch: Arc<Batch>,
    index: usize,
}

impl Slot {
    fn fill(&self, placed: Placed) {
        self.batch.placed.lock().expect("no holder of this lock panics")[self.index] = placed;
    }
}

/// Takes in what became of records, on the producer's thread.
struct Acknowledgements {
    room: Arc<Notify>,
    complaints: Complaints,
}

impl ClientContext for Acknowledgements {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.complaints.log(level, facility, message);
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = Box<Slot>;

    fn delivery(&self, result: &DeliveryResult<'_>, slot: Box<Slot>) {
        slot.fill(match result {
            Ok(message) => Ok((message.partition(), message.offset())),
            Err((error, message)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                Err(not_appended(
                    message.topic(),
                    message.key_len() + message.payload_len(),
                    code,
                ))
            }
        });
        drop(slot);
        self.room.notify_waiters();
    }
}
