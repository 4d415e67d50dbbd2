//! The rows of a range of outcomes: those that are no repetition, as both tables.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use object_store::PutPayload;
use parquet::{
    arrow::ArrowWriter,
    basic::Encoding,
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};
use schemas::{Common, Group, Outcomes, Row, tables};

use crate::{
    columns::{Batches, Columns},
    encode::{self, File, Footer, writer},
    range::{Marks, Table},
};

/// Outcomes are turned into columns this many at a time: enough to be quick, little enough to stay in cache. The pages of
/// a file begin and end where they do because of it, so it is exact.
const ROWS_AT_A_TIME: usize = 1_024;

/// The outcomes of a range, under way.
#[derive(Debug)]
pub(crate) struct OutcomeRows {
    pub(crate) marks_before: Marks,
    pub(crate) marks: Marks,
    pub(crate) duplicates: u64,
    days: BTreeMap<NaiveDate, Day>,
}

impl OutcomeRows {
    pub(crate) fn new(marks: Marks) -> Self {
        Self {
            marks_before: marks.clone(),
            marks,
            duplicates: 0,
            days: BTreeMap::new(),
        }
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.days.values().map(Day::held_bytes).sum()
    }

    /// Adds those of `outcomes` that are new.
    pub(crate) fn add(&mut self, date: NaiveDate, Outcomes(groups): &Outcomes<'_>) {
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

    /// The files of the rows, and how many each has.
    pub(crate) fn files(&mut self) -> Vec<(Table, NaiveDate, u64)> {
        self.days.values_mut().for_each(Day::flush);
        let both = |(date, day): (&NaiveDate, &Day)| {
            [Table::Results, Table::Costs].map(|table| (table, *date, day.rows))
        };
        self.days.iter().flat_map(both).collect()
    }

    /// Their bytes, in the same order.
    pub(crate) fn close(self, footer: &Footer<'_>) -> Vec<PutPayload> {
        let close = |(date, day): (NaiveDate, Day)| day.close(date, footer);
        self.days.into_iter().flat_map(close).collect()
    }
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

    fn close(self, date: NaiveDate, footer: &Footer<'_>) -> [PutPayload; 2] {
        [self.results, self.costs].map(|writer| footer.close(writer, date, self.rows))
    }
}

fn results_properties() -> WriterProperties {
    let embedding = ColumnPath::from(vec![
        "embedding".to_owned(),
        "list".to_owned(),
        "element".to_owned(),
    ]);
    encode::properties()
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
    let mut properties = encode::properties()
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
