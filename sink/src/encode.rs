//! Encodes a range: from the records of a partition to an intent and the bytes of its files. The same records give the
//! same bytes, whoever encodes them, whenever, and in however many pieces they came.

use std::{collections::BTreeMap, io};

use chrono::{DateTime, NaiveDate};
use object_store::{PutPayload, PutPayloadMut};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use schemas::{Common, DecodeError, Group, Outcomes, Record as _, Row, Tenant, tables};
use topics::{Partition, Record};

use crate::{
    Error,
    columns::{Batches, Columns},
    layout,
    range::{Marks, RangeFile, RangeIntent, Table},
};

/// Outcomes are turned into columns this many at a time: enough to be quick, little enough to stay in cache. The pages of
/// a file begin and end where they do because of it, so it is exact.
const ROWS_AT_A_TIME: usize = 1_024;
/// DuckDB reads a row group on one thread, and likes this size.
const ROW_GROUP_ROWS_MAX: usize = 122_880;
/// A file grows by blocks of this size: about a page of vectors, whose memory it takes over.
const FILE_BLOCK_BYTES: usize = 1 << 20;

/// Whose outcomes a range has, and where they stand.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) partition: Partition,
    pub(crate) tenant: Tenant,
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
    marks_before: Marks,
    marks: Marks,
    duplicates: u64,
    undecodable: Vec<(Record, String)>,
    days: BTreeMap<NaiveDate, Day>,
}

/// A range, ready to be written.
pub(crate) struct Encoded {
    pub(crate) intent: RangeIntent,
    /// One a file of the intent, in its order.
    pub(crate) files: Vec<PutPayload>,
    /// The records that are no outcomes, with the reason.
    pub(crate) undecodable: Vec<(Record, String)>,
}

impl OpenRange {
    /// A new range, which may end anywhere.
    pub(crate) fn new(start: i64, marks: Marks) -> Self {
        Self {
            existing: None,
            start,
            end: start,
            record_bytes: 0,
            held_bytes: 0,
            marks_before: marks.clone(),
            marks,
            duplicates: 0,
            undecodable: Vec::new(),
            days: BTreeMap::new(),
        }
    }

    /// The range of `intent` once more. The files carry its digest.
    pub(crate) fn again(intent: RangeIntent) -> Self {
        Self {
            existing: Some(intent.clone()),
            ..Self::new(intent.start, intent.marks_before)
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
            match decode(source, &record)? {
                Ok(Outcomes(groups)) => self.add_groups(date_of(&record), &groups),
                Err(reason) => self.undecodable.push((record, reason)),
            }
        }
        let undecodable = self.undecodable.iter().map(|(record, _)| record.size_bytes());
        self.held_bytes = undecodable.sum::<usize>() + self.days.values().map(Day::held_bytes).sum::<usize>();
        Ok(())
    }

    fn add_groups(&mut self, date: NaiveDate, groups: &[Group<'_>]) {
        for Group { common, rows } in groups.iter().filter(|group| !group.rows.is_empty()) {
            let marks = self.marks.along(&common.route);
            let mut fresh = rows
                .iter()
                .filter(|row| {
                    let is_new =
                        marks.is_new(common.origin_topic_id, row.origin_partition, row.origin_offset);
                    self.duplicates += u64::from(!is_new);
                    is_new
                })
                .peekable();
            if fresh.peek().is_none() {
                continue;
            }
            let day = self.days.entry(date).or_insert_with(Day::new);
            day.columns.begin_group();
            for row in fresh {
                day.push(common, row);
            }
        }
    }

    /// Ends the range where its records end.
    ///
    /// # Errors
    /// [`Error::Contradiction`] where the existing intent is not what the records say.
    pub(crate) fn close(mut self, source: &Source) -> Result<Encoded, Error> {
        self.days.values_mut().for_each(Day::flush);
        let topic = &source.partition.topic;
        let both = |(date, day): (&NaiveDate, &Day)| {
            [Table::Results, Table::Costs].map(|table| RangeFile {
                path: layout::data(
                    table,
                    &source.tenant,
                    *date,
                    topic.id,
                    source.partition.index,
                    self.start,
                ),
                table,
                date: *date,
                rows: day.rows,
            })
        };
        let intent = RangeIntent {
            version: RangeIntent::current_version(),
            topic: topic.name.clone(),
            topic_id: topic.id,
            partition: source.partition.index,
            tenant: source.tenant.clone(),
            start: self.start,
            end: self.end,
            files: self.days.iter().flat_map(both).collect(),
            duplicates: self.duplicates,
            undecodable: self.undecodable.len() as u64,
            marks_before: self.marks_before,
            marks_after: self.marks,
        };
        if let Some(existing) = self.existing.filter(|existing| *existing != intent) {
            return Err(contradiction(&existing, &intent));
        }
        let digest = intent.digest();
        let mut files = Vec::with_capacity(intent.files.len());
        for (date, day) in self.days {
            files.extend(day.close(&footer(&intent, &digest, date)));
        }
        Ok(Encoded {
            intent,
            files,
            undecodable: self.undecodable,
        })
    }
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

/// The outcomes in `record`, or why it has none.
fn decode<'a>(source: &Source, record: &'a Record) -> Result<Result<Outcomes<'a>, String>, Error> {
    match Outcomes::decode(record.value.as_deref().unwrap_or_default()) {
        Ok(outcomes) => match outcomes
            .0
            .iter()
            .find(|group| group.common.tenant != source.tenant)
        {
            None => Ok(Ok(outcomes)),
            Some(foreign) => Ok(Err(format!(
                "an outcome is of tenant `{}`, on a topic of `{}`",
                foreign.common.tenant, source.tenant
            ))),
        },
        Err(error @ DecodeError::UnknownVersion { .. }) => Err(Error::Invalid {
            what: format!("{} at offset {}: {error}", source.partition, record.offset),
        }),
        Err(error) => Ok(Err(match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })),
    }
}

/// The UTC date of a record, from the log and not from any clock.
fn date_of(record: &Record) -> NaiveDate {
    DateTime::from_timestamp_millis(record.timestamp_ms)
        .unwrap_or_default()
        .date_naive()
}

/// The files of one day of a range, under way.
#[derive(Debug)]
struct Day {
    results: ArrowWriter<File>,
    costs: ArrowWriter<File>,
    columns: Columns,
    rows: u64,
}

impl Day {
    fn new() -> Self {
        let writer = |schema, properties| {
            ArrowWriter::try_new(File::default(), schema, Some(properties))
                .expect("the schema is one that Parquet can hold")
        };
        Self {
            results: writer(tables::results(), results_properties()),
            costs: writer(tables::costs(), costs_properties()),
            columns: Columns::default(),
            rows: 0,
        }
    }

    fn held_bytes(&self) -> usize {
        let writers =
            [&self.results, &self.costs].map(|writer| writer.memory_size() + writer.bytes_written());
        writers.iter().sum::<usize>() + self.columns.held_bytes()
    }

    fn push(&mut self, common: &Common, row: &Row<'_>) {
        self.columns.push(common, row);
        if self.columns.rows() == ROWS_AT_A_TIME {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.rows += self.columns.rows() as u64;
        let Batches { results, costs } = self.columns.finish();
        for (writer, batch) in [(&mut self.results, results), (&mut self.costs, costs)] {
            writer.write(&batch).expect("memory takes what is written");
        }
    }

    fn close(self, footer: &[KeyValue]) -> [PutPayload; 2] {
        [self.results, self.costs].map(|mut writer| {
            for entry in footer {
                writer.append_key_value_metadata(entry.clone());
            }
            let file = writer.into_inner().expect("memory takes what is written");
            file.0.freeze()
        })
    }
}

/// A file in memory, in blocks: one that grew in one piece would be copied each time, into memory that is touched for the
/// first time.
#[derive(Debug)]
struct File(PutPayloadMut);

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

fn footer(intent: &RangeIntent, digest: &str, date: NaiveDate) -> Vec<KeyValue> {
    let rows = intent
        .files
        .iter()
        .find(|file| file.date == date)
        .map_or(0, |file| file.rows);
    [
        ("topic", intent.topic.to_string()),
        ("topic_id", intent.topic_id.to_string()),
        ("partition", intent.partition.to_string()),
        ("start", intent.start.to_string()),
        ("end", intent.end.to_string()),
        ("rows", rows.to_string()),
        ("tenant", intent.tenant.to_string()),
        ("date", date.to_string()),
        ("intent_digest", digest.to_owned()),
    ]
    .map(|(key, value)| KeyValue::new(format!("tributary.{key}"), value))
    .to_vec()
}

fn properties() -> parquet::file::properties::WriterPropertiesBuilder {
    let zstd = ZstdLevel::try_new(1).expect("zstd has a level 1");
    WriterProperties::builder()
        .set_created_by("tributary".to_owned())
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_column_dictionary_enabled(ColumnPath::from("origin_offset"), false)
        .set_column_encoding(ColumnPath::from("origin_offset"), Encoding::DELTA_BINARY_PACKED)
}

fn results_properties() -> WriterProperties {
    let embedding = ColumnPath::from(vec![
        "embedding".to_owned(),
        "list".to_owned(),
        "element".to_owned(),
    ]);
    properties()
        .set_column_dictionary_enabled(embedding.clone(), false)
        .set_column_encoding(embedding.clone(), Encoding::BYTE_STREAM_SPLIT)
        .set_column_statistics_enabled(embedding, EnabledStatistics::None)
        .set_column_dictionary_enabled(ColumnPath::from("job_id"), false)
        .set_column_bloom_filter_enabled(ColumnPath::from("job_id"), true)
        .set_column_dictionary_enabled(ColumnPath::from("device_time_ns"), false)
        .set_column_dictionary_enabled(ColumnPath::from("queue_time_ns"), false)
        .build()
}

fn costs_properties() -> WriterProperties {
    let mut properties = properties()
        .set_column_dictionary_enabled(ColumnPath::from("x_job_id"), false)
        .set_column_bloom_filter_enabled(ColumnPath::from("x_job_id"), true);
    for column in [
        "BilledCost",
        "EffectiveCost",
        "PricingQuantity",
        "x_device_time_ns",
    ] {
        properties = properties.set_column_dictionary_enabled(ColumnPath::from(column), false);
    }
    properties.build()
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
            tenant: acme(),
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
        let mut range = OpenRange::new(0, Marks::default());
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
        let mut range = OpenRange::new(0, Marks::default());
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
