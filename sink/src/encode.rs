//! Encodes a range: from the records of a partition to an intent and the bytes of its files. The same records give the
//! same bytes, whoever encodes them, whenever, and in however many pieces they came.

use std::io;

use arrow_schema::SchemaRef;
use chrono::{DateTime, NaiveDate};
use object_store::{PutPayload, PutPayloadMut};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties},
    schema::types::ColumnPath,
};
use schemas::{AuditEvents, DecodeError, Outcomes, Record as _, Tenant};
use topics::{Partition, Record};

use crate::{
    Error,
    audit::AuditRows,
    layout,
    outcomes::OutcomeRows,
    range::{Carried, Marks, RangeFile, RangeIntent, Table},
};

/// DuckDB reads a row group on one thread, and likes this size.
const ROW_GROUP_ROWS_MAX: usize = 122_880;
/// A file grows by blocks of this size: about a page of vectors, whose memory it takes over.
const FILE_BLOCK_BYTES: usize = 1 << 20;

/// What a range's records are, and where they stand.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) partition: Partition,
    /// Whose outcomes they are; none where they are audit events.
    pub(crate) tenant: Option<Tenant>,
}

/// A range under way: its records are encoded as they come, and are not kept.
#[derive(Debug)]
pub(crate) struct OpenRange {
    /// The intent that stands in the lake, where this range is done again.
    existing: Option<RangeIntent>,
    start: i64,
    /// Where the records end that are encoded.
    end: i64,
    record_bytes: usize,
    held_bytes: usize,
    undecodable: Vec<(Record, String)>,
    rows: Rows,
}

/// The rows of a range, by what its records are.
#[derive(Debug)]
enum Rows {
    Outcomes(OutcomeRows),
    Audit(AuditRows),
}

/// A range, ready to be written.
pub(crate) struct Encoded {
    pub(crate) intent: RangeIntent,
    /// One a file of the intent, in its order.
    pub(crate) files: Vec<PutPayload>,
    /// The records that could not be decoded, with the reason.
    pub(crate) undecodable: Vec<(Record, String)>,
}

impl OpenRange {
    /// A new range, which may end anywhere.
    pub(crate) fn new(start: i64, carried: Carried) -> Self {
        Self {
            existing: None,
            start,
            end: start,
            record_bytes: 0,
            held_bytes: 0,
            undecodable: Vec::new(),
            rows: match carried {
                Carried::Marks(marks) => Rows::Outcomes(OutcomeRows::new(marks)),
                Carried::Head(head) => Rows::Audit(AuditRows::new(head)),
            },
        }
    }

    /// The range of `intent` once more. The files carry its digest.
    pub(crate) fn again(intent: RangeIntent) -> Self {
        let again = Self::new(intent.start, intent.carried_before());
        Self {
            existing: Some(intent),
            ..again
        }
    }

    pub(crate) fn start(&self) -> i64 {
        self.start
    }

    /// Where it must end, if that is fixed.
    pub(crate) fn fixed_end(&self) -> Option<i64> {
        self.existing.as_ref().map(|intent| intent.end)
    }

    /// The size of the records that are encoded.
    pub(crate) fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Encodes `records`, which follow those that came before.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a newer build wrote a record.
    pub(crate) fn add(&mut self, source: &Source, records: Vec<Record>) -> Result<(), Error> {
        for record in records {
            self.end = record.offset + 1;
            self.record_bytes += record.size_bytes();
            if let Err(reason) = self.rows.add(source, &record)? {
                self.undecodable.push((record, reason));
            }
        }
        let undecodable = self.undecodable.iter().map(|(record, _)| record.size_bytes());
        self.held_bytes = undecodable.sum::<usize>() + self.rows.held_bytes();
        Ok(())
    }

    /// Ends the range where its records end.
    ///
    /// # Errors
    /// [`Error::Contradiction`] where the existing intent is not what the records say.
    pub(crate) fn close(mut self, source: &Source) -> Result<Encoded, Error> {
        let (topic, partition) = (&source.partition.topic, source.partition.index);
        let tenant = source.tenant.as_ref();
        let files = self
            .rows
            .files()
            .into_iter()
            .map(|(table, date, rows)| RangeFile {
                path: layout::data(table, tenant, date, topic.id, partition, self.start),
                table,
                date,
                rows,
            });
        let mut intent = RangeIntent {
            version: RangeIntent::current_version(),
            topic: topic.name.clone(),
            topic_id: topic.id,
            partition,
            tenant: tenant.cloned(),
            start: self.start,
            end: self.end,
            files: files.collect(),
            duplicates: 0,
            undecodable: self.undecodable.len() as u64,
            marks_before: Marks::default(),
            marks_after: Marks::default(),
            heads: None,
        };
        match &self.rows {
            Rows::Outcomes(rows) => {
                intent.duplicates = rows.duplicates;
                intent.marks_before = rows.marks_before.clone();
                intent.marks_after = rows.marks.clone();
            }
            Rows::Audit(rows) => intent.heads = Some(rows.heads()),
        }
        if let Some(existing) = self.existing.filter(|existing| *existing != intent) {
            return Err(contradiction(&existing, &intent));
        }
        let footer = Footer::of(&intent);
        let files = match self.rows {
            Rows::Outcomes(rows) => rows.close(&footer),
            Rows::Audit(rows) => rows.close(&footer),
        };
        Ok(Encoded {
            intent,
            files,
            undecodable: self.undecodable,
        })
    }
}

impl Rows {
    /// Adds what is in `record`, or says why it has nothing.
    fn add(&mut self, source: &Source, record: &Record) -> Result<Result<(), String>, Error> {
        let value = record.value.as_deref().unwrap_or_default();
        let added = match self {
            Self::Outcomes(rows) => match Outcomes::decode(value) {
                Ok(outcomes) => match foreign(source, &outcomes) {
                    Some(reason) => return Ok(Err(reason)),
                    None => {
                        rows.add(date_of(record), &outcomes);
                        Ok(())
                    }
                },
                Err(error) => Err(error),
            },
            Self::Audit(rows) => AuditEvents::decode(value)
                .map(|AuditEvents(events)| rows.add(date_of(record), record.offset, &events)),
        };
        match added {
            Ok(()) => Ok(Ok(())),
            Err(error @ DecodeError::UnknownVersion { .. }) => Err(Error::Invalid {
                what: format!("{} at offset {}: {error}", source.partition, record.offset),
            }),
            Err(error) => Ok(Err(match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            })),
        }
    }

    fn held_bytes(&self) -> usize {
        match self {
            Self::Outcomes(rows) => rows.held_bytes(),
            Self::Audit(rows) => rows.held_bytes(),
        }
    }

    fn files(&mut self) -> Vec<(Table, NaiveDate, u64)> {
        match self {
            Self::Outcomes(rows) => rows.files(),
            Self::Audit(rows) => rows.files(),
        }
    }
}

/// Why `outcomes` are not those of the source's tenant.
fn foreign(source: &Source, outcomes: &Outcomes<'_>) -> Option<String> {
    let tenant = source.tenant.as_ref()?;
    let mut groups = outcomes.0.iter();
    let foreign = groups.find(|group| group.common.tenant != *tenant)?;
    Some(format!(
        "an outcome is of tenant `{}`, on a topic of `{tenant}`",
        foreign.common.tenant
    ))
}

fn contradiction(existing: &RangeIntent, intent: &RangeIntent) -> Error {
    let rows = |intent: &RangeIntent| intent.files.iter().map(|file| file.rows).sum::<u64>();
    Error::Contradiction {
        what: format!(
            "the lake's range of {}[{}] from offset {} does not agree with the log: the lake says it ends at {} with {} rows, the log says {} with {}",
            intent.topic,
            intent.partition,
            intent.start,
            existing.end,
            rows(existing),
            intent.end,
            rows(intent),
        ),
    }
}

/// The UTC date of a record, from the log and not from any clock.
fn date_of(record: &Record) -> NaiveDate {
    DateTime::from_timestamp_millis(record.timestamp_ms)
        .unwrap_or_default()
        .date_naive()
}

/// A file in memory, in blocks: one that grew in one piece would be copied each time, into memory that is touched for the
/// first time.
#[derive(Debug)]
pub(crate) struct File(PutPayloadMut);

impl Default for File {
    fn default() -> Self {
        Self(PutPayloadMut::new().with_block_size(FILE_BLOCK_BYTES))
    }
}

impl io::Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer of a file in memory.
pub(crate) fn writer(schema: SchemaRef, properties: WriterProperties) -> ArrowWriter<File> {
    ArrowWriter::try_new(File::default(), schema, Some(properties))
        .expect("the schema is one that Parquet can hold")
}

/// What the files of a range say of it at their ends.
pub(crate) struct Footer<'a> {
    intent: &'a RangeIntent,
    digest: String,
}

impl<'a> Footer<'a> {
    fn of(intent: &'a RangeIntent) -> Self {
        Self {
            intent,
            digest: intent.digest(),
        }
    }

    /// Ends a file of `rows` rows on `date`.
    pub(crate) fn close(&self, mut writer: ArrowWriter<File>, date: NaiveDate, rows: u64) -> PutPayload {
        let intent = self.intent;
        let tenant = intent.tenant.as_ref().map(Tenant::to_string);
        let entries = [
            ("topic", Some(intent.topic.to_string())),
            ("topic_id", Some(intent.topic_id.to_string())),
            ("partition", Some(intent.partition.to_string())),
            ("start", Some(intent.start.to_string())),
            ("end", Some(intent.end.to_string())),
            ("rows", Some(rows.to_string())),
            ("tenant", tenant),
            ("date", Some(date.to_string())),
            ("intent_digest", Some(self.digest.clone())),
        ];
        for (key, value) in entries {
            if value.is_some() {
                writer.append_key_value_metadata(KeyValue::new(format!("tributary.{key}"), value));
            }
        }
        let file = writer.into_inner().expect("memory takes what is written");
        file.0.freeze()
    }
}

/// What all files have in common.
pub(crate) fn properties() -> parquet::file::properties::WriterPropertiesBuilder {
    let zstd = ZstdLevel::try_new(1).expect("zstd has a level 1");
    WriterProperties::builder()
        .set_created_by("tributary".to_owned())
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_column_dictionary_enabled(ColumnPath::from("origin_offset"), false)
        .set_column_encoding(ColumnPath::from("origin_offset"), Encoding::DELTA_BINARY_PACKED)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use schemas::TopicId;
    use topics::TopicRef;

    use super::*;
    use crate::faults::{acme, names, outcome};

    fn source() -> Source {
        let topic = TopicRef {
            name: names().outcomes(&acme()),
            id: TopicId::from_bytes([1; 16]),
        };
        Source {
            partition: Partition {
                topic: topic.into(),
                index: 0,
            },
            tenant: Some(acme()),
        }
    }

    /// Records of 1 to 100 outcomes each, over two days, one of which repeats the one before and one of which is none.
    fn records() -> Vec<Record> {
        let mut outcomes = (0..4_000).map(outcome);
        let mut records = Vec::new();
        for offset in 0..70 {
            let many = 1 + usize::try_from(offset).unwrap() * 37 % 100;
            let some: Vec<_> = outcomes.by_ref().take(many).collect();
            let value = match offset {
                20 => Bytes::from_static(&[<Outcomes<'_> as schemas::Record>::VERSION]),
                _ => Outcomes::pack(some)[0].encode().into(),
            };
            records.push(Record {
                offset,
                timestamp_ms: 1_790_000_000_000 + 86_400_000 * (offset / 50),
                stamped_by_log: false,
                key: None,
                value: Some(value),
                headers: Vec::new(),
            });
        }
        records[30].value = records[29].value.clone();
        records
    }

    fn encoded(records: Vec<Record>, sizes: &[usize]) -> Encoded {
        let mut range = OpenRange::new(0, Carried::Marks(Marks::default()));
        let mut rest = records.into_iter();
        for size in sizes.iter().cycle() {
            let some: Vec<_> = rest.by_ref().take(*size).collect();
            if some.is_empty() {
                break;
            }
            range.add(&source(), some).unwrap();
        }
        range.close(&source()).unwrap()
    }

    #[test]
    fn a_file_is_the_same_bytes_in_however_many_pieces_its_records_came() {
        let whole = encoded(records(), &[usize::MAX]);
        assert_eq!((whole.intent.files.len(), whole.undecodable.len()), (4, 1));
        assert!(whole.intent.duplicates > 0);
        for sizes in [&[1][..], &[2, 30, 5], &[69, 1]] {
            let pieces = encoded(records(), sizes);
            assert_eq!(pieces.intent, whole.intent, "{sizes:?}");
            for (one, other) in pieces.files.iter().zip(&whole.files) {
                assert!(one.iter().eq(other.iter()), "{sizes:?}");
            }
        }
    }

    #[test]
    fn an_open_range_counts_the_memory_of_what_it_encoded() {
        let mut range = OpenRange::new(0, Carried::Marks(Marks::default()));
        range.add(&source(), records()[..1].to_vec()).unwrap();
        let few = range.held_bytes();
        assert!((1..10_000).contains(&few), "no writer has begun a page: {few}");
        range.add(&source(), records()[1..].to_vec()).unwrap();
        let held = range.held_bytes();
        let files = range.close(&source()).unwrap().files;
        let written: usize = files.iter().map(PutPayload::content_length).sum();
        assert!(held > written, "{held} bytes held, {written} written");
    }
}
