//! Works on one range: encodes its records, and writes it, intent first and then the files.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{PutPayload, path::Path};
use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};
use schemas::TopicName;
use topics::{Appender, Partition, Record, dead_letter, offload};

use crate::{
    Error,
    encode::{Encoded, OpenRange, Source},
    layout, metric_names,
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

/// Encodes `records` into `range`.
///
/// # Errors
/// As of [`OpenRange::add`].
pub(crate) async fn encode(
    source: Source,
    mut range: OpenRange,
    records: Vec<Record>,
) -> Result<OpenRange, Error> {
    offload(move || {
        range.add(&source, records)?;
        Ok(range)
    })
    .await
}

impl Sealer {
    /// Ends `range` with `records`, and writes it. When its intent is answered, it is in the lake, whole: the group's
    /// progress may be its end.
    ///
    /// # Errors
    /// [`Error::Overtaken`] where another sink fixed this range first, otherwise.
    pub(crate) async fn seal(
        &self,
        source: Source,
        mut range: OpenRange,
        records: Vec<Record>,
    ) -> Result<RangeIntent, Error> {
        let partition = source.partition.clone();
        let work = move || {
            range.add(&source, records)?;
            range.close(&source)
        };
        let encoded: Encoded = offload(work).await?;
        let intent = encoded.intent;
        let path = layout::intent(intent.topic_id, intent.partition, intent.start);
        if let Created::Different(found) = self.store.create(&path, intent.encode()).await? {
            return Err(self.overtaken(&path, &intent, &found));
        }
        self.keep_dead_letters(&partition, encoded.undecodable).await?;
        let digest = intent.digest();
        let paths = intent
            .files
            .iter()
            .map(|file| (layout::path(&file.path), file.rows));
        let files: Vec<_> = paths.zip(encoded.files).collect();
        stream::iter(files)
            .map(|((path, rows), file)| self.create_file(path, rows, file, &digest))
            .buffer_unordered(PUTS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        count(&intent);
        Ok(intent)
    }

    /// The records of the range are gone, and it is to be done as the other sink says: they are read again from the
    /// position that was committed.
    fn overtaken(&self, path: &Path, intent: &RangeIntent, found: &Bytes) -> Error {
        match RangeIntent::decode(found) {
            Ok(found) => Error::Overtaken {
                what: format!(
                    "{}[{}] from offset {} to {}, and not to {}",
                    intent.topic, intent.partition, intent.start, found.end, intent.end
                ),
            },
            Err(why) => Error::Contradiction {
                what: format!(
                    "range `{path}` of the lake `{}` cannot be read: {why}",
                    self.store.url()
                ),
            },
        }
    }

    async fn create_file(&self, path: Path, rows: u64, file: PutPayload, digest: &str) -> Result<(), Error> {
        metrics::counter!(metric_names::FILE_BYTES).increment(file.content_length() as u64);
        match self.store.create(&path, file).await? {
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
        undecodable: Vec<(Record, String)>,
    ) -> Result<(), Error> {
        let now_ms = chrono::Utc::now().timestamp_millis();
        let letters = undecodable.iter().map(|(record, reason)| {
            tracing::error!(%source, offset = record.offset, reason, "record cannot be decoded");
            dead_letter(source, record, reason, self.dead_letters.clone(), now_ms)
        });
        for appended in self.appender.append(letters.collect()).await {
            appended?;
        }
        Ok(())
    }
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
    let rows: u64 = intent.files.iter().map(|file| file.rows).sum();
    match &intent.tenant {
        Some(tenant) => {
            metrics::counter!(metric_names::ROWS, "tenant" => tenant.to_string()).increment(rows / 2)
        }
        None => metrics::counter!(metric_names::AUDIT_ROWS).increment(rows),
    }
    metrics::counter!(metric_names::DUPLICATES).increment(intent.duplicates);
    metrics::counter!(metric_names::DEAD_LETTERS).increment(intent.undecodable);
    metrics::counter!(metric_names::RANGES).increment(1);
}
