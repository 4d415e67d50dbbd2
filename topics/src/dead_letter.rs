//! Bytes that nobody can decode: kept untouched, with where they stood and why, in the headers that Kafka Connect uses.

use schemas::{TopicName, printable};

use crate::{Append, Header, Partition, Record};

/// A reason may repeat what the producer wrote, which may be anything.
const REASON_CHARS_MAX: usize = 500;

const TOPIC: &str = "__connect.errors.topic";
const PARTITION: &str = "__connect.errors.partition";
const OFFSET: &str = "__connect.errors.offset";
const STAGE: &str = "__connect.errors.stage";
const REASON: &str = "__connect.errors.exception.message";
const TOPIC_ID: &str = "tributary.errors.topic.id";
const TIMESTAMP_MS: &str = "tributary.errors.timestamp.ms";
/// On a record of its own: which dead letter was put back to where it came from.
const REPLAYED: &str = "tributary.replayed.offset";
/// On a record of its own: that a replay began.
const REPLAY: &str = "tributary.replay.id";

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
        Header::text(TOPIC, source.topic.name.as_str()),
        Header::text(PARTITION, &source.index.to_string()),
        Header::text(OFFSET, &record.offset.to_string()),
        Header::text(STAGE, "VALUE_CONVERTER"),
        Header::text(REASON, &printable(reason, REASON_CHARS_MAX)),
        Header::text(TOPIC_ID, &source.topic.id.to_string()),
        Header::text(TIMESTAMP_MS, &record.timestamp_ms.to_string()),
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

/// What stands on the topic of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letter {
    /// A record that nobody could decode.
    Dead(DeadLetter),
    /// The dead letter at this offset was put back to where it came from.
    Replayed(i64),
    /// The replay with this id began. Whoever reads this has read all that stood before it.
    Began(String),
}

/// A record that nobody could decode, and where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The topic that it stood on,
    pub topic: TopicName,
    /// its partition,
    pub partition: i32,
    /// and its offset there.
    pub offset: i64,
    /// Why it could not be decoded, in printable characters.
    pub reason: String,
    /// The record as it was: key, value, headers and time. Its offset is that of the dead letter.
    pub record: Record,
}

impl Letter {
    /// What `record`, of the topic of dead letters, is; none where it is neither.
    pub fn read(record: &Record) -> Option<Self> {
        // What the producer wrote comes first, and may look like ours: the last ones are of this time.
        let Some(of_original) = record.headers.iter().rposition(|header| header.name == TOPIC) else {
            let offset = record.header(REPLAYED).and_then(|offset| offset.parse().ok());
            return offset
                .map(Self::Replayed)
                .or_else(|| record.header(REPLAY).map(|id| Self::Began(id.to_owned())));
        };
        let mut original = record.clone();
        original.headers.truncate(of_original);
        let last = |name: &str| {
            let header = record.headers[of_original..]
                .iter()
                .find(|header| header.name == name)?;
            std::str::from_utf8(header.value.as_deref()?).ok()
        };
        original.timestamp_ms = last(TIMESTAMP_MS)?.parse().ok()?;
        Some(Self::Dead(DeadLetter {
            topic: TopicName::new(last(TOPIC)?).ok()?,
            partition: last(PARTITION)?.parse().ok()?,
            offset: last(OFFSET)?.parse().ok()?,
            reason: printable(last(REASON)?, REASON_CHARS_MAX),
            record: original,
        }))
    }
}

/// What says on `letters`, the topic of dead letters, that the replay with this id begins at `now_ms`.
pub fn replay_begins(id: &str, letters: TopicName, now_ms: i64) -> Append {
    note(Header::text(REPLAY, id), letters, now_ms)
}

fn note(header: Header, letters: TopicName, now_ms: i64) -> Append {
    Append {
        topic: letters,
        partition: Some(0),
        timestamp_ms: now_ms,
        key: None,
        value: None,
        headers: vec![header],
    }
}

impl DeadLetter {
    /// What puts it back to where it came from, as a new record written at `now_ms`, and what says so on `letters`, the
    /// topic of dead letters: to be appended as one.
    pub fn replay(&self, letters: TopicName, now_ms: i64) -> [Append; 2] {
        let again = Append {
            topic: self.topic.clone(),
            partition: None,
            timestamp_ms: now_ms,
            key: self.record.key.clone(),
            value: self.record.value.clone(),
            headers: self.record.headers.clone(),
        };
        let replayed = note(
            Header::text(REPLAYED, &self.record.offset.to_string()),
            letters,
            now_ms,
        );
        [again, replayed]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::TopicId;

    use super::*;
    use crate::TopicRef;

    fn stood(record: Append, offset: i64) -> Record {
        let Append {
            timestamp_ms,
            key,
            value,
            headers,
            ..
        } = record;
        Record {
            offset,
            timestamp_ms,
            stamped_by_log: false,
            key,
            value,
            headers,
        }
    }

    #[test]
    fn a_dead_letter_keeps_the_record_untouched_however_often_it_dies() {
        let topic = TopicRef {
            name: TopicName::new("jobs.acme").unwrap(),
            id: TopicId::from_bytes([1; 16]),
        };
        let source = Partition {
            topic: Arc::new(topic),
            index: 3,
        };
        let letters = TopicName::new("dead-letters").unwrap();
        let record = Record {
            offset: 41,
            timestamp_ms: 5,
            stamped_by_log: false,
            key: Some("key".into()),
            value: Some(vec![0xff, 0x00].into()),
            headers: vec![
                Header::text("traceparent", "t"),
                Header::text(REPLAYED, "7"),
                Header::text(TIMESTAMP_MS, "what a producer may write"),
            ],
        };
        let dead = stood(dead_letter(&source, &record, "no JSON", letters.clone(), 9), 7);
        let Some(Letter::Dead(letter)) = Letter::read(&dead) else {
            panic!("{dead:?}")
        };
        assert_eq!(
            (letter.topic.as_str(), letter.partition, letter.offset),
            ("jobs.acme", 3, 41)
        );
        assert_eq!(letter.reason, "no JSON");
        assert_eq!(
            letter.record,
            Record {
                offset: 7,
                ..record.clone()
            }
        );

        let [again, replayed] = letter.replay(letters.clone(), 11);
        assert_eq!(Letter::read(&stood(replayed, 8)), Some(Letter::Replayed(7)));
        let twice = stood(
            dead_letter(&source, &stood(again, 42), "still no JSON", letters, 12),
            9,
        );
        let Some(Letter::Dead(letter)) = Letter::read(&twice) else {
            panic!("{twice:?}")
        };
        assert_eq!((letter.offset, letter.reason.as_str()), (42, "still no JSON"));
        assert_eq!(letter.record.headers, record.headers);
    }

    #[test]
    fn a_reason_is_short_and_printable_whoever_wrote_it() {
        let topic = TopicName::new("dead-letters").unwrap();
        let id = TopicId::from_bytes([1; 16]);
        let name = topic.clone();
        let source = Partition {
            topic: Arc::new(TopicRef { name, id }),
            index: 0,
        };
        let record = Record {
            offset: 0,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: None,
            headers: Vec::new(),
        };
        let raw = format!("\x1b[2J{}", "x".repeat(1 << 20));
        let append = dead_letter(&source, &record, &raw, topic, 0);
        let written = append.headers.iter().find(|header| header.name == REASON);
        let expected = format!("\\u{{1b}}[2J{}…", "x".repeat(496));
        assert_eq!(written.unwrap(), &Header::text(REASON, &expected));
        let mut of_others = stood(append, 0);
        for header in &mut of_others.headers {
            if header.name == REASON {
                *header = Header::text(REASON, &raw);
            }
        }
        let read = Letter::read(&of_others);
        assert!(
            matches!(&read, Some(Letter::Dead(letter)) if letter.reason == expected),
            "{read:?}"
        );
    }

    #[test]
    fn what_is_no_dead_letter_is_told() {
        let record = Record {
            offset: 0,
            timestamp_ms: 0,
            stamped_by_log: false,
            key: None,
            value: Some("x".into()),
            headers: Vec::new(),
        };
        assert_eq!(Letter::read(&record), None);
    }
}
