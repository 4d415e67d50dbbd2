//! Bytes that nobody can decode: kept untouched, with where they stood and why, in the headers that Kafka Connect uses.

use schemas::TopicName;

use crate::{Append, Header, Partition, Record};

/// The dead letter, written to `topic` at `now_ms`, for `record`, which stood in `source` and cannot be decoded because of
/// `reason`.
pub fn dead_letter(
    source: &Partition,
    record: &Record,
    reason: &str,
    topic: TopicName,
    now_ms: i64,
) -> Append {
    let mut headers = record.headers.clone();
    headers.extend([
        Header::text("__connect.errors.topic", source.topic.name.as_str()),
        Header::text("__connect.errors.partition", &source.index.to_string()),
        Header::text("__connect.errors.offset", &record.offset.to_string()),
        Header::text("__connect.errors.stage", "VALUE_CONVERTER"),
        Header::text("__connect.errors.exception.message", reason),
        Header::text("tributary.errors.topic.id", &source.topic.id.to_string()),
        Header::text("tributary.errors.timestamp.ms", &record.timestamp_ms.to_string()),
    ]);
    Append {
        topic,
        partition: Some(0),
        timestamp_ms: now_ms,
        key: record.key.clone(),
        value: record.value.clone(),
        headers,
    }
}
