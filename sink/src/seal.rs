//! Writes one range: intent first, then the files.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};
use schemas::{Tenant, TopicName};
use topics::{Appender, Partition, dead_letter, offload};

use crate::{
    Error,
    encode::{self, Draft, Encoded},
    layout, metric_names,
    partition::{Place, ReadyRange},
    range::RangeIntent,
    store::{Created, Store},
};

/// Files of one range that are written side by side.
const PUTS_AT_ONCE: usize = 4;

/// What is needed to write a range, beside the range.
pub(crate) struct Sealer {
    pub(crate) store: Store,
    pub(crate) dead_letters: TopicName,
    pub(crate) appender: Box<dyn Appender>,
}

/// What came of a range.
pub(crate) enum Sealed {
    /// It is in the lake, whole: the group's progress may be this.
    Done { end: i64, place: Place },
    /// Another sink fixed this range first, otherwise.
    Superseded { range: ReadyRange, intent: RangeIntent },
}

impl Sealer {
    /// Writes `range` of `partition`.
    pub(crate) async fn seal(
        &self,
        partition: &Partition,
        tenant: &Tenant,
        range: ReadyRange,
    ) -> Result<Sealed, Error> {
        let (range, encoded) = encode(partition, tenant, range).await?;
        let intent = &encoded.intent;
        let path = layout::intent(intent.topic_id, intent.partition, intent.start);
        if let Created::Different(found) = self.store.create(&path, intent.encode().into()).await? {
            let found = RangeIntent::decode(&found).map_err(|why| Error::Contradiction {
                what: format!(
                    "range `{path}` of the lake `{}` cannot be read: {why}",
                    self.store.url()
                ),
            })?;
            return Ok(Sealed::Superseded { range, intent: found });
        }
        self.keep_dead_letters(partition, &range, &encoded).await?;
        let digest = intent.digest();
        let files: Vec<_> = intent
            .files
            .iter()
            .map(|file| (layout::path(&file.path), file.rows))
            .collect();
        let creates = files.into_iter().zip(encoded.files.clone());
        stream::iter(creates.map(|((path, rows), bytes)| self.create_file(path, rows, bytes, &digest)))
            .buffer_unordered(PUTS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        count(intent);
        let (end, marks_after) = (intent.end, intent.marks_after.clone());
        Ok(Sealed::Done {
            end,
            place: range.next_place(marks_after),
        })
    }

    async fn create_file(&self, path: Path, rows: u64, bytes: Bytes, digest: &str) -> Result<(), Error> {
        metrics::counter!(metric_names::FILE_BYTES).increment(bytes.len() as u64);
        match self.store.create(&path, bytes).await? {
            Created::New | Created::Same => Ok(()),
            Created::Different(found) if has_footer(&found, digest, rows) => Ok(()),
            Created::Different(_) => Err(Error::Contradiction {
                what: format!(
                    "file `{path}` of the lake `{}` is not what its range says it is",
                    self.store.url()
                ),
            }),
        }
    }

    /// Appends what could not be decoded to the dead letters. A range that is redone does so again: rather twice than not.
    async fn keep_dead_letters(
        &self,
        source: &Partition,
        range: &ReadyRange,
        encoded: &Encoded,
    ) -> Result<(), Error> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let letters = encoded.undecodable.iter().map(|(position, reason)| {
            let record = &range.records[*position];
            tracing::error!(%source, offset = record.offset, reason, "record of outcomes cannot be decoded");
            dead_letter(source, record, reason, self.dead_letters.clone(), now_ms)
        });
        for appended in self.appender.append(letters.collect()).await {
            appended?;
        }
        Ok(())
    }
}

async fn encode(
    partition: &Partition,
    tenant: &Tenant,
    range: ReadyRange,
) -> Result<(ReadyRange, Encoded), Error> {
    let (topic, index, tenant) = (
        std::sync::Arc::clone(&partition.topic),
        partition.index,
        tenant.clone(),
    );
    let work = move || {
        let draft = Draft {
            topic: &topic.name,
            topic_id: topic.id,
            partition: index,
            tenant: &tenant,
            start: range.start,
            marks_before: &range.marks_before,
            records: &range.records,
        };
        let encoded = encode::encode(&draft, range.existing.as_ref())?;
        Ok((range, encoded))
    };
    offload(work).await
}

/// Whether `found` is a file of the intent with this digest, with as many rows: another build may have encoded the same
/// rows to other bytes.
fn has_footer(found: &Bytes, digest: &str, rows: u64) -> bool {
    let Ok(reader) = SerializedFileReader::new(found.clone()) else {
        return false;
    };
    let metadata = reader.metadata().file_metadata();
    let digest_there = metadata
        .key_value_metadata()
        .into_iter()
        .flatten()
        .find(|entry| entry.key == "tributary.intent_digest")
        .and_then(|entry| entry.value.as_deref());
    digest_there == Some(digest) && u64::try_from(metadata.num_rows()) == Ok(rows)
}

fn count(intent: &RangeIntent) {
    let rows: u64 = intent.files.iter().map(|file| file.rows).sum::<u64>() / 2;
    metrics::counter!(metric_names::ROWS, "tenant" => intent.tenant.to_string()).increment(rows);
    metrics::counter!(metric_names::DUPLICATES).increment(intent.duplicates);
    metrics::counter!(metric_names::DEAD_LETTERS).increment(intent.undecodable);
    metrics::counter!(metric_names::RANGES).increment(1);
}
