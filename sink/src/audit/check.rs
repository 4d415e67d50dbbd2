//! Checks the rows of a range against the chain.

use std::collections::BTreeMap;

use arrow_array::{Array, RecordBatch, StringArray, cast::AsArray, types};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::tables;

use super::link;
use crate::range::Heads;

/// What is found to have happened, and how often: by operation, tenant and, where it was refused, why.
pub(crate) type Counts = BTreeMap<(String, Option<String>, Option<String>), u64>;

/// The rows of a range, as they stand in the lake.
pub(crate) struct RangeRows<'a> {
    /// The range, in words.
    pub(crate) name: String,
    /// What its intent says of the chain.
    pub(crate) heads: Heads,
    /// Its files, with their paths.
    pub(crate) files: Vec<(&'a str, Bytes)>,
}

/// A row as it stands in a file.
struct Row<'a> {
    /// The record that it came from, and which of its events it is.
    place: (i64, i32),
    path: &'a str,
    number: usize,
    canonical: Vec<u8>,
    hash: String,
}

/// What is wrong with the rows of a range. What they tell is added to `counts`.
pub(crate) fn check(range: &RangeRows<'_>, counts: &mut Counts) -> Vec<String> {
    let (mut offences, mut rows) = (Vec::new(), Vec::new());
    for (path, bytes) in &range.files {
        match read(bytes).and_then(|batches| rows_of(path, &batches, counts)) {
            Ok(of_file) => {
                offences.extend(disorder(&of_file));
                rows.extend(of_file);
            }
            Err(why) => offences.push(format!("the rows of `{path}` cannot be read: {why}")),
        }
    }
    if !offences.is_empty() {
        // What the chain says of rows that are not in order, or not all there, is no more than that.
        return offences;
    }
    rows.sort_by_key(|row| row.place);
    let mut head = range.heads.before;
    for row in &rows {
        let expected = link::follow(&head, &row.canonical);
        if row.hash != expected.to_string() {
            offences.push(format!(
                "{row} does not follow from the row before it: one of the two was changed, or rows between them were taken out, put in or moved"
            ));
        }
        // The chain goes on from what stands there, so that only what was changed is named.
        head = row.hash.parse().unwrap_or(expected);
    }
    if head != range.heads.after {
        let files: Vec<&str> = range.files.iter().map(|(path, _)| *path).collect();
        offences.push(format!(
            "range {} does not end with the row that its intent says: rows at the end of `{}` were changed, taken out or put in, or a file is another",
            range.name,
            files.join("`, `"),
        ));
    }
    offences
}

/// Rows that do not stand in the order of their records.
fn disorder(rows: &[Row<'_>]) -> Vec<String> {
    let neighbours = rows.iter().zip(rows.iter().skip(1));
    neighbours
        .filter(|(row, next)| row.place >= next.place)
        .map(|(row, next)| {
            format!(
                "{next} stands after that of record {}: rows were moved",
                row.place.0
            )
        })
        .collect()
}

fn read(file: &Bytes) -> Result<Vec<RecordBatch>, String> {
    let builder =
        ParquetRecordBatchReaderBuilder::try_new(file.clone()).map_err(|error| error.to_string())?;
    let reader = builder.build().map_err(|error| error.to_string())?;
    reader
        .map(|batch| batch.map_err(|error| error.to_string()))
        .collect()
}

fn rows_of<'a>(path: &'a str, batches: &[RecordBatch], counts: &mut Counts) -> Result<Vec<Row<'a>>, String> {
    let table = tables::audit();
    let mut rows = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        let mut fields = table.fields().iter().zip(schema.fields());
        if let Some((field, found)) = fields
            .find(|(field, found)| field.name() != found.name() || field.data_type() != found.data_type())
        {
            return Err(format!(
                "`{}` stands in the place of column `{}`",
                found,
                field.name()
            ));
        }
        let Some(hashes) = batch.column_by_name(tables::AUDIT_HASH) else {
            return Err("it has no hashes".to_owned());
        };
        let hashes: &StringArray = hashes.as_string();
        let offsets = batch["x_record_offset"].as_primitive::<types::Int64Type>();
        let indexes = batch["x_record_index"].as_primitive::<types::Int32Type>();
        count(batch, counts);
        for (row, canonical) in link::canonical(batch)?.into_iter().enumerate() {
            rows.push(Row {
                place: (offsets.value(row), indexes.value(row)),
                path,
                number: rows.len() + 1,
                canonical,
                hash: hashes.value(row).to_owned(),
            });
        }
    }
    Ok(rows)
}

fn count(batch: &RecordBatch, counts: &mut Counts) {
    let operations = batch["api"].as_struct()["operation"].as_string::<i32>();
    let tenants = batch["metadata"].as_struct()["tenant_uid"].as_string::<i32>();
    let codes = batch["status_code"].as_string::<i32>();
    let times = batch["count"].as_primitive::<types::Int64Type>();
    let text = |column: &StringArray, row| column.is_valid(row).then(|| column.value(row).to_owned());
    for row in 0..batch.num_rows() {
        let what = (
            operations.value(row).to_owned(),
            text(tenants, row),
            text(codes, row),
        );
        *counts.entry(what).or_default() += times.value(row).unsigned_abs();
    }
}

impl std::fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (offset, index) = self.place;
        let Self { path, number, .. } = self;
        write!(f, "row {number} of `{path}`, of record {offset}, event {index},")
    }
}
