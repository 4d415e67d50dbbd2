//! Encodes a range: from the records of a partition to an intent and the bytes of its files. Pure: the same records give
//! the same bytes, whoever encodes them and whenever.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, NaiveDate};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use schemas::{DecodeError, Outcome, Outcomes, Record as _, Tenant, TopicId, TopicName, tables};
use topics::Record;

use crate::{
    Error, columns, layout,
    range::{Marks, RangeFile, RangeIntent, Table},
};

/// Outcomes are turned into columns this many at a time: enough to be quick, little enough to stay in cache.
const ROWS_AT_A_TIME: usize = 1_024;
/// DuckDB reads a row group on one thread, and likes this size.
const ROW_GROUP_ROWS_MAX: usize = 122_880;

/// A range that is yet to be encoded.
pub(crate) struct Draft<'a> {
    pub(crate) topic: &'a TopicName,
    pub(crate) topic_id: TopicId,
    pub(crate) partition: i32,
    pub(crate) tenant: &'a Tenant,
    pub(crate) start: i64,
    pub(crate) marks_before: &'a Marks,
    /// The records of the range, all of them; at least one.
    pub(crate) records: &'a [Record],
}

/// A range, ready to be written.
pub(crate) struct Encoded {
    pub(crate) intent: RangeIntent,
    /// One a file of the intent, in its order.
    pub(crate) files: Vec<Bytes>,
    /// The records that are no outcomes, with the reason: positions in the draft's records.
    pub(crate) undecodable: Vec<(usize, String)>,
}

/// Encodes `draft`. Where the lake already has an `existing` intent of this range, the files carry its digest.
///
/// # Errors
/// [`Error::Invalid`] where a newer build wrote a record; [`Error::Contradiction`] where the existing intent is not what
/// the records say.
pub(crate) fn encode(draft: &Draft<'_>, existing: Option<&RangeIntent>) -> Result<Encoded, Error> {
    let mut days: BTreeMap<NaiveDate, Day> = BTreeMap::new();
    let bytes = draft.records.iter().map(Record::size_bytes).sum();
    let (mut marks, mut duplicates, mut undecodable) = (draft.marks_before.clone(), 0, Vec::new());
    for (position, record) in draft.records.iter().enumerate() {
        let outcomes = match decode(draft, record)? {
            Ok(outcomes) => outcomes,
            Err(reason) => {
                undecodable.push((position, reason));
                continue;
            }
        };
        for outcome in outcomes {
            if marks.is_new(&outcome.origin, &outcome.route) {
                let day = days.entry(date_of(record)).or_insert_with(|| Day::new(bytes));
                day.push(outcome);
            } else {
                duplicates += 1;
            }
        }
    }
    let last = draft.records.last().expect("a range has at least one record");
    let file = |table, date: &NaiveDate, day: &Day| RangeFile {
        path: layout::data(
            table,
            draft.tenant,
            *date,
            draft.topic_id,
            draft.partition,
            draft.start,
        ),
        table,
        date: *date,
        rows: day.rows,
    };
    let both = |(date, day)| [file(Table::Results, date, day), file(Table::Costs, date, day)];
    let intent = RangeIntent {
        version: RangeIntent::current_version(),
        topic: draft.topic.clone(),
        topic_id: draft.topic_id,
        partition: draft.partition,
        tenant: draft.tenant.clone(),
        start: draft.start,
        end: last.offset + 1,
        files: days.iter().flat_map(both).collect(),
        duplicates,
        undecodable: undecodable.len() as u64,
        marks_before: draft.marks_before.clone(),
        marks_after: marks,
    };
    if let Some(existing) = existing.filter(|existing| **existing != intent) {
        return Err(Error::Contradiction {
            what: format!(
                "the lake's range of {}[{}] from offset {} does not agree with the log: the lake says it ends at {} with {} rows, the log says {} with {}",
                draft.topic,
                draft.partition,
                draft.start,
                existing.end,
                rows(existing),
                intent.end,
                rows(&intent),
            ),
        });
    }
    let digest = intent.digest();
    let mut files = Vec::with_capacity(intent.files.len());
    for (date, day) in days {
        files.extend(day.close(&footer(&intent, &digest, date)));
    }
    Ok(Encoded {
        intent,
        files,
        undecodable,
    })
}

fn rows(intent: &RangeIntent) -> u64 {
    intent.files.iter().map(|file| file.rows).sum()
}

/// The outcomes in `record`, or why it has none.
fn decode(draft: &Draft<'_>, record: &Record) -> Result<Result<Vec<Outcome>, String>, Error> {
    match Outcomes::decode(record.value.as_deref().unwrap_or_default()) {
        Ok(Outcomes(outcomes)) => match outcomes.iter().find(|outcome| outcome.tenant != *draft.tenant) {
            None => Ok(Ok(outcomes)),
            Some(foreign) => Ok(Err(format!(
                "an outcome is of tenant `{}`, on a topic of `{}`",
                foreign.tenant, draft.tenant
            ))),
        },
        Err(error @ DecodeError::UnknownVersion { .. }) => Err(Error::Invalid {
            what: format!(
                "{}[{}] at offset {}: {error}",
                draft.topic, draft.partition, record.offset
            ),
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
struct Day {
    results: ArrowWriter<Vec<u8>>,
    costs: ArrowWriter<Vec<u8>>,
    waiting: Vec<Outcome>,
    rows: u64,
}

impl Day {
    /// For rows that came in `bytes` bytes of records: vectors, mostly, which take about as many as Parquet.
    fn new(bytes: usize) -> Self {
        let writer = |buffer, schema, properties| {
            ArrowWriter::try_new(buffer, schema, Some(properties))
                .expect("the schema is one that Parquet can hold")
        };
        Self {
            results: writer(Vec::with_capacity(bytes), tables::results(), results_properties()),
            costs: writer(Vec::new(), tables::costs(), costs_properties()),
            waiting: Vec::with_capacity(ROWS_AT_A_TIME),
            rows: 0,
        }
    }

    fn push(&mut self, outcome: Outcome) {
        self.waiting.push(outcome);
        self.rows += 1;
        if self.waiting.len() >= ROWS_AT_A_TIME {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.results
            .write(&columns::results(&self.waiting))
            .expect("memory takes what is written");
        self.costs
            .write(&columns::costs(&self.waiting))
            .expect("memory takes what is written");
        self.waiting.clear();
    }

    fn close(mut self, footer: &[KeyValue]) -> [Bytes; 2] {
        self.flush();
        [self.results, self.costs].map(|mut writer| {
            for entry in footer {
                writer.append_key_value_metadata(entry.clone());
            }
            writer.into_inner().expect("memory takes what is written").into()
        })
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
